"""Linear attention: a kernel in place of the softmax, so that the past fits in a matrix.

Katharopoulos, Vyas, Pappas & Fleuret, "Transformers are RNNs", 2020, arXiv:2006.16236. With phi = elu + 1, for each
head,

    S_t = S_{t-1} + phi(k_t) v_t^T,   z_t = z_{t-1} + phi(k_t),   y_t = phi(q_t)^T S_t / (phi(q_t)^T z_t + 1e-6)
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from etude.nn.mixers import register_mixer
from etude.sequence.after_transformers.matrix_state import matrix_scan
from etude.sequence.after_transformers.stateful import StatefulMixer, check_chunk

__all__ = ["LinearAttention"]

_EPSILON = 1e-6


@register_mixer("linear_attention")
class LinearAttention(StatefulMixer):
    """Causal linear attention with phi = elu + 1.

    Args:
        dim: features of a token.
        num_heads: heads; `dim` is a multiple.
        inner_chunk: tokens between which weights are formed; the result does not depend on it.

    Raises:
        ValueError: if the heads do not divide, or the chunk is empty.
    """

    cost = "O(L D^2 / heads)"

    def __init__(self, dim: int, num_heads: int = 1, *, inner_chunk: int = 64):
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads, got {dim} and {num_heads}")
        check_chunk(inner_chunk)
        self.dim, self.num_heads, self.inner_chunk = dim, num_heads, inner_chunk
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """phi(q), phi(k), and v with a one appended, whose sum is the normaliser."""
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        return F.elu(q) + 1, F.elu(k) + 1, F.pad(v, (0, 1), value=1.0)

    def _finish(self, y: Tensor) -> Tensor:
        y = y[..., :-1] / (y[..., -1:] + _EPSILON)
        return self.out(y.transpose(1, 2).flatten(2))

    def init_state(self, batch: int) -> Float[Tensor, "batch heads width values"]:
        """S and z side by side."""
        width = self.dim // self.num_heads
        return self.out.weight.new_zeros(batch, self.num_heads, width, width + 1)

    def read(self, x: Float[Tensor, "batch length dim"], state: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self._heads(x)
        still = torch.zeros_like(k[..., 0])
        y, _, (state, _) = matrix_scan(
            q, k, v, still, chunk=self.inner_chunk, state=(state, still[..., 0])
        )  # fmt: skip
        return self._finish(y), state

    def step(self, x: Float[Tensor, "batch dim"], state: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self._heads(x[:, None])
        state = state + k.transpose(-2, -1) @ v
        return self._finish(q @ state)[:, 0], state

    def state_size(self, length: int) -> int:
        return self.dim * (self.dim // self.num_heads + 1)

    def flops(self, length: int) -> int:
        width, inner = self.dim // self.num_heads, min(self.inner_chunk, length)
        return 8 * length * self.dim**2 + 4 * length * self.dim * (inner + width)
