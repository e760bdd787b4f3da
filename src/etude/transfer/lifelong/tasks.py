"""Tasks of a stream: from a generator, from images by permuting their pixels, or from anybody's data."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from etude.data.kinds import Examples, ImageData, TableData
from etude.data.kinds_characters import Characters
from etude.transfer.streams import class_incremental_splits

__all__ = [
    "ExemplarMemory",
    "State",
    "Task",
    "permuted_tasks",
    "shared_latent_tasks",
    "tasks_by_alphabet",
    "tasks_by_class",
    "tasks_by_column",
]


@dataclass(frozen=True, eq=False)
class Task:
    """A task of a stream.

    Args:
        id: a string or a whole number.
        train, val, test: examples with any whole numbers as labels; `val` may be None.

    Raises:
        ValueError: if the training labels are of a single class, or `val` or `test` have one that training has not.
    """

    id: Hashable
    train: Examples
    test: Examples
    val: Examples | None = None

    def __post_init__(self) -> None:
        classes = self.classes
        if len(classes) < 2:
            raise ValueError(f"task {self.id!r} must have at least two classes, its training labels are all {classes}")
        for name, part in (("val", self.val), ("test", self.test)):
            if part is not None:
                local_labels(part.targets, classes, f"{name} labels of task {self.id!r}")

    @property
    def classes(self) -> list[int]:
        """The labels of training, ascending."""
        return self.train.targets.unique().tolist()


def local_labels(labels: Tensor, classes: Sequence[int], where: str) -> Tensor:
    """Position of each label among `classes` (ascending).

    Raises:
        ValueError: if a label is not among them, or labels are no whole numbers of shape (n,).
    """
    if labels.ndim != 1 or labels.dtype != torch.int64:
        raise ValueError(f"{where} must be int64 of shape (n,), got {labels.dtype} of shape {tuple(labels.shape)}")
    known = torch.tensor(list(classes), device=labels.device)
    place = torch.searchsorted(known, labels).clamp(max=len(known) - 1)
    strange = labels[known[place] != labels].unique().tolist()
    if strange:
        raise ValueError(f"{where} hold {strange[:5]}, which training does not; its classes are {list(classes)}")
    return place


class ExemplarMemory:
    """A fixed number of training examples of every class, drawn when its task is learned.

    Args:
        per_class: how many at most; 0 stores nothing.

    Raises:
        ValueError: if `per_class` is negative.
    """

    def __init__(self, per_class: int = 10):
        if per_class < 0:
            raise ValueError(f"per_class must not be negative, got {per_class}")
        self.per_class = per_class
        self._stored: dict[Hashable, tuple[Tensor, Tensor]] = {}

    def add(
        self, task: Hashable, inputs: Tensor, labels: Int64[Tensor, "n"], generator: torch.Generator | None = None
    ) -> None:
        """Stores examples of a task; `labels` count its classes from 0."""
        order = torch.randperm(len(labels), generator=generator).to(labels.device)
        shuffled = labels[order]
        rank = torch.zeros_like(shuffled)
        for label in shuffled.unique():
            rank[shuffled == label] = torch.arange(int((shuffled == label).sum()), device=labels.device)
        kept = order[rank < self.per_class]
        self._stored[task] = (inputs[kept].clone(), labels[kept].clone())

    def __contains__(self, task: Hashable) -> bool:
        return task in self._stored and len(self._stored[task][1]) > 0

    def __len__(self) -> int:
        return sum(len(labels) for _, labels in self._stored.values())

    def __getitem__(self, task: Hashable) -> tuple[Tensor, Tensor]:
        if task not in self:
            raise ValueError(f"no examples of task {task!r} are stored; there are those of {list(self._stored)}")
        return self._stored[task]


@dataclass
class State:
    """What policies remember of the stream, by task number.

    Attributes:
        last_used: number of the task that was at hand when a task was last learned or used.
        sleepless: tasks whose consolidation was skipped.
    """

    last_used: dict[int, int] = field(default_factory=dict)
    sleepless: set[int] = field(default_factory=set)


def permuted_tasks(data: ImageData, tasks: int = 5, *, generator: torch.Generator | None = None) -> list[Task]:
    """The same images with another order of the pixels in every task; the first task keeps theirs.

    Raises:
        ValueError: if `tasks` is not positive. TypeError: if the images are not in memory.
    """
    if tasks < 1:
        raise ValueError(f"tasks must be positive, got {tasks}")
    train, val, test = (_flat(getattr(data, name), name) for name in ("train", "val", "test"))
    width = train.inputs.shape[1]
    orders = [
        torch.arange(width) if number == 0 else torch.randperm(width, generator=generator) for number in range(tasks)
    ]
    return [
        Task(number, *(Examples(part.inputs[:, order], part.targets) for part in (train, test, val)))
        for number, order in enumerate(orders, start=1)
    ]


def tasks_by_class(
    data: ImageData | TableData, split_size: int = 2, *, generator: torch.Generator | None = None
) -> list[Task]:
    """Tasks of `split_size` classes each, in an order drawn from `generator`.

        from etude.data import user
        tasks = tasks_by_class(user.load("photos/"), 2)

    Raises:
        ValueError: if `split_size` is less than 2, or a task would be left with a single class.
    """
    if isinstance(data, TableData) and not data.classes:
        raise ValueError(f"{data.name} predicts a value; tasks by class need classes")
    if split_size < 2:
        raise ValueError(f"split_size must be at least 2, a task tells classes apart; got {split_size}")
    train, val, test = (_in_memory(getattr(data, name), name) for name in ("train", "val", "test"))
    tasks = []
    for rows in class_incremental_splits(train.targets, split_size, generator=generator):
        part = train.subset(rows)
        classes = part.targets.unique()
        names = ", ".join(data.classes[label] for label in classes.tolist())
        if len(classes) < 2:
            raise ValueError(
                f"a task would hold the class {names} alone: split_size {split_size} does not divide the classes"
            )
        rest = [split.subset(torch.isin(split.targets, classes)) for split in (test, val)]
        tasks.append(Task(names, part, *rest))
    return tasks


def tasks_by_column(data: TableData, column: str) -> list[Task]:
    """A task for each value of a column, which is then no feature any more.

    The values are taken in ascending order; those of a text column in that of its features "column = value".

        from etude.data import user
        tasks = tasks_by_column(user.load("plants.csv", target="failed"), "site")

    Raises:
        ValueError: if there is no such column, the target is no class, or a value has too few rows for a task.
    """
    if not data.classes:
        raise ValueError(f"{data.name} predicts a value; a task here tells classes apart")
    coded = [index for index, name in enumerate(data.columns) if name.startswith(f"{column} = ")]
    if column in data.columns:
        index = data.columns.index(column)
        values = torch.cat([part.inputs[:, index] for part in (data.train, data.val, data.test)]).unique().tolist()
        named = {f"{column} = {value:g}": (lambda x, value=value: x[:, index] == value) for value in values}
        drop = {index, *(i for i, name in enumerate(data.columns) if name == f"{column} missing")}
    elif coded:
        named = {data.columns[index]: (lambda x, index=index: x[:, index] > 0.5) for index in coded}
        drop = set(coded)
    else:
        raise ValueError(f"{data.name} has no column {column!r}; it has {', '.join(data.columns)}")
    keep = torch.tensor([index for index in range(len(data.columns)) if index not in drop], dtype=torch.int64)
    if not 2 <= len(named) <= 1000 or not len(keep):
        raise ValueError(f"the column {column!r} has {len(named)} values; tasks need 2 to 1000, and further columns")
    tasks = []
    for name, belongs in named.items():
        parts = [part.subset(belongs(part.inputs)) for part in (data.train, data.test, data.val)]
        if not len(parts[0]) or not len(parts[1]):
            raise ValueError(f"{name}: {len(parts[0])} training and {len(parts[1])} test rows are too few for a task")
        tasks.append(Task(name, *(Examples(part.inputs[:, keep], part.targets) for part in parts)))
    return tasks


def tasks_by_alphabet(
    data: Characters, train: int = 5, val: int = 2, *, generator: torch.Generator | None = None
) -> list[Task]:
    """A task for each alphabet, to tell its characters apart; other people draw in training, validation and test.

    Args:
        data: drawings.
        train, val: people who draw in these parts; the others draw in the test.
        generator: of the order of the alphabets and of the people; without one, the order of their numbers.

    Raises:
        ValueError: if that leaves nobody for the test.
    """
    drawers = data.drawers.unique()
    if train < 1 or val < 0 or train + val >= len(drawers):
        raise ValueError(f"train and val must leave some of {len(drawers)} drawers to the test, got {train}, {val}")
    number = len(data.alphabet_names)
    order, people = torch.arange(number), torch.arange(len(drawers))
    if generator is not None:
        order, people = (torch.randperm(len(items), generator=generator) for items in (order, people))
    tasks = []
    for alphabet in order.tolist():
        mine = data.alphabets[data.characters] == alphabet
        rows = [mine & torch.isin(data.drawers, part) for part in drawers[people].tensor_split([train, train + val])]
        parts = [Examples(data.images[chosen], data.characters[chosen]) for chosen in rows]
        tasks.append(Task(data.alphabet_names[alphabet], parts[0], parts[2], parts[1] if val else None))
    return tasks


def shared_latent_tasks(
    tasks: int = 9,
    sizes: Sequence[int] | int = 2000,
    *,
    features: int = 100,
    latent: int = 4,
    val: int = 1000,
    test: int = 2000,
    generator: torch.Generator | None = None,
) -> list[Task]:
    """x ~ N(0, I); the label of each task is the sign of a random direction in one subspace common to all.

    What a task can learn from the others is the subspace.

    Args:
        tasks: how many.
        sizes: training examples of each task, or one number for all.
        features: length of x.
        latent: dimensions of the common subspace.
        val, test: further examples of each task.
        generator: of all draws.

    Raises:
        ValueError: if `latent` does not lie in 1..features, or sizes are not one per task.
    """
    each = [sizes] * tasks if isinstance(sizes, int) else list(sizes)
    if len(each) != tasks or tasks < 1:
        raise ValueError(f"sizes must give one number for each of {tasks} tasks, got {each}")
    if not 1 <= latent <= features:
        raise ValueError(f"latent must lie in 1..{features}, the number of features, got {latent}")
    basis = torch.linalg.qr(torch.randn(features, latent, generator=generator))[0]

    def draw(n: int, direction: Float[Tensor, "features"]) -> Examples:
        x = torch.randn(n, features, generator=generator)
        return Examples(x, (x @ direction > 0).long())

    stream = []
    for number, size in enumerate(each, start=1):
        direction = basis @ torch.randn(latent, generator=generator)
        train, held, tested = (draw(n, direction) for n in (size, val, test))
        stream.append(Task(number, train, tested, held if val else None))
    return stream


def _in_memory(split: object, name: str) -> Examples:
    if not isinstance(split, Examples):
        raise TypeError(f"{name} must be Examples in memory, got {type(split).__name__}")
    return split


def _flat(split: object, name: str) -> Examples:
    part = _in_memory(split, name)
    return Examples(part.inputs.flatten(1), part.targets)
