"""The mixer of this paper; importing this registers it."""

from etude.sequence.sigma.attention import DiffQKVAttention

__all__ = ["DiffQKVAttention"]
