"""Duet: exact matches and learnt representations, each with its own network, summed.

Mitra, Diaz & Craswell, "Learning to Match using Local and Distributed Representations of Text for Web Search",
WWW 2017, arXiv:1610.08136.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from etude.ranking.neural_ranking.base import MatchingModel
from etude.ranking.neural_ranking.matching import match_matrix

__all__ = ["Duet"]


class Duet(MatchingModel):
    """f = f_local + f_distributed, on texts of fixed lengths Lq and Ld, to which it cuts or pads its inputs itself.

    Local: the matrix of identical words, each query position through F units that read all document positions, then
    F, F, 1. Distributed: convolutions of width 3; the query's maximum through F units; the document's maxima over
    windows of P words through F units, position by position; their products through F, F, 1. All tanh.

    Parameters: Ld F + F, Lq F F + F, F F + F, F + 1 local; 2 (3 d F + F), 2 (F F + F), (Ld - P - 1) F F + F, F F + F,
    F + 1 distributed.

    Args:
        num_words, dim, trainable: of the word vectors.
        query_length, doc_length: Lq, Ld.
        units: F.
        window: P, at most Ld - 2.
        dropout: before the last layers.
    """

    focus, symmetry, granularity = "hybrid", "asymmetric", "multi (vertical)"

    def __init__(
        self,
        num_words: int,
        *,
        dim: int = 100,
        trainable: bool = True,
        query_length: int = 30,
        doc_length: int = 500,
        units: int = 300,
        window: int = 100,
        dropout: float = 0.5,
    ):
        super().__init__(num_words, dim, trainable)
        positions = doc_length - 2 - window + 1
        if positions < 1 or query_length < 3:
            raise ValueError(
                f"query_length must be at least 3 and doc_length at least window + 2 = {window + 2}, "
                f"got {query_length} and {doc_length}"
            )
        self.query_length, self.doc_length, self.window = query_length, doc_length, window
        self.local_convolution = nn.Conv1d(doc_length, units, 1)
        self.local = _head(units * query_length, units, dropout)
        self.query_convolution = nn.Conv1d(dim, units, 3)
        self.query_layer = nn.Linear(units, units)
        self.doc_convolution = nn.Conv1d(dim, units, 3)
        self.doc_layer = nn.Conv1d(units, units, 1)
        self.distributed = _head(units * positions, units, dropout)

    def head(
        self, query_ids: Tensor, doc_ids: Tensor, query_mask: Tensor, doc_mask: Tensor, idf: Tensor
    ) -> Float[Tensor, " batch"]:
        query_ids, query_mask = _fixed(query_ids, self.query_length), _fixed(query_mask, self.query_length)
        doc_ids, doc_mask = _fixed(doc_ids, self.doc_length), _fixed(doc_mask, self.doc_length)
        matches = match_matrix(query_ids, doc_ids, query_mask, doc_mask, "indicator")
        matches = matches.to(self.local_convolution.weight.dtype)
        local = torch.tanh(self.local_convolution(matches.transpose(1, 2)))
        # A window that starts at a real word is real, even if it ends in padding.
        query = self.query_convolution(self.embed(query_ids, query_mask).transpose(1, 2))
        query = _largest(torch.tanh(query), query_mask[:, :-2], None)
        doc = self.doc_convolution(self.embed(doc_ids, doc_mask).transpose(1, 2))
        doc = _largest(torch.tanh(doc), doc_mask[:, :-2], self.window)
        query, doc = torch.tanh(self.query_layer(query.squeeze(2))), torch.tanh(self.doc_layer(doc))
        distributed = self.distributed((query[:, :, None] * doc).flatten(1))
        return (self.local(local.flatten(1)) + distributed).squeeze(1)


def _head(inputs: int, units: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, units),
        nn.Tanh(),
        nn.Linear(units, units),
        nn.Tanh(),
        nn.Dropout(dropout),
        nn.Linear(units, 1),
    )


def _fixed(x: Tensor, length: int) -> Tensor:
    return F.pad(x[:, :length], (0, max(length - x.shape[1], 0)))


def _largest(x: Tensor, mask: Tensor, window: int | None) -> Tensor:
    """Maxima over all positions, or over windows of some; those without a real position are 0."""
    x = x.masked_fill(~mask[:, None, :], -torch.inf)
    x = x.amax(dim=2, keepdim=True) if window is None else F.max_pool1d(x, window, stride=1)
    return x.masked_fill(x == -torch.inf, 0.0)
