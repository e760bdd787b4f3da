"""Infinitely many heads: the kernels that random-feature attention and its MLP converge to, in closed form.

Fu, Guo, Bai & Mei, NeurIPS 2023, arXiv:2307.11353. With scores u = <W, xt_0 xt_i^T> and v = <W, xt'_0 xt'_j^T> of
examples x and x', whose Gaussian law has

    E u = bias <x_0, x_i>,  var u = (std |xt_0| |xt_i|)^2,  cov(u, v) = std^2 <xt_0, xt'_0> <xt_i, xt'_j>     (1)
    K(x, x') = (1 / N N') sum_ij <xt_i, xt'_j> E[phi(u) phi(v)]                                              (2)

For a ReLU without bias E[u+ v+] = s_u s_v kappa_1(rho) / 2 with the arc-cosine kernel (Cho & Saul, 2009)

    kappa_1(rho) = (sqrt(1 - rho^2) + (pi - arccos rho) rho) / pi                                            (3)

and with one (Rosenbaum, "Moments of a Truncated Bivariate Normal Distribution", 1961), for h = E u / s_u,
k = E v / s_v, r = sqrt(1 - rho^2), n the normal density and Phi_2 the bivariate normal distribution,

    E[u+ v+] / (s_u s_v) = (h k + rho) Phi_2(h, k; rho) + h n(k) Phi((h - rho k) / r) + k n(h) Phi((k - rho h) / r)
                           + r / (2 pi) exp(-(h^2 - 2 rho h k + k^2) / 2 r^2)                                (4)

The kernel of the MLP on z = [xt_0, .., xt_N] is |z| |z'| kappa_1(rho) / (2 dim z).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.special import ndtr, owens_t
from torch import Tensor

from etude.nn.gaussian import hermite_expansion, in_double
from etude.theory.random_feature_attention.layers import RandomFeatureAttention, concatenated
from etude.theory.random_feature_attention.tokens import Tokens, augment

__all__ = [
    "HeadError",
    "MLPKernel",
    "RFAKernel",
    "arc_cosine",
    "head_error",
    "relu_moment",
    "rfa_kernel",
    "rfmlp_kernel",
]

_BLOCK_PAIRS = 1 << 16
"""Pairs of keys worked on at a time: half a megabyte an array, which caches hold."""

_DEVICE_PAIRS = 1 << 23
"""On an accelerator: enough to fill it."""

_DEGREE = 100
"""Up to which other activations are expanded."""

_INSIDE = 1e-15
"""Correlations of Eq. (4) keep this distance from +-1, where its slopes are infinite."""

_NEAR_ZERO = 1e-150


def arc_cosine(rho: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """kappa_1 of Eq. (3); rho in [-1, 1] up to rounding."""
    rho = rho.clamp(-1.0, 1.0)
    sine = (1 - rho).mul_(1 + rho).sqrt_()
    return torch.acos(rho).neg_().add_(math.pi).mul_(rho).add_(sine).div_(math.pi)


def relu_moment(
    h: Float[Tensor, "*shape"], k: Float[Tensor, "*shape"], rho: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """E[u+ v+] for Gaussians of means h and k, variance 1 and correlation rho, Eq. (4); float64, through SciPy.

    Right to 1e-11; at |rho| = 1, where the formula is taken a little inside, to 1e-9. Two microseconds a value.
    """
    device = h.device
    h_, k_, rho_ = (part.detach().to("cpu", torch.float64).numpy() for part in (h, k, rho))
    rho_ = np.clip(rho_, -1 + _INSIDE, 1 - _INSIDE)
    r = np.sqrt((1 - rho_) * (1 + rho_))
    # Phi_2 by Owen's T, whose slopes are infinite at h = 0 or k = 0; next to 0 they are finite and change nothing.
    h_, k_ = (np.where(np.abs(part) < _NEAR_ZERO, np.copysign(_NEAR_ZERO, part), part) for part in (h_, k_))
    towards_k, towards_h = (k_ - rho_ * h_) / r, (h_ - rho_ * k_) / r
    both = 0.5 * (ndtr(h_) + ndtr(k_)) - owens_t(h_, towards_k / h_) - owens_t(k_, towards_h / k_)
    both -= 0.5 * (h_ * k_ < 0)
    normal_h, normal_k = (np.exp(-0.5 * part**2) / math.sqrt(2 * math.pi) for part in (h_, k_))
    value = (h_ * k_ + rho_) * both + h_ * normal_k * ndtr(towards_h) + k_ * normal_h * ndtr(towards_k)
    value += r / (2 * math.pi) * np.exp(-0.5 * (h_**2 + towards_k**2))
    return torch.from_numpy(np.maximum(value, 0.0)).to(device)


@dataclass(frozen=True)
class RFAKernel:
    """The kernel of random-feature attention with infinitely many heads, Eq. (2).

        RFAKernel(bias=1.0).gram(tokens)                # n x n, to solve with by `RidgePath`
        RFAKernel(activation=torch.nn.GELU())           # of your own activation, on tokens of one length

    The cost is n^2 N^2 evaluations, the memory bounded by blocks. ReLU and exp are closed forms at any lengths and
    bias; another function is expanded in Hermite polynomials, which needs all tokens of one length and no bias.

    Args:
        weight_std, bias: as for `RandomFeatureAttention`.
        activation: "relu", "exp", or an elementwise function of finite variance.

    Raises:
        ValueError: if a number is out of range or a name unknown; from `gram`, if the activation has an infinite
            variance, or tokens have several lengths where it needs one.
    """

    weight_std: float | int = 0.5
    bias: float | int = 0.0
    activation: str | Callable[[Tensor], Tensor] = "relu"

    def __post_init__(self) -> None:
        if not 0 < self.weight_std < math.inf or not math.isfinite(self.bias):
            raise ValueError(f"weight_std must be positive and bias finite, got {self.weight_std} and {self.bias}")
        if isinstance(self.activation, str) and self.activation not in ("relu", "exp"):
            raise ValueError(
                f'activation must be "relu", "exp" or a function, got {self.activation!r}: '
                "no closed form of softmax over keys is known"
            )
        if not isinstance(self.activation, str) and self.bias:
            raise ValueError(f"only relu and exp have a kernel with bias, got bias={self.bias}")

    def gram(self, tokens: Tokens, other: Tokens | None = None) -> Float[Tensor, "n m"]:
        """K of Eq. (2) in float64; `other` gives the columns, None the rows again, of which half are computed."""
        rows, symmetric = tokens.to(torch.float64), other is None
        columns = rows if other is None else other.to(torch.float64)
        if rows.dim != columns.dim:
            raise ValueError(f"tokens must have one dim, got {rows.dim} and {columns.dim}")
        moment = self._moment(rows, columns)
        left, right = (_Side(part, self.weight_std, homogeneous=self.activation == "relu") for part in (rows, columns))
        found = rows.query.new_zeros(len(rows), len(columns))
        pairs = _BLOCK_PAIRS if rows.query.device.type == "cpu" else _DEVICE_PAIRS
        size = max(pairs // (rows.num_keys * columns.num_keys), 1)
        height = max(math.isqrt(size), 1)
        width = max(size // height, 1)
        for top in range(0, len(rows), height):
            at = slice(top, min(top + height, len(rows)))
            end = at.stop if symmetric else len(columns)
            for start in range(0, end, width):
                across = slice(start, min(start + width, len(columns)))
                found[at, across] = _block(left, right, at, across, moment)
        return found.tril_().add_(found.tril(-1).T) if symmetric else found

    def _moment(self, rows: Tokens, columns: Tokens) -> "_Moment":
        """E[phi(u) phi(v)]; for a ReLU in units of both deviations."""
        bias = self.bias
        if self.activation == "relu":
            if bias:
                return lambda rho, s, t, m, n: relu_moment(*torch.broadcast_tensors(bias * m / s, bias * n / t, rho))
            return lambda rho, s, t, m, n: arc_cosine(rho).mul_(0.5)
        if self.activation == "exp":
            return lambda rho, s, t, m, n: torch.exp(bias * (m + n) + 0.5 * (s.square() + t.square()) + s * t * rho)
        return _expanded(self.activation, self.weight_std, rows, columns)  # type: ignore[arg-type]


_Moment = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""Of the correlation, both deviations, and both similarities of query and key."""


class _Side:
    """What Eq. (1) and (2) need of each example: directions, deviations, similarities, and the weights of the keys."""

    def __init__(self, tokens: Tokens, weight_std: float | int, *, homogeneous: bool = False):
        keys = tokens.keys if tokens.key_mask is None else tokens.keys.masked_fill(~tokens.key_mask[:, :, None], 0.0)
        query, augmented = augment(tokens.query), augment(keys)
        lengths = augmented.norm(dim=2)
        self.query, self.keys = query / query.norm(dim=1)[:, None], augmented / lengths[:, :, None]
        self.scale = weight_std * query.norm(dim=1)[:, None] * lengths
        self.similarity = torch.einsum("nd,nid->ni", tokens.query, keys)
        self.weight = lengths / tokens.key_counts[:, None]
        if tokens.key_mask is not None:
            self.weight = self.weight * tokens.key_mask
        if homogeneous:
            self.weight = self.weight * self.scale


def _block(left: _Side, right: _Side, rows: slice, columns: slice, moment: _Moment) -> Tensor:
    """(rows, columns): the mean over pairs of keys."""
    a, b = left.keys[rows], right.keys[columns]
    products = (a.flatten(0, 1) @ b.flatten(0, 1).T).unflatten(1, b.shape[:2]).unflatten(0, a.shape[:2])
    queries = left.query[rows] @ right.query[columns].T
    # (rows, keys, columns, other keys), as the product of all keys has them.
    rho = queries[:, None, :, None] * products
    s, m, weight = (part[rows][:, :, None, None] for part in (left.scale, left.similarity, left.weight))
    t, n, other = (part[columns][None, None] for part in (right.scale, right.similarity, right.weight))
    value = moment(rho, s, t, m, n).mul_(products).mul_(other).sum(3)
    return value.mul_(weight[:, :, :, 0]).sum(1)


def _expanded(
    activation: Callable[[Tensor], Tensor], weight_std: float | int, rows: Tokens, columns: Tokens
) -> _Moment:
    """sum_k c_k^2 rho^k, which needs all scores to have one variance.

    What degrees above 100 hold is put at 101: exact at rho = 1, where it matters.
    """
    lengths = []
    for part in (rows, columns):
        scale = _Side(part, weight_std).scale
        lengths.append(scale.flatten() if part.key_mask is None else scale[part.key_mask])
    scales = torch.cat(lengths)
    scale = float(scales.mean())
    spread = float((scales - scale).abs().max())
    if spread > 1e-6 * scale:
        raise ValueError(
            f"this activation needs tokens of one length: scores have deviations from {float(scales.min()):.4g} to "
            f"{float(scales.max()):.4g}; only relu and exp have a closed form at several lengths"
        )
    phi = in_double(activation)
    try:
        expansion = hermite_expansion(lambda z: phi(scale * z), _DEGREE)
    except ValueError as error:
        raise ValueError(f"the activation must have a finite variance under N(0, {scale:.3g}^2): {error}") from error
    weights = [*expansion.coefficients.square().tolist(), expansion.tail]

    def moment(rho: Tensor, _s: Tensor, _t: Tensor, _m: Tensor, _n: Tensor) -> Tensor:
        value = torch.full_like(rho, weights[-1])
        for weight in reversed(weights[:-1]):
            value.mul_(rho).add_(weight)
        return value

    return moment


@dataclass(frozen=True)
class MLPKernel:
    """The kernel of `RandomFeatureMLP` of infinite width: |z| |z'| kappa_1(rho) / (2 dim z)."""

    def gram(self, tokens: Tokens, other: Tokens | None = None) -> Float[Tensor, "n m"]:
        """In float64; tokens must have equally many keys."""
        sides = [part.to(torch.float64) for part in (tokens, tokens if other is None else other)]
        z, w = (concatenated(part.query, part.keys, part.key_mask) for part in sides)
        if z.shape[1] != w.shape[1]:
            raise ValueError(
                f"both must have the same keys and dim, got inputs of length {z.shape[1]} and {w.shape[1]}"
            )
        scales = z.norm(dim=1)[:, None] * w.norm(dim=1)
        return arc_cosine((z @ w.T) / scales).mul_(scales).div_(2 * z.shape[1])


def rfa_kernel(
    query: Float[Tensor, "n dim"],
    keys: Float[Tensor, "n num_keys dim"],
    other_query: Float[Tensor, "m dim"],
    other_keys: Float[Tensor, "m other_keys dim"],
    *,
    key_mask: Bool[Tensor, "n num_keys"] | None = None,
    other_mask: Bool[Tensor, "m other_keys"] | None = None,
    weight_std: float | int = 0.5,
    bias: float | int = 0.0,
    activation: str | Callable[[Tensor], Tensor] = "relu",
) -> Float[Tensor, "n m"]:
    """K of Eq. (2) between two lists of examples; arguments and errors as for `RFAKernel`."""
    kernel = RFAKernel(weight_std, bias, activation)
    return kernel.gram(Tokens(query, keys, key_mask), Tokens(other_query, other_keys, other_mask))


def rfmlp_kernel(
    query: Float[Tensor, "n dim"],
    keys: Float[Tensor, "n num_keys dim"],
    other_query: Float[Tensor, "m dim"],
    other_keys: Float[Tensor, "m num_keys dim"],
) -> Float[Tensor, "n m"]:
    """The kernel of an infinitely wide random-feature MLP between two lists of examples."""
    return MLPKernel().gram(Tokens(query, keys), Tokens(other_query, other_keys))


class HeadError(NamedTuple):
    """How far finitely many heads are from infinitely many: |G - K| / |K| in Frobenius norm.

    Attributes:
        mean: over the draws; it falls like 1 / sqrt(M).
        std_error: of that mean.
    """

    mean: float
    std_error: float


def head_error(
    tokens: Tokens,
    num_heads: int,
    *,
    weight_std: float | int = 0.5,
    bias: float | int = 0.0,
    activation: str | Callable[[Tensor], Tensor] = "relu",
    draws: int = 5,
    seed: int = 0,
) -> HeadError:
    """The distance of a layer with your number of heads from its limit, on your tokens.

    Args:
        tokens: a few hundred examples are enough.
        num_heads: M.
        weight_std, bias, activation: as for `RFAKernel`.
        draws: how often the heads are drawn, at least 2.
        seed: of the draws.

    Raises:
        ValueError: if there are fewer than two draws; as for `RFAKernel`.
    """
    if draws < 2:
        raise ValueError(f"draws must be at least 2, for an error bar, got {draws}")
    limit = RFAKernel(weight_std, bias, activation).gram(tokens)
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(draws):
        layer = RandomFeatureAttention(
            tokens.dim, num_heads, weight_std=weight_std, bias=bias, activation=activation, generator=generator
        ).to(tokens.query.device)
        found.append(float((layer.gram(tokens) - limit).norm() / limit.norm()))
    return HeadError(float(np.mean(found)), float(np.std(found, ddof=1) / math.sqrt(draws)))
