"""What follows the mixer in a block and works on each token: SwiGLU, experts of which few are asked, learned curves.

Fedus, Zoph & Shazeer, "Switch transformers", 2021, arXiv:2101.03961 (k = 1); Jiang et al., "Mixtral of experts", 2024,
arXiv:2401.04088 (k = 2); Zoph et al., "ST-MoE", 2022, arXiv:2202.08906 (z-loss); Liu et al., "KAN: Kolmogorov-Arnold
networks", 2024, arXiv:2404.19756.
"""

import math
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from etude.nn.transformer import FeedForward, SwiGLU
from etude.sequence.after_transformers.rwkv import RWKVChannelMix

__all__ = ["CHANNELS", "KAN", "KANLinear", "MoE", "auxiliary_loss", "build_channel"]

CHANNELS = ("swiglu", "mlp", "moe", "kan", "rwkv")
"""Names that `build_channel` knows."""


class MoE(nn.Module):
    """A mixture of SwiGLU networks, of which each token is sent to `top_k` by a linear router.

        y = sum over the k chosen experts of gate_e(x) E_e(x)

    With k = 1 the gate is the probability p_e among all experts, as in Switch: were it 1, the router would have no
    gradient. With k > 1 it is the softmax over the chosen, as in Mixtral. After each forward pass in training
    `aux_loss` holds balance_weight * E sum_e f_e P_e + z_weight * mean logsumexp(logits)^2, where f_e is the share of
    the k assignments and P_e the mean probability; add it to the loss (`auxiliary_loss`).

    Args:
        dim: features of a token.
        hidden_dim: features between, of each expert.
        num_experts: E.
        top_k: experts of a token.
        capacity_factor: an expert takes at most ceil(factor * k * tokens / E) tokens, the earlier first, and the
            others go without it; None: as many as come, so that no token depends on another.
        balance_weight, z_weight: of the two terms.
        jitter: in training the router sees its input times uniform noise in 1 +- jitter.

    Attributes:
        aux_loss, balance: of the last forward pass: what to add to the loss, and E sum_e f_e P_e, 1 at uniform routing.
        dropped: assignments that found no room in the last forward pass.
        load: share of the assignments of each expert in the last forward pass.

    Raises:
        ValueError: if `top_k` is not in 1..E, a weight or the jitter is out of range, or, in `forward`, an expert
            would take no token.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        *,
        num_experts: int = 8,
        top_k: int = 2,
        capacity_factor: float | int | None = None,
        balance_weight: float | int = 0.01,
        z_weight: float | int = 1e-3,
        jitter: float | int = 0.0,
    ):
        super().__init__()
        if not 1 <= top_k <= num_experts:
            raise ValueError(f"top_k must lie in 1..{num_experts} (num_experts), got {top_k}")
        if capacity_factor is not None and not capacity_factor > 0:
            raise ValueError(f"capacity_factor must be positive, got {capacity_factor}")
        if balance_weight < 0 or z_weight < 0 or not 0 <= jitter < 1:
            raise ValueError(
                f"weights must not be negative and jitter lie in [0, 1), got {balance_weight}, {z_weight} and {jitter}"
            )
        self.top_k, self.capacity_factor, self.jitter = top_k, capacity_factor, jitter
        self.balance_weight, self.z_weight = balance_weight, z_weight
        self.router = nn.Linear(dim, num_experts, bias=False)
        self.experts = nn.ModuleList(SwiGLU(dim, hidden_dim) for _ in range(num_experts))
        self.aux_loss: Tensor | None = None
        self.balance: Tensor | None = None
        self.load: Tensor | None = None
        self.dropped = 0

    def route(self, x: Float[Tensor, "tokens dim"]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (tokens, experts); gates and chosen experts, (tokens, k), the best first."""
        logits = self.router(x).float() if x.dtype != torch.float64 else self.router(x)
        best, chosen = logits.topk(self.top_k, dim=-1)
        gates = logits.softmax(-1).gather(1, chosen) if self.top_k == 1 else best.softmax(-1)
        return logits, gates.to(x.dtype), chosen

    def capacity(self, tokens: int) -> int:
        """How many tokens an expert takes at most.

        Raises:
            ValueError: if that is less than one.
        """
        if self.capacity_factor is None:
            return tokens
        room = self.capacity_factor * self.top_k * tokens / len(self.experts)
        if room < 1:
            raise ValueError(
                f"each expert would take {room:.2g} of {tokens} tokens: capacity_factor {self.capacity_factor} is too "
                f"small for {len(self.experts)} experts"
            )
        return math.ceil(room)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        tokens = x.reshape(-1, x.shape[-1])
        seen = tokens
        if self.training and self.jitter:
            seen = tokens * torch.empty_like(tokens).uniform_(1 - self.jitter, 1 + self.jitter)
        logits, gates, chosen = self.route(seen)
        experts, capacity = len(self.experts), self.capacity(len(tokens))
        flat = chosen.flatten()
        counts = flat.bincount(minlength=experts)
        self._note(logits, counts)
        # Assignments by expert, in each by token; `bounds` says where an expert's begin.
        order = flat.argsort(stable=True)
        bounds = F.pad(counts.cumsum(0), (1, 0)).tolist()
        y = torch.zeros_like(tokens)
        self.dropped = 0
        for expert, (start, end) in enumerate(pairwise(bounds)):
            taken = order[start : min(end, start + capacity)]
            self.dropped += end - start - len(taken)
            rows = taken // self.top_k
            y = y.index_add(0, rows, gates.flatten()[taken, None] * self.experts[expert](tokens[rows]))
        return y.view_as(x)

    def _note(self, logits: Tensor, counts: Tensor) -> None:
        self.load = counts / counts.sum()
        self.balance = len(counts) * (self.load * logits.softmax(-1).mean(0)).sum()
        self.aux_loss = self.balance_weight * self.balance + self.z_weight * logits.logsumexp(-1).square().mean()


def auxiliary_loss(model: nn.Module) -> Tensor:
    """The sum of the auxiliary losses of a model's mixtures of experts in the last forward pass; 0 if it has none."""
    terms = [part.aux_loss for part in model.modules() if isinstance(part, MoE) and part.aux_loss is not None]
    return torch.stack(terms).sum() if terms else torch.zeros(())


class KANLinear(nn.Module):
    """y_j = sum_i (w_ji silu(x_i) + sum_g c_jig B_g(x_i)): a learned curve on every edge.

    B_g are the B-splines of a uniform grid; outside of it the curves follow silu alone.

    Args:
        in_features, out_features: numbers.
        grid: intervals between `low` and `high`.
        order: of the splines, 3 for cubic.
        low, high: ends of the grid.

    Raises:
        ValueError: for an empty grid or a negative order.
    """

    knots: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        grid: int = 5,
        order: int = 3,
        low: float | int = -1.0,
        high: float | int = 1.0,
    ):
        super().__init__()
        if grid < 1 or order < 0 or not low < high:
            raise ValueError(f"need grid >= 1, order >= 0 and low < high, got {grid}, {order}, {low} and {high}")
        self.order = order
        step = (high - low) / grid
        knots = low + step * torch.arange(-order, grid + order + 1)
        self.register_buffer("knots", knots)
        self.base = nn.Linear(in_features, out_features, bias=False)
        self.curves = nn.Parameter(torch.randn(out_features, in_features, grid + order) * 0.1 * in_features**-0.5)

    def splines(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features splines"]:
        """B_g(x), by the recursion of Cox and de Boor."""
        x = x[..., None]
        knots = self.knots
        found = ((x >= knots[:-1]) & (x < knots[1:])).to(x.dtype)
        for order in range(1, self.order + 1):
            rising = (x - knots[: -order - 1]) / (knots[order:-1] - knots[: -order - 1])
            falling = (knots[order + 1 :] - x) / (knots[order + 1 :] - knots[1:-order])
            found = rising * found[..., :-1] + falling * found[..., 1:]
        return found

    def forward(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch out"]:
        return self.base(F.silu(x)) + self.splines(x).flatten(-2) @ self.curves.flatten(1).T


class KAN(nn.Sequential):
    """Two layers of curves, from `dim` to `hidden_dim` and back; options as `KANLinear`."""

    def __init__(self, dim: int, hidden_dim: int, **options: Any):
        super().__init__(KANLinear(dim, hidden_dim, **options), KANLinear(hidden_dim, dim, **options))


def build_channel(name: str, dim: int, hidden_dim: int, *, layer: int = 0, depth: int = 1, **options: Any) -> nn.Module:
    """A channel mixer by its name.

    Args:
        name: one of `CHANNELS`; "mlp" is two linear maps around GELU.
        dim: features of a token.
        hidden_dim: features between.
        layer, depth: which layer of how many, for "rwkv".
        options: of the class.

    Raises:
        ValueError: if the name is not known, or a size is below 1.
    """
    if min(dim, hidden_dim) < 1:
        raise ValueError(f"dim and hidden_dim must be positive, got {dim} and {hidden_dim}")
    if name == "rwkv":
        return RWKVChannelMix(dim, hidden_dim, layer=layer, depth=depth, **options)
    made: dict[str, Any] = {"swiglu": SwiGLU, "mlp": FeedForward, "moe": MoE, "kan": KAN}
    if name not in made:
        raise ValueError(f"channel must be one of {', '.join(CHANNELS)}, got {name!r}")
    return made[name](dim, hidden_dim, **options)  # type: ignore[no-any-return]
