"""Claims of "Make Deep Networks Shallow Again"."""

import math
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from etude.data import images
from etude.data.kinds import Examples, ImageData
from etude.lab import (
    Paper,
    Setup,
    Source,
    Trial,
    equivalent,
    higher,
    identity,
    interaction,
    lower,
    not_worse,
    shown,
    threshold,
    trend,
)
from etude.loop import accuracy, cosine_schedule, fit, mean_loss
from etude.vision.shallow import (
    ResidualStack,
    ShallowNet,
    core_grid,
    count_operators,
    gradient_ratio,
    overdetermination_ratio,
    second_order_residual,
    taylor_expand,
    train_once,
)

__all__ = ["PAPER"]

PAPER = Paper(
    slug="shallow",
    domain="vision",
    title="Make Deep Networks Shallow Again",
    authors="Bermeitinger, Hrycej & Handschuh",
    year=2023,
    venue="KDIR",
    arxiv="2309.08414",
    summary="A stack of residual layers is replaced by one broad layer of the same parameters, all side by side.",
    methods=("etude.vision.shallow",),
    usage="""\
import torch
from etude.vision.shallow import ShallowNet
deep = ShallowNet(in_chans=3, num_classes=10, num_layers=8)
shallow = ShallowNet(in_chans=3, num_classes=10, num_layers=8, layout="parallel")
shallow.load_state_dict(deep.state_dict())
assert shallow(torch.randn(2, 3, 32, 32)).shape == (2, 10)
""",
    notes=(
        "There is no official code; stem, pooling, initialisation and the axes of the 6,912 combinations are this "
        "library's choice. The parallel layout sees each pixel's neighbourhood once, whatever the number of layers: "
        "what needs a wider view must come from the stem, the pooling or larger kernels. Images of other sizes are "
        "pooled adaptively; the number of channels must be that of the network. `small` decides equivalence on MNIST "
        "digits of 14 x 14 pixels and shows the gap by depth; whether it reaches the published pictures of CIFAR-10 "
        "takes the setup `full` of `equivalence` and `grid_losses` (the 96 configurations of the core grid, on a GPU)."
    ),
    extra="run",
)


def _mnist() -> ImageData:
    return images.hub("ylecun/mnist", in_memory=True)


def _cifar10() -> ImageData:
    return images.hub("uoft-cs/cifar10", in_memory=True)


def _part(split: Examples | Dataset, n: int | None, generator: torch.Generator | None = None) -> Any:
    """The first `n` examples of a split, or `n` drawn ones if a generator is given; all of them if n is None."""
    total = len(split)  # type: ignore[arg-type]
    if n is None or n >= total:
        return split
    if isinstance(split, Examples):
        return split.take(n, generator)
    order = range(total) if generator is None else torch.randperm(total, generator=generator).tolist()
    return Subset(split, list(order)[:n])


def _shrinking(size: tuple[int, int], side: int) -> int:
    """By how much images are averaged down before the network, so that about `side` pixels stay."""
    return max(1, min(size) // side)


def _train(
    trial: Trial, data: ImageData, lr: float, probe: Callable[[ShallowNet], Any] | None = None, **options: Any
) -> tuple[nn.Module, Any]:
    """A network of these options after the trial's training, and its training images; `probe` sees it before."""
    s = trial.setup
    train = _part(data.train, s.train, trial.generator("data"))
    with trial.stream("init"):
        net = ShallowNet(in_chans=data.channels, num_classes=data.num_classes, channels=s.channels, **options)
    if probe is not None:
        probe(net)
    model = nn.Sequential(nn.AvgPool2d(_shrinking(data.size, s.side)), net).to(trial.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    steps = s.epochs * (len(train) // min(s.batch_size, len(train)))
    losses = fit(
        model, train, optimizer, steps=steps, batch_size=s.batch_size, generator=trial.generator("order"), clip=1.0,
        schedule=cosine_schedule(optimizer, steps, warmup=steps // 10), callbacks=[trial.progress],
        every=max(1, steps // 20),
    ).losses  # fmt: skip
    window = max(1, len(losses) // 40)
    for start in range(0, len(losses) - window + 1, window):
        trial.log(start + window, train_loss=sum(losses[start : start + window]) / window)
    return model, train


def _measured(trial: Trial, data: ImageData, model: nn.Module, train: Any) -> dict[str, float]:
    val = _part(data.val, trial.setup.val)
    found = {"val_accuracy": accuracy(model, val), "val_loss": mean_loss(model, val)}
    if trial.tuning:
        return found
    test = _part(data.test, trial.setup.test)
    return found | {
        "accuracy": accuracy(model, test),
        "test_loss": mean_loss(model, test),
        # A floor keeps ratios of losses finite where a network has learnt its training set by heart.
        "train_loss": max(mean_loss(model, train), 1e-6),
        "parameters": float(sum(p.numel() for p in model.parameters())),
        "overdetermination": overdetermination_ratio(len(train), data.num_classes, model),
    }


_LAYERS = {
    "sequential": ("sequential", 8),
    "parallel": ("parallel", 8),
    "single": ("parallel", 1),
    "sequential_2": ("sequential", 2),
    "parallel_2": ("parallel", 2),
}


@PAPER.claim(
    "A deep residual stack and the shallow, parallel one of the same parameters reach similar accuracy and loss",
    arms=tuple(_LAYERS),
    expect=[
        equivalent("parallel", to="sequential", metric="accuracy", margin=0.02, control="single"),
        lower("parallel", than="single", metric="train_loss", transform="log"),
        shown(
            "sequential_2",
            "parallel_2",
            not_worse("parallel", than="sequential", metric="test_loss", margin=0.1, better="lower", transform="log"),
            lower("sequential", than="parallel", metric="train_loss", transform="log"),
            equivalent("parallel_2", to="sequential_2", metric="accuracy", margin=0.02, control="single"),
        ),
    ],
    setup={
        "smoke": Setup(train=60, val=20, test=40, epochs=1, batch_size=20, channels=4, side=7),
        "small": Setup(train=3000, val=500, test=800, epochs=25, batch_size=50, channels=16, side=14),
        "medium": Setup(train=None, val=None, test=None, epochs=60, batch_size=50, channels=16, side=14),
        "full": Setup(train=None, val=None, test=None, epochs=100, batch_size=128, channels=32, side=1000),
    },
    data={
        "mnist5k": Source(images.mnist5k, scales=("smoke", "small")),
        "mnist": Source(_mnist, scales=("medium", "full")),
        "cifar10": Source(_cifar10, scales=("full",)),
    },
    tune={"lr": [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2]},
    tune_by="val_accuracy",
    tune_seeds=1,
    seeds={"smoke": 1, "small": 6, "medium": 8, "full": 5},
    timeout=7200,
    reported=(
        "MNIST and CIFAR-10, 6,912 combinations: both layouts end at similar training and validation losses, the "
        "shallow one at times lower on validation (abstract)"
    ),
    notes=(
        "TOST: the 90% interval of the difference in accuracy within two points, and `single` (one layer, K = 1) must "
        "differ, in accuracy from the deep arm and in training loss from the parallel one, or nothing could have been "
        "told. K = 8 decides, K = 2 is shown. Digits are averaged down to 14 x 14; both layouts start from the same He "
        "weights times 1 / sqrt(K), see the same batches, and are tuned over the same rates on validation images. "
        "3,000 training images are drawn per seed; the 800 test images are always the same. Early in training the "
        "sequential net is clearly ahead (after 6 epochs by some 7 points): equivalence is one of trained networks. "
        "The losses, which accuracy near its ceiling cannot replace, stand beside it: `test_loss` not worse by more "
        "than a factor of 1.1, and whether the deep arm fits the training set closer. If `small` leaves the two points "
        "open, `medium` (all of MNIST at 14 x 14, 60 epochs, 10,000 test images: a night of CPU or an hour of a GPU) "
        "is what it takes. Seen at `small`: accuracies agree, but one layer does as well as eight once its rate is "
        "tuned, and fits the training set closer than the parallel net. The control fails: this task cannot tell."
    ),
    helps=not_worse("parallel", than="sequential", metric="accuracy", margin=0.02),
)
def equivalence(trial: Trial, data: ImageData) -> dict[str, float]:
    layout, layers = _LAYERS[trial.arm]
    model, train = _train(trial, data, trial.tuned.lr, layout=layout, num_layers=layers)
    return _measured(trial, data, model, train)


_DEPTHS = (2, 8, 16)
_DEEP = {f"{layout}_{depth}": (layout, depth) for depth in _DEPTHS for layout in ("sequential", "parallel")}


@PAPER.claim(
    "Equivalence breaks with depth on natural images: the sequential net's lead at K = 16 exceeds that at K = 2",
    arms=tuple(_DEEP),
    expect=[
        interaction(("sequential_16", "parallel_16"), minus=("sequential_2", "parallel_2"), metric="accuracy"),
        shown(*(higher(f"sequential_{k}", than=f"parallel_{k}", metric="accuracy") for k in _DEPTHS)),
        shown(*(lower(f"sequential_{k}", than=f"parallel_{k}", metric="train_loss", transform="log") for k in _DEPTHS)),
    ],
    setup={
        "smoke": Setup(train=60, val=20, test=40, epochs=1, batch_size=20, channels=4, side=8),
        "small": Setup(train=1500, val=1000, test=1000, epochs=10, batch_size=50, channels=16, side=16),
        "medium": Setup(train=10_000, val=2000, test=4000, epochs=60, batch_size=100, channels=32, side=32),
        "full": Setup(train=None, val=None, test=None, epochs=200, batch_size=128, channels=64, side=1000),
    },
    data={
        "natural_crops": Source(images.natural_crops, scales=("smoke", "small")),
        "cifar10_jpeg": Source(images.cifar10_jpeg, scales=("medium",)),
        "cifar10": Source(_cifar10, scales=("full",)),
    },
    tune={"lr": [1e-3, 4e-3, 1.6e-2]},
    tune_by="val_accuracy",
    tune_seeds=1,
    seeds={"smoke": 1, "small": 5, "medium": 5, "full": 5},
    timeout=7200,
    reported="no break with depth is reported: equivalence over all combinations (abstract)",
    notes=(
        "The depth-gap curve, where the paper's statement should end: a parallel layer sees 3 x 3 of the stem's map "
        "whatever K is, a sequential one (2K + 1)^2. Expected before the runs: the deep net's lead grows with K where "
        "training is long enough. `small` has 1,500 crops of 16 x 16 pixels, textures in the main, and 10 epochs, so a "
        "verdict may stay open; `medium` (10,000 images of CIFAR-10, 32 x 32, C = 32, 60 epochs: some hours of one "
        "GPU) is what it would take. Each arm has its own rate by validation."
    ),
)
def depth_gap(trial: Trial, data: ImageData) -> dict[str, float]:
    layout, layers = _DEEP[trial.arm]
    model, train = _train(trial, data, trial.tuned.lr, layout=layout, num_layers=layers)
    found = _measured(trial, data, model, train)
    if not trial.tuning:
        trial.log(layers, accuracy_by_depth=found["accuracy"])
    return found


_LAYOUTS = ("sequential", "parallel")


@PAPER.claim(
    "Over a grid of depths, widths, kernels and activations the final losses of both layouts agree within a tenth",
    arms=_LAYOUTS,
    expect=[
        not_worse("parallel", than="sequential", metric="log_val_loss", margin=0.1, better="lower"),
        shown(
            not_worse("parallel", than="sequential", metric="log_train_loss", margin=0.1, better="lower"),
            not_worse("parallel", than="sequential", metric="val_accuracy", margin=0.01),
        ),
    ],
    setup={
        "smoke": Setup(epochs=1, batch_size=20, deepest=2, widest=8, train=40, val=20, shrink=4),
        "full": Setup(epochs=50, batch_size=128, deepest=32, widest=32, train=None, val=None, shrink=1),
    },
    data={
        "mnist5k": Source(images.mnist5k, scales=("smoke",)),
        "mnist": Source(_mnist, scales=("full",)),
        "cifar10": Source(_cifar10, scales=("full",)),
    },
    seeds={"smoke": 1, "full": 3},
    timeout=86_400,
    reported="6,912 combinations on MNIST and CIFAR-10 (abstract): similar losses of training and validation sets",
    notes=(
        "The core grid: K in {2, 8, 32}, C in {8, 32}, 3 x 3 and 5 x 5, ReLU and sigmoid; 24 runs a trial, at full "
        "scale only. A trial returns the mean of the log losses over its configurations. `etude.vision.shallow.grid()` "
        "has all 6,912 combinations of our axes, `run_grid` runs them and can be interrupted, and `paired_summary` "
        "gives the median ratios and their intervals."
    ),
)
def grid_losses(trial: Trial, data: ImageData) -> dict[str, float]:
    s = trial.setup
    part = ImageData(
        train=_part(data.train, s.train), val=_part(data.val, s.val), test=data.test, classes=data.classes,
        name=data.name,
    )  # fmt: skip
    configurations = [
        c
        for c in core_grid(datasets=(data.name,), seeds=(trial.stream_seed("init") % 2**31,))
        if c["layout"] == trial.arm and c["num_layers"] <= s.deepest and c["channels"] <= s.widest
    ]
    runs = []
    for index, configuration in enumerate(configurations):
        runs.append(
            train_once(
                configuration, part, epochs=s.epochs, batch_size=s.batch_size, device=trial.device, shrink=s.shrink
            )
        )
        trial.progress(index + 1, len(configurations))

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    return {
        "log_train_loss": mean([math.log(max(run["train_loss"], 1e-6)) for run in runs]),
        "log_val_loss": mean([math.log(max(run["val_loss"], 1e-6)) for run in runs]),
        "val_accuracy": mean([run["val_accuracy"] for run in runs]),
    }


_POWERS = range(5, 12)
_FUNCTIONS = {"tanh": torch.tanh, "relu": torch.relu, "linear": lambda value: value}


@PAPER.claim(
    "The layouts agree to first order: their difference falls as the square of the branches' scale",
    arms=tuple(_FUNCTIONS),
    expect=[
        trend("first_order", slope=(1.9, 2.1), arm="tanh"),
        trend("first_order", slope=(1.9, 2.1), arm="relu"),
        trend("second_order", slope=(2.9, 3.1), arm="linear"),
        shown(
            trend("explained", slope=(2.9, 3.1), arm="tanh"),
            identity("linear", metric="whole_error", tolerance=1e-12),
        ),
    ],
    setup={
        "smoke": Setup(points=4, dim=8, layers=4),
        "small": Setup(points=64, dim=32, layers=8),
        "full": Setup(points=256, dim=128, layers=32),
    },
    seeds={"smoke": 1, "small": 10, "full": 10},
    reported="the first-order truncation of the expansion motivates the parallel layout (section on the theory)",
    notes=(
        "Slopes of log error over log eps, eps = 2^-5 .. 2^-11, in float64, of fully connected branches: sequential - "
        "parallel, sequential - the second-order truncation (exact orders for linear branches), and what is left of "
        "the first after the sum of Jacobian terms is taken off (`explained`: 3 for tanh, not for ReLU and its kinks). "
        "`whole_error` is the relative error of the truncation at order K, which is no truncation."
    ),
)
def taylor(trial: Trial) -> dict[str, float]:
    s = trial.setup
    activation = _FUNCTIONS[trial.arm]
    draw = trial.generator("data")
    x = torch.randn(s.points, s.dim, generator=draw, dtype=torch.float64)
    weights = torch.randn(s.layers, s.dim, s.dim, generator=draw, dtype=torch.float64) / math.sqrt(s.dim)

    def branches(eps: float) -> list[Any]:
        return [lambda value, weight=weight: eps * activation(value @ weight.T) for weight in weights]

    errors: dict[str, list[float]] = {"first_order": [], "second_order": [], "explained": []}
    for power in _POWERS:
        fs = branches(2.0**-power)
        deep = x
        for f in fs:
            deep = deep + f(deep)
        first = deep - taylor_expand(fs, x, 1)
        errors["first_order"].append(float(first.norm()))
        errors["explained"].append(float((first - second_order_residual(fs, x)).norm()))
        if trial.arm == "linear":
            errors["second_order"].append(float((deep - taylor_expand(fs, x, 2)).norm()))
        trial.log(
            -power, **{f"log2_{name}": math.log2(max(found[-1], 1e-300)) for name, found in errors.items() if found}
        )
    if trial.arm == "linear":
        fs, deep = branches(1.0), x
        for f in fs:
            deep = deep + f(deep)
        whole = {"whole_error": float((taylor_expand(fs, x, s.layers) - deep).norm() / deep.norm())}
    else:
        whole = {}
    return {name: _slope(found) for name, found in errors.items() if found} | whole


def _slope(errors: list[float]) -> float:
    x = -torch.tensor(list(_POWERS), dtype=torch.float64)
    y = torch.tensor(errors, dtype=torch.float64).log2()
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


_SKIPS: dict[str, dict[str, Any]] = {
    "plain": {"residual": False},
    "sequential": {},
    "parallel": {"layout": "parallel"},
    "plain_torch_init": {"residual": False, "branch_scale": None},
}


@PAPER.claim(
    "Without skips 16 sigmoid layers lose their gradient and do not train; with skips, or in parallel, they do",
    arms=tuple(_SKIPS),
    expect=[
        threshold("plain", metric="gradient_ratio", below=1e-3, transform="log"),
        lower("sequential", than="plain", metric="train_loss"),
        lower("parallel", than="plain", metric="train_loss"),
        shown(
            threshold("plain", metric="train_loss", above=2.2),
            threshold("plain_torch_init", metric="gradient_ratio", below=1e-3, transform="log"),
            threshold("sequential", metric="gradient_ratio", above=1e-2, transform="log"),
            threshold("parallel", metric="gradient_ratio", above=0.3, transform="log"),
        ),
    ],
    setup={
        "smoke": Setup(train=60, val=20, test=40, epochs=1, batch_size=20, channels=4, side=7, layers=16),
        "small": Setup(train=1500, val=500, test=800, epochs=10, batch_size=50, channels=8, side=14, layers=16),
        "full": Setup(train=None, val=None, test=None, epochs=5, batch_size=50, channels=32, side=1000, layers=32),
    },
    data={
        "mnist5k": Source(images.mnist5k, scales=("smoke", "small")),
        "mnist": Source(_mnist, scales=("full",)),
    },
    tune={"lr": [1e-2, 3e-2, 1e-1]},
    tune_by="val_accuracy",
    tune_seeds=1,
    tuned_like={"plain_torch_init": "plain"},
    seeds={"smoke": 1, "small": 4, "full": 5},
    reported="residual connections relieve the vanishing gradient (introduction); no figure",
    notes=(
        "`gradient_ratio`: norm of the weight gradient of the first body layer over that of the last, before training, "
        "on 200 training images; a ratio of 0 counts as 1e-30. Ten epochs of 1,500 digits: after one of 3,000 no arm "
        "has left ln 10 yet. Sigmoid only: with tanh and zero bias signal and gradient shrink together, so that the "
        "ratio says nothing. `plain_torch_init` starts as torch does."
    ),
)
def vanishing_gradient(trial: Trial, data: ImageData) -> dict[str, float]:
    options = {"num_layers": trial.setup.layers, "activation": "sigmoid"} | _SKIPS[trial.arm]
    first = _part(data.train, min(200, len(data.train)))  # type: ignore[arg-type]
    x, y = (torch.stack([torch.as_tensor(pair[k]) for pair in (first[i] for i in range(len(first)))]) for k in (0, 1))
    x = F.avg_pool2d(x, _shrinking(data.size, trial.setup.side))
    ratios: list[float] = []

    def probe(net: ShallowNet) -> None:
        ratios.append(gradient_ratio(net, lambda model: F.cross_entropy(model(x), y)))

    model, train = _train(trial, data, trial.tuned.lr, probe, **options)
    return _measured(trial, data, model, train) | {"gradient_ratio": max(ratios[0], 1e-30)}


_PATHS: dict[str, dict[str, Any]] = {
    "sequential": {},
    "fused": {"layout": "parallel"},
    "unfused": {"layout": "parallel", "fused": False},
}


@PAPER.claim(
    "Fused, the parallel body of eight layers runs as one: a training step takes fewer operators than in sequence",
    arms=tuple(_PATHS),
    expect=[
        lower("fused", than="sequential", metric="operators", transform="log"),
        shown(
            "unfused",
            lower("fused", than="sequential", metric="seconds", transform="log"),
            lower("fused", than="unfused", metric="seconds", transform="log"),
        ),
    ],
    setup={
        "smoke": Setup(channels=4, layers=8, side=8, batch=2, rounds=1),
        "small": Setup(channels=16, layers=8, side=14, batch=50, rounds=15),
        "full": Setup(channels=32, layers=8, side=16, batch=128, rounds=200),
    },
    seeds={"smoke": 1, "small": 5, "full": 5},
    measured=("seconds",),
    reported="a shorter critical path promises speed (conclusion); no figure",
    notes=(
        "`operators` are the calls of a forward and backward pass of the body that reach the device (kernels, on a "
        "GPU); arithmetic and parameters are the same in all arms. `seconds` are the median of the same on the machine "
        "of the run, information only on a CPU, where a wide convolution need not be faster than eight narrow ones; "
        "`full` is for a GPU, whose launches the count stands for."
    ),
)
def speed(trial: Trial) -> dict[str, float]:
    s = trial.setup
    with trial.stream("init"):
        body = ResidualStack(channels=s.channels, num_layers=s.layers, branch_scale="init", **_PATHS[trial.arm]).to(
            trial.device
        )
    shape = (s.batch, s.channels, s.side, s.side)
    x = torch.randn(shape, generator=trial.generator("data")).to(trial.device).requires_grad_()

    def step() -> Tensor:
        body.zero_grad()
        loss = body(x).square().mean()
        loss.backward()
        return loss

    operators = count_operators(step)
    seconds = []
    for index in range(s.rounds):
        started = time.perf_counter()
        step().item()
        if trial.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
        trial.progress(index + 1, s.rounds)
    return {"operators": float(operators), "seconds": median(seconds)}
