"""The last stage: principal components of the features and one linear support-vector machine for each attribute."""

import warnings
from typing import Any

import numpy as np
from torch import Tensor

from etude.vision.face_attributes.training import binary_tags

try:
    from sklearn.base import BaseEstimator
    from sklearn.decomposition import PCA
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise ImportError('AttributeSVM needs scikit-learn: pip install "etude[run]"') from error

__all__ = ["AttributeSVM", "balanced_accuracy_per_attribute"]

_GRID = (1e-4, 1e-3, 1e-2, 1e-1)
_MOST_COMPONENTS = 1024


class AttributeSVM(BaseEstimator):
    """One linear SVM for each attribute on principal components of features.

        svm = AttributeSVM().fit(features, tags)
        svm.predict(other_features)                     # (n, attributes), 0 or 1

    Scaling, components and C are of the training rows alone. An attribute that all or none of these rows have cannot
    be learnt: a warning names it, and it is predicted as it was seen.

    Args:
        pca: share of the variance that the components keep (at most 1,024 of them), or their number; None for none.
        C: "cv" picks it for each attribute from 1e-4 .. 0.1 by three-fold cross-validation of the balanced accuracy;
            or one number for all.
        class_weight: "balanced" for balanced accuracy, None for plain.

    Attributes:
        C_: the C of each attribute; NaN for one that could not be learnt.
        n_features_in_: features.
        n_components_: components kept.
    """

    def __init__(
        self, pca: float | int | None = 0.95, C: float | int | str = "cv", class_weight: str | None = "balanced"
    ):
        self.pca = pca
        self.C = C
        self.class_weight = class_weight

    def fit(self, X: Any, Y: Any) -> "AttributeSVM":
        """Fits to features (n, features) and tags (n, attributes) of 0 and 1, or of -1 and 1.

        Raises:
            ValueError: if the shapes disagree, a value is not finite, or tags are of other values.
        """
        x, tags = _matrix(X), binary_tags(Y).numpy()
        if len(x) != len(tags) or len(x) < 2:
            raise ValueError(f"X and Y must have equally many rows, at least two, got {len(x)} and {len(tags)}")
        if isinstance(self.C, str) and self.C != "cv":
            raise ValueError(f"C must be 'cv' or a positive number, got {self.C!r}")
        if not isinstance(self.C, str) and self.C <= 0:
            raise ValueError(f"C must be 'cv' or a positive number, got {self.C}")
        self.n_features_in_ = x.shape[1]
        self._scaler = StandardScaler().fit(x)
        scaled = self._scaler.transform(x)
        self._pca = None
        if self.pca is not None and scaled.any():  # features that do not vary have no components
            self._pca = PCA(self.pca, svd_solver="full").fit(scaled)
            scaled = self._components(scaled)
        self.n_components_ = scaled.shape[1]
        self._machines: list[LinearSVC | int] = []
        self.C_ = np.full(tags.shape[1], np.nan)
        for attribute, column in enumerate(tags.T):
            if column.min() == column.max():
                warnings.warn(
                    f"attribute {attribute} is {column[0]} in all {len(column)} training rows: nothing to learn",
                    UserWarning,
                    stacklevel=2,
                )
                self._machines.append(int(column[0]))
                continue
            self.C_[attribute] = self._strength(scaled, column)
            self._machines.append(self._machine(self.C_[attribute]).fit(scaled, column))
        return self

    def _machine(self, C: float) -> LinearSVC:
        # The primal problem converges in few Newton steps and draws nothing at random.
        return LinearSVC(C=C, class_weight=self.class_weight, dual=False)

    def _strength(self, x: np.ndarray, column: np.ndarray) -> float:
        if not isinstance(self.C, str):
            return float(self.C)
        folds = min(3, int(column.sum()), int((1 - column).sum()))
        if folds < 2:
            return 1e-3
        splits = StratifiedKFold(folds, shuffle=True, random_state=0)
        scores = [
            cross_val_score(self._machine(C), x, column, cv=splits, scoring="balanced_accuracy").mean() for C in _GRID
        ]
        return _GRID[int(np.argmax(scores))]

    def _components(self, scaled: np.ndarray) -> np.ndarray:
        return scaled if self._pca is None else self._pca.transform(scaled)[:, :_MOST_COMPONENTS]

    def decision_function(self, X: Any) -> np.ndarray:
        """(n, attributes): positive where the attribute is seen; infinite where it could not be learnt.

        Raises:
            ValueError: for another number of features.
        """
        check_is_fitted(self)
        x = _matrix(X)
        if x.shape[1] != self.n_features_in_:
            raise ValueError(f"X must have {self.n_features_in_} features, got {x.shape[1]}")
        z = self._components(self._scaler.transform(x))
        columns = [
            np.full(len(z), np.inf if machine else -np.inf)
            if isinstance(machine, int)
            else machine.decision_function(z)
            for machine in self._machines
        ]
        return np.stack(columns, axis=1)

    def predict(self, X: Any) -> np.ndarray:
        """(n, attributes), 0 or 1."""
        return (self.decision_function(X) > 0).astype(np.int64)

    def score(self, X: Any, Y: Any) -> float:
        """Balanced accuracy, mean over the attributes of which both values occur in Y."""
        return float(np.nanmean(balanced_accuracy_per_attribute(self.predict(X), Y)))


def balanced_accuracy_per_attribute(predicted: Any, true: Any) -> np.ndarray:
    """(attributes,): mean of the shares of the ones and of the zeros that are right; NaN where only one value occurs.

    A constant prediction scores 1/2, however rare the attribute.

    Raises:
        ValueError: if the shapes differ or values are not 0 and 1 (or -1 and 1).
    """
    guess, truth = binary_tags(predicted).numpy(), binary_tags(true).numpy()
    if guess.shape != truth.shape:
        raise ValueError(f"predicted and true must have one shape, got {guess.shape} and {truth.shape}")
    right = guess == truth
    with np.errstate(invalid="ignore"):
        ones = (right & (truth == 1)).sum(0) / (truth == 1).sum(0)
        zeros = (right & (truth == 0)).sum(0) / (truth == 0).sum(0)
    return (ones + zeros) / 2


def _matrix(X: Any) -> np.ndarray:
    values = X.detach().cpu().numpy() if isinstance(X, Tensor) else np.asarray(X)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"features must have shape (n, features), got {values.shape}")
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("features hold NaN or infinite values")
    return values
