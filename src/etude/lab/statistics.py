"""Statistics for few seeds: intervals, power, permutation, several claims at once.

The interval is Student's: mean +- t_{n-1} s sqrt(1/n + r), where r is zero for independent seeds and
n_test / n_train where each seed re-splits one data set (Nadeau & Bengio, "Inference for the Generalization
Error", Machine Learning 52, 2003): such seeds share data, and 1/n alone would promise too much.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

__all__ = [
    "LOOKS",
    "MAX_SEEDS",
    "POWER",
    "Interval",
    "benjamini_hochberg",
    "expected_false_holds",
    "holm",
    "interval",
    "look_level",
    "power",
    "resolvable",
    "seeds_needed",
    "sign_flip_p",
]

POWER = 0.8
MAX_SEEDS = 1000
LOOKS = (3, 5, 8)
# Per-look error that keeps that of looking at all of LOOKS at or below 5 % (.0221 each gives 5.5 % by simulation).
_LOOK_ERROR = 0.0198
# 2^12 sign patterns take a millisecond; more seeds than that need no exact test.
_MAX_SIGN_FLIPS = 12


@dataclass(frozen=True)
class Interval:
    """A two-sided interval for a mean.

    Attributes:
        mean: the estimate.
        low, high: its ends; both equal the mean if the values do not vary.
        sd: standard deviation of the values.
        se: standard error of the mean, with the correction for re-used data.
        n: number of values.
    """

    mean: float
    low: float
    high: float
    sd: float
    se: float
    n: int

    def p_above(self, value: float | int) -> float:
        """One-sided p-value for the mean to lie above `value`."""
        return self._tail(self.mean - value)

    def p_below(self, value: float | int) -> float:
        """One-sided p-value for the mean to lie below `value`."""
        return self._tail(value - self.mean)

    def _tail(self, distance: float) -> float:
        if self.se == 0:
            return 0.0 if distance > 0 else 1.0
        return _t_below(-distance / self.se, self.n - 1)


def interval(values: Sequence[float | int], *, level: float = 0.95, resplit: float | int | None = None) -> Interval:
    """Student's two-sided interval for the mean of `values`.

    Args:
        values: one number per seed, at least two.
        level: coverage, in (0, 1).
        resplit: n_test / n_train if the seeds re-split one data set.

    Raises:
        ValueError: if there are fewer than two values, or the level or ratio is out of range.
    """
    n = len(values)
    if n < 2:
        raise ValueError(f"an interval needs at least two values, got {n}")
    mean = math.fsum(values) / n
    sd = math.hypot(*(value - mean for value in values)) / math.sqrt(n - 1)
    if len(set(values)) == 1:
        mean, sd = float(values[0]), 0.0
    se = sd * _spread(n, resplit)
    half = _t_quantile(n - 1, level) * se
    return Interval(mean=mean, low=mean - half, high=mean + half, sd=sd, se=se, n=n)


def power(effect: float | int, n: int, *, level: float = 0.95, resplit: float | int | None = None) -> float:
    """Probability that the lower end of the interval lies above zero.

    Args:
        effect: the true mean, in standard deviations of the differences.
        n: number of seeds, at least two.
        level: coverage of the interval.
        resplit: n_test / n_train if the seeds re-split one data set.
    """
    from scipy.special import nctdtr

    # Beyond 1e4 standard errors the probability is 0 or 1 to all digits, and nctdtr soon gives NaN.
    shift = min(max(effect / _spread(n, resplit), -1e4), 1e4)
    return 1.0 - float(nctdtr(n - 1, shift, _t_quantile(n - 1, level)))


@lru_cache(maxsize=256)
def resolvable(n: int, *, level: float = 0.95, resplit: float | int | None = None) -> float:
    """The effect, in standard deviations, that `n` seeds see with a probability of 0.8: 3.3, 1.7, 1.2 at 3, 5, 8."""
    low, high = 0.0, 1.0
    while power(high, n, level=level, resplit=resplit) < POWER:
        high *= 2
    while high - low > 1e-10 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle, n, level=level, resplit=resplit) >= POWER else (middle, high)
    return high


def seeds_needed(
    effect: float | int, sd: float | int, *, level: float = 0.95, resplit: float | int | None = None
) -> int | None:
    """Seeds that see `effect` with a probability of 0.8.

    At least 3, and at most `MAX_SEEDS`, which also stands for any larger number; None if the effect is not positive.
    """
    if effect <= 0:
        return None
    if sd == 0:
        return 3

    def enough(n: int) -> bool:
        return power(effect / sd, n, level=level, resplit=resplit) >= POWER

    if not enough(MAX_SEEDS):
        return MAX_SEEDS
    low, high = 2, MAX_SEEDS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def look_level(n: int) -> float:
    """Level of the interval at the look after `n` seeds, when seeds are added until the claim is decided.

    Looks are declared: after 3, 5 and 8 seeds. At a level of 1 - .0198 each, the chance that any of the three
    decides a claim of no effect is 5 %.

    Raises:
        ValueError: if `n` is not a declared look.
    """
    if n not in LOOKS:
        raise ValueError(f"looks are declared after {', '.join(map(str, LOOKS))} seeds, got {n}")
    return 1.0 - _LOOK_ERROR


def sign_flip_p(differences: Sequence[float | int]) -> float | None:
    """Exact two-sided p-value of the mean under random signs of the differences; None above 12 differences.

    It cannot go below 2 / 2^n: information beside the interval, not the gate.
    """
    n = len(differences)
    if not 1 <= n <= _MAX_SIGN_FLIPS:
        return None
    sums = [differences[0]]
    for difference in differences[1:]:
        sums = [total + sign * difference for total in sums for sign in (1, -1)]
    # Sums that equal the observed one but for rounding count as reaching it.
    reached = abs(math.fsum(differences)) - 1e-12 * math.fsum(map(abs, differences))
    return sum(abs(total) >= reached for total in sums) / len(sums)


def benjamini_hochberg(p_values: Sequence[float | int]) -> list[float]:
    """Benjamini-Hochberg q-values, in the order of `p_values`."""
    m = len(p_values)
    adjusted, smallest = [0.0] * m, 1.0
    for rank, i in enumerate(sorted(range(m), key=lambda i: -p_values[i])):
        smallest = min(smallest, p_values[i] * m / (m - rank))
        adjusted[i] = smallest
    return adjusted


def holm(p_values: Sequence[float | int]) -> list[float]:
    """Holm's step-down p-values, in the order of `p_values`."""
    m = len(p_values)
    adjusted, largest = [0.0] * m, 0.0
    for rank, i in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, p_values[i] * (m - rank)))
        adjusted[i] = largest
    return adjusted


def expected_false_holds(num_contrasts: int) -> float:
    """Superiority contrasts expected to hold by chance if none of `num_contrasts` were true: 2.5 % of them."""
    return 0.025 * num_contrasts


def _spread(n: int, resplit: float | int | None) -> float:
    if resplit is not None and not 0 <= resplit < math.inf:
        raise ValueError(f"resplit must be n_test / n_train, finite and >= 0, got {resplit}")
    return math.sqrt(1 / n + (resplit or 0.0))


@lru_cache(maxsize=256)
def _t_quantile(df: int, level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    from scipy.special import stdtrit

    return float(stdtrit(df, (1 + level) / 2))


def _t_below(t: float, df: int) -> float:
    from scipy.special import stdtr

    return float(stdtr(df, t))
