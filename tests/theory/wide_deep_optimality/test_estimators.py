"""The classifiers: limits, exact solves, symmetries, the scikit-learn contract, and refusals."""

import math
import warnings

import numpy as np
import pytest
import torch

from etude.nn.dual import dual_activation
from etude.theory.wide_deep_optimality import (
    RareCap,
    activation_for_alpha,
    deep_ntk,
    koenigs,
    optimal_activation,
    squared_distances,
    to_orthant_sphere,
)

sklearn_base = pytest.importorskip("sklearn.base")
from sklearn.exceptions import NotFittedError  # noqa: E402
from sklearn.neighbors import KNeighborsClassifier  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.utils.estimator_checks import check_estimator  # noqa: E402

from etude.theory.wide_deep_optimality import estimators  # noqa: E402
from etude.theory.wide_deep_optimality.estimators import (  # noqa: E402
    DeepNTKClassifier,
    OrthantSphere,
    SingularKernelClassifier,
)

THIRD_ORDER = torch.tensor([0, 0, math.sqrt(0.5), math.sqrt(0.5)], dtype=torch.float64)


def sample(n, seed, d=2):
    x, y, _ = RareCap(d).sample(n, torch.Generator().manual_seed(seed))
    return x.numpy(), y.numpy()


X, Y = sample(80, 0)
NEW, _ = sample(60, 1)


def nearest():
    return KNeighborsClassifier(1).fit(X, Y).predict(NEW)


def majority():
    return np.full(len(NEW), int(Y.mean() > 0.5))


# The Hilbert estimate


def test_the_hilbert_estimate_is_the_weighted_vote():
    votes = SingularKernelClassifier(alpha=2.5).fit(X, Y).decision_function(NEW)
    for vote, point in zip(votes, NEW):
        weight = np.linalg.norm(X - point, axis=1) ** -2.5
        assert vote == pytest.approx((weight * (2 * Y - 1)).sum() / weight.sum(), abs=1e-10)


def test_it_interpolates_at_any_order():
    for alpha in (0.05, 2.0, 50.0):
        assert SingularKernelClassifier(alpha=alpha).fit(X, Y).score(X, Y) == 1.0


def test_a_large_order_is_the_nearest_neighbour_and_a_small_one_the_majority():
    assert (SingularKernelClassifier(alpha=5000).fit(X, Y).predict(NEW) == nearest()).all()
    assert (SingularKernelClassifier(alpha=1e-6).fit(X, Y).predict(NEW) == majority()).all()
    assert not (SingularKernelClassifier(alpha=2).fit(X, Y).predict(NEW) == nearest()).all()


def test_probabilities_are_shares_of_the_vote():
    labels = np.array(["a", "b", "c"])[np.arange(80) % 3]
    classifier = SingularKernelClassifier(alpha=2).fit(X, labels)
    probabilities = classifier.predict_proba(NEW)
    assert probabilities.shape == (60, 3)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    weight = np.linalg.norm(X - NEW[0], axis=1) ** -2.0
    expected = [weight[labels == label].sum() / weight.sum() for label in "abc"]
    np.testing.assert_allclose(probabilities[0], expected, atol=1e-10)
    assert set(classifier.predict(NEW)) <= {"a", "b", "c"}


def test_the_order_is_the_dimension_of_the_sphere_or_of_the_space():
    assert SingularKernelClassifier().fit(X, Y).alpha_ == 2
    assert SingularKernelClassifier().fit(2 * X, Y).alpha_ == 3


def test_scikit_learns_own_checks_pass():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_estimator(
            SingularKernelClassifier(ties="first"),
            on_skip=None,
            expected_failed_checks={
                "check_do_not_raise_errors_in_init_or_set_params": "the type checker of this test run refuses at once"
            },
        )


# Deep networks


@pytest.mark.parametrize("depth", [1, 3, 12])
@pytest.mark.parametrize("phi", [torch.relu, torch.tensor([0.3, 0.6, math.sqrt(0.55)], dtype=torch.float64)])
def test_finite_depths_solve_the_kernel_regression(phi, depth):
    dual = dual_activation(phi)
    ridge = 1e-3
    inner, inner_new = torch.from_numpy(X @ X.T).clamp(max=1), torch.from_numpy(NEW @ X.T)
    kernel = deep_ntk(inner.fill_diagonal_(1.0), dual, depth)
    weights = torch.linalg.solve(
        kernel + ridge * kernel[0, 0] * torch.eye(80, dtype=torch.float64), torch.from_numpy(2.0 * Y - 1)
    )
    expected = deep_ntk(inner_new, dual, depth)
    expected = (expected @ weights * kernel[0, 0] / expected.sum(1)).numpy()
    found = DeepNTKClassifier(phi, depth, ridge=ridge).fit(X, Y).decision_function(NEW)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def test_infinite_depth_of_the_designed_activation_votes_by_the_koenigs_function():
    votes = DeepNTKClassifier().fit(X, Y).decision_function(NEW)
    weights = koenigs(torch.from_numpy(NEW @ X.T), dual_activation(optimal_activation(2))).numpy()
    np.testing.assert_allclose(votes, (weights * (2 * Y - 1)).sum(1) / weights.sum(1), atol=1e-9)
    hilbert = SingularKernelClassifier(alpha=2).fit(X, Y).predict(NEW)
    assert (np.sign(votes) == 2 * hilbert - 1).mean() > 0.9


def test_finite_networks_approach_the_limit_when_depth_is_absurd():
    limit = DeepNTKClassifier().fit(X, Y).decision_function(NEW)
    deep = DeepNTKClassifier(depth=10**9).fit(X, Y).decision_function(NEW)
    np.testing.assert_allclose(deep, limit, atol=1e-4)
    shallow = DeepNTKClassifier(depth=10).fit(X, Y).decision_function(NEW)
    assert np.abs(shallow - limit).max() > 0.1


def test_without_mean_and_linear_term_the_limit_is_the_nearest_neighbour_soon():
    assert (DeepNTKClassifier(THIRD_ORDER).fit(X, Y).predict(NEW) == nearest()).all()
    assert (DeepNTKClassifier(THIRD_ORDER, 12).fit(X, Y).predict(NEW) == nearest()).mean() > 0.95
    # 400 layers: every entry off the diagonal is 0 in double precision, and the answer is still not sign(0).
    assert (DeepNTKClassifier(THIRD_ORDER, 400).fit(X, Y).predict(NEW) == nearest()).all()


def test_with_a_mean_the_limit_is_the_majority():
    for phi in (torch.relu, torch.tensor([0.3, 0.6, math.sqrt(0.55)], dtype=torch.float64)):
        classifier = DeepNTKClassifier(phi).fit(X, Y)
        assert (classifier.predict(NEW) == majority()).all()
        assert classifier.score(X, Y) == 1.0  # it interpolates all the same


def test_networks_trained_to_the_end_interpolate():
    for phi, depth in ((torch.relu, 3), (torch.relu, 300), (THIRD_ORDER, 20), (optimal_activation(2), 400)):
        assert DeepNTKClassifier(phi, depth).fit(X, Y).score(X, Y) == 1.0


def test_votes_change_sign_with_the_labels():
    for make in (SingularKernelClassifier, DeepNTKClassifier, lambda: DeepNTKClassifier(torch.relu, 5)):
        votes = make().fit(X, Y).decision_function(NEW)
        np.testing.assert_allclose(make().fit(X, 1 - Y).decision_function(NEW), -votes, atol=1e-12)


def test_rotations_within_the_orthant_change_nothing():
    # Points near the middle of the orthant, so that turning about its axis keeps them inside.
    rng = np.random.default_rng(0)
    points = 1 + 0.2 * rng.standard_normal((50, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    axis = np.ones(3) / math.sqrt(3)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    turn = np.eye(3) + math.sin(1.0) * cross + (1 - math.cos(1.0)) * cross @ cross
    labels = rng.integers(0, 2, 40)
    for make in (SingularKernelClassifier, DeepNTKClassifier, lambda: DeepNTKClassifier(torch.relu, 5)):
        still = make().fit(points[:40], labels).decision_function(points[40:])
        turned = make().fit(points[:40] @ turn.T, labels).decision_function(points[40:] @ turn.T)
        np.testing.assert_allclose(turned, still, atol=1e-8)


def test_several_classes_are_one_against_the_rest():
    labels = (X[:, 0] * 6).astype(int) % 3
    classifier = DeepNTKClassifier(torch.relu, 4, ridge=1e-6).fit(X, labels)
    votes = classifier.decision_function(NEW)
    assert votes.shape == (60, 3)
    for k in range(3):
        alone = DeepNTKClassifier(torch.relu, 4, ridge=1e-6).fit(X, labels == k).decision_function(NEW)
        np.testing.assert_allclose(votes[:, k], alone, atol=1e-10)
    assert (classifier.predict(NEW) == votes.argmax(1)).all()


def test_blocks_do_not_change_the_votes(monkeypatch):
    whole = [make().fit(X, Y).decision_function(NEW) for make in (SingularKernelClassifier, DeepNTKClassifier)]
    network = DeepNTKClassifier(torch.relu, 5).fit(X, Y).decision_function(NEW)
    monkeypatch.setattr(estimators, "_BLOCK", 200)
    parts = [make().fit(X, Y).decision_function(NEW) for make in (SingularKernelClassifier, DeepNTKClassifier)]
    np.testing.assert_allclose(parts, whole, atol=1e-12)
    np.testing.assert_allclose(DeepNTKClassifier(torch.relu, 5).fit(X, Y).decision_function(NEW), network, atol=1e-9)


def test_equal_points_with_different_labels_are_averaged_with_a_warning():
    x, y = np.concatenate([X, X[:1], X[:1]]), np.concatenate([Y, [1 - Y[0]], [Y[0]]])
    for make in (SingularKernelClassifier, DeepNTKClassifier, lambda: DeepNTKClassifier(depth=400)):
        with pytest.warns(UserWarning, match="1 points appear several times, with different labels"):
            classifier = make().fit(x, y)
        assert classifier.decision_function(X[:1])[0] == pytest.approx((2 * Y[0] - 1) / 3, abs=1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DeepNTKClassifier().fit(np.concatenate([X, X]), np.concatenate([Y, Y]))


def test_a_tie_is_an_error_unless_the_first_class_is_wanted():
    x, y = to_orthant_sphere(np.array([[0.0], [1.0]])), np.array([0, 1])
    new = sample(2, 3, d=1)[0]
    with pytest.raises(ValueError, match=r"a tie for 2 of 2 rows.*ties=\"first\""):
        DeepNTKClassifier(torch.relu).fit(x, y).predict(new)
    assert DeepNTKClassifier(torch.relu, ties="first").fit(x, y).predict(new).tolist() == [0, 0]
    with pytest.raises(ValueError, match="ties"):
        SingularKernelClassifier(ties="last").fit(X, Y)


def test_rows_off_the_orthant_of_the_sphere_are_refused():
    with pytest.raises(ValueError, match="unit length, row 0 has 2"):
        DeepNTKClassifier().fit(2 * X, Y)
    with pytest.raises(ValueError, match="must not be negative"):
        DeepNTKClassifier().fit(X, Y).predict(-X[:3])
    with pytest.raises(ValueError, match="must not be negative"):
        DeepNTKClassifier(torch.relu, 3).fit(np.concatenate([X, -X[:1]]), np.concatenate([Y, Y[:1]]))
    with pytest.raises(ValueError, match="d would be < 1"):
        DeepNTKClassifier().fit(np.ones((4, 1)), [0, 1, 0, 1])


def test_kernels_without_an_inverse_are_refused_with_a_way_out():
    with pytest.raises(ValueError, match=r"not positive definite .*give a ridge"):
        DeepNTKClassifier(lambda z: z, 3).fit(X, Y)
    with pytest.raises(ValueError, match="not positive definite"):
        DeepNTKClassifier(depth=0).fit(X, Y)
    assert DeepNTKClassifier(depth=0, ridge=1e-6).fit(X, Y).decision_function(NEW).shape == (60,)


def test_limits_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="ridge > 0 makes the limit the majority"):
        DeepNTKClassifier(lambda z: torch.exp(z / 2)).fit(X, Y)
    ridged = DeepNTKClassifier(lambda z: torch.exp(z / 2), ridge=0.1).fit(X, Y)
    assert (ridged.predict(NEW) == majority()).all()
    with pytest.raises(ValueError, match="linear regression"):
        DeepNTKClassifier(lambda z: z).fit(X, Y)


def test_parameters_out_of_range_are_refused():
    for bad in ({"depth": -1}, {"depth": 2.5}, {"depth": "deep"}, {"ridge": -1.0}, {"activation": "relu"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            DeepNTKClassifier(**bad).fit(X, Y)
    for alpha in (0, -1.0, math.inf):
        with pytest.raises(ValueError, match="alpha"):
            SingularKernelClassifier(alpha=alpha).fit(X, Y)
    with pytest.raises(ValueError, match="one class"):
        DeepNTKClassifier().fit(X, np.zeros(80))
    with pytest.raises(ValueError, match=r"100 points would need .*max_solve is 50"):
        DeepNTKClassifier(torch.relu, 3, max_solve=50).fit(*sample(100, 0))
    with pytest.raises(NotFittedError):
        DeepNTKClassifier().predict(NEW)


def test_parameters_are_got_set_and_cloned():
    classifier = DeepNTKClassifier(torch.relu, 7, ridge=0.1)
    copy = sklearn_base.clone(classifier)
    assert copy.get_params() == classifier.get_params()
    assert copy.set_params(depth="inf").depth == "inf"


# Onto the sphere


def test_any_table_can_be_brought_onto_the_sphere():
    raw = np.random.default_rng(0).normal(size=(40, 2)) * [1, 100]
    unit = to_orthant_sphere(raw)
    assert unit.shape == (40, 3)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1)
    assert (unit >= 0).all()
    scaled = unit[:, :2] / unit[:, 2:]
    np.testing.assert_allclose(scaled, (raw - raw.min(0)) / np.ptp(raw, axis=0), atol=1e-12)
    sphere = OrthantSphere().fit(raw)
    np.testing.assert_array_equal(sphere.transform(raw), unit)
    assert (sphere.transform(raw * 10) >= 0).all()
    assert (to_orthant_sphere(np.ones((3, 2)))[:, :2] == 0).all()
    classifier = make_pipeline(OrthantSphere(), DeepNTKClassifier()).fit(raw, raw[:, 0] > 0)
    assert classifier.score(raw, raw[:, 0] > 0) == 1.0
    assert classifier[-1].taxonomy_.alpha == pytest.approx(2)


def test_malformed_tables_are_refused():
    for bad in (np.zeros(3), np.zeros((0, 2)), np.zeros((2, 0)), np.array([[1.0, np.nan]])):
        with pytest.raises(ValueError, match="X"):
            to_orthant_sphere(bad)
    with pytest.raises(ValueError, match="features"):
        OrthantSphere().fit(X).transform(X[:, :2])
    with pytest.raises(ValueError, match="features"):
        DeepNTKClassifier().fit(X, Y).predict(X[:, :2])


def test_distances_of_close_points_keep_their_digits():
    x = torch.from_numpy(X)
    y = x + 1e-9 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = (x[:, None] - y[None]).square().sum(-1)
    assert torch.allclose(squared_distances(x, y), exact, rtol=1e-7, atol=0)
    assert (squared_distances(x, x).diagonal() == 0).all()


def test_the_designed_order_is_that_of_the_data():
    x, y = sample(50, 0, d=4)
    assert DeepNTKClassifier().fit(x, y).taxonomy_.alpha == pytest.approx(4)
    same = DeepNTKClassifier(activation_for_alpha(4.0)).fit(x, y).decision_function(x[::-1] @ np.eye(5))
    np.testing.assert_array_equal(same, DeepNTKClassifier().fit(x, y).decision_function(x[::-1].copy()))
