import numpy as np
import pytest
import torch

from etude.data.kinds import Examples
from etude.vision.pixels import to_images


def test_integers_are_scaled_and_floats_are_not():
    assert to_images(np.full((2, 3, 4), 255, dtype=np.uint8)).tolist() == torch.ones(2, 1, 3, 4).tolist()
    assert to_images(np.full((1, 3, 4), 65_535, dtype=np.uint16)).max().item() == 1
    assert to_images(torch.tensor([[[True, False]]])).flatten().tolist() == [1, 0]
    x = torch.randn(2, 5, 6, 6)
    assert torch.equal(to_images(x), x)
    assert torch.equal(to_images(Examples(x, torch.zeros(2))), x)


def test_channels_may_come_last():
    last = np.random.default_rng(0).random((2, 6, 7, 3), dtype=np.float32)
    assert torch.equal(to_images(last), torch.from_numpy(last).permute(0, 3, 1, 2))
    assert to_images(np.zeros((2, 3, 6, 4), dtype=np.float32)).shape == (2, 3, 6, 4)


def test_grey_and_colour_become_each_other():
    grey, colour = torch.rand(1, 1, 2, 2), torch.rand(1, 3, 2, 2)
    assert torch.equal(to_images(grey, 3), grey.expand(1, 3, 2, 2))
    brightness = 0.299 * colour[:, :1] + 0.587 * colour[:, 1:2] + 0.114 * colour[:, 2:]
    torch.testing.assert_close(to_images(colour, 1), brightness)
    with pytest.raises(ValueError, match="from 3 channels to 5"):
        to_images(colour, 5)


def test_transparency_is_laid_over_black():
    rgba = torch.tensor([[[[200]], [[100]], [[0]], [[51]]]], dtype=torch.uint8)
    scaled = rgba.float() / 255
    torch.testing.assert_close(to_images(rgba), scaled[:, :3] * 0.2)
    torch.testing.assert_close(to_images(rgba, 4), scaled)
    torch.testing.assert_close(to_images(rgba[:, 2:]), scaled[:, 2:3] * 0.2)
    torch.testing.assert_close(to_images(scaled, 3), scaled[:, :3] * 0.2)
    torch.testing.assert_close(to_images(scaled[:, :2], 3), (scaled[:, :1] * scaled[:, 1:2]).expand(1, 3, 1, 1))


def test_floats_keep_their_channels():
    maps = torch.rand(2, 4, 5, 5)
    assert torch.equal(to_images(maps), maps)


def test_what_is_no_image_is_refused():
    for given, error, message in (
        (np.zeros((2, 3)), ValueError, r"got \(2, 3\)"),
        (np.zeros((0, 3, 3)), ValueError, "no pixels"),
        (np.zeros((2, 3, 3), dtype=np.int64), TypeError, "int64"),
        (np.full((1, 2, 2), np.nan), ValueError, "4 of them"),
    ):
        with pytest.raises(error, match=message):
            to_images(given)
