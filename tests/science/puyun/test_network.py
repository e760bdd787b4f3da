"""Large-kernel attention, the network of one step, and the features of time."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from etude.science.puyun import (
    PUYUN_CHANNELS,
    LargeKernelAttention,
    LKABlock,
    PuYun,
    lka_kernels,
    time_encoding,
)


def naive_pad(x, pad):
    across = x.roll(x.shape[-1] // 2, -1).flip(-2)
    x = torch.cat([across[..., x.shape[-2] - pad :, :], x, across[..., :pad, :]], -2)
    return F.pad(x, (pad, pad, 0, 0), mode="circular")


def small(**options):
    values = {"grid": (8, 16), "patch_size": 2, "dim": 4, "depths": (1, 1), "kernel_size": 9, "time_dim": 0}
    return PuYun(3, **(values | options))


UNET = {"fusion": "unet", "depths": (1, 1, 1), "kernel_size": 3, "dilation": 1}


def stirred(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def test_attention_is_the_product_with_three_convolutions():
    layer = LargeKernelAttention(4, 21, 3)
    u = torch.randn(2, 4, 24, 24)
    near = F.conv2d(naive_pad(u, 2), layer.near.weight, layer.near.bias, groups=4)
    far = F.conv2d(naive_pad(near, 9), layer.far.weight, layer.far.bias, groups=4, dilation=3)
    gate = F.conv2d(far, layer.pointwise.weight[:, :, None, None], layer.pointwise.bias)
    assert torch.allclose(layer(u), u * gate, atol=1e-5)


@pytest.mark.parametrize(("kernel", "dilation", "reach"), [(21, 3, 23), (15, 3, 17), (3, 1, 3), (9, 3, 11)])
def test_receptive_field_is_exact(kernel, dilation, reach):
    layer = stirred(LargeKernelAttention(2, kernel, dilation))
    assert layer.receptive_field == reach
    x = torch.randn(1, 2, 48, 48, requires_grad=True)
    # The gate alone: the product with u itself does not widen what is seen.
    layer.pointwise(layer.far(layer.near(x)))[0, 0, 24, 24].backward()
    touched = (x.grad != 0).any(1)[0]
    for axis in (0, 1):
        index = touched.any(axis).nonzero().flatten()
        assert (index.min().item(), index.max().item()) == (24 - reach // 2, 24 + reach // 2)
    assert touched.sum() == reach**2


@torch.no_grad()
def test_delta_kernels_square_the_input_and_a_constant_gate_leaves_it():
    layer = LargeKernelAttention(3, 21, 3)
    for conv in (layer.near, layer.far):
        conv.weight.zero_()
        conv.weight[:, :, conv.kernel_size[0] // 2, conv.kernel_size[1] // 2] = 1
        conv.bias.zero_()
    layer.pointwise.weight.copy_(torch.eye(3))
    layer.pointwise.bias.zero_()
    u = torch.randn(1, 3, 24, 48)
    assert torch.allclose(layer(u), u * u, atol=1e-6)
    layer.pointwise.weight.zero_()
    layer.pointwise.bias.fill_(1)
    assert torch.equal(layer(u), u)


def test_parameter_counts():
    d = 16
    count = sum(p.numel() for p in LargeKernelAttention(d, 21, 3).parameters())
    assert count == d * (25 + 49 + d + 3)
    # The arms of the claims, as the sheet counts them.
    for kernel, dilation, dim, expected in ((3, 1, 32, 52_268), (3, 1, 34, 57_438), (15, 3, 32, 57_388)):
        model = PuYun(3, (32, 64), 2, dim, (2, 2), kernel_size=kernel, dilation=dilation, mlp_ratio=2, time_dim=0)
        assert sum(p.numel() for p in model.parameters()) == expected


def test_even_kernels_are_refused_with_what_would_do():
    assert lka_kernels(21, 3) == (5, 7)
    with pytest.raises(ValueError, match=r"kernel of 6 points.*take kernel_size 15 or 21"):
        lka_kernels(18, 3)
    with pytest.raises(ValueError, match="must be positive, got 0 and 3"):
        lka_kernels(0, 3)


def test_block_equals_its_equations():
    block = stirred(LKABlock(4, 9, 3, mlp_ratio=2, time_dim=5))
    x, t = torch.randn(2, 4, 8, 12), torch.randn(2, 5)

    def norm(layer, y):
        return F.layer_norm(y.movedim(1, -1), (4,), layer.weight, layer.bias).movedim(-1, 1)

    def pointwise(layer, y):
        return F.conv2d(y, layer.weight[:, :, None, None], layer.bias)

    scale, shift = (t @ block.time.weight.T + block.time.bias)[:, :, None, None].chunk(2, 1)
    inner = norm(block.norm1, x) * (1 + scale) + shift
    a = pointwise(block.leave, block.attention(F.gelu(pointwise(block.enter, inner)))) + inner
    y = x + block.scale1 * a
    hidden = F.gelu(block.local(pointwise(block.expand, norm(block.norm2, y))))
    expected = y + block.scale2 * pointwise(block.contract, hidden)
    assert torch.allclose(block(x, t), expected, atol=1e-4)


def test_layer_scale_and_time_begin_small():
    block = LKABlock(4, 9, 3, time_dim=12)
    assert bool((block.scale1 == 1e-2).all() & (block.scale2 == 1e-2).all())
    x = torch.randn(1, 4, 8, 12)
    assert torch.equal(block(x, torch.randn(1, 12)), block(x, torch.zeros(1, 12)))


@pytest.mark.parametrize("options", [{}, UNET, {"padding": "zeros"}])
def test_an_untrained_model_is_persistence(options):
    x = torch.randn(2, 2, 3, 8, 16)
    assert torch.equal(small(**options)(x), x[:, 1])


def test_turning_the_globe_turns_the_forecast():
    x = torch.randn(1, 2, 3, 8, 16)
    for options, turn in (({}, 6), (UNET, 4)):
        model = stirred(small(position_bias=False, **options)).eval()
        assert torch.allclose(model(x.roll(turn, -1)), model(x).roll(turn, -1), atol=1e-4)
    flat = stirred(small(padding="zeros", position_bias=False)).eval()
    assert not torch.allclose(flat(x.roll(6, -1)), flat(x).roll(6, -1), atol=1e-2)


@pytest.mark.parametrize(("uneven", "grid"), [("crop", (9, 16)), ("pad", (9, 16)), ("pad", (11, 16))])
def test_a_row_too_many_is_cropped_or_padded(uneven, grid):
    model = stirred(small(grid=grid, patch_size=4 if grid[0] == 11 else 2, uneven=uneven)).eval()
    x = torch.randn(1, 2, 3, *grid)
    change = model(x) - x[:, 1]
    assert change.shape == (1, 3, *grid)
    if uneven == "crop":
        # The pole lies between the last row here and the last row half a circle away.
        expected = (change[..., -2, :] + change[..., -2, :].roll(8, -1)) / 2
        assert torch.allclose(change[..., -1, :], expected, atol=1e-5)
        x[..., -1, :] += 1
        assert torch.allclose(model(x) - x[:, 1], change, atol=1e-5)


def test_the_u_shape_halves_the_map_in_its_middle():
    model = stirred(small(**UNET))
    seen = []
    for stage in model.stages:
        stage[0].register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape[-2:])))
    model(torch.randn(1, 2, 3, 8, 16))
    assert seen == [(4, 8), (2, 4), (4, 8)]


def test_static_maps_enter_and_are_checked():
    model = stirred(small(num_statics=2))
    x = torch.randn(1, 2, 3, 8, 16)
    before = model(x)
    model.set_statics(torch.randn(2, 8, 16))
    assert not torch.allclose(model(x), before)
    with pytest.raises(ValueError, match=r"shape \(2, 8, 16\), got \(1, 8, 16\)"):
        model.set_statics(torch.zeros(1, 8, 16))
    with pytest.raises(ValueError, match="NaN"):
        model.set_statics(torch.full((2, 8, 16), math.nan))


def test_recomputed_blocks_have_the_same_gradients():
    x = torch.randn(1, 2, 3, 8, 16)
    gradients = []
    for recompute in (False, True):
        model = stirred(small(checkpoint_blocks=recompute))
        model(x).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients):
        assert torch.equal(one, other)


def test_a_saved_model_forecasts_the_same(tmp_path):
    model = stirred(small(num_statics=1)).set_statics(torch.randn(1, 8, 16)).eval()
    model.save_pretrained(tmp_path)
    x = torch.randn(1, 2, 3, 8, 16)
    assert torch.equal(PuYun.from_pretrained(tmp_path).eval()(x), model(x))


def test_bad_grids_and_inputs_are_refused():
    with pytest.raises(ValueError, match="do not divide 10 latitudes"):
        small(grid=(10, 16), patch_size=4)
    with pytest.raises(ValueError, match="must divide the longitudes, got a grid of 8 x 15"):
        small(grid=(8, 15))
    with pytest.raises(ValueError, match="even number of columns of tokens, got 7"):
        small(grid=(8, 14))
    with pytest.raises(ValueError, match="halves 4 x 4 tokens 2 times"):
        small(grid=(8, 8), fusion="unet", depths=(1, 1, 1, 1, 1))
    with pytest.raises(ValueError, match="reaches 9 tokens across the pole, of 4 rows"):
        small(kernel_size=21)
    with pytest.raises(ValueError, match="'concat' or 'unet', got 'sum'"):
        small(fusion="sum")
    with pytest.raises(ValueError, match=r"frames must have shape \(batch, 2, 3, .*got \(1, 2, 3, 8, 12\)"):
        small()(torch.zeros(1, 2, 3, 8, 12))
    with pytest.raises(ValueError, match=r"time_features must have shape \(batch, 12\), got None"):
        small(time_dim=12)(torch.zeros(1, 2, 3, 8, 16))


def test_channels_of_the_published_model():
    assert len(PUYUN_CHANNELS) == 69
    assert (PUYUN_CHANNELS[0], PUYUN_CHANNELS[13], PUYUN_CHANNELS[64]) == ("z50", "t50", "r1000")
    assert PUYUN_CHANNELS[65:] == ("t2m", "u10", "v10", "msl")


def test_time_features_are_those_of_the_published_plug_in():
    got = time_encoding(np.array(["2023-01-01T00"], dtype="datetime64[h]"), two_pi=False)[0]
    # Of the middle time, 1 January 00 UTC: sin and cos of 1/366 and 0.
    assert got[4:8].tolist() == pytest.approx([0.002732, 0, 0.999996, 1], abs=1e-6)
    before, after = got[:4], got[8:]
    day = 365 / 366
    expected = [math.sin(day), math.sin(0.75), math.cos(day), math.cos(0.75)]
    assert before.tolist() == pytest.approx(expected, abs=1e-6)
    assert after.tolist() == pytest.approx(
        [math.sin(1 / 366), math.sin(0.25), math.cos(1 / 366), math.cos(0.25)], abs=1e-6
    )


def test_time_features_close_the_year_and_the_day():
    times = np.array(["2024-12-31T18", "2024-03-01T12"], dtype="datetime64[h]")
    got = time_encoding(times)
    assert got.shape == (2, 12)
    assert got[0, 4].item() == pytest.approx(0, abs=1e-6)  # day 366 of 366
    assert got[1, 4].item() == pytest.approx(math.sin(2 * math.pi * 61 / 366), abs=1e-6)
    assert got[1, 5].item() == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="datetime64 of shape"):
        time_encoding(np.array([1.0]))
    with pytest.raises(ValueError, match="hours must be positive, got 0"):
        time_encoding(times, 0)


def test_padding_modes_share_their_parameters():
    names = {mode: list(small(padding=mode).state_dict()) for mode in ("sphere", "zeros", "replicate")}
    assert names["sphere"] == names["zeros"] == names["replicate"]
    assert isinstance(small(), nn.Module)
