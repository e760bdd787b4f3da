"""What the arms of a contrast scored, seed by seed, with the rules for failed trials.

A failed trial is data: a seed is never dropped silently. A method arm that fails loses the seed, and with it the
chance to hold; a baseline that fails scores the value that the claim declared as the worst, if it declared one.
A metric that is missing, not finite or outside the range of the contrast's transform is a failure too.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from etude.lab.contrast import Contrast, transformed

__all__ = ["Results", "Scores", "has_run"]

Results = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""results[arm][seed] is a trial: `status`, `metrics` and, where it failed, `reason`."""

_FAILED = ("failed", "timeout")
# Differences below this share of the values they come from are rounding, and count as none.
_ROUNDING = 1e-12


def has_run(trial: Mapping[str, Any] | None) -> bool:
    """Whether the trial came to an end, well or badly; one that is pending or was interrupted did not."""
    return trial is not None and (trial["status"] == "done" or trial["status"] in _FAILED)


class Scores:
    """The metrics of the arms of a contrast by seed, with the rules for failed trials applied.

    Attributes:
        lost: seeds at which an arm has no value.
        failures: a line on every arm that failed.
        method_failed: whether an arm failed whose failure rules out `holds`.
        unscored: whether a baseline failed and no worst value is declared for it.
        used_worst: whether a baseline failed and scored its worst value.
    """

    def __init__(self, contrast: Contrast, results: Results, seeds: Sequence[int], worst: Mapping[str, float | int]):
        self.contrast = contrast
        self.seeds = list(seeds)
        self.lost: set[int] = set()
        self.failures: list[str] = []
        self.method_failed = self.unscored = self.used_worst = False
        self._values: dict[tuple[str, str, int], float] = {}
        for arm in contrast.arms():
            faults = {seed: self._read(arm, seed, results[arm][seed]) for seed in seeds}
            failed = [seed for seed, fault in faults.items() if fault is not None]
            if failed:
                self._settle(arm, failed, faults[failed[0]] or "", worst)

    def combined(self, weights: Mapping[str, float], metric: str, usable: Sequence[int]) -> dict[int, float]:
        """The weighted sum of the arms' metrics at every usable seed."""
        sums = {}
        for seed in usable:
            terms = [weight * self._values[arm, metric, seed] for arm, weight in weights.items()]
            total = math.fsum(terms)
            sums[seed] = 0.0 if abs(total) <= _ROUNDING * max(map(abs, terms)) else total
        # Equal differences of unequal values come out unequal by rounding.
        first = sums[usable[0]]
        scale = max(abs(weight * self._values[arm, metric, seed]) for arm, weight in weights.items() for seed in usable)
        if all(abs(value - first) <= _ROUNDING * scale for value in sums.values()):
            return dict.fromkeys(usable, first)
        return sums

    def _read(self, arm: str, seed: int, trial: Mapping[str, Any]) -> str | None:
        """Takes the metrics of a trial; what is wrong with it, or None."""
        if trial["status"] in _FAILED:
            return str(trial.get("reason") or trial["status"])
        for metric in self.contrast.metrics():
            raw = trial["metrics"].get(metric)
            value = self._value(metric, raw)
            if not math.isfinite(value):
                on_scale = "" if self.contrast.transform == "none" else f" on the {self.contrast.transform} scale"
                return f"{metric} is missing" if raw is None else f"{metric} is {raw}, not finite{on_scale}"
            self._values[arm, metric, seed] = value
        return None

    def _settle(self, arm: str, failed: Sequence[int], reason: str, worst: Mapping[str, float | int]) -> None:
        line = f"{arm} failed on {len(failed)} of {len(self.seeds)} seeds ({reason})"
        scored = {metric: self._value(metric, worst.get(metric)) for metric in self.contrast.metrics()}
        if arm in self.contrast.method_arms():
            self.method_failed = True
            self.lost.update(failed)
        elif all(map(math.isfinite, scored.values())):
            self.used_worst = True
            line += " and scores the worst value there"
            self._values.update({(arm, metric, seed): scored[metric] for metric in scored for seed in failed})
        else:
            self.unscored = True
            line += " and has no worst value"
            self.lost.update(failed)
        self.failures.append(line)

    def _value(self, metric: str, value: Any) -> float:
        if value is None:
            return math.nan
        return transformed(float(value), self.contrast.transform if metric == self.contrast.metric else "none")
