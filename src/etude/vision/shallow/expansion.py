"""The expansion of a residual stack by the order of its terms.

For linear f_k with matrices F_k a stack computes

    (I + F_K) ... (I + F_1) x  =  sum over subsets S of {1..K} of (the product of F_k, k in S, later ones left) x    (1)

and its truncation of order r keeps the subsets of at most r members. For smooth f_k, scaled by eps, the sequential
stack exceeds the parallel one (order 1) by

    sum over j < k of J f_k(x) f_j(x)  =  O(eps^2),                                                                (2)

and by O(eps^3) more; with ReLU by O(eps^2.5), because of the units whose sign the shift flips.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jvp

__all__ = ["second_order_residual", "taylor_expand"]

Branch = Callable[[Tensor], Tensor]


def taylor_expand(fs: Sequence[Branch], x: Tensor, order: int) -> Tensor:
    """Eq. (1) truncated at `order`, for linear or affine functions; of order 1 it is right for any: x + sum f_k(x).

    By e_j(k) = e_j(k-1) + F_k e_{j-1}(k-1) with e_0 = x, summed over j at the end: at most K * order applications,
    and one each to zero, by which the constant of an affine function is told (a constant meets no later constant).

    Args:
        fs: f_1 .. f_K, each preserving the shape of its argument.
        x: any shape whose first axis is the batch.
        order: r >= 0; 0 is the identity, and K or more the whole product, which the sequential stack computes.

    Raises:
        ValueError: if `order` is negative.
    """
    if order < 0:
        raise ValueError(f"order must not be negative, got {order}")
    terms: list[Tensor] = [x]
    for f in fs:
        steps = [f(term) for term in terms[:order]]
        if len(steps) > 1:
            constant = f(torch.zeros_like(x[:1]))
            steps[1:] = [step - constant for step in steps[1:]]
        grown = [term + step for term, step in zip(terms[1:], steps)]
        terms = [x, *grown, *steps[len(terms) - 1 :]]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def second_order_residual(fs: Sequence[Branch] | nn.Module, x: Tensor) -> Tensor:
    """Eq. (2): what the sequential stack adds to the parallel one to second order, for smooth functions.

    One Jacobian-vector product per function, along the sum of the values of those before it.

    Args:
        fs: f_1 .. f_K, or a `ResidualStack`. Batch norms must be in evaluation mode.
        x: the common input.
    """
    functions: Any = getattr(fs, "branches", fs)
    before = torch.zeros_like(x)
    total = torch.zeros_like(x)
    with warnings.catch_warnings():
        # The first product of a process has torch compile rules of its own by `torch.jit`, which it deprecates.
        warnings.filterwarnings("ignore", message="`torch.jit", category=DeprecationWarning)
        for f in functions:
            pair = jvp(f, (x,), (before,))
            total = total + pair[1]
            before = before + pair[0]
    return total
