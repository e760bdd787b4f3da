"""Conversion of pictures, crops and patches."""

import numpy as np
import pytest
import torch

from etude.vision.face_attributes import convert_images, crop_and_resize, flip_at_random, multi_patch


@pytest.mark.parametrize("shape", [(2, 5, 6), (2, 1, 5, 6), (2, 5, 6, 1)])
def test_grey_becomes_equal_channels(shape):
    found = convert_images(np.full(shape, 51, dtype=np.uint8))
    assert found.shape == (2, 3, 5, 6)
    torch.testing.assert_close(found, torch.full((2, 3, 5, 6), 0.2))


def test_colour_becomes_one_channel_of_luma():
    red = np.zeros((1, 5, 6, 3), dtype=np.uint8)
    red[..., 0] = 255
    torch.testing.assert_close(convert_images(red, 1), torch.full((1, 1, 5, 6), 0.299))


def test_transparency_is_laid_over_black():
    rgba = torch.ones(1, 4, 5, 6)
    rgba[:, 3] = 0.25
    torch.testing.assert_close(convert_images(rgba), torch.full((1, 3, 5, 6), 0.25))
    grey_alpha = torch.full((1, 2, 5, 6), 0.5)
    torch.testing.assert_close(convert_images(grey_alpha, 1), torch.full((1, 1, 5, 6), 0.25))


def test_sixteen_bits_are_divided_by_their_largest_value():
    found = convert_images(np.full((1, 5, 6), 65535, dtype=np.uint16), 1)
    assert found.unique().tolist() == [1.0]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 5, 5, 6)), r"\(n, h, w\), \(n, c, h, w\) or"),
        (np.zeros((5, 6)), r"got \(5, 6\)"),
        (np.zeros((0, 5, 6)), r"got \(0, 5, 6\)"),
        (np.full((1, 5, 6), 2.0), "got 2..2"),
        (np.full((1, 5, 6), np.nan), "must lie in"),
        (np.zeros((1, 5, 6), dtype=np.int64), "uint8, uint16 or floats"),
    ],
)
def test_other_arrays_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        convert_images(images)
    with pytest.raises(ValueError, match="channels must be 1 or 3, got 2"):
        convert_images(np.zeros((1, 5, 6)), 2)


def test_a_crop_of_its_own_size_is_a_slice():
    images = torch.rand(2, 3, 20, 30, dtype=torch.float64)
    boxes = torch.tensor([[4.0, 3.0, 16.0, 11.0], [0.0, 12.0, 12.0, 20.0]])
    found = crop_and_resize(images, boxes, (8, 12))
    torch.testing.assert_close(found[0], images[0, :, 3:11, 4:16], rtol=0, atol=1e-12)
    torch.testing.assert_close(found[1], images[1, :, 12:20, 0:12], rtol=0, atol=1e-12)


def test_a_crop_half_as_large_averages_pairs_of_pixels():
    images = torch.rand(1, 1, 16, 16, dtype=torch.float64)
    found = crop_and_resize(images, torch.tensor([[0.0, 0.0, 16.0, 16.0]]), 8)
    torch.testing.assert_close(found, torch.nn.functional.avg_pool2d(images, 2), rtol=0, atol=1e-12)


def test_a_crop_many_times_smaller_keeps_the_mean():
    images = torch.rand(1, 1, 64, 64, dtype=torch.float64)
    found = crop_and_resize(images, torch.tensor([[0.0, 0.0, 64.0, 64.0]]), 4)
    torch.testing.assert_close(found, torch.nn.functional.avg_pool2d(images, 16), rtol=0, atol=1e-12)


def test_outside_the_image_the_rim_is_repeated():
    images = torch.rand(1, 1, 6, 6, dtype=torch.float64)
    found = crop_and_resize(images, torch.tensor([[-3.0, 0.0, 3.0, 6.0]]), 6)
    torch.testing.assert_close(found[..., :3], images[..., :1].expand(1, 1, 6, 3), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([4.0, 3.0, 4.0, 9.0], "left < right"),
        ([4.0, 3.0, float("nan"), 9.0], "left < right"),
        ([30.0, 3.0, 40.0, 9.0], "lies outside its 20 x 30 image"),
        ([-9.0, 3.0, 0.0, 9.0], "lies outside"),
    ],
)
def test_boxes_without_a_crop_are_refused(box, message):
    with pytest.raises(ValueError, match=message):
        crop_and_resize(torch.zeros(1, 1, 20, 30), torch.tensor([box]), 8)


def test_patches_are_the_region_and_its_shifts_at_every_scale():
    images = torch.rand(2, 1, 40, 40, dtype=torch.float64)
    boxes = torch.tensor([[10.0, 10.0, 30.0, 30.0]]).expand(2, 4)
    found = multi_patch(images, boxes, 20, crops=5, scales=(1.0, 1.2), shift=0.1, flips=True)
    assert found.shape == (2, 20, 1, 20, 20)
    torch.testing.assert_close(found[:, 0], images[..., 10:30, 10:30], rtol=0, atol=1e-12)
    torch.testing.assert_close(found[:, 1], found[:, 0].flip(3))
    torch.testing.assert_close(found[:, 2], images[..., 8:28, 8:28], rtol=0, atol=1e-12)
    torch.testing.assert_close(found[:, 8], images[..., 12:32, 12:32], rtol=0, atol=1e-12)
    torch.testing.assert_close(found[:, 10], crop_and_resize(images, boxes + torch.tensor([-2.0, -2, 2, 2]), 20))
    with pytest.raises(ValueError, match="crops must be 1 or 5, got 3"):
        multi_patch(images, boxes, 20, crops=3)
    with pytest.raises(ValueError, match="scales must be positive"):
        multi_patch(images, boxes, 20, scales=(0.0,))


def test_half_of_the_images_are_mirrored():
    images = torch.arange(4.0).expand(200, 1, 4, 4)
    found = flip_at_random(images, torch.Generator().manual_seed(0))
    mirrored = (found[:, 0, 0, 0] == 3).double().mean().item()
    assert 0.35 < mirrored < 0.65
