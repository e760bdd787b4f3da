"""From several importances to one ranking: ranks instead of raw scores, and how far the techniques agree.

Each technique ranks all d columns, 1 the best; ties share their mean rank. Borda adds d - rank over the techniques,
"mrr" adds 1 / rank. Raw importances have different scales and are never averaged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int64
from scipy.stats import kendalltau, rankdata

from etude.science.blackbox_rules.blackbox import BlackBoxClassifier, predictor
from etude.science.blackbox_rules.inputs import as_matrix
from etude.science.blackbox_rules.networks import SelfAttentionNet
from etude.science.blackbox_rules.perturbing import Sensitivity, permutation_importance, sensitivity_importance
from etude.science.blackbox_rules.probing import attention_importance, gradient_importance

__all__ = ["Agreement", "Importances", "aggregate_ranks", "measure_importances", "rank_agreement", "ranks"]

TECHNIQUES = (
    "integrated_gradients", "gradient_x_input", "attention", "global_attention", "permutation", "permutation_f1",
    "sensitivity",
)  # fmt: skip
"""The first four look inside; attention needs a black box that has it."""
_INSIDE = TECHNIQUES[:4]


def ranks(importance: Float[np.ndarray, "d"]) -> Float[np.ndarray, "d"]:
    """1 for the most important; ties share the mean rank."""
    return rankdata(-np.asarray(importance), method="average")


def aggregate_ranks(importances: Mapping[str, Any], method: str = "borda") -> Float[np.ndarray, "d"]:
    """One score a column from several importances; the higher, the more important.

    Args:
        importances: technique -> (d,).
        method: "borda": mean of d - rank. "mrr": mean of 1 / rank.

    Raises:
        ValueError: for an unknown method, no technique, or importances of different lengths.
    """
    if method not in ("borda", "mrr"):
        raise ValueError(f"method must be borda or mrr, got {method!r}")
    shapes = {name: np.shape(values) for name, values in importances.items()}
    if not shapes or len(set(shapes.values())) > 1 or len(next(iter(shapes.values()))) != 1:
        raise ValueError(f"importances must be one vector a technique, all of one length, got shapes {shapes}")
    table = np.stack([ranks(np.asarray(values)) for values in importances.values()])
    return (table.shape[1] - table).mean(0) if method == "borda" else (1 / table).mean(0)


@dataclass(frozen=True)
class Agreement:
    """How far techniques agree, pair by pair.

    Attributes:
        names: techniques, in the order of the matrices.
        tau: Kendall's tau-b of all columns. jaccard: shared part of the two top-k, intersection over union.
    """

    names: tuple[str, ...]
    tau: Float[np.ndarray, "t t"]
    jaccard: Float[np.ndarray, "t t"]


def rank_agreement(importances: Mapping[str, Any], k: int = 20) -> Agreement:
    """Kendall's tau and the overlap of the top k of each pair of techniques.

    Raises:
        ValueError: if k is not in 1..d.
    """
    names = tuple(importances)
    values = [np.asarray(importances[name]) for name in names]
    if not 1 <= k <= len(values[0]):
        raise ValueError(f"k must lie in 1..{len(values[0])}, the number of columns, got {k}")
    tau, jaccard = np.eye(len(names)), np.eye(len(names))
    tops = [set(np.argsort(-value, kind="stable")[:k].tolist()) for value in values]
    for i in range(len(names)):
        for j in range(i):
            found = kendalltau(values[i], values[j]).statistic
            tau[i, j] = tau[j, i] = 0.0 if np.isnan(found) else found
            jaccard[i, j] = jaccard[j, i] = len(tops[i] & tops[j]) / len(tops[i] | tops[j])
    return Agreement(names, tau, jaccard)


@dataclass(frozen=True)
class Importances:
    """What the techniques say of each column.

    Attributes:
        scores: technique -> (d,); the higher, the more important.
        impact: (d, classes) direction in which each column pushes each class, from sensitivity; None without it. 0 for
            columns that a first pass ruled out.
        notes: what was done without being asked.
    """

    scores: dict[str, Float[np.ndarray, "d"]]
    impact: Float[np.ndarray, "d classes"] | None = None
    notes: tuple[str, ...] = ()

    def merged(self, method: str = "borda") -> Int64[np.ndarray, "d"]:
        """Columns by their merged rank, the best first."""
        return np.argsort(-aggregate_ranks(self.scores, method), kind="stable")


def _f_values(X: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """One-way F of each column over the black box's answers."""
    classes, codes = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        return X.var(axis=0)
    member = np.eye(len(classes))[codes]
    counts = member.sum(0)[:, None]
    means = member.T @ X / counts
    between = (counts * (means - X.mean(0)) ** 2).sum(0) / (len(classes) - 1)
    within = ((X - means[codes]) ** 2).sum(0) / max(len(X) - len(classes), 1)
    return between / np.maximum(within, 1e-12)


def measure_importances(
    black_box: Any,
    train: Any,
    held_out: Any,
    y: Any = None,
    *,
    techniques: Sequence[str] | None = None,
    n_repeats: int = 10,
    steps: int = 32,
    conditional: bool = False,
    two_pass_above: int = 2_000,
    share: float | int = 0.1,
    rng: np.random.Generator | None = None,
) -> Importances:
    """Runs the techniques that a black box allows.

    The perturbing techniques cost passes for every column. Above `two_pass_above` columns they look only at the best
    `share` of a first ranking, and the other columns rank below these in the order of that ranking: integrated
    gradients, or of a box that nobody can look into the F-statistic of each column over the box's answers.

    Args:
        black_box: a fitted `BlackBoxClassifier`, or anything with `predict_proba`, or a function.
        train: rows that the gradients and quantiles are taken over.
        held_out: rows that are shuffled; the black box must not have been trained on them.
        y: labels of `held_out`, without which there is no "permutation_f1".
        techniques: some of `TECHNIQUES`; if None, all that the box allows but the global attention, which does not
            see what the head ignores.
        n_repeats, conditional: of the permutations. steps: of integrated gradients.
        rng: of the permutations.

    Raises:
        ValueError: for an unknown technique, or one that this box does not allow.
    """
    rng = np.random.default_rng() if rng is None else rng
    inner, d = isinstance(black_box, BlackBoxClassifier), as_matrix(train)[0].shape[1]
    rows, shuffled = as_matrix(train)[0], as_matrix(held_out, d, "held_out")[0]
    attentive = inner and isinstance(black_box.network_, SelfAttentionNet)
    allowed = [name for name in TECHNIQUES if name not in _INSIDE or (inner and ("attention" not in name or attentive))]
    if y is None:
        allowed.remove("permutation_f1")
    if techniques is None:
        techniques = [name for name in allowed if name != "global_attention"]
    bad = [name for name in techniques if name not in allowed]
    if bad or not techniques:
        raise ValueError(f"this black box allows the techniques {', '.join(allowed)}, got {', '.join(bad) or 'none'}")
    scores: dict[str, np.ndarray] = {}
    if "integrated_gradients" in techniques or (inner and d > two_pass_above):
        scores["integrated_gradients"] = gradient_importance(black_box, rows, "integrated", steps)
    if "gradient_x_input" in techniques:
        scores["gradient_x_input"] = gradient_importance(black_box, rows, "gradient_x_input")
    if "attention" in techniques:
        scores["attention"] = attention_importance(black_box, shuffled, y)
    if "global_attention" in techniques:
        scores["global_attention"] = attention_importance(black_box, scope="global")
    notes: list[str] = []
    first, candidates = None, np.arange(d)
    if d > two_pass_above and any(name not in _INSIDE for name in techniques):
        if inner:
            first = scores["integrated_gradients"]
        else:
            first = _f_values(rows, np.asarray(predictor(black_box)(rows)).argmax(1))
        candidates = np.argsort(-first, kind="stable")[: max(1, int(share * d))]
        notes.append(
            f"{d} columns: only the {len(candidates)} best by {'integrated gradients' if inner else 'F'} were perturbed"
        )

    def widened(importance: np.ndarray) -> np.ndarray:
        if first is None:
            return importance
        out = importance.min() - ranks(first)
        out[candidates] = importance
        return out

    seed = int(rng.integers(2**62))
    for name, metric in (("permutation", "probability"), ("permutation_f1", "macro_f1")):
        if name in techniques:
            found = permutation_importance(
                black_box, shuffled, candidates, n_repeats, metric, y=y, conditional=conditional,
                rng=np.random.default_rng(seed),
            )  # fmt: skip
            scores[name] = widened(found)
    impact = None
    if "sensitivity" in techniques:
        moved: Sensitivity = sensitivity_importance(black_box, shuffled, candidates, train=rows)
        scores["sensitivity"] = widened(moved.importance)
        impact = np.zeros((d, moved.impact.shape[1]))
        impact[candidates] = moved.impact
    return Importances({name: scores[name] for name in techniques}, impact, tuple(notes))
