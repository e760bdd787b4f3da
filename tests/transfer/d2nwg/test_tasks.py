import pytest
import torch

from etude.transfer.d2nwg import PrincipalFeatures, TaskSampler, as_support


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


LABELS = torch.tensor([5, 5, 5, 9, 9, 9, 9, 2, 2, 2])


def test_tasks_have_different_classes_in_random_order_and_rows_are_theirs():
    sampler = TaskSampler(LABELS, ways=2)
    assert sampler.classes == [2, 5, 9]
    assert sampler.counts.tolist() == [3, 3, 4]
    tasks = sampler.draw(300, generator())
    assert bool((tasks[:, 0] != tasks[:, 1]).all())
    assert len(tasks.unique(dim=0)) == 6  # every ordered pair
    rows = sampler.rows(tasks, 3, generator(1))
    assert torch.equal(LABELS[rows], torch.tensor(sampler.classes)[tasks][..., None].expand(-1, -1, 3))
    assert all(len(set(row.tolist())) == 3 for row in rows.flatten(0, 1))
    assert torch.equal(tasks, sampler.draw(300, generator()))
    assert {row for row, label in zip(rows.flatten().tolist(), LABELS[rows].flatten().tolist()) if label == 9} == set(
        range(3, 7)
    )


def test_tasks_of_a_column_take_their_classes_from_one_value():
    labels = ["a", "b", "a", "b", "c", "a", "c", "a"]
    column = ["x", "x", "x", "y", "y", "y", "y", "y"]
    sampler = TaskSampler(labels, ways=2, column=column)
    assert sampler.classes == [("x", "a"), ("x", "b"), ("y", "a"), ("y", "b"), ("y", "c")]
    tasks = sampler.draw(200, generator())
    homes = [[sampler.classes[index][0] for index in task] for task in tasks.tolist()]
    assert all(a == b for a, b in homes)
    assert {home[0] for home in homes} == {"x", "y"}
    assert sampler.rows(tasks, 1, generator()).shape == (200, 2, 1)


def test_only_some_labels_or_values_are_used():
    sampler = TaskSampler(LABELS, only=[2, 9])
    assert sampler.classes == [2, 9]
    assert sampler.all_rows.tolist() == [3, 4, 5, 6, 7, 8, 9]
    rows = sampler.rows(sampler.draw(50, generator()), 2, generator())
    assert set(LABELS[rows].flatten().tolist()) == {2, 9}
    columns = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1, 1])
    assert TaskSampler(LABELS, column=columns, only=[1]).classes == [(1, 2), (1, 9)]


def test_a_task_with_one_class_and_other_bad_tasks_are_refused():
    with pytest.raises(ValueError, match=r"the task 'y' has one class; 2 are needed"):
        TaskSampler(["a", "b", "a"], column=["x", "x", "y"])
    with pytest.raises(ValueError, match="the rows have one class"):
        TaskSampler([1, 1])
    with pytest.raises(ValueError, match="3 classes; 4 are needed"):
        TaskSampler(LABELS, ways=4)
    with pytest.raises(ValueError, match="two classes or more"):
        TaskSampler(LABELS, ways=1)
    with pytest.raises(ValueError, match=r"no rows of \[7\]"):
        TaskSampler(LABELS, only=[2, 7])
    with pytest.raises(ValueError, match="one value per row, 10, got 3"):
        TaskSampler(LABELS, column=[1, 2, 3])
    with pytest.raises(ValueError, match="whole numbers or strings"):
        TaskSampler(torch.rand(4))
    sampler = TaskSampler(LABELS)
    with pytest.raises(ValueError, match="class 2 has 3 rows, 4 are needed"):
        sampler.rows(torch.tensor([[0, 2]]), 4, generator())
    with pytest.raises(ValueError, match=r"classes 0..2, got 0..5"):
        sampler.rows(torch.tensor([[0, 5]]), 1, generator())
    with pytest.raises(ValueError, match="n=0"):
        sampler.draw(0, generator())


def test_a_support_is_parted_by_class_and_must_have_each():
    x = torch.arange(10.0).view(5, 2)
    support, mask = as_support(x, torch.tensor([1, 0, 1, 1, 0]), 2)
    assert mask.tolist() == [[True, True, False], [True, True, True]]
    assert torch.equal(support[1], x[[0, 2, 3]])
    assert torch.equal(support[0, :2], x[[1, 4]])
    with pytest.raises(ValueError, match="no row of class 2"):
        as_support(x, torch.tensor([1, 0, 1, 1, 0]), 3)
    with pytest.raises(ValueError, match=r"labels must lie in 0..1, got 0..2"):
        as_support(x, torch.tensor([1, 0, 2, 1, 0]), 2)


def test_principal_features_have_the_root_of_the_standard_deviation():
    x = torch.randn(200, 6, generator=generator()) * torch.tensor([5.0, 3.0, 2.0, 1.0, 0.5, 0.1])
    raw, scaled = PrincipalFeatures(3, power=0).fit(x)(x), PrincipalFeatures(3).fit(x)(x)
    torch.testing.assert_close(scaled.std(dim=0), raw.std(dim=0).sqrt(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(PrincipalFeatures(3, power=1).fit(x)(x).std(dim=0), torch.ones(3), rtol=1e-4, atol=1e-5)
    singular = torch.linalg.svdvals((x - x.mean(0)).double())[:3] / 199**0.5
    torch.testing.assert_close(raw.std(dim=0).double(), singular, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="rows of 6 entries"):
        PrincipalFeatures(3).fit(x)(x[:, :4])
    with pytest.raises(ValueError, match="equal"):
        PrincipalFeatures(3).fit(torch.ones(5, 4))
    with pytest.raises(RuntimeError, match="fit"):
        PrincipalFeatures(3)(x)
