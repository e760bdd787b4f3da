"""Where a model attends: attention maps, gates, and how far each head looks.

d'Ascoli et al., ICML 2021, arXiv:2103.10697, section 4. The non-locality of head h on a grid of L tokens is the mean
distance, in steps of the grid, from a query to what it attends to,

    D_h = 1/L sum_ij A_ij |delta_ij|                                                                              (4)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from etude.loop.evaluation import mode
from etude.nn.transformer import SelfAttention
from etude.vision.convit.attention import GatedPositionalSelfAttention, relative_coordinates
from etude.vision.convit.network import ConViT

__all__ = ["LocalityProfile", "attention_maps", "locality_profile", "non_locality", "plot_attention", "plot_locality"]


@torch.no_grad()
def attention_maps(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The attention weights of every gated and plain self-attention of a model, in the order in which they run.

        maps = attention_maps(model, images)
        maps[0][3, 2]                                               # block 0, image 3, head 2: row i is what i takes

    Maps of blocks with a class token hold it at position 0. The model runs in evaluation mode and comes back in the
    mode it had.

    Args:
        model: a `ConViT`, or any module with `GatedPositionalSelfAttention` or `SelfAttention` layers.
        x: what the model takes.

    Returns:
        (batch, heads, tokens, tokens) for each layer; the number of tokens may differ.
    """
    found: list[Tensor] = []

    def keep(layer: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        found.append(layer.attention(*arguments, **named))  # type: ignore[operator]

    layers = [m for m in model.modules() if isinstance(m, GatedPositionalSelfAttention | SelfAttention)]
    hooks = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers]
    try:
        with mode(model, training=False):
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def non_locality(
    attention: Float[Tensor, "*batch heads tokens tokens"],
    coordinates: Float[Tensor, "patches patches 3"],
    has_cls: bool = False,
) -> Float[Tensor, "heads"]:
    """Mean distance attended by each head, Eq. (4), averaged over a batch.

    Args:
        attention: weights A, of one image or a batch.
        coordinates: `relative_coordinates` of the grid.
        has_cls: whether a class token stands at position 0; its row and column are dropped, and the rows that are
            left are not rescaled.

    Raises:
        ValueError: if the attention, less the class token, has not the grid's tokens.
    """
    patches = attention[..., 1:, 1:] if has_cls else attention
    if patches.shape[-2:] != coordinates.shape[:2]:
        raise ValueError(
            f"attention over {attention.shape[-2]} x {attention.shape[-1]} tokens (has_cls={has_cls}) does not fit "
            f"the coordinates of {coordinates.shape[0]}"
        )
    distances = coordinates[..., 2].sqrt().to(patches)
    heads = (patches * distances).sum(dim=(-2, -1)) / len(distances)
    return heads.reshape(-1, heads.shape[-1]).mean(dim=0)


@dataclass(frozen=True)
class LocalityProfile:
    """How local a model is, layer by layer.

    Attributes:
        gates: sigmoid(lambda), (gated layers, heads); 1 is all position, 0 all content.
        non_locality: mean distance attended in patches, (layers, heads).
        uniform: the distance that attending to all patches alike would give.
    """

    gates: Float[Tensor, "gated heads"]
    non_locality: Float[Tensor, "layers heads"]
    uniform: float


def locality_profile(
    model: ConViT, images: Float[Tensor, "batch in_chans height width"], batch_size: int = 64
) -> LocalityProfile:
    """Gates and non-locality of every layer, averaged over the images.

    Args:
        images: of the model's size, on its device.
        batch_size: images at a time: all maps of a batch are in memory at once.

    Raises:
        ValueError: if there are no images.
    """
    if len(images) == 0 or batch_size < 1:
        raise ValueError(f"need images and a positive batch_size, got {len(images)} and {batch_size}")
    coordinates = relative_coordinates(*model.grid_size, device=images.device)
    distances = []
    for part in images.split(batch_size):
        maps = attention_maps(model, part)
        layers = [non_locality(weights, coordinates, weights.shape[-1] == len(coordinates) + 1) for weights in maps]
        distances.append(torch.stack(layers) * (len(part) / len(images)))
    uniform = coordinates[..., 2].sqrt().mean().item()
    return LocalityProfile(model.gates().cpu(), torch.stack(distances).sum(dim=0).cpu(), uniform)


def plot_locality(profile: LocalityProfile) -> Any:
    """Gates and non-locality by layer: a dot for each head, a line through the means.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    figure, ((left, right),) = _figure(1, 2, 7.2, 3.0)
    for axis, values, name in (
        (left, profile.gates, "gate: share of position"),
        (right, profile.non_locality, "mean distance attended, patches"),
    ):
        layers = range(1, len(values) + 1)
        for layer, heads in zip(layers, values.tolist()):
            axis.plot([layer] * len(heads), heads, "o", color="tab:blue", markersize=3, alpha=0.6)
        if len(values):
            axis.plot(layers, values.mean(dim=1).tolist(), color="black", linewidth=1)
        axis.set(xlabel="layer", ylabel=name)
        axis.set_xticks(list(layers))
    left.set_ylim(0, 1)
    right.axhline(profile.uniform, color="grey", linestyle=":", label="all patches alike")
    right.legend(fontsize=7)
    return figure


def plot_attention(
    maps: Sequence[Tensor],
    grid_size: tuple[int, int],
    query: tuple[int, int] | None = None,
    layers: Sequence[int] | None = None,
) -> Any:
    """What one patch of one image attends to: a row of panels for each layer, a panel for each head.

    Args:
        maps: of one image, (heads, tokens, tokens) for each layer:
            `[weights[0] for weights in attention_maps(model, images)]`.
        grid_size: height and width in patches.
        query: row and column of the patch that asks; the middle one if None.
        layers: which maps, counted from 0; all if None.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: if the query lies outside of the grid, or maps do not fit it.
    """
    height, width = grid_size
    row, column = (height // 2, width // 2) if query is None else query
    if not (0 <= row < height and 0 <= column < width):
        raise ValueError(f"query must lie on a grid of {height} x {width}, got {(row, column)}")
    chosen = list(range(len(maps)) if layers is None else layers)
    if not chosen:
        raise ValueError("there are no layers to draw")
    heads = maps[chosen[0]].shape[0]
    figure, axes = _figure(len(chosen), heads, 0.9 * heads + 0.6, 0.95 * len(chosen) + 0.3)
    for line, layer in zip(axes, chosen):
        extra = maps[layer].shape[-1] - height * width
        if extra not in (0, 1):
            raise ValueError(f"a map over {maps[layer].shape[-1]} tokens does not fit a grid of {height} x {width}")
        seen = maps[layer][:, extra + row * width + column, extra:].detach().float().cpu().unflatten(-1, grid_size)
        for axis, panel in zip(line, seen):
            axis.imshow(panel.numpy(), cmap="viridis", vmin=0)
            axis.plot(column, row, "r+", markersize=5)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(f"layer {layer + 1}", fontsize=7)
    return figure


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "etude[run]"') from error
    # a constrained layout of many panels takes seconds, and small pictures side by side need none
    figure = Figure(figsize=(width, height), layout="constrained" if rows * columns < 5 else None)
    return figure, figure.subplots(rows, columns, squeeze=False)
