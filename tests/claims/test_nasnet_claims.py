"""What the claims of NASNet search on, train and leave unseen."""

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from etude.claims.nas import nasnet as claims
from etude.data.kinds import Examples, ImageData
from etude.lab import Trial
from etude.nas.nasnet import NASNET_A, NASNet, RandomFeatureEvaluator


def trial(arm, claim="rl_beats_random", seed=0, scale="smoke", **changes):
    setup = claims.PAPER.claims[claim].setups[scale]
    return Trial(f"nasnet/{claim}", arm, seed, "smoke", setup.replace(**changes))


@pytest.fixture(scope="module")
def data():
    return claims.digits250()


def test_the_split_is_fixed_and_loses_no_digit(data):
    assert [len(part) for part in (data.train, data.val, data.test)] == [250, 300, 1247]
    rows = torch.cat([part.inputs for part in (data.train, data.val, data.test)]).flatten(1)
    assert len(rows) == 1797
    for part in (data.train, data.val, data.test):
        assert (part.targets.bincount(minlength=10) / len(part) - 0.1).abs().max() < 0.03


def test_arms_search_and_train_on_the_same_prepared_rows():
    generator = torch.Generator().manual_seed(0)
    parts = [Examples(5 + torch.rand(n, 3, 20, 12, generator=generator), torch.arange(n) % 2) for n in (300, 400, 90)]
    data = ImageData(*parts, classes=("a", "b"), name="mine")
    runs = [trial(arm, scale="small") for arm in ("random", "ppo")]
    one, two = (claims.prepared(run, data, run.setup) for run in runs)
    assert (len(one.train), len(one.val), len(one.test)) == (250, 300, 90)
    assert one.size == (8, 8)
    assert torch.equal(one.train.inputs, two.train.inputs)
    assert one.train.inputs.mean().abs() < 1e-4


def test_test_rows_choose_nothing_and_cells_are_measured_with_fresh_weights(data):
    spoilt = ImageData(
        data.train, data.val, Examples(data.test.inputs.flip(3), data.test.targets.roll(1)), data.classes, "spoilt"
    )
    run = trial("ppo", draw=True)
    found = claims.rl_beats_random(run, data)
    other = claims.rl_beats_random(trial("ppo"), spoilt)
    for name in ("reward25", "late_reward", "features", "distinct"):
        assert found[name] == other[name]
    assert found["top25"] != other["top25"]
    assert "<svg" in run.figures["cells"]
    again = trial("ppo")
    here = claims.prepared(again, data, again.setup)
    evaluator = RandomFeatureEvaluator(here)
    result = claims.searched(again, again.setup, evaluator, "ppo", again.setup.budget)
    scores = [evaluator.score(one, again.stream_seed("fresh-0"), here.test) for one, _ in result.top(2)]
    assert found["top25"] == pytest.approx(np.mean(scores))
    assert again.stream_seed("fresh-0") != again.stream_seed("weights")


def test_the_searches_of_small_are_those_of_the_protocol():
    setup = trial("ppo", scale="small").setup
    names = ("budget", "batch", "epochs", "lr", "entropy", "decay", "clip", "top", "train", "val")
    assert [getattr(setup, name) for name in names] == [
        160, 10, 4, 0.01, 1e-4, 0.9, 1.0, 25, 250, 300,
    ]  # fmt: skip
    for full in (trial("ppo", scale="full").setup, claims.PAPER.claims["transfer"].setups["full"].search):
        values = full if isinstance(full, dict) else full.as_dict()
        assert (values["lr"], values["batch"], values["decay"], values["child_epochs"]) == (3.5e-4, 20, 0.95, 20)


@pytest.mark.parametrize("scale", ["small", "full"])
def test_plain_cells_have_equal_parameters_and_depth(scale):
    setup = trial("separable", "nasnet_a_cell", scale=scale).setup
    options = {"num_classes": 10, "in_chans": 1, "cells_per_stage": setup.cells_per_stage}

    def network(genotype, filters):
        with torch.device("meta"):
            return NASNet(genotype, filters=filters, **options)

    def count(model):
        return sum(parameter.numel() for parameter in model.parameters())

    ours = network(NASNET_A, setup.filters)
    plain = network(claims.PLAIN, claims.matched_filters(claims.PLAIN, count(ours), **options))
    assert count(plain) == pytest.approx(count(ours), rel=0.03)
    assert len(plain.cells) == len(ours.cells)

    def depth(genotype, reduction):
        blocks, _ = genotype.cell(reduction)
        depths = [0, 0]
        for block in blocks:
            depths.append(max(depths[state] + op.startswith("sep") for state, op in block.arms))
        return max(depths)

    for reduction in (False, True):
        assert depth(claims.PLAIN, reduction) == depth(NASNET_A, reduction)


def test_networks_of_an_experiment_start_alike_and_drop_as_their_arm_says(monkeypatch, data):
    monkeypatch.setattr(claims, "train_network", lambda model, *args, **options: seen.append((model, options)))
    seen = []
    for arm in ("none", "constant", "scheduled"):
        claims.scheduled_drop_path(trial(arm, "scheduled_drop_path"), data)
    models, options = zip(*seen)
    for model in models[1:]:
        for a, b in zip(models[0].parameters(), model.parameters()):
            assert torch.equal(a, b)
    assert [model.schedule.final_keep for model in models] == [1, 0.6, 0.6]
    assert [option["constant_drop_path"] for option in options] == [False, True, False]


def test_transfer_trains_searched_and_drawn_cells_and_ranks_both(monkeypatch, data):
    trained = []

    def stand_in(run, data, genotype, filters, **options):
        trained.append(genotype)
        return genotype

    monkeypatch.setattr(claims, "trained", stand_in)
    monkeypatch.setattr(claims, "accuracy", lambda genotype, examples: (genotype.digest() % 997) / 997)
    monkeypatch.setattr(claims, "evaluator_for", lambda *given: lambda genotype, seed: (genotype.digest() % 997) / 997)
    found = {}
    for arm, cells in (("searched", 4), ("random_cells", 2), ("nasnet_a", 1)):
        trained.clear()
        found[arm] = claims.transfer(trial(arm, "transfer", cells=2), data)
        assert len(trained) == cells
        counted = [(genotype.digest() % 997) / 997 for genotype in trained[:2]]
        assert found[arm]["accuracy"] == pytest.approx(np.mean(counted))
    assert trained == [NASNET_A]
    assert found["searched"]["rank_correlation"] == pytest.approx(1)
