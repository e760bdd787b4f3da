import pytest
import torch

from etude.data.augmentation import auto_augment, crop_and_flip, cutout


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_crop_is_a_shifted_image_or_its_mirror_image():
    images = 1 + torch.arange(2 * 36.0).view(2, 1, 6, 6)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    views = crop_and_flip(images, 2, seeded())
    for image, view in zip(padded, views):
        crops = [image[:, down : down + 6, right : right + 6] for down in range(5) for right in range(5)]
        assert any(torch.equal(view, crop) or torch.equal(view, crop.flip(2)) for crop in crops)


def test_images_of_a_batch_get_places_and_mirrors_of_their_own():
    images = torch.rand(1, 3, 8, 8).expand(64, -1, -1, -1)
    assert len({view.numpy().tobytes() for view in crop_and_flip(images, 1, seeded())}) > 9
    mirrored = (crop_and_flip(images, 0, seeded()) != images).flatten(1).any(1)
    assert 16 < int(mirrored.sum()) < 48


def test_cutout_blackens_one_square_and_nothing_else():
    views = cutout(torch.ones(200, 1, 12, 12), 4, seeded())
    for view in views[:, 0]:
        rows, columns = (view == 0).any(1).nonzero().flatten(), (view == 0).any(0).nonzero().flatten()
        assert 2 <= len(rows) <= 4
        assert int((view == 0).sum()) == len(rows) * len(columns)
        assert int(rows[-1] - rows[0]) + 1 == len(rows)
    assert bool((views == 0).any(0).all())


@pytest.mark.parametrize("channels", [1, 3])
def test_auto_augment_keeps_shape_and_range_and_changes_most_images(channels):
    pytest.importorskip("kornia")
    images = torch.rand(40, channels, 16, 16)
    views = auto_augment(images, generator=seeded())
    assert views.shape == images.shape
    assert 0 <= float(views.min()) <= float(views.max()) <= 1
    assert int((views != images).flatten(1).any(1).sum()) > 20


def test_draws_come_from_the_generator_and_leave_the_global_state_alone():
    pytest.importorskip("kornia")
    images = torch.rand(16, 3, 16, 16)
    for augment in (
        lambda g: crop_and_flip(images, 2, g),
        lambda g: cutout(images, 4, g),
        lambda g: auto_augment(images, generator=g),
    ):
        before = torch.get_rng_state()
        first = augment(seeded(1))
        assert torch.equal(torch.get_rng_state(), before)
        torch.rand(5)
        assert torch.equal(augment(seeded(1)), first)
        assert not torch.equal(augment(seeded(2)), first)


def test_sizes_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="padding must not be negative, got -1"):
        crop_and_flip(torch.rand(1, 1, 4, 4), -1)
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        cutout(torch.rand(1, 1, 4, 4), 0)
