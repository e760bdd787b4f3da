"""Predicting how well a network will do: base, adapters and fine-tuning behind one estimator."""

import copy
import os
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from torch import nn

from etude.loop import checkpoint
from etude.nas.aiop.adapters import AdaptedPredictor
from etude.nas.aiop.graph import ComputeGraph, GraphBatch
from etude.nas.aiop.predictor import GraphPredictor
from etude.nas.aiop.scaling import TargetScaler, check_labels
from etude.nas.aiop.tracing import graph_from_module
from etude.nas.aiop.training import finetune, fit_graphs, predict_graphs, rank_correlation, train_adapter

__all__ = ["ArchitecturePredictor", "Prediction"]

Networks = Sequence[ComputeGraph] | ComputeGraph | nn.Module | Sequence[nn.Module]


class Prediction(NamedTuple):
    """Predictions and how sure they are, (n,) each, in the label's unit."""

    mean: np.ndarray
    std: np.ndarray


class ArchitecturePredictor(BaseEstimator):
    """Predicts what networks will reach on a task of which only some twenty labels are known.

        predictor = ArchitecturePredictor(epochs=12, lr=1e-3)
        predictor.fit(graphs, accuracies)                       # cheap labels of one task: the base
        predictor.add_task(other_graphs, other_labels)          # an adapter for each further task
        predictor.finetune(twenty_graphs, twenty_labels)        # the target
        predictor.predict(my_network, example_input=images, return_std=True)

    After `fit` it predicts the base's task. After `add_task` it predicts, zero-shot, the mean of what the adapters say,
    on the common scale of mean 0 and standard deviation 1: good for ranking. After `finetune` it predicts the target
    in its own unit. Higher labels should be better in every task, so that tasks agree on the sign.

    Args:
        dim, layers, pool: of `GraphPredictor`.
        scaling: "standard", or "standard_flops", which needs `flops` of every graph.
        epochs, lr: of the base and of each adapter. The authors take 40 to 100 and 1e-4 with tens of thousands of
            graphs; for some hundred, 12 and 1e-3 are a good start.
        batch_size, clip: of all trainings but the fine-tuning.
        holdout: share of labels that are kept from training to measure the error, from which comes the uncertainty.
        random_state: seed of weights and orders.

    Attributes:
        model_: the `AdaptedPredictor`.
        base_scaler_, target_scaler_: the labels' scales; the second is None before `finetune`.
        tasks_: names of the adapters.
        noise_: root mean square error on labels that were held out, on the scale of what is predicted now.
    """

    def __init__(
        self,
        dim: int = 32,
        layers: int = 6,
        pool: str = "mean",
        *,
        scaling: str = "standard",
        epochs: int = 40,
        lr: float = 1e-3,
        batch_size: int = 32,
        clip: float | int | None = 5.0,
        holdout: float = 0.1,
        random_state: int = 0,
    ):
        self.dim, self.layers, self.pool = dim, layers, pool
        self.scaling, self.epochs, self.lr = scaling, epochs, lr
        self.batch_size, self.clip, self.holdout, self.random_state = batch_size, clip, holdout, random_state

    def fit(self, graphs: Networks, y: ArrayLike) -> "ArchitecturePredictor":
        """Trains the base on the labels of the cheap task; adapters and a target of before are forgotten.

        Args:
            graphs: `ComputeGraph`s. y: (n,) their labels.

        Raises:
            ValueError: if labels are not finite, all alike, fewer than 4 or not as many as graphs.
        """
        listed, labels = _pair(graphs, y, 4)
        if not 0 <= self.holdout < 1:
            raise ValueError(f"holdout must lie in [0, 1), got {self.holdout}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.random_state)
            base = GraphPredictor(self.dim, self.layers, pool=self.pool)
        self.base_scaler_, noise = self._train(base, listed, labels, task=0)
        self.model_ = AdaptedPredictor(base)
        self.tasks_: list[str] = []
        self.target_scaler_: TargetScaler | None = None
        self.noise_ = self._base_noise_ = noise
        self._task_noise_: list[float] = []
        return self

    def add_task(self, graphs: Networks, y: ArrayLike, name: str | None = None) -> "ArchitecturePredictor":
        """Trains an adapter on another task; the base and the other adapters stay as they are.

        Raises:
            ValueError: as `fit`, if the name is taken, or after `finetune`, which changes what adapters build on.
        """
        self._check_fitted()
        if self.target_scaler_ is not None:
            raise ValueError("the predictor is fine-tuned to a target: add tasks before finetune, or fit anew")
        listed, labels = _pair(graphs, y, 4)
        number = len(self.tasks_) + 1
        name = f"task{number}" if name is None else name
        if name in self.tasks_:
            raise ValueError(f"there is an adapter {name!r} already")
        candidate = copy.deepcopy(self.model_)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.random_state + number)
            candidate.add_adapter()
        _, noise = self._train(candidate, listed, labels, task=number)
        self.model_ = candidate
        self.tasks_.append(name)
        self._task_noise_.append(noise)
        self.noise_ = float(np.sqrt(np.mean(np.square(self._task_noise_))))
        return self

    def finetune(
        self,
        graphs: Networks,
        y: ArrayLike,
        *,
        mode: int | Literal["rescale"] | None = 1,
        epochs: int = 15,
        lr: float = 5e-4,
        batch_size: int = 5,
        rescale: float = 0.0,
        folds: int = 5,
    ) -> "ArchitecturePredictor":
        """Adapts to a target of which some twenty labels are known.

        Args:
            graphs: networks of the target. y: their labels, two or more.
            mode: what is trained, as in `training.finetune`; None trains nothing and takes the target's mean and
                standard deviation alone.
            epochs, lr, batch_size: of the fine-tuning. The authors take 100, 1e-4 and 1.
            rescale: weight of the penalty with mode "rescale".
            folds: of a cross-validation on the labels, from which comes the uncertainty; 0 leaves it out, and `noise_`
                is then the error on the labels themselves, which is too small.

        Raises:
            ValueError: if labels are not finite, fewer than 2, all alike or not as many as graphs, or there is no task.
        """
        self._check_fitted()
        listed, labels = _pair(graphs, y, 2)
        if not self.tasks_:
            raise ValueError("there is no adapter to fine-tune: add_task first")
        batch, flops = GraphBatch.of(listed), _flops(listed, self.scaling)
        options: dict[str, Any] = {
            "mode": mode, "epochs": epochs, "lr": lr, "rescale": rescale, "batch_size": batch_size
        }  # fmt: skip
        scaler, model = self._tuned(batch, labels, flops, **options)
        z, fitted = scaler.transform(labels, flops), predict_graphs(model, batch)
        if folds > 1 and len(labels) >= 2 * folds:
            order = np.random.default_rng(self.random_state).permutation(len(labels))
            for held in np.array_split(order, folds):
                kept = np.setdiff1d(order, held)
                inner, part = self._tuned(batch[torch.from_numpy(kept)], labels[kept], _at(flops, kept), **options)
                told = predict_graphs(part, batch[torch.from_numpy(held)])
                fitted[held] = scaler.transform(inner.inverse_transform(told, _at(flops, held)), _at(flops, held))
        self.model_, self.target_scaler_ = model, scaler
        self.noise_ = float(np.sqrt(np.mean((z - fitted) ** 2)))
        return self

    def _tuned(
        self, batch: GraphBatch, labels: np.ndarray, flops: np.ndarray | None, *, mode: Any, **options: Any
    ) -> tuple[TargetScaler, AdaptedPredictor]:
        scaler = TargetScaler(self.scaling).fit(labels, flops)
        model = copy.deepcopy(self.model_)
        if mode is not None:
            finetune(
                model, batch, scaler.transform(labels, flops), mode=mode, clip=self.clip, generator=self._order(-1),
                **options,
            )  # fmt: skip
        return scaler, model

    def predict(
        self, graphs: Networks, *, example_input: Any = None, return_std: bool = False
    ) -> np.ndarray | Prediction:
        """What networks will reach.

        Args:
            graphs: graphs, or networks, one or several.
            example_input: what the networks take; needed for networks.
            return_std: also gives the uncertainty: the root of the adapters' disagreement (their variance) and the
                squared error on labels held out. It says nothing of networks unlike any that were seen.

        Raises:
            NotFittedError: before `fit`.
            ValueError: if there is no network, or networks come without `example_input`.
        """
        self._check_fitted()
        listed = _graphs(graphs, example_input)
        batch, flops = GraphBatch.of(listed), _flops(listed, self.scaling)
        if self.tasks_:
            each = predict_graphs(self.model_, batch, each=True)
            z, spread, scaler = each.mean(axis=0), each.std(axis=0), self.target_scaler_ or TargetScaler("none")
        else:
            z = predict_graphs(self.model_.base, batch)
            spread, scaler = np.zeros_like(z), self.base_scaler_
        mean = scaler.inverse_transform(z, flops)
        if not return_std:
            return mean
        return Prediction(mean, np.hypot(spread, self.noise_) * scaler.scale(len(z), flops))

    def score(self, graphs: Networks, y: ArrayLike) -> float:
        """Spearman's correlation of predictions and labels."""
        listed, labels = _pair(graphs, y, 2)
        return rank_correlation(labels, self._mean(listed))

    def mae(self, graphs: Networks, y: ArrayLike) -> float:
        """Mean absolute error in the label's unit."""
        listed, labels = _pair(graphs, y, 1)
        return float(np.abs(self._mean(listed) - labels).mean())

    def _mean(self, graphs: list[ComputeGraph]) -> np.ndarray:
        predicted = self.predict(graphs)
        return predicted.mean if isinstance(predicted, Prediction) else predicted

    def save(self, path: str | os.PathLike) -> None:
        """Writes weights, scales and settings to one file of tensors and plain values."""
        self._check_fitted()
        scalers = {
            name: None if scaler is None else {"kind": scaler.kind, "mean": scaler.mean, "std": scaler.std}
            for name, scaler in (("base", self.base_scaler_), ("target", self.target_scaler_))
        }
        rescaled = any(name.endswith("alpha") for name in self.model_.state_dict())
        checkpoint.save(
            path,
            {
                "settings": self.get_params(), "weights": self.model_.state_dict(), "tasks": list(self.tasks_),
                "scalers": scalers, "rescaled": rescaled,
                "noise": [self.noise_, self._base_noise_, list(self._task_noise_)],
            },
        )  # fmt: skip

    @classmethod
    def load(cls, path: str | os.PathLike) -> "ArchitecturePredictor":
        """Reads what `save` wrote; nothing in the file is executed.

        Raises:
            ValueError: if the file is no such predictor's, or its weights are those of another architecture.
        """
        content = checkpoint.load(path)
        lacking = sorted({"settings", "weights", "tasks", "scalers", "rescaled", "noise"} - set(content))
        if lacking:
            raise ValueError(f"{path} is no ArchitecturePredictor's: it lacks {', '.join(lacking)}")
        predictor = cls(**content["settings"])
        base = GraphPredictor(predictor.dim, predictor.layers, pool=predictor.pool)
        model = AdaptedPredictor(base, len(content["tasks"]))
        if content["rescaled"]:
            model.rescale_parameters()
        model.load_state_dict(content["weights"])
        predictor.model_, predictor.tasks_ = model.requires_grad_(False), list(content["tasks"])
        scalers: dict[str, Any] = {}
        for name, values in content["scalers"].items():
            scalers[name] = None if values is None else TargetScaler(values["kind"])
            if values is not None:
                scalers[name].mean, scalers[name].std = values["mean"], values["std"]
        predictor.base_scaler_, predictor.target_scaler_ = scalers["base"], scalers["target"]
        predictor.noise_, predictor._base_noise_, predictor._task_noise_ = content["noise"]
        return predictor

    def _train(
        self, model: nn.Module, graphs: list[ComputeGraph], labels: np.ndarray, task: int
    ) -> tuple[TargetScaler, float]:
        """Trains the base (task 0) or the last adapter; the scale of its labels and the error on those held out."""
        batch, flops = GraphBatch.of(graphs), _flops(graphs, self.scaling)
        held = round(self.holdout * len(labels))
        order = np.random.default_rng([self.random_state, task]).permutation(len(labels))
        test, train = order[:held], order[held:]
        scaler = TargetScaler(self.scaling).fit(labels[train], _at(flops, train))
        options: dict[str, Any] = {
            "epochs": self.epochs, "lr": self.lr, "batch_size": self.batch_size, "clip": self.clip,
            "generator": self._order(task),
        }  # fmt: skip
        z, part = scaler.transform(labels, flops), batch[torch.from_numpy(train)]
        if isinstance(model, AdaptedPredictor):
            train_adapter(model, part, z[train], **options)
            model.active = len(model.adapters) - 1
        else:
            fit_graphs(model, part, z[train], **options)
        measured = test if held else train
        error = predict_graphs(model, batch[torch.from_numpy(measured)]) - z[measured]
        if isinstance(model, AdaptedPredictor):
            model.active = None
        return scaler, float(np.sqrt(np.mean(error**2)))

    def _order(self, task: int) -> torch.Generator:
        return torch.Generator().manual_seed(1_000_003 * (self.random_state + 1) + task)

    def _check_fitted(self) -> None:
        if not hasattr(self, "model_"):
            raise NotFittedError("this ArchitecturePredictor is not fitted yet: call fit")


def _graphs(networks: Networks, example_input: Any = None) -> list[ComputeGraph]:
    listed: list[Any] = [networks] if isinstance(networks, ComputeGraph | nn.Module) else list(networks)
    if any(isinstance(network, nn.Module) for network in listed) and example_input is None:
        raise ValueError("to read a torch.nn.Module an example of what it takes is needed: give example_input=")
    return [
        graph_from_module(network, example_input) if isinstance(network, nn.Module) else network for network in listed
    ]


def _pair(graphs: Networks, y: ArrayLike, at_least: int) -> tuple[list[ComputeGraph], np.ndarray]:
    listed, labels = _graphs(graphs), check_labels(y, at_least)
    if len(listed) != len(labels):
        raise ValueError(f"there are {len(listed)} graphs and {len(labels)} labels")
    return listed, labels


def _flops(graphs: list[ComputeGraph], scaling: str) -> np.ndarray | None:
    if scaling != "standard_flops":
        return None
    missing = [graph.name for graph in graphs if graph.flops is None]
    if missing:
        raise ValueError(f"scaling 'standard_flops' needs the FLOPs of every graph: {missing[0]} has none")
    return np.array([graph.flops for graph in graphs], dtype=np.float64)


def _at(flops: np.ndarray | None, rows: np.ndarray) -> np.ndarray | None:
    return None if flops is None else flops[rows]
