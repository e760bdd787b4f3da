"""Measures by hand, ties, empty answers, folds over queries, interpolation and paired intervals."""

import math

import numpy as np
import pytest
import scipy.stats

from etude.ranking.neural_ranking import (
    best_weight,
    evaluate,
    evaluate_queries,
    interpolate,
    paired_interval,
    query_folds,
)

JUDGEMENTS = {"q1": {"a": 3, "b": 1, "c": 0}, "q2": {"a": 1, "d": 2}}


def test_measures_equal_hand_values():
    run = {"q1": {"c": 3.0, "a": 2.0, "b": 1.0}, "q2": {"d": 1.0, "x": 0.5}}
    values = evaluate_queries(run, JUDGEMENTS, measures=["nDCG@10", "AP", "P@20", "RR", "R@100"])
    best = 3 + 1 / math.log2(3)  # linear gains
    assert values["nDCG@10"]["q1"] == pytest.approx((3 / math.log2(3) + 1 / math.log2(4)) / best, abs=1e-6)
    assert values["nDCG@10"]["q2"] == pytest.approx(2 / (2 + 1 / math.log2(3)), abs=1e-6)
    assert values["AP"] == pytest.approx({"q1": (1 / 2 + 2 / 3) / 2, "q2": 1 / 2}, abs=1e-6)
    assert values["P@20"] == pytest.approx({"q1": 2 / 20, "q2": 1 / 20}, abs=1e-6)
    assert values["RR"] == pytest.approx({"q1": 1 / 2, "q2": 1}, abs=1e-6)
    assert values["R@100"] == pytest.approx({"q1": 1, "q2": 1 / 2}, abs=1e-6)


def test_a_perfect_run_scores_one_and_an_empty_answer_zero():
    perfect = {query: {document: float(grade) for document, grade in row.items()} for query, row in JUDGEMENTS.items()}
    assert evaluate(perfect, JUDGEMENTS, measures=["nDCG@10", "AP"]) == {"nDCG@10": 1.0, "AP": 1.0}
    half = {"q1": perfect["q1"], "q2": {}}
    assert evaluate(half, JUDGEMENTS, measures=["nDCG@10"]) == {"nDCG@10": 0.5}
    del half["q2"]
    assert evaluate(half, JUDGEMENTS, measures=["nDCG@10"]) == {"nDCG@10": 0.5}
    assert evaluate({}, JUDGEMENTS, measures=["AP"]) == {"AP": 0.0}


def test_ties_are_broken_by_document_id():
    for scores in ({"a": 1.0, "b": 1.0}, {"b": 1.0, "a": 1.0}):
        assert evaluate({"q": scores}, {"q": {"a": 1}}, measures=["RR"]) == {"RR": 1.0}
        assert evaluate({"q": scores}, {"q": {"b": 1}}, measures=["RR"]) == {"RR": 0.5}
    # trec_eval keeps scores in single precision: these two would be a tie to it.
    assert evaluate({"q": {"a": 1.0, "b": 1.0 + 1e-12}}, {"q": {"b": 1}}, measures=["RR"]) == {"RR": 1.0}


def test_queries_without_a_relevant_document_are_left_out():
    judgements = {**JUDGEMENTS, "q3": {"a": 0}, "q4": {}}
    assert set(evaluate_queries({}, judgements, measures=["AP"])["AP"]) == {"q1", "q2"}
    with pytest.raises(ValueError, match="none of the 2 queries has a judged relevant document"):
        evaluate({}, {"q3": {"a": 0}, "q4": {}})


def test_an_unknown_measure_is_named():
    with pytest.raises(ValueError, match="unknown measure 'goodness'"):
        evaluate({}, JUDGEMENTS, measures=["goodness"])


def test_folds_are_over_queries_and_every_query_is_tested_once():
    queries = [f"q{number}" for number in range(23)]
    folds = query_folds(queries, 5, np.random.default_rng(0))
    assert sorted(query for *_, test in folds for query in test) == sorted(queries)
    for train, val, test in folds:
        assert sorted([*train, *val, *test]) == sorted(queries)
        assert 3 * 4 - 1 <= len(train) <= 3 * 5
    with pytest.raises(ValueError, match=r"folds must lie in 3..2, the number of queries, got 3"):
        query_folds(["a", "b"], 3, np.random.default_rng(0))


def test_interpolation_adds_standardised_scores():
    first, second = {"q": {"a": 1.0, "b": 3.0}}, {"q": {"a": 40.0, "b": 20.0}}
    assert interpolate(first, second, 0.5)["q"] == pytest.approx({"a": -1 + 0.5, "b": 1 - 0.5})
    flat = interpolate({"q": {"a": 2.0, "b": 2.0}, "none": {}}, second, 1)
    assert flat == {"q": pytest.approx({"a": 1.0, "b": -1.0}), "none": {}}
    missing = interpolate({"q": {"a": 1.0, "b": 1.0, "c": 1.0}}, {"q": {"a": 2.0, "b": 1.0}}, 1)["q"]
    assert missing["c"] == missing["b"] < missing["a"]


def test_the_weight_is_chosen_by_the_measure_and_of_equals_the_smallest():
    first, judgements = {"q": {"a": 0.0, "b": 1.0}}, {"q": {"a": 1}}
    assert best_weight(first, {"q": {"a": 1.0, "b": 0.0}}, judgements) == 1  # at 1 both are equal, and a comes first
    assert best_weight(first, {"q": {"a": 0.0, "b": 1.0}}, judgements) == 0


def test_the_paired_interval_is_that_of_a_t_test():
    rng = np.random.default_rng(0)
    first = {f"q{n}": float(v) for n, v in enumerate(rng.normal(size=40))}
    second = {query: value - 0.4 + 0.3 * rng.normal() for query, value in first.items()}
    found = paired_interval(first, second)
    expected = scipy.stats.ttest_rel(list(first.values()), list(second.values()))
    low, high = expected.confidence_interval()
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.p == pytest.approx(1 / 10_001)
    swapped = paired_interval(first, {**first, "q0": first["q0"] - 1})
    assert swapped.p == 1  # one query alone: its exchange is as extreme
    with pytest.raises(ValueError, match="the same queries"):
        paired_interval(first, {"q0": 1.0})
