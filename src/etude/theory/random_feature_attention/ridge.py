"""Ridge regression on random features, with all its penalties from one eigendecomposition.

Fu, Guo, Bai & Mei, NeurIPS 2023, arXiv:2307.11353, bound the norm of the values; the penalised problem is its
Lagrangian. With Psi = phi / sqrt(M) and v = sqrt(M) u, so that f = Psi u,

    min_u  |Psi u - y|^2 / n + ridge |u|^2                                                                  (1)
    u = (Psi^T Psi + n ridge I)^-1 Psi^T y             primal, features x features                           (2)
      = Psi^T alpha,  alpha = (G + n ridge I)^-1 y     dual, n x n, with the Gram matrix G = Psi Psi^T       (3)

There is no intercept: standardise y. A ridge that means the same to every method is one relative to the mean c of the
diagonal of G, that is ridge = c relative; both matrices have the trace n c.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from etude.theory.random_feature_attention.layers import RandomFeatures
from etude.theory.random_feature_attention.tokens import Tokens

__all__ = [
    "RIDGES",
    "Kernel",
    "RidgePath",
    "cross_validate",
    "fit_ridge",
    "set_values",
    "standardized",
    "uses_primal",
]

RIDGES = tuple(10.0**power for power in range(-8, 1))
"""Relative to the mean diagonal of the Gram matrix: 1e-8, 1e-7, ..., 1."""

_PSD = 1e-9
"""Below -1e-9 of the largest, an eigenvalue is no rounding error of a float64 Gram matrix."""

_CHOLESKY = 1e-12
"""Below, as a share of the trace, the smallest pivot leaves too few digits of a solution."""


@runtime_checkable
class Kernel(Protocol):
    """Anything with a Gram matrix: a layer of random features, or the kernel of infinitely many."""

    def gram(self, tokens: Tokens, other: Tokens | None = None) -> Tensor: ...


class RidgePath:
    """(A + n ridge I)^-1 b for any number of ridges, Eq. (2) and (3), after one eigendecomposition in float64.

        path = RidgePath(gram, y)
        path.predict(cross, [1e-4, 1e-3])       # cross: test x training rows of the kernel

    Args:
        matrix: A, symmetric positive semi-definite: G with b = y, or Psi^T Psi with b = Psi^T y.
        targets: b, (size, outputs).
        num_examples: n; the size of A if None, as for a Gram matrix.

    Attributes:
        scale: c, the mean of the diagonal of G.

    Raises:
        ValueError: if the shapes do not fit, a number is not finite, or A is not symmetric or not positive
            semi-definite to double precision.
    """

    def __init__(
        self,
        matrix: Float[Tensor, "size size"],
        targets: Float[Tensor, "size outputs"],
        num_examples: int | None = None,
    ):
        matrix, targets = matrix.detach().to(torch.float64), targets.detach().to(torch.float64)
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
            raise ValueError(f"the matrix must be square, got {tuple(matrix.shape)}")
        if targets.ndim != 2 or len(targets) != len(matrix):
            raise ValueError(f"targets must be ({len(matrix)}, outputs), got {tuple(targets.shape)}")
        if not bool(torch.isfinite(matrix).all()) or not bool(torch.isfinite(targets).all()):
            raise ValueError("the matrix and the targets must be finite")
        largest = float(matrix.abs().max())
        asymmetry = float((matrix - matrix.T).abs().max())
        if asymmetry > 1e-8 * largest:
            raise ValueError(
                f"the matrix must be symmetric; A - A^T reaches {asymmetry:.2e} where A reaches {largest:.2e}"
            )
        self.num_examples = len(matrix) if num_examples is None else num_examples
        self.scale = float(matrix.trace()) / self.num_examples
        eigenvalues, self._basis = torch.linalg.eigh(matrix)
        smallest, top = float(eigenvalues[0]), float(eigenvalues[-1])
        if smallest < -_PSD * abs(top):
            raise ValueError(
                f"the kernel matrix is not positive semi-definite: its smallest eigenvalue is {smallest:.3e}, the "
                f"largest {top:.3e}, and the limit is -{_PSD:g} times that"
            )
        if self.scale <= 0:
            raise ValueError("the kernel matrix is zero: no feature responds to these tokens")
        self._eigenvalues = eigenvalues.clamp_(min=0.0)
        self._rotated = self._basis.T @ targets

    def coefficients(self, ridge: float | int, *, relative: bool = True) -> Float[Tensor, "size outputs"]:
        """alpha of Eq. (3), or u of Eq. (2); `ridge` >= 0 is relative to `scale` unless told otherwise."""
        return self._basis @ self._shrunk([ridge], relative)[0]

    def predict(
        self, cross: Float[Tensor, "m size"], ridges: Sequence[float | int], *, relative: bool = True
    ) -> Float[Tensor, "ridges m outputs"]:
        """Predictions of every ridge, from the rows of the kernel with the training examples, or the features Psi."""
        return (cross.to(torch.float64) @ self._basis) @ self._shrunk(ridges, relative)

    def _shrunk(self, ridges: Sequence[float | int], relative: bool) -> Tensor:
        """(ridges, size, outputs) in the eigenbasis."""
        for ridge in ridges:
            if not 0 <= ridge < math.inf:
                raise ValueError(f"a ridge must be finite and >= 0, got {ridge}")
        shift = self._eigenvalues.new_tensor([float(ridge) for ridge in ridges]) * self.num_examples
        shifted = self._eigenvalues + shift[:, None] * (self.scale if relative else 1.0)
        # Without a ridge the smallest solution is wanted: directions that hold rounding only are left out.
        floor = float(self._eigenvalues[-1]) * len(self._eigenvalues) * 1e-15
        inverse = torch.where(shifted > floor, 1 / shifted.clamp(min=1e-300), 0.0)
        return inverse[:, :, None] * self._rotated


def fit_ridge(
    model: RandomFeatures,
    tokens: Tokens,
    targets: Float[Tensor, "n *outputs"],
    ridge: float | int,
    *,
    relative: bool = True,
    solver: str = "auto",
) -> RandomFeatures:
    """Sets the values of a layer to the solution of Eq. (1), computed in float64, and returns the layer.

    The layer keeps its dtype: at ridges below 1e-6, `model.double()` first, or rounding of the values shows.

    Args:
        model: a layer with as many outputs as the targets have columns.
        tokens: training examples.
        targets: (n,) or (n, outputs), standardised.
        ridge: >= 0; relative to the mean diagonal of the Gram matrix, or as in Eq. (1) if not `relative`.
        solver: "primal", "dual", or "auto" for the smaller matrix.

    Raises:
        ValueError: if targets do not fit, or `ridge` or `solver` is out of range.
    """
    columns = targets[:, None] if targets.ndim == 1 else targets
    if columns.shape != (len(tokens), model.out_dim):
        raise ValueError(f"targets must be ({len(tokens)}, {model.out_dim}), got {tuple(targets.shape)}")
    if not 0 <= ridge < math.inf:
        raise ValueError(f"a ridge must be finite and >= 0, got {ridge}")
    primal = uses_primal(model, len(tokens), solver)
    matrix, moment = model.covariance(tokens, columns) if primal else (model.gram(tokens), columns)
    set_values(model, tokens, _solve(matrix, moment, len(tokens), ridge, relative), primal=primal)
    return model


def _solve(matrix: Tensor, targets: Tensor, n: int, ridge: float | int, relative: bool) -> Tensor:
    """One ridge by Cholesky's factor, a tenth of the cost of eigenvectors, or by these if it leaves too few digits."""
    targets = targets.to(torch.float64)
    scale = float(matrix.trace()) / n
    shift = n * ridge * (scale if relative else 1.0)
    shifted = matrix.clone()
    shifted.diagonal().add_(shift)
    factor, failed = torch.linalg.cholesky_ex(shifted)
    if int(failed) or not float(factor.diagonal().square().min()) >= _CHOLESKY * scale * n:
        return RidgePath(matrix, targets, n).coefficients(ridge, relative=relative)
    return torch.cholesky_solve(targets, factor)


@torch.no_grad()
def set_values(
    model: RandomFeatures, tokens: Tokens, coefficients: Float[Tensor, "size outputs"], *, primal: bool
) -> None:
    """v = sqrt(M) u from the solution of Eq. (2), or v = phi^T alpha, block by block, from that of Eq. (3)."""
    if primal:
        found = coefficients * math.sqrt(model.num_units)
    else:
        tokens = tokens.to(torch.float64)
        found = coefficients.new_zeros(model.num_features, coefficients.shape[1])
        size = model.block_rows(tokens)
        for start in range(0, len(tokens), size):
            part = slice(start, start + size)
            found.addmm_(model.flat_features(tokens[part]).T, coefficients[part])
    model.values.copy_(found.reshape(model.values.shape))


def standardized(targets: Float[Tensor, "n outputs"]) -> tuple[Tensor, Tensor, Tensor]:
    """Targets of mean 0 and variance 1 a column, with the mean and the deviation; a constant column is only centred."""
    mean, std = targets.mean(0), targets.std(0, correction=0)
    std = torch.where(std > 1e-12 * mean.abs().clamp(min=1e-300), std, torch.ones_like(std))
    return (targets - mean) / std, mean, std


class CrossValidation(NamedTuple):
    """Mean squared errors over the held-out folds, in units of the targets' variance.

    Attributes:
        ridges: relative, as searched.
        errors: (ridges,) mean over all examples.
        std_errors: (ridges,) of that mean, over folds.
        best: the ridge with the smallest error.
    """

    ridges: tuple[float, ...]
    errors: np.ndarray
    std_errors: np.ndarray
    best: float


def cross_validate(
    model: RandomFeatures,
    tokens: Tokens,
    targets: Float[Tensor, "n outputs"],
    folds: Iterable[tuple[np.ndarray, np.ndarray]],
    ridges: Sequence[float | int] = RIDGES,
    *,
    solver: str = "auto",
) -> tuple[CrossValidation, Float[Tensor, "size outputs"]]:
    """The ridge that predicts held-out folds best, and u or alpha of all examples, Eq. (2) or (3), at that ridge.

    Args:
        model: a layer.
        tokens, targets: examples; the targets are standardised over each training part.
        folds: (training rows, held-out rows), as scikit-learn's splitters give them.
        ridges: relative ones to compare.
        solver: as for `fit_ridge`.
    """
    targets = targets.to(torch.float64)
    standard, _, spread = standardized(targets)
    primal = uses_primal(model, len(tokens), solver)
    matrix, moment = model.covariance(tokens, standard) if primal else (model.gram(tokens), standard)
    by_fold, sizes = [], []
    for train, held in folds:
        rows, out = torch.as_tensor(train), torch.as_tensor(held)
        y, mean, std = standardized(targets[rows])
        if primal:
            path = RidgePath(*model.covariance(tokens[rows], y), num_examples=len(rows))
            blocks = (tokens[part].to(torch.float64) for part in out.split(model.block_rows(tokens)))
            root = math.sqrt(model.num_units)
            predicted = torch.cat([path.predict(model.flat_features(part) / root, ridges) for part in blocks], dim=1)
        else:
            predicted = RidgePath(matrix[rows][:, rows], y).predict(matrix[out][:, rows], ridges)
        predicted = predicted * std + mean
        by_fold.append(((predicted - targets[out]) / spread).square().mean((1, 2)).numpy(force=True))
        sizes.append(len(out))
    table, weights = np.stack(by_fold), np.array(sizes) / sum(sizes)
    errors = weights @ table
    deviations = table.std(0, ddof=1) / math.sqrt(len(table)) if len(table) > 1 else np.full(len(errors), np.nan)
    found = CrossValidation(tuple(ridges), errors, deviations, float(ridges[int(errors.argmin())]))
    return found, _solve(matrix, moment, len(tokens), found.best, True)


def uses_primal(model: RandomFeatures, n: int, solver: str) -> bool:
    """Whether n examples are solved for in features, Eq. (2), rather than in examples.

    Raises:
        ValueError: if `solver` is not "auto", "primal" or "dual".
    """
    if solver not in ("auto", "primal", "dual"):
        raise ValueError(f'solver must be "auto", "primal" or "dual", got {solver!r}')
    return solver == "primal" or (solver == "auto" and model.num_features < n)
