"""One database, read four ways; and everything that must not be read."""

import datetime
import getpass
import logging
import os
import pickle
import shutil
import socket
import sqlite3
import subprocess
import tempfile
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import sqlalchemy as sa

from etude.data import relational
from etude.data.catalogue import locate
from etude.data.kinds_relational import NEVER, RelationalDatabase

KEYS = {
    "primary_keys": {"shop": "id", "customer": "id", "visit": ("customer_id", "number")},
    "foreign_keys": {
        "customer": {"favourite": "shop", "friend_id": "customer"},
        "visit": {"customer_id": "customer", "shop": "shop"},
        "remark": {("customer_id", "number"): "visit"},
    },
    "time_columns": {"visit": "at_time", "remark": "written"},
}
SCHEMA = """
CREATE TABLE shop (id VARCHAR(20) PRIMARY KEY, city VARCHAR(20), size DOUBLE PRECISION);
CREATE TABLE customer (
    id INTEGER PRIMARY KEY, name VARCHAR(40), born DATE, member BOOLEAN,
    favourite VARCHAR(20) REFERENCES shop(id), friend_id INTEGER REFERENCES customer(id));
CREATE TABLE visit (
    customer_id INTEGER REFERENCES customer(id), number INTEGER, shop VARCHAR(20) REFERENCES shop(id),
    at_time TIMESTAMP, spent DOUBLE PRECISION, items INTEGER, PRIMARY KEY (customer_id, number));
CREATE TABLE remark (
    customer_id INTEGER, number INTEGER, written TIMESTAMP, stars INTEGER, body VARCHAR(80),
    FOREIGN KEY (customer_id, number) REFERENCES visit(customer_id, number));
"""


def frames() -> dict[str, pd.DataFrame]:
    """Text keys, a composite key, a reference to the same table, and gaps in every kind of column."""
    rng = np.random.default_rng(0)
    shop = pd.DataFrame({"id": ["north", "south", 'o"dd'], "city": ["Oslo", "Rome", None], "size": [10.5, None, 7.25]})
    customer = pd.DataFrame({
        "id": [4, 2, 9, 11], "name": ["Ada", "Bob O'Neil", "Cy", "Åse"],
        "born": pd.to_datetime(["1990-03-02", None, "2001-12-31", "1969-07-20"]),
        "member": pd.array([True, None, False, True], dtype="boolean"),
        "favourite": ["south", None, 'o"dd', "north"], "friend_id": pd.array([None, 4, 4, 2], dtype="Int64"),
    })  # fmt: skip
    times = pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.permutation(40) * 3601, unit="s")
    visit = pd.DataFrame({
        "customer_id": np.repeat([4, 2, 9, 11], 10), "number": np.tile(np.arange(10), 4),
        "shop": rng.choice(["north", "south", 'o"dd'], 40), "at_time": times, "spent": rng.normal(size=40).round(3),
        "items": pd.array(rng.integers(1, 9, 40), dtype="Int64"),
    })  # fmt: skip
    visit.loc[3, ["shop", "spent", "items"]] = None
    remark = visit.loc[::3, ["customer_id", "number"]].reset_index(drop=True)
    remark["written"] = times[::3] + pd.Timedelta(minutes=5)
    remark["stars"] = rng.integers(1, 6, len(remark))
    remark["body"] = [f"fine, no. {i}" for i in range(len(remark))]
    return {"shop": shop, "customer": customer, "visit": visit, "remark": remark}


def filled(url: str, statements: str = SCHEMA) -> None:
    """Creates the tables at a URL and fills them."""
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        for statement in statements.strip().split(";\n"):
            connection.exec_driver_sql(statement.rstrip().rstrip(";"))
        metadata = sa.MetaData()
        metadata.reflect(connection)
        for name, frame in frames().items():
            for line in frame.astype(object).where(frame.notna(), None).to_dict("records"):
                values = {k: v.to_pydatetime() if isinstance(v, pd.Timestamp) else v for k, v in line.items()}
                values = {k: v.item() if isinstance(v, np.generic) else v for k, v in values.items()}
                if name == "customer" and values["born"] is not None:
                    values["born"] = values["born"].date()
                if name == "customer":
                    values["friend_id"] = None
                connection.execute(metadata.tables[name].insert(), values)
        for line in frames()["customer"].dropna(subset="friend_id").itertuples():
            table = metadata.tables["customer"]
            connection.execute(table.update().where(table.c.id == int(line.id)).values(friend_id=int(line.friend_id)))
    engine.dispose()


@pytest.fixture(scope="module")
def sqlite(tmp_path_factory) -> str:
    url = f"sqlite:///{tmp_path_factory.mktemp('db') / 'shops.sqlite'}"
    filled(url)
    return url


@pytest.fixture(scope="module")
def postgres():
    """A PostgreSQL server of its own, on a free port, as an ordinary user; gone after the tests."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin")) if Path("/usr/lib/postgresql").is_dir() else []
    tools = str(found[-1]) if found else os.path.dirname(shutil.which("initdb") or "")
    if not tools or not shutil.which("initdb", path=tools):
        pytest.skip("no PostgreSQL server here: neither /usr/lib/postgresql/*/bin nor initdb on the PATH")
    pytest.importorskip("psycopg")
    root = os.geteuid() == 0
    folder = Path(tempfile.mkdtemp(prefix="etude-pg-"))
    user = "postgres" if root else getpass.getuser()
    if root:
        try:
            shutil.chown(folder, user, None)
        except LookupError:
            shutil.rmtree(folder)
            pytest.skip("PostgreSQL refuses to run as root, and there is no user postgres")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "password").write_text("s3cr3t-word")
    if root:
        shutil.chown(folder / "password", user, None)

    def call(*command: str) -> None:
        environment = {**os.environ, "LC_ALL": "C.UTF-8", "HOME": str(folder)}
        subprocess.run(
            [f"{tools}/{command[0]}", *command[1:]], check=True, user=user if root else None, cwd=folder,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, env=environment,
            timeout=120,
        )  # fmt: skip

    data = str(folder / "data")
    call(
        "initdb",
        "-D",
        data,
        "-U",
        "owner",
        "-A",
        "scram-sha-256",
        f"--pwfile={folder / 'password'}",
        "-N",
        "-E",
        "UTF8",
    )
    options = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder} -c fsync=off -c timezone=America/New_York"
    call("pg_ctl", "-D", data, "-w", "-o", options, "-l", str(folder / "log"), "start")
    try:
        yield f"postgresql+psycopg://owner:s3cr3t-word@127.0.0.1:{port}/postgres"
    finally:
        call("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def filled_postgres(postgres) -> str:
    filled(postgres)
    return postgres


def folder_of(path: Path, ending: str) -> Path:
    for name, frame in frames().items():
        connection = duckdb.connect()
        connection.register("rows", frame)
        query = f"COPY rows TO '{path / name}.{ending}'"
        connection.execute(query + (" (HEADER)" if ending == "csv" else " (FORMAT parquet)"))
    return path


def assert_same(one: RelationalDatabase, other: RelationalDatabase) -> None:
    assert list(one.tables) == list(other.tables)
    for name, table in one.tables.items():
        peer = other[name]
        assert (table.primary_key, table.time_column) == (peer.primary_key, peer.time_column)
        assert {k.name: k.table for k in table.foreign_keys} == {k.name: k.table for k in peer.foreign_keys}
        for key in table.foreign_keys:
            np.testing.assert_array_equal(table.parents[key.name], peer.parents[key.name])
        if table.times is None:
            assert peer.times is None
        else:
            np.testing.assert_array_equal(table.times, peer.times)
        pd.testing.assert_frame_equal(table.frame, peer.frame)


def read_as(kind: str, tmp_path: Path, request) -> RelationalDatabase:
    if kind == "frames":
        return relational.from_frames(frames(), **KEYS)
    if kind == "arrow":
        return relational.from_frames({n: pa.Table.from_pandas(f) for n, f in frames().items()}, **KEYS)
    if kind in ("csv", "parquet"):
        return relational.from_files(folder_of(tmp_path, kind), **KEYS)
    url = request.getfixturevalue("sqlite" if kind == "sqlite" else "filled_postgres")
    return relational.from_url(url, time_columns=KEYS["time_columns"])


@pytest.mark.parametrize("kind", ["csv", "parquet", "frames", "arrow", "postgres"])
def test_every_source_gives_the_database_and_the_graph_that_sqlite_gives(kind, sqlite, tmp_path, request):
    from etude.graphs.relational import build_graph

    first, second = read_as("sqlite", tmp_path, request), read_as(kind, tmp_path, request)
    assert_same(first, second)
    graphs = build_graph(first), build_graph(second)
    assert graphs[0].edge_types == graphs[1].edge_types
    for edge_type in graphs[0].edge_types:
        for part in ("starts", "neighbours", "times", "keys"):
            values = [getattr(graph.adjacency[edge_type], part) for graph in graphs]
            np.testing.assert_array_equal(*values)
    for name, columns in graphs[0].columns.items():
        for mine, theirs in zip(columns, graphs[1].columns[name], strict=True):
            assert (mine.name, mine.stype, mine.vocabulary) == (theirs.name, theirs.stype, theirs.vocabulary)
            np.testing.assert_array_equal(mine.values, theirs.values)


def test_keys_times_and_composite_keys_are_resolved(sqlite):
    db = relational.from_url(sqlite, time_columns=KEYS["time_columns"])
    visit, remark = db["visit"], db["remark"]
    assert (np.diff(visit.times) >= 0).all()
    for row, parent in enumerate(remark.parents["customer_id+number"]):
        assert (
            remark.frame.loc[row, ["customer_id", "number"]].tolist()
            == visit.frame.loc[parent, ["customer_id", "number"]].tolist()
        )
    friends = db["customer"].parents["friend_id"]
    assert [db["customer"].frame["id"][p] if p >= 0 else None for p in friends] == [4, None, 4, 2]
    assert visit.parents["shop"].tolist().count(-1) == 1
    assert visit.dangling["shop"] == 0
    assert db.index_of("visit", [(2, 0)]).shape == (1,)
    assert db.ids_of("visit", db.index_of("visit", [(2, 0), (9, 9)])) == [(2, 0), (9, 9)]


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_cutoff_is_pushed_to_the_server_and_equals_cutting_in_memory(kind, sqlite, request):
    url = sqlite if kind == "sqlite" else request.getfixturevalue("filled_postgres")
    cutoff = "2024-01-01 12:00:00"
    whole = relational.from_url(url, time_columns=KEYS["time_columns"])
    part = relational.from_url(url, time_columns=KEYS["time_columns"], upto=cutoff)
    assert 0 < len(part["visit"]) < len(whole["visit"])
    assert_same(part, whole.upto(cutoff))


def test_chosen_tables_and_columns_are_read_with_their_keys(sqlite):
    db = relational.from_url(
        sqlite, time_columns={"visit": "at_time"}, tables=["visit", "customer"], columns={"visit": ["spent"]}
    )
    assert list(db.tables) == ["customer", "visit"]
    assert list(db["visit"].frame.columns) == ["customer_id", "number", "shop", "at_time", "spent"]
    assert [key.table for key in db["visit"].foreign_keys] == ["customer"]


def test_the_connection_to_sqlite_can_only_read(sqlite):
    from etude.data.relational import _read_only

    before = Path(sa.make_url(sqlite).database).read_bytes()
    with _read_only(sa, sa.make_url(sqlite)) as connection, pytest.raises(sa.exc.OperationalError, match="readonly"):
        connection.exec_driver_sql("INSERT INTO shop VALUES ('x', 'y', 1)")
    assert Path(sa.make_url(sqlite).database).read_bytes() == before


def test_the_connection_to_postgresql_can_only_read_and_sees_one_state(filled_postgres):
    from etude.data.relational import _read_only

    address = sa.make_url(filled_postgres)
    with _read_only(sa, address) as connection:
        count = connection.exec_driver_sql("SELECT count(*) FROM remark").scalar()
        writer = sa.create_engine(address)
        with writer.begin() as other:
            other.exec_driver_sql("INSERT INTO remark VALUES (4, 0, '2030-01-01', 1, 'later')")
        assert connection.exec_driver_sql("SELECT count(*) FROM remark").scalar() == count
        with writer.begin() as other:
            other.exec_driver_sql("DELETE FROM remark WHERE body = 'later'")
        writer.dispose()
        with pytest.raises(sa.exc.InternalError, match="read-only transaction"):
            connection.exec_driver_sql("INSERT INTO remark VALUES (4, 0, '2030-01-01', 1, 'x')")


def test_times_with_a_zone_come_in_utc_from_postgresql(postgres):
    engine = sa.create_engine(postgres)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA zoned")
        connection.exec_driver_sql(
            "CREATE TABLE zoned.e (id INTEGER PRIMARY KEY, since TIMESTAMPTZ, cost NUMERIC(9, 2), ok BOOLEAN)"
        )
        # Winter and summer time in the server's own zone.
        connection.exec_driver_sql(
            "INSERT INTO zoned.e VALUES (1, '2024-01-15 12:00', 1.25, true), (2, '2024-07-15 12:00', NULL, NULL)"
        )
    engine.dispose()
    db = relational.from_url(postgres, schema="zoned", time_columns={"e": "since"})
    assert db["e"].frame["since"].tolist() == [pd.Timestamp("2024-01-15 17:00"), pd.Timestamp("2024-07-15 16:00")]
    assert db["e"].frame["cost"].dtype == np.float64
    assert str(db["e"].frame["ok"].dtype) == "boolean"


def test_passwords_are_in_no_name_log_or_error(filled_postgres, caplog):
    with caplog.at_level(logging.DEBUG):
        db = relational.from_url(filled_postgres, time_columns=KEYS["time_columns"])
        wrong = filled_postgres.replace("s3cr3t-word", "other-s3cr3t")
        with pytest.raises(ConnectionError) as refused:
            relational.from_url(wrong)
        with pytest.raises(ConnectionError) as nobody:
            relational.from_url("postgresql+psycopg://u:hush-hush@127.0.0.1:1/x?sslpassword=also-hush")
    texts = [repr(db), db.name, caplog.text, str(refused.value), str(nobody.value), repr(refused.value.__cause__)]
    assert not [text for text in texts if "s3cr3t" in text or "hush" in text]
    assert "***" in db.name
    assert "owner" in str(refused.value)
    with pytest.raises(ValueError, match="cannot be parsed") as broken:
        relational.from_url("no url with s3cr3t")
    assert "s3cr3t" not in str(broken.value)


def test_names_are_quoted_and_never_run(tmp_path):
    """Tables and columns called like attacks, through every reader and the task's SQL engine."""
    evil, column = 'x"; DROP TABLE victim; --', "y'); DELETE FROM victim; --"
    path = tmp_path / "evil.sqlite"
    connection = sqlite3.connect(path)
    quoted, inner = evil.replace('"', '""'), column.replace('"', '""')
    connection.execute("CREATE TABLE victim (id INTEGER PRIMARY KEY)")
    connection.execute("INSERT INTO victim VALUES (1)")
    connection.execute(f'CREATE TABLE "{quoted}" (id INTEGER PRIMARY KEY, "{inner}" TEXT, t DATE)')
    connection.execute(f'INSERT INTO "{quoted}" VALUES (1, ?, ?)', ("a'; --", "2024-01-01"))
    connection.commit()
    connection.close()
    db = relational.from_url(f"sqlite:///{path}", time_columns={evil: "t"}, upto="2025-01-01")
    assert db[evil].frame[column].tolist() == ["a'; --"]
    assert len(db["victim"]) == 1
    from etude.graphs.relational.tasks import _connect

    tables = _connect(db).execute("SELECT table_name FROM information_schema.tables ORDER BY 1").fetchall()
    assert sorted(name for (name,) in tables) == sorted([evil, "victim"])
    with pytest.raises(ValueError, match="there is no table"):
        relational.from_url(f"sqlite:///{path}", tables=["victim; DROP TABLE victim"])


def test_files_that_are_not_there_are_not_made(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no SQLite file at .*absent\.sqlite"):
        relational.from_url(f"sqlite:///{tmp_path / 'absent.sqlite'}")
    assert not (tmp_path / "absent.sqlite").exists()
    (tmp_path / "text.sqlite").write_text("this is no database at all")
    with pytest.raises(ValueError, match="is no SQLite database"):
        relational.from_url(f"sqlite:///{tmp_path / 'text.sqlite'}")
    with pytest.raises(FileNotFoundError, match="no folder at"):
        relational.from_files(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="there are none"):
        relational.from_files(tmp_path)
    with pytest.raises(ImportError, match="no dialect"):
        relational.from_url("nosuchdb://u:p@h/x")


def bad(table: str = "visit", **changes) -> dict[str, pd.DataFrame]:
    found = frames()
    found[table] = found[table].assign(**changes)
    return found


def test_bad_rows_are_refused_with_their_values():
    n = 40
    cases = [
        (bad(at_time=["03/04/2024"] * n), ValueError, "'03/04/2024', which is no ISO 8601 date"),
        (bad(at_time=["2024-01-01T10:00+02:00"] * 20 + ["2024-01-01T10:00Z"] * 20), ValueError, "mixes time zones"),
        (bad(at_time=["2024-01-01T10:00+02:00"] * 20 + ["2024-01-01T10:00"] * 20), ValueError, "mixes time zones"),
        (bad(at_time=[datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC), datetime.datetime(2024, 1, 1)] * 20),
         ValueError, "with and without a time zone"),
        (bad(at_time=np.arange(n)), TypeError, "must hold times, got Int64"),
        (bad(spent=[1.0, "much"] * 20), ValueError, r"visit.spent mixes types: number \(1.0\), text \('much'\)"),
        (bad(spent=[np.inf] * n), ValueError, "visit.spent holds infinite values, 40"),
        (bad(number=[1] * n), ValueError, r"holds \[4, 1\] twice"),
        (bad("customer", id=pd.array([4, None, 9, 11], dtype="Int64")), ValueError, "is missing in 1 rows"),
        (bad("visit", customer_id=["4"] * n, number=range(n)), ValueError,
         "keys have different types, Int64 and string"),
    ]  # fmt: skip
    for rows, error, message in cases:
        with pytest.raises(error, match=message):
            relational.from_frames(rows, **KEYS)


def test_bad_declarations_are_refused():
    for changes, message in (
        ({"primary_keys": {"nobody": "id"}}, r"names the tables \['nobody'\]"),
        ({"primary_keys": {"shop": "key"}}, r"names the columns \['key'\]"),
        ({"foreign_keys": {"visit": {"shop": "planet"}}}, "refers to 'planet', which is not among"),
        ({"foreign_keys": {"visit": {"shoe": "shop"}}}, r"foreign key of visit names the columns \['shoe'\]"),
        ({"foreign_keys": {"visit": {"shop": ("shop", "colour")}}}, r"unknown columns \['colour'\]"),
        ({"foreign_keys": {"visit": {"shop": "visit"}}}, "cannot refer to"),
        ({"time_columns": {"visit": "day"}}, r"time column of visit names the columns \['day'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            relational.from_frames(frames(), **{**KEYS, **changes})
    with pytest.raises(TypeError, match="must be a pandas DataFrame or an Arrow table, got list"):
        relational.from_frames({"a": [1, 2]})
    with pytest.raises(ValueError, match="at least one table"):
        relational.from_frames({})
    with pytest.raises(KeyError, match="no table 'planet'"):
        relational.from_frames(frames(), **KEYS)["planet"]


def test_a_reference_to_a_column_that_is_not_unique_is_refused():
    rows = frames()
    rows["shop"]["city"] = ["Oslo", "Oslo", "Rome"]
    rows["visit"]["shop"] = "Oslo"
    with pytest.raises(ValueError, match="values are not unique"):
        relational.from_frames(rows, **{**KEYS, "foreign_keys": {"visit": {"shop": ("shop", "city")}}})


def test_dangling_keys_become_missing_links_and_are_counted():
    rows = bad("visit", shop=["nowhere"] + frames()["visit"]["shop"].tolist()[1:])
    db = relational.from_frames(rows, **KEYS)
    assert db["visit"].dangling["shop"] == 1
    assert "visit.shop: 1 values name no row" in db.validate()
    assert len(db["visit"]) == 40
    with pytest.warns(UserWarning, match="visit.shop: 40 of 40"):
        relational.from_frames(bad("visit", shop="nowhere"), **KEYS)


def test_a_row_without_a_time_is_kept_and_never_seen():
    times = frames()["visit"]["at_time"].copy()
    times[:2] = pd.NaT
    db = relational.from_frames(bad("visit", at_time=times), **KEYS)
    assert len(db["visit"]) == 40
    assert (db["visit"].times == NEVER).sum() == 2
    assert len(db.upto("2100-01-01")["visit"]) == 38
    assert "visit.at_time: 2 rows have no time and are in no history" in db.validate()


def test_fractions_of_a_second_never_let_a_row_in_early():
    rows = {"e": pd.DataFrame({"id": [1, 2], "t": pd.to_datetime(["2024-01-01 00:00:10.5", "2024-01-01 00:00:11.0"])})}
    db = relational.from_frames(rows, time_columns={"e": "t"})
    assert len(db.upto("2024-01-01 00:00:10.9")["e"]) == 0
    assert len(db.upto("2024-01-01 00:00:11")["e"]) == 2


def test_string_dates_are_read_if_they_are_iso():
    text = frames()["visit"]["at_time"].dt.strftime("%Y-%m-%dT%H:%M:%S+02:00")
    db = relational.from_frames(bad("visit", at_time=text), **KEYS)
    plain = relational.from_frames(frames(), **KEYS)
    np.testing.assert_array_equal(db["visit"].times, plain["visit"].times - 7200)


@pytest.mark.parametrize("value", ["31.12.2024", "soon", 20240101])
def test_a_text_date_of_sqlite_that_is_no_date_is_refused(tmp_path, value):
    connection = sqlite3.connect(tmp_path / "d.sqlite")
    connection.execute("CREATE TABLE e (id INTEGER PRIMARY KEY, day DATE)")
    connection.execute("INSERT INTO e VALUES (1, '2024-01-01'), (2, ?)", (value,))
    connection.commit()
    connection.close()
    with pytest.raises(ValueError, match=r"e\.day .*no ISO 8601"):
        relational.from_url(f"sqlite:///{tmp_path / 'd.sqlite'}")


def test_text_in_a_column_of_numbers_is_refused(tmp_path):
    connection = sqlite3.connect(tmp_path / "n.sqlite")
    connection.execute("CREATE TABLE e (id INTEGER PRIMARY KEY, size INTEGER)")
    connection.execute("INSERT INTO e VALUES (1, 3), (2, 'large')")
    connection.commit()
    connection.close()
    with pytest.raises(ValueError, match=r"e\.size is declared as INTEGER and holds 'large'"):
        relational.from_url(f"sqlite:///{tmp_path / 'n.sqlite'}")


def test_unknown_identifiers_are_named():
    db = relational.from_frames(frames(), **KEYS)
    with pytest.raises(KeyError, match="customer has no row with the key 77"):
        db.index_of("customer", [4, 77])
    with pytest.raises(ValueError, match="remark has no primary key"):
        db.index_of("remark", [1])


def test_a_database_without_times_says_so():
    db = relational.from_frames({"shop": frames()["shop"]}, primary_keys={"shop": "id"})
    with pytest.raises(ValueError, match="no table with times"):
        _ = db.time_range


def test_keys_are_proposed_and_not_applied():
    proposal = relational.infer_keys(frames())
    assert proposal["primary_keys"] == {"shop": "id", "customer": "id"}
    assert proposal["foreign_keys"]["customer"]["favourite"] == "shop"
    assert proposal["foreign_keys"]["visit"] == {"customer_id": "customer", "shop": "shop"}
    assert "number" not in proposal["foreign_keys"]["visit"]
    db = relational.from_frames(frames())
    assert not any(table.primary_key or table.foreign_keys for table in db.tables.values())


def test_types_of_csv_columns_can_be_given(tmp_path):
    pd.DataFrame({"id": ["007", "008"]}).to_csv(tmp_path / "agent.csv", index=False)
    db = relational.from_files(tmp_path, primary_keys={"agent": "id"}, types={"agent": {"id": "VARCHAR"}})
    assert db.ids_of("agent", np.array([0])) == ["007"]


def test_a_database_can_be_pickled():
    db = relational.from_frames(frames(), **KEYS)
    assert_same(db, pickle.loads(pickle.dumps(db)))


def present(name: str) -> bool:
    try:
        locate(name)
    except FileNotFoundError:
        return False
    return True


@pytest.mark.skipif(not present("chinook"), reason="the Chinook database is not here")
def test_the_keys_of_chinook_are_those_it_declares():
    path = locate("chinook") / "Chinook_Sqlite.sqlite"
    db = relational.from_url(f"sqlite:///{path}", time_columns={"Invoice": "InvoiceDate"})
    assert len(db.tables) == 11
    assert sum(len(table.foreign_keys) for table in db.tables.values()) == 11
    assert db["PlaylistTrack"].primary_key == ("PlaylistId", "TrackId")
    assert [key.table for key in db["Employee"].foreign_keys] == ["Employee"]
    assert db.validate() == []


@pytest.mark.skipif(not present("f1db"), reason="the F1 database is not here")
def test_formula_one_is_read_whole():
    db = relational.f1db()
    assert len(db.tables) == 12
    assert len(db["race_result"]) == 27_533
    assert db.validate() == []
    assert pd.Timestamp(db.time_range[0], unit="s").year == 1950
