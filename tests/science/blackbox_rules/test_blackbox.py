"""Training a black box: what it sees, what it leaves out, what it repeats."""

import logging

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone

from etude.science.blackbox_rules import BlackBoxClassifier, column_predictions, feature_order
from etude.science.blackbox_rules.blackbox import KINDS, predictor

QUICK = {"epochs": 2, "pretrain_epochs": 1, "batch_size": 8, "latent": 4, "hidden": 6}


def table(n=40, d=12, classes=2, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(3.0, 2.0, (n, d))
    y = np.arange(n) % classes
    X[:, 0] += 4 * y
    return X, y


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_trains_predicts_and_repeats(kind):
    X, y = table(classes=3)
    labels = np.array(["a", "b", "c"])[y]
    box = BlackBoxClassifier(kind, **QUICK).fit(X, labels)
    p = box.predict_proba(X)
    assert p.shape == (40, 3)
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-6)
    assert set(box.predict(X)) <= {"a", "b", "c"}
    assert box.embed(X).shape == (40, 4 if kind in ("cae", "dae") else 6)
    again = clone(box).fit(X, labels)
    np.testing.assert_array_equal(again.predict_proba(X), p)


def test_training_leaves_the_global_random_state():
    torch.manual_seed(3)
    before = torch.rand(2)
    torch.manual_seed(3)
    BlackBoxClassifier("cae", **QUICK).fit(*table())
    assert torch.equal(torch.rand(2), before)


def test_columns_are_standardised_by_the_training_rows():
    X, y = table()
    box = BlackBoxClassifier("mlp", sd_offset=0.2, **QUICK).fit(X, y)
    expected = (X - X.mean(0)) / (X.std(0) + 0.2)
    np.testing.assert_allclose(box.standardize(X).numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(box.standardize(X + 1).numpy(), expected + 1 / (X.std(0) + 0.2), atol=1e-5)


@pytest.mark.parametrize("kind", ["gated", "cae"])
def test_constant_columns_are_left_out_with_a_note(kind, caplog):
    X, y = table()
    X[:, 4] = 7.0
    with caplog.at_level(logging.WARNING):
        box = BlackBoxClassifier(kind, **QUICK).fit(X, y)
    assert sorted(box.kept_.tolist()) == [j for j in range(12) if j != 4]
    assert box.notes_ == ["1 constant columns were left out: x4"]
    assert "x4" in caplog.text
    other = X.copy()
    other[:, 4] = -50.0
    np.testing.assert_array_equal(box.predict_proba(other), box.predict_proba(X))


@pytest.mark.parametrize("kind", ["gated", "mlp"])
def test_the_short_cut_for_one_changed_column_equals_passes_over_changed_rows(kind):
    X, y = table()
    X[:, 4] = 7.0
    box = BlackBoxClassifier(kind, **QUICK).fit(X, y)
    features = np.array([0, 4, 7, 0])
    values = np.random.default_rng(1).normal(3, 5, (4, 40))
    quick = box.predict_columns(X, features, values)
    for copy, (feature, column) in enumerate(zip(features, values)):
        changed = X.copy()
        changed[:, feature] = column
        np.testing.assert_allclose(quick[copy], box.predict_proba(changed), atol=1e-5)
    slow = column_predictions(box.predict_proba, X, features, values)
    np.testing.assert_allclose(quick, slow, atol=1e-5)
    np.testing.assert_array_equal(column_predictions(box, X, features, values), quick)


def test_a_box_without_the_short_cut_sees_the_changed_rows():
    X, y = table()
    box = BlackBoxClassifier("dae", **QUICK).fit(X, y)
    values = np.zeros((1, 40))
    assert box.predict_columns(X, np.array([2]), values) is None
    changed = X.copy()
    changed[:, 2] = 0
    np.testing.assert_allclose(column_predictions(box, X, np.array([2]), values)[0], box.predict_proba(changed))


def test_correlated_columns_become_neighbours():
    rng = np.random.default_rng(0)
    base = rng.standard_normal((60, 4))
    X = np.concatenate([base + 0.05 * rng.standard_normal((60, 4)) for _ in range(3)], axis=1)
    order = feature_order(X, "corr")
    assert sorted(order.tolist()) == list(range(12))
    groups = order % 4
    assert all(len(set(groups[start : start + 3].tolist())) == 1 for start in (0, 3, 6, 9))


def test_the_other_orders_are_what_they_say():
    X = table()[0]
    assert feature_order(X, "given").tolist() == list(range(12))
    shuffled = feature_order(X, "random", torch.Generator().manual_seed(0))
    assert sorted(shuffled.tolist()) == list(range(12))
    assert shuffled.tolist() != list(range(12))
    with pytest.raises(ValueError, match="corr, given, random, got 'size'"):
        feature_order(X, "size")


def test_too_many_columns_for_pairs_are_ordered_by_their_plane(monkeypatch):
    from etude.science.blackbox_rules import blackbox

    monkeypatch.setattr(blackbox, "_CLUSTERED", 5)
    torch.manual_seed(0)
    assert sorted(feature_order(table()[0], "corr").tolist()) == list(range(12))


def test_a_data_frame_gives_the_columns_their_names():
    X, y = table()
    frame = pd.DataFrame(X, columns=[f"gene {j}" for j in range(12)])
    box = BlackBoxClassifier("mlp", **QUICK).fit(frame, pd.Series(y))
    assert box.feature_names_in_[3] == "gene 3"
    np.testing.assert_array_equal(box.predict_proba(frame), box.predict_proba(X))


def bad(**changes):
    X, y = table()
    options = {"X": X, "y": y} | changes
    return options["X"], options["y"]


def holed():
    X, _ = table()
    X[3, [2, 5]] = np.nan
    return X


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bad(X=holed()), "NaN or infinite values in 2 columns: x2, x5; impute"),
        (bad(y=np.zeros(40)), r"at least two classes, got only \[0.0\]"),
        (bad(y=np.r_[np.zeros(39), 1]), "at least 2 rows, class .*1.0.* has 1"),
        (bad(y=np.zeros(39)), r"y must have shape \(40,\)"),
        (bad(y=np.r_[np.nan, np.ones(39)]), "y holds NaN"),
        (bad(X=np.ones((40, 3))), "all 3 columns of X are constant"),
        (bad(X=np.ones(40)), r"X must have shape \(rows, features\).* got \(40,\)"),
        (bad(X=np.array([["a", "b"]] * 40)), "X must hold numbers"),
        (bad(X=pd.DataFrame({"size": range(40), "colour": ["red", "blue"] * 20})), "no numbers: colour; encode"),
    ],
)
def test_bad_tables_are_refused_with_what_was_expected(data, message):
    with pytest.raises(ValueError, match=message):
        BlackBoxClassifier(**QUICK).fit(*data)


def test_other_columns_than_in_fit_are_refused():
    box = BlackBoxClassifier("mlp", **QUICK).fit(*table())
    with pytest.raises(ValueError, match="12 columns, as in fit, got 11"):
        box.predict_proba(np.zeros((2, 11)))


@pytest.mark.parametrize("kind", KINDS)
def test_more_features_than_memory_are_refused_before_anything_is_built(kind):
    with pytest.raises(MemoryError, match=r"needs about .* GB, 1e-06 GB are there: drop columns first"):
        BlackBoxClassifier(kind, memory=1_000).fit(*table())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "forest"}, "gated, mlp, san, cae, dae, got 'forest'"),
        ({"epochs": 0}, "epochs must be positive, got 0"),
        ({"sd_offset": -1.0}, "sd_offset must not be negative"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BlackBoxClassifier(**options).fit(*table())


def test_what_is_no_black_box_is_refused():
    with pytest.raises(TypeError, match="predict_proba or can be called, got int"):
        predictor(3)
