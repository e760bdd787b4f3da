"""Neural ranking models for search: nine of them with one signature, their objectives, and the baselines to beat.

Guo, Fan, Pang, Yang, Ai, Zamani, Wu, Croft & Cheng, "A Deep Look into Neural Ranking Models for Information Retrieval",
Information Processing & Management 57(6), 2020, arXiv:1903.06902.

    from etude.ranking.neural_ranking import Reranker, topic_collection

    data = topic_collection()
    reranker = Reranker("drmm").fit(data)
    run = reranker.rank({"mine": "bababa bebabe"}, k=10)

The survey writes every ranker as f(s, t) = g(psi(s), phi(t), eta(s, t)) and sorts them by three choices (`taxonomy`).
Here each is a `MatchingModel` on the same inputs, trained by the same code on the same candidates, beside BM25, query
likelihood, RM3 and LambdaMART. Names are imported when first asked for: looking up papers needs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from etude.ranking.neural_ranking.base import MatchingModel
    from etude.ranking.neural_ranking.candidates import Candidates, EncodedTexts, GroupSampler
    from etude.ranking.neural_ranking.cards import rank_papers, word_search
    from etude.ranking.neural_ranking.catalogue import MODELS, build_model, taxonomy
    from etude.ranking.neural_ranking.comparison import compare, plot_comparison
    from etude.ranking.neural_ranking.duet import Duet
    from etude.ranking.neural_ranking.embeddings import read_embeddings, train_embeddings
    from etude.ranking.neural_ranking.evaluation import (
        MEASURES,
        PairedInterval,
        best_weight,
        evaluate,
        evaluate_queries,
        interpolate,
        paired_interval,
        query_folds,
    )
    from etude.ranking.neural_ranking.generated import topic_collection
    from etude.ranking.neural_ranking.interaction import ARCII, DRMM, KNRM, ConvKNRM, MatchPyramid
    from etude.ranking.neural_ranking.learning_to_rank import FEATURES, LambdaMART, pair_features
    from etude.ranking.neural_ranking.matching import (
        dynamic_pool,
        gaussian_kernels,
        identical,
        kernel_levels,
        match_histogram,
        match_matrix,
    )
    from etude.ranking.neural_ranking.objectives import (
        OBJECTIVES,
        CalibratedPointwise,
        hinge_pair_loss,
        lambda_loss,
        listmle_loss,
        listnet_loss,
        pointwise_loss,
        ranknet_loss,
        softmax_loss,
    )
    from etude.ranking.neural_ranking.representation import ARCI, CDSSM, DSSM
    from etude.ranking.neural_ranking.reranker import Reranker
    from etude.ranking.neural_ranking.retrieval import RM3, BM25Retriever, QueryLikelihood
    from etude.ranking.neural_ranking.text import Tokenizer, Vocabulary, letter_trigrams, trigram_table
    from etude.ranking.neural_ranking.training import FittedRanker, cached_features, score_candidates, train_ranker
    from etude.ranking.neural_ranking.workbench import Workbench

_HOMES = {
    "base": "MatchingModel",
    "candidates": "Candidates EncodedTexts GroupSampler",
    "cards": "rank_papers word_search",
    "catalogue": "MODELS build_model taxonomy",
    "comparison": "compare plot_comparison",
    "duet": "Duet",
    "embeddings": "read_embeddings train_embeddings",
    "evaluation": (
        "MEASURES PairedInterval best_weight evaluate evaluate_queries interpolate paired_interval query_folds"
    ),
    "generated": "topic_collection",
    "interaction": "ARCII DRMM KNRM ConvKNRM MatchPyramid",
    "learning_to_rank": "FEATURES LambdaMART pair_features",
    "matching": "dynamic_pool gaussian_kernels identical kernel_levels match_histogram match_matrix",
    "objectives": (
        "OBJECTIVES CalibratedPointwise hinge_pair_loss lambda_loss listmle_loss listnet_loss pointwise_loss "
        "ranknet_loss softmax_loss"
    ),
    "representation": "ARCI CDSSM DSSM",
    "reranker": "Reranker",
    "retrieval": "RM3 BM25Retriever QueryLikelihood",
    "text": "Tokenizer Vocabulary letter_trigrams trigram_table",
    "training": "FittedRanker cached_features score_candidates train_ranker",
    "workbench": "Workbench",
}
_WHERE = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = [
    "ARCI", "ARCII", "CDSSM", "DRMM", "DSSM", "FEATURES", "KNRM", "MEASURES", "MODELS", "OBJECTIVES", "RM3",
    "BM25Retriever", "CalibratedPointwise", "Candidates", "ConvKNRM", "Duet", "EncodedTexts", "FittedRanker",
    "GroupSampler", "LambdaMART", "MatchPyramid", "MatchingModel", "PairedInterval", "QueryLikelihood", "Reranker",
    "Tokenizer", "Vocabulary", "Workbench", "best_weight", "build_model", "cached_features", "compare",
    "dynamic_pool", "evaluate", "evaluate_queries", "gaussian_kernels", "hinge_pair_loss", "identical", "interpolate",
    "kernel_levels", "lambda_loss", "letter_trigrams", "listmle_loss", "listnet_loss", "match_histogram",
    "match_matrix", "pair_features", "paired_interval", "plot_comparison", "pointwise_loss", "query_folds",
    "rank_papers", "ranknet_loss", "read_embeddings", "score_candidates", "softmax_loss", "taxonomy",
    "topic_collection", "train_embeddings", "train_ranker", "trigram_table", "word_search",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
