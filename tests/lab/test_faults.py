"""Runs under fire: workers and coordinators are killed at random moments, and the store must not care.

The short form runs with the other tests; the full form is `pytest tests/lab -m slow -s`, which prints its figures.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from etude.lab.engine import make_engine
from etude.lab.plan import plan
from etude.lab.run import run
from etude.lab.store import Store

PLUGIN = Path(__file__).parents[1] / "plugin"
DESCENT = "etude_toys.descent:PAPER"
ENVIRONMENT = {
    **os.environ, "PYTHONPATH": os.pathsep.join([str(PLUGIN), *filter(None, sys.path)]), "NO_COLOR": "1",
}  # fmt: skip

pytestmark = pytest.mark.skipif(os.name == "nt", reason="kills as POSIX does")


def coordinator(store, *options, **how):
    command = [
        sys.executable,
        "-m",
        "etude",
        "run",
        "toy_descent",
        "--no-export",
        "--workers",
        "2",
        "--store",
        str(store),
    ]
    # Into a file: a pipe would fill while nobody reads it.
    with open(store.with_suffix(".out"), "w") as output, open(store.with_suffix(".err"), "w") as errors:
        return subprocess.Popen([*command, *options], env=ENVIRONMENT, stdout=output, stderr=errors, **how)


def workers_of(process):
    """Worker processes of a coordinator; none once it is dead."""
    try:
        children = psutil.Process(process.pid).children()
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    except psutil.Error:
        return []


def finished(store):
    """Folder -> content of the result of every trial that ended well, as they lie there at this moment."""
    texts = {path.parent: path.read_text() for path in store.glob("toy_descent/**/result.json")}
    return {folder: text for folder, text in texts.items() if json.loads(text)["status"] == "done"}


def is_whole(folder, text):
    """Whether nothing of a result is missing: neither of the record nor of the curve, a point for each step."""
    record = json.loads(text)
    points = (folder / "series.jsonl").read_text().splitlines()
    steps = record["trial"]["setup"]["steps"]
    return record["metrics"].keys() == {"error"} and [json.loads(line)[1] for line in points] == list(range(steps))


def trials(store):
    """What each trial gave, by its identity."""
    return {
        (result.trial["arm"], result.trial["seed"]): (result.status, result.record["metrics"], result.series())
        for result in Store(store).results()
    }


def uninterrupted(store, seeds):
    """The same trials in this process, one after the other, with nobody shooting."""
    with Store(store) as opened:
        run(plan([(DESCENT, None, None)], "small", seeds=tuple(range(seeds))), opened, make_engine("inline"))
    return trials(store)


def copied(store, target):
    """A copy by an ordinary tool while the store is being written; what vanishes on the way is not waited for."""
    subprocess.run(["cp", "-r", str(store), str(target)], check=False, stderr=subprocess.DEVNULL)
    return target


class Siege:
    """Runs `seeds` pairs of trials to the end, killing as it goes, and checks the store at every death."""

    def __init__(self, folder, *, seeds, worker_kills, coordinator_kills, seed):
        self.store, self.folder, self.seeds = folder / "runs", folder, seeds
        self.rng = random.Random(seed)
        targets = ["worker"] * worker_kills + ["coordinator"] * coordinator_kills
        self.rng.shuffle(targets)
        total = 2 * seeds
        # None in the last quarter, which a busy machine might finish before we look.
        moments = sorted(self.rng.sample(range(1, 3 * total // 4), len(targets)))
        self.plan = list(zip(moments, targets))
        self.kept: dict[Path, str] = {}
        self.figures = {"trials": total, "worker kills": 0, "coordinator kills": 0, "coordinators": 0, "copies": 0}
        self.processes: list[psutil.Process] = []

    def run(self):
        started = time.monotonic()
        while True:
            self.figures["coordinators"] += 1
            process = coordinator(self.store, "--seeds", str(self.seeds), "--json")
            try:
                died = self._besiege(process)
                process.wait(timeout=120)
            finally:
                process.kill()
                process.wait()
            self._inspect()
            if not died:
                assert process.returncode in (0, 1, 3, 4), self.store.with_suffix(".err").read_text()
                (claim,) = json.loads(self.store.with_suffix(".out").read_text())
                if all(trial["status"] == "done" for trial in claim["trials"]):
                    break
        self.figures["seconds"] = round(time.monotonic() - started)
        return claim

    def _besiege(self, process):
        """Kills what the plan names when its moment has come; True once the coordinator is dead by our hand."""
        while process.poll() is None:
            self._remember(workers_of(process))
            if self.plan and len(finished(self.store)) >= self.plan[0][0] and len(workers_of(process)) == 2:
                target = self.plan.pop(0)[1]
                time.sleep(self.rng.uniform(0, 0.05))
                if target == "coordinator":
                    process.kill()
                    process.wait()
                    self.figures["coordinator kills"] += 1
                    return True
                self._copy()
                victims = workers_of(process)
                if victims:
                    self.rng.choice(victims).kill()
                    self.figures["worker kills"] += 1
                self._inspect()
            time.sleep(0.002)
        return False

    def _remember(self, found):
        self.processes.extend(child for child in found if child not in self.processes)

    def _copy(self):
        copy = copied(self.store, self.folder / f"copy{self.figures['copies']}")
        self.figures["copies"] += 1
        before = finished(copy)
        assert all(is_whole(folder, text) for folder, text in before.items())
        with Store(copy) as opened:
            assert sum(result.status == "done" for result in opened.results()) == len(before)

    def _inspect(self):
        """Nothing that was finished is lost or changed, and nothing is half there."""
        now = finished(self.store)
        assert all(now.get(folder) == text for folder, text in self.kept.items())
        assert all(is_whole(folder, text) for folder, text in now.items() if folder not in self.kept)
        self.kept = now


def besiege(folder, **options):
    siege = Siege(folder, **options)
    claim = siege.run()
    total = siege.figures["trials"]
    assert not siege.plan, f"never came to {siege.plan}"
    assert (siege.figures["worker kills"], siege.figures["coordinator kills"]) == (
        options["worker_kills"], options["coordinator_kills"],
    )  # fmt: skip
    assert len(siege.kept) == len({(trial["arm"], trial["seed"]) for trial in claim["trials"]}) == total
    assert len(list(siege.store.glob("toy_descent/**/result.json"))) == total
    calm = uninterrupted(folder / "calm", options["seeds"])
    assert trials(siege.store) == calm
    copy = folder / f"copy{siege.figures['copies'] // 2}"
    held = len(finished(copy))
    assert uninterrupted(copy, options["seeds"]) == calm
    siege.figures["trials in the resumed copy"] = held
    siege.figures["attempts beyond the first"] = sum(json.loads(text)["attempts"] - 1 for text in siege.kept.values())
    _, left = psutil.wait_procs(siege.processes, timeout=30)
    assert not left, f"workers outlived their coordinators: {left}"
    return siege.figures


def test_random_deaths_lose_nothing_count_nothing_twice_and_change_no_metric(tmp_path):
    figures = besiege(tmp_path, seeds=20, worker_kills=3, coordinator_kills=2, seed=0)
    assert figures["copies"] == 3


@pytest.mark.slow
def test_two_hundred_trials_under_fire(tmp_path):
    figures = besiege(tmp_path, seeds=100, worker_kills=30, coordinator_kills=20, seed=1)
    print("\n" + "\n".join(f"{name}: {value}" for name, value in figures.items()))


def test_a_second_coordinator_is_refused_with_one_line_and_the_first_goes_on(tmp_path):
    store = tmp_path / "runs"
    first = coordinator(store, "--seeds", "100", "--scale", "medium")
    try:
        deadline = time.monotonic() + 60
        while not finished(store) and time.monotonic() < deadline:
            time.sleep(0.02)
        command = [sys.executable, "-m", "etude", "run", "toy_descent", "--no-export", "--store", str(store)]
        second = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
        assert (second.returncode, second.stdout) == (2, "")
        (line,) = second.stderr.strip().splitlines()
        assert line.startswith(f"etude: the store {store} is held by another run (process {first.pid}, since ")
        held, deadline = len(finished(store)), time.monotonic() + 60
        while len(finished(store)) < held + 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert first.poll() is None
        assert len(finished(store)) >= held + 2
    finally:
        first.kill()
        first.wait()


@pytest.mark.parametrize("after", [0, 5])
def test_ctrl_c_in_the_terminal_ends_all_quietly_and_the_run_goes_on_where_it_was(tmp_path, after):
    store = tmp_path / "runs"
    process = coordinator(store, "--seeds", "60", start_new_session=True)
    workers = []
    try:
        deadline = time.monotonic() + 120
        while (not workers or len(finished(store)) < after) and time.monotonic() < deadline:
            workers = workers_of(process)
            time.sleep(0.01)
        assert workers
        os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to all, workers that are just starting too
        assert process.wait(timeout=60) == 130
        _, left = psutil.wait_procs(workers, timeout=30)
    finally:
        process.kill()
        process.wait()
    assert not left
    (line,) = store.with_suffix(".err").read_text().splitlines()
    assert "interrupted" in line
    kept = finished(store)
    assert after <= len(kept) < 120
    assert coordinator(store, "--seeds", "60").wait(timeout=120) in (0, 1, 4)
    now = finished(store)
    assert len(now) == 120
    assert all(now[folder] == text for folder, text in kept.items())


# Writes into a store of its own for each call by which the store touches the disk, and kills itself at that call.
_DYING_WRITERS = """
import builtins, os, pathlib, shutil, signal, sys
from etude.lab.store import Store
from etude.lab.task import Outcome, Task

calls = 0

def mortal(call, deadline):
    def counted(*arguments, **options):
        global calls
        calls += 1
        if calls == deadline:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **options)
    return counted

def task(seed):
    return Task("toys", "toy/claim", "claim", None, 1, "a", seed, "small", {}, {})

def outcome(score):
    return Outcome("done", metrics={"score": score}, series={"loss": [(float(step), score) for step in range(1000)]})

def write(folder, deadline):
    with Store(folder) as opened:
        opened.put(task(0), outcome(0.0), "ab" * 32)
        opened.put(task(1), Outcome("failed", reason="first"), "ab" * 32)
        for owner, name in ((os, "rename"), (os, "fsync"), (os, "mkdir"), (os, "unlink"), (os, "rmdir"), (os, "open"),
                            (builtins, "open"), (pathlib.Path, "mkdir"), (shutil, "rmtree")):
            setattr(owner, name, mortal(getattr(owner, name), deadline))
        opened.put(task(2), outcome(2.0), "ab" * 32)
        opened.put(task(1), outcome(1.0), "ab" * 32)

step = 0
while True:
    step += 1
    child = os.fork()
    if child == 0:
        write(os.path.join(sys.argv[1], str(step)), step)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL, status
print(step - 1)
"""


def test_a_coordinator_killed_at_any_step_of_a_write_leaves_the_old_or_the_new_result(tmp_path):
    command = [sys.executable, "-c", _DYING_WRITERS, str(tmp_path)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    steps = int(done.stdout)
    assert steps >= 20
    found = []
    for step in range(1, steps + 1):
        with Store(tmp_path / str(step)) as store:
            results = {result.trial["seed"]: result for result in store.results()}
        assert {0, 1} <= results.keys() <= {0, 1, 2}
        for seed, result in results.items():
            if result.status == "done":
                assert result.record["metrics"] == {"score": float(seed)}
                assert len(result.series()["loss"]) == 1000
            else:
                assert (seed, result.record["reason"]) == (1, "first")
        assert not list((tmp_path / str(step)).glob(".writing-*"))
        found.append((2 in results, results[1].status))
    assert found == sorted(found, key=lambda state: (state[0], state[1] == "done"))
    assert {(False, "failed"), (True, "failed"), (True, "done")} == set(found)
