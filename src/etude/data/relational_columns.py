"""The columns of relational data: few types, the same whatever they were read from, and times in whole seconds UTC."""

import datetime
import decimal
import json
import re
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas

__all__ = ["canonical_frame", "parse_time_column", "seconds_of", "to_seconds"]

_ZONE = re.compile(r"(?:[Zz]|[+-]\d{2}:?(?:\d{2})?)$")
_UNIT = "datetime64[us]"


def canonical_frame(rows: Any, table: str) -> "pandas.DataFrame":
    """A pandas frame or Arrow table with columns of boolean, Int64, float64, string, datetime64[us] (UTC) or lists.

    Raises:
        TypeError: if it is neither.
        ValueError: for repeated or unnamed columns, infinite numbers, or a column of mixed types.
    """
    import pandas as pd

    if not isinstance(rows, pd.DataFrame):
        if not hasattr(rows, "to_pandas"):
            raise TypeError(f"{table} must be a pandas DataFrame or an Arrow table, got {type(rows).__name__}")
        rows = rows.to_pandas()
    names = [str(column) for column in rows.columns]
    if len(set(names)) < len(names):
        raise ValueError(f"{table} has repeated columns: {names}")
    columns = {
        name: _canonical(rows.iloc[:, i].reset_index(drop=True), f"{table}.{name}") for i, name in enumerate(names)
    }
    return pd.DataFrame(columns, index=pd.RangeIndex(len(rows)))


def _canonical(values: "pandas.Series", where: str) -> "pandas.Series":
    from pandas.api import types

    dtype = values.dtype
    if types.is_bool_dtype(dtype):
        return values.astype("boolean")
    if types.is_integer_dtype(dtype):
        return values.astype("Int64")
    if types.is_float_dtype(dtype):
        numbers = values.astype("Float64").to_numpy(dtype=np.float64, na_value=np.nan)
        if np.isinf(numbers).any():
            raise ValueError(f"{where} holds infinite values, {int(np.isinf(numbers).sum())} of them")
        return _series(numbers, values)
    if types.is_datetime64_any_dtype(dtype):
        return _utc(values)
    if types.is_timedelta64_dtype(dtype):
        return values.dt.total_seconds()
    if isinstance(dtype, _string_dtype()):
        return values.astype("string")
    return _from_objects(values.astype(object), where)


def _string_dtype() -> type:
    import pandas as pd

    return pd.StringDtype


def _series(values: np.ndarray, like: "pandas.Series") -> "pandas.Series":
    import pandas as pd

    return pd.Series(values, index=like.index, name=like.name)


def _utc(values: "pandas.Series") -> "pandas.Series":
    if getattr(values.dtype, "tz", None) is not None:
        values = values.dt.tz_convert("UTC").dt.tz_localize(None)
    return values.astype(_UNIT)


_NUMBERS = (int, float, decimal.Decimal, np.integer, np.floating)


def _from_objects(values: "pandas.Series", where: str) -> "pandas.Series":
    import pandas as pd

    lists = values.map(lambda value: isinstance(value, list | tuple | np.ndarray | set | frozenset)).astype(bool)
    absent = values.isna() & ~lists
    present = values[~absent]
    kinds = {_kind(type(value)) for value in present}
    if len(kinds) > 1:
        examples = {_kind(type(value)): value for value in reversed(list(present))}
        raise ValueError(f"{where} mixes types: " + ", ".join(f"{kind} ({examples[kind]!r})" for kind in sorted(kinds)))
    kind = next(iter(kinds), "text")
    if kind == "boolean":
        return values.where(~absent, None).astype("boolean")
    if kind == "number":
        numbers = values.where(~absent, np.nan).astype(np.float64)
        if all(isinstance(value, int | np.integer) for value in present):
            return values.where(~absent, None).astype("Int64")
        return _canonical(numbers, where)
    if kind == "time":
        zoned = {getattr(value, "tzinfo", None) is not None for value in present}
        if len(zoned) > 1:
            raise ValueError(f"{where} mixes times with and without a time zone, such as {present.iloc[0]!r}")
        return _utc(pd.to_datetime(values.where(~absent, None), utc=zoned == {True}))
    if kind == "list":
        return values.map(lambda value: list(value) if isinstance(value, list | tuple | np.ndarray) else value).map(
            lambda value: sorted(value) if isinstance(value, set | frozenset) else value
        )
    if kind == "object":
        return values.map(lambda value: json.dumps(value, sort_keys=True), na_action="ignore").astype("string")
    if kind == "bytes":
        return values
    return values.where(~absent, None).map(str, na_action="ignore").astype("string")


def _kind(given: type) -> str:
    if issubclass(given, bool | np.bool_):
        return "boolean"
    if issubclass(given, _NUMBERS):
        return "number"
    if issubclass(given, datetime.date | np.datetime64):
        return "time"
    if issubclass(given, list | tuple | np.ndarray | set | frozenset):
        return "list"
    if issubclass(given, dict):
        return "object"
    if issubclass(given, bytes | bytearray | memoryview):
        return "bytes"
    if issubclass(given, str | uuid.UUID | datetime.time):
        return "text"
    return given.__name__


def parse_time_column(values: "pandas.Series", where: str) -> "pandas.Series":
    """A column of times as datetime64[us] in UTC; ISO 8601 text is read, anything else is refused.

    Raises:
        TypeError: for numbers.
        ValueError: for text that is no ISO date, or if some values have a time zone and others none or another.
    """
    import pandas as pd

    where = f"the time column {where}.{values.name}"
    if pd.api.types.is_datetime64_any_dtype(values.dtype):
        return _utc(values)
    if not isinstance(values.dtype, pd.StringDtype):
        raise TypeError(f"{where} must hold times, got {values.dtype}, such as {values.iloc[:1].tolist()}; convert it")
    text = values.dropna().str.strip()
    zones = text.str.extract(f"({_ZONE.pattern})", expand=False).where(text.str.len() > 10)
    zones = zones.replace({"z": "+00:00", "Z": "+00:00"}).fillna("none")
    found = sorted(zones.unique())
    if len(found) > 1:
        examples = [text[zones == zone].iloc[0] for zone in found[:2]]
        raise ValueError(f"{where} mixes time zones ({', '.join(found)}), such as {examples}; convert them to UTC")
    parsed = pd.to_datetime(text, format="ISO8601", utc=True, errors="coerce")
    if parsed.isna().any():
        first = text[parsed.isna()].iloc[0]
        raise ValueError(f"{where} holds {first!r}, which is no ISO 8601 date ({int(parsed.isna().sum())} such values)")
    return _utc(parsed).reindex(values.index)


def seconds_of(values: "pandas.Series", *, missing: int, up: bool = False) -> np.ndarray:
    """Datetimes as int64 seconds since 1970 UTC, rounded down, or up; `missing` where there is none."""
    micro = values.to_numpy(dtype=_UNIT).astype(np.int64)
    seconds = -((-micro) // 1_000_000) if up else micro // 1_000_000
    return np.where(values.isna().to_numpy(), missing, seconds)


def to_seconds(time: Any) -> int:
    """One time (text, datetime, or seconds as an int) as whole seconds since 1970 UTC, rounded down.

    Raises:
        ValueError: if it is no time.
    """
    import pandas as pd

    if isinstance(time, int | np.integer) and not isinstance(time, bool):
        return int(time)
    try:
        stamp = pd.Timestamp(time)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{time!r} is no time: {error}") from None
    if stamp is pd.NaT:
        raise ValueError(f"{time!r} is no time")
    if stamp.tzinfo is not None:
        stamp = stamp.tz_convert("UTC").tz_localize(None)
    return int(stamp.to_datetime64().astype(_UNIT).astype(np.int64) // 1_000_000)
