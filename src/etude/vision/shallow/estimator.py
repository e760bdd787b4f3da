"""Both layouts as a scikit-learn classifier of images."""

from typing import Any

from torch import nn

from etude.vision.classifier import ImageClassifier
from etude.vision.shallow.network import ShallowNet, overdetermination_ratio

__all__ = ["ShallowClassifier"]


class ShallowClassifier(ImageClassifier):
    """Classifies images by a residual stack in either layout.

        data = images.image_folder("photos/", size=32)
        classifier = ShallowClassifier(layout="parallel", random_state=0)
        classifier.fit(data.train, data.train.targets)
        print(classifier.score(data.test, data.test.targets))

    See `ImageClassifier` for training and attributes, and `to_images` for the forms that images may have.

    Args:
        layout, num_layers, kernel_size, activation, batch_norm: see `ShallowNet`.
        width: C, channels of the body.
        epochs, batch_size, lr: of AdamW without decay; the rate warms up over a tenth, then falls along a cosine.
        channels: of the images, 1 or 3, to which others are converted; those of the training images if None.
        random_state: seed of weights and batch order; torch's global generator if None.
        device: where to train, such as "cpu" or "cuda".

    Attributes:
        overdetermination_: see `overdetermination_ratio`.
    """

    def __init__(
        self,
        layout: str = "parallel",
        *,
        num_layers: int = 8,
        width: int = 16,
        kernel_size: int = 3,
        activation: str = "relu",
        batch_norm: bool = False,
        epochs: int = 25,
        batch_size: int = 50,
        lr: float | int = 4e-3,
        channels: int | None = None,
        random_state: int | None = None,
        device: str = "cpu",
    ):
        self.layout = layout
        self.num_layers = num_layers
        self.width = width
        self.kernel_size = kernel_size
        self.activation = activation
        self.batch_norm = batch_norm
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.channels = channels
        self.random_state = random_state
        self.device = device

    def fit(self, X: Any, y: Any) -> "ShallowClassifier":
        """Trains on images, in any form that `to_images` takes, and (n,) labels of any type."""
        super().fit(X, y)
        self.overdetermination_ = overdetermination_ratio(len(y), len(self.classes_), self.model_)
        return self

    def _network(self, in_chans: int, num_classes: int, size: tuple[int, int]) -> nn.Module:
        return ShallowNet(
            in_chans=in_chans, num_classes=num_classes, channels=self.width, num_layers=self.num_layers,
            layout=self.layout, kernel_size=self.kernel_size, activation=self.activation, batch_norm=self.batch_norm,
        )  # fmt: skip
