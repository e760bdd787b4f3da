"""The methods of the toy papers: estimators of a vector."""

import torch
from torch import Tensor

__all__ = ["average_of_a_half", "james_stein"]


def james_stein(x: Tensor) -> Tensor:
    """The positive-part estimator of James and Stein for one observation of unit variance, shape (dim,)."""
    shrinkage = 1 - (x.numel() - 2) / x.square().sum()
    return x * shrinkage.clamp(min=0)


def average_of_a_half(rows: Tensor, generator: torch.Generator) -> Tensor:
    """The mean of a random half of the rows, shape (rows, dim) to (dim,)."""
    return rows[torch.randperm(len(rows), generator=generator)[: (len(rows) + 1) // 2]].mean(dim=0)


def unused_by_the_claims() -> Tensor:
    return torch.zeros(1)
