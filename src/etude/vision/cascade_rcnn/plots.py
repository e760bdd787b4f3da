"""Pictures: boxes on an image, average precision by IoU, and how boxes tighten from stage to stage."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

__all__ = ["draw_boxes", "plot_ap_by_iou", "plot_stage_overlaps"]


def _figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'etude[run]'") from error
    figure = Figure(figsize=(width, height), layout="tight")
    return figure, figure.subplots(1, columns)


def draw_boxes(
    image: Tensor,
    boxes: Tensor,
    words: Sequence[str] = (),
    labels: Sequence[int] = (),
    truth: Tensor | None = None,
) -> Any:
    """An image with boxes; a `matplotlib.figure.Figure`.

    Args:
        image: (channels, height, width) in [0, 1].
        boxes: (n, 4), corners in pixels.
        words: what to write at each box.
        labels: boxes of one label have one colour.
        truth: ground truths, drawn dashed in white.
    """
    height, width = image.shape[1:]
    figure, axis = _figure(6.0, max(1.5, 6.0 * height / width))
    grey = len(image) == 1
    pixels = (image[0] if grey else image.permute(1, 2, 0)).numpy()
    axis.imshow(pixels, cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0), interpolation="none")
    for x1, y1, x2, y2 in [] if truth is None else truth.tolist():
        axis.plot([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], "--", color="white", linewidth=1)
    for index, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        colour = f"C{labels[index] % 10 if len(labels) else 0}"
        axis.plot([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], color=colour, linewidth=1.5)
        if len(words):
            axis.text(x1, y1, words[index], color="white", fontsize=7, va="bottom", backgroundcolor=colour)
    axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    return figure


def plot_ap_by_iou(curves: Mapping[str, Mapping[float, float]]) -> Any:
    """Average precision against the IoU that a detection must reach, a line for each detector."""
    figure, axis = _figure(5.5, 3.5)
    for name, points in curves.items():
        axis.plot(list(points), list(points.values()), marker="o", markersize=3, label=name)
    axis.set(xlabel="IoU that counts as found", ylabel="average precision", ylim=(0, None))
    axis.legend(fontsize="small")
    return figure


def plot_stage_overlaps(overlaps: Sequence[Tensor]) -> Any:
    """Histograms of the boxes' IoU with their ground truths as they enter each stage and leave the last (figure 4 of
    the paper); boxes below 0.3, the background, are left out."""
    figure, axes = _figure(2.6 * len(overlaps), 2.6, len(overlaps))
    edges = np.linspace(0.3, 1.0, 15)
    for index, (axis, values) in enumerate(zip(np.atleast_1d(axes), overlaps)):
        axis.hist(values.numpy(), bins=edges, color=f"C{index}")
        share = float((values >= 0.7).float().mean()) if len(values) else 0.0
        name = f"into stage {index + 1}" if index < len(overlaps) - 1 else "out of the last"
        axis.set(title=f"{name}\n{100 * share:.0f} % at 0.7 or more", xlabel="IoU")
        axis.title.set_fontsize(9)
    return figure
