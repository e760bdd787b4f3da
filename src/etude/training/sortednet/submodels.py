"""Sub-models and the space of them that one network holds.

Valipour et al., "SortedNet: A Scalable and Generalized Framework for Training Modular Deep Neural Networks",
arXiv:2309.00255, 2023, section 3: every dimension of a network has a sorted list of truncation points, and a
sub-model is a choice of one point in each. Only prefixes are sub-models: the first w channels, the first d blocks,
the first h heads. Hence b <= b' in every dimension means that the weights of b are among those of b'.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product
from typing import Any

import torch

__all__ = ["SubModel", "SubModelSpace"]

DIMENSIONS = ("width", "depth", "heads")


@dataclass(frozen=True)
class SubModel:
    """One sub-network: how much of each dimension it keeps, from the front.

    `b <= c` says that b is nested in c, and `b < c` that it is also smaller; as with sets, neither need hold.

    Args:
        width: the share of every layer's channels in (0, 1], a float; or their number, an int.
        depth: number of blocks.
        heads: number of attention heads.

    A dimension that the network does not cut is None.
    """

    width: float | int | None = None
    depth: int | None = None
    heads: int | None = None

    def __le__(self, other: "SubModel") -> bool:
        if not isinstance(other, SubModel):
            return NotImplemented
        pairs = [(getattr(self, name), getattr(other, name)) for name in DIMENSIONS]
        if any((mine is None) != (its is None) for mine, its in pairs):
            raise ValueError(f"{self} and {other} cut different dimensions: neither is nested in the other")
        return all(mine <= its for mine, its in pairs if mine is not None)

    def __lt__(self, other: "SubModel") -> bool:
        return self <= other and self != other

    def __str__(self) -> str:
        kept = [f"{name} {getattr(self, name)}" for name in DIMENSIONS if getattr(self, name) is not None]
        return ", ".join(kept) or "whole"


class SubModelSpace:
    """All combinations of the truncation points of each dimension.

        space = SubModelSpace(width=[0.25, 0.5, 0.75, 1.0], depth=[2, 4, 6])
        len(space), space.smallest, space.full
        draws = [space.sample(generator) for _ in range(100)]

    Iteration goes through the sub-models by width, then depth, then heads, smallest first.

    Args:
        width: increasing shares in (0, 1], floats that end at 1.0; or increasing numbers of channels, ints that end
            at the network's own width.
        depth: increasing numbers of blocks, ending at all of them.
        heads: increasing numbers of attention heads, ending at all of them.

    Raises:
        ValueError: if no dimension is given, or a list is empty, unsorted, repeats a point or is not positive.
    """

    def __init__(
        self,
        *,
        width: Sequence[float | int] | None = None,
        depth: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
    ):
        points = {"width": width, "depth": depth, "heads": heads}
        self.points: dict[str, tuple[float | int, ...]] = {
            name: _checked(name, list(given)) for name, given in points.items() if given is not None
        }
        if not self.points:
            raise ValueError("a space needs truncation points of at least one of width, depth and heads")

    @cached_property
    def submodels(self) -> tuple[SubModel, ...]:
        """Every sub-model, in the order of iteration."""
        axes: list[tuple[Any, ...]] = [self.points.get(name, (None,)) for name in DIMENSIONS]
        return tuple(SubModel(*choice) for choice in product(*axes))

    @property
    def full(self) -> SubModel:
        """The whole network."""
        return self.submodels[-1]

    @property
    def smallest(self) -> SubModel:
        """The sub-model nested in all others."""
        return self.submodels[0]

    def sample(self, generator: torch.Generator | None = None, p: Sequence[float | int] | None = None) -> SubModel:
        """Draws a sub-model, uniformly or with probabilities proportional to `p`, in the order of iteration.

        Raises:
            ValueError: if `p` has another length than the space, a negative entry, or no positive one.
        """
        if p is None:
            return self.submodels[int(torch.randint(len(self), (), generator=generator))]
        return self.submodels[int(torch.multinomial(self.weights(p, "p"), 1, generator=generator))]

    def weights(self, values: Sequence[float | int], name: str) -> torch.Tensor:
        """One non-negative number per sub-model as float64 (submodels,), checked."""
        checked = torch.as_tensor(list(values), dtype=torch.float64)
        if checked.shape != (len(self),):
            raise ValueError(f"{name} must have one entry for each of {len(self)} sub-models, got {len(checked)}")
        if not bool((checked >= 0).all()) or not bool((checked > 0).any()) or not bool(checked.isfinite().all()):
            raise ValueError(f"{name} must be finite, not negative, and positive somewhere, got {list(values)}")
        return checked

    def __len__(self) -> int:
        return len(self.submodels)

    def __iter__(self) -> Iterator[SubModel]:
        return iter(self.submodels)

    def __contains__(self, b: object) -> bool:
        return b in self._members

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SubModelSpace) and self.points == other.points

    def __hash__(self) -> int:
        return hash(tuple(self.points.items()))

    def __le__(self, other: "SubModelSpace") -> bool:
        """Whether every sub-model of this space is one of the other's."""
        if not isinstance(other, SubModelSpace):
            return NotImplemented
        return self._members <= other._members

    def __repr__(self) -> str:
        return f"SubModelSpace({', '.join(f'{name}={list(points)}' for name, points in self.points.items())})"

    @cached_property
    def _members(self) -> frozenset[SubModel]:
        return frozenset(self.submodels)


def _checked(name: str, points: list[float | int]) -> tuple[float | int, ...]:
    shares = name == "width" and any(isinstance(point, float) for point in points)
    if not points:
        raise ValueError(f"{name} needs at least one truncation point, got none")
    if not shares and not all(isinstance(point, int) and not isinstance(point, bool) for point in points):
        raise ValueError(f"{name} must be a list of whole numbers, got {points}")
    if not all(point > 0 for point in points):
        raise ValueError(f"{name} must be positive, got {points}")
    if not all(smaller < larger for smaller, larger in pairwise(points)):
        raise ValueError(f"{name} must increase from point to point, got {points}")
    if shares and points[-1] != 1:
        raise ValueError(f"{name} given as shares must end at 1.0, the whole width, got {points}")
    return tuple(float(point) for point in points) if shares else tuple(points)
