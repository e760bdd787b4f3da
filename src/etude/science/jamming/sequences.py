"""Pseudo-random sequences of the 5G synchronisation signal block (SSB): Gold sequence, PSS, SSS and pilots.

3GPP TS 38.211, sections 5.2.1 (Gold sequence), 7.4.2.2 (PSS), 7.4.2.3 (SSS) and 7.4.1.4.1 (pilots of the PBCH).
Indices may be integers or tensors of any shape; a tensor gives one sequence per entry.
"""

from functools import lru_cache

import torch
from jaxtyping import Complex, Float, Int64, Integer, UInt8
from torch import Tensor

__all__ = ["checked_index", "gold_sequence", "pbch_dmrs", "pss", "qpsk", "ssb_pilot_index", "sss"]

NUM_CELLS = 1008
_GOLD_OFFSET = 1600
_REGISTER = 31


def checked_index(value: int | Integer[Tensor, "*batch"], name: str, upper: int) -> Int64[Tensor, "*batch"]:
    """`value` as an int64 tensor.

    Raises:
        ValueError: if an entry is not a whole number in 0..`upper`.
    """
    index = torch.as_tensor(value)
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise ValueError(f"{name} must be a whole number in 0..{upper}, got {value!r}")
    if index.numel() and not 0 <= int(index.min()) <= int(index.max()) <= upper:
        raise ValueError(f"{name} must lie in 0..{upper}, got {int(index.min())}..{int(index.max())}")
    return index.to(torch.int64)


def _m_sequence(taps: tuple[int, ...], start: tuple[int, ...], length: int) -> list[int]:
    """x(i + len(start)) = sum of x(i + tap) mod 2."""
    x = list(start)
    while len(x) < length:
        i = len(x) - len(start)
        x.append(sum(x[i + tap] for tap in taps) % 2)
    return x[:length]


_PSS_SEQUENCE = torch.tensor(_m_sequence((4, 0), (0, 1, 1, 0, 1, 1, 1), 127))
_SSS_SEQUENCES = (
    torch.tensor(_m_sequence((4, 0), (1, 0, 0, 0, 0, 0, 0), 127)),
    torch.tensor(_m_sequence((1, 0), (1, 0, 0, 0, 0, 0, 0), 127)),
)


@lru_cache(maxsize=8)
def _gold_registers(length: int) -> tuple[Tensor, Tensor]:
    """The first register's output, and the matrix that maps the bits of c_init to the second register's output."""
    first = _m_sequence((3, 0), (1,) + (0,) * (_REGISTER - 1), length)
    masks = [1 << i for i in range(_REGISTER)]
    while len(masks) < length:
        i = len(masks) - _REGISTER
        masks.append(masks[i + 3] ^ masks[i + 2] ^ masks[i + 1] ^ masks[i])
    bits = torch.tensor(masks[:length]).unsqueeze(-1) >> torch.arange(_REGISTER) & 1
    return torch.tensor(first, dtype=torch.float32), bits.to(torch.float32)


def gold_sequence(c_init: int | Integer[Tensor, "*batch"], length: int, *, start: int = 0) -> UInt8[Tensor, "*batch n"]:
    """Bits c(start), ..., c(start + length - 1) of the length-31 Gold sequence.

    The second register is linear in `c_init` over the two-element field, so a whole batch is one product of its bits
    with a fixed matrix.

    Args:
        c_init: start of the second register, in 0..2^31 - 1.
        length: number of bits, >= 1.
        start: index of the first bit, >= 0.

    Raises:
        ValueError: if an argument lies outside its range.
    """
    seed = checked_index(c_init, "c_init", 2**_REGISTER - 1)
    if length < 1 or start < 0:
        raise ValueError(f"length must be >= 1 and start >= 0, got {length} and {start}")
    end = _GOLD_OFFSET + start + length
    first, second = _gold_registers(1 << (end - 1).bit_length())  # a few table sizes serve every length
    rows = slice(end - length, end)
    bits = (seed.unsqueeze(-1) >> torch.arange(_REGISTER, device=seed.device) & 1).to(torch.float32)
    output = bits @ second[rows].T.to(seed.device) + first[rows].to(seed.device)
    return output.remainder(2).to(torch.uint8)


def qpsk(
    bits: Integer[Tensor, "*batch bits"], dtype: torch.dtype = torch.complex64
) -> Complex[Tensor, "*batch symbols"]:
    """((1 - 2 b0) + j (1 - 2 b1)) / sqrt(2) for each pair of bits (TS 38.211, section 5.1.3)."""
    if bits.shape[-1] % 2:
        raise ValueError(f"QPSK takes an even number of bits, got {bits.shape[-1]}")
    real = torch.float64 if dtype == torch.complex128 else torch.float32
    pairs = (1 - 2 * bits.to(real)).mul_(0.5**0.5).unflatten(-1, (-1, 2))
    return torch.view_as_complex(pairs.contiguous())


def pss(n_id_2: int | Integer[Tensor, "*batch"]) -> Float[Tensor, "*batch 127"]:
    """The primary synchronisation signal, +-1, of N_ID^(2) in 0..2.

    d(n) = 1 - 2 x((n + 43 N2) mod 127),   x(i + 7) = x(i + 4) + x(i) mod 2
    """
    shift = checked_index(n_id_2, "n_id_2", 2)
    n = (torch.arange(127, device=shift.device) + 43 * shift.unsqueeze(-1)) % 127
    return 1.0 - 2.0 * _PSS_SEQUENCE.to(shift.device)[n]


def sss(
    n_id_1: int | Integer[Tensor, "*batch"], n_id_2: int | Integer[Tensor, "*batch"]
) -> Float[Tensor, "*batch 127"]:
    """The secondary synchronisation signal, +-1, of N_ID^(1) in 0..335 and N_ID^(2) in 0..2.

    d(n) = [1 - 2 x0((n + m0) mod 127)] [1 - 2 x1((n + m1) mod 127)],   m0 = 15 (N1 div 112) + 5 N2, m1 = N1 mod 112
    """
    n1, n2 = checked_index(n_id_1, "n_id_1", 335), checked_index(n_id_2, "n_id_2", 2)
    n = torch.arange(127, device=n1.device)
    shifts = (15 * (n1 // 112) + 5 * n2, n1 % 112)
    bits = [x.to(n.device)[(n + shift.unsqueeze(-1)) % 127] for x, shift in zip(_SSS_SEQUENCES, shifts)]
    return (1.0 - 2.0 * bits[0]) * (1.0 - 2.0 * bits[1])


def ssb_pilot_index(
    issb: int | Integer[Tensor, "*batch"], *, l_max: int = 8, half_frame: int = 0
) -> Int64[Tensor, "*batch"]:
    """The index of a block that its pilots carry: `issb` for 8 blocks a burst, `issb + 4 half_frame` for 4.

    Raises:
        ValueError: if `l_max` is not 4 or 8, `half_frame` not 0 or 1, or `issb` outside 0..`l_max` - 1.
    """
    if l_max not in (4, 8) or half_frame not in (0, 1):
        raise ValueError(f"l_max must be 4 or 8 and half_frame 0 or 1, got {l_max} and {half_frame}")
    index = checked_index(issb, "issb", l_max - 1)
    return index + 4 * half_frame if l_max == 4 else index


def pbch_dmrs(
    cell_id: int | Integer[Tensor, "*batch"],
    issb: int | Integer[Tensor, "*batch"],
    *,
    l_max: int = 8,
    half_frame: int = 0,
    dtype: torch.dtype = torch.complex64,
) -> Complex[Tensor, "*batch 144"]:
    """The 144 pilot symbols of the PBCH: QPSK of the Gold sequence of

        c_init = 2^11 (i + 1) (N div 4 + 1) + 2^6 (i + 1) + (N mod 4),   i from `ssb_pilot_index`

    Args:
        cell_id: N in 0..1007.
        issb: index of the block in its burst, in 0..`l_max` - 1.
        l_max: blocks a burst, 4 or 8. half_frame: 0 or 1; it enters only if `l_max` is 4.
        dtype: of the symbols.
    """
    n = checked_index(cell_id, "cell_id", NUM_CELLS - 1)
    i = ssb_pilot_index(issb, l_max=l_max, half_frame=half_frame).to(n.device)
    return qpsk(gold_sequence((i + 1) * (2048 * (n // 4 + 1) + 64) + n % 4, 288), dtype)
