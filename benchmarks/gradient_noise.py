"""What the noise costs: steps of a ResNet-18 with `GradientNoise` attached beside the same steps without it."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.compare import Comparison
from etude.training.gradient_noise import GradientNoise

_BATCH = 128


class _Block(nn.Module):
    def __init__(self, channels: int, out: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(),
            nn.Conv2d(out, out, 3, padding=1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip
        self.skip: nn.Module = nn.Identity()
        if stride > 1:
            self.skip = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        return (self.body(x) + self.skip(x)).relu()


def _resnet18() -> nn.Module:
    """ResNet-18 for 32 x 32 images, 11.2 million parameters."""
    widths = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2),
              (512, 512, 1)]  # fmt: skip
    stem = [nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)]
    return nn.Sequential(*stem, *(_Block(*sizes) for sizes in widths), *head)


def _training_step(noise: bool) -> Callable[[], None]:
    torch.manual_seed(0)
    model, x, y = _resnet18(), torch.randn(_BATCH, 3, 32, 32), torch.randint(10, (_BATCH,))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    if noise:
        GradientNoise(optimizer, std=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def _optimizer_step(noise: bool) -> Callable[[], None]:
    model = _resnet18()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    if noise:
        GradientNoise(optimizer, std=1e-4)
    return lambda: optimizer.step()


def comparisons() -> list[Comparison]:
    return [
        Comparison(
            name=f"training step of ResNet-18, batch {_BATCH}, 32 x 32",
            ours=_training_step(noise=True),
            peer=_training_step(noise=False),
            peer_name="the same step without noise",
            note="a ratio of at most 1.05 is the aim: the noise is one normal draw per parameter and step",
        ),
        Comparison(
            name="optimizer step of ResNet-18 alone",
            ours=_optimizer_step(noise=True),
            peer=_optimizer_step(noise=False),
            peer_name="torch.optim.SGD with momentum",
            note="what the draws cost beside an update that has no forward or backward pass to hide them",
        ),
    ]
