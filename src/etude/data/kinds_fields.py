"""Fields on the sphere over time: what a weather model reads and writes.

A grid is regular in longitude, starts at or east of 0 degrees and goes east; latitudes go from north to south. Times of
a run follow each other at one step; a set may hold several runs, such as simulated trajectories or an archive with
gaps, whose frames stand one after the other.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

__all__ = ["FieldData", "FieldGrid", "FieldSource", "Fields", "window_starts"]

_STEP_TOLERANCE = 1e-3  # share of a cell by which written longitudes may deviate from an even grid


@dataclass(frozen=True, eq=False)
class FieldGrid:
    """Where and what: the axes of fields, apart from time.

    Args:
        latitude: degrees north, float64 (height,), strictly falling.
        longitude: degrees east, float64 (width,), evenly spaced from within [0, 360), rising.
        variables: name of each channel's variable.
        levels: pressure of each channel in hPa, None for a field at the surface.
        units: of each channel, in CF notation such as "m s-1".

    Raises:
        ValueError: naming the axis, the value and what was expected.
    """

    latitude: np.ndarray
    longitude: np.ndarray
    variables: tuple[str, ...]
    levels: tuple[float | None, ...]
    units: tuple[str, ...]

    def __post_init__(self):
        for name in ("latitude", "longitude"):
            axis = getattr(self, name)
            if not isinstance(axis, np.ndarray) or axis.dtype != np.float64 or axis.ndim != 1 or len(axis) < 2:
                given = f"{axis.dtype} of shape {axis.shape}" if isinstance(axis, np.ndarray) else type(axis).__name__
                raise ValueError(f"FieldGrid.{name} must be float64 of shape (n,), n >= 2, got {given}")
        steps = np.diff(self.latitude)
        if not (steps < 0).all():
            raise ValueError(
                f"latitudes must fall from north to south, got {self.latitude[0]:g} ... {self.latitude[-1]:g}: "
                "flip the axis and the values with it, else the globe is mirrored"
            )
        if self.latitude[0] > 90 or self.latitude[-1] < -90:
            raise ValueError(f"latitudes must lie in [-90, 90], got {self.latitude[-1]:g} ... {self.latitude[0]:g}")
        width = np.diff(self.longitude)
        cell = (self.longitude[-1] - self.longitude[0]) / (len(self.longitude) - 1)
        if cell <= 0 or not np.allclose(width, cell, rtol=0, atol=abs(cell) * _STEP_TOLERANCE):
            worst = int(np.abs(width - cell).argmax())
            raise ValueError(
                f"longitudes must rise evenly, got {self.longitude[worst]:g} and {self.longitude[worst + 1]:g} next to "
                f"each other where steps of {cell:g} were expected: regrid first"
            )
        if self.longitude[0] < 0 or self.longitude[-1] >= 360:
            raise ValueError(f"longitudes must lie in [0, 360), got {self.longitude[0]:g} ... {self.longitude[-1]:g}")
        count = len(self.variables)
        if not count or len(self.levels) != count or len(self.units) != count:
            raise ValueError(
                f"variables, levels and units must name the same channels, at least one, got {count}, "
                f"{len(self.levels)} and {len(self.units)}"
            )
        if len(set(zip(self.variables, self.levels))) < count:
            raise ValueError(f"channels must differ, got {', '.join(self.channels)}")

    @property
    def shape(self) -> tuple[int, int]:
        """(latitudes, longitudes)."""
        return len(self.latitude), len(self.longitude)

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels: "z500", "t2m"."""
        return tuple(name if level is None else f"{name}{level:g}" for name, level in zip(self.variables, self.levels))

    @property
    def is_global(self) -> bool:
        """Whether the longitudes go all the way round."""
        cell = self.longitude[1] - self.longitude[0]
        return math.isclose(cell * len(self.longitude), 360, rel_tol=_STEP_TOLERANCE)

    def channel(self, name: str) -> int:
        """The index of a channel by its name.

        Raises:
            ValueError: if there is none of that name.
        """
        if name not in self.channels:
            raise ValueError(f"unknown variable {name!r}; there are {', '.join(self.channels)}")
        return self.channels.index(name)

    def same_as(self, other: "FieldGrid") -> bool:
        """Whether values on both grids can be compared cell by cell."""
        return (
            self.channels == other.channels and self.units == other.units and self.shape == other.shape
            and np.allclose(self.latitude, other.latitude) and np.allclose(self.longitude, other.longitude)
        )  # fmt: skip


@runtime_checkable
class FieldSource(Protocol):
    """Frames that can be read by their number: `Fields` in memory, or a store on disk."""

    @property
    def grid(self) -> FieldGrid: ...

    @property
    def times(self) -> np.ndarray: ...

    @property
    def runs(self) -> np.ndarray: ...

    @property
    def step_hours(self) -> float: ...

    def __len__(self) -> int: ...

    def read(self, frames: Any) -> Tensor:
        """The values (n, channels, latitudes, longitudes) of these frames, float32."""
        ...


def window_starts(source: FieldSource, length: int) -> np.ndarray:
    """Numbers of the frames from which `length` frames follow each other in one run.

    Raises:
        ValueError: if `length` is not positive.
    """
    if length < 1:
        raise ValueError(f"a window has at least one frame, got {length}")
    if length > len(source):
        return np.empty(0, dtype=np.int64)
    last = len(source) - length + 1
    return np.flatnonzero(source.runs[:last] == source.runs[length - 1 :])


def check_times(times: Any, runs: Any, where: str) -> float:
    """The common step in hours of the frames of each run.

    Raises:
        ValueError: if times are no datetimes, or do not follow each other at one step; the message names the gap.
    """
    if not isinstance(times, np.ndarray) or times.dtype.kind != "M" or times.ndim != 1 or np.isnat(times).any():
        raise ValueError(f"{where}: times must be datetime64 of shape (n,) without NaT")
    if not isinstance(runs, np.ndarray) or runs.dtype != np.int64 or runs.shape != times.shape:
        raise ValueError(f"{where}: runs must be int64 of shape {times.shape}")
    if (np.diff(runs) < 0).any():
        raise ValueError(f"{where}: the frames of a run must stand together, runs numbered in rising order")
    seconds = np.diff(times.astype("datetime64[s]")).astype(np.int64)
    within = np.diff(runs) == 0
    if not within.any():
        raise ValueError(f"{where}: no two frames follow each other, so there is no step")
    step = int(np.median(seconds[within]))
    if step <= 0:
        raise ValueError(f"{where}: times must rise within a run")
    wrong = within & (seconds != step)
    if wrong.any():
        at = int(wrong.argmax())
        raise ValueError(
            f"{where}: time steps are missing or uneven: {times[at]} is followed by {times[at + 1]}, "
            f"{step / 3600:g} hours were expected"
        )
    return step / 3600


@dataclass(frozen=True, eq=False)
class Fields:
    """Frames in memory.

        fields.read([0, 1])                    # (2, channels, latitudes, longitudes)
        window_starts(fields, 3)               # where three frames follow each other

    Args:
        values: float32 (n, channels, latitudes, longitudes), finite.
        times: datetime64 (n,), evenly spaced within a run.
        grid: the axes.
        runs: int64 (n,), which run each frame belongs to, rising; a single run if None.
        step_hours: found from the times.
    """

    values: Tensor
    times: np.ndarray
    grid: FieldGrid
    runs: np.ndarray = None  # type: ignore[assignment]
    step_hours: float = field(init=False)

    def __post_init__(self):
        values, shape = self.values, (len(self.grid.variables), *self.grid.shape)
        if not isinstance(values, Tensor) or values.dtype != torch.float32 or tuple(values.shape[1:]) != shape:
            given = f"{values.dtype} of shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values)
            raise ValueError(f"Fields.values must be float32 of shape (n, {', '.join(map(str, shape))}), got {given}")
        if self.runs is None:
            object.__setattr__(self, "runs", np.zeros(len(values), dtype=np.int64))
        if np.shape(self.times) != (len(values),):
            raise ValueError(f"Fields.times must have shape ({len(values)},), got {np.shape(self.times)}")
        object.__setattr__(self, "step_hours", check_times(self.times, self.runs, "Fields"))
        finite = values.isfinite()
        if not bool(finite.all()):
            frame, channel, row, column = (int(i) for i in (~finite).nonzero()[0])
            raise ValueError(
                f"Fields.values must be finite: {self.grid.channels[channel]} is {values[frame, channel, row, column]} "
                f"at {self.times[frame]}, latitude {self.grid.latitude[row]:g}, longitude "
                f"{self.grid.longitude[column]:g} (over land, if it is a field of the sea: fill it first)"
            )

    def __len__(self) -> int:
        return len(self.values)

    def read(self, frames: Any) -> Tensor:
        """The values (n, channels, latitudes, longitudes) of these frames."""
        return self.values[torch.as_tensor(frames)]

    def select(self, channels: Sequence[str]) -> "Fields":
        """Only these channels, in this order."""
        index = [self.grid.channel(name) for name in channels]
        grid = self.grid
        kept = FieldGrid(
            grid.latitude, grid.longitude, tuple(grid.variables[i] for i in index),
            tuple(grid.levels[i] for i in index), tuple(grid.units[i] for i in index),
        )  # fmt: skip
        return Fields(self.values[:, index], self.times, kept, self.runs)

    def part(self, frames: slice) -> "Fields":
        """A stretch of the frames."""
        return Fields(self.values[frames], self.times[frames], self.grid, self.runs[frames])


@dataclass(frozen=True, eq=False)
class FieldData:
    """Fields in a fixed split. No frame may be in two parts: split by time, or by run.

    Args:
        train, val, test: `Fields`, or another `FieldSource`.
        name: what the data are called.
        meta: further facts.

    Raises:
        ValueError: if the parts differ in their grid, channels, units or step.
    """

    train: FieldSource
    val: FieldSource
    test: FieldSource
    name: str = "fields"
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        for part in ("train", "val", "test"):
            source = getattr(self, part)
            if not isinstance(source, FieldSource):
                raise TypeError(f"FieldData.{part} must be Fields or another FieldSource, got {type(source).__name__}")
            if len(source) < 3:
                raise ValueError(f"FieldData.{part} must hold at least three frames, got {len(source)}")
            if not source.grid.same_as(self.train.grid):
                raise ValueError(
                    f"FieldData.{part} has {', '.join(source.grid.channels)} on {source.grid.shape}, train has "
                    f"{', '.join(self.train.grid.channels)} on {self.train.grid.shape}: the same grid, channels and "
                    "units were expected"
                )
            if source.step_hours != self.train.step_hours:
                raise ValueError(
                    f"FieldData.{part} has steps of {source.step_hours:g} hours, train of {self.train.step_hours:g}"
                )
