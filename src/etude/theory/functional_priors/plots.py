"""Pictures: functions of two priors side by side, the course of a match, a prediction with its uncertainty."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from etude.nn.gaussian import Estimate
from etude.theory.functional_priors.wasserstein import MatchHistory

__all__ = ["plot_covariance", "plot_functions", "plot_match", "plot_predictive"]


def _axes(columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "etude[run]"') from error
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def plot_functions(x: Tensor, priors: Mapping[str, Tensor], shown: int = 8) -> Any:
    """Functions of several priors over one input: some draws, the mean and two standard deviations.

        plot_functions(x, {"GP": gp.sample_functions(x, 200), "GPi-G": prior.sample_functions(x, 200)})

    Args:
        x: (points,) or (points, 1).
        priors: title -> (n, points, 1).
        shown: draws in each panel.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    figure, axes = _axes(len(priors), (3.2 * len(priors), 2.8))
    place = x.flatten().tolist()
    for axis, (title, functions) in zip(axes, priors.items()):
        f = functions.detach().squeeze(-1).double()
        mean, std = f.mean(0), f.std(0)
        axis.plot(place, f[:shown].T.numpy(), linewidth=0.8)
        axis.plot(place, mean.tolist(), color="black")
        axis.fill_between(place, (mean - 2 * std).tolist(), (mean + 2 * std).tolist(), color="grey", alpha=0.25)
        axis.set(title=title, xlabel="x")
    limit = max(abs(value) for value in axes[0].get_ylim())
    for axis in axes:
        axis.set_ylim(-1.5 * limit, 1.5 * limit)
    return figure


def plot_match(history: MatchHistory) -> Any:
    """The distance over the outer steps, and the standard deviations of a Gaussian prior.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    figure, axes = _axes(2 if history.stds else 1, (7.0 if history.stds else 3.6, 2.8))
    steps = range(1, len(history.distance) + 1)
    axes[0].plot(steps, history.distance)
    axes[0].axhline(0, color="grey", linewidth=0.8)
    axes[0].set(xlabel="outer step", ylabel="1-Wasserstein distance", title=f"process' length {history.scale:.3g}")
    if history.stds:
        for name, values in history.stds.items():
            axes[1].plot(steps, values, label=name)
        axes[1].set(xlabel="outer step", ylabel="standard deviation")
        axes[1].legend(frameon=False, fontsize=7)
    return figure


def plot_covariance(x: Tensor, covariances: Mapping[str, Estimate | Tensor], at: int | None = None) -> Any:
    """Covariances of several priors with the function at one point, with two standard errors where they are sampled.

        plot_covariance(x, {"GP": gp.covariance(x), "network": prior_covariance(prior, x), "wide": nngp_kernel(x, 3)})

    Args:
        x: (points,) or (points, 1).
        covariances: title -> (points, points), or an `Estimate` of it.
        at: row of the point; the one in the middle if None.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    figure, (axis,) = _axes(1, (4.5, 3.0))
    place = x.flatten().tolist()
    row = len(place) // 2 if at is None else at
    for title, covariance in covariances.items():
        value, error = covariance if isinstance(covariance, tuple) else (covariance, torch.zeros_like(covariance))
        axis.errorbar(place, value[row].tolist(), yerr=(2 * error[row]).tolist(), label=title, elinewidth=0.6)
    axis.set(xlabel="x", ylabel=f"covariance with x = {place[row]:.3g}")
    axis.legend(frameon=False)
    return figure


def plot_predictive(
    x: Tensor, mean: Tensor, std: Tensor, data: tuple[Tensor, Tensor] | None = None, truth: Tensor | None = None
) -> Any:
    """A prediction over one input with one and two standard deviations, the observations and the true function.

    Args:
        x, mean, std: (points,). data: observed x and y. truth: the function at `x`.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    figure, (axis,) = _axes(1, (4.5, 3.0))
    order = torch.argsort(x.flatten())
    place, centre, spread = (value.detach().flatten()[order] for value in (x, mean, std))
    for times in (1, 2):
        low, high = (centre - times * spread).tolist(), (centre + times * spread).tolist()
        axis.fill_between(place.tolist(), low, high, color="C0", alpha=0.2)
    axis.plot(place.tolist(), centre.tolist(), color="C0", label="mean")
    if truth is not None:
        axis.plot(place.tolist(), truth.flatten()[order].tolist(), color="black", linestyle="--", label="truth")
    if data is not None:
        axis.plot(data[0].flatten().tolist(), data[1].flatten().tolist(), "k.", label="data")
    axis.set(xlabel="x", ylabel="y")
    axis.legend(frameon=False)
    return figure
