"""How many modes and hidden units a map and a tolerance need.

    sup |f - T| <= eps_a + eps_K + eps_s                                                                         (1)

with eps_a of the attention (0 if its mixing is inverted), eps_K of the series, eps_s of the splines. eps_K is measured
on a grid finer than that of the fit, which has the corners and the diagonals of the box. Between its points, h apart,
nothing is known unless f has a known Lipschitz constant; then

    eps_K <= largest error on the grid + (Lip f + Lip S) h sqrt(D) / 2                                           (2)

holds on the whole box.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int
from torch import Tensor

from etude.theory.uat_transformer.assembly import Box
from etude.theory.uat_transformer.measuring import Map
from etude.theory.uat_transformer.ridge import (
    Function,
    RidgeExpansion,
    evaluate,
    grid_size,
    max_directions,
    ridge_expansion,
)
from etude.theory.uat_transformer.splines import spline_pieces

__all__ = [
    "Attempt",
    "Plan",
    "ToleranceNotReached",
    "between_points",
    "check_sizes",
    "grid_error",
    "plan_universal",
    "unit_function",
]

SHARE_SPLINES, SHARE_ATTENTION = 1 / 4, 1 / 8
"""Parts of the tolerance that eps_s and, without the inverse, eps_a take."""
MAX_GRID = 2**25


@dataclass(frozen=True)
class Attempt:
    """A number of modes that was tried.

    Attributes:
        K: modes of a coordinate. directions: of the ridge functions. hidden: width of the ReLU network.
        series_error: eps_K on the grid; NaN where the width alone ruled K out.
        total: the right side of Eq. (1), Eq. (2) included where a Lipschitz constant is given.
    """

    K: int
    directions: int
    hidden: int
    series_error: float
    total: float


class ToleranceNotReached(ValueError):
    """No width or grid within the limits meets the tolerance.

    Attributes:
        achieved: the smallest total error among the attempts; infinity if none was measured.
        projected_width: hidden width at which the last two attempts, extrapolated on logarithmic scales, would reach
            the tolerance; infinity if the error did not fall.
        attempts: what was tried.
    """

    def __init__(self, tol: float, why: str, attempts: Sequence[Attempt], spare: float):
        measured = [attempt for attempt in attempts if math.isfinite(attempt.total)]
        self.attempts = tuple(attempts)
        self.achieved = min((attempt.total for attempt in measured), default=math.inf)
        self.projected_width = _projection(tol, attempts, measured, spare)
        best = min(measured, key=lambda attempt: attempt.total, default=None)
        reached = "nothing could be measured" if best is None else f"the best is {best.total:.3g}, at K = {best.K}"
        width = (
            f"projected hidden width {self.projected_width:,.0f}"
            if math.isfinite(self.projected_width)
            else "the error does not fall with the width: is f continuous?"
        )
        super().__init__(f"tolerance {tol:g} is not reached: {reached}; {why}; {width}")
        self._arguments = (tol, why, self.attempts, spare)

    def after(self, earlier: Sequence[Attempt]) -> "ToleranceNotReached":
        """The same with earlier attempts before its own."""
        tol, why, attempts, spare = self._arguments
        return ToleranceNotReached(tol, why, (*earlier, *attempts), spare)

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception is unpickled from its arguments, and worker processes hand it on that way.
        return type(self), self._arguments


def _projection(tol: float, attempts: Sequence[Attempt], measured: Sequence[Attempt], spare: float) -> float:
    least = float(max((attempt.hidden for attempt in attempts), default=0))
    if len(measured) < 2:
        return least
    before, last = measured[-2:]
    if not last.series_error < 0.98 * before.series_error:
        return math.inf
    if last.hidden <= before.hidden or tol <= spare:
        return least
    exponent = math.log(last.hidden / before.hidden) / math.log(before.series_error / last.series_error)
    return max(least, last.hidden * (last.series_error / (tol - spare)) ** exponent)


@dataclass(frozen=True, eq=False)
class Plan:
    """What meets a tolerance, before any weight is set.

    Attributes:
        tol: the tolerance. exact: whether the attention's mixing is inverted.
        expansion: the series. pieces: of the spline of each direction.
        hidden: width of the ReLU network.
        series_error: largest error of the series on the grid. spacing: h of that grid, in units of the box's sides.
        spline_share, attention_share: the parts eps_s and eps_a of Eq. (1).
        attempts: all K that were tried, the last one this.
    """

    tol: float
    exact: bool
    expansion: RidgeExpansion
    pieces: Int[np.ndarray, "G"]
    hidden: int
    series_error: float
    spacing: float
    spline_share: float
    attention_share: float
    attempts: tuple[Attempt, ...]


def unit_function(f: Map, box: Box, seq_len: int, in_dim: int, out_dim: int) -> Function:
    """f as a function of the D numbers of a sequence in the unit cube, all its outputs side by side.

    Raises:
        ValueError: later, when called, if f returns another shape than (N, seq_len, out_dim).
    """

    def g(u: Tensor) -> Tensor:
        value = f(box.from_unit(u.unflatten(1, (seq_len, in_dim))))
        wanted = (len(u), seq_len, out_dim)
        if not isinstance(value, Tensor) or tuple(value.shape) != wanted:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"f must map {(len(u), seq_len, in_dim)} to {wanted}, got {shape}")
        return value.flatten(1)

    return g


def grid_error(expansion: RidgeExpansion, g: Function, factor: int = 4) -> tuple[float, float]:
    """The largest error of a series on a grid `factor` times finer than that of its fit, and the grid's spacing.

    The grid has the corners of the cube, hence its diagonals too.
    """
    intervals = factor * expansion.n
    worst = 0.0
    for points, values in expansion.slabs(np.linspace(0, 1, intervals + 1)):
        worst = max(worst, float(np.abs(evaluate(g, points) - values).max()))
    return worst, 1 / intervals


def between_points(lipschitz: float, spacing: float, D: int) -> float:
    """What Eq. (2) adds to the error on a grid of the unit cube: half a cell's diagonal times Lip f + Lip S."""
    return lipschitz * spacing * math.sqrt(D) / 2


def check_sizes(seq_len: int, in_dim: int, out_dim: int) -> None:
    """Refuses sizes that are not positive, and more than four numbers a sequence, with the width they would need."""
    for name, size in (("seq_len", seq_len), ("in_dim", in_dim), ("out_dim", out_dim)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    D = seq_len * in_dim
    if D > 4:
        directions = max_directions(D, 4)
        raise ValueError(
            f"seq_len * dim = {D} exceeds 4: about (2K + 1)^D / 2 ridge functions are needed, {directions:,} at "
            f"K = 4 already, and a hidden width of seq_len times their knots, {seq_len * directions:,} or more"
        )


def plan_universal(
    f: Map,
    seq_len: int,
    dim: int,
    out_dim: int,
    tol: float | int,
    *,
    domain: Sequence = (0.0, 1.0),
    max_hidden: float | int = 200_000,
    exact: bool = True,
    lipschitz: float | int | None = None,
    allocation: str = "uniform",
    damping: str = "none",
    start: int = 4,
    growth: float | int = 2,
    max_grid: int = MAX_GRID,
) -> Plan:
    """The series and splines that meet a tolerance, found by doubling K; no module is built.

    Arguments and errors are those of `build_universal`; `start` is the first K, and `growth` the factor to the next
    one: a smaller one takes longer and finds widths without jumps.
    """
    check_sizes(seq_len, dim, out_dim)
    for name, value in (("tol", tol), ("max_hidden", max_hidden), ("start", start)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")
    if lipschitz is not None and not 0 <= lipschitz < math.inf:
        raise ValueError(f"lipschitz must be finite and at least 0, got {lipschitz}")
    if not growth > 1:
        raise ValueError(f"growth must exceed 1, got {growth}")
    box, D = Box.of(domain, dim), seq_len * dim
    g = unit_function(f, box, seq_len, dim, out_dim)
    slope = None if lipschitz is None else float(lipschitz) * box.side
    spline_share = SHARE_SPLINES * tol
    attention_share = 0.0 if exact or seq_len == 1 else SHARE_ATTENTION * tol
    spare = spline_share + attention_share
    attempts: list[Attempt] = []
    K = start
    while True:
        n = grid_size(D, K)
        factor = next((c for c in (4, 3, 2) if (c * n + 1) ** D <= max_grid), None)
        if factor is None:
            why = f"K = {K} needs a grid of {(2 * n + 1) ** D:,} points, more than max_grid = {max_grid:,}"
            raise ToleranceNotReached(float(tol), why, attempts, spare)
        expansion = ridge_expansion(g, D, K, damping=damping)
        pieces = spline_pieces(expansion, spline_share, allocation=allocation)
        hidden = seq_len * int(pieces.sum()) + seq_len
        if hidden > max_hidden:
            attempts.append(Attempt(K, len(expansion.directions), hidden, math.nan, math.nan))
            why = f"K = {K} needs a hidden width of {hidden:,}, more than max_hidden = {max_hidden:,}"
            raise ToleranceNotReached(float(tol), why, attempts, spare)
        error, spacing, total = _measured(expansion, g, factor, slope, spare, float(tol), max_grid)
        attempts.append(Attempt(K, len(expansion.directions), hidden, error, total))
        if total <= tol:
            return Plan(
                float(tol), exact, expansion, pieces, hidden, error, spacing, spline_share, attention_share,
                tuple(attempts),
            )  # fmt: skip
        K = max(K + 1, round(growth * K))


def _measured(
    expansion: RidgeExpansion, g: Function, factor: int, slope: float | None, spare: float, tol: float, max_grid: int
) -> tuple[float, float, float]:
    """Error and spacing of a grid, and Eq. (1); with a Lipschitz constant the grid is refined as far as that helps."""
    error, spacing = grid_error(expansion, g, factor)
    if slope is None:
        return error, spacing, error + spare
    D, both = expansion.D, slope + expansion.lipschitz
    total = error + spare + between_points(both, spacing, D)
    while total > tol > error + spare:
        room = tol - error - spare
        needed = math.ceil(1.05 * between_points(both, 1 / expansion.n, D) / room)
        factor = max(needed, factor + 1)
        if (factor * expansion.n + 1) ** D > max_grid:
            break
        error, spacing = grid_error(expansion, g, factor)
        total = error + spare + between_points(both, spacing, D)
    return error, spacing, total
