"""The networks that the claims of HaloNet compare."""

import inspect

import pytest
import torch

from etude.claims.vision import halonet as claims
from etude.lab import Trial
from etude.vision.halonet import convert_resnet_to_halo


def network():
    return claims._network(1, 10, claims.PAPER.claims["param_efficiency"].setups["small"])


@pytest.mark.parametrize(("halo_size", "count"), [(2, 55_626), (1, 55_114), (0, 54_602)])
def test_attention_halves_the_parameters_of_the_compared_network(halo_size, count):
    with torch.device("meta"):
        plain = network()
        changed = convert_resnet_to_halo(network(), stages=("stages",), block_size=4, halo_size=halo_size)
    assert sum(p.numel() for p in plain.parameters()) == 115_146
    assert sum(p.numel() for p in changed.parameters()) == count


def test_the_full_setup_is_the_shape_of_h1_and_runs():
    setup = claims.PAPER.claims["param_efficiency"].setups["full"]
    with torch.device("meta"):
        model = claims._network(3, 1000, setup)
        convert_resnet_to_halo(model, stages=("stages",), block_size=setup.block_size, halo_size=setup.halo_size)
        counted = sum(p.numel() for p in model.parameters())
        assert model.stem(torch.empty(1, 3, 256, 256)).shape == (1, 64, 64, 64)
    # timm's H1 with the heads of the paper, as the family's own class counts it
    assert counted == 8_084_936


@pytest.mark.parametrize("size", [(28, 28), (32, 32), (40, 20), (20, 50)])
def test_images_of_any_size_are_fitted(size):
    assert claims._Fitted(32)(torch.rand(2, 1, *size)).shape == (2, 1, 32, 32)


def test_augmentation_is_drawn_from_its_stream_alone():
    x, y = torch.rand(8, 1, 16, 16), torch.arange(8)
    before = torch.get_rng_state()
    first, second = (claims._Augmented(4, torch.Generator().manual_seed(3))((x, y))[0] for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, x)
    assert torch.equal(before, torch.get_rng_state())


def test_the_arms_of_attention_start_from_the_weights_of_the_convolutions():
    """Init draws of the shared parts do not depend on the arm."""
    states = []
    for _ in ("conv", "halo"):
        trial = Trial("halonet/param_efficiency", "conv", 0)
        with trial.stream("init"):
            states.append(network().state_dict())
    with Trial("halonet/param_efficiency", "halo", 0).stream("method"):
        model = network()
        model.load_state_dict(states[1])
        convert_resnet_to_halo(model, stages=("stages",), block_size=4, halo_size=2)
    shared = [name for name in states[0] if name in model.state_dict()]
    assert len(shared) > 20
    assert all(torch.equal(states[0][name], model.state_dict()[name]) for name in shared)


def test_work_at_equal_windows_is_equal_whatever_the_blocks():
    claim = claims.PAPER.claims["cost_scaling"]
    found = {
        arm: inspect.unwrap(claim.function)(Trial("c", arm, 0, "smoke", claim.setups["smoke"]))["attention_flops"]
        for arm in ("sasa", "block_9")
    }
    assert found["sasa"] == found["block_9"] > 0
