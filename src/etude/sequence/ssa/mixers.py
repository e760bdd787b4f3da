"""The mixer of this paper; importing this registers it."""

from etude.sequence.ssa.attention import SubsampledAttention

__all__ = ["SubsampledAttention"]
