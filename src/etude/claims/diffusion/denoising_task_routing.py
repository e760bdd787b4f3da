"""Claims of "Denoising Task Routing for Diffusion Models"."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode

from etude.data import images, locate
from etude.data.kinds import Examples, ImageData
from etude.diffusion.denoising_task_routing import (
    DiT,
    Routing,
    denoising_loss,
    dit_s_2,
    fit_denoiser,
    frechet_distance,
    plot_images,
    plot_masks,
    route_unet_,
    routing_mask,
    train_features,
)
from etude.lab import Paper, Setup, Source, Trial, identity, lower, shown
from etude.loop import ExponentialMovingAverage
from etude.nn.diffusion import LossWeight, UncertaintyWeighting, constant, min_snr, sample
from etude.nn.unet import UNet

__all__ = ["PAPER"]

PAPER = Paper(
    slug="denoising_task_routing",
    domain="diffusion",
    title="Denoising Task Routing for Diffusion Models",
    authors="Park, Woo, Go, Kim & Kim",
    year=2024,
    arxiv="2310.07138",
    venue="ICLR 2024",
    summary="Each timestep of a diffusion model reads its own fixed window of channels in every block.",
    methods=(
        "etude.diffusion.denoising_task_routing.routing",
        "etude.diffusion.denoising_task_routing.dit",
        "etude.diffusion.denoising_task_routing.unet",
        "etude.diffusion.denoising_task_routing.wrapping",
        "etude.diffusion.denoising_task_routing.training",
        "etude.diffusion.denoising_task_routing.frechet",
        "etude.nn.diffusion",
    ),
    usage="""\
import torch
from etude.diffusion.denoising_task_routing import DiT, route_
model = DiT(8, 2, 1, dim=64, depth=2, num_heads=4, num_classes=10)  # or a DiT of yours, or of diffusers
route_(model, alpha=4.0, beta=0.8)  # no new parameters; call, train and sample it as before
print(model(torch.randn(2, 1, 8, 8), torch.tensor([0, 999]), torch.tensor([3, 4])).shape)
""",
    notes=(
        "The gain that the paper reports is at widths of 384 and more on ImageNet and FFHQ. At the width of 64 of "
        "`small` the fifth of the channels that a task cannot read is missed, and neither network is reliably "
        "ahead: the headline belongs to `full`. What shows at `small` is that the masks' structure matters: random "
        "masks of the same size are far worse than windows. Distances at `small` are in the features of a small "
        "classifier, not Inception, and compare with no FID. Pass timesteps of training to the model, also where a "
        "sampler takes fewer steps. beta below 0.5 is expected to lose to the plain network. The routing of U-Net "
        "blocks is our reading of the paper, whose code has none."
    ),
    code="https://github.com/byeongjun-park/DTR",
    extra="diffusion",
)

_NOISE_SEED = 20231012
"""Of the initial noise and the labels to sample, and of held-out timesteps: the same in all arms and seeds."""
_VAE_SCALE = 0.18215
_networks: dict[tuple, nn.Module] = {}
"""Feature networks of this process: each is a function of its key alone."""


def digits() -> ImageData:
    """scikit-learn's digits in the split of this paper's protocol: 1,500 to train on, 297 held out."""
    data = images.digits()
    parts = [getattr(data, name) for name in ("train", "val", "test")]
    inputs, targets = torch.cat([part.inputs for part in parts]), torch.cat([part.targets for part in parts])
    held_out = Examples(inputs[1500:], targets[1500:])
    return ImageData(Examples(inputs[:1500], targets[:1500]), held_out, held_out, data.classes, data.name)


def cifar10() -> ImageData:
    return images.hub("uoft-cs/cifar10", in_memory=True)


class _Latents(Dataset):
    """Latents of images and their labels, on disk."""

    def __init__(self, stem: str):
        folder = locate("imagenet256_latents")
        self.latents = np.load(folder / f"{stem}_latents.npy", mmap_mode="r")
        self.labels = np.load(folder / f"{stem}_labels.npy")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(self.latents[index].astype(np.float32)), torch.tensor(int(self.labels[index]))


def imagenet() -> ImageData:
    """`train_latents.npy` (n, 4, 32, 32), scaled and with their mirror images, `train_labels.npy`, and `val_...`."""
    held_out = _Latents("val")
    classes = tuple(str(index) for index in range(1000))
    return ImageData(_Latents("train"), held_out, held_out, classes, "imagenet256")


class _Scaled(Dataset):
    """Images from [0, 1] to [-1, 1]."""

    def __init__(self, images: Any):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        image, label = self.images[index]
        return 2 * image - 1, label


def scaled(part: Any, latent: bool) -> Any:
    if latent:
        return part
    return Examples(2 * part.inputs - 1, part.targets) if isinstance(part, Examples) else _Scaled(part)


def in_memory(part: Any, most: int) -> Examples:
    """The first `most` examples, or an even selection of a data set on disk, whose classes may stand in order."""
    if isinstance(part, Examples):
        return part.take(min(most, len(part)))
    rows = torch.linspace(0, len(part) - 1, min(most, len(part))).long().tolist()
    pairs = [part[row] for row in rows]
    labels = torch.tensor([int(label) for _, label in pairs])
    return Examples(torch.stack([image for image, _ in pairs]), labels)


def inception() -> nn.Module:
    """Pooled features of torchvision's Inception-v3, of images in [-1, 1]."""
    from torchvision.models import Inception_V3_Weights, inception_v3

    network = inception_v3(weights=Inception_V3_Weights.DEFAULT, transform_input=False)
    network.fc = nn.Identity()
    return nn.Sequential(nn.Upsample((299, 299), mode="bilinear"), network).eval().requires_grad_(False)


class Judge:
    """What samples are measured by: distance to the training images, and whether the classifier sees the label."""

    def __init__(self, trial: Trial, data: ImageData, train: Any):
        setup = trial.setup
        self.setup, self.device = setup, trial.device
        self.vae: Any = None
        self.classifier: Any = None
        reference = in_memory(train, setup.reference)
        if setup.vae:
            from diffusers import AutoencoderKL

            self.vae = AutoencoderKL.from_pretrained(setup.vae).to(trial.device).eval()
        if setup.features == "inception":
            self.features: Callable[[Tensor], Tensor] = inception().to(trial.device)
        else:
            self.classifier = self._classifier(reference, data, setup.feature_steps).to(trial.device)
            self.features = self.classifier.features
        generator = torch.Generator().manual_seed(_NOISE_SEED)
        shape = reference.inputs.shape[1:]
        self.noise = torch.randn(setup.samples, *shape, generator=generator)
        self.labels = torch.randint(data.num_classes, (setup.samples,), generator=generator)
        self.reference = self._features(reference.inputs)
        self.test = in_memory(scaled(data.test, bool(setup.vae)), setup.held_out)

    @staticmethod
    def _classifier(reference: Examples, data: ImageData, steps: int) -> Any:
        key = (data.name, reference.inputs.shape, float(reference.inputs.double().sum()), steps)
        if key not in _networks:
            _networks[key] = train_features(reference, data.num_classes, steps=steps)
        return _networks[key]

    @torch.no_grad()
    def _features(self, pictures: Tensor) -> Tensor:
        found = []
        for part in pictures.split(256):
            part = part.to(self.device)
            if self.vae is not None:
                part = self.vae.decode(part / _VAE_SCALE).sample.clamp(-1, 1)
            found.append(self.features(part).cpu())
        return torch.cat(found)

    def images(self, model: nn.Module, count: int, steps: int) -> Tensor:
        from diffusers import DDIMScheduler, DDPMScheduler

        setup = self.setup
        kind = DDIMScheduler if setup.sampler == "ddim" else DDPMScheduler
        options = {"variance_type": "learned_range"} if setup.learn_sigma and setup.sampler == "ddpm" else {}
        scheduler = kind(beta_schedule=setup.schedule, clip_sample=not setup.vae, **options)
        made, generator = [], torch.Generator().manual_seed(_NOISE_SEED)
        for noise, y in zip(self.noise[:count].split(setup.at_once), self.labels[:count].split(setup.at_once)):
            made.append(
                sample(
                    model, scheduler, noise.to(self.device), None if setup.unet else y.to(self.device), steps=steps,
                    guidance=setup.guidance, generator=generator,
                ).cpu()
            )  # fmt: skip
        return torch.cat(made)

    def frechet(self, pictures: Tensor) -> float:
        return frechet_distance(self._features(pictures), self.reference)

    @torch.no_grad()
    def accuracy(self, pictures: Tensor) -> float:
        """How often the classifier sees the label that was asked for."""
        answers = self.classifier(pictures.to(self.device)).argmax(1).cpu()
        return (answers == self.labels[: len(pictures)]).double().mean().item()


def patch_of(size: tuple[int, int], least: int, most_tokens: int) -> int:
    """The smallest patch of at least `least` pixels that divides both sides and makes few enough tokens."""
    height, width = size
    fitting = [p for p in range(1, min(size) + 1) if height % p == 0 and width % p == 0 and p >= least]
    few = [p for p in fitting if height * width // p**2 <= most_tokens]
    return min(few) if few else max(fitting, default=1)


def network(trial: Trial, data: ImageData, shape: tuple[int, ...], method: str) -> nn.Module:
    setup = trial.setup
    channels, height, width = shape
    routing = None
    if method != "plain":
        # Masks of windows draw nothing; the random ones are the method's own.
        seed = trial.stream_seed("method") if method == "random" else 0
        routing = Routing(method=method, alpha=setup.alpha, beta=setup.beta, seed=seed)
    with trial.stream("init"):
        if setup.unet:
            unet = UNet(channels, channels * (1 + setup.learn_sigma), **setup.unet)
            return (unet if routing is None else route_unet_(unet, routing)).to(trial.device)
        return DiT(
            (height, width), patch_of((height, width), setup.patch, setup.most_tokens), channels, setup.dim,
            setup.depth, setup.heads, data.num_classes, learn_sigma=setup.learn_sigma, routing=routing,
            sinusoids=setup.sinusoids,
        ).to(trial.device)  # fmt: skip


WEIGHTS: dict[str, Callable[[], LossWeight]] = {
    "": lambda: constant, "min_snr": lambda: min_snr(5), "uw": UncertaintyWeighting,
}  # fmt: skip


def denoise(trial: Trial, data: ImageData) -> dict[str, float]:
    """Trains the arm's network and measures its samples. An arm is a routing, or a weight of the loss and a routing."""
    from diffusers import DDPMScheduler

    setup = trial.setup
    prefix, _, method = trial.arm.rpartition("_")
    weight = WEIGHTS[prefix]()
    train = scaled(data.train, bool(setup.vae))
    judge = Judge(trial, data, train)
    model = network(trial, data, tuple(judge.noise.shape[1:]), method)
    scheduler = DDPMScheduler(beta_schedule=setup.schedule)
    ema = ExponentialMovingAverage(model, setup.ema, warmup=True)

    def look(step: int, total: int, loss: float, lr: float) -> None:
        trial.progress(step, total, loss=loss)
        values = {"loss": loss}
        if step in setup.curve:
            with ema.applied():
                values["frechet_of_few"] = judge.frechet(judge.images(model, setup.curve_samples, setup.curve_sampling))
        trial.log(step, **values)

    with trial.stream("labels"):  # which labels are dropped
        fit_denoiser(
            model, train, scheduler, steps=setup.steps, batch_size=setup.batch, lr=setup.lr, ema=ema, weight=weight,
            learn_sigma=setup.learn_sigma, labelled=not setup.unet, order=trial.generator("order"),
            noise=trial.generator("noise"), flip=setup.flip, mixed_precision=setup.precision, callbacks=[look],
            every=setup.every,
        )  # fmt: skip
    with ema.applied():
        model.eval()
        pictures = judge.images(model, setup.samples, setup.sampling)
        bins = denoising_loss(
            model, judge.test, scheduler, draws=setup.draws, labelled=not setup.unet,
            generator=torch.Generator().manual_seed(_NOISE_SEED),
        )  # fmt: skip
    values = {"frechet_cnn": judge.frechet(pictures)}
    values |= {f"loss_bin_{index}": float(loss) for index, loss in enumerate(bins, start=1)}
    half = len(judge.reference) // 2
    values["frechet_halves"] = frechet_distance(judge.reference[:half], judge.reference[half:])
    if judge.classifier is not None:
        if not setup.unet:
            values["sample_accuracy"] = judge.accuracy(pictures)
        answers = judge.classifier(judge.test.inputs.to(trial.device)).argmax(1).cpu()
        values["classifier_accuracy"] = (answers == judge.test.targets).double().mean().item()
    if not setup.vae:
        trial.figure("samples", plot_images({trial.arm: pictures[:16], "data": in_memory(train, 16).inputs}))
    return values


SMALL = Setup(
    dim=64, depth=4, heads=4, patch=2, most_tokens=64, sinusoids=64, unet={}, alpha=4.0, beta=0.8, learn_sigma=False,
    schedule="linear", steps=2_000, batch=64, lr=2e-3, ema=0.999, flip=False, precision="no", every=100,
    sampler="ddim", sampling=25, samples=2_000, at_once=1_000, guidance=1.0, curve=[500, 1_000, 1_500],
    curve_samples=500, curve_sampling=25, features="cnn", feature_steps=800, reference=1_500, held_out=297, draws=4,
    vae="",
)  # fmt: skip
SMOKE = SMALL.replace(
    dim=16, depth=2, heads=2, sinusoids=16, steps=6, batch=16, every=3, sampling=2, samples=40, curve=[3],
    curve_samples=20, curve_sampling=2, feature_steps=4, reference=100, held_out=50, draws=1,
)  # fmt: skip
# As the paper trains: 400,000 steps of 256, 250 steps of DDPM with guidance 1.5, 50,000 samples, a learned variance.
IMAGENET = SMALL.replace(
    dim=1024, depth=24, heads=16, most_tokens=256, sinusoids=256, learn_sigma=True, schedule="squaredcos_cap_v2",
    steps=400_000, batch=256, lr=1e-4, ema=0.9999, flip=False, precision="bf16", every=1_000, sampler="ddpm",
    sampling=250, samples=50_000, at_once=250, guidance=1.5, curve=[100_000, 200_000, 400_000], curve_samples=10_000,
    curve_sampling=50, features="inception", reference=50_000, held_out=10_000, draws=1,
    vae="stabilityai/sd-vae-ft-ema",
)  # fmt: skip
# The affordable step between: pixels of 32 x 32, a DiT-S/2.
CIFAR = SMALL.replace(
    dim=384, depth=12, heads=6, most_tokens=256, sinusoids=256, steps=20_000, batch=128, lr=2e-4, ema=0.9999,
    flip=True, precision="bf16", every=500, sampling=50, samples=10_000, at_once=500, curve=[5_000, 20_000],
    curve_samples=2_000, feature_steps=5_000, reference=50_000, held_out=2_000, draws=1,
)  # fmt: skip
DATA = {
    "digits": Source(digits, scales=("smoke", "small")),
    "cifar10": Source(cifar10, scales=("medium",)),
    "imagenet256": Source(imagenet, scales=("full",)),
}
_PROTOCOL = (
    "`frechet_cnn` is the Fréchet distance of samples to the training images in the 64 features of a small "
    "classifier (`classifier_accuracy` on held-out digits), trained once with a seed of its own; `frechet_halves` is "
    "that between two halves of the training images; the curve `frechet_of_few` takes fewer samples. "
    "Average of the weights, DDIM without guidance, the same initial noise and labels in all arms and seeds; weights, "
    "batches, timesteps and noise do not depend on the arm. lr 2e-3 for all arms: at 1e-3 digits are not finished "
    "after 2,400 steps. `loss_bin_1` to `_4` are losses on held-out images, least noise first: routing is not "
    "expected to lower them. `medium` is CIFAR-10 in pixels with the width and depth of DiT-S; `full` is ImageNet in "
    "latents, whose distances, in torchvision's Inception-v3 and to decoded latents, compare between arms and not "
    "with published FIDs."
)


@PAPER.claim(
    "With equal parameters, steps and seeds, task routing makes better samples than the plain network",
    arms=("plain", "dtr"),
    expect=[
        lower("dtr", than="plain", metric="frechet_cnn"),
        shown(lower("dtr", than="plain", metric="loss_bin_4")),
    ],
    setup={"smoke": SMOKE, "small": SMALL, "medium": CIFAR, "full": IMAGENET},
    data=DATA,
    seeds={"smoke": 1, "small": 3, "medium": 3, "full": 3},
    timeout=2_000_000.0,
    resources={"gpus": 1},
    reported=(
        "ImageNet 256, DiT-L/2, 400k steps, guidance 1.5: FID-50K 12.59 without and 8.90 with DTR, inception score "
        "134.6 and 156.5 (the authors' repository)"
    ),
    notes=_PROTOCOL + " A fourth seed, left out for its cost, leaves the verdict as it is: +1.1 [-2.9, +5.2].",
    helps=lower("dtr", than="plain", metric="frechet_cnn"),
)
def routing(trial: Trial, data: ImageData) -> dict[str, float]:
    return denoise(trial, data)


@PAPER.claim(
    "Overlapping windows of channels make better samples than random subsets of the same size",
    arms=("random", "dtr"),
    expect=[lower("dtr", than="random", metric="frechet_cnn")],
    setup={
        "smoke": SMOKE,
        "small": SMALL.replace(steps=1_000, curve=[500], samples=1_000),
        "medium": CIFAR,
        "full": IMAGENET,
    },
    data=DATA,
    seeds={"smoke": 1, "small": range(10, 13), "medium": 3, "full": 3},
    version=2,
    timeout=2_000_000.0,
    resources={"gpus": 1},
    reported="Random routing (R-TR) is worse than the plain network, DTR better (ablation; direction only)",
    notes=_PROTOCOL + " `random`: a subset for every task and block. After 1,500 steps (version 1) 77 [52, 103] apart.",
)
def structure(trial: Trial, data: ImageData) -> dict[str, float]:
    if trial.arm == "random":
        setup = trial.setup
        masks = {
            name: routing_mask(
                1_000, setup.dim, alpha=setup.alpha, beta=setup.beta, method=name,
                generator=torch.Generator().manual_seed(0),
            )
            for name in ("random", "dtr")
        }  # fmt: skip
        trial.figure("masks", plot_masks(masks))
    return denoise(trial, data)


@PAPER.claim(
    "Routing costs no parameters and almost no operations",
    arms=("plain", "dtr", "random"),
    expect=[
        identity("dtr", metric="extra_parameters", value=0, tolerance=0),
        identity("random", metric="extra_parameters", value=0, tolerance=0),
        identity("dtr", metric="extra_flops_percent", value=0, tolerance=0.1),
        identity("random", metric="extra_flops_percent", value=0, tolerance=0.1),
        shown("plain"),
    ],
    setup={"smoke": Setup(size=32, depth=1), "small": Setup(size=32, depth=12)},
    seeds=1,
    reported="No additional parameters (abstract)",
    notes=(
        "DiT-S/2 on 32 x 32 pixels, 256 tokens. Multiplications and additions of matrix products as torch counts them, "
        "which masks have no part in, and the masks' own element-wise ones: x m, 1 - m, and their sum with what passes "
        "by. Time is the benchmark's: `etude bench denoising_task_routing`."
    ),
)
def zero_cost(trial: Trial) -> dict[str, float]:
    size, depth = trial.setup.size, trial.setup.depth
    routing = None if trial.arm == "plain" else Routing(method=trial.arm)
    plain, routed = (
        dit_s_2(input_size=size, in_channels=3, num_classes=10, depth=depth, routing=used) for used in (None, routing)
    )
    flops = []
    for model in (plain, routed):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.eval()(torch.zeros(1, 3, size, size), torch.zeros(1).long())
        flops.append(counter.get_total_flops())
    routers = 0 if routing is None else len(routed.blocks)
    tokens, dim = routed.positions.shape
    # x m, (1 - m) once a row, x (1 - m) and the sum.
    extra = flops[1] - flops[0] + routers * (3 * tokens * dim + dim)
    parameters = [sum(parameter.numel() for parameter in model.parameters()) for model in (plain, routed)]
    return {
        "extra_parameters": float(parameters[1] - parameters[0]), "extra_flops_percent": 100 * extra / flops[0],
        "parameters": float(parameters[1]), "gigaflops": flops[1] / 1e9,
    }  # fmt: skip


@PAPER.claim(
    "Task routing still helps beside weights of the loss that depend on the timestep",
    arms=("min_snr_plain", "min_snr_dtr", "uw_plain", "uw_dtr"),
    expect=[
        lower("min_snr_dtr", than="min_snr_plain", metric="frechet_cnn"),
        lower("uw_dtr", than="uw_plain", metric="frechet_cnn"),
    ],
    setup={"smoke": SMOKE, "full": IMAGENET},
    data={"digits": Source(digits, scales=("smoke",)), "imagenet256": Source(imagenet, scales=("full",))},
    seeds={"smoke": 1, "full": 3},
    timeout=2_000_000.0,
    resources={"gpus": 1},
    reported=(
        "ImageNet 256, DiT-L/2, FID-50K without and with DTR: min-SNR-5 9.58 and 8.24; clusters with uncertainty "
        "weights (ANT-UW) 5.85 and 4.61 (the authors' repository)"
    ),
    notes=(
        "Where the routing itself is not ahead at `small`, what it adds to a weight is not asked there. `uw` takes 8 "
        "equally long clusters, as many rows of each in a batch, their s at a learning rate of 0.025. " + _PROTOCOL
    ),
)
def with_weights(trial: Trial, data: ImageData) -> dict[str, float]:
    return denoise(trial, data)


_ADM = {"base_channels": 128, "channel_mult": [1, 2, 2, 2], "num_res_blocks": 2, "attention_levels": [1]}


@PAPER.claim(
    "Task routing makes better samples of an ADM U-Net than no routing and than random routing",
    arms=("plain", "random", "dtr"),
    expect=[
        lower("dtr", than="plain", metric="frechet_cnn"),
        lower("dtr", than="random", metric="frechet_cnn"),
        shown(lower("plain", than="random", metric="frechet_cnn")),
    ],
    setup={
        "smoke": SMOKE.replace(
            steps=3, curve=[],
            unet={
                "base_channels": 8, "channel_mult": [1, 2], "num_res_blocks": 1, "attention_levels": [1],
                "norm_groups": 4, "head_channels": 8,
            },
        ),
        "medium": CIFAR.replace(unet=_ADM),
        "full": CIFAR.replace(unet=_ADM, steps=200_000, samples=50_000, curve=[50_000, 100_000], features="inception"),
    },
    data={"digits": Source(digits, scales=("smoke",)), "cifar10": Source(cifar10, scales=("medium", "full"))},
    seeds={"smoke": 1, "medium": 3, "full": 3},
    timeout=2_000_000.0,
    resources={"gpus": 1},
    reported="ADM on FFHQ, unconditional: DTR better than the plain network, random routing worse (direction only)",
    notes=(
        "The authors' code has no U-Net; residual blocks keep the whole skip (`RoutedResBlock`). Unconditional, on "
        "CIFAR-10 instead of FFHQ. " + _PROTOCOL
    ),
)  # fmt: skip
def unet(trial: Trial, data: ImageData) -> dict[str, float]:
    return denoise(trial, data)
