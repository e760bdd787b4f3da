import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from etude.data.kinds import Examples
from etude.loop import accuracy, evaluate, mean_loss, outputs_of


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))


@pytest.fixture
def examples():
    return Examples(torch.randn(37, 4), torch.arange(37) % 3)


def test_accuracy_counts_the_largest_output():
    scores = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    assert accuracy(scores, torch.tensor([1, 0, 0, 0])) == 0.75


def test_accuracy_counts_every_position_of_a_sequence():
    scores = F.one_hot(torch.tensor([[0, 1, 2], [2, 2, 2]]), 3).float()
    assert accuracy(scores, torch.tensor([[0, 1, 0], [2, 2, 2]])) == pytest.approx(5 / 6)


def test_batches_do_not_change_the_result(model, examples):
    whole = evaluate(model, examples, metrics={"accuracy": accuracy, "loss": mean_loss}, batch_size=37)
    parts = evaluate(model, examples, metrics={"accuracy": accuracy, "loss": mean_loss}, batch_size=5)
    assert whole == pytest.approx(parts, rel=1e-5)


def test_evaluation_is_in_evaluation_mode_and_restores_the_modes(model, examples):
    model[2].eval()
    outputs_of(model, examples, batch_size=10)
    torch.testing.assert_close(model[1].running_mean, torch.zeros(8))
    assert model.training
    assert model[1].training
    assert not model[2].training


def test_evaluation_builds_no_graph_and_draws_no_random_number(model, examples):
    before = torch.get_rng_state()
    outputs, _ = outputs_of(model, TensorDataset(*examples[:]))
    assert not outputs.requires_grad
    assert torch.equal(before, torch.get_rng_state())


def test_datasets_and_loaders_give_what_examples_give(model, examples):
    dataset = TensorDataset(*examples[:])
    expected = mean_loss(model, examples)
    assert mean_loss(model, dataset) == pytest.approx(expected)
    assert mean_loss(model, DataLoader(dataset, batch_size=7)) == pytest.approx(expected)


def test_a_metric_of_ones_own_gets_all_outputs_and_targets(model, examples):
    seen = evaluate(model, examples, metrics={"rows": lambda outputs, targets: len(outputs) + len(targets)})
    assert seen == {"rows": 74.0}


def test_no_examples_are_refused(model):
    with pytest.raises(ValueError, match="no examples to evaluate on"):
        accuracy(model, Examples(torch.zeros(0, 4), torch.zeros(0)))


def test_targets_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(5,\), got \(5, 1\)"):
        accuracy(torch.zeros(5, 3), torch.zeros(5, 1))


def test_a_model_with_several_outputs_is_refused(examples):
    class Pair(nn.Module):
        def forward(self, inputs):
            return inputs, inputs

    with pytest.raises(TypeError, match="one tensor to be evaluated, got tuple"):
        accuracy(Pair(), examples)
