"""Policies that carry knowledge forward: the new task starts from the most similar old one.

Similarity is the accuracy of an old task's head on the new task's examples, its classes matched to the new ones as well
as possible; or how much of the variance of the new labels a linear map of the old task's units explains.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from etude.loop.evaluation import mode
from etude.transfer.lifelong.groups import Rules
from etude.transfer.lifelong.learner import Context, State
from etude.transfer.lifelong.policies import NonForgetting
from etude.transfer.lifelong.policy import Policy

__all__ = ["FewShot", "ForwardTransfer", "Similarity", "task_similarity"]

_MEASURES = ("accuracy", "correlation", "none")


@dataclass(frozen=True)
class Similarity:
    """How similar an old task is to the one at hand.

    Attributes:
        value: accuracy or explained variance, 0 to 1.
        chance: what an unrelated task would reach.
        match: for each class of the new task the old one's class that fits it best, or -1.
    """

    value: float
    chance: float
    match: tuple[int, ...]


@torch.no_grad()
def task_similarity(context: Context, measure: str = "accuracy") -> dict[int, Similarity]:
    """Similarity of every old task, by number, to the task at hand.

    Raises:
        ValueError: if the measure is neither "accuracy" nor "correlation".
    """
    if measure not in _MEASURES[:2]:
        raise ValueError(f"measure must be 'accuracy' or 'correlation', got {measure!r}")
    net, labels = context.net, context.labels
    classes = int(labels.max()) + 1
    wanted = F.one_hot(labels, classes).double()
    found = {}
    with mode(net, training=False):
        features = net.features(context.inputs).double()
        for task in net.tasks[: context.number - 1]:
            number = net.number(task)
            predicted = net(context.inputs, task).argmax(dim=1)
            outputs = len(torch.nonzero(net.output_owner == number))
            counts = F.one_hot(predicted, outputs).double().T @ wanted
            rows, columns = linear_sum_assignment(counts.cpu().numpy(), maximize=True)
            match = [-1] * classes
            for row, column in zip(rows.tolist(), columns.tolist()):
                match[column] = row
            if measure == "accuracy":
                value, chance = float(counts[rows, columns].sum()) / len(labels), float(wanted.mean(dim=0).max())
            else:
                own = features[:, (net.unit_owner(-1) == number).repeat_interleave(net.space)]
                value, chance = _explained(own, wanted), 0.0
            found[number] = Similarity(value, chance, tuple(match))
    return found


def _explained(features: Tensor, wanted: Tensor) -> float:
    """Share of the variance of `wanted` that a linear map of the features explains, less what noise would."""
    n, width = features.shape
    if n < width + 3:
        # More features than examples explain everything: nothing is learned of their worth.
        keep = max(1, n // 2)
        features = torch.linalg.svd(features - features.mean(dim=0), full_matrices=False)[0][:, :keep]
        width = features.shape[1]
    centred, aim = features - features.mean(dim=0), wanted - wanted.mean(dim=0)
    residual = aim - centred @ torch.linalg.lstsq(centred, aim, driver="gelsd" if _cpu(aim) else None).solution
    share = 1.0 - float(residual.square().sum() / aim.square().sum())
    return max(1.0 - (1.0 - share) * (n - 1) / max(n - width - 1, 1), 0.0)


def _cpu(x: Tensor) -> bool:
    return x.device.type == "cpu"


@dataclass(frozen=True)
class ForwardTransfer(Policy):
    """Old tasks are frozen as in `NonForgetting`; the new one starts as a copy of the most similar old task.

    Its head reads what the old head reads, with the old head's weights, and its units start with the weights of the
    old task's units. The more similar, the fewer units it recruits:
    n = (1 - s) units_per_task, at least `min_units`, where s = (similarity - chance) / (1 - chance).

    Args:
        source: "accuracy" or "correlation" (see `task_similarity`), or "none": links start at zero, all units come.
        min_units: the fewest units of a task.
        pull: b of the links from old units, which holds them to where they start; 0 leaves them free.

    Raises:
        ValueError: for an unknown source or numbers out of range.
    """

    source: str = "accuracy"
    min_units: int = 4
    pull: float | int = 0.0

    def __post_init__(self) -> None:
        if self.source not in _MEASURES:
            raise ValueError(f"source must be one of {', '.join(_MEASURES)}, got {self.source!r}")
        if self.min_units < 0 or not self.pull >= 0:
            raise ValueError(f"min_units and pull must not be negative, got {self.min_units} and {self.pull}")

    def rules(self, number: int, state: State | None = None) -> Rules:
        return {**NonForgetting().rules(number), "*[old->new]": self.pull}

    def units(self, context: Context) -> int | None:
        if context.number == 1 or self.source == "none":
            return None
        best = self._best(context)
        similar = max(0.0, (best[1].value - best[1].chance) / max(1.0 - best[1].chance, 1e-12))
        return min(max(round((1 - similar) * context.net.units_per_task), self.min_units), context.net.units_per_task)

    def _best(self, context: Context) -> tuple[int, Similarity]:
        found = task_similarity(context, self.source)
        number = max(found, key=lambda old: found[old].value)
        return number, found[number]

    def before_task(self, context: Context) -> None:
        super().before_task(context)
        if context.number > 1 and self.source != "none":
            number, similarity = self._best(context)
            copy_links(context, number, similarity.match)


@dataclass(frozen=True)
class FewShot(ForwardTransfer):
    """As `ForwardTransfer`, with few units of its own or none: few examples fit a head on features that are there.

    Args:
        source, min_units, pull: as there. The links start from zero unless a source is named.
        n_units: the new task's own units (the first task of all gets the network's `units_per_task`).
        use_free: the head also reads the random units of the pool, which nobody has trained.
    """

    source: str = "none"
    pull: float | int = 0.01
    n_units: int = 0
    use_free: bool = False

    def rules(self, number: int, state: State | None = None) -> Rules:
        found = super().rules(number, state)
        return {**found, "H[free->new]": self.pull} if self.use_free else found

    def units(self, context: Context) -> int | None:
        return None if context.number == 1 and not self.use_free else self.n_units


@torch.no_grad()
def copy_links(context: Context, source: int, match: Sequence[int]) -> None:
    """Gives the task at hand the head of task `source`, its classes matched, and its units that task's weights in."""
    net = context.net
    head, new, old = net.head, torch.nonzero(net.output_owner == context.number), net.output_owner == source
    rows = torch.nonzero(old).squeeze(1)
    for place, label in zip(new.squeeze(1).tolist(), match):
        if label >= 0:
            head.weight[place], head.bias[place] = head.weight[rows[label]], head.bias[rows[label]]
    for number, layer in enumerate(net.layers):
        owner = net.unit_owner(number)
        mine, theirs = (torch.nonzero(owner == task).squeeze(1) for task in (context.number, source))
        count = min(len(mine), len(theirs))
        layer.weight[mine[:count]], layer.bias[mine[:count]] = layer.weight[theirs[:count]], layer.bias[theirs[:count]]
