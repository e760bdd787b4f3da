"""A toy paper whose trials go wrong: they raise, return NaN, hang, die or lack their data."""

import os
import signal
import time
from pathlib import Path

from etude.lab import Paper, Setup, Trial, higher

PAPER = Paper(slug="toy_trouble", domain="theory", title="Trouble", authors="Nobody", year=2000)

_SETUP = {"smoke": Setup(seconds=0.01), "small": Setup(seconds=0.01)}
_EXPECT = [higher("method", than="baseline", metric="score")]
_ARMS = ("baseline", "method")


def absent() -> None:
    raise FileNotFoundError("the set `absent` is missing: place absent.txt into ETUDE_DATA/absent")


def _score(trial: Trial) -> dict[str, float]:
    time.sleep(trial.setup.seconds)
    return {"score": float(trial.rng("data").normal()) + 5 * (trial.arm == "method")}


@PAPER.claim("The baseline raises", arms=_ARMS, expect=_EXPECT, setup=_SETUP, seeds=3)
def raises(trial: Trial) -> dict[str, float]:
    if trial.arm == "baseline" and trial.seed == 1:
        raise ArithmeticError("the sum of the parts\nis not the whole")
    return _score(trial)


@PAPER.claim(
    "The baseline raises and scores its worst", arms=_ARMS, expect=_EXPECT, setup=_SETUP, seeds=3, worst={"score": -5.0}
)
def raises_with_worst(trial: Trial) -> dict[str, float]:
    return raises(trial)


@PAPER.claim("The method diverges", arms=_ARMS, expect=_EXPECT, setup=_SETUP, seeds=3)
def diverges(trial: Trial) -> dict[str, float]:
    return {"score": float("nan")} if trial.arm == "method" and trial.seed == 2 else _score(trial)


@PAPER.claim("The method takes too long", arms=_ARMS, expect=_EXPECT, setup=_SETUP, seeds=3, timeout=1.0)
def hangs(trial: Trial) -> dict[str, float]:
    if trial.arm == "method" and trial.seed == 0:
        time.sleep(60)
    return _score(trial)


@PAPER.claim("The worker dies once", arms=_ARMS, expect=_EXPECT, setup=_SETUP, seeds=3)
def dies_once(trial: Trial) -> dict[str, float]:
    marker = Path(os.environ["ETUDE_TOY_MARKER"])
    if trial.arm == "method" and trial.seed == 0 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return _score(trial)


@PAPER.claim("The worker dies always", arms=_ARMS, expect=_EXPECT, setup=_SETUP, seeds=3)
def dies(trial: Trial) -> dict[str, float]:
    if trial.arm == "method" and trial.seed == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return _score(trial)


@PAPER.claim("The data are not there", arms=_ARMS, expect=_EXPECT, setup=_SETUP, seeds=3, data={"absent": absent})
def needs_data(trial: Trial, data: None) -> dict[str, float]:
    return _score(trial)


@PAPER.claim("A metric is missing", arms=_ARMS, expect=_EXPECT, setup=_SETUP, seeds=3)
def forgets(trial: Trial) -> dict[str, float]:
    return {"other": 1.0}


@PAPER.claim("All goes well, slowly", arms=_ARMS, expect=_EXPECT, setup=_SETUP, seeds=100)
def steady(trial: Trial) -> dict[str, float]:
    return _score(trial)


@PAPER.claim("A package is not installed", arms=_ARMS, expect=_EXPECT, setup=_SETUP, seeds=3)
def needs_extra(trial: Trial) -> dict[str, float]:
    raise ImportError("this claim needs unobtainium: pip install 'etude[unobtainium]'")
