"""Claims of "All You Need is a Good Functional Prior for Bayesian Deep Learning"."""

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from etude.data import images, tables, uci
from etude.data.kinds import Examples, ImageData, TableData
from etude.lab import Paper, Setup, Source, Trial, higher, lower, not_worse, shown
from etude.theory import functional_priors as fp

__all__ = ["PAPER"]

PAPER = Paper(
    slug="functional_priors",
    domain="theory",
    title="All You Need is a Good Functional Prior for Bayesian Deep Learning",
    authors="Tran, Rossi, Milios & Filippone",
    year=2022,
    arxiv="2011.12829",
    venue="JMLR 23",
    code="https://github.com/tranbahien/you-need-a-good-prior",
    summary="Weight priors are tuned, without labels, until a network's functions look like a Gaussian process'.",
    methods=tuple(
        f"etude.theory.functional_priors.{name}"
        for name in (
            "networks", "limits", "weight_priors", "flows", "gp", "measurement", "wasserstein", "distances", "sghmc",
            "posterior", "diagnostics", "tasks", "estimators", "plots",
        )
    ),
    usage="""\
import numpy as np
from etude.theory.functional_priors import BNNRegressor
X, y = np.random.RandomState(0).randn(80, 3), np.random.RandomState(1).randn(80)
quick = dict(outer_steps=5, inner_steps=5, burn_in=50, samples=12, keep_every=5)     # leave it out for real work
model = BNNRegressor(hidden=(20,), random_state=0, **quick).fit(X, y)
mean, std = model.predict(X[:5], return_std=True)
""",
    notes=(
        "N(0, 1) is the paper's baseline and a weak one: a single standard deviation for all layers, chosen among a "
        "handful by validation, does as well as the matched prior on the 1-D task or better (`posterior`'s line "
        "fg_tuned, and `vs_tuned`). What the match buys is a scale for every layer without any label. The critic's "
        "distance is about W (1 + W / 20) under its penalty; sliced distances on fresh functions are shown besides. "
        "The sampler takes lr^4 from the variance of its noise whatever its scale: `noise_deficit` is that share. Of "
        "the paper's eight UCI tables the catalogue holds Boston."
    ),
    extra="theory",
)  # fmt: skip

_LENGTHSCALE = 0.6
_NOISE = 0.1
_MATCH_SEED = 20_221
"""Of the one match that all seeds of a claim share: it depends on no data."""


def _line(setup: Setup) -> fp.MLP:
    return fp.MLP(1, [setup.width] * setup.layers)


def _prior(
    arm: str, network: nn.Module, generator: torch.Generator | None = None, std: float | int = 1.0
) -> fp.WeightPrior:
    if arm == "gpi_g":
        return fp.GaussianWeightPrior(network)
    if arm in ("fg", "fg_tuned"):
        return fp.GaussianWeightPrior(network, std=std, trainable=False)
    if arm in ("gpi_h", "fh"):
        fixed: dict[str, Any] = {"shape": 1.0, "rate": 1.0, "trainable": False}
        return fp.HierarchicalWeightPrior(network, **({} if arm == "gpi_h" else fixed))
    return fp.FlowWeightPrior(network, generator=generator, trainable=arm == "gpi_nf")


def _match_on_a_line(
    prior: fp.WeightPrior, setup: Setup, generator: torch.Generator, trial: Trial | None = None
) -> fp.MatchHistory:
    matcher = fp.WassersteinPriorMatcher(
        prior, fp.rbf_prior(1, lengthscale=_LENGTHSCALE), fp.GridMeasurementSet(-3, 3, setup.points), n=setup.functions,
        outer_steps=setup.outer, inner_steps=setup.inner, lr=setup.prior_lr, critic_lr=setup.critic_lr, threshold=0.01,
        generator=generator,
    )  # fmt: skip
    return matcher.fit(progress=None if trial is None else trial.progress)


def _match_metrics(trial: Trial) -> dict[str, float]:
    setup, generator = trial.setup, trial.generator("method")
    with trial.stream("init"):
        network = _line(setup)
    prior, gp = _prior(trial.arm, network, generator), fp.rbf_prior(1, lengthscale=_LENGTHSCALE)
    metrics = {}
    if any(value.requires_grad for value in prior.parameters()):
        history = _match_on_a_line(prior, setup, generator, trial)
        for step, distance in enumerate(history.distance, start=1):
            trial.log(step, critic_w1=distance)
        metrics["critic_w1"] = history.residual
    x = fp.GridMeasurementSet(-3, 3, setup.points)()
    found = fp.prior_discrepancy(prior, gp, x, setup.held_out, generator=trial.generator("evaluation"))
    metrics |= {
        "sliced_w1": float(found["sliced_w1"].value),
        "autocovariance_error": float(found["autocovariance"].value),
        "floor_sliced_w1": float(found["floor_sliced_w1"].value),
    }
    if trial.seed == 0:
        with torch.no_grad():
            own = prior.sample_functions(x, 60, generator=trial.generator("picture"))
        process = gp.sample_functions(x, 60, generator=trial.generator("picture"))
        trial.figure("functions", fp.plot_functions(x, {"GP": process, trial.arm: own}, shown=5))
    return metrics


_SMOKE_LINE = {"points": 10, "width": 6, "layers": 2, "functions": 8, "outer": 2, "inner": 2, "held_out": 16}
_SMALL_LINE = {"points": 100, "width": 50, "layers": 3, "functions": 256, "outer": 60, "inner": 40, "held_out": 2_000}
_FULL_LINE = {
    "points": 200,
    "width": 50,
    "layers": 3,
    "functions": 512,
    "outer": 800,
    "inner": 1_000,
    "held_out": 8_000,
}
_RATES = {"prior_lr": 0.05, "critic_lr": 0.05}
_FULL_RATES = {"prior_lr": 0.01, "critic_lr": 0.08}


@PAPER.claim(
    "Tuning one scale a layer brings the functions of a network near to those of a Gaussian process",
    arms=("fg", "gpi_g"),
    expect=[
        lower("gpi_g", than="fg", metric="sliced_w1"),
        lower("gpi_g", than="fg", metric="autocovariance_error"),
    ],
    setup={
        "smoke": Setup(**_SMOKE_LINE, **_RATES),
        "small": Setup(**_SMALL_LINE, **_RATES),
        "full": Setup(**_FULL_LINE, **_FULL_RATES),
    },
    seeds={"smoke": 1, "small": 5, "full": 5},
    timeout=7200.0,
    reported="figures only: the matched priors' draws look like the process', those of N(0, 1) do not",
    notes=(
        "A tanh network 1-50-50-50-1 against an RBF process of lengthscale 0.6 on a grid of [-3, 3]. Both metrics are "
        "of fresh functions, and no critic was trained for them: `sliced_w1` is the distance over random projections, "
        "`floor_sliced_w1` what two samples of the process itself have, `autocovariance_error` that of the second "
        "moments, relative to the kernel. The curve is the critic's distance over the outer steps."
    ),
)
def match(trial: Trial) -> dict[str, float]:
    return _match_metrics(trial)


@PAPER.claim(
    "Hierarchical and normalising-flow priors come nearer to the process, too, than where they start",
    arms=("fh", "gpi_h", "fixed_nf", "gpi_nf"),
    expect=[
        lower("gpi_h", than="fh", metric="sliced_w1"),
        lower("gpi_nf", than="fixed_nf", metric="sliced_w1"),
        shown(
            lower("gpi_h", than="fh", metric="autocovariance_error"),
            lower("gpi_nf", than="fixed_nf", metric="autocovariance_error"),
        ),
    ],
    setup={
        "smoke": Setup(**_SMOKE_LINE, **_RATES),
        "small": Setup(**_SMALL_LINE | {"inner": 20}, **_RATES),
        "full": Setup(**_FULL_LINE, **_FULL_RATES),
    },
    seeds={"smoke": 1, "small": 3, "full": 5},
    timeout=7200.0,
    reported="figures only: GPi-H and GPi-NF resemble the process as GPi-G does, with heavier tails",
    notes=(
        "As `match`, with half the critic's steps and three seeds at `small`. `fh` has InvGamma(1, 1) variances, whose "
        "functions have no second moment: its autocovariance error is whatever the largest draw makes it. `fixed_nf` "
        "is the flow as it starts."
    ),
)
def families(trial: Trial) -> dict[str, float]:
    return _match_metrics(trial)


@lru_cache(maxsize=4)
def _shared_prior(line: tuple[tuple[str, Any], ...]) -> fp.GaussianWeightPrior:
    """GPi-G for the 1-D tasks, matched once in a process: always the same, for it sees no data."""
    setup, generator = Setup(**dict(line)), torch.Generator().manual_seed(_MATCH_SEED)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_MATCH_SEED)
        prior = fp.GaussianWeightPrior(_line(setup))
    _match_on_a_line(prior, setup, generator)
    return prior


_LINE_KEYS = ("points", "width", "layers", "functions", "outer", "inner", "prior_lr", "critic_lr")


def _run_chains(
    trial: Trial, network: nn.Module, prior: fp.WeightPrior, likelihood: Any, data: tuple[Tensor, Tensor]
) -> fp.Posterior:
    setup = trial.setup
    generators = _generators(trial, "chains", setup.chains)
    return fp.sample_posterior(
        network, prior, likelihood, data, chains=setup.chains, burn_in=setup.burn_in, samples=setup.samples,
        keep_every=setup.keep_every, discard=setup.discard, batch_size=setup.batch, lr=setup.lr, mdecay=setup.mdecay,
        generator=generators, progress=trial.progress,
    )  # fmt: skip


def _generators(trial: Trial, stream: str, count: int) -> list[torch.Generator]:
    seeds = torch.randint(2**62, (count,), generator=trial.generator(stream)).tolist()
    return [torch.Generator(trial.device).manual_seed(seed) for seed in seeds]


def _posterior_metrics(trial: Trial) -> dict[str, float]:
    gp = fp.rbf_prior(1, lengthscale=_LENGTHSCALE)
    x, y, at, y_test, truth = fp.gap_regression(
        gp, trial.setup.n, trial.setup.test, noise_variance=_NOISE, generator=trial.generator("data")
    )
    if trial.arm == "gp_oracle":
        mean, variance = gp.posterior(x, y, at, _NOISE)
        _picture(trial, at, mean, variance, (x, y), truth)
        return {"nll": fp.gaussian_nll(y_test, mean, variance + _NOISE), "rmse": _rmse(mean, truth)}
    with trial.stream("init"):
        network = _line(trial.setup)
    if trial.arm == "gpi_g":
        prior: fp.WeightPrior = _shared_prior(tuple((key, getattr(trial.setup, key)) for key in _LINE_KEYS))
    else:
        prior = _prior(trial.arm, network, std=trial.tuned.std if trial.arm == "fg_tuned" else 1.0)
    held = len(x) // 4
    data = (x[held:], y[held:]) if trial.tuning else (x, y)
    posterior = _run_chains(trial, network, prior, fp.GaussianLikelihood(_NOISE), data)
    if trial.tuning:
        mean, variance = (part[:, 0] for part in posterior.moments(x[:held]))
        return {"val_nll": fp.gaussian_nll(y[:held], mean, variance + _NOISE)}
    mean, variance = (part[:, 0] for part in posterior.moments(at))
    _picture(trial, at, mean, variance, (x, y), truth)
    checked = posterior.diagnostics(at)
    return {
        "nll": fp.gaussian_nll(y_test, mean, variance + _NOISE),
        "rmse": _rmse(mean, truth),
        "r_hat": float(checked["r_hat"].mean()),
        "ess": float(checked["ess"].median()),
        "noise_deficit": posterior.noise_deficit,
    }


def _rmse(mean: Tensor, truth: Tensor) -> float:
    return float((mean - truth).square().mean().sqrt())


def _picture(trial: Trial, at: Tensor, mean: Tensor, variance: Tensor, data: Any, truth: Tensor) -> None:
    if trial.seed == 0 and not trial.tuning:
        trial.figure("prediction", fp.plot_predictive(at, mean, (variance + _NOISE).sqrt(), data, truth))


_CHAINS = {"chains": 4, "discard": 0, "batch": 32, "lr": 0.01, "mdecay": 0.05}
_SMOKE_POSTERIOR = Setup(
    **_SMOKE_LINE | {"outer": 2},
    **_RATES,
    **_CHAINS | {"chains": 2},
    n=16,
    test=10,
    burn_in=10,
    samples=6,
    keep_every=2,
)
_SMALL_POSTERIOR = Setup(**_SMALL_LINE, **_RATES, **_CHAINS, n=64, test=120, burn_in=1_500, samples=30, keep_every=100)
_FULL_POSTERIOR = Setup(
    **_FULL_LINE,
    **_FULL_RATES,
    **_CHAINS | {"discard": 10},
    n=64,
    test=120,
    burn_in=2_000,
    samples=40,
    keep_every=2_000,
)
_POSTERIOR_SETUP = {
    "smoke": _SMOKE_POSTERIOR, "small": _SMALL_POSTERIOR, "medium": _SMALL_POSTERIOR, "full": _FULL_POSTERIOR,
}  # fmt: skip
"""`medium` is `small` on more seeds: the gain scatters over tasks by more than itself."""
_STDS = {"fg_tuned": [0.5, 1.0, 2.0, 3.0, 5.0]}


@PAPER.claim(
    "The posterior under the matched prior predicts better than that under N(0, 1), without a label for the prior",
    arms=("fg", "gpi_g", "fg_tuned", "gp_oracle"),
    expect=[
        lower("gpi_g", than="fg", metric="nll"),
        shown(
            "fg_tuned",
            "gp_oracle",
            lower("gpi_g", than="fg", metric="rmse"),
            lower("gpi_g", than="fg_tuned", metric="nll"),
        ),
    ],
    setup=_POSTERIOR_SETUP,
    tune={"std": _STDS},
    tune_by="val_nll",
    tune_goal="min",
    untuned=("fg", "gpi_g", "gp_oracle"),
    seeds={"smoke": 1, "small": 6, "medium": 40, "full": 10},
    timeout=7200.0,
    reported="figures only, for a 1-D task of this kind",
    notes=(
        "64 noisy values of a draw of the process with 40 % of the range left out, test points over the whole range; "
        "`nll` is that of noisy test targets, `rmse` of the mean from the true function. All arms have the same four "
        "chains of SGHMC. The match is one for all seeds, for it depends on no data. N(0, 1) is not the only baseline: "
        "`fg_tuned` has one standard deviation for all layers, chosen on tuning seeds by the NLL of 16 of the 64 "
        "points: this claim is about a prior without labels, not about the best one. "
        "`gp_oracle` is the process that made the data."
    ),
)
def posterior(trial: Trial) -> dict[str, float]:
    return _posterior_metrics(trial)


@PAPER.claim(
    "The matched prior is not worse than a single standard deviation chosen on labels",
    arms=("fg_tuned", "gpi_g"),
    expect=[not_worse("gpi_g", than="fg_tuned", metric="nll", margin=0.05, better="lower")],
    setup=_POSTERIOR_SETUP,
    tune={"std": _STDS},
    tune_by="val_nll",
    tune_goal="min",
    untuned=("gpi_g",),
    seeds={"smoke": 1, "small": 5, "medium": 40, "full": 10},
    timeout=7200.0,
    reported="not compared in the paper",
    notes=(
        "The fair question to `posterior`'s headline, on the same task, with draws of its own. It was registered as "
        "one that would probably fail: in the exploration a single scale of 2 or 3 had the better mean NLL."
    ),
)
def vs_tuned(trial: Trial) -> dict[str, float]:
    return _posterior_metrics(trial)


def _of_seed(data: TableData, seed: int) -> TableData:
    """Boston's published split for the seed; another table keeps the split it came with."""
    return uci.boston(seed % uci.BOSTON_SPLITS) if data.name.startswith("boston, split") else data


def _scaled(train: Tensor, others: Sequence[Tensor]) -> list[Tensor]:
    mean, std = train.mean(0), train.std(0, correction=0)
    std = torch.where(std > 1e-6 * mean.abs().clamp(min=1), std, 1.0)
    return [(part - mean) / std for part in (train, *others)]


@PAPER.claim(
    "On a table the posterior under the matched prior predicts better than that under N(0, 1)",
    arms=("fg", "gpi_g", "fg_tuned"),
    expect=[
        lower("gpi_g", than="fg", metric="nll"),
        lower("gpi_g", than="fg", metric="rmse"),
        shown(
            "fg_tuned",
            lower("gpi_g", than="fg_tuned", metric="nll"),
            lower("gpi_g", than="fg_tuned", metric="rmse"),
        ),
    ],
    setup={
        "smoke": Setup(
            width=10, functions=8, outer=2, inner=2, points=20, chains=2, burn_in=10, samples=6, keep_every=2,
            discard=0, batch=32, lr=0.01, mdecay=0.01, noise=0.1,
        ),
        "small": Setup(
            width=100, functions=128, outer=60, inner=60, points=100, chains=4, burn_in=1_000, samples=40,
            keep_every=50, discard=0, batch=32, lr=0.01, mdecay=0.01, noise=0.1,
        ),
        "medium": Setup(
            width=100, functions=128, outer=200, inner=200, points=100, chains=4, burn_in=2_000, samples=40,
            keep_every=200, discard=10, batch=32, lr=0.01, mdecay=0.01, noise=0.1,
        ),
        "full": Setup(
            width=100, functions=128, outer=200, inner=200, points=100, chains=4, burn_in=2_000, samples=40,
            keep_every=2_000, discard=10, batch=32, lr=0.01, mdecay=0.01, noise=0.1,
        ),
    },
    data={"boston": Source(uci.boston, scales=("small", "medium", "full")), "diabetes": tables.diabetes},
    tune={"std": {"fg_tuned": [0.1, 0.3, 1.0, 3.0]}},
    tune_by="val_nll",
    tune_goal="min",
    untuned=("fg", "gpi_g"),
    seeds={"smoke": 1, "small": 5, "medium": 10, "full": 10},
    resplit=51 / 455,
    helps=lower("gpi_g", than="fg_tuned", metric="nll"),
    timeout=7200.0,
    reported="Boston, 10 splits: RMSE 3.132 +- 1.060 with N(0, 1), 2.797 +- .915 with GPi-G; NLL 2.567, 2.470",
    notes=(
        "The seed is the number of Boston's published split, of which the intervals take account; other tables keep "
        "their split. One hidden layer of 100 "
        "tanh, noise variance 0.1 of the normalised target, the process with hyperparameters drawn for every function. "
        "`small` matches for 60 x 60 steps and keeps a state every 50 steps after 1,000; `full` is the published "
        "schedule. Metrics are in the target's units. `fg_tuned` has one standard deviation, chosen by the NLL of the "
        "validation rows on the first two splits. The other seven of the paper's tables are not in the catalogue."
    ),
)  # fmt: skip
def table(trial: Trial, data: TableData) -> dict[str, float]:
    if data.classes:
        raise ValueError(f"{data.name} has classes; this claim is about a number as target")
    setup, data = trial.setup, _of_seed(data, trial.seed)
    kept = [data.train] if trial.tuning else [data.train, data.val]
    train, y = (torch.cat([getattr(part, name) for part in kept]) for name in ("inputs", "targets"))
    asked = data.val if trial.tuning else data.test
    x, at = _scaled(train, [asked.inputs])
    centre, spread = y.mean(), y.std(correction=0).clamp(min=1e-12)
    with trial.stream("init"):
        network = fp.MLP(x.shape[1], [setup.width])
    prior = _prior(trial.arm, network, std=trial.tuned.std if trial.arm == "fg_tuned" else 1.0)
    if trial.arm == "gpi_g":
        history = fp.WassersteinPriorMatcher(
            prior, fp.rbf_prior(x.shape[1], hierarchical=True),
            fp.TableMeasurementSet(x, at, min(setup.points, int(len(x) / 0.7))), n=setup.functions,
            outer_steps=setup.outer, inner_steps=setup.inner, lr=0.05, critic_lr=0.02, threshold=0.1,
            generator=trial.generator("method"),
        ).fit(trial.progress)  # fmt: skip
        for step, distance in enumerate(history.distance, start=1):
            trial.log(step, critic_w1=distance)
    drawn = _run_chains(trial, network, prior, fp.GaussianLikelihood(setup.noise), (x, (y - centre) / spread))
    mean, variance = (part[:, 0] for part in drawn.moments(at))
    mean, variance = centre + spread * mean, spread**2 * (variance + setup.noise)
    nll = fp.gaussian_nll(asked.targets, mean, variance)
    if trial.tuning:
        return {"val_nll": nll}
    checked = drawn.diagnostics(at)
    return {
        "nll": nll,
        "rmse": _rmse(mean, asked.targets),
        "r_hat": float(checked["r_hat"].mean()),
        "ess": float(checked["ess"].median()),
        "noise_deficit": drawn.noise_deficit,
        "clamped_fraction": drawn.clamped_fraction,
    }


@PAPER.claim(
    "A convolutional network under a matched prior classifies images better than under N(0, 1)",
    arms=("fg", "gpi_g", "gpi_h", "fg_tuned"),
    expect=[
        higher("gpi_g", than="fg", metric="accuracy"),
        shown("gpi_h", "fg_tuned", higher("gpi_h", than="fg", metric="accuracy")),
    ],
    setup={
        "smoke": Setup(
            n=24, depth=8, widths=[4, 4, 4], functions=4, outer=1, inner=2, points=8, chains=1, burn_in=2, samples=3,
            keep_every=1, discard=0, batch=8, lr=0.01, mdecay=0.05,
        ),
        "full": Setup(
            n=50_000, depth=20, widths=[16, 32, 64], functions=64, outer=200, inner=200, points=32, chains=4,
            burn_in=10_000, samples=80, keep_every=5_000, discard=20, batch=128, lr=0.01, mdecay=0.05,
        ),
    },
    data={
        "digits": Source(images.digits, scales=("smoke",)),
        "cifar10": Source(
            partial(images.hub, "uoft-cs/cifar10", in_memory=True, image="img", label="label"), scales=("full",)
        ),
    },
    tune={"std": {"fg_tuned": [0.3, 1.0, 3.0]}},
    tune_by="val_accuracy",
    untuned=("fg", "gpi_g", "gpi_h"),
    seeds={"smoke": 1, "full": 3},
    resources={"gpus": 1},
    timeout=400_000.0,
    reported="CIFAR-10, fp.PreResNet-20: accuracy about 84 to 85 % with N(0, 1), 86 to 87 % matched, GPi-H best",
    notes=(
        "PreResNet-20 with reparameterised convolutions, one scale for each, against independent RBF processes on "
        "pixels, one a class; the measurement set is a mini-batch. A smoke run only shows that the path runs, on "
        "digits with eight layers; there is no `small`, which two cores could not carry. `full` needs a GPU."
    ),
)  # fmt: skip
def convolutional(trial: Trial, data: ImageData) -> dict[str, float]:
    setup, device = trial.setup, trial.device
    (x, y), asked = _pixels(data.train, device), _pixels(data.val if trial.tuning else data.test, device)
    order = torch.randperm(len(x), generator=trial.generator("data"))[: setup.n].to(device)
    x, y = x[order], y[order]
    classes = len(data.classes)
    with trial.stream("init"):
        network = fp.PreResNet(setup.depth, classes, x.shape[1], setup.widths).to(device)
    prior = _prior(trial.arm, network, std=trial.tuned.std if trial.arm == "fg_tuned" else 1.0).to(device)
    if trial.arm.startswith("gpi"):
        gp = fp.rbf_prior(x[0].numel(), num_outputs=classes)
        fp.WassersteinPriorMatcher(
            prior, gp, fp.ImageMeasurementSet(x, setup.points), n=setup.functions, outer_steps=setup.outer,
            inner_steps=setup.inner, threshold=0.1, generator=_generators(trial, "method", 1)[0],
        ).fit(trial.progress)  # fmt: skip
    drawn = _run_chains(trial, network, prior, fp.CategoricalLikelihood(), (x, y))
    found = torch.cat([drawn.probabilities(part) for part in asked[0].split(500)])
    accuracy = float((found.argmax(1) == asked[1]).double().mean())
    if trial.tuning:
        return {"val_accuracy": accuracy}
    chosen = found[torch.arange(len(found), device=found.device), asked[1]]
    return {"accuracy": accuracy, "nll": float(-chosen.clamp(min=1e-30).log().mean())}


def _pixels(part: Any, device: str) -> tuple[Tensor, Tensor]:
    """Images at mean 0 and standard deviation about 1, and their labels."""
    inputs, targets = (part.inputs, part.targets) if isinstance(part, Examples) else part[:]
    return ((inputs.float() - 0.5) / 0.25).to(device), targets.to(device)
