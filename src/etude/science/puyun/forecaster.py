"""The whole recipe as an estimator: fields in, forecasts and their scores out."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from etude.data.kinds_fields import FieldData, FieldGrid, FieldSource
from etude.science.puyun.dataset import Scaling, SphereDataset
from etude.science.puyun.metrics import (
    Climatology,
    climatology,
    latitude_weights,
    weighted_acc,
    weighted_bias,
    weighted_rmse,
)
from etude.science.puyun.network import PuYun
from etude.science.puyun.rollout import Cascade, rollout
from etude.science.puyun.training import cache_stage_inputs, finetune_rollout, next_stage, train_one_step

__all__ = ["Forecaster", "score_forecast"]


def score_forecast(
    forecast: Float[Tensor, "times steps channels rows columns"],
    truth: Float[Tensor, "times steps channels rows columns"],
    climate: Float[Tensor, "times steps channels rows columns"],
    weights: Float[Tensor, "rows"],
    channels: Sequence[str],
    hours: float | int,
    time_mean: str = "after_sqrt",
) -> list[dict[str, Any]]:
    """RMSE, ACC and bias of each channel at each lead, in the channel's unit, one row each."""
    rmse = weighted_rmse(forecast, truth, weights, time_mean)
    acc = weighted_acc(forecast, truth, climate, weights)
    bias = weighted_bias(forecast, truth, weights)
    return [
        {
            "lead_hours": (step + 1) * hours, "channel": name, "rmse": rmse[step, index].item(),
            "acc": acc[step, index].item(), "bias": bias[step, index].item(),
        }
        for step in range(forecast.shape[1])
        for index, name in enumerate(channels)
    ]  # fmt: skip


class Forecaster:
    """Trains PuYun on fields and forecasts from any two frames.

        from etude.data import fields
        data = fields.load("archive.nc", ["z"], levels=[500])
        forecaster = Forecaster(patch_size=2, dim=32, depths=(2, 2), kernel_size=15).fit(data)
        print(forecaster.score(data.test, steps=20))
        values, times = forecaster.forecast(data.test, steps=20)
        fields.write_forecast("forecast.nc", values, times, data.test.grid, data.test.step_hours)

    Args:
        updates, lr, batch_size: of the one-step training.
        curriculum: (steps, updates) of the fine-tuning that follows; () for none.
        finetune_lr: its rate.
        stage_steps: steps after which a second model takes over; 0 for no second model.
        stage_curriculum: of that second model, trained from the states in which the first leaves its forecasts.
        climate: "all", "month" or "day": the climatology that anomalies refer to.
        weights: of the latitudes: "cos", "cell_area" or "gauss".
        seasons: give the network features of the time of day and year.
        statics: standardised static maps (maps, rows, columns) as further inputs.
        seed: of the weights and the order of the windows.
        device: where the training runs.
        callbacks: as of `loop.fit`.
        network: options of `PuYun`.

    Attributes:
        model_: `PuYun`, or `Cascade` of two, after `fit`.
        scaling_, climatology_: of the training frames.
        losses_: of each update.
    """

    def __init__(
        self,
        *,
        updates: int = 400,
        lr: float | int = 4e-3,
        batch_size: int = 4,
        curriculum: Sequence[tuple[int, int]] = ((4, 60),),
        finetune_lr: float | int = 5e-4,
        stage_steps: int = 0,
        stage_curriculum: Sequence[tuple[int, int]] = ((8, 50),),
        climate: str = "all",
        weights: str = "cos",
        seasons: bool = True,
        statics: Tensor | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        callbacks: Iterable[Callable[..., Any]] = (),
        **network: Any,
    ):
        self.updates, self.lr, self.batch_size = updates, lr, batch_size
        self.curriculum, self.finetune_lr = tuple(curriculum), finetune_lr
        self.stage_steps, self.stage_curriculum = stage_steps, tuple(stage_curriculum)
        self.climate, self.weights, self.seasons, self.statics = climate, weights, seasons, statics
        self.seed, self.device, self.callbacks, self.network = seed, device, tuple(callbacks), network

    def fit(self, data: FieldData | FieldSource) -> "Forecaster":
        """Learns from the training frames; validation and test frames are not looked at.

        Raises:
            ValueError: for a grid that does not go round the globe (unless `padding` is "zeros" or "replicate"), that
                the patches do not divide, or runs too short for the curriculum.
        """
        train = data.train if isinstance(data, FieldData) else data
        if not train.grid.is_global and self.network.get("padding", "sphere") == "sphere":
            span = f"{train.grid.longitude[0]:g} to {train.grid.longitude[-1]:g} degrees"
            raise ValueError(f"the grid covers {span}: sphere padding needs the whole circle; take padding='zeros'")
        self.grid_, self.step_hours_ = train.grid, train.step_hours
        self.rows_ = latitude_weights(train.grid.latitude, self.weights)
        self.scaling_ = Scaling.fit(train, self.rows_)
        self.climatology_: Climatology = climatology(train, self.climate)
        model = self._new_model()
        order = torch.Generator().manual_seed(self.seed)
        options: dict[str, Any] = {
            "rows": self.rows_, "batch_size": self.batch_size, "generator": order, "device": self.device,
            "callbacks": self.callbacks,
        }  # fmt: skip
        windows = self._windows(train)
        losses = train_one_step(model, windows(1), updates=self.updates, lr=self.lr, **options)
        if self.curriculum:
            losses += finetune_rollout(model, windows, curriculum=self.curriculum, lr=self.finetune_lr, **options)
        self.model_: nn.Module = model
        self.horizon_ = max([1, *(steps for steps, _ in self.curriculum)])
        if self.stage_steps:
            longest = self.stage_curriculum[-1][0]
            cached = cache_stage_inputs(
                model, windows(self.stage_steps + longest), self.stage_steps, following=longest, device=self.device
            )
            second = next_stage(model)
            losses += finetune_rollout(
                second, cached.with_steps, curriculum=self.stage_curriculum, lr=self.finetune_lr, **options
            )
            self.model_ = Cascade([model, second], self.stage_steps)
            self.horizon_ = self.stage_steps + longest
        self.losses_ = losses
        return self

    def _windows(self, source: FieldSource) -> Callable[[int], SphereDataset]:
        return lambda steps: SphereDataset(source, self.scaling_, steps=steps)

    def _new_model(self) -> PuYun:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = PuYun(
                len(self.grid_.variables), grid=self.grid_.shape, time_dim=12 if self.seasons else 0,
                num_statics=0 if self.statics is None else len(self.statics), **self.network,
            )  # fmt: skip
        return model if self.statics is None else model.set_statics(self.statics)

    def _check(self, grid: FieldGrid, steps: int) -> None:
        if not hasattr(self, "model_"):
            raise RuntimeError("this Forecaster is not fitted yet: call fit first")
        if not grid.same_as(self.grid_):
            raise ValueError(
                f"fields of {', '.join(self.grid_.channels)} on {self.grid_.shape} were expected, got "
                f"{', '.join(grid.channels)} on {grid.shape}"
            )
        if steps > 10 * self.horizon_:
            warnings.warn(
                f"{steps} steps are far beyond the {self.horizon_} that the model was trained to roll out",
                stacklevel=3,
            )

    @torch.no_grad()
    def forecast(
        self, source: FieldSource, steps: int, at: Sequence[int] | np.ndarray | None = None
    ) -> tuple[Float[Tensor, "times steps channels rows columns"], np.ndarray]:
        """Forecasts in the fields' own units, and the times that they start from.

        Args:
            source: frames on the grid of the training.
            steps: how many.
            at: numbers of the frames to start from, each after another one; the last frame if None.

        Raises:
            ValueError: for another grid, or a frame that none precedes in its run.
        """
        self._check(source.grid, steps)
        frames = np.array([len(source) - 1] if at is None else at)
        bad = (frames < 1) | (frames >= len(source))
        bad[~bad] = source.runs[frames[~bad]] != source.runs[frames[~bad] - 1]
        if bad.any():
            raise ValueError(f"a forecast starts from two frames of a run: frame {frames[bad][0]} has none before it")
        pairs = np.stack([frames - 1, frames], axis=1)
        values = self.scaling_.apply(source.read(pairs.reshape(-1)).unflatten(0, pairs.shape)).to(self.device)
        self.model_.eval()
        times = source.times[frames]
        made = [
            rollout(self.model_, part, steps, times[start : start + len(part)], hours=self.step_hours_).cpu()
            for start, part in zip(range(0, len(values), 16), values.split(16))
        ]
        return self.scaling_.invert(torch.cat(made)), times

    def score(self, source: FieldSource, steps: int, every: int = 1) -> list[dict[str, Any]]:
        """RMSE, ACC and bias of each channel and lead beside those of persistence, over all starts (every n-th).

        Raises:
            ValueError: if no run is long enough.
        """
        self._check(source.grid, steps)
        windows = self._windows(source)(steps)
        starts = windows.starts[::every]
        values, _ = self.forecast(source, steps, starts + 1)
        following = starts[:, None] + 2 + np.arange(steps)
        truth = source.read(following.reshape(-1)).unflatten(0, following.shape)
        climate = self.climatology_.at(source.times[following.reshape(-1)]).unflatten(0, following.shape)
        last = source.read(starts + 1)[:, None].expand_as(truth)
        table = {
            name: score_forecast(made, truth, climate, self.rows_, source.grid.channels, self.step_hours_)
            for name, made in (("forecast", values), ("persistence", last))
        }
        return [ours | {"persistence_rmse": theirs["rmse"]} for ours, theirs in zip(*table.values())]
