"""The contextual block model: the rates and signals it promises, and the split."""

import pytest
import torch

from etude.graphs.dagnn import contextual_sbm


def test_degree_and_homophily_are_those_asked_for():
    data = contextual_sbm(4000, 4, average_degree=12.0, homophily=0.7, seed=3)
    assert abs(data.num_edges / 4000 - 12) < 0.3
    same = (data.y[data.edge_index[0]] == data.y[data.edge_index[1]]).double().mean()
    assert abs(float(same) - 0.7) < 0.015


def test_the_graph_is_simple_and_undirected():
    data = contextual_sbm(300, 3, average_degree=9.0, train_per_class=5, num_val=50, num_test=100)
    source, target = data.edge_index
    assert not bool((source == target).any())
    forward, backward = source * 300 + target, target * 300 + source
    assert len(forward.unique()) == len(forward)
    assert torch.equal(forward.sort().values, backward.sort().values)


def test_every_pair_within_a_class_can_be_drawn():
    """At probability 1 all pairs are there: the numbering of pairs misses none."""
    data = contextual_sbm(
        22, 2, average_degree=11.0, homophily=1.0, num_features=2, train_per_class=1, num_val=2, num_test=2
    )
    assert data.num_edges == 2 * 11 * 10
    across = contextual_sbm(
        22, 2, average_degree=11.0, homophily=0.0, num_features=2, train_per_class=1, num_val=2, num_test=2
    )
    assert across.num_edges == 2 * 11 * 11
    assert bool((across.y[across.edge_index[0]] != across.y[across.edge_index[1]]).all())


def test_features_are_unit_noise_around_class_means_of_the_signal_asked_for():
    data = contextual_sbm(6000, 3, num_features=50, feature_signal=3000.0, seed=2)
    means = torch.stack([data.x[data.y == label].mean(0) for label in range(3)])
    noise = data.x - means[data.y]
    assert abs(float(noise.square().sum(1).mean()) - 1) < 0.02
    # |u_k|^2 has mean 1 and standard deviation sqrt(2 / 50); class means themselves waver by 1/2000.
    assert abs(float(means.square().sum(1).mean()) / 0.5 - 1) < 0.4
    silent = contextual_sbm(6000, 3, num_features=50, feature_signal=0.0, seed=2)
    assert float(torch.stack([silent.x[silent.y == label].mean(0) for label in range(3)]).square().sum(1).max()) < 0.002


def test_the_split_is_disjoint_and_of_the_sizes_asked_for():
    data = contextual_sbm(1000, 4, train_per_class=7, num_val=100, num_test=300)
    assert torch.bincount(data.y[data.train_mask]).tolist() == [7, 7, 7, 7]
    assert (int(data.val_mask.sum()), int(data.test_mask.sum())) == (100, 300)
    assert not bool((data.train_mask & data.val_mask | data.val_mask & data.test_mask).any())
    assert torch.bincount(data.y).tolist() == [250] * 4


def test_a_seed_repeats_the_graph():
    first, again, other = (contextual_sbm(seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.edge_index, again.edge_index)
    assert torch.equal(first.x, again.x)
    assert not torch.equal(first.x, other.x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 1}, "num_classes must be at least 2, got 1"),
        ({"homophily": 1.2}, "got 3.9 and 1.2"),
        ({"average_degree": 0.0}, "got 0.0 and 0.81"),
        ({"average_degree": 900.0}, "edge probability of 1.89 > 1"),
        ({"num_nodes": 1000}, "1000 nodes do not hold 7 x 20 for training, 500 for validation"),
        ({"feature_signal": -1.0}, "feature_signal must be at least 0, got -1.0"),
        ({"num_val": 0}, "num_val must be at least 1, got 0"),
    ],
)
def test_impossible_graphs_are_refused_with_the_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        contextual_sbm(**arguments)
