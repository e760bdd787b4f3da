"""Which sources were found relevant, and what was bought of them."""

from collections.abc import Mapping
from typing import Any

from numpy.typing import ArrayLike

__all__ = ["plot_relevance"]


def plot_relevance(relevance: Mapping[str, ArrayLike], samples: Mapping[str, ArrayLike]) -> Any:
    """Bars of relevance over the tasks above bars of samples, one row a strategy.

        plot_relevance({"l1": nu}, {"l1": history.counts})

    Args:
        relevance: strategy -> nu (tasks,). samples: strategy -> n (tasks,); the same strategies.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: if the strategies differ.
    """
    import matplotlib.pyplot as plt
    import numpy as np

    if relevance.keys() != samples.keys() or not relevance:
        raise ValueError(f"both must be of the same strategies, got {list(relevance)} and {list(samples)}")
    figure, axes = plt.subplots(len(relevance), 2, figsize=(9, 1.8 * len(relevance)), squeeze=False, sharey="col")
    for row, name in zip(axes, relevance):
        for axis, values, what in zip(row, (relevance[name], samples[name]), ("relevance", "samples")):
            bars = np.asarray(values)
            axis.bar(np.arange(len(bars)), bars, width=0.9)
            axis.set_title(f"{name}: {what}", fontsize=9)
            axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("source task")
    figure.tight_layout()
    return figure
