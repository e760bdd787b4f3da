"""The paper's two pictures: the best score so far, and the share of networks above each threshold."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from etude.nas.deeparchitect.running import SearchResult

__all__ = ["plot_best_so_far", "plot_fraction_above"]

Results = Mapping[str, Sequence[SearchResult]]


def plot_best_so_far(results: Results, ax: Any = None) -> Any:
    """Highest score after k networks, the mean over runs with its standard error, one line a searcher.

    Args:
        results: searcher's name -> its runs, of equal lengths.
        ax: matplotlib axes; new ones if None.

    Returns:
        The axes.
    """
    return _lines(
        {name: [run.best_so_far() for run in runs] for name, runs in results.items()},
        None, ax, "networks evaluated", "best score so far",
    )  # fmt: skip


def plot_fraction_above(results: Results, thresholds: Sequence[float] | None = None, ax: Any = None) -> Any:
    """Fraction of the networks tried that score above each threshold, the mean over runs with its standard error.

    Args:
        results: searcher's name -> its runs.
        thresholds: 0, 0.02, ..., 1 if None.
        ax: matplotlib axes; new ones if None.

    Returns:
        The axes.
    """
    grid = np.linspace(0, 1, 51) if thresholds is None else np.asarray(thresholds, dtype=float)
    return _lines(
        {name: [run.fraction_above(grid) for run in runs] for name, runs in results.items()},
        grid, ax, "threshold", "fraction of networks above it",
    )  # fmt: skip


def _lines(curves: Mapping[str, list[np.ndarray]], x: np.ndarray | None, ax: Any, xlabel: str, ylabel: str) -> Any:
    if not curves or not all(curves.values()):
        raise ValueError(f"results must hold at least one run of each searcher, got {list(curves)}")
    if ax is None:
        from matplotlib.figure import Figure

        ax = Figure(figsize=(5, 3.5), layout="constrained").subplots()
    for name, runs in curves.items():
        lengths = {len(run) for run in runs}
        if len(lengths) > 1:
            raise ValueError(f"the runs of {name} differ in length: {sorted(lengths)}")
        stacked = np.stack(runs)
        steps = np.arange(1, stacked.shape[1] + 1) if x is None else x
        mean = stacked.mean(axis=0)
        (line,) = ax.plot(steps, mean, label=name)
        if len(stacked) > 1:
            error = stacked.std(axis=0, ddof=1) / np.sqrt(len(stacked))
            ax.fill_between(steps, mean - error, mean + error, color=line.get_color(), alpha=0.2, linewidth=0)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.legend()
    return ax
