"""Scales of generated weights at the start."""

import pytest
import torch
from torch import nn

from etude.transfer.hypernetworks import HypernetDesign, Hypernetwork, TargetSpec


def target():
    return nn.Sequential(nn.Linear(60, 80), nn.ReLU(), nn.Linear(80, 100), nn.ReLU(), nn.Linear(100, 40))


@pytest.mark.parametrize(
    ("generation", "more"),
    [
        ("once", {}),
        ("multiple", {"split": "layer"}),
        ("component", {}),
        ("chunk", {"chunk_size": 3_000}),
        ("component_chunk", {"chunk_size": 2_500}),
    ],
)
@pytest.mark.parametrize("init", ["hyperfan", "hyperfan_out"])
def test_the_second_moment_of_each_layer_follows_its_fan(generation, more, init):
    torch.manual_seed(0)
    hidden = (64, 1000) if generation != "multiple" else (64, 3000)
    design = HypernetDesign("task", generation)
    net = Hypernetwork(target(), design, num_conditions=20, hidden=hidden, init=init, **more)
    with torch.no_grad():
        generated = net(torch.arange(20))
    for tensor in net.spec.tensors:
        found = float(generated[tensor.name].square().mean())
        if tensor.role == "weight":
            fan = tensor.fan_in if init == "hyperfan" else tensor.fan_out
            assert found == pytest.approx(tensor.gain / fan, rel=0.1)
        elif not design.piecewise:
            assert found == 0.0
    assert [tensor.gain for tensor in net.spec.tensors if tensor.role == "weight"] == [2.0, 2.0, 1.0]


def test_noise_is_calibrated_over_draws():
    torch.manual_seed(0)
    design = HypernetDesign("noise", "once", static_input=False)
    net = Hypernetwork(nn.Sequential(nn.Linear(60, 80), nn.ReLU()), design, hidden=(1000,))
    with torch.no_grad():
        weight = net(net.draw(500))["0.weight"]
    assert float(weight.square().mean()) == pytest.approx(2 / 60, rel=0.1)


def test_calibration_takes_the_conditions_it_is_given():
    torch.manual_seed(0)
    design = HypernetDesign("task", "once", static_input=False)
    net = Hypernetwork(target(), design, hidden=(1000,))
    conditions = 7 * torch.randn(200, 8)
    net.calibrate(conditions)
    with torch.no_grad():
        weight = net(conditions)["2.weight"]
    assert float(weight.square().mean()) == pytest.approx(2 / 80, rel=0.1)


def test_scaled_multiplies_by_five_over_the_root_of_the_layers_own_fan():
    design = HypernetDesign("task", "chunk")
    nets = []
    for init in ("default", "scaled"):
        torch.manual_seed(0)
        nets.append(Hypernetwork(target(), design, num_conditions=1, chunk_size=3_000, init=init))
    plain, scaled = (net(0) for net in nets)
    for name, fan in (("0.weight", 60), ("0.bias", 60), ("2.weight", 80), ("4.bias", 100)):
        assert torch.allclose(scaled[name], plain[name] * 5 / fan**0.5, rtol=1e-5)


def test_norms_start_from_one_and_zero():
    net = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 2))
    hyper = Hypernetwork(net, HypernetDesign("task", "once"), num_conditions=2, hidden=(16,))
    generated = hyper(0)
    assert torch.equal(generated["1.weight"], torch.ones(6))
    assert torch.equal(generated["1.bias"], torch.zeros(6))
    plain = Hypernetwork(net, HypernetDesign("task", "once"), num_conditions=2, hidden=(16,), init="default")
    assert not torch.equal(plain(0)["1.weight"], torch.ones(6))
    assert float((plain(0)["1.weight"] - 1).detach().abs().mean()) < 1


def test_fans_and_gains_are_those_of_the_layers():
    net = nn.Sequential(nn.Conv2d(3, 8, 5), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    tensors = {tensor.name: tensor for tensor in TargetSpec.from_module(net).tensors}
    assert (tensors["0.weight"].fan_in, tensors["0.weight"].fan_out, tensors["0.weight"].gain) == (75, 200, 2.0)
    assert tensors["0.bias"].fan_in == 75
    assert (tensors["1.weight"].role, tensors["1.bias"].role) == ("norm_scale", "norm_shift")
    assert tensors["4.weight"].gain == 1.0
    changed = TargetSpec.from_module(net, gains={"4.*": 3.0})
    assert {tensor.name: tensor.gain for tensor in changed.tensors}["4.weight"] == 3.0


@pytest.mark.parametrize("generation", ["once", "multiple"])
@pytest.mark.parametrize("init", ["default", "hyperfan"])
def test_spectral_norm_bounds_the_layers_below_the_heads(generation, init):
    torch.manual_seed(0)
    net = Hypernetwork(
        target(), HypernetDesign("task", generation), num_conditions=1, hidden=(16, 16), spectral_norm=True, init=init
    )
    for _ in range(50):
        net.flat(0)
    heads = net.head.outs()
    below = [part for part in net.modules() if isinstance(part, nn.Linear) and part not in heads]
    below = [part for part in below if not any(part is each for each in net.target.modules())]
    assert len(below) == (2 if generation == "once" else 3)
    for layer in below:
        assert float(torch.linalg.matrix_norm(layer.weight.detach(), 2)) == pytest.approx(1.0, abs=0.05)
    weight = net(0)["2.weight"].detach()
    if (generation, init) == ("once", "hyperfan"):
        assert float(weight.square().mean()) == pytest.approx(2 / 80, rel=0.15)


def test_dropout_draws_hidden_units_anew_and_is_off_at_test():
    net = Hypernetwork(target(), HypernetDesign("task", "multiple"), num_conditions=1, hidden=(16, 16), dropout=0.5)
    assert not torch.equal(net.train().flat(0), net.flat(0))
    assert torch.equal(net.eval().flat(0), net.flat(0))


def test_no_stored_condition_starts_with_all_hidden_units_off():
    for seed in range(40):
        torch.manual_seed(seed)
        net = Hypernetwork(nn.Linear(3, 2), HypernetDesign("task", "once"), num_conditions=3, hidden=(4,))
        assert bool((net.hidden(torch.arange(3))[0] > 0).flatten(1).any(dim=1).all())
    with pytest.warns(UserWarning, match=r"of 60 conditions switch all hidden units off"):
        Hypernetwork(nn.Linear(3, 2), HypernetDesign("task", "once"), num_conditions=60, hidden=(1,))
