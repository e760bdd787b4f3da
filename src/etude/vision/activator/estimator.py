"""Activator as a scikit-learn classifier of images."""

from torch import nn

from etude.vision.activator.frame import Activator
from etude.vision.classifier import ImageClassifier

__all__ = ["ActivatorClassifier"]


class ActivatorClassifier(ImageClassifier):
    """Classifies images by blocks of gated linear units.

        data = images.image_folder("photos/", size=32)
        classifier = ActivatorClassifier(use_mlp=False, random_state=0)
        classifier.fit(data.train, data.train.targets)
        print(classifier.score(data.test, data.test.targets))

    See `ImageClassifier` for training and attributes, and `to_images` for the forms that images may have.

    Args:
        use_mlp: GLU and MLP in a block, or the GLU alone.
        mixing: "channel", under which patches do not interact, or "token"; see `ActivatorBlock`.
        patch_size: side of a patch, which the images' sides must be multiples of.
        dim, hidden_dim, depth, dropout, activation, pos_embed: see `Activator`. The defaults are for small sets; the
            paper's are 256, 512, 4 and 0.5.
        epochs, batch_size, lr: of AdamW without decay; the rate warms up over a twentieth, then falls along a cosine.
        channels: of the images, 1 or 3, to which others are converted; those of the training images if None.
        random_state: seed of weights, batch order and dropout; torch's global generator if None.
        device: where to train, such as "cpu" or "cuda".
    """

    _warmup = 0.05

    def __init__(
        self,
        use_mlp: bool = False,
        *,
        mixing: str = "channel",
        patch_size: int = 4,
        dim: int = 64,
        hidden_dim: int = 128,
        depth: int = 3,
        dropout: float | int = 0.1,
        activation: str = "gelu",
        pos_embed: bool = False,
        epochs: int = 20,
        batch_size: int = 100,
        lr: float | int = 1e-3,
        channels: int | None = None,
        random_state: int | None = None,
        device: str = "cpu",
    ):
        self.use_mlp = use_mlp
        self.mixing = mixing
        self.patch_size = patch_size
        self.dim = dim
        self.hidden_dim = hidden_dim
        self.depth = depth
        self.dropout = dropout
        self.activation = activation
        self.pos_embed = pos_embed
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.channels = channels
        self.random_state = random_state
        self.device = device

    def _network(self, in_chans: int, num_classes: int, size: tuple[int, int]) -> nn.Module:
        return Activator(
            img_size=size, patch_size=self.patch_size, in_chans=in_chans, num_classes=num_classes, dim=self.dim,
            hidden_dim=self.hidden_dim, depth=self.depth, dropout=self.dropout, use_mlp=self.use_mlp,
            activation=self.activation, mixing=self.mixing, pos_embed=self.pos_embed,
        )  # fmt: skip
