"""Activator's blocks against timm's GLU feed-forward and Mixer block, and torch's ViT block.

`timm.layers.GluMlp` is the peer of the gating unit: three projections of the same sizes, but no norms, so ours does a
little more. ViT and Mixer blocks are what the block takes the place of: the same D = 256 and M = 512 on 64 tokens,
other functions of other parameters.
"""

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.compare import Comparison
from etude.vision.activator import ActivatorBlock, GatedMLP, MixerBlock, ViTBlock

_DIM, _HIDDEN, _TOKENS = 256, 512, 64


def timm_mlp() -> Any:
    """timm's module of MLPs, loaded without the rest of timm, which needs torchvision's compiled operators.

    Raises:
        ImportError: if timm is not installed.
    """
    found = importlib.util.find_spec("timm")
    if found is None or found.origin is None:
        raise ImportError("timm is not installed")
    package = types.ModuleType("timm_layers")
    package.__path__ = [str(Path(found.origin).parent / "layers")]
    sys.modules["timm_layers"] = package
    return importlib.import_module("timm_layers.mlp")


class _TimmMixer(nn.Module):
    """A Mixer block of timm's MLPs."""

    def __init__(self, mlp: Any):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(_DIM), nn.LayerNorm(_DIM)
        self.tokens, self.channels = mlp.Mlp(_TOKENS, _HIDDEN), mlp.Mlp(_DIM, _HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


def _torch_vit() -> nn.Module:
    return nn.TransformerEncoderLayer(
        _DIM, 4, _HIDDEN, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )


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
    mlp = timm_mlp()
    sizes = {"dim": _DIM, "hidden_dim": _HIDDEN}
    torch.manual_seed(0)
    pairs = [
        (
            "gating unit",
            GatedMLP(**sizes),
            mlp.GluMlp(_DIM, 2 * _HIDDEN, act_layer=nn.GELU),
            "timm GluMlp",
            "ours norms",
        ),
        ("Mixer block", MixerBlock(**sizes, num_tokens=_TOKENS, dropout=0.0), _TimmMixer(mlp), "timm Mlp", ""),
        ("ViT block", ViTBlock(**sizes, dropout=0.0), _torch_vit(), "torch TransformerEncoderLayer", ""),
        ("GLU-only block", ActivatorBlock(**sizes, use_mlp=False), _torch_vit(), "torch ViT block", "what it replaces"),
        ("full block", ActivatorBlock(**sizes, dropout=0.0), _torch_vit(), "torch ViT block", "what it replaces"),
    ]
    x = torch.randn(16, _TOKENS, _DIM)
    inputs = x.clone().requires_grad_()
    listed = []
    for name, ours, peer, peer_name, note in pairs:
        for how, make, data in (("forward", _forward, x), ("training step", _training, inputs)):
            what = f"{name}, {how}: D = {_DIM}, M = {_HIDDEN}, {_TOKENS} tokens, batch 16"
            listed.append(Comparison(what, make(ours, data), make(peer, data), peer_name, note))
    return listed
