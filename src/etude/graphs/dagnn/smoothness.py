"""How alike the vectors of a graph's nodes have become.

Liu, Gao & Ji, "Towards Deeper Graph Neural Networks", KDD 2020, arXiv:2007.09296, section 3.2:

    D(x_i, x_j) = 1/2 || x_i / |x_i| - x_j / |x_j| ||
    SMV_i = 1/(n - 1) sum_(j != i) D(x_i, x_j),    SMV_G = 1/n sum_i SMV_i

Values lie in [0, 1]; 0 means that all vectors point the same way: over-smoothed. A zero vector has no direction; it is
taken as it stands, so that D(0, x) = 1/2 and D(0, 0) = 0.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["SampledSmoothness", "sampled_smoothness", "smoothness"]


class SampledSmoothness(NamedTuple):
    """An estimate of SMV_G from random pairs, and its standard error."""

    estimate: Float[Tensor, ""]
    standard_error: Float[Tensor, ""]


def smoothness(
    x: Float[Tensor, "nodes channels"],
    *,
    chunk_size: int = 1024,
    reduction: Literal["graph", "node"] = "graph",
    num_pairs: int | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "..."]:
    """The smoothness metric value of node vectors: SMV_G, or SMV_i of every node.

    Exact values take n^2 c operations and chunk_size * n numbers of memory. Gradients flow, except through pairs that
    point the same way, where the distance has a corner and the gradient is taken as 0.

    Args:
        x: one vector a node.
        chunk_size: rows that are compared with all others at a time.
        reduction: "graph" for the scalar SMV_G, "node" for (n,).
        num_pairs: estimate SMV_G from so many random pairs instead; `sampled_smoothness` gives the error besides.
            Advisable above 20,000 nodes.
        generator: draws the pairs.

    Raises:
        ValueError: if x has no node, `chunk_size` or `num_pairs` is not positive, `reduction` is unknown, or pairs
            are asked for with reduction "node".
    """
    if reduction not in ("graph", "node"):
        raise ValueError(f'reduction must be "graph" or "node", got {reduction!r}')
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be positive, got {chunk_size}")
    if num_pairs is not None:
        if reduction == "node":
            raise ValueError('num_pairs estimates the value of the graph, reduction must be "graph", got "node"')
        return sampled_smoothness(x, num_pairs, generator=generator).estimate
    unit = _unit_rows(x)
    nodes = len(unit)
    square = (unit * unit).sum(1)
    sums = []
    for start in range(0, nodes, chunk_size):
        rows = slice(start, min(start + chunk_size, nodes))
        # |u_i|^2 + |u_j|^2, not 2: the rows of zero vectors have no length.
        squared = square[rows, None] + square - 2 * unit[rows] @ unit.t()
        near = squared <= _ROUNDING
        index = torch.arange(rows.start, rows.stop, device=x.device)
        near[index - start, index] = True
        distance = torch.where(near, 0, torch.where(near, 1, squared).sqrt())
        sums.append(distance.sum(1) / 2)
    per_node = torch.cat(sums) / max(nodes - 1, 1)
    return (per_node if reduction == "node" else per_node.mean()).to(x.dtype)


def sampled_smoothness(
    x: Float[Tensor, "nodes channels"], num_pairs: int, *, generator: torch.Generator | None = None
) -> SampledSmoothness:
    """SMV_G estimated from `num_pairs` pairs of different nodes, drawn uniformly with replacement.

    Raises:
        ValueError: if x has no node or `num_pairs` < 2.
    """
    if num_pairs < 2:
        raise ValueError(f"num_pairs must be at least 2, got {num_pairs}")
    unit = _unit_rows(x)
    nodes = len(unit)
    if nodes == 1:
        return SampledSmoothness(x.new_zeros(()), x.new_zeros(()))
    first = torch.randint(nodes, (num_pairs,), generator=generator)
    step = torch.randint(1, nodes, (num_pairs,), generator=generator)
    first, second = first.to(x.device), ((first + step) % nodes).to(x.device)
    distance = (unit[first] - unit[second]).norm(dim=1) / 2
    error = distance.std() / num_pairs**0.5
    return SampledSmoothness(distance.mean().to(x.dtype), error.to(x.dtype))


_ROUNDING = 1e-14
"""Squared distances of unit rows below this are rounding errors of the double-precision products."""


def _unit_rows(x: Tensor) -> Tensor:
    """Rows of length 1, or 0, in double precision: 2 - 2 <u, v> of like rows would leave 3e-4 in single precision."""
    if x.ndim != 2 or len(x) == 0:
        raise ValueError(f"x must have shape (nodes, channels) with at least one node, got {tuple(x.shape)}")
    x = x.double()
    length = x.norm(dim=1, keepdim=True)
    return x / torch.where(length > 0, length, 1)
