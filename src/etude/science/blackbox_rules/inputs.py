"""What a user hands in: checked once at the door, with the offending value in the refusal."""

import os
from typing import Any

import numpy as np
from torch import Tensor

__all__ = ["as_labels", "as_matrix", "check_memory", "free_memory", "varying_columns"]


def as_matrix(X: Any, features: int | None = None, what: str = "X") -> tuple[np.ndarray, tuple[str, ...]]:
    """Rows of numbers and the names of the columns, from an array, a tensor or a data frame.

    Args:
        features: how many columns are expected; any number if None.
        what: the argument's name in errors.

    Returns:
        (n, d) float32 or float64, and d names: those of a data frame, else "x0", "x1", ...

    Raises:
        ValueError: if it is no matrix, holds text, NaN or infinite values, or another number of columns.
    """
    names: tuple[str, ...] | None = None
    if hasattr(X, "columns") and hasattr(X, "dtypes"):
        names = tuple(str(name) for name in X.columns)
        text = [str(name) for name, kind in zip(X.columns, X.dtypes) if getattr(kind, "kind", "O") not in "fiub"]
        if text:
            raise ValueError(
                f"{what} has columns that are no numbers: {_listed(text)}; encode them first, "
                "for example with pandas.get_dummies or etude.data.tables.table"
            )
    values = X.detach().cpu().numpy() if isinstance(X, Tensor) else np.asarray(X)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"{what} must have shape (rows, features), at least one of each, got {values.shape}")
    if values.dtype.kind not in "fiub":
        raise ValueError(f"{what} must hold numbers, got {values.dtype}; encode categories first")
    if values.dtype not in (np.float32, np.float64):
        values = values.astype(np.float64)
    if features is not None and values.shape[1] != features:
        raise ValueError(f"{what} must have {features} columns, as in fit, got {values.shape[1]}")
    names = names or tuple(f"x{j}" for j in range(values.shape[1]))
    bad = ~np.isfinite(values).all(axis=0)
    if bad.any():
        raise ValueError(
            f"{what} holds NaN or infinite values in {int(bad.sum())} columns: "
            f"{_listed([names[j] for j in np.flatnonzero(bad)])}; impute them first"
        )
    return values, names


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def as_labels(y: Any, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The sorted classes and the code of each label.

    Raises:
        ValueError: if there is not one label a row, one class only, or a class of fewer than two rows.
    """
    labels = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
    if labels.shape != (rows,):
        raise ValueError(f"y must have shape ({rows},), one label a row, got {labels.shape}")
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise ValueError("y holds NaN or infinite values")
    classes, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if len(classes) < 2:
        raise ValueError(f"y must hold at least two classes, got only {classes.tolist()}")
    if counts.min() < 2:
        raise ValueError(
            f"each class needs at least 2 rows, class {classes[counts.argmin()]!r} has {counts.min()} "
            f"({len(classes)} classes in {rows} rows; is the target a number rather than a class?)"
        )
    return classes, codes


def varying_columns(values: np.ndarray) -> np.ndarray:
    """Numbers of the columns that hold more than one value.

    Raises:
        ValueError: if none does.
    """
    kept = np.flatnonzero(values.max(axis=0) > values.min(axis=0))
    if not len(kept):
        raise ValueError(f"all {values.shape[1]} columns of X are constant: there is nothing to learn from")
    return kept


def free_memory() -> int | None:
    """Bytes of memory that are free here, where the system tells."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def check_memory(needed: int, what: str, instead: str, memory: int | None = None) -> None:
    """Refuses what does not fit.

    Args:
        needed: bytes. memory: bytes that there are; what is free if None.
        what: needs them. instead: what the caller may do.

    Raises:
        MemoryError: if more is needed than there is.
    """
    there = free_memory() if memory is None else memory
    if there is not None and needed > there:
        raise MemoryError(f"{what} needs about {needed / 1e9:.3g} GB, {there / 1e9:.3g} GB are there: {instead}")
