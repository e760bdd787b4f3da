"""Persistent spawned workers on this machine, one thread each. A crash costs one trial and the worker is respawned.

Each worker leads a process group of its own, which ends with it: neither a trial that is stopped nor a coordinator that
is killed leaves processes behind.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from etude.lab.engine.base import Done, Event, Progress, numbers
from etude.lab.task import Outcome, Task

__all__ = ["ProcessEngine"]

_REPORT_EVERY = 0.2
_START_UP_SECONDS = 300.0
_JOIN_SECONDS = 5.0
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
        # At its exit Python waits for children that live; idle workers would wait for it in turn.
        atexit.register(self.close)

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
                yield self._give_up(worker)

    def close(self) -> None:
        atexit.unregister(self.close)
        for worker in self._pool:
            _kill(worker.process)
        for worker in list(self._pool):
            self._discard(worker)

    def _receive(self, worker: _Worker) -> Iterator[Event]:
        task = worker.task
        assert task is not None
        # Asked before the pipe is emptied: what a worker sent before it died has arrived by then.
        dead = not worker.process.is_alive()
        if dead:
            _kill(worker.process)  # a child of the trial would keep a message that was cut short from ending
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
            dead = True  # or as good as dead: it has closed its end of the pipe
        if dead:
            code, seconds = _exit_code(worker.process), time.monotonic() - worker.started
            self._discard(worker)
            yield Done(task, Outcome("crashed", reason=_how_it_died(code), seconds=seconds))

    def _give_up(self, worker: _Worker) -> Done:
        task, seconds = worker.task, time.monotonic() - worker.started
        assert task is not None
        self._discard(worker)
        if worker.begun:
            return Done(task, Outcome("timeout", reason=f"stopped after {seconds:.0f} s", seconds=seconds))
        return Done(task, Outcome("crashed", reason=f"the worker was not ready after {seconds:.0f} s", seconds=seconds))

    def _spawn(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs,), daemon=False, name="etude-worker")
        with _inherited():
            process.start()
            worker = _Worker(process, ours)
            self._pool.append(worker)
        theirs.close()
        return worker

    def _discard(self, worker: _Worker) -> None:
        _kill(worker.process)
        worker.process.join(_JOIN_SECONDS)
        worker.pipe.close()
        if worker in self._pool:
            self._pool.remove(worker)


@contextlib.contextmanager
def _inherited() -> Iterator[None]:
    """What a worker takes over as it starts: one thread, and deafness to Ctrl-C, which is the coordinator's to answer.

    The coordinator hears a Ctrl-C that came meanwhile a moment later.
    """
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    mask = None
    if hasattr(signal, "pthread_sigmask"):
        resource_tracker.ensure_running()  # `start` would start it, and unblock the signal with that
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _kill(process: BaseProcess) -> None:
    """Ends a worker and what its trial started."""
    process.kill()
    if process.pid is not None and hasattr(os, "killpg"):
        with contextlib.suppress(OSError):  # nothing is left of the group, or it was never founded
            os.killpg(process.pid, signal.SIGKILL)


def _exit_code(process: BaseProcess, patience: float = 1.0) -> int | None:
    """Of a process that is ending; None if it does not. `join` would wait for ever if its sentinel alone has gone."""
    deadline = time.monotonic() + patience
    while process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    return process.exitcode


def _how_it_died(code: int | None) -> str:
    if code is None:
        return "the worker closed its pipe"
    if code < 0:
        name = signal.Signals(-code).name
        hint = "; out of memory?" if -code == signal.SIGKILL else ""
        return f"the worker was killed by {name}{hint}"
    return f"the worker ended with exit status {code}"


def _serve(pipe: Connection) -> None:
    """A worker's life: take a task, execute it, send the outcome; end when the coordinator is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    threading.Thread(target=_follow_the_coordinator, daemon=True).start()
    import torch  # noqa: F401  what every trial needs, before its time begins to count

    from etude.lab.worker import execute, load_paper, spare_the_collector

    while True:
        try:
            task = pipe.recv()
            with contextlib.suppress(Exception, SystemExit):  # `execute` meets the same error, and tells it
                load_paper(task.module)
            spare_the_collector(task.claim)
            pipe.send(_BEGUN)
        except (EOFError, OSError):
            return
        last = 0.0

        def report(step: int, total: int, metrics: dict[str, float]) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= _REPORT_EVERY:
                last = now
                pipe.send((int(step), int(total), numbers(metrics)))

        try:
            outcome = execute(task, report)
            pipe.send(outcome)
        except (BrokenPipeError, ConnectionResetError):
            return


def _follow_the_coordinator() -> None:
    """Ends this worker and its children when the coordinator has ended, be it in the middle of a trial."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
