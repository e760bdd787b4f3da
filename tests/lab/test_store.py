"""The store: whole results or none, one writer, clear refusals."""

import errno
import json
import multiprocessing
import os
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

        monkeypatch.setattr("etude.lab.store._write", full)
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


@pytest.mark.parametrize("curves", ["", '["loss", 0.0, 1.0]\n', '["loss", 0.0, 1.0]\n["loss", 1.0, 0.25]\n["loss"'])
def test_curves_that_a_copy_cut_short_or_mixed_up_make_the_trial_run_again(tmp_path, caplog, curves):
    with Store(tmp_path) as store:
        folder = store.put(TASK, outcome(), PRINT).folder
    (folder / "series.jsonl").write_text(curves)
    assert Store(tmp_path).get(TASK.id, PRINT) is None
    assert "unreadable" in caplog.text
    (folder / "series.jsonl").unlink()
    assert Store(tmp_path).get(TASK.id, PRINT) is None


def test_early_results_that_tell_no_size_of_their_curves_are_read(tmp_path):
    with Store(tmp_path) as store:
        folder = store.put(TASK, outcome(), PRINT).folder
    record = json.loads((folder / "result.json").read_text())
    del record["series_bytes"]
    (folder / "result.json").write_text(json.dumps(record))
    assert Store(tmp_path).get(TASK.id, PRINT).series() == {"loss": [(0.0, 1.0), (1.0, 0.5)]}


def test_everything_of_a_result_is_on_the_disk_before_it_comes_to_its_place(tmp_path, monkeypatch):
    calls = []

    def noted(name):
        call = getattr(os, name)

        def note(target, *more):
            place = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else target
            calls.append((name, os.path.relpath(place, tmp_path)))
            return call(target, *more)

        return note

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("this system does not tell the names of open files")
    with Store(tmp_path) as store:
        store.put(replace(TASK, seed=1), outcome(), PRINT)
        for name in ("fsync", "rename"):
            monkeypatch.setattr(os, name, noted(name))
        store.put(TASK, outcome(), PRINT)
    writing = f".writing-{TASK.id}-{PRINT[:8]}"
    assert calls == [
        ("fsync", f"{writing}/series.jsonl"), ("fsync", f"{writing}/result.json"), ("fsync", writing),
        ("rename", writing), ("fsync", "toy/claim/small"),
    ]  # fmt: skip


def test_what_another_run_wrote_before_the_lock_was_had_is_seen(tmp_path):
    store = Store(tmp_path)
    assert list(store.results()) == []
    with Store(tmp_path) as other:
        other.put(TASK, outcome(), PRINT)
    with store:
        assert store.get(TASK.id, PRINT) is not None


def test_a_place_that_knows_no_locks_is_not_called_held(tmp_path, monkeypatch):
    def unknown(lock):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("etude.lab.store._take", unknown)
    with pytest.raises(StoreError, match=r"cannot lock the store .* No locks available") as caught, Store(tmp_path):
        pass
    assert not isinstance(caught.value, StoreLocked)
