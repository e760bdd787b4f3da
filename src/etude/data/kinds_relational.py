"""A relational database in memory: tables, their keys and their times, checked once, when it is made.

Whatever it was read from, a database comes out the same: columns have one of few types, rows are sorted by time and
then by primary key, every foreign key is resolved to the row that it names, and times are whole seconds UTC. A row
becomes visible at its time: fractions of a second are rounded up, those of a cut-off down, so that no row is ever seen
too early.

    db = RelationalDatabase.from_frames(
        {"customer": customers, "order": orders},
        primary_keys={"customer": "id"},
        foreign_keys={"order": {"customer_id": "customer"}},
        time_columns={"order": "placed_at"},
    )
    db.upto("2024-06-30")        # what was known then

pandas is imported when a database is made; torch is not needed.
"""

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from etude.data.relational_columns import canonical_frame, parse_time_column, seconds_of, to_seconds

if TYPE_CHECKING:
    import pandas

__all__ = ["NEVER", "ForeignKey", "RelationalDatabase", "RelationalTable"]

NEVER = np.iinfo(np.int64).max
"""The time of a row whose time is missing: it is in no history."""

_DANGLING_SHARE = 0.05
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ForeignKey:
    """Columns that name a row of another table, or of the same.

    Args:
        columns: of the table that holds the key; several for a composite key.
        table: the parent.
        referred: the parent's columns, in the same order; its primary key if empty.
    """

    columns: tuple[str, ...]
    table: str
    referred: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return "+".join(self.columns)


@dataclass(frozen=True, eq=False)
class RelationalTable:
    """One table. Made by `RelationalDatabase`, which sorts and resolves it.

    Attributes:
        name: of the table.
        frame: the rows, all columns with their original values, in canonical types.
        primary_key: its columns; empty if the table has none (its rows count all the same).
        foreign_keys: see `ForeignKey`.
        time_column: says since when a row is known; None for a static table.
        times: int64 (rows,), that column in seconds UTC, `NEVER` where it is missing; None for a static table.
        parents: for the name of each foreign key, int64 (rows,): the parent's row, or -1 where there is none.
        dangling: for the name of each foreign key, how many values name no row.
    """

    name: str
    frame: "pandas.DataFrame"
    primary_key: tuple[str, ...] = ()
    foreign_keys: tuple[ForeignKey, ...] = ()
    time_column: str | None = None
    times: np.ndarray | None = None
    parents: Mapping[str, np.ndarray] = field(default_factory=dict)
    dangling: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def key_columns(self) -> frozenset[str]:
        """The columns of the primary and foreign keys: links, not features."""
        return frozenset(self.primary_key).union(*(key.columns for key in self.foreign_keys))

    @property
    def feature_columns(self) -> tuple[str, ...]:
        """The columns that are neither a key nor the time."""
        return tuple(c for c in self.frame.columns if c not in self.key_columns and c != self.time_column)


@dataclass(frozen=True, eq=False)
class RelationalDatabase:
    """Tables linked by keys.

    Args:
        tables: by name, sorted and resolved; use `from_frames` or the readers of `etude.data.relational`.
        name: what the database is called in tables; never holds a password.
    """

    tables: Mapping[str, RelationalTable]
    name: str = "database"

    def __post_init__(self) -> None:
        if not self.tables:
            raise ValueError("a database needs at least one table, got none")
        for name, table in self.tables.items():
            if table.name != name:
                raise ValueError(f"the table under the name {name!r} is called {table.name!r}")
            for key in table.foreign_keys:
                rows = table.parents.get(key.name)
                if rows is None or len(rows) != len(table):
                    raise ValueError(f"{name}.{key.name} is not resolved; make databases with from_frames")
                if len(rows) and not -1 <= int(rows.min()) <= int(rows.max()) < len(self.tables[key.table]):
                    raise ValueError(f"{name}.{key.name} names rows outside 0..{len(self.tables[key.table]) - 1}")

    def __getitem__(self, name: str) -> RelationalTable:
        if name not in self.tables:
            raise KeyError(f"no table {name!r}; there are {', '.join(self.tables)}")
        return self.tables[name]

    @classmethod
    def from_frames(
        cls,
        frames: Mapping[str, Any],
        *,
        primary_keys: Mapping[str, str | Sequence[str] | None] | None = None,
        foreign_keys: Mapping[str, Mapping[Any, Any] | Sequence[ForeignKey]] | None = None,
        time_columns: Mapping[str, str | None] | None = None,
        name: str = "database",
    ) -> "RelationalDatabase":
        """A database of data frames (pandas) or Arrow tables.

        Args:
            frames: table name -> rows. The frames are not changed.
            primary_keys: table -> column, or columns of a composite key.
            foreign_keys: table -> {column: parent table}; a composite key has a tuple of columns on the left, and
                columns other than the parent's primary key stand as `(table, columns)` on the right.
            time_columns: table -> the column that says since when a row is known.
            name: what the database is called.

        Raises:
            ValueError: for unknown tables or columns, duplicate or missing primary keys, keys of different types,
                columns of mixed types, times that are no ISO dates or mix time zones. The message holds the value.
            TypeError: for a time column of numbers.
        """
        primary, foreign, times = dict(primary_keys or {}), dict(foreign_keys or {}), dict(time_columns or {})
        for what, named in (("primary_keys", primary), ("foreign_keys", foreign), ("time_columns", times)):
            unknown = sorted(set(named) - set(frames))
            if unknown:
                raise ValueError(f"{what} names the tables {unknown}, which are not there; there are {list(frames)}")
        tables: dict[str, RelationalTable] = {}
        for table in sorted(frames):
            key = primary.get(table)
            declared = RelationalTable(
                name=table,
                frame=canonical_frame(frames[table], table),
                primary_key=() if key is None else (key,) if isinstance(key, str) else tuple(key),
                foreign_keys=_foreign_keys(foreign.get(table, {})),
                time_column=times.get(table),
            )
            _check_columns(declared, frames)
            tables[table] = _sorted(declared)
        resolved = {table: _resolved(tables[table], tables) for table in tables}
        _warn_of_dangling(resolved)
        return cls(resolved, name)

    def upto(self, time: Any) -> "RelationalDatabase":
        """The rows whose time is at most `time`, and all rows of static tables, in the same order.

        Links to rows that are not known yet become missing links.
        """
        cutoff = to_seconds(time)
        counts = {
            name: len(table) if table.times is None else int(np.searchsorted(table.times, cutoff, side="right"))
            for name, table in self.tables.items()
        }
        cut: dict[str, RelationalTable] = {}
        for name, table in self.tables.items():
            n = counts[name]
            parents = {
                key.name: np.where(table.parents[key.name][:n] < counts[key.table], table.parents[key.name][:n], -1)
                for key in table.foreign_keys
            }
            cut[name] = RelationalTable(
                name, table.frame.iloc[:n], table.primary_key, table.foreign_keys, table.time_column,
                None if table.times is None else table.times[:n], parents, table.dangling,
            )  # fmt: skip
        return RelationalDatabase(cut, self.name)

    @property
    def time_range(self) -> tuple[int, int]:
        """First and last time in the database, in seconds UTC.

        Raises:
            ValueError: if no table has times.
        """
        known = [t.times[t.times != NEVER] for t in self.tables.values() if t.times is not None]
        known = [times for times in known if len(times)]
        if not known:
            raise ValueError(f"{self.name} has no table with times: nothing can be split at a time; give time_columns")
        return min(int(times[0]) for times in known), max(int(times[-1]) for times in known)

    def index_of(self, table: str, ids: Any) -> np.ndarray:
        """The rows, int64, that hold these values of the primary key (tuples for a composite key).

        Raises:
            KeyError: if a value is not there; the message holds it.
        """
        if not self[table].primary_key:
            raise ValueError(f"{table} has no primary key: its rows cannot be named")
        wanted = list(ids)
        rows = _key_index(self[table].frame, self[table].primary_key).get_indexer(_keys_like(wanted))
        if (rows < 0).any():
            missing = [wanted[i] for i in np.flatnonzero(rows < 0)[:3]]
            raise KeyError(f"{table} has no row with the key {missing[0]!r} ({int((rows < 0).sum())} unknown in all)")
        return rows.astype(np.int64)

    def ids_of(self, table: str, rows: np.ndarray) -> list[Any]:
        """The primary key's values of some rows; the inverse of `index_of`."""
        return _key_index(self[table].frame, self[table].primary_key)[np.asarray(rows, dtype=np.int64)].tolist()

    def validate(self) -> list[str]:
        """A line for everything that is allowed but worth knowing; what is not allowed never gets in."""
        lines = []
        for name, table in self.tables.items():
            if not len(table):
                lines.append(f"{name} has no rows")
            if not table.primary_key:
                lines.append(f"{name} has no primary key")
            lines += [f"{name}.{key}: {count} values name no row" for key, count in table.dangling.items() if count]
            if table.times is not None and (missing := int((table.times == NEVER).sum())):
                lines.append(f"{name}.{table.time_column}: {missing} rows have no time and are in no history")
        return lines

    def schema(self) -> "pandas.DataFrame":
        """One line a column: table, column, dtype, role ("primary key", "time", "feature" or "-> parent table")."""
        import pandas as pd

        lines = []
        for name, table in self.tables.items():
            for column in table.frame.columns:
                links = [f"-> {key.table}" for key in table.foreign_keys if column in key.columns]
                own = ["primary key"] if column in table.primary_key else []
                time = ["time"] if column == table.time_column else []
                role = ", ".join(own + links + time) or "feature"
                lines.append((name, column, str(table.frame[column].dtype), role))
        return pd.DataFrame(lines, columns=["table", "column", "dtype", "role"])

    def __repr__(self) -> str:
        rows = ", ".join(f"{name}: {len(table)}" for name, table in self.tables.items())
        return f"RelationalDatabase({self.name!r}, {rows})"


def _foreign_keys(given: Any) -> tuple[ForeignKey, ...]:
    if not isinstance(given, Mapping):
        return tuple(given)
    keys = []
    for columns, parent in given.items():
        table, referred = (parent, ()) if isinstance(parent, str) else parent
        keys.append(
            ForeignKey(
                (columns,) if isinstance(columns, str) else tuple(columns),
                table,
                (referred,) if isinstance(referred, str) else tuple(referred),
            )
        )
    return tuple(keys)


def _check_columns(table: RelationalTable, frames: Mapping[str, Any]) -> None:
    named = [("primary key", table.primary_key), *(("foreign key", key.columns) for key in table.foreign_keys)]
    if table.time_column is not None:
        named.append(("time column", (table.time_column,)))
    for what, columns in named:
        unknown = [column for column in columns if column not in table.frame.columns]
        if unknown:
            raise ValueError(
                f"the {what} of {table.name} names the columns {unknown}; it has {', '.join(table.frame.columns)}"
            )
    for key in table.foreign_keys:
        if key.table not in frames:
            raise ValueError(f"{table.name}.{key.name} refers to {key.table!r}, which is not among {list(frames)}")
    names = [(key.name, key.table) for key in table.foreign_keys]
    if len({name for name, _ in names}) < len(names):
        raise ValueError(f"{table.name} has two foreign keys over the same columns: {names}")


def _sorted(table: RelationalTable) -> RelationalTable:
    """The table with its rows by time, then by primary key, and otherwise as they came."""
    frame, times, order = table.frame, None, list(table.primary_key)
    if table.time_column is not None:
        frame = frame.assign(**{table.time_column: parse_time_column(frame[table.time_column], table.name)})
        order = [table.time_column, *(column for column in order if column != table.time_column)]
    if order:
        frame = frame.sort_values(order, kind="stable", na_position="last")
    frame = frame.reset_index(drop=True)
    if table.time_column is not None:
        times = seconds_of(frame[table.time_column], missing=NEVER, up=True)
        if missing := int((times == NEVER).sum()):
            _log.warning("%s.%s: %d rows without a time are in no history", table.name, table.time_column, missing)
    if table.primary_key:
        _check_primary_key(table, frame)
    return RelationalTable(table.name, frame, table.primary_key, table.foreign_keys, table.time_column, times)


def _check_primary_key(table: RelationalTable, frame: "pandas.DataFrame") -> None:
    columns = list(table.primary_key)
    absent = frame[columns].isna().any(axis=1)
    if absent.any():
        raise ValueError(f"the primary key {columns} of {table.name} is missing in {int(absent.sum())} rows")
    twice = frame.duplicated(columns)
    if twice.any():
        value = frame.loc[twice, columns].iloc[0].tolist()
        raise ValueError(f"the primary key {columns} of {table.name} holds {value} twice ({int(twice.sum())} repeats)")


def _keys_like(values: Sequence[Any]) -> Any:
    import pandas as pd

    if values and isinstance(values[0], tuple | list):
        return pd.MultiIndex.from_tuples([tuple(value) for value in values])
    return pd.Index(values) if len(values) else pd.Index([], dtype=object)


def _key_index(frame: "pandas.DataFrame", columns: Sequence[str]) -> Any:
    """The values of a key as a pandas index without missing values; whole numbers are int64, text is object."""
    import pandas as pd

    parts = []
    for column in columns:
        values = frame[column]
        if pd.api.types.is_bool_dtype(values.dtype) or not pd.api.types.is_numeric_dtype(values.dtype):
            parts.append(values.astype(object))
        elif pd.api.types.is_float_dtype(values.dtype) and not bool((values == values.round()).all()):
            parts.append(values)
        else:
            parts.append(values.astype("int64"))
    return pd.Index(parts[0]) if len(parts) == 1 else pd.MultiIndex.from_arrays(parts)


def _is_text(frame: "pandas.DataFrame", column: str) -> bool:
    import pandas as pd

    return not pd.api.types.is_numeric_dtype(frame[column].dtype)


def _resolved(table: RelationalTable, tables: Mapping[str, RelationalTable]) -> RelationalTable:
    parents: dict[str, np.ndarray] = {}
    dangling: dict[str, int] = {}
    for key in table.foreign_keys:
        parent = tables[key.table]
        referred = key.referred or parent.primary_key
        where = f"{table.name}.{key.name} -> {key.table}"
        if len(referred) != len(key.columns):
            raise ValueError(f"{where}: {list(key.columns)} cannot refer to {list(referred)}")
        unknown = [column for column in referred if column not in parent.frame.columns]
        if unknown:
            raise ValueError(f"{where} refers to the unknown columns {unknown}")
        present = ~table.frame[list(key.columns)].isna().any(axis=1).to_numpy()
        rows = np.full(len(table), -1, dtype=np.int64)
        if present.any() and len(parent):
            for mine, theirs in zip(key.columns, referred):
                if _is_text(table.frame, mine) != _is_text(parent.frame, theirs):
                    kinds = table.frame[mine].dtype, parent.frame[theirs].dtype
                    raise ValueError(f"{where}: the keys have different types, {kinds[0]} and {kinds[1]}")
            named = parent.frame[list(referred)].dropna()
            index = _key_index(named, referred)
            if not index.is_unique:
                raise ValueError(f"{where} refers to {list(referred)}, whose values are not unique")
            found = index.get_indexer(_key_index(table.frame[present], key.columns))
            rows[present] = np.where(found < 0, -1, named.index.to_numpy()[found])
        parents[key.name] = rows
        dangling[key.name] = int((present & (rows < 0)).sum())
    return RelationalTable(
        table.name,
        table.frame,
        table.primary_key,
        table.foreign_keys,
        table.time_column,
        table.times,
        parents,
        dangling,
    )


def _warn_of_dangling(tables: Mapping[str, RelationalTable]) -> None:
    many = []
    for name, table in tables.items():
        for key, count in table.dangling.items():
            if count:
                _log.info("%s.%s: %d values name no row; these links are missing", name, key, count)
            if count > _DANGLING_SHARE * len(table):
                many.append(f"{name}.{key}: {count} of {len(table)}")
    if many:
        warnings.warn("foreign keys that name no row, so that links are missing: " + "; ".join(many), stacklevel=3)
