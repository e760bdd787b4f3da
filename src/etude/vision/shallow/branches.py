"""The functions f_k of a residual layer x + f_k(x), and how they start."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["ACTIVATIONS", "BottleneckBranch", "ConvBranch", "initialize_branch", "is_linear"]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "identity": nn.Identity,
}


def activation_module(name: str) -> nn.Module:
    """A new module of that name; ValueError for an unknown one."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name]()


class ConvBranch(nn.Module):
    """f(x) = sigma(conv(x)), or sigma(norm(conv(x))), at equal height, width and channels.

    Args:
        channels: of input and output.
        kernel_size: odd, so that the padding is the same on both sides.
        activation: a name in `ACTIVATIONS`; "identity" makes the branch linear (affine: the convolution has a bias).
        batch_norm: whether a batch norm of the branch's own stands between.
    """

    def __init__(self, channels: int, kernel_size: int = 3, activation: str = "relu", batch_norm: bool = False):
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels must be positive, got {channels}")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}")
        self.conv = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2)
        self.norm = nn.BatchNorm2d(channels) if batch_norm else None
        self.activation = activation_module(activation)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        x = self.conv(x)
        return self.activation(x if self.norm is None else self.norm(x))


class BottleneckBranch(nn.Module):
    """f(x) = conv1x1(sigma(conv(sigma(conv1x1(x))))) with a quarter of the channels inside, at least one.

    Arguments as for `ConvBranch`; a batch norm follows each convolution.
    """

    def __init__(self, channels: int, kernel_size: int = 3, activation: str = "relu", batch_norm: bool = False):
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels must be positive, got {channels}")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}")
        inner = max(channels // 4, 1)
        shapes = ((channels, inner, 1), (inner, inner, kernel_size), (inner, channels, 1))
        layers: list[nn.Module] = []
        for index, (fan_in, fan_out, size) in enumerate(shapes):
            if index:
                layers.append(activation_module(activation))
            layers.append(nn.Conv2d(fan_in, fan_out, size, padding=size // 2))
            if batch_norm:
                layers.append(nn.BatchNorm2d(fan_out))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        return self.layers(x)


@torch.no_grad()
def initialize_branch(branch: nn.Module, scale: float | int = 1.0) -> None:
    """He initialisation (normal, fan in) of every convolution with zero bias; the branch's output times `scale`.

    The scale goes into the last convolution, or into the gain of the last batch norm, which would undo it.
    """
    last: nn.Conv2d | nn.BatchNorm2d | None = None
    for module in branch.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            last = module
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
            last = module
    if last is not None:
        last.weight.mul_(scale)


def is_linear(branch: nn.Module) -> bool:
    """Whether the branch is known to be an affine map: convolutions and linear layers, with nothing between."""
    if isinstance(branch, ConvBranch):
        return branch.norm is None and isinstance(branch.activation, nn.Identity)
    if isinstance(branch, BottleneckBranch):
        return is_linear(branch.layers)
    if isinstance(branch, nn.Sequential):
        return all(is_linear(part) for part in branch)
    return isinstance(branch, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Identity)


def branch_scale_of(name: str, num_layers: int) -> float:
    """The factor that `branch_scale` of a stack puts on each of its branches."""
    return {"init": 1 / math.sqrt(num_layers), "he": 1.0}[name]
