"""The Ray engine: the metrics of `inline`, time-outs, deaths of workers and of a whole node."""

import contextlib
import gc
import os
import sys
import time
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
DESCENT, PATIENCE, SHRINKAGE, TROUBLE = (
    f"etude_toys.{name}:PAPER" for name in ("descent", "patience", "shrinkage", "trouble")
)

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


class Siege:
    """Kills the node beside the coordinator's whenever trials wait at the gate of `patience` on it, so many times."""

    def __init__(self, gate, cluster, node, deaths):
        self.gate, self.cluster, self.deaths = gate, cluster, deaths
        self.options, self.deadline = node, time.monotonic() + 120 * (1 + deaths)
        self.node = self._add_node()

    def look(self, ended):
        """Is called whenever a trial reports, each second for those that wait."""
        if self.deaths and ended >= 4 and self._waits_there():
            workers = psutil.Process(self._raylet).children(recursive=True)
            self.cluster.remove_node(self.node, allow_graceful=False)
            for worker in workers:  # a machine takes all with it; Ray's own end a moment later than its raylet
                with contextlib.suppress(psutil.NoSuchProcess):
                    worker.kill()
            self.deaths -= 1
            if self.deaths:
                self.node = self._add_node()
        if not self.deaths or time.monotonic() > self.deadline:
            (self.gate / "open").touch()

    def _add_node(self):
        for _ in range(3):
            # Ray gives a node half a minute to start, which a busy machine may not.
            with contextlib.suppress(Exception):
                return self.cluster.add_node(**self.options)
        raise RuntimeError("Ray started no second node")

    @property
    def _raylet(self):
        return self.node.all_processes["raylet"][0].process.pid

    def _waits_there(self):
        for path in self.gate.iterdir():
            with contextlib.suppress(ValueError, psutil.Error):
                if self._raylet in [parent.pid for parent in psutil.Process(int(path.name)).parents()]:
                    return True
        return False


def besiege(tmp_path, monkeypatch, *, deaths, seeds):
    from ray.cluster_utils import Cluster

    gate = tmp_path / "gate"
    gate.mkdir()
    monkeypatch.setenv("ETUDE_TOY_GATE", str(gate))
    monkeypatch.setenv("PYTHONPATH", str(PLUGIN))  # a plug-in is installed on every node
    node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 * 1024**2}
    # A dead node is noticed within two seconds instead of half a minute.
    watch = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"num_gpus": 1, "_system_config": watch})
    try:
        # The second node comes later: of two on one machine the coordinator might join the one that is to die.
        engine = make_engine("ray", workers=2, address=cluster.address)
        siege = Siege(gate, cluster, node, deaths)
        witness, ends = Witness(siege.look), Counter()
        fetch = engine._fetch

        def noted(ref):
            outcome = fetch(ref)
            ends[outcome.status] += 1
            return outcome

        monkeypatch.setattr(engine, "_fetch", noted)
        jobs = plan([(PATIENCE, "waits", None)], "small", seeds=tuple(range(seeds)))
        on_gpu = plan([(PATIENCE, "shares", None)], "smoke", device="cuda")
        with Store(tmp_path / "ray") as store:
            result, share = run(jobs + on_gpu, store, engine, observer=witness)
    finally:
        ray.shutdown()
        cluster.shutdown()
        gc.collect()  # of Ray's pipes, while pytest's filters hold
    assert siege.deaths == 0, "no trial ever waited on the second node"
    trials = 2 * seeds
    assert len(result.trials) == trials
    assert len(witness.ends) == witness.trials == trials + 2
    assert set(witness.ends.values()) == {1}
    assert ends == {"done": trials + 2, "lost": deaths}
    assert sum(witness.submissions.values()) == trials + 2 + deaths
    assert {record["status"] for record in result.trials} == {"done"}
    assert [record["metrics"] for record in share.trials] == [{"score": 0.5}] * 2
    calm = plan([(PATIENCE, "waits", None)], "small", seeds=tuple(range(seeds)))
    with Store(tmp_path / "inline") as store:
        run(calm, store, make_engine("inline"))
    on_ray = {result.id: result for result in Store(tmp_path / "ray").results("patience/waits")}
    inline = {result.id: result for result in Store(tmp_path / "inline").results()}
    assert on_ray.keys() == inline.keys()
    for name, one in on_ray.items():
        assert one.record["metrics"] == inline[name].record["metrics"]
        assert one.series() == inline[name].series()
    return dict(witness.submissions.most_common(1))


def test_a_node_that_dies_half_way_loses_nothing_and_trials_have_their_share_of_a_gpu(tmp_path, monkeypatch):
    besiege(tmp_path, monkeypatch, deaths=1, seeds=5)


@pytest.mark.slow
def test_many_nodes_die_under_two_hundred_trials(tmp_path, monkeypatch):
    started = time.monotonic()
    most = besiege(tmp_path, monkeypatch, deaths=10, seeds=100)
    print(f"\n10 node deaths, 200 trials, {time.monotonic() - started:.0f} s; most attempts of a trial: {most}")


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
