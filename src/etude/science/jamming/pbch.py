"""Coding of the broadcast channel (PBCH): 24 MIB bits and 8 timing bits become 864 scrambled bits.

3GPP TS 38.212, section 7.1, and TS 38.211, section 7.3.3.1: payload interleaver, payload scrambling, CRC24C, polar
code (512, 56), repetition to 864 bits, scrambling by cell and block index.
"""

import torch
from jaxtyping import Integer, UInt8
from torch import Tensor

from etude.science.jamming.polar import polar_encode, polar_rate_match
from etude.science.jamming.sequences import NUM_CELLS, checked_index, gold_sequence, ssb_pilot_index

__all__ = ["PBCH_BITS", "crc24c", "encode_pbch", "pbch_payload", "scramble_payload"]

PBCH_BITS = 864

# D^24 + D^23 + D^21 + D^20 + D^17 + D^15 + D^13 + D^12 + D^8 + D^4 + D^2 + D + 1 (section 5.1)
_CRC24C = 0x1B2B117

# Place of the j-th payload bit (table 7.1.1-1), where j counts the frame number's bits from 0, then half frame (10),
# block index (11..13) and all others (from 14).
_PLACES = [16, 23, 18, 17, 8, 30, 10, 6, 24, 7, 0, 5, 3, 2, 1, 4]
_PLACES += [9, 11, 12, 13, 14, 15, 19, 20, 21, 22, 25, 26, 27, 28, 29, 31]
_FRAME_NUMBER_IN_MIB = range(1, 7)
_THIRD_LSB, _SECOND_LSB, _HALF_FRAME = _PLACES[7], _PLACES[8], _PLACES[10]


def crc24c(bits: Integer[Tensor, "*batch n"]) -> UInt8[Tensor, "*batch 24"]:
    """The 24 check bits of CRC24C, highest power first."""
    register = torch.zeros(bits.shape[:-1], dtype=torch.int64, device=bits.device)
    for bit in bits.to(torch.int64).unbind(-1):
        feedback = (register >> 23 & 1) ^ bit
        register = (register << 1 & 0xFFFFFF) ^ feedback * (_CRC24C & 0xFFFFFF)
    shifts = torch.arange(23, -1, -1, device=bits.device)
    return (register.unsqueeze(-1) >> shifts & 1).to(torch.uint8)


def pbch_payload(
    mib: Integer[Tensor, "*batch 24"],
    sfn: int | Integer[Tensor, "*batch"] = 0,
    *,
    half_frame: int = 0,
    k_ssb_msb: int = 0,
) -> UInt8[Tensor, "*batch 32"]:
    """The interleaved 32-bit payload: the MIB as broadcast, then the timing bits of section 7.1.1.

    Args:
        mib: the coded BCCH-BCH message; its bits 1..6 are the six highest bits of the frame number.
        sfn: system frame number in 0..1023, whose four lowest bits enter here.
        half_frame: 0 or 1.
        k_ssb_msb: the highest bit of the subcarrier offset (blocks below 6 GHz).
    """
    number = checked_index(sfn, "sfn", 1023).to(mib.device)
    flags = [checked_index(half_frame, "half_frame", 1), checked_index(k_ssb_msb, "k_ssb_msb", 1)]
    low = number.unsqueeze(-1) >> torch.arange(3, -1, -1, device=mib.device) & 1
    low = low.expand(*mib.shape[:-1], 4).to(torch.uint8)
    message = mib.to(torch.uint8)
    in_number = torch.zeros(24, dtype=torch.bool, device=mib.device)
    in_number[list(_FRAME_NUMBER_IN_MIB)] = True
    single = [flag.to(mib.device, torch.uint8).expand(*mib.shape[:-1], 1) for flag in flags]
    spare = message.new_zeros(*mib.shape[:-1], 2)
    ordered = torch.cat([message[..., in_number], low, *single, spare, message[..., ~in_number]], dim=-1)
    payload = torch.empty_like(ordered)
    payload[..., _PLACES] = ordered
    return payload


def scramble_payload(
    payload: Integer[Tensor, "*batch 32"], cell_id: int | Integer[Tensor, "*batch"]
) -> UInt8[Tensor, "*batch 32"]:
    """Scrambles the payload by cell and by the frame number's second and third lowest bits (section 7.1.2).

    Those two bits and the half-frame bit stay clear, so that a receiver can undo it. This is the case of 4 or 8 blocks
    a burst, where the payload holds no bit of the block index.
    """
    cell = checked_index(cell_id, "cell_id", NUM_CELLS - 1).to(payload.device)
    bits = payload.to(torch.uint8)
    clear = {_THIRD_LSB, _SECOND_LSB, _HALF_FRAME}
    scrambled = torch.tensor([i for i in range(32) if i not in clear], device=payload.device)
    count = len(scrambled)
    sequence = gold_sequence(cell, 4 * count).unflatten(-1, (4, count)).expand(*bits.shape[:-1], 4, count)
    phase = 2 * bits[..., _THIRD_LSB].long() + bits[..., _SECOND_LSB].long()
    chosen = sequence.gather(-2, phase[..., None, None].expand(*phase.shape, 1, count)).squeeze(-2)
    output = bits.clone()
    output[..., scrambled] ^= chosen
    return output


def encode_pbch(
    mib: Integer[Tensor, "*batch 24"],
    cell_id: int | Integer[Tensor, "*batch"],
    issb: int | Integer[Tensor, "*batch"] = 0,
    *,
    sfn: int | Integer[Tensor, "*batch"] = 0,
    half_frame: int = 0,
    k_ssb_msb: int = 0,
    l_max: int = 8,
    scramble: bool = True,
) -> UInt8[Tensor, "*batch 864"]:
    """The whole chain from 24 MIB bits to the 864 bits that QPSK maps onto the PBCH.

    Args:
        mib: see `pbch_payload`, as are `sfn`, `half_frame` and `k_ssb_msb`.
        cell_id: in 0..1007.
        issb: index of the block in its burst, in 0..`l_max` - 1.
        l_max: blocks a burst, 4 or 8.
        scramble: False leaves out the last scrambling, by cell and block index.

    Raises:
        ValueError: if an index lies outside its range.
    """
    message = scramble_payload(pbch_payload(mib, sfn, half_frame=half_frame, k_ssb_msb=k_ssb_msb), cell_id)
    coded = polar_rate_match(polar_encode(torch.cat([message, crc24c(message)], dim=-1)), PBCH_BITS)
    if not scramble:
        return coded
    cell = checked_index(cell_id, "cell_id", NUM_CELLS - 1).to(mib.device)
    phase = ssb_pilot_index(issb, l_max=l_max).to(mib.device) % l_max
    sequence = gold_sequence(cell, l_max * PBCH_BITS).unflatten(-1, (l_max, PBCH_BITS))
    phase = phase.expand(coded.shape[:-1])
    sequence = sequence.expand(*coded.shape[:-1], l_max, PBCH_BITS)
    chosen = sequence.gather(-2, phase[..., None, None].expand(*phase.shape, 1, PBCH_BITS)).squeeze(-2)
    return coded ^ chosen
