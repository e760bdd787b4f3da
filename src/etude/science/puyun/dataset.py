"""Windows of frames to train on, and the scaling that makes them of one size."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from etude.data.kinds_fields import FieldGrid, Fields, FieldSource, window_starts
from etude.science.puyun.network import time_encoding

__all__ = ["Scaling", "SphereDataset", "step_features"]


@dataclass(frozen=True, eq=False)
class Scaling:
    """Standardises channels: (x - mean) / std.

        scaling = Scaling.fit(train)

    Args:
        mean: (channels, rows or 1, 1), float32.
        std: (channels, 1, 1), float32, positive.

    Raises:
        ValueError: if a channel does not vary.
    """

    mean: Tensor
    std: Tensor

    def __post_init__(self):
        if not bool((self.std > 0).all()):
            flat = int((self.std.reshape(-1) <= 0).nonzero()[0])
            raise ValueError(f"channel {flat} does not vary: it cannot be standardised, and need not be forecast")

    @classmethod
    def fit(
        cls, source: FieldSource, weights: Tensor | None = None, *, zonal: bool = True, block: int = 64
    ) -> "Scaling":
        """From training frames, `block` of them in memory at a time.

        Args:
            source: training frames.
            weights: of the rows, of mean 1; equal if None.
            zonal: subtract the mean of each row, not only of the channel: streamfunction and geopotential carry so
                large a mean from pole to pole that persistence looks perfect beside it.
            block: frames in memory at a time.
        """
        rows = torch.ones(source.grid.shape[0]) if weights is None else weights
        rows = rows.double()[:, None]
        mean = torch.zeros(len(source.grid.variables), source.grid.shape[0], 1, dtype=torch.float64)
        square = mean.clone()
        for frames in torch.arange(len(source)).split(block):
            values = source.read(frames).double()
            mean += values.mean(-1, keepdim=True).sum(0)
            square += (values**2).mean(-1, keepdim=True).sum(0)
        mean, square = mean / len(source), square / len(source)
        if not zonal:
            mean = (mean * rows).mean(1, keepdim=True)
        variance = ((square - mean**2) * rows).mean(1, keepdim=True)
        if not zonal:
            variance = (square * rows).mean(1, keepdim=True) - mean**2
        return cls(mean.float(), variance.clamp(min=0).sqrt().float())

    def apply(
        self, values: Float[Tensor, "*batch channels rows columns"]
    ) -> Float[Tensor, "*batch channels rows columns"]:
        """To standard units."""
        return (values - self.mean.to(values.device)) / self.std.to(values.device)

    def invert(
        self, values: Float[Tensor, "*batch channels rows columns"]
    ) -> Float[Tensor, "*batch channels rows columns"]:
        """Back to the fields' own units."""
        return values * self.std.to(values.device) + self.mean.to(values.device)


def step_features(
    times: np.ndarray, steps: int, hours: float | int = 6, two_pi: bool = True
) -> Float[Tensor, "batch steps 12"]:
    """Features of time of each step of a forecast from `times`."""
    ahead = np.timedelta64(round(3600 * hours), "s")
    lead = [time_encoding(times.astype("datetime64[s]") + step * ahead, hours, two_pi) for step in range(steps)]
    return torch.stack(lead, dim=1)


class SphereDataset(Dataset):
    """Windows of two frames and the `steps` after them, standardised.

    An item is ((frames (2, channels, rows, columns), features of time (steps, 12)), following (steps, channels, rows,
    columns)); windows lie within one run. Built on `Fields` in memory or on a store that is read as windows are asked
    for.

    Args:
        source: the frames.
        scaling: of the channels; fitted on these frames if None, so give the training one to other parts.
        steps: frames to forecast.
        starts: numbers of the first frames of the windows; all that fit if None.
        two_pi: as of `time_encoding`.

    Raises:
        ValueError: if no window fits, or a start has none.
    """

    def __init__(
        self,
        source: FieldSource,
        scaling: Scaling | None = None,
        *,
        steps: int = 1,
        starts: np.ndarray | None = None,
        two_pi: bool = True,
    ):
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        possible = window_starts(source, 2 + steps)
        if len(possible) == 0:
            raise ValueError(
                f"no {2 + steps} frames follow each other in a run: a forecast of {steps} steps needs that"
            )
        if starts is not None and not np.isin(starts, possible).all():
            bad = np.asarray(starts)[~np.isin(starts, possible)][0]
            raise ValueError(f"no {2 + steps} frames follow each other from frame {bad} on")
        self.source, self.steps, self.two_pi = source, steps, two_pi
        self.scaling = Scaling.fit(source) if scaling is None else scaling
        self.starts = possible if starts is None else np.asarray(starts)

    def __len__(self) -> int:
        return len(self.starts)

    def initial_times(self, items: Any = slice(None)) -> np.ndarray:
        """Times of the last frame that is given, of these items."""
        return self.source.times[self.starts[items] + 1]

    def batch(self, items: Any) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Several items at once, stacked."""
        starts = self.starts[np.asarray(items)]
        frames = starts[:, None] + np.arange(2 + self.steps)
        values = self.source.read(frames.reshape(-1)).unflatten(0, frames.shape)
        values = self.scaling.apply(values)
        features = step_features(self.source.times[starts + 1], self.steps, self.source.step_hours, self.two_pi)
        return (values[:, :2], features), values[:, 2:]

    def __getitem__(self, item: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        (frames, features), following = self.batch([item])
        return (frames[0], features[0]), following[0]

    def __getitems__(self, items: list[int]) -> list[tuple[tuple[Tensor, Tensor], Tensor]]:
        # A loader asks for a whole batch, whose frames are then read together.
        (frames, features), following = self.batch(items)
        return [((x, f), y) for x, f, y in zip(frames, features, following)]

    def save(self, path: str | os.PathLike) -> Path:
        """Frames, axes and scaling as `.npz`, for `load`; for sources that fit into memory."""
        source, place = self.source, Path(path)
        fresh = place.with_name(place.name + ".part")
        grid = source.grid
        with open(fresh, "wb") as stream:
            np.savez(
                stream, values=source.read(np.arange(len(source))).numpy(),
                times=source.times.astype("datetime64[s]").astype(np.int64), runs=source.runs, latitude=grid.latitude,
                longitude=grid.longitude, variables=np.array(grid.variables), units=np.array(grid.units),
                levels=np.array([np.nan if level is None else level for level in grid.levels]),
                mean=self.scaling.mean.numpy(), std=self.scaling.std.numpy(),
            )  # fmt: skip
        os.replace(fresh, place)
        return place

    @classmethod
    def load(cls, path: str | os.PathLike, *, steps: int = 1) -> "SphereDataset":
        """What `save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it lacks an array.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"no fields at {path}")
        with np.load(path, allow_pickle=False) as stored:
            names = ("values", "times", "runs", "latitude", "longitude", "variables", "units", "levels", "mean", "std")
            missing = [name for name in names if name not in stored]
            if missing:
                raise ValueError(f"{path} lacks the arrays {', '.join(missing)}")
            grid = FieldGrid(
                stored["latitude"], stored["longitude"], tuple(map(str, stored["variables"])),
                tuple(None if np.isnan(level) else float(level) for level in stored["levels"]),
                tuple(map(str, stored["units"])),
            )  # fmt: skip
            times = stored["times"].astype("datetime64[s]")
            fields = Fields(torch.from_numpy(stored["values"]), times, grid, stored["runs"])
            scaling = Scaling(torch.from_numpy(stored["mean"]), torch.from_numpy(stored["std"]))
        return cls(fields, scaling, steps=steps)
