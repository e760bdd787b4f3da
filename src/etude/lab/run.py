"""The coordinator: gives trials to an engine, stores what comes back (as the sole writer), and judges the claims."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from etude.lab.engine.base import Done, Engine, Progress
from etude.lab.plan import Job
from etude.lab.store import Store
from etude.lab.task import Outcome, Task
from etude.lab.verdict import ContrastVerdict, claim_verdict, judge

__all__ = ["JobResult", "Observer", "run"]

_CRASHES = 3
_ATTEMPTS = 20
_POLL_SECONDS = 0.25


@runtime_checkable
class Observer(Protocol):
    """Is told what happens; draws progress bars, or does nothing."""

    def started(self, jobs: list[Job], trials: int) -> None: ...
    def submitted(self, task: Task) -> None: ...
    def progressed(self, task: Task, step: int, total: int, metrics: dict[str, float]) -> None: ...
    def ended(self, task: Task, outcome: dict[str, Any], stored: bool) -> None: ...
    def judged(self, result: JobResult) -> None: ...


class Silent:
    """An observer that does nothing."""

    def started(self, jobs: list[Job], trials: int) -> None: ...
    def submitted(self, task: Task) -> None: ...
    def progressed(self, task: Task, step: int, total: int, metrics: dict[str, float]) -> None: ...
    def ended(self, task: Task, outcome: dict[str, Any], stored: bool) -> None: ...
    def judged(self, result: JobResult) -> None: ...


@dataclass
class JobResult:
    """A judged claim: its status, contrasts, and the records of its trials by id."""

    job: Job
    status: str
    reason: str
    contrasts: list[ContrastVerdict]
    trials: list[dict[str, Any]]
    tuning: dict[str, list[dict[str, Any]]]
    tuning_records: list[dict[str, Any]]

    @property
    def errored(self) -> bool:
        """Whether any trial that counts ended in an error."""
        return any(record["status"] != "done" for record in self.trials)


@dataclass
class _State:
    job: Job
    waiting: set[str] = field(default_factory=set)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    tuning: list[Task] = field(default_factory=list)
    trials: list[Task] = field(default_factory=list)
    lacking: Outcome | None = None
    late: bool = False


def run(
    jobs: Iterable[Job],
    store: Store,
    engine: Engine,
    *,
    observer: Observer | None = None,
    retry_failed: bool = False,
    until: float | None = None,
) -> list[JobResult]:
    """Runs what the store lacks and judges every job.

    The store must be open for writing. A trial whose worker dies runs again, until the third crash; one whose machine
    dies runs again in any case, up to twenty attempts in all. On an exception, Ctrl-C included, the engine is stopped;
    every finished trial is in the store by then.

    Args:
        retry_failed: run stored failures again, instead of counting them as the data that they are.
        until: a time of `time.monotonic()` after which no further trial begins; jobs that lack one then have no
            verdict.
    """
    return _Coordinator(list(jobs), store, engine, observer or Silent(), retry_failed, until).run()


class _Coordinator:
    def __init__(
        self, jobs: list[Job], store: Store, engine: Engine, observer: Observer, retry_failed: bool, until: float | None
    ):
        self.until = until
        self.states = [_State(job) for job in jobs]
        self.store, self.engine, self.observer, self.retry_failed = store, engine, observer, retry_failed
        self.queue: deque[Task] = deque()
        self.owner: dict[str, _State] = {}
        self.attempts: Counter[str] = Counter()
        self.crashes: Counter[str] = Counter()
        self.results: dict[str, JobResult] = {}
        self.pending = deque(self.states)
        self.running: set[str] = set()

    def run(self) -> list[JobResult]:
        expected = sum(
            len(state.job.tuning_tasks()) + len(state.job.seeds) * len(state.job.claim.arms) for state in self.states
        )
        self.observer.started([state.job for state in self.states], expected)
        try:
            self._open_jobs()
            while self.running or self.queue:
                self._submit()
                for event in self.engine.poll(_POLL_SECONDS):
                    if isinstance(event, Progress):
                        self.observer.progressed(event.task, event.step, event.total, event.metrics)
                    else:
                        self.running.discard(event.task.id)
                        self._submit()  # the worker goes on while its result is written
                        self._ended(event)
                self._open_jobs()
        finally:
            self.engine.close()
        return [self.results[state.job.id] for state in self.states]

    def _submit(self) -> None:
        if self.until is not None and time.monotonic() > self.until:
            self._stop()
        while self.queue and self.engine.free > 0:
            task = self.queue.popleft()
            if task.id not in self.owner[task.id].waiting:
                continue
            self.running.add(task.id)
            self.attempts[task.id] += 1
            self.observer.submitted(task)
            self.engine.submit(task)

    def _stop(self) -> None:
        """Begins nothing more; jobs that wait for running trials are judged when those end."""
        self.queue.clear()
        self.pending.clear()
        for state in self.states:
            if state.job.id not in self.results:
                state.late = True
                state.waiting &= self.running
                if not state.waiting:
                    self._judge(state)

    def _open_jobs(self) -> None:
        """Begins the next jobs while workers would stand idle."""
        while self.pending and len(self.queue) < self.engine.workers:
            state = self.pending.popleft()
            state.tuning = state.job.tuning_tasks()
            self._enqueue(state, state.tuning, front=False)
            if not state.waiting:
                self._tuned(state)

    def _enqueue(self, state: _State, tasks: list[Task], *, front: bool) -> None:
        fresh = []
        for task in tasks:
            found = self.store.get(task.id, state.job.fingerprint)
            reusable = found is not None and (
                found.status == "done" or (found.status in ("failed", "timeout") and not self.retry_failed)
            )
            if found is not None and reusable:
                state.records[task.id] = found.record
                self.observer.ended(task, found.record, True)
            else:
                self.owner[task.id] = state
                state.waiting.add(task.id)
                fresh.append(task)
        if front:
            self.queue.extendleft(reversed(fresh))
        else:
            self.queue.extend(fresh)

    def _ended(self, event: Done) -> None:
        task, outcome = event.task, event.outcome
        state = self.owner[task.id]
        if outcome.status in ("crashed", "lost"):
            self.crashes[task.id] += outcome.status == "crashed"
            if self.crashes[task.id] < _CRASHES and self.attempts[task.id] < _ATTEMPTS:
                self.queue.appendleft(task)
                return
            outcome.status = "crashed"
        outcome.attempts = self.attempts[task.id]
        if outcome.status in ("needs data", "needs extra"):
            state.lacking = outcome
            state.waiting = {name for name in state.waiting if name in self.running}
            record = outcome.record(task, state.job.fingerprint)
        else:
            record = self.store.put(task, outcome, state.job.fingerprint).record
        state.waiting.discard(task.id)
        state.records[task.id] = record
        self.observer.ended(task, record, False)
        if not state.waiting:
            if state.trials or state.late or state.lacking is not None:
                self._judge(state)
            else:
                self._tuned(state)

    def _tuned(self, state: _State) -> None:
        state.job.choose(state.job.tuning_tables(state.records))
        state.trials = state.job.trial_tasks()
        self._enqueue(state, state.trials, front=True)
        if not state.waiting:
            self._judge(state)

    def _judge(self, state: _State) -> None:
        if state.job.id in self.results:
            return
        if state.late and not state.trials and state.lacking is None:
            tuning = list(state.records.values())
            tables = state.job.tuning_tables(state.records)
            result = JobResult(state.job, "none", "out of time", [], [], tables, tuning)
        else:
            result = judge_job(state.job, state.records, state.lacking)
        self.results[state.job.id] = result
        self.observer.judged(result)


def judge_job(job: Job, records: dict[str, dict[str, Any]], lacking: Outcome | None = None) -> JobResult:
    """The verdict of a job from the records of its trials, by trial id."""
    tuning_records = [records[task.id] for task in job.tuning_tasks() if task.id in records]
    if lacking is not None:
        return JobResult(job, lacking.status, lacking.reason, [], [], {}, tuning_records)
    trials = [records[task.id] for task in job.trial_tasks() if task.id in records]
    contrasts: list[ContrastVerdict] = []
    status, reason = "none", "smoke only shows that the code runs" if job.scale == "smoke" else ""
    if job.scale != "smoke":
        contrasts = judge_trials(job.claim.contrasts, trials, job.seeds, job.claim.worst, job.claim.resplit)
        status, reason = claim_verdict(contrasts)
    return JobResult(job, status, reason, contrasts, trials, job.tuning_tables(records), tuning_records)


def judge_trials(
    contrasts: Iterable[Any],
    trials: Iterable[dict[str, Any]],
    seeds: tuple[int, ...],
    worst: dict[str, float] | Any,
    resplit: float | None,
) -> list[ContrastVerdict]:
    """The verdict of each contrast from trial records (of the store or of an evidence file)."""
    table: dict[str, dict[int, dict[str, Any]]] = {}
    for record in trials:
        trial = record.get("trial", record)
        table.setdefault(trial["arm"], {})[trial["seed"]] = {
            "status": record["status"], "metrics": record["metrics"], "reason": record["reason"],
        }  # fmt: skip
    return [judge(contrast, table, seeds, worst=worst, resplit=resplit) for contrast in contrasts]


def now() -> str:
    """Today's date, for evidence."""
    return time.strftime("%Y-%m-%d")
