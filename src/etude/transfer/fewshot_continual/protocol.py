"""The stream of few-shot tasks and what is measured along it.

A stream parts the classes of a data set into a base, the tasks and an unseen pool, and never mixes them. After task t,

    A_t    accuracy on queries of all classes of tasks 1..t in one joint label space, without the task's identity
    F_t    accuracy on episodes of unseen classes, by the slow weights
    R_ti   accuracy on the queries of task i, in the same joint label space
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from etude.transfer.fewshot_continual.embedding import embedded
from etude.transfer.fewshot_continual.episodes import EpisodeSampler, class_rows
from etude.transfer.fewshot_continual.learner import FewShotContinualLearner
from etude.transfer.fewshot_continual.prototypes import PrototypeClassifier

__all__ = ["FewShotStream", "StreamResult", "one_shot_error", "run_stream", "tasks_by_column",
           "unseen_episodes"]  # fmt: skip


@dataclass(frozen=True, eq=False)
class FewShotStream:
    """Which classes are the base, each task and the unseen pool, and which rows are a task's shots.

        stream = FewShotStream.draw(train.targets, n_way=5, k_shot=5, num_tasks=8, generator=generator)
        learner.pretrain(*train[stream.base_rows])
        for rows in stream.support_rows:
            learner.learn_task(*train[rows])

    Attributes:
        base: classes of the base.
        tasks: classes of each task.
        unseen: classes of the unseen pool.
        base_rows: rows of the base.
        support_rows: rows of the shots of each task, class after class.
    """

    base: Int64[Tensor, "base"]
    tasks: tuple[Int64[Tensor, "way"], ...]
    unseen: Int64[Tensor, "unseen"]
    base_rows: Int64[Tensor, "rows"]
    support_rows: tuple[Int64[Tensor, "shots"], ...]

    def __post_init__(self):
        every = torch.cat([self.base, *self.tasks, self.unseen])
        if len(every.unique()) < len(every):
            classes, counts = every.unique(return_counts=True)
            raise ValueError(f"class {int(classes[counts > 1][0])} stands in more than one part of the stream")

    @classmethod
    def draw(
        cls,
        labels: Int64[Tensor, "n"],
        *,
        n_way: int = 5,
        k_shot: int = 5,
        num_tasks: int | None = None,
        groups: Sequence[Hashable] | None = None,
        base: float | int = 0.25,
        unseen: float | int = 0.25,
        generator: torch.Generator | None = None,
    ) -> "FewShotStream":
        """A stream at random.

        Args:
            labels: class of each row, from 0 up.
            n_way: classes of a task, >= 2.
            k_shot: shots of each class.
            num_tasks: as many as the classes suffice for if None.
            groups: what each class belongs to (the alphabet of a character, the family of a bird): whole groups go to
                the base, the tasks or the unseen pool; every class for itself if None.
            base, unseen: shares of the groups, above 0 and below 1 together; at least one group each.
            generator: of all draws; the default generator if None.

        Raises:
            ValueError: if a part would have fewer classes than it needs, or a class fewer rows than shots.
        """
        if n_way < 2 or k_shot < 1 or (num_tasks is not None and num_tasks < 1):
            raise ValueError(
                f"a stream needs n_way >= 2, k_shot >= 1 and num_tasks >= 1, got {n_way}, {k_shot} and {num_tasks}"
            )
        if not (base > 0 and unseen > 0 and base + unseen < 1):
            raise ValueError(f"base and unseen must be positive shares below 1 together, got {base} and {unseen}")
        classes, rows = class_rows(labels)
        of_class = dict(zip(classes.tolist(), rows))
        if groups is not None and len(groups) <= int(classes.max()):
            raise ValueError(f"groups names {len(groups)} classes, the labels go up to {int(classes.max())}")
        by_group: dict[Hashable, list[int]] = {}
        for label in classes.tolist():
            by_group.setdefault(label if groups is None else groups[label], []).append(label)
        names = list(by_group)
        order = [names[index] for index in torch.randperm(len(names), generator=generator).tolist()]
        first, last = (max(1, round(share * len(order))) for share in (base, unseen))
        parts = [
            torch.tensor([label for name in part for label in by_group[name]], dtype=torch.int64)
            for part in (order[:first], order[first : len(order) - last], order[len(order) - last :])
        ]
        for name, part in zip(("base", "tasks", "unseen pool"), parts):
            if len(part) < 2 or (name == "tasks" and len(part) < n_way):
                raise ValueError(
                    f"the {len(classes)} classes leave {len(part)} for the {name}, fewer than "
                    f"{n_way if name == 'tasks' else 2}"
                )
        count = len(parts[1]) // n_way if num_tasks is None else num_tasks
        if count * n_way > len(parts[1]):
            raise ValueError(f"{count} tasks of {n_way} classes need {count * n_way}, there are {len(parts[1])}")
        shuffled = parts[1][torch.randperm(len(parts[1]), generator=generator)]
        tasks = tuple(shuffled[: count * n_way].split(n_way))
        support = []
        for task in tasks:
            shots = []
            for label in task.tolist():
                own = of_class[label]
                if len(own) < k_shot:
                    raise ValueError(f"class {label} has {len(own)} examples, fewer than {k_shot} shots")
                shots.append(own[torch.randperm(len(own), generator=generator)[:k_shot]])
            support.append(torch.cat(shots))
        return cls(parts[0], tasks, parts[2], torch.cat([of_class[c] for c in parts[0].tolist()]), tuple(support))

    @property
    def seen(self) -> Int64[Tensor, "seen"]:
        """Classes of all tasks."""
        return torch.cat(self.tasks)


def unseen_episodes(
    labels: Int64[Tensor, "n"],
    stream: FewShotStream,
    *,
    n_way: int = 10,
    k_shot: int = 1,
    n_query: int = 5,
    n_episodes: int = 300,
    seed: int = 0,
) -> EpisodeSampler:
    """Episodes of a stream's unseen classes, over the rows of these classes alone, as `run_stream` takes them.

    Args:
        labels: of the test examples.
        stream: whose unseen pool is meant.
        n_way, k_shot, n_query, n_episodes, seed: of `EpisodeSampler`.
    """
    return EpisodeSampler(labels[torch.isin(labels, stream.unseen)], n_way, k_shot, n_query, n_episodes, seed)


def tasks_by_column(values: Sequence[Hashable]) -> dict[Hashable, Int64[Tensor, "rows"]]:
    """The rows of each task, where a column of the user's table says which task a row belongs to.

    Args:
        values: the column.

    Returns:
        Rows by value, in the order in which the values first come.
    """
    rows: dict[Hashable, list[int]] = {}
    for row, value in enumerate(values):
        rows.setdefault(value, []).append(row)
    return {value: torch.tensor(of_value) for value, of_value in rows.items()}


@dataclass(frozen=True, eq=False)
class StreamResult:
    """What a learner did along a stream of T tasks.

    Attributes:
        seen: A_t after tasks 1..T, by the slow weights; seen_fast: by the fast ones.
        few_shot: F_t after tasks 0..T, where 0 is before the first.
        matrix: R, row t after task t; classes that were not learned yet are never right.
        steps: updates made for each task.
    """

    seen: list[float]
    seen_fast: list[float]
    few_shot: list[float]
    matrix: Float[Tensor, "after on"]
    steps: list[int]


def run_stream(
    learner: FewShotContinualLearner,
    stream: FewShotStream,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    episodes: EpisodeSampler | None = None,
    *,
    curves: bool = True,
    callback: Callable[..., Any] | None = None,
) -> StreamResult:
    """Takes a learner, whose base is trained already, through all tasks of a stream and measures it after each.

    Args:
        learner: learns.
        stream: of the rows of `train`.
        train: inputs and labels that shots are taken of.
        test: inputs and labels of the same classes, of which the queries are.
        episodes: over rows of `test` of unseen classes (see `unseen_episodes`); F_t is left out if None.
        curves: measure after every task; if not, after the last alone: each list of the result then holds one value,
            and R its last row only.
        callback: called after each measurement as callback(task, tasks, seen=A_t).

    Raises:
        ValueError: if an episode holds a class of the base or of a task, or a task has no query.
    """
    inputs, labels = test
    queries = [torch.isin(labels, task).nonzero()[:, 0] for task in stream.tasks]
    for task, rows in zip(stream.tasks, queries):
        if not len(rows):
            raise ValueError(f"there are no test examples of the classes {task.tolist()}")
    unseen = inputs[:0]
    if episodes is not None:
        unseen = inputs[torch.isin(labels, stream.unseen)]
        if int(episodes.episodes().max()) >= len(unseen):
            raise ValueError(f"the episodes go beyond the {len(unseen)} rows of unseen classes")
    result = StreamResult([], [], [], torch.zeros(len(queries), len(queries), dtype=torch.float64), learner.steps)

    def few_shot() -> None:
        if episodes is not None:
            result.few_shot.append(learner.few_shot_accuracy(unseen, episodes))

    if curves:
        few_shot()
    every = torch.cat(queries)
    sizes = [len(rows) for rows in queries]
    for step, shots in enumerate(stream.support_rows):
        learner.learn_task(train[0][shots], train[1][shots])
        if not curves and step + 1 < len(queries):
            continue
        known = every[: sum(sizes[: step + 1])]
        targets = labels[known]
        right = learner.predict(inputs[known]).cpu() == targets.cpu()
        result.seen.append(right.double().mean().item())
        result.seen_fast.append((learner.predict(inputs[known], "fast").cpu() == targets.cpu()).double().mean().item())
        for index, part in enumerate(right.split(sizes[: step + 1])):
            result.matrix[step, index] = part.double().mean()
        few_shot()
        if callback is not None:
            callback(step + 1, len(queries), seen=result.seen[-1])
    return result


@torch.no_grad()
def one_shot_error(
    encoder: nn.Module,
    runs: Sequence[tuple[Tensor, Tensor, Tensor]],
    classifier: PrototypeClassifier | None = None,
) -> float:
    """Error of the nearest training example over runs of one-shot classification, such as Omniglot's twenty.

    Args:
        encoder: (n, ...) -> (n, dim).
        runs: training examples (classes, ...), one of each class; test examples; and the class of each of these, the
            row of its training example.
        classifier: squared distances if None.
    """
    if not runs:
        raise ValueError("there are no runs")
    classifier = PrototypeClassifier() if classifier is None else classifier
    wrong = []
    for training, test, labels in runs:
        logits = classifier(embedded(encoder, test), embedded(encoder, training))
        wrong.append((logits.argmax(dim=1).cpu() != labels).double())
    return torch.cat(wrong).mean().item()
