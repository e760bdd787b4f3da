"""Mixers without attention or recurrence: a Fourier transform, networks along the sequence, and gated ones.

Lee-Thorp, Ainslie, Eckstein & Ontañón, "FNet", 2021, arXiv:2105.03824; Tolstikhin et al., "MLP-Mixer", 2021,
arXiv:2105.01601; Liu, Dai, So & Le, "Pay attention to MLPs" (gMLP), 2021, arXiv:2105.08050.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from etude.nn.mixers import Mixer, register_mixer

__all__ = ["GMLP", "FNet", "MLPMixer"]


def _without_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask[..., None]


@register_mixer("fnet")
class FNet(Mixer):
    """The real part of the Fourier transform along tokens and features; without parameters."""

    causal = False
    cost = "O(L D log(L D))"

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(
        self, x: Float[Tensor, "batch length dim"], *, mask: Bool[Tensor, "batch length"] | None = None
    ) -> Float[Tensor, "batch length dim"]:
        x = _without_padding(x, mask)
        dtype = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
        return torch.fft.fft2(x.to(dtype), dim=(1, 2)).real.to(x.dtype)

    def state_size(self, length: int) -> int:
        return self.dim * length

    def flops(self, length: int) -> int:
        return round(5 * length * self.dim * math.log2(max(2, length * self.dim)))


class _Bounded(Mixer):
    """What has a weight for every pair of places."""

    length_bound: int

    def __init__(self, dim: int, max_len: int, causal: bool):
        super().__init__()
        if max_len < 1:
            raise ValueError(f"max_len must be at least 1, got {max_len}")
        self.dim, self.length_bound = dim, max_len
        self.causal = causal  # type: ignore[misc]

    def _square(self, weight: Tensor, length: int) -> Tensor:
        part = weight[:length, :length]
        return part.tril() if self.causal else part

    def state_size(self, length: int) -> int:
        return self.dim * length


@register_mixer("mlp_mixer")
class MLPMixer(_Bounded):
    """A network of one hidden layer along the sequence, the same for all features.

    Args:
        dim: features of a token.
        max_len: longest sequence, and hidden features; shorter sequences take the first rows and columns.
        causal: whether both maps are lower triangular.

    Raises:
        ValueError: for a sequence without room, there or in `forward`.
    """

    causal = False
    cost = "O(L^2 D)"

    def __init__(self, dim: int, max_len: int, *, causal: bool = False):
        super().__init__(dim, max_len, causal)
        self.first = nn.Parameter(torch.randn(max_len, max_len) * max_len**-0.5)
        self.first_bias = nn.Parameter(torch.zeros(max_len))
        self.second = nn.Parameter(torch.randn(max_len, max_len) * max_len**-0.5)
        self.second_bias = nn.Parameter(torch.zeros(max_len))

    def forward(
        self, x: Float[Tensor, "batch length dim"], *, mask: Bool[Tensor, "batch length"] | None = None
    ) -> Float[Tensor, "batch length dim"]:
        length = x.shape[1]
        self.check_length(length)
        x = _without_padding(x, mask)
        hidden = F.gelu(self._square(self.first, length) @ x + self.first_bias[:length, None])
        return self._square(self.second, length) @ hidden + self.second_bias[:length, None]

    def flops(self, length: int) -> int:
        return 4 * length**2 * self.dim


@register_mixer("gmlp")
class GMLP(_Bounded):
    """W_o (u * (S norm(v) + 1)), (u, v) = gelu(W x), with S of small weights along the sequence.

    Args:
        dim: features of a token.
        max_len: longest sequence.
        expand: features of u, and of v, over `dim`.
        causal: whether S is lower triangular.

    Raises:
        ValueError: for a sequence without room, there or in `forward`.
    """

    causal = False
    cost = "O(L^2 D + L D^2)"

    def __init__(self, dim: int, max_len: int, *, expand: int = 1, causal: bool = False):
        super().__init__(dim, max_len, causal)
        self.hidden = expand * dim
        self.enter = nn.Linear(dim, 2 * self.hidden)
        self.norm = nn.LayerNorm(self.hidden)
        self.spatial = nn.Parameter(torch.randn(max_len, max_len) * 1e-3 / max_len**0.5)
        self.spatial_bias = nn.Parameter(torch.ones(max_len))
        self.out = nn.Linear(self.hidden, dim)

    def forward(
        self, x: Float[Tensor, "batch length dim"], *, mask: Bool[Tensor, "batch length"] | None = None
    ) -> Float[Tensor, "batch length dim"]:
        length = x.shape[1]
        self.check_length(length)
        u, v = F.gelu(self.enter(x)).chunk(2, dim=-1)
        v = _without_padding(self.norm(v), mask)
        return self.out(u * (self._square(self.spatial, length) @ v + self.spatial_bias[:length, None]))

    def flops(self, length: int) -> int:
        return 6 * length * self.dim * self.hidden + 2 * length**2 * self.hidden
