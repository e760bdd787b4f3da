"""Reading a user's table: columns, times, outcomes, ids; what cannot be used is refused with its column and row."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from etude.data.kinds_clicks import UNKNOWN

try:
    import pandas as pd
except ImportError as error:
    raise ImportError('reading logs needs pandas: pip install "etude[run]"') from error

__all__ = ["check_complete", "codes_of", "column", "labels_of", "last_of", "table_of", "times_of"]


def table_of(X: Any) -> Any:
    """A DataFrame or dict of columns as it is; or what stands in a `.csv` or `.parquet` file."""
    if isinstance(X, str | os.PathLike):
        path = os.fspath(X)
        if not os.path.isfile(path):
            raise FileNotFoundError(f"no log at {path}; a .parquet or .csv file is expected")
        if path.endswith(".parquet"):
            return pd.read_parquet(path)
        if path.endswith(".csv"):
            return pd.read_csv(path)
        raise ValueError(f"a log must end in .parquet or .csv, got {path}")
    if isinstance(X, Mapping) or hasattr(X, "columns"):
        return X
    raise ValueError(f"X must be a DataFrame, a dict of columns or the path of a log, got {type(X).__name__}")


def column(table: Any, name: str) -> np.ndarray:
    """One column, (n,)."""
    if name not in table:
        raise ValueError(f"there is no column {name!r}; there are {', '.join(map(str, table))}")
    return np.asarray(table[name])


def times_of(table: Any, name: str) -> np.ndarray:
    """A column of numbers or datetimes, (n,); datetimes of a zone come in UTC."""
    column(table, name)
    values = pd.Series(table[name])
    if isinstance(values.dtype, pd.DatetimeTZDtype):
        values = values.dt.tz_convert("UTC").dt.tz_localize(None)
    array = values.to_numpy()
    if array.dtype.kind not in "iufM":
        raise ValueError(
            f"{name!r} must hold numbers or datetimes of one zone, got such as {values.iloc[:1].tolist()}: "
            "convert it with pandas.to_datetime(..., utc=True)"
        )
    return array


def labels_of(table: Any, Y: Any) -> tuple[np.ndarray, list[str]]:
    """Outcomes as float64 (n, K), 0, 1 or NaN, and their names.

    Args:
        table: where columns that Y names stand.
        Y: an array, a DataFrame, or names of columns.
    """
    names: list[str] | None = None
    if hasattr(Y, "columns"):
        names, values = [str(name) for name in Y.columns], Y.to_numpy()
    elif isinstance(Y, list | tuple) and Y and all(isinstance(name, str) for name in Y):
        names, values = list(Y), np.stack([column(table, name) for name in Y], axis=1)
    else:
        values = np.asarray(Y)
    if values.ndim != 2 or not values.shape[1]:
        raise ValueError(
            f"Y must be (n, K), a column for each outcome, got shape {values.shape}; one outcome is (n, 1)"
        )
    try:
        values = values.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"Y must hold numbers, got {values.dtype}") from error
    wrong = ~((values == 0) | (values == 1) | np.isnan(values))
    if wrong.any():
        row, task = np.argwhere(wrong)[0]
        raise ValueError(f"Y must hold 0, 1 or NaN, row {row} of outcome {task} has {values[row, task]:g}")
    return values, names or [f"task{index}" for index in range(values.shape[1])]


def check_complete(columns: Mapping[str, np.ndarray]) -> None:
    """Refuses missing values."""
    for name, values in columns.items():
        missing = int(pd.isna(values).sum())
        if missing:
            raise ValueError(f"the column {name!r} has no value in {missing} of {len(values)} rows")


def last_of(time: np.ndarray, share: float) -> np.ndarray:
    """The last share of the rows by time; all rows of one time are on one side."""
    if not share:
        return np.zeros(len(time), dtype=bool)
    return time > np.sort(time)[min(int(len(time) * (1 - share)), len(time) - 1)]


def codes_of(values: np.ndarray, known: np.ndarray, name: str) -> np.ndarray:
    """Places of values among the known ones, from 2 up; 1 for a value that is not known."""
    try:
        place = np.searchsorted(known, values).clip(max=len(known) - 1)
    except TypeError as error:
        raise ValueError(f"the column {name!r} holds values of another type than those that were fitted") from error
    return np.where(known[place] == values, place + 2, UNKNOWN).astype(np.int64)
