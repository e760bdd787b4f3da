"""Streams by column, at once, and accuracy per phase."""

import numpy as np
import pytest
import torch

from etude.transfer.discrete_kv_bottleneck import (
    accuracy_row,
    all_at_once,
    epoch_factor,
    phases_by_column,
    rows_of_classes,
)
from etude.transfer.streams import class_incremental_splits

LABELS = torch.tensor([3, 0, 1, 2, 0, 3, 1, 2, 2])


@pytest.mark.parametrize("split_size", [1, 2, 5, 10])
def test_iid_and_incremental_runs_visit_every_example_equally_often(split_size):
    labels = torch.arange(200) % 10
    phases = class_incremental_splits(labels, split_size, generator=torch.Generator().manual_seed(0))
    epochs = 3
    visits, iid = torch.zeros(200), torch.zeros(200)
    for rows in phases:
        visits[rows] += epochs
    for rows in all_at_once(labels):
        iid[rows] += epochs
    assert torch.equal(visits, iid)
    # On the paper's axis both end at the same place.
    assert sum(epochs * epoch_factor(split_size) for _ in phases) == epochs * epoch_factor(10)


def test_columns_part_a_table_in_the_order_of_their_values_or_in_a_given_one():
    column = np.array(["may", "june", "may", "april", "june"])
    assert [rows.tolist() for rows in phases_by_column(column)] == [[3], [1, 4], [0, 2]]
    assert [rows.tolist() for rows in phases_by_column(column, ["april", "may"])] == [[3], [0, 2]]
    assert [rows.tolist() for rows in phases_by_column([2.5, 1.0, 2.5])] == [[1], [0, 2]]


def test_test_rows_are_found_by_the_classes_of_the_phases():
    phases = class_incremental_splits(LABELS, 2)
    test = torch.tensor([2, 0, 3, 1, 1])
    assert [rows.tolist() for rows in rows_of_classes(phases, LABELS, test)] == [[1, 3, 4], [0, 2]]


def test_accuracy_is_taken_group_by_group():
    predicted, labels = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 1, 1])
    row = accuracy_row(predicted, labels, [torch.tensor([0]), torch.tensor([1, 2, 3])])
    assert row.tolist() == pytest.approx([1.0, 1 / 3])


def test_bad_input_is_refused():
    phases = class_incremental_splits(LABELS, 2)
    with pytest.raises(ValueError, match=r"test labels must be those of the phases, .*got \[7\] besides"):
        rows_of_classes(phases, LABELS, torch.tensor([0, 7]))
    with pytest.raises(ValueError, match="must not share classes"):
        rows_of_classes([torch.tensor([0]), torch.tensor([0, 1])], LABELS, torch.tensor([0]))
    with pytest.raises(ValueError, match=r"every group must have rows, got \[1, 0\]"):
        accuracy_row(LABELS, LABELS, [torch.tensor([0]), torch.tensor([], dtype=torch.int64)])
    with pytest.raises(ValueError, match="no value in 1 of 3 rows"):
        phases_by_column([1.0, float("nan"), 2.0])
    with pytest.raises(ValueError, match="no value in 1 of 2 rows"):
        phases_by_column(np.array(["a", None], dtype=object))
    with pytest.raises(ValueError, match=r"order must name different values.*got \['c'\]"):
        phases_by_column(["a", "b"], ["c"])
    with pytest.raises(ValueError, match=r"column must have shape \(n,\)"):
        phases_by_column(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="at least one class, got 0"):
        epoch_factor(0)
    with pytest.raises(ValueError, match="labels must have shape"):
        all_at_once(torch.zeros(0, dtype=torch.int64))
