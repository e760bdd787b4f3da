"""The neural tangent kernel at any depth, and at infinite depth, on the sphere.

Radhakrishnan, Belkin & Uhler, PNAS 2023, arXiv:2204.14126. For unit vectors of inner product xi in [0, 1], no biases,
an activation with dual f (E phi^2 = 1), and L hidden layers,

    S_0 = K_0 = xi,  S_(l+1) = f(S_l),  K_(l+1) = K_l f'(S_l) + f(S_l);   K_L(1) = sum_(j <= L) B'^j         (1)

Off the diagonal K_L falls like a^L, a = A'^2, and on it grows like B'^L: at d = 2 and 400 layers that is 1e-240 next to
1e+120, and no matrix of such numbers can be solved with. Where A = 0 the recursion therefore runs on logarithms, of S
and of r:

    S+ = f(S),   r+ = r S f'(S) / f(S) + 1,   r = K / S,   K~_L = K_L / a^L                                  (2)

and with e = 1 - S carried besides S, by `DualActivation.complement`, both ends keep their relative precision. Once
S < 1e-17, f(S) = a S and r grows by 1 a layer: a billion layers cost what fifty do. What remains of S is the Koenigs
function of f at 0, the infinitely deep kernel up to a factor,

    R(xi) = lim S_l / a^l = lim K~_L / L,   R(f(xi)) = a R(xi),   R ~ C (1 - xi)^(-alpha / 2) at xi = 1      (3)

Where A = A' = 0, log S multiplies with each layer, by k if f(S) ~ q S^k at 0, and nothing is scaled.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from etude.nn.dual import DualActivation, dual_activation
from etude.theory.wide_deep_optimality.geometry import check_orthant_sphere, orthant_complements

__all__ = ["RadialKernel", "deep_ntk", "kernel_matrix", "koenigs", "log_deep_ntk", "log_diagonal", "log_koenigs"]

_SETTLED = 1e-17
"""Below, f(S) = a S to the last digit: relative to it the next term is S itself."""

_LARGEST_LOG = 1e300
_MAX_STEPS = 1_000_000

_BLOCK = 1 << 14
"""Values worked on at a time: 128 kB an array."""

_REACH = (-64.0, 48.0)
"""Of t = log(e / xi): chord distances of 1.8e-14 to inner products of 1e-21."""

_POINTS = (1 << 13, 1 << 16)
_TABLE_ERROR = 1e-10


def koenigs(
    xi: Float[Tensor, "*shape"],
    activation: DualActivation | Float[Tensor, "terms"],
    *,
    complement: Float[Tensor, "*shape"] | None = None,
) -> Float[Tensor, "*shape"]:
    """R(xi) of Eq. (3): the kernel of an infinitely deep network, up to a factor; infinite at xi = 1.

    Args:
        xi: inner products in [0, 1].
        activation: a dual, or normalised Hermite coefficients.
        complement: 1 - xi where it is known better than xi tells, such as |x - x'|^2 / 2 of close points.

    Raises:
        ValueError: if xi leaves [0, 1], or the activation has no singular kernel: A != 0, A' = 0 or A'^2 = 1.
    """
    return log_koenigs(xi, activation, complement=complement).exp()


def log_koenigs(
    xi: Float[Tensor, "*shape"],
    activation: DualActivation | Float[Tensor, "terms"],
    *,
    complement: Float[Tensor, "*shape"] | None = None,
) -> Float[Tensor, "*shape"]:
    """log R(xi), finite where R itself is beyond the range of doubles; arguments and errors as for `koenigs`."""
    dual = _dual(activation)
    if dual.q0 or not dual.q1 or dual.q1 >= 1:
        raise ValueError(
            f"only an activation with A = 0 and 0 < A'^2 < 1 has a singular kernel, got A^2 = {dual.q0:.4g} and "
            f"A'^2 = {dual.q1:.4g}"
        )
    return _in_blocks(lambda s, e: _to_the_limit(dual, s, e), *_pair(xi, complement))


def _to_the_limit(dual: DualActivation, s: Tensor, e: Tensor) -> Tensor:
    """Eq. (3), layer by layer until nothing changes."""
    log_s = s.log()
    diagonal = e <= 0
    s, e = torch.where(diagonal, 0.0, s), torch.where(diagonal, 1.0, e)
    for layer in range(_MAX_STEPS):
        if not s.numel() or float(s.max()) < _SETTLED:
            return torch.where(diagonal, math.inf, log_s - layer * math.log(dual.q1))
        log_s, s, e = _advance(dual, log_s, s, e)
    raise ValueError(f"no limit after {_MAX_STEPS:,} layers: A'^2 = {dual.q1} is too close to 1")


def deep_ntk(
    xi: Float[Tensor, "*shape"],
    activation: DualActivation | Float[Tensor, "terms"],
    depth: int,
    *,
    scaled: bool = True,
    complement: Float[Tensor, "*shape"] | None = None,
) -> Float[Tensor, "*shape"]:
    """The neural tangent kernel of `depth` hidden layers, Eq. (1).

    Args:
        xi: inner products in [0, 1]; 1 gives the diagonal, K_L(1).
        activation: a dual, or normalised Hermite coefficients.
        depth: L >= 0; 0 is the linear kernel xi.
        scaled: divide by a^L where A = 0 < A'^2, Eq. (2): predictions do not change, and off the diagonal the numbers
            stay within the range of doubles at any depth. Without, K_L itself, which may under- or overflow.
        complement: as for `koenigs`.

    Raises:
        ValueError: if xi leaves [0, 1], `depth` is negative, or an activation with A = A' = 0 is so deep that even
            logarithms overflow (about 1,000 layers): its limit is the nearest neighbour.
    """
    dual = _dual(activation)
    log_kernel = log_deep_ntk(xi, dual, depth, complement=complement)
    if not scaled:
        log_kernel = log_kernel + depth * _log_scale(dual)
    return log_kernel.exp()


def log_deep_ntk(
    xi: Float[Tensor, "*shape"],
    activation: DualActivation | Float[Tensor, "terms"],
    depth: int,
    *,
    complement: Float[Tensor, "*shape"] | None = None,
) -> Float[Tensor, "*shape"]:
    """The logarithm of the scaled kernel K~_L, Eq. (2); arguments and errors as for `deep_ntk`."""
    dual = _dual(activation)
    if depth < 0:
        raise ValueError(f"depth counts hidden layers and must be >= 0, got {depth}")
    run = _plain if dual.q0 else _logarithmic
    return _in_blocks(lambda s, e: run(dual, s, e, depth), *_pair(xi, complement))


def _logarithmic(dual: DualActivation, s: Tensor, e: Tensor, depth: int) -> Tensor:
    """Eq. (2), for A = 0."""
    log_s, log_ratio = s.log(), torch.zeros_like(s)
    for layer in range(depth):
        if s.numel() and float(s.max()) < _SETTLED:
            return _settle(log_s, log_ratio, dual, depth - layer) - layer * _log_scale(dual)
        log_ratio = torch.logaddexp(log_ratio + dual.elasticity(s, e).log(), torch.zeros_like(s))
        log_s, s, e = _advance(dual, log_s, s, e)
    return log_s + log_ratio - depth * _log_scale(dual)


def kernel_matrix(
    x: Float[Tensor, "n columns"],
    other: Float[Tensor, "m columns"],
    activation: DualActivation | Float[Tensor, "terms"],
    depth: int | None,
) -> Float[Tensor, "n m"]:
    """The scaled kernel of all pairs of two sets of points, or R at infinite depth (`depth` None).

        kernel_matrix(x, x, dual_activation(torch.relu), depth=3)

    By a table where that is quicker, to ten digits, with close points told apart by their distance. No memory beside
    the result is needed but blocks.

    Args:
        x, other: unit vectors whose inner products are not negative.
        activation: a dual, or normalised Hermite coefficients.
        depth: hidden layers, or None.

    Raises:
        ValueError: as for `deep_ntk` and `koenigs`, or if rows are not unit vectors.
    """
    x, other = check_orthant_sphere(x.to(torch.float64)), check_orthant_sphere(other.to(torch.float64), "other")
    radial = RadialKernel(_dual(activation), depth, direct=len(x) * len(other) < _POINTS[0])
    kernel = torch.empty(len(x), len(other), dtype=torch.float64)
    for rows, part in zip(x.split(size := max(16 * _BLOCK // len(other), 1)), kernel.split(size)):
        torch.exp(radial(orthant_complements(rows, other)), out=part)
    return kernel


def log_diagonal(dual: DualActivation, depth: int) -> float:
    """log K~_L(1) = log sum_(j <= L) B'^j - L log a, in the scale of `log_deep_ntk`."""
    b = dual.slope
    if abs(b - 1) < 1e-12:
        total = math.log(depth + 1)
    elif b > 1:
        total = depth * math.log(b) + math.log((b - b ** float(-depth)) / (b - 1))
    else:
        total = math.log((1 - b ** (depth + 1)) / (1 - b))
    return total - depth * _log_scale(dual)


class RadialKernel:
    """log K~_L, or log R at infinite depth, as a function of one number, tabled: for millions of pairs.

    On the sphere a kernel depends on the pair through xi alone, so the layers are run once, on a few thousand points,
    and a pair costs a cubic interpolation. What is tabled is log(K~ / xi) where A = 0, log K where not, over
    t = log((1 - xi) / xi), of which it is a smooth function that is nearly a line at both ends.

    Args:
        dual: of the activation.
        depth: hidden layers; None for infinitely many (singular kernels only).
        direct: make no table.

    Attributes:
        error: of the logarithm, the largest found half-way between points, where it is largest. Points are doubled,
            from 8,192 to at most 65,536, until it is below 1e-10.
        direct: whether every pair runs through all layers instead: if it was asked for, if the table is not that good,
            and for A = A' = 0, where logarithms double with each layer.
    """

    def __init__(self, dual: DualActivation, depth: int | None, *, direct: bool = False):
        self.dual, self.depth = dual, depth
        self.diagonal = math.inf if depth is None else log_diagonal(dual, depth)
        self.direct, self.error = direct or (not dual.q0 and not dual.q1), 0.0
        points = _POINTS[0]
        while not self.direct:
            self._build(points)
            if self.error <= _TABLE_ERROR:
                break
            points *= 2
            self.direct = points > _POINTS[1]
        self.error = 0.0 if self.direct else self.error

    def __call__(self, e: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The logarithm at 1 - xi = e in [0, 1]; closer pairs than e = 1.6e-28 count as equal: the diagonal."""
        return _in_blocks(lambda s, e: self._evaluated(s, e), e, e)

    def _evaluated(self, _: Tensor, e: Tensor) -> Tensor:
        if self.direct:
            value = self._exact(1 - e, e)
        else:
            log_xi = torch.log1p(-e)
            value = self._interpolated(e.log().sub_(log_xi))
            value = value if self.dual.q0 else value.add_(log_xi)
        return value.masked_fill_(e < math.exp(_REACH[0]), self.diagonal)

    def _build(self, points: int) -> None:
        low, high = _REACH
        self._step = (high - low) / (points - 1)
        t = low + self._step * torch.arange(-1, points + 1, dtype=torch.float64)
        between = t[1:points:5] + 0.5 * self._step
        values, checked = self._tabled(torch.cat([t, between])).split([len(t), len(between)])
        # The cubic through four neighbours, c0 + u (c1 + u (c2 + u c3)) for u in [0, 1] between the middle two.
        before, here, after, beyond = (values[i : i + points - 1] for i in range(4))
        self._cubics = torch.stack(
            [
                here,
                after - here / 2 - before / 3 - beyond / 6,
                (before + after) / 2 - here,
                (beyond - before) / 6 + (here - after) / 2,
            ],
            dim=1,
        )
        self.error = float((self._interpolated(between) - checked).abs().max())

    def _interpolated(self, t: Tensor) -> Tensor:
        low, high = _REACH
        place = t.clamp(low, high).sub_(low).mul_(1 / self._step)
        cell = place.floor().clamp_(0, len(self._cubics) - 1)
        u = place.sub_(cell)
        c0, c1, c2, c3 = self._cubics[cell.to(torch.int64)].unbind(-1)
        return torch.addcmul(c2, u, c3).mul_(u).add_(c1).mul_(u).add_(c0)

    def _tabled(self, t: Tensor) -> Tensor:
        value = self._exact(torch.sigmoid(-t), torch.sigmoid(t))
        return value if self.dual.q0 else value - F.logsigmoid(-t)

    def _exact(self, xi: Tensor, e: Tensor) -> Tensor:
        if self.depth is None:
            return log_koenigs(xi, self.dual, complement=e)
        return log_deep_ntk(xi, self.dual, self.depth, complement=e)


def _plain(dual: DualActivation, s: Tensor, e: Tensor, depth: int) -> Tensor:
    """Eq. (1) as it stands, for A != 0, where nothing vanishes; stops early once the kernel has converged."""
    kernel = s
    for _ in range(depth):
        value, slope, e = dual.step(s, e)
        new = kernel * slope + value
        settled = bool((new == kernel).all()) and bool((value == s).all())
        s, kernel = value, new
        if settled:
            break
    return kernel.log()


def _advance(dual: DualActivation, log_s: Tensor, s: Tensor, e: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log f(S), f(S) and 1 - f(S).

    Near S = 1 they come from e: S itself would stay where it is. Elsewhere they come from log S, because an error of e
    would grow from layer to layer.
    """
    after = dual.complement(s, e)
    near = after < 0.25
    # S^order may underflow where its logarithm does not.
    log_s = torch.where(
        near, torch.log1p(-torch.where(near, after, 0.0)), _times(dual.order, log_s) + dual.reduced(s, e).log()
    )
    s = log_s.exp()
    return log_s, s, torch.where(near, after, 1 - s)


def _settle(log_s: Tensor, log_ratio: Tensor, dual: DualActivation, layers: int) -> Tensor:
    """log K~ after some more layers, S so small that f(S) = q S^k: then log S+ = k log S + log q and r+ = k r + 1.

    Where k = 1 each layer's log q is taken out again by the scale.
    """
    k, log_q = dual.order, math.log(_leading(dual))
    if k == 1:
        return log_s + torch.logaddexp(log_ratio, torch.full_like(log_s, math.log(layers)))
    shift, power = log_q / (k - 1), layers * math.log(k)
    largest = float(_finite(log_s + shift).abs().max()) + abs(shift)
    if power > math.log(_LARGEST_LOG) - math.log(largest):
        raise ValueError(
            f"{layers} layers further on, the logarithm of the kernel overflows; with A = A' = 0 its limit is the "
            'nearest neighbour: use depth="inf"'
        )
    sums = power + math.log1p(-math.exp(-power)) - math.log(k - 1)
    return math.exp(power) * (log_s + shift) - shift + torch.logaddexp(log_ratio + power, torch.full_like(log_s, sums))


def _leading(dual: DualActivation) -> float:
    """q_k of the lowest power."""
    zero = torch.zeros(1, dtype=torch.float64)
    return float(dual.reduced(zero, 1 - zero))


def _in_blocks(function: Callable[[Tensor, Tensor], Tensor], s: Tensor, e: Tensor) -> Tensor:
    """An elementwise function of two arrays, on parts that stay in the cache: several times faster than on all at once,
    and without temporary arrays of the size of the kernel."""
    if s.numel() <= _BLOCK:
        return function(s, e)
    found = torch.empty(s.shape, dtype=torch.float64)
    flat = found.view(-1)
    for out, *parts in zip(flat.split(_BLOCK), s.reshape(-1).split(_BLOCK), e.reshape(-1).split(_BLOCK)):
        out.copy_(function(*parts))
    return found


def _log_scale(dual: DualActivation) -> float:
    return math.log(dual.q1) if not dual.q0 and dual.q1 else 0.0


def _times(k: int, log_s: Tensor) -> Tensor:
    return k * log_s if k else torch.zeros_like(log_s)


def _finite(x: Tensor) -> Tensor:
    return torch.where(torch.isfinite(x), x, 0.0)


def _dual(activation: DualActivation | Tensor) -> DualActivation:
    return activation if isinstance(activation, DualActivation) else dual_activation(activation)


def _pair(xi: Tensor, complement: Tensor | None) -> tuple[Tensor, Tensor]:
    s = xi.to(torch.float64)
    if s.numel() and not (float(s.min()) >= 0 and float(s.max()) <= 1 + 1e-12):
        raise ValueError(
            f"inner products must lie in [0, 1] (unit vectors of the non-negative orthant), "
            f"got {float(s.min()):.6g} to {float(s.max()):.6g}"
        )
    s = s.clamp(max=1.0)
    return s, 1 - s if complement is None else complement.to(torch.float64)
