"""Semantic types of columns, and columns as arrays.

What a column means, not how it is stored, decides how it is encoded: as a number, a category, a set of categories, a
time, a text or a ready vector (Fey et al., arXiv:2312.04615, section 3.2; the types are those of PyTorch Frame).

The arrays here hold the values as they are. Statistics (means, category tables, ...) belong to an encoder, which takes
them from the past only; see `etude.graphs.relational.encoders`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, Float64, Int64

from etude.data.kinds_relational import RelationalDatabase, RelationalTable

if TYPE_CHECKING:
    import pandas

__all__ = ["STYPES", "Column", "column_of", "hashed_ngrams", "propose_stypes"]

STYPES = ("numerical", "categorical", "multicategorical", "timestamp", "text", "embedding")
TEXT_DIM = 64
NO_TIME = np.iinfo(np.int64).min
"""Stands for a missing value in a timestamp column."""

_FEW_CATEGORIES = 20
_SHARE_OF_ROWS = 0.05


def propose_stypes(db: RelationalDatabase, upto: int | None = None) -> dict[str, dict[str, str]]:
    """A semantic type for every feature column; keys and the time columns are no features.

    Booleans, and text of at most max(20, 5 % of the rows) distinct values, are categorical; other text is text; numbers
    are numerical and dates are timestamps however few values they have; lists of text are multicategorical and lists of
    numbers embeddings. Columns without a value, and binary ones, are left out.

    Args:
        db: the database.
        upto: seconds UTC; only rows known by then are looked at. All rows if None.
    """
    found: dict[str, dict[str, str]] = {}
    for name, table in db.tables.items():
        rows = len(table) if upto is None or table.times is None else int(np.searchsorted(table.times, upto, "right"))
        found[name] = {}
        for column in table.feature_columns:
            stype = _propose(table.frame[column].iloc[:rows])
            if stype is not None:
                found[name][column] = stype
    return found


def _propose(values: "pandas.Series") -> str | None:
    from pandas.api import types

    known = values.dropna()
    if not len(known):
        return None
    if types.is_bool_dtype(values.dtype):
        return "categorical"
    if types.is_numeric_dtype(values.dtype):
        return "numerical"
    if types.is_datetime64_any_dtype(values.dtype):
        return "timestamp"
    if values.dtype == object:
        first = known.iloc[0]
        if not isinstance(first, list):
            return None
        filled = next((item for item in known if len(item)), [""])
        return "multicategorical" if isinstance(filled[0], str) else "embedding"
    return "categorical" if known.nunique() <= max(_FEW_CATEGORIES, _SHARE_OF_ROWS * len(values)) else "text"


@dataclass(frozen=True, eq=False)
class Column:
    """The values of one feature column, one entry a row of the table.

    Attributes:
        name, stype: which column, and what it means.
        values: float64 (rows,) with NaN for numerical, int64 (rows,) seconds UTC or `NO_TIME` for a timestamp, int64
            (rows,) positions in `vocabulary` or -1 for categorical and text, float32 (rows, d) for an embedding, and
            int64 (entries,) positions for multicategorical.
        vocabulary: the distinct values, sorted; empty unless categorical, multicategorical or text.
        offsets: int64 (rows + 1,), where each row's entries begin; multicategorical only.
        vectors: float32 (vocabulary, 64), hashed n-grams; text only.
    """

    name: str
    stype: str
    values: np.ndarray
    vocabulary: tuple[str, ...] = ()
    offsets: Int64[np.ndarray, "rows_plus_one"] | None = None
    vectors: Float32[np.ndarray, "words dim"] | None = None

    def head(self, rows: int) -> "Column":
        """The column of the first `rows` rows."""
        if self.offsets is None:
            return replace(self, values=self.values[:rows])
        return replace(self, values=self.values[: self.offsets[rows]], offsets=self.offsets[: rows + 1])


def column_of(table: RelationalTable, name: str, stype: str) -> Column:
    """A table's column as an array.

    Raises:
        ValueError: for an unknown column or type, a key, or values that do not fit the type.
    """
    where = f"{table.name}.{name}"
    if name not in table.frame.columns:
        raise ValueError(f"{table.name} has no column {name!r}; it has {', '.join(table.frame.columns)}")
    if stype not in STYPES:
        raise ValueError(f"the type of {where} must be one of {', '.join(STYPES)}, got {stype!r}")
    if name in table.key_columns:
        raise ValueError(f"{where} is a key: it links rows and is no feature")
    values = table.frame[name]
    numeric = values.dtype.kind in "fiub" if values.dtype != object else False
    if stype == "numerical":
        if not numeric:
            raise ValueError(f"{where} cannot be numerical: its type is {values.dtype}")
        return Column(name, stype, _numbers(values))
    if stype == "timestamp":
        if values.dtype.kind != "M":
            raise ValueError(f"{where} cannot be a timestamp: its type is {values.dtype}, not a time")
        return Column(name, stype, _seconds(values))
    if stype in ("categorical", "text"):
        codes, words = _factorized(values)
        vectors = hashed_ngrams(words) if stype == "text" else None
        return Column(name, stype, codes, words, vectors=vectors)
    lists = values.map(lambda value: value if isinstance(value, list) else [])
    lengths = lists.map(len).to_numpy(dtype=np.int64)
    flat = [item for row in lists for item in row]
    if stype == "multicategorical":
        if values.dtype != object:
            raise ValueError(f"{where} cannot be multicategorical: it holds {values.dtype}, not lists")
        distinct, codes = np.unique(np.asarray([str(item) for item in flat], dtype=str), return_inverse=True)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return Column(name, stype, codes.astype(np.int64), tuple(map(str, distinct)), offsets=offsets)
    sizes = sorted(set(lengths[lengths > 0].tolist()))
    if len(sizes) != 1:
        raise ValueError(f"{where} cannot be an embedding: its lists have the lengths {sizes[:5]}, not one length")
    vectors = np.zeros((len(values), sizes[0]), dtype=np.float32)
    vectors[lengths > 0] = np.asarray(flat, dtype=np.float32).reshape(-1, sizes[0])
    return Column(name, stype, vectors)


def _numbers(values: "pandas.Series") -> Float64[np.ndarray, "rows"]:
    return values.astype("Float64").to_numpy(dtype=np.float64, na_value=np.nan)


def _seconds(values: "pandas.Series") -> Int64[np.ndarray, "rows"]:
    seconds = values.to_numpy(dtype="datetime64[s]").astype(np.int64)
    return np.where(values.isna().to_numpy(), NO_TIME, seconds)


def _factorized(values: "pandas.Series") -> tuple[Int64[np.ndarray, "rows"], tuple[str, ...]]:
    import pandas as pd

    codes, words = pd.factorize(values.map(_word, na_action="ignore").astype("string"), sort=True)
    return codes.astype(np.int64), tuple(map(str, words))


def _word(value: Any) -> str:
    """A category's name: 3 and 3.0 are one category, whichever type a source gave it."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def hashed_ngrams(words: tuple[str, ...] | list[str]) -> Float32[np.ndarray, "words dim"]:
    """Signed hashes of the character 3-grams of each text, (texts, 64), of length 1: the default vectors of text.

    They need no model and no vocabulary, so that nothing of the future can enter them.
    """
    if not words:
        return np.zeros((0, TEXT_DIM), dtype=np.float32)
    try:
        from sklearn.feature_extraction.text import HashingVectorizer
    except ImportError as error:
        raise ImportError('text columns are hashed by scikit-learn: pip install "etude[run]"') from error
    hashing = HashingVectorizer(analyzer="char_wb", ngram_range=(3, 3), n_features=TEXT_DIM, dtype=np.float32)
    return hashing.transform(list(words)).toarray()


def checked_stypes(
    db: RelationalDatabase, stypes: Mapping[str, Mapping[str, str]] | None, upto: int | None
) -> dict[str, dict[str, str]]:
    """The given types, or the proposal for tables that are not named.

    Raises:
        ValueError: for an unknown table.
    """
    given = stypes or {}
    unknown = sorted(set(given) - set(db.tables))
    if unknown:
        raise ValueError(f"stypes names the tables {unknown}; there are {', '.join(db.tables)}")
    return {table: dict(given.get(table, proposed)) for table, proposed in propose_stypes(db, upto).items()}
