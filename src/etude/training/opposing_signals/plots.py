"""Pictures of the groups: their images, their losses against each other, and the sharpness at the edge of stability.

Every function returns a matplotlib figure that belongs to no window: save it with `figure.savefig(path)`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from etude.training.opposing_signals.monitor import OpposingSignalMonitor
from etude.training.opposing_signals.tracking import SharpnessTracker

__all__ = ["plot_group_images", "plot_group_losses", "plot_sharpness"]


def plot_group_images(
    monitor: OpposingSignalMonitor, step: int = -1, *, classes: Sequence[str] | None = None, most: int = 10
) -> Any:
    """The images of both groups of an update, those that moved most first, with predicted and true class.

    Args:
        monitor: watches images (n, channels, height, width) of 1 or 3 channels.
        step: the update.
        classes: names of the classes; their numbers if None.
        most: images of each group.
    """
    record = monitor.record(step)
    rows = {"loss rises": record.up[:most], "loss falls": record.down[:most]}
    columns = len(record.up[:most])
    figure = _figure(0.8 * columns + 0.4, 2.4)
    axes = figure.subplots(2, columns, squeeze=False)
    for line, (title, chosen) in zip(axes, rows.items()):
        images, _ = monitor.members(chosen)
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"images must have shape (n, 1 or 3, height, width), got {tuple(images.shape)}")
        for axis, image, row in zip(line, images.cpu(), chosen.tolist()):
            low, high = float(image.min()), float(image.max())
            pixels = ((image - low) / max(high - low, 1e-12)).permute(1, 2, 0).squeeze(-1)
            axis.imshow(pixels.numpy(), cmap="gray")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_xlabel(_caption(monitor, record.predicted_after, row, classes), fontsize=6)
        line[0].set_ylabel(title, fontsize=8)
    figure.suptitle(f"update {record.step}: predicted / true class", fontsize=9)
    return figure


def plot_group_losses(
    monitor: OpposingSignalMonitor, groups: Mapping[str, Tensor] | None = None, *, steps: range | None = None
) -> Any:
    """Mean losses of groups over the watched updates, beside that of all examples.

    Args:
        monitor: has watched at least one update.
        groups: name -> rows; the groups of the most unstable update if None.
        steps: the updates to show; all if None.
    """
    if groups is None:
        worst = monitor.most_unstable()
        groups = {f"up at {worst.step}": worst.up, f"down at {worst.step}": worst.down}
    everything = torch.arange(len(monitor.examples))
    places = [place for place, step in enumerate(monitor.steps) if steps is None or step in steps]
    figure = _figure(6.0, 3.0)
    axis = figure.subplots()
    for name, rows in {**groups, "all": everything}.items():
        curve = monitor.group_curve(rows).cpu().numpy()[places]
        axis.plot(
            [monitor.steps[place] for place in places], curve, label=name, color="gray" if name == "all" else None
        )
    axis.set_xlabel("update")
    axis.set_ylabel("loss")
    axis.legend(fontsize=8)
    return figure


def plot_sharpness(trackers: SharpnessTracker | Mapping[str, SharpnessTracker]) -> Any:
    """The sharpness over the updates, with the optimizer's threshold.

    Args:
        trackers: one, or several by name.
    """
    named = {"sharpness": trackers} if isinstance(trackers, SharpnessTracker) else dict(trackers)
    figure = _figure(6.0, 3.0)
    axis = figure.subplots()
    for name, tracker in named.items():
        (line,) = axis.plot(tracker.steps, tracker.values.numpy(), label=name)
        limits = torch.tensor([record.threshold for record in tracker.records])
        axis.plot(tracker.steps, limits.numpy(), linestyle=":", color=line.get_color(), label=f"{name}: edge")
    axis.set_xlabel("update")
    axis.set_ylabel("largest eigenvalue")
    axis.legend(fontsize=8)
    return figure


def _caption(monitor: OpposingSignalMonitor, predicted: Tensor | None, row: int, classes: Sequence[str] | None) -> str:
    labels = [None if found is None else int(found[row]) for found in (predicted, monitor.targets)]
    words = ["?" if label is None else str(label) if classes is None else classes[label] for label in labels]
    return " / ".join(words)


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'etude[run]'") from error
    return Figure(figsize=(width, height), layout="constrained")
