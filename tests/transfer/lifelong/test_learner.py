"""Streams, the accuracy matrix, users' data and refusals."""

import numpy as np
import pytest
import torch

from etude.data.kinds import Examples, ImageData, TableData
from etude.transfer.lifelong import (
    ConsolidatedNet,
    ExemplarMemory,
    FineTune,
    LifelongLearner,
    NonForgetting,
    Task,
    learn_stream,
    permuted_tasks,
    shared_latent_tasks,
    tasks_by_class,
    tasks_by_column,
)


def images(classes=6, n=60):
    generator = torch.Generator().manual_seed(0)

    def part(rows):
        labels = torch.arange(rows) % classes
        return Examples(torch.rand(rows, 1, 4, 4, generator=generator), labels)

    return ImageData(part(n), part(n // 2), part(n // 2), tuple("abcdef"[:classes]), "letters")


def test_the_accuracy_matrix_counts_tasks_not_yet_learned_at_chance():
    tasks = tasks_by_class(images(), 3)
    learner = learn_stream(tasks, NonForgetting(), steps=3)
    assert learner.accuracies.shape == (2, 2)
    assert learner.accuracies[0, 1] == 1 / 3
    row = [learner.accuracy(task.id, *task.test[:]) for task in tasks]
    assert learner.accuracies[1].tolist() == row
    found = learner.metrics(alone=torch.tensor([0.5, 0.25]))
    assert found["forgetting"] == 0.0, "chance on tasks to come does not count, though it may be the higher"
    assert found["average_accuracy"] == pytest.approx(np.mean(row), abs=1e-12)
    assert found["forward_transfer"] == pytest.approx(row[1] - 0.25, abs=1e-12)


def test_without_the_task_all_heads_compete():
    tasks = tasks_by_class(images(), 2)
    learner = learn_stream(tasks, NonForgetting(), steps=5)
    x, y = tasks[1].test[:]
    logits = learner.net(x)
    order = torch.cat([torch.tensor(task.classes) for task in tasks])
    assert torch.equal(learner.predict(x), order[logits.argmax(1)])
    assert torch.equal(learner.predict(x, tasks[1].id), order[2:4][logits[:, 2:4].argmax(1)])
    joint = learner.accuracy(tasks[1].id, x, y, scope="joint")
    assert joint == (learner.predict(x) == y).double().mean().item()
    assert joint <= learner.accuracy(tasks[1].id, x, y)


def test_equal_seeds_give_equal_learners_and_leave_the_global_generator_alone():
    tasks = tasks_by_class(images(), 2)
    state = torch.get_rng_state()
    one, two = (
        learn_stream(tasks, NonForgetting(), steps=4, generator=torch.Generator().manual_seed(1)) for _ in range(2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(one.net.parameters(), two.net.parameters()):
        assert torch.equal(a, b)


def test_permuted_tasks_hold_the_same_pixels_in_other_orders():
    first, second, third = permuted_tasks(images(), 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(first.train.inputs, images().train.inputs.flatten(1))
    for other in (second, third):
        assert not torch.equal(other.train.inputs, first.train.inputs)
        assert torch.equal(other.test.inputs.sort(dim=1)[0], first.test.inputs.sort(dim=1)[0])
    assert not torch.equal(second.train.inputs, third.train.inputs)


def test_directions_of_the_generated_stream_share_one_subspace():
    tasks = shared_latent_tasks(
        7, 20_000, features=12, latent=3, val=0, test=1, generator=torch.Generator().manual_seed(0)
    )
    means = torch.stack([task.train.inputs[task.train.targets == 1].mean(0) for task in tasks])
    values = torch.linalg.svdvals(means)
    assert values[2] > 5 * values[3]
    assert tasks[0].val is None


def test_exemplars_are_so_many_of_each_class():
    memory = ExemplarMemory(3)
    labels = torch.tensor([0] * 10 + [1] * 2 + [2] * 5)
    memory.add("t", torch.arange(17.0)[:, None], labels, torch.Generator().manual_seed(0))
    x, y = memory["t"]
    assert torch.bincount(y).tolist() == [3, 2, 3]
    assert torch.equal(labels[x[:, 0].long()], y)
    assert len(memory) == 8
    assert len(set(x[:, 0].tolist())) == 8


def table():
    generator = torch.Generator().manual_seed(0)

    def part(n):
        site = torch.arange(n) % 3
        x = torch.randn(n, 2, generator=generator)
        coded = torch.nn.functional.one_hot(site, 3).float()
        year = (torch.arange(n) % 2).float()[:, None] + 2020
        return Examples(torch.cat([x, coded, year], dim=1), (x[:, 0] > 0).long())

    columns = ("a", "b", "site = east", "site = north", "site = west", "year")
    return TableData(part(60), part(30), part(30), columns, ("no", "yes"), "plants")


def test_a_table_is_split_by_a_column_of_text_or_numbers():
    sites = tasks_by_column(table(), "site")
    assert [task.id for task in sites] == ["site = east", "site = north", "site = west"]
    assert all(len(task.train) == 20 and task.train.inputs.shape[1] == 3 for task in sites)
    years = tasks_by_column(table(), "year")
    assert [task.id for task in years] == ["year = 2020", "year = 2021"]
    assert years[0].train.inputs.shape[1] == 5
    learner = learn_stream(sites, NonForgetting(), steps=2)
    assert learner.accuracies.shape == (3, 3)
    with pytest.raises(ValueError, match="plants has no column 'colour'; it has a, b"):
        tasks_by_column(table(), "colour")
    with pytest.raises(ValueError, match=r"training labels are all|has 60 values|too few"):
        tasks_by_column(table(), "a")


def test_a_users_files_become_tasks_in_a_few_lines(tmp_path):
    from etude.data import user

    rows = ["x,z,site,good"] + [f"{i % 7},{i % 5},{'ab'[i % 2]},{int(i % 7 > 3)}" for i in range(120)]
    (tmp_path / "rows.csv").write_text("\n".join(rows))
    learner = learn_stream(
        tasks_by_column(user.load(tmp_path / "rows.csv", target="good"), "site"), NonForgetting(), steps=2
    )
    assert learner.accuracies.shape == (2, 2)
    data = images()
    parts = {"x": torch.cat([p.inputs for p in (data.train, data.val, data.test)])[:, 0].numpy()}
    labels = torch.cat([p.targets for p in (data.train, data.val, data.test)]).numpy()
    np.savez(tmp_path / "digits.npz", x=parts["x"], y=labels)
    learner = learn_stream(tasks_by_class(user.load(tmp_path / "digits.npz"), 3), NonForgetting(), steps=2)
    assert learner.accuracies.shape == (2, 2)


def test_bad_streams_are_refused():
    x = torch.randn(4, 3)
    one, two = torch.zeros(4, dtype=torch.int64), torch.tensor([0, 1, 0, 1])
    with pytest.raises(ValueError, match=r"task 'a' must have at least two classes, its training labels are all \[0\]"):
        Task("a", Examples(x, one), Examples(x, one))
    with pytest.raises(ValueError, match=r"test labels of task 'a' hold \[5\], which training does not"):
        Task("a", Examples(x, two), Examples(x, torch.tensor([0, 1, 5, 1])))
    learner = LifelongLearner(ConsolidatedNet(3, 1, 4, seed=0), NonForgetting(), steps=1)
    with pytest.raises(ValueError, match="nothing has been learned yet"):
        learner.predict(x)
    with pytest.raises(ValueError, match=r"task 'a' must have at least two classes, its labels are all \[0\]"):
        learner.learn("a", x, one)
    with pytest.raises(ValueError, match="equally many, got 4 and 3"):
        learner.learn("a", x, two[:3])
    with pytest.raises(ValueError, match="no task has test examples"):
        learner.learn("a", x, two).accuracies  # noqa: B018
    with pytest.raises(ValueError, match="task 'a' has been learned already"):
        learner.learn("a", x, two)
    with pytest.raises(ValueError, match=r"test labels of task 'a' hold \[3\]"):
        learner.accuracy("a", x, torch.tensor([0, 1, 3, 1]))
    with pytest.raises(ValueError, match="there is no task 'b'; the network knows"):
        learner.predict(x, "b")
    with pytest.raises(ValueError, match="scope must be 'task' or 'joint', got 'all'"):
        learner.fit([("a", x, two)], scope="all", steps=1)
    with pytest.raises(ValueError, match="lr must be positive, got 0"):
        LifelongLearner(ConsolidatedNet(3), FineTune(), lr=0)
    with pytest.raises(ValueError, match="at least one task, got none"):
        learn_stream([], FineTune())
    task = Task(1, Examples(x, two), Examples(x, two))
    with pytest.raises(ValueError, match="different names"):
        learn_stream([task, task], FineTune())
    with pytest.raises(ValueError, match="inputs must have one shape"):
        learn_stream([task, Task(2, Examples(x[:, :2], two), Examples(x[:, :2], two))], FineTune())
    with pytest.raises(ValueError, match="split_size must be at least 2"):
        tasks_by_class(images(), 1)
    with pytest.raises(ValueError, match=r"hold the class . alone: split_size 5"):
        tasks_by_class(images(), 5)
    with pytest.raises(ValueError, match=r"latent must lie in 1\.\.4"):
        shared_latent_tasks(2, 10, features=4, latent=9)
    with pytest.raises(ValueError, match="per_class must not be negative"):
        ExemplarMemory(-1)
