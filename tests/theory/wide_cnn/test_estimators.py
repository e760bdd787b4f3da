"""The estimators: the closed form, the posterior, scikit-learn's contract, and refusals."""

import math

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score

from etude.theory.wide_cnn import (
    HierarchicalKernelClassifier,
    HierarchicalKernelRegressor,
    hierarchical_kernel,
    posterior_variance,
    sample_multisphere,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def task(n=80, seed=0):
    x = sample_multisphere(n, 4, 2, seeded(seed))
    return x.numpy(), (x[:, 0] * x[:, 3] + x[:, 5]).numpy()


@pytest.mark.parametrize("kind", ["ntk", "rfk"])
@pytest.mark.parametrize("ridge", [1e-12, 0.1])
def test_regression_is_the_closed_form(kind, ridge):
    X, y = task()
    new, _ = task(30, seed=1)
    model = HierarchicalKernelRegressor([2, 2, 2], kind, ridge).fit(X, y)
    K = hierarchical_kernel(torch.tensor(X), None, [2, 2, 2], kind) + ridge * torch.eye(80, dtype=torch.float64)
    across = hierarchical_kernel(torch.tensor(new), torch.tensor(X), [2, 2, 2], kind)
    expected = across @ torch.linalg.solve(K, torch.tensor(y))
    mean, std = model.predict(new, return_std=True)
    np.testing.assert_allclose(mean, expected.numpy(), rtol=1e-8, atol=1e-9)
    np.testing.assert_array_equal(mean, model.predict(new))
    own = torch.full((30,), 1.0 if kind == "rfk" else 4.0, dtype=torch.float64)
    variance = posterior_variance(K - ridge * torch.eye(80, dtype=torch.float64), across, own, ridge)
    amplitude = float(torch.tensor(y) @ torch.linalg.solve(K, torch.tensor(y))) / 80
    assert model.scale_ == pytest.approx(math.sqrt(amplitude), rel=1e-8)
    np.testing.assert_allclose(std, (variance * amplitude).sqrt().numpy(), rtol=1e-6, atol=1e-9)


def test_without_a_ridge_the_training_points_are_interpolated_and_certain():
    X, y = task()
    mean, std = HierarchicalKernelRegressor((2, 2, 2)).fit(X, y).predict(X, return_std=True)
    np.testing.assert_allclose(mean, y, atol=1e-8)
    assert std.max() < 1e-4


def test_blocks_of_predictions_are_one_prediction(monkeypatch):
    X, y = task()
    model = HierarchicalKernelRegressor([2, 2]).fit(X, y)
    whole = model.predict(X[:50], return_std=True)
    monkeypatch.setattr("etude.theory.wide_cnn.estimators._BLOCK", 500)
    for one, other in zip(whole, model.predict(X[:50], return_std=True)):
        np.testing.assert_allclose(one, other, atol=1e-7)


@pytest.mark.parametrize("classes", [["no", "yes"], [3, 5, 9]])
def test_classes_are_one_against_the_rest(classes):
    X, y = task(120)
    places = np.digitize(y, np.quantile(y, np.linspace(0, 1, len(classes) + 1)[1:-1]))
    labels = np.array(classes)[places]
    model = HierarchicalKernelClassifier([2, 2], ridge=0.01).fit(X[:90], labels[:90])
    assert model.classes_.tolist() == sorted(classes)
    columns = []
    for label in model.classes_:
        one = HierarchicalKernelRegressor([2, 2], ridge=0.01).fit(X[:90], np.where(labels[:90] == label, 1.0, -1.0))
        columns.append(one.predict(X[90:]))
    scores = model.decision_function(X[90:])
    np.testing.assert_allclose(scores, columns[1] if len(classes) == 2 else np.stack(columns, 1), atol=1e-9)
    np.testing.assert_array_equal(model.predict(X[90:]), model.classes_[np.argmax(columns, axis=0)])
    assert model.score(X[:90], labels[:90]) > 0.9


def test_the_contract_of_scikit_learn_is_kept():
    X, y = task(60)
    model = HierarchicalKernelRegressor([2, 2], ridge=0.1)
    assert clone(model).get_params() == model.get_params()
    assert set(model.get_params()) == {
        "filter_sizes", "kind", "ridge", "image_shape", "constant", "normalize", "max_solve",
    }  # fmt: skip
    search = GridSearchCV(model, {"filter_sizes": [[2], [2, 2], [2, 2, 2]], "ridge": [1e-3, 0.1]}, cv=3).fit(X, y)
    assert search.best_score_ > 0.2
    assert len(cross_val_score(HierarchicalKernelClassifier([2]), X, y > 0, cv=3)) == 3
    with pytest.raises(NotFittedError):
        model.predict(X)
    fitted = clone(model).fit(X.astype(np.float32), y)  # single precision is converted at the door, without a warning
    assert fitted.n_features_in_ == 8
    with pytest.raises(ValueError, match=r"X has inputs of shape \(6,\), but HierarchicalKernelRegressor .* \(8,\)"):
        fitted.predict(X[:, :6])


def test_images_come_as_rows_or_as_they_are():
    images = torch.rand(40, 1, 4, 4, dtype=torch.float64, generator=seeded()).numpy()
    images[0, :, :2, :2] = 0.0
    labels = np.arange(40) % 2
    tree = HierarchicalKernelClassifier([2, 2], constant=1.0, ridge=1e-6).fit(images, labels)
    rows = HierarchicalKernelClassifier([2, 2], constant=1.0, ridge=1e-6, image_shape=(1, 4, 4))
    rows.fit(images.reshape(40, -1), labels)
    np.testing.assert_array_equal(tree.decision_function(images), rows.decision_function(images.reshape(40, -1)))
    K = hierarchical_kernel(torch.tensor(images), None, [2, 2], dim=2, constant=1.0)
    weights = torch.linalg.solve(K + 1e-6 * torch.eye(40, dtype=torch.float64), 2.0 * torch.tensor(labels).double() - 1)
    np.testing.assert_allclose(tree.decision_function(images), (K @ weights).numpy(), atol=1e-7)


def test_unnormalised_patches_keep_their_size():
    X, y = task()
    X = X * (1 + np.arange(80)[:, None] % 3)
    model = HierarchicalKernelRegressor([2, 2], normalize=False, ridge=1e-6).fit(X, y)
    _, std = model.predict(np.vstack([X[:1], 100 * X[:1]]), return_std=True)
    assert std[1] > 50 * std[0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda X, y: HierarchicalKernelRegressor([3]).fit(X, y), "product 3, which does not divide the side 8"),
        (lambda X, y: HierarchicalKernelRegressor([2], "rbf").fit(X, y), "kind must be"),
        (lambda X, y: HierarchicalKernelRegressor([2], ridge=-1.0).fit(X, y), "ridge must be finite and >= 0, got -1"),
        (lambda X, y: HierarchicalKernelRegressor([2], ridge=0.0).fit(np.vstack([X, X]), np.append(y, y)),
         "not positive definite to double precision: .* repeats an earlier point"),
        (lambda X, y: HierarchicalKernelRegressor([2]).fit(0 * X, y), "have norm 0 and no direction"),
        (lambda X, y: HierarchicalKernelRegressor([2], max_solve=10).fit(X, y), r"80 points would need .* is 10"),
        (lambda X, y: HierarchicalKernelClassifier([2]).fit(X, np.zeros(80, int)), "at least two classes, got one"),
        (lambda X, y: HierarchicalKernelClassifier([2]).fit(X, y), "Unknown label type"),
        (lambda X, y: HierarchicalKernelRegressor([2], image_shape=(1, 4, 4)).fit(X, y),
         r"rows must have 16 values for images of shape \(1, 4, 4\), got shape \(80, 8\)"),
        (lambda X, y: HierarchicalKernelRegressor([2]).fit(X * np.nan, y), "NaN"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_its_value(call, message):
    with pytest.raises(ValueError, match=message):
        call(*task())
