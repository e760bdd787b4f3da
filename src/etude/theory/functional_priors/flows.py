"""Planar flows with their exact inverse and density.

Rezende & Mohamed, "Variational Inference with Normalizing Flows", ICML 2015. A planar map

    y = x + u' tanh(w.x + b),  u' = u + (m(w.u) - w.u) w / |w|^2,  m(t) = -1 + softplus(t)                   (1)

is monotone along w, since w.u' = m(w.u) > -1. With a = w.x its inverse solves a + (w.u') tanh(a + b) = w.y for a
scalar, x = y - u' tanh(a + b), and

    log p(y) = log p_0(x) - sum_k log|1 + (1 - tanh^2) w.u'|                                                  (2)

The official code of arXiv:2011.12829 pushes samples forward, yet evaluates the density by the same maps as if they were
their inverses, and with a detached determinant: that is the density of another distribution than the one sampled.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["PlanarFlow", "PlanarMap"]

_MOST_STEPS = 200


class PlanarMap(nn.Module):
    """One map of Eq. (1) on vectors.

    Args:
        dim: of the vectors. generator: draws u, w and b from the uniform distribution on +-1/sqrt(dim).
    """

    def __init__(self, dim: int, generator: torch.Generator | None = None):
        super().__init__()
        bound, device = dim**-0.5, None if generator is None else generator.device
        self.u, self.w, self.b = (
            nn.Parameter((2 * torch.rand(shape, generator=generator, device=device) - 1) * bound)
            for shape in ((dim,), (dim,), ())
        )

    def _direction(self) -> tuple[Tensor, Tensor]:
        """u' and w.u'."""
        product = self.w @ self.u
        target = F.softplus(product) - 1
        return self.u + (target - product) * self.w / self.w.square().sum().clamp(min=1e-12), target

    def forward(self, x: Float[Tensor, "n dim"]) -> tuple[Float[Tensor, "n dim"], Float[Tensor, "n"]]:
        """y and log|dy/dx|."""
        direction, slope = self._direction()
        bent = torch.tanh(x @ self.w + self.b)
        return x + bent[:, None] * direction, torch.log1p((1 - bent.square()) * slope)

    def inverse(self, y: Float[Tensor, "n dim"]) -> tuple[Float[Tensor, "n dim"], Float[Tensor, "n"]]:
        """x and log|dy/dx| at x; differentiable by y and the map's parameters."""
        direction, slope = self._direction()
        target = y @ self.w
        with torch.no_grad():
            a = _root(target, slope, self.b).to(y)
        # One Newton step from the root leaves it where it is and carries the derivatives of the implicit function.
        bent = torch.tanh(a + self.b)
        a = a - (a + slope * bent - target) / (1 + slope * (1 - bent.square()))
        bent = torch.tanh(a + self.b)
        return y - bent[:, None] * direction, torch.log1p((1 - bent.square()) * slope)


def _root(target: Tensor, slope: Tensor, b: Tensor) -> Tensor:
    """a with a + slope tanh(a + b) = target: Newton steps, bisection where one would leave the bracket."""
    target, slope, b = (value.detach().to(torch.float64) for value in (target, slope, b))
    low, high = target - slope.abs(), target + slope.abs()
    a = target.clone()
    for _ in range(_MOST_STEPS):
        bent = torch.tanh(a + b)
        off = a + slope * bent - target
        if bool((off.abs() <= 1e-14 * (1 + target.abs())).all()):
            break
        low, high = torch.where(off < 0, a, low), torch.where(off > 0, a, high)
        step = a - off / (1 + slope * (1 - bent.square()))
        a = torch.where((step > low) & (step < high), step, (low + high) / 2)
    return a


class PlanarFlow(nn.Module):
    """N(0, diag exp(log_variance)) pushed through planar maps.

    Args:
        dim: of the vectors, >= 1. maps: how many, >= 0.
        generator: draws the maps' parameters.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(self, dim: int, maps: int = 4, generator: torch.Generator | None = None):
        super().__init__()
        if dim < 1 or maps < 0:
            raise ValueError(f"dim must be >= 1 and maps >= 0, got {dim} and {maps}")
        self.log_variance = nn.Parameter(torch.zeros(dim))
        self.maps = nn.ModuleList([PlanarMap(dim, generator) for _ in range(maps)])

    def rsample(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n dim"]:
        """Draws, differentiable by the flow's parameters."""
        std = (0.5 * self.log_variance).exp()
        x = std * torch.randn(n, len(std), generator=generator, dtype=std.dtype, device=std.device)
        for planar in self.maps:
            x = planar(x)[0]
        return x

    def log_prob(self, y: Float[Tensor, "n dim"]) -> Float[Tensor, "n"]:
        """The density of `rsample`, Eq. (2)."""
        total = y.new_zeros(len(y))
        for planar in reversed(self.maps):
            assert isinstance(planar, PlanarMap)
            y, log_determinant = planar.inverse(y)
            total = total - log_determinant
        logs = y.square() * (-self.log_variance).exp() + self.log_variance + math.log(2 * math.pi)
        return total - 0.5 * logs.sum(1)
