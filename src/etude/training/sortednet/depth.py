"""Stacks of blocks of which the first can be used alone.

Valipour et al., "SortedNet", arXiv:2309.00255, 2023: a sub-model of depth d runs the first d blocks, then what follows
the stack, which all depths share (the final normalisation and the head).
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from etude.training.sortednet.submodels import SubModel

__all__ = ["SortedModuleList", "SortedSequential"]


class _SortedStack(nn.Module):
    """What both stacks share: which blocks are in use. Parameters and `state_dict` are those of all blocks.

    Attributes:
        always: positions of blocks that every depth keeps, as their output has another shape than their input.
    """

    always: tuple[int, ...] = ()
    _depth: int | None = None

    def blocks(self) -> list[nn.Module]:
        """All blocks, in use or not."""
        return [block for block in self._modules.values() if block is not None]

    @property
    def depth(self) -> int:
        """Number of blocks in use."""
        return len(self._modules) if self._depth is None else self._depth

    @depth.setter
    def depth(self, depth: int) -> None:
        if not max(1, len(self.always)) <= depth <= len(self._modules):
            raise ValueError(
                f"depth must lie in {max(1, len(self.always))}..{len(self._modules)}: there are {len(self._modules)} "
                f"blocks, of which {len(self.always)} change shapes and cannot be skipped; got {depth}"
            )
        self._depth = depth

    def kept(self) -> tuple[int, ...]:
        """Positions of the blocks in use: those that are always kept, and the first of the others."""
        others = [index for index in range(len(self._modules)) if index not in self.always]
        return tuple(sorted((*self.always, *others[: self.depth - len(self.always)])))

    def activate(self, b: SubModel) -> None:
        """Switches to the depth of sub-model `b`."""
        if b.depth is not None:
            self.depth = b.depth

    def tie(self, always: Sequence[int], submodels: tuple[SubModel, ...], name: str) -> None:
        """Ties the stack to a space, after checking that it can take every one of its depths."""
        total = len(self._modules)
        if submodels[-1].depth != total:
            raise ValueError(f"{name!r} has {total} blocks, and the space must end at that depth, not {submodels[-1]}")
        if not all(0 <= index < total for index in always):
            raise ValueError(f"blocks of {name!r} are numbered 0..{total - 1}, got {list(always)}")
        self.always = tuple(sorted(set(always)))
        for b in submodels:
            self.activate(b)
        self.depth = total

    def _in_use(self) -> list[nn.Module]:
        blocks = self.blocks()
        return [blocks[index] for index in self.kept()]

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self._in_use())

    def __len__(self) -> int:
        return self.depth


class SortedSequential(_SortedStack, nn.Sequential):
    """`nn.Sequential` that runs its first `depth` modules."""

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return nn.Sequential(*self._in_use()[index])
        return self._in_use()[index]

    def extracted(self) -> nn.Module:
        """The blocks in use as a plain `nn.Sequential`; they keep their names."""
        names = list(self._modules)
        return nn.Sequential(OrderedDict((names[index], self.blocks()[index]) for index in self.kept()))


class SortedModuleList(_SortedStack, nn.ModuleList):
    """`nn.ModuleList` that gives its first `depth` modules to whoever iterates over it, counts or indexes it."""

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return nn.ModuleList(self._in_use()[index])
        return self._in_use()[index]

    def extracted(self) -> nn.Module:
        """The blocks in use as a plain `nn.ModuleList`."""
        return nn.ModuleList(self._in_use())
