"""Where tokens stand: rotary position embedding.

Su et al., "RoFormer: enhanced transformer with rotary position embedding", 2021, arXiv:2104.09864. Pairs are
(i, i + d/2), as in Llama's weights, not (2i, 2i + 1).
"""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["apply_rotary", "rotary_frequencies"]


def rotary_frequencies(dim: int, theta: float | int = 10_000.0) -> Float[Tensor, "half"]:
    """theta^(-2 i / dim) for i = 0 .. dim / 2 - 1, in radians a token, float64.

    Raises:
        ValueError: if `dim` is odd or not positive, or `theta` not positive.
    """
    if dim < 2 or dim % 2:
        raise ValueError(f"rotary embedding needs an even, positive width, got {dim}")
    if not theta > 0:
        raise ValueError(f"theta must be positive, got {theta}")
    return float(theta) ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)


def apply_rotary(x: Tensor, positions: Tensor, frequencies: Float[Tensor, "half"]) -> Tensor:
    """Turns the pairs (x_i, x_{i + d/2}) by the angle positions * frequencies_i.

    Args:
        x: (..., length, d).
        positions: (length,), or any shape that broadcasts against (..., length), so (batch, 1, length) for
            queries of shape (batch, heads, length, d) whose positions differ by sample.
        frequencies: of `rotary_frequencies(d)`, or scaled ones.

    Returns:
        The turned features, in the type of `x`.

    Raises:
        ValueError: if the width of `x` is not twice the number of frequencies.
    """
    if x.shape[-1] != 2 * len(frequencies):
        raise ValueError(f"expected a width of {2 * len(frequencies)}, got features of shape {tuple(x.shape)}")
    angle = positions[..., None].double() * frequencies.to(positions.device)
    dtype = x.dtype if x.dtype == torch.float64 else torch.float32
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    first, second = x.to(dtype).chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
