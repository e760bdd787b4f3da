"""Policies that add a phase after a task: backward transfer, confusion reduction, refinement, pruning.

They train on stored exemplars only, and add on to a policy that says what becomes of old tasks:
`NonForgetting() + ConfusionReduction()`.
"""

import copy
from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etude.loop.evaluation import mode
from etude.transfer.lifelong.groups import MASKED, Rules
from etude.transfer.lifelong.learner import Context, Part
from etude.transfer.lifelong.policy import Policy

__all__ = ["BackwardTransfer", "ConfusionReduction", "Prune", "Refinement"]


@dataclass(frozen=True)
class _Phase(Policy):
    """A phase of `steps` updates after every task from the second on, or only after the task of number `after`.

    Its learning rate is `lr`, or the learner's if None.
    """

    steps: int = 150
    after: int | None = None
    lr: float | int | None = None
    adds_on: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.steps < 1 or (self.after is not None and self.after < 1):
            raise ValueError(f"steps and after must be positive, got {self.steps} and {self.after}")
        if self.lr is not None and not self.lr > 0:
            raise ValueError(f"lr must be positive, got {self.lr}")

    def due(self, context: Context) -> bool:
        return context.number > 1 if self.after is None else context.number == self.after

    def phase_rules(self) -> Rules:
        """What the phase sets, as data."""
        return {}

    def _exemplars(self, context: Context) -> list[Part]:
        parts = context.stored()
        if not parts:
            raise ValueError(f"{type(self).__name__} trains on stored exemplars, of which there are none: memory >= 1")
        return parts


@dataclass(frozen=True)
class ConfusionReduction(_Phase):
    """Heads learned apart compete for the first time: features frozen, all heads learn jointly from a few exemplars.

    Cross-head links H[i->j] are opened, from and to all tasks.
    """

    def phase_rules(self) -> Rules:
        return {"G[*->*]": float("inf"), "H[*->*]": 0.0}

    def after_task(self, context: Context) -> None:
        if self.due(context):
            context.apply(self.phase_rules(), "after")
            context.train(self._exemplars(context), scope="joint", steps=self.steps, lr=self.lr)


@dataclass(frozen=True)
class Refinement(_Phase):
    """A joint rehearsal of everything on a few exemplars, all weights alike held by a finite b.

    Args:
        b: finite, not negative.
        scope: "joint": all classes compete; "task": each example among its own task's.
    """

    b: float | int = 1.0
    scope: str = "joint"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.b < float("inf") or self.scope not in ("joint", "task"):
            raise ValueError(f"b must be finite and >= 0, scope 'joint' or 'task', got {self.b} and {self.scope!r}")

    def phase_rules(self) -> Rules:
        return {"*[*->*]": self.b}

    def after_task(self, context: Context) -> None:
        if self.due(context):
            context.apply(self.phase_rules(), "after")
            context.train(self._exemplars(context), scope=self.scope, steps=self.steps, lr=self.lr)


@dataclass(frozen=True)
class BackwardTransfer(_Phase):
    """Old tasks read the units that later tasks brought, and learn to use them from their stored exemplars.

    For each old task i, the links from later tasks j > i into its units (G) and outputs (H) are opened; whatever else
    there is stays frozen. Cross-validation on the stored exemplars, with and without the links, decides whether they
    stay; they are also taken back if another stored task gets worse. Fewer exemplars than `folds` are not tested; as
    many folds as exemplars leave one out at a time.

    Args:
        tasks: numbers of the old tasks; all that have exemplars if empty.
        kinds: of the links opened; "H" alone leaves all features as they are.
        own: b of the task's own head weights. restart: they begin again at zero, free.
        own_features: b of its own units' weights; below inf, tasks that read these units change too.
        folds: of the cross-validation, 2 or more; 0 accepts without looking.
    """

    tasks: tuple[int, ...] = ()
    kinds: tuple[str, ...] = ("G", "H")
    own: float | int = 0.0
    own_features: float | int = float("inf")
    restart: bool = True
    folds: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if set(self.kinds) - {"G", "H"} or not self.kinds:
            raise ValueError(f"kinds must be of 'G' and 'H', got {self.kinds}")
        if self.folds < 0 or self.folds == 1:
            raise ValueError(f"folds must be 0 or at least 2, got {self.folds}")

    def rules_for(self, task: int, number: int) -> Rules:
        """What is set for old task `task` after task `number`, as data."""
        found: dict[str, float | int | str] = {"*[*->*]": float("inf")}
        for kind in self.kinds:
            found |= {f"{kind}[{later}->{task}]": 0.0 for later in range(task + 1, number + 1)}
        head = 0.0 if self.restart else self.own
        found |= {f"H[{source}->{task}]": head for source in range(1, task + 1)}
        found |= {f"G[{task}->{task}]": self.own_features}
        return found

    def after_task(self, context: Context) -> None:
        if not self.due(context):
            return
        parts = {context.net.number(part[0]): part for part in self._exemplars(context)}
        unknown = sorted(set(self.tasks) - set(parts))
        if unknown:
            raise ValueError(f"BackwardTransfer to tasks {unknown}, of which no exemplars are stored")
        for number in self.tasks or [old for old in parts if old < context.number]:
            self._improve(context, number, parts)

    def _improve(self, context: Context, number: int, parts: dict[int, Part]) -> None:
        before = copy.deepcopy(context.net.state_dict())
        others = {old: self._score(context, part) for old, part in parts.items() if old != number}
        mask = self._closed(context, number)
        opened = self.rules_for(number, context.number)
        keep = True
        if self.folds and len(parts[number][2]) >= self.folds:
            linked, alone = self._validated(context, number, parts[number])
            keep = linked >= alone
        if keep:
            self._train(context, number, parts[number])
            keep = all(self._score(context, parts[old]) >= score for old, score in others.items())
        if keep:
            context.learner.schedule.append({"task": context.number, "event": "after", "rules": dict(opened)})
        else:
            context.net.load_state_dict(before)
            context.consolidation.snapshot()
            context.consolidation.apply(dict.fromkeys(mask, MASKED), new=context.number)

    def _closed(self, context: Context, number: int) -> list[str]:
        """Links that are masked now, to be masked again if the attempt is taken back."""
        told = context.consolidation.rules()
        return [selector for selector, b in told.items() if b == MASKED and selector.endswith(f"->{number}]")]

    def _train(self, context: Context, number: int, part: Part) -> None:
        if self.restart:
            rows = torch.nonzero(context.net.output_owner == number).squeeze(1)
            with torch.no_grad():
                context.net.head.weight[rows], context.net.head.bias[rows] = 0.0, 0.0
        context.consolidation.apply(self.rules_for(number, context.number), new=context.number)
        context.train([part], scope="task", steps=self.steps, lr=self.lr)

    def _validated(self, context: Context, number: int, part: Part) -> tuple[float, float]:
        """Cross-validated accuracy on a task's exemplars with the links and without; the network is then as before.

        The task's own units know all exemplars. In every fold those of the last layer are drawn and learned anew.
        """
        task, inputs, labels = part
        net, last = context.net, context.net.num_layers - 1
        before = copy.deepcopy(net.state_dict())
        fold = torch.randperm(len(labels), generator=context.generator).to(labels.device) % self.folds
        own = torch.nonzero(net.unit_owner(last) == number).squeeze(1)
        alone: dict[str, float | int | str] = {"*[*->*]": float("inf"), f"H[{number}->{number}]": 0.0}
        alone |= {f"*.{last}.*:G[{source}->{number}]": 0.0 for source in range(1, number + 1)}
        alone |= {f"*[{later}->{number}]": MASKED for later in range(number + 1, context.number + 1)}
        right = [0.0, 0.0]
        for held in range(self.folds):
            train, test = fold != held, fold == held
            learned, asked = (task, inputs[train], labels[train]), (task, inputs[test], labels[test])
            net.redraw(last, own, context.generator)
            context.consolidation.apply(alone, new=context.number)
            context.train([learned], scope="task", steps=self.steps, lr=self.lr)
            right[1] += self._score(context, asked) * int(test.sum())
            self._train(context, number, learned)
            right[0] += self._score(context, asked) * int(test.sum())
            net.load_state_dict(before)
        return right[0] / len(labels), right[1] / len(labels)

    @staticmethod
    def _score(context: Context, part: Part) -> float:
        return _accuracy(context, *part)


@dataclass(frozen=True)
class Prune(Policy):
    """After a task, its units that it can do without go back to the pool.

    Units go in the order of how little they add to its outputs; as many as cost at most `budget` of its accuracy on the
    training examples. Only the last hidden layer is pruned.

    Args:
        budget: accuracy that may be lost, in [0, 1].
    """

    budget: float | int = 0.01
    adds_on: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.budget <= 1:
            raise ValueError(f"budget must lie in [0, 1], got {self.budget}")

    def after_task(self, context: Context) -> None:
        net = context.net
        units = torch.nonzero(net.unit_owner(-1) == context.number).squeeze(1)
        with torch.no_grad(), mode(net, training=False):
            size = net.features(context.inputs).abs().mean(dim=0).reshape(-1, net.space).mean(dim=1)
        reach = (
            net.head.weight.detach()
            .reshape(len(net.head.weight), len(net.unit_owner(-1)), net.space)
            .abs()
            .sum(dim=(0, 2))
        )
        order = units[(size * reach)[units].argsort()]
        least = _accuracy(context, context.task, context.inputs, context.labels) - self.budget
        kept = net.head.weight.detach().clone()
        low, high = 0, len(order)
        while low < high:
            middle = (low + high + 1) // 2
            if self._without(context, order[:middle], kept) >= least:
                low = middle
            else:
                high = middle - 1
        with torch.no_grad():
            net.head.weight.copy_(kept)
        net.release(context.task, order[:low], layer=-1)
        context.consolidation.refresh(net.owners())

    @staticmethod
    def _without(context: Context, units: Tensor, kept: Tensor) -> float:
        weight = context.net.head.weight
        with torch.no_grad():
            weight.copy_(kept)
            weight.view(len(weight), len(context.net.unit_owner(-1)), context.net.space)[:, units] = 0.0
        return _accuracy(context, context.task, context.inputs, context.labels)


@torch.no_grad()
def _accuracy(context: Context, task: Hashable, inputs: Tensor, labels: Tensor) -> float:
    with mode(context.net, training=False):
        return (context.net(inputs, task).argmax(dim=1) == labels).double().mean().item()
