"""The kernel at any depth: against the recursion as it stands, its limits, and the functional equation."""

import math
from decimal import Decimal, localcontext

import pytest
import torch

from etude.nn.dual import ErfDual, LeakyReLUDual, dual_activation
from etude.theory.wide_deep_optimality import (
    RadialKernel,
    activation_for_alpha,
    classify_activation,
    deep_ntk,
    kernel_matrix,
    koenigs,
    log_deep_ntk,
    log_diagonal,
    log_koenigs,
    optimal_activation,
)
from etude.theory.wide_deep_optimality import kernel as kernel_module

XI = torch.tensor([0.05, 0.3, 0.6, 0.9, 0.999, 1.0], dtype=torch.float64)
ROOT = math.sqrt(0.5)


def by_definition(xi, coefficients, depth):
    """The recursion of the paper, with sums of powers, in 60 digits: in double precision it loses ten of them."""
    rows = []
    with localcontext(prec=60):
        squares = [Decimal(float(c)) ** 2 for c in coefficients]
        q = [square / sum(squares) for square in squares]
        for start in xi.tolist():
            s = kernel = Decimal(start)
            for _ in range(depth):
                value = sum(weight * s**k for k, weight in enumerate(q) if weight)
                slope = sum(k * weight * s ** (k - 1) for k, weight in enumerate(q) if k and weight)
                s, kernel = value, kernel * slope + value
            rows.append(float(kernel))
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("depth", [0, 1, 2, 7, 20])
@pytest.mark.parametrize(
    "c", [[0, ROOT, 0, ROOT], [0.3, 0.6, math.sqrt(0.55)], [0, 0.9, math.sqrt(0.19)], [0.6, 0, 0.8]], ids=str
)
def test_the_scaled_recursion_equals_the_direct_one(c, depth):
    coefficients = torch.tensor(c, dtype=torch.float64)
    direct = by_definition(XI, coefficients, depth)
    scale = coefficients[1] ** (2 * depth) if c[0] == 0 else 1.0
    assert torch.allclose(deep_ntk(XI, coefficients, depth), direct / scale, rtol=1e-10, atol=0)
    assert torch.allclose(deep_ntk(XI, coefficients, depth, scaled=False), direct, rtol=1e-10, atol=0)


@pytest.mark.parametrize("depth", [0, 1, 3, 4])
def test_without_a_linear_term_the_recursion_is_the_direct_one_too(depth):
    for c in ([0, 0, ROOT, ROOT], [0, 0, 0, 1.0]):
        coefficients = torch.tensor(c, dtype=torch.float64)
        assert torch.allclose(
            deep_ntk(XI, coefficients, depth), by_definition(XI, coefficients, depth), rtol=1e-10, atol=0
        )


def test_logarithms_double_without_a_linear_term_long_after_the_numbers_are_gone():
    # f(S) ~ S^2 / 2 and K / S doubles, plus one: log K_L = 2^m (log S - log 2) + log 2 + log r.
    c = torch.tensor([0, 0, ROOT, ROOT], dtype=torch.float64)
    deep = log_deep_ntk(XI[:3], c, 60)
    deeper = log_deep_ntk(XI[:3], c, 61)
    assert float(deep.max()) < -1e15
    assert torch.allclose(deeper / deep, torch.full((3,), 2.0, dtype=torch.float64), rtol=1e-9)
    # Before numbers vanish, the closed form must continue the recursion.
    xi = torch.tensor([1e-5], dtype=torch.float64)
    assert float(log_deep_ntk(xi, c, 5)) == pytest.approx(math.log(float(by_definition(xi, c, 5))), rel=1e-12)


def test_the_diagonal_is_a_geometric_sum():
    for dual, b in ((dual_activation(optimal_activation(2)), 2.0), (LeakyReLUDual(), 1.0), (ErfDual(), None)):
        b = dual.slope if b is None else b
        one = torch.ones(1, dtype=torch.float64)
        for depth in (0, 3, 15):
            expected = sum(b**j for j in range(depth + 1))
            assert float(deep_ntk(one, dual, depth, scaled=False)) == pytest.approx(expected, rel=1e-11)
            scaled = log_diagonal(dual, depth)
            assert scaled == pytest.approx(float(log_deep_ntk(one, dual, depth)), abs=1e-10)
    below = dual_activation(lambda z: torch.exp(z / 2))
    assert below.slope < 1
    assert log_diagonal(below, 4) == pytest.approx(math.log(sum(below.slope**j for j in range(5))), rel=1e-10)


def test_of_a_relu_the_diagonal_is_the_depth_and_the_rest_a_quarter_of_it():
    kernel = deep_ntk(torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64), LeakyReLUDual(), 3000)
    assert float(kernel[2]) == pytest.approx(3001, rel=1e-9)
    assert float(kernel[0]) / 3001 == pytest.approx(0.2513, abs=5e-5)
    assert 0.25 < float(kernel[1]) / 3001 < 0.2520


@pytest.mark.parametrize(
    ("dual", "depth", "theirs"),
    [
        (LeakyReLUDual(), 1, [0.3183098861838, 0.6618402890417, 1.4632535081917, 1.983787289673]),
        (LeakyReLUDual(), 3, [1.0603881068026, 1.404033726567, 2.5401965449636, 3.9120604566609]),
        (LeakyReLUDual(), 10, [3.479376712021, 3.7727777511999, 5.2386632284199, 10.2598276075838]),
        (ErfDual(), 1, [0.0, 0.5556621878891, 1.6348901667009, 2.2222711766072]),
        (ErfDual(), 3, [0.0, 0.9464612531097, 3.3118149012352, 5.5519031615506]),
    ],
)
def test_finite_depths_equal_those_of_neural_tangents(dual, depth, theirs):
    # neural-tangents 0.6.5 in double precision, Dense without bias, W_std^2 = 1 at first and 1 / E phi^2 then.
    xi = torch.tensor([0.0, 0.3, 0.8, 0.999], dtype=torch.float64)
    ours = deep_ntk(xi, dual, depth, scaled=False)
    assert torch.allclose(ours, torch.tensor(theirs, dtype=torch.float64), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("d", [1, 2, 3, 6, 10])
def test_the_koenigs_function_solves_its_equation(d):
    dual = dual_activation(optimal_activation(d))
    xi = torch.linspace(0.01, 0.95, 40, dtype=torch.float64)
    left, right = koenigs(dual(xi), dual), dual.q1 * koenigs(xi, dual)
    assert torch.allclose(left, right, rtol=1e-10)
    small = torch.tensor([1e-12], dtype=torch.float64)
    assert float(koenigs(small, dual) / small) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("d", range(1, 11))
def test_the_koenigs_function_is_singular_of_the_order_of_the_dimension(d):
    dual = dual_activation(optimal_activation(d))
    distance = torch.logspace(-6, -3, 200, dtype=torch.float64)
    e = distance.square() / 2
    log_r = log_koenigs(1 - e, dual, complement=e)
    x = distance.log() - distance.log().mean()
    slope = float((x * log_r).sum() / x.square().sum())
    assert slope == pytest.approx(-d, rel=1e-2 if d == 1 else 1e-3)


def test_the_ratio_of_layers_keeps_six_digits_at_a_distance_of_a_millionth():
    # R(1 - e) and R(f(1 - e)) from e and from 1 - f: the functional equation where xi itself has four digits of e left.
    dual = dual_activation(optimal_activation(2))
    e = torch.tensor([5e-13], dtype=torch.float64)
    after = dual.complement(1 - e, e)
    ratio = log_koenigs(1 - after, dual, complement=after) - log_koenigs(1 - e, dual, complement=e)
    assert float(ratio) == pytest.approx(math.log(dual.q1), abs=1e-10)


def test_deep_kernels_tend_to_the_koenigs_function():
    dual = dual_activation(optimal_activation(3))
    xi = torch.linspace(0.1, 0.8, 8, dtype=torch.float64)
    depth = 10**9
    assert torch.allclose(deep_ntk(xi, dual, depth) / (depth + 1), koenigs(xi, dual), rtol=1e-6)
    assert not torch.allclose(deep_ntk(xi, dual, 30) / 31, koenigs(xi, dual), rtol=1e-2)


def test_slow_activations_keep_their_digits_over_hundreds_of_layers():
    dual = ErfDual()
    xi = torch.tensor([1e-5, 0.5, 0.9], dtype=torch.float64)
    s = kernel = xi
    for _ in range(300):
        value = dual(s)
        s, kernel = value, kernel * dual.derivative(s, 1 - s) + value
    assert torch.allclose(deep_ntk(xi, dual, 300), kernel / dual.q1**300, rtol=1e-10)


@pytest.mark.parametrize("depth", [3, 40, 300, None])
@pytest.mark.parametrize("dual", [dual_activation(optimal_activation(2)), ErfDual()], ids=["designed", "erf"])
def test_the_table_equals_the_recursion(dual, depth):
    radial = RadialKernel(dual, depth)
    assert not radial.direct
    e = torch.cat([torch.logspace(-20, -0.01, 300, dtype=torch.float64), torch.tensor([0.9999, 1.0])])
    exact = log_koenigs(1 - e, dual, complement=e) if depth is None else log_deep_ntk(1 - e, dual, depth, complement=e)
    finite = torch.isfinite(exact)
    assert torch.allclose(radial(e)[finite], exact[finite], atol=2 * radial.error + 1e-11, rtol=1e-11)
    assert radial.error < 1e-10
    assert float(radial(torch.zeros(1, dtype=torch.float64))) == radial.diagonal


def test_the_table_of_a_relu_and_of_no_linear_term():
    e = torch.linspace(0, 1, 50, dtype=torch.float64)
    relu = RadialKernel(LeakyReLUDual(), 30)
    assert torch.allclose(relu(e), log_deep_ntk(1 - e, LeakyReLUDual(), 30, complement=e), atol=1e-9)
    cubic = dual_activation(torch.tensor([0, 0, ROOT, ROOT]))
    assert RadialKernel(cubic, 8).direct
    assert torch.equal(RadialKernel(cubic, 8)(e[1:]), log_deep_ntk(1 - e[1:], cubic, 8, complement=e[1:]))


def test_orthogonal_points_have_no_kernel_without_a_mean():
    zero = torch.zeros(1, dtype=torch.float64)
    assert float(deep_ntk(zero, optimal_activation(2).coefficients, 5)) == 0
    assert float(koenigs(zero, optimal_activation(2).coefficients)) == 0
    assert float(koenigs(zero + 1, optimal_activation(2).coefficients)) == math.inf


def test_taxonomy_takes_a_dual():
    assert classify_activation(ErfDual()).alpha == pytest.approx(classify_activation(torch.erf).alpha, rel=1e-10)


def test_inner_products_outside_the_orthant_are_refused():
    for bad in (-0.1, 1.1):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            deep_ntk(torch.tensor([0.5, bad]), LeakyReLUDual(), 2)
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            koenigs(torch.tensor([bad]), ErfDual())


def test_what_has_no_limit_is_refused():
    with pytest.raises(ValueError, match="singular kernel"):
        koenigs(XI, LeakyReLUDual())
    with pytest.raises(ValueError, match="singular kernel"):
        koenigs(XI, torch.tensor([0, 0, ROOT, ROOT]))
    with pytest.raises(ValueError, match=r'depth="inf"'):
        log_deep_ntk(XI[:3], torch.tensor([0, 0, ROOT, ROOT]), 2000)
    with pytest.raises(ValueError, match="depth"):
        deep_ntk(XI, ErfDual(), -1)


def test_a_tiny_order_is_still_reached():
    dual = dual_activation(activation_for_alpha(0.2))
    xi = torch.tensor([0.2, 0.7], dtype=torch.float64)
    assert torch.allclose(koenigs(dual(xi), dual), dual.q1 * koenigs(xi, dual), rtol=1e-9)


@pytest.mark.parametrize("size", [3, 100])
@pytest.mark.parametrize("depth", [2, None])
def test_the_matrix_of_a_kernel_is_that_of_its_pairs(size, depth):
    draw = torch.Generator().manual_seed(0)
    x, other = (torch.rand(n, 3, generator=draw, dtype=torch.float64) for n in (size, size + 7))
    x, other = x / x.norm(dim=1, keepdim=True), other / other.norm(dim=1, keepdim=True)
    dual = dual_activation(optimal_activation(2))
    xi = (x @ other.T).clamp(max=1)
    expected = koenigs(xi, dual) if depth is None else deep_ntk(xi, dual, depth)
    assert torch.allclose(kernel_matrix(x, other, dual, depth), expected, rtol=1e-8)
    with pytest.raises(ValueError, match="must not be negative"):
        kernel_matrix(x, -other, dual, depth)
    with pytest.raises(ValueError, match="unit length"):
        kernel_matrix(2 * x, other, dual, depth)


def test_blocks_do_not_change_a_kernel(monkeypatch):
    e = torch.linspace(0, 1, 1000, dtype=torch.float64).reshape(20, 50)
    dual = dual_activation(optimal_activation(2))
    whole = [deep_ntk(1 - e, dual, 5), deep_ntk(1 - e, LeakyReLUDual(), 5), koenigs(1 - e, dual)]
    monkeypatch.setattr(kernel_module, "_BLOCK", 64)
    parts = [deep_ntk(1 - e, dual, 5), deep_ntk(1 - e, LeakyReLUDual(), 5), koenigs(1 - e, dual)]
    for one, other in zip(whole, parts):
        assert torch.allclose(one, other, rtol=1e-12)
