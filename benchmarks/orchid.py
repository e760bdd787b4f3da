"""An Orchid layer against attention with torch's fused kernel, and its cosine transform against a matrix.

64 wide, batch 1, projections included. No library has this layer; the authors' block is not a package.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.compare import Comparison
from etude.nn.transformer import SelfAttention
from etude.sequence.orchid import Orchid, dct

_DIM = 64


def _forward(layer: nn.Module, x: Tensor) -> Callable[[], Any]:
    def run() -> None:
        with torch.no_grad():
            layer(x)

    return run


def _training(layer: nn.Module, x: Tensor) -> Callable[[], Any]:
    x = x.clone().requires_grad_()

    def run() -> None:
        layer.zero_grad(set_to_none=True)
        layer(x).sum().backward()

    return run


def comparisons() -> list[Comparison]:
    listed = []
    for length in (1024, 4096):
        torch.manual_seed(0)
        x = torch.randn(1, length, _DIM)
        attention = SelfAttention(_DIM, 1)
        for kind in ("type1", "type2"):
            layer = Orchid(_DIM, length, kind=kind)
            for name, make in (("forward", _forward), ("forward and backward", _training)):
                listed.append(
                    Comparison(
                        f"{name}, {kind}: {length:,} tokens", make(layer, x), make(attention, x),
                        "PyTorch, attention, the fused kernel", "another function",
                    )
                )  # fmt: skip
        matrix = dct(torch.eye(length))
        signal = x.mT.contiguous()
        listed.append(
            Comparison(
                f"cosine transform of {_DIM} signals of {length:,}",
                lambda signal=signal: dct(signal),  # type: ignore[misc]
                lambda signal=signal, matrix=matrix: signal @ matrix,  # type: ignore[misc]
                "PyTorch, product with the matrix", "as the released block takes it",
            )
        )  # fmt: skip
    return listed
