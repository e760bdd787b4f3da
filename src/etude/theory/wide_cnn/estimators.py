"""Kernel regression and classification with an infinitely wide hierarchical convolutional network.

Cagnetta, Favero & Wyart, ICML 2023, arXiv:2208.01003. Gradient descent to the end, on the square loss and from a zero
output, takes the infinitely wide network to K(x, X) (K(X, X) + ridge)^-1 y with its NTK; training the readout alone,
or a Bayesian network, with its RFK. As a Gaussian process the same kernel says how far it may be wrong.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from etude.theory.wide_cnn.fields import cholesky
from etude.theory.wide_cnn.kernel import hierarchical_kernel, kernel_diagonal

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_array, check_is_fitted, check_X_y
except ImportError as error:
    raise ImportError('the estimators need scikit-learn: pip install "etude[run]"') from error

__all__ = ["HierarchicalKernelClassifier", "HierarchicalKernelRegressor"]

_BLOCK = 4_000_000
"""Pairs of a test and a training point held at a time when predicting: 32 MB."""


class _KernelMachine(BaseEstimator):
    """The solve and the blocks that both estimators share."""

    def __init__(
        self,
        filter_sizes: Sequence[int] = (2, 2),
        kind: str = "ntk",
        ridge: float | int = 1e-12,
        *,
        image_shape: tuple[int, int, int] | None = None,
        constant: float | int = 0.0,
        normalize: bool = True,
        max_solve: int = 20_000,
    ):
        self.filter_sizes = filter_sizes
        self.kind = kind
        self.ridge = ridge
        self.image_shape = image_shape
        self.constant = constant
        self.normalize = normalize
        self.max_solve = max_solve

    def _solve(self, X: np.ndarray, targets: Tensor) -> None:
        if len(X) > self.max_solve:
            raise ValueError(
                f"{len(X):,} points would need a matrix of {8 * len(X) ** 2 / 1e9:.1f} GB, twice; max_solve is "
                f"{self.max_solve:,}"
            )
        self._shape = X.shape[1:]
        self.n_features_in_ = math.prod(self._shape)
        self._inputs = self._tensor(X)
        K = self._kernel(self._inputs, None)
        self._factor = cholesky(K, self.ridge)
        self._weights = torch.cholesky_solve(targets, self._factor)

    def _tensor(self, X: np.ndarray) -> Tensor:
        rows = torch.from_numpy(np.ascontiguousarray(X, dtype=np.float64))
        if self.image_shape is None:
            return rows
        if rows.ndim != 2 or rows.shape[1] != math.prod(self.image_shape):
            raise ValueError(
                f"rows must have {math.prod(self.image_shape)} values for images of shape {self.image_shape}, "
                f"got shape {tuple(rows.shape)}"
            )
        return rows.reshape(-1, *self.image_shape)

    def _options(self) -> dict[str, Any]:
        dim = 2 if self._inputs.ndim == 4 else 1
        return {"normalize": self.normalize, "dim": dim, "constant": self.constant}

    def _kernel(self, x: Tensor, y: Tensor | None) -> Tensor:
        return hierarchical_kernel(x, y, self.filter_sizes, self.kind, **self._options())

    def _checked(self, X: Any) -> Tensor:
        check_is_fitted(self)
        rows = check_array(X, dtype=np.float64, allow_nd=True)
        if rows.shape[1:] != self._shape:
            raise ValueError(
                f"X has inputs of shape {rows.shape[1:]}, but {type(self).__name__} is expecting {self._shape}"
            )
        return self._tensor(rows)

    def _outputs(self, rows: Tensor) -> Tensor:
        size = max(_BLOCK // len(self._inputs), 1)
        return torch.cat([self._kernel(block, self._inputs) @ self._weights for block in rows.split(size)])


class HierarchicalKernelRegressor(RegressorMixin, _KernelMachine):
    """Regression with the kernel of an infinitely wide convolutional network.

        HierarchicalKernelRegressor([2, 2, 2]).fit(X, y).predict(X_new, return_std=True)

    There is no intercept, as the network has none: far from all points it falls back to 0.

    Args:
        filter_sizes: s_1, ..., s_L; every side of an input is a multiple of their product.
        kind: "ntk" or "rfk".
        ridge: added to the kernel's diagonal; 1e-12 interpolates.
        image_shape: (channels, height, width), for rows that are flattened images. Arrays (n, channels, height, width)
            are taken as they are.
        constant: appended to every first patch before it is normalised, so that blank ones have a direction.
        normalize: scale first patches to unit norm.
        max_solve: refuse more training points than this, 16 n^2 bytes.

    Attributes:
        n_features_in_: inputs of X.
        scale_: amplitude of the Gaussian process, sqrt(y^T (K + ridge)^-1 y / n) by maximum likelihood.
    """

    def fit(self, X: Any, y: Any) -> "HierarchicalKernelRegressor":
        """Solves for the weights.

        Raises:
            ValueError: if inputs do not fit the filters, a first patch is 0 (see `constant`), or the kernel plus ridge
                is not positive definite, as with equal rows and no ridge.
        """
        X, y = check_X_y(X, y, dtype=np.float64, allow_nd=True, y_numeric=True)
        targets = torch.from_numpy(np.asarray(y, dtype=np.float64))[:, None]
        self._solve(X, targets)
        self.scale_ = math.sqrt(max(float((targets * self._weights).sum()) / len(targets), 0.0))
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """(n,) predictions; with `return_std` also the posterior standard deviation of the Gaussian process."""
        rows = self._checked(X)
        mean = self._outputs(rows).squeeze(1).numpy()
        if not return_std:
            return mean
        spread = []
        for block in rows.split(max(_BLOCK // len(self._inputs), 1)):
            across = torch.linalg.solve_triangular(self._factor, self._kernel(block, self._inputs).T, upper=False)
            own = kernel_diagonal(block, self.filter_sizes, self.kind, **self._options())
            spread.append((own - across.square().sum(0)).clamp(min=0.0).sqrt())
        return mean, torch.cat(spread).numpy() * self.scale_


class HierarchicalKernelClassifier(ClassifierMixin, _KernelMachine):
    """One-against-the-rest classification by regression on +-1, with the arguments of `HierarchicalKernelRegressor`.

        HierarchicalKernelClassifier([2, 2, 2], ridge=1e-3, image_shape=(1, 8, 8), constant=1.0).fit(X, y)

    Attributes:
        classes_: the labels, sorted.
        n_features_in_: inputs of X.
    """

    def fit(self, X: Any, y: Any) -> "HierarchicalKernelClassifier":
        """Solves for the weights of all classes at once.

        Raises:
            ValueError: as for `HierarchicalKernelRegressor.fit`, or if there is but one class.
        """
        X, y = check_X_y(X, y, dtype=np.float64, allow_nd=True)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"a classifier needs at least two classes, got one class: {self.classes_.tolist()}")
        targets = 2 * torch.nn.functional.one_hot(torch.from_numpy(codes.astype(np.int64))).to(torch.float64) - 1
        self._solve(X, targets[:, 1:] if len(self.classes_) == 2 else targets)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """(n,) for the second of two classes, else (n, classes)."""
        outputs = self._outputs(self._checked(X))
        return (outputs.squeeze(1) if len(self.classes_) == 2 else outputs).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """(n,) labels."""
        scores = self.decision_function(X)
        return self.classes_[(scores > 0).astype(np.int64) if scores.ndim == 1 else scores.argmax(1)]
