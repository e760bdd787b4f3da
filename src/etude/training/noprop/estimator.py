"""NoProp as a scikit-learn estimator of images."""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from etude.data.kinds import Examples
from etude.training.noprop.block import NoPropBlock
from etude.training.noprop.continuous import NoPropCT, NoPropFM
from etude.training.noprop.discrete import NoPropDT
from etude.training.noprop.embedding import LabelEmbedding
from etude.training.noprop.training import (
    Minibatches,
    NoPropModel,
    block_optimizers,
    predict_in_batches,
    train_noprop_epoch,
)

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise ImportError('NoPropClassifier needs scikit-learn: pip install "etude[run]"') from error

__all__ = ["NoPropClassifier"]

_VARIANTS = ("dt", "ct", "fm")


class NoPropClassifier(ClassifierMixin, BaseEstimator):
    """Classifies images by blocks trained without end-to-end backpropagation.

        classifier = NoPropClassifier(epochs=20, random_state=0).fit(images, labels)
        labels = classifier.predict(images)

    Args:
        variant: "dt" (a chain of blocks), "ct" (continuous time, learned schedule) or "fm" (flow matching).
        embedding: "one_hot", "learned" or "prototype"; see `LabelEmbedding`.
        embed_dim: of learned embeddings; 20 if None.
        num_blocks: T of "dt".
        num_steps: of inference by "ct" and "fm"; 1000 if None.
        eta: weight of the denoising term of "dt" (0.1 if None) and "ct" (1 if None); "fm" has none.
        hidden, channels, dropout: of the blocks; see `NoPropBlock`. The defaults are the paper's.
        epochs, batch_size, lr, weight_decay: of training: AdamW for "dt", Adam for the others.
        order: of the blocks of "dt"; see `train_noprop_epoch`.
        random_state: seed of weights, orders, noise and dropout, and of the noise of every prediction, which hence
            repeats; torch's global generator, and noise new at each prediction, if None.
        device: where to train, such as "cpu" or "cuda".

    Attributes:
        classes_: the labels, sorted.
        model_: the trained model.
        history_: the mean terms of the loss, a dict an epoch.
    """

    def __init__(
        self,
        variant: str = "dt",
        *,
        embedding: str = "one_hot",
        embed_dim: int | None = None,
        num_blocks: int = 10,
        num_steps: int | None = None,
        eta: float | None = None,
        hidden: int = 256,
        channels: tuple[int, ...] = (32, 64, 128),
        dropout: float = 0.2,
        epochs: int = 100,
        batch_size: int = 128,
        lr: float = 1e-3,
        weight_decay: float = 1e-3,
        order: str = "sequential",
        random_state: int | None = None,
        device: str = "cpu",
    ):
        self.variant = variant
        self.embedding = embedding
        self.embed_dim = embed_dim
        self.num_blocks = num_blocks
        self.num_steps = num_steps
        self.eta = eta
        self.hidden = hidden
        self.channels = channels
        self.dropout = dropout
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.order = order
        self.random_state = random_state
        self.device = device

    def fit(self, X: Any, y: Any) -> "NoPropClassifier":
        """Trains on images.

        Args:
            X: (n, channels, height, width), or (n, height, width) for grey ones; an array or a tensor of numbers.
            y: (n,) labels of any type.

        Raises:
            ValueError: if the variant is unknown, a shape does not fit, pixels are not finite, or there is one class.
        """
        if self.variant not in _VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(_VARIANTS)}, got {self.variant!r}")
        x = self._images(X)
        labels = np.asarray(y)
        if labels.shape != (len(x),):
            raise ValueError(f"y must have shape ({len(x)},), one label per image, got {labels.shape}")
        self.classes_, codes = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y must hold at least two classes, got {self.classes_.tolist()}")
        train = Examples(x, torch.from_numpy(codes.astype(np.int64)).to(self.device))
        with torch.random.fork_rng(enabled=self.random_state is not None):
            if self.random_state is not None:
                torch.manual_seed(self.random_state)
            model = self._model(train).to(self.device)
            kind = torch.optim.AdamW if self.variant == "dt" else torch.optim.Adam
            optimizers = block_optimizers(model, partial(kind, lr=self.lr, weight_decay=self.weight_decay))
            batches = Minibatches(train, self.batch_size)
            self.history_ = [train_noprop_epoch(model, batches, optimizers, self.order) for _ in range(self.epochs)]
        self.model_, self._image_shape = model, tuple(x.shape[1:])
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """(n, classes) probabilities after one run of the denoising chain."""
        check_is_fitted(self)
        x = self._images(X)
        if x.shape[1:] != self._image_shape:
            raise ValueError(f"images must have shape {self._image_shape}, as in fit, got {tuple(x.shape[1:])}")
        generator = None if self.random_state is None else torch.Generator().manual_seed(self.random_state)
        steps = None if self.variant == "dt" else self.num_steps

        def probabilities(part: Tensor) -> Tensor:
            return self.model_.predict_proba(part, num_steps=steps, generator=generator)

        return predict_in_batches(probabilities, x, 512).cpu().numpy()

    def predict(self, X: Any) -> np.ndarray:
        """(n,) labels."""
        return self.classes_[self.predict_proba(X).argmax(axis=1)]

    def _model(self, train: Examples) -> NoPropModel:
        channels, height, width = train.inputs.shape[1:]
        classes = len(self.classes_)
        dims = {"prototype": channels * height * width, "one_hot": None}
        embedding = LabelEmbedding(classes, dims.get(self.embedding, self.embed_dim), self.embedding)
        if self.embedding == "prototype":
            embedding.init_prototypes(train.inputs.cpu(), train.targets.cpu())

        def block(time_embed: int | None = None) -> NoPropBlock:
            return NoPropBlock(
                channels, (height, width), classes, embedding.dim, hidden=self.hidden, time_embed=time_embed,
                channels=self.channels, dropout=self.dropout,
            )  # fmt: skip

        if self.variant == "dt":
            eta = 0.1 if self.eta is None else self.eta
            return NoPropDT([block() for _ in range(self.num_blocks)], embedding, eta=eta)
        if self.variant == "ct":
            return NoPropCT(block(64), embedding, eta=1.0 if self.eta is None else self.eta)
        return NoPropFM(block(64), embedding)

    def _images(self, X: Any) -> Tensor:
        x = (X if isinstance(X, Tensor) else torch.from_numpy(np.asarray(X))).to(self.device, torch.float32)
        if x.ndim == 3:
            x = x[:, None]
        if x.ndim != 4:
            raise ValueError(
                f"X must have shape (n, channels, height, width) or (n, height, width), got {tuple(x.shape)}"
            )
        bad = int((~torch.isfinite(x)).sum())
        if bad:
            raise ValueError(f"X holds NaN or infinite values, {bad} of them")
        return x
