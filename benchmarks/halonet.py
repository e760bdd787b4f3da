"""Halo attention against timm's `HaloAttn` and against dense attention under a mask.

The sizes are the attention layers of the H1 network on 256 x 256 images (blocks of 8, halos of 3): stage 1 has 64
channels on 64 x 64 pixels, stage 2 has 128 on 32 x 32, stage 3 has 256 on 16 x 16. Weights are shared with the peer,
whose zero-padded keys stay in the softmax here too (`mask_padding=False`). The dense peer gets the same relative
logits and window as an additive mask, which is made inside the timed call because it depends on the queries.
"""

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.compare import Comparison
from etude.vision.halonet import HaloAttention

_BLOCK, _HALO = 8, 3


def timm_halo_attention() -> type[nn.Module]:
    """timm's layer, loaded without the rest of timm, which needs torchvision's compiled operators.

    Raises:
        ImportError: if timm is not installed.
    """
    found = importlib.util.find_spec("timm")
    if found is None or found.origin is None:
        raise ImportError("timm is not installed")
    package = types.ModuleType("timm_layers")
    package.__path__ = [str(Path(found.origin).parent / "layers")]
    sys.modules["timm_layers"] = package
    return importlib.import_module("timm_layers.halo_attn").HaloAttn


def _copy_weights(ours: HaloAttention, peer: Any) -> None:
    ours.q.load_state_dict(peer.q.state_dict())
    ours.kv.load_state_dict(peer.kv.state_dict())
    with torch.no_grad():
        ours.rel_h.copy_(peer.pos_embed.height_rel.roll(-ours.halo_size, 0))
        ours.rel_w.copy_(peer.pos_embed.width_rel.roll(-ours.halo_size, 0))


class _MaskedDense(nn.Module):
    """The same function as a halo layer with masked padding, by dense attention over all pixels."""

    def __init__(self, layer: HaloAttention, size: int):
        super().__init__()
        self.layer = layer
        pixel = torch.arange(size)
        block = pixel.div(_BLOCK, rounding_mode="floor") * _BLOCK
        offset = pixel[None, :] - pixel[:, None]
        near = (pixel[None, :] >= block[:, None] - _HALO) & (pixel[None, :] < block[:, None] + _BLOCK + _HALO)
        self.register_buffer("row", (offset + layer.window_size - 1).clamp(0, 2 * layer.window_size - 2))
        self.register_buffer("far", torch.zeros(near.shape).masked_fill_(~near, float("-inf")))

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        batch, _, height, width = x.shape
        q = layer.q(x).unflatten(1, (layer.num_heads, -1)).permute(0, 1, 3, 4, 2)
        k, v = layer.kv(x).unflatten(1, (layer.num_heads, -1)).flatten(3).transpose(2, 3).chunk(2, dim=-1)
        by_row = torch.einsum("bhyxd,yid->bhyxi", q, layer.rel_h[self.row]) + self.far[:, None, :]
        by_column = torch.einsum("bhyxd,xjd->bhyxj", q, layer.rel_w[self.row]) + self.far
        bias = (by_row.unsqueeze(-1) + by_column.unsqueeze(-2)).flatten(4).flatten(2, 3)
        out = F.scaled_dot_product_attention(q.flatten(2, 3), k, v, attn_mask=bias)
        return out.transpose(2, 3).reshape(batch, -1, height, width)


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
    for batch, dim, heads, size in (
        (1, 64, 4, 64),
        (1, 128, 8, 32),
        (1, 256, 16, 16),
        (32, 128, 8, 32),
        (32, 256, 16, 16),
    ):
        torch.manual_seed(0)
        peer = timm_halo_attention()(dim, num_heads=heads, block_size=_BLOCK, halo_size=_HALO)
        arguments = {"dim": dim, "num_heads": heads, "block_size": _BLOCK, "halo_size": _HALO}
        as_timm = HaloAttention(**arguments, mask_padding=False)
        _copy_weights(as_timm, peer)
        masked = HaloAttention(**arguments)
        dense = _MaskedDense(masked, size)
        x = torch.randn(batch, dim, size, size)
        inputs = x.clone().requires_grad_()
        where = f"{dim} channels, {size} x {size}, batch {batch}"
        for name, make, data in (("forward", _forward, x), ("training step", _training, inputs)):
            listed.append(Comparison(f"{name}: {where}", make(as_timm, data), make(peer, data), "timm HaloAttn"))
            if dim == 256 or (dim == 128 and batch == 1):  # dense weights of larger maps fill gigabytes
                listed.append(
                    Comparison(f"{name}: {where}", make(masked, data), make(dense, data), "masked dense SDPA")
                )
    return listed
