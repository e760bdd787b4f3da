"""Pictures of the theory: where an activation is critical, how its statistics flow, what an ensemble says.

Each function returns a `matplotlib.figure.Figure`; matplotlib comes with `pip install "etude[run]"`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from etude.theory.pdlt.activations import Activation
from etude.theory.pdlt.criticality import NoCriticalPoint, critical_init, susceptibilities
from etude.theory.pdlt.ensemble import EnsembleMoments
from etude.theory.pdlt.flow import QUANTITIES, FlowTable
from etude.theory.pdlt.kernels import KernelLayers
from etude.theory.pdlt.networks import LearningRates, ntk_contributions

__all__ = ["plot_aspect_ratio", "plot_contributions", "plot_correlations", "plot_flow", "plot_susceptibilities"]


def _figure(width: float | int, height: float | int) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "etude[run]"') from error
    return Figure(figsize=(width, height), layout="constrained")


def plot_susceptibilities(
    activations: Mapping[str, Activation | Callable[[Tensor], Tensor]], *, low: float = 1e-2, high: float = 1e2
) -> Any:
    """chi_par / C_W and chi_perp / C_W over the variance K: critical is where both meet at 1 / C_W, marked."""
    figure = _figure(6.4, 4.4)
    axes = figure.add_subplot()
    K = torch.logspace(math.log10(low), math.log10(high), 81, dtype=torch.float64)
    for name, activation in activations.items():
        chi = susceptibilities(activation, 1.0, K)
        (line,) = axes.semilogx(K.tolist(), chi.perp.tolist(), label=name)
        axes.semilogx(K.tolist(), chi.par.tolist(), color=line.get_color(), linestyle="--")
        try:
            point = critical_init(activation)
        except NoCriticalPoint:
            continue
        if point.K_star > 0:
            axes.plot(point.K_star, 1 / point.C_W, "o", color=line.get_color())
    axes.set(
        xlabel="$K$", ylabel=r"$\chi_\perp / C_W$ (line), $\chi_\parallel / C_W$ (dashed)", title="Susceptibilities"
    )
    axes.legend(frameon=False)
    return figure


def plot_flow(table: FlowTable, ensemble: EnsembleMoments | None = None, *, width: int | None = None) -> Any:
    """Every quantity of a flow over depth; with an ensemble, its estimates and two standard errors beside it.

    Args:
        table: of one input.
        ensemble: of the same network.
        width: for the sums that an ensemble measures, K + G1 / n and Theta + T1 / n; the ensemble's own if None.
    """
    figure = _figure(9, 7)
    layers = list(range(1, table.depth + 1))
    panels = figure.subplots(3, 3, sharex=True).flatten()
    shift = {"K": "G1", "Theta": "T1"}
    n = width if width is not None else (ensemble.widths[0] if ensemble is not None else None)
    for axes, name in zip(panels, QUANTITIES):
        values = table.values[name]
        if n is not None and name in shift:
            values = values + table.values[shift[name]] / n
        axes.plot(layers, values.tolist(), label="to first order")
        if ensemble is not None and name in ensemble.values:
            value, error = ensemble[name]
            axes.errorbar(
                layers[: len(value)], value.tolist(), yerr=(2 * error).tolist(), fmt="o", markersize=3, capsize=2,
                label=f"{ensemble.num_networks:,} networks",
            )  # fmt: skip
        axes.set_title(f"{name} + {shift[name]} / n" if n is not None and name in shift else name)
    for axes in panels[6:]:
        axes.set_xlabel("layer")
    panels[1].legend(frameon=False)
    return figure


def plot_correlations(kernels: Mapping[str, KernelLayers], *, pair: tuple[int, int] = (0, 1)) -> Any:
    """The correlation of two inputs over depth, for one or several recursions."""
    figure = _figure(6, 4)
    axes = figure.add_subplot()
    i, j = pair
    for name, layers in kernels.items():
        K = layers.value
        rho = K[:, i, j] / (K[:, i, i] * K[:, j, j]).sqrt()
        axes.plot(range(1, len(rho) + 1), rho.tolist(), marker="o", markersize=3, label=name)
    axes.set(xlabel="layer", ylabel=f"correlation of inputs {i} and {j}", title="What depth does to a pair")
    axes.legend(frameon=False)
    return figure


def plot_aspect_ratio(ensembles: Mapping[str, EnsembleMoments], nu: float | int) -> Any:
    """Var(Khat) / K^2 of ensembles over depth / width, beside nu L / n.

    Args:
        ensembles: by name; equal widths within each.
        nu: of the activation.
    """
    figure = _figure(6, 4)
    axes = figure.add_subplot()
    ratios = []
    for name, ensemble in ensembles.items():
        value, error = ensemble["Khat"]
        ratio = [layer / ensemble.widths[0] for layer in range(1, len(value))]
        ratios += ratio
        axes.errorbar(
            ratio, value[1:].tolist(), yerr=(2 * error[1:]).tolist(), fmt="o", markersize=3, capsize=2, label=name
        )
    line = sorted(ratios)
    axes.plot(line, [nu * r for r in line], color="0.5", label=f"{nu:.3g} L / n")
    axes.set(xscale="log", yscale="log", xlabel="hidden layers / width", ylabel="Var(kernel) / K²")
    axes.legend(frameon=False)
    return figure


def plot_contributions(
    activation: Activation | Callable[[Tensor], Tensor], K1: float | int, rates: Sequence[tuple[str, LearningRates]]
) -> Any:
    """What each layer adds to the NTK of the last at criticality, for one or several choices of learning rates."""
    figure = _figure(6, 4)
    axes = figure.add_subplot()
    point = critical_init(activation)
    for name, chosen in rates:
        parts = ntk_contributions(activation, point.C_b, point.C_W, K1, chosen).sum(1)
        axes.plot(range(1, len(parts) + 1), parts.tolist(), marker="o", markersize=3, label=name)
    axes.set(xlabel="layer", ylabel="part of the NTK", yscale="log", title="Equivalence of layers")
    axes.legend(frameon=False)
    return figure
