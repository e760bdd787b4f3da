"""Claims of "Diffusion Models Beat GANs on Image Classification"."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset
from torch.utils.flop_counter import FlopCounterMode

from etude.data import images
from etude.data.augmentation import crop_and_flip
from etude.data.catalogue import home
from etude.data.kinds import Examples, ImageData
from etude.data.splitting import cut, stratified_order
from etude.diffusion.diffusion_features import (
    AttentionHead,
    BiGAN,
    DiffusionFeatures,
    DiffusionProbe,
    Encoder,
    LinearHead,
    Place,
    PlaceTable,
    ProbedHead,
    adm_256,
    fit_autoencoder,
    fit_bigan,
    fit_diffusion,
    load_guided_diffusion_state,
    logistic_probe,
    plot_places,
    select_block_timestep,
    to_signed,
)
from etude.lab import Paper, Setup, Source, Trial, higher, shown, threshold
from etude.loop import accuracy, fit
from etude.nn.unet import UNet

__all__ = ["PAPER"]

PAPER = Paper(
    slug="diffusion_features",
    domain="diffusion",
    title="Diffusion Models Beat GANs on Image Classification",
    authors="Mukhopadhyay, Gwilliam, Agarwal, Padmanabhan, Swaminathan, Hegde, Zhou & Shrivastava",
    year=2023,
    arxiv="2307.08702",
    code="https://github.com/soumik-kanad/diffssl",
    summary="One block of a frozen diffusion U-Net, read on a slightly noised image, classifies with a light head.",
    methods=("etude.diffusion.diffusion_features", "etude.nn.unet"),
    usage="""\
import torch
from diffusers import DDPMScheduler
from etude.diffusion.diffusion_features import DiffusionFeatures, DiffusionProbe, UNet
unet = UNet(1, 1, base_channels=8, norm_groups=4, head_channels=8)
features = DiffusionFeatures(unet, DDPMScheduler(), blocks=[10], timesteps=[90])
probe = DiffusionProbe(features).fit(2 * torch.rand(20, 1, 8, 8) - 1, [0, 1] * 10)
assert probe.predict(2 * torch.rand(3, 1, 8, 8) - 1).shape == (3,)
""",
    notes=(
        "`fit_diffusion` trains a U-Net on images without labels, `select_block_timestep` finds where to read it, "
        "`DiffusionProbe` classifies. `DiffusionFeatures` also reads the U-Nets and DiTs of diffusers, and "
        "`load_guided_diffusion_state` takes the weights that the paper used. Images must lie in [-1, 1]: `to_signed`. "
        "Beating this GAN proves little by itself: beside the verdict stand `bigan_untrained`, its encoder before "
        "training, and `denoising_autoencoder`, denoising at one level of noise for half the compute. The paper's own "
        "setting, ImageNet with the published 256 x 256 network, is `full` and needs that checkpoint."
    ),
    extra="diffusion",
)

_CHECKPOINT = Path("guided-diffusion", "256x256_diffusion_uncond.pt")


def _scheduler() -> DDPMScheduler:
    return DDPMScheduler(num_train_timesteps=1000, beta_start=1e-4, beta_end=2e-2, beta_schedule="linear")


def _placed(trial: Trial, model: Any) -> Any:
    """On the trial's device, channels last: a fifth faster on a CPU."""
    return model.to(trial.device, memory_format=torch.channels_last)


def _unet(trial: Trial, channels: int) -> UNet:
    """The setup's network, or the published one, with its weights but for the random arm."""
    if trial.setup.pretrained:
        with trial.stream("init"):
            unet = adm_256()
        trained = trial.arm != "random_unet"
        return _placed(trial, load_guided_diffusion_state(unet, home() / _CHECKPOINT) if trained else unet)
    with trial.stream("init"):
        unet = UNet(channels, channels, **trial.setup.unet)
    return _placed(trial, unet)


def _labels(split: Examples | Dataset) -> np.ndarray:
    if isinstance(split, Examples):
        return split.targets.numpy()
    rows: Any = split  # of images.hub, whose labels are read without its images
    return np.asarray(rows.rows[rows.label])


def _images(split: Any, size: int, rows: Any) -> Tensor:
    """Images of some rows in [-1, 1], of one side, averaged over areas."""
    x = split.inputs[rows] if isinstance(split, Examples) else torch.stack([split[int(row)][0] for row in rows])
    if tuple(x.shape[2:]) != (size, size):
        x = F.interpolate(x, size=(size, size), mode="area")
    return to_signed(x)


def _per_class(labels: np.ndarray, count: int | None, classes: int | None, rng: np.random.Generator) -> np.ndarray:
    """Rows drawn: `count` of every class (fewer where there are fewer), of `classes` classes spread evenly."""
    known = np.unique(labels)
    if classes is not None and classes < len(known):
        known = known[np.linspace(0, len(known) - 1, classes).round().astype(int)]
    parts = []
    for label in known:
        members = rng.permutation(np.flatnonzero(labels == label))
        parts.append(members if count is None else members[:count])
    return np.concatenate(parts)


Labelled = tuple[Tensor, np.ndarray]


def _parts(trial: Trial, data: ImageData) -> tuple[Labelled, Labelled, Labelled]:
    """The labelled training images of this seed, and the validation and test images."""
    s = trial.setup

    def drawn(split: Any, count: int | None, rng: np.random.Generator) -> Labelled:
        labels = _labels(split)
        rows = _per_class(labels, count, s.classes, rng)
        return _images(split, s.size, rows), labels[rows]

    return (
        drawn(data.train, s.per_class, trial.rng("labels")),
        drawn(data.val, s.val_per_class, np.random.default_rng(0)),  # the same at every seed
        drawn(data.test, s.test_per_class, np.random.default_rng(0)),
    )


def _unlabelled(trial: Trial, data: ImageData) -> Tensor:
    """The training images without their labels, the first ones if the setup wants fewer."""
    count = len(data.train)  # type: ignore[arg-type]
    return _images(data.train, trial.setup.size, range(min(count, trial.setup.unlabelled or count)))


def _tflop(trial: Trial, step: Callable[[], Any], steps: int) -> float:
    """Training's floating-point operations, counted over one update, forward and backward, in 10^12."""
    with trial.stream("count"), FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() * steps / 1e12


def _logger(trial: Trial, steps: int) -> Callable[..., None]:
    every = max(1, steps // 60)

    def log(step: int, total: int, **values: float) -> None:
        if step % every == 0:
            trial.log(step, **{name: value for name, value in values.items() if name != "lr"})
            trial.progress(step, total)

    return log


def _train_unet(trial: Trial, unet: UNet, x: Tensor) -> float:
    """Trains by the setup; the cost."""
    s = trial.setup
    batch = min(s.batch, len(x))
    cost = _tflop(
        trial, lambda: fit_diffusion(copy.deepcopy(unet), _scheduler(), x, steps=1, batch_size=batch), s.steps
    )
    fit_diffusion(
        unet, _scheduler(), x, steps=s.steps, batch_size=batch, lr=1e-3, decay=s.decay,
        generator=trial.generator("denoising"), order=trial.generator("order"), callbacks=[_logger(trial, s.steps)],
        every=max(1, s.steps // 60), mixed_precision=s.mixed_precision,
    )  # fmt: skip
    return cost


def _searched(trial: Trial, unet: UNet, learnt: Labelled, held: Labelled) -> tuple[DiffusionFeatures, PlaceTable]:
    """The network read over the setup's grid, and the map of validation accuracy."""
    s = trial.setup
    features = DiffusionFeatures(
        unet, _scheduler(), blocks=s.blocks, timesteps=s.timesteps, generator=trial.generator("noise")
    )
    table = select_block_timestep(
        features, *learnt, s.blocks, s.timesteps, cv=held, Cs=s.strengths, noise_samples=s.draws
    )
    trial.figure("validation_accuracy", plot_places(table, middle=len(unet.input_blocks) + 1))
    return features, table


def _tested(
    trial: Trial, features: DiffusionFeatures, table: PlaceTable, place: Place, learnt: Labelled, test: Labelled
) -> float:
    """Test accuracy at a place, with the strength chosen there."""
    t, block = place
    probe = DiffusionProbe(
        features.over([block], [t]), C=table.at(t, block)[1], noise_samples=trial.setup.draws, batch_size=256
    )
    return float(probe.fit(*learnt).score(*test))


Rows = dict[str, np.ndarray]


def _encoded(encoder: Encoder, x: Tensor) -> Rows:
    """Each convolution's map pooled 2 x 2, and the code."""
    device = next(encoder.parameters()).device
    encoder.eval()
    with torch.no_grad():
        batches = [encoder.features(batch.to(device)) for batch in x.split(512)]
    *maps, codes = (torch.cat(parts).cpu() for parts in zip(*batches))
    rows = {f"conv{number}": F.adaptive_avg_pool2d(map_, 2).flatten(1) for number, map_ in enumerate(maps, 1)}
    return {name: value.double().numpy() for name, value in (rows | {"code": codes}).items()}


def _pixels(x: Tensor) -> Rows:
    sides = [x.shape[2], x.shape[2] // 2, x.shape[2] // 4]
    return {f"{side}": F.adaptive_avg_pool2d(x, side).flatten(1).double().numpy() for side in sides}


def _encoder(trial: Trial, x: Tensor) -> tuple[Encoder, float]:
    """The encoder of an arm, trained as the arm says, and the cost."""
    s = trial.setup
    with trial.stream("init"):
        bigan = _placed(trial, BiGAN(x.shape[1], s.size, **s.bigan))
    batch = min(s.bigan_batch, len(x))
    order, method = trial.generator("order"), trial.generator("method")
    if trial.arm == "bigan":
        cost = _tflop(trial, lambda: fit_bigan(copy.deepcopy(bigan), x, steps=1, batch_size=batch), s.bigan_steps)
        fit_bigan(
            bigan, x, steps=s.bigan_steps, batch_size=batch, order=order, codes=method,
            callbacks=[_logger(trial, s.bigan_steps)], **s.bigan_training,
        )  # fmt: skip
        return bigan.encoder, cost
    if trial.arm == "bigan_untrained":
        return bigan.encoder, 0.0
    sigma = s.corruption if trial.arm == "denoising_autoencoder" else 0.0

    def train(pair: BiGAN, steps: int, **options: Any) -> None:
        fit_autoencoder(pair.encoder, pair.generator, x, steps=steps, batch_size=batch, corruption=sigma, **options)

    cost = _tflop(trial, lambda: train(copy.deepcopy(bigan), 1), s.autoencoder_steps)
    train(
        bigan, s.autoencoder_steps, order=order, noise=method, callbacks=[_logger(trial, s.autoencoder_steps)],
        every=max(1, s.autoencoder_steps // 60),
    )  # fmt: skip
    return bigan.encoder, cost


_SMALL_NET = {
    "base_channels": 12, "channel_mult": [1, 2, 3], "num_res_blocks": 1, "attention_levels": [2], "head_channels": 9,
    "norm_groups": 4, "sinusoids": 64, "time_dim": 64,
}  # fmt: skip
_PROBED = {
    "pretrained": False, "unlabelled": None, "per_class": 10, "val_per_class": None, "test_per_class": None,
    "classes": None, "decay": 0.999, "mixed_precision": "no", "strengths": [0.01, 0.1, 1.0],
}  # fmt: skip
_SMALL = Setup(
    **_PROBED, unet=_SMALL_NET, size=16, steps=1200, batch=32, blocks=[1, 5, 6, 7, 8, 9, 11, 13],
    timesteps=[0, 20, 90, 300], draws=4, bigan={"width": 32, "code": 32, "hidden": 256, "spectral": False},
    bigan_training={"lr": 2e-4, "lr_ratio": 1.0}, bigan_batch=64, bigan_steps=1370, autoencoder_steps=2400,
    corruption=0.6,
)  # fmt: skip
_SMOKE = _SMALL.replace(
    unlabelled=64, val_per_class=2, test_per_class=2, per_class=3, steps=3, blocks=[6, 9], timesteps=[20, 300],
    draws=1, strengths=[0.1], bigan_steps=3, autoencoder_steps=3,
)  # fmt: skip
_MEDIUM = _SMALL.replace(
    unet=_SMALL_NET | {"base_channels": 32, "head_channels": 24, "norm_groups": 8, "sinusoids": 128, "time_dim": 128},
    steps=6000, batch=64, blocks=list(range(1, 14)), timesteps=[0, 10, 20, 50, 90, 150, 300],
    bigan=_SMALL.bigan | {"width": 128}, bigan_steps=6700, autoencoder_steps=6000,
)  # fmt: skip
_FULL = _SMALL.replace(
    unet={"base_channels": 128, "channel_mult": [1, 2, 2, 2], "attention_levels": [1]}, size=32, per_class=100,
    steps=100_000, batch=128, decay=0.9999, mixed_precision="bf16", blocks=list(range(1, 26)),
    timesteps=[0, 10, 20, 50, 90, 150, 300], bigan={"width": 256, "code": 128, "hidden": 1024, "spectral": False},
    bigan_batch=128, bigan_steps=510_000, autoencoder_steps=100_000,
)  # fmt: skip
_RIVALS, _CONTROLS = ("bigan", "random_unet", "pixels"), ("denoising_autoencoder", "autoencoder", "bigan_untrained")


def _cifar10() -> ImageData:
    return images.hub("uoft-cs/cifar10", in_memory=True)


@PAPER.claim(
    "Frozen features of a diffusion U-Net classify from few labels better than pixels, the untrained net and a BiGAN",
    arms=("diffusion", *_RIVALS, *_CONTROLS),
    expect=[
        *(higher("diffusion", than=arm, metric="accuracy") for arm in _RIVALS),
        shown(
            *_CONTROLS,
            *(higher("diffusion", than=arm, metric="accuracy") for arm in _CONTROLS),
            higher("bigan", than="bigan_untrained", metric="accuracy"),
        ),
    ],
    setup={"smoke": _SMOKE, "small": _SMALL, "medium": _MEDIUM, "full": _FULL},
    data={
        "mnist5k": Source(images.mnist5k, scales=("smoke", "small", "medium")),
        "cifar10": Source(_cifar10, scales=("full",)),
    },
    seeds={"smoke": 1, "small": 3, "medium": 8, "full": 3},
    timeout=864_000.0,
    reported=(
        "ImageNet top-1 on frozen features: 71.89 with an attention head, some 61.9 with a linear one (remembered), "
        "BigBiGAN some 60.8 (remembered)"
    ),
    notes=(
        "An L2 logistic probe with 10 labels a class, features standardised by the labelled images; 3,500 digits of "
        "16 x 16 pixels without labels train the networks. Every arm chooses where to read and the probe's strength "
        "on the same 500 validation images: block and timestep (noise averaged over four draws) for the U-Nets, one "
        "of three maps or the code for the encoders, raw or averaged pixels. `training_tflop`, counted: the BiGAN "
        "gets at least the U-Net's. `bigan_untrained` is its encoder with random weights: if the BiGAN is not above "
        "it, beating the BiGAN says little. On an exploration seed it was not (.765 and .789), nor with spectral "
        "normalisation, an R1 penalty or half the rate for the discriminator (.762, .743, .743). "
        "`denoising_autoencoder` and `autoencoder` train the same encoder and generator to reconstruct, with noise of "
        "0.6 and without, at about half the compute. `medium` has wider networks and more training; `full` is "
        "CIFAR-10 with 100 labels a class."
    ),
    helps=higher("diffusion", than="pixels", metric="accuracy"),
)
def features_classify(trial: Trial, data: ImageData) -> dict[str, float]:
    learnt, held, test = _parts(trial, data)
    if trial.arm in ("diffusion", "random_unet"):
        unet = _unet(trial, data.channels)
        cost = _train_unet(trial, unet, _unlabelled(trial, data)) if trial.arm == "diffusion" else 0.0
        features, table = _searched(trial, unet, learnt, held)
        t, block = table.best
        return {
            "accuracy": _tested(trial, features, table, table.best, learnt, test), "timestep": float(t),
            "block": float(block), "val_accuracy": table.at(t, block)[0], "training_tflop": cost,
        }  # fmt: skip
    read: Callable[[Tensor], Rows] = _pixels
    cost = 0.0
    if trial.arm != "pixels":
        encoder, cost = _encoder(trial, _unlabelled(trial, data))
        read = partial(_encoded, encoder)
    rows = {name: read(part[0]) for name, part in (("learnt", learnt), ("held", held), ("test", test))}

    def score(layer: str, C: float, part: str, labels: np.ndarray) -> float:
        return float(logistic_probe(C).fit(rows["learnt"][layer], learnt[1]).score(rows[part][layer], labels))

    scores = {(layer, C): score(layer, C, "held", held[1]) for layer in rows["held"] for C in trial.setup.strengths}
    layer, C = max(scores, key=lambda choice: scores[choice])
    return {
        "accuracy": score(layer, C, "test", test[1]),
        "val_accuracy": scores[layer, C],
        "layer": float(list(rows["held"]).index(layer)),
        "training_tflop": cost,
    }


def _digits() -> ImageData:
    """The 1,797 digits in another fixed split: 997 train, 300 val, 500 test."""
    data = images.digits()
    parts = [split for split in (data.train, data.val, data.test) if isinstance(split, Examples)]
    whole = Examples(torch.cat([part.inputs for part in parts]), torch.cat([part.targets for part in parts]))
    train, val, test = (
        whole.subset(torch.from_numpy(rows)) for rows in cut(stratified_order(whole.targets.numpy()), 997, 300, 500)
    )
    return ImageData(train=train, val=val, test=test, classes=data.classes, name="digits")


def _imagenet() -> ImageData:
    if not (home() / _CHECKPOINT).is_file():
        raise FileNotFoundError(f"place the weights of guided-diffusion at {home() / _CHECKPOINT}")
    return images.hub("ILSVRC/imagenet-1k", size=256, channels=3)


_MAP = Setup(
    **_PROBED, unet=_SMALL_NET | {"base_channels": 16, "head_channels": 12, "norm_groups": 8}, size=8, steps=700,
    batch=64, blocks=list(range(1, 14)), timesteps=[0, 20, 90, 300, 700], draws=1,
)  # fmt: skip
_MAP_SMOKE = _MAP.replace(
    unlabelled=64, per_class=3, val_per_class=2, test_per_class=2, steps=2, blocks=[1, 6, 13], timesteps=[20, 700],
    strengths=[0.1],
)  # fmt: skip
_MAP_FULL = _MAP.replace(
    pretrained=True, unet={}, size=256, per_class=100, val_per_class=25, test_per_class=50, classes=50, steps=0,
    blocks=[1, *range(4, 37, 2), 37], timesteps=[0, 30, 60, 90, 150, 300, 500, 700],
)  # fmt: skip


@PAPER.claim(
    "Features classify at small timesteps in the inner blocks, not under much noise nor at either end of the network",
    arms=("diffusion", "random_unet"),
    expect=[
        threshold("diffusion", metric="over_much_noise", above=0.3),
        threshold("diffusion", metric="over_ends", above=0.0),
        shown(
            "random_unet",
            threshold("diffusion", metric="timestep", below=200),
            higher("diffusion", than="random_unet", metric="accuracy"),
        ),
    ],
    setup={"smoke": _MAP_SMOKE, "small": _MAP, "full": _MAP_FULL},
    data={"digits": Source(_digits, scales=("smoke", "small")), "imagenet": Source(_imagenet, scales=("full",))},
    seeds={"smoke": 1, "small": 3, "full": 3},
    timeout=86_400.0,
    reported="ImageNet-50: best at t = 90 of 1000 and block 24 of 37, just after the middle; the ends and large t poor",
    notes=(
        "Test accuracies of a logistic probe (10 labels a class, 8 x 8 digits, one draw of noise) at the block and "
        "timestep chosen on 300 validation images. `over_much_noise` is that accuracy less the same block's at "
        "t = 700, `over_ends` less the better of the first and the last block at the chosen timestep. The figure is "
        "the whole map on validation images. The claim is a small timestep, not one value. `random_unet`, the "
        "untrained network, shows how much of the map the noise alone explains. `full` is 50 evenly spaced classes of "
        "ImageNet with the published network, 100 labels a class."
    ),
)
def where_features_live(trial: Trial, data: ImageData) -> dict[str, float]:
    s = trial.setup
    learnt, held, test = _parts(trial, data)
    unet = _unet(trial, data.channels)
    if trial.arm == "diffusion" and s.steps:
        _train_unet(trial, unet, _unlabelled(trial, data))
    features, table = _searched(trial, unet, learnt, held)
    t, block = table.best
    for number in s.blocks:
        trial.log(number, val_accuracy_by_block=table.at(t, number)[0])
    for timestep in s.timesteps:
        trial.log(timestep, val_accuracy_by_timestep=table.at(timestep, block)[0])
    best, noisy, first, last = (
        _tested(trial, features, table, place, learnt, test)
        for place in ((t, block), (max(s.timesteps), block), (t, min(s.blocks)), (t, max(s.blocks)))
    )
    return {
        "accuracy": best, "much_noise": noisy, "first_block": first, "last_block": last, "timestep": float(t),
        "block": float(block), "over_much_noise": best - noisy, "over_ends": best - max(first, last),
    }  # fmt: skip


class _Signed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (2 * x - 1).clamp(-1, 1)


_HEADS = Setup(
    pretrained=False, unet=_SMALL_NET, timestep=90, block=8, pool=2, attention={"dim": 32, "depth": 1}, epochs=1,
    batch=20, crop=0, only=40, lr={"linear": 1e-2, "attention": 5e-2},
)  # fmt: skip
_HEADS_FULL = _HEADS.replace(
    pretrained=True, unet={}, block=24, attention={"dim": 1024, "depth": 2}, epochs=28, batch=128, crop=16, only=None
)


@PAPER.claim(
    "With all labels an attention head on the frozen features classifies better than a linear one",
    arms=("linear", "attention"),
    expect=[
        higher("attention", than="linear", metric="accuracy"),
        shown(threshold("attention", metric="accuracy", above=0.71)),
    ],
    setup={"smoke": _HEADS, "full": _HEADS_FULL},
    data={"mnist5k": Source(images.mnist5k, scales=("smoke",)), "imagenet": Source(_imagenet, scales=("full",))},
    seeds={"smoke": 1, "full": 3},
    timeout=2_000_000.0,
    reported="ImageNet top-1: 71.89 with the attention head, some 61.9 with the linear one (remembered)",
    notes=(
        "Block 24 at t = 90, fresh noise in every batch, plain SGD of 28 epochs, a tenth of the rate after every 7; "
        "1e-2 for the linear head on 2 x 2 cells, 5e-2 for the attention head. The cost is the U-Net's forward, 28 x "
        "1.28 million times a head; on digits the heads would tie, so there is no `small`. Crops are padded by 16 "
        "pixels and mirrored."
    ),
)
def heads(trial: Trial, data: ImageData) -> dict[str, float]:
    s = trial.setup
    unet = _unet(trial, data.channels)
    features = DiffusionFeatures(
        unet, _scheduler(), blocks=[s.block], timesteps=[s.timestep], generator=trial.generator("noise")
    )
    channels, cells, _ = unet.block_shapes(data.size)[s.block - 1]
    with trial.stream("init"):
        if trial.arm == "linear":
            head: nn.Module = LinearHead(channels, cells, data.num_classes, pool=s.pool)
        else:
            head = AttentionHead(channels, cells, data.num_classes, **s.attention)
    model = nn.Sequential(_Signed(), ProbedHead(features, head)).to(trial.device)
    optimizer = torch.optim.SGD(head.parameters(), lr=s.lr[trial.arm])
    parts: tuple[Any, ...] = (data.train, data.val, data.test)
    train, val, test = (part if s.only is None else Subset(part, range(min(s.only, len(part)))) for part in parts)
    crops = trial.generator("augment")

    def augment(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return (crop_and_flip(batch[0], s.crop, crops), batch[1]) if s.crop else batch

    quarter = max(1, s.epochs // 4) * (len(train) // s.batch)
    fit(
        model, train, optimizer, epochs=s.epochs, batch_size=s.batch, generator=trial.generator("order"),
        schedule=torch.optim.lr_scheduler.StepLR(optimizer, quarter, gamma=0.1), transform=augment,
        callbacks=[trial.progress], every=20, find_unused_parameters=True,
    )  # fmt: skip
    return {"accuracy": accuracy(model, test), "val_accuracy": accuracy(model, val)}
