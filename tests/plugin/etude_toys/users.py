"""A toy paper whose claims ask something of a user's table: what `etude try` is tried on."""

from typing import Any

import torch

from etude.data import tables
from etude.data.kinds import TableData
from etude.lab import Paper, Setup, Trial, higher, not_worse

PAPER = Paper(
    slug="toy_users", domain="theory", title="Nearest Neighbor Pattern Classification", authors="Cover & Hart",
    year=1967, venue="IEEE Transactions on Information Theory 13(1)",
    summary="A class is told by the mean of its measurements.",
    methods=("etude_toys.estimators",), extra="run", usage="print('the nearest mean')",
)  # fmt: skip
COMMON: dict[str, Any] = {
    "setup": {"smoke": Setup(rows=20), "small": Setup(rows=100)},
    "data": {"wine": tables.wine},
    "tune": {"power": [1.0, 2.0]},
    "tune_by": "val_accuracy",
    "tune_seeds": 2,
    "seeds": 3,
}


def nearest_mean(trial: Trial, data: TableData, arm: str) -> dict[str, float]:
    """Accuracies of the nearest class mean; `guess` names the same class always, `upside_down` the farthest."""
    rows = torch.randint(len(data.train), (trial.setup.rows,), generator=trial.generator("data"))
    x, y = data.train[rows]
    means = torch.stack([x[y == k].mean(dim=0) if (y == k).any() else x.mean(dim=0) for k in range(data.num_classes)])

    def accuracy(split: Any) -> float:
        distance = torch.cdist(split.inputs, means, p=trial.tuned.power or 2.0)
        found = distance.argmax(dim=1) if arm == "upside_down" else distance.argmin(dim=1)
        if arm == "guess":
            found = torch.zeros_like(found)
        return (found == split.targets).double().mean().item()

    return {"accuracy": accuracy(data.test), "val_accuracy": accuracy(data.val)}


@PAPER.claim(
    "The nearest mean beats a guess", arms=("guess", "means", "more"),
    expect=[higher("means", than="guess", metric="accuracy")],
    helps=higher("more", than="guess", metric="accuracy"), tuned_like={"more": "means"}, untuned=("guess",),
    **COMMON,
)  # fmt: skip
def means(trial: Trial, data: TableData) -> dict[str, float]:
    return nearest_mean(trial, data.standardized(), trial.arm)


@PAPER.claim(
    "The farthest mean beats the nearest", arms=("means", "upside_down"),
    expect=[higher("upside_down", than="means", metric="accuracy")],
    helps=higher("upside_down", than="means", metric="accuracy"), **COMMON,
)  # fmt: skip
def reversal(trial: Trial, data: TableData) -> dict[str, float]:
    return nearest_mean(trial, data.standardized(), trial.arm)


@PAPER.claim(
    "The nearest mean is not worse than itself", arms=("means", "twin"),
    expect=[not_worse("twin", than="means", metric="accuracy", margin=0.01)],
    helps=not_worse("twin", than="means", metric="accuracy", margin=0.01), **COMMON,
)  # fmt: skip
def twins(trial: Trial, data: TableData) -> dict[str, float]:
    return nearest_mean(trial, data.standardized(), trial.arm)


@PAPER.claim(
    "Few measurements are enough", arms=("means", "narrow"),
    expect=[higher("narrow", than="means", metric="accuracy")],
    helps=higher("narrow", than="means", metric="accuracy"), **COMMON,
)  # fmt: skip
def picky(trial: Trial, data: TableData) -> dict[str, float]:
    if data.num_features > 20:
        raise ValueError(f"at most 20 features are taken, got {data.num_features}")
    return nearest_mean(trial, data, trial.arm)


@PAPER.claim(
    "Nobody asks this of a user's data", arms=("means", "guess"),
    expect=[higher("means", than="guess", metric="accuracy")], **COMMON,
)  # fmt: skip
def silent(trial: Trial, data: TableData) -> dict[str, float]:
    return nearest_mean(trial, data, trial.arm)
