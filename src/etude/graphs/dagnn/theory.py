"""Where infinitely many hops lead, and how fast.

Liu, Gao & Ji, "Towards Deeper Graph Neural Networks", KDD 2020, arXiv:2007.09296, section 5. On a connected undirected
graph with self-loops, of degrees d~ (loops counted),

    P_row^k -> 1 pi^T,  pi_j = d~_j / sum d~;        P_sym^k -> v v^T / |v|^2,  v_i = sqrt(d~_i),

with an error that shrinks by |lambda_2| a hop, lambda_2 the second largest eigenvalue in modulus, the same for both. On
a disconnected graph this holds in each component. At the limit every node of a component carries one and the same
vector, scaled (P_sym) by the root of its degree: what remains of a node is its degree, and nothing of its features.
"""

from typing import Literal

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph
import scipy.sparse.linalg
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from etude.graphs.dagnn.normalization import adjacency, is_symmetric

__all__ = ["propagate_to_limit", "propagation_limit", "second_eigenvalue", "spectral_gap"]

_DENSE_LIMIT = 200
"""Up to this many nodes all eigenvalues are computed: quicker than Lanczos, and without its corner cases."""


def propagation_limit(
    edge_index: Int64[Tensor, "2 edges"], num_nodes: int, kind: Literal["sym", "row"] = "sym"
) -> Float[Tensor, "num_nodes num_nodes"]:
    """lim P^k for k -> infinity, dense and in double precision: n^2 numbers, zero between components.

    Args:
        edge_index: undirected: every edge in both directions.
        num_nodes: n.
        kind: "sym" or "row", as for `gcn_norm`.

    Raises:
        ValueError: if the edges are malformed or directed, or `kind` is unknown.
    """
    if kind not in ("sym", "row"):
        raise ValueError(f'kind must be "sym" or "row", got {kind!r}')
    _, root, component = _spectrum(edge_index, num_nodes)
    total = np.bincount(component, weights=root**2)[component]
    same = component[:, None] == component
    limit = root * (root[:, None] if kind == "sym" else root) / total * same
    return torch.from_numpy(limit)


def propagate_to_limit(
    z: Float[Tensor, "nodes channels"], edge_index: Int64[Tensor, "2 edges"], kind: Literal["sym", "row"] = "sym"
) -> Float[Tensor, "nodes channels"]:
    """lim P^k z without its (n, n) matrix: each component has but one direction left, so n c operations do.

    Raises:
        ValueError: as for `propagation_limit`.
    """
    if kind not in ("sym", "row"):
        raise ValueError(f'kind must be "sym" or "row", got {kind!r}')
    _, root, component = _spectrum(edge_index, len(z))
    total = torch.from_numpy(np.bincount(component, weights=root**2)).to(z)
    left, where = torch.from_numpy(root if kind == "sym" else root**2).to(z), torch.from_numpy(component).to(z.device)
    means = z.new_zeros(len(total), z.shape[1]).index_add_(0, where, left[:, None] * z) / total[:, None]
    return left[:, None] * means[where] if kind == "sym" else means[where]


def second_eigenvalue(edge_index: Int64[Tensor, "2 edges"], num_nodes: int) -> float:
    """|lambda_2|: the largest modulus of an eigenvalue of P other than the 1 that each component has.

    0 where propagation reaches its limit in one hop: on complete graphs and isolated nodes.

    Raises:
        ValueError: if the edges are malformed or directed.
    """
    matrix, root, component = _spectrum(edge_index, num_nodes)
    vector = root / np.sqrt(np.bincount(component, weights=root**2))[component]
    if num_nodes <= _DENSE_LIMIT:
        limit = np.outer(vector, vector) * (component[:, None] == component)
        return float(np.abs(np.linalg.eigvalsh(matrix.toarray() - limit)).max())

    def deflated(x: np.ndarray) -> np.ndarray:
        x = x.ravel()
        return matrix @ x - vector * np.bincount(component, weights=vector * x)[component]

    start = deflated(np.random.default_rng(0).standard_normal(num_nodes))
    if np.linalg.norm(start) < 1e-12 * num_nodes:
        return 0.0
    operator = scipy.sparse.linalg.LinearOperator((num_nodes, num_nodes), matvec=deflated, dtype=np.float64)
    return float(abs(scipy.sparse.linalg.eigsh(operator, k=1, which="LM", v0=start, return_eigenvectors=False)[0]))


def spectral_gap(edge_index: Int64[Tensor, "2 edges"], num_nodes: int) -> float:
    """1 - |lambda_2|: the wider, the fewer hops until nothing but degrees is left; see `second_eigenvalue`."""
    return 1 - second_eigenvalue(edge_index, num_nodes)


def _spectrum(edge_index: Tensor, num_nodes: int) -> tuple[scipy.sparse.csr_array, np.ndarray, np.ndarray]:
    """P_sym, the roots of the degrees, and the component of each node."""
    entries = adjacency(edge_index, num_nodes, dtype=torch.float64)
    if not is_symmetric(*entries, num_nodes):
        raise ValueError("the limit is known for undirected graphs: give every edge in both directions (to_undirected)")
    row, column, weight = (part.cpu().numpy() for part in entries)
    root = np.sqrt(np.bincount(row, weights=weight, minlength=num_nodes))
    matrix = scipy.sparse.csr_array((weight / (root[row] * root[column]), (row, column)), shape=(num_nodes, num_nodes))
    _, component = scipy.sparse.csgraph.connected_components(matrix, directed=False)
    return matrix, root, component
