"""From pixels of the usual formats to the images that networks take."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

__all__ = ["to_images"]

_LARGEST = {torch.bool: 1, torch.uint8: 255, torch.uint16: 65_535}
_LUMA = (0.299, 0.587, 0.114)


def to_images(pixels: Any, channels: int | None = None) -> Float32[Tensor, "n channels height width"]:
    """Float32 images with the wanted channels.

        model(to_images(rgba_bytes, channels=3))

    8-bit and 16-bit integers are divided by 255 and 65,535, floats are taken as they are. Grey becomes three equal
    channels, colour becomes one of brightness (ITU-R 601). Of two or four channels of integers the last is transparency
    and the image is laid over black; floats keep all their channels unless others are wanted.

    Args:
        pixels: a tensor or array (n, height, width), (n, channels, height, width) or (n, height, width, channels);
            the channels are last if that axis is 1 to 4 long and the second axis is not. Or what has such `inputs`.
        channels: of the result; those of the pixels if None. A number that the pixels have is kept as it is.

    Raises:
        TypeError: for another dtype.
        ValueError: for another shape, no pixel, NaN or infinite values, or channels that have no conversion.
    """
    given = getattr(pixels, "inputs", pixels)
    x = given.detach() if isinstance(given, Tensor) else torch.from_numpy(np.ascontiguousarray(given))
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[-1] in (1, 2, 3, 4) and x.shape[1] not in (1, 2, 3, 4):
        x = x.permute(0, 3, 1, 2)
    elif x.ndim != 4:
        raise ValueError(f"pixels must have shape (n, h, w), (n, c, h, w) or (n, h, w, c), got {tuple(x.shape)}")
    if 0 in x.shape:
        raise ValueError(f"there are no pixels in shape {tuple(given.shape)}")
    if x.dtype in _LARGEST:
        x = x.to(torch.float32) / _LARGEST[x.dtype]
        if channels is None and x.shape[1] in (2, 4):
            channels = x.shape[1] - 1
    elif x.is_floating_point():
        x = x.to(torch.float32)
        if bad := int((~torch.isfinite(x)).sum()):
            raise ValueError(f"pixels hold NaN or infinite values, {bad} of them")
    else:
        raise TypeError(f"pixels must be bool, uint8, uint16 or floating point, got {x.dtype}")
    return _with_channels(x, channels).contiguous()


def _with_channels(x: Tensor, channels: int | None) -> Tensor:
    have = x.shape[1]
    if channels is None or have == channels:
        return x
    if have in (2, 4):
        x = x[:, :-1] * x[:, -1:]
    if x.shape[1] == channels:
        return x
    if x.shape[1] == 1 and channels == 3:
        return x.expand(-1, 3, -1, -1)
    if x.shape[1] == 3 and channels == 1:
        return (x * x.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    raise ValueError(f"there is no conversion from {have} channels to {channels}")
