"""Whether chains agree, and how many independent draws they are worth.

Gelman et al., "Bayesian Data Analysis", 3rd edition, 2013, sections 11.4-11.5: split R-hat, and the effective sample
size by Geyer's initial monotone sequence over all chains.
"""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["effective_sample_size", "split_rhat"]


def _split(draws: Tensor) -> Tensor:
    """Each chain as two: (2 chains, draws // 2, ...)."""
    half = draws.shape[1] // 2
    return torch.cat([draws[:, :half], draws[:, -half:]])


def _check(draws: Tensor) -> Tensor:
    if draws.ndim < 2 or draws.shape[1] < 4:
        raise ValueError(f"draws must have shape (chains, draws, ...) with at least 4 draws, got {tuple(draws.shape)}")
    if not bool(torch.isfinite(draws).all()):
        raise ValueError("draws hold NaN or infinite values: a chain has diverged; take a smaller lr")
    return draws.detach().to(torch.float64)


def _variances(chains: Tensor) -> tuple[Tensor, Tensor]:
    """Within chains, and the estimate of the whole from within and between them."""
    n = chains.shape[1]
    within = chains.var(dim=1).mean(dim=0)
    between = chains.mean(dim=1).var(dim=0)
    return within, within * (n - 1) / n + between


def split_rhat(draws: Float[Tensor, "chains draws *shape"]) -> Float[Tensor, "*shape"]:
    """sqrt(total / within) over halves of chains: near 1 once all agree; the paper asks for less than 1.1.

    1 where nothing moves at all.

    Raises:
        ValueError: if there are fewer than 4 draws a chain, or any is not finite.
    """
    within, total = _variances(_split(_check(draws)))
    return torch.where(total > 0, (total / within.clamp(min=1e-300)).sqrt(), 1.0)


def effective_sample_size(draws: Float[Tensor, "chains draws *shape"]) -> Float[Tensor, "*shape"]:
    """Draws of all chains, divided by the integrated autocorrelation time.

    Autocorrelations of the halved chains are summed in pairs of lags while the sums are positive, and made to fall
    monotonically. At most draws x log10(draws), where chains are anticorrelated.

    Raises:
        ValueError: as `split_rhat`.
    """
    chains = _split(_check(draws))
    shape = chains.shape[2:]
    chains = chains.flatten(2) if shape else chains[..., None]
    m, n = chains.shape[:2]
    centred = chains - chains.mean(dim=1, keepdim=True)
    spectrum = torch.fft.rfft(centred, n=2 * n, dim=1)
    covariance = torch.fft.irfft(spectrum.abs().square(), n=2 * n, dim=1)[:, :n] / n
    within, total = _variances(chains)
    # Variances have n - 1 below the sum and autocovariances n.
    rho = 1 - (within - covariance.mean(dim=0) * n / (n - 1)) / total.clamp(min=1e-300)
    rho[0] = 1.0
    pairs = rho[: n - n % 2].unflatten(0, (-1, 2)).sum(1)
    alive = torch.cumprod((pairs > 0).to(pairs.dtype), dim=0)
    monotone = torch.cummin(pairs, dim=0).values.clamp(min=0) * alive
    time = (2 * monotone.sum(0) - 1).clamp(min=1 / torch.tensor(float(m * n)).log10())
    size = torch.where(total > 0, m * n / time, float(m * n))
    return size.reshape(shape)
