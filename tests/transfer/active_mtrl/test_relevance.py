"""Relevance against its definition, and plans against what they minimise."""

import math

import numpy as np
import pytest
from scipy.linalg import null_space

from etude.transfer.active_mtrl import (
    allocate,
    l1_relevance,
    l2_relevance,
    lasso_relevance,
    realised_risk,
    risk_bound,
)


def instance(k=4, tasks=11, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((k, tasks)), rng.standard_normal(k)


@pytest.mark.parametrize("seed", range(5))
def test_l1_is_feasible_sparse_and_of_least_norm(seed):
    W, w = instance(seed=seed)
    nu = l1_relevance(W, w)
    assert np.linalg.norm(W @ nu - w) < 1e-8
    assert np.count_nonzero(nu) <= 4
    null, rng = null_space(W), np.random.default_rng(seed)
    for scale in (1e-3, 0.1, 1.0):
        for _ in range(50):
            other = nu + scale * null @ rng.standard_normal(null.shape[1])
            assert np.abs(nu).sum() <= np.abs(other).sum() + 1e-9


def test_l2_is_orthogonal_to_the_null_space():
    W, w = instance()
    nu = l2_relevance(W, w)
    assert np.linalg.norm(W @ nu - w) < 1e-10
    assert np.abs(null_space(W).T @ nu).max() < 1e-12


@pytest.mark.parametrize("seed", range(5))
def test_norms_are_ordered(seed):
    W, w = instance(seed=seed)
    one, two = l1_relevance(W, w), l2_relevance(W, w)
    assert np.abs(one).sum() <= np.abs(two).sum() + 1e-12
    assert np.abs(two).sum() <= math.sqrt(W.shape[1]) * np.linalg.norm(two) + 1e-12


def test_the_known_case_of_three_heads():
    half = math.sqrt(0.5)
    W, w = np.array([[1.0, 0.0, half], [0.0, 1.0, half]]), np.array([half, half])
    assert l1_relevance(W, w) == pytest.approx([0, 0, 1], abs=1e-12)
    two = l2_relevance(W, w)
    assert two == pytest.approx([math.sqrt(2) / 4, math.sqrt(2) / 4, 0.5])
    assert np.linalg.norm(two) == pytest.approx(half)
    assert np.abs(two).sum() == pytest.approx(1.2071, abs=1e-4)
    assert 3 * np.linalg.norm(two) ** 2 == pytest.approx(1.5)


def test_prices_move_the_program_to_cheaper_sources():
    W, w = np.array([[1.0, 0.9]]), np.array([1.0])
    assert l1_relevance(W, w) == pytest.approx([1, 0])
    assert l1_relevance(W, w, weights=[2.0, 1.0]) == pytest.approx([0, 1 / 0.9])


def test_scale_does_not_matter():
    W, w = instance()
    assert l1_relevance(W, 1e-9 * w) == pytest.approx(1e-9 * l1_relevance(W, w), rel=1e-9)
    assert not l1_relevance(W, 0 * w).any()


def test_a_target_outside_the_span_is_infeasible_or_projected():
    W, w = np.array([[1.0, 2.0], [0.0, 0.0]]), np.array([1.0, 1.0])
    with pytest.raises(ValueError, match=r"infeasible.* 1 of its length 1.41 .*dimension 1 of 2"):
        l1_relevance(W, w)
    with pytest.warns(RuntimeWarning, match="no mixture of the heads: 1 of its length 1.41"):
        nu = l2_relevance(W, w)
    assert W @ nu == pytest.approx([1, 0])


def test_lasso_without_penalty_is_the_interpolant_and_with_much_of_it_nothing():
    W, w = instance()
    assert np.array_equal(lasso_relevance(W, w, lam=0), l1_relevance(W, w))
    near = lasso_relevance(W, w, lam=1e-3)
    assert np.abs(near).sum() == pytest.approx(np.abs(l1_relevance(W, w)).sum(), rel=1e-2)
    largest = np.abs(W.T @ w).max()
    assert not lasso_relevance(W, w, lam=largest).any()
    assert lasso_relevance(W, w, lam=0.99 * largest).any()


def test_lasso_meets_its_optimality_conditions():
    W, w = instance()
    lam = 0.2
    nu = lasso_relevance(W, w, lam=lam)
    slope = W.T @ (w - W @ nu)
    assert np.abs(slope).max() <= lam * (1 + 1e-5)
    assert slope[nu != 0] == pytest.approx(lam * np.sign(nu[nu != 0]), rel=1e-5)


def test_auto_takes_the_sparsest_point_that_the_noise_allows():
    W, w = instance(k=6, tasks=30)
    for noise in (0.05, 0.3):
        nu = lasso_relevance(W, w, noise=noise)
        assert np.linalg.norm(W @ nu - w) <= 1.5 * noise * math.sqrt(6)
        # A little sparser is too far from w.
        largest = np.abs(W.T @ w).max()
        lam = np.abs(W.T @ (w - W @ nu)).max()
        sparser = lasso_relevance(W, w, lam=min(1.07 * lam, largest))
        assert np.linalg.norm(W @ sparser - w) > 1.5 * noise * math.sqrt(6)


@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_number_of_tasks_may_be_asked_for(most):
    W, w = instance(k=6, tasks=30)
    assert 1 <= np.count_nonzero(lasso_relevance(W, w, max_tasks=most)) <= most


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lam": -1}, "not negative, got -1"),
        ({"lam": "best"}, "got 'best'"),
        ({}, 'lam="auto" needs noise'),
        ({"max_tasks": 0}, "at least 1, got 0"),
    ],
)
def test_lasso_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        lasso_relevance(*instance(), **options)


def test_heads_and_target_must_fit():
    W, w = instance()
    with pytest.raises(ValueError, match=r"\(4, 11\) and \(3,\)"):
        l1_relevance(W, w[:3])
    with pytest.raises(ValueError, match="must be finite"):
        l2_relevance(W, w * np.nan)
    with pytest.raises(ValueError, match="weights must be 11 positive"):
        l1_relevance(W, w, weights=[0.0] * 11)


# Plans


def test_the_realised_risk_is_the_least_bound():
    W, w = instance()
    n = np.random.default_rng(1).integers(1, 50, 11)
    least = realised_risk(W, w, n)
    null = null_space(W)
    # The best nu is n_t w_t' G^-1 w.
    best = n * (W.T @ np.linalg.solve((W * n) @ W.T, w))
    assert W @ best == pytest.approx(w)
    assert risk_bound(best, n) == pytest.approx(least)
    rng = np.random.default_rng(2)
    for _ in range(100):
        assert risk_bound(best + null @ rng.standard_normal(7), n) >= least
    assert risk_bound([1.0, 2.0], [0, 5]) == math.inf
    assert realised_risk(W, w, np.eye(11)[0]) == math.inf


def test_the_l1_rule_minimises_the_bound():
    rng = np.random.default_rng(0)
    nu = rng.standard_normal(6)
    budget = 100_000
    best = risk_bound(nu, allocate(nu, budget=budget))
    assert best == pytest.approx(np.abs(nu).sum() ** 2 / budget, rel=1e-3)
    for _ in range(1_000):
        assert risk_bound(nu, budget * rng.dirichlet(np.ones(6))) >= best * (1 - 1e-6)


def test_with_prices_the_rule_minimises_the_bound_for_the_money():
    rng = np.random.default_rng(0)
    nu, price = rng.standard_normal(6), rng.uniform(0.5, 3, 6)
    money = 100_000
    counts = allocate(nu, budget=money, costs=price)
    assert money - price.min() < price @ counts <= money
    for _ in range(1_000):
        assert risk_bound(nu, money * rng.dirichlet(np.ones(6)) / price) >= risk_bound(nu, counts) * (1 - 1e-3)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("budget", [60, 61, 997])
def test_plans_sum_exactly_and_keep_the_minimum_and_the_order(power, budget):
    nu = np.array([0.3, -0.7, 0.0, 0.1, 0.1, 2.0])
    counts = allocate(nu, budget=budget, minimum=10, power=power)
    assert counts.sum() == budget
    assert counts.min() >= 10
    order = np.argsort(np.abs(nu))
    assert (np.diff(counts[order]) >= 0).all()
    extra = budget - 60
    shares = np.abs(nu) ** power / (np.abs(nu) ** power).sum()
    assert np.abs(counts - 10 - extra * shares).max() < 1


def test_plans_follow_a_permutation():
    nu = np.random.default_rng(0).standard_normal(9)
    order = np.random.default_rng(1).permutation(9)
    assert np.array_equal(allocate(nu[order], budget=1_003, minimum=3), allocate(nu, budget=1_003, minimum=3)[order])


def test_what_a_source_does_not_hold_goes_to_the_others():
    counts = allocate([8.0, 1.0, 1.0], budget=100, capacity=[20, 1_000, 1_000])
    assert counts.tolist() == [20, 40, 40]
    assert allocate([1.0, 0.0, 0.0], budget=30, capacity=[10, 100, 100]).tolist() == [10, 10, 10]
    assert allocate([1.0, 1.0], budget=12, minimum=8, capacity=[3, 100]).tolist() == [3, 9]


def test_no_relevance_is_spread_evenly_with_a_warning():
    with pytest.warns(RuntimeWarning, match="spread evenly"):
        assert allocate([0.0, 0.0, 0.0], budget=9, minimum=1).tolist() == [3, 3, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 5, "minimum": 2}, "a budget of 5 does not pay 2 samples of each of 3 sources: 6"),
        ({"budget": 50, "capacity": [1, 2, 3]}, "exceeds what the sources hold, 6"),
        ({"budget": 5.5}, "must be whole, got 5.5"),
        ({"budget": 5, "costs": [1.0, 0.0, 1.0]}, "costs must be 3 positive numbers"),
        ({"budget": 5, "capacity": [1.0]}, "capacity must be 3 numbers"),
        ({"budget": 5, "power": 0}, "power must be positive"),
    ],
)
def test_plans_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        allocate([1.0, 2.0, 3.0], **options)


def test_relevance_must_be_finite():
    with pytest.raises(ValueError, match="finite numbers"):
        allocate([1.0, math.nan], budget=4)
