"""The mixer of this paper; importing this registers it."""

from etude.sequence.orchid.operator import Orchid

__all__ = ["Orchid"]
