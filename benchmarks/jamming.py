"""Blocks generated and analysed as a batch, against loops over single ones.

A call handles 256 examples: 256 over its time is the rate.
"""

import numpy as np
import pywt
import scipy.signal
import torch

from benchmarks.compare import Comparison
from etude.science.jamming import SSBScenario, ofdm_modulate, pss_correlation, ssb_grid, ssb_indices, wavelet_bands
from etude.science.jamming.features import _replicas
from etude.science.jamming.sequences import _gold_registers, pss, sss

BATCH = 256
LOOP = "NumPy, one by one"


class NumpyBlocks:
    """One block after the other with NumPy; sequences, index sets and the Gold matrix are ready beforehand."""

    def __init__(self):
        first, second = _gold_registers(2048)
        self.first, self.second = first[1600:1888].numpy(), second[1600:1888].numpy()
        self.pss = pss(torch.arange(3)).numpy()
        cells = torch.arange(1008)
        self.sss = sss(cells // 3, cells % 3).numpy()
        self.places = [{name: tuple(x.numpy() for x in at) for name, at in ssb_indices(v).items()} for v in range(4)]

    def block(self, cell: int, issb: int, rng: np.random.Generator) -> np.ndarray:
        at = self.places[cell % 4]
        c_init = 2048 * (issb + 1) * (cell // 4 + 1) + 64 * (issb + 1) + cell % 4
        seed = (c_init >> np.arange(31) & 1).astype(np.float32)
        grid = np.zeros((240, 4), np.complex64)
        grid[at["pss"]] = self.pss[cell % 3]
        grid[at["sss"]] = self.sss[cell]
        grid[at["dmrs"]] = self.qpsk((self.second @ seed + self.first) % 2)
        grid[at["pbch"]] = self.qpsk(rng.integers(0, 2, 864))
        bins = np.zeros((4, 256), np.complex64)
        bins[:, :120], bins[:, 136:] = grid[120:].T, grid[:120].T
        time = np.fft.ifft(bins, norm="ortho")
        return np.concatenate([time[:, -18:], time], axis=1).reshape(-1)

    @staticmethod
    def qpsk(bits: np.ndarray) -> np.ndarray:
        signs = (1 - 2 * bits.astype(np.float32)) * np.float32(0.5**0.5)
        return signs[0::2] + 1j * signs[1::2]


def comparisons() -> list[Comparison]:
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    cells = torch.randint(0, 1008, (BATCH,), generator=generator)
    issb = torch.randint(0, 8, (BATCH,), generator=generator)
    pairs = list(zip(cells.tolist(), issb.tolist()))
    blocks, scenario = NumpyBlocks(), SSBScenario()
    signals = scenario.draw(BATCH, generator).signals
    arrays, replicas = signals.numpy(), _replicas(256).numpy()
    curves = pss_correlation(signals).magnitude
    lines = curves.numpy()

    def correlate_one(y: np.ndarray) -> np.ndarray:
        all_three = [np.abs(scipy.signal.correlate(y, r, mode="valid", method="fft")) for r in replicas]
        return max(all_three, key=np.max)

    return [
        Comparison(
            f"{BATCH} SSB waveforms, random payload",
            lambda: ofdm_modulate(ssb_grid(cells, issb, "random", generator)),
            lambda: np.stack([blocks.block(cell, i, rng) for cell, i in pairs]),
            LOOP,
        ),
        Comparison(
            f"{BATCH} received records with channel and jammer",
            lambda: scenario.draw(BATCH, generator),
            lambda: [scenario.draw(1, generator) for _ in range(BATCH)],
            "the same, one by one",
        ),
        Comparison(
            f"PSS correlation of {BATCH} records",
            lambda: pss_correlation(signals),
            lambda: [correlate_one(y) for y in arrays],
            "scipy.signal.correlate, one by one",
        ),
        Comparison(
            f"db4 wavelets of {BATCH} correlations, level 4",
            lambda: wavelet_bands(curves),
            lambda: [pywt.wavedec(line, "db4", mode="symmetric", level=4) for line in lines],
            "PyWavelets, one by one",
        ),
        Comparison(
            f"db4 wavelets of {BATCH} correlations, level 4",
            lambda: wavelet_bands(curves),
            lambda: pywt.wavedec(lines, "db4", mode="symmetric", level=4, axis=-1),
            "PyWavelets, along an axis",
            "ours runs on any device and has gradients",
        ),
    ]
