"""Fields on the sphere: the kind, CF NetCDF and Zarr, ERA-Interim, regridding, and forecasts written."""

import numpy as np
import pytest
import torch

from etude.data.kinds_fields import FieldData, FieldGrid, Fields, FieldSource, window_starts

xr = pytest.importorskip("xarray")

from etude.data import fields  # noqa: E402
from etude.data.catalogue import locate  # noqa: E402

LATITUDE = np.linspace(75, -75, 6)
LONGITUDE = np.arange(8) * 45.0
TIMES = np.datetime64("2001-01-01T00", "s") + np.arange(40) * np.timedelta64(6, "h")


def grid(**changes):
    values = {
        "latitude": LATITUDE, "longitude": LONGITUDE, "variables": ("z", "t2m"), "levels": (500.0, None),
        "units": ("m2 s-2", "K"),
    }  # fmt: skip
    return FieldGrid(**(values | changes))


def some(n=40, **changes):
    values = torch.randn(n, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    return Fields(**({"values": values, "times": TIMES[:n], "grid": grid()} | changes))


def truth():
    """z (time, level, lat, lon) and t2m (time, lat, lon) on the canonical grid."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(40, 2, 6, 8)).astype(np.float32), rng.normal(size=(40, 6, 8)).astype(np.float32)


def dataset(lat="latitude", lon="longitude", rows=slice(None), columns=None, longitude=LONGITUDE, **units):
    z, t2m = truth()
    columns = np.arange(8) if columns is None else columns

    def cut(a):
        return a[..., rows, :][..., columns]

    return xr.Dataset(
        {
            "z": (("time", "level", lat, lon), cut(z), {"units": units.get("z", "m**2 s**-2")}),
            "t2m": (("time", lat, lon), cut(t2m), {"units": units.get("t2m", "K")}),
        },
        {
            "time": TIMES.astype("datetime64[ns]"), "level": ("level", [500, 850], {"units": "millibars"}),
            lat: (lat, LATITUDE[rows], {"units": "degrees_north"}),
            lon: (lon, longitude[columns], {"units": "degrees_east"}),
        },
    )  # fmt: skip


def written(data, path):
    data.to_netcdf(path, engine="netcdf4")
    return path


def test_a_file_is_read_in_the_order_of_the_channels(tmp_path):
    got = fields.open_fields(written(dataset(), tmp_path / "a.nc"), ["t2m", "z"], [850, 500])
    z, t2m = truth()
    assert got.grid.channels == ("t2m", "z850", "z500")
    assert got.grid.units == ("K", "m2 s-2", "m2 s-2")
    assert np.array_equal(got.values.numpy(), np.stack([t2m, z[:, 1], z[:, 0]], axis=1))
    assert got.step_hours == 6
    assert (got.times == TIMES).all()


@pytest.mark.parametrize("names", [("latitude", "longitude"), ("lat", "lon"), ("Y", "X")])
def test_orders_and_conventions_of_the_axes_make_no_difference(names, tmp_path):
    plain = fields.open_fields(written(dataset(), tmp_path / "plain.nc"))
    # South to north, and longitudes from -180: 180 ... 315 come first.
    west = np.where(LONGITUDE >= 180, LONGITUDE - 360, LONGITUDE)
    turned = dataset(*names, rows=slice(None, None, -1), columns=np.argsort(west), longitude=west)
    turned = turned.transpose("time", "level", names[1], names[0])
    got = fields.open_fields(written(turned, tmp_path / "turned.nc"))
    assert got.grid.same_as(plain.grid)
    assert torch.equal(got.values, plain.values)


def test_levels_in_pascal_are_hectopascal_here(tmp_path):
    data = dataset()
    data["level"] = ("level", [50_000, 85_000], {"units": "Pa"})
    assert fields.open_fields(written(data, tmp_path / "a.nc"), ["z"], [500]).grid.levels == (500.0,)


def test_packed_values_are_unpacked_with_a_negative_scale(tmp_path):
    data = dataset()
    packing = {"dtype": "int16", "scale_factor": -0.001, "add_offset": 1.0, "_FillValue": -32767}
    data.to_netcdf(tmp_path / "packed.nc", engine="netcdf4", encoding={"t2m": packing})
    got = fields.open_fields(tmp_path / "packed.nc", ["t2m"])
    assert np.abs(got.values[:, 0].numpy() - truth()[1]).max() < 6e-4


def test_wrong_units_are_refused_with_what_was_expected(tmp_path):
    path = written(dataset(t2m="degC"), tmp_path / "a.nc")
    with pytest.raises(ValueError, match="t2m is in degC, expected K"):
        fields.open_fields(path)
    with pytest.raises(ValueError, match="z is in m, expected m2 s-2"):
        fields.open_fields(written(dataset(z="m"), tmp_path / "b.nc"))
    assert fields.open_fields(path, units={"t2m": "degC"}).grid.units[0] == "degC"
    data = dataset()
    data["level"] = ("level", [500, 850], {"units": "m"})
    with pytest.raises(ValueError, match="levels are in 'm'; a pressure"):
        fields.open_fields(written(data, tmp_path / "c.nc"))


def test_missing_time_steps_are_refused_or_split(tmp_path):
    path = written(dataset().isel(time=[*range(10), *range(12, 40)]), tmp_path / "a.nc")
    with pytest.raises(ValueError, match="2001-01-03T06:00:00 is followed by 2001-01-04T00:00:00, 6 hours"):
        fields.open_fields(path)
    got = fields.open_fields(path, gaps="split")
    assert np.bincount(got.runs).tolist() == [10, 28]
    assert 9 not in window_starts(got, 2)


def test_nan_over_land_is_refused_or_filled(tmp_path):
    data = dataset()
    data["t2m"].values[3, 2, 5] = np.nan
    path = written(data, tmp_path / "a.nc")
    with pytest.raises(ValueError, match=r"t2m is nan at 2001-01-01T18:00:00, latitude 15, longitude 225 \(over land"):
        fields.open_fields(path)
    assert fields.open_fields(path, fill={"t2m": 280.0}).values[3, 0, 2, 5] == 280


def test_irregular_grids_are_refused(tmp_path):
    data = dataset().drop_vars(["latitude", "longitude"]).rename(latitude="y", longitude="x")
    plane = np.zeros((6, 8))
    curved = data.assign_coords(latitude=(("y", "x"), plane), longitude=(("y", "x"), plane))
    with pytest.raises(ValueError, match=r"latitude has the dimensions \('y', 'x'\): an irregular grid"):
        fields.open_fields(written(curved, tmp_path / "a.nc"))
    with pytest.raises(ValueError, match=r"longitudes must rise evenly, got .* regrid first"):
        fields.open_fields(written(dataset(columns=np.array([0, 1, 2, 3, 5, 6, 7])), tmp_path / "b.nc"))


def test_unknown_names_are_refused(tmp_path):
    path = written(dataset(), tmp_path / "a.nc")
    with pytest.raises(ValueError, match=r"unknown variable q in a.nc; there are t2m, z"):
        fields.open_fields(path, ["q"])
    with pytest.raises(ValueError, match="z has no level 300 hPa; there are 500, 850"):
        fields.open_fields(path, ["z"], [300])
    with pytest.raises(FileNotFoundError, match="no NetCDF file or Zarr store"):
        fields.open_fields(tmp_path / "none.nc")
    (tmp_path / "text.nc").write_text("no")
    with pytest.raises(ValueError, match="cannot be read as NetCDF"):
        fields.open_fields(tmp_path / "text.nc")
    with pytest.raises(ValueError, match="a time axis of dates was expected"):
        fields.open_fields(written(dataset().drop_vars("time"), tmp_path / "b.nc"))


def test_the_split_is_by_time(tmp_path):
    data = fields.load(written(dataset(), tmp_path / "mine.nc"), ["t2m"])
    assert (len(data.train), len(data.val), len(data.test)) == (28, 4, 8)
    assert data.train.times[-1] < data.val.times[0] < data.val.times[-1] < data.test.times[0]
    assert data.name == "mine"
    with pytest.raises(ValueError, match="has 10 frames: at least 30"):
        fields.split_by_time(some(10))


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "wb2.zarr"
    # WeatherBench2's coarse stores have latitude last.
    turned = dataset(rows=slice(None, None, -1)).transpose("time", "level", "longitude", "latitude")
    turned.to_zarr(path, encoding={name: {"chunks": (7, *turned[name].shape[1:])} for name in turned.data_vars})
    return path


@pytest.mark.filterwarnings("ignore")
def test_a_zarr_store_is_read_chunk_by_chunk(store, tmp_path):
    whole = fields.open_fields(written(dataset(), tmp_path / "a.nc"))
    lazy = fields.ZarrDataset(store, keep=2)
    assert isinstance(lazy, FieldSource)
    assert lazy.chunk == 7
    assert lazy.grid.same_as(whole.grid)
    assert torch.equal(lazy.read([30, 2, 2, 6, 7]), whole.values[[30, 2, 2, 6, 7]])
    assert len(lazy._kept) == 2
    assert torch.equal(torch.cat(list(lazy.blocks())), whole.values)
    part = lazy.between("2001-01-03", "2001-01-05T18")
    assert torch.equal(torch.cat(list(part.blocks())), whole.values[8:20])
    assert torch.equal(part.read([0, 11]), whole.values[[8, 19]])
    daily = fields.ZarrDataset(store, ["z"], [850], step_hours=24)
    assert (len(daily), daily.step_hours, daily.grid.channels) == (10, 24, ("z850",))
    assert torch.equal(daily.read([3]), whole.values[[12], 2:3])


@pytest.mark.filterwarnings("ignore")
def test_chunks_are_read_once(store, monkeypatch):
    lazy = fields.ZarrDataset(store)
    reads = []
    plain = lazy._layout.read
    monkeypatch.setattr(lazy._layout, "read", lambda selection: reads.append(selection) or plain(selection))
    lazy.read([0, 1, 6, 8])
    lazy.read([3, 9])
    assert [selection["time"].start for selection in reads] == [0, 7]


def test_forecasts_are_cf(tmp_path):
    z, t2m = truth()
    both = FieldGrid(LATITUDE, LONGITUDE, ("z", "z", "t2m"), (850.0, 500.0, None), ("m2 s-2", "m2 s-2", "K"))
    values = torch.from_numpy(np.concatenate([z[:6, ::-1], t2m[:6, None]], axis=1)).unflatten(0, (2, 3))
    path = fields.write_forecast(tmp_path / "f.nc", values, TIMES[:2], both, 6)
    with xr.open_dataset(path, decode_timedelta=True) as got:
        assert got.attrs["Conventions"] == "CF-1.8"
        assert got["z"].dims == ("time", "prediction_timedelta", "level", "latitude", "longitude")
        assert np.array_equal(got["z"].sel(level=500).values, values[:, :, 1].numpy())
        assert np.array_equal(got["t2m"].values, values[:, :, 2].numpy())
        assert got["z"].attrs["standard_name"] == "geopotential"
        assert got["latitude"].attrs["units"] == "degrees_north"
        hours = got["prediction_timedelta"].values.astype("timedelta64[h]").astype(int)
        assert hours.tolist() == [6, 12, 18]
    with pytest.raises(ValueError, match=r"values must have shape \(2, steps, 3,"):
        fields.write_forecast(tmp_path / "f.nc", values[:, :, :2], TIMES[:2], both)


def test_regridding_keeps_the_integral():
    fine = FieldGrid(np.linspace(90, -90, 61), np.arange(120) * 3.0, ("t",), (None,), ("K",))
    values = torch.randn(2, 61, 120, generator=torch.Generator().manual_seed(0))
    latitude, longitude = np.linspace(80, -80, 9), np.arange(20) * 18.0 + 4
    coarse = fields.conservative_regrid(values, fine, latitude, longitude)
    assert coarse.shape == (2, 9, 20)

    def areas(rows):
        edges = np.radians(np.concatenate([[90], (rows[1:] + rows[:-1]) / 2, [-90]]))
        return torch.from_numpy(-np.diff(np.sin(edges)) / 2)

    for before, after in zip(values.double(), coarse):
        mean = (before.mean(-1) * areas(fine.latitude)).sum()
        assert (after.mean(-1) * areas(latitude)).sum().item() == pytest.approx(mean.item(), abs=1e-12)
    assert torch.allclose(
        fields.conservative_regrid(torch.ones(61, 120), fine, latitude, longitude), torch.ones(9, 20).double()
    )
    same = fields.conservative_regrid(values, fine, fine.latitude, fine.longitude)
    assert torch.allclose(same, values.double(), atol=1e-6)


def test_regridding_is_the_mean_over_cells():
    fine = FieldGrid(np.linspace(87.5, -87.5, 36), np.arange(72) * 5.0 + 2.5, ("t",), (None,), ("K",))
    values = torch.randn(36, 72)
    # Three rows and columns make one cell.
    got = fields.conservative_regrid(values, fine, np.linspace(82.5, -82.5, 12), np.arange(24) * 15.0 + 7.5)
    edges = np.radians(np.linspace(90, -90, 37))
    area = torch.from_numpy(-np.diff(np.sin(edges)))[:, None]
    block = (values.double() * area)[3:6, 6:9].sum() / (3 * area[3:6].sum())
    assert got[1, 2].item() == pytest.approx(block.item(), abs=1e-12)


def has(name):
    try:
        locate(name)
    except FileNotFoundError:
        return False
    return True


@pytest.mark.skipif(not has("era_interim"), reason="era_interim is not on this machine")
def test_era_interim_winds_and_sea():
    values, grid = fields.era_interim_mean(1)
    assert values.shape == (9, 241, 480)
    assert (grid.latitude[0], grid.latitude[-1], grid.longitude[0]) == (90, -90, 0)
    assert grid.channels[:4] == ("z200", "z500", "z850", "u200")
    # The winter jet over Japan blows eastward; geopotential falls to the winter pole.
    jet = values[grid.channel("u200"), np.abs(grid.latitude - 33).argmin(), np.abs(grid.longitude - 140).argmin()]
    assert 50 < float(jet) < 90
    z = values[grid.channel("z500")]
    assert 4.7e4 < float(z[20].mean()) < float(z[120].mean()) < 5.9e4
    assert 0 <= float(z.std()) < 4e3
    with pytest.raises(ValueError, match="month must be one of 1, 7, got 4"):
        fields.era_interim_mean(4)
    sea, places = fields.era_interim_sea()
    row, column = (lambda lat, lon: (np.abs(places.latitude - lat).argmin(), np.abs(places.longitude - lon).argmin()))(
        0, 200
    )
    assert sea[0, row, column] == 1
    assert sea[0, np.abs(places.latitude - 50).argmin(), np.abs(places.longitude - 100).argmin()] == 0


def test_windows_lie_within_runs():
    runs = np.repeat([0, 1], 20)
    data = some(runs=runs, times=np.tile(TIMES[:20], 2))
    assert window_starts(data, 18).tolist() == [0, 1, 2, 20, 21, 22]
    assert len(window_starts(data, 41)) == 0
    with pytest.raises(ValueError, match="at least one frame, got 0"):
        window_starts(data, 0)


def test_the_kind_checks_its_axes():
    with pytest.raises(ValueError, match=r"must fall from north to south, got -75 ... 75"):
        grid(latitude=LATITUDE[::-1].copy())
    with pytest.raises(ValueError, match=r"must lie in \[0, 360\), got -90"):
        grid(longitude=LONGITUDE - 90)
    with pytest.raises(ValueError, match=r"within|must lie in \[-90, 90\]"):
        grid(latitude=LATITUDE + 20)
    with pytest.raises(ValueError, match="must name the same channels"):
        grid(units=("K",))
    with pytest.raises(ValueError, match="channels must differ, got z500, z500"):
        grid(variables=("z", "z"), levels=(500.0, 500.0))
    with pytest.raises(ValueError, match="unknown variable 'q'; there are z500, t2m"):
        grid().channel("q")
    assert grid().is_global
    assert not grid(longitude=np.arange(8) * 5.0).is_global


def test_the_kind_checks_its_values():
    with pytest.raises(ValueError, match="must be float32 of shape"):
        some(values=torch.zeros(40, 2, 6, 7))
    with pytest.raises(ValueError, match="must be float32"):
        some(values=torch.zeros(40, 2, 6, 8, dtype=torch.float64))
    with pytest.raises(ValueError, match="z500 is inf at 2001"):
        some(values=torch.full((40, 2, 6, 8), torch.inf))
    with pytest.raises(ValueError, match=r"times must have shape \(40,\), got \(39,\)"):
        some(times=TIMES[:39])
    with pytest.raises(ValueError, match="missing or uneven"):
        some(times=np.concatenate([TIMES[:20], TIMES[20:] + np.timedelta64(6, "h")]))
    with pytest.raises(ValueError, match="runs numbered in rising order"):
        some(runs=np.repeat(np.array([1, 0]), 20))


def test_parts_must_agree():
    whole = some()
    parts = [whole.part(slice(a, b)) for a, b in ((0, 20), (20, 30), (30, 40))]
    assert FieldData(*parts).val.step_hours == 6
    with pytest.raises(ValueError, match=r"val has z500 on \(6, 8\), train has z500, t2m"):
        FieldData(parts[0], parts[1].select(["z500"]), parts[2])
    with pytest.raises(ValueError, match="test must hold at least three frames, got 2"):
        FieldData(parts[0], parts[1], whole.part(slice(38, 40)))
    slow = Fields(whole.values[:5], TIMES[:10:2], whole.grid)
    with pytest.raises(ValueError, match="val has steps of 12 hours, train of 6"):
        FieldData(parts[0], slow, parts[2])
    with pytest.raises(TypeError):
        FieldData(parts[0], "val", parts[2])


def test_selected_channels():
    picked = some().select(["t2m"])
    assert torch.equal(picked.values, some().values[:, 1:])
    assert picked.grid.channels == ("t2m",)
