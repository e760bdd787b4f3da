"""Claims of "Wide and Deep Neural Networks Achieve Optimality for Classification"."""

import math
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from etude.data import images
from etude.data.kinds import Examples, ImageData
from etude.lab import Paper, Setup, Source, Trial, higher, lower, shown, threshold, trend
from etude.nn.dual import dual_activation
from etude.theory.wide_deep_optimality import (
    DeepNTKClassifier,
    HermiteActivation,
    NTKNetwork,
    OrthantSphere,
    RareCap,
    SingularKernelClassifier,
    activation_for_alpha,
    deep_ntk,
    depth_profile,
    descent_prediction,
    empirical_ntk,
    optimal_activation,
)

__all__ = ["PAPER"]

PAPER = Paper(
    slug="wide_deep_optimality",
    domain="theory",
    title="Wide and Deep Neural Networks Achieve Optimality for Classification",
    authors="Radhakrishnan, Belkin & Uhler",
    year=2023,
    arxiv="2204.14126",
    venue="PNAS 120(14)",
    summary="Infinitely wide and deep networks follow one of three rules; the right activation makes them optimal.",
    methods=(
        "etude.nn.gaussian",
        "etude.nn.dual",
        "etude.theory.wide_deep_optimality.activations",
        "etude.theory.wide_deep_optimality.taxonomy",
        "etude.theory.wide_deep_optimality.kernel",
        "etude.theory.wide_deep_optimality.geometry",
        "etude.theory.wide_deep_optimality.estimators",
        "etude.theory.wide_deep_optimality.depth",
        "etude.theory.wide_deep_optimality.networks",
        "etude.theory.wide_deep_optimality.rare_cap",
    ),
    usage="""\
import torch
from etude.theory.wide_deep_optimality import DeepNTKClassifier, OrthantSphere, classify_activation
where_depth_leads = classify_activation(torch.nn.GELU())      # rule, A, A', B', alpha, with error bounds
X, y = torch.rand(200, 2).numpy(), torch.arange(200).numpy() % 2
sphere = OrthantSphere().fit(X)
classifier = DeepNTKClassifier().fit(sphere.transform(X), y)  # infinitely wide and deep, alpha = 2
labels = classifier.predict(sphere.transform(X))
""",
    notes=(
        "The optimality is that of infinitely many data: at a finite sample a tuned nearest-neighbour vote over many "
        "points, and the order 0.75 d, have less error than the order d that is consistent, as the tables show. The "
        "order is the dimension on which the data lie; for images that is not the number of pixels, and alpha must be "
        "tuned. Depth must be large: below some n^(2/d) layers the designed network behaves like the nearest "
        "neighbour. Width must be larger still: the polynomial activations have heavy tails, and at 4 layers the "
        "kernel of a network of width 2,048 with the activation for d = 2 is hundreds of times the limit in norm "
        "(`width_error`)."
    ),
    extra="run",
)

THIRD_ORDER = [0.0, 0.0, math.sqrt(0.5), math.sqrt(0.5)]
WITH_MEAN = [0.3, 0.6, math.sqrt(0.55)]
GENTLE = [0.0, 0.9, math.sqrt(0.19)]
"""0.9 h_1 + 0.44 h_2, of order 2.4: a singular limit, and tails light enough for networks of moderate width."""

CAP_THRESHOLDS = {1: 0.988, 2: 0.95, 3: 0.93, 4: 0.91, 5: 0.89}
"""theta for each dimension, so that the cap is rare: about a fifth of the points."""


def _cap(d: int) -> RareCap:
    return RareCap(d=d, threshold=CAP_THRESHOLDS[d], flip=0.2)


CAPS = {
    "d2": Source(partial(_cap, 2), scales=("smoke", "small", "full")),
    "d3": Source(partial(_cap, 3), scales=("small", "full")),
    "d1": Source(partial(_cap, 1), scales=("full",)),
    "d4": Source(partial(_cap, 4), scales=("full",)),
    "d5": Source(partial(_cap, 5), scales=("full",)),
}
ORDERS = {"half": 0.5, "three_quarters": 0.75, "optimal": 1.0, "double": 2.0}


def _classifier(arm: str, d: int, trial: Trial) -> Any:
    if arm == "one_nn":
        return DeepNTKClassifier(torch.tensor(THIRD_ORDER), ties="first")
    if arm == "majority":
        return DeepNTKClassifier(torch.relu, ties="first")
    if arm == "hilbert":
        return SingularKernelClassifier(alpha=d, ties="first")
    if arm == "knn":
        return KNeighborsClassifier(trial.tuned.k)
    if arm == "optimal":
        return DeepNTKClassifier(optimal_activation(d), ties="first")
    return DeepNTKClassifier(activation_for_alpha(ORDERS[arm] * d), ties="first")


def _excess(classifier: Any, x: np.ndarray, y: np.ndarray, at: np.ndarray, truth: np.ndarray) -> float:
    return float((classifier.fit(x, y).predict(at) != truth).mean())


@PAPER.claim(
    "The network whose activation is designed for the dimension is closer to Bayes than the two other limits of depth",
    arms=("one_nn", "majority", "half", "three_quarters", "optimal", "double", "hilbert", "knn"),
    expect=[
        lower("optimal", than="one_nn", metric="excess"),
        lower("optimal", than="majority", metric="excess"),
        shown(
            "three_quarters",
            "hilbert",
            "knn",
            lower("optimal", than="half", metric="excess"),
            lower("optimal", than="double", metric="excess"),
            lower("optimal", than="three_quarters", metric="excess"),
            lower("optimal", than="knn", metric="excess"),
        ),
    ],
    setup={
        "smoke": Setup(n=100, test=100),
        "small": Setup(n=2_000, test=1_000),
        "full": Setup(n=200_000, test=1_000),
    },
    data=CAPS,
    tune={"k": {"knn": [1, 5, 15, 31, 51, 101, 201, 401]}},
    tune_by="val_error",
    tune_goal="min",
    untuned=("one_nn", "majority", "half", "three_quarters", "optimal", "double", "hilbert"),
    seeds={"smoke": 1, "small": range(10, 15), "full": range(10, 20)},
    timeout=3600.0,
    reported="theorems, no benchmark figures: of the three limits only alpha = d is consistent for every distribution",
    notes=(
        "Points uniform on the orthant of S^d, a cap that a fifth of them lie in, labels flipped with probability 0.2. "
        "`excess` is the share of test points whose label is not Bayes': errors against noisy labels would add the "
        "same 0.2 to all. `optimal` is the infinitely deep network itself, by its Koenigs function; `hilbert` the "
        "weights |x - x_i|^-d that it tends to. Other orders than d are shown, and a vote of k neighbours with k tuned "
        "on 1,000 noisy labels. At these sample sizes the tuned vote is clearly better than the method, and so is the "
        "order 0.75 d: the theorem is about infinitely many data, where alone of the four orders d is consistent and "
        "the Hilbert estimate, without any parameter, converges at a logarithmic rate. On classes of equal size half "
        "the dimension does better up to n = 3,000; the rare cap is what tells a vote from the majority."
    ),
)
def optimality(trial: Trial, data: RareCap) -> dict[str, float]:
    x, y, _ = data.sample(trial.setup.n, trial.generator("data"))
    at, _, truth = data.sample(trial.setup.test, trial.generator("test"))
    classifier = _classifier(trial.arm, data.d, trial)
    metrics = {"excess": _excess(classifier, x.numpy(), y.numpy(), at.numpy(), truth.numpy())}
    if trial.arm == "knn":
        near, noisy, _ = data.sample(1_000, trial.generator("validation"))
        metrics["val_error"] = float((classifier.predict(near.numpy()) != noisy.numpy()).mean())
    return metrics


@PAPER.claim(
    "With more data the excess error of the designed network falls, faster than those of the other two limits",
    arms=("one_nn", "majority", "half", "three_quarters", "optimal", "double"),
    expect=[
        trend("slope", arm="optimal", slope=(None, 0.0)),
        lower("optimal", than="one_nn", metric="slope"),
        lower("optimal", than="majority", metric="slope"),
        shown(
            "three_quarters",
            "half",
            "double",
            lower("optimal", than="half", metric="slope"),
            lower("optimal", than="double", metric="slope"),
            lower("optimal", than="three_quarters", metric="excess"),
        ),
    ],
    setup={
        "smoke": Setup(sizes=[50, 100], parts=2, test=100),
        "small": Setup(sizes=[200, 800, 3_200, 12_800], parts=8, test=1_000),
        "full": Setup(sizes=[200, 2_000, 20_000, 200_000], parts=8, test=2_000),
    },
    data=CAPS,
    seeds={"smoke": 1, "small": range(10, 15), "full": range(10, 20)},
    timeout=3600.0,
    reported="theorem: with alpha = d the classifier is consistent; the nearest neighbour and the majority are not",
    notes=(
        "`slope` is the change of the excess, on `optimality`'s task, for ten times the data: the least-squares slope "
        "over log10 n. The excess of a size is the mean over up to eight disjoint parts of the largest sample; "
        "`excess` is that of the largest size, the curve `excess_by_n` all of them. Half the order gets worse with "
        "more data, on its way to the majority, and twice the order stays near the nearest neighbour. A falling slope "
        "is not yet consistency: three quarters of the order fall as fast at these sizes and have less error, and only "
        "theory says that they tend to a vote of all points in the end."
    ),
)
def consistency(trial: Trial, data: RareCap) -> dict[str, float]:
    sizes = trial.setup.sizes
    x, y, _ = (part.numpy() for part in data.sample(sizes[-1], trial.generator("data")))
    at, _, truth = (part.numpy() for part in data.sample(trial.setup.test, trial.generator("test")))
    classifier = _classifier(trial.arm, data.d, trial)
    found = []
    for n in sizes:
        starts = range(0, min(sizes[-1] - n, (trial.setup.parts - 1) * n) + 1, n)
        found.append(float(np.mean([_excess(classifier, x[i : i + n], y[i : i + n], at, truth) for i in starts])))
        trial.log(n, excess_by_n=found[-1])
    slope = np.polyfit(np.log10(sizes), found, 1)[0]
    return {"excess": found[-1], "slope": float(slope)}


ACTIVATIONS: dict[str, Any] = {
    "optimal": optimal_activation(2),
    "relu": torch.relu,
    "third_order": torch.tensor(THIRD_ORDER),
    "with_mean": torch.tensor(WITH_MEAN),
    "erf": torch.erf,
}
"""One of each rule: singular of order 2, majority at B' = 1, nearest, majority at B' > 1, singular of another order."""

DEPTHS: dict[str, list[float | str]] = {
    "optimal": [10, 30, 100, 400, 3_000, "inf"],
    "relu": [3, 10, 30, 100, 400, 3_000, "inf"],
    "third_order": [10, 30, 100, "inf"],
    "with_mean": [10, 30, 100, "inf"],
    "erf": [30, 100, 400, 3_000, "inf"],
}


@PAPER.claim(
    "Depth drives the network of each activation to the rule that three numbers of the activation foretell",
    arms=("optimal", "relu", "third_order", "with_mean", "erf"),
    expect=[
        *(threshold(arm, metric="agreement", above=0.9) for arm in ("optimal", "relu", "third_order", "with_mean")),
        *(threshold(arm, metric="lead", above=0.0) for arm in ("optimal", "relu", "third_order", "with_mean")),
        *(threshold(arm, metric="rise", above=0.0) for arm in ("optimal", "relu", "with_mean")),
        shown("erf", threshold("erf", metric="agreement", above=0.9)),
    ],
    setup={
        "smoke": Setup(n=30, test=30, depths={arm: [30, "inf"] for arm in DEPTHS}),
        "small": Setup(n=200, test=300, depths=DEPTHS),
        "full": Setup(
            n=2_000,
            test=2_000,
            depths={
                arm: [*listed[:-1], *([30_000] if arm in ("optimal", "relu") else []), "inf"]
                for arm, listed in DEPTHS.items()
            },
        ),
    },
    seeds={"smoke": 1, "small": 5, "full": 10},
    timeout=3600.0,
    reported="theorems: A = 0, A' != 0: singular kernel; A = A' = 0: nearest neighbour; A != 0, B' >= 1: majority",
    notes=(
        "Infinitely wide networks of finite depth, trained to the end without a ridge on the task of `optimality` in "
        "two dimensions. `agreement` is the share of test points on which the deepest finite network and the rule of "
        "its taxonomy agree, `lead` how much more that is than with the best of the other two rules (for singular "
        "kernels the rule is the Hilbert estimate of the activation's own order), `rise` what it gained from the "
        "shallowest depth, `limit_agreement` that of infinite depth. The curves run over depth. The designed "
        "activation behaves like the nearest neighbour at first: concluding from 30 layers would be wrong, and at "
        "3,000 a few points in a hundred still differ. Depths at which the kernel matrix of a polynomial activation "
        "has no inverse in double precision are left out. erf(z) in two dimensions has an order below 1, whose votes "
        "are hardly other than the majority's, so that its lead means nothing."
    ),
)
def depth(trial: Trial) -> dict[str, float]:
    setup = trial.setup
    x, y, _ = RareCap(2).sample(setup.n, trial.generator("data"))
    at, _, _ = RareCap(2).sample(setup.test, trial.generator("test"))
    depths = [math.inf if layers == "inf" else layers for layers in setup.depths[trial.arm]]
    profile = depth_profile(ACTIVATIONS[trial.arm], depths, x.numpy(), y.numpy(), at.numpy())
    for place, layers in enumerate(profile.depths[:-1]):
        trial.log(layers, **{rule: shares[place] for rule, shares in profile.agreement.items()})
    own = profile.agreement[profile.taxonomy.rule]
    others = [shares[-2] for rule, shares in profile.agreement.items() if rule != profile.taxonomy.rule]
    return {
        "agreement": own[-2],
        "lead": own[-2] - max(others),
        "rise": own[-2] - next(share for share in own if math.isfinite(share)),
        "limit_agreement": own[-1],
    }


NOISY_ARMS = ("one_nn", "deep", "deep_full", "relu_ntk", "relu_ntk_ridge", "knn")


@PAPER.claim(
    "Where a fifth of the labels is wrong, the infinitely deep singular network beats the nearest neighbour",
    arms=NOISY_ARMS,
    expect=[
        higher("deep", than="one_nn", metric="accuracy"),
        shown(
            "deep_full",
            "relu_ntk",
            "relu_ntk_ridge",
            "knn",
            higher("deep", than="relu_ntk", metric="accuracy"),
            higher("deep", than="relu_ntk_ridge", metric="accuracy"),
            higher("deep", than="knn", metric="accuracy"),
            higher("deep_full", than="one_nn", metric="accuracy"),
        ),
    ],
    setup={
        "smoke": Setup(n=100, flip=0.2, depth=3),
        "small": Setup(n=1_000, flip=0.2, depth=3),
        "full": Setup(n=10_000, flip=0.2, depth=3),
    },
    data={
        "digits": Source(images.digits, scales=("smoke", "small")),
        "mnist5k": Source(images.mnist5k, scales=("full",)),
        "mnist": Source(partial(images.hub, "ylecun/mnist", in_memory=True), scales=("full",)),
    },
    tune={
        "alpha": {"deep": [1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0]},
        "ridge": {"relu_ntk_ridge": [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]},
        "k": {"knn": [1, 2, 4, 6, 8, 12, 16, 24, 32]},
    },
    tune_by="val_accuracy",
    untuned=("one_nn", "deep_full", "relu_ntk"),
    seeds={"smoke": 1, "small": 5, "full": 10},
    timeout=3600.0,
    reported="no figures on images; the theorem says that under noise the nearest neighbour cannot be consistent",
    notes=(
        "Training and validation labels are replaced by another class with probability 0.2, at random for each seed; "
        "test labels are clean. Test images stay, so conclusions are about this set. `deep` tunes the order of its "
        "singular kernel by the accuracy on noisy validation labels; `deep_full` takes the number of pixels for the "
        "dimension, as the theorem does for data that fill the space: images do not, and it is the nearest neighbour "
        "in effect. `relu_ntk` is an infinitely wide ReLU network of 3 layers trained to the end, `relu_ntk_ridge` "
        "with a tuned ridge, `knn` a tuned vote. All see the same images, on the orthant of the sphere. The singular "
        "network interpolates and averages all the same; a tuned ridge or a tuned k are a little better still. On a "
        "set of one's own, `deep` is the arm to compare, and a small alpha that is chosen says that the data lie on "
        "few dimensions."
    ),
)
def noisy_labels(trial: Trial, data: ImageData) -> dict[str, float]:
    generator = trial.generator("noise")
    train, val, test = (_rows(part) for part in (data.train, data.val, data.test))
    kept = torch.randperm(len(train[0]), generator=trial.generator("data"))[: trial.setup.n].numpy()
    classes = len(data.classes)
    y = _flipped(train[1], classes, trial.setup.flip, generator)[kept]
    y_val = _flipped(val[1], classes, trial.setup.flip, generator)
    sphere = OrthantSphere().fit(train[0][kept])
    x, x_val, x_test = (sphere.transform(rows) for rows in (train[0][kept], val[0], test[0]))
    layers, tuned = trial.setup.depth, trial.tuned
    classifier: Any = {
        "one_nn": lambda: KNeighborsClassifier(1),
        "deep": lambda: DeepNTKClassifier(activation_for_alpha(tuned.alpha), ties="first"),
        "deep_full": lambda: DeepNTKClassifier(activation_for_alpha(min(x.shape[1] - 1, 500)), ties="first"),
        "relu_ntk": lambda: DeepNTKClassifier(torch.relu, layers, ties="first"),
        "relu_ntk_ridge": lambda: DeepNTKClassifier(torch.relu, layers, ridge=tuned.ridge, ties="first"),
        "knn": lambda: KNeighborsClassifier(min(tuned.k, len(x))),
    }[trial.arm]()
    classifier.fit(x, y)
    metrics = {"val_accuracy": float((classifier.predict(x_val) == y_val).mean())}
    if not trial.tuning:
        metrics["accuracy"] = float((classifier.predict(x_test) == test[1]).mean())
    return metrics


def _rows(part: Any) -> tuple[np.ndarray, np.ndarray]:
    """Inputs as rows and their labels; of a data set that is not in memory, all items."""
    if not isinstance(part, Examples):
        inputs, targets = zip(*(part[place] for place in range(len(part))))
        part = Examples(torch.stack(inputs), torch.as_tensor(targets))
    return part.inputs.flatten(1).double().numpy(), part.targets.numpy()


def _flipped(labels: np.ndarray, classes: int, share: float, generator: torch.Generator) -> np.ndarray:
    """Labels of which a share, drawn at random, is replaced by one of the other classes."""
    hit = torch.rand(len(labels), generator=generator) < share
    shift = torch.randint(1, classes, (len(labels),), generator=generator)
    return (labels + (hit * shift).numpy()) % classes


WIDTHS = (32, 128, 512)


@PAPER.claim(
    "The wider a network, the closer gradient descent takes it to its infinitely wide limit",
    arms=(*(f"w{width}" for width in WIDTHS), "designed"),
    expect=[
        trend("gap", against={f"w{width}": math.log(width) for width in WIDTHS}, slope=(None, 0.0), transform="log"),
        trend(
            "kernel_error", against={f"w{width}": math.log(width) for width in WIDTHS}, slope=(None, 0.0),
            transform="log",
        ),
        shown("designed"),
    ],
    setup={
        "smoke": Setup(n=20, test=20, depth=2, steps=5, draws=2, factor=0.125),
        "small": Setup(n=60, test=200, depth=3, steps=300, draws=7, factor=1.0),
        "full": Setup(n=200, test=1_000, depth=4, steps=3_000, draws=10, factor=4.0),
    },
    seeds={"smoke": 1, "small": 5, "full": 10},
    timeout=3600.0,
    reported="the paper takes the limit of infinite width; figures of finite networks are not part of its theorems",
    notes=(
        "Networks in the NTK parameterisation, without biases, by plain gradient descent on the square loss from a "
        "zero output; `gap` is the root mean square difference, on test points, to what the infinitely wide network "
        "predicts after as many steps, relative to the latter's size; `kernel_error` that of the kernel at the start, "
        "in the Frobenius norm. Both are medians over draws of the weights, since polynomials have heavy tails. At "
        "`full` widths are four times those in the arms' names. The trained arms have 0.9 h_1 + 0.44 h_2, of singular "
        "order 2.4; `designed` the activation for d = 2, (h_1 + h_3) / sqrt(2), at the largest width: its cubic makes "
        "the kernel of a network of that width another than the limit's by far, so that it is not trained. The "
        "infinite network with the designed activation is a fact about kernels first; finite networks with it need "
        "care, or lighter tails."
    ),
)  # fmt: skip
def finite_width(trial: Trial) -> dict[str, float]:
    setup = trial.setup
    x, observed, _ = RareCap(2).sample(setup.n, trial.generator("data"))
    at, _, _ = RareCap(2).sample(setup.test, trial.generator("test"))
    width = max(round(setup.factor * (WIDTHS[-1] if trial.arm == "designed" else int(trial.arm[1:]))), 2)
    activation = optimal_activation(2) if trial.arm == "designed" else HermiteActivation(GENTLE)
    dual = dual_activation(activation)
    limit = deep_ntk((x @ x.T).clamp(max=1.0).fill_diagonal_(1.0), dual, setup.depth, scaled=False)
    limit_test = deep_ntk((at @ x.T).clamp(max=1.0), dual, setup.depth, scaled=False)
    y = 2.0 * observed - 1
    lr = 0.5 / float(torch.linalg.eigvalsh(limit)[-1])
    expected = descent_prediction(limit, limit_test, y.double(), lr, setup.steps)
    found: dict[str, list[float]] = {"kernel_error": []}
    for draw in range(setup.draws):
        network = NTKNetwork(
            x.shape[1], activation.coefficients.tolist(), width, setup.depth, trial.generator("init")
        ).double()
        kernel = empirical_ntk(network, x, x)
        found["kernel_error"].append(float((kernel - limit).norm() / limit.norm()))
        if trial.arm != "designed":
            predicted = _descend(network, x, y.double(), at, lr, setup.steps)
            gap = (predicted - expected).square().mean().sqrt() / expected.square().mean().sqrt()
            found.setdefault("gap", []).append(min(float(gap.nan_to_num(1e6, 1e6)), 1e6))
        trial.progress(draw + 1, setup.draws)
    return {name: float(np.median(values)) for name, values in found.items()}


def _descend(network: NTKNetwork, x: Tensor, y: Tensor, at: Tensor, lr: float, steps: int) -> Tensor:
    """What the network predicts at other points after so many steps of gradient descent on sum (f - y)^2 / 2."""
    network, x, y, at = network.float(), x.float(), y.float(), at.float()
    optimizer = torch.optim.SGD(network.parameters(), lr=lr)
    weights = list(network.parameters())
    with torch.no_grad():
        shifted = y + network.raw(x, weights)  # the output at the start, subtracted from every output
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * (network.raw(x, weights) - shifted).square().sum()).backward()
        optimizer.step()
    with torch.no_grad():
        return network(at).double()
