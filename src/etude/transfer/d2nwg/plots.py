"""Pictures: where generated weights lie in the zoo, and what a few gradient steps make of each start."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_starts", "plot_weights"]

_MOST = 400


def _figure(width: float) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'etude[run]'") from error
    return Figure(figsize=(width, 3.2), layout="constrained")


def plot_weights(
    zoo: Float[Tensor, "nets params"],
    generated: Float[Tensor, "sets params"],
    trained: Float[Tensor, "sets params"],
    *,
    lines: int = 20,
) -> "Figure":
    """Two principal components of the zoo's weights, with generated networks and those trained on the same data sets.

    Args:
        zoo: networks, of which at most 400 are drawn.
        generated, trained: for the same data sets, row by row.
        lines: pairs that are joined by a line.

    Raises:
        ValueError: if `generated` and `trained` differ in shape, or there are fewer than three networks.
    """
    if generated.shape != trained.shape or len(zoo) < 3:
        raise ValueError(f"expected three networks or more, and pairs, got {tuple(zoo.shape)}, "
                         f"{tuple(generated.shape)} and {tuple(trained.shape)}")  # fmt: skip
    figure = _figure(4.4)
    axes = figure.subplots()
    mean = zoo.double().mean(dim=0)
    values, vectors = torch.linalg.eigh(torch.cov((zoo.double() - mean).T))
    plane = vectors[:, -2:].flip(1)
    # Eigenvectors have no sign: the largest entry of each is positive.
    plane = plane * plane.gather(0, plane.abs().argmax(dim=0, keepdim=True)).sign()
    background, drawn, true = ((part.double() - mean) @ plane for part in (zoo[:_MOST], generated, trained))
    share = float(values[-2:].sum() / values.sum())
    axes.scatter(background[:, 0], background[:, 1], s=6, color="0.8", label="zoo")
    for a, b in zip(drawn[:lines].tolist(), true[:lines].tolist()):
        axes.plot((a[0], b[0]), (a[1], b[1]), color="0.5", linewidth=0.6)
    axes.scatter(true[:lines, 0], true[:lines, 1], s=14, marker="s", label="trained on the support")
    axes.scatter(drawn[:lines, 0], drawn[:lines, 1], s=14, label="generated")
    axes.set(title=f"weights on two components ({share:.0%} of the variance)", xticks=[], yticks=[])
    axes.legend(fontsize="small")
    return figure


def plot_starts(steps: Sequence[int], accuracies: Mapping[str, Sequence[float]]) -> "Figure":
    """Accuracy over gradient steps on the support, for each start.

        plot_starts([0, 1, 5], {"generated": [...], "random init": [...]}).savefig("starts.svg")

    Raises:
        ValueError: if there is nothing to draw, or a curve has another length than `steps`.
    """
    if not accuracies:
        raise ValueError("there are no curves to draw")
    for name, values in accuracies.items():
        if len(values) != len(steps):
            raise ValueError(f"the curve {name} must have {len(steps)} points, got {len(values)}")
    figure = _figure(4.4)
    axes = figure.subplots()
    for name, values in accuracies.items():
        axes.plot(list(steps), list(values), marker="o", label=name)
    axes.set(xlabel="gradient steps on the support", ylabel="accuracy on queries")
    axes.legend(fontsize="small")
    return figure
