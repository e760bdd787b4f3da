"""How much each weight matters to what was learned, and the penalty that holds weights by it.

Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", arXiv:1612.00796, 2017 (EWC).
Aljundi et al., "Memory Aware Synapses: Learning what (not) to forget", arXiv:1711.09601, 2018 (MAS).

    EWC: Omega_i = mean_x (d loss(x) / d theta_i)^2           the diagonal of the empirical Fisher information
    MAS: Omega_i = mean_x | d ||f(x)||^2 / d theta_i |        needs no labels
    penalty = strength * sum_i Omega_i (theta_i - reference_i)^2

Gradients of single examples come from `torch.func`, in chunks: a module whose forward pass mixes the examples of a
batch (batch normalisation in training mode) has none, and is refused by `torch.func` itself.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

__all__ = ["ImportanceAccumulator", "QuadraticPenalty", "diagonal_fisher", "mas"]

Importance = dict[str, Tensor]
_MODES = ("mean", "sum", "ema")


def diagonal_fisher(
    module: nn.Module,
    inputs: Float[Tensor, "n *shape"],
    targets: Tensor | None = None,
    *,
    loss_fn: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
    generator: torch.Generator | None = None,
    chunk_size: int = 64,
) -> Importance:
    """Mean over examples of the squared gradient of the loss, for every trainable parameter.

        importance = diagonal_fisher(model, data.train.inputs, data.train.targets)

    Args:
        module: gives the loss's first argument, (n, classes) for the default loss. It is run in evaluation mode.
        inputs: examples of the task that was learned.
        targets: (n, ...): their targets (the empirical Fisher). Without them, classes are drawn from the model's own
            softmax (the Fisher information proper).
        loss_fn: of a batch of one: outputs (1, ...) and targets (1, ...).
        generator: draws the classes where there are no targets.
        chunk_size: examples whose gradients are held at once.

    Returns:
        Parameter names and importances in the shapes of the parameters, not negative.

    Raises:
        ValueError: if there are no examples, or inputs and targets differ in number.
    """
    if targets is None:
        with torch.no_grad(), _evaluation(module):
            probabilities = module(inputs).softmax(dim=-1)
        targets = torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
    if len(targets) != len(inputs):
        raise ValueError(f"inputs and targets must be equally many, got {len(inputs)} and {len(targets)}")

    def loss(outputs: Tensor, target: Tensor) -> Tensor:
        return loss_fn(outputs, target.unsqueeze(0))

    return _mean_over_examples(module, inputs, targets, loss, torch.square, chunk_size)


def mas(module: nn.Module, inputs: Float[Tensor, "n *shape"], *, chunk_size: int = 64) -> Importance:
    """Mean over examples of the absolute gradient of the squared norm of the output, for every trainable parameter.

    Args:
        module: any; it is run in evaluation mode.
        inputs: examples, with or without labels.
        chunk_size: examples whose gradients are held at once.

    Returns:
        Parameter names and importances in the shapes of the parameters, not negative.

    Raises:
        ValueError: if there are no examples.
    """

    def squared_norm(outputs: Tensor, _: Tensor) -> Tensor:
        return outputs.square().sum()

    return _mean_over_examples(module, inputs, torch.zeros(len(inputs)), squared_norm, torch.abs, chunk_size)


class ImportanceAccumulator:
    """Importances of the tasks met so far, as one.

        accumulated = ImportanceAccumulator("mean")
        accumulated.update(mas(model, inputs))

    Args:
        mode: "mean" of all tasks, their "sum", or "ema", in which the past keeps the share `decay`.
        decay: 0 to 1; of "ema" only.

    Raises:
        ValueError: if `mode` is unknown or `decay` lies outside [0, 1].
    """

    def __init__(self, mode: str = "mean", decay: float | int = 0.9):
        if mode not in _MODES:
            raise ValueError(f"mode must be one of {', '.join(_MODES)}, got {mode!r}")
        if not 0 <= decay <= 1:
            raise ValueError(f"decay must lie in [0, 1], got {decay}")
        self.mode, self.decay, self.count = mode, decay, 0
        self._value: Importance = {}

    def update(self, importance: Mapping[str, Tensor]) -> None:
        """Takes in a task.

        Raises:
            ValueError: if the parameters are others than before.
        """
        if self.count == 0:
            self._value = {name: value.detach().clone() for name, value in importance.items()}
        else:
            _same_names(importance, self._value, "importances")
            old = {"mean": self.count / (self.count + 1), "sum": 1.0, "ema": float(self.decay)}[self.mode]
            new = 1.0 if self.mode == "sum" else 1 - old
            self._value = {name: old * self._value[name] + new * importance[name].detach() for name in self._value}
        self.count += 1

    @property
    def value(self) -> Importance:
        """The importances of all tasks; empty before the first."""
        return dict(self._value)


class QuadraticPenalty:
    """A spring for every weight, as stiff as the weight is important.

        penalty = QuadraticPenalty(model, importance, strength=10.0)
        (loss + penalty()).backward()

    Args:
        module: whose parameters are held.
        importance: names and values not negative, in the parameters' shapes; parameters without one are free.
        reference: where the springs are at rest; by default where the parameters are now.
        strength: not negative; factor of all springs. There is no half: EWC's lambda is twice the strength.

    Raises:
        ValueError: if a name or a shape is not the module's, a value is negative or not finite, or the strength is.
    """

    def __init__(
        self,
        module: nn.Module,
        importance: Mapping[str, Tensor],
        reference: Mapping[str, Tensor] | None = None,
        strength: float | int = 1.0,
    ):
        if not 0 <= strength < float("inf"):
            raise ValueError(f"strength must be finite and not negative, got {strength}")
        parameters = dict(module.named_parameters())
        for name, value in importance.items():
            if name not in parameters:
                raise ValueError(f"the module has no parameter {name!r}; it has {', '.join(parameters)}")
            shape = parameters[name].shape
            if value.shape != shape:
                raise ValueError(f"the importance of {name} must have shape {tuple(shape)}, got {tuple(value.shape)}")
            if not bool((torch.isfinite(value) & (value >= 0)).all()):
                raise ValueError(f"the importance of {name} holds negative, infinite or NaN values")
        if reference is not None:
            _same_names({name: reference[name] for name in importance if name in reference}, importance, "references")
        source = parameters if reference is None else reference
        self.strength = strength
        self._held = [
            (parameters[name], value.detach().clone(), source[name].detach().clone())
            for name, value in importance.items()
        ]

    def __call__(self) -> Float[Tensor, ""]:
        """The penalty at the module's present weights; differentiable."""
        terms = [(value * (weight - rest).square()).sum() for weight, value, rest in self._held]
        return self.strength * torch.stack(terms).sum() if terms else torch.zeros(())


class _evaluation:
    """A module in evaluation mode for a while."""

    def __init__(self, module: nn.Module):
        self.modes = [(part, part.training) for part in module.modules()]

    def __enter__(self) -> None:
        for part, _ in self.modes:
            part.training = False

    def __exit__(self, *_: object) -> None:
        for part, mode in self.modes:
            part.training = mode


def _mean_over_examples(
    module: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    scalar: Callable[[Tensor, Tensor], Tensor],
    magnitude: Callable[[Tensor], Tensor],
    chunk_size: int,
) -> Importance:
    if len(inputs) == 0:
        raise ValueError("importances need at least one example, got none")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    parameters = {name: weight.detach() for name, weight in module.named_parameters() if weight.requires_grad}
    fixed = {name: weight.detach() for name, weight in module.named_parameters() if not weight.requires_grad}
    fixed |= dict(module.named_buffers())

    def of_example(free: Importance, row: Tensor, target: Tensor) -> Tensor:
        return scalar(functional_call(module, (free, fixed), (row.unsqueeze(0),)), target)

    per_example = vmap(grad(of_example), in_dims=(None, 0, 0), randomness="different")
    total = {name: torch.zeros_like(weight) for name, weight in parameters.items()}
    with _evaluation(module):
        for rows, aims in zip(inputs.split(chunk_size), targets.split(chunk_size)):
            for name, gradient in per_example(parameters, rows, aims).items():
                total[name] += magnitude(gradient).sum(dim=0)
    return {name: value / len(inputs) for name, value in total.items()}


def _same_names(given: Mapping[str, Tensor], known: Mapping[str, Tensor], what: str) -> None:
    if given.keys() != known.keys():
        differing = sorted(given.keys() ^ known.keys())
        raise ValueError(f"{what} must be of the same parameters, these are on one side only: {', '.join(differing)}")
