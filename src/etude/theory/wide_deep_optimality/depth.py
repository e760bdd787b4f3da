"""How deep is deep enough: the agreement of finite networks with the three rules, on the user's own data.

Radhakrishnan, Belkin & Uhler, PNAS 2023, arXiv:2204.14126, is about the limit. Before it, the kernel of a network with
a singular limit has a part of weight 1 / L that is more singular than R by two orders, so that the network first
behaves like the nearest neighbour: for n points in d dimensions until L is well above n^(2/d).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from etude.nn.dual import DualActivation, dual_activation
from etude.theory.wide_deep_optimality.estimators import DeepNTKClassifier, SingularKernelClassifier
from etude.theory.wide_deep_optimality.taxonomy import Taxonomy, classify_activation

__all__ = ["DepthProfile", "depth_profile", "plot_depth_profile"]

RULES = ("nearest", "majority", "singular")


@dataclass(frozen=True)
class DepthProfile:
    """Shares of test points on which a network and a rule agree.

    Attributes:
        depths: numbers of hidden layers; infinity last, if it was asked for.
        agreement: rule -> one share a depth; NaN at a depth whose kernel matrix cannot be inverted in double precision.
        errors: rule -> one standard error a share, sqrt(p (1 - p) / n) of n test points.
        taxonomy: of the activation; its rule is the one that agreement should approach.
        alpha: order of the singular rule compared with: the activation's own, or the data's dimension.
    """

    depths: tuple[float, ...]
    agreement: dict[str, list[float]]
    errors: dict[str, list[float]]
    taxonomy: Taxonomy
    alpha: float


def depth_profile(
    activation: Callable[[Tensor], Tensor] | Tensor | DualActivation,
    depths: Sequence[int | float],
    X: Any,
    y: Any,
    X_test: Any,
    *,
    ridge: float = 0.0,
) -> DepthProfile:
    """Trains an infinitely wide network at each depth, and counts on which test points it does as a rule does.

        plot_depth_profile(depth_profile(torch.relu, [3, 30, 300, 3000, math.inf], X, y, X_test))

    Args:
        activation: as for `DeepNTKClassifier`.
        depths: numbers of hidden layers, and `math.inf`.
        X, y: training points on the orthant of the sphere, and their labels.
        X_test: test points; labels are not needed.
        ridge: as for `DeepNTKClassifier`.

    Raises:
        ValueError: as for `DeepNTKClassifier`, except that a kernel matrix which is not positive definite gives NaN.
    """
    if not len(depths):
        raise ValueError("depths must name at least one depth")
    dual = activation if isinstance(activation, DualActivation) else dual_activation(activation)
    taxonomy = classify_activation(dual)
    alpha = taxonomy.alpha or float(np.shape(X)[1] - 1)
    nearest = DeepNTKClassifier(dual_activation(_third_order()), ties="first")
    rules = {"nearest": nearest, "singular": SingularKernelClassifier(alpha, ties="first")}
    predictions = {name: rule.fit(X, y).predict(X_test) for name, rule in rules.items()}
    labels, counts = np.unique(np.asarray(y), return_counts=True)
    predictions["majority"] = np.full(len(predictions["nearest"]), labels[counts.argmax()])
    ordered = tuple(sorted(float(depth) for depth in depths))
    agreement: dict[str, list[float]] = {rule: [] for rule in RULES}
    for depth in ordered:
        network = DeepNTKClassifier(dual, depth if math.isinf(depth) else int(depth), ridge=ridge, ties="first")
        try:
            found = network.fit(X, y).predict(X_test)
        except ValueError as error:
            if "not positive definite" not in str(error):
                raise
            found = None
        for rule in RULES:
            agreement[rule].append(math.nan if found is None else float((found == predictions[rule]).mean()))
    n = len(predictions["majority"])
    errors = {rule: [math.sqrt(p * (1 - p) / n) for p in shares] for rule, shares in agreement.items()}
    return DepthProfile(ordered, agreement, errors, taxonomy, alpha)


def plot_depth_profile(profile: DepthProfile) -> Any:
    """Agreement over depth, with two standard errors; infinite depth as the marks on the right.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "etude[run]"') from error
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    finite = [max(depth, 0.5) for depth in profile.depths if math.isfinite(depth)]
    right = 4 * max(finite, default=1.0)
    for rule in RULES:
        shares, errors = profile.agreement[rule], [2 * error for error in profile.errors[rule]]
        label = f"{rule} ({profile.alpha:.3g})" if rule == "singular" else rule
        n = len(finite)
        line = axes.errorbar(finite, shares[:n], yerr=errors[:n], marker="o", markersize=3, capsize=2, label=label)
        axes.errorbar([right] * len(shares[n:]), shares[n:], yerr=errors[n:], marker="D", color=line[0].get_color())
    axes.set(xscale="log", xlabel="hidden layers (diamonds: infinitely many)", ylabel="agreement with the rule")
    axes.set_title(f"expected: {profile.taxonomy.rule}")
    axes.legend(frameon=False)
    return figure


def _third_order() -> Tensor:
    """Coefficients of (h_2 + h_3) / sqrt(2), whose limit is the nearest neighbour."""
    return torch.tensor([0.0, 0.0, 0.5, 0.5], dtype=torch.float64).sqrt()
