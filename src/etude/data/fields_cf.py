"""How a NetCDF or Zarr file lays fields out: axes by the CF conventions, their orders, and units.

Axes are found by `standard_name` or units, else by their usual names. Latitudes are turned to fall and longitudes to
rise from 0 to 360; what is read of each variable, and in which order, follows from that.
"""

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from etude.data.kinds_fields import FieldGrid

__all__ = ["Layout", "open_dataset", "xarray"]

_LATITUDE = ("latitude", "lat", "nav_lat")
_LONGITUDE = ("longitude", "lon", "nav_lon")
_LEVEL = ("level", "isobaricInhPa", "pressure_level", "plev", "lev", "pressure")
_TIME = ("time", "valid_time")
_TO_HPA = {"hpa": 1.0, "millibars": 1.0, "millibar": 1.0, "mbar": 1.0, "mb": 1.0, "pa": 0.01}

_CANONICAL = {
    "m**2 s**-2": "m2 s-2", "m^2 s^-2": "m2 s-2", "m^2/s^2": "m2 s-2", "m2/s2": "m2 s-2", "m**2/s**2": "m2 s-2",
    "m s**-1": "m s-1", "m/s": "m s-1", "m s^-1": "m s-1", "kelvin": "K", "k": "K", "pa": "Pa", "percent": "%",
    "kg kg**-1": "kg kg-1", "kg/kg": "kg kg-1", "pa s**-1": "Pa s-1", "(0 - 1)": "1",
}  # fmt: skip
# What a name promises: ECMWF's short names and WeatherBench2's long ones.
_EXPECTED = {
    "z": "m2 s-2", "geopotential": "m2 s-2", "t": "K", "temperature": "K", "u": "m s-1", "v": "m s-1",
    "u_component_of_wind": "m s-1", "v_component_of_wind": "m s-1", "r": "%", "relative_humidity": "%",
    "q": "kg kg-1", "specific_humidity": "kg kg-1", "t2m": "K", "2m_temperature": "K", "u10": "m s-1",
    "v10": "m s-1", "10m_u_component_of_wind": "m s-1", "10m_v_component_of_wind": "m s-1", "msl": "Pa",
    "mean_sea_level_pressure": "Pa", "sst": "K", "sea_surface_temperature": "K",
}  # fmt: skip


def xarray() -> Any:
    """The library, or a word on how to install it."""
    try:
        import xarray as library
    except ImportError as error:
        raise ImportError("reading NetCDF and Zarr needs xarray: pip install 'etude[science]'") from error
    return library


def _axis(dataset: Any, names: Sequence[str], standard: str, where: str) -> str | None:
    """The name of a coordinate, by its CF standard name or units, else by a usual name."""
    units = {"latitude": "degrees_north", "longitude": "degrees_east"}.get(standard)
    for name, coordinate in dataset.coords.items():
        attributes = coordinate.attrs
        said = str(attributes.get("units", "")).replace("degree_", "degrees_")
        if attributes.get("standard_name") == standard or (units is not None and said == units):
            return str(name)
    return next((name for name in names if name in dataset.coords), None)


def open_dataset(path: str | os.PathLike) -> Any:
    """An xarray data set that reads nothing but its axes yet."""
    place = Path(path)
    xr = xarray()
    if "://" not in str(path) and not place.exists():
        raise FileNotFoundError(f"no NetCDF file or Zarr store at {place}")
    is_zarr = place.is_dir() or str(path).rstrip("/").endswith(".zarr")
    with warnings.catch_warnings():
        # Packed files often state a fill value of another type than their integers; xarray drops it.
        warnings.filterwarnings("ignore", message=".*non-conforming '_FillValue'.*")
        try:
            return xr.open_zarr(str(path), chunks=None) if is_zarr else xr.open_dataset(place)
        except (ValueError, OSError, KeyError) as error:
            raise ValueError(f"{path} cannot be read as {'Zarr' if is_zarr else 'NetCDF'}: {error}") from error


class Layout:
    """How a file's axes map to ours: names, orders, and what is read of which variable."""

    def __init__(
        self,
        dataset: Any,
        variables: Sequence[str] | None,
        levels: Sequence[float | int] | None,
        units: Mapping[str, str] | None,
        where: str,
        time: bool = True,
    ):
        self.dataset, self.where = dataset, where
        self.lat = self._horizontal(_LATITUDE, "latitude")
        self.lon = self._horizontal(_LONGITUDE, "longitude")
        self.level = _axis(dataset, _LEVEL, "air_pressure", where)
        self.time = _axis(dataset, _TIME, "time", where) if time else None
        if time:
            kind = None if self.time is None else dataset[self.time].dtype.kind
            if kind != "M":
                raise ValueError(
                    f"{where}: a time axis of dates was expected (units such as 'hours since 1979-01-01'), got "
                    f"{'none' if self.time is None else f'{self.time} of {dataset[self.time].dtype}'}"
                )
        latitude = np.asarray(dataset[self.lat].values, dtype=np.float64)
        self.rows = np.argsort(-latitude, kind="stable")
        longitude = np.asarray(dataset[self.lon].values, dtype=np.float64) % 360
        # A closing column at 360 degrees repeats the one at 0.
        self.columns = np.unique(np.round(longitude, 6), return_index=True)[1]
        self.grid = FieldGrid(latitude[self.rows], longitude[self.columns], *self._channels(variables, levels, units))

    def _horizontal(self, names: Sequence[str], standard: str) -> str:
        name = _axis(self.dataset, names, standard, self.where)
        if name is None:
            raise ValueError(
                f"{self.where} has no {standard}: a coordinate with standard_name {standard!r} or called "
                f"{' or '.join(names[:2])} was expected, there are {', '.join(map(str, self.dataset.coords)) or 'none'}"
            )
        if self.dataset[name].ndim != 1:
            raise ValueError(
                f"{self.where}: {name} has the dimensions {self.dataset[name].dims}: an irregular grid; a regular "
                "latitude-longitude grid was expected, regrid first"
            )
        return name

    def _channels(
        self,
        variables: Sequence[str] | None,
        levels: Sequence[float | int] | None,
        units: Mapping[str, str] | None,
    ) -> tuple[tuple[str, ...], tuple[float | None, ...], tuple[str, ...]]:
        horizontal = {self.dataset[self.lat].dims[0], self.dataset[self.lon].dims[0]}
        there = sorted(str(n) for n, v in self.dataset.data_vars.items() if horizontal <= set(v.dims))
        chosen = list(there) if variables is None else list(variables)
        unknown = [name for name in chosen if name not in there]
        if unknown or not chosen:
            raise ValueError(f"unknown variable {', '.join(unknown)} in {self.where}; there are {', '.join(there)}")
        names: list[str] = []
        wanted: list[float | None] = []
        said: list[str] = []
        for name in chosen:
            values = self.dataset[name]
            allowed = horizontal | {self.level, self.time}
            extra = [dim for dim in values.dims if dim not in allowed]
            if extra:
                raise ValueError(f"{self.where}: {name} has the unknown dimension {', '.join(map(str, extra))}")
            unit = self._unit(name, units)
            at: Sequence[float | None] = [None]
            if self.level is not None and self.level in values.dims:
                at = self._levels(name, levels)
            names += [name] * len(at)
            wanted += list(at)
            said += [unit] * len(at)
        return tuple(names), tuple(wanted), tuple(said)

    @property
    def pressures(self) -> np.ndarray:
        """Levels in hPa."""
        axis = self.dataset[self.level]
        unit = str(axis.attrs.get("units", "hPa")).strip().lower()
        if unit not in _TO_HPA:
            raise ValueError(f"{self.where}: levels are in {unit!r}; a pressure in hPa, millibars or Pa was expected")
        return np.asarray(axis.values, dtype=np.float64) * _TO_HPA[unit]

    def _levels(self, name: str, levels: Sequence[float | int] | None) -> list[float | None]:
        there = self.pressures
        if levels is None:
            return [float(level) for level in there]
        missing = [level for level in levels if not np.isclose(there, level).any()]
        if missing:
            raise ValueError(
                f"{self.where}: {name} has no level {', '.join(f'{m:g}' for m in missing)} hPa; there are "
                f"{', '.join(f'{level:g}' for level in there)}"
            )
        return [float(level) for level in levels]

    def _unit(self, name: str, units: Mapping[str, str] | None) -> str:
        given = str(self.dataset[name].attrs.get("units", "")).strip()
        unit = _CANONICAL.get(given.lower(), given)
        expected = (units or {}).get(name, _EXPECTED.get(name))
        if expected is not None and unit != _CANONICAL.get(expected.lower(), expected):
            raise ValueError(
                f"{self.where}: {name} is in {given or 'no unit'}, expected {expected}; convert it, or say what is "
                f"right with units={{{name!r}: ...}}"
            )
        return unit

    def read(self, selection: dict[str, Any] | None = None) -> np.ndarray:
        """Values (time, channels, latitudes, longitudes), or without time, in the file's own selection of times."""
        lead = [self.time] if self.time is not None else []
        across = [self.dataset[name].dims[0] for name in (self.lat, self.lon)]
        parts: list[np.ndarray] = []
        for name in dict.fromkeys(self.grid.variables):
            picked = self.dataset[name].isel(selection or {})
            wanted = [level for v, level in zip(self.grid.variables, self.grid.levels) if v == name]
            if wanted[0] is None:
                values = picked.transpose(*lead, *across).values[..., None, :, :]
            else:
                # Only the levels asked for are read from disk.
                index = [int(np.argmin(np.abs(self.pressures - level))) for level in wanted]
                picked = picked.isel({self.dataset[self.level].dims[0]: index})
                values = picked.transpose(*lead, self.level, *across).values
            parts.append(values[..., self.rows, :][..., self.columns])
        return np.concatenate(parts, axis=-3).astype(np.float32)
