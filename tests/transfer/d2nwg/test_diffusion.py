import pytest
import torch

from etude.transfer.d2nwg import MLPDenoiser, UNetDenoiser, ddim, ddpm, noise_loss, sample


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("timesteps", "last"), [(1024, 5.61e-4), (1000, 6.69e-4)])
@pytest.mark.parametrize("make", [ddpm, ddim])
def test_the_schedule_is_that_of_latent_diffusion(make, timesteps, last):
    abar = make(timesteps).alphas_cumprod
    betas = torch.linspace(0.0015**0.5, 0.0155**0.5, timesteps, dtype=torch.float64) ** 2
    torch.testing.assert_close(abar.double(), (1 - betas).cumprod(0), rtol=1e-3, atol=1e-6)
    assert bool((abar.diff() < 0).all())
    assert float(abar[-1]) == pytest.approx(last, rel=2e-3)


def test_noised_latents_have_the_variance_of_the_schedule():
    scheduler = ddpm()
    noise = torch.randn(200_000, 1, generator=generator())
    for t in (0, 300, 1023):
        z = scheduler.add_noise(torch.full_like(noise, 2.0), noise, torch.full((len(noise),), t))
        abar = float(scheduler.alphas_cumprod[t])
        assert float(z.mean()) == pytest.approx(2 * abar**0.5, abs=0.01)
        assert float(z.var()) == pytest.approx(1 - abar, abs=0.01)


def test_the_loss_is_the_mean_squared_error_of_the_noise():
    scheduler, z0, cond = ddpm(), torch.randn(5, 3, generator=generator(1)), torch.zeros(5, 2)
    seen = {}

    def zero(z, t, c):
        seen.update(z=z, t=t)
        return torch.zeros_like(z)

    loss = noise_loss(zero, scheduler, z0, cond, generator(7))
    again = generator(7)
    t = torch.randint(1024, (5,), generator=again)
    noise = torch.randn(5, 3, generator=again)
    assert torch.equal(seen["t"], t)
    abar = scheduler.alphas_cumprod[t][:, None]
    torch.testing.assert_close(seen["z"], abar.sqrt() * z0 + (1 - abar).sqrt() * noise)
    torch.testing.assert_close(loss, noise.square().mean())


def exact_noise(scheduler, mean, variance=0.0):
    """The expected noise where the data are N(mean, variance)."""

    def denoiser(z, t, cond):
        abar = scheduler.alphas_cumprod[t].view(-1, *[1] * (z.ndim - 1))
        return (z - abar.sqrt() * mean) * (1 - abar).sqrt() / (abar * variance + 1 - abar)

    return denoiser


@pytest.mark.parametrize("steps", [1, 2, 64])
def test_exact_noise_of_a_point_gives_the_point(steps):
    point = torch.tensor([1.5, -0.5, 4.0])
    scheduler = ddim()
    z = sample(exact_noise(scheduler, point), scheduler, (3,), torch.zeros(6, 1), steps=steps, generator=generator())
    torch.testing.assert_close(z, point.expand(6, 3), rtol=1e-3, atol=1e-3)


def test_ddim_without_eta_is_deterministic_given_its_start():
    scheduler = ddim()
    denoiser = exact_noise(scheduler, torch.tensor([1.0]), 0.3)
    one, two = (sample(denoiser, scheduler, (1,), torch.zeros(50, 1), steps=32, generator=generator()) for _ in "ab")
    assert torch.equal(one, two)
    other = sample(denoiser, scheduler, (1,), torch.zeros(50, 1), steps=32, eta=1.0, generator=generator())
    assert not torch.equal(one, other)


def test_ddim_with_all_steps_and_eta_one_has_the_posterior_variance_of_ddpm():
    ancestral, implicit = ddpm(), ddim()
    ancestral.set_timesteps(1024)
    implicit.set_timesteps(1024)
    for t in (1, 5, 100, 700, 1023):
        theirs = float(ancestral._get_variance(t))
        assert float(implicit._get_variance(t, t - 1)) == pytest.approx(theirs, rel=1e-4)
        abar, before = (float(ancestral.alphas_cumprod[index]) for index in (t, t - 1))
        assert theirs == pytest.approx((1 - before) / (1 - abar) * (1 - abar / before), rel=1e-3)


@pytest.mark.parametrize(("make", "steps", "eta"), [(ddim, 512, 0.0), (ddim, 1024, 1.0), (ddpm, 1024, 0.0)])
def test_a_mixture_of_two_gaussians_is_recovered(make, steps, eta):
    scheduler, spread = make(), 0.2
    centres = torch.tensor([-1.0, 1.0])

    def denoiser(z, t, cond):
        abar = scheduler.alphas_cumprod[t][:, None]
        variance = abar * spread**2 + 1 - abar
        weights = (-((z - abar.sqrt() * centres) ** 2) / (2 * variance)).softmax(dim=1)
        noise = (z - abar.sqrt() * centres) * (1 - abar).sqrt() / variance
        return (weights * noise).sum(dim=1, keepdim=True)

    z = sample(denoiser, scheduler, (1,), torch.zeros(4000, 1), steps=steps, eta=eta, generator=generator())[:, 0]
    assert abs(float((z > 0).float().mean()) - 0.5) < 0.05
    for side in (z[z > 0], -z[z < 0]):
        assert float(side.mean()) == pytest.approx(1.0, rel=0.1)
        assert float(side.std()) == pytest.approx(spread, rel=0.1)


def test_a_zero_budget_and_uneven_strides_are_refused():
    scheduler, cond = ddim(), torch.zeros(2, 1)
    denoiser = exact_noise(scheduler, torch.zeros(1))
    for steps in (0, -1, 50):
        with pytest.raises(ValueError, match=f"divide the 1024 steps of training, got {steps}"):
            sample(denoiser, scheduler, (1,), cond, steps=steps, generator=generator())
    with pytest.raises(ValueError, match="budget of samples is 0"):
        sample(denoiser, scheduler, (1,), cond[:0], generator=generator())
    with pytest.raises(ValueError, match="DDPM takes all 1024"):
        sample(denoiser, ddpm(), (1,), cond, steps=64, generator=generator())


def test_denoisers_take_any_latent_and_use_all_they_are_given():
    torch.manual_seed(0)
    z, t, cond = torch.randn(3, 2, 4), torch.tensor([0, 5, 900]), torch.randn(3, 6)
    model = MLPDenoiser(8, 6, hidden=16)
    assert model(z, t, cond).shape == z.shape
    assert not torch.equal(model(z, t, cond), model(z, t + 1, cond))
    assert not torch.equal(model(z, t, cond), model(z, t, cond + 1))
    with pytest.raises(ValueError, match="even"):
        MLPDenoiser(8, 6, time_dim=5)


@pytest.mark.parametrize(("conditioning", "cond_dim"), [("concat", 64), ("cross", 10)])
def test_u_nets_attend_to_the_condition_in_either_way(conditioning, cond_dim):
    torch.manual_seed(0)
    model = UNetDenoiser((4, 4, 4), cond_dim, conditioning=conditioning, channels=(16, 16, 16, 32), head_dim=8).eval()
    z, t, cond = torch.randn(2, 4, 4, 4), torch.tensor([3, 900]), torch.randn(2, cond_dim)
    with torch.no_grad():
        out = model(z, t, cond)
        assert out.shape == z.shape
        assert not torch.allclose(out, model(z, t, cond + 1))


def test_the_published_u_net():
    with torch.device("meta"):
        net = UNetDenoiser((4, 16, 16), 1024).net
    assert net.conv_in.weight.shape == (256, 2, 3, 3)
    assert net.conv_out.weight.shape == (1, 256, 3, 3)
    assert [hasattr(block, "attentions") for block in net.down_blocks] == [False, False, True, True]
    assert net.down_blocks[2].attentions[0].heads == 2
    with pytest.raises(ValueError, match="square"):
        UNetDenoiser((24,), 24)
    with pytest.raises(ValueError, match="its 1024 numbers, got 64"):
        UNetDenoiser((4, 16, 16), 64)
