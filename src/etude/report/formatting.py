"""Numbers and words of verdicts, the same on the page, in the README and in the terminal."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = [
    "LABELS",
    "STATUSES",
    "arxiv_url",
    "describe_tuned",
    "finite",
    "format_column",
    "format_domain",
    "format_effect",
    "format_interval",
    "format_mean",
    "format_means",
    "format_number",
    "format_p",
    "format_seconds",
    "format_status",
    "format_value",
]

STATUSES: dict[str, str] = {
    "holds": "✓",
    "fails": "✗",
    "undecided": "?",
    "needs data": "○",
    "needs extra": "○",
    "none": "–",
}
"""Every status of a claim and the symbol that stands before its word."""

LABELS = {"none": "not run"}
"""Words for readers where a status has another name for programs."""

MISSING = "–"


def finite(value: Any) -> float | None:
    """`value` as a float, or None if it is missing, not a number, or not finite."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def format_number(value: float | int | None, digits: int = 3) -> str:
    """`value` with `digits` significant digits: 0.0123, 12.3, 1230, 1.23e+07; a dash if missing or not finite."""
    number = finite(value)
    if number is None:
        return MISSING
    if number == 0:
        return "0"
    if not 1e-4 <= abs(number) < 1e6:
        return f"{number:.{digits - 1}e}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(number))))
    text = f"{number:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def format_value(value: Any) -> str:
    """A value of a setup or of a tuning grid: numbers shortened, lists in brackets, the rest as it is."""
    if isinstance(value, bool) or value is None:
        return str(value).lower() if value is not None else MISSING
    if isinstance(value, int):
        return str(value) if abs(value) < 10**15 else f"{value:.3g}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(format_value(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {format_value(item)}" for key, item in value.items())
    return str(value)


def format_effect(effect: float | int | None, low: float | int | None = None, high: float | int | None = None) -> str:
    """An effect with its sign and, where known, its interval: `+0.084 [+0.071, +0.097]`.

    All three numbers share their decimals: two significant digits of the interval's half width.
    """
    middle, bottom, top = finite(effect), finite(low), finite(high)
    if middle is None:
        return MISSING
    spread = abs(top - bottom) / 2 if bottom is not None and top is not None else 0.0
    if bottom is None and top is None:
        return _signed(middle, _decimals(0.0, middle))
    decimals = _decimals(spread, middle)
    return f"{_signed(middle, decimals)} {_bracket(bottom, top, decimals)}"


def format_interval(low: float | int | None, high: float | int | None) -> str:
    """`[+0.071, +0.097]`; an end that is open is written as an infinity, two missing ends as a dash."""
    bottom, top = finite(low), finite(high)
    if bottom is None and top is None:
        return MISSING
    spread = abs(top - bottom) / 2 if bottom is not None and top is not None else 0.0
    return _bracket(bottom, top, _decimals(spread, bottom if bottom is not None else top or 0.0))


def format_mean(mean: float | int | None, sd: float | int | None) -> str:
    """`0.930 ± 0.013`, the decimals set by the standard deviation; without one, three significant digits."""
    middle, spread = finite(mean), finite(sd)
    if middle is None:
        return MISSING
    if spread is None:
        return format_number(middle)
    if spread <= 1e-9 * abs(middle):
        return f"{format_number(middle)} ± 0"
    decimals = _decimals(spread, middle)
    if decimals is None:
        return f"{middle:.2e} ± {spread:.1e}"
    return f"{middle:.{decimals}f} ± {spread:.{decimals}f}"


def format_means(pairs: Sequence[tuple[float | int | None, float | int | None]]) -> list[str]:
    """Means with their standard deviations in one column of equal decimals: four significant digits of the largest."""
    known = [abs(mean) for pair in pairs if (mean := finite(pair[0]))]
    spreads = [spread for pair in pairs if (spread := finite(pair[1]))]
    if not known or max(known) >= 1e6 or max(known) < 1e-3 or max(known) > 1e4 * min(known):
        return [format_mean(*pair) for pair in pairs]
    if max(spreads, default=0.0) <= 1e-9 * max(known):
        return [format_mean(*pair) for pair in pairs]
    decimals = max(0, 3 - math.floor(math.log10(max(known))))
    if spreads:
        decimals = min(6, max(decimals, -math.floor(math.log10(max(spreads)))))
    texts = []
    for mean, spread in pairs:
        text = MISSING if finite(mean) is None else f"{mean:.{decimals}f}"
        texts.append(text if finite(spread) is None else f"{text} ± {spread:.{decimals}f}")
    return texts


def format_column(values: Sequence[Any]) -> list[str]:
    """Numbers of one column with the same decimals, three significant digits for the largest."""
    known = [abs(number) for value in values if (number := finite(value))]
    if not known or max(known) >= 1e6 or max(known) < 1e-3 or max(known) > 1e4 * min(known):
        return [format_number(finite(value)) for value in values]
    decimals = max(0, 2 - math.floor(math.log10(max(known))))
    if all(finite(value) is None or float(value).is_integer() for value in values):
        decimals = 0
    return [MISSING if (number := finite(value)) is None else f"{number:.{decimals}f}" for value in values]


def format_seconds(seconds: float | int | None) -> str:
    """A duration in its two leading units: `0.4 s`, `12 s`, `3 min 12 s`, `2 h 5 min`."""
    value = finite(seconds)
    if value is None:
        return MISSING
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(value / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def format_p(p: float | int | None) -> str:
    """A p or q value: three decimals, `< 0.001` below them."""
    value = finite(p)
    if value is None:
        return MISSING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def format_status(status: str, fresh: bool = True) -> str:
    """The symbol and the word of a status, with a mark if the evidence is stale: `✓ holds (stale)`."""
    mark = "" if fresh or status == "none" else " (stale)"
    return f"{STATUSES.get(status, '?')} {LABELS.get(status, status)}{mark}"


def describe_tuned(values: Mapping[str, Any]) -> str:
    """The values of a tuning choice on one line: `lr = 0.1, eta = 0.3`."""
    return ", ".join(f"{knob} = {format_value(value)}" for knob, value in values.items()) or MISSING


def arxiv_url(identifier: Any) -> str:
    """The page of an arXiv identifier such as `1511.06807` or `cs/0701001`; empty if it is none."""
    text = str(identifier or "")
    plain = text.replace(".", "").replace("-", "").replace("/", "")
    return f"https://arxiv.org/abs/{text}" if plain.isascii() and plain.isalnum() else ""


def _decimals(spread: float | int, value: float | int) -> int | None:
    """Decimals that show two digits of `spread`, or three of `value` without one; None asks for powers of ten."""
    scale, digits = (spread, 2) if spread > 0 else (abs(value), 3)
    if scale == 0:
        return 0
    decimals = digits - 1 - math.floor(math.log10(scale))
    return None if decimals > 6 or max(abs(value), spread) >= 1e7 else max(0, decimals)


def _signed(value: float | int, decimals: int | None) -> str:
    if value == 0:
        return "0"
    text = f"{value:+.2e}" if decimals is None else f"{value:+.{decimals}f}"
    return text.lstrip("+-") if float(text) == 0 else text


def _bracket(low: float | None, high: float | None, decimals: int | None) -> str:
    left = "-inf" if low is None else _signed(low, decimals)
    right = "+inf" if high is None else _signed(high, decimals)
    return f"[{left}, {right}]"


def format_domain(name: str) -> str:
    """A domain's name as a heading: `computer_vision` becomes `Computer vision`."""
    text = "architecture search" if name == "nas" else name.replace("_", " ")
    return text[:1].upper() + text[1:]
