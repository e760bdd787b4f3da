"""Large-kernel attention: a convolution with a large kernel, factorised, whose output multiplies its input.

The block is that of Guo, Lu, Liu, Cheng & Hu, "Visual Attention Network", arXiv:2202.09741, 2022, which PuYun
(arXiv:2409.02123) takes to the sphere. With a target kernel K and a dilation D

    LKA(u) = u * Conv1x1( DWConv_{k2, dilation D}( DWConv_{k1}(u) ) ),   k1 = 2 D - 1,  k2 = ceil(K / D)           (1)
    A(x)   = Conv1x1( LKA( GELU( Conv1x1(x) ) ) ) + x                                                             (2)
    x <- x + g1 * A(LN(x)),   x <- x + g2 * MLP(LN(x))                                                            (3)

where * multiplies element by element: there is no sigmoid and no softmax, and the gate is not added. One output sees
(k1 - 1) + (k2 - 1) D + 1 inputs in each direction. At K = 3, D = 1 the same module is a gate with a 3 x 3 kernel.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from etude.science.puyun.geometry import SphereConv2d

__all__ = ["ChannelNorm", "LKABlock", "LargeKernelAttention", "Pointwise", "lka_kernels"]

_LAYER_SCALE = 1e-2  # the first value of g1 and g2, as in VAN


def lka_kernels(kernel_size: int, dilation: int) -> tuple[int, int]:
    """(k1, k2) of Eq. (1).

    Raises:
        ValueError: if a number is not positive or k2 is even, with the nearest kernel sizes that would do.
    """
    if kernel_size < 1 or dilation < 1:
        raise ValueError(f"kernel_size and dilation must be positive, got {kernel_size} and {dilation}")
    k1, k2 = 2 * dilation - 1, -(-kernel_size // dilation)
    if k2 % 2 == 0:
        raise ValueError(
            f"kernel_size {kernel_size} with dilation {dilation} needs a dilated kernel of {k2} points, which must be "
            f"odd: take kernel_size {(k2 - 1) * dilation} or {(k2 + 1) * dilation}"
        )
    return k1, k2


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (batch, channels, height, width)."""

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        # The result lies channels-last in memory, in which depthwise convolutions run fastest on a CPU.
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Pointwise(nn.Linear):
    """A 1 x 1 convolution, as a matrix product over the channels, which lie last in memory."""

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out height width"]:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class LargeKernelAttention(nn.Module):
    """Eq. (1): dim (k1^2 + k2^2 + dim + 3) parameters.

    Args:
        dim: channels.
        kernel_size: the target kernel K.
        dilation: D.
        padding: as of `SphericalPad2d`.

    Raises:
        ValueError: if `kernel_size` and `dilation` give an even kernel.
    """

    def __init__(self, dim: int, kernel_size: int = 21, dilation: int = 3, padding: str = "sphere"):
        super().__init__()
        k1, k2 = lka_kernels(kernel_size, dilation)
        self.near = SphereConv2d(dim, dim, k1, groups=dim, padding=padding)
        self.far = SphereConv2d(dim, dim, k2, groups=dim, dilation=dilation, padding=padding)
        self.pointwise = Pointwise(dim, dim)
        self.receptive_field = (k1 - 1) + (k2 - 1) * dilation + 1

    def forward(self, u: Float[Tensor, "batch dim height width"]) -> Float[Tensor, "batch dim height width"]:
        return u * self.pointwise(self.far(self.near(u)))


class LKABlock(nn.Module):
    """A residual block of large-kernel attention and a perceptron, Eq. (3).

    Args:
        dim: channels.
        kernel_size, dilation, padding: of the attention.
        mlp_ratio: hidden channels of the perceptron are `mlp_ratio * dim`.
        mlp_conv: a depthwise 3 x 3 convolution between the perceptron's layers.
        time_dim: length of the features of time that scale and shift the first norm's output, 0 for none. The map
            from features to scales begins at zero.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int = 21,
        dilation: int = 3,
        *,
        mlp_ratio: int = 4,
        mlp_conv: bool = True,
        padding: str = "sphere",
        time_dim: int = 0,
    ):
        super().__init__()
        hidden = mlp_ratio * dim
        self.norm1, self.norm2 = ChannelNorm(dim), ChannelNorm(dim)
        self.enter = Pointwise(dim, dim)
        self.attention = LargeKernelAttention(dim, kernel_size, dilation, padding)
        self.leave = Pointwise(dim, dim)
        self.expand = Pointwise(dim, hidden)
        self.local = SphereConv2d(hidden, hidden, 3, groups=hidden, padding=padding) if mlp_conv else nn.Identity()
        self.contract = Pointwise(hidden, dim)
        self.scale1 = nn.Parameter(torch.full((dim, 1, 1), _LAYER_SCALE))
        self.scale2 = nn.Parameter(torch.full((dim, 1, 1), _LAYER_SCALE))
        self.time = None
        if time_dim:
            self.time = nn.Linear(time_dim, 2 * dim)
            nn.init.zeros_(self.time.weight)
            nn.init.zeros_(self.time.bias)

    def forward(
        self, x: Float[Tensor, "batch dim height width"], time_features: Float[Tensor, "batch features"] | None = None
    ) -> Float[Tensor, "batch dim height width"]:
        inner = self.norm1(x)
        if self.time is not None and time_features is not None:
            scale, shift = self.time(time_features)[:, :, None, None].chunk(2, dim=1)
            inner = inner * (1 + scale) + shift
        attended = self.leave(self.attention(F.gelu(self.enter(inner)))) + inner  # Eq. (2)
        x = x + self.scale1 * attended
        hidden = F.gelu(self.local(self.expand(self.norm2(x))))
        return x + self.scale2 * self.contract(hidden)
