"""Search by a model of the score: ridge regression on what networks are made of."""

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from etude.nas.deeparchitect.language import InvalidModel, SearchModule, flatten
from etude.nas.deeparchitect.searchers import Searcher, Told

__all__ = ["SMBOSearcher", "Surrogate", "grams"]

FEATURES = ("names", "names+values")


def grams(module: SearchModule, features: str, ngram: int, without_empty: bool = False) -> Counter[Hashable]:
    """What a network is made of.

    Args:
        module: specified.
        features: "names": stretches of 1 .. ngram - 1 names of layers, less the last stretch of each length, as the
            authors' code counts them; values are not seen. "names+values" adds each `layer.name=value` and each two
            that follow each other.
        ngram: one more than the longest stretch.
        without_empty: drop `Empty` layers first.
    """
    entries = list(flatten(module.repr_model()))
    names = [entry[0] for entry in entries if not (without_empty and entry[0] == "Empty")]
    found: Counter[Hashable] = Counter()
    for length in range(1, ngram):
        found.update(("names", *names[start : start + length]) for start in range(len(names) - length))
    if features == "names+values":
        tokens = [f"{entry[0]}.{name}={value!r}" for entry in entries for name, value in entry[1:]]
        found.update(("value", token) for token in tokens)
        found.update(("values", *pair) for pair in pairwise(tokens))
    return found


class Surrogate:
    """Ridge regression of scores on counts and the number of layers, with an intercept that is not penalised.

    Before `fit` it predicts 0.

    Args:
        features, ngram: as for `grams`.
        min_count: a stretch is a feature if the networks fitted hold it so often.
        ridge: the penalty, > 0.
    """

    def __init__(self, features: str = "names", ngram: int = 5, min_count: int = 3, ridge: float | int = 1e3):
        self.features, self.ngram, self.min_count, self.ridge = features, ngram, min_count, ridge
        self.vocabulary: dict[Hashable, int] = {}
        self._regression: Any = None
        self._counted: WeakKeyDictionary[SearchModule, dict[bool, Counter[Hashable]]] = WeakKeyDictionary()

    def _grams(self, module: SearchModule, without_empty: bool = False) -> Counter[Hashable]:
        """`grams` of a network, counted once as long as it is around."""
        counted = self._counted.setdefault(module, {})
        if without_empty not in counted:
            counted[without_empty] = grams(module, self.features, self.ngram, without_empty)
        return counted[without_empty]

    def fit(self, modules: Sequence[SearchModule], scores: Sequence[float | int] | np.ndarray) -> "Surrogate":
        from sklearn.linear_model import Ridge

        counts: Counter[Hashable] = Counter()
        for module in modules:
            counts.update(self._grams(module, without_empty=True))
        kept = [gram for gram, number in counts.items() if number >= self.min_count]
        self.vocabulary = {gram: column for column, gram in enumerate(kept, start=1)}
        # The dense solver is exact; a search knows too few networks for a sparse one to pay.
        self._regression = Ridge(self.ridge, solver="cholesky").fit(self.matrix(modules), np.asarray(scores))
        return self

    def matrix(self, modules: Sequence[SearchModule]) -> np.ndarray:
        """(networks, 1 + vocabulary): the number of layers, then counts."""
        rows = np.zeros((len(modules), 1 + len(self.vocabulary)))
        for row, module in zip(rows, modules):
            row[0] = sum(1 for _ in flatten(module.repr_model()))
            for gram, number in self._grams(module).items():
                column = self.vocabulary.get(gram)
                if column is not None:
                    row[column] = number
        return rows

    def predict(self, modules: Sequence[SearchModule]) -> np.ndarray:
        """Predicted scores, (networks,)."""
        if self._regression is None:
            return np.zeros(len(modules))
        return self._regression.predict(self.matrix(modules))


class SMBOSearcher(Searcher):
    """Sequential model-based optimisation: of a pool of random networks the one that the surrogate predicts best.

    Args:
        space, in_shape, seed: as for `Searcher`.
        pool: random networks for each proposal.
        explore: with this probability a random network is proposed instead.
        ridge, ngram, min_count, features: of the `Surrogate`. The defaults are the authors', whose features do not
            see values; for small searches features="names+values", min_count=1, ridge=1 and pool=256 are better.
        startup: so many random networks at first.

    Raises:
        ImportError: if scikit-learn is not installed.
        ValueError: for arguments out of range.
    """

    def __init__(
        self,
        space: SearchModule,
        in_shape: Sequence[int],
        *,
        seed: int = 0,
        pool: int = 50,
        explore: float | int = 0.25,
        ridge: float | int = 1e3,
        ngram: int = 5,
        min_count: int = 3,
        features: str = "names",
        startup: int = 0,
    ):
        super().__init__(space, in_shape, seed=seed)
        for name, value, low in (
            ("pool", pool, 1), ("ngram", ngram, 2), ("min_count", min_count, 1), ("startup", startup, 0),
        ):  # fmt: skip
            if value < low:
                raise ValueError(f"{name} must be at least {low}, got {value}")
        if not 0 <= explore <= 1:
            raise ValueError(f"explore must be a probability, got {explore}")
        if not ridge > 0 or not math.isfinite(ridge):
            raise ValueError(f"ridge must be positive, got {ridge}")
        if features not in FEATURES:
            raise ValueError(f"features must be one of {', '.join(FEATURES)}, got {features!r}")
        try:
            import sklearn.linear_model  # noqa: F401
        except ImportError as error:
            raise ImportError("SMBOSearcher needs scikit-learn: pip install 'etude[run]'") from error
        self.pool, self.explore, self.startup = pool, explore, startup
        self.surrogate = Surrogate(features, ngram, min_count, ridge)
        self._known: list[tuple[SearchModule, float]] = []
        self._stale = False

    def _propose(self) -> tuple[list[int], SearchModule]:
        if self._asked < self.startup or self.rng.random() < self.explore:
            return self._one()
        if self._stale:
            self.surrogate.fit([module for module, _ in self._known], [score for _, score in self._known])
            self._stale = False
        drawn = [self._one()]
        for _ in range(self.pool - 1):
            with suppress(InvalidModel):
                drawn.append(self._one())
        return drawn[int(np.argmax(self.surrogate.predict([module for _, module in drawn])))]

    def _one(self) -> tuple[list[int], SearchModule]:
        module, history = self._root(), list[int]()
        self._draw(module, history)
        return history, module

    def _learn(self, told: Told) -> None:
        if told.score is not None:
            self._known.append((self.replay(told.history), told.score))
            self._stale = True

    def _settings(self) -> dict[str, Any]:
        shared = self.surrogate
        return {
            "pool": self.pool, "explore": self.explore, "startup": self.startup, "ridge": shared.ridge,
            "ngram": shared.ngram, "min_count": shared.min_count, "features": shared.features,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._known, self._stale = [], False
        for told in self.results:
            self._learn(told)
