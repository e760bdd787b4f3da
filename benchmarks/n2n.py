"""What a proposal costs beside what it serves: the policies and the building of a student beside its training.

The 8-convolution teacher of the claims; where torch-pruning is installed, also one pass of its channel removal.
"""

from typing import Any

import torch
from torch import nn

from benchmarks.compare import Comparison
from etude.data import images
from etude.nas.n2n import Distillation, Removal, RemovalPolicy, Shrinkage, ShrinkPolicy, chain

_STAGES = ((16, 16), (32, 32, 32), (48, 48, 48))


def comparisons() -> list[Comparison]:
    """Proposals and students of both stages beside two epochs of distillation."""
    data = images.digits()
    teacher = chain(_STAGES, num_classes=10, in_channels=1, size=(8, 8))
    example = data.train[:2][0]
    removal = Removal(teacher, example, fix=(nn.MaxPool2d,))
    shrinkage = Shrinkage(teacher, example, min_channels=4, fix=(nn.MaxPool2d,))
    evaluate = Distillation(teacher, data.train.take(600), data.val, epochs=2, batch_size=50, scale=None)
    keep = torch.ones(len(removal.table)).long()
    keep[3:6] = 0
    halves = torch.full((len(shrinkage.table), 5), 4)

    def trained() -> float:
        return evaluate(removal(keep))

    note = "600 digits, 2 epochs; the ratio is the share of the search itself"
    found = [
        Comparison("removal: propose 5, build 1", _Proposal(RemovalPolicy(), removal, keep), trained,
                   "training one student", note),
        Comparison("shrinkage: propose 5, build 1", _Proposal(ShrinkPolicy(), shrinkage, halves), trained,
                   "training one student", note),
    ]  # fmt: skip
    try:
        import torch_pruning
    except ImportError:
        return found
    pruned = _Pruning(torch_pruning, teacher, example)
    found.append(
        Comparison("half the filters of every convolution", lambda: shrinkage(halves), pruned, "torch-pruning",
                   "ours draws new weights, torch-pruning keeps a half of the old")
    )  # fmt: skip
    return found


class _Proposal:
    """Five proposals and the building of one student, as much as an update does for a student and more."""

    def __init__(self, policy: Any, build: Any, actions: torch.Tensor):
        self.policy, self.build, self.actions = policy, build, actions
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self) -> nn.Module:
        self.policy.sample(self.build.table.features, self.build.fixed, count=5, generator=self.generator)
        return self.build(self.actions)


class _Pruning:
    """Halves the filters of every convolution by dependency graphs."""

    def __init__(self, torch_pruning: Any, teacher: nn.Module, example: torch.Tensor):
        self.tools, self.teacher, self.example = torch_pruning, teacher, example

    def __call__(self) -> nn.Module:
        import copy

        model = copy.deepcopy(self.teacher)
        pruner = self.tools.pruner.MagnitudePruner(
            model, self.example, importance=self.tools.importance.MagnitudeImportance(p=2), pruning_ratio=0.5,
            ignored_layers=[model[-1]],
        )  # fmt: skip
        pruner.step()
        return model
