"""Measures of an explanation: fidelity of the surrogate, and what the chosen columns are worth to the black box.

Fidelity is the share of rows on which surrogate and black box name the same class, and

    R^2 = 1 - sum_ic (p_ic - q_ic)^2 / sum_ic (p_ic - mean_i p_ic)^2                                      (5)

of the black box's probabilities p and the surrogate's q. Comprehensiveness and sufficiency are those of DeYoung et al.,
"ERASER", arXiv:1911.03429, 2020: how much the predicted class loses without the chosen columns, and with them alone.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from etude.science.blackbox_rules.blackbox import predictor
from etude.science.blackbox_rules.inputs import as_matrix

__all__ = ["classification_scores", "comprehensiveness", "fidelity", "sufficiency"]


def fidelity(black_box: Float[np.ndarray, "n c"], surrogate: Float[np.ndarray, "n c"]) -> dict[str, float]:
    """Agreement of the most likely class, and R^2 of the probabilities, Eq. (5).

    If the black box gives every row the same probabilities, R^2 is 1 for a surrogate that gives them too and else 0.

    Returns:
        {"agreement": in [0, 1], "r2": at most 1}.
    """
    agreement = float((black_box.argmax(1) == surrogate.argmax(1)).mean())
    missed = float(((black_box - surrogate) ** 2).sum())
    total = float(((black_box - black_box.mean(0)) ** 2).sum())
    r2 = 1 - missed / total if total > 0 else float(missed == 0)
    return {"agreement": agreement, "r2": r2}


def classification_scores(y: Any, predicted: Any) -> dict[str, float]:
    """Accuracy, macro-F1 and Matthews' correlation of predicted classes against the truth."""
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    return {
        "accuracy": float(accuracy_score(y, predicted)),
        "macro_f1": float(f1_score(y, predicted, average="macro", zero_division=0)),
        "mcc": float(matthews_corrcoef(y, predicted)),
    }


def _drop(black_box: Any, X: Any, columns: Any, baseline: Any, keep: bool) -> float:
    values, _ = as_matrix(X)
    d = values.shape[1]
    marked = np.zeros(values.shape, dtype=bool)
    chosen = np.asarray(columns, dtype=np.int64)
    if chosen.size and not (chosen.min() >= 0 and chosen.max() < d):
        raise ValueError(f"columns must lie in 0..{d - 1}, got {chosen.min()}..{chosen.max()}")
    if chosen.ndim == 1:
        marked[:, chosen] = True
    elif chosen.shape[:1] == (len(values),):
        np.put_along_axis(marked, chosen, True, axis=1)
    else:
        raise ValueError(f"columns must be (k,), or ({len(values)}, k) for each row its own, got {chosen.shape}")
    filler = values.mean(0) if baseline is None else np.asarray(baseline)
    if filler.shape != (d,):
        raise ValueError(f"baseline must have shape ({d},), one value a column, got {filler.shape}")
    predict = predictor(black_box)
    before = np.asarray(predict(values))
    after = np.asarray(predict(np.where(marked == keep, values, filler.astype(values.dtype))))
    rows, predicted = np.arange(len(values)), before.argmax(1)
    return float((before[rows, predicted] - after[rows, predicted]).mean())


def comprehensiveness(
    black_box: Any, X: Any, columns: Int64[np.ndarray, "k"] | Int64[np.ndarray, "n k"], baseline: Any = None
) -> float:
    """Mean loss of the predicted class's probability when the columns are set to a baseline: high if they matter.

    Args:
        columns: the same for all rows, or (n, k) for each row its own.
        baseline: (d,), such as the training mean; the mean of `X` if None.

    Raises:
        ValueError: for a column that is not there, or a baseline of another length.
    """
    return _drop(black_box, X, columns, baseline, keep=False)


def sufficiency(
    black_box: Any, X: Any, columns: Int64[np.ndarray, "k"] | Int64[np.ndarray, "n k"], baseline: Any = None
) -> float:
    """Mean loss of the predicted class's probability when all other columns are set to a baseline: low if the chosen
    ones suffice. Arguments as of `comprehensiveness`."""
    return _drop(black_box, X, columns, baseline, keep=True)
