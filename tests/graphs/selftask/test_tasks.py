"""The tasks themselves: targets, masks, gradients, saving, what they never look at and what they refuse."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from etude.graphs.selftask import (
    AttributeMask,
    ContextLabel,
    CorrectedLabel,
    Distance2Cluster,
    Distance2Labeled,
    EdgeMask,
    EnsembleLabel,
    GCNEncoder,
    NodeProperty,
    PairwiseAttributeSimilarity,
    PairwiseDistance,
    citation_like,
    hop_distances,
)
from etude.graphs.selftask.structure import adjacency

nx = pytest.importorskip("networkx")

TASKS = {
    "property": lambda: NodeProperty(hidden_dim=8),
    "bins": lambda: NodeProperty("pagerank", "bins", hidden_dim=8),
    "edge": lambda: EdgeMask(hidden_dim=8),
    "edge-resampled": lambda: EdgeMask(resample=True, hidden_dim=8),
    "distance": lambda: PairwiseDistance(20, hidden_dim=8),
    "cluster": lambda: Distance2Cluster(4, hidden_dim=8),
    "attribute": lambda: AttributeMask(hidden_dim=8),
    "attribute-reduced": lambda: AttributeMask(target_dim=5, hidden_dim=8),
    "similarity": lambda: PairwiseAttributeSimilarity(hidden_dim=8, pairs_per_step=50),
    "labelled": lambda: Distance2Labeled(hidden_dim=8),
    "context": lambda: ContextLabel(hidden_dim=8),
    "context-ica": lambda: ContextLabel("ica", hidden_dim=8),
    "ensemble": lambda: EnsembleLabel(hidden_dim=8),
    "corrected": lambda: CorrectedLabel(hidden_dim=8, num_samples=40),
}
needs_sklearn = {"context-ica", "ensemble"}
every_task = pytest.mark.parametrize("name", TASKS)


def made(name):
    if name in needs_sklearn:
        pytest.importorskip("sklearn")
    return TASKS[name]()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def data():
    return citation_like(
        150, 3, num_words=60, words_per_node=8, topics_per_class=2, train_per_class=4, num_val=40, num_test=60, seed=1
    )


def with_labels(data, labels):
    from dataclasses import replace

    return replace(data, y=labels)


@every_task
def test_labels_of_validation_and_test_nodes_change_no_target_and_no_loss(data, name):
    flipped = torch.where(data.train_mask, data.y, (data.y + 1) % 3)
    assert (flipped != data.y).sum() == 150 - 12
    embeddings = torch.rand(150, 8, generator=generator(3))
    states, losses = [], []
    for graph in (data, with_labels(data, flipped)):
        task = made(name)
        task.prepare(graph, graph.train_mask, generator())
        seen = task.corrupt(graph, generator=generator(1))
        losses.append([task.loss(embeddings, epoch=0, generator=generator(2)), seen.edge_index, seen.x.to_dense()])
        states.append(task.state_dict())
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
    for one, other in zip(*losses):
        assert torch.equal(one, other)


@every_task
def test_the_gradient_reaches_the_first_layer_and_the_head_but_not_the_classifier(data, name):
    task = made(name)
    task.prepare(data, data.train_mask, generator())
    torch.manual_seed(0)
    encoder = GCNEncoder(data.num_features, 3, hidden_dim=8)
    seen = task.corrupt(data, generator=generator())
    output = encoder(seen.x, seen.edge_index)
    loss = task.loss(getattr(output, task.reads), epoch=0, generator=generator())
    assert loss.ndim == 0
    assert 0 < loss < 20
    loss.backward()
    assert encoder.conv1.lin.weight.grad.abs().sum() > 0
    assert encoder.conv2.lin.weight.grad is None
    assert task.head.weight.grad.abs().sum() > 0
    assert not any(buffer.requires_grad for buffer in task.buffers())


@every_task
def test_a_saved_task_serves_without_being_prepared_again(data, name, tmp_path):
    first = made(name)
    first.prepare(data, data.train_mask, generator())
    torch.save(first.state_dict(), tmp_path / "task.pt")
    second = made(name)
    second.load_state_dict(torch.load(tmp_path / "task.pt", weights_only=True))
    embeddings = torch.rand(150, 8, generator=generator(3))
    losses = [task.loss(embeddings, generator=generator(4)) for task in (first, second)]
    assert torch.equal(*losses)
    if "resampled" not in name:
        seen = [task.corrupt(data) for task in (first, second)]
        assert torch.equal(seen[0].edge_index, seen[1].edge_index)
        assert torch.equal(seen[0].x.to_dense(), seen[1].x.to_dense())


def test_another_mask_taken_over_from_a_saved_task_leaves_no_trace_of_the_old_one(data):
    for make in (lambda: AttributeMask(hidden_dim=8), lambda: EdgeMask(hidden_dim=8)):
        first, second = (make().prepare(data, data.train_mask, generator(seed)) for seed in (1, 2))
        before = second.corrupt(data)
        second.load_state_dict(first.state_dict())
        after, expected = second.corrupt(data), first.corrupt(data)
        assert after is not before
        assert torch.equal(after.edge_index, expected.edge_index)
        assert torch.equal(after.x.to_dense(), expected.x.to_dense())


@every_task
def test_draws_come_from_the_given_generator_alone(data, name):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    embeddings = torch.rand(150, 8, generator=generator(3))
    losses = []
    for seed in (5, 5, 6):
        task = made(name)
        task.prepare(data, data.train_mask, generator(seed))
        task.corrupt(data, generator=generator(seed + 10))
        losses.append(task.loss(embeddings, generator=generator(seed + 20)).item())
    assert torch.equal(torch.get_rng_state(), state)
    assert losses[0] == losses[1] != losses[2]


@every_task
def test_embeddings_of_another_shape_and_an_unprepared_task_are_refused(data, name):
    task = made(name)
    with pytest.raises(RuntimeError, match="prepare the task before its loss"):
        task.loss(torch.zeros(150, 8))
    task.prepare(data, data.train_mask, generator())
    for shape in ((150, 9), (149, 8)):
        with pytest.raises(ValueError, match=rf"of shape \(150, 8\), got \({shape[0]}, {shape[1]}\)"):
            task.loss(torch.zeros(*shape))


def test_degrees_are_standardised_or_binned_over_the_unlabelled_nodes(data):
    degree = adjacency(data).sum(axis=1)
    free = torch.nonzero(~data.train_mask).squeeze(1)
    task = NodeProperty(hidden_dim=8).prepare(data, data.train_mask, generator())
    assert torch.equal(task.nodes, free)
    values = degree[free.numpy()]
    np.testing.assert_allclose(task.target_values.numpy(), (values - values.mean()) / values.std(), rtol=1e-4)
    bins = NodeProperty(mode="bins", hidden_dim=8).prepare(data, data.train_mask, generator())
    assert bins.target_values.tolist() == [0 if d <= 2 else 1 if d <= 7 else 2 for d in values]
    assert set(bins.target_values.tolist()) == {0, 1, 2}
    terciles = NodeProperty("closeness", "bins", hidden_dim=8).prepare(data, data.train_mask, generator())
    assert abs(np.bincount(terciles.target_values) / len(free) - 1 / 3).max() < 0.05


def test_masked_edges_are_absent_in_both_directions_and_negatives_are_no_edges(data):
    task = EdgeMask(0.2, hidden_dim=8).prepare(data, data.train_mask, generator())
    dense = adjacency(data).toarray()
    left = adjacency(task.corrupt(data)).toarray()
    (i, j), (a, b) = task.masked.numpy(), task.negatives.numpy()
    assert len(i) == len(a) == int(0.2 * dense.sum() / 2)
    assert (dense[i, j] == 1).all()
    assert (left[i, j] == 0).all()
    assert (left[j, i] == 0).all()
    assert left.sum() == dense.sum() - 2 * len(i)
    assert (dense[a, b] == 0).all()
    assert (a != b).all()
    assert len({tuple(pair) for pair in task.pairs.t().tolist()}) == 2 * len(i)
    torch.manual_seed(0)
    matrix = GCNEncoder(data.num_features, 3)._propagation(task.corrupt(data).edge_index, 150)[0].to_dense()
    assert (matrix[i, j] == 0).all()
    assert (matrix[j, i] == 0).all()


def test_a_directed_mask_leaves_most_opposites_visible(data):
    task = EdgeMask(0.1, directed_mask=True, hidden_dim=8).prepare(data, data.train_mask, generator())
    seen = task.corrupt(data).edge_index
    left = {tuple(edge) for edge in seen.t().tolist()}
    masked = [tuple(edge) for edge in task.masked.t().tolist()]
    assert len(masked) == int(0.1 * data.num_edges)
    assert not set(masked) & left
    assert sum((j, i) in left for i, j in masked) > len(masked) / 2


def test_a_resampled_mask_and_its_targets_change_together(data):
    task = EdgeMask(resample=True, hidden_dim=8).prepare(data, data.train_mask, generator())
    masks = []
    for seed in range(3):
        left = {tuple(edge) for edge in task.corrupt(data, generator=generator(seed)).edge_index.t().tolist()}
        assert not left & {tuple(edge) for edge in task.masked.t().tolist()}
        masks.append(task.masked.clone())
    assert not torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[1], masks[2])
    fixed = EdgeMask(hidden_dim=8).prepare(data, data.train_mask, generator())
    assert fixed.corrupt(data) is fixed.corrupt(data)


def test_pyg_data_keep_their_edge_weights_beside_the_edges(data):
    pyg = pytest.importorskip("torch_geometric.data")
    graph = pyg.Data(x=data.x.to_dense(), edge_index=data.edge_index, y=data.y)
    graph.edge_weight = torch.arange(data.num_edges).float()
    task = EdgeMask(hidden_dim=8).prepare(graph, data.train_mask, generator())
    seen = task.corrupt(graph)
    kept = seen.edge_weight.long()
    assert torch.equal(data.edge_index[:, kept], seen.edge_index)
    assert graph.edge_index.shape[1] == data.num_edges
    assert Distance2Labeled(hidden_dim=8).prepare(graph, data.train_mask, generator()).target_values.shape == (138, 3)


@pytest.mark.parametrize("sparse", [True, False])
def test_masked_attributes_are_rows_of_unlabelled_nodes_and_targets_their_originals(data, sparse):
    from dataclasses import replace

    graph = data if sparse else replace(data, x=data.x.to_dense())
    task = AttributeMask(0.25, hidden_dim=8).prepare(graph, data.train_mask, generator())
    seen, original = task.corrupt(graph).x.to_dense(), data.x.to_dense()
    assert len(task.nodes) == int(0.25 * 138)
    assert not data.train_mask[task.nodes].any()
    assert (seen[task.nodes] == 0).all()
    untouched = torch.ones(150, dtype=torch.bool)
    untouched[task.nodes] = False
    assert torch.equal(seen[untouched], original[untouched])
    assert torch.equal(task.target_values, original[task.nodes])
    assert torch.equal(graph.x.to_dense(), original)


def test_reduced_attributes_keep_the_leading_directions(data):
    task = AttributeMask(1.0, target_dim=6, hidden_dim=8).prepare(data, data.train_mask, generator())
    dense = data.x.to_dense().double().numpy()
    left, values, _ = np.linalg.svd(dense, full_matrices=False)
    gram = (left[:, :6] * values[:6]) @ (left[:, :6] * values[:6]).T
    nodes = task.nodes.numpy()
    found = task.target_values.double().numpy()
    np.testing.assert_allclose(found @ found.T, gram[np.ix_(nodes, nodes)], atol=1e-4)
    with pytest.raises(ValueError, match="target_dim must be less than 60, got 60"):
        AttributeMask(target_dim=60, hidden_dim=8).prepare(data, data.train_mask, generator())


def test_distances_to_clusters_are_those_to_the_true_centres(data):
    task = Distance2Cluster(5, method="grow", hidden_dim=8).prepare(data, data.train_mask, generator())
    assert task.partition_method == "grow"
    adj = adjacency(data)
    distance = hop_distances(adj, task.centres.numpy())
    with np.errstate(divide="ignore"):
        expected = np.where(distance > 0, 1 / distance, 0)
    np.testing.assert_allclose(task.target_values.numpy(), expected, rtol=1e-6)
    assert (distance[task.centres.numpy(), np.arange(5)] == 0).all()
    assert len(set(task.centres.tolist())) == 5


def test_pair_losses_read_the_difference_of_the_embeddings(data):
    embeddings = torch.rand(150, 8, generator=generator(3))
    edge = EdgeMask(hidden_dim=8).prepare(data, data.train_mask, generator())
    logits = torch.stack([edge.head((embeddings[i] - embeddings[j]).abs()) for i, j in edge.pairs.t().tolist()])
    labels = torch.tensor([1] * edge.masked.shape[1] + [0] * edge.negatives.shape[1])
    torch.testing.assert_close(edge.loss(embeddings), F.cross_entropy(logits, labels))
    similar = PairwiseAttributeSimilarity(pairs_per_step=10**6, hidden_dim=8).prepare(
        data, data.train_mask, generator()
    )
    dense = F.normalize(data.x.to_dense(), dim=1)
    i, j = similar.pairs
    output = similar.head((embeddings[i] - embeddings[j]).abs()).squeeze(1)
    expected = (output - (dense[i] * dense[j]).sum(dim=1)).square().mean()
    torch.testing.assert_close(similar.loss(embeddings, generator=generator()), expected)


def test_distance_classes_are_balanced_and_their_loss_starts_at_chance(data):
    task = PairwiseDistance(20, hidden_dim=8).prepare(data, data.train_mask, generator())
    expected = [0, 1, 2, 3]
    pairs, classes = task.distance_pairs.draw(20, np.random.default_rng(0))
    distance = hop_distances(adjacency(data), np.arange(150))[pairs[1], pairs[0]]
    found = np.where((distance < 0) | (distance > 3), 4, distance) - 1
    assert np.array_equal(found, classes)
    assert sorted(set(classes.tolist())) == expected
    with torch.no_grad():
        for parameter in task.head.parameters():
            parameter.zero_()
    torch.testing.assert_close(task.loss(torch.rand(150, 8), generator=generator()), torch.tensor(np.log(4)).float())


def test_a_small_graph_warns_of_too_few_pairs_and_trains_all_the_same():
    data = citation_like(60, 2, topics_per_class=2, train_per_class=4, num_val=10, num_test=20, average_degree=2)
    task = PairwiseDistance(4000, hidden_dim=8).prepare(data, data.train_mask, generator())
    with pytest.warns(UserWarning, match="drawn with replacement"):
        loss = task.loss(torch.rand(60, 8), generator=generator())
    assert torch.isfinite(loss)


def test_a_large_graph_starts_its_pairs_at_sampled_nodes(data, monkeypatch):
    monkeypatch.setattr(PairwiseDistance, "_ALL_SOURCES", 100)
    task = PairwiseDistance(20, max_sources=30, hidden_dim=8).prepare(data, data.train_mask, generator())
    assert len(task.sources) == 30
    pairs, _ = task.distance_pairs.draw(20, np.random.default_rng(0))
    assert set(pairs[0].tolist()) <= set(task.sources.tolist())


def test_bad_arguments_are_refused_with_the_value(data):
    for make, message in (
        (lambda: NodeProperty("fame"), "got 'fame'"),
        (lambda: NodeProperty(mode="rank"), "got 'rank'"),
        (lambda: EdgeMask(1.0), r"ratio must lie in \(0, 1\), got 1.0"),
        (lambda: AttributeMask(0.0), r"ratio must lie in \(0, 1\], got 0.0"),
        (lambda: AttributeMask(target_dim=0), "target_dim must be at least 1, got 0"),
        (lambda: Distance2Cluster(0), "num_clusters must be at least 1, got 0"),
        (lambda: PairwiseDistance(0), "got 0, 2000 and 4"),
        (lambda: PairwiseAttributeSimilarity(pairs_per_step=0), "pairs_per_step must be at least 1, got 0"),
        (lambda: Distance2Labeled(()), r"got \(\)"),
        (lambda: Distance2Labeled(("median",)), r"got \('median',\)"),
        (lambda: ContextLabel("knn"), "got 'knn'"),
        (lambda: ContextLabel(hops=0), "got 0 and 0.5"),
        (lambda: EnsembleLabel(("lp", "knn")), r"got \('lp', 'knn'\)"),
        (lambda: CorrectedLabel(alpha=-1), "got -1, 0, 1 and 1000"),
        (lambda: NodeProperty(hidden_dim=0), "hidden_dim must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    everyone = torch.ones(150, dtype=torch.bool)
    with pytest.raises(ValueError, match="all 150 nodes are labelled"):
        NodeProperty(hidden_dim=8).prepare(data, everyone, generator())
    with pytest.raises(ValueError, match="drawn for a graph of"):
        EdgeMask(hidden_dim=8).prepare(data, data.train_mask, generator()).corrupt(
            citation_like(60, 2, topics_per_class=2, train_per_class=4, num_val=10, num_test=20)
        )
