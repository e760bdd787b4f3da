"""The store: whole results or none, one writer, clear refusals."""

import errno
import json
import multiprocessing
import shutil
import time
from dataclasses import replace

import pytest

from etude.lab.store import Store, StoreError, StoreLocked
from etude.lab.task import Outcome, Task, canonical

TASK = Task(
    module="toys", claim="toy/claim", function="claim", data=None, version=1, arm="a", seed=0, scale="small",
    setup={"steps": 3}, tuned={"lr": 0.1},
)  # fmt: skip
PRINT = "ab" * 32


def outcome(score=0.25):
    return Outcome("done", metrics={"score": score}, series={"loss": [(0.0, 1.0), (1.0, 0.5)]})


def test_a_result_comes_back_as_it_was_put(tmp_path):
    with Store(tmp_path) as store:
        store.put(TASK, outcome(0.1 + 0.2), PRINT)
    found = Store(tmp_path).get(TASK.id, PRINT)
    assert found.record["metrics"] == {"score": 0.1 + 0.2}
    assert found.trial["tuned"] == {"lr": 0.1}
    assert found.series() == {"loss": [(0.0, 1.0), (1.0, 0.5)]}


def test_another_fingerprint_is_another_result(tmp_path):
    with Store(tmp_path) as store:
        store.put(TASK, outcome(), PRINT)
        assert store.get(TASK.id, "cd" * 32) is None


def test_putting_again_replaces_the_result(tmp_path):
    with Store(tmp_path) as store:
        store.put(TASK, outcome(0.1), PRINT)
        store.put(TASK, outcome(0.2), PRINT)
    assert [result.record["metrics"]["score"] for result in Store(tmp_path).results()] == [0.2]


def test_the_identity_of_a_trial_is_what_it_is_and_not_how_it_runs():
    assert replace(TASK, timeout=1.0, device="cuda", module="elsewhere").id == TASK.id
    for change in (
        {"seed": 1},
        {"arm": "b"},
        {"setup": {"steps": 4}},
        {"tuned": {"lr": 1.0}},
        {"version": 2},
        {"tuning": True},
    ):
        assert replace(TASK, **change).id != TASK.id


def test_canonical_json_does_not_depend_on_the_order_of_keys():
    assert canonical({"b": 1.0, "a": [1, 2]}) == canonical({"a": [1, 2], "b": 1.0})


def test_a_torn_result_is_ignored_and_the_rest_is_read(tmp_path, caplog):
    with Store(tmp_path) as store:
        torn = store.put(TASK, outcome(), PRINT).folder
        store.put(replace(TASK, seed=1), outcome(), PRINT)
    (torn / "result.json").write_text('{"id": "abc", "metr')
    store = Store(tmp_path)
    assert [result.trial["seed"] for result in store.results()] == [1]
    assert "unreadable" in caplog.text
    with store:
        store.put(TASK, outcome(0.5), PRINT)
    assert len(list(Store(tmp_path).results())) == 2


@pytest.mark.parametrize("content", ["null", "[]", "{}", json.dumps({"id": 1, "fingerprint": 2})])
def test_a_foreign_json_file_is_ignored(tmp_path, content):
    folder = tmp_path / "toy" / "claim" / "small" / "x"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(content)
    assert list(Store(tmp_path).results()) == []


def test_a_half_written_result_is_never_read_and_is_cleared(tmp_path):
    leftover = tmp_path / ".writing-abc"
    leftover.mkdir()
    (leftover / "result.json").write_text(json.dumps({"id": "abc"}))
    assert list(Store(tmp_path).results()) == []
    with Store(tmp_path):
        assert not leftover.exists()


def _hold(path, ready):
    with Store(path):
        ready.set()
        time.sleep(120)


def test_a_store_held_by_another_run_is_refused_until_that_run_ends(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, ready))
    holder.start()
    try:
        assert ready.wait(60)
        with pytest.raises(StoreLocked, match=f"held by another run .process {holder.pid}"), Store(tmp_path):
            pass
    finally:
        holder.kill()
        holder.join(30)
    with Store(tmp_path):
        pass


def test_writing_needs_the_lock(tmp_path):
    with pytest.raises(StoreError, match="reading only"):
        Store(tmp_path).put(TASK, outcome(), PRINT)


def test_a_store_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write the store"), Store(tmp_path / "file" / "runs"):
        pass


def test_a_full_disk_is_named_and_loses_nothing(tmp_path, monkeypatch):
    with Store(tmp_path) as store:
        store.put(TASK, outcome(0.1), PRINT)

        def full(*args, **kwargs):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(json, "dump", full)
        with pytest.raises(StoreError, match="disk is full"):
            store.put(TASK, outcome(0.2), PRINT)
    monkeypatch.undo()
    assert [result.record["metrics"]["score"] for result in Store(tmp_path).results()] == [0.1]


def test_stores_merge_by_copying(tmp_path):
    for seed, name in enumerate(("one", "two")):
        with Store(tmp_path / name) as store:
            store.put(replace(TASK, seed=seed), outcome(), PRINT)
    shutil.copytree(tmp_path / "two", tmp_path / "one", dirs_exist_ok=True)
    assert sorted(result.trial["seed"] for result in Store(tmp_path / "one").results()) == [0, 1]
