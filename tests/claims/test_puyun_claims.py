"""What the claims of PuYun do around the networks that they compare."""

import numpy as np
import pytest
import torch

from etude.claims.science import puyun as claims
from etude.data.kinds_fields import FieldData, FieldGrid, Fields
from etude.lab import Trial
from etude.science.puyun import weighted_acc

CLAIMS = claims.PAPER.claims
NAMES = ("large_kernel_beats_small", "cascade_reduces_long_lead_error", "circular_padding")


def trial(claim, arm, seed=0, **changes):
    setup = CLAIMS[claim].setups["smoke"].replace(**changes)
    return Trial(f"puyun/{claim}", arm, seed, "smoke", setup, {})


@pytest.fixture(scope="module")
def marker():
    return claims.barotropic()


def weather():
    """A user's fields: forty days of six-hourly values of two variables on a 12 x 24 grid with both poles' rows."""
    grid = FieldGrid(np.linspace(82.5, -82.5, 12), np.arange(24) * 15.0, ("z", "t2m"), (500.0, None), ("m2 s-2", "K"))
    times = np.datetime64("2001-01-01T00", "s") + np.arange(160) * np.timedelta64(6, "h")
    values = torch.randn(160, 2, 12, 24, generator=torch.Generator().manual_seed(0)).cumsum(0)
    whole = Fields(values, times, grid)
    return FieldData(*(whole.part(slice(a, b)) for a, b in ((0, 110), (110, 130), (130, 160))))


def test_arms_of_a_seed_see_the_same_world_and_seeds_see_others(marker):
    worlds = [
        claims._World(trial(NAMES[0], arm, seed), marker).data for arm, seed in (("small", 0), ("lka", 0), ("lka", 1))
    ]
    for part in ("train", "val", "test"):
        one, same, other = (getattr(world, part).values for world in worlds)
        assert torch.equal(one, same)
        assert not torch.equal(one, other)
    assert not torch.equal(worlds[0].val.values[:4], worlds[0].test.values[:4])


def test_the_wide_control_has_the_parameters_of_the_large_kernel(marker):
    values = {
        arm: claims.large_kernel_beats_small(trial(NAMES[0], arm, updates=1), marker)["parameters"]
        for arm in ("small", "small_wide", "lka")
    }
    assert values["small"] < values["lka"] <= values["small_wide"] < 1.1 * values["lka"]


def test_networks_of_a_seed_share_what_has_one_shape(marker):
    world = claims._World(trial(NAMES[0], "lka"), marker)
    large = world.network(trial(NAMES[0], "lka"))
    padded = world.network(trial(NAMES[0], "lka"), padding="zeros")
    for one, other in zip(large.parameters(), padded.parameters()):
        assert torch.equal(one, other)


def test_short_is_one_network_for_all_arms_of_a_seed(marker):
    world = claims._World(trial(NAMES[1], "short"), marker)
    models = [claims._short(trial(NAMES[1], arm), world).state_dict() for arm in ("short", "cascade")]
    claims._short_state.cache_clear()
    models.append(claims._short(trial(NAMES[1], "control"), world).state_dict())
    for name, value in models[0].items():
        assert torch.equal(value, models[1][name])
        assert torch.equal(value, models[2][name])


def test_the_cascade_is_short_up_to_its_switch(marker):
    runs = {}
    for arm in ("short", "cascade"):
        case = trial(NAMES[1], arm, stage_steps=4, finetune_lr=5e-2)
        claims.cascade_reduces_long_lead_error(case, marker)
        runs[arm] = [value for _, value in case.series["rmse"]]
    assert runs["short"][:4] == pytest.approx(runs["cascade"][:4], abs=1e-6)
    assert all(abs(a - b) > 1e-5 for a, b in zip(runs["short"][4:], runs["cascade"][4:]))


def test_damping_is_the_least_squares_factor_of_all_batches():
    generator = torch.Generator().manual_seed(0)
    truth, noise, climate = torch.randn(3, 6, 3, 1, 32, 64, generator=generator)
    made = climate + 0.5 * (truth - climate) + noise
    rows = torch.linspace(0.5, 1.5, 32)
    batches = [(made[part], truth[part], climate[part]) for part in (slice(0, 4), slice(4, 6))]
    factor = claims._damping(batches, rows)
    assert factor.shape == (3, 1)
    for step in range(3):
        f, y = (made - climate)[:, step], (truth - climate)[:, step]
        expected = (rows[:, None] * f * y).sum() / (rows[:, None] * f * f).sum()
        assert factor[step, 0].item() == pytest.approx(expected.item(), rel=1e-4)


def test_scores_are_those_of_the_whole_set_whatever_the_batches(marker):
    case = trial(NAMES[0], "lka", test=18, frames=10, steps=8)
    world = claims._World(case, marker)
    model = world.network(case)
    values = world.scores(case, model)
    made, truth, climate = (torch.cat(part) for part in zip(*world.forecasts(case, model, world.data.test)))
    assert len(made) == 18
    assert values["rmse_1d"] == pytest.approx(claims.weighted_rmse(made, truth, world.rows)[3].item(), rel=1e-5)
    assert values["acc_1d"] == pytest.approx(weighted_acc(made, truth, climate, world.rows)[3].item(), rel=1e-5)
    damped = world.scores(case, model, torch.zeros(8, 1))
    assert damped["rmse_1d"] == pytest.approx(claims.weighted_rmse(climate, truth, world.rows)[3].item(), rel=1e-5)
    assert (damped["acc_1d"], damped["skill_10d"]) == (0, pytest.approx(0, abs=1e-6))


def test_the_seam_ratio_is_that_of_the_columns(marker):
    case = trial(NAMES[2], "zeros")
    value = claims.circular_padding(case, marker)["seam_ratio"]
    columns = np.array([v for _, v in case.series["rmse_by_column"]]) ** 2
    edge, rest = np.concatenate([columns[:4], columns[-4:]]), columns[4:-4]
    assert value == pytest.approx((edge.mean() / rest.mean()) ** 0.5, rel=1e-5)


def test_a_users_fields_are_taken_with_their_seasons_and_channels():
    data = weather()
    case = trial(NAMES[0], "lka", updates=1)
    world = claims._World(case, data)
    assert (world.time_dim, world.per_day, world.judged) == (12, 4, slice(None))
    assert len(world.held_out(data.test)) == 30 - 2 - 8 + 1
    values = claims.large_kernel_beats_small(case, data)
    assert np.isfinite(list(values.values())).all()


def test_era_interim_gives_the_flow_towards_which_the_world_relaxes():
    from etude.data.catalogue import locate

    try:
        locate("era_interim")
    except FileNotFoundError:
        pytest.skip("era_interim is not on this machine")
    pytest.importorskip("xarray")
    sphere = claims._era_sphere()
    u, _ = sphere.wind(sphere.mean)
    zonal = u.mean(-1)
    north = sphere.transform.latitude > 0
    # January: westerlies of both hemispheres' middle latitudes, the easterlies of the tropics weak.
    assert 10 < float(zonal[north].max()) < 35
    assert 10 < float(zonal[~north].max()) < 35
    assert -12 < float(zonal[np.abs(sphere.transform.latitude) < 15].mean()) < 5


def test_a_missing_archive_says_what_to_place_where(monkeypatch, tmp_path):
    pytest.importorskip("xarray")
    monkeypatch.setenv("ETUDE_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"place a WeatherBench2 store .* at .*weatherbench2\.zarr"):
        claims.weatherbench()
