"""The sampler against a loop over nodes, its counts, times and frequencies."""

import numpy as np
import pandas as pd
import pytest
import torch

from etude.graphs.relational import (
    HeteroBatch,
    RelationalGraph,
    TemporalAdjacency,
    TemporalLoader,
    TemporalNeighborSampler,
    build_graph,
    shop_database,
)

DAY = 86_400
NOW = pd.Timestamp("2022-06-01").value // 10**9


@pytest.fixture(scope="module")
def graph() -> RelationalGraph:
    return build_graph(shop_database(40, 250, seed=1))


def star(times: list[int], owners: int = 1) -> RelationalGraph:
    """One parent with timed children, or several with the same children each."""
    n = len(times)
    stacked = np.sort(np.tile(times, owners))
    parent = np.argsort(np.argsort(np.tile(times, owners), kind="stable"), kind="stable")
    owner = np.empty(n * owners, dtype=np.int64)
    owner[parent] = np.repeat(np.arange(owners), n)
    return RelationalGraph(
        num_nodes={"a": owners, "b": n * owners},
        times={"a": None, "b": stacked},
        columns={"a": (), "b": ()},
        adjacency={("b", "f2p_a", "a"): TemporalAdjacency.from_edges(owner, np.arange(n * owners), stacked, owners)},
    )


def walked(graph: RelationalGraph, table: str, entity: int, time: int, hops: int) -> dict[str, list[set[int]]]:
    """Rows new at each hop, by a loop over edges and nothing else."""
    found = {name: [set()] for name in graph.num_nodes}
    found[table][0].add(entity)
    known = {name: set(levels[0]) for name, levels in found.items()}
    for _ in range(hops):
        new: dict[str, set[int]] = {name: set() for name in graph.num_nodes}
        for (source, _, target), adjacency in graph.adjacency.items():
            for owner, neighbour in zip(adjacency.owners(), adjacency.neighbours):
                times = graph.times[source]
                visible = times is None or times[neighbour] <= time
                if owner in found[target][-1] and visible and neighbour not in known[source]:
                    new[source].add(int(neighbour))
        for name in new:
            found[name].append(new[name])
            known[name] |= new[name]
    return found


@pytest.mark.parametrize("strategy", ["uniform", "last"])
def test_unbounded_sampling_equals_a_breadth_first_walk(graph, strategy):
    sampler = TemporalNeighborSampler(graph, [10_000] * 3, strategy, entity_table="customer")
    seeds = [(3, NOW), (11, NOW - 40 * DAY), (3, NOW - 90 * DAY)]
    batch = sampler.sample([e for e, _ in seeds], [t for _, t in seeds])
    for place, (entity, time) in enumerate(seeds):
        expected = walked(graph, "customer", entity, time, 3)
        for name, levels in expected.items():
            start = 0
            for hop, count in enumerate(batch.num_sampled_nodes[name]):
                part = slice(start, start + count)
                rows = batch.node_index[name][part][batch.batch[name][part] == place].tolist()
                assert len(set(rows)) == len(rows)
                assert set(rows) == levels[hop], (name, hop)
                start += count


def test_no_sampled_row_is_later_than_its_seed_and_no_node_has_more_than_k_neighbours(graph):
    rng = np.random.default_rng(0)
    entity = rng.integers(0, 40, 64)
    time = rng.integers(NOW - 150 * DAY, NOW + 200 * DAY, 64)
    for strategy in ("uniform", "last"):
        batch = TemporalNeighborSampler(graph, [4, 3], strategy, entity_table="customer").sample(entity, time)
        for name, index in batch.node_index.items():
            times = graph.times[name]
            if times is not None:
                assert (times[index.numpy()] <= time[batch.batch[name].numpy()]).all()
                assert (batch.age_in_days(name) >= 0).all()
        for kind, index in batch.edge_index.items():
            start = 0
            for hop, count in enumerate(batch.num_sampled_edges[kind]):
                degrees = torch.bincount(index[1, start : start + count])
                assert not len(degrees) or int(degrees.max()) <= (4, 3)[hop]
                start += count
            assert start == index.shape[1]


def test_edges_of_a_batch_are_edges_of_the_graph_inside_one_seed(graph):
    entity = np.arange(20)
    batch = TemporalNeighborSampler(graph, [4, 3], entity_table="customer").sample(entity, np.full(20, NOW))
    for (source, relation, target), index in batch.edge_index.items():
        adjacency = graph.adjacency[(source, relation, target)]
        known = set(zip(adjacency.neighbours.tolist(), adjacency.owners().tolist()))
        pairs = zip(batch.node_index[source][index[0]].tolist(), batch.node_index[target][index[1]].tolist())
        assert set(pairs) <= known
        assert torch.equal(batch.batch[source][index[0]], batch.batch[target][index[1]])


@pytest.mark.parametrize(("c", "k"), [(7, 3), (10, 4), (9, 8), (50, 7)])
def test_every_position_is_drawn_with_frequency_k_over_c(c, k):
    graph = star([10 * i for i in range(c)])
    sampler = TemporalNeighborSampler(graph, [k], entity_table="a", seed=4)
    draws = 2000
    # Every second is another seed and hence another draw.
    batch = sampler.sample(np.zeros(draws, dtype=np.int64), 10 * c + np.arange(draws))
    rows = batch.node_index["b"].numpy().reshape(draws, k)
    assert (np.diff(np.sort(rows, axis=1), axis=1) > 0).all(), "positions of one draw must be distinct"
    counts = np.bincount(rows.ravel(), minlength=c)
    p = k / c
    deviations = np.abs(counts - draws * p) / np.sqrt(draws * p * (1 - p))
    assert deviations.max() < 4.5


def test_the_last_strategy_takes_the_latest_visible_rows():
    graph = star([10, 20, 30, 40, 50])
    batch = TemporalNeighborSampler(graph, [2], "last", entity_table="a").sample([0, 0], [40, 39])
    assert batch.node_index["b"].tolist() == [2, 3, 1, 2]
    assert batch.batch["b"].tolist() == [0, 0, 1, 1]


def test_a_row_at_exactly_the_seed_time_is_seen_and_one_a_second_later_is_not():
    graph = star([10, 20, 21])
    sampler = TemporalNeighborSampler(graph, [-1], entity_table="a")
    assert sampler.sample([0], [20]).node_index["b"].tolist() == [0, 1]
    assert sampler.sample([0], [9]).node_index["b"].tolist() == []


def test_a_parent_of_the_future_is_not_followed(graph):
    """A review may be known before its purchase if the source is wrong; the purchase is still not seen."""
    purchase = graph.times["purchase"]
    adjacency = graph.adjacency[("purchase", "rev_f2p_purchase_id", "review")]
    swapped = {**graph.times, "purchase": purchase + 400 * DAY}
    late = RelationalGraph(
        graph.num_nodes, swapped, graph.columns,
        {("purchase", "rev_f2p_purchase_id", "review"): TemporalAdjacency.from_edges(
            adjacency.owners(), adjacency.neighbours, swapped["purchase"][adjacency.neighbours],
            len(adjacency.starts) - 1)},
    )  # fmt: skip
    row = 5
    at = int(graph.times["review"][row])
    for g, expected in ((graph, 1), (late, 0)):
        batch = TemporalNeighborSampler(g, [-1], entity_table="review").sample([row], [at])
        assert batch.num_sampled_nodes["purchase"][1] == expected


def test_the_same_row_under_two_seeds_has_two_histories(graph):
    sampler = TemporalNeighborSampler(graph, [-1, -1], entity_table="customer")
    batch = sampler.sample([7, 7], [NOW - 120 * DAY, NOW])
    sizes = [int((batch.batch["purchase"] == seed).sum()) for seed in (0, 1)]
    assert 0 < sizes[0] < sizes[1]


def test_a_seed_s_sample_depends_on_nothing_beside_it(graph):
    sampler = TemporalNeighborSampler(graph, [3, 2], entity_table="customer", seed=9)
    together = sampler.sample([1, 2, 3], [NOW] * 3, draw=5)
    alone = sampler.sample([2], [NOW], draw=5)
    for name in graph.num_nodes:
        mine = together.node_index[name][together.batch[name] == 1]
        assert torch.equal(mine, alone.node_index[name])
    other = sampler.sample([2], [NOW], draw=6)
    assert any(not torch.equal(alone.node_index[n], other.node_index[n]) for n in graph.num_nodes)


def test_both_directions_of_a_batch_hold_each_edge_once(graph):
    batch = TemporalNeighborSampler(graph, [3, 2], entity_table="customer").sample([1, 2], [NOW, NOW])
    both = batch.bidirectional()
    assert isinstance(both, HeteroBatch)
    for (source, relation, target), index in both.edge_index.items():
        assert index.shape[1] == len(set(map(tuple, index.t().tolist())))
        name = relation.removeprefix("rev_") if relation.startswith("rev_") else f"rev_{relation}"
        turned = both.edge_index[(target, name, source)]
        assert set(map(tuple, index.t().tolist())) == set(map(tuple, turned.flip(0).t().tolist()))


def test_workers_and_this_process_give_the_same_batches(graph):
    rows = (np.arange(30), np.full(30, NOW), np.arange(30) % 2)
    passes = []
    for workers in (0, 2):
        sampler = TemporalNeighborSampler(graph, [3], entity_table="customer")
        loader = TemporalLoader(sampler, rows, 8, shuffle=True, seed=2, num_workers=workers)
        passes.append([(b.node_index["customer"], b.node_index["purchase"], y) for b, y in loader])
        assert len(passes[-1]) == len(loader) == 4
        assert sorted(torch.cat([p[0][: len(p[2])] for p in passes[-1]]).tolist()) == list(range(30))
        if workers == 0:
            second = [y.tolist() for _, y in loader]
            assert second != [p[2].tolist() for p in passes[0]], "an epoch must have an order of its own"
    for one, other in zip(*passes):
        assert all(torch.equal(a, b) for a, b in zip(one, other))


def test_seeds_and_fanouts_that_do_not_fit_are_refused(graph):
    with pytest.raises(ValueError, match="no table 'nobody'"):
        TemporalNeighborSampler(graph, [2], entity_table="nobody")
    with pytest.raises(ValueError, match="counts, or -1 for all, got -2"):
        TemporalNeighborSampler(graph, [-2])
    with pytest.raises(ValueError, match="every edge type"):
        TemporalNeighborSampler(graph, {("a", "b", "c"): [1]})
    sampler = TemporalNeighborSampler(graph, [2], entity_table="customer")
    with pytest.raises(ValueError, match=r"rows 0\.\.39 of customer, got 3\.\.40"):
        sampler.sample([3, 40], [NOW, NOW])
    with pytest.raises(ValueError, match="alike in length, got 2 and 1"):
        sampler.sample([3, 4], [NOW])
    with pytest.raises(ValueError, match=r"whole numbers of shape \(n,\), got float64"):
        sampler.sample([0.5], [NOW])
    with pytest.raises(ValueError, match="row 100 of purchase is not known before"):
        sampler.sample([100], [0], table="purchase")
    with pytest.raises(ValueError, match="more than max_nodes=5"):
        TemporalNeighborSampler(graph, [20], entity_table="customer", max_nodes=5).sample([0, 1], [NOW, NOW])


def test_no_seeds_give_an_empty_batch(graph):
    batch = TemporalNeighborSampler(graph, [2, 2], entity_table="customer").sample([], [])
    assert (len(batch), batch.num_nodes, batch.num_edges) == (0, 0, 0)
