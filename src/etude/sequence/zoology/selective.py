"""Attention at a few tokens that the input chooses: what a gated convolution lacks to recall.

Arora et al., arXiv:2312.04927, section 5 ("input-dependent sparse attention"). Elsewhere the output is zero. Which
tokens query is decided

- by the program: those whose token occurred before in the sequence, the filler 0 apart. In MQAR without random tokens
  these are the scored places, so that this rule is an oracle there, a bound on what selection can do;
- by learning: s = sigmoid(w . x). While training y = s Attn(x) everywhere, with the auxiliary loss

      penalty * relu(mean(s) - k / L)                                                                              (1)

  and in evaluation y = s Attn(x) at the k tokens of largest s, 0 elsewhere. The choice among the whole sequence reads
  ahead; the rule "threshold", s > tau with tau set by `calibrate`, does not;
- at random, a control; or all of them, which is attention.

Queries are gathered, so that the cost is O(k L), not O(L^2). The authors' module adds its input itself; here the
residual block around it does.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from etude.nn.mixers import Mixer, register_mixer

__all__ = ["SelectiveAttention", "collect_aux_loss", "occurred_before"]

_SELECT = ("learned", "programmatic", "random", "all")


def occurred_before(ids: Int[Tensor, "batch length"], *, filler: int | None = 0) -> Bool[Tensor, "batch length"]:
    """Whether the same token stands earlier in the row; never for `filler`."""
    order = ids.argsort(dim=1, stable=True)
    ranked = ids.gather(1, order)
    again = F.pad(ranked[:, 1:] == ranked[:, :-1], (1, 0))
    found = torch.zeros_like(again).scatter(1, order, again)
    return found if filler is None else found & (ids != filler)


@register_mixer("selective")
class SelectiveAttention(Mixer):
    """Causal multi-head attention whose queries are a few chosen tokens.

        layer = SelectiveAttention(64, select="learned")
        loss = loss + collect_aux_loss(model)      # after each forward pass in training

    Args:
        dim: features of a token.
        num_heads: heads; `dim` is a multiple.
        select: "learned", "programmatic" (needs `ids`), "random" or "all".
        k: tokens that are kept: a number, a share of the length if a float in (0, 1], or the root of the length if
            None; rounded up. For "learned" and "random".
        penalty: of the auxiliary loss, Eq. (1).
        rule: of "learned" in evaluation: "topk" or "threshold".
        dropout: of the attention weights.
        bias: whether queries, keys and values have a bias.
        generator: of the random choice; torch's own if None.

    Raises:
        ValueError: if heads do not divide, for another rule, or `k` or `penalty` out of range.
    """

    cost = "O(k L D)"
    tau: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int = 1,
        *,
        select: str = "learned",
        k: int | float | None = None,
        penalty: float | int = 1e-3,
        rule: str = "topk",
        dropout: float | int = 0.0,
        bias: bool = True,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads, got {dim} and {num_heads}")
        if select not in _SELECT or rule not in ("topk", "threshold"):
            raise ValueError(f"select is one of {', '.join(_SELECT)}, rule topk or threshold, got {select!r}, {rule!r}")
        if k is not None and (not 0 < k <= 1 if isinstance(k, float) else k < 1):
            raise ValueError(f"k must be a positive number, or a share in (0, 1] as a float, got {k}")
        if penalty < 0:
            raise ValueError(f"penalty must not be negative, got {penalty}")
        self.dim, self.num_heads, self.select, self.rule = dim, num_heads, select, rule
        self.k, self.penalty, self.dropout, self.generator = k, penalty, dropout, generator
        self.causal = not (select == "learned" and rule == "topk")  # type: ignore[misc]
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.out = nn.Linear(dim, dim)
        self.selecting = nn.Linear(dim, 1, bias=False) if select == "learned" else None
        self.register_buffer("tau", torch.tensor(0.5))
        self.aux_loss: Tensor | None = None
        """Of the last forward pass in training, until `collect_aux_loss` takes it."""
        self.selected: Tensor | None = None
        """Which tokens the last forward pass chose, (batch, length); None if all were weighted."""

    def kept(self, length: int) -> int:
        """How many tokens of a sequence query, k."""
        return max(1, min(length, math.ceil(self._share(length) * length - 1e-9)))

    def _share(self, length: int) -> float:
        """k / L, before rounding."""
        if self.k is None:
            return length**-0.5
        return min(1.0, self.k if isinstance(self.k, float) else self.k / length)

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        ids: Int[Tensor, "batch length"] | None = None,
        *,
        mask: Bool[Tensor, "batch length"] | None = None,
        gather: bool = True,
    ) -> Float[Tensor, "batch length dim"]:
        """The attention's output where tokens were chosen, zero elsewhere.

        Args:
            x: tokens' features.
            ids: the tokens, for "programmatic".
            mask: true for real tokens; others are neither chosen nor seen.
            gather: whether only chosen tokens are computed; otherwise all are, and hidden: the same numbers.

        Raises:
            ValueError: if "programmatic" is not given `ids` of the right shape.
        """
        self.aux_loss = self.selected = None
        weight = None if self.selecting is None else torch.sigmoid(self.selecting(x))[..., 0]
        if self.select == "all" or (weight is not None and self.training):
            y = self._attend(x, None, mask)
            if weight is None:
                return y
            real = weight.mean() if mask is None else (weight * mask).sum() / mask.sum().clamp(min=1)
            self.aux_loss = self.penalty * F.relu(real - self._share(x.shape[1]))
            return y * weight[..., None]
        chosen = self._choose(x, weight, ids, mask)
        self.selected = chosen
        places, there = _places(chosen)
        if gather:
            y = self._attend(x, places, mask) * there[..., None]
            y = torch.zeros_like(x).scatter_add(1, places[..., None].expand_as(y), y)
        else:
            y = self._attend(x, None, mask) * chosen[..., None]
        return y if weight is None else y * weight[..., None]

    def _choose(self, x: Tensor, weight: Tensor | None, ids: Tensor | None, mask: Tensor | None) -> Tensor:
        batch, length = x.shape[:2]
        if self.select == "programmatic":
            if ids is None or ids.shape != (batch, length):
                given = None if ids is None else tuple(ids.shape)
                raise ValueError(f"programmatic selection needs ids of shape {(batch, length)}, got {given}")
            chosen = occurred_before(ids)
            return chosen if mask is None else chosen & mask
        if weight is not None and self.rule == "threshold":
            chosen = weight > self.tau
            return chosen if mask is None else chosen & mask
        if weight is None:
            device = "cpu" if self.generator is None else self.generator.device
            weight = torch.rand(batch, length, generator=self.generator, device=device).to(x.device)
        if mask is not None:
            weight = weight.masked_fill(~mask, -1.0)
        best = weight.topk(self.kept(length), dim=1)
        return torch.zeros_like(weight, dtype=torch.bool).scatter(1, best.indices, best.values >= 0)

    def _attend(self, x: Tensor, places: Tensor | None, mask: Tensor | None) -> Tensor:
        """Attention of the tokens at `places` (batch, chosen), or of all of them, to earlier ones."""
        length = x.shape[1]
        query, rest = self.qkv.weight[: self.dim], self.qkv.weight[self.dim :]
        bias_q, bias_rest = (None, None) if self.qkv.bias is None else self.qkv.bias.split([self.dim, 2 * self.dim])
        source = x if places is None else x.gather(1, places[..., None].expand(-1, -1, self.dim))
        q = F.linear(source, query, bias_q)
        q, k, v = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in (q, *F.linear(x, rest, bias_rest).chunk(2, dim=-1))
        )
        allowed = None
        if places is not None or mask is not None:
            at = torch.arange(length, device=x.device)
            query_at = at[None] if places is None else places
            allowed = at <= query_at[..., None]
            if mask is not None:  # a token that sees nothing but padding sees itself
                allowed = (allowed & mask[:, None]) | (at == query_at[..., None])
            allowed = allowed[:, None]
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=allowed, is_causal=allowed is None and length > 1,
            dropout_p=self.dropout if self.training else 0.0,
        )  # fmt: skip
        return self.out(y.transpose(1, 2).flatten(2))

    @torch.no_grad()
    def calibrate(
        self, x: Float[Tensor, "batch length dim"], *, mask: Bool[Tensor, "batch length"] | None = None
    ) -> None:
        """Sets tau, of the rule "threshold", so that k tokens a sequence are chosen on average of these.

        Args:
            x: what the layer reads in the network, many sequences.
            mask: true for real tokens.

        Raises:
            TypeError: if the selection is not learned.
        """
        if self.selecting is None:
            raise TypeError(f"only learned selection has a threshold, this is {self.select!r}")
        weight = torch.sigmoid(self.selecting(x))[..., 0]
        weight = (weight if mask is None else weight[mask]).flatten().sort(descending=True).values
        count = min(len(weight), max(1, round(len(weight) * self.kept(x.shape[1]) / x.shape[1])))
        below = weight[count] if count < len(weight) else torch.zeros_like(weight[0])
        self.tau.copy_((weight[count - 1] + below) / 2)

    @property
    def has_step(self) -> bool:
        return self.causal and self.select != "random"

    def init_state(self, batch: int) -> dict[str, Any]:
        """Keys, values and, for "programmatic", tokens read.

        Raises:
            TypeError: for the rule "topk" and for random selection, which choose among a whole sequence.
        """
        if not self.has_step:
            raise TypeError(f"selection {self.select!r} with rule {self.rule!r} chooses among a whole sequence")
        empty = self.qkv.weight.new_zeros(batch, self.num_heads, 0, self.dim // self.num_heads)
        ids = torch.zeros(batch, 0, dtype=torch.int64, device=empty.device)
        return {"keys": empty, "values": empty, "ids": ids}

    def step(
        self, x: Float[Tensor, "batch dim"], state: dict[str, Any], ids: Int[Tensor, "batch"] | None = None
    ) -> tuple[Float[Tensor, "batch dim"], dict[str, Any]]:
        """The output for the next token, and the state after it; `ids` for "programmatic"."""
        q, k, v = self.qkv(x[:, None]).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        keys, values = torch.cat([state["keys"], k], dim=2), torch.cat([state["values"], v], dim=2)
        y = self.out(F.scaled_dot_product_attention(q, keys, values).transpose(1, 2).flatten(1))
        seen = state["ids"]
        if self.selecting is not None:
            weight = torch.sigmoid(self.selecting(x))
            y = y * weight * (weight > self.tau)
        elif self.select == "programmatic":
            if ids is None:
                raise ValueError("programmatic selection needs the ids of the tokens")
            y = y * ((seen == ids[:, None]).any(1) & (ids != 0))[:, None]
            seen = torch.cat([seen, ids[:, None]], dim=1)
        return y, {"keys": keys, "values": values, "ids": seen}

    def state_size(self, length: int) -> int:
        return 2 * self.dim * length

    def flops(self, length: int) -> int:
        kept = length if self.select in ("all", "programmatic") else self.kept(length)
        return 4 * length * self.dim**2 + 4 * kept * self.dim**2 + 4 * kept * length * self.dim


def _places(chosen: Bool[Tensor, "batch length"]) -> tuple[Int[Tensor, "batch most"], Bool[Tensor, "batch most"]]:
    """Where the chosen tokens stand, in order, filled up to the most of any row; and which are no filling."""
    counts = chosen.sum(1)
    most = int(counts.max()) if len(counts) else 0
    places = chosen.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
    return places, torch.arange(most, device=chosen.device) < counts[:, None]


def collect_aux_loss(module: nn.Module) -> Tensor:
    """The sum of the auxiliary losses of all selective layers since the last call, which are cleared; zero if none."""
    layers = [part for part in module.modules() if isinstance(part, SelectiveAttention)]
    losses = [part.aux_loss for part in layers if part.aux_loss is not None]
    for part in layers:
        part.aux_loss = None
    return torch.stack(losses).sum() if losses else torch.zeros(())
