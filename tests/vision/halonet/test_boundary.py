"""The boundary task: it leaks nothing to isolated blocks."""

import pytest
import torch

from etude.vision.halonet import boundary_task, straddles


def drawn(n=4000):
    return boundary_task(n, torch.Generator().manual_seed(0))


def columns(images):
    return images[:, 0].flatten(1).argmax(1) % 16, images[:, 1].flatten(1).argmax(1) % 16


def test_the_label_tells_the_distance_of_two_marks_in_one_row():
    examples = drawn()
    assert torch.equal(examples.inputs.sum((1, 2, 3)), torch.full((4000,), 2.0))
    rows = examples.inputs.sum(3).argmax(2)
    assert torch.equal(rows[:, 0], rows[:, 1])
    first, second = columns(examples.inputs)
    assert torch.equal(second - first, torch.where(examples.targets == 1, 2, 6))


def test_places_inside_blocks_say_nothing_about_the_label():
    examples = drawn()
    for column in columns(examples.inputs):
        for label in (0, 1):
            counts = torch.bincount(column[examples.targets == label] % 4, minlength=4)
            assert (counts.double() / counts.sum() - 0.25).abs().max() < 0.04


def test_what_each_block_holds_alone_allows_three_quarters_and_no_more():
    """The best rule on the unordered contents of blocks: label 1 if a block holds both marks, else the likelier one."""
    examples = drawn()
    blocks = examples.inputs.unfold(2, 4, 4).unfold(3, 4, 4)
    together = (blocks.sum((4, 5)) > 0).all(1).any(-1).any(-1)
    assert abs((together == (examples.targets == 1)).double().mean() - 0.75) < 0.03
    contents = {}
    for image, label in zip(blocks.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2), examples.targets):
        held = tuple(sorted(map(tuple, image[image.any(1)].tolist())))
        contents.setdefault(held, []).append(int(label))
    best = sum(max(labels.count(0), labels.count(1)) for labels in contents.values())
    assert best / 4000 < 0.8


def test_images_straddle_exactly_where_near_marks_lie_in_two_blocks():
    examples = drawn(500)
    first, _ = columns(examples.inputs)
    assert torch.equal(straddles(examples.inputs), first // 4 != (first + 2) // 4)


def test_an_empty_draw_is_refused():
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        boundary_task(0)
