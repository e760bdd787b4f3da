"""Claims of "The Principles of Deep Learning Theory"."""

import math
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from etude.data import images
from etude.data.kinds import ImageData
from etude.lab import Paper, Setup, Source, Trial, higher, lower, shown, threshold, trend
from etude.loop import accuracy, fit
from etude.theory.pdlt import (
    EnsembleMoments,
    FiniteWidthFlow,
    FlowTable,
    critical_init,
    init_critical_,
    plot_aspect_ratio,
    plot_flow,
    plot_susceptibilities,
    sample_ensemble,
    scale_invariant_variance,
    susceptibilities,
)

__all__ = ["PAPER"]

PAPER = Paper(
    slug="pdlt",
    domain="theory",
    title="The Principles of Deep Learning Theory",
    authors="Roberts, Yaida & Hanin",
    year=2022,
    arxiv="2106.10165",
    venue="Cambridge University Press",
    summary="An expansion in depth over width tells where deep networks are critical and how much seeds differ.",
    methods=(
        "etude.theory.pdlt.activations",
        "etude.theory.pdlt.moments",
        "etude.theory.pdlt.criticality",
        "etude.theory.pdlt.flow",
        "etude.theory.pdlt.pairs",
        "etude.theory.pdlt.kernels",
        "etude.theory.pdlt.ensemble",
        "etude.theory.pdlt.networks",
        "etude.theory.pdlt.aspect_ratio",
        "etude.theory.pdlt.plots",
    ),
    usage="""\
import torch
from etude.theory.pdlt import critical_init, critical_param_groups, init_critical_, network_fluctuation
model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.GELU(), torch.nn.Linear(128, 10))
point = critical_init(torch.nn.GELU())                              # C_b, C_W, K*, class, nu, error bounds
init_critical_(model, torch.nn.GELU())                              # any nn.Sequential of nn.Linear, in place
optimizer = torch.optim.SGD(critical_param_groups(model, torch.nn.GELU(), lr=1.0))
spread = network_fluctuation(model, torch.nn.GELU()).first_order    # seed-to-seed variance of the output's size
""",
    notes=(
        "The theory is that of multilayer perceptrons without normalisation or residual connections, at and near "
        "initialisation. Its expansion parameter is depth over width: where nu L / n approaches 1 no prediction to "
        "first order means anything, and warnings say so. A network somewhat on the chaotic side of criticality "
        "(tanh at twice C_W) trains as well as a critical one at 30 layers; what fails is to be far from it. The "
        "optimal aspect ratio is the book's estimate, and no claim here tests it."
    ),
    extra="run",
)

ACTIVATIONS: dict[str, nn.Module] = {"tanh": nn.Tanh(), "relu": nn.ReLU(), "gelu": nn.GELU()}
HIGH = {"tanh": 4.0, "relu": 2.0, "gelu": 4.0}
"""C_W over its critical value in the arm above criticality."""

LOW = 0.5
LEARNING_RATES = [1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 5e-2]

IMAGES = {
    "digits": Source(images.digits, scales=("smoke", "small", "medium")),
    "mnist": Source(partial(images.hub, "ylecun/mnist", in_memory=True), scales=("full",)),
    "cifar10": Source(partial(images.hub, "uoft-cs/cifar10", in_memory=True), scales=("full",)),
}


def _network(name: str, gain: float, inputs: int, outputs: int, setup: Setup, generator: torch.Generator) -> nn.Module:
    """A plain network of `depth` linear layers, at `gain` times the critical variance of weights."""
    sizes = [inputs] + [setup.width] * (setup.depth - 1) + [outputs]
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), ACTIVATIONS[name]]
    model = nn.Sequential(*layers[:-1])
    init_critical_(model, ACTIVATIONS[name], weight_gain=gain, generator=generator)
    return model


def _trained(trial: Trial, data: ImageData, name: str, gain: float, lr: float) -> nn.Module:
    """The network after momentum SGD, with the same draws for every gain and learning rate."""
    setup = trial.setup
    start = trial.stream_seed("init"), trial.stream_seed("order")
    init, order = (torch.Generator().manual_seed(seed) for seed in start)
    inputs = math.prod(data.train[0][0].shape)
    with trial.stream("construction"):
        model = _network(name, gain, inputs, data.num_classes, setup, init)
    flat = nn.Sequential(nn.Flatten(), model).to(trial.device)
    optimizer = torch.optim.SGD(flat.parameters(), lr=lr, momentum=0.9)
    fit(flat, data.train, optimizer, steps=setup.steps, batch_size=setup.batch, generator=order)
    return flat


@PAPER.claim(
    "Networks of tens of layers train at the computed critical initialisation and not far from it on either side",
    arms=tuple(f"{name}_{place}" for name in ACTIVATIONS for place in ("off_low", "critical", "off_high"))
    + ("tanh_twice",),
    expect=[
        *(
            higher(f"{name}_critical", than=f"{name}_{off}", metric="accuracy")
            for name in ACTIVATIONS
            for off in ("off_low", "off_high")
        ),
        shown("tanh_twice", higher("tanh_critical", than="tanh_twice", metric="accuracy")),
    ],
    setup={
        "smoke": Setup(depth=4, width=16, steps=3, batch=32),
        "small": Setup(depth=30, width=64, steps=250, batch=64),
        "medium": Setup(depth=100, width=256, steps=1_000, batch=64),
        "full": Setup(depth=100, width=512, steps=10_000, batch=128),
    },
    data=IMAGES,
    tune={"lr": LEARNING_RATES},
    tune_by="val_accuracy",
    seeds={"smoke": 1, "small": 5, "medium": 5, "full": 5},
    worst={"accuracy": 0.0},
    timeout=7200.0,
    reported="theory; the book trains no networks",
    notes=(
        "Plain networks by momentum SGD on standardised images, |x|^2 / n_0 about 1. `off_low` has half the critical "
        "C_W; `off_high` four times, the ReLU twice; C_b stays. All arms search one grid of learning rates, whose two "
        "smallest values are there for networks that explode: the networks that fail do so at every rate, and which "
        "rate they choose means nothing. `tanh_twice` is the control that limits the claim: on the chaotic side, but "
        "not far, tanh trains as well as at criticality at 30 layers. Every gain of a seed scales the same normal "
        "draws. The split of the images stays; seeds draw weights and batches."
    ),
)
def criticality(trial: Trial, data: ImageData) -> dict[str, float]:
    name, place = trial.arm.split("_", 1)
    gain = {"off_low": LOW, "critical": 1.0, "off_high": HIGH[name], "twice": 2.0}[place]
    data = data.standardized()
    model = _trained(trial, data, name, gain, trial.tuned.lr or LEARNING_RATES[2])
    metrics = {"val_accuracy": accuracy(model, data.val)}
    if not trial.tuning:
        metrics["accuracy"] = accuracy(model, data.test)
    return metrics


GAINS = {
    "tanh": (0.5, 0.84, 1.0, 2.0, 4.0),
    "relu": (0.5, 0.84, 1.0, 1.19, 2.0),
    "gelu": (0.5, 0.84, 1.0, 1.19, 4.0),
}
"""C_W over its critical value, from off_low to off_high."""


@PAPER.claim(
    "Test accuracy over log C_W has a plateau that holds the computed critical value, and both its ends fail",
    arms=tuple(ACTIVATIONS),
    expect=[
        *(threshold(name, metric="above_low", above=0.05) for name in ACTIVATIONS),
        *(threshold(name, metric="above_high", above=0.05) for name in ACTIVATIONS),
        *(threshold(name, metric="below_best", below=0.15) for name in ACTIVATIONS),
    ],
    setup={
        "smoke": Setup(depth=4, width=16, steps=3, batch=32, lrs=[1e-2]),
        "small": Setup(depth=30, width=64, steps=250, batch=64, lrs=LEARNING_RATES[2:]),
        "medium": Setup(depth=100, width=256, steps=1_000, batch=64, lrs=LEARNING_RATES),
        "full": Setup(depth=100, width=512, steps=10_000, batch=128, lrs=LEARNING_RATES),
    },
    data=IMAGES,
    seeds={"smoke": 1, "small": 5, "medium": 5, "full": 5},
    timeout=36_000.0,
    reported="theory; the book trains no networks",
    notes=(
        "The curve is test accuracy over log2 of C_W over its critical value, at five values, the outer two those of "
        "`criticality`; at each the learning rate is the one of best validation accuracy on the same seed, from the "
        "same grid. `above_low` and `above_high` are what the critical network has over the ends, `below_best` what "
        "it lacks to the best of the five."
    ),
)
def plateau(trial: Trial, data: ImageData) -> dict[str, float]:
    data = data.standardized()
    gains = GAINS[trial.arm]
    found = []
    for place, gain in enumerate(gains):
        best = (-1.0, 0.0)
        for lr in trial.setup.lrs:
            model = _trained(trial, data, trial.arm, gain, lr)
            best = max(best, (accuracy(model, data.val), accuracy(model, data.test)), key=lambda pair: pair[0])
        found.append(best[1])
        trial.log(math.log2(gain), accuracy=best[1])
        trial.progress(place + 1, len(gains))
    critical = found[gains.index(1.0)]
    return {
        "accuracy": critical, "above_low": critical - found[0], "above_high": critical - found[-1],
        "below_best": max(found) - critical,
    }  # fmt: skip


QUANTITIES = ("V", "F", "B", "A")


def _flow(name: str, width: int, setup: Setup, trial: Trial, networks: int) -> tuple[FlowTable, EnsembleMoments]:
    """The recursion of a critical network and an ensemble of such, from K_1 = K* where there is one."""
    act, point = ACTIVATIONS[name], critical_init(ACTIVATIONS[name])
    K1 = {"tanh": 0.5, "relu": 1.0}.get(name, point.K_star)
    ensemble = sample_ensemble(
        act, width, setup.depth, networks, trial.generator(f"{name} {width}"), C_b=point.C_b, C_W=point.C_W, K1=K1,
        with_ntk=True, Theta1=2.0, device=trial.device,
    )  # fmt: skip
    return FiniteWidthFlow(act, point.C_b, point.C_W).run(K1, 2.0, setup.depth), ensemble


@PAPER.claim(
    "The recursions to first order in 1 / width predict the fluctuations of finite networks and of their NTK",
    arms=("infinite_width", "one_over_n"),
    expect=[
        lower("one_over_n", than="infinite_width", metric="error", margin=0.8),
        *(threshold("one_over_n", metric=f"error_{name}", below=0.1) for name in QUANTITIES[:3]),
        threshold("one_over_n", metric="error_A", below=0.15),
        shown(*(lower("one_over_n", than="infinite_width", metric=f"error_{name}") for name in ACTIVATIONS)),
    ],
    setup={
        "smoke": Setup(width=16, depth=3, networks=50),
        "small": Setup(width=64, depth=5, networks=6_000),
        "medium": Setup(width=128, depth=5, networks=60_000),
        "full": Setup(width=256, depth=5, networks=1_000_000),
    },
    seeds={"smoke": 1, "small": 5, "medium": 5, "full": 3},
    timeout=36_000.0,
    reported="exact to first order in 1 / width; no ensembles in the book",
    notes=(
        "Relative errors |predicted - sampled| / |sampled| of V, F, B and A at layers 2 to the last, over critical "
        "tanh (K_1 = 0.5), ReLU and GELU (K_1 = K*) networks, Theta_1 = 2; the curves run over layers. Infinite width "
        "predicts 0 for all of them, an error of 1 whatever is drawn. `noise` is the relative standard error of the "
        "ensemble itself: what is left of `error` beyond it is second order, some l / n. A, the variance of the NTK, "
        "has the largest."
    ),
)
def finite_width(trial: Trial) -> dict[str, float]:
    setup = trial.setup
    errors = np.zeros((len(ACTIVATIONS), len(QUANTITIES), setup.depth - 1))
    noise = np.zeros_like(errors)
    for i, name in enumerate(ACTIVATIONS):
        table, ensemble = _flow(name, setup.width, setup, trial, setup.networks)
        for j, quantity in enumerate(QUANTITIES):
            value, error = (part[1:].numpy() for part in ensemble[quantity])
            predicted = table.values[quantity][1:].numpy() * (trial.arm == "one_over_n")
            errors[i, j], noise[i, j] = np.abs(predicted - value) / np.abs(value), error / np.abs(value)
        if trial.arm == "one_over_n" and name == "gelu":
            trial.figure("gelu", plot_flow(table, ensemble))
        trial.progress(i + 1, len(ACTIVATIONS))
    for layer in range(setup.depth - 1):
        at_layer = errors[:, :, layer].mean(0)
        trial.log(layer + 2, **{f"error_{quantity}": at_layer[j] for j, quantity in enumerate(QUANTITIES)})
    return {
        "error": float(errors.mean()),
        "noise": float(noise.mean()),
        **{f"error_{quantity}": float(errors[:, j].mean()) for j, quantity in enumerate(QUANTITIES)},
        **{f"error_{name}": float(errors[i].mean()) for i, name in enumerate(ACTIVATIONS)},
    }


@PAPER.claim(
    "What the recursions leave out of the NTK's mixing of neurons falls as 1 / width",
    arms=tuple(ACTIVATIONS),
    expect=[trend("slope", arm=name, slope=(0.75, 1.35)) for name in ACTIVATIONS],
    setup={
        "smoke": Setup(widths=[8, 16], networks=[100, 100], depth=3),
        "small": Setup(widths=[16, 32, 64], networks=[40_000, 30_000, 20_000], depth=5),
        "medium": Setup(widths=[16, 32, 64, 128], networks=[400_000, 300_000, 200_000, 100_000], depth=5),
        "full": Setup(widths=[16, 32, 64, 128, 256], networks=[1_000_000] * 5, depth=5),
    },
    seeds={"smoke": 1, "small": 5, "medium": 5, "full": 3},
    timeout=36_000.0,
    reported="the next order is 1 / n^2",
    notes=(
        "`slope` is that of log |B sampled / B to first order - 1| at the last layer over log 1 / n: 1 if the first "
        "order is all of it. B = n E H_12^2 has the smallest sampling error of all, and K_1, Theta_1 are those of "
        "`finite_width`. At 16 neurons the order after the next adds some tenths to the slope."
    ),
)
def remainder(trial: Trial) -> dict[str, float]:
    setup, found = trial.setup, []
    for place, (width, networks) in enumerate(zip(setup.widths, setup.networks)):
        table, ensemble = _flow(trial.arm, width, setup, trial, networks)
        first = table.B[-1]
        found.append(abs(float((ensemble.values["B"][-1] - first) / first)))
        trial.log(math.log2(width), remainder=found[-1])
        trial.progress(place + 1, len(setup.widths))
    slope = np.polyfit(-np.log(setup.widths), np.log(np.maximum(found, 1e-12)), 1)[0]
    return {"slope": float(slope), "remainder": found[-1]}


HIDDEN = (1, 2, 4, 8)


@PAPER.claim(
    "The seed-to-seed variance of a critical ReLU network's kernel grows with depth over width, as 5 L / n",
    arms=(*(f"L{hidden}" for hidden in HIDDEN), "L4_drawn"),
    expect=[
        trend(
            "variance",
            against={f"L{hidden}": math.log(hidden) for hidden in HIDDEN},
            slope=(0.95, 1.15),
            transform="log",
        ),
        *(threshold(f"L{hidden}", metric="error", below=0.05) for hidden in HIDDEN),
        shown(
            threshold("L4_drawn", metric="error", below=0.05),
            *(threshold(f"L{hidden}", metric="error_first_order", below=0.2) for hidden in HIDDEN),
        ),
    ],
    setup={
        "smoke": Setup(width=32, networks=200, drawn=50, nets=3, steps=3),
        "small": Setup(width=128, networks=100_000, drawn=20_000, nets=32, steps=100),
        "medium": Setup(width=256, networks=1_000_000, drawn=100_000, nets=32, steps=300),
        "full": Setup(width=512, networks=10_000_000, drawn=200_000, nets=128, steps=1_000),
    },
    seeds={"smoke": 1, "small": 5, "medium": 5, "full": 5},
    timeout=36_000.0,
    reported="V / (n K^2) = 5 (l - 1) / n",
    notes=(
        "`variance` is cov(z_i^2, z_j^2) / K^2 of different neurons, which is Var(Khat) / K^2; the variance of "
        "|z|^2 / n would add 2 / n of plain sampling. `error` is relative to the value to all orders, "
        "(1 + 5 / n)^L - 1, `error_first_order` to 5 L / n, which holds while that is below about 0.3: hence a slope "
        "a little above 1. Neurons are drawn from their kernel given the layer below, the same ensemble at a "
        "fraction of the cost; `L4_drawn` draws every weight. `trained_spread`, with its curve over steps, is the "
        "standard deviation over networks of log10 of the loss in training on a small task at a quarter of the "
        "width: shown, no verdict. Training takes most of the initial scatter away."
    ),
)
def aspect_ratio(trial: Trial) -> dict[str, float]:
    setup, drawn = trial.setup, trial.arm.endswith("_drawn")
    hidden = int(trial.arm[1:].removesuffix("_drawn"))
    ensemble = sample_ensemble(
        torch.relu, setup.width, hidden + 1, setup.drawn if drawn else setup.networks, trial.generator("ensemble"),
        weights=drawn, device=trial.device, progress=trial.progress,
    )  # fmt: skip
    value, error = (float(part[-1]) for part in ensemble["Khat"])
    exact = float(scale_invariant_variance(torch.relu, [setup.width] * hidden)[-1])
    first = 5 * hidden / setup.width
    if hidden == HIDDEN[-1]:
        trial.figure("variance", plot_aspect_ratio({f"n = {setup.width}": ensemble}, nu=5))
    for layer, variance in enumerate(ensemble.values["Khat"].tolist()[1:], 1):
        trial.log(layer, variance=variance)
    return {
        "variance": value, "standard_error": error, "error": abs(value / exact - 1),
        "error_first_order": abs(value / first - 1), "trained_spread": _trained_spread(trial, hidden),
    }  # fmt: skip


def _trained_spread(trial: Trial, hidden: int) -> float:
    """Networks of one width and several seeds, trained together on one small task: the scatter of their losses."""
    setup, width = trial.setup, trial.setup.width // 4
    generator = trial.generator("task")
    x = torch.randn(32, 8, generator=generator).to(trial.device)
    y = torch.sin(x.sum(1) / math.sqrt(8.0))
    sizes = [8] + [width] * hidden + [1]
    draws = trial.generator("networks")
    weights = [
        (torch.randn(setup.nets, n, m, generator=draws) * math.sqrt(2 / n)).to(trial.device).requires_grad_()
        for n, m in pairwise(sizes)
    ]
    rates = [0.1 / (len(weights) * n) for n in sizes[:-1]]
    scatter = math.nan
    for step in range(setup.steps + 1):
        z = x @ weights[0]
        for weight in weights[1:]:
            z = torch.relu(z) @ weight
        losses = (z.squeeze(-1) - y).square().mean(1)
        scatter = float(losses.detach().log10().std())
        if step % max(setup.steps // 20, 1) == 0:
            trial.log(step, trained_spread=scatter)
        gradients = torch.autograd.grad(losses.sum(), weights)
        with torch.no_grad():
            for weight, gradient, rate in zip(weights, gradients, rates):
                weight -= rate * gradient
    return scatter


@PAPER.claim(
    "Off criticality gradients vanish or explode by the factor chi_perp a layer, which the activation alone gives",
    arms=tuple(f"{name}_{place}" for name in ACTIVATIONS for place in ("off_low", "critical", "off_high")),
    expect=[
        threshold(f"{name}_{place}", metric="error", below=0.05)
        for name in ACTIVATIONS
        for place in ("off_low", "critical", "off_high")
    ],
    setup={
        "smoke": Setup(width=32, depth=5, nets=2),
        "small": Setup(width=256, depth=30, nets=20),
        "medium": Setup(width=1_024, depth=50, nets=50),
        "full": Setup(width=4_096, depth=100, nets=50),
    },
    seeds={"smoke": 1, "small": 5, "medium": 5, "full": 5},
    timeout=7200.0,
    reported="exp(-+ l / xi), 1 / xi = |log chi_perp|",
    notes=(
        "`rate` is the change of log |dv.z_L / dz_l|^2 a layer, from the last layer to the first, by automatic "
        "differentiation through real networks, and `predicted` the mean of log chi_perp(K_l) along the infinitely "
        "wide flow; the mean over networks of a logarithm lies below by some 5 / (2 n). Arms are those of "
        "`criticality`. At the critical point of tanh gradients still fall, as a power of depth: chi_perp = 1 - 1 / l."
    ),
)
def gradients(trial: Trial) -> dict[str, float]:
    name, place = trial.arm.split("_", 1)
    setup, gain = trial.setup, {"off_low": LOW, "critical": 1.0, "off_high": HIGH[name]}[place]
    act, point = ACTIVATIONS[name], critical_init(ACTIVATIONS[name])
    x = torch.randn(1, setup.width, generator=trial.generator("data"), dtype=torch.float64)
    x = x / x.square().mean().sqrt()
    K1 = gain * (point.K_star - point.C_b) + point.C_b if point.K_star > 0 else gain * point.C_W
    C_W = gain * point.C_W
    kernels = FiniteWidthFlow(act, point.C_b, C_W).run(K1, depth=setup.depth).K[:-1]
    predicted = susceptibilities(act, C_W, kernels).perp.log()
    found = []
    for net in range(setup.nets):
        with trial.stream("construction"):
            model = _network(name, gain, setup.width, setup.width, setup, trial.generator("init")).double()
        found.append(_squared_gradients(model, x.to(trial.device), trial.generator("direction")))
        trial.progress(net + 1, setup.nets)
    mean = torch.stack(found).log().mean(0)
    for layer in range(setup.depth):
        trial.log(layer + 1, log_gradient=float(mean[layer] - mean[-1]))
    if trial.arm == "gelu_critical":
        trial.figure("susceptibilities", plot_susceptibilities(ACTIVATIONS))
    measured = float(mean[0] - mean[-1]) / (setup.depth - 1)
    return {"rate": measured, "predicted": float(predicted.mean()), "error": abs(measured - float(predicted.mean()))}


def _squared_gradients(model: nn.Module, x: Tensor, generator: torch.Generator) -> Tensor:
    """|d (v . z_L) / d z_l|^2 of every layer l, for a random v."""
    model.to(x.device)
    preactivations, z = [], x
    for layer in model:  # type: ignore[attr-defined]
        z = layer(z)
        if isinstance(layer, nn.Linear):
            preactivations.append(z)
    direction = torch.randn(z.shape, generator=generator, dtype=z.dtype).to(z.device)
    return torch.stack([g.square().sum() for g in torch.autograd.grad((z * direction).sum(), preactivations)]).cpu()
