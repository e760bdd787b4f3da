"""The recursions to first order in 1 / width: closed forms, the reference tables, and their limits."""

import math

import pytest
import torch
from torch import nn

from etude.theory.pdlt import (
    Activation,
    FiniteWidthFlow,
    critical_init,
    network_fluctuation,
    optimal_aspect_ratio,
    plot_flow,
    relative_fluctuation,
    scale_invariant_variance,
)
from etude.theory.pdlt.bounded import Bounded

DOUBLE = torch.float64


def test_the_table_of_tanh_at_depth_five():
    table = FiniteWidthFlow(torch.tanh, C_b=0.0, C_W=1.0).run(0.5, 2.0, 5)
    reference = {"K": 0.111, "V": 0.034, "Theta": 3.832, "D": -0.250, "F": 0.329, "A": 2.292, "B": 13.085}
    for name, value in reference.items():
        assert float(table[name].value[-1]) == pytest.approx(value, abs=5e-4), name
    for name in table.errors:
        assert float(table[name].error.max()) < 1e-12


def test_the_line_of_gelu_at_its_fixed_point():
    point = critical_init(nn.GELU())
    table = FiniteWidthFlow(nn.GELU(), point.C_b, point.C_W).run(point.K_star, 2.0, 5)
    for name, value in {"V": 248.8, "D": 434.3, "F": 173.8, "A": 962.6, "B": 378.4}.items():
        assert float(table[name].value[-1]) == pytest.approx(value, abs=0.05), name
    assert float(table.Theta[-1]) == pytest.approx(12.835, abs=5e-4)
    # The flow stays where it is, and V grows by nu K*^2 a layer.
    assert torch.allclose(table.K, torch.full((5,), point.K_star, dtype=DOUBLE), rtol=1e-12)
    assert torch.allclose(table.relative_variance, point.nu * torch.arange(5, dtype=DOUBLE), rtol=1e-10)


@pytest.mark.parametrize(("activation", "C_W", "nu"), [(torch.relu, 2.0, 5), (nn.Identity(), 1.0, 2)])
def test_scale_invariant_networks_have_a_linear_vertex_and_no_metric_correction(activation, C_W, nu):
    K = 0.8
    table = FiniteWidthFlow(activation, 0.0, C_W).run(K, 1.0, 12)
    assert torch.allclose(table.V, nu * K**2 * torch.arange(12, dtype=DOUBLE), rtol=0, atol=1e-10)
    assert float(table.G1.abs().max()) < 1e-10


def test_deep_linear_networks_follow_their_closed_forms():
    K, depth = 0.6, 8
    table = FiniteWidthFlow(nn.Identity(), 0.0, 1.0, lambda_b=0.0, lambda_W=1.0).run(K, K, depth)
    theta = K * torch.arange(1, depth + 1, dtype=DOUBLE)
    assert torch.allclose(table.Theta, theta, rtol=1e-13)
    F = torch.cat([torch.zeros(1, dtype=DOUBLE), (K * theta[:-1]).cumsum(0)])
    B = torch.cat([torch.zeros(1, dtype=DOUBLE), theta[:-1].square().cumsum(0)])
    assert torch.allclose(table.F, F, rtol=1e-12)
    assert torch.allclose(table.B, B, rtol=1e-12)


def test_the_first_layer_and_infinite_width_have_no_corrections():
    table = FiniteWidthFlow(torch.tanh, 0.1, 1.2).run(0.5, 2.0, 6)
    for name in ("V", "G1", "D", "F", "A", "B", "T1"):
        assert float(table[name].value[0]) == 0
    wide = table.at_width(10**12)
    assert wide.kernel == pytest.approx(float(table.K[-1]), rel=1e-9)
    assert wide.relative < 1e-11


def test_tanh_decays_and_fluctuates_as_its_class_says():
    depth = 160
    table = FiniteWidthFlow(torch.tanh, 0.0, 1.0).run(0.5, depth=depth)
    # 1 / K -> 2 l and V / K^2 -> (2 / 3) l; differences leave out the constants and most of the logarithms.
    half = depth // 2
    assert float(1 / table.K[-1] - 1 / table.K[half - 1]) / half == pytest.approx(2, rel=0.04)
    slope = float(table.relative_variance[-1] - table.relative_variance[half - 1]) / half
    assert slope == pytest.approx(2 / 3, rel=0.04)


def naive_step(x, g, h, C, lW, lb, Cb):
    """The recursions written out once more, for numbers, with averages by a plain trapezoid."""
    g0, g1, g2 = g
    h0, h1, h2, s22, s4, d4 = h
    par, perp = C * g1, C * h0
    V = C**2 * (s4 - g0**2) + par**2 * x["V"]
    shift = g1 * x["G1"] + g2 * x["V"] / 2
    cst = (s22 - g0 * h0) * x["Theta"] + g1 * h1 * x["V"] * x["Theta"] + h0 * g1 * x["D"]
    return {
        "K": Cb + C * g0, "Theta": lb + lW * g0 + perp * x["Theta"], "V": V, "G1": C * shift,
        "F": par**2 * x["F"] + C**2 * s22 * x["Theta"], "B": perp**2 * x["B"] + C**2 * d4 * x["Theta"] ** 2,
        "D": lW / C * V + C**2 * cst,
        "A": lW**2 * V / C**2 + 2 * lW * C * cst + C**2 * (
            (d4 - h0**2) * x["Theta"] ** 2 + h1**2 * x["V"] * x["Theta"] ** 2 + 2 * h0 * h1 * x["Theta"] * x["D"]
            + h0**2 * x["A"]
        ),
        "T1": perp * x["T1"] + lW * shift + C * (h1 * x["G1"] + h2 * x["V"] / 2) * x["Theta"]
        + C * h1 * (x["D"] + 2 * x["F"]),
    }  # fmt: skip


def test_the_flow_equals_a_naive_one_with_other_rates_and_biases():
    C, Cb, lW, lb = 1.3, 0.2, 0.7, 0.4
    x = {"K": 0.9, "Theta": 1.5, **dict.fromkeys(("V", "G1", "D", "F", "A", "B", "T1"), 0.0)}
    table = FiniteWidthFlow(torch.tanh, Cb, C, lambda_b=lb, lambda_W=lW).run(0.9, 1.5, 5)
    u = torch.linspace(-12, 12, 20_001, dtype=DOUBLE)
    weight = torch.exp(-u.square() / 2) / math.sqrt(2 * math.pi) * float(u[1] - u[0])
    he2, he4 = u**2 - 1, u**4 - 6 * u**2 + 3
    for layer in range(1, 5):
        K = x["K"]
        s = torch.tanh(math.sqrt(K) * u)
        d = 1 - s**2

        def mean(f):
            return float((weight * f).sum())

        g = mean(s**2), mean(s**2 * he2) / (2 * K), mean(s**2 * he4) / (4 * K**2)
        h = mean(d**2), mean(d**2 * he2) / (2 * K), mean(d**2 * he4) / (4 * K**2)
        x = naive_step(x, g, (*h, mean(s**2 * d**2), mean(s**4), mean(d**4)), C, lW, lb, Cb)
        for name, value in x.items():
            assert float(table[name].value[layer]) == pytest.approx(value, rel=1e-9, abs=1e-12), (name, layer)


def test_unequal_widths_rescale_what_comes_from_below():
    flow = FiniteWidthFlow(torch.tanh, 0.0, 1.0)
    table = flow.run(0.5, 2.0, 4, widths=[32, 128, 32])
    for value, reference in zip(table.V[1:].tolist(), (0.0649, 0.0965, 0.0322)):
        assert value == pytest.approx(reference, abs=6e-5)
    equal = flow.run(0.5, 2.0, 4, widths=[32, 32, 32])
    for name in equal.values:
        assert torch.equal(equal[name].value, flow.run(0.5, 2.0, 4)[name].value)
    # The first width alone counts for the second layer, and the last for what is left of it.
    wide = flow.run(0.5, 2.0, 3, widths=[32, 10**9])
    narrow = flow.run(0.5, 2.0, 3, widths=[32, 32])
    only_first = float(wide.V[-1]) / 1e9 * 32
    assert only_first == pytest.approx(
        float(narrow.V[-1]) - float(flow.run(float(narrow.K[1]), depth=2).V[-1]), rel=1e-6
    )


def test_a_batch_of_inputs_is_the_inputs_one_by_one():
    flow = FiniteWidthFlow(nn.GELU(), 0.17, 1.98)
    K1, theta1 = torch.tensor([0.5, 4.0], dtype=DOUBLE), torch.tensor([2.0, 3.0], dtype=DOUBLE)
    both = flow.run(K1, theta1, 4)
    for place in range(2):
        single = flow.run(float(K1[place]), float(theta1[place]), 4)
        for name in single.values:
            assert torch.allclose(both[name].value[:, place], single[name].value, rtol=1e-12)
    with pytest.raises(ValueError, match="one input"):
        both.at_width(64)


def test_rates_may_differ_from_layer_to_layer():
    flat = FiniteWidthFlow(torch.tanh, 0.0, 1.0, lambda_W=[1.0, 1.0, 1.0]).run(0.5, 2.0, 4)
    assert torch.equal(flat.A, FiniteWidthFlow(torch.tanh, 0.0, 1.0).run(0.5, 2.0, 4).A)
    with pytest.raises(ValueError, match=r"3 in all, got 2"):
        FiniteWidthFlow(torch.tanh, 0.0, 1.0, lambda_W=[1.0, 1.0]).run(0.5, 2.0, 4)


def test_error_bounds_tell_what_a_coarse_tolerance_changes():
    fine = FiniteWidthFlow(nn.Hardtanh(), 0.1, 1.5).run(0.5, 2.0, 8)
    coarse = FiniteWidthFlow(nn.Hardtanh(), 0.1, 1.5, tol=1e-5).run(0.5, 2.0, 8)
    for name in fine.values:
        off = (fine[name].value - coarse[name].value).abs()
        # Where a kink meets a panel's end, halving changes less than it should.
        assert bool((off <= 10 * coarse[name].error + fine[name].error).all()), name
    assert float(coarse["A"].error[-1]) > float(fine["A"].error[-1])


def test_bounded_numbers_cover_the_worst_case():
    x, y = (Bounded(torch.tensor(v, dtype=DOUBLE), torch.tensor(e, dtype=DOUBLE)) for v, e in ((2.0, 0.1), (-3.0, 0.2)))
    for made, value in (
        (x * y, [a * b for a in (1.9, 2.1) for b in (-3.2, -2.8)]),
        (x - 2 * y, [a - 2 * b for a in (1.9, 2.1) for b in (-3.2, -2.8)]),
        (y.square() + 1, [b * b + 1 for b in (-3.2, -2.8)]),
        (x.inverse(), [1 / a for a in (1.9, 2.1)]),
    ):
        assert all(abs(v - float(made.value)) <= float(made.error) + 1e-15 for v in value)


def test_the_all_order_variance_of_scale_invariant_networks():
    n = 32
    found = scale_invariant_variance(torch.relu, [n] * 7)
    assert torch.allclose(found, (1 + 5 / n) ** torch.arange(8, dtype=DOUBLE) - 1, rtol=1e-12)
    for layer, value in ((2, 0.156), (4, 0.546), (8, 1.763)):
        assert float(found[layer - 1]) == pytest.approx(value, abs=5.1e-4)
    assert torch.allclose(
        scale_invariant_variance(nn.Identity(), [4, 8])[1:], torch.tensor([1.5, 1.5 * 1.25], dtype=DOUBLE) - 1
    )
    # To first order in 1 / n it is the recursion.
    table = FiniteWidthFlow(torch.relu, 0.0, 2.0).run(1.0, depth=5, widths=[10**6] * 4)
    assert torch.allclose(scale_invariant_variance(torch.relu, [10**6] * 4), table.relative_variance / 1e6, rtol=1e-4)
    with pytest.raises(ValueError, match="not scale-invariant"):
        scale_invariant_variance(torch.tanh, [4])


def test_aspect_ratio_and_fluctuations_of_a_users_own_network():
    assert optimal_aspect_ratio(5, 10) == pytest.approx(4 / 250)
    assert optimal_aspect_ratio(2 / 3, 1) == pytest.approx(4 / (23 * 2 / 3))
    sizes = [100, 50, 200]
    found = relative_fluctuation(torch.relu, sizes)
    assert float(found.first_order.value) == pytest.approx(5 * sum(1 / n for n in sizes), rel=1e-12)
    assert found.nu_r == pytest.approx(5 * sum(1 / n for n in sizes), rel=1e-12)
    assert found.all_orders == pytest.approx(1.05 * 1.1 * 1.025 - 1, rel=1e-12)
    model = nn.Sequential(
        nn.Linear(7, 100), nn.ReLU(), nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 200), nn.ReLU(), nn.Linear(200, 3)
    )
    assert network_fluctuation(model, nn.ReLU()).all_orders == found.all_orders
    gelu = relative_fluctuation(nn.GELU(), [64] * 4)
    assert float(gelu.first_order.value) == pytest.approx(gelu.nu_r, rel=1e-9)
    assert math.isnan(gelu.all_orders)
    with pytest.raises(ValueError, match="n_out"):
        optimal_aspect_ratio(5, 0)
    with pytest.raises(ValueError, match="nu must be positive"):
        optimal_aspect_ratio(0, 1)


def test_a_network_deeper_than_wide_is_warned_of():
    with pytest.warns(UserWarning, match="depth / width is above 1"):
        relative_fluctuation(torch.relu, [4] * 5)
    table = FiniteWidthFlow(torch.relu, 0.0, 2.0).run(1.0, 1.0, 9)
    with pytest.warns(UserWarning, match=r"V / \(n K\^2\) = 5"):
        table.at_width(8)


def test_bad_input_is_refused_with_its_value():
    with pytest.raises(ValueError, match=r"C_b.*got -0.1"):
        FiniteWidthFlow(torch.tanh, -0.1, 1.0)
    with pytest.raises(ValueError, match=r"C_W.*got 0"):
        FiniteWidthFlow(torch.tanh, 0.0, 0.0)
    with pytest.raises(ValueError, match="that jumps"):
        FiniteWidthFlow(torch.sign, 0.0, 1.0)
    flow = FiniteWidthFlow(torch.relu, 0.0, 2.0)
    with pytest.raises(ValueError, match=r"got K = 0"):
        flow.run(0.0)
    with pytest.raises(ValueError, match="depth"):
        flow.run(1.0, depth=0)
    with pytest.raises(ValueError, match="not negative, got Theta1 = -1"):
        flow.run(1.0, -1.0)
    with pytest.raises(ValueError, match="widths must be 3"):
        flow.run(1.0, depth=4, widths=[3, 4])
    with pytest.raises(ValueError, match="the kernel explodes"):
        FiniteWidthFlow(torch.relu, 0.0, 1e30).run(1.0, depth=12)
    with pytest.raises(ValueError, match=r"layer must lie in 1..2"):
        flow.run(1.0).at_width(8, layer=3)
    with pytest.raises(AttributeError, match="no 'W'"):
        _ = flow.run(1.0).W


def test_a_flow_prints_and_draws_every_quantity():
    table = FiniteWidthFlow(Activation(torch.tanh), 0.0, 1.0).run(0.5, 2.0, 3)
    assert len(str(table).splitlines()) == 4
    assert len(plot_flow(table, width=64).axes) == 9
