"""Numbers that carry a bound on their error through sums and products, for the recursions of `flow`."""

from dataclasses import dataclass
from typing import Union

import torch
from torch import Tensor

__all__ = ["Bounded"]

_EPS = 2.3e-16
"""Rounding of one operation in double precision."""

Operand = Union["Bounded", Tensor, float, int]


@dataclass(frozen=True, eq=False)
class Bounded:
    """A value with |value - truth| <= error, elementwise.

    Errors of the operands add up as if they were never of opposite sign; a long recursion therefore overstates them.

        x = Bounded(torch.tensor(2.0), torch.tensor(1e-9))
        (3 * x * x).error                       # 3.6e-8

    Args:
        value, error: float64 of one shape.
    """

    value: Tensor
    error: Tensor

    @staticmethod
    def exact(value: Tensor | float | int) -> "Bounded":
        value = torch.as_tensor(value, dtype=torch.float64)
        return Bounded(value, torch.zeros_like(value))

    def __add__(self, other: Operand) -> "Bounded":
        other = _bounded(other)
        value = self.value + other.value
        return Bounded(value, self.error + other.error + _EPS * value.abs())

    __radd__ = __add__

    def __neg__(self) -> "Bounded":
        return Bounded(-self.value, self.error)

    def __sub__(self, other: Operand) -> "Bounded":
        return self + (-_bounded(other))

    def __mul__(self, other: Operand) -> "Bounded":
        other = _bounded(other)
        value = self.value * other.value
        error = self.value.abs() * other.error + other.value.abs() * self.error + self.error * other.error
        return Bounded(value, error + _EPS * value.abs())

    __rmul__ = __mul__

    def square(self) -> "Bounded":
        return self * self

    def inverse(self) -> "Bounded":
        value = 1 / self.value
        room = (self.value.abs() - self.error).clamp(min=0)
        return Bounded(value, self.error / (self.value.abs() * room) + _EPS * value.abs())


def _bounded(x: Operand) -> Bounded:
    return x if isinstance(x, Bounded) else Bounded.exact(x)
