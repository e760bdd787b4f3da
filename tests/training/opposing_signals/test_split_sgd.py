"""SplitSGD: its two kinds of steps, its limits in SGD and sign descent, its state."""

import math

import pytest
import torch
from torch import nn

from etude.training.opposing_signals import SplitSGD


def stepped(make, gradients):
    """The parameter after each of the gradients."""
    p = nn.Parameter(torch.zeros(len(gradients[0]), dtype=torch.float64))
    optimizer, path = make([p]), []
    for gradient in gradients:
        p.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
        path.append(p.detach().clone())
    return path


GRADIENTS = [[0.1, -2.0, 0.5], [-0.3, 1.0, 4.0], [0.2, 0.2, -9.0]]


def test_without_large_coordinates_it_is_sgd():
    for dampening in (False, True):
        ours = stepped(lambda p, d=dampening: SplitSGD(p, 0.1, threshold=1e9, dampening=d), GRADIENTS)
        if dampening:
            buffer, position = torch.zeros(3).double(), torch.zeros(3).double()
            for step, gradient in enumerate(GRADIENTS, start=1):
                buffer = 0.9 * buffer + 0.1 * torch.tensor(gradient).double()
                position = position - 0.1 * buffer / (1 - 0.9**step)
                torch.testing.assert_close(ours[step - 1], position)
        else:
            theirs = stepped(lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), GRADIENTS)
            torch.testing.assert_close(torch.stack(ours), torch.stack(theirs))


def test_with_large_coordinates_only_it_is_sign_descent():
    ours = stepped(lambda p: SplitSGD(p, 0.1, sign_lr=0.05, momentum=0.0, threshold=1e-9), GRADIENTS)
    theirs = -0.05 * torch.tensor(GRADIENTS).double().sign().cumsum(0)
    torch.testing.assert_close(torch.stack(ours), theirs)


def test_small_coordinates_step_by_lr_and_large_ones_by_sign_lr():
    ours = stepped(lambda p: SplitSGD(p, 0.1, sign_lr=0.03, momentum=0.0, threshold=0.5), GRADIENTS[:1])
    torch.testing.assert_close(ours[0], torch.tensor([-0.01, 0.03, -0.05]).double())


def test_the_default_sign_step_bounds_the_momentum_by_the_threshold():
    ours = stepped(lambda p: SplitSGD(p, 0.1, momentum=0.0, threshold=0.5), GRADIENTS[1:2])
    torch.testing.assert_close(ours[0], -0.1 * torch.tensor([-0.3, 0.5, 0.5]).double())


def test_the_threshold_is_the_quantile_of_the_first_momentum_and_stays():
    p = nn.Parameter(torch.zeros(100))
    optimizer = SplitSGD([p], 0.1, threshold_quantile=0.9)
    p.grad = torch.arange(1.0, 101.0) * (-1) ** torch.arange(100)
    optimizer.step()
    assert optimizer.param_groups[0]["threshold"] == pytest.approx(90.0)
    p.grad = 100 * p.grad
    optimizer.step()
    assert optimizer.param_groups[0]["threshold"] == pytest.approx(90.0)


def test_a_saved_state_goes_on_as_if_nothing_had_been():
    whole = stepped(lambda p: SplitSGD(p, 0.1), GRADIENTS)
    p = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = SplitSGD([p], 0.1)
    for gradient in GRADIENTS[:2]:
        p.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
    state = optimizer.state_dict()
    q = nn.Parameter(p.detach().clone())
    resumed = SplitSGD([q], 0.5)
    resumed.load_state_dict(state)
    q.grad = torch.tensor(GRADIENTS[2], dtype=torch.float64)
    resumed.step()
    assert torch.equal(q.detach(), whole[2])


def test_a_closure_is_evaluated_and_its_loss_returned():
    p = nn.Parameter(torch.ones(2))
    optimizer = SplitSGD([p], 0.1, threshold=1.0)

    def closure():
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2.0
    assert not torch.equal(p.detach(), torch.ones(2))


def test_a_parameter_without_a_gradient_stays():
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = SplitSGD([p, q], 0.1, threshold=1.0)
    p.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(q.detach(), torch.ones(2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": 0.0}, r"lr must be positive, got 0\.0"),
        ({"sign_lr": -1.0}, r"sign_lr must be positive, got -1\.0"),
        ({"threshold": math.inf}, "threshold must be positive, got inf"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1\.0"),
        ({"threshold_quantile": 0.0}, r"must lie in \(0, 1\), got 0\.0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SplitSGD([nn.Parameter(torch.ones(2))], **{"lr": 0.1} | arguments)


def test_a_quantile_of_zero_is_refused_with_what_to_do():
    p = nn.Parameter(torch.ones(10))
    p.grad = torch.zeros(10)
    with pytest.raises(ValueError, match="pass threshold="):
        SplitSGD([p], 0.1).step()
