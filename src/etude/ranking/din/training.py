"""Training on clicks: batches whose histories are made when they are needed, and tables updated by the row.

Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", KDD 2018, arXiv:1706.06978, section 6: Adam at
1e-3 on the Alibaba log; plain gradient descent at rate 1, divided by 10 once, and a gradient of norm 5 at most in the
authors' code for Amazon.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.data.kinds_clicks import Clicks
from etude.nn.auc import auc, gauc
from etude.ranking.din.models import DIN
from etude.ranking.din.regularization import MiniBatchAwareL2, count_occurrences

__all__ = ["ClickFit", "clip_gradients", "count_clicks", "fit_clicks", "inputs_of", "predict_clicks"]


class ClickFit(NamedTuple):
    """How a training went.

    Args:
        epochs: how many were run, fewer than asked for where `patience` ran out.
        best_epoch: the one whose weights were kept.
        val_auc: AUC of each epoch on the validation rows; empty without them.
        train_loss: mean cross-entropy of each epoch while it ran, penalties left out.
    """

    epochs: int
    best_epoch: int
    val_auc: tuple[float, ...]
    train_loss: tuple[float, ...]


def inputs_of(model: DIN, clicks: Clicks, rows: Tensor, max_len: int) -> tuple[dict, dict, Tensor, dict]:
    """The arguments of `DIN.forward` for some rows: candidate, history, mask and context."""
    device = next(model.parameters()).device
    if clicks.candidates.shape[1] != len(model.sequence_fields) or clicks.context.shape[1] != len(model.context_fields):
        raise ValueError(
            f"the model has {len(model.sequence_fields)} behaviour and {len(model.context_fields)} context fields, "
            f"the clicks have {clicks.candidates.shape[1]} and {clicks.context.shape[1]}"
        )
    ids, mask = clicks.history(rows, max_len)
    shown, context, ids = clicks.candidates[rows].to(device), clicks.context[rows].to(device), ids.to(device)
    return (
        {name: shown[:, column] for column, name in enumerate(model.sequence_fields)},
        {name: ids[..., column] for column, name in enumerate(model.sequence_fields)},
        mask.to(device),
        {name: context[:, column] for column, name in enumerate(model.context_fields)},
    )


def count_clicks(model: DIN, clicks: Clicks, max_len: int, *, batch_size: int = 8192) -> dict[str, Tensor]:
    """n_j of every row of every table over these impressions, by field; see `count_occurrences`."""
    counts = {name: torch.zeros(field.size, dtype=torch.int64) for name, field in model.fields.items()}
    for rows in torch.arange(len(clicks)).split(batch_size):
        ids, _ = clicks.history(rows, max_len)
        every = torch.cat([clicks.candidates[rows][:, None], ids], dim=1)
        for column, name in enumerate(model.sequence_fields):
            counts[name] += count_occurrences(every[..., column], model.fields[name].size)
        for column, name in enumerate(model.context_fields):
            counts[name] += count_occurrences(clicks.context[rows, column, None], model.fields[name].size)
    return counts


def clip_gradients(parameters: list[nn.Parameter], max_norm: float | int) -> float:
    """Scales gradients down to a global norm of at most `max_norm`, sparse ones too; gives the norm before."""
    grads = []
    for parameter in parameters:
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            grads.append(parameter.grad.values())
        else:
            grads.append(parameter.grad)
    if not grads:
        return 0.0
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(grad) for grad in grads]))
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for grad in grads:
        grad.mul_(factor)
    return norm.item()


@torch.no_grad()
def predict_clicks(model: DIN, clicks: Clicks, max_len: int, *, batch_size: int = 1024) -> np.ndarray:
    """P(click) of each impression, float64 (n,), in evaluation mode; the model's mode is given back."""
    training = model.training
    model.eval()
    try:
        logits = [
            model(*inputs_of(model, clicks, rows, max_len)) for rows in torch.arange(len(clicks)).split(batch_size)
        ]
    finally:
        model.train(training)
    return torch.cat(logits).double().sigmoid().cpu().numpy() if logits else np.empty(0)


def fit_clicks(
    model: DIN,
    train: Clicks,
    val: Clicks | None = None,
    *,
    max_len: int = 50,
    epochs: int = 10,
    batch_size: int = 256,
    lr: float | int = 1e-3,
    optimizer: Literal["adam", "sgd"] = "adam",
    lr_decay: float | int = 1.0,
    drop_lr_at: int | None = None,
    clip: float | int | None = None,
    mba: float | int | None = None,
    l2: float | int | None = None,
    select: Literal["auc", "gauc", "last"] = "auc",
    patience: int | None = None,
    generator: torch.Generator | None = None,
    callback: Callable[..., None] | None = None,
) -> ClickFit:
    """Minimises the cross-entropy and leaves the model, in evaluation mode, at its best validation epoch.

    Memory beyond the log and the model is that of one batch, and with `val` that of the best weights. Tables with
    sparse gradients are updated by the row (`SparseAdam`, or SGD), others by Adam or SGD.

    Args:
        model: trained where it is.
        train: impressions; the last few of an epoch form a smaller batch, a single one joins the batch before.
        val: chooses the epoch; without it the last is kept.
        max_len: behaviours kept of each history.
        epochs, batch_size, lr, optimizer: the usual.
        lr_decay: factor on the learning rate after every epoch; the paper's 0.9 for Adam.
        drop_lr_at: the update from which on the rate is a tenth; 336,000 in the authors' code.
        clip: largest global norm of the gradient.
        mba: lambda of `MiniBatchAwareL2` on every table; None for none.
        l2: the naive penalty 1/2 l2 |W|^2 on all rows of every table at each step; needs dense gradients.
        select: the validation figure that chooses the epoch, GAUC by `Clicks.users`; "last" keeps the last epoch.
        patience: epochs without a better validation figure after which training ends; None runs all of them.
        generator: CPU generator of the order; one seeded with 0 if None.
        callback: called as `callback(epoch, epochs, loss=..., val_auc=...)`.

    Raises:
        ValueError: for arguments out of range, or labels that are all alike.
        FloatingPointError: if the loss is not finite.
    """
    _check(model, train, epochs, batch_size, lr, optimizer, l2, select)
    if patience is not None and (patience < 1 or val is None or select == "last"):
        raise ValueError(f"patience must be positive and needs validation rows that choose the epoch, got {patience}")
    penalties = {}
    if mba:
        counts = count_clicks(model, train, max_len)
        device = next(model.parameters()).device
        penalties = {name: MiniBatchAwareL2(count, mba).to(device) for name, count in counts.items()}
    optimizers = _optimizers(model, optimizer, lr)
    order = torch.Generator().manual_seed(0) if generator is None else generator
    parameters = list(model.parameters())
    best, best_epoch, best_score, step = None, epochs, float("-inf"), 0
    history: list[float] = []
    losses: list[float] = []
    for epoch in range(1, epochs + 1):
        model.train()
        total = torch.zeros((), dtype=torch.float64)
        for rows in _batches(len(train), batch_size, order):
            inputs = inputs_of(model, train, rows, max_len)
            loss = F.binary_cross_entropy_with_logits(model(*inputs), train.labels[rows].to(inputs[2].device))
            total += loss.detach().cpu() * len(rows)
            (loss + _penalty(model, penalties, inputs, l2)).backward()
            if clip is not None:
                clip_gradients(parameters, clip)
            step += 1
            for part in optimizers:
                part.step()
                part.zero_grad(set_to_none=True)
                if step == drop_lr_at:
                    _scale_lr(part, 0.1)
        losses.append(float(total) / len(train))
        if not np.isfinite(losses[-1]):
            raise FloatingPointError(f"the loss of epoch {epoch} is {losses[-1]}: lower the learning rate")
        for part in optimizers:
            _scale_lr(part, lr_decay)
        if val is not None:
            scores, labels = predict_clicks(model, val, max_len), val.labels.numpy()
            history.append(auc(labels, scores))
            score = gauc(labels, scores, val.users.numpy()) if select == "gauc" else history[-1]
            if select != "last" and score > best_score:
                best, best_epoch, best_score = copy.deepcopy(model.state_dict()), epoch, score
        if callback is not None:
            callback(epoch, epochs, loss=losses[-1], **({"val_auc": history[-1]} if history else {}))
        if patience is not None and epoch - best_epoch >= patience:
            break
    if best is not None:
        model.load_state_dict(best)
    model.eval()
    return ClickFit(len(losses), best_epoch, tuple(history), tuple(losses))


def _check(
    model: DIN, train: Clicks, epochs: int, batch_size: int, lr: float | int, optimizer: str, l2: Any, select: str
) -> None:
    if epochs < 1 or batch_size < 2 or not lr > 0:
        raise ValueError(f"epochs >= 1, batch_size >= 2 and lr > 0 are needed, got {epochs}, {batch_size} and {lr}")
    if optimizer not in ("adam", "sgd") or select not in ("auc", "gauc", "last"):
        raise ValueError(f"optimizer must be adam or sgd, select auc, gauc or last, got {optimizer!r} and {select!r}")
    if len(train) < 2 or len(train.labels.unique()) < 2:
        raise ValueError(
            f"training needs clicks and non-clicks, all {len(train)} labels are {train.labels[:1].tolist()}"
        )
    if l2 and any(module.sparse for module in model.modules() if isinstance(module, nn.Embedding)):
        raise ValueError("l2 touches every row at each step: make the model with sparse=False")


def _batches(n: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    parts = list(torch.randperm(n, generator=generator).split(size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return iter(parts)


def _optimizers(model: DIN, name: str, lr: float | int) -> list[torch.optim.Optimizer]:
    tables = [m.weight for m in model.modules() if isinstance(m, nn.Embedding) and m.sparse]
    rest = [p for p in model.parameters() if not any(p is table for table in tables)]
    if name == "sgd":
        return [torch.optim.SGD(rest + tables, lr=lr)]
    dense = torch.optim.Adam(rest, lr=lr, fused=True)
    return [dense, torch.optim.SparseAdam(tables, lr=lr)] if tables else [dense]


def _scale_lr(optimizer: torch.optim.Optimizer, factor: float | int) -> None:
    for group in optimizer.param_groups:
        group["lr"] *= factor


def _penalty(
    model: DIN, penalties: dict[str, MiniBatchAwareL2], inputs: tuple[dict, dict, Tensor, dict], l2: float | int | None
) -> Tensor | float:
    total: Tensor | float = 0.0
    candidate, history, _, context = inputs
    for name, penalty in penalties.items():
        ids = (candidate[name], history[name]) if name in history else (context[name],)
        table = model.tables[name]
        assert isinstance(table, nn.Embedding)
        total = total + penalty(table, *ids)
    if l2:
        for table in model.tables.values():
            assert isinstance(table, nn.Embedding)
            total = total + 0.5 * l2 * table.weight.square().sum()
    return total
