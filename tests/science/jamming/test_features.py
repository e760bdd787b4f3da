"""Correlation, EPNRE and wavelets measure what they say, on ideal and on faded blocks."""

import numpy as np
import pytest
import pywt
import torch

from etude.science.jamming import (
    SSBFeatures,
    SSBScenario,
    TappedDelayChannel,
    block_grid,
    cut_block,
    epnre,
    find_blocks,
    ofdm_modulate,
    pss_correlation,
    spectrum_summary,
    ssb_burst,
    ssb_grid,
    wavelet_bands,
)
from etude.science.jamming.features import _replicas

FLAT = (TappedDelayChannel.flat(),)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clean(n: int, **options) -> object:
    return SSBScenario(jammed=0.0, snr=(30.0, 30.0), **options).draw(n, generator(), parts=True)


def mean_energy(y: torch.Tensor, peak: torch.Tensor) -> torch.Tensor:
    return epnre(block_grid(y, peak)).means


def test_correlation_equals_the_naive_sum():
    y = torch.randn(2, 300, dtype=torch.complex64, generator=generator())
    found = pss_correlation(y)
    naive = torch.stack([y.unfold(-1, 256, 1) @ replica.conj() for replica in _replicas(256)], dim=1).abs()
    best = naive.amax(dim=-1).argmax(dim=1)
    assert torch.equal(found.n_id_2, best)
    torch.testing.assert_close(found.magnitude, naive[torch.arange(2), best], atol=1e-4, rtol=1e-4)
    local = pss_correlation(7 * y, local_norm=True)
    norms = y.unfold(-1, 256, 1).abs().square().sum(dim=-1).sqrt()
    torch.testing.assert_close(local.magnitude, found.magnitude / norms, atol=1e-5, rtol=1e-4)


def test_replicas_have_unit_norm():
    torch.testing.assert_close(_replicas(512).abs().square().sum(dim=1), torch.ones(3))


def test_peak_stands_at_the_true_delay_without_multipath():
    batch = clean(300, channels=FLAT)
    found = pss_correlation(batch.signals)
    assert torch.equal(found.peak - 18, batch.timing)
    assert torch.equal(found.n_id_2, batch.cell_id % 3)


def test_sector_and_delay_are_found_in_fading_too():
    batch = clean(600)
    found = pss_correlation(batch.signals)
    assert (found.n_id_2 == batch.cell_id % 3).double().mean() > 0.99
    assert (found.peak - 18 == batch.timing).double().mean() > 0.95


def test_epnre_without_a_jammer_is_the_noise_power():
    batch = clean(300, max_cfo=0.0)
    record = sum(batch.parts)
    noise = batch.parts[2].abs().square().mean()
    means = mean_energy(record, pss_correlation(record).peak)
    torch.testing.assert_close(means[:, 0].mean(), noise, rtol=0.02, atol=0)
    torch.testing.assert_close(means.mean(dim=0) @ torch.tensor([113.0, 17.0]) / 130, noise, rtol=0.02, atol=0)


def test_epnre_under_barrage_is_noise_and_jammer_power():
    scenario = SSBScenario(
        jammed=1.0, kinds=("barrage",), snr=(30.0, 30.0), sjnr=(20.0, 20.0), max_cfo=0.0, jammer_channels=FLAT
    )
    batch = scenario.draw(300, generator(), parts=True)
    record = sum(batch.parts)
    expected = (batch.parts[1] + batch.parts[2]).abs().square().mean()
    means = mean_energy(record, pss_correlation(record).peak)
    torch.testing.assert_close(means.mean(dim=0) @ torch.tensor([113.0, 17.0]) / 130, expected, rtol=0.02, atol=0)


def test_a_frequency_error_leaks_most_into_symbol_2():
    batch = clean(4000, channels=FLAT)
    far = batch.cfo.abs() > 0.009
    record = sum(batch.parts)[far]
    noise = batch.parts[2][far].abs().square().mean()
    first, second = (mean_energy(record, pss_correlation(record).peak).mean(dim=0) / noise).tolist()
    assert 1.0 < first < 1.03  # CFO 0.01 at 30 dB: about +1 % and +15 %
    assert 1.09 < second < 1.19


def test_epnre_does_not_depend_on_the_timing_error():
    batch = clean(3000, max_cfo=0.0)
    record = sum(batch.parts) / batch.parts[2].abs().square().mean(dim=1, keepdim=True).sqrt()
    energy = epnre(block_grid(record, pss_correlation(record).peak)).energies.mean(dim=1)
    means = torch.stack([energy[batch.timing == timing].mean() for timing in range(-4, 5)])
    assert (means / means.mean() - 1).abs().max() < 0.02


def test_late_windows_would_lift_the_energy_many_times():
    batch = clean(200, max_cfo=0.0)
    record = sum(batch.parts)
    peak = pss_correlation(record).peak
    right, late = mean_energy(record, peak).mean(), mean_energy(record, peak + 12).mean()
    assert late > 10 * right


def test_empty_elements_are_130_and_read_in_the_right_places():
    grid = ssb_grid(torch.arange(4))
    assert epnre(grid).energies.shape == (4, 130)
    assert epnre(grid).energies.max() == 0
    grid[:, 10, 0] = 3.0
    grid[:, 50, 2] = 2.0
    assert epnre(grid).energies.sum(dim=1).tolist() == [13.0] * 4
    torch.testing.assert_close(epnre(grid).means[0], torch.tensor([9 / 113, 4 / 17]))


@pytest.mark.parametrize("length", [841, 400, 357])
@pytest.mark.parametrize("wavelet", ["db1", "db4", "sym5", "bior2.2"])
@pytest.mark.parametrize("mode", ["symmetric", "periodization"])
def test_wavelet_bands_equal_pywavelets(wavelet, mode, length):
    level = pywt.dwt_max_level(length, wavelet)
    x = torch.randn(3, length, dtype=torch.float64, generator=generator())
    bands = wavelet_bands(x, wavelet, level, mode)
    expected = pywt.wavedec(x.numpy(), wavelet, mode=mode, level=level, axis=-1)
    assert len(bands) == level + 1
    for band, reference in zip(bands, expected):
        np.testing.assert_allclose(band.numpy(), reference, atol=1e-12)


def test_approximation_of_841_lags_has_59_values_and_the_inverse_gives_them_back():
    x = torch.randn(2, 841, dtype=torch.float64, generator=generator())
    bands = wavelet_bands(x)
    assert [band.shape[-1] for band in bands] == [59, 59, 111, 215, 424]
    back = pywt.waverec([band.numpy() for band in bands], "db4", mode="symmetric", axis=-1)[..., :841]
    np.testing.assert_allclose(back, x.numpy(), atol=1e-10)


def test_an_orthogonal_transform_with_periodization_keeps_the_energy():
    x = torch.randn(5, 832, dtype=torch.float64, generator=generator())
    energy = sum(band.square().sum(dim=-1) for band in wavelet_bands(x, mode="periodization"))
    torch.testing.assert_close(energy, x.square().sum(dim=-1))


def test_wavelet_bands_have_gradients():
    x = torch.randn(2, 60, dtype=torch.float64, generator=generator(), requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: torch.cat(wavelet_bands(y, level=2), dim=-1), x)


def test_features_have_their_sizes_and_do_not_depend_on_the_power_of_a_record():
    signals = SSBScenario().draw(40, generator()).signals
    extractor = SSBFeatures()
    raw = extractor.extract(signals)
    assert raw.first.shape == (40, 61)
    assert raw.second.shape == (40, 706)
    scaled = extractor.extract((signals * 37).numpy().astype(np.complex128))
    torch.testing.assert_close(scaled.second, raw.second, atol=1e-3, rtol=1e-3)
    two = extractor.extract(torch.stack([signals, signals], dim=1))
    assert torch.equal(two.first[:, 1], raw.first)


def test_correlation_enters_the_features_with_its_peak_at_the_prefix_length():
    samples = ofdm_modulate(ssb_grid(4, dtype=torch.complex64))
    extractor = SSBFeatures(wavelet="db1", level=2)
    early = extractor.extract(samples.unsqueeze(0)).second[:, :211]
    shifted = torch.cat([torch.zeros(4), samples[:-4]]).unsqueeze(0)
    late = extractor.extract(shifted).second[:, :211]
    strongest = early.argmax()
    assert late.argmax() == strongest == 18 // 4


def test_the_scaler_knows_the_training_records_alone():
    signals = SSBScenario().draw(60, generator()).signals
    extractor = SSBFeatures().fit(signals[:40])
    train = extractor.transform(signals[:40])
    torch.testing.assert_close(train.first.mean(dim=0), torch.zeros(61), atol=1e-4, rtol=0)
    torch.testing.assert_close(train.first.std(dim=0, correction=0), torch.ones(61), atol=1e-3, rtol=0)
    before = [mean.clone() for mean in extractor.means_]
    extractor.transform(signals[40:])
    assert all(torch.equal(a, b) for a, b in zip(before, extractor.means_))
    alone, among_others = extractor.transform(signals[40:41]), extractor.transform(signals[40:])
    torch.testing.assert_close(alone.second[0], among_others.second[0], atol=1e-4, rtol=1e-4)


def test_blocks_of_a_recording_are_found_where_they_stand():
    burst = ssb_burst(33, duration=20e-3, generator=generator())
    recording = torch.cat([burst, burst]).roll(1234)
    recording = recording + 0.02 * torch.randn(len(recording), dtype=torch.complex64, generator=generator(1))
    blocks = find_blocks(recording)
    assert blocks.shape == (2, 1096)
    assert pss_correlation(blocks).peak.tolist() == [18, 18]
    assert pss_correlation(blocks).n_id_2.tolist() == [0, 0]
    silence = 0.02 * torch.randn(200_000, dtype=torch.complex64, generator=generator(2))
    assert find_blocks(silence, threshold=0.5).shape == (0, 1096)


def test_a_block_is_cut_out_of_each_longer_signal():
    grid = ssb_grid(torch.tensor([7, 400]), generator=generator())
    signals = torch.zeros(2, 4000, dtype=torch.complex64)
    for row, start in enumerate((100, 2904)):
        signals[row, start : start + 1096] = ofdm_modulate(grid)[row]
    blocks, sure = cut_block(signals)
    torch.testing.assert_close(blocks, ofdm_modulate(grid))
    assert (sure > 0.99).all()


def test_spectrum_summary_orders_least_mean_and_largest():
    values = spectrum_summary(SSBScenario().draw(5, generator()).signals).unflatten(1, (3, 256))
    assert values.shape == (5, 3, 256)
    assert (values[:, 0] <= values[:, 1]).all()
    assert (values[:, 1] <= values[:, 2]).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SSBFeatures().extract(torch.zeros(3, 1096)), "signals must be complex"),
        (lambda: SSBFeatures().extract(np.zeros((3, 1000), np.complex64)), "at least 1096 samples, got shape"),
        (lambda: SSBFeatures().extract(torch.ones(3, 2000, dtype=torch.complex64)), "find_blocks cuts records"),
        (lambda: SSBFeatures().extract(torch.zeros(3, 1096, dtype=torch.complex64)), "not all zero"),
        (
            lambda: SSBFeatures().extract(torch.ones(3, 1096, dtype=torch.complex64), sample_rate=15.36e6),
            "sample rate nfft . scs = 256 . 30000 = 7.68e.06 Hz, got 1.536e.07 Hz",
        ),
        (lambda: SSBFeatures(level=1), "level must be at least 2"),
        (lambda: wavelet_bands(torch.zeros(40), level=9), "level must lie in 1..2"),
        (lambda: wavelet_bands(torch.zeros(400), mode="mirror"), "mode must be 'symmetric' or"),
        (lambda: wavelet_bands(torch.zeros(400), "square"), "wavelet must be a discrete wavelet"),
        (lambda: pss_correlation(torch.zeros(200, dtype=torch.complex64)), "at least 256 samples"),
        (lambda: find_blocks(torch.zeros(5000)), "signals must be complex"),
        (lambda: find_blocks(torch.zeros(5000, dtype=torch.complex64), period=1e-6), "period must hold a block"),
    ],
)
def test_bad_signals_are_refused_with_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_transform_before_fit_is_refused():
    with pytest.raises(RuntimeError, match="call fit"):
        SSBFeatures().transform(torch.ones(1, 1096, dtype=torch.complex64))
