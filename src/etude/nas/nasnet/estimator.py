"""For one's own images: NASNet-A as a classifier, and a search for cells of one's own."""

import os
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from etude.data.kinds import Examples, ImageData
from etude.loop import accuracy, outputs_of, seeded
from etude.nas.nasnet.evaluators import CachedEvaluator, Evaluator, RandomFeatureEvaluator
from etude.nas.nasnet.genotype import NASNET_A, Genotype, SearchSpace
from etude.nas.nasnet.network import NASNet
from etude.nas.nasnet.samplers import PPOSearch, RandomSearch
from etude.nas.nasnet.searching import reevaluate, search
from etude.nas.nasnet.training import train_network

try:
    from sklearn.base import BaseEstimator
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise ImportError('estimators need scikit-learn: pip install "etude[run]"') from error

__all__ = ["CellSearch", "NASNetClassifier"]


class NASNetClassifier(BaseEstimator):
    """Trains a network of cells, NASNet-A unless told otherwise, on images.

        data = images.image_folder("photos/", size=64)
        classifier = NASNetClassifier(epochs=30).fit(data)
        print(classifier.score(data.test), classifier.predict(data.test.inputs[:5]))

    Channels are standardised over the training images. The defaults are for small sets; of the paper's CIFAR recipe are
    `cells_per_stage=6, filters=32, epochs=600, optimizer="sgd", lr=0.025, weight_decay=5e-4, drop_path_keep=0.6,
    aux_head=True`.

    Args:
        genotype: the cells.
        cells_per_stage, filters, drop_path_keep, aux_head: as for `NASNet`.
        epochs, batch_size, optimizer, lr, weight_decay: as for `train_network`.
        transform: augmentation of standardised batches, as for `etude.loop.fit`.
        checkpoint: file that training is kept in and resumed from.
        random_state: seed of weights, order and dropped paths.
        device: where to train.

    Attributes:
        model_: the network; it takes standardised images. losses_: of every update. classes_: names of the classes.
    """

    def __init__(
        self,
        genotype: Genotype = NASNET_A,
        *,
        cells_per_stage: int = 1,
        filters: int = 8,
        drop_path_keep: float | int = 1.0,
        aux_head: bool = False,
        epochs: int = 20,
        batch_size: int = 50,
        optimizer: str = "adamw",
        lr: float | int = 2e-3,
        weight_decay: float | int = 0.01,
        transform: Callable[[tuple[Any, Any]], tuple[Any, Any]] | None = None,
        checkpoint: str | os.PathLike | None = None,
        random_state: int = 0,
        device: str = "cpu",
    ):
        self.genotype, self.cells_per_stage, self.filters = genotype, cells_per_stage, filters
        self.drop_path_keep, self.aux_head, self.epochs, self.batch_size = drop_path_keep, aux_head, epochs, batch_size
        self.optimizer, self.lr, self.weight_decay = optimizer, lr, weight_decay
        self.transform, self.checkpoint, self.random_state, self.device = transform, checkpoint, random_state, device

    def fit(self, data: ImageData) -> "NASNetClassifier":
        """Trains on the train split; the others are not looked at.

        Raises:
            TypeError: if `data` is no `ImageData` with its train split in memory.
        """
        train = _train_split(data)
        std, mean = torch.std_mean(train.inputs, dim=(0, 2, 3), keepdim=True, correction=0)
        self.mean_, self.std_ = mean, torch.where(std > 0, std, torch.ones_like(std))
        self.classes_ = np.array(data.classes)
        with seeded(self.random_state):
            self.model_ = NASNet(
                self.genotype, num_classes=data.num_classes, in_chans=data.channels, filters=self.filters,
                cells_per_stage=self.cells_per_stage, drop_path_keep=self.drop_path_keep, aux_head=self.aux_head,
                image_size=data.size if self.aux_head else None,
            ).to(self.device)  # fmt: skip
            self.losses_ = train_network(
                self.model_, self._standardised(train), epochs=self.epochs, batch_size=self.batch_size,
                optimizer=self.optimizer, lr=self.lr, weight_decay=self.weight_decay, device=self.device,
                generator=torch.Generator().manual_seed(self.random_state), transform=self.transform,
                checkpoint=self.checkpoint,
            )  # fmt: skip
        return self

    def predict_proba(self, inputs: Tensor) -> np.ndarray:
        """(n, classes) probabilities for images (n, channels, height, width) as in the data's splits."""
        check_is_fitted(self, "model_")
        examples = self._standardised(Examples(inputs, torch.zeros(len(inputs), dtype=torch.int64)))
        return outputs_of(self.model_, examples)[0].softmax(dim=1).cpu().numpy()

    def predict(self, inputs: Tensor) -> np.ndarray:
        """(n,) names of classes."""
        return self.classes_[self.predict_proba(inputs).argmax(axis=1)]

    def score(self, examples: Examples) -> float:
        """Accuracy."""
        check_is_fitted(self, "model_")
        return accuracy(self.model_, self._standardised(examples))

    def _standardised(self, examples: Examples) -> Examples:
        return Examples((examples.inputs - self.mean_) / self.std_, examples.targets)


class CellSearch(BaseEstimator):
    """Searches a pair of cells for one's own images, then trains a network of the best.

        data = images.image_folder("photos/", size=32)
        found = CellSearch(budget=200, save="search.pt", workers=2).fit(data)
        print(found.genotype_.to_json(), found.score(data.test))
        plot_genotype(found.genotype_).savefig("cells.png")

    Rewards come from the validation split; the `finalists` best are evaluated again with fresh seeds, the winner is
    trained, and the test split is never looked at.

    Args:
        budget: children.
        sampler: "ppo" or "random".
        evaluator: as for `search`; `RandomFeatureEvaluator`, which trains nothing, if None. `TrainEvaluator` is the
            paper's.
        space: of the cells; the paper's if None.
        batch, workers, executor, save, on_error: as for `search`.
        finalists: how many are evaluated again, with 3 seeds each.
        classifier: of the winner; `NASNetClassifier()` if None.
        random_state: seed of everything.

    Attributes:
        result_: the `SearchResult`. finalists_: (genotype, mean reward with fresh seeds), best first.
        genotype_: the winner. classifier_: trained on it.
    """

    def __init__(
        self,
        budget: int = 160,
        sampler: str = "ppo",
        *,
        evaluator: Evaluator | None = None,
        space: SearchSpace | None = None,
        batch: int = 10,
        workers: int = 1,
        executor: Executor | None = None,
        save: str | os.PathLike | None = None,
        on_error: str = "raise",
        finalists: int = 5,
        classifier: NASNetClassifier | None = None,
        random_state: int = 0,
    ):
        self.budget, self.sampler, self.evaluator, self.space = budget, sampler, evaluator, space
        self.batch, self.workers, self.executor, self.save, self.on_error = batch, workers, executor, save, on_error
        self.finalists, self.classifier, self.random_state = finalists, classifier, random_state

    def fit(self, data: ImageData, on_result: Callable[..., Any] | None = None) -> "CellSearch":
        """Searches on the train and validation split.

        Raises:
            TypeError: if `data` is no `ImageData` with its train split in memory.
            ValueError: for an unknown sampler.
            RuntimeError: if every child failed.
        """
        _train_split(data)
        evaluator = CachedEvaluator(RandomFeatureEvaluator(data) if self.evaluator is None else self.evaluator)
        if self.sampler == "ppo":
            sampler: PPOSearch | RandomSearch = PPOSearch(
                self.space, seed=self.random_state, lr=0.01, batch_size=self.batch, entropy_weight=1e-4,
                baseline_decay=0.9, scale_advantage=self.batch > 1, max_grad_norm=1.0,
            )  # fmt: skip
        elif self.sampler == "random":
            sampler = RandomSearch(self.space, seed=self.random_state)
        else:
            raise ValueError(f"sampler must be 'ppo' or 'random', got {self.sampler!r}")
        self.result_ = search(
            sampler, evaluator, self.budget, self.batch, seed=self.random_state, save=self.save, workers=self.workers,
            executor=self.executor, on_error=self.on_error, on_result=on_result,
        )  # fmt: skip
        best = [genotype for genotype, _ in self.result_.top(self.finalists)]
        if not best:
            raise RuntimeError(f"none of {self.budget} children could be evaluated; the log says why")
        fresh = reevaluate(best, evaluator, [self.random_state + n for n in (1, 2, 3)])
        self.finalists_ = sorted(zip(best, fresh), key=lambda item: -item[1])
        self.genotype_ = self.finalists_[0][0]
        chosen = NASNetClassifier(random_state=self.random_state) if self.classifier is None else self.classifier
        self.classifier_ = NASNetClassifier(**{**chosen.get_params(deep=False), "genotype": self.genotype_}).fit(data)
        return self

    def predict_proba(self, inputs: Tensor) -> np.ndarray:
        """(n, classes) probabilities."""
        check_is_fitted(self, "classifier_")
        return self.classifier_.predict_proba(inputs)

    def predict(self, inputs: Tensor) -> np.ndarray:
        """(n,) names of classes."""
        check_is_fitted(self, "classifier_")
        return self.classifier_.predict(inputs)

    def score(self, examples: Examples) -> float:
        """Accuracy."""
        check_is_fitted(self, "classifier_")
        return self.classifier_.score(examples)


def _train_split(data: ImageData) -> Examples:
    if not isinstance(data, ImageData) or not isinstance(data.train, Examples):
        raise TypeError(f"data must be an ImageData whose splits are in memory, got {type(data).__name__}")
    return data.train
