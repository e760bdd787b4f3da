"""Pictures of the study: the losses of both layouts against each other, and the gap by depth.

Every function returns a matplotlib figure that belongs to no window: save it with `figure.savefig(path)`.
"""

from typing import TYPE_CHECKING, Any

from etude.vision.shallow.study import _paired, depth_gap

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["plot_depth_gap", "plot_losses"]


def plot_losses(df: "pd.DataFrame") -> Any:
    """Training and validation loss of the parallel over those of the sequential layout, a point a pair, log axes.

    Args:
        df: as `read_runs` gives it.
    """
    metrics = ["train_loss", "val_loss"]
    both = _paired(df, metrics)
    figure = _figure((9, 4))
    for place, metric in enumerate(metrics, 1):
        axes = figure.add_subplot(1, 2, place)
        x, y = both[f"{metric}_sequential"], both[f"{metric}_parallel"]
        low, high = min(x.min(), y.min()), max(x.max(), y.max())
        axes.plot([low, high], [low, high], color="grey", linewidth=1, label="equal")
        axes.scatter(x, y, s=12, alpha=0.6)
        axes.set(xscale="log", yscale="log", xlabel="sequential", ylabel="parallel", title=metric.replace("_", " "))
        axes.legend(fontsize=8)
    return figure


def plot_depth_gap(df: "pd.DataFrame", metric: str = "val_accuracy") -> Any:
    """Sequential - parallel over the number of layers, with two standard errors.

    Args:
        df: as `read_runs` gives it.
        metric: a column of results.
    """
    curve = depth_gap(df, metric)
    figure = _figure((5, 4))
    axes = figure.add_subplot()
    axes.axhline(0, color="grey", linewidth=1)
    axes.errorbar(curve["num_layers"], curve["gap"], yerr=2 * curve["error"].fillna(0), fmt="o-", capsize=3)
    axes.set_xscale("log", base=2)
    axes.set(xlabel="residual layers K", ylabel=f"{metric.replace('_', ' ')}: sequential - parallel")
    return figure


def _figure(size: tuple[int, int]) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the plots need matplotlib: pip install 'etude[run]'") from error
    return Figure(figsize=size, layout="constrained")
