"""Live progress of a run in the terminal: bars where there is a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from etude.lab.plan import Job
from etude.lab.run import JobResult
from etude.lab.task import Task

__all__ = ["Live"]

_STYLES = {"holds": "green", "fails": "red", "undecided": "yellow"}
_LINE_EVERY = 15.0
_WIDTH_OF_FILES = 160


class Live:
    """An observer of a run: one bar for all trials and one for each running trial.

    The running interval is not shown before all seeds are in, so that nobody stops at a lucky look.
    """

    def __init__(self, *, quiet: bool = False):
        self.console = Console(stderr=quiet, quiet=quiet, highlight=False, soft_wrap=True)
        if not self.console.is_terminal:
            self.console.width = _WIDTH_OF_FILES
        self._bars = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
            console=self.console, transient=True, disable=not self.console.is_terminal,
        )  # fmt: skip
        self._all: TaskID | None = None
        self._running: dict[str, TaskID] = {}
        self._done = self._trials = self._from_store = 0
        self._last_line = time.monotonic()
        self._pairs: dict[str, dict[int, int]] = {}

    def __enter__(self) -> Live:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def started(self, jobs: list[Job], trials: int) -> None:
        if self._all is not None:  # the next stage of several
            self._bars.remove_task(self._all)
        self._done = self._from_store = 0
        self._trials = trials
        self._all = self._bars.add_task("trials", total=trials, note="")
        arms = sum(len(job.claim.arms) for job in jobs)
        self.say(f"{len(jobs)} claims, {arms} arms, {trials} trials at {jobs[0].scale}")

    def submitted(self, task: Task) -> None:
        self._running[task.id] = self._bars.add_task(f"  {task.describe()}", total=None, note="")

    def progressed(self, task: Task, step: int, total: int, metrics: dict[str, float]) -> None:
        if task.id in self._running:
            note = " ".join(f"{name} {value:.4g}" for name, value in list(metrics.items())[:2])
            self._bars.update(self._running[task.id], completed=step, total=total, note=note)

    def ended(self, task: Task, outcome: dict[str, Any], stored: bool) -> None:
        self._done += 1
        self._from_store += stored
        if task.id in self._running:
            self._bars.remove_task(self._running.pop(task.id))
        if not task.tuning:
            done = self._pairs.setdefault(task.claim, {})
            done[task.seed] = done.get(task.seed, 0) + 1
        if self._all is not None:
            self._bars.update(self._all, completed=self._done, note=f"{self._from_store} from the store")
        if outcome["status"] in ("failed", "timeout", "crashed") and not stored:
            self.say(f"  {task.describe()}: {outcome['status']}: {outcome['reason']}")
        now = time.monotonic()
        if not self.console.is_terminal and now - self._last_line > _LINE_EVERY:
            self._last_line = now
            self.say(
                f"{self._done} of {self._trials} trials, {self._from_store} from the store; last: {task.describe()}"
            )

    def judged(self, result: JobResult) -> None:
        reason = f" ({result.reason})" if result.reason and result.status != "holds" else ""
        self.say(f"{result.job.id}: {result.status}{reason}")

    def table(self, results: list[JobResult], seconds: float) -> None:
        """The verdicts: a line for each contrast."""
        table = Table(
            title=f"{self._done - self._from_store} trials run, {self._from_store} from the store, {seconds:.0f} s"
        )
        for column in ("claim", "verdict", "contrast", "effect", "95 % interval", "n"):
            table.add_column(column, overflow="fold", justify="right" if column in ("effect", "n") else "left")
        for result in results:
            style = _STYLES.get(result.status, "")
            first = (result.job.id, f"[{style}]{result.status}[/{style}]" if style else result.status)
            if not result.contrasts:
                table.add_row(*first, result.reason, "", "", "")
            for number, contrast in enumerate(result.contrasts):
                head = first if number == 0 else ("", "")
                text = contrast.text if contrast.role == "primary" else f"({contrast.text})"
                interval = "" if contrast.low is None else f"{contrast.low:+.4g} to {contrast.high:+.4g}"
                effect = "" if contrast.effect is None else f"{contrast.effect:+.4g}"
                table.add_row(*head, text, effect, interval, str(contrast.n))
        self.console.print(table)
