"""A relational database as a heterogeneous graph whose neighbours are sorted by time.

Fey et al., arXiv:2312.04615, section 3.1: every row is a node, every foreign key an edge, both ways:

    (table, "f2p_<column>", parent)          from the row to the row that it names
    (parent, "rev_f2p_<column>", table)      and back

An edge exists since both its rows do, but a neighbour is looked up from a node that is already known, so the time of an
edge is that of the neighbour.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Int64

from etude.data.kinds_relational import RelationalDatabase, RelationalTable
from etude.data.relational_columns import to_seconds
from etude.graphs.relational.columns import Column, checked_stypes, column_of

__all__ = ["EdgeType", "RelationalGraph", "TemporalAdjacency", "build_graph"]

EdgeType = tuple[str, str, str]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class TemporalAdjacency:
    """The neighbours of every node along one edge type, sorted by time: compressed rows, 16 bytes an edge.

    Attributes:
        starts: int64 (owners + 1,), where each owner's neighbours begin.
        neighbours: int64 (edges,).
        times: int64 (T,), the distinct times, sorted; empty if the edges are always there.
        keys: int64 (edges,), owner * (T + 1) + rank of the time, sorted; empty if the edges are always there.
    """

    starts: np.ndarray
    neighbours: np.ndarray
    times: np.ndarray
    keys: np.ndarray

    @classmethod
    def from_edges(
        cls, owners: np.ndarray, neighbours: np.ndarray, times: np.ndarray | None, num_owners: int
    ) -> "TemporalAdjacency":
        """Sorts edges by owner, then time, then neighbour.

        Args:
            owners, neighbours: int64 (edges,).
            times: int64 (edges,), since when each is there; None if always.
            num_owners: how many nodes may own neighbours.
        """
        owners, neighbours = np.asarray(owners, dtype=np.int64), np.asarray(neighbours, dtype=np.int64)
        if times is None:
            order = np.lexsort((neighbours, owners))
            distinct, keys = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        else:
            order = np.lexsort((neighbours, times, owners))
            distinct, rank = np.unique(times, return_inverse=True)
            keys = (owners * (len(distinct) + 1) + rank)[order]
        starts = np.zeros(num_owners + 1, dtype=np.int64)
        np.cumsum(np.bincount(owners, minlength=num_owners), out=starts[1:])
        return cls(starts, neighbours[order], distinct, keys)

    @property
    def num_edges(self) -> int:
        return len(self.neighbours)

    def owners(self) -> Int64[np.ndarray, "edges"]:
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))

    def edge_times(self) -> Int64[np.ndarray, "edges"] | None:
        return self.times[self.keys - self.owners() * (len(self.times) + 1)] if len(self.keys) else None

    def ends(
        self, nodes: Int64[np.ndarray, "nodes"], ranks: Int64[np.ndarray, "nodes"] | None
    ) -> Int64[np.ndarray, "nodes"]:
        """Where the visible neighbours of each node end: one binary search over all keys at once.

        Args:
            nodes: the owners asked for.
            ranks: how many of `times` each of them may see; not read if the edges are always there.
        """
        if not len(self.keys) or ranks is None:
            return self.starts[nodes + 1]
        return np.searchsorted(self.keys, nodes * (len(self.times) + 1) + ranks, side="left")

    def head(self, num_owners: int, num_neighbours: int, cutoff: int) -> "TemporalAdjacency":
        """The edges at or before `cutoff` between the first rows of both sides."""
        owners = self.owners()
        kept = (owners < num_owners) & (self.neighbours < num_neighbours)
        times = self.times[: np.searchsorted(self.times, cutoff, side="right")]
        ranks = self.keys - owners * (len(self.times) + 1) if len(self.keys) else None
        if ranks is not None:
            kept &= ranks < len(times)
        # What is left keeps its order; only the stride of the keys shrinks.
        keys = self.keys if ranks is None else owners[kept] * (len(times) + 1) + ranks[kept]
        starts = np.zeros(num_owners + 1, dtype=np.int64)
        np.cumsum(np.bincount(owners[kept], minlength=num_owners), out=starts[1:])
        return TemporalAdjacency(starts, self.neighbours[kept], times, keys)


@dataclass(frozen=True, eq=False)
class RelationalGraph:
    """Nodes, their columns and times, and the adjacencies of a database. Made by `build_graph`.

    Attributes:
        num_nodes: node type (table) -> how many.
        times: node type -> int64 (nodes,) seconds UTC, or None for a static table.
        columns: node type -> its feature columns, raw values.
        adjacency: edge type (source, relation, target) -> for each *target* node the sources whose messages it gets.
        stats_upto: seconds UTC up to which encoders may look when they take statistics; None for everything.
        name: of the database.
        cache: what encoders remember about the graph's vocabularies.
    """

    num_nodes: Mapping[str, int]
    times: Mapping[str, np.ndarray | None]
    columns: Mapping[str, tuple[Column, ...]]
    adjacency: Mapping[EdgeType, TemporalAdjacency]
    stats_upto: int | None = None
    name: str = "graph"
    cache: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def edge_types(self) -> list[EdgeType]:
        return list(self.adjacency)

    @property
    def num_edges(self) -> int:
        """Directed: a foreign key counts twice."""
        return sum(adjacency.num_edges for adjacency in self.adjacency.values())

    @property
    def nbytes(self) -> int:
        """Bytes of the adjacencies and the columns, vocabularies aside."""
        parts = [array for a in self.adjacency.values() for array in (a.starts, a.neighbours, a.times, a.keys)]
        parts += [column.values for columns in self.columns.values() for column in columns]
        return sum(part.nbytes for part in parts)

    def upto(self, time: Any) -> "RelationalGraph":
        """The graph of what was known at `time`: later rows and their edges are physically absent."""
        cutoff = to_seconds(time)
        rows = {
            name: self.num_nodes[name] if times is None else int(np.searchsorted(times, cutoff, side="right"))
            for name, times in self.times.items()
        }
        return replace(
            self,
            num_nodes=rows,
            times={name: None if times is None else times[: rows[name]] for name, times in self.times.items()},
            columns={name: tuple(c.head(rows[name]) for c in columns) for name, columns in self.columns.items()},
            adjacency={
                kind: adjacency.head(rows[kind[2]], rows[kind[0]], cutoff) for kind, adjacency in self.adjacency.items()
            },
        )

    def to_pyg(self) -> Any:
        """A `torch_geometric.data.HeteroData` with `num_nodes`, `time` and `edge_index`, sorted by target and time."""
        try:
            import torch
            from torch_geometric.data import HeteroData
        except ImportError as error:
            raise ImportError('PyG is not installed: pip install "etude[graphs]"') from error
        data = HeteroData()
        for name, nodes in self.num_nodes.items():
            data[name].num_nodes = nodes
            times = self.times[name]
            if times is not None:
                data[name].time = torch.from_numpy(times.copy())
        for kind, adjacency in self.adjacency.items():
            data[kind].edge_index = torch.from_numpy(np.stack([adjacency.neighbours, adjacency.owners()]))
        return data


def build_graph(
    db: RelationalDatabase,
    stypes: Mapping[str, Mapping[str, str]] | None = None,
    stats_upto: Any = None,
    contract_links: bool = False,
) -> RelationalGraph:
    """The graph of a database.

    Args:
        db: the database.
        stypes: table -> {feature column: semantic type}; tables not named take `propose_stypes`.
        stats_upto: encoders take their statistics from rows known by then (static tables: from all rows), and so does
            the proposal of types; usually the validation time. Everything if None, which leaks a little.
        contract_links: turn tables of two foreign keys and nothing else into edges between their parents. Such a table
            otherwise stays, with a constant feature. An edge then carries the later of the link's and the neighbour's
            time.

    Raises:
        ValueError: for unknown tables, columns or types.
    """
    upto = None if stats_upto is None else to_seconds(stats_upto)
    chosen = checked_stypes(db, stypes, upto)
    links = [name for name, table in db.tables.items() if contract_links and _is_link(table)]
    kept = {name: table for name, table in db.tables.items() if name not in links}
    adjacency: dict[EdgeType, TemporalAdjacency] = {}

    def add(kind: EdgeType, owners: np.ndarray, neighbours: np.ndarray, since: np.ndarray | None = None) -> None:
        times = kept[kind[0]].times
        own = None if times is None else times[neighbours]
        both = since if own is None else own if since is None else np.maximum(own, since)
        adjacency[kind] = TemporalAdjacency.from_edges(owners, neighbours, both, len(kept[kind[2]]))

    for name, table in kept.items():
        for key in table.foreign_keys:
            rows = np.flatnonzero(table.parents[key.name] >= 0)
            parents = table.parents[key.name][rows]
            if key.table in links:
                continue
            add((name, f"f2p_{key.name}", key.table), parents, rows)
            add((key.table, f"rev_f2p_{key.name}", name), rows, parents)
    for name in links:
        table = db[name]
        one, other = table.foreign_keys
        ends = table.parents[one.name], table.parents[other.name]
        whole = (ends[0] >= 0) & (ends[1] >= 0)
        since = None if table.times is None else table.times[whole]
        add((one.table, f"{name}_{one.name}", other.table), ends[1][whole], ends[0][whole], since)
        add((other.table, f"{name}_{other.name}", one.table), ends[0][whole], ends[1][whole], since)
    graph = RelationalGraph(
        num_nodes={name: len(table) for name, table in kept.items()},
        times={name: table.times for name, table in kept.items()},
        columns={
            name: tuple(column_of(table, column, stype) for column, stype in chosen[name].items())
            for name, table in kept.items()
        },
        adjacency=adjacency,
        stats_upto=upto,
        name=db.name,
    )
    _log.info(
        "%s: %d nodes, %d edges, %.1f MB", db.name, sum(graph.num_nodes.values()), graph.num_edges, graph.nbytes / 1e6
    )
    return graph


def _is_link(table: RelationalTable) -> bool:
    return len(table.foreign_keys) == 2 and not table.feature_columns
