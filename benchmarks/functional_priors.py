"""Chains side by side, the critic's gradient in closed form, and functions of processes all at once."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.compare import Comparison
from etude.theory.functional_priors import (
    MLP,
    GaussianLikelihood,
    GaussianWeightPrior,
    LipschitzCritic,
    rbf_prior,
    sample_posterior,
)

_STEPS = 60


def _chains(net: MLP, data: tuple[Tensor, Tensor], chains: int) -> Callable[[], Any]:
    prior = GaussianWeightPrior(net, std=1.0, trainable=False)
    return partial(
        sample_posterior, net, prior, GaussianLikelihood(0.1), data, chains=chains, burn_in=_STEPS // 2,
        samples=_STEPS // 20, keep_every=10, discard=0, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip


def _side_by_side() -> list[Comparison]:
    torch.manual_seed(0)
    found = []
    for name, net, rows, columns in (
        ("13-100-1 on 455 rows", MLP(13, [100]), 455, 13), ("1-50-50-50-1 on 64 rows", MLP(1, [50, 50, 50]), 64, 1),
    ):  # fmt: skip
        data = (torch.randn(rows, columns), torch.randn(rows))
        four, one = _chains(net, data, 4), _chains(net, data, 1)
        found.append(
            Comparison(
                f"SGHMC, {name}, {_STEPS} steps of 4 chains", four, lambda one=one: [one() for _ in range(4)],
                "one chain, four times", "a ratio below 0.5 is less than twice the time of one chain",
            )
        )  # fmt: skip
        found.append(
            Comparison(
                f"SGHMC, {name}, {_STEPS} steps of 4 chains", four, one, "one chain, once",
                "four times the work of the peer; the target is a ratio below 2",
            )
        )  # fmt: skip
    return found


def _critic_step(by_autograd: bool) -> Callable[[], None]:
    critic = LipschitzCritic(100, 200, torch.Generator().manual_seed(0))
    p, q = (torch.randn(128, 100, 1, generator=torch.Generator().manual_seed(k)) for k in range(2))
    optimizer = torch.optim.Adagrad(critic.parameters(), lr=1e-4)

    def penalty() -> Tensor:
        mix = torch.rand(len(p), 1)
        z = (q[:, :, 0] + mix * (p[:, :, 0] - q[:, :, 0])).requires_grad_()
        (gradient,) = torch.autograd.grad(critic(z).sum(), z, create_graph=True)
        return (gradient.norm(dim=1) - 1).square().mean()

    def step() -> None:
        optimizer.zero_grad()
        held = penalty() if by_autograd else critic.penalty(p, q)
        (10 * held - critic.distance(p, q)).backward()
        optimizer.step()

    return step


def _processes() -> list[Comparison]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import gpytorch
    x = torch.randn(100, 13)
    hierarchical, plain = rbf_prior(13, hierarchical=True), rbf_prior(13)

    def one_by_one() -> list[Tensor]:
        return [hierarchical.sample_functions(x, 1) for _ in range(128)]

    double = x.double()

    def by_gpytorch() -> Tensor:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return gpytorch.distributions.MultivariateNormal(
                torch.zeros(100, dtype=torch.float64), plain.kernel(double).add_jitter(1e-6)
            ).sample(torch.Size([128]))

    return [
        Comparison(
            "128 functions of hierarchical processes at 100 points", partial(hierarchical.sample_functions, x, 128),
            one_by_one, "the same, one by one", "each with hyperparameters of its own",
        ),
        Comparison(
            "128 functions of one process at 100 points", partial(plain.sample_functions, x, 128), by_gpytorch,
            "gpytorch's MultivariateNormal", "its kernel on both sides",
        ),
    ]  # fmt: skip


def comparisons() -> list[Comparison]:
    return [
        *_side_by_side(),
        Comparison(
            "a step of the critic, 2 x 128 functions at 100 points", _critic_step(False), _critic_step(True),
            "its gradient by autograd, twice backward", "the usual way to write the penalty",
        ),
        *_processes(),
    ]  # fmt: skip
