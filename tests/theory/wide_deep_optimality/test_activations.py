"""The designed activations, and the taxonomy: every closed form to its digits."""

import math

import numpy as np
import pytest
import torch

from etude.nn.gaussian import gaussian_expectation, hermite_coefficients, hermite_polynomials
from etude.theory.wide_deep_optimality import (
    HermiteActivation,
    Standardized,
    activation_for_alpha,
    classify_activation,
    optimal_activation,
    plot_taxonomy,
    singular_order,
    taxonomy_map,
)

ROOT = math.sqrt(0.5)


@pytest.mark.parametrize("d", range(2, 11))
def test_quadrature_finds_the_designed_coefficients(d):
    phi = optimal_activation(d)
    c = hermite_coefficients(phi, 4)
    assert float(c[1] ** 2) == pytest.approx(2 ** (-d / 2), abs=1e-12)
    assert float(c[2] ** 2) == pytest.approx(1 - 2 ** (1 - d / 2), abs=1e-12)
    assert float(c[3] ** 2) == pytest.approx(2 ** (-d / 2), abs=1e-12)
    assert float(gaussian_expectation(lambda z: phi(z).square()).value) == pytest.approx(1, abs=1e-12)


def test_the_written_polynomial_is_the_one_of_the_paper():
    x = torch.linspace(-3, 3, 13, dtype=torch.float64)
    h1, h2, h3 = x, (x**2 - 1) / math.sqrt(2), (x**3 - 3 * x) / math.sqrt(6)
    for d in (2, 3, 7):
        expected = 2 ** (-d / 4) * (h3 + h1) + math.sqrt(1 - 2 ** (1 - d / 2)) * h2
        assert torch.allclose(optimal_activation(d)(x), expected, atol=1e-12)
    h7 = (x**7 - 21 * x**5 + 105 * x**3 - 105 * x) / math.sqrt(5040)
    assert torch.allclose(optimal_activation(1)(x), (h1 + h7) / math.sqrt(2), atol=1e-12)


@pytest.mark.parametrize("d", range(1, 11))
def test_the_order_of_the_designed_activation_is_the_dimension(d):
    phi = optimal_activation(d)
    for given in (phi, phi.coefficients, lambda z: phi(z)):
        taxonomy = classify_activation(given)
        assert taxonomy.rule == "singular"
        assert taxonomy.alpha == pytest.approx(d, abs=1e-10)
        assert abs(taxonomy.alpha - d) <= taxonomy.errors["alpha"] + 1e-13


@pytest.mark.parametrize("alpha", [0.05, 0.5, 1.0, 1.99, 2.0, 2.5, 7.3, 64.0])
def test_any_order_can_be_made(alpha):
    phi = activation_for_alpha(alpha)
    assert float(phi.coefficients.square().sum()) == pytest.approx(1, abs=1e-12)
    assert classify_activation(phi).alpha == pytest.approx(alpha, rel=1e-9)


def test_a_small_order_takes_the_smallest_degree_that_reaches_it():
    for alpha in (0.3, 1.0, 1.5):
        k = len(activation_for_alpha(alpha).coefficients) - 1
        assert 2 / (k - 1) < alpha <= 2 / (k - 2) + 1e-12


def test_clenshaw_equals_the_sum_of_polynomials_and_passes_gradients():
    c = torch.randn(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64, requires_grad=True)
    phi = HermiteActivation(c)
    assert torch.allclose(phi(x), hermite_polynomials(x, 11) @ c, atol=1e-10)
    assert torch.autograd.gradcheck(phi, (x,))
    assert phi(x.float()).dtype == torch.float32
    assert HermiteActivation([2.0])(x).tolist() == [2.0] * 9


@pytest.mark.parametrize(
    ("phi", "numbers", "rule"),
    [
        (torch.tensor([0, ROOT, 0, ROOT]), (0, 0.7071, 2), "singular"),
        (torch.relu, (0.5642, 0.7071, 1), "majority"),
        (torch.tensor([0, 0, ROOT, ROOT]), (0, 0, 2.5), "nearest"),
        (torch.erf, (0, 0.9558, 1.2257), "singular"),
        (torch.exp, (math.exp(-0.5), math.exp(-0.5), 1.0), "majority"),
        (lambda z: torch.exp(z / 2), (math.exp(-0.125), math.exp(-0.125) / 2, 0.25), "constant"),
        (lambda z: 3 * z, (0, 1, 1), "linear"),
        (lambda z: z.abs(), (math.sqrt(2 / math.pi), 0, 1), "majority"),
    ],
    ids=["h1+h3", "relu", "h2+h3", "erf", "exp", "exp/2", "linear", "abs"],
)
def test_the_table_of_the_taxonomy(phi, numbers, rule):
    found = classify_activation(phi)
    assert found.rule == rule
    assert (found.A, found.A_prime, found.B_prime) == pytest.approx(numbers, abs=6e-5)
    assert (found.alpha is None) == (rule != "singular")


def test_centring_makes_a_majority_singular():
    gelu = torch.nn.GELU()
    assert classify_activation(gelu).rule == "majority"
    centred = Standardized(gelu)
    assert classify_activation(centred).rule == "singular"
    moments = gaussian_expectation(lambda z: torch.stack([centred(z), centred(z).square()], 1)).value
    assert torch.allclose(moments, torch.tensor([0.0, 1.0], dtype=torch.float64), atol=1e-12)
    scaled = Standardized(gelu, center=False)
    assert scaled.shift == 0
    assert classify_activation(scaled).rule == "majority"


def test_the_error_bars_cover_a_mean_that_is_only_rounding():
    # Centred by hand to 1e-11: numerically no mean at all.
    mean = float(gaussian_expectation(torch.relu).value)
    assert classify_activation(lambda z: torch.relu(z) - mean * (1 + 1e-11)).rule == "singular"
    assert classify_activation(lambda z: torch.relu(z) - mean * (1 + 1e-6)).rule == "majority"


def test_a_map_names_the_activation_that_fails():
    assert list(taxonomy_map({"a": torch.relu, "b": torch.tanh})) == ["a", "b"]
    with pytest.raises(ValueError, match=r"steps: the activation has a jump"):
        taxonomy_map({"relu": torch.relu, "steps": torch.sign})


def test_the_map_is_drawn():
    found = taxonomy_map({"relu": torch.relu, "tanh": torch.tanh, "best": optimal_activation(3)})
    figure = plot_taxonomy(found)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert "best (3.00)" in texts
    assert "relu" in texts
    places = [tuple(points.get_offsets()[0]) for points in figure.axes[0].collections]
    assert (pytest.approx(0.5), pytest.approx(1.0)) in [tuple(map(float, place)) for place in places]


def test_dimensions_and_orders_out_of_range_are_refused():
    for d in (0, -1, 1.5):
        with pytest.raises((ValueError, TypeError), match=r"integer|int"):
            optimal_activation(d)
    for alpha in (0.0, -1.0, 1e-3, 501.0, math.nan):
        with pytest.raises(ValueError, match="alpha"):
            activation_for_alpha(alpha)
    with pytest.raises(ValueError, match="B' = 1"):
        singular_order(0.7, 1.0)
    with pytest.raises(ValueError, match=r"0 < \|A'\| < 1"):
        singular_order(0.0, 2.0)


def test_activations_that_cannot_be_classified_are_refused():
    with pytest.raises(ValueError, match="jump"):
        classify_activation(torch.sign)
    with pytest.raises(ValueError, match="infinite"):
        classify_activation(lambda z: torch.exp(z.square() / 4))
    with pytest.raises(ValueError, match="zero"):
        classify_activation(torch.zeros_like)
    with pytest.raises(ValueError, match="tol"):
        classify_activation(torch.relu, tol=1e-18)
    with pytest.raises(ValueError, match="constant"):
        Standardized(torch.ones_like)
    with pytest.raises(ValueError, match="not all zero"):
        HermiteActivation([0.0, 0.0])
    with pytest.raises(ValueError, match="finite"):
        HermiteActivation([0.0, np.inf])
