"""Pictures: the top columns by every technique, fidelity against k, the contributions to one answer."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from etude.science.blackbox_rules.local import LocalExplanation
from etude.science.blackbox_rules.ranking import Importances, ranks

__all__ = ["plot_contributions", "plot_fidelity_curve", "plot_importances"]


def _axes(width: float, height: float) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "etude[run]"') from error
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def plot_importances(importances: Importances, names: Sequence[str] | np.ndarray | None = None, k: int = 20) -> Any:
    """The rank of the top k columns of the merged ranking under each technique: one row a column, 1 the best.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    top = importances.merged()[:k]
    table = np.stack([ranks(values)[top] for values in importances.scores.values()], axis=1)
    figure, axis = _axes(1.8 + 0.8 * table.shape[1], 1.4 + 0.22 * len(top))
    shade = axis.imshow(np.log10(table), aspect="auto", cmap="viridis_r")
    axis.set_xticks(range(table.shape[1]), list(importances.scores), rotation=40, ha="right", fontsize=7)
    axis.set_yticks(range(len(top)), [f"x{j}" if names is None else str(names[j]) for j in top], fontsize=7)
    figure.colorbar(shade, ax=axis, label="log10 rank")
    return figure


def plot_fidelity_curve(curves: Mapping[str, Mapping[int, float]], chosen: int | None = None) -> Any:
    """Agreement with the black box against the number of columns, a line for each choice of columns.

    Args:
        curves: name -> {k: agreement}. chosen: k that is marked.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    figure, axis = _axes(4.4, 3.0)
    for name, curve in curves.items():
        axis.plot(list(curve), list(curve.values()), marker="o", label=name)
    if chosen is not None:
        axis.axvline(chosen, color="grey", linestyle=":")
    axis.set(xscale="log", xlabel="columns k", ylabel="agreement with the black box")
    axis.legend(fontsize=8)
    return figure


def plot_contributions(explanation: LocalExplanation, shown: int = 12) -> Any:
    """The largest contributions to the answer for one row, as bars.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    named = list(explanation.contributions.items())[:shown][::-1]
    figure, axis = _axes(4.6, 0.8 + 0.28 * len(named))
    values = [value for _, value in named]
    axis.barh(range(len(named)), values, color=["tab:red" if value < 0 else "tab:blue" for value in values])
    axis.set_yticks(range(len(named)), [name for name, _ in named], fontsize=8)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_xlabel(f"contribution to {explanation.label}, base {explanation.base:.2f}")
    return figure
