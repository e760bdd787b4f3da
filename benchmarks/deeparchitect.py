"""Bookkeeping of the searchers beside what it serves: the evaluation of one network, and Optuna's ask and tell.

The protocol's space of fully connected networks; searchers that know 40 scores propose a network and are told one
more. Without Optuna its lines are missing.
"""

from functools import partial
from typing import Any

import numpy as np

from benchmarks.compare import Comparison
from etude.data import images
from etude.nas.deeparchitect import Searcher, SearchModule, Training, mlp
from etude.nas.deeparchitect.estimator import make_searcher

_KNOWN = 40
_SHAPE = (1, 8, 8)


def comparisons() -> list[Comparison]:
    """Ask and tell beside one evaluation and, where it is installed, beside Optuna."""
    training = Training(images.digits(), epochs=3, batch_size=50, keep="last")
    candidates = [make_searcher("random", mlp(10), _SHAPE, seed).ask() for seed in range(20)]
    turn = iter(range(10**9))

    def evaluate() -> float:
        return training(candidates[next(turn) % len(candidates)])

    found = []
    for name in ("mcts_bisect", "mcts", "smbo_names", "smbo"):
        found.append(
            Comparison(
                f"{name}: ask and tell, {_KNOWN} known", _Bookkeeping(name), evaluate, "training one network",
                "1,000 digits, 3 epochs; the ratio is the share of bookkeeping, 60,000 / (both) the networks a minute",
            )
        )  # fmt: skip
    try:
        import optuna
    except ImportError:
        return found
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    samplers = {
        "random": optuna.samplers.RandomSampler(seed=0),
        "mcts_bisect": optuna.samplers.TPESampler(seed=0),
        "smbo": optuna.samplers.TPESampler(seed=0),
    }
    for name, sampler in samplers.items():
        peer = f"Optuna, {type(sampler).__name__}"
        found.append(
            Comparison(
                f"{name}: ask and tell, {_KNOWN} known", _Bookkeeping(name), _Optuna(optuna, sampler), peer,
                "the same space as nested suggestions",
            )
        )  # fmt: skip
    return found


class _Bookkeeping:
    """Proposes a network and is told a score; knows 40 at first, and one more after each call."""

    def __init__(self, name: str):
        self.make = partial(make_searcher, name, mlp(10), _SHAPE, 0)
        self.rng = np.random.default_rng(0)
        self.searcher = self._filled()

    def _filled(self) -> Searcher:
        searcher = self.make()
        for _ in range(_KNOWN):
            searcher.tell(searcher.ask().id, self.rng.random())
        return searcher

    def __call__(self) -> SearchModule:
        candidate = self.searcher.ask()
        self.searcher.tell(candidate.id, self.rng.random())
        return candidate.module


class _Optuna:
    """The same decisions as suggestions of a trial."""

    def __init__(self, optuna: Any, sampler: Any):
        self.study = optuna.create_study(direction="maximize", sampler=sampler)
        self.rng = np.random.default_rng(0)
        self.rates = np.logspace(0, -5, 32).tolist()
        for _ in range(_KNOWN):
            self()

    def __call__(self) -> None:
        trial = self.study.ask()
        trial.suggest_categorical("optimizer", ["adam", "sgd"])
        trial.suggest_int("lr", 0, len(self.rates) - 1)
        for stage in "ab":
            trial.suggest_categorical(f"{stage}-times", [1, 2, 4])
            trial.suggest_categorical(f"{stage}-units", [8, 16, 32, 64, 128])
            trial.suggest_categorical(f"{stage}-order", [0, 1])
            trial.suggest_categorical(f"{stage}-nonlinearity", ["relu", "tanh", "sigmoid"])
            if trial.suggest_categorical(f"{stage}-dropout", [False, True]):
                trial.suggest_categorical(f"{stage}-keep", [0.25, 0.5, 0.9])
        self.study.tell(trial, self.rng.random())
