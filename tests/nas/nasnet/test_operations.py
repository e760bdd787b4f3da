"""Operations against naive loops, and what they consist of."""

import math

import pytest
import torch
from torch import nn

from etude.nas.nasnet import FactorizedReduction
from etude.nas.nasnet.operations import Pool, SameConv2d, fan_out_, make_op


def windows(size, kernel, stride, dilation=1):
    """Rows that each output row sees under TensorFlow's SAME padding, None outside."""
    extent = dilation * (kernel - 1) + 1
    out = math.ceil(size / stride)
    before = max((out - 1) * stride + extent - size, 0) // 2
    rows = [[i * stride - before + dilation * k for k in range(kernel)] for i in range(out)]
    return [[row if 0 <= row < size else None for row in window] for window in rows]


@pytest.mark.parametrize("kind", ["avg", "max"])
@pytest.mark.parametrize(
    ("kernel", "stride", "size"),
    [(3, 1, (4, 5)), (3, 2, (6, 6)), (3, 2, (6, 5)), (5, 2, (6, 4)), (7, 1, (4, 4)), (7, 2, (4, 7))],
)
def test_pooling_equals_a_loop_over_the_pixels_that_exist(kind, kernel, stride, size):
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0)) - 5
    rows, columns = windows(size[0], kernel, stride), windows(size[1], kernel, stride)
    expected = torch.empty(2, 3, len(rows), len(columns))
    for i, window in enumerate(rows):
        for j, other in enumerate(columns):
            pixels = torch.stack([x[:, :, a, b] for a in window if a is not None for b in other if b is not None])
            expected[:, :, i, j] = pixels.mean(dim=0) if kind == "avg" else pixels.amax(dim=0)
    torch.testing.assert_close(Pool(kind, kernel, stride)(x), expected)


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "size"), [(3, 2, 1, 6), (5, 2, 1, 7), (7, 2, 1, 4), (3, 2, 2, 6), (3, 1, 2, 5)]
)
def test_convolution_pads_as_same(kernel, stride, dilation, size):
    layer = SameConv2d(1, 1, kernel, stride, dilation=dilation).double()
    x = torch.randn(1, 1, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rows = windows(size, kernel, stride, dilation)
    expected = torch.zeros(1, 1, len(rows), len(rows), dtype=torch.float64)
    for i, window in enumerate(rows):
        for j, other in enumerate(rows):
            for m, a in enumerate(window):
                for n, b in enumerate(other):
                    if a is not None and b is not None:
                        expected[0, 0, i, j] += layer.weight[0, 0, m, n].item() * x[0, 0, a, b]
    torch.testing.assert_close(layer(x), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("size", [(4, 6), (5, 7)])
def test_factorized_reduction_equals_a_loop(size):
    layer = FactorizedReduction(3, 4).double().eval()
    x = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    height, width = (math.ceil(side / 2) for side in size)
    expected = torch.zeros(2, 4, height, width, dtype=torch.float64)
    for i in range(height):
        for j in range(width):
            expected[:, :2, i, j] = x[:, :, 2 * i, 2 * j].relu() @ layer.even.weight[:, :, 0, 0].T
            if 2 * i + 1 < size[0] and 2 * j + 1 < size[1]:
                expected[:, 2:, i, j] = x[:, :, 2 * i + 1, 2 * j + 1].relu() @ layer.odd.weight[:, :, 0, 0].T
    torch.testing.assert_close(layer(x), layer.norm(expected), atol=1e-12, rtol=0)
    with pytest.raises(ValueError, match="even number of filters, got 5"):
        FactorizedReduction(3, 5)


def test_separable_operations_are_two_pairs_without_anything_between_depth_and_point():
    layers = list(make_op("sep_5x5", 4, 6, 2))
    kinds = [nn.ReLU, SameConv2d, SameConv2d, nn.BatchNorm2d]
    assert [type(layer) for layer in layers] == 2 * kinds
    assert [layer.groups for layer in layers if isinstance(layer, SameConv2d)] == [4, 1, 6, 1]
    assert [layer.stride[0] for layer in layers if isinstance(layer, SameConv2d)] == [2, 1, 1, 1]
    weights = sum(layer.weight.numel() for layer in layers if isinstance(layer, SameConv2d))
    assert weights == 4 * 25 + 4 * 6 + 6 * 25 + 6 * 6


def test_operations_map_widths_and_sizes():
    from etude.nas.nasnet import OPS

    x = torch.randn(2, 4, 7, 8)
    for name in OPS:
        assert make_op(name, 4, 6, 2)(x).shape == (2, 6, 4, 4), name
        assert make_op(name, 4, 4)(x).shape == x.shape, name
    assert isinstance(make_op("identity", 4, 4), nn.Identity)
    assert not list(make_op("max_3x3", 4, 4, 2).parameters())
    assert [type(layer) for layer in make_op("identity", 4, 4, 2)] == [nn.ReLU, SameConv2d, nn.BatchNorm2d]
    assert [type(layer) for layer in make_op("avg_3x3", 4, 6)] == [Pool, SameConv2d, nn.BatchNorm2d]
    factors = [layer.weight.shape[2:] for layer in make_op("conv_1x7_7x1", 4, 6, 2) if isinstance(layer, SameConv2d)]
    assert factors == [(1, 7), (7, 1)]
    assert make_op("dil_3x3", 4, 6)[1].dilation == (2, 2)


def test_weights_have_variance_two_over_fan_out_before_the_cut():
    torch.manual_seed(0)
    for shape, groups, fan_out in (((64, 100, 3, 3), 1, 576), ((6400, 1, 3, 3), 6400, 9)):
        weight = torch.empty(shape)
        fan_out_(weight, groups)
        std = (1.3 * 2 / fan_out) ** 0.5
        assert weight.abs().max() <= 2 * std * (1 + 1e-5)
        # A normal cut off at two deviations keeps 0.7737 of its variance.
        assert weight.var() == pytest.approx(0.7737 * std**2, rel=0.02)
