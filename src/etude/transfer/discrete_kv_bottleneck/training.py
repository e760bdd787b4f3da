"""Training of the values: one stream of classes, without task boundaries, replay or regulariser.

The mean cross-entropy of a batch of B, with votes v averaged over C codebooks (and T tokens), has the gradient

    dL / dv[c, k] = sum over samples that fetch (c, k) of (p - y) / (C T B)                                  (1)

where p are the predicted probabilities and y the smoothed labels. `train_values` descends it on the fetched rows
alone, which is what plain SGD on the whole table comes to, at a cost that does not grow with the table.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from etude.transfer.discrete_kv_bottleneck.bottleneck import KeyValueBottleneck
from etude.transfer.discrete_kv_bottleneck.classifier import BottleneckClassifier
from etude.transfer.discrete_kv_bottleneck.decoders import VotingDecoder

__all__ = ["learn_in_phases", "train_model", "train_values", "value_step"]

Callback = Callable[..., Any]


def train_values(
    bottleneck: KeyValueBottleneck,
    indices: Int[Tensor, "n codebooks topk tokens"],
    labels: Int[Tensor, "labels"],
    *,
    epochs: int,
    lr: float | int = 0.3,
    batch_size: int = 256,
    label_smoothing: float | int = 0.1,
    clip: float | int | None = 1.0,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> list[float]:
    """SGD on the fetched values under voting, Eq. (1); the bottleneck ends in the mode it was in.

    The defaults are those of the paper's experiments, which take 2,000 epochs a phase: the gradient of a value is
    divided by the number of codebooks, so that `lr` = 0.3 C learns as much in a hundredth of them.

    Args:
        bottleneck: its `dim_value` is the number of classes.
        indices: the pairs that the examples fetch: `bottleneck.train().indices(z)`.
        labels: in 0..dim_value - 1.
        epochs: passes over the examples.
        lr: constant.
        batch_size: examples of a step; the last of an epoch may be smaller.
        label_smoothing: share of the target spread evenly over all classes.
        clip: largest norm of the whole gradient; None clips nothing.
        generator: of the order; the default generator if None.
        callback: called as `callback(step, total, loss=...)`.

    Returns:
        The mean loss of each epoch, taken before the updates.

    Raises:
        ValueError: if the keys are not placed, labels lie outside their range, or a number is not positive.
    """
    _check_labels(labels, bottleneck.dim_value, len(indices))
    _check_numbers(epochs, lr, batch_size, label_smoothing, clip)
    mode = bottleneck.training
    bottleneck.train()
    bottleneck._check_ready()
    rows = bottleneck.rows(indices).flatten(1)
    total, step, losses = epochs * -(-len(rows) // batch_size), 0, []
    for _ in range(epochs):
        summed = 0.0
        for batch in _order(len(rows), generator, rows.device).split(batch_size):
            loss = value_step(bottleneck, rows[batch], labels[batch], lr, label_smoothing, clip)
            summed += loss.item() * len(batch)
            step += 1
            if callback is not None:
                callback(step, total, loss=loss.item())
        losses.append(summed / len(rows))
    bottleneck.train(mode)
    return losses


@torch.no_grad()
def value_step(
    bottleneck: KeyValueBottleneck,
    rows: Int[Tensor, "n fetches"],
    labels: Int[Tensor, "labels"],
    lr: float | int,
    label_smoothing: float | int = 0.1,
    clip: float | int | None = 1.0,
) -> Tensor:
    """One step of SGD on the fetched rows of `values.flatten(0, 1)`, Eq. (1); returns the loss before it.

    Args:
        bottleneck: whose values move and whose usage counts.
        rows: places in the flattened table (`KeyValueBottleneck.rows`), one line an example.
        labels, lr, label_smoothing, clip: as for `train_values`.
    """
    table = bottleneck.values.data.flatten(0, 1)
    votes = rows.shape[1] // bottleneck.topk
    log_p = F.log_softmax(F.embedding_bag(rows, table, mode="sum") / votes, dim=1)
    classes = table.shape[1]
    target = torch.full_like(log_p, label_smoothing / classes)
    target.scatter_add_(1, labels[:, None], torch.full_like(target[:, :1], 1 - label_smoothing))
    error = (log_p.exp() - target) / (votes * len(rows))
    touched, place = rows.unique(return_inverse=True)
    gradient = table.new_zeros(len(touched), classes)
    gradient.index_add_(0, place.flatten(), error.repeat_interleave(rows.shape[1], dim=0))
    if clip is not None:
        gradient *= (clip / (gradient.norm() + 1e-6)).clamp(max=1.0)
    table.index_add_(0, touched, gradient, alpha=-lr)
    bottleneck.count(rows)
    return -(target * log_p).sum(dim=1).mean()


def train_model(
    model: BottleneckClassifier,
    indices: Int[Tensor, "n codebooks topk tokens"],
    labels: Int[Tensor, "labels"],
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    batch_size: int = 256,
    label_smoothing: float | int = 0.1,
    clip: float | int | None = 1.0,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> list[float]:
    """The same by automatic differentiation, for any decoder; arguments and result as for `train_values`.

    Args:
        optimizer: over `model.trainable()`; plain SGD, as any other moves values that were not fetched.
    """
    _check_labels(labels, None, len(indices))
    _check_numbers(epochs, 1.0, batch_size, label_smoothing, clip)
    mode = model.training
    model.train()
    total, step, losses = epochs * -(-len(indices) // batch_size), 0, []
    for _ in range(epochs):
        summed = 0.0
        for batch in _order(len(indices), generator, indices.device).split(batch_size):
            optimizer.zero_grad()
            logits = model.from_indices(indices[batch])
            _check_labels(labels[batch], logits.shape[1], len(batch))
            loss = F.cross_entropy(logits, labels[batch], label_smoothing=label_smoothing)
            loss.backward()
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(model.trainable(), clip)
            optimizer.step()
            summed += loss.item() * len(batch)
            step += 1
            if callback is not None:
                callback(step, total, loss=loss.item())
        losses.append(summed / len(indices))
    model.train(mode)
    return losses


def learn_in_phases(
    model: BottleneckClassifier,
    z: Tensor,
    labels: Int[Tensor, "labels"],
    phases: Sequence[Tensor] | Iterable[Tensor],
    *,
    epochs: int,
    lr: float | int = 0.3,
    decoder_phases: int = 1,
    after: Callable[[int], Any] | None = None,
    **options: Any,
) -> list[Any]:
    """Learns phase after phase, each visited once and never again; the model is not told where one begins.

    A parametric decoder learns along in the first `decoder_phases` phases and is then frozen. Looking pairs up is
    done once, as frozen keys never change.

    Args:
        model: keys placed.
        z: embeddings of all examples. labels: of all.
        phases: rows of each phase, such as `class_incremental_splits(labels)`.
        epochs: of each phase.
        lr: of plain SGD.
        decoder_phases: phases in which a parametric decoder learns.
        after: called as `after(phase)` when a phase is learned, with the model in evaluation mode.
        **options: batch_size, label_smoothing, clip, generator, callback; see `train_values`.

    Returns:
        What `after` returned, phase by phase.
    """
    chosen = list(phases)
    if not chosen or any(len(rows) == 0 for rows in chosen):
        raise ValueError(f"phases must hold rows, got {[len(rows) for rows in chosen]}")
    model.train()
    indices = model.bottleneck.indices(z)
    voting = isinstance(model.decoder, VotingDecoder) and not model.decoder.dropout.p
    found = []
    for number, rows in enumerate(chosen):
        if number == decoder_phases:
            model.freeze_decoder()
        if voting:
            train_values(model.bottleneck, indices[rows], labels[rows], epochs=epochs, lr=lr, **options)
        else:
            optimizer = torch.optim.SGD(model.trainable(), lr=lr)
            train_model(model, indices[rows], labels[rows], optimizer, epochs=epochs, **options)
        model.eval()
        found.append(None if after is None else after(number))
        model.train()
    model.eval()
    return found


def _order(n: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    where = "cpu" if generator is None else generator.device
    return torch.randperm(n, generator=generator, device=where).to(device)


def _check_labels(labels: Tensor, num_classes: int | None, n: int) -> None:
    if labels.shape != (n,) or n == 0:
        raise ValueError(f"labels must have shape ({n},), one for each example, got {tuple(labels.shape)}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (num_classes is not None and high >= num_classes):
        raise ValueError(
            f"labels must lie in 0..{'' if num_classes is None else num_classes - 1}, got {low}..{high}: "
            "a new class needs a value for it (dim_value)"
        )


def _check_numbers(epochs: int, lr: float | int, batch_size: int, smoothing: float | int, clip: Any) -> None:
    positive = {"epochs": epochs, "lr": lr, "batch_size": batch_size, "clip": 1 if clip is None else clip}
    for name, value in positive.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
    if not 0 <= smoothing < 1:
        raise ValueError(f"label_smoothing must lie in [0, 1), got {smoothing}")
