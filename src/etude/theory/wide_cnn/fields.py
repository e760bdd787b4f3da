"""Gaussian random targets, and the exact error that kernel regression makes on them.

Cagnetta, Favero & Wyart, ICML 2023, arXiv:2208.01003. A teacher is a zero-mean Gaussian field with covariance K_T,
drawn jointly on training and test points. A student with the kernel K_S predicts f = B y with B = K_S(t, n) (K_S(n, n)
+ ridge)^-1 at the test points t, so that its error, averaged over all teachers, is

    E (f - y_t)^2 = [ K_T(t, t) - 2 B K_T(n, t) + B K_T(n, n) B^T ]_tt                                       (1)

without sampling. If the student's kernel is the teacher's and the ridge is 0 this is the posterior variance,

    K(t, t) - K(t, n) K(n, n)^-1 K(n, t).                                                                    (2)
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from etude.theory.wide_cnn.spectrum import check_kernel

__all__ = ["cholesky", "expected_errors", "posterior_variance", "sample_grf"]

_JITTER = 1e-10


def cholesky(K: Float[Tensor, "n n"], ridge: float | int = 0.0, name: str = "K") -> Float[Tensor, "n n"]:
    """The lower factor of K + ridge, ridge in the kernel's own units.

    Raises:
        ValueError: if K is not symmetric or `ridge` is negative; or K + ridge is not positive definite to double
            precision: a pivot lies below n eps times the largest diagonal entry.
    """
    if not 0 <= ridge < math.inf:
        raise ValueError(f"ridge must be finite and >= 0, got {ridge}")
    K = check_kernel(K, name).clone()
    K.diagonal().add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(K)
    limit = len(K) * torch.finfo(torch.float64).eps * float(K.diagonal().max())
    pivots = factor.diagonal().square()
    bad = int(failed) - 1 if int(failed) else int(pivots.argmin())
    if int(failed) or float(pivots[bad]) < limit:
        raise ValueError(
            f"{name} + {ridge:g} is not positive definite to double precision: its pivot {bad} of {len(K)} is below "
            f"{limit:.1e}. Row {bad} repeats an earlier point or is a combination of them, or {name} is no kernel; a "
            f"ridge well above {limit:.0e} makes it so"
        )
    return factor


def sample_grf(
    K: Float[Tensor, "n n"],
    generator: torch.Generator | None = None,
    *,
    count: int = 1,
    jitter: float | int = _JITTER,
) -> Float[Tensor, "n count"]:
    """Draws `count` Gaussian fields with covariance K, one a column.

    Training and test points belong into one K: labels that are drawn apart are of two functions.

    Args:
        K: covariance, symmetric and positive semi-definite.
        generator: on the CPU.
        count: number of independent fields.
        jitter: added to the diagonal for the factorisation, as a multiple of its mean.

    Raises:
        ValueError: if K is not symmetric or not positive semi-definite, or `count` < 1.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    noise = torch.randn(len(K), count, generator=generator, dtype=torch.float64).to(K.device)
    return cholesky(K, jitter * float(K.diagonal().double().mean()), "covariance K") @ noise


def posterior_variance(
    K_nn: Float[Tensor, "n n"], K_tn: Float[Tensor, "t n"], diagonal: Float[Tensor, "t"], ridge: float | int = 0.0
) -> Float[Tensor, "t"]:
    """Eq. (2), with `ridge` on the diagonal of K_nn: the variance of the field itself, its noise apart.

    Args:
        K_nn, K_tn: kernel of the training points, and between test and training points.
        diagonal: K(t, t) of the test points.
        ridge: variance of the noise of the observations.

    Raises:
        ValueError: as for `cholesky`.
    """
    whitened = torch.linalg.solve_triangular(cholesky(K_nn, ridge), K_tn.T, upper=False)
    return (diagonal - whitened.square().sum(0)).clamp(min=0.0)


def expected_errors(
    teacher_nn: Float[Tensor, "n n"],
    teacher_tn: Float[Tensor, "t n"],
    teacher_diagonal: Float[Tensor, "t"],
    student_nn: Float[Tensor, "n n"],
    student_tn: Float[Tensor, "t n"],
    ridge: float | int = 0.0,
    *,
    noise: float | int = 0.0,
) -> Float[Tensor, "t"]:
    """The mean squared error at each test point, over all teachers of a covariance, Eq. (1).

    Args:
        teacher_nn, teacher_tn, teacher_diagonal: K_T of the training points, between test and training points, and of
            each test point with itself.
        student_nn, student_tn: K_S of the same points.
        ridge: of the student.
        noise: variance of independent noise on the training labels; the test labels have none.

    Raises:
        ValueError: as for `cholesky`.
    """
    weights = torch.cholesky_solve(student_tn.T, cholesky(student_nn, ridge, "student K")).T
    bent = weights @ teacher_nn + noise * weights
    return teacher_diagonal - 2 * (weights * teacher_tn).sum(1) + (weights * bent).sum(1)
