"""The estimator over a log, and the loaders of logs."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from etude.data import multitask
from etude.ranking.dtrn import MultiTaskRecommender

NAN = float("nan")


def log(n=240, seed=0):
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({
        "user": rng.integers(12, size=n), "item": rng.integers(30, size=n), "time": np.arange(n),
        "behaviour": rng.choice(["buy", "click"], size=n, p=[0.3, 0.7]), "hour": rng.integers(24, size=n),
    })  # fmt: skip
    frame["shop"] = frame["item"] % 4
    return frame


def fitted(**options):
    frame = log()
    Y = np.stack([frame["behaviour"] == "buy", np.random.default_rng(1).integers(2, size=len(frame))], axis=1)
    options = {"epochs": 1, "dim": 8, "max_len": 5, "random_state": 0, "context": ("hour",), **options}
    model = MultiTaskRecommender(item_fields=("shop",), **options)
    return model.fit(frame, Y), frame, Y


def test_fit_predict_and_scores_of_each_task():
    model, frame, Y = fitted()
    p = model.predict_proba(frame)
    assert p.shape == (240, 2)
    assert bool(((p > 0) & (p < 1)).all())
    assert (model.predict(frame) == (p >= 0.5)).all()
    scores = model.task_scores(frame, Y)
    assert scores == {f"task{k}": pytest.approx(roc_auc_score(Y[:, k], p[:, k])) for k in range(2)}
    assert model.score(frame, Y) == pytest.approx(np.mean(list(scores.values())))
    again, _, _ = fitted()
    np.testing.assert_array_equal(again.predict_proba(frame), p)
    assert model.features_ == ["hour", "item", "buy", "click"]
    assert model.refinement_weights(frame).shape == (240, 2, 4)
    assert model.interests(frame).shape == (240, 2, 2, 8)
    attention = model.attention(frame)
    assert attention.shape == (240, 2, 2, 5)
    past = np.array([((frame.user == u) & (frame.time < t)).any() for u, t in zip(frame.user, frame.time)])
    assert (attention[~past] == 0).all()


def test_gauc_is_the_mean_of_the_users_own_auc():
    model, frame, Y = fitted()
    p, got = model.predict_proba(frame), model.gauc(frame, Y)
    for k in range(2):
        sizes, areas = [], []
        for user in frame["user"].unique():
            rows = (frame["user"] == user).to_numpy()
            if len(np.unique(Y[rows, k])) == 2:
                sizes.append(rows.sum())
                areas.append(roc_auc_score(Y[rows, k], p[rows, k]))
        assert got[f"task{k}"] == pytest.approx(np.average(areas, weights=sizes))


def test_what_comes_later_changes_no_prediction():
    model, frame, _ = fitted(validation=0)
    early = frame[frame["time"] < 100]
    want = model.predict_proba(early)
    late = model._past["time"] >= 100
    model._past["item"] = np.where(late, 7, model._past["item"])
    model._past["behaviour"] = np.where(late, 0, model._past["behaviour"])
    np.testing.assert_array_equal(model.predict_proba(early), want)
    # And what comes before does.
    assert not np.array_equal(model.predict_proba(frame[frame["time"] >= 150]), want[: len(want)])
    model._past["item"] = np.where(late, model._past["item"], 7)
    assert np.abs(model.predict_proba(early) - want).max() > 0


def test_unknown_items_users_and_hours_and_a_log_of_its_own():
    frame = log()
    events = frame[["user", "item", "time", "behaviour", "shop"]]
    shown = frame.drop(columns="behaviour")
    model = MultiTaskRecommender(epochs=1, dim=8, item_fields=("shop",), context=("hour",), random_state=0)
    Y = pd.DataFrame({"buy": frame["behaviour"] == "buy", "late": frame["hour"] > 12})
    model.fit(shown, Y, log=events)
    assert model.tasks_ == ["buy", "late"]
    stranger = pd.DataFrame({"user": [99], "item": [999], "time": [500], "shop": [77], "hour": [99]})
    assert np.isfinite(model.predict_proba(stranger)).all()


def test_users_have_a_table_if_they_are_context():
    model, frame, _ = fitted(context=("user", "hour"))
    assert model.features_ == ["user", "hour", "item", "buy", "click"]
    assert model.model_.table("user").num_embeddings == 14
    assert not np.array_equal(model.predict_proba(frame.assign(user=99)), model.predict_proba(frame))


def test_a_log_alone_asks_which_behaviour_comes_next(tmp_path):
    frame = log()
    # A purchase at the time of a click is one row with both outcomes.
    twin = frame.iloc[[0]].assign(behaviour="buy" if frame["behaviour"][0] == "click" else "click")
    frame = pd.concat([frame, twin], ignore_index=True)
    path = tmp_path / "log.csv"
    frame.to_csv(path, index=False)
    model = MultiTaskRecommender(epochs=1, dim=8, behaviours=("click", "buy"), random_state=0).fit(str(path))
    assert model.tasks_ == ["click", "buy"]
    rows, labels, _ = model._outcomes(frame)
    assert len(rows) == 2 * 240
    assert labels[0].tolist() == [1, 1]
    assert (labels[:240].sum(1) >= 1).all()
    assert (labels[240:] == 0).all()
    touched = set(zip(frame["user"], frame["item"]))
    assert not any(pair in touched for pair in zip(rows["user"][240:], rows["item"][240:]))
    assert model.predict_proba(frame.drop(columns="behaviour")).shape == (241, 2)


def test_missing_outcomes_are_left_out():
    frame = log()
    Y = np.stack([frame["behaviour"] == "buy", frame["hour"] > 12], axis=1).astype(float)
    Y[::3, 0] = NAN
    model = MultiTaskRecommender(epochs=1, dim=8, random_state=0).fit(frame, Y)
    p = model.predict_proba(frame)
    known = ~np.isnan(Y[:, 0])
    assert model.task_scores(frame, Y)["task0"] == pytest.approx(roc_auc_score(Y[known, 0], p[known, 0]))


@pytest.mark.parametrize(
    ("change", "Y", "message"),
    [
        ({}, lambda f: np.ones(len(f)), r"Y must be \(n, K\), a column for each outcome, got shape \(240,\)"),
        ({}, lambda f: np.stack([f.hour > 12, f.hour >= 0], 1), r"outcome 'task1' must be 0 and 1 .*it is \[1.\]"),
        ({}, lambda f: np.full((len(f), 1), 3), "row 0 of outcome 0 has 3"),
        ({}, lambda f: np.ones((3, 2)), r"must have 3 rows, got shape \(240,\)"),
        ({}, lambda f: ["late"], "there is no column 'late'; there are user, item"),
        ({"time": "2020-01-01"}, None, "numbers or datetimes of one zone, got such as .*2020-01-01"),
        ({"item": NAN}, None, "the column 'item' has no value in 240 of 240 rows"),
        ({"behaviour": None}, None, r"holds \[\]"),
        ({"user": range(240)}, None, "every history is empty: of 480 rows none"),
    ],
)
def test_what_cannot_be_used_is_refused(change, Y, message):
    frame = log().assign(**change)
    with pytest.raises(ValueError, match=message):
        MultiTaskRecommender(epochs=1).fit(frame, None if Y is None else Y(frame))


def test_behaviours_columns_and_files_that_are_not_there_are_refused(tmp_path):
    frame = log()
    with pytest.raises(ValueError, match=r"\['cart'\] are not there; \['click'\] are not asked for"):
        MultiTaskRecommender(behaviours=("buy", "cart")).fit(frame)
    with pytest.raises(ValueError, match="there is no column 'behaviour'"):
        MultiTaskRecommender().fit(frame.drop(columns="behaviour"))
    with pytest.raises(FileNotFoundError, match="no log at"):
        MultiTaskRecommender().fit(tmp_path / "no.csv")
    (tmp_path / "log.txt").write_text("x")
    with pytest.raises(ValueError, match="must end in"):
        MultiTaskRecommender().fit(tmp_path / "log.txt")
    shown = frame.assign(time=pd.date_range("2024-01-01", periods=len(frame)))
    with pytest.raises(ValueError, match="differ in type"):
        MultiTaskRecommender().fit(shown, np.stack([frame.hour > 12, frame.hour > 6], 1), log=frame)
    with pytest.raises(ValueError, match="differ in type"):
        MultiTaskRecommender().fit(frame.assign(item=[1, "a"] * 120), np.stack([frame.hour > 12], 1))
    with pytest.raises(ValueError, match="there are no rows"):
        fitted()[0].predict_proba(frame.iloc[:0])
    with pytest.raises(ValueError, match="got int"):
        MultiTaskRecommender().fit(5)
    with pytest.raises(ValueError, match="must be different"):
        MultiTaskRecommender(context=("item",)).fit(frame)
    model, frame, _ = fitted(refinement=False)
    with pytest.raises(ValueError, match="no refinement"):
        model.refinement_weights(frame)


def test_times_of_several_zones_are_refused_and_of_one_come_in_utc():
    frame = log()
    stamps = pd.date_range("2024-01-01", periods=len(frame), freq="h", tz="Europe/Rome")
    model = MultiTaskRecommender(epochs=1, dim=8).fit(frame.assign(time=stamps))
    assert model._past["time"][0] == np.datetime64("2023-12-31T23:00")
    mixed = [s.tz_convert("UTC") if i % 2 else s for i, s in enumerate(stamps)]
    with pytest.raises(ValueError, match="of one zone"):
        MultiTaskRecommender().fit(frame.assign(time=pd.Series(mixed, dtype=object)))


def test_a_log_file_as_data(tmp_path):
    frame = log()
    frame.to_csv(tmp_path / "log.csv", index=False)
    data = multitask.behaviour_log(tmp_path / "log.csv", item_fields=("shop",), behaviours=("click", "buy"), max_len=4)
    assert data.tasks == ["click", "buy"]
    assert [len(part) for part in (data.train, data.val, data.test)] == [2 * 168, 2 * 24, 2 * 48]
    # The shop of an item drawn is that of the item.
    shop = {}
    for item, kind in data.train.events[data.train.events[:, 0] > 1].tolist():
        assert shop.setdefault(item, kind) == kind
    for item, kind in data.test.targets[data.test.targets[:, 0] > 1].tolist():
        assert shop[item] == kind
    with pytest.raises(ValueError, match="behaviours names"):
        multitask.behaviour_log(tmp_path / "log.csv", behaviours=("click",))
    with pytest.raises(ValueError, match="has no column 'basket'"):
        multitask.behaviour_log(tmp_path / "log.csv", item_fields=("basket",))
    frame.assign(time="yesterday").to_csv(tmp_path / "text.csv", index=False)
    with pytest.raises(ValueError, match="time holds text such as 'yesterday'"):
        multitask.behaviour_log(tmp_path / "text.csv")


def test_movielens_rows_know_what_they_can(tmp_path):
    rng = np.random.default_rng(0)
    n = 400
    ratings = pd.DataFrame({
        "userId": np.repeat(np.arange(10), 40),
        "movieId": np.concatenate([rng.permutation(80)[:40] for _ in range(10)]),
        "rating": rng.choice([1.0, 2.5, 3.0, 3.5, 4.0, 5.0], size=n), "timestamp": rng.integers(1000, size=n),
    })  # fmt: skip
    ratings.to_csv(tmp_path / "ratings.csv", index=False)
    films = pd.DataFrame({"movieId": range(80), "title": "", "genres": ["Comedy|War", "Drama"] * 40})
    films.to_csv(tmp_path / "movies.csv", index=False)
    data = multitask.movielens(tmp_path, max_len=50)
    parts = [data.train, data.val, data.test]
    assert [len(part) for part in parts] == [560, 80, 160]
    for part in parts:
        rated = part.labels[:, 2] == 1
        assert int(rated.sum()) * 2 == len(part)
        assert bool(part.labels[~rated, :2].isnan().all())
        assert bool((part.labels[rated, 0] * part.labels[rated, 1] == 0).all())
    both = torch.cat([part.labels[part.labels[:, 2] == 1] for part in parts])
    assert int(both[:, 0].sum()) == (ratings["rating"] >= 4).sum()
    assert int(both[:, 1].sum()) == (ratings["rating"] <= 2.5).sum()
    # The last rating of a user has all earlier ones, of three types, behind it.
    last = ratings.sort_values("timestamp").groupby("userId").tail(1)
    lengths = (data.test.stops - data.test.starts).sum(1)
    assert int(lengths.max()) <= 39
    assert last["timestamp"].min() > 0
