"""The fit: primal, dual, scikit-learn's and descent's solutions are one; estimators and curves are built on it."""

import math

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, KFold, ShuffleSplit, cross_val_score

from etude.theory.random_feature_attention import (
    RandomFeatureAttention,
    RandomFeatureMLP,
    RFAClassifier,
    RFAKernel,
    RFARegressor,
    RidgePath,
    Split,
    Target,
    Tokens,
    TokenTask,
    bias_gain,
    cross_validate,
    error_curve,
    fit_ridge,
    from_arrays,
    plot_bias_gain,
    plot_sample_complexity,
    sample_complexity,
    samples_to_reach,
)

TASK = TokenTask(3, 4, (Target("mean_power", 2), Target("correlation", 1)))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def data(n=30, seed=0):
    tokens, y = TASK(n, generator(seed))
    return tokens, (y - y.mean(0)) / y.std(0, correction=0)


def layer(heads=6, outputs=1, **options):
    return RandomFeatureAttention(3, heads, outputs, generator=generator(1), **options).double()


def array(tokens):
    return torch.cat([tokens.query[:, None], tokens.keys], dim=1).numpy()


@pytest.mark.parametrize("ridge", [1e-6, 1e-2, 1.0])
@pytest.mark.parametrize("kind", ["attention", "mlp"])
def test_primal_dual_and_scikit_learn_find_one_solution(kind, ridge):
    tokens, y = data()
    model = layer(6, 2) if kind == "attention" else RandomFeatureMLP(3, 4, 50, 2, generator(1)).double()
    psi = model.flat_features(tokens) / math.sqrt(model.num_units)
    # scikit-learn's penalty multiplies |u|^2 beside a sum of squares.
    theirs = Ridge(alpha=ridge * len(tokens), fit_intercept=False, solver="svd").fit(psi.numpy(), y.numpy())
    for solver in ("primal", "dual", "auto"):
        fit_ridge(model, tokens, y, ridge, relative=False, solver=solver)
        np.testing.assert_allclose(model.predict(tokens), theirs.predict(psi.numpy()), rtol=1e-6, atol=1e-6)
        u = model.values.detach().flatten(0, 1) / math.sqrt(model.num_units)
        np.testing.assert_allclose(u.T, theirs.coef_, rtol=1e-6, atol=1e-6)


def test_a_relative_ridge_is_in_units_of_the_mean_diagonal():
    tokens, y = data()
    scale = float(layer().gram(tokens).diagonal().mean())
    a, b = (
        fit_ridge(layer(), tokens, y[:, 0], ridge, relative=relative)
        for ridge, relative in ((1e-3, True), (1e-3 * scale, False))
    )
    torch.testing.assert_close(a.values, b.values)
    # Tokens of another length or another method's features: primal and dual know the same scale.
    primal = RidgePath(*layer().covariance(tokens, y), num_examples=len(tokens))
    assert primal.scale == pytest.approx(scale)


def test_one_eigendecomposition_serves_every_ridge():
    tokens, y = data()
    gram = layer().gram(tokens)
    path = RidgePath(gram, y)
    ridges = [1e-8, 1e-3, 1.0]
    for ridge, found in zip(ridges, path.predict(gram, ridges)):
        shift = len(tokens) * ridge * path.scale * torch.eye(len(tokens))
        torch.testing.assert_close(found, gram @ torch.linalg.solve(gram + shift, y), rtol=1e-5, atol=1e-6)


def test_descent_on_the_penalised_loss_reaches_the_ridge_solution():
    tokens, y = data()
    ridge, exact = 0.03, layer()
    fit_ridge(exact, tokens, y[:, 0], ridge, relative=False)
    for kind in ("sgd", "adam"):
        model = layer()
        if kind == "sgd":
            # The curvature of the loss is that of G / n over M, so that the step grows with the number of heads.
            top = float(torch.linalg.eigvalsh(model.gram(tokens))[-1]) / len(tokens)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.9 * model.num_units / (top + ridge), momentum=0.8)
        else:
            optimizer = torch.optim.Adam(model.parameters(), lr=0.5)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
        for _ in range(200 if kind == "sgd" else 300):
            optimizer.zero_grad()
            found = model(tokens.query, tokens.keys)[:, 0]
            ((found - y[:, 0]).square().mean() + model.penalty(ridge)).backward()
            optimizer.step()
            if kind == "adam":
                schedule.step()
        torch.testing.assert_close(model.predict(tokens), exact.predict(tokens), rtol=0.0, atol=1e-6)
        torch.testing.assert_close(model.values, exact.values, rtol=0.0, atol=1e-5)


def test_a_layer_in_single_precision_keeps_its_dtype():
    tokens, y = data()
    model = fit_ridge(RandomFeatureAttention(3, 6, generator=generator(1)), tokens, y[:, 0], 1e-2)
    assert model.values.dtype == torch.float32
    torch.testing.assert_close(model.predict(tokens), fit_ridge(layer(), tokens, y[:, 0], 1e-2).predict(tokens),
                               rtol=1e-4, atol=1e-4)  # fmt: skip


@pytest.mark.parametrize(
    ("matrix", "targets", "message"),
    [
        (torch.diag(torch.tensor([1.0, -1e-3])), torch.ones(2, 1), "smallest eigenvalue is -1.000e-03, the largest 1"),
        (torch.tensor([[1.0, 0.5], [0.2, 1.0]]), torch.ones(2, 1), "must be symmetric; A - A.T reaches 3.00e-01"),
        (torch.zeros(2, 2), torch.ones(2, 1), "the kernel matrix is zero"),
        (torch.full((2, 2), math.nan), torch.ones(2, 1), "must be finite"),
    ],
)
def test_a_matrix_that_is_no_kernel_is_refused(matrix, targets, message):
    with pytest.raises(ValueError, match=message):
        RidgePath(matrix, targets)


def test_bad_fits_are_refused():
    tokens, y = data()
    with pytest.raises(ValueError, match=r"targets must be \(30, 1\), got \(30, 2\)"):
        fit_ridge(layer(), tokens, y, 1e-3)
    with pytest.raises(ValueError, match="a ridge must be finite and >= 0, got -1"):
        fit_ridge(layer(), tokens, y[:, 0], -1)
    with pytest.raises(ValueError, match="solver must be"):
        fit_ridge(layer(), tokens, y[:, 0], 1e-3, solver="sgd")


@pytest.mark.parametrize("solver", ["primal", "dual"])
@pytest.mark.parametrize("splitter", [KFold(4), ShuffleSplit(3, random_state=0)], ids=["folds", "shuffles"])
def test_cross_validation_is_what_refitting_by_hand_gives(splitter, solver):
    tokens, y = data()
    ridges = (1e-5, 1e-2)
    folds = list(splitter.split(np.zeros(30)))
    found, solution = cross_validate(layer(6, 2), tokens, y, folds, ridges, solver=solver)
    by_hand = []
    for ridge in ridges:
        errors = []
        for train, held in folds:
            mean, std = y[train].mean(0), y[train].std(0, correction=0)
            model = fit_ridge(layer(6, 2), tokens[torch.from_numpy(train)], (y[train] - mean) / std, ridge)
            predicted = model.predict(tokens[torch.from_numpy(held)]) * std + mean
            errors.append(float((predicted - y[held]).square().mean()))
        by_hand.append(np.average(errors, weights=[len(held) for _, held in folds]))
    np.testing.assert_allclose(found.errors, by_hand, rtol=1e-5)
    assert found.best == ridges[int(np.argmin(by_hand))]
    assert (found.std_errors > 0).all()
    psi = layer().flat_features(tokens) / math.sqrt(6)
    expected = RidgePath(psi @ psi.T, y).predict(psi @ psi.T, [found.best])[0]
    torch.testing.assert_close((psi if solver == "primal" else psi @ psi.T) @ solution, expected)


def test_the_regressor_is_the_layer_fitted_to_standardised_targets():
    tokens, y = data()
    y = 5 + 3 * y[:, 0]
    model = RFARegressor(6, ridge=1e-3, random_state=0).fit(array(tokens), y.numpy())
    torch.testing.assert_close(y.mean() + y.std(correction=0) * fit_ridge(
        model.layer_, tokens, (y - y.mean()) / y.std(correction=0), 1e-3).predict(tokens)[:, 0],
        torch.from_numpy(model.predict(array(tokens))))  # fmt: skip
    assert model.predict(array(tokens)).shape == (30,)
    assert RFARegressor(6, ridge=1e-3).fit(array(tokens), np.ones((30, 2))).predict(array(tokens)).shape == (30, 2)


def test_estimators_follow_scikit_learn():
    tokens, y = data(60)
    X, y = array(tokens), y[:, 1].numpy()
    model = RFARegressor(20, random_state=3)
    a, b = model.fit(X, y).predict(X), clone(model).fit(X, y).predict(X)
    np.testing.assert_array_equal(a, b)
    assert model.ridge_ in model.ridges
    assert len(cross_val_score(model, X, y, cv=3)) == 3
    search = GridSearchCV(RFARegressor(20, ridge=1e-3, random_state=0), {"bias": [0.0, 4.0]}, cv=3).fit(X, y)
    assert search.best_params_["bias"] in (0.0, 4.0)


def test_estimators_take_masked_keys_and_another_number_of_keys():
    tokens, y = data()
    X = array(tokens)
    model = RFARegressor(6, ridge=1e-3, random_state=0).fit(X, y[:, 0].numpy())
    masked = X.copy()
    masked[:, 2] = np.nan
    np.testing.assert_allclose(model.predict(masked), model.predict(np.delete(X, 2, axis=1)), rtol=1e-10)
    np.testing.assert_allclose(model.predict(np.concatenate([X, X[:, 1:]], 1)), model.predict(X), rtol=1e-10)


def test_the_classifier_votes_by_regression_on_signs():
    tokens, y = data(80)
    X, labels = array(tokens), np.array(["low", "high"])[(y[:, 0] > 0).long()]
    model = RFAClassifier(40, ridge=1e-6, random_state=0).fit(X, labels)
    assert (model.predict(X) == labels).mean() > 0.95
    assert model.decision_function(X).shape == (80,)
    signs = RFARegressor(40, ridge=1e-6, random_state=0).fit(X, np.where(labels == model.classes_[1], 1.0, -1.0))
    np.testing.assert_allclose(model.decision_function(X), signs.predict(X))
    three = RFAClassifier(40, random_state=0, cv=3).fit(X, np.digitize(y[:, 0], [-0.5, 0.5]))
    assert three.decision_function(X).shape == (80, 3)
    assert set(three.predict(X)) <= {0, 1, 2}


def test_long_tokens_are_divided_by_their_length_and_warned_of():
    tokens, y = data()
    X = array(tokens)
    unit = RFARegressor(6, ridge=1e-3, random_state=0).fit(X, y[:, 0].numpy())
    with pytest.warns(UserWarning, match="root-mean-square norm of 50 and are divided by it"):
        long = RFARegressor(6, ridge=1e-3, random_state=0).fit(50 * X, y[:, 0].numpy())
    assert unit.scale_ == 1.0
    assert long.scale_ == pytest.approx(50)
    np.testing.assert_allclose(long.predict(50 * X), unit.predict(X), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({"ridge": "none"}, {}, "ridge must be"),
        ({"ridge": -1.0}, {}, "ridge must be"),
        ({"solver": "sgd"}, {}, "solver must be"),
        ({"num_heads": 0}, {}, "must be at least 1, got 0"),
        ({}, {"X": np.zeros((30, 3))}, "X must have shape"),
        ({}, {"y": np.full(30, np.nan)}, "y must be finite"),
        ({}, {"y": np.zeros(29)}, "equally many rows, got 30 and 29"),
    ],
)
def test_estimators_refuse_what_they_cannot_fit(options, change, message):
    tokens, y = data()
    given = {"X": array(tokens), "y": y[:, 0].numpy()} | change
    with pytest.raises(ValueError, match=message):
        RFARegressor(**({"num_heads": 6, "ridge": 1e-3} | options)).fit(**given)


def test_a_classifier_needs_two_classes_and_tokens_of_one_dim():
    tokens, _ = data()
    with pytest.raises(ValueError, match="at least two classes"):
        RFAClassifier(6).fit(array(tokens), np.zeros(30))
    model = RFAClassifier(6, ridge=1e-3).fit(array(tokens), np.arange(30) % 2)
    with pytest.raises(ValueError, match="X has tokens of dim 2, but RFAClassifier is expecting 3"):
        model.predict(array(tokens)[:, :, :2])


def test_an_error_curve_is_fits_by_hand_with_the_choice_of_validation():
    split = Split.draw(TASK, 40, 20, 25, generator())
    ridges = (1e-6, 1e-3, 1.0)
    models = [layer(8), layer(8, bias=4.0)]
    curve = error_curve(models, split, [10, 40], ridges)
    for row, n in enumerate((10, 40)):
        tokens, y = split.train[0][:n], split.train[1][:n]
        mean, std = y.mean(0), y.std(0, correction=0)
        found = {}
        for number, bias in enumerate((0.0, 4.0)):
            for ridge in ridges:
                model = fit_ridge(layer(8, 2, bias=bias), tokens, (y - mean) / std, ridge)
                found[number, ridge] = [
                    (model.predict(part) * std + mean - truth).square().mean(0) / truth.var(0, correction=0)
                    for part, truth in (split.val, split.test)
                ]
        for target in range(2):
            (number, ridge), (val, test) = min(found.items(), key=lambda item: float(item[1][0][target]))
            assert curve.candidates[row, target] == number
            assert curve.ridges[row, target] == ridge
            assert float(curve.val_errors[row, target]) == pytest.approx(float(val[target]), rel=1e-6)
            assert float(curve.errors[row, target]) == pytest.approx(float(test[target]), rel=1e-6)


def test_kernels_stand_where_layers_do():
    split = Split.draw(TASK, 30, 20, 20, generator())
    assert error_curve([RFAKernel()], split, [30]).errors.shape == (1, 2)


def test_samples_to_reach_lie_on_a_line_in_log_log():
    sizes = [16, 64, 256]
    assert samples_to_reach(sizes, [16 / n for n in sizes], 0.1) == pytest.approx((160.0, True))
    assert samples_to_reach(sizes, [0.2, 0.1, 0.05], 0.3) == (16.0, True)
    assert samples_to_reach(sizes, [0.9, 0.8, 0.7], 0.3) == (256.0, False)
    assert samples_to_reach(sizes, [0.9, 0.3, 0.9], 0.3) == (64.0, True)
    with pytest.raises(ValueError, match="sizes must increase"):
        samples_to_reach([2, 1], [0.5, 0.5], 0.3)
    with pytest.raises(ValueError, match="level must be positive"):
        samples_to_reach([1, 2], [0.5, 0.5], 0.0)


def test_sample_complexity_on_a_users_own_examples_has_error_bars_and_a_plot():
    tokens, y = data(70)
    methods = {
        "attention": lambda g: [RandomFeatureAttention(3, 10, generator=g)],
        "MLP": lambda g: [RandomFeatureMLP(3, 4, 40, generator=g)],
    }
    curves = sample_complexity(methods, from_arrays(array(tokens), y), [10, 30], repeats=3, val=20, test=20)
    assert curves.mean("MLP").shape == (2, 2)
    assert (curves.std_error("attention") > 0).all()
    assert len(curves.samples("attention", 0.3)) == 3
    figure = plot_sample_complexity(curves, level=0.3, title="mine")
    assert len(figure.axes[0].get_legend().get_texts()) == 2
    again = sample_complexity(methods, from_arrays(array(tokens), y), [10, 30], repeats=3, val=20, test=20)
    assert torch.equal(again.errors["MLP"], curves.errors["MLP"])


def test_one_repeat_has_a_curve_and_no_error_bars():
    methods = {"attention": lambda g: [RandomFeatureAttention(3, 4, generator=g)], "kernel": lambda g: [RFAKernel()]}
    curves = sample_complexity(methods, TASK, [8, 12], repeats=1, val=8, test=8)
    assert curves.std_error("kernel").isnan().all()
    plot_sample_complexity(curves)


def test_the_bias_gain_is_the_log_ratio_of_paired_errors():
    gain = bias_gain(TASK, 3, 12, [10, 30], biases=(1.0, 4.0), repeats=3, val=20, test=20)
    errors = gain.curves.errors
    assert gain.gain.shape == gain.std_error.shape == (3, 2, 2)
    torch.testing.assert_close(gain.gain[1], (errors["0"] / errors["4"]).log().mean(0))
    assert ((gain.chosen >= 1) & (gain.chosen <= 4)).all()
    labels = [text.get_text() for text in plot_bias_gain(gain, target=1).axes[0].get_legend().get_texts()]
    assert labels == ["bias 1", "bias 4", "validated"]
    # A bias of zero gains nothing, to the last digit: the Gaussian parts and the examples are the same.
    nothing = bias_gain(TASK, 3, 12, [10], biases=(0.0,), repeats=2, val=20, test=20)
    assert (nothing.gain == 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: error_curve([], Split.draw(TASK, 9, 5, 5, generator()), [4]), "at least one candidate"),
        (lambda: error_curve([layer()], Split.draw(TASK, 9, 5, 5, generator()), [10]), r"sizes must lie in 2\.\.9"),
        (lambda: Split.draw(TASK, 9, 1, 5, generator()), "at least two examples, got 9, 1 and 5"),
        (lambda: sample_complexity({}, TASK, [4]), "there must be a method"),
        (lambda: bias_gain(TASK, 3, 4, [4], repeats=1), "two repeats"),
        (lambda: from_arrays(np.zeros((4, 3, 2)), np.zeros(3)), r"y must have shape \(4,\)"),
        (lambda: from_arrays(np.zeros((4, 3, 2)), np.zeros(4))(5, generator()), "5 examples are wanted, there are 4"),
    ],
)
def test_impossible_curves_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_constant_target_has_no_relative_error():
    source = from_arrays(np.random.default_rng(0).normal(size=(40, 3, 3)) / 2, np.ones(40))
    with pytest.raises(ValueError, match="target 0 is constant"):
        error_curve([layer()], Split.draw(source, 20, 10, 10, generator()), [20])


def test_tokens_of_a_task_are_unit_and_a_seed_is_a_seed():
    tokens, y = TASK(5, generator())
    again, same = TASK(5, generator())
    assert torch.equal(y, same)
    assert isinstance(tokens, Tokens)
    torch.testing.assert_close(again.keys.norm(dim=2), torch.ones(5, 4, dtype=torch.float64))
