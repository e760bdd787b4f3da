"""Gaussian averages over the plane for single pairs, where no series serves: close pairs of kinked activations.

    <f(z_a) f(z_b)>,  z_a = sqrt(K_a) u,  z_b = sqrt(K_b) (rho u + sqrt(1 - rho^2) v),  u, v ~ N(0, 1)       (1)

by nested 16-point Gauss-Legendre panels that are cut at every kink: of u where z_a meets one, of v where z_b does, and
of u also around the places at which a kink of z_b passes v = 0, where the inner integral turns within a width of
sqrt(1 - rho^2). The error is what doubling the panels changes.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from etude.theory.pdlt.activations import Activation

__all__ = ["PlanarAverages", "planar_averages"]

_REACH = 9.0
"""Beyond, a normal density holds 1e-18."""

_POINTS = 1 << 21
"""Evaluations at a time."""

_AROUND = (-8.0, -3.0, -1.0, 0.0, 1.0, 3.0, 8.0)


class PlanarAverages(NamedTuple):
    """<sigma_a sigma_b>, <sigma'_a sigma'_b> (NaN if not asked for), and estimates of their errors, one a pair."""

    value: Float[Tensor, "pairs"]
    slope: Float[Tensor, "pairs"]
    value_error: Float[Tensor, "pairs"]
    slope_error: Float[Tensor, "pairs"]


def planar_averages(
    act: Activation,
    Ka: Float[Tensor, "pairs"],
    Kb: Float[Tensor, "pairs"],
    rho: Float[Tensor, "pairs"],
    *,
    slope: bool = True,
) -> PlanarAverages:
    """Eq. (1) for f = sigma and f = sigma', pair by pair.

    Args:
        act: its `kinks` are cut at; at one that is not listed the error is larger, and says so.
        Ka, Kb: variances. rho: correlations in [-1, 1].
        slope: also f = sigma'.
    """
    fine, coarse = (_nested(act, Ka, Kb, rho, panels, slope) for panels in (10, 5))
    error = (fine - coarse).abs() + 1e-15 * fine.abs()
    return PlanarAverages(fine[:, 0], fine[:, 1], error[:, 0], error[:, 1])


def _nested(act: Activation, Ka: Tensor, Kb: Tensor, rho: Tensor, panels: int, slope: bool) -> Tensor:
    kinks = torch.tensor(act.kinks, dtype=torch.float64)
    even = torch.linspace(-_REACH, _REACH, panels + 1, dtype=torch.float64)
    per_line = 16 * (panels + len(kinks) * (1 + len(_AROUND)))
    found = []
    for a, b, r in zip(*(x.split(max(_POINTS // per_line**2, 1)) for x in (Ka, Kb, rho))):
        root_a, root_b, rest = a.sqrt()[:, None], b.sqrt()[:, None], (1 - r.square()).clamp(min=0).sqrt()[:, None]
        safe = torch.where(r.abs() < 1e-3, 1e-3, r.abs())[:, None] * torch.where(r < 0, -1.0, 1.0)[:, None]
        turns = kinks / (root_b * safe)
        around = turns[..., None] + (rest / safe.abs())[..., None] * torch.tensor(_AROUND, dtype=torch.float64)
        u, weight_u = _panels(torch.cat([even.expand(len(a), -1), kinks / root_a, around.flatten(1)], dim=1))
        inner = rest.clamp(min=1e-12)[..., None]
        crossings = (kinks / root_b[..., None] - r[:, None, None] * u[..., None]) / inner
        v, weight_v = _panels(torch.cat([even.expand(*u.shape, -1), crossings], dim=2))
        z_b = root_b[..., None] * (r[:, None, None] * u[..., None] + rest[..., None] * v)
        if slope:
            (s_a, d_a), (s_b, d_b) = (_both(act, z) for z in (root_a * u, z_b))
        else:
            s_a, s_b = act(root_a * u), act(z_b)
        value = (weight_u * s_a * (weight_v * s_b).sum(2)).sum(1)
        derivative = (weight_u * d_a * (weight_v * d_b).sum(2)).sum(1) if slope else torch.full_like(value, math.nan)
        found.append(torch.stack([value, derivative], dim=1))
    return torch.cat(found) if found else torch.zeros(0, 2, dtype=torch.float64)


def _both(act: Activation, z: Tensor) -> tuple[Tensor, Tensor]:
    s, d = act.both(z.flatten())
    return s.reshape(z.shape), d.reshape(z.shape)


def _panels(edges: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights against the normal density of the panels between the edges, (..., panels * 16)."""
    edges = edges.clamp(-_REACH, _REACH).sort(dim=-1).values
    nodes, weights = np.polynomial.legendre.leggauss(16)
    half = (edges[..., 1:] - edges[..., :-1])[..., None] / 2
    u = (edges[..., :-1, None] + half * (torch.from_numpy(nodes) + 1)).flatten(-2)
    weight = (half * torch.from_numpy(weights)).flatten(-2) * torch.exp(-u.square() / 2) / math.sqrt(2 * math.pi)
    return u, weight
