"""Augmentation by the batch: random views of images that lie on a device, as a `transform` of `loop.fit`.

Every draw comes from the generator that is given, so that arms of a comparison see the same views.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

__all__ = ["auto_augment", "crop_and_flip", "cutout"]

Images = Float[Tensor, "batch channels height width"]

_GROUPS = 8


def crop_and_flip(images: Images, padding: int = 4, generator: torch.Generator | None = None) -> Images:
    """Each image padded with zeros, cropped back at a random place and mirrored or not.

    Args:
        images: any values.
        padding: pixels on every side, >= 0.
        generator: CPU generator of all draws; the default generator if None.

    Raises:
        ValueError: if `padding` is negative.
    """
    if padding < 0:
        raise ValueError(f"padding must not be negative, got {padding}")
    batch, _, height, width = images.shape
    corner = torch.randint(2 * padding + 1, (2, batch, 1), generator=generator)
    mirrored = torch.rand(batch, 1, generator=generator) < 0.5
    rows, columns = corner[0] + torch.arange(height), torch.arange(width).expand(batch, -1)
    columns = corner[1] + torch.where(mirrored, columns.flip(1), columns)
    padded = F.pad(images, (padding,) * 4).permute(0, 2, 3, 1)
    image = torch.arange(batch, device=images.device)[:, None, None]
    rows, columns = rows.to(images.device), columns.to(images.device)
    return padded[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cutout(images: Images, size: int = 16, generator: torch.Generator | None = None) -> Images:
    """Blackens a square centred anywhere in the image and cut off at its border.

    DeVries & Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", arXiv:1708.04552, 2017.

    Args:
        images: in [0, 1], where 0 is black.
        size: side of the square in pixels, >= 1.
        generator: CPU generator of all draws; the default generator if None.

    Raises:
        ValueError: if `size` is not positive.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    batch, _, height, width = images.shape

    def inside(length: int) -> Tensor:
        centre = torch.randint(length, (batch, 1), generator=generator)
        pixel = torch.arange(length)
        return (pixel >= centre - size // 2) & (pixel < centre - size // 2 + size)

    hole = inside(height)[:, None, :, None] & inside(width)[:, None, None, :]
    return images.masked_fill(hole.to(images.device), 0.0)


def auto_augment(images: Images, policy: str = "cifar10", generator: torch.Generator | None = None) -> Images:
    """AutoAugment by kornia.

    Cubuk et al., "AutoAugment: Learning Augmentation Strategies from Data", CVPR 2019, arXiv:1805.09501. kornia draws
    one sub-policy for a call and decides for each image whether it acts; the batch is therefore cut into eight parts
    with a sub-policy each.

    Args:
        images: in [0, 1], one or three channels.
        policy: "cifar10", "imagenet" or "svhn", the data on which it was found.
        generator: CPU generator of all draws; the default generator if None.

    Raises:
        ImportError: if kornia is not installed.
    """
    try:
        from kornia.augmentation.auto import AutoAugment
    except ImportError as error:
        raise ImportError("auto_augment needs kornia: pip install 'etude[run]'") from error
    augment = AutoAugment(policy)
    colours = images if images.shape[1] == 3 else images.expand(-1, 3, -1, -1)
    seed = int(torch.randint(2**62, (), generator=generator))
    # kornia has no generators of its own: it is seeded, and the global state put back.
    devices = [images.device] if images.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        torch.manual_seed(seed)
        parts = [augment(part) for part in colours.split(-(-len(images) // _GROUPS))]
    return torch.cat(parts)[:, : images.shape[1]]
