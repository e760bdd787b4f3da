"""Interaction-focused models: words are compared first, and what is read off the comparisons is scored.

DRMM           Guo et al., "A Deep Relevance Matching Model for Ad-hoc Retrieval", CIKM 2016, arXiv:1711.08611
K-NRM          Xiong et al., "End-to-End Neural Ad-hoc Ranking with Kernel Pooling", SIGIR 2017, arXiv:1706.06613
Conv-KNRM      Dai et al., "Convolutional Neural Networks for Soft-Matching N-Grams in Ad-hoc Search", WSDM 2018
MatchPyramid   Pang et al., "Text Matching as Image Recognition", AAAI 2016, arXiv:1602.06359
ARC-II         Hu et al., NeurIPS 2014, arXiv:1503.03244
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from etude.ranking.neural_ranking.base import MatchingModel, mlp
from etude.ranking.neural_ranking.matching import (
    dynamic_pool,
    gaussian_kernels,
    identical,
    kernel_levels,
    match_histogram,
    match_matrix,
)

__all__ = ["ARCII", "DRMM", "KNRM", "ConvKNRM", "MatchPyramid"]

QueryIds, DocIds = Int[Tensor, "batch query"], Int[Tensor, "batch doc"]
QueryMask, DocMask = Bool[Tensor, "batch query"], Bool[Tensor, "batch doc"]


class DRMM(MatchingModel):
    """Histograms of each query word's matches through a small network, weighted by how much the word matters.

        z_i = tanh(w_2 tanh(W_1 h_i + b_1) + b_2),    g = softmax over query words of w idf_i,    score sum_i g_i z_i

    With 30 bins and 5 units 162 parameters are trained: 155 + 6 + 1. The histograms have no gradient, so the vectors
    stay as they are, and everything but the head can be computed once.

    Args:
        num_words, dim: of the word vectors.
        bins: of the histogram, identical words included.
        histogram: "log" (LCH), "count" (CH) or "normalized" (NH).
        hidden: units of the network.
        gate: "idf" (one weight), or "vector": w of the size of a word vector.
    """

    focus, symmetry, granularity = "interaction", "asymmetric", "single"

    def __init__(
        self,
        num_words: int,
        *,
        dim: int = 100,
        bins: int = 30,
        histogram: Literal["count", "normalized", "log"] = "log",
        hidden: int = 5,
        gate: Literal["idf", "vector"] = "idf",
    ):
        super().__init__(num_words, dim, trainable=False)
        if gate not in ("idf", "vector"):
            raise ValueError(f"gate must be 'idf' or 'vector', got {gate!r}")
        self.bins, self.histogram, self.gate = bins, histogram, gate
        self.layers = nn.Sequential(nn.Linear(bins, hidden), nn.Tanh(), nn.Linear(hidden, 1), nn.Tanh())
        self.gate_weight = nn.Parameter(torch.zeros(1 if gate == "idf" else dim))

    @property
    def cacheable(self) -> bool:
        return True

    @property
    def bounded(self) -> bool:
        return True

    @torch.no_grad()
    def features(
        self,
        query_ids: QueryIds,
        doc_ids: DocIds,
        query_mask: QueryMask,
        doc_mask: DocMask,
        idf: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Histograms (batch, query, bins), what the gate weighs (batch, query, 1 or dim), and the query's mask."""
        query, doc = self.embed(query_ids, query_mask), self.embed(doc_ids, doc_mask)
        exact = identical(query_ids, doc_ids, query_mask, doc_mask)
        matches = match_matrix(query, doc, query_mask, doc_mask, "cosine", exact=exact)
        counts = match_histogram(matches, self.bins, self.histogram, q_mask=query_mask, d_mask=doc_mask, exact=exact)
        if self.gate == "idf" and idf is None:
            raise ValueError("DRMM weighs the words of a query by their idf: pass idf, or use gate='vector'")
        return counts, idf[:, :, None] if self.gate == "idf" and idf is not None else query, query_mask

    def gates(self, weighed: Tensor, query_mask: Tensor) -> Float[Tensor, "batch query"]:
        """g, which sums to 1 over the words of each query and is 0 at padding."""
        logits = (weighed * self.gate_weight).sum(dim=2).masked_fill(~query_mask, -1e9)
        return logits.softmax(dim=1) * query_mask

    def head(self, counts: Tensor, weighed: Tensor, query_mask: Tensor) -> Float[Tensor, " batch"]:
        return (self.layers(counts).squeeze(2) * self.gates(weighed, query_mask)).sum(dim=1)


class KNRM(MatchingModel):
    """Soft counts of matches at 11 levels of cosine, and a linear score: tanh(w phi + b).

    12 parameters, and the word vectors if they are trained.

    Args:
        num_words, dim: of the word vectors.
        trainable: whether they are trained, as in the paper; frozen, the kernels can be computed once.
        kernels: how many.
        log: "clamped" or "log1p", see `gaussian_kernels`.
        squash: tanh of the score.
    """

    focus, symmetry, granularity = "interaction", "asymmetric", "single"
    mu: Tensor
    sigma: Tensor

    def __init__(
        self,
        num_words: int,
        *,
        dim: int = 100,
        trainable: bool = True,
        kernels: int = 11,
        log: Literal["clamped", "log1p"] = "clamped",
        squash: bool = True,
    ):
        super().__init__(num_words, dim, trainable)
        mu, sigma = kernel_levels(kernels)
        self.register_buffer("mu", torch.tensor(mu))
        self.register_buffer("sigma", torch.tensor(sigma))
        self.log, self.squash = log, squash
        self.layers = nn.Linear(kernels, 1)

    @property
    def cacheable(self) -> bool:
        return not self.embedding.weight.requires_grad

    @property
    def bounded(self) -> bool:
        return self.squash

    def features(
        self,
        query_ids: QueryIds,
        doc_ids: DocIds,
        query_mask: QueryMask,
        doc_mask: DocMask,
        idf: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """phi (batch, kernels)."""
        query, doc = self.embed(query_ids, query_mask), self.embed(doc_ids, doc_mask)
        exact = identical(query_ids, doc_ids, query_mask, doc_mask)
        matches = match_matrix(query, doc, query_mask, doc_mask, "cosine", exact=exact)
        return (gaussian_kernels(matches, self.mu, self.sigma, query_mask, doc_mask, log=self.log),)

    def head(self, phi: Tensor) -> Float[Tensor, " batch"]:
        score = self.layers(phi).squeeze(1)
        return torch.tanh(score) if self.squash else score


class ConvKNRM(MatchingModel):
    """K-NRM on n-grams: convolutions of widths 1, 2 and 3, and kernels over all nine pairs of widths.

    Of d-dimensional vectors (1 + 2 + 3) d 128 + 3 x 128 parameters in the convolutions (230,784 at d = 300), 100 in the
    linear score, and the word vectors if they are trained.

    Args:
        num_words, dim, trainable: of the word vectors.
        widths: of the n-grams.
        channels: of each convolution.
        kernels, log: as for `KNRM`.
        squash: tanh of the score.
    """

    focus, symmetry, granularity = "interaction", "asymmetric", "multi (horizontal)"
    mu: Tensor
    sigma: Tensor

    def __init__(
        self,
        num_words: int,
        *,
        dim: int = 100,
        trainable: bool = True,
        widths: Sequence[int] = (1, 2, 3),
        channels: int = 128,
        kernels: int = 11,
        log: Literal["clamped", "log1p"] = "clamped",
        squash: bool = False,
    ):
        super().__init__(num_words, dim, trainable)
        mu, sigma = kernel_levels(kernels)
        self.register_buffer("mu", torch.tensor(mu))
        self.register_buffer("sigma", torch.tensor(sigma))
        self.log, self.squash, self.widths = log, squash, tuple(widths)
        self.convolutions = nn.ModuleList(nn.Conv1d(dim, channels, width) for width in widths)
        self.layers = nn.Linear(len(widths) ** 2 * kernels, 1)

    @property
    def bounded(self) -> bool:
        return self.squash

    def _ngrams(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        """(batch, length, channels) of each width; the n-gram at the last words runs into padding."""
        words = self.embed(ids, mask).transpose(1, 2)
        return [
            F.relu(convolution(F.pad(words, (0, width - 1)))).transpose(1, 2)
            for width, convolution in zip(self.widths, self.convolutions)
        ]

    def head(
        self, query_ids: Tensor, doc_ids: Tensor, query_mask: Tensor, doc_mask: Tensor, idf: Tensor
    ) -> Float[Tensor, " batch"]:
        query, doc = self._ngrams(query_ids, query_mask), self._ngrams(doc_ids, doc_mask)
        phi = [
            gaussian_kernels(
                match_matrix(left, right, query_mask, doc_mask), self.mu, self.sigma, query_mask, doc_mask, log=self.log
            )
            for left in query
            for right in doc
        ]
        score = self.layers(torch.cat(phi, dim=1)).squeeze(1)
        return torch.tanh(score) if self.squash else score


class MatchPyramid(MatchingModel):
    """The match matrix as an image: a convolution, a grid of the strongest responses, an MLP.

    160 parameters in the convolution (3 x 3, 16 channels), 480 x 128 + 128 and 129 in the MLP.

    Args:
        num_words, dim, trainable: of the word vectors.
        kind: of the match matrix, see `match_matrix`.
        channels: of the convolution.
        grid: rows and columns after pooling; only the real part of the matrix is divided.
        hidden: units of the MLP.
        pool: "max" as in the paper, or "mean" of each cell.
    """

    focus, symmetry, granularity = "interaction", "symmetric", "multi (vertical)"

    def __init__(
        self,
        num_words: int,
        *,
        dim: int = 100,
        trainable: bool = False,
        kind: Literal["indicator", "dot", "cosine"] = "cosine",
        channels: int = 16,
        grid: tuple[int, int] | list[int] = (3, 10),
        hidden: int = 128,
        pool: Literal["max", "mean"] = "max",
    ):
        super().__init__(num_words, dim, trainable)
        self.kind, self.grid, self.pool = kind, (grid[0], grid[1]), pool
        self.convolution = nn.Conv2d(1, channels, 3, padding=1)
        self.layers = mlp(channels * grid[0] * grid[1], hidden, 1)

    def head(
        self, query_ids: Tensor, doc_ids: Tensor, query_mask: Tensor, doc_mask: Tensor, idf: Tensor
    ) -> Float[Tensor, " batch"]:
        if self.kind == "indicator":
            matches = match_matrix(query_ids, doc_ids, query_mask, doc_mask, "indicator")
        else:
            exact = identical(query_ids, doc_ids, query_mask, doc_mask)
            query, doc = self.embed(query_ids, query_mask), self.embed(doc_ids, doc_mask)
            matches = match_matrix(query, doc, query_mask, doc_mask, self.kind, exact=exact)
        image = self.convolution(matches[:, None].to(self.convolution.weight.dtype))
        image = F.relu(image) if self.pool == "mean" else image
        pooled = dynamic_pool(image, query_mask.sum(dim=1), doc_mask.sum(dim=1), self.grid, mode=self.pool)
        pooled = F.relu(pooled)  # after the maximum the same as before it, and on fewer entries
        return self.layers(pooled.flatten(1)).squeeze(1)


class ARCII(MatchingModel):
    """Every pair of word windows through a layer, then 2-D convolutions and pooling, then an MLP.

        z_ij = relu(W_s s_{i-1:i+1} + W_t t_{j-1:j+1} + b)

    is a sum of two 1-D convolutions, so that W (6 d c) is applied to each text once and not to each pair. Of
    d-dimensional vectors, c maps and channels c1, c2: 6 d c + c, 9 c c1 + c1, 9 c1 c2 + c2 parameters in the
    convolutions, and A B c2 h + h, h + 1 in the MLP of h units over a grid of A x B.

    Args:
        num_words, dim, trainable: of the word vectors.
        maps: c.
        channels: (c1, c2).
        grid: (A, B), from the real part of the last map.
        hidden: h.
    """

    focus, symmetry, granularity = "interaction", "symmetric", "multi (vertical)"

    def __init__(
        self,
        num_words: int,
        *,
        dim: int = 100,
        trainable: bool = False,
        maps: int = 32,
        channels: tuple[int, int] | list[int] = (16, 16),
        grid: tuple[int, int] | list[int] = (3, 10),
        hidden: int = 128,
    ):
        super().__init__(num_words, dim, trainable)
        self.query_windows = nn.Conv1d(dim, maps, 3, padding=1)
        self.doc_windows = nn.Conv1d(dim, maps, 3, padding=1, bias=False)
        sizes = (maps, *channels)
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(sizes))
        self.grid = (grid[0], grid[1])
        self.layers = mlp(channels[-1] * grid[0] * grid[1], hidden, 1)

    def pairs(self, query: Tensor, doc: Tensor) -> Float[Tensor, "batch maps query doc"]:
        """z, from word vectors (batch, length, dim)."""
        left = self.query_windows(query.transpose(1, 2))
        right = self.doc_windows(doc.transpose(1, 2))
        return F.relu(left[:, :, :, None] + right[:, :, None, :])

    def head(
        self, query_ids: Tensor, doc_ids: Tensor, query_mask: Tensor, doc_mask: Tensor, idf: Tensor
    ) -> Float[Tensor, " batch"]:
        x = self.pairs(self.embed(query_ids, query_mask), self.embed(doc_ids, doc_mask))
        masks = [query_mask, doc_mask]
        for convolution in [None, *self.convolutions]:
            x = x if convolution is None else F.relu(convolution(x))
            # All responses are at least 0: zeros at padding win no maximum, and are what convolutions see there.
            x = x * (masks[0][:, None, :, None] & masks[1][:, None, None, :])
            odd = [mask.shape[1] % 2 for mask in masks]
            x = F.max_pool2d(F.pad(x, (0, odd[1], 0, odd[0])), 2)
            masks = [F.pad(mask, (0, o)).unflatten(1, (-1, 2)).any(dim=2) for mask, o in zip(masks, odd)]
        pooled = dynamic_pool(x, masks[0].sum(dim=1), masks[1].sum(dim=1), self.grid)
        return self.layers(pooled.flatten(1)).squeeze(1)
