"""SharpnessTracker: when it measures, what it leaves alone, and the edge it compares with."""

import math

import pytest
import torch
from torch import nn

from etude.training.opposing_signals import SharpnessTracker, cross_entropy, sharpness
from etude.training.opposing_signals.examples import full_batch_backward


def train(model, x, y, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        full_batch_backward(model, cross_entropy, (x, y))
        optimizer.step()


def test_it_measures_every_so_many_updates_before_the_update(problem):
    model, x, y = problem
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    at_start = float(sharpness(model, cross_entropy, (x, y), tol=1e-6))
    tracker = SharpnessTracker(model, cross_entropy, (x, y), every=3, tol=1e-6).attach(optimizer)
    train(model, x, y, optimizer, 6)
    assert tracker.steps == [0, 3]
    assert float(tracker.values[0]) == pytest.approx(at_start, rel=1e-4)
    at_six = float(sharpness(model, cross_entropy, (x, y), tol=1e-6))
    train(model, x, y, optimizer, 1)
    assert tracker.steps == [0, 3, 6]
    assert float(tracker.values[2]) == pytest.approx(at_six, rel=1e-4)
    assert tracker.peak == pytest.approx(max(tracker.values).item())


def test_the_training_run_is_the_same_bit_for_bit_with_it(problem):
    model, x, y = problem
    twin = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    twin.load_state_dict(model.state_dict())
    for network, watched in ((model, True), (twin, False)):
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
        if watched:
            SharpnessTracker(network, cross_entropy, (x, y), every=2).attach(optimizer)
        train(network, x, y, optimizer, 7)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters()))


def test_without_a_hook_step_counts_the_updates(problem):
    model, x, y = problem
    tracker = SharpnessTracker(model, cross_entropy, (x, y), every=2)
    assert [tracker.step() is not None for _ in range(5)] == [True, False, True, False, True]
    assert math.isnan(tracker.records[0].threshold)


def test_ratios_compare_with_the_learning_rate_of_the_moment(problem):
    model, x, y = problem
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    tracker = SharpnessTracker(model, cross_entropy, (x, y), every=1).attach(optimizer)
    train(model, x, y, optimizer, 1)
    optimizer.param_groups[0]["lr"] = 1e4
    train(model, x, y, optimizer, 1)
    first, second = tracker.records
    assert first.ratio == pytest.approx(first.values[0] * 0.5 / 2)
    assert second.ratio == pytest.approx(second.values[0] * 1e4 / 2)
    assert tracker.edge_step == 1
    assert tracker.ratios.tolist() == pytest.approx([first.ratio, second.ratio])


def test_a_direction_that_overtakes_the_tracked_one_is_found():
    class TwoValleys(nn.Module):
        """Curvature 1 and `other` along two axes that do not mix: an exact start in one never sees the other."""

        def __init__(self):
            super().__init__()
            self.theta = nn.Parameter(torch.ones(40, dtype=torch.float64))
            self.other = 0.5

        def forward(self, x):
            curvatures = torch.full((40,), 0.01, dtype=torch.float64)
            curvatures[0], curvatures[1] = 1.0, self.other
            return (curvatures * self.theta.square() / 2).sum().expand(len(x))

    model = TwoValleys()
    data = torch.zeros(2, 1), torch.zeros(2)
    tracker = SharpnessTracker(model, lambda outputs, targets: outputs, data, every=1, n_iter=4)
    tracker.step()
    model.other = 3.0
    tracker.step()
    assert tracker.values.tolist() == pytest.approx([1.0, 3.0], rel=1e-3)


def test_a_preconditioned_tracker_measures_what_adam_sees(problem):
    model, x, y = problem
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    tracker = SharpnessTracker(model, cross_entropy, (x, y), every=1, preconditioned=True, tol=1e-5).attach(optimizer)
    train(model, x, y, optimizer, 2)
    assert tracker.steps == [1]
    plain = float(sharpness(model, cross_entropy, (x, y)))
    assert tracker.values[0] > 10 * plain
    assert tracker.records[0].threshold == pytest.approx(3800.0)


def test_after_remove_nothing_is_measured(problem):
    model, x, y = problem
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker = SharpnessTracker(model, cross_entropy, (x, y), every=1).attach(optimizer)
    with pytest.raises(RuntimeError, match="attached already"):
        tracker.attach(optimizer)
    tracker.remove()
    tracker.remove()
    train(model, x, y, optimizer, 2)
    assert tracker.records == []
    with pytest.raises(ValueError, match="no sharpness has been measured"):
        tracker.peak  # noqa: B018


def test_a_measurement_that_fails_does_not_end_the_run(problem, caplog):
    model, x, y = problem
    tracker = SharpnessTracker(model, cross_entropy, (x, y), every=1, n_iter=3, tol=1e-14, max_products=3)
    record = tracker.step()
    assert math.isnan(record.values[0])
    assert "step 0: no eigenpair reached" in caplog.text


def test_divergence_stops_with_the_number_of_the_update(problem):
    model, x, y = problem
    tracker = SharpnessTracker(model, cross_entropy, (x, y), every=1)
    tracker.step()
    with torch.no_grad():
        model[0].bias.fill_(math.nan)
    with pytest.raises(FloatingPointError, match=r"before update 1: .* diverged"):
        tracker.step()


def test_bad_arguments_are_refused(problem):
    model, x, y = problem
    with pytest.raises(ValueError, match="every must be positive, got 0"):
        SharpnessTracker(model, cross_entropy, (x, y), every=0)
    with pytest.raises(RuntimeError, match="attach"):
        SharpnessTracker(model, cross_entropy, (x, y), preconditioned=True).step()
    for p in model.parameters():
        p.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter requires a gradient"):
        SharpnessTracker(model, cross_entropy, (x, y))
