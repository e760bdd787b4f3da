"""A toy paper whose trials train, log curves and draw from several streams: what faults are tried on."""

import time

import torch

from etude.lab import Paper, Setup, Trial, lower
from etude_toys.estimators import average_of_a_half

PAPER = Paper(
    slug="toy_descent", domain="theory", title="Acceleration of Stochastic Approximation by Averaging",
    authors="Polyak & Juditsky", year=1992, venue="SIAM Journal on Control and Optimization 30(4)",
    summary="The average of the iterates of stochastic gradient descent lies closer to the optimum than the last one.",
    methods=("etude_toys.estimators",), extra="run",
    usage="""import torch
from etude_toys.estimators import average_of_a_half

print(average_of_a_half(torch.randn(100, 3), torch.Generator().manual_seed(0)))""",
)  # fmt: skip


@PAPER.claim(
    "An average of half of the iterates, drawn at random, has a lower error than the last iterate",
    arms=("last", "average"),
    expect=[lower("average", than="last", metric="error", transform="log")],
    setup={
        "smoke": Setup(steps=5, pause=0.0),
        "small": Setup(steps=40, pause=0.02),
        "medium": Setup(steps=40, pause=0.4),
        "full": Setup(steps=40, pause=10.0),
    },
    seeds={"small": 100, "medium": 6, "full": 3},
    version=1,
)
def averaging(trial: Trial) -> dict[str, float]:
    with trial.stream("init"):
        weight = torch.randn(8, requires_grad=True)
    optimum = torch.ones(8)
    order = trial.generator("order")
    iterates = []
    for step in range(trial.setup.steps):
        inputs = torch.randn(16, 8, generator=order)
        targets = inputs @ optimum + torch.randn(16, generator=order)
        loss = (inputs @ weight - targets).square().mean()
        (gradient,) = torch.autograd.grad(loss, weight)
        with torch.no_grad():
            weight -= 0.1 * gradient
        iterates.append(weight.detach().clone())
        time.sleep(trial.setup.pause / trial.setup.steps)
        trial.log(step, loss=loss.item())
        trial.progress(step, trial.setup.steps, loss=loss.item())
    estimate = iterates[-1]
    if trial.arm == "average":
        estimate = average_of_a_half(torch.stack(iterates[len(iterates) // 2 :]), trial.generator("method"))
    return {"error": float((estimate - optimum).square().sum())}
