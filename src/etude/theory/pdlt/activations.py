"""Activations as the theory sees them: a function, its derivative, its kinks, and its series at zero."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from etude.nn.gaussian import gaussian_expectation, hermite_polynomials, in_double

__all__ = ["Activation", "as_activation"]

_TERMS = 8
"""Degree of the series at zero."""

_CHECKED = 8
"""Moments that sigma and its derivative must have in common."""

_PROBES = (1e-3, 0.1, 0.7, 3.0, 25.0)


@dataclass(frozen=True, eq=False)
class Activation:
    """An elementwise activation; everything but the function itself is optional.

        Activation(lambda z: z.clamp(-1, 1), kinks=(-1.0, 1.0))

    Args:
        function: elementwise on float64.
        derivative: its derivative; automatic differentiation if None, which must then be able to pass through.
        kinks: where the function or a derivative of it jumps. One-dimensional expectations find kinks by themselves;
            kernels of pairs are quicker and closer if they are told.
    """

    function: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor] | None = None
    kinks: tuple[float | int, ...] = ()
    _cache: dict[str, object] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"an activation must be a function or a module, got {type(self.function).__name__}")
        if not all(math.isfinite(kink) for kink in self.kinks):
            raise ValueError(f"kinks must be finite, got {self.kinks}")
        for z in (-1.0, 0.0, 1.0):
            with torch.no_grad():
                y = self.function(torch.tensor([z], dtype=torch.float64))
            if y.shape != (1,):
                raise ValueError(f"an activation must be elementwise: of shape (1,) it made {tuple(y.shape)}")
            if not bool(torch.isfinite(y).all()):
                raise ValueError(f"the activation must be finite, at z = {z:g} it is {float(y):g}")

    def __call__(self, z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """sigma(z)."""
        with torch.no_grad():
            return self.function(z)

    def slope(self, z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """sigma'(z)."""
        if self.derivative is not None:
            with torch.no_grad():
                return self.derivative(z)
        return self.both(z)[1]

    def both(self, z: Float[Tensor, "*shape"]) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
        """sigma(z) and sigma'(z)."""
        if self.derivative is not None:
            return self(z), self.slope(z)
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            y = self.function(leaf)
            slope = torch.autograd.grad(y.sum(), leaf)[0] if y.requires_grad else torch.zeros_like(z)
        return y.detach(), slope.detach()

    def slopes_at_zero(self) -> tuple[float, float]:
        """(sigma'(-0), sigma'(+0)): right and left of a kink at zero they differ."""
        left, right = self.slope(torch.tensor([-1e-15, 1e-15], dtype=torch.float64)).tolist()
        return left, right

    def homogeneous_slopes(self) -> tuple[float, float] | None:
        """(a-, a+) if sigma(z) = a+ z for z > 0 and a- z for z < 0, as it is for every leaky ReLU; None if not."""
        if "homogeneous" not in self._cache:
            probes = torch.tensor(_PROBES, dtype=torch.float64)
            right, left = self(probes) / probes, self(-probes) / -probes
            scale = 1e-12 * float(torch.cat([right, left]).abs().max())
            alike = all(float((side - side[0]).abs().max()) <= scale for side in (right, left))
            zero = float(self(torch.zeros(1, dtype=torch.float64)).abs())
            self._cache["homogeneous"] = (float(left[1]), float(right[1])) if alike and zero == 0 else None
        return self._cache["homogeneous"]  # type: ignore[return-value]

    def require_slope(self) -> None:
        """Checks, once, that sigma' is the derivative of sigma: at K = 1, sqrt(k) <sigma h_k> = <sigma' h_(k-1)>.

        Raises:
            ValueError: if it is not: then sigma jumps, and <s'^2> is infinite, or the given derivative is wrong.
        """
        if "slope" in self._cache:
            return
        degrees = torch.arange(1, _CHECKED + 1, dtype=torch.float64).sqrt()

        def integrand(u: Tensor) -> Tensor:
            h = hermite_polynomials(u, _CHECKED)
            s, d = self.both(u)
            return torch.cat([degrees * s[:, None] * h[:, 1:], d[:, None] * h[:, :-1]], dim=1)

        try:
            value, error = gaussian_expectation(integrand)
        except ValueError:  # too steep at K = 1: it may have averages at the K that is asked for, and they will say
            return
        left, right = value.split(_CHECKED)
        room = error.sum() + 1e-7 * float(left.abs().max() + right.abs().max())
        if bool(((left - right).abs() > room).any()):
            raise ValueError(
                "the derivative of the activation is not that of the function: <sigma'> = "
                f"{float(right[0]):.6g} but integration by parts gives {float(left[0]):.6g} (K = 1). An activation "
                "that jumps has infinite <sigma'^2>: gradients and the NTK do not exist"
            )
        self._cache["slope"] = True

    def series(self) -> list[float]:
        """sigma(0), sigma'(0), ..., the derivatives at zero up to the eighth, by repeated differentiation.

        At a kink they mean nothing; those who use them check. Those that cannot be had are NaN.
        """
        if "series" not in self._cache:
            found: list[float] = []
            with torch.enable_grad():
                x = torch.zeros((), dtype=torch.float64, requires_grad=True)
                y = self.function(x)
                for _ in range(_TERMS):
                    found.append(y.item())
                    if not y.requires_grad:
                        break
                    try:
                        (y,) = torch.autograd.grad(y, x, create_graph=True)
                    except RuntimeError:  # differentiable less often
                        found += [math.nan] * (_TERMS + 1 - len(found))
                        break
                else:
                    found.append(y.item())
            self._cache["series"] = found + [0.0] * (_TERMS + 1 - len(found))
        return self._cache["series"]  # type: ignore[return-value]


_KINKS: dict[type, tuple[float, ...]] = {
    nn.ReLU: (0.0,), nn.LeakyReLU: (0.0,), nn.PReLU: (0.0,), nn.ELU: (0.0,), nn.SELU: (0.0,), nn.CELU: (0.0,),
    nn.ReLU6: (0.0, 6.0), nn.Hardtanh: (-1.0, 1.0), nn.Hardswish: (-3.0, 3.0), nn.Softsign: (0.0,),
}  # fmt: skip


def as_activation(activation: "Activation | Callable[[Tensor], Tensor]") -> Activation:
    """An `Activation` as it is; a function or a module as one, a module as a copy in double precision.

    Raises:
        TypeError: if it cannot be called.
        ValueError: if it is not elementwise or not finite.
    """
    if isinstance(activation, Activation):
        return activation
    if isinstance(activation, nn.Hardtanh) and not isinstance(activation, nn.ReLU6):
        kinks: tuple[float, ...] = (float(activation.min_val), float(activation.max_val))
    else:
        kinks = _KINKS.get(type(activation), ())
    return Activation(in_double(activation), kinks=kinks)
