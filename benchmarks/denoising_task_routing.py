"""Routing against none, and our network against the diffusers' one, at equal work.

A DiT-S/2 of 3 blocks, batch 8, 256 tokens, forward and backward. The routed network's masks are looked up in every
block. The peer from diffusers has the same sizes; its blocks each embed the timestep and label again.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.compare import Comparison
from etude.diffusion.denoising_task_routing import DiT, Routing, route_
from etude.nn.diffusion import DiffusersModel

_DEPTH, _BATCH = 3, 8


def _step(model: nn.Module) -> Callable[[], Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_BATCH, 4, 32, 32, generator=generator)
    t = torch.randint(1000, (_BATCH,), generator=generator)
    y = torch.randint(1000, (_BATCH,), generator=generator)

    def step() -> None:
        model.zero_grad()
        model(x, t, y).square().mean().backward()

    return step


def _ours(routing: Routing | None) -> nn.Module:
    torch.manual_seed(0)
    return DiT(32, 2, 4, dim=384, depth=_DEPTH, num_heads=6, routing=routing).eval()


def _theirs() -> nn.Module:
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    return DiTTransformer2DModel(
        num_attention_heads=6, attention_head_dim=64, in_channels=4, num_layers=_DEPTH, sample_size=32
    ).eval()  # fmt: skip


def comparisons() -> list[Comparison]:
    theirs = _theirs()
    return [
        Comparison(
            "a training step of a routed DiT, width 384", _step(_ours(Routing())), _step(_ours(None)),
            peer_name="the plain network", note="the paper's method should cost less than 5 %",
        ),
        Comparison(
            "a training step of a plain DiT, width 384", _step(_ours(None)), _step(DiffusersModel(theirs)),
            peer_name="diffusers, DiTTransformer2DModel",
        ),
        Comparison(
            "diffusers' DiT, routed by route_", _step(DiffusersModel(route_(_theirs()))), _step(DiffusersModel(theirs)),
            peer_name="the same, plain",
        ),
    ]  # fmt: skip
