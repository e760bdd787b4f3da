"""Multi-head attention of which the first heads, and the first features, can be used alone.

Valipour et al., "SortedNet", arXiv:2309.00255, 2023, section 3: the first h heads are the first rows of the query,
key and value projections and the first columns of the output projection.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from etude.training.sortednet.slicing import Region, SortedLayer, cut_out, prefix, prefix_region

__all__ = ["Attention", "SortedMultiheadAttention"]


class Attention(nn.Module):
    """Multi-head attention whose heads need not share out the features: `num_heads * head_dim` is free.

    What is left of an `nn.MultiheadAttention` when heads and features are cut independently. It is called, and answers,
    as that module does.

    Args:
        embed_dim: features of queries, keys, values and outputs.
        num_heads: number of heads.
        head_dim: features of each head.
        dropout: probability of dropping an attention weight in training.
        bias: whether the projections have biases.
        batch_first: inputs are (batch, length, features) instead of (length, batch, features).
    """

    # nn.TransformerEncoderLayer asks for it, and would pass square projections to a fused kernel.
    _qkv_same_embed_dim = False

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        head_dim: int,
        *,
        dropout: float | int = 0.0,
        bias: bool = True,
        batch_first: bool = False,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, head_dim
        self.dropout, self.batch_first = dropout, batch_first
        inner = num_heads * head_dim
        self.in_proj_weight = nn.Parameter(torch.empty(3 * inner, embed_dim, device=device))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * inner, device=device)) if bias else None
        self.out_proj = nn.Linear(inner, embed_dim, bias=bias, device=device)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(
        self,
        query: Float[Tensor, "*one two features"],
        key: Float[Tensor, "*one2 two2 features"],
        value: Float[Tensor, "*one2 two2 features"],
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The attended values and, if wanted, the attention weights, as `nn.MultiheadAttention.forward`."""
        return attend(
            (query, key, value), self.in_proj_weight, self.in_proj_bias, self.out_proj.weight, self.out_proj.bias,
            num_heads=self.num_heads, batch_first=self.batch_first, dropout=self.dropout if self.training else 0.0,
            key_padding_mask=key_padding_mask, attn_mask=attn_mask, is_causal=is_causal, need_weights=need_weights,
            average=average_attn_weights,
        )  # fmt: skip


def attend(
    inputs: tuple[Tensor, Tensor, Tensor],
    in_weight: Tensor,
    in_bias: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    *,
    num_heads: int,
    batch_first: bool,
    dropout: float | int,
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
    is_causal: bool,
    need_weights: bool,
    average: bool,
) -> tuple[Tensor, Tensor | None]:
    """Scaled dot-product attention with projections of any inner size, a multiple of `num_heads`."""
    if is_causal and attn_mask is None:
        raise ValueError("is_causal is a hint about attn_mask, which must be given too")
    batched = inputs[0].ndim == 3
    sequences = [x if batched else x.unsqueeze(0) for x in inputs]
    if batched and not batch_first:
        sequences = [x.transpose(0, 1) for x in sequences]
    biases = (None,) * 3 if in_bias is None else in_bias.chunk(3)
    # (batch, heads, length, head features)
    q, k, v = (
        F.linear(x, weight, bias).unflatten(-1, (num_heads, -1)).transpose(1, 2)
        for x, weight, bias in zip(sequences, in_weight.chunk(3), biases)
    )
    mask = _mask(attn_mask, key_padding_mask if batched else _row(key_padding_mask), q)
    weights = None
    if need_weights:
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        weights = F.dropout((scores if mask is None else scores + mask).softmax(dim=-1), dropout)
        mixed = weights @ v
    else:
        mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout)
    output = F.linear(mixed.transpose(1, 2).flatten(-2), out_weight, out_bias)
    if weights is not None and average:
        weights = weights.mean(dim=1)
    if not batched:
        return output.squeeze(0), None if weights is None else weights.squeeze(0)
    return output if batch_first else output.transpose(0, 1), weights


def _row(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.unsqueeze(0)


def _mask(attn_mask: Tensor | None, padding: Tensor | None, q: Tensor) -> Tensor | None:
    """Both masks as one that is added to the scores, broadcast to (batch, heads, queries, keys)."""

    def added(mask: Tensor) -> Tensor:
        if mask.dtype != torch.bool:
            return mask.to(q.dtype)
        return torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill_(mask, float("-inf"))

    total = None
    if attn_mask is not None:
        total = added(attn_mask)
        if total.ndim == 3:
            batch, heads = q.shape[:2]
            if len(total) != batch * heads:
                raise ValueError(
                    f"attn_mask must be (queries, keys) or ({batch * heads}, queries, keys), one for each of {heads} "
                    f"active heads of each sequence, got {tuple(total.shape)}"
                )
            total = total.unflatten(0, (batch, heads))
    if padding is not None:
        hidden = added(padding)[:, None, None, :]
        total = hidden if total is None else total + hidden
    return total


class SortedMultiheadAttention(SortedLayer, nn.MultiheadAttention):
    """`nn.MultiheadAttention` that can use its first features and its first heads alone.

        layer = SortedMultiheadAttention(64, 8, batch_first=True)
        layer.active = (32, 4)     # features, heads; a head keeps its 64 / 8 = 8 inner features
        y, _ = layer(x, x, x)      # x and y: (batch, length, 32)

    With everything active it is `nn.MultiheadAttention` itself, to the last bit.
    """

    axes = ("features", "heads")
    parts = ("out_proj",)

    def full_sizes(self) -> tuple[int, ...]:
        return self.embed_dim, self.num_heads

    def _check_active(self, sizes: tuple[int, ...]) -> None:
        if self.in_proj_weight is None or self.bias_k is not None or self.add_zero_attn:
            raise ValueError(
                f"{self._label()} can be cut only with keys and values as wide as queries, and without add_bias_kv "
                "and add_zero_attn"
            )

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The attended values and, if wanted, the attention weights, as `nn.MultiheadAttention.forward`."""
        features, heads = self.active
        self._expect(query, -1, features)
        masks: dict[str, Any] = {"key_padding_mask": key_padding_mask, "attn_mask": attn_mask, "is_causal": is_causal}
        if self.active == self.full_sizes():
            return nn.MultiheadAttention.forward(
                self, query, key, value, need_weights=need_weights, average_attn_weights=average_attn_weights, **masks
            )  # fmt: skip
        in_weight, in_bias, out_weight, out_bias = self._projections()
        return attend(
            (query, key, value), in_weight, in_bias, out_weight, out_bias,
            num_heads=heads, batch_first=self.batch_first, dropout=self.dropout if self.training else 0.0,
            need_weights=need_weights, average=average_attn_weights, **masks,
        )  # fmt: skip

    def _projections(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        features, heads = self.active
        inner = heads * self.head_dim
        weight = self.in_proj_weight.unflatten(0, (3, self.embed_dim))[:, :inner, :features].flatten(0, 1)
        bias = None
        if self.in_proj_bias is not None:
            bias = self.in_proj_bias.unflatten(0, (3, self.embed_dim))[:, :inner].flatten()
        out_bias = None if self.out_proj.bias is None else prefix(self.out_proj.bias, features)
        return weight, bias, prefix(self.out_proj.weight, features, inner), out_bias

    def regions(self) -> dict[str, list[Region]]:
        features, heads = self.active
        inner = heads * self.head_dim
        rows = [slice(part * self.embed_dim, part * self.embed_dim + inner) for part in range(3)]
        regions: dict[str, list[Region]] = {
            "in_proj_weight": [(row, slice(0, features)) for row in rows],
            "out_proj.weight": [prefix_region(features, inner)],
        }
        if self.in_proj_bias is not None:
            regions |= {"in_proj_bias": [(row,) for row in rows], "out_proj.bias": [prefix_region(features)]}
        return regions

    def extracted(self) -> nn.Module:
        features, heads = self.active
        bias = self.in_proj_bias is not None
        plain: nn.Module
        if features == heads * self.head_dim:
            plain = nn.MultiheadAttention(
                features, heads, self.dropout, bias, batch_first=self.batch_first, device="meta"
            )
        else:
            plain = Attention(
                features, heads, self.head_dim, dropout=self.dropout, bias=bias, batch_first=self.batch_first,
                device="meta",
            )  # fmt: skip
        in_weight, in_bias, out_weight, out_bias = self._projections()
        cut_out(self.out_proj, plain.out_proj, {"weight": out_weight, "bias": out_bias})
        return cut_out(self, plain, {"in_proj_weight": in_weight, "in_proj_bias": in_bias})
