"""Mamba: state-space models whose steps, inputs and outputs depend on the token.

Gu & Dao, "Mamba: linear-time sequence modeling with selective state spaces", 2023, arXiv:2312.00752 (S6), and Dao &
Gu, "Transformers are SSMs", 2024, arXiv:2405.21060 (Mamba-2). For each channel,

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t,   y_t = C_t h_t + D u_t                                             (1)

S6: A of N states for each channel, solved by a scan. Mamba-2: one A for each head, solved by products of matrices.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from etude.nn.convolution import ShortConv
from etude.nn.mixers import register_mixer
from etude.nn.scan import scan
from etude.sequence.after_transformers.matrix_state import matrix_scan
from etude.sequence.after_transformers.stateful import StatefulMixer, check_chunk, convolve_on, wide

__all__ = ["Mamba", "Mamba2", "selective_scan"]


def selective_scan(
    u: Float[Tensor, "batch length channels"],
    dt: Float[Tensor, "batch length channels"],
    a: Float[Tensor, "channels states"],
    b: Float[Tensor, "batch length states"],
    c: Float[Tensor, "batch length states"],
    state: Float[Tensor, "batch channels states"] | None = None,
) -> tuple[Float[Tensor, "batch length channels"], Float[Tensor, "batch channels states"]]:
    """Eq. (1) without D u: the outputs and the last state, by a scan of log2(length) passes, in float32 at least."""
    u, dt, a, b, c = (wide(part) for part in (u, dt, a, b, c))
    h = scan(torch.exp(dt[..., None] * a), (dt * u)[..., None] * b[:, :, None], state)
    return torch.einsum("blcn,bln->blc", h, c), h[:, -1]


def _initial_dt_bias(count: int, dt_min: float | int, dt_max: float | int) -> Tensor:
    """What softplus maps to times that lie evenly in the logarithm."""
    if not 0 < dt_min <= dt_max:
        raise ValueError(f"need 0 < dt_min <= dt_max, got {dt_min} and {dt_max}")
    dt = torch.empty(count).uniform_(math.log(dt_min), math.log(dt_max)).exp()
    return dt + torch.log(-torch.expm1(-dt))


@register_mixer("mamba")
class Mamba(StatefulMixer):
    """The Mamba layer.

    Args:
        dim: features of a token.
        state: N, states of each channel.
        expand: channels over features.
        kernel_size: taps of the short convolution.
        dt_rank: rank of the map to the time steps; dim / 16, rounded up, if None.
        dt_min, dt_max: between which the time steps of the channels start.
        chunk: tokens handled at once, which bounds memory (channels * N numbers a token); None: all.

    Raises:
        ValueError: for sizes below 1, or times that make no sense.
    """

    cost = "O(L D^2 + L D N)"
    undecayed = ("a_log", "skip")

    def __init__(
        self,
        dim: int,
        state: int = 16,
        *,
        expand: int = 2,
        kernel_size: int = 4,
        dt_rank: int | None = None,
        dt_min: float | int = 1e-3,
        dt_max: float | int = 1e-1,
        chunk: int | None = None,
    ):
        super().__init__()
        dt_rank = math.ceil(dim / 16) if dt_rank is None else dt_rank
        if min(dim, state, expand, dt_rank) < 1:
            raise ValueError(f"sizes must be positive, got dim {dim}, state {state}, expand {expand}, rank {dt_rank}")
        check_chunk(chunk)
        self.dim, self.channels, self.states, self.dt_rank = dim, expand * dim, state, dt_rank
        self.chunk = chunk
        self.enter = nn.Linear(dim, 2 * self.channels, bias=False)
        self.conv = ShortConv(self.channels, kernel_size)
        self.select = nn.Linear(self.channels, dt_rank + 2 * state, bias=False)
        self.dt = nn.Linear(dt_rank, self.channels)
        nn.init.uniform_(self.dt.weight, -(dt_rank**-0.5), dt_rank**-0.5)
        with torch.no_grad():
            self.dt.bias.copy_(_initial_dt_bias(self.channels, dt_min, dt_max))
        self.a_log = nn.Parameter(torch.arange(1, state + 1).float().log().repeat(self.channels, 1))
        self.skip = nn.Parameter(torch.ones(self.channels))
        self.out = nn.Linear(self.channels, dim, bias=False)

    def _selected(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """dt, B and C of each token."""
        low, b, c = self.select(u).split([self.dt_rank, self.states, self.states], dim=-1)
        return F.softplus(wide(self.dt(low))), b, c

    def init_state(self, batch: int) -> tuple[Tensor, Tensor]:
        """The convolution's last inputs, and h."""
        weight = self.out.weight
        return self.conv.init_state(batch), wide(weight.new_zeros(batch, self.channels, self.states))

    def read(
        self, x: Float[Tensor, "batch length dim"], state: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        u, z = self.enter(x).chunk(2, dim=-1)
        u, past = convolve_on(self.conv, u, state[0])
        u = F.silu(u)
        dt, b, c = self._selected(u)
        y, h = selective_scan(u, dt, -wide(self.a_log).exp(), b, c, state[1])
        return self.out((y.to(u.dtype) + self.skip * u) * F.silu(z)), (past, h)

    def step(self, x: Float[Tensor, "batch dim"], state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        u, z = self.enter(x).chunk(2, dim=-1)
        u, past = self.conv.step(u, state[0])
        u = F.silu(u)
        dt, b, c = self._selected(u)
        h = torch.exp(dt[..., None] * -wide(self.a_log).exp()) * state[1] + (dt * u)[..., None] * b[:, None]
        y = (h * c[:, None]).sum(-1)
        return self.out((y.to(u.dtype) + self.skip * u) * F.silu(z)), (past, h)

    def state_size(self, length: int) -> int:
        return self.channels * (self.states + self.conv.conv.kernel_size[0] - 1)

    def flops(self, length: int) -> int:
        maps = 6 * self.dim * self.channels + 2 * self.channels * (2 * self.dt_rank + 2 * self.states)
        return length * (maps + 9 * self.channels * self.states)


@register_mixer("mamba2")
class Mamba2(StatefulMixer):
    """The Mamba-2 layer, with one group of B and C for all heads.

    Args:
        dim: features of a token.
        state: N, states of each channel.
        expand: channels over features.
        head_dim: channels of a head; a divisor of the channels. None: the largest divisor up to 64.
        kernel_size: taps of the short convolution.
        dt_min, dt_max: between which the time steps of the heads start.
        inner_chunk: tokens between which weights are formed; the result does not depend on it.

    Raises:
        ValueError: if heads do not divide, for sizes below 1, or times that make no sense.
    """

    cost = "O(L D^2 + L D (N + c)) in chunks of c"
    undecayed = ("a_log", "skip", "dt_bias")

    def __init__(
        self,
        dim: int,
        state: int = 64,
        *,
        expand: int = 2,
        head_dim: int | None = None,
        kernel_size: int = 4,
        dt_min: float | int = 1e-3,
        dt_max: float | int = 1e-1,
        inner_chunk: int = 64,
    ):
        super().__init__()
        if min(dim, state, expand) < 1:
            raise ValueError(f"sizes must be positive, got dim {dim}, state {state} and expand {expand}")
        channels = expand * dim
        if head_dim is None:
            head_dim = next(width for width in range(min(64, channels), 0, -1) if channels % width == 0)
        if head_dim < 1 or channels % head_dim:
            raise ValueError(f"head_dim must divide the {channels} channels, got {head_dim}")
        check_chunk(inner_chunk)
        self.dim, self.channels, self.states, self.heads = dim, channels, state, channels // head_dim
        self.inner_chunk = inner_chunk
        self.enter = nn.Linear(dim, 2 * channels + 2 * state + self.heads, bias=False)
        self.conv = ShortConv(channels + 2 * state, kernel_size)
        self.dt_bias = nn.Parameter(_initial_dt_bias(self.heads, dt_min, dt_max))
        self.a_log = nn.Parameter(torch.empty(self.heads).uniform_(1, 16).log())
        self.skip = nn.Parameter(torch.ones(self.heads))
        self.norm = nn.RMSNorm(channels, eps=1e-5)
        self.out = nn.Linear(channels, dim, bias=False)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gate; what is convolved; the time steps, (..., heads)."""
        z, mixed, dt = self.enter(x).split([self.channels, self.channels + 2 * self.states, self.heads], dim=-1)
        return z, mixed, F.softplus(wide(dt + self.dt_bias))

    def _convolved(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """u (..., heads, width), B and C (..., states)."""
        u, b, c = F.silu(mixed).split([self.channels, self.states, self.states], dim=-1)
        return u.unflatten(-1, (self.heads, -1)), b, c

    def _finish(self, y: Tensor, u: Tensor, z: Tensor) -> Tensor:
        y = (y.to(u.dtype) + self.skip[:, None] * u).flatten(-2)
        return self.out(self.norm(y * F.silu(z)))

    def init_state(self, batch: int) -> tuple[Tensor, Tensor]:
        """The convolution's last inputs, and the states (batch, heads, states, width)."""
        width = self.channels // self.heads
        return self.conv.init_state(batch), wide(self.out.weight.new_zeros(batch, self.heads, self.states, width))

    def read(
        self, x: Float[Tensor, "batch length dim"], state: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        z, mixed, dt = self._parts(x)
        mixed, past = convolve_on(self.conv, mixed, state[0])
        u, b, c = self._convolved(mixed)
        b, c = (wide(part)[:, None].expand(-1, self.heads, -1, -1) for part in (b, c))
        dt = dt.transpose(1, 2)
        values = dt[..., None] * wide(u).transpose(1, 2)
        fade = dt * -wide(self.a_log).exp()[:, None]
        y, _, (h, _) = matrix_scan(c, b, values, fade, chunk=self.inner_chunk, state=(state[1], fade[..., 0]))
        return self._finish(y.transpose(1, 2), u, z), (past, h)

    def step(self, x: Float[Tensor, "batch dim"], state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        z, mixed, dt = self._parts(x)
        mixed, past = self.conv.step(mixed, state[0])
        u, b, c = self._convolved(mixed)
        fade = torch.exp(dt * -wide(self.a_log).exp())[..., None, None]
        h = fade * state[1] + b[:, None, :, None] * (dt[..., None] * u)[:, :, None]
        return self._finish(torch.einsum("bn,bhnw->bhw", wide(c), h), u, z), (past, h)

    def state_size(self, length: int) -> int:
        taps = self.conv.conv.kernel_size[0] - 1
        return self.channels * self.states + taps * (self.channels + 2 * self.states)

    def flops(self, length: int) -> int:
        inner = min(self.inner_chunk, length)
        maps = 2 * self.dim * (3 * self.channels + 2 * self.states + self.heads)
        pairs = 2 * inner * (self.heads * self.states + self.channels)
        return length * (maps + pairs + 4 * self.channels * self.states)
