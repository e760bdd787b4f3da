"""Tables with a target column: embedded sets, and a user's CSV or Parquet file, all as `TableData`.

from etude.data import tables
data = tables.breast_cancer()                        # offline, a second
data = tables.table("customers.csv", target="churned")
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from etude.data.kinds import Examples, TableData
from etude.data.splitting import cut, stratified_order

if TYPE_CHECKING:
    import pandas

__all__ = ["breast_cancer", "diabetes", "encode_features", "table", "wine"]

_MOST_CATEGORIES = 50
_MOST_CLASSES = 100


def breast_cancer() -> TableData:
    """569 tumours, 30 measurements, malignant or benign (UCI "Breast Cancer Wisconsin", bundled with scikit-learn).

    Split 60 / 20 / 20, stratified, always the same.
    """
    return _bundled("breast_cancer")


def wine() -> TableData:
    """178 wines, 13 measurements, 3 growers (UCI "Wine", bundled with scikit-learn); split as `breast_cancer`."""
    return _bundled("wine")


def diabetes() -> TableData:
    """442 patients, 10 measurements, a measure of progression (bundled with scikit-learn); split 60 / 20 / 20."""
    return _bundled("diabetes")


def _bundled(name: str) -> TableData:
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(f"tables.{name} needs scikit-learn: pip install 'etude[run]'") from error
    bunch = getattr(datasets, f"load_{name}")()
    classes = tuple(str(word) for word in bunch["target_names"]) if "target_names" in bunch else ()
    columns = tuple(str(word) for word in bunch["feature_names"])
    return _split(bunch["data"].astype(np.float32), bunch["target"], columns, classes, name)


def table(path: str | os.PathLike, target: str, *, task: str | None = None, name: str | None = None) -> TableData:
    """A user's table: one row an example, one column the target, the others features.

    Numbers and booleans stay one feature each; text becomes one feature for each of its values (at most 50). Missing
    numbers take the median over the training rows, and a further feature says where they were missing; missing text
    is a value of its own. Rows without a target are left out. Split 60 / 20 / 20, always the same, stratified if the
    target is a class.

    Args:
        path: a `.csv`, `.tsv` or `.parquet` file.
        target: name of the column to predict.
        task: "classification" or "regression"; if None, text, booleans and integers of few values are classes.
        name: what the data are called; the name of the file if None.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for an unknown column or ending, a target of one value, or a text column of too many values.
    """
    import pandas as pd

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no table at {path}; a .csv, .tsv or .parquet file is expected")
    readers: dict[str, Any] = {
        ".csv": pd.read_csv,
        ".tsv": lambda file: pd.read_csv(file, sep="\t"),
        ".parquet": pd.read_parquet,
    }
    if path.suffix.lower() not in readers:
        raise ValueError(f"a table must end in {', '.join(readers)}, got {path.name}")
    frame = readers[path.suffix.lower()](path)
    if target not in frame.columns:
        raise ValueError(f"{path.name} has no column {target!r}; it has {', '.join(map(str, frame.columns))}")
    frame = frame[frame[target].notna()].reset_index(drop=True)
    if len(frame) < 10:
        raise ValueError(f"{path.name} has {len(frame)} rows with a {target}; at least 10 are needed")
    labels, classes = _targets(frame.pop(target), task, path.name)
    rows = _parts(labels, bool(classes))
    columns, features = encode_features(frame, rows[0], path.name)
    return _split(features, labels, columns, classes, name or path.stem)


def _targets(column: "pandas.Series", task: str | None, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    import pandas as pd

    if task not in (None, "classification", "regression"):
        raise ValueError(f"task must be classification or regression, got {task!r}")
    numeric = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    whole = numeric and bool((column == column.round()).all())
    if task is None:
        few = column.nunique() <= min(20, max(2, len(column) // 10))
        task = "classification" if not numeric or (whole and few) else "regression"
    if task == "regression":
        if not numeric:
            raise ValueError(f"{where}: the target {column.name} is no number, got {column.iloc[0]!r}")
        if not bool(np.isfinite(column.to_numpy(dtype=float)).all()):
            raise ValueError(f"{where}: the target {column.name} holds infinite values")
        return column.to_numpy(dtype=np.float32), ()
    codes, values = pd.factorize(column, sort=True)
    if not 2 <= len(values) <= _MOST_CLASSES:
        raise ValueError(
            f"{where}: the target {column.name} has {len(values)} value(s); classes must be 2 to {_MOST_CLASSES}"
        )
    return codes.astype(np.int64), tuple(str(value) for value in values)


def encode_features(frame: "pandas.DataFrame", train: np.ndarray, where: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Names and float32 values (rows, features) of the columns of a frame, encoded as `table` says.

    Args:
        train: numbers of the training rows, whose medians and categories count.
        where: what the frame is called in errors.

    Raises:
        ValueError: for a text column of too many values, or a frame without a usable column.
    """
    import pandas as pd

    names: list[str] = []
    parts: list[np.ndarray] = []

    def add(name: str, values: np.ndarray) -> None:
        names.append(name)
        parts.append(values.astype(np.float32))

    for label in frame.columns:
        column = frame[label]
        if pd.api.types.is_bool_dtype(column) or pd.api.types.is_numeric_dtype(column):
            values = column.to_numpy(dtype=float, na_value=np.nan)
            missing = ~np.isfinite(values)
            if missing[train].all():
                continue
            add(str(label), np.where(missing, np.median(values[train][~missing[train]]), values))
            if missing.any():
                add(f"{label} missing", missing)
            continue
        text = column.astype("string").fillna("(missing)")
        found = sorted(text.iloc[train].unique())
        if len(found) > _MOST_CATEGORIES:
            raise ValueError(
                f"{where}: the column {label} has {len(found)} different values; leave it out, or make it numbers "
                f"or at most {_MOST_CATEGORIES} categories"
            )
        for value in found:
            add(f"{label} = {value}", (text == value).to_numpy())
    if not parts:
        raise ValueError(f"{where} has no feature beside its target")
    return tuple(names), np.stack(parts, axis=1)


def _parts(labels: np.ndarray, stratified: bool) -> list[np.ndarray]:
    n = len(labels)
    held = max(n // 5, 1)
    return cut(stratified_order(labels if stratified else np.zeros(n, dtype=np.int64)), n - 2 * held, held, held)


def _split(
    features: np.ndarray, labels: np.ndarray, columns: tuple[str, ...], classes: tuple[str, ...], name: str
) -> TableData:
    targets = labels.astype(np.int64 if classes else np.float32)
    train, val, test = (
        Examples(torch.from_numpy(np.ascontiguousarray(features[rows])), torch.from_numpy(targets[rows]))
        for rows in _parts(labels, bool(classes))
    )
    return TableData(train=train, val=val, test=test, columns=columns, classes=classes, name=name)
