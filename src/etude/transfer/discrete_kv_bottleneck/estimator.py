"""The bottleneck as a scikit-learn estimator that learns class after class."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from etude.transfer.discrete_kv_bottleneck.bottleneck import KeyValueBottleneck
from etude.transfer.discrete_kv_bottleneck.classifier import BottleneckClassifier
from etude.transfer.discrete_kv_bottleneck.decoders import VotingDecoder
from etude.transfer.discrete_kv_bottleneck.encoders import FrozenEncoder
from etude.transfer.discrete_kv_bottleneck.training import train_values

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise ImportError('DKVBClassifier needs scikit-learn: pip install "etude[run]"') from error

__all__ = ["DKVBClassifier"]

_CHUNK = 2048


class DKVBClassifier(ClassifierMixin, BaseEstimator):
    """Classifies embeddings; what it learned of earlier classes survives the later ones.

        classifier = DKVBClassifier(random_state=0).place_keys(unlabelled)
        for rows in class_incremental_splits(labels):
            classifier.partial_fit(z[rows], y[rows], classes=all_classes)

    Args:
        encoder: frozen module from inputs to embeddings; None if X holds embeddings or the columns of a table.
        num_codebooks, num_pairs, dim_key, topk, splitter: of `KeyValueBottleneck`.
        placement_epochs: passes of `place_keys` over the unlabelled data.
        epochs: passes of each `fit` and `partial_fit`.
        lr: of plain SGD; 0.3 for each codebook if None.
        batch_size, label_smoothing, clip: of `train_values`.
        standardize: whether features are brought to mean 0 and deviation 1 over the data that keys are placed by:
            columns of a table want it, embeddings of one scale do not.
        random_state: seed of projections, keys and orders; torch's global generator if None.
        device: where to work, such as "cpu" or "cuda".

    Attributes:
        classes_: the labels, sorted.
        model_: the `BottleneckClassifier`, without the encoder.
        n_features_in_: size of the embeddings.
    """

    def __init__(
        self,
        encoder: nn.Module | None = None,
        *,
        num_codebooks: int = 32,
        num_pairs: int = 256,
        dim_key: int = 8,
        topk: int = 1,
        splitter: str = "random",
        placement_epochs: int = 10,
        epochs: int = 3,
        lr: float | int | None = None,
        batch_size: int = 64,
        label_smoothing: float | int = 0.1,
        clip: float | int | None = 1.0,
        standardize: bool = False,
        random_state: int | None = None,
        device: str = "cpu",
    ):
        self.encoder = encoder
        self.num_codebooks = num_codebooks
        self.num_pairs = num_pairs
        self.dim_key = dim_key
        self.topk = topk
        self.splitter = splitter
        self.placement_epochs = placement_epochs
        self.epochs = epochs
        self.lr = lr
        self.batch_size = batch_size
        self.label_smoothing = label_smoothing
        self.clip = clip
        self.standardize = standardize
        self.random_state = random_state
        self.device = device

    def place_keys(self, X: Any) -> "DKVBClassifier":
        """Starts afresh, with keys placed by unlabelled data: those to come, or others of their kind.

        Args:
            X: (n, features), or inputs of the encoder; an array or a tensor.

        Raises:
            ValueError: if there are no rows, a shape does not fit, or values are not finite.
        """
        z = self._encoded(X)
        if len(z) == 0:
            raise ValueError("there are no rows to place keys by")
        spread = z.std(dim=0, correction=0)
        if self.standardize:
            self._center, self._scale = z.mean(dim=0), torch.where(spread > 0, spread, torch.ones_like(spread))
        else:
            self._center, self._scale = torch.zeros_like(z[0]), torch.ones_like(z[0])
        generator = torch.Generator()
        if self.random_state is None:
            generator.manual_seed(int(torch.randint(2**62, ())))
        else:
            generator.manual_seed(self.random_state)
        keys = KeyValueBottleneck(
            z.shape[1], self.num_codebooks, self.num_pairs, self.dim_key if self.splitter != "chunk" else None, 1,
            splitter=self.splitter, topk=self.topk, generator=generator,
        ).to(self.device)  # fmt: skip
        keys.place_keys((z - self._center) / self._scale, self.placement_epochs)
        self._bottleneck, self._generator, self.n_features_in_ = keys, generator, z.shape[1]
        for name in ("classes_", "model_"):
            self.__dict__.pop(name, None)
        return self

    def fit(self, X: Any, y: Any) -> "DKVBClassifier":
        """Learns from all rows at once, keys placed by the rows themselves unless `place_keys` has come before.

        Args:
            X: as for `place_keys`.
            y: (n,) labels of any type, of at least two classes.
        """
        if not hasattr(self, "_bottleneck") or hasattr(self, "classes_"):
            self.place_keys(X)
        return self.partial_fit(X, y, classes=np.unique(np.asarray(y)))

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> "DKVBClassifier":
        """Learns from some more rows, be they of new classes or of old.

        Args:
            X: as for `place_keys`.
            y: (n,) labels.
            classes: all labels that will ever come; needed at the first call.

        Raises:
            ValueError: if keys are not placed, `classes` is missing or another than before, or y holds other labels.
        """
        if not hasattr(self, "_bottleneck"):
            raise ValueError("the keys have not been placed: call place_keys(unlabelled X) before partial_fit")
        if not hasattr(self, "classes_"):
            if classes is None:
                raise ValueError("classes, all labels that will ever come, is needed at the first partial_fit")
            self._begin(np.unique(np.asarray(classes)))
        elif classes is not None and not np.array_equal(np.unique(np.asarray(classes)), self.classes_):
            raise ValueError(f"classes must be those of the first call, {self.classes_.tolist()}, got {classes}")
        z = self._embedded(X)
        labels = np.asarray(y)
        if labels.shape != (len(z),):
            raise ValueError(f"y must have shape ({len(z)},), one label a row, got {labels.shape}")
        unknown = np.setdiff1d(labels, self.classes_)
        if len(unknown):
            raise ValueError(f"y must hold labels of {self.classes_.tolist()}, got {unknown[:5].tolist()} besides")
        codes = torch.from_numpy(np.searchsorted(self.classes_, labels).astype(np.int64)).to(self.device)
        train_values(
            self.model_.bottleneck, self.model_.bottleneck.train().indices(z), codes, epochs=self.epochs,
            lr=0.3 * self.num_codebooks if self.lr is None else self.lr, batch_size=self.batch_size,
            label_smoothing=self.label_smoothing, clip=self.clip, generator=self._generator,
        )  # fmt: skip
        self.model_.eval()
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """(n, classes) probabilities: the softmax of the mean votes."""
        check_is_fitted(self, "model_")
        z = self._embedded(X)
        with torch.no_grad():
            parts = [self.model_(part).softmax(dim=1) for part in z.split(_CHUNK)]
        return torch.cat(parts).cpu().numpy() if parts else np.empty((0, len(self.classes_)))

    def predict(self, X: Any) -> np.ndarray:
        """(n,) labels."""
        check_is_fitted(self, "model_")
        return self.classes_[self.predict_proba(X).argmax(axis=1)]

    def _begin(self, classes: np.ndarray) -> None:
        if len(classes) < 2:
            raise ValueError(f"there must be at least two classes, got {classes.tolist()}")
        keys = self._bottleneck
        keys.values = nn.Parameter(torch.zeros(self.num_codebooks, self.num_pairs, len(classes), device=self.device))
        keys.dim_value = len(classes)
        keys.reset_usage()
        self.classes_, self.model_ = classes, BottleneckClassifier(None, keys, VotingDecoder())

    def _embedded(self, X: Any) -> Tensor:
        z = self._encoded(X)
        if z.shape[1] != self.n_features_in_:
            raise ValueError(f"X has {z.shape[1]} features, keys were placed by {self.n_features_in_}")
        return (z - self._center) / self._scale

    def _encoded(self, X: Any) -> Tensor:
        x = (X if isinstance(X, Tensor) else torch.from_numpy(np.asarray(X))).to(self.device, torch.float32)
        if self.encoder is not None:
            encoder = self.encoder if isinstance(self.encoder, FrozenEncoder) else FrozenEncoder(self.encoder)
            encoder.to(self.device)
            x = torch.cat([encoder(part) for part in x.split(_CHUNK)]).float() if len(x) else x.flatten(1)
        if x.ndim != 2:
            raise ValueError(f"embeddings must have shape (n, features), got {tuple(x.shape)}; images need an encoder")
        bad = int((~torch.isfinite(x)).sum())
        if bad:
            raise ValueError(f"X holds NaN or infinite values, {bad} of them")
        return x
