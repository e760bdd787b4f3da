"""A collection made ready for experiments: what does not change with the seed is computed once."""

import functools
import os

import numpy as np
import torch
from torch import Tensor, nn

from etude.data.kinds_ranking import RankingData
from etude.ranking.neural_ranking.base import MatchingModel
from etude.ranking.neural_ranking.candidates import Candidates, EncodedTexts
from etude.ranking.neural_ranking.embeddings import read_embeddings, train_embeddings
from etude.ranking.neural_ranking.learning_to_rank import pair_features
from etude.ranking.neural_ranking.retrieval import BM25Retriever, Run
from etude.ranking.neural_ranking.text import Tokenizer
from etude.ranking.neural_ranking.training import Features, cached_features

__all__ = ["Workbench"]


class Workbench:
    """Candidates of BM25, word vectors, and features that no training changes.

    Args:
        data: with judged queries.
        stem: of the models' words; BM25 always stems.
        query_length, doc_length: words after which texts are cut.
        depth: candidates of a query.
        dim: of PPMI-SVD vectors of the documents.
        vectors: file of word vectors, instead of those.
        device: of all tensors.

    Attributes:
        queries, judgements: of the queries with a relevant document.
        texts, vectors, retriever, bm25, candidates: see their classes; `bm25` is the first stage's run.
    """

    def __init__(
        self,
        data: RankingData,
        *,
        stem: str = "porter",
        query_length: int = 30,
        doc_length: int = 500,
        depth: int = 100,
        dim: int = 100,
        vectors: str | os.PathLike | None = None,
        device: str = "cpu",
    ):
        self.data, self.depth = data, depth
        self.queries = {query: data.queries[query] for query in data.judged()}
        self.judgements = {query: data.judgements[query] for query in self.queries}
        self.texts = EncodedTexts(
            data.documents, tokenizer=Tokenizer(stem=stem), query_length=query_length, doc_length=doc_length
        ).to(device)
        if vectors is None:
            self.vectors = train_embeddings(self.texts.tokens, self.texts.vocabulary, dim=dim)
        else:
            self.vectors, _ = read_embeddings(vectors, self.texts.vocabulary)
        self.retriever = BM25Retriever().fit(data.documents)
        self.bm25 = self.retriever.search(self.queries, k=depth)
        self.candidates = Candidates.from_run(self.bm25, self.queries, self.texts, self.judgements)
        self._features: dict[str, Features | None] = {}

    def features(self, name: str, model: MatchingModel) -> Features | None:
        """Features of all candidates, kept under a name, where the model is `cacheable`; else None."""
        if not model.cacheable:
            return None
        if name not in self._features:
            self._features[name] = cached_features(model, self.candidates)
        return self._features[name]

    @functools.cached_property
    def cosine(self) -> Run:
        """Cosines of means of word vectors, weighted by idf: semantic matching of which nothing is trained."""
        vectors, idf, texts = self.vectors.to(self.texts.idf.device), self.texts.idf, self.texts

        def mean(ids: Tensor, mask: Tensor) -> Tensor:
            weights = idf[ids] * mask
            return nn.functional.normalize((vectors[ids] * weights[..., None]).sum(dim=-2), dim=-1)

        docs = torch.cat([mean(*part) for part in zip(texts.doc_ids.split(256), texts.doc_mask.split(256))])
        queries = mean(self.candidates.query_ids, self.candidates.query_mask)
        scores = (queries[:, None] * docs[self.candidates.docs]).sum(dim=2)
        return self.candidates.to_run(scores, torch.arange(len(self.queries), device=scores.device))

    @functools.cached_property
    def pair_features(self) -> np.ndarray:
        """For `LambdaMART`."""
        return pair_features(self.candidates, self.queries, self.data.documents, self.data.titles)

    @functools.cached_property
    def bm25_grid(self) -> list[Run]:
        """Runs of BM25 at k1 in {0.9, 1.2, 2} and b in {0.4, 0.75, 0.9}."""
        grid = [(k1, b) for k1 in (0.9, 1.2, 2.0) for b in (0.4, 0.75, 0.9)]
        fitted = (BM25Retriever(k1, b).fit(self.data.documents) for k1, b in grid)
        return [retriever.search(self.queries, k=self.depth) for retriever in fitted]
