"""The training of the paper's code: its choice of the epoch, its early stop, and what it must not look at."""

import pytest
import torch
from torch import nn

from etude.graphs.dagnn import DAGNN, Propagator, accuracy, contextual_sbm, fit_nodes


class Scripted(nn.Module):
    """Gives logits whose validation loss follows a script, one entry an epoch, whatever the parameter does."""

    def __init__(self, losses):
        super().__init__()
        self.losses, self.epoch = losses, 0
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x, *, adj):
        if self.training:
            return x * (1 + 0 * self.weight)
        self.seen.fill_(self.epoch + 1)
        # The loss of a node of class 0 with logits (0, a) is log(1 + e^a).
        a = torch.tensor(self.losses[self.epoch]).expm1().log()
        self.epoch += 1
        return torch.stack([torch.zeros(len(x)), a.expand(len(x))], dim=1)


def fit(losses, **arguments):
    model = Scripted(losses)
    train, val = torch.tensor([True, False, False]), torch.tensor([False, True, True])
    adj = Propagator.from_edges(torch.empty(2, 0, dtype=torch.int64), 3)
    y = torch.zeros(3, dtype=torch.int64)
    return model, fit_nodes(model, torch.zeros(3, 2), adj, y, train, val, epochs=len(losses), **arguments)


def test_the_weights_of_the_lowest_validation_loss_are_kept():
    model, result = fit([0.9, 0.3, 0.5, 0.2, 0.6, 0.7], patience=0)
    assert (result.best_epoch, result.epochs) == (4, 6)
    assert int(model.seen) == 4
    assert abs(result.val_loss - 0.2) < 1e-6
    assert not model.training


def test_training_stops_after_half_the_epochs_when_the_loss_exceeds_its_recent_mean():
    losses = [0.5, 0.9, 0.4, 0.4, 0.4, 0.39, 0.41, 0.3, 0.3, 0.3]
    assert fit(losses, patience=2)[1].epochs == 7  # 0.9 comes too early, 0.41 > (0.4 + 0.39) / 2
    assert fit(losses, patience=0)[1].epochs == 10


def test_the_epoch_may_be_chosen_by_accuracy():
    # Losses under log 2 mean that class 0 wins: accuracy 1 from the second epoch on, the first such epoch stays.
    assert fit([0.9, 0.6, 0.5, 0.4], patience=0, select="accuracy")[1].best_epoch == 2


def test_labels_outside_the_masks_are_not_looked_at():
    data = contextual_sbm(200, 3, num_features=8, train_per_class=5, num_val=40, num_test=60)
    adj = Propagator.from_edges(data.edge_index, 200)
    results = []
    for labels in (data.y, torch.where(data.test_mask, (data.y + 1) % 3, data.y)):
        torch.manual_seed(0)
        model = DAGNN(8, 3, hidden_dim=8, num_hops=2)
        fit_nodes(model, data.x, adj, labels, data.train_mask, data.val_mask, epochs=5)
        results.append(torch.cat([parameter.flatten() for parameter in model.parameters()]))
    assert torch.equal(*results)


def test_the_callback_hears_of_every_epoch():
    heard = []
    fit([0.5, 0.4, 0.3], patience=0, callback=lambda epoch, total, **metrics: heard.append((epoch, total, metrics)))
    assert [entry[:2] for entry in heard] == [(1, 3), (2, 3), (3, 3)]
    assert abs(heard[1][2]["val_loss"] - 0.4) < 1e-6


def test_accuracy_counts_only_the_nodes_of_the_mask():
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    y = torch.tensor([0, 0, 0])
    assert accuracy(logits, y, torch.tensor([True, True, False])) == 0.5


def test_a_loss_that_is_never_finite_is_an_error():
    with pytest.raises(FloatingPointError, match="nan"):
        fit([float("nan"), float("nan")])


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        ([False, False], [True, False], "train_mask selects no node"),
        ([True, False], [False, False], "val_mask selects no node"),
        ([True, True], [False, True], "must not overlap, 1 nodes"),
        ([1, 0], [False, True], "train_mask must be bool"),
    ],
)
def test_impossible_masks_are_refused(train, val, message):
    from etude.graphs.dagnn.training import _check_masks

    with pytest.raises(ValueError, match=message):
        _check_masks(2, torch.tensor(train), torch.tensor(val))
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        _check_masks(3, torch.tensor([True, False]), torch.tensor([False, True]))


def test_a_number_of_epochs_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="epochs must be at least 1, got 0"):
        fit([])
