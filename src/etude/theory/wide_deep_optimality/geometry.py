"""Distances that stay exact for close points, and the way of data onto the sphere.

Radhakrishnan, Belkin & Uhler, PNAS 2023, arXiv:2204.14126: data on the part of the unit sphere S^d in R^(d+1) where no
coordinate is negative, so that inner products lie in [0, 1]. d is the dimension of the sphere: columns minus one.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["check_orthant_sphere", "orthant_complements", "squared_distances", "to_orthant_sphere"]

_CLOSE = 1e-7
"""Squared distances below this share of the squared norms are computed anew from differences: those that products of
rows give are then right to fewer than nine digits."""


def squared_distances(x: Float[Tensor, "n dim"], y: Float[Tensor, "m dim"]) -> Float[Tensor, "n m"]:
    """|x_i - y_j|^2, by a matrix product, from differences where the two nearly coincide; exactly 0 for equal rows."""
    norms, others = x.square().sum(1), y.square().sum(1)
    squares = torch.addmm(norms[:, None] + others, x, y.T, alpha=-2)
    limit = _CLOSE * (float(norms.max()) + float(others.max())) if len(x) and len(y) else 0.0
    near = (squares < limit).nonzero()
    for part in near.split(100_000):
        i, j = part.unbind(1)
        squares[i, j] = (x[i] - y[j]).square().sum(1)
    return squares


def orthant_complements(x: Float[Tensor, "n columns"], y: Float[Tensor, "m columns"]) -> Float[Tensor, "n m"]:
    """1 - <x_i, y_j> = |x_i - y_j|^2 / 2 of unit vectors, in [0, 1].

    Raises:
        ValueError: if an inner product is negative.
    """
    e = squared_distances(x, y).div_(2)
    if e.numel() and float(e.max()) > 1 + 1e-9:
        raise ValueError(
            f"inner products of rows must not be negative, got {1 - float(e.max()):.4g}: f need not be monotone there; "
            "to_orthant_sphere or OrthantSphere brings data into the non-negative orthant"
        )
    return e.clamp_(max=1.0)


def to_orthant_sphere(X: Any, *, low: Any = None, high: Any = None) -> np.ndarray:
    """Rows brought to [0, 1] column by column, given a coordinate 1, and scaled to unit length.

    The p columns of X become p + 1 on the sphere S^p, whose dimension, p, is the order that `optimal_activation` needs.

    Args:
        X: (n, p) numbers.
        low, high: (p,) the ends of each column; those of X if None. Values outside, of new data, are clipped. A column
            that is constant becomes 0.

    Raises:
        ValueError: if X has not two axes, no row or no column, or a value is not finite.
    """
    rows = np.asarray(X, dtype=np.float64)
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"X must have shape (rows, columns) with at least one of each, got {rows.shape}")
    if not np.isfinite(rows).all():
        raise ValueError(f"X holds {int((~np.isfinite(rows)).sum())} values that are NaN or infinite")
    low = rows.min(0) if low is None else np.asarray(low, dtype=np.float64)
    high = rows.max(0) if high is None else np.asarray(high, dtype=np.float64)
    span = np.where(high > low, high - low, 1.0)
    unit = np.where(high > low, np.clip((rows - low) / span, 0, 1), 0.0)
    unit = np.concatenate([unit, np.ones((len(unit), 1))], axis=1)
    return unit / np.linalg.norm(unit, axis=1, keepdims=True)


def check_orthant_sphere(rows: Float[Tensor, "n columns"], what: str = "X") -> Float[Tensor, "n columns"]:
    """The rows in double precision and of length 1 to the last digit.

    Raises:
        ValueError: if a row is not of unit length to 1e-5, or there are fewer than two columns: a point in one
            dimension has no direction to lie in.
    """
    if rows.shape[1] < 2:
        raise ValueError(f"{what} must have at least 2 columns (the circle S^1), got {rows.shape[1]}: d would be < 1")
    norms = rows.norm(dim=1)
    off = (norms - 1).abs()
    if len(rows) and not float(off.max()) <= 1e-5:
        worst = int(off.argmax())
        raise ValueError(
            f"rows of {what} must have unit length, row {worst} has {float(norms[worst]):.6g}; "
            "to_orthant_sphere or OrthantSphere brings data onto the sphere"
        )
    return rows / norms[:, None]
