"""Attention in which queries, keys and values have head counts of their own.

Lin et al., arXiv:2501.13629, section 2: query head i of n_q reads key head floor(i n_k / n_q) and value head
floor(i n_v / n_q) (Eq. 3), so that consecutive query heads share.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["SelectedValues", "attention_scores", "check_heads", "diff_attention", "selective_value_attention"]


def check_heads(num_q_heads: int, num_k_heads: int, num_v_heads: int) -> None:
    """Raises ValueError unless both other counts divide that of the query heads."""
    if min(num_q_heads, num_k_heads, num_v_heads) < 1 or num_q_heads % num_k_heads or num_q_heads % num_v_heads:
        raise ValueError(
            "the query heads must be a multiple of the key heads and of the value heads, got "
            f"{num_q_heads} query, {num_k_heads} key and {num_v_heads} value heads"
        )


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    check_heads(q.shape[1], k.shape[1], v.shape[1])
    if q.shape[3] != k.shape[3] or k.shape[2] != v.shape[2] or not len(q) == len(k) == len(v):
        raise ValueError(
            "q (batch, heads, queries, width) needs keys of its width and as many values as keys, got shapes "
            f"{tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
        )


def _visible(queries: int, keys: int, device: torch.device) -> Bool[Tensor, "queries keys"]:
    """Causality for the last `queries` of `keys` tokens."""
    places = torch.arange(keys, device=device)
    return places <= places[keys - queries :, None]


def attention_scores(
    q: Float[Tensor, "batch q_heads queries width"],
    k: Float[Tensor, "batch k_heads keys width"],
    *,
    causal: bool = True,
    scale: float | None = None,
    mask: Bool[Tensor, "batch keys"] | None = None,
) -> Float[Tensor, "batch q_heads queries keys"]:
    """Scaled products of queries and keys, in at least float32, -inf where a query may not look.

    Keys are not repeated: the query heads that share a key head are multiplied with it together.
    """
    batch, heads, queries, width = q.shape
    k_heads, keys = k.shape[1:3]
    scale = width**-0.5 if scale is None else scale
    grouped = q.reshape(batch, k_heads, heads // k_heads * queries, width)
    scores = (grouped @ k.transpose(-2, -1)).view(batch, heads, queries, keys)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * scale
    allowed = _visible(queries, keys, q.device) if causal and queries > 1 else None
    if mask is not None:
        hidden = mask[:, None, None]
        allowed = hidden if allowed is None else allowed & hidden
    return scores if allowed is None else scores.masked_fill(~allowed, float("-inf"))


def _weights(scores: Tensor) -> Tensor:
    """Softmax over keys; a query that may look nowhere has weights 0."""
    empty = (scores == float("-inf")).all(-1, keepdim=True)
    return torch.softmax(scores.masked_fill(empty, 0.0), dim=-1).masked_fill(empty, 0.0)


def diff_attention(
    q: Float[Tensor, "batch q_heads queries width"],
    k: Float[Tensor, "batch k_heads keys width"],
    v: Float[Tensor, "batch v_heads values v_width"],
    *,
    causal: bool = True,
    scale: float | None = None,
    mask: Bool[Tensor, "batch keys"] | None = None,
    dropout: float | int = 0.0,
) -> Float[Tensor, "batch q_heads queries v_width"]:
    """softmax(q k^T / sqrt(width)) v with the heads of Eq. (3).

    One query (decoding) is answered by grouped products that never copy keys or values; more of them by
    `scaled_dot_product_attention`, for which heads are repeated unless keys and values have equally many.

    Args:
        q: the last `queries` of the tokens.
        k, v: of all tokens so far, as many values as keys.
        causal: whether a query sees tokens up to its own alone.
        scale: of the products; 1 / sqrt(width) if None.
        mask: true for keys that may be seen. A query that may look nowhere gets zeros.
        dropout: probability for the weights.

    Raises:
        ValueError: if head counts do not divide, or shapes do not fit.
    """
    _check(q, k, v)
    batch, heads, queries, _ = q.shape
    v_heads, keys = v.shape[1:3]
    if queries == 1 and not dropout:
        weights = _weights(attention_scores(q, k, causal=causal, scale=scale, mask=mask)).to(v.dtype)
        return (weights.reshape(batch, v_heads, heads // v_heads, keys) @ v).reshape(batch, heads, 1, -1)
    if k.shape[1] != v_heads:
        k, v = k.repeat_interleave(heads // k.shape[1], 1), v.repeat_interleave(heads // v_heads, 1)
    if mask is None and (not causal or queries == keys):
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=causal and queries > 1, scale=scale, dropout_p=dropout, enable_gqa=k.shape[1] != heads
        )
    allowed = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=q.device)
    if causal:
        allowed = allowed & _visible(queries, keys, q.device)
    if mask is not None:
        allowed = allowed & mask[:, None, None]
    nowhere = ~allowed.any(-1, keepdim=True)
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=allowed | nowhere, scale=scale, dropout_p=dropout, enable_gqa=k.shape[1] != heads
    )
    return out.masked_fill(nowhere, 0.0)


class SelectedValues(NamedTuple):
    """Attention over the values of the likeliest keys.

    Args:
        out: (batch, query heads, queries, value width).
        kept: weights of the keys kept, (batch, query heads, queries, count), falling.
        places: which keys they are.
        rows_loaded: rows that have to be read of each value head, the union over its query heads, summed over queries:
            (batch, value heads).
    """

    out: Tensor
    kept: Tensor
    places: Tensor
    rows_loaded: Tensor


def selective_value_attention(
    scores: Float[Tensor, "batch q_heads queries keys"],
    v: Float[Tensor, "batch v_heads keys v_width"],
    k: int,
    *,
    renormalise: bool = False,
    places: Int[Tensor, "batch q_heads queries count"] | None = None,
) -> SelectedValues:
    """Attention that reads the values of the k likeliest keys of each query alone (appendix B.2).

    The weights are those of the softmax over all keys, or renormalised over the kept ones (the paper does not say
    which). Without renormalising, |out - dense| <= (1 - sum of kept weights) max |v|.

    Args:
        scores: of `attention_scores`.
        v: values.
        k: how many are kept; as many as there are keys, or more, give dense attention.
        renormalise: whether kept weights are brought to sum 1.
        places: keys to keep instead of the likeliest ones, as a control.

    Raises:
        ValueError: if k < 1 or the head counts do not divide.
    """
    batch, heads, queries, keys = scores.shape
    v_heads = v.shape[1]
    check_heads(heads, heads, v_heads)
    if k < 1:
        raise ValueError(f"at least one value must be kept, got k = {k}")
    weights = _weights(scores)
    if places is None:
        kept, places = weights.topk(min(k, keys), dim=-1)
    else:
        kept = weights.gather(-1, places)
    if renormalise:
        kept = kept / kept.sum(-1, keepdim=True).clamp(min=torch.finfo(kept.dtype).tiny)
    head = torch.arange(heads, device=v.device) * v_heads // heads
    row = torch.arange(batch, device=v.device)[:, None, None, None]
    rows = v[row, head[:, None, None], places]
    out = (kept.to(v.dtype)[..., None] * rows).sum(-2)
    read = torch.zeros(batch, heads, queries, keys, dtype=torch.bool, device=v.device)
    read.scatter_(-1, places, kept > 0)
    loaded = read.view(batch, v_heads, heads // v_heads, queries, keys).any(2).sum((-2, -1))
    return SelectedValues(out, kept, places, loaded)
