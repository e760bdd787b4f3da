"""How far two priors over functions are apart, by measures that no critic was trained for."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from etude.nn.gaussian import Estimate
from etude.theory.functional_priors.gp import GPFunctionPrior
from etude.theory.functional_priors.weight_priors import WeightPrior

__all__ = ["autocovariance_error", "prior_discrepancy", "sliced_w1"]


def sliced_w1(
    samples_a: Float[Tensor, "n points"],
    samples_b: Float[Tensor, "m others"],
    *,
    projections: int = 200,
    generator: torch.Generator | None = None,
) -> Estimate:
    """The mean over random directions of the 1-Wasserstein distance of projected samples, times sqrt(points).

    On a line the distance of as many samples is the mean difference of the sorted values. The factor brings it to the
    scale of distances between vectors: for a shift by c in one direction it is about 0.8 |c|. Samples of one and the
    same distribution have a distance that falls as 1 / sqrt(n), not 0.

    Args:
        samples_a, samples_b: as many vectors of both distributions, such as functions at the same points.
        projections: directions, at least 2.
        generator: of the directions.

    Returns:
        The mean and its standard error over the directions.

    Raises:
        ValueError: if the shapes differ or `projections` < 2.
    """
    if samples_a.shape != samples_b.shape:
        raise ValueError(f"both must have the same shape (n, points), got {samples_a.shape} and {samples_b.shape}")
    if projections < 2:
        raise ValueError(f"projections must be at least 2, for an error, got {projections}")
    points = samples_a.shape[1]
    device = None if generator is None else generator.device
    directions = torch.randn(points, projections, generator=generator, dtype=torch.float64, device=device)
    directions = (directions / directions.norm(dim=0)).to(samples_a.device)
    a, b = ((samples.to(torch.float64) @ directions).sort(0).values for samples in (samples_a, samples_b))
    distances = (a - b).abs().mean(0) * math.sqrt(points)
    return Estimate(distances.mean(), distances.std() / math.sqrt(projections))


def autocovariance_error(samples: Float[Tensor, "n points"], covariance: Float[Tensor, "points points"]) -> float:
    """|S - K|_F / |K|_F: of the second moments S of samples of mean 0 to a covariance."""
    samples = samples.to(torch.float64)
    return float((samples.T @ samples / len(samples) - covariance).norm() / covariance.norm())


def prior_discrepancy(
    weight_prior: WeightPrior,
    gp_prior: GPFunctionPrior,
    x: Tensor,
    n: int = 2_000,
    *,
    generator: torch.Generator | None = None,
) -> dict[str, Estimate]:
    """Fresh functions of both priors at given inputs, compared output by output.

    Returns:
        `sliced_w1` and `autocovariance`, the latter relative to the process' covariance from as many functions: means
        over four disjoint parts of the draws, and their standard errors. `floor_sliced_w1` and `floor_autocovariance`
        are those of the process against itself: no prior can do better with n functions.
    """
    if n < 8:
        raise ValueError(f"n must be at least 8, got {n}")
    with torch.no_grad():
        f = weight_prior.sample_functions(x, n, generator=generator).to(torch.float64)
    g, h = (gp_prior.sample_functions(x, n, generator=generator) for _ in range(2))
    found: dict[str, list[float]] = {}
    for out in range(f.shape[2]):
        parts = (part[:, :, out].tensor_split(4) for part in (f, g, h))
        covariance = g[:, :, out].T @ g[:, :, out] / n if gp_prior.hyperprior else gp_prior.covariance(x)
        for a, b, c in zip(*parts):
            for name, samples in (("", a), ("floor_", c)):
                value, _ = sliced_w1(samples, b, generator=generator)
                found.setdefault(f"{name}sliced_w1", []).append(float(value))
                found.setdefault(f"{name}autocovariance", []).append(autocovariance_error(samples, covariance))
    return {name: _mean(torch.tensor(values, dtype=torch.float64)) for name, values in found.items()}


def _mean(values: Tensor) -> Estimate:
    return Estimate(values.mean(), values.std() / math.sqrt(len(values)))
