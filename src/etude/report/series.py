"""Curves made ready for drawing: cleaned, thinned, and averaged over seeds whose steps differ."""

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etude.report.formatting import finite

__all__ = ["clean", "mean_curve", "thin"]

Point = tuple[float, float]


def clean(points: Iterable[Any]) -> list[Point]:
    """The finite points in the order of their steps; of several at one step the last stays."""
    kept: dict[float, float] = {}
    for point in points:
        if isinstance(point, (list, tuple)) and len(point) == 2:
            step, value = finite(point[0]), finite(point[1])
            if step is not None and value is not None:
                kept[step] = value
    return sorted(kept.items())


def thin(points: Sequence[Any], limit: int) -> list[Any]:
    """At most `limit` of `points`, evenly spaced, first and last among them."""
    if len(points) <= limit:
        return list(points)
    if limit < 2:
        return list(points[-limit:]) if limit else []
    stride = (len(points) - 1) / (limit - 1)
    return [points[round(index * stride)] for index in range(limit)]


def mean_curve(seeds: Mapping[str, Sequence[Point]], limit: int) -> list[Point]:
    """The mean over seeds, each interpolated linearly within its own range, wherever at least half of them reach."""
    curves = [points for points in seeds.values() if points]
    grid = thin(sorted({step for points in curves for step, _ in points}), limit)
    needed = math.ceil(len(curves) / 2)
    means = []
    for step in grid:
        values = [value for points in curves if (value := _interpolate(points, step)) is not None]
        if len(values) >= needed:
            means.append((step, math.fsum(values) / len(values)))
    return means


def _interpolate(points: Sequence[Point], step: float) -> float | None:
    if not points[0][0] <= step <= points[-1][0]:
        return None
    right = bisect_right(points, step, key=lambda point: point[0])
    x0, y0 = points[right - 1]
    if right == len(points) or x0 == step:
        return y0
    x1, y1 = points[right]
    return y0 + (y1 - y0) * (step - x0) / (x1 - x0)
