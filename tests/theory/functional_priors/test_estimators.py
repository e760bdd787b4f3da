"""The estimators: scikit-learn's contract, units, no look at the targets while matching, refusals."""

import math
import warnings

import numpy as np
import pytest
import torch

pytest.importorskip("gpytorch")
sklearn_base = pytest.importorskip("sklearn.base")
from sklearn.utils.estimator_checks import check_estimator  # noqa: E402

from etude.theory.functional_priors import GPFunctionPrior  # noqa: E402
from etude.theory.functional_priors.estimators import PRIORS, BNNClassifier, BNNRegressor  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:a poor match", "ignore:.*noise variances were clamped")

QUICK = {
    "hidden": (8,), "functions": 8, "outer_steps": 2, "inner_steps": 2, "chains": 2, "burn_in": 20, "samples": 5,
    "keep_every": 4, "discard": 1, "random_state": 0,
}  # fmt: skip
LONGER = QUICK | {"burn_in": 300, "samples": 20, "keep_every": 20, "discard": 0, "chains": 4, "lr": 0.02}


def table(n=60, seed=0):
    rng = np.random.RandomState(seed)
    X = rng.randn(n, 3) * [1.0, 10.0, 0.1] + [0.0, 5.0, 100.0]
    return X, 50 + 20 * X[:, 0] + rng.randn(n)


@pytest.mark.parametrize("estimator", [BNNRegressor, BNNClassifier])
def test_scikit_learns_contract(estimator):
    small = QUICK | {
        "burn_in": 40,
        "samples": 4,
        "discard": 0,
        "keep_every": 4,
        "chains": 1,
        "hierarchical": False,
        "lr": 0.05,
        "mdecay": 0.05,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_estimator(
            estimator(prior="fg", **small),
            on_skip=None,
            expected_failed_checks={
                "check_do_not_raise_errors_in_init_or_set_params": "the type checker of this test run refuses at once"
            },
        )


def test_a_regression_is_learned_in_the_targets_units():
    X, y = table()
    model = BNNRegressor(prior="fg", **LONGER).fit(X, y)
    assert model.score(X, y) > 0.9
    mean, std = model.predict(X, return_std=True)
    assert np.array_equal(mean, model.predict(X))
    assert std.min() >= model.y_std_ * math.sqrt(0.1)
    expected = np.mean(
        [0.5 * ((b - a) / s) ** 2 + math.log(s * math.sqrt(2 * math.pi)) for a, s, b in zip(mean, std, y)]
    )
    assert model.nll(X, y) == pytest.approx(expected)
    shifted = BNNRegressor(prior="fg", **LONGER).fit(X, 1000 * y - 7)
    assert shifted.nll(X, 1000 * y - 7) == pytest.approx(model.nll(X, y) + math.log(1000), abs=1e-3)
    assert model.r_hat_.shape == model.ess_.shape == (60, 1)


def test_classes_are_learned_under_any_labels():
    X, _y = table()
    labels = np.where(X[:, 0] > 0.5, "high", np.where(X[:, 0] < -0.5, "low", "middle"))
    model = BNNClassifier(prior="fg", std=2.0, **LONGER).fit(X, labels)
    assert model.score(X, labels) > 0.8
    probabilities = model.predict_proba(X)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)
    chosen = [probabilities[k, list(model.classes_).index(label)] for k, label in enumerate(labels)]
    assert model.nll(X, labels) == pytest.approx(-np.log(chosen).mean())


@pytest.mark.parametrize("prior", PRIORS)
def test_every_prior_serves_both(prior):
    X, y = table(20)
    assert BNNRegressor(prior=prior, **QUICK).fit(X, y).predict(X[:3]).shape == (3,)
    model = BNNClassifier(prior=prior, **QUICK).fit(X, y > 50)
    assert model.predict_proba(X[:3]).shape == (3, 2)
    assert (model.history_ is None) == (not prior.startswith("gpi"))


def test_the_match_never_sees_the_targets():
    X, y = table()
    settings = QUICK | {"hierarchical": True}
    one = BNNRegressor(**settings).fit(X, y)
    other = BNNRegressor(**settings).fit(X, np.random.RandomState(3).permutation(y) ** 2)
    assert one.prior_.stds() == other.prior_.stds()
    assert one.history_.distance == other.history_.distance
    assert one.prior_.stds() != BNNRegressor(**settings).fit(X + np.random.RandomState(1).rand(60, 3), y).prior_.stds()
    assert not np.array_equal(one.predict(X), other.predict(X))


def test_a_seed_repeats_a_fit_and_leaves_the_global_state():
    X, y = table(30)
    before = torch.get_rng_state()
    first = BNNRegressor(**QUICK).fit(X, y).predict(X)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(first, BNNRegressor(**QUICK).fit(X, y).predict(X))
    assert not np.array_equal(first, BNNRegressor(**QUICK | {"random_state": 1}).fit(X, y).predict(X))


def test_constant_columns_and_targets_are_only_centred():
    X, y = table(30)
    X[:, 1] = 0.1
    model = BNNRegressor(**QUICK).fit(X, y)
    assert model.x_std_[1] == 1
    assert np.isfinite(model.predict(X)).all()
    assert BNNRegressor(**QUICK).fit(X, np.full(30, 3.0)).y_std_ == 1


def test_a_process_of_ones_own_is_the_target():
    X, y = table(30)
    own = GPFunctionPrior(lambda a, b: a @ b.T + 1)
    assert BNNRegressor(gp_prior=own, **QUICK).fit(X, y).history_.scale > 0


def test_bad_settings_are_refused():
    X, y = table(30)
    with pytest.raises(ValueError, match=r"prior must be one of gpi_g.*got 'gp'"):
        BNNRegressor(prior="gp", **QUICK).fit(X, y)
    with pytest.raises(ValueError, match="70 different training inputs and there are 30"):
        BNNRegressor(measurement_size=100, **QUICK).fit(X, y)
    with pytest.raises(ValueError, match="at least two classes"):
        BNNClassifier(**QUICK).fit(X, np.ones(30))
    with pytest.raises(ValueError, match="noise_variance must be positive"):
        BNNRegressor(noise_variance=0.0, **QUICK).fit(X, y)
    model = BNNClassifier(prior="fg", **QUICK).fit(X, y > 50)
    with pytest.raises(ValueError, match="of the labels seen"):
        model.nll(X, np.full(30, 7))
    with pytest.raises(ValueError, match=r"y must have shape \(30,\)"):
        BNNRegressor(prior="fg", **QUICK).fit(X, y).nll(X, y[:4])
