"""Charts as inline SVG, drawn here and coloured by the page's style sheet.

Every chart is an `Svg`: text that templates insert as it stands, because all foreign text in it is escaped here.
Arms are told apart by colour, dash and end marker together, numbered by their place in the claim.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from etude.report.formatting import format_effect, format_number
from etude.report.series import Point, mean_curve, thin

__all__ = ["Axis", "Svg", "difference_dots", "interval_bar", "learning_curves", "swatch"]

COLOURS, DASHES, MARKERS = 8, 5, 4

Number = float | int
Range = tuple[Number | None, Number | None]
"""A stretch of an axis; None leaves that end open."""


class Svg(str):
    """Markup that was escaped when it was made; templates insert it unchanged."""

    def __html__(self) -> str:
        return str(self)


@dataclass(frozen=True)
class Axis:
    """Maps values in [low, high] linearly to coordinates in [start, end]."""

    low: Number
    high: Number
    start: Number
    end: Number

    @classmethod
    def around(cls, values: Sequence[Number], start: Number, end: Number, padding: Number = 0.06) -> "Axis":
        """An axis that holds all `values`, with a little room at both ends."""
        low, high = min(values), max(values)
        room = (high - low) * padding or abs(high) * 0.1 or 1.0
        return cls(low - room, high + room, start, end)

    def __call__(self, value: Number) -> float:
        """The coordinate of `value`; values beyond the ends are held at them."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int = 6) -> list[float]:
        """At most `count` or so round values inside the axis: multiples of 1, 2 or 5 times a power of ten."""
        rough = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def interval_bar(effect: Number | None, low: Number | None, high: Number | None, *, reference: Number = 0.0) -> Svg:
    """A small bar of an interval around `reference`, which stands in the middle; empty without an effect."""
    if effect is None:
        return Svg("")
    left, right = effect if low is None else low, effect if high is None else high
    reach = max(abs(value - reference) for value in (effect, left, right)) or 1.0
    axis = Axis(reference - reach, reference + reach, 4, 96)
    words = f"{format_effect(effect, low, high)}; the vertical line is {format_number(reference)}"
    return Svg(
        f'<svg class="ci" viewBox="0 0 100 14" role="img"><title>{escape(words)}</title>'
        f'<path class="grid" d="M4 7H96"/>'
        f'<path class="zero" d="M50 0V14"/><path class="interval" d="M{_xy(axis(left), 7)}H{_number(axis(right))}"/>'
        f'<circle class="mean" cx="{_number(axis(effect))}" cy="7" r="3"/></svg>'
    )


def difference_dots(
    differences: Mapping[str, Number | None],
    *,
    effect: Number | None,
    low: Number | None,
    high: Number | None,
    reference: Number = 0.0,
    zone: Range | None = None,
    title: str,
) -> Svg:
    """One dot a seed, below them the mean with its interval, the reference line, and the zone where it must lie.

    Args:
        differences: the paired difference of each seed; a seed without one gets a cross at the left edge.
        effect, low, high: the mean and the ends of its interval, as far as they are known.
        reference: where the solid vertical line stands; zero for differences.
        zone: the range that the whole interval must reach for the contrast to hold; its edges are drawn dashed.
        title: what is shown, for readers of the text.
    """
    edges = [edge for edge in zone or () if edge is not None]
    known = [value for value in differences.values() if value is not None]
    extent = [*known, *edges, reference, *(value for value in (effect, low, high) if value is not None)]
    row = 13.0 if len(differences) <= 6 else max(4.0, 90 / len(differences))
    top, left, right = 8.0, 52.0, 350.0
    bottom = top + row * len(differences)
    middle = bottom + 14
    floor = middle + 12
    axis = Axis.around(extent, left, right)

    parts = [_zone(axis, zone, top - 4, floor)] if zone else []
    parts.append(_scale(axis, floor, left, right))
    parts.append(f'<path class="zero" d="M{_xy(axis(reference), top - 4)}V{_number(floor)}"/>')
    radius = 3.6 if row > 8 else 2.4
    for index, (seed, value) in enumerate(differences.items()):
        y = top + row * (index + 0.5)
        if row > 8:
            parts.append(f'<text class="y" x="46" y="{_number(y + 3.5)}">{escape(f"seed {seed}")}</text>')
        if value is None:
            parts.append(f'<path class="lost" d="M{_xy(left + 3, y - 3)}l6 6m0-6l-6 6"/>')
        else:
            parts.append(
                f'<circle class="dot" cx="{_number(axis(value))}" cy="{_number(y)}" r="{radius}">'
                f"<title>{escape(f'seed {seed}: {format_number(value)}')}</title></circle>"
            )
    if effect is not None:
        parts.append(f'<text class="y" x="46" y="{_number(middle + 3.5)}">mean</text>')
        if low is not None or high is not None:
            start, end = axis(axis.low if low is None else low), axis(axis.high if high is None else high)
            caps = f"M{_xy(start, middle - 4)}v8M{_xy(end, middle - 4)}v8"
            parts.append(f'<path class="interval" d="M{_xy(start, middle)}H{_number(end)}{caps}"/>')
        parts.append(f'<path class="mean" d="{_diamond(axis(effect), middle, 5)}"/>')
    words = f"{len(known)} of {len(differences)} seeds have a value. Mean {format_effect(effect, low, high)}."
    return _figure("dots", 360, floor + 20, parts, title=title, words=words)


def learning_curves(
    curves: Mapping[int, Mapping[str, Sequence[Point]]],
    *,
    title: str,
    points: int = 60,
    seed_lines: int = 8,
) -> Svg:
    """The mean of each arm, thick, over its seeds, thin.

    Args:
        curves: the number of each arm -> seed -> cleaned points.
        title: what is shown, for readers of the text.
        points: most points of a line.
        seed_lines: most thin lines in the chart, shared by the arms.
    """
    means = {arm: mean_curve(seeds, points) for arm, seeds in curves.items()}
    share = max(1, seed_lines // max(1, len(curves))) if seed_lines else 0
    thins = {arm: [thin(line, points) for line in thin(list(seeds.values()), share)] for arm, seeds in curves.items()}
    drawn = [point for line in means.values() for point in line]
    drawn += [point for lines in thins.values() for line in lines for point in line]
    if not drawn:
        return Svg("")
    xs, ys = [x for x, _ in drawn], _without_outliers([y for _, y in drawn])
    across = Axis(min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1, 46, 344)
    upward = Axis.around(ys, 182, 12)

    parts = []
    for tick in upward.ticks():
        y = upward(tick)
        parts.append(f'<path class="grid" d="M46 {_number(y)}H350"/>')
        parts.append(f'<text class="y" x="40" y="{_number(y + 3.5)}">{_tick(tick)}</text>')
    parts += [_scale(across, 186, 46, 350), '<text class="x name" x="198" y="218">step</text>']
    for arm, lines in thins.items():
        for line in lines:
            parts.append(f'<path class="seed {_colour(arm)}" d="{_polyline(line, across, upward)}"/>')
    for arm, line in means.items():
        if line:
            parts.append(f'<path class="arm {_colour(arm)} {_dash(arm)}" d="{_polyline(line, across, upward)}"/>')
            last, value = line[-1]
            parts.append(f'<path class="end {_colour(arm)}" d="{_marker(arm, across(last), upward(value))}"/>')
    words = f"Steps {_tick(min(xs))} to {_tick(max(xs))}, values {format_number(min(ys))} to {format_number(max(ys))}."
    return _figure("curves", 360, 224, parts, title=title, words=words)


def swatch(arm: int) -> Svg:
    """The line and marker of an arm, for a legend."""
    return Svg(
        '<svg class="swatch" viewBox="0 0 34 12" aria-hidden="true">'
        f'<path class="arm {_colour(arm)} {_dash(arm)}" d="M1 6H25"/>'
        f'<path class="end {_colour(arm)}" d="{_marker(arm, 28, 6)}"/></svg>'
    )


def _figure(kind: str, width: Number, height: Number, parts: Sequence[str], *, title: str, words: str) -> Svg:
    return Svg(
        f'<svg class="chart {kind}" viewBox="0 0 {_number(width)} {_number(height)}" role="img">'
        f"<title>{escape(title)}</title><desc>{escape(words)}</desc>{''.join(parts)}</svg>"
    )


def _scale(axis: Axis, floor: Number, left: Number, right: Number) -> str:
    """A horizontal axis from `left` to `right` with its ticks and their labels."""
    ticks = [(_number(axis(tick)), _tick(tick)) for tick in axis.ticks()]
    marks = "".join(f"M{x} {_number(floor)}v4" for x, _ in ticks)
    labels = "".join(f'<text class="x" x="{x}" y="{_number(floor + 16)}">{label}</text>' for x, label in ticks)
    return f'<path class="axis" d="M{_xy(left, floor)}H{_number(right)}{marks}"/>{labels}'


def _zone(axis: Axis, zone: Range, top: Number, floor: Number) -> str:
    low, high = zone
    left, right = axis(axis.low if low is None else low), axis(axis.high if high is None else high)
    area = (
        f'<rect class="zone" x="{_number(left)}" y="{_number(top)}" width="{_number(max(right - left, 0.8))}" '
        f'height="{_number(floor - top)}"/>'
    )
    edges = [f"M{_xy(axis(edge), top)}V{_number(floor)}" for edge in zone if edge]
    return area + (f'<path class="margin" d="{"".join(edges)}"/>' if edges else "")


def _without_outliers(values: list[Number]) -> list[float]:
    """The values an axis should span: all, unless a few of them would flatten the rest."""
    ordered = sorted(values)
    low, high = ordered[len(ordered) // 50], ordered[-1 - len(ordered) // 50]
    if high > low and ordered[-1] - ordered[0] > 5 * (high - low):
        return [low, high]
    return ordered


def _polyline(points: Sequence[Point], across: Axis, upward: Axis) -> str:
    """A line in steps of a tenth of a pixel, each point relative to the one before: half as long as absolute ones."""
    tenths = [(round(10 * across(x)), round(10 * upward(y))) for x, y in points]
    start = f"M{_xy(tenths[0][0] / 10, tenths[0][1] / 10)}"
    if len(tenths) == 1:
        return f"{start}h3"
    moves = [(x1 - x0, y1 - y0) for (x0, y0), (x1, y1) in pairwise(tenths)]
    return f"{start}l" + " ".join(f"{_tenth(dx)} {_tenth(dy)}" for dx, dy in moves).replace(" -", "-")


def _tenth(tenths: int) -> str:
    sign, whole, part = "-" * (tenths < 0), abs(tenths) // 10, abs(tenths) % 10
    return f"{sign}{whole or ''}.{part}" if part else f"{sign}{whole}"


def _marker(arm: int, x: Number, y: Number) -> str:
    shape = arm % MARKERS
    if shape == 0:
        return f"M{_xy(x - 3.5, y)}a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0z"
    if shape == 1:
        return f"M{_xy(x - 3.2, y - 3.2)}h6.4v6.4h-6.4z"
    if shape == 2:
        return f"M{_xy(x, y - 4)}l4 7h-8z"
    return _diamond(x, y, 4.5)


def _diamond(x: Number, y: Number, size: Number) -> str:
    side = _number(size)
    return f"M{_xy(x, y - size)}l{side} {side}l-{side} {side}l-{side}-{side}z"


def _colour(arm: int) -> str:
    return f"c{arm % COLOURS}"


def _dash(arm: int) -> str:
    return f"d{arm % DASHES}"


def _tick(value: Number) -> str:
    if abs(value) >= 10_000 and value % 100 == 0 and abs(value) < 1e9:
        return f"{value / 1e6:g}M" if abs(value) >= 1e6 else f"{value / 1e3:g}k"
    return f"{value:.6g}".replace("-", "\u2212") if 1e-3 <= abs(value) < 1e6 or value == 0 else f"{value:.3g}"


def _xy(x: Number, y: Number) -> str:
    return f"{_number(x)} {_number(y)}"


def _number(value: Number) -> str:
    text = f"{value:.1f}"
    return text.removesuffix(".0") if not text.startswith("-0.0") else "0"
