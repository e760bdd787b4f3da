"""Explanations of one row: anchors, counterfactuals from the leaves of a tree, and a few rows that stand for many."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64

from etude.science.blackbox_rules.rules import Condition, LeafBoxes, Rule

__all__ = ["Counterfactual", "LocalExplanation", "anchor", "nearest_box", "representative_rows"]

STEP = 1e-3
"""How far beyond a threshold a counterfactual lands, in training standard deviations."""


@dataclass(frozen=True)
class LocalExplanation:
    """Why a row is classified as it is.

    Attributes:
        label: what the surrogate says. black_box: what the black box says.
        rule: the rule of the tree that the row meets.
        contributions: feature -> Shapley value for `label`, the largest first.
        base: probability of `label` without any feature; base plus contributions is the surrogate's probability.
    """

    label: Any
    black_box: Any
    rule: Rule
    contributions: dict[str, float]
    base: float


@dataclass(frozen=True)
class Counterfactual:
    """A row changed as little as the tree lets it, so that the class is another.

    Attributes:
        row: (d,) the changed row.
        changes: feature -> (before, after).
        label: the tree's class of the changed row.
        verified: whether the black box, too, gives the changed row this class.
        black_box: its class of the changed row.
        count: weighted number of changed features. distance: weighted sum of the changes in training sd.
    """

    row: Float[np.ndarray, "d"]
    changes: dict[str, tuple[float, float]]
    label: Any
    verified: bool
    black_box: Any
    count: float
    distance: float


def nearest_box(
    x: Float[np.ndarray, "k"],
    boxes: LeafBoxes,
    allowed: Bool[np.ndarray, "leaves"],
    weights: Float[np.ndarray, "k"] | None = None,
    frozen: Bool[np.ndarray, "k"] | None = None,
) -> tuple[int, Float[np.ndarray, "k"], float, float]:
    """The allowed leaf that the least change reaches: fewest features by weight, then shortest way by weight.

    A feature moves to just inside the box, by 0.001 or to its middle where the box is narrower.

    Args:
        x: in the units of the boxes, training standard deviations. allowed: leaves that may be reached.
        weights: of the features in both counts; 1 if None. frozen: features that stay.

    Returns:
        (leaf, the changed x, weighted count, weighted distance).

    Raises:
        ValueError: if no leaf can be reached, or a weight is not positive.
    """
    weights = np.ones(len(x)) if weights is None else weights
    if weights.min() <= 0:
        raise ValueError(f"weights must be positive, got {weights.min()}")
    inside = (x > boxes.low) & (x <= boxes.high)
    step = np.minimum(STEP, (boxes.high - boxes.low) / 2)
    moved = np.where(x <= boxes.low, boxes.low + step, boxes.high - step)
    target = np.where(inside, x, moved)
    reachable = allowed if frozen is None else allowed & inside[:, frozen].all(1)
    if not reachable.any():
        raise ValueError("no leaf of another class can be reached with the features that may change")
    count = (~inside * weights).sum(1)
    distance = (np.abs(target - x) * weights).sum(1)
    places = np.flatnonzero(reachable)
    leaf = int(places[np.lexsort((distance[places], count[places]))[0]])
    return leaf, target[leaf], float(count[leaf]), float(distance[leaf])


def anchor(
    predict: Callable[[np.ndarray], np.ndarray],
    x: Float[np.ndarray, "k"],
    background: Float[np.ndarray, "rows k"],
    *,
    precision: float | int = 0.95,
    n_samples: int = 1_000,
    bins: int = 4,
    rng: np.random.Generator | None = None,
) -> Rule:
    """A rule that keeps the answer of x whatever the other features do, after Ribeiro et al., "Anchors", AAAI 2018.

    Conditions are quantile bins of the background that x lies in. Greedily, the one that raises the precision most is
    added until enough is reached. Precision: the share of rows with the answer of x, when rows are drawn from the
    background and each anchored feature takes a background value of its bin.

    Args:
        predict: (rows, k) -> (rows,) answers.
        precision: that is enough, in (0, 1]. n_samples: rows drawn for each estimate. bins: quantile bins a feature.
        rng: of the draws; a fresh one if None.

    Returns:
        A rule on features 0..k-1: confidence is the estimated precision, support the share of the background covered.
        If the precision is not reached with all features, the rule has them all and says what it got.

    Raises:
        ValueError: if `precision` lies outside (0, 1].
    """
    if not 0 < precision <= 1:
        raise ValueError(f"precision must lie in (0, 1], got {precision}")
    rng = np.random.default_rng() if rng is None else rng
    k = len(x)
    answer = np.asarray(predict(x[None]))[0]
    edges = np.quantile(background, np.linspace(0, 1, bins + 1)[1:-1], axis=0)
    edges = np.concatenate([np.full((1, k), -np.inf), edges, np.full((1, k), np.inf)])
    place = (x > edges[1:-1]).sum(0)
    low, high = edges[place, np.arange(k)], edges[place + 1, np.arange(k)]
    member = (background > low) & (background <= high)
    rows = background[rng.integers(len(background), size=n_samples)]
    # Values of each feature's bin; x itself where the background has none.
    fixed = np.stack(
        [rng.choice(background[member[:, j], j] if member[:, j].any() else x[j : j + 1], n_samples) for j in range(k)],
        1,
    )
    held = np.zeros(k, dtype=bool)
    reached = float((np.asarray(predict(rows)) == answer).mean())
    while reached < precision and not held.all():
        open_features = np.flatnonzero(~held)
        masks = held | (np.arange(k) == open_features[:, None])
        trial = np.where(masks[:, None], fixed, rows)
        found = (np.asarray(predict(trial.reshape(-1, k))).reshape(len(open_features), n_samples) == answer).mean(1)
        held[open_features[found.argmax()]] = True
        reached = float(found.max())
    conditions = tuple(Condition(int(j), float(low[j]), float(high[j])) for j in np.flatnonzero(held))
    support = float(member[:, held].all(1).mean())
    return Rule(conditions, answer.item(), support, reached)


def representative_rows(contributions: Float[np.ndarray, "n k"], budget: int = 5) -> Int64[np.ndarray, "chosen"]:
    """Rows whose explanations together cover what matters: the submodular pick of Ribeiro et al., "LIME", KDD 2016.

    A feature weighs the square root of its absolute contributions summed over rows; a row covers the features that it
    has contributions of. Greedily, the row that adds most is taken.

    Args:
        contributions: of each feature to each row's answer. budget: rows to choose.

    Raises:
        ValueError: if the budget does not lie in 1..n.
    """
    if not 1 <= budget <= len(contributions):
        raise ValueError(f"budget must lie in 1..{len(contributions)}, the number of rows, got {budget}")
    size = np.abs(contributions)
    weight = np.sqrt(size.sum(0))
    # A contribution below a hundredth of the row's largest says nothing.
    touched = size > 0.01 * size.max(1, keepdims=True)
    covered = np.zeros(size.shape[1], dtype=bool)
    chosen: list[int] = []
    for _ in range(budget):
        gain = ((touched & ~covered) * weight).sum(1)
        gain[chosen] = -1.0
        chosen.append(int(gain.argmax()))
        covered |= touched[chosen[-1]]
    return np.array(chosen, dtype=np.int64)
