"""The baseline of hand-made features: LambdaMART (Burges, "From RankNet to LambdaRank to LambdaMART", 2010)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int
from scipy.sparse.linalg import svds
from torch import Tensor

from etude.ranking.neural_ranking.candidates import Candidates
from etude.ranking.neural_ranking.retrieval import BM25Retriever, QueryLikelihood

__all__ = ["FEATURES", "LambdaMART", "pair_features"]

FEATURES = ("bm25", "query_likelihood", "tfidf_cosine", "overlap", "length", "idf_sum", "title_match", "lsi_cosine")
"""BM25; QL; cosine of tf-idf; share of the query's words present; ln(1 + length); idf of the words present; share of
the query's words in the title; cosine in the first dimensions of the tf-idf matrix."""


def _rows(matrix: scipy.sparse.csr_matrix) -> scipy.sparse.csr_matrix:
    lengths = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    return scipy.sparse.diags(1 / np.maximum(lengths, 1e-9)) @ matrix


def _latent(matrix: scipy.sparse.csr_matrix, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """(documents, r) of unit length, and the (words, r) that bring a query there."""
    rank = max(1, min(dim, min(matrix.shape) - 1))
    _, _, right = svds(matrix, k=rank, v0=np.random.default_rng(0).standard_normal(min(matrix.shape)))
    documents = matrix @ right.T
    return documents / np.maximum(np.linalg.norm(documents, axis=1, keepdims=True), 1e-9), right.T


def pair_features(
    candidates: Candidates,
    queries: Mapping[str, str],
    documents: Mapping[str, str],
    titles: Mapping[str, str] | None = None,
    *,
    dim: int = 100,
) -> Float[np.ndarray, "queries K features"]:
    """The features, in the order of `FEATURES`, of all candidates; they look at no judgement.

    Args:
        candidates: whose.
        queries, documents: id -> text.
        titles: of documents that have one.
        dim: of the latent space.
    """
    texts = candidates.texts
    vocabulary, tokenizer, idf = texts.vocabulary, texts.tokenizer, texts.vocabulary.idf
    bm25 = BM25Retriever(tokenizer=tokenizer).fit(documents, vocabulary=vocabulary)
    likelihood = QueryLikelihood(tokenizer=tokenizer).fit(documents, vocabulary=vocabulary)
    counts = bm25.counts_.tocsr()
    tfidf = _rows(counts @ scipy.sparse.diags(idf))
    latent, into = _latent(tfidf, dim)
    title_words = [frozenset(tokenizer((titles or {}).get(document, ""))) for document in texts.document_ids]
    found = np.zeros((*candidates.docs.shape, len(FEATURES)), dtype=np.float32)
    docs = candidates.docs.cpu().numpy()
    for place, name in enumerate(candidates.queries):
        words = tokenizer(queries[name])
        tokens = [token for token in vocabulary.ids(words) if token > 1]
        if not tokens:
            continue
        rows, distinct = docs[place], sorted(set(tokens))
        present = (counts[rows][:, distinct] > 0).toarray()
        query = np.bincount(tokens, minlength=len(vocabulary)) * idf
        query = query / max(np.linalg.norm(query), 1e-9)
        projected = query @ into
        projected = projected / max(np.linalg.norm(projected), 1e-9)
        found[place] = np.stack(
            [
                bm25.token_scores(tokens)[rows], likelihood.token_scores(tokens)[rows], tfidf[rows] @ query,
                present.mean(axis=1), np.log1p(bm25.lengths_[rows]), present @ idf[distinct],
                [len(title_words[row].intersection(words)) / len(set(words)) for row in rows],
                latent[rows] @ projected,
            ], axis=1,
        )  # fmt: skip
    return found


class LambdaMART:
    """Boosted trees on features of pairs, with LightGBM's objective lambdarank.

    Args:
        trees: at most; fewer where validation stops improving for 30.
        leaves, learning_rate, min_leaf: of the trees; small ones, for hundreds of queries.
        seed: of LightGBM.

    Raises:
        ImportError: if LightGBM is missing.
    """

    def __init__(
        self, *, trees: int = 300, leaves: int = 7, learning_rate: float = 0.05, min_leaf: int = 50, seed: int = 0
    ):
        try:
            import lightgbm
        except ImportError as error:
            raise ImportError('LambdaMART needs LightGBM: pip install "etude[ranking]"') from error
        self._lightgbm: Any = lightgbm
        self.trees = trees
        self.parameters = {
            "objective": "lambdarank", "metric": "ndcg", "eval_at": [10], "num_leaves": leaves, "num_threads": 1,
            "learning_rate": learning_rate, "min_data_in_leaf": min_leaf, "verbosity": -1, "seed": seed,
            "deterministic": True, "force_row_wise": True, "label_gain": list(range(32)),
        }  # fmt: skip

    def fit(
        self,
        features: Float[np.ndarray, "queries K features"],
        candidates: Candidates,
        train: Int[Tensor, " train"],
        val: Int[Tensor, " val"] | None = None,
    ) -> "LambdaMART":
        """Trains on the candidates of the queries `train`, groups by query, linear gains; `val` ends the boosting."""
        data = self._groups(features, candidates, train)
        callbacks, sets = [], []
        if val is not None:
            callbacks = [self._lightgbm.early_stopping(30, verbose=False)]
            sets = [self._groups(features, candidates, val, data)]
        self.booster_ = self._lightgbm.train(self.parameters, data, self.trees, valid_sets=sets, callbacks=callbacks)
        return self

    def _groups(self, features: np.ndarray, candidates: Candidates, rows: Tensor, reference: Any = None) -> Any:
        places, mask = rows.cpu().numpy(), candidates.mask[rows].cpu().numpy()
        return self._lightgbm.Dataset(
            features[places][mask], candidates.labels[rows].cpu().numpy()[mask].astype(np.int64),
            group=mask.sum(axis=1)[mask.any(axis=1)], reference=reference, free_raw_data=False,
        )  # fmt: skip

    def predict(self, features: Float[np.ndarray, "queries K features"]) -> Float[np.ndarray, "queries K"]:
        """Scores of all candidates."""
        return self.booster_.predict(features.reshape(-1, features.shape[-1])).reshape(features.shape[:2])
