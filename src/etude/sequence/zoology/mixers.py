"""All mixers of the paper; importing this registers them."""

from etude.sequence.zoology.based import Based
from etude.sequence.zoology.convolutions import BaseConv, Hyena, LongConv
from etude.sequence.zoology.model import hybrid
from etude.sequence.zoology.selective import SelectiveAttention
from etude.sequence.zoology.state_space import H3

__all__ = ["H3", "BaseConv", "Based", "Hyena", "LongConv", "SelectiveAttention", "hybrid"]
