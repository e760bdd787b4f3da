"""The bench of the experiments, and what the claims do with folds, groups and controls."""

import numpy as np
import pytest
import torch

from etude.claims.ranking import neural_ranking as claims
from etude.lab import Trial
from etude.ranking.neural_ranking import Workbench, build_model


@pytest.fixture(scope="module")
def bench():
    return Workbench(claims.topics(), query_length=8, doc_length=40, depth=20, dim=16)


def test_the_control_is_the_cosine_of_means_weighted_by_idf(bench):
    vocabulary, data = bench.texts.vocabulary, bench.data

    def mean(text):
        ids = vocabulary.ids(bench.texts.tokenizer(text))
        return sum(bench.vectors[token].double() * vocabulary.idf[token] for token in ids)

    query = next(iter(bench.queries))
    for document, score in bench.cosine[query].items():
        q, d = mean(data.queries[query]), mean(data.documents[document])
        assert score == pytest.approx(float(q @ d / q.norm() / d.norm()), abs=1e-5)


def test_features_are_kept_for_models_whose_features_do_not_change(bench):
    model = build_model("drmm", bench.texts, vectors=bench.vectors)
    assert bench.features("drmm", model) is bench.features("drmm", model)
    assert bench.features("arci", build_model("arci", bench.texts, vectors=bench.vectors)) is None


def study(arm="drmm", seed=500, name="interaction"):
    claim = claims.PAPER.claims[name]
    return claims.Study(Trial(claim.id, arm, seed, "smoke", claim.setups["smoke"], {"lr": None}), claims.topics())


def test_every_query_is_tested_once_by_a_model_that_was_not_trained_or_chosen_on_it():
    one = study()
    tested = [query for *_, test in one.folds for query in test]
    assert sorted(tested) == sorted(one.bench.queries)
    for train, val, test in one.folds:
        assert not set(test) & {*train, *val}
    run, val_run, _ = one.neural("knrm", 0.1, val_run=True)
    assert set(run) == set(val_run) == set(one.bench.queries)


def test_arms_of_a_seed_share_folds_and_groups_and_another_seed_has_others(monkeypatch):
    assert study("drmm").folds == study("dssm").folds
    assert study(seed=500).folds != study(seed=501).folds
    drawn = {}
    for name in ("drmm", "knrm"):
        seen = drawn[name] = []
        original = claims.train_ranker

        def watched(*arguments, generator, seen=seen, original=original, **options):
            seen.append(generator.get_state())
            return original(*arguments, generator=generator, **options)

        with monkeypatch.context() as patch:
            patch.setattr(claims, "train_ranker", watched)
            study(name).neural(name, 0.01)
    assert all(torch.equal(a, b) for a, b in zip(drawn["drmm"], drawn["knrm"]))


def test_the_tuned_first_stage_never_looks_at_the_fold_that_it_is_tested_on(monkeypatch):
    one = study("bm25_tuned", name="bm25")
    first = one.tuned_bm25()
    _, _, test = one.folds[0]
    spoilt = dict(one.bench.judgements) | {query: {"d0": 1} for query in test}
    monkeypatch.setattr(one.bench, "judgements", spoilt)
    assert {query: one.tuned_bm25()[query] for query in test} == {query: first[query] for query in test}


def test_the_difference_of_group_means_is_the_slope_over_arms_at_one_and_zero():
    contrast = claims._groups("ndcg", ("a", "b", "c"), ("d",))
    values = {"a": 0.3, "b": 0.5, "c": 0.1, "d": 0.2}
    positions = dict(contrast.against)
    slope = np.polyfit([positions[arm] for arm in values], list(values.values()), 1)[0]
    assert slope == pytest.approx(np.mean([0.3, 0.5, 0.1]) - 0.2)


def test_a_run_in_random_order_is_drawn_by_the_seed():
    values = {}
    for seed in (500, 501):
        claim = claims.PAPER.claims["interaction"]
        trial = Trial(claim.id, "random", seed, "smoke", claim.setups["smoke"], {})
        values[seed] = claim.function(trial, claims.topics())
    assert values[500]["ndcg"] != values[501]["ndcg"]
    assert values[500]["recall100"] == values[501]["recall100"]
