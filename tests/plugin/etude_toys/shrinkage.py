"""A toy paper: shrinking an observed mean towards zero lowers its error."""

import torch

from etude.lab import Paper, Setup, Trial, identity, lower, shown
from etude_toys.estimators import james_stein

PAPER = Paper(
    slug="toy_shrinkage", domain="theory", title="Estimation with Quadratic Loss", authors="James & Stein", year=1961,
    venue="Fourth Berkeley Symposium on Mathematical Statistics and Probability",
    summary="Shrinking an observed mean towards zero lowers its expected error in three dimensions and more.",
    methods=("etude_toys.estimators",), extra="run",
    usage="""import torch
from etude_toys.estimators import james_stein

print(james_stein(torch.randn(10)))""",
)  # fmt: skip


@PAPER.claim(
    "Shrinkage has a lower squared error than the observation itself",
    arms=("observation", "james_stein", "zero"),
    expect=[lower("james_stein", than="observation", metric="error"), shown("zero")],
    setup={
        "smoke": Setup(dim=10, repeats=5),
        "small": Setup(dim=10, repeats=400),
        "full": Setup(dim=10, repeats=100_000),
    },
    seeds=4,
    worst={"error": 100.0},
)
def dominates(trial: Trial) -> dict[str, float]:
    dim, repeats = trial.setup.dim, trial.setup.repeats
    with trial.stream("data"):
        mean = torch.randn(dim)
        noise = torch.randn(repeats, dim)
    total = 0.0
    for step, draw in enumerate(mean + noise):
        estimate = {"observation": draw, "james_stein": james_stein(draw), "zero": torch.zeros(dim)}[trial.arm]
        total += float((estimate - mean).square().sum())
        if step % 100 == 0:
            trial.log(step, error=total / (step + 1))
            trial.progress(step, repeats, error=total / (step + 1))
    return {"error": total / repeats}


@PAPER.claim(
    "The best constant factor, found by tuning, beats a factor of one",
    arms=("one", "tuned"),
    expect=[lower("tuned", than="one", metric="error")],
    setup={"smoke": Setup(repeats=5), "small": Setup(repeats=400)},
    tune={"factor": {"tuned": [0.1, 0.5, 0.9]}},
    tune_by="val_error",
    tune_goal="min",
    seeds=3,
)
def factor(trial: Trial) -> dict[str, float]:
    rng = trial.rng("data")
    mean = rng.normal(size=10)
    draws = mean + rng.normal(size=(trial.setup.repeats, 10))
    scale = trial.tuned.factor if trial.arm == "tuned" else 1.0
    error = float(((scale * draws - mean) ** 2).sum(axis=1).mean())
    return {"error": error, "val_error": error}


@PAPER.claim(
    "The estimator shrinks to zero an observation of small norm",
    arms=("james_stein",),
    expect=[identity("james_stein", metric="norm", tolerance=1e-12)],
    setup={"smoke": Setup(dim=10), "small": Setup(dim=10)},
    seeds=1,
)
def positive_part(trial: Trial) -> dict[str, float]:
    return {"norm": float(james_stein(torch.full((trial.setup.dim,), 0.1)).norm())}
