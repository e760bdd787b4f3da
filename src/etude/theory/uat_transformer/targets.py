"""Maps to approximate: sorting, running maxima, products and sines, and random draws of a Gaussian process."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Target", "cummax_target", "prod_sin_target", "random_target", "sort_target"]


@dataclass(frozen=True, eq=False)
class Target:
    """A continuous map of sequences in the unit cube, callable: (N, seq_len, in_dim) to (N, seq_len, out_dim).

    Attributes:
        name: what it is called. f: the map.
        seq_len, in_dim, out_dim: its sizes.
        lipschitz: a Lipschitz constant of every output, in the Euclidean norm of the sequence's numbers.
    """

    name: str
    f: Callable[[Tensor], Tensor]
    seq_len: int
    in_dim: int
    out_dim: int
    lipschitz: float

    def __call__(self, x: Float[Tensor, "n seq_len in_dim"]) -> Float[Tensor, "n seq_len out_dim"]:
        return self.f(x)


def _sort(x: Tensor) -> Tensor:
    return x.sort(dim=1).values


def _cummax(x: Tensor) -> Tensor:
    return x.cummax(dim=1).values


def _prod_sin(x: Tensor) -> Tensor:
    first, second, last = x[:, 0], x[:, 1], x[:, -1]
    rows = [first * second, torch.sin(2 * math.pi * first) + last.square()]
    return torch.stack(rows + [x.mean(dim=1)] * (x.shape[1] - 2), dim=1)


def sort_target(seq_len: int) -> Target:
    """The tokens in increasing order, coordinate by coordinate: outputs depend on positions, not on the order given."""
    return Target("sort", _sort, seq_len, 1, 1, 1.0)


def cummax_target(seq_len: int) -> Target:
    """y_i = max(x_1..x_i)."""
    return Target("cummax", _cummax, seq_len, 1, 1, 1.0)


def prod_sin_target(seq_len: int) -> Target:
    """y_1 = x_1 x_2, y_2 = sin(2 pi x_1) + x_L^2, and the mean at every later position.

    Raises:
        ValueError: if there are fewer than two tokens.
    """
    if seq_len < 2:
        raise ValueError(f"seq_len must be at least 2, got {seq_len}")
    return Target("prod_sin", _prod_sin, seq_len, 1, 1, math.sqrt(4 * math.pi**2 + 4))


def random_target(
    seq_len: int,
    in_dim: int = 1,
    out_dim: int = 1,
    *,
    lengthscale: float | int = 0.5,
    features: int = 256,
    generator: torch.Generator | None = None,
) -> Target:
    """A draw of a Gaussian process with unit variance and a squared-exponential kernel, by random Fourier features.

        random_target(seq_len=2, generator=torch.Generator().manual_seed(0))

    Each of the seq_len * out_dim outputs is a draw of its own,

        sqrt(2 / features) sum_r a_r cos(w_r.u + b_r),   a_r ~ N(0, 1), w_r ~ N(0, 1 / lengthscale^2), b_r ~ U(0, 2 pi)

    Args:
        lengthscale: of the kernel, in units of the cube's side.
        features: cosines of a draw.
        generator: of the draw; seeded with 0 if None.

    Raises:
        ValueError: if a size or the length scale is not positive.
    """
    if min(seq_len, in_dim, out_dim, features) < 1 or not lengthscale > 0:
        raise ValueError(
            f"sizes and lengthscale must be positive, got {seq_len}, {in_dim}, {out_dim}, {features}, {lengthscale}"
        )
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    D, outputs, double = seq_len * in_dim, seq_len * out_dim, torch.float64
    frequencies = torch.randn(outputs, features, D, generator=generator, dtype=double) / lengthscale
    phases = 2 * math.pi * torch.rand(outputs, features, generator=generator, dtype=double)
    amplitudes = torch.randn(outputs, features, generator=generator, dtype=double) * math.sqrt(2 / features)

    def f(x: Tensor) -> Tensor:
        u, value = x.flatten(1), x.new_empty(len(x), outputs)
        # A block of points at a time keeps the table of cosines in the cache.
        for rows in torch.arange(len(x)).split(4_096):
            for k in range(outputs):
                value[rows, k] = torch.cos(u[rows] @ frequencies[k].T + phases[k]) @ amplitudes[k]
        return value.unflatten(1, (seq_len, out_dim))

    lipschitz = float((amplitudes.abs() * frequencies.norm(dim=2)).sum(1).max())
    return Target("random", f, seq_len, in_dim, out_dim, lipschitz)
