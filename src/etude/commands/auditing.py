"""`etude audit`: how often the verdicts err, by simulation and on real baselines set against themselves."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable
from typing import Any

from etude.commands.parsing import BadUsage
from etude.lab.audit import run_audit
from etude.lab.contrast import Contrast
from etude.lab.engine import Done, Engine, make_engine
from etude.lab.expect import higher
from etude.lab.paper import SCALES, TUNING_SEED
from etude.lab.plan import Job, plan
from etude.lab.registry import load_registry, resolve
from etude.lab.task import Outcome, Task
from etude.lab.verdict import judge

__all__ = ["baselines", "simulations"]

_LEVEL = 0.05
_RARE = 1e-3
_VERSUS = ("higher", "lower", "not_worse", "equivalent")


def simulations(claims: int, *, as_json: bool) -> tuple[str, int]:
    """The calibration checks; exit status 1 if one does not pass."""
    if claims < 1:
        raise BadUsage(f"--claims must be at least 1, got {claims}")
    report = run_audit(claims=claims)
    status = 0 if report["passed"] else 1
    if as_json:
        return json.dumps(report, indent=1), status
    lines = [f"{claims} simulated claims for each line, seed {report['seed']}", ""]
    for name, check in report["checks"].items():
        lines.append(f"{name:<10} {'passed' if check['passed'] else 'NOT PASSED'}")
        rows = check.get("rows", [{key: value for key, value in check.items() if key != "passed"}])
        lines += [f"    {_cells(row)}" for row in rows]
    lines += ["", "all checks passed" if report["passed"] else "not all checks passed"]
    return "\n".join(lines), status


def _cells(row: dict[str, Any]) -> str:
    return "  ".join(
        f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
    )


def baselines(names: list[str], *, scale: str, seeds: int, workers: int | None, as_json: bool) -> tuple[str, int]:
    """Sets the baseline of each claim against itself on other seeds: an experiment without an effect.

    About one claim in twenty comes out decided by chance, half of them as `holds`. Exit status 1 if more do than
    chance allows, 3 if a trial went wrong.
    """
    if scale not in SCALES:
        raise BadUsage(f"unknown scale {scale!r}; the scales are {', '.join(SCALES)}")
    if not 3 <= seeds <= TUNING_SEED // 2:
        raise BadUsage(f"--seeds must lie in 3..{TUNING_SEED // 2}, got {seeds}")
    jobs = {
        job.id: job
        for card, claim, data in resolve(names, load_registry())
        for job in plan([(card["module"], claim, data)], scale, seeds=tuple(range(2 * seeds)))
    }
    pairs = [(job, contrast) for job in jobs.values() if (contrast := _headline(job)) is not None]
    if not pairs:
        raise BadUsage(f"no claim of {', '.join(names)} sets an arm against a baseline at the scale {scale}")
    tasks = {job.id: _tasks(job, contrast) for job, contrast in pairs}
    outcomes = _outcomes(make_engine("process", workers=workers), [task for group in tasks.values() for task in group])
    rows = [_row(job, contrast, [outcomes[task.id] for task in tasks[job.id]]) for job, contrast in pairs]
    judged = [row for row in rows if row["status"] in ("holds", "fails", "undecided")]
    decided = sum(row["status"] != "undecided" for row in judged)
    allowed = _most(len(judged))
    report = {
        "scale": scale, "seeds": seeds, "claims": rows, "decided": decided, "expected": round(_LEVEL * len(judged), 2),
        "allowed": allowed, "passed": decided <= allowed,
    }  # fmt: skip
    status = 3 if any(row["status"] == "failed" for row in rows) else 0 if report["passed"] else 1
    return (json.dumps(report, indent=1) if as_json else _text(report)), status


def _headline(job: Job) -> Contrast | None:
    """The first primary contrast that names a baseline."""
    primary = (contrast for contrast in job.claim.contrasts if contrast.role == "primary")
    return next((contrast for contrast in primary if contrast.kind in _VERSUS), None)


def _tasks(job: Job, contrast: Contrast) -> list[Task]:
    """The baseline's trials at all seeds: the first half is one arm, the second half the other."""
    job.choose({})
    return [task for task in job.trial_tasks() if task.arm == contrast.baseline_arms()[0]]


def _outcomes(engine: Engine, tasks: Iterable[Task]) -> dict[str, Outcome]:
    waiting, outcomes, running = deque(tasks), {}, 0
    try:
        while waiting or running:
            while waiting and engine.free > 0:
                engine.submit(waiting.popleft())
                running += 1
            for event in engine.poll(0.25):
                if isinstance(event, Done):
                    outcomes[event.task.id] = event.outcome
                    running -= 1
    finally:
        engine.close()
    return outcomes


def _row(job: Job, contrast: Contrast, outcomes: list[Outcome]) -> dict[str, Any]:
    row: dict[str, Any] = {"id": job.id, "arm": contrast.baseline_arms()[0], "metric": contrast.metric}
    wrong = next((outcome for outcome in outcomes if outcome.status != "done"), None)
    if wrong is not None:
        lacking = wrong.status in ("needs data", "needs extra")
        return row | {"status": wrong.status if lacking else "failed", "reason": wrong.reason}
    half = len(outcomes) // 2
    results = {
        name: {seed: {"status": "done", "metrics": outcome.metrics} for seed, outcome in enumerate(group)}
        for name, group in (("one", outcomes[:half]), ("other", outcomes[half:]))
    }
    again = higher("one", than="other", metric=contrast.metric, transform=contrast.transform)
    verdict = judge(again, results, range(half), resplit=job.claim.resplit)
    return row | {
        "status": verdict.status, "n": verdict.n, "effect": verdict.effect, "low": verdict.low, "high": verdict.high,
        "reason": verdict.reason,
    }  # fmt: skip


def _most(claims: int) -> int:
    """The most decided claims that chance gives but once in a thousand audits."""
    from scipy.stats import binom

    return int(binom.ppf(1 - _RARE, claims, _LEVEL)) if claims else 0


def _text(report: dict[str, Any]) -> str:
    lines = [f"baselines against themselves at {report['scale']}, {report['seeds']} pairs of seeds each", ""]
    for row in report["claims"]:
        interval = (
            f"{row['effect']:+.3g} [{row['low']:+.3g}, {row['high']:+.3g}]"
            if row.get("low") is not None
            else row["reason"]
        )
        lines.append(f"{row['status']:<11} {row['id']:<40} {row['arm']} ({row['metric']})  {interval}")
    verdict = "as chance gives" if report["passed"] else "more than chance gives"
    lines += [
        "",
        f"{report['decided']} decided, {report['expected']:g} expected, at most {report['allowed']} allowed: {verdict}",
    ]
    return "\n".join(lines)
