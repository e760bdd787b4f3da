"""Streams cut by what the user knows: a column of a table, or everything at once; and accuracy per phase.

Phases by class are `etude.transfer.streams.class_incremental_splits`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["accuracy_row", "all_at_once", "epoch_factor", "phases_by_column", "rows_of_classes"]


def all_at_once(labels: Int[Tensor, "n"]) -> list[Tensor]:
    """One phase of all rows: the i.i.d. run that a stream is compared with.

    With as many epochs as each phase of the stream has, every example is visited as often in both.
    """
    if labels.ndim != 1 or not len(labels):
        raise ValueError(f"labels must have shape (n,) with n > 0, got {tuple(labels.shape)}")
    return [torch.arange(len(labels), device=labels.device)]


def epoch_factor(classes_in_phase: int) -> float:
    """Epochs of a phase in units of an epoch over two classes: the axis on which the paper draws its curves.

    An epoch over all classes of an i.i.d. run counts num_classes / 2, one over a phase of two classes counts 1.
    """
    if classes_in_phase < 1:
        raise ValueError(f"a phase has at least one class, got {classes_in_phase}")
    return classes_in_phase / 2


def phases_by_column(column: Any, order: Sequence[Any] | None = None) -> list[Tensor]:
    """Rows by the value of a column: a month, a site, a sensor.

        phases = phases_by_column(frame["month"])

    Args:
        column: (n,) values of any type that NumPy sorts, without gaps.
        order: of the phases; sorted values if None. A value that it leaves out is left out of the stream.

    Raises:
        ValueError: if the column is empty or has missing values, or `order` names a value that it does not hold.
    """
    values = np.asarray(column)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"column must have shape (n,) with n > 0, got {values.shape}")
    missing = sum(value is None or value != value for value in values.tolist())
    if missing:
        raise ValueError(f"column has no value in {missing} of {len(values)} rows")
    known = np.unique(values)
    wanted = known.tolist() if order is None else list(order)
    absent = [value for value in wanted if value not in set(known.tolist())]
    if absent or len(set(wanted)) < len(wanted):
        raise ValueError(f"order must name different values of the column, {known.tolist()}, got {wanted}")
    return [torch.from_numpy(np.flatnonzero(values == value)) for value in wanted]


def rows_of_classes(phases: Sequence[Tensor], labels: Int[Tensor, "n"], test_labels: Int[Tensor, "m"]) -> list[Tensor]:
    """Test rows of the classes of each phase of a stream.

    Args:
        phases: rows of `labels`; no class stands in two.
        labels: of the training rows.
        test_labels: whose rows are found.

    Raises:
        ValueError: if a class stands in two phases, or test rows have a class of none.
    """
    classes = [labels[rows].unique() for rows in phases]
    every = torch.cat(classes)
    if len(every.unique()) < len(every):
        raise ValueError("phases must not share classes: give the test rows of phases by column yourself")
    unseen = test_labels[~torch.isin(test_labels, every)].unique().tolist()
    if unseen:
        raise ValueError(f"test labels must be those of the phases, {every.tolist()}, got {unseen} besides")
    return [torch.nonzero(torch.isin(test_labels, members)).squeeze(1) for members in classes]


def accuracy_row(
    predicted: Int[Tensor, "m"], labels: Int[Tensor, "m"], groups: Sequence[Tensor]
) -> Float[Tensor, "groups"]:
    """Accuracy on each group of rows: a row of the matrix that `etude.transfer.streams` measures by.

    Raises:
        ValueError: if a group is empty.
    """
    if any(len(rows) == 0 for rows in groups):
        raise ValueError(f"every group must have rows, got {[len(rows) for rows in groups]}")
    right = (predicted == labels).double()
    return torch.stack([right[rows].mean() for rows in groups]).float()
