"""Evaluating a candidate by training it: the paper's procedure."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from etude.data.kinds import ImageData, TableData
from etude.loop import accuracy, fit, outputs_of, seeded
from etude.nas.deeparchitect.searchers import Candidate

__all__ = ["Trained", "Training", "input_shape", "quality"]

OPTIMIZERS = ("adam", "sgd", "sgd_mom")


def input_shape(data: ImageData | TableData) -> tuple[int, ...]:
    """Shape of one input: (C, H, W) of images, (features,) of a table."""
    return (data.num_features,) if isinstance(data, TableData) else (data.channels, *data.size)


def quality(network: nn.Module, examples: Any, classes: bool = True) -> float:
    """Accuracy; of values the share of their variance that is explained, at least 0. In [0, 1] both."""
    if classes:
        return accuracy(network, examples)
    predicted, targets = outputs_of(network, examples)
    error = (predicted.squeeze(1).double() - targets.double()).square().mean()
    explained = (1 - error / targets.double().var(correction=0)).item()
    return max(explained, 0.0) if explained == explained else 0.0


@dataclass(frozen=True)
class Trained:
    """A trained network, its score on the validation split, and the score after each epoch."""

    network: nn.Module
    score: float
    curve: list[float]


@dataclass(frozen=True)
class Training:
    """Trains a candidate and gives its validation score: what `search` calls an evaluation.

        search(searcher, Training(images.digits(), epochs=3), 40)

    Of the candidate's hyperparameters it reads `optimizer` ("adam"; "sgd" with momentum 0.9, "sgd_mom" with 0.99),
    `lr`, `momentum`, `rate_mult` and `rate_patience` (the rate is multiplied after so many epochs without a new best
    validation score), and `stop_patience`. Equal networks with equal hyperparameters score equally, however they were
    found: weights, order and dropout depend on the `digest`.

    Args:
        data: with a validation split; classes, or values, on which the score is the variance explained.
        epochs: at most.
        batch_size: of the updates; the paper's 64.
        keep: "best" gives the network and score of the best epoch, "last" those of the last.
        max_seconds: no epoch begins later; the paper's 30 minutes are 1800.
        seed: of the run.
        device: where to train.
        transform: augmentation of batches, as for `fit`.
        defaults: hyperparameters that the space does not decide.

    Raises:
        ValueError: for arguments out of range or an unknown optimizer.
    """

    data: ImageData | TableData
    epochs: int = 20
    batch_size: int = 64
    keep: str = "best"
    max_seconds: float | int | None = None
    seed: int = 0
    device: str = "cpu"
    transform: Callable[[tuple[Any, Any]], tuple[Any, Any]] | None = None
    defaults: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(f"epochs and batch_size must be positive, got {self.epochs} and {self.batch_size}")
        if self.keep not in ("best", "last"):
            raise ValueError(f"keep must be 'best' or 'last', got {self.keep!r}")

    @property
    def classes(self) -> bool:
        return isinstance(self.data, ImageData) or bool(self.data.classes)

    def __call__(self, candidate: Candidate) -> float:
        return self.train(candidate).score

    def train(self, candidate: Candidate) -> Trained:
        """Trains the candidate from new weights."""
        started = time.monotonic()
        options = {"optimizer": "adam", "lr": 1e-3, **self.defaults, **candidate.hyperparameters}
        seed = candidate.digest(self.seed)
        order = torch.Generator().manual_seed(seed)
        curve: list[float] = []
        best: dict[str, Tensor] = {}
        with seeded(seed):
            network = candidate.compile().to(self.device)
            optimizer = _optimizer(network, options)
            plateau = None
            if "rate_mult" in options:
                # torch counts bad epochs beyond the patience, the paper those up to it.
                plateau = ReduceLROnPlateau(
                    optimizer,
                    mode="max",
                    factor=options["rate_mult"],
                    patience=options["rate_patience"] - 1,
                    threshold=0,
                )
            for _ in range(self.epochs):
                fit(
                    network, self.data.train, optimizer, loss=F.cross_entropy if self.classes else _squared_error,
                    epochs=1, batch_size=self.batch_size, generator=order, transform=self.transform,
                )  # fmt: skip
                curve.append(quality(network, self.data.val, self.classes))
                if curve[-1] == max(curve) and self.keep == "best" and curve.index(curve[-1]) == len(curve) - 1:
                    best = copy.deepcopy(network.state_dict())
                if plateau is not None:
                    plateau.step(curve[-1])
                waited = len(curve) - 1 - curve.index(max(curve))
                if waited >= options.get("stop_patience", self.epochs):
                    break
                if self.max_seconds is not None and time.monotonic() - started > self.max_seconds:
                    break
        if self.keep == "last":
            return Trained(network, curve[-1], curve)
        network.load_state_dict(best)
        return Trained(network, max(curve), curve)


def _squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(outputs.squeeze(1), targets)


def _optimizer(network: nn.Module, options: dict[str, Any]) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError("the network has no weights to train")
    name = options["optimizer"]
    if name == "adam":
        return torch.optim.Adam(parameters, lr=options["lr"])
    if name in OPTIMIZERS:
        momentum = options.get("momentum", 0.99 if name == "sgd_mom" else 0.9)
        return torch.optim.SGD(parameters, lr=options["lr"], momentum=momentum)
    raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {name!r}")
