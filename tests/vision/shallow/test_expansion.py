"""The expansion by order: exact for linear functions, and its laws for the others."""

import itertools
import math

import pytest
import torch
from torch import nn

from etude.vision.shallow import (
    ResidualStack,
    ShallowNet,
    gradient_ratio,
    overdetermination_ratio,
    second_order_residual,
    taylor_expand,
)

EPS = [2.0**-power for power in range(5, 12)]


def linear_layers(count=5, dim=4, bias=False):
    torch.manual_seed(0)
    return [nn.Linear(dim, dim, bias=bias).double() for _ in range(count)]


def points(dim=4):
    return torch.randn(3, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def slope(errors):
    x, y = torch.tensor(EPS).double().log(), torch.tensor(errors).double().log()
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


@pytest.mark.parametrize("order", range(7))
def test_truncations_equal_the_sum_over_subsets(order):
    layers, x = linear_layers(), points()
    expected = torch.zeros_like(x)
    for size in range(min(order, 5) + 1):
        for subset in itertools.combinations(range(5), size):
            term = x
            for index in subset:
                term = term @ layers[index].weight.T
            expected = expected + term
    torch.testing.assert_close(taylor_expand(layers, x, order), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("bias", [False, True])
def test_the_whole_expansion_is_the_sequential_stack_and_the_first_order_the_parallel_one(bias):
    layers, x = linear_layers(bias=bias), points()
    deep = ResidualStack(layers)
    for order in (5, 9):
        torch.testing.assert_close(deep.to_parallel(order)(x), deep(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(taylor_expand(layers, x, 1), deep.to_parallel()(x), rtol=1e-10, atol=1e-10)
    assert deep.to_parallel(9).order == 5


def test_linear_convolutions_expand_too():
    torch.manual_seed(0)
    deep = ResidualStack(channels=3, num_layers=4, activation="identity").double()
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(deep.to_parallel(4)(x), deep(x), rtol=1e-10, atol=1e-10)


def test_terms_take_k_times_r_applications():
    counted = []

    def f(x):
        counted.append(len(x))
        return 2 * x

    taylor_expand([f] * 6, torch.ones(2, 1), 3)
    assert sum(rows == 2 for rows in counted) == 6 * 3 - 3  # the first functions have fewer terms before them


def test_a_negative_order_is_refused():
    with pytest.raises(ValueError, match="order must not be negative, got -1"):
        taylor_expand([], torch.ones(1), -1)


def scaled(layers, eps, activation):
    return [lambda x, layer=layer: eps * activation(layer(x)) for layer in layers]


def sequential(fs, x):
    for f in fs:
        x = x + f(x)
    return x


@pytest.mark.parametrize("activation", [torch.tanh, torch.sigmoid])
def test_layouts_differ_by_the_square_of_the_scale_and_the_jacobian_term_explains_it(activation):
    layers, x = linear_layers(bias=True), points()
    gaps, rests = [], []
    for eps in EPS:
        fs = scaled(layers, eps, activation)
        gap = sequential(fs, x) - taylor_expand(fs, x, 1)
        gaps.append(gap.norm().item())
        rests.append((gap - second_order_residual(fs, x)).norm().item())
    assert 1.9 < slope(gaps) < 2.1
    assert 2.9 < slope(rests) < 3.1


def test_the_second_order_truncation_of_linear_branches_errs_by_the_cube():
    layers, x = linear_layers(), points()
    errors = []
    for eps in EPS:
        fs = scaled(layers, eps, lambda value: value)
        errors.append((sequential(fs, x) - taylor_expand(fs, x, 2)).norm().item())
    assert 2.9 < slope(errors) < 3.1


def test_the_second_order_term_equals_the_double_sum_of_jacobians():
    layers, x = linear_layers(3, bias=True), points()[:1]
    fs = scaled(layers, 1.0, torch.tanh)
    expected = torch.zeros_like(x)
    for j, k in itertools.combinations(range(3), 2):
        jacobian = torch.autograd.functional.jacobian(fs[k], x)[0, :, 0]
        expected = expected + fs[j](x) @ jacobian.T
    torch.testing.assert_close(second_order_residual(fs, x), expected)


def test_a_stack_is_taken_for_its_branches():
    torch.manual_seed(0)
    stack = ResidualStack(channels=3, num_layers=3, activation="tanh")
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(second_order_residual(stack, x), second_order_residual(list(stack.branches), x))


def test_overdetermination_counts_constraints_for_each_parameter():
    model = ShallowNet(in_chans=1, num_classes=10)
    parameters = sum(p.numel() for p in model.parameters())
    assert overdetermination_ratio(4000, 10, model) == pytest.approx(40_000 / parameters, rel=1e-12)
    assert overdetermination_ratio(4000, 10, 400) == 100
    with pytest.raises(ValueError, match="must be positive, got 0 and 10"):
        overdetermination_ratio(0, 10, model)
    with pytest.raises(ValueError, match="no trainable parameter"):
        overdetermination_ratio(1, 1, nn.Identity())


def test_gradients_vanish_in_sequence_without_skips_only():
    x = torch.rand(8, 1, 14, 14, generator=torch.Generator().manual_seed(0))
    ratios = {}
    for name, options in {
        "plain": {"residual": False},
        "sequential": {},
        "parallel": {"layout": "parallel"},
    }.items():
        torch.manual_seed(0)
        net = ShallowNet(in_chans=1, num_classes=10, num_layers=16, activation="sigmoid", **options)
        ratios[name] = gradient_ratio(net, lambda model: model(x).logsumexp(1).mean())
    assert ratios["plain"] < 1e-6
    assert 0.01 < ratios["sequential"] < 1
    assert math.isclose(ratios["parallel"], 1, rel_tol=0.3)
