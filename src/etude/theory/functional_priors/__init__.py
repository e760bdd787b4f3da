"""Priors over functions for Bayesian neural networks, and posteriors under them.

Tran, Rossi, Milios & Filippone, "All You Need is a Good Functional Prior for Bayesian Deep Learning", JMLR 23, 2022,
arXiv:2011.12829.

    BNNRegressor().fit(X, y).predict(X_new, return_std=True)             # a table, scikit-learn style

    prior = GaussianWeightPrior(MLP(13, [100]))                           # or the same steps one by one:
    WassersteinPriorMatcher(prior, rbf_prior(13), TableMeasurementSet(x)).fit()
    posterior = sample_posterior(prior.template, prior, GaussianLikelihood(0.1), (x, y))

Independent N(0, 1) weights make functions that nobody asked for. Here the prior over functions is chosen as a Gaussian
process, the scales of the weight prior are tuned without labels until the network's functions look like the process',
and the posterior is drawn by stochastic-gradient Hamiltonian Monte Carlo. Gaussian processes need gpytorch, the
estimators scikit-learn, plots matplotlib; each is imported when first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from etude.theory.functional_priors.diagnostics import effective_sample_size, split_rhat
from etude.theory.functional_priors.distances import autocovariance_error, prior_discrepancy, sliced_w1
from etude.theory.functional_priors.flows import PlanarFlow, PlanarMap
from etude.theory.functional_priors.gp import GPFunctionPrior, rbf_prior
from etude.theory.functional_priors.limits import nngp_kernel, prior_covariance
from etude.theory.functional_priors.measurement import (
    GridMeasurementSet,
    ImageMeasurementSet,
    MeasurementSet,
    TableMeasurementSet,
)
from etude.theory.functional_priors.networks import MLP, LeNet5, PreResNet, ScaledConv2d, ScaledLinear
from etude.theory.functional_priors.plots import plot_covariance, plot_functions, plot_match, plot_predictive
from etude.theory.functional_priors.posterior import (
    CategoricalLikelihood,
    GaussianLikelihood,
    Posterior,
    sample_posterior,
)
from etude.theory.functional_priors.sghmc import AdaptiveSGHMC, hmc_step
from etude.theory.functional_priors.tasks import GapRegression, gap_regression, gaussian_nll
from etude.theory.functional_priors.wasserstein import (
    LipschitzCritic,
    MatchHistory,
    WassersteinPriorMatcher,
    train_critic,
)
from etude.theory.functional_priors.weight_priors import (
    FlowWeightPrior,
    GaussianWeightPrior,
    HierarchicalWeightPrior,
    WeightPrior,
)

if TYPE_CHECKING:
    from etude.theory.functional_priors.estimators import BNNClassifier, BNNRegressor

__all__ = [
    "MLP",
    "AdaptiveSGHMC",
    "BNNClassifier",
    "BNNRegressor",
    "CategoricalLikelihood",
    "FlowWeightPrior",
    "GPFunctionPrior",
    "GapRegression",
    "GaussianLikelihood",
    "GaussianWeightPrior",
    "GridMeasurementSet",
    "HierarchicalWeightPrior",
    "ImageMeasurementSet",
    "LeNet5",
    "LipschitzCritic",
    "MatchHistory",
    "MeasurementSet",
    "PlanarFlow",
    "PlanarMap",
    "Posterior",
    "PreResNet",
    "ScaledConv2d",
    "ScaledLinear",
    "TableMeasurementSet",
    "WassersteinPriorMatcher",
    "WeightPrior",
    "autocovariance_error",
    "effective_sample_size",
    "gap_regression",
    "gaussian_nll",
    "hmc_step",
    "nngp_kernel",
    "plot_covariance",
    "plot_functions",
    "plot_match",
    "plot_predictive",
    "prior_covariance",
    "prior_discrepancy",
    "rbf_prior",
    "sample_posterior",
    "sliced_w1",
    "split_rhat",
    "train_critic",
]


def __getattr__(name: str) -> Any:
    if name in ("BNNClassifier", "BNNRegressor"):
        return getattr(importlib.import_module(f"{__name__}.estimators"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
