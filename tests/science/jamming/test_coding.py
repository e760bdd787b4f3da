"""The PBCH chain follows TS 38.212: checksum, polar code, rate matching, payload and scrambling."""

import hashlib

import numpy as np
import pytest
import torch

from etude.science.jamming import encode_pbch, polar_encode, polar_rate_match, ssb_grid, ssb_indices
from etude.science.jamming.pbch import crc24c, pbch_payload, scramble_payload
from etude.science.jamming.sequences import gold_sequence, qpsk

MIB = torch.tensor([i * i % 7 % 2 for i in range(24)])


def bits(count: int, seed: int = 0, batch: tuple[int, ...] = ()) -> torch.Tensor:
    return torch.randint(0, 2, (*batch, count), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("cell", "issb", "sfn", "half_frame", "digest"),
    [
        (0, 0, 0, 0, "1be08762a195e8d6"),
        (321, 5, 10, 1, "f4040b5f5fd1d1b7"),
        (1007, 7, 1023, 0, "358b72f317706913"),
    ],
)
def test_coded_bits_equal_those_of_an_independent_implementation(cell, issb, sfn, half_frame, digest):
    coded = encode_pbch(MIB, cell, issb, sfn=sfn, half_frame=half_frame)
    assert hashlib.sha256(bytes(coded.tolist())).hexdigest()[:16] == digest


def test_checksum_is_the_remainder_of_polynomial_division():
    message = bits(32)
    powers = (24, 23, 21, 20, 17, 15, 13, 12, 8, 4, 2, 1, 0)
    divisor = np.isin(np.arange(24, -1, -1), powers).astype(int)
    rest = np.concatenate([message.numpy(), np.zeros(24, int)])
    for i in range(32):
        if rest[i]:
            rest[i : i + 25] ^= divisor
    assert crc24c(message).tolist() == rest[32:].tolist()


def test_checksum_of_message_and_checksum_is_zero():
    message = bits(32, batch=(3,))
    assert not crc24c(torch.cat([message, crc24c(message)], dim=-1)).any()


def test_polar_code_is_linear_and_sends_inputs_through_the_kronecker_power():
    n, k = 64, 20
    generator = np.array([[1]])
    for _ in range(6):
        generator = np.kron(generator, [[1, 0], [1, 1]])
    rows = polar_encode(torch.eye(k, dtype=torch.int64), n).numpy()
    u = rows @ generator % 2  # the Kronecker power is its own inverse
    assert (u.sum(axis=1) == 1).all()
    assert len(set(u.argmax(axis=1))) == k
    message = bits(k).numpy()
    assert (polar_encode(torch.tensor(message), n).numpy() == message @ rows % 2).all()


def test_polar_code_of_the_pbch_has_the_information_bits_on_the_most_reliable_positions():
    rows = polar_encode(torch.eye(56, dtype=torch.int64), 512)
    for level in range(9):  # the transform is its own inverse
        step = 2**level
        pairs = rows.unflatten(-1, (-1, 2, step))
        rows = torch.stack([pairs[..., 0, :] ^ pairs[..., 1, :], pairs[..., 1, :]], dim=-2).flatten(-3)
    positions = rows.argmax(dim=1)
    assert {511, 510, 509, 507, 503, 495, 479, 447, 383, 255} <= set(positions.tolist())
    assert not {0, 1, 2, 4, 8, 16, 32, 64, 128, 256} & set(positions.tolist())
    assert len(set(positions.tolist())) == 56


def test_rate_matching_repeats_the_sub_block_interleaved_codeword():
    code = torch.arange(512)
    matched = polar_rate_match(code, 864)
    assert torch.equal(matched[512:], matched[:352])
    assert torch.equal(matched[:512].sort().values, code)
    starts = matched[:512:16].div(16, rounding_mode="floor").tolist()
    assert starts[:12] == [0, 1, 2, 4, 3, 5, 6, 7, 8, 16, 9, 17]
    assert matched[:16].tolist() == list(range(16))


def test_payload_places_frame_number_and_half_frame_as_the_table_says():
    payload = pbch_payload(torch.zeros(24, dtype=torch.int64), sfn=0b0000001010, half_frame=1)
    assert payload.nonzero().flatten().tolist() == sorted([10, 24, 0])  # 4th and 2nd lowest bit, half frame
    top = torch.zeros(24, dtype=torch.int64)
    top[1] = 1
    assert pbch_payload(top).nonzero().flatten().tolist() == [16]
    first = torch.zeros(24, dtype=torch.int64)
    first[0] = 1
    assert pbch_payload(first, k_ssb_msb=0).sum() == 1
    assert pbch_payload(torch.zeros(24, dtype=torch.int64), k_ssb_msb=1).sum() == 1


def test_payload_scrambling_spares_the_bits_that_select_it_and_can_be_undone():
    payload = pbch_payload(bits(24, batch=(4,)), torch.tensor([0, 2, 4, 6]), half_frame=1)
    scrambled = scramble_payload(payload, 77)
    for place in (6, 24, 0):
        assert torch.equal(scrambled[:, place], payload[:, place])
    assert torch.equal(scramble_payload(scrambled, 77), payload)
    sequence = gold_sequence(77, 4 * 29).unflatten(0, (4, 29))
    spared = {6, 24, 0}
    kept = [i for i in range(32) if i not in spared]
    assert torch.equal(scrambled[:, kept] ^ payload[:, kept], sequence)


def test_coded_bits_of_two_blocks_of_a_burst_differ_by_their_scrambling_alone():
    plain = encode_pbch(MIB, 12, 0, scramble=False)
    sequence = gold_sequence(12, 8 * 864)
    for issb in (0, 3, 7):
        assert torch.equal(encode_pbch(MIB, 12, issb), plain ^ sequence[issb * 864 : (issb + 1) * 864])


def test_a_batch_is_coded_as_its_rows():
    mib, cells, frames = bits(24, batch=(3,)), torch.tensor([4, 900, 31]), torch.tensor([5, 6, 1000])
    coded = encode_pbch(mib, cells, torch.tensor([0, 6, 2]), sfn=frames)
    assert torch.equal(coded[1], encode_pbch(mib[1], 900, 6, sfn=6))


def test_a_coded_grid_carries_code_words():
    grid = ssb_grid(torch.tensor([5, 6]), 3, "coded", torch.Generator().manual_seed(0))
    symbols = grid[1][ssb_indices(6)["pbch"]]
    hard = torch.stack([symbols.real < 0, symbols.imag < 0], dim=-1).flatten().to(torch.uint8)
    code = hard ^ gold_sequence(6, 864, start=3 * 864)
    assert torch.equal(code[512:], code[:352])
    assert torch.equal(qpsk(hard), symbols)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: polar_encode(bits(56), 500), "power of two in 32..512, got 500"),
        (lambda: polar_encode(bits(165), 512), "must number 1..164, got 165"),
        (lambda: polar_encode(bits(64), 64), "must number 1..63, got 64"),
        (lambda: polar_rate_match(bits(512), 400), "at least the codeword's 512"),
        (lambda: polar_rate_match(bits(40), 80), "multiple of 32 bits, got 40"),
        (lambda: encode_pbch(MIB, 2000), "cell_id must lie in 0..1007"),
        (lambda: encode_pbch(MIB, 1, 9), "issb must lie in 0..7"),
        (lambda: encode_pbch(MIB, 1, sfn=1024), "sfn must lie in 0..1023"),
    ],
)
def test_sizes_outside_the_code_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
