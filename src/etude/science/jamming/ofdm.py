"""OFDM with normal cyclic prefix for a grid of 240 subcarriers around DC.

3GPP TS 38.211, section 5.3.1, with a unitary transform: the samples of a symbol, without their prefix, carry the
energy of its subcarriers. Subcarrier 120 of the grid stands at frequency zero.
"""

import torch
from jaxtyping import Complex
from torch import Tensor

__all__ = ["NUM_SUBCARRIERS", "block_length", "cyclic_prefix", "ofdm_demodulate", "ofdm_modulate", "sample_rate"]

NUM_SUBCARRIERS = 240
BLOCK_SYMBOLS = 4


def _check(nfft: int, scs: float | int) -> None:
    if nfft not in (256, 512, 1024, 2048, 4096):
        raise ValueError(f"nfft must be 256, 512, 1024, 2048 or 4096, got {nfft}")
    if scs not in (15e3, 30e3):
        raise ValueError(f"scs must be 15e3 or 30e3 Hz (blocks below 6 GHz), got {scs}")


def sample_rate(nfft: int = 256, scs: float | int = 30e3) -> float:
    """Samples per second: 7.68e6 for the default."""
    _check(nfft, scs)
    return float(nfft * scs)


def cyclic_prefix(nfft: int = 256, scs: float | int = 30e3, symbol: int | None = None) -> int:
    """Samples of the prefix of a symbol: 18 for 256 bins; longer on the first symbol of each half millisecond.

    Args:
        nfft: number of bins, a power of two in 256..4096.
        scs: subcarrier spacing in Hz, 15e3 or 30e3.
        symbol: number of the symbol in its half frame; None for one that does not open a half millisecond, as all
            symbols of all blocks are.
    """
    _check(nfft, scs)
    first = symbol is not None and symbol % round(7 * scs / 15e3) == 0
    return nfft * 9 // 128 + (round(nfft * scs / 1.92e6) if first else 0)


def block_length(nfft: int = 256, scs: float | int = 30e3) -> int:
    """Samples of the four symbols of a block: 1096 for 256 bins."""
    return BLOCK_SYMBOLS * (nfft + cyclic_prefix(nfft, scs))


def _prefixes(symbols: int, nfft: int, scs: float | int, start_symbol: int | None) -> list[int]:
    numbers = [None] * symbols if start_symbol is None else range(start_symbol, start_symbol + symbols)
    return [cyclic_prefix(nfft, scs, number) for number in numbers]


def ofdm_modulate(
    grid: Complex[Tensor, "*batch 240 symbols"],
    nfft: int = 256,
    scs: float | int = 30e3,
    *,
    start_symbol: int | None = None,
) -> Complex[Tensor, "*batch samples"]:
    """The samples of a grid: x = sqrt(nfft) IFFT of each symbol, its tail put before it as cyclic prefix.

    Args:
        grid: value of subcarrier k in symbol l.
        nfft: number of bins. scs: subcarrier spacing in Hz.
        start_symbol: number of the first symbol in its half frame, if some may have the longer prefix.

    Raises:
        ValueError: if `nfft` or `scs` is not supported.
    """
    half = NUM_SUBCARRIERS // 2
    symbols = grid.transpose(-1, -2)
    empty = symbols.new_zeros(*symbols.shape[:-1], nfft - NUM_SUBCARRIERS)
    prefixes = _prefixes(symbols.shape[-2], nfft, scs, start_symbol)
    time = torch.fft.ifft(torch.cat([symbols[..., half:], empty, symbols[..., :half]], dim=-1), norm="ortho")
    if len(set(prefixes)) == 1:
        return torch.cat([time[..., nfft - prefixes[0] :], time], dim=-1).flatten(-2)
    parts = [torch.cat([x[..., nfft - prefix :], x], dim=-1) for x, prefix in zip(time.unbind(-2), prefixes)]
    return torch.cat(parts, dim=-1)


def ofdm_demodulate(
    samples: Complex[Tensor, "*batch samples"],
    nfft: int = 256,
    scs: float | int = 30e3,
    *,
    symbols: int = BLOCK_SYMBOLS,
    start_symbol: int | None = None,
) -> Complex[Tensor, "*batch 240 symbols"]:
    """The grid behind samples that begin with a symbol's prefix; the inverse of `ofdm_modulate`.

    Raises:
        ValueError: if `nfft` or `scs` is not supported, or there are fewer samples than `symbols` symbols have.
    """
    prefixes = _prefixes(symbols, nfft, scs, start_symbol)
    needed = sum(prefixes) + symbols * nfft
    if samples.shape[-1] < needed:
        raise ValueError(f"{symbols} symbols at nfft {nfft} have {needed} samples, got {samples.shape[-1]}")
    windows, position = [], 0
    for prefix in prefixes:
        windows.append(samples[..., position + prefix : position + prefix + nfft])
        position += prefix + nfft
    return bins_to_grid(torch.fft.fft(torch.stack(windows, dim=-2), norm="ortho"))


def bins_to_grid(bins: Complex[Tensor, "*batch symbols nfft"]) -> Complex[Tensor, "*batch 240 symbols"]:
    """Subcarriers 0..239 out of the bins of a transform, with DC at subcarrier 120."""
    half = NUM_SUBCARRIERS // 2
    return torch.cat([bins[..., -half:], bins[..., :half]], dim=-1).transpose(-1, -2)
