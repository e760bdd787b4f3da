"""The pictures hold what they say, the networks are the ones they are named for."""

import pytest
import torch
from torch import nn

from etude.loop import seeded
from etude.training.opposing_signals import (
    OpposingSignalMonitor,
    SharpnessTracker,
    cross_entropy,
    full_batch_backward,
    mlp,
    plot_group_images,
    plot_group_losses,
    plot_sharpness,
    vgg11,
)


@pytest.fixture
def watched():
    with seeded(0):
        model = mlp(48, (8,), 3)
        x, y = torch.rand(30, 3, 4, 4), torch.randint(3, (30,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    monitor = OpposingSignalMonitor(model, cross_entropy, x, y, k=4).attach(optimizer)
    tracker = SharpnessTracker(model, cross_entropy, (x, y), every=2).attach(optimizer)
    for _ in range(6):
        optimizer.zero_grad()
        full_batch_backward(model, cross_entropy, (x, y))
        optimizer.step()
    return monitor, tracker


def test_group_images_show_the_movers_with_predicted_and_true_class(watched):
    monitor, _ = watched
    figure = plot_group_images(monitor, 2, classes=("plane", "bird", "ship"), most=3)
    axes = figure.axes
    assert len(axes) == 6
    record = monitor.record(2)
    for axis, row in zip(axes, [*record.up[:3].tolist(), *record.down[:3].tolist()]):
        image = monitor.examples.x[row]
        expected = ((image - image.min()) / (image.max() - image.min())).permute(1, 2, 0)
        torch.testing.assert_close(torch.from_numpy(axis.images[0].get_array().data), expected)
        guess, true = (("plane", "bird", "ship")[int(of[row])] for of in (record.predicted_after, monitor.targets))
        assert axis.get_xlabel() == f"{guess} / {true}"


def test_group_losses_are_the_groups_curves(watched):
    monitor, _ = watched
    rows = torch.tensor([1, 2])
    (axis,) = plot_group_losses(monitor, {"mine": rows}, steps=range(1, 4)).axes
    line = next(line for line in axis.lines if line.get_label() == "mine")
    assert list(line.get_xdata()) == [1, 2, 3]
    assert line.get_ydata().tolist() == monitor.group_curve(rows)[1:4].tolist()
    labels = [line.get_label() for line in plot_group_losses(monitor).axes[0].lines]
    assert labels[-1] == "all"
    assert len(labels) == 3


def test_the_sharpness_is_drawn_with_its_edge(watched):
    _, tracker = watched
    curve, edge = plot_sharpness(tracker).axes[0].lines
    assert list(curve.get_xdata()) == [0, 2, 4]
    assert curve.get_ydata().tolist() == tracker.values.tolist()
    assert set(edge.get_ydata().tolist()) == {4.0}
    assert len(plot_sharpness({"one": tracker, "two": tracker}).axes[0].lines) == 4


def test_images_that_are_none_are_refused():
    model, x, y = nn.Linear(4, 3), torch.rand(10, 4), torch.arange(10) % 3
    monitor = OpposingSignalMonitor(model, cross_entropy, x, y, k=2)
    monitor.step_begin()
    monitor.step_end()
    with pytest.raises(ValueError, match=r"images must have shape .* got \(2, 4\)"):
        plot_group_images(monitor)


def test_the_networks_have_the_sizes_of_their_names():
    assert sum(p.numel() for p in mlp(64, (64, 64), 10).parameters()) == 64 * 64 + 64 + 64 * 64 + 64 + 640 + 10
    network = vgg11(3, 10)
    # Eight convolutions of the published widths and a linear layer.
    assert sum(p.numel() for p in network.parameters()) == 9_225_610
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in vgg11(1, 10, norm="batch").modules()) == 8
    with pytest.raises(ValueError, match="norm must be one of batch, group, none, got 'layer'"):
        vgg11(3, 10, norm="layer")
    with pytest.raises(ValueError, match="all widths must be positive"):
        mlp(4, (0,), 2)
