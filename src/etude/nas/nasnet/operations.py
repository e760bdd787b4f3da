"""The operations of a cell: convolutions behind a ReLU, poolings, and the halving of a map without losing a pixel.

Every convolution reads ReLU, convolution without bias, batch norm. Padding is TensorFlow's SAME: outputs have
ceil(size / stride) pixels, and an odd number of padded rows has the larger half below and to the right.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["FactorizedReduction", "Pool", "SameConv2d", "conv_bn", "fan_out_", "initialize", "make_op"]

Map = Float[Tensor, "batch channels height width"]
Mapped = Float[Tensor, "batch dim height2 width2"]


def _same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Padding before and after, of an axis."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


@torch.no_grad()
def fan_out_(weight: Tensor, groups: int = 1) -> None:
    """Fills with a normal of variance 2 / fan-out that is cut off at two deviations, as the official code does."""
    fan_out = weight[:, 0].numel() // groups
    # 1.3 makes up for the tails, as in TensorFlow; a normal at most 2 away from 0 has its CDF in 1/2 -+ erf(2^.5) / 2.
    edge = math.erf(2**0.5)
    weight.uniform_(-edge, edge).erfinv_().mul_((2 * 1.3 * 2 / fan_out) ** 0.5)


class SameConv2d(nn.Conv2d):
    """A convolution without bias and with SAME padding, initialised by `fan_out_`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        *,
        dilation: int = 1,
        groups: int = 1,
    ):
        super().__init__(in_channels, out_channels, kernel_size, stride, dilation=dilation, groups=groups, bias=False)
        self.extents = tuple(self.dilation[axis] * (self.kernel_size[axis] - 1) + 1 for axis in (0, 1))

    def reset_parameters(self) -> None:
        fan_out_(self.weight, self.groups)

    def forward(self, input: Map) -> Mapped:
        top, bottom = _same(input.shape[2], self.extents[0], self.stride[0])
        left, right = _same(input.shape[3], self.extents[1], self.stride[1])
        if top == bottom and left == right:
            return F.conv2d(input, self.weight, None, self.stride, (top, left), self.dilation, self.groups)
        input = F.pad(input, (left, right, top, bottom))
        return F.conv2d(input, self.weight, None, self.stride, 0, self.dilation, self.groups)


def conv_bn(
    in_dim: int,
    dim: int,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    *,
    dilation: int = 1,
    activate: bool = True,
) -> nn.Sequential:
    """ReLU (unless `activate` is False), convolution, batch norm."""
    layers = [SameConv2d(in_dim, dim, kernel_size, stride, dilation=dilation), nn.BatchNorm2d(dim)]
    return nn.Sequential(nn.ReLU(), *layers) if activate else nn.Sequential(*layers)


def _separable(in_dim: int, dim: int, kernel_size: int, stride: int) -> nn.Sequential:
    """(ReLU, depthwise, pointwise, batch norm) twice; the stride and the change of width are in the first."""
    layers: list[nn.Module] = []
    for before, step in ((in_dim, stride), (dim, 1)):
        layers += [
            nn.ReLU(), SameConv2d(before, before, kernel_size, step, groups=before), SameConv2d(before, dim, 1),
            nn.BatchNorm2d(dim),
        ]  # fmt: skip
    return nn.Sequential(*layers)


class Pool(nn.Module):
    """Average (over the pixels that exist) or maximum over k x k pixels, padded as SAME.

    Args:
        kind: "avg" or "max".
        kernel_size, stride: in pixels.
    """

    def __init__(self, kind: str, kernel_size: int, stride: int = 1):
        super().__init__()
        self.kind, self.kernel_size, self.stride = kind, kernel_size, stride

    def forward(self, x: Map) -> Mapped:
        k, s = self.kernel_size, self.stride
        (top, bottom), (left, right) = (_same(size, k, s) for size in x.shape[2:])
        even = top == bottom and left == right
        if self.kind == "max":
            if even:
                return F.max_pool2d(x, k, s, (top, left))
            return F.max_pool2d(F.pad(x, (left, right, top, bottom), value=-torch.inf), k, s)
        if even:
            return F.avg_pool2d(x, k, s, (top, left), count_include_pad=False)
        if (top, left) == (0, 0) and (bottom, right) == (1, 1):
            # The window sticks out below and to the right alone, which ceil_mode cuts off and does not count.
            return F.avg_pool2d(x, k, s, ceil_mode=True)
        sides = (left, right, top, bottom)
        counted = F.avg_pool2d(F.pad(torch.ones_like(x[:1, :1]), sides), k, s)
        return F.avg_pool2d(F.pad(x, sides), k, s) / counted

    def extra_repr(self) -> str:
        return f"{self.kind}, kernel_size={self.kernel_size}, stride={self.stride}"


class FactorizedReduction(nn.Module):
    """Halves a map by two samplings, one pixel apart on the diagonal, each with a 1 x 1 convolution to half the width.

    The first path sees pixels (2i, 2j), the second (2i + 1, 2j + 1), zero beyond the border.

    Args:
        in_dim: channels of the input.
        dim: channels of the output, even.
        activate: ReLU in front.

    Raises:
        ValueError: if `dim` is odd.
    """

    def __init__(self, in_dim: int, dim: int, *, activate: bool = True):
        super().__init__()
        if dim % 2:
            raise ValueError(f"a factorized reduction needs an even number of filters, got {dim}")
        self.activate = activate
        self.even = SameConv2d(in_dim, dim // 2, 1)
        self.odd = SameConv2d(in_dim, dim // 2, 1)
        self.norm = nn.BatchNorm2d(dim)

    def forward(self, x: Map) -> Mapped:
        if self.activate:
            x = x.relu()
        shifted = F.pad(x, (0, 1, 0, 1))[:, :, 1::2, 1::2]
        return self.norm(torch.cat([self.even(x[:, :, ::2, ::2]), self.odd(shifted)], dim=1))


def make_op(name: str, in_dim: int, dim: int, stride: int = 1) -> nn.Module:
    """The operation `name` from `in_dim` to `dim` channels.

    Identity and pooling keep the width by nature: where it must change, or identity must halve the map, a 1 x 1
    convolution does it (before which identity has a ReLU, and pooling none).

    The two halves of a factorised kernel (1 x 7 then 7 x 1) are convolutions like others, each with ReLU and batch
    norm; the official code has no such operation.
    """
    kind, _, kernel = name.partition("_")
    if name == "identity":
        return nn.Identity() if stride == 1 and in_dim == dim else conv_bn(in_dim, dim, 1, stride)
    if name in ("conv_1x3_3x1", "conv_1x7_7x1"):
        k = int(kernel[2])
        return nn.Sequential(*conv_bn(in_dim, dim, (1, k), (1, stride)), *conv_bn(dim, dim, (k, 1), (stride, 1)))
    k = int(kernel[0])
    if kind == "conv":
        return conv_bn(in_dim, dim, k, stride)
    if kind == "dil":
        return conv_bn(in_dim, dim, k, stride, dilation=2)
    if kind == "sep":
        return _separable(in_dim, dim, k, stride)
    pool = Pool(kind, k, stride)
    return pool if in_dim == dim else nn.Sequential(pool, *conv_bn(in_dim, dim, 1, activate=False))


def initialize(module: nn.Module) -> None:
    """New weights of the convolutions and linear layers in `module`, as `fan_out_`; biases are 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
            fan_out_(layer.weight, groups)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
