"""RoIAlign and suppression beside loops written for clarity."""

import math

import pytest
import torch

from etude.vision.cascade_rcnn import MultiScaleRoIAlign, batched_nms, box_iou, nms, roi_align
from etude.vision.cascade_rcnn.operators import torchvision_operators


def one_sample(feature, y, x):
    height, width = feature.shape[1:]
    if y < -1 or y > height or x < -1 or x > width:
        return feature.new_zeros(len(feature))
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = math.floor(y), math.floor(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, across = y - top, x - left
    return (
        feature[:, top, left] * (1 - down) * (1 - across)
        + feature[:, top, right] * (1 - down) * across
        + feature[:, bottom, left] * down * (1 - across)
        + feature[:, bottom, right] * down * across
    )


def naive_roi_align(feature, box, out, scale, samples, aligned):
    x1, y1, x2, y2 = [v * scale for v in box.tolist()]
    width, height = x2 - x1, y2 - y1
    if aligned:
        x1, y1 = x1 - 0.5, y1 - 0.5
    else:
        width, height = max(width, 1.0), max(height, 1.0)
    result = torch.zeros(len(feature), out[0], out[1], dtype=feature.dtype)
    for i in range(out[0]):
        for j in range(out[1]):
            for s in range(samples):
                for r in range(samples):
                    y = y1 + (i + (s + 0.5) / samples) * height / out[0]
                    x = x1 + (j + (r + 0.5) / samples) * width / out[1]
                    result[:, i, j] += one_sample(feature, y, x) / samples**2
    return result


BOXES = torch.tensor(
    [[3.3, 4.1, 30.2, 22.7], [-12.0, -9.5, 14.0, 11.0], [25.0, 30.0, 60.0, 55.0], [8.0, 8.0, 9.1, 9.3], [0, 0, 40, 36]]
)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("samples", [1, 2, 3])
def test_roi_align_equals_the_loop(samples, aligned):
    feats = torch.randn(2, 3, 9, 10, generator=torch.Generator().manual_seed(0))
    got = roi_align(feats, [BOXES, BOXES[:2] + 1], (3, 4), 0.25, samples, aligned, backend="torch")
    wanted = [naive_roi_align(feats[0], b, (3, 4), 0.25, samples, aligned) for b in BOXES]
    wanted += [naive_roi_align(feats[1], b + 1, (3, 4), 0.25, samples, aligned) for b in BOXES[:2]]
    assert torch.allclose(got, torch.stack(wanted), atol=1e-5)


def test_roi_align_of_a_ramp_is_the_ramp_at_the_bins():
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    ramp = (0.7 * rows + 1.3 * columns + 2)[None, None]
    box = torch.tensor([[2.3, 3.1, 11.9, 12.5]])
    got = roi_align(ramp, [box], 4, backend="torch")[0, 0]
    y = 3.1 + (torch.arange(4) + 0.5) * 9.4 / 4 - 0.5
    x = 2.3 + (torch.arange(4) + 0.5) * 9.6 / 4 - 0.5
    assert torch.allclose(got, 0.7 * y[:, None] + 1.3 * x[None] + 2, atol=1e-5)


def test_gradients_of_roi_align_match_finite_differences():
    feats = torch.randn(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    box = torch.tensor([[-1.0, 0.7, 4.2, 6.0], [1.1, 1.2, 3.0, 2.4]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda f: roi_align(f, [box], 2, 1.0, 2, backend="torch"), feats)


def test_moving_map_and_box_by_whole_cells_changes_nothing():
    feats = torch.randn(1, 2, 20, 20)
    box = torch.tensor([[3.3, 4.4, 9.1, 8.8]])
    moved = roi_align(feats.roll((3, 5), (2, 3)), [box + torch.tensor([5.0, 3, 5, 3])], 3, backend="torch")
    assert torch.allclose(moved, roi_align(feats, [box], 3, backend="torch"), atol=1e-5)


def test_roi_align_of_no_boxes_and_of_half_precision():
    feats = torch.randn(2, 3, 8, 8)
    assert roi_align(feats, [torch.zeros(0, 4), torch.zeros(0, 4)], 2, backend="torch").shape == (0, 3, 2, 2)
    half = roi_align(feats.half(), [BOXES[:1], BOXES[:0]], 2, 0.25, backend="torch")
    assert half.dtype == torch.float16
    assert torch.allclose(half.float(), roi_align(feats, [BOXES[:1], BOXES[:0]], 2, 0.25, backend="torch"), atol=1e-2)


def test_the_level_follows_the_size_of_the_box():
    sides = torch.tensor([224.0, 112, 448, 32, 10_000])
    boxes = torch.stack([0 * sides, 0 * sides, sides, sides], dim=1)
    assert MultiScaleRoIAlign().level_of(boxes).tolist() == [4, 3, 5, 2, 5]
    small = MultiScaleRoIAlign(("p2", "p3"), canonical_size=56)
    assert small.level_of(boxes).tolist() == [3, 3, 3, 3, 3]
    assert small.level_of(torch.tensor([[0.0, 0, 12, 12]])).tolist() == [2 - 0]


def test_boxes_are_pooled_from_their_own_level_and_image():
    features = {"p2": torch.randn(2, 3, 16, 16), "p3": torch.randn(2, 3, 8, 8)}
    pool = MultiScaleRoIAlign(("p2", "p3"), 4, canonical_size=28, canonical_level=3, backend="torch")
    per_image = [BOXES.clamp(min=0), BOXES[2:].clamp(min=0) + 1]
    got = pool(features, per_image)
    rows = []
    for image, boxes in enumerate(per_image):
        for box, level in zip(boxes, pool.level_of(boxes).tolist()):
            feature = features[f"p{level}"][image]
            rows.append(naive_roi_align(feature, box, (4, 4), 0.5**level, 2, True))
    assert torch.allclose(got, torch.stack(rows), atol=1e-5)
    order = torch.tensor([7, 0, 5, 2, 1, 3, 4, 6])
    images = torch.tensor([0] * 5 + [1] * 3)
    assert torch.equal(pool.flat(features, torch.cat(per_image)[order], images[order]), got[order])


def naive_nms(boxes, scores, threshold):
    order = sorted(range(len(boxes)), key=lambda i: (-scores[i].item(), i))
    iou = (box_iou(boxes, boxes) <= threshold).tolist()
    kept = []
    for i in order:
        if all(iou[j][i] for j in kept):
            kept.append(i)
    return kept


def crowd(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=generator) * 100
    return torch.cat([corner, corner + 5 + 30 * torch.rand(n, 2, generator=generator)], 1), generator


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_nms_equals_the_greedy_loop(threshold):
    boxes, generator = crowd(1000)
    scores = torch.rand(1000, generator=generator)
    assert nms(boxes, scores, threshold, backend="torch").tolist() == naive_nms(boxes, scores, threshold)


def test_of_equal_scores_the_lower_index_stays():
    boxes, _ = crowd(300)
    scores = (torch.arange(300) % 4).float()
    assert nms(boxes, scores, 0.5, backend="torch").tolist() == naive_nms(boxes, scores, 0.5)
    same = boxes[:1].expand(5, 4)
    assert nms(same, torch.ones(5), 0.5, backend="torch").tolist() == [0]


def test_nms_of_none_and_of_one():
    assert nms(torch.zeros(0, 4), torch.zeros(0), 0.5, backend="torch").tolist() == []
    assert nms(torch.tensor([[0.0, 0, 1, 1]]), torch.ones(1), 0.5, backend="torch").tolist() == [0]


def test_a_chain_of_overlaps_is_settled_as_greedily():
    x = torch.arange(40.0)
    boxes = torch.stack([6 * x, 0 * x, 6 * x + 10, 0 * x + 10], dim=1)  # each overlaps only its neighbours
    assert nms(boxes, -x, 0.2, backend="torch").tolist() == list(range(0, 40, 2))


def test_batched_nms_is_nms_of_each_class():
    boxes, generator = crowd(600)
    scores = torch.rand(600, generator=generator)
    classes = torch.randint(0, 5, (600,), generator=generator)
    wanted = []
    for label in range(5):
        rows = (classes == label).nonzero()[:, 0]
        wanted += rows[nms(boxes[rows], scores[rows], 0.5, backend="torch")].tolist()
    got = batched_nms(boxes, scores, classes, 0.5).tolist()
    assert got == sorted(wanted, key=lambda i: -scores[i].item())


def test_bad_arguments_are_refused():
    feats = torch.zeros(1, 1, 4, 4)
    with pytest.raises(ValueError, match="sampling_ratio must be positive"):
        roi_align(feats, [BOXES], 2, 1.0, 0)
    with pytest.raises(ValueError, match="for each of the 1 feature maps, got 2"):
        roi_align(feats, [BOXES, BOXES])
    with pytest.raises(ValueError, match=r"in \[0, 1\], got 1.5"):
        nms(BOXES, torch.ones(5), 1.5)
    with pytest.raises(ValueError, match="without a gap"):
        MultiScaleRoIAlign(("p2", "p4"))
    with pytest.raises(ValueError, match="features lack p3"):
        MultiScaleRoIAlign(("p2", "p3"))({"p2": feats}, [BOXES])


def test_the_compiled_operators_are_asked_for_by_name():
    if torchvision_operators() is None:
        with pytest.raises(ImportError, match="do not load"):
            nms(BOXES, torch.ones(5), 0.5, backend="torchvision")
        return
    feats = torch.randn(1, 3, 12, 12)
    for aligned in (True, False):
        one = roi_align(feats, [BOXES], 3, 0.25, 2, aligned, backend="torchvision")
        assert torch.allclose(one, roi_align(feats, [BOXES], 3, 0.25, 2, aligned, backend="torch"), atol=1e-5)
    assert torch.equal(nms(BOXES, torch.ones(5), 0.5, "torchvision"), nms(BOXES, torch.ones(5), 0.5, "torch"))
