"""Which receptive field an eigenvalue belongs to: the kernel's own spectrum by sectors, and that of measured vectors.

Cagnetta, Favero & Wyart, ICML 2023, arXiv:2208.01003. On independent patches, each uniform on its sphere S^(s - 1), a
kernel that depends on the inner products t_i of the patches alone has products of spherical harmonics for
eigenfunctions, one degree k_i for each patch, and by the Funk-Hecke formula the eigenvalues

    Lambda_k = E[ K(t) prod_i P_k_i(t_i) ],  t_i ~ (1 - t^2)^((s - 3) / 2),  P_k Gegenbauer, P_k(1) = 1      (1)

with multiplicity prod_i N(s, k_i). For s = 2 patches are circles, P_k(cos a) = cos(k a), and N = 2 but for k = 0. The
expectations over the patches with k_i = 0 make the kernel's projection on functions of the others. A mode is in the
sector of the smallest meta-patch outside of which all k_i are 0: level 1 for one patch, ..., L; 0 is the constant.

For an eigenvector of a kernel matrix, or any function of the inputs, the shares of its variance are

    V_S = Var E[f | x_S] = Cov(f(x), f(x')),   x' shares the meta-patch S with x, all else drawn anew        (2)

and sector l has sum_S V_S over its meta-patches, less that over those of level l - 1.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import eval_chebyt, eval_gegenbauer, roots_chebyt, roots_gegenbauer
from torch import Tensor

from etude.nn.gaussian import Estimate
from etude.theory.wide_cnn.exponents import NU, PowerLaw, fit_power_law, predict_spectrum
from etude.theory.wide_cnn.kernel import add_layer, hierarchical_kernel
from etude.theory.wide_cnn.patches import check_filters, effective_dimensions
from etude.theory.wide_cnn.spectrum import kernel_spectrum

__all__ = ["SectorSpectrum", "sector_shares", "sector_spectrum"]

_MAX_NODES = 2**23
"""Nodes of the quadrature, 64 MB an array: 48 for each of four patches, and more for fewer."""


@dataclass(frozen=True)
class SectorSpectrum:
    """Eigenvalues of a hierarchical kernel by sectors, Eq. (1).

    Attributes:
        degrees: (modes, patches), the k_i within one meta-patch of level L.
        eigenvalues: (modes,).
        multiplicities: (modes,): functions that share the eigenvalue, those of all `top` meta-patches counted.
        levels: (modes,), 0..L.
        filter_sizes, kind, top: of the kernel.
    """

    degrees: Int[Tensor, "modes patches"]
    eigenvalues: Float[Tensor, "modes"]
    multiplicities: Float[Tensor, "modes"]
    levels: Int[Tensor, "modes"]
    filter_sizes: tuple[int, ...]
    kind: str
    top: int

    @property
    def trace(self) -> Float[Tensor, "sectors"]:
        """What each sector, 0..L, contributes to K(x, x); the modes of higher degree are missing from the sum."""
        weight = self.eigenvalues * self.multiplicities
        return torch.zeros(len(self.filter_sizes) + 1, dtype=torch.float64).index_add_(0, self.levels, weight)

    @property
    def missing(self) -> float:
        """The share of K(x, x) that lies in degrees above those computed."""
        total = 1.0 if self.kind == "rfk" else len(self.filter_sizes) + 1.0
        return 1 - float(self.trace.sum()) / total

    def ranked(self, level: int | None = None, count: int = 1_000) -> Float[Tensor, "count"]:
        """The `count` largest eigenvalues, each as often as its multiplicity says; of one sector, or of all.

        Raises:
            ValueError: if `level` is not one of 0..L.
        """
        if level is not None and not 0 <= level <= len(self.filter_sizes):
            raise ValueError(f"level must lie in 0..{len(self.filter_sizes)}, got {level}")
        chosen = torch.ones_like(self.levels, dtype=torch.bool) if level is None else self.levels == level
        values, order = self.eigenvalues[chosen].sort(descending=True)
        times = self.multiplicities[chosen][order].clamp(max=count).long()
        enough = int((times.cumsum(0) < count).sum()) + 1
        return values[:enough].repeat_interleave(times[:enough])[:count]

    def of_one_patch(self, patch: int = 0) -> Float[Tensor, "degree"]:
        """Lambda_k of the modes of one patch alone, k = 0, 1, ...: in a deep network a part of sector 1."""
        if not 0 <= patch < self.degrees.shape[1]:
            raise ValueError(f"patch must lie in 0..{self.degrees.shape[1] - 1}, got {patch}")
        others = torch.arange(self.degrees.shape[1]) != patch
        return self.eigenvalues[(self.degrees[:, others] == 0).all(dim=1)]

    def fit(self, level: int | None = None, lo: int = 15, hi: int = 250) -> PowerLaw:
        """The power law of the ranks lo..hi of one sector, or of all."""
        return fit_power_law(self.ranked(level, hi), lo, hi)

    def predicted(self, level: int | None = None) -> float:
        """What `fit` should find: 1 + 2 nu / d_eff(level)."""
        return predict_spectrum(self.filter_sizes, NU[self.kind], level=level)


def sector_spectrum(
    filter_sizes: Sequence[int], kind: str = "ntk", *, top: int = 1, degree: int | Sequence[int] | None = None
) -> SectorSpectrum:
    """The spectrum of a hierarchical kernel on multisphere inputs, each eigenvalue with its sector, Eq. (1).

        spectrum = sector_spectrum([2, 2, 2])
        spectrum.trace                                  # variance by receptive field
        spectrum.fit(level=2), spectrum.predicted(2)    # exponents measured and foretold
        sector_spectrum([2, 2, 2], degree=[256, 8, 8, 8]).of_one_patch()     # one sector to high degrees

    By Gauss quadrature with two nodes for each degree. The kernel has a kink at t = 1, so that eigenvalues of the
    highest degrees are a few tenths too large; those of low degree are right to (k / 2 degree)^(1 + 2 nu).

    Args:
        filter_sizes: s_1, ..., s_L.
        kind: "ntk" or "rfk".
        top: p, the meta-patches of level L that the readout averages.
        degree: k_i < degree, for all patches of a meta-patch or for each; None for as many as 2^23 nodes allow, and 256
            at most.

    Raises:
        ValueError: if s_1 < 2, a degree is below 2, or there are more than 2^23 nodes: then `sector_shares` goes.
    """
    sizes = check_filters(filter_sizes)
    effective_dimensions(sizes)
    if kind not in NU:
        raise ValueError(f'kind must be "ntk" or "rfk", got {kind!r}')
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}")
    patches = math.prod(sizes[1:])
    most = min(math.floor(_MAX_NODES ** (1 / patches) + 1e-9) // 2, 256)
    degrees = [most if degree is None else degree] * patches if isinstance(degree, int | None) else list(degree)
    if len(degrees) != patches:
        raise ValueError(f"degree must be one number or one for each of {patches} patches, got {degrees}")
    if min(degrees) < 2 or 2**patches * math.prod(degrees) > _MAX_NODES:
        raise ValueError(
            f"degrees must be at least 2, and twice the degrees of {patches} patches have a product of at most "
            f"{_MAX_NODES:,} nodes (one degree of 2..{most} for all); got {degrees}. sector_shares has no such limit"
        )
    rules = {each: _quadrature(sizes[0], each) for each in set(degrees)}
    values = _on_grid(sizes, kind, [rules[each][1] for each in degrees])
    for each in degrees:
        # The first axis is contracted and goes last: in the end all are in order.
        values = torch.tensordot(values, rules[each][0], dims=([0], [1]))
    modes = torch.cartesian_prod(*[torch.arange(each) for each in degrees]).reshape(-1, patches)
    levels = _levels(modes > 0, sizes)
    shared = torch.where(levels > 0, top, 1)
    times = rules[max(degrees)][2][modes].prod(dim=1) * shared
    return SectorSpectrum(modes, values.flatten() / shared, times, levels, sizes, kind, top)


def sector_shares(
    x: Float[Tensor, "n inputs"],
    filter_sizes: Sequence[int],
    kind: str = "ntk",
    *,
    count: int = 20,
    draws: int = 2_000,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, "count"], Estimate]:
    """Attributes the leading eigenvectors of a kernel matrix on the user's inputs to sectors, Eq. (2).

        values, shares = sector_shares(x, [2, 2, 2])
        shares.value[3]     # of the fourth eigenvector: parts of its variance in sectors 1, 2, 3

    Eigenvectors are continued to new inputs by Nystroem's formula. New inputs come from the given ones, every
    first patch from a row of its own: patches are taken as independent, which dependent data only are in this average.

    Args:
        x: float64 (n, d).
        filter_sizes: s_1, ..., s_L; their product divides d.
        kind: "ntk" or "rfk".
        count: eigenvectors, at most n.
        draws: pairs of new inputs for the covariances.
        generator: of the draws.

    Returns:
        Eigenvalues of K / n, and shares (count, L) of the variance with their standard errors. For p > 1 trees the
        rows sum to 1 within the error, as no kernel of this kind has a part that lives on several trees.

    Raises:
        ValueError: if `count` or `draws` is out of range, or an eigenvalue of the first `count` is not positive.
    """
    sizes = check_filters(filter_sizes)
    if not 1 <= count <= len(x):
        raise ValueError(f"count must lie in 1..{len(x)}, got {count}")
    if draws < 2:
        raise ValueError(f"draws must be at least 2, for an error, got {draws}")
    K = hierarchical_kernel(x, None, sizes, kind)
    kernel_spectrum(K)
    values, vectors = torch.linalg.eigh(K)
    values, vectors = values.flip(0)[:count], vectors.flip(1)[:, :count]
    if float(values[-1]) <= 1e-13 * float(values[0]):
        raise ValueError(f"eigenvalue {count} is {float(values[-1]):.3g} and rounding: lower count")
    weights = vectors / values * math.sqrt(len(x))

    def functions(inputs: Tensor) -> Tensor:
        return hierarchical_kernel(inputs, x, sizes, kind) @ weights

    first, second = (_redrawn(x, sizes[0], draws, generator) for _ in range(2))
    base = functions(first)
    centre = base.mean(0)
    base = base - centre
    variance = base.square().mean(0)
    below = torch.zeros_like(base)
    found, errors = [], []
    for level in range(1, len(sizes) + 1):
        sharing = _covariances(functions, base, centre, first, second, math.prod(sizes[:level]))
        part = (sharing - below) / variance
        found.append(part.mean(0))
        errors.append(part.std(0) / math.sqrt(draws))
        below = sharing
    return values / len(x), Estimate(torch.stack(found, 1), torch.stack(errors, 1))


def _covariances(
    functions: Callable[[Tensor], Tensor], base: Tensor, centre: Tensor, first: Tensor, second: Tensor, size: int
) -> Tensor:
    """f(x) f(x') summed over the meta-patches of `size` inputs that x' shares with x, one row a draw."""
    total = torch.zeros_like(base)
    for start in range(0, first.shape[1], size):
        if size == first.shape[1]:
            return base.square()
        mixed = second.clone()
        mixed[:, start : start + size] = first[:, start : start + size]
        total += base * (functions(mixed) - centre)
    return total


def _redrawn(x: Tensor, patch: int, draws: int, generator: torch.Generator | None) -> Tensor:
    patches = x.unflatten(1, (-1, patch))
    rows = torch.randint(len(x), (draws, patches.shape[1]), generator=generator).to(x.device)
    return patches[rows, torch.arange(patches.shape[1], device=x.device)].flatten(1)


def _quadrature(patch: int, degree: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights x Gegenbauer polynomials (degree, nodes), 1 - nodes, and N(s, k)."""
    nodes = 2 * degree
    order = np.arange(degree)
    if patch == 2:
        at, weights = roots_chebyt(nodes)
        polynomials = eval_chebyt(order[:, None], at)
        times = np.where(order == 0, 1.0, 2.0)
    else:
        alpha = (patch - 2) / 2
        at, weights = roots_gegenbauer(nodes, alpha)
        polynomials = eval_gegenbauer(order[:, None], alpha, at) / eval_gegenbauer(order, alpha, 1.0)[:, None]
        times = np.array([1.0] + [(2 * k + patch - 2) / k * math.comb(k + patch - 3, k - 1) for k in range(1, degree)])
    transform = torch.from_numpy(polynomials * (weights / weights.sum()))
    return transform, torch.from_numpy(1 - at), torch.from_numpy(times)


def _on_grid(sizes: Sequence[int], kind: str, leaves: Sequence[Tensor]) -> Tensor:
    """The kernel of one meta-patch on the grid of its patches' inner products, one axis a patch.

    A node is computed on the grid of its own patches only, so that the last layer alone takes the whole grid.
    """
    nodes = [(e, 1 - e) for e in leaves]
    for size in (*sizes[1:], 1):
        passed = []
        for e, t in nodes:
            inner, kept = torch.empty_like(e), torch.empty_like(t)
            add_layer(e, t, inner, kept, torch.empty(3, *e.shape, dtype=torch.float64), first=True)
            passed.append((inner, kept))
        nodes = []
        for start in range(0, len(passed), size):
            e, t = (_outer_mean(parts) for parts in zip(*passed[start : start + size]))
            nodes.append((e, t + 1 - e))
    ((e, t),) = nodes
    return t if kind == "ntk" else 1 - e


def _outer_mean(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total.reshape(*total.shape, *[1] * part.ndim) + part
    return total / len(parts)


def _levels(active: Tensor, sizes: Sequence[int]) -> Tensor:
    """The level of the smallest meta-patch that holds all active patches; 0 where none is."""
    found = torch.zeros(len(active), dtype=torch.long)
    width = 1
    for level, size in enumerate((*sizes[1:], 1)):
        touched = active.unflatten(1, (-1, width)).any(dim=2).sum(dim=1)
        if level == 0:
            found[touched > 0] = 1
        found[touched > 1] = level + 2
        width *= size
    return found
