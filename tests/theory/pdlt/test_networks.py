"""Ensembles and users' networks: initialisation, learning rates, the empirical NTK, and what samples say."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from etude.theory.pdlt import (
    FiniteWidthFlow,
    NoCriticalPoint,
    as_activation,
    critical_init,
    critical_param_groups,
    empirical_ntk,
    init_critical_,
    learning_rates,
    ntk_contributions,
    plot_aspect_ratio,
    plot_contributions,
    plot_flow,
    sample_ensemble,
    scale_invariant_variance,
)
from etude.theory.pdlt.ensemble import next_layer

DOUBLE = torch.float64


def mlp(sizes, activation, bias=True):
    layers = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after, bias=bias), activation]
    return nn.Sequential(*layers[:-1])


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def test_initialisation_has_the_critical_variances():
    point = critical_init(nn.GELU())
    model = init_critical_(mlp([500, 600, 600, 20], nn.GELU()), nn.GELU(), input_scale=2.0, generator=gen())
    model.requires_grad_(False)
    first, second, last = model[0], model[2], model[4]
    assert float(first.weight.var()) * 500 == pytest.approx((point.K_star - point.C_b) / 2, rel=0.02)
    assert float(second.weight.var()) * 600 == pytest.approx(point.C_W, rel=0.02)
    assert float(last.weight.var()) * 600 == pytest.approx(point.C_W, rel=0.05)
    assert float(torch.cat([first.bias, second.bias]).var()) == pytest.approx(point.C_b, rel=0.15)
    relu = init_critical_(mlp([500, 600, 3], nn.ReLU()), nn.ReLU(), weight_gain=0.5, generator=gen()).requires_grad_(
        False
    )
    assert float(relu[0].weight.var()) * 500 == pytest.approx(1.0, rel=0.02)
    assert float(relu[0].bias.abs().max()) == 0
    gained = init_critical_(mlp([50, 20_000], nn.GELU()), nn.GELU(), bias_gain=3.0, generator=gen()).requires_grad_(
        False
    )
    assert float(gained[0].bias.var()) == pytest.approx(3 * point.C_b, rel=0.03)


def test_signals_keep_their_size_through_a_deep_critical_network():
    x = torch.randn(40, 100, generator=gen(5))
    x = x / x.square().mean(1, keepdim=True).sqrt()
    model = init_critical_(mlp([100] + [1000] * 10, nn.GELU()), nn.GELU(), generator=gen(6))
    with torch.no_grad():
        sizes = [float(model[: 2 * k + 1](x).square().mean()) for k in (0, 4, 9)]
    # Two standard deviations of nu L / n = 0.044.
    assert sizes == pytest.approx([critical_init(nn.GELU()).K_star] * 3, rel=0.42)


def test_initialisation_is_reproducible_and_touches_no_global_state():
    state = torch.get_rng_state()
    one, two = (init_critical_(copy.deepcopy(m), nn.Tanh(), generator=gen(1)) for m in [mlp([5, 6, 2], nn.Tanh())] * 2)
    torch.set_rng_state(state)
    before = torch.rand(1)
    torch.set_rng_state(state)
    init_critical_(one, nn.Tanh(), generator=gen(1))
    assert torch.equal(before, torch.rand(1))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))


def test_networks_beyond_the_theory_are_refused():
    with pytest.raises(NoCriticalPoint):
        init_critical_(mlp([3, 4, 2], nn.Sigmoid()), nn.Sigmoid())
    with pytest.raises(TypeError, match="1 is a BatchNorm1d"):
        init_critical_(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), nn.ReLU())
    with pytest.raises(ValueError, match=r"no nn.Linear: ReLU"):
        init_critical_(nn.ReLU(), nn.ReLU())
    with pytest.raises(ValueError, match="one has 4 outputs, the next 5"):
        init_critical_(nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 2)), nn.ReLU())
    with pytest.raises(ValueError, match=r"C_b = 0.172922"):
        init_critical_(mlp([3, 4, 2], nn.GELU(), bias=False), nn.GELU())
    with pytest.raises(ValueError, match="input_scale must be positive and finite, got 0"):
        init_critical_(mlp([3, 4, 2], nn.ReLU()), nn.ReLU(), input_scale=0)
    with pytest.raises(ValueError, match="lr must be finite and not negative, got -1"):
        critical_param_groups(mlp([3, 4, 2], nn.ReLU()), nn.ReLU(), lr=-1)
    with pytest.raises(ValueError, match="at least 2"):
        sample_ensemble(torch.relu, 1, 3, 10, C_b=0, C_W=2)
    with pytest.raises(ValueError, match="num_networks must be at least 2"):
        sample_ensemble(torch.relu, 8, 3, 1, C_b=0, C_W=2)
    with pytest.raises(ValueError, match="the signal overflows"):
        sample_ensemble(torch.relu, 8, 3, 4, C_b=0, C_W=1e36)
    with pytest.raises(ValueError, match="its output is"):
        empirical_ntk(nn.Sequential(nn.Linear(3, 4), nn.Flatten(0)), torch.ones(2, 3))


def test_every_layer_has_the_same_part_in_the_ntk():
    depth = 30
    # K*=0, with K_l = 1 / (|a1| l) as the class has it: exactly 1 / L and 1 / (|a1| L).
    for activation, a1 in ((torch.tanh, 2.0), (torch.sin, 1.0)):
        rates = learning_rates(activation, depth)
        layer = torch.arange(1, depth + 1, dtype=DOUBLE)
        p = critical_init(activation).p_perp
        carried = (layer / depth) ** p  # prod chi_perp = prod (1 - p / l)
        signal = 1 / (a1 * layer)
        assert torch.allclose(rates.biases * carried, torch.full((depth,), 1 / depth, dtype=DOUBLE))
        assert torch.allclose(rates.weights * signal * carried, torch.full((depth,), 1 / (a1 * depth), dtype=DOUBLE))
    # And in the flow itself, once the first layers are past.
    parts = ntk_contributions(torch.tanh, 0.0, 1.0, 0.5, learning_rates(torch.tanh, 120), input_scale=0.5)
    late = parts[50:]
    assert float(late[:, 0].max() / late[:, 0].min()) < 1.06
    assert float(late[:, 1].max() / late[:, 1].min()) < 1.06
    # chi_perp = 1: exactly.
    point = critical_init(nn.GELU())
    parts = ntk_contributions(nn.GELU(), point.C_b, point.C_W, point.K_star, learning_rates(nn.GELU(), depth))
    assert torch.allclose(parts[:, 0], torch.full((depth,), 1 / depth, dtype=DOUBLE), rtol=1e-9)
    assert torch.allclose(parts[1:, 1], parts[1, 1].expand(depth - 1), rtol=1e-9)


def test_the_parts_add_up_to_the_ntk_and_stay_of_order_one_in_depth():
    flat = learning_rates(nn.ReLU(), 6)
    parts = ntk_contributions(nn.ReLU(), 0.0, 2.0, 1.4, flat, input_scale=0.7)
    flow = FiniteWidthFlow(nn.ReLU(), 0.0, 2.0, lambda_b=1 / 6, lambda_W=1 / 6).run(1.4, (1 + 0.7) / 6, 6)
    assert float(parts.sum()) == pytest.approx(float(flow.Theta[-1]), rel=1e-12)
    totals = [
        float(ntk_contributions(torch.tanh, 0.0, 1.0, 0.5, learning_rates(torch.tanh, depth)).sum())
        for depth in (40, 80, 160)
    ]
    assert max(totals) / min(totals) < 1.1


def test_parameter_groups_carry_the_rates_and_fan_in():
    model = mlp([8, 32, 16, 4], nn.Tanh())
    groups = critical_param_groups(model, nn.Tanh(), lr=0.5)
    rates = learning_rates(nn.Tanh(), 3)
    assert len(groups) == 6
    for place, fan_in in enumerate((8, 32, 16)):
        assert groups[2 * place]["lr"] == pytest.approx(0.5 * float(rates.weights[place]) / fan_in)
        assert groups[2 * place + 1]["lr"] == pytest.approx(0.5 * float(rates.biases[place]))
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    model(torch.randn(3, 8, generator=gen())).square().sum().backward()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    for group, old in zip(groups, before):
        parameter = group["params"][0]
        assert torch.allclose(old - parameter.detach(), group["lr"] * parameter.grad, atol=1e-7)


def test_the_ntk_of_the_sampler_is_the_empirical_ntk_of_the_same_weights():
    model = init_critical_(mlp([6, 10, 8, 5], nn.GELU()), nn.GELU(), generator=gen(3)).double()
    x = torch.randn(3, 6, generator=gen(4), dtype=DOUBLE)
    lambda_b, lambda_W = 0.7, 1.3
    H = empirical_ntk(model, x, lambda_b=lambda_b, lambda_W=lambda_W).diagonal(dim1=0, dim2=1).permute(2, 0, 1)
    z = model[0](x).detach()
    first = lambda_b + lambda_W * x.square().mean(1)
    own = first[:, None, None] * torch.eye(10, dtype=DOUBLE)
    for place in (2, 4):
        W, b = (p.detach().expand(3, *p.shape) for p in (model[place].weight, model[place].bias))
        z, own = next_layer(as_activation(nn.GELU()), z, own, W, b, lambda_b, lambda_W)
    assert torch.allclose(z, model(x), rtol=1e-13)
    assert float((H - own).abs().max()) < 1e-10


def test_the_empirical_ntk_is_a_product_of_gradients_and_blocks_change_nothing(monkeypatch):
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    x, y = (torch.randn(n, 4, generator=gen(n), dtype=DOUBLE) for n in (3, 5))

    def gradient(row, out):
        model.zero_grad()
        model(row[None])[0, out].backward()
        rates = {"0.weight": 0.9 / 4, "0.bias": 0.4, "2.weight": 0.9 / 6, "2.bias": 0.4}
        return torch.cat([(rates[name] ** 0.5 * p.grad).flatten() for name, p in model.named_parameters()])

    naive = torch.stack(
        [torch.stack([torch.stack([torch.stack([gradient(a, i) @ gradient(b, j) for j in range(2)]) for i in range(2)])
                      for b in y]) for a in x]
    )  # fmt: skip
    found = empirical_ntk(model, x, y, lambda_b=0.4, lambda_W=0.9)
    assert torch.allclose(found, naive, rtol=1e-12)
    own = empirical_ntk(model, x)
    monkeypatch.setattr("etude.theory.pdlt.networks._NTK_BYTES", 1)
    assert torch.allclose(empirical_ntk(model, x, y, lambda_b=0.4, lambda_W=0.9), naive, rtol=1e-12)
    assert torch.allclose(empirical_ntk(model, x), own, rtol=1e-12)
    assert torch.allclose(own, empirical_ntk(model, x, x), rtol=1e-12)


def test_one_wide_network_has_the_ntk_of_infinite_width():
    x = torch.randn(1, 16, generator=gen(1))
    size = float(x.square().mean())
    model = init_critical_(mlp([16, 4096, 4096, 1], nn.Tanh()), nn.Tanh(), generator=gen(2))
    theta = float(FiniteWidthFlow(torch.tanh, 0.0, 1.0).run(size, 1 + size, 3).Theta[-1])
    assert float(empirical_ntk(model, x)) == pytest.approx(theta, rel=0.05)


@pytest.mark.parametrize(("activation", "nu"), [(torch.relu, 5.0), (nn.Identity(), 2.0)])
def test_the_all_order_variance_is_that_of_an_ensemble(activation, nu):
    n, depth = 32, 8
    C_W = critical_init(activation).C_W
    found = sample_ensemble(activation, n, depth, 40_000, gen(), C_b=0.0, C_W=C_W)["Khat"]
    expected = scale_invariant_variance(activation, [n] * (depth - 1))
    assert float(expected[1]) == pytest.approx(nu / n)
    assert bool(((found.value - expected).abs() <= 4 * found.error).all())


def test_neurons_drawn_from_their_kernel_are_the_ensemble_of_drawn_weights():
    recipe = {"C_b": 0.2, "C_W": 1.5, "K1": 0.8}
    with_weights, without = (
        sample_ensemble(torch.tanh, [8, 12, 8], 3, 20_000, gen(seed), weights=weights, **recipe)
        for seed, weights in ((0, True), (1, False))
    )
    for name in ("K", "V", "Khat"):
        (one, one_error), (two, two_error) = with_weights[name], without[name]
        assert bool(((one - two).abs() <= 4 * (one_error + two_error)).all()), name
    with pytest.raises(ValueError, match="exclude each other"):
        sample_ensemble(torch.tanh, 8, 2, 10, gen(), with_ntk=True, weights=False, **recipe)


def compare(activation, C_b, C_W, K1, widths, networks, seed, room):
    depth = len(widths)
    found = sample_ensemble(
        activation, widths, depth, networks, gen(seed), C_b=C_b, C_W=C_W, K1=K1, with_ntk=True, Theta1=2.0
    )
    table = FiniteWidthFlow(activation, C_b, C_W).run(K1, 2.0, depth, widths=widths[:-1])
    for name in ("V", "F", "B", "D", "A"):
        value, error = (part[1:] for part in found[name])
        expected = table[name].value[1:]
        assert bool(((value - expected).abs() <= 4 * error + room * expected.abs()).all()), name
    fan_in = torch.tensor([1, *widths[:-1]], dtype=DOUBLE)
    for name, shift in (("K", "G1"), ("Theta", "T1")):
        value, error = found[name]
        expected = table[name].value + table[shift].value / fan_in
        assert bool(((value - expected).abs() <= 4 * error + 1e-5).all()), name
    return table, found


def test_the_recursions_are_those_of_an_ensemble_up_to_second_order():
    # At n = 64 second order is some l / n of first order.
    compare(torch.tanh, 0.0, 1.0, 0.5, [64] * 4, 1_500, 0, 0.1)
    point = critical_init(nn.GELU())
    compare(nn.GELU(), point.C_b, point.C_W, point.K_star, [64] * 3, 1_500, 1, 0.12)


def test_unequal_widths_are_those_of_an_ensemble():
    table, found = compare(torch.tanh, 0.0, 1.0, 0.5, [32, 128, 32, 32], 2_000, 3, 0.08)
    assert len(plot_flow(table, found).axes) == 9


def test_a_wide_ensemble_has_no_vertex_left():
    found = sample_ensemble(torch.tanh, 1024, 3, 400, gen(), C_b=0.0, C_W=1.0, K1=0.5)
    value, error = found["V"]
    assert float(value[-1]) / 1024 < 2e-4
    assert float(value[0]) == pytest.approx(0, abs=4 * float(error[0]))


def test_draws_depend_on_the_generator_alone_and_memory_is_in_parts(monkeypatch):
    recipe = {"C_b": 0.1, "C_W": 1.2, "with_ntk": True}
    one, two = (sample_ensemble(torch.tanh, 6, 3, 50, gen(5), **recipe) for _ in range(2))
    assert all(torch.equal(one.values[name], two.values[name]) for name in one.values)
    steps = []
    monkeypatch.setattr("etude.theory.pdlt.ensemble._CHUNK", 360)
    parts = sample_ensemble(
        torch.tanh, 6, 3, 25, gen(5), progress=lambda done, total: steps.append((done, total)), **recipe
    )
    assert steps == [(10, 25), (20, 25), (25, 25)]
    assert bool(torch.isfinite(parts["A"].value).all())
    with pytest.raises(KeyError, match="no 'T1'"):
        parts["T1"]


def test_ensembles_and_contributions_are_drawn():
    ensemble = sample_ensemble(torch.relu, 16, 4, 200, gen(), C_b=0.0, C_W=2.0)
    assert len(plot_aspect_ratio({"n = 16": ensemble}, nu=5).axes) == 1
    figure = plot_contributions(torch.tanh, 0.5, [("critical", learning_rates(torch.tanh, 10))])
    assert len(figure.axes[0].lines) == 1
    assert math.isfinite(float(ensemble["Khat"].value[-1]))
