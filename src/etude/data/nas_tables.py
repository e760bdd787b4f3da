"""Public tables of architecture search: what each of some hundred networks reached, and what it costs.

    from etude.data import nas_tables
    table = nas_tables.load("transnas_micro", "class_object")
    table.keys[0], table.metric[0], table.flops[0]

The set `naslib_zc` holds them ("NAS-Bench-Suite-Zero": Krishnakumar et al., 2022): NAS-Bench-101, 201 and 301 and the
two spaces of TransNAS-Bench-101. They are JSON; the keys, written as Python tuples, are read as literals, never run.
"""

import ast
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from etude.data.catalogue import locate

__all__ = ["SPACES", "ArchitectureTable", "load", "tasks"]

SPACES = {
    "nasbench101": "zc_nasbench101.json",
    "nasbench201": "zc_nasbench201.json",
    "nasbench301": "zc_nasbench301.json",
    "transnas_micro": "zc_transbench101_micro.json",
    "transnas_macro": "zc_transbench101_macro.json",
}
"""Space -> its file."""
_KEY = re.compile(r"[\d\s,()\[\]]+")
_NO_SCORE = -1e8  # what the tables write where a zero-cost score could not be computed


@dataclass(frozen=True, eq=False)
class ArchitectureTable:
    """Architectures of one space, and what they reached on one task.

    Args:
        space, task: which.
        keys: a key each, as the space encodes them: nested tuples of whole numbers.
        metric: (n,) the validation metric in the task's own unit; higher is better.
        flops: (n,) multiply-adds of a forward pass, not millions.
        params: (n,) weights, not millions.
        scores: zero-cost scores by name, (n,) each; NaN where the table has none.
    """

    space: str
    task: str
    keys: tuple[tuple[Any, ...], ...]
    metric: np.ndarray
    flops: np.ndarray
    params: np.ndarray
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self):
        n = len(self.keys)
        if n == 0:
            raise ValueError(f"the table {self.name} has no architecture")
        if len(set(self.keys)) != n:
            raise ValueError(
                f"the table {self.name} has an architecture twice: {n - len(set(self.keys))} keys too many"
            )
        columns = {"metric": self.metric, "flops": self.flops, "params": self.params, **self.scores}
        for name, column in columns.items():
            if column.shape != (n,):
                raise ValueError(f"{name} of {self.name} must have shape ({n},), got {column.shape}")
            if name not in self.scores and not np.isfinite(column).all():
                raise ValueError(f"{name} of {self.name} must be finite, got {column[~np.isfinite(column)][0]}")

    @property
    def name(self) -> str:
        return f"{self.space}/{self.task}"

    def __len__(self) -> int:
        return len(self.keys)

    def rows(self, chosen: Sequence[int] | np.ndarray) -> "ArchitectureTable":
        """The table cut down to these rows, in their order."""
        index = np.asarray(chosen, dtype=np.int64)
        scores = {name: column[index] for name, column in self.scores.items()}
        keys = tuple(self.keys[row] for row in index.tolist())
        return ArchitectureTable(
            self.space, self.task, keys, self.metric[index], self.flops[index], self.params[index], scores
        )


def tasks(space: str, folder: str | os.PathLike | None = None) -> tuple[str, ...]:
    """The tasks of a space's table, in the file's order.

    Raises:
        ValueError: if there is no such space. FileNotFoundError: as in `load`.
    """
    return tuple(_read(_file(space, folder)))


def load(space: str, task: str, folder: str | os.PathLike | None = None) -> ArchitectureTable:
    """A table of a space, in the file's order.

    Args:
        space: one of `SPACES`. Keys of nasbench101 are 49 entries of the adjacency matrix and 7 operations; of
            nasbench201 and transnas_micro 6 operations; of transnas_macro 6 digits; of nasbench301 two cells.
        task: as `tasks(space)` lists them, such as "cifar10" or "class_object".
        folder: where the files lie, if not in the set `naslib_zc`.

    Raises:
        ValueError: if there is no such space or task, or the file is no such table.
        FileNotFoundError: if the files are not here; the message says how to get them.
    """
    content = _read(_file(space, folder))
    if task not in content:
        raise ValueError(f"{space} has no task {task!r}: it has {', '.join(content)}")
    entries = content[task]
    try:
        rows = [{name: _number(value) for name, value in entry.items()} for entry in entries.values()]
        metric, flops, params = (np.array([row[name] for row in rows]) for name in ("val_accuracy", "flops", "params"))
    except (KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{space}/{task} is not a table of architectures: {error!r}") from error
    others = sorted(set().union(*rows) - {"val_accuracy", "flops", "params", "idx", "arch", "id"})
    scores = {name: np.array([row.get(name, math.nan) for row in rows]) for name in others}
    keys = tuple(_key(text) for text in entries)
    # The files count in millions.
    return ArchitectureTable(space, task, keys, metric, np.round(flops * 1e6), np.round(params * 1e6), scores)


def _file(space: str, folder: str | os.PathLike | None) -> Path:
    if space not in SPACES:
        raise ValueError(f"space must be one of {', '.join(SPACES)}, got {space!r}")
    file = (Path(folder) if folder is not None else locate("naslib_zc")) / SPACES[space]
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}: it is part of the set naslib_zc (`etude data fetch naslib_zc`)")
    return file


def _read(file: Path) -> dict[str, dict[str, Any]]:
    return _parsed(file, file.stat().st_mtime_ns)


@cache
def _parsed(file: Path, written: int) -> dict[str, dict[str, Any]]:
    """The file as it was when it was last written; a table is read by many trials of a process."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    # One of the files has its space as an outermost name.
    if isinstance(content, dict) and list(content) == ["nasbench101"]:
        content = content["nasbench101"]
    if not isinstance(content, dict) or not all(isinstance(part, dict) for part in content.values()):
        raise ValueError(f"{file} is not a table of tasks and architectures")
    return content


def _number(value: Any) -> float:
    """A cell of the table: a number, or a score with the time it took; NaN for anything else."""
    if isinstance(value, dict):
        value = value.get("score")
    if isinstance(value, bool) or not isinstance(value, int | float) or value == _NO_SCORE:
        return math.nan
    return float(value)


def _key(text: str) -> tuple[Any, ...]:
    if not _KEY.fullmatch(text):
        raise ValueError(f"an architecture's key must be whole numbers in brackets, got {text[:80]!r}")
    try:
        return _tuples(ast.literal_eval(text))
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(f"an architecture's key must be whole numbers in brackets, got {text[:80]!r}") from error


def _tuples(value: Any) -> Any:
    return tuple(_tuples(part) for part in value) if isinstance(value, list | tuple) else value
