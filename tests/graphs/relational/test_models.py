"""Encoders and layers against PyG, SQL and plain formulas."""

import duckdb
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from etude.data.kinds_relational import RelationalDatabase
from etude.graphs.relational import (
    HeteroGraphSAGE,
    HeteroSAGEConv,
    RelationalModel,
    RelativeTimeEncoder,
    RowEncoder,
    TemporalNeighborSampler,
    build_graph,
    graph_schema,
    shop_database,
)
from etude.graphs.relational.encoders import PositionEncoding, _calendar_turns

NOW = pd.Timestamp("2022-06-01").value // 10**9

# PyG still scripts parts of itself when it is imported.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


@pytest.fixture(scope="module")
def graph():
    return build_graph(shop_database(40, 250, seed=1), stats_upto="2022-04-01")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def small_batch(graph, hops=(3, 2)):
    entity = np.arange(10)
    return TemporalNeighborSampler(graph, list(hops), entity_table="customer").sample(entity, np.full(10, NOW))


@pytest.mark.parametrize("aggr", ["sum", "mean"])
def test_a_convolution_equals_pyg_s_hetero_sage(graph, aggr):
    from torch_geometric.nn import HeteroConv, SAGEConv

    batch = small_batch(graph)
    conv = HeteroSAGEConv(graph.edge_types, 8, aggr).double()
    peers = {kind: SAGEConv((8, 8), 8, aggr=aggr).double() for kind in graph.edge_types}
    for place, kind in enumerate(graph.edge_types):
        peers[kind].lin_l.load_state_dict(conv.lin_nbr[place].state_dict())
        peers[kind].lin_r.load_state_dict(conv.lin_self[place].state_dict())
    x = {name: torch.randn(len(index), 8, dtype=torch.float64) for name, index in batch.node_index.items()}
    expected = HeteroConv(peers, aggr="sum")(x, batch.edge_index)
    ours = conv(x, batch.edge_index, {name: len(vectors) for name, vectors in x.items()})
    assert set(expected) == set(conv.into) == set(graph.num_nodes)
    for name, vectors in expected.items():
        torch.testing.assert_close(ours[name], vectors, rtol=1e-12, atol=1e-12)


def test_a_sum_convolution_reproduces_sql_exactly():
    """Identity encoders, W_nbr = I, W_self = 0 and no bias: SELECT sum(x) ... WHERE time <= :t GROUP BY parent."""
    rng = np.random.default_rng(0)
    parents = pd.DataFrame({"id": range(20)})
    children = pd.DataFrame({
        "parent": rng.integers(0, 20, 300), "x": rng.integers(-1000, 1000, 300), "y": rng.integers(0, 9, 300),
        "made": pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 100, 300), unit="D"),
    })  # fmt: skip
    db = RelationalDatabase.from_frames(
        {"p": parents, "c": children}, primary_keys={"p": "id"}, foreign_keys={"c": {"parent": "p"}},
        time_columns={"c": "made"},
    )  # fmt: skip
    graph = build_graph(db)
    conv = HeteroSAGEConv(graph.edge_types, 2, "sum")
    for linear in conv.lin_nbr:
        nn.init.eye_(linear.weight)
        nn.init.zeros_(linear.bias)
    for linear in conv.lin_self:
        nn.init.zeros_(linear.weight)
    for day in ("2020-01-01", "2020-02-10", "2020-04-30"):
        at = int(pd.Timestamp(day).timestamp())
        batch = TemporalNeighborSampler(graph, [-1], entity_table="p").sample(np.arange(20), np.full(20, at))
        values = np.stack([column.values for column in graph.columns["c"]], axis=1)
        x = {"p": torch.zeros(20, 2), "c": torch.from_numpy(values[batch.node_index["c"].numpy()]).float()}
        with torch.no_grad():
            found = conv(x, batch.edge_index, {"p": 20})["p"]
        connection = duckdb.connect()
        connection.register("child", children)
        counted = connection.execute(
            "SELECT parent, sum(x), sum(y) FROM child WHERE made <= $t GROUP BY parent", {"t": pd.Timestamp(day)}
        ).fetchall()
        expected = torch.zeros(20, 2)
        for parent, *sums in counted:
            expected[parent] = torch.tensor([float(s) for s in sums])
        assert counted
        assert torch.equal(found, expected)


def test_leaving_out_what_the_seeds_do_not_need_changes_nothing(graph):
    model = RelationalModel(graph, 16, 2, 3, num_blocks=1).eval()
    for hops in ((3, 2), (3, 2, 2), (4,)):
        batch = small_batch(graph, hops)
        with torch.no_grad():
            whole = model.embed(batch, trim=False)["customer"][:10]
            trimmed = model.embed(batch)["customer"]
        torch.testing.assert_close(trimmed, whole, rtol=1e-5, atol=1e-5)
        assert trimmed.shape == (10, 16)


@pytest.mark.parametrize("strategy", ["uniform", "last"])
def test_the_rest_of_the_batch_does_not_change_a_seed_s_output(graph, strategy):
    model = RelationalModel(graph, 16, 2, 3).eval()
    sampler = TemporalNeighborSampler(graph, [3, 2], strategy, entity_table="customer")
    entity, time = np.arange(10), NOW - 86_400 * 7 * np.arange(10)
    with torch.no_grad():
        together = model(sampler.sample(entity, time))
        for place in range(10):
            alone = model(sampler.sample(entity[place : place + 1], time[place : place + 1]))
            torch.testing.assert_close(together[place : place + 1], alone, rtol=1e-5, atol=1e-5)


def test_a_table_that_no_edge_leads_to_keeps_its_vectors():
    gnn = HeteroGraphSAGE(["a", "b"], [("a", "f2p_k", "b")], 4, 2)
    x = {"a": torch.randn(3, 4), "b": torch.randn(2, 4)}
    index = {("a", "f2p_k", "b"): torch.tensor([[0, 1, 2], [0, 0, 1]])}
    out = gnn(x, index, {"a": [3, 0, 0], "b": [2, 0, 0]}, {("a", "f2p_k", "b"): [3, 0]}, trim=False)
    assert torch.equal(out["a"], x["a"])
    assert not torch.equal(out["b"], x["b"])
    assert (out["b"] >= 0).all()


def test_a_model_of_zero_hops_on_a_static_table_is_blind_to_time(graph):
    model = RelationalModel(graph, 16, 0).eval()
    sampler = TemporalNeighborSampler(graph, [], entity_table="customer")
    with torch.no_grad():
        one, other = (model(sampler.sample([3, 4], [t, t])) for t in (NOW, NOW - 10**7))
    assert torch.equal(one, other)


def test_the_age_of_a_timed_row_is_counted_in_days(graph):
    batch = TemporalNeighborSampler(graph, [-1], entity_table="customer").sample([3], [NOW])
    expected = (NOW - graph.times["purchase"][batch.node_index["purchase"].numpy()]) / 86_400
    np.testing.assert_allclose(batch.age_in_days("purchase").numpy(), expected, rtol=1e-6)
    assert batch.age_in_days("customer") is None


def test_position_encodings_are_pyg_s():
    from torch_geometric.nn import PositionalEncoding

    x = torch.tensor([0.0, 0.5, 30.0, 4000.0])
    torch.testing.assert_close(PositionEncoding(16)(x), PositionalEncoding(16)(x), rtol=1e-5, atol=1e-5)
    assert RelativeTimeEncoder(16)(x).shape == (4, 16)


def test_numbers_are_standardised_and_missing_ones_count_as_the_mean_with_a_flag():
    columns = [{"name": "x", "stype": "numerical", "mean": 10.0, "std": 4.0, "quantiles": []}]
    encoder = RowEncoder(columns, 8, num_blocks=0)
    values = {"x": torch.tensor([10.0, 18.0, float("nan")], dtype=torch.float64)}
    parts = encoder.numerical(torch.stack([values["x"]], dim=1))[:, 0]
    torch.testing.assert_close(parts[0], encoder.numerical.bias[0])
    torch.testing.assert_close(parts[1], 2 * encoder.numerical.weight[0] + encoder.numerical.bias[0])
    torch.testing.assert_close(parts[2], encoder.numerical.bias[0] + encoder.numerical.missing[0])


def test_calendar_positions_are_cyclic():
    moments = [pd.Timestamp(t) for t in ("2024-01-01T00:00", "2024-07-01T12:00", "2023-12-31T23:00")]
    turns = _calendar_turns(np.array([int(m.timestamp()) for m in moments]))
    expected = [[(m.month - 1) / 12, (m.day - 1) / 31, m.day_of_week / 7, m.hour / 24] for m in moments]
    np.testing.assert_allclose(turns, expected, atol=1e-12)


def test_a_row_encoder_takes_every_type_of_column():
    rows = pd.DataFrame({
        "id": range(6), "n": [1.0, None, 3.0, 4.0, 5.0, 6.0], "c": list("aabbc") + [None],
        "tags": [["x"], [], ["x", "y"]] * 2, "v": [[0.0, 1.0]] * 6,
        "when": [pd.Timestamp("2020-05-01"), None] * 3, "text": [f"word{i}" for i in range(5)] + [None],
    })  # fmt: skip
    db = RelationalDatabase.from_frames(
        {"t": rows, "empty": pd.DataFrame({"id": [1]})}, primary_keys={"t": "id", "empty": "id"}
    )
    graph = build_graph(db, {"t": {"n": "numerical", "c": "categorical", "tags": "multicategorical",
                                   "when": "timestamp",
                                   "text": "text", "v": "embedding"}})  # fmt: skip
    model = RelationalModel(graph, 8, 0).eval()
    vectors = model.encoder(graph, "t", torch.tensor([5, 0, 0, 3]))
    assert vectors.shape == (4, 8)
    assert torch.isfinite(vectors).all()
    assert torch.equal(vectors[1], vectors[2])
    assert model.encoder(graph, "empty", torch.tensor([0])).shape == (1, 8)
    vectors.sum().backward()
    names = [name for name, p in model.encoder.encoders[1].named_parameters() if p.grad is None]
    assert names == [], "a parameter of the encoder is never used"


def test_a_saved_model_comes_back_without_its_graph(graph, tmp_path):
    model = RelationalModel(graph, 16, 1, 2).eval()
    model.save_pretrained(tmp_path)
    again = RelationalModel.from_pretrained(tmp_path).eval()
    batch = small_batch(graph, (3,))
    with torch.no_grad():
        assert torch.equal(model(batch), again(batch))


def test_the_schema_is_plain_data(graph):
    import json

    schema = graph_schema(graph)
    assert json.loads(json.dumps(schema)) == schema
    amount = next(c for c in schema["tables"]["purchase"]["columns"] if c["name"] == "amount")
    known = graph.columns["purchase"][1].values[graph.times["purchase"] <= graph.stats_upto]
    assert amount["mean"] == pytest.approx(known.mean(), rel=1e-12)
    assert amount["quantiles"][2] == pytest.approx(np.median(known), rel=1e-12)


def test_gradients_reach_every_table_within_the_hops(graph):
    model = RelationalModel(graph, 8, 2, num_blocks=1)
    model(small_batch(graph, (5, 5))).square().sum().backward()
    for name, encoder in zip(model.encoder.tables, model.encoder.encoders):
        if name in ("customer", "purchase", "product", "review"):
            assert encoder.merge.weight.grad.abs().sum() > 0, name


def test_sizes_that_do_not_fit_are_refused(graph):
    with pytest.raises(ValueError, match="channels must be even and at least 2, got 7"):
        RelationalModel(graph, 7)
    with pytest.raises(ValueError, match="num_layers must not be negative, got -1"):
        RelationalModel(graph, 8, -1)
    with pytest.raises(ValueError, match="the encoder was made for the tables"):
        RelationalModel(graph, 8).encoder(graph, "nowhere", torch.tensor([0]))
