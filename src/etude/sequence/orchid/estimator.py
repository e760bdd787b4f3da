"""Orchid as a scikit-learn classifier of images."""

from torch import nn

from etude.sequence.orchid.models import OrchidViT
from etude.sequence.orchid.operator import parameter_groups
from etude.vision.classifier import ImageClassifier

__all__ = ["OrchidClassifier"]


class OrchidClassifier(ImageClassifier):
    """Classifies images by Orchid layers over patches.

        data = images.image_folder("photos/", size=32)
        classifier = OrchidClassifier(random_state=0)
        classifier.fit(data.train, data.train.targets)
        print(classifier.score(data.test, data.test.targets))

    See `ImageClassifier` for training and attributes, and `to_images` for the forms that images may have.

    Args:
        kind: of the conditioning network, "type1" or "type2".
        adaptive: False for a fixed kernel, to compare.
        pos_embed: learned positions; without them the order of patches along the circle is all that is known.
        patch_size: side of a patch, which the images' sides must be multiples of.
        dim, depth, mlp_ratio, dropout: see `OrchidViT`; the defaults are for small sets.
        epochs, batch_size, lr, weight_decay: of AdamW; implicit filters have no decay.
        channels: of the images, 1 or 3, to which others are converted; those of the training images if None.
        random_state: seed of weights, batch order and dropout; torch's global generator if None.
        device: where to train, such as "cpu" or "cuda".
    """

    def __init__(
        self,
        kind: str = "type1",
        *,
        adaptive: bool = True,
        pos_embed: bool = True,
        patch_size: int = 4,
        dim: int = 48,
        depth: int = 3,
        mlp_ratio: float | int = 2,
        dropout: float | int = 0.0,
        epochs: int = 20,
        batch_size: int = 64,
        lr: float | int = 3e-3,
        weight_decay: float | int = 0.05,
        channels: int | None = None,
        random_state: int | None = None,
        device: str = "cpu",
    ):
        self.kind = kind
        self.adaptive = adaptive
        self.pos_embed = pos_embed
        self.patch_size = patch_size
        self.dim = dim
        self.depth = depth
        self.mlp_ratio = mlp_ratio
        self.dropout = dropout
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.channels = channels
        self.random_state = random_state
        self.device = device

    def _network(self, in_chans: int, num_classes: int, size: tuple[int, int]) -> nn.Module:
        return OrchidViT(
            img_size=size, patch_size=self.patch_size, in_chans=in_chans, num_classes=num_classes, dim=self.dim,
            depth=self.depth, mlp_ratio=self.mlp_ratio, dropout=self.dropout, pos_embed=self.pos_embed,
            kind=self.kind, adaptive=self.adaptive,
        )  # fmt: skip

    def _parameters(self, model: nn.Module) -> list[dict]:
        return parameter_groups(model, lr=self.lr, weight_decay=self.weight_decay, filter_lr=None)
