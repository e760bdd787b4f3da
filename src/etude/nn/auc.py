"""AUC within groups, weighted by their size, and the improvement over a base model relative to chance.

Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", KDD 2018, arXiv:1706.06978, section 6.3, after
Zhu et al., "Optimized Cost per Click in Taobao Display Advertising", KDD 2017:

    GAUC = sum_u n_u AUC_u / sum_u n_u
    RelaImpr = (AUC - 0.5) / (AUC of the base model - 0.5) - 1
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["GroupedAUC", "auc", "gauc", "grouped_auc", "rela_impr"]


class GroupedAUC(NamedTuple):
    """GAUC, over how many groups it is taken, and what was left out: groups whose labels are all alike."""

    value: float
    groups: int
    excluded_groups: int
    excluded_rows: int


def auc(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """Area under the ROC curve; a tie counts a half.

    Raises:
        ValueError: if the labels are not 0 and 1, both, or a score is not finite.
    """
    labels, _ = _checked(y_true, y_score)
    if len(np.unique(labels)) < 2:
        raise ValueError(f"AUC needs both labels, got {len(labels)} rows of {labels[:1].tolist()}")
    return grouped_auc(y_true, y_score, np.zeros(len(labels), dtype=np.int64)).value


def gauc(
    y_true: ArrayLike,
    y_score: ArrayLike,
    groups: ArrayLike,
    weight: Literal["impressions", "clicks"] = "impressions",
) -> float:
    """GAUC; see `grouped_auc`, which also says what was left out."""
    return grouped_auc(y_true, y_score, groups, weight).value


def grouped_auc(
    y_true: ArrayLike,
    y_score: ArrayLike,
    groups: ArrayLike,
    weight: Literal["impressions", "clicks"] = "impressions",
) -> GroupedAUC:
    """The AUC of every group, averaged with the groups' sizes as weights.

    Groups with one label only have no AUC and take no part, neither above nor below the fraction.

    Args:
        y_true: (n,), 0 or 1.
        y_score: (n,), finite.
        groups: (n,), whose impression each row is: anything that sorts.
        weight: n_u is the number of impressions, or of clicks.

    Raises:
        ValueError: if shapes differ, labels are not 0 or 1, a score is not finite, or no group has both labels.
    """
    if weight not in ("impressions", "clicks"):
        raise ValueError(f'weight must be "impressions" or "clicks", got {weight!r}')
    labels, scores = _checked(y_true, y_score)
    names = np.asarray(groups)
    if names.shape != labels.shape:
        raise ValueError(f"groups must have shape {labels.shape}, got {names.shape}")
    _, code = np.unique(names, return_inverse=True)
    order = np.lexsort((scores, code))
    code, scores, labels = code[order], scores[order], labels[order]
    starts = np.r_[True, code[1:] != code[:-1]]
    first = np.flatnonzero(starts)
    # Mid-ranks: rows of equal score in a group share the mean of their places.
    run = np.cumsum(starts | np.r_[True, scores[1:] != scores[:-1]]) - 1
    length = np.bincount(run)
    end = np.cumsum(length)
    rank = (end - (length - 1) / 2)[run] - first[code]

    size = np.bincount(code).astype(np.float64)
    clicks = np.bincount(code, weights=labels)
    negatives = size - clicks
    mixed = (clicks > 0) & (negatives > 0)
    if not mixed.any():
        raise ValueError(f"AUC needs a group with both labels, none of {len(size)} has them")
    ranks = np.bincount(code, weights=rank * labels)
    area = (ranks - clicks * (clicks + 1) / 2)[mixed] / (clicks * negatives)[mixed]
    weights = (size if weight == "impressions" else clicks)[mixed]
    return GroupedAUC(
        value=float(np.average(area, weights=weights)),
        groups=int(mixed.sum()),
        excluded_groups=int((~mixed).sum()),
        excluded_rows=int(size[~mixed].sum()),
    )


def rela_impr(auc: float | int, base: float | int) -> float:
    """Improvement of an AUC over that of a base model, relative to the base's distance from chance.

    Raises:
        ValueError: if the base is at chance, 0.5.
    """
    if base == 0.5:
        raise ValueError("RelaImpr is not defined over a base AUC of 0.5")
    return (auc - 0.5) / (base - 0.5) - 1


def _checked(y_true: ArrayLike, y_score: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = np.asarray(y_true, dtype=np.float64), np.asarray(y_score, dtype=np.float64)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise ValueError(f"labels and scores must have the same shape (n,), got {labels.shape} and {scores.shape}")
    wrong = labels[(labels != 0) & (labels != 1)]
    if len(wrong):
        raise ValueError(f"labels must be 0 or 1, got {wrong[0]:g}")
    bad = int((~np.isfinite(scores)).sum())
    if bad:
        raise ValueError(f"scores must be finite, {bad} are not")
    return labels, scores
