"""Click logs: MovieLens, Amazon reviews, and a user's own Parquet or CSV log, all as `ClickData`.

    from etude.data import clicks
    data = clicks.movielens()                                             # ml-latest-small
    data = clicks.click_log("log.parquet", user="user", item="item", time="time", label="click")

Rows are never dropped silently: what cannot be used is refused, with its row.
"""

import ast
import gzip
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from etude.data.catalogue import home, locate
from etude.data.kinds_clicks import UNKNOWN, ClickData, Clicks, history_spans

__all__ = ["amazon", "click_log", "movielens"]

_FIRST = 2  # 0 is padding, 1 is unknown
_CHUNK = 1 << 18


def click_log(
    path: str | os.PathLike,
    *,
    user: str,
    item: str,
    time: str,
    label: str,
    behaviours: Sequence[str] = (),
    context: Sequence[str] = (),
    dates: str | None = None,
    max_len: int = 50,
    name: str | None = None,
) -> ClickData:
    """A log of impressions, one a row: the last 20 % by time are the test part, the 10 % before them validation.

    The history of a row is what its user clicked strictly before it. Values that training does not have share the id
    "unknown". The file is read in pieces of which only the named columns are kept.

    Args:
        path: a `.parquet` or `.csv` file.
        user, item, time, label: its columns; times are numbers or datetimes, labels 0 and 1.
        behaviours: further columns that describe the item, such as its category.
        context: columns of the impression, such as the hour.
        dates: how times that are text are written, such as "%Y-%m-%d %H:%M:%S"; text is refused without it.
        max_len: behaviours kept of each history.
        name: what the data are called; the name of the file if None.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for an unknown column or ending, a missing value, a time that is text (with its row), a label that
            is neither 0 nor 1, or a part of the split without rows.
    """
    path = Path(path)
    columns = [user, item, time, label, *behaviours, *context]
    if len(set(columns)) < len(columns):
        raise ValueError(f"user, item, time, label, behaviours and context must be different columns, got {columns}")
    frame = _read(path, columns)
    if len(frame) < 10:
        raise ValueError(f"{path.name} has {len(frame)} rows; at least 10 are needed")
    missing = frame.isna().sum()
    if missing.any():
        worst = str(missing.idxmax())
        raise ValueError(f"{path.name}: {worst} has no value in {int(missing[worst])} of {len(frame)} rows")
    times = _times(frame[time], dates, path.name)
    labels = pd.to_numeric(frame[label], errors="coerce").to_numpy(dtype=np.float64)
    wrong = ~np.isin(labels, (0.0, 1.0))
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(f"{path.name}: {label} must be 0 or 1, row {row} has {frame[label].iloc[row]!r}")
    cuts = np.sort(times)[[int(len(times) * share) for share in (0.7, 0.8)]]
    part = (times >= cuts[0]).astype(int) + (times >= cuts[1])
    coded = {field: _coded(frame[field], part == 0) for field in (item, *behaviours, *context)}
    users = pd.factorize(frame[user])[0].astype(np.int64)
    done = labels == 1
    order, starts, stops = history_spans(users[done], times[done], users, times)
    fields = (item, *behaviours)
    candidates = np.stack([coded[field][0] for field in fields], axis=1)
    extra = [coded[field][0] for field in context]
    clicks = Clicks(
        candidates=torch.from_numpy(candidates),
        behaviours=torch.from_numpy(candidates[done][order]),
        starts=torch.from_numpy(starts),
        stops=torch.from_numpy(stops),
        labels=torch.from_numpy(labels.astype(np.float32)),
        users=torch.from_numpy(users),
        context=torch.from_numpy(np.stack(extra, axis=1) if extra else np.empty((len(frame), 0), dtype=np.int64)),
    )
    train, val, test = _parts(clicks, part)
    return ClickData(
        train, val, test, fields={f: coded[f][1] for f in fields}, context={f: coded[f][1] for f in context},
        max_len=max_len, name=name or path.stem,
    )  # fmt: skip


def _read(path: Path, columns: list[str]) -> pd.DataFrame:
    if not path.is_file():
        raise FileNotFoundError(f"no log at {path}; a .parquet or .csv file is expected")
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet as pq

        with pq.ParquetFile(path) as file:
            _has(path, columns, file.schema_arrow.names)
            pieces = [batch.to_pandas() for batch in file.iter_batches(_CHUNK, columns=columns)]
    elif path.suffix.lower() == ".csv":
        _has(path, columns, list(pd.read_csv(path, nrows=0).columns))
        with pd.read_csv(path, usecols=columns, chunksize=_CHUNK) as file:
            pieces = list(file)
    else:
        raise ValueError(f"a click log must end in .parquet or .csv, got {path.name}")
    return pd.concat(pieces, ignore_index=True)[columns] if pieces else pd.DataFrame(columns=columns)


def _has(path: Path, wanted: list[str], there: list[str]) -> None:
    unknown = [column for column in wanted if column not in there]
    if unknown:
        raise ValueError(f"{path.name} has no column {', '.join(map(repr, unknown))}; it has {', '.join(there)}")


def _times(column: pd.Series, dates: str | None, where: str) -> np.ndarray:
    if pd.api.types.is_datetime64_any_dtype(column):
        zone = getattr(column.dtype, "tz", None)
        return (column if zone is None else column.dt.tz_convert("UTC").dt.tz_localize(None)).to_numpy()
    if pd.api.types.is_numeric_dtype(column):
        return column.to_numpy()
    if dates is None:
        raise ValueError(
            f"{where}: {column.name} holds text such as {column.iloc[0]!r}, not numbers or datetimes: "
            'say how it is written with dates=, such as "%Y-%m-%d %H:%M:%S"'
        )
    parsed = pd.to_datetime(column, format=dates, errors="coerce")
    bad = parsed.isna().to_numpy()
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(
            f"{where}: {column.name} is not written as {dates!r} in {int(bad.sum())} rows, "
            f"the first is row {row}, {column.iloc[row]!r}"
        )
    return parsed.to_numpy()


def _coded(column: pd.Series, train: np.ndarray) -> tuple[np.ndarray, int]:
    """Ids of the values, from 2 up for those of the training rows, 1 for the rest; and the rows of a table for them."""
    known = pd.Index(column[train].unique())
    place = known.get_indexer(pd.Index(column))
    return np.where(place < 0, UNKNOWN, place + _FIRST).astype(np.int64), len(known) + _FIRST


def movielens(
    name: str | os.PathLike = "ml-latest-small",
    *,
    labels: Literal["next", "rating"] = "next",
    max_len: int = 30,
    seed: int = 0,
    test_users: int | None = None,
) -> ClickData:
    """MovieLens, with the first genre of each film as its category.

    "next": a film that a user rates is a click; beside it stands, with the same history, one that the user never
    rates, drawn in proportion to how often films are rated. The last 20 % of each user's ratings are the test part,
    the 10 % before them validation; a negative stands in the part of its click.

    "rating": a rating of 4 or more is a click, a lower one none, and the history holds all films rated before. With
    `test_users` that many users, drawn, are the test part, as in the paper (38,493 of ML-20M), and a tenth of the
    others validation; otherwise the split is as above.

    Args:
        name: of the set in the catalogue or a folder of the data home, or a path: `ratings.csv` and `movies.csv`.
        labels: see above.
        max_len: behaviours kept of each history.
        seed: of the negatives and of the split by user.
        test_users: see above.

    Raises:
        FileNotFoundError: if the set is not here; the message says what to place where.
        ValueError: if the files do not have the columns, or `labels` is unknown.
    """
    if labels not in ("next", "rating"):
        raise ValueError(f'labels must be "next" or "rating", got {labels!r}')
    folder = _folder(name, "ratings.csv and movies.csv")
    ratings = _read(folder / "ratings.csv", ["userId", "movieId", "rating", "timestamp"])
    films = _read(folder / "movies.csv", ["movieId", "genres"])
    rng = np.random.default_rng(seed)
    ratings = ratings.sort_values(["userId", "timestamp", "movieId"], kind="stable", ignore_index=True)
    # Numbers of films and genres are given by the whole catalogue, which is known beforehand.
    known, place = np.unique(ratings["movieId"], return_inverse=True)
    genre = films.set_index("movieId")["genres"].str.split("|").str[0].reindex(known).fillna("(no genres listed)")
    category, genres = pd.factorize(genre, sort=True)
    item_of, category_of = place + _FIRST, category[place] + _FIRST
    user, time = ratings["userId"].to_numpy(), ratings["timestamp"].to_numpy()
    _, starts, stops = history_spans(user, time, user, time)
    part = _by_time(user)
    if test_users is not None:
        part = _by_user(user, test_users, rng)
    ids = np.stack([item_of, category_of], axis=1)
    if labels == "rating":
        clicked, rows, shown = (ratings["rating"].to_numpy() >= 4).astype(np.float32), np.arange(len(ids)), ids
    else:
        negative = _never_rated(user, place, rng)
        rows = np.tile(np.arange(len(ids)), 2)
        clicked = np.repeat(np.array([1, 0], dtype=np.float32), len(ids))
        shown = np.concatenate([ids, np.stack([negative + _FIRST, category[negative] + _FIRST], axis=1)])
    clicks = _together(shown, ids, starts[rows], stops[rows], clicked, user[rows])
    train, val, test = _parts(clicks, part[rows])
    return ClickData(
        train, val, test,
        fields={"item": len(known) + _FIRST, "category": len(genres) + _FIRST}, max_len=max_len, name=folder.name,
        meta={"genres": tuple(genres)},
    )  # fmt: skip


def amazon(folder: str | os.PathLike = "amazon-electronics", *, max_len: int = 100, seed: int = 0) -> ClickData:
    """Amazon reviews of one department as the authors' demo takes them.

    At each review of a user after the first: the reviewed product is a click, a product drawn evenly that the user
    never reviews none, the products reviewed before are the history. The last review of each user is the test pair;
    one in twenty of the other pairs is validation (the demo looks at the test pair instead).

    Args:
        folder: a folder of the data home, or a path, with the 5-core reviews `reviews_*_5.json(.gz)` (reviewerID,
            asin, unixReviewTime) and `meta_*.json(.gz)` (asin, categories), one record a line.
        max_len: behaviours kept of each history.
        seed: of the negatives and of the validation part.

    Raises:
        FileNotFoundError: if a file is not there.
        ValueError: if a line is no record (with its number), or a product is not in the meta data.
    """
    place = _folder(folder, "reviews_Electronics_5.json.gz and meta_Electronics.json.gz (J. McAuley, 2014)")
    reviews = _records(place, "reviews_*_5.json*", ("reviewerID", "asin", "unixReviewTime"))
    meta = _records(place, "meta_*.json*", ("asin", "categories"))
    last = {record["asin"]: record["categories"][-1][-1] for record in meta.to_dict("records")}
    # Python's sort is stable and the raw order that of the file: ties stay as there.
    user = pd.factorize(reviews["reviewerID"])[0].astype(np.int64)
    time = reviews["unixReviewTime"].to_numpy()
    order = np.lexsort((time, user))
    user, time, reviews = user[order], time[order], reviews.iloc[order]
    item, known = pd.factorize(reviews["asin"])
    unknown = [asin for asin in known if asin not in last]
    if unknown:
        raise ValueError(f"{place}: {len(unknown)} products are not in the meta data, such as {unknown[0]}")
    category, categories = pd.factorize(pd.Series([last[asin] for asin in known]))
    rng = np.random.default_rng(seed)
    _, starts, stops = history_spans(user, time, user, time)
    negative = _never_rated(user, item, rng, even=True)
    final = np.r_[user[1:] != user[:-1], True]
    part = np.where(final, 2, (rng.random(len(user)) < 0.05).astype(int))
    rows = np.tile(np.flatnonzero(np.r_[False, user[1:] == user[:-1]]), 2)
    shown = np.concatenate([item[rows[: len(rows) // 2]], negative[rows[: len(rows) // 2]]])
    clicks = _together(
        np.stack([shown, category[shown]], axis=1) + _FIRST, np.stack([item, category[item]], axis=1) + _FIRST,
        starts[rows], stops[rows], np.repeat(np.array([1, 0], dtype=np.float32), len(rows) // 2), user[rows],
    )  # fmt: skip
    train, val, test = _parts(clicks, part[rows])
    return ClickData(
        train, val, test,
        fields={"item": len(known) + _FIRST, "category": len(categories) + _FIRST}, max_len=max_len, name=place.name,
    )  # fmt: skip


def _folder(name: str | os.PathLike, what: str) -> Path:
    if isinstance(name, os.PathLike) or os.sep in str(name):
        folder = Path(name)
    elif name == "ml-latest-small":
        return locate("ml-latest-small")
    else:
        folder = home() / name
    if not folder.is_dir():
        raise FileNotFoundError(f"data set {name} is not here: place {what} into {folder}")
    return folder


def _together(
    shown: np.ndarray, ids: np.ndarray, starts: np.ndarray, stops: np.ndarray, clicked: np.ndarray, user: np.ndarray
) -> Clicks:
    return Clicks(
        candidates=torch.from_numpy(shown.astype(np.int64)),
        behaviours=torch.from_numpy(ids.astype(np.int64)),
        starts=torch.from_numpy(starts),
        stops=torch.from_numpy(stops),
        labels=torch.from_numpy(clicked),
        users=torch.from_numpy(user.astype(np.int64)),
        context=torch.empty(len(shown), 0, dtype=torch.int64),
    )


def _parts(clicks: Clicks, part: np.ndarray) -> tuple[Clicks, Clicks, Clicks]:
    train, val, test = (clicks.subset(torch.from_numpy(part == code)) for code in range(3))
    return train, val, test


def _by_time(user: np.ndarray) -> np.ndarray:
    """0, 1, 2 for the first 70 %, the next 10 % and the last 20 % of each user's rows, which are sorted."""
    _, first, count = np.unique(user, return_index=True, return_counts=True)
    share = (np.arange(len(user)) - np.repeat(first, count)) / np.repeat(count, count)
    return (share >= 0.7).astype(int) + (share >= 0.8)


def _by_user(user: np.ndarray, test_users: int, rng: np.random.Generator) -> np.ndarray:
    users, place = np.unique(user, return_inverse=True)
    if not 0 < test_users < len(users) - 1:
        raise ValueError(f"test_users must lie in 1..{len(users) - 2}, got {test_users}")
    rank = rng.permutation(len(users))
    val_users = max((len(users) - test_users) // 10, 1)
    part = np.where(rank < test_users, 2, np.where(rank < test_users + val_users, 1, 0))
    return part[place]


def _never_rated(user: np.ndarray, item: np.ndarray, rng: np.random.Generator, even: bool = False) -> np.ndarray:
    """For each row an item that its user has in no row, drawn evenly or in proportion to its rows."""
    items = int(item.max()) + 1
    _, code = np.unique(user, return_inverse=True)
    taken = np.unique(code * items + item)
    drawn = np.full(len(user), -1)
    open_rows = np.arange(len(user))
    for _ in range(1000):
        pick = rng.integers(items, size=len(open_rows)) if even else item[rng.integers(len(item), size=len(open_rows))]
        key = code[open_rows] * items + pick
        free = taken[np.searchsorted(taken, key).clip(max=len(taken) - 1)] != key
        drawn[open_rows[free]] = pick[free]
        open_rows = open_rows[~free]
        if not len(open_rows):
            return drawn
    raise ValueError(f"{len(np.unique(code[open_rows]))} users have nearly every item: there is no negative for them")


def _records(folder: Path, pattern: str, keys: tuple[str, ...]) -> pd.DataFrame:
    files = sorted(folder.glob(pattern))
    if len(files) != 1:
        raise FileNotFoundError(f"{folder} must hold one file {pattern}, it holds {len(files)}")
    found: dict[str, list[Any]] = {key: [] for key in keys}
    opener: Any = gzip.open if files[0].suffix == ".gz" else open
    with opener(files[0], "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                # The meta data of 2014 are Python literals rather than JSON; literals only are evaluated.
                record = json.loads(line) if line.startswith('{"') else ast.literal_eval(line)
                values = [record[key] for key in keys]
            except (ValueError, SyntaxError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{files[0].name}, line {number}: no record with {', '.join(keys)}: {error}"
                ) from error
            for key, value in zip(keys, values):
                found[key].append(value)
    return pd.DataFrame(found)
