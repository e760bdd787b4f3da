"""Received synchronisation signal blocks, with and without a jammer, drawn in batches on any device.

    y = AGC(h_s * x e^{j 2 pi cfo t / nfft} + h_j * j + n)

x is a block with its own cell, index and payload, shifted by a small timing error inside the record; h_s and h_j are
independent channels, j the jammer, n white noise. With Ps the received power of the block,

    SNR = Ps / Pn,   SJNR = Ps / (Pj + Pn),   Pj = max(0, Ps / SJNR - Pn)

and the gain control brings the whole record to unit mean power last, so that absolute power tells nothing.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Complex64, Float, Int64
from torch import Tensor
from torch.utils.data import Dataset

from etude.data.kinds import Examples
from etude.science.jamming.channel import TappedDelayChannel, apply_taps, complex_normal, sample_taps
from etude.science.jamming.jammers import JAMMER_KINDS, Jammer
from etude.science.jamming.ofdm import block_length, ofdm_modulate, sample_rate
from etude.science.jamming.sequences import NUM_CELLS
from etude.science.jamming.ssb import ssb_grid

__all__ = ["SSBBatch", "SSBJammingDataset", "SSBScenario", "agc"]

BASIC_KINDS = ("barrage", "deceptive", "tone", "pss_burst")


def agc(signals: Complex64[Tensor, "*batch samples"]) -> Complex64[Tensor, "*batch samples"]:
    """Each record scaled to unit mean power.

    Raises:
        ValueError: if a record is all zero or holds a value that is not finite.
    """
    power = torch.view_as_real(signals).square().mean(dim=(-1, -2)).mul(2)
    valid = (power > 0) & power.isfinite()
    if not bool(valid.all()):
        first = int((~valid).flatten().nonzero()[0])
        raise ValueError(
            f"every record must hold finite samples that are not all zero; record {first} has mean power "
            f"{power.flatten()[first].item()}"
        )
    return signals * power.rsqrt().unsqueeze(-1)


@dataclass(frozen=True, eq=False)
class SSBBatch:
    """Records with their labels and what they were made of.

    Args:
        signals: records of unit mean power; a dimension of looks follows the first if there are several.
        labels: 1 with a jammer, 0 without.
        sjnr, snr: in dB; without a jammer both are the SNR.
        kind: position in `JAMMER_KINDS`, -1 without a jammer.
        cell_id, issb, timing: cell, block index of the first look, timing error in samples.
        cfo: frequency error in subcarrier spacings.
        parts: block, jammer and noise as received, before the gain control; None unless asked for.
    """

    signals: Complex64[Tensor, "n *looks samples"]
    labels: Int64[Tensor, "n"]
    sjnr: Float[Tensor, "n"]
    snr: Float[Tensor, "n"]
    kind: Int64[Tensor, "n"]
    cell_id: Int64[Tensor, "n"]
    issb: Int64[Tensor, "n"]
    timing: Int64[Tensor, "n"]
    cfo: Float[Tensor, "n"]
    parts: tuple[Tensor, Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def meta(self) -> dict[str, Tensor]:
        """All but signals, labels and parts, by name."""
        return {name: getattr(self, name) for name in _META}

    def examples(self) -> Examples:
        """Signals and labels as the library's plain pair."""
        return Examples(self.signals, self.labels)

    @staticmethod
    def concatenate(batches: Sequence["SSBBatch"]) -> "SSBBatch":
        """One batch out of several of the same looks and length, without parts."""
        columns: dict[str, Any] = {
            name: torch.cat([getattr(batch, name) for batch in batches]) for name in ("signals", "labels", *_META)
        }
        return SSBBatch(**columns)


_META = ("sjnr", "snr", "kind", "cell_id", "issb", "timing", "cfo")


@dataclass(frozen=True)
class SSBScenario:
    """The distribution of records: radio conditions, jammers, waveform.

    Powers are those of the samples, so noise counts over the whole sampled band, block or not.

        batch = SSBScenario(sjnr=(15, 20)).draw(256, torch.Generator().manual_seed(0))

    Args:
        sjnr: range in dB of a jammed record, uniform.
        snr: range in dB of every record, jammed or not, uniform.
        kinds: jammers in equal shares, names of `JAMMER_KINDS`.
        jammed: chance that a record is jammed.
        looks: successive blocks of the same burst per example: same cell, channel, kind and power of the jammer, new
            payload, noise and jammer waveform.
        nfft: number of bins: 256 gives 1096 samples a record.
        scs: subcarrier spacing in Hz.
        payload: "random" or "coded", see `ssb_grid`.
        max_cfo: largest frequency error, in subcarrier spacings.
        max_timing: largest timing error, in samples.
        channels, jammer_channels: one is drawn per example; the exponential Rician profile if empty.
        allow_zero_jammer: accept that a record labelled jammed may hold no jammer, which happens where the SNR
            lies below the SJNR.

    Raises:
        ValueError: if a range is empty or backwards, a kind unknown, or the SNR may fall below the SJNR.
    """

    sjnr: tuple[float | int, float | int] = (15.0, 30.0)
    snr: tuple[float | int, float | int] = (30.0, 38.0)
    kinds: tuple[str, ...] = BASIC_KINDS
    jammed: float | int = 0.5
    looks: int = 1
    nfft: int = 256
    scs: float | int = 30e3
    payload: str = "random"
    max_cfo: float | int = 0.01
    max_timing: int = 4
    channels: tuple[TappedDelayChannel, ...] = ()
    jammer_channels: tuple[TappedDelayChannel, ...] = ()
    allow_zero_jammer: bool = False

    def __post_init__(self):
        for name, pair in (("sjnr", self.sjnr), ("snr", self.snr)):
            if len(pair) != 2 or not pair[0] <= pair[1]:
                raise ValueError(f"{name} must be (low, high) in dB, got {pair}")
        if self.snr[0] < self.sjnr[1] and not self.allow_zero_jammer:
            raise ValueError(
                f"the SNR ({self.snr[0]} dB and up) may fall below the SJNR (up to {self.sjnr[1]} dB): such records "
                "would hold no jammer but be labelled jammed; pass allow_zero_jammer=True to accept that"
            )
        unknown = [kind for kind in self.kinds if kind not in JAMMER_KINDS]
        if unknown or not self.kinds:
            raise ValueError(f"kinds must be names out of {', '.join(JAMMER_KINDS)}, got {self.kinds}")
        if not 0 <= self.jammed <= 1:
            raise ValueError(f"jammed must lie in 0..1, got {self.jammed}")
        if not 1 <= self.looks <= 8:
            raise ValueError(f"looks must lie in 1..8, the blocks of a burst, got {self.looks}")
        if self.max_cfo < 0 or not 0 <= self.max_timing < self.samples // 8:
            raise ValueError(
                f"max_cfo must be >= 0 and max_timing in 0..{self.samples // 8 - 1}, "
                f"got {self.max_cfo} and {self.max_timing}"
            )

    @property
    def samples(self) -> int:
        return block_length(self.nfft, self.scs)

    @property
    def sample_rate(self) -> float:
        return sample_rate(self.nfft, self.scs)

    def draw(self, n: int, generator: torch.Generator | None = None, *, parts: bool = False) -> SSBBatch:
        """`n` records, on the generator's device.

        Args:
            n: number of records.
            generator: source of all randomness; the default generator of the CPU if None.
            parts: keep the received block, jammer and noise apart too.
        """
        device = generator.device if generator is not None else torch.device("cpu")

        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(n, generator=generator, device=device)

        def integers(low: int, high: int) -> Tensor:
            return torch.randint(low, high + 1, (n,), generator=generator, device=device)

        labels = (uniform(0.0, 1.0) < self.jammed).long()
        snr, sjnr = (uniform(float(low), float(high)) for low, high in (self.snr, self.sjnr))
        cell, issb, timing = integers(0, NUM_CELLS - 1), integers(0, 7), integers(-self.max_timing, self.max_timing)
        cfo = uniform(-float(self.max_cfo), float(self.max_cfo))
        choice = integers(0, len(self.kinds) - 1)
        position = torch.tensor([JAMMER_KINDS.index(kind) for kind in self.kinds], device=device)
        kind = torch.where(labels == 1, position[choice], -1)

        block = self._received_block(cell, issb, timing, cfo, generator)
        block_power = _power(block)
        noise_power = block_power * 10 ** (-snr / 10)
        jammer_power = (block_power * 10 ** (-sjnr / 10) - noise_power).clamp(min=0) * labels
        noise = complex_normal(*block.shape, generator=generator, device=device) * noise_power.sqrt()[:, None, None]
        jammer = self._received_jammer(cell, kind, timing, jammer_power, generator)
        signals = agc(block + jammer + noise)
        if self.looks == 1:
            signals, block, jammer, noise = (part.squeeze(1) for part in (signals, block, jammer, noise))
        return SSBBatch(
            signals=signals, labels=labels, sjnr=torch.where(labels == 1, torch.minimum(sjnr, snr), snr), snr=snr,
            kind=kind, cell_id=cell, issb=issb, timing=timing, cfo=cfo,
            parts=(block, jammer, noise) if parts else None,
        )  # fmt: skip

    def _received_block(
        self, cell: Tensor, issb: Tensor, timing: Tensor, cfo: Tensor, generator: torch.Generator | None
    ) -> Complex64[Tensor, "n looks samples"]:
        index = (issb.unsqueeze(1) + torch.arange(self.looks, device=cell.device)) % 8
        grid = ssb_grid(cell.unsqueeze(1).expand_as(index), index, self.payload, generator)
        sent = ofdm_modulate(grid, self.nfft, self.scs)
        channels = self.channels or (TappedDelayChannel.exponential(),)
        taps = sample_taps(channels, len(cell), generator, device=cell.device)
        received = self._shifted(apply_taps(sent, taps), timing)
        time = torch.arange(self.samples, device=cell.device)
        turn = 2 * math.pi / self.nfft * cfo.unsqueeze(1) * time
        return received * torch.polar(torch.ones_like(turn), turn).unsqueeze(1)

    def _received_jammer(
        self, cell: Tensor, kind: Tensor, timing: Tensor, power: Tensor, generator: torch.Generator | None
    ) -> Complex64[Tensor, "n looks samples"]:
        jammer = torch.zeros(len(cell), self.looks, self.samples, dtype=torch.complex64, device=cell.device)
        channels = self.jammer_channels or (TappedDelayChannel.exponential(),)
        for name in self.kinds:
            rows = (kind == JAMMER_KINDS.index(name)).nonzero().squeeze(1)
            if not len(rows):
                continue
            waveform = Jammer(name, nfft=self.nfft, scs=self.scs).draw(
                cell[rows], looks=self.looks, generator=generator
            )
            taps = sample_taps(channels, len(rows), generator, device=cell.device)
            faded = apply_taps(waveform, taps)
            if name in _ALIGNED:
                arrived = self._shifted(faded, timing[rows])
            else:  # it was there before the record began: what runs over the end belongs to the beginning
                arrived = faded[..., : self.samples].clone()
                arrived[..., : taps.shape[1] - 1] += faded[..., self.samples :]
            jammer[rows] = arrived * (power[rows] / _power(arrived)).sqrt()[:, None, None]
        return jammer

    def _shifted(self, x: Tensor, timing: Tensor) -> Tensor:
        """`x` delayed by `timing` samples inside a record of the nominal length; the ends are cut or left empty."""
        margin = self.max_timing
        padded = torch.nn.functional.pad(x, (margin, margin))[..., : self.samples + 2 * margin]
        start = margin - timing
        if not margin:
            return padded
        at = start[:, None, None] + torch.arange(self.samples, device=x.device)
        return padded.gather(-1, at.expand(*x.shape[:-1], self.samples))


_ALIGNED = ("pss_burst", "sss_burst", "pbch_dmrs")


def _power(signals: Tensor) -> Float[Tensor, "n"]:
    """Mean power of each example over all its looks."""
    return torch.view_as_real(signals).square().mean(dim=(1, 2, 3)).mul(2)


class SSBJammingDataset(Dataset):
    """`n` records of a scenario that need no storage: each block of them is drawn again from its own seed.

        dataset = SSBJammingDataset(4000, sjnr=(15, 30), seed=0)
        signal, label, meta = dataset[7]
        batch = dataset.batch()                       # all at once
        loader = DataLoader(dataset, batch_size=64)

    The same arguments give the same records, whatever order they are asked for in, as long as they are drawn on the
    same kind of device.

    Args:
        n: number of records.
        sjnr, snr, kinds: see `SSBScenario`, which takes `options` too (`looks`, `nfft`, `channels`, ...).
        seed: of the records, >= 0.
        with_meta: items are (signal, label, meta); without, they are (signal, label) as plain datasets have it.
        block: records drawn together.
        device: on which records are drawn and stay.

    Raises:
        ValueError: if `n` or `block` is not positive, or the scenario is refused.
    """

    def __init__(
        self,
        n: int,
        *,
        sjnr: tuple[float | int, float | int] = (15.0, 30.0),
        snr: tuple[float | int, float | int] = (30.0, 38.0),
        kinds: Sequence[str] = BASIC_KINDS,
        seed: int = 0,
        with_meta: bool = True,
        block: int = 512,
        device: torch.device | str = "cpu",
        **options: Any,
    ):
        if n < 1 or block < 1 or seed < 0:
            raise ValueError(f"n and block must be positive and seed >= 0, got {n}, {block} and {seed}")
        self.scenario = SSBScenario(sjnr=sjnr, snr=snr, kinds=tuple(kinds), **options)
        self.n, self.seed, self.with_meta, self.block, self.device = n, seed, with_meta, block, torch.device(device)
        self._cached: tuple[int, SSBBatch] | None = None

    @classmethod
    def of(cls, scenario: SSBScenario, n: int, *, seed: int = 0, **options: Any) -> "SSBJammingDataset":
        """A data set of a given scenario; `options` are `with_meta`, `block` and `device`."""
        dataset = cls(n, seed=seed, **options)
        dataset.scenario = scenario
        return dataset

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple:
        if not -self.n <= index < self.n:
            raise IndexError(f"index must lie in {-self.n}..{self.n - 1}, got {index}")
        number, row = divmod(index % self.n, self.block)
        if self._cached is None or self._cached[0] != number:
            self._cached = (number, self._draw(number))
        batch = self._cached[1]
        item = (batch.signals[row], batch.labels[row])
        return (*item, {name: values[row] for name, values in batch.meta.items()}) if self.with_meta else item

    def blocks(self) -> Iterator[SSBBatch]:
        """The records in order, a block at a time: the way to go through more than fits into memory."""
        for number in range(math.ceil(self.n / self.block)):
            yield self._draw(number)

    def batch(self) -> SSBBatch:
        """All records."""
        return SSBBatch.concatenate(list(self.blocks()))

    def _draw(self, number: int) -> SSBBatch:
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1, np.uint64)[0] >> np.uint64(1))
        generator = torch.Generator(self.device).manual_seed(seed)
        return self.scenario.draw(min(self.block, self.n - number * self.block), generator)
