"""ConViT as a scikit-learn estimator of images."""

from typing import Any

from torch import Tensor, nn

from etude.vision.classifier import ImageClassifier
from etude.vision.convit.network import ConViT, weight_decay_groups
from etude.vision.convit.patches import choose_patch_size, pad_to_patches

__all__ = ["ConViTClassifier"]


class ConViTClassifier(ImageClassifier):
    """Classifies images by a ConViT trained from scratch.

        data = etude.data.images.image_folder("photos/", size=64)   # or npz("photos.npz")
        classifier = ConViTClassifier(epochs=50, random_state=0).fit(data.train, data.train.targets)
        print(classifier.score(data.test, data.test.targets.numpy()))

    Images in any form that `to_images` takes; channels are standardised over the training images, and images are
    padded with zeros to whole patches.

    Args:
        dim, depth, num_heads, local_up_to_layer, drop_path_rate: see `ConViT`.
        patch_size: side of a patch; chosen for at most 64 patches if None.
        epochs, batch_size, lr, weight_decay, label_smoothing: of AdamW, after a tenth of warm-up along a cosine to 0.
            Gates, biases, norms and positions do not decay.
        transform: (inputs, targets) -> (inputs, targets), augmentation of a standardised training batch, padding
            included.
        random_state: seed of weights, order and dropout; torch's global generator if None.
        device: where to train, such as "cpu" or "cuda".

    Attributes:
        classes_: the labels, sorted.
        model_: the trained `ConViT`.
        losses_: loss of every update.
    """

    def __init__(
        self,
        *,
        dim: int = 144,
        depth: int = 6,
        num_heads: int = 9,
        local_up_to_layer: int = 5,
        drop_path_rate: float = 0.0,
        patch_size: int | None = None,
        epochs: int = 100,
        batch_size: int = 64,
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        label_smoothing: float = 0.0,
        transform: Any = None,
        random_state: int | None = None,
        device: str = "cpu",
    ):
        self.dim = dim
        self.depth = depth
        self.num_heads = num_heads
        self.local_up_to_layer = local_up_to_layer
        self.drop_path_rate = drop_path_rate
        self.patch_size = patch_size
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.label_smoothing = label_smoothing
        self.transform = transform
        self.random_state = random_state
        self.device = device

    def _network(self, in_chans: int, num_classes: int, size: tuple[int, int]) -> nn.Module:
        return ConViT(
            img_size=size, patch_size=self._patch(), in_chans=in_chans, num_classes=num_classes, dim=self.dim,
            depth=self.depth, num_heads=self.num_heads, local_up_to_layer=self.local_up_to_layer,
            drop_path_rate=self.drop_path_rate,
        )  # fmt: skip

    def _parameters(self, model: nn.Module) -> Any:
        return weight_decay_groups(model, self.weight_decay)

    def _arranged(self, x: Tensor) -> Tensor:
        return pad_to_patches(x, self._patch())

    def _patch(self) -> int:
        _, height, width = self.image_shape_
        return choose_patch_size(height, width) if self.patch_size is None else self.patch_size
