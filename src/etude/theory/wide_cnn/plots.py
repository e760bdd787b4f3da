"""Pictures: learning curves beside their exponents, spectra by rank, sectors by degree.

Every function returns a matplotlib figure that belongs to no window: save it with `figure.savefig(path)`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from etude.theory.wide_cnn.curves import LearningCurve
from etude.theory.wide_cnn.sectors import SectorSpectrum
from etude.theory.wide_cnn.spectrum import SpectrumStudy

__all__ = ["plot_learning_curves", "plot_sectors", "plot_spectra"]


def plot_learning_curves(curves: Mapping[str, LearningCurve]) -> Any:
    """Errors over sample sizes with two standard errors, the exact mean as a line, and the predicted slope dotted.

    Args:
        curves: by name.
    """
    figure, axes = _figure()
    for name, curve in curves.items():
        n = np.array(curve.sizes, dtype=float)
        errors, seeds = curve.errors.numpy(), len(curve.errors)
        bars = 2 * errors.std(0, ddof=1) / seeds**0.5 if seeds > 1 else None
        label = f"{name}: {curve.beta.mean:.3f}" + ("" if seeds < 2 else f" ± {curve.beta.error:.3f}")
        drawn = axes.errorbar(n, errors.mean(0), yerr=bars, fmt="o", markersize=3, capsize=2, label=label)
        colour = drawn.lines[0].get_color()
        axes.plot(n, curve.expected.mean(0).numpy(), color=colour, linewidth=1)
        if curve.predicted is not None:
            last = n[-curve.fitted :]
            anchor = 0.8 * float(curve.expected.mean(0)[-1])
            law = anchor * (last / last[-1]) ** -curve.predicted
            axes.plot(last, law, color=colour, linestyle=":", label=f"predicted {curve.predicted:.3f}")
    axes.set(xscale="log", yscale="log", xlabel="training points", ylabel="squared error / variance")
    axes.legend(fontsize=8)
    return figure


def plot_spectra(spectra: Mapping[str, SpectrumStudy | Float[Tensor, "n"]]) -> Any:
    """Eigenvalues over their rank; of a study also the law fitted, dotted over its ranks, and the exponents.

    Args:
        spectra: by name: studies, or eigenvalues in decreasing order.
    """
    figure, axes = _figure()
    for name, found in spectra.items():
        values = found.eigenvalues.mean(0) if isinstance(found, SpectrumStudy) else found
        positive = values.cpu().numpy()
        positive = positive[positive > 0]
        label = name
        if isinstance(found, SpectrumStudy):
            label += f": {found.exponent.mean:.3f}, predicted {found.predicted:.3f}"
        (line,) = axes.plot(np.arange(1, len(positive) + 1), positive, linewidth=1, label=label)
        if isinstance(found, SpectrumStudy):
            ranks = np.arange(found.ranks[0], found.ranks[1] + 1, dtype=float)
            anchor = positive[found.ranks[1] - 1]
            law = anchor * (ranks / ranks[-1]) ** -found.predicted
            axes.plot(ranks, law, color=line.get_color(), linestyle=":")
    axes.set(xscale="log", yscale="log", xlabel="rank", ylabel="eigenvalue of K / n")
    axes.legend(fontsize=8)
    return figure


def plot_sectors(spectrum: SectorSpectrum, *, count: int = 1_000) -> Any:
    """The eigenvalues of every sector over their rank within it, with the law foretold, dotted.

    Args:
        spectrum: of `sector_spectrum`.
        count: ranks shown.
    """
    figure, axes = _figure()
    for level in range(1, len(spectrum.filter_sizes) + 1):
        values = spectrum.ranked(level, count).numpy()
        values = values[values > 1e-14]
        exponent = spectrum.predicted(level)
        ranks = np.arange(1, len(values) + 1, dtype=float)
        (line,) = axes.plot(ranks, values, linewidth=1, label=f"sector {level}, predicted {exponent:.3f}")
        middle = len(values) // 2
        axes.plot(ranks, values[middle] * (ranks / ranks[middle]) ** -exponent, color=line.get_color(), linestyle=":")
    axes.set(xscale="log", yscale="log", xlabel="rank within the sector", ylabel="eigenvalue")
    axes.legend(fontsize=8)
    return figure


def _figure() -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'etude[run]'") from error
    figure = Figure(figsize=(6, 4), layout="constrained")
    return figure, figure.add_subplot()
