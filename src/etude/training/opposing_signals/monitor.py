"""Finding the groups: which examples' losses change most in a step, and whose gradients oppose each other.

Rosenfeld & Risteski, "Outliers with Opposing Signals Have an Outsized Effect on Neural Network Optimization", ICLR
2024, arXiv:2311.04163, section 2. With l_i(t) the loss of example i before update t,

    Delta_i = l_i(t + 1) - l_i(t)                                                                         (1)
    up = the k largest Delta_i,  down = the k most negative                                               (2)

Selected by the change of the loss, not by the loss: an outlier that stays wrong does not move. To first order a step
of gradient descent gives Delta_i = -eta g_i . grad L, so that `up` and `down` lie on two sides of grad L in any run;
their opposition says something beside that of another run at the same step size (`group_opposition`), not by itself.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.optim import Optimizer

from etude.training.opposing_signals.examples import FixedSet, LossFn, losses_and_predictions, warn_of_coupling

__all__ = [
    "Group",
    "OpposingSignalMonitor",
    "StepRecord",
    "StepReport",
    "change_share",
    "flip_count",
    "oscillation",
]


def change_share(delta: Float[Tensor, " n"], rows: Int64[Tensor, " k"]) -> float:
    """The part of all loss change, sum |Delta|, that the examples at `rows` carry; 0 where nothing changed."""
    total = float(delta.abs().sum())
    return float(delta[rows].abs().sum()) / total if total else 0.0


def flip_count(curve: Float[Tensor, " steps"]) -> int:
    """How often the curve turns: step-to-step changes of the other sign than the step before.

    Turning at every step is no instability by itself: a stable direction of curvature above 1 / eta alternates too.
    """
    signs = curve.diff().sign()
    return int((signs[1:] * signs[:-1] < 0).sum())


def oscillation(curve: Float[Tensor, " steps"]) -> float:
    """Amplitude of a curve's alternation from step to step: the mean of |second difference| / 4.

    a for a curve that swings between m - a and m + a, near 0 for one that drifts smoothly, 0 for under three steps.
    """
    second = curve.diff(n=2)
    return float(second.abs().mean()) / 4 if len(second) else 0.0


@dataclass(frozen=True, eq=False)
class StepRecord:
    """The losses around one update.

    Attributes:
        step: number of the update.
        before, after: the loss of each example.
        predicted_before, predicted_after: the predicted classes; None where the outputs are no class scores.
        k: size of each group.
    """

    step: int
    before: Float[Tensor, " n"]
    after: Float[Tensor, " n"]
    predicted_before: Int64[Tensor, " n"] | None
    predicted_after: Int64[Tensor, " n"] | None
    k: int

    @property
    def delta(self) -> Float[Tensor, " n"]:
        """Eq. (1)."""
        return self.after - self.before

    @property
    def up(self) -> Int64[Tensor, " k"]:
        """Rows of the k examples whose loss rose most, the most first, Eq. (2)."""
        return self.delta.topk(self.k).indices

    @property
    def down(self) -> Int64[Tensor, " k"]:
        """Rows of the k examples whose loss fell most, the most first, Eq. (2)."""
        return (-self.delta).topk(self.k).indices

    @property
    def rising(self) -> float:
        """Fraction of the examples whose loss rose."""
        return (self.delta > 0).double().mean().item()

    @property
    def change(self) -> float:
        """Change of the mean loss."""
        return self.delta.double().mean().item()

    @property
    def share(self) -> float:
        """The part of all loss change that the two groups carry."""
        return change_share(self.delta, torch.cat([self.up, self.down]))


@dataclass(frozen=True, eq=False)
class Group:
    """A group in words.

    Attributes:
        rows: its examples.
        change: mean change of its losses.
        classes: how many examples of each class.
        mistakes: (predicted after the step, true class) -> how many examples; empty without class scores.
    """

    rows: Int64[Tensor, " k"]
    change: float
    classes: dict[int, int]
    mistakes: dict[tuple[int, int], int]


@dataclass(frozen=True, eq=False)
class StepReport:
    """What one update did.

    Attributes:
        step: number of the update.
        loss_before, loss_after: mean losses.
        rising: fraction of the examples whose loss rose.
        share: part of all loss change that the two groups carry.
        up, down: the groups.
    """

    step: int
    loss_before: float
    loss_after: float
    rising: float
    share: float
    up: Group
    down: Group

    def text(self, classes: Sequence[str] | None = None) -> str:
        """The report in a few lines, with names of the classes if given."""

        def name(label: int) -> str:
            return str(label) if classes is None else classes[label]

        lines = [
            f"step {self.step}: loss {self.loss_before:.4f} -> {self.loss_after:.4f}, {self.rising:.0%} of the "
            f"examples rise, the groups carry {self.share:.0%} of the change"
        ]
        for word, group in (("up", self.up), ("down", self.down)):
            members = ", ".join(f"{name(label)} {count}" for label, count in group.classes.items())
            lines.append(f"  {word:<4} {group.change:+.4f}: {members}")
            for (predicted, true), count in group.mistakes.items():
                if predicted != true:
                    lines.append(f"       {count} x {name(true)} taken for {name(predicted)}")
        return "\n".join(lines)


class OpposingSignalMonitor:
    """Watches the loss of every example of a fixed set from update to update.

    Around the updates of one's own loop, with any optimizer:

        monitor = OpposingSignalMonitor(model, cross_entropy, x, y)
        for batch in loader:
            monitor.step_begin()
            ...                      # forward, backward, optimizer.step()
            record = monitor.step_end()

    or attached to the optimizer: `monitor.attach(optimizer, every=10)`. A record costs one forward pass over the set,
    two if the update before was not watched; `step_begin(losses)` takes over losses that the loop has computed. The
    model is looked at in the mode it is in and not changed. Small batches hide the groups in their noise: the paper
    trains with full or large ones.

    Args:
        model: the network that is trained.
        loss_fn: (outputs, targets) -> one loss per example.
        x: inputs; or a `DataLoader`, as for `FixedSet`, without `y`.
        y: targets.
        k: size of each group: a fraction of the examples in (0, 0.5], or a count.
        batch_size: examples per forward pass; all at once if None.

    Raises:
        ValueError: if the two groups would be larger than the set, or `k` is not positive.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn,
        x: Any,
        y: Tensor | None = None,
        *,
        k: float | int = 0.02,
        batch_size: int | None = None,
    ):
        self.examples = FixedSet(x if y is None else (x, y), batch_size)
        n = len(self.examples)
        if isinstance(k, bool) or not k > 0:
            raise ValueError(f"k must be a fraction in (0, 0.5] or a positive count, got {k}")
        self.k = max(1, round(k * n)) if isinstance(k, float) else k
        if 2 * self.k > n:
            raise ValueError(f"two groups of {self.k} examples need at least {2 * self.k} examples, there are {n}")
        self.model, self.loss_fn = model, loss_fn
        self.records: list[StepRecord] = []
        self.targets = self._targets()
        self._count = 0
        self._before: tuple[Tensor, Tensor | None] | None = None
        self._versions: tuple[Any, ...] = ()
        self._begun = False
        self._handles: list[Any] = []
        warn_of_coupling(model, self.examples.chunks)

    def step_begin(self, losses: Tensor | None = None) -> None:
        """Call before an update.

        Args:
            losses: the loss of each example at the present parameters, if the loop has computed them
                (`full_batch_backward` returns them). Predictions before the step are then unknown unless the update
                before was watched.
        """
        if self._begun:
            raise RuntimeError(f"step_begin was called twice; step {self._count} has no step_end")
        # The losses after one update are those before the next, as long as no parameter has been written to.
        current = self._before is not None and self._versions == self._state()
        if losses is not None:
            if losses.shape != (len(self.examples),):
                raise ValueError(
                    f"losses must have shape ({len(self.examples)},), one per example, got {tuple(losses.shape)}"
                )
            predicted = self._before[1] if current and self._before is not None else None
            self._before = losses.detach(), predicted
        elif not current:
            self._before = losses_and_predictions(self.model, self.loss_fn, self.examples)
        self._begun = True

    def step_end(self) -> StepRecord:
        """Call after the update.

        Raises:
            FloatingPointError: if a loss is not finite; the message names the step.
        """
        if not self._begun or self._before is None:
            raise RuntimeError("step_end without step_begin")
        after = losses_and_predictions(self.model, self.loss_fn, self.examples)
        bad = int((~torch.isfinite(after[0])).sum())
        if bad:
            raise FloatingPointError(
                f"after step {self._count} the losses of {bad} of {len(self.examples)} examples are not finite: "
                "the step size is too large"
            )
        record = StepRecord(self._count, self._before[0], after[0], self._before[1], after[1], self.k)
        self.records.append(record)
        self._before, self._versions, self._begun = after, self._state(), False
        self._count += 1
        return record

    def attach(self, optimizer: Optimizer, *, every: int = 1) -> "OpposingSignalMonitor":
        """From here on watches updates 0, `every`, 2 `every`, ... of the optimizer."""
        if every < 1:
            raise ValueError(f"every must be positive, got {every}")
        if self._handles:
            raise RuntimeError("the monitor is attached already; remove() it first")

        def before(*_: Any) -> None:
            if self._count % every == 0:
                self.step_begin()

        def after(*_: Any) -> None:
            if self._begun:
                self.step_end()
            else:
                self._count += 1

        self._handles = [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]
        return self

    def remove(self) -> None:
        """Detaches the monitor; its records stay."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def record(self, step: int = -1) -> StepRecord:
        """The record of update `step`; the last one by default."""
        if not self.records:
            raise ValueError("no update has been watched yet")
        if step == -1:
            return self.records[-1]
        for record in self.records:
            if record.step == step:
                return record
        raise ValueError(f"update {step} was not watched; watched are {self.steps[0]}..{self.steps[-1]}")

    @property
    def steps(self) -> list[int]:
        """The watched updates."""
        return [record.step for record in self.records]

    def groups(self, step: int = -1) -> tuple[Int64[Tensor, " k"], Int64[Tensor, " k"], Float[Tensor, " n"]]:
        """Rows of `up` and of `down`, and all loss changes, of update `step`."""
        record = self.record(step)
        return record.up, record.down, record.delta

    def members(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets of examples, as `group_opposition` and `sharpness` take them."""
        return self.examples.take(rows)

    def most_unstable(self) -> StepRecord:
        """The record in which the mean loss rose most (or fell least)."""
        self.record()
        return max(self.records, key=lambda record: record.change)

    def group_curve(self, rows: Tensor) -> Float[Tensor, " records"]:
        """Mean loss of the examples at `rows` after each watched update."""
        self.record()
        return torch.stack([record.after[rows].mean() for record in self.records])

    def report(self, step: int = -1) -> StepReport:
        """Update `step` in words and counts."""
        record = self.record(step)
        return StepReport(
            record.step, record.before.mean().item(), record.after.mean().item(), record.rising, record.share,
            self._described(record, record.up), self._described(record, record.down),
        )  # fmt: skip

    def _described(self, record: StepRecord, rows: Tensor) -> Group:
        classes: dict[int, int] = {}
        mistakes: dict[tuple[int, int], int] = {}
        if self.targets is not None:
            labels = self.targets[rows.cpu()].tolist()
            classes = dict(Counter(labels).most_common())
            if record.predicted_after is not None:
                mistakes = dict(Counter(zip(record.predicted_after[rows].tolist(), labels)).most_common())
        return Group(rows, record.delta[rows].double().mean().item(), classes, mistakes)

    def _targets(self) -> Tensor | None:
        """The classes, if the targets are labels."""
        labels = torch.empty(len(self.examples), dtype=torch.int64)
        for _, targets, rows in self.examples:
            if not isinstance(targets, Tensor) or targets.ndim != 1 or targets.is_floating_point():
                return None
            labels[rows] = targets.cpu().long()
        return labels

    def _state(self) -> tuple[Any, ...]:
        """Changes whenever a parameter or a buffer is written to or replaced, or the mode of the model changes.

        Buffers count in evaluation mode only: in training mode batch norm writes them and does not read them.
        """
        tensors = list(self.model.parameters()) + ([] if self.model.training else list(self.model.buffers()))
        return self.model.training, *((tensor.data_ptr(), tensor._version) for tensor in tensors)
