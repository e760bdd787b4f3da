"""Criticality: the initialisation at which signals and gradients neither explode nor vanish, computed from sigma.

Roberts, Yaida & Hanin, "The Principles of Deep Learning Theory", arXiv:2106.10165, chapter 5. At a fixed point K* of
K+ = C_b + C_W g(K), a small change of a signal's size grows by chi_par a layer, one of its direction by chi_perp:

    chi_par(K) = C_W g'(K),  chi_perp(K) = C_W h(K);   critical:  chi_par(K*) = chi_perp(K*) = 1             (1)

Activations fall into classes by how they meet Eq. (1), with A_2 = (a+^2 + a-^2) / 2 of the slopes right and left of 0:

    "scale-invariant"  sigma(c z) = c sigma(z), c > 0:        C_b = 0, C_W = 1 / A_2, any K is a fixed point  (2)
    "K*=0"             sigma(0) = 0, and K falls towards 0:    C_b = 0, C_W = 1 / A_2                          (3)
    "half-stable"      g'(K*) = h(K*) at some K* > 0:          C_W = 1 / h(K*), C_b = K* - C_W g(K*) >= 0      (4)

and the rest have no critical point. For smooth sigma with derivatives s1, s2, s3 at 0, class (3) means that
a1 = s3 / s1 + (3/4) (s2 / s1)^2 < 0; then K_l -> 1 / (|a1| l), and chi_perp = 1 - p_perp / l with
p_perp = b1 / a1, b1 = s3 / s1 + (s2 / s1)^2.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from scipy.optimize import brentq
from torch import Tensor

from etude.theory.pdlt.activations import Activation, as_activation
from etude.theory.pdlt.bounded import Bounded
from etude.theory.pdlt.flow import check_variances
from etude.theory.pdlt.moments import checked_variances, moments

__all__ = [
    "CorrelationLength",
    "Criticality",
    "NoCriticalPoint",
    "Susceptibilities",
    "UniversalityClass",
    "classify",
    "correlation_length",
    "critical_init",
    "susceptibilities",
]

UniversalityClass = Literal["scale-invariant", "K*=0", "half-stable"]

_LADDER = (1e-6, 1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
"""Small variances at which K+ / K is compared with 1, from the smallest at which the difference can be told."""

_SEARCHED = (-3.0, 4.0, 85)
"""Powers of ten between which K* is looked for, and the number of points."""


class NoCriticalPoint(ValueError):
    """The activation has no critical initialisation."""


@dataclass(frozen=True)
class Criticality:
    """The critical initialisation of an activation.

    Attributes:
        C_b, C_W: variance of a bias, and of a weight times its fan-in.
        K_star: the fixed point of the kernel: 0, positive, or NaN where every kernel is one (scale-invariant).
        cls: the universality class.
        nu: V / K^2 grows by this a layer: the fluctuations of a network of depth L and width n are nu L / n.
        p_perp: chi_perp = 1 - p_perp / l at layer l; 0 except in the class "K*=0".
        a1: of the class "K*=0" with a smooth activation, K_l -> 1 / (|a1| l); NaN elsewhere.
        errors: bounds on the numerical error of C_b, C_W, K_star and nu.
    """

    C_b: float
    C_W: float
    K_star: float
    cls: UniversalityClass
    nu: float
    p_perp: float = 0.0
    a1: float = math.nan
    errors: dict[str, float] = field(default_factory=dict)


class CorrelationLength(NamedTuple):
    """xi of exp(-+ l / xi).

    Attributes:
        length, error: in layers, with a bound on its numerical error; infinite where chi_perp is 1 within its error.
        chi_perp: the factor by which squared gradients grow a layer, towards the input: below 1 they vanish.
        K: the kernel at which it was taken.
    """

    length: float
    error: float
    chi_perp: float
    K: float


@dataclass(frozen=True, eq=False)
class Susceptibilities:
    """chi_par and chi_perp at variances K, and bounds on their errors; shapes are those of K."""

    K: Tensor
    par: Tensor
    perp: Tensor
    par_error: Tensor
    perp_error: Tensor


def critical_init(activation: Activation | Callable[[Tensor], Tensor]) -> Criticality:
    """The variances at which a deep network of this activation is critical, Eqs. (1) to (4).

        critical_init(torch.nn.GELU())     # C_W = 1.98305826, C_b = 0.17292239, K* = 3.5615528, half-stable

    Args:
        activation: elementwise function or module, or an `Activation`.

    Raises:
        NoCriticalPoint: if there is none (sigmoid, softplus); the message says which condition fails.
        ValueError: if the activation jumps or is not finite, or a Gaussian average of it diverges.
    """
    act = as_activation(activation)
    act.require_slope()
    slopes = act.homogeneous_slopes()
    if slopes is not None:
        return _scale_invariant(*slopes)
    sigma_zero = float(act(torch.zeros(1, dtype=torch.float64)))
    unstable = ""
    if abs(sigma_zero) <= 1e-12:
        found = _at_zero(act)
        if isinstance(found, Criticality):
            return found
        unstable = found
    else:
        unstable = f"sigma(0) = {sigma_zero:.4g} is not 0, so that K = 0 needs C_b = -{sigma_zero**2:.3g} C_W < 0"
    return _half_stable(act, unstable)


def classify(activation: Activation | Callable[[Tensor], Tensor]) -> UniversalityClass:
    """The universality class of an activation: what `critical_init` finds, and raises."""
    return critical_init(activation).cls


def susceptibilities(
    activation: Activation | Callable[[Tensor], Tensor], C_W: float | int, K: float | int | Float[Tensor, "*batch"]
) -> Susceptibilities:
    """chi_par and chi_perp, Eq. (1), at any variances.

    Raises:
        ValueError: if C_W or a variance is not positive, or an average diverges.
    """
    check_variances(0.0, C_W)
    m = moments(activation, K, columns=[("s2", 1), ("d2", 0)])
    par, perp = (float(C_W) * m[key] for key in (("s2", 1), ("d2", 0)))
    return Susceptibilities(m.K, par.value, perp.value, par.error, perp.error)


def correlation_length(
    activation: Activation | Callable[[Tensor], Tensor], C_b: float | int, C_W: float | int, K1: float | int = 1.0
) -> CorrelationLength:
    """Layers over which gradients change by a factor e, off criticality: 1 / |log chi_perp| where K has settled.

        correlation_length(torch.relu, 0.0, 1.0).length       # 1.44 layers: half the critical C_W

    Args:
        activation, C_b, C_W: of the network.
        K1: the kernel of the first layer, from which the fixed point is approached. A kernel that does not settle
            within 10,000 layers, or leaves 1e-30..1e30, is taken where it is.

    Raises:
        ValueError: if a variance is out of range, or an average diverges.
    """
    check_variances(C_b, C_W)
    act = as_activation(activation)
    K = float(checked_variances(K1))
    if act.homogeneous_slopes() is None:
        for _ in range(10_000):
            after = float(C_b) + float(C_W) * float(moments(act, K, columns=[("s2", 0)], tol=1e-10)["s2", 0].value)
            settled = abs(after - K) <= 1e-10 * K
            K = after
            if settled or not 1e-30 < K < 1e30:
                break
        K = min(max(K, 1e-30), 1e30)
    m = moments(act, K, columns=[("d2", 0), ("d2", 1)])
    perp = float(C_W) * m["d2", 0].value
    # K has settled to ten digits.
    error = float(C_W) * (m["d2", 0].error + 1e-10 * K * m["d2", 1].value.abs())
    rate = float(perp.log().abs())
    if rate <= max(float(error / perp), 1e-15):
        return CorrelationLength(math.inf, math.inf, float(perp), K)
    return CorrelationLength(1 / rate, float(error / perp) / rate**2, float(perp), K)


def _scale_invariant(left: float, right: float) -> Criticality:
    second, fourth = (left**2 + right**2) / 2, (left**4 + right**4) / 2
    if second == 0:
        raise NoCriticalPoint("the activation is zero everywhere: there is no signal")
    errors = {"C_b": 0.0, "C_W": 1e-15 / second, "K_star": 0.0, "nu": 1e-14}
    return Criticality(0.0, 1 / second, math.nan, "scale-invariant", 3 * fourth / second**2 - 1, errors=errors)


def _at_zero(act: Activation) -> Criticality | str:
    """Class (3), or why the activation does not belong to it."""
    left, right = act.slopes_at_zero()
    second, fourth = (left**2 + right**2) / 2, (left**4 + right**4) / 2
    if second < 1e-20:
        return "sigma'(0) = 0, so that K = 0 would need an infinite C_W"
    C_W = 1 / second
    ladder = torch.tensor(_LADDER, dtype=torch.float64)
    m = moments(act, ladder, columns=[("s2", 0), ("s2", 1), ("d2", 0)])
    # K+ / K = 1 - fall, chi_par = 1 - fall_par: the power with which K decays with depth is fall / (fall_par - fall).
    fall = 1 - C_W * (m["s2", 0].value / ladder)
    told = fall.abs() > 10 * C_W * m["s2", 0].error / ladder + 1e-13
    if not bool(told.any()):
        return "K+ = K to rounding, for K up to 1"
    place = int(told.int().argmax())
    if float(fall[place]) < 0:
        return f"K = 0 is unstable: at K = {_LADDER[place]:g}, K+ / K - 1 = {-float(fall[place]):.3g} > 0"
    par, perp = (1 - C_W * float(m[key].value[place]) for key in (("s2", 1), ("d2", 0)))
    p_perp, a1 = perp / (par - float(fall[place])), math.nan
    derivatives = act.series()[:4]
    if abs(left - right) <= 1e-12 * abs(right) and all(math.isfinite(x) for x in derivatives):
        _, s1, s2, s3 = derivatives
        candidate = s3 / s1 + 0.75 * (s2 / s1) ** 2
        # At a kink of a derivative the series is that of one side; quadrature has seen both.
        if candidate < 0 and abs(-candidate * _LADDER[place] / float(fall[place]) - 1) < 0.02:
            a1, p_perp = candidate, (s3 / s1 + (s2 / s1) ** 2) / candidate
    # v = V / K^2 obeys v+ = nu_0 + (1 - 2 / l) v, where nu_0 = 3 A_4 / A_2^2 - 1 (2 for a smooth sigma).
    nu = (3 * fourth / second**2 - 1) / 3
    errors = {"C_b": 0.0, "C_W": 4e-15 * C_W, "K_star": 0.0, "nu": 1e-13}
    return Criticality(0.0, C_W, 0.0, "K*=0", nu, p_perp, a1, errors)


def _half_stable(act: Activation, unstable: str) -> Criticality:
    """Class (4)."""
    low, high, points = _SEARCHED
    grid = torch.logspace(low, high, points, dtype=torch.float64)

    def excess(K: Tensor | float) -> Tensor:
        m = moments(act, K, columns=[("s2", 1), ("d2", 0)])
        return (m["s2", 1].value - m["d2", 0].value) / m["d2", 0].value.clamp(min=1e-300)

    found, grid = _within_reach(excess, grid)
    negative = []
    for place in torch.nonzero(found[:-1] * found[1:] < 0).flatten().tolist():
        log_K = brentq(
            lambda t: float(excess(math.exp(t))), math.log(float(grid[place])), math.log(float(grid[place + 1])),
            xtol=1e-15, rtol=1e-14,
        )  # fmt: skip
        result = _solved(act, math.exp(log_K))
        if isinstance(result, Criticality):
            return result
        negative.append(result)
    reason = (
        f"g'(K) = h(K) only where C_b would be negative: {'; '.join(negative)}"
        if negative
        else f"chi_par = chi_perp, g'(K) = h(K), at no K in {float(grid[0]):g}..{float(grid[-1]):g}, "
        f"where g'/h - 1 lies in {float(found.min()):.3g}..{float(found.max()):.3g}"
    )
    raise NoCriticalPoint(
        f"no critical point: of the classes scale-invariant, K*=0 and half-stable the activation belongs to none. "
        f"It is not homogeneous; {unstable}; {reason}"
    )


def _within_reach(excess: Callable[[Tensor], Tensor], grid: Tensor) -> tuple[Tensor, Tensor]:
    """The excess on as much of the grid as has finite averages: those of exp(z) leave double precision early."""
    while True:
        try:
            return excess(grid), grid
        except ValueError:
            if len(grid) <= 12:
                raise
            grid = grid[:-12]


def _solved(act: Activation, K: float) -> Criticality | str:
    m = moments(act, K)
    g, g1, g2, h, h1 = m["s2", 0], m["s2", 1], m["s2", 2], m["d2", 0], m["d2", 1]
    error = (g1.error + h.error) / (g2.value - h1.value).abs() + 4e-15 * K
    m = m.shifted(error)
    g, h, s4 = m["s2", 0], m["d2", 0], m["s4", 0]
    C_W = h.inverse()
    C_b = Bounded(torch.tensor(K, dtype=torch.float64), error) - C_W * g
    if float(C_b.value + C_b.error) < 0:
        return f"at K = {K:.6g}, C_b = {float(C_b.value):.4g}"
    inverse = Bounded(torch.tensor(K, dtype=torch.float64), error).inverse()
    nu = C_W.square() * (s4 - g.square()) * inverse.square()
    errors = {"C_b": float(C_b.error), "C_W": float(C_W.error), "K_star": float(error), "nu": float(nu.error)}
    return Criticality(max(float(C_b.value), 0.0), float(C_W.value), K, "half-stable", float(nu.value), errors=errors)
