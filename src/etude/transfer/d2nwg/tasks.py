"""Classification tasks over labelled rows: which classes, in which order, and which rows of each."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

__all__ = ["TaskSampler", "as_support"]


class TaskSampler:
    """Draws k-way tasks in batches: classes at random, or classes that share a value of a column.

        sampler = TaskSampler(labels, ways=2)
        tasks = sampler.draw(4000, generator)           # (4000, 2): the class of each output unit
        rows = sampler.rows(tasks, 5, generator)        # (4000, 2, 5): five rows of each class

    With a `column`, a class is a pair (value of the column, label), and the classes of a task come from one value:
    the tasks of a hospital, of a customer, of an alphabet.

    Args:
        labels: class of each row, any whole numbers or strings.
        ways: classes of a task, at least 2.
        column: value of a column for each row, which parts the tasks; None if any classes may meet.
        only: the labels (with a column: its values) from which tasks are made; all if None.

    Attributes:
        classes: what each class number stands for: labels, or pairs (value, label).
        counts: rows of each class. all_rows: the numbers of all rows that stand in a class.

    Raises:
        ValueError: if a task would have one class, a value of the column has fewer classes than `ways`, `only` names
            what is not there, or the lengths differ.
    """

    def __init__(self, labels: Any, ways: int = 2, *, column: Any = None, only: Sequence[Any] | None = None):
        if ways < 2:
            raise ValueError(f"a task needs two classes or more, got ways={ways}")
        labels = _array(labels, "labels")
        values = np.zeros(len(labels), dtype=np.int64) if column is None else _array(column, "column")
        if len(values) != len(labels):
            raise ValueError(f"column must have one value per row, {len(labels)}, got {len(values)}")
        parted = labels if column is None else values
        kept = np.ones(len(labels), dtype=bool)
        if only is not None:
            unknown = [name for name in only if name not in set(parted.tolist())]
            if unknown:
                raise ValueError(
                    f"there are no rows of {unknown[:3]} among the {'labels' if column is None else 'values'}"
                )
            kept = np.isin(parted, np.asarray(list(only)))
        group_names, groups = np.unique(values, return_inverse=True)
        label_names, inner = np.unique(labels, return_inverse=True)
        pairs = groups * len(label_names) + inner
        found, first, numbers = np.unique(pairs[kept], return_index=True, return_inverse=True)
        self.ways = ways
        self.classes: list[Any] = [
            label_names[pair % len(label_names)].item() if column is None
            else (group_names[pair // len(label_names)].item(), label_names[pair % len(label_names)].item())
            for pair in found
        ]  # fmt: skip
        home = groups[kept][first]
        used, homes, sizes = np.unique(home, return_inverse=True, return_counts=True)
        for group, size in zip(used, sizes):
            if size < ways:
                where = "the rows have" if column is None else f"the task {group_names[group].item()!r} has"
                what = "one class" if size == 1 else f"{size} classes"
                raise ValueError(f"{where} {what}; {ways} are needed")
        self.all_rows = torch.from_numpy(np.nonzero(kept)[0])
        self._members, self._filled, self.counts = _table(self.all_rows, numbers, len(found))
        self._pools, self._pool_filled, _ = _table(torch.arange(len(found)), homes, len(used))

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def draw(self, n: int, generator: torch.Generator) -> Int64[Tensor, "n ways"]:
        """`n` tasks, as the class number of each output unit; classes differ and their order is random."""
        if n < 1:
            raise ValueError(f"draw at least one task, got n={n}")
        pools = torch.randint(len(self._pools), (n,), generator=generator)
        scores = torch.rand((n, self._pools.shape[1]), generator=generator)
        scores.masked_fill_(~self._pool_filled[pools], -1.0)
        return self._pools[pools].gather(1, scores.topk(self.ways, dim=1).indices)

    def rows(
        self, tasks: Int64[Tensor, "n ways"], shots: int, generator: torch.Generator
    ) -> Int64[Tensor, "n ways shots"]:
        """Different rows of each class of each task.

        Raises:
            ValueError: if a class has fewer than `shots` rows, or a task names a class that is not there.
        """
        if shots < 1:
            raise ValueError(f"draw at least one row of each class, got shots={shots}")
        if len(tasks) and not 0 <= int(tasks.min()) <= int(tasks.max()) < self.num_classes:
            raise ValueError(
                f"tasks must name classes 0..{self.num_classes - 1}, got {int(tasks.min())}..{int(tasks.max())}"
            )
        if len(tasks) and int(self.counts[tasks].min()) < shots:
            poor = int(tasks.flatten()[self.counts[tasks].flatten().argmin()])
            raise ValueError(f"class {self.classes[poor]!r} has {int(self.counts[poor])} rows, {shots} are needed")
        scores = torch.rand((*tasks.shape, self._members.shape[1]), generator=generator)
        scores.masked_fill_(~self._filled[tasks], -1.0)
        return self._members[tasks].gather(2, scores.topk(shots, dim=2).indices)


def as_support(
    x: Float[Tensor, "n *features"], labels: Int64[Tensor, "n"], ways: int
) -> tuple[Float[Tensor, "ways shots *features"], Bool[Tensor, "ways shots"]]:
    """Labelled rows parted by class, and which places hold one: classes may have unequal numbers.

    Raises:
        ValueError: if a class of 0..ways-1 has no row, or a label lies outside.
    """
    if len(x) != len(labels) or len(x) == 0:
        raise ValueError(f"expected one label per row, and rows, got {len(x)} rows and {len(labels)} labels")
    if not 0 <= int(labels.min()) <= int(labels.max()) < ways:
        raise ValueError(f"labels must lie in 0..{ways - 1}, got {int(labels.min())}..{int(labels.max())}")
    members, filled, counts = _table(torch.arange(len(x)), labels.cpu().numpy(), ways)
    if int(counts.min()) == 0:
        raise ValueError(f"the support has no row of class {int(counts.argmin())}; each of {ways} classes needs one")
    return x[members.to(x.device)], filled.to(x.device)


def _array(values: Any, name: str) -> np.ndarray:
    array = values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(f"{name} must have shape (n,) with n > 0, got {array.shape}")
    if array.dtype.kind == "f":
        raise ValueError(f"{name} must be whole numbers or strings, got {array.dtype}")
    return array.astype(str) if array.dtype.kind == "O" else array


def _table(items: Tensor, groups: np.ndarray, num_groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Items by group, (groups, most), the places that are filled, and how many they are; empty places hold 0."""
    group = torch.from_numpy(np.asarray(groups, dtype=np.int64).reshape(-1))
    counts = torch.bincount(group, minlength=num_groups)
    order = group.argsort(stable=True)
    starts = counts.cumsum(0) - counts
    place = torch.arange(len(group)) - starts[group[order]]
    table = torch.zeros((num_groups, int(counts.max())), dtype=torch.int64)
    table[group[order], place] = items[order]
    filled = torch.arange(table.shape[1]) < counts[:, None]
    return table, filled, counts
