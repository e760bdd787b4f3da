"""A classifier of images with scikit-learn's interface."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from etude.vision.classifier import ImageClassifier
from etude.vision.moat.network import MOAT

__all__ = ["MOATClassifier", "fitting_strides"]

_LEAST_SIDE = 4


def fitting_strides(side: int, stages: int = 4) -> tuple[int, ...]:
    """Strides of the stages, 2s first, such that the last map of images of `side` keeps 4 pixels where it can."""
    halvings = max((side // _LEAST_SIDE).bit_length() - 2, 0)  # the stem's apart
    return tuple(2 if stage < halvings else 1 for stage in range(stages))


class MOATClassifier(ImageClassifier):
    """Trains a MOAT on images and predicts their classes.

        data = images.image_folder("photos/", size=64)               # or images.npz("photos.npz")
        classifier = MOATClassifier(epochs=30).fit(data.train.inputs, data.train.targets)
        print(classifier.score(data.test.inputs, data.test.targets))

    Training is the paper's in small: AdamW with a linear warm-up over a tenth of the updates and a cosine to zero,
    gradients clipped at norm 1, label smoothing. Channels are standardised over the training images. A fit with the
    same `random_state` gives the same weights; the global random state is left alone.

    Args:
        network: arguments of `MOAT` that differ from the default, a network of some 470,000 parameters whose strides
            fit the images (`fitting_strides`).
        channels: 1 for grey, 3 for colour; those of the training images if None. Others are converted, see
            `to_images`.
        epochs, batch_size, lr, weight_decay, label_smoothing: of the training.
        random_state: of the initial weights, the order of the images and stochastic depth.
        device: where to train and predict.

    Attributes:
        classes_: the labels, sorted.
        model_: the trained `MOAT`, which takes standardised images.
        losses_: training loss of each update.
    """

    def __init__(
        self,
        network: Mapping[str, Any] | None = None,
        channels: int | None = None,
        epochs: int = 30,
        batch_size: int = 50,
        lr: float | int = 2e-3,
        weight_decay: float | int = 0.05,
        label_smoothing: float | int = 0.1,
        random_state: int | None = 0,
        device: str = "cpu",
    ):
        self.network, self.channels, self.epochs, self.batch_size = network, channels, epochs, batch_size
        self.lr, self.weight_decay, self.label_smoothing = lr, weight_decay, label_smoothing
        self.random_state, self.device = random_state, device

    def _network(self, in_chans: int, num_classes: int, size: tuple[int, int]) -> nn.Module:
        arguments: dict[str, Any] = {
            "stem_dim": 24, "depths": (1, 1, 2, 1), "dims": (24, 48, 96, 128), "head_dim": 16, "bn_momentum": 0.1,
            "in_chans": in_chans, "num_classes": num_classes, "strides": fitting_strides(min(size)),
        }  # fmt: skip
        return MOAT(**(arguments | dict(self.network or {})))
