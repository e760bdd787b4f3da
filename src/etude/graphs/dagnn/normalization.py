"""The propagation matrices of a graph.

Liu, Gao & Ji, "Towards Deeper Graph Neural Networks", KDD 2020, arXiv:2007.09296, sections 3 and 5. With self-loops
added, A~ = A + I and its degrees d~,

    P_sym = D~^-1/2 A~ D~^-1/2,    P_row = D~^-1 A~

An edge runs from its source `edge_index[0]` to its target `edge_index[1]`, and a node averages over its incoming edges:
rows of P are targets.
"""

import warnings
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from etude.graphs.dagnn.sparse import csr_tensor

__all__ = ["adjacency", "check_edges", "gcn_norm", "is_symmetric", "to_undirected"]


def check_edges(edge_index: Tensor, num_nodes: int) -> None:
    """Raises a ValueError that names the value, unless edges are int64 (2, edges) of nodes 0..num_nodes-1."""
    if edge_index.dtype != torch.int64 or edge_index.ndim != 2 or edge_index.shape[0] != 2:
        raise ValueError(
            f"edge_index must be int64 of shape (2, edges), got {edge_index.dtype} of shape {tuple(edge_index.shape)}"
        )
    if num_nodes < 1:
        raise ValueError(f"num_nodes must be at least 1, got {num_nodes}")
    if edge_index.numel():
        low, high = (int(bound) for bound in edge_index.aminmax())
        if low < 0 or high >= num_nodes:
            raise ValueError(
                f"edge_index names node {low if low < 0 else high}, but num_nodes={num_nodes} allows 0..{num_nodes - 1}"
            )


def to_undirected(edge_index: Int64[Tensor, "2 edges"]) -> Int64[Tensor, "2 both_directions"]:
    """Every edge in both directions, each once, in order of source and target."""
    return torch.cat([edge_index, edge_index.flip(0)], dim=1).unique(dim=1)


def _check_weights(edge_weight: Tensor, edge_index: Tensor) -> None:
    if edge_weight.shape != edge_index.shape[1:] or not edge_weight.is_floating_point():
        raise ValueError(
            f"edge_weight must be floating point of shape ({edge_index.shape[1]},), one per edge, "
            f"got {edge_weight.dtype} of shape {tuple(edge_weight.shape)}"
        )
    if edge_weight.requires_grad:
        raise ValueError("edge weights are constants here, edge_weight must not require a gradient")
    allowed = torch.isfinite(edge_weight) & (edge_weight >= 0)
    if not bool(allowed.all()):
        worst = edge_weight[~allowed][0].item()
        raise ValueError(f"edge weights must be finite and not negative (degrees need a root), got {worst}")


def adjacency(
    edge_index: Tensor,
    num_nodes: int,
    edge_weight: Tensor | None = None,
    add_self_loops: bool = True,
    *,
    dtype: torch.dtype | None = None,
) -> tuple[Int64[Tensor, "entries"], Int64[Tensor, "entries"], Float[Tensor, "entries"]]:
    """A~ as row (target), column (source) and weight of its entries, in row-major order; arguments as of `gcn_norm`."""
    check_edges(edge_index, num_nodes)
    if edge_weight is None:
        edge_weight = torch.ones(edge_index.shape[1], dtype=dtype, device=edge_index.device)
    else:
        _check_weights(edge_weight, edge_index)
        edge_weight = edge_weight.to(dtype or edge_weight.dtype)
    source, target = edge_index
    if add_self_loops:
        has_loop = torch.zeros(num_nodes, dtype=torch.bool, device=edge_index.device)
        has_loop[source[source == target]] = True
        missing = torch.nonzero(~has_loop).squeeze(1)
        source, target = torch.cat([source, missing]), torch.cat([target, missing])
        edge_weight = torch.cat([edge_weight, edge_weight.new_ones(len(missing))])

    # Row-major keys sort and merge the entries in one pass.
    key, entry = torch.unique(target * num_nodes + source, return_inverse=True)
    weight = edge_weight.new_zeros(len(key)).index_add_(0, entry, edge_weight)
    return key // num_nodes, key % num_nodes, weight


def is_symmetric(
    row: Int64[Tensor, "entries"], column: Int64[Tensor, "entries"], weight: Float[Tensor, "entries"], num_nodes: int
) -> bool:
    """Whether every entry, in row-major order, has an equal one across the diagonal."""
    opposite, order = torch.sort(column * num_nodes + row)
    return torch.equal(opposite, row * num_nodes + column) and torch.equal(weight[order], weight)


def gcn_norm(
    edge_index: Int64[Tensor, "2 edges"],
    num_nodes: int,
    edge_weight: Float[Tensor, "edges"] | None = None,
    kind: Literal["sym", "row"] = "sym",
    add_self_loops: bool = True,
    *,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "num_nodes num_nodes"]:
    """The propagation matrix of a graph, as a `torch.sparse_csr` tensor with sorted columns and 32-bit indices.

    A node without a self-loop gets one of weight 1; a self-loop that exists keeps its weight. Repeated edges add up.
    A node without incoming weight has a zero row. Make it once and pass it on as `adj`.

    Args:
        edge_index: source and target of each edge; an undirected graph holds both directions.
        num_nodes: n.
        edge_weight: weight of each edge, >= 0; 1 if None.
        kind: "sym" for P_sym, "row" for P_row.
        add_self_loops: False leaves the edges as they are.
        dtype: of the matrix; that of `edge_weight` if None, or torch's default.

    Raises:
        ValueError: if `edge_index` is not int64 of shape (2, edges) or names a node outside 0..num_nodes-1, a weight
            is negative or not finite, or `kind` is unknown.

    Warns:
        UserWarning: if `kind` is "sym" and some edge has no equal opposite: P_sym is then not symmetric.
    """
    if kind not in ("sym", "row"):
        raise ValueError(f'kind must be "sym" or "row", got {kind!r}')
    row, column, weight = adjacency(edge_index, num_nodes, edge_weight, add_self_loops, dtype=dtype)
    degree = weight.new_zeros(num_nodes).index_add_(0, row, weight)
    if kind == "row":
        values = weight * torch.where(degree > 0, 1 / degree, 0)[row]
    else:
        if not is_symmetric(row, column, weight, num_nodes):
            warnings.warn(
                'edge_index is directed, so that P_sym is not symmetric; use to_undirected, or kind="row"', stacklevel=2
            )
        root = torch.where(degree > 0, degree.rsqrt(), 0)
        values = root[row] * root[column] * weight  # in this order exactly symmetric
    row_starts = torch.searchsorted(row, torch.arange(num_nodes + 1, device=row.device))
    return csr_tensor(row_starts, column, values, (num_nodes, num_nodes))
