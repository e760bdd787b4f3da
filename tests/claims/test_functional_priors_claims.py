"""What the claims do around the method: shared data, one match for all seeds, splits, what tuning sees."""

import numpy as np
import pytest
import torch

pytest.importorskip("gpytorch")

from etude.claims.theory import functional_priors as claims
from etude.data import tables, uci
from etude.lab import Trial

pytestmark = pytest.mark.filterwarnings("ignore:a poor match")


def trial(claim, arm, seed, **options):
    found = claims.PAPER.claims[claim]
    return Trial(found.id, arm, seed, "smoke", found.setups["smoke"], options.pop("tuned", {}), **options)


def test_the_shared_prior_is_the_same_every_time_and_leaves_the_global_state():
    setup = claims.PAPER.claims["posterior"].setups["smoke"]
    line = tuple((key, getattr(setup, key)) for key in claims._LINE_KEYS)
    before = torch.get_rng_state()
    one = claims._shared_prior(line)
    claims._shared_prior.cache_clear()
    other = claims._shared_prior(line)
    assert one is not other
    assert one.stds() == other.stds()
    assert torch.equal(torch.get_rng_state(), before)
    assert set(one.stds().values()) != {one.stds()["layers.0.weight"]}


def test_arms_of_a_seed_see_the_same_data(monkeypatch):
    seen = []
    original = claims.fp.gap_regression

    def recorded(*args, **kwargs):
        seen.append(original(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(claims.fp, "gap_regression", recorded)
    for arm in ("fg", "gpi_g", "gp_oracle"):
        claims.posterior(trial("posterior", arm, 700))
    for task in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], task))


def test_tuning_holds_a_quarter_out_and_returns_no_test_metric(monkeypatch):
    sizes = []
    original = claims.fp.sample_posterior

    def recorded(module, prior, likelihood, data, **options):
        sizes.append(len(data[0]))
        return original(module, prior, likelihood, data, **options)

    monkeypatch.setattr(claims.fp, "sample_posterior", recorded)
    found = claims.posterior(trial("posterior", "fg_tuned", 1000, tuned={"std": 2.0}, tuning=True))
    assert set(found) == {"val_nll"}
    claims.posterior(trial("posterior", "fg_tuned", 700, tuned={"std": 2.0}))
    assert sizes == [12, 16]


def test_another_table_keeps_its_split():
    data = tables.diabetes()
    assert claims._of_seed(data, 3) is data


def test_bostons_splits_are_the_published_ones():
    try:
        data = uci.boston()
    except FileNotFoundError:
        pytest.skip("Boston is not on this machine")
    assert torch.equal(claims._of_seed(data, 13).test.inputs, uci.boston(3).test.inputs)


def test_constant_columns_are_only_centred():
    train, other = claims._scaled(torch.tensor([[1.0, 5.0], [3.0, 5.0]]), [torch.tensor([[2.0, 6.0]])])
    np.testing.assert_allclose(train.numpy(), [[-1, 0], [1, 0]])
    np.testing.assert_allclose(other.numpy(), [[0, 1]])


def test_every_arm_has_the_prior_of_its_name():
    net = claims.fp.MLP(1, [3])
    kinds = {
        arm: type(claims._prior(arm, net)).__name__ for arm in ("fg", "gpi_g", "fh", "gpi_h", "fixed_nf", "gpi_nf")
    }
    assert kinds["fg"] == kinds["gpi_g"] == "GaussianWeightPrior"
    assert kinds["fh"] == kinds["gpi_h"] == "HierarchicalWeightPrior"
    assert kinds["fixed_nf"] == kinds["gpi_nf"] == "FlowWeightPrior"
    trained = {arm: any(p.requires_grad for p in claims._prior(arm, net).parameters()) for arm in kinds}
    assert trained == {arm: arm.startswith("gpi") for arm in kinds}
    assert list(claims._prior("fg_tuned", net, std=3.0).stds().values()) == pytest.approx([3.0] * 4, rel=1e-5)
