"""Softmax attention, of each token to all earlier ones or to a window of them: what the other mixers are measured by.

Vaswani et al., arXiv:1706.03762; Ainslie et al., "GQA", 2023, arXiv:2305.13245; Beltagy, Peters & Cohan, "Longformer",
2020, arXiv:2004.05150, for the window.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from etude.nn.mixers import Mixer, register_mixer
from etude.nn.positions import apply_rotary, rotary_frequencies

__all__ = ["Attention", "WindowAttention"]


@register_mixer("attention")
class Attention(Mixer):
    """Multi-head attention to all earlier tokens, in which groups of query heads may share keys and values.

    Args:
        dim: features of a token.
        num_heads: query heads; `dim` is a multiple.
        num_kv_heads: heads of keys and values, a divisor of `num_heads`; as many if None.
        rope_theta: base of the rotary position embedding; None: no positions.
        bias: whether queries, keys and values have a bias.
        dropout: of the attention weights.
        causal: whether a token sees earlier ones alone.

    Raises:
        ValueError: if the heads do not divide, or a head is of odd width with rotary positions.
    """

    cost = "O(L^2 D)"

    def __init__(
        self,
        dim: int,
        num_heads: int = 1,
        num_kv_heads: int | None = None,
        *,
        rope_theta: float | int | None = None,
        bias: bool = True,
        dropout: float | int = 0.0,
        causal: bool = True,
    ):
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        if num_heads < 1 or num_kv_heads < 1 or dim % num_heads or num_heads % num_kv_heads:
            raise ValueError(
                f"dim must be a multiple of num_heads, and num_heads of num_kv_heads, got {dim}, {num_heads} and "
                f"{num_kv_heads}"
            )
        self.dim, self.num_heads, self.num_kv_heads = dim, num_heads, num_kv_heads
        self.head_dim = dim // num_heads
        self.causal = causal  # type: ignore[misc]
        self.rope_theta, self.dropout = rope_theta, dropout
        if rope_theta is not None:
            rotary_frequencies(self.head_dim, rope_theta)
        self.qkv = nn.Linear(dim, dim + 2 * num_kv_heads * self.head_dim, bias=bias)
        self.out = nn.Linear(dim, dim)

    def _heads(self, x: Tensor, start: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """q (B, heads, L, d), k and v (B, kv heads, L, d) of tokens that stand at `start` and after."""
        kv = self.num_kv_heads * self.head_dim
        q, k, v = (
            part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for part in self.qkv(x).split([self.dim, kv, kv], dim=-1)
        )
        if self.rope_theta is not None:
            frequencies = rotary_frequencies(self.head_dim, self.rope_theta)
            places = torch.arange(start, start + x.shape[1], device=x.device)
            q, k = apply_rotary(q, places, frequencies), apply_rotary(k, places, frequencies)
        return q, k, v

    def _allowed(self, length: int, device: torch.device) -> Bool[Tensor, "length length"] | None:
        """Which token sees which, beyond causality; None: all."""
        return None

    def forward(
        self, x: Float[Tensor, "batch length dim"], *, mask: Bool[Tensor, "batch length"] | None = None
    ) -> Float[Tensor, "batch length dim"]:
        q, k, v = self._heads(x)
        length = x.shape[1]
        allowed = self._allowed(length, x.device)
        if mask is not None:
            seen = torch.ones(length, length, dtype=torch.bool, device=x.device) if allowed is None else allowed
            if allowed is None and self.causal:
                seen = seen.tril()
            # A token that sees nothing but padding sees itself, so that its output is a number.
            itself = torch.eye(length, dtype=torch.bool, device=x.device)
            allowed = ((seen & mask[:, None]) | itself)[:, None]
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=allowed, is_causal=self.causal and allowed is None and length > 1,
            dropout_p=self.dropout if self.training else 0.0, enable_gqa=self.num_heads != self.num_kv_heads,
        )  # fmt: skip
        return self.out(y.transpose(1, 2).flatten(2))

    def init_state(self, batch: int) -> dict[str, Any]:
        """Keys and values of the tokens read, (batch, kv heads, read, head width) each, and how many were read.

        Raises:
            TypeError: if the attention is not causal.
        """
        if not self.causal:
            raise TypeError("attention to later tokens has no step form")
        empty = self.qkv.weight.new_zeros(batch, self.num_kv_heads, 0, self.head_dim)
        return {"keys": empty, "values": empty, "read": 0}

    def step(
        self, x: Float[Tensor, "batch dim"], state: dict[str, Any]
    ) -> tuple[Float[Tensor, "batch dim"], dict[str, Any]]:
        q, k, v = self._heads(x[:, None], state["read"])
        keys, values = torch.cat([state["keys"], k], dim=2), torch.cat([state["values"], v], dim=2)
        kept = self._kept()
        if kept is not None:
            keys, values = keys[:, :, -kept:], values[:, :, -kept:]
        y = F.scaled_dot_product_attention(q, keys, values, enable_gqa=self.num_heads != self.num_kv_heads)
        return self.out(y.transpose(1, 2).flatten(1)), {"keys": keys, "values": values, "read": state["read"] + 1}

    def _kept(self) -> int | None:
        """How many of the last tokens a step sees; None: all."""
        return None

    def state_size(self, length: int) -> int:
        kept = self._kept()
        return 2 * self.num_kv_heads * self.head_dim * (length if kept is None else min(length, kept))

    def flops(self, length: int) -> int:
        projections = 2 * length * self.dim * (2 * self.dim + 2 * self.num_kv_heads * self.head_dim)
        kept = self._kept()
        seen = length if kept is None else min(length, kept)
        return projections + 4 * length * seen * self.dim


@register_mixer("window")
class WindowAttention(Attention):
    """Causal attention to the last `window` tokens, oneself included.

    Args:
        window: tokens that a token sees, at least 1.
        dim, num_heads, num_kv_heads, rope_theta, bias, dropout: as for `Attention`.

    Raises:
        ValueError: as `Attention`, and for an empty window.
    """

    cost = "O(L w D)"

    def __init__(
        self,
        dim: int,
        num_heads: int = 1,
        num_kv_heads: int | None = None,
        *,
        window: int = 64,
        rope_theta: float | int | None = None,
        bias: bool = True,
        dropout: float | int = 0.0,
    ):
        super().__init__(dim, num_heads, num_kv_heads, rope_theta=rope_theta, bias=bias, dropout=dropout)
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        self.window = window

    def _allowed(self, length: int, device: torch.device) -> Bool[Tensor, "length length"]:
        places = torch.arange(length, device=device)
        distance = places[:, None] - places
        return (distance >= 0) & (distance < self.window)

    def _kept(self) -> int:
        return self.window
