"""Spherical harmonic transforms on a Gaussian grid: FFT along the circles, Legendre quadrature across them.

With the harmonics normalised so that the mean of |Y_lm|^2 over the sphere is 1,

    f(lambda, mu) = sum_{m = -T}^{T} sum_{l = |m|}^{T} f_lm P_lm(mu) exp(i m lambda),   mu = sin(latitude)

and the coefficients of a real field at m >= 0 say all. On nlat >= (3 T + 1) / 2 rows and nlon >= 3 T + 1 columns
products of two fields are transformed without aliasing. Everything is float64.
"""

import numpy as np
import torch
from jaxtyping import Complex128, Float, Float64
from torch import Tensor

__all__ = ["SphericalTransform"]


def _legendre(truncation: int, mu: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """P_lm(mu) and H_lm = (1 - mu^2) dP_lm / dmu, both (m, rows, l), by the stable recurrence in l."""
    size = truncation + 1
    # One degree more than the truncation, which H needs.
    p = np.zeros((size, len(mu), size + 1))
    m = np.arange(size)
    sectoral = np.ones_like(mu)
    for order in range(size):
        p[order, :, order] = sectoral
        sectoral = sectoral * np.sqrt((2 * order + 3) / (2 * order + 2)) * np.sqrt(1 - mu**2)
    degree = np.arange(size + 2)
    with np.errstate(invalid="ignore"):
        epsilon = np.sqrt((degree[None] ** 2 - m[:, None] ** 2) / (4 * degree[None] ** 2 - 1))
    epsilon = np.where(degree[None] > m[:, None], epsilon, 0.0)
    for order in range(size):
        p[order, :, order + 1] = mu * p[order, :, order] / epsilon[order, order + 1]
        for l in range(order + 2, size + 1):  # noqa: E741
            below = mu * p[order, :, l - 1] - epsilon[order, l - 1] * p[order, :, l - 2]
            p[order, :, l] = below / epsilon[order, l]
    lower = np.concatenate([np.zeros_like(p[..., :1]), p[..., : size - 1]], axis=-1)
    h = (degree[1 : size + 1] * epsilon[:, None, :size]) * lower
    h = h - (degree[:size] * epsilon[:, None, 1 : size + 1]) * p[..., 1:]
    return p[..., :size], h


class SphericalTransform:
    """Between fields (..., nlat, nlon) and coefficients (..., l, m), triangular truncation.

        transform = SphericalTransform(32, 64, truncation=21)
        coefficients = transform.forward(field)

    Args:
        nlat, nlon: the Gaussian grid, from north to south and from longitude 0 to the east.
        truncation: T, the highest degree.
        device: where the tables lie.

    Raises:
        ValueError: if the grid is too coarse to hold the truncation.
    """

    def __init__(self, nlat: int, nlon: int, truncation: int, device: torch.device | str = "cpu"):
        if truncation < 1 or nlat < truncation + 1 or nlon < 2 * truncation + 1:
            raise ValueError(
                f"truncation {truncation} needs at least {truncation + 1} x {2 * truncation + 1} points, "
                f"got {nlat} x {nlon}"
            )
        mu, weights = np.polynomial.legendre.leggauss(nlat)
        mu, weights = mu[::-1].copy(), weights[::-1].copy()
        self.nlat, self.nlon, self.truncation = nlat, nlon, truncation
        self.latitude = np.degrees(np.arcsin(mu))
        self.longitude = np.arange(nlon) * (360.0 / nlon)
        p, h = (torch.from_numpy(table).to(device) for table in _legendre(truncation, mu))
        self.mu = torch.from_numpy(mu).to(device)
        self.weights = torch.from_numpy(weights / 2).to(device)
        """Quadrature weights of the rows; they sum to 1."""
        self._p, self._h = p, h
        self._p_weighted = (p * self.weights[:, None]).transpose(1, 2).contiguous()
        over = self.weights / (1 - self.mu**2)
        self._p_over = (p * over[:, None]).transpose(1, 2).contiguous()
        self._h_over = (h * over[:, None]).transpose(1, 2).contiguous()
        size = truncation + 1
        self.degree = torch.arange(size, dtype=torch.float64, device=device)[:, None]
        self.order = torch.arange(size, dtype=torch.float64, device=device)[None, :]
        self.mask = self.degree >= self.order
        """(l, m): True where a coefficient exists."""

    @property
    def is_alias_free(self) -> bool:
        """Whether products of two fields are transformed exactly."""
        return self.nlon >= 3 * self.truncation + 1 and 2 * self.nlat >= 3 * self.truncation + 1

    def _synthesis(self, table: Tensor, coefficients: Tensor) -> Tensor:
        """sum over l: (..., l, m) -> Fourier coefficients (..., rows, m)."""
        lead = coefficients.shape[:-2]
        flat = torch.view_as_real(coefficients.reshape(-1, *coefficients.shape[-2:]).permute(2, 1, 0).contiguous())
        out = torch.bmm(table, flat.flatten(2)).unflatten(2, (-1, 2))
        return torch.view_as_complex(out).permute(2, 1, 0).reshape(*lead, self.nlat, -1)

    def _analysis(self, table: Tensor, fourier: Tensor) -> Tensor:
        """Weighted sum over rows: (..., rows, m) -> (..., l, m)."""
        lead = fourier.shape[:-2]
        flat = torch.view_as_real(fourier.reshape(-1, *fourier.shape[-2:]).permute(2, 1, 0).contiguous())
        out = torch.bmm(table, flat.flatten(2)).unflatten(2, (-1, 2))
        return torch.view_as_complex(out).permute(2, 1, 0).reshape(*lead, self.truncation + 1, -1)

    def _fourier(self, field: Tensor) -> Tensor:
        return torch.fft.rfft(field, norm="forward")[..., : self.truncation + 1]

    def _grid(self, fourier: Tensor) -> Tensor:
        return torch.fft.irfft(fourier, n=self.nlon, norm="forward")

    def forward(self, field: Float[Tensor, "*batch nlat nlon"]) -> Complex128[Tensor, "*batch l m"]:
        """Coefficients of a real field."""
        if tuple(field.shape[-2:]) != (self.nlat, self.nlon):
            raise ValueError(f"the field must end in ({self.nlat}, {self.nlon}), got {tuple(field.shape)}")
        return self._analysis(self._p_weighted, self._fourier(field.double()))

    def inverse(self, coefficients: Complex128[Tensor, "*batch l m"]) -> Float64[Tensor, "*batch nlat nlon"]:
        """The field of these coefficients."""
        return self._grid(self._synthesis(self._p, coefficients))

    def cos_gradient(
        self, coefficients: Complex128[Tensor, "*batch l m"]
    ) -> tuple[Float64[Tensor, "*batch nlat nlon"], Float64[Tensor, "*batch nlat nlon"]]:
        """Cosine of latitude times the derivatives to the east and to the north, on a sphere of radius 1."""
        east = self.inverse(1j * self.order * coefficients)
        return east, self._grid(self._synthesis(self._h, coefficients))

    def divergence(
        self, east: Float64[Tensor, "*batch nlat nlon"], north: Float64[Tensor, "*batch nlat nlon"]
    ) -> Complex128[Tensor, "*batch l m"]:
        """Coefficients of the divergence of (east, north) / cos(latitude), on a sphere of radius 1.

        Derivatives to the north are taken off the field by parts, so that nothing is differenced.
        """
        by_order = 1j * self.order * self._analysis(self._p_over, self._fourier(east))
        return by_order - self._analysis(self._h_over, self._fourier(north))

    def power(self, coefficients: Complex128[Tensor, "*batch l m"]) -> Float64[Tensor, "*batch l"]:
        """Share of the mean square over the sphere in each degree l; the shares sum to the mean square."""
        both = torch.where(self.order == 0, 1.0, 2.0)
        return (both * coefficients.abs() ** 2).sum(-1)
