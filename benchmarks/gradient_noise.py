"""What the noise costs: steps of a ResNet-18 with `GradientNoise` attached beside the same steps without it."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.compare import Comparison
from etude.nn.resnet import ResNet
from etude.training.gradient_noise import GradientNoise

_BATCH = 128


def _resnet18() -> nn.Module:
    """For 32 x 32 images, 11.2 million parameters."""
    return ResNet(18, num_classes=10, small_images=True)


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
