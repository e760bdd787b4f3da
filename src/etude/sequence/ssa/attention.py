"""Attention over sampled sources, group by group: the cost is a fraction of the dense one's, not only the statistics.

Hussain, Zaki & Subramanian, arXiv:2306.01705. Causality and positions are those of the original places. A query is
always given itself, as one more key that counts once: otherwise a causal sample may be empty (our rule).
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from etude.nn.mixers import Mixer, register_mixer
from etude.nn.positions import apply_rotary, rotary_frequencies
from etude.sequence.ssa.sampling import IndexSets
from etude.sequence.ssa.settings import Subsampling

__all__ = ["SubsampledAttention", "subsampled_attention"]


def subsampled_attention(
    q: Float[Tensor, "batch heads n width"],
    k: Float[Tensor, "batch heads m width"],
    v: Float[Tensor, "batch heads m value"],
    index_sets: IndexSets,
    *,
    causal: bool = False,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
    dropout: float | int = 0.0,
    self_keys: bool = True,
    logit_bias: float | int = 0.0,
) -> Float[Tensor, "batch heads n value"]:
    """softmax over the sampled sources, for each group of queries.

    Args:
        q, k, v: in the original order, positions already in them.
        index_sets: of `sample_sources`, one for all samples or one each.
        causal: whether source j is visible to query i only if j <= i.
        attn_mask: as of `scaled_dot_product_attention`, broadcast to (batch, heads, n, m): booleans, true for what may
            be seen, or numbers that are added.
        scale: of the products; 1 / sqrt(width) if None.
        dropout: probability for the weights.
        self_keys: whether a query is given itself; for self-attention.
        logit_bias: added to the sampled scores of others than itself, log(1 / fraction) to make up for those missing.

    Returns:
        The outputs in the original order. A query that may see nothing gets zeros.

    Raises:
        ValueError: if `self_keys` is asked for and there are not as many sources as queries.
    """
    batch, heads, n, width = q.shape
    m = k.shape[2]
    if self_keys and m != n:
        raise ValueError(f"only self-attention gives queries themselves: {n} queries, {m} sources")
    scale = width**-0.5 if scale is None else scale
    queries, sources = (
        part if part.ndim == 3 else part.expand(batch, -1, -1) for part in (index_sets.queries, index_sets.sources)
    )
    place_q, place_s = queries[:, None, :, :, None], sources[:, None, :, None, :]
    hidden = place_s < 0
    if causal:
        hidden = hidden | (place_s > place_q)
    given = None
    if attn_mask is not None:
        given = attn_mask.expand(batch, attn_mask.shape[-3] if attn_mask.ndim > 2 else 1, n, m)
        row = torch.arange(batch, device=q.device)[:, None, None, None]
        places = queries.clamp(min=0)[..., :, None], sources.clamp(min=0)[..., None, :]
        extra = given.transpose(0, 1)[:, row, *places].transpose(0, 1)
        hidden = hidden | (~extra if extra.dtype == torch.bool else extra == float("-inf"))
    q_g, k_g, v_g = _rows(q, queries) * scale, _rows(k, sources), _rows(v, sources)
    if self_keys:  # one more column, which is written below: joining it to the scores would copy them
        k_g, v_g = F.pad(k_g, (0, 0, 0, 1)), F.pad(v_g, (0, 0, 0, 1))
        alone, hidden_self = _self_scores(q_g, k, queries, given), ((place_s == place_q) & ~hidden).any(-1, True)
        if given is not None and given.dtype == torch.bool:
            hidden_self = hidden_self | ~_diagonal(given, queries)
        lead = torch.broadcast_shapes(hidden.shape[:-1], hidden_self.shape[:-1])
        hidden = torch.cat([hidden.expand(*lead, -1), hidden_self.expand(*lead, 1)], dim=-1)
    scores = q_g @ k_g.transpose(-2, -1)
    if given is not None and given.dtype != torch.bool:
        scores = scores + F.pad(extra, (0, scores.shape[-1] - extra.shape[-1]))
    if logit_bias:
        scores[..., : sources.shape[-1]] += logit_bias
    if self_keys:
        scores[..., -1:] = alone
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).masked_fill_(hidden, float("-inf"))
    # Only a mask, or a sample without oneself, can leave a query with nothing to see.
    nothing = hidden.all(-1, keepdim=True) if given is not None or not self_keys else None
    if nothing is not None:
        scores = scores.masked_fill(nothing, 0.0)
    weights = torch.softmax(scores, dim=-1).to(v.dtype)
    if nothing is not None:
        weights = weights.masked_fill(nothing, 0.0)
    if dropout:
        weights = F.dropout(weights, dropout)
    out = weights @ v_g
    if self_keys:
        out = torch.addcmul(out, weights[..., -1:], _rows(v, queries))
    # Back to the original places; what was filled up goes to a place more, which is cut off.
    home = torch.where(queries < 0, n, queries).flatten(1)[:, None, :, None].expand(-1, heads, -1, v.shape[-1])
    return out.new_zeros(batch, heads, n + 1, v.shape[-1]).scatter(2, home, out.flatten(2, 3))[:, :, :n]


def _self_scores(q_g: Tensor, k: Tensor, queries: Tensor, given: Tensor | None) -> Tensor:
    """Each query's score with itself, (batch, heads, groups, size, 1)."""
    own = (q_g * _rows(k, queries)).sum(-1, keepdim=True)
    return own if given is None or given.dtype == torch.bool else own + _diagonal(given, queries)


def _diagonal(given: Tensor, queries: Tensor) -> Tensor:
    """A mask's entries of queries with themselves, (batch, 1 or heads, groups, size, 1)."""
    diagonal = given.diagonal(dim1=-2, dim2=-1)
    at = queries.clamp(min=0).flatten(1)[:, None].expand(-1, diagonal.shape[1], -1)
    return diagonal.gather(2, at).unflatten(2, queries.shape[1:])[..., None]


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """x (batch, heads, n, d) at index (batch, groups, size): (batch, heads, groups, size, d); anything at -1."""
    flat = index.clamp(min=0).flatten(1)[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[-1])
    return x.gather(2, flat).unflatten(2, index.shape[1:])


@register_mixer("ssa")
class SubsampledAttention(Mixer):
    """Self-attention that samples its sources while it trains, anew in every forward pass, and is dense at test.

        layer = SubsampledAttention(64, 4, fraction=0.25, causal=True)
        with subsampled(layer, generator):             # at test, too: one sub-network
            y = layer(x)

    It has the parameters of dense attention and nothing else. Gathering costs O(N d): below some 256 tokens the dense
    kernel is faster.

    Args:
        dim: features of a token.
        num_heads: heads, which share the sample; `dim` is a multiple.
        fraction, sampler, window, sigma: see `sample_sources`.
        causal: whether a token sees earlier ones alone.
        rope_theta: base of the rotary positions, which are the original ones; None: none.
        dropout: of the attention weights.
        bias: whether queries, keys and values have a bias.
        per_row: whether every row of a batch has a sample of its own.

    Raises:
        ValueError: if the heads do not divide; as `sample_sources`.
    """

    cost = "O(f L^2 D)"

    def __init__(
        self,
        dim: int,
        num_heads: int = 1,
        *,
        fraction: float | int = 0.25,
        sampler: str = "local",
        window: int | None = None,
        sigma: float | int | None = None,
        causal: bool = True,
        rope_theta: float | int | None = None,
        dropout: float | int = 0.0,
        bias: bool = False,
        per_row: bool = True,
    ):
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads, got {dim} and {num_heads}")
        if rope_theta is not None:
            rotary_frequencies(dim // num_heads, rope_theta)
        self.causal = causal  # type: ignore[misc]
        self.dim, self.num_heads, self.rope_theta, self.dropout = dim, num_heads, rope_theta, dropout
        self.ssa = Subsampling(fraction, sampler, window, sigma, per_row)
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.out = nn.Linear(dim, dim, bias=bias)

    def heads(self, x: Float[Tensor, "batch length dim"], start: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (batch, heads, length, width) each, of tokens that stand at `start` and after."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if self.rope_theta is not None:
            frequencies = rotary_frequencies(q.shape[-1], self.rope_theta)
            places = torch.arange(start, start + x.shape[1], device=x.device)
            q, k = apply_rotary(q, places, frequencies), apply_rotary(k, places, frequencies)
        return q, k, v

    def forward(
        self, x: Float[Tensor, "batch length dim"], *, mask: Bool[Tensor, "batch length"] | None = None
    ) -> Float[Tensor, "batch length dim"]:
        q, k, v = self.heads(x)
        dropout = self.dropout if self.training else 0.0
        if self.ssa.samples(self.training):
            sets = self.ssa.draw(len(x), x.shape[1], causal=self.causal, valid=mask, device=x.device)
            allowed = None if mask is None else mask[:, None, None, :]
            bias = self.ssa.logit_bias
            y = subsampled_attention(
                q, k, v, sets, causal=self.causal, attn_mask=allowed, dropout=dropout, logit_bias=bias
            )
        elif mask is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal and x.shape[1] > 1, dropout_p=dropout)
        else:
            seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device)
            seen = (seen.tril() if self.causal else seen) & mask[:, None, None, :]
            nothing = ~seen.any(-1, keepdim=True)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen | nothing, dropout_p=dropout)
            y = y.masked_fill(nothing, 0.0)
        return self.out(y.transpose(1, 2).flatten(2))

    def init_state(self, batch: int) -> tuple[Tensor, Tensor]:
        """Keys and values of no token; for the dense layer.

        Raises:
            TypeError: if the attention is not causal.
        """
        if not self.causal:
            raise TypeError("attention to later tokens has no step form")
        empty = self.qkv.weight.new_zeros(batch, self.num_heads, 0, self.dim // self.num_heads)
        return empty, empty

    def step(self, x: Float[Tensor, "batch dim"], state: Any) -> tuple[Float[Tensor, "batch dim"], Any]:
        """Raises RuntimeError while sources are sampled: samples are of whole sequences."""
        if self.ssa.samples(self.training):
            raise RuntimeError("decoding with a cache is dense: leave `subsampled`, and call eval()")
        q, k, v = self.heads(x[:, None], state[0].shape[2])
        keys, values = torch.cat([state[0], k], dim=2), torch.cat([state[1], v], dim=2)
        y = F.scaled_dot_product_attention(q, keys, values)
        return self.out(y.transpose(1, 2).flatten(1)), (keys, values)

    def state_size(self, length: int) -> int:
        return 2 * self.dim * length

    def flops(self, length: int) -> int:
        share = self.ssa.fraction if self.ssa.samples(self.training) else 1
        return int(8 * length * self.dim**2 + 4 * share * length**2 * self.dim)
