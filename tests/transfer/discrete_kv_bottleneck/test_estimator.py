"""The scikit-learn estimator, and the pictures."""

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("sklearn")
from sklearn.base import clone

from etude.transfer.discrete_kv_bottleneck import DKVBClassifier, plot_pairs, plot_phases

NAMES = np.array(["ant", "bee", "cow"])


def blobs(n=150, seed=0):
    draw = np.random.default_rng(seed)
    codes = np.arange(n) % 3
    centres = np.array([[4.0, 0, 0, 0, 0], [0, 4, 0, 0, 0], [0, 0, 4, 0, 0]])
    return centres[codes] + draw.normal(0, 0.5, size=(n, 5)), NAMES[codes]


def small(**options):
    return DKVBClassifier(**{"num_codebooks": 8, "num_pairs": 16, "dim_key": 3, "random_state": 0} | options)


def test_classes_that_come_one_after_the_other_are_all_known_at_the_end():
    X, y = blobs()
    classifier = small(epochs=5).place_keys(X)
    for name in NAMES:
        classifier.partial_fit(X[y == name], y[y == name], classes=NAMES)
    assert classifier.score(*blobs(seed=1)) > 0.9
    assert classifier.predict_proba(X[:4]).sum(axis=1) == pytest.approx(np.ones(4))
    assert classifier.classes_.tolist() == NAMES.tolist()


def test_fit_places_keys_by_itself_or_keeps_those_placed_before():
    X, y = blobs()
    alone = small().fit(X, y)
    placed = small().place_keys(X).fit(X, y)
    assert np.array_equal(alone.predict_proba(X), placed.predict_proba(X))
    elsewhere = small().place_keys(X + 1)
    keys = elsewhere._bottleneck.codebook.keys.clone()
    assert torch.equal(elsewhere.fit(X, y)._bottleneck.codebook.keys, keys)


def test_fitting_again_starts_afresh():
    X, y = blobs()
    once, twice = small().fit(X, y), small().fit(X[:60], y[:60]).fit(X, y)
    assert np.array_equal(once.predict_proba(X), twice.predict_proba(X))


def test_a_random_state_repeats_and_clones_are_equal():
    X, y = blobs()
    one = small(epochs=2)
    other = clone(one)
    assert other.get_params() == one.get_params()
    assert np.array_equal(one.fit(X, y).predict_proba(X), other.fit(X, y).predict_proba(X))


def test_features_are_standardized_by_the_placement_data_if_asked():
    X, y = blobs()
    scaled = X * np.array([1, 1000, 1, 1, 1]) + 5
    plain = small(standardize=True, epochs=5).fit(X, y).predict(X)
    assert (small(standardize=True, epochs=5).fit(scaled, y).predict(scaled) == plain).mean() > 0.95


def test_an_encoder_of_the_users_own_is_frozen_and_used():
    X, y = blobs()
    encoder = nn.Linear(5, 12)
    weight = encoder.weight.detach().clone()
    classifier = small(encoder=encoder).fit(X, y)
    assert classifier.n_features_in_ == 12
    assert torch.equal(encoder.weight, weight)
    with torch.no_grad():
        z = encoder(torch.from_numpy(X).float())
    assert np.array_equal(small().fit(z.numpy(), y).predict(z.numpy()), classifier.predict(X))


def test_every_label_must_have_been_announced():
    X, y = blobs()
    with pytest.raises(ValueError, match="keys have not been placed: call place_keys"):
        small().partial_fit(X, y, classes=NAMES)
    classifier = small().place_keys(X)
    with pytest.raises(ValueError, match="classes, all labels that will ever come"):
        classifier.partial_fit(X, y)
    classifier.partial_fit(X, y, classes=NAMES)
    with pytest.raises(ValueError, match=r"y must hold labels of .*got \['dog'\] besides"):
        classifier.partial_fit(X[:1], ["dog"])
    with pytest.raises(ValueError, match="classes must be those of the first call"):
        classifier.partial_fit(X, y, classes=["ant", "bee"])


def test_bad_input_is_refused():
    X, y = blobs()
    with pytest.raises(ValueError, match=r"at least two classes, got \['ant'\]"):
        small().fit(X[y == "ant"], y[y == "ant"])
    with pytest.raises(ValueError, match=r"y must have shape \(150,\)"):
        small().place_keys(X).partial_fit(X, y[:3], classes=NAMES)
    with pytest.raises(ValueError, match="NaN or infinite values, 1 of them"):
        small().fit(np.where(np.arange(5) + np.zeros((150, 5)) + 10 * np.arange(150)[:, None] == 1, np.nan, X), y)
    with pytest.raises(ValueError, match=r"got \(4, 1, 8, 8\); images need an encoder"):
        small().place_keys(np.zeros((4, 1, 8, 8)))
    with pytest.raises(ValueError, match="no rows"):
        small().place_keys(X[:0])
    with pytest.raises(ValueError, match="X has 3 features, keys were placed by 5"):
        small().fit(X, y).predict(X[:, :3])
    from sklearn.exceptions import NotFittedError

    with pytest.raises(NotFittedError):
        small().predict(X)


def test_pictures_of_a_stream_and_of_the_pairs():
    pytest.importorskip("matplotlib")
    X, y = blobs()
    classifier = small().fit(X, y)
    figure = plot_phases({"dkvb": [0.2, 0.4], "linear": [0.2, 0.2]}, iid={"dkvb": 0.5})
    lines = figure.axes[0].lines
    assert list(lines[0].get_ydata()) == [0.2, 0.4]
    assert list(lines[1].get_ydata()) == [0.5, 0.5]
    bottleneck = classifier.model_.bottleneck
    above, below = (axis.images[0].get_array() for axis in plot_pairs(bottleneck, most=10).axes[:2])
    torch.testing.assert_close(torch.as_tensor(np.asarray(above)), bottleneck.usage[:, :10].float().log1p())
    unused = (bottleneck.usage[:, :10] == 0).numpy()
    assert np.array_equal(np.ma.getmaskarray(np.ma.masked_invalid(below)), unused)
    with pytest.raises(ValueError, match="no curves"):
        plot_phases({})
