"""The fixed order in which a data set is cut into train, validation and test.

Python's and NumPy's newer generators do not promise the same draws for ever; `numpy.random.RandomState` does, so a
split made here is the same on every machine and in every version.
"""

import numpy as np

__all__ = ["cut", "stratified_order"]


def stratified_order(labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """A fixed random order of the rows in which every stretch holds the classes in their overall proportions.

    Each class is shuffled by itself and spread evenly over the order, so cutting the order anywhere gives
    stratified parts, and the first rows of a part are themselves a stratified sample.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise ValueError(f"labels must have shape (n,), got {labels.shape}")
    shuffled = np.random.RandomState(seed).permutation(len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels[shuffled] == label)
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return shuffled[np.argsort(place, kind="stable")]


def cut(order: np.ndarray, *sizes: int) -> list[np.ndarray]:
    """Consecutive stretches of an order, of the given sizes; what is left over stays out."""
    if min(sizes) < 1 or sum(sizes) > len(order):
        raise ValueError(f"cannot cut {len(order)} rows into parts of {', '.join(map(str, sizes))}")
    ends = np.cumsum(sizes)
    return [order[end - size : end] for end, size in zip(ends, sizes)]
