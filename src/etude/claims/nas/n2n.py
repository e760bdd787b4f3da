"""Claims of "N2N Learning: Network to Network Compression via Policy Gradient Reinforcement Learning"."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from etude.data import images
from etude.data.augmentation import crop_and_flip
from etude.data.kinds import Examples, ImageData
from etude.lab import Paper, Setup, Source, Trial, higher, identity, not_worse, shown
from etude.loop import accuracy, fit
from etude.nas.n2n import (
    VGG19,
    Distillation,
    Limits,
    NetworkCompressor,
    Removal,
    RemovalPolicy,
    Shrinkage,
    ShrinkPolicy,
    Tried,
    best_within,
    chain,
    count_parameters,
    digest,
    plot_trade_off,
    run_search,
)
from etude.nn.resnet import ResNet

__all__ = ["PAPER"]

PAPER = Paper(
    slug="n2n",
    domain="nas",
    title="N2N Learning: Network to Network Compression via Policy Gradient Reinforcement Learning",
    authors="Ashok, Rhinehart, Beainy & Kitani",
    year=2018,
    arxiv="1709.06030",
    venue="ICLR 2018",
    summary="Two learnt policies turn a trained network into a much smaller one: one removes layers, one shrinks them.",
    methods=(
        "etude.nas.n2n.tracing",
        "etude.nas.n2n.students",
        "etude.nas.n2n.policies",
        "etude.nas.n2n.reward",
        "etude.nas.n2n.distillation",
        "etude.nas.n2n.search",
        "etude.nas.n2n.running",
        "etude.nas.n2n.compression",
        "etude.nas.n2n.networks",
        "etude.nas.n2n.plots",
    ),
    usage="""\
import torch
from etude.data import images
from etude.loop import accuracy, fit
from etude.nas.n2n import chain, two_stage
data = images.digits()
teacher = chain([[16, 16], [32, 32]], num_classes=10, in_channels=1, size=(8, 8))
fit(teacher, data.train, torch.optim.Adam(teacher.parameters(), 2e-3), epochs=2, batch_size=50)
small = two_stage(teacher, data, removal_steps=2, shrink_steps=1, epochs=1, final_epochs=2, min_channels=4)
print(small.report(), accuracy(small.model, data.test), small.model, sep="\\n")
""",
    notes=(
        "Rewards come from the validation split; the authors' code takes the test split. Each rollout is credited with "
        "its own reward, where the authors' code gives all of an update the same; constraints stay hard once they are, "
        "and in the second stage size and accuracy are compared with the teacher's. Students keep the teacher's class; "
        "functional calls of its forward pass, such as F.relu, stay where they are and are no layers. Convolutions of "
        "groups, weights used twice and joins other than additions are refused by name."
    ),
    code="https://github.com/anubhavashok/N2N",
)


def digits600() -> ImageData:
    """scikit-learn's digits, 600 to train, 500 to validate and 697 to test; always the same rows."""
    data = images.digits()
    parts = [part for part in (data.train, data.val, data.test) if isinstance(part, Examples)]
    inputs, targets = torch.cat([part.inputs for part in parts]), torch.cat([part.targets for part in parts])
    train, val, test = (
        Examples(rows, labels)
        for rows, labels in zip(inputs.split([600, 500, 697]), targets.split([600, 500, 697]), strict=True)
    )
    return ImageData(train=train, val=val, test=test, classes=data.classes, name="digits600")


DATA = {
    "digits": Source(digits600, scales=("smoke", "small")),
    "mnist5k": Source(images.mnist5k, scales=("medium",)),
    "cifar10": Source(partial(images.hub, "uoft-cs/cifar10", in_memory=True), scales=("full",)),
}
EIGHT, TWELVE = ((16,) * 2, (32,) * 3, (48,) * 3), ((16,) * 3, (32,) * 4, (48,) * 5)
"""Convolutions of the teachers of `small`, by width."""
SMALL = Setup(
    teacher="eight", larger="twelve", teacher_epochs=12, teacher_lr=2e-3, batch=50, steps=40, shrink_steps=20,
    rollouts=5, epochs=3, lr=5e-3, weight_decay=0.0, scale=None, policy_lr=0.01, last=50, refine=10, final_epochs=30,
    stage_steps=30, transfer_steps=10, students=10, min_channels=4, train=600, val=500, augment=False,
)  # fmt: skip
SMOKE = SMALL.replace(
    teacher="tiny", larger="small", teacher_epochs=1, steps=2, shrink_steps=1, rollouts=2, epochs=1, last=2, refine=1,
    final_epochs=1, stage_steps=2, transfer_steps=1, students=2, train=100, val=50,
)  # fmt: skip
SETUPS = {
    "smoke": SMOKE,
    "small": SMALL,
    "medium": SMALL.replace(steps=100, stage_steps=60, shrink_steps=60, train=3500, val=500, students=20),
    "full": SMALL.replace(
        teacher="resnet18", larger="resnet34", teacher_epochs=150, teacher_lr=1e-3, batch=200, steps=100,
        shrink_steps=100, epochs=5, lr=5e-4, weight_decay=5e-4, scale=1.0, policy_lr=3e-3, refine=100,
        final_epochs=150, stage_steps=100, transfer_steps=20, min_channels=10, train=45_000, val=5_000, augment=True,
    ),
}  # fmt: skip
CHAINS: dict[str, Sequence[Sequence[int]]] = {
    "tiny": ((8,) * 2, (8,)), "small": ((8,) * 2, (8,) * 2), "eight": EIGHT, "twelve": TWELVE, "vgg19": VGG19,
}  # fmt: skip
RESNETS = {"resnet18": 18, "resnet34": 34}
POOLS = (nn.MaxPool2d,)


def teacher_of(name: str, data: ImageData, width: float | int = 1) -> nn.Module:
    """A teacher by name, its widths multiplied by `width` and rounded down, at least 1."""
    if name in RESNETS:
        widths = [max(int(out * width), 1) for out in (64, 128, 256, 512)]
        return ResNet(
            RESNETS[name], num_classes=data.num_classes, in_channels=data.channels, widths=widths, small_images=True
        )
    stages = [[max(int(out * width), 1) for out in stage] for stage in CHAINS[name]]
    return chain(
        stages, num_classes=data.num_classes, in_channels=data.channels, size=data.size, last_pool=name == "vgg19"
    )


def prepared(trial: Trial, data: ImageData) -> ImageData:
    """At most as many rows as the setup names; standardised if they are augmented or leave [0, 1]."""
    parts: dict[str, Any] = {"test": data.test}
    for name, most in (("train", trial.setup.train), ("val", trial.setup.val)):
        part = getattr(data, name)
        if isinstance(part, Examples) and len(part) > most:
            part = part.take(most, trial.generator(f"rows-{name}"))
        parts[name] = part
    data = ImageData(**parts, classes=data.classes, name=data.name)
    if not isinstance(data.train, Examples):
        return data
    if trial.setup.augment or data.train.inputs.min() < 0 or data.train.inputs.max() > 1:
        return data.standardized()
    return data


def augmented(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return crop_and_flip(batch[0]), batch[1]


class Bench:
    """What all arms of a trial share: the data, a trained teacher, and how students of it are trained and judged.

    Weights, order and dropout of a student depend on its architecture and the run, so that equal students score
    equally in all arms.
    """

    def __init__(self, trial: Trial, data: ImageData, name: str):
        setup = trial.setup
        self.trial, self.data, self.name = trial, data, name
        self.example = torch.zeros(2, data.channels, *data.size, device=trial.device)
        with trial.stream(f"teacher-{name}"):
            self.teacher = teacher_of(name, data).to(trial.device)
            fit(
                self.teacher, data.train, torch.optim.Adam(self.teacher.parameters(), setup.teacher_lr),
                epochs=setup.teacher_epochs, batch_size=setup.batch, generator=trial.generator(f"teacher-{name}"),
                transform=augmented if setup.augment else None,
            )  # fmt: skip
        self.params = count_parameters(self.teacher)
        # A teacher of a smoke trial may know nothing; its reward is then the student's own accuracy times R_c.
        self.accuracy = accuracy(self.teacher, data.val) or 1.0
        self.build = Removal(self.teacher, self.example, fix=POOLS)

    def distillation(self, loss: str = "mse_logits", lr: float | None = None) -> Distillation:
        setup = self.trial.setup
        return Distillation(
            self.teacher, self.data.train, self.data.val, loss=loss, lr=lr or setup.lr, weight_decay=setup.weight_decay,
            epochs=setup.epochs, batch_size=setup.batch, scale=setup.scale, seed=self.trial.stream_seed("students"),
            transform=augmented if setup.augment else None,
        )  # fmt: skip

    def limits(self, max_params: int | None = None) -> Limits:
        return Limits(self.accuracy, self.params, max_params)

    def search(self, policy: Any, build: Any, limits: Limits, steps: int, **options: Any) -> list[Tried]:
        """The students that a policy tries; their rewards are a curve of the trial."""
        trial, setup = self.trial, self.trial.setup
        compressor = NetworkCompressor(
            policy, build, self.distillation(), limits, rollouts=setup.rollouts, lr=setup.policy_lr,
            seed=trial.stream_seed("proposals"), **options,
        )  # fmt: skip

        def report(tried: list[Tried]) -> None:
            mean = float(np.mean([each.reward for each in tried]))
            best = compressor.best
            trial.log(compressor.epoch, reward=mean, **({} if best is None else {"best_so_far": best.reward}))
            trial.progress(compressor.epoch, steps, reward=mean)

        return run_search(compressor, steps, on_step=report).history

    def policy(self) -> RemovalPolicy:
        with self.trial.stream("policy"):
            return RemovalPolicy().to(self.trial.device)

    def picture(self, histories: dict[str, list[Tried]]) -> None:
        axes = plot_trade_off(histories, teacher=(self.params, self.accuracy))
        self.trial.figure("trade_off", axes.figure)


REPORTED = {
    "learns": "a policy that acts at random gets lower rewards (paper, comparison of actors)",
    "tenfold": (
        "CIFAR-10: VGG-19 91.97 % -> 91.64 % at 20.5 times fewer parameters, ResNet-18 92.01 -> 91.81 at 11.1, "
        "ResNet-34 92.05 -> 92.35 at 10.2; students found are better than hand-designed ones of equal size"
    ),
    "transfer": "policies trained on a small teacher find good students of a larger one in a fraction of the time",
    "distillation": "students are trained on the teacher's logits (section 3.3, after Ba & Caruana)",
}
FULL = (
    "`medium`: mnist5k, 100 updates. `full`: CIFAR-10, 45,000 to train and 5,000 to validate, ResNet-18 (transfer: to "
    "ResNet-34), Adam, crops and flips, 100 updates of 5 students a stage, each trained 5 epochs at the paper's rates."
)
PROTOCOL = (
    "The teacher has 8 convolutions of widths 16, 32 and 48 with batch norm and ReLU, 83,530 parameters, trained 12 "
    "epochs on 600 digits; pools are fixed, 23 of 27 layers can go. A student is trained 3 epochs on logits divided by "
    "their deviation and scored on 500 digits. Adam at 0.01 for the policy, 5 students an update. "
)
SEEDS: dict[str, int | range] = {"smoke": 1, "small": range(1, 9), "medium": 8, "full": 3}
COMMON: dict[str, Any] = {"setup": SETUPS, "data": DATA, "timeout": 604_800.0}


def late(history: Sequence[Tried], last: int) -> float:
    return float(np.mean([tried.reward for tried in history[-last:]]))


@PAPER.claim(
    "REINFORCE learns to propose better students than a random policy with as many evaluations",
    arms=("random", "reinforce"),
    expect=[
        higher("reinforce", than="random", metric="late_reward"),
        shown(
            higher("reinforce", than="random", metric="best_reward"),
            higher("reinforce", than="random", metric="test_accuracy"),
            higher("reinforce", than="random", metric="compression"),
        ),
    ],
    seeds=SEEDS,
    reported=REPORTED["learns"],
    notes=PROTOCOL
    + (
        "200 students a run. `late_reward` is the mean over the last 50, `best_reward` is over all; `test_accuracy` "
        "and `compression` are means over the best three, trained 10 epochs. `random` keeps a layer with probability "
        "0.5. The policy's rate was chosen on a seed that is not judged. "
    )
    + FULL,
    helps=higher("reinforce", than="random", metric="test_accuracy"),
    **COMMON,
)
def policy_learns(trial: Trial, data: ImageData) -> dict[str, float]:
    return learnt(trial, data, draw=True)


@PAPER.claim(
    "The authors' update, which credits all students of an update with their mean reward, learns as well",
    arms=("random", "shared_credit", "reinforce"),
    expect=[
        higher("shared_credit", than="random", metric="late_reward"),
        shown("reinforce", higher("reinforce", than="shared_credit", metric="late_reward")),
    ],
    setup={scale: setup for scale, setup in SETUPS.items() if scale != "small"},
    data={**DATA, "digits": Source(digits600, scales=("smoke",))},
    timeout=COMMON["timeout"],
    seeds=SEEDS,
    reported="the authors' code weighs every rollout of an update by their mean reward",
    notes="In two runs of 30 updates on the digits it was no slower than crediting each student for itself. " + FULL,
)
def shared_credit_learns(trial: Trial, data: ImageData) -> dict[str, float]:
    return learnt(trial, data)


def learnt(trial: Trial, data: ImageData, draw: bool = False) -> dict[str, float]:
    """One search by removal; what its students were worth, and how the best of them do on the test split."""
    setup = trial.setup
    data = prepared(trial, data)
    bench = Bench(trial, data, setup.teacher)
    policy = None if trial.arm == "random" else bench.policy()
    limits = bench.limits()
    credit = "shared" if trial.arm == "shared_credit" else "sample"
    history = bench.search(policy, bench.build, limits, setup.steps, credit=credit)
    if draw:
        bench.picture({trial.arm: history})
    distillation = bench.distillation()
    seen: set[int] = set()
    tests: list[float] = []
    ratios: list[float] = []
    for tried in sorted(history, key=lambda tried: (-tried.reward, tried.id)):
        if tried.reason or len(tests) == 3:
            break
        student = bench.build(tried.actions)
        if digest(student) not in seen:
            seen.add(digest(student))
            distillation.fresh(student, setup.refine)
            tests.append(accuracy(student, data.test))
            ratios.append(bench.params / count_parameters(student))
    early = [tried.reward for tried in history[: setup.last // 2]]
    best = best_within(history, limits)
    return {
        "late_reward": late(history, setup.last),
        "early_reward": float(np.mean(early)),
        "best_reward": -1.0 if best is None else best.reward,
        "test_accuracy": float(np.mean(tests)) if tests else 0.0,
        "compression": float(np.mean(ratios)) if ratios else 1.0,
        "invalid": float(np.mean([bool(tried.reason) for tried in history])),
        "teacher_test": accuracy(bench.teacher, data.test),
    }


@PAPER.claim(
    "Both stages find a student with at most a tenth of the parameters and the teacher's accuracy to within 2 points",
    arms=("teacher", "n2n", "uniform"),
    expect=[
        not_worse("n2n", than="teacher", metric="test_accuracy", margin=0.02),
        identity("n2n", metric="within_limit", value=1.0, tolerance=0),
        shown(higher("n2n", than="uniform", metric="test_accuracy")),
    ],
    seeds={**SEEDS, "small": 3},
    reported=REPORTED["tenfold"],
    notes=PROTOCOL
    + (
        "30 updates of removal, then 20 of shrinkage from the best student so far, both limited to a tenth of the "
        "teacher; the best by validation within the limit is trained 30 epochs. A run without one fails. `uniform` is "
        "the teacher with all widths times the largest factor within the limit, trained alike: it may well tie. "
    )
    + FULL,
    **COMMON,
)
def compress_tenfold(trial: Trial, data: ImageData) -> dict[str, float]:
    setup = trial.setup
    data = prepared(trial, data)
    bench = Bench(trial, data, setup.teacher)
    if trial.arm == "teacher":
        return {"test_accuracy": accuracy(bench.teacher, data.test), "compression": 1.0, "within_limit": 0.0}
    most = bench.params // 10
    distillation = bench.distillation()
    if trial.arm == "uniform":
        student: nn.Module = narrowed(setup.teacher, data, most).to(trial.device)
    else:
        student = searched(trial, bench, most)
    distillation.fresh(student, setup.final_epochs)
    params = count_parameters(student)
    return {
        "test_accuracy": accuracy(student, data.test),
        "val_accuracy": accuracy(student, data.val),
        "compression": bench.params / params,
        "within_limit": float(params <= most),
    }


def narrowed(name: str, data: ImageData, most: int) -> nn.Module:
    """The teacher's kind with all widths times the largest of 1/1000, ..., 1 that leaves at most `most` parameters."""
    low, high = 1, 1000  # parameters grow with the factor
    while low < high:
        middle = (low + high + 1) // 2
        if count_parameters(teacher_of(name, data, middle / 1000)) <= most:
            low = middle
        else:
            high = middle - 1
    return teacher_of(name, data, low / 1000)


def searched(trial: Trial, bench: Bench, most: int) -> nn.Module:
    """The best student of both stages by validated reward, among those of at most `most` parameters."""
    setup, limits = trial.setup, bench.limits(most)
    removal = bench.search(bench.policy(), bench.build, limits, setup.stage_steps)
    first = best_within(removal, limits)
    start = first or max((tried for tried in removal if not tried.reason), key=lambda tried: tried.reward, default=None)
    if start is None:
        raise RuntimeError("no valid student was found")
    shrink = Shrinkage(bench.build(start.actions), bench.example, min_channels=setup.min_channels, fix=POOLS)
    with trial.stream("policy"):
        policy = ShrinkPolicy().to(trial.device)
    shrinkage = bench.search(policy, shrink, limits, setup.shrink_steps)
    bench.picture({"removal": removal, "shrinkage": shrinkage})
    second = best_within(shrinkage, limits)
    best = best_within([tried for tried in (first, second) if tried is not None], limits)
    if best is None and trial.scale != "smoke":
        raise RuntimeError(f"no student of at most {most:,} parameters was found")
    return shrink(best.actions) if best is not None and best is second else bench.build((first or start).actions)


@PAPER.claim(
    "A policy trained on one teacher proposes better students of a larger one than a fresh policy does",
    arms=("fresh", "transferred"),
    expect=[
        higher("transferred", than="fresh", metric="reward"),
        shown(
            higher("transferred", than="fresh", metric="first_reward"),
            higher("transferred", than="fresh", metric="best_reward"),
        ),
    ],
    seeds={**SEEDS, "small": 3},
    reported=REPORTED["transfer"],
    notes=PROTOCOL
    + (
        "The larger teacher has 12 convolutions, 3, 4 and 5 of each width. `transferred` has first had 30 updates on "
        "the smaller one; both then have 10 on the larger. `reward` is the mean over these 50 students, `first_reward` "
        "over the first five. The search on the smaller teacher costs `transferred` 150 students more: the question is "
        "whether a policy that is there already helps. "
    )
    + FULL,
    **COMMON,
)
def policy_transfers(trial: Trial, data: ImageData) -> dict[str, float]:
    setup = trial.setup
    data = prepared(trial, data)
    policy = None
    if trial.arm == "transferred":
        small = Bench(trial, data, setup.teacher)
        policy = small.policy()
        small.search(policy, small.build, small.limits(), setup.stage_steps)
        trial.series.clear()  # the curves are those on the larger teacher
    bench = Bench(trial, data, setup.larger)
    limits = bench.limits()
    history = bench.search(policy or bench.policy(), bench.build, limits, setup.transfer_steps)
    best = best_within(history, limits)
    return {
        "reward": late(history, len(history)),
        "first_reward": late(history[: setup.rollouts], setup.rollouts),
        "best_reward": -1.0 if best is None else best.reward,
    }


@PAPER.claim(
    "Students trained briefly on the teacher's logits are more accurate than those trained on labels",
    arms=("labels", "logits"),
    expect=[higher("logits", than="labels", metric="test_accuracy")],
    tune={"lr": [0.0025, 0.005, 0.01]},
    tune_by="val_accuracy",
    seeds={**SEEDS, "small": 5},
    reported=REPORTED["distillation"],
    notes=PROTOCOL + "The same 10 random students, initial weights and batches; each arm has its own rate. " + FULL,
    **COMMON,
)
def distillation_helps(trial: Trial, data: ImageData) -> dict[str, float]:
    setup = trial.setup
    data = prepared(trial, data)
    bench = Bench(trial, data, setup.teacher)
    distillation = bench.distillation("mse_logits" if trial.arm == "logits" else "labels", trial.tuned.lr)
    compressor = NetworkCompressor(
        None, bench.build, distillation, bench.limits(), rollouts=setup.students, seed=trial.stream_seed("proposals")
    )
    tests, vals = [], []
    for rollout in compressor.ask():
        student = bench.build(rollout.actions)
        distillation.fresh(student)
        tests.append(accuracy(student, data.test))
        vals.append(accuracy(student, data.val))
        trial.log(len(tests), test_accuracy=tests[-1])
        trial.progress(len(tests), setup.students)
    return {"test_accuracy": float(np.mean(tests)), "val_accuracy": float(np.mean(vals))}
