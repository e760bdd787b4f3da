"""PCANet as a scikit-learn estimator.

Chan, Jia, Gao, Lu, Zeng & Ma, "PCANet: A Simple Deep Learning Baseline for Image Classification?", arXiv:1404.3606.
The L1 leading eigenvectors of mean-free patches filter an image; the L2 leading ones of those maps' patches filter
each map; the signs of the L2 outputs are the bits of a number, and histograms of that number over blocks are the
features of a linear classifier.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from etude.vision.filters.bank import FilterBank
from etude.vision.filters.estimator import labelled_images
from etude.vision.filters.learning import learn_from_patches
from etude.vision.filters.patches import sample_patches
from etude.vision.pixels import to_images

try:
    import scipy.sparse
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.svm import LinearSVC
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise ImportError('PCANetClassifier needs scikit-learn: pip install "etude[run]"') from error

__all__ = ["PCANetClassifier"]


class PCANetClassifier(ClassifierMixin, BaseEstimator):
    """Two stages of PCA filters, hashing, block histograms and a linear SVM.

        classifier = PCANetClassifier(num=(8, 6)).fit(images, labels)

    Patches are drawn, not unfolded, and contrast is not divided out of them: only their means are removed, as in the
    paper.

    Args:
        size: side of the filters, odd, so that maps keep the images' size.
        num: filters of the first and of the second stage; the second's are at most 12, for 2^12 bins.
        block: side of the histogram blocks in pixels. overlap: share of a block that its neighbour shares, [0, 1).
        patches: drawn at each stage.
        strength: the SVM's regularisation, 1 / C.
        channels: 1 or 3 to turn all images into grey or RGB; as they come if None.
        random_state: seed of the draws.
        batch_size: images at a time.

    Attributes:
        classes_: the labels, sorted. banks_: the two banks.
    """

    def __init__(
        self,
        *,
        size: int = 7,
        num: tuple[int, int] = (8, 8),
        block: int = 7,
        overlap: float | int = 0.5,
        patches: int = 20_000,
        strength: float | int = 1.0,
        channels: int | None = None,
        random_state: int = 0,
        batch_size: int = 64,
    ):
        self.size = size
        self.num = num
        self.block = block
        self.overlap = overlap
        self.patches = patches
        self.strength = strength
        self.channels = channels
        self.random_state = random_state
        self.batch_size = batch_size

    def fit(self, X: Any, y: Any = None) -> "PCANetClassifier":
        """Finds the filters and trains the SVM.

        Args:
            X: images, see `to_images`; or `Examples`, which hold the labels too.
            y: (n,) labels of any type.

        Raises:
            ValueError: if an option is out of range, the images are smaller than a block, or there is one class.
        """
        if self.size < 3 or self.size % 2 == 0:
            raise ValueError(f"size must be odd and at least 3, got {self.size}")
        if not 1 <= self.num[1] <= 12 or self.num[0] < 1:
            raise ValueError(f"num must be (at least 1, 1 to 12), got {self.num}")
        if not 0 <= self.overlap < 1 or not self.strength > 0:
            raise ValueError(
                f"overlap must lie in [0, 1) and strength be positive, got {self.overlap} and {self.strength}"
            )
        images, labels = labelled_images(X, y, self.channels)
        if min(images.shape[2:]) < max(self.block, self.size):
            raise ValueError(
                f"images of {tuple(images.shape[2:])} are smaller than a block of {self.block} or a filter of "
                f"{self.size}"
            )
        self.classes_ = np.unique(labels)
        if len(self.classes_) < 2:
            raise ValueError(f"y must hold at least two classes, got {self.classes_.tolist()}")
        generator = torch.Generator().manual_seed(self.random_state)
        first = self._stage(images, self.num[0], generator)
        # A tenth of the images, a thousand at least, is enough to draw the second stage's patches from.
        some = torch.randperm(len(images), generator=generator)[: max(1000, len(images) // 10)]
        second = self._stage(_filtered(images[some], first).flatten(0, 1)[:, None], self.num[1], generator)
        self.banks_ = first, second
        self._shape = tuple(images.shape[1:])
        self.svm_ = LinearSVC(C=1 / self.strength, dual="auto", random_state=self.random_state).fit(
            self.transform(images), labels
        )
        return self

    def _stage(self, maps: Tensor, num: int, generator: torch.Generator) -> FilterBank:
        drawn = sample_patches(maps, self.size, self.patches, min_std=1e-6, generator=generator)
        scale = drawn.flatten(1).std(dim=1).mean()
        # A large eps leaves the patches' contrast as it is, up to one factor for all.
        return learn_from_patches(drawn, "pca", num, eps=float(1e6 * scale), generator=generator)

    def transform(self, X: Any) -> Any:
        """Block histograms as a sparse matrix (n, num[0] * blocks * 2^num[1])."""
        check_is_fitted(self, "banks_")
        images = to_images(X, self.channels)
        if tuple(images.shape[1:]) != self._shape:
            raise ValueError(f"images must have shape {self._shape}, as in fit, got {tuple(images.shape[1:])}")
        return scipy.sparse.vstack([self._histograms(batch) for batch in images.split(self.batch_size)]).tocsr()

    @torch.no_grad()
    def _histograms(self, images: Tensor) -> Any:
        first, second = self.banks_
        maps = _filtered(images, first)
        bits = _filtered(maps.flatten(0, 1)[:, None], second) > 0
        weights = 2 ** torch.arange(len(second))
        codes = (bits * weights.view(1, -1, 1, 1)).sum(dim=1)  # (n * L1, height, width)
        step = max(1, round(self.block * (1 - self.overlap)))
        blocks = codes.unfold(1, self.block, step).unfold(2, self.block, step).flatten(3)
        bins = 2 ** len(second)
        # Cells are (map, block), in that order for every image; equal codes of a cell are counted together.
        cells = blocks.reshape(len(images), -1, blocks.shape[-1])
        column = cells + bins * torch.arange(cells.shape[1]).view(1, -1, 1)
        row = torch.arange(len(images)).view(-1, 1, 1).expand_as(column)
        shape = len(images), bins * cells.shape[1]
        ones = np.ones(column.numel(), dtype=np.float32)
        return scipy.sparse.coo_matrix((ones, (row.flatten().numpy(), column.flatten().numpy())), shape=shape).tocsr()

    def predict(self, X: Any) -> np.ndarray:
        """(n,) labels."""
        return self.svm_.predict(self.transform(X))

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores of the classes: (n, classes), or (n,) for two."""
        return self.svm_.decision_function(self.transform(X))

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Accuracy; X may be `Examples`."""
        images, labels = labelled_images(X, y, self.channels)
        return float(np.average(self.predict(images) == labels, weights=sample_weight))


def _filtered(images: Tensor, bank: FilterBank) -> Tensor:
    return F.conv2d(images, bank.weight.to(images), padding=bank.size[0] // 2)
