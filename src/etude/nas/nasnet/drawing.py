"""Pictures: a cell as a graph, and the mean reward of the best cells found so far."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from etude.nas.nasnet.genotype import Genotype
from etude.nas.nasnet.searching import SearchResult

__all__ = ["plot_cell", "plot_genotype", "plot_search"]


def _axes(ax: Any, size: tuple[float | int, float | int]) -> Any:
    if ax is not None:
        return ax
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained").subplots()


def _levels(reads: Sequence[tuple[int, int]]) -> list[int]:
    levels = [0, 0]
    for pair in reads:
        levels.append(1 + max(levels[state] for state in pair))
    return levels


def plot_cell(genotype: Genotype, *, reduction: bool = False, ax: Any = None) -> Any:
    """A cell from bottom to top, as in figure 4: states, the operations on the way into each block, what is joined.

    Args:
        genotype: of which the normal or the reduction cell is drawn.
        reduction: which.
        ax: matplotlib axes; new ones if None.

    Returns:
        The axes.
    """
    ax = _axes(ax, (7, 5))
    blocks, concat = genotype.cell(reduction)
    levels = _levels([(block.first, block.second) for block in blocks])
    top = max(levels) + 1
    places: dict[int, tuple[float, float]] = {}
    for level in range(top):
        states = [state for state, own in enumerate(levels) if own == level]
        for index, state in enumerate(states):
            places[state] = ((index + 0.5) / len(states) + 0.04 * (level % 2), float(level))
    names = ["h", "h_prev"] + [block.combine for block in blocks]
    box = {"boxstyle": "round", "linewidth": 0.8}
    for state, (x, y) in places.items():
        colour = "#d9e6f5" if state < 2 else "#f5e9c8"
        ax.text(x, y, names[state], ha="center", va="center", zorder=3, fontsize=8, bbox={**box, "facecolor": colour})
    ax.text(0.5, top, "output", ha="center", va="center", zorder=3, fontsize=8, bbox={**box, "facecolor": "#d8efd8"})
    for number, block in enumerate(blocks, start=2):
        x, y = places[number]
        for side, (state, op) in zip((-1, 1), block.arms):
            a, b = places[state]
            ax.annotate(
                "", (x + 0.02 * side, y - 0.12), (a + 0.02 * side, b + 0.12), zorder=1,
                arrowprops={"arrowstyle": "->", "color": "0.4", "linewidth": 0.8},
            )  # fmt: skip
            label = op.replace("_", " ")
            ax.text(
                x + 0.045 * side, y - 0.32, label, ha="right" if side < 0 else "left", va="center", fontsize=6, zorder=2
            )
    for state in concat:
        x, y = places[state]
        ax.plot([x, 0.5], [y + 0.12, top - 0.12], color="0.75", linestyle=":", linewidth=0.8, zorder=0)
    ax.set_xlim(-0.05, 1.09)
    ax.set_ylim(-0.3, top + 0.3)
    ax.set_axis_off()
    ax.set_title("reduction cell" if reduction else "normal cell", fontsize=9)
    return ax


def plot_genotype(genotype: Genotype) -> Any:
    """Both cells side by side; the matplotlib figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    for reduction, ax in enumerate(figure.subplots(1, 2)):
        plot_cell(genotype, reduction=bool(reduction), ax=ax)
    return figure


def plot_search(results: Mapping[str, SearchResult], k: int = 25, ax: Any = None) -> Any:
    """Mean reward of the `k` best distinct pairs of cells after 1, 2, ... children, one line a search: figure 6.

    Raises:
        ValueError: if there are no results.
    """
    if not results:
        raise ValueError("there are no results to plot")
    ax = _axes(ax, (5, 3.5))
    for name, result in results.items():
        means = result.top_mean(k)
        ax.plot(np.arange(1, len(means) + 1), means, label=name)
    ax.set_xlabel("children evaluated")
    ax.set_ylabel(f"mean reward of the best {k}")
    ax.legend()
    return ax
