"""A question about the entities of a database, put in SQL: who, until when, and what is the answer?

Fey et al., arXiv:2312.04615, section 2.2, with the splits of the benchmark's code. The SQL runs once for every cut-off
t with `:cutoff` = t and `:horizon` = t + timedelta and gives (entity, target), one row an entity that takes part. A
label speaks of what happens in (t, t + timedelta]: a row at exactly t is input, one at exactly t + timedelta is label.

    train   val - timedelta, val - 2 timedelta, ... back to the first row: no label reaches beyond val
    val     val, val + timedelta, ... as long as the window ends by test
    test    test, test + timedelta, ... as long as the window ends by the last row
"""

import logging
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from etude.data.kinds_relational import RelationalDatabase
from etude.data.relational_columns import to_seconds
from etude.graphs.relational.metrics import BEST, rank_metrics, task_metrics

if TYPE_CHECKING:
    import pandas

__all__ = ["SPLITS", "EntityTask"]

SPLITS = ("train", "val", "test")
_MIN_CUTOFFS = 3
# String literals, quoted names, comments and :: casts are skipped; what remains of ":name" is a parameter.
_TOKENS = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|--[^\n]*|/\*.*?\*/|::|:([A-Za-z_]\w*)", re.DOTALL)
_log = logging.getLogger(__name__)


class EntityTask:
    """A predictive task over a database.

        task = EntityTask(
            db, "driver", sql="SELECT driver_id, min(position_number) <= 3 FROM qualifying_result "
            "WHERE date > :cutoff AND date <= :horizon GROUP BY driver_id",
            timedelta="30d", kind="binary", val_timestamp="2005-01-01", test_timestamp="2010-01-01",
        )
        task.table("train")          # entity, time, target

    The SQL is DuckDB's and runs over the database in memory, which it can only read; files and the network are out of
    its reach. Cut-offs are bound, never pasted in.

    Args:
        db: the whole database, labels' rows included.
        entity_table: the table whose primary key the first column of the SQL holds.
        sql: one SELECT that uses `:cutoff` and `:horizon` (timestamps, UTC).
        timedelta: how far ahead is predicted, such as "30d".
        kind: "binary" (0/1), "multiclass" (any values), "multilabel" (lists of 0/1), "regression" (numbers) or
            "recommendation" (rows of `target_table`: one line a pair, or lists).
        val_timestamp, test_timestamp: the first cut-offs of the two splits.
        target_table: of recommendations.
        num_eval_timestamps: at most so many cut-offs each in val and test; all if None.
        name: in tables.

    Attributes:
        dropped: cut-offs from `test_timestamp` on whose window outlasts the data, so that they have no whole label.

    Raises:
        ValueError: if the database has no times, the timestamps are not in order or lie beyond the data, fewer than 3
            training cut-offs remain, or the SQL is not one SELECT with both parameters.
    """

    def __init__(
        self,
        db: RelationalDatabase,
        entity_table: str,
        sql: str,
        timedelta: Any,
        kind: str = "binary",
        *,
        val_timestamp: Any,
        test_timestamp: Any,
        target_table: str | None = None,
        num_eval_timestamps: int | None = None,
        name: str = "task",
    ):
        import pandas as pd

        if kind not in BEST:
            raise ValueError(f"kind must be one of {', '.join(BEST)}, got {kind!r}")
        if not db[entity_table].primary_key:
            raise ValueError(f"the entity table {entity_table} has no primary key: its rows cannot be named")
        if (kind == "recommendation") != (target_table is not None):
            raise ValueError(f"target_table belongs to recommendations, got {target_table!r} for the kind {kind}")
        if target_table is not None and not db[target_table].primary_key:
            raise ValueError(f"the target table {target_table} has no primary key: its rows cannot be named")
        self.db, self.entity_table, self.kind, self.target_table, self.name = db, entity_table, kind, target_table, name
        # pandas wants days as "D".
        wanted = re.sub(r"(?<=\d)\s*d\b", "D", timedelta) if isinstance(timedelta, str) else timedelta
        self.delta = int(pd.Timedelta(wanted).total_seconds())
        if self.delta < 1:
            raise ValueError(f"timedelta must be at least a second, got {timedelta!r}")
        self.val_timestamp, self.test_timestamp = to_seconds(val_timestamp), to_seconds(test_timestamp)
        self.num_eval_timestamps = num_eval_timestamps
        self.sql = _translated(sql)
        self.first, self.last = db.time_range
        self._check_times()
        final = self.last - (self.last - self.test_timestamp) % self.delta
        self.dropped = [final] if final < self.last else []
        if self.dropped and num_eval_timestamps is None:
            _log.info("%s: the window of %s outlasts the data; it is dropped", name, _stamp(self.dropped[0]))
        self._tables: dict[str, Any] = {}
        self._connection: Any = None

    def _check_times(self) -> None:
        if self.test_timestamp - self.val_timestamp < self.delta:
            raise ValueError(
                f"test_timestamp must lie at least timedelta ({self.delta} s) after val_timestamp, "
                f"got {_stamp(self.val_timestamp)} and {_stamp(self.test_timestamp)}"
            )
        if self.test_timestamp + self.delta > self.last:
            raise ValueError(
                f"the data end at {_stamp(self.last)}: no window of {self.delta} s after test_timestamp "
                f"{_stamp(self.test_timestamp)} is complete"
            )
        cutoffs = len(self.cutoffs("train"))
        if cutoffs < _MIN_CUTOFFS:
            raise ValueError(
                f"only {cutoffs} training cut-offs fit between the first row, {_stamp(self.first)}, and val_timestamp "
                f"{_stamp(self.val_timestamp)}; at least {_MIN_CUTOFFS} are needed"
            )

    def cutoffs(self, split: str) -> list[int]:
        """The cut-offs of a split, in seconds UTC, in order."""
        if split == "train":
            return list(range(self.val_timestamp - self.delta, self.first - 1, -self.delta))[::-1]
        if split not in ("val", "test"):
            raise ValueError(f"split must be train, val or test, got {split!r}")
        start = self.val_timestamp if split == "val" else self.test_timestamp
        end = (self.test_timestamp if split == "val" else self.last) - self.delta
        return list(range(start, end + 1, self.delta))[: self.num_eval_timestamps]

    def table(self, split: str) -> "pandas.DataFrame":
        """The training table of a split: entity, time (datetime64, UTC) and target, sorted by time and entity.

        Raises:
            ValueError: if the SQL fails, does not give two columns, gives an entity twice at one cut-off, targets that
                do not fit the kind, or no rows at all.
        """
        if split not in self._tables:
            cutoffs = self.cutoffs(split)
            lines = [line for cutoff in cutoffs for line in self._at(cutoff)]
            if not lines:
                raise ValueError(f"the SQL of {self.name} gives no row at any of the {len(cutoffs)} {split} cut-offs")
            self._tables[split] = self._checked(lines)
        return self._tables[split]

    def rows(self, split: str) -> tuple[np.ndarray, np.ndarray, Any]:
        """The same as arrays: entity rows int64 (n,), times int64 (n,) in seconds, and targets.

        Targets are float64 (n,), for multiclass an object array (n,), for multilabel float64 (n, labels), for
        recommendations a list of int64 arrays of rows of the target table.
        """
        frame = self.table(split)
        entity = self.db.index_of(self.entity_table, frame["entity"])
        time = frame["time"].to_numpy(dtype="datetime64[s]").astype(np.int64)
        if self.kind == "recommendation":
            assert self.target_table is not None
            return entity, time, [self.db.index_of(self.target_table, wanted) for wanted in frame["target"]]
        if self.kind == "multilabel":
            return entity, time, np.asarray(frame["target"].tolist(), dtype=np.float64)
        if self.kind == "multiclass":
            return entity, time, frame["target"].to_numpy(dtype=object)
        return entity, time, frame["target"].to_numpy(dtype=np.float64)

    def evaluate(self, prediction: Any, split: str) -> dict[str, float]:
        """Metrics of predictions for the rows of a split, pooled over its cut-offs.

        Args:
            prediction: as `task_metrics` takes them; for multiclass, columns in the order of the sorted classes of the
                training split; for recommendations, (n, k) identifiers of target rows, best first.
            split: whose rows.
        """
        _, _, target = self.rows(split)
        if self.kind == "recommendation":
            assert self.target_table is not None
            given = [self.db.index_of(self.target_table, line) for line in prediction]
            if len(given) != len(target):
                raise ValueError(f"{split} has {len(target)} rows, got {len(given)} lists of recommendations")
            hits = np.stack([np.isin(line, wanted) for line, wanted in zip(given, target)])
            return rank_metrics(hits, np.array([len(wanted) for wanted in target]))
        if self.kind == "multiclass":
            classes = {value: place for place, value in enumerate(self.classes())}
            target = np.array([classes.get(value, -1) for value in target])
        return task_metrics(self.kind, target, prediction)

    def classes(self) -> list[Any]:
        """The classes of the training split, sorted."""
        return sorted(set(self.table("train")["target"]))

    def inputs(self, full: bool = False) -> RelationalDatabase:
        """The database as a user may see it before the test: up to `test_timestamp`, unless asked for in full."""
        return self.db if full else self.db.upto(self.test_timestamp)

    def audit(self, cutoffs: int = 3) -> None:
        """Runs the SQL at some cut-offs over the data up to the horizon only: the labels must be the same.

        Raises:
            ValueError: if a label depends on what comes after its window.
        """
        every = [cutoff for split in SPLITS for cutoff in self.cutoffs(split)]
        for cutoff in every[:: max(len(every) // cutoffs, 1)]:
            short = _run(_connect(self.db.upto(cutoff + self.delta)), self.sql, cutoff, self.delta, self.name)
            if sorted(map(repr, self._at(cutoff))) != sorted(map(repr, short)):
                raise ValueError(f"{self.name}: the labels at {_stamp(cutoff)} depend on rows after their horizon")

    def _at(self, cutoff: int) -> list[tuple[Any, Any, Any]]:
        if self._connection is None:
            self._connection = _connect(self.db)
        return _run(self._connection, self.sql, cutoff, self.delta, self.name)

    def _checked(self, lines: list[tuple[Any, Any, Any]]) -> "pandas.DataFrame":
        import pandas as pd

        entity, time, target = zip(*lines)
        frame = pd.DataFrame({"entity": list(entity), "time": np.array(time)})
        frame["target"] = pd.Series(list(target), dtype=object)
        frame = frame.sort_values(["time", "entity"], kind="stable", ignore_index=True)
        if frame["entity"].isna().any():
            raise ValueError(f"the SQL of {self.name} gives {int(frame['entity'].isna().sum())} rows without an entity")
        missing = frame["target"].isna()
        if missing.any():
            _log.warning("%s: %d rows without a target are left out", self.name, int(missing.sum()))
            frame = frame[~missing].reset_index(drop=True)
        if self.kind == "recommendation":
            return self._lists(frame)
        twice = frame.duplicated(["entity", "time"])
        if twice.any():
            line = frame[twice].iloc[0]
            raise ValueError(f"the SQL of {self.name} gives the entity {line['entity']} twice at {line['time']}")
        if self.kind in ("binary", "regression"):
            frame["target"] = frame["target"].astype(np.float64)
        if self.kind == "binary" and not frame["target"].isin([0, 1]).all():
            wrong = frame.loc[~frame["target"].isin([0, 1]), "target"].iloc[0]
            raise ValueError(f"the targets of a binary task must be 0 or 1, the SQL of {self.name} gives {wrong:g}")
        if self.kind == "regression" and not np.isfinite(frame["target"]).all():
            raise ValueError(f"the SQL of {self.name} gives infinite targets")
        if self.kind == "multilabel" and frame["target"].map(len).nunique() > 1:
            raise ValueError(f"the lists of {self.name} differ in length: {sorted(frame['target'].map(len).unique())}")
        return frame

    def _lists(self, frame: "pandas.DataFrame") -> "pandas.DataFrame":
        """One line an entity and cut-off, with the list of its targets."""
        frame = frame.explode("target")  # a line that holds no list stays as it is
        frame = frame.drop_duplicates()
        return (
            frame.groupby(["time", "entity"], sort=True)["target"].agg(list).reset_index()[["entity", "time", "target"]]
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_connection": None}

    def __repr__(self) -> str:
        return f"EntityTask({self.name!r}, {self.kind}, {self.entity_table}, {self.delta // 86_400} days ahead)"


def _translated(sql: str) -> str:
    """`:name` as DuckDB's `$name`.

    Raises:
        ValueError: for other parameters than cutoff and horizon, or if one of them is missing.
    """
    names: set[str] = set()

    def turned(match: re.Match[str]) -> str:
        if match.group(1) is None:
            return match.group(0)
        names.add(match.group(1))
        return f"${match.group(1)}"

    turned_sql = _TOKENS.sub(turned, sql)
    if names != {"cutoff", "horizon"}:
        raise ValueError(
            f"the SQL must use exactly the parameters :cutoff and :horizon, which bound the window of a label; "
            f"it uses {sorted(names) or 'none'}"
        )
    return turned_sql


def _connect(db: RelationalDatabase) -> Any:
    try:
        import duckdb
    except ImportError as error:
        raise ImportError('tasks run their SQL in DuckDB: pip install "etude[graphs]"') from error
    connection = duckdb.connect(":memory:", config={"python_enable_replacements": "false", "threads": "1"})
    connection.execute("SET TimeZone = 'UTC'")
    for place, (name, table) in enumerate(db.tables.items()):
        frame = table.frame[[c for c in table.frame.columns if not _binary(table.frame[c])]]
        connection.register(f"etude_{place}", frame)
        quoted = '"' + name.replace('"', '""') + '"'
        connection.execute(f"CREATE TABLE {quoted} AS SELECT * FROM etude_{place}")
        connection.unregister(f"etude_{place}")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def _binary(values: "pandas.Series") -> bool:
    if values.dtype != object:
        return False
    known = values.dropna()
    return bool(len(known)) and isinstance(known.iloc[0], bytes | bytearray | memoryview)


def _run(connection: Any, sql: str, cutoff: int, delta: int, name: str) -> list[tuple[Any, Any, Any]]:
    """(entity, cut-off, target) of one cut-off."""
    import duckdb

    moments = {"cutoff": _stamp(cutoff).item(), "horizon": _stamp(cutoff + delta).item()}
    try:
        statements = connection.extract_statements(sql)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise ValueError(f"the SQL of {name} must be one SELECT, got {len(statements)} statement(s)")
        result = connection.execute(statements[0], moments)
        names = [column[0] for column in result.description]
        if len(names) != 2:
            raise ValueError(f"the SQL of {name} must give two columns, entity and target, got {names}")
        lines = result.fetchall()
    except duckdb.Error as error:
        raise ValueError(f"the SQL of {name} fails: {error}") from None
    return [(entity, _stamp(cutoff), target) for entity, target in lines]


def _stamp(seconds: int) -> np.datetime64:
    return np.datetime64(int(seconds), "s")
