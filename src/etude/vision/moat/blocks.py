"""The blocks of MOAT: mobile convolution, and mobile convolution before self-attention.

Yang et al., ICLR 2023, arXiv:2210.01820, section 2 and the official code. With x of C_in channels, C the width of the
block, s its stride and D the stochastic depth of the branch,

    F(x) = Conv1x1_C(SE(GELU(BN(DW3x3_s(GELU(BN(Conv1x1_4C(BN(x)))))))))                 (SE in `MBConv` only)
    S(x) = AvgPool_s(x), then Conv1x1_C if C_in != C
    MBConv(x) = S(x) + D(F(x))                                                                                    (1)
    MOAT(x) = y + D(Attention(LN(y))),   y = MBConv(x)                                                            (2)

The hidden width is four times the width of the output. Convolutions before a batch norm and the depthwise one have
no bias; the last 1x1 and that of the shortcut have. Nothing is activated after a sum.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from etude.nn.transformer import DropPath, FeedForward
from etude.vision.moat.attention import RelPosAttention2d, Window

__all__ = ["VARIANTS", "MBConv", "MOATBlock", "SqueezeExcite", "batch_norm"]

VARIANTS = ("moat", "attn_mbconv", "attn_mlp")
"""Orders of a block: the paper's, and the two steps of its ablation from a transformer block to it."""


def batch_norm(channels: int, *, momentum: float | int = 0.01) -> nn.BatchNorm2d:
    """Batch norm as the official code has it: epsilon 1e-3, and a hundredth of each batch in the running statistics.

    With that momentum the statistics need some 500 updates to forget their start; short trainings want 0.1.
    """
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=momentum)


def same_padding(size: int, kernel_size: int, stride: int) -> tuple[int, int]:
    """Zeros before and after, as TensorFlow's SAME puts them: in all what ceil(size / stride) outputs need."""
    total = max((-(-size // stride) - 1) * stride + kernel_size - size, 0)
    return total // 2, total - total // 2


class SameConv2d(nn.Conv2d):
    """A convolution padded to ceil(size / stride): on both sides alike, or as TensorFlow pads.

    The two differ for a stride over an even side only, where TensorFlow pads at the bottom and right alone.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        bias: bool = True,
        tf_same_padding: bool = False,
    ):
        padding = 0 if tf_same_padding else kernel_size // 2
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=bias)
        self.tf_same_padding = tf_same_padding

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out_channels rows cols"]:
        if self.tf_same_padding:
            left, right = same_padding(x.shape[3], self.kernel_size[1], self.stride[1])
            top, bottom = same_padding(x.shape[2], self.kernel_size[0], self.stride[0])
            x = F.pad(x, (left, right, top, bottom))
        return super().forward(x)


class Shortcut(nn.Module):
    """S of Eq. (1): an average over what the stride skips, and a 1x1 convolution where the width changes.

    A map of odd sides shrinks to ceil(size / stride), as under the branch's convolution; the average is over the
    pixels that there are, and taken in float32 at least.
    """

    def __init__(self, in_dim: int, dim: int, stride: int, pool: int, tf_same_padding: bool):
        super().__init__()
        self.stride, self.pool, self.tf_same_padding = stride, pool, tf_same_padding
        self.conv: nn.Module = nn.Identity() if in_dim == dim else nn.Conv2d(in_dim, dim, 1)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out_channels rows cols"]:
        if self.stride > 1:
            exact = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
            sides = tuple(self._padding(side) for side in x.shape[2:])
            pooled = F.avg_pool2d(
                exact, self.pool, self.stride, padding=sides, ceil_mode=True, count_include_pad=False
            )  # fmt: skip
            # a window that would lie beyond the map altogether
            rows, columns = (-(-side // self.stride) for side in x.shape[2:])
            x = pooled[:, :, :rows, :columns].to(x.dtype)
        return self.conv(x)

    def _padding(self, side: int) -> int:
        if self.tf_same_padding:
            return same_padding(side, self.pool, self.stride)[0]
        return (self.pool - 1) // 2


class SqueezeExcite(nn.Module):
    """Gates each channel by a function of all channels' means: 1x1, swish, 1x1, sigmoid.

    Args:
        dim: channels.
        hidden_dim: channels between.
    """

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.reduce = nn.Conv2d(dim, hidden_dim, 1)
        self.expand = nn.Conv2d(hidden_dim, dim, 1)

    def forward(self, x: Float[Tensor, "batch dim height width"]) -> Float[Tensor, "batch dim height width"]:
        return x * torch.sigmoid(self.expand(F.silu(self.reduce(x.mean((2, 3), keepdim=True)))))


class MBConv(nn.Module):
    """The mobile convolution of Eq. (1): an inverted residual with a pre-norm.

        block = MBConv(in_dim=96, dim=192, stride=2)
        y = block(x)                                # (batch, 96, 56, 56) -> (batch, 192, 28, 28)

    Args:
        in_dim, dim: channels of the input and of the output.
        stride: 1 or 2, of the depthwise convolution; the output has ceil(size / stride) pixels on a side.
        expansion: hidden channels over those of the output.
        kernel_size: of the depthwise convolution, odd.
        se_ratio: channels inside the squeeze-and-excitation over those of the output; none if None.
        shortcut_pool: pixels on a side of the shortcut's average: 2 for classification, 3 for dense tasks.
        drop_path: rate of stochastic depth.
        norm: makes a norm for a number of channels.
        tf_same_padding: pad as TensorFlow does, for weights trained there.

    Raises:
        ValueError: if a size is out of range.
    """

    def __init__(
        self,
        *,
        in_dim: int,
        dim: int,
        stride: int = 1,
        expansion: int = 4,
        kernel_size: int = 3,
        se_ratio: float | int | None = 0.25,
        shortcut_pool: int = 2,
        drop_path: float | int = 0.0,
        norm: Callable[[int], nn.Module] = batch_norm,
        tf_same_padding: bool = False,
    ):
        super().__init__()
        _check_sizes(in_dim=in_dim, dim=dim, stride=stride, expansion=expansion, kernel_size=kernel_size)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        _check_stride(stride)
        if shortcut_pool not in (2, 3):
            raise ValueError(f"shortcut_pool must be 2 or 3, got {shortcut_pool}")
        if se_ratio is not None and not se_ratio > 0:
            raise ValueError(f"se_ratio must be positive or None, got {se_ratio}")
        hidden = expansion * dim
        self.shortcut = Shortcut(in_dim, dim, stride, shortcut_pool, tf_same_padding)
        self.pre_norm = norm(in_dim)
        self.expand = nn.Conv2d(in_dim, hidden, 1, bias=False)
        self.expand_norm = norm(hidden)
        self.depthwise = SameConv2d(
            hidden, hidden, kernel_size, stride=stride, groups=hidden, bias=False, tf_same_padding=tf_same_padding
        )
        self.depthwise_norm = norm(hidden)
        self.se = nn.Identity() if se_ratio is None else SqueezeExcite(hidden, max(1, int(dim * se_ratio)))
        self.shrink = nn.Conv2d(hidden, dim, 1)
        self.drop_path = DropPath(drop_path)
        self.apply(init_weights)

    def forward(self, x: Float[Tensor, "batch in_dim height width"]) -> Float[Tensor, "batch dim rows columns"]:
        """Raises ValueError where batch norm, while training, would meet one value per channel."""
        out = F.gelu(self.expand_norm(self.expand(self.pre_norm(x))))
        out = self.depthwise(out)
        self._check_statistics(x, out)
        out = self.se(F.gelu(self.depthwise_norm(out)))
        return self.shortcut(x) + self.drop_path(self.shrink(out))

    def _check_statistics(self, x: Tensor, out: Tensor) -> None:
        norm = self.depthwise_norm
        if not (isinstance(norm, nn.BatchNorm2d) and norm.training) or out.shape[0] * out.shape[2] * out.shape[3] > 1:
            return
        raise ValueError(
            f"batch norm has one value per channel to learn from: a batch of shape {tuple(x.shape)} leaves a map of "
            "1 x 1; train on more or on larger images, or freeze batch norm (MOAT.freeze_batch_norm)"
        )


class MOATBlock(nn.Module):
    """Mobile convolution, then self-attention, Eq. (2); or another order, for the paper's ablation.

        block = MOATBlock(in_dim=192, dim=384, stride=2, rel_pos_size=14)
        y = block(x)                                # (batch, 192, 28, 28) -> (batch, 384, 14, 14)

    The variants, z being the input after a 2x2 average pool where the stride is 2, and after a 1x1 convolution with
    bias where pool or width change it:

        "attn_mlp":     y + D(MLP(LN(y))),  y = z + D(Attention(LN(z)))      a transformer block, MLP of `expansion`
        "attn_mbconv":  MBConv(y),          y = z + D(Attention(LN(z)))      its MLP replaced, without SE
        "moat":         Eq. (2), which needs no down-sampling layer

    Args:
        in_dim, dim: channels of the input and of the output; `dim` is a multiple of `head_dim`.
        stride: 1 or 2; the output has ceil(size / stride) pixels on a side.
        expansion: hidden channels over those of the output.
        head_dim: dim of a head of attention.
        window: height and width of the windows of attention, or one number for both; global if None.
        rel_pos_size: side of the window whose position table is stored; no position bias if None.
        drop_path: rate of stochastic depth, of both branches independently.
        variant: one of `VARIANTS`.
        shortcut_pool, norm, tf_same_padding: see `MBConv`.
        checkpoint_attention: compute the attention again in the backward pass instead of keeping its weights.

    Raises:
        ValueError: if a size is out of range or the variant unknown.
    """

    def __init__(
        self,
        *,
        in_dim: int,
        dim: int,
        stride: int = 1,
        expansion: int = 4,
        head_dim: int = 32,
        window: Window | None = None,
        rel_pos_size: int | None = 14,
        drop_path: float | int = 0.0,
        variant: str = "moat",
        shortcut_pool: int = 2,
        norm: Callable[[int], nn.Module] = batch_norm,
        tf_same_padding: bool = False,
        checkpoint_attention: bool = False,
    ):
        super().__init__()
        _check_sizes(in_dim=in_dim, dim=dim, stride=stride, expansion=expansion)
        _check_stride(stride)
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
        self.variant, self.checkpoint_attention = variant, checkpoint_attention
        self.down: nn.Module = nn.Identity()
        self.mlp_norm: nn.Module | None = None
        first = {"in_dim": in_dim, "stride": stride} if variant == "moat" else {"in_dim": dim, "stride": 1}
        if variant != "moat" and (stride > 1 or in_dim != dim):
            self.down = nn.Sequential(
                Shortcut(in_dim, in_dim, stride, 2, tf_same_padding), nn.Conv2d(in_dim, dim, 1)
            )  # fmt: skip
        self.attention_norm = nn.LayerNorm(dim, eps=1e-5)
        self.attention = RelPosAttention2d(dim=dim, head_dim=head_dim, rel_pos_size=rel_pos_size, window=window)
        self.drop_path = DropPath(drop_path)
        if variant == "attn_mlp":
            self.mlp_norm = nn.LayerNorm(dim, eps=1e-5)
            self.mlp: nn.Module = FeedForward(dim, expansion * dim)
        else:
            self.conv = MBConv(
                **first, dim=dim, expansion=expansion, se_ratio=None, shortcut_pool=shortcut_pool,
                drop_path=drop_path, norm=norm, tf_same_padding=tf_same_padding,
            )  # fmt: skip
        self.down.apply(init_weights)
        if variant == "attn_mlp":
            self.mlp.apply(init_weights)

    def forward(self, x: Float[Tensor, "batch in_dim height width"]) -> Float[Tensor, "batch dim rows columns"]:
        if self.variant == "moat":
            return self._attended(self.conv(x))
        y = self._attended(self.down(x))
        if self.mlp_norm is None:
            return self.conv(y)
        return y + self.drop_path(self.mlp(self.mlp_norm(y.permute(0, 2, 3, 1))).permute(0, 3, 1, 2))

    def _attended(self, y: Tensor) -> Tensor:
        if self.checkpoint_attention and self.training and torch.is_grad_enabled():
            branch = checkpoint(self._branch, y, use_reentrant=False, preserve_rng_state=False)
        else:
            branch = self._branch(y)
        return y + self.drop_path(branch)

    def _branch(self, y: Tensor) -> Tensor:
        return self.attention(self.attention_norm(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def init_weights(module: nn.Module) -> None:
    """Kernels and matrices N(0, 0.02^2), biases zero; norms keep torch's ones and zeros."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm)


def _check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def _check_stride(stride: int) -> None:
    if stride not in (1, 2):
        raise ValueError(f"stride must be 1 or 2, got {stride}")
