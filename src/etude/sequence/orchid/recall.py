"""Associative recall: pairs of key and value, then a key whose value is asked for.

The task of section 4.1 of Karami & Ghodsi, arXiv:2402.18508, after Poli et al., arXiv:2302.10866.
"""

import torch

from etude.data.kinds import Examples

__all__ = ["associative_recall"]


def associative_recall(n: int, vocab: int = 20, num_pairs: int = 16, seed: int = 0) -> Examples:
    """Sequences k_1 v_1 ... k_P v_P q and the value of q.

    The first half of the vocabulary are keys, the second values. Each sample has a one-to-one map of its own from
    keys to values; its pairs' keys are drawn with repetition, and the query is the key of one of its pairs.

    Args:
        n: samples.
        vocab: keys and values, an even number of at least 4.
        num_pairs: P.
        seed: of all draws.

    Returns:
        inputs int64 (n, 2 P + 1), targets int64 (n,): the value as a token, vocab / 2 <= value < vocab.

    Raises:
        ValueError: for sizes below 1 or another vocabulary.
    """
    if n < 1 or num_pairs < 1:
        raise ValueError(f"n and num_pairs must be positive, got {n} and {num_pairs}")
    if vocab < 4 or vocab % 2:
        raise ValueError(f"vocab must be even and at least 4, got {vocab}")
    draw = torch.Generator().manual_seed(seed)
    half = vocab // 2
    values = half + torch.rand(n, half, generator=draw).argsort(1)
    keys = torch.randint(half, (n, num_pairs), generator=draw)
    query = keys.gather(1, torch.randint(num_pairs, (n, 1), generator=draw))
    pairs = torch.stack([keys, values.gather(1, keys)], dim=2).flatten(1)
    return Examples(torch.cat([pairs, query], dim=1), values.gather(1, query)[:, 0])
