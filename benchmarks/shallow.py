"""The fused parallel layout against the same sum branch by branch, and against the sequential layout.

No library has this layer, so the peers are plain PyTorch: a loop over the branches, and the deep stack of the same
weights, which is the paper's own comparison. Sizes are the body of the claims (16 channels, 7 x 7) and one of CIFAR-10
size (32 channels, 16 x 16), K = 8.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.compare import Comparison
from etude.vision.shallow import ResidualStack


class _Loop(nn.Module):
    """y = x + sum_k f_k(x), one branch after the other."""

    def __init__(self, branches: nn.ModuleList):
        super().__init__()
        self.branches = branches

    def forward(self, x: Tensor) -> Tensor:
        total = x
        for branch in self.branches:
            total = total + branch(x)
        return total


def _forward(layer: nn.Module, x: Tensor) -> Callable[[], Any]:
    def run() -> None:
        with torch.no_grad():
            layer(x)

    return run


def _training(layer: nn.Module, x: Tensor) -> Callable[[], Any]:
    def run() -> None:
        layer.zero_grad()
        layer(x).sum().backward()

    return run


def comparisons() -> list[Comparison]:
    listed = []
    for batch, channels, side in ((50, 16, 7), (1, 16, 7), (50, 32, 16)):
        torch.manual_seed(0)
        shallow = ResidualStack(channels=channels, num_layers=8, layout="parallel", branch_scale="init")
        x = torch.randn(batch, channels, side, side)
        inputs = x.clone().requires_grad_()
        where = f"K = 8, {channels} channels, {side} x {side}, batch {batch}"
        for name, make, data in (("forward", _forward, x), ("training step", _training, inputs)):
            for peer, what in ((_Loop(shallow.branches), "branch by branch"), (shallow.to_sequential(), "sequential")):
                listed.append(
                    Comparison(
                        f"{name}: {where}", make(shallow, data), make(peer, data), f"plain PyTorch, {what}",
                        "another function of the same parameters" if what == "sequential" else "",
                    )
                )  # fmt: skip
    return listed
