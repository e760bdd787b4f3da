"""Parts of transformer blocks: attention, feed-forward, patches, stochastic depth.

Vaswani et al., "Attention is all you need", 2017, arXiv:1706.03762; Dosovitskiy et al., "An image is worth 16x16
words", 2021, arXiv:2010.11929; Huang et al., "Deep networks with stochastic depth", 2016, arXiv:1603.09382.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["DropPath", "FeedForward", "PatchEmbedding", "SelfAttention", "SwiGLU"]


class DropPath(nn.Module):
    """Stochastic depth: while training, each sample loses the whole branch with probability `rate`.

    Branches that stay are divided by 1 - `rate`, so that the expectation is that of evaluation, which drops nothing.

    Args:
        rate: probability, 0 <= rate < 1.
    """

    def __init__(self, rate: float | int = 0.0):
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"rate must be in [0, 1), got {rate}")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        kept = torch.rand((len(x),) + (1,) * (x.ndim - 1), device=x.device) >= self.rate
        return x * kept.to(x.dtype) / (1 - self.rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


class FeedForward(nn.Module):
    """Linear, activation, dropout, linear, dropout, on the last dimension.

    Args:
        dim: features of input and output.
        hidden_dim: features between.
        activation: any module without parameters, or GELU.
        dropout: probability after the activation and after the second layer.
    """

    def __init__(self, dim: int, hidden_dim: int, *, activation: nn.Module | None = None, dropout: float | int = 0.0):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.activation = nn.GELU() if activation is None else activation
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return self.dropout(self.fc2(self.dropout(self.activation(self.fc1(x)))))


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), on the last dimension (Shazeer, arXiv:2002.05202).

    Args:
        dim: features of input and output.
        hidden_dim: features between.
        bias: whether the three maps have biases.
    """

    def __init__(self, dim: int, hidden_dim: int, *, bias: bool = False):
        super().__init__()
        self.gate = nn.Linear(dim, hidden_dim, bias=bias)
        self.up = nn.Linear(dim, hidden_dim, bias=bias)
        self.down = nn.Linear(hidden_dim, dim, bias=bias)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class SelfAttention(nn.Module):
    """Multi-head self-attention of all tokens to all tokens.

    Args:
        dim: features of a token, a multiple of `num_heads`.
        num_heads: heads.
        qkv_bias: whether queries, keys and values have a bias.
        attn_drop: dropout of the attention weights.
        proj_drop: dropout of the output.

    Raises:
        ValueError: if `dim` is no multiple of `num_heads`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        qkv_bias: bool = False,
        attn_drop: float | int = 0.0,
        proj_drop: float | int = 0.0,
    ):
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads, got {dim} and {num_heads}")
        self.num_heads = num_heads
        self.attn_drop = attn_drop
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        q, k, v = self._heads(x)
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=self.attn_drop if self.training else 0.0)
        return self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))

    def attention(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch heads tokens tokens"]:
        """The attention weights; row i says what token i takes from each token."""
        q, k, _ = self._heads(x)
        return torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, dim=-1)


class PatchEmbedding(nn.Module):
    """Cuts images into square patches and maps each linearly to a token, row by row.

    Args:
        in_chans: channels of the image.
        dim: features of a token.
        patch_size: side of a patch in pixels.
    """

    def __init__(self, in_chans: int, dim: int, patch_size: int):
        super().__init__()
        if min(in_chans, dim, patch_size) < 1:
            raise ValueError(f"in_chans, dim and patch_size must be positive, got {in_chans}, {dim}, {patch_size}")
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, dim, patch_size, stride=patch_size)

    def forward(self, images: Float[Tensor, "batch in_chans height width"]) -> Float[Tensor, "batch tokens dim"]:
        """Raises ValueError if a side is no multiple of the patch or the channels are others."""
        channels, height, width = images.shape[1:]
        if channels != self.proj.in_channels:
            raise ValueError(f"expected {self.proj.in_channels} channels, got images of shape {tuple(images.shape)}")
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"sides must be multiples of the patch, {self.patch_size}, got {height} x {width}")
        return self.proj(images).flatten(2).transpose(1, 2)
