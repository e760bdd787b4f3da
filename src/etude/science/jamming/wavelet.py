"""The discrete wavelet transform as a bank of strided filters on batches of signals, on any device, with gradients."""

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["wavelet_bands"]


@lru_cache(maxsize=8)
def _filters(wavelet: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Low-pass and high-pass filter of the analysis, reversed."""
    try:
        import pywt
    except ImportError as error:
        raise ImportError("wavelets need PyWavelets: pip install 'etude[science]'") from error
    if wavelet not in pywt.wavelist(kind="discrete"):
        raise ValueError(f"wavelet must be a discrete wavelet of PyWavelets such as 'db4', got {wavelet!r}")
    bank = pywt.Wavelet(wavelet)
    return tuple(bank.dec_lo[::-1]), tuple(bank.dec_hi[::-1])


@lru_cache(maxsize=64)
def _extension(length: int, taps: int, mode: str) -> Tensor:
    """Which value stands at each place of the extended signal that the filters run over in steps of two."""
    if mode == "symmetric":
        windows = (length + taps - 1) // 2
        at = torch.arange(2 - taps, 2 - taps + 2 * (windows - 1) + taps) % (2 * length)
        return torch.where(at < length, at, 2 * length - 1 - at)
    windows = (length + 1) // 2
    at = torch.arange(1 - taps // 2, 1 - taps // 2 + 2 * (windows - 1) + taps) % (2 * windows)
    return at.clamp(max=length - 1)  # a signal of odd length repeats its last value


def _filtered(phases: tuple[Tensor, Tensor], taps: tuple[float, ...]) -> Tensor:
    """A filter in steps of two, on the even and the odd values apart."""
    windows = phases[0].shape[-1] - (len(taps) - 1) // 2
    output = phases[0][..., :windows] * taps[0]
    for place, tap in enumerate(taps[1:], start=1):
        output.add_(phases[place % 2][..., place // 2 : place // 2 + windows], alpha=tap)
    return output


def wavelet_bands(
    x: Float[Tensor, "*batch length"], wavelet: str = "db4", level: int = 4, mode: str = "symmetric"
) -> list[Float[Tensor, "*batch _"]]:
    """Approximation of the last level, then details from that level to the first: what `pywt.wavedec` gives.

    Args:
        x: signals.
        wavelet: a discrete wavelet of PyWavelets.
        level: of the decomposition, >= 1.
        mode: how a signal goes on beyond its ends, "symmetric" or "periodization".

    Raises:
        ImportError: without PyWavelets, which knows the filters.
        ValueError: if the wavelet or mode is unknown, or `level` too deep for the length.
    """
    low_pass, high_pass = _filters(wavelet)
    taps, length = len(low_pass), x.shape[-1]
    deepest = max((length // (taps - 1)).bit_length() - 1, 0)
    if not 1 <= level <= deepest:
        raise ValueError(f"level must lie in 1..{deepest} for {length} values of {wavelet}, got {level}")
    if mode not in ("symmetric", "periodization"):
        raise ValueError(f"mode must be 'symmetric' or 'periodization', got {mode!r}")
    bands: list[Tensor] = []
    for _ in range(level):
        at = _extension(x.shape[-1], taps, mode).to(x.device)
        phases = x.index_select(-1, at[0::2]), x.index_select(-1, at[1::2])
        bands.append(_filtered(phases, high_pass))
        x = _filtered(phases, low_pass)
    return [x, *reversed(bands)]
