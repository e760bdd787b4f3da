"""A table whose truth is known: few informative columns among many, with interactions."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

__all__ = ["SparseTable", "sparse_interactions"]


@dataclass(frozen=True)
class SparseTable:
    """What `sparse_interactions` draws.

    Attributes:
        X: rows. y: classes 0 and 1, about as many of each.
        informative: numbers of the columns that the class depends on.
        relevant: those and their noisy copies.
        weights: of the informative columns.
    """

    X: Float32[np.ndarray, "n d"]
    y: Int64[np.ndarray, "n"]
    informative: np.ndarray
    relevant: np.ndarray
    weights: np.ndarray


def sparse_interactions(
    n: int = 600,
    d: int = 1000,
    informative: int = 10,
    pairs: int = 2,
    corr_block: int = 0,
    noise: float | int = 0.3,
    rng: np.random.Generator | None = None,
) -> SparseTable:
    """Standard normal columns of which a few make the class.

    With w_j = +-U(0.7, 1.3) over the informative columns x_1, x_2, ...,

        s = sum_j w_j x_j + x_1 x_2 + 0.8 tanh(x_3 x_4),    y = [s + noise N(0, 1) > median s].

    Further pairs repeat the two forms in turn. The columns' places are random.

    Args:
        n: rows. d: columns. informative: columns that matter. pairs: interactions, two columns each.
        corr_block: size of a group of like columns: each informative one has `corr_block` - 1 copies with correlation
            0.8; 0 and 1 mean none.
        noise: standard deviation of the noise on s.
        rng: source of everything; a fresh one if None.

    Raises:
        ValueError: if the columns do not suffice, or there are fewer than four rows.
    """
    if n < 4:
        raise ValueError(f"n must be at least 4, got {n}")
    if not 0 <= 2 * pairs <= informative or informative < 1:
        raise ValueError(f"{pairs} pairs need {2 * pairs} informative columns, got informative={informative}")
    block = max(corr_block, 1)
    if informative * block > d:
        raise ValueError(f"{informative} groups of {block} columns need d of {informative * block} or more, got {d}")
    rng = np.random.default_rng() if rng is None else rng
    X = rng.standard_normal((n, d))
    place = rng.permutation(d)[: informative * block].reshape(block, informative)
    signal = X[:, place[0]]
    copies = 0.8 * signal[:, None, :] + 0.6 * rng.standard_normal((n, block - 1, informative))
    X[:, place[1:]] = copies
    weights = rng.uniform(0.7, 1.3, informative) * rng.choice([-1.0, 1.0], informative)
    s = signal @ weights
    for pair in range(pairs):
        product = signal[:, 2 * pair] * signal[:, 2 * pair + 1]
        s = s + (product if pair % 2 == 0 else 0.8 * np.tanh(product))
    y = s + noise * rng.standard_normal(n) > np.median(s)
    return SparseTable(X.astype(np.float32), y.astype(np.int64), np.sort(place[0]), np.sort(place.ravel()), weights)
