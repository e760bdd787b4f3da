"""Sample-complexity curves: how the test error of layers and kernels falls with the number of examples.

Fu, Guo, Bai & Mei, NeurIPS 2023, arXiv:2307.11353. Every method is a ridge regression whose penalty, and where there
are several candidates also the candidate, is chosen by validation error at each number of examples and for each target.
Penalties are relative to the mean diagonal of a method's own Gram matrix, so that one grid means the same to all.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from etude.theory.random_feature_attention.layers import RandomFeatureAttention
from etude.theory.random_feature_attention.ridge import RIDGES, Kernel, RidgePath, standardized
from etude.theory.random_feature_attention.tokens import Draw, Tokens

__all__ = [
    "BiasGain",
    "ErrorCurve",
    "Reached",
    "SampleComplexity",
    "Split",
    "bias_gain",
    "error_curve",
    "plot_bias_gain",
    "plot_sample_complexity",
    "sample_complexity",
    "samples_to_reach",
]


class Split(NamedTuple):
    """Examples to learn from, to choose by, and to report on; targets (n, targets)."""

    train: tuple[Tokens, Tensor]
    val: tuple[Tokens, Tensor]
    test: tuple[Tokens, Tensor]

    @classmethod
    def draw(cls, source: Draw, train: int, val: int, test: int, generator: torch.Generator) -> "Split":
        """Three disjoint parts of one draw."""
        if min(train, val, test) < 2:
            raise ValueError(f"every part needs at least two examples, got {train}, {val} and {test}")
        tokens, y = source(train + val + test, generator)
        y = y[:, None] if y.ndim == 1 else y
        parts = slice(0, train), slice(train, train + val), slice(train + val, None)
        return cls(*((tokens[part], y[part]) for part in parts))

    def to(self, *args: Any) -> "Split":
        return Split(*((tokens.to(*args), y.to(*args)) for tokens, y in self))


class ErrorCurve(NamedTuple):
    """What one method reached.

    Attributes:
        errors: (sizes, targets) test mean squared error over the variance of the test targets; 1 is a constant guess.
        val_errors: (sizes, targets) the validation error that chose, likewise.
        ridges: (sizes, targets) the relative ridge chosen.
        candidates: (sizes, targets) the candidate chosen.
    """

    errors: Float[Tensor, "sizes targets"]
    val_errors: Float[Tensor, "sizes targets"]
    ridges: Float[Tensor, "sizes targets"]
    candidates: Int[Tensor, "sizes targets"]


@torch.no_grad()
def error_curve(
    models: Sequence[Kernel], split: Split, sizes: Sequence[int], ridges: Sequence[float | int] = RIDGES
) -> ErrorCurve:
    """Test errors after the first n training examples, for each n of `sizes`.

    Args:
        models: candidates, a layer or a kernel each; the one with the least validation error is taken, size by size.
        split: the examples; their targets are standardised over the first n.
        sizes: numbers of examples, at least 2, at most as many as there are.
        ridges: relative penalties to choose from.

    Raises:
        ValueError: if there is no candidate, or a size is out of range.
    """
    (train, y), (val, y_val), (test, y_test) = (part for part in split)
    if not models or not ridges:
        raise ValueError("there must be at least one candidate and one ridge")
    if not sizes or min(sizes) < 2 or max(sizes) > len(train):
        raise ValueError(f"sizes must lie in 2..{len(train)}, the number of training examples, got {list(sizes)}")
    train = train[: max(sizes)]
    shape = (len(sizes), y.shape[1])
    best = y.new_full(shape, math.inf, dtype=torch.float64)
    errors, chosen = torch.full_like(best, math.nan), torch.zeros_like(best)
    candidates = torch.zeros(shape, dtype=torch.int64, device=best.device)
    for number, model in enumerate(models):
        gram, cross, outer = model.gram(train), model.gram(val, train), model.gram(test, train)
        for row, n in enumerate(sizes):
            standard, mean, std = standardized(y[:n].to(torch.float64))
            path = RidgePath(gram[:n, :n], standard)
            found, reported = (
                _relative_errors(path.predict(kernel[:, :n], ridges) * std + mean, truth)
                for kernel, truth in ((cross, y_val), (outer, y_test))
            )
            least, which = found.min(0)
            better = least < best[row]
            best[row] = torch.where(better, least, best[row])
            errors[row] = torch.where(better, reported.gather(0, which[None])[0], errors[row])
            chosen[row] = torch.where(better, least.new_tensor(list(ridges))[which], chosen[row])
            candidates[row] = torch.where(better, number, candidates[row])
    return ErrorCurve(errors, best, chosen, candidates)


def _relative_errors(predicted: Tensor, truth: Tensor) -> Tensor:
    """(ridges, targets): mean squared error over the variance of the truth."""
    variance = truth.var(0, correction=0)
    if bool((variance <= 0).any()):
        raise ValueError(f"target {int((variance <= 0).int().argmax())} is constant: it has no error to compare with")
    return (predicted - truth).square().mean(1) / variance


class Reached(NamedTuple):
    """A number of samples, and whether the level was reached; if not, it is the largest number tried, a lower bound."""

    samples: float
    reached: bool


def samples_to_reach(sizes: Sequence[int], errors: Sequence[float] | Tensor, level: float | int) -> Reached:
    """How many samples a curve takes to fall to `level`: where it first does, between sizes on log-log axes.

    Args:
        sizes: increasing numbers of samples.
        errors: the error at each.
        level: > 0. A curve that starts below it counts as reaching it at the first size.

    Raises:
        ValueError: if the lists differ in length, sizes do not increase, or the level is not positive.
    """
    values = [float(error) for error in errors]
    if len(values) != len(sizes) or any(b <= a for a, b in itertools.pairwise(sizes)) or not sizes:
        raise ValueError(f"sizes must increase, with one error each, got {list(sizes)} and {len(values)} errors")
    if not level > 0:
        raise ValueError(f"level must be positive, got {level}")
    if values[0] <= level:
        return Reached(float(sizes[0]), True)
    for (n, above), (m, below) in itertools.pairwise(zip(sizes, values)):
        if below <= level:
            share = math.log(above / level) / math.log(above / max(below, 1e-300))
            return Reached(float(n * (m / n) ** share), True)
    return Reached(float(sizes[-1]), False)


Maker = Callable[[torch.Generator], Sequence[Kernel]]
"""Makes the candidates of a method, with frozen weights from the generator."""


@dataclass(frozen=True)
class SampleComplexity:
    """Curves of several methods on the same draws.

    Attributes:
        sizes: numbers of training examples.
        errors: method -> (repeats, sizes, targets); repeats are paired between methods.
        candidates: method -> (repeats, sizes, targets) which candidate was taken.
    """

    sizes: tuple[int, ...]
    errors: dict[str, Tensor]
    candidates: dict[str, Tensor]

    def mean(self, method: str) -> Float[Tensor, "sizes targets"]:
        return self.errors[method].mean(0)

    def std_error(self, method: str) -> Float[Tensor, "sizes targets"]:
        """One standard error of the mean over repeats; NaN if there is one repeat."""
        errors = self.errors[method]
        if len(errors) < 2:
            return torch.full_like(errors[0], math.nan)
        return errors.std(0) / math.sqrt(len(errors))

    def samples(self, method: str, level: float | int, target: int = 0) -> list[Reached]:
        """`samples_to_reach` of each repeat."""
        return [samples_to_reach(self.sizes, errors[:, target], level) for errors in self.errors[method]]


def sample_complexity(
    methods: Mapping[str, Maker],
    source: Draw,
    sizes: Sequence[int],
    *,
    repeats: int = 3,
    val: int = 300,
    test: int = 300,
    ridges: Sequence[float | int] = RIDGES,
    seed: int = 0,
    device: str = "cpu",
) -> SampleComplexity:
    """The curves of several methods, repeated with new examples and new frozen weights.

        methods = {"attention": lambda g: [RandomFeatureAttention(8, 400, generator=g)],
                   "MLP": lambda g: [RandomFeatureMLP(8, 8, 400 * 9, generator=g)]}
        curves = sample_complexity(methods, from_arrays(X, y), [64, 128, 256, 512])
        plot_sample_complexity(curves)

    Args:
        methods: name -> what makes its candidates from a generator.
        source: examples: a `TokenTask`, `from_arrays(X, y)`, or a function of your own.
        sizes: numbers of training examples.
        repeats: how often everything is drawn again; error bars need two.
        val, test: examples to choose by and to report on.
        ridges: relative penalties.
        seed: of all draws, which are made on the CPU.
        device: where layers and examples are moved, and everything is computed.

    Raises:
        ValueError: if there is no method or repeat; as for `error_curve` and the source.
    """
    if not methods or repeats < 1:
        raise ValueError(f"there must be a method and a repeat, got {len(methods)} and {repeats}")
    errors: dict[str, list[Tensor]] = {name: [] for name in methods}
    candidates: dict[str, list[Tensor]] = {name: [] for name in methods}
    for repeat in range(repeats):
        first = 1_000_003 * seed + 2 * repeat
        split = Split.draw(source, max(sizes), val, test, torch.Generator().manual_seed(first)).to(device)
        for name, make in methods.items():
            models = make(torch.Generator().manual_seed(first + 1))
            moved = [model.to(device) if isinstance(model, nn.Module) else model for model in models]
            curve = error_curve(moved, split, sizes, ridges)
            errors[name].append(curve.errors.cpu())
            candidates[name].append(curve.candidates.cpu())
    return SampleComplexity(
        tuple(sizes),
        {name: torch.stack(found) for name, found in errors.items()},
        {name: torch.stack(found) for name, found in candidates.items()},
    )


@dataclass(frozen=True)
class BiasGain:
    """What heads centred on the similarity of query and key gain over heads centred on zero.

    Attributes:
        sizes: numbers of training examples.
        biases: those compared with 0.
        gain: (biases + 1, sizes, targets) mean of log(error of bias 0 / error): positive is better. The last row takes
            one of the biases by validation.
        std_error: of that mean, over paired repeats.
        chosen: (sizes, targets) mean of the biases that validation took.
        curves: all errors behind it.
    """

    sizes: tuple[int, ...]
    biases: tuple[float, ...]
    gain: Tensor
    std_error: Tensor
    chosen: Tensor
    curves: SampleComplexity


def bias_gain(
    source: Draw,
    dim: int,
    num_heads: int,
    sizes: Sequence[int],
    *,
    biases: Sequence[float | int] = (1.0, 2.0, 4.0),
    repeats: int = 3,
    **options: Any,
) -> BiasGain:
    """Whether a non-zero mean of the query-key matrices helps on a task, or on your own examples.

    All biases share the Gaussian part of their heads, and the examples.

    Args:
        source: examples, as for `sample_complexity`.
        dim: of the tokens.
        num_heads: M.
        sizes: numbers of training examples.
        biases: to compare with 0; the paper's is 1.
        repeats: at least 2, for error bars.
        options: further arguments of `sample_complexity`.

    Raises:
        ValueError: if there is no bias, or fewer than two repeats.
    """
    if not biases or repeats < 2:
        raise ValueError(f"there must be a bias and two repeats, got {list(biases)} and {repeats}")

    def maker(values: Sequence[float | int]) -> Maker:
        return lambda g: [
            RandomFeatureAttention(dim, num_heads, bias=bias, generator=g.clone_state()) for bias in values
        ]

    methods = {"0": maker([0.0]), **{f"{bias:g}": maker([bias]) for bias in biases}, "validated": maker(biases)}
    curves = sample_complexity(methods, source, sizes, repeats=repeats, **options)
    plain = curves.errors["0"].log()
    logs = torch.stack([plain - curves.errors[name].log() for name in list(methods)[1:]])
    taken = torch.tensor([float(bias) for bias in biases], dtype=torch.float64)[curves.candidates["validated"]]
    return BiasGain(
        tuple(sizes), tuple(float(bias) for bias in biases), logs.mean(1), logs.std(1) / math.sqrt(repeats),
        taken.mean(0), curves,
    )  # fmt: skip


def plot_sample_complexity(
    curves: SampleComplexity, *, target: int = 0, level: float | int | None = None, title: str = ""
) -> Any:
    """Test error over the number of examples on log axes, with two standard errors.

    Args:
        curves: of `sample_complexity`.
        target: column of the targets.
        level: an error at which to draw a line.
        title: of the plot.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    figure, axes = _axes(curves.sizes)
    for name in curves.errors:
        mean = curves.mean(name)[:, target]
        bars = 2 * curves.std_error(name)[:, target].nan_to_num(0.0)
        # On log axes a bar must not reach below zero.
        both = torch.stack([torch.minimum(bars, 0.99 * mean), bars])
        axes.errorbar(
            curves.sizes, mean.tolist(), yerr=both.numpy(force=True), marker="o", markersize=3, capsize=2, label=name
        )
    if level is not None:
        axes.axhline(level, color="0.6", linewidth=0.8, linestyle="--")
    axes.set(yscale="log", ylabel="test error / variance", title=title)
    axes.legend(frameon=False)
    return figure


def plot_bias_gain(gain: BiasGain, *, target: int = 0, title: str = "") -> Any:
    """The factor by which each bias lowers the error, over the number of examples, with two standard errors.

    Args:
        gain: of `bias_gain`.
        target: column of the targets.
        title: of the plot.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    figure, axes = _axes(gain.sizes)
    for row, name in enumerate([*(f"bias {bias:g}" for bias in gain.biases), "validated"]):
        mean, bars = gain.gain[row, :, target], 2 * gain.std_error[row, :, target]
        low, middle, high = ((mean + side * bars).exp() for side in (-1, 0, 1))
        both = torch.stack([middle - low, high - middle]).numpy(force=True)
        style = "--" if name == "validated" else "-"
        axes.errorbar(
            gain.sizes, middle.tolist(), yerr=both, marker="o", markersize=3, capsize=2, linestyle=style, label=name
        )
    axes.axhline(1.0, color="0.6", linewidth=0.8)
    axes.set(ylabel="error without bias / error with", title=title)
    axes.legend(frameon=False)
    return figure


def _axes(sizes: Sequence[int]) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "etude[run]"') from error
    figure = Figure(figsize=(5.4, 3.8), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, labels=[f"{n:,}" for n in sizes])
    axes.set_xlabel("training examples")
    return figure, axes
