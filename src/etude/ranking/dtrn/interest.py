"""The task-specific interest module (TIM): what each task draws from each sequence of behaviours.

Liu et al., "Deep Task-specific Bottom Representation Network for Multi-Task Recommendation", CIKM 2023,
arXiv:2308.05996. The sequence of each behaviour type goes through the conditional Transformer once per task, and the
result H (T, d) is read out with the target item's embedding e_q as the query:

    w = softmax_t(e_q^T W_q H_t / sqrt(d)),   u_km = sum_t w_t H_t                                        (5)

The read-out is this file's choice; the paper's is not known. An empty sequence gives a learned vector of its type.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from etude.ranking.dtrn.conditional import ConditionalTransformer, HyperLayerNorm

__all__ = ["ActivationReadout", "Readout", "TargetReadout", "TaskInterestModule", "keep_latest"]

Readout = Literal["target", "mean", "din"]


def keep_latest(
    sequences: Tensor, mask: Bool[Tensor, "*batch time"], max_len: int
) -> tuple[Tensor, Bool[Tensor, "*batch kept"]]:
    """The last `max_len` elements of each sequence, (*batch, time, ...), whose padding comes last."""
    time = mask.shape[-1]
    if time <= max_len:
        return sequences, mask
    length = mask.sum(-1, keepdim=True)
    index = (length - max_len).clamp(min=0) + torch.arange(max_len, device=mask.device)
    spread = index.reshape(*index.shape, *(1,) * (sequences.ndim - mask.ndim))
    kept = sequences.gather(mask.ndim - 1, spread.expand(*index.shape, *sequences.shape[mask.ndim :]))
    return kept, mask.gather(-1, index)


class TargetReadout(nn.Module):
    """Weights by the scaled product of the target and each element, Eq. (5).

    Args:
        dim: d.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.query = nn.Linear(dim, dim, bias=False)

    def forward(
        self,
        target: Float[Tensor, "batch dim"],
        hidden: Float[Tensor, "batch tasks behaviors time dim"],
        mask: Bool[Tensor, "batch behaviors time"],
    ) -> Float[Tensor, "batch tasks behaviors time"]:
        """The weights, which sum to 1 over the elements of a sequence that has any."""
        query = self.query(target) * hidden.shape[-1] ** -0.5
        # Multiply and sum: small products in a batch are slower.
        logits = (hidden * query[:, None, None, None]).sum(-1)
        logits = logits.masked_fill(~mask[:, None], torch.finfo(logits.dtype).min)
        return logits.softmax(-1) * mask[:, None]


class ActivationReadout(nn.Module):
    """Weights by a small network of [q, h, q - h, q * h], not normalised, as in Deep Interest Network (Zhou et al.,
    arXiv:1706.06978, Eq. 3).

    Args:
        dim: d.
        hidden_dim: of the network.
    """

    def __init__(self, dim: int, hidden_dim: int = 36):
        super().__init__()
        self.per_query, self.per_element = nn.Linear(dim, hidden_dim), nn.Linear(dim, hidden_dim, bias=False)
        self.per_product = nn.Linear(dim, hidden_dim, bias=False)
        self.activation, self.out = nn.PReLU(), nn.Linear(hidden_dim, 1)
        # With ones the read-out starts near a sum.
        nn.init.ones_(self.out.bias)

    def forward(
        self,
        target: Float[Tensor, "batch dim"],
        hidden: Float[Tensor, "batch tasks behaviors time dim"],
        mask: Bool[Tensor, "batch behaviors time"],
    ) -> Float[Tensor, "batch tasks behaviors time"]:
        """The weights, 0 where the mask is False."""
        # A linear layer of [q, h, q - h, q * h] is the sum of one of q, one of h and one of q * h.
        q = target[:, None, None, None]
        x = self.per_query(q) + self.per_element(hidden) + self.per_product(q * hidden)
        return self.out(self.activation(x))[..., 0] * mask[:, None]


class TaskInterestModule(nn.Module):
    """Interests of every task in every type of behaviour.

        tim = TaskInterestModule(dim=16, num_tasks=2, num_behaviors=3)
        interests = tim(sequences, mask, target)      # (B, M, T, d), (B, M, T), (B, d) -> (B, K, M, d)

    Args:
        dim: d.
        num_tasks, num_behaviors: K and M.
        max_len: T, rows of the table of positions; of longer sequences the latest T are kept.
        num_layers, num_heads, ffn_dim, dropout, pre_norm: of the `ConditionalTransformer`.
        context_dim, hidden_dim, interact: of the `HyperLayerNorm`.
        readout: "target", Eq. (5); "mean"; or "din", see `ActivationReadout`.
        conditional: False gives every behaviour type an ordinary layer normalisation that all tasks share, and
            interests (B, 1, M, d): the same Transformer without the paper's idea.
        num_items: with a table of so many items (0 is padding) sequences and target are ids, (B, M, T) and (B,).
        task_chunk: how many tasks are computed at a time, each chunk anew in the backward pass; all if None. Bounds
            the memory, which grows with K.
        init_std: of embeddings, positions and the vectors of empty sequences at the start.

    Raises:
        ValueError: for a size or an option out of range.
    """

    def __init__(
        self,
        dim: int,
        num_tasks: int,
        num_behaviors: int,
        max_len: int = 50,
        *,
        num_layers: int = 1,
        num_heads: int = 2,
        ffn_dim: int | None = None,
        dropout: float | int = 0.0,
        pre_norm: bool = False,
        context_dim: int = 16,
        hidden_dim: int = 32,
        interact: bool = False,
        readout: Readout = "target",
        conditional: bool = True,
        num_items: int | None = None,
        task_chunk: int | None = None,
        init_std: float | int = 0.1,
    ):
        super().__init__()
        if max_len < 1:
            raise ValueError(f"max_len must be positive, got {max_len}")
        if readout not in ("target", "mean", "din"):
            raise ValueError(f'readout must be "target", "mean" or "din", got {readout!r}')
        if task_chunk is not None and task_chunk < 1:
            raise ValueError(f"task_chunk must be positive, got {task_chunk}")
        self.dim, self.num_tasks, self.num_behaviors = dim, num_tasks, num_behaviors
        self.max_len, self.task_chunk = max_len, task_chunk
        self.transformer = ConditionalTransformer(
            dim, num_layers, num_heads, ffn_dim, dropout=dropout, pre_norm=pre_norm
        )
        self.position = nn.Parameter(torch.randn(max_len, dim) * init_std)
        self.empty = nn.Parameter(torch.randn(num_behaviors, dim) * init_std)
        self.hyper: HyperLayerNorm | None = None
        if conditional:
            self.hyper = HyperLayerNorm(
                dim, num_tasks, num_behaviors, num_layers, context_dim, hidden_dim, interact=interact
            )
        else:
            affine = torch.zeros(1, num_behaviors, num_layers, 4, dim)
            affine[..., 0::2, :] = 1.0
            self.affine = nn.Parameter(affine)
        self.readout = {"target": TargetReadout, "din": ActivationReadout}[readout](dim) if readout != "mean" else None
        self.items: nn.Embedding | None = None
        if num_items is not None:
            self.items = nn.Embedding(num_items, dim, padding_idx=0)
            with torch.no_grad():
                self.items.weight[1:].normal_(std=init_std)

    def forward(
        self,
        sequences: Float[Tensor, "batch behaviors time dim"] | Int64[Tensor, "batch behaviors time"],
        mask: Bool[Tensor, "batch behaviors time"],
        target: Float[Tensor, "batch dim"] | Int64[Tensor, "batch"],
        *,
        return_attention: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Interests (B, K, M, d); with `return_attention` also the weights of the read-out, (B, K, M, T).

        Args:
            sequences: embeddings, or ids of the module's own table; oldest first, padding last.
            mask: True where there is an event.
            target: the item in question, as the sequences.

        Raises:
            ValueError: if shapes do not fit, or ids come without a table.
        """
        if mask.shape[1] != self.num_behaviors or sequences.shape[:3] != mask.shape or len(target) != len(mask):
            raise ValueError(
                f"sequences, mask and target must be (B, {self.num_behaviors}, T, ...), (B, {self.num_behaviors}, T) "
                f"and (B, ...), got {tuple(sequences.shape)}, {tuple(mask.shape)} and {tuple(target.shape)}"
            )
        sequences, mask = keep_latest(sequences, mask, self.max_len)
        if not sequences.is_floating_point():
            if self.items is None or target.is_floating_point():
                raise ValueError("ids need num_items, and a target that is ids too")
            sequences, target = self.items(sequences), self.items(target)
        if sequences.shape[-1] != self.dim or target.shape[-1] != self.dim:
            raise ValueError(f"sequences and target must have {self.dim} columns, got {sequences.shape[-1]} and "
                             f"{target.shape[-1]}")  # fmt: skip
        x = sequences + self.position[: mask.shape[-1]]
        affine = self.affine if self.hyper is None else self.hyper()
        step = self.task_chunk or len(affine)
        if step >= len(affine):
            interests, weights = self._interests(x, affine, mask, target)
        else:
            parts = [checkpoint(self._interests, x, a, mask, target, use_reentrant=False) for a in affine.split(step)]
            interests, weights = (torch.cat(part, dim=1) for part in zip(*parts))
        return (interests, weights) if return_attention else interests

    def _interests(self, x: Tensor, affine: Tensor, mask: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.transformer(x, affine, mask)
        if self.readout is None:
            share = mask.to(hidden.dtype) / mask.sum(-1, keepdim=True).clamp(min=1)
            weights = share[:, None].expand(-1, len(affine), -1, -1)
        else:
            weights = self.readout(target, hidden, mask)
        interests = (weights[..., None] * hidden).sum(-2)
        some = mask.any(-1)[:, None, :, None]
        return torch.where(some, interests, self.empty), weights
