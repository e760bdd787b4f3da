"""Attribution in batches beside captum, one column changed without a pass over all, TreeSHAP beside shap."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.inspection import permutation_importance as by_sklearn

from benchmarks.compare import Comparison
from etude.science.blackbox_rules import (
    BlackBoxClassifier,
    integrated_gradients,
    permutation_importance,
    tree_shap,
)

_ROWS, _COLUMNS, _CLASSES = 100, 1_000, 4


def _fitted() -> tuple[BlackBoxClassifier, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((_ROWS, _COLUMNS)).astype(np.float32)
    y = np.arange(_ROWS) % _CLASSES
    return BlackBoxClassifier(epochs=2).fit(X, y), X, y


def _row_by_row(box: BlackBoxClassifier, x: torch.Tensor) -> Callable[[], Any]:
    return lambda: [integrated_gradients(box.network_, row[None]) for row in x]


def _attribution(box: BlackBoxClassifier, X: np.ndarray) -> list[Comparison]:
    x = box.standardize(X)
    name = f"integrated gradients, {_ROWS} rows x {_COLUMNS} columns, 32 steps"
    found = [Comparison(name, lambda: integrated_gradients(box.network_, x), _row_by_row(box, x), "ours, row by row")]
    try:
        from captum.attr import IntegratedGradients
    except ImportError:
        return found
    target = box.network_(x).argmax(-1)
    method = IntegratedGradients(lambda rows: box.network_(rows).log_softmax(-1))

    def peer() -> Any:
        return method.attribute(x, target=target, n_steps=32, method="riemann_middle")

    return [*found, Comparison(name, lambda: integrated_gradients(box.network_, x), peer, "captum")]


def _perturbation(box: BlackBoxClassifier, X: np.ndarray, y: np.ndarray) -> list[Comparison]:
    columns = list(range(0, _COLUMNS, 10))

    def ours() -> Any:
        return permutation_importance(box, X, columns, 2, "macro_f1", y=y, rng=np.random.default_rng(0))

    def plain() -> Any:
        return permutation_importance(box.predict_proba, X, columns, 2, "macro_f1", y=y, rng=np.random.default_rng(0))

    few = BlackBoxClassifier(epochs=2).fit(X[:, :100], y)

    def ours_all() -> Any:
        return permutation_importance(few, X[:, :100], None, 2, "macro_f1", y=y, rng=np.random.default_rng(0))

    def peer_all() -> Any:
        return by_sklearn(few, X[:, :100], y, n_repeats=2, scoring="f1_macro", random_state=0)

    return [
        Comparison(
            f"100 of {_COLUMNS} columns shuffled twice, {_ROWS} rows", ours, plain, "ours without the short cut",
            "the peer passes over all columns",
        ),
        Comparison(f"100 of 100 columns shuffled twice, {_ROWS} rows", ours_all, peer_all, "scikit-learn"),
    ]  # fmt: skip


def _shapley(X: np.ndarray, y: np.ndarray) -> list[Comparison]:
    try:
        import shap
    except ImportError:
        return []
    z = X[:, :20]
    forest = RandomForestClassifier(50, max_depth=5, random_state=0).fit(z, y)
    explainer = shap.TreeExplainer(forest, feature_perturbation="tree_path_dependent")
    name = f"exact Shapley values, 50 trees of depth 5, {_ROWS} rows x 20 columns"
    return [Comparison(name, lambda: tree_shap(forest, z), lambda: explainer.shap_values(z), "shap (C++)")]


def comparisons() -> list[Comparison]:
    box, X, y = _fitted()
    return [*_attribution(box, X), *_perturbation(box, X, y), *_shapley(X, y)]
