"""Decision rules read off a tree: one half-open interval (low, high] a feature, in the table's own units.

scikit-learn's trees send x <= t to the left, hence the side that is closed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64

__all__ = ["Condition", "LeafBoxes", "Rule", "RuleList", "leaf_boxes", "prune_rules", "tree_rules"]


@dataclass(frozen=True)
class Condition:
    """low < x[feature] <= high; an infinite end is open.

    Raises:
        ValueError: if no number lies in the interval.
    """

    feature: int
    low: float = -np.inf
    high: float = np.inf

    def __post_init__(self):
        if not self.low < self.high:
            raise ValueError(f"a condition needs low < high, got ({self.low}, {self.high}]")

    def covers(self, column: np.ndarray) -> Bool[np.ndarray, "n"]:
        return (column > self.low) & (column <= self.high)

    def to_text(self, name: str, unit: str = "") -> str:
        unit = f" {unit}" if unit else ""
        if np.isinf(self.low):
            return f"{name} <= {self.high:.4g}{unit}"
        if np.isinf(self.high):
            return f"{name} > {self.low:.4g}{unit}"
        return f"{self.low:.4g} < {name} <= {self.high:.4g}{unit}"


@dataclass(frozen=True)
class Rule:
    """If all conditions hold, the label.

    Attributes:
        conditions: at most one a feature; none covers everything.
        label: what the rule says.
        support: share of rows that it covers.
        confidence: share of the covered rows that have its label.
        lift: confidence over the label's share of all rows.
    """

    conditions: tuple[Condition, ...]
    label: Any
    support: float = 0.0
    confidence: float = 0.0
    lift: float = 0.0

    def covers(self, X: np.ndarray) -> Bool[np.ndarray, "n"]:
        """Which rows (n, d) of the full table meet all conditions."""
        covered = np.ones(len(X), dtype=bool)
        for condition in self.conditions:
            covered &= condition.covers(X[:, condition.feature])
        return covered

    def measured(self, X: np.ndarray, labels: np.ndarray) -> "Rule":
        """The rule with support, confidence and lift over these rows; 0 where it covers none."""
        covered, right = self.covers(X), labels == self.label
        confidence = float(right[covered].mean()) if covered.any() else 0.0
        base = float(right.mean())
        return replace(
            self, support=float(covered.mean()), confidence=confidence, lift=confidence / base if base else 0.0
        )

    def to_text(
        self,
        feature_names: Sequence[str] | np.ndarray | None = None,
        units: Mapping[str, str] | Sequence[str] | None = None,
    ) -> str:
        """The rule as a line.

        Args:
            feature_names: of the full table's columns; x0, x1, ... if None.
            units: of the columns, by name or by number.
        """
        parts = []
        for condition in self.conditions:
            name = f"x{condition.feature}" if feature_names is None else str(feature_names[condition.feature])
            if isinstance(units, Mapping):
                unit = units.get(name, "")
            else:
                unit = "" if units is None else units[condition.feature]
            parts.append(condition.to_text(name, unit))
        when = " and ".join(parts) or "always"
        return f"{when} -> {self.label} (support {self.support:.2f}, confidence {self.confidence:.2f})"


@dataclass(frozen=True)
class LeafBoxes:
    """The leaves of a tree as boxes: a row is in leaf l if low[l] < x <= high[l] in every feature.

    Attributes:
        node: number of each leaf in the tree.
        low, high: (leaves, features), in the units that the tree was trained in.
        reach: (leaves, features) share of the training rows that the splits on a feature let through on the leaf's
            path, 1 for features that it does not ask for.
        value: (leaves, classes) shares of the classes.
    """

    node: Int64[np.ndarray, "leaves"]
    low: Float[np.ndarray, "leaves k"]
    high: Float[np.ndarray, "leaves k"]
    reach: Float[np.ndarray, "leaves k"]
    value: Float[np.ndarray, "leaves classes"]


def leaf_boxes(tree: Any) -> LeafBoxes:
    """The boxes of a fitted `DecisionTreeClassifier`."""
    nodes = tree.tree_
    low = np.full((nodes.node_count, tree.n_features_in_), -np.inf)
    high, reach = -low, np.ones_like(low)
    size = nodes.weighted_n_node_samples
    # Children have higher numbers than their parent.
    for node in np.flatnonzero(nodes.children_left >= 0):
        feature, threshold = nodes.feature[node], nodes.threshold[node]
        left, right = nodes.children_left[node], nodes.children_right[node]
        for child in (left, right):
            low[child], high[child], reach[child] = low[node], high[node], reach[node]
            reach[child, feature] *= size[child] / size[node]
        high[left, feature] = min(high[left, feature], threshold)
        low[right, feature] = max(low[right, feature], threshold)
    leaf = np.flatnonzero(nodes.children_left < 0)
    value = nodes.value[leaf, 0]
    return LeafBoxes(leaf, low[leaf], high[leaf], reach[leaf], value / value.sum(1, keepdims=True))


def tree_rules(
    tree: Any,
    features: Sequence[int] | np.ndarray | None = None,
    classes: Sequence[Any] | np.ndarray | None = None,
    center: Float[np.ndarray, "k"] | None = None,
    scale: Float[np.ndarray, "k"] | None = None,
) -> list[Rule]:
    """One rule a leaf; each row of the training table meets exactly one of them.

    Support, confidence and lift are over the rows that the tree was trained on.

    Args:
        tree: a fitted `DecisionTreeClassifier` on k features.
        features: (k,) their columns in the full table; 0..k-1 if None.
        classes: the label of each class of the tree; its own if None.
        center, scale: if the tree saw (x - center) / scale: the rules then speak of x.

    Raises:
        ValueError: if `features`, `center` or `scale` have another length than the tree has features, or a scale is
            not positive.
    """
    k = tree.n_features_in_
    columns = np.arange(k) if features is None else np.asarray(features)
    center = np.zeros(k) if center is None else center
    scale = np.ones(k) if scale is None else scale
    for name, values in (("features", columns), ("center", center), ("scale", scale)):
        if values.shape != (k,):
            raise ValueError(f"{name} must have shape ({k},), one entry a feature of the tree, got {values.shape}")
    if scale.min() <= 0:
        raise ValueError(f"scale must be positive, got {scale.min()}")
    labels = np.asarray(tree.classes_ if classes is None else classes).tolist()
    boxes = leaf_boxes(tree)
    low, high = boxes.low * scale + center, boxes.high * scale + center
    nodes = tree.tree_
    base = nodes.value[0, 0] / nodes.value[0, 0].sum()
    share = nodes.n_node_samples[boxes.node] / nodes.n_node_samples[0]
    rules = []
    for leaf in range(len(boxes.node)):
        asked = np.flatnonzero(np.isfinite(low[leaf]) | np.isfinite(high[leaf]))
        conditions = tuple(Condition(int(columns[j]), float(low[leaf, j]), float(high[leaf, j])) for j in asked)
        best = int(boxes.value[leaf].argmax())
        confidence = float(boxes.value[leaf, best])
        rules.append(Rule(conditions, labels[best], float(share[leaf]), confidence, confidence / float(base[best])))
    return rules


def prune_rules(rules: Sequence[Rule], X: np.ndarray, labels: np.ndarray, tolerance: float | int = 0.01) -> list[Rule]:
    """Drops conditions that a rule does not need, and rules that are then said twice.

    One condition after another goes, the one whose absence leaves the most confidence, as long as the rule keeps the
    confidence that it had up to `tolerance`. What is left may overlap and leave rows uncovered: see `RuleList`.

    Args:
        X: (n, d) rows of the full table. labels: (n,) what the rules are to say of them.

    Raises:
        ValueError: if the tolerance is negative.
    """
    if tolerance < 0:
        raise ValueError(f"tolerance must not be negative, got {tolerance}")
    pruned: dict[tuple[Any, ...], Rule] = {}
    for rule in rules:
        current = rule.measured(X, labels)
        bar = current.confidence - tolerance
        while current.conditions:
            shorter = [
                replace(current, conditions=current.conditions[:i] + current.conditions[i + 1 :]).measured(X, labels)
                for i in range(len(current.conditions))
            ]
            best = max(shorter, key=lambda candidate: (candidate.confidence, candidate.support))
            if best.confidence < bar:
                break
            current = best
        pruned.setdefault((current.conditions, current.label), current)
    return sorted(pruned.values(), key=lambda rule: (-rule.confidence, -rule.support))


@dataclass(frozen=True)
class RuleList:
    """Rules read from the top: the first that covers a row decides, the default where none does.

    Attributes:
        rules: the most confident first. default: label of rows that no rule covers.
    """

    rules: tuple[Rule, ...]
    default: Any

    def predict(self, X: np.ndarray) -> np.ndarray:
        """(n,) labels."""
        first = self.first(X)
        labels = np.array([*(rule.label for rule in self.rules), self.default])
        return labels[np.where(first < 0, len(self.rules), first)]

    def first(self, X: np.ndarray) -> Int64[np.ndarray, "n"]:
        """Number of the rule that decides each row, -1 where none covers it."""
        covered = np.stack([rule.covers(X) for rule in self.rules] or [np.zeros(len(X), dtype=bool)])
        return np.where(covered.any(0), covered.argmax(0), -1).astype(np.int64)

    def to_text(self, feature_names: Sequence[str] | np.ndarray | None = None, units: Any = None) -> str:
        """A line a rule, and the default."""
        return "\n".join([*(rule.to_text(feature_names, units) for rule in self.rules), f"otherwise -> {self.default}"])
