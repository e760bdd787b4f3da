"""Box code and overlap."""

import math

import pytest
import torch

from etude.vision.cascade_rcnn import (
    BOX_WEIGHTS,
    BoxCoder,
    box_iou,
    check_boxes,
    clip_boxes,
    collect_delta_statistics,
)


def boxes(n, seed=0, side=100.0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=generator) * side
    return torch.cat([corner, corner + 5 + torch.rand(n, 2, generator=generator) * side], dim=1)


@pytest.mark.parametrize("weights", BOX_WEIGHTS)
def test_decoding_what_was_encoded_gives_the_target(weights):
    coder = BoxCoder(weights)
    proposals, targets = boxes(200), boxes(200, seed=1)
    assert torch.allclose(coder.decode(proposals, coder.encode(proposals, targets)), targets, atol=1e-4)


def test_the_code_is_that_of_the_equation():
    code = BoxCoder((10, 10, 5, 5)).encode(torch.tensor([[0.0, 0, 10, 20]]), torch.tensor([[5.0, 0, 25, 10]]))
    wanted = [10 * (15 - 5) / 10, 10 * (5 - 10) / 20, 5 * math.log(2), 5 * math.log(0.5)]
    assert torch.allclose(code, torch.tensor([wanted]))


def test_a_box_encodes_itself_as_zero():
    assert torch.equal(BoxCoder().encode(boxes(50), boxes(50)), torch.zeros(50, 4))


def test_the_code_does_not_see_scale_or_place():
    a, b = boxes(50).double(), boxes(50, seed=1).double()
    code = BoxCoder().encode(a, b)
    shift = torch.tensor([7.0, -3.0, 7.0, -3.0]).double()
    assert torch.allclose(BoxCoder().encode(3 * a + shift, 3 * b + shift), code, atol=1e-10)


def test_growth_is_bounded_and_finite():
    grown = BoxCoder((1, 1, 1, 1)).decode(torch.tensor([[0.0, 0, 16, 16]]), torch.tensor([[0.0, 0, 1e4, 1e4]]))
    assert torch.allclose(grown[:, 2:] - grown[:, :2], torch.full((1, 2), 1000.0))
    assert BoxCoder().decode(boxes(3), torch.full((3, 4), 1e4)).isfinite().all()


def test_half_precision_is_decoded_in_single():
    decoded = BoxCoder().decode(boxes(3).half(), torch.zeros(3, 4).half())
    assert decoded.dtype == torch.float32
    assert box_iou(boxes(3).half(), boxes(3).half()).dtype == torch.float32


def test_boxes_are_cut_off_at_the_image():
    cut = clip_boxes(torch.tensor([[-5.0, -5, 50, 70]]), torch.tensor([60.0, 40.0]))
    assert cut.tolist() == [[0, 0, 40, 60]]


def test_codes_by_their_own_statistics_have_mean_0_and_deviation_1():
    proposals, targets = boxes(500), boxes(500, seed=1)
    coder = BoxCoder.from_statistics(*collect_delta_statistics(proposals, targets))
    code = coder.encode(proposals, targets)
    assert torch.allclose(code.mean(0), torch.zeros(4), atol=1e-4)
    assert torch.allclose(code.std(0), torch.ones(4), atol=1e-4)
    assert torch.allclose(coder.decode(proposals, code), targets, atol=1e-3)


def test_overlap_equals_the_loop():
    a, b = boxes(20), boxes(15, seed=1)
    got = box_iou(a, b)
    for i, (ax1, ay1, ax2, ay2) in enumerate(a.tolist()):
        for j, (bx1, by1, bx2, by2) in enumerate(b.tolist()):
            shared = max(0, min(ax2, bx2) - max(ax1, bx1)) * max(0, min(ay2, by2) - max(ay1, by1))
            union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - shared
            assert got[i, j].item() == pytest.approx(shared / union, abs=1e-6)


def test_empty_boxes_overlap_nothing():
    nothing = torch.zeros(2, 4)
    assert torch.equal(box_iou(nothing, nothing), torch.zeros(2, 2))


@pytest.mark.parametrize("bad", [[5.0, 0, 5, 5], [0, 5, 5, 4], [0, 0, float("nan"), 5]])
def test_a_box_without_an_area_is_named(bad):
    with pytest.raises(ValueError, match="box 1 is"):
        check_boxes(torch.tensor([[0.0, 0, 1, 1], bad]))


def test_other_shapes_and_weights_are_refused():
    with pytest.raises(ValueError, match=r"shape \(n, 4\)"):
        check_boxes(torch.zeros(3, 5))
    with pytest.raises(ValueError, match="four positive weights"):
        BoxCoder((10, 10, 5, 0))
    with pytest.raises(ValueError, match="at least two pairs"):
        collect_delta_statistics(boxes(1), boxes(1))
    with pytest.raises(ValueError, match="must be positive"):
        BoxCoder.from_statistics(torch.zeros(4), torch.zeros(4))
