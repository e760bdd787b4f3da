"""Planting a feature: who gets it, who does not, and what is refused; removal; colour shifts."""

import math

import pytest
import torch

from etude.training.opposing_signals import colour_shift, inject_opposing_patch, remove_examples


@pytest.fixture
def images():
    x = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return x, torch.arange(60) % 3


def test_equal_counts_of_each_class_receive_the_same_feature_and_nobody_else(images):
    x, y = images
    untouched, labels = x.clone(), y.clone()
    patched = inject_opposing_patch(x, y, classes=(0, 2), fraction=0.1, amplitude=6.0)
    assert torch.equal(x, untouched)
    assert torch.equal(patched.y, labels)
    assert [len(rows) for rows in patched.groups] == [6, 6]
    assert [set(y[rows].tolist()) for rows in patched.groups] == [{0}, {2}]
    assert len(set(patched.rows.tolist())) == 12
    others = torch.tensor([row for row in range(60) if row not in set(patched.rows.tolist())])
    assert torch.equal(patched.x[others], x[others])
    added = patched.x[patched.rows] - x[patched.rows]
    torch.testing.assert_close(added, (6.0 * patched.pattern).expand_as(added))


def test_the_feature_has_unit_norm_on_the_top_quarter_or_the_given_mask(images):
    x, y = images
    pattern = inject_opposing_patch(x, y, classes=(0, 1), fraction=0.1, amplitude=1.0).pattern
    assert float(pattern.norm()) == pytest.approx(1.0)
    assert torch.equal(pattern != 0, (torch.arange(8) < 2)[None, :, None].expand(1, 8, 8))
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, 3, 4] = True
    pattern = inject_opposing_patch(x, y, classes=(0, 1), fraction=0.1, amplitude=1.0, mask=mask).pattern
    assert pattern[0, 3, 4] == 1.0
    assert pattern.count_nonzero() == 1
    rows = inject_opposing_patch(x.flatten(1), y, classes=(0, 1), fraction=0.1, amplitude=1.0).pattern
    assert rows.count_nonzero() == 16


def test_one_class_gives_outliers_that_agree(images):
    x, y = images
    patched = inject_opposing_patch(x, y, classes=(1,), fraction=0.2, amplitude=6.0)
    assert [len(rows) for rows in patched.groups] == [12]


def test_the_generator_chooses_the_images(images):
    x, y = images

    def rows(seed):
        generator = torch.Generator().manual_seed(seed)
        return inject_opposing_patch(x, y, classes=(0, 1), fraction=0.1, amplitude=1.0, generator=generator).rows

    assert torch.equal(rows(0), rows(0))
    assert not torch.equal(rows(0), rows(1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": ()}, "at least one class"),
        ({"classes": (0, 7)}, "class 7 has 0 images; a fraction of 0.1 of 60 needs 6"),
        ({"fraction": 0.5}, "class 0 has 20 images; a fraction of 0.5 of 60 needs 30"),
        ({"fraction": 0.0}, r"fraction must lie in \(0, 1\], got 0.0"),
        ({"amplitude": math.inf}, "amplitude must be finite, got inf"),
        ({"mask": torch.ones(1, 4, 4, dtype=torch.bool)}, r"shape of one image, \(1, 8, 8\), got \(1, 4, 4\)"),
        ({"mask": torch.zeros(1, 8, 8, dtype=torch.bool)}, "mask selects no entry"),
    ],
)
def test_what_cannot_be_planted_is_refused(images, arguments, message):
    x, y = images
    with pytest.raises(ValueError, match=message):
        inject_opposing_patch(x, y, **{"classes": (0, 1), "fraction": 0.1, "amplitude": 6.0} | arguments)


def test_removal_keeps_the_others_in_order(images):
    x, y = images
    kept_x, kept_y, kept = remove_examples(x, y, [3, 0, 3])
    assert kept.tolist() == [1, 2, *range(4, 60)]
    assert torch.equal(kept_x, x[kept])
    assert torch.equal(kept_y, y[kept])
    assert len(remove_examples(x, y, torch.empty(0, dtype=torch.int64))[0]) == 60
    with pytest.raises(ValueError, match=r"rows must lie in 0\.\.59, got -1\.\.60"):
        remove_examples(x, y, [-1, 60])
    with pytest.raises(ValueError, match="leaves none"):
        remove_examples(x, y, range(60))


def test_a_colour_shift_draws_the_background_towards_the_colour():
    x = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    colour = torch.tensor([0.1, 0.5, 0.9])
    shifted = colour_shift(x, colour.tolist(), strength=0.25)
    torch.testing.assert_close(shifted, 0.75 * x + 0.25 * colour[:, None, None])
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[0, :2] = True
    shifted = colour_shift(x, colour.tolist(), strength=1.0, mask=mask)
    torch.testing.assert_close(shifted[0, :, :2], colour[:, None, None].expand(3, 2, 4))
    assert torch.equal(shifted[0, :, 2:], x[0, :, 2:])
    assert torch.equal(shifted[1], x[1])
    assert torch.equal(colour_shift(x, strength=0.0), x)


def test_bad_colour_shifts_are_refused():
    x = torch.rand(2, 3, 4, 4)
    with pytest.raises(ValueError, match="each of 3 channels, got 1"):
        colour_shift(x, (0.5,))
    with pytest.raises(ValueError, match=r"strength must lie in \[0, 1\], got 2"):
        colour_shift(x, strength=2.0)
    with pytest.raises(ValueError, match="mask must have shape"):
        colour_shift(x, mask=torch.zeros(3, 4, dtype=torch.bool))
