"""Bayesian neural networks for tables, with scikit-learn's contract.

Tran et al., JMLR 23, 2022, arXiv:2011.12829, section 6. Inputs (and targets of a regression) are brought to mean 0 and
standard deviation 1 over the training rows; the weight prior is matched to a Gaussian process on the inputs alone;
then chains of SGHMC draw from the posterior.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from etude.theory.functional_priors.gp import GPFunctionPrior, rbf_prior
from etude.theory.functional_priors.measurement import TableMeasurementSet
from etude.theory.functional_priors.networks import MLP
from etude.theory.functional_priors.posterior import (
    CategoricalLikelihood,
    GaussianLikelihood,
    Posterior,
    sample_posterior,
)
from etude.theory.functional_priors.wasserstein import MatchHistory, WassersteinPriorMatcher
from etude.theory.functional_priors.weight_priors import (
    FlowWeightPrior,
    GaussianWeightPrior,
    HierarchicalWeightPrior,
    WeightPrior,
)

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_array, check_is_fitted, check_X_y
except ImportError as error:
    raise ImportError('BNNRegressor and BNNClassifier need scikit-learn: pip install "etude[run]"') from error

__all__ = ["PRIORS", "BNNClassifier", "BNNRegressor"]

PRIORS = ("gpi_g", "gpi_h", "gpi_nf", "fg", "fh", "fixed_nf")
_SHARE = 0.7
_POINTS = 100


class _BNN(BaseEstimator):
    """What both estimators share; see `BNNRegressor` for the arguments."""

    def _network(self, features: int, outputs: int) -> MLP:
        return MLP(features, self.hidden, outputs, self.activation)

    def _fit(self, x: np.ndarray, y: Tensor, outputs: int, likelihood: Any) -> None:
        """Matches the prior, then draws from the posterior."""
        if self.prior not in PRIORS:
            raise ValueError(f"prior must be one of {', '.join(PRIORS)}, got {self.prior!r}")
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        generator = torch.Generator().manual_seed(seed)
        self.n_features_in_ = x.shape[1]
        self.x_mean_ = x.mean(0)
        std = x.std(0)
        # A constant column says nothing and is only centred; rounding makes its spread tiny rather than zero.
        self.x_std_ = np.where(std > 1e-10 * np.maximum(np.abs(self.x_mean_), 1), std, 1.0)
        inputs = self._scaled(x)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # of the template's weights, which nothing depends on
            network = self._network(x.shape[1], outputs)
        self.prior_ = self._weight_prior(network, generator)
        self.history_: MatchHistory | None = None
        if any(value.requires_grad for value in self.prior_.parameters()):
            self.history_ = self._matcher(inputs, outputs, generator).fit()
        self.posterior_: Posterior = sample_posterior(
            network, self.prior_, likelihood, (inputs, y), chains=self.chains, burn_in=self.burn_in,
            samples=self.samples, keep_every=self.keep_every, discard=self.discard, batch_size=self.batch_size,
            lr=self.lr, mdecay=self.mdecay, generator=generator,
        )  # fmt: skip
        self.clamped_fraction_ = self.posterior_.clamped_fraction
        if self.clamped_fraction_ > 0.05:
            warnings.warn(
                f"{self.clamped_fraction_:.0%} of the noise variances were clamped, so that the draws are not those of "
                f"the posterior: lr={self.lr} is too large for mdecay={self.mdecay}",
                stacklevel=3,
            )
        if self.posterior_.draws >= 4:
            diagnosed = self.posterior_.diagnostics(inputs)
            self.r_hat_, self.ess_ = diagnosed["r_hat"].numpy(), diagnosed["ess"].numpy()

    def _weight_prior(self, network: MLP, generator: torch.Generator) -> WeightPrior:
        tuned = self.prior.startswith("gpi")
        if self.prior.endswith("_nf"):
            return FlowWeightPrior(network, generator=generator, trainable=tuned)
        if self.prior in ("gpi_h", "fh"):
            return (
                HierarchicalWeightPrior(network)
                if tuned
                else HierarchicalWeightPrior(network, shape=1.0, rate=1.0, trainable=False)
            )
        return GaussianWeightPrior(network) if tuned else GaussianWeightPrior(network, std=self.std, trainable=False)

    def _matcher(self, inputs: Tensor, outputs: int, generator: torch.Generator) -> WassersteinPriorMatcher:
        features = inputs.shape[1]
        target = self.gp_prior
        if target is None:
            target = rbf_prior(
                features, lengthscale=self.lengthscale, hierarchical=self.hierarchical, num_outputs=outputs
            )
        size = self.measurement_size
        if size is None:
            size = max(min(_POINTS, int(len(inputs) / _SHARE)), 1)
        return WassersteinPriorMatcher(
            self.prior_, target, TableMeasurementSet(inputs, size=size, share=_SHARE), n=self.functions,
            outer_steps=self.outer_steps, inner_steps=self.inner_steps, lr=self.prior_lr, critic_lr=self.critic_lr,
            generator=generator,
        )  # fmt: skip

    def _scaled(self, x: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray((x - self.x_mean_) / self.x_std_, dtype=np.float32))

    def _rows(self, X: Any) -> Tensor:
        check_is_fitted(self)
        rows = check_array(X, dtype=np.float64)
        if rows.shape[1] != self.n_features_in_:
            name = type(self).__name__
            raise ValueError(
                f"X has {rows.shape[1]} features, but {name} is expecting {self.n_features_in_} features as input"
            )
        return self._scaled(rows)


class BNNRegressor(RegressorMixin, _BNN):
    """A Bayesian neural network for a table with a number as target.

        model = BNNRegressor(hidden=(100,)).fit(X, y)
        mean, std = model.predict(X_new, return_std=True)
        model.r_hat_.max(), model.ess_.min()                # did the chains agree, and how many draws are they worth

    A fit with the defaults takes about a minute of one core. The paper's schedule is outer_steps=200, inner_steps=200,
    keep_every=2000.

    Args:
        hidden: widths of the hidden layers. activation: "tanh", "relu", ...; see `MLP`.
        prior: "gpi_g", "gpi_h" or "gpi_nf", tuned to the process; "fg", N(0, std^2), "fh" or "fixed_nf", left alone.
        std: of "fg".
        lengthscale: of the process, for normalised inputs; sqrt(2 columns) if None. Do not choose it on test data.
        hierarchical: draw lengthscales and variance around that for each function, as in the paper's experiments.
        gp_prior: a `GPFunctionPrior` of your own in place of the three above.
        noise_variance: of the observations, in units of the target's variance.
        measurement_size: M; 100 if None, or fewer for a small table.
        functions, outer_steps, inner_steps, prior_lr, critic_lr: as n, ..., lr, critic_lr of `WassersteinPriorMatcher`.
        chains, burn_in, samples, keep_every, discard, batch_size, lr, mdecay: as for `sample_posterior`.
        random_state: a seed, or a `numpy.random.RandomState`.

    Attributes:
        prior_: the weight prior. history_: of its matching, or None.
        posterior_: the draws. r_hat_, ess_: split R-hat and effective sample size of the function at each training
            row, if there are at least 4 draws a chain. clamped_fraction_: see `AdaptiveSGHMC`.
        n_features_in_: columns of X.
    """

    def __init__(
        self,
        hidden: Sequence[int] = (100,),
        activation: Any = "tanh",
        *,
        prior: str = "gpi_g",
        std: float | int = 1.0,
        lengthscale: float | int | None = None,
        hierarchical: bool = True,
        gp_prior: GPFunctionPrior | None = None,
        noise_variance: float | int = 0.1,
        measurement_size: int | None = None,
        functions: int = 128,
        outer_steps: int = 100,
        inner_steps: int = 60,
        prior_lr: float | int = 0.05,
        critic_lr: float | int = 0.02,
        chains: int = 4,
        burn_in: int = 2_000,
        samples: int = 40,
        keep_every: int = 200,
        discard: int = 10,
        batch_size: int = 32,
        lr: float | int = 1e-2,
        mdecay: float | int = 1e-2,
        random_state: Any = None,
    ):
        self.hidden, self.activation, self.prior, self.std = hidden, activation, prior, std
        self.lengthscale, self.hierarchical, self.gp_prior = lengthscale, hierarchical, gp_prior
        self.noise_variance, self.measurement_size, self.functions = noise_variance, measurement_size, functions
        self.outer_steps, self.inner_steps, self.prior_lr, self.critic_lr = (
            outer_steps,
            inner_steps,
            prior_lr,
            critic_lr,
        )
        self.chains, self.burn_in, self.samples, self.keep_every = chains, burn_in, samples, keep_every
        self.discard, self.batch_size, self.lr, self.mdecay = discard, batch_size, lr, mdecay
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> "BNNRegressor":
        """Matches the prior to the process on the inputs, and draws from the posterior.

        Raises:
            ImportError: without gpytorch, if the prior is tuned and no `gp_prior` given.
            ValueError: for malformed data or numbers out of range.
        """
        X, y = check_X_y(X, y, dtype=np.float64, y_numeric=True)
        y = y.astype(np.float64)
        self.y_mean_, spread = float(y.mean()), float(y.std())
        self.y_std_ = spread if spread > 1e-10 * max(abs(self.y_mean_), 1) else 1.0
        targets = torch.from_numpy((y - self.y_mean_) / self.y_std_).float()
        self._fit(X, targets, 1, GaussianLikelihood(self.noise_variance))
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Mean (n,) of the prediction and, if asked, its standard deviation with the noise; in the target's units."""
        check_is_fitted(self)
        mean, variance = self.posterior_.moments(self._rows(X))
        centre = self.y_mean_ + self.y_std_ * mean[:, 0].double().numpy()
        if not return_std:
            return centre
        return centre, self.y_std_ * np.sqrt(variance[:, 0].double().numpy() + self.noise_variance)

    def nll(self, X: Any, y: Any) -> float:
        """Mean of -log N(y | mean, std^2), in the target's units."""
        mean, std = self.predict(X, return_std=True)
        y = np.asarray(y, dtype=np.float64)
        if y.shape != mean.shape:
            raise ValueError(f"y must have shape {mean.shape}, got {y.shape}")
        return float(np.mean(0.5 * ((y - mean) / std) ** 2 + np.log(std) + 0.5 * math.log(2 * math.pi)))


class BNNClassifier(ClassifierMixin, _BNN):
    """A Bayesian neural network for a table with a class as target: a softmax over one function a class.

        BNNClassifier(hidden=(50, 50)).fit(X, y).predict_proba(X_new)

    The functions before the softmax are matched to independent Gaussian processes. Arguments and attributes are those
    of `BNNRegressor`, and `classes_`, the labels.
    """

    def __init__(
        self,
        hidden: Sequence[int] = (100,),
        activation: Any = "tanh",
        *,
        prior: str = "gpi_g",
        std: float | int = 1.0,
        lengthscale: float | int | None = None,
        hierarchical: bool = True,
        gp_prior: GPFunctionPrior | None = None,
        measurement_size: int | None = None,
        functions: int = 128,
        outer_steps: int = 100,
        inner_steps: int = 60,
        prior_lr: float | int = 0.05,
        critic_lr: float | int = 0.02,
        chains: int = 4,
        burn_in: int = 2_000,
        samples: int = 40,
        keep_every: int = 200,
        discard: int = 10,
        batch_size: int = 32,
        lr: float | int = 1e-2,
        mdecay: float | int = 1e-2,
        random_state: Any = None,
    ):
        self.hidden, self.activation, self.prior, self.std = hidden, activation, prior, std
        self.lengthscale, self.hierarchical, self.gp_prior = lengthscale, hierarchical, gp_prior
        self.measurement_size, self.functions = measurement_size, functions
        self.outer_steps, self.inner_steps, self.prior_lr, self.critic_lr = (
            outer_steps,
            inner_steps,
            prior_lr,
            critic_lr,
        )
        self.chains, self.burn_in, self.samples, self.keep_every = chains, burn_in, samples, keep_every
        self.discard, self.batch_size, self.lr, self.mdecay = discard, batch_size, lr, mdecay
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> "BNNClassifier":
        """As `BNNRegressor.fit`; y are labels of any kind, of at least two classes."""
        X, y = check_X_y(X, y, dtype=np.float64)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"a classifier needs at least two classes, got one class: {self.classes_.tolist()}")
        self._fit(X, torch.from_numpy(codes.astype(np.int64)), len(self.classes_), CategoricalLikelihood())
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """(n, classes): the mean of the softmax over the draws."""
        check_is_fitted(self)
        probabilities = self.posterior_.probabilities(self._rows(X)).double().numpy()
        return probabilities / probabilities.sum(1, keepdims=True)

    def predict(self, X: Any) -> np.ndarray:
        """(n,) labels."""
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(1)]

    def nll(self, X: Any, y: Any) -> float:
        """Mean of -log of the probability of the true class."""
        probabilities = self.predict_proba(X)
        y = np.asarray(y)
        strange = np.setdiff1d(y, self.classes_)
        if y.shape != (len(probabilities),) or len(strange):
            raise ValueError(
                f"y must be {len(probabilities)} of the labels seen, got {y.shape} with {strange.tolist()}"
            )
        chosen = probabilities[np.arange(len(y)), np.searchsorted(self.classes_, y)]
        return float(-np.log(np.maximum(chosen, 1e-300)).mean())
