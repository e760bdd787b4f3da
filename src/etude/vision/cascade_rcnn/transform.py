"""From pictures to batches and back: channels, scaling, normalisation, and filling up to whole cells."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Batch", "ImageTransform", "to_image"]

_GREY = (0.299, 0.587, 0.114)


def to_image(picture: Any, channels: int) -> Tensor:
    """One picture as float32 (channels, height, width) in [0, 1].

    Args:
        picture: a tensor (channels, height, width), an array (height, width) or (height, width, channels), a Pillow
            image, or the path of a file. 8 and 16 bits are divided by their largest value; floats must lie in [0, 1].
            A fourth channel is taken as opacity over black; grey becomes three equal channels, and colour becomes one
            of luma (ITU-R 601), as wanted.
        channels: 1 or 3, or the picture's own.

    Raises:
        ValueError: for another shape or number of channels, another range, or NaN.
        TypeError: for what is no picture.
    """
    if isinstance(picture, (str, os.PathLike)):
        picture = _opened(picture)
    if isinstance(picture, Tensor):
        x = picture.detach()
        x = x[None] if x.ndim == 2 else x
    else:
        if not isinstance(picture, np.ndarray):
            picture = _pixels(picture)
        if picture.ndim not in (2, 3):
            raise ValueError(f"a picture is (height, width) or (height, width, channels), got {picture.shape}")
        if picture.dtype == np.uint16:
            picture = picture.astype(np.float32) / 65535
        x = torch.from_numpy(np.array(picture, order="C"))  # a copy: Pillow's arrays are not writable
        x = x[None] if x.ndim == 2 else x.permute(2, 0, 1)
    if x.ndim != 3 or min(x.shape) < 1:
        raise ValueError(f"a picture is (channels, height, width), got {tuple(x.shape)}")
    if x.dtype == torch.uint8:
        x = x.float() / 255
    elif x.dtype == torch.uint16:
        x = x.float() / 65535
    elif x.is_floating_point():
        x = x.float()
        if not bool(torch.isfinite(x).all()) or float(x.min()) < -1e-6 or float(x.max()) > 1 + 1e-6:
            raise ValueError(f"floats of a picture must lie in [0, 1], got {float(x.min()):g}..{float(x.max()):g}")
    else:
        raise ValueError(f"a picture is uint8, uint16 or floats in [0, 1], got {x.dtype}")
    if len(x) in (2, 4) and len(x) != channels:
        x = x[:-1] * x[-1:]
    if len(x) == channels:
        return x.contiguous()
    if len(x) == 1:
        return x.expand(channels, -1, -1).contiguous()
    if len(x) == 3 and channels == 1:
        return (x * x.new_tensor(_GREY)[:, None, None]).sum(0, keepdim=True)
    raise ValueError(f"the detector takes {channels} channels, the picture has {len(x)}")


def _opened(path: Any) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("reading image files needs Pillow: pip install 'etude[run]'") from error
    try:
        with Image.open(path) as image:
            return _pixels(image)
    except (OSError, SyntaxError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path} cannot be read as an image: {error}") from error


def _pixels(image: Any) -> np.ndarray:
    if not hasattr(image, "mode"):
        raise TypeError(f"a picture is a tensor, an array, a Pillow image or a path, got {type(image).__name__}")
    from PIL import ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.float32) / 65535
        return values
    if image.mode == "F":
        return np.asarray(image)
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        image = image.convert("RGBA")
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    return np.asarray(image)


@dataclass(frozen=True, eq=False)
class Batch:
    """Images as the network sees them.

    Attributes:
        images: (n, channels, height, width), filled up at the bottom and on the right.
        sizes: height and width of each image without filling.
        original: those before scaling.
        targets: scaled boxes and labels of each image; None at test.
    """

    images: Tensor
    sizes: list[tuple[int, int]]
    original: list[tuple[int, int]]
    targets: list[dict[str, Tensor]] | None


class ImageTransform(nn.Module):
    """Scales, normalises and fills up.

    Args:
        mean, std: of each channel of the images in [0, 1].
        min_size: the shorter side after scaling; None leaves images as they are.
        max_size: bound of the longer side after scaling.
        divisor: heights and widths are filled up with zeros to a multiple of it.

    Raises:
        ValueError: for deviations that are not positive, or unequal numbers of channels.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Sequence[float | int] = (0.485, 0.456, 0.406),
        std: Sequence[float | int] = (0.229, 0.224, 0.225),
        min_size: int | None = 800,
        max_size: int = 1333,
        divisor: int = 32,
    ):
        super().__init__()
        if len(mean) != len(std) or not mean or min(std) <= 0:
            raise ValueError(f"mean and std must be as many and std positive, got {tuple(mean)}, {tuple(std)}")
        if divisor < 1 or (min_size is not None and not 0 < min_size <= max_size):
            raise ValueError(f"need 0 < min_size <= max_size and divisor >= 1, got {min_size}, {max_size}, {divisor}")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32)[:, None, None], persistent=False)
        self.min_size, self.max_size, self.divisor = min_size, max_size, divisor

    @property
    def channels(self) -> int:
        return len(self.mean)

    def forward(self, images: Any, targets: Sequence[Mapping[str, Tensor]] | None = None) -> Batch:
        """Makes a batch of images in [0, 1], a tensor (n, channels, height, width) or a list of (channels, h, w).

        Raises:
            ValueError: for a wrong number of channels, no images, NaN, or targets of another count.
        """
        images = list(images)
        if not images:
            raise ValueError("there are no images")
        if targets is not None and len(targets) != len(images):
            raise ValueError(f"there must be a target an image, got {len(images)} images and {len(targets)} targets")
        for index, image in enumerate(images):
            if image.ndim != 3 or len(image) != self.channels or not image.is_floating_point():
                raise ValueError(
                    f"images must be floats of shape ({self.channels}, height, width), "
                    f"image {index} is {image.dtype} of {tuple(image.shape)}"
                )
        original = [(int(image.shape[1]), int(image.shape[2])) for image in images]
        sizes = [self._size(*size) for size in original]
        scaled = [
            image if new == old else F.interpolate(image[None], new, mode="bilinear", align_corners=False)[0]
            for image, new, old in zip(images, sizes, original)
        ]
        height, width = (-(-max(size[axis] for size in sizes) // self.divisor) * self.divisor for axis in (0, 1))
        batch = images[0].new_zeros(len(images), self.channels, height, width)
        for row, image in zip(batch, scaled):
            row[:, : image.shape[1], : image.shape[2]] = (image - self.mean) / self.std
        if not bool(torch.isfinite(batch).all()):
            raise ValueError("images hold NaN or infinite values")
        scaled_targets: list[dict[str, Tensor]] | None = None
        if targets is not None:
            scaled_targets = [
                {**target, "boxes": _scaled(target["boxes"], old, new)} if "boxes" in target else dict(target)
                for target, old, new in zip(targets, original, sizes)
            ]
        return Batch(batch, sizes, original, scaled_targets)

    def restore(self, found: list[dict[str, Tensor]], batch: Batch) -> list[dict[str, Tensor]]:
        """Boxes back in pixels of the original images."""
        return [
            {**one, "boxes": _scaled(one["boxes"], new, old)}
            for one, new, old in zip(found, batch.sizes, batch.original)
        ]

    def _size(self, height: int, width: int) -> tuple[int, int]:
        if self.min_size is None:
            return height, width
        factor = min(self.min_size / min(height, width), self.max_size / max(height, width))
        return max(1, round(height * factor)), max(1, round(width * factor))


def _scaled(boxes: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    if old == new:
        return boxes
    x, y = new[1] / old[1], new[0] / old[0]
    return boxes * boxes.new_tensor([x, y, x, y])
