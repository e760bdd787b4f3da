"""Transparent models that imitate a black box on a few columns.

They are trained on the black box's answers, never on y, and see the chosen columns standardised by the training rows.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from etude.science.blackbox_rules.blackbox import predictor

__all__ = ["SURROGATES", "Surrogate", "mixed_rows", "select_top_k"]

SURROGATES = ("tree", "forest", "boosting", "l1")


def mixed_rows(X: Float[np.ndarray, "n d"], count: int, rng: np.random.Generator) -> Float[np.ndarray, "count d"]:
    """Points between random pairs of rows, u x_a + (1 - u) x_b with u ~ U(0, 1), and noise of 0.2 sd of each column.

    Real tables suffer from them more often than not: off the data a black box answers anything.
    """
    a, b = rng.integers(len(X), size=(2, count))
    u = rng.random((count, 1))
    noise = 0.2 * X.std(0) * rng.standard_normal((count, X.shape[1]))
    return (u * X[a] + (1 - u) * X[b] + noise).astype(X.dtype)


class Surrogate:
    """A small model on some columns of a table, fitted to class codes.

        surrogate = Surrogate("tree", columns=top).fit(X, black_box.predict_proba(X).argmax(1), classes=3)

    Args:
        kind: "tree", "forest", "boosting" or "l1" (logistic regression with an L1 penalty).
        columns: (k,) the columns that it sees.
        max_depth, min_samples_leaf: of the tree. trees: of the forest.
        random_state: seed.

    Attributes:
        model_: the fitted model. center_, scale_: of the columns; the model sees (x - center) / scale.

    Raises:
        ValueError: for an unknown kind, no column or one named twice.
    """

    def __init__(
        self,
        kind: str,
        columns: Sequence[int] | np.ndarray,
        *,
        max_depth: int | None = 5,
        min_samples_leaf: int = 5,
        trees: int = 200,
        random_state: int = 0,
    ):
        if kind not in SURROGATES:
            raise ValueError(f"surrogate must be one of {', '.join(SURROGATES)}, got {kind!r}")
        self.kind, self.columns = kind, np.asarray(columns, dtype=np.int64)
        if not len(self.columns) or len(np.unique(self.columns)) < len(self.columns):
            raise ValueError(f"columns must be at least one and different, got {self.columns.tolist()[:10]}")
        self.max_depth, self.min_samples_leaf, self.trees = max_depth, min_samples_leaf, trees
        self.random_state = random_state

    def _model(self) -> Any:
        seed = self.random_state
        if self.kind == "tree":
            from sklearn.tree import DecisionTreeClassifier

            return DecisionTreeClassifier(
                max_depth=self.max_depth, min_samples_leaf=self.min_samples_leaf, random_state=seed
            )
        if self.kind == "forest":
            from sklearn.ensemble import RandomForestClassifier

            return RandomForestClassifier(self.trees, random_state=seed)
        if self.kind == "boosting":
            from etude.science.blackbox_rules.baselines import BoostedTrees

            return BoostedTrees(100, 3, random_state=seed)
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(l1_ratio=1.0, solver="saga", C=1.0, max_iter=2_000, tol=1e-3, random_state=seed)

    def fit(self, X: Float[np.ndarray, "n d"], codes: Int64[np.ndarray, "n"], classes: int) -> "Surrogate":
        """Trains on rows of the full table.

        Args:
            codes: what the black box says, as numbers of classes. classes: how many there are.

        Raises:
            ValueError: if the black box gives all rows one class.
        """
        self.classes = classes
        present = np.unique(codes)
        if len(present) < 2:
            raise ValueError(
                f"the black box gives all {len(codes)} rows the class {present.tolist()}: there is nothing to imitate"
            )
        part = X[:, self.columns].astype(np.float64)
        spread = part.std(0)
        self.center_, self.scale_ = part.mean(0), np.where(spread > 0, spread, 1.0)
        self.model_ = self._model().fit(self.standardize(X), codes)
        return self

    def standardize(self, X: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n k"]:
        """The rows as the model sees them."""
        return ((X[:, self.columns] - self.center_) / self.scale_).astype(np.float32)

    def probabilities(self, z: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n c"]:
        """Probabilities of all classes for rows as the model sees them."""
        found = self.model_.predict_proba(z)
        out = np.zeros((len(z), self.classes))
        out[:, np.asarray(self.model_.classes_, dtype=np.int64)] = found
        return out

    def predict_proba(self, X: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n c"]:
        """(n, classes) for rows of the full table."""
        return self.probabilities(self.standardize(X))


def select_top_k(
    ranking: Int64[np.ndarray, "d"],
    black_box: Any,
    train: Float[np.ndarray, "n d"],
    held_out: Float[np.ndarray, "m d"],
    *,
    candidates: Sequence[int] = (5, 10, 20, 50, 100),
    kind: str = "tree",
    random_state: int = 0,
) -> tuple[int, dict[int, float]]:
    """The elbow of fidelity: the smallest k whose agreement on held-out rows is within one standard error of the best.

    The standard error is that of the best share of agreement over the held-out rows.

    Args:
        ranking: columns, the best first. candidates: values of k; those above d are left out.
        held_out: rows that neither ranking nor surrogate has seen trained on.

    Returns:
        k, and the agreement of each candidate.

    Raises:
        ValueError: if no candidate lies in 1..d.
    """
    usable = sorted(k for k in set(candidates) if 1 <= k <= len(ranking))
    if not usable:
        raise ValueError(f"candidates must lie in 1..{len(ranking)}, the number of columns, got {tuple(candidates)}")
    predict = predictor(black_box)
    found, asked = np.asarray(predict(train)), np.asarray(predict(held_out)).argmax(1)
    curve = {}
    for k in usable:
        surrogate = Surrogate(kind, ranking[:k], random_state=random_state)
        surrogate.fit(train, found.argmax(1), found.shape[1])
        curve[k] = float((surrogate.predict_proba(held_out).argmax(1) == asked).mean())
    best = max(curve.values())
    bar = best - (best * (1 - best) / len(held_out)) ** 0.5
    return next(k for k in usable if curve[k] >= bar), curve
