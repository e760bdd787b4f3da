"""The block's sequences, grid and OFDM follow TS 38.211, and refuse what lies outside it."""

import math

import pytest
import torch

from etude.science.jamming import (
    gold_sequence,
    ofdm_demodulate,
    ofdm_modulate,
    pbch_dmrs,
    pss,
    ssb_burst,
    ssb_grid,
    ssb_indices,
    sss,
)
from etude.science.jamming.ofdm import block_length, cyclic_prefix
from etude.science.jamming.sequences import qpsk
from etude.science.jamming.ssb import burst_symbols


def signs(values) -> str:
    return "".join("+" if value > 0 else "-" for value in values)


def naive_gold(c_init: int, length: int) -> list[int]:
    x1, x2 = [1] + [0] * 30, [c_init >> i & 1 for i in range(31)]
    for n in range(1600 + length):
        x1.append((x1[n + 3] + x1[n]) % 2)
        x2.append((x2[n + 3] + x2[n + 2] + x2[n + 1] + x2[n]) % 2)
    return [(x1[1600 + n] + x2[1600 + n]) % 2 for n in range(length)]


def test_pss_starts_as_the_standard_has_it():
    assert signs(pss(0)[:16]) == "+--+----++---++-"


def test_sss_starts_as_the_standard_has_it():
    assert signs(sss(2, 1)[:16]) == "++-+++++--++-+--"


def test_pss_of_different_sectors_are_nearly_orthogonal():
    sequences = pss(torch.arange(3))
    assert torch.equal(sequences @ sequences.T, torch.full((3, 3), -1.0) + 128 * torch.eye(3))


def test_pss_autocorrelation_is_that_of_an_m_sequence():
    sequence = pss(1)
    products = torch.stack([sequence @ sequence.roll(lag) for lag in range(127)])
    assert products[0] == 127
    assert torch.equal(products[1:], torch.full((126,), -1.0))


def test_all_1008_sss_differ():
    cells = torch.arange(1008)
    assert len(torch.unique(sss(cells // 3, cells % 3), dim=0)) == 1008


@pytest.mark.parametrize("c_init", [0, 12345, 2**31 - 1, 4_200_000])
def test_gold_sequence_equals_its_recurrence(c_init):
    assert gold_sequence(c_init, 200).tolist() == naive_gold(c_init, 200)


def test_gold_sequence_12345_starts_as_known():
    assert gold_sequence(12345, 10).tolist() == [0, 1, 1, 0, 0, 1, 1, 0, 0, 1]


def test_a_batch_of_gold_sequences_equals_single_ones_from_any_start():
    batch = gold_sequence(torch.tensor([[1, 77], [500, 2**20]]), 40, start=13)
    assert batch[1, 0].tolist() == gold_sequence(500, 53)[13:].tolist()


def test_pilots_of_cell_7_block_3_start_as_known():
    expected = torch.tensor([1 + 1j, -1 + 1j, 1 - 1j]) / math.sqrt(2)
    torch.testing.assert_close(pbch_dmrs(7, 3)[:3], expected)


def test_pilots_of_the_second_half_frame_are_those_of_index_plus_four():
    assert torch.equal(pbch_dmrs(7, 2, l_max=4, half_frame=1), pbch_dmrs(7, 6))


def test_qpsk_maps_pairs_of_bits():
    expected = torch.tensor([1 + 1j, 1 - 1j, -1 + 1j, -1 - 1j]) / math.sqrt(2)
    torch.testing.assert_close(qpsk(torch.tensor([0, 0, 0, 1, 1, 0, 1, 1])), expected)


def test_indices_are_disjoint_and_cover_the_grid():
    for cell in (0, 5, 1006, 3):
        indices = ssb_indices(cell)
        places = [list(zip(*(axis.tolist() for axis in where))) for where in indices.values()]
        sizes = {name: len(where) for name, where in zip(indices, places)}
        assert sizes == {"pss": 127, "sss": 127, "pbch": 432, "dmrs": 144, "null": 130}
        assert len({place for where in places for place in where}) == 960


def test_pilots_stand_on_every_fourth_subcarrier_shifted_by_the_cell():
    k, symbol = ssb_indices(6)["dmrs"]
    assert set((k % 4).tolist()) == {2}
    assert [(symbol == number).sum().item() for number in (1, 2, 3)] == [60, 24, 60]


def test_grid_has_empty_elements_where_the_standard_says_and_modulus_one_elsewhere():
    grid = ssb_grid(torch.arange(0, 1008, 97), 2)
    empty = (grid == 0).sum(dim=1)
    assert torch.equal(empty, torch.tensor([113, 0, 17, 0]).expand(len(grid), 4))
    torch.testing.assert_close(grid[grid != 0].abs(), torch.ones(len(grid) * 830))


def test_grid_maps_each_signal_in_frequency_first_order():
    bits = torch.randint(0, 2, (864,), generator=torch.Generator().manual_seed(0))
    grid, at = ssb_grid(501, 4, bits), ssb_indices(501)
    assert torch.equal(grid[at["pss"]].real, pss(0))
    assert torch.equal(grid[at["sss"]].real, sss(167, 0))
    assert torch.equal(grid[at["dmrs"]], pbch_dmrs(501, 4))
    assert torch.equal(grid[at["pbch"]], qpsk(bits))
    k, symbol = at["pbch"]
    assert torch.equal((symbol * 240 + k).sort().values, symbol * 240 + k)


def test_pss_power_can_be_raised_by_3_db():
    at = ssb_indices(9)["pss"]
    assert ssb_grid(9, beta_pss_db=3.0)[at].abs().square().mean().item() == pytest.approx(10**0.3, rel=1e-5)


@pytest.mark.parametrize("nfft", [256, 512, 1024])
def test_demodulation_inverts_modulation(nfft):
    grid = ssb_grid(torch.tensor([3, 700]), 1, dtype=torch.complex128)
    samples = ofdm_modulate(grid, nfft)
    assert samples.shape == (2, {256: 1096, 512: 2192, 1024: 4384}[nfft])
    torch.testing.assert_close(ofdm_demodulate(samples, nfft), grid, atol=1e-12, rtol=0)


def test_modulation_is_unitary_symbol_by_symbol_and_puts_subcarrier_120_at_dc():
    grid = ssb_grid(8, dtype=torch.complex128)
    symbols = ofdm_modulate(grid).unflatten(-1, (4, 274))
    energy = symbols[:, 18:].abs().square().sum(dim=-1)
    torch.testing.assert_close(energy, grid.abs().square().sum(dim=0))
    torch.testing.assert_close(symbols[:, :18], symbols[:, -18:])
    tone = torch.zeros(240, 1, dtype=torch.complex128)
    tone[120] = 16
    torch.testing.assert_close(ofdm_modulate(tone), torch.ones(274, dtype=torch.complex128))


def test_prefix_is_longer_once_each_half_millisecond():
    assert [cyclic_prefix(256, 30e3, symbol) for symbol in (0, 1, 13, 14, 28)] == [22, 18, 18, 22, 22]
    assert sum(256 + cyclic_prefix(256, 30e3, symbol) for symbol in range(14)) == 3840
    assert sum(256 + cyclic_prefix(256, 15e3, symbol) for symbol in range(7)) == 1920


def test_modulation_with_the_longer_prefix_can_be_undone():
    grid = ssb_grid(8, dtype=torch.complex128)
    samples = ofdm_modulate(grid, start_symbol=12)
    assert len(samples) == block_length() + 4
    torch.testing.assert_close(ofdm_demodulate(samples, start_symbol=12), grid, atol=1e-12, rtol=0)


def test_burst_positions_are_those_of_cases_a_to_c_and_never_hold_a_longer_prefix():
    assert burst_symbols("B") == [4, 8, 16, 20, 32, 36, 44, 48]
    assert burst_symbols("C") == [2, 8, 16, 22, 30, 36, 44, 50]
    assert burst_symbols("A", l_max=4) == [2, 8, 16, 22]
    for case, every in (("A", 7), ("B", 14), ("C", 14)):
        inside = {start + step for start in burst_symbols(case) for step in range(4)}
        assert not any(symbol % every == 0 for symbol in inside)


def test_burst_holds_each_block_at_its_place_and_silence_elsewhere():
    burst = ssb_burst(33, case="C", duration=20e-3)
    assert len(burst) == 153_600
    second = sum(256 + cyclic_prefix(256, 30e3, symbol) for symbol in range(8))
    grid = ofdm_demodulate(burst[second : second + 1096])
    torch.testing.assert_close(grid[ssb_indices(33)["dmrs"]], pbch_dmrs(33, 1), atol=1e-5, rtol=0)
    assert (burst != 0).sum() <= 8 * 1096
    assert burst[38_400:].abs().max() == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ssb_grid(1008), "cell_id must lie in 0..1007, got 1008"),
        (lambda: ssb_grid(torch.tensor([0, -1])), "cell_id must lie in 0..1007, got -1"),
        (lambda: ssb_grid(3, 8), "issb must lie in 0..7, got 8"),
        (lambda: pbch_dmrs(3, 4, l_max=4), "issb must lie in 0..3, got 4"),
        (lambda: ssb_grid(3, payload="noise"), "payload must be 'random', 'coded'"),
        (lambda: ssb_grid(3, payload=torch.zeros(10, dtype=torch.int64)), "payload must have shape"),
        (lambda: pss(3), "n_id_2 must lie in 0..2"),
        (lambda: sss(336, 0), "n_id_1 must lie in 0..335"),
        (lambda: gold_sequence(-1, 5), "c_init must lie in"),
        (lambda: ofdm_modulate(ssb_grid(0), 300), "nfft must be 256"),
        (lambda: ofdm_modulate(ssb_grid(0), scs=60e3), "scs must be 15e3 or 30e3"),
        (lambda: ofdm_demodulate(torch.zeros(1095, dtype=torch.complex64)), "1096 samples, got 1095"),
        (lambda: ssb_burst(3, case="D"), "case must be one of A, B, C"),
        (lambda: ssb_burst(3, duration=1e-3), "duration must be at least a half frame"),
        (lambda: qpsk(torch.zeros(3, dtype=torch.int64)), "even number of bits"),
    ],
)
def test_what_the_standard_does_not_have_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
