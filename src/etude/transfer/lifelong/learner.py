"""The learner: tasks come one by one, a policy sets the table before and after each, and all are evaluated after each.

The order of events for a task: units are recruited; the policy's `before_task` sets b, masks and initial links; the
present values become the targets; training; the policy's `after_task` (consolidation, pruning, further phases); all
tasks are evaluated, which gives a row of the accuracy matrix R[t, i].
"""

import json
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from etude.data.kinds import Examples
from etude.loop import fit
from etude.loop.evaluation import mode
from etude.transfer import streams
from etude.transfer.lifelong.consolidation import Consolidation
from etude.transfer.lifelong.groups import Rules
from etude.transfer.lifelong.network import ConsolidatedNet, TaskView
from etude.transfer.lifelong.tasks import ExemplarMemory, State, Task, local_labels

if TYPE_CHECKING:
    from etude.transfer.lifelong.policy import Policy

__all__ = ["Context", "LifelongLearner", "State", "learn_stream"]

Part = tuple[Hashable, Tensor, Tensor]
"""A task, inputs, and labels that count the task's classes from 0."""

_ALWAYS: Rules = {"*[free->*]": float("inf"), "*[*->free]": float("inf"), "*[free->free]": float("inf")}
"""Units of nobody do not move."""


@dataclass
class Context:
    """What a policy sees and may do at an event. It sets rules and asks for training; it has no optimizer.

    Attributes:
        learner: whose event it is.
        task, number: the task at hand.
        inputs, labels: its training examples; labels count its classes from 0.
    """

    learner: "LifelongLearner"
    task: Hashable
    number: int
    inputs: Tensor
    labels: Tensor

    @property
    def net(self) -> ConsolidatedNet:
        return self.learner.net

    @property
    def consolidation(self) -> Consolidation:
        return self.learner.consolidation

    @property
    def memory(self) -> ExemplarMemory:
        return self.learner.memory

    @property
    def state(self) -> State:
        return self.learner.state

    @property
    def generator(self) -> torch.Generator:
        return self.learner.generator

    def apply(self, rules: Rules, event: str = "before") -> None:
        """Sets groups, and notes it in the learner's schedule."""
        if rules:
            self.consolidation.apply(rules, new=self.number)
            self.learner.schedule.append({"task": self.number, "event": event, "rules": dict(rules)})

    def stored(self) -> list[Part]:
        """The exemplars of all tasks so far."""
        return [(task, *self.memory[task]) for task in self.net.tasks if task in self.memory]

    def train(self, parts: Sequence[Part], *, scope: str, steps: int, lr: float | int | None = None) -> None:
        """Trains what the table leaves free, held to the present values."""
        self.consolidation.snapshot()
        self.learner.fit(parts, scope=scope, steps=steps, lr=lr)


class LifelongLearner:
    """Learns a stream of tasks in one network under a policy.

        learner = LifelongLearner(ConsolidatedNet(196, 1), NonForgetting())
        for task in tasks_by_class(data):
            learner.learn(task.id, *task.train[:], test=task.test[:])
        print(learner.accuracies, learner.metrics())

    Args:
        net: where units are recruited.
        policy: what sets the table; policies add up: `NonForgetting() + ConfusionReduction()`.
        lr, batch_size, steps: of the training of a task, unless `learn` is told otherwise.
        optimizer: (parameters, lr=...) -> a new optimizer for every task.
        mode: of finite b; see `consolidation`.
        clip: largest norm of the gradient; None for no clipping.
        memory: exemplars per class that are kept, for the policies that train on them.
        generator: of the order of examples and the choice of exemplars; seeded with 0 if None.

    Attributes:
        schedule: what was set when, as data: see `save_schedule`.
    """

    def __init__(
        self,
        net: ConsolidatedNet,
        policy: "Policy",
        *,
        lr: float | int = 3e-3,
        batch_size: int = 32,
        steps: int = 200,
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
        mode: str = "proximal",
        clip: float | int | None = None,
        memory: int | ExemplarMemory = 10,
        generator: torch.Generator | None = None,
    ):
        if not lr > 0:
            raise ValueError(f"lr must be positive, got {lr}")
        self.net = net
        self.policy = policy.complete()
        self.consolidation = Consolidation(net, owners=net.owners(), mode=mode)
        self.lr, self.batch_size, self.steps, self.optimizer, self.clip = lr, batch_size, steps, optimizer, clip
        self.memory = memory if isinstance(memory, ExemplarMemory) else ExemplarMemory(memory)
        self.generator = torch.Generator().manual_seed(0) if generator is None else generator
        self.state = State()
        self.schedule: list[dict[str, Any]] = []
        self.classes: dict[Hashable, list[int]] = {}
        self._tests: dict[Hashable, tuple[Tensor, Tensor]] = {}
        self._rows: list[dict[Hashable, float]] = []
        self._kept: list[Part] = []

    def learn(
        self,
        task: Hashable,
        inputs: Float[Tensor, "n *shape"],
        labels: Int64[Tensor, "rows"],
        *,
        epochs: int | None = None,
        steps: int | None = None,
        test: tuple[Tensor, Tensor] | None = None,
        policy: "Policy | None" = None,
        callbacks: Iterable[Callable[..., None]] = (),
    ) -> "LifelongLearner":
        """Learns the next task.

        Args:
            task: its name, new to the learner.
            inputs, labels: training examples, with any whole numbers as labels.
            epochs, steps: how long; the learner's `steps` if neither is given.
            test: examples on which this task is evaluated from now on.
            policy: used for this task instead of the learner's.
            callbacks: as for `loop.fit`.

        Raises:
            ValueError: if the task is known already, has a single class, or inputs and labels differ in number.
        """
        if task in self.classes:
            raise ValueError(f"task {task!r} has been learned already")
        if len(inputs) != len(labels) or not len(labels):
            raise ValueError(f"inputs and labels must be equally many, got {len(inputs)} and {len(labels)}")
        classes = labels.unique().tolist()
        if len(classes) < 2:
            raise ValueError(f"task {task!r} must have at least two classes, its labels are all {classes}")
        policy = self.policy if policy is None else policy.complete()
        device = self.net.head.weight.device
        inputs, local = inputs.to(device), local_labels(labels, classes, "labels").to(device)
        context = Context(self, task, len(self.net.tasks) + 1, inputs, local)
        units = policy.units(context)
        self.net.recruit(task, units, len(classes))
        self.classes[task] = classes
        self.consolidation.refresh(self.net.owners())
        self.state.last_used[context.number] = context.number
        self.memory.add(task, inputs, local, self.generator)
        context.apply(_ALWAYS, "always")
        policy.before_task(context)
        if not policy.keeps_targets:
            self.consolidation.snapshot()
        parts: list[Part] = [(task, inputs, local)]
        if policy.data == "all":
            self._kept += parts
            parts = self._kept
        steps = self.steps if steps is None and epochs is None else steps
        self.fit(parts, scope="task", steps=steps, epochs=epochs, callbacks=callbacks)
        policy.after_task(context)
        if test is not None:
            self.add_test(task, *test)
        self._rows.append(self.evaluate())
        return self

    def add_test(self, task: Hashable, inputs: Float[Tensor, "n *shape"], labels: Int64[Tensor, "n"]) -> None:
        """Evaluates a task, learned or still to come, on these examples from now on."""
        self._tests[task] = (inputs, labels)

    def use(self, task: Hashable) -> None:
        """Notes that a task is in use now, which refreshes it where memory fades (`GracefulForgetting`)."""
        self.state.last_used[self.net.number(task)] = len(self.net.tasks)

    def fit(
        self,
        parts: Sequence[Part],
        *,
        scope: str = "task",
        steps: int | None = None,
        epochs: int | None = None,
        lr: float | int | None = None,
        callbacks: Iterable[Callable[..., None]] = (),
    ) -> None:
        """Trains what the table leaves free, with a new optimizer.

        Args:
            parts: examples of one or several tasks.
            scope: "task": every example is classified among its own task's classes; "joint": among all.
            steps, epochs: one of them.
            lr: the learner's if None.
            callbacks: as for `loop.fit`.
        """
        if scope not in ("task", "joint"):
            raise ValueError(f"scope must be 'task' or 'joint', got {scope!r}")
        with self._thawed() as weights:
            if not weights:
                return
            loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
            if len(parts) == 1 and scope == "task":
                task, inputs, targets = parts[0]
                view = TaskView(self.net, task)
            else:
                view = TaskView(self.net)
                inputs = torch.cat([part[1] for part in parts])
                targets = torch.cat([self._output_of(task, local) for task, _, local in parts])
                if scope == "task":
                    loss = self._within_task
            optimizer = self.optimizer(weights, lr=self.lr if lr is None else lr)
            detach = self.consolidation.attach(optimizer)
            try:
                fit(
                    view, Examples(inputs, targets), optimizer, loss=loss, steps=steps, epochs=epochs, clip=self.clip,
                    batch_size=self.batch_size, generator=self.generator, callbacks=callbacks,
                )  # fmt: skip
            finally:
                detach()

    @contextmanager
    def _thawed(self) -> Any:
        """The parameters that can move; the others need no gradient for the while."""
        weights = self.consolidation.trainable()
        moving = {id(weight) for weight in weights}
        still = [p for p in self.net.parameters() if p.requires_grad and id(p) not in moving]
        for weight in still:
            weight.requires_grad_(False)
        try:
            yield [weight for weight in weights if weight.requires_grad and weight.numel()]
        finally:
            for weight in still:
                weight.requires_grad_(True)

    def _output_of(self, task: Hashable, local: Tensor) -> Tensor:
        rows = torch.arange(len(self.net.output_owner), device=local.device)[self.net.outputs(task)]
        return rows[local]

    def _within_task(self, logits: Tensor, targets: Tensor) -> Tensor:
        owner = self.net.output_owner
        return F.cross_entropy(logits.masked_fill(owner != owner[targets][:, None], -float("inf")), targets)

    @torch.no_grad()
    def predict(self, inputs: Float[Tensor, "n *shape"], task: Any = None) -> Int64[Tensor, "n"]:
        """The label of each input: among a task's classes, or among those of all tasks if the task is not given.

        Raises:
            ValueError: if the task is unknown, or nothing has been learned.
        """
        if not self.classes:
            raise ValueError("nothing has been learned yet")
        with mode(self.net, training=False):
            best = self.net(inputs.to(self.net.head.weight.device), task).argmax(dim=1)
        labels = torch.empty(len(self.net.output_owner), dtype=torch.int64, device=best.device)
        for name, classes in self.classes.items():
            labels[self.net.outputs(name)] = torch.tensor(classes, device=best.device)
        return labels[best] if task is None else labels[self.net.outputs(task)][best]

    @torch.no_grad()
    def accuracy(self, task: Hashable, inputs: Tensor, labels: Tensor, *, scope: str = "task") -> float:
        """Accuracy on examples of a task: told which task it is ("task"), or not ("joint": all heads compete).

        Raises:
            ValueError: if the task is unknown, or a label is none of its classes.
        """
        self.net.number(task)
        device = self.net.head.weight.device
        local = local_labels(labels, self.classes[task], f"test labels of task {task!r}").to(device)
        if not len(local):
            raise ValueError(f"there are no examples of task {task!r} to evaluate on")
        with mode(self.net, training=False):
            if scope == "task":
                right = self.net(inputs.to(device), task).argmax(dim=1) == local
            else:
                right = self.net(inputs.to(device)).argmax(dim=1) == self._output_of(task, local)
        return right.double().mean().item()

    def evaluate(self, *, scope: str = "task") -> dict[Hashable, float]:
        """Present accuracy on the test examples of every task learned so far."""
        return {
            task: self.accuracy(task, *examples, scope=scope)
            for task, examples in self._tests.items()
            if task in self.classes
        }

    @property
    def accuracies(self) -> Float[Tensor, "after on"]:
        """R[t, i], accuracy on task i after task t, float64; a task not learned yet is at chance, 1 / classes.

        Only tasks that have test examples count.

        Raises:
            ValueError: if no task has test examples.
        """
        tasks = [task for task in self.classes if task in self._tests]
        if not tasks:
            raise ValueError("no task has test examples: give learn(test=...)")
        rows = [row for task, row in zip(self.classes, self._rows) if task in self._tests]
        return torch.tensor(
            [[row.get(task, 1 / len(self.classes[task])) for task in tasks] for row in rows], dtype=torch.float64
        )

    def metrics(self, alone: Float[Tensor, "tasks"] | None = None) -> dict[str, float]:
        """Average accuracy, forgetting, backward transfer, mean accuracy just after learning; forward transfer.

        A task has no head before it is learned, so that forward transfer is taken where the framework has it: in the
        accuracy just after learning, less that of a learner which met the task alone (`alone`, one per task).
        """
        matrix = self.accuracies
        found = {
            "average_accuracy": streams.average_accuracy(matrix),
            # Chance accuracy on tasks still to come is nothing that could be forgotten.
            "forgetting": streams.forgetting(matrix.tril()),
            "backward_transfer": streams.backward_transfer(matrix),
            "learning_accuracy": float(matrix.diagonal().mean()),
        }
        if alone is not None:
            shifted = torch.zeros(len(matrix), len(matrix), dtype=torch.float64)
            shifted[torch.arange(len(matrix) - 1), torch.arange(1, len(matrix))] = matrix.diagonal()[1:]
            found["forward_transfer"] = streams.forward_transfer(shifted, alone.double())
        return found

    def save_schedule(self) -> str:
        """The schedule as JSON: what was set before and after which task."""
        return json.dumps(self.schedule, indent=1).replace("Infinity", '"inf"')


def learn_stream(
    tasks: Sequence[Task],
    policy: "Policy",
    *,
    net: ConsolidatedNet | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    **options: Any,
) -> LifelongLearner:
    """Learns all tasks of a stream, each with its test examples.

        learner = learn_stream(tasks_by_class(user.load("photos/")), NonForgetting() + ConfusionReduction())
        print(learner.metrics())

    Args:
        tasks: in their order.
        policy: see `policies`.
        net: two layers that grow by 40 units a task, and read flattened inputs, if None.
        epochs, steps: for each task.
        options: of `LifelongLearner`.

    Raises:
        ValueError: if there are no tasks, two have one name, or their inputs differ in shape.
    """
    if not tasks:
        raise ValueError("a stream needs at least one task, got none")
    if len({task.id for task in tasks}) < len(tasks):
        raise ValueError(f"tasks must have different names, got {[task.id for task in tasks]}")
    shapes = {tuple(task.train.inputs.shape[1:]) for task in tasks}
    if len(shapes) > 1:
        raise ValueError(f"the tasks' inputs must have one shape, got {sorted(shapes)}")
    if net is None:
        net = ConsolidatedNet(tasks[0].train.inputs[0].numel(), seed=0)
    learner = LifelongLearner(net, policy, **options)
    for task in tasks:
        learner.learn(task.id, *task.train[:], epochs=epochs, steps=steps, test=task.test[:])
    return learner
