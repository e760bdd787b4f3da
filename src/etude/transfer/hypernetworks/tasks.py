"""Tasks of a stream from anybody's images or table: by class, by the values of a column, or with permuted pixels."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from etude.data.kinds import Examples, ImageData, TableData
from etude.transfer.streams import class_incremental_splits

__all__ = ["Task", "halved", "permuted_tasks", "tasks_by_class", "tasks_by_column"]


@dataclass(frozen=True, eq=False)
class Task:
    """A task: inputs flattened or not, and labels counted from 0 within the task.

    Args:
        name: what it is called.
        train, val, test: labels int64 in 0..len(classes) - 1.
        classes: names of the labels.

    Raises:
        ValueError: if training has a single class, or a label of another part is none of those in training.
    """

    name: str
    train: Examples
    val: Examples
    test: Examples
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        for part, split in (("train", self.train), ("val", self.val), ("test", self.test)):
            labels = split.targets
            if labels.ndim != 1 or labels.dtype != torch.int64:
                raise ValueError(f"{part} labels of task {self.name!r} must be int64 (n,), got {labels.dtype}")
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.classes):
                strange = labels[(labels < 0) | (labels >= len(self.classes))].unique().tolist()
                raise ValueError(
                    f"{part} labels of task {self.name!r} hold {strange[:5]}, its classes are {list(self.classes)}"
                )
        seen = self.train.targets.unique().tolist()
        if len(seen) < 2:
            raise ValueError(
                f"task {self.name!r} must have at least two classes in training, got "
                f"{[self.classes[label] for label in seen]}"
            )
        for part, split in (("val", self.val), ("test", self.test)):
            unseen = [self.classes[label] for label in split.targets.unique().tolist() if label not in seen]
            if unseen:
                raise ValueError(f"{part} rows of task {self.name!r} hold {unseen[:5]}, which its training rows do not")

    def to(self, device: torch.device | str) -> "Task":
        return replace(self, train=self.train.to(device), val=self.val.to(device), test=self.test.to(device))


def tasks_by_class(
    data: ImageData | TableData, split_size: int = 2, *, generator: torch.Generator | None = None
) -> list[Task]:
    """Tasks of `split_size` classes each; the order of the classes is drawn from `generator`, if there is one.

        tasks = tasks_by_class(user.load("photos/"), 2)

    Raises:
        ValueError: if `split_size` is less than 2, the target is a value, a task would have a single class, or
            validation or test have a class that training has not.
        TypeError: if the data are not in memory.
    """
    if split_size < 2:
        raise ValueError(f"split_size must be at least 2, a task tells classes apart; got {split_size}")
    _needs_classes(data)
    train, val, test = _splits(data)
    met = train.targets.unique()
    for part, split in (("val", val), ("test", test)):
        unseen = split.targets[~torch.isin(split.targets, met)].unique().tolist()
        if unseen:
            strange = [data.classes[label] for label in unseen[:5]]
            raise ValueError(f"{part} rows of {data.name} hold {strange}, which no training row does")
    tasks = []
    for rows in class_incremental_splits(train.targets, split_size, generator=generator):
        labels = train.targets[rows].unique()
        names = tuple(data.classes[label] for label in labels.tolist())
        parts = [train.subset(rows), *(each.subset(torch.isin(each.targets, labels)) for each in (val, test))]
        one, two, three = (Examples(each.inputs, torch.searchsorted(labels, each.targets)) for each in parts)
        tasks.append(Task(", ".join(names), one, two, three, names))
    return tasks


def tasks_by_column(data: TableData, column: str) -> list[Task]:
    """A task for each value of a column, in ascending order; the column is then no feature any more.

        tasks = tasks_by_column(user.load("plants.csv", target="failed"), "site")

    Args:
        data: unstandardised. A text column may stand as features `column = value`, as tables are read.
        column: its name.

    Raises:
        ValueError: if there is no such column, it has one value or more than 1,000, a value is not in training and
            test, a row has none, or a task's test rows have a class that its training rows have not.
    """
    _needs_classes(data)
    train, val, test = _splits(data)
    shown = [place for place, name in enumerate(data.columns) if name.startswith((f"{column} = ", f"{column}="))]
    if column in data.columns:
        place = data.columns.index(column)
        values = torch.cat([each.inputs[:, place] for each in (train, val, test)]).unique()
        members = [(f"{column} = {value:g}", lambda x, v=value: x[:, place] == v) for value in values.tolist()]
        dropped = [place]
    elif shown:
        members = [(data.columns[each], lambda x, each=each: x[:, each] > 0) for each in shown]
        dropped = shown
    else:
        raise ValueError(f"there is no column {column!r}; there are {', '.join(data.columns)}")
    kept = [each for each in range(data.num_features) if each not in dropped]
    if not 2 <= len(members) <= 1000 or not kept:
        raise ValueError(
            f"column {column!r} has {len(members)} values; tasks need 2 to 1,000 of them, and further columns"
        )
    for part, split in (("train", train), ("val", val), ("test", test)):
        outside = len(split) - sum(int(belongs(split.inputs).sum()) for _, belongs in members)
        if outside:
            raise ValueError(f"{outside} rows of {part} have none of the {len(members)} values of {column!r}")
    tasks = []
    for name, belongs in members:
        parts = [each.subset(belongs(each.inputs)) for each in (train, val, test)]
        if not len(parts[0]) or not len(parts[2]):
            raise ValueError(f"{name}: {len(parts[0])} training and {len(parts[2])} test rows are too few for a task")
        one, two, three = (Examples(each.inputs[:, kept], each.targets) for each in parts)
        tasks.append(Task(name, one, two, three, data.classes))
    return tasks


def halved(data: ImageData, smallest: int = 28) -> ImageData:
    """Images at half their size, by the mean of 2 x 2 pixels; those with a side below `smallest` as they are."""
    parts = []
    for split in _splits(data):
        large = min(split.inputs.shape[-2:]) >= smallest
        parts.append(Examples(F.avg_pool2d(split.inputs, 2), split.targets) if large else split)
    return replace(data, train=parts[0], val=parts[1], test=parts[2])


def permuted_tasks(data: ImageData, tasks: int = 10, *, generator: torch.Generator | None = None) -> list[Task]:
    """The same images with another order of the pixels in each task; the first keeps theirs. Inputs are flattened.

    Raises:
        ValueError: if `tasks` is not positive. TypeError: if the images are not in memory.
    """
    if tasks < 1:
        raise ValueError(f"tasks must be positive, got {tasks}")
    flat = [Examples(each.inputs.flatten(1), each.targets) for each in _splits(data)]
    width = flat[0].inputs.shape[1]
    made = []
    for number in range(tasks):
        order = torch.randperm(width, generator=generator) if number else torch.arange(width)
        one, two, three = (Examples(each.inputs[:, order], each.targets) for each in flat)
        made.append(Task(f"permutation {number}", one, two, three, data.classes))
    return made


def _needs_classes(data: ImageData | TableData) -> None:
    if not data.classes:
        raise ValueError(f"the target of {data.name} is a value; tasks need classes")


def _splits(data: ImageData | TableData) -> list[Examples]:
    splits = [data.train, data.val, data.test]
    for name, split in zip(("train", "val", "test"), splits):
        if not isinstance(split, Examples):
            raise TypeError(f"{name} must be Examples in memory, got {type(split).__name__}")
    return splits  # type: ignore[return-value]
