"""What every ranking model is: two padded texts in, one score out."""

from abc import ABC, abstractmethod
from itertools import pairwise
from typing import Any, ClassVar

import torch
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from etude.ranking.neural_ranking.text import PAD

__all__ = ["MatchingModel"]


class MatchingModel(nn.Module, PyTorchModelHubMixin, ABC):
    """f(s, t) = g(psi(s), phi(t), eta(s, t)), Eq. (1) of the survey, with one signature for all models.

    The score is `head(*features(...))`. Where the features hold nothing that is trained (`cacheable`), they can be
    computed once for all pairs, and training is on the head alone.

    Args:
        num_words: ids of the vocabulary, padding and unknown words included.
        dim: of the word vectors; without them if None.
        trainable: whether the vectors are trained.

    Attributes:
        focus, symmetry, granularity: where the model stands in the survey's taxonomy (section 4).
    """

    focus: ClassVar[str] = ""
    symmetry: ClassVar[str] = ""
    granularity: ClassVar[str] = ""

    def __init__(self, num_words: int, dim: int | None, trainable: bool):
        super().__init__()
        if num_words < 2 or (dim is not None and dim < 1):
            raise ValueError(f"num_words must be at least 2 and dim at least 1, got {num_words} and {dim}")
        self.num_words, self.dim = num_words, dim
        if dim is not None:
            self.embedding = nn.Embedding(num_words, dim, padding_idx=PAD)
            self.embedding.weight.requires_grad_(trainable)

    def with_embeddings(self, vectors: Float[Tensor, "words dim"]) -> "MatchingModel":
        """Takes these word vectors; returns the model.

        Raises:
            ValueError: if the model has no vectors or others in number or size.
        """
        shape = None if self.dim is None else (self.num_words, self.dim)
        if tuple(vectors.shape) != shape:
            raise ValueError(f"the model has word vectors of shape {shape}, got {tuple(vectors.shape)}")
        with torch.no_grad():
            self.embedding.weight.copy_(vectors)
            self.embedding.weight[PAD] = 0.0
        return self

    def embed(
        self, ids: Int[Tensor, "batch length"], mask: Bool[Tensor, "batch length"]
    ) -> Float[Tensor, "batch length dim"]:
        """Word vectors, zero at padding."""
        return self.embedding(ids) * mask[:, :, None]

    @property
    def cacheable(self) -> bool:
        return False

    @property
    def bounded(self) -> bool:
        """Whether scores lie in [-1, 1]: `train_ranker` then spreads them before the objective sees them."""
        return False

    def features(
        self,
        query_ids: Int[Tensor, "batch query"],
        doc_ids: Int[Tensor, "batch doc"],
        query_mask: Bool[Tensor, "batch query"],
        doc_mask: Bool[Tensor, "batch doc"],
        idf: Float[Tensor, "batch query"] | None = None,
    ) -> tuple[Tensor, ...]:
        """What the head needs of a pair; each tensor has the batch in front."""
        idf = torch.zeros(query_ids.shape, device=query_ids.device) if idf is None else idf
        return query_ids, doc_ids, query_mask, doc_mask, idf

    def encode(self, ids: Tensor, mask: Tensor, *, query: bool) -> Tensor:
        """psi or phi alone: the vector of a text, (batch, out). Representation-focused models have it.

        Raises:
            TypeError: if the model has no vector of a text by itself.
        """
        raise TypeError(f"{type(self).__name__} is {self.focus}-focused: a text by itself has no vector")

    def compare(self, query: Tensor, doc: Tensor) -> Float[Tensor, " batch"]:
        """The score of two such vectors."""
        raise TypeError(f"{type(self).__name__} is {self.focus}-focused: a text by itself has no vector")

    @abstractmethod
    def head(self, *features: Any, **named: Any) -> Float[Tensor, " batch"]:
        """The score, from what `features` gives."""

    def forward(
        self,
        query_ids: Int[Tensor, "batch query"],
        doc_ids: Int[Tensor, "batch doc"],
        query_mask: Bool[Tensor, "batch query"],
        doc_mask: Bool[Tensor, "batch doc"],
        idf: Float[Tensor, "batch query"] | None = None,
    ) -> Float[Tensor, " batch"]:
        """One score a pair.

        Args:
            query_ids, doc_ids: word ids, 0 pads, 1 is unknown.
            query_mask, doc_mask: where the texts are real; padding may be any length and changes no score.
            idf: of the words of the query; only DRMM needs them.
        """
        return self.head(*self.features(query_ids, doc_ids, query_mask, doc_mask, idf))


def mlp(*sizes: int, activation: type[nn.Module] = nn.ReLU, **options: Any) -> nn.Sequential:
    """Linear layers with an activation between them."""
    layers: list[nn.Module] = []
    for place, (inputs, outputs) in enumerate(pairwise(sizes)):
        layers += [activation()] if place else []
        layers.append(nn.Linear(inputs, outputs, **options))
    return nn.Sequential(*layers)
