"""The lab's own cost: trials through coordinator, worker process and store beside the bare loop that they run.

`python -m benchmarks.lab_overhead` splits the cost of a trial into its parts, start-up of the worker apart.
"""

import atexit
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.compare import Comparison
from etude.lab import Paper, Setup, Trial, lower
from etude.lab.engine.process import ProcessEngine
from etude.lab.plan import plan
from etude.lab.run import run
from etude.lab.store import Store

__all__ = ["comparisons", "cost_of_a_trial"]

PAPER = Paper(
    slug="lab_overhead", domain="training", title="A loop and what surrounds it", authors="The lab", year=2024,
    summary="A small network learns to add.", venue="etude",
)  # fmt: skip
_STEPS = {"smoke": 1, "small": 5_000}


def bare_loop(steps: int, seen: Callable[[int, float], None] = lambda step, loss: None) -> float:
    """Plain PyTorch, some seconds for 5000 steps; `seen` is told of every hundredth step."""
    model = nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loss = torch.zeros(())
    for step in range(steps):
        x = torch.randn(64, 32)
        loss = (model(x) - x.sum(dim=1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            seen(step, loss.item())
    return loss.item()


@PAPER.claim(
    "The loop learns", arms=("loop", "again"), expect=[lower("loop", than="again", metric="loss")],
    setup={scale: Setup(steps=steps) for scale, steps in _STEPS.items()}, measured=("seconds",),
)  # fmt: skip
def learns(trial: Trial) -> dict[str, float]:
    started = time.perf_counter()

    def seen(step: int, loss: float) -> None:
        trial.log(step, loss=loss)
        trial.progress(step, trial.setup.steps, loss=loss)

    with trial.stream("init"):
        loss = bare_loop(trial.setup.steps, seen)
    return {"loss": loss, "seconds": time.perf_counter() - started}


class _Warm(ProcessEngine):
    """Keeps its worker from one run to the next."""

    def close(self) -> None:
        pass

    def stop(self) -> None:
        super().close()


def _run(engine: ProcessEngine, scale: str, trials: int) -> tuple[float, list[dict[str, Any]]]:
    """Seconds of a whole run of so many trials in a fresh store, and their records."""
    (job,) = plan([("benchmarks.lab_overhead:PAPER", "learns", None)], scale, seeds=tuple(range(trials // 2)))
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder)) as store:
        started = time.perf_counter()
        (result,) = run([job], store, engine)
        return time.perf_counter() - started, result.trials


def cost_of_a_trial(scale: str, trials: int) -> dict[str, float]:
    """Milliseconds of a trial on one warm worker: in all, of its loop, and of what the worker does around it."""
    engine = _Warm(1)
    try:
        _run(engine, "smoke", 2)
        wall, records = _run(engine, scale, trials)
    finally:
        engine.stop()
    inside = sum(record["metrics"]["seconds"] for record in records)
    worker = sum(record["seconds"] for record in records) - inside
    return {
        "trials": trials, "ms": 1e3 * wall / trials, "loop_ms": 1e3 * inside / trials,
        "worker_ms": 1e3 * worker / trials, "coordinator_ms": 1e3 * (wall - inside - worker) / trials,
        "overhead_percent": 100 * (wall - inside) / inside,
    }  # fmt: skip


def comparisons() -> list[Comparison]:
    """Two trials of some seconds on a warm worker, stored and judged, against the bare loop twice in this process."""
    engine = _Warm(1)
    atexit.register(engine.stop)

    def by_hand() -> None:
        for _ in range(2):
            bare_loop(_STEPS["small"])

    return [Comparison("two trials of 5000 steps", lambda: _run(engine, "small", 2), by_hand, "bare loop")]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, scale, trials in (("one step", "smoke", 100), ("5000 steps", "small", 10)):
        cost = cost_of_a_trial(scale, trials)
        print(f"{name:<12}" + "  ".join(f"{key} {value:.4g}" for key, value in cost.items()))
