"""The surrogate: what it counts, that it is a ridge regression, that it finds what was planted."""

import itertools

import numpy as np
import pytest

pytest.importorskip("sklearn")

from etude.nas.deeparchitect import (
    Affine,
    BatchNorm,
    Concat,
    Optional,
    ReLU,
    Residual,
    SMBOSearcher,
    Surrogate,
    UserHyperparams,
    replay,
)
from etude.nas.deeparchitect.surrogate import grams

SPACE = Concat([Affine([2, 3]), Optional(ReLU()), Residual(Concat([BatchNorm(), Affine([4, 5])]))])


def test_stretches_of_names_leave_the_last_window_out_and_see_no_values():
    one, other = (replay(SPACE, (4,), history) for history in ((0, 1, 0), (1, 1, 1)))
    found = grams(one, "names", 3)
    names = ["Affine", "ReLU", "Residual", "BatchNorm", "Affine"]
    expected = [("names", *names[i : i + k]) for k in (1, 2) for i in range(len(names) - k)]
    assert sorted(found.elements()) == sorted(expected)
    assert found[("names", "Affine")] == 1  # the last one is not counted
    assert grams(other, "names", 3) == found


def test_empty_layers_are_dropped_from_the_vocabulary_and_counted_in_the_length():
    module = replay(SPACE, (4,), (0, 0, 0))
    assert ("names", "Affine", "Empty") in grams(module, "names", 3)
    assert ("names", "Affine", "Residual") in grams(module, "names", 3, without_empty=True)
    surrogate = Surrogate("names", 3, min_count=1).fit([module], [0.5])
    assert ("names", "Affine", "Empty") not in surrogate.vocabulary
    assert surrogate.matrix([module])[0, 0] == 5


def test_values_are_seen_if_asked():
    found = grams(replay(SPACE, (4,), (1, 1, 0)), "names+values", 2)
    assert found[("value", "Affine.units=3")] == 1
    assert found[("values", "Affine.units=3", "Affine.init='he'")] == 1
    assert found[("values", "Affine.init='he'", "Affine.units=4")] == 1


def test_rare_stretches_are_no_features():
    modules = [replay(SPACE, (4,), history) for history in ((0, 1, 0), (0, 0, 0), (1, 0, 1))]
    assert ("names", "ReLU") in Surrogate("names", 2, min_count=1).fit(modules, [0, 1, 2]).vocabulary
    assert ("names", "ReLU") not in Surrogate("names", 2, min_count=2).fit(modules, [0, 1, 2]).vocabulary


def test_it_predicts_nothing_before_the_first_score():
    modules = [replay(SPACE, (4,), history) for history in itertools.product((0, 1), repeat=3)]
    assert not Surrogate().predict(modules).any()


@pytest.mark.parametrize("ridge", [0.1, 1.0, 1000.0])
def test_it_is_ridge_regression_with_a_free_intercept(ridge):
    modules = [replay(SPACE, (4,), history) for history in itertools.product((0, 1), repeat=3)]
    y = np.random.default_rng(0).normal(size=len(modules))
    surrogate = Surrogate("names+values", 5, 1, ridge).fit(modules, y)
    x = surrogate.matrix(modules)
    centred = x - x.mean(0)
    w = np.linalg.solve(centred.T @ centred + ridge * np.eye(x.shape[1]), centred.T @ (y - y.mean()))
    np.testing.assert_allclose(surrogate.predict(modules), y.mean() + centred @ w, atol=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_a_planted_additive_score_is_found(seed):
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(6, 4))
    space = Concat([UserHyperparams(**{f"x{i}": [0, 1, 2, 3]}) for i in range(6)])
    modules = {history: replay(space, (1,), history) for history in map(tuple, rng.integers(0, 4, (286, 6)).tolist())}
    histories = list(modules)

    def score(history):
        return sum(weights[i, value] for i, value in enumerate(history))

    surrogate = Surrogate("names+values", 2, 1, 1.0)
    surrogate.fit([modules[h] for h in histories[:30]], [score(h) for h in histories[:30]])
    top = histories[30 + int(np.argmax(surrogate.predict([modules[h] for h in histories[30:]])))]
    every = np.array([score(h) for h in itertools.product(range(4), repeat=6)])
    assert (every > score(top)).mean() < 0.05


def test_it_explores_and_otherwise_takes_the_best_of_the_pool():
    space = UserHyperparams(x=list(range(10)))
    greedy = SMBOSearcher(
        space, (1,), seed=0, pool=60, explore=0, ridge=0.01, min_count=1, features="names+values", startup=10
    )
    for _ in range(20):
        candidate = greedy.ask()
        greedy.tell(candidate.id, candidate.hyperparameters["x"] / 10)
    seen = {told.history[0] for told in greedy.results[:10]}
    assert {told.history[0] for told in greedy.results[10:]} == {max(seen)}
    wild = SMBOSearcher(space, (1,), seed=0, explore=1.0)
    assert len({wild.ask().history for _ in range(60)}) == 10


def test_bad_arguments_are_refused():
    for arguments, match in (
        ({"pool": 0}, "pool must be at least 1"), ({"explore": 1.5}, "probability"), ({"ridge": 0}, "ridge must be"),
        ({"ngram": 1}, "ngram must be"), ({"features": "all"}, "features must be one of"), ({"startup": -1}, "startup"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            SMBOSearcher(SPACE, (4,), **arguments)
