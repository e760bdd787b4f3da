"""Scores of forecasts on the sphere, as WeatherBench2 defines them (arXiv:2308.15560), and spectra.

Rows near the poles are shorter, so every mean over the globe carries weights a_i that average to 1. Scores are in the
units of the fields: z500 in m^2/s^2 (geopotential, not height), temperatures in K.
"""

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from etude.data.kinds_fields import FieldSource

__all__ = [
    "Climatology",
    "RunningScores",
    "climatology",
    "latitude_weights",
    "weighted_acc",
    "weighted_bias",
    "weighted_rmse",
    "zonal_spectrum",
]


def latitude_weights(latitude: np.ndarray | Tensor, mode: str = "cos") -> Float[Tensor, "rows"]:
    """Weights of the rows, of mean 1, in the rows' own order; float64.

    Args:
        latitude: degrees, strictly monotonic; from north to south or from south to north.
        mode: "cos" of the latitude; "cell_area" of cells that reach half-way to their neighbours and to the poles, as
            WeatherBench2; "gauss", the quadrature weights of a Gaussian grid.

    Raises:
        ValueError: for latitudes out of order or range, an unknown mode, or "gauss" on another grid.
    """
    rows = np.asarray(latitude, dtype=np.float64)
    steps = np.diff(rows)
    if (
        rows.ndim != 1
        or len(rows) < 2
        or not ((steps > 0).all() or (steps < 0).all())
        or np.abs(rows).max() > 90 + 1e-6
    ):
        raise ValueError(f"latitude must be monotonic within [-90, 90], got {rows}")
    if mode == "cos":
        weights = np.cos(np.radians(rows)).clip(0)
    elif mode == "cell_area":
        ends = np.array([-90.0, 90.0]) if steps[0] > 0 else np.array([90.0, -90.0])
        edges = np.concatenate([ends[:1], (rows[1:] + rows[:-1]) / 2, ends[1:]])
        weights = np.abs(np.diff(np.sin(np.radians(edges))))
    elif mode == "gauss":
        nodes, weights = np.polynomial.legendre.leggauss(len(rows))
        expected = np.degrees(np.arcsin(nodes))
        if not np.allclose(np.sort(rows), expected, atol=1e-3):
            raise ValueError(f"mode 'gauss' needs the {len(rows)} Gaussian latitudes, got {rows[0]:g} ... {rows[-1]:g}")
    else:
        raise ValueError(f"mode must be 'cos', 'cell_area' or 'gauss', got {mode!r}")
    return torch.from_numpy(weights / weights.mean())


def _check(forecast: Tensor, truth: Tensor, weights: Tensor) -> None:
    if forecast.shape != truth.shape:
        raise ValueError(
            f"forecast and truth must have one shape, got {tuple(forecast.shape)} and {tuple(truth.shape)}"
        )
    if tuple(weights.shape) != (forecast.shape[-2],):
        raise ValueError(f"weights must have shape ({forecast.shape[-2]},), got {tuple(weights.shape)}")


def _globe(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean over the last two axes, in float64."""
    weights = weights.to(values.device, torch.float64)
    return (values.double().mean(-1) * weights).mean(-1)


def weighted_rmse(
    forecast: Float[Tensor, "times *fields rows columns"],
    truth: Float[Tensor, "times *fields rows columns"],
    weights: Float[Tensor, "rows"],
    time_mean: str = "after_sqrt",
) -> Float[Tensor, "*fields"]:
    """Root mean square error over the globe, averaged over the initial times.

    Args:
        forecast, truth: the first axis is that of the initial times.
        weights: of the rows, of mean 1.
        time_mean: "after_sqrt" averages the roots of each time, as FuXi, GraphCast and PuYun report; "before_sqrt"
            takes the root of the mean over times, as WeatherBench2, which is never smaller.

    Raises:
        ValueError: if shapes differ or `time_mean` is unknown.
    """
    _check(forecast, truth, weights)
    squares = _globe((forecast - truth) ** 2, weights)
    if time_mean == "after_sqrt":
        return squares.sqrt().mean(0)
    if time_mean == "before_sqrt":
        return squares.mean(0).sqrt()
    raise ValueError(f"time_mean must be 'after_sqrt' or 'before_sqrt', got {time_mean!r}")


def weighted_bias(
    forecast: Float[Tensor, "times *fields rows columns"],
    truth: Float[Tensor, "times *fields rows columns"],
    weights: Float[Tensor, "rows"],
) -> Float[Tensor, "*fields"]:
    """Mean error over the globe and the initial times."""
    _check(forecast, truth, weights)
    return _globe(forecast - truth, weights).mean(0)


def weighted_acc(
    forecast: Float[Tensor, "times *fields rows columns"],
    truth: Float[Tensor, "times *fields rows columns"],
    climate: Float[Tensor, "#times *fields rows columns"],
    weights: Float[Tensor, "rows"],
) -> Float[Tensor, "*fields"]:
    """Anomaly correlation: of the departures from the climatology, not centred, averaged over the initial times.

    A forecast without any anomaly, the climatology itself, scores 0.

    Args:
        forecast, truth: the first axis is that of the initial times.
        climate: the climatology at the valid times, or one for all.
        weights: of the rows, of mean 1.
    """
    _check(forecast, truth, weights)
    ours, theirs = (forecast - climate).double(), (truth - climate).double()
    product = _globe(ours * theirs, weights)
    size = (_globe(ours**2, weights) * _globe(theirs**2, weights)).sqrt()
    return torch.where(size > 0, product / size.clamp(min=torch.finfo(torch.float64).tiny), 0.0).mean(0)


class RunningScores:
    """Scores of forecasts that come in batches of initial times, each (times, steps, channels, rows, columns).

    Args:
        weights: of the rows, of mean 1.
    """

    def __init__(self, weights: Float[Tensor, "rows"]):
        self.weights, self.times = weights, 0
        self._sums: dict[str, Tensor] = {}

    def add(self, forecast: Tensor, truth: Tensor, climate: Tensor) -> None:
        """Takes in a batch; `climate` is the climatology at the valid times."""
        climatology_rmse = weighted_rmse(climate, truth, self.weights)
        found = {
            "rmse": weighted_rmse(forecast, truth, self.weights),
            "acc": weighted_acc(forecast, truth, climate, self.weights),
            "bias": weighted_bias(forecast, truth, self.weights),
            "climatology_rmse": climatology_rmse,
            "amplitude": weighted_rmse(forecast, climate, self.weights) / climatology_rmse,
        }
        self.times += len(truth)
        for name, value in found.items():
            self._sums[name] = self._sums.get(name, torch.zeros(())) + len(truth) * value

    def mean(self) -> dict[str, Float[Tensor, "steps channels"]]:
        """Means over all initial times: rmse, acc, bias, climatology_rmse (of the climatology as a forecast) and
        amplitude (root mean square of the forecast's anomaly over that of the truth's).

        Raises:
            ValueError: if nothing was added.
        """
        if not self.times:
            raise ValueError("no forecast was added")
        return {name: total / self.times for name, total in self._sums.items()}


def zonal_spectrum(
    values: Float[Tensor, "*fields rows columns"], weights: Float[Tensor, "rows"]
) -> Float[Tensor, "*fields wavenumbers"]:
    """Mean square of each zonal wavenumber 0 ... columns / 2 over the globe; the sum is the mean square of the field.

    A forecast that blurs loses the high wavenumbers.
    """
    columns = values.shape[-1]
    power: Complex[Tensor, "..."] = torch.fft.rfft(values.double(), norm="forward").abs() ** 2
    sides = torch.full((power.shape[-1],), 2.0, dtype=torch.float64, device=values.device)
    sides[0] = 1.0
    if columns % 2 == 0:
        sides[-1] = 1.0
    rows = weights.to(values.device, torch.float64)[:, None]
    return (power * sides * rows).mean(-2)


class Climatology:
    """Mean fields by season and hour, asked by time.

    Args:
        means: (bins, channels, rows, columns), float32.
        by: "all" (one mean), "month" (12 means for each hour of the day) or "day" (366 for each hour).
        hours: hours of the day that have bins of their own, rising.

    Raises:
        ValueError: if the number of means does not fit.
    """

    def __init__(self, means: Tensor, by: str, hours: tuple[int, ...] = (0,)):
        seasons = {"all": 1, "month": 12, "day": 366}
        if by not in seasons:
            raise ValueError(f"by must be 'all', 'month' or 'day', got {by!r}")
        if len(means) != seasons[by] * len(hours):
            raise ValueError(f"{seasons[by] * len(hours)} means were expected by {by}, got {len(means)}")
        self.means, self.by, self.hours = means, by, hours

    def at(self, times: np.ndarray) -> Float[Tensor, "times channels rows columns"]:
        """The climatology of these times.

        Raises:
            ValueError: for an hour of the day that has no mean.
        """
        return self.means[_bins(times, self.by, self.hours)]


def _bins(times: np.ndarray, by: str, hours: tuple[int, ...]) -> np.ndarray:
    times = np.asarray(times).astype("datetime64[s]")
    if by == "all":
        return np.zeros(len(times), dtype=np.int64)
    day = times.astype("datetime64[D]")
    hour = ((times - day).astype(np.int64) // 3600).astype(np.int64)
    column = np.searchsorted(np.array(hours), hour)
    known = np.isin(hour, hours)
    if not known.all():
        raise ValueError(f"the climatology has the hours {', '.join(map(str, hours))}, not {hour[~known][0]}")
    if by == "month":
        season = times.astype("datetime64[M]").astype(np.int64) % 12
    else:
        season = (day - times.astype("datetime64[Y]").astype("datetime64[D]")).astype(np.int64)
    return season * len(hours) + column


def climatology(source: FieldSource, by: str = "all", *, window: int = 61, block: int = 64) -> Climatology:
    """Means of training frames, which is what anomalies are departures from.

    Args:
        source: the frames; read `block` at a time.
        by: "all", "month" or "day" of the year, the latter two for each hour of the day that occurs.
        window: days of the running mean over the year where `by` is "day", odd.
        block: frames in memory at a time.

    Raises:
        ValueError: if some month or day has no frame within the window.
    """
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window must be odd, got {window}")
    day = source.times.astype("datetime64[D]")
    present = np.unique((source.times.astype("datetime64[s]") - day).astype(np.int64) // 3600)
    hours = (0,) if by == "all" else tuple(int(h) for h in present)
    seasons = {"all": 1, "month": 12, "day": 366}
    if by not in seasons:
        raise ValueError(f"by must be 'all', 'month' or 'day', got {by!r}")
    bins = torch.from_numpy(_bins(source.times, by, hours))
    shape = (len(source.grid.variables), *source.grid.shape)
    total = torch.zeros(seasons[by] * len(hours), *shape, dtype=torch.float64)
    count = torch.zeros(len(total), dtype=torch.float64)
    for frames in torch.arange(len(source)).split(block):
        total.index_add_(0, bins[frames], source.read(frames).double())
        count.index_add_(0, bins[frames], torch.ones(len(frames), dtype=torch.float64))
    if by == "day":
        total, count = (_running(part.unflatten(0, (366, len(hours))), window).flatten(0, 1) for part in (total, count))
    if bool((count == 0).any()):
        raise ValueError(f"some {by} of the year has no frame: take a coarser climatology or a wider window")
    return Climatology((total / count[:, None, None, None]).float(), by, hours)


def _running(values: Tensor, window: int) -> Tensor:
    """Sum over a window of days, round the year."""
    half = window // 2
    return torch.stack([values.roll(shift, dims=0) for shift in range(-half, half + 1)]).sum(0)
