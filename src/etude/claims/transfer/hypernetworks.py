"""Claims of "A Brief Review of Hypernetworks in Deep Learning"."""

from functools import partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from scipy.stats import kendalltau
from torch import Tensor, nn

from etude.data import images
from etude.data.kinds import ImageData
from etude.lab import Paper, Setup, Source, Trial, higher, not_worse, shown, threshold
from etude.transfer import hypernetworks as hn
from etude.transfer.hypernetworks import baselines as bl
from etude.transfer.streams import average_accuracy, forgetting

__all__ = ["PAPER"]

METHODS = (
    "design spec template layout conditions places generators initialisation hypernetwork regularisation tasks "
    "continual uncertainty search costs baselines estimator plots"
)
PAPER = Paper(
    slug="hypernetworks",
    domain="transfer",
    title="A Brief Review of Hypernetworks in Deep Learning",
    authors="Chauhan, Zhou, Lu, Molaei & Clifton",
    year=2024,
    arxiv="2306.06955",
    venue="Artificial Intelligence Review",
    summary="A network generates the weights of another, by five design criteria that can be combined freely.",
    methods=tuple(f"etude.transfer.hypernetworks.{name}" for name in METHODS.split()),
    usage="""\
from etude.data import images
from etude.transfer.hypernetworks import HypernetClassifier, tasks_by_class
classifier = HypernetClassifier(random_state=0, steps=50)
for task in tasks_by_class(images.digits(), 2)[:3]:
    classifier.partial_fit(task.train.inputs, task.train.targets, task=task.name)
print(classifier.predict(images.digits().test.inputs[:5], task=task.name), classifier.tasks_)
""",
    notes=(
        "A survey without a benchmark of its own: the toolkit's configuration space is its five criteria, and the "
        "claims are those of the works it reviews, with the task given at test (no class-incremental claims). "
        "Compared at equal hidden width, types of generation differ 11-fold in parameters: "
        "`generation_types_at_parity` compares them by budget. `once` cannot go below twice the target's size. "
        "Invertible hypernetworks, with a density of weights, are not included: noise meets its prior by two moments."
    ),
    extra="run",
)

MNIST = {
    "mnist5k": Source(images.mnist5k, scales=("smoke", "small", "medium")),
    "mnist": Source(partial(images.hub, "ylecun/mnist", in_memory=True), scales=("full",)),
}
CIFAR = {
    name: Source(partial(images.hub, f"uoft-cs/{name}", in_memory=True), scales=("full",))
    for name in ("cifar10", "cifar100")
}


def knob(trial: Trial, name: str, default: float) -> float:
    return getattr(trial.tuned, name, None) or default


def pooled(trial: Trial, data: ImageData) -> ImageData:
    return hn.halved(data) if trial.setup.pool else data


def stream(trial: Trial, data: ImageData) -> list[hn.Task]:
    """Tasks of two random classes each (ten of a hundred), or of as few more as part a user's classes evenly."""
    fewest = 10 if data.num_classes >= 100 else 2
    split = next((size for size in range(fewest, data.num_classes) if data.num_classes % size == 0), 0)
    if not split:
        raise ValueError(f"{data.num_classes} classes cannot be parted into tasks of equally many, two or more")
    tasks = hn.tasks_by_class(pooled(trial, data), split, generator=trial.generator("classes"))
    return [task.to(trial.device) for task in tasks]


def hypernetwork(
    trial: Trial, target: nn.Module, generation: str, tasks: int, hidden: list[int], chunk_size: int, cond_dim: int = 8
) -> hn.Hypernetwork:
    """A task-conditioned hypernetwork of E_c = 8, raw outputs times 5 / sqrt(fan_in)."""
    with trial.stream("init"):
        made = hn.Hypernetwork(
            target, hn.HypernetDesign("task", generation), num_conditions=tasks, hidden=hidden, init="scaled",
            cond_dim=cond_dim, chunk_size=chunk_size if generation == "chunk" else None,
        )  # fmt: skip
    return made.to(trial.device)


TYPES = ("lookahead", "multiple", "component", "chunk")
HYPER = {arm: arm for arm in TYPES} | dict.fromkeys(("hyper", "hyper_free", "lookahead"), "once")
RATES = [3e-5, 1e-4, 5e-4, 2e-3, 5e-3]
SPLIT = Setup(width=32, hidden=[32, 32], steps=150, chunk_size=512, pool=True, residual=False)


@PAPER.claim(
    "A hypernetwork with an embedding a task and regularised outputs keeps all tasks; trained directly, or without "
    "the regulariser, the same target forgets",
    arms=("fine_tune", "task_id", "multi_head", "hyper_free", "hyper", *TYPES),
    expect=[
        higher("hyper", than="fine_tune", metric="average_accuracy"),
        higher("hyper", than="hyper_free", metric="average_accuracy"),
        threshold("hyper", metric="forgetting", below=0.02),
        *(threshold(arm, metric="forgetting", above=0.02) for arm in ("fine_tune", "hyper_free")),
        shown(
            "task_id", *TYPES,
            higher("hyper", than="multi_head", metric="average_accuracy"),
            higher("chunk", than="multi_head", metric="average_accuracy"),
        ),
    ],
    setup={
        "smoke": SPLIT.replace(width=4, hidden=[4, 4], steps=3, chunk_size=100), "small": SPLIT,
        "full": SPLIT.replace(
            width=400, hidden=[100, 100], steps=2_000, chunk_size=7_000, pool=False, residual=True),
    },
    data=MNIST | CIFAR,
    tune={
        "lr": dict.fromkeys(("fine_tune", "task_id", "multi_head", "hyper_free", "hyper"), RATES),
        "beta": {"hyper": [0.1, 1.0]},
    },
    tune_by="val_accuracy", tuned_like=dict.fromkeys(TYPES, "hyper"), seeds={"smoke": 1, "small": 6, "full": 5},
    worst={"average_accuracy": 0.5, "forgetting": 0.0}, timeout=14_400.0,
    reported="split MNIST, task given: 99.79 % with a chunked hypernetwork (von Oswald et al. 2020)",
    notes=(
        "Five random pairs of MNIST digits at 14 x 14 in sequence, the task given at test; target 196-32-2 (CIFAR at "
        "`full`: ResNet-32), a fresh Adam a task. `multi_head`, a shared trunk with a head a task, knows the task and "
        "has most of the gap: the strong cheap baseline. `task_id` appends the task's number to the input. Each arm "
        "has its own learning rate, `hyper` its beta too, by validation at the end: what forgets then takes a slow one "
        "and learns less. The other types of generation take those of `hyper`; `lookahead` regularises one step ahead."
    ),
    helps=higher("hyper", than="multi_head", metric="average_accuracy"), helps_tables=True,
)  # fmt: skip
def hypernet_continual(trial: Trial, data: ImageData) -> dict[str, float]:
    setup, lr = trial.setup, knob(trial, "lr", 2e-3)
    tasks = stream(trial, data)
    shape, classes = tasks[0].train.inputs[0].shape, len(tasks[0].classes)
    residual = setup.residual and len(shape) == 3 and shape[0] == 3
    net: Any
    if trial.arm in HYPER:
        target = bl.classifier(shape, setup.width, classes, residual=residual)
        net = hypernetwork(
            trial, target, HYPER[trial.arm], len(tasks), setup.hidden, setup.chunk_size, 32 if residual else 8
        )
        call = net.call
    else:
        with trial.stream("init"):
            net = bl.DirectTarget(trial.arm, shape, setup.width, classes, len(tasks), residual=residual)
        call = net = net.to(trial.device)
    beta = 0.0 if trial.arm == "hyper_free" else knob(trial, "beta", 0.1)

    def accuracies(part: str) -> list[float]:
        calls = [lambda x, number=number: call(x, number) for number in range(len(tasks))]
        return [bl.accuracy_of(run, getattr(task, part)) for run, task in zip(calls, tasks)]

    rows = []
    for number, task in enumerate(tasks):
        learn: Any = partial(bl.train_direct, partial(call, number=number), net.parameters())
        if trial.arm in HYPER:
            learn = partial(hn.learn_task, net, number, beta=beta, lookahead=trial.arm == "lookahead")
        learn(task.train, steps=setup.steps, lr=lr, generator=trial.generator("order"))
        rows.append(accuracies("test"))
        trial.log(number + 1, accuracy_on_tasks_met=sum(rows[-1][: number + 1]) / (number + 1))
        trial.progress(number + 1, len(tasks))
    found = torch.tensor(rows, dtype=torch.float64)
    if trial.seed == 0 and trial.scale != "smoke" and trial.arm in ("fine_tune", "multi_head", "hyper"):
        trial.figure("stream", hn.plot_stream({trial.arm: found}))
    return {
        "average_accuracy": average_accuracy(found), "forgetting": forgetting(found),
        "learning_accuracy": float(found.diagonal().mean()), "val_accuracy": sum(accuracies("val")) / len(tasks),
        "parameters": bl.trained_numbers(net),
    }  # fmt: skip


PARITY: dict[str, tuple[str, int, int]] = {
    "chunk_half": ("chunk", 16, 100), "chunk_1.6": ("chunk", 32, 250), "chunk_7.5": ("chunk", 60, 700),
    "once": ("once", 6, 0), "multiple": ("multiple", 14, 0), "component": ("component", 7, 0),
}  # fmt: skip
BUDGET = Setup(width=32, steps=750, every=75, pool=True)


@PAPER.claim(
    "At half the target's size, a chunk-wise hypernetwork is not worse than one that gives all weights at once at "
    "seven times its size",
    arms=tuple(PARITY),
    expect=[
        not_worse("chunk_half", than="once", metric="accuracy", margin=0.01),
        shown(
            "chunk_1.6", not_worse("chunk_7.5", than="once", metric="accuracy", margin=0.01),
            not_worse("multiple", than="once", metric="accuracy", margin=0.01),
            not_worse("component", than="once", metric="accuracy", margin=0.01),
        ),
    ],
    setup={
        "smoke": BUDGET.replace(steps=6, every=3), "small": BUDGET, "medium": BUDGET,
        "full": BUDGET.replace(width=100, steps=10_000, every=500, pool=False),
    },
    data=MNIST, tune={"lr": [2e-3, 5e-3, 1e-2]}, tune_by="val_accuracy", worst={"accuracy": 0.5}, timeout=14_400.0,
    seeds={"smoke": 1, "small": 8, "medium": 24, "full": 5}, measured=("ms_per_generation",),
    reported="no comparison at equal budget is published; Ha et al. 2017: 15 times fewer weights, 7.2 % error for 5.7",
    notes=(
        "The five tasks of `hypernet_continual` trained jointly, step i on task i mod 5. Hidden layers and chunks as "
        "set by the budget: chunks at .44, 1.6 and 7.5 times P = 6,370, once 7.0, multiple 8.1, component 8.0. `once` "
        "cannot go below 2 P and `component` hardly, so only chunks stand at the small budgets. `steps_to_95` is "
        "the first look at validation accuracy above .95, or one look after the run. `medium`: three times the seeds."
    ),
)  # fmt: skip
def generation_types_at_parity(trial: Trial, data: ImageData) -> dict[str, float]:
    setup = trial.setup
    generation, width, chunk_size = PARITY[trial.arm]
    tasks = stream(trial, data)
    target = bl.classifier(tasks[0].train.inputs[0].shape, setup.width, len(tasks[0].classes))
    net = hypernetwork(trial, target, generation, len(tasks), [width, width], chunk_size)
    reached = float(setup.steps + setup.every)

    def mean(part: str) -> float:
        return sum(hn.task_accuracy(net, one, getattr(task, part)) for one, task in enumerate(tasks)) / len(tasks)

    def look(step: int) -> None:
        nonlocal reached
        if step % setup.every == 0:
            held = mean("val")
            net.train()
            reached = min(reached, float(step)) if held > 0.95 else reached
            trial.log(step, val_accuracy=held)

    hn.learn_jointly(
        net, tasks, steps=setup.steps, lr=knob(trial, "lr", 2e-3), generator=trial.generator("order"), each_step=look
    )
    size = bl.trained_numbers(net)
    return {
        "accuracy": mean("test"), "val_accuracy": mean("val"), "parameters": size,
        "parameters_over_target": size / net.spec.numel, "steps_to_95": reached,
        "ms_per_generation": 1e3 * hn.generation_seconds(net),
    }  # fmt: skip


DEEP = Setup(width=64, layers=8, hidden=[100, 100], inits=20, steps=100)
INITS = ("default", "hyperfan", "hyperfan_out", "uncalibrated", "scaled")


@PAPER.claim(
    "Calibrated hyperfan initialisation keeps the scale of activations through a deep generated target; torch's own "
    "initialisation of the hypernetwork makes it vanish",
    arms=INITS,
    expect=[
        threshold("hyperfan", metric="drift", below=1.5), threshold("default", metric="drift", above=3.0),
        shown("hyperfan_out", "uncalibrated", "scaled"),
    ],
    setup={
        "smoke": DEEP.replace(width=8, layers=3, hidden=[10, 10], inits=2, steps=2), "small": DEEP,
        "full": DEEP.replace(inits=200, steps=1_000),
    },
    data={"digits": images.digits}, tune={"lr": [1e-4, 3e-4, 1e-3, 3e-3]}, tune_by="val_loss", tune_goal="min",
    seeds={"smoke": 1, "small": 4, "full": 5},
    reported="Chang et al. 2020: hyperfan keeps the variance of activations where Kaiming on the hypernetwork does not",
    notes=(
        "Target 64-64x8-10, rectified, no biases, on standardised digits; `once`, E = 8, h = (100, 100). `drift` is "
        "|log2(m_8 / m_1)| with m_l the second moment after layer l, the mean over initialisations. `uncalibrated` "
        "takes the expected second moment 1 of the hidden units for the measured one; `scaled` is what the other "
        "claims use. Scale is claimed, speed is not: Adam trains the default too, `loss` after 100 steps at each "
        "arm's own rate stands beside it without a verdict."
    ),
)  # fmt: skip
def hyperfan_matters(trial: Trial, data: ImageData) -> dict[str, float]:
    setup = trial.setup
    examples, held = (split.to(trial.device) for split in bl.standardised(data))
    widths = [examples.inputs[0].numel(), *[setup.width] * setup.layers, data.num_classes]

    def fresh() -> hn.Hypernetwork:
        init = "hyperfan" if trial.arm == "uncalibrated" else trial.arm
        target, design = bl.mlp(*widths, bias=False), hn.HypernetDesign("task", "once")
        made = hn.Hypernetwork(target, design, num_conditions=1, hidden=setup.hidden, init=init)
        if trial.arm == "uncalibrated":
            with torch.no_grad():
                made.head.outs()[0].weight.mul_(made.hidden(0)[0].square().mean().sqrt())
        return made.to(trial.device)

    with trial.stream("init"):
        net = fresh()
        found = [bl.activation_moments(net.materialize(0), examples.inputs)]
        for _ in range(0 if trial.tuning else setup.inits - 1):
            found.append(bl.activation_moments(fresh().materialize(0), examples.inputs))
    table = torch.stack(found).clamp(min=1e-30)
    for layer, value in enumerate(table.median(dim=0).values.tolist(), start=1):
        trial.log(layer, second_moment=value)
    run, lr = partial(net.call, cond=0), knob(trial, "lr", 3e-4)
    bl.train_direct(run, net.parameters(), examples, steps=setup.steps, lr=lr, generator=trial.generator("order"))
    losses = [float(F.cross_entropy(run(split.inputs), split.targets).detach()) for split in (examples, held)]
    return {
        "drift": float((table[:, -1] / table[:, 0]).log2().abs().mean()),
        "first_moment": float(table[:, 0].median()), "last_moment": float(table[:, -1].median()),
        "loss": losses[0], "val_loss": losses[1],
    }  # fmt: skip


CUBIC = Setup(points=20, width=50, hidden=[64, 64], steps=2_000, draws=16, members=200, test=200)


@PAPER.claim(
    "Conditioned by noise, a hypernetwork is less certain in a gap of the data than on them",
    arms=("noise", "standardised", "deterministic", "ensemble"),
    expect=[threshold("noise", metric="ratio", above=2.0), shown("standardised", "deterministic", "ensemble")],
    setup={
        "smoke": CUBIC.replace(points=5, width=5, hidden=[4, 4], steps=3, draws=3, members=5, test=10), "small": CUBIC,
        "medium": CUBIC, "full": CUBIC.replace(draws=64, members=1_000),
    },
    seeds={"smoke": 1, "small": 10, "medium": 40, "full": 20}, timeout=3600.0,
    reported="Krueger et al. 2017: uncertainty grows away from the data, without a number for this toy",
    notes=(
        "y = x^3 + N(0, 9) at 20 points in [-4, -2] and 20 in [2, 4], y standardised; target 1-50-1, tanh; E = 8, raw "
        "outputs times 3 / sqrt(fan_in). `ratio` is the mean deviation of 200 members at |x| < 1.5 over that at "
        "2 < |x| <= 4; `nll` on fresh points beside the data and `nll_gap` inside the gap, noise known. `standardised` "
        "has x standardised too, which under the same prior makes smoother curves. `deterministic` is the target "
        "trained directly, `ensemble` five of them from other starts, both without a prior. Adam at 2e-3, nothing is "
        "tuned. The KL sees each weight's own mean and variance, not how weights vary together: trained further, H "
        "meets it with draws that are ever more alike as functions, and the ratio falls."
    ),
)  # fmt: skip
def noise_conditioned_uncertainty(trial: Trial) -> dict[str, float]:
    setup, draw = trial.setup, trial.generator("data")
    (x, y), (fresh_x, fresh_y) = (hn.cubic_with_gap(n, draw) for n in (setup.points, setup.test))
    center, scale = y.mean(), y.std(correction=0)
    spread = x.std(correction=0) if trial.arm == "standardised" else torch.ones(())
    gap = torch.linspace(-1.5, 1.5, 61)
    gap_y = gap**3 + 3 * torch.randn(len(gap), generator=draw)
    noise_std = float(3 / scale)

    def features(values: Tensor) -> Tensor:
        return (values / spread)[:, None].to(trial.device)

    def targets(values: Tensor) -> Tensor:
        return ((values - center) / scale).to(trial.device)

    with trial.stream("init"):
        target = bl.mlp(1, setup.width, 1, activation=nn.Tanh)
        net = hn.Hypernetwork(
            target, hn.HypernetDesign("noise", "once", static_input=False), hidden=setup.hidden, init="scaled",
            output_scale=3,
        ).to(trial.device)  # fmt: skip
        members = 5 if trial.arm == "ensemble" else 1
        starts = [dict(bl.mlp(1, setup.width, 1, activation=nn.Tanh).named_parameters()) for _ in range(members)]
    if trial.arm in ("noise", "standardised"):
        hn.fit_regression(
            net, features(x), targets(y), noise_std=noise_std, steps=setup.steps, draws=setup.draws,
            generator=trial.generator("method"),
        )  # fmt: skip
        theta = net.flat(net.draw(setup.members, trial.generator("members"))).detach()
    else:
        theta = torch.stack([net.spec.flatten(start) for start in starts]).to(trial.device)
        theta = bl.fit_members(net, theta, features(x), targets(y), noise_std=noise_std, steps=setup.steps)

    @torch.no_grad()
    def predicted(values: Tensor) -> hn.Predictive:
        return hn.Predictive(net.run_each(features(values), theta).squeeze(-1))

    line = torch.linspace(-4.5, 4.5, 181)
    curve = predicted(line)
    for place, deviation in zip(line.tolist(), curve.std.tolist()):
        trial.log(place, std=deviation)
    if trial.seed == 0 and trial.scale != "smoke" and trial.arm in ("noise", "ensemble"):
        trial.figure("predictive", hn.plot_predictive(line.tolist(), curve, (x.tolist(), targets(y).tolist())))
    inside, outside = line.abs() < 1.5, (line.abs() > 2) & (line.abs() <= 4)
    truth, beside = (fresh_x**3 - center) / scale, predicted(fresh_x)
    metrics = {
        "rmse": float((beside.mean.cpu() - truth).square().mean().sqrt()),
        "nll": beside.nll(targets(fresh_y), noise_std),
        "nll_gap": predicted(gap).nll(targets(gap_y), noise_std),
    }
    if trial.arm != "deterministic":
        metrics["ratio"] = float(curve.std[inside].mean() / curve.std[outside].mean())
    return metrics


FEW = Setup(width=32, hidden=[32, 32], steps=150, chunk_size=512, shots=10, few_steps=150, pool=True)
FEW_RATES = {"scratch": [1e-3, 3e-3, 1e-2], "shared_trunk": [3e-3, 1e-2, 3e-2, 1e-1]}
FEW_RATES |= {arm: [3e-2, 1e-1, 3e-1] for arm in ("embedding", "embedding_chunk", "untrained")}


@PAPER.claim(
    "After four tasks, an embedding of eight numbers learned from ten examples a class beats the target trained from "
    "scratch on them",
    arms=tuple(FEW_RATES),
    expect=[
        higher("embedding", than="scratch", metric="accuracy"),
        shown(
            "embedding_chunk", higher("embedding", than="untrained", metric="accuracy"),
            higher("embedding", than="shared_trunk", metric="accuracy"),
        ),
    ],
    setup={
        "smoke": FEW.replace(width=4, hidden=[4, 4], steps=3, chunk_size=100, few_steps=3), "small": FEW,
        "full": FEW.replace(width=400, hidden=[100, 100], steps=2_000, chunk_size=7_000, pool=False),
    },
    data=MNIST, tune={"lr": FEW_RATES}, tune_by="val_accuracy", seeds={"smoke": 1, "small": 6, "full": 5},
    worst={"accuracy": 0.5}, timeout=14_400.0,
    reported="transfer by the embedding alone is described, without a figure for this setting",
    notes=(
        "The stream of `hypernet_continual` (beta .1, lr 2e-3) without its last pair; of that, 10 drawn examples a "
        "class, 150 full-batch Adam steps, Phi frozen. `untrained` learns the embedding in a hypernetwork that saw "
        "nothing; `shared_trunk` a new head on the frozen trunk of a `multi_head` that learned the four tasks. Each "
        "arm picks the rate of the last step on validation digits of the fifth task."
    ),
)  # fmt: skip
def few_shot_by_embedding(trial: Trial, data: ImageData) -> dict[str, float]:
    setup, lr = trial.setup, knob(trial, "lr", 1e-2)
    *earlier, last = stream(trial, data)
    shape, classes = last.train.inputs[0].shape, len(last.classes)
    few, order = bl.draw_few(last.train, setup.shots, trial.generator("shots")), trial.generator("order")
    call: Any
    if trial.arm in ("scratch", "shared_trunk"):
        with trial.stream("init"):
            net = bl.DirectTarget("multi_head", shape, setup.width, classes, len(earlier) + 1).to(trial.device)
        call, mine = partial(net, number=len(earlier)), list(net.parameters())
        if trial.arm == "shared_trunk":
            for one, task in enumerate(earlier):
                bl.train_direct(
                    partial(net, number=one), net.parameters(), task.train, steps=setup.steps, lr=2e-3, generator=order
                )
            mine = list(net.heads[-1].parameters())
        few_order = trial.generator("few")
        bl.train_direct(call, mine, few, steps=setup.few_steps, lr=lr, generator=few_order, batch_size=len(few))
    else:
        generation = "chunk" if trial.arm == "embedding_chunk" else "once"
        target = bl.classifier(shape, setup.width, classes)
        hyper = hypernetwork(trial, target, generation, len(earlier), setup.hidden, setup.chunk_size)
        for number, task in enumerate(earlier if trial.arm != "untrained" else []):
            hn.learn_task(hyper, number, task.train, beta=0.1, steps=setup.steps, generator=order)
        call = partial(hyper.call, cond=hn.learn_condition(hyper, few, steps=setup.few_steps, lr=lr))
    return {"accuracy": bl.accuracy_of(call, last.test), "val_accuracy": bl.accuracy_of(call, last.val)}


OPTIONS = [2, 4, 8, 16, 32]
WIDTHS = Setup(candidates=12, hidden=[32, 32], chunk_size=256, steps=1_000, scratch_steps=300, pool=True)


@PAPER.claim(
    "Accuracies with generated weights rank widths of a target as training from scratch does",
    arms=("dynamic", "sliced", "untrained", "size"),
    expect=[
        threshold("dynamic", metric="tau", above=0.4),
        shown("size", "untrained", threshold("sliced", metric="tau", above=0.4)),
    ],
    setup={
        "smoke": WIDTHS.replace(candidates=3, hidden=[4, 4], steps=3, scratch_steps=3), "small": WIDTHS,
        "medium": WIDTHS.replace(candidates=25, steps=5_000, scratch_steps=1_000), "full": WIDTHS.replace(
            candidates=25, hidden=[64, 64], steps=20_000, scratch_steps=5_000, pool=False),
    },
    data=MNIST, seeds={"smoke": 1, "small": 5, "medium": 12, "full": 5}, timeout=14_400.0,
    reported="SMASH and graph hypernetworks: correlated rankings; no figure for this setting",
    notes=(
        "Targets 196-w1-w2-10, both widths of 2, 4, 8, 16, 32; 12 of the 25 pairs, drawn. `tau` is Kendall's, between "
        "validation accuracy with generated weights and test accuracy after 300 steps from scratch. `dynamic` takes "
        "the target as an argument and knows pieces by their layers' descriptors; `sliced` generates the widest target "
        "and cuts it (pruning). Both are told the keep ratios. `size` ranks by the number of parameters, `untrained` "
        "by a hypernetwork before training: what a ranking is worth without any learning. `regret` is the accuracy "
        "lost by taking the first of the ranking."
    ),
)  # fmt: skip
def width_ranking(trial: Trial, data: ImageData) -> dict[str, float]:
    setup = trial.setup
    data = pooled(trial, data)
    parts = [split.to(trial.device) for split in (data.train, data.val, data.test)]  # type: ignore[union-attr]
    pairs = list(product(OPTIONS, OPTIONS))
    drawn = torch.randperm(len(pairs), generator=trial.generator("widths"))[: setup.candidates]
    candidates = [pairs[place] for place in drawn.tolist()]

    def build(widths: tuple[int, ...]) -> nn.Module:
        return bl.mlp(parts[0].inputs[0].numel(), *widths, data.num_classes)

    largest, generated, trained = (OPTIONS[-1], OPTIONS[-1]), [], []
    with trial.stream("method"):
        if trial.arm == "size":
            generated = [float(sum(p.numel() for p in build(widths).parameters())) for widths in candidates]
        else:
            fixed = trial.arm == "sliced"
            design = hn.HypernetDesign("task", "once" if fixed else "component_chunk", False, fixed)
            options: dict[str, Any] = {"cond_dim": 2, "hidden": setup.hidden, "init": "scaled"}
            options |= {} if fixed else {"chunk_size": setup.chunk_size}
            net = hn.Hypernetwork(build(largest), design, **options).to(trial.device)
            supernet = hn.WidthSupernet(build, largest, net)
            steps = 0 if trial.arm == "untrained" else setup.steps
            supernet.fit(parts[0], pairs, steps=steps, generator=trial.generator("widths_of_steps"))
            generated = [supernet.accuracy(widths, parts[1]) for widths in candidates]
    for widths in candidates:
        with trial.stream("init"):
            module = build(widths).to(trial.device)
        order, own = trial.generator("order"), module.parameters()
        bl.train_direct(module, own, parts[0], steps=setup.scratch_steps, lr=2e-3, generator=order)
        trained.append(bl.accuracy_of(module, parts[2]))
        trial.progress(len(trained), len(candidates))
    for one, other in sorted(zip(generated, trained)):
        trial.log(one, from_scratch=other)
    tau = float(kendalltau(generated, trained).statistic)
    return {
        "tau": tau if tau == tau else 0.0,
        "regret": max(trained) - trained[max(range(len(trained)), key=generated.__getitem__)],
    }
