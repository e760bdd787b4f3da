"""Claims of "Activator: GLU Activations as The Core Functions of a Vision Transformer"."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from etude.data import images
from etude.data.kinds import Examples, ImageData
from etude.lab import (
    Paper,
    Setup,
    Source,
    Trial,
    efficient,
    equivalent,
    higher,
    identity,
    not_worse,
    shown,
    threshold,
)
from etude.loop import accuracy, cosine_schedule, fit, mean_loss, outputs_of
from etude.vision.activator import (
    Activator,
    PatchClassifier,
    count_macs,
    count_parameters,
    mixer_block,
    shuffle_patches,
    vit_block,
)

__all__ = ["PAPER"]

PAPER = Paper(
    slug="activator",
    domain="vision",
    title="Activator: GLU Activations as The Core Functions of a Vision Transformer",
    authors="Abdullah & Aydin",
    year=2024,
    arxiv="2405.15953",
    code="https://github.com/Abdullah-88/Activator",
    summary="Gated linear units take the place of attention, and of the MLP too, in the blocks of a small ViT.",
    methods=("etude.vision.activator",),
    usage="""\
import torch
from etude.vision.activator import Activator, count_parameters
model = Activator(in_chans=3, num_classes=10, use_mlp=False)
assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
assert count_parameters(model) == 1_599_242
""",
    notes=(
        "What it can and cannot mix: in the authors' code, followed here by default, the gate works on the channels of "
        "each patch by itself. No information passes between patches before the final mean, and there are no "
        "positions, so the network is a bag of patches: a permutation of an image's patches changes nothing, and what "
        "only their arrangement tells cannot be learned. `mixing='token'` is an extension of this library; the claims "
        "say which one they run. Only the variant with the GLU alone is cheaper than a ViT block: a token costs it "
        "3DM a layer beside 4D^2 + 2LD + 2DM; the full variant costs 5DM, more than either. `small` asks for "
        "non-inferiority after a short training; long training with 64 patches, where attention may catch up, takes "
        "`medium` (10,000 images, an hour of one GPU) or `full`. The published baselines look untuned."
    ),
    extra="run",
)


def _cifar10() -> ImageData:
    return images.hub("uoft-cs/cifar10", in_memory=True)


def _cifar100() -> ImageData:
    return images.hub("uoft-cs/cifar100", label="fine_label", in_memory=True)


def _part(split: Examples | Dataset, n: int | None, generator: torch.Generator | None = None) -> Any:
    """The first `n` examples of a split, or `n` drawn ones if a generator is given; all of them if n is None."""
    total = len(split)  # type: ignore[arg-type]
    if n is None or n >= total:
        return split
    if isinstance(split, Examples):
        return split.take(n, generator)
    order = range(total) if generator is None else torch.randperm(total, generator=generator).tolist()
    return Subset(split, list(order)[:n])


class _Fitted(nn.Module):
    """Averages images down to about `side` pixels and pads them with zeros to multiples of the patch."""

    def __init__(self, size: tuple[int, int], side: int, patch: int):
        super().__init__()
        shrink = max(1, min(size) // side)
        self.pool = nn.AvgPool2d(shrink)
        down, right = ((-(length // shrink)) % patch for length in size)
        self.pad = nn.ZeroPad2d((right // 2, right - right // 2, down // 2, down - down // 2))
        self.size = (size[0] // shrink + down, size[1] // shrink + right)

    def forward(self, x: Tensor) -> Tensor:
        return self.pad(self.pool(x))


_PATCH = 4
_NETWORKS = ("vit", "vit_nopos", "mixer", "activator", "activator_glu_only")


def _network(name: str, fitted: _Fitted, data: ImageData, setup: Setup, **options: Any) -> nn.Module:
    """The network of an arm: one frame, another block."""
    frame = {
        "img_size": fitted.size, "patch_size": _PATCH, "in_chans": data.channels, "num_classes": data.num_classes,
        "dim": setup.dim, "depth": setup.depth,
    }  # fmt: skip
    shared = {"hidden_dim": setup.hidden_dim, "dropout": setup.dropout}
    if name.startswith("vit"):
        return PatchClassifier(vit_block(**shared), **frame, pos_embed=name == "vit")
    if name == "mixer":
        return PatchClassifier(mixer_block(**shared), **frame)
    return Activator(**frame, **shared, use_mlp=name != "activator_glu_only", **options)


def _trained(trial: Trial, data: ImageData, fitted: _Fitted, name: str, lr: float, epochs: int, **options: Any) -> Any:
    """The network of an arm after the trial's training, with its training images."""
    s = trial.setup
    train = _part(data.train, s.train, trial.generator("data"))
    with trial.stream("init"):
        model = nn.Sequential(fitted, _network(name, fitted, data, s, **options)).to(trial.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    steps = epochs * (len(train) // min(s.batch_size, len(train)))
    transform = _Augmented(trial.generator("augment")) if s.augment else None
    with trial.stream("dropout"):
        losses = fit(
            model, train, optimizer, steps=steps, batch_size=s.batch_size, generator=trial.generator("order"),
            schedule=cosine_schedule(optimizer, steps, warmup=steps // 20), transform=transform,
            callbacks=[trial.progress], every=max(1, steps // 20),
        ).losses  # fmt: skip
    window = max(1, len(losses) // 40)
    for start in range(0, len(losses) - window + 1, window):
        trial.log(start + window, train_loss=sum(losses[start : start + window]) / window)
    return model, train


class _Augmented:
    """Flips each image at random and shifts a batch by up to four pixels, from a stream of its own."""

    def __init__(self, generator: torch.Generator):
        self.generator = generator

    def __call__(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, targets = batch
        flipped = torch.rand(len(x), generator=self.generator) < 0.5
        x = torch.where(flipped.to(x.device).view(-1, 1, 1, 1), x.flip(3), x)
        down, right = torch.randint(0, 9, (2,), generator=self.generator).tolist()
        padded = nn.functional.pad(x, (4, 4, 4, 4))
        return padded[:, :, down : down + x.shape[2], right : right + x.shape[3]], targets


def _measured(trial: Trial, data: ImageData, model: nn.Module, train: Any) -> dict[str, float]:
    """Accuracies of the last epoch's network, and its cost."""
    found = {"val_accuracy": accuracy(model, _part(data.val, trial.setup.val))}
    if trial.tuning:
        return found
    return found | {
        "accuracy": accuracy(model, _part(data.test, trial.setup.test)),
        "train_loss": mean_loss(model, train),
        "parameters": float(count_parameters(model)),
        "macs": float(count_macs(model, (1, data.channels, *data.size))),
    }


_TINY = {"side": 14, "dim": 16, "hidden_dim": 32, "depth": 1, "dropout": 0.1, "augment": False}
_SMALL = {"side": 14, "dim": 64, "hidden_dim": 128, "depth": 3, "dropout": 0.1, "augment": False}
_PAPER = {"side": 32, "dim": 256, "hidden_dim": 512, "depth": 4, "dropout": 0.5, "augment": False}
_SETUPS = {
    "smoke": Setup(**_TINY, train=60, val=20, test=40, epochs=1, batch_size=20),
    "small": Setup(**_SMALL, train=1500, val=1000, test=1000, epochs=10, batch_size=100),
    "medium": Setup(**_PAPER | {"dropout": 0.1}, train=10_000, val=2000, test=4000, epochs=60, batch_size=128),
    "full": Setup(**_PAPER, train=None, val=None, test=None, epochs=100, batch_size=128),
}
_DATA = {
    "natural_crops": Source(images.natural_crops, scales=("smoke", "small")),
    "cifar10_jpeg": Source(images.cifar10_jpeg, scales=("small", "medium")),
    "cifar10": Source(_cifar10, scales=("full",)),
    "cifar100": Source(_cifar100, scales=("full",)),
}
_COMPETITIVE = efficient("activator_glu_only", than="vit", cost="macs", quality="accuracy", margin=0.02)


@PAPER.claim(
    "A block that is one GLU on channels keeps up with attention and Mixer blocks, at a lower cost than attention",
    arms=_NETWORKS,
    expect=[
        _COMPETITIVE,
        efficient("activator_glu_only", than="vit", cost="parameters", quality="accuracy", margin=0.02),
        not_worse("activator_glu_only", than="mixer", metric="accuracy", margin=0.02),
        shown(
            "vit_nopos",
            "activator",
            higher("activator_glu_only", than="vit", metric="accuracy"),
            higher("activator_glu_only", than="vit_nopos", metric="accuracy"),
            not_worse("activator", than="vit", metric="accuracy", margin=0.02),
        ),
    ],
    setup=_SETUPS,
    data=_DATA,
    tune={"lr": [1e-3, 3e-3, 1e-2]},
    tune_by="val_accuracy",
    tune_seeds=1,
    seeds={"smoke": 1, "small": 5, "medium": 5, "full": 5},
    timeout=14_400,
    reported=(
        "GLU only 73.2% on CIFAR-10, 46.1% on CIFAR-100; MLP-Mixer 70.1 and 39.2; ViT 65.7 and 34.9 (last version, as "
        "abstract services give it)"
    ),
    notes=(
        "All arms have one frame: patches of 4 x 4, three blocks, D = 64, M = 128, mean over tokens, no class token; "
        "the gates work on channels (`mixing='channel'`), so GLU only and `activator` never mix patches. `vit` has "
        "learned positions, without which (`vit_nopos`) attention sees no arrangement either. Rates are tuned per arm "
        "on validation images that are not trained on; accuracies are those of the last epoch, on images that are "
        "always the same. Fewer multiply-accumulates and parameters than `vit` is counted; Mixer has fewer of both, so "
        "it is held against in accuracy only. `activator`, with GLU and MLP, costs more than `vit` and no contrast "
        "says otherwise. Natural crops are textures, which a bag of patches suits; CIFAR-10 needs the data folder. "
        "Everything is under-trained at `small`: `medium` (10,000 images of 32 x 32, 64 patches, 60 epochs, the "
        "paper's widths with dropout 0.1) is what a verdict on trained networks takes. `full` is the authors' recipe "
        "with rates tuned and a decaying schedule; set `augment` for flips and shifts."
    ),
    helps=_COMPETITIVE,
)
def competitive_at_lower_cost(trial: Trial, data: ImageData) -> dict[str, float]:
    fitted = _Fitted(data.size, trial.setup.side, _PATCH)
    model, train = _trained(trial, data, fitted, trial.arm, trial.tuned.lr, trial.setup.epochs)
    return _measured(trial, data, model, train)


def _mixing(setup: Setup, arm: str, tokens: int) -> dict[str, Any]:
    """A gate along tokens with four fifths of the weights of the one along channels, 3 x dim x hidden: it is slow."""
    hidden = max(1, round(0.8 * setup.dim * setup.hidden_dim / tokens))
    return {"mixing": "token", "token_hidden_dim": hidden} if arm == "token" else {}


@PAPER.claim(
    "The channel-gated network does not see how patches are arranged: shuffling them costs it nothing, a ViT with "
    "positions something",
    arms=("channel", "token", "vit", "vit_nopos"),
    expect=[
        identity("channel", metric="drop", tolerance=0.0011),
        identity("channel", metric="logit_change", tolerance=1e-3),
        threshold("vit", metric="drop", above=0.0),
        shown(
            "vit_nopos",
            identity("vit_nopos", metric="drop", tolerance=0.0011),
            threshold("token", metric="drop", above=0.0),
            higher("token", than="channel", metric="accuracy"),
        ),
    ],
    setup=_SETUPS | {"small": _SETUPS["small"].replace(train=1000)},
    data={
        "natural_crops": Source(images.natural_crops, scales=("smoke",)),
        "mnist5k": Source(images.mnist5k, scales=("small",)),
        "cifar10_jpeg": Source(images.cifar10_jpeg, scales=("medium",)),
        "cifar10": Source(_cifar10, scales=("full",)),
    },
    tune={"lr": [1e-3, 3e-3]},
    tune_by="val_accuracy",
    tune_seeds=1,
    seeds={"smoke": 1, "small": 5, "medium": 5, "full": 5},
    timeout=14_400,
    reported="the text speaks of interaction between tokens; no such test is reported",
    notes=(
        "A control of this library. `channel` is the authors' block with GLU and MLP; `token` is the extension, whose "
        "gates run along the patches; its parameters are within 15% of those of `channel`. Each test image's patches "
        "are put in a random order of its own; `drop` is the accuracy that this costs (the tolerance is one image of a "
        "thousand, as sums in another order round otherwise) and `logit_change` the largest change of a logit. On "
        "digits, of which only the arrangement of strokes tells, what `token` gains over `channel` is what mixing is "
        "worth. Gates along few tokens are slow, hence 1,000 images at `small`."
    ),
)
def token_mixing_matters(trial: Trial, data: ImageData) -> dict[str, float]:
    s = trial.setup
    fitted = _Fitted(data.size, s.side, _PATCH)
    name = "activator" if trial.arm in ("channel", "token") else trial.arm
    tokens = (fitted.size[0] // _PATCH) * (fitted.size[1] // _PATCH)
    model, train = _trained(trial, data, fitted, name, trial.tuned.lr, s.epochs, **_mixing(s, trial.arm, tokens))
    found = _measured(trial, data, model, train)
    if trial.tuning:
        return found
    test = _part(data.test, s.test)
    logits, targets = outputs_of(model, test)
    pixels = torch.stack([image for image, _ in (test[index] for index in range(len(test)))])
    shuffled = shuffle_patches(fitted.cpu()(pixels), _PATCH, trial.generator("shuffle"))
    moved, _ = outputs_of(model[1], Examples(shuffled, targets.cpu()))
    return found | {
        "shuffled_accuracy": accuracy(moved, targets),
        "drop": found["accuracy"] - accuracy(moved, targets),
        "logit_change": float((moved - logits).abs().max()),
    }


_GATES = {"geglu": "gelu", "swiglu": "silu", "reglu": "relu"}


@PAPER.claim(
    "The gate's activation hardly matters: GEGLU, SwiGLU and ReGLU lie within two points of one another",
    arms=(*_GATES, "quarter_trained"),
    expect=[
        equivalent("swiglu", to="geglu", metric="accuracy", margin=0.02, control="quarter_trained"),
        equivalent("reglu", to="geglu", metric="accuracy", margin=0.02, control="quarter_trained"),
        equivalent("swiglu", to="reglu", metric="accuracy", margin=0.02, control="quarter_trained"),
    ],
    setup=_SETUPS,
    data={
        "natural_crops": Source(images.natural_crops, scales=("smoke", "small")),
        "cifar10_jpeg": Source(images.cifar10_jpeg, scales=("medium",)),
        "cifar10": Source(_cifar10, scales=("full",)),
    },
    tune={"lr": [1e-3, 3e-3]},
    tune_by="val_accuracy",
    tune_seeds=1,
    tuned_like={"quarter_trained": "geglu"},
    seeds={"smoke": 1, "small": 8, "medium": 5, "full": 5},
    timeout=14_400,
    reported="GEGLU, SwiGLU and ReGLU within about a point of one another (ablation)",
    notes=(
        "TOST of every pair, on the variant with the GLU alone, gates on channels. `quarter_trained` is GEGLU with a "
        "quarter of the epochs: if the measure could not tell it from GEGLU, it could tell nothing."
    ),
)
def activation_robust(trial: Trial, data: ImageData) -> dict[str, float]:
    s = trial.setup
    fitted = _Fitted(data.size, s.side, _PATCH)
    epochs = max(1, s.epochs // 4) if trial.arm == "quarter_trained" else s.epochs
    gate = _GATES.get(trial.arm, "gelu")
    model, train = _trained(trial, data, fitted, "activator_glu_only", trial.tuned.lr, epochs, activation=gate)
    return _measured(trial, data, model, train)
