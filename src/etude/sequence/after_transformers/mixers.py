"""All mixers of the survey; importing this registers them."""

from etude.sequence.after_transformers.attention import Attention, WindowAttention
from etude.sequence.after_transformers.retention import Retention, chunked_retention, parallel_retention

__all__ = ["Attention", "Retention", "WindowAttention", "chunked_retention", "parallel_retention"]
