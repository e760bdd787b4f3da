"""Impressions with several outcomes each, and histories of several types of behaviour.

A history is a stretch of one shared list of events, sorted by type, user and time, so that a log takes memory in
proportion to its events; histories are padded one batch at a time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from etude.data.kinds_clicks import PADDING, UNKNOWN, history_spans

__all__ = ["MultiTaskBatch", "MultiTaskData", "MultiTaskRows", "behaviour_spans", "joint_outcomes", "untouched_items"]


class MultiTaskBatch(NamedTuple):
    """Some impressions as a model takes them: `model(*batch)`.

    Args:
        targets: ids of the fields of the item shown.
        sequences: for each type of behaviour its events, oldest first, then padding (0).
        mask: where there is an event.
        context: ids of the user's and the impression's fields.
    """

    targets: Int64[Tensor, "batch item_fields"]
    sequences: Int64[Tensor, "batch behaviours time event_fields"]
    mask: Bool[Tensor, "batch behaviours time"]
    context: Int64[Tensor, "batch context_fields"]

    def to(self, device: torch.device | str) -> "MultiTaskBatch":
        return MultiTaskBatch(*(part.to(device) for part in self))


def _expect(ok: bool, name: str, expected: str, given: Any) -> None:
    if not ok:
        shape = f"{given.dtype} of shape {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
        raise ValueError(f"MultiTaskRows.{name} must be {expected}, got {shape.removeprefix('torch.')}")


@dataclass(frozen=True, eq=False)
class MultiTaskRows:
    """Impressions, row by row.

        batch = rows.batch(torch.tensor([3, 1]), max_len=20)
        loss = multitask_loss(model(*batch), rows.labels[[3, 1]])

    Args:
        targets: ids of what was shown, int64 (n, item fields), from 1 up.
        events: ids of all events, int64 (events, event fields), from 1 up: the item fields in the order of `targets`,
            then those that only an event has (a rating, a time of day). Each user's events of a type stand together,
            in order of time.
        starts, stops: int64 (n, M): the history of type m of row i is `events[starts[i, m]:stops[i, m]]`; it may be
            empty.
        labels: float32 (n, K), 1 or 0, or NaN where an outcome is not known.
        users: int64 (n,), whose impression it is.
        context: ids of further features, int64 (n, context fields), from 1 up.
    """

    targets: Tensor
    events: Tensor
    starts: Tensor
    stops: Tensor
    labels: Tensor
    users: Tensor
    context: Tensor

    def __post_init__(self):
        for name in ("targets", "events", "starts", "stops", "context"):
            tensor = getattr(self, name)
            good = isinstance(tensor, Tensor) and tensor.dtype == torch.int64 and tensor.ndim == 2
            _expect(good, name, "int64 with two axes", tensor)
        n, behaviours = len(self.targets), self.starts.shape[1]
        for name in ("starts", "stops", "context"):
            _expect(len(getattr(self, name)) == n, name, f"int64 of {n} rows", getattr(self, name))
        _expect(self.stops.shape[1] == behaviours, "stops", f"int64 of shape ({n}, {behaviours})", self.stops)
        good = self.events.shape[1] >= self.targets.shape[1]
        _expect(good, "events", f"int64 of at least the {self.targets.shape[1]} columns of targets", self.events)
        good = isinstance(self.users, Tensor) and self.users.dtype == torch.int64 and self.users.shape == (n,)
        _expect(good, "users", f"int64 of shape ({n},)", self.users)
        good = isinstance(self.labels, Tensor) and self.labels.dtype == torch.float32 and self.labels.ndim == 2
        _expect(good and len(self.labels) == n, "labels", f"float32 of shape ({n}, tasks)", self.labels)
        wrong = ~((self.labels == 0) | (self.labels == 1) | self.labels.isnan())
        if bool(wrong.any()):
            raise ValueError(f"MultiTaskRows.labels must be 0, 1 or NaN, got {self.labels[wrong][0].item()}")
        for name in ("targets", "events", "context"):
            ids = getattr(self, name)
            if ids.numel() and int(ids.min()) < UNKNOWN:
                raise ValueError(
                    f"MultiTaskRows.{name} must hold ids from {UNKNOWN} up (0 is padding), got {int(ids.min())}"
                )
        wrong = (self.starts < 0) | (self.starts > self.stops) | (self.stops > len(self.events))
        if bool(wrong.any()):
            row, kind = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"MultiTaskRows: a history must be a stretch of 0..{len(self.events)}, row {row} has "
                f"{int(self.starts[row, kind])}..{int(self.stops[row, kind])} for behaviour {kind}"
            )

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, rows: Int64[Tensor, "batch"], max_len: int) -> MultiTaskBatch:
        """These impressions with the last `max_len` events of every history, padded up to the longest of them.

        Raises:
            ValueError: if `max_len` is not positive.
        """
        if max_len < 1:
            raise ValueError(f"max_len must be at least 1, got {max_len}")
        stops = self.stops[rows]
        length = (stops - self.starts[rows]).clamp(max=max_len)
        longest = int(length.max()) if length.numel() else 0
        # One position at least, so that no axis is empty when all histories are.
        position = torch.arange(max(longest, 1), device=length.device)
        mask = position < length[..., None]
        if len(self.events):
            index = torch.where(mask, (stops - length)[..., None] + position, 0)
            sequences = self.events[index].masked_fill(~mask[..., None], PADDING)
        else:
            sequences = self.events.new_zeros(*mask.shape, self.events.shape[1])
        return MultiTaskBatch(self.targets[rows], sequences, mask, self.context[rows])

    def subset(self, rows: Tensor) -> "MultiTaskRows":
        """The impressions at `rows` (integers or a boolean mask); the events are shared."""
        names = ("targets", "starts", "stops", "labels", "users", "context")
        return MultiTaskRows(events=self.events, **{name: getattr(self, name)[rows] for name in names})


@dataclass(frozen=True, eq=False)
class MultiTaskData:
    """Impressions in a fixed split, with the tables that their ids point into.

    Args:
        train, val, test: none empty.
        item_fields: rows of the embedding table of each field of an item, by name, in the order of the columns; ids 0
            (padding) and 1 (unknown) are counted.
        behaviours: names of the types of behaviour.
        tasks: names of the outcomes.
        event_fields: the same as `item_fields` for what only an event has.
        context: the same for the context fields.
        max_len: how many events of each type a history keeps.
        name: what the data are called in tables.
    """

    train: MultiTaskRows
    val: MultiTaskRows
    test: MultiTaskRows
    item_fields: Mapping[str, int]
    behaviours: Sequence[str]
    tasks: Sequence[str]
    event_fields: Mapping[str, int] = field(default_factory=dict)
    context: Mapping[str, int] = field(default_factory=dict)
    max_len: int = 20
    name: str = "behaviours"

    def __post_init__(self):
        if self.max_len < 1:
            raise ValueError(f"MultiTaskData.max_len must be at least 1, got {self.max_len}")
        names = [*self.item_fields, *self.event_fields, *self.context]
        if not self.item_fields or len(set(names)) < len(names):
            raise ValueError(f"MultiTaskData needs item fields, and fields of different names, got {names}")
        for part in ("train", "val", "test"):
            rows = getattr(self, part)
            if not isinstance(rows, MultiTaskRows):
                raise TypeError(f"MultiTaskData.{part} must be MultiTaskRows, got {type(rows).__name__}")
            if len(rows) == 0:
                raise ValueError(f"MultiTaskData.{part} is empty")
            counts = (rows.starts.shape[1], rows.labels.shape[1])
            if counts != (len(self.behaviours), len(self.tasks)):
                raise ValueError(
                    f"MultiTaskData.{part} must have the {len(self.behaviours)} behaviours "
                    f"{', '.join(self.behaviours)} and {len(self.tasks)} tasks {', '.join(self.tasks)}, got {counts}"
                )
            events = {**self.item_fields, **self.event_fields}
            for what, sizes in (("targets", self.item_fields), ("events", events), ("context", self.context)):
                _check_sizes(f"MultiTaskData.{part}.{what}", getattr(rows, what), sizes)


def _check_sizes(where: str, ids: Tensor, sizes: Mapping[str, int]) -> None:
    if ids.shape[1] != len(sizes):
        raise ValueError(f"{where} must have the {len(sizes)} columns {', '.join(sizes)}, got {ids.shape[1]}")
    if not len(ids):
        return
    for (name, size), largest in zip(sizes.items(), ids.amax(dim=0).tolist()):
        if largest >= size:
            raise ValueError(f"{where}: the ids of {name} must lie below {size}, got {largest}")


def behaviour_spans(
    event_user: np.ndarray, event_time: np.ndarray, event_type: np.ndarray, types: int, user: np.ndarray,
    time: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Which events of each type come strictly before each row, of the same user; see `history_spans`.

    Args:
        event_user, event_time: (events,) of the events, in any order.
        event_type: (events,) integers in 0..types - 1.
        types: M.
        user, time: (n,) of the rows.

    Returns:
        The order (events,) that sorts the events by type, user and time, and starts and stops (n, M) into that order.

    Raises:
        ValueError: if a type is out of range, and as `history_spans`.
    """
    if event_type.shape != event_user.shape or event_type.dtype.kind not in "iu":
        raise ValueError(f"event_type must be integers of shape {event_user.shape}, got {event_type.dtype} "
                         f"of {event_type.shape}")  # fmt: skip
    if len(event_type) and not 0 <= event_type.min() <= event_type.max() < types:
        raise ValueError(f"event_type must lie in 0..{types - 1}, got {event_type.min()}..{event_type.max()}")
    orders, starts, stops, before = [], [], [], 0
    for kind in range(types):
        places = np.flatnonzero(event_type == kind)
        order, start, stop = history_spans(event_user[places], event_time[places], user, time)
        orders.append(places[order])
        starts.append(start + before)
        stops.append(stop + before)
        before += len(places)
    return np.concatenate(orders), np.stack(starts, axis=1), np.stack(stops, axis=1)


def joint_outcomes(
    user: np.ndarray, item: np.ndarray, time: np.ndarray, event_type: np.ndarray, types: int
) -> tuple[np.ndarray, np.ndarray]:
    """Events at one time of one user with one item, as one row with an outcome for each type of behaviour.

    Args:
        user, item, time, event_type: (events,); types are integers in 0..types - 1.
        types: M.

    Returns:
        For every distinct (user, item, time) the place of its first event, (n,), in order of these places; and the
        outcomes (n, M), 1 where there is an event of the type and 0 elsewhere.
    """
    key = np.zeros(len(user), dtype=np.int64)
    for values in (user, item, time):
        _, code = np.unique(values, return_inverse=True)
        _, key = np.unique(key * (int(code.max(initial=0)) + 1) + code, return_inverse=True)
    _, first, group = np.unique(key, return_index=True, return_inverse=True)
    outcomes = np.zeros((len(first), types))
    outcomes[group, event_type] = 1
    order = np.argsort(first)
    return first[order], outcomes[order]


def untouched_items(user: np.ndarray, item: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each row an item that its user has in no row, drawn in proportion to the rows of the items.

    Args:
        user, item: (n,) integers from 0 up.
        rng: source of randomness.

    Raises:
        ValueError: if a user has nearly every item.
    """
    items = int(item.max(initial=0)) + 1
    _, code = np.unique(user, return_inverse=True)
    taken = np.unique(code * items + item)
    drawn, open_rows = np.full(len(user), -1), np.arange(len(user))
    for _ in range(1000):
        pick = item[rng.integers(len(item), size=len(open_rows))]
        key = code[open_rows] * items + pick
        free = taken[np.searchsorted(taken, key).clip(max=len(taken) - 1)] != key
        drawn[open_rows[free]] = pick[free]
        open_rows = open_rows[~free]
        if not len(open_rows):
            return drawn
    raise ValueError(f"{len(np.unique(code[open_rows]))} users have nearly every item: there is no negative for them")
