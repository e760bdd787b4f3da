"""Running a search: children one after the other or many at a time, kept after each, with workers that may die."""

import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from etude.loop.checkpoint import load, save
from etude.nas.nasnet.evaluators import Evaluator
from etude.nas.nasnet.genotype import Genotype
from etude.nas.nasnet.samplers import Sampler, checked_reward

__all__ = ["SearchResult", "reevaluate", "search"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SearchResult:
    """What a search tried.

    Attributes:
        history: (genotype, reward) in the order of the proposals; None where the child failed.
        evaluated: children of this run alone, not those of an earlier one that it went on from.
        seconds: that this run took.
    """

    history: list[tuple[Genotype, float | None]]
    evaluated: int
    seconds: float

    @property
    def failed(self) -> int:
        return sum(reward is None for _, reward in self.history)

    @property
    def rewards(self) -> np.ndarray:
        """(children,); 0 where one failed."""
        return np.array([reward or 0.0 for _, reward in self.history])

    @property
    def per_minute(self) -> float:
        """Children evaluated in a minute of this run."""
        return 60 * self.evaluated / max(self.seconds, 1e-9)

    def top(self, k: int) -> list[tuple[Genotype, float]]:
        """The `k` best distinct pairs of cells, best first; fewer if there are fewer. Their rewards are the ones that
        they were chosen by, hence flattered: see `reevaluate`."""
        best: dict[Genotype, float] = {}
        for genotype, reward in self.history:
            if reward is not None:
                best.setdefault(genotype.canonical(), reward)
        return sorted(best.items(), key=lambda item: -item[1])[:k]

    def top_mean(self, k: int) -> np.ndarray:
        """Mean reward of the `k` best distinct ones after 1, 2, ... children, (children,): the paper's figure 6."""
        known: dict[Genotype, float] = {}
        means = []
        for genotype, reward in self.history:
            if reward is not None:
                known.setdefault(genotype.canonical(), reward)
            means.append(np.mean(sorted(known.values())[-k:]) if known else np.nan)
        return np.array(means)


def reevaluate(genotypes: Sequence[Genotype], evaluator: Evaluator, seeds: Sequence[int]) -> list[float]:
    """Mean reward of each over fresh seeds: what is reported of the winners of a search.

    Raises:
        ValueError: without seeds, or for a reward that is not finite.
    """
    if not seeds:
        raise ValueError("give at least one seed")
    return [float(np.mean([checked_reward(evaluator(one, seed)) or 0.0 for seed in seeds])) for one in genotypes]


def search(
    sampler: Sampler,
    evaluator: Evaluator,
    budget: int,
    batch: int = 20,
    *,
    seed: int = 0,
    save: str | os.PathLike | None = None,
    workers: int = 1,
    executor: Executor | None = None,
    on_error: str = "raise",
    retries: int = 2,
    on_result: Callable[[int, Genotype, float | None], Any] | None = None,
) -> SearchResult:
    """Evaluates proposals of `sampler` until there are `budget` results.

        result = search(PPOSearch(seed=0), CachedEvaluator(TrainEvaluator(data)), 1_000, save="search.pt", workers=8)

    `batch` proposals are evaluated at a time, and told together in the order in which they were made: with several
    workers a search finds what it would with one, and one that was stopped and taken up again what it would have.

    Args:
        sampler: proposes and learns.
        evaluator: genotype, seed -> reward, in [0, 1]; None for a child that failed. With `workers` or `executor` it
            must be picklable.
        budget: results in all, those of an earlier run and failed children included.
        batch: proposals at a time; at least as many as workers keeps all of them busy.
        seed: given to every evaluation.
        save: file that holds everything after each result, written whole or not at all; if it exists, the search
            goes on from it.
        workers: processes that evaluate; they are replaced if they die.
        executor: where to evaluate instead: any `concurrent.futures.Executor`, which the caller closes.
        on_error: "raise" ends the search at a child that raises, gives NaN or no number, or kills its worker; "skip"
            logs it, and the child counts as failed, with reward 0.
        retries: how often the children that a dead worker leaves are evaluated again together; then one by one, and
            one whose worker dies while it is alone has killed it.
        on_result: called with the number of results, the genotype and the reward.

    Raises:
        ValueError: for arguments out of range, a reward that is NaN, or a `save` file of another search.
    """
    for name, value, low in (
        ("budget", budget, 1),
        ("batch", batch, 1),
        ("workers", workers, 1),
        ("retries", retries, 0),
    ):
        if value < low:
            raise ValueError(f"{name} must be at least {low}, got {value}")
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
    run = _State(sampler, seed, save)
    started, evaluated = time.monotonic(), 0
    with _Place(evaluator, seed, workers, executor, retries) as place:
        while sampler.pending or sampler.told < budget:
            asked = sampler.pending or sampler.ask(min(batch, budget - sampler.told))
            for number, outcome in place.evaluate({n: one for n, one in enumerate(asked) if n not in run.partial}):
                run.partial[number] = _settled(outcome, asked[number], on_error)
                evaluated += 1
                run.write()
                if on_result is not None:
                    on_result(len(run.history) + len(run.partial), asked[number], run.partial[number])
            told = [(one, run.partial[number]) for number, one in enumerate(asked)]
            sampler.tell(told)
            run.history += told
            run.partial = {}
            run.write()
    return SearchResult(run.history, evaluated, time.monotonic() - started)


def _settled(outcome: Any, genotype: Genotype, on_error: str) -> float | None:
    try:
        if isinstance(outcome, Exception):
            raise outcome
        return checked_reward(outcome)
    except Exception as error:
        if on_error == "raise":
            error.add_note(f"while evaluating {genotype.to_json()}")
            raise
        _log.warning("a child failed, %s: %s: %s", genotype.to_json(), type(error).__name__, error)
        return None


class _State:
    """What has been found, and its file."""

    def __init__(self, sampler: Sampler, seed: int, path: str | os.PathLike | None):
        self.sampler, self.seed, self.path = sampler, seed, path
        self.history: list[tuple[Genotype, float | None]] = []
        self.partial: dict[int, float | None] = {}
        if path is not None and Path(path).exists():
            self._read()

    def write(self) -> None:
        if self.path is None:
            return
        encode = self.sampler.space.encode
        actions = torch.tensor([encode(genotype) for genotype, _ in self.history], dtype=torch.uint8)
        rewards = [float("nan") if reward is None else reward for _, reward in self.history]
        save(self.path, {
            "nasnet_search": 1, "seed": self.seed, "actions": actions,
            "rewards": torch.tensor(rewards, dtype=torch.float64), "partial": self.partial,
            "sampler": self.sampler.state_dict(),
        })  # fmt: skip

    def _read(self) -> None:
        assert self.path is not None
        content = load(self.path)
        if content.get("nasnet_search") != 1:
            raise ValueError(f"{self.path} is not the state of a search")
        if content["seed"] != self.seed:
            raise ValueError(f"{self.path} belongs to a search with seed {content['seed']}, this one has {self.seed}")
        try:
            self.sampler.load_state_dict(content["sampler"])
        except ValueError as error:
            raise ValueError(f"{self.path} cannot be taken up: {error}") from error
        rewards = [None if reward != reward else reward for reward in content["rewards"].tolist()]
        genotypes = [self.sampler.space.decode(row) for row in content["actions"].tolist()]
        self.history = list(zip(genotypes, rewards, strict=True))
        self.partial = content["partial"]


class _Place:
    """Where children are evaluated: here, in processes of its own, or in a given executor."""

    def __init__(self, evaluator: Evaluator, seed: int, workers: int, executor: Executor | None, retries: int):
        self.evaluator, self.seed, self.workers, self.given, self.retries = evaluator, seed, workers, executor, retries
        self._own: ProcessPoolExecutor | None = None

    def __enter__(self) -> "_Place":
        return self

    def __exit__(self, *error: Any) -> None:
        self._close()

    def evaluate(self, jobs: dict[int, Genotype]) -> Iterator[tuple[int, Any]]:
        """(number, reward or the exception that it ended in), as they come."""
        if self.given is None and self.workers == 1:
            for number, genotype in jobs.items():
                yield number, _outcome(self.evaluator, genotype, self.seed)
            return
        left = dict(jobs)
        for _ in range(self.retries + 1):
            try:
                yield from self._together(left)
                return
            except BrokenExecutor as error:
                if self.given is not None:
                    raise RuntimeError(
                        f"the given executor is broken ({error}); run again with a new one, `save` keeps the results"
                    ) from error
                self._close()
                _log.warning("a worker died; %d children are evaluated again", len(left))
        # One by one, so that the child that kills its worker shows, and takes no other along.
        while left:
            number = next(iter(left))
            try:
                yield from self._together(left, only=number)
            except BrokenExecutor as error:
                self._close()
                del left[number]
                yield number, RuntimeError(f"its worker died while it was evaluated alone: {error}")

    def _together(self, left: dict[int, Genotype], only: int | None = None) -> Iterator[tuple[int, Any]]:
        chosen = left if only is None else {only: left[only]}
        futures = {self._submit(genotype): number for number, genotype in chosen.items()}
        for future in as_completed(futures):
            outcome = future.result()
            number = futures[future]
            del left[number]
            yield number, outcome

    def _submit(self, genotype: Genotype) -> Any:
        if self.given is not None:
            return self.given.submit(_outcome, self.evaluator, genotype, self.seed)
        if self._own is None:
            # spawn: a process forked while torch's threads hold locks may hang.
            self._own = ProcessPoolExecutor(
                self.workers, multiprocessing.get_context("spawn"), _receive, (self.evaluator, self.workers)
            )
        return self._own.submit(_outcome_received, genotype, self.seed)

    def _close(self) -> None:
        if self._own is not None:
            self._own.shutdown(wait=False, cancel_futures=True)
            self._own = None


_received: list[Evaluator] = []


def _receive(evaluator: Evaluator, workers: int) -> None:
    """Keeps the evaluator, with its data, once in a worker."""
    torch.set_num_threads(max((os.cpu_count() or 1) // workers, 1))
    _received[:] = [evaluator]


def _outcome_received(genotype: Genotype, seed: int) -> Any:
    return _outcome(_received[0], genotype, seed)


def _outcome(evaluator: Evaluator, genotype: Genotype, seed: int) -> Any:
    try:
        return evaluator(genotype, seed)
    except Exception as error:
        return error
