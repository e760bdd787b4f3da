"""Pictures of fields and scores. Needs matplotlib."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from etude.data.kinds_fields import FieldGrid

__all__ = ["plot_forecast", "plot_map", "plot_scores", "plot_spectra"]


def _axes(rows: int = 1, columns: int = 1, size: tuple[float, float] = (5.0, 2.6)) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'etude[run]'") from error
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def plot_map(
    values: Float[Tensor, "rows columns"],
    grid: FieldGrid,
    *,
    title: str = "",
    unit: str = "",
    limit: float | int | None = None,
    axes: Any = None,
    diverging: bool = True,
) -> Any:
    """A map in longitude and latitude.

    Args:
        values: of one channel.
        grid: its axes.
        title, unit: written beside it.
        limit: colours reach from -limit to limit, or from the least to the largest value if None.
        axes: matplotlib axes to draw into; a new figure if None.
        diverging: colours for values about zero.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: if the values do not fit the grid.
    """
    if tuple(values.shape) != grid.shape:
        raise ValueError(f"values must have shape {grid.shape}, got {tuple(values.shape)}")
    figure = None
    if axes is None:
        figure, panels = _axes()
        axes = panels[0, 0]
    array = values.detach().cpu().numpy()
    bound = limit if limit is not None else (float(np.abs(array).max()) or 1.0)
    colours = (
        {"cmap": "RdBu_r", "vmin": -bound, "vmax": bound} if diverging or limit is not None else {"cmap": "viridis"}
    )
    # An image and not a mesh: cells of a Gaussian grid differ by a hundredth, and a mesh takes a path for each cell.
    west = float(grid.longitude[0])
    half = (grid.latitude[0] - grid.latitude[1]) / 2
    top, bottom = min(90.0, grid.latitude[0] + half), max(-90.0, grid.latitude[-1] - half)
    width = float(grid.longitude[1] - grid.longitude[0])
    extent = (west - width / 2, float(grid.longitude[-1]) + width / 2, bottom, top)
    picture = axes.imshow(array, extent=extent, origin="upper", aspect="auto", interpolation="nearest", **colours)
    axes.set(title=title, xlabel="longitude, degrees east", ylabel="latitude, degrees north")
    bar = axes.figure.colorbar(picture, ax=axes)
    bar.set_label(unit)
    return figure if figure is not None else axes.figure


def plot_forecast(
    forecast: Float[Tensor, "rows columns"],
    truth: Float[Tensor, "rows columns"],
    grid: FieldGrid,
    *,
    title: str = "",
    unit: str = "",
) -> Any:
    """Truth, forecast and error of one channel at one lead, the first two with the same colours."""
    figure, panels = _axes(1, 3)
    limit = float(truth.abs().max()) or 1.0
    for axes, values, name in zip(panels[0], (truth, forecast, forecast - truth), ("truth", "forecast", "error")):
        bound = None if name == "error" else limit
        plot_map(values, grid, title=f"{title} {name}".strip(), unit=unit, axes=axes, limit=bound)
    return figure


def plot_scores(
    days: Sequence[float | int], scores: Mapping[str, Sequence[float | int]], *, ylabel: str = "RMSE"
) -> Any:
    """A score against the lead, one line a model."""
    figure, panels = _axes(size=(5.0, 3.2))
    axes = panels[0, 0]
    for name, values in scores.items():
        axes.plot(days, values, label=name)
    axes.set(xlabel="lead, days", ylabel=ylabel)
    axes.legend(frameon=False)
    return figure


def plot_spectra(spectra: Mapping[str, Float[Tensor, "wavenumbers"]]) -> Any:
    """Mean square against the zonal wavenumber, from 1 up, on logarithmic axes: blur shows on the right."""
    figure, panels = _axes(size=(5.0, 3.2))
    axes = panels[0, 0]
    for name, values in spectra.items():
        axes.loglog(torch.arange(1, len(values)).numpy(), values[1:].detach().cpu().numpy(), label=name)
    axes.set(xlabel="zonal wavenumber", ylabel="mean square")
    axes.legend(frameon=False)
    return figure
