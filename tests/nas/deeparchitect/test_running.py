"""Running: saved after each result, resumed with nothing lost, several at a time, workers that die, bad scores."""

import json
import math
import os
import signal
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from etude.nas.deeparchitect import (
    Bisection,
    Concat,
    MCTSSearcher,
    RandomSearcher,
    RayExecutor,
    UserHyperparams,
    WorkerLost,
    load_search,
    save_search,
    search,
)

SPACE = Concat([UserHyperparams(a=list(range(8))), UserHyperparams(b=list(range(8)))])


def searcher(seed=0):
    return MCTSSearcher(Bisection(SPACE), (1,), seed=seed)


def score(candidate):
    return (candidate.hyperparameters["a"] + candidate.hyperparameters["b"]) / 14


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", [0, 1, 7])
def test_a_killed_search_goes_on_with_nothing_lost(tmp_path, after):
    straight = search(searcher(), score, 20)
    count = []

    def dies(candidate):
        if len(count) == after:
            raise Killed
        count.append(candidate)
        return score(candidate)

    file = tmp_path / "deep" / "search.json"
    with pytest.raises(Killed):
        search(searcher(), dies, 20, save=file)
    evaluated = []
    result = search(searcher(), lambda candidate: evaluated.append(candidate.id) or score(candidate), 20, save=file)
    assert len(evaluated) == 20 - after
    assert (result.histories, result.scores) == (straight.histories, straight.scores)
    assert result.best.history == straight.best.history
    again = search(searcher(), dies, 20, save=file)  # nothing is left to evaluate
    assert again.scores == straight.scores
    longer = search(searcher(), score, 25, save=file)
    assert longer.scores == search(searcher(), score, 25).scores
    assert os.listdir(file.parent) == ["search.json"]


def test_what_was_being_evaluated_is_evaluated_first_after_a_kill(tmp_path):
    file = tmp_path / "search.json"
    first = searcher()
    search(first, score, 3)
    out = [first.ask(), first.ask()]
    save_search(file, first)
    order = []
    search(searcher(), lambda candidate: order.append(candidate.history) or score(candidate), 6, save=file)
    assert order[:2] == [candidate.history for candidate in out]


def test_a_file_that_was_cut_off_or_is_of_another_search_is_refused(tmp_path):
    file = tmp_path / "search.json"
    search(searcher(), score, 3, save=file)
    with pytest.raises(ValueError, match=r"search.json belongs to another search: the state's searcher"):
        search(RandomSearcher(SPACE, (1,)), score, 3, save=file)
    file.write_text(file.read_text()[:-20])
    with pytest.raises(ValueError, match="not a readable search"):
        search(searcher(), score, 5, save=file)
    file.write_text(json.dumps({"format": "other"}))
    with pytest.raises(ValueError, match="not the state of a search"):
        load_search(file, searcher())


def test_what_a_search_found():
    scores = iter([0.2, None, 0.6, 0.4])
    told = []
    result = search(searcher(), lambda _: next(scores), 4, on_result=lambda one, value: told.append((one.id, value)))
    assert told == [(0, 0.2), (1, None), (2, 0.6), (3, 0.4)]
    assert result.scores == [0.2, None, 0.6, 0.4]
    np.testing.assert_allclose(result.best_so_far(), [0.2, 0.2, 0.6, 0.6])
    np.testing.assert_allclose(result.fraction_above([0.0, 0.3, 0.6]), [0.75, 0.5, 0.0])
    assert (result.best.id, result.best.history) == (2, result.histories[2])
    assert result.bookkeeping > 0
    failed = search(searcher(), lambda _: None, 2)
    assert failed.best is None
    assert np.isnan(failed.best_so_far()).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, "good", [0.5]])
def test_a_score_that_is_no_number_ends_the_search_or_is_skipped(bad, tmp_path, caplog):
    file = tmp_path / "search.json"
    given = iter([0.5, bad, 0.7])
    with pytest.raises((ValueError, TypeError), match=r"must be finite|must give a number") as caught:
        search(searcher(), lambda _: next(given), 3, save=file)
    assert "while evaluating candidate 1, history" in caught.value.__notes__[0]
    resumed = searcher()
    result = search(resumed, lambda _: 0.7, 3, save=file)
    assert result.scores == [0.5, 0.7, 0.7]
    given = iter([0.5, bad, 0.7])
    assert search(searcher(), lambda _: next(given), 3, on_error="skip").scores == [0.5, None, 0.7]
    assert "candidate 1 failed" in caplog.text


def test_an_evaluation_that_raises_ends_the_search_or_is_skipped():
    def evaluate(candidate):
        if candidate.id == 1:
            raise OverflowError("too deep")
        return 0.5

    with pytest.raises(OverflowError, match="too deep"):
        search(searcher(), evaluate, 3)
    assert search(searcher(), evaluate, 3, on_error="skip").scores == [0.5, None, 0.5]


def test_several_candidates_at_a_time_are_all_told():
    one = searcher()
    most = 0

    def evaluate(candidate):
        nonlocal most
        most = max(most, len(one._pending))
        return score(candidate)

    with ThreadPoolExecutor(3) as executor:
        result = search(one, evaluate, 30, executor=executor, workers=3)
    assert len(result.scores) == 30
    assert 1 < most <= 3
    assert one.statistics()[0] == 30
    assert not one.pending
    assert sorted(told.id for told in one.results) == list(range(30))
    assert all(told.score == score(type("C", (), {"hyperparameters": one.replay(told.history).hyperparameters}))
               for told in one.results)  # fmt: skip


class Losing(ThreadPoolExecutor):
    """Loses the worker of candidate 2 so many times."""

    def __init__(self, times):
        super().__init__(1)
        self.times = times

    def submit(self, fn, *args):
        if args[-1].id == 2 and self.times:
            self.times -= 1
            future = Future()
            future.set_exception(WorkerLost("node down"))
            return future
        return super().submit(fn, *args)


def test_a_lost_worker_is_survived_and_a_deadly_candidate_is_not_tried_for_ever():
    with Losing(2) as executor:
        result = search(searcher(), score, 8, executor=executor, workers=2, retries=2)
    assert len(result.scores) == 8
    assert None not in result.scores
    with Losing(3) as executor, pytest.raises(RuntimeError, match="its worker died 3 times"):
        search(searcher(), score, 8, executor=executor, workers=2, retries=2)
    with Losing(99) as executor:
        one = searcher()
        result = search(one, score, 8, executor=executor, workers=2, on_error="skip")
    assert [told.id for told in one.results if told.score is None] == [2]
    assert len(result.scores) == 8


def kills_once(folder, candidate):
    """Kills its own process at candidate 1, the first time."""
    mark = Path(folder) / "killed"
    if candidate.id == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return score(candidate)


def test_processes_of_its_own_are_replaced_when_they_die(tmp_path):
    one = searcher()
    result = search(one, partial(kills_once, str(tmp_path)), 5, workers=2, save=tmp_path / "search.json")
    assert (tmp_path / "killed").exists()
    assert sorted(told.id for told in one.results) == [0, 1, 2, 3, 4]
    assert None not in result.scores


def kills(candidate):
    if candidate.id == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return score(candidate)


@pytest.mark.slow
def test_only_the_candidate_that_kills_its_process_is_blamed():
    one = searcher()
    search(one, kills, 6, workers=3, on_error="skip", retries=1)
    assert sorted(told.id for told in one.results) == [0, 1, 2, 3, 4, 5]
    assert [told.id for told in one.results if told.score is None] == [1]


def test_what_is_refused():
    for arguments, match in (
        ({"budget": 0}, "budget must be at least 1, got 0"), ({"budget": 1, "workers": 0}, "workers must be"),
        ({"budget": 1, "on_error": "ignore"}, "on_error must be"), ({"budget": 1, "retries": -1}, "retries must be"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            search(searcher(), score, **arguments)
    with pytest.raises(TypeError, match=r"Type-check|must be a search module"):
        RandomSearcher("mlp", (1,))


def test_ray_takes_no_negative_resources():
    pytest.importorskip("ray")
    with pytest.raises(ValueError, match="num_cpus and num_gpus must not be negative"):
        RayExecutor(num_gpus=-1)
