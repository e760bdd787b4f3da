"""The scikit-learn estimator and the generated graph: contract, what is accepted, what is refused."""

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse
import torch

from etude.graphs.selftask import Distance2Labeled, adjacency, citation_like

sklearn_base = pytest.importorskip("sklearn.base")
from sklearn.exceptions import NotFittedError  # noqa: E402

from etude.graphs.selftask import TASKS, SelfTaskClassifier  # noqa: E402


@pytest.fixture(scope="module")
def data():
    return citation_like(
        150, 3, num_words=60, words_per_node=8, topics_per_class=2, train_per_class=4, num_val=40, num_test=60, seed=1
    )


def classifier(task="distance2labeled", **arguments):
    return SelfTaskClassifier(task, **({"hidden_dim": 8, "epochs": 5, "random_state": 0} | arguments))


def arrays(data):
    return [part.numpy() for part in (data.x.to_dense(), data.edge_index, data.y, data.train_mask, data.val_mask)]


def test_parameters_are_got_set_and_cloned():
    estimator = classifier(lam=3.0)
    assert estimator.get_params()["lam"] == 3.0
    copy = sklearn_base.clone(estimator.set_params(epochs=4))
    assert copy is not estimator
    assert copy.get_params() == estimator.get_params()


@pytest.mark.parametrize("task", [*TASKS, None])
def test_every_task_fits_and_predicts(data, task):
    pairwise = task == "pairwise_distance"
    estimator = classifier(TASKS[task](20, hidden_dim=8) if pairwise else task, lam=1.0).fit(data)
    probabilities = estimator.predict_proba()
    assert probabilities.shape == (150, 3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert np.array_equal(estimator.predict(), estimator.classes_[probabilities.argmax(axis=1)])
    right = (estimator.predict() == data.y.numpy())[data.test_mask]
    assert estimator.score(data, mask=data.test_mask) == right.mean()
    assert estimator.n_features_in_ == 60


def test_arrays_sparse_matrices_tensors_and_graphs_give_the_same_fit(data):
    expected = classifier().fit(data).predict_proba()
    x, *rest = arrays(data)
    for given in ([x, *rest], [scipy.sparse.csr_array(x), *rest], [torch.from_numpy(x), *rest]):
        np.testing.assert_allclose(classifier().fit(*given).predict_proba(), expected, rtol=1e-4, atol=1e-5)
    pyg = pytest.importorskip("torch_geometric.data")
    graph = pyg.Data(x=data.x.to_dense(), edge_index=data.edge_index, y=data.y, train_mask=data.train_mask)
    graph.val_mask = data.val_mask
    np.testing.assert_allclose(classifier().fit(graph).predict_proba(), expected, rtol=1e-4, atol=1e-5)


def test_labels_may_be_words_and_those_of_other_nodes_anything(data):
    x, edge_index, y, train, val = arrays(data)
    words = np.array(["ant", "bee", "cat"])[y]
    words[~(train | val)] = "?"
    estimator = classifier().fit(x, edge_index, words, train, val)
    assert estimator.classes_.tolist() == ["ant", "bee", "cat"]
    expected = classifier().fit(x, edge_index, y, train, val).predict()
    assert np.array_equal(estimator.predict(), estimator.classes_[expected])


def test_two_stages_and_another_graph(data):
    estimator = classifier(strategy="two_stage").fit(data)
    np.testing.assert_allclose(estimator.predict_proba(data.x, data.edge_index), estimator.predict_proba(), rtol=1e-5)
    assert estimator.predict_proba(data.x.to_dense()[:5], torch.empty(2, 0, dtype=torch.int64)).shape == (5, 3)
    assert not np.allclose(classifier().fit(data).predict_proba(), estimator.predict_proba())


def test_a_seed_repeats_the_fit_and_leaves_the_global_generator_alone(data):
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = classifier().fit(data).predict_proba()
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(classifier().fit(data).predict_proba(), first)
    assert not np.array_equal(classifier(random_state=1).fit(data).predict_proba(), first)


def test_an_unfitted_estimator_says_so():
    with pytest.raises(NotFittedError):
        classifier().predict()


def test_bad_input_is_refused_with_the_value(data):
    x, edge_index, y, train, val = arrays(data)
    broken, far, other = x.copy(), edge_index.copy(), y.copy()
    broken[2, 3], far[0, 0], other[np.flatnonzero(val)[0]] = np.nan, 150, 9
    for given, message in (
        ((broken, edge_index, y, train, val), "NaN or infinite values, 1 of them"),
        ((x, far, y, train, val), r"must name nodes 0\.\.149"),
        ((x, edge_index[:, 1:], y, train, val), "1 of .* lack their opposite"),
        ((x, edge_index.astype(np.float64), y, train, val), "edge_index must be int64"),
        ((x, edge_index, y[:9], train, val), r"y must have shape \(150,\)"),
        ((x, edge_index, y, train[:9], val), r"train_mask must be bool of shape \(150,\)"),
        ((x, edge_index, y, train, train), "must not overlap"),
        ((x, edge_index, y, np.zeros_like(train), val), "train_mask selects no node"),
        ((x, edge_index, other, train, val), r"labels that train_mask does not: \[9\]"),
        ((x[0], edge_index, y, train, val), "X must have shape"),
        ((x, edge_index, y, train), "fit needs val_mask"),
    ):
        with pytest.raises(ValueError, match=message):
            classifier().fit(*given)
    for arguments, message in (({"task": "magic"}, "got 'magic'"), ({"strategy": "none"}, "got 'none'")):
        with pytest.raises(ValueError, match=message):
            classifier(**arguments).fit(data)
    fitted = classifier(Distance2Labeled(hidden_dim=8)).fit(data)
    for given, message in (((x, None), "give both X and edge_index"), ((x[:, 1:], edge_index), "60 features, got 59")):
        with pytest.raises(ValueError, match=message):
            fitted.predict(*given)


def test_the_generated_graph_has_the_asked_degree_homophily_and_split():
    graph = citation_like(2700, 7, seed=3)
    assert graph.x.layout == torch.sparse_csr
    assert graph.x.values().unique().tolist() == [1.0]
    source, target = graph.edge_index
    assert graph.num_edges / 2700 == pytest.approx(3.9, abs=0.4)
    assert (graph.y[source] == graph.y[target]).double().mean() == pytest.approx(0.81, abs=0.03)
    assert (source != target).all()
    assert adjacency(SimpleNamespace(x=graph.x, edge_index=graph.edge_index)).sum() == graph.num_edges
    assert torch.bincount(graph.y[graph.train_mask]).tolist() == [20] * 7
    assert torch.bincount(graph.y).min() >= 2700 // 7 - 6
    assert [int(mask.sum()) for mask in (graph.val_mask, graph.test_mask)] == [500, 1000]
    assert torch.bincount(source).max() > 20
    again = citation_like(2700, 7, seed=3)
    assert torch.equal(again.edge_index, graph.edge_index)
    assert torch.equal(again.x.col_indices(), graph.x.col_indices())


def test_impossible_graphs_are_refused_with_the_value():
    for arguments, message in (
        ({"num_classes": 1}, "num_classes must be at least 2, got 1"),
        ({"homophily": 1.2}, r"homophily must lie in \[0, 1\], got 1.2"),
        ({"num_nodes": 50}, "need at least 84 nodes"),
        ({"num_nodes": 1000}, "1000 nodes do not hold 7 x 20"),
    ):
        with pytest.raises(ValueError, match=message):
            citation_like(**arguments)
