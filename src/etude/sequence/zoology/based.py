"""Based: linear attention whose feature map is the second-order Taylor polynomial of exp.

Arora, Eyuboglu, Zhang, Timalsina, Alberti, Zinsley, Zou, Rudra & Ré, "Simple linear attention language models balance
the recall-throughput tradeoff", 2024, arXiv:2402.18668, the same authors' next paper; not an arm of "Zoology".

phi(q) . phi(k) = 1 + s + s^2 / 2 with s = q . k / sqrt(d), which is at least 1/2: the normaliser needs no epsilon.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from etude.nn.mixers import Mixer, register_mixer

__all__ = ["Based", "taylor_features"]


def taylor_features(x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch features"]:
    """1 + d + d (d + 1) / 2 features, with phi(x) . phi(y) = 1 + s + s^2 / 2, s = x . y / sqrt(d)."""
    d = x.shape[-1]
    x = x * d**-0.25
    row, column = torch.triu_indices(d, d, device=x.device)
    scale = torch.where(row == column, x.new_tensor(0.5**0.5), x.new_tensor(1.0))
    return torch.cat([torch.ones_like(x[..., :1]), x, x[..., row] * x[..., column] * scale], dim=-1)


@register_mixer("based")
class Based(Mixer):
    """Causal linear attention with Taylor features, in parallel, in chunks, and token by token.

    Args:
        dim: features of a token.
        num_heads: heads; `dim` is a multiple.
        feature_dim: width of queries and keys of a head.
        chunk: tokens whose scores are formed at once; None: all, the parallel form.

    Raises:
        ValueError: if heads do not divide, or a size is not positive.
    """

    recurrent = True
    cost = "O(L^2 D), O(L (c + d^2) D) in chunks of c"

    def __init__(self, dim: int, num_heads: int = 1, *, feature_dim: int = 16, chunk: int | None = None):
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads, got {dim} and {num_heads}")
        if feature_dim < 1 or (chunk is not None and chunk < 1):
            raise ValueError(f"feature_dim and chunk must be positive, got {feature_dim} and {chunk}")
        self.dim, self.num_heads, self.feature_dim, self.chunk = dim, num_heads, feature_dim, chunk
        self.q = nn.Linear(dim, num_heads * feature_dim, bias=False)
        self.k = nn.Linear(dim, num_heads * feature_dim, bias=False)
        self.v = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k (..., heads, length, d) and v with a column of ones, which sums the weights."""
        q, k, v = (layer(x).unflatten(-1, (self.num_heads, -1)).transpose(-3, -2) for layer in (self.q, self.k, self.v))
        return q, k, F.pad(v, (0, 1), value=1.0)

    def _finish(self, y: Tensor) -> Tensor:
        """From sums and weights (..., heads, length, value + 1) to (..., length, dim); zero where nothing is seen."""
        weight = y[..., -1:]
        y = y[..., :-1] / torch.where(weight == 0, 1.0, weight)
        return self.out(y.transpose(-3, -2).flatten(-2))

    def forward(
        self, x: Float[Tensor, "batch length dim"], *, mask: Bool[Tensor, "batch length"] | None = None
    ) -> Float[Tensor, "batch length dim"]:
        q, k, v = self._heads(x)
        if mask is not None:
            v = v * mask[:, None, :, None]
        if self.chunk is None or self.chunk >= x.shape[1]:
            return self._finish(self._within(q, k, v))
        length, extra = x.shape[1], -x.shape[1] % self.chunk
        q, k, v = (F.pad(part, (0, 0, 0, extra)).unflatten(2, (-1, self.chunk)) for part in (q, k, v))
        sums = taylor_features(k).transpose(-2, -1) @ v
        y = self._within(q, k, v) + taylor_features(q) @ (sums.cumsum(2) - sums)
        return self._finish(y.flatten(2, 3)[:, :, :length])

    def _within(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        s = q @ k.transpose(-2, -1) * self.feature_dim**-0.5
        return (1 + s + s.square() / 2).tril() @ v

    def init_state(self, batch: int) -> Float[Tensor, "batch heads features value"]:
        """Sums of phi(k)^T v and, in the last column, of phi(k)."""
        d = self.feature_dim
        features = 1 + d + d * (d + 1) // 2
        return self.q.weight.new_zeros(batch, self.num_heads, features, self.dim // self.num_heads + 1)

    def step(self, x: Float[Tensor, "batch dim"], state: Tensor) -> tuple[Float[Tensor, "batch dim"], Tensor]:
        q, k, v = self._heads(x[:, None])
        state = state + taylor_features(k).transpose(-2, -1) @ v
        return self._finish(taylor_features(q) @ state)[:, 0], state

    def state_size(self, length: int) -> int:
        d = self.feature_dim
        return (1 + d + d * (d + 1) // 2) * (self.dim + self.num_heads)

    def flops(self, length: int) -> int:
        d, heads = self.feature_dim, self.num_heads
        projections = 2 * length * self.dim * (2 * heads * d + 2 * self.dim)
        seen = length if self.chunk is None else min(length, self.chunk)
        scores = 2 * length * seen * (heads * d + self.dim)
        if seen == length:
            return projections + scores
        return projections + scores + 4 * length * (1 + d + d * (d + 1) // 2) * self.dim
