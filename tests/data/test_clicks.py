"""Click logs: the kind, a user's own files, MovieLens and Amazon reviews."""

import dataclasses
import gzip
import json

import numpy as np
import pytest
import torch

pd = pytest.importorskip("pandas")

from etude.data import clicks as logs  # noqa: E402
from etude.data.kinds_clicks import ClickData, Clicks, history_spans  # noqa: E402


def kind(**changes):
    parts = {
        "candidates": torch.tensor([[2, 3], [4, 2], [3, 3]]),
        "behaviours": torch.tensor([[2, 2], [3, 2], [4, 3], [5, 3]]),
        "starts": torch.tensor([0, 3, 1]),
        "stops": torch.tensor([3, 4, 1]),
        "labels": torch.tensor([1.0, 0.0, 1.0]),
        "users": torch.tensor([0, 1, 0]),
        "context": torch.empty(3, 0, dtype=torch.int64),
    }
    return Clicks(**(parts | changes))


def frame(n=100, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "who": rng.integers(9, size=n), "what": [f"i{i}" for i in rng.integers(15, size=n)],
            "kind": rng.integers(3, size=n), "hour": rng.integers(24, size=n),
            "when": rng.integers(300, size=n), "click": rng.integers(2, size=n),
        }
    )  # fmt: skip


COLUMNS = {"user": "who", "item": "what", "time": "when", "label": "click"}


def written(table, path):
    table.to_parquet(path) if path.suffix == ".parquet" else table.to_csv(path, index=False)
    return path


def test_a_history_is_the_last_behaviours_padded_at_the_end():
    ids, mask = kind().history(torch.tensor([0, 1, 2]), max_len=2)
    assert ids[..., 0].tolist() == [[3, 4], [5, 0], [0, 0]]
    assert mask.tolist() == [[True, True], [True, False], [False, False]]
    ids, mask = kind().history(torch.tensor([2]), max_len=9)
    assert ids.shape == (1, 0, 2)


def test_a_subset_shares_the_behaviours():
    whole = kind()
    part = whole.subset(torch.tensor([True, False, True]))
    assert len(part) == 2
    assert part.behaviours is whole.behaviours


def test_bad_clicks_are_refused():
    for changes, message in (
        ({"candidates": torch.tensor([[0, 3], [4, 2], [3, 3]])}, r"candidates must hold ids from 1 up.*got 0"),
        ({"candidates": torch.zeros(3, 2)}, r"must be int64 of shape \(n, fields\), got float32 of shape \(3, 2\)"),
        ({"labels": torch.tensor([1.0, 0.5, 1.0])}, "labels must be 0 or 1, got 0.5"),
        ({"stops": torch.tensor([3, 5, 1])}, r"stretch of 0\.\.4, row 1 has 3\.\.5"),
        ({"users": torch.tensor([0, 1])}, r"users must be int64 of shape \(3,\)"),
        ({"behaviours": torch.tensor([[2]])}, r"behaviours must be int64 of shape \(n, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            kind(**changes)
    with pytest.raises(ValueError, match="max_len must be at least 1, got 0"):
        kind().history(torch.tensor([0]), 0)
    for fields, message in (
        ({"item": 6, "shop": 3}, "the ids of shop must lie below 3, got 3"),
        ({"item": 6}, "must have the 1 columns item, got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            ClickData(kind(), kind(), kind(), fields=fields)
    with pytest.raises(ValueError, match="test is empty"):
        ClickData(kind(), kind(), kind().subset(torch.tensor([], dtype=torch.int64)), fields={"item": 6, "shop": 4})


def test_spans_are_of_the_same_user_and_strictly_before():
    order, starts, stops = history_spans(
        np.array([2, 1, 1, 1]), np.array([5, 9, 3, 4]), np.array([1, 1, 2, 7]), np.array([9, 4, 6, 1])
    )
    assert order.tolist() == [2, 3, 1, 0]
    assert (starts.tolist(), stops.tolist()) == ([0, 0, 3, 4], [2, 1, 4, 4])


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_a_log_keeps_every_row_and_its_history_of_clicks(tmp_path, ending, monkeypatch):
    monkeypatch.setattr(logs, "_CHUNK", 13)
    table = frame()
    data = logs.click_log(written(table, tmp_path / f"log{ending}"), **COLUMNS, behaviours=["kind"], context=["hour"])
    assert len(data.train) + len(data.val) + len(data.test) == 100
    assert list(data.fields) == ["what", "kind"]
    assert list(data.context) == ["hour"]
    assert data.name == "log"
    cut = [np.sort(table["when"])[at] for at in (70, 80)]
    train = table[table["when"] < cut[0]].reset_index(drop=True)
    assert len(data.train) == len(train)
    for row, impression in train.iterrows():
        past = (table["who"] == impression["who"]) & (table["when"] < impression["when"]) & (table["click"] == 1)
        assert int(data.train.stops[row] - data.train.starts[row]) == past.sum()
        assert data.train.labels[row] == impression["click"]


def test_values_that_training_does_not_have_are_unknown(tmp_path):
    table = frame()
    table.loc[table["when"].idxmax(), "what"] = "new"
    data = logs.click_log(written(table, tmp_path / "log.csv"), **COLUMNS)
    assert int((data.train.candidates == 1).sum()) == 0
    assert int((data.test.candidates == 1).sum()) >= 1


def test_dates_that_are_text_need_their_format_and_none_is_lost(tmp_path):
    table = frame()
    table["when"] = (pd.Timestamp("2024-01-01") + pd.to_timedelta(table["when"], unit="h")).dt.strftime("%d.%m.%Y %H")
    path = written(table, tmp_path / "log.csv")
    with pytest.raises(ValueError, match=r"when holds text such as '\d\d\.01\.2024 \d\d'.*say how"):
        logs.click_log(path, **COLUMNS)
    data = logs.click_log(path, **COLUMNS, dates="%d.%m.%Y %H")
    assert len(data.train) + len(data.val) + len(data.test) == 100
    table.loc[7, "when"] = "yesterday"
    with pytest.raises(ValueError, match="in 1 rows, the first is row 7, 'yesterday'"):
        logs.click_log(written(table, tmp_path / "log.csv"), **COLUMNS, dates="%d.%m.%Y %H")


def test_bad_logs_are_refused(tmp_path):
    table = frame()
    for bad, message in (
        (table.drop(columns="what"), "no column 'what'; it has who, kind"),
        (table.assign(click=2), "click must be 0 or 1, row 0 has .*2"),
        (table.assign(what=table["what"].where(table.index != 3)), "what has no value in 1 of 100 rows"),
        (table.head(5), "has 5 rows; at least 10"),
        (table.assign(when=1), "is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            logs.click_log(written(bad, tmp_path / "log.parquet"), **COLUMNS)
    with pytest.raises(FileNotFoundError, match="no log at"):
        logs.click_log(tmp_path / "nothing.csv", **COLUMNS)
    (tmp_path / "log.txt").write_text("x")
    with pytest.raises(ValueError, match=r"must end in \.parquet or \.csv, got log\.txt"):
        logs.click_log(tmp_path / "log.txt", **COLUMNS)
    with pytest.raises(ValueError, match="different columns"):
        logs.click_log(tmp_path / "log.csv", **{**COLUMNS, "item": "who"})


@pytest.fixture
def films(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        (user, film, rng.integers(1, 6), 100 + place // 2)
        for user in range(1, 31)
        for place, film in enumerate(rng.permutation(60)[:10])
    ]
    pd.DataFrame(rows, columns=["userId", "movieId", "rating", "timestamp"]).sample(frac=1, random_state=0).to_csv(
        tmp_path / "ratings.csv", index=False
    )
    genres = ["Comedy|Drama", "Horror", "(no genres listed)"] * 20
    pd.DataFrame({"movieId": range(60), "title": "x", "genres": genres}).to_csv(tmp_path / "movies.csv", index=False)
    return tmp_path


def test_movielens_pairs_each_rating_with_a_film_never_rated(films):
    data = logs.movielens(films, max_len=4)
    ratings = pd.read_csv(films / "ratings.csv")
    rated = ratings.groupby("userId")["movieId"].apply(set)
    names = np.unique(ratings["movieId"])
    assert [len(part) for part in (data.train, data.val, data.test)] == [420, 60, 120]
    for part in (data.train, data.val, data.test):
        clicked = part.labels == 1
        assert int(clicked.sum()) == len(part) // 2
        for user, (film, category), label in zip(part.users.tolist(), part.candidates.tolist(), part.labels.tolist()):
            assert (names[film - 2] in rated[user]) == bool(label)
            assert data.meta["genres"][category - 2] == ["Comedy", "Horror", "(no genres listed)"][names[film - 2] % 3]
        assert torch.equal(part.starts[clicked], part.starts[~clicked])
        assert torch.equal(part.stops[clicked], part.stops[~clicked])
    # Two ratings a time: the first of a time sees as many before it as the second.
    assert set((data.test.stops - data.test.starts).tolist()) == {8}


def test_movielens_ratings_are_clicks_from_4_up_and_users_may_be_split(films):
    data = logs.movielens(films, labels="rating", test_users=10)
    ratings = pd.read_csv(films / "ratings.csv")
    assert sum(int(p.labels.sum()) for p in (data.train, data.val, data.test)) == (ratings["rating"] >= 4).sum()
    users = [set(part.users.tolist()) for part in (data.train, data.val, data.test)]
    assert [len(u) for u in users] == [18, 2, 10]
    assert not users[0] & users[2]


def test_movielens_small_is_read_where_it_lies():
    try:
        data = logs.movielens()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert dict(data.fields) == {"item": 9_726, "category": 21}
    assert len(data.train) + len(data.val) + len(data.test) == 2 * 100_836
    assert len(data.train.users.unique()) == 610


def test_what_is_missing_is_said(films, monkeypatch):
    monkeypatch.setenv("ETUDE_DATA", str(films))
    with pytest.raises(FileNotFoundError, match=r"ml-20m is not here: place ratings\.csv and movies\.csv into"):
        logs.movielens("ml-20m")
    # Under a type checker the refusal is a TypeError.
    with pytest.raises((ValueError, TypeError), match="stars"):
        logs.movielens(films, labels="stars")
    with pytest.raises(ValueError, match=r"test_users must lie in 1\.\.28, got 40"):
        logs.movielens(films, test_users=40)


def test_amazon_reviews_are_read_as_the_demo_takes_them(tmp_path):
    rng = np.random.default_rng(0)
    reviews = [
        {"reviewerID": f"U{user}", "asin": f"A{item}", "unixReviewTime": int(100 + place)}
        for user in range(20)
        for place, item in enumerate(rng.permutation(25)[:5])
    ]
    with gzip.open(tmp_path / "reviews_Electronics_5.json.gz", "wt") as file:
        file.writelines(json.dumps(record) + "\n" for record in reviews)
    with open(tmp_path / "meta_Electronics.json", "w") as file:
        file.writelines(
            repr({"asin": f"A{item}", "categories": [["Electronics", f"C{item % 3}"]]}) + "\n" for item in range(25)
        )
    data = logs.amazon(tmp_path)
    assert len(data.test) == 2 * 20
    assert len(data.train) + len(data.val) == 2 * 20 * 3
    assert set((data.test.stops - data.test.starts).tolist()) == {4}
    ids, _ = data.test.history(torch.arange(20), 10)
    own = (ids[..., 0] == data.test.candidates[:20, :1]).any(1) | (ids[..., 0] == data.test.candidates[20:, :1]).any(1)
    assert not bool(own.any())
    (tmp_path / "meta_Electronics.json").write_text("__import__('os')\n")
    with pytest.raises(ValueError, match=r"meta_Electronics.json, line 1: no record with asin, categories"):
        logs.amazon(tmp_path)


def test_a_user_who_has_everything_has_no_negative():
    with pytest.raises(ValueError, match="1 users have nearly every item"):
        logs._never_rated(np.zeros(3, dtype=int), np.arange(3), np.random.default_rng(0))


def test_parts_can_be_replaced():
    part = dataclasses.replace(kind(), labels=torch.zeros(3))
    assert part.labels.sum() == 0
