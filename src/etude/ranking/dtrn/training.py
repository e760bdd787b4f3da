"""Training on several tasks at once: the loss over what is known, batches made when they are needed, the best epoch.

Liu et al., arXiv:2308.05996: the sum over tasks of the binary cross-entropy, Adam at 1e-3. The choice of the epoch by
the mean validation AUC is this file's.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.lr_scheduler import LinearLR

from etude.data.kinds import Examples
from etude.data.kinds_multitask import MultiTaskRows
from etude.loop import fit
from etude.ranking.dtrn.conditional import HyperLayerNorm
from etude.ranking.dtrn.metrics import task_aucs

__all__ = ["MultiTaskFit", "fit_multitask", "multitask_loss", "predict_multitask"]


class MultiTaskFit(NamedTuple):
    """How a training went.

    Args:
        epochs: how many were run.
        best_epoch: the one whose weights were kept.
        val_auc: AUC of each task on the validation rows after each epoch; empty without them.
        train_loss: mean of each epoch while it ran.
    """

    epochs: int
    best_epoch: int
    val_auc: tuple[tuple[float, ...], ...]
    train_loss: tuple[float, ...]

    @property
    def best_val_auc(self) -> float:
        """Mean over tasks, after the best epoch."""
        return float(np.mean(self.val_auc[self.best_epoch - 1]))


def multitask_loss(
    logits: Float[Tensor, "batch tasks"],
    labels: Float[Tensor, "batch tasks"],
    weights: Sequence[float | int] | Float[Tensor, "tasks"] | None = None,
) -> Float[Tensor, ""]:
    """sum_k w_k BCE_k, the cross-entropy of task k being the mean over the rows whose label of k is known (not NaN).

    A task without any known label in the batch adds nothing. All weights are 1 if None.

    Raises:
        ValueError: if the number of weights is not that of the tasks.
    """
    known = ~labels.isnan()
    each = F.binary_cross_entropy_with_logits(logits, labels.nan_to_num(0.0), reduction="none")
    per_task = (each * known).sum(0) / known.sum(0).clamp(min=1)
    if weights is None:
        return per_task.sum()
    factors = torch.as_tensor(weights, dtype=per_task.dtype, device=per_task.device)
    if factors.shape != per_task.shape:
        raise ValueError(f"weights must be one for each of {len(per_task)} tasks, got {tuple(factors.shape)}")
    return (factors * per_task).sum()


class _ByRow(nn.Module):
    """A model of numbers of rows, whose histories are padded when a batch comes."""

    def __init__(self, model: nn.Module, rows: MultiTaskRows, max_len: int):
        super().__init__()
        self.model, self.rows, self.max_len = model, rows, max_len

    def forward(self, index: Tensor) -> Tensor:
        batch = self.rows.batch(index.to(self.rows.targets.device), self.max_len)
        return self.model(*batch.to(index.device))


@torch.no_grad()
def predict_multitask(
    model: nn.Module, rows: MultiTaskRows, max_len: int, *, batch_size: int = 2048
) -> Float[np.ndarray, "n tasks"]:
    """Probabilities, float64, in evaluation mode; the model's mode is given back."""
    training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        parts = torch.arange(len(rows)).split(batch_size)
        logits = [model(*rows.batch(part, max_len).to(device)) for part in parts]
    finally:
        model.train(training)
    if not logits:
        return np.empty((0, rows.labels.shape[1]))
    return torch.cat(logits).double().sigmoid().cpu().numpy()


def fit_multitask(
    model: nn.Module,
    train: MultiTaskRows,
    val: MultiTaskRows | None = None,
    *,
    max_len: int = 50,
    epochs: int = 6,
    batch_size: int = 1024,
    lr: float | int = 1e-3,
    warmup: int = 0,
    weights: Sequence[float | int] | None = None,
    weight_decay: float | int = 0.0,
    patience: int | None = None,
    generator: torch.Generator | None = None,
    callback: Callable[..., Any] | None = None,
    clip: float | int | None = None,
    mixed_precision: str = "no",
) -> MultiTaskFit:
    """Trains a model of several tasks by Adam; with validation rows its best epoch is kept.

        result = fit_multitask(model, data.train, data.val, max_len=data.max_len, epochs=3)

    Args:
        model: `DTRN`, or any of the arguments of `MultiTaskBatch` that gives logits (batch, tasks).
        train, val: impressions.
        max_len: events of each type that a history keeps.
        epochs, batch_size, lr: of Adam.
        warmup: updates in which the rate rises linearly to `lr`. Without, at high rates, a task's interests may stay
            where they start: the mean of the events.
        weights: of the tasks in the loss.
        weight_decay: decoupled, on W2 of a `HyperLayerNorm` alone, whose gammas might grow.
        patience: epochs without a better mean validation AUC after which training stops; None: never.
        generator: CPU generator of the order; one seeded with 0 if None.
        callback: called as `callback(epoch, epochs, loss=..., val_auc=...)`.
        clip, mixed_precision: see `etude.loop.fit`.

    Raises:
        ValueError: for arguments out of range, or a task whose known training labels are all alike.
        FloatingPointError: if the loss is not finite.
    """
    if epochs < 1 or not lr > 0 or (patience is not None and patience < 1):
        raise ValueError(f"epochs >= 1, lr > 0 and patience >= 1 are needed, got {epochs}, {lr} and {patience}")
    if warmup < 0:
        raise ValueError(f"warmup must not be negative, got {warmup}")
    for task, column in enumerate(train.labels.unbind(1)):
        values = column[~column.isnan()].unique().tolist()
        if len(values) < 2:
            raise ValueError(f"task {task} needs both labels in the training rows, its known ones are {values}")
    optimizer = _optimizer(model, lr, weight_decay)
    schedule = LinearLR(optimizer, 1 / (warmup + 1), total_iters=warmup) if warmup else None
    order = torch.Generator().manual_seed(0) if generator is None else generator
    examples = Examples(torch.arange(len(train)), train.labels)
    by_row = _ByRow(model, train, max_len)
    best, best_epoch, best_score = None, epochs, float("-inf")
    history: list[tuple[float, ...]] = []
    losses: list[float] = []
    for epoch in range(1, epochs + 1):
        result = fit(
            by_row, examples, optimizer, loss=lambda logits, labels: multitask_loss(logits, labels, weights),
            epochs=1, batch_size=batch_size, generator=order, schedule=schedule, clip=clip,
            mixed_precision=mixed_precision,
        )  # fmt: skip
        losses.append(float(np.mean(result.losses)))
        if not np.isfinite(losses[-1]):
            raise FloatingPointError(f"the loss of epoch {epoch} is {losses[-1]}: lower the learning rate")
        if val is not None:
            history.append(task_aucs(val.labels.numpy(), predict_multitask(model, val, max_len)))
            if np.mean(history[-1]) > best_score:
                best, best_epoch, best_score = copy.deepcopy(model.state_dict()), epoch, float(np.mean(history[-1]))
        if callback is not None:
            scores = {"val_auc": float(np.mean(history[-1]))} if history else {}
            callback(epoch, epochs, loss=losses[-1], **scores)
        if patience is not None and val is not None and epoch - best_epoch >= patience:
            break
    if best is not None:
        model.load_state_dict(best)
    model.eval()
    return MultiTaskFit(len(losses), best_epoch if best is not None else len(losses), tuple(history), tuple(losses))


def _optimizer(model: nn.Module, lr: float | int, weight_decay: float | int) -> torch.optim.Optimizer:
    decayed = [module.out.weight for module in model.modules() if isinstance(module, HyperLayerNorm)]
    rest = [p for p in model.parameters() if not any(p is weight for weight in decayed)]
    groups: list[dict[str, Any]] = [{"params": rest, "weight_decay": 0.0}]
    if decayed:
        groups.append({"params": decayed, "weight_decay": float(weight_decay)})
    return torch.optim.AdamW(groups, lr=lr, fused=True)
