"""Loss weights, the loss and its variational bound, sampling on the schedule of training, guidance."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from torch import nn

from etude.nn.diffusion import (
    DiffusersModel,
    UncertaintyWeighting,
    check_timesteps,
    constant,
    diffusion_loss,
    diffusion_losses,
    min_snr,
    sample,
    signal_to_noise,
    timestep_embedding,
)

SCHEDULER = DDPMScheduler()


class Spy(nn.Module):
    """Answers with a multiple of its input (and, if `learn_sigma`, a constant v); remembers how it was called."""

    def __init__(self, factor=0.5, v=None, num_classes=10):
        super().__init__()
        self.factor, self.v, self.num_classes, self.calls = factor, v, num_classes, []

    def forward(self, x, t, y=None):
        self.calls.append((t.clone(), y, self.training))
        out = x * self.factor
        if y is not None:
            out = out * (1 + y.view(-1, 1, 1, 1))
        return out if self.v is None else torch.cat([out, torch.full_like(out, self.v)], dim=1)


def batch(n=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x0, noise = (torch.randn(n, 2, 4, 4, generator=generator) for _ in range(2))
    return x0, torch.randint(1000, (n,), generator=generator), noise


def test_the_embedding_is_cosines_then_sines_of_falling_frequencies():
    found = timestep_embedding(torch.tensor([0, 7]), 5)
    expected = [[math.cos(t * f) for f in (1, 0.01)] + [math.sin(t * f) for f in (1, 0.01)] + [0.0] for t in (0, 7)]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="got 1"):
        timestep_embedding(torch.tensor([0]), 1)


def test_noisy_data_keep_unit_variance():
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(100_000, 1, generator=generator) for _ in range(2))
    for t in (0, 300, 999):
        noisy = SCHEDULER.add_noise(x0, noise, torch.full((len(x0),), t))
        assert noisy.var().item() == pytest.approx(1, abs=0.02)


def test_min_snr_weights_are_at_most_one_and_one_where_the_noise_prevails():
    t = torch.arange(1000)
    weights, snr = min_snr(5)(SCHEDULER, t), signal_to_noise(SCHEDULER, t)
    assert float(weights.max()) == 1
    assert torch.equal(weights == 1, snr <= 5)
    torch.testing.assert_close(weights[snr > 5], (5 / snr[snr > 5]).float())
    by_x0, by_v = (min_snr(5)(DDPMScheduler(prediction_type=kind), t).double() for kind in ("sample", "v_prediction"))
    torch.testing.assert_close(by_x0, snr.clamp(max=5), rtol=1e-6, atol=0)
    torch.testing.assert_close(by_v, snr.clamp(max=5) / (snr + 1), rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="got 0"):
        min_snr(0)


def test_uncertainty_weights_are_stationary_where_s_is_the_log_of_the_loss():
    x0, _, noise = batch(16)
    weighting = UncertaintyWeighting(8)
    t = weighting.timesteps(16, 1000, torch.Generator().manual_seed(0))
    plain = diffusion_losses(Spy(), SCHEDULER, x0, t, noise)
    clusters = weighting.clusters(SCHEDULER, t)
    means = torch.stack([plain[clusters == k].mean() for k in range(8)])
    with torch.no_grad():
        weighting.s.copy_(means.log())
    loss = diffusion_loss(Spy(), SCHEDULER, x0, t, noise, weight=weighting)
    loss.backward()
    assert float(weighting.s.grad.abs().max()) < 1e-7
    assert loss.item() == pytest.approx((0.5 * (1 + means.log())).mean().item(), rel=1e-5)


@pytest.mark.parametrize(("num_timesteps", "count"), [(1000, 8), (10, 3), (8, 8)])
def test_timesteps_of_clusters_are_equally_many_and_reach_every_timestep(num_timesteps, count):
    weighting, scheduler = UncertaintyWeighting(count), DDPMScheduler(num_train_timesteps=num_timesteps)
    drawn = weighting.timesteps(count * 2_000, num_timesteps, torch.Generator().manual_seed(0))
    assert torch.equal(torch.bincount(weighting.clusters(scheduler, drawn)), torch.full((count,), 2_000))
    assert len(drawn.unique()) == num_timesteps
    with pytest.raises(ValueError, match="multiple"):
        weighting.timesteps(count + 1, num_timesteps)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_the_loss_is_the_weighted_mean_square_to_the_target(kind):
    scheduler = DDPMScheduler(prediction_type=kind)
    x0, t, noise = batch()
    alpha = scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise
    targets = {"epsilon": noise, "sample": x0, "v_prediction": alpha.sqrt() * noise - (1 - alpha).sqrt() * x0}
    each = (0.5 * noisy - targets[kind]).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(diffusion_losses(Spy(), scheduler, x0, t, noise), each)
    weighted = diffusion_loss(Spy(), scheduler, x0, t, noise, weight=min_snr(2))
    torch.testing.assert_close(weighted, (min_snr(2)(scheduler, t) * each).mean())
    torch.testing.assert_close(diffusion_loss(Spy(), scheduler, x0, t, noise, weight=constant), each.mean())


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_the_variational_bound_is_the_divergence_of_the_steps(kind):
    scheduler = DDPMScheduler(prediction_type=kind)
    x0, _, noise = batch(3)
    t, v = torch.tensor([1, 400, 999]), 0.3
    noisy = scheduler.add_noise(x0, noise, t)
    found = diffusion_losses(Spy(v=v), scheduler, x0, t, noise, learn_sigma=True)
    plain = diffusion_losses(Spy(), scheduler, x0, t, noise)
    alpha = scheduler.alphas_cumprod.double()
    for row, time in enumerate(t.tolist()):
        now, before = alpha[time], alpha[time - 1]
        beta = 1 - now / before
        low = beta * (1 - before) / (1 - now)
        variance = torch.exp((1 - v) / 2 * low.log() + (1 + v) / 2 * beta.log())
        answer = 0.5 * noisy[row].double()
        predicted = {
            "epsilon": (noisy[row] - (1 - now).sqrt() * answer) / now.sqrt(),
            "sample": answer,
            "v_prediction": now.sqrt() * noisy[row] - (1 - now).sqrt() * answer,
        }[kind]
        difference = before.sqrt() * beta / (1 - now) * (x0[row] - predicted)
        true, learned = (
            torch.distributions.Normal(mean, spread.sqrt())
            for mean, spread in ((difference, low), (torch.zeros_like(difference), variance))
        )
        expected = torch.distributions.kl_divergence(true, learned).mean() / math.log(2)
        assert (found[row] - plain[row]).item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)


def test_at_the_first_timestep_the_bound_is_the_code_length_of_the_bins():
    # Every bin on [-1, 1]: their probabilities sum to 1, and the bound is finite.
    levels = torch.linspace(-1, 1, 256)
    x0 = levels.view(256, 1, 1, 1)
    t, noise = torch.zeros(256, dtype=torch.int64), torch.zeros(256, 1, 1, 1)

    class Constant(nn.Module):
        def forward(self, x, t):
            return torch.zeros(len(x), 2, 1, 1)  # x_0 = 0 with the variance between its bounds

    scheduler = DDPMScheduler(prediction_type="sample")
    plain = diffusion_losses(lambda x, t: torch.zeros_like(x), scheduler, x0, t, noise)
    bits = diffusion_losses(Constant(), scheduler, x0, t, noise, learn_sigma=True) - plain
    # At t = 0 the mean is x_0 alone: all images share one distribution over the bins.
    assert (2.0 ** -bits.double()).sum().item() == pytest.approx(1, abs=1e-4)


def test_the_bound_does_not_reach_the_mean():
    x0, t, noise = batch()
    model = nn.Conv2d(2, 4, 1)
    grads = []
    for learned in (False, True):
        model.zero_grad()
        call = (lambda x, t: model(x)) if learned else (lambda x, t: model(x)[:, :2])
        diffusion_loss(call, SCHEDULER, x0, t, noise, learn_sigma=learned).backward()
        grads.append(model.weight.grad.clone())
    torch.testing.assert_close(grads[0][:2], grads[1][:2])
    assert float(grads[1][2:].abs().min()) > 0


@pytest.mark.parametrize("scheduler", [DDPMScheduler(), DDIMScheduler()], ids=["ddpm", "ddim"])
def test_a_coarser_sampler_calls_the_model_with_timesteps_of_training(scheduler):
    model = Spy(factor=0.1).train()
    before = scheduler.timesteps.clone()
    sample(model, scheduler, torch.randn(2, 1, 4, 4), steps=50, generator=torch.Generator().manual_seed(0))
    times = [int(t[0]) for t, _, _ in model.calls]
    scheduler.set_timesteps(1000)
    assert len(times) == 50
    assert set(times) <= set(range(1000))
    assert times == list(range(980, -1, -20))
    assert all(not training for _, _, training in model.calls)
    assert model.training
    assert len(before) == len(scheduler.timesteps)  # the scheduler was not set to 50 steps


def test_sampling_equals_the_schedulers_own_loop_and_depends_on_the_generator_alone():
    scheduler, noise = DDPMScheduler(), torch.randn(2, 1, 4, 4)
    found = [
        sample(Spy(0.1), scheduler, noise, steps=5, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    ]
    loop, x, generator = DDPMScheduler(), noise, torch.Generator().manual_seed(1)
    loop.set_timesteps(5)
    for t in loop.timesteps:
        x = loop.step(0.1 * x, t, x, generator=generator).prev_sample
    assert torch.equal(found[0], x)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_guidance_moves_away_from_the_unlabelled_prediction():
    noise, y = torch.randn(3, 1, 4, 4), torch.tensor([1, 2, 0])
    scheduler = DDIMScheduler(clip_sample=False)

    class Guided(Spy):
        def forward(self, x, t, y=None):
            return (1 - 1.5) * super().forward(x, t, torch.full_like(y, 10)) + 1.5 * super().forward(x, t, y)

    by_hand = sample(Guided(0.01), scheduler, noise, y, steps=3)
    torch.testing.assert_close(sample(Spy(0.01), scheduler, noise, y, steps=3, guidance=1.5), by_hand)
    model = Spy(0.01)
    sample(model, scheduler, noise, y, steps=3, guidance=1.5, null_label=7)
    assert model.calls[0][1].tolist() == [1, 2, 0, 7, 7, 7]
    plain = Spy(0.01)
    sample(plain, scheduler, noise, y, steps=3)
    assert all(len(t) == 3 for t, _, _ in plain.calls)


def test_a_learned_variance_reaches_only_the_scheduler_that_takes_one():
    noise = torch.randn(2, 1, 4, 4)
    learned = DDPMScheduler(variance_type="learned_range", clip_sample=False)

    def at(v, scheduler):
        return sample(Spy(0.1, v=v), scheduler, noise, steps=5, generator=torch.Generator().manual_seed(0))

    assert not torch.equal(at(-1.0, learned), at(1.0, learned))
    assert torch.equal(at(-1.0, DDIMScheduler()), at(1.0, DDIMScheduler()))
    # The lower bound of the variance is the posterior's.
    torch.testing.assert_close(at(-1.0, learned), at(0.0, DDPMScheduler(clip_sample=False)))
    labels = torch.tensor([1, 2])
    guided = sample(
        Spy(0.1, v=0.0), learned, noise, labels, steps=5, guidance=2.0, generator=torch.Generator().manual_seed(0)
    )
    assert guided.shape == noise.shape


def test_models_of_diffusers_are_called_alike():
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"), num_class_embeds=11,
        attention_head_dim=4,
    ).eval()  # fmt: skip
    model = DiffusersModel(unet)
    x, t, y = torch.randn(2, 1, 8, 8), torch.tensor([3, 900]), torch.tensor([0, 10])
    assert torch.equal(model(x, t, y), unet(x, t, class_labels=y).sample)
    assert model.num_classes == 11
    with pytest.raises(TypeError, match="Linear"):
        DiffusersModel(nn.Linear(1, 1))


def test_bad_input_is_refused():
    x0, t, noise = batch()
    with pytest.raises(TypeError, match=r"0\.\.999, got float32"):
        check_timesteps(t.float(), 1000)
    for wrong in (-1, 1000):
        with pytest.raises(IndexError, match=rf"0\.\.999, got .*{wrong}"):
            diffusion_loss(Spy(), SCHEDULER, x0, t.clone().fill_(wrong), noise)
    with pytest.raises(ValueError, match="one shape"):
        diffusion_losses(Spy(), SCHEDULER, x0, t[:3], noise)
    with pytest.raises(ValueError, match="4 channels"):
        diffusion_loss(Spy(), SCHEDULER, x0, t, noise, learn_sigma=True)
    for steps in (0, 1001):
        with pytest.raises(ValueError, match=rf"1\.\.1000, .* got {steps}"):
            sample(Spy(), SCHEDULER, noise, steps=steps)
    with pytest.raises(ValueError, match=r"guidance 2\.0 needs labels"):
        sample(Spy(), SCHEDULER, noise, steps=2, guidance=2.0)
    with pytest.raises(ValueError, match="null_label=None"):
        sample(lambda x, t, y: x, SCHEDULER, noise, t % 2, steps=2, guidance=2.0)
    with pytest.raises(ValueError, match="got 0"):
        UncertaintyWeighting(0)
