"""Gaussian averages and critical points: against closed forms, limits and the published constants."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from etude.nn.gaussian import gaussian_expectation
from etude.theory.pdlt import (
    Activation,
    NoCriticalPoint,
    as_activation,
    classify,
    correlation_length,
    critical_init,
    gauss_avg,
    moments,
    plot_susceptibilities,
    susceptibilities,
)

DOUBLE = torch.float64


def swish(z):
    return z * torch.sigmoid(z)


@pytest.mark.parametrize(
    ("activation", "C_b", "C_W", "K_star", "nu"),
    [
        (nn.GELU(), 0.17292239, 1.98305826, 3.5615528, 4.904),
        (nn.SiLU(), 0.55514317, 1.98800468, 14.3201736, 4.923),
        (swish, 0.55514317, 1.98800468, 14.3201736, 4.923),
    ],
)
def test_half_stable_constants_are_those_of_dense_quadrature(activation, C_b, C_W, K_star, nu):
    point = critical_init(activation)
    assert point.cls == "half-stable"
    assert point.K_star == pytest.approx(K_star, abs=1e-7)
    assert float(point.C_W) == pytest.approx(C_W, abs=1e-8)
    assert point.C_b == pytest.approx(C_b, abs=1e-8)
    assert point.nu == pytest.approx(nu, abs=5e-4)
    assert max(point.errors.values()) < 1e-11


def test_the_inputs_that_meet_the_fixed_point_are_of_the_stated_size():
    for activation, size in ((nn.GELU(), 1.70879), (nn.SiLU(), 6.92404)):
        point = critical_init(activation)
        g = float(moments(activation, point.K_star)["s2", 0].value)
        assert g == pytest.approx(size, abs=5e-6)
        assert point.C_b + point.C_W * g == pytest.approx(point.K_star, rel=1e-12)


@pytest.mark.parametrize("activation", [nn.GELU(), nn.SiLU(), nn.Mish()])
def test_both_susceptibilities_are_one_at_the_fixed_point(activation):
    point = critical_init(activation)
    chi = susceptibilities(activation, point.C_W, point.K_star)
    assert float(chi.par) == pytest.approx(1, abs=1e-11)
    assert float(chi.perp) == pytest.approx(1, abs=1e-11)


def test_the_scale_invariant_class_is_criticality_at_any_variance():
    for activation, nu in ((nn.ReLU(), 5.0), (nn.Identity(), 2.0), (torch.abs, 2.0)):
        point = critical_init(activation)
        assert point.cls == "scale-invariant"
        assert point.C_b == 0
        assert math.isnan(point.K_star)
        assert point.nu == pytest.approx(nu, abs=1e-12)
        chi = susceptibilities(activation, point.C_W, torch.tensor([1e-3, 1.0, 1e3], dtype=DOUBLE))
        assert torch.allclose(chi.par, torch.ones(3, dtype=DOUBLE), atol=1e-11)
        assert torch.allclose(chi.perp, torch.ones(3, dtype=DOUBLE), atol=1e-12)
    assert critical_init(nn.ReLU()).C_W == 2
    slope = 0.2
    leaky = critical_init(nn.LeakyReLU(slope))
    A2, A4 = (1 + slope**2) / 2, (1 + slope**4) / 2
    assert float(leaky.C_W) == pytest.approx(1 / A2, rel=1e-14)
    assert leaky.nu == pytest.approx(3 * A4 / A2**2 - 1, rel=1e-13)


@pytest.mark.parametrize(
    ("activation", "C_W", "a1", "p_perp"),
    [
        (torch.tanh, 1.0, -2.0, 1.0),
        (torch.sin, 1.0, -1.0, 1.0),
        (torch.erf, math.pi / 4, -2.0, 1.0),
        # a1 = s3 / s1 + (3/4) (s2 / s1)^2 = -2 + 0.12, b1 = -2 + 0.16.
        (lambda z: torch.tanh(z) + 0.2 * torch.tanh(z) ** 2, 1.0, -1.88, 1.84 / 1.88),
    ],
)
def test_the_class_of_tanh_follows_from_its_series(activation, C_W, a1, p_perp):
    point = critical_init(activation)
    assert point.cls == "K*=0"
    assert (point.C_b, point.K_star) == (0, 0)
    assert float(point.C_W) == pytest.approx(C_W, rel=1e-13)
    assert point.a1 == pytest.approx(a1, rel=1e-12)
    assert point.p_perp == pytest.approx(p_perp, rel=1e-12)
    assert point.nu == pytest.approx(2 / 3, rel=1e-12)


def test_kinked_activations_at_zero_belong_to_the_class_too():
    # K+ = K - c K^(3/2) for the ELU: chi_perp = 1 - 2 / l by the same argument, and no a1.
    elu = critical_init(nn.ELU())
    assert elu.cls == "K*=0"
    assert math.isnan(elu.a1)
    assert elu.p_perp == pytest.approx(2, abs=0.01)
    # The SELU has slopes s and 1.673 s at zero: C_W = 1 / A_2.
    scale, alpha = 1.0507009873554805, 1.6732632423543772
    selu = critical_init(nn.SELU())
    assert float(selu.C_W) == pytest.approx(2 / (scale**2 * (1 + alpha**2)), rel=1e-12)
    assert classify(nn.Hardtanh()) == "K*=0"


@pytest.mark.parametrize(
    ("activation", "reason"),
    [
        (torch.sigmoid, r"sigma\(0\) = 0.5"),
        (nn.Softplus(), r"sigma\(0\) = 0.6931"),
        (torch.cos, r"sigma\(0\) = 1 "),
        (torch.exp, r"at no K"),
        (lambda z: z**3, r"sigma'\(0\) = 0"),
        (torch.zeros_like, "zero everywhere"),
    ],
)
def test_an_activation_without_a_critical_point_is_refused_with_the_reason(activation, reason):
    with pytest.raises(NoCriticalPoint, match=reason):
        critical_init(activation)


def test_moments_of_the_relu_are_exact_where_hermite_rules_are_not():
    m = moments(torch.relu, 0.7)
    expected = {("s2", 0): 0.35, ("s2", 1): 0.5, ("d2", 0): 0.5, ("s4", 0): 1.5 * 0.49, ("s2d2", 0): 0.35}
    for key, value in expected.items():
        assert float(m[key].value) == pytest.approx(value, abs=1e-14)
    assert abs(float(m["s2", 2].value)) < 1e-14
    nodes, weights = np.polynomial.hermite_e.hermegauss(101)
    naive = (weights / weights.sum() * (nodes > 0)).sum()
    assert abs(naive - 0.5) > 0.03  # what a rule with a node on the kink makes of <s'^2>


def test_derivatives_in_the_variance_match_differences_and_closed_forms():
    K, step = 0.8, 1e-4
    low, here, high = (moments(torch.tanh, K + k * step) for k in (-1, 0, 1))
    for base in ("s2", "d2"):
        first = (high[base, 0].value - low[base, 0].value) / (2 * step)
        second = (high[base, 1].value - low[base, 1].value) / (2 * step)
        assert float(here[base, 1].value) == pytest.approx(float(first), rel=1e-7)
        assert float(here[base, 2].value) == pytest.approx(float(second), rel=1e-7)
    # <sin^2> = (1 - exp(-2 K)) / 2 and <cos^2> = (1 + exp(-2 K)) / 2.
    m = moments(torch.sin, K)
    decay = math.exp(-2 * K)
    for order, factor in enumerate((None, 1.0, -2.0, 4.0)):
        sine = (1 - decay) / 2 if factor is None else factor * decay
        cosine = (1 + decay) / 2 if factor is None else -factor * decay
        for base, value in (("s2", sine), ("d2", cosine)):
            assert abs(float(m[base, order].value) - value) <= float(m[base, order].error) + 1e-14


@pytest.mark.parametrize("K", [1e-9, 1e-7, 3e-6, 1e-5, 3e-4])
def test_small_variances_keep_their_digits_and_error_bounds(K):
    m = moments(torch.sin, K)
    exact = {
        ("s2", 0): -math.expm1(-2 * K) / 2, ("s2", 1): math.exp(-2 * K), ("s2", 2): -2 * math.exp(-2 * K),
        ("d2", 1): -math.exp(-2 * K), ("d2", 2): 2 * math.exp(-2 * K),
    }  # fmt: skip
    for key, value in exact.items():
        assert abs(float(m[key].value) - value) <= float(m[key].error) + 2e-16
        assert float(m[key].error) < 1e-6 * abs(value)


def test_the_series_is_not_believed_at_a_kink():
    # At zero the ELU's series is that of z, while g'(K) = 1 - O(sqrt K).
    assert 1 - float(moments(nn.ELU(), 1e-6)["s2", 1].value) == pytest.approx(1.2e-3, rel=0.01)


def test_gauss_avg_takes_one_variance_or_several():
    K = torch.tensor([[0.5, 2.0]], dtype=DOUBLE)
    value, error = gauss_avg(lambda z: z**4, K)
    assert value.shape == error.shape == (1, 2)
    assert torch.allclose(value, 3 * K**2, rtol=1e-13)
    one, _ = gauss_avg(torch.cos, 0.5)
    assert float(one) == pytest.approx(math.exp(-0.25), rel=1e-14)
    assert float(one) == pytest.approx(float(gaussian_expectation(lambda u: torch.cos(math.sqrt(0.5) * u)).value))


def test_off_criticality_gradients_change_by_e_in_a_correlation_length():
    found = correlation_length(torch.relu, 0.0, 1.0)
    assert found.chi_perp == pytest.approx(0.5, abs=1e-12)
    assert found.length == pytest.approx(1 / math.log(2), rel=1e-12)
    assert correlation_length(torch.relu, 0.0, 2.0).length == math.inf
    # tanh at C_W = 4: the fixed point of K = 4 <tanh^2>, and chaos.
    found = correlation_length(torch.tanh, 0.0, 4.0)
    K = 1.0
    for _ in range(100):
        K = 4 * float(gauss_avg(lambda z: torch.tanh(z) ** 2, K, tol=1e-10).value)
    slope = float(gauss_avg(lambda z: (1 - torch.tanh(z) ** 2) ** 2, K).value)
    assert float(found.K) == pytest.approx(K, rel=1e-9)
    assert found.chi_perp == pytest.approx(4 * slope, rel=1e-8)
    assert found.chi_perp > 1
    assert 0 < found.error < 1e-6
    # tanh below: the signal dies, and chi_perp is C_W.
    assert correlation_length(torch.tanh, 0.0, 0.5).chi_perp == pytest.approx(0.5, rel=1e-8)


def test_a_given_derivative_serves_and_a_wrong_one_is_refused():
    given = Activation(torch.tanh, derivative=lambda z: 1 - torch.tanh(z) ** 2)
    assert float(critical_init(given).C_W) == pytest.approx(1, abs=1e-13)
    assert as_activation(given) is given
    with pytest.raises(ValueError, match="the derivative of the activation is not that of the function"):
        critical_init(Activation(torch.tanh, derivative=torch.cos))


def test_bad_input_is_refused_with_its_value():
    with pytest.raises(ValueError, match="that jumps has infinite"):
        critical_init(torch.sign)
    with pytest.raises(ValueError, match=r"positive and finite, got K = -1"):
        moments(torch.tanh, -1.0)
    with pytest.raises(ValueError, match=r"got K = 0"):
        gauss_avg(torch.tanh, 0.0)
    with pytest.raises(ValueError, match="must be finite, at z = -1 it is nan"):
        critical_init(torch.log)
    with pytest.raises(ValueError, match=r"slower than exp\(z\^2 / \(4 K\)\)"):
        moments(lambda z: torch.exp(z**2 / 4.5).clamp(max=1e100), 1.0)
    with pytest.raises(ValueError, match="must be elementwise"):
        as_activation(lambda z: z.sum(0, keepdim=True).repeat(2))
    with pytest.raises(TypeError):
        Activation(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="C_W"):
        susceptibilities(torch.tanh, 0.0, 1.0)


def test_susceptibilities_are_drawn_with_the_critical_point():
    figure = plot_susceptibilities({"GELU": nn.GELU(), "sigmoid": torch.sigmoid})
    assert len(figure.axes[0].lines) == 5
