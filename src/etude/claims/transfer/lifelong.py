"""Claims of "A Deep Learning Framework for Lifelong Machine Learning"."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr

from etude.data import characters as drawings
from etude.data import images
from etude.data.kinds import Examples, ImageData
from etude.data.kinds_characters import Characters
from etude.lab import Paper, Setup, Source, Trial, higher, identity, lower, shown, threshold, trend
from etude.transfer import lifelong as ll
from etude.transfer.lifelong import properties as experiments

__all__ = ["PAPER"]

METHODS = "groups consolidation network tasks learner policy policies transfer_policies phases properties"
PAPER = Paper(
    slug="lifelong",
    domain="transfer",
    title="A Deep Learning Framework for Lifelong Machine Learning",
    authors="Ling & Bohn",
    year=2021,
    arxiv="2105.00157",
    summary="One mechanism, how stiffly each group of weights is held, gives every property of lifelong learning.",
    methods=tuple(f"etude.transfer.lifelong.{name}" for name in METHODS.split()),
    usage="""\
from etude.data import images
from etude.transfer.lifelong import ConfusionReduction, NonForgetting, learn_stream, tasks_by_class
learner = learn_stream(tasks_by_class(images.digits(), 2), NonForgetting() + ConfusionReduction(), steps=50)
print(learner.accuracies)       # row t: accuracy on each task after task t
print(learner.metrics(), learner.evaluate(scope="joint"))
""",
    notes=(
        "A framework: the authors call it conceptual and their experiments toys, and publish no table. Every property "
        "has its policy and its claim here; `property_table()` prints them side by side. Frozen weights are frozen bit "
        "by bit, whatever the optimizer. Parameters grow linearly with the tasks, links between tasks quadratically. "
        "Batch normalisation forgets through its statistics: use OwnerNorm or GroupNorm. On pairs of MNIST digits "
        "fine-tuning hardly forgets and random features transfer as well as learned ones: the streams of the claims "
        "are chosen so that there is something to forget and to transfer."
    ),
    extra="run",
)

INF = math.inf
RATES = [1e-3, 3e-3, 1e-2]


def rate(trial: Trial, name: str = "lr") -> float:
    return getattr(trial.tuned, name, None) or 3e-3


def options(trial: Trial) -> dict[str, Any]:
    """What the learner of a trial is built with."""
    return {"lr": rate(trial), "generator": trial.generator("order")}


def network(trial: Trial, shape: Any, units: int, **more: Any) -> ll.ConsolidatedNet:
    net = ll.ConsolidatedNet(shape, more.pop("layers", 1), units, seed=trial.stream_seed("init") % 2**62, **more)
    return net.to(trial.device)


def small_images(trial: Trial, data: ImageData) -> ImageData:
    """Large grey images at half their size, and as many training examples of each class as the setup says, drawn."""

    def pooled(part: Any) -> Examples:
        if not isinstance(part, Examples):
            raise TypeError(f"the images must be in memory, got {type(part).__name__}")
        large = trial.setup.pool and min(part.inputs.shape[-2:]) >= 28
        return Examples(F.avg_pool2d(part.inputs, 2), part.targets) if large else part

    train = pooled(data.train)
    order = torch.randperm(len(train), generator=trial.generator("data"))
    if trial.setup.per_class:
        labels = train.targets[order]
        within = F.one_hot(labels, data.num_classes).cumsum(0).gather(1, labels[:, None]).squeeze(1)
        order = order[within <= trial.setup.per_class]
    return replace(data, train=train.subset(order), val=pooled(data.val), test=pooled(data.test))


CURVE = {"b=0.01": 0.01, "b=0.1": 0.1, "b=1": 1.0, "b=inf": INF}
RETAIN: dict[str, ll.Policy] = {
    "fine_tune": ll.FineTune(), "non_forgetting": ll.NonForgetting(), "joint": ll.Joint(),
    **{arm: ll.Uniform(b) for arm, b in CURVE.items()},
}  # fmt: skip
PERMUTED = Setup(tasks=5, units=20, steps=200, per_class=300, pool=True)
PERMUTED_SETUPS = {
    "smoke": PERMUTED.replace(tasks=3, units=4, steps=5, per_class=10),
    "small": PERMUTED,
    "full": PERMUTED.replace(tasks=20, units=100, steps=5_000, per_class=0, pool=False),
}
MNIST = {
    "mnist5k": Source(images.mnist5k, scales=("smoke", "small")),
    "mnist": Source(partial(images.hub, "ylecun/mnist", in_memory=True), scales=("full",)),
}


@PAPER.claim(
    "Freezing old units and recruiting new ones forgets nothing and ends more accurate than fine-tuning",
    arms=("fine_tune", "non_forgetting", *CURVE, "ewc", "joint"),
    expect=[
        higher("non_forgetting", than="fine_tune", metric="average_accuracy"),
        identity("non_forgetting", metric="forgetting", tolerance=0.0),
        shown(
            *CURVE,
            "ewc",
            "joint",
            threshold("fine_tune", metric="forgetting", above=0.0),
            lower("non_forgetting", than="fine_tune", metric="learning_accuracy"),
            higher("non_forgetting", than="ewc", metric="average_accuracy"),
        ),
    ],
    setup=PERMUTED_SETUPS,
    data=MNIST,
    tune={"lr": RATES, "lam": {"ewc": [30.0, 300.0, 3000.0, 30000.0]}},
    tune_by="val_accuracy",
    tuned_like=dict.fromkeys(CURVE, "fine_tune"),
    seeds={"smoke": 1, "small": 8, "full": 5},
    worst={"average_accuracy": 0.1},
    timeout=3600.0,
    reported="toy experiments without a table; zero forgetting is asserted by construction",
    notes=(
        "Five versions of MNIST at 14 x 14 with permuted pixels, a 10-way head each, the task given at test. "
        "Fine-tuning shares all 100 units, non-forgetting owns 20 a task: `learning_accuracy`, just after a task, "
        "shows what that costs. The arms b = ... share all units at one stiffness. `joint` has the data of all tasks. "
        "Each arm picks its learning rate for the accuracy at the end on validation digits; the arms b = ... take "
        "fine-tuning's. Seeds draw permutations, training digits and weights; the 1,000 test digits stay."
    ),
    helps=higher("non_forgetting", than="fine_tune", metric="average_accuracy"),
    helps_tables=True,
)
def non_forgetting(trial: Trial, data: ImageData) -> dict[str, float]:
    setup = trial.setup
    tasks = ll.permuted_tasks(small_images(trial, data), setup.tasks, generator=trial.generator("permutations"))
    policy = ll.EWC(getattr(trial.tuned, "lam", None) or 300.0) if trial.arm == "ewc" else RETAIN[trial.arm]
    net = network(trial, tasks[0].train.inputs.shape[1], setup.units, pool=setup.units * setup.tasks)
    return experiments.retention(tasks, policy, net=net, steps=setup.steps, log=trial.log, memory=0, **options(trial))


LATENT = Setup(
    tasks=8, examples=2000, few=20, features=100, latent=4, units=8, wide=256, steps=150, val=1000, test=2000
)  # fmt: skip
TINY = LATENT.replace(tasks=2, examples=40, features=10, latent=2, units=4, wide=8, steps=4, val=50, test=50)
LATENT_SETUPS = {
    "smoke": TINY,
    "small": LATENT,
    "full": LATENT.replace(tasks=50, examples=20_000, features=1000, latent=10, units=16, wide=1024, steps=2_000),
}


def latent_stream(trial: Trial, sizes: list[int]) -> list[ll.Task]:
    setup = trial.setup
    return ll.shared_latent_tasks(
        len(sizes), sizes, features=setup.features, latent=setup.latent, val=setup.val, test=setup.test,
        generator=trial.generator("data"),
    )  # fmt: skip


def few_shot_trial(trial: Trial, policy: ll.Policy, *, learned: bool, pool: int | None) -> dict[str, float]:
    """The last task of the stream after all others, or alone."""
    setup = trial.setup
    tasks = latent_stream(trial, [setup.examples] * setup.tasks + [setup.few])
    net = network(trial, setup.features, setup.units, pool=pool)
    return experiments.few_shot(
        tasks if learned else tasks[-1:], policy, net=net, steps=setup.steps, few_steps=setup.steps, memory=0,
        lr=3e-3, few_lr=rate(trial), generator=trial.generator("order"),
    )  # fmt: skip


@PAPER.claim(
    "From few examples, a head on the frozen units of earlier tasks beats a network trained from scratch",
    arms=("scratch", "few_shot", "random_features", "similar_head"),
    expect=[
        higher("few_shot", than="scratch", metric="accuracy"),
        higher("few_shot", than="random_features", metric="accuracy"),
        shown("similar_head", higher("similar_head", than="few_shot", metric="accuracy")),
    ],
    setup=LATENT_SETUPS,
    tune={"lr": [1e-3, 3e-3, 1e-2, 3e-2]},
    tune_by="val_accuracy",
    tune_seeds=3,
    seeds={"smoke": 1, "small": 8, "full": 5},
    worst={"accuracy": 0.5},
    timeout=3600.0,
    reported="asserted, without a table",
    notes=(
        "x ~ N(0, I_100), labels the sign of a direction in one 4-dimensional subspace; eight tasks of 2,000 examples, "
        "8 units each, then one of 20. `scratch` has all 64 units to itself and trains them; `random_features` a head "
        "on 64 units that nobody trained, so that learned features and not freezing get the credit; `similar_head` "
        "starts from the head of the most similar old task. Every arm picks the learning rate of the last task on "
        "validation examples; the first eight are learned at 3e-3."
    ),
)
def few_shot_transfer(trial: Trial) -> dict[str, float]:
    units = trial.setup.tasks * trial.setup.units
    if trial.arm == "scratch":
        return few_shot_trial(trial, ll.RainMan(units), learned=False, pool=units)
    if trial.arm == "random_features":
        return few_shot_trial(trial, ll.FewShot(use_free=True), learned=False, pool=units)
    policy = ll.FewShot() if trial.arm == "few_shot" else ll.FewShot(source="accuracy")
    return few_shot_trial(trial, policy, learned=True, pool=units)


@PAPER.claim(
    "The more tasks have been learned, the more accurate a new one is from few examples",
    arms=("learned", "untrained"),
    expect=[
        trend("spearman", arm="learned", slope=(0.0, None)),
        shown("untrained", threshold("learned", metric="gain", above=0.0)),
    ],
    setup=LATENT_SETUPS,
    seeds={"smoke": 1, "small": 8, "full": 5},
    timeout=3600.0,
    reported="asserted, without a table",
    notes=(
        "The stream of `few_shot_transfer`: accuracy on the last task after 0, 1, 2, 4 and 8 others. Its head always "
        "reads all 64 units, those of tasks not yet learned still random. `spearman` is the rank correlation of "
        "accuracy with the number of tasks, one a seed; `gain` the last accuracy less the first. `untrained` learns "
        "the same number of tasks for no step. One learning rate, 3e-3: nothing is compared across arms."
    ),
)
def transfer_curve(trial: Trial) -> dict[str, float]:
    setup = trial.setup
    tasks = latent_stream(trial, [setup.examples] * setup.tasks + [setup.few])
    counts = [0] + [2**power for power in range(setup.tasks.bit_length()) if 2**power <= setup.tasks]
    reached = []
    for count in counts:
        # Seeded alike for every count, so that the tasks they share are learned alike.
        net = network(trial, setup.features, setup.units, pool=setup.tasks * setup.units)
        generator = torch.Generator().manual_seed(trial.stream_seed("order"))
        found = experiments.few_shot(
            [*tasks[:count], tasks[-1]], ll.FewShot(use_free=True), net=net, few_steps=setup.steps, memory=0,
            steps=setup.steps if trial.arm == "learned" else 0, generator=generator,
        )  # fmt: skip
        reached.append(found["accuracy"])
        trial.log(count, accuracy=reached[-1])
    return {
        "spearman": rank_correlation(counts, reached),
        "gain": reached[-1] - reached[0],
        **{f"after_{count}": value for count, value in zip(counts, reached)},
    }


def rank_correlation(x: list[Any], y: list[float]) -> float:
    """Spearman's; 0 if one of them is constant."""
    return float(spearmanr(x, y).statistic) if len(set(y)) > 1 else 0.0


CIFAR100 = partial(images.hub, "uoft-cs/cifar100", label="fine_label", in_memory=True)
JOINT_ARMS, JOINT_RATES = ("reduction", "exemplars_only"), [1e-3, 3e-3, 1e-2, 3e-2]
PAIRS = Setup(split=2, units=40, layers=1, exemplars=10, steps=120, joint_steps=150, per_class=300, pool=True)


@PAPER.claim(
    "A few exemplars and a joint training of the heads alone undo the confusion of tasks learned apart",
    arms=("separate", "reduction", "exemplars_only"),
    expect=[
        higher("reduction", than="separate", metric="accuracy"),
        higher("reduction", than="exemplars_only", metric="accuracy"),
    ],
    setup={
        "smoke": PAIRS.replace(units=4, exemplars=2, steps=4, joint_steps=4, per_class=10),
        "small": PAIRS,
        "full": PAIRS.replace(split=5, units=32, layers=3, steps=5_000, joint_steps=2_000, per_class=0, pool=False),
    },
    data={"mnist5k": MNIST["mnist5k"], "cifar100": Source(CIFAR100, scales=("full",))},
    tune={"lr": dict.fromkeys(("separate", "reduction"), RATES), "joint_lr": dict.fromkeys(JOINT_ARMS, JOINT_RATES)},
    tune_by="val_accuracy",
    seeds={"smoke": 1, "small": 12, "full": 5},
    worst={"accuracy": 0.1},
    timeout=86_400.0,
    reported="asserted, without a table",
    notes=(
        "Pairs of digits in an order drawn by the seed, 40 units each, all heads competing at test. `reduction` "
        "freezes all units and trains all heads, links across tasks too, on 10 exemplars a class; `exemplars_only` "
        "does so on as many units that nobody has trained. Each arm picks its rates on validation digits: at 3e-3 for "
        "all, random features lag by two points, at their own rate by hardly any. `full`: CIFAR-100, 20 tasks of 5."
    ),
    helps=higher("reduction", than="separate", metric="accuracy"),
    helps_tables=True,
)
def confusion_reduction(trial: Trial, data: ImageData) -> dict[str, float]:
    setup = trial.setup
    data = small_images(trial, data)
    # A user's classes may not come in pairs.
    split = next((size for size in range(setup.split, data.num_classes) if data.num_classes % size == 0), 0)
    if not split:
        raise ValueError(f"{data.num_classes} classes cannot be parted into tasks of equally many, two or more")
    tasks = ll.tasks_by_class(data, split, generator=trial.generator("classes"))
    shape = tuple(tasks[0].train.inputs.shape[1:])
    return confusion_trial(trial, tasks, math.prod(shape) if setup.layers == 1 else shape)


def confusion_trial(trial: Trial, tasks: list[ll.Task], shape: Any) -> dict[str, float]:
    setup = trial.setup
    policy: ll.Policy = ll.NonForgetting()
    if trial.arm != "separate":
        policy = policy + ll.ConfusionReduction(setup.joint_steps, after=len(tasks), lr=rate(trial, "joint_lr"))
    steps = 0 if trial.arm == "exemplars_only" else setup.steps
    net = network(trial, shape, setup.units, layers=setup.layers, pool=setup.units * len(tasks))
    return experiments.confusion(tasks, policy, net=net, steps=steps, memory=setup.exemplars, **options(trial))


GAMMAS = (0.0, 0.01, 0.1, 0.5, 1.0)


@PAPER.claim(
    "Memory fades gradually: the faster consolidation decays, the less of the first task is left",
    arms=("fading", "frozen"),
    expect=[
        trend("spearman", arm="fading", slope=(0.0, None)),
        shown("frozen", threshold("fading", metric="freed", above=0.0)),
    ],
    setup=PERMUTED_SETUPS,
    data=MNIST,
    seeds={"smoke": 1, "small": 6, "full": 5},
    timeout=14_400.0,
    reported="asserted, without a table; the precursor (arXiv:1911.09704) draws the parallel to human memory loss",
    notes=(
        "The stream of `non_forgetting`, 20 units a task; while task t is learned, those of task i are held by "
        "b = 100 gamma^(t - i). `spearman` is the rank correlation of gamma in {0, .01, .1, .5, 1} with the accuracy "
        "on the first task in the end, one a seed; the curves show both that and, as `learned`, the mean accuracy just "
        "after learning, which `freed` compares between gamma = 0 and 1. `frozen` is b = inf. One learning rate, "
        "3e-3: what is held against Adam's steps depends on it."
    ),
)
def memory_loss(trial: Trial, data: ImageData) -> dict[str, float]:
    setup = trial.setup
    tasks = ll.permuted_tasks(small_images(trial, data), setup.tasks, generator=trial.generator("permutations"))
    policies: dict[float, ll.Policy] = {1.0: ll.NonForgetting()}
    if trial.arm == "fading":
        policies = {gamma: ll.GracefulForgetting(gamma) for gamma in GAMMAS}
    found = {}
    for gamma, policy in policies.items():
        net = network(trial, tasks[0].train.inputs.shape[1], setup.units, pool=setup.units * setup.tasks)
        generator = torch.Generator().manual_seed(trial.stream_seed("order"))
        found[gamma] = experiments.retention(tasks, policy, net=net, steps=setup.steps, memory=0, generator=generator)
        trial.log(gamma, first_task=found[gamma]["first_task"], learned=found[gamma]["learning_accuracy"])
    first = {gamma: values["first_task"] for gamma, values in found.items()}
    learned = {gamma: values["learning_accuracy"] for gamma, values in found.items()}
    return {
        "spearman": rank_correlation(list(first), list(first.values())),
        "freed": learned[min(learned)] - learned[1.0],
        **{f"first_task_gamma_{gamma:g}": value for gamma, value in first.items()},
    }


@PAPER.claim(
    "A 'rain man', who memorises each task with many units of its own, remembers all and understands little",
    arms=("few_shot", "rain_man", "random_features"),
    expect=[
        higher("rain_man", than="few_shot", metric="gap"),
        identity("rain_man", metric="forgetting", tolerance=0.0),
        identity("few_shot", metric="forgetting", tolerance=0.0),
        shown("random_features", lower("rain_man", than="few_shot", metric="accuracy")),
    ],
    setup=LATENT_SETUPS,
    tune={"lr": [1e-3, 3e-3, 1e-2]},
    tune_by="val_accuracy",
    tune_seeds=3,
    seeds={"smoke": 1, "small": 8, "full": 5},
    timeout=3600.0,
    reported="asserted, without a table",
    notes=(
        "The stream and the last task of `few_shot_transfer`. `gap` is training less test accuracy on the last task. "
        "The rain man has 256 new units for it and no link from others; the earlier tasks are learned alike in both "
        "arms and forgotten in neither. Each arm picks its learning rate of the last task."
    ),
)
def rain_man(trial: Trial) -> dict[str, float]:
    units = trial.setup.tasks * trial.setup.units
    if trial.arm == "random_features":
        return few_shot_trial(trial, ll.FewShot(use_free=True), learned=False, pool=units)
    policy = ll.RainMan(trial.setup.wide) if trial.arm == "rain_man" else ll.FewShot()
    return few_shot_trial(trial, policy, learned=True, pool=None)


@PAPER.claim(
    "Later tasks help an old one of few examples, once it may read their units",
    arms=("frozen", "continued", "restarted"),
    expect=[
        higher("restarted", than="frozen", metric="accuracy"),
        shown(
            "continued",
            higher("continued", than="frozen", metric="accuracy"),
            higher("restarted", than="continued", metric="accuracy"),
        ),
    ],
    setup=LATENT_SETUPS,
    tune={"lr": RATES},
    tune_by="val_accuracy",
    tune_seeds=3,
    seeds={"smoke": 1, "small": 8, "full": 5},
    worst={"accuracy": 0.5},
    timeout=3600.0,
    reported="asserted, without a table",
    notes=(
        "The stream of `few_shot_transfer`, the task of 20 examples first. `frozen` trains its head 150 steps longer "
        "on its own units; the others open the links from all later units, going on with the old head or from zero. "
        "Whether the links stay is decided by leaving out each of the 20 examples in turn: `linked` is 1 if so. "
        "`others` is the accuracy on the later tasks, which nothing touches. Each arm picks its learning rate on "
        "validation examples."
    ),
)
def backward_transfer(trial: Trial) -> dict[str, float]:
    setup = trial.setup
    tasks = latent_stream(trial, [setup.few] + [setup.examples] * (setup.tasks - 1))
    policy = None
    if trial.arm != "frozen":
        policy = ll.BackwardTransfer(
            setup.steps, after=setup.tasks, tasks=(1,), kinds=("H",), restart=trial.arm == "restarted",
            folds=0 if trial.tuning else setup.few,
        )  # fmt: skip
    net = network(trial, setup.features, setup.units, pool=setup.tasks * setup.units)
    return experiments.backward_transfer(
        tasks, policy, net=net, steps=setup.steps, more_steps=setup.steps, memory=setup.few, **options(trial)
    )  # fmt: skip


ALPHABETS = Setup(train=5, val=2, units=6, layers=2, steps=60, joint_steps=150, exemplars=5)
ALPHABET_DATA = {
    "few": Source(partial(drawings.strokes, 2, 4, 10, size=14), scales=("smoke",)),
    "strokes": Source(partial(drawings.strokes, size=14, strokes=(3, 5), anchors=4), scales=("small",)),
    "omniglot": Source(partial(drawings.omniglot, 14), scales=("small", "full")),
}
ALPHABET_SETUPS = {
    "smoke": ALPHABETS.replace(units=2, steps=2, joint_steps=2),
    "small": ALPHABETS,
    "full": ALPHABETS.replace(units=64, layers=3, steps=5_000, joint_steps=2_000),
}


def alphabets(trial: Trial, data: Characters) -> list[ll.Task]:
    return ll.tasks_by_alphabet(data, trial.setup.train, trial.setup.val, generator=trial.generator("data"))


@PAPER.claim(
    "On a new alphabet of five drawings a character, frozen convolutions of earlier alphabets beat training anew",
    arms=("scratch", "few_shot", "random_features"),
    expect=[
        higher("few_shot", than="scratch", metric="accuracy"),
        higher("few_shot", than="random_features", metric="accuracy"),
    ],
    setup=ALPHABET_SETUPS,
    data=ALPHABET_DATA,
    tune={"lr": RATES},
    tune_by="val_accuracy",
    tune_seeds=1,
    seeds={"smoke": 1, "small": 5, "full": 5},
    worst={"accuracy": 0.0},
    timeout=86_400.0,
    reported="asserted, without a table",
    notes="`few_shot_transfer` with alphabets as tasks: two layers of 3 x 3 convolutions, 6 channels an alphabet.",
)
def character_few_shot(trial: Trial, data: Characters) -> dict[str, float]:
    setup = trial.setup
    tasks = alphabets(trial, data)
    pool = setup.units * len(tasks)
    net = network(trial, tuple(tasks[0].train.inputs.shape[1:]), setup.units, layers=setup.layers, pool=pool)
    if trial.arm == "random_features":
        # Units of one owner, so that the layers read each other; the first task is learned for no step.
        net.units_per_task = pool
    met = {"scratch": tasks[-1:], "few_shot": tasks, "random_features": [tasks[0], tasks[-1]]}[trial.arm]
    return experiments.few_shot(
        met, ll.RainMan(pool) if trial.arm == "scratch" else ll.FewShot(), net=net, memory=0, lr=3e-3,
        steps=setup.steps if trial.arm == "few_shot" else 0, few_steps=setup.steps, few_lr=rate(trial),
        generator=trial.generator("order"),
    )  # fmt: skip


@PAPER.claim(
    "A joint training of the heads on five drawings a character undoes the confusion of alphabets learned apart",
    arms=("separate", "reduction", "exemplars_only"),
    expect=[
        higher("reduction", than="separate", metric="accuracy"),
        higher("reduction", than="exemplars_only", metric="accuracy"),
    ],
    setup=ALPHABET_SETUPS,
    data=ALPHABET_DATA,
    tune={"joint_lr": dict.fromkeys(JOINT_ARMS, JOINT_RATES)},
    tune_by="val_accuracy",
    tune_seeds=1,
    untuned=("separate",),
    seeds={"smoke": 1, "small": 5, "full": 5},
    worst={"accuracy": 0.0},
    timeout=86_400.0,
    reported="asserted, without a table",
    notes=(
        "`confusion_reduction` with alphabets as tasks and convolutions; the five training drawings are the exemplars. "
        "Alphabets are learned at 3e-3; the rate of the joint training is chosen on other people's drawings."
    ),
)
def character_confusion(trial: Trial, data: Characters) -> dict[str, float]:
    tasks = alphabets(trial, data)
    return confusion_trial(trial, tasks, tuple(tasks[0].train.inputs.shape[1:]))
