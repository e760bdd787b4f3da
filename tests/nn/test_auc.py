"""AUC, GAUC and RelaImpr."""

import time

import numpy as np
import pytest

from etude.nn.auc import auc, gauc, grouped_auc, rela_impr

roc_auc_score = pytest.importorskip("sklearn.metrics").roc_auc_score


def case(n=400, users=30, ties=True, seed=0):
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.4).astype(int)
    score = rng.normal(size=n) + y
    return y, np.round(score, 1) if ties else score, rng.integers(users, size=n)


@pytest.mark.parametrize("weight", ["impressions", "clicks"])
def test_gauc_equals_a_loop_of_sklearn_aucs(weight):
    y, score, user = case()
    y[user == 3], y[user == 5] = 0, 1
    total = weights = 0.0
    for u in np.unique(user):
        rows = user == u
        if 0 < y[rows].sum() < rows.sum():
            n = rows.sum() if weight == "impressions" else y[rows].sum()
            total, weights = total + n * roc_auc_score(y[rows], score[rows]), weights + n
    assert gauc(y, score, user, weight) == pytest.approx(total / weights, abs=1e-12)


def test_groups_of_one_label_are_left_out_and_counted():
    y, score, user = case(users=10)
    y[user == 3], y[user == 5] = 0, 1
    found = grouped_auc(y, score, user)
    assert found.groups == 8
    assert found.excluded_groups == 2
    assert found.excluded_rows == ((user == 3) | (user == 5)).sum()
    kept = ~np.isin(user, (3, 5))
    assert found.value == pytest.approx(gauc(y[kept], score[kept], user[kept]), abs=1e-15)


def test_one_group_is_the_auc_with_ties_at_a_half():
    y, score, user = case()
    assert gauc(y, score, np.zeros_like(user)) == pytest.approx(roc_auc_score(y, score), abs=1e-12)
    assert auc(y, score) == pytest.approx(roc_auc_score(y, score), abs=1e-12)
    assert auc([0, 1, 0, 1], [1, 1, 1, 1]) == 0.5


def test_gauc_ignores_what_is_added_for_a_user_and_auc_does_not():
    y, score, user = case(ties=False)
    bias = np.random.default_rng(1).normal(size=30) * 5
    assert gauc(y, score + bias[user], user) == pytest.approx(gauc(y, score, user), abs=1e-12)
    assert abs(auc(y, score + bias[user]) - auc(y, score)) > 0.05


def test_gauc_is_invariant_under_monotone_transforms_of_each_user():
    y, score, user = case()
    transformed = np.where(user % 2 == 0, np.exp(score), score**3)
    assert gauc(y, transformed, user) == gauc(y, score, user)


def test_groups_may_be_words():
    y, score, user = case()
    assert gauc(y, score, np.array([f"u{u}" for u in user])) == pytest.approx(gauc(y, score, user), abs=1e-12)


def test_a_million_rows_take_less_than_two_seconds_of_a_core():
    y, score, user = case(1_000_000, 50_000)
    started = time.process_time()
    gauc(y, score, user)
    assert time.process_time() - started < 2


def test_rela_impr():
    assert rela_impr(0.75, 0.7) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="not defined over a base AUC"):
        rela_impr(0.6, 0.5)


def test_bad_input_is_refused():
    y, score, user = case()
    with pytest.raises(ValueError, match="needs both labels"):
        auc([1, 1], [0.1, 0.2])
    with pytest.raises(ValueError, match="none of 2 has them"):
        gauc([1, 0], [0.1, 0.2], [1, 2])
    with pytest.raises(ValueError, match="labels must be 0 or 1, got 2"):
        auc([2, 1], [0.1, 0.2])
    with pytest.raises(ValueError, match="scores must be finite, 1 are not"):
        auc([0, 1], [np.nan, 0.2])
    with pytest.raises(ValueError, match="same shape"):
        auc([0, 1], [0.2])
    with pytest.raises(ValueError, match="groups must have shape"):
        gauc(y, score, user[:3])
