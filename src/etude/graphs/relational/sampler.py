"""The temporal neighbour sampler: what a seed may see of a database at its time, and not a row more.

Fey et al., arXiv:2312.04615, section 3.3. A seed is a row (entity) and a time tau. From it the sampler walks the edges
towards known rows, hop by hop, and for each node, edge type and hop keeps at most k of the neighbours u with

    time(u) <= tau                      (static rows always; parents are checked like children)

either the last k, or k drawn uniformly by systematic sampling: of c > k candidates the positions

    floor((i + U) c / k),  i = 0 .. k-1,  U uniform in [0, 1)

which are distinct and hold each candidate with probability exactly k / c.

Every seed has a subgraph of its own, as two seeds see different pasts; within it a row occurs once. Everything is done
for all nodes of a hop at once. U is a hash of the seed, the node, the edge type, the hop and the number of the draw: a
seed's sample does not depend on the seeds beside it, on workers or on the order of batches.
"""

import logging
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from etude.graphs.relational.graph import EdgeType, RelationalGraph, TemporalAdjacency

__all__ = ["HeteroBatch", "TemporalNeighborSampler"]

Fanout = Sequence[int] | Mapping[EdgeType, Sequence[int]]
_log = logging.getLogger(__name__)
_DAY = 86_400.0


@dataclass(eq=False)
class HeteroBatch:
    """Disjoint subgraphs, one a seed, in the order of their discovery.

    The nodes of a type stand by hop; the seeds are the first nodes of `entity_table`.

    Attributes:
        graph: where the rows' values and times are.
        entity_table: node type of the seeds.
        seed_time: int64 (seeds,), seconds UTC.
        node_index: node type -> int64 (nodes,), the row of each node.
        batch: node type -> int64 (nodes,), the seed that each node belongs to.
        edge_index: edge type -> int64 (2, edges), positions in `node_index` of source and target.
        num_sampled_nodes: node type -> nodes new at hop 0, 1, ....
        num_sampled_edges: edge type -> edges of hop 1, 2, ....
    """

    graph: RelationalGraph
    entity_table: str
    seed_time: Int64[Tensor, "seeds"]
    node_index: dict[str, Tensor]
    batch: dict[str, Tensor]
    edge_index: dict[EdgeType, Tensor]
    num_sampled_nodes: dict[str, list[int]]
    num_sampled_edges: dict[EdgeType, list[int]]

    def __len__(self) -> int:
        return len(self.seed_time)

    @property
    def num_hops(self) -> int:
        return len(self.num_sampled_nodes[self.entity_table]) - 1

    @property
    def num_nodes(self) -> int:
        return sum(len(index) for index in self.node_index.values())

    @property
    def num_edges(self) -> int:
        return sum(index.shape[1] for index in self.edge_index.values())

    def age_in_days(self, table: str) -> Float[Tensor, "nodes"] | None:
        """(tau - time) / 86400 of each node, >= 0; None for a static table."""
        times = self.graph.times[table]
        if times is None:
            return None
        own = torch.from_numpy(times[self.node_index[table].cpu().numpy()]).to(self.seed_time.device)
        return ((self.seed_time[self.batch[table]] - own).double() / _DAY).float()

    def to(self, device: torch.device | str) -> "HeteroBatch":
        def moved(tensors: dict[Any, Tensor]) -> dict[Any, Tensor]:
            return {key: tensor.to(device, non_blocking=True) for key, tensor in tensors.items()}

        return HeteroBatch(
            self.graph, self.entity_table, self.seed_time.to(device), moved(self.node_index), moved(self.batch),
            moved(self.edge_index), self.num_sampled_nodes, self.num_sampled_edges,
        )  # fmt: skip

    def bidirectional(self) -> "HeteroBatch":
        """The same nodes with every edge also in the other direction, each edge once, for a whole-graph pass.

        Both rows of an edge are known at the seed's time, so nothing new is seen. What was learned about the seed then
        reaches the rows that it touched, as an ID-aware readout of those rows needs.
        """
        edges: dict[EdgeType, Tensor] = {}
        for kind, index in self.edge_index.items():
            turned = self.edge_index.get(_reverse(kind, self.edge_index))
            both = index if turned is None else torch.cat([index, turned.flip(0)], dim=1)
            edges[kind] = torch.unique(both, dim=1)
        hops = self.num_hops
        return HeteroBatch(
            self.graph, self.entity_table, self.seed_time, self.node_index, self.batch, edges,
            {table: [len(index)] + [0] * hops for table, index in self.node_index.items()},
            {kind: [index.shape[1]] + [0] * (hops - 1) for kind, index in edges.items()},
        )  # fmt: skip


def _reverse(kind: EdgeType, kinds: Any) -> EdgeType:
    source, relation, target = kind
    name = relation.removeprefix("rev_") if relation.startswith("rev_f2p_") else f"rev_{relation}"
    if (target, name, source) in kinds:
        return (target, name, source)
    # A contracted link table: its other relation between the same two tables.
    return next((other for other in kinds if other[0] == target and other[2] == source and other[1] != relation), kind)


@dataclass
class _Growing:
    """The nodes of one type as they are found."""

    node: list[np.ndarray] = field(default_factory=list)
    seed: list[np.ndarray] = field(default_factory=list)
    keys: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    counts: list[int] = field(default_factory=list)


class TemporalNeighborSampler:
    """Samples the visible neighbourhood of seeds.

        sampler = TemporalNeighborSampler(graph, [16, 8], entity_table="driver")
        batch = sampler.sample(entity=[3, 7], seed_time=[1_104_537_600, 1_104_537_600])

    Args:
        graph: of `build_graph`.
        num_neighbors: at most so many neighbours of a node, per edge type, at hop 1, 2, ...; -1 takes all. A mapping
            gives edge types their own. The paper's benchmark uses [128, 64].
        temporal_strategy: "uniform" over the visible past, or the "last" k.
        seed: chooses the draws.
        entity_table: node type of the seeds, unless `sample` names another.
        max_nodes: refuse batches of more nodes; none if None.

    Raises:
        ValueError: for an unknown table, edge type or strategy, or fan-outs that are no counts.
    """

    def __init__(
        self,
        graph: RelationalGraph,
        num_neighbors: Fanout = (128, 64),
        temporal_strategy: str = "uniform",
        seed: int = 0,
        *,
        entity_table: str | None = None,
        max_nodes: int | None = None,
    ):
        if temporal_strategy not in ("uniform", "last"):
            raise ValueError(f'temporal_strategy must be "uniform" or "last", got {temporal_strategy!r}')
        if entity_table is not None and entity_table not in graph.num_nodes:
            raise ValueError(f"there is no table {entity_table!r}; there are {', '.join(graph.num_nodes)}")
        self.graph, self.strategy, self.seed = graph, temporal_strategy, seed
        self.entity_table, self.max_nodes = entity_table, max_nodes
        self.fanout = _fanouts(graph, num_neighbors)
        self.num_hops = len(next(iter(self.fanout.values()))) if self.fanout else 0
        self._into = {table: [kind for kind in graph.edge_types if kind[2] == table] for table in graph.num_nodes}
        self._salt = {kind: zlib.crc32("\0".join(kind).encode()) for kind in graph.edge_types}

    def sample(self, entity: Any, seed_time: Any, *, draw: int = 0, table: str | None = None) -> HeteroBatch:
        """The neighbourhoods of seeds.

        Args:
            entity: (seeds,) rows of the entity table.
            seed_time: (seeds,) times in seconds UTC.
            draw: another number gives another uniform sample; an epoch, say.
            table: the entity table, if not the sampler's.

        Raises:
            ValueError: if a seed is no row, is itself not known at its time, or the batch exceeds `max_nodes`.
        """
        table = self.entity_table if table is None else table
        if table is None or table not in self.graph.num_nodes:
            raise ValueError(f"there is no entity table {table!r}; there are {', '.join(self.graph.num_nodes)}")
        entities, times = _int64(entity, "entity"), _int64(seed_time, "seed_time")
        self._check_seeds(table, entities, times)
        found = {name: _Growing() for name in self.graph.num_nodes}
        seeds = np.arange(len(entities))
        found[table].node, found[table].seed = [entities], [seeds]
        found[table].keys = seeds * self.graph.num_nodes[table] + entities
        for name, growing in found.items():
            growing.counts = [len(entities) if name == table else 0]
        identity = _mix(_mix(entities.astype(np.uint64) ^ _mixed(self.seed)) ^ times.astype(np.uint64) ^ _mixed(draw))
        ranks: dict[EdgeType, np.ndarray] = {}
        edges: dict[EdgeType, list[np.ndarray]] = {kind: [] for kind in self.graph.edge_types}
        for hop in range(self.num_hops):
            self._expand(hop, found, edges, ranks, times, identity)
        return self._finish(table, times, found, edges)

    def _check_seeds(self, table: str, entities: np.ndarray, times: np.ndarray) -> None:
        if entities.shape != times.shape:
            raise ValueError(f"entity and seed_time must be alike in length, got {len(entities)} and {len(times)}")
        rows = self.graph.num_nodes[table]
        if len(entities) and not 0 <= int(entities.min()) <= int(entities.max()) < rows:
            raise ValueError(f"entity must name rows 0..{rows - 1} of {table}, got {entities.min()}..{entities.max()}")
        own = self.graph.times[table]
        if own is not None and (early := own[entities] > times).any():
            first = int(np.flatnonzero(early)[0])
            raise ValueError(
                f"row {entities[first]} of {table} is not known before {_date(own[entities[first]])}, "
                f"its seed time is {_date(times[first])} ({int(early.sum())} such seeds)"
            )

    def _expand(
        self,
        hop: int,
        found: dict[str, _Growing],
        edges: dict[EdgeType, list[np.ndarray]],
        ranks: dict[EdgeType, np.ndarray],
        times: np.ndarray,
        identity: np.ndarray,
    ) -> None:
        arriving: dict[str, list[tuple[EdgeType, np.ndarray, np.ndarray, np.ndarray]]] = {name: [] for name in found}
        for target, growing in found.items():
            size = growing.counts[hop]
            first = len(growing.keys) - size
            if not size:
                continue
            nodes, seeds = growing.node[-1], growing.seed[-1]
            for kind in self._into[target]:
                adjacency = self.graph.adjacency[kind]
                if kind not in ranks:
                    ranks[kind] = np.searchsorted(adjacency.times, times, side="right")
                bits = identity ^ _mixed(self._salt[kind] + (hop << 32)) if self.strategy == "uniform" else None
                owner, neighbours = _pick(adjacency, nodes, seeds, ranks[kind], self.fanout[kind][hop], bits)
                arriving[kind[0]].append((kind, first + owner, neighbours, seeds[owner]))
        for source, parts in arriving.items():
            self._join(source, parts, found[source], edges)
        reached = sum(len(growing.keys) for growing in found.values())
        if self.max_nodes is not None and reached > self.max_nodes:
            raise ValueError(
                f"{len(times)} seeds reach {reached} nodes at hop {hop + 1}, more than max_nodes={self.max_nodes}: "
                "take smaller batches or fan-outs"
            )

    def _join(
        self,
        source: str,
        parts: list[tuple[EdgeType, np.ndarray, np.ndarray, np.ndarray]],
        growing: _Growing,
        edges: dict[EdgeType, list[np.ndarray]],
    ) -> None:
        """Gives each sampled row its place, an old one if the seed has it already, and records the edges."""
        import pandas as pd

        rows = self.graph.num_nodes[source]
        old = len(growing.keys)
        keys = np.concatenate([growing.keys, *(seeds * rows + neighbours for _, _, neighbours, seeds in parts)])
        # Places go by first appearance, so that the old nodes, which come first, keep theirs.
        places, distinct = pd.factorize(keys)
        new = distinct[old:]
        growing.keys = distinct
        growing.node.append(new % rows if rows else new)
        growing.seed.append(new // rows if rows else new)
        growing.counts.append(len(new))
        start = old
        for kind, targets, neighbours, _ in parts:
            edges[kind].append(np.stack([places[start : start + len(neighbours)], targets]))
            start += len(neighbours)

    def _finish(
        self, table: str, times: np.ndarray, found: dict[str, _Growing], edges: dict[EdgeType, list[np.ndarray]]
    ) -> HeteroBatch:
        empty = np.empty(0, dtype=np.int64)
        batch = HeteroBatch(
            graph=self.graph,
            entity_table=table,
            seed_time=torch.from_numpy(times.copy()),
            node_index={name: torch.from_numpy(np.concatenate([empty, *g.node])) for name, g in found.items()},
            batch={name: torch.from_numpy(np.concatenate([empty, *g.seed])) for name, g in found.items()},
            edge_index={
                kind: torch.from_numpy(np.concatenate([empty.reshape(2, 0), *parts], axis=1).astype(np.int64))
                for kind, parts in edges.items()
            },
            num_sampled_nodes={name: g.counts for name, g in found.items()},
            num_sampled_edges={},
        )
        for kind, parts in edges.items():
            sizes = [part.shape[1] for part in parts]
            batch.num_sampled_edges[kind] = self._by_hop(found[kind[2]].counts, sizes)
        _log.debug("%d seeds: %d nodes, %d edges", len(times), batch.num_nodes, batch.num_edges)
        return batch

    def _by_hop(self, targets: list[int], sizes: list[int]) -> list[int]:
        """Edges of each hop; a hop whose targets were none has no part."""
        parts = iter(sizes)
        return [next(parts) if targets[hop] else 0 for hop in range(self.num_hops)]


def _pick(
    adjacency: TemporalAdjacency,
    nodes: np.ndarray,
    seeds: np.ndarray,
    ranks: np.ndarray,
    k: int,
    bits: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Up to k visible neighbours of each node: (position of the node, neighbour), flat.

    `ranks` and `bits` have an entry a seed; from `bits` U is made, None takes the last k.
    """
    start = adjacency.starts[nodes]
    visible = adjacency.ends(nodes, ranks[seeds]) - start
    taken = visible if k < 0 else np.minimum(visible, k)
    total = int(taken.sum())
    owner = np.repeat(np.arange(len(nodes)), taken)
    position = np.arange(total)
    position -= np.repeat(np.cumsum(taken) - taken, taken)
    crowded = np.flatnonzero(visible > k) if k > 0 else np.empty(0, dtype=np.int64)
    if len(crowded) and bits is None:
        position += np.repeat(visible - taken, taken)
    elif len(crowded) and bits is not None:
        many = np.repeat(visible > k, taken)
        u = (_mix(_mix(bits[seeds[crowded]]) ^ nodes[crowded].astype(np.uint64)) >> np.uint64(11)) * 2.0**-53
        spread = (np.arange(k) + u[:, None]) * (visible[crowded] / k)[:, None]
        # Rounding may reach the end itself.
        position[many] = np.minimum(spread.astype(np.int64), visible[crowded, None] - 1).ravel()
    return owner, adjacency.neighbours[np.repeat(start, taken) + position]


def _fanouts(graph: RelationalGraph, given: Fanout) -> dict[EdgeType, list[int]]:
    if isinstance(given, Mapping):
        unknown = [kind for kind in given if kind not in graph.adjacency]
        absent = [kind for kind in graph.edge_types if kind not in given]
        if unknown or absent:
            raise ValueError(f"num_neighbors must name every edge type; unknown {unknown[:3]}, missing {absent[:3]}")
        fanout = {kind: [int(k) for k in counts] for kind, counts in given.items()}
    else:
        fanout = {kind: [int(k) for k in given] for kind in graph.edge_types}
    hops = {len(counts) for counts in fanout.values()}
    if len(hops) > 1:
        raise ValueError(f"num_neighbors must have one count a hop for every edge type, got {sorted(hops)} hops")
    wrong = [k for counts in fanout.values() for k in counts if k < -1]
    if wrong:
        raise ValueError(f"num_neighbors must be counts, or -1 for all, got {wrong[0]}")
    return fanout


def _int64(values: Any, name: str) -> Int64[np.ndarray, "n"]:
    array = values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"{name} must be whole numbers of shape (n,), got {array.dtype} of shape {array.shape}")
    return array.astype(np.int64)


def _date(seconds: Any) -> np.datetime64:
    return np.datetime64(int(seconds), "s")


def _mix(bits: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea & Flood, 2014): uint64 to well-mixed uint64."""
    with np.errstate(over="ignore"):
        bits = bits + np.uint64(0x9E3779B97F4A7C15)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return bits ^ (bits >> np.uint64(31))


def _mixed(number: int) -> np.uint64:
    return _mix(np.array([number % 2**64], dtype=np.uint64))[0]
