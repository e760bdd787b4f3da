"""Initialisation on data, and the variance profile."""

import pytest
import torch
from torch import nn

from etude.vision.filters import data_dependent, init_network, lsuv, variance_profile


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def chain(width=256, depth=6, in_chans=256):
    layers = []
    for number in range(depth):
        layers += [nn.Conv2d(width if number else in_chans, width, 3, padding=1, padding_mode="circular"), nn.ReLU()]
    return nn.Sequential(*layers)


@pytest.mark.parametrize(
    ("scheme", "ratio", "tolerance"), [("he", 1.0, 0.1), ("xavier", 0.5, 0.05), ("lecun", 0.5, 0.05)]
)
def test_he_keeps_the_signal_and_xavier_halves_it(scheme, ratio, tolerance):
    model = init_network(chain(), scheme, generator=generator())
    profile = variance_profile(model, torch.randn(4, 256, 6, 6, generator=generator(1)), generator=generator(2))
    moments = torch.tensor(profile.second_moments)
    ratios = moments[1:] / moments[:-1]
    assert (ratios - ratio).abs().max() < tolerance
    backward = torch.tensor(profile.gradients)
    assert ((backward[:-1] / backward[1:]) - ratio).abs().max() < 2 * tolerance


def test_a_profile_holds_the_moments_of_a_naive_pass():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(48, 2))
    x = torch.randn(5, 1, 6, 6, generator=generator())
    profile = variance_profile(model, x, loss=lambda scores: scores.square().sum())
    first = nn.functional.conv2d(x, model[0].weight, model[0].bias).detach().requires_grad_()
    scores = model[3](first.relu().flatten(1))
    (derivative,) = torch.autograd.grad(scores.square().sum(), first)
    assert profile.names == ("0", "3")
    assert profile.variances[0] == pytest.approx(first.var(correction=0).item(), rel=1e-5)
    assert profile.second_moments[0] == pytest.approx(first.square().mean().item(), rel=1e-5)
    between = first.flatten(1).var(dim=0, correction=0).mean().item()
    assert profile.between_examples[0] == pytest.approx(between, rel=1e-5)
    assert profile.gradients[0] == pytest.approx(derivative.var(correction=0).item(), rel=1e-5)


def network():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 64, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64 * 16, 5)
    )


@pytest.mark.parametrize("orthogonal", [True, False])
def test_lsuv_reaches_unit_variance_in_every_layer(orthogonal):
    model, x = network(), torch.rand(64, 1, 8, 8, generator=generator())
    reached = lsuv(model, x, orthogonal=orthogonal, generator=generator(1))
    profile = variance_profile(model, x)
    assert list(reached) == list(profile.names) == ["0", "2", "5"]
    for name, variance in zip(profile.names, profile.variances):
        assert abs(variance - 1) < 0.01
        assert reached[name] == pytest.approx(variance, abs=1e-4)
    if orthogonal:
        rows = model[0].weight.flatten(1)
        scale = rows[0].norm()
        torch.testing.assert_close(rows @ rows.T, scale**2 * torch.eye(8), atol=1e-5, rtol=1e-5)
        assert not model[0].bias.any()


def test_data_dependent_initialisation_standardises_every_channel():
    model, x = network(), torch.rand(64, 1, 8, 8, generator=generator())
    reached = data_dependent(model, x)
    assert max(reached.values()) < 1e-4
    out = model[2](model[1](model[0](x)))
    torch.testing.assert_close(out.mean(dim=(0, 2, 3)), torch.zeros(64), atol=1e-4, rtol=0)
    torch.testing.assert_close(out.var(dim=(0, 2, 3), correction=0), torch.ones(64), atol=1e-3, rtol=0)


def test_calibration_leaves_modes_and_repeats():
    models = []
    for _ in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            models.append(network().train())
        models[-1].append(nn.Dropout(0.5))
        lsuv(models[-1], torch.rand(8, 1, 8, 8, generator=generator()), generator=generator(1))
        assert all(module.training for module in models[-1].modules())
    assert torch.equal(models[0][5].weight, models[1][5].weight)


def test_what_cannot_be_calibrated_is_refused():
    x = torch.rand(4, 1, 8, 8)
    with pytest.raises(ValueError, match="variance 0"):
        lsuv(network(), torch.zeros(4, 1, 8, 8))
    with pytest.raises(ValueError, match="no bias"):
        data_dependent(nn.Sequential(nn.Conv2d(1, 2, 3, bias=False)), x)
    with pytest.raises(ValueError, match="constant over the batch"):
        data_dependent(nn.Sequential(nn.Conv2d(1, 2, 3)), torch.ones(4, 1, 8, 8))
    with pytest.raises(ValueError, match="at least two inputs"):
        lsuv(network(), x[:1])
    with pytest.raises(ValueError, match="no Conv2d"):
        variance_profile(nn.Flatten(), x)
