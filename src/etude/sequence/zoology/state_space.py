"""H3: multiplicative gates around a shift and a diagonal state-space model.

Fu, Dao, Saab, Thomas, Rudra & Ré, "Hungry hungry hippos", 2022, arXiv:2212.14052; Gu, Gupta, Goel & Ré, "On the
parameterization and initialization of diagonal state space models", 2022, arXiv:2206.11893 (S4D-Lin):

    y = q * SSM_diag(SSM_shift(k) * v),   h_t = e^{dt A} h_{t-1} + (e^{dt A} - 1) / A u_t,   y_t = 2 Re(C h_t) + D u_t

with A_n = -1/2 + i pi n and dt log-uniform in [.001, .1] at first. Within a head of width d, k and v meet in all d^2
products. With as many states as tokens and heads of width 2, the paper's figure 2 counts it with Hyena.
"""

import math

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor, nn

from etude.nn.convolution import long_conv
from etude.nn.mixers import Mixer, register_mixer
from etude.sequence.zoology.convolutions import pad_kernel

__all__ = ["H3", "DiagonalSSM"]


class DiagonalSSM(nn.Module):
    """S4D: one diagonal state-space model a channel, by convolution or step by step.

    Args:
        channels: models.
        d_state: real states of each, even: half as many complex ones, and their conjugates.
        dt_min, dt_max: between which the time steps start.

    Raises:
        ValueError: if `d_state` is odd or below 2, or the times make no sense.
    """

    def __init__(self, channels: int, d_state: int, *, dt_min: float | int = 1e-3, dt_max: float | int = 1e-1):
        super().__init__()
        if d_state < 2 or d_state % 2:
            raise ValueError(f"d_state must be even and at least 2, got {d_state}")
        if not 0 < dt_min <= dt_max:
            raise ValueError(f"need 0 < dt_min <= dt_max, got {dt_min} and {dt_max}")
        half = d_state // 2
        self.log_dt = nn.Parameter(torch.empty(channels).uniform_(math.log(dt_min), math.log(dt_max)))
        self.log_decay = nn.Parameter(torch.full((channels, half), math.log(0.5)))
        self.frequency = nn.Parameter(math.pi * torch.arange(half).float().repeat(channels, 1))
        self.c = nn.Parameter(torch.randn(channels, half, 2) * math.sqrt(0.5))
        self.skip = nn.Parameter(torch.randn(channels))

    def coefficients(self) -> tuple[Complex[Tensor, "channels half"], Complex[Tensor, "channels half"]]:
        """e^{dt A} and C (e^{dt A} - 1) / A."""
        a = torch.complex(-self.log_decay.exp(), self.frequency)
        step = torch.exp(a * self.log_dt.exp()[:, None])
        return step, torch.view_as_complex(self.c) * (step - 1) / a

    def kernel(self, length: int) -> Float[Tensor, "channels length"]:
        """2 Re sum_n C_n (e^{dt A_n} - 1) / A_n e^{t dt A_n} for t = 0, 1, ...; the skip is not in it."""
        a = torch.complex(-self.log_decay.exp(), self.frequency) * self.log_dt.exp()[:, None]
        powers = torch.exp(a[..., None] * torch.arange(length, device=a.device))
        return 2 * torch.einsum("cn,cnl->cl", self.coefficients()[1], powers).real


@register_mixer("h3")
class H3(Mixer):
    """The H3 layer, in parallel by FFT and token by token.

    Args:
        dim: features of a token.
        max_len: number of states if `d_state` is None; sequences may be longer.
        head_dim: width of a head; `dim` is a multiple.
        d_state: states of either model, even: taps of the shift, real states of the diagonal one. None: `max_len`,
            the next even number.

    Raises:
        ValueError: if heads do not divide, or for an odd `d_state`.
    """

    recurrent = True
    cost = "O(D^2 L + d D L log L)"

    def __init__(self, dim: int, max_len: int, *, head_dim: int = 2, d_state: int | None = None):
        super().__init__()
        if head_dim < 1 or dim % head_dim:
            raise ValueError(f"dim must be a multiple of head_dim, got {dim} and {head_dim}")
        d_state = max(2, max_len + max_len % 2) if d_state is None else d_state
        self.dim, self.head_dim, self.d_state = dim, head_dim, d_state
        self.q, self.k, self.v = (nn.Linear(dim, dim) for _ in range(3))
        self.diagonal = DiagonalSSM(dim // head_dim, d_state)
        self.shift = nn.Parameter(torch.randn(dim, d_state) * d_state**-0.5)
        self.shift_skip = nn.Parameter(torch.randn(dim))
        self.out = nn.Linear(dim, dim)

    def forward(
        self, x: Float[Tensor, "batch length dim"], *, mask: Bool[Tensor, "batch length"] | None = None
    ) -> Float[Tensor, "batch length dim"]:
        length, width = x.shape[1], self.head_dim
        q, k, v = (layer(x).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if mask is not None:
            k, v = k * mask[:, None], v * mask[:, None]
        k = torch.addcmul(long_conv(k, pad_kernel(self.shift[:, :length], length)), k, self.shift_skip[:, None])
        k, v, q = (part.unflatten(1, (-1, width)) for part in (k, v, q))
        u = (k[:, :, :, None] * v[:, :, None]).flatten(1, 3)  # (batch, heads d d, length)
        each = width**2
        kernel = self.diagonal.kernel(length).repeat_interleave(each, dim=0)
        y = torch.addcmul(long_conv(u, kernel), u, self.diagonal.skip.repeat_interleave(each)[:, None])
        y = (q[:, :, :, None] * y.unflatten(1, (-1, width, width))).sum(2)
        return self.out(y.flatten(1, 2).transpose(1, 2))

    def init_state(self, batch: int) -> tuple[Tensor, Tensor]:
        """The last keys, (batch, d_state - 1, dim), and the states, complex (batch, heads, d, d, d_state / 2)."""
        weight, width = self.q.weight, self.head_dim
        states = torch.zeros(
            batch, self.dim // width, width, width, self.d_state // 2, device=weight.device,
            dtype=torch.promote_types(weight.dtype, torch.complex64),
        )  # fmt: skip
        return weight.new_zeros(batch, self.d_state - 1, self.dim), states

    def step(
        self, x: Float[Tensor, "batch dim"], state: tuple[Tensor, Tensor]
    ) -> tuple[Float[Tensor, "batch dim"], tuple[Tensor, Tensor]]:
        past, h = state
        q, k, v = self.q(x), self.k(x), self.v(x)
        window = torch.cat([past, k[:, None]], dim=1)
        k = torch.einsum("bld,dl->bd", window, self.shift.flip(1)) + self.shift_skip * k
        q, k, v = (part.unflatten(1, (-1, self.head_dim)) for part in (q, k, v))
        u = k[:, :, :, None] * v[:, :, None]
        decay, gain = self.diagonal.coefficients()
        h = decay[:, None, None] * h + u[..., None]
        y = 2 * (gain[:, None, None] * h).sum(-1).real + self.diagonal.skip[:, None, None] * u
        return self.out((q[:, :, :, None] * y).sum(2).flatten(1)), (window[:, 1:], h)

    def state_size(self, length: int) -> int:
        return (self.d_state - 1) * self.dim + self.dim * self.head_dim * self.d_state

    def flops(self, length: int) -> int:
        transforms = self.dim * (1 + self.head_dim) * 15 * length * math.log2(2 * length)
        return round(8 * length * self.dim**2 + transforms + 4 * length * self.dim * (1 + self.head_dim))
