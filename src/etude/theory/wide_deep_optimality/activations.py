"""Activations made for a purpose: sums of Hermite polynomials, and any function centred and scaled.

Radhakrishnan, Belkin & Uhler, "Wide and Deep Neural Networks Achieve Optimality for Classification", PNAS 2023,
arXiv:2204.14126. With h_1 = x, h_2 = (x^2 - 1) / sqrt(2), h_3 = (x^3 - 3 x) / sqrt(6), ... and d the dimension of the
sphere on which the data lie, not of the space around it,

    d >= 2:  phi = 2^(-d/4) h_3 + sqrt(1 - 2^(1 - d/2)) h_2 + 2^(-d/4) h_1,   A' = 2^(-d/4), B' = 2          (1)
    d  = 1:  phi = (h_1 + h_7) / sqrt(2),                                     A'^2 = 1/2,    B' = 4          (2)

whose infinitely deep networks are singular-kernel classifiers of order

    alpha = -4 log|A'| / log B' = -2 log c_1^2 / log sum_k k c_k^2                                           (3)

equal to d, which is what makes them consistent. Eq. (1) holds for real d >= 2; for an order below 2,

    phi = c_1 h_1 + sqrt(1 - c_1^2) h_k,  k the smallest integer with 2 / (k - 1) < alpha                    (4)

reaches it: as c_1^2 goes from 0 to 1 the order falls from infinity to 2 / (k - 1).
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from scipy.optimize import brentq
from torch import Tensor, nn

from etude.nn.gaussian import gaussian_expectation, in_double

__all__ = ["HermiteActivation", "Standardized", "activation_for_alpha", "optimal_activation"]


class HermiteActivation(nn.Module):
    """phi(x) = sum_k c_k h_k(x), with normalised probabilists' Hermite polynomials h_k = He_k / sqrt(k!).

        model = nn.Sequential(nn.Linear(3, 512), optimal_activation(2), nn.Linear(512, 1))

    A sum of squares of 1 keeps the variance of a signal: E phi(z)^2 = 1 for a standard normal z.

    Args:
        coefficients: c_0, c_1, ..., finite and not all zero.

    Raises:
        ValueError: if there is no coefficient, or one is not finite, or all are zero.
    """

    coefficients: Tensor

    def __init__(self, coefficients: Sequence[float] | Float[Tensor, "terms"]):
        super().__init__()
        c = torch.as_tensor(coefficients, dtype=torch.float64).detach().clone()
        if c.ndim != 1 or len(c) == 0:
            raise ValueError(f"coefficients must have shape (terms,), got {tuple(c.shape)}")
        if not bool(torch.isfinite(c).all()) or not bool(c.any()):
            raise ValueError(f"coefficients must be finite and not all zero, got {c.tolist()[:12]}")
        self.register_buffer("coefficients", c)
        self._terms = c.tolist()

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Clenshaw's recurrence: one product a degree and no power of x."""
        c = self._terms
        after, last = torch.zeros_like(x), torch.full_like(x, c[-1])
        for k in range(len(c) - 2, -1, -1):
            # h_(k+1) = (x h_k - sqrt(k) h_(k-1)) / sqrt(k + 1), read backwards.
            value = x * last / math.sqrt(k + 1) - after * math.sqrt((k + 1) / (k + 2)) + c[k]
            after, last = last, value
        return last

    def extra_repr(self) -> str:
        terms = (f"{c:.4g} h_{k}" for k, c in enumerate(self._terms) if c)
        return " + ".join(terms)


class Standardized(nn.Module):
    """An activation shifted and scaled to E phi(z) = 0 and E phi(z)^2 = 1, for a standard normal z.

    Centring takes away the constant of an activation, and with it the majority vote that infinite depth would make of
    its network: most centred activations lead to a singular kernel instead (`classify_activation`).

    Args:
        activation: elementwise function or module.
        center: whether to shift; without, only the scale changes.

    Raises:
        ValueError: if the variance is infinite or zero.
    """

    def __init__(self, activation: Callable[[Tensor], Tensor], *, center: bool = True):
        super().__init__()
        self.activation = activation
        phi = in_double(activation)
        moments, error = gaussian_expectation(lambda z: torch.stack([phi(z), phi(z).square()], dim=1))
        mean = float(moments[0]) if center else 0.0
        variance = float(moments[1]) - mean**2
        if variance <= float(error[1]):
            raise ValueError(f"the activation is constant: its variance under a standard normal is {variance:.1e}")
        self.shift, self.scale = mean, math.sqrt(variance)

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return (self.activation(x) - self.shift) / self.scale

    def extra_repr(self) -> str:
        return f"shift={self.shift:.6g}, scale={self.scale:.6g}"


def optimal_activation(d: int) -> HermiteActivation:
    """The activation whose wide and infinitely deep network is consistent on the sphere S^d, Eq. (1) and (2).

    Args:
        d: dimension of the sphere: columns of the data minus one.

    Returns:
        The module; its buffer `coefficients` holds c_0, c_1, ...

    Raises:
        ValueError: if d is not an integer of at least 1: the two points of S^0 leave nothing to interpolate.
    """
    if isinstance(d, bool) or int(d) != d or d < 1:
        raise ValueError(f"d, the dimension of the sphere, must be an integer >= 1 (columns minus one), got {d}")
    if d == 1:
        return HermiteActivation([0.0, math.sqrt(0.5), 0.0, 0.0, 0.0, 0.0, 0.0, math.sqrt(0.5)])
    return activation_for_alpha(float(d))


def activation_for_alpha(alpha: float | int) -> HermiteActivation:
    """An activation whose infinitely deep network has a kernel of singular order alpha, Eq. (1) and (4).

    Args:
        alpha: any order above 0; above 500 its square c_1^2 = 2^(-alpha/2) would leave too little of h_1.

    Raises:
        ValueError: if alpha is not in (0, 500], or so small that the degree would exceed 250 (alpha <= 0.008).
    """
    if not 0 < alpha <= 500:
        raise ValueError(f"alpha must lie in (0, 500], got {alpha}")
    if alpha >= 2:
        outer = 2 ** (-alpha / 4)
        return HermiteActivation([0.0, outer, math.sqrt(max(1 - 2 * outer**2, 0.0)), outer])
    k = math.floor(2 / alpha) + 2
    if k > 250:
        raise ValueError(f"alpha = {alpha} needs a polynomial of degree {k}; the limit is 250, alpha > 0.008")

    def excess(c1_squared: float) -> float:
        return -2 * math.log(c1_squared) / math.log(c1_squared + k * (1 - c1_squared)) - alpha

    c1_squared = brentq(excess, 1e-12, 1 - 1e-12, xtol=1e-16, rtol=1e-14)
    coefficients = [0.0] * (k + 1)
    coefficients[1], coefficients[k] = math.sqrt(c1_squared), math.sqrt(1 - c1_squared)
    return HermiteActivation(coefficients)
