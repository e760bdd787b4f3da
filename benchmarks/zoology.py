"""Recall data, gated convolutions, Based and selected attention beside the authors' code and PyTorch's own.

The authors' package is not on PyPI (`pip install git+https://github.com/HazyResearch/zoology`); where it is missing,
its lines are left out. Forward and backward passes of layers of width 64 with the same weights.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.compare import Comparison
from etude.nn.mixers import build_mixer
from etude.sequence import load_mixers
from etude.sequence.zoology import BaseConv, Based, Hyena, LongConv, SelectiveAttention, mqar, slot_probabilities

_DIM = 64


def _training(layer: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Any]:
    x = x.clone().requires_grad_()

    def run() -> None:
        x.grad = None
        layer(x).sum().backward()

    return run


def _inference(layer: nn.Module, x: Tensor) -> Callable[[], Any]:
    layer.eval()

    def run() -> None:
        with torch.no_grad():
            layer(x)

    return run


def _by_rows(count: int, vocab: int, length: int, pairs: int) -> None:
    """The draws of `mqar`, one example after another with NumPy's choice without replacement."""
    rng = np.random.default_rng(0)
    space = (length - 2 * pairs) // 2
    p = slot_probabilities(space, 0.01).numpy()
    half = vocab // 2
    inputs, labels = np.zeros((count, length), dtype=np.int64), np.full((count, length), -100)
    for row in range(count):
        keys = 1 + rng.choice(half - 1, pairs, replace=False)
        values = half + rng.choice(vocab - half, pairs, replace=False)
        places = 2 * pairs + 2 * rng.choice(space, pairs, replace=False, p=p)
        inputs[row, 0 : 2 * pairs : 2], inputs[row, 1 : 2 * pairs : 2] = keys, values
        inputs[row, places], labels[row, places] = keys, values


def _depthwise(layer: LongConv) -> Callable[[Tensor], Tensor]:
    """The same convolution by PyTorch's own, tap by tap."""

    def run(x: Tensor) -> Tensor:
        kernel = layer.filter.flip(1)[:, None]
        signal = F.pad(x.transpose(1, 2), (kernel.shape[-1] - 1, 0))
        return F.conv1d(signal, kernel, groups=x.shape[-1]).transpose(1, 2) + x

    return run


def _features_one_by_one(layer: Based) -> Callable[[Tensor], Tensor]:
    """The same function by sums of feature products over time, the textbook form of linear attention."""

    def phi(x: Tensor) -> Tensor:
        x = x * x.shape[-1] ** -0.25
        return torch.cat([torch.ones_like(x[..., :1]), x, (x[..., None] * x[..., None, :]).flatten(-2) * 0.5**0.5], -1)

    def run(x: Tensor) -> Tensor:
        q, k, v = phi(layer.q(x)), phi(layer.k(x)), layer.v(x)
        sums = torch.einsum("blf,blv->blfv", k, v).cumsum(1)
        y = torch.einsum("blf,blfv->blv", q, sums) / (q * k.cumsum(1)).sum(-1, keepdim=True)
        return layer.out(y)

    return run


def comparisons() -> list[Comparison]:
    load_mixers()
    torch.manual_seed(0)
    listed = [
        Comparison(
            "1,000 examples of MQAR, 256 tokens, 16 pairs of 8,192", lambda: mqar(8192, 1000, 256, 16, seed=0),
            lambda: _by_rows(1000, 8192, 256, 16), "NumPy, row by row", "as the authors draw them",
        )
    ]  # fmt: skip
    x = torch.randn(8, 512, _DIM)
    conv = LongConv(_DIM, 512)
    torch.testing.assert_close(conv(x), _depthwise(conv)(x), atol=1e-3, rtol=1e-3)
    listed.append(
        Comparison("long convolution, 8 x 512", _training(conv, x), _training(_depthwise(conv), x), "torch conv1d")
    )
    based = Based(_DIM, feature_dim=8)
    naive, short = _features_one_by_one(based), x[:2, :256]
    torch.testing.assert_close(based(short), naive(short), atol=1e-4, rtol=1e-3)
    listed.append(
        Comparison("Based, 2 x 256, 8 features", _training(based, short), _training(naive, short), "PyTorch, cumsum")
    )
    x = torch.randn(4, 1024, _DIM)
    dense = build_mixer("attention", _DIM, max_len=1024)
    note = "another function: 32 of 1,024 tokens query"
    selective = SelectiveAttention(_DIM)
    listed.append(
        Comparison(
            "selected attention, 4 x 1,024, inference", _inference(selective, x), _inference(dense, x),
            "PyTorch, fused dense attention", note,
        )
    )  # fmt: skip
    return listed + _authors()


def _authors() -> list[Comparison]:
    try:
        from zoology.mixers.base_conv import BaseConv as TheirBaseConv
        from zoology.mixers.hyena import Hyena as TheirHyena
    except ImportError:
        return []
    x = torch.randn(16, 256, _DIM)
    base, their_base = BaseConv(_DIM, 256, kernel_sizes=-1), TheirBaseConv(_DIM, l_max=256, kernel_size=-1)
    base.projection.load_state_dict(their_base.projection.state_dict())
    base.conv.network.load_state_dict(their_base.conv.mlp.state_dict())
    hyena, their_hyena = Hyena(_DIM, 256), TheirHyena(_DIM, l_max=256)
    hyena.in_proj.load_state_dict(their_hyena.in_proj.state_dict())
    hyena.out.load_state_dict(their_hyena.out_proj.state_dict())
    hyena.short.conv.load_state_dict(their_hyena.short_filter.state_dict())
    linear = [layer for layer in their_hyena.filter_fn.implicit_filter if isinstance(layer, nn.Linear)]
    for ours, theirs in zip([*hyena.filter.layers, hyena.filter.out], linear):
        ours.load_state_dict(theirs.state_dict())
    hyena.skip.data.copy_(their_hyena.filter_fn.bias)
    listed = []
    for name, ours, theirs in (("BaseConv, long kernel", base, their_base), ("Hyena", hyena, their_hyena)):
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-4, rtol=1e-3)
        listed.append(Comparison(f"{name}, 16 x 256", _training(ours, x), _training(theirs, x), "the authors' code"))
    return listed
