"""Searchers: the statistics of the tree, what is drawn, failures, states."""

import json
import logging
import math
from collections import Counter

import numpy as np
import pytest

from etude.nas.deeparchitect import (
    Affine,
    Bisection,
    Concat,
    Dropout,
    MaxPool2d,
    MCTSSearcher,
    Optional,
    RandomSearcher,
    ReLU,
    Repeat,
    SMBOSearcher,
    UserHyperparams,
    replay,
)

DEEP = Concat([UserHyperparams(lr=[1, 2, 3, 4, 5]), Repeat(Concat([Affine([2, 3, 4]), Optional(ReLU())]), [1, 2])])
TWO = Concat([UserHyperparams(a=[0, 1]), UserHyperparams(b=[0, 1])])


def values(candidate):
    return candidate.hyperparameters


def run(searcher, score, n):
    for _ in range(n):
        candidate = searcher.ask()
        searcher.tell(candidate.id, score(candidate))
    return searcher


def nodes(searcher, history=()):
    """Histories of all nodes of the tree."""
    yield history
    for index in range(searcher.statistics(history)[2]):
        yield from nodes(searcher, (*history, index))


def test_random_search_is_uniform_over_the_values_of_every_decision():
    searcher = RandomSearcher(DEEP, (4,), seed=0)
    drawn = [searcher.ask().history for _ in range(600)]
    for depth, size in ((0, 5), (1, 2), (2, 3), (3, 2)):
        counts = Counter(history[depth] for history in drawn)
        assert len(counts) == size
        for number in counts.values():
            assert number / 600 == pytest.approx(1 / size, abs=5 * math.sqrt(1 / size / 600))


def test_without_exploration_one_decision_is_tried_once_each_and_then_the_best_alone():
    searcher = MCTSSearcher(UserHyperparams(x=list(range(6))), (1,), seed=3, c=0)
    scores = [0.1, 0.4, 0.9, 0.2, 0.9, 0.3]
    run(searcher, lambda candidate: scores[values(candidate)["x"]], 25)
    tried = [told.history[0] for told in searcher.results]
    # The first one is found by the rollout from the root, which then has no children to credit.
    assert sorted(tried[1:7]) == [0, 1, 2, 3, 4, 5]
    assert set(tried[7:]) <= {2, 4}
    assert searcher.statistics((0,))[0] == 1


def test_statistics_of_the_tree():
    rng = np.random.default_rng(0)
    searcher = run(MCTSSearcher(DEEP, (4,), seed=0), lambda candidate: rng.random(), 150)
    assert searcher.statistics()[0] == 150
    assert searcher.statistics()[1] == pytest.approx(np.mean([told.score for told in searcher.results]), abs=1e-12)
    expanded = [history for history in nodes(searcher) if searcher.statistics(history)[2]]
    assert len(expanded) > 10
    for history in expanded:
        visits, _, children = searcher.statistics(history)
        below = [searcher.statistics((*history, index))[0] for index in range(children)]
        assert sum(below) == visits - 1
        if 0 in below:
            assert max(below) <= 1  # each once before any twice
    with pytest.raises(KeyError, match=r"no node at \(9,\)"):
        searcher.statistics((9,))


def test_the_rollout_is_not_credited():
    searcher = run(MCTSSearcher(DEEP, (4,), seed=0), lambda candidate: 0.5, 1)
    assert searcher.statistics() == (1, 0.5, 5)
    assert all(searcher.statistics((index,)) == (0, None, 0) for index in range(5))


def test_the_bound_is_that_of_uct():
    searcher = MCTSSearcher(UserHyperparams(x=[0, 1]), (1,), seed=0, c=0.5)
    wins = {0: 0.8, 1: 0.6}
    run(searcher, lambda candidate: wins[values(candidate)["x"]], 3)
    for _ in range(40):
        (n0, m0, _), (n1, m1, _) = (searcher.statistics((index,)) for index in (0, 1))
        log_n = math.log(searcher.statistics()[0])
        bounds = [m + 0.5 * math.sqrt(2 * log_n / n) for m, n in ((m0, n0), (m1, n1))]
        candidate = searcher.ask()
        assert candidate.history[0] == int(np.argmax(bounds))
        searcher.tell(candidate.id, wins[values(candidate)["x"]])


@pytest.mark.parametrize("seed", range(5))
def test_the_best_leaf_gets_most_visits(seed):
    noise = np.random.default_rng(seed)
    means = {(0, 0): 0.9, (0, 1): 0.5, (1, 0): 0.4, (1, 1): 0.3}
    searcher = MCTSSearcher(TWO, (1,), seed=seed, c=0.5)
    run(searcher, lambda candidate: means[candidate.history] + 0.1 * noise.standard_normal(), 200)
    assert sum(told.history == (0, 0) for told in searcher.results) > 160


def test_rollouts_over_three_values_are_even_over_sides_or_over_values():
    for rollout, draws, expected in (("binary", 5000, (1 / 2, 1 / 4, 1 / 4)), ("uniform", 1500, (1 / 3, 1 / 3, 1 / 3))):
        searcher = MCTSSearcher(Bisection(UserHyperparams(x=[0, 1, 2])), (1,), seed=0, rollout=rollout)
        counts: Counter[int] = Counter()
        for _ in range(draws):
            module, history = searcher._root(), []
            searcher._draw(module, history, by_values=rollout == "uniform")
            counts[module.hyperparameters["x"]] += 1
        for value, frequency in enumerate(expected):
            assert counts[value] / draws == pytest.approx(frequency, abs=0.03 if draws == 5000 else 0.06)


def test_candidates_that_are_out_count_as_visits_without_a_score():
    searcher = MCTSSearcher(UserHyperparams(x=list(range(8))), (1,), seed=0, c=0.5)
    run(searcher, lambda candidate: 0.5, 1)
    out = [searcher.ask() for _ in range(8)]
    assert sorted(candidate.history[0] for candidate in out) == list(range(8))
    assert [candidate.history for candidate in searcher.pending] == [candidate.history for candidate in out]
    for candidate in reversed(out):
        searcher.tell(candidate.id, 0.5)
    assert not searcher.pending
    assert searcher.statistics() == (9, 0.5, 8)
    assert all(node.out == 0 for node in [searcher._tree, *searcher._tree.children])


def test_a_subtree_that_always_fails_is_given_up(caplog):
    searcher = MCTSSearcher(TWO, (1,), seed=0, max_failures=3)
    with caplog.at_level(logging.WARNING):
        run(searcher, lambda candidate: None if values(candidate)["a"] else 0.6 - 0.5 * values(candidate)["b"], 60)
    tried = Counter(told.history[0] for told in searcher.results)
    assert tried[0] > 30
    assert "it is told 0.1" in caplog.text
    assert searcher.statistics((1,))[0] >= 1
    assert all(told.score in (None, 0.6, 0.6 - 0.5) for told in searcher.results)


def test_networks_that_do_not_fit_are_never_proposed():
    space = Concat([MaxPool2d([2, 3, 4], [1, 2], "VALID"), MaxPool2d([2, 3], 1, "VALID"), Affine([2, 3])])
    for searcher in (
        RandomSearcher(space, (1, 5, 5), seed=0),
        MCTSSearcher(space, (1, 5, 5), seed=0),
        MCTSSearcher(Bisection(space), (1, 5, 5), seed=0),
        SMBOSearcher(space, (1, 5, 5), seed=0, pool=5),
    ):
        run(searcher, lambda candidate: 0.5 if candidate.module.out_shape() else 0.0, 40)
        assert len(searcher.results) == 40


def test_an_empty_space_is_told_from_a_difficult_one(monkeypatch):
    monkeypatch.setattr("etude.nas.deeparchitect.searchers._DRAWS", 40)
    empty = Concat([Affine([2, 3]), MaxPool2d([2, 3], 1)])
    for kind in (RandomSearcher, MCTSSearcher, SMBOSearcher):
        with pytest.raises(ValueError, match=r"fit no network, the space may be empty; the last: MaxPool2d-1: needs"):
            kind(empty, (4,)).ask()
    with pytest.raises(ValueError, match="MaxPool2d-1: needs an input"):
        RandomSearcher(Concat([MaxPool2d(2, 2), empty]), (4,))


@pytest.mark.parametrize(
    "make",
    [
        lambda: RandomSearcher(DEEP, (4,), seed=7),
        lambda: MCTSSearcher(DEEP, (4,), seed=7),
        lambda: MCTSSearcher(Bisection(DEEP), (4,), seed=7, rollout="uniform"),
        lambda: SMBOSearcher(DEEP, (4,), seed=7, pool=6, min_count=1, features="names+values"),
    ],
)
def test_a_state_taken_up_goes_on_as_if_nothing_had_been(make):
    def score(candidate):
        return None if candidate.history[0] == 4 else values(candidate)["lr"] / 10

    straight = run(make(), score, 30)
    first = run(make(), score, 12)
    out = first.ask()
    state = json.loads(json.dumps(first.state_dict()))
    second = make()
    second.load_state_dict(state)
    assert [(one.id, one.history) for one in second.pending] == [(out.id, out.history)]
    second.tell(out.id, score(second.pending[0]))
    run(second, score, 17)
    assert second.results == straight.results
    assert json.dumps(second.state_dict()) == json.dumps(straight.state_dict())


def test_a_state_of_another_search_is_refused():
    state = MCTSSearcher(DEEP, (4,), c=0.5).state_dict()
    for other, match in (
        (RandomSearcher(DEEP, (4,)), "state's searcher is 'MCTSSearcher'"),
        (MCTSSearcher(DEEP, (4,), c=1), "state's settings"),
        (MCTSSearcher(TWO, (4,)), "state's space"),
        (MCTSSearcher(DEEP, (5,)), "state's space"),
    ):
        with pytest.raises(ValueError, match=match):
            other.load_state_dict(state)


def test_equal_networks_have_equal_seeds_however_they_were_found():
    plain, halved = RandomSearcher(DEEP, (4,), seed=0), RandomSearcher(Bisection(DEEP), (4,), seed=0)
    seeds = {}
    for searcher in (plain, halved):
        for _ in range(60):
            candidate = searcher.ask()
            seeds.setdefault(repr(candidate.module.repr_model()), set()).add(candidate.digest(5))
    assert all(len(found) == 1 for found in seeds.values())
    assert replay(DEEP, (4,), plain.pending[0].history).repr_model() == plain.pending[0].module.repr_model()


def test_what_is_refused(caplog):
    searcher = MCTSSearcher(DEEP, (4,), seed=0)
    candidate = searcher.ask()
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match=rf"score of candidate 0 must be finite, got {bad}.*UserHyperparams"):
            searcher.tell(candidate.id, bad)
    with pytest.raises(KeyError, match=r"no candidate 5 is out; out are \[0\]"):
        searcher.tell(5, 0.5)
    with caplog.at_level(logging.WARNING):
        searcher.tell(candidate.id, 40.0)
    assert "outside of [0, 1]" in caplog.text
    with pytest.raises(KeyError, match="no candidate 0"):
        searcher.tell(candidate.id, 0.5)
    for arguments, match in (
        ({"c": -1}, "c must be"), ({"c": math.nan}, "c must be"), ({"rollout": "even"}, "rollout must be"),
        ({"max_failures": 0}, "max_failures must be"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            MCTSSearcher(DEEP, (4,), **arguments)
    assert Dropout(0.5).initialize((3,)).is_specified()
