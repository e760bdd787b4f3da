"""How the published models were trained: DeiT's recipe, without distillation.

Touvron et al., "Training data-efficient image transformers & distillation through attention", ICML 2021,
arXiv:2012.12877. Mixing of images: Zhang et al., "mixup", arXiv:1710.09412; Yun et al., "CutMix", arXiv:1905.04899.
Repeated augmentation: Hoffer et al., arXiv:1901.09335; Berman et al., "MultiGrain", arXiv:1902.05509.
"""

from collections.abc import Iterator, Sized

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor
from torch.utils.data import Sampler

__all__ = ["RECIPE", "DeiTAugmentation", "RepeatedAugmentation", "mix_images"]

RECIPE = {
    "epochs": 300, "batch_size": 1024, "lr": 1e-3, "min_lr": 1e-5, "weight_decay": 0.05, "warmup_epochs": 5,
    "label_smoothing": 0.1, "drop_path": 0.1, "mixup": 0.8, "cutmix": 1.0, "erasing": 0.25, "repeats": 3,
}  # fmt: skip
"""The published numbers; the rate is 5e-4 for every 512 images of a batch."""


_GROUPS = 8


def mix_images(
    images: Float[Tensor, "batch channels height width"],
    labels: Int64[Tensor, "batch"],
    num_classes: int,
    *,
    mixup: float | int = 0.8,
    cutmix: float | int = 1.0,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, "batch channels height width"], Float[Tensor, "batch num_classes"]]:
    """Mixes a batch with its reverse, by blending or by pasting a rectangle, each in half of the calls.

    The share of the first image is drawn from Beta(mixup, mixup) or Beta(cutmix, cutmix), once a call; the targets
    are mixed in the share that the pixels really have.

    Args:
        labels: classes, 0..num_classes-1.
        mixup, cutmix: parameters of the two Beta distributions; 0 leaves that kind out.
        generator: CPU generator of all draws; the default generator if None.

    Raises:
        ValueError: if a parameter is negative.
    """
    if min(mixup, cutmix) < 0:
        raise ValueError(f"mixup and cutmix must not be negative, got {mixup} and {cutmix}")
    targets = F.one_hot(labels, num_classes).to(images.dtype)
    if not mixup and not cutmix:
        return images, targets
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    paste = cutmix > 0 and (mixup == 0 or rng.random() < 0.5)
    share = rng.beta(cutmix, cutmix) if paste else rng.beta(mixup, mixup)
    if paste:
        height, width = images.shape[2:]
        side = (1 - share) ** 0.5
        spans = []
        for length in (height, width):
            centre = int(rng.integers(length))
            half = int(length * side) // 2
            spans.append(slice(max(centre - half, 0), min(centre + half, length)))
        rows, columns = spans
        images = images.clone()
        images[:, :, rows, columns] = images.flip(0)[:, :, rows, columns]
        share = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
    else:
        images = share * images + (1 - share) * images.flip(0)
    return images, share * targets + (1 - share) * targets.flip(0)


class DeiTAugmentation:
    """Augmentation of a training batch, a `transform` of `loop.fit`: RandAugment, erasing, mixup or CutMix.

        fit(model, train, optimizer, loss=torch.nn.CrossEntropyLoss(label_smoothing=0.1), epochs=300,
            transform=DeiTAugmentation(num_classes=1000, generator=torch.Generator().manual_seed(0)))

    Random resized crops and mirroring come first. RandAugment and erasing are kornia's, with two differences from the
    published recipe: magnitudes do not scatter (by 0.5 there), and erased rectangles take the mean, not noise. kornia
    draws operations for a call; the batch is cut into eight parts with operations of their own.

    Args:
        num_classes: outputs of the model; targets become rows of class shares.
        mixup, cutmix: see `mix_images`.
        magnitude, layers: RandAugment's m, of 10, and n; 0 layers leave it out.
        erasing: probability that an image loses a rectangle.
        crop: smallest share of the area that a crop keeps; 1 leaves crops and mirroring out.
        mean, std: each channel is centred and scaled so after the colours have been changed and before erasing.
        generator: CPU generator of all draws; the default generator if None.

    Raises:
        ImportError: if kornia is not installed.
        ValueError: if the magnitude does not lie in 1..9.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        mixup: float | int = 0.8,
        cutmix: float | int = 1.0,
        magnitude: int = 9,
        layers: int = 2,
        erasing: float | int = 0.25,
        crop: float | int = 0.08,
        mean: tuple[float, ...] = (0.485, 0.456, 0.406),
        std: tuple[float, ...] = (0.229, 0.224, 0.225),
        generator: torch.Generator | None = None,
    ):
        try:
            from kornia import augmentation
        except ImportError as error:
            raise ImportError("DeiTAugmentation needs kornia: pip install 'etude[run]'") from error
        if not 1 <= magnitude <= 9:
            raise ValueError(f"magnitude must lie in 1..9, got {magnitude}")
        self.num_classes, self.mixup, self.cutmix, self.crop = num_classes, mixup, cutmix, crop
        self.mean, self.std = torch.tensor(mean).view(1, -1, 1, 1), torch.tensor(std).view(1, -1, 1, 1)
        self.generator = generator
        self._augmentation = augmentation
        self._colours = None
        if layers:
            self._colours = augmentation.auto.RandAugment(n=layers, m=3 * magnitude)  # kornia counts to 30
        self._erase = augmentation.RandomErasing(p=float(erasing), scale=(0.02, 1 / 3), ratio=(0.3, 3.3))

    def __call__(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        images, labels = batch
        seed = int(torch.randint(2**62, (), generator=self.generator))
        devices = [images.device] if images.device.type == "cuda" else []
        # kornia has no generators of its own: it is seeded, and the global state put back.
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.manual_seed(seed)
            if self.crop < 1:
                size = (images.shape[2], images.shape[3])
                images = self._augmentation.RandomResizedCrop(size, scale=(self.crop, 1.0), resample="BICUBIC")(images)
                images = self._augmentation.RandomHorizontalFlip()(images).clamp(0, 1)
            if self._colours is not None:
                parts = images.split(-(-len(images) // _GROUPS))
                images = torch.cat([self._colours(part) for part in parts])
            images = (images - self.mean.to(images)) / self.std.to(images)
            images = self._erase(images)
        return mix_images(
            images, labels, self.num_classes, mixup=self.mixup, cutmix=self.cutmix, generator=self.generator
        )


class RepeatedAugmentation(Sampler[int]):
    """Draws every chosen example `repeats` times in a row, so that a batch holds several views of it.

        loader = DataLoader(train, batch_size=1024, sampler=RepeatedAugmentation(train, generator=generator))

    An epoch has as many draws as the data have examples, hence a third of the examples at the published 3 repeats.

    Args:
        data: what is sampled; its length counts.
        repeats: views of an example, >= 1.
        generator: CPU generator of the order; the default generator if None.

    Raises:
        ValueError: if `repeats` is not positive.
    """

    def __init__(self, data: Sized, repeats: int = 3, generator: torch.Generator | None = None):
        if repeats < 1:
            raise ValueError(f"repeats must be at least 1, got {repeats}")
        self.size, self.repeats, self.generator = len(data), repeats, generator

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.size, generator=self.generator)
        return iter(order.repeat_interleave(self.repeats)[: self.size].tolist())
