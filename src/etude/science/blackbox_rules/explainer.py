"""The whole way: from a black box over its few columns to rules, explanations and counterfactuals."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from etude.science.blackbox_rules.blackbox import predictor
from etude.science.blackbox_rules.inputs import as_matrix
from etude.science.blackbox_rules.local import (
    Counterfactual,
    LocalExplanation,
    anchor,
    nearest_box,
    representative_rows,
)
from etude.science.blackbox_rules.metrics import classification_scores, comprehensiveness, fidelity, sufficiency
from etude.science.blackbox_rules.ranking import Agreement, Importances, measure_importances, rank_agreement
from etude.science.blackbox_rules.rules import Rule, RuleList, leaf_boxes, prune_rules, tree_rules
from etude.science.blackbox_rules.shapley import kernel_shap, tree_shap
from etude.science.blackbox_rules.surrogate import SURROGATES, Surrogate, mixed_rows, select_top_k

try:
    from sklearn.base import BaseEstimator
    from sklearn.model_selection import train_test_split
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise ImportError('blackbox_rules needs scikit-learn: pip install "etude[run]"') from error

__all__ = ["SurrogateExplainer"]

logger = logging.getLogger(__name__)


class SurrogateExplainer(BaseEstimator):
    """Explains a fitted classifier by a small model on its few most important columns.

        explainer = SurrogateExplainer(black_box).fit(X_train, y_train)
        print(explainer.fidelity(X_test))
        for rule in explainer.rules():
            print(rule.to_text(explainer.feature_names_in_))

    Args:
        black_box: a fitted `BlackBoxClassifier`, anything with `predict_proba`, or a function (n, d) -> (n, classes).
        k: how many columns, or "auto", the elbow of `select_top_k` over `candidates`.
        surrogate: "tree", "forest", "boosting" or "l1". Rules and counterfactuals need a single tree: beside the other
            three a tree is distilled from the black box, and `notes_` says so.
        n_perturb: further training points for each row, between random pairs of rows; see `mixed_rows`.
        max_depth, min_samples_leaf: of the tree.
        techniques, n_repeats, conditional: of `measure_importances`. aggregation: "borda" or "mrr".
        candidates: for `k`. random_state: seed.

    Attributes:
        importances_: what each technique says. ranking_: (d,) all columns, the best first. top_, bottom_: the first
            and the last k of it.
        k_: how many. k_curve_: agreement on held-out rows of each candidate, if k was "auto".
        surrogate_: the fitted `Surrogate`. tree_: the one whose model is the tree of the rules.
        classes_: labels. notes_: what was done without being asked.
    """

    def __init__(
        self,
        black_box: Any,
        k: int | str = "auto",
        surrogate: str = "tree",
        n_perturb: int = 0,
        *,
        max_depth: int = 5,
        min_samples_leaf: int = 5,
        techniques: Sequence[str] | None = None,
        aggregation: str = "borda",
        n_repeats: int = 10,
        conditional: bool = False,
        candidates: Sequence[int] = (5, 10, 20, 50, 100),
        random_state: int = 0,
    ):
        self.black_box = black_box
        self.k = k
        self.surrogate = surrogate
        self.n_perturb = n_perturb
        self.max_depth = max_depth
        self.min_samples_leaf = min_samples_leaf
        self.techniques = techniques
        self.aggregation = aggregation
        self.n_repeats = n_repeats
        self.conditional = conditional
        self.candidates = candidates
        self.random_state = random_state

    def fit(
        self, X: Any, y: Any = None, *, held_out: tuple[Any, Any] | None = None, importances: Importances | None = None
    ) -> "SurrogateExplainer":
        """Ranks the columns, chooses k of them and distils the surrogate. Nothing here may be a test row.

        Args:
            X: (n, d) training rows. y: (n,) their labels, which only the drop in macro-F1 needs.
            held_out: rows and labels (or None) that the black box was not trained on, to shuffle columns of and to
                choose k by; a quarter of X if None, which is then left out of the surrogate's training: better than
                nothing, but the black box has seen it.
            importances: measured before; measured here if None.

        Raises:
            ValueError: for k above d, an unknown surrogate, a bad matrix, or a black box that says one thing of all.
        """
        if self.surrogate not in SURROGATES:
            raise ValueError(f"surrogate must be one of {', '.join(SURROGATES)}, got {self.surrogate!r}")
        if self.n_perturb < 0:
            raise ValueError(f"n_perturb must not be negative, got {self.n_perturb}")
        rows, names = as_matrix(X)
        d = rows.shape[1]
        if self.k != "auto" and (isinstance(self.k, str) or not 1 <= self.k <= d):
            raise ValueError(f"k must be 'auto' or lie in 1..{d}, the number of columns, got {self.k!r}")
        self.feature_names_in_ = np.array(names, dtype=object)
        self.n_features_in_ = d
        self._predict = predictor(self.black_box)
        labels = None if y is None else np.asarray(y)
        if labels is not None and labels.shape != (len(rows),):
            raise ValueError(f"y must have shape ({len(rows)},), one label a row, got {labels.shape}")
        if held_out is None:
            kept, apart = train_test_split(np.arange(len(rows)), test_size=0.25, random_state=self.random_state)
            other, other_labels = rows[apart], None if labels is None else labels[apart]
            rows = rows[kept]
        else:
            other, other_labels = as_matrix(held_out[0], d, "held_out")[0], held_out[1]
        answers = np.asarray(self._predict(rows))
        self.classes_ = np.asarray(getattr(self.black_box, "classes_", np.arange(answers.shape[1])))
        rng = np.random.default_rng(self.random_state)
        self.importances_ = importances or measure_importances(
            self.black_box, rows, other, other_labels, techniques=self.techniques, n_repeats=self.n_repeats,
            conditional=self.conditional, rng=rng,
        )  # fmt: skip
        self.notes_ = list(self.importances_.notes)
        self.ranking_ = self.importances_.merged(self.aggregation)
        self.k_curve_: dict[int, float] = {}
        if self.k == "auto":
            self.k_, self.k_curve_ = select_top_k(
                self.ranking_, self.black_box, rows, other, candidates=self.candidates, kind=self.surrogate,
                random_state=self.random_state,
            )  # fmt: skip
        else:
            self.k_ = int(self.k)
        self.top_, self.bottom_ = self.ranking_[: self.k_], self.ranking_[-self.k_ :]
        self._rows = rows
        if self.n_perturb:
            extra = mixed_rows(rows, self.n_perturb * len(rows), rng)
            rows = np.concatenate([rows, extra])
            answers = np.concatenate([answers, np.asarray(self._predict(extra))])
        self._codes = answers[: len(self._rows)].argmax(1)
        self.surrogate_ = self._distilled(self.surrogate, rows, answers)
        self.tree_ = self.surrogate_
        if self.surrogate != "tree":
            self.tree_ = self._distilled("tree", rows, answers)
            found = fidelity(np.asarray(self._predict(other)), self.tree_.predict_proba(other))["agreement"]
            self.notes_.append(
                f"rules and counterfactuals are those of a tree of depth {self.max_depth} distilled beside the "
                f"{self.surrogate}; it agrees with the black box on {found:.0%} of the held-out rows"
            )
        return self

    def _distilled(self, kind: str, rows: np.ndarray, answers: np.ndarray) -> Surrogate:
        surrogate = Surrogate(
            kind, self.top_, max_depth=self.max_depth, min_samples_leaf=self.min_samples_leaf,
            random_state=self.random_state,
        )  # fmt: skip
        return surrogate.fit(rows, answers.argmax(1), answers.shape[1])

    def _matrix(self, X: Any) -> np.ndarray:
        check_is_fitted(self, "surrogate_")
        return as_matrix(X, self.n_features_in_)[0]

    def _row(self, x: Any) -> np.ndarray:
        row = np.asarray(x)
        if row.shape != (self.n_features_in_,):
            raise ValueError(f"x must be one row of {self.n_features_in_} numbers, got shape {row.shape}")
        return self._matrix(row[None])

    def predict_proba(self, X: Any) -> Float[np.ndarray, "n c"]:
        """The surrogate's probabilities."""
        return self.surrogate_.predict_proba(self._matrix(X))

    def predict(self, X: Any) -> np.ndarray:
        """The surrogate's labels."""
        return self.classes_[self.predict_proba(X).argmax(1)]

    def fidelity(self, X: Any) -> dict[str, float]:
        """Agreement and R^2 with the black box on rows that neither has seen; see `metrics.fidelity`."""
        rows = self._matrix(X)
        return fidelity(np.asarray(self._predict(rows)), self.predict_proba(rows))

    def scores(self, X: Any, y: Any) -> dict[str, float]:
        """Accuracy, macro-F1 and Matthews' correlation of the surrogate against the truth."""
        return classification_scores(y, self.predict(X))

    def column_scores(self, X: Any) -> dict[str, float]:
        """Comprehensiveness and sufficiency of the top columns for the black box, filled by the training mean."""
        rows, baseline = self._matrix(X), self._rows.mean(0)
        return {
            "comprehensiveness": comprehensiveness(self.black_box, rows, self.top_, baseline),
            "sufficiency": sufficiency(self.black_box, rows, self.top_, baseline),
        }

    def agreement(self) -> Agreement:
        """How far the techniques agree: Kendall's tau of all columns, overlap of the top k."""
        check_is_fitted(self, "importances_")
        return rank_agreement(self.importances_.scores, self.k_)

    def rules(self, prune: bool = False, tolerance: float | int = 0.01) -> list[Rule]:
        """The tree as rules in the table's units, the most confident first.

        Unpruned, exactly one rule covers a row. Support and confidence are over the training rows (mixed ones
        included) and the black box's labels; of pruned rules over the real training rows.
        """
        check_is_fitted(self, "tree_")
        tree = self.tree_
        labels = self.classes_[np.asarray(tree.model_.classes_, dtype=np.int64)]
        found = tree_rules(tree.model_, tree.columns, labels, tree.center_, tree.scale_)
        if prune:
            return prune_rules(found, self._rows, self.classes_[self._codes], tolerance)
        return sorted(found, key=lambda rule: (-rule.confidence, -rule.support))

    def rule_list(self, tolerance: float | int = 0.01) -> RuleList:
        """The pruned rules as a classifier; its default is the black box's most frequent label."""
        default = self.classes_[np.bincount(self._codes).argmax()]
        return RuleList(tuple(self.rules(prune=True, tolerance=tolerance)), default)

    def contributions(self, X: Any, n_samples: int = 2_048) -> Float[np.ndarray, "n k c"]:
        """Shapley values of the top columns for the surrogate's probabilities.

        Exact for tree and forest (relative to the share of classes at the root); KernelSHAP against at most 100
        training rows for the others.
        """
        z = self.surrogate_.standardize(self._matrix(X))
        model, classes = self.surrogate_.model_, np.asarray(self.surrogate_.model_.classes_, dtype=np.int64)
        if self.surrogate in ("tree", "forest"):
            out = np.zeros((*z.shape, len(self.classes_)))
            out[:, :, classes] = tree_shap(model, z)
            return out
        rng = np.random.default_rng(self.random_state)
        background = self._background(rng, 100)
        return np.stack([kernel_shap(self.surrogate_.probabilities, row, background, n_samples, rng) for row in z])

    def _background(self, rng: np.random.Generator, most: int) -> np.ndarray:
        chosen = rng.permutation(len(self._rows))[:most]
        return self.surrogate_.standardize(self._rows[chosen])

    def explain(self, x: Any) -> LocalExplanation:
        """The rule that fires for a row, and what each top column contributes to the surrogate's answer."""
        row = self._row(x)
        fired = next(rule for rule in self.rules() if rule.covers(row)[0])
        probability = self.predict_proba(row)[0]
        label = int(probability.argmax())
        values = self.contributions(row)[0, :, label]
        order = np.argsort(-np.abs(values), kind="stable")
        named = {str(self.feature_names_in_[self.top_[j]]): float(values[j]) for j in order}
        black_box = self.classes_[np.asarray(self._predict(row))[0].argmax()]
        return LocalExplanation(self.classes_[label], black_box, fired, named, float(probability[label] - values.sum()))

    def anchor(self, x: Any, precision: float | int = 0.95, n_samples: int = 1_000) -> Rule:
        """A rule under which the surrogate keeps its answer for x; see `local.anchor`. In the table's units."""
        z = self.surrogate_.standardize(self._row(x))[0]
        rng = np.random.default_rng(self.random_state)
        found = anchor(
            lambda rows: self.surrogate_.probabilities(rows).argmax(1), z, self._background(rng, 10_000),
            precision=precision, n_samples=n_samples, rng=rng,
        )  # fmt: skip
        raw = tuple(self._in_units(condition) for condition in found.conditions)
        covered = Rule(raw, self.classes_[found.label]).measured(self._rows, self.classes_[self._codes])
        return Rule(raw, covered.label, found.support, found.confidence, covered.lift)

    def _in_units(self, condition: Any) -> Any:
        j = condition.feature
        center, scale = float(self.surrogate_.center_[j]), float(self.surrogate_.scale_[j])
        return type(condition)(int(self.top_[j]), condition.low * scale + center, condition.high * scale + center)

    def counterfactual(
        self,
        x: Any,
        target: Any = None,
        *,
        frozen: Sequence[str] = (),
        weights: Mapping[str, float | int] | None = None,
    ) -> Counterfactual:
        """The least change of top columns that makes the tree say another class, checked on the black box.

        Fewest columns first, then the shortest way in training standard deviations; both weighted.

        Args:
            x: (d,) a row. target: the class to reach; any other than the tree's if None.
            frozen: names of columns that cannot change. weights: name -> what a change costs; 1 if not named.

        Raises:
            ValueError: if no leaf can be reached, the tree says `target` already, or a name is unknown.
        """
        row = self._row(x)
        tree, names = self.tree_, [str(self.feature_names_in_[j]) for j in self.top_]
        unknown = sorted({*frozen, *(weights or {})} - set(map(str, self.feature_names_in_)))
        if unknown:
            raise ValueError(f"unknown columns {', '.join(unknown)}")
        z = tree.standardize(row)[0].astype(np.float64)
        boxes = leaf_boxes(tree.model_)
        leaf_class = self.classes_[np.asarray(tree.model_.classes_, dtype=np.int64)[boxes.value.argmax(1)]]
        own = self.classes_[tree.predict_proba(row)[0].argmax()]
        if target is not None and target == own:
            raise ValueError(f"the tree gives this row the class {target!r} already")
        allowed = leaf_class != own if target is None else leaf_class == target
        _, moved, count, distance = nearest_box(
            z, boxes, allowed, np.array([float((weights or {}).get(name, 1.0)) for name in names]),
            np.array([name in frozen for name in names]),
        )  # fmt: skip
        changed = np.flatnonzero(moved != z)
        after = row[0].astype(np.float64)
        after[self.top_[changed]] = moved[changed] * tree.scale_[changed] + tree.center_[changed]
        label = self.classes_[tree.predict_proba(after[None])[0].argmax()]
        black_box = self.classes_[np.asarray(self._predict(after[None]))[0].argmax()]
        changes = {names[j]: (float(row[0, self.top_[j]]), float(after[self.top_[j]])) for j in changed}
        return Counterfactual(after, changes, label, bool(black_box == label), black_box, count, distance)

    def what_if(self, x: Any, **values: float | int) -> dict[str, dict[Any, float]]:
        """Probabilities before and after the named columns are set: of the surrogate and of the black box.

        Raises:
            ValueError: for an unknown column.
        """
        row = self._row(x)
        place = {str(name): j for j, name in enumerate(self.feature_names_in_)}
        unknown = sorted(set(values) - set(place))
        if unknown:
            raise ValueError(f"unknown columns {', '.join(unknown)}")
        after = row.astype(np.float64)
        for name, value in values.items():
            after[0, place[name]] = value

        def named(probabilities: Any) -> dict[Any, float]:
            return dict(zip(self.classes_.tolist(), np.asarray(probabilities)[0].tolist()))

        return {
            "surrogate": named(self.predict_proba(row)), "surrogate_after": named(self.predict_proba(after)),
            "black_box": named(self._predict(row)), "black_box_after": named(self._predict(after)),
        }  # fmt: skip

    def representative(self, X: Any, budget: int = 5) -> np.ndarray:
        """Numbers of the rows whose explanations together show what the surrogate uses; see `representative_rows`."""
        rows = self._matrix(X)
        said = self.predict_proba(rows).argmax(1)
        values = self.contributions(rows)[np.arange(len(rows)), :, said]
        return representative_rows(values, budget)
