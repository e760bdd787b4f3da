"""Searching a network for one's own table or images, behind one estimator."""

import os
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from torch import Tensor

from etude.data.kinds import ImageData, TableData
from etude.loop import outputs_of
from etude.nas.deeparchitect.composite import Bisection
from etude.nas.deeparchitect.language import SearchModule
from etude.nas.deeparchitect.running import search
from etude.nas.deeparchitect.searchers import Candidate, MCTSSearcher, RandomSearcher, Searcher
from etude.nas.deeparchitect.spaces import mlp
from etude.nas.deeparchitect.surrogate import SMBOSearcher
from etude.nas.deeparchitect.training import Training, input_shape, quality

__all__ = ["ArchitectureSearch", "make_searcher"]

SEARCHERS = ("random", "mcts", "mcts_bisect", "smbo", "smbo_names")


def make_searcher(name: str, space: SearchModule, in_shape: tuple[int, ...], seed: int = 0) -> Searcher:
    """A searcher by name: "random", "mcts", "mcts_bisect" (c = 0.5), "smbo" or "smbo_names".

    "smbo" sees values and suits small searches: pool of 256, ridge 1, three random networks first. "smbo_names" is the
    authors': a pool of 50, ridge 1,000, stretches of names that occur three times.
    """
    if name == "random":
        return RandomSearcher(space, in_shape, seed=seed)
    if name == "mcts":
        return MCTSSearcher(space, in_shape, seed=seed)
    if name == "mcts_bisect":
        return MCTSSearcher(Bisection(space), in_shape, seed=seed)
    if name == "smbo":
        return SMBOSearcher(
            space, in_shape, seed=seed, pool=256, ridge=1.0, min_count=1, features="names+values", startup=3
        )
    if name == "smbo_names":
        return SMBOSearcher(space, in_shape, seed=seed, startup=3)
    raise ValueError(f"searcher must be one of {', '.join(SEARCHERS)}, got {name!r}")


class ArchitectureSearch(BaseEstimator):
    """Finds a network for a table or for images, and trains it.

        data = tables.csv("mine.csv", target="price").standardized()
        found = ArchitectureSearch(budget=40).fit(data)
        print(found.best_module_, found.best_score_, found.score(data.test))

    Networks are compared on the validation split; the best one is then trained from new weights, `final_epochs` long,
    and the test split is never looked at.

    Args:
        space: a `SearchModule`, or a function (num_outputs) -> `SearchModule`; if None `mlp`, behind a flattening
            where inputs are images.
        searcher: name, as for `make_searcher`.
        budget: networks that are trained.
        epochs, batch_size, max_seconds, device: of each, as for `Training`.
        final_epochs: of the best one; as many as `epochs` if None.
        save: file that the search is kept in and resumed from.
        workers, executor, on_error: as for `search`.
        random_state: seed of everything.

    Attributes:
        result_: the `SearchResult`.
        best_module_: the best network's module, to print. best_score_: its validation score in the search.
        network_: the trained network.
    """

    def __init__(
        self,
        space: SearchModule | Callable[[int], SearchModule] | None = None,
        searcher: str = "mcts_bisect",
        budget: int = 40,
        *,
        epochs: int = 10,
        batch_size: int = 64,
        final_epochs: int | None = None,
        max_seconds: float | int | None = None,
        device: str = "cpu",
        save: str | os.PathLike | None = None,
        workers: int = 1,
        executor: Executor | None = None,
        on_error: str = "raise",
        random_state: int = 0,
    ):
        self.space, self.searcher, self.budget = space, searcher, budget
        self.epochs, self.batch_size, self.final_epochs = epochs, batch_size, final_epochs
        self.max_seconds, self.device, self.save = max_seconds, device, save
        self.workers, self.executor, self.on_error = workers, executor, on_error
        self.random_state = random_state

    def fit(
        self, data: ImageData | TableData, on_result: Callable[[Candidate, float | None], Any] | None = None
    ) -> "ArchitectureSearch":
        """Searches on the training and validation split.

        Raises:
            TypeError: if `data` is neither a `TableData` nor an `ImageData`.
            RuntimeError: if every network failed.
        """
        if not isinstance(data, ImageData | TableData):
            raise TypeError(f"data must be a TableData or an ImageData, got {type(data).__name__}")
        outputs = data.num_classes or 1
        space = self.space
        if space is None or not isinstance(space, SearchModule):
            space = (mlp if space is None else space)(outputs)
        training = Training(
            data, epochs=self.epochs, batch_size=self.batch_size, max_seconds=self.max_seconds, seed=self.random_state,
            device=self.device,
        )  # fmt: skip
        searcher = make_searcher(self.searcher, space, input_shape(data), self.random_state)
        self.result_ = search(
            searcher, training, self.budget, on_result=on_result, save=self.save, workers=self.workers,
            executor=self.executor, on_error=self.on_error,
        )  # fmt: skip
        best = self.result_.best
        if best is None:
            raise RuntimeError(f"none of {self.budget} networks could be evaluated; the log says why")
        index = self.result_.histories.index(best.history)
        self.best_module_, self.best_score_ = best.module, self.result_.scores[index]
        final = Training(
            data, epochs=self.final_epochs or self.epochs, batch_size=self.batch_size, seed=self.random_state,
            device=self.device,
        )  # fmt: skip
        self.network_ = final.train(best).network
        self._classes = training.classes
        return self

    def predict(self, inputs: Tensor) -> np.ndarray:
        """Class indices (n,), or values (n,), for inputs (n, ...) as in the data's splits."""
        outputs = self._outputs(inputs)
        return (outputs.argmax(dim=1) if self._classes else outputs.squeeze(1)).numpy()

    def predict_proba(self, inputs: Tensor) -> np.ndarray:
        """Probabilities of the classes, (n, classes).

        Raises:
            ValueError: if the target is a value.
        """
        outputs = self._outputs(inputs)
        if not self._classes:
            raise ValueError("the target is a value, which has no probabilities of classes")
        return outputs.softmax(dim=1).numpy()

    def score(self, examples: Any) -> float:
        """Accuracy on examples; of values the share of their variance that is explained, at least 0."""
        self._check_fitted()
        return quality(self.network_, examples, self._classes)

    def _outputs(self, inputs: Tensor) -> Tensor:
        self._check_fitted()
        pairs = torch.utils.data.TensorDataset(inputs, torch.zeros(len(inputs)))
        return outputs_of(self.network_, pairs)[0].cpu()

    def _check_fitted(self) -> None:
        if not hasattr(self, "network_"):
            raise NotFittedError("this ArchitectureSearch is not fitted yet: call fit")
