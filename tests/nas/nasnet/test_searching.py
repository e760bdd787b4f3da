"""Searches: kept after each child, resumed with nothing lost, several workers, workers that die, bad rewards."""

import os
import signal
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor

import numpy as np
import pytest

from etude.nas.nasnet import PPOSearch, RandomSearch, SearchResult, SearchSpace, reevaluate, search, searching

SPACE = SearchSpace(blocks=1, ops=("sep_3x3", "max_3x3", "identity"))


def sampler():
    return PPOSearch(SPACE, seed=1, lr=0.05, batch_size=4)


def reward(genotype, seed):
    return (genotype.digest() % 1000 + seed) / 2000


class Killed(BaseException):
    pass


class Deadly:
    """Kills its process on one genotype."""

    def __init__(self, digest):
        self.digest = digest

    def __call__(self, genotype, seed):
        if genotype.digest() == self.digest:
            os.kill(os.getpid(), signal.SIGKILL)
        return reward(genotype, seed)


@pytest.mark.parametrize("after", [0, 1, 6])
def test_a_killed_search_goes_on_with_nothing_lost(tmp_path, after):
    straight = search(sampler(), reward, 14, 4)
    seen = []

    def dies(genotype, seed):
        if len(seen) == after:
            raise Killed
        seen.append(genotype)
        return reward(genotype, seed)

    file = tmp_path / "deep" / "search.pt"
    with pytest.raises(Killed):
        search(sampler(), dies, 14, 4, save=file)
    result = search(sampler(), reward, 14, 4, save=file)
    assert result.evaluated == 14 - after
    assert result.history == straight.history
    assert len(result.history) == 14
    assert os.listdir(file.parent) == ["search.pt"]
    finished = search(sampler(), dies, 14, 4, save=file)  # nothing is left to evaluate
    assert (finished.history, finished.evaluated) == (straight.history, 0)


def test_several_at_a_time_find_what_one_finds():
    straight = search(sampler(), reward, 10, 4)
    with ThreadPoolExecutor(3) as executor:
        together = search(sampler(), reward, 10, 4, executor=executor)
    assert together.history == straight.history


def test_a_child_that_kills_its_worker_is_found_and_takes_no_other_along():
    straight = search(sampler(), reward, 2, 2)
    killer = straight.history[1][0]
    assert killer.digest() != straight.history[0][0].digest()
    result = search(sampler(), Deadly(killer.digest()), 2, 2, workers=2, retries=0, on_error="skip")
    assert result.history == [straight.history[0], (killer, None)]


@pytest.mark.parametrize("deaths", [1, 3])
def test_what_a_dead_worker_leaves_is_evaluated_again(monkeypatch, deaths):
    straight = search(sampler(), reward, 6, 4)
    count = []

    def submit(self, genotype):
        future = Future()
        count.append(genotype)
        if len(count) in (2, 5, 8)[:deaths]:
            future.set_exception(BrokenExecutor("killed"))
        else:
            future.set_result(reward(genotype, 0))
        return future

    monkeypatch.setattr(searching._Place, "_submit", submit)
    result = search(sampler(), reward, 6, 4, workers=2, retries=3)
    assert result.history == straight.history
    count.clear()
    with pytest.raises(RuntimeError, match="given executor is broken"):
        search(sampler(), reward, 6, 4, executor=ThreadPoolExecutor(1))


def test_a_reward_that_is_nan_is_an_error_or_a_failed_child():
    def bad(genotype, seed):
        return float("nan") if genotype.normal[0].first_op == "identity" else 0.5

    with pytest.raises(ValueError, match="finite, got nan") as caught:
        search(RandomSearch(SPACE), bad, 10)
    assert "while evaluating" in caught.value.__notes__[0]
    lenient = RandomSearch(SPACE)
    result = search(lenient, bad, 10, on_error="skip")
    assert 0 < result.failed == lenient.failed < 10
    assert result.rewards.tolist().count(0.5) == 10 - result.failed

    def broken(genotype, seed):
        raise ZeroDivisionError("no children")

    with pytest.raises(ZeroDivisionError, match="no children"):
        search(RandomSearch(SPACE), broken, 2)
    assert search(RandomSearch(SPACE), broken, 2, on_error="skip").failed == 2


def test_files_of_other_searches_and_torn_files_are_refused(tmp_path):
    file = tmp_path / "search.pt"
    search(sampler(), reward, 3, 2, save=file)
    with pytest.raises(ValueError, match=r"cannot be taken up.*sampler is 'PPOSearch'"):
        search(RandomSearch(SPACE), reward, 5, save=file)
    with pytest.raises(ValueError, match=r"cannot be taken up.*blocks"):
        search(PPOSearch(SearchSpace(blocks=2)), reward, 5, save=file)
    with pytest.raises(ValueError, match="seed 0, this one has 7"):
        search(sampler(), reward, 5, seed=7, save=file)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        search(sampler(), reward, 5, save=file)


def test_the_best_are_distinct_and_evaluated_again_with_fresh_seeds():
    result = search(RandomSearch(SPACE, seed=2), reward, 60, 20)
    top = result.top(5)
    assert [value for _, value in top] == sorted((value for _, value in top), reverse=True)
    assert len({genotype for genotype, _ in top}) == 5
    assert len(result.top(1000)) == len({genotype.canonical() for genotype, _ in result.history})
    again = reevaluate([genotype for genotype, _ in top], reward, [2, 4])
    assert again == pytest.approx([value + 3 / 2000 for _, value in top])
    means = result.top_mean(2)
    best = sorted({genotype.canonical(): value for genotype, value in result.history}.values())
    assert means[-1] == pytest.approx(np.mean(best[-2:]))
    assert len(means) == 60
    assert SearchResult(result.history, 30, 20.0).per_minute == 90
    with pytest.raises(ValueError, match="at least one seed"):
        reevaluate([], reward, [])


def test_arguments_out_of_range_are_refused():
    for name, value in (("budget", 0), ("batch", 0), ("workers", 0), ("retries", -1)):
        with pytest.raises(ValueError, match=f"{name} must be at least"):
            search(RandomSearch(SPACE), reward, **{"budget": 1, name: value})
    with pytest.raises(ValueError, match="'ignore'"):
        search(RandomSearch(SPACE), reward, 1, on_error="ignore")
