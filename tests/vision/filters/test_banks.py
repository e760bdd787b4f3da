"""Banks that are given by formulas, and the interface of all banks."""

import math

import numpy as np
import pytest
import pywt
import scipy.fft
import torch
from skimage.filters import gabor_kernel

from etude.vision.filters import FilterBank, filter_bank, max_response, packet_filters, wavelet_transform
from etude.vision.filters.fixed import BANKS

_SIZES = {"wavelet": None, "sobel": 3, "prewitt": 3, "laplacian": 3, "hadamard": 8}


@pytest.mark.parametrize("name", list(BANKS))
def test_every_bank_has_unit_norm_and_no_mean(name):
    bank = filter_bank(name, _SIZES.get(name, 9))
    assert bank.channels == 1
    torch.testing.assert_close(bank.weight.flatten(1).norm(dim=1), torch.ones(len(bank)))
    torch.testing.assert_close(bank.weight.mean(dim=(1, 2, 3)), torch.zeros(len(bank)), atol=1e-6, rtol=0)
    assert torch.equal(bank.weight, filter_bank(name, _SIZES.get(name, 9)).weight)


@pytest.mark.parametrize("size", [5, 7, 11])
def test_gabor_filters_are_those_of_skimage(size):
    bank = filter_bank("gabor", size, 32)
    assert bank.steered
    assert sorted(set(bank.meta["frequency"].tolist())) == pytest.approx([7 / (6 * size), 2 / size])
    assert bank.meta["orientation"].unique().numel() == 8
    facts = zip(*(bank.meta[key].tolist() for key in ("orientation", "frequency", "phase")))
    for kernel, (theta, frequency, phase) in zip(bank.weight[:, 0].double().numpy(), facts):
        sigma = 0.45 / frequency
        full = np.real(
            gabor_kernel(frequency, theta=theta, sigma_x=sigma, sigma_y=sigma / math.sqrt(0.5), offset=phase, n_stds=40)
        )
        middle, reach = (np.array(full.shape) - 1) // 2, size // 2
        cut = full[middle[0] - reach : middle[0] + reach + 1, middle[1] - reach : middle[1] + reach + 1]
        expected = cut - cut.mean()
        np.testing.assert_allclose(kernel, expected / np.linalg.norm(expected), atol=1e-6)


def test_an_even_gabor_filter_has_a_half_pixel_centre():
    bank = filter_bank("gabor", 6, 4)
    assert bank.meta["phase"].tolist() == [0, math.pi / 2] * 2
    even, odd = bank.weight[0, 0], bank.weight[1, 0]
    torch.testing.assert_close(even, even.flip(0, 1))
    torch.testing.assert_close(odd, -odd.flip(0, 1), atol=1e-6, rtol=0)


def test_the_full_dct_is_a_basis_and_equals_scipy():
    bank = filter_bank("dct", 5, 25, dc=True)
    rows = bank.weight.flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(25), atol=1e-6, rtol=0)
    patch = np.random.default_rng(0).standard_normal((5, 5))
    ours = (bank.weight[:, 0].double().numpy() * patch).sum(axis=(1, 2))
    theirs = scipy.fft.dctn(patch, norm="ortho")
    u = (bank.meta["row_frequency"] * 10).round().long()
    v = (bank.meta["column_frequency"] * 10).round().long()
    np.testing.assert_allclose(ours, theirs[u, v], atol=1e-6)
    assert ((u + v).diff() >= 0).all()


@pytest.mark.parametrize("wavelet", ["haar", "db2", "sym4"])
@pytest.mark.parametrize("size", [(8, 8), (12, 20)])
def test_wavelet_convolutions_equal_pywavelets(wavelet, size):
    x = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    bands = wavelet_transform(x, wavelet)
    approximation, (horizontal, vertical, diagonal) = pywt.dwt2(x.numpy(), wavelet, mode="periodization")
    expected = np.stack([approximation, horizontal, vertical, diagonal], axis=2)
    np.testing.assert_allclose(bands.numpy(), expected, atol=1e-14)
    bank = filter_bank("wavelet", None, dc=True, wavelet=wavelet)
    conv = bank.to_conv(3, stride=2, padding=bank.size[0] // 2 - 1, padding_mode="circular", color="per_channel")
    np.testing.assert_allclose(conv(x.float()).unflatten(1, (3, 4)).detach(), expected, atol=1e-5)


def test_a_packet_filter_does_two_steps_at_once():
    x = torch.randn(1, 1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    filters, paths = packet_filters("haar", 2)
    assert filters.shape == (16, 4, 4)
    once = torch.nn.functional.conv2d(x, torch.from_numpy(filters)[:, None], stride=4)[0]
    first = wavelet_transform(x, "haar")[0]
    for path, band in zip(paths, once):
        second = wavelet_transform(first[:, "AHVD".index(path[0])][None], "haar")
        torch.testing.assert_close(band, second[0, 0, "AHVD".index(path[1])])
    flat = torch.from_numpy(filters).flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(16, dtype=torch.float64))


def test_a_hadamard_bank_is_a_basis_of_signs():
    bank = filter_bank("hadamard", 4, 16, dc=True)
    rows = bank.weight.flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(16))
    assert (rows.abs() == 0.25).all()


def test_sobel_points_where_it_says():
    kernels = filter_bank("sobel", 3).weight[:, 0] * 12**0.5
    torch.testing.assert_close(kernels[0], torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]))
    torch.testing.assert_close(kernels[2], torch.tensor([[-1.0, -2, -1], [0, 0, 0], [1, 2, 1]]))
    torch.testing.assert_close(kernels[1], torch.tensor([[-2.0, -1, 0], [-1, 0, 1], [0, 1, 2]]))


def test_gaussian_derivatives_are_finite_differences_of_the_gaussian():
    bank = filter_bank("gaussian_derivatives", 15, sigma=2.0, order=2)
    axis, step = torch.arange(15).double() - 7, 1e-4

    def gauss(x, y):
        return torch.exp(-(x[None, :] ** 2 + y[:, None] ** 2) / 8)

    by_x = (gauss(axis + step, axis) - gauss(axis - step, axis)) / (2 * step)
    by_xy = (
        gauss(axis + step, axis + step) - gauss(axis + step, axis - step) - gauss(axis - step, axis + step)
        + gauss(axis - step, axis - step)
    )  # fmt: skip
    orders = list(zip(bank.meta["order_x"].tolist(), bank.meta["order_y"].tolist()))
    for expected, order in ((by_x, (1, 0)), (by_xy, (1, 1))):
        found = bank.weight[orders.index(order), 0].double()
        torch.testing.assert_close(found, expected / expected.norm(), atol=1e-5, rtol=0)


def test_texture_banks_have_their_published_sizes_and_symmetries():
    assert [len(filter_bank(name, 49)) for name in ("schmid", "leung_malik", "mr8")] == [13, 48, 38]
    schmid = filter_bank("schmid", 21).weight
    torch.testing.assert_close(schmid, schmid.rot90(1, (2, 3)))
    bank = filter_bank("mr8", 21)
    x = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    responses = bank.to_conv(1, padding=0)(x)
    most = max_response(responses, bank.meta["group"])
    assert most.shape == (2, 8, 12, 12)
    torch.testing.assert_close(most[:, 0], responses[:, :6].amax(dim=1))
    torch.testing.assert_close(most[:, 7], responses[:, 37])


def test_colours_of_a_convolution():
    bank = filter_bank("gabor", 5, 8)
    x = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    single = [bank.to_conv(1)(x[:, channel : channel + 1]) for channel in range(3)]
    torch.testing.assert_close(bank.to_conv(3)(x), sum(single) / 3**0.5)
    luma = 0.299 * single[0] + 0.587 * single[1] + 0.114 * single[2]
    torch.testing.assert_close(bank.to_conv(3, color="luma")(x), luma, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(bank.to_conv(3, color="per_channel")(x), torch.cat(single, dim=1))
    torch.testing.assert_close(bank.to_conv(3).weight.flatten(1).norm(dim=1), torch.ones(8))


def test_a_convolution_learns_only_if_asked_and_does_not_touch_the_bank():
    bank = filter_bank("dct", 3, 4)
    assert not bank.to_conv().weight.requires_grad
    conv = bank.to_conv(trainable=True, stride=2)
    assert conv(torch.rand(1, 1, 8, 8)).shape == (1, 4, 4, 4)
    before = bank.weight.clone()
    with torch.no_grad():
        conv.weight.zero_()
    assert torch.equal(bank.weight, before)


def test_taking_and_joining_keep_what_is_known():
    bank = filter_bank("gabor", 7, 32)
    some = bank.take([3, 5])
    assert torch.equal(some.meta["orientation"], bank.meta["orientation"][[3, 5]])
    assert len(some.join(bank.take(slice(0, 4)))) == 6
    assert filter_bank("wavelet", None).take([1]).meta["band"] == ["V"]


@pytest.mark.parametrize(
    ("name", "size", "num", "arguments", "words"),
    [
        ("gabors", 5, 4, {}, "name must be one of"),
        ("dct", 3, 9, {}, "8 filters without the constant"),
        ("dct", 3, 10, {"dc": True}, "9 filters"),
        ("gabor", 7, 10, {}, "multiple of 4"),
        ("hadamard", 6, 4, {}, "power of two"),
        ("wavelet", 5, None, {}, "size 2"),
        ("wavelet", None, None, {"wavelet": "ricker"}, "ricker"),
        ("sobel", 5, None, {}, "3 x 3"),
        ("gabor", None, 4, {}, "needs a size"),
        ("gabor", 1, 4, {}, "at least 2"),
        ("gabor", 7, 0, {}, "at least 1"),
        ("dct", 3, 4, {"wavelet": "haar"}, "wavelet"),
        ("schmid", 9, 14, {}, "13 filters"),
        ("log", 9, 2, {"sigmas": [1.0]}, "1 sigmas"),
    ],
)
def test_what_no_bank_can_give_is_refused(name, size, num, arguments, words):
    with pytest.raises(ValueError, match=words):
        filter_bank(name, size, num, **arguments)


def test_a_transform_of_odd_images_is_refused():
    with pytest.raises(ValueError, match="even, got 7 x 8"):
        wavelet_transform(torch.rand(1, 1, 7, 8))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: filter_bank("dct", 3, 4).to_conv(2, color="luma"), "in_chans=2"),
        (lambda: filter_bank("dct", 3, 4).to_conv(3, color="rgb"), "rgb"),
        (lambda: FilterBank(torch.rand(2, 3, 3, 3), "rgb").to_conv(1), "3 channels"),
        (lambda: FilterBank(torch.rand(2, 3, 3), "flat"), r"\(2, 3, 3\)"),
        (lambda: FilterBank(torch.full((1, 1, 3, 3), torch.nan), "nan"), "NaN"),
        (lambda: FilterBank(torch.ones(1, 1, 3, 3), "ones").normalised(), "constant"),
        (lambda: filter_bank("dct", 3, 4).join(filter_bank("dct", 5, 4)), "one shape"),
    ],
)
def test_banks_that_do_not_fit_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
