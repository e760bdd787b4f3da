"""What the claims of SelfTask train on and compare: splits, pairing, groups and controls."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("torch_geometric")

from etude.claims.graphs import selftask as claims
from etude.lab import Trial


@pytest.fixture(scope="module")
def graph():
    return claims.tiny()


def trial(arm, claim="labels", seed=500, **tuned):
    found = claims.PAPER.claims[claim]
    return Trial(found.id, arm, seed, "smoke", found.setups["smoke"], dict.fromkeys(found.knobs()) | tuned)


def test_a_split_has_its_sizes_and_no_node_twice(graph):
    data = claims._split(graph, 5, 100, 120, torch.Generator().manual_seed(0))
    counts = torch.bincount(data.y[data.train_mask], minlength=data.num_classes)
    assert counts.tolist() == [5] * data.num_classes
    assert (int(data.val_mask.sum()), int(data.test_mask.sum())) == (100, 120)
    assert int((data.train_mask.int() + data.val_mask + data.test_mask).max()) == 1


def test_more_labels_of_a_seed_contain_the_fewer(graph):
    few, many = (claims._split(graph, k, 100, 100, torch.Generator().manual_seed(3)) for k in (5, 20))
    assert bool((many.train_mask | ~few.train_mask).all())


def test_a_small_graph_keeps_validation_and_test_nodes(graph):
    data = claims._split(graph, 5, 10_000, 10_000, torch.Generator().manual_seed(0))
    assert int(data.val_mask.sum()) > 0
    assert int(data.test_mask.sum()) > int(data.val_mask.sum())


def test_arms_of_a_seed_share_the_split_and_seeds_differ(graph):
    one, twin, other = (
        claims.Workbench(trial(arm, seed=seed), graph).data
        for arm, seed in (("gcn", 500), ("corrected_label", 500), ("gcn", 501))
    )
    for part in ("train_mask", "val_mask", "test_mask"):
        assert torch.equal(getattr(one, part), getattr(twin, part))
        assert not torch.equal(getattr(one, part), getattr(other, part))


@pytest.mark.parametrize("name", ["distance2labeled", "context_label", "pairwise_distance"])
def test_a_task_of_weight_zero_is_the_plain_network_bit_for_bit(graph, name):
    plain = claims.Workbench(trial("gcn"), graph).run(None)
    weightless = claims.Workbench(trial(name), graph).run(name, 0.0)
    for key in ("accuracy", "val_accuracy", "val_loss", "train_loss"):
        assert weightless[key] == plain[key]


def test_the_plain_arm_takes_no_weight_and_a_task_feels_its_own(graph):
    assert claims.labels(trial("gcn", lam=100.0), graph) == claims.labels(trial("gcn"), graph)
    found = [claims.labels(trial("distance2labeled", lam=lam), graph)["val_loss"] for lam in (1.0, 1e4)]
    assert found[0] != found[1]


def test_the_labels_of_test_nodes_change_nothing_but_the_score(graph):
    bench = claims.Workbench(trial("context_label"), graph)
    y = torch.where(bench.data.test_mask, (graph.y + 1) % graph.num_classes, graph.y)
    flipped = claims.Workbench(trial("context_label"), graph)
    flipped.data = replace(flipped.data, y=y)
    one, other = bench.run("context_label", 10.0), flipped.run("context_label", 10.0)
    for key in ("val_accuracy", "val_loss", "train_loss", "self_loss"):
        assert one[key] == other[key]


def test_a_group_is_the_mean_of_its_tasks(graph):
    values = claims.global_local(trial("global", "global_local"), graph)
    members = [values[f"accuracy_{name}"] for name in claims.GLOBAL]
    assert values["accuracy"] == pytest.approx(sum(members) / len(members))
    bench = claims.Workbench(trial("global", "global_local"), graph)
    alone = bench.run("pairwise_distance", float(bench.published["pairwise_distance"]))
    assert values["accuracy_pairwise_distance"] == alone["accuracy"]


def test_the_control_of_the_two_stages_has_as_many_updates(graph, monkeypatch):
    seen = []
    original = claims.fit_joint

    def watched(*arguments, epochs, **options):
        seen.append(epochs)
        return original(*arguments, epochs=epochs, **options)

    monkeypatch.setattr(claims, "fit_joint", watched)
    for arm in ("gcn", "gcn_400"):
        claims.joint(trial(arm, "joint"), graph)
    assert seen[1] == 2 * seen[0]


def test_two_stages_differ_from_joint_training(graph):
    joint, staged = (claims.joint(trial(f"pairwise_distance_{way}", "joint"), graph) for way in ("joint", "two_stage"))
    assert joint["val_loss"] != staged["val_loss"]
