"""Running a search: students one after the other or several at once, with nothing lost if it is stopped."""

import multiprocessing
import os
import tempfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from etude.nas.n2n.search import NetworkCompressor, Rollout, Tried

__all__ = ["load_search", "run_search", "save_search"]


def run_search(
    compressor: NetworkCompressor,
    steps: int,
    *,
    on_step: Callable[[list[Tried]], Any] | None = None,
    save: str | os.PathLike | None = None,
    workers: int = 1,
    executor: Executor | None = None,
    retries: int = 2,
    retry_on: tuple[type[Exception], ...] = (),
) -> NetworkCompressor:
    """Updates the policy until it has had `steps` updates.

        run_search(compressor, 100, save="search.pt", workers=2)

    The students of an update do not depend on one another: they are trained at the same time, and the result is that
    of one worker.

    Args:
        compressor: what proposes and learns.
        steps: updates in all, those before a resume included.
        on_step: called with the students of each update.
        save: file that holds the whole state after every student, written whole or not at all; if it exists, the
            search goes on from it.
        workers: students trained at a time. Without `executor` they are trained in processes of the search's own, which
            are replaced if they die; `build` and `evaluate` must then be picklable.
        executor: where to train: any `concurrent.futures.Executor`, such as one of Ray tasks. The caller closes it.
        retries: how often a student whose worker died is trained again.
        retry_on: errors by which the executor says that a worker is lost.

    Returns:
        The compressor.

    Raises:
        ValueError: for arguments out of range, an accuracy or reward that is not finite, or a `save` file of another
            search. What the evaluation raises, with the student's actions.
        RuntimeError: if a student's worker died more than `retries` times.
    """
    for name, value, least in (("steps", steps, 0), ("workers", workers, 1), ("retries", retries, 0)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if save is not None and Path(save).exists():
        load_search(save, compressor)
    place = _Place(compressor, workers, executor, retries, retry_on, save)
    try:
        while compressor.epoch < steps:
            rollouts = compressor.ask()
            if save is not None:
                save_search(save, compressor)
            tried = compressor.tell(place.accuracies(rollouts))
            if save is not None:
                save_search(save, compressor)
            if on_step is not None:
                on_step(tried)
    finally:
        place.close()
    return compressor


class _Place:
    """Where students are trained: in this process, in processes of its own, or in a given executor."""

    def __init__(
        self,
        compressor: NetworkCompressor,
        workers: int,
        executor: Executor | None,
        retries: int,
        retry_on: tuple[type[Exception], ...],
        save: str | os.PathLike | None,
    ):
        self.compressor, self.workers, self.given = compressor, workers, executor
        self.retries, self.save = retries, save
        self.lost: tuple[type[Exception], ...] = (BrokenExecutor, *retry_on)
        self._own: ProcessPoolExecutor | None = None

    def accuracies(self, rollouts: list[Rollout]) -> list[float | None]:
        compressor = self.compressor
        digests = [compressor.prepared(rollout)[0] for rollout in rollouts]
        waiting: dict[int, Rollout] = {}
        for rollout, seen in zip(rollouts, digests):
            if seen is not None and seen not in compressor.known:
                waiting.setdefault(seen, rollout)
        self._train(waiting)
        return [None if seen is None else compressor.known[seen] for seen in digests]

    def _train(self, waiting: dict[int, Rollout]) -> None:
        deaths: Counter[int] = Counter()
        alone: list[int] = []
        todo = list(waiting)
        running: dict[Future, int] = {}
        while todo or alone or running:
            # After a pool's death those that it was training run alone, one by one, so that the culprit shows.
            while (alone and not running) or (todo and not alone and len(running) < self.workers):
                seen = alone.pop(0) if alone else todo.pop(0)
                running[self._submit(waiting[seen])] = seen
                if seen in deaths:
                    break
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                if future not in running:  # a pool that broke took the others along
                    continue
                seen = running.pop(future)
                try:
                    accuracy = future.result()
                except self.lost as error:
                    lost = [seen]
                    if isinstance(error, BrokenExecutor):
                        lost += running.values()
                        running.clear()
                        self._renew(error)
                    self._count(deaths, lost, waiting, error)
                    alone += lost
                except Exception as error:
                    error.add_note(f"while evaluating student {waiting[seen].id}: {waiting[seen].actions.tolist()}")
                    raise
                else:
                    self.compressor.record(waiting[seen], accuracy)
                    if self.save is not None:
                        save_search(self.save, self.compressor)

    def _count(self, deaths: Counter[int], lost: list[int], waiting: dict[int, Rollout], error: Exception) -> None:
        for seen in lost:
            deaths[seen] += len(lost) == 1
            if deaths[seen] > self.retries:
                rollout = waiting[seen]
                raise RuntimeError(
                    f"the worker of student {rollout.id} died {deaths[seen]} times: {error}; "
                    f"its actions: {rollout.actions.tolist()}"
                ) from error

    def _submit(self, rollout: Rollout) -> Future:
        build, evaluate, actions = self.compressor.build, self.compressor.evaluate, rollout.actions
        if self.given is not None:
            return self.given.submit(_evaluate, build, evaluate, actions)
        if self.workers == 1:
            future: Future = Future()
            try:
                future.set_result(_evaluate(build, evaluate, actions))
            except Exception as error:
                future.set_exception(error)
            return future
        if self._own is None:
            # spawn: a process forked while torch's threads hold locks may hang.
            self._own = ProcessPoolExecutor(
                self.workers, multiprocessing.get_context("spawn"), _receive, (build, evaluate, self.workers)
            )
        try:
            return self._own.submit(_evaluate_received, actions)
        except BrokenExecutor as error:  # a worker died since the last look
            future = Future()
            future.set_exception(error)
            return future

    def _renew(self, error: BaseException) -> None:
        if self.given is not None:
            raise RuntimeError(
                f"the given executor is broken ({error}); run again with a new one, `save` keeps what is known"
            ) from error
        self.close()

    def close(self) -> None:
        if self._own is not None:
            self._own.shutdown(wait=False, cancel_futures=True)
            self._own = None


_received: list[Any] = []


def _receive(build: Any, evaluate: Any, workers: int) -> None:
    """Keeps the teacher and the data once in a worker."""
    torch.set_num_threads(max((os.cpu_count() or 1) // workers, 1))
    _received[:] = [build, evaluate]


def _evaluate_received(actions: Tensor) -> float:
    build, evaluate = _received
    return _evaluate(build, evaluate, actions)


def _evaluate(build: Any, evaluate: Any, actions: Tensor) -> float:
    return float(evaluate(build(actions)))


def save_search(path: str | os.PathLike, compressor: NetworkCompressor) -> None:
    """Writes the compressor's state to a temporary file beside `path` and renames it."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            torch.save(compressor.state_dict(), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load_search(path: str | os.PathLike, compressor: NetworkCompressor) -> None:
    """Puts into the compressor what `save_search` wrote.

    Raises:
        ValueError: if the file is torn, no search's, or that of another one.
    """
    try:
        state = torch.load(path, weights_only=True)
    except Exception as error:  # a torn file fails in many ways
        raise ValueError(f"{path} is not a readable search: {error}") from error
    try:
        compressor.load_state_dict(state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
