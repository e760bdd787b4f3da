"""The local activation unit, and the pooling of a history by its weights.

Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", KDD 2018, arXiv:1706.06978, section 4.3:

    v_U(A) = sum_t a(e_t, v_A) e_t                                                                        (3)

where a(., .) is a small network of a behaviour e_t and the candidate v_A. Its output is not normalised by a softmax, so
that the sum of the weights says how strongly the history speaks for the candidate.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from etude.ranking.din.activation import Activation, activation_of

__all__ = ["Interaction", "InterestPooling", "LocalActivationUnit", "Normalization"]

Interaction = Literal["difference", "outer"]
Normalization = Literal["none", "softmax"]


class LocalActivationUnit(nn.Module):
    """How much each behaviour counts for each candidate.

        unit = LocalActivationUnit(dim=32)
        weights = unit(query, keys, mask)          # (batch, time), 0 where the mask is False

    The input of the network is, per behaviour k and candidate q,

        "difference"   [q, k, q - k, q * k]        of the authors' code
        "outer"        [q, k, vec(q k^T)]          of the paper's figure

    and its first layer is applied in parts that depend on q alone, on k alone and on both, so that this input, (batch,
    time, 4 dim), never stands in memory.

    Args:
        dim: size D of queries and keys.
        hidden_dims: hidden layers; (80, 40) in the authors' code, (36,) in the paper's figure.
        activation: between the layers; "sigmoid" in the authors' code, PReLU or Dice in the paper.
        interaction: see above.
        bias_init: of the last layer, of which the paper says nothing. With 1 pooling starts near a sum, and before the
            weights can tell behaviours apart the rest of the network has learnt the sums by heart; with 0 the history
            comes in as the weights learn to tell.
        momentum: of Dice.

    Raises:
        ValueError: for a size that is not positive or an unknown name.
    """

    def __init__(
        self,
        dim: int,
        hidden_dims: Sequence[int] = (80, 40),
        activation: Activation = "prelu",
        interaction: Interaction = "difference",
        *,
        bias_init: float | int = 0.0,
        momentum: float | int = 0.1,
    ):
        super().__init__()
        if dim < 1 or not hidden_dims or min(hidden_dims) < 1:
            raise ValueError(f"dim and hidden_dims must be positive, got {dim} and {tuple(hidden_dims)}")
        if interaction not in ("difference", "outer"):
            raise ValueError(f'interaction must be "difference" or "outer", got {interaction!r}')
        self.dim, self.interaction = dim, interaction
        inputs = 4 * dim if interaction == "difference" else 2 * dim + dim * dim
        sizes = [inputs, *hidden_dims]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.activations = nn.ModuleList(activation_of(activation, size, momentum=momentum) for size in hidden_dims)
        self.out = nn.Linear(sizes[-1], 1)
        nn.init.constant_(self.out.bias, float(bias_init))

    def forward(
        self,
        query: Float[Tensor, "batch dim"] | Float[Tensor, "batch candidates dim"],
        keys: Float[Tensor, "batch time dim"],
        mask: Bool[Tensor, "batch time"],
    ) -> Float[Tensor, "batch time"] | Float[Tensor, "batch candidates time"]:
        """The weights; with several candidates the keys are taken once.

        Raises:
            ValueError: if the sizes do not agree.
        """
        if query.shape[-1] != self.dim or keys.shape[-1] != self.dim:
            raise ValueError(f"queries and keys must have {self.dim} columns, got {query.shape[-1]}, {keys.shape[-1]}")
        if mask.shape != keys.shape[:2] or len(query) != len(keys):
            raise ValueError(
                f"keys {tuple(keys.shape)} need a mask {tuple(keys.shape[:2])} and as many queries, "
                f"got {tuple(mask.shape)} and {tuple(query.shape)}"
            )
        several = query.ndim == 3
        queries = query if several else query[:, None]
        valid = mask[:, None].expand(-1, queries.shape[1], -1)
        x = self._first(queries, keys)
        for index, activation in enumerate(self.activations):
            x = activation(x if index == 0 else self.hidden[index](x), valid)
        weights = self.out(x).squeeze(-1) * valid
        return weights if several else weights[:, 0]

    def _first(self, queries: Tensor, keys: Tensor) -> Tensor:
        """The first layer, (batch, candidates, time, hidden)."""
        layer = self.hidden[0]
        assert isinstance(layer, nn.Linear)
        hidden, dim = layer.out_features, self.dim
        if self.interaction == "outer":
            of_query, of_key, of_both = layer.weight.split([dim, dim, dim * dim], dim=1)
            # vec(q k^T) has q_i k_j at i * dim + j: a matrix for each query that meets the keys.
            mixed = torch.einsum("bni,hij->bnhj", queries, of_both.reshape(hidden, dim, dim)) + of_key
            per_pair = keys[:, None] @ mixed.transpose(-1, -2)
            return per_pair + F.linear(queries, of_query, layer.bias)[:, :, None]
        a, b, c, d = layer.weight.chunk(4, dim=1)
        per_key = F.linear(keys, b - c)[:, None]
        per_pair = F.linear(queries[:, :, None] * keys[:, None], d)
        return per_pair + per_key + F.linear(queries, a + c, layer.bias)[:, :, None]


class InterestPooling(nn.Module):
    """The history as the candidate sees it: the sum of the behaviours, each times its weight, Eq. (3).

        pooling = InterestPooling(dim=32)
        interest = pooling(query, keys, mask)

    Args:
        dim, hidden_dims, activation, interaction, momentum: see `LocalActivationUnit`.
        normalize: "none" as in the paper, or "softmax" over the behaviours, as in the authors' code.
        scale: the softmax is of weights / scale; sqrt(dim) if None. Nothing else uses it.
        layer_norm: normalises the result, whose size under "none" grows with the length of the history.
        bias_init: see `LocalActivationUnit`.

    An empty history gives zeros (before `layer_norm`).
    """

    def __init__(
        self,
        dim: int,
        hidden_dims: Sequence[int] = (80, 40),
        activation: Activation = "prelu",
        interaction: Interaction = "difference",
        *,
        normalize: Normalization = "none",
        scale: float | int | None = None,
        layer_norm: bool = False,
        bias_init: float | int = 0.0,
        momentum: float | int = 0.1,
    ):
        super().__init__()
        if normalize not in ("none", "softmax"):
            raise ValueError(f'normalize must be "none" or "softmax", got {normalize!r}')
        if scale is not None and not scale > 0:
            raise ValueError(f"scale must be positive, got {scale}")
        self.normalize = normalize
        self.scale = dim**0.5 if scale is None else float(scale)
        self.unit = LocalActivationUnit(
            dim, hidden_dims, activation, interaction, bias_init=bias_init, momentum=momentum
        )
        self.norm = nn.LayerNorm(dim) if layer_norm else nn.Identity()

    def forward(
        self,
        query: Float[Tensor, "batch dim"] | Float[Tensor, "batch candidates dim"],
        keys: Float[Tensor, "batch time dim"],
        mask: Bool[Tensor, "batch time"],
        *,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The pooled history, of the shape of `query`; with `return_weights` also the weights that it was summed by."""
        weights = self.unit(query, keys, mask)
        if self.normalize == "softmax":
            valid = mask if query.ndim == 2 else mask[:, None]
            # The least finite number of the type: -2**32 overflows in half precision.
            logits = (weights / self.scale).masked_fill(~valid, torch.finfo(weights.dtype).min)
            weights = logits.softmax(-1) * valid
        pooled = weights @ keys if query.ndim == 3 else (weights[:, None] @ keys)[:, 0]
        pooled = self.norm(pooled)
        return (pooled, weights) if return_weights else pooled
