"""What a generator of pieces is told about the place of each: an embedding, or a map of descriptors."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from etude.transfer.hypernetworks.design import HypernetDesign
from etude.transfer.hypernetworks.layout import DESCRIPTOR_SIZE, Layout

__all__ = ["Places"]


class Places(nn.Module):
    """A vector for each piece of the target; of none, if the design has no pieces.

    Args:
        design: with static_output=True embeddings N(0, 1) are looked up; else descriptors of the pieces' layers go
            through a linear map.
        layout: of the target.
        size: of a vector.
        conditions: how many learned conditions have embeddings of their own; None if they share them.

    Raises:
        ValueError: if `size` is not positive, or embeddings for each condition do not fit the design.
    """

    def __init__(self, design: HypernetDesign, layout: Layout, size: int, conditions: int | None = None):
        super().__init__()
        self.per_condition = conditions is not None
        self.tables = nn.ParameterList()
        self.describe: nn.Linear | None = None
        if self.per_condition and not (design.piecewise and design.static_output):
            raise ValueError("component_embedding='per_condition' needs pieces that are looked up, not described")
        if conditions == 0:
            raise ValueError("component_embedding='per_condition' needs learned conditions (num_conditions)")
        if not design.piecewise:
            return
        if size < 1:
            raise ValueError(f"chunk_emb_dim must be positive, got {size}")
        if design.static_output:
            self.tables.extend(nn.Parameter(torch.randn(layout.pieces, size)) for _ in range(conditions or 1))
        else:
            self.describe = nn.Linear(DESCRIPTOR_SIZE, size)

    def add(self) -> None:
        """Embeddings of one more condition, if each has its own."""
        if self.per_condition:
            self.tables.append(nn.Parameter(torch.randn_like(self.tables[0])))

    def of(self, number: int) -> list[nn.Parameter]:
        """What belongs to one condition alone."""
        return [self.tables[number]] if self.per_condition else []

    def forward(self, layout: Layout, numbers: Int64[Tensor, "batch"] | None) -> Float[Tensor, "#batch pieces size"]:
        """The vectors of all pieces, for every condition or for one shared by all.

        Raises:
            ValueError: if each condition has its own embeddings and `numbers` are not given.
        """
        if self.describe is not None:
            return self.describe(layout.descriptors)[None]
        if not self.per_condition:
            return self.tables[0][None]
        if numbers is None:
            raise ValueError("pieces have embeddings for each stored condition: pass its number, not a vector")
        if len(numbers) == 1:
            return self.tables[int(numbers)][None]
        return torch.stack(list(self.tables))[numbers]
