"""Several workers, a killed one, and files that a search goes on from."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

from etude.nas.n2n import NetworkCompressor, Removal, RemovalPolicy, chain, run_search, save_search

GREY = torch.zeros(2, 1, 8, 8)


def by_size(student: nn.Module) -> float:
    return 1 / (1 + sum(isinstance(module, nn.Identity) for module in student.modules()))


def reward(accuracy: float, params: int, epoch: int) -> float:
    return accuracy - params / 1e5


class KillsItsWorker:
    """Ends the process that evaluates the first student, once."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __call__(self, student: nn.Module) -> float:
        if not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return by_size(student)


def search(evaluate=by_size, **options):
    torch.manual_seed(0)
    build = Removal(chain(((4, 4), (6, 6)), num_classes=10, in_channels=1, size=(8, 8)), GREY, fix=(nn.MaxPool2d,))
    return NetworkCompressor(RemovalPolicy(), build, evaluate, reward, **options)


def told(compressor):
    return [(tried.id, tried.reward, tried.actions.tolist()) for tried in compressor.history]


def test_a_killed_worker_is_replaced_and_changes_nothing(tmp_path):
    alone = run_search(search(rollouts=2), 1)
    shared = run_search(search(KillsItsWorker(tmp_path / "mark"), rollouts=2), 1, workers=2)
    assert (tmp_path / "mark").exists()
    assert told(shared) == told(alone)


def test_any_executor_serves_and_a_lost_worker_of_its_is_tried_again():
    lost = []

    def fails_once(student):
        if not lost:
            lost.append(student)
            raise ConnectionError("the node is gone")
        return by_size(student)

    with ThreadPoolExecutor(1) as executor:
        found = run_search(search(fails_once), 2, executor=executor, workers=2, retry_on=(ConnectionError,))
    assert told(found) == told(run_search(search(), 2))
    lost.clear()
    with pytest.raises(RuntimeError, match=r"the worker of student \d died 1 times: the node is gone"):
        run_search(search(fails_once), 1, retries=0, retry_on=(ConnectionError,))


def test_a_search_stopped_in_an_update_goes_on_and_trains_no_student_twice(tmp_path):
    path = tmp_path / "search.pt"
    seen = []

    def stops(student):
        if len(seen) == 7:
            raise KeyboardInterrupt
        seen.append(repr(student))
        return by_size(student)

    with pytest.raises(KeyboardInterrupt):
        run_search(search(stops), 3, save=path)

    def counts(student):
        seen.append(repr(student))
        return by_size(student)

    found = run_search(search(counts), 3, save=path)
    assert len(seen) == len(set(seen))
    assert told(found) == told(run_search(search(), 3))
    again = run_search(search(counts), 3, save=path)
    assert told(again) == told(found)


def test_an_error_of_the_evaluation_names_the_student(tmp_path):
    def fails(student):
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory") as caught:
        run_search(search(fails), 1, save=tmp_path / "search.pt")
    assert caught.value.__notes__[0].startswith("while evaluating student ")


def test_torn_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "search.pt"
    save_search(path, search())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="not a readable search"):
        run_search(search(), 1, save=path)
    save_search(path, search(rollouts=3))
    with pytest.raises(ValueError, match="another network, policy or setting"):
        run_search(search(), 1, save=path)
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        run_search(search(), 1, workers=0)
