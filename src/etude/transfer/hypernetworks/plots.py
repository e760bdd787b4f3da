"""Pictures of a stream, of designs and of a predictive distribution.

Every function returns a matplotlib figure that belongs to no window: save it with `figure.savefig(path)`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from etude.transfer.hypernetworks.uncertainty import Predictive

__all__ = ["plot_parity", "plot_predictive", "plot_stream"]


def plot_stream(matrices: Mapping[str, Float[Tensor, "after on"]]) -> Any:
    """Accuracy on each task after each task, one square a method; tasks not met yet are left white."""
    if not matrices:
        raise ValueError("there are no accuracies to plot")
    figure = _figure(2.4 * len(matrices) + 0.6, 2.6)
    axes = figure.subplots(1, len(matrices), squeeze=False)[0]
    picture = None
    for axis, (name, matrix) in zip(axes, matrices.items()):
        met = matrix.double().tril() + (matrix.new_full(matrix.shape, float("nan")).triu(1))
        picture = axis.imshow(met.numpy(), vmin=0.5, vmax=1, cmap="viridis")
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("accuracy on task")
        axis.set_xticks(range(len(matrix)), [str(task + 1) for task in range(len(matrix))])
        axis.set_yticks(range(len(matrix)), [str(task + 1) for task in range(len(matrix))])
    axes[0].set_ylabel("after task")
    figure.colorbar(picture, ax=list(axes))
    return figure


def plot_parity(points: Mapping[str, tuple[float, float]], *, target_size: int | None = None) -> Any:
    """Accuracy over the number of trained parameters, a point a design.

    Args:
        points: name -> (parameters, accuracy).
        target_size: P, drawn as a line.
    """
    if not points:
        raise ValueError("there are no designs to plot")
    figure = _figure(4.6, 3.0)
    axis = figure.subplots()
    for name, (size, accuracy) in points.items():
        axis.semilogx(size, accuracy, "o")
        axis.annotate(name, (size, accuracy), textcoords="offset points", xytext=(4, 4), fontsize=8)
    if target_size is not None:
        axis.axvline(target_size, color="grey", linestyle="--", linewidth=1)
    axis.set_xlabel("parameters of the hypernetwork")
    axis.set_ylabel("accuracy")
    return figure


def plot_predictive(
    x: Sequence[float], predictive: Predictive, data: tuple[Sequence[float], Sequence[float]] | None = None
) -> Any:
    """Mean of the members with two deviations around it, and the data as dots."""
    figure = _figure(4.6, 3.0)
    axis = figure.subplots()
    mean, std = predictive.mean.cpu().numpy(), predictive.std.cpu().numpy()
    axis.plot(list(x), mean)
    axis.fill_between(list(x), mean - 2 * std, mean + 2 * std, alpha=0.25, linewidth=0)
    if data is not None:
        axis.plot(list(data[0]), list(data[1]), "k.", markersize=4)
    axis.set_xlabel("x")
    axis.set_ylabel("y")
    return figure


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "etude[run]"') from error
    return Figure(figsize=(width, height), layout="constrained")
