"""Rows to vectors: one encoder a table, with statistics of the past only, and the time since a row.

Fey et al., arXiv:2312.04615, section 3.2, with the ResNet row encoder of the benchmark's code (Robinson et al.,
arXiv:2407.20060): every column becomes a vector of C channels, the columns are laid side by side and mapped to C
channels, and four residual blocks follow. By type of column:

    numerical         (x - mean) / std, times a learned vector, plus a learned one; a missing value counts as the mean
                      and raises a flag that has a vector of its own
    categorical       an embedding; index 0 for values outside the table of categories, 1 for missing ones
    multicategorical  the mean of its members' embeddings
    timestamp         sine and cosine of month, day, weekday and hour, and a position encoding of the years since the
                      first time known, mapped linearly
    text, embedding   the given vectors, mapped linearly

Means, deviations, tables of categories and first times are taken from rows known at the graph's `stats_upto`, once, and
stay with the encoder: on another graph, or a later one, the same value gets the same vector.
"""

import hashlib
import json
import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from etude.graphs.relational.columns import NO_TIME, Column
from etude.graphs.relational.graph import RelationalGraph

__all__ = ["HeteroEncoder", "PositionEncoding", "RelativeTimeEncoder", "RowEncoder", "graph_schema"]

_QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
_UNKNOWN, _MISSING = 0, 1
_YEAR = 365.2425 * 86_400


def graph_schema(graph: RelationalGraph) -> dict[str, Any]:
    """What a model must know of a graph, as plain JSON data: tables, columns with statistics, edge types.

    Statistics come from rows with time <= `graph.stats_upto`; static tables count with all their rows.
    """
    tables = {}
    for name, columns in graph.columns.items():
        times = graph.times[name]
        known = graph.num_nodes[name]
        if times is not None and graph.stats_upto is not None:
            known = int(np.searchsorted(times, graph.stats_upto, side="right"))
        tables[name] = {"timed": times is not None, "columns": [_statistics(column.head(known)) for column in columns]}
    return {"tables": tables, "edge_types": [list(kind) for kind in graph.edge_types]}


def _statistics(column: Column) -> dict[str, Any]:
    found: dict[str, Any] = {"name": column.name, "stype": column.stype}
    values = column.values
    if column.stype == "numerical":
        known = values[~np.isnan(values)]
        std = float(known.std()) if len(known) else 1.0
        found["mean"] = float(known.mean()) if len(known) else 0.0
        found["std"] = std if std > 0 else 1.0
        found["quantiles"] = np.quantile(known, _QUANTILES).tolist() if len(known) else []
    elif column.stype in ("categorical", "multicategorical"):
        found["categories"] = [column.vocabulary[code] for code in np.unique(values[values >= 0])]
    elif column.stype == "timestamp":
        known = values[values != NO_TIME]
        found["first"] = int(known.min()) if len(known) else 0
    elif column.stype == "embedding":
        found["dim"] = int(values.shape[1])
    elif column.vectors is not None:
        found["dim"] = int(column.vectors.shape[1])
    return found


class PositionEncoding(nn.Module):
    """Sines and cosines of a number at C / 2 geometric frequencies from 1 down to 1e-4, as in PyG.

    Args:
        channels: C, even.
    """

    frequencies: Tensor

    def __init__(self, channels: int):
        super().__init__()
        if channels < 2 or channels % 2:
            raise ValueError(f"channels must be even and at least 2, got {channels}")
        powers = torch.linspace(0, 1, channels // 2, dtype=torch.float64)
        self.register_buffer("frequencies", (1e-4**powers).float(), persistent=False)

    def forward(self, x: Float[Tensor, "n"]) -> Float[Tensor, "n channels"]:
        angles = x[:, None] * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class RelativeTimeEncoder(nn.Module):
    """The age of a row at the seed's time, in days, as a vector that is added to the row's: never the date itself.

    Args:
        channels: C, even.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.position = PositionEncoding(channels)
        self.linear = nn.Linear(channels, channels)

    def forward(self, age_in_days: Float[Tensor, "n"]) -> Float[Tensor, "n channels"]:
        return self.linear(self.position(age_in_days))


class _Numbers(nn.Module):
    """All numerical columns of a table at once."""

    mean: Tensor
    std: Tensor

    def __init__(self, columns: list[dict[str, Any]], channels: int):
        super().__init__()
        self.register_buffer("mean", torch.tensor([c["mean"] for c in columns], dtype=torch.float64))
        self.register_buffer("std", torch.tensor([c["std"] for c in columns], dtype=torch.float64))
        self.weight = nn.Parameter(torch.randn(len(columns), channels) * 0.1)
        self.bias = nn.Parameter(torch.zeros(len(columns), channels))
        self.missing = nn.Parameter(torch.randn(len(columns), channels) * 0.1)

    def forward(self, x: Float64[Tensor, "rows columns"]) -> Float[Tensor, "rows columns channels"]:
        absent = x.isnan()
        scaled = ((x - self.mean) / self.std).masked_fill(absent, 0.0).to(self.weight.dtype)
        return scaled[..., None] * self.weight + self.bias + absent[..., None].to(self.weight.dtype) * self.missing


class _Categories(nn.Module):
    def __init__(self, column: dict[str, Any], channels: int):
        super().__init__()
        self.embedding = nn.Embedding(len(column["categories"]) + 2, channels)
        nn.init.normal_(self.embedding.weight, std=0.1)
        with torch.no_grad():
            self.embedding.weight[_UNKNOWN].zero_()

    def forward(self, index: Int64[Tensor, "rows"]) -> Float[Tensor, "rows channels"]:
        return self.embedding(index)


class _CategorySets(nn.Module):
    def __init__(self, column: dict[str, Any], channels: int):
        super().__init__()
        self.embedding = nn.EmbeddingBag(len(column["categories"]) + 2, channels, mode="mean")
        nn.init.normal_(self.embedding.weight, std=0.1)

    def forward(self, index: tuple[Tensor, Tensor]) -> Float[Tensor, "rows channels"]:
        return self.embedding(*index)


class _Calendar(nn.Module):
    def __init__(self, column: dict[str, Any], channels: int):
        super().__init__()
        self.first = column["first"]
        self.years = PositionEncoding(channels)
        self.linear = nn.Linear(8 + channels, channels)
        self.missing = nn.Parameter(torch.zeros(channels))

    def forward(self, seconds: Int64[Tensor, "rows"]) -> Float[Tensor, "rows channels"]:
        absent = seconds == NO_TIME
        seconds = seconds.masked_fill(absent, self.first)
        turns = torch.from_numpy(_calendar_turns(seconds.cpu().numpy())).to(seconds.device) * (2 * math.pi)
        years = ((seconds - self.first).double() / _YEAR).to(self.missing.dtype)
        cyclic = torch.cat([turns.sin(), turns.cos()], dim=1).to(self.missing.dtype)
        out = self.linear(torch.cat([cyclic, self.years(years)], dim=1))
        return torch.where(absent[:, None], self.missing, out)


def _calendar_turns(seconds: Int64[np.ndarray, "n"]) -> Float64[np.ndarray, "n four"]:
    """How far a time is through its year, month, week and day, in [0, 1): by months, days, days and hours."""
    moment = seconds.astype("datetime64[s]")
    month, day = moment.astype("datetime64[M]"), moment.astype("datetime64[D]")
    months = month.astype(np.int64) % 12 / 12
    days = (day - month.astype("datetime64[D]")).astype(np.int64) / 31
    weekdays = (day.astype(np.int64) + 3) % 7 / 7
    hours = (moment - day.astype("datetime64[s]")).astype(np.int64) // 3600 / 24
    return np.stack([months, days, weekdays, hours], axis=1)


class _Vectors(nn.Module):
    """Given vectors of text or embeddings."""

    def __init__(self, column: dict[str, Any], channels: int):
        super().__init__()
        self.linear = nn.Linear(column["dim"], channels)

    def forward(self, vectors: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows channels"]:
        return self.linear(vectors)


_ENCODERS = {
    "categorical": _Categories, "multicategorical": _CategorySets, "timestamp": _Calendar,
    "text": _Vectors, "embedding": _Vectors,
}  # fmt: skip


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int, dropout: float | int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(channels, channels), nn.LayerNorm(channels), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(channels, channels),
        )  # fmt: skip

    def forward(self, x: Float[Tensor, "rows channels"]) -> Float[Tensor, "rows channels"]:
        return x + self.layers(x)


class RowEncoder(nn.Module):
    """The rows of one table to vectors; a table without feature columns gets one vector for all rows.

    Args:
        columns: the table's part of `graph_schema`.
        channels: C.
        num_blocks, dropout: of the residual blocks.
    """

    def __init__(
        self, columns: list[dict[str, Any]], channels: int = 128, *, num_blocks: int = 4, dropout: float | int = 0.2
    ):
        super().__init__()
        self.numbers = [c["name"] for c in columns if c["stype"] == "numerical"]
        self.others = [c["name"] for c in columns if c["stype"] != "numerical"]
        numerical = [c for c in columns if c["stype"] == "numerical"]
        self.numerical = _Numbers(numerical, channels) if numerical else None
        self.encoders = nn.ModuleList(_ENCODERS[c["stype"]](c, channels) for c in columns if c["stype"] != "numerical")
        self.constant = None if columns else nn.Parameter(torch.randn(channels) * 0.1)
        self.merge = nn.Linear(channels * max(len(columns), 1), channels)
        self.blocks = nn.Sequential(*(_ResidualBlock(channels, dropout) for _ in range(num_blocks)))

    def forward(self, rows: int, values: dict[str, Any]) -> Float[Tensor, "rows channels"]:
        """`values` holds what `HeteroEncoder` gathered for each column, for so many rows."""
        parts = []
        if self.numerical is not None:
            parts.append(self.numerical(torch.stack([values[name] for name in self.numbers], dim=1)).flatten(1))
        parts += [encoder(values[name]) for name, encoder in zip(self.others, self.encoders)]
        if self.constant is not None:
            parts = [self.constant.expand(rows, -1)]
        return self.blocks(self.merge(torch.cat(parts, dim=1)))


class HeteroEncoder(nn.Module):
    """An encoder for the rows of every table.

    Args:
        schema: of `graph_schema`; the statistics in it are used for every graph.
        channels: C.
        num_blocks, dropout: see `RowEncoder`.
    """

    encoders: Any

    def __init__(self, schema: dict[str, Any], channels: int = 128, *, num_blocks: int = 4, dropout: float | int = 0.2):
        super().__init__()
        self.columns = {name: table["columns"] for name, table in schema["tables"].items()}
        self.tables = list(self.columns)
        self.encoders = nn.ModuleList(
            RowEncoder(self.columns[name], channels, num_blocks=num_blocks, dropout=dropout) for name in self.tables
        )
        self.digest = hashlib.sha256(json.dumps(self.columns, sort_keys=True).encode()).hexdigest()

    def forward(
        self, graph: RelationalGraph, table: str, rows: Int64[Tensor, "rows"]
    ) -> Float[Tensor, "rows channels"]:
        """The vectors of some rows of a table. A row that occurs twice is encoded once.

        Raises:
            ValueError: if the graph lacks the table or one of its columns.
        """
        if not len(rows):
            return self.encoders[0].merge.weight.new_zeros(0, self.encoders[0].merge.out_features)
        if table not in self.columns or table not in graph.columns:
            raise ValueError(f"the encoder was made for the tables {', '.join(self.tables)}, the graph gives {table!r}")
        distinct, place = torch.unique(rows, return_inverse=True)
        index, device = distinct.cpu().numpy(), rows.device
        by_name = {column.name: column for column in graph.columns[table]}
        values = {}
        for wanted in self.columns[table]:
            column = by_name.get(wanted["name"])
            if column is None or column.stype != wanted["stype"]:
                raise ValueError(f"the graph has no {wanted['stype']} column {table}.{wanted['name']}")
            values[wanted["name"]] = self._gather(graph, table, wanted, column, index, device)
        return self.encoders[self.tables.index(table)](len(index), values)[place]

    def _gather(
        self,
        graph: RelationalGraph,
        table: str,
        wanted: dict[str, Any],
        column: Column,
        index: np.ndarray,
        device: torch.device,
    ) -> Any:
        if column.stype in ("numerical", "timestamp", "embedding"):
            return torch.from_numpy(column.values[index]).to(device)
        if column.stype == "text":
            codes = column.values[index]
            assert column.vectors is not None
            vectors = np.zeros((len(codes), column.vectors.shape[1]), dtype=np.float32)
            vectors[codes >= 0] = column.vectors[codes[codes >= 0]]
            return torch.from_numpy(vectors).to(device)
        lookup = self._lookup(graph, table, wanted, column)
        if column.stype == "categorical":
            return torch.from_numpy(lookup[column.values[index]]).to(device)
        assert column.offsets is not None
        starts, counts = column.offsets[index], column.offsets[index + 1] - column.offsets[index]
        inside = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        members = lookup[column.values[np.repeat(starts, counts) + inside]]
        return torch.from_numpy(members).to(device), torch.from_numpy(np.cumsum(counts) - counts).to(device)

    def _lookup(self, graph: RelationalGraph, table: str, wanted: dict[str, Any], column: Column) -> np.ndarray:
        """The graph's vocabulary in this encoder's indices; the last entry, for code -1, is the missing value."""
        key = (self.digest, table, column.name)
        if key not in graph.cache:
            known = {word: place + 2 for place, word in enumerate(wanted["categories"])}
            found = [known.get(word, _UNKNOWN) for word in column.vocabulary]
            graph.cache[key] = np.array([*found, _MISSING], dtype=np.int64)
        return graph.cache[key]
