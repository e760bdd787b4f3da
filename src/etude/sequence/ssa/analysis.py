"""What the hypothesis asks of a trained model: losses on fewer sources, who sees whom, how much sub-networks differ."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from etude.sequence.ssa.modes import dense_attention, subsampled
from etude.sequence.ssa.sampling import sample_sources

__all__ = ["Ambiguity", "ambiguity", "disagreement", "inclusion_probability", "pathway_curve", "plot_pathways"]


@torch.no_grad()
def pathway_curve(
    model: nn.Module,
    loss: Callable[[nn.Module], float],
    fractions: Sequence[float | int] = (1, 1 / 2, 1 / 4, 1 / 8, 1 / 16),
    *,
    windows: Sequence[int | None] | None = None,
    generator: torch.Generator | None = None,
) -> dict[float, float]:
    """Loss of a trained model when its layers may see a fraction of their sources alone, one draw each.

    Args:
        model: with layers that sample; put into evaluation mode for the time.
        loss: of the model on held-out data.
        fractions: 1 is dense.
        windows: of the local sampler at each fraction; those that fit if None.
        generator: of the draws.
    """
    training = model.training
    model.eval()
    found = {}
    try:
        for place, fraction in enumerate(fractions):
            if fraction == 1:
                with dense_attention(model):
                    found[1.0] = float(loss(model))
                continue
            window = None if windows is None else windows[place]
            with subsampled(model, generator, fraction=fraction, window=window):
                found[float(fraction)] = float(loss(model))
    finally:
        model.train(training)
    return found


def inclusion_probability(
    n: int, draws: int = 1000, *, generator: torch.Generator | None = None, **options: Any
) -> Float[Tensor, "n n"]:
    """How often query i sees source j, before causality and the self rule, over so many draws.

    Args:
        n: tokens.
        draws: how many.
        generator: of the draws.
        options: of `sample_sources`.
    """
    total = torch.zeros(n, n)
    left = draws
    while left:
        batch = min(left, max(1, 2**24 // (n * n)))
        total += sample_sources(n, batch=batch, generator=generator, **options).mask(n).sum(0)
        left -= batch
    return total / draws


class Ambiguity(NamedTuple):
    """The error of an ensemble of regressors is the mean error of its members less their spread.

    Args:
        ensemble: mean squared error of the mean.
        members: mean over the members of their mean squared errors.
        diversity: mean squared distance of the members from their mean.
    """

    ensemble: float
    members: float
    diversity: float


def ambiguity(outputs: Float[Tensor, "members n"], targets: Float[Tensor, "n"]) -> Ambiguity:
    """Krogh & Vedelsby's decomposition, ensemble = members - diversity, exactly (NeurIPS 1994)."""
    mean = outputs.mean(0)
    return Ambiguity(
        float((mean - targets).square().mean()),
        float((outputs - targets).square().mean()),
        float((outputs - mean).square().mean()),
    )


def disagreement(probabilities: Float[Tensor, "members n classes"]) -> float:
    """Share of examples for which two members name different classes, the mean over pairs of members.

    Raises:
        ValueError: for fewer than two members.
    """
    if len(probabilities) < 2:
        raise ValueError(f"disagreement needs two members, got {len(probabilities)}")
    named = probabilities.argmax(-1)
    differ = (named[:, None] != named[None]).double().mean(-1)
    return float(differ.sum() / (len(named) * (len(named) - 1)))


def plot_pathways(curves: dict[str, dict[float, float]]) -> Any:
    """Loss over the fraction of the sources, a line a model, as a matplotlib figure.

    Args:
        curves: name -> what `pathway_curve` gives.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the plot needs matplotlib: pip install 'etude[run]'") from error
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, curve in curves.items():
        axes.plot(list(curve), list(curve.values()), "o-", label=name)
    axes.set_xscale("log", base=2)
    axes.set(xlabel="fraction of the sources", ylabel="loss")
    axes.legend()
    return figure
