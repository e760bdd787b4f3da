"""Calibration of the verdicts by simulation: how often they err when the truth is known.

Every check draws its data from a seeded generator, runs the same code as real claims do, and returns a plain
dictionary with its measurements and `passed`. A check on a share passes within three Monte-Carlo standard errors
of what theory says.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from etude.lab.contrast import Contrast
from etude.lab.expect import higher, interaction
from etude.lab.scores import Results
from etude.lab.statistics import LOOKS, POWER, interval, look_level, power, resolvable
from etude.lab.verdict import judge

if TYPE_CHECKING:
    from numpy.random import Generator

__all__ = ["audit_coverage", "audit_looks", "audit_mirror", "audit_null", "audit_power", "audit_units", "run_audit"]

SEEDS = (3, 5, 8)
# 95 % nominal, less room for the Monte-Carlo error of 400 claims and for heavy tails.
MIN_UNDECIDED = 0.91
# What must hold for every claim, and not for a share of them, needs fewer.
MAX_EXACT = 100


def run_audit(seed: int = 0, claims: int = 400) -> dict[str, Any]:
    """All checks, by name, and whether all passed.

    Args:
        seed: of the generator; each check has its own stream.
        claims: simulated claims per share.
    """
    import numpy as np

    checks: dict[str, Callable[["Generator", int], dict[str, Any]]] = {
        "null": audit_null,
        "power": audit_power,
        "coverage": audit_coverage,
        "looks": audit_looks,
        "mirror": audit_mirror,
        "units": audit_units,
    }
    streams = np.random.default_rng(seed).spawn(len(checks))
    report = {name: check(stream, claims) for (name, check), stream in zip(checks.items(), streams)}
    return {"seed": seed, "claims": claims, "checks": report, "passed": all(item["passed"] for item in report.values())}


def audit_null(rng: "Generator", claims: int) -> dict[str, Any]:
    """A/A: arms that draw from one distribution. Superiority must stay undecided in at least 91 % of the claims."""
    kinds = (higher("a", than="b", metric="score"), interaction(("a", "b"), minus=("c", "d"), metric="score"))
    draws: dict[str, Callable[[tuple[int, ...]], Any]] = {
        "normal": rng.standard_normal,
        "t3": lambda size: rng.standard_t(3, size),
        "lognormal": lambda size: rng.lognormal(size=size),
    }
    rows: list[dict[str, Any]] = []
    for name, draw in draws.items():
        for n in SEEDS:
            statuses = [_judged(kinds[claim % len(kinds)], draw((4, n))) for claim in range(claims)]
            undecided, holds = (statuses.count(status) / claims for status in ("undecided", "holds"))
            rows.append({"draws": name, "n": n, "undecided": undecided, "holds": holds})
    # Fewer claims than the usual 400 leave more to chance.
    least = min(MIN_UNDECIDED, 0.95 - (0.95 - MIN_UNDECIDED) * math.sqrt(400 / claims))
    return {"rows": rows, "passed": all(row["undecided"] >= least for row in rows)}


def audit_power(rng: "Generator", claims: int) -> dict[str, Any]:
    """Share of claims that hold under a true effect, against the noncentral t distribution."""
    contrast = higher("a", than="b", metric="score")
    rows: list[dict[str, Any]] = []
    for n in SEEDS:
        for effect in (0.7, resolvable(n)):
            # Differences of two arms of variance 1/2 have unit standard deviation.
            pairs = rng.normal(scale=math.sqrt(0.5), size=(claims, 2, n))
            pairs[:, 0] += effect
            holds = sum(_judged(contrast, pair) == "holds" for pair in pairs) / claims
            theory = power(effect, n)
            rows.append(
                {"n": n, "effect": effect, "holds": holds, "theory": theory, "within": _close(holds, theory, claims)}
            )
    exact = all(abs(power(resolvable(n), n) - POWER) < 1e-6 for n in SEEDS)
    return {"rows": rows, "passed": exact and all(row["within"] for row in rows)}


def audit_coverage(rng: "Generator", claims: int) -> dict[str, Any]:
    """Share of 95 % and 90 % intervals that cover the true mean of normal differences."""
    rows: list[dict[str, Any]] = []
    for n in SEEDS:
        for level in (0.95, 0.90):
            found = [interval(values, level=level) for values in rng.normal(loc=1.0, size=(claims, n)).tolist()]
            share = sum(item.low <= 1.0 <= item.high for item in found) / claims
            rows.append({"n": n, "level": level, "coverage": share, "within": _close(share, level, claims)})
    return {"rows": rows, "passed": all(row["within"] for row in rows)}


def audit_looks(rng: "Generator", claims: int) -> dict[str, Any]:
    """Share of claims of no effect that are decided at any of the declared looks: 5 % at most."""
    contrast = higher("a", than="b", metric="score")
    decided = 0
    for pair in rng.standard_normal((claims, 2, max(LOOKS))):
        statuses = {_judged(contrast, pair[:, :n], level=look_level(n)) for n in LOOKS}
        decided += statuses != {"undecided"}
    share = decided / claims
    return {"decided": share, "passed": share <= 0.05 or _close(share, 0.05, claims)}


def audit_mirror(rng: "Generator", claims: int) -> dict[str, Any]:
    """Swapping the arms must turn the interval round and `holds` into `fails`."""
    forward, backward = higher("a", than="b", metric="score"), higher("b", than="a", metric="score")
    trials = min(claims, MAX_EXACT)
    turned = {"holds": "fails", "fails": "holds", "undecided": "undecided"}
    mirrored = 0
    for pair in rng.normal(size=(trials, 2, 5)) + [[0.5], [0.0]]:
        results = _results(pair)
        one, other = judge(forward, results, range(5)), judge(backward, results, range(5))
        ends = (one.low, one.high), (-(other.high or 0.0), -(other.low or 0.0))
        mirrored += ends[0] == ends[1] and turned[one.status] == other.status
    return {"mirrored": mirrored / trials, "passed": mirrored == trials}


def audit_units(rng: "Generator", claims: int) -> dict[str, Any]:
    """A metric in another unit, its margin with it, must leave every status as it was; so must a shift."""
    trials = min(claims, MAX_EXACT)
    unchanged = 0
    for pair in rng.normal(size=(trials, 2, 5)) + [[1.0], [0.0]]:
        factor = 10.0 ** float(rng.uniform(-6, 6))
        before = _judged(higher("a", than="b", metric="score", margin=0.25), pair)
        after = _judged(higher("a", than="b", metric="score", margin=0.25 * factor), (pair + 3.0) * factor)
        unchanged += before == after
    return {"unchanged": unchanged / trials, "passed": unchanged == trials}


def _results(scores: Any) -> Results:
    """Trials of the arms a, b, c, d from an array of (arm, seed)."""
    return {
        arm: {seed: {"status": "done", "metrics": {"score": score}} for seed, score in enumerate(row)}
        for arm, row in zip("abcd", scores.tolist())
    }


def _judged(contrast: Contrast, scores: Any, level: float = 0.95) -> str:
    return judge(contrast, _results(scores), range(scores.shape[1]), level=level).status


def _close(share: float, theory: float, claims: int) -> bool:
    return abs(share - theory) <= 3 * math.sqrt(theory * (1 - theory) / claims) + 0.5 / claims
