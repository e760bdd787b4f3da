"""DeepMLP: its initialisations and what they do to gradients, and the rule that places eta."""

import math

import pytest
import torch
import torch.nn.functional as F

from etude.training.gradient_noise import DeepMLP, GradientNoise, annealed_std, critical_eta


def test_shapes_and_inputs_of_any_shape():
    model = DeepMLP(in_dim=12, out_dim=5, hidden=7, depth=3)
    assert len(model.hidden) == 3
    assert model(torch.randn(4, 12)).shape == (4, 5)
    x = torch.randn(4, 3, 2, 2)
    assert torch.equal(model(x), model(x.flatten(1)))


def test_the_network_equals_a_plain_stack_of_layers():
    model = DeepMLP(in_dim=6, out_dim=3, hidden=5, depth=4)
    x = torch.randn(2, 6)
    expected = x
    for layer in model.hidden:
        expected = (expected @ layer.weight.T + layer.bias).clamp(min=0)
    torch.testing.assert_close(model(x), expected @ model.readout.weight.T + model.readout.bias)


@pytest.mark.parametrize(("init", "std"), [("simple", 0.1), ("simple", 0.3), ("he", None)])
def test_weights_have_the_declared_spread_and_biases_are_zero(init, std):
    torch.manual_seed(0)
    model = DeepMLP(in_dim=300, out_dim=300, hidden=300, depth=3, init=init, std=std or 0.1)
    for layer in (*model.hidden, model.readout):
        assert layer.weight.std().item() == pytest.approx(std or math.sqrt(2 / 300), rel=0.02)
        assert torch.equal(layer.bias, torch.zeros_like(layer.bias))


def test_zero_init_without_noise_moves_the_output_bias_alone():
    model = DeepMLP(in_dim=8, out_dim=3, hidden=6, depth=20, init="zero")
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    x, y = torch.randn(60, 8, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3
    y[:10] = 0  # so that the class prior is not uniform
    for _ in range(200):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        moved = {name for name, parameter in model.named_parameters() if bool(parameter.grad.ne(0).any())}
        assert moved <= {"readout.bias"}
    prior = y.bincount() / len(y)
    assert loss.item() == pytest.approx(-(prior * prior.log()).sum().item(), abs=1e-5)


def test_he_init_keeps_the_scale_of_the_signal_and_a_simple_init_loses_it():
    torch.manual_seed(0)
    x = torch.randn(256, 400)
    norms = {}
    for init in ("he", "simple"):
        hidden = x
        for layer in DeepMLP(in_dim=400, out_dim=10, hidden=400, init=init, std=0.02).hidden:
            hidden = layer(hidden).relu()
        norms[init] = hidden.square().mean().sqrt().item()
    assert 0.3 < norms["he"] < 3
    # Each layer scales by sqrt(width / 2) * std = 0.283.
    assert norms["simple"] == pytest.approx(norms["he"] * (math.sqrt(200) * 0.02) ** 20, rel=1)


def test_critical_eta_carries_zero_weights_to_the_scale_where_signals_flow():
    width, lr, steps = 200, 0.1, 400
    eta = critical_eta(width, lr, steps)
    weight = torch.nn.Parameter(torch.zeros(width, width))
    optimizer = torch.optim.SGD([weight], lr=lr)
    GradientNoise(optimizer, eta=eta, generator=torch.Generator().manual_seed(0))
    for _ in range(steps):
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
    walked = lr**2 * sum(annealed_std(t, eta) ** 2 for t in range(steps))
    assert weight.var().item() == pytest.approx(walked, rel=0.05)
    # The integral that stands for the sum in the rule is a little above it.
    assert walked == pytest.approx(2 / width, rel=0.06)


def test_critical_eta_is_the_published_arithmetic():
    assert critical_eta(32, 0.1, 2970) == pytest.approx((2 / 32) * 0.45 / (0.01 * 2970**0.45), rel=1e-12)


def test_a_saved_model_loads_with_its_arguments(tmp_path):
    model = DeepMLP(in_dim=6, out_dim=3, hidden=5, depth=4, init="simple", std=0.2)
    model.save_pretrained(tmp_path)
    x = torch.randn(2, 6)
    assert torch.equal(DeepMLP.from_pretrained(tmp_path)(x), model(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_dim": 0}, "in_dim must be at least 1, got 0"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"init": "xavier"}, "init must be one of he, simple, zero, got 'xavier'"),
        ({"std": 0.0}, "std must be positive, got 0.0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DeepMLP(**{"in_dim": 4, "out_dim": 2, **arguments})


@pytest.mark.parametrize("arguments", [(0, 0.1, 10), (8, -0.1, 10), (8, 0.1, 0), (8, 0.1, 10, 1.0)])
def test_critical_eta_refuses_what_it_cannot_answer(arguments):
    with pytest.raises(ValueError):
        critical_eta(*arguments)
