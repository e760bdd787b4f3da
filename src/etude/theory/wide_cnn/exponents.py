"""Exponents: what theory foretells of spectra and learning curves, and fits of both with error bars.

Cagnetta, Favero & Wyart, ICML 2023, arXiv:2208.01003. The kernel of a network behaves like |x - y|^(2 nu) at its
singularity, nu = 1/2 for the NTK and 3/2 for the RFK of ReLU networks. Its eigenfunctions are products of spherical
harmonics of degrees k_i on the patches; those that live on a meta-patch of level l, and on none smaller, are sector l:

    Lambda_k ~ |k|^(-2 nu - d_eff(l)),    by rank in the sector    rho^(-1 - 2 nu / d_eff(l))               (1)

so that the spectrum as a whole, dominated by sector L, falls with the rank as rho^(-1 - 2 nu / d_eff(L)). Without a
ridge, n examples determine the modes with Lambda above n^(-1 - 2 nu_S / d_eff(L)) and the error is what the target
has beyond. For a Gaussian random target whose covariance is the kernel of a network with smoothness nu_T that sees
one meta-patch, inside the student's sector of dimension d,

    error ~ n^-beta,   beta = min(2 nu_T, 2 (2 nu_S + d)) (1 + 2 nu_S / d_eff(L)) / (2 nu_S + d)             (2)

The minimum is saturation: for a very smooth target the low modes, which are learnt imperfectly, decide.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import t as student_t
from torch import Tensor

from etude.theory.wide_cnn.patches import check_filters, effective_dimensions

__all__ = ["NU", "MeanInterval", "PowerLaw", "fit_power_law", "mean_interval", "predict_beta", "predict_spectrum"]

NU = {"ntk": 0.5, "rfk": 1.5}
"""Smoothness of the kernels of ReLU networks."""


def predict_spectrum(
    filter_sizes: Sequence[int], nu: float | int = 0.5, *, level: int | None = None, dim: int = 1, channels: int = 1
) -> float:
    """1 + 2 nu / d_eff(l), Eq. (1): how fast eigenvalues fall with their rank.

        predict_spectrum([2, 2])                # 1.5
        predict_spectrum([2, 2], level=1)       # 2.0, among the modes of single patches

    Args:
        filter_sizes: s_1, ..., s_L.
        nu: smoothness of the kernel, > 0.
        level: of the sector; L, which is the whole spectrum's, if None.
        dim, channels: as for `effective_dimensions`.

    Raises:
        ValueError: if the sizes have no dimension, or `nu` or `level` is out of range.
    """
    dimensions = effective_dimensions(filter_sizes, dim=dim, channels=channels)
    level = len(dimensions) if level is None else level
    if not 1 <= level <= len(dimensions):
        raise ValueError(f"level must lie in 1..{len(dimensions)}, got {level}")
    return 1 + 2 * _positive("nu", nu) / dimensions[level - 1]


def predict_beta(
    teacher_filters: Sequence[int],
    student_filters: Sequence[int],
    nu_t: float | int = 0.5,
    nu_s: float | int = 0.5,
    *,
    dim: int = 1,
    channels: int = 1,
) -> float:
    """The exponent of a learning curve, error ~ n^-beta, Eq. (2).

        predict_beta([2], [2, 2, 2])            # 0.625: a target on pairs of inputs
        predict_beta([2, 2, 2], [2, 2, 2])      # 0.25: a target on all eight

    d is the dimension of the smallest meta-patch of the student that holds one of the teacher; where the teacher's
    filters are the student's first ones, the teacher's own. A target that fits into no meta-patch of the student is
    not learnt: beta is 0.

    Args:
        teacher_filters, student_filters: first layer first; both have the same first patch.
        nu_t, nu_s: smoothness of the target and of the student's kernel, > 0.
        dim, channels: as for `effective_dimensions`.

    Raises:
        ValueError: if the first filters differ, or an argument is out of range.
    """
    teacher, student = check_filters(teacher_filters), check_filters(student_filters)
    if teacher[0] != student[0]:
        raise ValueError(f"teacher and student need the same first filter, got {list(teacher)} and {list(student)}")
    nu_t, nu_s = _positive("nu_t", nu_t), _positive("nu_s", nu_s)
    dimensions = effective_dimensions(student, dim=dim, channels=channels)
    seen = math.prod(teacher)
    level = next((k for k in range(len(student)) if math.prod(student[: k + 1]) % seen == 0), None)
    if level is None:
        return 0.0
    d, top = dimensions[level], dimensions[-1]
    return min(2 * nu_t, 2 * (2 * nu_s + d)) * (1 + 2 * nu_s / top) / (2 * nu_s + d)


@dataclass(frozen=True)
class PowerLaw:
    """y = prefactor x^-exponent by least squares of the logarithms.

    Attributes:
        exponent: positive for a falling law.
        error: its standard error from the scatter about the line; 0 for two points. Sorted eigenvalues scatter less
            than independent ones: over draws of the data the exponent may vary more.
        prefactor: the law's value at x = 1.
    """

    exponent: float
    error: float
    prefactor: float

    def __call__(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return self.prefactor * x**-self.exponent


def fit_power_law(
    values: Float[Tensor, "n"] | Sequence[float | int],
    lo: int = 1,
    hi: int | None = None,
    *,
    against: Sequence[float | int] | Float[Tensor, "n"] | None = None,
) -> PowerLaw:
    """Fits a power law to eigenvalues over their ranks lo..hi, or to errors over sample sizes.

        fit_power_law(kernel_spectrum(K), 15, 250)      # PowerLaw(exponent=2.08, error=0.01, ...)
        fit_power_law(errors, against=sizes)

    Args:
        values: positive within the fitted range.
        lo, hi: first and last rank, counted from 1; hi is the last of all if None.
        against: x of each value; the ranks 1, 2, ... if None.

    Raises:
        ValueError: if the range holds fewer than two values or leaves `values`, or a value is not positive.
    """
    y = np.asarray(torch.as_tensor(values, dtype=torch.float64).cpu())
    hi = len(y) if hi is None else hi
    if y.ndim != 1 or not 1 <= lo < hi <= len(y):
        raise ValueError(f"ranks must satisfy 1 <= lo < hi <= {y.size}, got lo={lo} and hi={hi}")
    x = np.arange(1.0, len(y) + 1) if against is None else np.asarray(torch.as_tensor(against, dtype=torch.float64))
    if x.shape != y.shape:
        raise ValueError(f"against must have one x for each of {len(y)} values, got shape {x.shape}")
    x, y = x[lo - 1 : hi], y[lo - 1 : hi]
    if not (y > 0).all() or not (x > 0).all():
        place = int(((y <= 0) | (x <= 0)).argmax())
        raise ValueError(
            f"a power law needs positive values; number {lo + place} is {y[place]:.3g}. Eigenvalues below "
            "about 1e-15 of the largest are rounding: lower hi"
        )
    log_x, log_y = np.log(x), np.log(y)
    centred = log_x - log_x.mean()
    spread = float(centred @ centred)
    if spread == 0:
        raise ValueError(f"a slope needs at least two different x, got {x[:3].tolist()}")
    slope = float(centred @ log_y) / spread
    rest = log_y - log_y.mean() - slope * centred
    error = math.sqrt(float(rest @ rest) / (len(x) - 2) / spread) if len(x) > 2 else 0.0
    return PowerLaw(-slope, error, float(np.exp(log_y.mean() - slope * log_x.mean())))


@dataclass(frozen=True)
class MeanInterval:
    """A mean over independent repetitions.

    Attributes:
        mean, error: the mean and its standard error.
        low, high: its t interval.
    """

    mean: float
    error: float
    low: float
    high: float


def mean_interval(values: Sequence[float | int] | Float[Tensor, "n"], level: float = 0.95) -> MeanInterval:
    """Mean, standard error and t interval; of one value alone the last three are NaN."""
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) == 0:
        raise ValueError(f"values must have shape (n,) with n >= 1, got {x.shape}")
    mean = float(x.mean())
    if len(x) == 1:
        return MeanInterval(mean, math.nan, math.nan, math.nan)
    error = float(x.std(ddof=1)) / math.sqrt(len(x))
    reach = float(student_t.ppf(0.5 + level / 2, len(x) - 1)) * error
    return MeanInterval(mean, error, mean - reach, mean + reach)


def _positive(name: str, value: float | int) -> float:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")
    return float(value)
