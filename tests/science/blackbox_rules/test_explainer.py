"""The whole way on a small table, and what it must never do."""

import logging

import numpy as np
import pandas as pd
import pytest
from sklearn.tree import DecisionTreeClassifier

from etude.science.blackbox_rules import (
    BlackBoxClassifier,
    Surrogate,
    SurrogateExplainer,
    fidelity,
    mixed_rows,
    plot_contributions,
    plot_fidelity_curve,
    plot_importances,
    select_top_k,
)


def soft(X):
    """A black box of three classes that reads columns 2, 5 and 7."""
    X = np.asarray(X, dtype=np.float64)
    logits = np.stack([2 * X[:, 2], 3 * X[:, 5] - 4, -2 * X[:, 2] + X[:, 7]], axis=1)
    p = np.exp(logits - logits.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


class Box:
    classes_ = np.array(["a", "b", "c"])

    def predict_proba(self, X):
        return soft(X)


def rows(n=300, d=12, seed=0):
    return np.random.default_rng(seed).normal(1.0, 1.5, (n, d))


def explained(surrogate="tree", k=3, **options):
    X = rows()
    return SurrogateExplainer(Box(), k, surrogate, n_repeats=3, **options).fit(X, held_out=(rows(100, seed=1), None)), X


def test_the_columns_in_use_come_first():
    explainer, _ = explained()
    assert set(explainer.top_.tolist()) == {2, 5, 7}
    assert explainer.k_ == 3
    assert len(explainer.bottom_) == 3
    assert not set(explainer.bottom_) & {2, 5, 7}
    found = explainer.agreement()
    assert found.names == ("permutation", "sensitivity")
    assert found.jaccard[0, 1] == 1.0


def test_the_surrogate_imitates_the_black_box_and_not_y():
    X = rows()
    nonsense = np.random.default_rng(9).integers(0, 3, 300)
    names = np.array(["a", "b", "c"])[nonsense]
    one = SurrogateExplainer(Box(), 3, n_repeats=2, techniques=["permutation"]).fit(X, names)
    other = SurrogateExplainer(Box(), 3, n_repeats=2, techniques=["permutation"]).fit(X)
    np.testing.assert_array_equal(one.predict(X), other.predict(X))
    assert (one.predict(X) == names).mean() < 0.5
    assert one.fidelity(X)["agreement"] > 0.7


def test_an_unlimited_tree_on_distinct_rows_has_fidelity_1_on_its_training_data():
    X = rows()
    surrogate = Surrogate("tree", [2, 5, 7], max_depth=None, min_samples_leaf=1)
    surrogate.fit(X, soft(X).argmax(1), 3)
    assert fidelity(soft(X), surrogate.predict_proba(X))["agreement"] == 1.0


@pytest.mark.parametrize("kind", ["tree", "forest", "boosting", "l1"])
def test_every_surrogate_gives_probabilities_of_all_classes(kind):
    explainer, X = explained(kind)
    p = explainer.predict_proba(X)
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-6)
    assert set(explainer.predict(X)) <= {"a", "b", "c"}
    assert explainer.fidelity(rows(80, seed=2))["agreement"] > 0.6
    assert explainer.tree_.kind == "tree"
    assert bool(explainer.notes_) == (kind != "tree")
    if explainer.notes_:
        assert f"distilled beside the {kind}" in explainer.notes_[0]
    assert np.stack([rule.covers(X) for rule in explainer.rules()]).sum(0).tolist() == [1] * 300


def test_a_class_that_the_box_never_names_keeps_its_column():
    X = rows()
    surrogate = Surrogate("tree", [2, 5]).fit(X, np.where(X[:, 2] > 1, 2, 0), 3)
    p = surrogate.predict_proba(X)
    assert p.shape == (300, 3)
    assert (p[:, 1] == 0).all()


def test_rules_speak_of_the_table_and_say_what_the_tree_says():
    explainer, X = explained()
    rules, new = explainer.rules(), rows(seed=3)
    covered = np.stack([rule.covers(new) for rule in rules])
    assert (covered.sum(0) == 1).all()
    said = np.array([rules[j].label for j in covered.argmax(0)])
    np.testing.assert_array_equal(said, explainer.predict(new))
    answers = Box.classes_[soft(X).argmax(1)]
    for rule in rules:
        again = rule.measured(X, answers)
        assert again.support == pytest.approx(rule.support)
        assert again.confidence == pytest.approx(rule.confidence)
    assert {c.feature for rule in rules for c in rule.conditions} <= {2, 5, 7}
    listed = explainer.rule_list()
    assert len(listed.rules) <= len(rules)
    assert (listed.predict(new) == explainer.predict(new)).mean() > 0.7


@pytest.mark.parametrize("kind", ["tree", "forest"])
def test_counterfactuals_flip_the_tree_always_and_are_checked_on_the_black_box(kind):
    explainer, X = explained(kind)
    verified = []
    for x in X[:40]:
        found = explainer.counterfactual(x)
        before = explainer.classes_[explainer.tree_.predict_proba(x[None])[0].argmax()]
        after = explainer.classes_[explainer.tree_.predict_proba(found.row[None])[0].argmax()]
        assert after == found.label != before
        changed = np.flatnonzero(found.row != x)
        assert {f"x{j}" for j in changed} == set(found.changes)
        assert found.count == len(changed)
        assert found.verified == (Box.classes_[soft(found.row[None])[0].argmax()] == found.label)
        assert found.distance == pytest.approx(
            sum(abs(new - old) / X[:, int(name[1:])].std() for name, (old, new) in found.changes.items()), abs=1e-6
        )
        verified.append(found.verified)
    assert np.mean(verified) > 0


def test_counterfactuals_reach_the_target_with_the_columns_that_may_change():
    explainer, X = explained()
    x = X[explainer.predict(X) == "a"][0]
    assert explainer.counterfactual(x, target="c").label == "c"
    assert "x2" not in explainer.counterfactual(x, frozen=["x2"]).changes
    with pytest.raises(ValueError, match="the class 'a' already"):
        explainer.counterfactual(x, target="a")
    with pytest.raises(ValueError, match="no leaf of another class"):
        explainer.counterfactual(x, frozen=["x2", "x5", "x7"])
    with pytest.raises(ValueError, match="unknown columns gene"):
        explainer.counterfactual(x, weights={"gene": 2.0})


@pytest.mark.parametrize("kind", ["tree", "forest", "l1"])
def test_an_explanation_adds_up_and_names_the_rule(kind):
    explainer, X = explained(kind)
    found = explainer.explain(X[0])
    assert found.label == explainer.predict(X[:1])[0]
    assert found.black_box == Box.classes_[soft(X[:1])[0].argmax()]
    assert found.rule.covers(X[:1])[0]
    probability = explainer.predict_proba(X[:1])[0].max()
    assert found.base + sum(found.contributions.values()) == pytest.approx(probability)
    sizes = [abs(value) for value in found.contributions.values()]
    assert sizes == sorted(sizes, reverse=True)


def test_an_anchor_speaks_of_the_table():
    explainer, X = explained()
    rule = explainer.anchor(X[0])
    assert rule.label == explainer.predict(X[:1])[0]
    assert rule.covers(X[:1])[0]
    assert rule.confidence >= 0.95
    assert {condition.feature for condition in rule.conditions} <= {2, 5, 7}


def test_what_if_and_representative_rows():
    explainer, X = explained()
    found = explainer.what_if(X[0], x2=5.0, x5=-3.0)
    changed = X[0].copy()
    changed[[2, 5]] = 5.0, -3.0
    assert list(found["black_box_after"].values()) == pytest.approx(soft(changed[None])[0].tolist())
    assert list(found["surrogate_after"].values()) == pytest.approx(explainer.predict_proba(changed[None])[0].tolist())
    with pytest.raises(ValueError, match="unknown columns x99"):
        explainer.what_if(X[0], x99=1.0)
    assert len(set(explainer.representative(X[:50], 4).tolist())) == 4


def test_the_elbow_is_the_smallest_k_within_a_standard_error_of_the_best():
    X, held = rows(), rows(100, seed=1)
    ranking = np.array([5, 2, 7, 0, 1, 3, 4, 6, 8, 9, 10, 11])
    k, curve = select_top_k(ranking, Box(), X, held, candidates=(1, 2, 3, 6, 12, 50))
    assert list(curve) == [1, 2, 3, 6, 12]
    best = max(curve.values())
    bar = best - np.sqrt(best * (1 - best) / 100)
    assert k == min(size for size, value in curve.items() if value >= bar)
    explainer, _ = explained(k="auto", candidates=(1, 3, 12))
    assert explainer.k_ in (1, 3, 12)
    assert set(explainer.k_curve_) == {1, 3, 12}


def test_mixed_rows_lie_between_pairs():
    X = rows(50)
    found = mixed_rows(X, 400, np.random.default_rng(0))
    assert found.shape == (400, 12)
    flat = mixed_rows(np.repeat([[1.0, 2.0]], 5, axis=0), 3, np.random.default_rng(0))
    np.testing.assert_allclose(flat, [[1.0, 2.0]] * 3)
    explainer, _ = explained(n_perturb=2)
    assert explainer.tree_.model_.tree_.n_node_samples[0] == 900


def test_noise_has_no_rules_worth_having_for_any_k():
    """The classic error: columns chosen on all rows would give rules that do well on labels without sense."""
    accuracy = {1: [], 5: [], 20: [], 100: []}
    for seed in range(6):
        rng = np.random.default_rng(seed)
        X, y = rng.standard_normal((150, 400)), rng.permutation(150) % 2
        box = BlackBoxClassifier(epochs=10, random_state=seed).fit(X[:60], y[:60])
        for k, found in accuracy.items():
            explainer = SurrogateExplainer(box, k, n_repeats=2).fit(X[:60], y[:60], held_out=(X[60:80], y[60:80]))
            found.append(explainer.scores(X[80:], y[80:])["accuracy"])
    # 420 test rows: the standard error of chance is 0.024.
    assert all(abs(np.mean(found) - 0.5) < 0.08 for found in accuracy.values())


def test_names_and_plots():
    X, y = rows(80, 6), np.arange(80) % 2
    frame = pd.DataFrame(X, columns=list("abcdef"))
    box = BlackBoxClassifier("mlp", epochs=2).fit(frame, y)
    explainer = SurrogateExplainer(box, 3, n_repeats=2).fit(frame, y)
    explanation = explainer.explain(X[0])
    assert set(explanation.contributions) == {str(frame.columns[j]) for j in explainer.top_}
    for figure in (
        plot_importances(explainer.importances_, explainer.feature_names_in_, 4),
        plot_contributions(explanation),
        plot_fidelity_curve({"top": {5: 0.8, 10: 0.9}, "random": {5: 0.5, 10: 0.6}}, chosen=10),
    ):
        assert figure.axes


def test_one_class_of_answers_is_refused():
    with pytest.raises(ValueError, match=r"all 30 rows the class \[0\]: there is nothing to imitate"):
        Surrogate("tree", [0]).fit(rows(30), np.zeros(30, dtype=np.int64), 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 13}, r"k must be 'auto' or lie in 1\.\.12, the number of columns, got 13"),
        ({"k": "elbow"}, "got 'elbow'"),
        ({"surrogate": "svm"}, "tree, forest, boosting, l1, got 'svm'"),
        ({"n_perturb": -1}, "n_perturb must not be negative, got -1"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        explained(**options)


def test_a_surrogate_of_no_or_repeated_columns_is_refused():
    for columns in ([], [1, 1]):
        with pytest.raises(ValueError, match="at least one and different"):
            Surrogate("tree", columns)
    with pytest.raises(ValueError, match=r"candidates must lie in 1\.\.12"):
        select_top_k(np.arange(12), Box(), rows(), rows(), candidates=(50,))


def test_wide_boxes_note_the_two_passes(caplog):
    X = rows(60, 40)
    with caplog.at_level(logging.WARNING):
        tree = DecisionTreeClassifier(random_state=0).fit(X, X[:, 4] > 1)
    explainer = SurrogateExplainer(tree, 2, n_repeats=2).fit(X)
    assert explainer.top_[0] == 4
