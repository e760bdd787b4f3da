"""How well each task is ranked, what the tasks gain from each other, and whether their gradients agree."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor, nn

from etude.nn.auc import auc

__all__ = ["conflict_score", "mtl_gain", "task_aucs", "task_log_losses"]


def _known(labels: ArrayLike, scores: ArrayLike) -> list[tuple[np.ndarray, np.ndarray]]:
    """Labels and scores of each task, where the label is known."""
    y, p = np.asarray(labels, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if y.ndim != 2 or y.shape != p.shape:
        raise ValueError(f"labels and scores must both be (n, tasks), got {y.shape} and {p.shape}")
    if not np.isfinite(p).all():
        raise ValueError(f"scores must be finite, {int((~np.isfinite(p)).sum())} are not")
    there = ~np.isnan(y)
    return [(y[rows, task], p[rows, task]) for task, rows in enumerate(there.T)]


def task_aucs(labels: ArrayLike, scores: ArrayLike) -> tuple[float, ...]:
    """AUC of each task over the rows whose label is known (not NaN).

    Args:
        labels: (n, K), 0, 1 or NaN.
        scores: (n, K), finite.

    Raises:
        ValueError: if shapes differ, a score is not finite, or a task has one label only.
    """
    found = []
    for task, (y, p) in enumerate(_known(labels, scores)):
        if len(np.unique(y)) < 2:
            raise ValueError(f"the AUC of task {task} needs both labels, its {len(y)} known ones are all alike")
        found.append(auc(y, p))
    return tuple(found)


def task_log_losses(labels: ArrayLike, probabilities: ArrayLike) -> tuple[float, ...]:
    """Mean cross-entropy of each task over the rows whose label is known; arguments as for `task_aucs`."""
    found = []
    for task, (y, p) in enumerate(_known(labels, probabilities)):
        if not len(y):
            raise ValueError(f"task {task} has no known label")
        p = p.clip(1e-12, 1 - 1e-12)
        found.append(float(-(y * np.log(p) + (1 - y) * np.log1p(-p)).mean()))
    return tuple(found)


def mtl_gain(aucs: Sequence[float], single: Sequence[float]) -> float:
    """mean_k (AUC_k / AUC_k of a model of task k alone - 1).

    Raises:
        ValueError: if the numbers of tasks differ or there is none.
    """
    if not aucs or len(aucs) != len(single):
        raise ValueError(f"an AUC of each task is needed on both sides, got {len(aucs)} and {len(single)}")
    return float(np.mean(np.asarray(aucs) / np.asarray(single) - 1))


def conflict_score(
    model: nn.Module,
    batch: tuple[Sequence[Tensor] | Tensor, Float[Tensor, "batch tasks"]],
    parameters: Sequence[nn.Parameter] | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Float[Tensor, "tasks tasks"]:
    """Cosine of every two tasks' gradients with respect to what they share: below 0 they pull apart.

        inputs = data.train.batch(rows, data.max_len)
        conflict_score(model, (inputs, data.train.labels[rows]))

    Args:
        model: gives logits (batch, tasks).
        batch: the model's argument or arguments, and labels; NaN where one is not known.
        parameters: what is shared; `model.shared_parameters()` if None.
        loss: (logits (n,), labels (n,)) of one task; the mean binary cross-entropy if None.

    A task whose gradient vanishes has cosine 0 with all.

    Raises:
        ValueError: if nothing is shared, or a task has no known label in the batch.
    """
    inputs, labels = batch
    shared = list(model.shared_parameters() if parameters is None else parameters)  # type: ignore[operator]
    if not shared:
        raise ValueError("there are no shared parameters whose gradients could be compared")
    loss = nn.functional.binary_cross_entropy_with_logits if loss is None else loss
    logits = model(inputs) if isinstance(inputs, Tensor) else model(*inputs)
    rows = []
    for task in range(logits.shape[1]):
        known = ~labels[:, task].isnan()
        if not bool(known.any()):
            raise ValueError(f"task {task} has no known label in the batch")
        value = loss(logits[known, task], labels[known, task])
        grads = torch.autograd.grad(value, shared, retain_graph=True, allow_unused=True)
        rows.append(torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(shared, grads)]))
    unit = nn.functional.normalize(torch.stack(rows).double(), dim=1)
    return (unit @ unit.T).clamp(-1, 1).to(rows[0].dtype)
