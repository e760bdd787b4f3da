"""Claims of "Outliers with Opposing Signals Have an Outsized Effect on Neural Network Optimization"."""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from statistics import fmean, median

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from etude.data import images
from etude.data.kinds import Examples, ImageData
from etude.lab import Paper, Setup, Source, Trial, higher, identity, lower, shown, threshold
from etude.nn.resnet import ResNet
from etude.training.opposing_signals import (
    OpposingSignalMonitor,
    OpposingSignalsToy,
    SharpnessTracker,
    SplitSGD,
    cross_entropy,
    flip_count,
    full_batch_backward,
    group_opposition,
    inject_opposing_patch,
    mlp,
    oscillation,
    plot_group_images,
    plot_group_losses,
    random_group_baseline,
    remove_examples,
    vgg11,
)

__all__ = ["PAPER"]

PAPER = Paper(
    slug="opposing_signals",
    domain="training",
    title="Outliers with Opposing Signals Have an Outsized Effect on Neural Network Optimization",
    authors="Rosenfeld & Risteski",
    year=2024,
    arxiv="2311.04163",
    venue="ICLR 2024",
    summary=(
        "Finds the small groups of outliers that pull a network in opposite directions, and measures how sharp they "
        "make its loss."
    ),
    methods=("etude.training.opposing_signals",),
    usage="""\
import torch
from etude.training.opposing_signals import (
    OpposingSignalMonitor, SharpnessTracker, cross_entropy, full_batch_backward, group_opposition, mlp,
)
x, y = torch.randn(100, 20), torch.randint(3, (100,))
model = mlp(20, (16,), 3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
monitor = OpposingSignalMonitor(model, cross_entropy, x, y, k=5).attach(optimizer)
tracker = SharpnessTracker(model, cross_entropy, (x, y), every=5).attach(optimizer)
for _ in range(10):
    optimizer.zero_grad()
    full_batch_backward(model, cross_entropy, (x, y))
    optimizer.step()
print(tracker.values, tracker.ratios)                  # sharpness, and in units of 2 / lr
print(monitor.report().text())                         # whose losses rose and fell most
up, down, _ = monitor.groups()
print(group_opposition(model, cross_entropy, monitor.members(up), monitor.members(down)).cosine)
""",
    notes=(
        "The paper's findings are pictures and theorems without tables, and no code of the authors' is public: what "
        "is measured here are its assertions. Groups selected by their loss changes oppose each other to first order "
        "in any run, so their opposition is read beside a run without outliers, never beside random groups alone. "
        "Only large batches and step sizes near the edge, 2 / sharpness, show the groups; far below it nothing "
        "oscillates, and at it descent itself holds the sharpness near 2 / lr. A planted feature acts strongly where "
        "its classes are alike and weakly where other features tell them apart at once. Cost of looking: a monitored "
        "full-batch step takes about a third longer, a sharpness about ten Hessian-vector products of two gradients "
        "each. `small` decides on digits with a small network; the paper's ResNet-18 on CIFAR-10 is at `full`, "
        "through the same code, with group norm, since batch norm would couple the losses of a chunk's examples."
    ),
    extra="run",
)


def cifar10() -> ImageData:
    return images.hub("uoft-cs/cifar10", in_memory=True)


TOY = {"d1": 10, "d2": 4, "k": 50.0, "std": 0.1, "norms": [1.0, 2.0, 4.0, 8.0], "norm": 4.0, "lr": 0.15}


@PAPER.claim(
    "Opposing outliers alone sharpen the loss in proportion to the signal and drive gradient descent past its edge",
    arms=("with_opposing", "without", "weak"),
    expect=[
        identity("with_opposing", metric="slope_error", tolerance=1e-2),
        threshold("with_opposing", metric="slope", above=4.5, below=5.5),
        threshold("with_opposing", metric="peak_ratio", above=1.0),
        threshold("without", metric="peak_ratio", below=1.0),
        threshold("with_opposing", metric="end_ratio", below=1.0),
        shown("weak"),
    ],
    setup={
        "smoke": Setup(**TOY | {"norms": [1.0, 4.0]}, alpha=5.0, weak=1.9, steps=30, more_lrs=[0.1]),
        "small": Setup(**TOY, alpha=5.0, weak=1.9, steps=3_000, more_lrs=[0.1, 0.12, 0.18]),
        "full": Setup(**TOY, alpha=5.0, weak=1.9, steps=30_000, more_lrs=[0.1, 0.12, 0.18]),
    },
    seeds={"smoke": 1, "small": 5, "full": 20},
    reported=(
        "theorems of section 3: along the flow the sharpness first falls, then grows linearly in the norm of the "
        "signal; gradient descent then oscillates along the opposing feature, and the sharpness falls again"
    ),
    notes=(
        "Gradient flow from one small initialisation to signals of norm 1 to 8 gives `slope`, the least-squares "
        "slope of the final sharpness, here alpha = 5 against 2 without outliers; `slope_error` is the largest "
        "distance from the closed form. Descent at lr 0.15 passes 2 / lr (`peak_ratio`) and settles below it "
        "(`end_ratio`), where the flow would end above. `weak` has outliers of strength 1.9, below the 2 at which "
        "they become the sharpest direction: they oscillate and sharpen nothing. At lr 0.1 the run stays below the "
        "edge and the opposing weight still turns at every step (`flips_lr_0.1`): turning is no sign of instability. "
        "At lr 0.18 one initialisation in five diverges (`diverged_lr_0.18`), at 0.15 none of 200 did. The first "
        "fall of the sharpness shows only for small signals and is not asserted. The model is a reconstruction with "
        "the properties of the paper's theorems."
    ),
)
def toy_progressive_sharpening(trial: Trial) -> dict[str, float]:
    setup = trial.setup
    alpha = {"with_opposing": setup.alpha, "without": 0.0, "weak": setup.weak}[trial.arm]
    make = partial(OpposingSignalsToy, d1=setup.d1, d2=setup.d2, k=setup.k, alpha=alpha)
    start = make().init(trial.generator("init"), std=setup.std)
    reached, predicted = [], []
    for norm in setup.norms:
        toy = make(beta_norm=norm)
        reached.append(float(toy.sharpness(toy.flow(start))))
        predicted.append(toy.flow_end(start)[1])
    metrics = {
        "slope": _slope(setup.norms, reached),
        "slope_error": max(abs(ours - exact) for ours, exact in zip(reached, predicted)),
        "flow_sharpness": reached[-1],
    }
    toy = make(beta_norm=setup.norm)
    for lr in (setup.lr, *setup.more_lrs):
        suffix = "" if lr == setup.lr else f"_lr_{lr:g}"
        try:
            run = toy.run(start, partial(torch.optim.SGD, lr=lr), steps=setup.steps)
        except FloatingPointError:
            if lr == setup.lr:
                raise
            metrics[f"diverged{suffix}"] = 1.0
            continue
        if suffix:
            metrics[f"diverged{suffix}"] = 0.0
        metrics |= {
            f"peak_ratio{suffix}": float(run.sharpness.max()) * lr / 2,
            f"end_ratio{suffix}": float(run.sharpness[-1]) * lr / 2,
            f"flips{suffix}": float(flip_count(run.opposing_weight)),
            f"oscillation{suffix}": oscillation(run.group_losses[:, 0] - run.group_losses[:, 1]),
        }
        if lr == setup.lr:
            for step in range(0, min(len(run.losses), 200)):
                plus, minus = run.group_losses[step].tolist()
                trial.log(step, sharpness=run.sharpness[step], loss_plus=plus, loss_minus=minus, edge=2 / lr)
    return metrics


def _slope(x: list[float], y: list[float]) -> float:
    """Least-squares slope of y over x."""
    mean_x, mean_y = fmean(x), fmean(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) / sum((a - mean_x) ** 2 for a in x)


DIGITS = {"digits": Source(images.digits, scales=("smoke", "small"))}
NATURAL = {
    "cifar10_jpeg": Source(images.cifar10_jpeg, scales=("medium",)),
    "cifar10": Source(cifar10, scales=("full",)),
}
MLP = {"network": "mlp", "width": 64, "size": 8, "rms_norm": 2.17, "chunk": 0}
RESNET = {"network": "resnet18", "width": 64, "size": 32, "rms_norm": 0.0, "chunk": 500}


def drawn(trial: Trial, data: ImageData) -> tuple[Tensor, Tensor]:
    """The images and classes that a trial trains on: some of all splits, brought to one size and scale.

    Opposing signals are a matter of training alone, so that no part is held out.
    """
    setup = trial.setup
    parts = [data.train, data.val, data.test]
    if not all(isinstance(part, Examples) for part in parts):
        raise TypeError(f"{data.name} must be in memory, as Examples; its train split is a {type(data.train).__name__}")
    x = torch.cat([part.inputs for part in parts])  # type: ignore[union-attr]
    y = torch.cat([part.targets for part in parts])  # type: ignore[union-attr]
    x = x - x.mean(0)
    rows = torch.randperm(len(x), generator=trial.generator("data"))[: setup.n]
    x, y = x[rows], y[rows]
    if max(x.shape[2:]) > setup.size:
        x = F.adaptive_avg_pool2d(x, setup.size)
    norm = float(x.flatten(1).square().sum(1).mean().sqrt())
    if not norm > 0:
        raise ValueError(f"the images of {data.name} are all alike")
    # A step size fits a scale of inputs: every data set is brought to that of the digits.
    scale = setup.rms_norm / norm if setup.rms_norm else 1.0
    return (scale * x).to(trial.device), y.to(trial.device)


def network(trial: Trial, x: Tensor, num_classes: int) -> nn.Module:
    setup = trial.setup
    with trial.stream("init"):
        if setup.network == "mlp":
            model: nn.Module = mlp(math.prod(x.shape[1:]), (setup.width, setup.width), num_classes)
        elif setup.network == "vgg11":
            model = vgg11(x.shape[1], num_classes)
        else:
            model = ResNet(
                18, num_classes=num_classes, in_channels=x.shape[1], norm="group", small_images=True,
                widths=[setup.width * 2**stage for stage in range(4)],
            )  # fmt: skip
    return model.to(trial.device)


@dataclass
class Planted:
    """What an arm trains on.

    Attributes:
        x, y: images and classes.
        groups: the rows that carry the feature, by class; where nothing is planted, those that would.
        pattern: the feature.
    """

    x: Tensor
    y: Tensor
    groups: tuple[Tensor, ...]
    pattern: Tensor


def class_pair(x: Tensor, y: Tensor, least: int, num_classes: int, *, farthest: bool = False) -> list[int]:
    """The two classes of at least `least` images whose mean images lie closest together, or farthest apart."""
    enough = [label for label in range(num_classes) if int((y == label).sum()) >= least]
    if len(enough) < 2:
        raise ValueError(f"planting needs two classes of at least {least} images each, {len(enough)} are so large")
    means = {label: x[y == label].mean(0) for label in enough}
    pairs = sorted(combinations(enough, 2), key=lambda pair: float((means[pair[0]] - means[pair[1]]).norm()))
    return list(pairs[-1 if farthest else 0])


def plant(trial: Trial, x: Tensor, y: Tensor, num_classes: int) -> Planted:
    """The arm's data: `patched` in two classes, `agreeing` in one, `label_noise` instead, or `clean`.

    The two classes are the most alike, which only other features can tell apart, or for `distant` the least alike.

    Every arm changes, or spares, equally many images.
    """
    setup = trial.setup
    pair = class_pair(x, y, 2 * round(setup.fraction * len(y)), num_classes, farthest=trial.arm == "distant")
    add = partial(inject_opposing_patch, x, y, amplitude=setup.amplitude, generator=trial.generator("planting"))
    if trial.arm == "agreeing":
        alone = add(classes=pair[:1], fraction=2 * setup.fraction)
        return Planted(alone.x, y, alone.groups, alone.pattern)
    patched = add(classes=pair, fraction=setup.fraction)
    if trial.arm == "clean":
        return Planted(x, y, patched.groups, patched.pattern)
    if trial.arm == "label_noise":
        shift = torch.randint(1, num_classes, (len(patched.rows),), generator=trial.generator("planting"))
        wrong = y.clone()
        wrong[patched.rows] = (y[patched.rows] + shift.to(y.device)) % num_classes
        return Planted(x, wrong, patched.groups, patched.pattern)
    return Planted(patched.x, y, patched.groups, patched.pattern)


@dataclass
class Look:
    """What the largest movers of one update were."""

    unstable: bool
    cosine: float
    random_cosine: float
    precision: float
    share: float


@dataclass
class Watched:
    """A run of full-batch gradient descent that was watched throughout."""

    monitor: OpposingSignalMonitor
    tracker: SharpnessTracker
    looks: list[Look] = field(default_factory=list)


def counted(looks: list[Look]) -> list[Look]:
    """The looks at unstable updates; all of them if there are fewer than three such updates."""
    unstable = [look for look in looks if look.unstable]
    return unstable if len(unstable) >= 3 else looks


def watch(trial: Trial, model: nn.Module, x: Tensor, y: Tensor, planted: Tensor | None = None) -> Watched:
    """Trains by full-batch gradient descent, following losses, groups and sharpness.

    The groups of an update are looked at where many examples get worse, where the mean loss rises, and at every
    fifth; their gradients are those after it.
    """
    setup = trial.setup
    chunk = setup.chunk or None
    optimizer = torch.optim.SGD(model.parameters(), lr=setup.lr)
    run = Watched(
        OpposingSignalMonitor(model, cross_entropy, x, y, k=setup.k, batch_size=chunk),
        SharpnessTracker(model, cross_entropy, (x, y), every=setup.every, batch_size=chunk).attach(optimizer),
    )
    monitor = run.monitor
    members = set() if planted is None else set(planted.tolist())
    draws = trial.generator("random groups")
    for step in range(setup.steps):
        optimizer.zero_grad()
        monitor.step_begin(full_batch_backward(model, cross_entropy, (x, y), batch_size=chunk))
        optimizer.step()
        record = monitor.step_end()
        unstable = record.rising > setup.rising
        if unstable or record.change > 0 or step % 5 == 0:
            up, down = record.up, record.down
            groups = monitor.members(up), monitor.members(down)
            cosine = group_opposition(model, cross_entropy, *groups, batch_size=chunk).cosine
            random = random_group_baseline(
                model, cross_entropy, (x, y), setup.k, n_draws=1, batch_size=chunk, generator=draws
            )
            hits = len(members & set(torch.cat([up, down]).tolist()))
            run.looks.append(Look(unstable, cosine, float(random[0]), hits / (2 * setup.k), record.share))
        if step % max(setup.steps // 200, 1) == 0:
            trial.log(step, loss=record.after.mean(), rising=record.rising)
            trial.progress(step, setup.steps, loss=float(record.after.mean()))
    for place in run.tracker.records:
        trial.log(place.step, sharpness=place.values[0], edge=place.threshold)
    return run


def measures(run: Watched) -> dict[str, float]:
    looks = counted(run.looks)
    peak = run.tracker.peak
    return {
        "cosine": median(look.cosine for look in looks),
        "random_cosine": median(look.random_cosine for look in looks),
        "precision": median(look.precision for look in looks),
        "share": median(look.share for look in looks),
        "unstable_steps": float(sum(look.unstable for look in run.looks)),
        "rises": float(sum(record.change > 0 for record in run.monitor.records)),
        "peak_sharpness": peak,
        "peak_ratio": peak / run.tracker.records[0].threshold,
        "loss": run.monitor.record().after.mean().item(),
    }


PLANTING = {"fraction": 0.03, "amplitude": 10.0, "k": 20, "rising": 0.15, "every": 10}
PLANTED_SETUPS = {
    "smoke": Setup(**MLP, **PLANTING | {"k": 5, "every": 5}, n=200, steps=6, lr=0.3),
    "small": Setup(**MLP, **PLANTING, n=1000, steps=400, lr=0.3),
    "full": Setup(
        **RESNET, **PLANTING | {"fraction": 0.005, "amplitude": 64.0, "k": 200, "every": 25}, n=50_000, steps=2_000,
        lr=0.05,
    ),
}  # fmt: skip
PLANTED_DATA = DIGITS | {"cifar10": Source(cifar10, scales=("full",))}
PLANTED_ARMS = ("patched", "clean", "agreeing", "distant", "label_noise")


def planted_run(trial: Trial, data: ImageData) -> dict[str, float]:
    x, y = drawn(trial, data)
    planted = plant(trial, x, y, data.num_classes)
    model = network(trial, x, data.num_classes)
    run = watch(trial, model, planted.x, planted.y, torch.cat(planted.groups))
    if trial.arm == "patched" and trial.scale != "smoke":
        step = run.monitor.most_unstable().step
        trial.figure("groups", plot_group_images(run.monitor, step, classes=data.classes))
        around = range(max(step - 40, 0), step + 60)
        groups = {data.classes[int(y[rows[0]])]: rows for rows in planted.groups}
        trial.figure("losses", plot_group_losses(run.monitor, groups, steps=around))
    return measures(run)


@PAPER.claim(
    "At unstable steps the examples whose losses change most are the planted opposing pair",
    arms=PLANTED_ARMS,
    expect=[
        lower("patched", than="clean", metric="cosine"),
        threshold("patched", metric="precision", above=0.5),
        shown(
            "agreeing",
            "distant",
            "label_noise",
            lower("patched", than="agreeing", metric="cosine"),
            lower("patched", than="label_noise", metric="cosine"),
            lower("distant", than="clean", metric="cosine"),
            higher("patched", than="agreeing", metric="precision"),
        ),
    ],
    setup=PLANTED_SETUPS,
    data=PLANTED_DATA,
    seeds={"smoke": 1, "small": 8, "full": 5},
    timeout=86_400.0,
    reported=(
        "CIFAR-10, full-batch gradient descent: the largest loss changes of a step fall on paired groups that share a "
        "feature and differ in class, such as planes and other things before a sky (figures of section 2; no table)"
    ),
    notes=(
        "A patch in the top quarter of the image, 4.6 times the images' root mean square norm, on 30 images each of "
        "the two classes whose means lie closest (1 and 8, or 3 and 9, of the digits); a network 64-64-64-10, "
        "full-batch descent. A step counts where over 15 % of the examples get worse; where a run has under three of "
        "these, all looks count (every fifth step). `cosine` is that of the two groups' gradients after the step, "
        "`precision` the share of planted images among the 2 k movers, medians over the steps. `clean` has the same "
        "images unpatched. Controls: `agreeing`, as many patched images of one class, whose movers are half planted, "
        "all on one side, and do not oppose; `distant`, the patch in the two classes least alike, which moves much "
        "less; `label_noise`, as many wrong labels, which has no partner group. Images of the user's own are "
        "averaged down to 8 x 8 and scaled to the digits' norm, which the step size fits."
    ),
)
def planted_groups_are_found(trial: Trial, data: ImageData) -> dict[str, float]:
    return planted_run(trial, data)


@PAPER.claim(
    "A few opposing outliers alone drive gradient descent past the edge of stability, at a step size fit for the rest",
    arms=PLANTED_ARMS,
    expect=[
        higher("patched", than="clean", metric="peak_ratio"),
        higher("patched", than="clean", metric="rises"),
        higher("patched", than="agreeing", metric="peak_ratio"),
        threshold("patched", metric="peak_ratio", above=1.0),
        threshold("clean", metric="peak_ratio", below=1.0),
        shown(
            "distant",
            "label_noise",
            higher("patched", than="label_noise", metric="peak_ratio"),
            higher("patched", than="agreeing", metric="rises"),
            higher("distant", than="clean", metric="peak_ratio"),
        ),
    ],
    setup=PLANTED_SETUPS,
    data=PLANTED_DATA,
    seeds={"smoke": 1, "small": 8, "full": 5},
    timeout=86_400.0,
    reported=(
        "opposing outliers cause progressive sharpening and the oscillations at the edge of stability (section 2 and "
        "theorems of section 3; no table)"
    ),
    notes=(
        "Data and arms as for `planted_groups_are_found`. The step size is the same in all arms, 2 / lr = 6.7, twice "
        "the sharpness that the clean images reach. `peak_ratio` is the largest sharpness, measured every tenth "
        "step, over 2 / lr; `rises` counts the steps that raise the loss. `agreeing` is the control that matters: "
        "outliers as many and as large, whose labels agree, sharpen the loss no more than clean data do, so that it "
        "is the opposition and not the size that counts. `distant` shows the limit: between classes that other "
        "features tell apart at once, the same patch sharpens the loss little and stays below the edge."
    ),
)
def outliers_cause_instability(trial: Trial, data: ImageData) -> dict[str, float]:
    return planted_run(trial, data)


NATURAL_KEYS = {"rising": 0.15, "every": 10, "removed": 0.02}
NATURAL_SETUPS = {
    "smoke": Setup(**MLP, **NATURAL_KEYS | {"every": 5}, k=5, n=200, steps=6, lr=0.7, calm_steps=6, calm_lr=0.25),
    "small": Setup(**MLP, **NATURAL_KEYS, k=20, n=1000, steps=250, lr=0.7, calm_steps=400, calm_lr=0.25),
    "medium": Setup(
        **RESNET | {"width": 16}, **NATURAL_KEYS | {"removed": 0.01}, k=20, n=5_000, steps=300, lr=0.1,
        calm_steps=600, calm_lr=0.02,
    ),
    "full": Setup(
        **RESNET, **NATURAL_KEYS | {"removed": 0.01, "every": 25}, k=200, n=50_000, steps=2_000, lr=0.05,
        calm_steps=4_000, calm_lr=0.01,
    ),
}  # fmt: skip


@PAPER.claim(
    "Without the few natural examples whose losses change most at unstable steps, the loss sharpens less",
    arms=("all", "without_movers", "without_random", "without_hardest"),
    expect=[
        lower("without_movers", than="without_random", metric="late_sharpness"),
        lower("without_movers", than="without_random", metric="peak_sharpness"),
        shown(
            "all",
            "without_hardest",
            lower("without_movers", than="all", metric="late_sharpness"),
            lower("without_movers", than="without_hardest", metric="late_sharpness"),
        ),
    ],
    setup=NATURAL_SETUPS,
    data=DIGITS | NATURAL,
    seeds={"smoke": 1, "small": 8, "medium": 3, "full": 3},
    timeout=86_400.0,
    reported="CIFAR-10, ResNet-18, full batch: removing the groups delays the sharpening (section 2; no table)",
    notes=(
        "A first run at the edge (lr 0.7) scores each example by its loss changes summed over the unstable steps; "
        "the 2 % with the largest scores are removed, and a second run from the same weights, at lr 0.25, follows "
        "the sharpness where nothing holds it: at the edge itself it stays near 2 / lr whatever is removed, and "
        "removal there showed no effect on its peak. `late_sharpness` is the mean over the last quarter. "
        "`without_random` removes as many at random. `without_hardest` removes those with the largest losses at the "
        "same steps: on digits these are partly the same images, and removing them lowers the sharpness too, so that "
        "loss change and loss are not cleanly told apart there; CIFAR-10 (`medium`: 5,000 of the JPEG subset and a "
        "ResNet-18 a quarter as wide, reckoned at an hour of one GPU; `full`: all of it) should tell. `edge_cosine` "
        "and `edge_share` are the opposition and the share of change of the natural groups."
    ),
)
def natural_groups(trial: Trial, data: ImageData) -> dict[str, float]:
    setup = trial.setup
    x, y = drawn(trial, data)
    removed = torch.empty(0, dtype=torch.int64)
    found: dict[str, float] = {}
    count = max(1, round(setup.removed * len(x)))
    # The second run starts from the weights of the first.
    model = network(trial, x, data.num_classes)
    if trial.arm == "without_random":
        removed = torch.randperm(len(x), generator=trial.generator("method"))[:count]
    else:
        run = watch(trial, deepcopy(model), x, y)
        found = {f"edge_{name}": value for name, value in measures(run).items() if name != "precision"}
        if trial.arm == "all" and trial.scale != "smoke":
            step = run.monitor.most_unstable().step
            trial.figure("groups", plot_group_images(run.monitor, step, classes=data.classes))
            trial.figure("losses", plot_group_losses(run.monitor, steps=range(max(step - 40, 0), step + 60)))
        if trial.arm != "all":
            scores = mover_scores(run.monitor, setup.rising, changes=trial.arm == "without_movers")
            removed = scores.topk(count).indices.cpu()
            found["removed_share"] = float(scores[removed.to(scores.device)].sum() / scores.sum())
        trial.series.clear()
    if len(removed):
        x, y, _ = remove_examples(x, y, removed)
    return found | sharpening(trial, model, x, y)


def mover_scores(monitor: OpposingSignalMonitor, rising: float, *, changes: bool) -> Tensor:
    """For each example, the sum of its loss changes (or of its losses) over the unstable updates, or over all."""
    unstable = [record for record in monitor.records if record.rising > rising]
    chosen = unstable if len(unstable) >= 3 else monitor.records
    return torch.stack([record.delta.abs() if changes else record.after for record in chosen]).sum(0)


def sharpening(trial: Trial, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """The sharpness along a descent whose steps stay below the edge, where nothing holds it at 2 / lr."""
    setup = trial.setup
    chunk = setup.chunk or None
    optimizer = torch.optim.SGD(model.parameters(), lr=setup.calm_lr)
    tracker = SharpnessTracker(model, cross_entropy, (x, y), every=setup.every, batch_size=chunk).attach(optimizer)
    loss = math.nan
    for step in range(setup.calm_steps):
        optimizer.zero_grad()
        loss = full_batch_backward(model, cross_entropy, (x, y), batch_size=chunk).mean().item()
        optimizer.step()
        if step % setup.every == 0:
            trial.log(step, loss=loss, sharpness=tracker.values[-1], edge=tracker.records[-1].threshold)
            trial.progress(step, setup.calm_steps, loss=loss)
    late = tracker.values[-max(len(tracker.values) // 4, 1) :]
    return {
        "peak_sharpness": tracker.peak,
        "late_sharpness": float(late.mean()),
        "peak_ratio": tracker.peak / tracker.records[0].threshold,
        "loss": loss,
    }


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": torch.optim.SGD,
    "momentum": partial(torch.optim.SGD, momentum=0.9),
    "dampened": partial(torch.optim.SGD, momentum=0.9, dampening=0.9),
    "clipped": partial(torch.optim.SGD, momentum=0.9, dampening=0.9),
    "split_sgd": SplitSGD,
    "adam": torch.optim.Adam,
}


@PAPER.claim(
    "Tuned for the training loss, Adam lets a planted opposing pair oscillate less than SGD does",
    arms=tuple(OPTIMIZERS),
    expect=[
        lower("adam", than="sgd", metric="relative_oscillation", transform="log"),
        lower("adam", than="momentum", metric="relative_oscillation", transform="log"),
        shown(
            "dampened",
            "clipped",
            "split_sgd",
            lower("dampened", than="momentum", metric="relative_oscillation", transform="log"),
            lower("split_sgd", than="sgd", metric="relative_oscillation", transform="log"),
            lower("adam", than="sgd", metric="oscillation", transform="log"),
            lower("adam", than="sgd", metric="loss", transform="log"),
        ),
    ],
    setup={
        "smoke": Setup(**MLP, n=200, fraction=0.03, amplitude=10.0, steps=6, skipped=0.05, clip=1.0),
        "small": Setup(**MLP, n=1000, fraction=0.03, amplitude=10.0, steps=250, skipped=0.05, clip=1.0),
        "full": Setup(**RESNET, n=50_000, fraction=0.005, amplitude=64.0, steps=2_000, skipped=0.05, clip=1.0),
    },
    data=PLANTED_DATA,
    tune={"lr": [0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]},
    tune_by="loss",
    tune_goal="min",
    seeds={"smoke": 1, "small": 8, "full": 3},
    worst={"loss": 10.0},
    timeout=86_400.0,
    reported="SGD lacks Adam's resilience to the opposing directions (section 4; no table)",
    notes=(
        "Planted data as for `planted_groups_are_found`. Every arm searches one grid of step sizes by its training "
        "loss over the last tenth of the steps. `oscillation` is the amplitude of the step-to-step alternation of "
        "the difference of the two planted groups' losses; `relative_oscillation` divides it by the groups' mean "
        "loss, since an optimizer that is done sooner has less left to oscillate. Controls take Adam apart: "
        "`dampened` is momentum that averages, at a tenth of the step the same as `momentum`; `clipped` bounds its "
        "gradient's norm; `split_sgd` is the paper's idea as reconstructed here. `step_along_feature` is the part of "
        "the first layer's step that lies along the planted feature. Adam also reaches far lower losses here: its "
        "steps are larger relative to the gradient everywhere, and part of its advantage may be that."
    ),
)
def adam_vs_sgd(trial: Trial, data: ImageData) -> dict[str, float]:
    setup = trial.setup
    chunk = setup.chunk or None
    x, y = drawn(trial, data)
    planted = plant(trial, x, y, data.num_classes)
    x = planted.x
    model = network(trial, x, data.num_classes)
    first = next(p for p in model.parameters() if p.ndim > 1)
    pattern = planted.pattern.flatten().to(first)
    optimizer = OPTIMIZERS[trial.arm](model.parameters(), lr=trial.tuned.lr)
    losses = torch.empty(setup.steps, 3)
    along = []
    a, b = (rows.to(x.device) for rows in planted.groups)
    for step in range(setup.steps):
        optimizer.zero_grad()
        each = full_batch_backward(model, cross_entropy, (x, planted.y), batch_size=chunk)
        losses[step] = torch.stack([each.mean(), each[a].mean(), each[b].mean()])
        if not math.isfinite(float(losses[step, 0])):
            if trial.tuning:
                return {"loss": 1e9}  # a step size that diverges is a bad one, no error
            raise FloatingPointError(f"the loss is not finite at step {step}: lr {trial.tuned.lr} is too large")
        if trial.arm == "clipped":
            nn.utils.clip_grad_norm_(model.parameters(), setup.clip)
        before = first.detach().clone()
        optimizer.step()
        if setup.network == "mlp":
            moved = first.detach() - before
            along.append(float((moved @ pattern).norm() / moved.norm().clamp_min(1e-30)))
        if step % max(setup.steps // 200, 1) == 0:
            trial.log(step, loss=losses[step, 0], first=losses[step, 1], second=losses[step, 2])
            trial.progress(step, setup.steps, loss=float(losses[step, 0]))
    settled = losses[round(setup.skipped * setup.steps) :]
    difference = settled[:, 1] - settled[:, 2]
    size = oscillation(difference)
    return {
        "oscillation": max(size, 1e-12),
        "relative_oscillation": max(size / float(settled[:, 1:].mean()), 1e-12),
        "flips": float(flip_count(difference)),
        "loss": losses[-max(setup.steps // 10, 1) :, 0].mean().item(),
        "rises": float((losses[:, 0].diff() > 0).sum()),
        "step_along_feature": fmean(along) if along else 0.0,
    }
