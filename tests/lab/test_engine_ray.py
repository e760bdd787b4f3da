"""The Ray engine: the metrics of `inline`, time-outs, deaths of workers and of a whole node."""

import os
import sys
from collections import Counter
from pathlib import Path

import psutil
import pytest

from etude.lab.engine import make_engine
from etude.lab.plan import plan
from etude.lab.run import run
from etude.lab.store import Store

ray = pytest.importorskip("ray")
PLUGIN = Path(__file__).parents[1] / "plugin"
DESCENT, SHRINKAGE, TROUBLE = (f"etude_toys.{name}:PAPER" for name in ("descent", "shrinkage", "trouble"))

# Ray leaves the pipes and sockets of its own processes to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.skipif(os.name == "nt", reason="Ray's cluster tools are for POSIX"),
]


class Witness:
    """Counts how often each trial was submitted, reported and ended; `look` is called at each report and end."""

    def __init__(self, look=lambda ended: None):
        self.submissions, self.ends, self.reports, self.look = Counter(), Counter(), Counter(), look

    def started(self, jobs, trials):
        self.trials = trials

    def submitted(self, task):
        self.submissions[task.id] += 1

    def progressed(self, task, step, total, metrics):
        self.reports[task.id] += 1
        self.look(len(self.ends))

    def ended(self, task, outcome, stored):
        self.ends[task.id] += 1
        self.look(len(self.ends))

    def judged(self, result): ...


def metrics(path):
    return {result.id: (result.status, result.record["metrics"], result.series()) for result in Store(path).results()}


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """One local Ray, through which a well-behaved paper and two troubled claims went."""
    path, witness = tmp_path_factory.mktemp("ray"), Witness()
    jobs = plan([(TROUBLE, "hangs", None), (TROUBLE, "dies", None)], "smoke", seeds=(0,))
    jobs += plan([(SHRINKAGE, None, None), (DESCENT, None, None)], "smoke", seeds=(0, 1))
    with Store(path) as store:
        results = run(jobs, store, make_engine("ray", workers=2), observer=witness)
    return path, witness, {result.job.claim.name: result for result in results}


def test_ray_and_inline_give_equal_metrics_to_the_last_bit(local, tmp_path):
    with Store(tmp_path) as store:
        run(plan([(SHRINKAGE, None, None), (DESCENT, None, None)], "smoke", seeds=(0, 1)), store, make_engine("inline"))
    inline, on_ray = metrics(tmp_path), metrics(local[0])
    assert len(inline) == 16
    assert inline == {name: on_ray[name] for name in inline}


def test_every_trial_ends_once(local):
    _, witness, _ = local
    assert len(witness.ends) == witness.trials
    assert set(witness.ends.values()) == {1}


def test_a_trial_past_its_time_is_cancelled(local):
    (stopped,) = (record for record in local[2]["hangs"].trials if record["trial"]["arm"] == "method")
    assert (stopped["status"], stopped["attempts"]) == ("timeout", 1)
    assert 1 < stopped["seconds"] < 30


def test_a_trial_that_kills_its_worker_is_given_up_after_three_attempts(local):
    _, witness, results = local
    (crashed,) = (record for record in results["dies"].trials if record["trial"]["arm"] == "method")
    assert (crashed["status"], crashed["attempts"]) == ("crashed", 3)
    assert witness.submissions[crashed["id"]] == 3
    assert "died" in crashed["reason"]


def test_trials_run_on_one_thread(local):
    assert {record["environment"]["threads"] for record in local[2]["averaging"].trials} == {1}


def test_ray_is_stopped_with_the_engine(local):
    assert not ray.is_initialized()


def works(node):
    """Whether a trial runs on the node at this moment: Ray names its workers after what they do."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return any("toy_descent" in " ".join(child.cmdline()) for child in raylet.children())


@pytest.mark.slow
def test_a_node_that_dies_half_way_loses_nothing(tmp_path, monkeypatch):
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(PLUGIN))  # a plug-in is installed on every node
    node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 * 1024**2}
    # A dead node is noticed within two seconds instead of half a minute.
    watch = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"_system_config": watch})
    try:
        second = cluster.add_node(**node)
        cluster.wait_for_nodes()

        def half_way(ended):
            if ended >= 3 and not killed and works(second):
                killed.append(ended)
                cluster.remove_node(second, allow_graceful=False)

        killed = []
        witness, jobs = Witness(half_way), plan([(DESCENT, None, None)], "medium")
        with Store(tmp_path / "ray") as store:
            engine = make_engine("ray", address=cluster.address)
            assert engine.workers == 2
            (result,) = run(jobs, store, engine, observer=witness)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert killed, "no trial ran on the second node"
    assert len(result.trials) == len(witness.ends) == witness.trials == 12
    assert set(witness.ends.values()) == {1}
    assert sum(witness.submissions.values()) > 12
    assert {record["status"] for record in result.trials} == {"done"}
    assert sum(witness.reports.values()) > 0
    with Store(tmp_path / "inline") as store:
        run(plan([(DESCENT, None, None)], "medium"), store, make_engine("inline"))
    assert metrics(tmp_path / "ray") == metrics(tmp_path / "inline")


def test_a_node_with_other_code_is_refused_and_nothing_counts(monkeypatch):
    from etude.lab.engine import ray as engine

    class Board:
        class tell:
            remote = staticmethod(lambda *report: None)

    (job,) = plan([(SHRINKAGE, "positive_part", None)], "smoke")
    job.choose({})
    outcome = engine._serve(job.trial_tasks()[0], "flight", Board, "another fingerprint")
    assert outcome.status == "crashed"
    assert "other code of etude_toys" in outcome.reason


def test_an_address_without_a_cluster_is_named():
    with pytest.raises(ConnectionError, match=r"no Ray cluster answers at 127\.0\.0\.1:1:"):
        make_engine("ray", address="127.0.0.1:1")


def test_without_ray_one_line_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'etude\[ray\]'"):
        make_engine("ray", workers=1)
