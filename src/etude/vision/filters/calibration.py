"""Initialisation on data, layer by layer, and the diagnostic that shows what an initialisation does.

Mishkin & Matas, "All you need is a good init", arXiv:1511.06422 (LSUV); Krahenbuhl, Doersch, Donahue & Darrell,
"Data-dependent Initializations of Convolutional Neural Networks", arXiv:1511.06856.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from etude.loop.evaluation import mode

__all__ = ["VarianceProfile", "data_dependent", "lsuv", "variance_profile"]

Layer = nn.Conv2d | nn.Linear


class _Reached(Exception):
    """Ends a forward pass at the layer that is looked at."""


def _output_of(model: nn.Module, layer: nn.Module, x: Tensor) -> Tensor:
    """What `layer` gives out while the model runs on `x`; the pass ends there."""
    caught: list[Tensor] = []

    def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        caught.append(output)
        raise _Reached

    handle = layer.register_forward_hook(hook)
    try:
        model(x)
    except _Reached:
        pass
    finally:
        handle.remove()
    return caught[0]


def _layers_in_order(model: nn.Module, x: Tensor) -> list[tuple[str, Layer]]:
    """Convolutions and linear layers as they are first called on `x`."""
    called: list[tuple[str, Layer]] = []
    seen: set[int] = set()

    def record(name: str) -> Callable[..., None]:
        def hook(module: Any, _inputs: Any, _output: Any) -> None:
            if id(module) not in seen:
                seen.add(id(module))
                called.append((name, module))

        return hook

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, Layer):
                stack.callback(module.register_forward_hook(record(name)).remove)
        model(x)
    if not called:
        raise ValueError("the model calls no Conv2d or Linear layer")
    return called


def _check_batch(x: Tensor) -> None:
    if x.ndim < 2 or len(x) < 2:
        raise ValueError(f"x must be a batch of at least two inputs, got shape {tuple(x.shape)}")
    if not bool(torch.isfinite(x).all()):
        raise ValueError("x holds NaN or infinite values")


@torch.no_grad()
def lsuv(
    model: nn.Module,
    x: Tensor,
    *,
    tolerance: float | int = 0.01,
    max_iterations: int = 10,
    orthogonal: bool = True,
    generator: torch.Generator | None = None,
) -> dict[str, float]:
    """Layer-sequential unit variance: orthogonal filters, each layer divided by the standard deviation it gives out.

    The variance is taken over examples, channels and places together, as in the paper. In a narrow, deep network the
    signal can turn into a constant over the examples, whose unit variance is then mostly the noise between channels:
    look at `variance_profile`.

    Args:
        model: its convolutions and linear layers are treated in the order in which they are called.
        x: one batch of training inputs.
        tolerance: a layer is done once |variance - 1| is below.
        max_iterations: divisions of one layer; one is enough where its bias is zero.
        orthogonal: first draw orthogonal weights and zero biases, as the paper does; False keeps what is there.
        generator: source of the orthogonal weights.

    Returns:
        Name of each layer -> the variance of its output that was reached.

    Raises:
        ValueError: if a layer gives out a constant, which no scale turns into unit variance.
    """
    _check_batch(x)
    reached = {}
    with mode(model, training=False):
        layers = _layers_in_order(model, x)
        for _, layer in layers if orthogonal else ():
            nn.init.orthogonal_(layer.weight, generator=generator)
            if layer.bias is not None:
                layer.bias.zero_()
        for name, layer in layers:
            for iteration in range(max_iterations + 1):
                variance = _output_of(model, layer, x).double().var(correction=0).item()
                if abs(variance - 1) < tolerance or iteration == max_iterations:
                    break
                if not 0 < variance < float("inf"):
                    raise ValueError(
                        f"the layer {name} gives out values of variance {variance:g}; LSUV cannot scale it"
                    )
                layer.weight.div_(variance**0.5)
            reached[name] = variance
    return reached


@torch.no_grad()
def data_dependent(model: nn.Module, x: Tensor) -> dict[str, float]:
    """Per channel mean 0 and variance 1 of every layer's output on a batch, by its weights and bias.

    The within-layer step of Krahenbuhl et al., applied to the weights that are there; their further balancing of the
    gradients between layers is not done.

    Args:
        model: its convolutions and linear layers need biases, and are treated in the order in which they are called.
        x: one batch of training inputs.

    Returns:
        Name of each layer -> the largest deviation from 1 of a channel's variance.

    Raises:
        ValueError: if a layer has no bias, or a channel is constant over the batch.
    """
    _check_batch(x)
    reached = {}
    with mode(model, training=False):
        for name, layer in _layers_in_order(model, x):
            if layer.bias is None:
                raise ValueError(f"the layer {name} has no bias, with which to centre its channels")
            mean, std = _channel_moments(_output_of(model, layer, x), layer)
            if bool((std <= 1e-12).any()):
                raise ValueError(
                    f"{int((std <= 1e-12).sum())} channels of the layer {name} are constant over the batch"
                )
            layer.weight.div_(std.view(-1, *[1] * (layer.weight.ndim - 1)).to(layer.weight))
            layer.bias.copy_(((layer.bias - mean) / std).to(layer.bias))
            _, std = _channel_moments(_output_of(model, layer, x), layer)
            reached[name] = float((std**2 - 1).abs().max())
    return reached


def _channel_moments(output: Tensor, layer: nn.Module) -> tuple[Tensor, Tensor]:
    axis = 1 if isinstance(layer, nn.Conv2d) else output.ndim - 1
    rows = output.double().movedim(axis, 0).flatten(1)
    return rows.mean(dim=1), rows.std(dim=1, correction=0)


@dataclass(frozen=True)
class VarianceProfile:
    """How signals and gradients fare from layer to layer.

    Attributes:
        names: of the convolutions and linear layers, in the order in which they are called.
        variances: of each layer's output, before the activation function, over everything.
        second_moments: of the same.
        between_examples: the part of the variance that lies between examples; the rest is a constant pattern.
        gradients: variance of the loss's derivative by that output.
    """

    names: tuple[str, ...]
    variances: tuple[float, ...]
    second_moments: tuple[float, ...]
    between_examples: tuple[float, ...]
    gradients: tuple[float, ...]

    def plot(self) -> Any:
        """Variances of signals and gradients against the layer, on a log scale: a `matplotlib.figure.Figure`."""
        from etude.vision.filters.plots import plot_variance_profiles

        return plot_variance_profiles({"": self})


def variance_profile(
    model: nn.Module,
    x: Tensor,
    loss: Callable[[Tensor], Tensor] | None = None,
    *,
    generator: torch.Generator | None = None,
) -> VarianceProfile:
    """Activation and gradient variance of every convolution and linear layer on a batch.

    Args:
        model: any module that gives out one tensor; it is run as it is in evaluation.
        x: a batch of inputs.
        loss: of the model's output; if None, its product with standard normal noise, summed.
        generator: source of that noise.
    """
    _check_batch(x)
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., Tensor]:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            outputs[name] = output
            return output.clone()  # an activation function in place would overwrite what is kept

        return hook

    with mode(model, training=False), ExitStack() as stack, torch.enable_grad():
        for name, module in model.named_modules():
            if isinstance(module, Layer):
                stack.callback(module.register_forward_hook(keep(name)).remove)
        scores = model(x.detach().clone().requires_grad_())
        if loss is None:
            noise = torch.randn(scores.shape, generator=generator).to(scores)
            value = (scores * noise).sum()
        else:
            value = loss(scores)
        if not outputs:
            raise ValueError("the model calls no Conv2d or Linear layer")
        inner = [output for output in outputs.values() if output.requires_grad]
        derivatives = dict(zip(map(id, inner), torch.autograd.grad(value, inner, allow_unused=True)))
    rows = []
    for output in outputs.values():
        derivative = derivatives.get(id(output))
        flat = output.detach().double().flatten(1)
        rows.append(
            (
                flat.var(correction=0).item(),
                flat.square().mean().item(),
                flat.var(dim=0, correction=0).mean().item(),
                0.0 if derivative is None else derivative.double().var(correction=0).item(),
            )
        )
    columns = [tuple(column) for column in zip(*rows)]
    return VarianceProfile(tuple(outputs), *columns)
