"""Dual activations: what an activation does to the correlation of two Gaussians.

    f(xi) = E[phi(u) phi(v)] / E[phi(u)^2],  u, v ~ N(0, 1) of correlation xi
          = sum_k q_k xi^k,  q_k = c_k^2 / sum_j c_j^2,  c_k = E[phi h_k]                                   (1)
    f'(xi) = E[phi'(u) phi'(v)] / E[phi(u)^2] = sum_k k q_k xi^(k-1)                                        (2)

f(1) = 1 always: every dual here is that of the activation scaled to E phi^2 = 1 (Daniely, Frostig & Singer, "Toward
Deeper Understanding of Neural Networks", NeurIPS 2016). In deep networks correlations tend to 0 or to 1, where
differences are lost to rounding; so f is evaluated from xi and e = 1 - xi, both given, and

    1 - f(xi) = e sum_j r_j xi^j,  r_j = sum_(k > j) q_k                                                    (3)

has positive terms only and keeps its relative precision for e down to 1e-300, as f does for small xi.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from etude.nn.gaussian import gaussian_expectation, hermite_expansion, in_double

__all__ = ["DualActivation", "ErfDual", "HermiteDual", "LeakyReLUDual", "derivative_moment", "dual_activation"]

_ZERO = 1e-18
"""Weights below this are taken for 0, coefficients below 1e-9: they are rounding where a formula has a zero, and
whether f(0) is 1e-20 or 0 would decide where infinite depth leads."""

_DEGREE = 100
"""Degree up to which the dual of a given function is expanded; `HermiteDual.error` says what the rest can change."""


class DualActivation(ABC):
    """The dual of an activation on correlations in [0, 1]: call it for f(xi).

    Attributes:
        order: the lowest power k with q_k > 0, so that f(xi) ~ q_k xi^k at 0.
        q0, q1: f(0) = c_0^2 and f'(0) = c_1^2, Eq. (1).
        slope: f'(1) = E phi'^2, infinite for an activation with a jump.
    """

    order: int
    q0: float
    q1: float
    slope: float

    @abstractmethod
    def reduced(self, xi: Tensor, e: Tensor) -> Tensor:
        """f(xi) / xi^order; e = 1 - xi."""

    @abstractmethod
    def derivative(self, xi: Tensor, e: Tensor) -> Tensor:
        """f'(xi), Eq. (2)."""

    @abstractmethod
    def complement(self, xi: Tensor, e: Tensor) -> Tensor:
        """1 - f(xi), precise where it is small, Eq. (3)."""

    def step(self, xi: Tensor, e: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """f(xi), f'(xi) and 1 - f(xi) at once, for what they have in common."""
        power = xi**self.order if self.order else 1.0
        return self.reduced(xi, e) * power, self.derivative(xi, e), self.complement(xi, e)

    def elasticity(self, xi: Tensor, e: Tensor) -> Tensor:
        """xi f'(xi) / f(xi), from `order` at 0 to f'(1) at 1."""
        ratio = self.derivative(xi, e) / self.reduced(xi, e)
        return ratio if self.order == 1 else xi * ratio

    def error(self, xi: Tensor) -> Tensor:
        """A bound on the error of f(xi) beyond rounding; 0 where the dual is exact."""
        return torch.zeros_like(xi)

    @abstractmethod
    def _key(self) -> tuple[float, ...]:
        """What tells this dual from others of its class."""

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other._key() == self._key()

    def __hash__(self) -> int:
        return hash((type(self), self._key()))

    def __call__(self, xi: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return xi**self.order * self.reduced(xi, 1 - xi)


class HermiteDual(DualActivation):
    """The dual of sum_k c_k h_k, a polynomial with the weights q_k = c_k^2.

    An expansion that was cut off leaves a mass m = 1 - sum q_k and a slope s = f'(1) - sum k q_k to the degrees above.
    They are represented by the one power m xi^(s / m), right in both; by Jensen's inequality it is a lower bound.

    Args:
        weights: q_0..q_degree, not negative; they sum to 1, or to 1 - `tail`.
        tail: mass above the degree, in [0, 1).
        tail_slope: what those degrees contribute to f'(1).

    Raises:
        ValueError: if a weight is negative or not finite, or the sum is not 1: then the activation is not normalised.
    """

    def __init__(self, weights: Float[Tensor, "terms"], *, tail: float = 0.0, tail_slope: float = 0.0):
        weights = weights.detach().to("cpu", torch.float64)
        if weights.ndim != 1 or len(weights) == 0:
            raise ValueError(f"weights must have shape (terms,), got {tuple(weights.shape)}")
        if not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()):
            raise ValueError(f"weights are squares: finite and not negative, got {weights.tolist()[:12]}")
        total = float(weights.sum()) + tail
        if abs(total - 1) > 1e-6:
            raise ValueError(
                f"the activation must have E phi^2 = 1, its squared Hermite coefficients sum to {total:.8g}: "
                f"divide the coefficients by {math.sqrt(total):.8g}"
            )
        if tail < 0 or (tail > 0 and tail_slope < tail * len(weights) * (1 - 1e-6)):
            raise ValueError(f"a tail of {tail:g} above degree {len(weights) - 1} cannot have slope {tail_slope:g}")
        q = [float(weight) / total if weight > _ZERO * total else 0.0 for weight in weights]
        self.weights, self.tail = tuple(q), tail / total
        self.order = next((k for k, weight in enumerate(q) if weight > 0), len(q))
        self.q0, self.q1 = q[0], (q[1] if len(q) > 1 else 0.0)
        self._power = tail_slope / tail if tail > 0 else float(len(q))
        self.slope = sum(k * weight for k, weight in enumerate(q)) + self.tail * self._power
        self._above = [sum(q[j + 1 :]) for j in range(len(q) - 1)]

    def reduced(self, xi: Tensor, e: Tensor) -> Tensor:
        value = _horner(self.weights[self.order :], xi)
        return value if not self.tail else value + self.tail * xi ** (self._power - self.order)

    def derivative(self, xi: Tensor, e: Tensor) -> Tensor:
        value = _horner([k * weight for k, weight in enumerate(self.weights)][1:], xi)
        return value if not self.tail else value + self.tail * self._power * xi ** (self._power - 1)

    def elasticity(self, xi: Tensor, e: Tensor) -> Tensor:
        # The common power of xi is taken out of both, so that neither vanishes where xi does.
        value = _horner([k * weight for k, weight in enumerate(self.weights)][self.order :], xi)
        if self.tail:
            value = value + self.tail * self._power * xi ** (self._power - self.order)
        return value / self.reduced(xi, e)

    def complement(self, xi: Tensor, e: Tensor) -> Tensor:
        value = e * _horner(self._above, xi)
        return value if not self.tail else value - self.tail * torch.expm1(self._power * torch.log1p(-e))

    def _key(self) -> tuple[float, ...]:
        return (*self.weights, self.tail, self._power)

    def error(self, xi: Tensor) -> Tensor:
        return self.tail * (xi ** len(self.weights) - xi**self._power)


class LeakyReLUDual(DualActivation):
    """The dual of max(z, slope z), in closed form (Cho & Saul, "Kernel Methods for Deep Learning", NIPS 2009).

    With t = arccos(xi), p = ((1 + s) / 2)^2, m = ((1 - s) / 2)^2 for the negative slope s, and p + m = (1 + s^2) / 2:

        (p + m) f(xi) = p xi + m (2 / pi) (sin t + (pi / 2 - t) cos t),  (p + m) f'(xi) = p + m (1 - 2 t / pi)

    Args:
        negative_slope: s; 0 is the ReLU, -1 the absolute value.
    """

    def __init__(self, negative_slope: float = 0.0):
        if not math.isfinite(negative_slope):
            raise ValueError(f"negative_slope must be finite, got {negative_slope}")
        odd, even = ((1 + negative_slope) / 2) ** 2, ((1 - negative_slope) / 2) ** 2
        self._odd, self._even = odd / (odd + even), even / (odd + even)
        self.order = 0 if self._even else 1
        self.q0, self.q1, self.slope = self._even * 2 / math.pi, self._odd, 1.0

    def _key(self) -> tuple[float, ...]:
        return self._odd, self._even

    def reduced(self, xi: Tensor, e: Tensor) -> Tensor:
        if self.order:
            return torch.ones_like(xi)
        angle, sine = _angle(xi, e)
        return self._odd * xi + self._even * (2 / math.pi) * (sine + (math.pi / 2 - angle) * xi)

    def derivative(self, xi: Tensor, e: Tensor) -> Tensor:
        angle, _ = _angle(xi, e)
        return self._odd + self._even * (1 - angle * (2 / math.pi))

    def complement(self, xi: Tensor, e: Tensor) -> Tensor:
        return self._complement(xi, e, *_angle(xi, e))

    def step(self, xi: Tensor, e: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        angle, sine = _angle(xi, e)
        after = self._complement(xi, e, angle, sine)
        return 1 - after, self._odd + self._even * (1 - angle * (2 / math.pi)), after

    def _complement(self, xi: Tensor, e: Tensor, angle: Tensor, sine: Tensor) -> Tensor:
        # sin t - t cos t loses to rounding what its series keeps; next to e ~ t^2 / 2 four terms are exact below 0.1.
        square = angle.square()
        series = angle * square * (1 / 3 - square * (1 / 30 - square * (1 / 840 - square / 45360)))
        return e - self._even * (2 / math.pi) * torch.where(angle < 0.1, series, sine - angle * xi)


class ErfDual(DualActivation):
    """The dual of erf(a z), in closed form (Williams, "Computing with Infinite Networks", NIPS 1996).

        f(xi) = arcsin(c xi) / arcsin(c),  c = 2 a^2 / (1 + 2 a^2)

    Args:
        scale: a, not zero.
    """

    def __init__(self, scale: float = 1.0):
        if not math.isfinite(scale) or scale == 0:
            raise ValueError(f"scale must be finite and not zero, got {scale}")
        self._c = 2 * scale**2 / (1 + 2 * scale**2)
        self._top = math.asin(self._c)
        self.order, self.q0, self.q1 = 1, 0.0, self._c / self._top
        self.slope = self.q1 / math.sqrt(1 - self._c**2)

    def _key(self) -> tuple[float, ...]:
        return (self._c,)

    def reduced(self, xi: Tensor, e: Tensor) -> Tensor:
        x = self._c * xi
        small = x < 1e-3
        safe = torch.where(small, 0.5, x)
        return self.q1 * torch.where(small, 1 + x.square() / 6 + 0.075 * x**4, torch.asin(safe) / safe)

    def derivative(self, xi: Tensor, e: Tensor) -> Tensor:
        return self.q1 / torch.sqrt(1 - (self._c * xi).square())

    def complement(self, xi: Tensor, e: Tensor) -> Tensor:
        c = self._c
        sine = c * e * (1 + xi) / (torch.sqrt(1 - (c * xi).square()) + xi * math.sqrt(1 - c * c))
        return torch.asin(sine) / self._top


def dual_activation(
    activation: Callable[[Tensor], Tensor] | Float[Tensor, "terms"], *, degree: int = _DEGREE
) -> DualActivation:
    """The dual of an activation.

        f = dual_activation(torch.relu)                                # closed form
        f = dual_activation(torch.tensor([0.0, 0.6, 0.0, 0.8]))        # 0.6 h_1 + 0.8 h_3
        f = dual_activation(torch.nn.GELU())                           # expanded; f.error(xi) bounds the rest

    Args:
        activation: Hermite coefficients c_0, c_1, ..., whose squares sum to 1; or an elementwise function or module,
            which is scaled to E phi^2 = 1. ReLU, leaky ReLU, abs and erf have closed forms; a module with
            `coefficients`, such as a Hermite activation, is taken by them.
        degree: of the expansion of other functions.

    Raises:
        TypeError: if `activation` is neither.
        ValueError: if coefficients are not normalised, or the function has a jump or an infinite or zero variance.
    """
    if isinstance(activation, Tensor):
        return HermiteDual(activation.detach().to(torch.float64).square())
    if isinstance(activation, nn.LeakyReLU):
        return LeakyReLUDual(activation.negative_slope)
    if isinstance(activation, nn.ReLU) or activation in (torch.relu, F.relu):
        return LeakyReLUDual()
    if activation is torch.abs:
        return LeakyReLUDual(-1.0)
    if activation in (torch.erf, torch.special.erf):
        return ErfDual()
    coefficients = getattr(activation, "coefficients", None)
    if isinstance(coefficients, Tensor):
        return dual_activation(coefficients)
    if not callable(activation):
        raise TypeError(f"activation must be Hermite coefficients or a function, got {type(activation).__name__}")
    expansion = hermite_expansion(activation, degree)
    second = float(expansion.second_moment.value)
    if second <= 0:
        raise ValueError("the activation is zero almost everywhere: E phi^2 = 0")
    c = torch.where(expansion.coefficients.abs() <= expansion.errors, 0.0, expansion.coefficients)
    weights = c.square() / second
    tail = expansion.tail / second
    slope, _ = derivative_moment(activation, expansion.coefficients)
    if math.isinf(slope):
        raise ValueError("the activation has a jump: E phi'^2, and every kernel built on f'(1), is infinite")
    rest = slope / second - float((torch.arange(len(weights)) * weights).sum())
    if tail > 1e-13 and rest > tail * len(weights):
        return HermiteDual(weights, tail=tail, tail_slope=rest)
    return HermiteDual(weights / weights.sum())


def derivative_moment(phi: Callable[[Tensor], Tensor], coefficients: Float[Tensor, "terms"]) -> tuple[float, float]:
    """E phi'^2 of an activation that is not scaled, and its error; infinite for an activation with a jump.

    Automatic differentiation knows nothing of jumps. They show where sqrt(k) c_k = E[phi' h_(k-1)], integration by
    parts, is violated; the first eight k are compared.

    Args:
        phi: the activation; automatic differentiation must be able to pass through it.
        coefficients: its c_0, c_1, ...
    """
    phi = in_double(phi)
    checked = min(8, len(coefficients) - 1)

    def integrand(z: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            y = phi(leaf)
            slope = torch.autograd.grad(y.sum(), leaf)[0] if y.requires_grad else torch.zeros_like(z)
        powers, columns = torch.ones_like(z), []
        below = torch.zeros_like(z)
        for k in range(checked):
            columns.append(slope * powers)
            powers, below = (z * powers - math.sqrt(k) * below) / math.sqrt(k + 1), powers
        return torch.stack([slope.square(), *columns], dim=1)

    value, error = gaussian_expectation(integrand)
    expected = coefficients[1 : checked + 1] * torch.arange(1, checked + 1, dtype=torch.float64).sqrt()
    scale = float(coefficients.square().sum()) ** 0.5
    if bool(((value[1:] - expected).abs() > 1e-7 * scale + error[1:]).any()):
        return math.inf, 0.0
    return float(value[0]), float(error[0])


def _horner(coefficients: "list[float] | tuple[float, ...]", x: Tensor) -> Tensor:
    if not coefficients:
        return torch.zeros_like(x)
    value = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value.mul_(x)
        if coefficient:
            value.add_(coefficient)
    return value


def _angle(xi: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
    """arccos(xi) and its sine, precise near xi = 1."""
    sine = torch.sqrt(e * (1 + xi))
    return torch.atan2(sine, xi), sine
