"""What wide networks with a given weight prior tend to, and what finite ones have: covariances with error bars.

For weights N(0, sw_l^2), biases N(0, sb_l^2) and Eq. (1) of `networks`, as the widths grow the function becomes a
Gaussian process (Neal 1996; Lee et al., "Deep Neural Networks as Gaussian Processes", ICLR 2018) with

    K_1(x, x') = sb_1^2 + sw_1^2 x.x' / D                                                                    (1)
    K_(l+1)(x, x') = sb_(l+1)^2 + sw_(l+1)^2 E[phi(u) phi(v)],  (u, v) ~ N(0, K_l on x, x')                    (2)

Eq. (1) is exact for a linear network. The expectation is a product trapezoidal rule on |z| <= 8.5: for tanh of a wide
Gaussian, whose poles lie near the line, it converges much sooner than Gauss-Hermite rules of as many nodes.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from etude.nn.gaussian import Estimate
from etude.theory.functional_priors.networks import activation_function
from etude.theory.functional_priors.weight_priors import WeightPrior

__all__ = ["nngp_kernel", "prior_covariance"]

_BLOCK = 1_000
_REACH = 8.5


def nngp_kernel(
    x: Float[Tensor, "n features"],
    depth: int,
    activation: str | Callable[[Tensor], Tensor] = "tanh",
    *,
    weight_std: float | int | Sequence[float | int] = 1.0,
    bias_std: float | int | Sequence[float | int] = 1.0,
    nodes: int = 128,
) -> Estimate:
    """The covariance of infinitely wide networks, Eq. (2), at the rows of `x`.

        nngp_kernel(x, depth=3, activation="tanh", weight_std=[1.9, 2.8, 2.3, 0.8], bias_std=0.5).value

    Args:
        x: inputs.
        depth: hidden layers, >= 0; 0 is the linear model, Eq. (1).
        activation: name or elementwise function.
        weight_std, bias_std: standard deviations of all layers, or one for each of the depth + 1.
        nodes: of the quadrature in each of two directions.

    Returns:
        (n, n) in float64, and how much a rule of two thirds of the nodes differs: rounding for smooth
        activations, some 1e-3 relative for ones with a kink.

    Raises:
        ValueError: if a number is out of range or there is not one standard deviation a layer.
    """
    if depth < 0 or nodes < 8:
        raise ValueError(f"depth must be >= 0 and nodes >= 8, got {depth} and {nodes}")
    sw, sb = (_per_layer(name, std, depth + 1) for name, std in (("weight_std", weight_std), ("bias_std", bias_std)))
    phi = activation_function(activation)
    x = x.detach().to(torch.float64)
    first = sb[0] ** 2 + sw[0] ** 2 * (x @ x.T) / x.shape[1]
    found = []
    for count in (nodes, max(2 * nodes // 3, 4)):
        kernel = first
        for weight, bias in zip(sw[1:], sb[1:]):
            kernel = bias**2 + weight**2 * _pair_expectation(kernel, phi, count)
        found.append(kernel)
    return Estimate(found[0], (found[0] - found[1]).abs())


def _per_layer(name: str, std: float | int | Sequence[float | int], layers: int) -> list[float]:
    listed = [float(std)] * layers if isinstance(std, (int, float)) else [float(value) for value in std]
    if len(listed) != layers or min(listed) < 0:
        raise ValueError(f"{name} must be >= 0, one number or one for each of {layers} layers, got {std}")
    return listed


def _pair_expectation(kernel: Tensor, phi: Callable[[Tensor], Tensor], count: int) -> Tensor:
    """E[phi(u) phi(v)] for every pair: u = s z1, v = s' (r z1 + sqrt(1 - r^2) z2), over the upper triangle."""
    z = torch.linspace(-_REACH, _REACH, count, dtype=torch.float64, device=kernel.device)
    weight = torch.softmax(-0.5 * z.square(), 0)
    std = kernel.diagonal().clamp(min=0).sqrt()
    rows, columns = torch.triu_indices(len(kernel), len(kernel))
    scale = std[rows] * std[columns]
    correlation = torch.where(scale > 0, kernel[rows, columns] / scale.clamp(min=1e-300), 0.0).clamp(-1, 1)
    outer = phi(std[:, None] * z)
    values = torch.empty_like(correlation)
    for start in range(0, len(rows), _BLOCK):
        part = slice(start, start + _BLOCK)
        r = correlation[part, None, None]
        inner = phi(std[columns[part], None, None] * (r * z[:, None] + (1 - r * r).clamp(min=0).sqrt() * z)) @ weight
        values[part] = (outer[rows[part]] * inner) @ weight
    result = torch.empty_like(kernel)
    result[rows, columns] = values
    result[columns, rows] = values
    return result


def prior_covariance(
    prior: WeightPrior, x: Tensor, n: int = 2_000, *, generator: torch.Generator | None = None
) -> Estimate:
    """The covariance of the functions of a weight prior at inputs, from draws, and its standard error.

    The prior mean is 0 for the priors here, and is taken as 0; of several outputs the covariances are averaged.

    Args:
        prior: a `GaussianWeightPrior`, `HierarchicalWeightPrior` or `FlowWeightPrior`.
        x: (M, ...) inputs of its network.
        n: functions drawn, at least 2.
        generator: of the draws.
    """
    if n < 2:
        raise ValueError(f"n must be at least 2, for an error, got {n}")
    with torch.no_grad():
        f = prior.sample_functions(x, n, generator=generator).to(torch.float64)
    f = f.transpose(1, 2).flatten(0, 1)
    second, fourth = f.T @ f / len(f), f.square().T @ f.square() / len(f)
    return Estimate(second, ((fourth - second.square()).clamp(min=0) / n).sqrt())
