"""Retention: attention whose weights fade by a fixed rate for each head, with parallel, recurrent and chunked forms.

Sun et al., "Retentive network: a successor to transformer for large language models", 2023, arXiv:2307.08621.

For each head, S_t = gamma S_{t-1} + k_t^T v_t and y_t = q_t S_t / sqrt(d); in parallel, Y = (Q K^T * D) V / sqrt(d)
with D_nm = gamma^(n - m) for n >= m. Queries and keys are turned by their positions; each head's output is normalised,
gated by silu(x W_g), and mapped by W_o. gamma_h = 1 - 2^(-5 - h), h = 0, 1, ...
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from etude.nn.mixers import Mixer, register_mixer
from etude.nn.positions import apply_rotary, rotary_frequencies

__all__ = ["Retention", "chunked_retention", "parallel_retention"]


def parallel_retention(
    q: Float[Tensor, "batch heads length width"],
    k: Float[Tensor, "batch heads length width"],
    v: Float[Tensor, "batch heads length value"],
    decay: Float[Tensor, "heads"],
) -> Float[Tensor, "batch heads length value"]:
    """(Q K^T * D) V, all tokens at once, in O(length^2); not divided by the root of the width."""
    places = torch.arange(q.shape[2], device=q.device)
    distance = places[:, None] - places
    fade = torch.where(distance >= 0, decay[:, None, None] ** distance.clamp(min=0), 0.0)
    return (q @ k.transpose(-2, -1) * fade) @ v


def chunked_retention(
    q: Float[Tensor, "batch heads length width"],
    k: Float[Tensor, "batch heads length width"],
    v: Float[Tensor, "batch heads length value"],
    decay: Float[Tensor, "heads"],
    chunk: int,
    state: Float[Tensor, "batch heads width value"] | None = None,
) -> tuple[Float[Tensor, "batch heads length value"], Float[Tensor, "batch heads width value"]]:
    """What `parallel_retention` gives, chunk by chunk, in O(length * chunk); and the state after the last token.

    Args:
        q, k, v: not divided by the root of the width.
        decay: gamma of each head.
        chunk: tokens that are handled at once; the last chunk may be shorter.
        state: what was kept of the tokens before; zero if None.

    Raises:
        ValueError: if `chunk` is not positive.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    if state is None:
        state = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1])
    outputs = []
    for one_q, one_k, one_v in zip(q.split(chunk, 2), k.split(chunk, 2), v.split(chunk, 2)):
        steps = torch.arange(one_q.shape[2], device=q.device)
        since = decay[:, None, None] ** (steps[:, None] + 1)  # of the state, at each token
        outputs.append(parallel_retention(one_q, one_k, one_v, decay) + (one_q * since) @ state)
        left = decay[:, None, None] ** (len(steps) - 1 - steps[:, None])
        state = decay[:, None, None] ** len(steps) * state + (one_k * left).transpose(-2, -1) @ one_v
    return torch.cat(outputs, dim=2), state


@register_mixer("retention")
class Retention(Mixer):
    """Multi-scale retention (section 2 of the paper).

    Args:
        dim: features of a token.
        num_heads: heads; `dim` is a multiple.
        value_dim: features of the values of all heads, a multiple of `num_heads`; `dim` if None (the paper: 2 dim).
        chunk: tokens handled at once; None: all (the parallel form).
        rope_theta: base of the rotary positions; None: none.
        normalize: whether each head's output is brought to mean 0 and variance 1.
        gate: whether the output is gated.

    Raises:
        ValueError: if the heads do not divide, or are of odd width with rotary positions.
    """

    recurrent = True
    cost = "O(L^2 D), O(L c D) in chunks of c"
    decay: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        *,
        value_dim: int | None = None,
        chunk: int | None = None,
        rope_theta: float | int | None = 10_000.0,
        normalize: bool = True,
        gate: bool = True,
    ):
        super().__init__()
        value_dim = dim if value_dim is None else value_dim
        if num_heads < 1 or dim % num_heads or value_dim % num_heads:
            raise ValueError(
                f"dim and value_dim must be multiples of num_heads, got {dim}, {value_dim} and {num_heads}"
            )
        self.dim, self.num_heads, self.value_dim = dim, num_heads, value_dim
        self.chunk, self.rope_theta, self.normalize = chunk, rope_theta, normalize
        if rope_theta is not None:
            rotary_frequencies(dim // num_heads, rope_theta)
        self.q = nn.Linear(dim, dim, bias=False)
        self.k = nn.Linear(dim, dim, bias=False)
        self.v = nn.Linear(dim, value_dim, bias=False)
        self.gate = nn.Linear(dim, value_dim, bias=False) if gate else None
        self.out = nn.Linear(value_dim, dim, bias=False)
        decay = 1 - 2.0 ** (-5 - torch.arange(num_heads, dtype=torch.float64))
        self.register_buffer("decay", decay, persistent=False)

    def _heads(self, x: Tensor, start: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.rope_theta is not None:
            frequencies = rotary_frequencies(self.dim // self.num_heads, self.rope_theta)
            places = torch.arange(start, start + x.shape[1], device=x.device)
            q, k = apply_rotary(q, places, frequencies), apply_rotary(k, places, frequencies)
        return q * (self.dim // self.num_heads) ** -0.5, k, v

    def _finish(self, y: Tensor, x: Tensor) -> Tensor:
        """From (batch, heads, length, value) to (batch, length, dim)."""
        if self.normalize:
            y = F.layer_norm(y, y.shape[-1:])
        y = y.transpose(1, 2).flatten(2)
        if self.gate is not None:
            y = y * F.silu(self.gate(x))
        return self.out(y)

    def forward(
        self, x: Float[Tensor, "batch length dim"], *, mask: Bool[Tensor, "batch length"] | None = None
    ) -> Float[Tensor, "batch length dim"]:
        q, k, v = self._heads(x)
        if mask is not None:
            v = v * mask[:, None, :, None]
        decay = self.decay.to(x.dtype)
        y = (
            parallel_retention(q, k, v, decay)
            if self.chunk is None
            else chunked_retention(q, k, v, decay, self.chunk)[0]
        )
        return self._finish(y, x)

    def init_state(self, batch: int) -> tuple[Float[Tensor, "batch heads width value"], int]:
        """What is kept of the tokens read, and how many there were."""
        width, value = self.dim // self.num_heads, self.value_dim // self.num_heads
        return self.q.weight.new_zeros(batch, self.num_heads, width, value), 0

    def step(
        self, x: Float[Tensor, "batch dim"], state: tuple[Tensor, int]
    ) -> tuple[Float[Tensor, "batch dim"], tuple[Tensor, int]]:
        kept, read = state
        q, k, v = self._heads(x[:, None], read)
        kept = self.decay.to(x.dtype)[:, None, None] * kept + k.transpose(-2, -1) @ v
        return self._finish(q @ kept, x[:, None])[:, 0], (kept, read + 1)

    def state_size(self, length: int) -> int:
        return self.dim * self.value_dim // self.num_heads

    def flops(self, length: int) -> int:
        gated = 0 if self.gate is None else self.value_dim
        projections = 2 * length * self.dim * (2 * self.dim + 2 * self.value_dim + gated)
        seen = length if self.chunk is None else min(self.chunk, length)
        return projections + 2 * length * seen * (self.dim + self.value_dim)
