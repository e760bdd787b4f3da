"""Gaussian expectations: right to the stated error for smooth, kinked and jumping functions, and refusals."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from etude.nn.gaussian import gaussian_expectation, hermite_coefficients, hermite_expansion, hermite_polynomials


def within(estimate, exact):
    assert abs(float(estimate.value) - exact) <= float(estimate.error)


@pytest.mark.parametrize(
    ("g", "exact"),
    [
        (lambda z: z**8, 105.0),
        (lambda z: torch.cos(3 * z), math.exp(-4.5)),
        (lambda z: torch.exp(z), math.exp(0.5)),
        (lambda z: torch.relu(z - 0.3), norm.pdf(0.3) - 0.3 * norm.sf(0.3)),
        (lambda z: (z > 1 / 3).double(), norm.sf(1 / 3)),
        (lambda z: z.abs().log(), -(np.euler_gamma + math.log(2)) / 2),
    ],
    ids=["power", "cosine", "exponential", "kink", "jump", "logarithm"],
)
def test_known_expectations_lie_within_the_stated_error(g, exact):
    estimate = gaussian_expectation(g)
    within(estimate, exact)
    assert float(estimate.error) <= 1e-11 * (1 + abs(exact))


def test_a_looser_tolerance_is_still_honest():
    estimate = gaussian_expectation(lambda z: torch.relu(z - 0.3), tol=1e-4)
    within(estimate, norm.pdf(0.3) - 0.3 * norm.sf(0.3))
    assert float(estimate.error) > 1e-11


def test_several_values_are_integrated_at_once():
    value, error = gaussian_expectation(lambda z: torch.stack([z**2, z**4, z], dim=1))
    assert ((value - torch.tensor([1.0, 3.0, 0.0])).abs() <= error).all()


def test_polynomials_are_those_of_numpy_normalised():
    z = torch.linspace(-3, 3, 7, dtype=torch.float64)
    ours = hermite_polynomials(z, 6)
    for k in range(7):
        theirs = np.polynomial.hermite_e.hermeval(z.numpy(), [0] * k + [1]) / math.sqrt(math.factorial(k))
        np.testing.assert_allclose(ours[:, k], theirs, rtol=1e-12, atol=1e-13)
    assert hermite_polynomials(z, 0).shape == (7, 1)


def test_polynomials_are_orthonormal():
    products = gaussian_expectation(lambda z: torch.einsum("ni,nj->nij", *[hermite_polynomials(z, 5)] * 2).flatten(1))
    assert torch.allclose(products.value.reshape(6, 6), torch.eye(6, dtype=torch.float64), atol=1e-11)


def test_coefficients_of_a_hermite_sum_are_found_again():
    given = torch.tensor([0.1, -0.5, 0.0, 2.0], dtype=torch.float64)
    found = hermite_coefficients(lambda z: hermite_polynomials(z, 3) @ given, 5)
    assert torch.allclose(found, torch.cat([given, torch.zeros(2)]), atol=1e-11)


def test_coefficients_of_the_relu_are_the_known_ones():
    # E relu(z) h_k(z) = He_(k-2)(0) / sqrt(2 pi k!) for k >= 2.
    expansion = hermite_expansion(torch.relu, 8)
    known = [1 / math.sqrt(2 * math.pi), 0.5]
    for k in range(2, 9):
        at_zero = float(np.polynomial.hermite_e.hermeval(0.0, [0] * (k - 2) + [1]))
        known.append(at_zero / math.sqrt(2 * math.pi * math.factorial(k)))
    assert torch.allclose(expansion.coefficients, torch.tensor(known, dtype=torch.float64), atol=1e-12)
    assert expansion.tail == pytest.approx(0.5 - sum(c * c for c in known), rel=1e-9)


def test_parameters_of_a_module_may_be_in_single_precision():
    prelu = torch.nn.PReLU(init=0.5)
    assert float(hermite_coefficients(prelu, 1)[1]) == pytest.approx(0.75)
    assert prelu.weight.dtype == torch.float32


def test_an_infinite_variance_is_refused_with_the_limit():
    with pytest.raises(ValueError, match=r"infinite or out of reach.*exp\(z\^2 / 4\)"):
        hermite_expansion(lambda z: torch.exp(z.square() / 4), 3)
    with pytest.raises(ValueError, match="finite on"):
        gaussian_expectation(lambda z: torch.exp(z.square()))
    with pytest.raises(ValueError, match="finite on"):
        gaussian_expectation(torch.log)


def test_a_tolerance_out_of_reach_is_refused():
    with pytest.raises(ValueError, match=r"1e-14.*got 1e-20"):
        gaussian_expectation(torch.cos, tol=1e-20)
    with pytest.raises(ValueError, match=r"not reachable: after .* panels"):
        gaussian_expectation(lambda z: torch.sin(1e6 * z).sign())


def test_malformed_integrands_and_degrees_are_refused():
    with pytest.raises(ValueError, match="must return"):
        gaussian_expectation(lambda z: z.sum())
    with pytest.raises(ValueError, match="degree"):
        hermite_expansion(torch.relu, 1000)
    with pytest.raises(ValueError, match="degree"):
        hermite_polynomials(torch.zeros(2), -1)
