"""Parts of a graph and their centres, for Distance2Cluster.

The paper partitions with METIS (Karypis & Kumar 1998), used here through `pymetis` where it is installed. Without it
parts are grown, a breadth-first region of n / k nodes from a node at the rim of what is left, k times over; then nodes
move to the part where most of their neighbours are, as long as no part becomes a quarter larger or smaller than n / k.
"""

import numpy as np
import scipy.sparse
from scipy.sparse import csgraph

__all__ = ["centres", "partition"]


def partition(
    adj: scipy.sparse.csr_array, num_parts: int, *, method: str = "auto", rng: np.random.Generator
) -> tuple[np.ndarray, str]:
    """The part 0..k-1 of each node (n,), none empty, and how it was found: "metis" or "grow".

    Args:
        adj: see `adjacency`.
        num_parts: k, at most n.
        method: "auto" takes METIS if `pymetis` is installed.
        rng: where the growing starts; METIS does without.

    Raises:
        ValueError: if k lies outside 1..n or the method is unknown.
        ImportError: if METIS is demanded and not installed.
    """
    nodes = adj.shape[0]
    if not 1 <= num_parts <= nodes:
        raise ValueError(f"num_parts must lie in 1..{nodes}, the number of nodes, got {num_parts}")
    if method not in ("auto", "metis", "grow"):
        raise ValueError(f'method must be "auto", "metis" or "grow", got {method!r}')
    if method != "grow":
        try:
            import pymetis
        except ImportError as error:
            if method == "metis":
                raise ImportError("METIS needs its bindings: pip install pymetis") from error
        else:
            _, parts = pymetis.part_graph(num_parts, xadj=adj.indptr.tolist(), adjncy=adj.indices.tolist())
            if len(np.unique(parts)) == num_parts:
                return np.asarray(parts, dtype=np.int64), "metis"
    return _grown(adj, num_parts, rng), "grow"


def _grown(adj: scipy.sparse.csr_array, num_parts: int, rng: np.random.Generator) -> np.ndarray:
    part = np.full(adj.shape[0], -1, dtype=np.int64)
    for number in range(num_parts):
        left = np.flatnonzero(part < 0)
        size = len(left) // (num_parts - number)
        taken = _region(adj[left][:, left], size, rng)
        part[left[taken]] = number
    return _refined(adj, part, num_parts, rng)


def _refined(
    adj: scipy.sparse.csr_array, part: np.ndarray, num_parts: int, rng: np.random.Generator, sweeps: int = 30
) -> np.ndarray:
    nodes = len(part)
    largest, smallest = int(1.25 * nodes / num_parts), max(int(0.75 * nodes / num_parts), 1)
    for _ in range(sweeps):
        links = adj @ np.eye(num_parts, dtype=np.float32)[part]
        aim = links.argmax(axis=1)
        gain = links.max(axis=1) - links[np.arange(nodes), part]
        # Half of the willing move at a time: two neighbours that move at once may gain nothing.
        movers = np.flatnonzero((gain > 0) & (rng.random(nodes) < 0.5))
        movers = movers[np.argsort(-gain[movers], kind="stable")]
        size = np.bincount(part, minlength=num_parts)
        movers = movers[_rank(aim[movers]) < (largest - size)[aim[movers]]]
        movers = movers[_rank(part[movers]) < (size - smallest)[part[movers]]]
        part[movers] = aim[movers]
    return part


def _rank(group: np.ndarray) -> np.ndarray:
    """How many entries of the same group come before each entry."""
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], group[order])
    rank = np.empty(len(group), dtype=np.int64)
    rank[order] = np.arange(len(group)) - starts
    return rank


def _region(adj: scipy.sparse.csr_array, size: int, rng: np.random.Generator) -> np.ndarray:
    """`size` nodes in breadth-first order, from the rim of one component after the other, large ones first."""
    _, component = csgraph.connected_components(adj, directed=False)
    largest_first = np.argsort(-np.bincount(component), kind="stable")
    taken = np.zeros(0, dtype=np.int64)
    for number in largest_first:
        members = np.flatnonzero(component == number)
        rim = csgraph.breadth_first_order(adj, rng.choice(members), return_predecessors=False)[-1]
        order = csgraph.breadth_first_order(adj, rim, return_predecessors=False)
        taken = np.concatenate([taken, order[: size - len(taken)]])
        if len(taken) == size:
            break
    return taken


def centres(adj: scipy.sparse.csr_array, part: np.ndarray) -> np.ndarray:
    """(k,): the node of each part with the most neighbours in it, the first of them."""
    coo = adj.tocoo()
    inside = part[coo.row] == part[coo.col]
    degree = np.bincount(coo.row[inside], minlength=len(part))
    order = np.lexsort((np.arange(len(part)), -degree, part))
    return order[np.unique(part[order], return_index=True)[1]]
