"""Persistent spawned workers on this machine, one thread each. A crash costs one trial and the worker is respawned."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from etude.lab.engine.base import Done, Event, Progress
from etude.lab.task import Outcome, Task

__all__ = ["ProcessEngine"]

_REPORT_EVERY = 0.2
_START_UP_SECONDS = 300.0
_BEGUN = "begun"
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    task: Task | None = None
    started: float = 0.0
    begun: bool = False

    @property
    def deadline(self) -> float:
        """When its patience ends: a trial's time counts from its beginning, not from the start of its worker."""
        assert self.task is not None
        return self.started + (self.task.timeout if self.begun else _START_UP_SECONDS)


class ProcessEngine:
    """A pool of `workers` processes, started when first needed and kept warm between trials."""

    name = "process"

    def __init__(self, workers: int):
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        self.workers = workers
        self._context = multiprocessing.get_context("spawn")
        self._pool: list[_Worker] = []

    @property
    def free(self) -> int:
        return self.workers - sum(worker.task is not None for worker in self._pool)

    def submit(self, task: Task) -> None:
        worker = next((idle for idle in self._pool if idle.task is None), None)
        if worker is not None and not worker.process.is_alive():
            self._discard(worker)
            worker = None
        if worker is None:
            if len(self._pool) >= self.workers:
                raise RuntimeError("no worker is free; submit only while `free` is positive")
            worker = self._spawn()
        worker.task, worker.started, worker.begun = task, time.monotonic(), False
        with contextlib.suppress(OSError):  # it died idle; `poll` sees its sentinel and reports the crash
            worker.pipe.send(task)

    def poll(self, timeout: float) -> Iterator[Event]:
        busy = [worker for worker in self._pool if worker.task is not None]
        if not busy:
            return
        patience = max(0.0, min(timeout, min(worker.deadline for worker in busy) - time.monotonic()))
        handles: dict[Any, _Worker] = {worker.pipe: worker for worker in busy}
        handles |= {worker.process.sentinel: worker for worker in busy}
        ready = {id(handles[handle]): handles[handle] for handle in wait(list(handles), patience)}
        for worker in ready.values():
            yield from self._receive(worker)
        now = time.monotonic()
        for worker in busy:
            if worker.task is not None and now > worker.deadline:
                task = worker.task
                self._discard(worker)
                seconds = now - worker.started
                yield Done(task, Outcome("timeout", reason=f"stopped after {seconds:.0f} s", seconds=seconds))

    def close(self) -> None:
        for worker in list(self._pool):
            self._discard(worker)

    def _receive(self, worker: _Worker) -> Iterator[Event]:
        task = worker.task
        assert task is not None
        try:
            while worker.pipe.poll():
                message = worker.pipe.recv()
                if isinstance(message, Outcome):
                    worker.task = None
                    yield Done(task, message)
                    return
                if message == _BEGUN:
                    worker.begun, worker.started = True, time.monotonic()
                else:
                    yield Progress(task, *message)
        except (EOFError, OSError):
            pass
        if not worker.process.is_alive() or worker.pipe.closed:
            worker.process.join(1.0)
            code = worker.process.exitcode
            seconds = time.monotonic() - worker.started
            self._discard(worker)
            yield Done(task, Outcome("crashed", reason=_how_it_died(code), seconds=seconds))

    def _spawn(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
        os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
        try:
            process = self._context.Process(target=_serve, args=(theirs,), daemon=False, name="etude-worker")
            process.start()
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
        theirs.close()
        worker = _Worker(process, ours)
        self._pool.append(worker)
        return worker

    def _discard(self, worker: _Worker) -> None:
        if worker in self._pool:
            self._pool.remove(worker)
        if worker.process.is_alive():
            worker.process.kill()
        worker.process.join(5.0)
        worker.pipe.close()


def _how_it_died(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = "; out of memory?" if -code == signal.SIGKILL else ""
        return f"the worker was killed by {name}{hint}"
    return f"the worker ended with exit status {code}"


def _serve(pipe: Connection) -> None:
    """A worker's life: take a task, execute it, send the outcome; end when the coordinator is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the coordinator decides what Ctrl-C means
    import torch  # noqa: F401  what every trial needs, before its time begins to count

    from etude.lab.worker import execute, load_paper

    while True:
        try:
            task = pipe.recv()
            with contextlib.suppress(Exception):  # `execute` meets the same error, and tells it
                load_paper(task.module)
            pipe.send(_BEGUN)
        except (EOFError, OSError):
            return
        last = 0.0

        def report(step: int, total: int, metrics: dict[str, float]) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= _REPORT_EVERY:
                last = now
                pipe.send((step, total, dict(metrics)))

        try:
            outcome = execute(task, report)
            pipe.send(outcome)
        except (BrokenPipeError, ConnectionResetError):
            return
