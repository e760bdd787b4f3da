import math

import pytest
import torch

from etude.loop import cosine_schedule


def rates(steps, warmup, lr=2.0):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    schedule = cosine_schedule(optimizer, steps, warmup)
    seen = []
    for _ in range(steps + 1):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_the_cosine_goes_from_the_rate_to_zero():
    assert rates(10, 0) == pytest.approx([1 + math.cos(math.pi * k / 10) for k in range(11)])


def test_the_warm_up_rises_linearly_to_the_rate():
    seen = rates(10, 3)
    assert seen[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert seen[10] == pytest.approx(0)


def test_a_warm_up_as_long_as_the_run_is_refused():
    with pytest.raises(ValueError, match="got warmup 5 and steps 5"):
        rates(5, 5)
