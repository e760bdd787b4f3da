"""From a picture of any mode to a tensor of given channels and size."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

__all__ = ["is_grey", "to_tensor"]

_GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N", "F")


def is_grey(image: Any) -> bool:
    """Whether a Pillow image has no colour (palettes count as colour)."""
    return image.mode in _GREY


def to_tensor(image: Any, channels: int, size: tuple[int, int] | None) -> Float32[Tensor, "channels height width"]:
    """Pixels in [0, 1].

    The picture is turned upright as its EXIF tag says; transparency is laid over black; grey becomes three equal
    channels, colour becomes one of luma (ITU-R 601), as wanted; 8 bits are divided by 255, 16-bit and 32-bit grey
    integers by 65,535, floats must lie in [0, 1]. With a `size` (height, width) the picture is scaled to cover it
    (bilinear, antialiased) and cut to it in the middle.
    """
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float32) / (1 if image.mode == "F" else 65535)
        if not 0 <= values.min() <= values.max() <= 1:
            raise ValueError(
                f"pixels of mode {image.mode} must scale to [0, 1], got {values.min():g}..{values.max():g}"
            )
        image = Image.fromarray(values)
        divisor, bands = 1, 1
    else:
        if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
        image = image.convert("L" if channels == 1 else "RGB")
        divisor, bands = 255, channels
    if size is not None:
        image = ImageOps.fit(image, (size[1], size[0]), method=Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image, dtype=np.float32) / divisor)
    pixels = pixels[None] if bands == 1 else pixels.permute(2, 0, 1)
    return pixels.expand(channels, -1, -1).contiguous()
