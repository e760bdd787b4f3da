"""The networks that the claims of Activator compare."""

import inspect

import pytest
import torch

from etude.claims.vision import activator as claims
from etude.data.images.natural import natural_crops
from etude.lab import Trial
from etude.vision.activator import count_macs, count_parameters

CROPS = natural_crops(n=600)
CLAIM = claims.PAPER.claims["competitive_at_lower_cost"]


def network(name, **options):
    torch.manual_seed(0)
    fitted = claims._Fitted((32, 32), 14, 4)

    class Colour:
        channels, num_classes = 3, 10

    return inspect.unwrap(claims._network)(name, fitted, Colour, CLAIM.setups["small"], **options)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("activator_glu_only", 79_626),
        ("activator", 129_354),
        ("vit", 105_226),
        ("vit_nopos", 104_202),
        ("mixer", 67_002),
    ],
)
def test_parameters_of_the_compared_networks(name, count):
    assert count_parameters(network(name)) == count


def test_only_the_glu_alone_is_cheaper_than_attention():
    macs = {name: count_macs(network(name), (1, 3, 16, 16)) for name in claims._NETWORKS}
    assert macs["activator_glu_only"] < macs["vit"] == macs["vit_nopos"] < macs["activator"]


def test_token_gates_have_as_many_parameters_as_channel_gates():
    setup = CLAIM.setups["small"]
    channel, token = (
        count_parameters(network("activator", **claims._mixing(setup, arm, 16))) for arm in ("channel", "token")
    )
    assert 0.85 < token / channel < 1.15


@pytest.mark.parametrize(
    ("size", "fitted"),
    [((16, 16), (16, 16)), ((32, 32), (16, 16)), ((30, 45), (32, 48)), ((9, 8), (12, 8)), ((64, 48), (24, 16))],
)
def test_images_of_any_size_are_brought_to_whole_patches(size, fitted):
    layer = claims._Fitted(size, 16, 4)
    assert layer.size == fitted
    assert layer(torch.rand(2, 1, *size)).shape == (2, 1, *fitted)


def run(name, arm, data):
    claim = claims.PAPER.claims[name]
    trial = Trial(f"activator/{name}", arm, 500, "smoke", claim.setups["smoke"], {"lr": 1e-3})
    return inspect.unwrap(claim.function)(trial, data)


def test_shuffling_changes_nothing_for_channel_gates_in_the_claim():
    found = run("token_mixing_matters", "channel", CROPS)
    assert found["drop"] == 0
    assert found["logit_change"] < 1e-4
    assert run("token_mixing_matters", "token", CROPS)["logit_change"] > 1e-4


def test_augmentation_is_drawn_from_its_stream_alone():
    x, y = torch.rand(8, 1, 16, 16), torch.arange(8)
    before = torch.get_rng_state()
    first, second = (claims._Augmented(torch.Generator().manual_seed(3))((x, y))[0] for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == x.shape
    assert not torch.equal(first, x)
    assert torch.equal(before, torch.get_rng_state())
