"""What guidance costs beside a plain training step, and CKA beside the formula written out."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.compare import Comparison
from etude.nn.resnet import ResNet
from etude.nn.similarity import linear_cka
from etude.training.guidance import DeepFCN, Guidance

_BATCH = 64


def _networks() -> tuple[DeepFCN, ResNet]:
    torch.manual_seed(0)
    target = DeepFCN(3 * 32 * 32, 10, depth=24, width=512, first_width=1024)
    return target, ResNet(18, num_classes=10, widths=(16, 32, 64, 128), small_images=True)


def _step(mode: str) -> Callable[[], None]:
    target, guide = _networks()
    x, y = torch.rand(_BATCH, 3, 32, 32), torch.randint(10, (_BATCH,))
    optimizer = torch.optim.Adam(target.parameters(), lr=1e-3)
    guidance = Guidance(guide, stop_after=0 if mode == "stopped" else None)

    def step() -> None:
        optimizer.zero_grad()
        if mode == "guided" or mode == "stopped":
            with guidance.capture(target):
                loss = F.cross_entropy(target(x), y) + guidance()
        else:
            loss = F.cross_entropy(target(x), y)
            if mode == "two networks":
                with torch.no_grad():
                    guide.eval()(x)
        loss.backward()
        optimizer.step()

    return step


def _written_out(x: Tensor, y: Tensor) -> Tensor:
    """Eq. (1) and (2) of `etude.nn.similarity` with the centring matrix, as the paper's program computes them."""
    n = len(x)
    centring = torch.eye(n) - torch.ones(n, n) / n

    def hsic(a: Tensor, b: Tensor) -> Tensor:
        return ((centring @ (a @ a.T) @ centring) * (centring @ (b @ b.T) @ centring)).sum()

    return hsic(x, y) / (hsic(x, x).sqrt() * hsic(y, y).sqrt())


def _gradient(similarity: Callable[[Tensor, Tensor], Tensor], batch: int, features: int) -> Callable[[], Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, features, generator=generator).requires_grad_()
    y = torch.randn(batch, features, generator=generator)
    return lambda: torch.autograd.grad(similarity(x, y), x)


def comparisons() -> list[Comparison]:
    steps = f"step of a 24-layer FCN guided by a ResNet-18, batch {_BATCH}, 32 x 32"
    return [
        Comparison(
            name=steps, ours=_step("guided"), peer=_step("plain"), peer_name="the same step unguided",
            note="what guidance costs in all",
        ),
        Comparison(
            name=steps, ours=_step("guided"), peer=_step("two networks"), peer_name="unguided, and the guide's forward",
            note="what comparing the layers costs, the guide's own pass apart",
        ),
        Comparison(
            name="the same step after the guidance has stopped", ours=_step("stopped"), peer=_step("plain"),
            peer_name="the same step unguided", note="the aim is 1.00: nothing is computed any more",
        ),
        Comparison(
            name="linear CKA and its gradient, batch 64, 65,536 features", ours=_gradient(linear_cka, 64, 65_536),
            peer=_gradient(_written_out, 64, 65_536), peer_name="the formula with centring matrices",
        ),
        Comparison(
            name="linear CKA and its gradient, batch 256, 1,024 features", ours=_gradient(linear_cka, 256, 1024),
            peer=_gradient(_written_out, 256, 1024), peer_name="the formula with centring matrices",
        ),
    ]  # fmt: skip
