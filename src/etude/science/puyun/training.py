"""Training in three stages: one step; roll-outs of growing length; and, for the next specialist, roll-outs from the
states in which the one before it leaves its forecasts.

1. `train_one_step`: the next frame from two true ones.
2. `finetune_rollout`: the model's own forecasts of k steps, k growing by a curriculum, the gradient through all steps.
   What comes out is PuYun-Short.
3. `cache_stage_inputs` runs Short to its last step once and keeps where it ends; a copy of Short fine-tuned by
   `finetune_rollout` on these states is PuYun-Medium. True states would train it for inputs that it never meets.

The loss is the mean absolute error over channels and globe, each channel and row with its weight.
"""

import copy
import itertools
import math
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR
from torch.utils.data import Dataset

from etude.loop import fit
from etude.science.puyun.dataset import SphereDataset
from etude.science.puyun.rollout import Cascade, rollout_features

__all__ = [
    "StageInputs",
    "cache_stage_inputs",
    "channel_weights",
    "finetune_rollout",
    "predict",
    "train_one_step",
    "weighted_loss",
]

_BETAS, _WEIGHT_DECAY = (0.9, 0.95), 0.1


def channel_weights(
    variables: Sequence[str], levels: Sequence[float | None], surface: dict[str, float] | None = None
) -> Float[Tensor, "channels"]:
    """Weights of the channels, of mean 1, as GraphCast's: pressure over the mean pressure on levels, at the surface 1
    for the temperature at 2 m and 0.1 for the others.

    Args:
        variables, levels: of the channels; a level of None is the surface.
        surface: weights of surface variables, by name.
    """
    at_surface = {"t2m": 1.0, "2m_temperature": 1.0} if surface is None else surface
    pressures = [level for level in levels if level is not None]
    mean = sum(pressures) / len(pressures) if pressures else 1.0
    weights = torch.tensor(
        [at_surface.get(name, 0.1) if level is None else level / mean for name, level in zip(variables, levels)]
    )
    return weights / weights.mean()


def weighted_loss(
    forecast: Float[Tensor, "batch steps channels rows columns"],
    truth: Float[Tensor, "batch steps channels rows columns"],
    *,
    rows: Float[Tensor, "rows"],
    channels: Float[Tensor, "channels"] | None = None,
    kind: str = "l1",
) -> Float[Tensor, ""]:
    """Mean of |forecast - truth| ("l1", as FuXi) or of its square ("l2"), weighted by rows and channels.

    Raises:
        ValueError: for another kind.
    """
    if kind not in ("l1", "l2"):
        raise ValueError(f"kind must be 'l1' or 'l2', got {kind!r}")
    error = (forecast - truth).abs() if kind == "l1" else (forecast - truth) ** 2
    per_row = error.mean(-1) * rows.to(error)
    return per_row.mean() if channels is None else (per_row.mean(-1) * channels.to(error)).mean()


class _Rollout(nn.Module):
    """A model as `loop.fit` calls it: (frames, features) -> the forecast of all steps."""

    def __init__(self, model: nn.Module, steps: int, checkpoint: bool):
        super().__init__()
        self.model, self.steps, self.checkpoint = model, steps, checkpoint

    def forward(self, inputs: Any) -> Tensor:
        frames, features = inputs
        return rollout_features(self.model, frames, self.steps, features, checkpoint=self.checkpoint)


def _optimizer(model: nn.Module, lr: float) -> torch.optim.AdamW:
    """AdamW; biases, norms and layer scales, which have one axis of size, are not decayed."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.squeeze().ndim > 1], "weight_decay": _WEIGHT_DECAY},
        {"params": [p for p in parameters if p.squeeze().ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=_BETAS)


def train_one_step(
    model: nn.Module,
    data: Dataset,
    *,
    rows: Float[Tensor, "rows"],
    updates: int,
    lr: float | int = 2.5e-4,
    batch_size: int = 32,
    channels: Float[Tensor, "channels"] | None = None,
    loss: str = "l1",
    generator: torch.Generator | None = None,
    callbacks: Iterable[Callable[..., Any]] = (),
    **options: Any,
) -> list[float]:
    """Stage 1: learns the next frame from two. AdamW (0.9, 0.95), decay 0.1, one cycle of the rate.

    Args:
        model: trained in place.
        data: `SphereDataset` of one step.
        rows: weights of the latitudes, of mean 1.
        updates: of the optimizer; none leaves the model as it is.
        lr: peak of the rate. batch_size: windows of one update.
        channels: weights of the channels, of mean 1; equal if None.
        loss: "l1" or "l2".
        generator: of the order of the windows.
        callbacks: as of `loop.fit`.
        options: further ones of `loop.fit`: `mixed_precision="bf16"`, `checkpoint`, `clip`, `num_workers`, ...

    Returns:
        The loss of each update.
    """
    optimizer = _optimizer(model, float(lr))
    if updates == 0:
        return []
    schedule = OneCycleLR(optimizer, float(lr), total_steps=updates + 1, pct_start=0.1, cycle_momentum=False)
    criterion = partial(weighted_loss, rows=rows, channels=channels, kind=loss)
    return fit(
        _Rollout(model, 1, checkpoint=False), data, optimizer, loss=criterion, steps=updates, batch_size=batch_size,
        generator=generator, schedule=schedule, callbacks=callbacks, **options,
    ).losses  # fmt: skip


def finetune_rollout(
    model: nn.Module,
    data: Callable[[int], Dataset],
    *,
    rows: Float[Tensor, "rows"],
    curriculum: Sequence[tuple[int, int]],
    lr: float | int = 3e-6,
    batch_size: int = 32,
    channels: Float[Tensor, "channels"] | None = None,
    loss: str = "l1",
    checkpoint: bool = True,
    generator: torch.Generator | None = None,
    callbacks: Iterable[Callable[..., Any]] = (),
    save: str | os.PathLike | None = None,
    **options: Any,
) -> list[float]:
    """Stages 2 and 3: learns from the model's own forecasts, with the gradient through all their steps.

        finetune_rollout(model, lambda k: SphereDataset(train, scaling, steps=k), rows=rows,
                         curriculum=[(k, 1_000) for k in range(2, 13)])

    Args:
        model: trained in place.
        data: steps -> dataset of windows with that many frames to forecast.
        curriculum: (steps, updates) one after the other; steps must not fall.
        lr: of AdamW; falls as half a cosine over all updates.
        checkpoint: recompute the activations of each step.
        save: stem of files to resume from, one for each entry of the curriculum.
        rows, batch_size, channels, loss, generator, callbacks, options: as of `train_one_step`.

    Returns:
        The loss of each update.

    Raises:
        ValueError: if the curriculum is empty, falls, or has no steps or updates in an entry.
    """
    if not curriculum or any(steps < 1 or updates < 0 for steps, updates in curriculum):
        raise ValueError(f"curriculum must hold pairs (steps >= 1, updates >= 0), got {list(curriculum)}")
    if any(b[0] < a[0] for a, b in itertools.pairwise(curriculum)):
        raise ValueError(f"the steps of a curriculum must not fall, got {[steps for steps, _ in curriculum]}")
    optimizer = _optimizer(model, float(lr))
    total = max(sum(updates for _, updates in curriculum), 1)
    schedule = LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * min(step / total, 1))) / 2)
    criterion = partial(weighted_loss, rows=rows, channels=channels, kind=loss)
    losses: list[float] = []
    for steps, updates in curriculum:
        if updates == 0:
            continue
        file = None if save is None else Path(f"{save}-{steps}.pt")
        losses += fit(
            _Rollout(model, steps, checkpoint), data(steps), optimizer, loss=criterion, steps=updates,
            batch_size=batch_size, generator=generator, schedule=schedule, callbacks=callbacks, checkpoint=file,
            **options,
        ).losses  # fmt: skip
    return losses


@torch.no_grad()
def predict(
    model: nn.Module, data: SphereDataset, steps: int | None = None, *, batch_size: int = 16, device: Any = "cpu"
) -> Float[Tensor, "windows steps channels rows columns"]:
    """Forecasts from every window, standardised, on the CPU."""
    count = data.steps if steps is None else steps
    was = model.training
    model.eval()
    parts = []
    for items in np.array_split(np.arange(len(data)), max(1, -(-len(data) // batch_size))):
        (frames, features), _ = data.batch(items)
        if features.shape[1] < count:
            raise ValueError(f"the windows hold {features.shape[1]} steps, {count} were asked for")
        parts.append(rollout_features(model, frames.to(device), count, features.to(device)).cpu())
    model.train(was)
    return torch.cat(parts)


class StageInputs(Dataset):
    """Where a model's forecasts end, and what truly followed: the training set of the next stage.

    Items are as of `SphereDataset`: the two frames are the model's own, the targets true.

    Args:
        frames: (windows, 2, channels, rows, columns), the last two states of each forecast, standardised.
        starts: numbers of the true frames that the first of the two stands for.
        data: the windows that the forecasts came from; targets are read from its source.
        steps: frames to forecast.
    """

    def __init__(self, frames: Tensor, starts: np.ndarray, data: SphereDataset, steps: int):
        if len(frames) != len(starts):
            raise ValueError(f"frames and starts must be as many, got {len(frames)} and {len(starts)}")
        self.frames, self.starts, self.data = frames, starts, data
        self.targets = SphereDataset(data.source, data.scaling, steps=steps, starts=starts, two_pi=data.two_pi)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, item: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        return self.__getitems__([item])[0]

    def __getitems__(self, items: list[int]) -> list[tuple[tuple[Tensor, Tensor], Tensor]]:
        (_, features), following = self.targets.batch(items)
        return [((self.frames[i], f), y) for i, f, y in zip(items, features, following)]

    def with_steps(self, steps: int) -> "StageInputs":
        """The same states with another number of frames to forecast, where so many follow."""
        return StageInputs(self.frames, self.starts, self.data, steps)


def cache_stage_inputs(
    model: nn.Module,
    data: SphereDataset,
    steps: int,
    *,
    following: int,
    batch_size: int = 16,
    file: str | os.PathLike | None = None,
    device: Any = "cpu",
) -> StageInputs:
    """Runs `model` for `steps` steps from every window and keeps its last two states.

    Args:
        model: the stage before, or a `Cascade` of those before.
        data: windows of at least `steps + following` steps.
        steps: that the model makes.
        following: frames that the next stage shall forecast in training, at most.
        batch_size: windows at a time.
        file: an `.npz` to keep the states in, by initial time; read instead of computed if it is there.
        device: where the model runs.

    Raises:
        ValueError: if the windows are too short, or the file holds other windows.
    """
    if steps < 2 or following < 1:
        raise ValueError(f"steps must be at least 2 and following 1, got {steps} and {following}")
    if data.steps < steps + following:
        raise ValueError(f"windows of {steps} + {following} steps were expected, got {data.steps}")
    initial = data.initial_times().astype("datetime64[s]").astype(np.int64)
    if file is not None and Path(file).is_file():
        with np.load(file, allow_pickle=False) as stored:
            if int(stored["steps"]) != steps or not np.array_equal(stored["initial"], initial):
                raise ValueError(f"{file} holds states after other steps or from other initial times: remove it")
            frames = torch.from_numpy(stored["frames"])
    else:
        kept = []
        for items in np.array_split(np.arange(len(data)), max(1, -(-len(data) // batch_size))):
            part = SphereDataset(
                data.source, data.scaling, steps=data.steps, starts=data.starts[items], two_pi=data.two_pi
            )
            kept.append(predict(model, part, steps, batch_size=batch_size, device=device)[:, -2:])
        frames = torch.cat(kept)
        if file is not None:
            fresh = Path(f"{file}.part")
            with open(fresh, "wb") as stream:
                np.savez(stream, frames=frames.numpy(), initial=initial, steps=steps)
            os.replace(fresh, file)
    # Frame 0 of a window is t - 1, so the forecast's states are frames `steps` and `steps + 1` of it.
    return StageInputs(frames, data.starts + steps, data, following)


def next_stage(short: nn.Module) -> nn.Module:
    """A copy to fine-tune into the next specialist."""
    model = copy.deepcopy(short)
    return model.models[-1] if isinstance(model, Cascade) else model  # type: ignore[return-value]
