"""The ten lines of a user, the recommender, and the baselines beside them."""

import duckdb
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from etude.data.kinds_relational import RelationalDatabase
from etude.graphs.relational import (
    SHOP_TASKS,
    EntityTask,
    RelationalClassifier,
    RelationalModel,
    RelationalRecommender,
    RelationalRegressor,
    TemporalNeighborSampler,
    aggregate_features,
    build_graph,
    constant_predictions,
    entity_features,
    fit_entities,
    fit_trees,
    past_visits,
    popularity,
    shop_database,
)

TIMES = {"val_timestamp": "2022-09-01", "test_timestamp": "2022-11-01"}
SMALL = {
    "channels": 8,
    "num_blocks": 1,
    "num_neighbors": [5, 3],
    "epochs": 1,
    "max_steps": 3,
    "batch_size": 64,
    "lr": 0.01,
}


@pytest.fixture(scope="module")
def db() -> RelationalDatabase:
    return shop_database(40, 400, seed=1)


def shop_task(db: RelationalDatabase, name: str, **changes) -> EntityTask:
    target = {"target_table": "product"} if name == "baskets" else {}
    return EntityTask(db, "customer", name=name, **{**SHOP_TASKS[name], **target, **TIMES, **changes})


@pytest.fixture(scope="module")
def classifier(db):
    return RelationalClassifier(**SMALL, random_state=3).fit(db, shop_task(db, "churn"))


def test_a_classifier_gives_probabilities_at_any_time(db, classifier):
    found = classifier.predict_proba([0, 3, 5], at="2022-12-01")
    assert found.shape == (3, 2)
    np.testing.assert_allclose(found.sum(1), 1)
    assert set(classifier.predict([0, 3, 5], at="2022-12-01")) <= {0, 1}
    each = classifier.predict_proba([0, 3], at=["2022-12-01", "2022-06-01"])
    np.testing.assert_allclose(each[0], found[0], atol=1e-6)
    assert 0 <= classifier.score("test") <= 1
    assert set(classifier.score_all("val")) == {"auroc", "average_precision", "f1", "accuracy"}


def test_a_prediction_does_not_change_when_later_rows_arrive(db, classifier):
    """Asked for the past, the model gives what it would have given then."""
    at = "2022-10-05"
    now = classifier.predict_proba([0, 3, 5, 8], at=at)
    then = classifier.predict_proba([0, 3, 5, 8], at=at, db=db.upto(at))
    np.testing.assert_array_equal(now, then)


def test_the_same_state_gives_the_same_model(db, classifier):
    again = clone(classifier).fit(db, shop_task(db, "churn"))
    np.testing.assert_array_equal(
        classifier.predict_proba([0, 1], at="2022-12-01"), again.predict_proba([0, 1], at="2022-12-01")
    )
    assert torch.initial_seed() == torch.initial_seed()


def test_a_new_row_is_predicted_through_its_links(db, classifier):
    frames = {name: table.frame.copy() for name, table in db.tables.items()}
    new = {"id": 999, "region": "moon", "born": pd.Timestamp("2000-01-01"), "referred_by": 3}
    frames["customer"] = pd.concat([frames["customer"], pd.DataFrame([new])], ignore_index=True)
    grown = RelationalDatabase.from_frames(
        frames,
        primary_keys={name: list(table.primary_key) for name, table in db.tables.items()},
        foreign_keys={name: table.foreign_keys for name, table in db.tables.items()},
        time_columns={name: table.time_column for name, table in db.tables.items()},
    )
    found = classifier.predict_proba([999], at="2022-12-01", db=grown)
    assert np.isfinite(found).all()
    with pytest.raises(KeyError, match="no row with the key 999"):
        classifier.predict_proba([999], at="2022-12-01")


def test_an_entity_without_history_is_predicted(db, classifier):
    found = classifier.predict_proba([0, 1], at="1999-01-01")
    assert np.isfinite(found).all()


def test_a_regressor_stays_inside_the_percentiles_of_its_targets(db):
    made = shop_task(db, "spending")
    model = RelationalRegressor(**SMALL).fit(db, made)
    low, high = np.percentile(made.rows("train")[2], [2, 98])
    assert model.fit_.clamp == (low, high)
    found = model.predict(list(range(40)), at="2022-12-01")
    assert found.shape == (40,)
    assert low <= found.min() <= found.max() <= high
    assert model.fit_.metric == "mae"
    assert model.score() <= 1


def test_multiclass_and_multilabel_tasks_train(db):
    sql = SHOP_TASKS["spending"]["sql"]
    word = sql.replace("coalesce", "CASE WHEN coalesce").replace("0) AS", "0) > 20 THEN 'much' ELSE 'little' END AS")
    made = EntityTask(db, "customer", word, "30d", "multiclass", **TIMES)
    model = RelationalClassifier(**SMALL).fit(db, made)
    assert list(model.classes_) == ["little", "much"]
    assert set(model.predict([0, 1, 2], at="2022-12-01")) <= {"little", "much"}
    lists = sql.replace("coalesce(sum(amount) FILTER (placed_at > :cutoff), 0) AS target",
                        "[CAST(count(*) > 1 AS INT), CAST(max(amount) > 15 AS INT)] AS target")  # fmt: skip
    both = RelationalClassifier(**SMALL).fit(db, EntityTask(db, "customer", lists, "30d", "multilabel", **TIMES))
    assert both.predict([0, 1], at="2022-12-01").shape == (2, 2)


def test_the_best_epoch_of_validation_is_kept(db):
    graph = build_graph(db, stats_upto=TIMES["val_timestamp"])
    made = shop_task(db, "churn")
    torch.manual_seed(0)
    model = RelationalModel(graph, 8, 1, num_blocks=1)
    sampler = TemporalNeighborSampler(graph, [4], entity_table="customer")
    found = fit_entities(model, sampler, made.rows("train"), made.rows("val"), epochs=3, max_steps=2, batch_size=32)
    assert len(found.losses) == len(found.val_scores) == 3
    assert found.val_score == max(found.val_scores) == found.val_scores[found.best_epoch - 1]


@pytest.mark.parametrize("method", ["two_tower", "id_gnn"])
def test_a_recommender_gives_k_different_rows(db, method):
    made = shop_task(db, "baskets")
    model = RelationalRecommender(method, **SMALL).fit(db, made)
    lists = model.recommend([0, 3, 7], at="2022-12-01", k=5)
    assert [len(set(line)) for line in lists] == [5, 5, 5]
    assert {row for line in lists for row in line} <= set(db["product"].frame["id"])
    scores = model.score_all("test")
    assert set(scores) == {"map", "precision", "recall"}
    assert all(0 <= value <= 1 for value in scores.values())
    assert model.recommend([0], at="2022-12-01", k=5)[0] == lists[0]
    with pytest.raises(ValueError, match=r"k must lie in 1\.\.60"):
        model.recommend([0], at="2022-12-01", k=61)


def test_id_gnn_scores_the_rows_of_the_neighbourhood_first_and_fills_with_popular_ones(db):
    made = shop_task(db, "baskets")
    model = RelationalRecommender("id_gnn", **SMALL).fit(db, made)
    at = int(pd.Timestamp("2022-12-01").timestamp())
    batch = model.sampler_.sample([7], [at])
    near = set(batch.node_index["product"].tolist())
    ranked = model._ranked(np.array([7]), np.array([at]), 60)[0].tolist()
    assert set(ranked[: len(near)]) == near
    counts = model._popular[ranked[len(near) :]]
    assert (np.diff(counts) <= 0).all()


def test_the_flag_of_the_seed_reaches_the_rows_that_it_touched(db):
    graph = build_graph(db)
    torch.manual_seed(0)
    model = RelationalModel(graph, 8, 2, num_blocks=1, identity=True).eval()
    at = int(pd.Timestamp("2022-12-01").timestamp())
    batch = TemporalNeighborSampler(graph, [5, 3], entity_table="customer").sample([7], [at]).bidirectional()
    before = model.embed(batch, trim=False)["product"]
    with torch.no_grad():
        model.identity.add_(1.0)
    assert not torch.allclose(before, model.embed(batch, trim=False)["product"])


def test_recommendation_baselines(db):
    made = shop_task(db, "baskets")
    for split in ("val", "test"):
        everyone, own = popularity(made, split, 5), past_visits(made, split, 5)
        assert 0 < everyone["map"] < 1
        assert 0 < own["map"] < 1


def test_aggregates_are_what_sql_says(db):
    graph = build_graph(db)
    at = pd.Timestamp("2022-08-01")
    entity = np.arange(40)
    found, names, categories = aggregate_features(graph, "customer", entity, np.full(40, int(at.timestamp())))
    column = {name: found[:, place] for place, name in enumerate(names)}
    connection = duckdb.connect()
    connection.register("bought", db["purchase"].frame)
    lines = connection.execute(
        "SELECT customer_id, count(*), avg(amount), arg_max(amount, placed_at), "
        "date_diff('second', max(placed_at), $t) "
        "FROM bought WHERE placed_at <= $t GROUP BY 1", {"t": at.to_pydatetime()},
    ).fetchall()  # fmt: skip
    key = "purchase.customer_id: "
    assert lines
    for customer, count, mean, last, seconds in lines:
        assert column[key + "count"][customer] == count
        assert column[key + "mean amount"][customer] == pytest.approx(mean, rel=1e-12)
        assert column[key + "last amount"][customer] == last
        assert column[key + "days since last"][customer] == pytest.approx(seconds / 86_400)
    recent = db["purchase"].frame.query("customer_id == 3 and placed_at <= @at").sort_values("placed_at")
    assert column[key + "mean of last 3 amount"][3] == pytest.approx(recent["amount"].tail(3).mean(), rel=1e-12)
    assert column["customer.referred_by: count"].sum() == db["customer"].frame["referred_by"].notna().sum()
    assert [names[place] for place in categories] == ["region", "referred_by", "customer.referred_by: last region"]


def test_entity_features_are_the_entity_s_row_and_the_seed_time(db):
    graph = build_graph(db)
    time = np.full(40, int(pd.Timestamp("2022-08-01").timestamp()))
    found, names, categories = entity_features(graph, "customer", np.arange(40), time)
    assert names == ["seed time", "region", "born", "referred_by"]
    assert [names[place] for place in categories] == ["region", "referred_by"]
    assert np.isnan(found[:, 3]).sum() == db["customer"].frame["referred_by"].isna().sum()
    found[:, 0] *= 365.2425 * 86_400
    np.testing.assert_allclose(found[:, 0], time)


@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
def test_trees_learn_a_step(kind):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2))
    y = (x[:, 0] > 0).astype(float)
    model = fit_trees((x[:200], y[:200]), (x[200:], y[200:]), kind, rounds=30, num_classes=2)
    found = model.predict(x[200:])
    chosen = found.argmax(1) if kind == "multiclass" else found > 0.5
    assert (chosen == (y[200:] == 1)).mean() > 0.95
    again = fit_trees((x[:200], y[:200]), (x[200:], y[200:]), kind, rounds=30, num_classes=2)
    np.testing.assert_array_equal(found, again.predict(x[200:]))


def test_constant_predictions():
    train = np.array([1, 1, 1, 2]), np.array([0.0, 1.0, 5.0, 9.0])
    assert constant_predictions(train, np.array([1, 2, 3]), "entity mean").tolist() == [2, 9, 3.75]
    assert constant_predictions(train, np.array([1, 3]), "entity median").tolist() == [1, 3]
    assert constant_predictions(train, np.array([1]), "global mean").tolist() == [3.75]
    with pytest.raises(ValueError, match="got 'mode'"):
        constant_predictions(train, np.array([1]), "mode")


def test_misuse_is_refused(db, classifier):
    with pytest.raises(NotFittedError):
        RelationalClassifier().predict([0], at="2022-12-01")
    with pytest.raises(ValueError, match="RelationalRegressor takes regression tasks, got binary"):
        RelationalRegressor().fit(db, shop_task(db, "churn"))
    with pytest.raises(ValueError, match="takes recommendation tasks, got binary"):
        RelationalRecommender().fit(db, shop_task(db, "churn"))
    with pytest.raises(ValueError, match="method must be one of two_tower, id_gnn, got 'als'"):
        RelationalRecommender("als").fit(db, shop_task(db, "baskets"))
    with pytest.raises(ValueError, match="must be a list of identifiers, got 'ada'"):
        classifier.predict("ada", at="2022-12-01")
    with pytest.raises(ValueError, match="one for each of 2 entities, got 3"):
        classifier.predict([0, 1], at=["2022-12-01"] * 3)
    with pytest.raises(ValueError, match="is no time"):
        classifier.predict([0], at="soon")
    with pytest.raises(ValueError, match=r"a count for each of 2 layers, got \[5\]"):
        RelationalClassifier(**{**SMALL, "num_neighbors": [5]}).fit(db, shop_task(db, "churn"))
    with pytest.raises(ValueError, match="epochs must be at least 1, got 0"):
        RelationalClassifier(**{**SMALL, "epochs": 0}).fit(db, shop_task(db, "churn"))
    with pytest.raises(ValueError, match="trees are fitted to"):
        fit_trees((np.zeros((2, 1)), np.zeros(2)), (np.zeros((2, 1)), np.zeros(2)), "multilabel")
