"""The estimator on a user's fields, from file to file, and its pictures."""

import numpy as np
import pytest
import torch

from etude.data.kinds_fields import FieldData, FieldGrid, Fields
from etude.science.puyun import (
    BarotropicSphere,
    Cascade,
    Forecaster,
    plot_forecast,
    plot_map,
    plot_scores,
    plot_spectra,
    zonal_spectrum,
)

OPTIONS = {"patch_size": 4, "dim": 4, "depths": (1, 1), "kernel_size": 9, "updates": 2, "curriculum": ((2, 1),)}


@pytest.fixture(scope="module")
def world():
    fields = BarotropicSphere().simulate(3, 12, generator=torch.Generator().manual_seed(0), spin_up_days=0)
    return FieldData(*(fields.part(slice(12 * i, 12 * i + 12)) for i in range(3)))


def test_from_fields_to_a_cf_file(world, tmp_path):
    xarray = pytest.importorskip("xarray")
    from etude.data import fields

    forecaster = Forecaster(stage_steps=4, stage_curriculum=((2, 1),), **OPTIONS).fit(world)
    assert isinstance(forecaster.model_, Cascade)
    assert len(forecaster.losses_) == 4
    values, times = forecaster.forecast(world.test, steps=5, at=[1, 11])
    assert values.shape == (2, 5, 3, 32, 64)
    path = fields.write_forecast(tmp_path / "forecast.nc", values, times, world.test.grid, world.test.step_hours)
    with xarray.open_dataset(path, decode_timedelta=True) as written:
        assert written["psi"].dims == ("time", "prediction_timedelta", "latitude", "longitude")
        assert np.allclose(written["u"].values, values[:, :, 1].numpy())
        assert (written["time"].values.astype("datetime64[s]") == times).all()


def test_scores_are_in_the_units_of_the_fields(world):
    forecaster = Forecaster(seasons=False, **(OPTIONS | {"updates": 0, "curriculum": ()})).fit(world)
    table = forecaster.score(world.test, steps=3)
    assert [row["lead_hours"] for row in table] == [6, 6, 6, 12, 12, 12, 18, 18, 18]
    for row in table:
        # The untrained network is persistence.
        assert row["rmse"] == pytest.approx(row["persistence_rmse"], rel=1e-4)
        assert -1 <= row["acc"] <= 1
    psi = world.test.values[2:, 0].double()
    rows = forecaster.rows_
    error = torch.stack(
        [(((psi[i] - world.test.values[i + 1, 0]) ** 2).mean(-1) * rows).mean().sqrt() for i in range(8)]
    )
    assert table[0]["rmse"] == pytest.approx(error.mean().item(), rel=1e-4)


def test_the_same_seed_gives_the_same_model(world):
    models = [Forecaster(**OPTIONS).fit(world).model_ for _ in range(2)]
    for one, other in zip(*(model.state_dict().values() for model in models)):
        assert torch.equal(one, other)


def test_statics_are_given_to_the_network(world):
    statics = torch.randn(1, 32, 64)
    model = Forecaster(statics=statics, **OPTIONS).fit(world).model_
    assert torch.equal(model.statics, statics)


def test_refusals(world):
    forecaster = Forecaster(**OPTIONS)
    with pytest.raises(RuntimeError, match="not fitted"):
        forecaster.forecast(world.test, 2)
    forecaster.fit(world)
    with pytest.raises(ValueError, match=r"fields of psi, u, v .* were expected, got psi, u on"):
        forecaster.forecast(world.test.select(["psi", "u"]), 2)
    with pytest.raises(ValueError, match="frame 0 has none before it"):
        forecaster.forecast(world.test, 2, at=[0])
    with pytest.warns(UserWarning, match="21 steps are far beyond the 2"):
        forecaster.forecast(world.test, 21)
    grid = FieldGrid(np.linspace(60, -60, 32), np.arange(64) * 1.0, ("t",), (None,), ("K",))
    times = np.datetime64("2001-01-01", "s") + np.arange(9) * np.timedelta64(6, "h")
    regional = Fields(torch.randn(9, 1, 32, 64), times, grid)
    with pytest.raises(ValueError, match="covers 0 to 63 degrees: sphere padding needs the whole circle"):
        Forecaster(**OPTIONS).fit(regional)
    Forecaster(padding="zeros", **OPTIONS).fit(regional)


def test_pictures(world):
    pytest.importorskip("matplotlib")
    values, grid = world.test.values[0, 0], world.test.grid
    picture = plot_map(values, grid, title="psi", unit="m2 s-1").axes[0].images[0]
    assert np.array_equal(picture.get_array(), values.numpy())
    west, east, south, north = picture.get_extent()
    assert (round(west, 3), round(east, 3)) == (-2.812, 357.188)
    assert -90 <= south < grid.latitude[-1] < grid.latitude[0] < north <= 90
    assert len(plot_forecast(values, 2 * values, grid).axes) == 6
    assert len(plot_scores([1, 2], {"a": [1, 2], "b": [2, 3]}).axes[0].lines) == 2
    spectrum = zonal_spectrum(values, torch.ones(32))
    assert plot_spectra({"a": spectrum}).axes[0].get_xscale() == "log"
    with pytest.raises((ValueError, TypeError)):
        plot_map(values[:4], grid)
