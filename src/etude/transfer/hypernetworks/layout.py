"""How Theta is cut into pieces, and what each piece is told about its place."""

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from math import prod

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from etude.transfer.hypernetworks.design import HypernetDesign
from etude.transfer.hypernetworks.spec import KINDS, TargetSpec, TensorSpec

__all__ = ["DESCRIPTOR_SIZE", "GRANULARITIES", "Layout", "checked_piece_size", "piece_layout"]

GRANULARITIES = ("module", "block", "channel")
_HARMONICS = 4
DESCRIPTOR_SIZE = len(KINDS) + 4 + 1 + 2 * _HARMONICS


@dataclass(frozen=True, eq=False)
class Layout:
    """Pieces of Theta, all of one size; what a last piece has too much is discarded.

    Attributes:
        pieces: T.
        size: numbers in a piece.
        index: (params,), where each element of Theta stands among the T x size numbers; None if Theta is their
            beginning.
        descriptors: (pieces, DESCRIPTOR_SIZE), kind, log fan in, log fan out, log kernel and depth of a piece's
            layer, and its place inside its component.
        edges: (2, edges), pieces joined in the target's computation graph.
    """

    pieces: int
    size: int
    index: Int64[Tensor, "params"] | None
    descriptors: Float[Tensor, "pieces descriptor"]
    edges: Int64[Tensor, "2 edges"]

    def to(self, device: torch.device) -> "Layout":
        index = None if self.index is None else self.index.to(device)
        return replace(self, index=index, descriptors=self.descriptors.to(device), edges=self.edges.to(device))


@lru_cache(maxsize=64)
def piece_layout(spec: TargetSpec, design: HypernetDesign, size: int | None, granularity: str = "module") -> Layout:
    """The layout of a target for a generation.

    Args:
        spec: of the target.
        design: `once` has one piece of P numbers, `chunk` pieces irrespective of layers; `component` and
            `component_chunk` as many for each component as it needs.
        size: of a piece; None for the whole target (`once`) or the largest component.
        granularity: what a component is: a "module" with weight and bias, a "block" (a child of the target with all
            in it), or a "channel" (a row of the weight with its bias).
    """
    if granularity not in GRANULARITIES:
        raise ValueError(f"granularity must be one of {', '.join(GRANULARITIES)}, got {granularity!r}")
    if not design.generation.startswith("component"):
        size = spec.numel if size is None else size
        pieces = -(-spec.numel // size)
        starts = torch.arange(pieces) * size
        first = torch.searchsorted(torch.tensor(spec.sizes).cumsum(0), starts, right=True).tolist()
        depth = {name: place / max(len(spec.modules) - 1, 1) for place, name in enumerate(spec.modules)}
        rows = [_layer(spec.tensors[place], depth[spec.tensors[place].module]) for place in first]
        chain = torch.stack([torch.arange(pieces - 1), torch.arange(1, pieces)])
        return Layout(pieces, size, None, _located(torch.tensor(rows), starts / spec.numel), chain)
    components = _components(spec, granularity)
    size = max(ids.shape[1] for _, ids in components) if size is None else size
    index = torch.empty(spec.numel, dtype=torch.int64)
    rows, places, owned, first_piece = [], [], [], 0
    of_module: dict[str, list[int]] = {}
    for depth_number, (members, ids) in enumerate(components):
        channels, width = ids.shape
        each = -(-width // size)
        starts = first_piece + torch.arange(channels) * each
        index[ids] = starts[:, None] * size + torch.arange(width)
        main = max(members, key=lambda tensor: tensor.numel)
        rows += [_layer(main, depth_number / max(len(components) - 1, 1))] * (channels * each)
        places.append(torch.arange(channels * each) / (channels * each))
        numbers = list(range(first_piece, first_piece + channels * each))
        owned.append(numbers)
        of_module.update((tensor.module, numbers) for tensor in members)
        first_piece += channels * each
    pairs = {
        (a, b)
        for start, end in spec.edges
        if of_module[start] is not of_module[end]
        for a in of_module[start]
        for b in of_module[end]
    }
    pairs.update(pair for numbers in owned for pair in pairwise(numbers))
    edges = torch.tensor(sorted(pairs), dtype=torch.int64).reshape(-1, 2).T.contiguous()
    located = _located(torch.tensor(rows), torch.cat(places))
    contiguous = torch.equal(index, torch.arange(spec.numel))
    return Layout(first_piece, size, None if contiguous else index, located, edges)


def checked_piece_size(design: HypernetDesign, chunk_size: int | None) -> int | None:
    """`chunk_size` where a design has chunks, None where it has none.

    Raises:
        ValueError: if it is missing, not positive, or given to a design without chunks.
    """
    if design.generation not in ("chunk", "component_chunk"):
        if chunk_size is not None:
            raise ValueError(f"chunk_size belongs to generation by chunks, the design has {design.generation!r}")
        return None
    if chunk_size is None:
        raise ValueError(f"generation={design.generation!r} needs chunk_size, the numbers in a piece")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be positive, got {chunk_size}")
    return chunk_size


def _components(spec: TargetSpec, granularity: str) -> list[tuple[list[TensorSpec], Tensor]]:
    """Members of each component and the places of its numbers in Theta, (channels, width)."""
    groups: dict[str, list[tuple[TensorSpec, int]]] = {}
    offset = 0
    for tensor in spec.tensors:
        key = tensor.name.partition(".")[0] if granularity == "block" else tensor.module
        groups.setdefault(key, []).append((tensor, offset))
        offset += tensor.numel
    found = []
    for members in groups.values():
        heights = {tensor.shape[0] if tensor.shape else 1 for tensor, _ in members}
        channels = heights.pop() if granularity == "channel" and len(heights) == 1 else 1
        ids = [(start + torch.arange(tensor.numel)).view(channels, -1) for tensor, start in members]
        found.append(([tensor for tensor, _ in members], torch.cat(ids, dim=1)))
    return found


def _layer(tensor: TensorSpec, depth: float) -> list[float]:
    kernel = prod(tensor.shape[2:]) if tensor.role == "weight" else 1
    sizes = torch.tensor([tensor.fan_in, tensor.fan_out, kernel], dtype=torch.float32).log2() / 4
    return [*(float(tensor.kind == kind) for kind in KINDS), *sizes.tolist(), depth]


def _located(rows: Float[Tensor, "pieces layer"], place: Float[Tensor, "pieces"]) -> Tensor:
    """Descriptors of layers with the place inside, in [0, 1), and its harmonics."""
    angles = 2 * torch.pi * place[:, None] * 2.0 ** torch.arange(_HARMONICS)
    return torch.cat([rows, place[:, None], angles.sin(), angles.cos()], dim=1)
