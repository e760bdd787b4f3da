"""The classifier: p(y | x) = softmax(W g(x) + b), with g from the grounding functions and W pulled to the prior."""

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from etude.data.kinds import Examples
from etude.science.knobo.concepts import Bottleneck
from etude.science.knobo.grounding import GroundingFunctions
from etude.science.knobo.prior import KnowledgePrior, prior_loss
from etude.science.knobo.training import Selected, held_out, labels_of, train_selected

__all__ = ["Explanation", "FeatureClassifier", "KnoBoClassifier", "Reason"]


@dataclass(frozen=True)
class Reason:
    """One concept's part of a logit: `contribution` = `weight` times `score`."""

    question: str
    score: float
    weight: float
    contribution: float
    document: str = ""
    sentence: str = ""


@dataclass(frozen=True)
class Explanation:
    """Why a class was predicted: `logit` = `bias` + the sum over `reasons` + `rest`.

    Args:
        label: the class explained. probability: of that class.
        logit, bias: of that class.
        reasons: concepts by size of their contribution.
        rest: what the concepts not listed add together.
    """

    label: Any
    probability: float
    logit: float
    bias: float
    reasons: tuple[Reason, ...]
    rest: float

    def __str__(self) -> str:
        lines = [f"{self.label} (p = {self.probability:.2f}): logit {self.logit:+.2f}, bias {self.bias:+.2f}"]
        lines += [f"  {r.contribution:+.2f}  {r.question}  (p = {r.score:.2f})" for r in self.reasons]
        return "\n".join([*lines, f"  {self.rest:+.2f}  the other concepts"])


class FeatureClassifier(ABC):
    """A layer on frozen features, trained with the best in-domain epoch kept; scikit-learn's contract.

    Attributes:
        classes_: the labels, sorted.
        selected_: validation accuracy, epoch and curve.
    """

    lr: float | int
    epochs: int
    batch_size: int
    seed: int
    classes_: np.ndarray

    @abstractmethod
    def _inputs(self, features: Any) -> Tensor:
        """What the layer sees of image features."""

    @abstractmethod
    def _layer(self, inputs: Tensor, num_classes: int) -> nn.Module: ...

    def _loss(self, layer: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
        return F.cross_entropy

    def fit(
        self,
        features: Any,
        y: Any,
        *,
        validation: tuple[Any, Any] | None = None,
        generator: torch.Generator | None = None,
        callback: Callable[..., Any] | None = None,
    ) -> "FeatureClassifier":
        """Trains the layer.

        Args:
            features: (n, dim), of the frozen backbone.
            y: (n,) labels: numbers or names.
            validation: features and labels of the training domain; a fifth of each class is held out if None.
            generator: of initial weights and order; one of the estimator's seed if None.
            callback: called as `callback(epoch, epochs, val_accuracy=...)`.
        """
        self.classes_, labels = labels_of(y)
        if len(features) != len(labels):
            raise ValueError(f"features and y must have equally many rows, got {len(features)} and {len(labels)}")
        inputs = self._inputs(features)
        if validation is None:
            rows, held = held_out(labels, 0.2, self.seed)
            train, val = Examples(inputs[rows], labels[rows]), Examples(inputs[held], labels[held])
        else:
            val = Examples(self._inputs(validation[0]), labels_of(validation[1], self.classes_)[1])
            train = Examples(inputs, labels)
        draws = torch.Generator().manual_seed(self.seed) if generator is None else generator
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=draws)))
            self.layer_ = self._layer(train.inputs, len(self.classes_))
        self.selected_: Selected = train_selected(
            self.layer_, train, val, epochs=self.epochs, batch_size=self.batch_size, lr=self.lr,
            loss=self._loss(self.layer_), generator=draws, callback=callback,
        )  # fmt: skip
        return self

    @torch.no_grad()
    def decision_function(self, features: Any) -> Float[Tensor, "n classes"]:
        """Logits, float64."""
        if not hasattr(self, "layer_"):
            raise RuntimeError(f"call fit before using this {type(self).__name__}")
        return copy.deepcopy(self.layer_).double()(self._inputs(features).double())

    def predict_proba(self, features: Any) -> np.ndarray:
        return self.decision_function(features).softmax(dim=1).numpy()

    def predict(self, features: Any) -> np.ndarray:
        places = self.decision_function(features).argmax(dim=1)
        return self.classes_[places.numpy()]

    def score(self, features: Any, y: Any) -> float:
        """Accuracy."""
        return float((self.predict(features) == np.asarray(y)).mean())

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **params: Any) -> "FeatureClassifier":
        unknown = sorted(set(params) - set(self.get_params()))
        if unknown:
            raise ValueError(f"unknown parameters {', '.join(unknown)}; there are {', '.join(self.get_params())}")
        for name, value in params.items():
            setattr(self, name, value)
        return self


class KnoBoClassifier(FeatureClassifier):
    """Concepts, then one linear layer; nothing else of the image reaches the prediction.

    Args:
        bottleneck: the concepts, for their provenance.
        grounding: fitted functions; each must belong to a concept of the bottleneck. They score all inputs.
        prior: what knowledge says of classes and concepts, matched by name; None for a plain concept bottleneck.
        prior_weight: lambda, >= 0.
        lr, epochs, batch_size: of Adam.
        seed: of initial weights and order.
        class_names: label -> its name in the prior, where they differ, as {1: "malignant"}.

    Raises:
        ValueError: if a grounding function has no concept, or `prior_weight` is negative.
    """

    def __init__(
        self,
        bottleneck: Bottleneck,
        grounding: GroundingFunctions,
        prior: KnowledgePrior | None = None,
        *,
        prior_weight: float | int = 1.0,
        lr: float | int = 1e-3,
        epochs: int = 200,
        batch_size: int = 64,
        seed: int = 0,
        class_names: dict[Any, str] | None = None,
    ):
        if prior_weight < 0:
            raise ValueError(f"prior_weight must not be negative, got {prior_weight}")
        if not hasattr(grounding, "questions_"):
            raise ValueError("the grounding functions are not fitted: call grounding.fit first")
        absent = [question for question in grounding.questions_ if question not in bottleneck.questions]
        if absent:
            raise ValueError(f"the bottleneck lacks {len(absent)} of the grounded concepts, first {absent[0]!r}")
        self.bottleneck, self.grounding, self.prior, self.prior_weight = bottleneck, grounding, prior, prior_weight
        self.lr, self.epochs, self.batch_size, self.seed, self.class_names = lr, epochs, batch_size, seed, class_names

    def _inputs(self, features: Any) -> Tensor:
        return self.grounding.transform(features)

    def _layer(self, inputs: Tensor, num_classes: int) -> nn.Module:
        return nn.Linear(inputs.shape[1], num_classes)

    def _loss(self, layer: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
        if self.prior is None or not self.prior_weight:
            return F.cross_entropy
        names = self.class_names or {}
        classes = [names.get(label, str(label)) for label in self.classes_.tolist()]
        prior = self.prior.aligned(classes, self.grounding.questions_)
        assert isinstance(layer, nn.Linear)

        def loss(logits: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(logits, labels) + self.prior_weight * prior_loss(layer.weight, prior)

        return loss

    @property
    def weights_(self) -> Float[Tensor, "classes concepts"]:
        """W, with rows as `classes_` and columns as `grounding.questions_`."""
        layer: Any = self.layer_
        return layer.weight.detach().clone()

    def explain(self, features: Any, top: int = 10, *, labels: Sequence[Any] | None = None) -> list[Explanation]:
        """For each image the concepts that speak most for and against a class, with where each was read.

        Args:
            features: (n, dim).
            top: concepts listed, by absolute contribution.
            labels: the class to explain for each image; the predicted one if None.
        """
        if top < 1:
            raise ValueError(f"top must be positive, got {top}")
        logits = self.decision_function(features)
        scores = self.grounding.transform(features).double()
        places = logits.argmax(dim=1) if labels is None else labels_of(labels, self.classes_)[1]
        if len(places) != len(scores):
            raise ValueError(f"labels must name a class for each of the {len(scores)} images, got {len(places)}")
        layer: Any = self.layer_
        weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
        parts = scores * weight[places]
        order = parts.abs().argsort(dim=1, descending=True, stable=True)[:, :top]
        explanations = []
        for row, place in enumerate(places.tolist()):
            reasons = []
            for column in order[row].tolist():
                concept = self.bottleneck[self.grounding.questions_[column]]
                reasons.append(
                    Reason(
                        concept.question, scores[row, column].item(), weight[place, column].item(),
                        parts[row, column].item(), concept.document, concept.sentence,
                    )
                )  # fmt: skip
            listed = sum(reason.contribution for reason in reasons)
            logit, free = logits[row, place].item(), bias[place].item()
            explanations.append(
                Explanation(
                    self.classes_[place].item(), logits[row].softmax(0)[place].item(), logit, free, tuple(reasons),
                    logit - free - listed,
                )
            )  # fmt: skip
        return explanations
