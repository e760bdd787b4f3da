"""Decoders of fetched values: voting codebooks, and the parametric ones of the paper's ablation."""

import math

from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["LinearDecoder", "MLPDecoder", "VotingDecoder", "make_decoder"]


class VotingDecoder(nn.Module):
    """Logits as the mean over codebooks (and tokens) of the values, summed over the fetched keys: no parameter.

    Args:
        dropout: share of votes, whole value vectors, that training drops (`nn.Dropout1d`).
    """

    def __init__(self, dropout: float | int = 0.0):
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
        self.dropout = nn.Dropout1d(float(dropout))

    def forward(self, values: Float[Tensor, "n codebooks topk tokens dim_value"]) -> Float[Tensor, "n dim_value"]:
        votes = values.sum(dim=2).flatten(1, 2)
        return self.dropout(votes).mean(dim=1)


class _Flattened(nn.Module):
    def __init__(self, shape: tuple[int, int, int, int], num_classes: int):
        super().__init__()
        if len(shape) != 4 or min(shape) < 1:
            raise ValueError(f"shape must be (codebooks, topk, tokens, dim_value), all positive, got {shape}")
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        self.shape = tuple(shape)

    def _flat(self, values: Tensor) -> Tensor:
        if tuple(values.shape[1:]) != self.shape:
            raise ValueError(
                f"values must have shape (n, {', '.join(map(str, self.shape))}), got {tuple(values.shape)}"
            )
        return values.flatten(1)


class LinearDecoder(_Flattened):
    """A linear map of all fetched values, concatenated.

    Args:
        shape: (codebooks, topk, tokens, dim_value) of the values.
        num_classes: at least 2.
        bias: whether it has one.
    """

    def __init__(self, shape: tuple[int, int, int, int], num_classes: int, *, bias: bool = True):
        super().__init__(shape, num_classes)
        self.linear = nn.Linear(math.prod(shape), num_classes, bias=bias)

    def forward(self, values: Float[Tensor, "n codebooks topk tokens dim_value"]) -> Float[Tensor, "n classes"]:
        return self.linear(self._flat(values))


class MLPDecoder(_Flattened):
    """One hidden layer of ReLUs on all fetched values, concatenated.

    Args:
        shape, num_classes: as for `LinearDecoder`.
        hidden: units; the paper's is 128.
    """

    def __init__(self, shape: tuple[int, int, int, int], num_classes: int, *, hidden: int = 128):
        super().__init__(shape, num_classes)
        if hidden < 1:
            raise ValueError(f"hidden must be positive, got {hidden}")
        self.layers = nn.Sequential(nn.Linear(math.prod(shape), hidden), nn.ReLU(), nn.Linear(hidden, num_classes))

    def forward(self, values: Float[Tensor, "n codebooks topk tokens dim_value"]) -> Float[Tensor, "n classes"]:
        return self.layers(self._flat(values))


def make_decoder(
    kind: str, shape: tuple[int, int, int, int], num_classes: int, *, dropout: float | int = 0.0
) -> nn.Module:
    """The decoder called "voting", "linear", "linear_no_bias" or "mlp".

    Raises:
        ValueError: for another name, or if "voting" has values of another size than the number of classes.
    """
    if kind == "voting":
        if shape[3] != num_classes:
            raise ValueError(f"voting needs dim_value equal to the number of classes, got {shape[3]} and {num_classes}")
        return VotingDecoder(dropout)
    if kind in ("linear", "linear_no_bias"):
        return LinearDecoder(shape, num_classes, bias=kind == "linear")
    if kind == "mlp":
        return MLPDecoder(shape, num_classes)
    raise ValueError(f"decoder must be voting, linear, linear_no_bias or mlp, got {kind!r}")
