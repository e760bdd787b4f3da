"""Filters learned from unlabelled images, as one `FilterBank`.

Coates & Ng, "Learning Feature Representations with K-Means", 2012; Chan et al., "PCANet", arXiv:1404.3606; Hyvarinen
& Oja, 2000 (FastICA); Olshausen & Field, 1996 (sparse coding); Le et al., 2011 (RICA); Sanger, 1989; Oja, 1982.
"""

import inspect
import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from etude.vision.filters.bank import FilterBank, unit_filters
from etude.vision.filters.patches import Whitening, contrast_normalised, sample_patches
from etude.vision.filters.pretext import autoencoder_filters, rotation_filters
from etude.vision.filters.som import SelfOrganizingMap
from etude.vision.pixels import to_images

__all__ = ["METHODS", "learn_filters", "learn_from_patches"]

_log = logging.getLogger(__name__)
_NEEDS_SKLEARN = 'this method needs scikit-learn: pip install "etude[run]"'


def _pca(rows: Tensor, num: int, generator: torch.Generator) -> Tensor:
    centred = rows.double() - rows.double().mean(dim=0)
    _, vectors = torch.linalg.eigh(centred.T @ centred / len(rows))
    return vectors.flip(1).T[:num].to(rows.dtype)


def _ica(rows: Tensor, num: int, generator: torch.Generator, *, max_iter: int = 200, tol: float | int = 1e-3) -> Tensor:
    try:
        from sklearn.decomposition import FastICA
        from sklearn.exceptions import ConvergenceWarning
    except ImportError as error:
        raise ImportError(_NEEDS_SKLEARN) from error
    model = FastICA(num, whiten="unit-variance", max_iter=max_iter, tol=tol, random_state=_seed(generator))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(rows.double().numpy())
    if model.n_iter_ >= max_iter:
        _log.info("FastICA stopped after %d iterations without having converged to %g", max_iter, tol)
    return torch.from_numpy(model.components_).to(rows.dtype)


def _kmeans(
    rows: Tensor,
    num: int,
    generator: torch.Generator,
    *,
    spherical: bool = False,
    max_iter: int = 50,
    minibatch: bool | None = None,
) -> Tensor:
    """Centroids; of spherical k-means (largest |cosine|, signed sums) if asked, by mini-batches from 50,000 patches."""
    if spherical:
        return _spherical_kmeans(rows, num, generator, max_iter)
    try:
        from sklearn.cluster import KMeans, MiniBatchKMeans
    except ImportError as error:
        raise ImportError(_NEEDS_SKLEARN) from error
    use = len(rows) > 50_000 if minibatch is None else minibatch
    kind = MiniBatchKMeans if use else KMeans
    model = kind(num, n_init=1, max_iter=max_iter, random_state=_seed(generator)).fit(rows.numpy())
    return torch.from_numpy(model.cluster_centers_).to(rows.dtype)


def _spherical_kmeans(rows: Tensor, num: int, generator: torch.Generator, max_iter: int) -> Tensor:
    centres = F.normalize(torch.randn(num, rows.shape[1], generator=generator), dim=1)
    for _ in range(max_iter):
        products = rows @ centres.T
        best = products.abs().argmax(dim=1, keepdim=True)
        code = torch.zeros_like(products).scatter_(1, best, products.gather(1, best))
        centres = F.normalize(code.T @ rows + centres, dim=1)  # the old centre keeps an empty cluster alive
    return centres


def _som(
    rows: Tensor, num: int, generator: torch.Generator, *, grid: tuple[int, int] | None = None, **arguments
) -> Tensor:
    """Units of a map on a grid as square as `num` allows, row by row."""
    if grid is None:
        side = next(side for side in range(int(num**0.5), 0, -1) if num % side == 0)
        grid = side, num // side
    if grid[0] * grid[1] != num:
        raise ValueError(f"a grid of {grid[0]} x {grid[1]} does not have num={num} units")
    return SelfOrganizingMap(*grid, **arguments).fit(rows, generator).weight


def _sparse_coding(
    rows: Tensor,
    num: int,
    generator: torch.Generator,
    *,
    alpha: float | int = 1.0,
    max_iter: int = 20,
    batch_size: int = 256,
) -> Tensor:
    try:
        from sklearn.decomposition import MiniBatchDictionaryLearning
    except ImportError as error:
        raise ImportError(_NEEDS_SKLEARN) from error
    model = MiniBatchDictionaryLearning(
        num, alpha=alpha, max_iter=max_iter, batch_size=batch_size, random_state=_seed(generator)
    )
    return torch.from_numpy(model.fit(rows.double().numpy()).components_).to(rows.dtype)


def _rica(
    rows: Tensor,
    num: int,
    generator: torch.Generator,
    *,
    sparsity: float | int = 0.1,
    steps: int = 300,
    lr: float | int = 0.01,
    batch_size: int = 512,
) -> Tensor:
    """Minimises sparsity * sum log cosh(W x) + |W^T W x - x|^2 / 2."""
    weight = F.normalize(torch.randn(num, rows.shape[1], generator=generator), dim=1).requires_grad_()
    optimizer = torch.optim.Adam([weight], lr=lr)
    with torch.enable_grad():
        for _ in range(steps):
            batch = rows[torch.randint(0, len(rows), (batch_size,), generator=generator)]
            code = batch @ weight.T
            log_cosh = code.abs() + F.softplus(-2 * code.abs())
            loss = sparsity * log_cosh.sum(1).mean() + (code @ weight - batch).square().sum(1).mean() / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return weight.detach()


def _hebbian(
    rows: Tensor,
    num: int,
    generator: torch.Generator,
    *,
    rule: str = "sanger",
    steps: int = 3000,
    lr: float | int = 0.5,
    batch_size: int = 64,
) -> Tensor:
    """W += lr (y x^T - T(y y^T) W), y = W x: T keeps the lower triangle ("sanger") or everything ("oja").

    Sanger's rows come to the leading principal components in order; Oja's span their subspace. The rate falls to zero
    along half a cosine, and is relative to the patches' mean squared norm.
    """
    if rule not in ("sanger", "oja"):
        raise ValueError(f"rule must be sanger or oja, got {rule!r}")
    data = rows / rows.square().sum(dim=1).mean().sqrt()
    weight = torch.randn(num, rows.shape[1], generator=generator) * 0.1 / rows.shape[1] ** 0.5
    rates = lr * (1 + torch.cos(torch.pi * torch.arange(steps) / steps)) / 2
    for rate in rates:
        batch = data[torch.randint(0, len(data), (batch_size,), generator=generator)]
        code = batch @ weight.T
        second = code.T @ code / batch_size
        weight = weight + rate * (
            code.T @ batch / batch_size - (second.tril() if rule == "sanger" else second) @ weight
        )
    return weight


_ON_PATCHES: dict[str, Callable[..., Tensor]] = {
    "pca": _pca,
    "ica": _ica,
    "kmeans": _kmeans,
    "som": _som,
    "sparse_coding": _sparse_coding,
    "rica": _rica,
    "hebbian": _hebbian,
}
_ON_IMAGES: dict[str, Callable[..., Tensor]] = {"autoencoder": autoencoder_filters, "rotation": rotation_filters}
_WHITENED = ("kmeans", "som", "sparse_coding", "rica")

METHODS = (*_ON_PATCHES, *_ON_IMAGES)


def _seed(generator: torch.Generator) -> int:
    return int(torch.randint(0, 2**31 - 1, (1,), generator=generator))


def learn_filters(
    X: Any,
    method: str,
    size: int | None,
    num: int | None,
    *,
    seed: int = 0,
    patches: int = 10_000,
    whiten: bool | None = None,
    reg: float | int = 0.1,
    eps: float | int = 0.01,
    min_std: float | int = 0.02,
    color: str = "joint",
    **arguments,
) -> FilterBank:
    """Learns a bank of filters from images without labels.

        bank = learn_filters(images, "kmeans", size=7, num=32)
        cnn.conv1 = bank.to_conv(in_chans=1, trainable=True)

    | method | filters | arguments |
    | --- | --- | --- |
    | pca | leading eigenvectors of the patch covariance | |
    | ica | FastICA's unmixing filters | max_iter, tol |
    | kmeans | centroids of whitened patches | spherical, max_iter, minibatch |
    | som | units of a self-organising map, in the order of its grid | grid, steps, batch_size, radius, rate |
    | sparse_coding | atoms of a mini-batch dictionary | alpha, max_iter, batch_size |
    | rica | reconstruction ICA, overcomplete if you like | sparsity, steps, lr, batch_size |
    | hebbian | Sanger's or Oja's rule | rule, steps, lr, batch_size |
    | autoencoder | encoder kernels of a convolutional denoising auto-encoder | tied, noise, steps, lr, batch_size |
    | rotation | first kernels of a small CNN that predicts rotations by quarter turns | steps, lr, batch_size, width |

    Args:
        X: images, see `to_images`.
        method: one of `METHODS`.
        size: side of the kernels.
        num: number of filters.
        seed: of every draw.
        patches: drawn at random; the images are never unfolded.
        whiten: learn on ZCA-whitened patches and map the result back through the whitening matrix. None: for kmeans,
            som, sparse_coding and rica. The last two methods of the table do not whiten.
        reg: of the whitening, in the unit of the patches' variance (near 1). eps: of the contrast normalisation.
        min_std: patches of less are dropped, in the images' unit.
        color: "joint": filters have the images' channels; "luma": one channel, learned on brightness; "per_channel":
            one channel, learned on the channels as images by themselves.
        arguments: of the method.

    Returns:
        A bank of mean-free filters of unit norm, float32.

    Raises:
        ValueError: if the method is unknown, the images are constant or too small, or `num` exceeds what the method
            can give: k^2 C - 1 for pca, ica and hebbian, whose filters are independent.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if size is None or num is None or size < 2 or num < 1:
        raise ValueError(f"size must be at least 2 and num at least 1, got {size} and {num}")
    images = _coloured(to_images(X), color)
    generator = torch.Generator().manual_seed(seed)
    if method in _ON_IMAGES:
        if min(images.shape[2:]) < size:
            raise ValueError(f"kernels of {size} x {size} do not fit into images of {tuple(images.shape[2:])}")
        if bool(images.flatten(1).std(dim=1).amax() < min_std):
            raise ValueError(f"all images are nearly constant (standard deviation below {min_std})")
        if whiten:
            raise ValueError(f"{method} learns on images, which are not whitened")
        filters = _called(method, _ON_IMAGES[method], images, size, num, generator, arguments)
        return FilterBank(unit_filters(filters, name=method), method, {"seed": seed})
    drawn = sample_patches(images, size, patches, min_std=min_std, generator=generator)
    return learn_from_patches(drawn, method, num, whiten=whiten, reg=reg, eps=eps, generator=generator, **arguments)


def learn_from_patches(
    patches: Tensor,
    method: str,
    num: int,
    *,
    whiten: bool | None = None,
    reg: float | int = 0.1,
    eps: float | int = 0.01,
    generator: torch.Generator | None = None,
    **arguments,
) -> FilterBank:
    """Learns a bank from patches (n, channels, k, k) that are at hand; arguments as of `learn_filters`.

    Warns if there are fewer than ten patches for each filter.
    """
    if method not in _ON_PATCHES:
        raise ValueError(f"method must be one of {', '.join(_ON_PATCHES)}, got {method!r}")
    if patches.ndim != 4:
        raise ValueError(f"patches must have shape (n, channels, k, k), got {tuple(patches.shape)}")
    if len(patches) < num:
        raise ValueError(f"{num} filters need at least as many patches, got {len(patches)}")
    dim = patches[0].numel()
    if method in ("pca", "ica", "hebbian") and num > dim - 1:
        raise ValueError(
            f"{method} gives at most {dim - 1} filters of {dim} entries (patches have no mean), got num={num}"
        )
    if len(patches) < 10 * num:
        warnings.warn(f"{len(patches)} patches are few for {num} filters: fewer than ten for each", stacklevel=2)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    rows = contrast_normalised(patches, eps)
    whiten = method in _WHITENED if whiten is None else whiten
    whitening = Whitening.fit(rows, reg) if whiten else None
    data = rows if whitening is None else whitening(rows)
    with torch.no_grad():
        filters = _called(method, _ON_PATCHES[method], data, num, generator, arguments)
    if whitening is not None:
        filters = whitening.filters(filters)
    weight = unit_filters(filters.reshape(-1, *patches.shape[1:]), name=method)
    return FilterBank(weight, method, {"whitened": whiten})


def _called(method: str, function: Callable[..., Tensor], *given: Any) -> Tensor:
    *positional, arguments = given
    try:
        inspect.signature(function).bind(*positional, **arguments)
    except TypeError as error:
        raise ValueError(f"{method} does not take these arguments: {error}") from None
    return function(*positional, **arguments)


def _coloured(images: Tensor, color: str) -> Tensor:
    if color == "joint":
        return images
    if color == "per_channel":
        return images.flatten(0, 1)[:, None]
    if color == "luma":
        return images if images.shape[1] == 1 else to_images(images, 1)
    raise ValueError(f"color must be joint, luma or per_channel, got {color!r}")
