"""Executes one task in this process. All engines call `execute`, so all give the same results."""

from __future__ import annotations

import functools
import gc
import importlib
import json
import os
import platform
import random
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from etude.lab.paper import Paper, Setup
from etude.lab.task import Outcome, Task, canonical
from etude.lab.trial import Trial

__all__ = ["environment", "execute", "load_paper", "spare_the_collector"]

Report = Callable[[int, int, dict[str, float]], None]


def load_paper(module: str) -> Paper:
    """The `Paper` of a claims module, given as `package.module` or `package.module:NAME`."""
    path, _, name = module.partition(":")
    paper = getattr(importlib.import_module(path), name or "PAPER", None)
    if not isinstance(paper, Paper):
        raise TypeError(f"{module} holds no Paper named {name or 'PAPER'}")
    return paper


def environment(device: str = "cpu") -> dict[str, Any]:
    """Versions and machine class; no host name."""
    import numpy
    import torch

    facts = {
        "python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__,
        "platform": platform.system(), "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(), "device": device,
    }  # fmt: skip
    if device.startswith("cuda") and torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name(0)
    return facts


def execute(task: Task, report: Report | None = None) -> Outcome:
    """Runs the trial of `task` on one thread and says how it ended; never raises but for KeyboardInterrupt."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    started, cpu_started = time.perf_counter(), time.process_time()
    _reset_peak_memory()
    try:
        outcome = _run(task, report)
    except FileNotFoundError as error:
        outcome = Outcome("needs data", reason=str(error))
    except ImportError as error:
        outcome = Outcome("needs extra", reason=str(error))
    except (MemoryError, torch.OutOfMemoryError) as error:
        outcome = Outcome("failed", reason=f"out of memory: {error}", error=_tail())
    except (Exception, SystemExit) as error:
        outcome = Outcome("failed", reason=_first_line(error), error=_tail())
    finally:
        torch.set_num_threads(threads)
    outcome.seconds = time.perf_counter() - started
    outcome.cpu_seconds = time.process_time() - cpu_started
    outcome.peak_memory_mb = _peak_memory_mb()
    outcome.environment = environment(task.device) | {"threads": 1}
    return outcome


def _run(task: Task, report: Report | None) -> Outcome:
    import numpy as np
    import torch

    paper = load_paper(task.module)
    claim = paper.claims[task.function]
    arguments = [_data(task)] if task.data is not None else []
    knobs = dict.fromkeys(claim.knobs()) | task.tuned
    trial = Trial(
        task.claim, task.arm, task.seed, task.scale, Setup(**task.setup), knobs,
        tuning=task.tuning, device=task.device, report=report,
    )  # fmt: skip
    # A draw that forgets its stream must still not depend on what the worker ran before.
    stray = trial.stream_seed("stray")
    torch.manual_seed(stray)
    np.random.seed(stray % 2**32)
    random.seed(stray)
    needed = {claim.tune_by} if task.tuning else claim.metrics(task.arm)
    try:
        metrics = trial.check_metrics(claim.function(trial, *arguments), needed)
    except (ImportError, MemoryError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as error:
        return Outcome("failed", reason=_first_line(error), error=_tail(), series=trial.series, figures=trial.figures)
    finally:
        gc.collect()
    return Outcome("done", metrics=metrics, series=trial.series, figures=trial.figures)


def _data(task: Task) -> Any:
    if task.source is not None:
        return _elsewhere(canonical(task.source))
    return _declared(task.module, task.function, str(task.data))


@functools.lru_cache(maxsize=2)
def _declared(module: str, function: str, name: str) -> Any:
    return load_paper(module).claims[function].data[name].load()


@functools.lru_cache(maxsize=2)
def _elsewhere(source: str) -> Any:
    wanted = json.loads(source)
    module, _, name = wanted["loader"].partition(":")
    return getattr(importlib.import_module(module), name)(**wanted["arguments"])


def spare_the_collector(claim: str) -> None:
    """Takes what outlives the trials out of the garbage collector's sight; for a process that only executes trials.

    Otherwise the collection after each trial goes through every object of PyTorch, a tenth of a second. Before the
    first trial of another claim all is looked at once more, so that what the last one left does not stay for ever.
    """
    global _spared
    if claim != _spared:
        gc.unfreeze()
        gc.collect()
    _spared = claim
    gc.freeze()


_spared = ""


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _tail(lines: int = 30) -> str:
    return "".join(traceback.format_exc().splitlines(keepends=True)[-lines:])


def _reset_peak_memory() -> None:
    try:
        with open("/proc/self/clear_refs", "w") as handle:
            handle.write("5")
    except OSError:
        pass  # other systems: the peak is that of the worker's life


def _peak_memory_mb() -> float:
    try:
        with open("/proc/self/status") as handle:
            for line in handle:
                if line.startswith("VmHWM"):
                    return round(int(line.split()[1]) / 1024, 1)
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024**2 if sys.platform == "darwin" else 1024), 1)
