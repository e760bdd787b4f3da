"""Layers: windows as TensorFlow's, residual sums, initialisers, normalisation."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from etude.nas.deeparchitect import (
    Affine,
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Dropout,
    InvalidModel,
    MaxPool2d,
    Or,
    Residual,
    Sigmoid,
    Squeeze,
    UserHyperparams,
    replay,
)
from etude.nas.deeparchitect.composite import PaddedSum


def made(module, shape):
    return module.initialize(shape)


def windows(size, kernel, stride, padding):
    """First and one past the last cell of each window, which may reach over the edges."""
    if padding == "VALID":
        return [(start, start + kernel) for start in range(0, size - kernel + 1, stride)]
    out = math.ceil(size / stride)
    lacking = max((out - 1) * stride + kernel - size, 0)
    return [(index * stride - lacking // 2, index * stride - lacking // 2 + kernel) for index in range(out)]


def naive(x, kernel, stride, padding, reduce):
    """Applies `reduce` to the cells of each window that are there: (cells, rows, columns of the window) -> value."""
    rows = windows(x.shape[1], kernel, stride, padding)
    columns = windows(x.shape[2], kernel, stride, padding)
    found = np.zeros((len(rows), len(columns)))
    for i, (top, bottom) in enumerate(rows):
        for j, (left, right) in enumerate(columns):
            r = np.arange(max(top, 0), min(bottom, x.shape[1]))
            c = np.arange(max(left, 0), min(right, x.shape[2]))
            found[i, j] = reduce(x[:, r[:, None], c[None, :]], r - top, c - left)
    return found


CASES = [
    (h, w, k, s, p) for h, w in ((7, 6), (8, 5)) for k in (1, 2, 3, 4, 5) for s in (1, 2, 3) for p in ("SAME", "VALID")
]


@pytest.mark.parametrize(("height", "width", "kernel", "stride", "padding"), CASES)
def test_windows_are_tensorflows(height, width, kernel, stride, padding):
    torch.manual_seed(0)
    x = torch.randn(2, 1, height, width)
    conv = made(Conv2d(1, kernel, stride, padding), (1, height, width))
    network = conv.compile()
    weight = next(p for p in network.parameters() if p.ndim == 4).detach().numpy()[0]
    largest = made(MaxPool2d(kernel, stride, padding), (1, height, width))
    mean = made(AvgPool2d(kernel, stride, padding), (1, height, width))
    for module, layer, reduce in (
        (conv, network, lambda cells, r, c: (cells * weight[:, r[:, None], c[None, :]]).sum()),
        (largest, largest.compile(), lambda cells, r, c: cells.max()),
        (mean, mean.compile(), lambda cells, r, c: cells.mean()),
    ):
        output = layer(x).detach().numpy()
        assert output.shape[1:] == module.out_shape()
        for image, found in zip(x.numpy(), output):
            np.testing.assert_allclose(found[0], naive(image, kernel, stride, padding, reduce), rtol=1e-4, atol=1e-5)


def test_even_windows_pad_more_at_the_end():
    pool = made(MaxPool2d(2, 2), (1, 3, 3)).compile()
    x = torch.arange(9.0).view(1, 1, 3, 3) - 20
    assert pool(x).flatten().tolist() == [-16.0, -15.0, -13.0, -12.0]
    mean = made(AvgPool2d(2, 2), (1, 3, 3)).compile()
    assert mean(x).flatten().tolist() == [-18.0, -16.5, -13.5, -12.0]


def test_a_residual_sum_pads_each_dimension_at_its_end():
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    body = nn.Conv2d(1, 2, 1, stride=2)
    nn.init.constant_(body.weight, 10.0)
    nn.init.zeros_(body.bias)
    output = PaddedSum(body, (2, 2, 2))(x)
    assert output.tolist() == [[[[11.0, 2.0], [3.0, 4.0]], [[10.0, 0.0], [0.0, 0.0]]]]
    module = made(Residual(Conv2d(2, 1, 2)), (1, 2, 2))
    assert module.out_shape() == (2, 2, 2)
    assert module.compile()(x).shape == (1, 2, 2, 2)


def test_a_residual_sum_of_different_ranks_is_flat():
    module = made(Residual(Affine(6, init="torch")), (1, 2, 2))
    assert module.out_shape() == (6,)
    network = module.compile()
    x = torch.randn(3, 1, 2, 2)
    torch.testing.assert_close(network(x), network.body(x) + F.pad(x.flatten(1), (0, 2)))


@pytest.mark.parametrize("init", ["he", "deeparchitect", "torch"])
def test_initialisers(init):
    torch.manual_seed(0)
    conv = made(Conv2d(200, 3, init=init), (100, 8, 8)).compile()
    affine = made(Affine(500, init=init), (400,)).compile()
    fans = {"he": (100 * 9, 400), "deeparchitect": (200 * 100 * 9, 500 * 400), "torch": (6 * 900, 6 * 400)}[init]
    for layer, fan in zip((conv, affine), fans):
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fan), rel=0.02)
        assert init == "torch" or not layer.bias.any()


def test_dropout_counts_what_is_kept():
    assert made(Dropout(0.9), (4,)).compile().p == pytest.approx(0.1)
    with pytest.raises(ValueError, match=r"keep must hold probabilities in \(0, 1\], got \[0.5, 1.5\]"):
        Dropout([0.5, 1.5])


def test_batch_norm_has_tensorflows_constants_and_may_learn_the_shift_alone():
    for shape, kind in (((3, 4, 4), nn.BatchNorm2d), ((3,), nn.BatchNorm1d)):
        layer = made(BatchNorm(affine=False), shape).compile()
        assert isinstance(layer, kind)
        assert (layer.eps, layer.momentum) == (1e-3, 0.1)
        assert (layer.weight.requires_grad, layer.bias.requires_grad) == (False, True)
    assert made(BatchNorm(), (3,)).compile().weight.requires_grad


def test_squeeze_removes_dimensions_of_one():
    for shape, expected in (((5, 1, 1), (5,)), ((1, 4, 1), (4,)), ((2, 1, 3), (2, 3)), ((1, 1, 1), (1,))):
        module = made(Squeeze(), shape)
        assert module.out_shape() == expected
        x = torch.randn(2, *shape)
        assert torch.equal(module.compile()(x).flatten(), x.flatten())
        assert module.compile()(x).shape == (2, *expected)


def test_hyperparameters_of_training_leave_the_network_alone():
    module = replay(UserHyperparams(lr=[0.1, 0.2]), (3,), [1])
    x = torch.randn(2, 3)
    assert torch.equal(module.compile()(x), x)
    assert module.hyperparameters == {"lr": 0.2}


def test_bad_values_are_refused():
    for call, match in (
        (lambda: Affine([0, 3]), "units must be integers of at least 1"),
        (lambda: Affine([1.5]), "units must be integers"),
        (lambda: Conv2d([3], [3], paddings="FULL"), "paddings must be among SAME, VALID"),
        (lambda: Conv2d([3], [3], init="xavier"), "init must be among he"),
        (lambda: MaxPool2d(2, [0]), "strides must be integers"),
    ):
        with pytest.raises(ValueError, match=match):
            call()
    with pytest.raises(InvalidModel):
        Or([Conv2d(1, 3)]).initialize((3,))
    assert made(Sigmoid(), (3,)).out_shape() == (3,)
