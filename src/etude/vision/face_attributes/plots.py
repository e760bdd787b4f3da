"""Pictures of what was found: responses and boxes, recall by number of tags, accuracy by number of neurons."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from etude.vision.face_attributes.analysis import SparseCombination

__all__ = ["plot_attribute_counts", "plot_localization", "plot_sparse_combinations"]


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "etude[run]"') from error
    return plt


def plot_localization(
    images: Float[Tensor, "n channels height width"],
    responses: Float[Tensor, "n height width"],
    boxes: Float[Tensor, "n 4"],
    true: Float[Tensor, "n 4"] | None = None,
) -> Any:
    """A matplotlib figure with each image and its box above its responses; true boxes are dashed.

    Raises:
        ValueError: if there are no images or the numbers of rows differ.
    """
    if not len(images) or not len(images) == len(responses) == len(boxes):
        raise ValueError(f"need equally many rows, got {len(images)}, {len(responses)} and {len(boxes)}")
    plt = _pyplot()
    figure, axes = plt.subplots(2, len(images), figsize=(1.4 * len(images), 2.9), squeeze=False)
    for index, (image, response) in enumerate(zip(images, responses)):
        shown = image[0] if len(image) == 1 else image.permute(1, 2, 0)
        extent = (0, image.shape[2], image.shape[1], 0)
        for axis, picture, colours in ((axes[0, index], shown, "gray"), (axes[1, index], response, "magma")):
            axis.imshow(picture.detach().cpu().numpy(), cmap=colours, interpolation="none", extent=extent)
            axis.set_axis_off()
            _outline(axis, boxes[index], "tab:red", "-")
            if true is not None:
                _outline(axis, true[index], "tab:cyan", "--")
    figure.tight_layout(pad=0.3)
    return figure


def _outline(axis: Any, box: Tensor, colour: str, style: str) -> None:
    left, top, right, bottom = (float(edge) for edge in box)
    axis.plot([left, right, right, left, left], [top, top, bottom, bottom, top], color=colour, linestyle=style)


def plot_attribute_counts(recalls: Mapping[int, float], *, label: str = "recall at IoU 0.5") -> Any:
    """A matplotlib figure of what `attribute_count_study` found."""
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(4, 3))
    axis.plot(list(recalls), list(recalls.values()), marker="o")
    axis.set(xlabel="attributes in training", ylabel=label, ylim=(0, 1))
    return figure


def plot_sparse_combinations(found: Mapping[str, Sequence[SparseCombination]]) -> Any:
    """A matplotlib figure of accuracy by neurons that take part, a line for each attribute."""
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(4, 3))
    for name, combinations in found.items():
        points = torch.tensor([[one.nonzeros, one.accuracy] for one in combinations])
        axis.plot(points[:, 0].numpy(), points[:, 1].numpy(), marker="o", label=name)
    axis.set(xlabel="neurons with a weight", ylabel="balanced accuracy")
    axis.legend(fontsize="small")
    return figure
