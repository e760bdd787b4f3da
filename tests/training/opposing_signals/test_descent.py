"""Gradient descent and flow on quadratics, whose paths are known, and on a network beside autograd."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from etude.training.opposing_signals import (
    cross_entropy,
    flat_gradient,
    full_batch_backward,
    gradient_at,
    gradient_descent_,
    gradient_flow,
)


@pytest.mark.parametrize(("factor", "diverges"), [(0.99, False), (1.01, True)])
def test_descent_on_a_quadratic_diverges_if_and_only_if_the_step_exceeds_two_over_the_curvature(factor, diverges):
    curvature = 3.0
    x = torch.ones(1, dtype=torch.float64, requires_grad=True)
    for _ in range(500):
        gradient_descent_([x], lambda: curvature * x.square().sum() / 2, lr=factor * 2 / curvature)
    assert (abs(x.item()) > 1) == diverges


@pytest.mark.parametrize("chunked", [False, True])
def test_a_step_is_the_full_batch_gradient_step_whatever_the_chunks(problem, chunked):
    model, x, y = problem
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    gradient = flat_gradient(model, cross_entropy, (x, y))

    def chunks():
        for rows in torch.arange(40).split(9):
            yield F.cross_entropy(model(x[rows]), y[rows], reduction="sum") / 40

    loss = gradient_descent_(model.parameters(), chunks if chunked else lambda: F.cross_entropy(model(x), y), lr=0.3)
    torch.testing.assert_close(nn.utils.parameters_to_vector(model.parameters()).detach(), before - 0.3 * gradient)
    torch.testing.assert_close(loss, F.cross_entropy(model(x), y).item(), rtol=0.5, atol=0)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("batch_size", [None, 40, 9])
def test_chunked_backward_fills_grad_as_one_pass_would(problem, batch_size):
    model, x, y = problem
    losses = full_batch_backward(model, cross_entropy, (x, y), batch_size=batch_size)
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(gradient, flat_gradient(model, cross_entropy, (x, y)))
    torch.testing.assert_close(losses, F.cross_entropy(model(x), y, reduction="none").detach())
    full_batch_backward(model, cross_entropy, (x, y), batch_size=batch_size)
    torch.testing.assert_close(torch.cat([p.grad.flatten() for p in model.parameters()]), 2 * gradient)


def test_the_flow_on_a_quadratic_decays_exponentially():
    curvatures = torch.tensor([0.1, 1.0, 5.0], dtype=torch.float64)
    end = gradient_flow(lambda x: curvatures * x, torch.ones(3).double(), time=2.0, max_step=0.25 / 5)
    torch.testing.assert_close(end, torch.exp(-2.0 * curvatures), rtol=1e-5, atol=1e-7)


def test_the_flow_is_the_limit_of_small_descent_steps(problem):
    model, x, y = problem
    gradient = gradient_at(model, cross_entropy, (x, y), batch_size=16)
    theta = nn.utils.parameters_to_vector(model.parameters()).detach()
    torch.testing.assert_close(gradient(theta), flat_gradient(model, cross_entropy, (x, y)))
    by_steps = theta.clone()
    for _ in range(400):
        by_steps = by_steps - 0.0025 * gradient(by_steps)
    flowed = gradient_flow(gradient, theta, time=1.0, max_step=0.2)
    torch.testing.assert_close(flowed, by_steps, rtol=0, atol=1e-3)
    assert float((flowed - theta).norm()) > 0.05
    assert torch.equal(theta, nn.utils.parameters_to_vector(model.parameters()).detach())


def test_the_flow_can_end_early():
    end = gradient_flow(lambda x: x, torch.ones(1).double(), time=100.0, max_step=0.1, until=lambda x: x.item() < 0.5)
    assert 0.4 < end.item() < 0.5


def test_bad_arguments_are_refused_and_divergence_is_an_error():
    x = torch.ones(2, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match=r"lr must be positive, got 0\.0"):
        gradient_descent_([x], lambda: x.sum(), lr=0.0)
    with pytest.raises(FloatingPointError, match=r"the loss is nan: the step size 0\.1 is too large"):
        gradient_descent_([x], lambda: x.sum() * math.nan, lr=0.1)
    assert torch.equal(x.detach(), torch.ones(2).double())
    start = torch.ones(1).double()
    with pytest.raises(ValueError, match="time must not be negative, got -1"):
        gradient_flow(lambda at: at, start, time=-1.0, max_step=0.1)
    with pytest.raises(ValueError, match="max_step must be positive, got 0"):
        gradient_flow(lambda at: at, start, time=1.0, max_step=0.0)
    with pytest.raises(FloatingPointError, match="steps of 10 are too large"):
        gradient_flow(lambda at: 1e3 * at, start, time=1e4, max_step=10.0)
