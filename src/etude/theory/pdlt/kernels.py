"""Kernels of infinitely wide networks at every depth: of signals (NNGP) and of gradients (NTK).

Roberts, Yaida & Hanin, "The Principles of Deep Learning Theory", arXiv:2106.10165, chapters 4, 5 and 8. For inputs a, b

    K_1 = C_b + C_W x_a . x_b / n_0,              K+ = C_b + C_W <sigma_a sigma_b>                           (1)
    Theta_1 = lambda_b + lambda_W x_a . x_b / n_0, Theta+ = lambda_b + lambda_W <sigma_a sigma_b>
                                                           + C_W <sigma'_a sigma'_b> Theta                   (2)

Everything is float64, on the CPU. The variances of the inputs go through all layers first; then the kernel goes through
them block by block, in parts that stay in the cache, so that no memory is needed beside the result. Of a symmetric
kernel one half is computed.

A nearby pair x_+, x_- is read in the basis of its midpoint, whose middle entry grows by chi_par a layer and last by
chi_perp (`criticality.susceptibilities`):

    K_++ = K_[0] + K_[1] + K_[2],  K_-- = K_[0] - K_[1] + K_[2],  K_+- = K_[0] - K_[2]                      (3)
"""

import math
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from etude.theory.pdlt.activations import Activation, as_activation
from etude.theory.pdlt.flow import check_variances
from etude.theory.pdlt.pairs import PairAverages, Rows, pair_averages

__all__ = ["KernelLayers", "NTKLayers", "PairBasis", "kernel_recursion", "ntk_recursion", "pair_basis"]

_BLOCK = 1 << 15
"""Pairs worked on at a time: 256 kB an array."""

Keep = Literal["all", "last"]


class KernelLayers(NamedTuple):
    """K of each layer and, for each, a bound on the numerical error of its entries, carried on by chi_perp."""

    value: Float[Tensor, "layers n m"]
    error: Float[Tensor, "layers"]


class NTKLayers(NamedTuple):
    """Theta and K of each layer, and bounds on the numerical error of their entries."""

    value: Float[Tensor, "layers n m"]
    error: Float[Tensor, "layers"]
    kernel: Float[Tensor, "kernels n m"]
    kernel_error: Float[Tensor, "layers"]


class PairBasis(NamedTuple):
    """Of a pair: K_[0] of its midpoint, K_[1] of the difference of sizes, K_[2] of that of angles, Eq. (3)."""

    midpoint: Float[Tensor, "*layers"]
    size: Float[Tensor, "*layers"]
    angle: Float[Tensor, "*layers"]


def pair_basis(kernel: Float[Tensor, "*layers 2 2"]) -> PairBasis:
    """The kernel of two inputs in the basis of Eq. (3), layer by layer."""
    plus, minus, mixed = kernel[..., 0, 0], kernel[..., 1, 1], kernel[..., 0, 1]
    both = plus + minus
    return PairBasis((both + 2 * mixed) / 4, (plus - minus) / 2, (both - 2 * mixed) / 4)


def kernel_recursion(
    activation: Activation | Callable[[Tensor], Tensor],
    C_b: float | int,
    C_W: float | int,
    X: Float[Tensor, "n features"] | None,
    depth: int,
    *,
    other: Float[Tensor, "m features"] | None = None,
    K1: Float[Tensor, "p p"] | None = None,
    keep: Keep = "all",
    tol: float = 1e-8,
) -> KernelLayers:
    """K of Eq. (1) at layers 1..depth.

        kernel_recursion(torch.relu, 0.0, 2.0, X, depth=5).value[-1]      # (n, n)

    Args:
        activation: elementwise function or module, or an `Activation`. ReLU, leaky ReLU, abs and all others with two
            slopes, erf, GELU, sin and cos have closed forms.
        C_b, C_W: variance of a bias, and of a weight times its fan-in.
        X: inputs, or None with K1.
        depth: of the last layer, at least 1.
        other: further inputs; the kernel is then of `X` with `other`, not symmetric.
        K1: the first layer's kernel in place of X, positive semi-definite.
        keep: "all" layers, or the "last" only.
        tol: error of an average relative to <sigma^2> that is aimed at, where there is no closed form.

    Raises:
        ValueError: if inputs are not finite, an input has no signal (K = 0), K1 is not positive semi-definite, or an
            average diverges or the kernel overflows.
    """
    run = _prepare(activation, C_b, C_W, X, depth, other, K1, tol)
    kernel, _, error, _ = _all_blocks(run, depth, keep, None)
    return KernelLayers(kernel, error)


def ntk_recursion(
    activation: Activation | Callable[[Tensor], Tensor],
    C_b: float | int,
    C_W: float | int,
    X: Float[Tensor, "n features"] | None,
    depth: int,
    *,
    lambda_b: float | int = 1.0,
    lambda_W: float | int = 1.0,
    other: Float[Tensor, "m features"] | None = None,
    K1: Float[Tensor, "p p"] | None = None,
    Theta1: Float[Tensor, "p p"] | None = None,
    keep: Keep = "all",
    with_kernel: bool = True,
    tol: float = 1e-8,
) -> NTKLayers:
    """Theta of Eq. (2), and K, at layers 1..depth.

        ntk_recursion(torch.nn.GELU(), 0.17, 1.98, X, depth=5, keep="last").value[-1]

    Args:
        activation, C_b, C_W, X, depth, other, K1, keep, tol: as for `kernel_recursion`.
        lambda_b, lambda_W: learning rate of a bias, and of a weight times its fan-in. (With lambda_b = C_b and
            lambda_W = C_W this is the NTK of the parameterisation with 1 / sqrt(n) in the module.)
        Theta1: the first layer's NTK, where K1 is given.
        with_kernel: return K as well; without, `kernel` is empty and its memory saved.

    Raises:
        ValueError: as for `kernel_recursion`; if the activation jumps; if K1 comes without Theta1 or the reverse.
    """
    if (K1 is None) != (Theta1 is None):
        raise ValueError("K1 and Theta1 belong together: give both, or X")
    for name, rate in (("lambda_b", lambda_b), ("lambda_W", lambda_W)):
        if not (math.isfinite(rate) and rate >= 0):
            raise ValueError(f"{name} must be finite and not negative, got {rate}")
    run = _prepare(activation, C_b, C_W, X, depth, other, K1, tol)
    run.act.require_slope()
    if Theta1 is not None and tuple(Theta1.shape) != run.shape:
        raise ValueError(f"Theta1 must have the shape of K1, {run.shape}, got {tuple(Theta1.shape)}")
    start: Tensor | tuple[float, float] = (float(lambda_b), float(lambda_W))
    if Theta1 is not None:
        start = Theta1.detach().to("cpu", torch.float64)
        largest = float(start.abs().max())
    else:
        largest = float(lambda_b) + float(lambda_W) * max(
            float(rows.square().mean(1).max()) for rows in (run.x, run.y) if rows is not None
        )
    run = run._replace(largest_ntk=largest)
    rates = (start, float(lambda_b), float(lambda_W))
    kernel, ntk, error, ntk_error = _all_blocks(run, depth, keep, rates, with_kernel=with_kernel)
    assert ntk is not None
    return NTKLayers(ntk, ntk_error, kernel, error)


class _Run(NamedTuple):
    """A recursion made ready, of inputs x and y, or of a given K1."""

    act: Activation
    pairs: PairAverages
    C_b: float
    C_W: float
    x: Tensor | None
    y: Tensor | None
    K1: Tensor | None
    shape: tuple[int, int]
    symmetric: bool
    largest_ntk: float
    left: list[Rows]
    right: list[Rows]
    singles: list[tuple[Tensor, Tensor]]
    largest: list[tuple[float, float]]


Start = tuple[Tensor | tuple[float, float], float, float]


def _prepare(
    activation: Activation | Callable[[Tensor], Tensor],
    C_b: float | int,
    C_W: float | int,
    X: Tensor | None,
    depth: int,
    other: Tensor | None,
    K1: Tensor | None,
    tol: float,
) -> _Run:
    check_variances(C_b, C_W)
    if depth < 1:
        raise ValueError(f"depth counts layers and must be at least 1, got {depth}")
    if not 1e-12 <= tol < 1:
        raise ValueError(f"tol must lie in [1e-12, 1), got {tol:g}")
    act = as_activation(activation)
    pairs = pair_averages(act, tol)
    if (X is None) == (K1 is None):
        raise ValueError(
            "give either inputs X or the first layer's kernel K1, got " + ("neither" if X is None else "both")
        )
    x = y = None
    if X is not None:
        x, y = (_rows(name, data) for name, data in (("X", X), ("other", X if other is None else other)))
        if x.shape[1] != y.shape[1]:
            raise ValueError(f"X and other must have as many columns, got {x.shape[1]} and {y.shape[1]}")
        sizes = [C_b + C_W * rows.square().mean(1) for rows in (x, y)]
    else:
        assert K1 is not None
        if other is not None:
            raise ValueError("other goes with X; a given K1 is the whole kernel")
        K1 = _positive(K1.detach().to("cpu", torch.float64))
        sizes = [K1.diagonal().clone()] * 2
    for name, size in zip(("X" if X is not None else "K1", "other"), sizes):
        if not bool((size > 0).all()):
            raise ValueError(f"row {int((size <= 0).nonzero()[0])} of {name} has no signal: K = 0 at the first layer")
    symmetric = other is None
    left, singles = _through(pairs, sizes[0], C_b, C_W, depth)
    right = left if symmetric else _through(pairs, sizes[1], C_b, C_W, depth)[0]
    largest = [(float(g.max()), float(h.max())) for g, h in singles]
    shape = (len(sizes[0]), len(sizes[1]))
    return _Run(act, pairs, float(C_b), float(C_W), x, y, K1, shape, symmetric, 0.0, left, right, singles, largest)


def _rows(name: str, data: Tensor) -> Tensor:
    if data.ndim != 2 or not data.shape[1]:
        raise ValueError(f"{name} must have shape (n, features), got {tuple(data.shape)}")
    data = data.detach().to("cpu", torch.float64)
    if not bool(torch.isfinite(data).all()):
        raise ValueError(f"{name} must be finite; row {int((~torch.isfinite(data)).any(1).nonzero()[0])} is not")
    return data


def _positive(K1: Tensor) -> Tensor:
    if K1.ndim != 2 or K1.shape[0] != K1.shape[1]:
        raise ValueError(f"K1 must be a square kernel, got shape {tuple(K1.shape)}")
    if not bool(torch.isfinite(K1).all()):
        raise ValueError("K1 must be finite")
    scale = float(K1.abs().max())
    if float((K1 - K1.T).abs().max()) > 1e-8 * scale:
        raise ValueError(f"K1 must be symmetric; it differs from its transpose by {float((K1 - K1.T).abs().max()):.3g}")
    least = float(torch.linalg.eigvalsh(K1)[0])
    if least < -1e-8 * scale:
        raise ValueError(f"K1 must be positive semi-definite; its least eigenvalue is {least:.6g}")
    return K1


def _through(
    pairs: PairAverages, K: Tensor, C_b: float, C_W: float, depth: int
) -> tuple[list[Rows], list[tuple[Tensor, Tensor]]]:
    """What pairs need of each input at layers 1..depth-1, and <sigma^2> and <sigma'^2> there."""
    tables, singles = [], []
    for layer in range(1, depth):
        tables.append(pairs.rows(K))
        singles.append(pairs.single(K))
        K = C_b + C_W * singles[-1][0]
        if not bool(torch.isfinite(K).all()) or bool((K > 1e150).any()):
            raise ValueError(f"the kernel explodes: K = {float(K.max()):g} at layer {layer + 1}")
        if not bool((K > 0).all()):
            raise ValueError(f"the kernel vanishes: K = {float(K.min()):g} at layer {layer + 1}")
    return tables, singles


def _all_blocks(
    run: _Run, depth: int, keep: Keep, ntk: Start | None, *, with_kernel: bool = True
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    if keep not in ("all", "last"):
        raise ValueError(f"keep must be 'all' or 'last', got {keep!r}")
    n, m = run.shape
    kept = range(depth) if keep == "all" else range(depth - 1, depth)
    kernel = torch.empty(len(kept) if with_kernel else 0, n, m, dtype=torch.float64)
    tangent = torch.empty(len(kept), n, m, dtype=torch.float64) if ntk is not None else None
    errors = torch.zeros(depth, dtype=torch.float64)
    ntk_errors = torch.zeros(depth, dtype=torch.float64)
    for rows, columns in _tiles(n, m, run.symmetric):
        worst, worst_ntk = 0.0, 0.0
        for layer, (K, theta, error, ntk_error) in enumerate(_one_block(run, rows, columns, depth, ntk)):
            worst, worst_ntk = max(worst, error), max(worst_ntk, ntk_error)
            errors[layer] = max(float(errors[layer]), error)
            ntk_errors[layer] = max(float(ntk_errors[layer]), ntk_error)
            if layer in kept:
                for out, part in ((kernel, K), (tangent, theta)):
                    if out is None or part is None or not len(out):
                        continue
                    if run.symmetric and rows == columns:
                        part = part.triu() + part.triu(1).T
                    out[layer - kept.start, rows, columns] = part
                    if run.symmetric and rows != columns:
                        out[layer - kept.start, columns, rows] = part.T
    return kernel, tangent, errors[kept.start :], ntk_errors[kept.start :]


def _tiles(n: int, m: int, symmetric: bool) -> Iterator[tuple[slice, slice]]:
    """Parts of a kernel; of a symmetric one those on and above the diagonal."""
    if not symmetric:
        wide = min(m, _BLOCK)
        tall = max(_BLOCK // max(wide, 1), 1)
        for i in range(0, n, tall):
            for j in range(0, m, wide):
                yield slice(i, min(i + tall, n)), slice(j, min(j + wide, m))
        return
    side = math.isqrt(_BLOCK)
    for i in range(0, n, side):
        # Wider parts would be cheaper to call, but mirror badly.
        for j in range(i, n, side):
            yield slice(i, min(i + side, n)), slice(j, min(j + side, n))


def _one_block(
    run: _Run, rows: slice, columns: slice, depth: int, ntk: Start | None
) -> Iterator[tuple[Tensor, Tensor | None, float, float]]:
    """K and Theta of a part of the kernel at layers 1..depth, with bounds on their errors; the next layer's are written
    over the last one's."""
    C_b, C_W = run.C_b, run.C_W
    theta = None
    start, lambda_b, lambda_W = ntk if ntk is not None else (None, 0.0, 0.0)
    if run.x is not None and run.y is not None:
        inner = (run.x[rows] @ run.y[columns].T).div_(run.x.shape[1])
        K = (inner * C_W).add_(C_b)
        theta = inner.mul_(start[1]).add_(start[0]) if isinstance(start, tuple) else None
    else:
        assert run.K1 is not None
        K = run.K1[rows, columns].clone()
        theta = start[rows, columns].clone() if isinstance(start, Tensor) else None
    error = ntk_error = 0.0
    size = 0.0 if theta is None else run.largest_ntk
    yield K, theta, error, ntk_error
    diagonal = run.symmetric and rows == columns
    for layer in range(depth - 1):
        a, b = run.left[layer].at(rows), run.right[layer].at(columns)
        value, slope, value_error, slope_error = run.pairs.block(K, a, b, ntk is not None)
        if diagonal:
            # A row with itself is known better than from its correlation of 1.
            own = [part[rows] for part in run.singles[layer]]
            value.diagonal().copy_(own[0])
            if slope is not None:
                slope.diagonal().copy_(own[1])
        gain = C_W * run.largest[layer][1]
        if theta is not None and slope is not None:
            ntk_error = lambda_W * (value_error + gain / C_W * error) + C_W * slope_error * size + gain * ntk_error
            size = lambda_b + lambda_W * run.largest[layer][0] + gain * size
        error = C_W * value_error + gain * error
        K = value.mul_(C_W).add_(C_b)
        if theta is not None and slope is not None:
            # lambda_b + lambda_W <sigma_a sigma_b> from K; with lambda = C it is K.
            same = lambda_W == C_W and lambda_b == C_b
            base = K if same else (K * (lambda_W / C_W)).add_(lambda_b - lambda_W * C_b / C_W)
            theta = torch.addcmul(base, slope, theta, value=C_W, out=theta)
        yield K, theta, error, ntk_error
