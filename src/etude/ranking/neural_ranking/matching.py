"""Interactions between the words of two texts, and what models read off them.

    match_matrix       M_ij, how word i of the query and word j of the document agree
    gaussian_kernels   soft counts of matches at several levels, K-NRM (Xiong et al., SIGIR 2017, arXiv:1706.06613)
    match_histogram    counts of matches in bins, DRMM (Guo et al., CIKM 2016, arXiv:1711.08611)
    dynamic_pool       a grid of fixed size from a matrix of any, MatchPyramid (Pang et al., AAAI 2016,
                       arXiv:1602.06359)

Padding takes no part: masked entries enter no sum, no bin and no maximum.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from etude.ranking.neural_ranking.text import OOV

__all__ = ["dynamic_pool", "gaussian_kernels", "identical", "kernel_levels", "match_histogram", "match_matrix", "unit"]

EPS = 1e-9
Kind = Literal["indicator", "dot", "cosine"]


def unit(x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
    """Vectors of length 1; a zero vector stays zero, so that its cosine with anything is 0."""
    return x / x.norm(dim=-1, keepdim=True).clamp_min(EPS)


def identical(
    query_ids: Int[Tensor, "batch query"],
    doc_ids: Int[Tensor, "batch doc"],
    query_mask: Bool[Tensor, "batch query"],
    doc_mask: Bool[Tensor, "batch doc"],
) -> Bool[Tensor, "batch query doc"]:
    """Where the same known word stands; two unknown words are not the same word."""
    same = query_ids[:, :, None] == doc_ids[:, None, :]
    return same & (query_ids > OOV)[:, :, None] & query_mask[:, :, None] & doc_mask[:, None, :]


def match_matrix(
    q: Tensor,
    d: Tensor,
    q_mask: Bool[Tensor, "batch query"],
    d_mask: Bool[Tensor, "batch doc"],
    kind: Kind = "cosine",
    *,
    exact: Bool[Tensor, "batch query doc"] | None = None,
) -> Float[Tensor, "batch query doc"]:
    """M, zero at padding.

    Args:
        q, d: vectors (batch, length, dim); for "indicator" ids (batch, length).
        q_mask, d_mask: where the texts are real.
        kind: "indicator" (the same known word), "dot" or "cosine" of the vectors.
        exact: where the words are identical: the cosine there is 1, whatever rounding or a missing vector say.

    Raises:
        ValueError: for another kind.
    """
    real = q_mask[:, :, None] & d_mask[:, None, :]
    if kind == "indicator":
        return identical(q, d, q_mask, d_mask).to(torch.get_default_dtype())
    if kind not in ("dot", "cosine"):
        raise ValueError(f"kind must be 'indicator', 'dot' or 'cosine', got {kind!r}")
    product = q @ d.transpose(1, 2) if kind == "dot" else unit(q) @ unit(d).transpose(1, 2)
    if exact is not None and kind == "cosine":
        product = product.masked_fill(exact, 1.0)
    return product * real


def kernel_levels(count: int = 11) -> tuple[list[float], list[float]]:
    """Means 1, then evenly from 1 - w/2 to -1 + w/2 with w = 2 / (count - 1); widths 1e-3, then w/2: for 11 kernels
    1, .9, .7, ..., -.9 with 1e-3, .1 (section 3.2 of the paper).

    Raises:
        ValueError: if there are fewer than 2.
    """
    if count < 2:
        raise ValueError(f"K-NRM needs at least 2 kernels, got {count}")
    step = 2 / (count - 1)
    return [1.0] + [1 - step / 2 - step * k for k in range(count - 1)], [1e-3] + [step / 2] * (count - 1)


def gaussian_kernels(
    M: Float[Tensor, "batch query doc"],
    mu: Float[Tensor, " kernels"],
    sigma: Float[Tensor, " kernels"],
    q_mask: Bool[Tensor, "batch query"],
    d_mask: Bool[Tensor, "batch doc"],
    *,
    log: Literal["clamped", "log1p"] = "clamped",
) -> Float[Tensor, "batch kernels"]:
    """phi_k = 0.01 sum_i ln max(sum_j exp(-(M_ij - mu_k)^2 / (2 sigma_k^2)), 1e-10).

    One kernel at a time, so that memory is that of M and not K times it.

    Args:
        M: cosines.
        mu, sigma: of the kernels.
        q_mask, d_mask: where the texts are real.
        log: "clamped" as above; "log1p" is sum_i ln(1 + sum_j ...), unscaled, as MatchZoo has it.
    """
    pooled = []
    for mean, width in zip(mu, sigma):
        soft = torch.exp(-((M - mean) ** 2) / (2 * width**2)) * d_mask[:, None, :]
        counts = soft.sum(dim=2)
        logs = counts.clamp_min(1e-10).log() * 0.01 if log == "clamped" else torch.log1p(counts)
        pooled.append((logs * q_mask).sum(dim=1))
    return torch.stack(pooled, dim=1)


def match_histogram(
    M: Float[Tensor, "batch query doc"],
    bins: int = 30,
    mode: Literal["count", "normalized", "log"] = "log",
    *,
    q_mask: Bool[Tensor, "batch query"],
    d_mask: Bool[Tensor, "batch doc"],
    exact: Bool[Tensor, "batch query doc"] | None = None,
) -> Float[Tensor, "batch query bins"]:
    """How many words of the document match each word of the query how well.

    The last bin counts identical words; the others divide [-1, 1) evenly, and take a cosine of 1 between different
    words in the last of theirs.

    Args:
        M: cosines.
        bins: in all, >= 2.
        mode: "count" (CH), "normalized" by the length of the document (NH), or "log": ln(1 + count) (LCH).
        q_mask, d_mask: where the texts are real; a padded word of the query has zeros.
        exact: where words are identical; where M is 1 if None.

    Raises:
        ValueError: if there are fewer than 2 bins, or for another mode.
    """
    if bins < 2:
        raise ValueError(f"bins must be at least 2, got {bins}")
    if mode not in ("count", "normalized", "log"):
        raise ValueError(f"mode must be 'count', 'normalized' or 'log', got {mode!r}")
    places = ((M + 1) / 2 * (bins - 1)).floor().clamp(0, bins - 2).long()
    places = places.masked_fill(M == 1 if exact is None else exact, bins - 1)
    real = (q_mask[:, :, None] & d_mask[:, None, :]).to(M.dtype)
    counts = M.new_zeros(*M.shape[:2], bins).scatter_add_(2, places, real)
    if mode == "normalized":
        return counts / d_mask.sum(dim=1).clamp_min(1)[:, None, None]
    return torch.log1p(counts) if mode == "log" else counts


def _cells(lengths: Int[Tensor, " batch"], entries: int, cells: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which entries each cell takes, (batch, cells, width), which of these are its own, and how many (batch, cells).

    Places after a cell's own repeat its last entry.
    """
    grid = torch.arange(cells, device=lengths.device)
    start = grid * lengths[:, None] // cells
    end = -(-(grid + 1) * lengths[:, None] // cells)  # rounded up
    index = start[:, :, None] + torch.arange(-(-entries // cells) + 1, device=lengths.device)
    own = index < end[:, :, None]
    return torch.where(own, index, (end[:, :, None] - 1).clamp_min(0)), own, end - start


def _pool_rows(x: Tensor, lengths: Tensor, cells: int, mode: str) -> Tensor:
    """(batch, channels, rows, columns) to (batch, channels, cells, columns)."""
    batch, channels, rows, columns = x.shape
    index, own, counts = _cells(lengths, rows, cells)
    offsets = torch.arange(batch * channels, device=x.device).view(batch, channels, 1, 1) * rows
    # Whole rows of a matrix: several times as fast as gather along a dimension, above all backwards.
    taken = x.reshape(-1, columns).index_select(0, (offsets + index[:, None]).flatten())
    taken = taken.view(batch, channels, *index.shape[1:], columns)
    if mode == "max":  # an entry taken twice is no matter
        return taken.amax(dim=3).masked_fill((counts == 0)[:, None, :, None], 0.0)
    return (taken * own[:, None, :, :, None]).sum(dim=3) / counts.clamp_min(1)[:, None, :, None]


def dynamic_pool(
    x: Float[Tensor, "batch channels rows columns"],
    row_counts: Int[Tensor, " batch"],
    column_counts: Int[Tensor, " batch"],
    size: tuple[int, int],
    *,
    mode: Literal["max", "mean"] = "max",
) -> Float[Tensor, "batch channels grid_rows grid_columns"]:
    """Divides the real part of each matrix, its first `row_counts` rows and `column_counts` columns, into a grid.

    Cell a of A covers entries floor(a n / A) to ceil((a + 1) n / A) of n: with fewer entries than cells some are in
    several. A matrix without entries gives zeros.

    Args:
        x: matrices; what lies outside their real part does not matter.
        row_counts, column_counts: sizes of the real parts.
        size: (A, B) of the grid.
        mode: the maximum or the mean of each cell.

    Raises:
        ValueError: for another mode or an empty grid.
    """
    if mode not in ("max", "mean") or min(size) < 1:
        raise ValueError(f"mode must be 'max' or 'mean' and size positive, got {mode!r} and {size}")
    x = _pool_rows(x, row_counts, size[0], mode)
    return _pool_rows(x.transpose(2, 3), column_counts, size[1], mode).transpose(2, 3)
