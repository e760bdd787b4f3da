"""RWKV: attention without queries, whose weights fade with time at a rate of each channel.

Peng et al., "RWKV: reinventing RNNs for the transformer era", 2023, arXiv:2305.13048 (version 4), Eq. 11-18. With
x'_t = mu x_t + (1 - mu) x_{t-1} (token shift) for each of r, k and v, and w = exp(.) > 0,

    wkv_t = (sum_{s<t} e^{-(t-1-s) w + k_s} v_s + e^{u + k_t} v_t) / (the same with 1 for v)
    y_t   = W_o (sigmoid(r_t) * wkv_t)

Both sums are kept divided by e^{p_t}, p_t = max(p_{t-1} - w, k_t), so that no exponent is positive.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from etude.nn.mixers import register_mixer
from etude.nn.scan import scan
from etude.sequence.after_transformers.matrix_state import LOWEST
from etude.sequence.after_transformers.stateful import StatefulMixer, check_chunk, wide

__all__ = ["RWKV", "RWKVChannelMix", "wkv"]


def wkv(
    k: Float[Tensor, "batch length dim"],
    v: Float[Tensor, "batch length dim"],
    w: Float[Tensor, "dim"],
    u: Float[Tensor, "dim"],
    state: tuple[Tensor, Tensor] | None = None,
) -> tuple[Float[Tensor, "batch length dim"], tuple[Float[Tensor, "batch dim 2"], Float[Tensor, "batch dim"]]]:
    """The weighted mean of the values, in log2(length) passes; and the state after the last token.

    Args:
        k, v: keys, which are logarithms of weights, and values.
        w: how much a key loses at each token, positive.
        u: what the present token's key gains.
        state: both sums divided by e^p, and p, after the tokens before; nothing was read if None.
    """
    k, v = wide(k), wide(v)
    if state is None:
        state = v.new_zeros(*k[:, 0].shape, 2), torch.full_like(k[:, 0], LOWEST)
    sums, p = state
    with torch.no_grad():  # the quotient does not depend on it
        p = _running_max(k, w, p)
    earlier = torch.cat([state[1][:, None], p[:, :-1]], dim=1)
    left = torch.exp(earlier - w - p)[..., None]
    both = torch.exp(k - p)[..., None] * torch.stack([v, torch.ones_like(v)], dim=-1)
    after = scan(left, both, sums)
    before = torch.cat([sums[:, None], after[:, :-1]], dim=1)
    return _with_bonus(before, earlier, k, v, u), (after[:, -1], p[:, -1])


def _running_max(k: Tensor, w: Tensor, first: Tensor) -> Tensor:
    """p_t = max(p_{t-1} - w, k_t), by doubling how far back each token looks."""
    p = torch.cat([first[:, None], k], dim=1)
    reach = 1
    while reach < p.shape[1]:
        p = torch.cat([p[:, :reach], torch.maximum(p[:, reach:], p[:, :-reach] - reach * w)], dim=1)
        reach *= 2
    return p[:, 1:]


def _with_bonus(sums: Tensor, p: Tensor, k: Tensor, v: Tensor, u: Tensor) -> Tensor:
    """The quotient, from the sums over earlier tokens, divided by e^p, and the present token."""
    present = u + k
    top = torch.maximum(p, present).detach()
    old, new = torch.exp(p - top), torch.exp(present - top)
    return (old * sums[..., 0] + new * v) / (old * sums[..., 1] + new)


@register_mixer("rwkv")
class RWKV(StatefulMixer):
    """The time mixing of RWKV-4.

    Args:
        dim: features of a token.
        layer: counted from 0; rates, bonuses and shifts start as published for this layer of `depth`.
        depth: layers of the network.
        chunk: tokens handled at once; None: all.

    Raises:
        ValueError: if the chunk is empty.
    """

    cost = "O(L D^2)"
    undecayed = ("log_decay", "bonus", "mu_r", "mu_k", "mu_v")

    def __init__(self, dim: int, *, layer: int = 0, depth: int = 1, chunk: int | None = None):
        super().__init__()
        check_chunk(chunk)
        self.dim, self.chunk = dim, chunk
        deep = min(1.0, layer / max(depth - 1, 1))
        ratio = max(0.0, 1 - layer / max(depth, 1))
        place = torch.arange(dim) / max(dim - 1, 1)
        self.log_decay = nn.Parameter(-5 + 8 * place ** (0.7 + 1.3 * deep))
        self.bonus = nn.Parameter(math.log(0.3) + ((torch.arange(dim) + 1) % 3 - 1) * 0.5)
        shift = (torch.arange(dim) / dim) ** ratio
        self.mu_k = nn.Parameter(shift.clone())
        self.mu_v = nn.Parameter(shift + 0.3 * deep)
        self.mu_r = nn.Parameter(shift**0.5)
        self.r, self.k, self.v, self.out = (nn.Linear(dim, dim, bias=False) for _ in range(4))

    def _shifted(self, x: Tensor, previous: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mixes = (torch.lerp(previous, x, mu) for mu in (self.mu_r, self.mu_k, self.mu_v))
        r, k, v = (layer(mixed) for layer, mixed in zip((self.r, self.k, self.v), mixes))
        return torch.sigmoid(r), k, v

    def init_state(self, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """The last token, both sums, and p."""
        zero = self.out.weight.new_zeros(batch, self.dim)
        return zero, wide(zero.new_zeros(batch, self.dim, 2)), wide(torch.full_like(zero, LOWEST))

    def read(
        self, x: Float[Tensor, "batch length dim"], state: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        r, k, v = self._shifted(x, torch.cat([state[0][:, None], x[:, :-1]], dim=1))
        y, (sums, p) = wkv(k, v, wide(self.log_decay).exp(), self.bonus, state[1:])
        return self.out(r * y.to(x.dtype)), (x[:, -1], sums, p)

    def step(
        self, x: Float[Tensor, "batch dim"], state: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        previous, sums, p = state
        r, k, v = self._shifted(x, previous)
        k, v = wide(k), wide(v)
        y = _with_bonus(sums, p, k, v, self.bonus)
        faded = p - wide(self.log_decay).exp()
        top = torch.maximum(faded, k)
        sums = torch.exp(faded - top)[..., None] * sums + torch.exp(k - top)[..., None] * torch.stack(
            [v, torch.ones_like(v)], dim=-1
        )
        return self.out(r * y.to(x.dtype)), (x, sums, top)

    def state_size(self, length: int) -> int:
        return 4 * self.dim

    def flops(self, length: int) -> int:
        return 8 * length * self.dim**2 + 20 * length * self.dim


class RWKVChannelMix(nn.Module):
    """sigmoid(W_r x'_t) * W_v relu(W_k x''_t)^2 on shifted tokens: what follows RWKV's time mixing.

    Args:
        dim: features of a token.
        hidden_dim: features between.
        layer, depth: as for `RWKV`.
    """

    def __init__(self, dim: int, hidden_dim: int, *, layer: int = 0, depth: int = 1):
        super().__init__()
        shift = (torch.arange(dim) / dim) ** max(0.0, 1 - layer / max(depth, 1))
        self.mu_k, self.mu_r = nn.Parameter(shift.clone()), nn.Parameter(shift.clone())
        self.k = nn.Linear(dim, hidden_dim, bias=False)
        self.r = nn.Linear(dim, dim, bias=False)
        self.v = nn.Linear(hidden_dim, dim, bias=False)

    def _mix(self, x: Tensor, previous: Tensor) -> Tensor:
        hidden = F.relu(self.k(torch.lerp(previous, x, self.mu_k))).square()
        return torch.sigmoid(self.r(torch.lerp(previous, x, self.mu_r))) * self.v(hidden)

    def forward(self, x: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch length dim"]:
        return self._mix(x, F.pad(x, (0, 0, 1, -1)))

    def init_state(self, batch: int) -> Float[Tensor, "batch dim"]:
        """The last token."""
        return self.r.weight.new_zeros(batch, len(self.r.weight))

    def step(self, x: Float[Tensor, "batch dim"], state: Tensor) -> tuple[Tensor, Tensor]:
        return self._mix(x, state), x
