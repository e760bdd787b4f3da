"""Padding on the sphere, and convolutions that have no border."""

import pytest
import torch

from etude.science.puyun import SphereConv2d, SphericalPad2d


def padded(x, rows, columns):
    """Cell by cell: across a pole a meridian goes on half a circle further."""
    height, width = x.shape[-2:]
    out = torch.empty(*x.shape[:2], height + 2 * rows, width + 2 * columns, dtype=x.dtype)
    for i in range(-rows, height + rows):
        for j in range(-columns, width + columns):
            row, column = i, j
            if i < 0:
                row, column = -1 - i, j + width // 2
            elif i >= height:
                row, column = 2 * height - 1 - i, j + width // 2
            out[:, :, i + rows, j + columns] = x[:, :, row, column % width]
    return out


@pytest.mark.parametrize("pad", [(0, 0), (1, 1), (3, 6), (6, 0), (0, 5), (2, 20), (6, 8)])
def test_padding_goes_on_across_the_date_line_and_the_poles(pad):
    x = torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(SphericalPad2d(pad)(x), padded(x, *pad))


def test_row_minus_one_is_row_zero_half_a_circle_away():
    x = torch.randn(1, 1, 6, 8)
    y = SphericalPad2d(1)(x)
    for j in range(8):
        assert y[0, 0, 0, j + 1] == x[0, 0, 0, (j + 4) % 8]
        assert y[0, 0, -1, j + 1] == x[0, 0, -1, (j + 4) % 8]


@pytest.mark.parametrize("pad", [(1, 2), (3, 0), (0, 4), (2, 11)])
def test_gradients_of_padding_match_finite_differences(pad):
    x = torch.randn(1, 2, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(SphericalPad2d(pad), x)
    assert torch.autograd.gradgradcheck(SphericalPad2d(pad), x)


def test_flat_modes_pad_as_torch_does():
    x = torch.randn(1, 2, 4, 6)
    assert torch.equal(SphericalPad2d((1, 2), "zeros")(x), torch.nn.functional.pad(x, (2, 2, 1, 1)))
    replicated = torch.nn.functional.pad(x, (2, 2, 1, 1), mode="replicate")
    assert torch.equal(SphericalPad2d((1, 2), "replicate")(x), replicated)


def test_a_convolution_keeps_the_size_and_turns_with_the_globe():
    conv = SphereConv2d(2, 3, 5, dilation=2)
    x = torch.randn(1, 2, 8, 12)
    assert conv(x).shape == (1, 3, 8, 12)
    assert torch.allclose(conv(x.roll(5, -1)), conv(x).roll(5, -1), atol=1e-5)
    flat = SphereConv2d(2, 3, 5, dilation=2, padding="zeros")
    assert not torch.allclose(flat(x.roll(5, -1)), flat(x).roll(5, -1), atol=1e-2)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        SphericalPad2d(-1)
    with pytest.raises(ValueError, match="sphere, replicate, zeros, got 'circular'"):
        SphericalPad2d(1, "circular")
    with pytest.raises(ValueError, match="width must be even, got 7"):
        SphericalPad2d(1)(torch.zeros(1, 1, 4, 7))
    with pytest.raises(ValueError, match="at most the 4 rows there are, got 5"):
        SphericalPad2d(5)(torch.zeros(1, 1, 4, 8))
    with pytest.raises(ValueError, match=r"must be odd.*got 4"):
        SphereConv2d(1, 1, 4)
    with pytest.raises(ValueError, match="dilation must be at least 1, got 0"):
        SphereConv2d(1, 1, 3, dilation=0)
    assert SphericalPad2d((0, 2))(torch.zeros(1, 1, 4, 7)).shape == (1, 1, 4, 11)  # an odd width may go round
