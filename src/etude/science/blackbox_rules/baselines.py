"""What a black box is compared with on tables: gradient-boosted trees (XGBoost) and TabNet, by their own libraries."""

import logging
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from etude.science.blackbox_rules.inputs import as_labels, as_matrix

__all__ = ["BoostedTrees", "TabNet"]

logger = logging.getLogger(__name__)


class BoostedTrees:
    """XGBoost; scikit-learn's histogram boosting where xgboost is not installed, which is logged.

    Args:
        n_estimators, max_depth, learning_rate, colsample: rounds, depth, shrinkage, share of columns a tree sees.
        random_state: seed.

    Attributes:
        library_: "xgboost" or "scikit-learn".
    """

    def __init__(
        self,
        n_estimators: int = 200,
        max_depth: int = 4,
        learning_rate: float | int = 0.1,
        colsample: float | int = 1.0,
        random_state: int = 0,
    ):
        self.n_estimators, self.max_depth, self.learning_rate = n_estimators, max_depth, learning_rate
        self.colsample, self.random_state = colsample, random_state

    def fit(self, X: Any, y: Any) -> "BoostedTrees":
        """Trains on rows (n, d) and their classes."""
        values, _ = as_matrix(X)
        self.classes_, codes = as_labels(y, len(values))
        try:
            from xgboost import XGBClassifier
        except ImportError:
            from sklearn.ensemble import HistGradientBoostingClassifier

            logger.warning("xgboost is not installed: scikit-learn's boosting is used; pip install xgboost")
            self.library_ = "scikit-learn"
            self.model_: Any = HistGradientBoostingClassifier(
                max_iter=self.n_estimators, max_depth=self.max_depth, learning_rate=float(self.learning_rate),
                max_features=float(self.colsample), early_stopping=False, random_state=self.random_state,
            )  # fmt: skip
        else:
            self.library_ = "xgboost"
            self.model_ = XGBClassifier(
                n_estimators=self.n_estimators, max_depth=self.max_depth, learning_rate=self.learning_rate,
                colsample_bytree=self.colsample, tree_method="hist", random_state=self.random_state, n_jobs=1,
            )  # fmt: skip
        self.model_.fit(values, codes)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """(n, classes) probabilities, float64."""
        return self.model_.predict_proba(as_matrix(X)[0]).astype(np.float64)

    def predict(self, X: Any) -> np.ndarray:
        """(n,) labels."""
        return self.classes_[self.predict_proba(X).argmax(1)]

    def gain_importance(self, per_split: bool = False) -> np.ndarray:
        """(d,) gain of the splits on each column, 0 for those never split on.

        Args:
            per_split: the mean over a column's splits, the library's default, instead of their sum. On a wide table
                chance columns with one lucky split then lead those that are split on again and again.

        Raises:
            ImportError: if scikit-learn's boosting, which keeps no gains, stands in for XGBoost.
        """
        if self.library_ != "xgboost":
            raise ImportError("gain importance needs XGBoost: pip install xgboost")
        found = self.model_.get_booster().get_score(importance_type="gain" if per_split else "total_gain")
        out = np.zeros(self.model_.n_features_in_)
        # Without names the library calls columns f0, f1, ...
        out[[int(name[1:]) for name in found]] = list(found.values())
        return out


class TabNet:
    """TabNet (Arik & Pfister, arXiv:1908.07442, 2019) of the library pytorch-tabnet.

    Args:
        width: n_d = n_a. steps: n_steps, 3 to 5. gamma: relaxation of the masks. sparsity: lambda_sparse.
        epochs, batch_size, lr: of Adam. random_state: seed. device: where to train.

    Attributes:
        importance_: (d,) its masks, aggregated over the training rows.
    """

    def __init__(
        self,
        width: int = 16,
        steps: int = 3,
        gamma: float | int = 1.3,
        sparsity: float | int = 1e-3,
        epochs: int = 40,
        batch_size: int = 128,
        lr: float | int = 2e-2,
        random_state: int = 0,
        device: str = "cpu",
    ):
        self.width, self.steps, self.gamma, self.sparsity = width, steps, gamma, sparsity
        self.epochs, self.batch_size, self.lr = epochs, batch_size, lr
        self.random_state, self.device = random_state, device

    def fit(self, X: Any, y: Any, progress: Callable[..., Any] | None = None) -> "TabNet":
        """Trains on rows (n, d) and their classes, standardised inside.

        Raises:
            ImportError: if pytorch-tabnet is not installed.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                from pytorch_tabnet.tab_model import TabNetClassifier
        except ImportError as error:
            raise ImportError("TabNet needs pytorch-tabnet: pip install pytorch-tabnet") from error
        values, _ = as_matrix(X)
        self.classes_, codes = as_labels(y, len(values))
        self.mean_, scale = values.mean(0), values.std(0)
        self.scale_ = np.where(scale > 0, scale, 1.0)
        before = np.random.get_state()
        # The library seeds both global generators.
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                self.model_ = TabNetClassifier(
                    n_d=self.width, n_a=self.width, n_steps=self.steps, gamma=self.gamma, lambda_sparse=self.sparsity,
                    optimizer_params={"lr": self.lr}, seed=self.random_state, verbose=0, device_name=self.device,
                )  # fmt: skip
                batch = min(self.batch_size, len(values))
                self.model_.fit(
                    self._scaled(values), codes, max_epochs=self.epochs, patience=0, batch_size=batch,
                    virtual_batch_size=max(2, batch // 2), drop_last=len(values) > batch,
                )  # fmt: skip
            finally:
                np.random.set_state(before)
        self.importance_ = np.asarray(self.model_.feature_importances_, dtype=np.float64)
        return self

    def _scaled(self, values: np.ndarray) -> np.ndarray:
        return ((values - self.mean_) / self.scale_).astype(np.float32)

    def predict_proba(self, X: Any) -> np.ndarray:
        """(n, classes) probabilities, float64."""
        return self.model_.predict_proba(self._scaled(as_matrix(X)[0])).astype(np.float64)

    def predict(self, X: Any) -> np.ndarray:
        """(n,) labels."""
        return self.classes_[self.predict_proba(X).argmax(1)]
