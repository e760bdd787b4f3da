"""DiffQKV attention: few key heads, more value heads, and queries that pass through a gated network of their own.

Lin et al., "Sigma: Differential Rescaling of Query, Key and Value for Efficient Language Models", arXiv:2501.13629,
section 2 and appendix E.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from etude.nn.mixers import Mixer, register_mixer
from etude.nn.positions import apply_rotary, rotary_frequencies
from etude.sequence.sigma.cache import DiffKVCache
from etude.sequence.sigma.functional import (
    attention_scores,
    check_heads,
    diff_attention,
    selective_value_attention,
)

__all__ = ["DiffQKVAttention"]


@register_mixer("diff_qkv")
class DiffQKVAttention(Mixer):
    """Causal self-attention in which queries, keys and values differ in heads and widths.

    q = W_Q x, or with `q_aug_dim` q = W_down(silu(W_gate W_Q x) * (W_up W_Q x)), without a residual: the "augmented
    query", which is never cached. Keys narrower than the width d_h in which scores are taken are cached narrow and
    expanded when they are read. All head counts alike give multi-head attention, n_k = n_v < n_q grouped-query
    attention.

    Args:
        dim: D, features of a token.
        num_q_heads, num_k_heads, num_v_heads: heads; the query heads are a multiple of both others.
        head_dim: d_h, width of a query head; dim / num_q_heads if None.
        k_head_dim: d_k <= d_h, width of a cached key head; d_h if None.
        v_head_dim: d_v, width of a value head; d_h if None.
        q_aug_dim: inner width of the augmented query; None: no augmentation. The paper's best is 1.5 D.
        rope_theta: base of the rotary positions; None: no positions.
        k_expand: of narrow keys: "linear", one map without bias for all heads, or "mlp", two with SiLU between. The
            paper says "a feed-forward layer" and no more.
        qk_norm: whether query and key heads are brought to root mean square 1, with a learned gain. Not in the paper;
            it bounds the logits, which three maps in a row can blow up in half precision.
        bias: whether the projections have biases.

    Raises:
        ValueError: if heads do not divide, keys are wider than d_h, or d_h is odd with rotary positions.
    """

    cost = "O(L^2 D)"

    def __init__(
        self,
        dim: int,
        num_q_heads: int = 8,
        num_k_heads: int = 1,
        num_v_heads: int = 4,
        *,
        head_dim: int | None = None,
        k_head_dim: int | None = None,
        v_head_dim: int | None = None,
        q_aug_dim: int | None = None,
        rope_theta: float | int | None = 10_000.0,
        k_expand: str = "linear",
        qk_norm: bool = False,
        bias: bool = False,
    ):
        super().__init__()
        check_heads(num_q_heads, num_k_heads, num_v_heads)
        if head_dim is None:
            if dim % num_q_heads:
                raise ValueError(
                    f"dim must be a multiple of num_q_heads unless head_dim is given: {dim}, {num_q_heads}"
                )
            head_dim = dim // num_q_heads
        k_head_dim = head_dim if k_head_dim is None else k_head_dim
        v_head_dim = head_dim if v_head_dim is None else v_head_dim
        if not 1 <= k_head_dim <= head_dim or v_head_dim < 1:
            raise ValueError(
                f"need 1 <= k_head_dim <= head_dim and v_head_dim >= 1, got {k_head_dim}, {head_dim} and {v_head_dim}"
            )
        if k_expand not in ("linear", "mlp"):
            raise ValueError(f"k_expand must be linear or mlp, got {k_expand!r}")
        if rope_theta is not None:
            rotary_frequencies(head_dim, rope_theta)
        self.dim, self.head_dim, self.k_head_dim, self.v_head_dim = dim, head_dim, k_head_dim, v_head_dim
        self.num_q_heads, self.num_k_heads, self.num_v_heads = num_q_heads, num_k_heads, num_v_heads
        self.q_aug_dim, self.rope_theta = q_aug_dim, rope_theta
        width = num_q_heads * head_dim
        self.q_proj = nn.Linear(dim, width, bias=bias)
        self.k_proj = nn.Linear(dim, num_k_heads * k_head_dim, bias=bias)
        self.v_proj = nn.Linear(dim, num_v_heads * v_head_dim, bias=bias)
        self.o_proj = nn.Linear(num_q_heads * v_head_dim, dim, bias=bias)
        if q_aug_dim is not None:
            self.q_gate_proj = nn.Linear(width, q_aug_dim, bias=bias)
            self.q_up_proj = nn.Linear(width, q_aug_dim, bias=bias)
            self.q_down_proj = nn.Linear(q_aug_dim, width, bias=bias)
        self.k_expand: nn.Module | None = None
        if k_head_dim < head_dim:
            layers: list[nn.Module] = [nn.Linear(k_head_dim, head_dim, bias=False)]
            if k_expand == "mlp":
                layers += [nn.SiLU(), nn.Linear(head_dim, head_dim, bias=False)]
            self.k_expand = nn.Sequential(*layers)
        self.q_norm = nn.RMSNorm(head_dim) if qk_norm else None
        self.k_norm = nn.RMSNorm(head_dim) if qk_norm else None

    def queries(self, x: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch length width"]:
        """Projected and augmented, before heads and positions."""
        q = self.q_proj(x)
        if self.q_aug_dim is not None:
            q = self.q_down_proj(F.silu(self.q_gate_proj(q)) * self.q_up_proj(q))
        return q

    def keys_values(self, x: Float[Tensor, "batch length dim"]) -> tuple[Tensor, Tensor]:
        """Keys (batch, n_k, length, d_k) and values (batch, n_v, length, d_v), before expansion and positions."""
        k = self.k_proj(x).unflatten(-1, (self.num_k_heads, self.k_head_dim)).transpose(1, 2)
        v = self.v_proj(x).unflatten(-1, (self.num_v_heads, self.v_head_dim)).transpose(1, 2)
        return k, v

    def _turned(self, x: Tensor, positions: Tensor) -> Tensor:
        if self.rope_theta is None:
            return x
        places = positions if positions.ndim == 1 else positions[:, None]
        return apply_rotary(x, places, rotary_frequencies(self.head_dim, self.rope_theta))

    def _query_heads(self, x: Tensor, positions: Tensor) -> Tensor:
        q = self.queries(x).unflatten(-1, (self.num_q_heads, self.head_dim)).transpose(1, 2)
        return self._turned(q if self.q_norm is None else self.q_norm(q), positions)

    def stored(self, k: Tensor, positions: Tensor) -> Tensor:
        """Keys as they are cached: full-width ones normalised and turned, narrow ones as they are."""
        return k if self.k_expand is not None else self._finished(k, positions)

    def read(self, k: Tensor, positions: Tensor) -> Tensor:
        """Keys as the scores want them, from those cached: narrow ones expanded, normalised and turned."""
        return k if self.k_expand is None else self._finished(self.k_expand(k), positions)

    def _finished(self, k: Tensor, positions: Tensor) -> Tensor:
        return self._turned(k if self.k_norm is None else self.k_norm(k), positions)

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        *,
        mask: Bool[Tensor, "batch keys"] | None = None,
        cache: DiffKVCache | None = None,
        positions: Int[Tensor, "length"] | Int[Tensor, "batch length"] | None = None,
        select_v: int | None = None,
        renormalise: bool = False,
    ) -> Float[Tensor, "batch length dim"]:
        """The mixed tokens.

        Args:
            x: tokens; those after the ones in the cache, if there is one.
            mask: true for real tokens, those in the cache included.
            cache: takes the tokens' keys and values, and is read.
            positions: where the tokens stand; 0, 1, ..., after those in the cache, if None.
            select_v: how many values each query reads; all if None. In evaluation mode only.
            renormalise: see `selective_value_attention`.

        Raises:
            ValueError: for a full cache, values selected while training, or positions of one's own with narrow keys
                in a cache, whose places are those of the cache.
        """
        if select_v is not None and self.training:
            raise ValueError(f"select_v={select_v} is for inference: call eval() first")
        start = 0 if cache is None else cache.length
        if positions is None:
            positions = torch.arange(start, start + x.shape[1], device=x.device)
        elif cache is not None and self.k_expand is not None:
            raise ValueError("narrow keys in a cache stand at the places of the cache: positions cannot be given")
        q = self._query_heads(x, positions)
        k, v = self.keys_values(x)
        k = self.stored(k, positions)
        if cache is not None:
            cache.append(k, v)
            k, v = cache.keys, cache.values
            positions = torch.arange(cache.length, device=x.device)
        k = self.read(k, positions)
        if select_v is None:
            y = diff_attention(q, k, v, mask=mask)
        else:
            scores = attention_scores(q, k, mask=mask)
            y = selective_value_attention(scores, v, select_v, renormalise=renormalise).out
        return self.o_proj(y.transpose(1, 2).flatten(2))

    def make_cache(self, batch: int, max_len: int) -> DiffKVCache:
        """An empty cache for this layer, on its device and in its type."""
        weight = self.k_proj.weight
        return DiffKVCache(
            batch, self.num_k_heads, self.num_v_heads, self.k_head_dim, self.v_head_dim, max_len, weight.dtype,
            weight.device,
        )  # fmt: skip

    def init_state(self, batch: int) -> tuple[Tensor, Tensor]:
        """Keys and values of no token. `forward` with a cache is the faster way to decode."""
        new = self.k_proj.weight.new_zeros
        return (
            new(batch, self.num_k_heads, 0, self.k_head_dim),
            new(batch, self.num_v_heads, 0, self.v_head_dim),
        )

    def step(
        self, x: Float[Tensor, "batch dim"], state: tuple[Tensor, Tensor]
    ) -> tuple[Float[Tensor, "batch dim"], tuple[Tensor, Tensor]]:
        keys, values = state
        place = torch.tensor([keys.shape[2]], device=x.device)
        k, v = self.keys_values(x[:, None])
        keys, values = torch.cat([keys, self.stored(k, place)], dim=2), torch.cat([values, v], dim=2)
        read = self.read(keys, torch.arange(keys.shape[2], device=x.device))
        y = diff_attention(self._query_heads(x[:, None], place), read, values)
        return self.o_proj(y.transpose(1, 2).flatten(1)), (keys, values)

    def state_size(self, length: int) -> int:
        return length * (self.num_k_heads * self.k_head_dim + self.num_v_heads * self.v_head_dim)

    def flops(self, length: int) -> int:
        weights = sum(p.numel() for name, p in self.named_parameters() if name.endswith("proj.weight"))
        return 2 * length * weights + 2 * length * length * self.num_q_heads * (self.head_dim + self.v_head_dim)
