"""A Transformer that several tasks share, told apart by its layer normalisations.

Liu et al., "Deep Task-specific Bottom Representation Network for Multi-Task Recommendation", CIKM 2023,
arXiv:2308.05996. For task k, behaviour type m and layer l a small network makes the affine part of both normalisations:

    c_km = [t_k ; b_m]                                                                                    (1)
    (gamma1, beta1, gamma2, beta2)_kml = W2 ReLU(W1 c_km + a1) + a2                                       (2)
    H1 = gamma1 * norm(X + MHA(X)) + beta1                                                                (3)
    H  = gamma2 * norm(H1 + FFN(H1)) + beta2                                                              (4)

norm is layer normalisation without an affine part. The attention and the feed-forward network are the same for all k
and m. No code by the authors is known; the equations come from descriptions of the paper. The normalisation after the
sum (post-norm), sizes and initial values are this file's choice.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

__all__ = ["ConditionalTransformer", "HyperLayerNorm"]

_EPS = 1e-5


class HyperLayerNorm(nn.Module):
    """The affine parts of all normalisations, for every task and behaviour type, Eqs. (1) and (2).

    They are made once per forward pass and not per sample: K M vectors.

    Args:
        dim: d of the Transformer.
        num_tasks, num_behaviors: K and M.
        num_layers: L.
        context_dim: of t_k and of b_m.
        hidden_dim: between W1 and W2.
        interact: t_k * b_m is a third part of the context.

    At the start W2 ~ N(0, 0.01^2) and a2 = (1, 0, 1, 0), so that all tasks begin near one ordinary Transformer; t and b
    are N(0, 1), which lets them part soon. If gamma grows without bound, put weight decay on `out.weight`, W2.

    Raises:
        ValueError: for a size that is not positive.
    """

    def __init__(
        self,
        dim: int,
        num_tasks: int,
        num_behaviors: int,
        num_layers: int = 1,
        context_dim: int = 16,
        hidden_dim: int = 32,
        *,
        interact: bool = False,
    ):
        super().__init__()
        sizes = {"dim": dim, "num_tasks": num_tasks, "num_behaviors": num_behaviors, "num_layers": num_layers,
                 "context_dim": context_dim, "hidden_dim": hidden_dim}  # fmt: skip
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be positive, got {size}")
        self.dim, self.num_layers, self.interact = dim, num_layers, interact
        self.task = nn.Parameter(torch.randn(num_tasks, context_dim))
        self.behavior = nn.Parameter(torch.randn(num_behaviors, context_dim))
        self.hidden = nn.Linear((3 if interact else 2) * context_dim, hidden_dim)
        self.out = nn.Linear(hidden_dim, 4 * dim * num_layers)
        nn.init.normal_(self.out.weight, std=0.01)
        with torch.no_grad():
            self.out.bias.copy_(torch.tensor([1.0, 0.0, 1.0, 0.0]).repeat_interleave(dim).repeat(num_layers))

    def forward(self) -> Float[Tensor, "tasks behaviors layers 4 dim"]:
        """gamma1, beta1, gamma2, beta2 of each layer."""
        tasks, behaviors = len(self.task), len(self.behavior)
        t = self.task[:, None].expand(-1, behaviors, -1)
        b = self.behavior[None].expand(tasks, -1, -1)
        context = torch.cat([t, b, t * b] if self.interact else [t, b], dim=-1)
        values = self.out(F.relu(self.hidden(context)))
        return values.unflatten(-1, (self.num_layers, 4, self.dim))


class ConditionalTransformer(nn.Module):
    """Transformer layers whose normalisations take their affine part from outside, Eqs. (3) and (4).

        transformer = ConditionalTransformer(dim=16)
        h = transformer(x, affine, mask)     # x (B, M, T, d), affine (K, M, L, 4, d) -> (B, K, M, T, d)

    The attention of the first layer does not see the affine part: it is computed once for all tasks. So is norm(X +
    MHA(X)), to which each task applies its own gamma1 and beta1.

    Args:
        dim: d, divisible by `num_heads`.
        num_layers: L.
        num_heads: of the attention.
        ffn_dim: of the feed-forward network; 4 d if None.
        dropout: on attention weights, on the attention's and on the network's output, and inside the network.
        pre_norm: normalise before attention and network instead of after the sum. The first attention then depends
            on the task, and costs K times as much.

    Raises:
        ValueError: if sizes do not fit.
    """

    def __init__(
        self,
        dim: int,
        num_layers: int = 1,
        num_heads: int = 2,
        ffn_dim: int | None = None,
        *,
        dropout: float | int = 0.0,
        pre_norm: bool = False,
    ):
        super().__init__()
        if num_layers < 1 or num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_layers >= 1 and num_heads that divide dim={dim} are needed, got {num_layers} and "
                             f"{num_heads}")  # fmt: skip
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
        width = 4 * dim if ffn_dim is None else ffn_dim
        self.dim, self.num_heads, self.dropout, self.pre_norm = dim, num_heads, float(dropout), pre_norm
        self.qkv = nn.ModuleList(nn.Linear(dim, 3 * dim) for _ in range(num_layers))
        self.proj = nn.ModuleList(nn.Linear(dim, dim) for _ in range(num_layers))
        self.up = nn.ModuleList(nn.Linear(dim, width) for _ in range(num_layers))
        self.down = nn.ModuleList(nn.Linear(width, dim) for _ in range(num_layers))
        # As `nn.MultiheadAttention` begins.
        for layer in (*self.qkv, *self.proj):
            assert isinstance(layer, nn.Linear)
            nn.init.zeros_(layer.bias)
            if layer.out_features == 3 * dim:
                nn.init.xavier_uniform_(layer.weight)

    def forward(
        self,
        x: Float[Tensor, "batch *shared time dim"],
        affine: Float[Tensor, "*conditions layers 4 dim"],
        mask: Bool[Tensor, "batch *shared time"] | None = None,
    ) -> Float[Tensor, "batch *conditions time dim"]:
        """The last layer's output under each condition.

        Args:
            x: sequences; `shared` are the last of the `conditions`: none, or M of (K, M), or all.
            affine: as `HyperLayerNorm` gives it.
            mask: True where there is an element; a sequence without any gives finite, meaningless numbers.

        Raises:
            ValueError: if shapes do not agree.
        """
        layers = len(self.qkv)
        if x.shape[-1] != self.dim or affine.shape[-3:] != (layers, 4, self.dim):
            raise ValueError(
                f"x must end in {self.dim} and affine in ({layers}, 4, {self.dim}), "
                f"got {tuple(x.shape)} and {tuple(affine.shape)}"
            )
        conditions = affine.shape[:-3]
        shared = x.shape[1:-2]
        if len(shared) > len(conditions) or shared != conditions[len(conditions) - len(shared) :]:
            raise ValueError(f"x {tuple(x.shape)} does not fit the conditions {tuple(conditions)} of affine")
        if mask is not None and mask.shape != x.shape[:-1]:
            raise ValueError(f"mask must be {tuple(x.shape[:-1])}, got {tuple(mask.shape)}")
        lead = (1,) * (len(conditions) - len(shared))
        x = x.reshape(len(x), *lead, *x.shape[1:])
        keys = None
        if mask is not None:
            # Where all is masked the softmax has nothing to normalise: such a row attends to everything instead.
            keys = (mask | ~mask.any(-1, keepdim=True)).reshape(len(x), *lead, *mask.shape[1:])
        for layer in range(layers):
            gamma1, beta1, gamma2, beta2 = affine[..., layer, :, :].unsqueeze(-3).unbind(-2)
            if self.pre_norm:
                x = x + self._attend(layer, gamma1 * _norm(x) + beta1, keys)
                x = x + self._network(layer, gamma2 * _norm(x) + beta2)
            else:
                x = gamma1 * _norm(x + self._attend(layer, x, keys)) + beta1
                x = gamma2 * _norm(x + self._network(layer, x)) + beta2
        return x

    def _attend(self, layer: int, x: Tensor, keys: Tensor | None) -> Tensor:
        qkv = self.qkv[layer](x).unflatten(-1, (3, self.num_heads, self.dim // self.num_heads))
        q, k, v = (part.transpose(-3, -2) for part in qkv.unbind(-3))
        allowed = None if keys is None else keys[..., None, None, :].expand(*q.shape[:-3], 1, 1, -1).flatten(0, -4)
        lead = q.shape[:-3]
        # The fast kernels take four axes.
        q, k, v = (part.flatten(0, -4) for part in (q, k, v))
        p = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=p).unflatten(0, lead)
        return F.dropout(self.proj[layer](out.transpose(-3, -2).flatten(-2)), self.dropout, self.training)

    def _network(self, layer: int, x: Tensor) -> Tensor:
        hidden = F.dropout(F.relu(self.up[layer](x)), self.dropout, self.training)
        return F.dropout(self.down[layer](hidden), self.dropout, self.training)


def _norm(x: Tensor) -> Tensor:
    """Layer normalisation without affine part; in single precision at least."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return F.layer_norm(x.to(wide), x.shape[-1:], eps=_EPS).to(x.dtype)
