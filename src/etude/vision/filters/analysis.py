"""What filters are like: redundancy, separability, frequencies, and how much they resemble Gabor functions."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "GaborFit",
    "Redundancy",
    "filter_redundancy",
    "fit_gabor",
    "frequency_response",
    "gabor_share",
    "separability",
]


@dataclass(frozen=True)
class Redundancy:
    """How alike a layer's filters are.

    Attributes:
        mean_abs_cosine: mean |cosine| between two different filters, 0 (orthogonal) to 1 (all alike).
        effective_rank: exp(entropy of the singular values' shares), 1 to min(filters, entries of a filter).
    """

    mean_abs_cosine: float
    effective_rank: float


def filter_redundancy(weight: Tensor) -> Redundancy:
    """Redundancy of filters (num, ...), each seen as a vector; filters that are zero are left out.

    Raises:
        ValueError: if fewer than two filters are non-zero.
    """
    rows = weight.detach().double().flatten(1)
    rows = rows[rows.norm(dim=1) > 0]
    if len(rows) < 2:
        raise ValueError(f"redundancy needs at least two non-zero filters, got {len(rows)}")
    unit = rows / rows.norm(dim=1, keepdim=True)
    cosines = (unit @ unit.T).abs()
    mean = (cosines.sum() - cosines.diagonal().sum()) / (len(rows) * (len(rows) - 1))
    singular = torch.linalg.svdvals(rows)
    shares = singular / singular.sum()
    entropy = -(shares * shares.clamp_min(1e-300).log()).sum()
    return Redundancy(float(mean), float(entropy.exp()))


def separability(weight: Float[Tensor, "out in height width"]) -> Float[Tensor, "out in"]:
    """Share of each kernel's energy in the first term of its SVD: 1 if it is an outer product; 0 for a zero kernel."""
    energy = torch.linalg.svdvals(weight.detach().double()).square()
    return (energy[..., 0] / energy.sum(dim=-1).clamp_min(1e-300)).to(weight.dtype)


def frequency_response(weight: Float[Tensor, "out in height width"], n: int = 32) -> Float[Tensor, "out in n n"]:
    """Magnitude of the kernels' Fourier transforms at n x n frequencies, -1/2 to 1/2 cycles per pixel, 0 in the middle.

    Raises:
        ValueError: if n is smaller than the kernels.
    """
    if n < max(weight.shape[2:]):
        raise ValueError(f"n must be at least the kernel's side, {max(weight.shape[2:])}, got {n}")
    return torch.fft.fftshift(torch.fft.fft2(weight.detach(), s=(n, n)).abs(), dim=(-2, -1))


@dataclass(frozen=True)
class GaborFit:
    """Gabor functions fitted to filters, an entry for each.

    Attributes:
        orientation: in radians, 0 to pi.
        frequency: cycles per pixel.
        phase, sigma, gamma: as in `filter_bank("gabor")`; sigma in pixels.
        x, y: the centre's column and row from the middle of the kernel.
        r2: share of the filter's energy that the fit explains.
    """

    orientation: np.ndarray
    frequency: np.ndarray
    phase: np.ndarray
    sigma: np.ndarray
    gamma: np.ndarray
    x: np.ndarray
    y: np.ndarray
    r2: np.ndarray


def fit_gabor(weight: Tensor) -> GaborFit:
    """Least-squares Gabor fit of each filter, started at the peaks of its spectrum.

    The amplitudes of the even and the odd part and a constant are solved for exactly inside the search over the other
    six parameters. Filters with several channels are fitted by their channel of most energy.

    Args:
        weight: (num, channels, k, k), k at least 3.
    """
    from scipy.optimize import least_squares

    kernels = weight.detach().double()
    strongest = kernels.square().sum(dim=(2, 3)).argmax(dim=1)
    images = kernels[torch.arange(len(kernels)), strongest].numpy()
    side = images.shape[1]
    if side < 3 or images.shape[1] != images.shape[2]:
        raise ValueError(f"Gabor functions are fitted to square kernels of at least 3 pixels, got {images.shape[1:]}")
    axis = np.arange(side) - (side - 1) / 2
    x, y = np.meshgrid(axis, axis)
    low = np.array([0.01, -np.pi, 0.4, 0.2, -side / 2, -side / 2])
    high = np.array([0.71, 2 * np.pi, 2.0 * side, 5.0, side / 2, side / 2])

    def parts(p: np.ndarray) -> np.ndarray:
        frequency, theta, sigma, gamma, cx, cy = p
        along = (x - cx) * np.cos(theta) + (y - cy) * np.sin(theta)
        across = -(x - cx) * np.sin(theta) + (y - cy) * np.cos(theta)
        envelope = np.exp(-(along**2 + (gamma * across) ** 2) / (2 * sigma**2))
        turn = 2 * np.pi * frequency * along
        return np.stack([envelope * np.cos(turn), envelope * np.sin(turn), np.ones_like(x)], axis=-1).reshape(-1, 3)

    def solved(p: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        basis = parts(p)
        amplitudes = np.linalg.lstsq(basis, target, rcond=None)[0]
        return amplitudes, basis @ amplitudes - target

    rows = []
    for image in images:
        norm = np.linalg.norm(image - image.mean())
        if norm == 0:
            rows.append([np.nan] * 7 + [0.0])
            continue
        target = ((image - image.mean()) / norm).ravel()
        best = None
        for frequency, theta in _spectral_peaks(target.reshape(side, side)):
            for sigma in (side / 6, side / 3):
                start = np.clip([frequency, theta, sigma, 0.8, 0.0, 0.0], low + 1e-6, high - 1e-6)
                found = least_squares(
                    lambda p, target=target: solved(p, target)[1], start, bounds=(low, high), max_nfev=60
                )
                if best is None or found.cost < best.cost:
                    best = found
        assert best is not None
        frequency, theta, sigma, gamma, cx, cy = best.x
        (even, odd, _), rest = solved(best.x, target)
        phase = np.arctan2(-odd, even)
        if not 0 <= theta % (2 * np.pi) < np.pi:
            phase = -phase
        rows.append([theta % np.pi, frequency, phase, sigma, gamma, cx, cy, 1 - float(rest @ rest)])
    columns = np.asarray(rows).T
    return GaborFit(*columns)


def _spectral_peaks(image: np.ndarray, count: int = 2) -> list[tuple[float, float]]:
    """(frequency, orientation) of the strongest frequencies of half the plane."""
    n = 32
    spectrum = np.abs(np.fft.fft2(image, s=(n, n)))
    rates = np.fft.fftfreq(n)
    down, across = np.meshgrid(rates, rates, indexing="ij")
    spectrum[(down < 0) | ((down == 0) & (across <= 0))] = 0
    peaks = []
    for _ in range(count):
        row, column = np.unravel_index(spectrum.argmax(), spectrum.shape)
        peaks.append((float(np.hypot(rates[row], rates[column])), float(np.arctan2(rates[row], rates[column]))))
        spectrum[np.hypot(down - rates[row], across - rates[column]) < 0.15] = 0
    return peaks


def gabor_share(weight: Tensor, r2: float | int = 0.8) -> float:
    """Share of filters of which a Gabor function explains at least `r2` of the energy about the mean."""
    if not 0 < r2 < 1:
        raise ValueError(f"r2 must lie in (0, 1), got {r2}")
    return float((fit_gabor(weight).r2 >= r2).mean())
