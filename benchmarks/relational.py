"""Temporal neighbour sampling at equal fan-out, one thread, on 2,000,000 timed edges.

The first peer is written out below: a loop over the nodes of the frontier, a binary search for the visible end of each
row and a numpy choice among what lies before it, one dictionary a seed: the plain reading of temporal neighbour
sampling. The second is PyG's compiled sampler of the years before pyg-lib, torch-sparse's
`hetero_temporal_neighbor_sample` (`pip install --no-build-isolation torch-sparse`; its line is left out without it).
That one draws among all neighbours and then drops those of the future, ours among the visible ones, so the two are
compared at seed times after the last row, where both draw alike: the same graph, fan-out and distinct seeds, one
disjoint tree a seed. `edges_per_second` states our rate.
"""

import contextlib
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from benchmarks.compare import Comparison
from etude.graphs.relational import HeteroBatch, RelationalGraph, TemporalAdjacency, TemporalNeighborSampler

PARENTS, CHILDREN, SEEDS, DAY = 20_000, 1_000_000, 512, 86_400
FANOUTS = ([16, 8], [128, 64])


def random_graph() -> RelationalGraph:
    """A million timed rows, each with two parents of 20,000: four edge types, 4,000,000 directed edges."""
    rng = np.random.default_rng(0)
    times = np.sort(rng.integers(0, 3000 * DAY, CHILDREN))
    adjacency = {}
    for name in ("a", "b"):
        # Degrees are skewed, as in sales: some parents own thousands of rows.
        parent = (PARENTS * rng.random(CHILDREN) ** 2).astype(np.int64)
        rows = np.arange(CHILDREN)
        adjacency[("row", f"f2p_{name}", name)] = TemporalAdjacency.from_edges(parent, rows, times, PARENTS)
        adjacency[(name, f"rev_f2p_{name}", "row")] = TemporalAdjacency.from_edges(rows, parent, None, CHILDREN)
    return RelationalGraph(
        num_nodes={"a": PARENTS, "b": PARENTS, "row": CHILDREN},
        times={"a": None, "b": None, "row": times},
        columns={"a": (), "b": (), "row": ()},
        adjacency=adjacency,
    )


def node_by_node(graph: RelationalGraph, fanout: list[int], entity: np.ndarray, seed_time: np.ndarray) -> int:
    """The same sampling, one node at a time; gives the number of sampled edges."""
    rng = np.random.default_rng(0)
    edges = 0
    for first, now in zip(entity.tolist(), seed_time.tolist()):
        places = {("a", first): 0}
        frontier = [("a", first)]
        for k in fanout:
            following = []
            for table, node in frontier:
                for (source, _, target), adjacency in graph.adjacency.items():
                    if target != table:
                        continue
                    start, end = int(adjacency.starts[node]), int(adjacency.starts[node + 1])
                    times = graph.times[source]
                    row = adjacency.neighbours[start:end]
                    if times is not None:
                        row = row[: np.searchsorted(times[row], now, side="right")]
                    if len(row) > k:
                        row = row[rng.choice(len(row), k, replace=False)]
                    edges += len(row)
                    for neighbour in row.tolist():
                        if (source, neighbour) not in places:
                            places[(source, neighbour)] = len(places)
                            following.append((source, neighbour))
            frontier = following
    return edges


def compiled(graph: RelationalGraph, fanout: list[int], entity: np.ndarray, now: int) -> Callable[[], int] | None:
    """torch-sparse's sampling of these seeds, which gives the number of sampled edges; None without the package."""
    with contextlib.suppress(ImportError):
        import torch_sparse  # noqa: F401
    if not hasattr(torch.ops.torch_sparse, "hetero_temporal_neighbor_sample"):
        return None
    kinds = list(graph.adjacency)
    starts = {"__".join(kind): torch.from_numpy(graph.adjacency[kind].starts) for kind in kinds}
    neighbours = {"__".join(kind): torch.from_numpy(graph.adjacency[kind].neighbours) for kind in kinds}
    # Static tables get time 0: of a table without times the peer asks at every edge, by a costly C++ exception. A
    # seed's time is that of its row.
    times = {
        name: torch.zeros(graph.num_nodes[name], dtype=torch.int64) if t is None else torch.from_numpy(t)
        for name, t in graph.times.items()
    }
    times["a"][torch.from_numpy(entity)] = now
    fanouts = {name: list(fanout) for name in starts}
    roots = {"a": torch.from_numpy(entity)}

    def sample() -> int:
        *_, edges = torch.ops.torch_sparse.hetero_temporal_neighbor_sample(
            list(graph.num_nodes), kinds, starts, neighbours, roots, fanouts, times, len(fanout), False, True
        )
        return sum(len(index) for index in edges.values())

    return sample


def seeds() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.integers(0, PARENTS, SEEDS), rng.integers(1000 * DAY, 3000 * DAY, SEEDS)


def edges_per_second(fanout: list[int], rounds: int = 7) -> float:
    """Sampled edges per second of one process on one thread: the median of some batches of 512 seeds."""
    sampler = TemporalNeighborSampler(random_graph(), fanout, entity_table="a")
    rates = []
    for draw in range(rounds):
        began = time.perf_counter()
        batch = sampler.sample(*seeds(), draw=draw)
        rates.append(batch.num_edges / (time.perf_counter() - began))
    return statistics.median(rates)


def comparisons() -> list[Comparison]:
    graph, found = random_graph(), []
    entity, seed_time = seeds()
    for fanout in FANOUTS:
        sampler = TemporalNeighborSampler(graph, fanout, entity_table="a")
        batch: HeteroBatch = sampler.sample(entity, seed_time)
        few = slice(None) if fanout[0] < 100 else slice(64)
        ours = partial(sampler.sample, entity[few], seed_time[few])
        peer = partial(node_by_node, graph, fanout, entity[few], seed_time[few])
        count = ours().num_edges
        assert abs(peer() - count) < 0.02 * count, "both must sample alike"
        found.append(
            Comparison(
                f"temporal sampling, fan-out {fanout}, {len(entity[few])} seeds, {count} edges", ours, peer,
                "node by node in numpy",
                f"{edges_per_second(fanout) / 1e6:.1f} million sampled edges/s on one core, {SEEDS} seeds a batch with "
                f"{batch.num_edges} edges",
            )
        )  # fmt: skip
        found += [] if (line := beside_compiled(graph, fanout)) is None else [line]
    return found


def beside_compiled(graph: RelationalGraph, fanout: list[int]) -> Comparison | None:
    entity = np.random.default_rng(2).permutation(PARENTS)[: SEEDS if fanout[0] < 100 else 64]
    now = 3000 * DAY
    peer = compiled(graph, fanout, entity, now)
    if peer is None:
        return None
    sampler = TemporalNeighborSampler(graph, fanout, entity_table="a")
    ours = partial(sampler.sample, entity, np.full(len(entity), now))
    count, theirs = ours().num_edges, peer()
    assert abs(theirs - count) < 0.02 * count, f"both must sample alike, {count} and {theirs} edges"
    return Comparison(
        f"temporal sampling, fan-out {fanout}, {len(entity)} seeds after the last row, {count} edges", ours, peer,
        "torch-sparse, compiled",
        f"the same graph, fan-out and seeds; {theirs} edges by the peer, which also gives each node's edge ids and no "
        "seed of a node",
    )  # fmt: skip
