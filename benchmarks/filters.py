"""Filter banks and learners against their peers: scikit-image, PyWavelets, SciPy, kornia, minisom.

Equal work: the same filters applied to the same images, the same steps of a map on the same inputs.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.compare import Comparison
from etude.vision.filters import SelfOrganizingMap, filter_bank, init_filters, wavelet_transform

_SIZE, _BATCH = 64, 16


def _without_gradients(call: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> None:
        with torch.no_grad():
            call()

    return run


def comparisons() -> list[Comparison]:
    import pywt
    import scipy.ndimage
    from skimage.filters import gabor_kernel

    generator = torch.Generator().manual_seed(0)
    images = torch.rand(_BATCH, 1, _SIZE, _SIZE, generator=generator)
    array = images[:, 0].numpy()
    bank = filter_bank("gabor", 7, 32)
    conv = bank.to_conv(1)
    kernels = bank.weight[:, 0].numpy()
    facts = list(zip(bank.meta["orientation"].tolist(), bank.meta["frequency"].tolist(), bank.meta["phase"].tolist()))

    def skimage_bank() -> None:
        for theta, frequency, phase in facts:
            gabor_kernel(frequency, theta, sigma_x=0.45 / frequency, sigma_y=0.64 / frequency, offset=phase)

    def scipy_filtering() -> None:
        for image in array:
            for kernel in kernels:
                scipy.ndimage.correlate(image, kernel, mode="constant")

    listed = [
        Comparison("making 32 Gabor filters", lambda: filter_bank("gabor", 7, 32), skimage_bank, "scikit-image",
                   note="its kernels are cut where they end, ours are 7 x 7"),
        Comparison(f"32 filters on {_BATCH} images of {_SIZE} x {_SIZE}", _without_gradients(lambda: conv(images)),
                   scipy_filtering, "SciPy correlate"),
        Comparison(
            f"db2 transform of {_BATCH} images of {_SIZE} x {_SIZE}",
            _without_gradients(lambda: wavelet_transform(images, "db2")),
            lambda: pywt.dwt2(array, "db2", mode="periodization"),
            "PyWavelets",
        ),
    ]  # fmt: skip
    listed += _maps(generator) + _kornia(images) + _initialisers()
    return listed


def _maps(generator: torch.Generator) -> list[Comparison]:
    """A map of 36 units on 49 numbers: one input a step, as minisom takes them."""
    try:
        from minisom import MiniSom
    except ImportError:
        return []
    data = torch.randn(2000, 49, generator=generator)
    rows = data.numpy().astype(np.float64)

    def ours() -> None:
        SelfOrganizingMap(6, 6, steps=1000, batch_size=1).fit(data, torch.Generator().manual_seed(0))

    def batched() -> None:
        SelfOrganizingMap(6, 6, steps=16, batch_size=64).fit(data, torch.Generator().manual_seed(0))

    def peer() -> None:
        MiniSom(6, 6, 49, sigma=3.0, learning_rate=0.5, random_seed=0).train_random(rows, 1000)

    return [
        Comparison("self-organising map, 1,000 inputs one by one", ours, peer, "minisom"),
        Comparison("self-organising map, 1,024 inputs in batches of 64", batched, peer, "minisom",
                   note="1,000 inputs one by one there"),
    ]  # fmt: skip


def _kornia(images: torch.Tensor) -> list[Comparison]:
    try:
        import kornia
    except ImportError:
        return []
    sobel = filter_bank("sobel", 3, 2).to_conv(1, padding=1)
    return [
        Comparison(
            f"Sobel filters on {_BATCH} images of {_SIZE} x {_SIZE}",
            _without_gradients(lambda: sobel(images)),
            _without_gradients(lambda: kornia.filters.spatial_gradient(images)),
            "kornia",
        )
    ]


def _initialisers() -> list[Comparison]:
    weight = torch.empty(256, 256, 3, 3)
    return [
        Comparison(
            "He initialisation, 256 x 256 x 3 x 3",
            lambda: init_filters(weight, "he"),
            lambda: torch.nn.init.kaiming_normal_(weight, nonlinearity="relu"),
            "torch.nn.init",
        ),
        Comparison(
            "delta-orthogonal, 256 x 256 x 3 x 3, beside orthogonal",
            lambda: init_filters(weight, "delta_orthogonal"),
            lambda: torch.nn.init.orthogonal_(weight),
            "torch.nn.init",
            note="torch has no delta-orthogonal: its orthogonal draws and factors nine times as many numbers",
        ),
    ]
