"""What domain knowledge says moves under jamming: the PSS correlation and the energy on elements that must be empty.

Asemian, Amini, Kantarci & Erol-Kantarci, arXiv:2403.02645, 2024. The correlation with the three primary
synchronisation signals finds the block and shows what disturbs it; the energy per null resource element (EPNRE) holds
noise and jammer only. A wavelet transform compresses the correlation.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Complex, Float, Int64, Shaped
from scipy.fft import next_fast_len
from torch import Tensor

from etude.science.jamming.dataset import agc
from etude.science.jamming.ofdm import (
    BLOCK_SYMBOLS,
    NUM_SUBCARRIERS,
    bins_to_grid,
    block_length,
    cyclic_prefix,
    ofdm_modulate,
    sample_rate,
)
from etude.science.jamming.sequences import pss
from etude.science.jamming.ssb import ssb_indices
from etude.science.jamming.wavelet import wavelet_bands

__all__ = [
    "FeatureSet",
    "NullEnergy",
    "PSSCorrelation",
    "SSBFeatures",
    "as_signals",
    "block_grid",
    "cut_block",
    "epnre",
    "find_blocks",
    "pss_correlation",
    "spectrum_summary",
]

_LOG_FLOOR = 1e-6
_CHUNK = 512


def as_signals(x: Shaped[Tensor, "..."] | np.ndarray, samples: int) -> Complex[Tensor, "*batch n"]:
    """Complex signals of at least `samples` samples in the last dimension.

    Raises:
        ValueError: if the values are real or the signals too short.
    """
    signals = torch.as_tensor(x)
    if not signals.is_complex():
        raise ValueError(
            f"signals must be complex (I + jQ), got {str(signals.dtype).removeprefix('torch.')} "
            f"of shape {tuple(signals.shape)}"
        )
    if signals.ndim < 1 or signals.shape[-1] < samples:
        raise ValueError(f"signals must have at least {samples} samples, got shape {tuple(signals.shape)}")
    return signals.to(torch.complex64)


class PSSCorrelation(NamedTuple):
    """|c(n)| of the best of the three PSS, where its peak stands, and which PSS it is."""

    magnitude: Float[Tensor, "*batch lags"]
    peak: Int64[Tensor, "*batch"]
    n_id_2: Int64[Tensor, "*batch"]


@lru_cache(maxsize=8)
def _replicas(nfft: int) -> Complex[Tensor, "3 nfft"]:
    grid = torch.zeros(3, NUM_SUBCARRIERS, 1, dtype=torch.complex64)
    grid[:, 56:183, 0] = pss(torch.arange(3)).to(torch.complex64)
    return ofdm_modulate(grid, nfft)[:, cyclic_prefix(nfft) :] / 127**0.5


def pss_correlation(
    y: Shaped[Tensor, "*batch samples"] | np.ndarray, *, nfft: int = 256, local_norm: bool = False
) -> PSSCorrelation:
    """c(n) = sum_m y(n + m) conj(r(m)) with the PSS replica r of unit norm that has the highest peak.

    A block that begins at sample 0 has its peak at the length of the cyclic prefix.

    Args:
        y: signals of unit mean power, or of any power with `local_norm`.
        nfft: number of bins, the length of a replica.
        local_norm: divide by the norm of the samples under the replica, so that 0 <= |c| <= 1.

    Raises:
        ValueError: if `y` is real or shorter than a replica.
    """
    y = as_signals(y, nfft)
    samples = y.shape[-1]
    size, lags = next_fast_len(samples), samples - nfft + 1
    replicas = torch.fft.fft(_replicas(nfft).to(y.device), size).conj()
    spectra = torch.fft.fft(y, size).unsqueeze(-2) * replicas
    candidates = torch.fft.ifft(spectra)[..., :lags].abs()
    if local_norm:
        energy = torch.view_as_real(y).double().square().sum(dim=-1).cumsum(dim=-1)
        energy = torch.nn.functional.pad(energy, (1, 0))
        floor = energy[..., -1:] * (1e-6 * nfft / samples) + 1e-30  # silence correlates with nothing
        under = torch.maximum(energy[..., nfft:] - energy[..., :lags], floor).rsqrt().to(candidates.dtype)
        candidates = candidates * under.unsqueeze(-2)
    height, place = candidates.max(dim=-1)
    best = height.argmax(dim=-1, keepdim=True)
    chosen = candidates.gather(-2, best.unsqueeze(-1).expand(*best.shape, lags)).squeeze(-2)
    return PSSCorrelation(chosen, place.gather(-1, best).squeeze(-1), best.squeeze(-1))


def block_grid(
    y: Complex[Tensor, "*batch samples"], peak: Int64[Tensor, "*batch"], *, nfft: int = 256, scs: float | int = 30e3
) -> Complex[Tensor, "*batch 240 4"]:
    """The grid of the block whose PSS correlation peaks at `peak`.

    The windows of the transform start nfft / 32 samples (8 of 18 prefix samples) before the nominal place: late paths
    then stay inside the prefix, and the peak may stand on any of them. Windows are clipped to the record.
    """
    period = nfft + cyclic_prefix(nfft, scs)
    steps = torch.arange(BLOCK_SYMBOLS, device=y.device)[:, None] * period + torch.arange(nfft, device=y.device)
    at = (peak[..., None, None] - nfft // 32 + steps).clamp(0, y.shape[-1] - 1)
    windows = y.gather(-1, at.flatten(-2)).unflatten(-1, (BLOCK_SYMBOLS, nfft))
    return bins_to_grid(torch.fft.fft(windows, norm="ortho"))


class NullEnergy(NamedTuple):
    """Energies of the 130 empty elements, and their means over symbol 0 (113 of them) and symbol 2 (17)."""

    energies: Float[Tensor, "*batch 130"]
    means: Float[Tensor, "*batch 2"]


def epnre(grid: Complex[Tensor, "*batch 240 4"]) -> NullEnergy:
    """EPNRE = (1 / |N|) sum over N of |Y_k|^2, with N the empty elements of symbol 0 and of symbol 2."""
    k, symbol = ssb_indices(0)["null"]
    energies = torch.view_as_real(grid[..., k.to(grid.device), symbol.to(grid.device)]).square().sum(dim=-1)
    first = int((symbol == 0).sum())
    means = [energies[..., :first].mean(dim=-1), energies[..., first:].mean(dim=-1)]
    return NullEnergy(energies, torch.stack(means, dim=-1))


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Features of a batch of records, for both networks of the cascade; a dimension of looks may follow the first.

    Args:
        first: approximation band of the log correlation and the two log EPNRE means (61 values by default).
        second: approximation and detail bands of level 4, 3, 2, log energies of the 130 empty elements, the same
            sorted, and the log of the correlation's peak and median (706 values).
        energy: log of the mean energy over all empty elements: what an energy detector compares with a threshold.
    """

    first: Float[Tensor, "n *looks d1"]
    second: Float[Tensor, "n *looks d2"]
    energy: Float[Tensor, "n *looks"]

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, index: "slice | Tensor | tuple") -> "FeatureSet":
        return FeatureSet(self.first[index], self.second[index], self.energy[index])

    @staticmethod
    def concatenate(sets: "list[FeatureSet]") -> "FeatureSet":
        return FeatureSet(*(torch.cat([getattr(s, name) for s in sets]) for name in ("first", "second", "energy")))


class SSBFeatures:
    """Features of records, standardised by the statistics of the records it was fitted on.

        features = SSBFeatures().fit(train_signals)
        inputs = features.transform(test_signals).first

    Args:
        wavelet, level: of the transform of the log correlation; the level must leave bands 4, 3, 2, so it is >= 2.
        mode: how a curve goes on beyond its ends, see `wavelet_bands`.
        nfft, scs: number of bins and subcarrier spacing; together they are the sample rate.
        local_norm: see `pss_correlation`.

    Raises:
        ValueError: if `level`, `nfft` or `scs` is not supported.
    """

    def __init__(
        self,
        wavelet: str = "db4",
        level: int = 4,
        *,
        mode: str = "symmetric",
        nfft: int = 256,
        scs: float | int = 30e3,
        local_norm: bool = False,
    ):
        if level < 2:
            raise ValueError(f"level must be at least 2, got {level}")
        self.wavelet, self.level, self.mode = wavelet, level, mode
        self.nfft, self.scs, self.local_norm = nfft, scs, local_norm
        self.samples, self.sample_rate = block_length(nfft, scs), sample_rate(nfft, scs)

    def extract(self, signals: Tensor | np.ndarray, *, sample_rate: float | int | None = None) -> FeatureSet:
        """The features as they are, before standardisation; each record is brought to unit power first.

        Args:
            signals: complex records of one block each, (n, samples) or (n, looks, samples).
            sample_rate: of the signals, in Hz, if known; checked against `nfft` and `scs`.

        Raises:
            ValueError: if records are real, of another length, all zero, or of another sample rate.
        """
        if sample_rate is not None and sample_rate != self.sample_rate:
            raise ValueError(
                f"signals must have the sample rate nfft * scs = {self.nfft} * {self.scs:g} = {self.sample_rate:g} Hz, "
                f"got {sample_rate:g} Hz; resample them or choose nfft to fit"
            )
        signals = as_signals(signals, self.samples)
        if signals.ndim not in (2, 3) or signals.shape[-1] != self.samples:
            raise ValueError(
                f"records must have shape (n, {self.samples}) or (n, looks, {self.samples}), got "
                f"{tuple(signals.shape)}; find_blocks cuts records out of a long recording"
            )
        return FeatureSet.concatenate([self._extract(chunk) for chunk in signals.split(_CHUNK)])

    def _extract(self, signals: Tensor) -> FeatureSet:
        signals = agc(signals)
        correlation = pss_correlation(signals, nfft=self.nfft, local_norm=self.local_norm)
        magnitude = correlation.magnitude
        lags = magnitude.shape[-1]
        turn = correlation.peak.unsqueeze(-1) - cyclic_prefix(self.nfft, self.scs)
        at = (torch.arange(lags, device=signals.device) + turn) % lags
        curve = (magnitude.gather(-1, at) + _LOG_FLOOR).log()
        bands = wavelet_bands(curve, self.wavelet, self.level, self.mode)
        null = epnre(block_grid(signals, correlation.peak, nfft=self.nfft, scs=self.scs))
        log_energies = (null.energies + _LOG_FLOOR**2).log()
        summary = torch.stack([curve.amax(dim=-1), curve.median(dim=-1).values], dim=-1)
        return FeatureSet(
            first=torch.cat([bands[0], null.means.log()], dim=-1),
            second=torch.cat([*bands[:-1], log_energies, log_energies.sort(dim=-1).values, summary], dim=-1),
            energy=null.energies.mean(dim=-1).log(),
        )

    def fit(self, signals: Tensor | np.ndarray | FeatureSet) -> "SSBFeatures":
        """Takes mean and standard deviation of each feature from `signals`, or from features extracted before."""
        raw = signals if isinstance(signals, FeatureSet) else self.extract(signals)
        flat = [values.flatten(0, -2).double() for values in (raw.first, raw.second)]
        self.means_ = [values.mean(dim=0) for values in flat]
        self.stds_ = [values.std(dim=0, correction=0).clamp(min=1e-6) for values in flat]
        return self

    def transform(
        self, signals: Tensor | np.ndarray | FeatureSet, *, sample_rate: float | int | None = None
    ) -> FeatureSet:
        """Standardised features; `energy` stays in its own unit.

        Raises:
            RuntimeError: before `fit`.
            ValueError: as `extract`.
        """
        if not hasattr(self, "means_"):
            raise RuntimeError("call fit with training signals before transform")
        raw = signals if isinstance(signals, FeatureSet) else self.extract(signals, sample_rate=sample_rate)
        scaled = [
            ((values.double() - mean.to(values.device)) / std.to(values.device)).float()
            for values, mean, std in zip((raw.first, raw.second), self.means_, self.stds_)
        ]
        return FeatureSet(scaled[0], scaled[1], raw.energy)

    def fit_transform(self, signals: Tensor | np.ndarray | FeatureSet) -> FeatureSet:
        raw = signals if isinstance(signals, FeatureSet) else self.extract(signals)
        return self.fit(raw).transform(raw)


def spectrum_summary(
    signals: Shaped[Tensor, "n samples"] | np.ndarray, *, nfft: int = 256
) -> Float[Tensor, "n values"]:
    """Least, mean and largest log power of each frequency over time: what one computes who knows nothing of 5G.

    Short-time spectra with a Hann window of `nfft` samples and steps of a quarter of it, 3 `nfft` values a record.
    It is a control for the features above, which know where a block stands and which of its elements are empty.
    """
    signals = as_signals(signals, nfft)
    window = torch.hann_window(nfft, device=signals.device)
    rows = []
    for chunk in agc(signals).split(_CHUNK):
        spectra = torch.fft.fft(chunk.unfold(-1, nfft, nfft // 4) * window, norm="ortho")
        log_power = (torch.view_as_real(spectra).square().sum(dim=-1) + _LOG_FLOOR).log()
        rows.append(torch.cat([log_power.amin(dim=1), log_power.mean(dim=1), log_power.amax(dim=1)], dim=-1))
    return torch.cat(rows)


def cut_block(
    signals: Shaped[Tensor, "n samples"] | np.ndarray, *, nfft: int = 256, scs: float | int = 30e3
) -> tuple[Complex[Tensor, "n block"], Float[Tensor, "n"]]:
    """The strongest block of each signal, cut to the length that `SSBFeatures` takes, and how sure it is.

    Args:
        signals: at the sample rate `nfft` times `scs`, centred on the block's subcarrier 120.
        nfft, scs: number of bins and subcarrier spacing in Hz.

    Returns:
        The blocks, and the normalised correlation of their PSS in 0..1.

    Raises:
        ValueError: if signals are real or shorter than a block.
    """
    length, prefix = block_length(nfft, scs), cyclic_prefix(nfft, scs)
    signals = as_signals(signals, length)
    if signals.ndim != 2:
        raise ValueError(f"signals must have shape (n, samples), got {tuple(signals.shape)}")
    found = pss_correlation(signals, nfft=nfft, local_norm=True)
    sure, start = found.magnitude[:, prefix : signals.shape[1] - length + prefix + 1].max(dim=1)
    return signals.gather(1, start.unsqueeze(1) + torch.arange(length, device=signals.device)), sure


def find_blocks(
    samples: Shaped[Tensor, "samples"] | np.ndarray,
    *,
    period: float | int = 20e-3,
    nfft: int = 256,
    scs: float | int = 30e3,
    threshold: float | int = 0.3,
) -> Complex[Tensor, "blocks n"]:
    """The strongest block of each burst period of a recording.

    Args:
        samples: a recording, see `cut_block`.
        period: of the bursts, in seconds.
        nfft, scs: number of bins and subcarrier spacing in Hz.
        threshold: least normalised correlation of a PSS, in 0..1; periods without one are left out.

    Raises:
        ValueError: if the recording is real or shorter than a block, or `period` or `threshold` out of range.
    """
    length = block_length(nfft, scs)
    step = round(period * sample_rate(nfft, scs))
    if step < length or not 0 <= threshold <= 1:
        raise ValueError(f"period must hold a block and threshold lie in 0..1, got {period} s and {threshold}")
    recording = as_signals(samples, length)
    if recording.ndim != 1:
        raise ValueError(f"a recording has shape (samples,), got {tuple(recording.shape)}")
    starts = range(0, len(recording) - length + 1, step)
    found = [cut_block(recording[None, start : start + step + length - 1], nfft=nfft, scs=scs) for start in starts]
    blocks, sure = (torch.cat(parts) for parts in zip(*found))
    return blocks[sure >= threshold]
