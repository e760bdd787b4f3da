"""Fidelity, comprehensiveness and sufficiency."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, matthews_corrcoef

from etude.science.blackbox_rules import classification_scores, comprehensiveness, fidelity, sufficiency


def probabilities(n=30, classes=3, seed=0):
    p = np.random.default_rng(seed).random((n, classes))
    return p / p.sum(1, keepdims=True)


def test_the_constant_column_means_have_r2_of_0_and_a_copy_1():
    p = probabilities()
    assert fidelity(p, np.broadcast_to(p.mean(0), p.shape))["r2"] == pytest.approx(0, abs=1e-12)
    assert fidelity(p, p) == {"agreement": 1.0, "r2": 1.0}


def test_r2_and_agreement_by_hand():
    p, q = probabilities(), probabilities(seed=1)
    missed = sum((p[i, c] - q[i, c]) ** 2 for i in range(30) for c in range(3))
    total = sum((p[i, c] - p[:, c].mean()) ** 2 for i in range(30) for c in range(3))
    found = fidelity(p, q)
    assert found["r2"] == pytest.approx(1 - missed / total)
    assert found["agreement"] == np.mean([p[i].argmax() == q[i].argmax() for i in range(30)])


def test_a_box_that_never_changes_has_r2_of_1_or_0():
    p = np.broadcast_to(probabilities(1), (4, 3))
    assert fidelity(p, p)["r2"] == 1
    assert fidelity(p, probabilities(4))["r2"] == 0


def test_scores_are_those_of_scikit_learn():
    y, said = np.array([0, 1, 2, 2, 1]), np.array([0, 2, 2, 2, 1])
    found = classification_scores(y, said)
    assert found["accuracy"] == pytest.approx(0.8)
    assert found["macro_f1"] == pytest.approx(f1_score(y, said, average="macro"))
    assert found["mcc"] == pytest.approx(matthews_corrcoef(y, said))


def two_columns(X):
    p = 1 / (1 + np.exp(-(3 * X[:, 1] - 2 * X[:, 3])))
    return np.stack([1 - p, p], axis=1)


def test_the_columns_in_use_are_comprehensive_and_sufficient():
    X = np.random.default_rng(0).standard_normal((50, 5))
    baseline = np.zeros(5)
    assert sufficiency(two_columns, X, np.array([1, 3]), baseline) == pytest.approx(0, abs=1e-12)
    assert comprehensiveness(two_columns, X, np.array([0, 2, 4]), baseline) == pytest.approx(0, abs=1e-12)
    before = two_columns(X).max(1)
    assert comprehensiveness(two_columns, X, np.array([1, 3]), baseline) == pytest.approx((before - 0.5).mean())


def test_columns_may_be_each_rows_own_and_the_mean_fills():
    X = np.random.default_rng(0).standard_normal((3, 5))
    own = np.array([[1], [3], [0]])
    loss = []
    for x, (column,) in zip(X, own):
        changed = x.copy()
        changed[column] = X[:, column].mean()
        label = two_columns(x[None])[0].argmax()
        loss.append(two_columns(x[None])[0, label] - two_columns(changed[None])[0, label])
    assert comprehensiveness(two_columns, X, own) == pytest.approx(np.mean(loss))


def test_columns_that_are_not_there_are_refused():
    X = np.zeros((4, 5))
    with pytest.raises(ValueError, match=r"columns must lie in 0\.\.4, got 1\.\.5"):
        sufficiency(two_columns, X, np.array([1, 5]))
    with pytest.raises(ValueError, match=r"columns must be \(k,\), or \(4, k\)"):
        comprehensiveness(two_columns, X, np.zeros((3, 2), dtype=int))
    with pytest.raises(ValueError, match=r"baseline must have shape \(5,\)"):
        comprehensiveness(two_columns, X, np.array([1]), np.zeros(4))
