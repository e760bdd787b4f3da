"""Clicks: what a user was shown, what the user had done before, and whether a click came of it.

A history is a stretch of one shared list of behaviours, sorted by user and time, so that a log takes memory in
proportion to its events; histories are padded one batch at a time.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

__all__ = ["PADDING", "UNKNOWN", "ClickData", "Clicks", "history_spans"]

PADDING = 0
"""The id of no behaviour."""
UNKNOWN = 1
"""The id of whatever the vocabulary does not know."""


def _described(tensor: Any) -> str:
    if not isinstance(tensor, Tensor):
        return type(tensor).__name__
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def _expect(ok: bool, name: str, expected: str, given: Any) -> None:
    if not ok:
        raise ValueError(f"Clicks.{name} must be {expected}, got {_described(given)}")


def _ids(name: str, tensor: Any, rows: int | None, columns: int | None) -> None:
    shape = f"({'n' if rows is None else rows}, {'fields' if columns is None else columns})"
    good = isinstance(tensor, Tensor) and tensor.dtype == torch.int64 and tensor.ndim == 2
    good = good and rows in (None, len(tensor)) and columns in (None, tensor.shape[1])
    _expect(good, name, f"int64 of shape {shape}", tensor)
    if tensor.numel() and int(tensor.min()) < UNKNOWN:
        raise ValueError(f"Clicks.{name} must hold ids from {UNKNOWN} up (0 is padding), got {int(tensor.min())}")


@dataclass(frozen=True, eq=False)
class Clicks:
    """Impressions, row by row.

        ids, mask = clicks.history(torch.tensor([3, 1]), max_len=50)

    Args:
        candidates: ids of what was shown, int64 (n, fields), from 1 up; the columns are those of `behaviours`.
        behaviours: ids of all behaviours, int64 (events, fields), each user's together and in order of time.
        starts, stops: int64 (n,): the history of row i is `behaviours[starts[i]:stops[i]]`; it may be empty.
        labels: float32 (n,), 1 for a click and 0 for none.
        users: int64 (n,), whose impression it is; metrics by user group by it.
        context: ids of further features, int64 (n, context fields), from 1 up.
    """

    candidates: Tensor
    behaviours: Tensor
    starts: Tensor
    stops: Tensor
    labels: Tensor
    users: Tensor
    context: Tensor

    def __post_init__(self):
        _ids("candidates", self.candidates, None, None)
        n, fields = self.candidates.shape
        _ids("behaviours", self.behaviours, None, fields)
        _ids("context", self.context, n, None)
        for name in ("starts", "stops", "users"):
            tensor = getattr(self, name)
            good = isinstance(tensor, Tensor) and tensor.dtype == torch.int64 and tensor.shape == (n,)
            _expect(good, name, f"int64 of shape ({n},)", tensor)
        good = isinstance(self.labels, Tensor) and self.labels.dtype == torch.float32 and self.labels.shape == (n,)
        _expect(good, "labels", f"float32 of shape ({n},)", self.labels)
        wrong = ~((self.labels == 0) | (self.labels == 1))
        if bool(wrong.any()):
            raise ValueError(f"Clicks.labels must be 0 or 1, got {self.labels[wrong][0].item()}")
        events = len(self.behaviours)
        wrong = (self.starts < 0) | (self.starts > self.stops) | (self.stops > events)
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0])
            raise ValueError(
                f"Clicks: a history must be a stretch of 0..{events}, "
                f"row {row} has {int(self.starts[row])}..{int(self.stops[row])}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def history(
        self, rows: Int64[Tensor, "batch"], max_len: int
    ) -> tuple[Int64[Tensor, "batch time fields"], Bool[Tensor, "batch time"]]:
        """The last `max_len` behaviours of these rows, oldest first, then padding up to the longest of the batch.

        Raises:
            ValueError: if `max_len` is not positive.
        """
        if max_len < 1:
            raise ValueError(f"max_len must be at least 1, got {max_len}")
        stops = self.stops[rows]
        length = (stops - self.starts[rows]).clamp(max=max_len)
        position = torch.arange(int(length.max()) if len(rows) else 0, device=length.device)
        mask = position < length[:, None]
        index = torch.where(mask, (stops - length)[:, None] + position, 0)
        return self.behaviours[index].masked_fill(~mask[..., None], PADDING), mask

    def subset(self, rows: Tensor) -> "Clicks":
        """The impressions at `rows` (integers or a boolean mask); the behaviours are shared."""
        parts = {n: getattr(self, n)[rows] for n in ("candidates", "starts", "stops", "labels", "users", "context")}
        return Clicks(behaviours=self.behaviours, **parts)


@dataclass(frozen=True, eq=False)
class ClickData:
    """Impressions in a fixed split, with the tables that their ids point into.

    Args:
        train, val, test: none empty.
        fields: rows of the embedding table of each behaviour field, by name, in the order of the columns; ids 0
            (padding) and 1 (unknown) are counted.
        context: the same for the context fields.
        max_len: how many behaviours a history keeps.
        name: what the data are called in tables.
        meta: whatever else is known.
    """

    train: Clicks
    val: Clicks
    test: Clicks
    fields: Mapping[str, int]
    context: Mapping[str, int] = field(default_factory=dict)
    max_len: int = 50
    name: str = "clicks"
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.max_len < 1:
            raise ValueError(f"ClickData.max_len must be at least 1, got {self.max_len}")
        if not self.fields:
            raise ValueError("ClickData.fields must name at least one behaviour field")
        shared = sorted(set(self.fields) & set(self.context))
        if shared:
            raise ValueError(f"ClickData: {', '.join(shared)} stand in both fields and context")
        for part in ("train", "val", "test"):
            clicks = getattr(self, part)
            if not isinstance(clicks, Clicks):
                raise TypeError(f"ClickData.{part} must be Clicks, got {type(clicks).__name__}")
            if len(clicks) == 0:
                raise ValueError(f"ClickData.{part} is empty")
            for what, sizes in (("candidates", self.fields), ("behaviours", self.fields), ("context", self.context)):
                _check_sizes(f"ClickData.{part}.{what}", getattr(clicks, what), sizes)


def _check_sizes(where: str, ids: Tensor, sizes: Mapping[str, int]) -> None:
    if ids.shape[1] != len(sizes):
        raise ValueError(f"{where} must have the {len(sizes)} columns {', '.join(sizes)}, got {ids.shape[1]}")
    if not len(ids):
        return
    for (name, size), largest in zip(sizes.items(), ids.amax(dim=0).tolist()):
        if largest >= size:
            raise ValueError(f"{where}: the ids of {name} must lie below {size}, got {largest}")


def history_spans(
    event_user: np.ndarray, event_time: np.ndarray, user: np.ndarray, time: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which events come strictly before each row, of the same user.

    An event at the row's own time is left out, whether or not it is the row itself: nobody can tell which came first.

    Args:
        event_user, event_time: (events,) of the behaviours, in any order.
        user, time: (n,) of the rows. Users and times are numbers or datetimes.

    Returns:
        The order (events,) that sorts the behaviours by user and time, and starts and stops (n,) into that order.

    Raises:
        ValueError: if shapes differ, or a user or time is missing or neither number nor datetime.
    """
    for what, left, right in (("events", event_user, event_time), ("rows", user, time)):
        if left.ndim != 1 or left.shape != right.shape:
            raise ValueError(f"users and times of the {what} must be (n,) alike, got {left.shape} and {right.shape}")
    for what, values in (("event_user", event_user), ("user", user), ("event_time", event_time), ("time", time)):
        if values.dtype.kind not in "iufM":
            example = repr(values[0]) if len(values) else "none"
            raise ValueError(f"{what} must be numbers or datetimes, got {values.dtype} such as {example}")
        missing = int(np.isnat(values).sum() if values.dtype.kind == "M" else (values != values).sum())
        if missing:
            raise ValueError(f"{what} is missing in {missing} rows")
    order = np.lexsort((event_time, event_user))
    sorted_user = event_user[order]
    # One number for (user, time) that sorts as they do.
    times, rank = np.unique(np.concatenate([event_time[order], time]), return_inverse=True)
    _, code = np.unique(np.concatenate([sorted_user, user]), return_inverse=True)
    key = code.astype(np.int64) * (len(times) + 1) + rank
    starts = np.searchsorted(code[: len(order)], code[len(order) :], side="left")
    stops = np.searchsorted(key[: len(order)], key[len(order) :], side="left")
    return order, starts.astype(np.int64), stops.astype(np.int64)
