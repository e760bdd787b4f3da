"""Task-specific representation refinement (TRM): a gate of its own for every task over all features.

Liu et al., "Deep Task-specific Bottom Representation Network for Multi-Task Recommendation", CIKM 2023,
arXiv:2308.05996, after squeeze-and-excitation (Hu et al., arXiv:1709.01507). With the features X (F, d) and z made of
them,

    a_k = 2 sigmoid(W2_k ReLU(W1_k z)),   X~_k = a_k * X                                                  (6)

z is all of X by default ("an MLP on the embeddings"). The factor 2 with W2 = 0 at the start makes the gate begin as the
identity; it, the bottleneck and the plain sigmoid are this file's choice.
"""

from math import ceil
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from etude.ranking.dtrn.layers import BankedLinear

__all__ = ["TaskRefinement"]


class TaskRefinement(nn.Module):
    """Reweighs the features for every task, Eq. (6).

        refine = TaskRefinement(num_tasks=2, num_fields=5, dim=16)
        refined = refine(x)                                # (B, 5, 16) or (B, 2, 5, 16) -> (B, 2, 5, 16)

    Args:
        num_tasks: K.
        num_fields, dim: F and d.
        reduction: the bottleneck has ceil(size of z / reduction) units.
        granularity: "field", a weight for every field, or "element", one for every number.
        squeeze: z is "flatten", all F d numbers, or "mean", the mean of every field.
        gate: "double", 2 sigmoid, or "sigmoid", which halves all features at the start.
        bottleneck: number of units in place of `reduction`'s.
        detach: the gate's input passes no gradient to the features.

    Raises:
        ValueError: for a size that is not positive or an unknown option.
    """

    def __init__(
        self,
        num_tasks: int,
        num_fields: int,
        dim: int,
        reduction: int = 4,
        granularity: Literal["field", "element"] = "field",
        *,
        squeeze: Literal["flatten", "mean"] = "flatten",
        gate: Literal["double", "sigmoid"] = "double",
        bottleneck: int | None = None,
        detach: bool = False,
    ):
        super().__init__()
        sizes = {"num_tasks": num_tasks, "num_fields": num_fields, "dim": dim, "reduction": reduction,
                 "bottleneck": 1 if bottleneck is None else bottleneck}  # fmt: skip
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be positive, got {size}")
        options = {"granularity": (granularity, "field", "element"), "squeeze": (squeeze, "flatten", "mean"),
                   "gate": (gate, "double", "sigmoid")}  # fmt: skip
        for name, (given, *known) in options.items():
            if given not in known:
                raise ValueError(f'{name} must be "{known[0]}" or "{known[1]}", got {given!r}')
        self.num_tasks, self.num_fields, self.dim = num_tasks, num_fields, dim
        self.granularity, self.squeeze, self.detach = granularity, squeeze, detach
        self.factor = 2.0 if gate == "double" else 1.0
        inputs = num_fields * dim if squeeze == "flatten" else num_fields
        units = ceil(inputs / reduction) if bottleneck is None else bottleneck
        self.first = BankedLinear(num_tasks, inputs, units)
        self.last = BankedLinear(num_tasks, units, num_fields if granularity == "field" else num_fields * dim)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(
        self,
        x: Float[Tensor, "batch fields dim"] | Float[Tensor, "batch inputs fields dim"],
        *,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The features as each task sees them, (B, K, F, d); with `return_weights` also a, (B, K, F) or (B, K, F, d).

        Args:
            x: one set of features for all tasks, or one for each.

        Raises:
            ValueError: if the shape does not fit.
        """
        if x.ndim == 3:
            x = x[:, None]
        if x.shape[1] not in (1, self.num_tasks) or x.shape[2:] != (self.num_fields, self.dim):
            raise ValueError(
                f"x must be (batch, {self.num_fields}, {self.dim}) or (batch, {self.num_tasks}, {self.num_fields}, "
                f"{self.dim}), got {tuple(x.shape)}"
            )
        z = x.flatten(2) if self.squeeze == "flatten" else x.mean(-1)
        if self.detach:
            z = z.detach()
        weights = self.factor * torch.sigmoid(self.last(self.first(z).relu()))
        if self.granularity == "element":
            weights = weights.unflatten(-1, (self.num_fields, self.dim))
            refined = weights * x
        else:
            refined = weights[..., None] * x
        return (refined, weights) if return_weights else refined
