"""Candidates, groups, training in bounded memory, the estimator, the comparison and LambdaMART."""

import copy

import numpy as np
import pytest
import torch

from etude.data.kinds_ranking import RankingData
from etude.ranking.neural_ranking import (
    FEATURES,
    BM25Retriever,
    Candidates,
    EncodedTexts,
    GroupSampler,
    LambdaMART,
    Reranker,
    build_model,
    cached_features,
    compare,
    evaluate,
    pair_features,
    plot_comparison,
    score_candidates,
    topic_collection,
    train_ranker,
)


def test_candidates_keep_order_labels_and_places(candidates, topics):
    run = BM25Retriever().fit(topics.documents).search(topics.queries, k=20)
    query = candidates.queries[3]
    row = 3
    found = [candidates.texts.document_ids[doc] for doc in candidates.docs[row][candidates.mask[row]]]
    assert found == list(run[query])
    labels = [topics.judgements[query].get(document, 0) for document in found]
    assert candidates.labels[row][candidates.mask[row]].tolist() == labels
    assert candidates.to_run(candidates.first, torch.arange(len(run))) == run


def test_a_run_that_names_what_is_not_there_is_refused(candidates, topics):
    for run, message in (
        ({"nobody": {}}, "query 'nobody', which is not there"),
        ({"q0": {"nowhere": 1.0}}, "document 'nowhere', which is not there"),
    ):
        with pytest.raises(ValueError, match=message):
            Candidates.from_run(run, topics.queries, candidates.texts)
    with pytest.raises(ValueError, match="no candidates of the query 'nobody'"):
        candidates.rows(["nobody"])


def test_long_documents_are_cut_and_the_share_is_told():
    texts = EncodedTexts({"a": "one two three", "b": "one", "c": ""}, doc_length=2)
    assert texts.truncated == pytest.approx(1 / 3)
    assert texts.doc_mask.sum(dim=1).tolist() == [2, 1, 0]


def test_groups_hold_one_relevant_candidate_and_others_of_the_same_list(candidates):
    rows = torch.arange(0, len(candidates.queries), 2)
    sampler = GroupSampler(candidates, rows, negatives=3, generator=torch.Generator().manual_seed(0))
    chosen, columns = sampler.draw(200)
    assert set(chosen.tolist()) <= set(rows.tolist())
    labels = candidates.labels[chosen[:, None], columns]
    assert (labels[:, 0] > 0).all()
    assert (labels[:, 1:] == 0).all()
    assert candidates.mask[chosen[:, None], columns].all()
    again = GroupSampler(candidates, rows, negatives=3, generator=torch.Generator().manual_seed(0)).draw(200)
    assert torch.equal(columns, again[1])


def test_nothing_to_learn_from_is_refused(candidates):
    empty = copy.copy(candidates)
    empty.labels = torch.zeros_like(candidates.labels)
    with pytest.raises(ValueError, match="none of the 2 queries has a relevant and another document"):
        GroupSampler(empty, torch.arange(2))
    with pytest.raises(ValueError, match="negatives must be at least 1, got 0"):
        GroupSampler(candidates, torch.arange(2), negatives=0)


@pytest.mark.parametrize(
    ("name", "options"),
    [("drmm", {}), ("knrm", {"trainable": False}), ("dssm", {"inputs": "embeddings", "hidden": (8, 8)})],
)
def test_kept_features_give_the_scores_of_the_model_whatever_the_batch(name, options, candidates):
    model = build_model(name, candidates.texts, dim=10, **options)
    rows = torch.tensor([4, 1, 7])
    features = cached_features(model, candidates, batch_pairs=33)
    kept = score_candidates(model, candidates, rows, features=features)
    torch.testing.assert_close(kept, score_candidates(model, candidates, rows, batch_pairs=7), rtol=1e-5, atol=1e-6)
    assert torch.equal(kept == -torch.inf, ~candidates.mask[rows])


def test_features_that_would_not_fit_are_not_kept(candidates):
    model = build_model("drmm", candidates.texts, dim=10)
    assert cached_features(model, candidates, max_bytes=10_000) is None
    with pytest.raises(ValueError, match="depend on what is trained"):
        cached_features(build_model("knrm", candidates.texts, dim=10), candidates)


def test_scoring_holds_no_more_pairs_than_a_batch(candidates):
    model = build_model("matchpyramid", candidates.texts, dim=10)
    seen = []
    model.convolution.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    score_candidates(model, candidates, torch.arange(len(candidates.queries)), batch_pairs=16)
    assert max(seen) == 16
    assert sum(seen) == int(candidates.mask.sum())


def test_training_leaves_the_state_that_was_best_on_validation(candidates, topics):
    torch.manual_seed(0)
    model = build_model("drmm", candidates.texts, dim=10)
    features = cached_features(model, candidates)
    train, val = torch.arange(8), torch.arange(8, 14)
    seen = []
    fitted = train_ranker(
        model, candidates, train, val, judgements=topics.judgements, lr=0.1, steps=40, checks=8, features=features,
        generator=torch.Generator().manual_seed(0), callback=lambda *values: seen.append(values),
    )  # fmt: skip
    assert [step for step, *_ in seen] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert fitted.best == max(value for *_, value in seen)
    run = candidates.to_run(score_candidates(model, candidates, val, features=features), val)
    judged = {query: topics.judgements[query] for query in run}
    assert evaluate(run, judged, measures=["nDCG@10"])["nDCG@10"] == fitted.best
    assert len(fitted.losses) == fitted.steps == 40


def test_bounded_scores_are_spread_in_the_objective_unless_a_scale_is_given(candidates):
    def objective(scores, labels):
        seen.append(scores.detach())
        return scores.mean()

    class Watched(torch.nn.Module):
        forward = staticmethod(objective)

    largest = {}
    plain: dict = {}
    for name, options in [(name, chosen) for name in ("drmm", "matchpyramid") for chosen in (plain, {"scale": 1.0})]:
        seen = []
        torch.manual_seed(0)
        model = build_model(name, candidates.texts, dim=10)
        train_ranker(
            model, candidates, torch.arange(4), objective=Watched(), steps=1, checks=1,
            generator=torch.Generator().manual_seed(0), **options,
        )  # fmt: skip
        largest[name, bool(options)] = seen[0]
    assert build_model("drmm", candidates.texts, dim=10).bounded
    torch.testing.assert_close(largest["drmm", False], 10 * largest["drmm", True])
    torch.testing.assert_close(largest["matchpyramid", False], largest["matchpyramid", True])


@pytest.mark.parametrize(
    ("name", "options", "bounded"),
    [
        ("dssm", {}, False), ("dssm", {"gamma": 1.0}, True), ("knrm", {}, True), ("knrm", {"squash": False}, False),
        ("convknrm", {}, False), ("arci", {}, False), ("matchpyramid", {}, False),
    ],
)  # fmt: skip
def test_models_say_whether_their_scores_are_bounded(candidates, name, options, bounded):
    assert build_model(name, candidates.texts, dim=10, **options).bounded is bounded


def test_patience_ends_the_training_early(candidates, topics):
    model = build_model("drmm", candidates.texts, dim=10)
    fitted = train_ranker(
        model, candidates, torch.arange(8), torch.arange(8, 14), judgements=topics.judgements, lr=1e-9, steps=50,
        checks=50, patience=3,
    )  # fmt: skip
    assert fitted.steps == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "best"}, "objective must be one of pointwise"),
        ({"lr": 0.0}, "lr must be positive, got"),
        ({"scale": 0.0}, "scale must be positive and finite, got 0.0"),
        ({"val": torch.arange(2)}, "validation needs judgements"),
    ],
)
def test_training_refuses_what_it_cannot_do(candidates, options, message):
    with pytest.raises(ValueError, match=message):
        train_ranker(build_model("drmm", candidates.texts, dim=10), candidates, torch.arange(4), **options)


def quick(**options):
    return Reranker(**{"model": "drmm", "dim": 10, "steps": 20, "depth": 20, "doc_length": 24} | options)


def test_the_estimator_learns_ranks_and_repeats_itself(topics):
    reranker = quick().fit(topics, queries=list(topics.queries)[:10])
    run = reranker.rank(topics.queries, k=5)
    assert run.keys() == topics.queries.keys()
    assert all(
        len(found) == 5 and list(found.values()) == sorted(found.values(), reverse=True) for found in run.values()
    )
    assert quick().fit(topics, queries=list(topics.queries)[:10]).rank(topics.queries, k=5) == run
    assert 0 < reranker.score(topics) <= 1
    assert reranker.weight_ in (0, 0.25, 0.5, 1, 2)


@pytest.mark.parametrize("model", ["dssm", "cdssm", "arci", "arcii", "matchpyramid", "knrm", "convknrm", "duet"])
def test_every_model_is_fitted_by_the_estimator(model, topics):
    options = {"dssm": {"hidden": (8, 8)}, "cdssm": {"channels": 8}, "duet": {"window": 5, "units": 8}}.get(model, {})
    small = {"num_trigrams": 300} if model in ("dssm", "cdssm") else {}
    reranker = quick(model=model, steps=2, batch=2, model_options=options | small).fit(topics)
    assert len(reranker.rank({"q": topics.queries["q0"]}, k=3)["q"]) == 3


def test_other_documents_are_ranked_by_the_same_model(topics):
    reranker = quick().fit(topics)
    others = {"x": topics.documents["d3"], "y": "nothing of it", "z": topics.documents["d4"]}
    found = reranker.rank({"q": topics.documents["d3"]}, documents=others)["q"]
    assert next(iter(found)) == "x"
    assert "y" not in found


def test_a_query_of_unknown_words_has_an_empty_answer_and_a_warning(topics):
    reranker = quick().fit(topics)
    with pytest.warns(UserWarning, match=r"no word of 2 queries is known.*'odd'"):
        run = reranker.rank({"odd": "zzz", "stop": "of the", "good": topics.queries["q0"]})
    assert run["odd"] == run["stop"] == {}
    assert run["good"]


def test_queries_without_a_relevant_document_are_excluded_and_counted(topics):
    judgements = dict(topics.judgements) | {"q0": {"d0": 0}, "q1": {}}
    data = RankingData(topics.documents, topics.queries, judgements, "part")
    reranker = quick().fit(data)
    assert reranker.excluded_ == ["q0", "q1"]
    with pytest.raises(ValueError, match="none of the 2 queries of part has a relevant document"):
        quick().fit(data, queries=["q0", "q1"])
    with pytest.raises(ValueError, match="there is no query 'q99' in part"):
        quick().fit(data, queries=["q99"])


def test_the_estimator_refuses_before_it_works(topics):
    with pytest.raises(ValueError, match="call fit before rank"):
        quick().rank({"q": "x"})
    with pytest.raises(ValueError, match="model must be one of dssm"):
        quick(model="bert").fit(topics)
    with pytest.raises(ValueError, match=r"validation must lie in \[0, 1\), got 1.0"):
        quick(validation=1.0).fit(topics)
    other = RankingData({"new": "x"}, {"q": "x"}, {"q": {"new": 1}}, "other")
    with pytest.raises(ValueError, match="the document 'new', on which fit did not work"):
        quick().fit(topics).score(other)


def test_the_comparison_is_a_table_with_the_first_stage_in_it(topics):
    done = []
    options = {"dim": 10, "steps": 5, "depth": 20, "doc_length": 24}
    table = compare(
        ["drmm", "knrm"], topics, folds=3, seeds=2, measures=["nDCG@10"], progress=lambda n, m: done.append((n, m)),
        **options,
    )  # fmt: skip
    assert list(table.index) == ["bm25", "drmm", "knrm"]
    assert list(table.columns) == ["nDCG@10", "± nDCG@10"]
    assert table.loc["bm25", "± nDCG@10"] == 0
    assert done[-1] == (12, 12)
    axes = plot_comparison(table)
    assert len(axes.patches) == 3
    with pytest.raises(ValueError, match="the table has no 'AP'"):
        plot_comparison(table, measure="AP")


def test_pair_features_of_the_baseline_equal_hand_values():
    documents = {"a": "wing lift wing", "b": "heat flow", "c": "flow flow wing drag"}
    texts = EncodedTexts(documents)
    run = BM25Retriever().fit(documents).search({"q": "wing flow"}, k=3)
    found = Candidates.from_run(run, {"q": "wing flow"}, texts, {"q": {"c": 1}})
    features = pair_features(found, {"q": "wing flow"}, documents, {"a": "of wings"}, dim=2)
    assert features.shape == (1, 3, len(FEATURES))
    names = [texts.document_ids[row] for row in found.docs[0]]
    rows = {name: dict(zip(FEATURES, features[0, place])) for place, name in enumerate(names)}
    assert {name: row["bm25"] for name, row in rows.items()} == pytest.approx(run["q"], rel=1e-6)
    assert {name: row["overlap"] for name, row in rows.items()} == {"a": 0.5, "b": 0.5, "c": 1}
    assert rows["a"]["length"] == pytest.approx(np.log(4))
    assert {name: row["title_match"] for name, row in rows.items()} == {"a": 0.5, "b": 0, "c": 0}
    idf = np.log(1 + 1.5 / 2.5)
    assert {name: row["idf_sum"] for name, row in rows.items()} == pytest.approx({"a": idf, "b": idf, "c": 2 * idf})
    weights = {"wing": 1 * idf, "flow": 2 * idf, "drag": np.log(1 + 2.5 / 1.5)}
    cosine = (
        (weights["wing"] * idf + weights["flow"] * idf)
        / np.sqrt(2 * idf**2)
        / np.sqrt(sum(v**2 for v in weights.values()))
    )
    assert rows["c"]["tfidf_cosine"] == pytest.approx(cosine, rel=1e-5)


def test_lambdamart_learns_the_feature_that_orders(candidates):
    features = np.random.default_rng(0).normal(size=(*candidates.docs.shape, 3)).astype(np.float32)
    features[..., 1] = candidates.labels.numpy()
    model = LambdaMART(trees=30, min_leaf=5).fit(features, candidates, torch.arange(10), torch.arange(10, 14))
    scores = torch.from_numpy(model.predict(features))
    run = candidates.to_run(scores, torch.arange(14))
    places = {
        q: {d: float(g) for d, g in zip(run[q], candidates.labels[n][candidates.mask[n]])} for n, q in enumerate(run)
    }
    judged = {q: {d: int(g) for d, g in row.items()} for q, row in places.items()}
    assert evaluate(run, judged, measures=["nDCG@10"])["nDCG@10"] > 0.99


def test_the_generated_collection_repeats_itself_and_is_judged():
    one, two = (
        topic_collection(documents=30, queries=5, topics=4, seed=3),
        topic_collection(documents=30, queries=5, topics=4, seed=3),
    )
    assert one.documents == two.documents
    assert one.judgements == two.judgements
    assert len(one.judged()) == 5
    with pytest.raises(ValueError, match="got 1, 40, 12"):
        topic_collection(documents=1)


@pytest.mark.parametrize("name", ["dssm", "cdssm", "arci"])
def test_texts_encoded_once_give_the_scores_of_pairs(name, candidates):
    small = {"dssm": {"hidden": (8, 8)}, "cdssm": {"channels": 8}, "arci": {}}[name]
    model = build_model(name, candidates.texts, dim=10, **(small | ({} if name == "arci" else {"num_trigrams": 300})))
    rows = torch.tensor([4, 1, 7])
    scores = score_candidates(model, candidates, rows, batch_pairs=16)
    for place, row in enumerate(rows.tolist()):
        columns = candidates.mask[row].nonzero().squeeze(1)
        pairs = model(*candidates.pairs(torch.full_like(columns, row), columns))
        torch.testing.assert_close(scores[place, columns], pairs.detach(), rtol=1e-5, atol=1e-5)


def test_interaction_models_have_no_vector_of_a_text(candidates):
    with pytest.raises(TypeError, match="DRMM is interaction-focused"):
        build_model("drmm", candidates.texts, dim=10).encode(candidates.query_ids, candidates.query_mask, query=True)
