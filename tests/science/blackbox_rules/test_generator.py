"""The table whose truth is known."""

import numpy as np
import pytest

from etude.science.blackbox_rules import sparse_interactions


def test_sizes_classes_and_repetition():
    t = sparse_interactions(rng=np.random.default_rng(3))
    assert t.X.shape == (600, 1000)
    assert abs(t.y.mean() - 0.5) < 0.02
    assert len(t.informative) == 10
    np.testing.assert_array_equal(t.relevant, t.informative)
    again = sparse_interactions(rng=np.random.default_rng(3))
    np.testing.assert_array_equal(t.X, again.X)
    np.testing.assert_array_equal(t.y, again.y)


def test_the_class_follows_the_formula():
    t = sparse_interactions(20_000, 12, 10, pairs=0, noise=0.0, rng=np.random.default_rng(0))
    signal = t.X[:, t.informative].astype(np.float64)
    # Least squares on the signs finds the weights' directions; without noise and pairs they decide.
    found = np.linalg.lstsq(signal, 2.0 * t.y - 1, rcond=None)[0]
    s = signal @ found
    assert ((s > np.median(s)) == t.y).mean() > 0.97
    assert np.abs(t.weights).min() >= 0.7
    assert np.abs(t.weights).max() <= 1.3


def test_pairs_interact():
    t = sparse_interactions(60_000, 4, 4, pairs=2, noise=0.0, rng=np.random.default_rng(0))
    none = sparse_interactions(60_000, 4, 4, pairs=0, noise=0.0, rng=np.random.default_rng(0))
    products = [(i, j) for i in range(4) for j in range(i)]

    def largest(table):
        return max(abs(np.corrcoef(table.X[:, i] * table.X[:, j], table.y)[0, 1]) for i, j in products)

    assert largest(t) > 0.2
    assert largest(none) < 0.02


def test_blocks_are_noisy_copies():
    t = sparse_interactions(20_000, 60, 10, corr_block=5, rng=np.random.default_rng(0))
    assert len(t.relevant) == 50
    assert set(t.informative) <= set(t.relevant)
    correlation = np.abs(np.corrcoef(t.X.T) - np.eye(60))
    for column in t.informative:
        np.testing.assert_allclose(np.sort(correlation[column])[-4:], 0.8, atol=0.02)
    others = np.setdiff1d(np.arange(60), t.relevant)
    assert correlation[others].max() < 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"informative": 3, "pairs": 2}, "2 pairs need 4 informative columns, got informative=3"),
        ({"d": 40, "corr_block": 5}, "need d of 50 or more, got 40"),
        ({"n": 3}, "n must be at least 4, got 3"),
    ],
)
def test_impossible_tables_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sparse_interactions(**options)
