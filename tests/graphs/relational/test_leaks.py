"""The future changes nothing: the heart of the matter."""

import numpy as np
import pandas as pd
import pytest
import torch

from etude.data.kinds_relational import RelationalDatabase
from etude.graphs.relational import (
    HeteroBatch,
    RelationalModel,
    TemporalNeighborSampler,
    aggregate_features,
    build_graph,
    shop_database,
)

SECONDS = pd.Timestamp("2022-05-01").value // 10**9
EVERYTHING = [-1, -1, -1]


@pytest.fixture(scope="module")
def db() -> RelationalDatabase:
    return shop_database(40, 250, seed=1)


@pytest.fixture(scope="module")
def graph(db):
    return build_graph(db, stats_upto="2022-04-01")


@pytest.fixture(scope="module")
def model(graph):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return RelationalModel(graph, 16, 3, 2, num_blocks=1).eval()


def seeds(graph, n=12):
    rng = np.random.default_rng(3)
    return rng.integers(0, graph.num_nodes["customer"], n), rng.integers(SECONDS - 80 * 86_400, SECONDS, n)


def as_sets(batch: HeteroBatch) -> dict:
    """Nodes and edges of a batch as sets of (seed, row) and (seed, source row, target row)."""
    nodes = {t: set(zip(batch.batch[t].tolist(), index.tolist())) for t, index in batch.node_index.items()}
    edges = {
        (s, r, t): set(
            zip(
                batch.batch[t][index[1]].tolist(),
                batch.node_index[s][index[0]].tolist(),
                batch.node_index[t][index[1]].tolist(),
            )
        )
        for (s, r, t), index in batch.edge_index.items()
    }
    return {**nodes, **edges}


def corrupted(db: RelationalDatabase, cutoff: int) -> RelationalDatabase:
    """Every row after the cut-off with its values, its links and its later time shuffled among such rows."""
    rng = np.random.default_rng(5)
    frames = {}
    for name, table in db.tables.items():
        frame = table.frame.copy()
        if table.times is not None:
            late = np.flatnonzero(table.times > cutoff)
            for column in frame.columns:
                if column not in table.primary_key:
                    frame.iloc[late, frame.columns.get_loc(column)] = (
                        frame[column].iloc[rng.permutation(late)].to_numpy()
                    )
        frames[name] = frame
    return RelationalDatabase.from_frames(
        frames,
        primary_keys={name: list(table.primary_key) for name, table in db.tables.items()},
        foreign_keys={name: table.foreign_keys for name, table in db.tables.items()},
        time_columns={name: table.time_column for name, table in db.tables.items()},
    )


def test_a_sample_of_the_full_database_equals_one_of_the_database_cut_off_there(db, graph, model):
    for entity, time in zip(*seeds(graph)):
        past = build_graph(db.upto(int(time)), {t: {c.name: c.stype for c in cs} for t, cs in graph.columns.items()})
        batches = [
            TemporalNeighborSampler(g, EVERYTHING, entity_table="customer").sample([entity], [time])
            for g in (graph, past)
        ]
        assert as_sets(batches[0]) == as_sets(batches[1])
        with torch.no_grad():
            outputs = [model(batch) for batch in batches]
        # The rows keep their order, so that even the bits agree.
        assert torch.equal(outputs[0], outputs[1])


@pytest.mark.parametrize("strategy", ["uniform", "last"])
def test_a_bounded_sample_does_not_change_when_the_future_is_cut_off(db, graph, model, strategy):
    entity, time = seeds(graph)
    for e, t in zip(entity, time):
        one, other = (
            TemporalNeighborSampler(g, [3, 2, 2], strategy, entity_table="customer").sample([e], [t])
            for g in (graph, graph.upto(int(t)))
        )
        assert as_sets(one) == as_sets(other)
        with torch.no_grad():
            assert torch.equal(model(one), model(other))


def test_corrupting_every_later_row_leaves_the_outputs_unchanged(db, graph, model):
    entity, time = seeds(graph)
    cutoff = int(time.max())
    other = build_graph(corrupted(db, cutoff), {t: {c.name: c.stype for c in cs} for t, cs in graph.columns.items()})
    outputs = []
    for g in (graph, other):
        batch = TemporalNeighborSampler(g, EVERYTHING, entity_table="customer").sample(entity, time)
        with torch.no_grad():
            outputs.append(model(batch))
    assert any(not a.frame.equals(b.frame) for a, b in zip(db.tables.values(), corrupted(db, cutoff).tables.values()))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-6)
    past = outputs[0]
    batch = TemporalNeighborSampler(other, EVERYTHING, entity_table="customer").sample(entity, time + 60 * 86_400)
    with torch.no_grad():
        assert not torch.allclose(past, model(batch), atol=1e-3), "the model does not look at its rows at all"


def test_statistics_and_categories_are_those_of_the_past_only(db):
    cutoff = pd.Timestamp("2022-04-01").value // 10**9
    frames = {name: table.frame.copy() for name, table in db.tables.items()}
    late = (db["purchase"].times > cutoff).nonzero()[0]
    frames["purchase"].loc[late, "amount"] = 1e6
    frames["review"]["text"] = frames["review"]["text"].where(db["review"].times <= cutoff, "unheard of")
    changed = RelationalDatabase.from_frames(
        frames,
        primary_keys={name: list(table.primary_key) for name, table in db.tables.items()},
        foreign_keys={name: table.foreign_keys for name, table in db.tables.items()},
        time_columns={name: table.time_column for name, table in db.tables.items()},
    )
    schemas = [RelationalModel(build_graph(d, stats_upto=cutoff), 8).schema for d in (db, changed)]
    assert schemas[0] == schemas[1]
    known = RelationalModel(build_graph(changed), 8).schema["tables"]
    assert "unheard of" in next(c for c in known["review"]["columns"] if c["name"] == "text")["categories"]
    assert known != schemas[0]["tables"]


def test_a_category_of_the_future_is_unknown_to_the_encoder(db, graph):
    frames = {name: table.frame.copy() for name, table in db.tables.items()}
    frames["customer"].loc[0, "region"] = "moon"
    frames["customer"].loc[1, "region"] = None
    other = build_graph(
        RelationalDatabase.from_frames(frames, primary_keys={"customer": "id"}), {"customer": {"region": "categorical"}}
    )
    schema = {"tables": {"customer": {"timed": False, "columns": [
        {"name": "region", "stype": "categorical", "categories": ["east", "north", "south", "west"]}
    ]}}, "edge_types": []}  # fmt: skip
    model = RelationalModel(schema, 8, 0).eval()
    column = other.columns["customer"][0]
    lookup = model.encoder._lookup(other, "customer", schema["tables"]["customer"]["columns"][0], column)
    assert lookup[column.values[0]] == 0
    assert lookup[column.values[1]] == 1
    assert {int(i) for i in lookup[column.values[2:]]} <= {2, 3, 4, 5}


def test_aggregates_of_the_baseline_do_not_see_the_future_either(db, graph):
    entity, time = seeds(graph)
    cutoff = int(time.max())
    stypes = {t: {c.name: c.stype for c in cs} for t, cs in graph.columns.items()}
    for other in (build_graph(db.upto(cutoff), stypes), build_graph(corrupted(db, cutoff), stypes)):
        one, two = (aggregate_features(g, "customer", entity, time)[0] for g in (graph, other))
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-9)


def test_a_shift_of_all_times_changes_nothing_without_calendar_features(db):
    stypes = {"customer": {"region": "categorical"}, "purchase": {"amount": "numerical"},
              "review": {"stars": "numerical"}, "product": {"price": "numerical"}, "shop": {}}  # fmt: skip
    shift = 1000 * 86_400
    frames = {name: table.frame.copy() for name, table in db.tables.items()}
    for name, column in (("purchase", "placed_at"), ("review", "written_at")):
        frames[name][column] += pd.Timedelta(days=1000)
    moved = RelationalDatabase.from_frames(
        frames,
        primary_keys={name: list(table.primary_key) for name, table in db.tables.items()},
        foreign_keys={name: table.foreign_keys for name, table in db.tables.items()},
        time_columns={name: table.time_column for name, table in db.tables.items()},
    )
    graphs = build_graph(db, stypes), build_graph(moved, stypes)
    torch.manual_seed(0)
    model = RelationalModel(graphs[0], 16, 2, num_blocks=1).eval()
    entity, time = seeds(graphs[0])
    outputs = []
    for g, by in zip(graphs, (0, shift)):
        batch = TemporalNeighborSampler(g, [-1, -1], entity_table="customer").sample(entity, time + by)
        with torch.no_grad():
            outputs.append(model(batch))
    assert torch.equal(outputs[0], outputs[1])
