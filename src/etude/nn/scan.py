"""Linear recurrences h_t = a_t h_{t-1} + b_t over whole sequences, without a loop over time.

Blelloch, "Prefix sums and their applications", 1990: neighbours are combined in pairs, the half-sized recurrence is
solved, and the other half is filled in. 2 log2(length) steps, work linear in the length; nothing is divided and no
logarithm is taken, so that decays may be as strong as they like, zero included.
"""

from typing import Any

import torch
from torch import Tensor

__all__ = ["scan"]


def scan(a: Tensor, b: Tensor, initial: Tensor | None = None) -> Tensor:
    """h_t = a_t h_{t-1} + b_t, elementwise, with h_0 = `initial`.

    Gradients, of any order, cost as much as the recurrence: they are one, backwards in time.

    Args:
        a: (batch, length, ...), real or complex; broadcast against `b`.
        b: (batch, length, ...).
        initial: (batch, ...), the state before the first token; zero if None.

    Returns:
        h, of the shape that `a` and `b` broadcast to.

    Raises:
        ValueError: if there is no token.
    """
    a, b = torch.broadcast_tensors(a, b)
    if a.ndim < 2 or a.shape[1] == 0:
        raise ValueError(f"a recurrence needs shape (batch, length >= 1, ...), got {tuple(a.shape)}")
    dtype = torch.promote_types(a.dtype, b.dtype)
    a, b = a.to(dtype), b.to(dtype)
    if initial is not None:
        b = torch.cat([(a[:, 0] * initial + b[:, 0])[:, None], b[:, 1:]], dim=1)
    return _Scan.apply(a, b)  # type: ignore[no-any-return]


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        return _solve(a, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        a, h = ctx.saved_tensors
        # What reaches h_t: its own gradient, and a_{t+1} times what reaches h_{t+1}.
        following = torch.cat([a[:, 1:], torch.zeros_like(a[:, :1])], dim=1).conj()
        reached = _Scan.apply(following.flip(1), grads[0].flip(1)).flip(1)
        before = torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], dim=1)
        return reached * before.conj(), reached


def _solve(a: Tensor, b: Tensor) -> Tensor:
    length = a.shape[1]
    if length == 1:
        return b.clone()
    even_a, odd_a, even_b, odd_b = a[:, 0 : length - 1 : 2], a[:, 1::2], b[:, 0 : length - 1 : 2], b[:, 1::2]
    odd = _solve(odd_a * even_a, torch.addcmul(odd_b, odd_a, even_b))
    h = torch.empty_like(b, memory_format=torch.contiguous_format)
    h[:, 1::2] = odd
    h[:, 0] = b[:, 0]
    count = (length - 1) // 2  # places 2, 4, ... follow an odd one
    if count:
        h[:, 2::2] = torch.addcmul(b[:, 2::2], a[:, 2::2], odd[:, :count])
    return h
