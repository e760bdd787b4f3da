import pytest
import torch

from etude.transfer.streams import (
    average_accuracy,
    backward_transfer,
    class_incremental_splits,
    forgetting,
    forward_transfer,
)

R = torch.tensor([[0.9, 0.1, 0.2], [0.7, 0.8, 0.3], [0.6, 0.85, 0.7]])


def test_splits_part_every_example_by_class():
    labels = torch.tensor([3, 1, 0, 3, 7, 1, 0])
    phases = class_incremental_splits(labels, 2)
    assert [phase.tolist() for phase in phases] == [[1, 2, 5, 6], [0, 3, 4]]
    assert torch.equal(torch.cat(phases).sort().values, torch.arange(len(labels)))


def test_the_order_of_classes_is_the_generators():
    labels = torch.arange(10).repeat(3)
    first, again, other = (
        class_incremental_splits(labels, 5, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not torch.equal(first[0], other[0])
    for phases in (first, other):
        assert [len(labels[phase].unique()) for phase in phases] == [5, 5]
        assert torch.equal(torch.cat(phases).sort().values, torch.arange(30))


def test_a_last_phase_takes_what_is_left_over():
    phases = class_incremental_splits(torch.arange(5), 2)
    assert [len(phase) for phase in phases] == [2, 2, 1]


@pytest.mark.parametrize("size", [0, 4])
def test_split_sizes_outside_the_classes_are_refused(size):
    with pytest.raises(ValueError, match=f"1..3, the number of classes, got {size}"):
        class_incremental_splits(torch.tensor([0, 1, 2, 2]), size)


def test_labels_must_exist():
    with pytest.raises(ValueError, match=r"n > 0, got \(0,\)"):
        class_incremental_splits(torch.zeros(0, dtype=torch.int64))


def test_measures_by_hand():
    assert average_accuracy(R) == pytest.approx((0.6 + 0.85 + 0.7) / 3)
    assert forgetting(R) == pytest.approx(((0.9 - 0.6) + (0.8 - 0.85)) / 2)
    assert backward_transfer(R) == pytest.approx(((0.6 - 0.9) + (0.85 - 0.8)) / 2)
    assert forward_transfer(R, torch.tensor([0.5, 0.2, 0.1])) == pytest.approx(((0.1 - 0.2) + (0.3 - 0.1)) / 2)


def test_a_learner_that_keeps_everything_forgets_nothing():
    kept = torch.tensor([[0.9, 0.0], [0.9, 0.8]])
    assert forgetting(kept) == 0
    assert backward_transfer(kept) == 0


def test_one_task_has_nothing_to_forget_or_transfer():
    one = torch.tensor([[0.7]])
    assert forgetting(one) == backward_transfer(one) == forward_transfer(one, torch.tensor([0.5])) == 0
    assert average_accuracy(one) == pytest.approx(0.7)


@pytest.mark.parametrize("measure", [average_accuracy, forgetting, backward_transfer])
def test_matrices_must_be_square_and_whole(measure):
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        measure(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="NaN"):
        measure(torch.tensor([[0.5, float("nan")], [0.5, 0.5]]))


def test_the_baseline_must_be_of_the_same_tasks():
    with pytest.raises(ValueError, match=r"\(3,\), got \(2,\)"):
        forward_transfer(R, torch.zeros(2))
