"""Filters shared within the cells of a grid, and their dense evaluation."""

import pytest
import torch
import torch.nn.functional as F

from etude.vision.face_attributes import ANet, InterweavedExtractor, LocallySharedConv2d, dense_positions


def layer(inside=2, outside=3, kernel=3, grid=(3, 3), **options):
    torch.manual_seed(0)
    return LocallySharedConv2d(inside, outside, kernel, grid, **options).double()


def naive(conv, x):
    """Eq. (1), place by place, on a map that the grid divides."""
    batch, _, height, width = x.shape
    rows, columns = conv.grid
    c, d, half = height // rows, width // columns, conv.kernel_size // 2
    out = torch.zeros(batch, conv.out_channels, height, width, dtype=x.dtype)
    for y in range(height):
        for z in range(width):
            i, j = y // c, z // d
            total = conv.bias[i, j].expand(batch, -1).clone()
            for p in range(-half, half + 1):
                for q in range(-half, half + 1):
                    yy, zz = y + p, z + q
                    inside = 0 <= yy < height and 0 <= zz < width
                    if inside and (conv.halo or (yy // c == i and zz // d == j)):
                        total = total + x[:, :, yy, zz] @ conv.weight[i, j, :, :, p + half, q + half].T
            out[:, :, y, z] = total
    return out


@pytest.mark.parametrize("grid", [(3, 3), (1, 1), (2, 3)])
def test_equal_banks_make_a_convolution(grid):
    conv = layer(grid=grid, kernel=5)
    with torch.no_grad():
        conv.weight[:] = conv.weight[0, 0]
        conv.bias[:] = conv.bias[0, 0]
    x = torch.randn(2, 2, 12, 12, dtype=torch.float64)
    torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight[0, 0], conv.bias[0, 0], padding=2), rtol=0, atol=1e-14)


@pytest.mark.parametrize("halo", [True, False])
@pytest.mark.parametrize(("grid", "kernel"), [((3, 3), 3), ((2, 3), 5), ((6, 6), 3)])
def test_equals_a_naive_loop_over_places(grid, kernel, halo):
    conv = layer(grid=grid, kernel=kernel, halo=halo)
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(conv(x), naive(conv, x), rtol=0, atol=1e-13)


def test_a_map_that_the_grid_does_not_divide_is_filled_up_on_the_right_and_below():
    conv = layer()
    x = torch.randn(1, 2, 7, 8, dtype=torch.float64)
    filled = F.pad(x, (0, 1, 0, 2))
    torch.testing.assert_close(conv(x), naive(conv, filled)[..., :7, :8], rtol=0, atol=1e-13)


def test_the_gradient_of_a_bank_depends_on_the_output_of_its_cell_only():
    conv = layer()
    out = conv(torch.randn(1, 2, 6, 6, dtype=torch.float64))
    out[..., 2:4, 4:6].sum().backward()  # cell (1, 2)
    moved = conv.weight.grad.abs().sum((2, 3, 4, 5)) > 0
    assert moved.nonzero().tolist() == [[1, 2]]
    assert (conv.bias.grad.abs().sum(2) > 0).nonzero().tolist() == [[1, 2]]


def test_gradients_match_finite_differences():
    conv = layer(1, 1, grid=(2, 2))
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    weights = (conv.weight.detach().requires_grad_(), conv.bias.detach().requires_grad_())

    def run(x, weight, bias):
        return torch.func.functional_call(conv, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(run, (x, *weights))


def test_parameters_are_those_of_the_banks():
    conv = LocallySharedConv2d(5, 7, 3, (3, 4))
    assert sum(p.numel() for p in conv.parameters()) == 12 * (5 * 7 * 9 + 7)


def test_windows_are_exact_at_every_offset_of_the_full_map():
    conv = layer(grid=(3, 3), kernel=5)
    x = torch.randn(1, 2, 15, 14, dtype=torch.float64)
    padded = F.pad(x, (2, 2, 2, 2))
    found = conv.interweave(x, (9, 9))
    assert found.shape == (1, 7, 6, 3, 9, 9)
    for top in range(7):
        for left in range(6):
            alone = conv.valid(padded[..., top : top + 13, left : left + 13])
            torch.testing.assert_close(found[:, top, left], alone, rtol=0, atol=1e-13)
    # where nothing beyond the window's rim is seen, a window is a map by itself
    inside = conv(x[..., 3:12, 2:11])
    torch.testing.assert_close(found[:, 3, 2][..., 2:-2, 2:-2], inside[..., 2:-2, 2:-2], rtol=0, atol=1e-13)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_interwoven_and_one_by_one_are_the_same_numbers(stride):
    conv = layer(grid=(2, 3))
    x = torch.randn(2, 2, 11, 13, dtype=torch.float64)
    window = (6, 9)
    torch.testing.assert_close(
        conv.interweave(x, window, stride), conv.one_by_one(x, window, stride), rtol=0, atol=1e-13
    )


@pytest.mark.parametrize(("stride", "alone"), [(1, 24_336), (2, 7_056), (4, 2_304)])
def test_work_of_both_ways(stride, alone):
    found = dense_positions((24, 24), (12, 12), stride, (3, 3))
    assert found == {"interwoven": 5_184, "one_by_one": alone}


def small_anet(**changes):
    torch.manual_seed(1)
    options = {"in_channels": 1, "size": 24, "widths": (3, 4, 5), "shared_pools": 1, "feature_dim": 6}
    net = ANet(4, **(options | changes)).double()
    with torch.no_grad():  # norms that do something
        for buffer in (b for name, b in net.named_buffers() if "running_mean" in name):
            buffer += 0.1
    return net.eval()


@pytest.mark.parametrize("stride", [1, 3, 4])
@pytest.mark.parametrize("widths", [(3, 4, 5), (3, 4, 5, 6)])
def test_features_of_windows_are_the_same_either_way(stride, widths):
    anet = small_anet(widths=widths)
    images = torch.randn(2, 1, 48, 40, dtype=torch.float64)
    one, other = (InterweavedExtractor(anet, stride, method=m)(images) for m in ("interwoven", "one_by_one"))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    extractor = InterweavedExtractor(anet, stride)
    assert extractor.boxes(48, 40).shape[:2] == one.shape[1:3]
    torch.testing.assert_close(extractor(images), one, rtol=0, atol=1e-12)


def test_an_image_of_one_window_is_a_crop():
    anet = small_anet()
    crop = torch.randn(3, 1, 24, 24, dtype=torch.float64)
    torch.testing.assert_close(InterweavedExtractor(anet)(crop)[:, 0, 0], anet.features(crop), rtol=0, atol=1e-12)


def test_interweaving_is_chosen_where_it_is_cheaper():
    anet = small_anet()
    for stride, cheaper in ((1, "interwoven"), (2, "interwoven"), (4, "one_by_one")):
        counts = InterweavedExtractor(anet, stride).positions(48, 48)
        assert min(counts, key=counts.get) == cheaper


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LocallySharedConv2d(2, 3, 4), "odd, got 4"),
        (lambda: LocallySharedConv2d(0, 3), "positive, got 0, 3"),
        (lambda: LocallySharedConv2d(2, 3)(torch.zeros(1, 3, 6, 6)), "2 channels, got shape"),
        (lambda: LocallySharedConv2d(2, 3)(torch.zeros(1, 2, 2, 6)), "2 x 6 is smaller than the grid"),
        (lambda: LocallySharedConv2d(2, 3).interweave(torch.zeros(1, 2, 9, 9), (8, 9)), "not divided by the grid"),
        (lambda: LocallySharedConv2d(2, 3).interweave(torch.zeros(1, 2, 9, 9), (12, 9)), "does not fit"),
        (lambda: LocallySharedConv2d(2, 3).interweave(torch.zeros(1, 2, 9, 9), (9, 9), 0), "stride must be positive"),
        (lambda: LocallySharedConv2d(2, 3, halo=False).interweave(torch.zeros(1, 2, 9, 9), (9, 9)), "halo=False"),
        (lambda: InterweavedExtractor(ANet(2, local=False)), "local=False"),
        (lambda: InterweavedExtractor(ANet(2, size=26, shared_pools=1)), "must divide the map of 13 x 13"),
        (lambda: InterweavedExtractor(ANet(2))(torch.zeros(1, 3, 40, 60)), "at least 48 pixels a side"),
        (lambda: dense_positions((8, 8), (9, 8), 1, (1, 1)), "no window"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
