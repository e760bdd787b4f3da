"""Merging rankings, their agreement, and the two passes over wide tables."""

import numpy as np
import pytest
import torch

from etude.science.blackbox_rules import (
    BlackBoxClassifier,
    aggregate_ranks,
    gradient_importance,
    measure_importances,
    rank_agreement,
    ranks,
)


def test_ties_share_their_mean_rank():
    assert ranks(np.array([5.0, 1.0, 5.0, 0.0])).tolist() == [1.5, 3.0, 1.5, 4.0]


@pytest.mark.parametrize("method", ["borda", "mrr"])
def test_identical_rankings_give_the_same_ranking(method):
    importance = np.array([0.3, 2.0, -1.0, 0.9, 0.1])
    merged = aggregate_ranks({"a": importance, "b": 10 * importance, "c": importance**3}, method)
    assert np.argsort(-merged).tolist() == np.argsort(-importance).tolist()


def test_three_lists_by_hand():
    # Ranks: a 1 2 3 4, b 2 1 3 4, c 4 1 2 3.
    lists = {"a": [4.0, 3.0, 2.0, 1.0], "b": [3.0, 4.0, 2.0, 1.0], "c": [0.1, 0.9, 0.8, 0.7]}
    np.testing.assert_allclose(aggregate_ranks(lists), [5 / 3, 8 / 3, 4 / 3, 1 / 3])
    expected = [(1 + 1 / 2 + 1 / 4) / 3, (1 / 2 + 1 + 1) / 3, (1 / 3 + 1 / 3 + 1 / 2) / 3, (1 / 4 + 1 / 4 + 1 / 3) / 3]
    np.testing.assert_allclose(aggregate_ranks(lists, "mrr"), expected)


def test_scales_of_raw_importances_do_not_count():
    small, large = np.array([3.0, 2.0, 1.0]), np.array([1e6, 2e6, 3e6])
    np.testing.assert_allclose(aggregate_ranks({"a": small, "b": large}), [1, 1, 1])


def test_agreement_of_three_lists():
    found = rank_agreement({"a": [4.0, 3.0, 2.0, 1.0], "b": [1.0, 2.0, 3.0, 4.0], "c": [4.0, 2.0, 3.0, 1.0]}, k=2)
    assert found.names == ("a", "b", "c")
    np.testing.assert_allclose(found.tau, [[1, -1, 2 / 3], [-1, 1, -2 / 3], [2 / 3, -2 / 3, 1]])
    np.testing.assert_allclose(found.jaccard, [[1, 0, 1 / 3], [0, 1, 1 / 3], [1 / 3, 1 / 3, 1]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: aggregate_ranks({"a": [1.0]}, "mean"), "borda or mrr, got 'mean'"),
        (lambda: aggregate_ranks({}), "one vector a technique"),
        (lambda: aggregate_ranks({"a": [1.0, 2.0], "b": [1.0]}), "all of one length"),
        (lambda: rank_agreement({"a": [1.0, 2.0]}, k=3), r"k must lie in 1\.\.2, the number of columns, got 3"),
    ],
)
def test_bad_rankings_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def fitted(kind="gated", d=30):
    """A box whose hidden layer is set to read 2 x_2 - 2 x_5 and nothing else."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((80, d))
    y = (X[:, 2] - X[:, 5] > 0).astype(int)
    box = BlackBoxClassifier(kind, epochs=1).fit(X[:60], y[:60])
    with torch.no_grad():
        for weight in (box.network_.encode.weight, box.network_.decode.weight):
            weight.zero_()
        box.network_.encode.weight[0, [2, 5]] = torch.tensor([2.0, -2.0])
        box.network_.decode.weight[:, 0] = torch.tensor([-2.0, 2.0])
    return box, X[:60], X[60:], y[60:]


def test_every_technique_that_the_box_allows_is_measured():
    box, train, held, y = fitted()
    found = measure_importances(box, train, held, y, rng=np.random.default_rng(0))
    assert list(found.scores) == [
        "integrated_gradients", "gradient_x_input", "attention", "permutation", "permutation_f1", "sensitivity"
    ]  # fmt: skip
    assert set(found.merged()[:2].tolist()) == {2, 5}
    assert found.impact[2, 1] > 0 > found.impact[5, 1]
    from_outside = measure_importances(box.predict_proba, train, held, rng=np.random.default_rng(0))
    assert list(from_outside.scores) == ["permutation", "sensitivity"]
    np.testing.assert_allclose(from_outside.scores["permutation"], found.scores["permutation"], atol=1e-5)


def test_wide_tables_are_perturbed_only_where_the_probe_points():
    box, train, held, y = fitted()
    asked = []
    original = box.predict_columns

    def recorded(X, features, values):
        asked.extend(features.tolist())
        return original(X, features, values)

    box.predict_columns = recorded
    found = measure_importances(box, train, held, y, two_pass_above=20, share=0.1, rng=np.random.default_rng(0))
    probe = gradient_importance(box, train)
    order = np.argsort(-probe, kind="stable")
    assert set(asked) == set(order[:3].tolist())
    for name in ("permutation", "sensitivity", "permutation_f1"):
        # The others rank below, in the order of the probe.
        assert np.argsort(-found.scores[name], kind="stable")[3:].tolist() == order[3:].tolist()
    assert found.notes == ("30 columns: only the 3 best by integrated gradients were perturbed",)
    assert (found.impact[order[3:]] == 0).all()


def test_a_wide_box_that_nobody_looks_into_is_screened_by_its_answers():
    box, train, held, _ = fitted()
    found = measure_importances(box.predict_proba, train, held, two_pass_above=20, rng=np.random.default_rng(0))
    assert set(found.merged()[:2].tolist()) == {2, 5}
    assert "best by F" in found.notes[0]


def test_a_technique_that_a_box_does_not_allow_is_refused():
    box, train, held, _ = fitted("mlp")
    with pytest.raises(ValueError, match=r"allows the techniques .*, got attention"):
        measure_importances(box, train, held, techniques=["permutation", "attention"])
