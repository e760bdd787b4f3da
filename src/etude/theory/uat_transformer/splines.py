"""One-hidden-layer ReLU networks that draw a sum of ridge functions, with a certified error.

On a range of length r a function with |rho''| <= c is met by a linear spline of m equal pieces within (r / m)^2 c / 8,
so that an error eps takes

    m = ceil(r sqrt(c / (8 eps)))                                                                               (1)

pieces; the spline with knots t_0 < t_1 < ... and slopes s_0, s_1, ... is the ReLU network

    rho(t_0) + sum_j (s_j - s_(j-1)) relu(t - t_j),   s_(-1) = 0.                                               (2)

Errors of directions add up to eps: in equal shares ("uniform"), or in the shares that need the fewest pieces in all
("balanced"): eps_p in proportion to (r_p^2 c_p)^(1/3).
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from etude.theory.uat_transformer.ridge import RidgeExpansion

__all__ = ["ReluSpline", "RidgeNetwork", "pieces_for_width", "relu_spline", "ridge_network", "spline_pieces"]


@dataclass(frozen=True, eq=False)
class ReluSpline:
    """A linear spline as in Eq. (2), callable: (N,) to (N, P); constant to the left of the first knot.

    Attributes:
        knots: (m,) t_j, without the right end. weights: (m, P) changes of slope. bias: (P,) value at the first knot.
    """

    knots: Float[np.ndarray, "m"]
    weights: Float[np.ndarray, "m P"]
    bias: Float[np.ndarray, "P"]

    def __call__(self, t: Float[np.ndarray, "N"]) -> Float[np.ndarray, "N P"]:
        return self.bias + np.maximum(t[:, None] - self.knots, 0.0) @ self.weights


def relu_spline(knots: Float[np.ndarray, "points"], values: Float[np.ndarray, "points P"]) -> ReluSpline:
    """The spline through the given points, Eq. (2).

        relu_spline(np.linspace(0, 1, 9), np.sin(np.linspace(0, 1, 9))[:, None])

    Raises:
        ValueError: if there are fewer than two knots, they do not increase, or there is not one row of values a knot.
    """
    if len(knots) < 2 or len(values) != len(knots):
        raise ValueError(f"a spline needs at least 2 knots and a value for each, got {len(knots)} and {len(values)}")
    if not (np.diff(knots) > 0).all():
        raise ValueError("knots must increase")
    weights, _ = _slope_changes(knots, values, np.zeros(len(knots), dtype=int))
    return ReluSpline(knots[:-1].copy(), weights, values[0].copy())


def _slope_changes(
    knots: np.ndarray, values: np.ndarray, segment: Int[np.ndarray, "points"]
) -> tuple[np.ndarray, np.ndarray]:
    """Of splines laid end to end: changes of slope, and slopes, at every knot but the last of each segment."""
    inside = segment[1:] == segment[:-1]
    slopes = (np.diff(values, axis=0)[inside]) / np.diff(knots)[inside, None]
    piece = segment[:-1][inside]
    changes = slopes.copy()
    later = np.flatnonzero(piece[1:] == piece[:-1]) + 1
    changes[later] -= slopes[later - 1]
    return changes, slopes


def spline_pieces(expansion: RidgeExpansion, eps: float | int, *, allocation: str = "uniform") -> Int[np.ndarray, "G"]:
    """Pieces for each direction, Eq. (1), for a certified error of the whole sum of at most `eps`.

    Raises:
        ValueError: if `eps` is not positive or `allocation` is unknown.
    """
    if not eps > 0:
        raise ValueError(f"eps must be positive, got {eps}")
    if allocation not in ("uniform", "balanced"):
        raise ValueError(f"allocation must be 'uniform' or 'balanced', got {allocation!r}")
    if not len(expansion.directions):
        return np.zeros(0, dtype=int)
    left, right = expansion.ranges()
    curvatures, lengths = expansion.curvatures(), right - left
    share = np.full(len(lengths), 1 / len(lengths))
    if allocation == "balanced":
        need = np.cbrt(lengths**2 * curvatures)
        share = need / need.sum()
    pieces = np.ceil(lengths * np.sqrt(curvatures / (8 * eps * share)))
    return np.maximum(pieces, 1).astype(int)


@dataclass(frozen=True, eq=False)
class RidgeNetwork:
    """The splines of all directions as one hidden layer, callable: (N, D) to (N, P).

    Attributes:
        directions: (G, D). group: (m,) direction of each hidden unit.
        knots: (m,). weights: (m, P) output weights. bias: (P,).
        left, right: (G,) range of each direction.
        slopes: (m, P) slope to the right of each knot.
        error: certified sup distance to the series, sum_p (r_p / m_p)^2 c_p / 8.
    """

    directions: Int[np.ndarray, "G D"]
    group: Int[np.ndarray, "m"]
    knots: Float[np.ndarray, "m"]
    weights: Float[np.ndarray, "m P"]
    bias: Float[np.ndarray, "P"]
    left: Float[np.ndarray, "G"]
    right: Float[np.ndarray, "G"]
    slopes: Float[np.ndarray, "m P"]
    error: float

    @property
    def lipschitz(self) -> float:
        """A Lipschitz constant of every output on the cube, for moves in the maximum norm: sum_p |p|_1 max |slope|."""
        steepest = np.zeros(len(self.directions))
        if len(self.group):
            np.maximum.at(steepest, self.group, np.abs(self.slopes).max(1))
        return float((np.abs(self.directions).sum(1) * steepest).sum())

    def __call__(self, u: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N P"]:
        value = np.empty((len(u), len(self.bias)))
        rows = max(1, 2**19 // max(len(self.knots), 1))
        for start in range(0, len(u), rows):
            t = u[start : start + rows] @ self.directions.T
            units = np.maximum(t[:, self.group] - self.knots, 0.0)
            value[start : start + rows] = self.bias + units @ self.weights
        return value


def ridge_network(expansion: RidgeExpansion, pieces: Int[np.ndarray, "G"]) -> RidgeNetwork:
    """The hidden layer that draws each direction of a series with the given number of equal pieces.

    Raises:
        ValueError: if there is not at least one piece for each direction.
    """
    if len(pieces) != len(expansion.directions) or (len(pieces) and pieces.min() < 1):
        raise ValueError(f"every one of the {len(expansion.directions)} directions needs at least one piece")
    left, right = expansion.ranges()
    points = pieces + 1
    segment = np.repeat(np.arange(len(pieces)), points)
    within = np.arange(points.sum()) - np.repeat(np.cumsum(points) - points, points)
    knots = left[segment] + within * ((right - left) / pieces)[segment]
    values = expansion.profile(segment, knots)
    weights, slopes = _slope_changes(knots, values, segment)
    inner = within < pieces[segment]
    bias = expansion.bias + values[within == 0].sum(0)
    error = float((((right - left) / pieces) ** 2 * expansion.curvatures() / 8).sum())
    return RidgeNetwork(expansion.directions, segment[inner], knots[inner], weights, bias, left, right, slopes, error)


def pieces_for_width(expansion: RidgeExpansion, units: int, *, allocation: str) -> tuple[float, np.ndarray] | None:
    """The smallest error, to a part in a thousand, whose splines have at most `units` pieces; None if none has."""
    if len(expansion.directions) > units:
        return None
    if not len(expansion.directions):
        return 0.0, np.zeros(0, dtype=int)
    low, high = -40.0, 40.0  # log eps
    while high - low > 1e-3:
        middle = (low + high) / 2
        if spline_pieces(expansion, math.exp(middle), allocation=allocation).sum() <= units:
            high = middle
        else:
            low = middle
    return math.exp(high), spline_pieces(expansion, math.exp(high), allocation=allocation)
