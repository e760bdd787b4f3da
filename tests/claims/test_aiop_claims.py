"""What the claims of AIO-P split, train on and leave unseen."""

import numpy as np
import pytest
import torch

pytest.importorskip("torch_geometric")

from etude.claims.nas import aiop as claims
from etude.data.nas_tables import ArchitectureTable
from etude.lab import Trial
from etude.nas.aiop import TargetScaler, prune


@pytest.fixture(scope="module")
def data():
    return claims.generated()


def trial(arm="adapters", claim="zero_shot", seed=0, **tuned):
    return Trial(f"aiop/{claim}", arm, seed, "smoke", claims.PAPER.claims[claim].setups["smoke"], tuned)


def test_no_pruned_cell_stands_on_both_sides_and_arms_share_the_split(data):
    keys = data.table("transnas_micro", "normal").keys
    one, same, other = (
        claims.split_cells(trial(arm, seed=seed), keys) for arm, seed in (("gnn", 0), ("flops", 0), ("gnn", 1))
    )
    sides = [{prune(keys[row]) for row in rows} for rows in (one.adapter, one.target)]
    assert not sides[0] & sides[1]
    assert len(sides[1]) == len(one.target)
    assert len(one.adapter) >= 30
    assert sides[0] | sides[1] == {prune(key) for key in keys}
    np.testing.assert_array_equal(one.target, same.target)
    assert not np.array_equal(np.sort(one.adapter), np.sort(other.adapter))


def test_the_real_table_splits_into_groups():
    try:
        keys = claims.naslib_zc().table("transnas_micro", "normal").keys
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert len(keys) == 691
    setup = claims.PAPER.claims["zero_shot"].setups["small"]
    split = claims.split_cells(Trial("aiop/zero_shot", "gnn", 500, "small", setup), keys)
    assert 300 <= len(split.adapter) < 340
    assert 190 <= len(split.target) <= 240


def test_base_and_adapters_do_not_depend_on_what_else_is_trained(data):
    families = [claims.Family(trial(), data) for _ in range(2)]
    alone = families[0].adapted(["room_layout"]).adapters[0]
    both = families[1].adapted(["jigsaw", "room_layout"]).adapters[1]
    for one, two in zip(alone.parameters(), both.parameters()):
        assert torch.equal(one, two)
    for one, two in zip(families[0].base.parameters(), families[1].base.parameters()):
        assert torch.equal(one, two)


def test_training_further_on_pooled_data_leaves_the_base_alone(data):
    family = claims.Family(trial("pooled"), data)
    before = [parameter.clone() for parameter in family.base.parameters()]
    pooled = family.pooled(["jigsaw", "room_layout"])
    assert all(torch.equal(old, new) for old, new in zip(before, family.base.parameters()))
    assert not all(torch.equal(old, new) for old, new in zip(before, pooled.parameters()))


@pytest.mark.parametrize("arm", ["gnn", "adapters", "pooled", "flops", "mean"])
def test_test_labels_reach_neither_predictions_nor_scales(data, arm, monkeypatch):
    fitted = []
    original = TargetScaler.fit
    monkeypatch.setattr(
        TargetScaler, "fit", lambda self, y, flops=None: (fitted.append(len(y)), original(self, y, flops))[1]
    )
    told = []
    real = claims.tuned_to

    def spy(trial, model, graphs, table, few, scaling):
        guess = real(trial, model, graphs, table, few, scaling)
        told.append(guess[1])
        return guess

    monkeypatch.setattr(claims, "tuned_to", spy)
    one = trial(arm, "few_labels")
    claims.few_labels(one, data)
    assert all(size in (5, len(data.table("nasbench201", "cifar10")), *range(30, 40)) for size in fitted)

    order = trial(arm, "few_labels").rng("few")
    micro = data.table("transnas_micro", "normal")
    split = claims.split_cells(trial(arm, "few_labels"), micro.keys)
    few = order.permutation(len(split.target))[:5]
    hidden = np.delete(split.target, few)

    def spoilt(space, task):
        table = data.load(space, task)
        if space != "transnas_micro" or task not in ("class_object", "segmentsemantic", "normal"):
            return table
        keys = {micro.keys[row] for row in hidden}
        metric = np.array([1e3 * value if key in keys else value for key, value in zip(table.keys, table.metric)])
        return ArchitectureTable(space, task, table.keys, metric, table.flops, table.params, table.scores)

    first = list(told)
    told.clear()
    claims.few_labels(trial(arm, "few_labels"), claims.Tables(spoilt))
    for before, after in zip(first, told, strict=True):
        np.testing.assert_array_equal(before, after)


def test_tuning_looks_at_no_target(data):
    seen = []

    def watched(space, task):
        seen.append((space, task))
        table = data.load(space, task)
        if task in ("class_object", "segmentsemantic", "normal"):
            return ArchitectureTable(space, task, table.keys, 0 * table.metric, table.flops, table.params)
        return table

    tuning = Trial("aiop/few_labels", "adapters", 1000, "smoke", trial(claim="few_labels").setup, {}, tuning=True)
    found = claims.few_labels(tuning, claims.Tables(watched))
    assert list(found) == ["val_error"]
    assert ("transnas_micro", "jigsaw") in seen
    assert not {task for space, task in seen} & {"segmentsemantic", "normal"}


def test_flops_arms_rank_by_the_column(data):
    found = claims.zero_shot(trial("flops"), data)
    micro = data.table("transnas_micro", "normal")
    rows = claims.split_cells(trial("flops"), micro.keys).target
    assert found["srcc_normal"] == pytest.approx(claims.rank_correlation(micro.metric[rows], micro.flops[rows]))


def test_leaving_two_out_judges_every_pair_of_six_tasks():
    pairs = list(claims.rounds(claims.PAPER.claims["zero_shot"].setups["full"]))
    assert len(pairs) == 15
    for tasks, targets in pairs:
        assert len(tasks) == 4
        assert not set(tasks) & set(targets)
        assert "autoencoder" not in (*tasks, *targets)
