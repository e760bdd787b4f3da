"""OpposingSignalMonitor: loss changes against a naive reference, what it leaves alone, and its refusals."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from etude.loop import seeded
from etude.training.opposing_signals import (
    OpposingSignalMonitor,
    change_share,
    cross_entropy,
    example_losses,
    flip_count,
    full_batch_backward,
    oscillation,
)


def naive_losses(model, x, y):
    with torch.no_grad():
        return torch.stack([F.cross_entropy(model(row[None]), label[None]) for row, label in zip(x, y)])


def update(model, x, y, optimizer):
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


@pytest.mark.parametrize("batch_size", [None, 7])
def test_changes_are_those_of_each_examples_loss_over_the_update(problem, batch_size):
    model, x, y = problem
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    monitor = OpposingSignalMonitor(model, cross_entropy, x, y, k=5, batch_size=batch_size)
    for step in range(3):
        before = naive_losses(model, x, y)
        monitor.step_begin()
        update(model, x, y, optimizer)
        record = monitor.step_end()
        delta = naive_losses(model, x, y) - before
        assert record.step == step
        torch.testing.assert_close(record.delta, delta)
        order = delta.argsort()
        up, down, found = monitor.groups()
        assert up.tolist() == order.flip(0)[:5].tolist()
        assert down.tolist() == order[:5].tolist()
        assert torch.equal(found, record.delta)
        assert record.rising == (delta > 0).double().mean().item()
        assert record.share == pytest.approx(
            float((delta[up].abs().sum() + delta[down].abs().sum()) / delta.abs().sum())
        )


def test_with_mini_batches_the_losses_are_those_of_the_fixed_set(problem):
    model, x, y = problem
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    monitor = OpposingSignalMonitor(model, cross_entropy, x, y)
    before = naive_losses(model, x, y)
    monitor.step_begin()
    update(model, x[:6], y[:6], optimizer)
    torch.testing.assert_close(monitor.step_end().delta, naive_losses(model, x, y) - before)


def test_watched_by_a_hook_and_by_hand_are_the_same_and_leave_the_run_alone(problem):
    model, x, y = problem
    twins = [nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4)).double() for _ in range(2)]
    results = []
    for network, hooked in zip((model, *twins), (True, False, None)):
        if network is not model:
            network.load_state_dict(results[0][2])
        start = {name: value.clone() for name, value in network.state_dict().items()}
        optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
        monitor = OpposingSignalMonitor(network, cross_entropy, x, y)
        if hooked:
            monitor.attach(optimizer, every=2)
        for step in range(5):
            if hooked is False and step % 2 == 0:
                monitor.step_begin()
            update(network, x, y, optimizer)
            if hooked is False:
                if step % 2 == 0:
                    monitor.step_end()
                else:
                    monitor._count += 1
        results.append((monitor, [p.detach().clone() for p in network.parameters()], start))
    assert results[0][0].steps == results[1][0].steps == [0, 2, 4]
    for ours, theirs in zip(results[0][0].records, results[1][0].records):
        assert torch.equal(ours.delta, theirs.delta)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0][1], other[1]))


class Counting(nn.Linear):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


def test_a_record_costs_one_forward_pass_and_a_parameter_written_in_between_a_second():
    model = Counting(4, 3)
    x, y = torch.randn(10, 4, generator=torch.Generator().manual_seed(0)), torch.arange(10) % 3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = OpposingSignalMonitor(model, cross_entropy, x, y, k=2)
    for passes in (2, 1):
        model.calls = 0
        monitor.step_begin()
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        monitor.step_end()
        assert model.calls == passes
    with torch.no_grad():
        model.weight.add_(1.0)
    model.calls = 0
    monitor.step_begin()
    assert model.calls == 1
    torch.testing.assert_close(monitor.step_end().before, naive_losses(model, x, y))


def test_losses_that_the_loop_has_computed_are_taken_over(problem):
    model, x, y = problem
    monitor = OpposingSignalMonitor(model, cross_entropy, x, y)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = full_batch_backward(model, cross_entropy, (x, y), batch_size=9)
    monitor.step_begin(losses)
    optimizer.step()
    assert torch.equal(monitor.step_end().before, losses)
    with pytest.raises(ValueError, match=r"losses must have shape \(40,\), one per example, got \(39,\)"):
        monitor.step_begin(losses[:-1])


def test_batch_norm_is_looked_at_in_training_mode_and_keeps_its_statistics():
    with seeded(0):
        model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).double()
    x, y = torch.randn(12, 4, generator=torch.Generator().manual_seed(1)).double(), torch.arange(12) % 3
    before = {name: value.clone() for name, value in model.state_dict().items()}
    in_training = example_losses(model, cross_entropy, (x, y))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(in_training, F.cross_entropy(model(x), y, reduction="none").detach())
    model.eval()
    assert not torch.allclose(in_training, example_losses(model, cross_entropy, (x, y)))


def test_chunked_batch_norm_and_dropout_are_warned_of():
    x, y = torch.randn(12, 4), torch.arange(12) % 3
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    with pytest.warns(UserWarning, match="batch norm 1 is in training mode and the examples come in 3 chunks"):
        OpposingSignalMonitor(model, cross_entropy, x, y, k=1, batch_size=4)
    model.eval()
    OpposingSignalMonitor(model, cross_entropy, x, y, k=1, batch_size=4)
    for dropping in (
        nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.1), nn.Linear(6, 3)),
        nn.TransformerEncoderLayer(4, 2, dropout=0.1),
    ):
        with pytest.warns(UserWarning, match="dropout is on"):
            OpposingSignalMonitor(dropping, cross_entropy, x, y, k=1)
        OpposingSignalMonitor(dropping.eval(), cross_entropy, x, y, k=1)


class Indexed(Dataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], self.y[index], index


def test_a_loader_that_yields_indices_may_shuffle(problem):
    model, x, y = problem
    loader = DataLoader(Indexed(x, y), batch_size=7, shuffle=True, generator=torch.Generator().manual_seed(0))
    monitor = OpposingSignalMonitor(model, cross_entropy, loader, k=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = naive_losses(model, x, y)
    monitor.step_begin()
    update(model, x, y, optimizer)
    record = monitor.step_end()
    torch.testing.assert_close(record.delta, naive_losses(model, x, y) - before)
    inputs, targets = monitor.members(record.up)
    assert torch.equal(inputs, x[record.up])
    assert torch.equal(targets, y[record.up])


def test_loaders_that_hide_which_examples_they_yield_are_refused(problem):
    model, x, y = problem
    data = TensorDataset(x, y)
    with pytest.raises(ValueError, match="the loader shuffles"):
        OpposingSignalMonitor(model, cross_entropy, DataLoader(data, batch_size=7, shuffle=True))
    with pytest.raises(ValueError, match="35 of 40 examples: set drop_last=False"):
        OpposingSignalMonitor(model, cross_entropy, DataLoader(data, batch_size=7, drop_last=True))
    with pytest.raises(ValueError, match="its own batch size"):
        OpposingSignalMonitor(model, cross_entropy, DataLoader(data, batch_size=7), batch_size=3)
    plain = OpposingSignalMonitor(model, cross_entropy, DataLoader(data, batch_size=7))
    assert torch.equal(plain.targets, y)


def test_the_report_counts_classes_and_mistakes(problem):
    model, x, y = problem
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0)
    monitor = OpposingSignalMonitor(model, cross_entropy, x, y, k=6)
    monitor.step_begin()
    update(model, x, y, optimizer)
    record = monitor.step_end()
    report = monitor.report()
    predicted = model(x).argmax(1)
    for group, rows in ((report.up, record.up), (report.down, record.down)):
        assert group.change == pytest.approx(record.delta[rows].mean().item())
        assert sum(group.classes.values()) == sum(group.mistakes.values()) == 6
        for label, count in group.classes.items():
            assert count == int((y[rows] == label).sum())
        for (guess, label), count in group.mistakes.items():
            assert count == int(((y[rows] == label) & (predicted[rows] == guess)).sum())
    text = report.text(classes=("plane", "bird", "ship", "frog"))
    assert text.startswith("step 0: loss")
    assert any(name in text for name in ("plane", "bird", "ship", "frog"))


def test_targets_that_are_no_classes_give_groups_without_classes():
    model = nn.Linear(3, 1)
    x = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    monitor = OpposingSignalMonitor(model, lambda out, y: (out - y).square(), x, x.sum(1, keepdim=True), k=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor.step_begin()
    (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
    optimizer.step()
    monitor.step_end()
    assert monitor.report().up.classes == {}
    assert monitor.report().up.mistakes == {}


def test_curves_follow_a_group_through_the_records(problem):
    model, x, y = problem
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    monitor = OpposingSignalMonitor(model, cross_entropy, x, y).attach(optimizer)
    rows, expected = torch.tensor([1, 5, 8]), []
    for _ in range(4):
        update(model, x, y, optimizer)
        expected.append(naive_losses(model, x, y)[rows].mean())
    torch.testing.assert_close(monitor.group_curve(rows), torch.stack(expected))
    assert monitor.most_unstable().change == max(record.change for record in monitor.records)
    monitor.remove()
    update(model, x, y, optimizer)
    assert len(monitor.records) == 4


def test_the_share_of_all_examples_is_one_and_of_none_zero():
    delta = torch.tensor([1.0, -3.0, 0.5, 0.0])
    assert change_share(delta, torch.arange(4)) == 1.0
    assert change_share(delta, torch.tensor([1])) == pytest.approx(3 / 4.5)
    assert change_share(torch.zeros(4), torch.arange(4)) == 0.0


def test_oscillation_is_the_amplitude_of_an_alternation_and_none_of_a_drift():
    steps = torch.arange(50.0)
    swing = 0.3 * (-1.0) ** steps
    assert oscillation(2.0 + swing + 0.01 * steps) == pytest.approx(0.3, rel=1e-4)
    assert oscillation(0.01 * steps) == pytest.approx(0.0, abs=1e-6)
    assert oscillation(steps[:2]) == 0.0
    assert flip_count(swing) == 48
    assert flip_count(steps) == 0


@pytest.mark.parametrize(("k", "size"), [(0.02, 1), (0.1, 4), (0.5, 20), (1, 1), (20, 20)])
def test_k_is_a_fraction_or_a_count(problem, k, size):
    model, x, y = problem
    assert OpposingSignalMonitor(model, cross_entropy, x, y, k=k).k == size


@pytest.mark.parametrize(
    ("k", "message"),
    [
        (21, "two groups of 21 examples need at least 42 examples, there are 40"),
        (0.51, "two groups of 20 examples|need at least"),
        (0.9, "need at least 72 examples, there are 40"),
        (0, "got 0"),
        (-0.1, "got -0.1"),
        (math.nan, "got nan"),
    ],
)
def test_groups_that_do_not_fit_are_refused(problem, k, message):
    model, x, y = problem
    if k == 0.51:
        k = 0.52
    with pytest.raises(ValueError, match=message):
        OpposingSignalMonitor(model, cross_entropy, x, y, k=k)


def test_a_step_size_that_is_too_large_stops_with_the_step_number(problem):
    model, x, y = problem
    monitor = OpposingSignalMonitor(model, cross_entropy, x, y)
    for step in range(2):
        monitor.step_begin()
        if step == 1:
            with torch.no_grad():
                model[2].bias.fill_(math.nan)
            with pytest.raises(FloatingPointError, match="after step 1 the losses of 40 of 40 examples are not finite"):
                monitor.step_end()
        else:
            monitor.step_end()


def test_steps_out_of_turn_are_refused(problem):
    model, x, y = problem
    monitor = OpposingSignalMonitor(model, cross_entropy, x, y)
    with pytest.raises(RuntimeError, match="step_end without step_begin"):
        monitor.step_end()
    with pytest.raises(ValueError, match="no update has been watched"):
        monitor.groups()
    monitor.step_begin()
    with pytest.raises(RuntimeError, match="twice"):
        monitor.step_begin()
    monitor.step_end()
    with pytest.raises(ValueError, match=r"update 7 was not watched; watched are 0\.\.0"):
        monitor.groups(7)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="every must be positive, got 0"):
        monitor.attach(optimizer, every=0)
    monitor.attach(optimizer)
    with pytest.raises(RuntimeError, match="attached already"):
        monitor.attach(optimizer)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ((torch.zeros(3, 4), torch.zeros(2)), ValueError, r"equally many rows, got shapes \(3, 4\) and \(2,\)"),
        ((torch.zeros(0, 4), torch.zeros(0)), ValueError, "no examples"),
        ([1, 2, 3], TypeError, "got list"),
    ],
)
def test_data_of_the_wrong_kind_are_refused(problem, data, error, message):
    with pytest.raises(error, match=message):
        example_losses(problem[0], cross_entropy, data)


def test_a_loss_that_reduces_over_the_examples_is_refused(problem):
    model, x, y = problem
    with pytest.raises(ValueError, match="use reduction='none'"):
        example_losses(model, F.cross_entropy, (x, y))


def test_a_loss_per_token_counts_as_its_mean_per_example():
    tokens = torch.randint(5, (4, 7), generator=torch.Generator().manual_seed(0))
    model = nn.Embedding(5, 5)
    losses = example_losses(
        model, lambda out, y: F.cross_entropy(out.transpose(1, 2), y, reduction="none"), (tokens, tokens)
    )
    expected = torch.stack([F.cross_entropy(model(row), row) for row in tokens])
    torch.testing.assert_close(losses, expected.detach())
