"""Grey crops of photographs and textures that scikit-image brings along: natural images without a network."""

from functools import lru_cache

import numpy as np
import torch

from etude.data.kinds import Examples, ImageData

__all__ = ["natural_crops"]

_NAMES = (
    "brick", "camera", "chelsea", "coffee", "coins", "grass", "gravel", "immunohistochemistry", "moon", "page",
)  # fmt: skip
_BANDS = {"train": (0.0, 0.5), "val": (0.5, 0.6), "test": (0.6, 1.0)}
"""Shares of an image's columns: no pixel stands in two parts."""


@lru_cache(maxsize=1)
def _pictures() -> tuple[np.ndarray, ...]:
    try:
        from skimage import data
        from skimage.color import rgb2gray
        from skimage.util import img_as_float
    except ImportError as error:
        raise ImportError("images.natural_crops needs scikit-image: pip install 'etude[run]'") from error
    loaded = [getattr(data, name)() for name in _NAMES]
    return tuple(np.asarray(rgb2gray(x) if x.ndim == 3 else img_as_float(x), dtype=np.float32) for x in loaded)


def natural_crops(n: int = 6000, size: int = 16, seed: int = 0) -> ImageData:
    """Square crops of ten grey images; the class is the image that a crop is from.

    Crops of train come from the left half of each image's columns, those of val from the next tenth, those of test
    from the rest; classes are equally frequent. Each crop is standardised, (x - mean) / (sd + 0.02), so brightness and
    contrast tell nothing; values hence lie outside [0, 1].

    Args:
        n: crops in all, at least 60 and a multiple of 60: 4/6 train, 1/6 val, 1/6 test.
        size: side in pixels, 4 to 32.
        seed: of the places.
    """
    if n < 60 or n % 60:
        raise ValueError(f"n must be a positive multiple of 60, got {n}")
    if not 4 <= size <= 32:
        raise ValueError(f"size must lie in 4..32, got {size}")
    draw = np.random.RandomState(seed)
    parts = {}
    for part, (left, right) in _BANDS.items():
        each = n * (4 if part == "train" else 1) // 60
        crops = []
        for picture in _pictures():
            band = picture[:, int(left * picture.shape[1]) : int(right * picture.shape[1])]
            windows = np.lib.stride_tricks.sliding_window_view(band, (size, size))
            rows, columns = (draw.randint(0, extent, size=each) for extent in windows.shape[:2])
            crops.append(windows[rows, columns])
        # Classes take turns, so the first rows of a part are balanced too.
        x = np.stack(crops, axis=1).reshape(-1, 1, size, size)
        x = (x - x.mean((2, 3), keepdims=True)) / (x.std((2, 3), keepdims=True) + 0.02)
        labels = np.tile(np.arange(len(_NAMES)), each)
        parts[part] = Examples(torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)), torch.from_numpy(labels))
    return ImageData(train=parts["train"], val=parts["val"], test=parts["test"], classes=_NAMES, name="natural_crops")
