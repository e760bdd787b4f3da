"""Jammers of the synchronisation signal block, as waveforms of unit power before they are scaled and faded.

    barrage       white noise over the whole band, all the time
    deceptive     blocks of another cell, sent back to back with a random delay
    tone          one unmodulated carrier at a random frequency of the block's band
    three_tone    three such carriers of equal power
    pss_burst     noise during the PSS symbol only
    sss_burst     noise during the SSS symbol only
    pbch_dmrs     random QPSK on the pilots of the PBCH only

Power is counted over the whole record, so a burst that lasts a quarter of it is 6 dB stronger while it lasts.
"""

import math

import torch
from jaxtyping import Complex, Int64
from torch import Tensor

from etude.science.jamming.channel import complex_normal
from etude.science.jamming.ofdm import NUM_SUBCARRIERS, block_length, ofdm_modulate
from etude.science.jamming.sequences import NUM_CELLS, qpsk
from etude.science.jamming.ssb import ssb_grid, ssb_indices

__all__ = ["JAMMER_KINDS", "Jammer"]

JAMMER_KINDS = ("barrage", "deceptive", "tone", "pss_burst", "three_tone", "sss_burst", "pbch_dmrs")
_TONES = {"tone": 1, "three_tone": 3}
_BURST_SYMBOL = {"pss_burst": 0, "sss_burst": 2}


class Jammer:
    """Draws waveforms of one kind of jammer, aligned with a block that starts at sample 0.

        jammer = Jammer("tone")
        waveforms = jammer.draw(cell_id, looks=1, generator=generator)

    Args:
        kind: one of `JAMMER_KINDS`.
        nfft: number of bins; the record is the block's own length.
        scs: subcarrier spacing in Hz.

    Raises:
        ValueError: if `kind` is unknown or `nfft` not supported.
    """

    def __init__(self, kind: str, *, nfft: int = 256, scs: float | int = 30e3):
        if kind not in JAMMER_KINDS:
            raise ValueError(f"kind must be one of {', '.join(JAMMER_KINDS)}, got {kind!r}")
        self.kind, self.nfft, self.scs = kind, nfft, scs
        self.length = block_length(nfft, scs)

    def draw(
        self, cell_id: Int64[Tensor, "n"], *, looks: int = 1, generator: torch.Generator | None = None
    ) -> Complex[Tensor, "n looks samples"]:
        """One waveform per attacked cell and look, drawn independently, of unit expected power over the record.

        Args:
            cell_id: the attacked cells; waveforms are made on their device.
            looks: blocks recorded of each.
            generator: source of the randomness, on that device.
        """
        draw = {"barrage": self._noise, "deceptive": self._deceptive, "pbch_dmrs": self._pilots}.get(self.kind)
        if draw is None:
            draw = self._tones if self.kind in _TONES else self._burst
        return draw(cell_id, looks, generator)

    def _noise(self, cell_id: Tensor, looks: int, generator: torch.Generator | None) -> Tensor:
        return complex_normal(len(cell_id), looks, self.length, generator=generator, device=cell_id.device)

    def _burst(self, cell_id: Tensor, looks: int, generator: torch.Generator | None) -> Tensor:
        symbol = self.length // 4
        noise = complex_normal(len(cell_id), looks, symbol, generator=generator, device=cell_id.device)
        waveform = noise.new_zeros(len(cell_id), looks, self.length)
        begin = _BURST_SYMBOL[self.kind] * symbol
        waveform[..., begin : begin + symbol] = 2 * noise
        return waveform

    def _tones(self, cell_id: Tensor, looks: int, generator: torch.Generator | None) -> Tensor:
        count, device = _TONES[self.kind], cell_id.device
        shape = (len(cell_id), looks, count, 1)
        frequency = (torch.rand(shape, generator=generator, device=device) - 0.5) * NUM_SUBCARRIERS / self.nfft
        turn = torch.rand(shape, generator=generator, device=device)
        cycles = (frequency * torch.arange(self.length, device=device) + turn).remainder(1)
        return torch.polar(torch.full_like(cycles, count**-0.5), 2 * math.pi * cycles).sum(dim=2)

    def _deceptive(self, cell_id: Tensor, looks: int, generator: torch.Generator | None) -> Tensor:
        n, device = len(cell_id), cell_id.device
        step = torch.randint(1, NUM_CELLS, (n, 1), generator=generator, device=device)
        other = ((cell_id.unsqueeze(1) + step) % NUM_CELLS).expand(n, looks)
        index = torch.randint(0, 8, (n, looks), generator=generator, device=device)
        blocks = ofdm_modulate(ssb_grid(other, index, "random", generator), self.nfft, self.scs)
        delay = torch.randint(0, self.length, (n, looks, 1), generator=generator, device=device)
        at = (torch.arange(self.length, device=device) - delay) % self.length
        return blocks.gather(-1, at) * (self.nfft / 207.5) ** 0.5

    def _pilots(self, cell_id: Tensor, looks: int, generator: torch.Generator | None) -> Tensor:
        n, device = len(cell_id), cell_id.device
        bits = torch.randint(0, 2, (n, looks, 288), generator=generator, device=device, dtype=torch.uint8)
        grid = torch.zeros(n, looks, NUM_SUBCARRIERS * 4, dtype=torch.complex64, device=device)
        for shift in range(4):
            rows = (cell_id % 4 == shift).nonzero().squeeze(1)
            k, symbol = ssb_indices(shift)["dmrs"]
            flat = torch.zeros(len(rows), looks, NUM_SUBCARRIERS * 4, dtype=torch.complex64, device=device)
            flat[..., (k * 4 + symbol).to(device)] = qpsk(bits[rows])
            grid[rows] = flat
        waveform = ofdm_modulate(grid.unflatten(-1, (NUM_SUBCARRIERS, 4)), self.nfft, self.scs)
        return waveform * (self.nfft / 36) ** 0.5
