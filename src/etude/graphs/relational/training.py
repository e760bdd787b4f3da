"""Training on a training table, with the schedule of the benchmark's code (Robinson et al., arXiv:2407.20060).

Adam at 5e-3, batches of 512 seeds, at most 2,000 steps an epoch, 10 epochs, the weights of the best validation epoch.
Losses: binary and multilabel cross-entropy, cross-entropy, L1 for regression, whose predictions are clamped to the 2nd
and 98th percentiles of the training targets. One thing is ours: the head's bias begins at the median of a regression's
training targets, which spares the first steps of Adam.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from etude.graphs.relational.loader import TemporalLoader
from etude.graphs.relational.metrics import BEST, task_metrics
from etude.graphs.relational.models import RelationalModel
from etude.graphs.relational.sampler import TemporalNeighborSampler

__all__ = ["EntityFit", "fit_entities", "predict_entities"]

Rows = tuple[np.ndarray, np.ndarray, np.ndarray]
_CLAMP = (2.0, 98.0)


@dataclass
class EntityFit:
    """How a training went.

    Attributes:
        best_epoch: from 1.
        metric: that chose it, and its validation value.
        val_score: see `metric`.
        losses: mean training loss of each epoch.
        val_scores: of each epoch.
        clamp: the range of a regression's predictions; None for other kinds.
    """

    best_epoch: int
    metric: str
    val_score: float
    losses: list[float] = field(default_factory=list)
    val_scores: list[float] = field(default_factory=list)
    clamp: tuple[float, float] | None = None


def _loss(kind: str, output: Tensor, target: Tensor) -> Tensor:
    if kind == "binary":
        return F.binary_cross_entropy_with_logits(output[:, 0], target.to(output.dtype))
    if kind == "multilabel":
        return F.binary_cross_entropy_with_logits(output, target.to(output.dtype))
    if kind == "regression":
        return F.l1_loss(output[:, 0], target.to(output.dtype))
    return F.cross_entropy(output, target)


def fit_entities(
    model: RelationalModel,
    sampler: TemporalNeighborSampler,
    train: Rows,
    val: Rows,
    kind: str = "binary",
    *,
    lr: float | int = 5e-3,
    batch_size: int = 512,
    epochs: int = 10,
    max_steps: int | None = 2000,
    seed: int = 0,
    num_workers: int = 0,
    callback: Callable[..., None] | None = None,
) -> EntityFit:
    """Trains the model and leaves it at its best validation epoch, in eval mode.

    Dropout draws from torch's global generator; order and neighbours follow `seed`.

    Args:
        model: `out_dim` 1, or the number of classes or labels.
        sampler: with the task's entity table.
        train, val: (entity, time, target) of `EntityTask.rows`; classes as int64.
        kind: see `EntityTask`, without recommendations.
        lr: of Adam.
        batch_size, epochs, max_steps: as above.
        seed: of the order of the rows.
        num_workers: processes that sample ahead.
        callback: called as `callback(epoch, epochs, loss=..., val=...)`.

    Raises:
        ValueError: if `epochs` is not positive or the kind does not fit.
        FloatingPointError: if the training loss is not finite.
    """
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    if kind not in BEST or kind == "recommendation":
        raise ValueError(f"kind must be binary, multiclass, multilabel or regression, got {kind!r}")
    device = next(model.parameters()).device
    metric, goal = BEST[kind]
    found = EntityFit(0, metric, float("-inf") if goal == "max" else float("inf"))
    if kind == "regression":
        low, high = np.percentile(train[2], _CLAMP)
        found.clamp = (float(low), float(high))
        with torch.no_grad():
            model.head.bias.fill_(float(np.median(train[2])))
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    loader = TemporalLoader(
        sampler, train, batch_size, shuffle=True, seed=seed, max_batches=max_steps, num_workers=num_workers
    )
    best: dict[str, Tensor] = {}
    for epoch in range(1, epochs + 1):
        model.train()
        total, rows = 0.0, 0
        for batch, target in loader:
            assert target is not None
            optimizer.zero_grad()
            loss = _loss(kind, model(batch.to(device)), target.to(device))
            loss.backward()
            optimizer.step()
            total, rows = total + loss.item() * len(batch), rows + len(batch)
        if not np.isfinite(total):
            raise FloatingPointError(f"the training loss is {total / rows} in epoch {epoch}")
        predicted = predict_entities(
            model, sampler, val, kind, clamp=found.clamp, batch_size=batch_size, num_workers=num_workers
        )
        score = task_metrics(kind, val[2], predicted)[metric]
        found.losses.append(total / rows)
        found.val_scores.append(score)
        if (score > found.val_score) if goal == "max" else (score < found.val_score):
            found.best_epoch, found.val_score = epoch, score
            best = deepcopy(model.state_dict())
        if callback is not None:
            callback(epoch, epochs, loss=total / rows, val=score)
    model.load_state_dict(best)
    model.eval()
    return found


@torch.no_grad()
def predict_entities(
    model: RelationalModel,
    sampler: TemporalNeighborSampler,
    rows: tuple[Any, Any, Any],
    kind: str = "binary",
    *,
    clamp: tuple[float, float] | None = None,
    batch_size: int = 512,
    num_workers: int = 0,
) -> np.ndarray:
    """Predictions as `task_metrics` takes them: probabilities, or values for regression.

    The model is put into eval mode. A row's prediction does not depend on the other rows.
    """
    model.eval()
    device = next(model.parameters()).device
    loader = TemporalLoader(sampler, (rows[0], rows[1], None), batch_size, num_workers=num_workers)
    output = torch.cat([model(batch.to(device)).float().cpu() for batch, _ in loader])
    if kind == "regression":
        values = output[:, 0].double().numpy()
        return values if clamp is None else np.clip(values, *clamp)
    if kind == "multiclass":
        return output.double().softmax(1).numpy()
    probabilities = output.double().sigmoid().numpy()
    return probabilities[:, 0] if kind == "binary" else probabilities
