"""Claims of "SortedNet: A Scalable and Generalized Framework for Training Modular Deep Neural Networks"."""

import math
import time
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from etude.data import images
from etude.data.augmentation import crop_and_flip
from etude.data.kinds import Examples, ImageData
from etude.lab import Paper, Setup, Source, Trial, higher, lower, not_worse, shown, threshold
from etude.loop import accuracy, cosine_schedule, fit
from etude.nn.resnet import ResNet
from etude.training.sortednet import (
    Cost,
    SortedMLP,
    SortedMobileNetV2,
    SortedResNet18,
    SortedSampler,
    SubModel,
    evaluate_all,
    measure_costs,
    select,
    space_of,
)

__all__ = ["PAPER"]

PAPER = Paper(
    slug="sortednet",
    domain="training",
    title="SortedNet: A Scalable and Generalized Framework for Training Modular Deep Neural Networks",
    authors="Valipour, Rezagholizadeh, Rajabzadeh, Kavehzadeh, Tahaei, Chen & Ghodsi",
    year=2023,
    arxiv="2309.00255",
    summary="One training run gives a network whose first channels, heads and blocks are networks of their own.",
    methods=("etude.training.sortednet",),
    usage="""\
import torch
import torch.nn.functional as F
from etude.training.sortednet import SortedSampler, SubModelSpace, extract, measure_costs, select, sorted_, sorted_step
model = torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3))
space = SubModelSpace(width=[0.25, 0.5, 0.75, 1.0])
sorted_(model, space)
optimizer, sampler = torch.optim.Adam(model.parameters()), SortedSampler(space)
for _ in range(4):
    batch = torch.randn(32, 20), torch.randint(3, (32,))
    sorted_step(model, F.cross_entropy, batch, optimizer, sampler)
b = select(measure_costs(model, torch.randn(1, 20)), parameters=1_000)
small = extract(model, b)  # a plain network: Linear(20, 32), ReLU, Linear(32, 3)
""",
    notes=(
        "There is no official code. The paper, as far as we know it, says neither whose statistics batch norm uses nor "
        "which 160 sub-models it trains: here statistics are re-estimated for each (`recalibrate_batchnorm`), and 160 "
        "is 16 widths x 10 depths. Of the figures quoted only those of the abstract have been checked against its "
        "text. Its language half, fine-tuning BERT, RoBERTa and LLaMA by depth, has no claim here; "
        "`sorted_(model, space, depth=...)` converts such networks, and `SortedTransformerLM`, `early_exit` and "
        "`speculative_decode` are tested but not claimed to train well. `small` decides on a residual network without "
        "normalisation on 8 x 8 digits; the paper's own networks and CIFAR-10 take the setup `full`. Measured on one "
        "core by `benchmarks/sortednet.py`, in processor time: the average step takes 0.51 of the plain network's for "
        "ResNet-18 at four widths and 0.84 for the network of 36 sub-models; with nothing cut, 1.02. A forward pass "
        "that slices tiny layers takes 1.6 times one of the same network cut out by `extract`."
    ),
)

_DIGITS = {
    "network": "mlp",
    "width": [8, 16, 32, 48, 64, 80, 96, 112, 128],
    "depth": [1, 2, 3, 4],
    "optimizer": "adam",
    "lr": 1e-3,
    "batch": 64,
    "augment": False,
    "evaluated": None,
}
_160_SIZES = {"width": list(range(8, 129, 8)), "depth": list(range(1, 11))}
_CIFAR = {
    "network": "resnet18",
    "width": [0.25, 0.5, 0.75, 1.0],
    "depth": None,
    "optimizer": "sgd",
    "lr": 0.0125,
    "batch": 128,
    "augment": True,
    "evaluated": None,
}
_CIFAR_160_SIZES = {
    "network": "mobilenetv2",
    "width": [k / 16 for k in range(1, 17)],
    "depth": list(range(8, 18)),
}
_SMOKE = {"batch": 8, "evaluated": 20}


def cifar10() -> ImageData:
    return images.hub("uoft-cs/cifar10", in_memory=True)


_DATA = {"digits": Source(images.digits, scales=("smoke", "small")), "cifar10": Source(cifar10, scales=("full",))}


def _part(split: Examples | Dataset, most: int | None, generator: torch.Generator | None = None) -> Examples:
    """At most so many examples of a split, drawn if a generator is given; all of them if `most` is None."""
    assert isinstance(split, Examples)
    return split if most is None else split.take(min(most, len(split)), generator)


def _network(setup: Setup, data: ImageData) -> nn.Module:
    """The network that holds the space of the setup."""
    dimensions = {name: getattr(setup, name) for name in ("width", "depth") if getattr(setup, name) is not None}
    if setup.network == "mlp":
        return SortedMLP(data.channels * math.prod(data.size), data.num_classes, **dimensions)
    kinds: dict[str, Any] = {"resnet18": SortedResNet18, "mobilenetv2": SortedMobileNetV2}
    return kinds[setup.network](data.num_classes, in_channels=data.channels, **dimensions)


def _alone(setup: Setup, data: ImageData, b: SubModel) -> nn.Module:
    """A network of the size of a sub-model, initialised at that size."""
    assert b.width is not None
    if setup.network == "mlp":
        return _network(setup.replace(width=[b.width], depth=[b.depth]), data)
    widths = [round(b.width * channels) for channels in (64, 128, 256, 512)]
    return ResNet(
        blocks=[2, 2, 2, 2], widths=widths, num_classes=data.num_classes, in_channels=data.channels, small_images=True
    )


def _train(trial: Trial, model: nn.Module, data: ImageData, sampler: SortedSampler | None, updates: int) -> float:
    """Trains the sub-models that the sampler draws, or the one in use without it; the seconds of a micro-batch."""
    setup = trial.setup
    lr = setup.lr * trial.tuned.lr_scale
    optimizer: torch.optim.Optimizer
    if setup.optimizer == "adam":
        optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    handle = None if sampler is None else sampler.attach(model)
    accumulate = 1 if sampler is None else sampler.accumulate

    def shifted(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, targets = batch
        return crop_and_flip(x, max(x.shape[-1] // 8, 1), trial.generator("augment")), targets

    begun = time.perf_counter()
    losses = fit(
        model, data.train, optimizer, steps=updates, batch_size=setup.batch, accumulate=accumulate,
        generator=trial.generator("order"), schedule=cosine_schedule(optimizer, updates), callbacks=[trial.progress],
        every=max(updates // 50, 1), transform=shifted if setup.augment else None,
    ).losses  # fmt: skip
    seconds = (time.perf_counter() - begun) / (updates * accumulate)
    if handle is not None:
        handle.remove()
    window = max(updates // 50, 1)
    for end in range(window, updates + 1, window):
        trial.log(end, loss=fmean(losses[end - window : end]))
    return seconds


def _summary(scores: list[float], every: int = 1) -> dict[str, float]:
    return {"accuracy": fmean(scores), "minimum": min(scores), "full": scores[-1], "subset": fmean(scores[::every])}


def _regret(scores: dict[SubModel, float], costs: dict[SubModel, Cost]) -> float:
    """Accuracy lost by the choice of the largest sub-model in a budget of operations, against the best in hindsight.

    The mean over the budgets that sub-models just fit. The best is known from the test, so this is an upper bound.
    """
    lost = []
    for budget in {cost.macs for cost in costs.values()}:
        best = max(score for b, score in scores.items() if costs[b].macs <= budget)
        lost.append(best - scores[select(costs, macs=budget)])
    return fmean(lost)


def _individual(trial: Trial, data: ImageData) -> dict[str, float]:
    """Networks of the sizes of every few sub-models, each initialised at its size and trained alone."""
    setup = trial.setup
    reached: dict[str, list[float]] = {"val": [], "test": []}
    with torch.device("meta"):
        submodels = list(space_of(_network(setup, data)))
    for b in submodels[:: setup.individual_every]:
        with trial.stream("init"):
            model = _alone(setup, data, b)
        _train(trial, model.to(trial.device), data, None, setup.updates)
        for name, accuracies in reached.items():
            accuracies.append(accuracy(model, _part(getattr(data, name), setup.evaluated)))
    return _summary(reached["test"]) | {"val_accuracy": fmean(reached["val"])}


def _many_in_one(
    trial: Trial, data: ImageData, *, sampler: dict[str, Any] | None, updates: int, every: int = 1
) -> dict[str, float]:
    """One network, trained as a whole or through a sampler, and what it then gives at every size."""
    with trial.stream("init"):
        model = _network(trial.setup, data).to(trial.device)
    space = space_of(model)
    drawing = None if sampler is None else SortedSampler(space, generator=trial.generator("method"), **sampler)
    seconds = _train(trial, model, data, drawing, updates)
    val, test = (_part(split, trial.setup.evaluated) for split in (data.val, data.test))
    costs = measure_costs(model, _part(data.train, 1).inputs.to(trial.device))
    trained = [costs[space.full]] if sampler is None else list(costs.values())
    found = {"kilomacs": fmean(cost.macs for cost in trained) / 1e3, "step_ms": 1e3 * seconds}
    if trial.arm == "standard":
        return found | _summary([accuracy(model, test)]) | {"val_accuracy": accuracy(model, val)}
    # Batch norm needs statistics of each sub-model, however the network was trained.
    calibration = _part(data.train, trial.setup.evaluated or 2560, trial.generator("calibration"))
    scores = evaluate_all(model, test, calibration=calibration)
    return (
        found
        | _summary(list(scores.values()), every)
        | {
            "regret": _regret(scores, costs),
            "val_accuracy": fmean(evaluate_all(model, val, calibration=calibration).values()),
        }
    )


_KEEPS_96_PERCENT = -math.log(0.96)


@PAPER.claim(
    "One sorted training run keeps 96 % of a network's accuracy on average over its sub-models; cutting a normally "
    "trained network does not give sub-models",
    arms=("standard", "truncated", "sorted", "sorted_accumulate", "individual"),
    expect=[
        higher("sorted", than="truncated", metric="accuracy"),
        not_worse("sorted", than="standard", metric="accuracy", margin=_KEEPS_96_PERCENT, transform="log"),
        shown(
            "sorted_accumulate",
            "individual",
            not_worse("sorted", than="individual", metric="subset", margin=0.02),
            not_worse("sorted", than="standard", metric="full", margin=0.02),
            lower("sorted", than="standard", metric="kilomacs"),
            threshold("sorted", metric="regret", below=0.01),
        ),
    ],
    setup={
        "smoke": Setup(**_CIFAR | _SMOKE | {"width": [0.125, 1.0]}, updates=2, individual_every=1),
        "small": Setup(**_DIGITS, updates=1_500, individual_every=5),
        "full": Setup(**_CIFAR, updates=68_200, individual_every=1),
    },
    data=_DATA,
    tune={"lr_scale": [1.0, 2.0, 4.0, 8.0, 16.0]},
    tune_by="val_accuracy",
    tune_seeds=1,
    seeds={"smoke": 1, "small": 5, "full": 3},
    measured=("step_ms",),
    timeout=86_400,
    reported=(
        "The abstract: sub-models keep at least 96 % of the original model's performance, and SortedNet outperforms "
        "other dynamic training. ResNet-18 at four widths on CIFAR-10 against slimmable and individually trained "
        "networks: in its tables, which we have not seen"
    ),
    notes=(
        "36 sub-models, 9 widths x 4 depths of one residual network. `standard` is the whole network trained alone; "
        "`truncated` is the same training, at the rate that serves its sub-models best, cut without more ado. "
        "`accuracy` is the mean over what an arm offers, `minimum` the worst of it, `full` the whole network, `subset` "
        "every fifth sub-model by width, then depth: these `individual` trains, each initialised at its own size and "
        "with as many updates as the one sorted run. `sorted_accumulate` makes as many updates from four times the "
        "images. All rates decay along a cosine. The margin of 0.0408 on the log scale is the paper's 96 %, of the "
        "mean over sub-models; `kilomacs` are multiplications of a training image's forward pass, on average over the "
        "draws. `regret` is what the choice by size alone (`select`) loses against the best sub-model in hindsight. "
        "`step_ms` is the time of a micro-batch under whatever load the machine had; `etude bench sortednet` measures "
        "it side by side. At `full` the space is ResNet-18 at four widths."
    ),
    helps=higher("sorted", than="truncated", metric="accuracy"),
)
def many_in_one(trial: Trial, data: ImageData) -> dict[str, float]:
    data = data.standardized()
    if trial.arm == "individual":
        return _individual(trial, data)
    samplers = {"sorted": {"accumulate": 1}, "sorted_accumulate": {"accumulate": 4}}
    return _many_in_one(
        trial, data, sampler=samplers.get(trial.arm), updates=trial.setup.updates, every=trial.setup.individual_every
    )


@PAPER.claim(
    "At equal training samples, an update that averages the gradients of four drawn sub-models trains them all better "
    "than one update a draw",
    arms=("single", "accumulate", "held", "every", "equal_updates"),
    expect=[
        higher("accumulate", than="single", metric="accuracy"),
        shown(
            "held",
            "every",
            "equal_updates",
            higher("accumulate", than="single", metric="minimum"),
            higher("accumulate", than="held", metric="accuracy"),
            higher("accumulate", than="every", metric="accuracy"),
        ),
    ],
    setup={
        "smoke": Setup(**_DIGITS | _SMOKE | {"width": [16, 128]}, micro_batches=16),
        "small": Setup(**_DIGITS, micro_batches=1_500),
        "medium": Setup(**_DIGITS, micro_batches=6_000),
        "full": Setup(**_CIFAR, micro_batches=68_200),
    },
    data=_DATA,
    tune={"lr_scale": [2.0, 4.0, 8.0, 16.0, 32.0]},
    tune_by="val_accuracy",
    tuned_like={"equal_updates": "accumulate"},
    seeds={"smoke": 1, "small": 5, "medium": 10, "full": 3},
    measured=("step_ms",),
    timeout=86_400,
    reported=(
        "The abstract: an update scheme that combines random sampling of sub-models with gradient accumulation "
        "improves the efficiency of training; no figure is known to us"
    ),
    notes=(
        "Without a search of the learning rate this claim can be made to hold or to fail at will: at one rate four "
        "times fewer updates lose much, at the rate that suits them little. All arms see 1,500 micro-batches, "
        "but `equal_updates`, which sees four times as many at the rate of `accumulate`. `held` keeps one sub-model "
        "for all four micro-batches of an update, which is a four times larger batch and nothing more; `every` takes "
        "each of the 36 sub-models once an update, as slimmable networks do. In exploration at other seeds, each "
        "arm at its own rate, `accumulate` lay 0.2 to 0.4 points below `single` on every seed, above `held`, and "
        "`every` several points below all of them: drawing sub-models is what pays; averaging four of them is better "
        "than a larger batch of one, but gains less than the updates it costs. `medium` asks whether that changes over "
        "6,000 micro-batches (a quarter of an hour of one core); the paper's setting is `full`."
    ),
)
def accumulation(trial: Trial, data: ImageData) -> dict[str, float]:
    data = data.standardized()
    setup = trial.setup
    samplers: dict[str, dict[str, Any]] = {
        "single": {"accumulate": 1},
        "accumulate": {"accumulate": 4},
        "held": {"accumulate": 4, "resample": "update"},
        "every": {"accumulate": len(setup.width) * len(setup.depth or [1]), "cycle": True},
        "equal_updates": {"accumulate": 4},
    }
    sampler = samplers[trial.arm]
    samples = setup.micro_batches * (4 if trial.arm == "equal_updates" else 1)
    return _many_in_one(trial, data, sampler=sampler, updates=max(samples // sampler["accumulate"], 1))


@PAPER.claim(
    "160 sub-models trained at once keep on average 96 % of the accuracy of the network trained alone",
    arms=("standard", "truncated", "sorted"),
    expect=[
        not_worse("sorted", than="standard", metric="accuracy", margin=_KEEPS_96_PERCENT, transform="log"),
        shown(
            higher("sorted", than="truncated", metric="accuracy"),
            not_worse("sorted", than="standard", metric="minimum", margin=_KEEPS_96_PERCENT, transform="log"),
            lower("sorted", than="standard", metric="kilomacs"),
            threshold("sorted", metric="regret", below=0.01),
        ),
    ],
    setup={
        "smoke": Setup(**_CIFAR | _CIFAR_160_SIZES | _SMOKE | {"width": [0.125, 1.0], "depth": [8, 17]}, updates=2),
        "small": Setup(**_DIGITS | _160_SIZES, updates=3_000),
        "full": Setup(**_CIFAR | _CIFAR_160_SIZES, updates=68_200),
    },
    data=_DATA,
    tune={"lr_scale": [1.0, 2.0, 4.0, 8.0, 16.0]},
    tune_by="val_accuracy",
    tune_seeds=1,
    tuned_like={"truncated": "standard"},
    seeds={"smoke": 1, "small": 5, "full": 3},
    measured=("step_ms",),
    timeout=86_400,
    reported="The abstract: up to 160 sub-models trained at once, with at least 96 % of the original's performance",
    notes=(
        "The abstract does not say whether 96 % is kept by the mean or by the worst of the sub-models. The claim is "
        "about the mean; the contrast on `minimum` is about the worst, which here has 8 of 128 channels and one of ten "
        "blocks (682 of 174,730 weights) and does not keep it, in exploration at other seeds. `truncated` takes the "
        "rate of `standard`. Metrics as in many_in_one. At `full` it is MobileNetV2 on CIFAR-10."
    ),
)
def hundred_sixty(trial: Trial, data: ImageData) -> dict[str, float]:
    data = data.standardized()
    sampler = {"accumulate": 1} if trial.arm == "sorted" else None
    return _many_in_one(trial, data, sampler=sampler, updates=trial.setup.updates)
