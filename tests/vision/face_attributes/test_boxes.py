"""The box rule, windows by density, and how boxes are judged."""

import math

import pytest
import torch

from etude.vision.face_attributes import (
    box_from_response,
    boxes_from_responses,
    choose_threshold,
    iou,
    localization_recall,
    non_maximum_suppression,
    sliding_windows,
    window_by_density,
)


def blob(size=64, x=30.5, y=33.5, sd=6.0, height=1.0):
    centres = torch.arange(size, dtype=torch.float64) + 0.5
    squared = (centres[None, :] - x) ** 2 + (centres[:, None] - y) ** 2
    return height * torch.exp(-squared / (2 * sd**2))


@pytest.mark.parametrize(("sigma", "expected"), [(0.05, 9.85), (0.0, 8.69)])
def test_the_box_of_a_gaussian_has_its_analytic_half_side(sigma, expected):
    found = box_from_response(blob(), 0.35, sigma)
    analytic = math.sqrt(36 + (64 * sigma) ** 2) * math.sqrt(-2 * math.log(0.35))
    assert analytic == pytest.approx(expected, abs=0.01)
    left, top, right, bottom = found.box.tolist()
    assert (right - left) / 2 == pytest.approx(analytic, abs=1)
    assert (bottom - top) / 2 == pytest.approx(analytic, abs=1)
    assert (left + right) / 2 == pytest.approx(30.5, abs=0.51)
    assert (top + bottom) / 2 == pytest.approx(33.5, abs=0.51)
    assert found.confident
    assert 0.5 < found.score <= 1


@pytest.mark.parametrize("value", [0.0, 3.7, -2.0])
def test_a_constant_map_gives_the_whole_image_without_confidence(value):
    found = box_from_response(torch.full((20, 30), value))
    assert found.box.tolist() == [0, 0, 30, 20]
    assert not found.confident
    assert boxes_from_responses(torch.full((1, 20, 30), value))[1].tolist() == [0]


def test_an_offset_of_the_map_does_not_matter():
    assert torch.equal(box_from_response(blob() + 5).box, box_from_response(blob()).box)


def test_the_component_is_that_of_the_peak_or_the_largest():
    two = blob(x=12.5, y=12.5, sd=2.0) + blob(x=45.5, y=45.5, sd=6.0, height=0.8)
    assert box_from_response(two, sigma=0.0).box[0] < 13
    assert box_from_response(two, sigma=0.0, component="largest").box[0] > 30


def test_a_small_box_is_widened_and_a_box_at_the_rim_moved_inside():
    response = torch.zeros(40, 40)
    response[0, 39] = 1
    assert box_from_response(response, sigma=0.0).box.tolist() == [32, 0, 40, 8]
    wide = box_from_response(blob(40, 20.5, 20.5, 3.0), sigma=0.0, alpha=2.0).box
    tight = box_from_response(blob(40, 20.5, 20.5, 3.0), sigma=0.0).box
    assert (wide[2] - wide[0]).item() == 2 * (tight[2] - tight[0]).item()
    assert box_from_response(response, sigma=0.0, min_side=100).box.tolist() == [0, 0, 40, 40]


def test_the_threshold_prefers_much_response_on_little_area():
    bright = torch.full((1, 40, 40), 0.0)
    bright[:, 7:33, 7:33] = 0.3
    bright[:, 15:25, 15:25] = 10.0
    # at 0.02 the box has two fifths of the image, at 0.5 a sixteenth of it and nearly all of the response
    assert choose_threshold(bright, (0.02, 0.5), sigma=0.0) == 0.5


def test_the_threshold_takes_all_of_a_peaked_region():
    """A disc whose response falls off linearly: the best box leaves out a rim that is weaker than the mean."""
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    cone = (1 - ((rows - 31.5) ** 2 + (columns - 31.5) ** 2).sqrt() / 20).clamp(min=0)[None]
    taus = (0.05, 0.1, 0.2, 0.35, 0.5)

    def worth(tau):
        left, top, right, bottom = box_from_response(cone[0], tau, sigma=0.0).box.int().tolist()
        return cone[0, top:bottom, left:right].sum() / cone.sum() - (right - left) * (bottom - top) / 64**2

    assert choose_threshold(cone, taus, sigma=0.0) == max(taus, key=worth) == 0.2


def test_true_boxes_choose_the_threshold_where_they_are_known():
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    cone = (1 - ((rows - 31.5) ** 2 + (columns - 31.5) ** 2).sqrt() / 20).clamp(min=0)[None]
    for side in (18, 24, 36):
        true = torch.tensor([[32.0 - side / 2, 32 - side / 2, 32 + side / 2, 32 + side / 2]])
        tau = choose_threshold(cone, (0.05, 0.1, 0.4, 0.55), sigma=0.0, boxes=true)
        found = box_from_response(cone[0], tau, sigma=0.0).box
        assert abs(found[2] - found[0] - side) <= 2


def test_density_of_windows_by_hand():
    response = torch.arange(12.0).view(3, 4)
    windows = torch.tensor([[0.0, 0.0, 4.0, 3.0], [2.0, 1.0, 4.0, 3.0]])
    assert window_by_density(response, windows, 0.0).tolist() == [66, 34]
    torch.testing.assert_close(window_by_density(response, windows), torch.tensor([66 / 12**0.5, 17.0]))
    torch.testing.assert_close(window_by_density(response, windows, 1.0), torch.tensor([5.5, 8.5]))


def test_the_best_window_is_the_smallest_that_holds_the_response():
    windows = sliding_windows((64, 64), (12, 20, 28, 60), 2)
    response = torch.zeros(64, 64)
    response[22:42, 18:38] = 1
    assert windows[window_by_density(response, windows).argmax()].tolist() == [18, 22, 38, 42]


def test_overlap_by_hand():
    one, other = torch.tensor([[0.0, 0.0, 4.0, 2.0]]), torch.tensor([[2.0, 1.0, 6.0, 3.0], [5.0, 0.0, 6.0, 1.0]])
    torch.testing.assert_close(iou(one, other), torch.tensor([[2 / 14, 0.0]]))


def test_recall_counts_overlaps_of_at_least_the_threshold():
    true = torch.tensor([[0.0, 0.0, 4.0, 4.0]]).expand(3, 4)
    predicted = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 2.0, 4.0], [0.0, 0.0, 1.9, 4.0]])
    assert localization_recall(predicted, true) == (pytest.approx(2 / 3), pytest.approx((1 + 0.5 + 0.475) / 3))


def test_suppression_keeps_the_best_of_overlapping_boxes():
    boxes = torch.tensor([[0.0, 0, 10, 10], [1.0, 1, 11, 11], [30.0, 30, 40, 40], [2.0, 0, 12, 10]])
    kept = non_maximum_suppression(boxes, torch.tensor([0.5, 0.9, 0.1, 0.7]))
    assert kept.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: box_from_response(blob(), 1.0), r"tau must lie in \(0, 1\), got 1.0"),
        (lambda: box_from_response(blob(), sigma=-1), "sigma >= 0"),
        (lambda: box_from_response(blob(), component="all"), "'peak' or 'largest', got 'all'"),
        (lambda: box_from_response(blob() * float("nan")), "NaN"),
        (lambda: choose_threshold(blob()[None], ()), "at least one"),
        (lambda: choose_threshold(blob()[None], boxes=torch.ones(2, 4)), r"shape \(1, 4\)"),
        (lambda: window_by_density(blob().float(), torch.tensor([[0.0, 0, 65, 4]])), "within the 64 x 64 map"),
        (lambda: window_by_density(blob().float(), torch.tensor([[3.0, 0, 3, 4]])), "left < right"),
        (lambda: window_by_density(blob().float(), torch.tensor([[0.0, 0, 3, 4]]), 2.0), r"beta must lie in \[0, 1\]"),
        (lambda: sliding_windows((10, 10), (12,), 1), "no window of sides"),
        (lambda: sliding_windows((10, 10), (5,), 0), "must be positive"),
        (lambda: localization_recall(torch.zeros(0, 4), torch.zeros(0, 4)), "no boxes to judge"),
        (lambda: localization_recall(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[5.0, 0, 5, 4]])), "in row 0"),
        (lambda: non_maximum_suppression(torch.tensor([[0.0, 0, 1, 1]]), torch.ones(1), 2.0), "threshold must lie"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
