"""Claims of "Diffusion-based Neural Network Weights Generation"."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from etude.data import characters, images
from etude.data.catalogue import home
from etude.data.kinds import Examples, ImageData
from etude.data.kinds_characters import Characters
from etude.lab import Paper, Setup, Source, Trial, equivalent, higher, shown
from etude.lab.expect import Contrast
from etude.lab.trial import stream_seed
from etude.transfer.d2nwg import (
    HeadGenerator,
    TaskSampler,
    batched_accuracy,
    initial_weights,
    nearest_by_features,
    nearest_by_support,
    outputs_of,
    plot_weights,
    train_networks,
)

__all__ = ["PAPER"]

PAPER = Paper(
    slug="d2nwg",
    domain="transfer",
    title="Diffusion-based Neural Network Weights Generation",
    authors="Soro, Andreis, Lee, Jeong, Chong, Hutter & Hwang",
    year=2025,
    arxiv="2402.18153",
    venue="ICLR 2025",
    code="https://github.com/sorobedio/DNNWG",
    summary="A diffusion model, given a few labelled examples, draws the weights of a network for a new data set.",
    methods=("etude.transfer.d2nwg",),
    usage="""\
import torch
from etude.transfer.d2nwg import HeadGenerator
x, labels = torch.rand(120, 3, 8, 8), torch.arange(12).repeat(10)
generator = HeadGenerator(ways=2, zoo_size=50, vae_steps=5, steps=5).fit(x, labels, only=list(range(10)))
few = (labels >= 10) & (torch.arange(120) < 60)
classifier = generator.adapt(x[few], labels[few])
classifier.score(x[labels >= 10], labels[labels >= 10])
""",
    notes=(
        "The zoo is trained by the claims themselves: thousands of linear heads on frozen features, one optimisation "
        "for all. Without a gradient step the generated heads leave every control behind that does not look at the "
        "data set, but a zoo has cheaper uses: on exploratory seeds the member with the least loss on the support "
        "classifies about as well or better, and so do the nearest class mean and a head trained on the support. They "
        "stand beside the verdicts. Tasks of 5 classes would be under-trained at small, and are what `medium` is for: "
        "20,000 heads and 30,000 steps, some minutes a seed. `full` has the published sizes and features by CLIP (`pip "
        "install transformers`), and expects mini-ImageNet as CLASS/FILE in the data folder. On your own images: "
        "`etude try d2nwg --data FOLDER`, six classes or more; tasks parted by a column: `HeadGenerator.fit(x, labels, "
        "column=...)`."
    ),
    extra="transfer",
)

TRAIN_DRAWERS, VAL_DRAWERS = 13, 15
"""Of twenty people, thirteen draw the zoo's rows and the supports, two validate and five are the queries."""


def as_images(data: Characters) -> ImageData:
    """Blurred, 14 x 14, classes named ALPHABET/NUMBER, split by who drew them."""
    inputs = F.adaptive_avg_pool2d(F.avg_pool2d(data.images, 3, stride=1, padding=1), 14)
    masks = (
        data.drawers < TRAIN_DRAWERS,
        (data.drawers >= TRAIN_DRAWERS) & (data.drawers < VAL_DRAWERS),
        data.drawers >= VAL_DRAWERS,
    )
    train, val, test = (Examples(inputs[mask], data.characters[mask]) for mask in masks)
    alphabets = [data.alphabet_names[index] for index in data.alphabets.tolist()]
    classes = tuple(f"{alphabet}/{number}" for number, alphabet in enumerate(alphabets))
    return ImageData(train, val, test, classes, data.name)


@lru_cache(maxsize=1)
def strokes() -> ImageData:
    """Generated alphabets of three to five strokes among four anchors, which are hard to tell apart."""
    return as_images(characters.strokes(strokes=(3, 5), anchors=4))


@lru_cache(maxsize=1)
def omniglot() -> ImageData:
    return as_images(characters.omniglot(28))


def mini_imagenet() -> ImageData:
    folder = home() / "miniimagenet"
    if not folder.is_dir():
        raise FileNotFoundError(f"mini-ImageNet is not here: place its images as CLASS/FILE into {folder}")
    return images.image_folder(folder, size=84)


@lru_cache(maxsize=1)
def few_strokes() -> ImageData:
    return as_images(characters.strokes(4, 8, 20, 14))


STROKES = {
    "few_strokes": Source(few_strokes, scales=("smoke",)),
    "strokes": Source(strokes, scales=("small", "medium")),
}
FULL_DATA = {"miniimagenet": Source(mini_imagenet, scales=("full",))}
DATA = STROKES | FULL_DATA
BOTH = STROKES | {"omniglot": Source(omniglot, scales=("small", "medium"))} | FULL_DATA

SMALL = Setup(
    ways=2, shots=5, dim=20, features="principal", unseen=0.25, tasks=200, zoo=4000, zoo_steps=40, arch="compact",
    latent_dim=24, vae_steps=700, vae_lr=2e-3, steps=1200, batch=32, noise_draws=4, lr=2e-3, warmup=0, ema=0.0,
    align_steps=600, align_lr=1e-3, sample_steps=64, start_steps=20, trained_steps=40,
)  # fmt: skip
SMOKE = SMALL.replace(tasks=6, zoo=30, zoo_steps=2, vae_steps=2, steps=2, align_steps=2, sample_steps=2,
                      start_steps=5, trained_steps=2)  # fmt: skip
MEDIUM = SMALL.replace(
    ways=5, zoo=20_000, latent_dim=96, vae_steps=10_000, vae_lr=1e-3, steps=30_000, batch=64, lr=1e-3,
    align_steps=3_000,
)  # fmt: skip
FULL = SMALL.replace(
    ways=5, dim=512, features="clip", unseen=0.2, tasks=600, zoo=50_000, zoo_steps=200, arch="published",
    vae_steps=100_000, vae_lr=1.115e-3, steps=200_000, batch=64, noise_draws=1, lr=1.133e-4, warmup=10_000, ema=0.9999,
    align_steps=20_000,
)  # fmt: skip
COMMON: dict[str, Any] = {
    "setup": {"smoke": SMOKE, "small": SMALL, "medium": MEDIUM, "full": FULL},
    "seeds": {"smoke": 1, "small": 6, "medium": 5, "full": 3},
    "timeout": 86_400,
}
FIVE = COMMON | {"seeds": COMMON["seeds"] | {"small": 5}}
"""For claims that train systems of their own."""


def clip_features(inputs: Tensor) -> Tensor:
    """The projected image embedding of CLIP ViT-B/32, 512 numbers, at length root 512."""
    try:
        from transformers import CLIPVisionModelWithProjection
    except ImportError as error:
        raise ImportError("features by CLIP need transformers: pip install transformers") from error
    model = CLIPVisionModelWithProjection.from_pretrained("openai/clip-vit-base-patch32").eval()
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    found = []
    with torch.no_grad():
        for batch in inputs.expand(-1, 3, -1, -1).split(256):
            sized = F.interpolate(batch, size=(224, 224), mode="bicubic", align_corners=False, antialias=True)
            found.append(F.normalize(model(pixel_values=(sized - mean) / std).image_embeds, dim=1))
    return torch.cat(found) * found[0].shape[1] ** 0.5


def _examples(split: Any) -> Examples:
    if not isinstance(split, Examples):
        raise TypeError(f"the zoo needs images in memory, got {type(split).__name__}")
    return split


def parted(data: ImageData, setup: Setup, seed: int) -> tuple[list[int], list[int]]:
    """Classes of the zoo and unseen ones; alphabets stay together."""
    grouped = all("/" in name for name in data.classes)
    names = [name.partition("/")[0] if grouped else name for name in data.classes]
    groups = list(dict.fromkeys(names))
    if len(data.classes) < 2 * setup.ways + 2:
        raise ValueError(
            f"a zoo and unseen tasks of {setup.ways} classes take {2 * setup.ways + 2} classes or more, "
            f"got {len(data.classes)}"
        )
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed)).tolist()
    unseen: list[int] = []
    for count, index in enumerate(order):
        if count >= setup.unseen * len(groups) and len(unseen) >= setup.ways:
            break
        unseen += [label for label, name in enumerate(names) if name == groups[index]]
    return [label for label in range(len(names)) if label not in set(unseen)], unseen


@lru_cache(maxsize=64)  # three stages of each seed and data set, which later claims take up again
def system(
    data: ImageData, setup: Setup, seed: int, device: str, stage: str, class_order: str, align: bool, train: bool
) -> HeadGenerator:
    """The system of a seed up to a stage, "zoo", "vae" or "all"; arms and claims share it."""
    if stage == "zoo":
        rows, seen = _examples(data.train), parted(data, setup, seed)[0]
        made = HeadGenerator(
            setup.ways, dim=setup.dim, features=clip_features if setup.features == "clip" else None, shots=setup.shots,
            zoo_size=setup.zoo, zoo_shots=15, zoo_steps=setup.zoo_steps, latent_dim=setup.latent_dim,
            vae_steps=setup.vae_steps, vae_lr=setup.vae_lr, steps=setup.steps, batch_size=setup.batch,
            noise_draws=setup.noise_draws, lr=setup.lr, warmup=setup.warmup, ema_decay=setup.ema or None,
            sample_steps=setup.sample_steps, align_lr=setup.align_lr, arch=setup.arch, seed=seed, device=device,
        )  # fmt: skip
        return made.make_zoo(rows.inputs, rows.targets, only=seen)
    before = system(data, setup, seed, device, {"vae": "zoo", "all": "vae"}[stage], "position", False, True)
    made = before.branch(class_order=class_order, align_steps=setup.align_steps if align else 0, train_encoder=train)
    return made.fit_vae() if stage == "vae" else made.fit_diffusion()


class Bench:
    """What the arms of a seed have in common: the system, and tasks of unseen and of seen classes."""

    def __init__(self, trial: Trial, data: ImageData):
        self.trial, self.data, self.setup = trial, data, trial.setup
        # One system for a seed, whatever the claim: the claims look at it from several sides.
        self.seed = stream_seed(f"d2nwg@{data.name}", trial.seed, "system")
        self.zoo = self.system("zoo")
        rows, queries = _examples(data.train), _examples(data.val if trial.tuning else data.test)
        counts = torch.bincount(queries.targets, minlength=len(data.classes))
        self.supports: dict[str, Tensor] = {}
        self.queries: dict[str, Tensor] = {}
        assert self.zoo.features is not None
        for name, classes in zip(("seen", "unseen"), parted(data, self.setup, self.seed)):
            generator = trial.generator(f"tasks_{name}")
            support, query = (TaskSampler(part.targets, self.setup.ways, only=classes) for part in (rows, queries))
            tasks = support.draw(self.setup.tasks, generator)
            shots = min(self.setup.shots, int(support.counts.min()))
            chosen = support.rows(tasks, shots, generator)
            asked = query.rows(tasks, min(15, int(counts[classes].min())), generator)
            self.supports[name] = _features(self.zoo, rows.inputs, chosen)
            self.queries[name] = _features(self.zoo, queries.inputs, asked)

    def system(self, stage: str, *, order: str = "position", align: bool = False, train: bool = True) -> HeadGenerator:
        return system(self.data, self.setup, self.seed, self.trial.device, stage, order, align, train)

    def drawn(self, made: HeadGenerator, part: str, *, shuffled: bool = False) -> Tensor:
        """Generated heads; shuffled: each for another task than its own."""
        support = self.supports[part]
        return made.vectors_for(
            support.roll(1, dims=0) if shuffled else support, generator=self.trial.generator(f"method_{part}")
        )

    def control(self, arm: str, part: str) -> Tensor:
        """Heads of an arm that needs no generator."""
        made, support = self.zoo, self.supports[part]
        vectors, count = made.zoo.vectors, len(support)
        if arm == "zoo_mean":
            return made.zoo.mean.expand(count, -1)
        if arm == "zoo_member":
            return vectors[torch.randint(len(vectors), (count,), generator=self.trial.generator(f"member_{part}"))]
        if arm == "random_init":
            generator = self.trial.generator(f"init_{part}")
            return initial_weights(made.head, made.codec, count, kind="random", generator=generator)
        if arm == "nearest_zoo":
            return vectors[nearest_by_support(made.head, made.codec, vectors, support)]
        if arm == "nearest_set":
            return vectors[nearest_by_features(made.class_means, support)]
        if arm == "zero_init":
            return torch.zeros(count, made.codec.num_params)
        raise ValueError(f"there is no control {arm!r}")

    def accuracy(self, vectors: Tensor, part: str) -> float:
        made, query = self.zoo, self.queries[part]
        targets = outputs_of(query.shape[1], query.shape[2]).expand(len(query), -1)
        return batched_accuracy(made.head, made.codec, vectors, query.flatten(1, 2), targets).mean().item()

    def trained(self, start: Tensor, part: str, steps: int, lr: float, at: Any = None) -> Tensor:
        """Heads after Adam steps on the support, with the penalty of the zoo."""
        made, support = self.zoo, self.supports[part]
        targets = outputs_of(support.shape[1], support.shape[2]).expand(len(support), -1)
        return train_networks(
            made.head, made.codec, start, support.flatten(1, 2), targets, steps=steps, lr=lr, l2=made.zoo_l2, at=at
        )

    def nearest_class_mean(self, part: str) -> float:
        query = self.queries[part]
        distances = torch.cdist(query.flatten(1, 2), self.supports[part].mean(dim=2))
        return (distances.argmin(dim=-1) == outputs_of(*query.shape[1:3])).float().mean().item()


def _features(made: HeadGenerator, inputs: Tensor, rows: Tensor) -> Tensor:
    assert made.features is not None
    used, place = rows.unique(return_inverse=True)
    return made.features(inputs[used]).detach()[place]


def judged(bench: Bench, heads: Callable[[str], Tensor]) -> dict[str, float]:
    if bench.trial.tuning:
        return {"val_accuracy": bench.accuracy(heads("unseen"), "unseen")}
    return {
        "accuracy": bench.accuracy(heads("unseen"), "unseen"),
        "seen_accuracy": bench.accuracy(heads("seen"), "seen"),
    }


def over(arm: str, *others: str, metric: str = "accuracy") -> list[Contrast]:
    return [higher(arm, than=other, metric=metric) for other in others]


CONTROLS = ("shuffled", "zoo_mean", "zoo_member", "random_init")
"""Heads that do not look at the data set, or look at another's."""
CHEAP = ("nearest_zoo", "nearest_set", "trained", "nearest_class_mean")
"""What serves without a generator."""


@PAPER.claim(
    "Weights generated for tasks of unseen classes beat, without any training, weights that do not know the task",
    arms=("generated", *CONTROLS[1:], *CHEAP, "shuffled"),
    expect=[
        *over("generated", *CONTROLS),
        shown(*CHEAP, *over("generated", *CHEAP), *over("generated", *CONTROLS, metric="seen_accuracy")),
    ],
    data=BOTH,
    tune={"lr": {"trained": [0.003, 0.01, 0.03, 0.1, 0.3]}},
    tune_by="val_accuracy",
    untuned=("generated", *CONTROLS, *CHEAP[:2], "nearest_class_mean"),
    reported="few-shot: 6 % above the compared meta-learners on new domains (abstract)",
    notes=(
        "Two of eight alphabets are unseen; features are principal components of the other six alone. `shuffled` is "
        "generated for the support of another task. `nearest_zoo` is the member of the zoo with the least loss on the "
        "support, `nearest_set` the one whose class means are nearest, `trained` a head trained on the support from "
        "zero, `nearest_class_mean` no head at all: the lines that a generator would have to beat to be of use here. "
        "No arm sees a query. 13 people's drawings make the zoo and the supports of 5, those of 5 others are the "
        "queries. One system a seed serves all claims. The figure shows heads on two components of the zoo."
    ),
    helps=higher("generated", than="trained", metric="accuracy"),
    helps_tables=True,
    **COMMON,
)
def conditional_generation_transfers(trial: Trial, data: ImageData) -> dict[str, float]:
    bench = Bench(trial, data)
    if trial.arm == "nearest_class_mean":
        parts = ("unseen", "seen")
        return dict(zip(("accuracy", "seen_accuracy"), (bench.nearest_class_mean(part) for part in parts)))
    if trial.arm == "trained":
        lr = trial.tuned.lr or 0.05  # smoke tunes nothing
        steps = trial.setup.trained_steps
        return judged(bench, lambda part: bench.trained(bench.control("zero_init", part), part, steps, lr))
    if trial.arm not in ("generated", "shuffled"):
        return judged(bench, lambda part: bench.control(trial.arm, part))
    made = bench.system("all")
    if trial.arm == "generated" and not trial.tuning:
        losses = made.losses["diffusion"]
        for start in range(0, len(losses), 50):
            trial.log(start, diffusion_loss=sum(losses[start : start + 50]) / len(losses[start : start + 50]))
        if trial.seed == 0 and trial.scale != "smoke":
            trained = bench.trained(bench.control("zero_init", "unseen"), "unseen", trial.setup.trained_steps, 0.05)
            heads = made.vectors_for(bench.supports["unseen"], generator=trial.generator("figure"))
            trial.figure("weights", plot_weights(made.zoo.vectors, heads, trained))
    return judged(bench, lambda part: bench.drawn(made, part, shuffled=trial.arm == "shuffled"))


STARTS = ("generated", "random_init", "zero_init", "zoo_mean", "zoo_member", "nearest_zoo", "shuffled")


@PAPER.claim(
    "Generated weights are a better start than a random initialisation: after 1 and after 5 steps on the support",
    arms=STARTS,
    expect=[
        higher("generated", than="random_init", metric="accuracy_1"),
        higher("generated", than="random_init", metric="accuracy_5"),
        shown(
            *STARTS[2:],
            *(higher("generated", than=start, metric=f"accuracy_{step}") for start in STARTS[2:] for step in (1, 5)),
            higher("generated", than="random_init", metric="accuracy_20"),
            *(higher("generated", than="random_init", metric=f"fixed_{step}") for step in (1, 5)),
        ),
    ],
    data=DATA,
    tune={"lr": [0.02, 0.06, 0.2, 0.6, 2.0]},
    tune_by="val_accuracy",
    reported="generated weights are offered as initialisation, too; no figure at hand",
    notes=(
        "Every start picks its rate by the mean validation accuracy after 1 and 5 steps; with 0.02 for all, a random "
        "start would lag because it is slow to leave its own weights behind (`fixed_1`, `fixed_5`). Accuracy on "
        "queries of unseen classes, over the steps in the curve. `zero_init` is where the zoo itself started."
    ),
    **COMMON,
)
def better_start(trial: Trial, data: ImageData) -> dict[str, float]:
    bench = Bench(trial, data)
    if trial.arm in ("generated", "shuffled"):
        start = bench.drawn(bench.system("all"), "unseen", shuffled=trial.arm == "shuffled")
    else:
        start = bench.control(trial.arm, "unseen")
    shown_at = [step for step in (0, 1, 2, 3, 5, 10, 20) if step <= trial.setup.start_steps]
    reached = _few_steps(bench, start, trial.tuned.lr or FIXED_LR, shown_at)
    if trial.tuning:
        return {"val_accuracy": (reached[1] + reached[5]) / 2}
    for step, value in reached.items():
        trial.log(step, accuracy=value)
    fixed = _few_steps(bench, start, FIXED_LR, [1, 5])
    metrics = {f"accuracy_{step}": reached[min(step, shown_at[-1])] for step in (0, 1, 5, 20)}
    return metrics | {f"fixed_{step}": value for step, value in fixed.items()}


FIXED_LR = 0.02


def _few_steps(bench: Bench, start: Tensor, lr: float, at: list[int]) -> dict[int, float]:
    """Accuracy on unseen tasks after so many steps from a start."""
    reached: dict[int, float] = {}

    def look(step: int) -> Callable[[Tensor], None]:
        return lambda weights: reached.update({step: bench.accuracy(weights, "unseen")})

    bench.trained(start, "unseen", at[-1], lr, at={step: look(step) for step in at})
    return reached


@PAPER.claim(
    "A condition that does not see the order of the classes generates at chance: outputs must be told apart",
    arms=("position", "none", "none_shuffled", *CONTROLS),
    expect=[
        equivalent("none", to="none_shuffled", metric="accuracy", margin=0.1, control="position"),
        higher("position", than="none", metric="accuracy"),
        shown(*CONTROLS, *over("position", *CONTROLS), *over("position", "none", metric="seen_accuracy")),
    ],
    data=DATA,
    reported="the published encoder is that without positions; its data sets have one fixed order of labels each",
    notes=(
        "`none` is the published data-set encoder, whose condition is the same for both orders of two classes; "
        "`position` adds a learned vector for each output. Label orders are random, in the zoo and at test."
    ),
    **FIVE,
)
def order(trial: Trial, data: ImageData) -> dict[str, float]:
    bench = Bench(trial, data)
    if trial.arm in CONTROLS[1:]:
        return judged(bench, lambda part: bench.control(trial.arm, part))
    made = bench.system("all", order="none" if trial.arm.startswith("none") else "position")
    return judged(bench, lambda part: bench.drawn(made, part, shuffled=trial.arm.endswith("shuffled")))


@PAPER.claim(
    "Heads that have gone through the autoencoder classify their own tasks as well as the originals",
    arms=("original", "reconstructed", *CONTROLS),
    expect=[
        equivalent("reconstructed", to="original", metric="accuracy", margin=0.02, control="zoo_mean"),
        shown(*CONTROLS),
    ],
    data=DATA,
    reported="the accuracy of reconstructed networks, not their error, is what the authors watch (README of the code)",
    notes=(
        "The zoo's first heads, on drawings of their own classes by people of the test split. `error` is the mean "
        "squared error in units of the zoo's variance. `shuffled` is the reconstruction of another head, "
        "`zoo_member` another head itself."
    ),
    **COMMON,
)
def vae_functional(trial: Trial, data: ImageData) -> dict[str, float]:
    bench = Bench(trial, data)
    made = bench.zoo
    count = min(300, len(made.zoo))
    queries = _examples(data.test)
    sampler = TaskSampler(queries.targets, trial.setup.ways, only=made.sampler.classes)
    shots = min(15, int(sampler.counts.min()))
    asked = sampler.rows(made.tasks[:count], shots, trial.generator("queries"))
    query = _features(made, queries.inputs, asked)
    own = made.zoo.vectors[:count]
    if trial.arm in ("reconstructed", "shuffled"):
        vectors = bench.system("vae").model.reconstruct(own).cpu()
        vectors = vectors.roll(1, dims=0) if trial.arm == "shuffled" else vectors
    elif trial.arm == "original":
        vectors = own
    elif trial.arm == "random_init":
        vectors = initial_weights(made.head, made.codec, count, kind="random", generator=trial.generator("init"))
    else:
        vectors = made.zoo.mean.expand(count, -1) if trial.arm == "zoo_mean" else own.roll(1, dims=0)
    targets = outputs_of(trial.setup.ways, shots).expand(count, -1)
    accuracy = batched_accuracy(made.head, made.codec, vectors, query.flatten(1, 2), targets).mean().item()
    return {"accuracy": accuracy, "error": ((vectors - own) / made.zoo.scale).square().mean().item()}


ENCODERS: dict[str, dict[str, Any]] = {
    "joint": {}, "aligned_joint": {"align": True}, "aligned": {"align": True, "train": False},
    "frozen": {"train": False},
}  # fmt: skip


@PAPER.claim(
    "Contrastive alignment makes a data-set encoder that generates better than an encoder that was never trained",
    arms=(*ENCODERS, *CONTROLS),
    expect=[
        higher("aligned", than="frozen", metric="accuracy"),
        shown(
            "aligned_joint", *CONTROLS,
            *over("joint", "aligned", "aligned_joint", "frozen"),
            *over("aligned_joint", "aligned"),
            *over("aligned", *CONTROLS),
        ),
    ],
    data=DATA,
    reported="alignment is a stage of its own, before the diffusion (section 3); no ablation at hand",
    notes=(
        "`aligned` freezes the encoder after the alignment, as published; `aligned_joint` trains it further with the "
        "diffusion, `joint` only with the diffusion, `frozen` never. Same steps of diffusion in all; alignment comes "
        "on top. `shuffled` is the condition of another task in `aligned`."
    ),
    **FIVE,
)  # fmt: skip
def ablate_alignment(trial: Trial, data: ImageData) -> dict[str, float]:
    bench = Bench(trial, data)
    if trial.arm in CONTROLS[1:]:
        return judged(bench, lambda part: bench.control(trial.arm, part))
    made = bench.system("all", **ENCODERS["aligned" if trial.arm == "shuffled" else trial.arm])
    return judged(bench, lambda part: bench.drawn(made, part, shuffled=trial.arm == "shuffled"))
