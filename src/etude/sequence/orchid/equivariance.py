"""Does a layer commute with circular shifts of the sequence?"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["shift_errors"]


@torch.no_grad()
def shift_errors(layer: Callable[[Tensor], Tensor], x: Float[Tensor, "batch length dim"]) -> Float[Tensor, "length"]:
    """max |layer(T_s x) - T_s layer(x)| for each shift s = 0 ... length - 1, T_s being a circular shift by s places.

    A layer that is equivariant has zeros up to rounding.

    Args:
        layer: in evaluation mode; maps (batch, length, dim) to the same shape.
        x: what it is tried on.
    """
    y = layer(x)
    return torch.stack(
        [(layer(x.roll(s, dims=1)) - y.roll(s, dims=1)).abs().max() for s in range(x.shape[1])]
    )  # fmt: skip
