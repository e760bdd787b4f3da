"""The graph and its columns against SQL and against the tables."""

import duckdb
import numpy as np
import pandas as pd
import pytest
import torch

from etude.data.kinds_relational import RelationalDatabase
from etude.graphs.relational import build_graph, hashed_ngrams, propose_stypes, shop_database

# PyG still scripts parts of itself when it is imported.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


@pytest.fixture(scope="module")
def db() -> RelationalDatabase:
    return shop_database(40, 250, seed=1)


def test_every_key_gives_as_many_edges_each_way_as_it_has_values(db):
    graph = build_graph(db)
    seen = set()
    for name, table in db.tables.items():
        for key in table.foreign_keys:
            count = int(table.frame[list(key.columns)].notna().all(axis=1).sum())
            there, back = (name, f"f2p_{key.name}", key.table), (key.table, f"rev_f2p_{key.name}", name)
            assert graph.adjacency[there].num_edges == graph.adjacency[back].num_edges == count > 0
            seen |= {there, back}
    assert set(graph.edge_types) == seen


def test_the_degree_of_a_parent_is_what_sql_counts(db):
    graph = build_graph(db)
    for name, table in db.tables.items():
        for key in table.foreign_keys:
            frame, (column,) = table.frame, key.columns
            relation = duckdb.from_df(frame)
            counted = dict(relation.aggregate(f'"{column}", count("{column}")').fetchall())
            degrees = np.diff(graph.adjacency[(name, f"f2p_{key.name}", key.table)].starts)
            ids = db.ids_of(key.table, np.arange(len(db[key.table])))
            assert degrees.tolist() == [counted.get(one, 0) for one in ids]


def test_neighbours_are_sorted_by_time(db):
    graph = build_graph(db)
    for adjacency in graph.adjacency.values():
        times = adjacency.edge_times()
        if times is not None:
            assert ((np.diff(times) >= 0) | (np.diff(adjacency.owners()) > 0)).all()
        assert (np.diff(adjacency.keys) >= 0).all()


def test_an_edge_takes_sixteen_bytes_besides_its_column_starts(db):
    for adjacency in build_graph(db).adjacency.values():
        size = adjacency.neighbours.nbytes + adjacency.keys.nbytes
        assert size == adjacency.num_edges * (16 if len(adjacency.keys) else 8)


def test_cutting_the_graph_equals_building_it_from_the_cut_database(db):
    graph = build_graph(db)
    cutoff = "2022-04-10"
    stypes = {t: {c.name: c.stype for c in cs} for t, cs in graph.columns.items()}
    one, other = graph.upto(cutoff), build_graph(db.upto(cutoff), stypes)
    assert one.num_nodes == other.num_nodes != graph.num_nodes
    for kind in graph.edge_types:
        for part in ("starts", "neighbours"):
            np.testing.assert_array_equal(getattr(one.adjacency[kind], part), getattr(other.adjacency[kind], part))
    for name, columns in one.columns.items():
        for mine, theirs in zip(columns, other.columns[name]):
            decoded = [
                [c.vocabulary[v] if v >= 0 else None for v in c.values] if c.vocabulary else c.values.tolist()
                for c in (mine, theirs)
            ]
            assert str(decoded[0]) == str(decoded[1])


def test_pyg_gets_the_same_edges_and_times(db):
    graph = build_graph(db)
    data = graph.to_pyg()
    data.validate()
    assert data.num_nodes == sum(graph.num_nodes.values())
    assert "time" not in data["customer"]
    assert data["purchase"].time.tolist() == db["purchase"].times.tolist()
    index = data["purchase", "f2p_customer_id", "customer"].edge_index
    pairs = set(map(tuple, index.t().tolist()))
    assert pairs == {(row, parent) for row, parent in enumerate(db["purchase"].parents["customer_id"])}


def test_a_link_table_is_a_node_or_contracts_into_timed_edges():
    frames = {
        "a": pd.DataFrame({"id": [1, 2], "x": [0.5, 1.5]}),
        "b": pd.DataFrame({"id": [7, 8], "since": pd.to_datetime(["2020-01-01", "2020-03-01"])}),
        "a_b": pd.DataFrame({"a": [1, 2, 2], "b": [7, 7, 8], "made": pd.to_datetime(["2020-02-01"] * 3)}),
    }
    db = RelationalDatabase.from_frames(
        frames, primary_keys={"a": "id", "b": "id"}, foreign_keys={"a_b": {"a": "a", "b": "b"}},
        time_columns={"b": "since", "a_b": "made"},
    )  # fmt: skip
    kept = build_graph(db)
    assert kept.num_nodes["a_b"] == 3
    assert kept.columns["a_b"] == ()
    graph = build_graph(db, contract_links=True)
    assert set(graph.num_nodes) == {"a", "b"}
    into_a, into_b = graph.adjacency[("b", "a_b_b", "a")], graph.adjacency[("a", "a_b_a", "b")]
    assert into_a.neighbours.tolist() == [0, 0, 1]
    assert into_b.neighbours.tolist() == [0, 1, 1]
    february, march = (int(pd.Timestamp(day).timestamp()) for day in ("2020-02-01", "2020-03-01"))
    assert into_a.edge_times().tolist() == [february, february, march]
    assert set(into_b.edge_times().tolist()) == {february}


def test_types_are_proposed_by_meaning():
    n = 100
    frame = pd.DataFrame({
        "id": range(n), "flag": [True, None] * 50, "count": [1, 2] * 50, "size": np.linspace(0, 1, n),
        "kind": ["u", "v"] * 50, "name": [f"name {i}" for i in range(n)], "seen": pd.Timestamp("2020-01-01"),
        "tags": [["x", "y"], []] * 50, "vector": [[0.0, 1.0]] * n, "blob": [b"a"] * n, "nothing": [None] * n,
    })  # fmt: skip
    db = RelationalDatabase.from_frames({"t": frame}, primary_keys={"t": "id"})
    assert propose_stypes(db)["t"] == {
        "flag": "categorical", "count": "numerical", "size": "numerical", "kind": "categorical", "name": "text",
        "seen": "timestamp", "tags": "multicategorical", "vector": "embedding",
    }  # fmt: skip
    columns = {c.name: c for c in build_graph(db).columns["t"]}
    assert columns["tags"].vocabulary == ("x", "y")
    assert columns["tags"].offsets[:3].tolist() == [0, 2, 2]
    assert columns["vector"].values.shape == (n, 2)
    assert columns["flag"].values[:2].tolist() == [0, -1]


def test_hashed_ngrams_are_fixed_unit_vectors():
    vectors = hashed_ngrams(["Monza", "Monza", "Silverstone"])
    assert vectors.shape == (3, 64)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert (vectors[0] == vectors[1]).all()
    assert not np.allclose(vectors[0], vectors[2])


def test_types_that_do_not_fit_are_refused(db):
    for stypes, message in (
        ({"nowhere": {}}, r"names the tables \['nowhere'\]"),
        ({"customer": {"nothing": "text"}}, "customer has no column 'nothing'"),
        ({"customer": {"region": "colour"}}, "must be one of numerical, .*, got 'colour'"),
        ({"customer": {"region": "numerical"}}, "cannot be numerical: its type is string"),
        ({"customer": {"region": "timestamp"}}, "cannot be a timestamp"),
        ({"purchase": {"customer_id": "numerical"}}, "is a key"),
        ({"customer": {"region": "multicategorical"}}, "not lists"),
    ):
        with pytest.raises(ValueError, match=message):
            build_graph(db, stypes)


def test_row_order_and_key_names_of_the_source_do_not_matter(db):
    from etude.graphs.relational import RelationalModel, TemporalNeighborSampler

    rng = np.random.default_rng(0)
    frames = {name: t.frame.sample(frac=1, random_state=1).reset_index(drop=True) for name, t in db.tables.items()}
    rename = rng.permutation(1000)
    frames["customer"]["id"] = rename[frames["customer"]["id"].astype(int)]
    frames["customer"]["referred_by"] = frames["customer"]["referred_by"].map(
        lambda v: rename[int(v)], na_action="ignore"
    )
    frames["purchase"]["customer_id"] = rename[frames["purchase"]["customer_id"].astype(int)]
    other = RelationalDatabase.from_frames(
        frames,
        primary_keys={name: list(table.primary_key) for name, table in db.tables.items()},
        foreign_keys={name: table.foreign_keys for name, table in db.tables.items()},
        time_columns={name: table.time_column for name, table in db.tables.items()},
    )
    graphs = build_graph(db), build_graph(other)
    torch.manual_seed(0)
    model = RelationalModel(graphs[0], 16, 2, num_blocks=1).eval()
    at = int(pd.Timestamp("2022-06-01").timestamp())
    ids = [0, 5, 17, 39]
    outputs = []
    for source, graph, names in ((db, graphs[0], ids), (other, graphs[1], rename[ids].tolist())):
        rows = source.index_of("customer", names)
        batch = TemporalNeighborSampler(graph, [-1, -1], entity_table="customer").sample(rows, [at] * len(rows))
        with torch.no_grad():
            outputs.append(model(batch))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)
