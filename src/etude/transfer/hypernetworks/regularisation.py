"""Keeping what a hypernetwork generates for earlier conditions while it learns another.

von Oswald, Henning, Grewe & Sacramento, "Continual learning with hypernetworks", ICLR 2020, arXiv:1906.00695, Eq. (2):
with Phi* the hypernetwork as it was before task t,

    loss = L_t + beta / (t - 1) sum_{j < t} || H(e_j, Phi*) - H(e_j, Phi + dPhi) ||^2                             (2)

dPhi is the step that L_t alone would take (lookahead), or 0. The squared norm is a sum over the weights of the target.
"""

import copy
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.func import functional_call

from etude.transfer.hypernetworks.hypernetwork import Hypernetwork
from etude.transfer.hypernetworks.spec import TargetSpec

__all__ = ["HypernetSnapshot", "lookahead_step", "output_regularizer", "row_mask"]


class HypernetSnapshot:
    """Phi* and the embeddings at this moment, frozen; what it generates for a condition is computed once.

    Args:
        hypernet: is copied.
    """

    def __init__(self, hypernet: Hypernetwork):
        self.hypernet = copy.deepcopy(hypernet).eval().requires_grad_(False)
        self._kept: dict[int, Tensor] = {}

    @torch.no_grad()
    def outputs(self, conditions: Sequence[int]) -> Float[Tensor, "conditions params"]:
        """H(e_j, Phi*)."""
        fresh = [number for number in conditions if number not in self._kept]
        if fresh:
            self._kept.update(zip(fresh, self.hypernet.flat(torch.tensor(fresh))))
        return torch.stack([self._kept[number] for number in conditions])

    @torch.no_grad()
    def vectors(self, conditions: Sequence[int]) -> Float[Tensor, "conditions cond"]:
        """e_j."""
        return self.hypernet.conditions(torch.tensor(list(conditions)))[0]


def output_regularizer(
    hypernet: Hypernetwork,
    snapshot: HypernetSnapshot,
    conditions: Sequence[int],
    *,
    weights: Float[Tensor, "conditions"] | None = None,
    masks: Bool[Tensor, "conditions params"] | None = None,
    lookahead: Mapping[str, Tensor] | None = None,
    subsample: int | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    """How far the generated weights of earlier conditions have moved: the second term of Eq. (2) without beta.

    Its gradient reaches Phi only: embeddings are taken from the snapshot.

    Args:
        hypernet: as it learns.
        snapshot: as it was before the present task.
        conditions: j < t; for none the result is 0.
        weights: of each condition in the mean, 1 if None.
        masks: which of the target's weights a condition uses (such as the rows of its own classes in a common head).
        lookahead: dPhi by name of parameter, see `lookahead_step`; its gradient is not followed.
        subsample: how many of the conditions are drawn at each call.
        generator: of that draw.

    Returns:
        The mean over conditions of the squared norm.

    Raises:
        ValueError: if a shape does not fit or `subsample` is not positive.
    """
    numbers = list(conditions)
    for name, value, shape in (
        ("weights", weights, (len(numbers),)), ("masks", masks, (len(numbers), hypernet.spec.numel)),
    ):  # fmt: skip
        if value is not None and value.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(value.shape)}")
    if subsample is not None and subsample < 1:
        raise ValueError(f"subsample must be positive, got {subsample}")
    if not numbers:
        return next(hypernet.parameters()).new_zeros(())
    if subsample is not None and subsample < len(numbers):
        kept = torch.randperm(len(numbers), generator=generator)[:subsample]
        numbers = [numbers[place] for place in kept.tolist()]
        weights = None if weights is None else weights[kept]
        masks = None if masks is None else masks[kept]
    wanted = snapshot.outputs(numbers)
    if lookahead is None and not hypernet.places.per_condition:
        present = hypernet.flat(snapshot.vectors(numbers))
    else:
        state: dict[str, Tensor] = dict(hypernet.named_parameters())
        for name, step in (lookahead or {}).items():
            state[name] = state[name] + step.detach()
        frozen = snapshot.hypernet.state_dict()
        state.update({name: frozen[name] for number in numbers for name in _names_of(hypernet, number)})
        swapped = {f"hypernet.{name}": value for name, value in state.items()}
        present = functional_call(_Flat(hypernet), swapped, (numbers,))
    moved = (present - wanted).square()
    if masks is not None:
        moved = moved * masks
    moved = moved.sum(dim=1)
    return moved.mean() if weights is None else (weights * moved).mean()


def lookahead_step(hypernet: Hypernetwork, loss: Tensor, lr: float | int) -> dict[str, Tensor]:
    """dPhi = -lr dL_t/dPhi, the step of plain gradient descent, detached. The graph of `loss` is kept."""
    owned = {id(parameter) for parameter in hypernet.shared_parameters()}
    named = {name: parameter for name, parameter in hypernet.named_parameters() if id(parameter) in owned}
    gradients = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
    return {name: -lr * gradient for name, gradient in zip(named, gradients) if gradient is not None}


def row_mask(spec: TargetSpec, layer: str, rows: Sequence[int]) -> Bool[Tensor, "params"]:
    """Which of the target's weights a task uses that reads only some outputs of a layer: a row of `masks`.

        masks = torch.stack([row_mask(hypernet.spec, "head", classes) for classes in ([0, 1], [2, 3])])

    Args:
        spec: of the target.
        layer: name of the module whose rows are shared out, such as the head.
        rows: of its weight and bias that the task uses; all other tensors are used.

    Raises:
        ValueError: if there is no such layer, or a row is none of its.
    """
    if layer not in spec.modules:
        raise ValueError(f"no generated layer is called {layer!r}; there are {', '.join(spec.modules)}")
    parts = []
    for tensor in spec.tensors:
        used = torch.full(tensor.shape, tensor.module != layer)
        if tensor.module == layer:
            if not rows or not 0 <= min(rows) <= max(rows) < tensor.shape[0]:
                raise ValueError(f"rows of {tensor.name} must lie in 0..{tensor.shape[0] - 1}, got {list(rows)}")
            used[list(rows)] = True
        parts.append(used.flatten())
    return torch.cat(parts)


class _Flat(torch.nn.Module):
    """`flat` as a forward, for `functional_call`."""

    def __init__(self, hypernet: Hypernetwork):
        super().__init__()
        self.hypernet = hypernet

    def forward(self, numbers: list[int]) -> Tensor:
        return self.hypernet.flat(torch.tensor(numbers))


def _names_of(hypernet: Hypernetwork, number: int) -> list[str]:
    owned = {id(parameter) for parameter in hypernet.condition_parameters(number)}
    return [name for name, parameter in hypernet.named_parameters() if id(parameter) in owned]
