"""DeiT's augmentation: mixing, repeated views, isolated draws."""

import pytest
import torch

from etude.vision.convit import DeiTAugmentation, RepeatedAugmentation, mix_images


def batch(size=6):
    images = torch.arange(size, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 3, 20, 20).clone() / size
    return images, torch.arange(size) % 3


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0), (0, 1.0), (0.8, 1.0)])
def test_targets_are_mixed_in_the_share_of_the_pixels(mixup, cutmix):
    images, labels = batch()
    generator = torch.Generator().manual_seed(0)
    shares = set()
    for _ in range(10):
        mixed, targets = mix_images(images, labels, 3, mixup=mixup, cutmix=cutmix, generator=generator)
        torch.testing.assert_close(targets.sum(1), torch.ones(6))
        # constant images: the mean pixel tells the share of the own image
        share = ((mixed.mean((1, 2, 3)) - images.flip(0)[:, 0, 0, 0]) / (images - images.flip(0))[:, 0, 0, 0])[0]
        one_hot = torch.eye(3)[labels]
        torch.testing.assert_close(targets, share * one_hot + (1 - share) * one_hot.flip(0), atol=1e-4, rtol=0)
        shares.add(round(share.item(), 3))
    assert len(shares) > 5
    assert all(-1e-3 <= share <= 1 + 1e-3 for share in shares)


def test_no_mixing_leaves_images_and_gives_one_hot_targets():
    images, labels = batch()
    same, targets = mix_images(images, labels, 3, mixup=0, cutmix=0)
    assert torch.equal(same, images)
    assert torch.equal(targets, torch.eye(3)[labels])
    with pytest.raises(ValueError, match="must not be negative, got -1 and 1"):
        mix_images(images, labels, 3, mixup=-1, cutmix=1)


def test_augmentation_is_drawn_from_its_generator_alone():
    pytest.importorskip("kornia")
    images = torch.rand(6, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(6) % 3
    before = torch.get_rng_state()
    first, second = (
        DeiTAugmentation(3, generator=torch.Generator().manual_seed(3))((images, labels)) for _ in range(2)
    )
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert first[0].shape == images.shape
    assert bool(torch.isfinite(first[0]).all())
    with pytest.raises(ValueError, match=r"magnitude must lie in 1..9, got 10"):
        DeiTAugmentation(3, magnitude=10)


def test_repeated_augmentation_draws_a_third_of_the_examples_three_times():
    sampler = RepeatedAugmentation(range(12), generator=torch.Generator().manual_seed(0))
    first, second = list(sampler), list(sampler)
    assert len(sampler) == len(first) == 12
    assert [first[place] for place in range(0, 12, 3) for _ in range(3)] == first
    assert len(set(first)) == 4
    assert first != second
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        RepeatedAugmentation(range(3), repeats=0)
