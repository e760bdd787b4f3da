"""DiffQKV attention against PyTorch's own kernels and, where `transformers` is installed, Llama's attention.

Sizes are the claims' (512 wide, 32 query heads of 16): a training step and a forward pass over 256 tokens, and one
decoding step after 4,096 and 16,384 tokens, for which heads that are repeated first are the peer.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.compare import Comparison
from etude.sequence.sigma import DiffQKVAttention, diff_attention


class _Plain(nn.Module):
    """Grouped-query attention by `scaled_dot_product_attention`, without positions."""

    def __init__(self, dim: int, heads: int, kv_heads: int):
        super().__init__()
        self.heads, self.kv_heads, self.width = heads, kv_heads, dim // heads
        self.q, self.o = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.k, self.v = (nn.Linear(dim, kv_heads * self.width, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (-1, self.width)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.o(
            F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2).flatten(2)
        )


def _forward(layer: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Any]:
    def run() -> None:
        with torch.no_grad():
            layer(x)

    return run


def _training(layer: nn.Module, x: Tensor) -> Callable[[], Any]:
    def run() -> None:
        layer.zero_grad()
        layer(x).sum().backward()

    return run


def _llama(dim: int, heads: int, kv_heads: int) -> Callable[[Tensor], Tensor] | None:
    try:
        from transformers import LlamaConfig
        from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding
    except ImportError:
        return None
    config = LlamaConfig(
        hidden_size=dim, num_attention_heads=heads, num_key_value_heads=kv_heads, attn_implementation="sdpa"
    )
    layer, rotary = LlamaAttention(config, 0), LlamaRotaryEmbedding(config)

    def run(x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1])[None]
        return layer(x, position_embeddings=rotary(x, places), attention_mask=None)[0]

    return run


def comparisons() -> list[Comparison]:
    listed = []
    for batch in (1, 32):
        torch.manual_seed(0)
        x = torch.randn(batch, 256, 512)
        inputs = x.clone().requires_grad_()
        ours = DiffQKVAttention(512, 32, 16, 16, rope_theta=None)
        peer = _Plain(512, 32, 16)
        what = f"16 key and value heads, 256 tokens, batch {batch}"
        listed.append(Comparison(f"forward: {what}", _forward(ours, x), _forward(peer, x), "PyTorch, SDPA"))
        listed.append(
            Comparison(f"training step: {what}", _training(ours, inputs), _training(peer, inputs), "PyTorch, SDPA")
        )
        llama = _llama(512, 32, 16)
        if llama is not None:
            rotary = DiffQKVAttention(512, 32, 16, 16)
            listed.append(
                Comparison(f"forward, rotary: {what}", _forward(rotary, x), _forward(llama, x), "transformers, Llama")
            )
    for tokens in (4096, 16_384):
        q, k, v = (torch.randn(1, heads, n, 16) for heads, n in ((32, 1), (4, tokens), (16, tokens)))

        def repeated(q: Tensor = q, k: Tensor = k, v: Tensor = v) -> None:
            F.scaled_dot_product_attention(q, k.repeat_interleave(8, 1), v.repeat_interleave(2, 1))

        def grouped(q: Tensor = q, k: Tensor = k, v: Tensor = v) -> None:
            diff_attention(q, k, v)

        listed.append(
            Comparison(f"decoding: 4 key, 16 value heads after {tokens:,} tokens", grouped, repeated,
                       "PyTorch, heads repeated for SDPA")
        )  # fmt: skip
    return listed
