"""A toy paper whose trials wait until they are let go, so that a test can strike in the middle of them.

It is no entry point: tests name it by module. Each trial leaves a file named after its process in the folder
ETUDE_TOY_GATE; once `open` lies there, all end.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from etude.lab import Paper, Setup, Trial, higher

PAPER = Paper(slug="patience", domain="theory", title="Patience", authors="Nobody", year=2000)

_SETUP = {"smoke": Setup(free=0), "small": Setup(free=2)}
_EXPECT = [higher("method", than="baseline", metric="score")]
_ARMS = ("baseline", "method")


@PAPER.claim("Trials wait at a gate, but for those of the first seeds", arms=_ARMS, expect=_EXPECT, setup=_SETUP)
def waits(trial: Trial) -> dict[str, float]:
    gate = Path(os.environ["ETUDE_TOY_GATE"])
    steps = 0
    if trial.seed >= trial.setup.free:
        (gate / str(os.getpid())).touch()
        while not (gate / "open").exists():
            time.sleep(0.05)
            steps += 1
            trial.progress(steps, steps + 1, waited=steps, name="a word is no number")
    for step in range(5000):
        trial.log(step, score=float(trial.seed))
    return {"score": float(trial.rng("data").normal()) + 5 * (trial.arm == "method")}


@PAPER.claim("A trial has its share of a GPU", arms=_ARMS, expect=_EXPECT, setup=_SETUP, resources={"gpus": 0.5})
def shares(trial: Trial) -> dict[str, float]:
    import ray

    return {"score": ray.get_runtime_context().get_assigned_resources().get("GPU", 0.0)}


@PAPER.claim("A trial starts a process that outlives it", arms=_ARMS, expect=_EXPECT, setup=_SETUP, timeout=1.5)
def breeds(trial: Trial) -> dict[str, float]:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (Path(os.environ["ETUDE_TOY_GATE"]) / str(child.pid)).touch()
    return waits(trial)


@PAPER.claim("A trial wants to end the run", arms=_ARMS, expect=_EXPECT, setup=_SETUP)
def exits(trial: Trial) -> dict[str, float]:
    raise SystemExit("enough")


@PAPER.claim("A trial closes all files of its worker", arms=_ARMS, expect=_EXPECT, setup=_SETUP)
def closes(trial: Trial) -> dict[str, float]:
    os.closerange(3, 256)
    time.sleep(600)
    return {"score": 0.0}
