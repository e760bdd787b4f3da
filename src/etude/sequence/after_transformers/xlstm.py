"""xLSTM: an LSTM with exponential gates, whose memory is a matrix (mLSTM) or a number for each feature (sLSTM).

Beck et al., "xLSTM: extended long short-term memory", 2024, arXiv:2405.04517. mLSTM, Eq. 19-27: for each head, with
f = sigmoid(f~), i = exp(i~) and k divided by the root of its width,

    C_t = f_t C_{t-1} + i_t v_t k_t^T,   n_t = f_t n_{t-1} + i_t k_t,   y_t = o_t * C_t q_t / max(|n_t . q_t|, 1)

sLSTM, Eq. 8-18: c_t = f_t c_{t-1} + i_t z_t, n_t = f_t n_{t-1} + i_t, h_t = o_t c_t / n_t, where all gates see
h_{t-1} through weights of their head. Both are kept divided by exp(m_t), m_t = max(log f_t + m_{t-1}, i~_t).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from etude.nn.mixers import register_mixer
from etude.sequence.after_transformers.matrix_state import LOWEST, matrix_scan
from etude.sequence.after_transformers.stateful import StatefulMixer, check_chunk, wide

__all__ = ["MLSTM", "SLSTM"]


def _check_heads(dim: int, num_heads: int) -> None:
    if num_heads < 1 or dim % num_heads:
        raise ValueError(f"dim must be a multiple of num_heads, got {dim} and {num_heads}")


@register_mixer("mlstm")
class MLSTM(StatefulMixer):
    """The mLSTM cell between linear maps; each head's output is normalised, as in the paper's block.

    Args:
        dim: features of a token.
        num_heads: heads; `dim` is a multiple.
        normalize: whether each head's output is brought to mean 0 and variance 1 before the output gate.
        inner_chunk: tokens between which weights are formed; the result does not depend on it.

    Raises:
        ValueError: if the heads do not divide, or the chunk is empty.
    """

    cost = "O(L D^2)"

    def __init__(self, dim: int, num_heads: int = 4, *, normalize: bool = True, inner_chunk: int = 64):
        super().__init__()
        _check_heads(dim, num_heads)
        check_chunk(inner_chunk)
        self.dim, self.num_heads, self.normalize, self.inner_chunk = dim, num_heads, normalize, inner_chunk
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.gates = nn.Linear(dim, 2 * num_heads)
        self.gate_out = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim, bias=False)
        with torch.no_grad():  # forget gates start open, at different rates
            self.gates.weight.zero_()
            self.gates.bias.copy_(torch.cat([torch.zeros(num_heads), torch.linspace(3, 6, num_heads)]))

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """q, k, v with a one appended; log f and i~."""
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        i, f = wide(self.gates(x)).transpose(1, 2).chunk(2, dim=1)
        k = k * (self.dim // self.num_heads) ** -0.5
        return wide(q), wide(k), F.pad(wide(v), (0, 1), value=1.0), F.logsigmoid(f), i

    def _finish(self, y: Tensor, m: Tensor, x: Tensor) -> Tensor:
        """From C q and n . q, both divided by exp(m)."""
        # 1 divided by exp(m), too; bounded, since it only has to exceed what exp(-m) can be beside.
        least = torch.exp(-m.clamp(min=-60.0))[..., None]
        y = y[..., :-1] / torch.maximum(y[..., -1:].abs(), least)
        if self.normalize:
            y = F.layer_norm(y, y.shape[-1:])
        y = y.transpose(1, 2).flatten(2).to(x.dtype)
        return self.out(torch.sigmoid(self.gate_out(x)) * y)

    def init_state(self, batch: int) -> tuple[Tensor, Tensor]:
        """C and n side by side, and m."""
        width = self.dim // self.num_heads
        zero = wide(self.out.weight.new_zeros(batch, self.num_heads, width, width + 1))
        return zero, torch.full_like(zero[..., 0, 0], LOWEST)

    def read(
        self, x: Float[Tensor, "batch length dim"], state: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        q, k, v, f, i = self._heads(x)
        y, m, state = matrix_scan(q, k, v, f, i, chunk=self.inner_chunk, state=state)
        return self._finish(y, m, x), state

    def step(self, x: Float[Tensor, "batch dim"], state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        memory, m = state
        q, k, v, f, i = self._heads(x[:, None])
        f, i = f[..., 0] + m, i[..., 0]
        m = torch.maximum(f, i)
        memory = torch.exp(f - m)[..., None, None] * memory + torch.exp(i - m)[..., None, None] * (
            k.transpose(-2, -1) @ v
        )
        return self._finish(q @ memory, m[..., None], x[:, None])[:, 0], (memory, m)

    def state_size(self, length: int) -> int:
        width = self.dim // self.num_heads
        return self.dim * (width + 1) + self.num_heads

    def flops(self, length: int) -> int:
        width, inner = self.dim // self.num_heads, min(self.inner_chunk, length)
        return length * (10 * self.dim**2 + 4 * self.dim * (inner + width))


@register_mixer("slstm")
class SLSTM(StatefulMixer):
    """The sLSTM cell and a linear map. Its gates see its last output: it can only be run token after token.

    Args:
        dim: features of a token.
        num_heads: heads within which the recurrent weights mix; `dim` is a multiple.

    Raises:
        ValueError: if the heads do not divide.
    """

    cost = "O(L D^2), one token after another"

    def __init__(self, dim: int, num_heads: int = 4):
        super().__init__()
        _check_heads(dim, num_heads)
        self.dim, self.num_heads = dim, num_heads
        self.inputs = nn.Linear(dim, 4 * dim)
        width = dim // num_heads
        self.recurrent_weight = nn.Parameter(torch.randn(num_heads, width, 4 * width) * width**-0.5 * 0.5)
        self.out = nn.Linear(dim, dim, bias=False)
        with torch.no_grad():
            self.inputs.bias.unflatten(0, (num_heads, 4, width))[:, 2].fill_(3.0)  # forget gates start open

    def _next(self, given: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """h, c, n and m, (batch, heads, width) each, from what the token gives, (batch, heads, 4 width)."""
        h, c, n, m = state
        z, i, f, o = (given + torch.einsum("bhw,hwg->bhg", h, self.recurrent_weight)).chunk(4, dim=-1)
        z, i, f = wide(z), wide(i), F.logsigmoid(wide(f)) + m
        m = torch.maximum(f, i)
        old, new = torch.exp(f - m), torch.exp(i - m)
        c, n = old * c + new * torch.tanh(z), old * n + new
        return (torch.sigmoid(o) * c / n).to(h.dtype), c, n, m

    def init_state(self, batch: int) -> tuple[Tensor, ...]:
        """h, c, n and m."""
        h = self.out.weight.new_zeros(batch, self.num_heads, self.dim // self.num_heads)
        return h, wide(h), wide(h), torch.full_like(wide(h), LOWEST)

    def read(
        self, x: Float[Tensor, "batch length dim"], state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        outputs = []
        for given in self.inputs(x).unflatten(-1, (self.num_heads, -1)).unbind(1):
            state = self._next(given, state)
            outputs.append(state[0])
        return self.out(torch.stack(outputs, dim=1).flatten(2)), state

    def step(self, x: Float[Tensor, "batch dim"], state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        state = self._next(self.inputs(x).unflatten(-1, (self.num_heads, -1)), state)
        return self.out(state[0].flatten(1)), state

    def state_size(self, length: int) -> int:
        return 4 * self.dim

    def flops(self, length: int) -> int:
        return length * (10 * self.dim**2 + 8 * self.dim**2 // self.num_heads)
