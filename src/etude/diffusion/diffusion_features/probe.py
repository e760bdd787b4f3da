"""A classifier on a frozen diffusion model's features, as a scikit-learn estimator, and the choice of where to read.

The logistic head is scikit-learn's on pooled features, standardised by the training rows; each row is a mean over
draws of the noise. The other heads are trained as in the paper: plain SGD, the learning rate a tenth after each
quarter of the epochs (7 of 28), batches of 128, cross-entropy, fresh noise in every batch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from etude.data.kinds import Examples
from etude.diffusion.diffusion_features.features import DiffusionFeatures, Place
from etude.diffusion.diffusion_features.heads import AttentionHead, ConvHead, LinearHead, MLPHead
from etude.loop import fit
from etude.loop.evaluation import device_of, mode

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import check_cv
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise ImportError('DiffusionProbe needs scikit-learn: pip install "etude[run]"') from error

__all__ = ["DiffusionProbe", "PlaceTable", "ProbedHead", "logistic_probe", "select_block_timestep"]

HEADS = ("logistic", "linear", "mlp", "conv", "attention")
_BATCH = 128
_RATES = {"attention": 5e-2}
_RATE = 1e-2


def logistic_probe(C: float | int = 1.0) -> Any:
    """L2 logistic regression on features standardised by the rows it is fitted on, an unfitted pipeline."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=2000))


class ProbedHead(nn.Module):
    """A head on one place of `features`, which get no gradients and fresh noise at every call.

    Raises:
        ValueError: if the features are of several places.
    """

    def __init__(self, features: DiffusionFeatures, head: nn.Module):
        super().__init__()
        if len(features.places) > 1:
            raise ValueError(f"the head {type(head).__name__} reads one block at one timestep, got {features.places}")
        self.features, self.head = features, head

    def forward(self, x: Tensor) -> Tensor:
        (maps,) = self.features(x).values()
        return self.head(maps)


class DiffusionProbe(ClassifierMixin, BaseEstimator):
    """Classifies images by a frozen diffusion model's features.

        features = DiffusionFeatures(unet, DDPMScheduler(), blocks=[8], timesteps=[50])
        probe = DiffusionProbe(features, noise_samples=4, random_state=0).fit(images, labels)
        probe.score(test_images, test_labels)

    Several blocks or timesteps are concatenated by the logistic head; the other heads take one.

    Args:
        features: where the model is read.
        head: "logistic", "linear", "mlp", "conv", "attention", or a head of your own on (batch, channels, height,
            width), trained further as it is.
        pool: side of the grid of cells that maps are averaged over; the attention head takes its own.
        C: inverse strength of the logistic head's penalty.
        lr: of SGD; 5e-2 for the attention head and 1e-2 for the others if None.
        epochs: of SGD.
        noise_samples: draws of the noise averaged over: features for the logistic head, in fitting and use; for the
            others probabilities in use.
        batch_size: images run through the model at a time, and of SGD.
        random_state: seed of the head, the order and the noise, so that `predict` repeats itself; None leaves the
            noise to the generator of `features`.

    Attributes:
        classes_: the labels, sorted. head_: the fitted pipeline, or module. losses_: of SGD.
    """

    def __init__(
        self,
        features: DiffusionFeatures,
        head: str | nn.Module = "logistic",
        *,
        pool: int = 2,
        C: float | int = 1.0,
        lr: float | int | None = None,
        epochs: int = 28,
        noise_samples: int = 1,
        batch_size: int = _BATCH,
        random_state: int | None = None,
    ):
        self.features = features
        self.head = head
        self.pool = pool
        self.C = C
        self.lr = lr
        self.epochs = epochs
        self.noise_samples = noise_samples
        self.batch_size = batch_size
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> "DiffusionProbe":
        """Trains the head.

        Args:
            X: images in [-1, 1], (n, channels, height, width); see `to_signed`.
            y: (n,) labels of any type.

        Raises:
            ValueError: if an option is unknown, shapes do not fit, there is one class, or a head of your own has
                another number of classes.
        """
        if isinstance(self.head, str) and self.head not in HEADS:
            raise ValueError(f"head must be one of {', '.join(HEADS)}, or a module, got {self.head!r}")
        images, labels = _images(X), np.asarray(y)
        if labels.shape != (len(images),):
            raise ValueError(f"y must have shape ({len(images)},), one label per image, got {labels.shape}")
        self.classes_, targets = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y must hold at least two classes, got {self.classes_.tolist()}")
        self._shape = tuple(images.shape[1:])
        if self.head == "logistic":
            rows = self._rows(images, self._seeded(0))
            self.head_ = logistic_probe(self.C).fit(rows, labels)
            self.n_features_in_ = rows.shape[1]
        else:
            self._train(images, torch.from_numpy(targets.astype(np.int64)))
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """(n, classes) probabilities."""
        check_is_fitted(self, "head_")
        images = _images(X)
        if tuple(images.shape[1:]) != self._shape:
            raise ValueError(f"images must have shape {self._shape}, as in fit, got {tuple(images.shape[1:])}")
        features = self._seeded(1)
        if not isinstance(self.head_, nn.Module):
            return self.head_.predict_proba(self._rows(images, features))
        total = np.zeros((len(images), len(self.classes_)))
        model = ProbedHead(features, self.head_)
        with torch.no_grad(), mode(model, training=False):
            for _ in range(self.noise_samples):
                logits = torch.cat([model(batch.to(device_of(model))).cpu() for batch in images.split(self.batch_size)])
                total += torch.softmax(logits.double(), dim=1).numpy()
        return total / self.noise_samples

    def predict(self, X: Any) -> np.ndarray:
        """(n,) labels."""
        return self.classes_[self.predict_proba(X).argmax(axis=1)]

    def _rows(self, images: Tensor, features: DiffusionFeatures) -> np.ndarray:
        """(n, channels x cells of all places) pooled features, float64."""
        found = features.over(pool=self.pool).extract(
            images, noise_samples=self.noise_samples, batch_size=self.batch_size
        )
        return torch.cat([maps.flatten(1) for maps in found.values()], dim=1).double().numpy()

    def _seeded(self, use: int) -> DiffusionFeatures:
        """The features with noise of their own for fitting (0) or use (1)."""
        features = self.features.over()
        if self.random_state is not None:
            seed = int(np.random.SeedSequence([self.random_state, use]).generate_state(1)[0])
            features.generator = torch.Generator().manual_seed(seed)
        return features

    def _train(self, images: Tensor, targets: Tensor) -> None:
        features = self._seeded(0)
        if len(features.places) > 1:
            raise ValueError(f"the head {self.head!r} reads one block at one timestep, got {features.places}")
        features.check(images)
        device = device_of(features.unet)
        with torch.random.fork_rng(devices=[]):
            if self.random_state is not None:
                torch.manual_seed(self.random_state)
            self.head_ = self._made_head(features._read(images[:1])).to(device)
        wanted = getattr(self.head_, "num_classes", len(self.classes_))
        if wanted != len(self.classes_):
            raise ValueError(f"the head has {wanted} classes, y has {len(self.classes_)}")
        name = self.head if isinstance(self.head, str) else ""
        rate = _RATES.get(name, _RATE) if self.lr is None else self.lr
        optimizer = torch.optim.SGD(self.head_.parameters(), lr=rate)
        size = min(self.batch_size, len(images))
        quarter = max(1, self.epochs // 4) * (len(images) // size)
        self.losses_ = fit(
            ProbedHead(features, self.head_), Examples(images, targets), optimizer, epochs=self.epochs, batch_size=size,
            schedule=torch.optim.lr_scheduler.StepLR(optimizer, quarter, gamma=0.1),
            generator=torch.Generator().manual_seed(self.random_state or 0), device=device,
            find_unused_parameters=True,  # the frozen model's
        ).losses  # fmt: skip

    def _made_head(self, found: dict[Place, Tensor]) -> nn.Module:
        if isinstance(self.head, nn.Module):
            return self.head
        (maps,) = found.values()
        channels, height, width = maps.shape[1:]
        if height != width:
            raise ValueError(f"the head {self.head!r} takes square maps, got {height} x {width}")
        classes = len(self.classes_)
        if self.head == "attention":
            return AttentionHead(channels, height, classes)
        if self.head == "conv":
            return ConvHead(channels, height, classes)
        return {"linear": LinearHead, "mlp": MLPHead}[self.head](channels, height, classes, pool=self.pool)


def _images(X: Any) -> Tensor:
    x = torch.as_tensor(X)
    if x.ndim != 4 or not len(x):
        raise ValueError(f"images must have shape (n, channels, height, width) with n > 0, got {tuple(x.shape)}")
    return x if x.dtype == torch.uint8 else x.to(torch.float32)


@dataclass(frozen=True, eq=False)
class PlaceTable:
    """Validation accuracy at every timestep and block.

    Args:
        timesteps, blocks: the grid.
        accuracy: (timesteps, blocks), of the best strength.
        strength: (timesteps, blocks), the inverse penalty C that gave it.
    """

    timesteps: tuple[int, ...]
    blocks: tuple[int, ...]
    accuracy: np.ndarray
    strength: np.ndarray

    @property
    def best(self) -> Place:
        """(timestep, block) of the highest accuracy; the first of equals, less noise before more."""
        row, column = np.unravel_index(self.accuracy.argmax(), self.accuracy.shape)
        return self.timesteps[row], self.blocks[column]

    def at(self, timestep: int, block: int) -> tuple[float, float]:
        """Accuracy and strength there."""
        index = self.timesteps.index(timestep), self.blocks.index(block)
        return float(self.accuracy[index]), float(self.strength[index])


def select_block_timestep(
    features: DiffusionFeatures,
    X: Any,
    y: Any,
    blocks: Iterable[int],
    timesteps: Iterable[int],
    *,
    cv: Any = 5,
    pool: int = 2,
    Cs: Sequence[float | int] = (0.01, 0.1, 1.0),
    noise_samples: int = 1,
    batch_size: int = 256,
) -> PlaceTable:
    """Where to read: the accuracy of the logistic probe on held-out rows, over a grid of blocks and timesteps.

        table = select_block_timestep(features, images, labels, range(1, 14), (0, 20, 90, 300))
        t, block = table.best

    The features of all rows are taken once; never hand in test images here.

    Args:
        features: the model; its own blocks and timesteps do not matter.
        X, y: images in [-1, 1] and labels.
        blocks, timesteps: the grid.
        cv: folds, or a splitter of scikit-learn; or a pair (images, labels) to validate on, X and y then being
            trained on whole.
        pool: as for `DiffusionProbe`.
        Cs: inverse penalties tried at every place.
        noise_samples: draws of the noise, averaged.
        batch_size: images at a time.
    """
    reader = features.over(tuple(blocks), tuple(timesteps), pool)
    images, labels = _images(X), np.asarray(y)
    if isinstance(cv, tuple) and len(cv) == 2 and getattr(cv[0], "ndim", 0) == 4:
        held, held_labels = _images(cv[0]), np.asarray(cv[1])
        splits = [(np.arange(len(images)), len(images) + np.arange(len(held)))]
        images, labels = torch.cat([images, held]), np.concatenate([labels, held_labels])
    else:
        splits = list(check_cv(cv, labels, classifier=True).split(np.zeros((len(labels), 1)), labels))
    found = reader.extract(images, noise_samples=noise_samples, batch_size=batch_size)
    shape = (len(reader.timesteps), len(reader.blocks))
    accuracy, strength = np.zeros(shape), np.zeros(shape)
    for index, maps in zip(np.ndindex(shape), found.values()):
        rows = maps.flatten(1).double().numpy()
        scores = [
            np.mean([logistic_probe(C).fit(rows[a], labels[a]).score(rows[b], labels[b]) for a, b in splits])
            for C in Cs
        ]
        accuracy[index], strength[index] = max(scores), Cs[int(np.argmax(scores))]
    return PlaceTable(reader.timesteps, reader.blocks, accuracy, strength)
