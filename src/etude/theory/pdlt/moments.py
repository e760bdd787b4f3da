"""Gaussian averages of an activation and their derivatives in the variance.

Roberts, Yaida & Hanin, "The Principles of Deep Learning Theory", arXiv:2106.10165. With z ~ N(0, K), s = sigma(z):

    g(K) = <s^2>,  h(K) = <s'^2>,  <s^2 s'^2>,  <s^4>,  <s'^4>                                              (1)
    d^k <f> / dK^k = <f He_2k(z / sqrt K)> / (2 K)^k                                                       (2)

Eq. (2), integration by parts, holds with kinks and jumps of f, where differentiating f itself would not, and is never
a finite difference. It loses digits as K^-k: at small K the series of sigma at zero takes its place wherever its error
is the smaller one and quadrature confirms it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from etude.nn.gaussian import Estimate, gaussian_expectation
from etude.theory.pdlt.activations import Activation, as_activation
from etude.theory.pdlt.bounded import Bounded

__all__ = ["BASES", "Moments", "gauss_avg", "moments"]

BASES = ("s2", "d2", "s2d2", "s4", "d4")
"""s^2, s'^2, s^2 s'^2, s^4, s'^4."""

_SMALL = 1e-3
"""Below, the series is tried: the error of h'' by Eq. (2) is 1e-16 / K^2, by the series K^3."""

_HIGHEST = {"s2": 3, "d2": 3, "s2d2": 1, "s4": 1, "d4": 1}
"""Derivatives that are taken of each; the recursions use two, and the last carries the error of K."""


def gauss_avg(
    f: Callable[[Tensor], Tensor], K: float | int | Float[Tensor, "*batch"], *, tol: float = 1e-12
) -> Estimate:
    """<f(z)> over z ~ N(0, K), for one variance or several.

        gauss_avg(lambda z: torch.tanh(z) ** 2, 0.5)

    Args:
        f: elementwise on float64.
        K: variances, > 0.
        tol: wanted error relative to <|f|>, at least 1e-14.

    Returns:
        The averages and bounds on their errors.

    Raises:
        ValueError: if a variance is not positive and finite, if f is not finite somewhere, if the average is infinite,
            or if `tol` is out of reach.
    """
    variances = checked_variances(K)
    root = variances.reshape(-1).sqrt()

    def integrand(u: Tensor) -> Tensor:
        z = u[:, None] * root
        return f(z.flatten()).reshape(z.shape)

    value, error = gaussian_expectation(integrand, tol=tol)
    return Estimate(value.reshape(variances.shape), error.reshape(variances.shape))


@dataclass(frozen=True, eq=False)
class Moments:
    """The averages of Eq. (1) at K, each with its derivatives: `moments["s2", 1]` is g'(K).

    Attributes:
        K: the variances.
        values: (base, order) -> the average or derivative, with its error bound, of the shape of K.
    """

    K: Tensor
    values: dict[tuple[str, int], Bounded]

    def __getitem__(self, key: tuple[str, int]) -> Bounded:
        return self.values[key]

    def shifted(self, error: Tensor) -> "Moments":
        """The same with error bounds that also cover an error of K, to first order."""
        grown = {}
        for (base, order), x in self.values.items():
            above = self.values.get((base, order + 1))
            grown[base, order] = x if above is None else Bounded(x.value, x.error + error * above.value.abs())
        return Moments(self.K, grown)


def moments(
    activation: Activation | Callable[[Tensor], Tensor],
    K: float | int | Float[Tensor, "*batch"],
    *,
    columns: Sequence[tuple[str, int]] | None = None,
    tol: float = 1e-12,
) -> Moments:
    """The averages of Eq. (1) and their derivatives, Eq. (2).

        moments(torch.tanh, 0.5)["s2", 1]          # g'(0.5), with its error bound

    Args:
        activation: elementwise function or module, or an `Activation`.
        K: variances, > 0.
        columns: pairs (base, order) wanted; all that the recursions use if None.
        tol: error of each relative to the average of the absolute integrand.

    Raises:
        ValueError: as for `gauss_avg`.
    """
    act = as_activation(activation)
    variances = checked_variances(K)
    wanted = [(base, k) for base in BASES for k in range(_HIGHEST[base] + 1)] if columns is None else list(columns)
    flat = variances.reshape(-1)
    found = _by_quadrature(act, flat, wanted, tol)
    small = flat < _SMALL
    if bool(small.any()):
        series = _by_series(act, flat[small], wanted)
        if series is not None and _confirmed(found, series, small):
            for key, x in series.items():
                value, error = found[key].value[small], found[key].error[small]
                closer = x.error < error
                found[key].value[small] = torch.where(closer, x.value, value)
                found[key].error[small] = torch.where(closer, x.error, error)
    shape = variances.shape
    return Moments(
        variances, {key: Bounded(x.value.reshape(shape), x.error.reshape(shape)) for key, x in found.items()}
    )


def checked_variances(K: float | int | Tensor) -> Tensor:
    variances = torch.as_tensor(K, dtype=torch.float64)
    bad = ~(torch.isfinite(variances) & (variances > 0))
    if bool(bad.any()):
        raise ValueError(f"a kernel must be positive and finite, got K = {float(variances[bad].reshape(-1)[0]):g}")
    return variances


def _by_quadrature(
    act: Activation, K: Tensor, wanted: Sequence[tuple[str, int]], tol: float
) -> dict[tuple[str, int], Bounded]:
    root = K.sqrt()

    def integrand(u: Tensor) -> Tensor:
        z = (u[:, None] * root).flatten()
        s, d = act.both(z) if any("d" in base for base, _ in wanted) else (act(z), z)
        s2, d2 = s.square(), d.square()
        powers = {"s2": s2, "d2": d2, "s2d2": s2 * d2, "s4": s2.square(), "d4": d2.square()}
        u2 = u.square()
        hermite = [torch.ones_like(u), u2 - 1, (u2 - 6) * u2 + 3, ((u2 - 15) * u2 + 45) * u2 - 15]
        return torch.cat([powers[base].reshape(len(u), -1) * hermite[k][:, None] for base, k in wanted], dim=1)

    try:
        value, error = gaussian_expectation(integrand, tol=tol)
    except ValueError as problem:
        raise ValueError(
            f"averages at K up to {float(K.max()):.4g}, in units of z / sqrt(K): {problem}. They are finite if sigma "
            "grows slower than exp(z^2 / (4 K)), with <sigma^4> if slower than exp(z^2 / (8 K))"
        ) from problem
    found = {}
    for place, (base, k) in enumerate(wanted):
        rows = slice(place * len(K), (place + 1) * len(K))
        scale = (2 * K) ** k
        found[base, k] = Bounded(value[rows] / scale, error[rows] / scale)
    return found


def _by_series(act: Activation, K: Tensor, wanted: Sequence[tuple[str, int]]) -> dict[tuple[str, int], Bounded] | None:
    """The averages by Taylor's series to z^8, K^4; the last term bounds the error."""
    derivatives = act.series()
    if not all(math.isfinite(x) for x in derivatives):
        return None
    s = [x / math.factorial(k) for k, x in enumerate(derivatives)]
    d = [(k + 1) * s[k + 1] for k in range(len(s) - 1)] + [0.0]
    s2, d2 = _product(s, s), _product(d, d)
    powers = {"s2": s2, "d2": d2, "s2d2": _product(s2, d2), "s4": _product(s2, s2), "d4": _product(d2, d2)}
    found = {}
    for base, order in wanted:
        # <z^2j> = (2 j - 1)!! K^j, differentiated `order` times.
        terms = [
            powers[base][2 * j] * math.prod(range(2 * j - 1, 0, -2)) * math.perm(j, order) * K ** (j - order)
            for j in range(order, len(s) // 2 + 1)
        ]
        value = torch.stack(terms).sum(0)
        found[base, order] = Bounded(value, terms[-1].abs() + 1e-15 * torch.stack(terms).abs().sum(0))
    return found


def _product(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [sum(a[i] * b[k - i] for i in range(k + 1)) for k in range(len(a))]


def _confirmed(found: dict[tuple[str, int], Bounded], series: dict[tuple[str, int], Bounded], small: Tensor) -> bool:
    """Whether series and quadrature agree to within their errors; next to a kink they do not."""
    for key, x in series.items():
        room = 10 * (found[key].error[small] + x.error)
        if bool(((found[key].value[small] - x.value).abs() > room).any()):
            return False
    return True
