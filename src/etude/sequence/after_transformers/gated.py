"""Classic recurrences: GRU and LSTM, and one whose gates see the input alone, so that a scan solves it.

Cho et al., 2014, arXiv:1406.1078; Hochreiter & Schmidhuber, 1997. Min-gated recurrence, in the spirit of QRNN (Bradbury
et al., arXiv:1611.01576) and SRU (Lei et al., arXiv:1709.02755): with z = sigmoid(W_z x), o = sigmoid(W_o x),

    h_t = (1 - z_t) h_{t-1} + z_t W_h x_t,   y_t = W (o_t * h_t)
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from etude.nn.mixers import register_mixer
from etude.nn.scan import scan
from etude.sequence.after_transformers.stateful import StatefulMixer, check_chunk

__all__ = ["GRU", "LSTM", "MinGated"]


@register_mixer("gru")
class GRU(StatefulMixer):
    """`torch.nn.GRU`, one layer, in the direction of time."""

    cost = "O(L D^2), one token after another"

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim
        self.cell = nn.GRU(dim, dim, batch_first=True)

    def init_state(self, batch: int) -> Float[Tensor, "batch dim"]:
        return next(self.parameters()).new_zeros(batch, self.dim)

    def read(self, x: Float[Tensor, "batch length dim"], state: Tensor) -> tuple[Tensor, Tensor]:
        y, last = self.cell(x, state[None])
        return y, last[0]

    def step(self, x: Float[Tensor, "batch dim"], state: Tensor) -> tuple[Tensor, Tensor]:
        state = torch.gru_cell(x, state, *self.cell.all_weights[0])
        return state, state

    def state_size(self, length: int) -> int:
        return self.dim

    def flops(self, length: int) -> int:
        return 12 * length * self.dim**2


@register_mixer("lstm")
class LSTM(StatefulMixer):
    """`torch.nn.LSTM`, one layer, in the direction of time."""

    cost = "O(L D^2), one token after another"

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim
        self.cell = nn.LSTM(dim, dim, batch_first=True)

    def init_state(self, batch: int) -> tuple[Tensor, Tensor]:
        """h and c."""
        zero = next(self.parameters()).new_zeros(batch, self.dim)
        return zero, zero

    def read(
        self, x: Float[Tensor, "batch length dim"], state: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y, (h, c) = self.cell(x, (state[0][None], state[1][None]))
        return y, (h[0], c[0])

    def step(self, x: Float[Tensor, "batch dim"], state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h, c = torch.lstm_cell(x, state, *self.cell.all_weights[0])
        return h, (h, c)

    def state_size(self, length: int) -> int:
        return 2 * self.dim

    def flops(self, length: int) -> int:
        return 16 * length * self.dim**2


@register_mixer("min_gated")
class MinGated(StatefulMixer):
    """A gated moving average of each feature.

    Args:
        dim: features of a token.
        chunk: tokens handled at once; None: all.

    Raises:
        ValueError: if the chunk is empty.
    """

    cost = "O(L D^2)"

    def __init__(self, dim: int, *, chunk: int | None = None):
        super().__init__()
        check_chunk(chunk)
        self.dim, self.chunk = dim, chunk
        self.inputs = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def _gates(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z, candidate, o = self.inputs(x).chunk(3, dim=-1)
        return torch.sigmoid(z), candidate, torch.sigmoid(o)

    def init_state(self, batch: int) -> Float[Tensor, "batch dim"]:
        return self.out.weight.new_zeros(batch, self.dim)

    def read(self, x: Float[Tensor, "batch length dim"], state: Tensor) -> tuple[Tensor, Tensor]:
        z, candidate, o = self._gates(x)
        h = scan(1 - z, z * candidate, state)
        return self.out(o * h), h[:, -1]

    def step(self, x: Float[Tensor, "batch dim"], state: Tensor) -> tuple[Tensor, Tensor]:
        z, candidate, o = self._gates(x)
        h = (1 - z) * state + z * candidate
        return self.out(o * h), h

    def state_size(self, length: int) -> int:
        return self.dim

    def flops(self, length: int) -> int:
        return 8 * length * self.dim**2
