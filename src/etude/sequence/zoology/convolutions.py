"""Gated convolutions: long convolutions, BaseConv and Hyena.

Arora et al., arXiv:2312.04927, section 4 (BaseConv, the simplest gated convolution, which can simulate any other with
a polylogarithmic overhead): y = (W u + b) * conv(u) + u. Poli et al., "Hyena hierarchy", arXiv:2302.10866. The long
convolutions add their input back, conv(u) + u, as in the authors' code; the short one does not.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from etude.nn.convolution import ImplicitFilter, ShortConv, long_conv
from etude.nn.mixers import Mixer, register_mixer

__all__ = ["BaseConv", "Hyena", "ImplicitLongConv", "LongConv"]


def _hide(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask[..., None]


def _fft_flops(dim: int, length: int) -> int:
    """Three transforms of twice the length, 5 n log2(n) / 2 for real signals each, and the product."""
    return round(dim * (3 * 5 * length * math.log2(2 * length) + 6 * length))


@register_mixer("long_conv")
class LongConv(Mixer):
    """conv(u) + u with an explicit kernel of the longest length, N(0, 1) at first.

    Args:
        dim: features of a token.
        max_len: longest sequence.

    Raises:
        ValueError: if `max_len` is not positive.
    """

    cost = "O(D L log L)"

    def __init__(self, dim: int, max_len: int):
        super().__init__()
        if max_len < 1:
            raise ValueError(f"max_len must be at least 1, got {max_len}")
        self.dim, self.length_bound = dim, max_len
        self._make(dim, max_len)

    def _make(self, dim: int, max_len: int) -> None:
        self.filter = nn.Parameter(torch.randn(dim, max_len))

    def kernel(self, length: int) -> Float[Tensor, "dim length"]:
        """The first taps of every feature's kernel."""
        return self.filter[:, :length]

    def forward(
        self, x: Float[Tensor, "batch length dim"], *, mask: Bool[Tensor, "batch length"] | None = None
    ) -> Float[Tensor, "batch length dim"]:
        """Raises ValueError if the sequence is longer than `max_len`."""
        self.check_length(x.shape[1])
        x = _hide(x, mask)
        return long_conv(x.transpose(1, 2), self.kernel(x.shape[1])).transpose(1, 2) + x

    def state_size(self, length: int) -> int:
        return self.dim * length

    def flops(self, length: int) -> int:
        return _fft_flops(self.dim, length)


class ImplicitLongConv(LongConv):
    """conv(u) + u with a kernel that a network of one hidden layer makes from the time.

    Features of the time n = 0 .. max_len - 1 are [n / (max_len - 1), cos(f w), -sin(f w)], w = 2 pi n / max_len, with
    (emb_dim - 1) / 2 bands f from 1e-4 to their number less one, as in Hyena; then Linear, ReLU, Linear.

    Args:
        dim, max_len: as for `LongConv`.
        emb_dim: features of the time, odd, at least 3.
        hidden_dim: of the network.

    Raises:
        ValueError: as `LongConv`, or if `emb_dim` is even or below 3.
    """

    features: Tensor

    def __init__(self, dim: int, max_len: int, *, emb_dim: int = 3, hidden_dim: int = 16):
        if emb_dim < 3 or emb_dim % 2 == 0:
            raise ValueError(f"emb_dim must be odd and at least 3, got {emb_dim}")
        self._sizes = emb_dim, hidden_dim
        super().__init__(dim, max_len)

    def _make(self, dim: int, max_len: int) -> None:
        emb_dim, hidden_dim = self._sizes
        bands = (emb_dim - 1) // 2
        time = torch.linspace(0, 1, max_len)[:, None]
        angle = torch.arange(max_len)[:, None] * (2 * math.pi / max_len) * torch.linspace(1e-4, bands - 1, bands)
        self.register_buffer("features", torch.cat([time, angle.cos(), -angle.sin()], dim=1), persistent=False)
        self.network = nn.Sequential(nn.Linear(emb_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, dim))

    def kernel(self, length: int) -> Float[Tensor, "dim length"]:
        return self.network(self.features[:length]).T


@register_mixer("base_conv")
class BaseConv(Mixer):
    """y = (W u + b) * conv(u) + u, without an activation; layer i takes the i-th kernel of the list, around again.

    The input is part of the output; a residual block around it adds it once more, as in the authors' code.

    Args:
        dim: features of a token.
        max_len: longest sequence of a long kernel; short ones have no bound.
        layer: which layer of the network this is.
        kernel_sizes: taps of the layers' kernels, one number or a list; -1 is a long kernel.
        implicit: whether long kernels are made by a network (`ImplicitLongConv`) or explicit (`LongConv`).

    Raises:
        ValueError: for an empty list or a size that is neither positive nor -1.
    """

    cost = "O(D^2 L + D L log L)"

    def __init__(
        self,
        dim: int,
        max_len: int,
        layer: int = 0,
        *,
        kernel_sizes: int | Sequence[int] = (3, -1, 3, -1),
        implicit: bool = True,
    ):
        super().__init__()
        sizes = [kernel_sizes] if isinstance(kernel_sizes, int) else list(kernel_sizes)
        if not sizes or any(size < 1 and size != -1 for size in sizes):
            raise ValueError(f"kernel_sizes must be positive, or -1 for a long kernel, got {kernel_sizes}")
        self.dim, self.kernel_size = dim, sizes[layer % len(sizes)]
        self.projection = nn.Linear(dim, dim)
        if self.kernel_size == -1:
            self.conv: ShortConv | LongConv = (ImplicitLongConv if implicit else LongConv)(dim, max_len)
            self.length_bound = max_len
        else:
            self.conv = ShortConv(dim, self.kernel_size)
            self.recurrent = True  # type: ignore[misc]

    def forward(
        self, x: Float[Tensor, "batch length dim"], *, mask: Bool[Tensor, "batch length"] | None = None
    ) -> Float[Tensor, "batch length dim"]:
        """Raises ValueError if the kernel is long and the sequence longer than `max_len`."""
        self.check_length(x.shape[1])
        return torch.addcmul(x, self.projection(x), self.conv(_hide(x, mask)))

    @property
    def has_step(self) -> bool:
        return self.kernel_size != -1

    def init_state(self, batch: int) -> Float[Tensor, "batch taps dim"]:
        """The last inputs of the short kernel.

        Raises:
            TypeError: if the kernel is long.
        """
        return self._short().init_state(batch)

    def step(self, x: Float[Tensor, "batch dim"], state: Tensor) -> tuple[Float[Tensor, "batch dim"], Tensor]:
        y, state = self._short().step(x, state)
        return torch.addcmul(x, self.projection(x), y), state

    def _short(self) -> ShortConv:
        if not isinstance(self.conv, ShortConv):
            raise TypeError("BaseConv with a long kernel has no step form: it reads whole sequences")
        return self.conv

    def state_size(self, length: int) -> int:
        return self.dim * (length if self.kernel_size == -1 else self.kernel_size - 1)

    def flops(self, length: int) -> int:
        conv = _fft_flops(self.dim, length) if self.kernel_size == -1 else 2 * length * self.kernel_size * self.dim
        return 2 * length * self.dim**2 + 2 * length * self.dim + conv


@register_mixer("hyena")
class Hyena(Mixer):
    """Hyena of order 2: y = W (x2 * (h conv (x1 * v) + D (x1 * v))) behind a short convolution of x1, x2 and v.

    Args:
        dim: features of a token.
        max_len: longest sequence.
        hidden_dim: of the network of sines that makes the kernel h (`etude.nn.convolution.ImplicitFilter`).
        emb_dim, num_inner, freq: of that network.
        short_kernel: taps of the short convolution.
    """

    cost = "O(D^2 L + D L log L)"

    def __init__(
        self,
        dim: int,
        max_len: int,
        *,
        hidden_dim: int = 64,
        emb_dim: int = 3,
        num_inner: int = 2,
        freq: float | int = 1.0,
        short_kernel: int = 3,
    ):
        super().__init__()
        self.dim, self.length_bound = dim, max_len
        self.in_proj = nn.Linear(dim, 3 * dim)
        self.short = ShortConv(3 * dim, short_kernel)
        options: dict[str, Any] = {"hidden_dim": hidden_dim, "emb_dim": emb_dim, "num_inner": num_inner, "freq": freq}
        self.filter = ImplicitFilter(dim, max_len, **options)
        self.skip = nn.Parameter(torch.randn(dim))
        self.out = nn.Linear(dim, dim)

    def forward(
        self, x: Float[Tensor, "batch length dim"], *, mask: Bool[Tensor, "batch length"] | None = None
    ) -> Float[Tensor, "batch length dim"]:
        """Raises ValueError if the sequence is longer than `max_len`."""
        self.check_length(x.shape[1])
        x1, x2, v = self.short(_hide(self.in_proj(x), mask)).chunk(3, dim=-1)
        v = _hide(x1 * v, mask).transpose(1, 2)
        y = torch.addcmul(long_conv(v, self.filter(x.shape[1])), v, self.skip[:, None])
        return self.out(x2 * y.transpose(1, 2))

    def state_size(self, length: int) -> int:
        return self.dim * length

    def flops(self, length: int) -> int:
        taps = self.short.conv.kernel_size[0]
        network = sum(2 * length * layer.weight.numel() for layer in [*self.filter.layers, self.filter.out])
        return 8 * length * self.dim**2 + 6 * length * taps * self.dim + _fft_flops(self.dim, length) + network


def pad_kernel(kernel: Tensor, length: int) -> Tensor:
    """A kernel (..., taps) cut or filled with zeros to `length`."""
    return F.pad(kernel, (0, length - kernel.shape[-1]))
