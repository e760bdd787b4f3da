"""Error against modes, and width against tolerance."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from etude.nn.gaussian import Estimate
from etude.theory.uat_transformer.measuring import Map
from etude.theory.uat_transformer.planning import Attempt, ToleranceNotReached, plan_universal

__all__ = ["WidthCurve", "error_rate", "plot_width_curve", "width_curve", "width_exponent"]


@dataclass(frozen=True)
class WidthCurve:
    """Hidden widths of the construction for a list of tolerances.

    Attributes:
        tols: the tolerances, decreasing. hidden: width for each; the projected one where it was not reached.
        reached: whether each was reached within the limits.
        modes: K for each; that of the last attempt where it was not reached.
        attempts: every K that was tried for the smallest tolerance.
        dimension: D, the numbers of a sequence.
    """

    tols: tuple[float, ...]
    hidden: tuple[float, ...]
    reached: tuple[bool, ...]
    modes: tuple[int, ...]
    attempts: tuple[Attempt, ...]
    dimension: int

    @property
    def exponent(self) -> Estimate:
        """s of width ~ tol^-s, over the tolerances that were reached."""
        pairs = [(tol, width) for tol, width, reached in zip(self.tols, self.hidden, self.reached) if reached]
        return width_exponent([tol for tol, _ in pairs], [width for _, width in pairs])


def width_exponent(tols: Sequence[float], widths: Sequence[float | int]) -> Estimate:
    """s of width ~ tol^-s: the least-squares slope of log width over log 1/tol, and its standard error.

        width_exponent([0.1, 0.01], [30, 300])      # Estimate(1.0, nan): two points fit a line without a residual

    Raises:
        ValueError: if there are not two different tolerances, or a number is not positive.
    """
    return _slope([1 / tol if tol > 0 else math.nan for tol in tols], widths)


def error_rate(modes: Sequence[int], errors: Sequence[float]) -> Estimate:
    """r of error ~ K^r, in the same way: about -1 for Lipschitz maps, and for smooth ones that meet the boundary askew.

    Raises:
        ValueError: if there are not two different numbers of modes, or a number is not positive.
    """
    return _slope(modes, errors)


def _slope(x: Sequence[float | int], y: Sequence[float | int]) -> Estimate:
    if len(x) != len(y) or len(set(x)) < 2 or not all(0 < value < math.inf for value in (*x, *y)):
        raise ValueError(f"a rate needs two or more different points, all positive and finite, got {list(zip(x, y))}")
    log_x, log_y = (torch.tensor(values, dtype=torch.float64).log() for values in (x, y))
    centred = log_x - log_x.mean()
    slope = (centred * log_y).sum() / centred.square().sum()
    residual = log_y - log_y.mean() - slope * centred
    degrees = len(x) - 2
    variance = residual.square().sum() / degrees if degrees else torch.tensor(math.nan, dtype=torch.float64)
    return Estimate(slope, (variance / centred.square().sum()).sqrt())


def width_curve(
    f: Map, seq_len: int, dim: int, out_dim: int, tols: Sequence[float], *, start: int = 4, **options: Any
) -> WidthCurve:
    """The hidden width that the construction needs for each tolerance, without building any block.

        plot_width_curve(width_curve(f, 2, 1, 1, [0.2, 0.1, 0.05]))

    Args:
        f, seq_len, dim, out_dim, start, **options: as for `plan_universal`; `growth=1.1` makes the curve smoother.
        tols: the tolerances, in any order.

    Raises:
        ValueError: if there is none, or as for `plan_universal`; a tolerance that is not reached is recorded as such.
    """
    if not len(tols):
        raise ValueError("tols must name at least one tolerance")
    ordered = tuple(sorted({float(tol) for tol in tols}, reverse=True))
    hidden: list[float] = []
    modes: list[int] = []
    reached: list[bool] = []
    attempts: tuple[Attempt, ...] = ()
    for tol in ordered:
        try:
            plan = plan_universal(f, seq_len, dim, out_dim, tol, start=start, **options)
            attempts = attempts[: -1 if attempts else None] + plan.attempts
            start = plan.expansion.K  # a smaller tolerance needs no fewer modes
            hidden.append(float(plan.hidden))
        except ToleranceNotReached as error:
            attempts = attempts[: -1 if attempts else None] + error.attempts
            hidden.append(error.projected_width)
        modes.append(attempts[-1].K if attempts else start)
        reached.append(math.isfinite(attempts[-1].total) and attempts[-1].total <= tol if attempts else False)
    return WidthCurve(ordered, tuple(hidden), tuple(reached), tuple(modes), attempts, seq_len * dim)


def plot_width_curve(curve: WidthCurve) -> Any:
    """Left: error of the series over K, as measured. Right: hidden width over tolerance; hollow marks are projected.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "etude[run]"') from error
    figure = Figure(figsize=(8.0, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    tried = [attempt for attempt in curve.attempts if math.isfinite(attempt.series_error)]
    left.loglog([a.K for a in tried], [a.series_error for a in tried], "o-", color="tab:blue")
    left.set(xlabel="modes K", ylabel="sup error of the series on the grid", title="Error")
    for reached, fill in ((True, "tab:blue"), (False, "none")):
        points = [
            (tol, width)
            for tol, width, met in zip(curve.tols, curve.hidden, curve.reached)
            if met == reached and math.isfinite(width)
        ]
        if points:
            label = "built" if reached else "projected"
            right.plot(*zip(*points), "o", color="tab:blue", markerfacecolor=fill, label=label)
    first = next(((tol, width) for tol, width, met in zip(curve.tols, curve.hidden, curve.reached) if met), None)
    if first is not None:
        guide = [first[1] * (first[0] / tol) ** curve.dimension for tol in curve.tols]
        right.plot(curve.tols, guide, "--", color="0.6", label=f"tol^-{curve.dimension}")
    right.set(xscale="log", yscale="log", xlabel="tolerance", ylabel="hidden width", title="Width")
    right.invert_xaxis()
    right.legend(frameon=False)
    return figure
