"""Training a model to denoise, and the bidirectional GAN."""

import math

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from torch import nn

from etude.diffusion.diffusion_features import BiGAN, Denoising, UNet, fit_autoencoder, fit_bigan, fit_diffusion


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def unet():
    torch.manual_seed(0)
    return UNet(1, 1, 8, (1, 2), 1, (), head_channels=8, norm_groups=4)


def pictures(n=12, side=8):
    return 2 * torch.rand(n, 1, side, side, generator=generator(1)) - 1


def test_the_training_loss_of_a_fresh_network_is_the_noises_square():
    x = pictures()
    loss = Denoising(unet(), DDPMScheduler(), generator=generator(4))(x)
    same = generator(4)
    torch.randint(1000, (12,), generator=same)
    torch.testing.assert_close(loss, torch.randn(x.shape, generator=same).square().mean())


def test_training_repeats_itself_and_leaves_the_average_in_the_model():
    def trained(decay):
        model = unet()
        losses = fit_diffusion(
            model, DDPMScheduler(), pictures(), steps=6, batch_size=4, decay=decay, generator=generator(2),
            order=generator(3),
        )  # fmt: skip
        return model.state_dict(), losses

    state, losses = trained(0.999)
    assert len(losses) == 6
    again, _ = trained(0.999)
    last, _ = trained(0.0)
    assert all(torch.equal(state[name], again[name]) for name in state)
    assert any(not torch.equal(state[name], last[name]) for name in state)


def bigan(**changes):
    torch.manual_seed(0)
    return BiGAN(1, 8, **{"width": 4, "code": 3, "hidden": 8} | changes)


def test_the_bigans_networks_have_the_papers_shapes():
    model = BiGAN(1, 16)
    x, z = torch.randn(2, 1, 16, 16), torch.randn(2, 32)
    assert [tuple(f.shape[1:]) for f in model.encoder.features(x)] == [(32, 8, 8), (64, 4, 4), (64, 2, 2), (32,)]
    assert model.generator(z).shape == (2, 1, 16, 16)
    assert model.generator(z).abs().max() <= 1
    assert model.discriminator(x, z).shape == (2,)
    assert model.discriminator.joint[0].in_features == 64 * 4 + 32
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.discriminator.modules())


def test_the_losses_are_the_non_saturating_ones_and_each_player_has_its_own_gradient():
    model, x, z = bigan(), pictures(), torch.randn(12, 3, generator=generator(5))
    loss = model.discriminator_loss(x, z)
    loss.backward()
    assert all(parameter.grad is None for parameter in [*model.encoder.parameters(), *model.generator.parameters()])
    assert all(parameter.grad is not None for parameter in model.discriminator.parameters())
    with torch.no_grad():
        real, drawn = model.discriminator(x, model.encoder(x)), model.discriminator(model.generator(z), z)
    torch.testing.assert_close(loss.detach(), -(real.sigmoid().log().mean() + (-drawn).sigmoid().log().mean()))
    other = model.encoder_generator_loss(x, z)
    torch.testing.assert_close(other.detach(), F.softplus(real).mean() + F.softplus(-drawn).mean())
    other.backward()
    assert all(parameter.grad is not None for parameter in model.encoder.parameters())


def test_the_r1_penalty_is_the_squared_slope_at_real_pairs():
    model, x, z = bigan(), pictures(), torch.randn(12, 3, generator=generator(5))
    plain, penalised = model.discriminator_loss(x, z), model.discriminator_loss(x, z, r1=0.5)
    step = 1e-3
    codes = model.encoder(x).detach()
    slopes = torch.zeros(12)
    with torch.no_grad():
        for pixel in range(64):
            moved = torch.zeros(64)
            moved[pixel] = step
            moved = moved.view(1, 1, 8, 8)
            difference = model.discriminator(x + moved, codes) - model.discriminator(x - moved, codes)
            slopes += (difference / (2 * step)).square()
    torch.testing.assert_close(penalised - plain, 0.25 * slopes.mean(), rtol=1e-2, atol=1e-5)


def test_spectral_normalisation_bounds_every_layer():
    model = bigan(spectral=True)
    fit_bigan(model, pictures(), steps=30, batch_size=4, order=generator(), codes=generator(1))
    model.eval()
    for module in model.discriminator.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            norm = torch.linalg.matrix_norm(module.weight.detach().flatten(1), ord=2)
            assert float(norm) == pytest.approx(1, abs=0.2)


def test_the_bigan_repeats_itself_and_reports_its_losses():
    losses = []
    states = []
    for _ in range(2):
        model = bigan()
        fit_bigan(
            model, pictures(), steps=3, batch_size=4, order=generator(), codes=generator(1),
            callbacks=[lambda step, total, **values: losses.append((step, total, values))],
        )  # fmt: skip
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert losses[:3] == losses[3:]
    assert [step for step, _, _ in losses[:3]] == [1, 2, 3]
    assert all(math.isfinite(value) for _, _, values in losses for value in values.values())


def test_an_autoencoder_learns_to_rebuild_clean_images_from_noisy_ones():
    pairs = []

    class Kept(nn.Module):
        def forward(self, x):
            pairs.append(x)
            return x

    scale = nn.Conv2d(1, 1, 1, bias=False)
    with torch.no_grad():
        scale.weight.fill_(1.0)
    losses = fit_autoencoder(
        Kept(), scale, pictures(400), steps=1, batch_size=400, corruption=0.5, noise=generator(), order=generator()
    )
    assert losses[0] == pytest.approx(0.25, rel=0.05)  # the mean square of the noise
    fit_autoencoder(Kept(), scale, pictures(4), steps=1, batch_size=4, order=generator())
    torch.testing.assert_close(pairs[1].flatten().sort().values, pictures(4).flatten().sort().values)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: fit_autoencoder(nn.Identity(), nn.Identity(), pictures(), steps=1, corruption=-1.0),
            "not be negative",
        ),
        (lambda: BiGAN(1, 12), "size must be a multiple of 8, got 12"),
        (lambda: BiGAN(0, 8), "must be positive, got 0"),
        (lambda: fit_bigan(bigan(), pictures(), steps=0), "must be positive"),
        (lambda: fit_bigan(bigan(), pictures(), steps=1, r1=-1.0), "r1 not negative"),
        (lambda: fit_bigan(bigan(), pictures(), steps=1, batch_size=1), "batch_size at least 2"),
    ],
)
def test_numbers_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
