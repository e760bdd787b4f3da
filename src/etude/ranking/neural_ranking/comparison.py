"""The survey's comparison on a collection of one's own: every model tested on every query, by cross-validation."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from etude.data.kinds_ranking import RankingData
from etude.ranking.neural_ranking.evaluation import MEASURES, evaluate, query_folds
from etude.ranking.neural_ranking.reranker import Reranker
from etude.ranking.neural_ranking.retrieval import BM25Retriever, Run

__all__ = ["compare", "plot_comparison"]


def compare(
    models: Sequence[str] | Mapping[str, Reranker],
    data: RankingData,
    *,
    folds: int = 5,
    seeds: int = 3,
    measures: Sequence[str] = MEASURES,
    progress: Callable[[int, int], Any] | None = None,
    **options: Any,
) -> Any:
    """A `pandas.DataFrame`, one row a model: means over seeds of each measure, and their standard deviation ("±").

    The row `bm25` is the first stage alone. Every query is scored once a seed, by a model that was trained and chosen
    on others; a seed draws the folds, the initial weights and the groups.

    Args:
        models: names, or name -> estimator to be copied for each fold.
        data: with judged queries, at least one a fold.
        folds: parts of the queries.
        seeds: repetitions.
        measures: of ir-measures.
        progress: called with the trainings done and those in all.
        options: of `Reranker`, for names.

    Raises:
        ImportError: if pandas is missing.
        ValueError: as from `Reranker` and `query_folds`.
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError('compare needs pandas: pip install "etude[run]"') from error
    from sklearn.base import clone

    estimators = dict(models) if isinstance(models, Mapping) else {name: Reranker(name, **options) for name in models}
    judged = list(data.judged())
    total = {query: data.judgements[query] for query in judged}
    values: dict[str, list[dict[str, float]]] = {name: [] for name in ("bm25", *estimators)}
    done = 0
    first = BM25Retriever().fit(data.documents).search({query: data.queries[query] for query in judged})
    for seed in range(seeds):
        split = query_folds(judged, folds, np.random.default_rng(seed))
        values["bm25"].append(evaluate(first, total, measures=measures))
        for name, estimator in estimators.items():
            run: Run = {}
            for train, val, test in split:
                fitted = clone(estimator).set_params(random_state=seed)
                run |= fitted.fit(data, queries=[*train, *val]).rank({query: data.queries[query] for query in test})
                done += 1
                if progress is not None:
                    progress(done, seeds * folds * len(estimators))
            values[name].append(evaluate(run, total, measures=measures))
    rows = {}
    for name, repeated in values.items():
        rows[name] = {measure: float(np.mean([row[measure] for row in repeated])) for measure in measures}
        rows[name] |= {
            f"± {measure}": float(np.std([row[measure] for row in repeated], ddof=1)) if seeds > 1 else 0.0
            for measure in measures
        }
    return pandas.DataFrame.from_dict(rows, orient="index")


def plot_comparison(table: Any, *, measure: str = "nDCG@10", ax: Any = None) -> Any:
    """Bars of one measure of `compare`'s table with its spread over seeds; returns the matplotlib axes."""
    if measure not in table:
        raise ValueError(f"the table has no {measure!r}; it has {', '.join(table.columns)}")
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots()
    ordered = table.sort_values(measure)
    ax.barh(list(ordered.index), ordered[measure], xerr=ordered.get(f"± {measure}"))
    ax.set_xlabel(measure)
    return ax
