"""The whole system as one estimator: find the face from tags, describe it, decide."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from etude.data.kinds import Examples, ImageData
from etude.loop import seeded
from etude.vision.face_attributes.anet import ANet
from etude.vision.face_attributes.boxes import choose_threshold
from etude.vision.face_attributes.localization import CascadedLocalizer, LNet
from etude.vision.face_attributes.pictures import convert_images, multi_patch
from etude.vision.face_attributes.svm import AttributeSVM, balanced_accuracy_per_attribute
from etude.vision.face_attributes.training import binary_tags, pretrain_identities, train_tags

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise ImportError('FaceAttributeClassifier needs scikit-learn: pip install "etude[run]"') from error

__all__ = ["FaceAttributeClassifier"]


class FaceAttributeClassifier(ClassifierMixin, BaseEstimator):
    """LNet, ANet and linear SVMs on pictures with tags; no box is asked for anywhere.

        classifier = FaceAttributeClassifier(random_state=0).fit(images, tags)
        classifier.predict(others)            # (n, attributes), 0 or 1
        classifier.localize(others)           # where it looked, (n, 4)

    Tags of shape (n, attributes) give answers of that shape. Labels of shape (n,), two or more classes, give labels:
    each class is a tag then, and the largest decision wins. An `ImageData` (an image folder, an `.npz` archive) is
    fitted by its train split.

    Args:
        search: learn where to look; False takes the pictures as they are, for aligned ones.
        cascade: a second localiser in the first one's region.
        crop_size: side of the crops that ANet sees, at least 12.
        local: filters of ANet's third layer by the part of the face.
        feature_dim: of ANet.
        crops, scales: patches whose features are joined, see `multi_patch`; `crops=1, scales=(1.0,)` for one.
        epochs: of the localisers and of ANet.
        identity_epochs: of the pre-training, where `fit` gets identities.
        lr: largest rate of all of them.
        batch_size: of all of them.
        pca, C: of the SVMs.
        random_state: seed.
        device: where to train.

    Attributes:
        classes_: the labels, or [0, 1] for tags.
        lnet_, anet_, svm_: the parts; `localizer_` joins the localisers. lnet_ and localizer_ are None without
            `search`.
    """

    def __init__(
        self,
        *,
        search: bool = True,
        cascade: bool = False,
        crop_size: int = 24,
        local: bool = True,
        feature_dim: int = 96,
        crops: int = 5,
        scales: tuple[float, ...] = (1.0, 1.15),
        epochs: int = 8,
        identity_epochs: int = 8,
        lr: float | int = 4e-3,
        batch_size: int = 50,
        pca: float | int | None = 0.95,
        C: float | int | str = "cv",
        random_state: int | None = None,
        device: str = "cpu",
    ):
        self.search = search
        self.cascade = cascade
        self.crop_size = crop_size
        self.local = local
        self.feature_dim = feature_dim
        self.crops = crops
        self.scales = scales
        self.epochs = epochs
        self.identity_epochs = identity_epochs
        self.lr = lr
        self.batch_size = batch_size
        self.pca = pca
        self.C = C
        self.random_state = random_state
        self.device = device

    def fit(self, X: Any, y: Any = None, identities: Any = None) -> "FaceAttributeClassifier":
        """Learns from pictures and their tags.

        Args:
            X: pictures as `convert_images` takes them; or, alone, an `ImageData`.
            y: tags (n, attributes) of 0 and 1 or -1 and 1, or labels (n,).
            identities: (n,), who is in each picture; pre-trains ANet.

        Raises:
            ValueError: if the numbers of rows differ, tags or labels are not as described, or the pictures are too
                small to look for a face in.
        """
        if isinstance(X, ImageData):
            if not isinstance(X.train, Examples):
                raise ValueError("fit takes ImageData in memory; train the parts on a dataset with train_tags")
            X, y = X.train.inputs, X.train.targets
        if y is None:
            raise ValueError("fit needs y: tags (n, attributes), or labels (n,)")
        self._channels = 1 if np.ndim(X) == 3 or _grey(X) else 3
        images = convert_images(X, self._channels)
        tags = self._tags_of(y)
        if len(tags) != len(images):
            raise ValueError(f"there are {len(images)} pictures and {len(tags)} rows of tags")
        if self.crop_size < 12:
            raise ValueError(f"crop_size must be at least 12, got {self.crop_size}")
        if identities is not None and len(identities) != len(images):
            raise ValueError(f"there are {len(images)} pictures and {len(identities)} identities")
        self.n_features_in_ = images.shape[1:].numel()
        seed = np.random.randint(2**31) if self.random_state is None else self.random_state
        with seeded(seed):
            self._fit(images, tags, identities, torch.Generator().manual_seed(seed))
        return self

    def _tags_of(self, y: Any) -> Tensor:
        values = y.numpy() if isinstance(y, Tensor) else np.asarray(y)
        self._labelled = values.ndim == 1
        if not self._labelled:
            self.classes_ = np.array([0, 1])
            return binary_tags(values)
        self.classes_, codes = np.unique(values, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"labels must hold two classes or more, got {self.classes_.tolist()}")
        if len(self.classes_) == 2:
            return torch.from_numpy(codes)[:, None]
        return torch.nn.functional.one_hot(torch.from_numpy(codes), len(self.classes_))

    def _fit(self, images: Tensor, tags: Tensor, identities: Any, generator: torch.Generator) -> None:
        plan: dict[str, Any] = {
            "epochs": self.epochs, "lr": self.lr, "batch_size": self.batch_size, "generator": generator,
            "flips": generator, "device": self.device,
        }  # fmt: skip
        self.lnet_, self.localizer_ = None, None
        if self.search:
            self.lnet_ = LNet(tags.shape[1], backbone="small", in_channels=self._channels)
            train_tags(self.lnet_, (images, tags), **plan)
            tau = choose_threshold(self.lnet_.responses(images[:200]))
            self.localizer_ = CascadedLocalizer(self.lnet_, crop_size=48, tau=(tau, tau))
            if self.cascade:
                second = LNet(tags.shape[1], backbone="small", in_channels=self._channels)
                train_tags(second, (self.localizer_.crops(images)[0], tags), **plan)
                inner = choose_threshold(second.responses(self.localizer_.crops(images[:200])[0]))
                self.localizer_ = CascadedLocalizer(self.lnet_, second, crop_size=48, tau=(tau, inner))
        patches = self._patches(images)
        outputs = tags.shape[1]
        who = None
        if identities is not None:
            who = torch.from_numpy(np.unique(np.asarray(identities), return_inverse=True)[1]).long()
            outputs = int(who.max()) + 1
        self.anet_ = ANet(
            outputs, feature_dim=self.feature_dim, local=self.local, in_channels=self._channels, size=self.crop_size,
            widths=(20, 32, 40), shared_pools=1,
        )  # fmt: skip
        if who is not None:
            pretrain_identities(
                self.anet_, patches[:, 0], who, epochs=self.identity_epochs,
                similarity_epochs=-(-self.identity_epochs // 2), batch_size=self.batch_size, generator=generator,
                flips=generator, device=self.device,
            )  # fmt: skip
            self.anet_.replace_head(tags.shape[1])
        train_tags(self.anet_, (patches[:, 0], tags), **plan)
        self.svm_ = AttributeSVM(self.pca, self.C).fit(self._features(patches), tags)

    def _patches(self, images: Tensor) -> Tensor:
        boxes = self._boxes(images)
        return multi_patch(images, boxes, self.crop_size, crops=self.crops, scales=self.scales)

    def _boxes(self, images: Tensor) -> Tensor:
        if self.localizer_ is not None:
            return self.localizer_(images)[0]
        whole = images.new_tensor([0.0, 0.0, images.shape[3], images.shape[2]])
        return whole.expand(len(images), -1)

    def _features(self, patches: Tensor) -> Tensor:
        return self.anet_.extract(patches.flatten(0, 1)).unflatten(0, patches.shape[:2]).flatten(1)

    def _images(self, X: Any) -> Tensor:
        check_is_fitted(self, "svm_")
        return convert_images(X, self._channels)

    def localize(self, X: Any) -> np.ndarray:
        """(n, 4): left, top, right, bottom of where it looks, in pixels."""
        return self._boxes(self._images(X)).numpy()

    def transform(self, X: Any) -> np.ndarray:
        """(n, features): ANet's features of all patches, joined."""
        return self._features(self._patches(self._images(X))).numpy()

    def decision_function(self, X: Any) -> np.ndarray:
        """(n, attributes), or (n, classes) for labels of three classes or more, (n,) for labels of two."""
        found = self.svm_.decision_function(self.transform(X))
        return found[:, 0] if self._labelled and len(self.classes_) == 2 else found

    def predict(self, X: Any) -> np.ndarray:
        """Tags (n, attributes), or labels (n,)."""
        decisions = self.decision_function(X)
        if not self._labelled:
            return (decisions > 0).astype(np.int64)
        chosen = (decisions > 0).astype(int) if decisions.ndim == 1 else decisions.argmax(1)
        return self.classes_[chosen]

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:  # type: ignore[override]
        """Mean balanced accuracy of the tags, or accuracy of the labels; of an `ImageData`, on its test split."""
        if isinstance(X, ImageData):
            if not isinstance(X.test, Examples):
                raise ValueError("score takes ImageData in memory")
            X, y = X.test.inputs, X.test.targets
        if self._labelled:
            truth = y.numpy() if isinstance(y, Tensor) else np.asarray(y)
            return float(np.average(self.predict(X) == truth, weights=sample_weight))
        return float(np.nanmean(balanced_accuracy_per_attribute(self.predict(X), y)))


def _grey(X: Any) -> bool:
    """Whether pictures of four axes have no colour."""
    shape = tuple(np.shape(X))
    if len(shape) != 4:
        return False
    channels = shape[1] if shape[1] in (1, 2, 3, 4) else shape[3]
    return channels in (1, 2)
