"""The whole of it as an estimator: a first stage finds candidates, a model puts them in order."""

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from etude.data.kinds_ranking import RankingData
from etude.ranking.neural_ranking.candidates import Candidates, EncodedTexts
from etude.ranking.neural_ranking.catalogue import MODELS, build_model
from etude.ranking.neural_ranking.embeddings import train_embeddings
from etude.ranking.neural_ranking.evaluation import best_weight, evaluate, interpolate
from etude.ranking.neural_ranking.retrieval import BM25Retriever, Run
from etude.ranking.neural_ranking.training import FittedRanker, cached_features, score_candidates, train_ranker

try:
    from sklearn.base import BaseEstimator
    from sklearn.exceptions import NotFittedError
except ImportError as error:
    raise ImportError('Reranker needs scikit-learn: pip install "etude[ranking]"') from error

__all__ = ["Reranker"]

DEFAULTS: dict[str, dict[str, Any]] = {
    "drmm": {"lr": 1e-2}, "knrm": {"lr": 1e-1, "trainable": False}, "dssm": {"lr": 1e-3}, "cdssm": {"lr": 1e-3},
}  # fmt: skip
"""What differs by model: heads of a few parameters on frozen vectors take large steps."""


class Reranker(BaseEstimator):
    """Learns from judged queries to put a first stage's documents in order.

        reranker = Reranker("drmm").fit(data)
        run = reranker.rank({"new": "heat transfer in slip flow"}, k=10)

    Args:
        model: name in `MODELS`.
        first_stage: a retriever; `BM25Retriever()` if None. It is copied and fitted.
        objective: name in `OBJECTIVES`.
        depth: K, candidates of a query.
        interpolated: whether the score is z(first stage) + w z(model), w chosen on the validation queries.
        query_length, doc_length: words after which texts are cut.
        dim: of the PPMI-SVD word vectors; see `embeddings_`.
        lr: learning rate; if None 1e-2 for DRMM, 1e-1 for K-NRM (frozen), else 1e-3.
        steps, batch, negatives: see `train_ranker`.
        validation: share of the judged queries that choose the state and the weight; 0 keeps the last state, and then
            w = 1.
        model_options: further arguments of the model.
        random_state: seed of the split, the initial weights and the groups.
        device: where to train and score.

    Attributes:
        model_, first_stage_, texts_: the fitted parts.
        weight_: w, or None without interpolation.
        fit_: the `FittedRanker` of the training.
        excluded_: queries without a relevant document, which taught nothing.
        truncated_: share of the documents that were cut.
    """

    def __init__(
        self,
        model: str = "drmm",
        *,
        first_stage: Any = None,
        objective: str = "pairwise",
        depth: int = 100,
        interpolated: bool = True,
        query_length: int = 30,
        doc_length: int = 500,
        dim: int = 100,
        lr: float | None = None,
        steps: int = 400,
        batch: int = 32,
        negatives: int = 4,
        validation: float = 0.25,
        model_options: Mapping[str, Any] | None = None,
        random_state: int = 0,
        device: str = "cpu",
    ):
        self.model = model
        self.first_stage = first_stage
        self.objective = objective
        self.depth = depth
        self.interpolated = interpolated
        self.query_length = query_length
        self.doc_length = doc_length
        self.dim = dim
        self.lr = lr
        self.steps = steps
        self.batch = batch
        self.negatives = negatives
        self.validation = validation
        self.model_options = model_options
        self.random_state = random_state
        self.device = device

    def fit(self, data: RankingData, y: Any = None, *, queries: Sequence[str] | None = None) -> "Reranker":
        """Trains on the judged queries of a collection.

        Args:
            data: documents, queries and judgements; a `RankingData`.
            y: not used; there for scikit-learn's signature.
            queries: ids of the queries to learn from; all judged ones if None.

        Raises:
            ValueError: if a query is unknown, none has a relevant document, or none of those has one among its
                candidates; or if an argument of the constructor is out of range.
        """
        if self.model not in MODELS:
            raise ValueError(f"model must be one of {', '.join(MODELS)}, got {self.model!r}")
        if not 0 <= self.validation < 1:
            raise ValueError(f"validation must lie in [0, 1), got {self.validation}")
        asked = list(data.queries) if queries is None else list(queries)
        for query in asked:
            if query not in data.queries:
                raise ValueError(f"there is no query {query!r} in {data.name}")
        judged = set(data.judged())
        self.excluded_ = [query for query in asked if query not in judged]
        known = [query for query in asked if query in judged]
        if not known:
            raise ValueError(f"none of the {len(asked)} queries of {data.name} has a relevant document")
        self.first_stage_ = copy.deepcopy(BM25Retriever() if self.first_stage is None else self.first_stage)
        self.first_stage_.fit(data.documents)
        tokenizer = getattr(self.first_stage_, "tokenizer", None)
        self.texts_ = EncodedTexts(
            data.documents, tokenizer=tokenizer, query_length=self.query_length, doc_length=self.doc_length
        ).to(self.device)
        self.truncated_ = self.texts_.truncated
        candidates = self._candidates({query: data.queries[query] for query in known}, data.judgements)

        order = [known[place] for place in np.random.default_rng(self.random_state).permutation(len(known))]
        held = round(self.validation * len(known)) if len(known) > 1 else 0
        rows = [candidates.rows(part).to(self.device) for part in (order[held:], order[:held])]
        options = dict(DEFAULTS.get(self.model, {})) | dict(self.model_options or {})
        lr = options.pop("lr", 1e-3) if self.lr is None else self.lr
        options.pop("lr", None)
        with torch.random.fork_rng():
            torch.manual_seed(self.random_state)
            vectors = train_embeddings(self.texts_.tokens, self.texts_.vocabulary, dim=self.dim)
            self.model_ = build_model(self.model, self.texts_, vectors=vectors, **options).to(self.device)
            features = cached_features(self.model_, candidates) if self.model_.cacheable else None
            self.fit_: FittedRanker = train_ranker(
                self.model_, candidates, rows[0], rows[1] if held else None, judgements=data.judgements,
                objective=self.objective, lr=lr, steps=self.steps, batch=self.batch, negatives=self.negatives,
                features=features, generator=torch.Generator().manual_seed(self.random_state),
            )  # fmt: skip
        self.weight_: float | None = 1.0 if self.interpolated else None
        if self.interpolated and held:
            run = candidates.to_run(score_candidates(self.model_, candidates, rows[1], features=features), rows[1])
            first = candidates.to_run(candidates.first[rows[1]], rows[1])
            self.weight_ = best_weight(first, run, {query: data.judgements[query] for query in order[:held]})
        return self

    def _candidates(
        self, queries: Mapping[str, str], judgements: Mapping[str, Mapping[str, int]] | None = None
    ) -> Candidates:
        run = self.first_stage_.search(queries, k=self.depth)
        return Candidates.from_run(run, queries, self.texts_, judgements)

    def _elsewhere(self, queries: Mapping[str, str], documents: Mapping[str, str]) -> Candidates:
        """Candidates among other documents: the first stage is fitted on them, the model keeps its vocabulary."""
        run = copy.deepcopy(self.first_stage_).fit(documents).search(queries, k=self.depth)
        texts = EncodedTexts(
            documents, tokenizer=self.texts_.tokenizer, query_length=self.query_length, doc_length=self.doc_length,
            vocabulary=self.texts_.vocabulary,
        ).to(self.device)  # fmt: skip
        return Candidates.from_run(run, queries, texts)

    def rank(self, queries: Mapping[str, str], *, k: int = 100, documents: Mapping[str, str] | None = None) -> Run:
        """The k best documents of each query (id -> text), best first.

        A query of which no word is known has an empty answer, and a warning says so.

        Args:
            queries: id -> text.
            k: documents of each; no more than `depth`.
            documents: id -> text, to be ranked instead of those of `fit`; the model knows only the words of the latter.

        Raises:
            NotFittedError: before `fit`.
            ValueError: if k is below 1.
        """
        if not hasattr(self, "model_"):
            raise NotFittedError("call fit before rank")
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if not queries:
            return {}
        candidates = self._candidates(queries) if documents is None else self._elsewhere(queries, documents)
        rows = torch.arange(len(candidates.queries), device=self.device)
        run = candidates.to_run(score_candidates(self.model_, candidates, rows), rows)
        if self.weight_ is not None:
            run = interpolate(candidates.to_run(candidates.first, rows), run, self.weight_)
        empty = [query for query, found in run.items() if not found]
        if empty:
            warnings.warn(
                f"no word of {len(empty)} queries is known to the collection, so that nothing is found: {empty[:3]}",
                stacklevel=2,
            )
        return {
            query: dict(sorted(found.items(), key=lambda item: (-item[1], item[0]))[:k]) for query, found in run.items()
        }

    def score(self, data: RankingData, y: Any = None, *, measure: str = "nDCG@10") -> float:
        """Mean measure over the judged queries of `data`, whose documents are those of `fit`.

        Raises:
            ValueError: if a judged document is not among those of `fit`, or no query has a relevant document.
        """
        for query, grades in data.judgements.items():
            for document in grades:
                if document not in self.texts_.rows:
                    raise ValueError(f"query {query!r} judges the document {document!r}, on which fit did not work")
        run = self.rank({query: data.queries[query] for query in data.judged()}, k=self.depth)
        return evaluate(run, data.judgements, measures=[measure])[measure]
