"""ConViT against timm's, at equal weights: the layer, the network, and the memory that they take.

Peak memory is what the profiler sees allocated at one time on top of weights and inputs; it stands in the notes.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.compare import Comparison
from etude.vision.convit import ConViT, convit_tiny, load_timm

_SIZES = {"tiny": (48, 4), "small": (48, 9)}


def timm_convit(**arguments: Any) -> nn.Module:
    """timm's network.

    Raises:
        ImportError: if timm, or the part of torchvision that it needs, is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from timm.models.convit import ConVit
    return ConVit(**arguments)


def peak_bytes(call: Callable[[], Any]) -> int:
    """The largest sum of what a call holds allocated at one time."""
    call()  # what is allocated once does not count
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    held = peak = 0
    for event in sorted(recorded.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def _forward(model: nn.Module, x: Tensor) -> Callable[[], Any]:
    def run() -> None:
        with torch.no_grad():
            model(x)

    return run


def _training(model: nn.Module, x: Tensor) -> Callable[[], Any]:
    def run() -> None:
        model.zero_grad()
        out = model(x)
        loss = F.cross_entropy(out, torch.zeros(len(out), dtype=torch.int64)) if out.ndim == 2 else out.sum()
        loss.backward()

    return run


def _pair(what: str, ours: nn.Module, peer: nn.Module, x: Tensor, peer_name: str) -> list[Comparison]:
    rows = []
    for name, make in (("forward", _forward), ("training step", _training)):
        mine, theirs = make(ours, x), make(peer, x)
        note = f"peak memory {peak_bytes(mine) / 2**20:.0f} MiB against {peak_bytes(theirs) / 2**20:.0f} MiB"
        rows.append(Comparison(f"{name}: {what}", mine, theirs, peer_name, note))
    return rows


def comparisons() -> list[Comparison]:
    listed = []
    for name, (width, heads) in _SIZES.items():
        torch.manual_seed(0)
        peer = timm_convit(embed_dim=width, num_heads=heads, depth=2, local_up_to_layer=1)
        ours = load_timm(ConViT(dim=width * heads, num_heads=heads, depth=2, local_up_to_layer=1), peer.state_dict())
        layers = ours.blocks[0].attn, peer.blocks[0].attn
        for batch in (1, 32):
            x = torch.randn(batch, 196, width * heads, requires_grad=True)
            listed += _pair(f"gated layer of {name}, 14 x 14, batch {batch}", *layers, x, "timm GPSA")
    torch.manual_seed(0)
    peer = timm_convit(embed_dim=48, num_heads=4, depth=12, local_up_to_layer=10)
    ours = load_timm(convit_tiny(), peer.state_dict())
    for batch in (1, 32):
        listed += _pair(f"ConViT-Ti, batch {batch}", ours, peer, torch.randn(batch, 3, 224, 224), "timm ConVit")
    return listed
