"""Light classifiers of one block's map: linear, MLP, convolutional and attention heads.

The linear head averages the map over p x p cells, flattens and applies one linear layer. The attention head reads the
map as tokens with a learned class token in front and no position code: pool to at most 16 x 16, normalise, 1 x 1
convolution to the width, two pre-norm transformer blocks, and a linear layer on the class token.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["AttentionHead", "ConvHead", "LinearHead", "MLPHead"]

_MOST_CELLS = 16
"""Side of the largest map that the attention head reads as it is."""


class _Head(nn.Module):
    """Checks that maps are those the head was made for."""

    def __init__(self, in_channels: int, size: int, num_classes: int):
        super().__init__()
        for name, value in (("in_channels", in_channels), ("size", size)):
            if value < 1:
                raise ValueError(f"{name} must be positive, got {value}")
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        self.in_channels, self.size, self.num_classes = in_channels, size, num_classes

    def _check(self, maps: Tensor) -> None:
        expected = (self.in_channels, self.size, self.size)
        if tuple(maps.shape[1:]) != expected:
            raise ValueError(f"the head takes maps of shape {expected}, got {tuple(maps.shape[1:])}")


def _check_pool(pool: int, size: int) -> None:
    if not 1 <= pool <= size:
        raise ValueError(f"pool must lie in 1..{size}, the side of the map, got {pool}")


class MLPHead(_Head):
    """Average pooling to pool x pool cells, hidden layers with ReLU, and a linear layer.

    Args:
        in_channels, size: channels and side of the map.
        num_classes: at least 2.
        hidden: widths of the hidden layers; none makes the head linear.
        pool: side of the grid of cells, 1 to `size`.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self, in_channels: int, size: int, num_classes: int, *, hidden: Sequence[int] = (1024,), pool: int = 2
    ):
        super().__init__(in_channels, size, num_classes)
        _check_pool(pool, size)
        self.pool = pool
        layers: list[nn.Module] = []
        width = in_channels * pool**2
        for wide in hidden:
            layers += [nn.Linear(width, wide), nn.ReLU()]
            width = wide
        self.layers = nn.Sequential(*layers, nn.Linear(width, num_classes))

    def forward(self, maps: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        self._check(maps)
        return self.layers(F.adaptive_avg_pool2d(maps, self.pool).flatten(1))


class LinearHead(MLPHead):
    """Average pooling to pool x pool cells and one linear layer; pool = 1 is global average pooling.

    Args: as for `MLPHead`.
    """

    def __init__(self, in_channels: int, size: int, num_classes: int, *, pool: int = 2):
        super().__init__(in_channels, size, num_classes, hidden=(), pool=pool)


class ConvHead(_Head):
    """Convolutions 3 x 3 of stride 2 with ReLU, average pooling to pool x pool cells, and a linear layer.

    The paper's widths are not published; these are ours.

    Args:
        in_channels, size: channels and side of the map.
        num_classes: at least 2.
        channels: of each convolution.
        pool: side of the grid of cells, 1 to the side of the last map, ceil(size / 2^convolutions).

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self, in_channels: int, size: int, num_classes: int, *, channels: Sequence[int] = (256, 512), pool: int = 1
    ):
        super().__init__(in_channels, size, num_classes)
        layers: list[nn.Module] = []
        width, side = in_channels, size
        for wide in channels:
            layers += [nn.Conv2d(width, wide, 3, stride=2, padding=1), nn.ReLU()]
            width, side = wide, (side + 1) // 2
        _check_pool(pool, side)
        self.layers = nn.Sequential(
            *layers, nn.AdaptiveAvgPool2d(pool), nn.Flatten(), nn.Linear(width * pool**2, num_classes)
        )

    def forward(self, maps: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        self._check(maps)
        return self.layers(maps)


class _Attention(nn.Module):
    """Multi-head self-attention without biases on queries, keys and values."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        q, k, v = rearrange(self.qkv(tokens), "b n (three h d) -> three b h n d", three=3, h=self.num_heads)
        return self.proj(rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)"))


class _TransformerBlock(nn.Module):
    def __init__(self, dim: int, num_heads: int, mlp_ratio: float | int):
        super().__init__()
        hidden = round(mlp_ratio * dim)
        self.norm1, self.attention = nn.LayerNorm(dim), _Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class AttentionHead(_Head):
    """A class token that attends to the map's cells.

    Args:
        in_channels, size: channels and side of the map.
        num_classes: at least 2.
        pool: side of the grid of cells; the smaller of 16 and `size` if None.
        dim: width of the tokens. depth, num_heads, mlp_ratio: of the transformer.
        norm: "layer" (over channels and cells together, with weights per position) or "batch".

    Raises:
        ValueError: if a number is out of range, or `num_heads` does not divide `dim`.
    """

    def __init__(
        self,
        in_channels: int,
        size: int,
        num_classes: int,
        *,
        pool: int | None = None,
        dim: int = 1024,
        depth: int = 2,
        num_heads: int = 8,
        mlp_ratio: float | int = 4.0,
        norm: str = "layer",
    ):
        super().__init__(in_channels, size, num_classes)
        pool = min(_MOST_CELLS, size) if pool is None else pool
        _check_pool(pool, size)
        if dim < 1 or num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads must divide dim, got {num_heads} and {dim}")
        if norm not in ("layer", "batch"):
            raise ValueError(f"norm must be layer or batch, got {norm!r}")
        self.pool = pool
        self.norm = nn.LayerNorm((in_channels, pool, pool)) if norm == "layer" else nn.BatchNorm2d(in_channels)
        self.project = nn.Conv2d(in_channels, dim, 1)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks = nn.Sequential(*(_TransformerBlock(dim, num_heads, mlp_ratio) for _ in range(depth)))
        self.classifier = nn.Linear(dim, num_classes)

    def tokens(self, maps: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch cells dim"]:
        """The map's cells as tokens, row by row, without the class token."""
        self._check(maps)
        cells = self.project(self.norm(F.adaptive_avg_pool2d(maps, self.pool)))
        return rearrange(cells, "b d h w -> b (h w) d")

    def classify(self, tokens: Float[Tensor, "batch cells dim"]) -> Float[Tensor, "batch classes"]:
        """Logits from tokens, whatever their order."""
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        return self.classifier(self.blocks(tokens)[:, 0])

    def forward(self, maps: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        return self.classify(self.tokens(maps))
