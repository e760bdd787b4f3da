"""What a claim expects: contrasts between arms, declared before anything runs.

Every function checks its arguments at once and returns a frozen record, a `Contrast`. Each contrast is primary
(it must hold for the claim to hold) unless it is wrapped in `shown`.

Margins are >= 0 and in the unit of the metric. With a `transform` ("log" or "logit") arms are compared on that
scale, and the margin is in its unit: a margin of 0.1 on "log" is a factor of exp(0.1).

    expect=[higher("noise", than="plain", metric="accuracy"), shown("he_init")]
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from etude.lab.contrast import (
    Contrast,
    Efficient,
    Equivalent,
    Higher,
    Identity,
    Interaction,
    Lower,
    NotWorse,
    Shape,
    Shown,
    Threshold,
    Trend,
)

__all__ = [
    "Contrast",
    "Shown",
    "efficient",
    "equivalent",
    "higher",
    "identity",
    "interaction",
    "lower",
    "not_worse",
    "shape",
    "shown",
    "threshold",
    "trend",
]


def higher(arm: str, *, than: str, metric: str, margin: float | int = 0.0, transform: str = "none") -> Contrast:
    """`arm` exceeds `than` on `metric` by more than `margin`."""
    return Higher(arm=arm, than=than, metric=metric, margin=margin, transform=transform)


def lower(arm: str, *, than: str, metric: str, margin: float | int = 0.0, transform: str = "none") -> Contrast:
    """`arm` lies below `than` on `metric` by more than `margin`."""
    return Lower(arm=arm, than=than, metric=metric, margin=margin, transform=transform)


def not_worse(
    arm: str, *, than: str, metric: str, margin: float | int, better: str = "higher", transform: str = "none"
) -> Contrast:
    """`arm` is worse than `than` by less than `margin`; `better` is the metric's good direction."""
    return NotWorse(arm=arm, than=than, metric=metric, margin=margin, better=better, transform=transform)


def equivalent(
    arm: str, *, to: str, metric: str, margin: float | int, control: str, transform: str = "none"
) -> Contrast:
    """`arm` and `to` differ by at most `margin`, on a metric that can tell arms apart.

    Args:
        arm: the arm said to be equivalent.
        to: what it is equivalent to.
        metric: the metric compared.
        margin: the largest difference that counts as none.
        control: an arm that must differ from `to`; without it, a metric that sees nothing would prove everything.
        transform: "none", "log" or "logit".

    Raises:
        ValueError: if the margin is negative or an arm is named twice.
    """
    return Equivalent(arm=arm, to=to, metric=metric, margin=margin, control=control, transform=transform)


def efficient(
    arm: str,
    *,
    than: str,
    cost: str,
    quality: str,
    margin: float | int,
    max_ratio: float | int = 1.0,
    better: str = "higher",
    transform: str = "none",
) -> Contrast:
    """`arm` costs less than `than` on every seed and is worse on `quality` by less than `margin`.

    Args:
        arm: the cheaper arm.
        than: the arm it is measured against.
        cost: a metric of cost, such as FLOPs, bytes, parameters or steps.
        quality: the metric on which `arm` must not be worse.
        margin: the loss of quality that is still acceptable.
        max_ratio: the mean cost of `arm` is at most this share of that of `than`, in (0, 1].
        better: the good direction of `quality`.
        transform: of `quality`; costs are compared as they are.

    Raises:
        ValueError: if the margin is negative or `max_ratio` lies outside (0, 1].
    """
    return Efficient(
        arm=arm,
        than=than,
        cost=cost,
        metric=quality,
        margin=margin,
        max_ratio=max_ratio,
        better=better,
        transform=transform,
    )


def threshold(
    arm: str,
    *,
    metric: str,
    above: float | int | None = None,
    below: float | int | None = None,
    transform: str = "none",
) -> Contrast:
    """The metric of `arm` lies above `above`, below `below` or between the two, given in the metric's own unit."""
    return Threshold(arm=arm, metric=metric, above=above, below=below, transform=transform)


def trend(
    metric: str,
    *,
    slope: Sequence[float | int | None],
    against: Mapping[str, float | int] | None = None,
    arm: str | None = None,
    transform: str = "none",
) -> Contrast:
    """The slope of `metric`, one per seed, lies in the range `slope`.

    Args:
        metric: the metric whose least-squares slope over arms is taken; with `arm`, a metric that is a slope already.
        slope: (low, high); None or an infinity leaves that end open.
        against: the position of each arm on the axis, at least two different ones.
        arm: instead of `against`, the one arm that returns a slope per seed.
        transform: of the metric; positions are used as given, so pass their logarithms for a log-log slope.

    Raises:
        ValueError: if not exactly one of `against` and `arm` is given, or the range is empty or unbounded.
    """
    points = None if against is None else tuple(against.items())
    return Trend(metric=metric, slope=tuple(slope), against=points, arm=arm, transform=transform)


def interaction(
    pair: Sequence[str], *, minus: Sequence[str], metric: str, margin: float | int = 0.0, transform: str = "none"
) -> Contrast:
    """With `pair` = (a, b) and `minus` = (c, d): (a - b) - (c - d) exceeds `margin`."""
    return Interaction(pair=tuple(pair), minus=tuple(minus), metric=metric, margin=margin, transform=transform)


def shape(
    metric: str, *, order: Sequence[str], optimum: Sequence[str], better: str = "higher", transform: str = "none"
) -> Contrast:
    """Over arms in their `order`, the best metric lies inside the range `optimum`.

    Each arm outside the range is compared with the mean of the arms inside.

    Args:
        metric: the metric compared.
        order: the arms along the axis.
        optimum: arms of `order` that span the range; those between them belong to it too.
        better: "higher" or "lower": the direction that is best.
        transform: "none", "log" or "logit".

    Raises:
        ValueError: if `optimum` names an arm that is not in `order`, or leaves none outside.
    """
    span = (optimum,) if isinstance(optimum, str) else tuple(optimum)
    return Shape(metric=metric, order=tuple(order), optimum=span, better=better, transform=transform)


def identity(arm: str, *, metric: str, tolerance: float | int, value: float | int = 0.0) -> Contrast:
    """The metric of `arm` equals `value` up to `tolerance` on every seed; no statistics."""
    return Identity(arm=arm, metric=metric, tolerance=tolerance, value=value)


def shown(*items: str | Contrast) -> Shown:
    """Arms (by name) and contrasts that stand beside the verdict without taking part in it."""
    arms = tuple(item for item in items if isinstance(item, str))
    if not items or not all(arms) or len(set(arms)) < len(arms):
        raise ValueError(f"shown needs distinct names of arms, or contrasts, got {arms}")
    contrasts = tuple(replace(item, role="shown") for item in items if isinstance(item, Contrast))
    return Shown(arms=arms, contrasts=contrasts)
