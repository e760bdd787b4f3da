"""Networks of finite width in the NTK parameterisation, and how far their kernels are from the limit.

Radhakrishnan, Belkin & Uhler, PNAS 2023, arXiv:2204.14126; Jacot, Gabriel & Hongler, "Neural Tangent Kernel",
NeurIPS 2018. With weights W_l of independent N(0, 1) entries, width m and no biases,

    h_1 = W_1 x,   h_(l+1) = W_(l+1) phi(h_l) / sqrt(m),   f(x) = w^T phi(h_L) / sqrt(m)                     (1)

on unit vectors x. As m grows, the kernel of its gradients, sum_theta df(x)/dtheta df(x')/dtheta, tends to K_L.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float
from torch import Tensor, nn

from etude.nn.dual import dual_activation
from etude.nn.gaussian import Estimate
from etude.theory.wide_deep_optimality.activations import HermiteActivation
from etude.theory.wide_deep_optimality.kernel import deep_ntk

__all__ = ["NTKNetwork", "descent_prediction", "empirical_ntk", "width_error"]


class NTKNetwork(nn.Module, PyTorchModelHubMixin, library_name="etude", paper_url="https://arxiv.org/abs/2204.14126"):
    """A fully connected network, Eq. (1), whose output at the start is 0: that of the initial weights is subtracted.

        network = NTKNetwork(3, optimal_activation(2).coefficients.tolist(), width=1024, depth=4)

    Args:
        in_features: columns of the data.
        coefficients: c_0, c_1, ... of a `HermiteActivation`.
        width: m. depth: L, hidden layers.
        generator: draws the weights.

    Raises:
        ValueError: if a size is not positive.
    """

    def __init__(
        self,
        in_features: int,
        coefficients: Sequence[float],
        width: int,
        depth: int,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        for name, size in (("in_features", in_features), ("width", width), ("depth", depth)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        self.activation = HermiteActivation(coefficients)
        sizes = [in_features] + [width] * depth + [1]
        drawn = [torch.randn(m, n, generator=generator) for n, m in pairwise(sizes)]
        self.weights = nn.ParameterList(drawn)
        self._initial = [f"initial_{layer}" for layer in range(len(drawn))]
        for name, weight in zip(self._initial, drawn):
            self.register_buffer(name, weight.clone())

    def forward(self, x: Float[Tensor, "batch in_features"]) -> Float[Tensor, "batch"]:
        return self.raw(x, list(self.weights)) - self.raw(x, [getattr(self, name) for name in self._initial])

    def raw(self, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """Eq. (1) with the given weights."""
        h = x @ weights[0].T
        for weight in weights[1:]:
            h = self.activation(h) @ weight.T / math.sqrt(weight.shape[1])
        return h.squeeze(-1)


def empirical_ntk(
    network: NTKNetwork, x: Float[Tensor, "n in_features"], other: Float[Tensor, "m in_features"]
) -> Float[Tensor, "n m"]:
    """Inner products of the gradients of the output, by all weights, at two sets of points.

    Gradients of a layer are outer products, so that no n x parameters matrix is made: the layer's part of the kernel is
    the product of two Gram matrices, of what enters the layer and of what comes back to it.
    """
    kernel = x.new_zeros(len(x), len(other))
    for (inputs, backward), (inputs_other, backward_other) in zip(_factors(network, x), _factors(network, other)):
        kernel += (inputs @ inputs_other.T) * (backward @ backward_other.T)
    return kernel


def _factors(network: NTKNetwork, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For each layer what enters it, scaled as in Eq. (1), and the gradient of the output by what leaves it."""
    inputs, outputs = [], []
    h = x.detach()
    with torch.enable_grad():
        for layer, weight in enumerate(network.weights):
            if layer:
                h = network.activation(h) / math.sqrt(weight.shape[1])
            inputs.append(h)
            h = h @ weight.detach().T
            if layer == 0:
                h.requires_grad_()
            outputs.append(h)
        backward = torch.autograd.grad(h.sum(), outputs)
    return [(given.detach(), back) for given, back in zip(inputs, backward)]


def width_error(
    activation: HermiteActivation,
    width: int,
    depth: int,
    x: Float[Tensor, "n in_features"],
    *,
    draws: int = 20,
    generator: torch.Generator | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Estimate:
    """How far a network of this width and depth is from its limit: the mean of |K_m - K_L| / |K_L|, Frobenius norms.

        width_error(optimal_activation(2), 512, 4, x)      # Estimate(value=0.3, error=0.04)

    Args:
        activation: with E phi^2 = 1.
        width, depth: of the network.
        x: unit vectors of the non-negative orthant; the kernel is compared on all pairs.
        draws: networks drawn, at least 2.
        generator: of their weights.
        progress: called with the number of draws done and of all.

    Returns:
        The mean over the draws and its standard error. Activations of high degree have heavy tails: the error of the
        kernel then falls slowly with the width and scatters much from draw to draw.

    Raises:
        ValueError: if `draws` < 2, rows are not unit vectors with inner products in [0, 1], or a size is not positive.
    """
    if draws < 2:
        raise ValueError(f"draws must be at least 2, for an error, got {draws}")
    x = x.to(torch.float64)
    if bool(((x.norm(dim=1) - 1).abs() > 1e-6).any()):
        raise ValueError(f"rows of x must have unit length, got norms up to {float(x.norm(dim=1).max()):.6g}")
    limit = deep_ntk((x @ x.T).fill_diagonal_(1.0), dual_activation(activation), depth, scaled=False)
    found = []
    for draw in range(draws):
        network = NTKNetwork(x.shape[1], activation.coefficients.tolist(), width, depth, generator).double()
        found.append((empirical_ntk(network, x, x) - limit).norm() / limit.norm())
        if progress is not None:
            progress(draw + 1, draws)
    errors = torch.stack(found)
    return Estimate(errors.mean(), errors.std() / math.sqrt(draws))


def descent_prediction(
    kernel: Float[Tensor, "n n"], kernel_test: Float[Tensor, "m n"], y: Float[Tensor, "n"], lr: float, steps: int
) -> Float[Tensor, "m"]:
    """What gradient descent on sum (f - y)^2 / 2 predicts after some steps, for a network whose kernel stays as it is.

    From a zero output, f_t(x) = K(x, X) K^-1 (I - (1 - lr K)^t) y; for t -> infinity Eq. (1) of the estimators.

    Raises:
        ValueError: if `lr` is 2 / lambda_max or more, where descent diverges.
    """
    values, vectors = torch.linalg.eigh(kernel)
    top = float(values[-1])
    if not 0 < lr < 2 / top:
        raise ValueError(f"lr must lie in (0, 2 / lambda_max), 2 / lambda_max = {2 / top:.4g}, got {lr:.4g}")
    values = values.clamp(min=0)
    # (1 - (1 - lr v)^t) / v, which tends to lr t as v -> 0; 1 - lr v is negative beyond 1 / lr.
    shrunk = 1 - (1 - lr * values) ** steps
    small = lr * values * steps < 1e-6
    filter_ = torch.where(small, lr * steps, shrunk / torch.where(small, 1.0, values))
    return kernel_test @ (vectors @ (filter_ * (vectors.T @ y)))
