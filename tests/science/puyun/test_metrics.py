"""Scores and spectra on the sphere."""

import numpy as np
import pytest
import torch

from etude.data.kinds_fields import FieldGrid, Fields
from etude.science.puyun import (
    SphericalTransform,
    climatology,
    latitude_weights,
    weighted_acc,
    weighted_bias,
    weighted_rmse,
    zonal_spectrum,
)

LATITUDE = np.linspace(90, -90, 13)


def fields(times, values=None):
    grid = FieldGrid(np.linspace(60, -60, 4), np.arange(6) * 60.0, ("t",), (500.0,), ("K",))
    if values is None:
        values = torch.randn(len(times), 1, 4, 6, generator=torch.Generator().manual_seed(0))
    return Fields(values, times, grid)


@pytest.mark.parametrize("mode", ["cos", "cell_area"])
def test_weights_average_to_one_and_follow_the_order_of_the_rows(mode):
    weights = latitude_weights(LATITUDE, mode)
    assert weights.mean().item() == pytest.approx(1, abs=1e-12)
    other = latitude_weights(np.linspace(-90, 60, 11), mode)
    assert torch.allclose(latitude_weights(np.linspace(60, -90, 11), mode), other.flip(0))


def test_gaussian_weights_are_the_quadrature():
    transform = SphericalTransform(32, 64, 21)
    weights = latitude_weights(transform.latitude, "gauss")
    assert torch.allclose(weights / 32, transform.weights, atol=1e-14)
    # Exact for sin^2, whose mean over the sphere is 1/3; the cosine is not.
    square = torch.sin(torch.deg2rad(torch.from_numpy(transform.latitude))) ** 2
    assert (weights * square).mean().item() == pytest.approx(1 / 3, abs=1e-12)
    with pytest.raises(ValueError, match="needs the 13 Gaussian latitudes"):
        latitude_weights(LATITUDE, "gauss")


def test_cell_areas_are_those_of_the_sphere():
    edges = np.array([90, 82.5])
    expected = (np.sin(np.radians(edges[0])) - np.sin(np.radians(edges[1]))) / 2 * 13
    assert latitude_weights(LATITUDE, "cell_area")[0].item() == pytest.approx(expected)


def test_a_constant_error_is_its_own_rmse_and_bias():
    weights = latitude_weights(LATITUDE)
    truth = torch.randn(5, 2, 13, 8)
    for error in (-3.0, 2.5):
        assert torch.allclose(
            weighted_rmse(truth + error, truth, weights), torch.full((2,), abs(error)).double(), atol=1e-5
        )
        assert torch.allclose(weighted_bias(truth + error, truth, weights), torch.full((2,), error).double(), atol=1e-5)


def test_rmse_equals_the_definition_and_the_other_mean_is_never_smaller():
    weights = latitude_weights(LATITUDE)
    forecast, truth = torch.randn(2, 6, 3, 13, 8, generator=torch.Generator().manual_seed(0))
    for channel in range(3):
        roots = []
        for n in range(6):
            total = 0.0
            for i in range(13):
                for j in range(8):
                    total += weights[i] * (forecast[n, channel, i, j] - truth[n, channel, i, j]).double() ** 2
            roots.append((total / (13 * 8)) ** 0.5)
        after, before = (weighted_rmse(forecast, truth, weights, m)[channel] for m in ("after_sqrt", "before_sqrt"))
        assert after.item() == pytest.approx(np.mean(roots), rel=1e-6)
        assert before.item() == pytest.approx(np.mean(np.square(roots)) ** 0.5, rel=1e-6)
        assert before >= after


def test_anomaly_correlation():
    weights = latitude_weights(LATITUDE)
    truth, climate = torch.randn(4, 2, 13, 8), torch.randn(1, 2, 13, 8)
    ones = torch.ones(2, dtype=torch.float64)
    assert torch.allclose(weighted_acc(truth, truth, climate, weights), ones, atol=1e-6)
    assert torch.equal(weighted_acc(climate.expand_as(truth), truth, climate, weights), 0 * ones)
    forecast = torch.randn(4, 2, 13, 8)
    plain = weighted_acc(forecast, truth, climate, weights)
    scaled = weighted_acc(climate + 0.2 * (forecast - climate), truth, climate, weights)
    assert torch.allclose(plain, scaled, atol=1e-5)
    assert torch.allclose(weighted_acc(2 * climate - truth, truth, climate, weights), -ones, atol=1e-6)


@pytest.mark.parametrize("columns", [8, 9])
def test_zonal_spectrum_sums_to_the_mean_square(columns):
    weights = latitude_weights(LATITUDE)
    values = torch.randn(3, 13, columns)
    mean_square = ((values.double() ** 2).mean(-1) * weights).mean(-1)
    assert torch.allclose(zonal_spectrum(values, weights).sum(-1), mean_square, atol=1e-10)


def test_zonal_spectrum_finds_a_wave():
    wave = torch.cos(3 * torch.arange(16) * 2 * torch.pi / 16).expand(13, 16)
    spectrum = zonal_spectrum(wave, latitude_weights(LATITUDE))
    assert spectrum.argmax() == 3
    assert spectrum[3].item() == pytest.approx(0.5)


def test_climatology_by_month_and_hour():
    times = np.datetime64("2001-01-01T00", "s") + np.arange(4 * 730) * np.timedelta64(6, "h")
    data = fields(times)
    climate = climatology(data, "month")
    mine = (times.astype("datetime64[M]").astype(int) % 12 == 3) & ((np.arange(len(times)) % 4) == 2)
    expected = data.values[torch.from_numpy(mine)].mean(0)
    got = climate.at(np.array(["2011-04-17T12"], dtype="datetime64[s]"))[0]
    assert torch.allclose(got, expected, atol=1e-6)
    assert torch.allclose(climatology(data).at(times[:1])[0], data.values.mean(0), atol=1e-5)
    with pytest.raises(ValueError, match="hours 0, 6, 12, 18, not 3"):
        climate.at(np.array(["2011-04-17T03"], dtype="datetime64[s]"))


def test_climatology_by_day_averages_over_a_window():
    times = np.datetime64("2001-01-01T00", "s") + np.arange(730) * np.timedelta64(24, "h")
    data = fields(times)
    climate = climatology(data, "day", window=5)
    day = (times.astype("datetime64[D]") - times.astype("datetime64[Y]").astype("datetime64[D]")).astype(int)
    for name, centre in (("2003-03-01", 59), ("2003-01-01", 0)):
        near = np.isin(day, [(centre + shift) % 366 for shift in range(-2, 3)])
        got = climate.at(np.array([name], dtype="datetime64[s]"))[0]
        assert torch.allclose(got, data.values[torch.from_numpy(near)].mean(0), atol=1e-6)


def test_refusals():
    weights = latitude_weights(LATITUDE)
    x = torch.zeros(2, 1, 13, 8)
    with pytest.raises(ValueError, match="monotonic within"):
        latitude_weights(np.array([10.0, 30.0, 20.0]))
    with pytest.raises(ValueError, match="'cos', 'cell_area' or 'gauss', got 'area'"):
        latitude_weights(LATITUDE, "area")
    # Under a type checker the shapes are refused before the function sees them.
    with pytest.raises((ValueError, TypeError)):
        weighted_rmse(x, x[:1], weights)
    with pytest.raises((ValueError, TypeError)):
        weighted_rmse(x, x, torch.ones(8))
    with pytest.raises(ValueError, match="'after_sqrt' or 'before_sqrt', got 'none'"):
        weighted_rmse(x, x, weights, "none")
    times = np.datetime64("2001-01-01", "s") + np.arange(3) * np.timedelta64(24, "h")
    with pytest.raises(ValueError, match="some month of the year has no frame"):
        climatology(fields(times), "month")
