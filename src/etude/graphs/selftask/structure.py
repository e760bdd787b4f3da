"""What the pretext tasks read off a graph: adjacency, distances, rings, neighbourhoods, properties of nodes.

A graph is anything with `x`, `edge_index` and `y`: `GraphData` or PyG's `Data`. Only its structure is looked at here.
Distances and neighbourhoods are those of the simple undirected graph: self-loops and repeated edges do not count.
No function holds an n x n array: rings are sparse, distances are made for the asked sources alone.
"""

from typing import Any

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float
from scipy.sparse import csgraph
from torch import Tensor

__all__ = [
    "adjacency",
    "cosine_rows",
    "features_of",
    "hop_distances",
    "neighbourhood",
    "node_property",
    "normalize_features",
    "numpy_rng",
    "rings",
]

_FRONTIERS = 64
"""Levels searched by matrix products before the search goes on node by node: long paths would need too many."""


def numpy_rng(generator: torch.Generator) -> np.random.Generator:
    """A NumPy generator seeded by one draw from torch's: NumPy draws few of many pairs without listing them all."""
    return np.random.default_rng(int(torch.randint(2**63 - 1, (1,), generator=generator)))


def adjacency(data: Any) -> scipy.sparse.csr_array:
    """A of the simple undirected graph, ones of float32, columns sorted, empty diagonal.

    Raises:
        ValueError: if `edge_index` is not int64 (2, edges), names no node of the graph, or is directed.
    """
    edge_index, num_nodes = data.edge_index, data.x.shape[0]
    if edge_index.dtype != torch.int64 or edge_index.ndim != 2 or edge_index.shape[0] != 2:
        raise ValueError(
            f"edge_index must be int64 of shape (2, edges), got {edge_index.dtype} of shape {tuple(edge_index.shape)}"
        )
    source, target = edge_index.cpu().numpy()
    if len(source) and not 0 <= int(edge_index.min()) <= int(edge_index.max()) < num_nodes:
        raise ValueError(
            f"edge_index must name nodes 0..{num_nodes - 1}, got {int(edge_index.min())}..{int(edge_index.max())}"
        )
    there = source != target
    keys = np.unique(source[there] * num_nodes + target[there])
    row, column = keys // num_nodes, keys % num_nodes
    lonely = len(keys) - np.isin(column * num_nodes + row, keys, assume_unique=True).sum()
    if lonely:
        raise ValueError(
            f"edge_index must hold both directions of every edge, {lonely} of {len(keys)} lack their opposite: "
            "make it undirected with torch_geometric.utils.to_undirected"
        )
    return scipy.sparse.csr_array((np.ones(len(keys), np.float32), (row, column)), shape=(num_nodes, num_nodes))


def hop_distances(adj: scipy.sparse.csr_array, sources: np.ndarray, limit: int | None = None) -> np.ndarray:
    """(n, sources): edges on a shortest path from each source to each node; -1 where there is none, or none in `limit`.

    A breadth-first search from all sources at once: the frontiers are the columns of one matrix.
    """
    count = len(sources)
    column = np.arange(count)
    found = np.full((adj.shape[0], count), -1, dtype=np.int32)
    found[sources, column] = 0
    frontier = np.zeros((adj.shape[0], count), dtype=np.float32)
    frontier[sources, column] = 1
    depth = 0
    while limit is None or depth < limit:
        if depth == _FRONTIERS:
            exact = csgraph.dijkstra(adj, indices=sources, unweighted=True, limit=np.inf if limit is None else limit).T
            return np.where(np.isfinite(exact), exact, -1).astype(np.int32)
        depth += 1
        new = ((adj @ frontier) > 0) & (found < 0)
        if not new.any():
            break
        found[new] = depth
        frontier = new.astype(np.float32)
    return found


def rings(adj: scipy.sparse.csr_array, depth: int, sources: np.ndarray | None = None) -> list[scipy.sparse.csr_array]:
    """For d = 1..depth the pairs (source, node) at distance d, a sparse pattern (sources, n); all sources if None."""
    rows = adj if sources is None else adj[sources]
    start = np.arange(adj.shape[0]) if sources is None else np.asarray(sources)
    within = scipy.sparse.csr_array(
        (np.ones(len(start), np.float32), (np.arange(len(start)), start)), shape=(len(start), adj.shape[0])
    )
    found, ring = [], within
    for distance in range(1, depth + 1):
        reached = rows if distance == 1 else _pattern(ring @ adj)
        # Entries of `within` weigh two: what remains at exactly one is new.
        both = reached + 2 * within
        ring = _pattern(scipy.sparse.csr_array((both.data == 1, both.indices, both.indptr), shape=both.shape))
        within = _pattern(within + ring)
        found.append(ring)
    return found


def _pattern(matrix: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
    """Ones where the matrix is not zero, columns sorted."""
    matrix = matrix.astype(np.float32)
    matrix.eliminate_zeros()
    matrix.data[:] = 1
    matrix.sort_indices()
    return matrix


def neighbourhood(adj: scipy.sparse.csr_array, hops: int = 2) -> scipy.sparse.csr_array:
    """Pattern of the nodes within `hops` edges of each node: itself left out, every other one once."""
    if hops < 1:
        raise ValueError(f"hops must be at least 1, got {hops}")
    near = adj
    for _ in range(hops - 1):
        near = _pattern(near @ adj + adj)
    near = near.tocoo()
    apart = near.row != near.col
    return scipy.sparse.csr_array(
        (np.ones(int(apart.sum()), np.float32), (near.row[apart], near.col[apart])), shape=adj.shape
    )


def features_of(data: Any) -> scipy.sparse.csr_array | np.ndarray:
    """The features on the CPU: a SciPy matrix of a sparse tensor, an array of a dense one."""
    x = data.x.detach().cpu()
    if x.layout == torch.strided:
        return x.numpy()
    if x.layout != torch.sparse_csr:
        raise ValueError(f"x must be dense or sparse CSR, got layout {x.layout}")
    parts = (x.values().numpy(), x.col_indices().numpy(), x.crow_indices().numpy())
    return scipy.sparse.csr_array(parts, shape=tuple(x.shape))


def cosine_rows(matrix: scipy.sparse.csr_array | np.ndarray) -> scipy.sparse.csr_array | np.ndarray:
    """Rows at unit length, so that products are cosines; zero rows stay zero."""
    if isinstance(matrix, np.ndarray):
        length = np.linalg.norm(matrix, axis=1, keepdims=True)
        return matrix / np.where(length > 0, length, 1)
    length = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    scaled = matrix.copy().tocsr()
    scaled.data = scaled.data / np.repeat(np.where(length > 0, length, 1), np.diff(scaled.indptr))
    return scaled


def normalize_features(x: Float[Tensor, "nodes features"]) -> Float[Tensor, "nodes features"]:
    """Rows scaled to sum 1, as the authors do with bags of words; zero rows stay zero. Dense or sparse CSR.

    Raises:
        ValueError: if a feature is negative: rows then have no meaningful sum.
    """
    values = x if x.layout == torch.strided else x.values()
    if values.numel() and float(values.min()) < 0:
        raise ValueError(f"features must not be negative to be scaled to sum 1, got {float(values.min())}")
    if x.layout == torch.strided:
        total = x.sum(dim=1, keepdim=True)
        return x / torch.where(total > 0, total, 1)
    row = torch.repeat_interleave(torch.arange(x.shape[0], device=x.device), x.crow_indices().diff().to(torch.int64))
    total = values.new_zeros(x.shape[0]).index_add_(0, row, values)
    scaled = values / torch.where(total > 0, total, 1)[row]
    return torch.sparse_csr_tensor(x.crow_indices(), x.col_indices(), scaled, size=x.shape, check_invariants=False)


def node_property(adj: scipy.sparse.csr_array, name: str, *, chunk: int = 256) -> np.ndarray:
    """(n,) float64: a property of every node in the simple undirected graph.

    Args:
        adj: see `adjacency`.
        name: "degree"; "pagerank", with damping 0.85 and jumps to any node; "closeness", (r - 1)^2 / ((n - 1) s) for
            a node that reaches r - 1 others at summed distance s (Wasserman & Faust), which costs a search from every
            node; "clustering", the share of pairs of neighbours that are neighbours.
        chunk: searches made at once.

    Raises:
        ValueError: for another name.
    """
    degree = np.diff(adj.indptr).astype(np.float64)
    nodes = adj.shape[0]
    if name == "degree":
        return degree
    if name == "clustering":
        triangles = np.asarray((adj @ adj).multiply(adj).sum(axis=1), dtype=np.float64).ravel()
        return triangles / np.maximum(degree * (degree - 1), 1)
    if name == "pagerank":
        step = adj.multiply(np.where(degree > 0, 1 / np.maximum(degree, 1), 0)[None, :]).tocsr()
        rank = np.full(nodes, 1 / nodes)
        for _ in range(1000):
            moved = 0.85 * (step @ rank + rank[degree == 0].sum() / nodes) + 0.15 / nodes
            change, rank = np.abs(moved - rank).sum(), moved
            if change < 1e-12:
                break
        return rank
    if name == "closeness":
        values = np.zeros(nodes)
        for start in range(0, nodes, chunk):
            sources = np.arange(start, min(start + chunk, nodes))
            distance = hop_distances(adj, sources)
            reached = (distance > 0).sum(axis=0)
            total = np.where(distance > 0, distance, 0).sum(axis=0)
            values[sources] = reached**2 / (np.maximum(total, 1) * max(nodes - 1, 1))
        return values
    raise ValueError(f'the property must be "degree", "pagerank", "closeness" or "clustering", got {name!r}')
