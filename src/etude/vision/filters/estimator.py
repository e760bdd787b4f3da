"""A classifier of images on a frozen filter bank, as a scikit-learn estimator.

Coates, Lee & Ng, "An analysis of single-layer networks in unsupervised feature learning", AISTATS 2011. With the
responses r of the bank and a threshold t, the features of an image are relu(r - t) and relu(-r - t) (without the two
signs a linear read-out loses half of what a filter says), averaged over the cells of a grid, and standardised.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from etude.vision.filters.bank import FilterBank
from etude.vision.filters.fixed import BANKS, filter_bank
from etude.vision.filters.learning import METHODS, learn_filters
from etude.vision.pixels import to_images

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.linear_model import LogisticRegression, RidgeClassifier
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise ImportError('FixedBankClassifier needs scikit-learn: pip install "etude[run]"') from error

__all__ = ["FixedBankClassifier", "make_bank", "rectified_features"]

READOUTS = ("ridge", "logistic", "svm")


def make_bank(
    bank: FilterBank | Tensor | str,
    X: Any,
    *,
    size: int | None,
    num: int | None,
    seed: int = 0,
    color: str = "joint",
    **arguments,
) -> FilterBank:
    """A bank from its name: of `filter_bank`, or of `learn_filters`, which then learns it on `X`.

    Banks and weights (num, channels, k, k) are handed through. "kmeans_nowhite" and its like are the methods without
    whitening.
    """
    if isinstance(bank, FilterBank):
        return bank
    if isinstance(bank, Tensor):
        return FilterBank(bank.detach().float(), "given")
    if bank in BANKS:
        # Random filters see what learned ones see: all channels, if these are taken jointly.
        channels = to_images(X).shape[1] if color == "joint" else 1
        extra = {"seed": seed, "channels": channels} if bank == "random" else {}
        return filter_bank(bank, size, num, **(extra | arguments))
    method = bank.removesuffix("_nowhite")
    if method not in METHODS:
        raise ValueError(f"bank must be a FilterBank or one of {', '.join([*BANKS, *METHODS])}, got {bank!r}")
    if method != bank:
        arguments = {"whiten": False} | arguments
    return learn_filters(X, method, size, num, seed=seed, color=color, **arguments)


@torch.no_grad()
def rectified_features(
    images: Tensor, bank: FilterBank, *, threshold: float | int = 0.5, grid: int = 3, color: str = "joint",
    batch_size: int = 256,
) -> Tensor:  # fmt: skip
    """Split-rectified responses, averaged over grid x grid cells: (n, 2 * filters * grid^2).

    Raises:
        ValueError: if the images are smaller than a filter and the grid need, or have channels the bank does not take.
    """
    height, width = images.shape[2:]
    if height - bank.size[0] + 1 < grid or width - bank.size[1] + 1 < grid:
        raise ValueError(
            f"filters of {bank.size[0]} x {bank.size[1]} on images of {height} x {width} leave "
            f"{height - bank.size[0] + 1} x {width - bank.size[1] + 1} responses, fewer than the grid's {grid} x {grid}"
        )
    conv = bank.to_conv(images.shape[1], padding=0, color="joint" if bank.channels > 1 else color).to(images.device)
    features = []
    for batch in images.split(batch_size):
        responses = conv(batch)
        both = torch.cat([F.relu(responses - threshold), F.relu(-responses - threshold)], dim=1)
        features.append(F.adaptive_avg_pool2d(both, grid).flatten(1))
    return torch.cat(features)


class FixedBankClassifier(ClassifierMixin, BaseEstimator):
    """A frozen bank, split rectification, average pooling and a linear read-out.

        data = images.image_folder("photos/", size=64)
        classifier = FixedBankClassifier("kmeans", num=64).fit(data.train)
        print(classifier.score(data.test), classifier.predict(new_images))

    Args:
        bank: a `FilterBank`, a weight, or a name: of `filter_bank`, or of `learn_filters`, which then learns the
            filters from the training images (and `unlabelled` ones). "_nowhite" after a name leaves the whitening out.
        size, num: of the filters, if `bank` is a name; wavelets take size=None.
        bank_arguments: further ones of `filter_bank` or `learn_filters`.
        color: see `FilterBank.to_conv` and `learn_filters`.
        channels: 1 or 3 to turn all images into grey or RGB; as they come if None.
        threshold: of the rectification, in the unit of the responses: filters have unit norm, pixels lie in [0, 1].
        grid: side of the grid of cells.
        readout: "ridge", "logistic" or "svm".
        strengths: regularisation strengths of the read-out, on standardised features; the best is chosen on a held-out
            fifth of the training rows, then all rows are used.
        random_state: seed of the bank and of that split.
        batch_size: images convolved at a time. device: where.

    Attributes:
        classes_: the labels, sorted. bank_: the filters. strength_: the chosen one.
    """

    def __init__(
        self,
        bank: FilterBank | Tensor | str = "kmeans",
        *,
        size: int | None = 7,
        num: int | None = 32,
        bank_arguments: dict[str, Any] | None = None,
        color: str = "joint",
        channels: int | None = None,
        threshold: float | int = 0.5,
        grid: int = 3,
        readout: str = "ridge",
        strengths: Sequence[float | int] = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5),
        random_state: int = 0,
        batch_size: int = 256,
        device: str = "cpu",
    ):
        self.bank = bank
        self.size = size
        self.num = num
        self.bank_arguments = bank_arguments
        self.color = color
        self.channels = channels
        self.threshold = threshold
        self.grid = grid
        self.readout = readout
        self.strengths = strengths
        self.random_state = random_state
        self.batch_size = batch_size
        self.device = device

    def fit(self, X: Any, y: Any = None, unlabelled: Any = None) -> "FixedBankClassifier":
        """Learns the bank, if it is a method's, and the read-out.

        Args:
            X: images, see `to_images`; or `Examples`, which hold the labels too.
            y: (n,) labels of any type.
            unlabelled: more images of the same kind, from which filters are learned besides those of X.

        Raises:
            ValueError: if an option is unknown, shapes do not fit, or there is one class.
        """
        if self.readout not in READOUTS:
            raise ValueError(f"readout must be one of {', '.join(READOUTS)}, got {self.readout!r}")
        if not self.strengths or min(self.strengths) <= 0:
            raise ValueError(f"strengths must be positive, got {self.strengths}")
        images, labels = labelled_images(X, y, self.channels)
        self.classes_ = np.unique(labels)
        if len(self.classes_) < 2:
            raise ValueError(f"y must hold at least two classes, got {self.classes_.tolist()}")
        pool = images
        if unlabelled is not None:
            pool = torch.cat([images, to_images(unlabelled, self.channels)])
        self.bank_ = make_bank(
            self.bank, pool, size=self.size, num=self.num, seed=self.random_state, color=self.color,
            **(self.bank_arguments or {}),
        )  # fmt: skip
        self._shape = tuple(images.shape[1:])
        features = self._features(images)
        self.strength_ = self._chosen(features, labels)
        self.readout_ = self._readout(self.strength_).fit(features, labels)
        self.n_features_in_ = features.shape[1]
        return self

    def transform(self, X: Any) -> np.ndarray:
        """(n, 2 * filters * grid^2) features, not yet standardised."""
        check_is_fitted(self)
        images = to_images(X, self.channels)
        if tuple(images.shape[1:]) != self._shape:
            raise ValueError(f"images must have shape {self._shape}, as in fit, got {tuple(images.shape[1:])}")
        return self._features(images)

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores of the classes: (n, classes), or (n,) for two."""
        return self.readout_.decision_function(self.transform(X))

    def predict(self, X: Any) -> np.ndarray:
        """(n,) labels."""
        return self.readout_.predict(self.transform(X))

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Accuracy; X may be `Examples`."""
        images, labels = labelled_images(X, y, self.channels)
        return float(np.average(self.predict(images) == labels, weights=sample_weight))

    def _features(self, images: Tensor) -> np.ndarray:
        return rectified_features(
            images.to(self.device), self.bank_, threshold=self.threshold, grid=self.grid, color=self.color,
            batch_size=self.batch_size,
        ).double().cpu().numpy()  # fmt: skip

    def _readout(self, strength: float | int) -> Any:
        if self.readout == "ridge":
            model: Any = RidgeClassifier(alpha=strength)
        elif self.readout == "logistic":
            model = LogisticRegression(C=1 / strength, max_iter=1000)
        else:
            model = LinearSVC(C=1 / strength, dual="auto", max_iter=5000, random_state=self.random_state)
        return make_pipeline(StandardScaler(), model)

    def _chosen(self, features: np.ndarray, labels: np.ndarray) -> float:
        if len(self.strengths) == 1:
            return float(self.strengths[0])
        counts = np.unique(labels, return_counts=True)[1]
        held = max(round(len(labels) / 5), len(counts))
        if counts.min() < 2 or len(labels) - held < len(counts):
            return float(np.median(self.strengths))  # too few labels to hold any out
        split = train_test_split(features, labels, test_size=held, stratify=labels, random_state=self.random_state)
        train_x, val_x, train_y, val_y = split
        scores = [self._readout(strength).fit(train_x, train_y).score(val_x, val_y) for strength in self.strengths]
        best = max(scores)
        return float(max(strength for strength, score in zip(self.strengths, scores) if score == best))


def labelled_images(X: Any, y: Any, channels: int | None) -> tuple[Tensor, np.ndarray]:
    """Images and their labels out of (X, y), or of `Examples` alone.

    Raises:
        ValueError: if labels are missing or of another number than the images.
    """
    if y is None:
        y = getattr(X, "targets", None)
        if y is None:
            raise ValueError("give labels y, or Examples, which hold them")
    images, labels = to_images(X, channels), np.asarray(y)
    if labels.shape != (len(images),):
        raise ValueError(f"y must have shape ({len(images)},), one label per image, got {labels.shape}")
    return images, labels
