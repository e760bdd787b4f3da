"""The reward: its limits, its slope, and constraints that stay hard once they are."""

from functools import partial

import pytest
import torch

from etude.nas.n2n import compression_reward, softening
from etude.nas.n2n.compression import Limits, best_within
from etude.nas.n2n.search import Tried

reward = partial(compression_reward, reference_accuracy=0.8, reference_params=1000)


def test_nothing_saved_is_worth_nothing_and_all_saved_the_accuracy():
    assert reward(0.8, 1000) == 0
    assert reward(0.6, 0) == pytest.approx(0.75)
    assert reward(0.8, 500) == pytest.approx(0.75)


@pytest.mark.parametrize("params", [100, 500, 900])
def test_the_slope_in_compression_is_2_minus_2c(params):
    slope = (reward(0.8, params - 1) - reward(0.8, params + 1)) / 0.002
    assert slope == pytest.approx(2 - 2 * (1 - params / 1000), abs=1e-9)


def test_it_grows_with_accuracy_and_compression():
    accuracies = [reward(place / 10, 300) for place in range(11)]
    sizes = [reward(0.7, params) for params in range(1000, -1, -50)]
    assert accuracies == sorted(set(accuracies))
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("limit", [{"max_params": 100}, {"min_accuracy": 0.75}])
def test_broken_constraints_harden_over_15_epochs_and_stay_hard(limit):
    free = reward(0.7, 200)
    assert reward(0.7, 200, epoch=0, **limit) == pytest.approx(free)
    eps = 0.4096
    assert softening(3) == pytest.approx(eps, abs=1e-12)
    assert reward(0.7, 200, epoch=3, **limit) == pytest.approx(eps * free + eps - 1)
    assert {reward(0.7, 200, epoch=epoch, **limit) for epoch in (15, 16, 30, 40, None)} == {-1.0}


def test_a_met_constraint_changes_nothing():
    assert reward(0.75, 100, epoch=40, max_params=100, min_accuracy=0.75) == reward(0.75, 100)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((float("nan"), 10, 0.8, 1000), "accuracy must be a finite number of at least 0, got nan"),
        ((0.5, 10, 0.0, 1000), "the reference must have some accuracy"),
        ((0.5, -1, 0.8, 1000), "params must not be negative, got -1"),
    ],
)
def test_bad_values_are_refused(arguments, message):
    accuracy, params, reference_accuracy, reference_params = arguments
    with pytest.raises(ValueError, match=message):
        compression_reward(accuracy, params, reference_accuracy=reference_accuracy, reference_params=reference_params)
    with pytest.raises(ValueError, match="epoch must not be negative"):
        reward(0.7, 900, max_params=1, epoch=-1)


def test_the_best_student_lies_within_the_limits_and_is_valid():
    def tried(number, accuracy, params, reward):
        return Tried(number, 0, torch.ones(1), reward, accuracy, params, "" if accuracy is not None else "no network")

    history = [tried(0, 0.9, 900, 0.9), tried(1, 0.7, 90, 0.1), tried(2, 0.8, 95, 0.2), tried(3, None, 10, -1.0),
               tried(4, 0.8, 95, 0.2)]  # fmt: skip
    assert best_within(history, Limits(0.8, 1000, max_params=100)).id == 2
    assert best_within(history, Limits(0.8, 1000, max_params=50)) is None
    assert best_within(history, Limits(0.8, 1000, min_accuracy=0.85)).id == 0
