"""Relational databases from where they are: any SQLAlchemy URL, folders of CSV or Parquet, data frames.

    from etude.data import relational
    db = relational.from_url("sqlite:///shop.sqlite", time_columns={"orders": "placed_at"})
    db = relational.from_url("postgresql+psycopg://user:secret@host/shop", time_columns={"orders": "placed_at"})
    db = relational.from_files("shop/", primary_keys=..., foreign_keys=..., time_columns=...)
    db = relational.from_frames({"customers": customers, "orders": orders}, primary_keys=..., foreign_keys=...)

All of them give the same `RelationalDatabase` for the same data. A server is only ever read: one read-only transaction,
so that the tables agree with each other. Names are quoted by SQLAlchemy and DuckDB, values are bound; neither is ever
pasted into SQL. Passwords stand in no name, log line or error.
"""

import datetime
import logging
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etude.data.catalogue import locate
from etude.data.kinds_relational import ForeignKey, RelationalDatabase
from etude.data.relational_columns import canonical_frame, parse_time_column, to_seconds

if TYPE_CHECKING:
    import pandas

__all__ = ["f1db", "from_files", "from_frames", "from_url", "infer_keys"]

_ROWS_AT_A_TIME = 50_000
_SECRETS = ("password", "passwd", "pwd", "token", "secret", "sslpassword", "passfile")
_CONTAINED = 0.99
_DAY = 86_400
_log = logging.getLogger(__name__)

from_frames = RelationalDatabase.from_frames


def from_url(
    url: str,
    *,
    time_columns: Mapping[str, str | None] | None = None,
    tables: Sequence[str] | None = None,
    columns: Mapping[str, Sequence[str]] | None = None,
    primary_keys: Mapping[str, str | Sequence[str] | None] | None = None,
    foreign_keys: Mapping[str, Mapping[Any, Any]] | None = None,
    upto: Any = None,
    schema: str | None = None,
    name: str | None = None,
) -> RelationalDatabase:
    """Reads a database through SQLAlchemy; keys and types come from its schema.

    Args:
        url: of any SQLAlchemy dialect whose driver is installed, such as `sqlite:///file.sqlite` or
            `postgresql+psycopg://user:password@host/name`.
        time_columns: table -> the column that says since when a row is known.
        tables: which to read; all if None. Keys to tables that are not read are left out.
        columns: table -> the columns to read; keys and times are read in any case.
        primary_keys, foreign_keys: in place of what the schema declares for these tables, as in `from_frames`.
        upto: read only rows with a time up to this one; the server does the filtering.
        schema: of the server, such as "public"; its default if None.
        name: what the database is called; the URL without its password if None.

    Raises:
        FileNotFoundError: if there is no such SQLite file: none is ever made.
        ConnectionError: if the server cannot be reached or read; the message has the password masked.
        ImportError: if SQLAlchemy or the driver is missing.
        ValueError: for an unknown table or column, or values that do not fit; see `RelationalDatabase.from_frames`.
    """
    sa = _sqlalchemy()
    try:
        address = sa.make_url(url)
    except Exception:
        raise ValueError("the URL cannot be parsed; expected dialect://user:password@host/name") from None
    shown, hide = _masking(address)
    frames: dict[str, Any] = {}
    try:
        with _read_only(sa, address) as connection:
            metadata = sa.MetaData()
            metadata.reflect(
                connection, schema=schema, only=None if tables is None else _only(tables, schema, connection)
            )
            found = {table.name: table for table in metadata.tables.values() if tables is None or table.name in tables}
            if not found:
                raise ValueError(f"{shown} holds no tables")
            chosen = _chosen(found, columns or {}, time_columns or {}, primary_keys or {}, foreign_keys or {})
            for table, wanted in chosen.items():
                time = (time_columns or {}).get(table)
                frames[table] = _read(sa, connection, found[table], wanted, time, upto)
                _log.info("%s: read %d rows of %s", shown, len(frames[table]), table)
    except sa.exc.NoSuchModuleError as error:
        raise ImportError(f"SQLAlchemy has no dialect for {shown}: {error}") from None
    except ModuleNotFoundError as error:
        raise ImportError(f"the driver of {shown} is not installed: {error}") from None
    except sa.exc.SQLAlchemyError as error:
        raise ConnectionError(f"{shown} cannot be read: {hide(str(error))}") from None
    primary, foreign = _declared(found, frames)
    db = from_frames(
        frames,
        primary_keys={**primary, **(primary_keys or {})},
        foreign_keys={**foreign, **(foreign_keys or {})},
        time_columns=time_columns,
        name=shown if name is None else name,
    )
    return db if upto is None else db.upto(upto)


def f1db() -> RelationalDatabase:
    """Formula 1, 1950-2026: 12 tables, 27,533 race results, declared keys (F1DB, CC BY 4.0).

    Raises:
        FileNotFoundError: if the set is not on this machine; the message says what to place where.
    """
    dated = ("race", "race_result", "qualifying_result", "driver_standing", "constructor_standing", "pit_stop")
    path = locate("f1db") / "f1db.sqlite"
    return from_url(f"sqlite:///{path}", time_columns=dict.fromkeys(dated, "date"), name="f1db")


def _sqlalchemy() -> Any:
    try:
        import sqlalchemy
    except ImportError as error:
        raise ImportError('databases are read through SQLAlchemy: pip install "etude[graphs]"') from error
    return sqlalchemy


def _masking(address: Any) -> tuple[str, Any]:
    """The URL without its secrets, and a function that takes them out of a text."""
    secrets = [str(address.password)] if address.password else []
    query = {}
    for key, value in address.query.items():
        secret = key.lower() in _SECRETS
        query[key] = "***" if secret else value
        secrets += ([value] if isinstance(value, str) else list(value)) if secret else []

    def hide(text: str) -> str:
        for secret in sorted(secrets, key=len, reverse=True):
            text = text.replace(secret, "***")
        return text

    return address.set(query=query).render_as_string(hide_password=True), hide


@contextmanager
def _read_only(sa: Any, address: Any) -> Iterator[Any]:
    """A connection in one read-only transaction that sees one state of the database."""
    dialect = address.get_backend_name()
    if dialect == "sqlite":
        path = address.database
        if not path or not Path(path).is_file():
            raise FileNotFoundError(f"there is no SQLite file at {path}")
        with open(path, "rb") as file:
            if file.read(16) not in (b"SQLite format 3\0", b""):
                raise ValueError(f"{path} is no SQLite database")
        uri = f"{Path(path).resolve().as_uri()}?mode=ro"
        # isolation_level=None leaves BEGIN to us: the driver's own would come too late for a common state.
        engine = sa.create_engine(
            "sqlite://",
            creator=lambda: sqlite3.connect(uri, uri=True, isolation_level=None),
            poolclass=sa.pool.NullPool,
        )
    else:
        engine = sa.create_engine(address, poolclass=sa.pool.NullPool, hide_parameters=True)
    try:
        with engine.connect() as connection:
            if dialect == "postgresql":
                connection = connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
                connection.exec_driver_sql("SET TIME ZONE 'UTC'")
            elif dialect in ("mysql", "mariadb"):
                connection.exec_driver_sql("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
                connection.commit()
                connection.exec_driver_sql("SET time_zone = '+00:00'")
            elif dialect == "sqlite":
                connection.exec_driver_sql("PRAGMA query_only = ON")
                connection.exec_driver_sql("BEGIN DEFERRED")
            yield connection
            connection.rollback()
    finally:
        engine.dispose()


def _only(tables: Sequence[str], schema: str | None, connection: Any) -> list[str]:
    known = _sqlalchemy().inspect(connection).get_table_names(schema=schema)
    unknown = [table for table in tables if table not in known]
    if unknown:
        raise ValueError(f"there is no table {unknown[0]!r}; there are {', '.join(known)}")
    return list(tables)


def _chosen(
    found: Mapping[str, Any],
    columns: Mapping[str, Sequence[str]],
    times: Mapping[str, str | None],
    primary: Mapping[str, Any],
    foreign: Mapping[str, Mapping[Any, Any]],
) -> dict[str, list[str]]:
    """The columns to read of each table, in the schema's order."""
    for what, named in (
        ("columns", columns),
        ("time_columns", times),
        ("primary_keys", primary),
        ("foreign_keys", foreign),
    ):
        unknown = sorted(set(named) - set(found))
        if unknown:
            raise ValueError(f"{what} names the tables {unknown}; there are {', '.join(found)}")
    chosen = {}
    for name, table in found.items():
        known = [column.name for column in table.columns]
        wanted = set(columns.get(name, known))
        time = times.get(name)
        wanted |= {time} if time is not None else set()
        wanted |= {column.name for column in table.primary_key}
        wanted |= {column.name for key in table.foreign_key_constraints for column in key.columns}
        unknown = sorted(wanted - set(known))
        if unknown:
            raise ValueError(f"{name} has no column {unknown[0]!r}; it has {', '.join(known)}")
        chosen[name] = [column for column in known if column in wanted]
    return chosen


def _read(sa: Any, connection: Any, table: Any, wanted: Sequence[str], time: str | None, upto: Any) -> Any:
    import pandas as pd

    text_dates = connection.dialect.name == "sqlite"
    dated = [c for c in wanted if isinstance(table.c[c].type, sa.types.Date | sa.types.DateTime)]
    # SQLite stores dates as text of any form: it is read as it stands and parsed below.
    select = [
        sa.type_coerce(table.c[c], sa.types.String).label(c) if text_dates and c in dated else table.c[c]
        for c in wanted
    ]
    query = sa.select(*select)
    if time is not None and upto is not None:
        query = query.where(_not_after(sa, table.c[time], to_seconds(upto), text_dates))
    result = connection.execution_options(stream_results=True, yield_per=_ROWS_AT_A_TIME).execute(query)
    parts = [
        pd.DataFrame({c: pd.Series(list(v), dtype=object) for c, v in zip(wanted, zip(*rows))})
        for rows in result.partitions()
    ]
    frame = (
        pd.concat(parts, ignore_index=True) if parts else pd.DataFrame({c: pd.Series([], dtype=object) for c in wanted})
    )
    typed = {c: _typed(sa, frame[c], table.c[c], f"{table.name}.{c}") for c in wanted}
    if text_dates:
        for c in dated:
            wrong = frame[c].map(lambda value: value is not None and not isinstance(value, str)).astype(bool)
            if wrong.any():
                value = frame.loc[wrong, c].iloc[0]
                raise ValueError(
                    f"{table.name}.{c} is declared as a date and holds {value!r}, which is no ISO 8601 text"
                )
            typed[c] = parse_time_column(frame[c].astype("string"), table.name)
    return pd.DataFrame(typed)


def _typed(sa: Any, values: "pandas.Series", column: Any, where: str) -> "pandas.Series":
    """The values in the type that the schema declares, so that an empty column has one, too."""
    declared = column.type
    dtype = None
    if isinstance(declared, sa.types.Boolean):
        dtype = "boolean"
    elif isinstance(declared, sa.types.Integer):
        dtype = "Int64"
    elif isinstance(declared, sa.types.Numeric):
        dtype = "Float64"
    elif isinstance(declared, sa.types.String):
        dtype = "string"
    if dtype is None:
        return values
    if dtype == "string":
        kinds = values.map(lambda value: value is None or isinstance(value, str)).astype(bool)
        return values.astype("string") if kinds.all() else values.map(str, na_action="ignore").astype("string")
    wrong = values.map(lambda value: isinstance(value, str | bytes)).astype(bool)
    if wrong.any():
        raise ValueError(f"{where} is declared as {declared} and holds {values[wrong].iloc[0]!r}")
    if dtype == "Int64" and bool(values.map(lambda value: isinstance(value, float) and value % 1 != 0).any()):
        dtype = "Float64"  # SQLite lets an integer column hold fractions
    return values.map(float, na_action="ignore").astype("float64") if dtype == "Float64" else values.astype(dtype)


def _not_after(sa: Any, column: Any, cutoff: int, text_dates: bool) -> Any:
    import pandas as pd

    if text_dates:
        # By day, one more than needed for the sake of zones; the exact comparison follows on the parsed times.
        day = pd.Timestamp(cutoff + _DAY, unit="s").strftime("%Y-%m-%d")
        return sa.func.substr(sa.type_coerce(column, sa.types.String), 1, 10) <= day
    last = pd.Timestamp(cutoff, unit="s").to_pydatetime()
    if getattr(column.type, "timezone", False):
        last = last.replace(tzinfo=datetime.UTC)
    return column <= (last.date() if isinstance(column.type, sa.types.Date) else last)


def _declared(found: Mapping[str, Any], frames: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keys of the schema, without those to tables that were not read."""
    primary = {name: [c.name for c in table.primary_key] or None for name, table in found.items()}
    foreign: dict[str, Any] = {}
    for name, table in found.items():
        keys = []
        order = {column.name: i for i, column in enumerate(table.columns)}
        for constraint in table.foreign_key_constraints:
            parent = constraint.elements[0].target_fullname.rsplit(".", 1)[0].rsplit(".", 1)[-1]
            parent = constraint.referred_table.name if parent in frames else parent
            if parent in frames:
                referred = tuple(element.column.name for element in constraint.elements)
                keys.append(ForeignKey(tuple(c.name for c in constraint.columns), parent, referred))
            else:
                _log.info("%s: the key to %s is left out, as that table is not read", name, parent)
        foreign[name] = tuple(sorted(keys, key=lambda key: [order[c] for c in key.columns]))
    return primary, foreign


def from_files(
    path: str | os.PathLike,
    *,
    primary_keys: Mapping[str, str | Sequence[str] | None] | None = None,
    foreign_keys: Mapping[str, Mapping[Any, Any]] | None = None,
    time_columns: Mapping[str, str | None] | None = None,
    tables: Sequence[str] | None = None,
    columns: Mapping[str, Sequence[str]] | None = None,
    types: Mapping[str, Mapping[str, str]] | None = None,
    name: str | None = None,
) -> RelationalDatabase:
    """Reads a folder with one `.csv`, `.tsv` or `.parquet` file a table through DuckDB.

    Files declare no keys: give them, or look at what `infer_keys` proposes and pass on what is right.

    Args:
        path: the folder; the name of a file without its ending is the name of the table.
        primary_keys, foreign_keys, time_columns: as in `RelationalDatabase.from_frames`.
        tables, columns: what to read; everything if None.
        types: table -> {column: DuckDB type} for CSV columns that sniffing would read otherwise, such as the
            identifier "007": `{"agent": {"id": "VARCHAR"}}`.
        name: what the database is called; the name of the folder if None.

    Raises:
        FileNotFoundError: if the folder or its tables are not there.
        ValueError: if two files bear the name of one table; and what `from_frames` raises.
        ImportError: if DuckDB is missing.
    """
    try:
        import duckdb
    except ImportError as error:
        raise ImportError('files are read through DuckDB: pip install "etude[graphs]"') from error
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder at {folder}; a folder of .csv, .tsv or .parquet files is expected")
    files: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in (".csv", ".tsv", ".parquet"):
            if file.stem in files:
                raise ValueError(f"two files for the table {file.stem!r}: {files[file.stem].name} and {file.name}")
            files[file.stem] = file
    wanted = list(files) if tables is None else list(tables)
    absent = [table for table in wanted if table not in files]
    if absent or not files:
        raise FileNotFoundError(f"{folder} has no table {absent[:1] or ''}; there are {', '.join(files) or 'none'}")
    frames = {}
    with duckdb.connect(":memory:") as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for table in wanted:
            if files[table].suffix.lower() == ".parquet":
                relation = connection.read_parquet(str(files[table]))
            else:
                dtype = dict((types or {}).get(table, {}))
                relation = connection.read_csv(str(files[table]), dtype=dtype or None, header=True, sample_size=-1)
            if columns is not None and table in columns:
                keys = _named_columns(table, primary_keys, foreign_keys, time_columns)
                kept = [c for c in relation.columns if c in {*columns[table], *keys}]
                relation = relation.select(*(duckdb.ColumnExpression(c) for c in kept))
            frames[table] = _arrow_frame(relation)
    return from_frames(
        frames, primary_keys=primary_keys, foreign_keys=foreign_keys, time_columns=time_columns,
        name=folder.name if name is None else name,
    )  # fmt: skip


def _arrow_frame(relation: Any) -> "pandas.DataFrame":
    """Through Arrow, so that whole numbers with gaps stay whole."""
    import pandas as pd
    import pyarrow as pa

    whole = {pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32()}
    arrow = relation.to_arrow_table() if hasattr(relation, "to_arrow_table") else relation.arrow().read_all()
    return arrow.to_pandas(types_mapper=lambda kind: pd.Int64Dtype() if kind in whole else None, date_as_object=False)


def _named_columns(table: str, *sources: Mapping[str, Any] | None) -> set[str]:
    named: set[str] = set()
    for source in sources:
        given = (source or {}).get(table)
        if given is None:
            continue
        for item in [given] if isinstance(given, str) else list(given):
            named |= {item} if isinstance(item, str) else set(item)
    return named


def infer_keys(frames: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """A proposal of keys for data frames, to be looked at and confirmed; nothing applies it by itself.

    Primary key: a column of unique values without gaps that is called `id`, `<table>_id`, `<table>id` or `<table>`.
    Foreign key: a column of the same type of which at least 99 % of the values are in another table's primary key; if
    several tables qualify, the one whose name is in the column's name.

    Returns:
        `{"primary_keys": {table: column}, "foreign_keys": {table: {column: parent}}}`, fit for `from_frames`.
    """
    ready = {name: canonical_frame(frame, name) for name, frame in frames.items()}
    primary = {}
    for name, frame in ready.items():
        stem = name.lower().removesuffix("s")
        names = {
            "id": 0,
            f"{name.lower()}_id": 1,
            f"{stem}_id": 1,
            f"{name.lower()}id": 2,
            f"{stem}id": 2,
            name.lower(): 3,
        }
        candidates = [
            c
            for c in frame.columns
            if c.lower() in names and len(frame) and frame[c].notna().all() and frame[c].is_unique
        ]
        if candidates:
            primary[name] = min(candidates, key=lambda column: names[column.lower()])
    foreign: dict[str, dict[str, str]] = {}
    for name, frame in ready.items():
        for column in frame.columns:
            values = frame[column].dropna()
            if not len(values) or values.dtype.name not in ("Int64", "string") or column == primary.get(name):
                continue
            fitting = []
            for parent, key in primary.items():
                theirs = ready[parent][key]
                alike = column.lower().find(parent.lower().removesuffix("s")) >= 0
                if theirs.dtype == values.dtype and values.isin(theirs).mean() >= _CONTAINED:
                    fitting.append((not alike, -len(parent) if alike else 0, parent))
            # Small whole numbers fit into every key 1, 2, 3, ...: there the name must agree.
            if fitting and (not min(fitting)[0] or (values.dtype.name == "string" and len(fitting) == 1)):
                foreign.setdefault(name, {})[column] = min(fitting)[2]
    return {"primary_keys": primary, "foreign_keys": foreign}
