"""Pictures: the masks over timesteps, and generated images."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_images", "plot_masks"]


def _figure(width: float, height: float) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'etude[run]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def plot_masks(masks: dict[str, Bool[Tensor, "num_tasks dim"]]) -> "Figure":
    """The active channels of every timestep, one panel for each named mask."""
    if not masks:
        raise ValueError("there are no masks to draw")
    figure = _figure(2.6 * len(masks), 2.6)
    for axes, (name, mask) in zip(figure.subplots(1, len(masks), squeeze=False)[0], masks.items()):
        axes.imshow(mask.numpy(), aspect="auto", interpolation="nearest", cmap="Blues", origin="lower", vmin=0, vmax=1)
        axes.set(title=name, xlabel="channel", ylabel="timestep (0: least noise)")
    return figure


def plot_images(rows: dict[str, Float[Tensor, "n channels height width"]]) -> "Figure":
    """Images in [-1, 1] side by side, a line for each named set."""
    if not rows:
        raise ValueError("there are no images to draw")
    most = max(len(images) for images in rows.values())
    figure = _figure(0.45 * most + 0.8, 0.55 * len(rows))
    for axes, (name, images) in zip(figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows.items()):
        line = (F.pad(images.clamp(-1, 1), (1, 1), value=1.0) + 1) / 2
        line = F.pad(torch.cat(list(line), dim=-1), (0, (most - len(images)) * line.shape[-1]), value=1.0)
        axes.imshow(line[0].numpy() if len(line) == 1 else line.permute(1, 2, 0).numpy(), cmap="gray", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[])
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=7)
    return figure
