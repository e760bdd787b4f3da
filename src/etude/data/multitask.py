"""Logs of several types of behaviour, as `MultiTaskData`: MovieLens, and a user's own Parquet or CSV log.

    from etude.data import multitask
    data = multitask.movielens()                                          # ml-latest-small
    data = multitask.behaviour_log("log.csv", user="user", item="item", time="time", behaviour="behaviour")

A row of `MultiTaskRows` is a target shown to a user after a history, with one label a task; NaN where it is not known.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from etude.data.clicks import _by_time, _coded, _folder, _read, _times
from etude.data.kinds_multitask import MultiTaskData, MultiTaskRows, behaviour_spans, joint_outcomes, untouched_items

__all__ = ["behaviour_log", "movielens"]

_FIRST = 2  # 0 is padding, 1 is unknown
_LIKED, _DISLIKED = 4.0, 2.5


def movielens(name: str | os.PathLike = "ml-latest-small", *, max_len: int = 15, seed: int = 0) -> MultiTaskData:
    """MovieLens with three tasks: is a film rated 4 or more, rated 2.5 or less, rated at all?

    Behaviours are what the user liked (4 or more), disliked (2.5 or less) and took neutrally, strictly before. A row
    with a rating knows all three outcomes. Beside it stands, with the same histories, a film that the user never rates,
    drawn in proportion to how often films are rated; of it only "rated at all" is known: the other labels are missing.

    The last 20 % of each user's ratings in time are the test part, the 10 % before them validation; a film that is
    never rated stands in the part of its rating. Items are known by number and by first genre.

    Args:
        name: of the set in the catalogue or a folder of the data home, or a path: `ratings.csv` and `movies.csv`.
        max_len: events kept of each history.
        seed: of the films that are never rated.

    Raises:
        FileNotFoundError: if the set is not here; the message says what to place where.
        ValueError: if the files do not have the columns.
    """
    folder = _folder(name, "ratings.csv and movies.csv")
    ratings = _read(folder / "ratings.csv", ["userId", "movieId", "rating", "timestamp"])
    films = _read(folder / "movies.csv", ["movieId", "genres"])
    ratings = ratings.sort_values(["userId", "timestamp", "movieId"], kind="stable", ignore_index=True)
    known, place = np.unique(ratings["movieId"], return_inverse=True)
    genre = films.set_index("movieId")["genres"].str.split("|").str[0].reindex(known).fillna("(no genres listed)")
    category, genres = pd.factorize(genre, sort=True)
    user, time = ratings["userId"].to_numpy(), ratings["timestamp"].to_numpy()
    value = ratings["rating"].to_numpy()
    liked, disliked = value >= _LIKED, value <= _DISLIKED
    order, starts, stops = behaviour_spans(user, time, np.select([liked, disliked], [0, 1], 2), 3, user, time)
    never = untouched_items(user, place, np.random.default_rng(seed))
    missing = np.full(len(user), np.nan)
    rated = np.stack([liked, disliked, np.ones_like(liked)], axis=1).astype(np.float32)
    other = np.stack([missing, missing, np.zeros(len(user))], axis=1).astype(np.float32)
    shown = np.concatenate([place, never])
    ids = np.stack([shown, category[shown]], axis=1) + _FIRST
    rows = _rows(
        ids, ids[order],
        np.tile(starts, (2, 1)), np.tile(stops, (2, 1)), np.concatenate([rated, other]), np.tile(user, 2),
    )  # fmt: skip
    train, val, test = _parts(rows, np.tile(_by_time(user), 2))
    return MultiTaskData(
        train, val, test, item_fields={"item": len(known) + _FIRST, "genre": len(genres) + _FIRST},
        behaviours=("liked", "disliked", "neutral"), tasks=("likes", "dislikes", "rates"), max_len=max_len,
        name=folder.name,
    )  # fmt: skip


def behaviour_log(
    path: str | os.PathLike,
    *,
    user: str = "user",
    item: str = "item",
    time: str = "time",
    behaviour: str = "behaviour",
    item_fields: Sequence[str] = (),
    behaviours: Sequence[str] | None = None,
    dates: str | None = None,
    max_len: int = 20,
    seed: int = 0,
    name: str | None = None,
) -> MultiTaskData:
    """A log with one event a row, such as UserBehavior's clicks, carts and purchases: which of them is next?

    Every (user, item, time) is a row, with an outcome for each type of behaviour; beside it stands, with the same
    histories, an item that the user has in no row, drawn in proportion to the rows of the items, with no outcome. The
    last 20 % of the rows by time are the test part, the 10 % before them validation. Values that training does not have
    share the id "unknown".

    Args:
        path: a `.csv` or `.parquet` file.
        user, item, time, behaviour: its columns; times are numbers or datetimes.
        item_fields: further columns that describe the item, such as its category.
        behaviours: the types, in this order; all that the log has, sorted, if None.
        dates: how times that are text are written, such as "%Y-%m-%d %H:%M:%S"; text is refused without it.
        max_len: events kept of each history.
        seed: of the items that are not touched.
        name: what the data are called; the name of the file if None.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for an unknown column or ending, a missing value, a time that is text (with its row), a type of
            behaviour that the log does not have or that is not named, or a part of the split without rows.
    """
    path = Path(path)
    columns = [user, item, time, behaviour, *item_fields]
    if len(set(columns)) < len(columns):
        raise ValueError(f"user, item, time, behaviour and item_fields must be different columns, got {columns}")
    frame = _read(path, columns)
    if len(frame) < 10:
        raise ValueError(f"{path.name} has {len(frame)} rows; at least 10 are needed")
    missing = frame.isna().sum()
    if missing.any():
        worst = str(missing.idxmax())
        raise ValueError(f"{path.name}: {worst} has no value in {int(missing[worst])} of {len(frame)} rows")
    times = _times(frame[time], dates, path.name)
    there = sorted(frame[behaviour].unique().tolist())
    names = list(there if behaviours is None else behaviours)
    if set(names) != set(there):
        raise ValueError(f"{path.name}: {behaviour} holds {there}, behaviours names {names}")
    kind = pd.Index(names).get_indexer(pd.Index(frame[behaviour]))
    users = pd.factorize(frame[user])[0].astype(np.int64)
    items = pd.factorize(frame[item])[0].astype(np.int64)
    first, outcomes = joint_outcomes(users, items, times, kind, len(names))
    cuts = np.sort(times[first])[[int(len(first) * share) for share in (0.7, 0.8)]]
    part = (times[first] >= cuts[0]).astype(int) + (times[first] >= cuts[1])
    fields = (item, *item_fields)
    known = times < cuts[0]
    coded = {field: _coded(frame[field], known) for field in fields}
    ids = np.stack([coded[field][0] for field in fields], axis=1)
    order, starts, stops = behaviour_spans(users, times, kind, len(names), users[first], times[first])
    never = untouched_items(users[first], items[first], np.random.default_rng(seed))
    # An event of each item, through which the other fields of an item drawn are known.
    example = np.unique(items, return_index=True)[1]
    rows = _rows(
        np.concatenate([ids[first], ids[example[never]]]), ids[order], np.tile(starts, (2, 1)), np.tile(stops, (2, 1)),
        np.concatenate([outcomes, np.zeros_like(outcomes)]).astype(np.float32), np.tile(users[first], 2),
    )  # fmt: skip
    train, val, test = _parts(rows, np.tile(part, 2))
    labels = [str(label) for label in names]
    return MultiTaskData(
        train, val, test, item_fields={field: coded[field][1] for field in fields}, behaviours=labels, tasks=labels,
        max_len=max_len, name=name or path.stem,
    )  # fmt: skip


def _rows(
    shown: np.ndarray, events: np.ndarray, starts: np.ndarray, stops: np.ndarray, labels: np.ndarray, user: np.ndarray
) -> MultiTaskRows:
    return MultiTaskRows(
        targets=torch.from_numpy(shown.astype(np.int64)),
        events=torch.from_numpy(events.astype(np.int64)),
        starts=torch.from_numpy(starts),
        stops=torch.from_numpy(stops),
        labels=torch.from_numpy(labels),
        users=torch.from_numpy(user.astype(np.int64)),
        context=torch.empty(len(shown), 0, dtype=torch.int64),
    )


def _parts(rows: MultiTaskRows, part: np.ndarray) -> tuple[MultiTaskRows, MultiTaskRows, MultiTaskRows]:
    train, val, test = (rows.subset(torch.from_numpy(part == code)) for code in range(3))
    return train, val, test
