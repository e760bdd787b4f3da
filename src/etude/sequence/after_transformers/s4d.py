"""S4D: a diagonal state-space model for each feature, as a convolution or step by step.

Gu, Gupta, Goel & Ré, "On the parameterization and initialization of diagonal state space models", 2022,
arXiv:2206.11893. With zero-order hold, B = 1 and states in conjugate pairs,

    h_t = e^{dt A} h_{t-1} + (e^{dt A} - 1) / A u_t,   y_t = 2 Re(C h_t) + D u_t
    K_l = 2 Re sum_n C_n (e^{dt A_n} - 1) / A_n e^{l dt A_n},   A_n = -e^{a} + i pi n (S4D-Lin)
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float
from torch import Tensor, nn

from etude.nn.convolution import long_conv
from etude.nn.mixers import register_mixer
from etude.sequence.after_transformers.stateful import StatefulMixer, check_chunk

__all__ = ["S4D"]


@register_mixer("s4d")
class S4D(StatefulMixer):
    """The S4D layer: state-space models, GELU, and a gated linear map across features.

    Args:
        dim: features of a token.
        state: real states of each feature, even: half as many complex ones, and their conjugates.
        dt_min, dt_max: between which the time steps of the features start, evenly in the logarithm.
        chunk: tokens handled at once; None: all, in one FFT of twice the length.

    Raises:
        ValueError: if `state` is odd or below 2, the times make no sense, or the chunk is empty.
    """

    cost = "O(L D^2 + D L log L)"
    slow = ("log_dt", "log_decay", "frequency")

    def __init__(
        self,
        dim: int,
        state: int = 64,
        *,
        dt_min: float | int = 1e-3,
        dt_max: float | int = 1e-1,
        chunk: int | None = None,
    ):
        super().__init__()
        if state < 2 or state % 2:
            raise ValueError(f"state must be even and at least 2, got {state}")
        if not 0 < dt_min <= dt_max:
            raise ValueError(f"need 0 < dt_min <= dt_max, got {dt_min} and {dt_max}")
        check_chunk(chunk)
        self.dim, self.pairs, self.chunk = dim, state // 2, chunk
        self.log_dt = nn.Parameter(torch.empty(dim).uniform_(math.log(dt_min), math.log(dt_max)))
        self.log_decay = nn.Parameter(torch.full((dim, self.pairs), math.log(0.5)))
        self.frequency = nn.Parameter(math.pi * torch.arange(self.pairs).float().repeat(dim, 1))
        self.c = nn.Parameter(torch.randn(dim, self.pairs, 2) * math.sqrt(0.5))
        self.skip = nn.Parameter(torch.randn(dim))
        self.out = nn.Linear(dim, 2 * dim)

    def exponents(self) -> Complex[Tensor, "dim half"]:
        """dt A."""
        return torch.complex(-self.log_decay.exp(), self.frequency) * self.log_dt.exp()[:, None]

    def gains(self) -> Complex[Tensor, "dim half"]:
        """(e^{dt A} - 1) / A."""
        rate = torch.complex(-self.log_decay.exp(), self.frequency)
        return torch.expm1(self.exponents()) / rate

    def kernel(self, length: int) -> Float[Tensor, "dim length"]:
        """K_0 ... K_{length - 1}; the skip is not in it."""
        times = torch.arange(length, device=self.skip.device)
        powers = torch.exp(self.exponents()[..., None] * times)
        return 2 * torch.einsum("dn,dnl->dl", torch.view_as_complex(self.c) * self.gains(), powers).real

    def _finish(self, y: Tensor, x: Tensor) -> Tensor:
        return F.glu(self.out(F.gelu(y.to(x.dtype) + self.skip * x)), dim=-1)

    def _whole(self, x: Tensor) -> Tensor:
        if self.chunk is not None and self.chunk < x.shape[1]:
            return super()._whole(x)
        y = long_conv(x.transpose(1, 2), self.kernel(x.shape[1]))
        return self._finish(y.transpose(1, 2), x)

    def init_state(self, batch: int) -> Complex[Tensor, "batch dim half"]:
        """h, all zero."""
        dtype = torch.promote_types(self.skip.dtype, torch.complex64)
        return torch.zeros(batch, self.dim, self.pairs, dtype=dtype, device=self.skip.device)

    def read(self, x: Float[Tensor, "batch length dim"], state: Tensor) -> tuple[Tensor, Tensor]:
        length = x.shape[1]
        times = torch.arange(length + 1, device=x.device)
        powers = torch.exp(self.exponents()[..., None] * times)  # (dim, half, length + 1)
        gains, c = self.gains(), torch.view_as_complex(self.c)
        y = long_conv(x.transpose(1, 2), 2 * torch.einsum("dn,dnl->dl", c * gains, powers[..., :-1]).real)
        y = y + 2 * torch.einsum("bdn,dnl->bdl", c * state, powers[..., 1:]).real
        left = powers[..., :-1].flip(-1)
        inputs = torch.einsum("bld,dnl->bdn", x.to(left.dtype), left)
        return self._finish(y.transpose(1, 2), x), powers[..., -1] * state + gains * inputs

    def step(self, x: Float[Tensor, "batch dim"], state: Tensor) -> tuple[Tensor, Tensor]:
        state = self.exponents().exp() * state + self.gains() * x[..., None]
        y = 2 * (torch.view_as_complex(self.c) * state).sum(-1).real
        return self._finish(y, x), state

    def state_size(self, length: int) -> int:
        return 2 * self.dim * self.pairs

    def flops(self, length: int) -> int:
        transforms = 15 * self.dim * length * math.log2(2 * length)
        return round(4 * length * self.dim**2 + transforms + 8 * length * self.dim * self.pairs)
