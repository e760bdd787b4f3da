"""Measures through ir-measures, folds over queries, interpolation of runs, and tests over queries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.stats

from etude.ranking.neural_ranking.retrieval import Run

__all__ = [
    "MEASURES", "PairedInterval", "best_weight", "evaluate", "evaluate_queries", "interpolate", "paired_interval",
    "query_folds",
]  # fmt: skip

MEASURES = ("nDCG@10", "nDCG@20", "AP", "P@20", "RR", "R@100")
Judgements = Mapping[str, Mapping[str, int]]


def _ir_measures() -> Any:
    try:
        import ir_measures
    except ImportError as error:
        raise ImportError('measures need ir-measures: pip install "etude[ranking]"') from error
    return ir_measures


def evaluate_queries(
    run: Mapping[str, Mapping[str, float]], judgements: Judgements, *, measures: Sequence[str] = MEASURES
) -> dict[str, dict[str, float]]:
    """Measure -> query -> value, for every query of `judgements` with a relevant document.

    A query without results scores 0: it is not skipped. Equal scores are ordered by document id. nDCG is with linear
    gains, as trec_eval has it; AP, P, RR and R count every grade above 0 as relevant.

    Raises:
        ImportError: if ir-measures is missing.
        ValueError: if no query has a relevant document, or a measure is unknown.
    """
    ir_measures = _ir_measures()
    asked = {}
    for name in measures:
        try:
            asked[ir_measures.parse_measure(name)] = name
        except (NameError, ValueError) as error:
            raise ValueError(f"unknown measure {name!r}: {error}") from None
    judged = {query: dict(grades) for query, grades in judgements.items() if any(g > 0 for g in grades.values())}
    if not judged:
        raise ValueError(f"none of the {len(judgements)} queries has a judged relevant document: nothing to measure")
    # Places instead of scores: trec_eval breaks ties in its own way.
    placed = {}
    for query in judged:
        scores = run.get(query, {})
        ordered = sorted(scores, key=lambda document: (-scores[document], document))
        placed[query] = {document: float(len(ordered) - place) for place, document in enumerate(ordered)}
    values: dict[str, dict[str, float]] = {name: dict.fromkeys(judged, 0.0) for name in measures}
    for result in ir_measures.iter_calc(list(asked), judged, {query: row for query, row in placed.items() if row}):
        values[asked[result.measure]][result.query_id] = float(result.value)
    return values


def evaluate(
    run: Mapping[str, Mapping[str, float]], judgements: Judgements, *, measures: Sequence[str] = MEASURES
) -> dict[str, float]:
    """Measure -> mean over the queries with a relevant document; see `evaluate_queries`."""
    values = evaluate_queries(run, judgements, measures=measures)
    return {name: float(np.mean(list(row.values()))) for name, row in values.items()}


def query_folds(
    queries: Sequence[str], folds: int, rng: np.random.Generator
) -> list[tuple[list[str], list[str], list[str]]]:
    """(train, validation, test) of each fold: every query is tested once; the next fold's test validates.

    Raises:
        ValueError: if there are fewer than 3 folds or fewer queries than folds.
    """
    if folds < 3 or len(queries) < folds:
        raise ValueError(f"folds must lie in 3..{len(queries)}, the number of queries, got {folds}")
    order = [queries[place] for place in rng.permutation(len(queries))]
    parts = [order[fold::folds] for fold in range(folds)]
    split = []
    for fold in range(folds):
        after = (fold + 1) % folds
        train = [query for number, part in enumerate(parts) if number not in (fold, after) for query in part]
        split.append((train, parts[after], parts[fold]))
    return split


def _standardized(scores: Mapping[str, float]) -> dict[str, float]:
    if not scores:
        return {}
    values = np.array(list(scores.values()), dtype=np.float64)
    spread = values.std()
    scaled = (values - values.mean()) / spread if spread > 0 else np.zeros_like(values)
    return dict(zip(scores, scaled.tolist()))


def interpolate(
    first: Mapping[str, Mapping[str, float]], second: Mapping[str, Mapping[str, float]], weight: float | int
) -> Run:
    """z(first) + weight z(second) over the documents of `first`, standardised by query.

    What `second` did not score counts as its lowest.
    """
    run: Run = {}
    for query, scores in first.items():
        others = second.get(query, {})
        low = min(others.values(), default=0.0)
        base, added = _standardized(scores), _standardized({d: others.get(d, low) for d in scores})
        run[query] = {document: base[document] + weight * added[document] for document in scores}
    return run


def best_weight(
    first: Mapping[str, Mapping[str, float]],
    second: Mapping[str, Mapping[str, float]],
    judgements: Judgements,
    *,
    weights: Sequence[float | int] = (0, 0.25, 0.5, 1, 2),
    measure: str = "nDCG@10",
) -> float:
    """The weight with the best mean measure on these (validation) queries; of equals the smallest."""
    values = [
        evaluate(interpolate(first, second, weight), judgements, measures=[measure])[measure] for weight in weights
    ]
    return float(weights[int(np.argmax(values))])


@dataclass(frozen=True)
class PairedInterval:
    """Mean difference over queries, its t interval, and p by random exchanges of the two systems' values."""

    mean: float
    low: float
    high: float
    p: float
    queries: int


def paired_interval(
    first: Mapping[str, float],
    second: Mapping[str, float],
    *,
    level: float = 0.95,
    exchanges: int = 10_000,
    seed: int = 0,
) -> PairedInterval:
    """How much the first system is better, query by query.

    Raises:
        ValueError: if the queries differ or are fewer than two.
    """
    if set(first) != set(second) or len(first) < 2:
        raise ValueError(f"both systems need the same queries, at least two; got {len(first)} and {len(second)}")
    differences = np.array([first[query] - second[query] for query in first])
    mean, error = differences.mean(), differences.std(ddof=1) / np.sqrt(len(differences))
    reach = scipy.stats.t.ppf((1 + level) / 2, len(differences) - 1) * error
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(exchanges, len(differences)))
    extreme = int((np.abs(signs @ differences) >= abs(differences.sum()) - 1e-12).sum())
    return PairedInterval(
        float(mean), float(mean - reach), float(mean + reach), (extreme + 1) / (exchanges + 1), len(differences)
    )
