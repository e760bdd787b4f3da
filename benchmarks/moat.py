"""MOAT against a plain version: the same layers written as the official code reads.

The peer is in channels-first layout, has three projections for queries, keys and values, one-hot products for its
position bias, and weights of attention computed step by step; it shares its weights with ours and its outputs are
checked to be ours. Networks are tiny-MOAT-0 on 224 x 224 images; the single block is the one of stage 3 of MOAT-0
(384 channels on 14 x 14 pixels). The note gives the peak memory of one call, of ours and of the peer, as the
allocator reports it.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.compare import Comparison
from etude.vision.moat import MBConv, MOATBlock, tiny_moat_0


def _bias(table: Tensor, height: int, width: int) -> Tensor:
    """Relative position bias by one-hot look-ups along each axis."""
    size = (2 * height - 1, 2 * width - 1)
    resized = F.interpolate(table[None], size=size, mode="bilinear", align_corners=False)[0]
    lookups = []
    for length in (height, width):
        offset = torch.arange(length)[None, :] - torch.arange(length)[:, None] + length - 1
        lookups.append(F.one_hot(offset, 2 * length - 1).to(table.dtype))
    out = torch.einsum("nhw,ixh->nixw", resized, lookups[0])
    return torch.einsum("nixw,jyw->nijxy", out, lookups[1]).reshape(len(table), height * width, height * width)


def _attention(layer: Any, x: Tensor) -> Tensor:
    batch, _, height, width = x.shape
    tokens = x.permute(0, 2, 3, 1).reshape(batch, height * width, layer.dim)
    q, k, v = (
        F.linear(tokens, weight, bias).view(batch, -1, layer.num_heads, layer.head_dim).transpose(1, 2)
        for weight, bias in zip(layer.qkv.weight.chunk(3), layer.qkv.bias.chunk(3))
    )
    logits = (q * layer.head_dim**-0.5) @ k.transpose(-2, -1) + _bias(layer.rel_pos, height, width)
    mixed = torch.softmax(logits, dim=-1) @ v
    out = layer.proj(mixed.transpose(1, 2).reshape(batch, height * width, layer.dim))
    return out.view(batch, height, width, layer.dim).permute(0, 3, 1, 2).contiguous()


def _mbconv(block: MBConv, x: Tensor) -> Tensor:
    out = F.gelu(block.expand_norm(block.expand(block.pre_norm(x))))
    out = F.gelu(block.depthwise_norm(block.depthwise(out)))
    if hasattr(block.se, "reduce"):
        out = out * torch.sigmoid(block.se.expand(F.silu(block.se.reduce(out.mean((2, 3), keepdim=True)))))
    return block.shortcut(x) + block.shrink(out)


def _block(block: Any, x: Tensor) -> Tensor:
    if isinstance(block, MBConv):
        return _mbconv(block, x)
    y = _mbconv(block.conv, x)
    norm = block.attention_norm
    normal = F.layer_norm(y.permute(0, 2, 3, 1), norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    return y + _attention(block.attention, normal.permute(0, 3, 1, 2).contiguous())


class _Plain(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        model: Any = self.model
        if isinstance(model, MOATBlock):
            return _block(model, x)
        out = model.stem(x)
        for stage in model.stages:
            for block in stage:
                out = _block(block, out)
        return model.head(model.norm(out.mean((2, 3))))


def _forward(model: nn.Module, x: Tensor) -> Callable[[], Any]:
    def run() -> None:
        model.eval()
        with torch.no_grad():
            model(x)

    return run


def _training(model: nn.Module, x: Tensor) -> Callable[[], Any]:
    def run() -> None:
        model.train()
        model.zero_grad()
        model(x).sum().backward()

    return run


def peak_mebibytes(call: Callable[[], Any], model: nn.Module) -> float:
    """Most memory that the call held at a time beyond what was held before it, gradients included, in MiB."""
    call()
    model.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        call()
    changes = [event for event in measured.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / 2**20


def comparisons() -> list[Comparison]:
    listed = []
    cases: tuple[tuple[str, Callable[[], nn.Module], tuple[int, ...], tuple[int, ...]], ...] = (
        ("tiny-MOAT-0, 224 x 224", tiny_moat_0, (3, 224, 224), (1, 32)),
        ("block, 384 channels on 14 x 14", lambda: MOATBlock(in_dim=384, dim=384), (384, 14, 14), (1, 32)),
    )
    for name, make, shape, batches in cases:
        torch.manual_seed(0)
        ours = make()
        plain = _Plain(ours)
        for batch in batches:
            x = torch.randn(batch, *shape)
            ours.eval()
            with torch.no_grad():
                torch.testing.assert_close(ours(x), plain(x), rtol=1e-3, atol=1e-4)
            for what, prepare in (("forward", _forward), ("training step", _training)):
                mine, other = prepare(ours, x), prepare(plain, x)
                peaks = [peak_mebibytes(call, ours) for call in (mine, other)]
                note = f"peak memory {peaks[0]:.1f} MiB, peer {peaks[1]:.1f} MiB"
                listed.append(Comparison(f"{what}: {name}, batch {batch}", mine, other, "plain version", note))
    return listed
