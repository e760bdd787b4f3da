"""Contrasts: what is compared in a claim, as frozen records that check themselves.

A claim's file makes them with the functions of `etude.lab.expect`; `etude.lab.verdict` judges them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

__all__ = [
    "Contrast",
    "Efficient",
    "Equivalent",
    "Higher",
    "Identity",
    "Interaction",
    "Lower",
    "NotWorse",
    "Shape",
    "Shown",
    "Threshold",
    "Trend",
    "transformed",
]


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """A declared comparison of arms on a metric.

    Attributes:
        metric: the metric compared.
        transform: "none", "log" or "logit": the scale on which arms are compared, and the margin's unit.
        role: "primary" (decides the claim) or "shown".
    """

    kind: ClassVar[str] = ""
    _kinds: ClassVar[dict[str, type["Contrast"]]] = {}

    metric: str
    transform: str = "none"
    role: str = "primary"

    def __init_subclass__(cls) -> None:
        if cls.kind:
            Contrast._kinds[cls.kind] = cls

    def __post_init__(self) -> None:
        named = self.method_arms() + self.baseline_arms()
        if not all((*named, *self.metrics())):
            raise ValueError(f"names of arms and metrics must not be empty, got {(*named, *self.metrics())}")
        if len(set(named)) < len(named):
            raise ValueError(f"arms of {self.kind} must differ, got {', '.join(named)}")
        _one_of("transform", self.transform, ("none", "log", "logit"))
        _one_of("role", self.role, ("primary", "shown"))

    def method_arms(self) -> tuple[str, ...]:
        """Arms whose failure on any seed rules out `holds`."""
        return ()

    def baseline_arms(self) -> tuple[str, ...]:
        """Arms that score the claim's declared worst value where they fail."""
        return ()

    def arms(self) -> tuple[str, ...]:
        """All arms that the contrast names."""
        return self.method_arms() + self.baseline_arms()

    def metrics(self) -> tuple[str, ...]:
        """The metrics that every one of `arms()` must return."""
        return (self.metric,)

    def label(self) -> str:
        """The metric as it is compared, such as `log loss`."""
        return self.metric if self.transform == "none" else f"{self.transform} {self.metric}"

    def text(self) -> str:
        """The contrast in a few words and signs."""
        return f"{self.kind} ({self.label()})"

    def spec(self) -> dict[str, Any]:
        """The kind and its arguments, ready for JSON."""
        return {"kind": self.kind, **{field.name: _plain(getattr(self, field.name)) for field in fields(self)}}

    @staticmethod
    def from_spec(spec: Mapping[str, Any]) -> "Contrast":
        """The contrast that `spec` describes, checked as when it was first declared.

        Raises:
            ValueError: if the kind is unknown or an argument is out of range.
        """
        arguments = dict(spec)
        kind = _one_of("kind", arguments.pop("kind", ""), tuple(Contrast._kinds))
        return Contrast._kinds[kind](**{name: _frozen(value) for name, value in arguments.items()})

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True, kw_only=True)
class _Versus(Contrast):
    """One arm against one baseline."""

    arm: str
    than: str
    margin: float | int = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(margin=_size("margin", self.margin))

    def method_arms(self) -> tuple[str, ...]:
        return (self.arm,)

    def baseline_arms(self) -> tuple[str, ...]:
        return (self.than,)


@dataclass(frozen=True, kw_only=True)
class Higher(_Versus):
    """`arm` exceeds `than` by more than `margin`."""

    kind = "higher"

    def text(self) -> str:
        return f"{self.arm} > {self.than}{_signed(' + ', self.margin)} ({self.label()})"


@dataclass(frozen=True, kw_only=True)
class Lower(_Versus):
    """`arm` lies below `than` by more than `margin`."""

    kind = "lower"

    def text(self) -> str:
        return f"{self.arm} < {self.than}{_signed(' - ', self.margin)} ({self.label()})"


@dataclass(frozen=True, kw_only=True)
class NotWorse(_Versus):
    """`arm` is worse than `than` by less than `margin`."""

    kind = "not_worse"
    better: str = "higher"

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of("better", self.better, ("higher", "lower"))

    def text(self) -> str:
        return f"{self.arm} not worse than {self.than} ({self.label()}, margin {self.margin:g})"


@dataclass(frozen=True, kw_only=True)
class Efficient(NotWorse):
    """`arm` costs less than `than` and is not worse on `metric`, the quality."""

    kind = "efficient"
    cost: str
    max_ratio: float | int = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.max_ratio <= 1:
            raise ValueError(f"max_ratio must lie in (0, 1], got {self.max_ratio}")
        self._set(max_ratio=float(self.max_ratio))

    def metrics(self) -> tuple[str, ...]:
        return (self.cost, self.metric)

    def text(self) -> str:
        ratio = "" if self.max_ratio == 1 else f"{self.max_ratio:g} x "
        return f"{self.arm} < {ratio}{self.than} ({self.cost}), not worse ({self.label()}, margin {self.margin:g})"


@dataclass(frozen=True, kw_only=True)
class Equivalent(Contrast):
    """`arm` and `to` differ by at most `margin`, and `control` shows that the metric can tell arms apart."""

    kind = "equivalent"
    arm: str
    to: str
    margin: float | int
    control: str

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(margin=_size("margin", self.margin))

    def method_arms(self) -> tuple[str, ...]:
        # A control that crashes has not shown that the metric sees differences, so no worst value may stand in for it.
        return (self.arm, self.control)

    def baseline_arms(self) -> tuple[str, ...]:
        return (self.to,)

    def text(self) -> str:
        return f"{self.arm} within {self.margin:g} of {self.to} ({self.label()}), {self.control} differs"


@dataclass(frozen=True, kw_only=True)
class Threshold(Contrast):
    """The metric of `arm` lies above `above`, below `below` or between them, in the metric's own unit."""

    kind = "threshold"
    arm: str
    above: float | int | None = None
    below: float | int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.above is None and self.below is None:
            raise ValueError("threshold needs above, below or both, got neither")
        above = None if self.above is None else _finite("above", self.above)
        below = None if self.below is None else _finite("below", self.below)
        if above is not None and below is not None and above >= below:
            raise ValueError(f"above must be less than below, got above={above} and below={below}")
        for end in (above, below):
            if end is not None and not math.isfinite(transformed(end, self.transform)):
                raise ValueError(f"a threshold on the {self.transform} scale must have a finite image, got {end}")
        self._set(above=above, below=below)

    def method_arms(self) -> tuple[str, ...]:
        return (self.arm,)

    def text(self) -> str:
        return f"{_between(self.above, self.arm, self.below)} ({self.metric})"


@dataclass(frozen=True, kw_only=True)
class Trend(Contrast):
    """The least-squares slope of the metric over `against`, or the slope that `arm` returns, lies in `slope`."""

    kind = "trend"
    slope: tuple[float | int | None, ...]
    against: tuple[tuple[str, float | int], ...] | None = None
    arm: str | None = None

    def __post_init__(self) -> None:
        if (self.against is None) == (self.arm is None):
            raise ValueError(f"trend needs exactly one of against and arm, got {self.against} and {self.arm}")
        if len(self.slope) != 2:
            raise ValueError(f"slope must be (low, high), got {self.slope}")
        # Open ends are None, because JSON has no infinity.
        low, high = (None if end is None or math.isinf(end) else _finite("slope", end) for end in self.slope)
        if (low is None and high is None) or (low is not None and high is not None and low > high):
            raise ValueError(f"slope must be (low, high) with low <= high and one finite end, got {self.slope}")
        self._set(slope=(low, high))
        if self.against is not None:
            self._set(against=tuple((arm, _finite("against", x)) for arm, x in self.against))
            if len({x for _, x in self.against}) < 2:
                raise ValueError(f"against must give at least two different positions, got {dict(self.against)}")
        super().__post_init__()

    def method_arms(self) -> tuple[str, ...]:
        return (self.arm or "",) if self.against is None else tuple(arm for arm, _ in self.against)

    def text(self) -> str:
        what = f"{self.arm}: {self.label()}"
        if self.against is not None:
            what = f"slope of {self.label()} over {', '.join(self.method_arms())}"
        return _between(self.slope[0], what, self.slope[1])

    def spec(self) -> dict[str, Any]:
        return {**super().spec(), "against": None if self.against is None else dict(self.against)}


@dataclass(frozen=True, kw_only=True)
class Interaction(Contrast):
    """With `pair` = (a, b) and `minus` = (c, d): (a - b) - (c - d) exceeds `margin`."""

    kind = "interaction"
    pair: tuple[str, ...]
    minus: tuple[str, ...]
    margin: float | int = 0.0

    def __post_init__(self) -> None:
        self._set(margin=_size("margin", self.margin))
        if len(self.pair) != 2 or len(self.minus) != 2:
            raise ValueError(f"interaction needs two pairs of arms, got {self.pair} and {self.minus}")
        super().__post_init__()

    def method_arms(self) -> tuple[str, ...]:
        return (self.pair[0], self.minus[0])

    def baseline_arms(self) -> tuple[str, ...]:
        return (self.pair[1], self.minus[1])

    def text(self) -> str:
        (a, b), (c, d) = self.pair, self.minus
        return f"({a} - {b}) - ({c} - {d}) > {self.margin:g} ({self.label()})"


@dataclass(frozen=True, kw_only=True)
class Shape(Contrast):
    """Over arms in their `order`, the best metric lies inside the range that `optimum` spans."""

    kind = "shape"
    order: tuple[str, ...]
    optimum: tuple[str, ...]
    better: str = "higher"

    def __post_init__(self) -> None:
        order = self.order
        if not self.optimum or not set(self.optimum) <= set(order):
            raise ValueError(f"optimum must be a tuple of arms of {order}, got {self.optimum!r}")
        places = [order.index(arm) for arm in self.optimum]
        span = order[min(places) : max(places) + 1]
        if len(span) == len(order):
            raise ValueError(f"optimum must leave an arm of {order} outside, got {self.optimum}")
        self._set(optimum=span)
        super().__post_init__()
        _one_of("better", self.better, ("higher", "lower"))

    def method_arms(self) -> tuple[str, ...]:
        return self.optimum

    def baseline_arms(self) -> tuple[str, ...]:
        start = self.order.index(self.optimum[0])
        return self.order[:start] + self.order[start + len(self.optimum) :]

    def text(self) -> str:
        best = "highest" if self.better == "higher" else "lowest"
        return f"{self.label()} {best} at {', '.join(self.optimum)} among {', '.join(self.order)}"


@dataclass(frozen=True, kw_only=True)
class Identity(Contrast):
    """The metric of `arm` equals `value` up to `tolerance` on every seed."""

    kind = "identity"
    arm: str
    tolerance: float | int
    value: float | int = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(tolerance=_size("tolerance", self.tolerance), value=_finite("value", self.value))
        _one_of("transform", self.transform, ("none",))

    def method_arms(self) -> tuple[str, ...]:
        return (self.arm,)

    def text(self) -> str:
        return f"{self.arm} = {self.value:g} within {self.tolerance:g} ({self.metric})"


@dataclass(frozen=True)
class Shown:
    """Arms and contrasts that are displayed and take no part in the verdict."""

    arms: tuple[str, ...]
    contrasts: tuple[Contrast, ...]


def transformed(value: float | int, transform: str) -> float:
    """`value` on the scale of the transform; NaN where it has no finite image there."""
    if transform == "log":
        return math.log(value) if 0 < value < math.inf else math.nan
    if transform == "logit":
        return math.log(value / (1 - value)) if 0 < value < 1 else math.nan
    return float(value) if math.isfinite(value) else math.nan


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return tuple(value.items())
    return tuple(value) if isinstance(value, list) else value


def _signed(sign: str, margin: float | int) -> str:
    return f"{sign}{margin:g}" if margin else ""


def _between(low: float | int | None, what: str, high: float | int | None) -> str:
    if low is None:
        return f"{what} < {high:g}"
    return f"{what} > {low:g}" if high is None else f"{low:g} < {what} < {high:g}"


def _finite(what: str, value: float | int) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{what} must be finite, got {value}")
    return float(value)


def _size(what: str, value: float | int) -> float:
    if not 0 <= value < math.inf:
        raise ValueError(f"{what} must be finite and >= 0, got {value}")
    return float(value)


def _one_of(what: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{what} must be one of {', '.join(allowed)}, got {value!r}")
    return value
