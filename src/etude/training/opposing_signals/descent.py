"""Full-batch gradient descent, and the gradient flow that it follows while its steps are small.

Gradient descent diverges on 1/2 lambda x^2 if and only if its step size exceeds 2 / lambda; the flow

    d theta / dt = -grad L(theta)                                                                         (1)

has no such limit, and shows where descent would go without it.
"""

import math
from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from etude.training.opposing_signals.examples import FixedSet, LossFn, device_of, flatten, losses_of, move

__all__ = ["gradient_at", "gradient_descent_", "gradient_flow"]


def gradient_descent_(
    params: Iterable[Tensor], loss_closure: Callable[[], Tensor | Iterable[Tensor]], lr: float
) -> float:
    """One step of gradient descent in place; the loss before it.

    Args:
        params: the tensors to move.
        loss_closure: computes the loss, or yields its parts (of chunks of the data), whose sum it is; one part's
            graph is kept at a time.
        lr: step size, > 0.

    Raises:
        FloatingPointError: if the loss is not finite; the parameters then stay.
    """
    if not lr > 0:
        raise ValueError(f"lr must be positive, got {lr}")
    params = [p for p in params if p.requires_grad]
    total, gradient = 0.0, [torch.zeros_like(p) for p in params]
    with torch.enable_grad():
        value = loss_closure()
        for part in [value] if isinstance(value, Tensor) else value:
            total += float(part.detach())
            for sum_, g in zip(gradient, torch.autograd.grad(part, params, allow_unused=True)):
                if g is not None:
                    sum_ += g
    if not math.isfinite(total):
        raise FloatingPointError(f"the loss is {total}: the step size {lr:g} is too large")
    with torch.no_grad():
        for p, g in zip(params, gradient):
            p.sub_(g, alpha=lr)
    return total


def gradient_at(
    model: nn.Module, loss_fn: LossFn, data: object, *, batch_size: int | None = None
) -> Callable[[Tensor], Tensor]:
    """The gradient of the full-batch loss as a function of a flat parameter vector, for `gradient_flow`.

        theta = torch.nn.utils.parameters_to_vector(model.parameters())
        theta = gradient_flow(gradient_at(model, cross_entropy, (x, y)), theta, time=10.0, max_step=0.05)
        torch.nn.utils.vector_to_parameters(theta, model.parameters())

    All parameters are part of the vector, in the order of `model.parameters()`. The model itself is not changed.
    """
    examples, device = FixedSet(data, batch_size), device_of(model)
    named = dict(model.named_parameters())

    def gradient(theta: Tensor) -> Tensor:
        pieces = theta.detach().split([p.numel() for p in named.values()])
        leaves = {name: piece.view_as(p).clone().requires_grad_() for (name, p), piece in zip(named.items(), pieces)}
        state = leaves | {name: buffer.clone() for name, buffer in model.named_buffers()}
        total = torch.zeros_like(theta)
        with torch.enable_grad():
            for inputs, targets, _ in examples:
                outputs = functional_call(model, state, (move(inputs, device),))
                loss = losses_of(loss_fn, outputs, move(targets, device)).sum() / len(examples)
                parts = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True, allow_unused=True)
                total += flatten(parts)
        return total

    return gradient


def gradient_flow(
    gradient: Callable[[Tensor], Tensor],
    theta: Float[Tensor, " params"],
    *,
    time: float,
    max_step: float | Callable[[Tensor], float],
    until: Callable[[Tensor], bool] | None = None,
) -> Float[Tensor, " params"]:
    """Follows Eq. (1) from `theta` for a time, by the classical Runge-Kutta method.

    Args:
        gradient: of the loss, at a flat vector.
        theta: where to start; not changed.
        time: how long, >= 0.
        max_step: length of a step, or the length at a point; at most 1 / (4 lambda) keeps each step well inside the
            method's region of stability and its error small.
        until: looked at after every step; ends the flow early where true.

    Raises:
        ValueError: if the time is negative or a step is not positive.
        FloatingPointError: if the parameters are not finite any more.
    """
    if not time >= 0:
        raise ValueError(f"time must not be negative, got {time}")
    theta, left = theta.detach().clone(), float(time)
    while left > 0:
        step = max_step(theta) if callable(max_step) else max_step
        if not step > 0:
            raise ValueError(f"max_step must be positive, got {step}")
        step = min(step, left)
        k1 = gradient(theta)
        k2 = gradient(theta - step / 2 * k1)
        k3 = gradient(theta - step / 2 * k2)
        k4 = gradient(theta - step * k3)
        theta = theta - step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        if not bool(torch.isfinite(theta).all()):
            raise FloatingPointError(f"the flow left the finite numbers; its steps of {step:g} are too large")
        left -= step
        if until is not None and until(theta):
            break
    return theta
