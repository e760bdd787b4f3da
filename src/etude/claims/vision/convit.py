"""Claims of "ConViT: Improving Vision Transformers with Soft Convolutional Inductive Biases"."""

import warnings
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from etude.data import images
from etude.data.augmentation import crop_and_flip
from etude.data.kinds import Examples, ImageData
from etude.lab import Paper, Setup, Source, Trial, higher, interaction, shown, threshold
from etude.loop import accuracy, cosine_schedule, fit
from etude.nn.transformer import SelfAttention
from etude.vision.convit import (
    RECIPE,
    ConViT,
    DeiTAugmentation,
    GatedPositionalSelfAttention,
    attention_maps,
    choose_patch_size,
    locality_profile,
    pad_to_patches,
    plot_attention,
    plot_locality,
    weight_decay_groups,
)

__all__ = ["PAPER"]

PAPER = Paper(
    slug="convit",
    domain="vision",
    title="ConViT: Improving Vision Transformers with Soft Convolutional Inductive Biases",
    authors="d'Ascoli, Touvron, Leavitt, Morcos, Biroli & Sagun",
    year=2021,
    venue="ICML",
    arxiv="2103.10697",
    code="https://github.com/facebookresearch/convit",
    summary="Gated positional self-attention lets a vision transformer start like a convolutional network.",
    methods=("etude.vision.convit",),
    usage="""\
import torch
from etude.vision.convit import ConViT, GatedPositionalSelfAttention, locality_profile
layer = GatedPositionalSelfAttention(dim=36, num_heads=9)
assert layer(torch.randn(2, 196, 36)).shape == (2, 196, 36)
model = ConViT(img_size=32, patch_size=4, num_classes=10, dim=36, depth=4, num_heads=9, local_up_to_layer=3)
print(locality_profile(model, torch.randn(2, 3, 32, 32)).gates)
""",
    notes=(
        "On a user's own images: `ConViTClassifier(epochs=50).fit(images, labels)`. `small` decides the headline, "
        "sample efficiency, on 200 digits, and shows the gap between the models at 200 and 1,000. That the gap shrinks "
        "with data, and that gates leave locality, takes longer training on more images: `medium`, CIFAR-10 at 5 to "
        "100 % on one GPU, or ImageNet at `full`. The positional map is applied as a product of one map along rows and "
        "one along columns, which it equals exactly for any learned weights. Figures of the paper and of its README "
        "were quoted from memory, except the top-1 of the repository's ConViT-Ti, 73.1 %."
    ),
    extra="run",
)

_PLAIN = ("vit", "vit_identity_v", "vit_xavier", "vit_more")


def _imagenet() -> ImageData:
    return images.hub("ILSVRC/imagenet-1k", size=224, channels=3)


def _drawn(split: Examples | Dataset, n: float | int, generator: torch.Generator) -> Any:
    """`n` examples of a split, or that fraction of it if n is a float up to 1; all of them if there are no more."""
    total = len(split)  # type: ignore[arg-type]
    count = max(round(n * total), 1) if isinstance(n, float) else n
    if count >= total:
        return split
    if isinstance(split, Examples):
        return split.take(count, generator)
    return Subset(split, torch.randperm(total, generator=generator)[:count].tolist())


class _Fitted(nn.Module):
    """A model that takes images in [0, 1]: centres and scales them, and pads them to whole patches."""

    def __init__(self, model: ConViT, mean: Tensor, std: Tensor):
        super().__init__()
        self.model = model
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", mean.view(1, -1, 1, 1))
        self.register_buffer("std", std.view(1, -1, 1, 1))

    def fitted(self, x: Tensor) -> Tensor:
        return pad_to_patches((x - self.mean) / self.std, self.model.patch_embed.patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(self.fitted(x))


def _statistics(train: Any) -> tuple[Tensor, Tensor]:
    """Mean and deviation of every channel; those of ImageNet for images that are not in memory."""
    if not isinstance(train, Examples):
        return torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    std, mean = torch.std_mean(train.inputs, dim=(0, 2, 3), correction=0)
    return mean, torch.where(std > 0, std, torch.ones_like(std))


def _network(trial: Trial, data: ImageData, plain: bool, local_init: bool = True) -> ConViT:
    """A network for images of any size; both kinds draw patches and positions alike."""
    s = trial.setup
    patch = choose_patch_size(*data.size, smallest=s.patch, most_tokens=s.most_tokens)
    height, width = (-(-side // patch) * patch for side in data.size)
    with trial.stream("init"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # heads that are no square: the published tiny has four
        return ConViT(
            img_size=(height, width), patch_size=patch, in_chans=data.channels, num_classes=data.num_classes,
            dim=s.dim, depth=s.depth, num_heads=s.heads, local_up_to_layer=0 if plain else s.gated,
            local_init=local_init, drop_path_rate=s.drop_path,
        )  # fmt: skip


@torch.no_grad()
def _start_otherwise(model: ConViT, arm: str) -> None:
    """The starts of the controls: identity values or Xavier weights in a plain ViT, random values in a ConViT."""
    for module in model.blocks.modules():
        if arm == "vit_identity_v" and isinstance(module, SelfAttention):
            nn.init.eye_(module.qkv.weight[-module.proj.in_features :])
        elif arm == "random_v" and isinstance(module, GatedPositionalSelfAttention):
            nn.init.trunc_normal_(module.v.weight, std=0.02)
        elif arm == "vit_xavier" and isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)


def _train(trial: Trial, data: ImageData, network: _Fitted, train: Any) -> float:
    """Trains as published; the gates are logged as they move. The mean loss of the last updates."""
    s, model = trial.setup, network.model
    optimizer = torch.optim.AdamW(weight_decay_groups(model, s.weight_decay), lr=trial.tuned.lr)
    transform: Any = None
    if s.augment == "deit":
        transform = DeiTAugmentation(
            data.num_classes, mean=(0.0,), std=(1.0,), generator=trial.generator("augment")
        )  # the network scales
    elif s.augment == "crops":
        transform = partial(_crops, generator=trial.generator("augment"))

    def log(step: int, total: int, loss: float, lr: float) -> None:
        trial.log(step, loss=loss)
        for layer, gate in enumerate(model.gates().mean(dim=1).tolist(), start=1):
            trial.log(step, **{f"gate_layer_{layer}": gate})
        trial.progress(step, total, loss=loss)

    with trial.stream("dropout"):
        losses = fit(
            network, train, optimizer, loss=nn.CrossEntropyLoss(label_smoothing=s.label_smoothing), steps=s.steps,
            batch_size=s.batch_size, clip=1.0, generator=trial.generator("order"), transform=transform,
            schedule=cosine_schedule(optimizer, s.steps, warmup=s.warmup), callbacks=[log],
            every=max(s.steps // 40, 1), mixed_precision=s.mixed_precision, num_workers=s.num_workers,
        ).losses  # fmt: skip
    return fmean(losses[-10:])


def _crops(batch: tuple[Tensor, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return crop_and_flip(batch[0], 4, generator), batch[1]


def _locality(trial: Trial, data: ImageData, network: _Fitted) -> dict[str, float]:
    """How gates and distances of a gated network stand after training, on validation images; and two pictures."""
    count = min(trial.setup.looked_at, len(data.val))  # type: ignore[arg-type]
    x = network.fitted(torch.stack([data.val[index][0] for index in range(count)]).to(trial.device))
    profile = locality_profile(network.model, x)
    gates, distances = profile.gates.mean(dim=1), profile.non_locality[: len(profile.gates)].mean(dim=1)
    if trial.seed == 0 and trial.arm == "convit":
        trial.figure("locality", plot_locality(profile))
        maps = [weights[0] for weights in attention_maps(network.model, x[:1])]
        trial.figure("attention", plot_attention(maps, network.model.grid_size, layers=[0, len(gates) - 1]))
    return {
        "gate_first": float(gates[0]),
        "gate_last": float(gates[-1]),
        "gate_drop": float(gates[0] - gates[-1]),
        "distance_first": float(distances[0]),
        "distance_last": float(distances[-1]),
        "distance_rise": float(distances[-1] - distances[0]),
    }


def _run(
    trial: Trial, data: ImageData, *, plain: bool, train: float | int, local_init: bool = True
) -> dict[str, float]:
    model = _network(trial, data, plain, local_init)
    with trial.stream("method"):
        _start_otherwise(model, trial.arm)
    examples = _drawn(data.train, train, trial.generator("data"))
    network = _Fitted(model, *_statistics(examples)).to(trial.device)
    loss = _train(trial, data, network, examples)
    found = {
        "val_accuracy": accuracy(network, data.val),
        "train_loss": loss,
        "parameters": float(sum(parameter.numel() for parameter in model.parameters())),
    }
    if not trial.tuning:
        found["accuracy"] = accuracy(network, data.test)
        if not plain:
            found |= _locality(trial, data, network)
    return found


_DIGITS = {
    "patch": 2, "most_tokens": 64, "dim": 36, "depth": 4, "gated": 3, "heads": 9, "drop_path": 0.0, "augment": "none",
    "weight_decay": 0.05, "label_smoothing": 0.0, "batch_size": 50, "mixed_precision": "no", "num_workers": 0,
    "looked_at": 100,
}  # fmt: skip
_CIFAR = _DIGITS | {
    "patch": 4, "dim": 144, "depth": 6, "gated": 5, "augment": "crops", "batch_size": 128, "steps": 8_000,
    "warmup": 800, "mixed_precision": "bf16", "looked_at": 500,
}  # fmt: skip
_UPDATES = RECIPE["epochs"] * 1_281_167 // RECIPE["batch_size"]
_IMAGENET = _DIGITS | {
    "patch": 16, "most_tokens": 196, "dim": 432, "depth": 12, "gated": 10, "drop_path": RECIPE["drop_path"],
    "augment": "deit", "label_smoothing": RECIPE["label_smoothing"], "batch_size": RECIPE["batch_size"],
    "steps": int(_UPDATES), "warmup": int(_UPDATES * RECIPE["warmup_epochs"] / RECIPE["epochs"]),
    "mixed_precision": "bf16", "num_workers": 8, "looked_at": 1000,
}  # fmt: skip
_DATA = {
    "digits": Source(images.digits, scales=("smoke", "small")),
    "cifar10": Source(images.cifar10_jpeg, scales=("medium",)),
    "imagenet": Source(_imagenet, scales=("full",)),
}
_LATER_DATA = _DATA | {"digits": Source(images.digits, scales=("smoke",))}


@PAPER.claim(
    "With few training images a ConViT is more accurate than the same ViT without gated positional attention",
    arms=("vit", "convit", "no_local_init", "random_v", "vit_identity_v", "vit_xavier", "vit_more", "convit_more"),
    expect=[
        higher("convit", than="vit", metric="accuracy"),
        shown(
            "no_local_init",
            "random_v",
            "vit_identity_v",
            "vit_xavier",
            higher("convit", than="no_local_init", metric="accuracy"),
            higher("convit", than="random_v", metric="accuracy"),
            higher("convit", than="vit_identity_v", metric="accuracy"),
            higher("convit", than="vit_xavier", metric="accuracy"),
            higher("convit_more", than="vit_more", metric="accuracy"),
            interaction(("convit", "vit"), minus=("convit_more", "vit_more"), metric="accuracy"),
            threshold("convit", metric="gate_drop", above=0.0),
            threshold("convit", metric="distance_rise", above=0.0),
        ),
    ],
    setup={
        "smoke": Setup(**_DIGITS | {"looked_at": 10}, train=40, more=60, steps=3, warmup=1),
        "small": Setup(**_DIGITS, train=200, more=1_000, steps=600, warmup=60),
        "medium": Setup(**_CIFAR, train=0.1, more=1.0),
        "full": Setup(**_IMAGENET, train=0.1, more=1.0),
    },
    data=_DATA,
    tune={"lr": [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2]},
    tune_by="val_accuracy",
    tuned_like={
        "no_local_init": "convit",
        "random_v": "convit",
        "convit_more": "convit",
        "vit_identity_v": "vit",
        "vit_xavier": "vit",
        "vit_more": "vit",
    },
    seeds={"smoke": 1, "small": 5, "medium": 3, "full": 3},
    timeout=3600,
    reported="ImageNet, ConViT-S beside DeiT-S: 10 % of the images 59.6 and 48.0 %, all of them 81.4 and 79.9 %",
    notes=(
        "200 images (`more`: 1,000) are drawn per seed, the 597 test images are always the same, and the rate of "
        "either model is chosen on 200 further ones. All arms take equally many updates, 150 epochs of the 200 images: "
        "both models fit them. An untuned ViT would lose by twenty points. Controls take the rate of their kind: "
        "`no_local_init` has gates but no place in a window, `random_v` the local start without identity values, "
        "`vit_identity_v` and `vit_xavier` are ViTs with identity values and with Xavier weights: they tell what of "
        "the start it is; a ViT that starts with Xavier weights ties with ConViT here. The last two arms show the gap "
        "at 1,000 images, where it says little after so short a training; so do the gates, which hardly move in 600 "
        "updates. Both are judged at `medium` and `full`, by `gap_shrinks` and `locality_escapes`. `full` follows "
        "DeiT's recipe without repeated augmentation, and its rate falls to zero instead of 1e-5."
    ),
    helps=higher("convit", than="vit", metric="accuracy"),
)
def sample_efficiency(trial: Trial, data: ImageData) -> dict[str, float]:
    s = trial.setup
    return _run(
        trial, data, plain=trial.arm in _PLAIN, train=s.more if trial.arm.endswith("_more") else s.train,
        local_init=trial.arm != "no_local_init",
    )  # fmt: skip


_FRACTIONS = (5, 10, 30, 50, 100)


@PAPER.claim(
    "The lead of ConViT over ViT holds at every fraction of the data and shrinks as the data grow",
    arms=tuple(f"{kind}_{percent}" for percent in _FRACTIONS for kind in ("vit", "convit")),
    expect=[
        *(higher(f"convit_{percent}", than=f"vit_{percent}", metric="accuracy") for percent in _FRACTIONS),
        interaction(("convit_10", "vit_10"), minus=("convit_100", "vit_100"), metric="accuracy"),
        shown(
            interaction(("convit_10", "vit_10"), minus=("convit_100", "vit_100"), metric="accuracy", transform="log")
        ),
    ],
    setup={
        "smoke": Setup(**_DIGITS | {"looked_at": 10}, steps=2, warmup=1),
        "medium": Setup(**_CIFAR),
        "full": Setup(**_IMAGENET),
    },
    data=_LATER_DATA,
    tune={"lr": [5e-4, 1e-3, 2e-3, 4e-3]},
    tune_by="val_accuracy",
    tuned_like={
        f"{kind}_{percent}": f"{kind}_{10 if percent < 30 else 100}"
        for percent in _FRACTIONS
        if percent not in (10, 100)
        for kind in ("vit", "convit")
    },
    seeds={"smoke": 1, "medium": 3, "full": 3},
    timeout=3600,
    reported=(
        "ImageNet, DeiT-S and ConViT-S at 5 / 10 / 30 / 50 / 100 %: 34.8 / 48.0 / 66.1 / 74.6 / 79.9 and "
        "47.8 / 59.6 / 73.7 / 78.2 / 81.4 %"
    ),
    notes=(
        "Every fraction takes equally many updates. The rate of either model is chosen at 10 and at 100 %; 5 % takes "
        "the choice at 10, 30 and 50 % that at 100. The contrast shown on a logarithmic scale is the relative lead, "
        "the paper's measure. At `medium` the images are re-encoded CIFAR-10, 500 to 10,000 of them, and about an hour "
        "and a half of one GPU should decide; `small` has digits only, and shows the two ends in `sample_efficiency`."
    ),
)
def gap_shrinks(trial: Trial, data: ImageData) -> dict[str, float]:
    kind, percent = trial.arm.split("_")
    return _run(trial, data, plain=kind == "vit", train=int(percent) / 100)


@PAPER.claim(
    "After long training the gates of the last gated layer have left locality further than those of the first",
    arms=("convit", "no_local_init"),
    expect=[
        threshold("convit", metric="gate_drop", above=0.0),
        threshold("convit", metric="distance_rise", above=0.0),
        shown(
            "no_local_init",
            threshold("no_local_init", metric="gate_drop", above=0.0),
            threshold("no_local_init", metric="distance_rise", above=0.0),
        ),
    ],
    setup={
        "smoke": Setup(**_DIGITS | {"looked_at": 10}, train=40, steps=3, warmup=1),
        "medium": Setup(**_CIFAR, train=1.0),
        "full": Setup(**_IMAGENET, train=1.0),
    },
    data=_LATER_DATA,
    tune={"lr": [5e-4, 1e-3, 2e-3, 4e-3]},
    tune_by="val_accuracy",
    tuned_like={"no_local_init": "convit"},
    seeds={"smoke": 1, "medium": 3, "full": 3},
    timeout=3600,
    reported="ImageNet, ConViT-S after 300 epochs: early layers stay local, later gated layers turn to content",
    notes=(
        "Means over heads and 500 validation images; the differences are taken within a seed, last gated layer against "
        "the first. `no_local_init` tells whether the gates go there without a local start. `sample_efficiency` shows "
        "the same after 600 updates on digits, where gates hardly move. Curves: the mean gate of every layer."
    ),
)
def locality_escapes(trial: Trial, data: ImageData) -> dict[str, float]:
    return _run(trial, data, plain=False, train=trial.setup.train, local_init=trial.arm != "no_local_init")
