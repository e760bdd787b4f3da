"""Latent sampling: a constant population, one body replaced a step, and a head that alone learns."""

from collections import Counter

import pytest
import torch
from torch import nn

from etude.data.kinds import Examples
from etude.nas.aiop import BodyPopulation, SharedHeadTrainer

BINS, PER_BIN = 3, 2


def sample_body(index, generator):
    """A body of depth index + 1."""
    layers = []
    for _ in range(index + 1):
        conv = nn.Conv2d(3, 3, 3, padding=1)
        with torch.no_grad():
            conv.weight.copy_(torch.randn(conv.weight.shape, generator=generator) / 5)
            conv.bias.zero_()
        layers += [conv, nn.Tanh()]
    return nn.Sequential(*layers)


def population(**options):
    return BodyPopulation(sample_body, BINS, PER_BIN, generator=torch.Generator().manual_seed(0), **options)


def head():
    torch.manual_seed(0)
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))


def trainer():
    return SharedHeadTrainer(sample_body, head(), BINS, PER_BIN, generator=torch.Generator().manual_seed(0))


X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(5))
Y = torch.tensor([0, 1, 1, 0])


def test_size_and_shares_stay_and_one_body_is_replaced_a_step():
    bodies = population()
    for _ in range(7):
        before = list(bodies.bodies)
        bodies.roll()
        after = list(bodies.bodies)
        assert len(bodies) == BINS * PER_BIN
        assert Counter(index for index, _ in after) == dict.fromkeys(range(BINS), PER_BIN)
        assert after[:-1] == before[1:]
        assert after[-1][1] is not before[0][1]
        assert after[-1][0] == before[0][0]
        assert len(after[-1][1]) == 2 * (after[-1][0] + 1)


def test_features_are_drawn_with_the_populations_mean_and_deviation():
    bodies = population()
    (level,) = bodies.features(X)
    assert level.shape == (BINS * PER_BIN, 4, 3, 8, 8)
    noise = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(9))
    (drawn,) = bodies.sample(X, torch.Generator().manual_seed(9))
    torch.testing.assert_close(drawn, level.mean(0) + noise * level.std(0))
    assert not drawn.requires_grad


def test_the_head_is_the_only_module_with_gradients():
    found = trainer()
    bodies = [body for _, body in found.population.bodies]
    before = [parameter.clone() for parameter in found.head.parameters()]
    found.step(X, Y)
    assert all(parameter.grad is None for body in bodies for parameter in body.parameters())
    assert all(not torch.equal(old, new) for old, new in zip(before, found.head.parameters()))


def test_maps_are_filled_up_with_zero_channels():
    bodies = population(channels=[5])
    (level,) = bodies.features(X)
    assert level.shape[2] == 5
    assert not level[:, :, 3:].any()
    with pytest.raises(ValueError, match="a feature map has 3 channels, more than the 2"):
        population(channels=[2]).features(X)
    with pytest.raises(ValueError, match="expected 2 feature maps of a body, got 1"):
        population(channels=[3, 3]).features(X)


def test_fitting_rolls_the_population_once_an_update():
    found = trainer()
    first = [body for _, body in found.population.bodies]
    losses = found.fit(Examples(X, Y), steps=BINS * PER_BIN)
    assert len(losses) == BINS * PER_BIN
    assert not any(body is old for _, body in found.population.bodies for old in first)


def test_a_pseudo_label_leaves_body_and_shared_head_alone():
    found = trainer()
    body = sample_body(1, torch.Generator().manual_seed(3))
    kept = [p.clone() for module in (body, found.head) for p in module.parameters()]
    networks = []

    def measure(network):
        networks.append(network)
        return network(X).sum().item()

    label = found.pseudo_label(body, Examples(X, Y), measure, steps=2, batch_size=2)
    now = [p for module in (body, found.head) for p in module.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(kept, now))
    assert all(not torch.equal(a, b) for a, b in zip(kept, networks[0].parameters()))
    untuned = found.pseudo_label(body, Examples(X, Y), measure, steps=0)
    assert untuned == pytest.approx(found.head(body(X)).sum().item())
    assert label != untuned


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="bins must be positive, got 0"):
        BodyPopulation(sample_body, 0, 2)
    with pytest.raises(ValueError, match="at least 2 bodies"):
        BodyPopulation(sample_body, 1, 1)
    with pytest.raises(TypeError, match=r"must give a torch.nn.Module|return"):
        BodyPopulation(lambda index, generator: torch.zeros(1), 1, 2)
    with pytest.raises(ValueError, match="no examples"):
        trainer().fit(Examples(X[:0], Y[:0]), steps=1)
    with pytest.raises(ValueError, match="the metric of Sequential is nan"):
        trainer().pseudo_label(sample_body(0, None), Examples(X, Y), lambda network: float("nan"), steps=0)

    def uneven(index, generator):
        return nn.Conv2d(3, 3 + index, 3)

    with pytest.raises(ValueError, match=r"differ in shape: .*; give channels="):
        BodyPopulation(uneven, 2, 1).features(X)
