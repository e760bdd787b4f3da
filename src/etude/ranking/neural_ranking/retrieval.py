"""The first stage: BM25 and query likelihood over an inverted index (bm25s), and feedback by RM3.

BM25 (Robertson & Walker, 1994, with the non-negative idf of Lucene), tf of w in d, len of d, avg over the collection:

    s(q, d) = sum_w ln(1 + (N - df + 1/2) / (df + 1/2)) tf (k1 + 1) / (tf + k1 (1 - b + b len / avg))            (1)

Query likelihood with Dirichlet smoothing (Zhai & Lafferty, 2004), cf of w and |C| tokens in the collection:

    s(q, d) = sum_w ln((tf + mu cf / |C|) / (len + mu))                                                            (2)

over the tokens w of the query; tokens that the collection does not have are skipped. bm25s computes what a token adds
to a document's score when indexing, and adds columns when asked. Eq. (2) is put into the same index as

    sum_w ln(1 + tf |C| / (mu cf)) + sum_w ln(mu cf / |C|) - |q| ln(len + mu),

whose first sum is over matching documents alone.

RM3 (Lavrenko & Croft, 2001; Abdul-Jaleel et al., 2004) adds to the query the words that are likely in the documents
found first, weighted by those documents' shares of the score, and keeps a share lambda of the query itself.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import scipy.sparse

from etude.ranking.neural_ranking.text import OOV, Tokenizer, Vocabulary

__all__ = ["RM3", "BM25Retriever", "QueryLikelihood", "Run"]

Run = dict[str, dict[str, float]]
"""Query id -> document id -> score."""


def _bm25s() -> Any:
    try:
        import bm25s
    except ImportError as error:
        raise ImportError('the first stage needs bm25s: pip install "etude[ranking]"') from error
    return bm25s


class _Retriever(ABC):
    """An index of documents that scores all of them for a query."""

    tokenizer: Callable[[str], list[str]]

    def fit(self, documents: Mapping[str, str], *, vocabulary: Vocabulary | None = None) -> "_Retriever":
        """Indexes documents, id -> text.

        Args:
            documents: at least one.
            vocabulary: of the documents, where there is one already.

        Raises:
            ValueError: if there is no document.
        """
        if not documents:
            raise ValueError("there is no document to index")
        self.document_ids_ = tuple(documents)
        tokens = [self.tokenizer(text) for text in documents.values()]
        self.vocabulary_ = Vocabulary(tokens) if vocabulary is None else vocabulary
        ids = [self.vocabulary_.ids(row) for row in tokens]
        flat = np.fromiter((token for row in ids for token in row), dtype=np.int64)
        rows = np.repeat(np.arange(len(ids)), [len(row) for row in ids])
        shape = (len(ids), len(self.vocabulary_))
        self.lengths_ = np.array([len(row) for row in ids], dtype=np.float64)
        # Duplicate entries are summed: term frequencies.
        self.counts_ = scipy.sparse.coo_matrix((np.ones(len(flat)), (rows, flat)), shape).tocsc()
        self._index(ids)
        return self

    @abstractmethod
    def _index(self, ids: list[list[int]]) -> None:
        """Makes what `token_scores` needs of the documents' tokens."""

    def _known(self, query: str) -> list[int]:
        return [token for token in self.vocabulary_.ids(self.tokenizer(query)) if token != OOV]

    def scores(self, query: str) -> np.ndarray:
        """(N,) score of every document, float64; zeros if no token of the query is known."""
        return self.token_scores(self._known(query))

    @abstractmethod
    def token_scores(self, tokens: list[int]) -> np.ndarray:
        """(N,) score of every document, float64, for these tokens."""

    def weighted_scores(self, weights: Mapping[int, float]) -> np.ndarray:
        """(N,) sum over tokens of weight times what the token alone scores."""
        total = np.zeros(len(self.document_ids_))
        for token, weight in weights.items():
            total += weight * self.token_scores([token])
        return total

    def top(self, scores: np.ndarray, k: int) -> np.ndarray:
        """Rows of the k best documents, best first, ties by document id."""
        if not hasattr(self, "_rank_of_id"):
            self._rank_of_id = np.argsort(np.argsort(np.array(self.document_ids_)))
        k = min(k, len(scores))
        if k == 0:
            return np.zeros(0, dtype=np.int64)
        least = np.partition(scores, len(scores) - k)[len(scores) - k]
        rows = np.flatnonzero(scores >= least)
        return rows[np.lexsort((self._rank_of_id[rows], -scores[rows]))][:k]

    def search(self, queries: Mapping[str, str], *, k: int = 100) -> Run:
        """The k best documents of each query among those with one of its words; none if no word is known."""
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        return {name: self._found(self._known(query), self.scores(query), k) for name, query in queries.items()}

    def _found(self, tokens: list[int], scores: np.ndarray, k: int) -> dict[str, float]:
        matching = np.zeros(len(scores), dtype=bool)
        matching[self.counts_[:, sorted(set(tokens))].indices] = True
        found = self.top(np.where(matching, scores, -np.inf), min(k, int(matching.sum())))
        return {self.document_ids_[row]: float(scores[row]) for row in found}


class BM25Retriever(_Retriever):
    """Eq. (1).

        run = BM25Retriever().fit(data.documents).search(data.queries, k=100)

    Args:
        k1: how soon repetitions stop to count, >= 0; 0.9 with b = 0.4 is another usual choice.
        b: how far long documents are held back, in [0, 1].
        tokenizer: text -> tokens.
    """

    def __init__(
        self, k1: float | int = 1.2, b: float | int = 0.75, *, tokenizer: Callable[[str], list[str]] | None = None
    ):
        if k1 < 0 or not 0 <= b <= 1:
            raise ValueError(f"k1 must be at least 0 and b in [0, 1], got {k1} and {b}")
        self.k1, self.b = float(k1), float(b)
        self.tokenizer = Tokenizer() if tokenizer is None else tokenizer

    def _index(self, ids: list[list[int]]) -> None:
        self._engine = _bm25s().BM25(k1=self.k1, b=self.b, method="lucene", dtype="float64")
        vocabulary = {str(number): number for number in range(len(self.vocabulary_))}
        self._engine.index((ids, vocabulary), show_progress=False, create_empty_token=False)

    def token_scores(self, tokens: list[int]) -> np.ndarray:
        if not tokens:
            return np.zeros(len(self.document_ids_))
        # bm25s leaves out the factor k1 + 1, which changes no order.
        return (self.k1 + 1) * self._engine.get_scores_from_ids(tokens).astype(np.float64)


class QueryLikelihood(_Retriever):
    """Eq. (2).

    Args:
        mu: weight of the collection, in tokens, > 0.
        tokenizer: text -> tokens.
    """

    def __init__(self, mu: float | int = 1000, *, tokenizer: Callable[[str], list[str]] | None = None):
        if mu <= 0:
            raise ValueError(f"mu must be positive, got {mu}")
        self.mu = float(mu)
        self.tokenizer = Tokenizer() if tokenizer is None else tokenizer

    def _index(self, ids: list[list[int]]) -> None:
        occurrences = np.asarray(self.counts_.sum(axis=0)).ravel()
        self._share = occurrences / max(occurrences.sum(), 1)
        columns = np.repeat(np.arange(self.counts_.shape[1]), np.diff(self.counts_.indptr))
        self._engine = _bm25s().BM25(dtype="float64")
        self._engine.scores = {
            "data": np.log1p(self.counts_.data / (self.mu * self._share[columns])),
            "indices": self.counts_.indices,
            "indptr": self.counts_.indptr,
            "num_docs": len(ids),
        }
        self._engine.nonoccurrence_array = None

    def token_scores(self, tokens: list[int]) -> np.ndarray:
        tokens = [token for token in tokens if self._share[token] > 0]
        if not tokens:
            return np.zeros(len(self.document_ids_))
        matches = self._engine.get_scores_from_ids(tokens).astype(np.float64)
        background = np.log(self.mu * self._share[tokens]).sum()
        return matches + background - len(tokens) * np.log(self.lengths_ + self.mu)


class RM3:
    """Feedback by a relevance model on top of a fitted retriever.

    Args:
        retriever: fitted or not; `fit` fits it.
        documents: found documents that count as relevant.
        terms: words that are added.
        original: lambda, share of the query as it was asked, in [0, 1]; 1 is the retriever alone.
    """

    def __init__(self, retriever: _Retriever, *, documents: int = 10, terms: int = 20, original: float | int = 0.5):
        if documents < 1 or terms < 1 or not 0 <= original <= 1:
            raise ValueError(
                f"documents and terms must be at least 1 and original in [0, 1], got {documents}, {terms}, {original}"
            )
        self.retriever, self.documents, self.terms, self.original = retriever, documents, terms, float(original)

    def fit(self, documents: Mapping[str, str]) -> "RM3":
        self.retriever.fit(documents)
        return self

    def expand(self, query: str) -> dict[int, float]:
        """Weights, which sum to 1, of the tokens of the widened query."""
        known = self.retriever._known(query)
        if not known:
            return {}
        weights = {token: self.original * count / len(known) for token, count in Counter(known).items()}
        scores = self.retriever.scores(query)
        found = self.retriever.top(scores, self.documents)
        likelihood = (
            np.exp(scores[found] - scores[found].max())
            if isinstance(self.retriever, QueryLikelihood)
            else (np.maximum(scores[found], 0))
        )
        if likelihood.sum() == 0:
            return {token: weight / self.original for token, weight in weights.items()} if self.original else {}
        counts = self.retriever.counts_.tocsr()[found]
        lengths = np.maximum(self.retriever.lengths_[found], 1)
        model = np.asarray(counts.T @ (likelihood / likelihood.sum() / lengths)).ravel()
        model[:2] = 0
        best = np.lexsort((np.arange(len(model)), -model))[: self.terms]
        best = best[model[best] > 0]
        for token in best:
            share = (1 - self.original) * float(model[token] / model[best].sum())
            weights[int(token)] = weights.get(int(token), 0.0) + share
        return weights

    def search(self, queries: Mapping[str, str], *, k: int = 100) -> Run:
        """As `BM25Retriever.search`, with the widened queries."""
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        run: Run = {}
        for name, query in queries.items():
            weights = self.expand(query)
            run[name] = self.retriever._found(list(weights), self.retriever.weighted_scores(weights), k)
        return run
