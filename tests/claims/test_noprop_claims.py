"""The logic of the NoProp claims that is not training: what the arms share, what is counted, what images become."""

import inspect

import pytest
import torch

from etude.claims.training import noprop as claims
from etude.data import images
from etude.data.kinds import Examples, ImageData
from etude.lab import Trial

CLAIMS = claims.PAPER.claims


def run(name, arm, data=None, **changes):
    claim = CLAIMS[name]
    setup = claim.setups["smoke"].replace(**changes)
    trial = Trial(f"noprop/{name}", arm, 2000, "smoke", setup, {"lr": 1e-3, "w": 0.5})
    return inspect.unwrap(claim.function)(trial, data or images.digits())


def mnist_like():
    part = Examples(torch.rand(2, 1, 28, 28), torch.tensor([0, 9]))
    return ImageData(part, part, part, tuple("0123456789"), "mnist_like")


def test_backpropagation_and_noprop_start_from_the_same_blocks_and_head(monkeypatch):
    started = {}

    def keep(trial, model, *rest, **options):
        started[trial.arm] = {k: v.clone() for k, v in model.state_dict().items() if k.startswith(("blocks", "head"))}
        for action in options.get("at", {}).values():
            action()

    monkeypatch.setattr(claims, "_train_noprop", keep)
    monkeypatch.setattr(claims, "_train_end_to_end", keep)
    for arm in ("backprop", "noprop_dt"):
        run("dt_matches_backprop", arm, embeddings=["one_hot"])
    one, other = started["backprop"], started["noprop_dt"]
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_arm_backprop_is_measured_at_the_epochs_of_noprop_too():
    found = run("dt_matches_backprop", "backprop", embeddings=["one_hot"], epochs={"backprop": 3, "noprop_dt": 1})
    same = run("dt_matches_backprop", "backprop", embeddings=["one_hot"], epochs={"backprop": 1, "noprop_dt": 1})
    assert found["accuracy_equal_epochs"] == same["accuracy_equal_epochs"] == same["accuracy"]


@pytest.mark.parametrize("arm", ["noprop_dt", "single_block"])
def test_several_embeddings_are_reported_one_by_one_and_in_the_mean(arm):
    found = run("dt_matches_backprop", arm)
    kinds = [found[f"accuracy_{kind}"] for kind in ("one_hot", "learned", "prototype")]
    assert found["accuracy"] == pytest.approx(sum(kinds) / 3)


def test_memory_of_a_local_step_does_not_grow_with_the_blocks_but_that_of_the_chain_does():
    held = {arm: run("memory", arm)["bytes"] for arm in CLAIMS["memory"].arms}
    assert held["noprop_5"] == held["noprop_10"]
    assert held["backprop_10"] > 1.9 * held["backprop_5"]
    assert held["noprop_10"] < held["checkpointed_10"] < 2 * held["noprop_10"]


def test_larger_images_are_scaled_down_and_splits_cut():
    setup = CLAIMS["memory"].setups["small"].replace(largest=16, train=50, val=20, test=30)
    data = claims._fitted(images.shapes(n=200, size=40), setup, "cpu")
    assert [len(split) for split in (data.train, data.val, data.test)] == [50, 20, 30]
    assert data.size == (16, 16)
    assert claims._fitted(images.digits(), setup, "cpu").size == (8, 8)


def test_data_of_the_users_own_run_through_every_claim():
    data = images.shapes(n=120, size=20)
    for name, claim in CLAIMS.items():
        if "small" in claim.setups:
            assert run(name, claim.arms[0], data)


def test_the_full_setups_are_the_papers_blocks():
    setup = CLAIMS["dt_matches_backprop"].setups["full"]
    data = mnist_like()
    with torch.device("meta"):
        block = claims._block(data, setup, 10)
    assert sum(parameter.numel() for parameter in block.parameters()) == 2_001_290
    assert setup.blocks == 10
