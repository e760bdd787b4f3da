"""BatchFormer: one transformer encoder layer along the batch.

Hou, Yu & Tao, "BatchFormer: Learning to Explore Sample Relationships for Robust Representation Learning", CVPR 2022,
arXiv:2203.01522, section 3. The N feature vectors X (N, C) of a batch are one sequence of length N:

    A  = softmax(Q K^T / sqrt(C / heads))                    N x N, in each head
    X1 = LN(X + drop(MSA(X)))
    X' = LN(X1 + drop(W2 drop(relu(W1 X1))))                                                              (1)

There is no encoding of positions, so the order of the batch does not matter. One classifier g reads both X and X':

    loss = CE(g(X), y) + CE(g(X'), y)                                                                     (2)

whose second term carries gradients from every sample to all others. Because g has also learned from X, the layer is
left out at test.
"""

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from etude.training.batchformer.targets import count_samples, repeat_targets

__all__ = ["BatchEncoder", "BatchFormer"]


class BatchEncoder(nn.Module):
    """Transformer encoder layers that attend over the first axis of (batch, length, dim), Eq. (1).

    Each position of the second axis is a sequence of its own. The layers are `nn.TransformerEncoderLayer`, post-norm
    and with ReLU; its default layout, the batch second, is what makes them attend over samples.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        feedforward_dim: int | None = None,
        dropout: float | int = 0.5,
        num_layers: int = 1,
        gather: bool = False,
    ):
        super().__init__()
        feedforward_dim = dim if feedforward_dim is None else feedforward_dim
        if min(dim, num_heads, feedforward_dim, num_layers) < 1:
            raise ValueError(
                "dim, num_heads, feedforward_dim and num_layers must be at least 1, "
                f"got {dim}, {num_heads}, {feedforward_dim} and {num_layers}"
            )
        if dim % num_heads:
            raise ValueError(f"num_heads must divide dim, got dim {dim} and num_heads {num_heads}")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout must lie in [0, 1], got {dropout}")
        self.dim, self.gather = dim, gather
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, num_heads, feedforward_dim, float(dropout)) for _ in range(num_layers)
        )

    def encode(self, x: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch length dim"]:
        """X' of Eq. (1), whatever the mode."""
        if not (self.gather and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return self._stack(x)
        _check_equal_rows(x)
        mine = dist.get_rank() * len(x)
        return self._stack(_GatherRows.apply(x))[mine : mine + len(x)]

    def _stack(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class BatchFormer(BatchEncoder):
    """Doubles a batch of features with what a transformer layer makes of it across the batch; nothing at test.

        batchformer = BatchFormer(dim=512)
        features, labels = batchformer(features, labels)        # (2N, 512) and 2N labels in training
        loss = F.cross_entropy(classifier(features), labels)

    The first N rows are the features themselves, the last N their mixtures X', Eq. (1). Both halves must go through
    the same classifier: it is what makes the layer superfluous at test. In evaluation mode the features and the
    labels are returned as they came, and no random number is drawn.

    Attention costs O(N^2 C), and N^2 weights a head. With few samples, as in an incomplete last batch, it is noisy
    (drop that batch); a batch of one attends to itself. Batches sorted by class show the layer no relations between
    classes; in domain generalisation mix all source domains into each batch. Gradient accumulation attends within
    each part. Several heads of a model (experts) may share one instance.

    Args:
        dim: C, the length of a feature vector.
        num_heads: of the attention; must divide `dim`.
        feedforward_dim: width of the hidden layer; `dim` if None.
        dropout: probability, in the attention weights and after each half of a layer.
        num_layers: stacked layers. The paper uses one.
        gather: attend over the samples of all processes of `torch.distributed` instead of this process's own, which
            is what the paper does; gradients flow back to the process a sample came from. Batches must be equal.

    Raises:
        ValueError: if a size is not positive, `num_heads` does not divide `dim` or `dropout` lies outside [0, 1].
    """

    def forward(self, features: Float[Tensor, "batch *dim"], labels: Any = None) -> Any:
        """The doubled features, or with `labels` the doubled features and labels.

        Args:
            features: (batch, dim).
            labels: anything that `repeat_targets` takes.

        Raises:
            ValueError: if the features are no (batch, dim) or the labels not as many.
        """
        self._check(features, labels)
        if self.training:
            features = torch.cat([features, self.mix(features)])
            labels = repeat_targets(labels)
        return features if labels is None else (features, labels)

    def mix(self, features: Float[Tensor, "batch *dim"]) -> Float[Tensor, "batch dim"]:
        """The mixed features X' alone, Eq. (1), whatever the mode."""
        self._check(features, None)
        return self.encode(features.unsqueeze(1)).squeeze(1)

    def _check(self, features: Tensor, labels: Any) -> None:
        if features.ndim != 2:
            raise ValueError(
                f"features must have shape (batch, {self.dim}), got {tuple(features.shape)}: pool them first, or use "
                "BatchFormerV2 for tokens and feature maps"
            )
        if features.shape[1] != self.dim:
            raise ValueError(f"features must have {self.dim} entries each, got shape {tuple(features.shape)}")
        count = count_samples(labels)
        if count is not None and count != len(features):
            raise ValueError(f"labels must be as many as features, got {count} labels and {len(features)} features")

    def extra_repr(self) -> str:
        return f"dim={self.dim}, gather={self.gather}"


class _GatherRows(torch.autograd.Function):
    """The rows of all processes in the order of their ranks; gradients are summed over the processes."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def _check_equal_rows(x: Tensor) -> None:
    own = torch.tensor([len(x)], device=x.device)
    counts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, own)
    if len({int(count) for count in counts}) > 1:
        raise ValueError(
            f"gather=True needs equal batches in all processes, got {[int(count) for count in counts]}: "
            "drop the incomplete last batch"
        )
