"""Noise, early exit, pooling and refusals of DiffusionFeatures."""

import math

import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn

from etude.diffusion.diffusion_features import DiffusionFeatures, HookedBlocks, UNet, to_signed


def network(seed=0, **changes):
    torch.manual_seed(seed)
    unet = UNet(1, 1, **{"base_channels": 8, "num_res_blocks": 1, "head_channels": 8, "norm_groups": 4} | changes)
    for parameter in unet.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.3)
    return unet


def pictures(n=4, side=8, seed=1):
    return 2 * torch.rand(n, 1, side, side, generator=torch.Generator().manual_seed(seed)) - 1


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_noised_image_follows_the_schedule():
    features = DiffusionFeatures(network(), DDPMScheduler(), blocks=[1], timesteps=[0], generator=generator())
    x = pictures()
    noise = torch.randn(x.shape, generator=generator())
    torch.testing.assert_close((features.noised(x, 0) - math.sqrt(1 - 1e-4) * x) / 0.01, noise, atol=1e-4, rtol=1e-4)
    features.generator = generator()
    at_90 = features.noised(x, 90)
    torch.testing.assert_close(at_90, 0.95565 * x + math.sqrt(1 - 0.95565**2) * noise, atol=2e-4, rtol=0)
    alphas = DDPMScheduler().alphas_cumprod
    assert float(alphas[90].sqrt()) == pytest.approx(0.95565, abs=5e-6)
    assert float(alphas[999]) == pytest.approx(4.0358e-5, rel=1e-4)


def test_every_image_and_every_timestep_has_noise_of_its_own():
    features = DiffusionFeatures(network(), DDPMScheduler(), blocks=[1], timesteps=[50], generator=generator())
    noised = features.noised(torch.zeros(2, 1, 8, 8), 50)
    assert not torch.equal(noised[0], noised[1])
    assert not torch.equal(features.noised(torch.zeros(2, 1, 8, 8), 50), noised)


def test_equal_generators_give_equal_features_and_others_do_not():
    def found(seed):
        return DiffusionFeatures(
            network(), DDPMScheduler(), blocks=[5], timesteps=[90], generator=generator(seed)
        )(pictures())[90, 5]  # fmt: skip

    assert torch.equal(found(3), found(3))
    assert not torch.equal(found(3), found(4))


def test_features_are_the_blocks_outputs_on_the_noised_image_one_forward_a_timestep():
    unet = network().eval()
    features = DiffusionFeatures(unet, DDPMScheduler(), blocks=[9, 4], timesteps=[20, 300], generator=generator(5))
    calls = []
    unet.input_blocks[0].register_forward_hook(lambda *_: calls.append(1))
    unet.output_blocks[-1].register_forward_hook(lambda *_: pytest.fail("the forward went on after block 9"))
    found = features(pictures())
    assert list(found) == features.places == [(20, 9), (20, 4), (300, 9), (300, 4)]
    assert len(calls) == 2
    again = DiffusionFeatures(unet, DDPMScheduler(), blocks=[9], timesteps=[20], generator=generator(5))
    noisy = again.noised(pictures(), 20)
    with torch.no_grad():
        expected = unet.features(noisy, torch.full((4,), 20), [4, 9])
    assert torch.equal(found[20, 9], expected[9])
    assert torch.equal(found[20, 4], expected[4])
    assert tuple(found[20, 9].shape[1:]) == unet.block_shapes(8)[8]


def test_the_model_is_read_in_evaluation_mode_without_gradients_and_left_as_it_was():
    unet = network(dropout=0.9).train()
    features = DiffusionFeatures(unet, DDPMScheduler(), blocks=[8], timesteps=[10], generator=generator())
    features.train()
    found = features(pictures())[10, 8]
    features.generator = generator()
    assert torch.equal(features(pictures())[10, 8], found)  # dropout would differ
    assert not found.requires_grad
    assert unet.training
    assert all(parameter.requires_grad for parameter in unet.parameters())


def test_pool_averages_cells_inside_the_extractor():
    whole = DiffusionFeatures(network(), DDPMScheduler(), blocks=[2, 6], timesteps=[0], generator=generator())
    pooled = DiffusionFeatures(network(), DDPMScheduler(), blocks=[2, 6], timesteps=[0], pool=2, generator=generator())
    a, b = whole(pictures())[0, 2], pooled(pictures())[0, 2]
    assert b.shape == (4, 8, 2, 2)
    torch.testing.assert_close(b, a.unflatten(2, (2, 4)).unflatten(4, (2, 4)).mean(dim=(3, 5)))
    with pytest.raises(ValueError, match=r"pool = 4 exceeds the 2 x 2 map of block 6"):
        whole.over(blocks=[6], pool=4)(pictures())


def test_extract_averages_draws_and_does_not_depend_on_the_batch():
    features = DiffusionFeatures(network(), DDPMScheduler(), blocks=[5], timesteps=[90], generator=generator(2))
    mean = features.extract(pictures(), noise_samples=3)[90, 5]
    features.generator = generator(2)
    draws = [features(pictures())[90, 5] for _ in range(3)]
    torch.testing.assert_close(mean, sum(draws) / 3)
    assert features.extract(pictures(5), batch_size=2)[90, 5].shape[0] == 5


def test_a_torso_in_half_precision_gives_single_precision_features():
    unet = network()
    single = DiffusionFeatures(unet, DDPMScheduler(), blocks=[5], timesteps=[90], generator=generator())(pictures())
    half = DiffusionFeatures(
        network().bfloat16(), DDPMScheduler(), blocks=[5], timesteps=[90], generator=generator(), dtype=torch.bfloat16
    )(pictures())
    assert half[90, 5].dtype == torch.float32
    torch.testing.assert_close(half[90, 5], single[90, 5], atol=0.1, rtol=0.1)


def test_bytes_and_unit_floats_become_signed_images():
    bytes_ = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 1, 1, 3)
    torch.testing.assert_close(to_signed(bytes_).flatten(), torch.tensor([-1.0, 1.0, -0.6]))
    torch.testing.assert_close(to_signed(bytes_.float() / 255), to_signed(bytes_))
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got \[-1, 1\]"):
        to_signed(torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2))
    with pytest.raises(TypeError, match=r"torch\.int64"):
        to_signed(torch.zeros(1, 1, 2, 2, dtype=torch.int64))


def test_images_that_were_not_scaled_are_refused_with_their_range():
    features = DiffusionFeatures(network(), DDPMScheduler(), blocks=[5], timesteps=[90])
    with pytest.raises(ValueError, match=r"torch.uint8 in \[0, 255\]"):
        features(torch.tensor([0, 255], dtype=torch.uint8).repeat(32).view(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"\[-1, 1\], got \[0, 255\]"):
        features(torch.tensor([0.0, 255.0]).repeat(32).view(1, 1, 8, 8))
    with pytest.warns(UserWarning, match=r"no pixel is below 0"):
        features(pictures() / 2 + 0.5)
    latents = DiffusionFeatures(network(), DDPMScheduler(), blocks=[5], timesteps=[90], check_range=False)
    assert latents(5 * pictures())[90, 5].shape == (4, 16, 2, 2)
    with pytest.raises(ValueError, match="the next valid size is 12 x 12"):
        features(pictures(side=10))


@pytest.mark.parametrize(
    ("blocks", "timesteps", "error", "message"),
    [
        ([0], [5], IndexError, r"block must lie in 1..13, got 0"),
        ([14], [5], IndexError, r"block must lie in 1..13, got 14"),
        ([1], [1000], IndexError, r"t must lie in 0..999, got 1000"),
        ([1], [-1], IndexError, r"t must lie in 0..999, got -1"),
        ([1], [0.5], TypeError, r"t must be an integer in 0..999, got 0.5"),
        ([True], [5], TypeError, r"block must be an integer"),
        ([], [5], ValueError, "at least one block"),
        ([1], [], ValueError, "at least one t"),
    ],
)
def test_blocks_and_timesteps_out_of_range_are_refused(blocks, timesteps, error, message):
    with pytest.raises(error, match=message):
        DiffusionFeatures(network(), DDPMScheduler(), blocks=blocks, timesteps=timesteps)


def test_other_numbers_and_models_are_refused():
    with pytest.raises(ValueError, match="pool must be positive, got 0"):
        DiffusionFeatures(network(), DDPMScheduler(), blocks=[1], timesteps=[1], pool=0)
    with pytest.raises(TypeError, match=r"Linear has no numbered blocks.*HookedBlocks"):
        DiffusionFeatures(nn.Linear(2, 2), DDPMScheduler(), blocks=[1], timesteps=[1])
    features = DiffusionFeatures(network(), DDPMScheduler(), blocks=[1], timesteps=[1])
    with pytest.raises(ValueError, match="must be positive, got 0 and 256"):
        features.extract(pictures(), noise_samples=0)


def test_any_module_with_named_blocks_can_be_read():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([nn.Conv2d(1, 2, 1), nn.Conv2d(2, 3, 1)])

        def forward(self, x, t):
            return self.blocks[1](self.blocks[0](x))

    model = HookedBlocks(Plain(), ["blocks.0", "blocks.1"])
    features = DiffusionFeatures(model, DDPMScheduler(), blocks=[2], timesteps=[1], generator=generator())
    assert features(pictures())[1, 2].shape == (4, 3, 8, 8)
