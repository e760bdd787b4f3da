"""DT-DDNN: two thresholds on a first network's probability, and a second network for what lies between them.

Asemian, Amini, Kantarci & Erol-Kantarci, "Over-The-Air Double-Threshold Deep Learner for Jamming Detection in 5G RF
domain", arXiv:2403.02645, 2024. The sizes of the networks, the wavelet and the thresholds are ours: the published text
that was at hand does not give them.
"""

import copy
import inspect
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor, nn

from etude.science.jamming.decision import (
    best_threshold,
    cascade_score,
    check_eta,
    detection_rate,
    threshold_at_false_alarm,
    tune_eta,
    uncertain,
)
from etude.science.jamming.features import FeatureSet, SSBFeatures
from etude.science.jamming.networks import (
    DEFAULT_SCHEDULE,
    Perceptron,
    Schedule,
    num_parameters,
    predict_logits,
    train_deep_cascade,
    train_network,
)

__all__ = ["DTDDNNClassifier", "EnergyDetector", "SingleNetworkClassifier"]

_MIN_BAND = 50
_FOLDS = 5


class _Estimator(ABC):
    """What scikit-learn expects of a classifier, without importing it."""

    classes_: np.ndarray

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **params: Any) -> "_Estimator":
        unknown = sorted(set(params) - set(self.get_params()))
        if unknown:
            raise ValueError(f"unknown parameters {', '.join(unknown)}; there are {', '.join(self.get_params())}")
        for name, value in params.items():
            setattr(self, name, value)
        return self

    @abstractmethod
    def decision_scores(self, X: Any, *, sample_rate: float | int | None = None) -> Float64[Tensor, "n"]:
        """Scores that rise with the suspicion of a jammer."""

    def _threshold(self) -> float:
        return 0.5

    def predict(self, X: Any, *, sample_rate: float | int | None = None) -> np.ndarray:
        """1 for jammed, 0 for normal."""
        return (self.decision_scores(X, sample_rate=sample_rate) >= self._threshold()).long().cpu().numpy()

    def score(self, X: Any, y: Any) -> float:
        """Accuracy."""
        return float((self.predict(X) == np.asarray(y)).mean())

    def detection_rate(self, X: Any, y: Any, *, far: float | int = 0.05, validation: tuple[Any, Any]) -> float:
        """Share of jammed records caught at the threshold that gives the false-alarm rate `far` on `validation`."""
        bar = threshold_at_false_alarm(self.decision_scores(validation[0]), _labels(validation[1]), far)
        return detection_rate(self.decision_scores(X), _labels(y), threshold=bar)


def _labels(y: Any) -> Int64[Tensor, "n"]:
    labels = torch.as_tensor(y).flatten()
    if not bool(((labels == 0) | (labels == 1)).all()):
        raise ValueError(f"labels must be 0 (normal) or 1 (jammed), got values {sorted(set(labels.tolist()))[:5]}")
    return labels.long()


class _NetworkClassifier(_Estimator):
    """Features, splits and training that the network classifiers share."""

    seed: int
    device: str
    schedule: Schedule
    deep_cascade: bool
    extractor: SSBFeatures | None

    def _raw(self, X: Any, sample_rate: float | int | None = None) -> FeatureSet:
        if isinstance(X, FeatureSet):
            return X
        return self.features_.extract(torch.as_tensor(X).to(self.device), sample_rate=sample_rate)

    def _transformed(self, X: Any, sample_rate: float | int | None = None) -> FeatureSet:
        if not hasattr(self, "classes_"):
            raise RuntimeError(f"call fit before using this {type(self).__name__}")
        return self.features_.transform(self._raw(X, sample_rate))

    def _splits(
        self, X: Any, y: Any, validation: tuple[Any, Any] | None, sample_rate: float | int | None
    ) -> tuple[FeatureSet, Tensor, FeatureSet, Tensor]:
        """Standardised features and labels of training and validation; a fifth is held out if none is given."""
        self.features_ = copy.copy(self.extractor) if self.extractor is not None else SSBFeatures()
        train, labels = self._raw(X, sample_rate), _labels(y).to(self.device)
        if len(train) != len(labels):
            raise ValueError(f"X and y must have equally many rows, got {len(train)} and {len(labels)}")
        if validation is not None:
            held, held_labels = self._raw(validation[0], sample_rate), _labels(validation[1]).to(self.device)
        else:
            order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(self.seed)).to(self.device)
            cut = len(order) // 5
            held, held_labels = train[order[:cut]], labels[order[:cut]]
            train, labels = train[order[cut:]], labels[order[cut:]]
        for name, split in (("training", labels), ("validation", held_labels)):
            if len(split.unique()) < 2:
                raise ValueError(f"the {name} labels must hold both classes, got only {split.unique().tolist()}")
        self.features_.fit(train)
        self.classes_ = np.array([0, 1])
        return self.features_.transform(train), labels, self.features_.transform(held), held_labels

    def _network(
        self,
        hidden: Sequence[int],
        train: tuple[Tensor, Tensor],
        validation: tuple[Tensor, Tensor],
        purpose: int,
    ) -> Perceptron:
        """A trained perceptron; its randomness depends on the seed and the purpose alone."""
        seed = int(np.random.SeedSequence([self.seed, purpose]).generate_state(1)[0])
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = Perceptron(train[0].flatten(1).shape[1], hidden).to(self.device)
            fit = train_deep_cascade if self.deep_cascade else train_network
            fit(model, train, validation, self.schedule, generator=torch.Generator().manual_seed(seed))
        return model

    def predict_proba(self, X: Any, *, sample_rate: float | int | None = None) -> np.ndarray:
        """Columns: probability of normal and of jammed."""
        p = self.decision_scores(X, sample_rate=sample_rate).cpu().numpy()
        return np.stack([1 - p, p], axis=1)


class EnergyDetector(_Estimator):
    """The classical baseline: the mean energy on the 130 empty elements, against one threshold.

        detector = EnergyDetector().fit(validation_signals, validation_labels)

    There is nothing to train but the threshold, which `fit` sets for the best accuracy. Several looks are averaged.
    """

    def __init__(self, extractor: SSBFeatures | None = None, device: str = "cpu"):
        self.extractor, self.device = extractor, device

    def fit(self, X: Any, y: Any, *, sample_rate: float | int | None = None) -> "EnergyDetector":
        """Sets the threshold on complex records, or on their `FeatureSet`."""
        self.classes_ = np.array([0, 1])
        self.threshold_ = best_threshold(self.decision_scores(X, sample_rate=sample_rate), _labels(y).to(self.device))
        return self

    def _threshold(self) -> float:
        if not hasattr(self, "threshold_"):
            raise RuntimeError("call fit before predicting with this EnergyDetector")
        return self.threshold_

    def decision_scores(self, X: Any, *, sample_rate: float | int | None = None) -> Float64[Tensor, "n"]:
        """Log of the mean energy."""
        if not isinstance(X, FeatureSet):
            features = self.extractor if self.extractor is not None else SSBFeatures()
            X = features.extract(torch.as_tensor(X).to(self.device), sample_rate=sample_rate)
        energy = X.energy.double()
        return energy.exp().mean(dim=1).log() if energy.ndim > 1 else energy


class SingleNetworkClassifier(_NetworkClassifier):
    """One network, one threshold at 0.5: what the double threshold is compared with.

    Args:
        wide: False for the first network of the cascade and its features alone; True for all features of both networks
            and, in its first hidden layer, as many units as bring it to the number of parameters of both together.
        width: factor on all hidden widths.
        schedule: of the training.
        deep_cascade: train layer by layer.
        extractor: features other than the default `SSBFeatures()`.
        seed: of initial weights, batches and dropout. device: on which to compute.
    """

    def __init__(
        self,
        wide: bool = False,
        *,
        width: int = 1,
        schedule: Schedule = DEFAULT_SCHEDULE,
        deep_cascade: bool = False,
        extractor: SSBFeatures | None = None,
        seed: int = 0,
        device: str = "cpu",
    ):
        self.wide, self.width, self.schedule, self.deep_cascade = wide, width, schedule, deep_cascade
        self.extractor, self.seed, self.device = extractor, seed, device

    def fit(
        self, X: Any, y: Any, *, validation: tuple[Any, Any] | None = None, sample_rate: float | int | None = None
    ) -> "SingleNetworkClassifier":
        """As `DTDDNNClassifier.fit`; of several looks the first is used."""
        train, labels, held, held_labels = self._splits(X, y, validation, sample_rate)
        hidden: tuple[int, ...] = _first_hidden(self.width)
        if self.wide:
            hidden = _matched_hidden(train.first.shape[-1], train.second.shape[-1], self.width)
        splits = (self._inputs(train), labels), (self._inputs(held), held_labels)
        self.network_ = self._network(hidden, *splits, purpose=_WIDE if self.wide else _FIRST)
        return self

    def _inputs(self, features: FeatureSet) -> Tensor:
        first, second = (x[:, 0] if x.ndim == 3 else x for x in (features.first, features.second))
        return torch.cat([second, first[:, -2:]], dim=1) if self.wide else first

    def logits(self, X: Any, *, sample_rate: float | int | None = None) -> Tensor:
        """The network's logits of the first look."""
        return predict_logits(self.network_, self._inputs(self._transformed(X, sample_rate)))

    def decision_scores(self, X: Any, *, sample_rate: float | int | None = None) -> Float64[Tensor, "n"]:
        """Probability of a jammer."""
        return self.logits(X, sample_rate=sample_rate).double().sigmoid()


class DTDDNNClassifier(_NetworkClassifier):
    """Double threshold, double deep neural network, with the manners of a scikit-learn classifier.

        detector = DTDDNNClassifier().fit(train_signals, train_labels, validation=(val_signals, val_labels))
        jammed = detector.predict(signals)
        stage = detector.stage(signals)                    # 1 or 2: which network decided

    The first network sees the approximation band and the mean energies. Where its probability lies strictly between
    the thresholds, the second one decides, on the richer features and the first one's logit. It learns only from
    training examples inside that band, found on scores of folds that the scoring network was not trained on: its own
    training examples it knows too well.

    Args:
        eta: thresholds (low, high) around 0.5; (0.5, 0.5) leaves the first network alone, (0, 1) asks the second one
            about every record.
        tune_eta: choose the thresholds on validation examples instead (see `decision.tune_eta`).
        deep_cascade: train both networks layer by layer (`train_deep_cascade`).
        second_look: records hold two successive blocks, (n, 2, samples); the second network sees the features of both.
        in_sample_band: measure the band on the first network's own training scores, as a control.
        width: factor on all hidden widths (64, 32) and (128, 64).
        schedule: epochs, learning rate, weight decay and batch size.
        extractor: features other than the default `SSBFeatures()`.
        seed: of folds, initial weights, batches and dropout. device: on which to compute.
    """

    def __init__(
        self,
        eta: tuple[float | int, float | int] = (0.1, 0.9),
        *,
        tune_eta: bool = True,
        deep_cascade: bool = False,
        second_look: bool = False,
        in_sample_band: bool = False,
        width: int = 1,
        schedule: Schedule = DEFAULT_SCHEDULE,
        extractor: SSBFeatures | None = None,
        seed: int = 0,
        device: str = "cpu",
    ):
        self.eta, self.tune_eta, self.deep_cascade, self.second_look = eta, tune_eta, deep_cascade, second_look
        self.in_sample_band, self.width, self.schedule = in_sample_band, width, schedule
        self.extractor, self.seed, self.device = extractor, seed, device

    def fit(
        self, X: Any, y: Any, *, validation: tuple[Any, Any] | None = None, sample_rate: float | int | None = None
    ) -> "DTDDNNClassifier":
        """Trains both networks.

        Args:
            X: complex records (n, samples) as arrays or tensors, (n, 2, samples) for a second look, or a `FeatureSet`
                that an extractor with the same settings has made.
            y: labels, 1 for jammed and 0 for normal.
            validation: records and labels that choose the epoch and the thresholds; a fifth of X if None.
            sample_rate: of the records in Hz, if known; checked.

        Raises:
            ValueError: if the records are real, too short, of another sample rate or all zero, if a class is absent,
                or `eta` is out of order.

        Warns:
            UserWarning: if the band holds fewer than 50 training examples or one class; the first network then decides
                alone.
        """
        eta = check_eta(self.eta)
        train, labels, held, held_labels = self._splits(X, y, validation, sample_rate)
        if train.first.ndim != (3 if self.second_look else 2):
            wanted = "(n, 2, samples)" if self.second_look else "(n, samples)"
            raise ValueError(f"second_look={self.second_look} takes records of shape {wanted}")
        inputs, held_inputs = _first_look(train), _first_look(held)
        hidden = _first_hidden(self.width)
        self.network1_ = self._network(hidden, (inputs, labels), (held_inputs, held_labels), _FIRST)
        held_logits = predict_logits(self.network1_, held_inputs)
        self.eta_ = tune_eta(held_logits, held_labels) if self.tune_eta else eta
        self.network2_: nn.Module | None = None
        self.band_share_ = 0.0
        if self.eta_[0] < self.eta_[1]:
            if self.in_sample_band:
                logits = predict_logits(self.network1_, inputs)
            else:
                logits = self._out_of_fold(inputs, labels, (held_inputs, held_labels))
            self._fit_second(train, labels, logits, held, held_labels, held_logits)
        return self

    def _out_of_fold(self, inputs: Tensor, labels: Tensor, validation: tuple[Tensor, Tensor]) -> Tensor:
        """Logit of each training example from a first network trained on the other four fifths."""
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(self.seed)).to(self.device)
        fold = torch.empty_like(order)
        fold[order] = torch.arange(len(order), device=order.device) % _FOLDS
        logits = inputs.new_empty(len(labels))
        for number in range(_FOLDS):
            out = fold == number
            network = self._network(
                _first_hidden(self.width), (inputs[~out], labels[~out]), validation, purpose=_FOLD + number
            )
            logits[out] = predict_logits(network, inputs[out])
        return logits

    def _fit_second(
        self,
        train: FeatureSet,
        labels: Tensor,
        logits: Tensor,
        held: FeatureSet,
        held_labels: Tensor,
        held_logits: Tensor,
    ) -> None:
        band, held_band = uncertain(logits, self.eta_), uncertain(held_logits, self.eta_)
        self.band_share_ = band.double().mean().item()
        classes, held_classes = len(labels[band].unique()), len(held_labels[held_band].unique())
        if int(band.sum()) < _MIN_BAND or classes < 2 or held_classes < 1:
            warnings.warn(
                f"the band {self.eta_} holds {int(band.sum())} training examples of {classes} class(es) and "
                f"{int(held_band.sum())} validation examples; the second network needs {_MIN_BAND} of both classes and "
                "is left out",
                stacklevel=3,
            )
            return
        hidden = (128 * self.width, 64 * self.width)
        inputs = _second_inputs(train, logits)[band], _second_inputs(held, held_logits)[held_band]
        splits = (inputs[0], labels[band]), (inputs[1], held_labels[held_band])
        self.network2_ = self._network(hidden, *splits, purpose=_SECOND)

    def _decide(self, X: Any, sample_rate: float | int | None) -> tuple[Tensor, Tensor]:
        features = self._transformed(X, sample_rate)
        first = predict_logits(self.network1_, _first_look(features))
        second, passed = torch.zeros_like(first), torch.zeros_like(first, dtype=torch.bool)
        if self.network2_ is not None:
            passed = uncertain(first, self.eta_)
        if self.network2_ is not None and bool(passed.any()):
            second[passed] = predict_logits(self.network2_, _second_inputs(features, first)[passed])
        return cascade_score(first, second, self.eta_, passed), passed

    def decision_scores(self, X: Any, *, sample_rate: float | int | None = None) -> Float64[Tensor, "n"]:
        """The combined score of both networks in 0..1 (see `cascade_score`)."""
        return self._decide(X, sample_rate)[0]

    def stage(self, X: Any, *, sample_rate: float | int | None = None) -> np.ndarray:
        """1 where the first network was certain, 2 where the second one decided."""
        return self._decide(X, sample_rate)[1].long().add(1).cpu().numpy()


_FIRST, _SECOND, _WIDE, _FOLD = 0, 1, 2, 10


def _first_look(features: FeatureSet) -> Tensor:
    return features.first[:, 0] if features.first.ndim == 3 else features.first


def _second_inputs(features: FeatureSet, logits: Tensor) -> Tensor:
    return torch.cat([features.second.flatten(1), logits.unsqueeze(1)], dim=1)


def _first_hidden(width: int) -> tuple[int, int]:
    return 64 * width, 32 * width


def _matched_hidden(first_dim: int, second_dim: int, width: int) -> tuple[int, int]:
    """Hidden widths of a single network with at least as many parameters as both networks of the cascade."""
    with torch.device("meta"):
        wanted = num_parameters(Perceptron(first_dim, _first_hidden(width)))
        wanted += num_parameters(Perceptron(second_dim + 1, (128 * width, 64 * width)))
        in_dim, last, units = second_dim + 2, 64 * width, 1
        while num_parameters(Perceptron(in_dim, (units, last))) < wanted:
            units += 1
    return units, last
