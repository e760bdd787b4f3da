"""Permutation and sensitivity against hand loops."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from etude.science.blackbox_rules import (
    permutation_importance,
    permutations_within,
    perturbing,
    sensitivity_importance,
)

WEIGHT = np.random.default_rng(7).standard_normal((5, 3))


def predict(X):
    logits = np.asarray(X) @ WEIGHT + np.sin(X[:, :1])
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def rows(n=40):
    X = np.random.default_rng(0).standard_normal((n, 5))
    X[:, 4] = 2.5
    return X


@pytest.mark.parametrize("metric", ["probability", "macro_f1"])
def test_permutation_importance_equals_a_hand_loop_with_the_same_permutations(metric):
    X = rows()
    y = np.random.default_rng(1).integers(0, 3, 40)
    permutations = np.stack([np.random.default_rng(seed).permutation(40) for seed in range(4)])
    before = predict(X)
    expected = np.zeros(5)
    for j in range(5):
        for permutation in permutations:
            changed = X.copy()
            changed[:, j] = X[permutation, j]
            after = predict(changed)
            if metric == "probability":
                loss = np.abs(before - after).sum(1).mean()
            else:
                loss = f1_score(y, before.argmax(1), average="macro") - f1_score(y, after.argmax(1), average="macro")
            expected[j] += loss / 4
    found = permutation_importance(predict, X, metric=metric, y=y, permutations=permutations)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert found[4] == 0.0
    some = permutation_importance(predict, X, [3, 1], metric=metric, y=y, permutations=permutations)
    np.testing.assert_array_equal(some, found[[3, 1]])


def test_columns_in_small_parts_give_the_same(monkeypatch):
    X, y = rows(), np.random.default_rng(1).integers(0, 3, 40)

    def measured():
        rng = np.random.default_rng(3)
        moved = sensitivity_importance(predict, X)
        found = [permutation_importance(predict, X, metric=m, y=y, rng=rng) for m in ("probability", "macro_f1")]
        return [*found, moved.importance, moved.impact]

    whole = measured()
    monkeypatch.setattr(perturbing, "_NUMBERS", 130)
    for part, all_at_once in zip(measured(), whole):
        np.testing.assert_allclose(part, all_at_once, atol=1e-14)


def test_shuffles_stay_in_their_groups_and_are_permutations():
    groups = np.random.default_rng(0).integers(0, 4, 50)
    found = permutations_within(groups, np.random.default_rng(1).random((6, 50)))
    for shuffle in found:
        assert sorted(shuffle.tolist()) == list(range(50))
        assert (groups[shuffle] == groups).all()
    assert len({tuple(shuffle) for shuffle in found}) == 6


def test_a_copied_column_says_little_beyond_its_original():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((400, 4))
    X[:, 1] = X[:, 0] + 0.01 * rng.standard_normal(400)

    def only_the_copy(rows):
        p = 1 / (1 + np.exp(-3 * rows[:, 1]))
        return np.stack([1 - p, p], axis=1)

    free = permutation_importance(only_the_copy, X, rng=np.random.default_rng(2))
    within = permutation_importance(only_the_copy, X, rng=np.random.default_rng(2), conditional=True, companions=1)
    assert within[1] < 0.35 * free[1]
    assert within[0] == within[2] == within[3] == 0


def test_sensitivity_equals_a_hand_loop_over_quantiles():
    X, train = rows(), rows(30) + 0.5
    found = sensitivity_importance(predict, X, train=train)
    before = predict(X)
    for j in range(5):
        moved, means = [], []
        for q in (0.05, 0.25, 0.5, 0.75, 0.95):
            changed = X.copy()
            changed[:, j] = np.quantile(train[:, j], q)
            moved.append(np.abs(predict(changed) - before).sum(1).mean())
            means.append(predict(changed).mean(0))
        np.testing.assert_allclose(found.importance[j], np.mean(moved), atol=1e-12)
        np.testing.assert_allclose(found.impact[j], means[-1] - means[0], atol=1e-12)


def test_impact_has_the_sign_of_the_direction():
    def rising(X):
        p = 1 / (1 + np.exp(-(2 * X[:, 0] - X[:, 1])))
        return np.stack([1 - p, p], axis=1)

    impact = sensitivity_importance(rising, rows()[:, :3]).impact
    assert impact[0, 1] > 0 > impact[1, 1]
    assert impact[2, 1] == 0
    np.testing.assert_allclose(impact.sum(1), 0, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "auc"}, "probability, macro_f1, got 'auc'"),
        ({"metric": "macro_f1"}, "needs the true labels y"),
        ({"metric": "macro_f1", "y": np.full(40, 9)}, r"classes \[0, 1, 2\]"),
        ({"features": [5]}, r"0\.\.4, got \[5\]"),
        ({"n_repeats": 0}, "n_repeats must be positive, got 0"),
        ({"permutations": np.zeros((2, 39), dtype=np.int64)}, r"\(repeats, 40\)"),
    ],
)
def test_bad_questions_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        permutation_importance(predict, rows(), **options)


def test_quantiles_outside_the_unit_interval_are_refused():
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        sensitivity_importance(predict, rows(), quantiles=(0.1, 1.2))
