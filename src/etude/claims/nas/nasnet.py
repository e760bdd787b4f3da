"""Claims of "Learning Transferable Architectures for Scalable Image Recognition"."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr

from etude.data import images
from etude.data.augmentation import crop_and_flip
from etude.data.kinds import Examples, ImageData
from etude.lab import Paper, Setup, Source, Trial, higher, not_worse, shown, threshold
from etude.loop import accuracy
from etude.nas.nasnet import (
    NASNET_A,
    Block,
    CachedEvaluator,
    Genotype,
    NASNet,
    PPOSearch,
    RandomFeatureEvaluator,
    RandomSearch,
    SearchResult,
    TrainEvaluator,
    plot_genotype,
    search,
    train_network,
)

__all__ = ["PAPER"]

PAPER = Paper(
    slug="nasnet",
    domain="nas",
    title="Learning Transferable Architectures for Scalable Image Recognition",
    authors="Zoph et al.",
    year=2018,
    arxiv="1707.07012",
    venue="CVPR 2018",
    summary="A controller searches two cells on small images; stacked, they make networks for images of any size.",
    methods=(
        "etude.nas.nasnet.genotype",
        "etude.nas.nasnet.operations",
        "etude.nas.nasnet.cell",
        "etude.nas.nasnet.network",
        "etude.nas.nasnet.training",
        "etude.nas.nasnet.controller",
        "etude.nas.nasnet.samplers",
        "etude.nas.nasnet.evaluators",
        "etude.nas.nasnet.searching",
        "etude.nas.nasnet.estimator",
        "etude.nas.nasnet.drawing",
    ),
    usage="""\
from etude.data import images
from etude.nas.nasnet import CellSearch, NASNetClassifier, RandomFeatureEvaluator, SearchSpace
data, quick = images.digits(), NASNetClassifier(filters=4, epochs=1, batch_size=200)   # quick: NASNet-A
found = CellSearch(4, space=SearchSpace(blocks=2), batch=2, finalists=1, classifier=quick).fit(data)
print(found.genotype_, found.score(data.test), RandomFeatureEvaluator(data)(quick.genotype, 0))
""",
    notes=(
        "At `small` children have random weights and are read by a ridge regression: a reward that depends on the "
        "architecture and costs a tenth of a second, where the paper trains each of 20,000 children for 20 epochs on "
        "500 GPUs. That reward rises with the number of features, hence with the states that no block reads; the arms "
        "with 16 random projections take that road away. Step size and batch are those of a search of 160 children. "
        "The networks' counts of parameters and multiply-adds are the paper's to the last digit, and tested."
    ),
    code="https://github.com/tensorflow/models/tree/master/research/slim/nets/nasnet",
)


def digits250() -> ImageData:
    """scikit-learn's digits: 250 to fit, 300 to reward, 1,247 unseen by a search; always the same rows."""
    data = images.digits()
    parts = [part for part in (data.train, data.val, data.test) if isinstance(part, Examples)]
    inputs, targets = torch.cat([part.inputs for part in parts]), torch.cat([part.targets for part in parts])
    sizes = [250, 300, len(targets) - 550]
    train, val, test = (Examples(*pair) for pair in zip(inputs.split(sizes), targets.split(sizes), strict=True))
    return ImageData(train=train, val=val, test=test, classes=data.classes, name="digits250")


cifar10 = partial(images.hub, "uoft-cs/cifar10", in_memory=True)
cifar100 = partial(images.hub, "uoft-cs/cifar100", in_memory=True)
SEARCHED_ON: dict[str, Callable[[], ImageData]] = {"digits250": digits250, "cifar10": cifar10}


def prepared(trial: Trial, data: ImageData, setup: Setup) -> ImageData:
    """At most as many rows as the setup names, averaged down to its `size` where larger, standardised."""
    parts = {}
    for name, most in (("train", setup.train), ("val", setup.val), ("test", setup.test)):
        part = getattr(data, name)
        assert isinstance(part, Examples)
        if most is not None and len(part) > most:
            part = part.take(most, trial.generator(f"rows-{name}"))
        if setup.size is not None and max(part.inputs.shape[2:]) > setup.size:
            target = tuple(min(side, setup.size) for side in part.inputs.shape[2:])
            part = Examples(F.adaptive_avg_pool2d(part.inputs, target), part.targets)
        parts[name] = part
    return ImageData(**parts, classes=data.classes, name=data.name).standardized()


SEARCH = Setup(
    children="random", budget=160, narrow_budget=100, batch=10, top=25, late=50, lr=0.01, epochs=4, entropy=1e-4,
    decay=0.9, scale=True, clip=1.0, size=8, train=250, val=300, test=300, child_epochs=0, fresh=1, draw=True,
)  # fmt: skip
SEARCHES = {
    "smoke": SEARCH.replace(
        budget=4, narrow_budget=4, batch=2, epochs=1, top=2, late=2, train=30, val=30, test=30, draw=False
    ),
    "small": SEARCH,
    "medium": SEARCH.replace(budget=1000, narrow_budget=1000, late=100, test=1247),
    "full": SEARCH.replace(
        children="trained", budget=1000, narrow_budget=1000, batch=20, late=100, lr=3.5e-4, entropy=1e-5, decay=0.95,
        scale=False, clip=None, size=None, train=None, val=None, test=None, child_epochs=20,
    ),
}  # fmt: skip


def evaluator_for(trial: Trial, setup: Setup, data: ImageData, project: int | None) -> Any:
    """The child that a setup names."""
    if setup.children == "trained" and project is None:
        # Views come from the global generator, which is seeded for each child.
        training = {"transform": partial(_augmented, None), "batch_size": 128}
        return TrainEvaluator(data, epochs=setup.child_epochs, device=trial.device, training=training)
    parts = {name: getattr(data, name) for name in ("train", "val")}
    few = {name: part.take(min(len(part), 2_000)) for name, part in parts.items()}
    data = ImageData(**few, test=data.test, classes=data.classes, name=data.name)
    return RandomFeatureEvaluator(data, project=project, device=trial.device)


def _augmented(generator: torch.Generator | None, batch: tuple[Any, Any]) -> tuple[Any, Any]:
    return crop_and_flip(batch[0], generator=generator), batch[1]


def searched(trial: Trial, setup: Setup, evaluator: Any, arm: str, budget: int) -> SearchResult:
    """One search; equal cells have equal rewards in all arms of a seed."""
    if arm == "ppo":
        sampler: PPOSearch | RandomSearch = PPOSearch(
            seed=trial.stream_seed("method"), lr=setup.lr, batch_size=setup.batch, epochs=setup.epochs,
            entropy_weight=setup.entropy, baseline_decay=setup.decay, scale_advantage=setup.scale,
            max_grad_norm=setup.clip,
        )  # fmt: skip
    else:
        sampler = RandomSearch(seed=trial.stream_seed("proposals"))
    return search(
        sampler, CachedEvaluator(evaluator), budget, setup.batch, seed=trial.stream_seed("weights"),
        on_result=lambda count, genotype, reward: trial.progress(count, budget, reward=reward or 0.0),
    )  # fmt: skip


def unseen_accuracy(trial: Trial, evaluator: Any, genotype: Genotype, fresh: int) -> float:
    """Accuracy on the test rows with weights drawn anew, the mean over `fresh` draws."""
    scores = []
    for number in range(fresh):
        seed = trial.stream_seed(f"fresh-{number}")
        if isinstance(evaluator, TrainEvaluator):
            scores.append(accuracy(evaluator.train(genotype, seed), evaluator.data.test))
        else:
            scores.append(evaluator.score(genotype, seed, evaluator.data.test))
    return float(np.mean(scores))


@PAPER.claim(
    "The PPO controller finds better cells than random search with as many children",
    arms=("random", "ppo", "random_16", "ppo_16"),
    expect=[
        higher("ppo", than="random", metric="top25"),
        shown(
            "random_16",
            "ppo_16",
            higher("ppo", than="random", metric="top5"),
            higher("ppo", than="random", metric="top1"),
            higher("ppo", than="random", metric="late_reward"),
            higher("ppo", than="random", metric="features"),
            higher("ppo_16", than="random_16", metric="top25"),
            higher("ppo_16", than="random_16", metric="late_reward"),
        ),
    ],
    setup=SEARCHES,
    seeds={"smoke": 1, "small": 5, "medium": 8, "full": 3},
    data={
        "digits250": Source(digits250, scales=("smoke", "small", "medium")),
        "cifar10": Source(cifar10, scales=("full",)),
    },
    reported=(
        "CIFAR-10, 20,000 children: the best cell of RL beats that of random search by over 1 % in accuracy, and the "
        "means of the best 5 and 25 lie above at all budgets (section 4.4, figure 6)"
    ),
    notes=(
        "`top25`, `top5` and `top1` are accuracies of the cells that had the highest rewards, on images that neither "
        "fitted nor rewarded, with weights drawn anew: choosing by a noisy reward flatters both arms. `late_reward` is "
        "the mean reward of the last proposals, `features` how many numbers the regression reads of the best 25, "
        "`width_correlation` how strongly reward goes with that number over all proposals. In the arms _16, of 100 "
        "children, the regression sees 16 random projections of the features, so that a wide output gains nothing by "
        "its width. PPO: batches of 10, 4 epochs, clip 0.2, Adam 0.01, entropy 1e-4, advantage over its deviation, "
        "gradient norm at most 1; the paper's 3.5e-4 is for 20,000 children. `medium`: 1,000 children. `full`: those "
        "of N = 2, F = 32 trained for 20 epochs on CIFAR-10, 1,000 an arm, with the paper's settings; the arms _16 "
        "keep the cheap reward."
    ),
    helps=higher("ppo", than="random", metric="top25"),
    timeout=2_600_000.0,
)
def rl_beats_random(trial: Trial, data: ImageData) -> dict[str, float]:
    setup = trial.setup
    name, _, project = trial.arm.partition("_")
    evaluator = evaluator_for(trial, setup, prepared(trial, data, setup), int(project) if project else None)
    result = searched(trial, setup, evaluator, name, setup.narrow_budget if project else setup.budget)
    best = [genotype for genotype, _ in result.top(setup.top)]
    scores = [unseen_accuracy(trial, evaluator, genotype, setup.fresh) for genotype in best]
    for step, (mean, (_, reward)) in enumerate(zip(result.top_mean(setup.top), result.history), start=1):
        trial.log(step, top25_so_far=mean, reward=reward or 0.0)
    if trial.arm == "ppo" and setup.draw:
        trial.figure("cells", plot_genotype(best[0]))
    features = [len(genotype.cell(True)[1]) * 8.0 for genotype, _ in result.history]
    rewards = result.rewards
    varied = np.std(features) > 0 and np.std(rewards) > 0
    return {
        "top25": float(np.mean(scores)),
        "top5": float(np.mean(scores[:5])),
        "top1": scores[0],
        "reward25": float(np.mean([reward for _, reward in result.top(setup.top)])),
        "late_reward": float(rewards[-setup.late :].mean()),
        "early_reward": float(rewards[: setup.late].mean()),
        "features": float(np.mean([len(genotype.cell(True)[1]) * 8.0 for genotype in best])),
        "width_correlation": float(np.corrcoef(features, rewards)[0, 1]) if varied else 0.0,
        "distinct": float(len(result.top(setup.budget))),
    }


TRAINING = Setup(
    size=10, train=1000, val=200, test=1000, cells_per_stage=1, filters=8, epochs=3, batch=50, optimizer="adamw",
    lr=2e-3, weight_decay=0.01, augment=False, aux=False,
)  # fmt: skip
QUICK = TRAINING.replace(size=8, train=20, val=20, test=20, epochs=1, filters=2)
LONG = {"optimizer": "sgd", "lr": 0.025, "weight_decay": 5e-4, "augment": True, "aux": True, "batch": 32}
WHOLE = {"size": None, "train": None, "val": None, "test": None}
MNIST = {
    "digits250": Source(digits250, scales=("smoke",)),
    "mnist5k": Source(images.mnist5k, scales=("small", "medium")),
    "cifar100": Source(cifar100, scales=("full",)),
}


def trained(trial: Trial, data: ImageData, genotype: Genotype, filters: int, **options: Any) -> NASNet:
    """A network trained by the recipe of the setup; weights, order and dropped paths are the trial's, in every arm."""
    setup = trial.setup
    constant = options.pop("constant_drop_path", False)
    name = f"{genotype.digest()}"
    with trial.stream(f"init-{name}"):
        model = NASNet(
            genotype, num_classes=data.num_classes, in_chans=data.channels, cells_per_stage=setup.cells_per_stage,
            filters=filters, aux_head=setup.aux, image_size=data.size, **options,
        ).to(trial.device)  # fmt: skip
    transform = partial(_augmented, trial.generator("augmentation")) if setup.augment else None
    order = torch.Generator().manual_seed(trial.stream_seed("order"))
    with trial.stream(f"dropout-{name}"):
        train_network(
            model, data.train, epochs=setup.epochs, batch_size=setup.batch, optimizer=setup.optimizer, lr=setup.lr,
            weight_decay=setup.weight_decay, generator=order, device=trial.device, transform=transform,
            callbacks=(trial.progress,), constant_drop_path=constant,
        )  # fmt: skip
    return model


TRANSFERS = {
    scale: Setup(**{**training.as_dict(), "cells": cells, "searched_on": name, "search": searching.as_dict()})
    for scale, training, cells, name, searching in (
        ("smoke", QUICK, 1, "digits250", SEARCHES["smoke"].replace(budget=2)),
        ("small", TRAINING, 5, "digits250", SEARCHES["small"]),
        ("medium", TRAINING.replace(train=3500, epochs=10), 5, "digits250", SEARCHES["medium"]),
        (
            "full", TRAINING.replace(**WHOLE, **LONG, cells_per_stage=6, filters=32, epochs=600), 5, "cifar10",
            SEARCHES["full"],
        ),
    )
}  # fmt: skip


@PAPER.claim(
    "Cells chosen on small images are also good when they are stacked and trained on another data set",
    arms=("random_cells", "searched", "nasnet_a"),
    expect=[
        higher("searched", than="random_cells", metric="accuracy"),
        shown(
            "nasnet_a",
            higher("nasnet_a", than="random_cells", metric="accuracy"),
            threshold("searched", metric="rank_correlation", above=0.0),
        ),
    ],
    setup=TRANSFERS,
    seeds={"smoke": 1, "small": 3, "medium": 5, "full": 3},
    data=MNIST,
    reported=(
        "the cells found on CIFAR-10 set the state of the art on ImageNet: 82.7 % top-1 with 88.9 million parameters, "
        "74.0 % with 5.3 million (tables 2 and 3)"
    ),
    notes=(
        "`searched` trains the five cells of highest reward of a search on digits, 8 x 8 pixels, as in "
        "`rl_beats_random`; `random_cells` five that are drawn uniformly; `nasnet_a` the published ones. `accuracy` is "
        "the mean over the cells on MNIST averaged to 10 x 10 pixels: 1,000 images, N = 1, F = 8, 3 epochs of AdamW. "
        "Random cells differ in width and parameters as those of the space do. `rank_correlation` is Spearman's, of "
        "reward on digits and accuracy on MNIST, over the five searched and the five random cells. `full`: CIFAR-10 "
        "to CIFAR-100 with the paper's networks."
    ),
    timeout=2_600_000.0,
)
def transfer(trial: Trial, data: ImageData) -> dict[str, float]:
    setup = trial.setup
    searching = Setup(**setup.search)
    there = prepared(trial, SEARCHED_ON[setup.searched_on](), searching)
    here = prepared(trial, data, setup)
    evaluator = evaluator_for(trial, searching, there, None)
    drawn = RandomSearch(seed=trial.stream_seed("random_cells")).ask(setup.cells)
    chosen: list[Genotype] = []
    if trial.arm == "searched":
        result = searched(trial, searching, evaluator, "ppo", searching.budget)
        chosen = [genotype for genotype, _ in result.top(setup.cells)]
    elif trial.arm == "nasnet_a":
        chosen, drawn = [NASNET_A], []
    cells = [*chosen, *drawn]
    scores = []
    for number, genotype in enumerate(cells, start=1):
        scores.append(accuracy(trained(trial, here, genotype, setup.filters), here.test))
        trial.log(number, accuracy_of_cell=scores[-1])
    # Fresh weights: the rewards that the searched cells were chosen by are flattered.
    rewards = [evaluator(genotype, trial.stream_seed("fresh-reward")) for genotype in cells]
    counted = scores[: len(chosen)] if chosen else scores
    varied = len(cells) > 1 and np.ptp(scores) > 0 and np.ptp(rewards) > 0
    return {
        "accuracy": float(np.mean(counted)),
        "best_accuracy": float(np.max(counted)),
        "rank_correlation": float(spearmanr(rewards, scores).statistic) if varied else 0.0,
    }


PLAIN = Genotype(
    normal=(Block(0, 0, "sep_3x3", "identity"),),
    reduction=(Block(0, 0, "sep_3x3", "identity"), Block(2, 2, "sep_3x3", "identity")),
    normal_concat=(2,),
    reduction_concat=(3,),
)
"""Residual separable 3 x 3 convolutions, as deep as NASNet-A: one behind the other, two where the map is halved."""
NETWORKS = {
    "smoke": QUICK,
    "small": TRAINING,
    "medium": TRAINING.replace(train=3500, epochs=20),
    "full": TRAINING.replace(**WHOLE, **LONG, cells_per_stage=6, filters=32, epochs=600),
}


def matched_filters(genotype: Genotype, target: int, **options: Any) -> int:
    """The width at which a network of `genotype` comes closest to `target` parameters."""

    def count(filters: int) -> int:
        with torch.device("meta"):
            model = NASNet(genotype, filters=filters, **options)
        return sum(parameter.numel() for parameter in model.parameters())

    low, high = 1, 2
    while count(high) < target:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < target else (low, middle)
    return min((low, high), key=lambda filters: abs(count(filters) - target))


@PAPER.claim(
    "NASNet-A is not worse than plain separable cells of equal parameters and depth",
    arms=("separable", "nasnet_a"),
    expect=[
        not_worse("nasnet_a", than="separable", metric="accuracy", margin=0.01),
        shown(higher("nasnet_a", than="separable", metric="accuracy")),
    ],
    setup=NETWORKS,
    seeds={"smoke": 1, "small": 5, "medium": 5, "full": 3},
    data=MNIST,
    reported="CIFAR-10, 6 @ 768 with 3.3 million parameters: 3.41 % error, 2.65 % with cutout (table 1)",
    notes=(
        "`separable` has as many cells, the normal ones one residual separable 3 x 3 convolution (which is two) and "
        "the reductions two, and a width at which parameters agree within 3 % (`parameters`). Same data and schedule "
        "as `transfer`, the same in both arms and not tuned. `full`: CIFAR-100, the network and schedule of the "
        "paper's CIFAR-10 ones."
    ),
    helps=higher("nasnet_a", than="separable", metric="accuracy"),
    timeout=864_000.0,
)
def nasnet_a_cell(trial: Trial, data: ImageData) -> dict[str, float]:
    setup = trial.setup
    data = prepared(trial, data, setup)
    genotype, filters = NASNET_A, setup.filters
    options = {
        "num_classes": data.num_classes, "in_chans": data.channels, "cells_per_stage": setup.cells_per_stage,
    }  # fmt: skip
    if trial.arm == "separable":
        with torch.device("meta"):
            peer = NASNet(NASNET_A, filters=filters, **options)
        target = sum(parameter.numel() for parameter in peer.parameters())
        genotype, filters = PLAIN, matched_filters(PLAIN, target, **options)
    model = trained(trial, data, genotype, filters)
    body = [parameter for name, parameter in model.named_parameters() if not name.startswith("aux_head")]
    return {
        "accuracy": accuracy(model, data.test),
        "parameters": float(sum(parameter.numel() for parameter in body)),
    }


DROPPING = {
    scale: Setup(**{**training.as_dict(), "keep": 0.6})
    for scale, training in (
        ("smoke", QUICK.replace(batch=10)),
        ("small", TRAINING.replace(size=8, train=150, epochs=30)),
        ("medium", TRAINING.replace(train=500, epochs=200)),
        ("full", TRAINING.replace(**WHOLE, **LONG, cells_per_stage=6, filters=32, epochs=600)),
    )
}


@PAPER.claim(
    "Dropping paths more and more often as training goes on makes a network generalise better",
    arms=("none", "constant", "scheduled"),
    expect=[
        higher("scheduled", than="none", metric="accuracy"),
        shown(
            "constant",
            higher("scheduled", than="constant", metric="accuracy"),
            higher("constant", than="none", metric="accuracy"),
        ),
    ],
    setup=DROPPING,
    seeds={"smoke": 1, "small": 3, "medium": 5, "full": 3},
    data={
        "digits250": Source(digits250, scales=("smoke",)),
        "mnist5k": Source(images.mnist5k, scales=("small", "medium")),
        "cifar10": Source(cifar10, scales=("full",)),
    },
    reported=(
        "DropPath at a constant rate does not help NASNets, ScheduledDropPath significantly improves them (section 3; "
        "no table)"
    ),
    notes=(
        "`small` is a look, not a test: 150 images of 8 x 8 pixels, 30 epochs, N = 1, F = 8, where the effect is known "
        "from 600 epochs on CIFAR-10. Paths are kept with probability 0.6 in the last cell at the end, in proportion "
        "to depth as in the official code; `constant` has those probabilities from the start. Schedules and rates are "
        "the same in all arms and not tuned. `train_accuracy` says how far the network has fitted its images."
    ),
    timeout=864_000.0,
)
def scheduled_drop_path(trial: Trial, data: ImageData) -> dict[str, float]:
    setup = trial.setup
    data = prepared(trial, data, setup)
    keep = 1.0 if trial.arm == "none" else setup.keep
    model = trained(
        trial, data, NASNET_A, setup.filters, drop_path_keep=keep, constant_drop_path=trial.arm == "constant"
    )
    return {"accuracy": accuracy(model, data.test), "train_accuracy": accuracy(model, data.train)}
