"""What each policy is for: the properties of lifelong learning, each measured with its policy and without it.

The functions run one experiment each and return its figures; `property_table` runs them all on generated streams.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch

from etude.transfer.lifelong.learner import LifelongLearner, learn_stream
from etude.transfer.lifelong.network import ConsolidatedNet
from etude.transfer.lifelong.phases import BackwardTransfer, ConfusionReduction, Refinement
from etude.transfer.lifelong.policies import (
    EWC,
    FineTune,
    GracefulForgetting,
    Joint,
    NonForgetting,
    RainMan,
    SleepDeprivation,
)
from etude.transfer.lifelong.policy import Policy
from etude.transfer.lifelong.tasks import Task, shared_latent_tasks
from etude.transfer.lifelong.transfer_policies import FewShot, ForwardTransfer

__all__ = [
    "PropertyRow",
    "backward_transfer",
    "confusion",
    "few_shot",
    "plot_accuracies",
    "property_table",
    "retention",
    "table_text",
]


def retention(
    tasks: Sequence[Task],
    policy: Policy,
    *,
    net: ConsolidatedNet,
    log: Callable[..., None] | None = None,
    **options: Any,
) -> dict[str, float]:
    """Learns a stream under a policy: accuracy at its end, just after learning, and what was forgotten.

    Args:
        tasks, policy, net: what is learned, how and where.
        log: called after each task with its number, the accuracy on the first task and the mean over those so far.
        options: of `LifelongLearner`.
    """
    learner = learn_stream(tasks, policy, net=net, **options)
    found = learner.metrics()
    matrix = learner.accuracies
    for number, row in enumerate(matrix, start=1):
        if log is not None:
            log(number, first_task=float(row[0]), tasks_so_far=float(row[:number].mean()))
    return found | {
        "first_task": float(matrix[-1, 0]),
        "first_task_learned": float(matrix[0, 0]),
        "val_accuracy": _val_accuracy(learner, tasks),
    }


def few_shot(
    tasks: Sequence[Task],
    policy: Policy,
    *,
    net: ConsolidatedNet,
    steps: int = 150,
    few_steps: int = 150,
    few_lr: float | int | None = None,
    **options: Any,
) -> dict[str, float]:
    """Learns all tasks but the last without forgetting, then the last, of few examples, under a policy.

    Args:
        tasks: the last is the one that counts.
        policy: of the last task.
        net: where they are learned.
        steps, few_steps: of training before and at the last task; `few_lr` is the last one's learning rate.
        options: of `LifelongLearner`.
    """
    learner = LifelongLearner(net, NonForgetting(), steps=steps, **options)
    for task in tasks[:-1]:
        learner.learn(task.id, *task.train[:], test=task.test[:])
    last = tasks[-1]
    learner.lr = learner.lr if few_lr is None else few_lr
    learner.learn(last.id, *last.train[:], test=last.test[:], policy=policy, steps=few_steps)
    test, train = (learner.accuracy(last.id, *part[:]) for part in (last.test, last.train))
    found = {"accuracy": test, "train_accuracy": train, "gap": train - test}
    if last.val is not None:
        found["val_accuracy"] = learner.accuracy(last.id, *last.val[:])
    return found | {"forgetting": learner.metrics()["forgetting"]}


def confusion(tasks: Sequence[Task], policy: Policy, *, net: ConsolidatedNet, **options: Any) -> dict[str, float]:
    """Learns a stream: accuracy when all heads compete, and when the task is given."""
    learner = learn_stream(tasks, policy, net=net, **options)
    found = {"task_accuracy": learner.metrics()["average_accuracy"]}
    for name in ("test", "val"):
        parts = [(task.id, part) for task in tasks if (part := getattr(task, name)) is not None]
        right = sum(learner.accuracy(task, *part[:], scope="joint") * len(part) for task, part in parts)
        if parts:
            total = sum(len(part) for _, part in parts)
            found["accuracy" if name == "test" else "val_accuracy"] = right / total
    return found


def backward_transfer(
    tasks: Sequence[Task],
    policy: BackwardTransfer | None,
    *,
    net: ConsolidatedNet,
    more_steps: int = 150,
    **options: Any,
) -> dict[str, float]:
    """Learns a stream whose first task has few examples, then lets the later tasks help it.

    Args:
        tasks: the first is the one that counts.
        policy: of the end; None goes on training the first task's own head for `more_steps` instead.
        net: where they are learned.
        options: of `LifelongLearner`; its memory must hold the first task's examples.
    """
    learner = LifelongLearner(net, NonForgetting(), **options)
    for number, task in enumerate(tasks, start=1):
        end = NonForgetting() + policy if policy is not None and number == len(tasks) else None
        learner.learn(task.id, *task.train[:], test=task.test[:], policy=end)
    first = tasks[0]
    if policy is None:
        learner.consolidation.apply({"*[*->*]": float("inf"), "H[1->1]": 0.0})
        learner.fit([(first.id, *learner.memory[first.id])], steps=more_steps)
    found = {
        "accuracy": learner.accuracy(first.id, *first.test[:]),
        "just_after": float(learner.accuracies[0, 0]),
        "linked": float(bool(learner.net.head.weight[:2, learner.net.unit_owner(-1) > 1].any())),
        "others": fmean(value for task, value in learner.evaluate().items() if task != first.id),
    }
    if first.val is not None:
        found["val_accuracy"] = learner.accuracy(first.id, *first.val[:])
    return found


def _val_accuracy(learner: LifelongLearner, tasks: Sequence[Task]) -> float:
    """Mean accuracy on the validation examples at the end; 0 without any."""
    held = [learner.accuracy(task.id, *task.val[:]) for task in tasks if task.val is not None and len(task.val)]
    return fmean(held) if held else 0.0


@dataclass(frozen=True)
class PropertyRow:
    """A property of lifelong learning, the policy that gives it, and what it does here.

    Attributes:
        name: of the property. policy, control: what is compared.
        measure: the figure compared.
        value, without: means over seeds, with the policy and with the control.
    """

    name: str
    policy: str
    control: str
    measure: str
    value: float
    without: float


Experiment = Callable[[int, Policy | None], dict[str, float]]


def property_table(seeds: int = 3, *, examples: int = 1000, steps: int = 150, few: int = 20) -> list[PropertyRow]:
    """Measures every property with its policy and without it, on streams of a shared latent subspace.

        print(table_text(property_table()))

    Args:
        seeds: how many streams, from seed 0 up.
        examples: of each task. few: of the task that has few.
        steps: of training for each task.

    Raises:
        ValueError: if `seeds` is not positive.
    """
    if seeds < 1:
        raise ValueError(f"seeds must be positive, got {seeds}")

    def stream(seed: int, sizes: Sequence[int]) -> list[Task]:
        generator = torch.Generator().manual_seed(seed)
        return shared_latent_tasks(len(sizes), sizes, val=0, test=1000, generator=generator)

    def net(seed: int) -> ConsolidatedNet:
        return ConsolidatedNet(100, 1, 8, seed=seed)

    def options(seed: int) -> dict[str, Any]:
        return {"steps": steps, "generator": torch.Generator().manual_seed(seed), "memory": few}

    def kept(seed: int, policy: Policy | None) -> dict[str, float]:
        found = retention(stream(seed, [examples] * 5), policy or FineTune(), net=net(seed), **options(seed))
        return found | {"retention": -found["forgetting"]}

    def last(seed: int, policy: Policy | None) -> dict[str, float]:
        tasks = stream(seed, [*[examples] * 6, few])
        return few_shot(tasks, policy or RainMan(8), net=net(seed), few_steps=steps, **options(seed))

    def first(seed: int, policy: Policy | None) -> dict[str, float]:
        tasks = stream(seed, [few, *[examples] * 6])
        chosen = policy if isinstance(policy, BackwardTransfer) else None
        return backward_transfer(tasks, chosen, net=net(seed), more_steps=steps, **options(seed))

    def confused(seed: int, policy: Policy | None) -> dict[str, float]:
        tasks = [_shifted(task) for task in stream(seed, [examples] * 3)]
        return confusion(tasks, policy or NonForgetting(), net=net(seed), **options(seed))

    plan: list[tuple[str, Policy, Policy | None, str, Experiment]] = [
        ("no forgetting", NonForgetting(), None, "retention", kept),
        ("no forgetting, elastic", EWC(1000.0), None, "retention", kept),
        ("forward transfer", ForwardTransfer(), RainMan(8), "accuracy", last),
        ("few-shot learning", FewShot(), RainMan(8), "accuracy", last),
        ("backward transfer", BackwardTransfer(steps, after=7, tasks=(1,), kinds=("H",)), None, "accuracy", first),
        ("confusion reduction", NonForgetting() + ConfusionReduction(steps, after=3), NonForgetting(), "accuracy",
         confused),
        ("refinement", NonForgetting() + Refinement(steps, after=3), NonForgetting(), "accuracy", confused),
        ("multi-task training", Joint(), None, "average_accuracy", kept),
        ("graceful forgetting", GracefulForgetting(0.1), GracefulForgetting(1.0), "first_task", kept),
        ("'rain man'", RainMan(256), FewShot(), "gap", last),
        ("sleep deprivation", NonForgetting() + SleepDeprivation(1.0), NonForgetting(), "retention", kept),
    ]  # fmt: skip
    rows = []
    for name, policy, control, measure, run in plan:
        values = [[run(seed, chosen)[measure] for seed in range(seeds)] for chosen in (policy, control)]
        without = "without" if control is None and run is first else _name(control or FineTune())
        rows.append(PropertyRow(name, _name(policy), without, measure, fmean(values[0]), fmean(values[1])))
    return rows


def table_text(rows: Sequence[PropertyRow]) -> str:
    """The rows for a terminal: property, policy, measure, with the policy, with the control."""
    head = ("property", "policy", "measure", "with it", "control", "")
    lines = [
        (row.name, row.policy, row.measure.replace("_", " "), f"{row.value:.3f}", f"{row.without:.3f}", row.control)
        for row in rows
    ]
    widths = [max(len(line[column]) for line in (head, *lines)) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in (head, *lines)
    )


def plot_accuracies(learner: LifelongLearner, title: str = "") -> Any:
    """The accuracy matrix as a picture: rows are what has been learned, columns what is asked. A matplotlib figure."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'etude[run]'") from error
    matrix = learner.accuracies
    figure = Figure(figsize=(1.5 + 0.6 * len(matrix), 1.2 + 0.5 * len(matrix)), layout="constrained")
    axis = figure.subplots()
    axis.imshow(matrix.numpy(), vmin=0, vmax=1, cmap="viridis")
    for row in range(len(matrix)):
        for column in range(len(matrix)):
            value = float(matrix[row, column])
            axis.text(column, row, f"{value:.2f}", ha="center", va="center", color="black" if value > 0.6 else "white")
    axis.set(xlabel="accuracy on task", ylabel="after task", title=title)
    ticks = range(len(matrix))
    axis.set_xticks(ticks, [str(number + 1) for number in ticks])
    axis.set_yticks(ticks, [str(number + 1) for number in ticks])
    return figure


def _name(policy: Policy) -> str:
    return " + ".join(type(part).__name__ for part in policy.parts())


def _shifted(task: Task) -> Task:
    """A binary task whose inputs lie elsewhere than other tasks', so that a joint decision is possible at all."""
    from etude.data.kinds import Examples

    shift = torch.zeros(task.train.inputs.shape[1])
    shift[-int(task.id)] = 6.0  # type: ignore[call-overload]
    train, test = (Examples(part.inputs + shift, part.targets) for part in (task.train, task.test))
    return Task(task.id, train, test)
