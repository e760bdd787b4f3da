"""What the classifiers of images with scikit-learn's interface have in common: pixels in, training, classes out."""

import abc
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.data.kinds import Examples
from etude.loop import cosine_schedule, fit, outputs_of
from etude.vision.pixels import to_images

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise ImportError('classifiers of images need scikit-learn: pip install "etude[run]"') from error

__all__ = ["ImageClassifier"]


class ImageClassifier(ClassifierMixin, BaseEstimator, abc.ABC):
    """Trains a network on images by AdamW: a linear warm-up, then a cosine to zero, gradients clipped at norm 1.

    A subclass says in `_network` what is trained. Its constructor sets, by scikit-learn's rule, an attribute for each
    argument: `epochs`, `batch_size`, `lr`, `random_state` and `device` are needed; `weight_decay` (0),
    `label_smoothing` (0), `channels` (those of the training images) and `transform` (of training batches) may be.

    Images come in any form that `to_images` takes. Channels are standardised over the training images. With a
    `random_state` a fit gives the same weights again, and the global random state is left alone.

    Attributes:
        classes_: the labels, sorted.
        model_: the trained network, which takes standardised images.
        losses_: training loss of every update.
    """

    epochs: int
    batch_size: int
    lr: float | int
    random_state: int | None
    device: str
    _warmup = 0.1
    """Share of the updates in which the rate rises."""

    @abc.abstractmethod
    def _network(self, in_chans: int, num_classes: int, size: tuple[int, int]) -> nn.Module:
        """A new network for images of that height and width, which maps them to logits."""

    def _parameters(self, model: nn.Module) -> Any:
        """What the optimizer is given: parameters, or groups of them."""
        return model.parameters()

    def _arranged(self, x: Tensor) -> Tensor:
        """Standardised images as the network wants them; padded, say."""
        return x

    def fit(self, X: Any, y: Any) -> Any:
        """Trains on images, in any form that `to_images` takes, and (n,) labels of any type.

        Raises:
            ValueError: if images and labels differ in number or there are fewer than two classes; as `to_images`.
        """
        x = to_images(X, getattr(self, "channels", None))
        labels = np.asarray(y)
        if labels.shape != (len(x),):
            raise ValueError(f"y must have shape ({len(x)},), one label per image, got {labels.shape}")
        self.classes_, codes = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y must hold at least two classes, got {self.classes_.tolist()}")
        std, self.mean_ = torch.std_mean(x, dim=(0, 2, 3), keepdim=True, correction=0)
        self.std_ = torch.where(std > 0, std, torch.ones_like(std))
        self.image_shape_ = tuple(x.shape[1:])
        x = self._prepared(x)
        targets = torch.from_numpy(codes.astype(np.int64)).to(x.device)
        steps = max(1, self.epochs * (len(x) // min(self.batch_size, len(x))))
        with torch.random.fork_rng(enabled=self.random_state is not None):
            if self.random_state is not None:
                torch.manual_seed(self.random_state)
            model = self._network(x.shape[1], len(self.classes_), (x.shape[2], x.shape[3])).to(self.device)
            decay = getattr(self, "weight_decay", 0.0)
            optimizer = torch.optim.AdamW(self._parameters(model), lr=self.lr, weight_decay=decay)
            self.losses_ = fit(
                model, Examples(x, targets), optimizer, steps=steps, batch_size=self.batch_size, clip=1.0,
                loss=partial(F.cross_entropy, label_smoothing=getattr(self, "label_smoothing", 0.0)),
                schedule=cosine_schedule(optimizer, steps, warmup=int(self._warmup * steps)),
                generator=torch.Generator().manual_seed(int(torch.randint(2**62, ()))),
                transform=getattr(self, "transform", None),
            ).losses  # fmt: skip
        self.model_ = model
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """(n, classes) probabilities, in the order of `classes_`.

        Raises:
            ValueError: if the images have another size than those of `fit`; as `to_images`.
        """
        check_is_fitted(self, "model_")
        x = to_images(X, self.image_shape_[0])
        if tuple(x.shape[1:]) != self.image_shape_:
            raise ValueError(f"images must have shape {self.image_shape_}, as in fit, got {tuple(x.shape[1:])}")
        scores, _ = outputs_of(self.model_, Examples(self._prepared(x), torch.zeros(len(x))))
        return scores.softmax(dim=1).cpu().numpy()

    def predict(self, X: Any) -> np.ndarray:
        """(n,) labels."""
        likeliest = self.predict_proba(X).argmax(axis=1)
        return self.classes_[likeliest]

    def _prepared(self, x: Tensor) -> Tensor:
        return self._arranged((x - self.mean_) / self.std_).to(self.device)
