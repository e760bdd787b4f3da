"""The policies: one mechanism, and for each property of lifelong learning a way of setting it.

In the rules, `new` is the task at hand and `old` are those before it; see `groups` for the selectors. Policies that
look at similarity or train once more are in `transfer_policies` and `phases`.

Sources: sections on the policies of Ling & Bohn, arXiv:2105.00157; EWC: Kirkpatrick et al., arXiv:1612.00796, 2017.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from etude.transfer.importance import diagonal_fisher
from etude.transfer.lifelong.groups import MASKED, Rules
from etude.transfer.lifelong.learner import Context, State
from etude.transfer.lifelong.network import TaskView
from etude.transfer.lifelong.policy import Policy

__all__ = ["EWC", "FineTune", "GracefulForgetting", "Joint", "NonForgetting", "RainMan", "SleepDeprivation", "Uniform"]

_INF = math.inf


@dataclass(frozen=True)
class NonForgetting(Policy):
    """Old tasks are frozen and read nothing new; new units and the links into them learn. Forgetting is zero."""

    def rules(self, number: int, state: State | None = None) -> Rules:
        return {
            "*[old->old]": _INF,
            "*[new->old]": MASKED,
            "*[old->new]": 0.0,
            "*[new->new]": 0.0,
        }


@dataclass(frozen=True)
class Uniform(Policy):
    """All tasks share all units, whose weights have one b: 0 is fine-tuning, inf trains heads only.

    The first task takes the whole pool (or, without one, `units_per_task`) and is free; heads of old tasks have b too.

    Args:
        b: 0 to inf.

    Raises:
        ValueError: if b is negative or NaN.
    """

    b: float | int = 0.0

    def __post_init__(self) -> None:
        if not self.b >= 0:
            raise ValueError(f"b must lie in [0, inf], got {self.b}")

    def rules(self, number: int, state: State | None = None) -> Rules:
        held = 0.0 if number == 1 else self.b
        return {"G[*->*]": held, "H[*->old]": held, "H[*->new]": 0.0}

    def units(self, context: Context) -> int | None:
        if context.number > 1:
            return 0
        return None if context.net.growing else context.net.num_free()


@dataclass(frozen=True)
class FineTune(Policy):
    """b = 0 everywhere: ordinary training on one task after the other."""

    def rules(self, number: int, state: State | None = None) -> Rules:
        return {"*[*->*]": 0.0}

    def units(self, context: Context) -> int | None:
        return Uniform().units(context)


@dataclass(frozen=True)
class Joint(FineTune):
    """b = 0 everywhere and the data of all tasks so far: ordinary multi-task training, or pre-training."""

    data: ClassVar[str] = "all"


@dataclass(frozen=True)
class EWC(Policy):
    """Elastic weight consolidation: b = lambda / 2 times the Fisher information of each weight.

    The penalty is  sum_k lambda / 2 sum_i F_k,i (theta_i - theta_k,i)^2  over the tasks k so far. avalanche's EWCPlugin
    has no half: its `ewc_lambda` is lambda / 2, its modes "separate" and "online" are those here.

    Args:
        lam: lambda, finite and not negative.
        mode: "separate" keeps every task's term, "online" lets older ones fade by `decay`.
        decay: of "online", in [0, 1].

    Raises:
        ValueError: for values out of range.
    """

    lam: float | int = 100.0
    mode: str = "separate"
    decay: float | int = 0.9
    keeps_targets: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.lam < _INF:
            raise ValueError(f"lam must be finite and not negative, got {self.lam}")
        if self.mode not in ("separate", "online"):
            raise ValueError(f"mode must be 'separate' or 'online', got {self.mode!r}")

    def rules(self, number: int, state: State | None = None) -> Rules:
        # The importances, zero until the first task is learned, multiply this.
        return {"*[*->*]": 0.0 if number == 1 else self.lam / 2}

    def units(self, context: Context) -> int | None:
        return Uniform().units(context)

    def after_task(self, context: Context) -> None:
        view = TaskView(context.net, context.task)
        fisher = diagonal_fisher(view, context.inputs, context.labels)
        importance = {name.removeprefix("net."): value for name, value in fisher.items()}
        context.consolidation.consolidate(importance, decay=1.0 if self.mode == "separate" else self.decay)


@dataclass(frozen=True)
class GracefulForgetting(Policy):
    """Memory fades: while task t is learned, the units of task i have b = b0 gamma^(t - i). Old heads stay as they are.

    The exponent counts from when the task was last learned or used (`LifelongLearner.use`). With `release`, the oldest
    tasks give up their units where the pool has too few for a new one.

    Args:
        gamma: 0 to 1; 1 never forgets.
        b0: where b starts.
        release: give units of the oldest tasks back when room is needed.

    Raises:
        ValueError: if gamma lies outside [0, 1], or b0 is negative, or infinite with gamma below 1.
    """

    gamma: float | int = 0.5
    b0: float | int = 100.0
    release: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma must lie in [0, 1], got {self.gamma}")
        if not self.b0 >= 0 or (math.isinf(self.b0) and self.gamma < 1):
            raise ValueError(f"b0 must be >= 0, and finite unless gamma is 1; got b0={self.b0}, gamma={self.gamma}")

    def rules(self, number: int, state: State | None = None) -> Rules:
        found: dict[str, float | int | str] = dict(NonForgetting().rules(number))
        used = {} if state is None else state.last_used
        for task in range(1, number):
            # Rounded up to one step: a task used while this one is at hand has faded by one all the same.
            age = max(number - used.get(task, task), 1)
            for source in range(1, task + 1):
                found[f"G[{source}->{task}]"] = self.b0 * self.gamma**age
        return found

    def units(self, context: Context) -> int | None:
        net = context.net
        if self.release and not net.growing:
            oldest = sorted(net.tasks, key=lambda task: context.state.last_used[net.number(task)])
            for task in oldest:
                if min(net.num_free(layer) for layer in range(net.num_layers)) >= net.units_per_task:
                    break
                net.release(task)
        return None


@dataclass(frozen=True)
class RainMan(Policy):
    """A memory without understanding: every task gets many units of its own, frozen for good, and reads no other's.

    Args:
        n_units: of every task.
    """

    n_units: int = 256

    def rules(self, number: int, state: State | None = None) -> Rules:
        return {"*[old->old]": _INF, "*[new->old]": MASKED, "*[old->new]": MASKED, "*[new->new]": 0.0}

    def units(self, context: Context) -> int | None:
        return self.n_units


@dataclass(frozen=True)
class SleepDeprivation(Policy):
    """After a task, consolidation is skipped with probability p: that task's weights stay at b = 0 ever after (ours).

    Args:
        p: 0 to 1.

    Raises:
        ValueError: if p lies outside [0, 1].
    """

    p: float | int = 0.5
    adds_on: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ValueError(f"p must lie in [0, 1], got {self.p}")

    def rules(self, number: int, state: State | None = None) -> Rules:
        sleepless = set() if state is None else state.sleepless
        return {
            f"*[{source}->{task}]": 0.0 for task in sorted(sleepless) for source in range(1, task + 1) if task < number
        }

    def after_task(self, context: Context) -> None:
        if float(torch.rand((), generator=context.generator)) < self.p:
            context.state.sleepless.add(context.number)
