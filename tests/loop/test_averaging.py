import pytest
import torch
from torch import nn

from etude.loop import ExponentialMovingAverage


def weight(model):
    return model.weight.detach().clone()


def test_the_average_follows_equation_1():
    model = nn.Linear(2, 2)
    ema, expected = ExponentialMovingAverage(model, 0.9), weight(model)
    for _ in range(5):
        with torch.no_grad():
            model.weight.add_(1.0)
        ema.update()
        expected = 0.9 * expected + 0.1 * weight(model)
    with ema.applied():
        torch.testing.assert_close(weight(model), expected)


def test_warm_up_begins_with_a_small_decay():
    model = nn.Linear(2, 2)
    ema, start = ExponentialMovingAverage(model, 0.999, warmup=True), weight(model)
    with torch.no_grad():
        model.weight.add_(1.0)
    ema.update()
    with ema.applied():
        torch.testing.assert_close(weight(model), start + 0.9)


def test_the_models_own_weights_come_back():
    model = nn.BatchNorm1d(3)
    ema = ExponentialMovingAverage(model, 0.5)
    with torch.no_grad():
        model.weight.add_(1.0)
        model.running_mean.add_(2.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with ema.applied():
        assert torch.equal(model.running_mean, torch.zeros(3))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_buffers_are_copied():
    model = nn.BatchNorm1d(3)
    ema = ExponentialMovingAverage(model, 0.9)
    model(torch.randn(8, 3) + 5)
    ema.update()
    other = nn.BatchNorm1d(3)
    ema.copy_to(other)
    assert torch.equal(other.running_mean, model.running_mean)
    assert other.num_batches_tracked == 1


def test_the_state_restores_the_average():
    model = nn.Linear(2, 2)
    first, second = ExponentialMovingAverage(model, 0.9), ExponentialMovingAverage(model, 0.9)
    with torch.no_grad():
        model.weight.add_(1.0)
    first.update()
    second.load_state_dict(first.state_dict())
    assert second.updates == 1
    with first.applied():
        expected = weight(model)
    with second.applied():
        assert torch.equal(weight(model), expected)


def test_the_state_of_another_model_is_refused():
    state = ExponentialMovingAverage(nn.Linear(2, 2)).state_dict()
    with pytest.raises(ValueError, match=r"weight has shape \(2, 2\), the model's has \(3, 2\)"):
        ExponentialMovingAverage(nn.Linear(2, 3)).load_state_dict(state)


@pytest.mark.parametrize("decay", [-0.1, 1, 2])
def test_a_decay_outside_its_range_is_refused(decay):
    with pytest.raises(ValueError, match=rf"\[0, 1\), got {decay}"):
        ExponentialMovingAverage(nn.Linear(2, 2), decay)
