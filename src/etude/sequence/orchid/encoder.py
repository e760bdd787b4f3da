"""Encoders: blocks of a token mixer and a feed-forward network, with Orchid as the mixer or with any other.

Karami & Ghodsi, arXiv:2402.18508, section 4; the block-diagonal network is that of Fu et al., "Monarch Mixer: a simple
sub-quadratic GEMM-based architecture", 2023, arXiv:2310.12109.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from etude.nn.transformer import DropPath, FeedForward
from etude.sequence.orchid.operator import Orchid

__all__ = ["BlockDiagonalLinear", "Encoder", "EncoderBlock", "OrchidEncoder"]


class BlockDiagonalLinear(nn.Module):
    """A linear map whose matrix has blocks on its diagonal and zeros elsewhere.

    Args:
        in_features, out_features: multiples of `blocks`.
        blocks: how many, so that the matrix has a `blocks`-th of its parameters.

    Raises:
        ValueError: if a size is no multiple.
    """

    def __init__(self, in_features: int, out_features: int, blocks: int):
        super().__init__()
        if blocks < 1 or in_features % blocks or out_features % blocks:
            raise ValueError(f"sizes must be multiples of the blocks, got {in_features}, {out_features} and {blocks}")
        bound = (in_features // blocks) ** -0.5
        self.weight = nn.Parameter(torch.empty(blocks, out_features // blocks, in_features // blocks))
        self.bias = nn.Parameter(torch.empty(out_features))
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        parts = x.unflatten(-1, (len(self.weight), -1))
        return torch.einsum("...bi,boi->...bo", parts, self.weight).flatten(-2) + self.bias


class _BlockFeedForward(nn.Module):
    def __init__(self, dim: int, hidden_dim: int, blocks: int, dropout: float | int):
        super().__init__()
        self.fc1 = BlockDiagonalLinear(dim, hidden_dim, blocks)
        self.fc2 = BlockDiagonalLinear(hidden_dim, dim, blocks)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x)))))


class EncoderBlock(nn.Module):
    """x + mixer(norm(x)), then x + feedforward(norm(x)).

    Args:
        mixer: maps (batch, length, dim) to the same shape; `mask` is handed to it only if there is one.
        dim: features of a token.
        mlp_ratio: hidden features of the feed-forward network over `dim`.
        mlp_blocks: of its block-diagonal matrices; 1: dense.
        dropout: of the feed-forward network.
        drop_path: stochastic depth of both branches.
    """

    def __init__(
        self,
        mixer: nn.Module,
        dim: int,
        *,
        mlp_ratio: float | int = 4,
        mlp_blocks: int = 1,
        dropout: float | int = 0.0,
        drop_path: float | int = 0.0,
    ):
        super().__init__()
        hidden = int(mlp_ratio * dim)
        if hidden < 1 or mlp_blocks < 1:
            raise ValueError(f"mlp_ratio and mlp_blocks must be positive, got {mlp_ratio} and {mlp_blocks}")
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mixer = mixer
        self.mlp: nn.Module = (
            FeedForward(dim, hidden, dropout=dropout)
            if mlp_blocks == 1
            else _BlockFeedForward(dim, hidden, mlp_blocks, dropout)
        )
        self.drop_path = DropPath(drop_path)

    def forward(
        self, x: Float[Tensor, "batch length dim"], *, mask: Bool[Tensor, "batch length"] | None = None
    ) -> Float[Tensor, "batch length dim"]:
        options = {} if mask is None else {"mask": mask}
        x = x + self.drop_path(self.mixer(self.norm1(x), **options))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Encoder(nn.Module):
    """Blocks, one for each mixer, and a last norm.

    Args:
        mixers: one for each block.
        dim: features of a token.
        drop_path: stochastic depth of the last block; it grows from 0 at the first.
        options: of `EncoderBlock`.

    Raises:
        ValueError: if there is no mixer.
    """

    def __init__(self, mixers: Iterable[nn.Module], dim: int, *, drop_path: float | int = 0.0, **options: Any):
        super().__init__()
        given = list(mixers)
        if not given:
            raise ValueError("an encoder needs at least one mixer, got none")
        rates = torch.linspace(0, drop_path, len(given)).tolist()
        self.blocks = nn.ModuleList(
            EncoderBlock(mixer, dim, drop_path=rate, **options) for mixer, rate in zip(given, rates)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, x: Float[Tensor, "batch length dim"], *, mask: Bool[Tensor, "batch length"] | None = None
    ) -> Float[Tensor, "batch length dim"]:
        for block in self.blocks:
            x = block(x, mask=mask)
        return self.norm(x)


class OrchidEncoder(Encoder):
    """An encoder of Orchid layers.

        encoder = OrchidEncoder(64, depth=4, max_len=256, kind="type2")
        y = encoder(x)                                                     # (batch, length, 64)

    There are no positions in it: with the defaults of `Orchid`, a circular shift of the tokens shifts the output.

    Args:
        dim: features of a token.
        depth: blocks.
        max_len: longest sequence.
        mlp_ratio, mlp_blocks, dropout: of `EncoderBlock`. Orchid's BERT and ViT have four blocks.
        drop_path: of `Encoder`.
        orchid: of `Orchid`.
    """

    def __init__(
        self,
        dim: int,
        *,
        depth: int,
        max_len: int,
        mlp_ratio: float | int = 4,
        mlp_blocks: int = 1,
        dropout: float | int = 0.0,
        drop_path: float | int = 0.0,
        **orchid: Any,
    ):
        super().__init__(
            (Orchid(dim, max_len, **orchid) for _ in range(depth)), dim, drop_path=drop_path, mlp_ratio=mlp_ratio,
            mlp_blocks=mlp_blocks, dropout=dropout,
        )  # fmt: skip
