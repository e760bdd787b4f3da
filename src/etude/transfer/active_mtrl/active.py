"""Buying samples where they help a target: explore, estimate relevance, exploit.

Wang, Chen, Jamieson & Du, "Improved Active Multi-Task Representation Learning via Lasso", ICML 2023, arXiv:2306.02556.
Chen, Jamieson & Du, "Active Multi-Task Representation Learning", ICML 2022, arXiv:2202.00911 (the L2 strategy).

    1. n_0 samples of every source; a shared representation and a head for each task are fitted, then the target's head
    2. nu_hat by Lasso on the estimated heads (L1), or by the pseudo-inverse (L2)
    3. n_t = n_0 + (N - T n_0) |nu_hat_t| / ||nu_hat||_1 (L1), or by nu_hat_t^2 (L2); the representation is fitted anew

With several rounds steps 2 and 3 are repeated, each with an equal part of what there is to spend; samples are only
ever added. Labels may be measured in units of their own: each task is divided by its standard deviation in step 1,
and relevance is given for the tasks as they came.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Int64
from numpy.typing import ArrayLike

from etude.transfer.active_mtrl.allocation import allocate
from etude.transfer.active_mtrl.oracles import Oracle
from etude.transfer.active_mtrl.relevance import l2_relevance, lasso_relevance

__all__ = ["ActiveHistory", "ActiveMTRL", "Learner", "Round"]

_POWERS = {"l1": 1.0, "l2": 2.0, "known": 1.0, "uniform": 1.0}


class Learner(Protocol):
    """A multi-task learner: `LinearMTR`, `NeuralMTR`, or a user's."""

    heads_: np.ndarray

    def fit(self, X: Any, y: Any) -> Any: ...

    def fit_head(self, X: Any, y: Any) -> np.ndarray: ...

    def head_noise(self, X: Any, y: Any, head: Any) -> float: ...

    def predict(self, X: Any, task: Any) -> np.ndarray: ...


@dataclass(frozen=True)
class Round:
    """A purchase.

    Attributes:
        relevance: nu, (tasks,), that it was made by; for labels in the tasks' own units. None for an even one.
        bought: samples of each task, (tasks,). counts: all samples of each task after it.
    """

    relevance: np.ndarray | None
    bought: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class ActiveHistory:
    """What was bought, and what was learned from it.

        history.predict(X_new)

    Attributes:
        rounds: exploration first.
        learner: as fitted on all samples. head: of the target.
        target_scale: unit in which the target's labels were learned.
    """

    rounds: tuple[Round, ...]
    learner: Any
    head: np.ndarray
    target_scale: float

    @property
    def counts(self) -> Int64[np.ndarray, "tasks"]:
        """Samples of each source in the end."""
        return self.rounds[-1].counts

    @property
    def relevance(self) -> Float[np.ndarray, "tasks"] | None:
        """The last estimate of nu."""
        return self.rounds[-1].relevance

    def predict(self, X: ArrayLike) -> Float[np.ndarray, "n"]:
        """The target's labels at X (n, d), in their own units."""
        return self.target_scale * self.learner.predict(X, self.head)


class ActiveMTRL:
    """Spends a budget of source samples for the good of one target.

        active = ActiveMTRL(LinearMTR(rank=5), "l1", n_explore=50, budget=5000)
        history = active.run(oracle, X_target, y_target)
        history.counts, history.relevance, history.predict(X_new)

    Args:
        learner: `LinearMTR`, `NeuralMTR`, or anything with their methods and `heads_`.
        strategy: "l1" (Lasso), "l2" (pseudo-inverse), "uniform", or "known", which takes `relevance` as given.
        n_explore: n_0, samples of every source before anything is known.
        budget: N, all samples, the exploration included; money, where there are `costs`.
        rounds: purchases after the exploration.
        relevance: (tasks,), for "known".
        power: exponent of the relevance in the plan; by default 2 for "l2" and 1 for the others.
        relevance_kw: for `lasso_relevance`: `lam` or `max_tasks`; "auto" is told the target's own noise.
        costs: price of a sample of each source, (tasks,).
        normalize: divide each task's labels by their standard deviation in the exploration.

    Raises:
        ValueError: if a number or the strategy is out of range, or `relevance` does not go with the strategy.
    """

    def __init__(
        self,
        learner: Any,
        strategy: str = "l1",
        *,
        n_explore: int,
        budget: float | int,
        rounds: int = 1,
        relevance: ArrayLike | None = None,
        power: float | int | None = None,
        relevance_kw: Mapping[str, Any] | None = None,
        costs: ArrayLike | None = None,
        normalize: bool = True,
    ):
        if strategy not in _POWERS:
            raise ValueError(f"strategy must be one of {', '.join(_POWERS)}, got {strategy!r}")
        if (strategy == "known") != (relevance is not None):
            raise ValueError('relevance= is given with the strategy "known", and only with it')
        if n_explore < 1 or rounds < 1:
            raise ValueError(f"n_explore and rounds must be at least 1, got {n_explore} and {rounds}")
        self.learner, self.strategy, self.n_explore, self.budget = learner, strategy, n_explore, budget
        self.rounds, self.relevance, self.normalize = rounds, relevance, normalize
        self.power = _POWERS[strategy] if power is None else power
        self.relevance_kw = dict(relevance_kw or {})
        self.costs = None if costs is None else np.asarray(costs, dtype=np.float64)

    def run(self, oracle: Oracle, X_target: ArrayLike, y_target: ArrayLike) -> ActiveHistory:
        """Explores, spends, and fits.

        Args:
            oracle: gives samples of the sources; see `LinearOracle` and `TableOracle`.
            X_target: (n, d). y_target: (n,): the few samples of the target.

        Raises:
            ValueError: if the budget does not pay the exploration or exceeds what the sources hold; before anything is
                drawn.
        """
        target = np.asarray(X_target), np.asarray(y_target, dtype=np.float64)
        if len(target[0]) != len(target[1]) or not len(target[1]):
            raise ValueError(f"the target must have as many rows as labels, got {len(target[0])}, {len(target[1])}")
        tasks = oracle.num_tasks
        price = np.ones(tasks) if self.costs is None else self.costs
        # Refuses what cannot be paid before anything is drawn.
        allocate(np.ones(tasks), budget=self.budget, minimum=self.n_explore, costs=self.costs, capacity=oracle.capacity)
        counts = np.full(tasks, self.n_explore)
        if oracle.capacity is not None:
            counts = np.minimum(counts, oracle.capacity)
        stock = [oracle(task, int(counts[task])) for task in range(tasks)]
        scales = self._scales([labels for _, labels in stock])
        target_scale = float(self._scales([target[1]])[0])
        history = [Round(None, counts.copy(), counts.copy())]
        to_spend = float(self.budget) - float(price @ counts)
        for part in range(self.rounds):
            left = float(self.budget) - float(price @ counts)
            money = left - to_spend * (self.rounds - 1 - part) / self.rounds
            nu = self._estimate(stock, scales, (target[0], target[1] / target_scale))
            room = None if oracle.capacity is None else oracle.capacity - counts
            bought = allocate(
                np.ones(tasks) if nu is None else nu,
                budget=money if self.costs is not None else round(money),
                power=self.power,
                costs=self.costs,
                capacity=room,
            )
            for task in np.flatnonzero(bought):
                more = oracle(int(task), int(bought[task]))
                stock[task] = tuple(np.concatenate(pair) for pair in zip(stock[task], more))  # type: ignore[assignment]
            counts = counts + bought
            shown = None if nu is None else nu * target_scale / scales
            history.append(Round(shown, bought, counts.copy()))
        head = self._fit(stock, scales, (target[0], target[1] / target_scale))
        return ActiveHistory(tuple(history), self.learner, head, target_scale)

    def _scales(self, labels: list[np.ndarray]) -> np.ndarray:
        if not self.normalize:
            return np.ones(len(labels))
        deviations = np.array([np.std(each) for each in labels])
        return np.where(deviations > 0, deviations, 1.0)

    def _fit(self, stock: list[Any], scales: np.ndarray, target: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        self.learner.fit([x for x, _ in stock], [y / scale for (_, y), scale in zip(stock, scales)])
        return self.learner.fit_head(*target)

    def _estimate(
        self, stock: list[Any], scales: np.ndarray, target: tuple[np.ndarray, np.ndarray]
    ) -> np.ndarray | None:
        """nu for the labels as they are learned."""
        if self.strategy == "uniform":
            return None
        if self.strategy == "known":
            # nu mixes heads in the tasks' own units; the plan needs it in those of their noise.
            return np.asarray(self.relevance, dtype=np.float64) * scales
        head = self._fit(stock, scales, target)
        if self.strategy == "l2":
            return l2_relevance(self.learner.heads_, head)
        options = dict(self.relevance_kw)
        if "lam" not in options and "max_tasks" not in options:
            options |= {"lam": "auto"}
        if options.get("lam") == "auto" and "noise" not in options:
            options["noise"] = self.learner.head_noise(*target, head)
        return lasso_relevance(self.learner.heads_, head, **options)
