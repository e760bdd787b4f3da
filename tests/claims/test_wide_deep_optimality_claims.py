"""What the claims do to data before anything is fitted, and that all arms of a seed see the same."""

import math

import numpy as np
import pytest
import torch

from etude.claims.theory import wide_deep_optimality as claims
from etude.data.kinds import Examples
from etude.lab import Trial
from etude.theory.wide_deep_optimality import RareCap, classify_activation


def test_a_share_of_the_labels_becomes_another_class():
    labels = np.arange(5000) % 10
    flipped = claims._flipped(labels, 10, 0.2, torch.Generator().manual_seed(0))
    assert (flipped != labels).mean() == pytest.approx(0.2, abs=0.02)
    assert set(flipped) == set(range(10))
    moved = (flipped - labels)[flipped != labels] % 10
    assert np.bincount(moved, minlength=10)[1:].min() > 50
    assert (claims._flipped(labels, 10, 0.0, torch.Generator()) == labels).all()


def test_rows_are_flat_whether_in_memory_or_not():
    part = Examples(torch.rand(6, 1, 2, 2), torch.arange(6))
    inputs, targets = claims._rows(part)
    again, too = claims._rows([(part.inputs[k], int(part.targets[k])) for k in range(6)])
    assert inputs.shape == (6, 4)
    np.testing.assert_array_equal(inputs, again)
    np.testing.assert_array_equal(targets, too)


@pytest.mark.parametrize("d", range(1, 6))
def test_the_cap_of_every_dimension_is_rare(d):
    _, _, bayes = claims._cap(d).sample(20_000, torch.Generator().manual_seed(0))
    assert 0.12 < float(bayes.double().mean()) < 0.3


def test_the_activations_of_the_depth_claim_cover_the_rules():
    rules = {name: classify_activation(phi).rule for name, phi in claims.ACTIVATIONS.items()}
    assert rules == {
        "optimal": "singular", "relu": "majority", "third_order": "nearest", "with_mean": "majority", "erf": "singular",
    }  # fmt: skip
    assert classify_activation(torch.tensor(claims.GENTLE)).alpha == pytest.approx(2.42, abs=0.01)


def test_every_arm_is_the_rule_that_its_name_says():
    trial = Trial("toy", arm="optimal", seed=1)
    x, y, _ = RareCap(3).sample(40, torch.Generator().manual_seed(0))
    orders = {}
    for arm in ("half", "three_quarters", "optimal", "double"):
        orders[arm] = claims._classifier(arm, 3, trial).fit(x.numpy(), y.numpy()).taxonomy_.alpha
    assert orders == pytest.approx({"half": 1.5, "three_quarters": 2.25, "optimal": 3, "double": 6})
    assert claims._classifier("one_nn", 3, trial).fit(x.numpy(), y.numpy()).taxonomy_.rule == "nearest"
    assert claims._classifier("majority", 3, trial).fit(x.numpy(), y.numpy()).taxonomy_.rule == "majority"
    assert claims._classifier("hilbert", 3, trial).alpha == 3


def test_descent_of_the_claim_is_plain_gradient_descent():
    generator = torch.Generator().manual_seed(0)
    network = claims.NTKNetwork(3, claims.GENTLE, width=400, depth=2, generator=generator).double()
    x, y, _ = RareCap(2).sample(10, generator)
    y = 2.0 * y.double() - 1
    # A step of size h moves the output by h K (y - 0) to first order.
    kernel = claims.empirical_ntk(network, x, x)
    moved = claims._descend(network, x, y, x, lr=1e-4, steps=1)
    assert torch.allclose(moved / 1e-4, kernel @ y, rtol=2e-2)


def test_depths_are_in_order_and_end_in_infinity():
    for listed in claims.DEPTHS.values():
        assert listed[-1] == "inf"
        finite = listed[:-1]
        assert finite == sorted(finite)
        assert all(math.isfinite(layers) for layers in finite)
