"""Counterfactuals against every leaf, anchors against counting, and the submodular pick."""

import numpy as np
import pytest
from sklearn.tree import DecisionTreeClassifier

from etude.science.blackbox_rules import anchor, leaf_boxes, nearest_box, representative_rows


def grown(depth=4, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((200, 5)).astype(np.float32)
    y = (X[:, 0] + X[:, 1] * X[:, 2] > 0).astype(int) + (X[:, 3] > 0.8)
    return DecisionTreeClassifier(max_depth=depth, random_state=0).fit(X, y), X


def leaves_by_hand(tree, x, answer, weights, frozen):
    """(weighted count, weighted distance) of the cheapest leaf of another class, by walking the tree."""
    nodes, found = tree.tree_, []

    def walk(node, low, high):
        if nodes.children_left[node] < 0:
            if tree.classes_[nodes.value[node, 0].argmax()] != answer:
                found.append((low, high))
            return
        feature, threshold = nodes.feature[node], nodes.threshold[node]
        left, right = high.copy(), low.copy()
        left[feature], right[feature] = min(high[feature], threshold), max(low[feature], threshold)
        walk(nodes.children_left[node], low, left)
        walk(nodes.children_right[node], right, high)

    walk(0, np.full(5, -np.inf), np.full(5, np.inf))
    costs = []
    for low, high in found:
        count = distance = 0.0
        possible = True
        for j in range(5):
            if low[j] < x[j] <= high[j]:
                continue
            possible = possible and not frozen[j]
            step = min(1e-3, (high[j] - low[j]) / 2)
            count += weights[j]
            distance += weights[j] * (low[j] + step - x[j] if x[j] <= low[j] else x[j] - (high[j] - step))
        if possible:
            costs.append((round(count, 9), distance))
    return min(costs) if costs else None


@pytest.mark.parametrize("depth", [2, 4])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_change_is_minimal_among_all_leaves_and_flips_the_tree(depth, weighted):
    tree, X = grown(depth)
    boxes = leaf_boxes(tree)
    said = tree.classes_[boxes.value.argmax(1)]
    weights = np.array([1.0, 5.0, 0.5, 2.0, 1.0]) if weighted else np.ones(5)
    frozen = np.array([False, False, False, False, weighted])
    for x in X[:60]:
        answer = tree.predict(x[None])[0]
        _, moved, count, distance = nearest_box(x.astype(np.float64), boxes, said != answer, weights, frozen)
        assert tree.predict(moved[None])[0] != answer
        expected = leaves_by_hand(tree, x.astype(np.float64), answer, weights, frozen)
        np.testing.assert_allclose((count, distance), expected, rtol=1e-9)
        changed = moved != x
        np.testing.assert_allclose(count, weights[changed].sum())
        np.testing.assert_allclose(distance, (weights * np.abs(moved - x)).sum())


def test_what_cannot_be_reached_is_refused():
    tree, X = grown()
    boxes, x = leaf_boxes(tree), X[0].astype(np.float64)
    some = np.ones(len(boxes.node), dtype=bool)
    inside = ((x > boxes.low) & (x <= boxes.high)).all(1)
    with pytest.raises(ValueError, match="no leaf of another class can be reached"):
        nearest_box(x, boxes, ~inside, frozen=np.ones(5, dtype=bool))
    with pytest.raises(ValueError, match=r"weights must be positive, got 0\.0"):
        nearest_box(x, boxes, some, weights=np.zeros(5))


def test_an_anchor_of_a_threshold_is_the_bin_above_it():
    background = np.random.default_rng(0).standard_normal((2_000, 4))
    edge = np.quantile(background[:, 2], 0.75)

    def predict(rows):
        return (rows[:, 2] > edge).astype(int)

    x = np.array([0.0, 0.0, 2.0, 0.0])
    rule = anchor(predict, x, background, rng=np.random.default_rng(1))
    ((feature, low, high),) = [(c.feature, c.low, c.high) for c in rule.conditions]
    assert (feature, high) == (2, np.inf)
    assert low == pytest.approx(edge)
    assert rule.label == 1
    assert rule.confidence == 1.0
    assert rule.support == pytest.approx(0.25, abs=0.01)


def test_an_anchor_needs_both_features_of_a_conjunction():
    background = np.random.default_rng(0).standard_normal((2_000, 3))

    def predict(rows):
        return ((rows[:, 0] > 0) & (rows[:, 1] > 0)).astype(int)

    rule = anchor(predict, np.array([1.5, 1.5, 0.0]), background, rng=np.random.default_rng(1))
    assert {condition.feature for condition in rule.conditions} == {0, 1}
    inside = background[rule.covers(background)]
    assert predict(inside).mean() >= 0.95


def test_an_answer_that_never_changes_needs_no_anchor():
    rule = anchor(lambda rows: np.ones(len(rows), dtype=int), np.zeros(2), np.random.rand(50, 2))
    assert rule.conditions == ()
    assert rule.confidence == rule.support == 1.0


def test_a_precision_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"precision must lie in \(0, 1\], got 1.5"):
        anchor(lambda rows: rows[:, 0], np.zeros(2), np.zeros((5, 2)), precision=1.5)


def test_the_pick_covers_greedily():
    contributions = np.array([[5.0, 0, 0, 0], [5.0, 4.0, 0, 0], [0, 0, 3.0, 0], [0, 0, 0, 0.5], [5.0, 0, 0, 0]])
    assert representative_rows(contributions, 3).tolist() == [1, 2, 3]
    assert len(set(representative_rows(contributions, 5).tolist())) == 5
    with pytest.raises(ValueError, match=r"budget must lie in 1\.\.5, the number of rows, got 6"):
        representative_rows(contributions, 6)
