"""Toy papers that each break one rule of the conformance suite. They are no entry points: tests name them by module."""

import os
from types import SimpleNamespace
from typing import Any

import torch

from etude.lab import Paper, Setup, Trial, higher, lower, shown

_MEMORY: list[float] = []


def _paper(slug: str) -> Paper:
    return Paper(
        slug=slug, domain="theory", title="A rogue", authors="Nobody", year=2000, venue="Nowhere",
        summary="It breaks one rule.", methods=("etude_toys.estimators",), usage="print(1)",
    )  # fmt: skip


_CLAIM: dict[str, Any] = {
    "arms": ("baseline", "method"), "expect": [higher("method", than="baseline", metric="score")],
    "setup": {"smoke": Setup(steps=2), "small": Setup(steps=4)},
}  # fmt: skip

STRAY = _paper("stray")
FICKLE = _paper("fickle")
LEAKY = _paper("leaky")
SPOILING = _paper("spoiling")
DOUBLING = _paper("doubling")
DEAF = _paper("deaf")
UNTUNABLE = _paper("untunable")
FALLING = _paper("falling")
LACKING = _paper("lacking")
CARELESS = Paper(
    slug="careless", domain="theory", title="A rogue", authors="Nobody", year=2000, arxiv="cs/1",
    methods=("etude_toys.absent",), usage="from etude_toys import absent",
)  # fmt: skip


@STRAY.claim("The method draws outside of all streams", **_CLAIM)
def stray(trial: Trial) -> dict[str, float]:
    own = float(torch.randn(1)) if trial.arm == "method" else 0.0
    return {"score": own + trial.setup.steps}


@FICKLE.claim("The baseline is another every time", **_CLAIM)
def fickle(trial: Trial) -> dict[str, float]:
    noise = int.from_bytes(os.urandom(4), "big") if trial.arm == "baseline" else 0
    return {"score": float(noise + trial.setup.steps)}


@LEAKY.claim("The method leaves its draws where the baseline finds them", **_CLAIM)
def leaky(trial: Trial) -> dict[str, float]:
    if trial.arm == "method":
        _MEMORY.append(float(trial.rng("method").normal()))
    return {"score": sum(_MEMORY) * (trial.arm == "baseline") + trial.setup.steps}


@SPOILING.claim("The method changes the data in place", data={"ones": lambda: torch.ones(3)}, **_CLAIM)
def spoiling(trial: Trial, data: torch.Tensor) -> dict[str, float]:
    steps = float(trial.setup.steps)
    score = float(data.sum()) if trial.arm == "baseline" else steps
    if trial.arm == "method":
        data.zero_()
    return {"score": score}


@DOUBLING.claim("The method changes torch's default", **_CLAIM)
def doubling(trial: Trial) -> dict[str, float]:
    if trial.arm == "method":
        torch.set_default_dtype(torch.float64)
    return {"score": float(trial.setup.steps)}


@DEAF.claim("The setup is not read", **_CLAIM)
def deaf(trial: Trial) -> dict[str, float]:
    return {"score": float(getattr(trial.setup, "steps", 7))}


@UNTUNABLE.claim("A tuning run lacks the metric that chooses", tune={"lr": [1.0, 2.0]}, tune_by="val_score", **_CLAIM)
def untunable(trial: Trial) -> dict[str, float]:
    return {"score": trial.tuned.lr * trial.setup.steps}


@FALLING.claim("The method raises", **_CLAIM)
def falling(trial: Trial) -> dict[str, float]:
    return {"score": {"baseline": float(trial.setup.steps)}[trial.arm]}


def _absent() -> SimpleNamespace:
    raise FileNotFoundError("the set `absent` is missing: place absent.txt into ETUDE_DATA/absent")


@LACKING.claim("The data are elsewhere", data={"absent": _absent}, **_CLAIM)
def lacking(trial: Trial, data: SimpleNamespace) -> dict[str, float]:
    return {"score": float(trial.setup.steps)}


@CARELESS.claim(
    " ",
    arms=("baseline", "method"),
    expect=[lower("method", than="baseline", metric="score")],
    setup={"smoke": Setup(steps=2), "small": Setup(steps=2)},
    seeds=2,
    worst={"loss": 1.0},
    measured=("seconds",),
)
def hasty(trial: Trial) -> dict[str, float]:
    return {"score": float(trial.setup.steps)}


@CARELESS.claim("Nothing is compared", arms=("one",), expect=[shown("one")], setup={"smoke": Setup(steps=2)})
def idle(trial: Trial) -> dict[str, float]:
    return {"score": float(trial.setup.steps)}
