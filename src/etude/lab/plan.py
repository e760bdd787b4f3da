"""From a choice of claims to the trials that they need."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from etude.lab.fingerprint import claim_fingerprint
from etude.lab.paper import TUNING_SEED, Claim, Setup
from etude.lab.store import Result, Store
from etude.lab.task import Task
from etude.lab.worker import load_paper

__all__ = ["Estimate", "Job", "estimate", "plan"]


@dataclass(eq=False)
class Job:
    """A claim on one data set at one scale: the unit that ends in a verdict."""

    id: str
    claim: Claim
    data: str | None
    module: str
    scale: str
    seeds: tuple[int, ...]
    fingerprint: str
    device: str = "cpu"
    declared_seeds: bool = True
    source: dict[str, Any] | None = None
    choices: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def setup(self) -> Setup:
        return self.claim.setups[self.scale]

    def tuned_arms(self) -> tuple[str, ...]:
        """Arms whose grid has more than one candidate; at smoke the first candidate is taken unseen."""
        if self.scale == "smoke":
            return ()
        return tuple(arm for arm in self.claim.arms if len(self.claim.candidates(arm)) > 1)

    def tuning_tasks(self) -> list[Task]:
        """The tuning trials, seed by seed so that arms advance together."""
        seeds = range(TUNING_SEED, TUNING_SEED + self.claim.tune_seeds)
        return [
            self._task(arm, seed, candidate, tuning=True)
            for seed in seeds
            for arm in self.tuned_arms()
            for candidate in self.claim.candidates(arm)
        ]

    def choose(self, tables: Mapping[str, list[dict[str, Any]]]) -> None:
        """Takes each arm's best candidate by its mean score; a candidate that failed on any seed cannot win."""
        for arm in self.claim.arms:
            candidates = self.claim.candidates(arm)
            best = candidates[0]
            if arm in tables:
                sign = 1.0 if self.claim.tune_goal == "max" else -1.0
                scored = [row for row in tables[arm] if row["mean"] is not None]
                if scored:
                    best = max(scored, key=lambda row: sign * row["mean"])["values"]
            self.choices[arm] = best
        for arm, other in self.claim.tuned_like.items():
            self.choices[arm] = self.choices[other]

    def trial_tasks(self) -> list[Task]:
        """The trials that count, seed by seed so that pairs are complete early."""
        return [
            self._task(arm, seed, self.choices[arm], tuning=False) for seed in self.seeds for arm in self.claim.arms
        ]

    def tuning_tables(self, results: Mapping[str, Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
        """Per tuned arm the table of candidates: values, score at each tuning seed, and mean (None if one failed).

        `results` maps a trial's id to its record.
        """
        tables: dict[str, list[dict[str, Any]]] = {}
        for arm in self.tuned_arms():
            tables[arm] = []
            for candidate in self.claim.candidates(arm):
                scores: dict[str, float | None] = {}
                for seed in range(TUNING_SEED, TUNING_SEED + self.claim.tune_seeds):
                    record = results.get(self._task(arm, seed, candidate, tuning=True).id)
                    done = record is not None and record["status"] == "done"
                    scores[str(seed)] = record["metrics"][self.claim.tune_by] if record is not None and done else None
                known = [score for score in scores.values() if score is not None]
                mean = sum(known) / len(known) if known and len(known) == len(scores) else None
                tables[arm].append({"values": candidate, "scores": scores, "mean": mean})
        return tables

    def _task(self, arm: str, seed: int, tuned: dict[str, Any], *, tuning: bool) -> Task:
        return Task(
            module=self.module, claim=self.id, function=self.claim.name, data=self.data, version=self.claim.version,
            arm=arm, seed=seed, scale=self.scale, setup=self.setup.as_dict(), tuned=tuned, tuning=tuning,
            device=self.device, timeout=self.claim.timeout * _PATIENCE[self.scale],
            gpus=float(self.claim.resources.get("gpus", 0.0)) if self.device != "cpu" else 0.0,
            source=self.source,
        )  # fmt: skip


_PATIENCE = {"smoke": 1.0, "small": 1.0, "medium": 20.0, "full": 1000.0}
"""The declared time-out is for `small`; larger scales take longer by nature."""


def plan(
    chosen: Iterable[tuple[str, str | None, str | None]],
    scale: str,
    *,
    seeds: tuple[int, ...] | None = None,
    device: str = "cpu",
) -> list[Job]:
    """The jobs of the chosen claims.

    Args:
        chosen: (claims module, claim name or None for all, data set name or None for all).
        scale: claims without a setup for it are left out.
        seeds: instead of the declared ones.
        device: where the trials run.
    """
    jobs = []
    for module, claim_name, data_name in chosen:
        paper = load_paper(module)
        for claim_id, claim, data in paper.claim_ids(scale):
            if claim_name not in (None, claim.name) or data_name not in (None, data):
                continue
            jobs.append(
                Job(
                    id=claim_id, claim=claim, data=data, module=module, scale=scale,
                    seeds=seeds if seeds is not None else claim.seeds[scale],
                    fingerprint=claim_fingerprint(module.partition(":")[0], claim.name), device=device,
                    declared_seeds=seeds is None or seeds == claim.seeds[scale],
                )
            )  # fmt: skip
    return jobs


@dataclass(frozen=True)
class Estimate:
    """What a run would do. `seconds` is the expected work of one worker; None if nothing like it was ever run."""

    trials: int
    stored: int
    seconds: float | None


def estimate(job: Job, store: Store, past: Mapping[tuple[str, str], float] | None = None) -> Estimate:
    """How many trials a job has, how many of them the store holds, and how long the rest should take.

    Args:
        past: (claim id, arm) -> seconds of a trial known from elsewhere, such as the committed evidence.
    """
    seconds_of: dict[str, list[float]] = {}
    for result in store.results(job.id):
        if result.trial["scale"] == job.scale and result.status == "done":
            seconds_of.setdefault(result.trial["arm"], []).append(result.record["seconds"])
    tuning = job.tuning_tasks()
    missing = [task for task in tuning if not _holds(store.get(task.id, job.fingerprint))]
    stored = len(tuning) - len(missing)
    if not missing:
        records = {task.id: found.record for task in tuning if (found := store.get(task.id, job.fingerprint))}
        job.choose(job.tuning_tables(records))
        trials = job.trial_tasks()
        still = [task for task in trials if not _holds(store.get(task.id, job.fingerprint))]
        stored += len(trials) - len(still)
        arms = [task.arm for task in still]
        total = len(tuning) + len(trials)
    else:
        arms = [task.arm for task in missing] + [arm for arm in job.claim.arms for _ in job.seeds]
        total = len(tuning) + len(job.seeds) * len(job.claim.arms)
    known: list[float | None] = []
    for arm in arms:
        own = seconds_of.get(arm)
        known.append(sum(own) / len(own) if own else (past or {}).get((job.id, arm)))
    seen = [value for value in known if value is not None]
    if arms and not seen:
        return Estimate(total, stored, None)
    mean = sum(seen) / len(seen) if seen else 0.0
    return Estimate(total, stored, sum(mean if value is None else value for value in known))


def _holds(result: Result | None) -> bool:
    return result is not None and result.status != "crashed"
