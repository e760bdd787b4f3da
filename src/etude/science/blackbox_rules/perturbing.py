"""Importance from outside: what happens to the answers when a column is shuffled, or set to a value.

Nothing but predictions is asked of the black box here. Rows must be ones that it was not trained on: on its training
rows an overfitted box seems to need everything.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from etude.science.blackbox_rules.blackbox import column_predictions, predictor
from etude.science.blackbox_rules.inputs import as_matrix

__all__ = ["Sensitivity", "permutation_importance", "permutations_within", "sensitivity_importance"]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_METRICS = ("probability", "macro_f1")
_NUMBERS = 1 << 24
"""Most answers held at a time."""


def _macro_f1(
    predicted: Int64[np.ndarray, "m n"], truth: Int64[np.ndarray, "n"], classes: Int64[np.ndarray, "c"]
) -> Float[np.ndarray, "m"]:
    """Macro-F1 of m answers, over the classes that occur in the truth."""
    hit = predicted[:, None, :] == classes[:, None]
    real = truth == classes[:, None]
    return (2 * (hit & real).sum(-1) / (hit.sum(-1) + real.sum(-1))).mean(-1)


def permutations_within(
    groups: Int64[np.ndarray, "n"], keys: Float[np.ndarray, "repeats n"]
) -> Int64[np.ndarray, "repeats n"]:
    """Shuffles that leave every row in its group: entry (r, i) is the row that takes the place of row i.

    Args:
        groups: group of each row; one group makes them free.
        keys: random numbers that order each group anew.
    """
    inside = np.argsort(groups, kind="stable")
    out = np.empty(keys.shape, dtype=np.int64)
    for repeat, key in enumerate(keys):
        out[repeat, inside] = np.lexsort((key, groups))
    return out


def _leaves(X: np.ndarray, feature: int, companions: int, leaves: int) -> np.ndarray:
    """Groups of rows alike in the columns most correlated with `feature`: the leaves of a tree that predicts it."""
    from sklearn.tree import DecisionTreeRegressor

    centred = X - X.mean(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        alike = np.abs(centred.T @ centred[:, feature]) / np.linalg.norm(centred, axis=0)
    alike = np.nan_to_num(alike)
    alike[feature] = -1.0
    others = np.argsort(-alike, kind="stable")[: min(companions, X.shape[1] - 1)]
    if not len(others):
        return np.zeros(len(X), dtype=np.int64)
    tree = DecisionTreeRegressor(max_leaf_nodes=leaves, min_samples_leaf=5, random_state=0)
    return tree.fit(X[:, others], X[:, feature]).apply(X[:, others])


def permutation_importance(
    model: Any,
    X: Any,
    features: Sequence[int] | np.ndarray | None = None,
    n_repeats: int = 10,
    metric: str = "probability",
    *,
    y: Any = None,
    rng: np.random.Generator | None = None,
    conditional: bool = False,
    companions: int = 5,
    leaves: int = 8,
    permutations: Int64[np.ndarray, "repeats n"] | None = None,
) -> Float[np.ndarray, "m"]:
    """How much the answers suffer when a column is shuffled among the rows, mean over `n_repeats` shuffles.

    Args:
        model: has `predict_proba` or can be called, (n, d) -> (n, classes).
        X: (n, d) rows that the model was not trained on.
        features: the columns asked for; all if None. A pass over the rows for each and each repeat.
        metric: "probability": mean over rows of sum_c |p_c(x) - p_c(x with the column shuffled)|. "macro_f1": its drop;
            needs `y`.
        y: (n,) true labels.
        rng: of the shuffles; a fresh one if None. All columns share the shuffles, unless `conditional`.
        conditional: shuffle within the leaves of a tree that predicts the column from the `companions` columns most
            correlated with it: what the column says beyond them. Correlated columns else share their importance.
        permutations: (repeats, n) to use instead of random ones; not with `conditional`.

    Returns:
        (m,), exactly 0 for a constant column.

    Raises:
        ValueError: for an unknown metric, "macro_f1" without `y`, a column that is not there, or no repeats.
    """
    values, _ = as_matrix(X)
    n, d = values.shape
    chosen = _features(features, d)
    if metric not in _METRICS:
        raise ValueError(f"metric must be one of {', '.join(_METRICS)}, got {metric!r}")
    if metric == "macro_f1" and y is None:
        raise ValueError("metric 'macro_f1' needs the true labels y")
    if permutations is None:
        if n_repeats < 1:
            raise ValueError(f"n_repeats must be positive, got {n_repeats}")
        keys = (np.random.default_rng() if rng is None else rng).random((n_repeats, n))
        permutations = permutations_within(np.zeros(n, dtype=np.int64), keys)
    elif conditional or permutations.shape[1:] != (n,):
        raise ValueError(f"permutations must be (repeats, {n}) and not conditional, got {permutations.shape}")
    before = np.asarray(predictor(model)(values))
    repeats = len(permutations) if not conditional else n_repeats
    truth = None if metric == "probability" else _codes(model, y, before.shape)

    def loss(block: np.ndarray) -> np.ndarray:
        if conditional:
            shuffles = [permutations_within(_leaves(values, j, companions, leaves), keys) for j in block.tolist()]
            columns = np.stack([values[shuffle, j] for shuffle, j in zip(shuffles, block)])
        else:
            columns = values[permutations[:, :, None], block].transpose(2, 0, 1)
        after = column_predictions(model, values, np.repeat(block, repeats), columns.reshape(-1, n))
        if truth is None:
            return np.abs(after - before).sum(-1).mean(-1)
        present = np.unique(truth)
        return _macro_f1(before.argmax(-1)[None], truth, present) - _macro_f1(after.argmax(-1), truth, present)

    found = np.concatenate([loss(block) for block in _blocks(chosen, repeats * before.size)])
    return found.reshape(len(chosen), repeats).mean(1)


def _blocks(chosen: np.ndarray, numbers: int) -> list[np.ndarray]:
    """The columns in parts, each of which gives at most `_NUMBERS` answers if a column gives `numbers`."""
    return np.array_split(chosen, min(len(chosen), -(-len(chosen) * numbers // _NUMBERS)))


def _codes(model: Any, y: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The labels as places among the model's classes."""
    classes = np.asarray(getattr(model, "classes_", np.arange(shape[1]))).tolist()
    code = {label: place for place, label in enumerate(classes)}
    truth = np.array([code.get(label, -1) for label in np.asarray(y).tolist()])
    if len(truth) != shape[0] or (truth < 0).any():
        raise ValueError(f"y must hold one of the model's classes {classes} for each of {shape[0]} rows")
    return truth


def _features(features: Sequence[int] | np.ndarray | None, d: int) -> np.ndarray:
    chosen = np.arange(d) if features is None else np.asarray(features, dtype=np.int64)
    if chosen.ndim != 1 or not len(chosen) or chosen.min() < 0 or chosen.max() >= d:
        raise ValueError(f"features must be numbers of columns, 0..{d - 1}, got {chosen.tolist()[:10]}")
    return chosen


@dataclass(frozen=True)
class Sensitivity:
    """What setting a column to low and high values does.

    Attributes:
        importance: (m,) mean over rows and values of sum_c |dp_c|.
        impact: (m, classes) change of the mean probability from the lowest to the highest value: its sign is the
            direction in which the column pushes the class.
    """

    importance: Float[np.ndarray, "m"]
    impact: Float[np.ndarray, "m classes"]


def sensitivity_importance(
    model: Any,
    X: Any,
    features: Sequence[int] | np.ndarray | None = None,
    *,
    train: Any = None,
    quantiles: Sequence[float] = QUANTILES,
) -> Sensitivity:
    """Sets a column to quantiles of its training values, in all rows, and records how far the answers move.

    Args:
        model, X, features: as of `permutation_importance`.
        train: (rows, d) whose quantiles are used; `X` if None.

    Raises:
        ValueError: for a quantile outside [0, 1] or a column that is not there.
    """
    values, _ = as_matrix(X)
    n, d = values.shape
    chosen = _features(features, d)
    if len(quantiles) < 2 or min(quantiles) < 0 or max(quantiles) > 1:
        raise ValueError(f"quantiles must be two or more numbers in [0, 1], got {tuple(quantiles)}")
    source = values if train is None else as_matrix(train, d, "train")[0]
    levels = np.quantile(source[:, chosen], sorted(quantiles), axis=0).T
    before = np.asarray(predictor(model)(values))

    def moved(block: np.ndarray, to: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        columns = np.broadcast_to(to.reshape(-1, 1), (to.size, n))
        after = column_predictions(model, values, np.repeat(block, len(quantiles)), columns)
        after = after.reshape(*to.shape, n, -1)
        mean = after.mean(2)
        return np.abs(after - before).sum(-1).mean((1, 2)), mean[:, -1] - mean[:, 0]

    blocks = _blocks(np.arange(len(chosen)), len(quantiles) * before.size)
    parts = [moved(chosen[block], levels[block]) for block in blocks]
    return Sensitivity(*(np.concatenate(found) for found in zip(*parts)))
