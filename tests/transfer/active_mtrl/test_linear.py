"""Alternating least squares against what it must find."""

import numpy as np
import pytest

from etude.transfer.active_mtrl import LinearMTR, draw_instance, subspace_error
from etude.transfer.active_mtrl.linear import head_noise, subspace_distance


def drawn(dim=8, rank=2, tasks=6, n=40, noise=0.3, seed=0):
    rng = np.random.default_rng(seed)
    instance = draw_instance(dim, rank, tasks, rng, noise=noise)
    X = [rng.standard_normal((n + task, dim)) for task in range(tasks)]
    y = [x @ instance.basis @ instance.heads[:, t] + noise * rng.standard_normal(len(x)) for t, x in enumerate(X)]
    return instance, X, y


def loss(model, X, y):
    return sum(np.square(labels - model.predict(x, task)).sum() for task, (x, labels) in enumerate(zip(X, y)))


def test_the_objective_is_the_sum_over_samples_and_never_rises():
    _, X, y = drawn()
    model = LinearMTR(2, tol=0, max_iter=20).fit(X, y)
    assert model.n_iter_ == 20
    assert model.objective_[-1] == pytest.approx(loss(model, X, y))
    assert (np.diff(model.objective_) <= 1e-9 * model.objective_[0]).all()


def test_no_neighbour_is_better():
    _, X, y = drawn()
    model = LinearMTR(2, tol=1e-10, max_iter=500).fit(X, y)
    best, rng = loss(model, X, y), np.random.default_rng(0)
    basis, heads = model.basis_, model.heads_
    for _ in range(50):
        model.basis_ = np.linalg.qr(basis + 1e-3 * rng.standard_normal(basis.shape))[0]
        model.heads_ = basis.T @ basis @ heads + 1e-3 * rng.standard_normal(heads.shape)
        assert loss(model, X, y) > best


def test_noiseless_tasks_are_recovered():
    instance, X, y = drawn(dim=20, rank=3, tasks=15, n=22, noise=0.0)
    model = LinearMTR(3, tol=1e-12, max_iter=300).fit(X, y)
    assert subspace_distance(model.basis_, instance.basis) < 1e-8
    assert subspace_error(model.basis_, instance.basis[:, 0]) < 1e-15


def test_noiseless_tasks_of_fewer_samples_than_features_are_recovered_together():
    instance, X, y = drawn(dim=20, rank=3, tasks=100, n=10, noise=0.0)
    X, y = [x[:10] for x in X], [labels[:10] for labels in y]
    model = LinearMTR(3, tol=1e-9, max_iter=300).fit(X, y)
    assert subspace_distance(model.basis_, instance.basis) < 1e-4


def test_full_rank_is_ordinary_least_squares():
    _, X, y = drawn(dim=3, rank=2, tasks=4, n=12)
    model = LinearMTR(3).fit(X, y)
    for task, (x, labels) in enumerate(zip(X, y)):
        assert model.basis_ @ model.heads_[:, task] == pytest.approx(np.linalg.lstsq(x, labels, rcond=None)[0])


def test_conjugate_gradients_find_the_same_space():
    _, X, y = drawn()
    dense, cg = (LinearMTR(2, solver=solver, tol=1e-10, max_iter=300).fit(X, y) for solver in ("dense", "cg"))
    assert subspace_distance(dense.basis_, cg.basis_) < 1e-6


def test_a_task_of_more_samples_weighs_more():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 2))
    few, many = x[:5], x
    model = LinearMTR(1).fit([few, many], [few[:, 0], many[:, 1]])
    assert subspace_error(model.basis_, np.array([0.0, 1.0])) < 0.05
    assert subspace_error(model.basis_, np.array([1.0, 0.0])) > 0.9


def test_fewer_tasks_than_the_rank_and_fewer_samples_than_the_rank_are_solved():
    rng = np.random.default_rng(0)
    model = LinearMTR(3).fit([rng.standard_normal((2, 6))], [rng.standard_normal(2)])
    assert np.isfinite(model.heads_).all()
    assert model.basis_.T @ model.basis_ == pytest.approx(np.eye(3))


def test_ridge_shrinks():
    _, X, y = drawn()
    plain, ridged = (LinearMTR(2, ridge=ridge).fit(X, y) for ridge in (0, 50.0))
    assert np.linalg.norm(ridged.heads_) < np.linalg.norm(plain.heads_)
    inner = X[0] @ ridged.basis_
    by_hand = np.linalg.solve(inner.T @ inner + 50 * np.eye(2), inner.T @ y[0])
    assert ridged.heads_[:, 0] == pytest.approx(by_hand)
    assert ridged.fit_head(X[0], y[0]) == pytest.approx(by_hand)


def test_the_standard_error_of_a_head():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((50, 3))
    found = []
    for _ in range(400):
        labels = features @ np.ones(3) + 0.5 * rng.standard_normal(50)
        found.append(np.linalg.lstsq(features, labels, rcond=None)[0])
    residuals = labels - features @ found[-1]
    assert head_noise(features, residuals, 0) == pytest.approx(np.std(found, axis=0).mean(), rel=0.25)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (LinearMTR(9), r"rank must lie in 1..8, the number of features, got 9"),
        (LinearMTR(2, ridge=-1), "ridge >= 0 and max_iter >= 1 are needed, got -1 and 50"),
        (LinearMTR(2, solver="fast"), "got 'fast'"),
    ],
)
def test_what_cannot_be_fitted_is_refused(model, message):
    _, X, y = drawn()
    with pytest.raises(ValueError, match=message):
        model.fit(X, y)


def test_a_dense_system_that_is_too_large_is_refused():
    with pytest.raises(ValueError, match=r'100 x 50 = 5000 unknowns takes 0.2 GB.*solver="cg"'):
        LinearMTR(50, solver="dense").fit([np.ones((3, 100))], [np.ones(3)])


def test_tasks_must_fit_each_other():
    x = np.ones((4, 3))
    with pytest.raises(ValueError, match="as many tasks, at least one, got 1 and 0"):
        LinearMTR(1).fit([x], [])
    with pytest.raises(ValueError, match=r"task 0 must have .* got shapes \(4, 3\) and \(3,\)"):
        LinearMTR(1).fit([x], [np.ones(3)])
    with pytest.raises(ValueError, match=r"as many features, got \[2, 3\]"):
        LinearMTR(1).fit([x, x[:, :2]], [np.ones(4)] * 2)
    with pytest.raises(ValueError, match="task 0 holds NaN"):
        LinearMTR(1).fit([x * np.nan], [np.ones(4)])
    with pytest.raises(ValueError, match="call fit first"):
        LinearMTR(1).predict(x, [1.0])
    with pytest.raises(ValueError, match=r"\(n, 3\)"):
        LinearMTR(1).fit([x], [np.ones(4)]).predict(x[:, :2], 0)
