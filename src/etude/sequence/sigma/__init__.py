"""Sigma: attention that rescales queries, keys and values differently, for cheaper decoding.

Lin et al., "Sigma: Differential Rescaling of Query, Key and Value for Efficient Language Models", 2025,
arXiv:2501.13629.

    from etude.sequence.sigma import SigmaConfig, SigmaLM, generate
    model = SigmaLM(SigmaConfig(vocab_size=data.vocab_size, num_k_heads=1, num_v_heads=4))
    text = generate(model, data.encode("ROMEO:")[None], 200, temperature=0.8, max_len=256)
"""

from etude.sequence.sigma.attention import DiffQKVAttention
from etude.sequence.sigma.cache import DiffKVCache
from etude.sequence.sigma.costs import AttentionCost, DecodeTimes, attention_cost, crossover, decode_bench
from etude.sequence.sigma.functional import (
    SelectedValues,
    attention_scores,
    diff_attention,
    selective_value_attention,
)
from etude.sequence.sigma.model import SigmaConfig, SigmaLM, generate

__all__ = [
    "AttentionCost",
    "DecodeTimes",
    "DiffKVCache",
    "DiffQKVAttention",
    "SelectedValues",
    "SigmaConfig",
    "SigmaLM",
    "attention_cost",
    "attention_scores",
    "crossover",
    "decode_bench",
    "diff_attention",
    "generate",
    "selective_value_attention",
]
