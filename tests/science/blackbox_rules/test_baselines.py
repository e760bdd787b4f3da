"""XGBoost and TabNet behind one interface, and what happens without them."""

import builtins
import logging

import numpy as np
import pytest
import torch

from etude.science.blackbox_rules import BoostedTrees, TabNet


def table():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 8))
    return X, np.where(X[:, 2] > 0, "yes", "no")


def without(monkeypatch, name):
    original = builtins.__import__

    def refusing(wanted, *args, **kwargs):
        if wanted.split(".")[0] == name:
            raise ImportError(f"No module named {name!r}")
        return original(wanted, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refusing)


def test_boosted_trees_find_the_column_and_repeat():
    pytest.importorskip("xgboost")
    X, y = table()
    trees = BoostedTrees(20, 3).fit(X, y)
    assert trees.library_ == "xgboost"
    assert (trees.predict(X) == y).mean() > 0.95
    assert trees.gain_importance().argmax() == 2
    assert trees.gain_importance().shape == trees.gain_importance(per_split=True).shape == (8,)
    again = BoostedTrees(20, 3).fit(X, y)
    np.testing.assert_array_equal(trees.predict_proba(X), again.predict_proba(X))


def test_scikit_learn_stands_in_for_xgboost_and_says_so(monkeypatch, caplog):
    without(monkeypatch, "xgboost")
    X, y = table()
    with caplog.at_level(logging.WARNING):
        trees = BoostedTrees(20, 3).fit(X, y)
    assert trees.library_ == "scikit-learn"
    assert "pip install xgboost" in caplog.text
    assert (trees.predict(X) == y).mean() > 0.9
    with pytest.raises(ImportError, match="pip install xgboost"):
        trees.gain_importance()


def test_tabnet_trains_repeats_and_leaves_the_global_random_states():
    pytest.importorskip("pytorch_tabnet")
    X, y = table()
    torch.manual_seed(0)
    np.random.seed(0)
    net = TabNet(4, epochs=2, batch_size=32).fit(X, y)
    drawn = torch.rand(1), np.random.rand()
    torch.manual_seed(0)
    np.random.seed(0)
    assert (torch.rand(1), np.random.rand()) == drawn
    assert net.predict_proba(X).shape == (60, 2)
    assert set(net.predict(X)) <= {"yes", "no"}
    assert net.importance_.shape == (8,)
    again = TabNet(4, epochs=2, batch_size=32).fit(X, y)
    np.testing.assert_array_equal(net.predict_proba(X), again.predict_proba(X))


def test_without_tabnet_the_message_says_what_to_install(monkeypatch):
    without(monkeypatch, "pytorch_tabnet")
    with pytest.raises(ImportError, match="pip install pytorch-tabnet"):
        TabNet().fit(*table())


@pytest.mark.parametrize("model", [BoostedTrees(5), TabNet(epochs=1)])
def test_one_class_is_refused(model):
    with pytest.raises(ValueError, match="at least two classes"):
        model.fit(table()[0], np.zeros(60))
