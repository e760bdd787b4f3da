"""Receptive fields, sizes, shapes, counts."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from etude.vision.filters import (
    SmallCNN,
    conv_block,
    conv_parameters,
    effective_receptive_field,
    equivalent_stack,
    factorise,
    filter_count_rules,
    separable_ratio,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("layers", "field", "stride"),
    [
        ([nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 5)], 7, 1),
        ([nn.Conv2d(2, 4, 3, stride=2), nn.AvgPool2d(2), nn.Conv2d(4, 4, 3, padding=1)], 13, 4),
        ([nn.Conv2d(2, 4, 3, dilation=3, padding=3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 2)], 8, 1),
    ],
)
def test_the_theoretical_field_is_the_support_of_the_gradient(layers, field, stride):
    found = effective_receptive_field(nn.Sequential(*layers), 40, samples=32, generator=generator())
    assert found.theoretical == (field, field)
    assert found.support == (field, field)
    assert found.stride == (stride, stride)
    assert not found.cut
    assert 0 < found.radius < field
    assert found.energy_side <= field + stride


def test_a_classifier_is_looked_at_before_its_pooling():
    model = SmallCNN(1, 5, widths=[3, 4, 4], kernel_sizes=[5, 3, 3], strides=[2, 1, 2], generator=generator())
    found = effective_receptive_field(model, 45, generator=generator())
    assert found.theoretical == (13, 13)
    assert [row[0] for row in found.layers] == ["features.0", "features.2", "features.4"]
    assert effective_receptive_field(model, 9, generator=generator()).cut


def test_the_energy_of_a_uniform_kernel_fills_it():
    conv = nn.Conv2d(1, 1, 9, bias=False)
    nn.init.ones_(conv.weight)
    found = effective_receptive_field(conv, 31)
    assert found.energy_side == 9
    assert found.radius == pytest.approx((2 * (81 - 1) / 12) ** 0.5)


def test_what_has_no_field_is_refused():
    with pytest.raises(ValueError, match="no Conv2d"):
        effective_receptive_field(nn.Linear(3, 3))
    dead = nn.Conv2d(1, 1, 3)
    nn.init.zeros_(dead.weight)
    with pytest.raises(ValueError, match="zero everywhere"):
        effective_receptive_field(dead, 9)


@pytest.mark.parametrize(("size", "ratio"), [(5, (18, 25)), (7, (27, 49))])
def test_a_stack_has_the_field_of_the_large_kernel_and_fewer_weights(size, ratio):
    chans = 6
    stack, single = (conv_block(chans, chans, size, shape) for shape in ("stack", "single"))
    assert (conv_parameters(stack), conv_parameters(single)) == (ratio[0] * chans**2, ratio[1] * chans**2)
    assert len(equivalent_stack(size)) == (size - 1) // 2
    for shape in ("stack", "single", "factorised", "separable", "dilated"):
        block = conv_block(1, 4, size, shape, activation=False)
        field = effective_receptive_field(block, 21, generator=generator())
        assert field.theoretical == field.support == (size, size), shape
        assert block(torch.rand(1, 1, 9, 9)).shape == (1, 4, 9, 9)
    assert effective_receptive_field(conv_block(1, 4, size, "pointwise"), 21).theoretical == (1, 1)


def test_parameters_of_separable_and_factorised_kernels():
    block = conv_block(16, 16, 5, "separable")
    assert conv_parameters(block) / conv_parameters(conv_block(16, 16, 5)) == pytest.approx(separable_ratio(5, 16))
    assert factorise(7) == ((1, 7), (7, 1))
    assert conv_parameters(conv_block(8, 8, 7, "factorised")) == 14 * 64


@pytest.mark.parametrize(
    ("rule", "shape"),
    [("constant", lambda w: len(set(w)) == 1), ("doubling", lambda w: w[3] == 2 * w[0] and w[5] == 4 * w[0])],
)
def test_widths_fill_the_budget(rule, shape):
    strides, budget = [1, 1, 1, 2, 1, 2], 100_000
    widths = filter_count_rules(rule, budget, strides, in_chans=3, num_classes=10)
    assert shape(widths)

    def cost(first):
        chans = [3] + [first * width // widths[0] for width in widths]
        return sum(9 * a * b for a, b in pairwise(chans)) + 10 * chans[-1]

    assert cost(widths[0]) <= budget < cost(widths[0] + 1)
    model = SmallCNN(3, 10, widths=widths, strides=strides, pool=1)
    assert sum(p.numel() for p in model.parameters() if p.ndim > 1) == cost(widths[0])


def test_pyramidal_widths_grow_linearly():
    widths = filter_count_rules("pyramidal", 500_000, [1] * 7, growth=4)
    steps = [b - a for a, b in pairwise(widths)]
    assert max(steps) - min(steps) <= 1
    assert widths[-1] == pytest.approx(4 * widths[0], abs=1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: filter_count_rules("fibonacci", 100, [1]), "rule must be one of"),
        (lambda: filter_count_rules("constant", 10, [1, 1]), "budget of 10"),
        (lambda: filter_count_rules("constant", 10, []), "strides"),
        (lambda: equivalent_stack(4), "odd"),
        (lambda: factorise(1), "at least 2"),
        (lambda: separable_ratio(0, 3), "positive"),
        (lambda: conv_block(1, 1, 3, "round"), "shape must be one of"),
        (lambda: conv_block(0, 1, 3), "positive"),
    ],
)
def test_impossible_shapes_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
