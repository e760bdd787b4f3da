"""The inline and process engines: equal results, and what happens when a trial goes wrong."""

import pytest

from etude.lab.engine import ENGINES, Done, make_engine
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
