"""Tasks of a stream, the estimator, uncertainty, widths and their search."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from etude.data.kinds import Examples, ImageData, TableData
from etude.transfer.hypernetworks import (
    HypernetClassifier,
    HypernetDesign,
    Hypernetwork,
    Predictive,
    Task,
    WidthSupernet,
    evolve_widths,
    fit_regression,
    moment_kl,
    permuted_tasks,
    plot_parity,
    plot_predictive,
    plot_stream,
    predict_draws,
    tasks_by_class,
    tasks_by_column,
)


def pictures(classes=4, n=24):
    split = Examples(torch.rand(n, 1, 3, 3), torch.arange(n) % classes)
    return ImageData(split, split, split, tuple("abcdefgh"[:classes]), "pictures")


def table():
    x = torch.stack([torch.arange(24) % 3, torch.randn(24)], dim=1).float()
    split = Examples(x, (torch.arange(24) // 3) % 2)
    return TableData(split, split, split, columns=("site", "height"), classes=("no", "yes"), name="table")


def test_tasks_by_class_count_their_labels_from_zero():
    data = pictures()
    tasks = tasks_by_class(data, 2)
    assert [task.name for task in tasks] == ["a, b", "c, d"]
    assert torch.equal(tasks[1].train.targets, (torch.arange(24) % 4)[torch.arange(24) % 4 > 1] - 2)
    assert all(len(task.val) == len(task.test) == 12 for task in tasks)


def test_tasks_by_column_drop_the_column():
    tasks = tasks_by_column(table(), "site")
    assert [task.name for task in tasks] == ["site = 0", "site = 1", "site = 2"]
    assert all(task.train.inputs.shape == (8, 1) for task in tasks)
    assert torch.equal(tasks[1].train.targets, table().train.targets[1::3])


def test_tasks_by_a_column_of_text_drop_what_stands_for_it():
    place = torch.arange(24) % 2
    x = torch.stack([place == 0, place == 1, torch.arange(24)], dim=1).float()
    split = Examples(x, (torch.arange(24) // 2) % 2)
    data = TableData(split, split, split, columns=("site = n", "site = s", "h"), classes=("no", "yes"), name="t")
    tasks = tasks_by_column(data, "site")
    assert [task.name for task in tasks] == ["site = n", "site = s"]
    assert torch.equal(tasks[1].train.inputs[:, 0], torch.arange(24.0)[1::2])
    strange = Examples(torch.cat([split.inputs, torch.zeros(1, 3)]), torch.cat([split.targets, torch.tensor([0])]))
    with pytest.raises(ValueError, match="1 rows of test have none of the 2 values of 'site'"):
        tasks_by_column(replace(data, test=strange), "site")


def test_permuted_tasks_keep_the_pixels_of_each_image():
    first, second = permuted_tasks(pictures(), 2, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(first.train.inputs, second.train.inputs)
    assert torch.equal(first.train.inputs.sort(dim=1).values, second.train.inputs.sort(dim=1).values)


def test_tasks_that_cannot_be_learned_are_refused():
    with pytest.raises(ValueError, match=r"must have at least two classes in training, got \['c'\]"):
        tasks_by_class(pictures(3), 2)
    good, bad = (Examples(torch.zeros(2, 1), torch.tensor(labels)) for labels in ([0, 1], [0, 2]))
    with pytest.raises(ValueError, match=r"test labels of task 'x' hold \[2\], its classes are \['no', 'yes'\]"):
        Task("x", good, good, bad, ("no", "yes"))
    three = Examples(torch.zeros(3, 1), torch.tensor([0, 2, 2]))
    with pytest.raises(ValueError, match=r"val rows of task 'x' hold \['yes'\], which its training rows do not"):
        Task("x", three, good, good, ("no", "yes", "maybe"))
    whole = pictures(4)
    fewer = whole.train.subset(whole.train.targets < 2)
    with pytest.raises(ValueError, match=r"val rows of pictures hold \['c', 'd'\], which no training row does"):
        tasks_by_class(replace(whole, train=fewer), 2)
    sites = table()
    north = sites.test.subset(sites.test.inputs[:, 0] < 2)
    with pytest.raises(ValueError, match="site = 2: 8 training and 0 test rows are too few"):
        tasks_by_column(replace(sites, test=north), "site")
    with pytest.raises(ValueError, match="there is no column 'town'; there are site, height"):
        tasks_by_column(table(), "town")
    with pytest.raises(ValueError, match="split_size must be at least 2"):
        tasks_by_class(pictures(), 1)


def rows(seed, n=40):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n, 5))
    return x, np.where(x[:, seed] > 0, "high", f"low{seed}")


def test_the_estimator_learns_task_after_task():
    pytest.importorskip("sklearn")
    classifier = HypernetClassifier(width=4, hidden=(8,), chunk_size=20, steps=3, random_state=0)
    for seed in range(2):
        classifier.partial_fit(*rows(seed), task=f"task {seed}")
    x, y = rows(1)
    assert set(classifier.predict(x, task="task 1")) <= {"high", "low1"}
    assert classifier.predict_proba(x, task="task 0").sum(axis=1) == pytest.approx(1.0, abs=1e-5)
    assert classifier.classes_.tolist() == ["high", "low0", "low1"]
    again = HypernetClassifier(**classifier.get_params())
    names = np.repeat(["task 0", "task 1"], 40)
    both = [np.concatenate(parts) for parts in zip(rows(0), rows(1))]
    again.fit(*both, task=names)
    assert np.allclose(again.predict_proba(x, task="task 1"), classifier.predict_proba(x, task="task 1"), atol=1e-6)
    with pytest.raises(ValueError, match=r"\['low0'\], which task 'task 1' had not in training; it has"):
        classifier.score(x, rows(0)[1], task="task 1")
    with pytest.raises(ValueError, match="task 'other' has not been learned; those are"):
        classifier.predict(x, task="other")
    with pytest.raises(ValueError, match="task 'task 0' has been learned already"):
        classifier.partial_fit(x, y, task="task 0")
    with pytest.raises(ValueError, match=r"at least two classes, got \['a'\]"):
        classifier.partial_fit(x, np.repeat("a", 40), task="new")
    with pytest.raises(ValueError, match="3 classes, the target 2 outputs; max_classes"):
        classifier.partial_fit(x, np.arange(40) % 3, task="new")
    with pytest.raises(ValueError, match="NaN or infinite values, 1 of them"):
        classifier.predict(np.where(np.arange(200).reshape(40, 5) == 7, np.nan, x), task="task 1")


def test_the_estimator_takes_images_a_target_and_an_embedding_alone():
    pytest.importorskip("sklearn")
    target = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(2, 2))
    classifier = HypernetClassifier(target, generation="component", hidden=(8,), steps=2, few_shot=True, random_state=0)
    data = pictures()
    first, second = tasks_by_class(data, 2)
    classifier.partial_fit(first.train.inputs, first.train.targets, task="first")
    before = {name: value.clone() for name, value in classifier.hypernet_.named_parameters()}
    classifier.partial_fit(second.train.inputs, second.train.targets, task="second")
    after = dict(classifier.hypernet_.named_parameters())
    assert [name for name in after if name not in before] == ["conditions.learned.1"]
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def noisy():
    torch.manual_seed(0)
    target = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1))
    return Hypernetwork(target, HypernetDesign("noise", "once", static_input=False), hidden=(8,))


def test_the_moment_kl_is_that_of_gaussians():
    theta, prior = torch.randn(50, 4), torch.tensor([0.5, 1.0, 2.0, 3.0])
    posterior = torch.distributions.Normal(theta.mean(dim=0), theta.std(dim=0))
    wanted = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, prior)).sum()
    assert float(moment_kl(theta, prior)) == pytest.approx(float(wanted), rel=1e-4)
    with pytest.raises(ValueError, match="at least two draws, got 1"):
        moment_kl(theta[:1], prior)


def test_the_predictive_is_the_mixture_of_its_members():
    draws, y = torch.randn(6, 5), torch.randn(5)
    normal = torch.distributions.Normal(draws, 0.7)
    wanted = -normal.log_prob(y).exp().mean(dim=0).log().mean()
    assert Predictive(draws).nll(y, 0.7) == pytest.approx(float(wanted), rel=1e-4)
    net, x = noisy(), torch.randn(5, 1)
    fit_regression(net, x, y, noise_std=0.5, steps=2, draws=4, generator=torch.Generator().manual_seed(0))
    noise = net.draw(3, torch.Generator().manual_seed(2))
    looped = torch.stack([net.call(x, each).squeeze(1) for each in noise])
    found = predict_draws(net, x, 3, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(found.draws, looped, atol=1e-6)
    with pytest.raises(ValueError, match="noise_std must be positive, got 0"):
        fit_regression(net, x, y, noise_std=0)
    with pytest.raises(ValueError, match="at least two draws, whose variance is taken; got 1"):
        fit_regression(net, x, y, noise_std=1, draws=1)
    with pytest.raises(ValueError, match="number of draws must be positive, got 0"):
        predict_draws(net, x, 0)


def build(widths):
    return nn.Sequential(nn.Linear(4, widths[0]), nn.ReLU(), nn.Linear(widths[0], 2))


@pytest.mark.parametrize("static_output", [True, False])
def test_a_supernet_is_the_target_of_generated_weights(static_output):
    torch.manual_seed(0)
    design = HypernetDesign("task", "once" if static_output else "component", False, static_output)
    supernet = WidthSupernet(build, (6,), Hypernetwork(build((6,)), design, cond_dim=1, hidden=(8,)))
    x = torch.randn(10, 4)
    examples = Examples(x, (x[:, 0] > 0).long())
    supernet.fit(examples, [(2,), (6,)], steps=3, batch_size=5)
    for widths in ((1,), (3,), (6,)):
        made = supernet.materialize(widths)
        assert torch.allclose(made(x), supernet(x, widths), atol=1e-6)
        assert supernet.accuracy(widths, examples) == float((made(x).argmax(1) == examples.targets).double().mean())
    with pytest.raises(ValueError, match=r"widths must lie in 1..\(6,\), got \(7,\)"):
        supernet(x, (7,))


def test_evolution_finds_the_best_widths_within_the_budget():
    options = [range(1, 9)] * 3

    def score(widths):
        return -sum((width - wanted) ** 2 for width, wanted in zip(widths, (7, 2, 5)))

    generator = torch.Generator().manual_seed(0)
    best, value = evolve_widths(score, options, population=20, generations=40, generator=generator)
    assert (best, value) == ((7, 2, 5), 0)
    cheap, _ = evolve_widths(score, options, cost=sum, budget=8, population=20, generations=10, generator=generator)
    assert sum(cheap) <= 8
    with pytest.raises(ValueError, match="no widths of cost <= 1 were found"):
        evolve_widths(score, options, cost=sum, budget=1, generator=generator)


def test_pictures_have_a_panel_for_each_method_and_a_point_for_each_design():
    pytest.importorskip("matplotlib")
    stream = plot_stream({"one": torch.eye(3), "other": torch.eye(3)})
    assert [axis.get_title() for axis in stream.axes[:2]] == ["one", "other"]
    parity = plot_parity({"once": (100.0, 0.9), "chunk": (10.0, 0.8)}, target_size=50)
    assert [text.get_text() for text in parity.axes[0].texts] == ["once", "chunk"]
    predictive = plot_predictive([0.0, 1.0], Predictive(torch.randn(4, 2)), ([0.5], [0.1]))
    assert len(predictive.axes[0].collections) == 1
