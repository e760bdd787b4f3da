"""Expectations over a standard normal, each with a bound on its error.

    E[g(z)],  z ~ N(0, 1)                                                                                  (1)
    c_k = E[phi(z) h_k(z)],  h_k = He_k / sqrt(k!),  E[h_j h_k] = 1 if j = k else 0                        (2)

Gauss-Hermite rules are exact for polynomials and poor for activations with a kink: at 100 nodes the second moment of
a ReLU clipped at 1 is right to three digits only. Here the line is cut into panels with a 16-point Gauss-Legendre rule
each, and a panel is halved until it agrees with its halves. Kinks and jumps, wherever they are, cost a panel for each
binary digit; elsewhere the first halves do.
"""

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = [
    "Estimate",
    "HermiteExpansion",
    "gaussian_expectation",
    "hermite_coefficients",
    "hermite_expansion",
    "hermite_polynomials",
    "in_double",
]

_REACH = 37
"""Panels cover |z| <= 37, beyond which the density leaves the range of double precision."""

_NODES = 16
_MAX_PANELS = 20_000
_MAX_DEGREE = 250
"""Above, the polynomials still oscillate at the end of the panels."""

_FINEST = 1e-14
"""Rounding alone makes an error of about this, relative to E|g|."""


class Estimate(NamedTuple):
    """A value and a bound on its error."""

    value: Float[Tensor, "*shape"]
    error: Float[Tensor, "*shape"]


class HermiteExpansion(NamedTuple):
    """The expansion of an activation in normalised Hermite polynomials, Eq. (2), to some degree.

    Attributes:
        coefficients: c_0..c_degree.
        errors: a bound on the error of each.
        second_moment: E phi^2, the sum of all c_k^2.
        tail: E phi^2 - sum c_k^2, what the degrees above hold; 0 if it cannot be told from rounding.
    """

    coefficients: Float[Tensor, "terms"]
    errors: Float[Tensor, "terms"]
    second_moment: Estimate
    tail: float


def gaussian_expectation(g: Callable[[Tensor], Tensor], *, tol: float = 1e-12) -> Estimate:
    """E[g(z)] for a standard normal z, Eq. (1).

        gaussian_expectation(lambda z: torch.tanh(z).square())

    Args:
        g: takes z, float64 (points,), and returns one value a point (points,) or several (points, values).
        tol: wanted error of each value relative to E|g|, at least 1e-14.

    Returns:
        The expectation of each value and a bound on its error: the sum of what halving the panels still changed, what
        the outermost panels hold, and rounding.

    Raises:
        ValueError: if `tol` is out of reach of double precision; if g is not finite somewhere; if the integrand has not
            decayed at |z| = 37, where an infinite expectation shows; or if it is too rough to reach `tol`.
    """
    if not _FINEST <= tol < 1:
        raise ValueError(f"tol must lie in [{_FINEST:g}, 1), the reach of double precision, got {tol:g}")
    left = torch.arange(-_REACH, _REACH, dtype=torch.float64)
    width = torch.ones_like(left)
    coarse, absolute = _panels(g, left, width)
    values, magnitude = coarse.sum(0), absolute.sum(0)
    if bool((absolute[[0, -1]] > tol * magnitude).any()):
        share = float((absolute[[0, -1]] / magnitude.clamp(min=1e-300)).max())
        raise ValueError(
            f"the expectation is infinite or out of reach: {share:.1e} of E|g| lies in 36 < |z| < 37, more than "
            f"tol={tol:g}; an activation needs a finite variance, so grow slower than exp(z^2 / 4)"
        )
    total = torch.zeros_like(values)
    error = absolute[[0, -1]].sum(0)
    used = len(left)
    while len(left):
        halves_left = torch.stack([left, left + width / 2], 1).flatten()
        halves_width = (width / 2).repeat_interleave(2)
        fine, _ = _panels(g, halves_left, halves_width)
        pairs = fine.unflatten(0, (-1, 2)).sum(1)
        off = (pairs - coarse).abs()
        # An error of a quarter each leaves room for the few panels that meet a kink at every level. No panel is
        # halved below the spacing of doubles, where a jump can be placed no better.
        open_ = (off > 0.25 * tol * magnitude).reshape(len(left), -1).any(1) & (width > 1e-15 * (1 + left.abs()))
        total, error = total + pairs[~open_].sum(0), error + off[~open_].sum(0)
        kept = open_.repeat_interleave(2)
        left, width, coarse = halves_left[kept], halves_width[kept], fine[kept]
        used += len(left)
        if used > _MAX_PANELS:
            rest = float((off[open_].sum(0) / magnitude.clamp(min=1e-300)).max())
            raise ValueError(
                f"tol={tol:g} is not reachable: after {used:,} panels the relative error is still {rest:.1e}; "
                "the integrand oscillates or is singular beyond what panels resolve"
            )
    return Estimate(total, error + 4e-16 * magnitude)


def hermite_polynomials(z: Float[Tensor, "*shape"], degree: int) -> Float[Tensor, "*shape terms"]:
    """h_0(z)..h_degree(z), normalised probabilists' Hermite polynomials, Eq. (2)."""
    if degree < 0:
        raise ValueError(f"degree must be >= 0, got {degree}")
    rows = [torch.ones_like(z), z]
    for k in range(1, degree):
        rows.append((z * rows[k] - math.sqrt(k) * rows[k - 1]) / math.sqrt(k + 1))
    return torch.stack(rows[: degree + 1], dim=-1)


def hermite_expansion(phi: Callable[[Tensor], Tensor], degree: int, *, tol: float = 1e-12) -> HermiteExpansion:
    """The coefficients c_0..c_degree of an activation, Eq. (2), with their errors and what lies beyond.

    Args:
        phi: an activation, applied to float64 elementwise; a module is copied to double precision first.
        degree: the highest k, in 0..250.
        tol: as for `gaussian_expectation`.

    Raises:
        ValueError: as for `gaussian_expectation`; in particular if E phi^2 is infinite.
    """
    if not 0 <= degree <= _MAX_DEGREE:
        raise ValueError(f"degree must lie in 0..{_MAX_DEGREE}, got {degree}")
    phi = in_double(phi)

    def integrand(z: Tensor) -> Tensor:
        y = phi(z)
        return torch.cat([y.square()[:, None], y[:, None] * hermite_polynomials(z, degree)], dim=1)

    value, error = gaussian_expectation(integrand, tol=tol)
    second, coefficients = value[0], value[1:]
    tail = float(second - coefficients.square().sum())
    rounding = float(error[0] + (2 * coefficients.abs() * error[1:]).sum())
    return HermiteExpansion(coefficients, error[1:], Estimate(second, error[0]), tail if tail > rounding else 0.0)


def hermite_coefficients(phi: Callable[[Tensor], Tensor], degree: int) -> Float[Tensor, "terms"]:
    """c_0..c_degree of an activation, Eq. (2); `hermite_expansion` gives their errors besides."""
    return hermite_expansion(phi, degree).coefficients


def in_double(phi: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A function as it is; a module as a copy with parameters in double precision."""
    return copy.deepcopy(phi).double() if isinstance(phi, nn.Module) else phi


def _rule() -> tuple[Tensor, Tensor]:
    """The Gauss-Legendre rule on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)


_POINTS, _WEIGHTS = _rule()


@torch.no_grad()
def _panels(g: Callable[[Tensor], Tensor], left: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """The integral of g and of |g| against the density over each panel, (panels, ...)."""
    z = left[:, None] + width[:, None] * _POINTS
    weight = width[:, None] * _WEIGHTS * torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    values = g(z.flatten())
    if values.shape[:1] != (z.numel(),) or values.ndim > 2:
        raise ValueError(
            f"g must return (points,) or (points, values) for {z.numel()} points, got {tuple(values.shape)}"
        )
    bad = ~torch.isfinite(values)
    if bool(bad.any()):
        where = float(z.flatten()[bad.flatten(1).any(1) if values.ndim > 1 else bad][0])
        raise ValueError(f"g must be finite on |z| <= {_REACH}; it is not at z = {where:.6g}")
    values = values.to(torch.float64).reshape(*z.shape, *values.shape[1:])
    weight = weight.reshape(*weight.shape, *[1] * (values.ndim - 2))
    return (weight * values).sum(1), (weight * values.abs()).sum(1)
