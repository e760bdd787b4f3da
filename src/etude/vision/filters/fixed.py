"""Filter banks that are given by formulas: Gabor, cosine, wavelet, Hadamard, and the classical edge filters.

Coordinates are x = column and y = row, both from the centre (k - 1) / 2 of the kernel, so that even sizes have a
half-pixel centre.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from etude.vision.filters.bank import FilterBank, unit_filters
from etude.vision.filters.textures import leung_malik, mr8, schmid
from etude.vision.filters.wavelets import packet_filters

__all__ = ["BANKS", "filter_bank", "max_response"]

_COMPASS = {
    "sobel": [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]],
    "prewitt": [[-1, 0, 1], [-1, 0, 1], [-1, 0, 1]],
}
_RING = ((0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0))


def grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """(x, y): column and row from the centre, both (size, size), float64."""
    axis = np.arange(size) - (size - 1) / 2
    return axis[None, :].repeat(size, 0), axis[:, None].repeat(size, 1)


def _gabor(
    size: int,
    num: int | None,
    dc: bool,
    *,
    orientations: int | None = None,
    wavelengths: Sequence[float | int] | None = None,
    phases: Sequence[float | int] = (0.0, math.pi / 2),
    gamma: float | int = math.sqrt(0.5),
    bandwidth: float | int = 0.45,
) -> tuple[np.ndarray, dict[str, Any]]:
    """exp(-(x'^2 + gamma^2 y'^2) / (2 sigma^2)) cos(2 pi x' / lambda + psi) with sigma = bandwidth lambda."""
    lengths = np.asarray([size / 2, 6 * size / 7] if wavelengths is None else wavelengths, dtype=np.float64)
    each = len(lengths) * len(phases)
    if orientations is None:
        if num is not None and num % each:
            raise ValueError(
                f"a Gabor bank has {each} filters for each orientation ({len(lengths)} wavelengths, {len(phases)} "
                f"phases): num must be a multiple of {each}, got {num}"
            )
        orientations = 8 if num is None else num // each
    if orientations < 1 or not (lengths > 0).all() or not gamma > 0 or not bandwidth > 0:
        raise ValueError(
            f"orientations, wavelengths, gamma and bandwidth must be positive, got {orientations}, {lengths.tolist()}, "
            f"{gamma} and {bandwidth}"
        )
    angles = np.pi * np.arange(orientations) / orientations
    theta, wave, psi = (
        axis.reshape(-1, 1, 1) for axis in np.meshgrid(angles, lengths, np.asarray(phases, float), indexing="ij")
    )
    x, y = grid(size)
    along, across = x * np.cos(theta) + y * np.sin(theta), -x * np.sin(theta) + y * np.cos(theta)
    sigma = bandwidth * wave
    filters = np.exp(-(along**2 + gamma**2 * across**2) / (2 * sigma**2)) * np.cos(2 * np.pi * along / wave + psi)
    facts = {"orientation": theta.ravel(), "frequency": 1 / wave.ravel(), "phase": psi.ravel()}
    return filters, facts


def _zigzag(size: int) -> list[tuple[int, int]]:
    pairs = [(u, v) for u in range(size) for v in range(size)]
    return sorted(pairs, key=lambda pair: (sum(pair), pair[0] if sum(pair) % 2 else pair[1]))


def _dct(size: int, num: int | None, dc: bool) -> tuple[np.ndarray, dict[str, Any]]:
    n = np.arange(size)
    rows = np.cos(np.pi * (2 * n[None] + 1) * n[:, None] / (2 * size)) * math.sqrt(2 / size)
    rows[0] /= math.sqrt(2)
    order = _zigzag(size)[0 if dc else 1 :]
    kept = np.array(order[: _limited(num, len(order), "dct", f"a {size} x {size} kernel has", dc)])
    filters = rows[kept[:, 0], :, None] * rows[kept[:, 1], None, :]
    rate = kept / (2 * size)  # cycles per pixel down the rows and along the columns
    return filters, {
        "row_frequency": rate[:, 0], "column_frequency": rate[:, 1],
        "frequency": np.hypot(rate[:, 0], rate[:, 1]), "orientation": np.arctan2(rate[:, 0], rate[:, 1]),
    }  # fmt: skip


def _hadamard(size: int, num: int | None, dc: bool) -> tuple[np.ndarray, dict[str, Any]]:
    if size & (size - 1):
        raise ValueError(f"a Hadamard bank needs a size that is a power of two, got {size}")
    matrix = scipy.linalg.hadamard(size).astype(np.float64)
    matrix = matrix[np.argsort((np.diff(matrix, axis=1) != 0).sum(axis=1))]  # by the number of sign changes
    order = _zigzag(size)[0 if dc else 1 :]
    kept = np.array(order[: _limited(num, len(order), "hadamard", f"a {size} x {size} kernel has", dc)])
    return matrix[kept[:, 0], :, None] * matrix[kept[:, 1], None, :], {"sequency": kept.sum(axis=1)}


def _wavelet(
    size: int | None, num: int | None, dc: bool, *, wavelet: str = "haar", level: int = 1
) -> tuple[np.ndarray, dict[str, Any]]:
    filters, bands = packet_filters(wavelet, level)
    if size is not None and size != filters.shape[1]:
        raise ValueError(
            f"filters of {wavelet} at level {level} have size {filters.shape[1]}, got size={size}; None takes that one"
        )
    rows = list(range(0 if dc else 1, len(bands)))  # the first is the approximation of the approximation
    rows = rows[: _limited(num, len(rows), "wavelet", f"{wavelet} at level {level} has", dc)]
    return filters[rows], {"band": [bands[row] for row in rows], "wavelet": wavelet, "level": level}


def _compass(name: str, size: int, num: int | None) -> tuple[np.ndarray, dict[str, Any]]:
    if size != 3:
        raise ValueError(f"{name} filters are 3 x 3, got size={size}")
    count = _limited(num, 4, name, "there are", True)
    base, filters = np.asarray(_COMPASS[name], dtype=np.float64), []
    for turn in range(count):
        turned = np.zeros((3, 3))
        for place, (row, column) in enumerate(_RING):
            turned[_RING[(place + turn) % 8]] = base[row, column]
        filters.append(turned)
    return np.stack(filters), {"orientation": np.pi / 4 * np.arange(count)}


def _laplacian(size: int, num: int | None) -> tuple[np.ndarray, dict[str, Any]]:
    if size != 3:
        raise ValueError(f"laplacian filters are 3 x 3, got size={size}")
    count = _limited(num, 2, "laplacian", "there are", True)
    filters = np.array([[[0, 1, 0], [1, -4, 1], [0, 1, 0]], [[1, 1, 1], [1, -8, 1], [1, 1, 1]]], dtype=np.float64)
    return filters[:count], {}


def _scales(size: int, num: int | None, sigmas: Sequence[float | int] | None) -> np.ndarray:
    if sigmas is None:
        sigmas = np.geomspace(size / 10, size / 4, 4 if num is None else num).tolist()
    elif num is not None and num != len(sigmas):
        raise ValueError(f"num is {num}, but there are {len(sigmas)} sigmas")
    if not all(sigma > 0 for sigma in sigmas):
        raise ValueError(f"sigmas must be positive, got {list(sigmas)}")
    return np.asarray(sigmas, dtype=np.float64).reshape(-1, 1, 1)


def _log(size: int, num: int | None, dc: bool, *, sigmas: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
    sigma = _scales(size, num, sigmas)
    x, y = grid(size)
    square = (x**2 + y**2) / sigma**2
    return (square - 2) * np.exp(-square / 2), {"sigma": sigma.ravel()}


def _dog(
    size: int, num: int | None, dc: bool, *, sigmas: Any = None, ratio: float | int = 1.6
) -> tuple[np.ndarray, dict[str, Any]]:
    if not ratio > 1:
        raise ValueError(f"ratio, of the outer Gaussian's width to the inner's, must exceed 1, got {ratio}")
    sigma = _scales(size, num, sigmas)
    x, y = grid(size)
    square = x**2 + y**2
    narrow, wide = (np.exp(-square / (2 * s**2)) / s**2 for s in (sigma, ratio * sigma))
    return narrow - wide, {"sigma": sigma.ravel()}


def _gaussian_derivatives(
    size: int, num: int | None, dc: bool, *, sigma: float | int | None = None, order: int = 4
) -> tuple[np.ndarray, dict[str, Any]]:
    """All partial derivatives of a Gaussian of orders 1 to `order` (from 0 with dc)."""
    width = size / 6 if sigma is None else float(sigma)
    if not width > 0 or not 1 <= order <= 4:
        raise ValueError(f"sigma must be positive and order in 1..4, got {sigma} and {order}")
    orders = [(total - a, a) for total in range(0 if dc else 1, order + 1) for a in range(total + 1)]
    orders = orders[: _limited(num, len(orders), "gaussian_derivatives", f"up to order {order} there are", dc)]
    axis = (np.arange(size) - (size - 1) / 2) / width
    gauss = np.exp(-(axis**2) / 2)
    lines = [(-1) ** n * np.polynomial.hermite_e.hermeval(axis, [0] * n + [1]) * gauss for n in range(order + 1)]
    filters = np.stack([lines[down][:, None] * lines[across][None, :] for across, down in orders])
    return filters, {"order_x": np.array([a for a, _ in orders]), "order_y": np.array([b for _, b in orders])}


def _random(
    size: int, num: int | None, dc: bool, *, seed: int = 0, channels: int = 1
) -> tuple[np.ndarray, dict[str, Any]]:
    count = size * size if num is None else num
    return np.random.default_rng(seed).standard_normal((count, channels, size, size)), {"seed": seed}


def _limited(num: int | None, available: int, name: str, what: str, dc: bool) -> int:
    if num is not None and num > available:
        without = "" if dc else " without the constant one (dc=True)"
        raise ValueError(f"{name}: {what} {available} filters{without}, got num={num}")
    return available if num is None else num


BANKS: dict[str, Callable[..., tuple[np.ndarray, dict[str, Any]]]] = {
    "gabor": _gabor,
    "dct": _dct,
    "hadamard": _hadamard,
    "wavelet": _wavelet,
    "sobel": lambda size, num, dc: _compass("sobel", size, num),
    "prewitt": lambda size, num, dc: _compass("prewitt", size, num),
    "laplacian": lambda size, num, dc: _laplacian(size, num),
    "log": _log,
    "dog": _dog,
    "gaussian_derivatives": _gaussian_derivatives,
    "schmid": schmid,
    "leung_malik": leung_malik,
    "mr8": mr8,
    "random": _random,
}
"""Name -> function of (size, num, dc, **arguments) that gives filters (num, size, size) and facts about each."""


def filter_bank(name: str, size: int | None, num: int | None = None, *, dc: bool = False, **arguments) -> FilterBank:
    """A bank of given filters, of unit L2 norm and, unless `dc`, mean zero.

        bank = filter_bank("gabor", size=7, num=32)

    | name | filters | arguments |
    | --- | --- | --- |
    | gabor | orientations x wavelengths x phases; 8 x {k/2, 6k/7} x {even, odd} = 32 | orientations, wavelengths, \
phases, gamma, bandwidth |
    | dct | products of cosines in zig-zag order; the full bank with dc is an orthonormal basis | |
    | hadamard | products of Walsh functions in zig-zag order; size a power of two | |
    | wavelet | PyWavelets' decomposition filters, see `packet_filters`; they give the size | wavelet, level |
    | sobel, prewitt | 3 x 3, orientations 0, 45, 90, 135 degrees | |
    | laplacian | 3 x 3, of 4 and of 8 neighbours | |
    | log, dog | Laplacian and difference of Gaussians at several scales | sigmas (ratio) |
    | gaussian_derivatives | of orders 1 to 4 (14 filters) | sigma, order |
    | schmid | 13 rotation-invariant filters | |
    | leung_malik | 48 filters: edges, bars, spots | |
    | mr8 | the 38 filters of which the largest in each of 8 groups is kept (`max_response`) | |
    | random | independent normal entries, the control | seed, channels |

    Args:
        name: one of the above.
        size: side of the kernels in pixels, at least 2; None for wavelets.
        num: number of filters; all that there are (of "log" and "dog" 4, of "random" size^2) if None.
        dc: allow filters with a mean: the constant function, the wavelet's approximation, Gaussians.
        arguments: of the bank.

    Returns:
        A bank of one channel (of "random": of `channels`), float32.

    Raises:
        ValueError: if the name is unknown, an argument out of range, or there are fewer than `num` filters.
    """
    if name not in BANKS:
        raise ValueError(f"name must be one of {', '.join(BANKS)}, got {name!r}")
    if num is not None and num < 1:
        raise ValueError(f"num must be at least 1, got {num}")
    if size is None and name != "wavelet":
        raise ValueError(f"{name} needs a size")
    if size is not None and size < 2:
        raise ValueError(f"size must be at least 2, got {size}")
    try:
        filters, facts = BANKS[name](size, num, dc, **arguments)
    except TypeError as error:
        raise ValueError(f"{name} does not take these arguments: {error}") from None
    kernels = torch.from_numpy(np.ascontiguousarray(filters if filters.ndim == 4 else filters[:, None]))
    weight = unit_filters(kernels, dc=dc, name=name).float()
    return FilterBank(weight, name, {key: _entries(value) for key, value in facts.items()})


def _entries(value: Any) -> Any:
    return torch.from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value


def max_response(responses: Tensor, groups: Tensor) -> Tensor:
    """The largest response of each group of filters: (batch, num, h, w) -> (batch, groups, h, w), as MR8 does.

    Args:
        responses: of a bank's filters.
        groups: the group of each filter, 0, 1, ...; `filter_bank("mr8", size).meta["group"]`.
    """
    if groups.shape != (responses.shape[1],):
        raise ValueError(
            f"groups must name a group for each of {responses.shape[1]} filters, got {tuple(groups.shape)}"
        )
    parts = [responses[:, groups == group].amax(dim=1) for group in range(int(groups.max()) + 1)]
    return torch.stack(parts, dim=1)
