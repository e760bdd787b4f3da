"""Pictures of banks, spectra, receptive fields, usage, variances, comparisons: a `matplotlib.figure.Figure` each."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from etude.vision.filters.calibration import VarianceProfile
    from etude.vision.filters.comparison import FilterComparison
    from etude.vision.filters.receptive_field import ReceptiveField
    from etude.vision.filters.usage import FilterUsage

__all__ = [
    "plot_comparison", "plot_filter_usage", "plot_filters", "plot_frequency_response", "plot_receptive_field",
    "plot_variance_profiles",
]  # fmt: skip


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "etude[run]"') from error
    return Figure(figsize=(width, height), layout="constrained")


def _mosaic(pictures: np.ndarray, columns: int) -> np.ndarray:
    """(n, h, w, 3 or 1) side by side, one white pixel between them."""
    n, height, width, bands = pictures.shape
    rows = -(-n // columns)
    canvas = np.ones((rows * (height + 1) - 1, columns * (width + 1) - 1, bands))
    for place, picture in enumerate(pictures):
        top, left = place // columns * (height + 1), place % columns * (width + 1)
        canvas[top : top + height, left : left + width] = picture
    return canvas


def plot_filters(weight: Tensor, title: str = "", columns: int | None = None, most: int = 256) -> Any:
    """Filters (num, channels, h, w) side by side, each from -max to max; colour if they have three channels.

    Filters of another number of channels are shown by their first. At most `most` filters are drawn.
    """
    shown = weight.detach().double().cpu()[:most]
    shown = shown if shown.shape[1] == 3 else shown[:, :1]
    shown = shown / shown.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12) / 2 + 0.5
    columns = int(np.ceil(len(shown) ** 0.5)) if columns is None else columns
    canvas = _mosaic(shown.permute(0, 2, 3, 1).numpy(), columns)
    figure = _figure(4.0, 4.0 * canvas.shape[0] / canvas.shape[1] + 0.3)
    axis = figure.subplots()
    axis.imshow(canvas if canvas.shape[2] == 3 else canvas[..., 0], cmap="gray", vmin=0, vmax=1)
    axis.set_axis_off()
    axis.set_title(title, fontsize=9)
    return figure


def plot_frequency_response(weight: Tensor, n: int = 32) -> Any:
    """The largest response of any filter at each frequency: what the bank covers, and what it does not."""
    from etude.vision.filters.analysis import frequency_response

    cover = frequency_response(weight, n).square().sum(dim=1).amax(dim=0).sqrt()
    figure = _figure(3.8, 3.2)
    axis = figure.subplots()
    picture = axis.imshow(cover.cpu().numpy(), extent=(-0.5, 0.5, 0.5, -0.5), cmap="magma")
    axis.set(xlabel="cycles per pixel, across", ylabel="down")
    figure.colorbar(picture, ax=axis, label="largest |response|")
    return figure


def plot_receptive_field(field: "ReceptiveField") -> Any:
    """Mean |gradient| over the input on a log scale of five decades, with the theoretical field's box."""
    from matplotlib.patches import Rectangle

    heat = field.heat / field.heat.max()
    figure = _figure(4.0, 3.4)
    axis = figure.subplots()
    picture = axis.imshow(heat.clamp_min(1e-5).log10().cpu().numpy(), vmin=-5, vmax=0, cmap="magma")
    rows, columns = (torch.nonzero(heat.sum(dim=axis_) > 0).flatten().double().mean().item() for axis_ in (1, 0))
    height, width = field.theoretical
    box = Rectangle((columns - width / 2, rows - height / 2), width, height, fill=False, edgecolor="cyan")
    axis.add_patch(box)
    axis.set_title(f"theoretical {height} x {width}, 95 % within {field.energy_side}", fontsize=9)
    figure.colorbar(picture, ax=axis, label="log10 |gradient|")
    return figure


def plot_filter_usage(usage: "FilterUsage") -> Any:
    """Share of outputs above the threshold, filters of each layer sorted: a flat line at zero is dead filters."""
    figure = _figure(4.6, 3.2)
    axis = figure.subplots()
    for name, layer in usage.layers.items():
        active = layer.active.sort(descending=True).values.cpu().numpy()
        axis.plot(
            np.arange(len(active)) / max(len(active) - 1, 1), active, label=f"{name} ({int(layer.dead.sum())} dead)"
        )
    axis.set(xlabel="filters, most active first", ylabel="share of outputs active", ylim=(-0.02, 1.02))
    if len(usage.layers) <= 16:
        axis.legend(fontsize=7)
    return figure


def plot_variance_profiles(profiles: Mapping[str, "VarianceProfile"]) -> Any:
    """Variances of signals (left) and gradients (right) against the layer, a line for each profile, on a log scale."""
    figure = _figure(7.2, 3.2)
    for axis, attribute, label in zip(figure.subplots(1, 2), ("variances", "gradients"), ("signal", "gradient")):
        for name, profile in profiles.items():
            values = np.asarray(getattr(profile, attribute), dtype=float)
            axis.plot(np.arange(1, len(values) + 1), np.maximum(values, 1e-45), marker=".", label=name or None)
        axis.set(yscale="log", xlabel="layer", ylabel=f"variance of the {label}")
        if any(profiles):
            axis.legend(fontsize=7)
    return figure


def plot_comparison(comparison: "FilterComparison") -> Any:
    """Accuracy of every option, a dot a seed, and the mean."""
    figure = _figure(1.6 + 0.7 * len(comparison.options), 3.2)
    axis = figure.subplots()
    for place, option in enumerate(comparison.options):
        values = comparison.scores(option)
        axis.plot([place] * len(values), values, "o", color="grey", alpha=0.6, markersize=4)
        axis.plot([place - 0.25, place + 0.25], [values.mean()] * 2, color="C0", linewidth=2)
    axis.set_xticks(range(len(comparison.options)), comparison.options, rotation=35, ha="right", fontsize=8)
    axis.set_ylabel("test accuracy")
    return figure
