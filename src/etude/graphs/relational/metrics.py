"""How predictions of each kind of task are scored, over all rows of a split at once."""

import numpy as np

try:
    from sklearn import metrics as sk
except ImportError as error:
    raise ImportError('the metrics are scikit-learn\'s: pip install "etude[run]"') from error

__all__ = ["BEST", "rank_metrics", "task_metrics"]

BEST = {
    "binary": ("auroc", "max"), "multiclass": ("accuracy", "max"), "multilabel": ("average_precision", "max"),
    "regression": ("mae", "min"), "recommendation": ("map", "max"),
}  # fmt: skip
"""The metric by which the best epoch of each kind is chosen, and its good direction."""


def task_metrics(kind: str, target: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
    """The metrics of a kind of task.

    Args:
        kind: see `EntityTask`; recommendations go to `rank_metrics`.
        target: (n,) classes or values; (n, labels) for multilabel.
        prediction: (n,) probabilities of the class 1, (n, classes) or (n, labels) probabilities, or (n,) values.

    Returns:
        binary: auroc, average_precision, f1, accuracy; multiclass: accuracy, f1 (macro); multilabel: auroc and
        average_precision (macro), f1 (macro); regression: mae, rmse, r2. An AUROC over one class alone is 0.5.

    Raises:
        ValueError: for shapes that do not fit, predictions that are not finite, or no rows.
    """
    target, prediction = np.asarray(target), np.asarray(prediction)
    if not len(target):
        raise ValueError("there are no rows to score")
    wanted = (len(target),) if kind in ("binary", "regression") else (len(target), *prediction.shape[1:2])
    if prediction.shape != wanted:
        raise ValueError(f"predictions of a {kind} task must have shape {wanted}, got {prediction.shape}")
    if not np.isfinite(prediction).all():
        raise ValueError(f"{int((~np.isfinite(prediction)).sum())} predictions are NaN or infinite")
    if kind == "binary":
        both = len(np.unique(target)) == 2
        return {
            "auroc": float(sk.roc_auc_score(target, prediction)) if both else 0.5,
            "average_precision": float(sk.average_precision_score(target, prediction)) if target.any() else 0.0,
            "f1": float(sk.f1_score(target, prediction >= 0.5, zero_division=0)),
            "accuracy": float(sk.accuracy_score(target, prediction >= 0.5)),
        }
    if kind == "multiclass":
        chosen = prediction.argmax(1)
        return {
            "accuracy": float(sk.accuracy_score(target, chosen)),
            "f1": float(sk.f1_score(target, chosen, average="macro", zero_division=0)),
        }
    if kind == "multilabel":
        mixed = (target.min(0) == 0) & (target.max(0) == 1)
        pairs = (target[:, mixed], prediction[:, mixed])
        return {
            "auroc": float(sk.roc_auc_score(*pairs, average="macro")) if mixed.any() else 0.5,
            "average_precision": float(sk.average_precision_score(*pairs, average="macro")) if mixed.any() else 0.0,
            "f1": float(sk.f1_score(target, prediction >= 0.5, average="macro", zero_division=0)),
        }
    if kind == "regression":
        return {
            "mae": float(sk.mean_absolute_error(target, prediction)),
            "rmse": float(np.sqrt(sk.mean_squared_error(target, prediction))),
            "r2": float(sk.r2_score(target, prediction)) if len(target) > 1 else 0.0,
        }
    raise ValueError(f"no metrics for the kind {kind!r}")


def rank_metrics(hits: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    """MAP, precision and recall at k of ranked recommendations.

    Average precision at k divides by min(k, number of right answers), as the benchmark does.

    Args:
        hits: bool (n, k), whether each recommendation, best first, is right.
        counts: (n,), how many right answers each row has, at least 1.
    """
    hits, counts = np.asarray(hits, dtype=bool), np.asarray(counts)
    if hits.ndim != 2 or counts.shape != hits.shape[:1] or not len(hits):
        raise ValueError(f"hits must be (n, k) and counts (n,), n > 0, got {hits.shape} and {counts.shape}")
    if counts.min() < 1:
        raise ValueError("every row needs a right answer")
    k = hits.shape[1]
    precision = hits.cumsum(1) / np.arange(1, k + 1)
    return {
        "map": float(((precision * hits).sum(1) / np.minimum(counts, k)).mean()),
        "precision": float((hits.sum(1) / k).mean()),
        "recall": float((hits.sum(1) / counts).mean()),
    }
