"""Attention over sets, whose answer does not depend on the order of the elements.

Lee, Lee, Kim, Kosiorek, Choi & Teh, "Set Transformer", arXiv:1810.00825, 2019.

With Q', K', V' linear maps of Q, K, K to `dim` features, cut in heads h,

    O = Q' + concat_h softmax(Q'_h K'_h^T / sqrt(dim)) V'_h
    MAB(Q, K) = O + relu(O W_o + b_o)                                                                     (1)
    SAB(X) = MAB(X, X),    ISAB(X) = MAB(X, MAB(I, X)),    PMA(X) = MAB(S, X)                                 (2)

with learned inducing points I and seeds S. The scale is the root of the full width, not of a head's, as in the code of
both papers; no layer norm by default.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

__all__ = ["ISAB", "MAB", "PMA", "SAB", "SetTransformer"]


class MAB(nn.Module):
    """Attention of queries to keys with a residual feed-forward, Eq. (1).

    Args:
        dim_query, dim_key: features of queries and keys.
        dim: features of the output, a multiple of `num_heads`.
        num_heads: heads.
        layer_norm: normalise after the attention and after the feed-forward.
    """

    def __init__(self, dim_query: int, dim_key: int, dim: int, num_heads: int = 2, *, layer_norm: bool = False):
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads, got {dim} and {num_heads}")
        self.num_heads = num_heads
        self.query = nn.Linear(dim_query, dim)
        self.key = nn.Linear(dim_key, dim)
        self.value = nn.Linear(dim_key, dim)
        self.out = nn.Linear(dim, dim)
        self.norm0 = nn.LayerNorm(dim) if layer_norm else nn.Identity()
        self.norm1 = nn.LayerNorm(dim) if layer_norm else nn.Identity()

    def forward(
        self,
        queries: Float[Tensor, "batch queries dim_query"],
        keys: Float[Tensor, "batch keys dim_key"],
        mask: Bool[Tensor, "batch keys"] | None = None,
    ) -> Float[Tensor, "batch queries dim"]:
        """`mask` says which keys are there; each set needs one."""
        q, k, v = self.query(queries), self.key(keys), self.value(keys)
        split = [part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (q, k, v)]
        there = None if mask is None else mask[:, None, None, :]
        mixed = F.scaled_dot_product_attention(split[0], split[1], split[2], attn_mask=there, scale=q.shape[-1] ** -0.5)
        o = self.norm0(q + mixed.transpose(1, 2).flatten(2))
        return self.norm1(o + F.relu(self.out(o)))


class SAB(nn.Module):
    """Elements attend to each other, Eq. (2)."""

    def __init__(self, dim_in: int, dim: int, num_heads: int = 2, *, layer_norm: bool = False):
        super().__init__()
        self.mab = MAB(dim_in, dim_in, dim, num_heads, layer_norm=layer_norm)

    def forward(
        self, x: Float[Tensor, "batch n dim_in"], mask: Bool[Tensor, "batch n"] | None = None
    ) -> Float[Tensor, "batch n dim"]:
        return self.mab(x, x, mask)


class ISAB(nn.Module):
    """Elements attend to each other through `num_inducing` learned points, Eq. (2): linear in their number."""

    def __init__(self, dim_in: int, dim: int, num_heads: int = 2, num_inducing: int = 32, *, layer_norm: bool = False):
        super().__init__()
        self.inducing = nn.Parameter(torch.empty(1, num_inducing, dim))
        nn.init.xavier_uniform_(self.inducing)
        self.gather = MAB(dim, dim_in, dim, num_heads, layer_norm=layer_norm)
        self.spread = MAB(dim_in, dim, dim, num_heads, layer_norm=layer_norm)

    def forward(
        self, x: Float[Tensor, "batch n dim_in"], mask: Bool[Tensor, "batch n"] | None = None
    ) -> Float[Tensor, "batch n dim"]:
        return self.spread(x, self.gather(self.inducing.expand(len(x), -1, -1), x, mask))


class PMA(nn.Module):
    """`num_seeds` learned queries pool the set, Eq. (2)."""

    def __init__(self, dim: int, num_heads: int = 2, num_seeds: int = 1, *, layer_norm: bool = False):
        super().__init__()
        self.seeds = nn.Parameter(torch.empty(1, num_seeds, dim))
        nn.init.xavier_uniform_(self.seeds)
        self.mab = MAB(dim, dim, dim, num_heads, layer_norm=layer_norm)

    def forward(
        self, x: Float[Tensor, "batch n dim"], mask: Bool[Tensor, "batch n"] | None = None
    ) -> Float[Tensor, "batch seeds dim"]:
        return self.mab(self.seeds.expand(len(x), -1, -1), x, mask)


class SetTransformer(nn.Module):
    """A set to one vector: attention among the elements, pooling by one seed, a linear layer.

        SetTransformer(512, 512, dim=128, num_inducing=32)(x, mask)     # (batch, n, 512) -> (batch, 512)

    Args:
        dim_in, dim_out: features of an element and of the answer.
        dim: features between.
        num_heads: heads of every attention.
        depth: blocks before the pooling; ISAB with `num_inducing` points, SAB if that is None.
        num_inducing: inducing points.
        depth_after: SABs after the pooling.
        layer_norm: in every block.
    """

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        *,
        dim: int = 128,
        num_heads: int = 2,
        depth: int = 2,
        num_inducing: int | None = 32,
        depth_after: int = 2,
        layer_norm: bool = False,
    ):
        super().__init__()
        if depth < 1 or depth_after < 0:
            raise ValueError(f"need depth >= 1 and depth_after >= 0, got {depth} and {depth_after}")
        blocks: list[nn.Module] = []
        for index in range(depth):
            width = dim if index else dim_in
            blocks.append(
                SAB(width, dim, num_heads, layer_norm=layer_norm) if num_inducing is None
                else ISAB(width, dim, num_heads, num_inducing, layer_norm=layer_norm)
            )  # fmt: skip
        self.encoder = nn.ModuleList(blocks)
        self.pool = PMA(dim, num_heads, layer_norm=layer_norm)
        self.decoder = nn.Sequential(*(SAB(dim, dim, num_heads, layer_norm=layer_norm) for _ in range(depth_after)))
        self.head = nn.Linear(dim, dim_out)

    def forward(
        self, x: Float[Tensor, "batch n dim_in"], mask: Bool[Tensor, "batch n"] | None = None
    ) -> Float[Tensor, "batch dim_out"]:
        """`mask` says which elements are there; every set needs one."""
        if mask is not None and not bool(mask.any(dim=1).all()):
            raise ValueError(f"{int((~mask.any(dim=1)).sum())} of {len(mask)} sets are empty")
        for block in self.encoder:
            x = block(x, mask)
        return self.head(self.decoder(self.pool(x, mask)).squeeze(1))
