"""Dual activations: against Monte-Carlo-free integrals in the plane, closed forms, and precision at both ends."""

import math

import numpy as np
import pytest
import torch

from etude.nn.dual import ErfDual, HermiteDual, LeakyReLUDual, dual_activation

XI = torch.tensor([0.0, 0.1, 0.5, 0.9, 0.99, 1.0], dtype=torch.float64)


def in_the_plane(phi, xi):
    """E phi(u) phi(v) / E phi(u)^2 by a product rule over the two independent parts, exact for smooth phi."""
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(80))
    weights = weights / weights.sum()
    u = nodes[:, None].expand(80, 80)
    v = xi * nodes[:, None] + math.sqrt(1 - xi * xi) * nodes[None]
    both = weights[:, None] * weights
    return float((both * phi(u) * phi(v)).sum() / (weights * phi(nodes).square()).sum())


@pytest.mark.parametrize("phi", [torch.erf, torch.sin, torch.nn.functional.gelu, lambda z: z + z**3 / 9])
def test_duals_equal_the_integral_in_the_plane(phi):
    dual = dual_activation(phi)
    for xi in (0.0, 0.3, 0.8):
        assert float(dual(torch.tensor([xi], dtype=torch.float64))) == pytest.approx(in_the_plane(phi, xi), abs=1e-9)


@pytest.mark.parametrize(
    ("closed", "phi"),
    [
        (LeakyReLUDual(), lambda z: torch.relu(z)),
        (LeakyReLUDual(0.2), lambda z: torch.nn.functional.leaky_relu(z, 0.2)),
        (LeakyReLUDual(-1.0), lambda z: z.abs()),
        (ErfDual(), lambda z: torch.erf(z)),
        (ErfDual(0.5), lambda z: torch.erf(z / 2)),
    ],
    ids=["relu", "leaky", "abs", "erf", "erf/2"],
)
def test_closed_forms_equal_the_expansion_within_its_error(closed, phi):
    series = dual_activation(phi)
    assert ((closed(XI) - series(XI)).abs() <= series.error(XI) + 1e-12).all()
    assert closed.q0 == pytest.approx(series.q0, abs=1e-12)
    assert closed.q1 == pytest.approx(series.q1, abs=1e-12)
    assert closed.slope == pytest.approx(series.slope, rel=1e-9)


DUALS = [LeakyReLUDual(), LeakyReLUDual(0.3), ErfDual(), HermiteDual(torch.tensor([0, 0.5, 0.2, 0.3]))]


@pytest.mark.parametrize("dual", DUALS)
def test_derivatives_and_complements_agree_with_the_values(dual):
    xi = torch.linspace(0.05, 0.95, 19, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(dual(xi).sum(), xi)
    xi = xi.detach()
    assert torch.allclose(dual.derivative(xi, 1 - xi), slope, rtol=1e-9)
    assert torch.allclose(dual.complement(xi, 1 - xi), 1 - dual(xi), atol=1e-14)
    assert torch.allclose(dual.elasticity(xi, 1 - xi), xi * slope / dual(xi), rtol=1e-9)
    one = torch.ones(1, dtype=torch.float64)
    assert float(dual(one)) == pytest.approx(1, abs=1e-12)
    assert float(dual.derivative(one, 0 * one)) == pytest.approx(dual.slope, rel=1e-12)


@pytest.mark.parametrize("dual", [LeakyReLUDual(), ErfDual(), HermiteDual(torch.tensor([0, 0.5, 0, 0.5]))])
def test_the_complement_keeps_its_digits_where_xi_rounds_to_one(dual):
    # 1 - f(1 - e) = B' e + O(e^(3/2)).
    e = torch.tensor([1e-30, 1e-20], dtype=torch.float64)
    assert torch.allclose(dual.complement(1 - e, e) / e, torch.full_like(e, dual.slope), rtol=1e-9)


def test_the_tail_of_an_expansion_keeps_the_mass_and_the_slope():
    dual = dual_activation(torch.nn.Hardtanh(), degree=20)
    assert dual.tail > 1e-4
    one = torch.ones(1, dtype=torch.float64)
    assert float(dual(one)) == pytest.approx(1, abs=1e-12)
    assert dual.slope == pytest.approx(dual_activation(torch.nn.Hardtanh(), degree=200).slope, rel=1e-10)
    fine = dual_activation(torch.nn.Hardtanh(), degree=250)
    assert ((fine(XI) - dual(XI)).abs() <= dual.error(XI) + 1e-12).all()
    assert float((fine(XI) - dual(XI)).abs().max()) > 1e-7


def test_modules_and_scales_are_recognised():
    assert isinstance(dual_activation(torch.nn.ReLU()), LeakyReLUDual)
    assert dual_activation(torch.nn.LeakyReLU(0.2)).q1 == pytest.approx(0.36 / 0.52)
    assert dual_activation(lambda z: 7 * torch.tanh(z)).slope == pytest.approx(dual_activation(torch.tanh).slope)


def test_rounding_does_not_make_a_mean():
    assert dual_activation(torch.tanh).q0 == 0.0
    assert dual_activation(torch.tensor([1e-12, 0.6, 0.8], dtype=torch.float64)).q0 == 0.0


def test_coefficients_that_are_not_normalised_are_refused_with_their_norm():
    with pytest.raises(ValueError, match=r"sum to 2: divide the coefficients by 1\.414"):
        dual_activation(torch.tensor([0.0, 1.0, 1.0]))


def test_activations_without_a_kernel_are_refused():
    with pytest.raises(ValueError, match="jump"):
        dual_activation(torch.sign)
    with pytest.raises(ValueError, match="jump"):
        dual_activation(lambda z: (z.abs() < 1).double())
    with pytest.raises(ValueError, match="zero almost everywhere"):
        dual_activation(torch.zeros_like)
    with pytest.raises(ValueError, match="infinite"):
        dual_activation(lambda z: torch.exp(z.square() / 4))
    with pytest.raises(TypeError, match=r"str|relu"):
        dual_activation("relu")


def test_malformed_weights_and_scales_are_refused():
    with pytest.raises(ValueError, match="not negative"):
        HermiteDual(torch.tensor([1.5, -0.5]))
    with pytest.raises(ValueError, match="shape"):
        HermiteDual(torch.zeros(0))
    with pytest.raises(ValueError, match="tail"):
        HermiteDual(torch.tensor([0.0, 0.5]), tail=0.5, tail_slope=0.1)
    with pytest.raises(ValueError, match="scale"):
        ErfDual(0.0)
    with pytest.raises(ValueError, match="negative_slope"):
        LeakyReLUDual(math.nan)
