"""Infinitely wide networks of any depth, and the Hilbert estimate, as scikit-learn classifiers.

Radhakrishnan, Belkin & Uhler, PNAS 2023, arXiv:2204.14126. The network that gradient descent on the square loss finds
from a zero output, infinitely wide and of L hidden layers, predicts

    m(x) = sign( y^T K_L(X, X)^-1 K_L(X, x) ),                                                              (1)

with one class against the rest where there are more than two. For L -> infinity and a singular kernel it becomes

    m(x) = sign sum_i y_i R(<x_i, x>),                                                                      (2)

close to the Hilbert estimate (Devroye, Gyorfi & Krzyzak, "The Hilbert Kernel Regression Estimate", 1998),

    m(x) = sign sum_i y_i |x - x_i|^-alpha.                                                                 (3)
"""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from etude.nn.dual import DualActivation, dual_activation
from etude.theory.wide_deep_optimality.activations import optimal_activation
from etude.theory.wide_deep_optimality.geometry import (
    check_orthant_sphere,
    orthant_complements,
    squared_distances,
    to_orthant_sphere,
)
from etude.theory.wide_deep_optimality.kernel import RadialKernel
from etude.theory.wide_deep_optimality.taxonomy import classify_activation

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_array, check_is_fitted, check_X_y
except ImportError as error:
    raise ImportError('the classifiers need scikit-learn: pip install "etude[run]"') from error

__all__ = ["DeepNTKClassifier", "OrthantSphere", "SingularKernelClassifier"]

_BLOCK = 250_000
"""Pairs of a test and a training point held at a time: 2 MB for each array of the computation, which caches hold."""

_SHALLOW = 50
"""Up to this depth the matrix of a solve comes from the layers themselves: cheap, and shallow kernels are the ill-
conditioned ones, to whose inverse the last digits matter."""

_SAME = 1e-12
"""Chord distance up to which two points count as one."""


class _Voting(ClassifierMixin, BaseEstimator, ABC):
    """Classes from scores, computed block by block; what both classifiers share."""

    ties: str

    @abstractmethod
    def _scores(self, rows: Tensor) -> Tensor:
        """(rows, classes), or (rows, 1) for two classes."""

    def _set_classes(self, y: np.ndarray) -> Tensor:
        """Classes, and one column of +-1 for each, or one column alone for two classes."""
        if self.ties not in ("raise", "first"):
            raise ValueError(f'ties must be "raise" or "first", got {self.ties!r}')
        check_classification_targets(y)
        self.classes_, inverse = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"a classifier needs at least two classes, got one class: {self.classes_.tolist()}")
        codes = torch.from_numpy(inverse.astype(np.int64))
        if len(self.classes_) == 2:
            return (2.0 * codes - 1).to(torch.float64)[:, None]
        return 2 * torch.nn.functional.one_hot(codes, len(self.classes_)).to(torch.float64) - 1

    def _rows(self, X: Any) -> Tensor:
        check_is_fitted(self)
        rows = check_array(X, dtype=np.float64)
        if rows.shape[1] != self.n_features_in_:
            name = type(self).__name__
            raise ValueError(
                f"X has {rows.shape[1]} features, but {name} is expecting {self.n_features_in_} features as input"
            )
        return torch.from_numpy(np.ascontiguousarray(rows))

    def decision_function(self, X: Any) -> np.ndarray:
        """Votes in [-1, 1] against (-) or for (+) a class: (n,) for the second of two classes, else (n, classes).

        A vote is the weighted mean of +-1 over the training points, so that it does not fade with depth as the
        regression function, Eq. (1), itself does.
        """
        rows = self._rows(X)
        size = max(_BLOCK // self._n_train, 1)
        scores = torch.cat([self._scores(block) for block in rows.split(size)])
        return (scores.squeeze(1) if scores.shape[1] == 1 else scores).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """(n,) labels.

        Raises:
            ValueError: if the vote of a row is a tie and `ties` is "raise".
        """
        votes = self.decision_function(X)
        if votes.ndim == 1:
            tied, chosen = votes == 0, (votes > 0).astype(np.int64)
        else:
            best = np.partition(votes, -2, axis=1)
            tied, chosen = best[:, -1] == best[:, -2], votes.argmax(1)
        if tied.any() and self.ties == "raise":
            raise ValueError(
                f"the vote is a tie for {int(tied.sum())} of {len(votes)} rows, the first being row "
                f'{int(tied.argmax())}; ties="first" takes the first of the classes'
            )
        return self.classes_[chosen]


class SingularKernelClassifier(_Voting):
    """The Hilbert estimate, Eq. (3): votes weigh |x - x_i|^-alpha. It interpolates: a training point keeps its label.

        SingularKernelClassifier().fit(X, y).predict_proba(X_new)

    With alpha the dimension of the data it is consistent for any distribution, without a parameter to tune; smaller
    alpha tends to the majority, larger to the nearest neighbour. Nothing is trained; predicting takes n_test x n
    distances, in blocks.

    Args:
        alpha: order of the singularity, > 0; None for the dimension: columns minus one if all rows have unit length
            (they lie on a sphere), else the number of columns.
        ties: "raise" an error where a vote is a tie, or take the "first" class.

    Attributes:
        alpha_: the order used.
        classes_: the labels, sorted.
        n_features_in_: columns of X.
    """

    def __init__(self, alpha: float | int | None = None, *, ties: str = "raise"):
        self.alpha = alpha
        self.ties = ties

    def fit(self, X: Any, y: Any) -> "SingularKernelClassifier":
        """Keeps the points.

        Raises:
            ValueError: if alpha is not positive and finite, X or y is malformed, or there is but one class.
        """
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            raise ValueError(f"alpha must be positive and finite, got {self.alpha}")
        X, y = check_X_y(X, y, dtype=np.float64)
        self._votes = self._set_classes(y)
        self._points = torch.from_numpy(np.ascontiguousarray(X))
        self._n_train, self.n_features_in_ = X.shape
        on_sphere = X.shape[1] > 1 and bool(((self._points.norm(dim=1) - 1).abs() < 1e-6).all())
        self.alpha_ = float(self.alpha if self.alpha is not None else X.shape[1] - on_sphere)
        _, place, counts = _distinct(X)
        _warn_of_contradictions(self._votes, place, counts)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """(n, classes) shares of the votes."""
        votes = self.decision_function(X)
        share = (1 + votes) / 2
        return np.stack([1 - share, share], axis=1) if votes.ndim == 1 else share / share.sum(1, keepdims=True)

    def _scores(self, rows: Tensor) -> Tensor:
        squares = squared_distances(rows, self._points)
        logits = (-self.alpha_ / 2) * squares.clamp(min=_SAME**2).log()
        return _weighted(torch.softmax(logits, dim=1), squares <= _SAME**2, self._votes)


class DeepNTKClassifier(_Voting):
    """An infinitely wide network of finite or infinite depth, trained to the end on the square loss, Eq. (1) and (2).

        sphere = OrthantSphere()
        classifier = make_pipeline(sphere, DeepNTKClassifier())                 # consistent: alpha = d, L = infinity
        classifier = make_pipeline(sphere, DeepNTKClassifier(torch.relu, 3))    # a ReLU network of 3 hidden layers

    Rows lie on the unit sphere and have no negative inner product; `OrthantSphere` brings them there. At infinite depth
    the rule of the activation (`classify_activation`) says what is computed, and nothing is solved. At finite depth an
    n x n system is. Equal rows count as one point, whose vote is the mean of theirs.

    Args:
        activation: elementwise function or module, Hermite coefficients, or a `DualActivation`; "optimal" for the
            designed activation of the data's dimension, `optimal_activation(columns - 1)`.
        depth: number of hidden layers, or "inf".
        ridge: added to the diagonal of the kernel, as a multiple of K_L(1); divided by the count for equal rows.
        ties: "raise" an error where a vote is a tie, or take the "first" class.
        max_solve: refuse to solve for more training points than this, 8 n^2 bytes, at finite depth.

    Attributes:
        dual_, taxonomy_: of the activation.
        classes_: the labels, sorted.
        n_features_in_: columns of X.
    """

    def __init__(
        self,
        activation: Callable[[Tensor], Tensor] | Tensor | DualActivation | str = "optimal",
        depth: int | float | str = "inf",
        *,
        ridge: float | int = 0.0,
        ties: str = "raise",
        max_solve: int = 20_000,
    ):
        self.activation = activation
        self.depth = depth
        self.ridge = ridge
        self.ties = ties
        self.max_solve = max_solve

    def fit(self, X: Any, y: Any) -> "DeepNTKClassifier":
        """Solves Eq. (1), or keeps the points for infinite depth.

        Raises:
            ValueError: if rows are not on the unit sphere or have a negative inner product; `depth` or `ridge` is out
                of range; the activation has no limit at infinite depth without a ridge; or the kernel is not positive
                definite to double precision.
        """
        depth = self._depth()
        if not 0 <= self.ridge < math.inf:
            raise ValueError(f"ridge must be finite and >= 0, got {self.ridge}")
        X, y = check_X_y(X, y, dtype=np.float64)
        votes = self._set_classes(y)
        unique, place, counts = _distinct(X)
        self._points = check_orthant_sphere(unique)
        _warn_of_contradictions(votes, place, counts)
        self._votes = torch.zeros(len(unique), votes.shape[1], dtype=torch.float64)
        self._votes.index_add_(0, place, votes).div_(counts[:, None])
        self._n_train, self.n_features_in_ = unique.shape
        activation = self.activation
        if isinstance(activation, str):
            if activation != "optimal":
                raise ValueError(f'activation must be "optimal" or a function, got {activation!r}')
            activation = optimal_activation(X.shape[1] - 1)
        self.dual_ = activation if isinstance(activation, DualActivation) else dual_activation(activation)
        self.taxonomy_ = classify_activation(self.dual_)
        if depth is None:
            self._fit_limit()
        else:
            self._fit_finite(depth, counts)
        return self

    def _depth(self) -> int | None:
        if self.depth == "inf" or self.depth == math.inf:
            return None
        if isinstance(self.depth, bool | str) or int(self.depth) != self.depth or self.depth < 0:
            raise ValueError(f'depth must be an integer >= 0 or "inf", got {self.depth!r}')
        return int(self.depth)

    def _fit_limit(self) -> None:
        rule = self.taxonomy_.rule
        if rule == "linear":
            raise ValueError("phi(z) = z: at any depth the network is linear regression, and there is no limit to take")
        if rule == "constant" and self.ridge == 0:
            raise ValueError(
                f"A = {self.taxonomy_.A:.4g} and B' = {self.taxonomy_.B_prime:.4g} < 1: the kernel tends to a constant "
                "matrix, which has no inverse; ridge > 0 makes the limit the majority"
            )
        self._radial: RadialKernel | None = _radial_kernel(self.dual_, None) if rule == "singular" else None
        self._weights: Tensor | None = None

    def _fit_finite(self, depth: int, counts: Tensor) -> None:
        n = self._n_train
        if n > self.max_solve:
            raise ValueError(
                f"{n:,} points would need a matrix of {8 * n * n / 1e9:.1f} GB; max_solve is {self.max_solve:,}. "
                'depth="inf" needs no matrix'
            )
        solved = self._solve(_radial_kernel(self.dual_, depth, depth <= _SHALLOW), counts)
        if not solved:
            # The table is right to ten digits, the matrix may need more of them.
            solved = self._solve(_radial_kernel(self.dual_, depth, True), counts)
        if not solved:
            raise ValueError(
                f"the kernel matrix of {n} points at depth {depth} is not positive definite to double precision: the "
                "network is too shallow to tell all points apart, or two nearly coincide; give a ridge, such as 1e-8, "
                "or more depth"
            )

    def _solve(self, radial: RadialKernel, counts: Tensor) -> bool:
        """Whether the weights of Eq. (1) could be found with this kernel."""
        n = self._n_train
        self._radial = radial
        matrix = torch.empty(n, n, dtype=torch.float64)
        for rows, part in zip(self._points.split(size := max(_BLOCK // n, 1)), matrix.split(size)):
            part.copy_(radial(orthant_complements(rows, self._points))).sub_(radial.diagonal).exp_()
        matrix.fill_diagonal_(0.0)
        matrix.diagonal().copy_(1 + self.ridge / counts.to(torch.float64))
        factor, failed = torch.linalg.cholesky_ex(matrix)
        floor = n * max(10 * torch.finfo(torch.float64).eps, 1e3 * radial.error)
        if int(failed) or float(factor.diagonal().square().min()) < floor:
            return False
        self._weights = torch.cholesky_solve(self._votes, factor)
        return True

    def _scores(self, rows: Tensor) -> Tensor:
        rows = check_orthant_sphere(rows)
        e = orthant_complements(rows, self._points)
        if self._weights is not None and self._radial is not None:
            return torch.softmax(self._radial(e), dim=1) @ self._weights
        same = e <= _SAME**2 / 2
        if self._radial is not None:
            weight = torch.softmax(torch.where(same, 0.0, self._radial(e)), dim=1)
        elif self.taxonomy_.rule == "nearest":
            weight = (e == e.amin(dim=1, keepdim=True)).to(torch.float64)
            weight /= weight.sum(dim=1, keepdim=True)
        else:
            weight = torch.full_like(e, 1 / e.shape[1])
            if self.taxonomy_.rule == "constant":
                same = torch.zeros_like(same)  # with a ridge nothing is interpolated
        return _weighted(weight, same, self._votes)


class OrthantSphere(TransformerMixin, BaseEstimator):
    """Data to the non-negative part of the unit sphere, by the ranges of the training data: see `to_orthant_sphere`.

    Attributes:
        low_, high_: the ends of each column.
        n_features_in_: columns of X.
    """

    def fit(self, X: Any, y: Any = None) -> "OrthantSphere":
        rows = check_array(X, dtype=np.float64)
        self.low_, self.high_ = rows.min(0), rows.max(0)
        self.n_features_in_ = rows.shape[1]
        return self

    def transform(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        rows = check_array(X, dtype=np.float64)
        if rows.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {rows.shape[1]} features, but OrthantSphere is expecting "
                f"{self.n_features_in_} features as input"
            )
        return to_orthant_sphere(rows, low=self.low_, high=self.high_)


@lru_cache(maxsize=16)
def _radial_kernel(dual: DualActivation, depth: int | None, direct: bool = False) -> RadialKernel:
    """Tables are kept: folds of a cross-validation and refits share theirs."""
    return RadialKernel(dual, depth, direct=direct)


def _weighted(weight: Tensor, same: Tensor, votes: Tensor) -> Tensor:
    """The mean vote of each row by its weights; of the points it coincides with, if there are any."""
    matched = same.any(dim=1)
    if bool(matched.any()):
        equal = same[matched].to(torch.float64)
        weight[matched] = equal / equal.sum(dim=1, keepdim=True)
    return weight @ votes


def _distinct(X: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """The distinct rows, which of them each row is, and how often each appears."""
    rows, place, counts = np.unique(X, axis=0, return_inverse=True, return_counts=True)
    return torch.from_numpy(rows), torch.from_numpy(place.reshape(-1)), torch.from_numpy(counts)


def _warn_of_contradictions(votes: Tensor, place: Tensor, counts: Tensor) -> None:
    if bool((counts == 1).all()):
        return
    sums = torch.zeros(len(counts), votes.shape[1], dtype=votes.dtype).index_add_(0, place, votes)
    contradictory = int((sums.abs() < counts[:, None]).any(dim=1).sum())
    if contradictory:
        warnings.warn(
            f"{contradictory} points appear several times, with different labels: their votes are averaged",
            stacklevel=3,
        )
