"""The networks that the claims of MOAT compare."""

import pytest
import torch

from etude.claims.vision import moat as claims
from etude.lab import Trial
from etude.vision.moat import MOAT


def claim(name="block_design"):
    return claims.PAPER.claims[name]


def network(variant, scale="small", name="block_design", channels=1, classes=10, **changes):
    return claims._network(variant, channels, classes, claim(name).setups[scale], **changes)


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("variant", "count"), [("attn_mlp", 78_614), ("attn_mbconv", 84_758), ("moat", 79_574)])
def test_the_three_orders_are_of_nearly_equal_size(variant, count):
    with torch.device("meta"):
        assert parameters(network(variant)) == count


def test_the_full_setup_is_moat_0():
    with torch.device("meta"):
        model = network("moat", "full", channels=3, classes=1000)
        assert parameters(model) == 27_846_892
        assert parameters(network("moat", "full", channels=3, classes=1000, rel_pos=False)) == 27_777_544
    rates = [module.rate for module in model.modules() if type(module).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.2 * 13 / 14)


@pytest.mark.parametrize("scale", ["smoke", "small", "medium", "full"])
def test_windows_divide_the_maps_and_are_smaller_everywhere(scale):
    setup = claim("windows_without_shift").setups[scale]
    with torch.device("meta"):
        model = network("moat", scale, "windows_without_shift", window=setup.window)[1]
        maps = model.features(torch.empty(1, 1, setup.image_size, setup.image_size))
    for stage, window in enumerate(setup.window, 1):
        side = maps[f"stage{stage}"].shape[2]
        assert window is None or (side % window == 0 and side > window)


def test_at_small_tables_are_of_the_size_of_the_maps():
    for name in ("block_design", "windows_without_shift", "no_position"):
        setup = claim(name).setups["small"]
        model = network("moat", name=name)[1].eval()
        maps = model.features(torch.rand(1, 1, setup.image_size, setup.image_size))
        sizes = [maps[f"stage{stage}"].shape[2] for stage in (2, 3)]
        assert sizes == setup.rel_pos_size[1:]


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 17, 40), (1, 8, 8)])
def test_a_users_images_of_any_size_are_taken(shape):
    with torch.no_grad():
        assert network("moat", channels=shape[0], classes=4).eval()(torch.rand(2, *shape)).shape == (2, 4)


def test_shared_layers_start_alike_with_and_without_windows():
    states = []
    for arm in ("moat_global", "moat_windows"):
        with Trial("moat/windows_without_shift", arm, 0).stream("init"):
            states.append(
                network("moat", name="windows_without_shift", window=None if "global" in arm else [None, 4, 4])
            )
    first, second = (model.state_dict() for model in states)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_kernels_start_alike_with_and_without_tables_and_at_their_fan_in():
    states = []
    for rel_pos in (True, False):
        model = network("moat", name="no_position", rel_pos=rel_pos)
        with Trial("moat/no_position", "moat", 0).stream("kernels"):
            states.append(model.apply(claims._fan_in).state_dict())
    shared = states[1].keys()
    assert states[0].keys() - shared == {name for name in states[0] if name.endswith("rel_pos")}
    assert all(torch.equal(states[0][name], states[1][name]) for name in shared)
    assert float(states[0]["1.stages.2.0.conv.shrink.weight"].std()) == pytest.approx(192**-0.5, rel=0.05)


def test_mixing_keeps_the_weight_of_the_targets_and_draws_from_its_streams_alone():
    setup = claim().setups["full"]
    x, y = torch.rand(6, 3, 64, 64), torch.arange(6)
    before = torch.get_rng_state()
    found = [claims._Augmented(Trial("moat/block_design", "moat", 3, "full", setup), 6)((x, y)) for _ in range(2)]
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(found[0][0], found[1][0])
    assert not torch.equal(found[0][0], x)
    torch.testing.assert_close(found[0][1].sum(1), torch.ones(6))
    assert float(found[0][1].max()) < 1


def test_the_networks_of_the_claims_are_moats():
    with torch.device("meta"):
        assert isinstance(network("attn_mlp")[1], MOAT)
