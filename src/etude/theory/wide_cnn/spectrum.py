"""Spectra of kernel matrices, and how their exponent compares with theory.

Cagnetta, Favero & Wyart, ICML 2023, arXiv:2208.01003. The eigenvalues of K / n on n inputs tend to those of the kernel
as an integral operator, the larger ones first.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from etude.theory.wide_cnn.exponents import (
    NU,
    MeanInterval,
    PowerLaw,
    fit_power_law,
    mean_interval,
    predict_spectrum,
)
from etude.theory.wide_cnn.kernel import hierarchical_kernel
from etude.theory.wide_cnn.patches import check_filters, sample_multisphere

__all__ = ["SpectrumStudy", "check_kernel", "kernel_spectrum", "spectrum_study"]

_PSD = 1e-9
"""Eigenvalues of a kernel matrix are not below -1e-9 n in units of its mean diagonal."""


def check_kernel(K: Float[Tensor, "n m"], name: str = "K") -> Tensor:
    """A kernel matrix in float64, checked to be square, finite and symmetric.

    Raises:
        ValueError: if it is none of these; the message holds the largest asymmetry and the limit.
    """
    if K.ndim != 2 or K.shape[0] != K.shape[1] or len(K) == 0:
        raise ValueError(f"{name} must be a square matrix, got shape {tuple(K.shape)}")
    if not bool(torch.isfinite(K).all()):
        raise ValueError(f"{name} holds {int((~torch.isfinite(K)).sum())} values that are NaN or infinite")
    K = K.to(torch.float64)
    scale = float(K.diagonal().abs().mean())
    off = max((float((rows - columns.T).abs().max()) for rows, columns in _bands(K)), default=0.0)
    if off > 1e-8 * max(scale, 1e-300):
        raise ValueError(f"{name} must be symmetric: K and its transpose differ by {off:.3g}, limit {1e-8 * scale:.3g}")
    return K


def kernel_spectrum(K: Float[Tensor, "n n"]) -> Float[Tensor, "n"]:
    """Eigenvalues of K / n in decreasing order.

    Raises:
        ValueError: if K is not symmetric, or not positive semi-definite: an eigenvalue lies below -1e-9 n times the
            mean of the diagonal.
    """
    K = check_kernel(K)
    values = torch.linalg.eigvalsh(K).flip(0)
    limit = -_PSD * len(K) * float(K.diagonal().mean().abs())
    if float(values[-1]) < limit:
        raise ValueError(
            f"K is not positive semi-definite: its lowest eigenvalue is {float(values[-1]):.3g}, the limit for "
            f"{len(K)} points {limit:.3g}"
        )
    return values / len(K)


@dataclass(frozen=True)
class SpectrumStudy:
    """Spectra of several draws of the inputs.

    Attributes:
        eigenvalues: (seeds, n), in decreasing order.
        fits: the power law of each draw, over the ranks `ranks`.
        ranks: first and last rank fitted.
        exponent: over the draws.
        predicted: 1 + 2 nu / d_eff(L).
    """

    eigenvalues: Float[Tensor, "seeds n"]
    fits: tuple[PowerLaw, ...]
    ranks: tuple[int, int]
    exponent: MeanInterval
    predicted: float


def spectrum_study(
    filter_sizes: Sequence[int],
    n: int = 1_500,
    seeds: int | Sequence[int] = 3,
    *,
    kind: str = "ntk",
    ranks: tuple[int, int] = (15, 250),
    progress: Callable[[int, int], None] | None = None,
) -> SpectrumStudy:
    """Measures the exponent of a network's spectrum on inputs of one meta-patch, beside the prediction.

        spectrum_study([2, 2])      # exponent 1.61 +- 0.002, predicted 1.5

    Args:
        filter_sizes: s_1, ..., s_L; the inputs have s_1 ... s_L coordinates.
        n: inputs drawn, at least the last rank. Memory is 16 n^2 bytes.
        seeds: a count, or the seeds of the draws.
        kind: "ntk" or "rfk".
        ranks: first and last rank fitted. Low ranks are not yet asymptotic, high ones feel the finite n.
        progress: called with the number of draws done and of all.

    Raises:
        ValueError: if n is below the last rank, or an argument is out of range.
    """
    sizes = check_filters(filter_sizes)
    listed = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not listed:
        raise ValueError("seeds must name at least one seed")
    if ranks[1] > n:
        raise ValueError(f"n must reach the last rank fitted, {ranks[1]}, got {n}")
    predicted = predict_spectrum(sizes, NU.get(kind, 0.5))
    spectra = []
    for done, seed in enumerate(listed):
        x = sample_multisphere(n, math.prod(sizes[1:]), sizes[0], torch.Generator().manual_seed(seed))
        spectra.append(kernel_spectrum(hierarchical_kernel(x, None, sizes, kind)))
        if progress is not None:
            progress(done + 1, len(listed))
    fits = tuple(fit_power_law(values, *ranks) for values in spectra)
    found = mean_interval([fit.exponent for fit in fits])
    return SpectrumStudy(torch.stack(spectra), fits, ranks, found, predicted)


def _bands(K: Tensor, size: int = 1_024) -> list[tuple[Tensor, Tensor]]:
    return [(K[i : i + size], K[:, i : i + size]) for i in range(0, len(K), size)]
