"""Pictures of a stream and of a bottleneck.

Every function returns a matplotlib figure that belongs to no window: save it with `figure.savefig(path)`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from etude.transfer.discrete_kv_bottleneck.bottleneck import KeyValueBottleneck

__all__ = ["plot_pairs", "plot_phases"]


def plot_phases(curves: Mapping[str, Sequence[float]], *, iid: Mapping[str, float] | None = None) -> Any:
    """Accuracy over all classes after each phase, with that of i.i.d. training as a dashed line.

    Args:
        curves: name -> accuracies after phases 1, 2, ....
        iid: name -> accuracy after training on everything at once; names of `curves`.
    """
    if not curves:
        raise ValueError("there are no curves to plot")
    figure = _figure(4.6, 3.0)
    axis = figure.subplots()
    for name, values in curves.items():
        (line,) = axis.plot(range(1, len(values) + 1), list(values), marker="o", label=name)
        if iid and name in iid:
            axis.axhline(iid[name], color=line.get_color(), linestyle="--", linewidth=1)
    axis.set_xlabel("phases learned")
    axis.set_ylabel("accuracy over all classes")
    axis.set_ylim(0, 1)
    axis.legend(fontsize=8)
    return figure


def plot_pairs(bottleneck: KeyValueBottleneck, *, most: int = 100) -> Any:
    """How often training fetched each pair, and the class that its value votes for; white where it never did.

    Args:
        bottleneck: one line a codebook.
        most: pairs of a codebook that are shown.
    """
    used = bottleneck.usage[:, :most].cpu()
    votes = bottleneck.values.detach()[:, :most].argmax(dim=2).cpu().float()
    figure = _figure(7.0, 3.4)
    above, below = figure.subplots(2, 1)
    pictures = (
        above.imshow(used.float().log1p().numpy(), aspect="auto", cmap="viridis"),
        below.imshow(votes.where(used > 0, torch.nan).numpy(), aspect="auto", cmap="tab10", interpolation="nearest"),
    )
    for axis, picture, title in zip((above, below), pictures, ("log(1 + fetches)", "class of the value")):
        axis.set_ylabel("codebook")
        axis.set_title(title, fontsize=9)
        figure.colorbar(picture, ax=axis)
    below.set_xlabel("pair")
    return figure


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "etude[run]"') from error
    return Figure(figsize=(width, height), layout="constrained")
