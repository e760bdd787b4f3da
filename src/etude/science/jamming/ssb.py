"""The 5G synchronisation signal block: its resource grid, and bursts of blocks in a half frame.

3GPP TS 38.211, section 7.4.3 (grid), and TS 38.213, section 4.1 (positions of the blocks). The grid has 240
subcarriers and 4 symbols: PSS in symbol 0, SSS in symbol 2, the broadcast channel (PBCH) and its pilots in symbols 1
and 3 and at the edges of symbol 2. 130 elements beside PSS and SSS stay empty.
"""

from functools import lru_cache

import torch
from jaxtyping import Complex, Integer
from torch import Tensor

from etude.science.jamming.ofdm import NUM_SUBCARRIERS, cyclic_prefix, ofdm_modulate, sample_rate
from etude.science.jamming.pbch import PBCH_BITS, encode_pbch
from etude.science.jamming.sequences import NUM_CELLS, checked_index, pbch_dmrs, pss, qpsk, sss

__all__ = ["burst_symbols", "ssb_burst", "ssb_grid", "ssb_indices"]

_SYNC = range(56, 183)
_EDGES = (*range(48), *range(192, 240))


@lru_cache(maxsize=4)
def _layout(shift: int) -> dict[str, tuple[Tensor, Tensor]]:
    pbch_area = [(k, 1) for k in range(240)] + [(k, 2) for k in _EDGES] + [(k, 3) for k in range(240)]
    cells = {
        "pss": [(k, 0) for k in _SYNC],
        "sss": [(k, 2) for k in _SYNC],
        "pbch": [(k, symbol) for k, symbol in pbch_area if k % 4 != shift],
        "dmrs": [(k, symbol) for k, symbol in pbch_area if k % 4 == shift],
        "null": [(k, 0) for k in range(240) if k not in _SYNC]
        + [(k, 2) for k in range(240) if k not in _SYNC and k not in _EDGES],
    }
    return {
        name: (torch.tensor([k for k, _ in at]), torch.tensor([symbol for _, symbol in at]))
        for name, at in cells.items()
    }


def ssb_indices(cell_id: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Subcarriers k and symbols l of "pss", "sss", "pbch", "dmrs" and "null" (empty), in the order of mapping.

    Raises:
        ValueError: if `cell_id` is outside 0..1007.
    """
    shift = int(checked_index(cell_id, "cell_id", NUM_CELLS - 1)) % 4
    return {name: (k.clone(), symbol.clone()) for name, (k, symbol) in _layout(shift).items()}


@lru_cache(maxsize=1)
def _flat_places() -> dict[str, Tensor]:
    """Flat positions (240 k-major columns of 4 symbols) of what depends on the cell, one row per N mod 4."""
    rows = [_layout(shift) for shift in range(4)]
    return {name: torch.stack([row[name][0] * 4 + row[name][1] for row in rows]) for name in rows[0]}


def ssb_grid(
    cell_id: int | Integer[Tensor, "*batch"],
    issb: int | Integer[Tensor, "*batch"] = 0,
    payload: str | Integer[Tensor, "*batch bits"] = "random",
    generator: torch.Generator | None = None,
    *,
    beta_pss_db: float | int = 0.0,
    l_max: int = 8,
    half_frame: int = 0,
    dtype: torch.dtype = torch.complex64,
) -> Complex[Tensor, "*batch 240 4"]:
    """The resource grid of a block, or of a batch of blocks; every element in use has modulus 1 (PSS: beta).

        grid = ssb_grid(cell_id=7, issb=3, payload="coded")

    Args:
        cell_id: N in 0..1007; a tensor for a batch.
        issb: index of the block in its burst, 0..`l_max` - 1, with the shape of `cell_id` or an integer.
        payload: "random" for uniform bits (the scrambled bits of a real payload look like that), "coded" for random
            MIBs and frame numbers through the whole coding chain, or the 864 scrambled bits themselves.
        generator: source of the random bits, on the device of `cell_id`; the default generator if None.
        beta_pss_db: power of the PSS over the rest, 0 or 3 dB in the standard.
        l_max: blocks a burst, 4 or 8. half_frame: 0 or 1.
        dtype: complex64 or complex128.

    Raises:
        ValueError: if an index lies outside its range or `payload` has another form.
    """
    cell = checked_index(cell_id, "cell_id", NUM_CELLS - 1)
    index = checked_index(issb, "issb", l_max - 1).to(cell.device).expand(cell.shape)
    if isinstance(payload, str):
        bits = _payload_bits(payload, cell, index, generator, l_max, half_frame)
    elif payload.shape == (*cell.shape, PBCH_BITS):
        bits = payload
    else:
        raise ValueError(f"payload must have shape {(*cell.shape, PBCH_BITS)}, got {tuple(payload.shape)}")
    values = {
        "pss": (pss(cell % 3) * 10 ** (beta_pss_db / 20)).to(dtype),
        "sss": sss(cell // 3, cell % 3).to(dtype),
        "pbch": qpsk(bits.to(cell.device), dtype),
        "dmrs": pbch_dmrs(cell, index, l_max=l_max, half_frame=half_frame, dtype=dtype),
    }
    grid = torch.zeros(*cell.shape, 4 * NUM_SUBCARRIERS, dtype=dtype, device=cell.device)
    for name, symbols in values.items():
        grid.scatter_(-1, _flat_places()[name].to(cell.device)[cell % 4], symbols)
    return grid.unflatten(-1, (NUM_SUBCARRIERS, 4))


def _payload_bits(
    payload: str,
    cell: Tensor,
    index: Tensor,
    generator: torch.Generator | None,
    l_max: int,
    half_frame: int,
) -> Tensor:
    def random_bits(count: int) -> Tensor:
        shape = (*cell.shape, count)
        return torch.randint(0, 2, shape, generator=generator, device=cell.device, dtype=torch.uint8)

    if payload == "random":
        return random_bits(PBCH_BITS)
    if payload != "coded":
        raise ValueError(f"payload must be 'random', 'coded' or a tensor of {PBCH_BITS} bits, got {payload!r}")
    sfn = torch.randint(0, 1024, cell.shape, generator=generator, device=cell.device)
    mib = random_bits(24)
    mib[..., 1:7] = (sfn.unsqueeze(-1) >> torch.arange(9, 3, -1, device=cell.device) & 1).to(torch.uint8)
    return encode_pbch(mib, cell, index, sfn=sfn, half_frame=half_frame, l_max=l_max)


def burst_symbols(case: str = "C", l_max: int = 8) -> list[int]:
    """First symbols of the blocks of a burst in its half frame (TS 38.213, section 4.1, below 6 GHz).

    Args:
        case: "A" (15 kHz) and "C" (30 kHz, {2, 8} + 14 n) or "B" (30 kHz, {4, 8, 16, 20} + 28 n).
        l_max: blocks a burst, 4 or 8.
    """
    if l_max not in (4, 8):
        raise ValueError(f"l_max must be 4 or 8, got {l_max}")
    patterns = {"A": ((2, 8), 14), "B": ((4, 8, 16, 20), 28), "C": ((2, 8), 14)}
    if case not in patterns:
        raise ValueError(f"case must be one of {', '.join(patterns)}, got {case!r}")
    starts, period = patterns[case]
    return [start + period * n for n in range(l_max // len(starts)) for start in starts]


def ssb_burst(
    cell_id: int,
    *,
    case: str = "C",
    l_max: int = 8,
    nfft: int = 256,
    half_frame: int = 0,
    duration: float | int = 5e-3,
    mib: Integer[Tensor, "24"] | None = None,
    sfn: int = 0,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.complex64,
) -> Complex[Tensor, "samples"]:
    """The samples of a half frame that holds a whole burst of blocks, silent elsewhere.

        period = ssb_burst(cell_id=7, duration=20e-3)      # one burst period of 20 ms

    Args:
        cell_id: in 0..1007.
        case, l_max: see `burst_symbols`.
        nfft: number of bins; the sample rate is `nfft` times 30 kHz (15 kHz in case A).
        half_frame: 0 or 1.
        duration: in seconds, >= 5e-3; what follows the half frame is silence.
        mib: 24 MIB bits, the same in all blocks of the burst; random payload bits if None.
        sfn: system frame number, used with `mib`.
        generator: source of the random payload.
        dtype: complex64 or complex128.

    Raises:
        ValueError: if an argument lies outside its range.
    """
    if duration < 5e-3:
        raise ValueError(f"duration must be at least a half frame, 5e-3 s, got {duration}")
    scs = 15e3 if case == "A" else 30e3
    starts = burst_symbols(case, l_max)
    cells, indices = torch.full((l_max,), cell_id), torch.arange(l_max)
    payload: str | Tensor = "random"
    if mib is not None:
        payload = encode_pbch(mib.expand(l_max, 24), cells, indices, sfn=sfn, half_frame=half_frame, l_max=l_max)
    grid = ssb_grid(cells, indices, payload, generator, l_max=l_max, half_frame=half_frame, dtype=dtype)
    blocks = ofdm_modulate(grid, nfft, scs)
    samples = torch.zeros(round(duration * sample_rate(nfft, scs)), dtype=dtype)
    for start, block in zip(starts, blocks):
        begin = sum(nfft + cyclic_prefix(nfft, scs, symbol) for symbol in range(start))
        samples[begin : begin + len(block)] = block
    return samples
