"""Searchers: they propose networks of a space and learn from the scores; pure bookkeeping, nothing is trained here.

    searcher = MCTSSearcher(Bisection(space), in_shape, seed=0)
    candidate = searcher.ask()
    searcher.tell(candidate.id, score)

Several candidates may be out at once. The whole state is plain values (`state_dict`): a searcher that takes it up
again proposes what it would have proposed.
"""

import abc
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from etude.nas.deeparchitect.language import Context, InvalidModel, SearchModule, model_digest, replay

__all__ = ["Candidate", "MCTSSearcher", "RandomSearcher", "Searcher", "Told"]

_log = logging.getLogger(__name__)
_DRAWS = 1_000
"""So many draws in a row that fit no network, and the space counts as empty."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A network proposed.

    Attributes:
        id: number of the proposal, from 0.
        history: indices of the choices on the searcher's space.
        module: specified; `compile` gives the network.
    """

    id: int
    history: tuple[int, ...]
    module: SearchModule

    def compile(self) -> nn.Module:
        """The network with new weights from torch's generator."""
        return self.module.compile()

    @property
    def hyperparameters(self) -> Context:
        """What the space's `UserHyperparams` publish."""
        return self.module.hyperparameters

    def digest(self, seed: int = 0) -> int:
        """A seed for the training: the same for equal networks, however they were found (`model_digest`)."""
        return model_digest(self.module, seed)


class Told(NamedTuple):
    """What is known of an evaluated network; `score` is None if it could not be evaluated."""

    id: int
    history: tuple[int, ...]
    score: float | None


class Searcher(abc.ABC):
    """What searchers have in common: the space, the random draws, the candidates that are out, the scores.

    Args:
        space: the family of networks; it is not changed.
        in_shape: of the input without the batch, (C, H, W) or (D,).
        seed: of all draws.

    Attributes:
        results: what was told, in the order of the telling.

    Raises:
        ValueError: if no network of the space takes the shape.
    """

    def __init__(self, space: SearchModule, in_shape: Sequence[int], *, seed: int = 0):
        if not isinstance(space, SearchModule):
            raise TypeError(f"space must be a search module, got {type(space).__name__}")
        self.space, self.in_shape = space.fresh(), tuple(in_shape)
        self._root()
        self.rng = np.random.default_rng(seed)
        self.results: list[Told] = []
        self._pending: dict[int, tuple[int, ...]] = {}
        self._asked = 0

    def ask(self) -> Candidate:
        """Proposes a network.

        Raises:
            ValueError: if a thousand draws in a row fit no network: the space is empty, or nearly so.
        """
        for _ in range(_DRAWS):
            try:
                history, module = self._propose()
            except InvalidModel as error:
                _log.debug("a draw fits no network: %s", error)
                reason = error
                continue
            candidate = Candidate(self._asked, tuple(history), module)
            self._pending[candidate.id] = candidate.history
            self._asked += 1
            return candidate
        raise ValueError(f"{_DRAWS} draws in a row fit no network, the space may be empty; the last: {reason}")

    def tell(self, id: int, score: float | int | None) -> None:
        """Tells the score of a candidate, higher is better; None if it could not be evaluated.

        Raises:
            KeyError: if no candidate of that number is out.
            ValueError: if the score is not finite.
        """
        if id not in self._pending:
            raise KeyError(f"no candidate {id} is out; out are {sorted(self._pending)}")
        if score is not None and not math.isfinite(score):
            raise ValueError(
                f"the score of candidate {id} must be finite, got {score}; tell None if the network failed. "
                f"It is {replay(self.space, self.in_shape, self._pending[id]).repr_model()}"
            )
        history = self._pending.pop(id)
        told = Told(id, history, None if score is None else float(score))
        self.results.append(told)
        self._learn(told)

    @property
    def pending(self) -> list[Candidate]:
        """Candidates that are out: proposed and not told."""
        return [Candidate(id, history, self.replay(history)) for id, history in self._pending.items()]

    def replay(self, history: Sequence[int]) -> SearchModule:
        """The specified module of a history on this searcher's space."""
        return replay(self.space, self.in_shape, history)

    def state_dict(self) -> dict[str, Any]:
        """The whole state in plain values that JSON holds."""
        return {
            "searcher": type(self).__name__,
            "settings": self._settings(),
            "space": self._identity(),
            "rng": self.rng.bit_generator.state,
            "asked": self._asked,
            "pending": [[id, list(history)] for id, history in self._pending.items()],
            "results": [[told.id, list(told.history), told.score] for told in self.results],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up a state.

        Raises:
            ValueError: if it is that of another kind of searcher, other settings, another space or another shape.
        """
        own = {"searcher": type(self).__name__, "settings": self._settings(), "space": self._identity()}
        for name, value in own.items():
            if state.get(name) != value:
                raise ValueError(f"the state's {name} is {state.get(name)!r:.300}, this searcher's is {value!r:.300}")
        self.rng.bit_generator.state = state["rng"]
        self._asked = state["asked"]
        self._pending = {id: tuple(history) for id, history in state["pending"]}
        self.results = [Told(id, tuple(history), score) for id, history, score in state["results"]]

    @abc.abstractmethod
    def _propose(self) -> tuple[list[int], SearchModule]:
        """A history and its specified module."""

    def _learn(self, told: Told) -> None:  # noqa: B027 (random search learns nothing)
        """Called with every result."""

    def _settings(self) -> dict[str, Any]:
        return {}

    def _identity(self) -> str:
        return repr((self.space.repr_program(), self.in_shape))

    def _root(self) -> SearchModule:
        return self.space.fresh().initialize(self.in_shape)

    def _draw(self, module: SearchModule, history: list[int], by_values: bool = False) -> None:
        """Takes all decisions that are left, each uniformly; `by_values` weighs the sides of a bisection by size."""
        while not module.is_specified():
            halves = module._halves() if by_values else None
            if halves is not None:
                index = int(self.rng.integers(sum(halves)) >= halves[0])
            else:
                index = int(self.rng.integers(len(module.get_choices()[1])))
            module.choose(index)
            history.append(index)


class RandomSearcher(Searcher):
    """Uniform over the values of every decision, which is not uniform over networks."""

    def _propose(self) -> tuple[list[int], SearchModule]:
        module, history = self._root(), list[int]()
        self._draw(module, history)
        return history, module


class _Node:
    """Visits and the sum of their scores; candidates that are out; failures; children once expanded."""

    __slots__ = ("children", "failures", "out", "total", "visits")

    def __init__(self) -> None:
        self.visits, self.out, self.failures, self.total = 0, 0, 0, 0.0
        self.children: list[_Node] | None = None

    def to_list(self) -> list[Any]:
        children = None if self.children is None else [child.to_list() for child in self.children]
        return [self.visits, self.out, self.failures, self.total, children]

    @classmethod
    def from_list(cls, values: list[Any]) -> "_Node":
        node = cls()
        node.visits, node.out, node.failures, node.total, children = values
        node.children = None if children is None else [cls.from_list(child) for child in children]
        return node


class MCTSSearcher(Searcher):
    """Monte Carlo tree search over the tree of decisions, with upper confidence bounds.

    From the root down to a node without children the child with the highest

        mean score + c sqrt(2 ln n_parent / n_child)

    is taken, unvisited ones first, ties at random; there the children are made, and the remaining decisions are drawn
    uniformly. A score counts for the nodes of the walk, not for the decisions drawn. A candidate that is out counts
    as a visit without a score (virtual loss). `MCTSSearcher(Bisection(space), ...)` is MCTS with bisection.

    Args:
        space, in_shape, seed: as for `Searcher`.
        c: weight of exploration, at least 0; 0.5 as in the authors' experiments, for scores in [0, 1].
        rollout: "binary" draws each decision of a `Bisection` evenly between its two sides, as the authors do, which
            is not even over three values; "uniform" weighs the sides by their values.
        max_failures: a network that could not be evaluated (score None), or does not fit, is not told to the tree;
            from the failure of this number at one node on, the node is told the worst score so far (0 if there is
            none), so that a subtree in which all fails is not tried for ever.
    """

    def __init__(
        self,
        space: SearchModule,
        in_shape: Sequence[int],
        *,
        seed: int = 0,
        c: float | int = 0.5,
        rollout: str = "binary",
        max_failures: int = 3,
    ):
        super().__init__(space, in_shape, seed=seed)
        if not c >= 0 or not math.isfinite(c):
            raise ValueError(f"c must be a finite number of at least 0, got {c}")
        if rollout not in ("binary", "uniform"):
            raise ValueError(f"rollout must be 'binary' or 'uniform', got {rollout!r}")
        if max_failures < 1:
            raise ValueError(f"max_failures must be at least 1, got {max_failures}")
        self.c, self.rollout, self.max_failures = c, rollout, max_failures
        self._tree = _Node()
        self._depths: dict[int, int] = {}
        self._warned = False

    def statistics(self, history: Sequence[int] = ()) -> tuple[int, float | None, int]:
        """Visits, mean score (None without visits) and number of children of the node that `history` leads to.

        Raises:
            KeyError: if the tree has no such node.
        """
        node = self._tree
        for index in history:
            if node.children is None or not 0 <= index < len(node.children):
                raise KeyError(f"the tree has no node at {tuple(history)}")
            node = node.children[index]
        return node.visits, node.total / node.visits if node.visits else None, len(node.children or ())

    def _propose(self) -> tuple[list[int], SearchModule]:
        module, history, path = self._root(), list[int](), [self._tree]
        try:
            while path[-1].children is not None:
                index = self._select(path[-1])
                history.append(index)
                path.append(path[-1].children[index])
                module.choose(index)
            if not module.is_specified():
                path[-1].children = [_Node() for _ in module.get_choices()[1]]
            self._draw(module, history, by_values=self.rollout == "uniform")
        except InvalidModel:
            self._fail(path)
            raise
        for node in path:
            node.out += 1
        self._depths[self._asked] = len(path) - 1
        return history, module

    def _select(self, node: _Node) -> int:
        assert node.children is not None
        best, ties = -math.inf, []
        log_parent = 2 * math.log(max(node.visits + node.out, 1))
        for index, child in enumerate(node.children):
            n = child.visits + child.out
            bound = math.inf if n == 0 else child.total / n + self.c * math.sqrt(log_parent / n)
            if bound > best:
                best, ties = bound, [index]
            elif bound == best:
                ties.append(index)
        return ties[0] if len(ties) == 1 else ties[int(self.rng.integers(len(ties)))]

    def _learn(self, told: Told) -> None:
        path = [self._tree]
        for index in told.history[: self._depths.pop(told.id)]:
            assert path[-1].children is not None
            path.append(path[-1].children[index])
        for node in path:
            node.out -= 1
        if told.score is None:
            self._fail(path)
            return
        if not self._warned and not 0 <= told.score <= 1:
            self._warned = True
            _log.warning(
                "the score %g lies outside of [0, 1], for which the exploration c = %g is meant", told.score, self.c
            )
        self._credit(path, told.score)

    def _fail(self, path: list[_Node]) -> None:
        path[-1].failures += 1
        if path[-1].failures >= self.max_failures:
            worst = min((told.score for told in self.results if told.score is not None), default=0.0)
            _log.warning("%d failures at a node of depth %d: it is told %g", path[-1].failures, len(path) - 1, worst)
            self._credit(path, worst)

    @staticmethod
    def _credit(path: list[_Node], score: float) -> None:
        for node in path:
            node.visits += 1
            node.total += score

    def _settings(self) -> dict[str, Any]:
        return {"c": self.c, "rollout": self.rollout, "max_failures": self.max_failures}

    def state_dict(self) -> dict[str, Any]:
        depths = [[id, depth] for id, depth in self._depths.items()]
        return {**super().state_dict(), "tree": self._tree.to_list(), "depths": depths}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._tree = _Node.from_list(state["tree"])
        self._depths = dict(state["depths"])
