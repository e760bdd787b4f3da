"""Cosine series as sums of ridge functions.

A continuous g on [0, 1]^D has, with the modes k in {0..K}^D, the cosine series

    S(u) = sum_k c_k prod_i cos(pi k_i u_i),   c_k = prod_i (2 - [k_i = 0]) * mean of g(u) prod_i cos(pi k_i u_i)    (1)

with the mean over an n^D grid of midpoints: a discrete cosine transform. The even continuation of g has no jump at the
boundary, so that there is no Gibbs phenomenon, as there would be with sines. Products are sums of cosines of sums,

    prod_i cos(pi k_i u_i) = 2^-(z - 1) sum_s cos(pi (s k).u),   s = signs of the z nonzero k_i, the first one +     (2)

so that S is a sum of ridge functions cos(pi v.u). With v = q p, the entries of p having no common divisor, those that
share the direction p make one function of one variable,

    S(u) = c_0 + sum_p rho_p(p.u),   rho_p(t) = sum_q c_qp cos(pi q t)                                               (3)
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.fft import dctn
from torch import Tensor

__all__ = ["RidgeExpansion", "evaluate", "grid_size", "max_directions", "ridge_expansion"]

NEGLIGIBLE = 1e-5
"""Modes whose largest coefficient c_k is smaller are left out of the series."""
_POINTS = 2**17
"""Points of a grid held at a time."""

Function = Callable[[Tensor], Tensor]


def grid_size(D: int, K: int) -> int:
    """Midpoints a side on which modes up to K are computed in D dimensions, enough to keep aliasing small."""
    return {1: max(3 * K, 96), 2: max(3 * K, 96), 3: max(3 * K + 4, 40)}.get(D, 3 * K)


def max_directions(D: int, K: int) -> int:
    """How many ridge functions cos(pi v.u) a series with modes up to K has at most: ((2K + 1)^D - 1) / 2."""
    return ((2 * K + 1) ** D - 1) // 2


@dataclass(frozen=True, eq=False)
class RidgeExpansion:
    """The series of Eq. (3), callable: points (N, D) of [0, 1]^D to values (N, P).

    Attributes:
        modes: (K+1, ..., K+1, P) coefficients c_k of Eq. (1); those left out are zero.
        bias: (P,) the constant c_0.
        vectors: (terms, D) v of each term, its first nonzero entry positive. coefficients: (terms, P).
        directions: (G, D) primitive directions p.
        group, multiples: (terms,) the direction of each term and its q, v = q p.
        n: midpoints a side of the grid of the fit.
    """

    modes: Float[np.ndarray, "*modes P"]
    bias: Float[np.ndarray, "P"]
    vectors: Int[np.ndarray, "terms D"]
    coefficients: Float[np.ndarray, "terms P"]
    directions: Int[np.ndarray, "G D"]
    group: Int[np.ndarray, "terms"]
    multiples: Int[np.ndarray, "terms"]
    n: int

    @property
    def K(self) -> int:
        return self.modes.shape[0] - 1

    @property
    def D(self) -> int:
        return self.modes.ndim - 1

    @property
    def lipschitz(self) -> float:
        """A Lipschitz constant of every output in the Euclidean norm: sum_v pi |c_v| |v|."""
        return float(math.pi * (np.abs(self.coefficients).max(1) * np.linalg.norm(self.vectors, axis=1)).sum())

    def curvatures(self) -> Float[np.ndarray, "G"]:
        """A bound on |rho_p''| of every output, for each direction: sum_q (pi q)^2 |c_qp|."""
        terms = (math.pi * self.multiples) ** 2 * np.abs(self.coefficients).max(1)
        return np.bincount(self.group, terms, minlength=len(self.directions)).astype(float)

    def ranges(self) -> tuple[Float[np.ndarray, "G"], Float[np.ndarray, "G"]]:
        """Smallest and largest p.u over the cube, for each direction."""
        return np.minimum(self.directions, 0).sum(1).astype(float), np.maximum(self.directions, 0).sum(1).astype(float)

    def __call__(self, u: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N P"]:
        value = np.empty((len(u), len(self.bias)))
        rows = max(1, 2**19 // max(len(self.vectors), 1))
        for start in range(0, len(u), rows):
            part = u[start : start + rows]
            value[start : start + rows] = self.bias + np.cos(math.pi * part @ self.vectors.T) @ self.coefficients
        return value

    def profile(self, group: Int[np.ndarray, "m"], t: Float[np.ndarray, "m"]) -> Float[np.ndarray, "m P"]:
        """rho_p(t) of Eq. (3), each t with a direction of its own."""
        value = np.zeros((len(t), len(self.bias)))
        place = np.full(len(self.directions), -1)
        for q in np.unique(self.multiples):
            terms = np.flatnonzero(self.multiples == q)
            place[:] = -1
            place[self.group[terms]] = terms
            rows = np.flatnonzero(place[group] >= 0)
            value[rows] += np.cos(math.pi * q * t[rows])[:, None] * self.coefficients[place[group[rows]]]
        return value

    def slabs(self, axis: Float[np.ndarray, "side"]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The tensor grid axis^D in blocks: points (N, D) and values (N, P), one axis contracted after the other."""
        cosines = np.cos(math.pi * np.outer(axis, np.arange(self.K + 1)))
        rest = len(axis) ** (self.D - 1)
        rows = max(1, _POINTS // rest)
        for start in range(0, len(axis), rows):
            value = np.tensordot(cosines[start : start + rows], self.modes, axes=(1, 0))
            for place in range(1, self.D):
                value = np.moveaxis(np.tensordot(cosines, value, axes=(1, place)), 0, place)
            points = np.stack(np.meshgrid(axis[start : start + rows], *[axis] * (self.D - 1), indexing="ij"), axis=-1)
            yield points.reshape(-1, self.D), value.reshape(-1, len(self.bias))


def ridge_expansion(f: Function, D: int, K: int, n: int | None = None, *, damping: str = "none") -> RidgeExpansion:
    """The cosine series of a function on [0, 1]^D, Eq. (1), as a sum of ridge functions, Eq. (3).

        ridge_expansion(lambda u: u.prod(dim=1, keepdim=True), D=2, K=8)

    Args:
        f: double points (N, D) to values (N, P).
        D: dimension, 1 to 4. K: the largest mode of a coordinate, at least 1.
        n: midpoints a side, more than K; `grid_size(D, K)` if None.
        damping: "none", or "jackson": a positive kernel, with which the error of any continuous f is at most a
            constant times its modulus of continuity at 1/K; undamped is better where f is smooth or Lipschitz.

    Raises:
        ValueError: if D, K, n or `damping` is out of range, or f returns another shape or what is not finite.
    """
    if not 1 <= D <= 4:
        raise ValueError(f"D must lie in 1..4, got {D}: a series has up to {max_directions(max(D, 0), K):,} directions")
    if K < 1:
        raise ValueError(f"K must be at least 1, got {K}")
    n = grid_size(D, K) if n is None else n
    if n <= K:
        raise ValueError(f"n = {n} midpoints a side cannot tell modes up to K = {K} apart: n must exceed K")
    if damping not in ("none", "jackson"):
        raise ValueError(f"damping must be 'none' or 'jackson', got {damping!r}")
    modes = _cosine_coefficients(f, D, K, n)
    if damping == "jackson":
        factors = _jackson(K)
        for place in range(D):
            modes *= factors.reshape([-1 if axis == place else 1 for axis in range(D + 1)])
    return _grouped(modes, D, n)


def evaluate(f: Function, points: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N P"]:
    """f at double points, checked."""
    with torch.no_grad():
        value = f(torch.from_numpy(np.ascontiguousarray(points)))
    if not isinstance(value, Tensor) or value.ndim != 2 or len(value) != len(points):
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"f must map ({len(points)}, {points.shape[1]}) to ({len(points)}, outputs), got {shape}")
    if not bool(torch.isfinite(value).all()):
        where = points[int((~torch.isfinite(value)).any(dim=1).nonzero()[0])]
        raise ValueError(f"f must be finite on the whole box, and is not at {where.tolist()} of the unit cube")
    return value.to("cpu", torch.float64).numpy()


def _cosine_coefficients(f: Function, D: int, K: int, n: int) -> np.ndarray:
    axis = (np.arange(n) + 0.5) / n
    values = None
    for start in range(0, n**D, _POINTS):
        index = np.arange(start, min(start + _POINTS, n**D))
        found = evaluate(f, np.stack([axis[place] for place in np.unravel_index(index, (n,) * D)], axis=1))
        if values is None:
            values = np.empty((n**D, found.shape[1]))
        values[index] = found
    assert values is not None
    outputs = values.shape[1]
    modes = dctn(values.reshape(*(n,) * D, outputs), type=2, axes=tuple(range(D)), overwrite_x=True)
    modes = np.ascontiguousarray(modes[tuple([slice(K + 1)] * D)]) / (2 * n) ** D
    weight = np.full(K + 1, 2.0)
    weight[0] = 1.0
    for place in range(D):
        modes *= weight.reshape([-1 if axis_ == place else 1 for axis_ in range(D + 1)])
    return modes


def _jackson(K: int) -> np.ndarray:
    """Factors of the modes 0..K that make the kernel of the series positive."""
    k, m = np.arange(K + 1), K + 2
    return ((m - k) * np.cos(math.pi * k / m) + np.sin(math.pi * k / m) / math.tan(math.pi / m)) / m


def _grouped(modes: np.ndarray, D: int, n: int) -> RidgeExpansion:
    """Eq. (2) and (3). Every pair of v and -v comes from one mode alone, |v|, so that nothing is left to merge."""
    outputs = modes.shape[-1]
    flat = modes.reshape(-1, outputs)
    k = np.stack(np.unravel_index(np.arange(len(flat)), modes.shape[:-1]), axis=1)
    scale = 0.5 ** np.maximum((k > 0).sum(1) - 1, 0)
    small = np.abs(flat).max(1) < NEGLIGIBLE
    small[0] = False
    flat = np.where(small[:, None], 0.0, flat)
    kept = np.flatnonzero(~small)[1:]
    signs = np.array(list(product((1, -1), repeat=D)))
    first = (k[kept] > 0).argmax(1) if len(kept) else np.zeros(0, dtype=int)
    # A sign is free where the entry is nonzero and not the first such.
    fixed = (k[kept] == 0) | (np.arange(D) == first[:, None])
    allowed = ~((signs[None] < 0) & fixed[:, None]).any(2)
    term, sign = np.nonzero(allowed)
    vectors = k[kept][term] * signs[sign]
    multiples = np.gcd.reduce(vectors, axis=1) if len(vectors) else np.zeros(0, dtype=vectors.dtype)
    directions, group = np.unique(vectors // np.maximum(multiples, 1)[:, None], axis=0, return_inverse=True)
    return RidgeExpansion(
        flat.reshape(modes.shape), flat[0].copy(), vectors, flat[kept][term] * scale[kept][term, None],
        directions, group.reshape(-1), multiples, n,
    )  # fmt: skip
