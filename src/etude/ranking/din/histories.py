"""Histories without leaks: what a user had done strictly before an event."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from etude.data.kinds_clicks import PADDING, history_spans

__all__ = ["build_histories"]


def build_histories(
    events: Mapping[str, Any] | Any, user: str, item: str, time: str, max_len: int, *, clicked: str | None = None
) -> tuple[Int64[Tensor, "n time"], Bool[Tensor, "n time"]]:
    """The last `max_len` items of the same user before each event, oldest first, padded with 0; and where they are.

        ids, mask = build_histories(log, "user", "item", "time", max_len=50)

    An event at the same time as the row's own is left out, as nobody can tell which came first.

    Args:
        events: a DataFrame or a dict of columns, in any order; the result has a row for every row.
        user, item, time: names of columns: numbers, numbers of items from 1 up, numbers or datetimes.
        max_len: behaviours kept, at least 1.
        clicked: a column of 0 and 1; behaviours are then the rows with 1 only.

    Raises:
        ValueError: if a column is unknown or of another type, or a value is missing.
    """
    if max_len < 1:
        raise ValueError(f"max_len must be at least 1, got {max_len}")
    wanted = [name for name in (user, item, time, clicked) if name is not None]
    unknown = [name for name in wanted if name not in events]
    if unknown:
        raise ValueError(f"events have no column {', '.join(map(repr, unknown))}; they have {', '.join(events)}")
    columns = {name: np.asarray(events[name]) for name in wanted}
    items = columns[item]
    if items.dtype.kind not in "iu" or (len(items) and items.min() <= PADDING):
        raise ValueError(f"{item} must be integers from 1 up (0 is padding), got {items.dtype} such as {items[:1]}")
    done = np.ones(len(items), dtype=bool) if clicked is None else columns[clicked].astype(bool)
    order, starts, stops = history_spans(columns[user][done], columns[time][done], columns[user], columns[time])
    length = np.minimum(stops - starts, max_len)
    position = np.arange(int(length.max(initial=0)))
    mask = position < length[:, None]
    behaviours = np.r_[items[done][order], PADDING].astype(np.int64)
    index = np.where(mask, (stops - length)[:, None] + position, len(behaviours) - 1)
    return torch.from_numpy(behaviours[index]), torch.from_numpy(mask)
