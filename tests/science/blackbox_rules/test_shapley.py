"""Shapley values against sums over all coalitions."""

from itertools import combinations
from math import factorial

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.tree import DecisionTreeClassifier

from etude.science.blackbox_rules import kernel_shap, shapley, tree_shap


def table(k=5):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((150, k)).astype(np.float32)
    y = (X[:, 0] * X[:, 1] + X[:, 2] > 0).astype(int) + (X[:, 3] > 1)
    return X, y


def shapley_values(value, k):
    """From a game, by definition."""
    out = []
    for i in range(k):
        others = [j for j in range(k) if j != i]
        total = 0
        for size in range(k):
            for chosen in combinations(others, size):
                weight = factorial(size) * factorial(k - size - 1) / factorial(k)
                total = total + weight * (value({*chosen, i}) - value(set(chosen)))
        out.append(total)
    return np.array(out)


def descend(nodes, x, known, node=0):
    """What a tree expects if only some features are known: both ways, by the share of training rows."""
    left, right = nodes.children_left[node], nodes.children_right[node]
    if left < 0:
        return nodes.value[node, 0] / nodes.value[node, 0].sum()
    feature = nodes.feature[node]
    if feature in known:
        return descend(nodes, x, known, left if x[feature] <= nodes.threshold[node] else right)
    share = nodes.n_node_samples[left] / nodes.n_node_samples[node]
    return share * descend(nodes, x, known, left) + (1 - share) * descend(nodes, x, known, right)


@pytest.mark.parametrize("depth", [1, 3, None])
def test_tree_values_equal_the_sum_over_coalitions(depth):
    X, y = table()
    tree = DecisionTreeClassifier(max_depth=depth, random_state=0).fit(X, y)
    found = tree_shap(tree, X[:4])
    for row, values in enumerate(found):

        def value(known, x=X[row]):
            return descend(tree.tree_, x, known)

        np.testing.assert_allclose(values, shapley_values(value, 5), atol=1e-12)


def test_tree_values_sum_to_the_prediction_less_the_root():
    X, y = table()
    tree = DecisionTreeClassifier(max_depth=5, random_state=0).fit(X, y)
    root = tree.tree_.value[0, 0] / tree.tree_.value[0, 0].sum()
    np.testing.assert_allclose(tree_shap(tree, X).sum(1), tree.predict_proba(X) - root, atol=1e-12)


def test_passes_cut_small_give_the_same(monkeypatch):
    X, y = table()
    tree = DecisionTreeClassifier(max_depth=4, random_state=0).fit(X, y)
    whole = tree_shap(tree, X)
    monkeypatch.setattr(shapley, "_NUMBERS", 500)
    np.testing.assert_allclose(tree_shap(tree, X), whole, atol=1e-14)


def test_a_forest_has_the_mean_of_its_trees():
    X, y = table()
    forest = RandomForestClassifier(5, max_depth=4, random_state=0).fit(X, y)
    found = tree_shap(forest, X[:6])
    roots = np.mean([tree.tree_.value[0, 0] for tree in forest.estimators_], axis=0)
    np.testing.assert_allclose(found.sum(1), forest.predict_proba(X[:6]) - roots, atol=1e-12)


def test_a_tree_of_one_leaf_gives_nothing():
    tree = DecisionTreeClassifier().fit(np.zeros((4, 2)), [0, 0, 1, 1])
    assert (tree_shap(tree, np.zeros((3, 2))) == 0).all()


def smooth(rows):
    logit = rows[:, 0] * rows[:, 1] + np.tanh(rows[:, 2]) - 0.5 * rows[:, 3]
    p = 1 / (1 + np.exp(-logit))
    return np.stack([1 - p, p], axis=1)


def test_kernel_values_over_all_coalitions_are_exact():
    background = np.random.default_rng(1).standard_normal((12, 4))
    x = np.array([1.0, -0.5, 2.0, 0.3])

    def value(known):
        rows = background.copy()
        rows[:, list(known)] = x[list(known)]
        return smooth(rows).mean(0)

    found = kernel_shap(smooth, x, background)
    np.testing.assert_allclose(found, shapley_values(value, 4), atol=1e-10)


def test_drawn_coalitions_come_near_and_still_sum_up():
    rng = np.random.default_rng(2)
    background, x = rng.standard_normal((10, 8)), rng.standard_normal(8)
    exact = kernel_shap(smooth, x, background)
    drawn = kernel_shap(smooth, x, background, n_samples=160, rng=np.random.default_rng(0))
    np.testing.assert_allclose(drawn.sum(0), exact.sum(0), atol=1e-12)
    assert np.abs(drawn - exact).max() < 0.05
    np.testing.assert_allclose(kernel_shap(smooth4, x[:1], background[:, :1]).sum(0), exact_one(x, background))


def smooth4(rows):
    return smooth(np.concatenate([rows, np.zeros((len(rows), 3))], axis=1))


def exact_one(x, background):
    return smooth4(x[None, :1])[0] - smooth4(background[:, :1]).mean(0)


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="at least 8, twice the number of features, got 7"):
        kernel_shap(smooth, np.zeros(4), np.zeros((2, 4)), n_samples=7)
