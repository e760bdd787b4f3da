"""Shapley values of a surrogate in the space of its k features.

Exact for trees and forests, as path-dependent TreeSHAP (Lundberg et al., arXiv:1802.03888, 2018): in the game of a leaf
a feature that is known contributes o_i, whether x passes the leaf's interval, and one that is not contributes z_i, the
share of training rows that passes. The Shapley value of such a product is an integral,

    phi_i = v (o_i - z_i) integral_0^1 prod_{j != i} (t o_j + (1 - t) z_j) dt,                            (6)

of a polynomial, which Gauss-Legendre quadrature gives exactly. For other models, KernelSHAP (Lundberg & Lee,
arXiv:1705.07874, 2017).
"""

from collections.abc import Callable
from itertools import product
from math import comb
from typing import Any

import numpy as np
from jaxtyping import Float

from etude.science.blackbox_rules.rules import leaf_boxes

__all__ = ["kernel_shap", "tree_shap"]

_NUMBERS = 1 << 22


def tree_shap(model: Any, X: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k classes"]:
    """Exact contributions to the probabilities of a decision tree, or of a forest as the mean over its trees.

    They sum over the features to predict_proba(x) - base, base the probabilities at the root.

    Args:
        model: a fitted `DecisionTreeClassifier` or `RandomForestClassifier` on k features.
        X: rows in the units that it was trained in.
    """
    trees = getattr(model, "estimators_", [model])
    return np.mean([_one_tree(tree, np.asarray(X, dtype=np.float32)) for tree in trees], axis=0)


def _one_tree(tree: Any, X: np.ndarray) -> np.ndarray:
    boxes = leaf_boxes(tree)
    asked = np.flatnonzero((boxes.reach < 1).any(0))
    out = np.zeros((*X.shape, boxes.value.shape[1]))
    if not len(asked):
        return out
    z = boxes.reach[:, asked]
    # A polynomial of degree (features on a path) - 1 needs half as many nodes.
    degree = int((z < 1).sum(1).max())
    nodes, weights = np.polynomial.legendre.leggauss(max(1, (degree + 1) // 2))
    t, weights = (nodes[:, None, None, None] + 1) / 2, weights / 2
    per_pass = max(1, _NUMBERS // (len(nodes) * z.size))
    for start in range(0, len(X), per_pass):
        x = X[start : start + per_pass, None, asked]
        o = ((x > boxes.low[:, asked]) & (x <= boxes.high[:, asked])).astype(np.float64)
        factor = t * o + (1 - t) * z
        # Nodes lie inside (0, 1) and z > 0, so that no factor is 0.
        others = np.einsum("q,qnlk->nlk", weights, factor.prod(-1, keepdims=True) / factor)
        out[start : start + per_pass][:, asked] = np.einsum("nlk,lc->nkc", (o - z) * others, boxes.value)
    return out


def kernel_shap(
    predict: Callable[[np.ndarray], np.ndarray],
    x: Float[np.ndarray, "k"],
    background: Float[np.ndarray, "rows k"],
    n_samples: int = 2048,
    rng: np.random.Generator | None = None,
) -> Float[np.ndarray, "k classes"]:
    """Contributions of the k features of one row, by weighted least squares over coalitions.

    Features outside a coalition take the values of the background's rows. All coalitions are used if there are at
    most `n_samples` of them, which makes the values exact; else as many are drawn, each with its complement.

    Args:
        predict: (rows, k) -> (rows, classes).
        rng: of the draws; a fresh one if None.

    Raises:
        ValueError: if `n_samples` is below 2 k.
    """
    k = len(x)
    if n_samples < 2 * k:
        raise ValueError(f"n_samples must be at least {2 * k}, twice the number of features, got {n_samples}")
    ends = np.stack([background.mean(0), x])
    empty, full = np.asarray(predict(background)).mean(0), np.asarray(predict(ends[1:]))[0]
    if k == 1:
        return (full - empty)[None]
    if 2**k - 2 <= n_samples:
        masks = np.array(list(product((False, True), repeat=k)))[1:-1]
        sizes = masks.sum(1)
        weights = np.array([(k - 1) / (comb(k, s) * s * (k - s)) for s in sizes.tolist()])
    else:
        rng = np.random.default_rng() if rng is None else rng
        chance = 1 / (np.arange(1, k) * np.arange(k - 1, 0, -1))
        sizes = rng.choice(np.arange(1, k), n_samples // 2, p=chance / chance.sum())
        order = rng.random((len(sizes), k)).argsort(1)
        half = order < sizes[:, None]
        masks = np.concatenate([half, ~half])
        weights = np.ones(len(masks))
    per_pass = max(1, _NUMBERS // background.size)
    values = []
    for start in range(0, len(masks), per_pass):
        part = masks[start : start + per_pass]
        rows = np.where(part[:, None], x, background)
        values.append(np.asarray(predict(rows.reshape(-1, k))).reshape(len(part), len(background), -1).mean(1))
    game = np.concatenate(values) - empty
    total = full - empty
    # The values sum to `total`: the last one is what the others leave.
    z = masks.astype(np.float64)
    design, aim = z[:, :-1] - z[:, -1:], game - z[:, -1:] * total
    root = np.sqrt(weights)[:, None]
    found = np.linalg.lstsq(root * design, root * aim, rcond=None)[0]
    return np.concatenate([found, (total - found.sum(0))[None]])
