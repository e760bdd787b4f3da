"""Training with the epoch of the best in-domain validation accuracy kept, as every classifier of the paper is."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.data.kinds import Examples
from etude.loop import accuracy, fit

__all__ = ["Selected", "held_out", "labels_of", "train_selected"]


@dataclass(frozen=True)
class Selected:
    """What training chose.

    Args:
        val_accuracy: of the epoch kept. best_epoch: which one, from 1.
        curve: validation accuracy after every epoch.
        losses: training loss of every update.
    """

    val_accuracy: float
    best_epoch: int
    curve: list[float]
    losses: list[float]


def train_selected(
    model: nn.Module,
    train: Examples,
    val: Examples,
    *,
    epochs: int = 200,
    batch_size: int = 64,
    lr: float | int = 1e-3,
    loss: Callable[[Any, Any], Tensor] = F.cross_entropy,
    generator: torch.Generator | None = None,
    callback: Callable[..., Any] | None = None,
) -> Selected:
    """Adam without weight decay; the model ends with the weights of its first best epoch.

    Args:
        model: trained in place.
        train: images or features with labels. val: in-domain, never the shifted test set.
        epochs, batch_size, lr: the paper's defaults. Examples that do not fill a batch wait for another epoch.
        loss: of the model's output and the labels.
        generator: of the order of the examples.
        callback: called as `callback(epoch, epochs, val_accuracy=...)`.
    """
    if epochs < 1 or batch_size < 1 or not lr > 0:
        raise ValueError(f"epochs, batch_size and lr must be positive, got {epochs}, {batch_size} and {lr}")
    per_epoch = max(len(train) // batch_size, 1)
    curve: list[float] = []
    best: dict[str, Tensor] = {}

    def select(step: int, total: int, **_: Any) -> None:
        score = accuracy(model, val)
        if not curve or score > max(curve):
            best.update(copy.deepcopy(model.state_dict()))
        curve.append(score)
        if callback is not None:
            callback(len(curve), epochs, val_accuracy=score)

    result = fit(
        model, train, torch.optim.Adam(model.parameters(), lr=float(lr)), loss=loss, epochs=epochs,
        batch_size=batch_size, generator=generator, callbacks=[select], every=per_epoch,
    )  # fmt: skip
    model.load_state_dict(best)
    return Selected(max(curve), curve.index(max(curve)) + 1, curve, result.losses)


def labels_of(y: Any, classes: np.ndarray | None = None) -> tuple[np.ndarray, Tensor]:
    """The classes, sorted, and the labels as their places.

    Raises:
        ValueError: for labels that are no flat list, a single class, or a class that was not there in training.
    """
    values = np.asarray(y)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"labels must be a flat list of at least one, got shape {values.shape}")
    known = np.unique(values) if classes is None else classes
    if classes is None and len(known) < 2:
        raise ValueError(f"labels must hold at least two classes, got only {known.tolist()}")
    strange = sorted(set(values.tolist()) - set(known.tolist()))
    if strange:
        raise ValueError(f"the label {strange[0]!r} is none of the classes {known.tolist()}")
    return known, torch.from_numpy(np.searchsorted(known, values))


def held_out(labels: Tensor, share: float | int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to train on and rows to validate on: a share of every class, at least one."""
    generator = torch.Generator().manual_seed(seed)
    train, val = [], []
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        if len(rows) < 2:
            raise ValueError(f"a class with {len(rows)} example cannot be held out: give validation data")
        rows = rows[torch.randperm(len(rows), generator=generator)]
        cut = max(int(len(rows) * share), 1)
        val.append(rows[:cut])
        train.append(rows[cut:])
    return torch.cat(train), torch.cat(val)
