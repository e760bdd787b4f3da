"""Claims of "BatchFormer: Learning to Explore Sample Relationships for Robust Representation Learning"."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.data import images
from etude.data.augmentation import auto_augment, crop_and_flip, cutout
from etude.data.kinds import Examples, ImageData
from etude.lab import Paper, Setup, Source, Trial, higher, identity, shown
from etude.loop import cosine_schedule, fit, outputs_of
from etude.training.batchformer import (
    BalancedSoftmaxLoss,
    BatchFormer,
    BatchFormerStream,
    BatchFormerV2,
    long_tailed_indices,
    param_groups_with_batchformer,
    shot_accuracy,
    split_streams,
    two_stream_loss,
)

__all__ = ["PAPER"]

PAPER = Paper(
    slug="batchformer",
    domain="training",
    title="BatchFormer: Learning to Explore Sample Relationships for Robust Representation Learning",
    authors="Hou, Yu & Tao",
    year=2022,
    arxiv="2203.01522",
    venue="CVPR",
    summary=(
        "A transformer layer attends over the samples of a batch in training, one classifier reads both its input and "
        "its output, and at test the layer is gone."
    ),
    methods=("etude.training.batchformer",),
    usage="""\
import torch
from etude.training.batchformer import attach_batchformer, param_groups_with_batchformer, two_stream_loss
model = torch.nn.Sequential(torch.nn.Linear(10, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3))
handle = attach_batchformer(model, "1", "2")
optimizer = torch.optim.SGD(param_groups_with_batchformer(model, handle.batchformer, lr=0.1), momentum=0.9)
x, y = torch.randn(32, 10), torch.randint(3, (32,))
two_stream_loss(model(x), y).backward()  # the model returns 64 rows in training, 32 in evaluation
optimizer.step()
""",
    notes=(
        "A headline to read beside its controls. On digits, with a learning rate that suits each arm, the layer gains "
        "nothing, and neither does the same layer without its attention. What it gains at one rate for all, too low "
        "for the plain network, that control gains too: the effect of a second, disturbed branch under a shared "
        "classifier, not of relations between samples. `small` sees "
        "differences of two points, `medium` (the same digits, 64 seeds) of half a point; whether attention matters on "
        "images as hard as the paper's is decided at `full` only. "
        "Keep the losses of both halves averaged (`two_stream_loss`): the authors' trainer adds them up to three times "
        "that, which is a larger learning rate for the method alone. Leave the layer a tenth of the rate, as they do. "
        "A step of ResNet-18 at batch 128 costs 1.5 % more multiplications (`etude bench batchformer` for the clock)."
    ),
    code="https://github.com/zhihou7/BatchFormer",
    extra="run",
)


def cifar100() -> ImageData:
    return images.hub("uoft-cs/cifar100", image="img", label="fine_label", in_memory=True)


class Standardize(nn.Module):
    """Brings each channel to mean 0 and standard deviation 1 over the given images."""

    mean: Tensor
    std: Tensor

    def __init__(self, examples: Tensor):
        super().__init__()
        std = examples.std(dim=(0, 2, 3), keepdim=True, correction=0)
        self.register_buffer("mean", examples.mean(dim=(0, 2, 3), keepdim=True))
        self.register_buffer("std", torch.where(std > 0, std, torch.ones_like(std)))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def convnet(channels: int, blocks: int) -> nn.Sequential:
    """Three convolutions; 64 features."""
    layers: list[nn.Module] = []
    for width, pool in ((16, True), (32, True), (64, False)):
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if pool else []
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class BasicBlock(nn.Module):
    """A residual block whose shortcut, where the shape changes, skips pixels and fills up channels with zeros."""

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.stride, self.grown = stride, width - channels
        self.residual = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x[:, :, :: self.stride, :: self.stride]
        shortcut = F.pad(shortcut, (0, 0, 0, 0, self.grown // 2, self.grown - self.grown // 2))
        return F.relu(self.residual(x) + shortcut)


def resnet(channels: int, blocks: int) -> nn.Sequential:
    """The ResNet of 6 x blocks + 2 layers for CIFAR (He et al., 2015); 64 features."""
    layers: list[nn.Module] = [nn.Conv2d(channels, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    channels = 16
    for width in (16, 32, 64):
        for index in range(blocks):
            layers.append(BasicBlock(channels, width, 2 if index == 0 and width > 16 else 1))
            channels = width
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return model


BACKBONES: dict[str, Callable[[int, int], nn.Sequential]] = {"convnet": convnet, "resnet": resnet}
DIM = 64


class Network(nn.Module):
    """Backbone, then a branch that may double the features, then the classifier."""

    def __init__(self, standardize: Standardize, backbone: nn.Module, num_classes: int):
        super().__init__()
        self.standardize, self.backbone = standardize, backbone
        self.branch: nn.Module = nn.Identity()
        self.classifier: nn.Module = nn.Linear(DIM, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.branch(self.backbone(self.standardize(x))))


class WithoutAttention(BatchFormer):
    """BatchFormer's layer less its attention: LN(x + drop(x)), then the feed-forward half."""

    def encode(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            assert isinstance(layer, nn.TransformerEncoderLayer)
            x = layer.norm1(x + layer.dropout1(x))
            hidden = layer.dropout(F.relu(layer.linear1(x)))
            x = layer.norm2(x + layer.dropout2(layer.linear2(hidden)))
        return x


class DropoutViews(nn.Module):
    """Doubles the batch with a copy under dropout."""

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([features, F.dropout(features, 0.5)]) if self.training else features


class Unshared(nn.Module):
    """A classifier of its own for each stream; at test that of the plain one."""

    def __init__(self, plain: nn.Module, mixed: nn.Module):
        super().__init__()
        self.plain, self.mixed = plain, mixed

    def forward(self, features: Tensor) -> Tensor:
        if not self.training:
            return self.plain(features)
        plain, mixed = split_streams(features)
        return torch.cat([self.plain(plain), self.mixed(mixed)])


BRANCHES: dict[str, Callable[[], nn.Module]] = {
    "balanced_softmax": nn.Identity,
    "batchformer": lambda: BatchFormer(DIM),
    "no_attention": lambda: WithoutAttention(DIM),
    "unshared": lambda: BatchFormer(DIM),
    "dropout_views": DropoutViews,
}


def rolled(x: Tensor, generator: torch.Generator) -> Tensor:
    """The whole batch shifted by at most a pixel either way."""
    down, right = torch.randint(-1, 2, (2,), generator=generator).tolist()
    return x.roll((down, right), dims=(2, 3))


def cifar_views(x: Tensor, generator: torch.Generator) -> Tensor:
    """Random crops after padding by 4, mirror images, AutoAugment and Cutout."""
    return cutout(auto_augment(crop_and_flip(x, 4, generator), generator=generator), 16, generator)


AUGMENTATIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {"roll": rolled, "cifar": cifar_views}


def joined(data: ImageData, side: int) -> tuple[Examples, Examples]:
    """The pool to draw training sets from (train and val together) and the test part, no larger than `side` pixels."""
    parts = []
    for split in (data.train, data.val, data.test):
        if not isinstance(split, Examples):
            raise TypeError(f"the long tail is cut from examples in memory, {data.name} holds a {type(split).__name__}")
        size = (min(side, data.size[0]), min(side, data.size[1]))
        parts.append((F.adaptive_avg_pool2d(split.inputs, size), split.targets))
    (train, train_y), (val, val_y), test = parts
    return Examples(torch.cat([train, val]), torch.cat([train_y, val_y])), Examples(*test)


def long_tailed(trial: Trial, pool: Examples, num_classes: int) -> tuple[Examples, Examples | None]:
    """The training set with its classes in random order; in tuning also a balanced part that it does not touch.

    Raises:
        ValueError: if a class has so few images that every class would count as rare.
    """
    setup, generator = trial.setup, trial.generator("data")
    smallest = int(torch.bincount(pool.targets, minlength=num_classes).min())
    if smallest < setup.few:
        raise ValueError(
            f"the long tail needs {setup.few} images of each class outside the test part, a class has {smallest}"
        )
    order = torch.randperm(num_classes, generator=generator)
    shuffled = pool.subset(torch.randperm(len(pool), generator=generator))
    val = None
    if trial.tuning:
        rank = F.one_hot(shuffled.targets, num_classes).cumsum(dim=0).gather(1, shuffled.targets[:, None]).squeeze(1)
        held_out = rank <= min(setup.val_per_class, smallest // 2)
        val, shuffled = shuffled.subset(held_out), shuffled.subset(~held_out)
        smallest -= min(setup.val_per_class, smallest // 2)
    most = min(setup.max_per_class, smallest)
    chosen = long_tailed_indices(
        shuffled.targets, min(setup.imbalance, most), most, class_order=order, generator=generator
    )
    return shuffled.subset(chosen), val


CIFAR = Setup(
    network="resnet", blocks=5, side=32, augment="cifar", max_per_class=500, imbalance=100, val_per_class=10, many=100,
    few=20, steps=13_000, batch=512, warmup=800, replacement=False, weight_decay=5e-4,
)  # fmt: skip
DIGITS = CIFAR.replace(
    network="convnet", blocks=0, side=14, augment="roll", max_per_class=300, val_per_class=100, few=10, steps=400,
    batch=128, warmup=0, replacement=True,
)  # fmt: skip


@PAPER.claim(
    "BatchFormer in training raises balanced accuracy under a long tail, at no cost at test",
    arms=("balanced_softmax", "batchformer", "no_attention", "unshared", "dropout_views"),
    expect=[
        higher("batchformer", than="balanced_softmax", metric="balanced_accuracy"),
        identity("batchformer", metric="test_difference", tolerance=0),
        shown(
            "no_attention",
            "unshared",
            "dropout_views",
            higher("batchformer", than="balanced_softmax", metric="few"),
            higher("batchformer", than="balanced_softmax", metric="few_less_rest"),
            higher("batchformer", than="no_attention", metric="balanced_accuracy"),
            higher("batchformer", than="unshared", metric="balanced_accuracy"),
            higher("batchformer", than="dropout_views", metric="balanced_accuracy"),
            higher("no_attention", than="balanced_softmax", metric="balanced_accuracy"),
        ),
    ],
    setup={
        # The published network and augmentation on digits, so that the path of `full` runs.
        "smoke": CIFAR.replace(blocks=1, side=14, few=10, steps=3, batch=32, warmup=1),
        "small": DIGITS,
        "medium": DIGITS,
        "full": CIFAR,
    },
    data={
        "mnist5k": Source(images.mnist5k, scales=("smoke", "small", "medium")),
        "cifar100": Source(cifar100, scales=("full",)),
    },
    tune={"lr": [0.03, 0.1, 0.3, 1.0, 3.0]},
    tune_by="val_accuracy",
    tune_seeds=3,
    seeds={"smoke": range(8), "small": range(8), "medium": range(64), "full": range(8)},
    version=1,
    timeout=14_400.0,
    reported=(
        "All / many / medium / few shots: ImageNet-LT, ResNet-10 RIDE 44.7 / 57.0 / 40.3 / 25.5 and with BatchFormer "
        "45.7 / 56.3 / 42.1 / 28.3; ResNet-50 PaCo 57.0 / 64.8 / 55.9 / 39.1 and 57.4 / 62.7 / 56.7 / 42.1; "
        "CIFAR-100-LT, imbalance 100, PaCo, all: 52.0 and 52.4"
    ),
    notes=(
        "Ten digit classes of 300 down to 3 images, in a class order of the seed; the test set is balanced. Every arm "
        "trains with the balanced softmax, and searches one grid of learning rates on 100 images a class that it never "
        "trains on; the added layer learns at a tenth of that rate, as in the authors' code. Losses of the two halves "
        "are averaged in every arm, so that a rate means the same in all. Three controls say what in BatchFormer it is "
        "that acts: `no_attention` is its layer without the attention, LN(x + drop(x)) and the feed-forward half; "
        "`dropout_views` puts features under dropout in the place of the mixed ones; `unshared` gives the mixed half a "
        "classifier of its own. `few_less_rest` is the accuracy on the classes of few images less that on all others: "
        "the paper's sentence wants it to rise. `test_difference` compares the test logits with those of the network "
        "that the layer has been taken out of. Seeds draw their tails from one pool and share its test set: intervals "
        "are about these digits. The difference of the first two arms scatters over seeds by 1.5 points, so that eight "
        "seeds see two points and the 64 of `medium`, about half an hour of one core, half a point. "
        "`full` is CIFAR-100-LT with ResNet-32, AutoAugment and Cutout by the recipe of the authors' balanced-softmax "
        "trainer, except for the averaged loss and the learning rate, searched here where theirs is 0.05."
    ),
    helps=higher("batchformer", than="balanced_softmax", metric="balanced_accuracy"),
)
def long_tail(trial: Trial, data: ImageData) -> dict[str, float]:
    setup = trial.setup
    pool, test = joined(data, setup.side)
    train, val = long_tailed(trial, pool, data.num_classes)
    counts = torch.bincount(train.targets, minlength=data.num_classes)
    with trial.stream("init"):
        backbone = BACKBONES[setup.network](data.channels, setup.blocks)
        model = Network(Standardize(train.inputs), backbone, data.num_classes)
    with trial.stream("method"):
        model.branch = BRANCHES[trial.arm]()
        if trial.arm == "unshared":
            model.classifier = Unshared(model.classifier, nn.Linear(DIM, data.num_classes))
    model.to(trial.device)
    groups = param_groups_with_batchformer(model, model.branch, lr=trial.tuned.lr)
    optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=setup.weight_decay)
    criterion = BalancedSoftmaxLoss(counts).to(trial.device)

    def augmented(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return AUGMENTATIONS[setup.augment](batch[0], trial.generator("augment")), batch[1]

    def note(step: int, total: int, loss: float, lr: float) -> None:
        trial.log(step, loss=loss)
        trial.progress(step, total, loss=loss)

    with trial.stream("dropout"):
        fit(
            model, train, optimizer, loss=lambda logits, y: two_stream_loss(logits, y, criterion), steps=setup.steps,
            batch_size=setup.batch, generator=trial.generator("order"), replacement=setup.replacement,
            schedule=cosine_schedule(optimizer, setup.steps, setup.warmup), transform=augmented, callbacks=[note],
            every=max(setup.steps // 40, 1),
        )  # fmt: skip
    if val is not None:
        logits, y = outputs_of(model, val)
        return {"val_accuracy": shot_accuracy(logits.argmax(dim=1), y, counts)["all"]}
    logits, y = outputs_of(model, test)
    pred = logits.argmax(dim=1)
    scores = shot_accuracy(pred, y, counts, setup.many, setup.few)
    rest = shot_accuracy(pred, y, counts, setup.few - 1, setup.few)["many"]
    model.branch = nn.Identity()
    bare, _ = outputs_of(model, test)
    metrics = {
        "balanced_accuracy": scores.pop("all"),
        "few_less_rest": scores["few"] - rest,
        "test_difference": (logits - bare).abs().max().item(),
        **scores,
    }
    return {name: value for name, value in metrics.items() if not math.isnan(value)}


class SmallViT(nn.Module):
    """Patches of 4 x 4 pixels, the given blocks, and a head on the mean token."""

    def __init__(self, size: int, dim: int, blocks: nn.Module):
        super().__init__()
        self.patches = nn.Conv2d(1, dim, 4, stride=4)
        self.positions = nn.Parameter(0.02 * torch.randn((size // 4) ** 2, dim))
        self.blocks = blocks
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(tokens)).mean(dim=1))


class OverTokens(BatchFormerV2):
    """The layer with its batch axis in the wrong place: it attends over the tokens of one sample."""

    def encode(self, x: Tensor) -> Tensor:
        return super().encode(x.transpose(0, 1)).transpose(0, 1)


def couplings(logits: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Entry (i, j): the largest derivative of sample i's loss by a pixel of sample j."""
    losses = F.cross_entropy(logits, y, reduction="none")
    rows = [torch.autograd.grad(loss, x, retain_graph=True)[0].abs().flatten(1).amax(dim=1) for loss in losses]
    return torch.stack(rows)


@PAPER.claim(
    "In training a sample's mixed stream, and it alone, depends on the other samples; at test nothing does",
    arms=("batchformer_v2", "over_tokens"),
    expect=[
        identity("batchformer_v2", metric="mixed_pairs_coupled", value=1, tolerance=0),
        identity("batchformer_v2", metric="plain_coupling", tolerance=0),
        identity("batchformer_v2", metric="test_coupling", tolerance=0),
        identity("batchformer_v2", metric="test_difference", tolerance=0),
        shown("over_tokens", identity("over_tokens", metric="mixed_pairs_coupled", tolerance=0)),
    ],
    setup={
        "smoke": Setup(samples=3, size=8, dim=16),
        "small": Setup(samples=8, size=16, dim=32),
        "full": Setup(samples=32, size=64, dim=192),
    },
    reported=(
        "BatchFormerV2's accuracy, which this identity does not touch: DeiT-T / S / B 72.2 / 79.8 / 81.7 without and "
        "72.7 / 80.4 / 82.2 with; DETR 34.8 and 36.9 AP (the authors' repository)"
    ),
    notes=(
        "A vision transformer of four blocks, LayerNorm, no dropout, BatchFormerV2 after the second and third block. "
        "`mixed_pairs_coupled` is the share of ordered pairs of different samples (i, j) in which the loss of i's "
        "mixed half has a gradient at j's pixels; the couplings are the largest such derivative in the plain half and "
        "at test, and `test_difference` the largest difference at test from the blocks without BatchFormerV2. "
        "`over_tokens` is the silent mistake of passing (B, L, C) to a batch-first layer: it runs, and couples nothing."
    ),
)
def v2_stream(trial: Trial) -> dict[str, float]:
    setup = trial.setup
    make = {"batchformer_v2": BatchFormerV2, "over_tokens": OverTokens}[trial.arm]
    with trial.stream("init"):
        layer = make(setup.dim, dropout=0.0)
        blocks = [
            nn.TransformerEncoderLayer(setup.dim, 4, 2 * setup.dim, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(4)
        ]
        stream = BatchFormerStream(blocks, insert_at=[1, 2], batchformers=layer)
        model = SmallViT(setup.size, setup.dim, stream).to(trial.device)
    generator = trial.generator("data")
    x = torch.randn(setup.samples, 1, setup.size, setup.size, generator=generator).to(trial.device).requires_grad_()
    y = torch.randint(10, (setup.samples,), generator=generator).to(trial.device)
    different = ~torch.eye(setup.samples, dtype=torch.bool, device=trial.device)
    plain, mixed = split_streams(couplings(model(x), y.repeat(2), x))
    model.eval()
    tested = model(x)
    model.blocks = nn.Sequential(*stream)
    return {
        "mixed_pairs_coupled": (mixed[different] > 0).double().mean().item(),
        "plain_coupling": plain[different].max().item(),
        "test_coupling": couplings(tested, y, x)[different].max().item(),
        "test_difference": (tested - model(x)).abs().max().item(),
    }
