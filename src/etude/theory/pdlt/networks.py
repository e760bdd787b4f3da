"""Criticality in a user's own network: its initialisation, its learning rates, its empirical NTK.

Roberts, Yaida & Hanin, "The Principles of Deep Learning Theory", arXiv:2106.10165, chapters 5 and 9. PyTorch's linear
layers hold no 1 / sqrt(n), so that the variances carry it, Var W = C_W / fan-in, and so do the learning rates,
lambda_W / fan-in. By the equivalence principle every layer has the same part in the NTK of the last,

    Theta_L = sum_l (lambda_b^(l) + lambda_W^(l) g(K_(l-1))) prod_(l <= k < L) chi_perp(K_k)                 (1)

(g(K_0) is |x|^2 / n_0), which at criticality asks, of a network of L linear layers, for

    lambda_b^(l) = lambda_W^(l) = 1 / L                                       scale-invariant, half-stable   (2)
    lambda_b^(l) = (1 / l)^p L^(p - 1),  lambda_W^(l) = (L / l)^(p - 1)       K* = 0,  p = p_perp            (3)

With K_l = 1 / (|a1| l), Eq. (3) makes each layer's terms 1 / L for the biases and 1 / (|a1| L) for the weights.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from etude.theory.pdlt.activations import Activation, as_activation
from etude.theory.pdlt.criticality import critical_init
from etude.theory.pdlt.flow import check_variances
from etude.theory.pdlt.moments import checked_variances, moments

__all__ = [
    "LearningRates",
    "critical_param_groups",
    "empirical_ntk",
    "init_critical_",
    "learning_rates",
    "ntk_contributions",
]

_NTK_BYTES = 1 << 28
"""Bytes of the Jacobians that `empirical_ntk` holds at a time."""


class LearningRates(NamedTuple):
    """lambda_b and lambda_W of layers 1..L, Eqs. (2) and (3)."""

    biases: Float[Tensor, "layers"]
    weights: Float[Tensor, "layers"]


def init_critical_(
    module: nn.Module,
    activation: Activation | Callable[[Tensor], Tensor],
    input_scale: float | int = 1.0,
    weight_gain: float | int = 1.0,
    bias_gain: float | int = 1.0,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Draws the weights of a plain deep network anew, at its activation's critical point.

        model = nn.Sequential(nn.Linear(784, 512), nn.GELU(), nn.Linear(512, 512), nn.GELU(), nn.Linear(512, 10))
        init_critical_(model, nn.GELU())

    Weights get the variance C_W / fan-in and biases C_b (0 where that is 0). Where the kernel has a fixed point K* > 0
    (GELU, SWISH), the weights of the first layer get (K* - C_b) / (input_scale fan-in) instead, so that K* is met there
    and then: K_1 = K* would else need |x|^2 / n_0 = g(K*).

    Args:
        module: linear layers in the order in which they are called, and layers without parameters.
        activation: that of the network.
        input_scale: |x|^2 / n_0 of the inputs; 1 for standardised ones.
        weight_gain, bias_gain: multiply C_W and C_b of every layer, to leave criticality on purpose.
        generator: of the draws.

    Returns:
        The module, changed in place.

    Raises:
        NoCriticalPoint: if the activation has none.
        TypeError: if a layer with parameters is not linear: normalised and convolutional layers have other laws.
        ValueError: if there is no linear layer, or `input_scale` or a gain is out of range.
    """
    point = critical_init(activation)
    for name, x in (("input_scale", input_scale), ("weight_gain", weight_gain)):
        if not (math.isfinite(x) and x > 0):
            raise ValueError(f"{name} must be positive and finite, got {x}")
    if not (math.isfinite(bias_gain) and bias_gain >= 0):
        raise ValueError(f"bias_gain must be finite and not negative, got {bias_gain}")
    layers = linear_layers(module)
    if any(layer.bias is None for layer in layers) and point.C_b:
        raise ValueError(
            f"the critical point of this activation has biases of variance C_b = {point.C_b:.6g}, "
            "but the network has a linear layer without one"
        )
    for place, layer in enumerate(layers):
        C_W = point.C_W
        if place == 0 and point.K_star > 0:
            C_W = (point.K_star - point.C_b) / input_scale
        _draw_(layer.weight, weight_gain * C_W / layer.in_features, generator)
        if layer.bias is not None:
            _draw_(layer.bias, bias_gain * point.C_b, generator)
    return module


def learning_rates(activation: Activation | Callable[[Tensor], Tensor], depth: int) -> LearningRates:
    """lambda_b and lambda_W of a critical network with this many linear layers, Eqs. (2) and (3).

    Raises:
        NoCriticalPoint: if the activation has none.
        ValueError: if `depth` is not positive.
    """
    if depth < 1:
        raise ValueError(f"depth counts linear layers and must be at least 1, got {depth}")
    point = critical_init(activation)
    layer = torch.arange(1, depth + 1, dtype=torch.float64)
    if point.cls == "K*=0":
        p = point.p_perp
        return LearningRates(layer**-p * depth ** (p - 1), (depth / layer) ** (p - 1))
    return LearningRates(torch.full_like(layer, 1 / depth), torch.full_like(layer, 1 / depth))


def critical_param_groups(
    module: nn.Module, activation: Activation | Callable[[Tensor], Tensor], lr: float | int
) -> list[dict[str, Any]]:
    """Parameter groups that give each layer its learning rate at criticality, for any optimizer of gradients' size.

        torch.optim.SGD(critical_param_groups(model, nn.GELU(), lr=1.0), momentum=0.9)

    Weights of layer l get lr lambda_W^(l) / fan-in, biases lr lambda_b^(l), so that a good `lr` depends on neither
    width nor depth. Rules that divide by the gradient's size, as Adam's does, need others.

    Args:
        module: as for `init_critical_`.
        activation: that of the network.
        lr: eta.

    Returns:
        One group of weights and, where there is one, of biases a layer, with a "name" each.

    Raises:
        NoCriticalPoint, TypeError, ValueError: as for `init_critical_`; ValueError if `lr` is negative.
    """
    if not (math.isfinite(lr) and lr >= 0):
        raise ValueError(f"lr must be finite and not negative, got {lr}")
    layers = linear_layers(module)
    rates = learning_rates(activation, len(layers))
    groups: list[dict[str, Any]] = []
    for place, layer in enumerate(layers):
        rate = lr * float(rates.weights[place]) / layer.in_features
        groups.append({"params": [layer.weight], "lr": rate, "name": f"weights of layer {place + 1}"})
        if layer.bias is not None:
            rate = lr * float(rates.biases[place])
            groups.append({"params": [layer.bias], "lr": rate, "name": f"biases of layer {place + 1}"})
    return groups


def ntk_contributions(
    activation: Activation | Callable[[Tensor], Tensor],
    C_b: float | int,
    C_W: float | int,
    K1: float | int,
    rates: LearningRates,
    *,
    input_scale: float | int = 1.0,
) -> Float[Tensor, "layers parts"]:
    """What biases (column 0) and weights (column 1) of each layer add to the NTK of the last, Eq. (1).

    Args:
        activation, C_b, C_W: of the network.
        K1: its first kernel.
        rates: lambda_b and lambda_W of each layer.
        input_scale: |x|^2 / n_0.

    Returns:
        float64 (layers, 2); the sum is Theta_L.

    Raises:
        ValueError: if a kernel is not positive, or an average diverges.
    """
    check_variances(C_b, C_W)
    act = as_activation(activation)
    K = checked_variances(K1)
    signals, gains = [torch.tensor(float(input_scale), dtype=torch.float64)], []
    for _ in range(len(rates.weights) - 1):
        m = moments(act, K, columns=[("s2", 0), ("d2", 0)])
        signals.append(m["s2", 0].value)
        gains.append(float(C_W) * m["d2", 0].value)
        K = C_b + C_W * m["s2", 0].value
    carried = torch.ones(len(signals), dtype=torch.float64)
    if gains:
        carried[:-1] = torch.stack(gains).flip(0).cumprod(0).flip(0)
    return torch.stack([rates.biases * carried, rates.weights * torch.stack(signals) * carried], dim=1)


def empirical_ntk(
    module: nn.Module,
    x: Float[Tensor, "n *features"],
    x2: Float[Tensor, "m *features"] | None = None,
    *,
    lambda_b: float | int = 1.0,
    lambda_W: float | int = 1.0,
) -> Float[Tensor, "n m out out"]:
    """H = sum over parameters of lambda dz_i / dtheta dz_j' / dtheta, of a module as it is now.

    Rates are those of the theory: lambda_W / fan-in for parameters of two or more dimensions (fan-in is what an output
    unit sees: all dimensions but the first), lambda_b for the others. Jacobians are made in blocks of inputs, so that
    memory is bounded, whatever n and m; one Jacobian of one input must fit.

    Args:
        module: maps (batch, *features) to (batch, out), each row by itself; put it into evaluation mode first if it
            behaves otherwise in training.
        x, x2: inputs; x2 = x if None.
        lambda_b, lambda_W: learning rates.

    Raises:
        ValueError: if the module's output is not (batch, out), or it has no parameters.
    """
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    buffers = {name: b.detach() for name, b in module.named_buffers()}
    if not parameters:
        raise ValueError("the module has no parameters, so that there is no NTK")
    with torch.no_grad():
        shape = module(x[:1]).shape
    if len(shape) != 2:
        raise ValueError(f"the module must map (batch, *features) to (batch, out), its output is {tuple(shape)}")

    def output(weights: dict[str, Tensor], row: Tensor) -> Tensor:
        return torch.func.functional_call(module, {**weights, **buffers}, (row[None],))[0]

    jacobian = torch.func.vmap(torch.func.jacrev(output), in_dims=(None, 0))
    size = sum(p.numel() * p.element_size() for p in parameters.values()) * shape[1]
    rows = max(_NTK_BYTES // (2 * size), 1)

    def scaled(block: Tensor) -> list[Tensor]:
        return [
            j.flatten(2) * math.sqrt(_rate(parameters[name], lambda_b, lambda_W))
            for name, j in jacobian(parameters, block).items()
        ]

    second = x if x2 is None else x2
    kernel = x.new_zeros(len(x), len(second), shape[1], shape[1])
    for start in range(0, len(x), rows):
        left = scaled(x[start : start + rows])
        # With one set of inputs the kernel is symmetric: what lies below the diagonal follows from what lies above.
        for other in range(start if x2 is None else 0, len(second), rows):
            right = left if x2 is None and other == start else scaled(second[other : other + rows])
            products = [torch.einsum("aip,bjp->abij", a, b) for a, b in zip(left, right)]
            block = torch.stack(products).sum(0)
            kernel[start : start + rows, other : other + rows] = block
            if x2 is None and other != start:
                kernel[other : other + rows, start : start + rows] = block.permute(1, 0, 3, 2)
    return kernel


def _rate(parameter: Tensor, lambda_b: float | int, lambda_W: float | int) -> float:
    return float(lambda_b) if parameter.ndim < 2 else float(lambda_W) / (parameter.numel() // len(parameter))


def linear_layers(module: nn.Module) -> list[nn.Linear]:
    layers: list[nn.Linear] = []
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear):
            layers.append(part)
        elif next(part.parameters(recurse=False), None) is not None:
            raise TypeError(
                f"the theory is that of linear layers and elementwise activations; {name or 'the module'} is a "
                f"{type(part).__name__} with parameters of its own"
            )
    if not layers:
        raise ValueError(f"the module has no nn.Linear: {type(module).__name__}")
    if isinstance(module, nn.Sequential):
        for before, after in pairwise(layers):
            if before.out_features != after.in_features:
                raise ValueError(
                    f"linear layers must follow one another: one has {before.out_features} outputs, the next "
                    f"{after.in_features} inputs"
                )
    return layers


@torch.no_grad()
def _draw_(parameter: Tensor, variance: float, generator: torch.Generator | None) -> None:
    if variance == 0:
        parameter.zero_()
    else:
        where = parameter.device if generator is None else generator.device
        drawn = torch.randn(parameter.shape, generator=generator, device=where, dtype=parameter.dtype)
        parameter.copy_(drawn * math.sqrt(variance))
