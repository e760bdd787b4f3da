"""Crops of natural images."""

import pytest
import torch

from etude.data.images.natural import natural_crops


def test_crops_of_the_parts_share_no_pixel_and_are_balanced_and_standardised():
    crops = natural_crops(n=600)
    for part, n in ((crops.train, 400), (crops.val, 100), (crops.test, 100)):
        assert part.inputs.shape == (n, 1, 16, 16)
        assert part.targets.bincount().tolist() == [n // 10] * 10
        torch.testing.assert_close(part.inputs.mean((1, 2, 3)), torch.zeros(n), atol=1e-4, rtol=0)
        assert (part.inputs.std((1, 2, 3)) <= 1.01).all()
    assert torch.equal(natural_crops(n=600).test.inputs, crops.test.inputs)
    for bad, message in (
        ({"n": 61}, "positive multiple of 60, got 61"),
        ({"size": 33}, "size must lie in 4..32, got 33"),
    ):
        with pytest.raises(ValueError, match=message):
            natural_crops(**bad)
