"""Linear layers side by side: the same shapes, weights of their own."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["BankedLinear", "BankedMLP"]


class BankedLinear(nn.Module):
    """`count` linear layers in one product.

    Args:
        count: how many.
        in_dim, out_dim: of each.
        bias: whether they have one.

    Initialised as `nn.Linear` is: uniform within 1 / sqrt(in_dim).
    """

    def __init__(self, count: int, in_dim: int, out_dim: int, *, bias: bool = True):
        super().__init__()
        if min(count, in_dim, out_dim) < 1:
            raise ValueError(f"count, in_dim and out_dim must be positive, got {count}, {in_dim} and {out_dim}")
        bound = in_dim**-0.5
        self.weight = nn.Parameter(torch.empty(count, in_dim, out_dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(count, out_dim).uniform_(-bound, bound)) if bias else None

    def forward(self, x: Float[Tensor, "batch inputs in_dim"]) -> Float[Tensor, "batch count out_dim"]:
        """Of n inputs the first serves the first count / n layers, the second those that follow, and so on."""
        count, in_dim, out_dim = self.weight.shape
        inputs = x.shape[1]
        if not inputs or count % inputs or x.shape[2] != in_dim:
            raise ValueError(f"the input must be (batch, a divisor of {count}, {in_dim}), got {tuple(x.shape)}")
        weight = self.weight.unflatten(0, (inputs, count // inputs)).transpose(1, 2).flatten(2)
        if inputs == 1:
            y = (x[:, 0] @ weight[0]).unflatten(1, (count, out_dim))
        else:
            y = torch.bmm(x.transpose(0, 1), weight).transpose(0, 1).reshape(len(x), count, out_dim)
        return y if self.bias is None else y + self.bias


class BankedMLP(nn.Module):
    """`count` perceptrons side by side; every hidden layer is Linear-ReLU.

    Args:
        count: how many.
        dim: of the input.
        hidden_dims: at least one layer, unless `out_dim` is given.
        out_dim: of a last layer without activation; without it the last hidden layer is the output.
    """

    def __init__(self, count: int, dim: int, hidden_dims: Sequence[int], out_dim: int | None = None):
        super().__init__()
        sizes = [dim, *hidden_dims]
        if len(sizes) == 1 and out_dim is None:
            raise ValueError("hidden_dims must name at least one layer")
        self.layers = nn.ModuleList(BankedLinear(count, a, b) for a, b in pairwise(sizes))
        self.out = None if out_dim is None else BankedLinear(count, sizes[-1], out_dim)

    def forward(self, x: Float[Tensor, "batch inputs in_dim"]) -> Float[Tensor, "batch count out_dim"]:
        """Of n inputs the first serves the first count / n perceptrons, and so on."""
        for layer in self.layers:
            x = layer(x).relu()
        return x if self.out is None else self.out(x)
