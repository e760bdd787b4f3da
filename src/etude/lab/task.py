"""What travels between the coordinator and a worker: a task to execute and the outcome of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Outcome", "Task", "canonical"]


def canonical(value: Any) -> str:
    """The one JSON text of a value: sorted keys, shortest floats, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


@dataclass(frozen=True)
class Task:
    """One trial to run. `module` is the claims module, `claim` the claim's id with its data set.

    `source` says where data that the claim does not declare come from: `{"loader": "package.module:function",
    "arguments": {...}}`. It is not part of the identity, so the id of the claim must name their content.
    """

    module: str
    claim: str
    function: str
    data: str | None
    version: int
    arm: str
    seed: int
    scale: str
    setup: dict[str, Any]
    tuned: dict[str, Any]
    tuning: bool = False
    device: str = "cpu"
    timeout: float = 600.0
    gpus: float = 0.0
    source: dict[str, Any] | None = None

    @property
    def id(self) -> str:
        """Identity of the trial: what it is, not how or where it runs."""
        identity = {
            "claim": self.claim, "version": self.version, "arm": self.arm, "scale": self.scale, "seed": self.seed,
            "setup": self.setup, "tuned": self.tuned, "tuning": self.tuning,
        }  # fmt: skip
        return hashlib.sha256(canonical(identity).encode()).hexdigest()[:16]

    def describe(self) -> str:
        choice = ", ".join(f"{knob}={value}" for knob, value in self.tuned.items() if value is not None)
        return f"{self.claim} {self.arm} seed {self.seed}" + (f" ({choice})" if choice else "")


@dataclass
class Outcome:
    """What became of a task.

    `status` is done, failed, timeout, crashed (the worker died: tried again), lost (its machine died: tried again,
    without blame; never stored), needs data or needs extra.
    """

    status: str
    reason: str = ""
    error: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    series: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    figures: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_memory_mb: float = 0.0
    environment: dict[str, Any] = field(default_factory=dict)
    attempts: int = 1

    def record(self, task: Task, fingerprint: str) -> dict[str, Any]:
        """The content of `result.json`."""
        outcome = asdict(self)
        outcome.pop("series")
        trial = asdict(task)
        for execution_only in ("module", "function", "device", "timeout", "gpus", "source"):
            trial.pop(execution_only)
        return {"schema": 1, "id": task.id, "fingerprint": fingerprint, "trial": trial, **outcome}
