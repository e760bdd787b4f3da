"""Windows of labels, splits, and what a task refuses."""

import numpy as np
import pandas as pd
import pytest

from etude.data.kinds_relational import RelationalDatabase
from etude.graphs.relational import SHOP_TASKS, SHOP_TIMES, EntityTask, rank_metrics, shop_database, task_metrics

SQL = "SELECT user_id, count(*) FROM event WHERE made > :cutoff AND made <= :horizon GROUP BY user_id"
TIMES = {"val_timestamp": "2024-03-01", "test_timestamp": "2024-04-01"}


def six_rows(days: list[str]) -> RelationalDatabase:
    event = pd.DataFrame({"id": range(len(days)), "user_id": [1, 2] * (len(days) // 2), "made": pd.to_datetime(days)})
    user = pd.DataFrame({"id": [1, 2], "age": [30, 40]})
    return RelationalDatabase.from_frames(
        {"user": user, "event": event}, primary_keys={"user": "id", "event": "id"},
        foreign_keys={"event": {"user_id": "user"}}, time_columns={"event": "made"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def db() -> RelationalDatabase:
    return six_rows(["2024-01-01", "2024-02-10", "2024-02-20", "2024-03-01", "2024-03-11", "2024-06-30"])


def task(db: RelationalDatabase, sql: str = SQL, **changes) -> EntityTask:
    return EntityTask(db, "user", **{"sql": sql, "timedelta": "10d", "kind": "regression", **TIMES, **changes})


def test_a_row_at_the_cutoff_is_input_and_one_at_the_horizon_is_label(db):
    table = task(db).table("val")
    first = table[table["time"] == pd.Timestamp("2024-03-01")]
    # 2024-03-01 (user 2) is input; 2024-03-11 (user 1) ends the window and is label.
    assert first[["entity", "target"]].values.tolist() == [[1, 1.0]]
    assert not (table["time"] == pd.Timestamp("2024-03-11")).any()
    train = task(db).table("train")
    assert train[["entity", "target"]].values.tolist() == [[2, 1.0], [1, 1.0], [2, 1.0]]
    assert train["time"].dt.strftime("%m-%d").tolist() == ["01-31", "02-10", "02-20"]


def test_the_cutoffs_of_the_three_splits(db):
    made = task(db)
    day = 86_400
    val, test, last = (int(pd.Timestamp(t).timestamp()) for t in ("2024-03-01", "2024-04-01", "2024-06-30"))
    train = made.cutoffs("train")
    assert train[-1] == val - 10 * day
    assert train[0] == val - 60 * day == int(pd.Timestamp("2024-01-01").timestamp())
    assert all(t + 10 * day <= val for t in train)
    assert made.cutoffs("val") == [val, val + 10 * day, val + 20 * day]
    assert all(t + 10 * day <= test for t in made.cutoffs("val"))
    assert made.cutoffs("test")[0] == test
    assert made.cutoffs("test")[-1] + 10 * day == last
    assert made.dropped == []
    assert task(db, num_eval_timestamps=2).cutoffs("test") == [test, test + 10 * day]


def test_cutoffs_whose_window_outlasts_the_data_are_dropped_and_told(db, caplog):
    with caplog.at_level("INFO"):
        made = task(db, timedelta="13d")
    assert made.cutoffs("test")[-1] + 13 * 86_400 <= db.time_range[1]
    assert made.dropped == [made.cutoffs("test")[-1] + 13 * 86_400]
    assert "outlasts the data; it is dropped" in caplog.text


def test_a_cutoff_beyond_the_data_is_refused(db):
    for changes, message in (
        ({"test_timestamp": "2025-01-01"}, "the data end at 2024-06-30"),
        ({"test_timestamp": "2024-03-05"}, "at least timedelta"),
        ({"val_timestamp": "2024-01-25"}, "only 2 training cut-offs fit"),
        ({"timedelta": "-3d"}, "at least a second"),
        ({"val_timestamp": "first of May"}, "'first of May' is no time"),
        ({"kind": "ranking"}, "kind must be one of"),
        ({"kind": "recommendation"}, "target_table belongs to recommendations"),
    ):
        with pytest.raises(ValueError, match=message):
            task(db, **changes)
    with pytest.raises(KeyError, match="no table 'nobody'"):
        EntityTask(db, "nobody", SQL, "10d", **TIMES)
    static = RelationalDatabase.from_frames({"user": db["user"].frame}, primary_keys={"user": "id"})
    with pytest.raises(ValueError, match="no table with times: nothing can be split at a time"):
        task(static)


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT user_id, 1 FROM event WHERE made > :cutoff", "exactly the parameters :cutoff and :horizon.*'cutoff'"),
        (SQL + " -- :other", None),
        (SQL.replace("count(*)", "':other'::VARCHAR = ''"), None),
        (SQL.replace(":horizon", ":end"), "it uses"),
        (SQL.replace("count(*)", "count(*), 1"), "two columns, entity and target"),
        (SQL.replace("event", "nothing"), "fails: Catalog Error"),
        (SQL + "; DROP TABLE event", "must be one SELECT, got 2"),
        ("DELETE FROM event WHERE made > :cutoff AND made < :horizon", "must be one SELECT"),
        (
            "SELECT user_id, 1 FROM read_csv('/etc/passwd') WHERE :cutoff < :horizon",
            "fails: .*(disabled|not allowed|ermission)",
        ),
        ("SELECT NULL, 1 WHERE :cutoff < :horizon", "rows without an entity"),
        ("SELECT 1, 1 FROM event WHERE :cutoff < :horizon", "gives the entity 1 twice"),
        ("SELECT 1, 1 WHERE :cutoff > :horizon", "gives no row at any"),
    ],
)
def test_sql_that_is_no_task_is_refused(db, sql, message):
    if message is None:
        assert len(task(db, sql).table("train"))
        return
    with pytest.raises(ValueError, match=message):
        task(db, sql).table("train")


def test_targets_that_do_not_fit_the_kind_are_refused(db):
    with pytest.raises(ValueError, match=r"must be 0 or 1, .* gives 2"):
        task(db, SQL.replace("count(*)", "2"), kind="binary").table("train")
    with pytest.raises(ValueError, match="infinite targets"):
        task(db, SQL.replace("count(*)", "'inf'::DOUBLE"), kind="regression").table("train")


def test_an_unknown_entity_is_named(db):
    made = task(db, SQL.replace("user_id, count", "user_id + 90, count").replace("BY user_id", "BY user_id"))
    with pytest.raises(KeyError, match="user has no row with the key 92"):
        made.rows("train")


def test_a_label_that_looks_past_its_horizon_is_found(db):
    task(db).audit()
    shop = shop_database(40, 400, seed=1)
    times = {"val_timestamp": "2022-09-01", "test_timestamp": "2022-11-01"}
    peeking = "SELECT customer_id, count(*) FROM purchase WHERE placed_at > :cutoff OR placed_at > :horizon GROUP BY 1"
    with pytest.raises(ValueError, match="depend on rows after their horizon"):
        EntityTask(shop, "customer", peeking, "30d", "regression", **times).audit()


def test_the_database_of_a_user_ends_at_the_test(db):
    made = task(db)
    assert made.inputs().time_range[1] <= made.test_timestamp
    assert made.inputs(full=True) is db


def test_recommendations_are_lists_of_rows(db):
    shop = shop_database(40, 400, seed=1)
    times = {"val_timestamp": "2022-09-01", "test_timestamp": "2022-11-01"}
    made = EntityTask(shop, "customer", target_table="product", **SHOP_TASKS["baskets"], **times)
    entity, time, target = made.rows("val")
    assert len(entity) == len(time) == len(target)
    line = made.table("val").iloc[0]
    bought = shop["purchase"].frame
    window = (bought["placed_at"] > line["time"]) & (bought["placed_at"] <= line["time"] + pd.Timedelta(days=30))
    expected = set(bought.loc[window & (bought["customer_id"] == line["entity"]), "product_id"])
    assert set(line["target"]) == expected
    perfect = [
        (list(right) + [one for one in range(100, 160) if one not in right])[:10]
        for right in made.table("val")["target"]
    ]
    scores = made.evaluate(perfect, "val")
    assert scores["map"] == pytest.approx(1)
    assert scores["recall"] == pytest.approx(1)


def test_multilabel_and_multiclass_targets(db):
    labels = task(db, SQL.replace("count(*)", "[1, 0, count(*)]"), kind="multilabel")
    assert labels.rows("train")[2].tolist() == [[1, 0, 1]] * 3
    words = task(db, SQL.replace("count(*)", "CASE user_id WHEN 1 THEN 'one' ELSE 'two' END"), kind="multiclass")
    assert words.classes() == ["one", "two"]
    assert words.evaluate(np.array([[0.9, 0.1]]), "val")["accuracy"] == 1


def test_metrics_by_hand():
    found = task_metrics("binary", np.array([0, 0, 1, 1]), np.array([0.1, 0.6, 0.4, 0.9]))
    assert found["auroc"] == 0.75
    assert found["accuracy"] == 0.5
    assert task_metrics("binary", np.zeros(3), np.ones(3))["auroc"] == 0.5
    found = task_metrics("regression", np.array([1.0, 3.0]), np.array([2.0, 5.0]))
    assert (found["mae"], found["rmse"]) == (1.5, pytest.approx(2.5**0.5))
    ranked = rank_metrics(np.array([[True, False, True]]), np.array([2]))
    assert ranked["map"] == pytest.approx((1 + 2 / 3) / 2)
    assert (ranked["precision"], ranked["recall"]) == (pytest.approx(2 / 3), 1)
    for call, message in (
        (lambda: task_metrics("binary", np.zeros(2), np.zeros(3)), r"must have shape \(2,\), got \(3,\)"),
        (lambda: task_metrics("binary", np.zeros(2), np.full(2, np.nan)), "2 predictions are NaN"),
        (lambda: task_metrics("regression", np.zeros(0), np.zeros(0)), "no rows"),
        (lambda: rank_metrics(np.zeros((2, 3), dtype=bool), np.array([1, 0])), "needs a right answer"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_the_generated_database_is_always_the_same_and_its_tasks_hold():
    shop = shop_database(60, 500, seed=3)
    shop_database.cache_clear()
    again = shop_database(60, 500, seed=3)
    assert all(again[name].frame.equals(table.frame) for name, table in shop.tables.items())
    assert SHOP_TIMES["val_timestamp"] < SHOP_TIMES["test_timestamp"]
    for name in ("churn", "spending"):
        made = EntityTask(
            shop, "customer", **SHOP_TASKS[name], val_timestamp="2022-12-01", test_timestamp="2023-02-01", name=name
        )
        made.audit()
        table = made.table("train")
        past = shop["purchase"].frame
        line = table.iloc[len(table) // 2]
        own = past[past["customer_id"] == line["entity"]]
        after = own[(own["placed_at"] > line["time"]) & (own["placed_at"] <= line["time"] + pd.Timedelta(days=30))]
        assert line["target"] == pytest.approx(float(len(after) == 0) if name == "churn" else after["amount"].sum())
