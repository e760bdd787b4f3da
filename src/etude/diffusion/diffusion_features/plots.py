"""The paper's picture: accuracy over blocks and timesteps."""

from typing import TYPE_CHECKING, Any

import numpy as np

from etude.diffusion.diffusion_features.probe import PlaceTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_places"]


def plot_places(table: PlaceTable, *, middle: int | None = None, ax: "Axes | None" = None) -> Any:
    """A map of validation accuracy, timesteps down, blocks across; the best place is framed.

    Args:
        table: of `select_block_timestep`.
        middle: number of the middle block, marked by a line.
        ax: where to draw; a new figure if None.

    Returns:
        The figure.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'etude[run]'") from error
    if ax is None:
        rows, columns = table.accuracy.shape
        ax = Figure(figsize=(1.5 + 0.45 * columns, 1.2 + 0.4 * rows), layout="tight").subplots()
    image = ax.imshow(table.accuracy, cmap="viridis", aspect="auto")
    best = table.timesteps.index(table.best[0]), table.blocks.index(table.best[1])
    middle_of_scale = (table.accuracy.min() + table.accuracy.max()) / 2
    for (row, column), value in np.ndenumerate(table.accuracy):
        weight = "bold" if (row, column) == best else "normal"
        color = "black" if value > middle_of_scale else "white"
        ax.text(column, row, f"{100 * value:.0f}", ha="center", va="center", color=color, fontsize=8, weight=weight)
    ax.add_patch(Rectangle((best[1] - 0.5, best[0] - 0.5), 1, 1, fill=False, edgecolor="red", linewidth=2))
    if middle is not None and middle in table.blocks:
        ax.axvline(table.blocks.index(middle), color="white", linewidth=1, linestyle=":")
    ax.set_xticks(range(len(table.blocks)), [str(block) for block in table.blocks])
    ax.set_yticks(range(len(table.timesteps)), [str(t) for t in table.timesteps])
    ax.set_xlabel("block")
    ax.set_ylabel("timestep")
    ax.figure.colorbar(image, ax=ax, label="validation accuracy")
    return ax.figure
