"""Gaussian averages of pairs, <sigma(z_a) sigma(z_b)> and <sigma'(z_a) sigma'(z_b)>, for whole blocks of a kernel.

With variances K_a, K_b, covariance K_ab and correlation rho = K_ab / sqrt(K_a K_b), in closed form for

    slopes a-, a+:  [(a+ + a-)^2 / 4] K_ab + [(a+ - a-)^2 / (2 pi)] sqrt(K_a K_b) (sin t + (pi/2 - t) cos t),
                    t = arccos rho                                         (Cho & Saul, NIPS 2009)           (1)
    erf:            (2 / pi) arcsin(2 K_ab / sqrt((1 + 2 K_a)(1 + 2 K_b)))  (Williams, NIPS 1996)            (2)
    GELU:           K_ab (1/4 + arcsin(K_ab / sqrt P) / 2 pi) + N / (2 pi sqrt Q),  P = (1 + K_a)(1 + K_b),
                    Q = P - K_ab^2,  N = K_a K_b - K_ab^2 + K_ab^2 (1 / (1 + K_a) + 1 / (1 + K_b))           (3)
    sin, cos:       exp(-(K_a + K_b) / 2) sinh K_ab,  cosh K_ab                                              (4)

and <sigma'_a sigma'_b> is the derivative in K_ab (Price's theorem). For every other activation (Mehler's formula)

    <sigma_a sigma_b> = sum_k c_k(K_a) c_k(K_b) rho^k,  c_k(K) = <sigma(sqrt(K) u) h_k(u)>                   (5)
    <sigma'_a sigma'_b> = sum_k k c_k(K_a) c_k(K_b) rho^(k-1) / sqrt(K_a K_b)                                (6)

cut off at degree N <= 250. By Cauchy and Schwarz what is cut off is at most sqrt(T_a T_b) |rho|^(N+1), with
T = <sigma^2> - sum_(k <= N) c_k^2: a bound, pair by pair. Pairs for which it is above the tolerance, such as close
ones of a kinked activation, are integrated over the plane instead (`planar`).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.nn.gaussian import gaussian_expectation, hermite_polynomials
from etude.theory.pdlt.activations import Activation
from etude.theory.pdlt.planar import planar_averages

__all__ = ["PairAverages", "Rows", "pair_averages"]

_DEGREE = 250
_TWO_PI = 2 * math.pi


class Rows(NamedTuple):
    """What the pairs of a layer need of each input: the variance, arrays with a row an input, and the least and the
    largest variance of all."""

    K: Tensor
    parts: tuple[Tensor, ...]
    low: float
    high: float

    def at(self, rows: slice) -> "Rows":
        if rows.start == 0 and rows.stop == len(self.K):
            return self
        return Rows(self.K[rows], tuple(part[rows] for part in self.parts), self.low, self.high)


def _made(K: Tensor, *parts: Tensor) -> Rows:
    return Rows(K, parts, float(K.min()), float(K.max()))


class Block(NamedTuple):
    """Averages of a block of pairs; errors are bounds for all of the block."""

    value: Tensor
    slope: Tensor | None
    value_error: float
    slope_error: float


class PairAverages(ABC):
    """The averages of an activation; tensors are float64."""

    @abstractmethod
    def single(self, K: Tensor) -> tuple[Tensor, Tensor]:
        """<sigma^2> and <sigma'^2> at variances K."""

    @abstractmethod
    def rows(self, K: Tensor) -> Rows:
        """What `block` needs of inputs of variances K."""

    @abstractmethod
    def block(self, Kab: Tensor, a: Rows, b: Rows, slope: bool) -> Block:
        """The averages of all pairs; Kab (len a, len b) may be overwritten, and the slopes are by the next call."""

    def _space(self, like: Tensor, count: int) -> list[Tensor]:
        """Arrays to work in, the same ones for every block of a shape: making them anew takes longer than the work."""
        buffers = self.__dict__.setdefault("_buffers", {}).setdefault(tuple(like.shape), [])
        while len(buffers) < count:
            buffers.append(torch.empty_like(like))
        return buffers[:count]


class _Leaky(PairAverages):
    """Eq. (1)."""

    def __init__(self, left: float, right: float):
        self._second = (left**2 + right**2) / 2
        self._linear, self._bent = (left + right) ** 2 / 4, (right - left) ** 2 / _TWO_PI

    def single(self, K: Tensor) -> tuple[Tensor, Tensor]:
        return self._second * K, torch.full_like(K, self._second)

    def rows(self, K: Tensor) -> Rows:
        root = K.sqrt()
        return _made(K, root, 1 / root)

    def block(self, Kab: Tensor, a: Rows, b: Rows, slope: bool) -> Block:
        # With s = sin t and p = pi / 2 - t = arcsin(rho): bent (s + p rho) + linear rho.
        rho = Kab.mul_(a.parts[1][:, None]).mul_(b.parts[1]).clamp_(-1.0, 1.0)
        size = (a.high * b.high) ** 0.5 * self._second
        if not self._bent:
            value = (rho * self._linear).mul_(a.parts[0][:, None]).mul_(b.parts[0])
            return Block(value, torch.full_like(rho, self._linear) if slope else None, 4e-16 * size, 0.0)
        space = self._space(rho, 2)
        sine = torch.addcmul(_ONE, rho, rho, value=-1, out=space[0]).sqrt_()
        inner = torch.asin(rho, out=space[1]).mul_(self._bent).add_(self._linear)
        value = rho.mul_(inner).add_(sine, alpha=self._bent)
        value.mul_(a.parts[0][:, None]).mul_(b.parts[0])
        # Next to rho = 1 rounding of rho moves t by its square root.
        return Block(value, inner if slope else None, 2e-15 * size, 2e-8 * self._bent)


class _Erf(PairAverages):
    """Eq. (2)."""

    def single(self, K: Tensor) -> tuple[Tensor, Tensor]:
        return (2 / math.pi) * torch.asin(2 * K / (1 + 2 * K)), (4 / math.pi) / torch.sqrt(1 + 4 * K)

    def rows(self, K: Tensor) -> Rows:
        return _made(K, (1 + 2 * K).rsqrt())

    def block(self, Kab: Tensor, a: Rows, b: Rows, slope: bool) -> Block:
        x = Kab.mul_(2 * a.parts[0][:, None]).mul_(b.parts[0])
        derivative = None
        if slope:
            # (4 / pi) / sqrt((1 + 2 K_a)(1 + 2 K_b) (1 - x^2))
            derivative = torch.addcmul(_ONE, x, x, value=-1, out=self._space(x, 1)[0]).rsqrt_()
            derivative.mul_((4 / math.pi) * a.parts[0][:, None]).mul_(b.parts[0])
        value = x.asin_().mul_(2 / math.pi)
        # 1 - x^2 is at least 1 / (1 + 2 K).
        room = 1 + 2 * max(a.high, b.high)
        return Block(value, derivative, 1e-15 * room**0.5, 1e-15 * room)


class _GELU(PairAverages):
    """Eq. (3)."""

    def single(self, K: Tensor) -> tuple[Tensor, Tensor]:
        own = (K, *self.rows(K).parts)
        value, slope = self._pairs(K.clone(), own, own, True)
        assert slope is not None
        return value, slope.clone()

    def rows(self, K: Tensor) -> Rows:
        return _made(K, 1 + K, 1 / (1 + K))

    def block(self, Kab: Tensor, a: Rows, b: Rows, slope: bool) -> Block:
        left = tuple(part[:, None] for part in (a.K, *a.parts))
        value, derivative = self._pairs(Kab, left, (b.K, *b.parts), slope)
        size = max(a.high, b.high)
        return Block(value, derivative, 4e-15 * (1 + size), 4e-15 * (1 + size))

    def _pairs(
        self, Kab: Tensor, a: tuple[Tensor, ...], b: tuple[Tensor, ...], slope: bool
    ) -> tuple[Tensor, Tensor | None]:
        (Ka, oa, ia), (Kb, ob, ib) = a, b
        root, square, angle, shrink, N = self._space(Kab, 5)
        torch.mul(Kab, Kab, out=square)
        inverse = torch.mul(oa, ob, out=root).sub_(square).rsqrt_()  # 1 / sqrt Q
        # arcsin(K_ab / sqrt P) = arctan(K_ab / sqrt Q), whose argument is at hand.
        torch.mul(Kab, inverse, out=angle).atan_().mul_(1 / _TWO_PI).add_(0.25)
        torch.add(ia - 1, ib, out=shrink)
        torch.mul(Ka, Kb, out=N).addcmul_(square, shrink)
        scaled = torch.mul(inverse, 1 / _TWO_PI, out=square)
        if not slope:
            return Kab.mul_(angle).addcmul_(N, scaled), None
        # 1/4 + arcsin / 2 pi + K_ab (1 + 2 shrink + N / Q) / (2 pi sqrt Q)
        shrink.mul_(2).add_(1).addcmul_(N, inverse.square_()).mul_(scaled).mul_(Kab)
        value = Kab.mul_(angle).addcmul_(N, scaled)
        return value, angle.add_(shrink)


class _Sine(PairAverages):
    """Eq. (4)."""

    def __init__(self, sign: int):
        self._sign = sign  # -1: sin and sinh; 1: cos and cosh

    def single(self, K: Tensor) -> tuple[Tensor, Tensor]:
        even = torch.exp(-2 * K)
        return (1 + self._sign * even) / 2, (1 - self._sign * even) / 2

    def rows(self, K: Tensor) -> Rows:
        return _made(K, K / 2, torch.exp(-K / 2) / math.sqrt(2))

    def block(self, Kab: Tensor, a: Rows, b: Rows, slope: bool) -> Block:
        largest = max(a.high, b.high)
        size = 1e-15 * (1 + largest)
        if largest < 300:  # well within the range of exp
            plus = Kab.exp_()
            space = self._space(plus, 3)
            weight = torch.mul(a.parts[1][:, None], b.parts[1], out=space[2])
            minus = torch.reciprocal(plus, out=space[0])
            other = torch.sub(plus, minus, alpha=self._sign, out=space[1]).mul_(weight) if slope else None
            return Block(plus.add_(minus, alpha=self._sign).mul_(weight), other, size, size)
        middle = a.parts[0][:, None] + b.parts[0]
        plus = (Kab - middle).exp_()
        minus = (Kab + middle).neg_().exp_()
        value = torch.add(plus, minus, alpha=self._sign).mul_(0.5)
        derivative = torch.sub(plus, minus, alpha=self._sign).mul_(0.5) if slope else None
        return Block(value, derivative, size, size)


@dataclass(eq=False)
class _Series(PairAverages):
    """Eqs. (5) and (6) for any activation."""

    act: Activation
    tol: float

    def single(self, K: Tensor) -> tuple[Tensor, Tensor]:
        table = self.rows(K)
        return table.parts[1], table.parts[2]

    def rows(self, K: Tensor) -> Rows:
        """Parts: c_0..c_250, <sigma^2>, <sigma'^2>, the error of each coefficient, and the degrees that suffice."""
        distinct, place = torch.unique(K, return_inverse=True)
        fine, coarse = (self._by_rule(distinct, panels) for panels in (56, 28))
        error = (fine - coarse).abs().amax(1)
        scale = fine.abs().amax(1)
        rough = error > 0.01 * self.tol * scale
        if bool(rough.any()):
            fine[rough], error[rough] = self._adaptively(distinct[rough])
        error = error + 1e-15 * scale
        g, h, c = fine[:, 0], fine[:, 1], fine[:, 2:]
        weighted = torch.arange(c.shape[1], dtype=torch.float64) * c.square()
        enough = torch.stack([_sufficient(c.square(), g, self.tol), _sufficient(weighted, h * distinct, self.tol)], 1)
        return _made(K, c[place], g[place], h[place], error[place], enough[place])

    def block(self, Kab: Tensor, a: Rows, b: Rows, slope: bool) -> Block:
        (ca, ga, ha, ea, na), (cb, gb, hb, eb, nb) = a.parts, b.parts
        roots = a.K.sqrt(), b.K.sqrt()
        rho = Kab.div_(roots[0][:, None]).div_(roots[1]).clamp_(-1.0, 1.0)
        enough = torch.maximum(na.amax(0), nb.amax(0))
        needed = int(enough.max()) if slope else int(enough[0])
        degree = min(needed, _DEGREE)
        value, derivative = _horner(ca, cb, roots, rho, degree, slope)
        own = float((ea.max() * gb.max().sqrt() + eb.max() * ga.max().sqrt()) * math.sqrt(degree + 1))
        smallest = min(a.low, b.low)
        own_slope = own * degree / smallest
        if needed <= _DEGREE:
            # Cauchy and Schwarz at |rho| = 1 is enough.
            tail = 0.1 * self.tol * float((ga.max() * gb.max()).sqrt())
            slope_tail = 0.1 * self.tol * float((ha.max() * hb.max()).sqrt())
            return Block(value, derivative, tail + own, slope_tail + own_slope if slope else 0.0)
        return self._with_far_pairs(Block(value, derivative, own, own_slope), rho, a, b)

    def _with_far_pairs(self, found: Block, rho: Tensor, a: Rows, b: Rows) -> Block:
        """At the highest degree: bounds pair by pair, and pairs above the tolerance integrated over the plane."""
        value, derivative = found.value, found.slope
        (ca, ga, ha, *_), (cb, gb, hb, *_) = a.parts, b.parts
        power = rho.abs().pow(_DEGREE)
        tail = power * rho.abs() * (_tail(ca, ga)[:, None] * _tail(cb, gb)).sqrt()
        far = tail > self.tol * (ga[:, None] * gb).sqrt()
        slope_tail = torch.zeros_like(tail)
        if derivative is not None:
            weight = torch.arange(ca.shape[1], dtype=torch.float64).sqrt()
            rest = _tail(ca * weight, ha * a.K)[:, None] * _tail(cb * weight, hb * b.K)
            slope_tail = power * (rest / (a.K[:, None] * b.K)).sqrt()
            far |= slope_tail > self.tol * (ha[:, None] * hb).sqrt()
        worst, worst_slope = 0.0, 0.0
        if bool(far.any()):
            i, j = torch.nonzero(far, as_tuple=True)
            plane = planar_averages(self.act, a.K[i], b.K[j], rho[far], slope=derivative is not None)
            value[far], tail[far] = plane.value, 0.0
            worst = float(plane.value_error.max())
            if derivative is not None:
                derivative[far], slope_tail[far] = plane.slope, 0.0
                worst_slope = float(plane.slope_error.max())
        return Block(
            value, derivative, max(float(tail.max()) + found.value_error, worst),
            max(float(slope_tail.max()) + found.slope_error, worst_slope),
        )  # fmt: skip

    def _columns(self, K: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        s, d = self.act.both((K.sqrt()[:, None] * u).flatten())
        return s.reshape(len(K), -1), d.reshape(len(K), -1)

    def _by_rule(self, K: Tensor, panels: int) -> Tensor:
        """<sigma^2>, <sigma'^2> and the coefficients by a fixed rule: (inputs, 2 + terms)."""
        u, weight, polynomials = _rule(panels)
        found = []
        for part in K.split(max(_ENTRIES // len(u), 1)):
            s, d = self._columns(part, u)
            both = torch.stack([s.square() @ weight, d.square() @ weight], dim=1)
            found.append(torch.cat([both, s @ polynomials], dim=1))
        table = torch.cat(found)
        if not bool(torch.isfinite(table).all()):
            bad = float(K[~torch.isfinite(table).all(1)][0])
            raise ValueError(f"the activation has no finite averages at K = {bad:.6g}")
        return table

    def _adaptively(self, K: Tensor) -> tuple[Tensor, Tensor]:
        """The same by panels that find kinks, a few inputs at a time."""
        found, errors = [], []
        for part in K.split(4):

            def integrand(u: Tensor, part: Tensor = part) -> Tensor:
                s, d = self._columns(part, u)
                h = hermite_polynomials(u, _DEGREE)
                rows = [
                    torch.cat([s[i, :, None] ** 2, d[i, :, None] ** 2, s[i, :, None] * h], 1) for i in range(len(part))
                ]
                return torch.cat(rows, dim=1)

            value, error = gaussian_expectation(integrand, tol=max(0.01 * self.tol, 1e-13))
            found.append(value.reshape(len(part), -1))
            errors.append(error.reshape(len(part), -1).amax(1))
        return torch.cat(found), torch.cat(errors)


_ENTRIES = 1 << 20
_ONE = torch.ones((), dtype=torch.float64)


def _tail(c: Tensor, g: Tensor) -> Tensor:
    return (g - c.square().sum(1)).clamp(min=0)


def _sufficient(weights: Tensor, total: Tensor, tol: float) -> Tensor:
    """The lowest degree above which a row's weights hold less than a tenth of `tol` of the total; 251 if none is."""
    left = total[:, None] - weights.cumsum(1)
    return (left >= 0.1 * tol * total[:, None]).sum(1)


def _horner(
    ca: Tensor, cb: Tensor, roots: tuple[Tensor, Tensor], rho: Tensor, degree: int, slope: bool
) -> tuple[Tensor, Tensor | None]:
    """Eqs. (5) and (6) by Horner's rule, in rho^2 if the activation is odd or even."""
    odd, even = (float(max(c[:, k::2].abs().max() for c in (ca, cb))) for k in (1, 0))
    scale = 1e-14 * max(odd, even)
    step, start = (2, 0) if odd <= scale else (2, 1) if even <= scale else (1, 0)
    x = rho if step == 1 else rho.square()
    value = torch.zeros_like(rho)
    derivative = torch.zeros_like(rho) if slope else None
    for k in reversed(range(start, degree + 1, step)):
        value.mul_(x).addr_(ca[:, k], cb[:, k])
        if derivative is not None and k:
            derivative.mul_(x).addr_(k * ca[:, k] / roots[0], cb[:, k] / roots[1])
    if step == 2:
        if start:
            value.mul_(rho)
        elif derivative is not None:
            derivative.mul_(rho)  # its lowest term is that of k = 2
    return value, derivative


@lru_cache(maxsize=4)
def _rule(panels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes and weights of a composite Gauss-Legendre rule on |u| <= 14 against the normal density, and weights times
    h_0..h_250: beyond, even h_250 times the density is below 1e-20."""
    nodes, weights = np.polynomial.legendre.leggauss(16)
    edges = torch.linspace(-14, 14, panels + 1, dtype=torch.float64)
    half = (edges[1:] - edges[:-1])[:, None] / 2
    u = (edges[:-1, None] + half * (torch.from_numpy(nodes) + 1)).flatten()
    weight = (half * torch.from_numpy(weights)).flatten() * torch.exp(-u.square() / 2) / math.sqrt(_TWO_PI)
    return u, weight, weight[:, None] * hermite_polynomials(u, _DEGREE)


def pair_averages(act: Activation, tol: float) -> PairAverages:
    """The averages of an activation, in closed form where there is one."""
    slopes = act.homogeneous_slopes()
    if slopes is not None:
        return _Leaky(*slopes)
    function: Callable[[Tensor], Tensor] = act.function
    if function in (torch.erf, torch.special.erf):
        return _Erf()
    if (isinstance(function, nn.GELU) and function.approximate == "none") or function is F.gelu:
        return _GELU()
    if function in (torch.sin, torch.cos):
        return _Sine(-1 if function is torch.sin else 1)
    return _Series(act, tol)
