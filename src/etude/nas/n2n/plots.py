"""Pictures of a search: rewards over the policy's updates, and accuracy beside size."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from etude.nas.n2n.search import Tried

__all__ = ["plot_rewards", "plot_trade_off"]

Histories = Mapping[str, Sequence[Tried]]


def plot_rewards(histories: Histories, ax: Any = None) -> Any:
    """Mean reward of each update's students, one line a search; dots are students.

    Args:
        histories: name -> students tried, such as `Student.history`.
        ax: matplotlib axes; new ones if None.

    Returns:
        The axes.
    """
    ax = _axes(histories, ax, "updates of the policy", "reward")
    for name, history in histories.items():
        steps = np.array([tried.step for tried in history])
        rewards = np.array([tried.reward for tried in history])
        known = np.unique(steps)
        (line,) = ax.plot(known, [rewards[steps == step].mean() for step in known], label=name)
        ax.scatter(steps, rewards, s=6, color=line.get_color(), alpha=0.3, linewidths=0)
    ax.legend()
    return ax


def plot_trade_off(histories: Histories, ax: Any = None, *, teacher: tuple[int, float] | None = None) -> Any:
    """Validation accuracy of the valid students over their parameters, on a logarithmic axis.

    Args:
        histories: name -> students tried.
        ax: matplotlib axes; new ones if None.
        teacher: its parameters and accuracy, drawn as a star.

    Returns:
        The axes.
    """
    ax = _axes(histories, ax, "parameters", "validation accuracy")
    for name, history in histories.items():
        valid = [(tried.params, tried.accuracy) for tried in history if tried.accuracy is not None]
        ax.scatter(*(zip(*valid) if valid else ((), ())), s=10, alpha=0.6, label=name, linewidths=0)
    if teacher is not None:
        ax.scatter(*teacher, marker="*", s=90, color="black", label="teacher")
    ax.set_xscale("log")
    ax.legend()
    return ax


def _axes(histories: Histories, ax: Any, xlabel: str, ylabel: str) -> Any:
    if not histories or not all(histories.values()):
        raise ValueError(f"histories must hold at least one student of each search, got {list(histories)}")
    if ax is None:
        from matplotlib.figure import Figure

        ax = Figure(figsize=(5, 3.5), layout="constrained").subplots()
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    return ax
