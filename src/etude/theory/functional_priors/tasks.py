"""The paper's 1-D task: noisy values of one function of a process, with a gap in which the prior must speak."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from etude.theory.functional_priors.gp import GPFunctionPrior

__all__ = ["GapRegression", "gap_regression", "gaussian_nll"]


class GapRegression(NamedTuple):
    """Observations (n, 1) and (n,); test points over the whole range, their noisy targets and the function there."""

    x: Float[Tensor, "n 1"]
    y: Float[Tensor, "n"]
    x_test: Float[Tensor, "m 1"]
    y_test: Float[Tensor, "m"]
    truth: Float[Tensor, "m"]


def gap_regression(
    gp_prior: GPFunctionPrior,
    n: int = 64,
    n_test: int = 120,
    *,
    reach: float | int = 2.2,
    gap: float | int = 0.4,
    noise_variance: float | int = 0.1,
    generator: torch.Generator | None = None,
) -> GapRegression:
    """One function of a process on [-reach, reach], observed everywhere but in a gap.

    Args:
        gp_prior: the process, of one input.
        n: observations, uniform outside the gap. n_test: points on a grid of the whole range.
        reach: of the inputs.
        gap: its share of the range, in [0, 1); where it lies is random.
        noise_variance: of observations and test targets.
        generator: of all draws.

    Raises:
        ValueError: if a number is out of range.
    """
    if min(n, n_test) < 1 or not reach > 0 or not 0 <= gap < 1 or noise_variance < 0:
        raise ValueError(
            "n, n_test and reach must be positive, gap in [0, 1) and noise_variance >= 0, got "
            f"{n}, {n_test}, {reach}, {gap} and {noise_variance}"
        )
    width = 2 * reach * gap
    rest = 2 * reach - width
    start = -reach + float(torch.rand((), generator=generator)) * rest
    x = -reach + torch.rand(n, 1, generator=generator) * rest
    x = torch.where(x > start, x + width, x)
    at = torch.linspace(-float(reach), float(reach), n_test)[:, None]
    f = gp_prior.sample_functions(torch.cat([x, at]), 1, generator=generator)[0, :, 0].float()
    y = f + math.sqrt(noise_variance) * torch.randn(len(f), generator=generator)
    return GapRegression(x, y[:n], at, y[n:], f[n:])


def gaussian_nll(y: Float[Tensor, "n"], mean: Float[Tensor, "n"], variance: Float[Tensor, "n"]) -> float:
    """Mean of -log N(y | mean, variance), in the units of what is given: the variance holds the noise."""
    return float((0.5 * (y - mean).square() / variance + 0.5 * torch.log(2 * math.pi * variance)).mean())
