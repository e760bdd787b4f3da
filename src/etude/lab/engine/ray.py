"""Trials as Ray Core tasks, on this machine or on a cluster. Results come back to the coordinator; no disk is shared.

Ray itself retries nothing. A worker that dies ends its trial as `crashed`, a node that dies as `lost`, and the
coordinator, who keeps the count, runs them again; so every trial ends exactly once, a trial that kills its worker
cannot do so for ever, and one whose nodes die is not blamed for it.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etude.lab.engine.base import Done, Event, Progress, numbers
from etude.lab.fingerprint import claim_fingerprint, own_package
from etude.lab.task import Outcome, Task

__all__ = ["RayEngine"]

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_REPORT_EVERY = 1.0
_NEWS_EVERY = 0.2
_CONNECT_SECONDS = 5.0
_OBJECT_STORE_BYTES = 100 * 1024**2  # outcomes are small; Ray would take 30 % of the memory


@dataclass
class _Flight:
    task: Task
    ref: Any
    started: float | None = None


class RayEngine:
    """Keeps up to `workers` trials in flight; Ray places them where their CPU and share of a GPU are free.

    The clock of a time-out starts with the trial, not while it waits for resources.

    Args:
        workers: trials in flight; the CPUs of the cluster, or the cores of this machine, if None.
        address: of a running cluster, such as "auto", "host:6379" or "ray://host:10001". The package is sent there;
            plug-ins must be installed on every node. A local Ray is started, and stopped by `close`, if None.

    Raises:
        ImportError: if Ray is not installed.
        ConnectionError: if no cluster answers at the address.
    """

    name = "ray"

    def __init__(self, workers: int | None = None, address: str | None = None):
        if workers is not None and workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        self._ray = ray = _ray()
        self._owns = not ray.is_initialized()
        self._remote = address is not None
        if self._owns and address is None:
            self.workers = workers or os.cpu_count() or 1
            _start(ray, self.workers)
        else:
            if self._owns and address is not None:
                _connect(ray, address)
            self.workers = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        # Close to the coordinator, so that it dies with no other node; it takes no CPU from the trials.
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=True
        )
        board = ray.remote(_Board).options(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)
        self._board = board.remote()
        self._serve = ray.remote(_serve)
        self._flights: dict[str, _Flight] = {}
        self._count = 0
        self._news: Any = None
        self._asked = 0.0
        self._warned = False

    @property
    def free(self) -> int:
        return self.workers - len(self._flights)

    def submit(self, task: Task) -> None:
        self._count += 1
        flight = f"{task.id}-{self._count}"  # word of an earlier attempt must not be taken for this one's
        package = task.module.partition(".")[0]
        code = _code(task.module, task.function) if self._remote and package != "etude" else None
        gpus = task.gpus or (1.0 if task.device.startswith("cuda") else 0.0)
        if gpus and not self._warned and gpus > self._ray.cluster_resources().get("GPU", 0.0):
            self._warned = True
            logging.getLogger(__name__).warning("Ray has no %g GPU for a trial: it waits for a node that has", gpus)
        call = self._serve.options(num_cpus=1, num_gpus=gpus, max_retries=0, name=task.describe())
        self._flights[flight] = _Flight(task, call.remote(task, flight, self._board, code))

    def poll(self, timeout: float) -> Iterator[Event]:
        if not self._flights:
            return
        by_ref = {flight.ref: name for name, flight in self._flights.items()}
        ready, _ = self._ray.wait(list(by_ref), num_returns=1, timeout=timeout)
        if ready:
            ready, _ = self._ray.wait(list(by_ref), num_returns=len(by_ref), timeout=0)
        yield from self._read_board()
        for ref in ready:
            yield Done(self._flights.pop(by_ref[ref]).task, self._fetch(ref))
        now = time.monotonic()
        for name, flight in list(self._flights.items()):
            if flight.started is not None and now - flight.started > flight.task.timeout:
                del self._flights[name]
                self._cancel(flight)
                seconds = now - flight.started
                yield Done(flight.task, Outcome("timeout", reason=f"stopped after {seconds:.0f} s", seconds=seconds))

    def close(self) -> None:
        if not self._ray.is_initialized():
            return
        for flight in self._flights.values():
            self._cancel(flight)
        self._flights.clear()
        self._news = None
        try:
            self._ray.kill(self._board)
        except self._ray.exceptions.RayError as error:
            logging.getLogger(__name__).debug("the board is gone already: %s", error)
        finally:
            if self._owns:
                self._ray.shutdown()

    def _fetch(self, ref: Any) -> Outcome:
        try:
            return self._ray.get(ref)
        except self._ray.exceptions.OutOfMemoryError:
            return Outcome("crashed", reason="Ray killed the worker: its node ran out of memory")
        except self._ray.exceptions.RayTaskError as error:  # not of the trial, whose errors are in its outcome
            cause = error.cause or error
            return Outcome("crashed", reason=f"{type(cause).__name__}: {cause}", error=str(error))
        except self._ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines()
            lost = isinstance(error, (self._ray.exceptions.NodeDiedError, self._ray.exceptions.ObjectLostError))
            reason = f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"
            return Outcome("lost" if lost else "crashed", reason=reason)

    def _cancel(self, flight: _Flight) -> None:
        try:
            self._ray.cancel(flight.ref, force=True)
        except (self._ray.exceptions.RayError, ValueError) as error:  # it ended a moment ago
            logging.getLogger(__name__).debug("nothing to cancel: %s", error)

    def _read_board(self) -> Iterator[Event]:
        """What running trials have told since the last time; never waits for the answer."""
        now = time.monotonic()
        if self._news is None:
            if now - self._asked >= _NEWS_EVERY:
                self._news, self._asked = self._board.read.remote(), now
            return
        if not self._ray.wait([self._news], timeout=0)[0]:
            return
        ref, self._news = self._news, None
        try:
            news = self._ray.get(ref)
        except self._ray.exceptions.RayError:  # the board restarts; progress is a comfort, not a result
            return
        for name, report in news:
            flight = self._flights.get(name)
            if flight is None:
                continue
            if report is None or flight.started is None:  # word of the start may have died with the board
                flight.started = now
            if report is not None:
                yield Progress(flight.task, *report)


class _Board:
    """An actor on which running trials leave word of their start and progress."""

    def __init__(self) -> None:
        self.news: list[tuple[str, tuple[int, int, dict[str, float]] | None]] = []

    def tell(self, flight: str, report: tuple[int, int, dict[str, float]] | None) -> None:
        self.news.append((flight, report))

    def read(self) -> list[tuple[str, tuple[int, int, dict[str, float]] | None]]:
        news, self.news = self.news, []
        return news


def _serve(task: Task, flight: str, board: Any, code: str | None) -> Outcome:
    """Executes a trial in a worker of the cluster."""
    from etude.lab.worker import execute, load_paper, spare_the_collector

    board.tell.remote(flight, None)
    if code is not None and _code_here(task.module, task.function) != code:
        package = task.module.partition(".")[0]
        return Outcome("crashed", reason=f"a node has other code of {package}: install the coordinator's on every node")
    with contextlib.suppress(Exception, SystemExit):  # `execute` meets the same error, and tells it
        load_paper(task.module)
    spare_the_collector(task.claim)
    outcome = execute(task, _reporter(board, flight))
    if task.device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()  # the worker stays warm, and others share its GPU
    return outcome


def _reporter(board: Any, flight: str) -> Callable[[int, int, dict[str, float]], None]:
    last = 0.0

    def report(step: int, total: int, metrics: dict[str, float]) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _REPORT_EVERY:
            last = now
            board.tell.remote(flight, (int(step), int(total), numbers(metrics)))

    return report


def _code(module: str, function: str) -> str:
    module = module.partition(":")[0]
    own_package(module)
    return claim_fingerprint(module, function)


@functools.lru_cache(maxsize=64)
def _code_here(module: str, function: str) -> str:
    """The fingerprint of the worker's own code; empty if it has none."""
    try:
        return _code(module, function)
    except ValueError:
        return ""


def _ray() -> Any:
    # No telemetry, no change of accelerator variables for tasks without a GPU, and no word of dead workers on standard
    # output, where the coordinator may be printing JSON: the coordinator says itself what became of a trial.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError:
        raise ImportError("the engine ray needs Ray: pip install 'etude[ray]'") from None
    return ray


def _start(ray: Any, workers: int) -> None:
    """A Ray of this machine alone, quiet, whose workers import what this process can import."""
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    variables = dict.fromkeys(_THREAD_VARIABLES, "1") | {"PYTHONPATH": path}
    ray.init(
        address="local", num_cpus=workers, include_dashboard=False, object_store_memory=_OBJECT_STORE_BYTES,
        log_to_driver=False, logging_level=logging.ERROR, runtime_env={"env_vars": variables},
    )  # fmt: skip


def _connect(ray: Any, address: str) -> None:
    import etude

    _knock(address)

    environment = {
        "env_vars": dict.fromkeys(_THREAD_VARIABLES, "1"),
        "py_modules": [str(Path(etude.__file__).parent)],
        "excludes": ["evidence", "**/__pycache__"],
    }
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=environment)
    except (ConnectionError, ValueError) as error:
        raise ConnectionError(f"no Ray cluster answers at {address}: {error}") from None


def _knock(address: str) -> None:
    """Refuses an address at which nobody listens; `ray.init` would wait there for ever."""
    host, _, port = address.rpartition("://")[2].partition("/")[0].rpartition(":")
    if not host or not port.isdecimal():
        return  # "auto" and other schemes are Ray's to resolve
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise ConnectionError(f"no Ray cluster answers at {address}: {error.strerror or error}") from None
