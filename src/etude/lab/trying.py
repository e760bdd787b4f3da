"""Does a method help on a user's own data? Many claims asked at once, within a budget of time.

Each claim that declares `helps` is cut down to that contrast, a method against its baseline, and goes through

    fit      one seed at smoke: does it take these data at all?
    screen   the tuning trials of every claim, on tuning seeds, by validation; if the budget cannot carry all of them
             further, the half whose methods lead their baselines least is left there
    verdict  the survivors on fresh seeds; how many seeds is decided, and written down, before the first of them runs

Test rows are looked at in the last stage only, and chose nothing. As many questions are asked of the same data, a
contrast that holds counts as help only if its p-value, by Holm's rule over the questions, stays below 0.05 too.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from etude.lab.engine.base import Engine
from etude.lab.fingerprint import claim_fingerprint
from etude.lab.paper import TUNING_SEED, Claim
from etude.lab.plan import Job
from etude.lab.run import JobResult, Observer
from etude.lab.run import run as run_jobs
from etude.lab.statistics import expected_false_holds, holm
from etude.lab.store import Store
from etude.lab.task import canonical
from etude.lab.verdict import MIN_SEEDS, ContrastVerdict
from etude.lab.worker import load_paper

__all__ = ["Finding", "Material", "Question", "Trying", "false_finds", "questions"]

SEEDS = (8, 5, 3)
"""How many fresh seeds a verdict may have: the most that the budget carries."""
_ENOUGH = 5
"""If the budget carries everything with so many seeds, nothing is left at screening."""
_SCREENING = 0.5
"""Share of the budget that screening may take."""
_SPARE = 0.9
"""Share of the time that is left which the verdicts are planned to take."""
_LEVEL = 0.05


@dataclass(frozen=True)
class Material:
    """A user's data as the lab sees them: where they come from and how many there are.

    Attributes:
        kind: name of the dataclass that the loader returns.
        name: what they are called; letters, digits, dots, dashes and underscores.
        digest: hexadecimal digest of their content, which trials are stored under.
        source: `{"loader": "package.module:function", "arguments": {...}}`.
        train, val, test: rows of each part.
        as_images: a second source of the same rows as images of one line, or None.
    """

    kind: str
    name: str
    digest: str
    source: dict[str, Any]
    train: int
    val: int
    test: int
    as_images: dict[str, Any] | None = None

    def source_for(self, claim: Claim) -> dict[str, Any] | None:
        """Where a claim's data come from; None if it does not take this kind."""
        if claim.kind == self.kind:
            return self.source
        return self.as_images if claim.helps_tables else None


@dataclass(frozen=True)
class Question:
    """A claim that can be put to the data: its module, the claim cut down to two arms, and the source of its data."""

    module: str
    claim: Claim
    source: dict[str, Any]


@dataclass
class Finding:
    """What became of one question.

    Attributes:
        claim, paper, title, says: what was asked.
        contrast: method and baseline in a few signs.
        status: "helps", "hurts", "keeps up" (for claims of not being worse), "falls behind", "undecided", or without
            a verdict "does not fit", "left at screening", "no time".
        reason: what the status does not say by itself.
        gain: lead of the method's best validation score over the baseline's while tuning; None if there is none.
        verdict: of the contrast, on fresh seeds.
        holm: p-value by Holm's rule over the questions that came so far.
        baseline: mean of the baseline's metric.
        cost: seconds of a trial of the method as a multiple of the baseline's.
        tuned: the chosen values of each arm.
        seconds: work that this question took.
    """

    claim: str
    paper: str
    title: str
    says: str
    contrast: str
    status: str = "no time"
    reason: str = ""
    gain: float | None = None
    verdict: ContrastVerdict | None = None
    holm: float | None = None
    baseline: float | None = None
    cost: float | None = None
    tuned: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"verdict": None if self.verdict is None else self.verdict.to_json()}


def questions(
    chosen: Iterable[tuple[str, str | None]], material: Material, scale: str
) -> tuple[list[Question], list[str]]:
    """The questions for these data, and the claims that ask some but do not take this kind.

    Args:
        chosen: (claims module, claim name or None for all).
    """
    found: dict[str, Question] = {}
    others: list[str] = []
    for module, name in chosen:
        for claim in load_paper(module).claims.values():
            if name not in (None, claim.name) or claim.helps is None or scale not in claim.setups:
                continue
            source = material.source_for(claim)
            if source is None:
                others.append(claim.id)
            else:
                found[claim.id] = Question(module, claim.for_users(), source)
    return list(found.values()), others


class Trying:
    """One run of all questions on one user's data.

    Args:
        questions: what is asked, as `questions` gives it.
        material: the data.
        store: open for writing; what it holds is not run again, so that an interrupted run goes on.
        engine: makes an engine for each stage. workers: how many trials it runs at a time.
        budget: seconds that the whole may take; a trial that has begun is finished.
        scale: whose setups are used.
        device: "cpu" or "cuda".
        observer: is told what happens.
        past: (claim id without data set, arm) -> seconds of a trial known from elsewhere, which orders the questions.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        material: Material,
        store: Store,
        engine: Callable[[], Engine],
        *,
        workers: int,
        budget: float,
        scale: str = "small",
        device: str = "cpu",
        observer: Observer | None = None,
        past: Mapping[tuple[str, str], float] | None = None,
    ):
        self.material, self.store, self.engine, self.observer = material, store, engine, observer
        self.workers, self.budget, self.scale, self.device = workers, budget, scale, device
        self.started = time.monotonic()
        known = past or {}
        self.questions = sorted(questions, key=lambda asked: _work(asked.claim, known))
        self.seconds: dict[str, dict[str, list[float]]] = {}
        self.findings = {
            asked.claim.id: Finding(
                claim=asked.claim.id, paper=asked.claim.paper.slug, title=asked.claim.paper.title,
                says=asked.claim.says, contrast=asked.claim.contrasts[0].text(),
            )
            for asked in self.questions
        }  # fmt: skip

    def run(self) -> list[Finding]:
        """Asks everything; the findings, what helps most in front."""
        fitting = self._fitting(self.questions)
        screened = self._screened(fitting)
        plan = self._plan(screened)
        self._judged([asked for asked in screened if asked.claim.id in plan["survivors"]], plan["seeds"])
        return sorted(self.findings.values(), key=_rank)

    @property
    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self.started + self.budget - time.monotonic()

    def _job(self, asked: Question, *, seeds: Sequence[int], tune_seeds: int, scale: str | None = None) -> Job:
        claim = replace(asked.claim, tune_seeds=tune_seeds)
        return Job(
            id=f"{claim.id}@{self.material.name}-{self.material.digest[:8]}", claim=claim, data=self.material.name,
            module=asked.module, scale=scale or self.scale, seeds=tuple(seeds), device=self.device,
            fingerprint=claim_fingerprint(asked.module.partition(":")[0], claim.name), declared_seeds=False,
            source=asked.source,
        )  # fmt: skip

    def _run(self, jobs: list[Job], *, until: float) -> list[JobResult]:
        if not jobs:
            return []
        results = run_jobs(jobs, self.store, self.engine(), observer=self.observer, until=until)
        for result in results:
            finding = self.findings[result.job.claim.id]
            for record in [*result.trials, *result.tuning_records]:
                finding.seconds += record["seconds"]
                if record["status"] == "done" and result.job.scale == self.scale:
                    mine = self.seconds.setdefault(result.job.claim.id, {})
                    mine.setdefault(record["trial"]["arm"], []).append(record["seconds"])
        return results

    def _fitting(self, asked: Sequence[Question]) -> list[Question]:
        jobs = [self._job(question, seeds=[TUNING_SEED - 1], tune_seeds=1, scale="smoke") for question in asked]
        fits = []
        for question, result in zip(asked, self._run(jobs, until=self.started + self.budget)):
            wrong = _trouble(result)
            if wrong:
                self._end(question, "does not fit", wrong)
            elif result.reason == "out of time":
                self._end(question, "no time", "the budget ended before it was looked at")
            else:
                fits.append(question)
        return fits

    def _screened(self, asked: list[Question]) -> list[Question]:
        """The questions that go on to a verdict, the most promising first."""
        until = self.started + _SCREENING * self.budget
        reached = self._tuned(asked, until, first=True)
        if len(reached) > 1 and self._cost(reached, _ENOUGH, tuning=True) > _SPARE * self.left:
            kept = reached[: math.ceil(len(reached) / 2)]
            for question in reached[len(kept) :]:
                self._end(question, "left at screening", "others lead their baselines by more in validation")
            reached = kept
        return self._tuned(reached, self.started + self.budget, first=False)

    def _tuned(self, asked: list[Question], until: float, *, first: bool) -> list[Question]:
        """Runs the tuning trials, of the first tuning seed or of all; those that got through, by their gain."""
        jobs = [
            self._job(question, seeds=(), tune_seeds=1 if first else question.claim.tune_seeds) for question in asked
        ]
        through = []
        for question, result in zip(asked, self._run(jobs, until=until)):
            finding = self.findings[question.claim.id]
            failed = [arm for arm, table in result.tuning.items() if _best(table, question.claim) is None]
            if result.reason == "out of time":
                spent = 100 * (until - self.started) / self.budget
                self._end(question, "no time", f"not screened within {spent:.0f} % of the budget")
            elif failed:
                self._end(question, "does not fit", f"every choice of {', '.join(failed)} failed: {_first(result)}")
            else:
                finding.gain = _gain(result, question.claim)
                through.append(question)
        # Without a validation score there is nothing to rank by: such questions stand between gains and losses.
        return sorted(through, key=lambda question: -(self.findings[question.claim.id].gain or 0.0))

    def _cost(self, asked: Iterable[Question], seeds: int, *, tuning: bool = False) -> float:
        """Expected seconds of the verdicts of `asked` on all workers."""
        total = 0.0
        for question in asked:
            claim = question.claim
            for arm in claim.arms:
                rest = len(claim.candidates(arm)) * (claim.tune_seeds - 1) if tuning and claim.tunes(arm) else 0
                total += (seeds + rest) * self._per_trial(claim, arm)
        return total / self.workers

    def _per_trial(self, claim: Claim, arm: str) -> float:
        known = self.seconds.get(claim.id, {})
        found = known.get(arm) or [value for values in known.values() for value in values]
        return sum(found) / len(found) if found else 10.0

    def _plan(self, asked: list[Question]) -> dict[str, Any]:
        """Which questions get a verdict, on how many seeds; what an earlier run of the same wrote down stays."""
        identity = {
            "data": self.material.digest, "scale": self.scale, "budget": self.budget, "device": self.device,
            "questions": sorted((question.claim.id, question.claim.version) for question in self.questions),
        }  # fmt: skip
        key = hashlib.sha256(canonical(identity).encode()).hexdigest()[:16]
        file = self.store.path / "try" / f"{self.material.name}-{key}.json"
        plan = _read(file)
        if plan is None:
            plan = self._decide(asked)
            _write(file, plan)
        for question in asked:
            if question.claim.id not in plan["survivors"]:
                needed = self._cost([question], MIN_SEEDS)
                self._end(question, "no time", f"{MIN_SEEDS} fresh seeds would take about {needed:.0f} s more")
        return plan

    def _decide(self, asked: list[Question]) -> dict[str, Any]:
        room = _SPARE * self.left
        for seeds in SEEDS:
            if asked and self._cost(asked, seeds) <= room:
                return {"survivors": [question.claim.id for question in asked], "seeds": seeds}
        kept: list[Question] = []
        for question in asked:
            if self._cost([*kept, question], min(SEEDS)) <= room:
                kept.append(question)
        return {"survivors": [question.claim.id for question in kept], "seeds": min(SEEDS)}

    def _judged(self, asked: list[Question], seeds: int) -> None:
        jobs = [self._job(question, seeds=range(seeds), tune_seeds=question.claim.tune_seeds) for question in asked]
        verdicts: list[tuple[Finding, ContrastVerdict]] = []
        # The plan may take half as long again as expected: a verdict cut short is worth nothing.
        until = self.started + 1.5 * self.budget
        for question, result in zip(asked, self._run(jobs, until=until)):
            finding = self.findings[question.claim.id]
            finding.tuned = result.job.choices
            if not result.contrasts or result.contrasts[0].status == "none":
                self._end(question, "no time", result.reason or "trials are missing")
                continue
            finding.verdict = result.contrasts[0]
            arm, than = question.claim.arms
            finding.baseline = _mean(result.trials, than, question.claim.contrasts[0].metric)
            times = [_mean(result.trials, name, None) for name in (arm, than)]
            if None not in times and times[1]:
                finding.cost = times[0] / times[1]  # type: ignore[operator]
            verdicts.append((finding, finding.verdict))
        p_values = [1.0 if verdict.p is None else verdict.p for _, verdict in verdicts]
        for (finding, verdict), adjusted in zip(verdicts, holm(p_values)):
            finding.holm = adjusted
            finding.status, finding.reason = _decided(verdict, adjusted)

    def _end(self, question: Question, status: str, reason: str) -> None:
        finding = self.findings[question.claim.id]
        finding.status, finding.reason = status, reason


def false_finds(findings: Iterable[Finding]) -> tuple[int, float]:
    """How many contrasts had a verdict, and how many of those would hold by chance if no method did anything."""
    asked = sum(finding.verdict is not None for finding in findings)
    return asked, expected_false_holds(asked)


def _decided(verdict: ContrastVerdict, adjusted: float) -> tuple[str, str]:
    superior = verdict.kind in ("higher", "lower")
    if verdict.status == "holds":
        if adjusted < _LEVEL:
            return ("helps" if superior else "keeps up"), ""
        return "undecided", f"it holds by itself, but not among so many questions (Holm p {adjusted:.3f})"
    if verdict.status == "fails":
        return ("hurts" if superior else "falls behind"), verdict.reason
    return "undecided", verdict.reason


_ORDER = ("helps", "keeps up", "undecided", "falls behind", "hurts", "left at screening", "no time", "does not fit")


def _rank(finding: Finding) -> tuple[int, float, str]:
    verdict = finding.verdict
    effect = -math.inf if verdict is None or verdict.effect is None else verdict.effect
    return _ORDER.index(finding.status), -effect, finding.claim


def _work(claim: Claim, past: Mapping[tuple[str, str], float]) -> tuple[float, str]:
    """Expected seconds of screening, from what trials of the same claim took elsewhere."""
    total = 0.0
    for arm in claim.arms:
        total += len(claim.candidates(arm)) * past.get((claim.id, arm), 10.0)
    return total, claim.id


def _trouble(result: JobResult) -> str:
    """Why the claim does not run on these data; empty if it does."""
    if result.status in ("needs data", "needs extra"):
        return result.reason
    return next((record["reason"] for record in result.trials if record["status"] != "done"), "")


def _first(result: JobResult) -> str:
    return next((record["reason"] for record in result.tuning_records if record["status"] != "done"), "")


def _best(table: list[dict[str, Any]], claim: Claim) -> float | None:
    scores = [row["mean"] for row in table if row["mean"] is not None]
    if not scores:
        return None
    return max(scores) if claim.tune_goal == "max" else min(scores)


def _gain(result: JobResult, claim: Claim) -> float | None:
    arm, than = claim.arms
    best = [_best(result.tuning[name], claim) for name in (arm, than) if name in result.tuning]
    if len(best) < 2 or best[0] is None or best[1] is None:
        return None
    return (best[0] - best[1]) * (1.0 if claim.tune_goal == "max" else -1.0)


def _mean(trials: Iterable[dict[str, Any]], arm: str, metric: str | None) -> float | None:
    """Mean of a metric, or of the seconds, over the trials of an arm that ended well."""
    done = [record for record in trials if record["trial"]["arm"] == arm and record["status"] == "done"]
    values = [record["seconds"] if metric is None else record["metrics"][metric] for record in done]
    return sum(values) / len(values) if values else None


def _read(file: Path) -> dict[str, Any] | None:
    try:
        plan = json.loads(file.read_text(encoding="utf-8"))
        return plan if isinstance(plan["survivors"], list) and isinstance(plan["seeds"], int) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(file: Path, plan: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps(plan, indent=1), encoding="utf-8")
    os.replace(fresh, file)
