"""Running a search: one network after the other or several at once, with nothing lost if it is stopped."""

import json
import logging
import math
import multiprocessing
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from etude.nas.deeparchitect.searchers import Candidate, Searcher

__all__ = ["SearchResult", "WorkerLost", "load_search", "save_search", "search"]

_log = logging.getLogger(__name__)
_FORMAT = "etude deeparchitect search 1"

Evaluate = Callable[[Candidate], float | int | None]


class WorkerLost(RuntimeError):
    """The process that evaluated a candidate is gone; an executor reports it so, and the candidate is run again."""


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        histories: of the evaluated networks, in the order in which their scores came.
        scores: their scores; None where the evaluation failed.
        best: the candidate of the highest score, None if all failed.
        bookkeeping: seconds that this run spent in the searcher.
        evaluating: seconds that its evaluations took, added up.
    """

    histories: list[tuple[int, ...]]
    scores: list[float | None]
    best: Candidate | None
    bookkeeping: float
    evaluating: float

    def best_so_far(self) -> np.ndarray:
        """Highest score after 1, 2, ... evaluations, (evaluations,); NaN before the first that succeeded."""
        known = np.array([-math.inf if score is None else score for score in self.scores])
        best = np.maximum.accumulate(known)
        return np.where(np.isfinite(best), best, np.nan)

    def fraction_above(self, thresholds: Sequence[float] | np.ndarray) -> np.ndarray:
        """Fraction of the networks that score above each threshold, (thresholds,); a failed one is above none."""
        known = np.array([-math.inf if score is None else score for score in self.scores])
        return (known[None, :] > np.asarray(thresholds, dtype=float)[:, None]).mean(axis=1)


def search(
    searcher: Searcher,
    evaluate: Evaluate,
    budget: int,
    *,
    on_result: Callable[[Candidate, float | None], Any] | None = None,
    save: str | os.PathLike | None = None,
    workers: int = 1,
    executor: Executor | None = None,
    on_error: str = "raise",
    retries: int = 2,
) -> SearchResult:
    """Evaluates networks until `budget` of them are told.

        result = search(searcher, lambda candidate: train_and_score(candidate.compile()), 40, save="search.json")

    With one worker a search that was stopped and taken up again goes on as if nothing had been. With several the
    order in which scores come decides what is proposed next.

    Args:
        searcher: proposes and learns.
        evaluate: candidate -> score, higher is better, in [0, 1] for MCTS; None if the network is of no use. With
            `workers` it must be picklable: a function of a module, or an instance such as `Training`.
        budget: evaluations in all, those before a resume and the failed ones included.
        on_result: called with each candidate and its score.
        save: file that holds the whole state after every result, written whole or not at all; if it exists, the
            search goes on from it, first with the candidates that were being evaluated.
        workers: candidates evaluated at a time. Without `executor` they run in processes of the search's own, which
            are replaced if they die.
        executor: where to evaluate: any `concurrent.futures.Executor`, or `RayExecutor` for a cluster. The caller
            closes it.
        on_error: "raise" ends the search at an evaluation that raises, gives NaN or no number, or kills its worker
            each time (a run with `save` can go on, and tries that candidate again); "skip" logs it, and the candidate
            counts as failed.
        retries: how often a candidate whose worker died is run again.

    Raises:
        ValueError: for arguments out of range, a score that is not finite, or a `save` file of another search.
        TypeError: for a score that is no number.
    """
    for name, value, low in (("budget", budget, 1), ("workers", workers, 1), ("retries", retries, 0)):
        if value < low:
            raise ValueError(f"{name} must be at least {low}, got {value}")
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
    if save is not None and Path(save).exists():
        load_search(save, searcher)
    place = _Place(evaluate, workers, executor)
    with place.closing():
        return _Run(searcher, budget, place, on_result, save, on_error, retries).run()


class _Run:
    def __init__(
        self,
        searcher: Searcher,
        budget: int,
        place: "_Place",
        on_result: Callable[[Candidate, float | None], Any] | None,
        save: str | os.PathLike | None,
        on_error: str,
        retries: int,
    ):
        self.searcher, self.budget, self.place, self.on_result = searcher, budget, place, on_result
        self.save, self.on_error, self.retries = save, on_error, retries
        self.waiting = searcher.pending
        self.running: dict[Future, Candidate] = {}
        self.suspects: list[Candidate] = []
        self.alone: set[int] = set()
        self.deaths: Counter[int] = Counter()
        self.bookkeeping, self.evaluating = 0.0, 0.0

    def run(self) -> SearchResult:
        while self.running or self._left() > 0:
            self._fill()
            done, _ = wait(self.running, return_when=FIRST_COMPLETED)
            for future in sorted(done, key=lambda future: self.running[future].id):
                if future in self.running:  # a pool that broke took the others along
                    self._finish(future)
        results = self.searcher.results
        known = [told for told in results if told.score is not None]
        best = max(known, key=lambda told: (told.score, -told.id), default=None)
        return SearchResult(
            histories=[told.history for told in results],
            scores=[told.score for told in results],
            best=best and Candidate(best.id, best.history, self.searcher.replay(best.history)),
            bookkeeping=self.bookkeeping,
            evaluating=self.evaluating,
        )

    def _left(self) -> int:
        return self.budget - len(self.searcher.results) - len(self.running)

    def _fill(self) -> None:
        while self._left() > 0 and (not self.running or self._may_share()):
            if self.suspects:
                candidate = self.suspects.pop(0)
                self.alone.add(candidate.id)
            elif self.waiting:
                candidate = self.waiting.pop(0)
            else:
                started = time.perf_counter()
                candidate = self.searcher.ask()
                self.bookkeeping += time.perf_counter() - started
            try:
                self.running[self.place.submit(candidate)] = candidate
            except BrokenExecutor as error:  # a worker died since the last look
                self.suspects += [*self.running.values(), candidate]
                self.running.clear()
                self.place.renew(error)

    def _may_share(self) -> bool:
        """After a pool's death those that it was evaluating run alone, one by one, so that the culprit shows."""
        if self.suspects or any(candidate.id in self.alone for candidate in self.running.values()):
            return False
        return len(self.running) < self.place.workers

    def _finish(self, future: Future) -> None:
        candidate = self.running.pop(future)
        try:
            score, seconds = future.result()
            self.evaluating += seconds
        except (BrokenExecutor, WorkerLost) as error:
            self._lost(candidate, error)
        except Exception as error:
            self._failed(candidate, error)
        else:
            self._tell(candidate, score)

    def _tell(self, candidate: Candidate, score: Any) -> None:
        if score is not None and not isinstance(score, float | int | np.number | torch.Tensor):
            wrong = f"evaluate must give a number or None, got {type(score).__name__}"
            return self._failed(candidate, TypeError(wrong))
        value = None if score is None else float(score)
        started = time.perf_counter()
        try:
            self.searcher.tell(candidate.id, value)
        except ValueError as error:
            return self._failed(candidate, error)
        if self.save is not None:
            save_search(self.save, self.searcher)
        self.bookkeeping += time.perf_counter() - started
        if self.on_result is not None:
            self.on_result(candidate, value)

    def _lost(self, candidate: Candidate, error: BaseException) -> None:
        known = isinstance(error, WorkerLost) or not self.running
        others = []
        if not isinstance(error, WorkerLost):
            others = list(self.running.values())
            self.running.clear()
            self.place.renew(error)
        self.deaths[candidate.id] += known
        if self.deaths[candidate.id] > self.retries:
            times = self.deaths[candidate.id]
            self._failed(candidate, RuntimeError(f"its worker died {times} times while evaluating it: {error}"))
            return
        _log.warning("a worker died; candidates %s run again", [one.id for one in (candidate, *others)])
        if isinstance(error, WorkerLost):
            self.waiting.insert(0, candidate)
        else:
            self.suspects += [candidate, *others]

    def _failed(self, candidate: Candidate, error: Exception) -> None:
        if self.on_error == "raise":
            error.add_note(
                f"while evaluating candidate {candidate.id}, history {candidate.history}:\n{candidate.module}"
            )
            if self.save is not None:
                save_search(self.save, self.searcher)
            raise error
        _log.warning("candidate %d failed: %s: %s", candidate.id, type(error).__name__, error)
        self._tell(candidate, None)


class _Place:
    """Where evaluations run: in this process, in processes of its own, or in a given executor."""

    def __init__(self, evaluate: Evaluate, workers: int, executor: Executor | None):
        self.evaluate, self.workers, self.given = evaluate, workers, executor
        self._own: ProcessPoolExecutor | None = None

    def closing(self) -> AbstractContextManager:
        return nullcontext() if self.given is not None or self.workers == 1 else _Closing(self)

    def submit(self, candidate: Candidate) -> Future:
        if self.given is not None:
            return self.given.submit(_timed, self.evaluate, candidate)
        if self.workers == 1:
            future: Future = Future()
            try:
                future.set_result(_timed(self.evaluate, candidate))
            except Exception as error:
                future.set_exception(error)
            return future
        if self._own is None:
            # spawn: a process forked while torch's threads hold locks may hang.
            self._own = ProcessPoolExecutor(
                self.workers, multiprocessing.get_context("spawn"), _receive, (self.evaluate, self.workers)
            )
        return self._own.submit(_evaluate_received, candidate)

    def renew(self, error: BaseException) -> None:
        if self.given is not None:
            raise RuntimeError(
                f"the given executor is broken ({error}); run again with a new one, `save` keeps what was told"
            ) from error
        self.close()

    def close(self) -> None:
        if self._own is not None:
            self._own.shutdown(wait=False, cancel_futures=True)
            self._own = None


class _Closing(AbstractContextManager):
    def __init__(self, place: _Place):
        self.place = place

    def __exit__(self, *error: Any) -> None:
        self.place.close()


_received: list[Evaluate] = []


def _receive(evaluate: Evaluate, workers: int) -> None:
    """Keeps the function, with its data, once in a worker."""
    torch.set_num_threads(max((os.cpu_count() or 1) // workers, 1))
    _received[:] = [evaluate]


def _evaluate_received(candidate: Candidate) -> tuple[Any, float]:
    return _timed(_received[0], candidate)


def _timed(evaluate: Evaluate, candidate: Candidate) -> tuple[Any, float]:
    started = time.perf_counter()
    score = evaluate(candidate)
    return score, time.perf_counter() - started


def save_search(path: str | os.PathLike, searcher: Searcher) -> None:
    """Writes the searcher's state as JSON to a temporary file beside `path` and renames it."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump({"format": _FORMAT, **searcher.state_dict()}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load_search(path: str | os.PathLike, searcher: Searcher) -> None:
    """Puts into the searcher what `save_search` wrote.

    Raises:
        ValueError: if the file is torn, no search's, or that of another searcher, space or shape.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a readable search: {error}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(f"{path} is not the state of a search")
    try:
        searcher.load_state_dict(content)
    except ValueError as error:
        raise ValueError(f"{path} belongs to another search: {error}") from error
