"""Random-feature attention as scikit-learn estimators on arrays of tokens.

Fu, Guo, Bai & Mei, NeurIPS 2023, arXiv:2307.11353. Training is a convex problem with a closed solution, so that an
estimator has no learning rate, no epochs, and one penalty, which cross-validation finds.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from etude.theory.random_feature_attention.layers import RandomFeatureAttention
from etude.theory.random_feature_attention.ridge import (
    RIDGES,
    cross_validate,
    fit_ridge,
    set_values,
    standardized,
    uses_primal,
)
from etude.theory.random_feature_attention.tokens import LARGE_NORM, Tokens

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.model_selection import check_cv
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise ImportError('the estimators need scikit-learn: pip install "etude[run]"') from error

__all__ = ["RFAClassifier", "RFARegressor"]


class _Attention(BaseEstimator):
    """What both estimators share: tokens from arrays, the layer, and its fit."""

    def __init__(
        self,
        num_heads: int = 1000,
        ridge: float | int | str = "cv",
        bias: float | int = 0.0,
        solver: str = "auto",
        *,
        weight_std: float | int = 0.5,
        rank: int | None = None,
        activation: str | Callable[[Tensor], Tensor] = "relu",
        ridges: Any = RIDGES,
        cv: Any = 5,
        device: str = "cpu",
        random_state: Any = None,
    ):
        self.num_heads = num_heads
        self.ridge = ridge
        self.bias = bias
        self.solver = solver
        self.weight_std = weight_std
        self.rank = rank
        self.activation = activation
        self.ridges = ridges
        self.cv = cv
        self.device = device
        self.random_state = random_state

    def _fit(self, X: Any, targets: np.ndarray, stratify: np.ndarray | None) -> None:
        """Sets the layer for targets (n, outputs)."""
        if isinstance(self.ridge, str):
            if self.ridge != "cv":
                raise ValueError(f'ridge must be "cv" or a number >= 0, got {self.ridge!r}')
        elif not 0 <= self.ridge < math.inf:
            raise ValueError(f'ridge must be "cv" or a finite number >= 0, got {self.ridge!r}')
        tokens = self._scaled(X, fitting=True)
        if len(tokens) != len(targets):
            raise ValueError(f"X and y must have equally many rows, got {len(tokens)} and {len(targets)}")
        y = torch.from_numpy(targets).to(self.device, torch.float64)
        generator = torch.Generator().manual_seed(int(check_random_state(self.random_state).randint(2**31 - 1)))
        self.layer_ = RandomFeatureAttention(
            tokens.dim, self.num_heads, y.shape[1], self.weight_std, self.bias, self.rank, self.activation, generator
        ).to(self.device, torch.float64)
        standard, mean, std = standardized(y)
        if isinstance(self.ridge, str):
            splitter = check_cv(self.cv, stratify, classifier=stratify is not None)
            folds = splitter.split(np.zeros(len(targets)), stratify)
            self.cv_, found = cross_validate(self.layer_, tokens, y, folds, tuple(self.ridges), solver=self.solver)
            self.ridge_ = self.cv_.best
            if len(self.cv_.ridges) > 1 and self.ridge_ == min(self.cv_.ridges):
                warnings.warn(
                    f"the best ridge is the smallest searched, {self.ridge_:g}: give smaller ones in ridges",
                    stacklevel=3,
                )
            primal = uses_primal(self.layer_, len(tokens), self.solver)
            set_values(self.layer_, tokens, found, primal=primal)
        else:
            self.ridge_ = float(self.ridge)
            fit_ridge(self.layer_, tokens, standard, self.ridge_, solver=self.solver)
        self._mean, self._std = mean, std
        self.n_features_in_ = tokens.dim

    def _scaled(self, X: Any, *, fitting: bool = False) -> Tokens:
        """Tokens in float64, divided by the length that training tokens had if that was far above 1."""
        tokens = Tokens.from_array(X)
        if fitting:
            valid = tokens.keys if tokens.key_mask is None else tokens.keys[tokens.key_mask]
            parts = [part.square().sum(-1).flatten() for part in (tokens.query, valid)]
            length = float(torch.cat(parts).mean().sqrt())
            self.scale_ = length if length > LARGE_NORM else 1.0
            if self.scale_ != 1.0:
                warnings.warn(
                    f"tokens have a root-mean-square norm of {length:.3g} and are divided by it; scale them yourself "
                    "if lengths matter",
                    stacklevel=4,
                )
        elif tokens.dim != self.n_features_in_:
            name = type(self).__name__
            raise ValueError(f"X has tokens of dim {tokens.dim}, but {name} is expecting {self.n_features_in_}")
        return Tokens(tokens.query / self.scale_, tokens.keys / self.scale_, tokens.key_mask).to(self.device)

    def _outputs(self, X: Any) -> np.ndarray:
        check_is_fitted(self, "layer_")
        found = self.layer_.predict(self._scaled(X)) * self._std + self._mean
        return found.numpy(force=True)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array, tags.input_tags.two_d_array = True, False
        tags.input_tags.allow_nan = True
        return tags


class RFARegressor(RegressorMixin, _Attention):
    """Regression on sets: a mean over heads of ReLU attention with frozen random query-key matrices.

        RFARegressor(num_heads=400).fit(X, y).predict(X_new)
        GridSearchCV(RFARegressor(400), {"bias": [0, 1, 2, 4]})

    X is (n, 1 + num_keys, dim), so that scikit-learn's splitters work: token 0 is the query, the others are the keys,
    and a key of NaN is none. Predictions do not depend on the order of the keys, and their number may change.

    Args:
        num_heads: M.
        ridge: penalty relative to the mean diagonal of the Gram matrix, or "cv" for the best of `ridges`.
        bias: centre of the query-key matrices, in multiples of the identity; 0 or the paper's 1, larger for few
            samples of targets that weigh keys by their similarity to the query.
        solver: "primal", "dual", or "auto" for the smaller system.
        weight_std, rank, activation: as for `RandomFeatureAttention`.
        ridges: searched with "cv".
        cv: folds, or a scikit-learn splitter.
        device: where features are computed and the system is solved.
        random_state: of the frozen matrices: an int, a `RandomState`, or None.

    Attributes:
        layer_: the fitted `RandomFeatureAttention`, for standardised targets.
        ridge_: the penalty used.
        cv_: errors of all penalties with their standard errors, where "cv" searched.
        scale_: what tokens are divided by: 1, or their root-mean-square norm if that exceeds 3.
        n_features_in_: dim of the tokens.
    """

    def fit(self, X: Any, y: Any) -> "RFARegressor":
        """Solves for the values.

        Raises:
            ValueError: if X is not an array of tokens, y does not fit or is not finite, or an argument is out of range.
        """
        targets = np.asarray(y, dtype=np.float64)
        if targets.ndim not in (1, 2) or not len(targets) or not np.isfinite(targets).all():
            raise ValueError(f"y must be finite, of shape (n,) or (n, outputs), got shape {targets.shape}")
        self._flat = targets.ndim == 1
        self._fit(X, targets.reshape(len(targets), -1), None)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """(n,) or (n, outputs)."""
        found = self._outputs(X)
        return found[:, 0] if self._flat else found


class RFAClassifier(ClassifierMixin, _Attention):
    """Classification of sets, one class against the rest by ridge regression on +-1; arguments as for `RFARegressor`.

    Attributes:
        classes_: the labels, sorted. The others as for `RFARegressor`.
    """

    def fit(self, X: Any, y: Any) -> "RFAClassifier":
        """Solves for the values; with "cv" the penalty with the smallest squared error on held-out folds is taken.

        Raises:
            ValueError: as for `RFARegressor`, or if there are fewer than two classes.
        """
        labels = np.asarray(y)
        if labels.ndim != 1 or not len(labels):
            raise ValueError(f"y must have shape (n,), got {labels.shape}")
        check_classification_targets(labels)
        self.classes_, codes = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"a classifier needs at least two classes, got one: {self.classes_.tolist()}")
        signs = 2.0 * np.eye(len(self.classes_))[codes] - 1
        self._fit(X, signs[:, 1:] if len(self.classes_) == 2 else signs, labels)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """(n,) for two classes, positive for the second; else (n, classes)."""
        found = self._outputs(X)
        return found[:, 0] if len(self.classes_) == 2 else found

    def predict(self, X: Any) -> np.ndarray:
        """(n,) labels."""
        scores = self.decision_function(X)
        return self.classes_[(scores > 0).astype(np.int64) if scores.ndim == 1 else scores.argmax(1)]
