"""Compressing a teacher on one's own images: both stages and the final training (paper, figure 1)."""

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from etude.data.kinds import Examples, ImageData
from etude.loop import accuracy, seeded
from etude.loop.evaluation import device_of
from etude.nas.n2n.distillation import Distillation
from etude.nas.n2n.policies import RemovalPolicy, ShrinkPolicy
from etude.nas.n2n.reward import compression_reward
from etude.nas.n2n.running import run_search
from etude.nas.n2n.search import NetworkCompressor, Tried
from etude.nas.n2n.students import FACTORS, Removal, Shrinkage, count_parameters

__all__ = ["Limits", "Student", "best_within", "two_stage"]


@dataclass(frozen=True)
class Limits:
    """The reward of a search: (accuracy, params, epoch) -> `compression_reward` with these references and limits."""

    reference_accuracy: float
    reference_params: int
    max_params: int | None = None
    min_accuracy: float | int | None = None

    def __call__(self, accuracy: float, params: int, epoch: int | None = None) -> float:
        return compression_reward(
            accuracy, params, reference_accuracy=self.reference_accuracy, reference_params=self.reference_params,
            max_params=self.max_params, min_accuracy=self.min_accuracy, epoch=epoch,
        )  # fmt: skip

    def met(self, accuracy: float, params: int) -> bool:
        small = self.max_params is None or params <= self.max_params
        return small and (self.min_accuracy is None or accuracy >= self.min_accuracy)


def best_within(history: Sequence[Tried], limits: Limits) -> Tried | None:
    """The student of the highest reward among those within the limits, the first of equals; None if there is none.

    Rewards are taken anew with these references, as if constraints were hard from the start.
    """
    valid = [
        (limits(tried.accuracy, tried.params), -place, tried)
        for place, tried in enumerate(history)
        if tried.accuracy is not None and tried.params is not None and limits.met(tried.accuracy, tried.params)
    ]
    return max(valid)[2] if valid else None


@dataclass(frozen=True, eq=False)
class Student:
    """A compressed network.

    Attributes:
        model: an ordinary module of the teacher's class, trained; removed layers are `nn.Identity`.
        params: of the student. teacher_params: of the teacher.
        accuracy: of the trained student on the validation split. teacher_accuracy: of the teacher there.
        changes: what was removed and shrunk, a line a layer.
        history: the students tried in "removal" and in "shrinkage".
        removal_policy, shrink_policy: as they are after the search, to begin another one with.
    """

    model: nn.Module
    params: int
    accuracy: float
    teacher_params: int
    teacher_accuracy: float
    changes: tuple[str, ...]
    history: dict[str, list[Tried]]
    removal_policy: RemovalPolicy
    shrink_policy: ShrinkPolicy | None

    @property
    def compression(self) -> float:
        """How many times fewer parameters the student has."""
        return self.teacher_params / self.params

    def report(self) -> str:
        """Sizes, accuracies and changes, for people."""
        head = (
            f"{self.teacher_params:,} -> {self.params:,} parameters ({self.compression:.1f} times fewer); "
            f"validation accuracy {self.teacher_accuracy:.4f} -> {self.accuracy:.4f}"
        )
        return "\n".join([head, *(f"  {line}" for line in self.changes)])


def two_stage(
    teacher: nn.Module,
    data: ImageData,
    *,
    removal_steps: int = 100,
    shrink_steps: int = 100,
    rollouts: int = 5,
    epochs: int = 5,
    final_epochs: int = 100,
    batch_size: int = 200,
    distill_lr: float | int = 5e-4,
    weight_decay: float | int = 5e-4,
    loss: str = "mse_logits",
    scale: float | int | None = 1.0,
    transform: Callable[[tuple[Any, Any]], tuple[Any, Any]] | None = None,
    lr: float | int = 3e-3,
    shrink_lr: float | int | None = None,
    credit: str = "sample",
    baseline: str = "ema",
    max_params: int | None = None,
    min_accuracy: float | int | None = None,
    reference: str = "teacher",
    min_channels: int = 10,
    factors: Sequence[float] = FACTORS,
    fix: tuple[type[nn.Module], ...] = (),
    skip_support: bool | None = None,
    removal_policy: RemovalPolicy | None = None,
    shrink_policy: ShrinkPolicy | None = None,
    seed: int = 0,
    save: str | os.PathLike | None = None,
    workers: int = 1,
    executor: Executor | None = None,
    retries: int = 2,
    retry_on: tuple[type[Exception], ...] = (),
    on_step: Callable[[str, list[Tried]], Any] | None = None,
) -> Student:
    """Finds a small student of a trained teacher: removes layers, then shrinks those that are left, then trains it.

        data = images.image_folder("photos/", size=32)
        student = two_stage(teacher, data, max_params=count_parameters(teacher) // 10, save="search/", workers=2)
        print(student.report(), accuracy(student.model, data.test))
        torch.save(student.model, "student.pt")

    Students are compared on the validation split; the test split is never looked at. The best student of both stages
    within the limits is trained anew for `final_epochs`.

    Args:
        teacher: gives logits; a chain of modules with residual additions or without, as for `layer_table`.
        data: with the pixels that the teacher was trained on.
        removal_steps, shrink_steps: updates of each policy; without the second the first stage is all.
        rollouts: students an update.
        epochs: that a student of the search is trained. final_epochs: that the best one is.
        batch_size, distill_lr, weight_decay, loss, scale, transform: as for `distill`.
        lr, shrink_lr: of the policies; the authors' code shrinks with 0.1. The same if None.
        credit, baseline: as for `NetworkCompressor`.
        max_params, min_accuracy: limits, as for `compression_reward`.
        reference: what accuracy and size are compared with in the second stage's reward: "teacher", or "parent", the
            best student of the first stage, as in the authors' code.
        min_channels, factors: as for `Shrinkage`.
        fix: types of modules that stay as they are; `(nn.MaxPool2d,)` keeps a Linear after pools small.
        skip_support: whether policies read places in residual blocks; whether there are any, if None.
        removal_policy, shrink_policy: policies to begin with, such as those of a search on a smaller teacher; they are
            trained on. New ones if None.
        seed: of proposals, policies and students.
        save: folder that the search is kept in and resumed from.
        workers, executor, retries, retry_on: as for `run_search`.
        on_step: called with "removal" or "shrinkage" and the students of each update.

    Raises:
        TypeError: if `data` is no `ImageData`.
        ValueError: for a teacher that cannot be compressed, or ends in a softmax, and for arguments out of range.
        RuntimeError: if no student within the limits was found.
    """
    if not isinstance(data, ImageData):
        raise TypeError(f"data must be an ImageData, got {type(data).__name__}")
    if reference not in ("teacher", "parent"):
        raise ValueError(f"reference must be 'teacher' or 'parent', got {reference!r}")
    if removal_steps < 1 or shrink_steps < 0:
        raise ValueError(
            f"removal_steps must be positive, shrink_steps not negative, got {removal_steps}, {shrink_steps}"
        )
    train = data.train
    example = (train.inputs[:2] if isinstance(train, Examples) else train[0][0][None]).to(device_of(teacher))
    build = Removal(teacher, example, skip_support=bool(skip_support), fix=fix)
    if skip_support is None and build.table.blocks:
        build = Removal(teacher, example, skip_support=True, fix=fix)
    if build.table.softmax:
        raise ValueError("the teacher ends in a softmax; give the network before it, whose outputs are logits")
    teacher_accuracy, teacher_params = accuracy(teacher, data.val), count_parameters(teacher)
    if teacher_accuracy <= 1 / data.num_classes:
        warnings.warn(
            f"the teacher's validation accuracy is {teacher_accuracy:.4f}, no better than chance among "
            f"{data.num_classes} classes: students will look good beside it",
            stacklevel=2,
        )
    evaluate = Distillation(
        teacher, train, data.val, loss=loss, lr=distill_lr, weight_decay=weight_decay, epochs=epochs,
        batch_size=batch_size, scale=scale, transform=transform, seed=seed,
    )  # fmt: skip
    limits = Limits(teacher_accuracy, teacher_params, max_params, min_accuracy)
    search: dict[str, Any] = {"rollouts": rollouts, "credit": credit, "baseline": baseline, "seed": seed}
    where: dict[str, Any] = {"workers": workers, "executor": executor, "retries": retries, "retry_on": retry_on}
    dim = build.table.features.shape[1]

    def run(stage: str, policy: Any, build: Any, limits: Limits, steps: int, rate: float | int) -> list[Tried]:
        return run_search(
            NetworkCompressor(policy, build, evaluate, limits, lr=rate, **search), steps,
            save=None if save is None else Path(save) / f"{stage}.pt",
            on_step=None if on_step is None else partial(on_step, stage), **where,
        ).history  # fmt: skip

    with seeded(seed):
        removal_policy = removal_policy or RemovalPolicy(dim)
    history = {"removal": run("removal", removal_policy, build, limits, removal_steps, lr)}
    found = best_within(history["removal"], limits)
    parent = found or max(
        (tried for tried in history["removal"] if tried.accuracy is not None),
        key=lambda tried: tried.reward,
        default=None,
    )
    if parent is None:
        raise RuntimeError("no valid student was found by removing layers; the history says why")
    chosen = build(parent.actions) if found else None
    changes = build.changes(parent.actions)
    if shrink_steps:
        start = build(parent.actions)
        shrink = Shrinkage(
            start, example, factors=factors, min_channels=min_channels, skip_support=build.skip_support, fix=fix
        )
        with seeded(seed):
            shrink_policy = shrink_policy or ShrinkPolicy(dim, factors=factors)
        assert parent.accuracy is not None
        assert parent.params is not None
        own = limits
        if reference == "parent":
            own = replace(limits, reference_accuracy=parent.accuracy, reference_params=parent.params)
        rate = lr if shrink_lr is None else shrink_lr
        history["shrinkage"] = run("shrinkage", shrink_policy, shrink, own, shrink_steps, rate)
        smaller = best_within(history["shrinkage"], limits)
        if smaller is not None and best_within([*([found] if found else []), smaller], limits) is smaller:
            chosen = shrink(smaller.actions)
            changes += shrink.changes(smaller.actions)
    if chosen is None:
        raise RuntimeError(f"no student within {max_params} parameters and accuracy {min_accuracy} was found")
    evaluate.fresh(chosen, final_epochs)
    return Student(
        chosen.eval(), count_parameters(chosen), accuracy(chosen, data.val), teacher_params, teacher_accuracy,
        tuple(changes), history, removal_policy, shrink_policy,
    )  # fmt: skip
