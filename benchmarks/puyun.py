"""Large-kernel attention against a plain convolution of equal reach, and the transforms and simulator of the sphere.

The plain convolution is torch's own depthwise layer with a 23 x 23 kernel, which sees what the factorised layer with
K = 21 and D = 3 sees (5 x 5, then 7 x 7 dilated by 3); both are followed by the same 1 x 1 convolution and product.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.compare import Comparison
from etude.science.puyun import BarotropicSphere, LargeKernelAttention, SphereConv2d, SphericalTransform


class _DenseAttention(nn.Module):
    """The same gate with one large depthwise kernel."""

    def __init__(self, dim: int, reach: int):
        super().__init__()
        self.depthwise = SphereConv2d(dim, dim, reach, groups=dim)
        self.pointwise = nn.Conv2d(dim, dim, 1)

    def forward(self, u: Tensor) -> Tensor:
        return u * self.pointwise(self.depthwise(u))


def _attention(dim: int, rows: int, columns: int, *, backward: bool) -> Comparison:
    ours = LargeKernelAttention(dim, 21, 3)
    peer = _DenseAttention(dim, ours.receptive_field)
    x = torch.randn(2, dim, rows, columns).contiguous(memory_format=torch.channels_last)

    def call(layer: nn.Module) -> Callable[[], Any]:
        def forward() -> Any:
            with torch.no_grad():
                return layer(x)

        def both() -> Any:
            layer.zero_grad()
            layer(x.requires_grad_()).square().mean().backward()

        return both if backward else forward

    what = "forward and backward" if backward else "forward"
    counts = [sum(p.numel() for p in layer.parameters()) for layer in (ours, peer)]
    return Comparison(
        f"LKA {what}, (2, {dim}, {rows}, {columns}), reach 23", call(ours), call(peer), "torch depthwise 23 x 23",
        note=f"{counts[0]:,} parameters against {counts[1]:,}",
    )  # fmt: skip


class _OneByOne:
    """One trajectory after the other."""

    def __init__(self, sphere: BarotropicSphere, states: Tensor):
        self.sphere, self.states = sphere, states

    def __call__(self) -> Tensor:
        return torch.cat([self.sphere.step(state[None]) for state in self.states])


def _simulator(trajectories: int) -> Comparison:
    sphere = BarotropicSphere(forcing=None)
    states = sphere.mean + sphere.random_waves(trajectories, 6e-6, (4, 12), torch.Generator().manual_seed(0))
    return Comparison(
        f"a step of {trajectories} trajectories, T21, RK4", lambda: sphere.step(states), _OneByOne(sphere, states),
        "the same step, one by one", note=f"steps/s = {trajectories:,} / ours in s",
    )  # fmt: skip


def _transform(fields: int) -> list[Comparison]:
    try:
        from torch_harmonics import RealSHT
    except ImportError:
        return []
    ours = SphericalTransform(32, 64, 21)
    peer = RealSHT(32, 64, lmax=22, mmax=22, grid="legendre-gauss", norm="ortho", csphase=False).double()
    x = torch.randn(fields, 32, 64, dtype=torch.float64)
    return [
        Comparison(
            f"analysis of {fields} fields, T21 on 32 x 64, float64", lambda: ours.forward(x), lambda: peer(x),
            "torch-harmonics RealSHT",
        )
    ]  # fmt: skip


def comparisons() -> list[Comparison]:
    torch.manual_seed(0)
    return [
        _attention(64, 32, 64, backward=False),
        _attention(64, 32, 64, backward=True),
        _attention(64, 90, 180, backward=False),
        _simulator(32),
        *_transform(96),
    ]
