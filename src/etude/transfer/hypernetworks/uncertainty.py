"""Noise as the condition: each draw is a network, their spread the uncertainty.

Krueger, Huang, Islam, Turner, Lacoste & Courville, "Bayesian Hypernetworks", arXiv:1710.04759, 2017, make H invertible
and use its density. Any H serves here, since the posterior of the weights is matched by its first two moments:

    loss = mean over draws of the negative log likelihood + sum over weights of KL(N(m, v) || N(0, s^2))         (3)

with m, v mean and variance of a weight over the draws of a batch and s its prior's deviation, 1 / sqrt(fan_in).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from etude.transfer.hypernetworks.hypernetwork import Hypernetwork

__all__ = ["Predictive", "cubic_with_gap", "fit_regression", "moment_kl", "predict_draws"]


def moment_kl(theta: Float[Tensor, "draws params"], prior_std: Float[Tensor, "params"]) -> Float[Tensor, ""]:
    """The second term of Eq. (3).

    Raises:
        ValueError: if there are fewer than two draws, which have no variance.
    """
    if len(theta) < 2:
        raise ValueError(f"a variance needs at least two draws, got {len(theta)}")
    scaled = theta / prior_std
    mean, variance = scaled.mean(dim=0), scaled.var(dim=0)
    return 0.5 * (mean.square() + variance - 1 - variance.clamp(min=1e-12).log()).sum()


@dataclass(frozen=True, eq=False)
class Predictive:
    """Predictions of the members at n points.

    Attributes:
        draws: (members, n).
    """

    draws: Float[Tensor, "members n"]

    @property
    def mean(self) -> Float[Tensor, "n"]:
        return self.draws.mean(dim=0)

    @property
    def std(self) -> Float[Tensor, "n"]:
        """Spread of the members, without the noise of the data."""
        return self.draws.std(dim=0, correction=0)

    def nll(self, y: Float[Tensor, "n"], noise_std: float | int) -> float:
        """Mean negative log likelihood of y under the mixture of the members, each with Gaussian noise."""
        density = -0.5 * ((y - self.draws) / noise_std).square() - math.log(noise_std * math.sqrt(2 * math.pi))
        return float(-(density.logsumexp(dim=0) - math.log(len(self.draws))).mean())


def fit_regression(
    hypernet: Hypernetwork,
    x: Float[Tensor, "n features"],
    y: Float[Tensor, "n"],
    *,
    noise_std: float | int,
    steps: int = 2_000,
    draws: int = 16,
    lr: float | int = 2e-3,
    prior_std: Float[Tensor, "params"] | None = None,
    generator: torch.Generator | None = None,
) -> None:
    """Minimises Eq. (3), the Gaussian likelihood summed over all n points, by Adam.

    Args:
        hypernet: conditioned by noise, its target with one output.
        x, y: the data.
        noise_std: of y around the curve.
        steps, lr: of Adam. draws: networks drawn at each step.
        prior_std: s; that of the target's spec, 1 / sqrt(fan_in), if None.
        generator: of the draws.

    Raises:
        ValueError: if `noise_std` is not positive, or there are fewer than two draws a step.
    """
    if noise_std <= 0:
        raise ValueError(f"noise_std must be positive, got {noise_std}")
    if draws < 2:
        raise ValueError(f"a step needs at least two draws, whose variance is taken; got {draws}")
    prior = hypernet.spec.prior_std if prior_std is None else prior_std
    optimizer = torch.optim.Adam(hypernet.parameters(), lr=lr)
    hypernet.train()
    for _ in range(steps):
        optimizer.zero_grad()
        theta = hypernet.flat(hypernet.draw(draws, generator))
        residual = hypernet.run_each(x, theta).squeeze(-1) - y
        nll = 0.5 * (residual / noise_std).square().sum(dim=1).mean()
        (nll + moment_kl(theta, prior.to(theta))).backward()
        optimizer.step()
    hypernet.eval()


@torch.no_grad()
def predict_draws(
    hypernet: Hypernetwork,
    x: Float[Tensor, "n features"],
    draws: int = 200,
    *,
    generator: torch.Generator | None = None,
) -> Predictive:
    """Predictions of `draws` networks at the same points."""
    hypernet.eval()
    return Predictive(hypernet.call_each(x, hypernet.draw(draws, generator)).squeeze(-1))


def cubic_with_gap(n: int, generator: torch.Generator | None = None) -> tuple[Float[Tensor, "m"], Float[Tensor, "m"]]:
    """y = x^3 + N(0, 9) at n points drawn from [-4, -2] and n from [2, 4]."""
    x = 2 + 2 * torch.rand(2 * n, generator=generator)
    x = torch.cat([-x[:n], x[n:]])
    return x, x**3 + 3 * torch.randn(2 * n, generator=generator)
