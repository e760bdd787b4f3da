import numpy as np
import pytest

from etude.data.splitting import cut, stratified_order


def test_the_order_is_a_permutation():
    labels = np.random.RandomState(0).randint(0, 5, 101)
    assert sorted(stratified_order(labels)) == list(range(101))


def test_every_stretch_holds_the_classes_in_proportion():
    labels = np.repeat([0, 1, 2], [100, 200, 300])
    for part in cut(stratified_order(labels), 60, 120, 240):
        counts = np.bincount(labels[part], minlength=3)
        assert np.abs(counts - len(part) * np.array([1, 2, 3]) / 6).max() <= 1


def test_the_seed_changes_the_order_and_nothing_else_does():
    labels = np.arange(40) % 4
    assert np.array_equal(stratified_order(labels, 1), stratified_order(labels, 1))
    assert not np.array_equal(stratified_order(labels, 1), stratified_order(labels, 2))


def test_cutting_more_than_there_is_is_refused():
    with pytest.raises(ValueError, match="cannot cut 5 rows into parts of 3, 3"):
        cut(np.arange(5), 3, 3)
