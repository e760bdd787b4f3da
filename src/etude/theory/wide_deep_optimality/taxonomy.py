"""To which classical rule infinite depth drives the network of an activation.

Radhakrishnan, Belkin & Uhler, PNAS 2023, arXiv:2204.14126. With phi scaled to E phi^2 = 1, and

    A = E phi(z) = c_0,   A' = E phi'(z) = E z phi(z) = c_1,   B' = E phi'(z)^2 = f'(1)                      (1)

the classifier that gradient descent on the square loss finds in the limit of infinite width, then depth, is

    A = 0, 0 < A'^2 < 1:   sign sum_i y_i R(<x_i, x>), R ~ |x - x_i|^-alpha, alpha = -4 log|A'| / log B'     (2)
    A = 0, A' = 0:         the label of the nearest training point
    A != 0, B' >= 1:       the majority of the training labels
    A != 0, B' < 1:        the kernel tends to a constant matrix, which has no inverse: the majority with a ridge,
                           and no limit without
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from etude.nn.dual import DualActivation, derivative_moment
from etude.nn.gaussian import hermite_expansion

__all__ = ["Rule", "Taxonomy", "classify_activation", "plot_taxonomy", "singular_order", "taxonomy_map"]

Rule = Literal["singular", "nearest", "majority", "constant", "linear"]

_ZERO = 1e-9
"""A mean this close to 0 is rounding in a formula that was meant to be centred: it would show after 60 layers."""

_PROBED = 9
"""Coefficients that the search for jumps looks at."""


@dataclass(frozen=True)
class Taxonomy:
    """What infinite depth makes of an activation, and the numbers that decide it, Eq. (1) and (2).

    Attributes:
        rule: "singular", "nearest", "majority"; "constant" where the limit exists only with a ridge (A != 0, B' < 1);
            "linear" for phi(z) = z, whose deep network is linear regression.
        A, A_prime, B_prime: of phi scaled to E phi^2 = 1.
        alpha: order of the singular kernel, None under the other rules.
        errors: bounds on the errors of A, A_prime, B_prime and, where it is defined, alpha.
    """

    rule: Rule
    A: float
    A_prime: float
    B_prime: float
    alpha: float | None
    errors: Mapping[str, float]


def singular_order(A_prime: float, B_prime: float) -> float:
    """alpha of Eq. (2).

    Raises:
        ValueError: if A' is 0 or |A'| >= 1, or B' <= 1: then there is no singular kernel.
    """
    if not 0 < abs(A_prime) < 1:
        raise ValueError(f"alpha needs 0 < |A'| < 1, got A' = {A_prime}")
    if not 1 < B_prime < math.inf:
        raise ValueError(f"alpha needs 1 < B' < inf, got B' = {B_prime}; at B' = 1 (ReLU) it is not defined")
    return -4 * math.log(abs(A_prime)) / math.log(B_prime)


def classify_activation(
    phi: Callable[[Tensor], Tensor] | Float[Tensor, "terms"] | DualActivation, *, tol: float = 1e-12
) -> Taxonomy:
    """The rule of an activation, Eq. (2).

        classify_activation(torch.nn.GELU()).rule                       # "majority"
        classify_activation(Standardized(torch.nn.GELU())).alpha        # 2.6: centred, its kernel is singular
        classify_activation(torch.tensor([0.0, 0.6, 0.0, 0.8])).alpha   # 0.6 h_1 + 0.8 h_3

    Args:
        phi: elementwise function or module of any scale, its normalised Hermite coefficients, or its dual.
        tol: error of each expectation relative to its size, at least 1e-14.

    Raises:
        ValueError: if the variance of phi is infinite or zero, phi has a jump (then B' is infinite and the NTK does not
            exist), or `tol` is not reachable.
    """
    if isinstance(phi, DualActivation):
        return _taxonomy(math.sqrt(phi.q0), math.sqrt(phi.q1), phi.slope, (1e-15, 1e-15, 1e-15 * phi.slope))
    coefficients = phi if isinstance(phi, Tensor) else getattr(phi, "coefficients", None)
    if isinstance(coefficients, Tensor):
        c = coefficients.detach().to(torch.float64)
        norm = float(c.square().sum())
        if not 0 < norm < math.inf or c.ndim != 1:
            raise ValueError(f"coefficients must be finite, not all zero and of shape (terms,), got {c}")
        slope = float((torch.arange(len(c)) * c.square()).sum()) / norm
        first, second = float(c[0]) / math.sqrt(norm), (float(c[1]) / math.sqrt(norm) if len(c) > 1 else 0.0)
        return _taxonomy(first, second, slope, (1e-15, 1e-15, 1e-15 * slope))
    if not callable(phi):
        raise TypeError(f"phi must be a function, Hermite coefficients or a dual, got {type(phi).__name__}")
    expansion = hermite_expansion(phi, _PROBED, tol=tol)
    second_moment, its_error = (float(part) for part in expansion.second_moment)
    if second_moment <= 0:
        raise ValueError("the activation is zero almost everywhere: E phi^2 = 0")
    slope, slope_error = derivative_moment(phi, expansion.coefficients)
    if math.isinf(slope):
        raise ValueError("the activation has a jump: E phi'^2 is infinite, and the NTK does not exist")
    scale, relative = math.sqrt(second_moment), its_error / second_moment
    (mean, first), (mean_error, first_error) = expansion.coefficients[:2].tolist(), expansion.errors[:2].tolist()
    errors = (
        mean_error / scale + abs(mean) / scale * relative,
        first_error / scale + abs(first) / scale * relative,
        slope_error / second_moment + slope / second_moment * relative,
    )
    return _taxonomy(mean / scale, first / scale, slope / second_moment, errors)


def _taxonomy(mean: float, first: float, slope: float, errors: tuple[float, float, float]) -> Taxonomy:
    bounds = dict(zip(("A", "A_prime", "B_prime"), errors))
    alpha = None
    rule: Rule
    if abs(mean) > max(_ZERO, 2 * errors[0]):
        # B' = 1 belongs to the majority (ReLU): within its error it counts as 1.
        rule = "majority" if slope >= 1 - max(_ZERO, 2 * errors[2]) else "constant"
    elif abs(first) <= max(_ZERO, 2 * errors[1]):
        rule = "nearest"
    elif first**2 >= 1 - _ZERO:
        rule = "linear"
    else:
        rule = "singular"
        alpha = singular_order(first, slope)
        bounds["alpha"] = 4 * errors[1] / (abs(first) * math.log(slope)) + alpha * errors[2] / (slope * math.log(slope))
    return Taxonomy(rule, mean, first, slope, alpha, bounds)


def taxonomy_map(activations: Mapping[str, Any], *, tol: float = 1e-12) -> dict[str, Taxonomy]:
    """The taxonomy of each named activation; an error names the activation.

    Raises:
        ValueError: as for `classify_activation`.
    """
    found = {}
    for name, phi in activations.items():
        try:
            found[name] = classify_activation(phi, tol=tol)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return found


def plot_taxonomy(taxonomies: Mapping[str, Taxonomy], *, orders: tuple[float, ...] = (1, 2, 3, 5, 10)) -> Any:
    """The activations in the plane of A'^2 and B', with the curves on which centred ones have the given orders.

    A filled mark is a singular kernel, with its alpha; hollow marks are other rules, each with its own shape.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "etude[run]"') from error
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.add_subplot()
    top = 1.3 * max([2.0, *(taxonomy.B_prime for taxonomy in taxonomies.values())])
    x = torch.linspace(0.002, 0.998, 400, dtype=torch.float64)
    for order in orders:
        # Of Eq. (2): B' = A'^(-4 / alpha).
        y = x ** (-2 / order)
        axes.plot(x.tolist(), y.tolist(), color="0.75", linewidth=0.8, zorder=0)
        inside = y < top
        if bool(inside.any()):
            place = int(inside.int().argmax())
            axes.annotate(f"{order:g}", (float(x[place]), min(float(y[place]), top)), color="0.5", fontsize=8)
    marks = {"singular": "o", "nearest": "s", "majority": "^", "constant": "v", "linear": "D"}
    seen = set()
    for name, taxonomy in taxonomies.items():
        label = taxonomy.rule if taxonomy.rule not in seen else None
        seen.add(taxonomy.rule)
        at = (taxonomy.A_prime**2, taxonomy.B_prime)
        filled = "tab:blue" if taxonomy.rule == "singular" else "none"
        axes.scatter(*at, marker=marks[taxonomy.rule], facecolors=filled, edgecolors="tab:blue", label=label)
        suffix = "" if taxonomy.alpha is None else f" ({taxonomy.alpha:.2f})"
        axes.annotate(f"{name}{suffix}", at, textcoords="offset points", xytext=(5, 4), fontsize=8)
    axes.set(xlim=(-0.02, 1.05), ylim=(0, top), xlabel="$A'^2$", ylabel="$B'$", title="What infinite depth leads to")
    if seen:
        axes.legend(frameon=False)
    return figure
