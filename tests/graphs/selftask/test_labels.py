"""Pseudo labels, label contexts, prototypes: closed forms, naive references, and no look at other labels."""

import numpy as np
import pytest
import scipy.sparse
import torch

from etude.graphs.selftask import (
    ContextLabel,
    CorrectedLabel,
    Distance2Labeled,
    EnsembleLabel,
    adjacency,
    class_prototypes,
    iterative_classification,
    label_context,
    label_propagation,
    nearest_prototype,
)

nx = pytest.importorskip("networkx")


class Graph:
    """What a task reads: two blocks of 15 joined by a few edges, labels by block, some noise in x."""

    def __init__(self, graph=None, y=None, features=6):
        if graph is None:
            graph = nx.planted_partition_graph(2, 15, 0.4, 0.03, seed=1)
            y = np.arange(30) // 15
        pairs = np.array([(u, v) for u, v in graph.edges] + [(v, u) for u, v in graph.edges]).reshape(-1, 2)
        self.graph = graph
        self.edge_index = torch.from_numpy(pairs.T.astype(np.int64).copy())
        self.y = torch.as_tensor(np.asarray(y), dtype=torch.int64)
        generator = torch.Generator().manual_seed(0)
        self.x = torch.rand(len(graph), features, generator=generator)
        self.x[torch.arange(len(graph)), self.y] += 1


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_label_propagation_clamps_labels_and_equals_the_dense_solution():
    data = Graph()
    adj, train = adjacency(data), torch.tensor([0, 4, 20, 29])
    found = label_propagation(adj, data.y, train, tol=1e-12, max_sweeps=100_000).numpy()
    known = np.eye(2)[data.y[train].numpy()]
    assert np.array_equal(found[train.numpy()], known)
    dense = adj.toarray().astype(np.float64)
    step = dense / dense.sum(axis=1, keepdims=True)
    free = np.setdiff1d(np.arange(30), train.numpy())
    solved = np.linalg.solve(np.eye(len(free)) - step[np.ix_(free, free)], step[np.ix_(free, train.numpy())] @ known)
    np.testing.assert_allclose(found[free], solved, atol=1e-9)
    default = label_propagation(adj, data.y, train).numpy()
    np.testing.assert_allclose(default[free], solved, atol=1e-4)
    np.testing.assert_allclose(default.sum(axis=1), 1, atol=1e-12)


def test_a_component_without_labels_has_the_shares_of_the_training_labels():
    graph = nx.disjoint_union(nx.path_graph(5), nx.path_graph(3))
    data = Graph(graph, [0, 0, 1, 1, 1, 0, 0, 0])
    found = label_propagation(adjacency(data), data.y, torch.tensor([0, 2, 4])).numpy()
    np.testing.assert_allclose(found[5:], [[1 / 3, 2 / 3]] * 3)
    np.testing.assert_allclose(found[1], [0.5, 0.5], atol=1e-9)
    assert np.isfinite(found).all()


def test_iterative_classification_uses_both_attributes_and_neighbours():
    pytest.importorskip("sklearn")
    data = Graph()
    adj, train = adjacency(data), torch.tensor([1, 2, 18, 19])
    for features in (data.x.numpy(), scipy.sparse.csr_array(data.x.numpy())):
        found = iterative_classification(features, adj, data.y, train).numpy()
        np.testing.assert_allclose(found.sum(axis=1), 1)
        assert np.array_equal(found[train.numpy()], np.eye(2)[data.y[train].numpy()])
        assert (found.argmax(axis=1) == data.y.numpy()).mean() > 0.9
    # Of nodes without attributes only the neighbours can tell.
    train = torch.cat([torch.arange(4), torch.arange(15, 19)])
    mute = data.x.numpy().copy()
    mute[4:9], mute[19:24] = 0, 0
    once = iterative_classification(mute, adj, data.y, train, max_sweeps=0).numpy()
    swept = iterative_classification(mute, adj, data.y, train).numpy()
    assert (swept.argmax(axis=1) == data.y.numpy()).mean() > (once.argmax(axis=1) == data.y.numpy()).mean()


def test_a_context_of_true_labels_has_the_fractions_of_the_block_graph():
    # Two complete blocks of 4, joined by one edge 0-4: within two hops node 1 sees its block and node 4.
    graph = nx.disjoint_union(nx.complete_graph(4), nx.complete_graph(4))
    graph.add_edge(0, 4)
    graph.add_node(8)
    data = Graph(graph, [0] * 4 + [1] * 4 + [0])
    task = ContextLabel(lambda data, train: data.y.clone(), hidden_dim=3)
    task.prepare(data, torch.tensor([1, 6]), generator())
    expected = np.zeros((9, 2))
    expected[0], expected[4] = [3 / 7, 4 / 7], [4 / 7, 3 / 7]
    expected[1:4], expected[5:8] = [3 / 4, 1 / 4], [1 / 4, 3 / 4]
    np.testing.assert_allclose(task.target_values.numpy(), expected, rtol=1e-6)
    sums = task.target_values.sum(dim=1)
    assert torch.allclose(sums[:8], torch.ones(8))
    assert sums[8] == 0


def test_contexts_count_every_node_within_two_hops_once():
    graph = nx.gnp_random_graph(30, 0.12, seed=6)
    labels = np.random.default_rng(0).integers(3, size=30)
    data = Graph(graph, labels)
    task = ContextLabel(lambda data, train: data.y.clone(), hidden_dim=3)
    train = torch.tensor([int(np.flatnonzero(labels == label)[0]) for label in range(3)])
    task.prepare(data, train, generator())
    for node in range(30):
        near = {other for other, d in nx.single_source_shortest_path_length(graph, node, cutoff=2).items() if d > 0}
        counts = np.bincount(labels[list(near)], minlength=3) if near else np.zeros(3)
        np.testing.assert_allclose(task.target_values[node].numpy(), counts / max(len(near), 1), rtol=1e-6)
    near = nx.single_source_shortest_path_length(graph, 0, cutoff=1)
    one_hop = ContextLabel(lambda data, train: data.y.clone(), hops=1, hidden_dim=3).prepare(data, train, generator())
    counts = np.bincount(labels[[other for other in near if other]], minlength=3)
    np.testing.assert_allclose(one_hop.target_values[0].numpy(), counts / counts.sum(), rtol=1e-6)


def test_a_source_may_give_scores_or_labels_and_training_labels_stay():
    data = Graph()
    train = torch.tensor([0, 20])
    wrong = 1 - data.y
    by_labels = ContextLabel(lambda data, train: wrong, hidden_dim=3).prepare(data, train, generator())
    by_scores = ContextLabel(lambda data, train: torch.eye(2)[wrong], hidden_dim=3).prepare(data, train, generator())
    assert torch.equal(by_labels.labels, by_scores.labels)
    assert torch.equal(by_labels.labels[train], data.y[train])
    assert (by_labels.labels != data.y).sum() == 28
    assert torch.equal(wrong, 1 - data.y)
    for source, message in (
        (lambda data, train: torch.zeros(30, 5), r"gives scores \(30, 2\) or int64 labels \(30,\)"),
        (lambda data, train: torch.full((30,), 2), r"must lie in 0\.\.1, got 2\.\.2"),
    ):
        with pytest.raises(ValueError, match=message):
            ContextLabel(source, hidden_dim=3).prepare(data, train, generator())


def test_the_ensemble_takes_the_largest_sum_of_scores():
    data = Graph()
    one, two = torch.rand(30, 2, generator=generator(1)), torch.rand(30, 2, generator=generator(2))
    task = EnsembleLabel((lambda data, train: one, lambda data, train: two), hidden_dim=3)
    task.prepare(data, torch.tensor([0, 20]), generator())
    free = task.nodes
    assert torch.equal(task.labels[free], (one + two).argmax(dim=1)[free])
    pytest.importorskip("sklearn")
    both = EnsembleLabel(hidden_dim=3).prepare(data, torch.tensor([0, 20]), generator())
    scores = label_propagation(adjacency(data), data.y, torch.tensor([0, 20]))
    scores = scores + iterative_classification(data.x.numpy(), adjacency(data), data.y, torch.tensor([0, 20]))
    assert torch.equal(both.labels[free], scores.argmax(dim=1)[free])


@pytest.mark.parametrize("stats", [("mean",), ("mean", "max", "min")])
def test_distance_to_labelled_equals_brute_force(stats):
    data = Graph(nx.gnp_random_graph(30, 0.09, seed=3), np.arange(30) % 3)
    train = torch.tensor([0, 1, 2, 3, 4, 11])
    task = Distance2Labeled(stats, hidden_dim=3).prepare(data, train, generator())
    assert not set(task.nodes.tolist()) & set(train.tolist())
    assert len(task.nodes) == 24
    unreachable = False
    for row, node in enumerate(task.nodes.tolist()):
        lengths = nx.single_source_shortest_path_length(data.graph, node)
        expected = []
        for label in range(3):
            near = [1 / lengths[other] if other in lengths else 0.0 for other in train.tolist() if other % 3 == label]
            unreachable |= 0.0 in near
            expected += [{"mean": np.mean, "max": np.max, "min": np.min}[stat](near) for stat in stats]
        np.testing.assert_allclose(task.target_values[row].numpy(), expected, rtol=1e-6)
    assert unreachable


def test_distance_to_labelled_on_a_path_is_one_over_the_difference():
    data = Graph(nx.path_graph(12), [0] * 6 + [1] * 6)
    task = Distance2Labeled(hidden_dim=3).prepare(data, torch.tensor([2, 9]), generator())
    expected = [[1 / abs(node - 2), 1 / abs(node - 9)] for node in task.nodes.tolist()]
    np.testing.assert_allclose(task.target_values.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("make", [Distance2Labeled, ContextLabel, EnsembleLabel, CorrectedLabel])
def test_a_class_without_training_label_is_refused(make):
    data = Graph(y=np.arange(30) % 3, graph=nx.path_graph(30))
    with pytest.raises(ValueError, match=r"classes \[1\] of 3 have none"):
        make(hidden_dim=3).prepare(data, torch.tensor([0, 2, 3]), generator())
    data.classes = ("a", "b", "c", "d")
    with pytest.raises(ValueError, match=r"classes \[3\] of 4 have none"):
        make(hidden_dim=3).prepare(data, torch.tensor([0, 1, 2]), generator())


def clusters():
    """Two tight clusters of 100, cosine > 0.9 within and < 0.2 between, 10 % of the labels flipped."""
    rng = np.random.default_rng(0)
    centre = np.eye(16)[:2]
    truth = np.repeat([0, 1], 100)
    embeddings = torch.from_numpy(centre[truth] + 0.03 * rng.standard_normal((200, 16))).to(torch.float32)
    labels = truth.copy()
    labels[rng.permutation(200)[:20]] ^= 1
    return embeddings, torch.from_numpy(truth), torch.from_numpy(labels)


def test_prototypes_of_tight_clusters_correct_flipped_labels():
    embeddings, truth, labels = clusters()
    unit = torch.nn.functional.normalize(embeddings, dim=1)
    cosine, same = unit @ unit.t(), truth[:, None] == truth[None, :]
    assert cosine[same].min() > 0.9
    assert cosine[~same].max() < 0.2
    prototypes = class_prototypes(embeddings, labels, max_similarity=None, generator=generator())
    for label, members in enumerate(prototypes):
        assert len(members) == 8
        assert (truth[members] == label).all()
    assert torch.equal(nearest_prototype(embeddings, prototypes), truth)
    some = torch.tensor([3, 150, 77])
    assert torch.equal(nearest_prototype(embeddings, prototypes, some), truth[some])


def naive_prototypes(embeddings, members, count, percentile, limit):
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    similarity = unit[members] @ unit[members].T
    threshold = np.percentile(similarity, percentile)
    density = [sum(np.sign(value - threshold) for value in row) for row in similarity]
    left = []
    for i in range(len(members)):
        denser = [similarity[i, j] for j in range(len(members)) if density[j] > density[i]]
        if (max(denser) if denser else min(similarity[i])) < limit:
            left.append(i)
    left.sort(key=lambda i: -density[i])
    return [members[i] for i in left[:count]], [density[i] for i in left]


def test_prototypes_equal_a_naive_loop():
    rng = np.random.default_rng(5)
    embeddings = np.abs(rng.standard_normal((60, 5)))
    labels = rng.integers(3, size=60)
    found = class_prototypes(
        torch.from_numpy(embeddings), torch.from_numpy(labels), num_prototypes=4, max_similarity=0.97
    )
    dropped = 0
    for label in range(3):
        members = np.flatnonzero(labels == label)
        expected, densities = naive_prototypes(embeddings, members, 4, 40, 0.97)
        dropped += len(members) - len(densities)
        assert found[label].tolist() == expected
    assert dropped > 5


def test_a_tight_class_keeps_its_densest_node_and_an_empty_one_is_never_chosen():
    embeddings, truth, _ = clusters()
    tight = class_prototypes(embeddings, truth, num_classes=3, max_similarity=0.5)
    assert [len(members) for members in tight] == [1, 1, 0]
    assert torch.equal(nearest_prototype(embeddings, tight), truth)
    negative = nearest_prototype(-embeddings, tight, torch.arange(5))
    assert negative.max() < 2
    with pytest.raises(ValueError, match="no class has a prototype"):
        nearest_prototype(embeddings, [torch.zeros(0, dtype=torch.int64)] * 2)


def test_no_more_nodes_of_a_class_are_looked_at_than_asked():
    embeddings, truth, _ = clusters()
    seen = class_prototypes(
        embeddings, truth, num_prototypes=500, max_per_class=30, max_similarity=None, generator=generator()
    )
    assert [len(members) for members in seen] == [30, 30]
    for arguments, message in (
        ({"num_prototypes": 0}, "got 0 and 320"),
        ({"percentile": 101}, "percentile must lie in 0..100, got 101"),
    ):
        with pytest.raises(ValueError, match=message):
            class_prototypes(embeddings, truth, **arguments)


def test_corrected_labels_move_the_sampled_nodes_alone_and_no_labelled_one():
    embeddings, truth, labels = clusters()
    data = Graph(nx.random_regular_graph(4, 200, seed=0), truth.numpy())
    train = torch.cat([torch.arange(5), torch.arange(100, 105)])
    task = CorrectedLabel(lambda data, train: labels, num_samples=90, max_similarity=None, hidden_dim=16)
    task.prepare(data, train, generator())
    corrected, sampled = task.corrected_labels(embeddings, generator(1))
    assert len(sampled) == 90
    assert not set(sampled.tolist()) & set(train.tolist())
    assert torch.equal(corrected[sampled], truth[sampled])
    others = torch.ones(200, dtype=torch.bool)
    others[sampled] = False
    assert torch.equal(corrected[others], task.labels[others])
    assert torch.equal(corrected[train], truth[train])


def test_the_corrected_loss_is_the_sum_of_both_contexts_and_its_targets_carry_no_gradient():
    embeddings, truth, labels = clusters()
    data = Graph(nx.random_regular_graph(4, 200, seed=0), truth.numpy())
    train = torch.tensor([0, 100])
    task = CorrectedLabel(lambda data, train: labels, alpha=0.7, num_samples=50, every=2, warm_up=1, hidden_dim=16)
    task.prepare(data, train, generator())
    task.eval()
    leaf = embeddings.clone().requires_grad_()
    predicted = task.head(leaf).softmax(dim=1)
    first = (predicted[task.nodes] - task.target_values[task.nodes]).square().mean()
    assert torch.allclose(task.loss(leaf, epoch=0, generator=generator()), first)
    found = task.loss(leaf, epoch=1, generator=generator(3))
    assert not task.corrected_values.requires_grad
    contexts, sampled = task.corrected_values, task.sampled
    corrected, again = task.corrected_labels(embeddings, generator(3))
    assert torch.equal(sampled, again)
    assert torch.equal(contexts, label_context(task.row, task.column, corrected, 2))
    expected = first + 0.7 * (predicted[sampled] - contexts[sampled]).square().mean()
    assert torch.allclose(found, expected)
    gradients = [torch.autograd.grad(loss, leaf, retain_graph=True)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients)
    task.loss(leaf, epoch=2, generator=generator(4))
    assert torch.equal(task.sampled, sampled)  # `every` is 2
    task.loss(leaf, epoch=3, generator=generator(4))
    assert not torch.equal(task.sampled, sampled)
