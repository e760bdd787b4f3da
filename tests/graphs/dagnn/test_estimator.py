"""The scikit-learn estimator: its contract, what it accepts, and what it refuses."""

import numpy as np
import pytest
import scipy.sparse
import torch

from etude.graphs.dagnn import contextual_sbm

sklearn_base = pytest.importorskip("sklearn.base")
from sklearn.exceptions import NotFittedError  # noqa: E402

from etude.graphs.dagnn import DAGNNClassifier  # noqa: E402


@pytest.fixture(scope="module")
def data():
    return contextual_sbm(
        150, 3, num_features=12, feature_signal=150.0, train_per_class=8, num_val=40, num_test=60, seed=1
    )


def classifier(**arguments):
    return DAGNNClassifier(**({"num_hops": 3, "hidden_dim": 8, "epochs": 15, "random_state": 0} | arguments))


def arrays(data):
    return [part.numpy() for part in (data.x, data.edge_index, data.y, data.train_mask, data.val_mask)]


def test_parameters_are_got_set_and_cloned():
    estimator = classifier(dropout=0.3)
    assert estimator.get_params()["dropout"] == 0.3
    copy = sklearn_base.clone(estimator.set_params(num_hops=4))
    assert copy is not estimator
    assert copy.get_params() == estimator.get_params()


def test_predictions_probabilities_and_gates_have_their_shapes(data):
    estimator = classifier().fit(*arrays(data))
    probabilities = estimator.predict_proba()
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    assert probabilities.shape == (150, 3)
    assert estimator.gates_.shape == (150, 4)
    assert ((estimator.gates_ > 0) & (estimator.gates_ < 1)).all()
    assert estimator.n_features_in_ == 12
    assert np.array_equal(estimator.predict(), estimator.classes_[probabilities.argmax(1)])
    assert estimator.score(data, mask=data.test_mask) == (estimator.predict() == data.y.numpy())[data.test_mask].mean()


def test_arrays_tensors_sparse_matrices_and_graphs_give_the_same_fit(data):
    expected = classifier().fit(*arrays(data)).predict_proba()
    x, *rest = arrays(data)
    for given in ([data], [data.x, data.edge_index, data.y, data.train_mask, data.val_mask]):
        np.testing.assert_array_equal(classifier().fit(*given).predict_proba(), expected)
    sparse = classifier(dropout=0.0).fit(scipy.sparse.csr_array(x), *rest).predict_proba()
    np.testing.assert_allclose(sparse, classifier(dropout=0.0).fit(x, *rest).predict_proba(), rtol=1e-4, atol=1e-5)


def test_a_pyg_graph_is_accepted(data):
    pyg = pytest.importorskip("torch_geometric.data")
    graph = pyg.Data(x=data.x, edge_index=data.edge_index, y=data.y, train_mask=data.train_mask, val_mask=data.val_mask)
    expected = classifier().fit(data)
    fitted = classifier().fit(graph)
    np.testing.assert_array_equal(fitted.predict_proba(), expected.predict_proba())
    np.testing.assert_array_equal(fitted.predict(graph), expected.predict())


def test_labels_may_be_words_and_unlabelled_nodes_may_hold_anything(data):
    x, edge_index, y, train, val = arrays(data)
    words = np.array(["ant", "bee", "cat"])[y]
    words[~(train | val)] = "?"
    estimator = classifier().fit(x, edge_index, words, train, val)
    assert estimator.classes_.tolist() == ["ant", "bee", "cat"]
    expected = classifier().fit(x, edge_index, y, train, val).predict()
    assert np.array_equal(estimator.predict(), estimator.classes_[expected])


def test_another_graph_is_predicted_with_the_same_weights(data):
    estimator = classifier().fit(data)
    np.testing.assert_allclose(estimator.predict_proba(data.x, data.edge_index), estimator.predict_proba(), rtol=1e-6)
    alone = estimator.predict_proba(data.x[:5], torch.empty(2, 0, dtype=torch.int64))
    assert alone.shape == (5, 3)


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
    broken = x.copy()
    broken[2, 3] = np.nan
    far = edge_index.copy()
    far[0, 0] = 150
    other = y.copy()
    other[np.flatnonzero(val)[0]] = 9
    for given, message in (
        ((broken, edge_index, y, train, val), "NaN or infinite values, 1 of them"),
        ((x, far, y, train, val), "names node 150, but num_nodes=150"),
        ((x, edge_index.astype(np.float64), y, train, val), "edge_index must be int64"),
        ((x, edge_index, y[:9], train, val), r"y must have shape \(150,\)"),
        ((x, edge_index, y, train[:9], val), r"train_mask must be bool of shape \(150,\)"),
        ((x, edge_index, y, train, train), "must not overlap"),
        ((x, edge_index, y, np.zeros_like(train), val), "val_mask holds labels that train_mask does not"),
        ((x, edge_index, y, train, np.zeros_like(val)), "val_mask selects no node"),
        ((x, edge_index, other, train, val), r"labels that train_mask does not: \[9\]"),
        ((x[0], edge_index, y, train, val), "X must have shape"),
        ((x, edge_index, y, train), "fit needs val_mask"),
    ):
        with pytest.raises(ValueError, match=message):
            classifier().fit(*given)
    with pytest.raises(ValueError, match="give both X and edge_index"):
        classifier().fit(data).predict(x)
