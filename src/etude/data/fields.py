"""Fields on the sphere from NetCDF and Zarr, through xarray and the CF conventions; forecasts written as CF NetCDF.

    from etude.data import fields
    data = fields.load("archive.nc", variables=["z", "t2m"], levels=[500])         # FieldData, split by time
    store = fields.ZarrDataset("era5.zarr", ["geopotential"], [500, 850])          # read chunk by chunk

Axes are found by their CF attributes or usual names. Latitudes come out from north to south and longitudes from 0 to
360 whatever the file's order; units are checked against what the variable's name promises. Values packed as integers
(`scale_factor`, `add_offset`) are unpacked by xarray.
"""

import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from etude.data.catalogue import locate
from etude.data.fields_cf import Layout, open_dataset, xarray
from etude.data.kinds_fields import FieldData, FieldGrid, Fields, check_times

__all__ = [
    "ZarrDataset",
    "conservative_regrid",
    "era_interim_mean",
    "era_interim_sea",
    "load",
    "netcdf",
    "open_fields",
    "split_by_time",
    "write_forecast",
]

_STANDARD_NAMES = {
    "z": "geopotential", "geopotential": "geopotential", "t": "air_temperature", "temperature": "air_temperature",
    "u": "eastward_wind", "u_component_of_wind": "eastward_wind", "v": "northward_wind",
    "v_component_of_wind": "northward_wind", "r": "relative_humidity", "relative_humidity": "relative_humidity",
    "q": "specific_humidity", "specific_humidity": "specific_humidity", "t2m": "air_temperature",
    "2m_temperature": "air_temperature", "u10": "eastward_wind", "v10": "northward_wind",
    "10m_u_component_of_wind": "eastward_wind", "10m_v_component_of_wind": "northward_wind",
    "msl": "air_pressure_at_mean_sea_level", "mean_sea_level_pressure": "air_pressure_at_mean_sea_level",
    "psi": "atmosphere_horizontal_streamfunction",
}  # fmt: skip


def _runs(times: np.ndarray, gaps: str, where: str) -> np.ndarray:
    if gaps not in ("refuse", "split"):
        raise ValueError(f"gaps must be 'refuse' or 'split', got {gaps!r}")
    runs = np.zeros(len(times), dtype=np.int64)
    if gaps == "split" and len(times) > 1:
        steps = np.diff(times.astype("datetime64[s]")).astype(np.int64)
        runs[1:] = np.cumsum(steps != np.median(steps))
    check_times(times, runs, where)
    return runs


def open_fields(
    path: str | os.PathLike,
    variables: Sequence[str] | None = None,
    levels: Sequence[float | int] | None = None,
    *,
    units: Mapping[str, str] | None = None,
    gaps: str = "refuse",
    fill: Mapping[str, float | int] | None = None,
) -> Fields:
    """A NetCDF file or Zarr store, read into memory.

    Args:
        path: of a `.nc` file or a `.zarr` folder.
        variables: names, in the order of the channels; all that lie on the grid, in alphabetical order, if None.
        levels: in hPa, of variables that have levels; all if None.
        units: what a variable is in, where that differs from what its name promises.
        gaps: "refuse" missing time steps, or "split" the archive into runs there.
        fill: value in place of NaN, by variable, such as {"sst": 271.35}.

    Raises:
        FileNotFoundError: if there is nothing at the path.
        ImportError: if xarray is not installed.
        ValueError: for an irregular grid, an unknown variable or level, wrong units, missing time steps, or NaN.
    """
    with open_dataset(path) as dataset:
        layout = Layout(dataset, variables, levels, units, Path(path).name)
        assert layout.time is not None
        times = dataset[layout.time].values.astype("datetime64[s]")
        runs = _runs(times, gaps, layout.where)
        values = layout.read()
    for index, name in enumerate(layout.grid.variables):
        if fill and name in fill:
            values[:, index] = np.where(np.isnan(values[:, index]), fill[name], values[:, index])
    return Fields(torch.from_numpy(values), times, layout.grid, runs)


netcdf = open_fields


def split_by_time(fields: Fields, name: str = "fields", shares: tuple[float, float] = (0.7, 0.8)) -> FieldData:
    """The first 70 % of the frames are train, the next 10 % val, the last 20 % test.

    Raises:
        ValueError: if a part has fewer than three frames, or two frames of one run.
    """
    n = len(fields)
    first, second = (int(n * share) for share in shares)
    parts = (slice(0, first), slice(first, second), slice(second, n))
    if min(part.stop - part.start for part in parts) < 3:
        raise ValueError(f"{name} has {n} frames: at least 30 are needed to split them by time")
    train, val, test = (fields.part(part) for part in parts)
    return FieldData(train, val, test, name=name)


def load(path: str | os.PathLike, variables: Sequence[str] | None = None, **options: Any) -> FieldData:
    """A user's archive, split by time; arguments as of `open_fields`."""
    return split_by_time(open_fields(path, variables, **options), name=Path(path).stem)


class ZarrDataset:
    """A Zarr store (or NetCDF file) that is read chunk by chunk: a `FieldSource` that never holds the archive.

    The layout is WeatherBench2's: variables over time, level, latitude and longitude, in any order of axes. Blocks of
    whole chunks in time are read and the last few are kept, so that windows drawn near each other cost one reading.

        store = ZarrDataset("gs://weatherbench2/datasets/era5/....zarr", ["geopotential"], [500])
        train = store.between("1979-01-01", "2017-12-31T18")

    Args:
        path: of the store, or an address that fsspec can open.
        variables, levels, units: as of `open_fields`.
        gaps: "refuse" or "split".
        step_hours: take every n-th time so that steps have this length; the store's own step if None.
        keep: blocks of chunks that stay in memory.

    Raises:
        As `open_fields`; NaN are refused when they are read.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        variables: Sequence[str] | None = None,
        levels: Sequence[float | int] | None = None,
        *,
        units: Mapping[str, str] | None = None,
        gaps: str = "refuse",
        step_hours: float | int | None = None,
        keep: int = 8,
    ):
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self._dataset = open_dataset(path)
        self._layout = Layout(self._dataset, variables, levels, units, Path(str(path)).name)
        self.grid = self._layout.grid
        times = self._dataset[self._layout.time].values.astype("datetime64[s]")
        self._index = np.arange(len(times))
        if step_hours is not None:
            since = (times - times[0]).astype(np.int64)
            self._index = np.flatnonzero(since % round(3600 * step_hours) == 0)
        self.times = times[self._index]
        self.runs = _runs(self.times, gaps, self._layout.where)
        self.step_hours = check_times(self.times, self.runs, self._layout.where)
        first = self._dataset[self.grid.variables[0]]
        chunks = first.encoding.get("chunks") or first.encoding.get("preferred_chunks")
        axis = first.dims.index(self._layout.time)
        if isinstance(chunks, Mapping):
            chunks = [chunks.get(dim, 1) for dim in first.dims]
        self.chunk = int(chunks[axis]) if chunks else 1
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()
        self._keep = keep

    def __len__(self) -> int:
        return len(self.times)

    def between(self, start: str, stop: str) -> "ZarrDataset":
        """The frames from `start` to `stop`, both included (ISO dates); the store is shared.

        Raises:
            ValueError: if there are none.
        """
        inside = np.flatnonzero((self.times >= np.datetime64(start)) & (self.times <= np.datetime64(stop)))
        if len(inside) == 0:
            raise ValueError(f"no frames from {start} to {stop}; there are {self.times[0]} to {self.times[-1]}")
        part = object.__new__(ZarrDataset)
        part.__dict__.update(self.__dict__)
        part._index, part.times, part.runs = self._index[inside], self.times[inside], self.runs[inside]
        return part

    def _block(self, number: int) -> np.ndarray:
        if number not in self._kept:
            start = number * self.chunk
            values = self._layout.read({str(self._layout.time): slice(start, start + self.chunk)})
            if not np.isfinite(values).all():
                channel = int(np.argwhere(~np.isfinite(values))[0][1])
                raise ValueError(f"{self._layout.where}: {self.grid.channels[channel]} holds NaN: fill it first")
            self._kept[number] = values
            while len(self._kept) > self._keep:
                self._kept.popitem(last=False)
        self._kept.move_to_end(number)
        return self._kept[number]

    def read(self, frames: Any) -> Tensor:
        """The values (n, channels, latitudes, longitudes) of these frames; each chunk is read once."""
        wanted = self._index[np.asarray(frames).reshape(-1)]
        values = np.empty((len(wanted), len(self.grid.variables), *self.grid.shape), dtype=np.float32)
        blocks = wanted // self.chunk
        for number in np.unique(blocks):
            mine = np.flatnonzero(blocks == number)
            values[mine] = self._block(int(number))[wanted[mine] % self.chunk]
        return torch.from_numpy(values)

    def blocks(self) -> Iterator[Tensor]:
        """All frames in order, a chunk at a time: for statistics of an archive larger than memory."""
        for number in np.unique(self._index // self.chunk):
            mine = self._index[self._index // self.chunk == number]
            yield torch.from_numpy(self._block(int(number))[mine % self.chunk])


def era_interim_mean(month: int = 1) -> tuple[Tensor, FieldGrid]:
    """Monthly means of ERA-Interim: z, u, v at 200, 500 and 850 hPa, (9, 241, 480), and their grid.

    The file packs 16-bit integers with a negative scale factor. See `etude data fetch era_interim`.

    Args:
        month: 1 (January) or 7 (July).

    Raises:
        FileNotFoundError: if the set is not on this machine.
        ValueError: for another month.
    """
    with open_dataset(locate("era_interim") / "eraint_uvz.nc") as dataset:
        months = [int(value) for value in dataset["month"].values]
        if month not in months:
            raise ValueError(f"month must be one of {', '.join(map(str, months))}, got {month}")
        one = dataset.isel(month=months.index(month), drop=True)
        layout = Layout(one, ["z", "u", "v"], None, None, "eraint_uvz.nc", time=False)
        return torch.from_numpy(layout.read()), layout.grid


def era_interim_sea() -> tuple[Tensor, FieldGrid]:
    """Share of sea, 1 or 0, of each square degree: (1, 180, 360), and its grid."""
    with open_dataset(locate("era_interim") / "basin_mask.nc") as dataset:
        surface = dataset[["basin"]].isel(Z=0, drop=True)
        layout = Layout(surface, ["basin"], None, None, "basin_mask.nc", time=False)
        return torch.from_numpy(np.isfinite(layout.read()).astype(np.float32)), layout.grid


def _edges(latitude: np.ndarray) -> np.ndarray:
    middle = (latitude[1:] + latitude[:-1]) / 2
    return np.concatenate([[90.0], middle, [-90.0]])


def _overlap(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Lengths shared by the intervals of two falling lists of edges, (targets, sources)."""
    top = np.minimum(target[:-1, None], source[None, :-1])
    bottom = np.maximum(target[1:, None], source[None, 1:])
    return np.clip(top - bottom, 0, None)


def conservative_regrid(values: Tensor, grid: FieldGrid, latitude: np.ndarray, longitude: np.ndarray) -> Tensor:
    """Means over the cells of another global grid: the integral over the sphere stays what it was.

    Cells reach half-way to their neighbours, and to the poles.

    Args:
        values: (..., latitudes, longitudes) on `grid`.
        grid: the present, global grid.
        latitude: of the rows wanted, degrees, falling.
        longitude: of the columns wanted, degrees, evenly spaced round the globe, rising.

    Returns:
        (..., len(latitude), len(longitude)), float64.

    Raises:
        ValueError: if the grid is not global or the shapes do not fit.
    """
    if not grid.is_global:
        raise ValueError("a global grid was expected: the longitudes do not go all the way round")
    if tuple(values.shape[-2:]) != grid.shape:
        raise ValueError(f"values must end in {grid.shape}, got {tuple(values.shape)}")
    if not (np.diff(latitude) < 0).all():
        raise ValueError(f"latitudes must fall from north to south, got {latitude[0]:g} ... {latitude[-1]:g}")
    bands = _overlap(np.sin(np.radians(_edges(grid.latitude))), np.sin(np.radians(_edges(latitude))))
    own, other = 360 / grid.shape[1], 360 / len(longitude)
    west, edge = grid.longitude - own / 2, longitude - other / 2
    # Sources are looked for one turn to the west and to the east, too.
    shared = sum(
        np.clip(np.minimum(edge[:, None] + other, west + own + turn) - np.maximum(edge[:, None], west + turn), 0, None)
        for turn in (-360.0, 0.0, 360.0)
    )
    rows = torch.from_numpy(bands / bands.sum(1, keepdims=True))
    columns = torch.from_numpy(shared / shared.sum(1, keepdims=True))
    return rows @ values.double() @ columns.T


def write_forecast(
    path: str | os.PathLike,
    values: Tensor,
    initial_times: np.ndarray,
    grid: FieldGrid,
    step_hours: float | int = 6,
    *,
    title: str = "forecast",
) -> Path:
    """Forecasts as a CF NetCDF file, laid out as WeatherBench2 reads them.

    Dimensions: time (of the last frame that was given), prediction_timedelta, level, latitude, longitude.

    Args:
        path: of the file, ending in .nc.
        values: (initial times, steps, channels, latitudes, longitudes) in the units of `grid`.
        initial_times: datetime64 (initial times,).
        grid: the axes and channels.
        step_hours: from one step to the next; the first step is one such after the initial time.
        title: attribute of the file.

    Returns:
        The path.

    Raises:
        ValueError: if shapes do not fit, or variables of several levels differ in their levels.
    """
    xr = xarray()
    n, steps = values.shape[:2]
    if tuple(values.shape[2:]) != (len(grid.variables), *grid.shape) or np.shape(initial_times) != (n,):
        raise ValueError(
            f"values must have shape ({np.shape(initial_times)[0]}, steps, {len(grid.variables)}, *{grid.shape}), "
            f"got {tuple(values.shape)}"
        )
    levels = sorted({level for level in grid.levels if level is not None})
    leads = (np.arange(1, steps + 1) * round(3600 * step_hours)).astype("timedelta64[s]")
    variables: dict[str, Any] = {}
    array = values.detach().cpu().numpy().astype(np.float32)
    for name in dict.fromkeys(grid.variables):
        mine = {level: i for i, (v, level) in enumerate(zip(grid.variables, grid.levels)) if v == name}
        attributes = {"units": grid.units[next(iter(mine.values()))], "long_name": name}
        if name in _STANDARD_NAMES:
            attributes["standard_name"] = _STANDARD_NAMES[name]
        if None in mine:
            variables[name] = (
                ("time", "prediction_timedelta", "latitude", "longitude"),
                array[:, :, mine[None]],
                attributes,
            )
        elif sorted(mine) != levels:  # type: ignore[type-var]
            raise ValueError(f"{name} has the levels {sorted(mine)}, others {levels}: write them apart")  # type: ignore[type-var]
        else:
            dims = ("time", "prediction_timedelta", "level", "latitude", "longitude")
            variables[name] = (dims, array[:, :, [mine[level] for level in levels]], attributes)
    coordinates: dict[str, Any] = {
        "time": ("time", initial_times.astype("datetime64[ns]"), {"standard_name": "forecast_reference_time"}),
        "prediction_timedelta": (
            "prediction_timedelta", leads.astype("timedelta64[ns]"), {"standard_name": "forecast_period"},
        ),
        "latitude": ("latitude", grid.latitude, {"units": "degrees_north", "standard_name": "latitude"}),
        "longitude": ("longitude", grid.longitude, {"units": "degrees_east", "standard_name": "longitude"}),
    }  # fmt: skip
    if levels:
        coordinates["level"] = (
            "level", np.array(levels), {"units": "hPa", "standard_name": "air_pressure", "positive": "down"},
        )  # fmt: skip
    dataset = xr.Dataset(variables, coordinates, {"Conventions": "CF-1.8", "title": title})
    place = Path(path)
    fresh = place.with_name(place.name + ".part")
    dataset.to_netcdf(fresh, engine="netcdf4" if _has_netcdf4() else "h5netcdf")
    os.replace(fresh, place)
    return place


def _has_netcdf4() -> bool:
    try:
        import netCDF4  # noqa: F401
    except ImportError:
        return False
    return True
