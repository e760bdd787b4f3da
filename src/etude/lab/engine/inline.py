"""Trials one after the other in this process: for debugging, and as the reference for the other engines."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from etude.lab.engine.base import Done, Event
from etude.lab.task import Task
from etude.lab.worker import execute

__all__ = ["InlineEngine"]


class InlineEngine:
    """Runs each task when it is polled. Time-outs are not enforced: nothing could stop the trial but itself."""

    name = "inline"
    workers = 1

    def __init__(self) -> None:
        self._tasks: deque[Task] = deque()

    @property
    def free(self) -> int:
        return self.workers - len(self._tasks)

    def submit(self, task: Task) -> None:
        self._tasks.append(task)

    def poll(self, timeout: float) -> Iterator[Event]:
        if self._tasks:
            task = self._tasks.popleft()
            yield Done(task, execute(task))

    def close(self) -> None:
        self._tasks.clear()
