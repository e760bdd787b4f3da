"""Ray: candidates as tasks with fractions of a machine, a killed worker, errors of the evaluation itself."""

import os
import signal

import pytest

from etude.nas.deeparchitect import Bisection, MCTSSearcher, RayExecutor, UserHyperparams, search

pytestmark = pytest.mark.slow


def test_a_search_on_ray_survives_a_killed_worker(tmp_path):
    pytest.importorskip("ray")
    mark = tmp_path / "killed"

    def evaluate(candidate):
        if candidate.id == 1 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if candidate.id == 3:
            raise OverflowError("too deep")
        return candidate.hyperparameters["a"] / 7

    searcher = MCTSSearcher(Bisection(UserHyperparams(a=list(range(8)))), (1,), seed=0)
    with RayExecutor(num_cpus=0.5, local_cpus=1) as executor:
        result = search(searcher, evaluate, 8, workers=2, executor=executor, on_error="skip")
    assert mark.exists()
    assert sorted(told.id for told in searcher.results) == list(range(8))
    assert [told.id for told in searcher.results if told.score is None] == [3]
    assert result.best.hyperparameters["a"] / 7 == max(score for score in result.scores if score is not None)
