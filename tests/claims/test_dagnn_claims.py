"""What the claims of DAGNN do to graphs before they train: splits drawn by seed, loaders that add masks."""

import pytest
import torch

from etude.claims.graphs import dagnn as claims
from etude.graphs.dagnn import contextual_sbm


@pytest.fixture(scope="module")
def data():
    return contextual_sbm(600, 3, train_per_class=20, num_val=100, num_test=200)


def test_few_labels_are_drawn_outside_validation_and_test_which_stay(data):
    drawn = [claims._few_labels(data, 5, torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    for few in drawn:
        assert torch.bincount(data.y[few.train_mask]).tolist() == [5, 5, 5]
        assert torch.equal(few.val_mask, data.val_mask)
        assert torch.equal(few.test_mask, data.test_mask)
        assert not bool((few.train_mask & (data.val_mask | data.test_mask)).any())
    assert not torch.equal(drawn[0].train_mask, drawn[1].train_mask)


def test_random_splits_take_so_many_of_each_class_and_leave_the_rest_to_test(data):
    split = claims._random_split(data, torch.Generator().manual_seed(0))
    assert torch.bincount(data.y[split.train_mask]).tolist() == [20, 20, 20]
    assert torch.bincount(data.y[split.val_mask]).tolist() == [30, 30, 30]
    assert bool((split.train_mask | split.val_mask | split.test_mask).all())


def test_a_graph_without_masks_is_split_when_a_trial_takes_it(data):
    pyg = pytest.importorskip("torch_geometric.data")
    bare = claims._splittable(pyg.Data(x=data.x, edge_index=data.edge_index, y=data.y), "amazon-photo")
    from etude.lab import Setup, Trial

    bench = claims.Workbench(Trial("dagnn/accuracy@amazon-photo", "gcn", 0, setup=Setup()), bare)
    assert int(bench.masks["train"].sum()) == 60
    assert int(bench.masks["test"].sum()) == 600 - 150


def test_every_published_setting_builds_its_network():
    for name, settings in claims.PUBLISHED.items():
        architecture = {key: settings[key] for key in ("hidden_dim", "norm", "input_dropout") if key in settings}
        model = claims.DAGNN(128, 40, num_hops=settings["num_hops"], dropout=settings["dropout"], **architecture)
        size = sum(parameter.numel() for parameter in model.parameters())
        assert size == (43_857 if name == "ogbn-arxiv" else 128 * 64 + 64 + 64 * 40 + 40 + 41)
