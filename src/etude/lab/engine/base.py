"""The small interface behind which every engine stands."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from etude.lab.task import Outcome, Task

__all__ = ["Done", "Engine", "Event", "Progress", "numbers"]


@dataclass(frozen=True)
class Progress:
    """A running trial tells how far it is."""

    task: Task
    step: int
    total: int
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Done:
    """A trial ended, one way or another; exactly one of these comes for each task submitted."""

    task: Task
    outcome: Outcome


Event = Progress | Done


@runtime_checkable
class Engine(Protocol):
    """Runs tasks somewhere. `submit` at most `free` tasks at a time, then `poll` for what happened."""

    name: str
    workers: int

    @property
    def free(self) -> int:
        """How many tasks could start now."""
        ...

    def submit(self, task: Task) -> None: ...

    def poll(self, timeout: float) -> Iterator[Event]:
        """Events since the last call; waits up to `timeout` seconds for the first."""
        ...

    def close(self) -> None:
        """Stops all work at once."""
        ...


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among the metrics that a trial reports on its way; nothing hangs on the rest."""
    found = {}
    for name, value in metrics.items():
        with contextlib.suppress(TypeError, ValueError, RuntimeError):
            found[str(name)] = float(value)
    return found
