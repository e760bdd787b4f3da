"""The inline and process engines: equal results, and what happens when a trial goes wrong."""

import multiprocessing
import os
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import pytest

from etude.lab.engine import ENGINES, Done, Progress, make_engine, process
from etude.lab.plan import plan
from etude.lab.task import Outcome
from etude.lab.worker import execute


def tasks_of(module, claim, scale="smoke", seeds=None):
    (job,) = plan([(module, claim, None)], scale, seeds=seeds)
    job.choose({})
    return job.trial_tasks()


def run_all(engine, tasks):
    waiting, ended = list(tasks), {}
    try:
        while len(ended) < len(tasks):
            while waiting and engine.free:
                engine.submit(waiting.pop(0))
            for event in engine.poll(1.0):
                if isinstance(event, Done):
                    assert event.task.id not in ended
                    ended[event.task.id] = event.outcome
    finally:
        engine.close()
    return [ended[task.id] for task in tasks]


def test_inline_and_process_give_equal_metrics_to_the_last_bit():
    tasks = tasks_of("etude_toys.shrinkage:PAPER", "dominates", seeds=(0, 1))
    inline = run_all(make_engine("inline"), tasks)
    process = run_all(make_engine("process", workers=2), tasks)
    assert [outcome.metrics for outcome in inline] == [outcome.metrics for outcome in process]
    assert [outcome.series for outcome in inline] == [outcome.series for outcome in process]
    assert all(outcome.status == "done" for outcome in inline + process)


def test_a_crash_costs_one_trial_and_the_worker_is_respawned():
    tasks = tasks_of("etude_toys.trouble:PAPER", "dies", seeds=(0, 1))
    outcomes = run_all(make_engine("process", workers=1), tasks)
    assert [outcome.status for outcome in outcomes] == ["done", "crashed", "done", "done"]
    assert "SIGKILL" in outcomes[1].reason


def test_a_trial_past_its_time_is_stopped_and_the_others_go_on():
    tasks = tasks_of("etude_toys.trouble:PAPER", "hangs", seeds=(0, 1))
    outcomes = run_all(make_engine("process", workers=2), tasks)
    assert [outcome.status for outcome in outcomes] == ["done", "timeout", "done", "done"]
    assert outcomes[1].seconds < 30


def outcome_of(claim, arm, seed=0):
    tasks = tasks_of("etude_toys.trouble:PAPER", claim, seeds=(seed,))
    return execute(next(task for task in tasks if task.arm == arm))


def test_an_error_becomes_a_failure_with_its_first_line_and_trace():
    outcome = outcome_of("raises", "baseline", seed=1)
    assert outcome.status == "failed"
    assert outcome.reason == "ArithmeticError: the sum of the parts"
    assert "in raises" in outcome.error


def test_a_metric_that_is_nan_is_a_failure_that_names_it():
    assert outcome_of("diverges", "method", seed=2).reason == "ValueError: metric 'score' is nan"


def test_a_missing_metric_is_a_failure_that_names_it():
    assert outcome_of("forgets", "method").reason.startswith("ValueError: no metric score")


def test_missing_data_are_no_failure():
    outcome = outcome_of("needs_data", "method")
    assert outcome.status == "needs data"
    assert "absent.txt" in outcome.reason


def test_running_out_of_memory_is_a_failure_with_that_reason(monkeypatch):
    def exhaust(*args):
        raise MemoryError("8 EiB")

    monkeypatch.setattr("etude.lab.trial.Trial.rng", exhaust)
    outcome = outcome_of("steady", "method")
    assert (outcome.status, outcome.reason) == ("failed", "out of memory: 8 EiB")


def test_an_outcome_tells_its_cost_and_environment():
    outcome = outcome_of("steady", "method")
    assert outcome.seconds > 0
    assert outcome.peak_memory_mb > 10
    assert outcome.environment["threads"] == 1


def test_unknown_engines_and_worker_counts_are_refused():
    with pytest.raises(ValueError, match="'cloud'"):
        make_engine("cloud")
    with pytest.raises(ValueError, match="got 0"):
        make_engine("process", workers=0)
    assert set(ENGINES) == {"inline", "process", "ray"}


def test_a_record_holds_no_trace_of_where_it_ran():
    task = tasks_of("etude_toys.trouble:PAPER", "steady")[0]
    record = Outcome("done").record(task, "ab" * 32)
    assert not {"module", "device", "timeout"} & set(record["trial"])


PATIENCE = "etude_toys.patience:PAPER"
POSIX = pytest.mark.skipif(os.name == "nt", reason="process groups are POSIX's")
PLUGIN = Path(__file__).parents[1] / "plugin"
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PLUGIN), *filter(None, sys.path)])}


@pytest.fixture
def gate(tmp_path, monkeypatch):
    """The folder in which the trials of `patience` leave their process numbers, and wait for the file `open`."""
    monkeypatch.setenv("ETUDE_TOY_GATE", str(tmp_path))
    return tmp_path


def arrived(gate, count=1, seconds=120.0):
    """Processes at the gate, once there are so many."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        numbers = [int(path.name) for path in gate.iterdir() if path.name.isdecimal()]
        if len(numbers) >= count:
            return [psutil.Process(number) for number in numbers if psutil.pid_exists(number)]
        time.sleep(0.02)
    raise AssertionError(f"{count} processes did not come within {seconds} s")


def alive(processes, seconds=30.0):
    """Those that have not ended after some patience; the dead whom nobody has buried yet do not count."""

    def lives(process):
        try:
            return process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    deadline = time.monotonic() + seconds
    while (left := [process for process in processes if lives(process)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


@POSIX
def test_what_a_stopped_trial_has_started_ends_with_it(gate):
    engine = make_engine("process", workers=1)
    try:
        engine.submit(tasks_of(PATIENCE, "breeds", seeds=(3,))[0])
        ended = []
        started = time.monotonic()
        while not ended and time.monotonic() - started < 120:
            ended = [event for event in engine.poll(1.0) if isinstance(event, Done)]
        assert [event.outcome.status for event in ended] == ["timeout"]
        assert not alive(arrived(gate, 2))
    finally:
        engine.close()


_COORDINATOR = """
import sys
from etude.lab.engine import make_engine
from etude.lab.plan import plan

if __name__ == "__main__":
    (job,) = plan([("etude_toys.patience:PAPER", sys.argv[1], None)], "smoke", seeds=(3,))
    job.choose({})
    engine = make_engine("process", workers=1)
    engine.submit(job.trial_tasks()[0])
    while engine.free == 0:
        list(engine.poll(1.0))
"""


def script(tmp_path):
    path = tmp_path / "coordinator.py"
    path.write_text(_COORDINATOR)
    return str(path)


@POSIX
def test_a_worker_and_its_children_end_with_the_coordinator_in_the_middle_of_a_trial(gate):
    coordinator = subprocess.Popen(
        [sys.executable, script(gate), "breeds"], env=ENVIRONMENT | {"ETUDE_TOY_GATE": str(gate)}
    )
    try:
        processes = arrived(gate, 2)
        assert len(alive(processes, 0.0)) == 2
    finally:
        coordinator.kill()
        coordinator.wait()
    assert not alive(processes)


def test_a_coordinator_that_forgets_to_close_its_engine_still_ends(gate):
    (gate / "open").touch()
    environment = ENVIRONMENT | {"ETUDE_TOY_GATE": str(gate)}
    done = subprocess.run([sys.executable, script(gate), "waits"], env=environment, capture_output=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_trial_that_exits_fails_and_its_worker_lives_on(gate):
    (gate / "open").touch()
    tasks = tasks_of(PATIENCE, "exits", seeds=(0,))
    for name in ("inline", "process"):
        outcomes = run_all(make_engine(name, workers=1), tasks)
        assert [(outcome.status, outcome.reason) for outcome in outcomes] == [("failed", "SystemExit: enough")] * 2


@POSIX
def test_a_worker_that_loses_its_pipe_has_crashed_and_nobody_waits_for_it():
    started = time.monotonic()
    (outcome,) = run_all(make_engine("process", workers=1), tasks_of(PATIENCE, "closes", seeds=(0,))[:1])
    assert outcome.status == "crashed"
    assert time.monotonic() - started < 120


def test_a_worker_that_never_gets_ready_has_crashed_and_its_trial_is_not_blamed(monkeypatch):
    monkeypatch.setattr(process, "_START_UP_SECONDS", 0.0)
    outcomes = run_all(make_engine("process", workers=1), tasks_of(PATIENCE, "waits", seeds=(0,))[:1])
    assert [outcome.status for outcome in outcomes] == ["crashed"]
    assert outcomes[0].reason.startswith("the worker was not ready after ")


class Dead(BaseProcess):
    """A process that has been killed."""

    pid, exitcode = None, -9

    def __init__(self): ...

    def is_alive(self):
        return False

    def kill(self): ...

    def join(self, seconds): ...


def received(send):
    """What the engine makes of what a worker did with its end of the pipe before it was killed."""
    ours, theirs = multiprocessing.Pipe()
    send(theirs)
    theirs.close()
    engine = make_engine("process", workers=1)
    task = tasks_of(PATIENCE, "waits", seeds=(0,))[0]
    worker = process._Worker(Dead(), ours, task)
    engine._pool.append(worker)
    events = list(engine._receive(worker))
    engine.close()
    return events


def test_an_outcome_that_was_sent_before_the_worker_was_killed_counts():
    (event,) = received(lambda pipe: pipe.send(Outcome("done", metrics={"score": 1.0})))
    assert (event.outcome.status, event.outcome.metrics) == ("done", {"score": 1.0})


def test_a_worker_killed_in_the_middle_of_its_report_has_crashed():
    def half(pipe):
        pipe.send((1, 2, {"loss": 0.5}))
        os.write(pipe.fileno(), (1_000_000).to_bytes(4, "big") + b"the rest never comes")

    progress, done = received(half)
    assert (type(progress), progress.metrics) == (Progress, {"loss": 0.5})
    assert (done.outcome.status, done.outcome.reason) == ("crashed", "the worker was killed by SIGKILL; out of memory?")


def test_reports_hold_numbers_alone(gate):
    engine = make_engine("process", workers=1)
    try:
        engine.submit(tasks_of(PATIENCE, "waits", seeds=(3,))[0])
        reports, started = [], time.monotonic()
        while not reports and time.monotonic() - started < 120:
            reports = [event for event in engine.poll(1.0) if isinstance(event, Progress)]
        assert set(reports[0].metrics) == {"waited"}
    finally:
        engine.close()
