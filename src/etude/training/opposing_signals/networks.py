"""Networks on which to look at full-batch training: a plain MLP and VGG-11; `etude.nn.resnet` has the ResNet-18."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

__all__ = ["mlp", "vgg11"]

_NORMS = ("batch", "group", "none")


def mlp(in_dim: int, widths: Sequence[int], num_classes: int) -> nn.Sequential:
    """Fully connected ReLU layers on flattened inputs, in PyTorch's initialisation."""
    sizes = [in_dim, *widths]
    if min(*sizes, num_classes) < 1:
        raise ValueError(f"all widths must be positive, got {in_dim}, {list(widths)} and {num_classes}")
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], num_classes))


def vgg11(channels: int, num_classes: int, *, norm: str = "none") -> nn.Sequential:
    """VGG-11 (Simonyan & Zisserman 2015) with one linear layer on top, for images of at least 32 x 32.

    Args:
        channels: of the images.
        num_classes: outputs.
        norm: "batch", "group" or "none". Batch norm couples the examples of a chunk; group norm does not.
    """
    layers: list[nn.Module] = []
    for width in (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool"):
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), _norm(norm, width), nn.ReLU()]
            channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


def _norm(norm: str, channels: int) -> nn.Module:
    if norm not in _NORMS:
        raise ValueError(f"norm must be one of {', '.join(_NORMS)}, got {norm!r}")
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(8, channels) if norm == "group" else nn.Identity()
