"""The plain training loop."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from etude.loop.averaging import ExponentialMovingAverage
from etude.loop.batches import Batches, batches_of, to_device
from etude.loop.checkpoint import RunCheckpoint
from etude.loop.evaluation import device_of, mode
from etude.loop.processes import Processes, processes

__all__ = ["FitResult", "fit"]

_PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class FitResult:
    """What `fit` did.

    Args:
        steps: updates in all, those before a resume included.
        losses: training loss of each of these updates: the mean over its examples, before the update.
    """

    steps: int
    losses: list[float]


class _Losses:
    """Collects the loss of every update without waiting for the device."""

    def __init__(self, peers: Processes, past: Iterable[float] = ()):
        self._peers = peers
        self._past = list(past)
        self._new: list[Tensor] = []

    def add(self, value: Tensor) -> None:
        self._new.append(value)
        if len(self._new) == 1024:
            self.all()

    def all(self) -> list[float]:
        if self._new:
            self._past += self._peers.total(torch.stack(self._new).float()).tolist()
            self._new = []
        return self._past

    def last(self) -> float:
        if self._peers.count == 1 and self._new:
            return self._new[-1].item()
        return self.all()[-1]


def _check(
    lengths: dict[str, int | None],
    counts: dict[str, int | None],
    clip: float | int | None,
    mixed_precision: str,
    schedule: Any,
) -> None:
    if sum(value is not None for value in lengths.values()) != 1:
        raise ValueError("give either steps or epochs, got " + " and ".join(f"{k}={v}" for k, v in lengths.items()))
    for name, value in lengths.items():
        if value is not None and value < 0:
            raise ValueError(f"{name} must not be negative, got {value}")
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be positive, got {value}")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be a positive norm, got {clip}")
    if mixed_precision not in _PRECISIONS:
        raise ValueError(f"mixed_precision must be one of {', '.join(_PRECISIONS)}, got {mixed_precision!r}")
    if isinstance(schedule, ReduceLROnPlateau):
        raise TypeError("schedule is stepped at every update without a metric: ReduceLROnPlateau does not fit")


def _device(model: nn.Module, wanted: torch.device | str | None, peers: Processes) -> torch.device:
    if peers.device is None:
        device = device_of(model) if wanted is None else torch.device(wanted)
    else:
        device = peers.device
        if wanted is not None and torch.device(wanted).type != device.type:
            raise ValueError(f"this process was launched on {device}, got device={wanted}")
    model.to(device)
    return device


def _move_moments(optimizer: Optimizer) -> None:
    """An optimizer that has stepped before the model moved takes its moments along."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and name != "step":
                state[name] = value.to(parameter.device)


def fit(
    model: nn.Module,
    train: Any,
    optimizer: Optimizer,
    *,
    loss: Callable[[Any, Any], Tensor] = F.cross_entropy,
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int = 128,
    generator: torch.Generator | None = None,
    schedule: LRScheduler | None = None,
    clip: float | int | None = None,
    ema: ExponentialMovingAverage | None = None,
    mixed_precision: str = "no",
    callbacks: Iterable[Callable[..., Any]] = (),
    every: int = 1,
    accumulate: int = 1,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_every: int | None = None,
    stateful: Iterable[Any] = (),
    replacement: bool = False,
    device: torch.device | str | None = None,
    transform: Callable[[tuple[Any, Any]], tuple[Any, Any]] | None = None,
    num_workers: int = 0,
    find_unused_parameters: bool = False,
) -> FitResult:
    """Trains a model by mini-batch gradient descent.

        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        fit(model, data.train, optimizer, epochs=20, schedule=cosine_schedule(optimizer, 20 * 7))

    One update is: `accumulate` batches forward and backward, clipping, `optimizer.step()` (whose pre-hooks hence see
    clipped gradients), the schedule, the average, the callbacks. The model trains in training mode; afterwards each
    of its modules is back in the mode it had. Nothing is drawn from the global random generators except what the
    model and `transform` draw themselves; resuming restores those generators.

    Under `accelerate launch` with several processes every process calls `fit` alike; each batch is shared among
    them and gradients are averaged over its examples, so that the losses are those of a single process up to
    rounding (batch norm apart, whose statistics are each process's own).

    Args:
        model: trained in place.
        train: `Examples` (indexed directly), a map-style dataset of pairs (input, target), or a `DataLoader`
            (which keeps its own batch size and order).
        optimizer: over the model's parameters.
        loss: (model output, targets) -> mean over the batch. Label smoothing:
            `partial(F.cross_entropy, label_smoothing=0.1)`.
        steps, epochs: how long, in updates or in passes over the data: one of them. An epoch has as many batches as
            fill up wholly; the fewer than `batch_size` examples left over are others in every epoch.
        batch_size: examples of one batch, all processes together. An update sees `accumulate` batches.
        generator: CPU generator of the order of the examples; one seeded with 0 if None.
        schedule: stepped after every update.
        clip: largest global norm of the gradient.
        ema: moving average, updated after every update.
        mixed_precision: "no", "bf16" or "fp16" (with loss scaling) for the forward pass and the loss.
        callbacks: called as `callback(step, total, loss=..., lr=...)` after updates 1 .. total, in every process.
        every: call them after every this many updates, and after the last. Reading the loss waits for the device.
        accumulate: batches per update.
        checkpoint: file to resume from if it exists, and to write. A resumed run equals an uninterrupted one bit
            for bit with the same arguments and number of processes, and up to rounding on another number; `steps`
            or `epochs` may have grown. Worker processes of a dataset with random augmentations are not replayed.
        checkpoint_every: updates between two writings; a twentieth of the run if None. Always written at the end.
        stateful: further objects to keep in the checkpoint: generators, and what has `state_dict` and
            `load_state_dict` (a gradient-noise hook, a learned loss).
        replacement: draw examples with replacement.
        device: where to train; where the model is if None, or the process's own device under `accelerate launch`.
            The model is moved and stays there. `Examples` stay where they are: `train.to("cuda")` saves the copies.
        transform: (inputs, targets) -> (inputs, targets) on the device, for augmentation by the batch.
        num_workers: worker processes that read a dataset.
        find_unused_parameters: in several processes: allow parameters that get no gradient in some update.

    Raises:
        ValueError: for arguments out of range, an empty set, or a checkpoint of another model or run.
    """
    counts = {"batch_size": batch_size, "accumulate": accumulate, "every": every, "checkpoint_every": checkpoint_every}
    _check({"steps": steps, "epochs": epochs}, counts, clip, mixed_precision, schedule)
    peers = processes()
    device = _device(model, device, peers)
    _move_moments(optimizer)
    order = torch.Generator().manual_seed(0) if generator is None else generator
    if peers.count > 1:
        order.set_state(peers.broadcast(order.get_state()))
    batches = batches_of(train, batch_size, order, replacement=replacement, peers=peers, num_workers=num_workers)
    total = _updates(batches, steps, epochs, accumulate)
    scaler = torch.amp.GradScaler(device.type) if mixed_precision == "fp16" else None
    parts = {"optimizer": optimizer, "schedule": schedule, "ema": ema, "scaler": scaler}
    saved = RunCheckpoint(checkpoint, model, parts, stateful, batches, peers)
    step, past = saved.resume()
    losses = _Losses(peers, past)
    if step >= total:
        return FitResult(steps=step, losses=losses.all())
    stream = iter(batches)
    saved.resume_random_state()
    save_every = checkpoint_every or max(total // 20, 1)
    callbacks = tuple(callbacks)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    with mode(model, training=True):
        backward = _Backward(
            _distributed(model, peers, device, find_unused_parameters),
            stream,
            loss=loss,
            accumulate=accumulate,
            device=device,
            dtype=_PRECISIONS[mixed_precision],
            scaler=scaler,
            transform=transform,
            peers=peers,
        )
        optimizer.zero_grad()
        while step < total:
            value = backward()
            if scaler is not None:
                scaler.unscale_(optimizer)
            if clip is not None:
                nn.utils.clip_grad_norm_(parameters, clip)
            if _step(optimizer, scaler):
                if schedule is not None:
                    schedule.step()
                if ema is not None:
                    ema.update()
            optimizer.zero_grad()
            step += 1
            losses.add(value)
            if callbacks and (step % every == 0 or step == total):
                metrics = {"loss": losses.last(), "lr": float(optimizer.param_groups[0]["lr"])}
                for callback in callbacks:
                    callback(step, total, **metrics)
            if checkpoint is not None and (step % save_every == 0 or step == total):
                saved.write(step, losses.all())
    return FitResult(steps=step, losses=losses.all())


def _updates(batches: Batches, steps: int | None, epochs: int | None, accumulate: int) -> int:
    if steps is not None:
        return steps
    if batches.per_epoch is None:
        raise ValueError("the data loader has no length: give steps instead of epochs")
    assert epochs is not None
    updates = epochs * batches.per_epoch // accumulate
    if epochs and not updates:
        raise ValueError(f"{epochs} epochs of {batches.per_epoch} batches are less than accumulate={accumulate}")
    return updates


def _distributed(model: nn.Module, peers: Processes, device: torch.device, find_unused: bool) -> nn.Module:
    if peers.count == 1:
        return model
    device_ids = None if device.type == "cpu" else [device]
    return DistributedDataParallel(model, device_ids=device_ids, find_unused_parameters=find_unused)


def _step(optimizer: Optimizer, scaler: torch.amp.GradScaler | None) -> bool:
    """Whether the optimizer took its step: loss scaling skips it where a gradient overflowed."""
    if scaler is None:
        optimizer.step()
        return True
    before = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    return scaler.get_scale() >= before


class _Backward:
    """Forward and backward pass over the batches of one update; gives the loss of this process's part."""

    def __init__(
        self,
        network: nn.Module,
        stream: Iterator[tuple[Any, Any, float]],
        *,
        loss: Callable[[Any, Any], Tensor],
        accumulate: int,
        device: torch.device,
        dtype: torch.dtype | None,
        scaler: torch.amp.GradScaler | None,
        transform: Callable[[tuple[Any, Any]], tuple[Any, Any]] | None,
        peers: Processes,
    ):
        self.network, self.stream, self.loss, self.accumulate = network, stream, loss, accumulate
        self.device, self.dtype, self.scaler, self.transform, self.peers = device, dtype, scaler, transform, peers
        self.apart: Callable[[], Any] = network.no_sync if isinstance(network, DistributedDataParallel) else nullcontext

    def __call__(self) -> Tensor:
        value = self._batch(last=self.accumulate == 1)
        for index in range(1, self.accumulate):
            value = value + self._batch(last=index == self.accumulate - 1)
        share = self.accumulate * self.peers.count
        return value if share == 1 else value / share

    def _batch(self, last: bool) -> Tensor:
        inputs, targets, weight = next(self.stream)
        inputs, targets = to_device(inputs, self.device), to_device(targets, self.device)
        if self.transform is not None:
            inputs, targets = self.transform((inputs, targets))
        # Gradients are exchanged once an update, with its last batch.
        with nullcontext() if last else self.apart():
            if self.dtype is None:
                value = self.loss(self.network(inputs), targets)
            else:
                with torch.autocast(self.device.type, dtype=self.dtype):
                    value = self.loss(self.network(inputs), targets)
            if weight != 1.0:
                value = value * weight
            scaled = value if self.accumulate == 1 else value / self.accumulate
            if self.scaler is not None:
                scaled = self.scaler.scale(scaled)
            scaled.backward()
        return value.detach()
