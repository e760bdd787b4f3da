"""Claims of "What Can Be Learnt With Wide Convolutional Neural Networks?"."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from etude.data import images
from etude.data.kinds import Examples, ImageData
from etude.lab import Paper, Setup, Source, Trial, higher, lower, shown, threshold
from etude.theory.wide_cnn import (
    fc_ntk,
    fit_power_law,
    hierarchical_kernel,
    kernel_spectrum,
    posterior_variance,
    predict_beta,
    predict_spectrum,
    sample_grf,
    sample_multisphere,
    sector_shares,
    sector_spectrum,
    teacher_student,
)
from etude.theory.wide_cnn.fields import cholesky

__all__ = ["PAPER"]

PAPER = Paper(
    slug="wide_cnn",
    domain="theory",
    title="What Can Be Learnt With Wide Convolutional Neural Networks?",
    authors="Cagnetta, Favero & Wyart",
    year=2023,
    arxiv="2208.01003",
    venue="ICML (PMLR 202)",
    code="https://github.com/pcsl-epfl/convolutional_neural_kernels",
    summary="Infinitely wide convolutional networks learn a target on small patches at a rate that the patch decides.",
    methods=(
        "etude.theory.wide_cnn.patches",
        "etude.theory.wide_cnn.kernel",
        "etude.theory.wide_cnn.exponents",
        "etude.theory.wide_cnn.spectrum",
        "etude.theory.wide_cnn.sectors",
        "etude.theory.wide_cnn.fields",
        "etude.theory.wide_cnn.curves",
        "etude.theory.wide_cnn.estimators",
        "etude.theory.wide_cnn.networks",
        "etude.theory.wide_cnn.plots",
    ),
    usage="""\
from etude.theory.wide_cnn import HierarchicalKernelRegressor, learning_curve, sample_multisphere
curve = learning_curve([2], [2, 2, 2], sizes=[32, 64, 128], seeds=3)    # a student of your filters on a local target
print(curve.beta, curve.predicted)                                      # measured, with its interval, and foretold
x = sample_multisphere(100, num_patches=4, patch_dim=2).numpy()
mean, std = HierarchicalKernelRegressor([2, 2, 2]).fit(x[:80], x[:80, 0]).predict(x[80:], return_std=True)
""",
    notes=(
        "The rates are those of the limit of many data, and of inputs whose patches are independent points on spheres: "
        "at n of a thousand the curve of a target on all eight inputs still falls a third faster than its exponent "
        "says. A local target is not learnt at 1 / d_eff of its patch by a network that sees more, but at 0.625 where "
        "that would be 1: `predict_beta` has the whole formula. On small images the hierarchical kernel has no "
        "advantage over a fully connected one. nu, the smoothness in all predictions, is 1/2 for the NTK and 3/2 for "
        "the RFK of ReLU networks, whose kernels are here."
    ),
    extra="run",
)

Kernel = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Multisphere:
    """Inputs whose patches are independent and uniform on spheres, and the filters of a student that sees them all."""

    filters: tuple[int, ...]

    @property
    def inputs(self) -> int:
        return math.prod(self.filters)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return sample_multisphere(n, self.inputs // self.filters[0], self.filters[0], generator)


def d8() -> Multisphere:
    return Multisphere((2, 2, 2))


def d27() -> Multisphere:
    return Multisphere((3, 3, 3))


LEVELS = {"local": 1, "middle": 2, "global": 3, "fc": 1, "matched": 1}
"""How many of the student's filters the teacher of an arm has."""

TEACHERS = 32
NEAR = 0.12


@PAPER.claim(
    "A deep convolutional kernel learns a target on small patches at the rate of the patch, though it sees everything",
    arms=("local", "middle", "global", "fc", "matched"),
    expect=[
        higher("local", than="middle", metric="beta"),
        higher("middle", than="global", metric="beta"),
        higher("local", than="fc", metric="beta"),
        *(threshold(arm, metric="gap", above=-NEAR, below=NEAR) for arm in ("local", "middle", "global")),
        shown(
            "matched",
            lower("local", than="fc", metric="error"),
            lower("local", than="middle", metric="error"),
            lower("middle", than="global", metric="error"),
            higher("local", than="middle", metric="exact_beta"),
            higher("middle", than="global", metric="exact_beta"),
            higher("local", than="fc", metric="exact_beta"),
            higher("matched", than="local", metric="beta"),
        ),
    ],
    setup={
        "smoke": Setup(sizes=[16, 32, 64], test=64, fitted=3),
        "small": Setup(sizes=[64, 128, 256, 512, 1_024], test=512, fitted=4),
        "medium": Setup(sizes=[64, 128, 256, 512, 1_024, 2_048, 4_096], test=1_024, fitted=4),
        "full": Setup(sizes=[128, 256, 512, 1_024, 2_048, 4_096, 8_192], test=8_192, fitted=4),
    },
    data={"d8": Source(d8), "d27": Source(d27, scales=("full",))},
    seeds={"smoke": 1, "small": 10, "medium": 10, "full": 10},
    timeout=7200.0,
    reported=(
        "d = 8, student with filters 2, 2, 2: slopes set by the effective dimensions 1, 2, 4 of the teachers' patches; "
        "curves follow the prediction (a figure without numbers in the text)"
    ),
    notes=(
        "Teachers are Gaussian fields with the NTK of the student's first one, two or three filters for covariance, "
        "drawn jointly on training and test points; every trial averages 32 of them, since a single one makes slopes "
        "scatter by 0.16. Students interpolate. `beta` is the slope over the last four sizes, `gap` what it exceeds "
        "`predict_beta` by, `error` that at the largest size in units of the variance; `exact_beta` is the slope of "
        "the error averaged over all teachers by its formula. `fc` is the NTK of three fully connected layers on the "
        "same data and targets as `local`; `matched` a student of the teacher's own patches, at its rate of "
        "1 / d_eff(1), which the deep network does not reach. Exponents are of the limit: at these sizes `global` is "
        "still above its own, by less than the margin of 0.12 that was declared."
    ),
)
def adaptivity(trial: Trial, data: Multisphere) -> dict[str, float]:
    setup, filters = trial.setup, data.filters
    teacher = filters[: LEVELS[trial.arm]]
    seen = teacher if trial.arm == "matched" else filters
    student: Kernel = partial(hierarchical_kernel, filter_sizes=seen)
    if trial.arm == "fc":
        student = partial(fc_ntk, depth=len(filters))
    x = data.sample(setup.sizes[-1] + setup.test, trial.generator("data")).to(trial.device)
    run = teacher_student(
        x, setup.sizes, partial(hierarchical_kernel, filter_sizes=teacher), student, teachers=TEACHERS,
        generator=trial.generator("teacher"),
    )  # fmt: skip
    for n, error, exact in zip(run.sizes, run.errors.tolist(), run.expected.tolist()):
        trial.log(math.log10(n), log10_error=math.log10(error), log10_exact_error=math.log10(exact))
    last = slice(-setup.fitted, None)
    law, exact_law = (
        fit_power_law(values[last].cpu(), against=setup.sizes[last]) for values in (run.errors, run.expected)
    )
    predicted = predict_beta(teacher, seen)
    metrics = {"beta": law.exponent, "exact_beta": exact_law.exponent, "error": float(run.errors[-1])}
    return metrics if trial.arm == "fc" else metrics | {"gap": law.exponent - predicted, "predicted": predicted}


DEPTHS = {"one_layer": 1, "two_layers": 2, "three_layers": 3}


@PAPER.claim(
    "Eigenvalues fall with their rank as the effective dimension of the whole input says",
    arms=("one_layer", "two_layers", "three_layers"),
    expect=[
        *(threshold(arm, metric="relative", above=0.9, below=1.1) for arm in ("one_layer", "two_layers")),
        lower("two_layers", than="one_layer", metric="exponent"),
        shown(
            "three_layers",
            threshold("three_layers", metric="relative", above=0.9, below=1.1),
            lower("three_layers", than="two_layers", metric="exponent"),
            threshold("three_layers", metric="pure", above=0.9),
        ),
    ],
    setup={
        "smoke": Setup(n=200, ranks=[5, 40], kind="ntk", leading=9, draws=200),
        "small": Setup(n=2_048, ranks=[15, 250], kind="ntk", leading=17, draws=1_000),
        "full": Setup(n=16_384, ranks=[15, 250], kind="ntk", leading=17, draws=4_000),
    },
    seeds={"smoke": 1, "small": 10, "full": 5},
    timeout=7200.0,
    reported="NTK on multispheres: rho^-2, rho^-1.5, rho^-1.25 for filters [2], [2, 2], [2, 2, 2] (figure)",
    notes=(
        "NTK matrices of n inputs of one meta-patch, d = 2, 4, 8; least squares of the logarithms over the ranks 15 to "
        "250. `relative` is the exponent over the predicted 1 + 1 / d_eff(L); `exact` what the kernel's own spectrum "
        "gives, in the same ranks, by quadrature instead of a sample: it differs from the prediction because these "
        "ranks are low, from `exponent` because n is finite. `pure` is the share of their variance that the leading "
        "eigenvectors have in the sector that theory puts them in, by resampling patches: `sector_shares`."
    ),
)
def spectrum(trial: Trial) -> dict[str, float]:
    setup = trial.setup
    filters = [2] * DEPTHS[trial.arm]
    x = Multisphere(tuple(filters)).sample(setup.n, trial.generator("data")).to(trial.device)
    values = kernel_spectrum(hierarchical_kernel(x, None, filters, setup.kind)).cpu()
    for rank in sorted({round(10 ** (k / 10)) for k in range(10 * len(str(setup.n)))}):
        if rank <= setup.n // 2:
            trial.log(math.log10(rank), log10_eigenvalue=math.log10(max(float(values[rank - 1]), 1e-300)))
    law = fit_power_law(values, *setup.ranks)
    predicted = predict_spectrum(filters)
    exact = sector_spectrum(filters, setup.kind)
    found = {
        "exponent": law.exponent, "relative": law.exponent / predicted, "predicted": predicted,
        "exact": exact.fit(None, *setup.ranks).exponent,
    }  # fmt: skip
    _, shares = sector_shares(
        x[: min(setup.n, 1_000)].contiguous(), filters, setup.kind, count=setup.leading, draws=setup.draws,
        generator=trial.generator("resampling"),
    )  # fmt: skip
    order = exact.eigenvalues.sort(descending=True).indices
    sectors = exact.levels[order].repeat_interleave(exact.multiplicities[order].long())[: setup.leading].tolist()
    # Rank 0 is the constant, which has no variance to attribute.
    found["pure"] = fmean(float(shares.value[rank, sectors[rank] - 1]) for rank in range(1, setup.leading))
    return found


def _cifar10() -> ImageData:
    return images.hub("uoft-cs/cifar10", in_memory=True)


@PAPER.claim(
    "On images too, the error of kernel regression on targets drawn from the kernel is known before any label is seen",
    arms=("hierarchical", "fc", "rbf"),
    expect=[
        *(threshold(arm, metric="identity", above=0.97, below=1.03) for arm in ("hierarchical", "fc", "rbf")),
        shown(
            higher("hierarchical", than="fc", metric="accuracy"),
            higher("hierarchical", than="rbf", metric="accuracy"),
            higher("hierarchical", than="fc", metric="accuracy_few"),
            higher("hierarchical", than="rbf", metric="accuracy_few"),
        ),
    ],
    setup={
        "smoke": Setup(n=60, few=30, val=50, test=100, side=32, filters=[2, 2, 2], teachers=200),
        "small": Setup(n=300, few=100, val=300, test=597, side=32, filters=[2, 2, 2], teachers=1_000),
        "full": Setup(n=10_000, few=1_000, val=5_000, test=10_000, side=32, filters=[2, 2, 2, 2], teachers=1_000),
    },
    data={
        "digits": Source(images.digits, scales=("smoke", "small")),
        "cifar10": Source(_cifar10, scales=("full",)),
    },
    tune={
        "ridge": [1e-8, 1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0],
        "gamma": {"rbf": [0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]},
    },
    tune_by="val_accuracy",
    seeds={"smoke": 1, "small": 10, "full": 5},
    timeout=7200.0,
    reported="CIFAR-10 with hierarchical kernels, an appendix: deeper and more local kernels beat the connected one",
    notes=(
        "`identity` is the mean squared error on test images, over many targets drawn from the arm's own kernel and "
        "observed with the ridge's variance as noise, over the posterior variance, a formula without labels; the "
        "formula holds whatever the images are. The accuracies compare the kernels as classifiers, one class against "
        "the rest, and have no verdict: patches of 2 x 2 with a constant appended and normalised, three layers deep; "
        "the NTK of three fully connected layers; and a Gaussian kernel with gamma in units of 1 / mean squared "
        "distance. All choose their ridge, on as many validation images as the setup says. `accuracy_few` is that of "
        "a smaller sample. On 8 x 8 digits the hierarchical kernel has no advantage, and none is claimed. Images with "
        "more than 32 pixels a side are averaged down for all arms, as on a set of one's own; where the filters do not "
        "divide a side it is padded with zeros."
    ),
    helps=higher("hierarchical", than="rbf", metric="accuracy"),
)
def on_images(trial: Trial, data: ImageData) -> dict[str, float]:
    setup = trial.setup
    pool, labels = _joined(setup.side, data.train, data.val)
    order = torch.randperm(len(pool), generator=trial.generator("data"))
    held = min(setup.val, len(pool) // 2)
    rows = order[held : held + setup.n]
    test, truth = _joined(setup.side, data.test)
    test, truth = test[: setup.test].to(trial.device), truth[: setup.test].to(trial.device)
    val, x = pool[order[:held]].to(trial.device), pool[rows].to(trial.device)
    y, y_val = labels[rows].to(trial.device), labels[order[:held]].to(trial.device)
    kernel = _image_kernel(trial, x)
    own, ridge, classes = kernel(x, None), trial.tuned.ridge, len(data.classes)
    found = {"val_accuracy": _accuracy(own, kernel(val, x), y, y_val, classes, ridge)}
    if trial.tuning:
        return found
    across, few = kernel(test, x), min(setup.few, len(x))
    found["accuracy"] = _accuracy(own, across, y, truth, classes, ridge)
    found["accuracy_few"] = _accuracy(own[:few, :few], across[:, :few], y[:few], truth, classes, ridge)
    covariance = kernel(torch.cat([x, test]), None)
    fields = sample_grf(covariance, trial.generator("teacher"), count=setup.teachers)
    noise = torch.randn(len(x), setup.teachers, generator=trial.generator("noise"), dtype=torch.float64)
    observed = fields[: len(x)] + math.sqrt(ridge) * noise.to(trial.device)
    predicted = across @ torch.cholesky_solve(observed, cholesky(own, ridge))
    known = posterior_variance(own, across, covariance.diagonal()[len(x) :], ridge).mean()
    found["posterior"] = float(known / covariance.diagonal().mean())
    found["identity"] = float((predicted - fields[len(x) :]).square().mean() / known)
    return found


def _image_kernel(trial: Trial, x: Tensor) -> Kernel:
    if trial.arm == "hierarchical":
        kernel = partial(hierarchical_kernel, filter_sizes=trial.setup.filters, dim=2, constant=1.0)
        return lambda a, b: kernel(_padded(trial, a), None if b is None else _padded(trial, b))
    if trial.arm == "fc":
        return lambda a, b: fc_ntk(a.flatten(1), None if b is None else b.flatten(1), 3)
    rows = x.flatten(1)
    mean_square = 2 * float((rows - rows.mean(0)).square().sum(1).mean())
    gamma = trial.tuned.gamma / mean_square
    return lambda a, b: torch.exp(-gamma * torch.cdist(a.flatten(1), (a if b is None else b).flatten(1)).square())


def _padded(trial: Trial, x: Tensor) -> Tensor:
    """Images with zeros below and to the right, up to sides that the filters divide."""
    product = math.prod(trial.setup.filters)
    height, width = x.shape[2:]
    return F.pad(x, (0, -width % product, 0, -height % product))


def _joined(side: int, *parts: Any) -> tuple[Tensor, Tensor]:
    """The images of some splits in double precision, averaged down to at most `side` pixels a side, and their labels.

    Of a set that is not in memory, all items are read.
    """
    inputs, targets = [], []
    for part in parts:
        if not isinstance(part, Examples):
            found, labels = zip(*(part[place] for place in range(len(part))))
            part = Examples(torch.stack(found), torch.as_tensor(labels))
        pixels = part.inputs.double()
        height, width = pixels.shape[2:]
        if max(height, width) > side:
            pixels = F.adaptive_avg_pool2d(pixels, (min(height, side), min(width, side)))
        inputs.append(pixels)
        targets.append(part.targets)
    return torch.cat(inputs), torch.cat(targets)


def _accuracy(own: Tensor, across: Tensor, y: Tensor, truth: Tensor, classes: int, ridge: float) -> float:
    weights = torch.cholesky_solve(2 * F.one_hot(y, classes).double() - 1, cholesky(own, ridge))
    return float(((across @ weights).argmax(1) == truth).double().mean())
