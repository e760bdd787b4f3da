"""Attention over a quarter of the sources against dense attention: torch's fused kernel, and the two products by hand.

Causal, four heads of 64, batch 1, at 1,024 and 4,096 tokens; drawing the sets is included. No library has this layer.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.compare import Comparison
from etude.sequence.ssa import sample_sources, subsampled_attention


def _sampled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return subsampled_attention(q, k, v, sample_sources(q.shape[2], fraction=0.25, causal=True), causal=True)


def _fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def _by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def _forward(attention: Callable[..., Tensor], parts: list[Tensor]) -> Callable[[], Any]:
    def run() -> None:
        with torch.no_grad():
            attention(*parts)

    return run


def _training(attention: Callable[..., Tensor], parts: list[Tensor]) -> Callable[[], Any]:
    inputs = [part.clone().requires_grad_() for part in parts]

    def run() -> None:
        for part in inputs:
            part.grad = None
        attention(*inputs).sum().backward()

    return run


def comparisons() -> list[Comparison]:
    listed = []
    for n in (1024, 4096):
        torch.manual_seed(0)
        parts = [torch.randn(1, 4, n, 64) for _ in range(3)]
        for name, make in (("forward", _forward), ("forward and backward", _training)):
            for peer, what in ((_by_hand, "the math kernel"), (_fused, "the fused kernel")):
                listed.append(
                    Comparison(
                        f"{name}: {n:,} tokens, a quarter of the sources", make(_sampled, parts), make(peer, parts),
                        f"PyTorch, dense, {what}", "another function of the same parameters",
                    )
                )  # fmt: skip
    return listed
