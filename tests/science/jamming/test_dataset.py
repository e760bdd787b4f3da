"""Channels, jammers and records: powers are what was asked for, and nothing but the jammer tells the classes apart."""

import math

import pytest
import torch

from etude.data.kinds import SignalData
from etude.science.jamming import (
    JAMMER_KINDS,
    Jammer,
    SSBJammingDataset,
    SSBScenario,
    TappedDelayChannel,
    agc,
    apply_taps,
    ofdm_demodulate,
    ssb_indices,
)
from etude.science.jamming.channel import TDL_MODELS, sample_taps
from etude.science.jamming.features import _replicas


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def power(x: torch.Tensor) -> torch.Tensor:
    return x.abs().double().square().mean(dim=-1)


@pytest.mark.parametrize("name", ["rician", "flat", *TDL_MODELS])
def test_channels_have_unit_mean_power(name):
    if name in TDL_MODELS:
        channel = TappedDelayChannel.tdl(name, delay_spread=100e-9, sample_rate=30.72e6)
    else:
        channel = {"rician": TappedDelayChannel.exponential, "flat": TappedDelayChannel.flat}[name]()
    taps = channel.sample(20_000, generator())
    assert taps.abs().square().sum(dim=1).mean().item() == pytest.approx(1, abs=0.03)
    assert taps.mean().abs().item() < 0.03  # the phase is uniform


def test_exponential_profile_and_direct_path_have_their_powers():
    taps = TappedDelayChannel.exponential(6, 1.5, 6.0).sample(200_000, generator())
    measured = taps.abs().square().mean(dim=0)
    direct = 1 / (1 + 10**-0.6)
    shares = torch.tensor([math.exp(-delay / 1.5) for delay in range(6)])
    expected = (1 - direct) * shares / shares.sum()
    expected[0] += direct
    torch.testing.assert_close(measured, expected, rtol=0.02, atol=0)


def test_delay_spread_of_the_tdl_models_is_the_one_asked_for():
    for model, (_, delays, powers_db) in TDL_MODELS.items():
        delays = torch.tensor(delays, dtype=torch.float64)
        powers = 10 ** (torch.tensor(powers_db, dtype=torch.float64) / 10)
        powers /= powers.sum()
        spread = (powers @ delays**2 - (powers @ delays) ** 2).sqrt().item()
        assert spread == pytest.approx(1, abs=0.02), model


def test_taps_are_a_full_convolution_look_by_look():
    x = torch.randn(3, 2, 40, dtype=torch.complex64, generator=generator())
    taps = TappedDelayChannel([0, 3], [1.0, 0.5]).sample(3, generator(1))
    expected = torch.zeros(3, 2, 43, dtype=torch.complex64)
    for n in range(40):
        for delay in range(4):
            expected[..., n + delay] += x[..., n] * taps[:, None, delay]
    torch.testing.assert_close(apply_taps(x, taps), expected)


def test_each_example_gets_one_of_several_channels():
    short, long = TappedDelayChannel.flat(), TappedDelayChannel([9], [1.0])
    taps = sample_taps([short, long], 400, generator())
    on_first = taps[:, 0] != 0
    assert torch.equal(on_first, taps[:, 9] == 0)
    assert 140 < on_first.sum() < 260


@pytest.mark.parametrize("kind", JAMMER_KINDS)
def test_waveforms_of_every_kind_have_unit_power(kind):
    waveforms = Jammer(kind).draw(torch.arange(200), looks=2, generator=generator())
    assert waveforms.shape == (200, 2, 1096)
    assert power(waveforms).mean().item() == pytest.approx(1, abs=0.04)


@pytest.mark.parametrize(("kind", "symbol"), [("pss_burst", 0), ("sss_burst", 2)])
def test_bursts_last_for_their_symbol_only(kind, symbol):
    waveform = Jammer(kind).draw(torch.zeros(1, dtype=torch.int64), generator=generator())[0, 0]
    busy = waveform.unflatten(0, (4, 274)) != 0
    assert busy.all(dim=1).tolist() == [place == symbol for place in range(4)]
    assert busy.any(dim=1).tolist() == [place == symbol for place in range(4)]


def test_pilot_jammer_hits_the_pilots_of_the_attacked_cell_only():
    cells = torch.tensor([5, 6, 7, 8])
    grids = ofdm_demodulate(Jammer("pbch_dmrs").draw(cells, generator=generator())[:, 0])
    for cell, grid in zip(cells.tolist(), grids):
        hit = grid.abs() > 1e-3
        assert hit.sum() == 144
        assert hit[ssb_indices(cell)["dmrs"]].all()


def test_tones_lie_in_the_band_of_the_block():
    for kind in ("tone", "three_tone"):
        waveforms = Jammer(kind).draw(torch.zeros(50, dtype=torch.int64), generator=generator())[:, 0]
        spectrum = torch.fft.fft(waveforms * torch.hann_window(1096)).abs().square()
        frequency = torch.fft.fftfreq(1096).abs()
        outside = frequency > (120.5 / 256 + 3 / 1096)
        assert spectrum[:, outside].sum() / spectrum.sum() < 1e-4


def test_deceptive_jammer_sends_another_cell():
    waveform = Jammer("deceptive").draw(torch.full((64,), 300), generator=generator())[:, 0]
    assert len(torch.unique(waveform[:, 0].real)) > 60
    other = waveform[:, None].expand(-1, 3, -1)
    sent = torch.stack([_replicas(256)[sector] for sector in range(3)])
    peaks = torch.fft.ifft(torch.fft.fft(other) * torch.fft.fft(sent, 1096).conj()).abs().amax(dim=-1)
    assert ((peaks > 10).sum(dim=1) == 1).all()  # the PSS of one sector, wherever the delay has put it


def test_snr_and_sjnr_are_the_targets():
    batch = SSBScenario(jammed=1.0, kinds=JAMMER_KINDS).draw(1000, generator(), parts=True)
    block, jammer, noise = batch.parts
    snr = 10 * (power(block) / power(noise)).log10()
    sjnr = 10 * (power(block) / (power(jammer) + power(noise))).log10()
    assert (snr - batch.snr).mean().abs() < 0.1
    assert (sjnr - batch.sjnr).mean().abs() < 0.1
    assert (sjnr - batch.sjnr).abs().quantile(0.9) < 0.4


def test_records_without_a_label_hold_no_jammer_and_all_have_unit_power():
    batch = SSBScenario().draw(600, generator(), parts=True)
    clean = batch.labels == 0
    assert 240 < clean.sum() < 360
    assert batch.parts[1][clean].abs().max() == 0
    assert (batch.parts[1][~clean].abs().amax(dim=1) > 0).all()
    assert (batch.kind[clean] == -1).all()
    torch.testing.assert_close(batch.sjnr[clean], batch.snr[clean])
    torch.testing.assert_close(power(batch.signals), torch.ones(600, dtype=torch.float64), atol=1e-5, rtol=0)


def test_both_classes_draw_their_snr_from_one_distribution():
    batch = SSBScenario().draw(4000, generator())
    jammed = batch.snr[batch.labels == 1]
    clean = batch.snr[batch.labels == 0]
    assert abs(jammed.mean() - clean.mean()) < 0.25
    assert batch.snr.min() >= 30
    assert batch.snr.max() <= 38


def test_kinds_have_equal_shares():
    kinds = ("barrage", "tone", "pss_burst", "deceptive")
    batch = SSBScenario(kinds=kinds, jammed=1.0).draw(2000, generator())
    counts = [(batch.kind == JAMMER_KINDS.index(kind)).sum().item() for kind in kinds]
    assert min(counts) > 430


def test_timing_moves_the_block_and_leaves_noise_at_the_free_end():
    scenario = SSBScenario(channels=(TappedDelayChannel.flat(),), max_cfo=0.0)
    batch = scenario.draw(200, generator(), parts=True)
    block = batch.parts[0]
    late = batch.timing == 4
    assert late.any()
    assert block[late, :4].abs().max() == 0
    assert (block[late, 4].abs() > 0).all()
    early = batch.timing == -4
    assert block[early, -4:].abs().max() == 0
    assert (batch.signals[late, :4].abs() > 0).all()


def test_a_second_look_keeps_cell_channel_and_jammer_but_not_payload_or_noise():
    scenario = SSBScenario(looks=2, channels=(TappedDelayChannel.flat(),), max_cfo=0.0, max_timing=0)
    batch = scenario.draw(60, generator(), parts=True)
    assert batch.signals.shape == (60, 2, 1096)
    block, jammer, noise = batch.parts
    grids = ofdm_demodulate(block)
    first, second = grids[:, 0], grids[:, 1]
    k, symbol = ssb_indices(0)["sss"]
    torch.testing.assert_close(first[:, k, symbol], second[:, k, symbol], atol=1e-4, rtol=1e-3)
    assert (first[:, :, 1] - second[:, :, 1]).abs().mean() > 0.5
    assert (noise[:, 0] - noise[:, 1]).abs().max() > 0
    ratio = power(noise[:, 0]) / power(noise[:, 1])
    assert ((ratio - 1).abs() < 0.3).all()
    assert (jammer[:, 0] - jammer[:, 1])[batch.labels == 1].abs().amax(dim=1).min() > 0
    disturbance = power(jammer).mean(dim=1) + power(noise).mean(dim=1)
    sjnr = 10 * (power(block).mean(dim=1) / disturbance).log10()
    assert (sjnr - batch.sjnr).abs().max() < 0.4


def test_the_same_seed_gives_the_same_records_in_any_order():
    first, second = (SSBJammingDataset(50, seed=3, block=16) for _ in range(2))
    whole = first.batch()
    for index in (49, 0, 17, 16):
        signal, label, meta = second[index]
        assert torch.equal(signal, whole.signals[index])
        assert label == whole.labels[index]
        assert meta["cell_id"] == whole.cell_id[index]
    assert not torch.equal(SSBJammingDataset(50, seed=4, block=16).batch().signals, whole.signals)
    assert len(list(first.blocks())) == 4


def test_cells_and_payloads_differ_from_record_to_record():
    batch = SSBJammingDataset(400, seed=0).batch()
    assert len(batch.cell_id.unique()) > 250
    assert set(batch.issb.tolist()) == set(range(8))


def test_a_data_set_without_meta_fits_the_library_kind():
    parts = {name: SSBJammingDataset(8, seed=i, with_meta=False) for i, name in enumerate(("train", "val", "test"))}
    data = SignalData(**parts, sample_rate=7.68e6)
    assert data.num_samples == 1096
    assert len(data.train[0]) == 2
    assert len(SSBJammingDataset(8).batch().examples()) == 8


def test_a_larger_transform_gives_longer_records_and_coded_payloads_work():
    scenario = SSBScenario(nfft=512, payload="coded", kinds=JAMMER_KINDS)
    assert scenario.draw(12, generator()).signals.shape == (12, 2192)
    assert scenario.sample_rate == 15.36e6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SSBJammingDataset(10, snr=(20, 38)), "may fall below the SJNR"),
        (lambda: SSBScenario(sjnr=(30, 15)), "sjnr must be"),
        (lambda: SSBScenario(kinds=("laser",)), "kinds must be names out of"),
        (lambda: SSBScenario(kinds=()), "kinds must be names out of"),
        (lambda: SSBScenario(jammed=1.2), "jammed must lie in 0..1"),
        (lambda: SSBScenario(looks=9), "looks must lie in 1..8"),
        (lambda: SSBScenario(max_timing=200), "max_timing in 0..136"),
        (lambda: SSBJammingDataset(0), "must be positive"),
        (lambda: Jammer("laser"), "kind must be one of"),
        (lambda: TappedDelayChannel.tdl("TDL-F", delay_spread=0, sample_rate=1), "model must be one of"),
        (lambda: TappedDelayChannel([0.5], [1.0]), "whole numbers of samples"),
        (lambda: TappedDelayChannel([0, 1], [1.0]), "one power per delay"),
        (lambda: agc(torch.zeros(2, 8, dtype=torch.complex64)), "not all zero; record 0 has mean power 0"),
    ],
)
def test_impossible_scenarios_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_an_empty_jammer_can_be_accepted():
    batch = SSBScenario(snr=(10, 12), sjnr=(15, 30), jammed=1.0, allow_zero_jammer=True).draw(
        20, generator(), parts=True
    )
    assert batch.parts[1].abs().max() == 0
    assert batch.labels.all()
    torch.testing.assert_close(batch.sjnr, batch.snr)
