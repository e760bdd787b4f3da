"""What the claims compare: the same draws at every gain, and gradients as they are defined."""

import math

import pytest
import torch
from torch import nn

from etude.claims.theory import pdlt as claims
from etude.lab import Setup, Trial
from etude.theory.pdlt import critical_init


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", claims.ACTIVATIONS)
def test_arms_differ_in_the_scale_of_their_weights_alone(name):
    setup = Setup(depth=4, width=12)
    critical, other = (claims._network(name, gain, 6, 3, setup, gen(1)) for gain in (1.0, claims.HIGH[name]))
    linear = [module for module in critical if isinstance(module, nn.Linear)]
    assert [layer.out_features for layer in linear] == [12, 12, 12, 3]
    for layer, scaled in zip(linear, (module for module in other if isinstance(module, nn.Linear))):
        assert torch.allclose(scaled.weight, math.sqrt(claims.HIGH[name]) * layer.weight)
        assert torch.equal(scaled.bias, layer.bias)


def test_the_curve_of_gains_runs_from_one_off_critical_arm_to_the_other():
    for name, gains in claims.GAINS.items():
        assert gains == tuple(sorted(gains))
        assert (gains[0], gains[-1]) == (claims.LOW, claims.HIGH[name])
        assert len(gains) == 5
        assert 1.0 in gains


def test_gradients_are_those_of_the_preactivations():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x = torch.randn(1, 3, generator=gen(2), dtype=torch.float64)
    found = claims._squared_gradients(model, x, gen(3))
    v = torch.randn(1, 2, generator=gen(3), dtype=torch.float64)
    z = model[0](x).detach()
    carried = (v @ model[2].weight.detach()) * (1 - torch.tanh(z) ** 2)
    assert found.tolist() == pytest.approx([float(carried.square().sum()), float(v.square().sum())])


def test_both_arms_of_the_finite_width_claim_see_one_ensemble():
    setup = Setup(depth=3, width=8)
    one, two = (
        claims._flow("gelu", 8, setup, Trial("pdlt/finite_width", arm, 501, "smoke", setup), 20)
        for arm in ("infinite_width", "one_over_n")
    )
    assert all(torch.equal(one[1].values[name], two[1].values[name]) for name in one[1].values)
    assert float(one[0].K[0]) == pytest.approx(critical_init(nn.GELU()).K_star)


def test_the_scatter_of_losses_starts_with_the_networks_and_repeats():
    setup = Setup(width=32, nets=6, steps=4)
    first, again = (
        claims._trained_spread(Trial("pdlt/aspect_ratio", "L2", 501, "smoke", setup), hidden=2) for _ in range(2)
    )
    assert first == again > 0
