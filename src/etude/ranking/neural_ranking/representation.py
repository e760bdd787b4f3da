"""Representation-focused models: each text becomes a vector by itself, and the vectors are compared.

DSSM    Huang et al., "Learning Deep Structured Semantic Models for Web Search using Clickthrough Data", CIKM 2013
CDSSM   Shen et al., "Learning Semantic Representations Using Convolutional Neural Networks for Web Search",
        WWW 2014 companion
ARC-I   Hu et al., "Convolutional Neural Network Architectures for Matching Natural Language Sentences",
        NeurIPS 2014, arXiv:1503.03244
"""

from abc import abstractmethod
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from etude.ranking.neural_ranking.base import MatchingModel, mlp
from etude.ranking.neural_ranking.matching import unit

__all__ = ["ARCI", "CDSSM", "DSSM"]

Inputs = Literal["trigrams", "embeddings"]


class _Trigrams(nn.Module):
    """Projections of words given by their letter trigrams: sums of rows of a matrix, one row a trigram."""

    table: Tensor

    def __init__(self, num_words: int, num_trigrams: int, most: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_trigrams, outputs))
        nn.init.xavier_uniform_(self.weight)
        self.register_buffer("table", torch.full((num_words, most), num_trigrams))

    def forward(
        self, ids: Int[Tensor, "batch length"]
    ) -> tuple[Float[Tensor, "unique out"], Int[Tensor, "batch length"]]:
        """Projections of the distinct words, and which of them stands where."""
        words, places = ids.unique(return_inverse=True)
        parts = self.table[words]
        known = parts < len(self.weight)
        return F.embedding_bag(
            parts.clamp_max(len(self.weight) - 1),
            self.weight,
            mode="sum",
            per_sample_weights=known.to(self.weight.dtype),
        ), places


class _Representation(MatchingModel):
    focus = "representation"

    def head(
        self, query_ids: Tensor, doc_ids: Tensor, query_mask: Tensor, doc_mask: Tensor, idf: Tensor
    ) -> Float[Tensor, " batch"]:
        query = self.encode(query_ids, query_mask, query=True)
        return self.compare(query, self.encode(doc_ids, doc_mask, query=False))


class _Towers(_Representation):
    """gamma times the cosine of two vectors that the same network makes of both texts."""

    symmetry, granularity = "symmetric", "single"

    trigrams: _Trigrams

    def __init__(self, num_words: int, dim: int | None, trainable: bool, inputs: str, gamma: float):
        if inputs not in ("trigrams", "embeddings"):
            raise ValueError(f"inputs must be 'trigrams' or 'embeddings', got {inputs!r}")
        super().__init__(num_words, dim if inputs == "embeddings" else None, trainable)
        self.inputs, self.gamma = inputs, gamma

    def with_trigrams(self, table: Int[Tensor, "words most"]) -> "_Towers":
        """Takes the trigram ids of each word, from `trigram_table`; returns the model.

        Raises:
            ValueError: if the model reads no trigrams, or the table has another shape than the model's.
        """
        if self.inputs != "trigrams":
            raise ValueError("this model reads word vectors: use with_embeddings")
        if table.shape != self.trigrams.table.shape:
            raise ValueError(
                f"the model has a table of shape {tuple(self.trigrams.table.shape)}, got {tuple(table.shape)}"
            )
        self.trigrams.table.copy_(table)
        return self

    @abstractmethod
    def represent(
        self, ids: Int[Tensor, "batch length"], mask: Bool[Tensor, "batch length"]
    ) -> Float[Tensor, "batch out"]:
        """The vector of each text."""

    @property
    def bounded(self) -> bool:
        return self.gamma <= 1

    def encode(self, ids: Tensor, mask: Tensor, *, query: bool) -> Tensor:
        return unit(self.represent(ids, mask))

    def compare(self, query: Tensor, doc: Tensor) -> Float[Tensor, " batch"]:
        return self.gamma * (query * doc).sum(dim=1)


def _xavier(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv1d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class DSSM(_Towers):
    """Trigram counts of a text through 300-300-128 tanh units; gamma times the cosine of the two vectors.

    With 30,000 trigrams 9,129,128 parameters: 30,000 x 300 + 300, 300 x 300 + 300, 300 x 128 + 128.

    Args:
        num_words: ids of the vocabulary.
        inputs: "trigrams" (counts, from `with_trigrams`), or "embeddings": the mean word vector.
        num_trigrams: rows of the first layer.
        most_trigrams: columns of the table of trigrams.
        hidden: sizes of the layers.
        gamma: of the softmax over candidates, which scales the score.
        dim, trainable: of the word vectors, if the inputs are those.
    """

    def __init__(
        self,
        num_words: int,
        *,
        inputs: Inputs = "trigrams",
        num_trigrams: int = 30_000,
        most_trigrams: int = 24,
        hidden: tuple[int, ...] | list[int] = (300, 300, 128),
        gamma: float = 10.0,
        dim: int = 100,
        trainable: bool = False,
    ):
        super().__init__(num_words, dim, trainable, inputs, gamma)
        if inputs == "trigrams":
            self.trigrams = _Trigrams(num_words, num_trigrams, most_trigrams, hidden[0])
            self.bias = nn.Parameter(torch.zeros(hidden[0]))
            self.layers = mlp(*hidden, activation=nn.Tanh)
        else:
            self.layers = mlp(dim, *hidden, activation=nn.Tanh)
        _xavier(self.layers)

    def represent(
        self, ids: Int[Tensor, "batch length"], mask: Bool[Tensor, "batch length"]
    ) -> Float[Tensor, "batch out"]:
        """The vector of a text."""
        if self.inputs == "embeddings":
            return torch.tanh(self.layers(self._mean(ids, mask)))
        projections, places = self.trigrams(ids)
        counts = projections.new_zeros(len(ids), len(projections))
        counts = counts.scatter_add(1, places, mask.to(counts.dtype))
        return torch.tanh(self.layers(torch.tanh(counts @ projections + self.bias)))

    def _mean(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.embed(ids, mask).sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp_min(1)

    @property
    def cacheable(self) -> bool:
        """Whether the inputs are means of frozen vectors."""
        return self.inputs == "embeddings" and not self.embedding.weight.requires_grad

    def features(
        self,
        query_ids: Int[Tensor, "batch query"],
        doc_ids: Int[Tensor, "batch doc"],
        query_mask: Bool[Tensor, "batch query"],
        doc_mask: Bool[Tensor, "batch doc"],
        idf: Float[Tensor, "batch query"] | None = None,
    ) -> tuple[Tensor, ...]:
        """Where the vectors are frozen both mean vectors, (batch, dim) each; else the texts themselves."""
        if self.cacheable:
            return self._mean(query_ids, query_mask), self._mean(doc_ids, doc_mask)
        return super().features(query_ids, doc_ids, query_mask, doc_mask, idf)

    def head(self, *features: Tensor) -> Float[Tensor, " batch"]:
        if len(features) == 2:
            return self.compare(*(unit(torch.tanh(self.layers(mean))) for mean in features))
        return super().head(*features)


class CDSSM(_Towers):
    """Windows of three words through 300 tanh units, the maximum over windows, 128 tanh units; gamma times the cosine.

    With 30,000 trigrams 27,038,828 parameters: 3 x 30,000 x 300 + 300, 300 x 128 + 128.

    Args:
        num_words: ids of the vocabulary.
        inputs: "trigrams" (counts of each word, from `with_trigrams`), or "embeddings".
        num_trigrams, most_trigrams: as for `DSSM`.
        channels: units of the convolution.
        outputs: size of the vector of a text.
        gamma: scales the score.
        dim, trainable: of the word vectors, if the inputs are those.
    """

    def __init__(
        self,
        num_words: int,
        *,
        inputs: Inputs = "trigrams",
        num_trigrams: int = 30_000,
        most_trigrams: int = 24,
        channels: int = 300,
        outputs: int = 128,
        gamma: float = 10.0,
        dim: int = 100,
        trainable: bool = False,
    ):
        super().__init__(num_words, dim, trainable, inputs, gamma)
        if inputs == "trigrams":
            self.trigrams = _Trigrams(num_words, num_trigrams, most_trigrams, 3 * channels)
            self.bias = nn.Parameter(torch.zeros(channels))
        else:
            self.convolution = nn.Conv1d(dim, channels, 3, padding=1)
        self.layers = nn.Linear(channels, outputs)
        _xavier(self)

    def represent(
        self, ids: Int[Tensor, "batch length"], mask: Bool[Tensor, "batch length"]
    ) -> Float[Tensor, "batch out"]:
        """The vector of a text; that of an empty one is made of zeros."""
        if self.inputs == "embeddings":
            windows = self.convolution(self.embed(ids, mask).transpose(1, 2)).transpose(1, 2)
        else:
            projections, places = self.trigrams(ids)
            words = (projections[places] * mask[:, :, None]).unflatten(2, (3, -1))
            before, own, after = words.unbind(dim=2)
            before, after = F.pad(before, (0, 0, 1, 0))[:, :-1], F.pad(after, (0, 0, 0, 1))[:, 1:]
            windows = before + own + after + self.bias
        strongest = torch.tanh(windows).masked_fill(~mask[:, :, None], -torch.inf).amax(dim=1)
        strongest = strongest.masked_fill(strongest == -torch.inf, 0.0)
        return torch.tanh(self.layers(strongest))


class ARCI(_Representation):
    """Two convolutions of width 3, each halved by max-pooling; the strongest responses of both texts into an MLP.

    Of d-dimensional vectors and channels c1, c2 it has (3 d c1 + c1) + (3 c1 c2 + c2) parameters a tower, and
    (2 c2 h + h) + (h + 1) in the MLP of h units.

    Args:
        num_words, dim, trainable: of the word vectors.
        channels: (c1, c2).
        hidden: h.
        shared: whether both texts pass through the same convolutions.
    """

    symmetry, granularity = "symmetric", "multi (vertical)"

    def __init__(
        self,
        num_words: int,
        *,
        dim: int = 100,
        trainable: bool = False,
        channels: tuple[int, int] | list[int] = (64, 64),
        hidden: int = 128,
        shared: bool = True,
    ):
        super().__init__(num_words, dim, trainable)
        sizes = (dim, *channels)

        def tower() -> nn.ModuleList:
            return nn.ModuleList(nn.Conv1d(a, b, 3, padding=1) for a, b in pairwise(sizes))

        self.query_tower = tower()
        self.doc_tower = self.query_tower if shared else tower()
        self.layers = mlp(2 * channels[-1], hidden, 1)

    def encode(self, ids: Tensor, mask: Tensor, *, query: bool) -> Tensor:
        x = self.embed(ids, mask).transpose(1, 2)
        for convolution in self.query_tower if query else self.doc_tower:
            # Responses are not negative, so that zeros at padding win no maximum.
            x = F.relu(convolution(x)) * mask[:, None, :]
            if x.shape[2] % 2:
                x, mask = F.pad(x, (0, 1)), F.pad(mask, (0, 1))
            x, mask = F.max_pool1d(x, 2), mask.unflatten(1, (-1, 2)).any(dim=2)
        return x.amax(dim=2)

    def compare(self, query: Tensor, doc: Tensor) -> Float[Tensor, " batch"]:
        return self.layers(torch.cat([query, doc], dim=1)).squeeze(1)
