"""The long-tailed split, the balanced softmax and the accuracies by number of shots."""

import math

import pytest
import torch
import torch.nn.functional as F

from etude.training.batchformer import BalancedSoftmaxLoss, long_tailed_counts, long_tailed_indices, shot_accuracy


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_counts_are_those_of_cifar_100_lt():
    counts = long_tailed_counts(500, 100, 100)
    assert counts[:4] == [500, 477, 455, 434]
    assert counts[-1] == 5
    assert sum(counts) == 10_847


def test_counts_of_the_small_experiment():
    assert long_tailed_counts(300, 10, 100) == [300, 179, 107, 64, 38, 23, 13, 8, 5, 3]


def test_step_profile_and_no_imbalance():
    assert long_tailed_counts(50, 5, 10, "step") == [50, 50, 5, 5, 5]
    assert long_tailed_counts(7, 3, 1) == [7, 7, 7]


def test_the_rarest_class_keeps_one_sample_when_the_imbalance_is_the_largest_count():
    assert all(long_tailed_counts(most, 3, most)[-1] == 1 for most in range(1, 200))


def test_indices_reproduce_the_counts_in_the_order_of_the_classes():
    labels = torch.arange(5).repeat(40)[torch.randperm(200, generator=seeded())]
    order = [3, 0, 4, 1, 2]
    chosen = long_tailed_indices(labels, 10, 40, class_order=order, generator=seeded(1))
    counts = torch.bincount(labels[chosen], minlength=5)
    assert [int(counts[label]) for label in order] == long_tailed_counts(40, 5, 10)
    assert len(set(chosen.tolist())) == len(chosen)
    assert torch.equal(chosen, chosen.sort().values)
    assert torch.equal(chosen, long_tailed_indices(labels, 10, 40, class_order=order, generator=seeded(1)))
    assert not torch.equal(chosen, long_tailed_indices(labels, 10, 40, class_order=order, generator=seeded(2)))


def test_indices_of_cifar_100_labels_are_cifar_100_lt():
    labels = torch.arange(100).repeat_interleave(500)
    chosen = long_tailed_indices(labels, generator=seeded())
    assert torch.bincount(labels[chosen]).tolist() == long_tailed_counts(500, 100, 100)


def test_every_member_of_a_class_can_be_chosen():
    labels = torch.tensor([0] * 4 + [1] * 4)
    generator = seeded()
    seen = {int(i) for _ in range(60) for i in long_tailed_indices(labels, 4, 4, generator=generator)}
    assert seen == set(range(8))


def test_equal_counts_make_the_balanced_softmax_a_cross_entropy():
    logits, y = torch.randn(6, 4, generator=seeded()), torch.tensor([0, 1, 2, 3, 0, 1])
    torch.testing.assert_close(BalancedSoftmaxLoss([7, 7, 7, 7])(logits, y), F.cross_entropy(logits, y))


def test_balanced_softmax_weighs_classes_by_their_frequency():
    logits, y = torch.randn(5, 3, generator=seeded()), torch.tensor([0, 1, 2, 2, 1])
    counts = torch.tensor([100.0, 10.0, 1.0])
    weighed = counts * logits.exp()
    expected = -(weighed[torch.arange(5), y] / weighed.sum(dim=1)).log().mean()
    torch.testing.assert_close(BalancedSoftmaxLoss(counts)(logits, y), expected)
    torch.testing.assert_close(BalancedSoftmaxLoss(counts, tau=0)(logits, y), F.cross_entropy(logits, y))


def test_balanced_softmax_takes_soft_labels():
    logits, y = torch.randn(5, 3, generator=seeded()), torch.tensor([0, 1, 2, 2, 1])
    loss = BalancedSoftmaxLoss([5, 2, 1])
    torch.testing.assert_close(loss(logits, F.one_hot(y, 3).float()), loss(logits, y))


def test_shot_accuracy_is_the_mean_over_classes_of_each_group():
    counts = [300, 101, 100, 20, 19, 2]
    y = torch.tensor([0, 0, 0, 0, 1, 2, 2, 3, 4, 5, 5, 5, 5])
    pred = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3, 0, 5, 0, 0, 0])
    scores = shot_accuracy(pred, y, counts)
    assert scores["many"] == pytest.approx((3 / 4 + 1) / 2)
    assert scores["medium"] == pytest.approx((1 / 2 + 1) / 2)
    assert scores["few"] == pytest.approx((0 + 1 / 4) / 2)
    assert scores["all"] == pytest.approx((3 / 4 + 1 + 1 / 2 + 1 + 0 + 1 / 4) / 6)


def test_a_group_without_a_class_is_nan_and_absent_classes_do_not_count():
    scores = shot_accuracy(torch.tensor([0, 1]), torch.tensor([0, 0]), [50, 30, 4])
    assert scores["medium"] == scores["all"] == 0.5
    assert math.isnan(scores["many"])
    assert math.isnan(scores["few"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 3), "got 0 and 3"),
        ((5, 1), "got 5 and 1"),
        ((5, 3, 0.5), "at least 1, got 0.5"),
        ((5, 3, 10), "imbalance 10 must not exceed max_per_class 5"),
    ],
)
def test_impossible_profiles_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        long_tailed_counts(*arguments)


def test_labels_that_do_not_fit_are_refused():
    labels = torch.tensor([0, 0, 1])
    with pytest.raises(ValueError, match="class 1 has 1 samples, the profile asks for 2"):
        long_tailed_indices(labels, 1, 2)
    with pytest.raises(ValueError, match=r"each of 0\.\.1 once, got \[0, 0\]"):
        long_tailed_indices(labels, 1, 1, class_order=[0, 0])
    with pytest.raises(ValueError, match=r"0\.\.1 \(2 classes\), got -1\.\.1"):
        long_tailed_indices(torch.tensor([-1, 0, 1]))
    with pytest.raises(ValueError, match="no labels"):
        long_tailed_indices(torch.tensor([], dtype=torch.int64))
    with pytest.raises(ValueError, match="'exp' or 'step', got 'linear'"):
        long_tailed_counts(5, 3, 1, "linear")
    with pytest.raises(ValueError, match="few 30 and many 20"):
        shot_accuracy(labels, labels, [1, 1], many=20, few=30)
    with pytest.raises(ValueError, match="got 2 and 3"):
        shot_accuracy(labels[:2], labels, [1, 1])


def test_bad_input_to_the_balanced_softmax_is_refused():
    with pytest.raises(ValueError, match="got 0 for class 1 and 1 more: a class that never occurs has no prior"):
        BalancedSoftmaxLoss([3, 0, 2, 0])
    with pytest.raises(ValueError, match=r"shape \(1, 2\)"):
        BalancedSoftmaxLoss(torch.ones(1, 2))
    with pytest.raises(ValueError, match=r"tau must be finite and >= 0, got -1"):
        BalancedSoftmaxLoss([3, 2], tau=-1)
    loss = BalancedSoftmaxLoss([3, 2])
    with pytest.raises(ValueError, match=r"\(batch, 2\), got \(4, 3\)"):
        loss(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"0\.\.1 \(2 classes\), got 0\.\.2"):
        loss(torch.zeros(3, 2), torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="got 2 and 3"):
        loss(torch.zeros(3, 2), torch.tensor([0, 1]))
