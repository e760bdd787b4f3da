"""Wavelet filters as convolutions: one level, packets, and the periodic transform.

With the decomposition filters d of length F (low- or high-pass) and N even, along each axis

    out[n] = sum_j d[j] x[(2 n + F / 2 - j) mod N]                                                          (1)

which is PyWavelets' mode "periodization" and, as a cross-correlation, has the reversed filter, stride 2 and circular
padding F / 2 - 1. PyWavelets' names: A is low-pass on both axes, H high-pass down the rows' index, V along the columns,
D on both.
"""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

__all__ = ["packet_filters", "wavelet_transform"]

_BANDS = "AHVD"


def _reversed_pair(wavelet: str) -> tuple[np.ndarray, np.ndarray]:
    """Low- and high-pass decomposition filters in the order of a cross-correlation."""
    try:
        import pywt
    except ImportError as error:
        raise ImportError("wavelet filters need PyWavelets: pip install PyWavelets") from error
    if wavelet not in pywt.wavelist(kind="discrete"):
        raise ValueError(f"wavelet must be a discrete one of PyWavelets, such as haar, db2 or sym4, got {wavelet!r}")
    chosen = pywt.Wavelet(wavelet)
    return np.asarray(chosen.dec_lo)[::-1].copy(), np.asarray(chosen.dec_hi)[::-1].copy()


def packet_filters(wavelet: str = "haar", level: int = 1) -> tuple[np.ndarray, list[str]]:
    """Filters of all 4^level bands of a wavelet packet tree.

    Convolved with stride 2^level, a band's filter does at once what `level` steps of Eq. (1) do one after the other.

    Args:
        wavelet: a discrete wavelet of PyWavelets.
        level: depth of the tree, at least 1.

    Returns:
        Filters (4^level, k, k), k = (F - 1) (2^level - 1) + 1, and the path of each band, such as "AH": the bands of
        the first step, then of the second.

    Raises:
        ValueError: if the wavelet is unknown or the level not positive.
    """
    if level < 1:
        raise ValueError(f"level must be at least 1, got {level}")
    low, high = _reversed_pair(wavelet)
    lines: dict[str, np.ndarray] = {"": np.ones(1)}
    for step in range(level):
        spread = {}
        for letter, taps in (("l", low), ("h", high)):
            wide = np.zeros((len(taps) - 1) * 2**step + 1)
            wide[:: 2**step] = taps
            spread[letter] = wide
        lines = {
            path + letter: np.convolve(line, wide) for path, line in lines.items() for letter, wide in spread.items()
        }
    sides = {"A": "ll", "H": "hl", "V": "lh", "D": "hh"}  # along the rows' index, along the columns
    paths = [""]
    for _ in range(level):
        paths = [path + band for path in paths for band in _BANDS]
    filters = [
        np.outer(lines["".join(sides[b][0] for b in path)], lines["".join(sides[b][1] for b in path)]) for path in paths
    ]
    return np.stack(filters), paths


def wavelet_transform(
    x: Float[Tensor, "batch channels height width"], wavelet: str = "haar"
) -> Float[Tensor, "batch channels 4 half_height half_width"]:
    """One level of the periodic discrete wavelet transform, Eq. (1), of every channel: bands A, H, V, D.

    Equals `pywt.dwt2(..., mode="periodization")`.

    Raises:
        ValueError: if height or width is odd, or shorter than the filter's reach.
    """
    height, width = x.shape[2:]
    filters, _ = packet_filters(wavelet)
    reach = filters.shape[1] // 2 - 1
    if height % 2 or width % 2:
        raise ValueError(f"the periodic transform halves height and width: they must be even, got {height} x {width}")
    if min(height, width) < max(reach, 1):
        raise ValueError(f"{wavelet} needs images of at least {reach} pixels a side, got {height} x {width}")
    weight = torch.from_numpy(filters).to(x)[:, None]
    padded = F.pad(x.flatten(0, 1)[:, None], (reach,) * 4, mode="circular")
    return F.conv2d(padded, weight, stride=2).unflatten(0, x.shape[:2])
