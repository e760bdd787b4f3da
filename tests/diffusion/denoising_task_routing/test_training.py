"""Training: what is drawn, what is averaged, resuming, learned weights; losses by timestep."""

import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn

from etude.data.kinds import Examples
from etude.diffusion.denoising_task_routing import DiT, Routing, denoising_loss, fit_denoiser
from etude.loop import ExponentialMovingAverage
from etude.nn.diffusion import UncertaintyWeighting

SCHEDULER = DDPMScheduler()
SIZES = {"input_size": 4, "in_channels": 1, "dim": 8, "depth": 1, "num_heads": 2, "num_classes": 3, "sinusoids": 8}


def data(n=40):
    generator = torch.Generator().manual_seed(0)
    return Examples(torch.randn(n, 1, 4, 4, generator=generator), torch.arange(n) % 3)


def model(**options):
    torch.manual_seed(0)
    return DiT(**SIZES, label_dropout=0.0, **options)


def state(network):
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


class Recorder(nn.Module):
    """Zero, with a parameter; remembers its calls."""

    def __init__(self):
        super().__init__()
        self.scale, self.calls = nn.Parameter(torch.zeros(())), []

    def forward(self, x, t, y=None):
        self.calls.append((x, t, y))
        return self.scale * x


def test_arms_draw_the_same_batches_timesteps_and_noise():
    seen = []
    for steps in (3, 3):
        recorder = Recorder()
        generators = {name: torch.Generator().manual_seed(5) for name in ("order", "noise")}
        fit_denoiser(recorder, data(), SCHEDULER, steps=steps, batch_size=8, **generators)
        seen.append(recorder.calls)
    for one, other in zip(*seen, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other))
    assert len(torch.cat([t for _, t, _ in seen[0]]).unique()) > 15


def test_the_average_of_the_weights_warms_up():
    network = model()
    begin = state(network)
    ema = fit_denoiser(network, data(), SCHEDULER, steps=1, batch_size=8, lr=1e-2)
    end = state(network)
    with ema.applied():
        torch.testing.assert_close(state(network), 0.1 * begin + 0.9 * end, rtol=0, atol=1e-6)
    own = ExponentialMovingAverage(network, 0.0)
    assert fit_denoiser(network, data(), SCHEDULER, steps=1, batch_size=8, ema=own) is own


def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path):
    networks = [model(routing=Routing()) for _ in range(2)]
    whole = fit_denoiser(networks[0], data(), SCHEDULER, steps=6, batch_size=8, lr=1e-2)
    fit_denoiser(networks[1], data(), SCHEDULER, steps=3, batch_size=8, lr=1e-2, checkpoint=tmp_path / "run")
    networks[1] = model(routing=Routing())
    resumed = fit_denoiser(networks[1], data(), SCHEDULER, steps=6, batch_size=8, lr=1e-2, checkpoint=tmp_path / "run")
    assert torch.equal(state(networks[0]), state(networks[1]))
    with whole.applied(), resumed.applied():
        assert torch.equal(state(networks[0]), state(networks[1]))


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    fit_denoiser(model(), data(), SCHEDULER, steps=1, batch_size=8, checkpoint=tmp_path / "run")
    with pytest.raises(ValueError, match="checkpoint"):
        fit_denoiser(DiT(**{**SIZES, "dim": 16}), data(), SCHEDULER, steps=2, batch_size=8, checkpoint=tmp_path / "run")


def test_learned_weights_train_along_on_balanced_batches():
    recorder, weighting = Recorder(), UncertaintyWeighting(4)
    fit_denoiser(recorder, data(), SCHEDULER, steps=2, batch_size=8, weight=weighting, weight_lr=0.025)
    for _, t, _ in recorder.calls:
        assert torch.equal(torch.bincount(t * 4 // 1000), torch.full((4,), 2))
    # Adam's steps are of the size of the rate, and of one sign while the losses are about 1 and s about 0.
    assert float(weighting.s.detach().abs().max()) <= 0.05 + 1e-6
    assert float(weighting.s.detach().abs().min()) > 0


def test_labels_and_a_learned_variance_are_optional():
    recorder = Recorder()
    fit_denoiser(recorder, data(), SCHEDULER, steps=1, batch_size=8, labelled=False)
    assert recorder.calls[0][2] is None
    network = model(learn_sigma=True)
    before = state(network)
    fit_denoiser(network, data(), SCHEDULER, steps=2, batch_size=8, learn_sigma=True)
    assert not torch.equal(state(network), before)


def test_half_of_the_images_are_mirrored():
    recorder = Recorder()
    ramp = torch.arange(4.0).expand(1, 4, 4)
    many = Examples(ramp.expand(400, 1, 4, 4).clone() * 1000, torch.zeros(400).long())
    fit_denoiser(recorder, many, SCHEDULER, steps=1, batch_size=400, flip=True)
    x, t, _ = recorder.calls[0]
    slope = (x[:, 0, 0, -1] - x[:, 0, 0, 0])[t < 800]
    assert (slope > 0).double().mean().item() == pytest.approx(0.5, abs=0.1)


def test_losses_by_timestep_are_those_of_their_bins():
    class Answer(nn.Module):
        """Exact but for t above 500, where it is off by 2."""

        def __init__(self):
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(()))

        def forward(self, x, t, y):
            # x_0 = 0: the noise is x / sqrt(1 - abar).
            exact = x / (1 - SCHEDULER.alphas_cumprod[t]).sqrt().view(-1, 1, 1, 1)
            return torch.cat([exact + 2.0 * (t >= 500).view(-1, 1, 1, 1), exact], dim=1)

    zeros = Examples(torch.zeros(10, 1, 4, 4), torch.zeros(10).long())
    found = denoising_loss(Answer(), zeros, SCHEDULER, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found, torch.tensor([0.0, 0.0, 4.0, 4.0]), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"1\.\.1000, got 0"):
        denoising_loss(Answer(), zeros, SCHEDULER, bins=0, generator=torch.Generator())
