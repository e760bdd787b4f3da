"""What the claims of diffusion features compare, and on what."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from etude.claims.diffusion import diffusion_features as claims
from etude.data import images
from etude.data.kinds import Examples, ImageData
from etude.diffusion.diffusion_features import BiGAN, UNet, adm_256
from etude.lab import Trial


def claim(name="features_classify"):
    return claims.PAPER.claims[name]


def trial(arm, seed=500, scale="smoke", name="features_classify"):
    return Trial(f"diffusion_features/{name}", arm, seed, scale, claim(name).setups[scale])


def drawn(n=30, channels=1, side=20, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    parts = [
        Examples(torch.rand(n, channels, side, side, generator=generator), torch.arange(n) % classes) for _ in range(3)
    ]
    return ImageData(*parts, classes=tuple("abc"[:classes]), name="drawn")


def network(setup, channels=1):
    with torch.device("meta"):
        return UNet(channels, channels, **setup.unet)


def flops(call):
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def test_the_small_networks_are_the_sheets():
    unet = network(claim().setups["small"])
    assert sum(parameter.numel() for parameter in unet.parameters()) == 321_161
    assert unet.num_blocks == 13
    assert len(unet.input_blocks) == 6
    attention = [module for module in unet.modules() if hasattr(module, "num_heads")]
    assert {module.num_heads for module in attention} == {4}
    assert unet.block_shapes(16)[5] == (36, 4, 4)
    assert network(claim("where_features_live").setups["small"]).num_blocks == 13


@pytest.mark.parametrize(("scale", "channels"), [("small", 1), ("medium", 1), ("full", 3)])
def test_the_bigan_is_trained_with_at_least_the_unets_compute_and_not_much_more(scale, channels):
    setup = claim().setups[scale]
    unet = network(setup, channels)
    with torch.device("meta"):
        bigan = BiGAN(channels, setup.size, **setup.bigan)

    def denoise():
        x = torch.empty(setup.batch, channels, setup.size, setup.size)
        unet(x, torch.empty(setup.batch)).sum().backward()

    def play():
        x = torch.empty(setup.bigan_batch, channels, setup.size, setup.size)
        z = torch.empty(setup.bigan_batch, setup.bigan["code"])
        bigan.discriminator_loss(x, z).backward()
        bigan.encoder_generator_loss(x, z).backward()

    ratio = setup.bigan_steps * flops(play) / (setup.steps * flops(denoise))
    assert 1 <= ratio < 1.1
    assert max(setup.blocks) <= unet.num_blocks


def test_arms_start_from_the_same_weights():
    first, second = (claims._unet(trial(arm), 1) for arm in ("diffusion", "random_unet"))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
    untrained, _ = claims._encoder(trial("bigan_untrained"), torch.zeros(4, 1, 16, 16))
    trained, cost = claims._encoder(trial("bigan"), torch.zeros(4, 1, 16, 16))
    assert cost > 0
    distance = max(float((a - b).detach().abs().max()) for a, b in zip(untrained.parameters(), trained.parameters()))
    assert 0 < distance < 0.01  # three steps of 2e-4


def test_a_seed_draws_the_labelled_images_alone_and_all_arms_see_the_same():
    data = images.mnist5k()

    def parts(arm, seed):
        run = trial(arm, seed, "small")
        return claims._parts(run, data)

    (x, y), (val, _), (test, _) = parts("diffusion", 500)
    assert np.bincount(y).tolist() == [10] * 10
    assert (len(val), len(test)) == (500, 1000)
    assert tuple(x.shape[1:]) == (1, 16, 16)
    assert float(x.min()) == -1
    again = parts("pixels", 500)
    assert torch.equal(again[0][0], x)
    other = parts("diffusion", 501)
    assert not torch.equal(other[0][0], x)
    assert torch.equal(other[1][0], val)
    assert torch.equal(other[2][0], test)


@pytest.mark.parametrize("arm", ["diffusion", "bigan_untrained"])
def test_test_labels_choose_nothing(arm):
    data = drawn()
    swapped = ImageData(data.train, data.val, Examples(data.test.inputs, (data.test.targets + 1) % 3), data.classes, "")
    first, second = (claims.features_classify(trial(arm), which) for which in (data, swapped))
    chosen = {"val_accuracy", "timestep", "block", "layer"}
    assert {name: first[name] for name in first if name in chosen} == {
        name: second[name] for name in second if name in chosen
    }


@pytest.mark.parametrize("arm", ["diffusion", "pixels"])
def test_a_users_images_of_any_size_and_colour_are_taken(arm):
    found = claims.features_classify(trial(arm), drawn(n=12, channels=3, side=21, classes=2))
    assert 0 <= found["accuracy"] <= 1


def test_the_digits_are_split_without_overlap():
    data = claims._digits()
    parts = [data.train, data.val, data.test]
    assert [len(part) for part in parts] == [997, 300, 500]
    assert sum(len(part) for part in parts) == 1797
    pooled = torch.cat([part.inputs for part in parts]).sum()
    whole = images.digits()
    torch.testing.assert_close(pooled, sum(part.inputs.sum() for part in (whole.train, whole.val, whole.test)))


def test_the_full_setups_read_the_published_network(tmp_path, monkeypatch):
    with torch.device("meta"):
        unet = adm_256()
    heads, shape = claim("heads").setups["full"], claim("where_features_live").setups["full"]
    assert unet.block_shapes(256)[heads.block - 1] == (1024, 16, 16)
    assert max(shape.blocks) == unet.num_blocks
    assert {1, 24} <= set(shape.blocks)
    monkeypatch.setenv("ETUDE_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"256x256_diffusion_uncond\.pt"):
        claims._imagenet()


def test_the_map_and_its_ends_are_returned():
    run = trial("diffusion", name="where_features_live")
    found = claims.where_features_live(run, claims._digits())
    assert found["over_much_noise"] == pytest.approx(found["accuracy"] - found["much_noise"])
    assert found["over_ends"] == pytest.approx(found["accuracy"] - max(found["first_block"], found["last_block"]))
    assert "validation_accuracy" in run.figures
    assert {step for step, _ in run.series["val_accuracy_by_timestep"]} == {20, 700}
