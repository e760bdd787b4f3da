"""Learning curves of a student kernel on Gaussian random teachers, measured, exact, and foretold.

Cagnetta, Favero & Wyart, ICML 2023, arXiv:2208.01003. Teachers are drawn jointly on training and test points from the
kernel of a network of their own filters; one of fewer layers than the student is a sum of functions of small
meta-patches. The student interpolates n training labels; its mean squared error on the test points falls as n^-beta.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from etude.theory.wide_cnn.exponents import NU, MeanInterval, fit_power_law, mean_interval, predict_beta
from etude.theory.wide_cnn.fields import cholesky, sample_grf
from etude.theory.wide_cnn.kernel import hierarchical_kernel
from etude.theory.wide_cnn.patches import check_filters, sample_multisphere

__all__ = ["LearningCurve", "TeacherStudent", "learning_curve", "teacher_student"]

Kernel = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class TeacherStudent:
    """Errors of one draw of the inputs, in units of the teachers' variance on the test points.

    Attributes:
        sizes: training points n.
        errors: (sizes,), the mean over the teachers drawn.
        error_bars: (sizes,), its standard error over them.
        expected: (sizes,), the mean over all teachers of this covariance, without sampling.
    """

    sizes: tuple[int, ...]
    errors: Float[Tensor, "sizes"]
    error_bars: Float[Tensor, "sizes"]
    expected: Float[Tensor, "sizes"]


@dataclass(frozen=True)
class LearningCurve:
    """Learning curves over several draws of inputs and teachers.

    Attributes:
        sizes: training points n.
        errors, expected: (seeds, sizes), as in `TeacherStudent`.
        slopes, expected_slopes: (seeds,), beta of each draw over the last sizes, positive where errors fall.
        beta, expected_beta: over the draws.
        fitted: how many of the last sizes the slopes are fitted to.
        predicted: beta of theory; None for kernels given as functions.
    """

    sizes: tuple[int, ...]
    errors: Float[Tensor, "seeds sizes"]
    expected: Float[Tensor, "seeds sizes"]
    slopes: Float[Tensor, "seeds"]
    expected_slopes: Float[Tensor, "seeds"]
    beta: MeanInterval
    expected_beta: MeanInterval
    fitted: int
    predicted: float | None


def teacher_student(
    x: Float[Tensor, "n *shape"],
    sizes: Sequence[int],
    teacher: Kernel,
    student: Kernel,
    *,
    teachers: int = 32,
    ridge: float | int = 1e-12,
    generator: torch.Generator | None = None,
) -> TeacherStudent:
    """Errors of a student at growing sample sizes, on the user's own inputs.

    The first max(sizes) rows train and the others test; a smaller sample is the beginning of a larger one. All
    teachers and sizes share one factorisation. Memory is 32 n^2 bytes at the peak.

    Args:
        x: float64 inputs, training points first.
        sizes: numbers of training points.
        teacher, student: kernels (x, y or None) -> matrix, such as `partial(fc_ntk, depth=3)`.
        teachers: independent targets drawn, at least 2.
        ridge: added to the student's kernel; 1e-12 stands for none.
        generator: of the teachers.

    Raises:
        ValueError: if `sizes` do not increase or leave no test point, `teachers` < 2, a kernel is not positive
            definite with its ridge, or it tells no test points apart.
    """
    most = _check_sizes(sizes)
    if most >= len(x):
        raise ValueError(f"the largest of sizes, {most}, must leave test points of {len(x)} inputs")
    if teachers < 2:
        raise ValueError(f"teachers must be at least 2, for an error, got {teachers}")
    covariance = teacher(x, None)
    y = sample_grf(covariance, generator, count=teachers)
    train, test = x[:most], x[most:]
    # Regression is linear in the labels, so that both errors need the same weights.
    factor = cholesky(student(train, None), ridge, "student K")
    across = torch.linalg.solve_triangular(factor, student(test, train).T, upper=False)
    whitened = torch.linalg.solve_triangular(factor, y[:most], upper=False)
    variances = y[most:].var(dim=0, correction=0)
    block = covariance[most:, most:]
    expected_variance = float(block.diagonal().mean() - block.mean())
    if not expected_variance > 1e-12 * float(block.diagonal().mean()):
        raise ValueError("the teacher is constant on the test points: its kernel does not tell them apart")
    errors, bars, expected = [], [], []
    for n in sizes:
        missed = (across[:n].T @ whitened[:n] - y[most:]).square().mean(0) / variances.mean()
        errors.append(missed.mean())
        bars.append(missed.std() / math.sqrt(teachers))
        weights = torch.linalg.solve_triangular(factor[:n, :n].T, across[:n], upper=True)
        cross = (weights.T * covariance[most:, :n]).sum() - 0.5 * (weights * (covariance[:n, :n] @ weights)).sum()
        expected.append((block.diagonal().sum() - 2 * cross) / len(block) / expected_variance)
    return TeacherStudent(tuple(sizes), torch.stack(errors), torch.stack(bars), torch.stack(expected))


def learning_curve(
    teacher: Sequence[int] | Kernel,
    student: Sequence[int] | Kernel,
    sizes: Sequence[int],
    seeds: int | Sequence[int] = 5,
    *,
    inputs: int | None = None,
    patch: int | None = None,
    kinds: tuple[str, str] = ("ntk", "ntk"),
    test: int = 512,
    teachers: int = 32,
    ridge: float | int = 1e-12,
    fitted: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> LearningCurve:
    """Learning curves of a student of the user's depth and filters, with their exponent beside the prediction.

        curve = learning_curve([2], [2, 2, 2], sizes=[64, 128, 256, 512, 1024])
        curve.beta, curve.predicted        # 0.58 +- 0.01, 0.625
        plot_learning_curves({"pairs": curve})

    Inputs are multispheres. Samples below some 128 points are not asymptotic for d = 8, for larger d far larger ones
    are not: where the slope still falls with n, it is above the prediction.

    Args:
        teacher, student: filter sizes, or kernels as for `teacher_student`.
        sizes: numbers of training points, increasing.
        seeds: a count, or the seeds.
        inputs: coordinates of an input; the product of the student's filters if None.
        patch: coordinates on one sphere; the student's first filter if None.
        kinds: of the teacher and of the student, where they are filters.
        test, teachers, ridge: as for `teacher_student`.
        fitted: the slopes are fitted to so many of the last sizes.
        progress: called with the number of seeds done and of all.

    Raises:
        ValueError: if filters do not fit the inputs or each other, or an argument is out of range.
    """
    most = _check_sizes(sizes)
    if fitted < 2:
        raise ValueError(f"fitted must be at least 2 sizes, got {fitted}")
    if test < 2:
        raise ValueError(f"test must be at least 2 points, got {test}")
    listed = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not listed:
        raise ValueError("seeds must name at least one seed")
    filters = None if callable(student) else check_filters(student)
    if filters is None and (inputs is None or patch is None):
        raise ValueError("a student given as a function needs inputs= and patch=")
    d = math.prod(filters) if inputs is None and filters is not None else int(inputs or 0)
    s = filters[0] if patch is None and filters is not None else int(patch or 0)
    if s < 2 or d % s:
        raise ValueError(f"patch must be at least 2 and divide inputs, got patch={s} and inputs={d}")
    predicted = None
    if filters is not None and not callable(teacher):
        predicted = predict_beta(teacher, filters, NU.get(kinds[0], 0.5), NU.get(kinds[1], 0.5))
    kernels = [_kernel(given, kind) for given, kind in zip((teacher, student), kinds)]
    runs = []
    for done, seed in enumerate(listed):
        generator = torch.Generator().manual_seed(seed)
        x = sample_multisphere(most + test, d // s, s, generator)
        runs.append(teacher_student(x, sizes, *kernels, teachers=teachers, ridge=ridge, generator=generator))
        if progress is not None:
            progress(done + 1, len(listed))
    errors, expected = (torch.stack([getattr(run, name) for run in runs]) for name in ("errors", "expected"))
    slopes, exact = (_slopes(values, sizes, fitted) for values in (errors, expected))
    return LearningCurve(
        tuple(sizes), errors, expected, slopes, exact, mean_interval(slopes), mean_interval(exact),
        min(fitted, len(sizes)), predicted,
    )  # fmt: skip


def _slopes(errors: Tensor, sizes: Sequence[int], fitted: int) -> Tensor:
    last = [float(n) for n in sizes[-fitted:]]
    return torch.tensor([fit_power_law(row[-fitted:], against=last).exponent for row in errors], dtype=torch.float64)


def _kernel(given: Sequence[int] | Kernel, kind: str) -> Kernel:
    return given if callable(given) else partial(hierarchical_kernel, filter_sizes=check_filters(given), kind=kind)


def _check_sizes(sizes: Sequence[int]) -> int:
    if len(sizes) < 2 or sizes[0] < 1 or any(b <= a for a, b in pairwise(sizes)):
        raise ValueError(f"sizes must be two or more increasing numbers of training points, got {list(sizes)}")
    return sizes[-1]
