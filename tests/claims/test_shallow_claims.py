"""The networks and counts that the claims of the shallow layout compare."""

import inspect

import pytest
import torch

from etude.claims.vision import shallow as claims
from etude.data import images
from etude.lab import Trial

DATA = images.mnist5k()


def run(name, arm, **changes):
    claim = claims.PAPER.claims[name]
    setup = claim.setups["smoke"].replace(**changes) if changes else claim.setups["smoke"]
    trial = Trial(f"shallow/{name}", arm, 500, "smoke", setup, {"lr": 1e-3} if claim.tune else {})
    function = inspect.unwrap(claim.function)
    return function(trial, DATA) if claim.data else function(trial)


def test_the_compared_network_has_the_published_size_of_the_protocol():
    setup = claims.PAPER.claims["equivalence"].setups["small"]
    found = {arm: run("equivalence", arm, channels=setup.channels)["parameters"] for arm in claims._LAYERS}
    assert found["sequential"] == found["parallel"] == 21_290
    assert found["sequential_2"] == found["parallel_2"] == 21_290 - 6 * 2_320
    assert found["single"] == 21_290 - 7 * 2_320


def test_both_layouts_start_from_the_same_weights_and_batches():
    states = {}
    for arm in ("sequential", "parallel"):
        claim = claims.PAPER.claims["equivalence"]
        trial = Trial("shallow/equivalence", arm, 500, "smoke", claim.setups["smoke"], {"lr": 1e-3})
        layout, layers = claims._LAYERS[arm]
        claims._train(
            trial,
            DATA,
            1e-3,
            lambda net, arm=arm: states.update({arm: {k: v.clone() for k, v in net.state_dict().items()}}),
            layout=layout,
            num_layers=layers,
        )
        states[arm + " order"] = trial.generator("order").get_state()
    assert all(torch.equal(value, states["parallel"][name]) for name, value in states["sequential"].items())
    assert torch.equal(states["sequential order"], states["parallel order"])


def test_users_images_of_any_size_are_brought_near_the_wanted_side():
    assert [claims._shrinking((s, s + 3), 14) for s in (8, 14, 28, 32, 64, 224)] == [1, 1, 2, 2, 4, 16]


def test_a_fused_step_takes_fewer_operators_than_either_other_path():
    found = {arm: run("speed", arm)["operators"] for arm in claims._PATHS}
    assert found["fused"] < found["unfused"]
    assert found["fused"] < found["sequential"]


@pytest.mark.parametrize(
    ("arm", "metric", "low", "high"), [("tanh", "first_order", 1.9, 2.1), ("linear", "second_order", 2.9, 3.1)]
)
def test_the_slopes_of_the_expansion_are_those_of_the_theory(arm, metric, low, high):
    assert low < run("taylor", arm)[metric] < high
