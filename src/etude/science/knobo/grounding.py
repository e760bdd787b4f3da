"""Grounding functions: one logistic regression a concept, from image features to the probability of "yes" (3.2).

They are trained on images whose reports answer the question, apart from the data of the task: trained there, concepts
would take over its confounder.
"""

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from etude.science.knobo.concepts import Bottleneck

__all__ = ["GroundingFunctions", "unit_features"]

_UNIT = 1e-3


def unit_features(features: Any, *, normalize: bool = True, dim: int | None = None) -> Float[Tensor, "n dim"]:
    """Features with rows of norm 1, float32.

    Args:
        features: (n, dim), tensor or array.
        normalize: divide rows by their norm; if False, they must have norm 1 already.
        dim: how wide they must be.

    Raises:
        ValueError: for another shape, non-finite values, a row of zeros, or rows that are not normalised.
    """
    x = torch.as_tensor(features).detach().cpu().float()
    if x.ndim != 2 or (dim is not None and x.shape[1] != dim):
        raise ValueError(f"features must have shape (n, {'dim' if dim is None else dim}), got {tuple(x.shape)}")
    bad = ~torch.isfinite(x).all(dim=1)
    if bool(bad.any()):
        raise ValueError(f"features must be finite, row {int(bad.nonzero()[0])} is not")
    norms = x.norm(dim=1)
    if bool((norms == 0).any()):
        raise ValueError(f"features must not be all zero, row {int((norms == 0).nonzero()[0])} is")
    if normalize:
        return x / norms[:, None]
    if len(x) and float((norms - 1).abs().max()) > _UNIT:
        raise ValueError(f"features must have rows of norm 1, got norms {norms.min():.3g} to {norms.max():.3g}")
    return x


class GroundingFunctions:
    """Concept scores g(x) in [0, 1], one column a concept.

    For each concept the images of "yes" and "no" reports are drawn, at most `max_examples` and evenly where possible;
    a tenth of the rarer side, at most `max_val`, is held out from each side, and a concept with less than `min_val`
    there is skipped; the rest is balanced and fitted. The `number_of_features` concepts of the highest validation
    accuracy are kept, best first.

    Args:
        number_of_features: concepts kept.
        max_examples, train_samples: images drawn and trained on, a concept.
        min_val, max_val: validation images a side.
        normalize: L2-normalise features, at training and later; if False, they are refused unless they are so already.
        seed: of the draws. A concept's draws depend on the seed and its question, not on its place.

    Attributes:
        questions_: the concepts kept, in the order of the columns.
        skipped_: question -> why it has no function.
        accuracy_: question -> validation accuracy, of all functions.
        coef_ (concepts, dim), intercept_ (concepts,): of the functions kept, float64.
    """

    def __init__(
        self,
        *,
        number_of_features: int = 150,
        max_examples: int = 10_000,
        train_samples: int = 2_000,
        min_val: int = 10,
        max_val: int = 50,
        normalize: bool = True,
        seed: int = 0,
    ):
        counts = {
            "number_of_features": number_of_features, "max_examples": max_examples, "train_samples": train_samples,
            "min_val": min_val, "max_val": max_val,
        }  # fmt: skip
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"{name} must be positive, got {value}")
        self.number_of_features, self.max_examples, self.train_samples = number_of_features, max_examples, train_samples
        self.min_val, self.max_val, self.normalize, self.seed = min_val, max_val, normalize, seed

    def fit(self, features: Any, answers: Any, concepts: Bottleneck | Sequence[str]) -> "GroundingFunctions":
        """Fits a function for each concept.

        Args:
            features: (n, dim), of the annotated images.
            answers: (n, concepts) in {-1, 0, 1}, as `annotate_reports` gives them; 0 is left out of training.
            concepts: the names of the columns of `answers`.

        Raises:
            ValueError: if the shapes do not agree or no concept can be fitted; the message says why for the first.
        """
        try:
            from sklearn.linear_model import LogisticRegression
        except ImportError as error:
            raise ImportError("grounding functions need scikit-learn: pip install 'etude[run]'") from error
        questions = concepts.questions if isinstance(concepts, Bottleneck) else tuple(concepts)
        x = unit_features(features, normalize=self.normalize).numpy()
        table = np.asarray(answers)
        if table.shape != (len(x), len(questions)):
            raise ValueError(
                f"answers must have shape (images, concepts) = ({len(x)}, {len(questions)}), got {table.shape}"
            )
        if not np.isin(table, (-1, 0, 1)).all():
            raise ValueError(f"answers must be -1, 0 or 1, got {sorted(set(np.unique(table)) - {-1, 0, 1})[:3]}")
        if len(set(questions)) < len(questions):
            raise ValueError("a concept occurs twice")
        self.skipped_: dict[str, str] = {}
        self.accuracy_: dict[str, float] = {}
        fitted: dict[str, tuple[np.ndarray, float]] = {}
        for column, question in enumerate(questions):
            rows = self._rows(table[:, column], question)
            if rows is None:
                continue
            train, val = rows
            model = LogisticRegression(max_iter=1000, class_weight="balanced")
            model.fit(x[train], table[train, column])
            self.accuracy_[question] = float(model.score(x[val], table[val, column]))
            fitted[question] = (model.coef_[0].astype(np.float64), float(model.intercept_[0]))
        if not fitted:
            question, why = next(iter(self.skipped_.items()))
            raise ValueError(f"no concept can be grounded: {question!r} {why}")
        best = sorted(fitted, key=lambda question: -self.accuracy_[question])[: self.number_of_features]
        self._keep(best, [fitted[question] for question in best])
        return self

    def _keep(self, questions: Sequence[str], functions: Sequence[tuple[np.ndarray, float]]) -> None:
        self.questions_ = tuple(questions)
        self.coef_ = np.stack([coef for coef, _ in functions])
        self.intercept_ = np.array([intercept for _, intercept in functions])

    def _rows(self, answers: np.ndarray, question: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Rows to train on (balanced) and to validate on."""
        rng = np.random.default_rng([self.seed, zlib.crc32(question.encode())])
        sides = [rng.permutation(np.flatnonzero(answers == value)) for value in (1, -1)]
        rare = min(range(2), key=lambda side: len(sides[side]))
        sides[rare] = sides[rare][: self.max_examples // 2]
        sides[1 - rare] = sides[1 - rare][: self.max_examples - len(sides[rare])]
        held = min(min(map(len, sides)) // 10, self.max_val)
        if held < self.min_val:
            self.skipped_[question] = (
                f"has {len(sides[0])} images of yes and {len(sides[1])} of no: "
                f"a tenth of the fewer must be at least {self.min_val}"
            )
            return None
        val = np.concatenate([side[:held] for side in sides])
        yes, no = (side[held:] for side in sides)
        yes = yes[: self.train_samples // 2]
        no = no[: self.train_samples - len(yes)]
        size = min(len(yes), len(no))
        return np.concatenate([yes[:size], no[:size]]), val

    @property
    def mean_accuracy(self) -> float:
        """Of the functions kept, on their validation images."""
        return float(np.mean([self.accuracy_[question] for question in self.questions_]))

    def transform(self, features: Any) -> Float[Tensor, "n concepts"]:
        """The probability of "yes" for each image and concept kept, float32 in [0, 1]."""
        if not hasattr(self, "coef_"):
            raise RuntimeError("call fit before transform")
        x = unit_features(features, normalize=self.normalize, dim=self.coef_.shape[1]).double()
        return torch.sigmoid(x @ torch.from_numpy(self.coef_).T + torch.from_numpy(self.intercept_)).float()

    def selected(self, questions: Sequence[str]) -> "GroundingFunctions":
        """The functions of some of the concepts kept, in the order asked."""
        absent = [question for question in questions if question not in self.questions_]
        if absent:
            raise ValueError(f"there is no grounding function of {absent[0]!r}")
        return _joined(self, [(self, self.questions_.index(question)) for question in questions])

    def joined(self, other: "GroundingFunctions") -> "GroundingFunctions":
        """The functions of both, on the same features."""
        if self.coef_.shape[1] != other.coef_.shape[1] or set(self.questions_) & set(other.questions_):
            raise ValueError("grounding functions are joined on the same features and with distinct concepts")
        places = [(source, place) for source in (self, other) for place in range(len(source.questions_))]
        return _joined(self, places)


def _joined(like: GroundingFunctions, places: Sequence[tuple[GroundingFunctions, int]]) -> GroundingFunctions:
    new = GroundingFunctions(
        number_of_features=max(like.number_of_features, len(places)), max_examples=like.max_examples,
        train_samples=like.train_samples, min_val=like.min_val, max_val=like.max_val, normalize=like.normalize,
        seed=like.seed,
    )  # fmt: skip
    questions = [source.questions_[place] for source, place in places]
    new.accuracy_ = {question: source.accuracy_[question] for question, (source, _) in zip(questions, places)}
    new.skipped_ = {}
    new._keep(questions, [(source.coef_[place], float(source.intercept_[place])) for source, place in places])
    return new
