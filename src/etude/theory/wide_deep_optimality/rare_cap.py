"""A task with known Bayes labels: is a point of the sphere inside a small cap?

    x = |z| / ||z||, z ~ N(0, I_(d+1)): uniform on the non-negative part of S^d
    Bayes label 1 where <x, c> > theta, else 0;  observed labels are flipped with probability eta < 1/2

The cap is rare (a fifth of the points at the defaults), so that a majority vote is wrong in it, and the noise makes the
nearest neighbour wrong in a share eta of all points. Error counted against the Bayes label is the excess error up to
the factor 1 - 2 eta.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["RareCap"]


@dataclass(frozen=True)
class RareCap:
    """The task in dimension d.

        task = RareCap(d=2)
        x, observed, bayes = task.sample(2000, generator)

    Args:
        d: dimension of the sphere, >= 1.
        threshold: theta, the inner product with the centre from which on a point is inside.
        flip: eta, in [0, 0.5).
    """

    d: int = 2
    threshold: float = 0.95
    flip: float = 0.2

    def __post_init__(self) -> None:
        if self.d < 1:
            raise ValueError(f"d must be >= 1, got {self.d}")
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold must lie in (0, 1), got {self.threshold}")
        if not 0 <= self.flip < 0.5:
            raise ValueError(f"flip must lie in [0, 0.5), got {self.flip}")

    @property
    def center(self) -> Tensor:
        """c, the direction (1.2, u, ..., u) with u = 1 / sqrt(d + 1): a little off the middle of the orthant."""
        center = torch.full((self.d + 1,), 1 / math.sqrt(self.d + 1), dtype=torch.float64)
        center[0] = 1.2
        return center / center.norm()

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """n points (n, d + 1) in float64, their observed labels and their Bayes labels, int64 (n,)."""
        z = torch.randn(n, self.d + 1, generator=generator, dtype=torch.float64).abs()
        x = z / z.norm(dim=1, keepdim=True)
        bayes = (x @ self.center > self.threshold).to(torch.int64)
        flipped = torch.rand(n, generator=generator, dtype=torch.float64) < self.flip
        return x, torch.where(flipped, 1 - bayes, bayes), bayes
