"""Rules read off trees, in the table's units."""

import numpy as np
import pytest
from sklearn.tree import DecisionTreeClassifier

from etude.science.blackbox_rules import Condition, Rule, RuleList, leaf_boxes, prune_rules, tree_rules


def table(n=200, k=4, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(50.0, 10.0, (n, k))
    y = (X[:, 0] + 0.5 * X[:, 1] > 75).astype(int) + (X[:, 2] > 60)
    return X, y


def grown(depth=5, seed=0, **options):
    X, y = table(seed=seed)
    return DecisionTreeClassifier(max_depth=depth, random_state=0, **options).fit(X, y), X, y


@pytest.mark.parametrize("depth", [1, 3, 5, None])
def test_exactly_one_rule_fires_for_every_row_and_says_what_the_tree_says(depth):
    tree, X, _ = grown(depth)
    rules = tree_rules(tree)
    for rows in (X, table(seed=1)[0]):
        covered = np.stack([rule.covers(rows) for rule in rules])
        assert (covered.sum(0) == 1).all()
        said = np.array([rules[j].label for j in covered.argmax(0)])
        np.testing.assert_array_equal(said, tree.predict(rows))


def test_support_confidence_and_lift_recomputed_by_covers_equal_the_tree_statistics():
    tree, X, y = grown()
    for rule in tree_rules(tree):
        again = rule.measured(X, y)
        np.testing.assert_allclose(
            [again.support, again.confidence, again.lift], [rule.support, rule.confidence, rule.lift], rtol=1e-12
        )


def test_thresholds_in_the_units_of_the_table_decide_as_the_standardised_tree():
    X, y = table()
    X *= np.array([1e6, 1e-3, 1.0, 20.0])
    center, scale = X.mean(0), X.std(0)
    tree = DecisionTreeClassifier(max_depth=5, random_state=0).fit((X - center) / scale, y)
    rules = tree_rules(tree, center=center, scale=scale)
    new = table(seed=2)[0] * np.array([1e6, 1e-3, 1.0, 20.0])
    for rows in (X, new):
        covered = np.stack([rule.covers(rows) for rule in rules])
        assert (covered.sum(0) == 1).all()
        said = np.array([rules[j].label for j in covered.argmax(0)])
        np.testing.assert_array_equal(said, tree.predict((rows - center) / scale))


def test_merged_intervals_are_equivalent_to_the_path():
    tree, X, _ = grown(None)
    boxes, path, nodes = leaf_boxes(tree), tree.decision_path(X).toarray(), tree.tree_
    inside = ((X[:, None] > boxes.low) & (X[:, None] <= boxes.high)).all(-1)
    for row, x in enumerate(X):
        (leaf,) = np.flatnonzero(inside[row])
        low, high = np.full(4, -np.inf), np.full(4, np.inf)
        for node in np.flatnonzero(path[row])[:-1]:
            feature, threshold = nodes.feature[node], nodes.threshold[node]
            if x[feature] <= threshold:
                high[feature] = min(high[feature], threshold)
            else:
                low[feature] = max(low[feature], threshold)
        np.testing.assert_array_equal(boxes.low[leaf], low)
        np.testing.assert_array_equal(boxes.high[leaf], high)


def test_rules_name_the_columns_of_the_full_table():
    tree, X, _ = grown(2)
    wide = np.zeros((200, 30))
    wide[:, [7, 3, 20, 11]] = X
    rules = tree_rules(tree, features=[7, 3, 20, 11], classes=["low", "mid", "high"])
    own = tree_rules(tree)
    for rule, plain in zip(rules, own):
        np.testing.assert_array_equal(rule.covers(wide), plain.covers(X))
        assert rule.label == ["low", "mid", "high"][plain.label]


def test_a_threshold_itself_belongs_to_the_left():
    condition = Condition(0, 1.0, 2.0)
    assert condition.covers(np.array([1.0, 1.5, 2.0, 2.1])).tolist() == [False, True, True, False]


def test_text_has_names_units_and_shares():
    rule = Rule((Condition(1, 1.25, 3.5), Condition(0, high=7.0), Condition(2, low=-0.5)), "AML", 0.25, 0.5)
    text = rule.to_text(["CD33", "MYC", "TP53"], {"MYC": "log2"})
    assert text == ("1.25 < MYC <= 3.5 log2 and CD33 <= 7 and TP53 > -0.5 -> AML (support 0.25, confidence 0.50)")
    assert rule.to_text(units=["a", "b", "c"]).startswith("1.25 < x1 <= 3.5 b and x0 <= 7 a")
    assert Rule((), 1).to_text().startswith("always -> 1")


def test_pruning_drops_what_is_not_needed_and_keeps_the_confidence():
    tree, X, y = grown(None)
    rules = tree_rules(tree)
    pruned = prune_rules(rules, X, y, tolerance=0.01)
    assert len(pruned) <= len(rules)
    assert sum(len(rule.conditions) for rule in pruned) < sum(len(rule.conditions) for rule in rules)
    assert min(rule.confidence for rule in pruned) >= min(rule.confidence for rule in rules) - 0.01
    for rule in pruned:
        for i in range(len(rule.conditions)):
            shorter = Rule(rule.conditions[:i] + rule.conditions[i + 1 :], rule.label).measured(X, y)
            assert shorter.confidence < 1 - 0.01
    confidences = [rule.confidence for rule in pruned]
    assert confidences == sorted(confidences, reverse=True)


def test_a_condition_that_says_nothing_is_pruned():
    X = np.random.default_rng(0).standard_normal((50, 2))
    y = (X[:, 0] > 0).astype(int)
    (rule,) = prune_rules([Rule((Condition(0, low=0.0), Condition(1, high=9.0)), 1)], X, y)
    assert rule.conditions == (Condition(0, low=0.0),)
    assert rule.confidence == 1.0


def test_the_first_rule_by_confidence_decides_and_else_the_default():
    rules = RuleList((Rule((Condition(0, low=1.0),), "b"), Rule((Condition(0, low=0.0),), "a")), "c")
    X = np.array([[2.0], [0.5], [-1.0]])
    assert rules.predict(X).tolist() == ["b", "a", "c"]
    assert rules.first(X).tolist() == [0, 1, -1]
    assert rules.to_text(["g"]).splitlines()[-1] == "otherwise -> c"
    assert RuleList((), "c").predict(X).tolist() == ["c"] * 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Condition(0, 2.0, 2.0), r"low < high, got \(2.0, 2.0\]"),
        (lambda: tree_rules(grown(2)[0], features=[1, 2]), r"features must have shape \(4,\)"),
        (lambda: tree_rules(grown(2)[0], scale=np.zeros(4)), "scale must be positive, got 0.0"),
        (lambda: prune_rules([], np.zeros((1, 1)), np.zeros(1), tolerance=-1), "must not be negative, got -1"),
    ],
)
def test_bad_rules_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
