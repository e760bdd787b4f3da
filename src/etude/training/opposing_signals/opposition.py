"""Do two groups of examples pull the parameters in opposite directions?

Rosenfeld & Risteski, "Outliers with Opposing Signals Have an Outsized Effect on Neural Network Optimization", ICLR
2024, arXiv:2311.04163, section 2. For two groups of examples with mean losses L_a and L_b,

    opposition = cos(grad L_a, grad L_b)                                                                  (1)

is -1 where a step that helps the one hurts the other as much, relative to their sizes. It is read beside the cosines
of random groups of the same size, and, for groups selected by their loss changes, beside a run without outliers.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from etude.training.opposing_signals.examples import FixedSet, LossFn, flat_gradient

__all__ = ["Opposition", "group_opposition", "random_group_baseline"]


@dataclass(frozen=True)
class Opposition:
    """How two groups' gradients lie to each other.

    Attributes:
        cosine: Eq. (1); 0 if a gradient is zero.
        norm_a, norm_b: the gradients' norms.
        along_a, along_b: cosines of the gradients with the direction that was given, 0 without one.
    """

    cosine: float
    norm_a: float
    norm_b: float
    along_a: float = 0.0
    along_b: float = 0.0


def group_opposition(
    model: nn.Module,
    loss_fn: LossFn,
    group_a: Any,
    group_b: Any,
    *,
    params: Iterable[Tensor] | None = None,
    batch_size: int | None = None,
    direction: Tensor | None = None,
) -> Opposition:
    """The opposition of two groups, Eq. (1), at the model's present parameters: one backward pass each.

        up, down, _ = monitor.groups()
        group_opposition(model, cross_entropy, monitor.members(up), monitor.members(down)).cosine

    Args:
        model: in the mode in which it is trained.
        loss_fn: (outputs, targets) -> one loss per example.
        group_a, group_b: `Examples` or pairs (inputs, targets).
        params: the parameters; all that require a gradient if None.
        batch_size: examples per backward pass.
        direction: a vector over the parameters, such as the Hessian's top eigenvector, to project both gradients on.

    Raises:
        ValueError: if a group is empty or `direction` has another length.
    """
    chosen = None if params is None else list(params)
    a, b = (
        flat_gradient(model, loss_fn, group, params=chosen, batch_size=batch_size).double()
        for group in (group_a, group_b)
    )
    along = [0.0, 0.0]
    if direction is not None:
        if direction.shape != a.shape:
            raise ValueError(f"direction must have shape {tuple(a.shape)}, got {tuple(direction.shape)}")
        along = [_cosine(gradient, direction.to(a)) for gradient in (a, b)]
    return Opposition(_cosine(a, b), float(a.norm()), float(b.norm()), *along)


def random_group_baseline(
    model: nn.Module,
    loss_fn: LossFn,
    data: Any,
    size: int,
    *,
    n_draws: int = 10,
    params: Iterable[Tensor] | None = None,
    batch_size: int | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " n_draws"]:
    """Cosines of Eq. (1) between pairs of disjoint random groups, for comparison with groups of the same size.

    Args:
        model, loss_fn, params, batch_size: as for `group_opposition`.
        data: where the groups are drawn from: as for `FixedSet`.
        size: examples in each group.
        n_draws: pairs, at two backward passes each.
        generator: of the draws; seeded with 0 if None.

    Raises:
        ValueError: if two groups of `size` do not fit into the data.
    """
    examples = FixedSet(data)
    if size < 1 or 2 * size > len(examples):
        raise ValueError(f"two groups of {size} examples do not fit into {len(examples)}")
    if n_draws < 1:
        raise ValueError(f"n_draws must be positive, got {n_draws}")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    chosen = None if params is None else list(params)
    cosines = []
    for _ in range(n_draws):
        rows = torch.randperm(len(examples), generator=generator)
        pair = (examples.take(part) for part in (rows[:size], rows[size : 2 * size]))
        cosines.append(group_opposition(model, loss_fn, *pair, params=chosen, batch_size=batch_size).cosine)
    return torch.tensor(cosines)


def _cosine(a: Tensor, b: Tensor) -> float:
    norms = float(a.norm() * b.norm())
    return float(a @ b) / norms if norms else 0.0
