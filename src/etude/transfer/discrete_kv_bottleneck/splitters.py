"""From one embedding to the C heads that the codebooks read: by projection or by cutting.

Splitters map tokens (n, tokens, in_dim) to heads (n, codebooks, tokens, dim_key), section 3 of the paper.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["ChunkHeads", "LearnedProjectionHeads", "RandomProjectionHeads"]


def _check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} must be positive, got {value}")


class RandomProjectionHeads(nn.Module):
    """Fixed Gaussian projections, one of each codebook: head_c = z P_c.

    Every column of P_c has unit norm over the input. P is a buffer: nothing trains it, and it travels with the state.

    Args:
        in_dim: of the embedding.
        num_codebooks: C, how many heads.
        dim_key: of a head.
        generator: source of P; the default generator if None.

    Raises:
        ValueError: if a size is not positive.
    """

    projection: Tensor

    def __init__(self, in_dim: int, num_codebooks: int, dim_key: int, *, generator: torch.Generator | None = None):
        super().__init__()
        _check_sizes(in_dim=in_dim, num_codebooks=num_codebooks, dim_key=dim_key)
        self.in_dim, self.num_codebooks, self.dim_key = in_dim, num_codebooks, dim_key
        drawn = torch.randn(num_codebooks, in_dim, dim_key, generator=generator)
        self.register_buffer("projection", nn.functional.normalize(drawn, dim=1))

    def forward(self, z: Float[Tensor, "n tokens in_dim"]) -> Float[Tensor, "n codebooks tokens dim_key"]:
        flat = self.projection.permute(1, 0, 2).reshape(self.in_dim, -1)
        return (z @ flat).unflatten(-1, (self.num_codebooks, self.dim_key)).transpose(1, 2)


class ChunkHeads(nn.Module):
    """The embedding cut into C contiguous stretches.

    Args:
        in_dim: of the embedding, C * dim_key.
        num_codebooks: C.

    Raises:
        ValueError: if C does not divide `in_dim`.
    """

    def __init__(self, in_dim: int, num_codebooks: int):
        super().__init__()
        _check_sizes(in_dim=in_dim, num_codebooks=num_codebooks)
        if in_dim % num_codebooks:
            raise ValueError(f"chunks need in_dim divisible by num_codebooks, got {in_dim} and {num_codebooks}")
        self.in_dim, self.num_codebooks, self.dim_key = in_dim, num_codebooks, in_dim // num_codebooks

    def forward(self, z: Float[Tensor, "n tokens in_dim"]) -> Float[Tensor, "n codebooks tokens dim_key"]:
        return z.unflatten(-1, (self.num_codebooks, self.dim_key)).transpose(1, 2)


class LearnedProjectionHeads(nn.Module):
    """One linear map without bias to all heads, whose weights are parameters.

    The values reach the loss through the choice of a key, which has no gradient: by that loss alone these weights
    stay as they are, in the official code too. They train together with an encoder or by a loss on the heads.

    Args:
        in_dim, num_codebooks, dim_key, generator: as for `RandomProjectionHeads`.
    """

    def __init__(self, in_dim: int, num_codebooks: int, dim_key: int, *, generator: torch.Generator | None = None):
        super().__init__()
        _check_sizes(in_dim=in_dim, num_codebooks=num_codebooks, dim_key=dim_key)
        self.in_dim, self.num_codebooks, self.dim_key = in_dim, num_codebooks, dim_key
        bound = in_dim**-0.5  # of nn.Linear
        drawn = torch.rand(num_codebooks * dim_key, in_dim, generator=generator)
        self.weight = nn.Parameter(bound * (2 * drawn - 1))

    def forward(self, z: Float[Tensor, "n tokens in_dim"]) -> Float[Tensor, "n codebooks tokens dim_key"]:
        heads = nn.functional.linear(z, self.weight)
        return heads.unflatten(-1, (self.num_codebooks, self.dim_key)).transpose(1, 2)
