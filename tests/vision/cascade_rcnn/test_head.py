"""The cascade: labels, detachment, losses, scores, and the detectors that it contains."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from etude.vision.cascade_rcnn import BOX_WEIGHTS, BoxCoder, CascadeBoxHead, MultiScaleRoIAlign, box_iou

SIZES = [(64, 64), (64, 48)]
GT = torch.tensor([[10.0, 10.0, 30.0, 30.0]])


def small_head(**options):
    torch.manual_seed(0)
    pool = MultiScaleRoIAlign(("p2", "p3"), 3, canonical_size=56, backend="torch")
    options = {"pool": pool, "hidden": 16, "batch_size": 32} | options
    return CascadeBoxHead(2, 4, **options)


def features(seed=0, grad=False):
    generator = torch.Generator().manual_seed(seed)
    maps = {f"p{k}": torch.randn(2, 4, 64 // 2**k, 64 // 2**k, generator=generator) for k in (2, 3)}
    return {name: m.requires_grad_(grad) for name, m in maps.items()}


def scene(n=20, seed=1):
    generator = torch.Generator().manual_seed(seed)
    jitter = 3 * torch.randn(2, n, 4, generator=generator)
    proposals = [(GT + part).clamp(0, 48) for part in jitter]
    targets = [
        {"boxes": GT.clone(), "labels": torch.tensor([2])},
        {"boxes": torch.cat([GT, GT + 15]), "labels": torch.tensor([1, 2])},
    ]
    return proposals, targets


def shifted(iou):
    """A box beside GT that overlaps it by `iou`."""
    step = 20 * (1 - iou) / (1 + iou)
    return GT + torch.tensor([step, 0.0, step, 0.0])


class Recorder(nn.Module):
    """Stands in for a stage: keeps the labels out of the loss, and moves no box."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, pooled):
        logits, codes = self.inner(pooled)
        return logits, codes * 0


@pytest.mark.parametrize(
    ("iou", "labels"), [(0.55, [2, 0, 0]), (0.65, [2, 2, 0]), (0.75, [2, 2, 2]), (0.45, [0, 0, 0])]
)
def test_each_stage_labels_by_its_own_threshold(iou, labels, monkeypatch):
    head = small_head(append_gt="first")
    head.stages = nn.ModuleList(Recorder(stage) for stage in head.stages)
    box = shifted(iou)
    assert box_iou(box, GT).item() == pytest.approx(iou, abs=1e-5)
    seen = []
    original = F.cross_entropy
    monkeypatch.setattr(F, "cross_entropy", lambda x, y, **k: (seen.append(y.clone()), original(x, y, **k))[1])
    maps = {name: m[:1] for name, m in features().items()}
    head.losses(maps, [box], [{"boxes": GT, "labels": torch.tensor([2])}], SIZES[:1])
    # the appended ground truth and the box, in the order of the sampled rows
    assert [sorted(y.tolist()) for y in seen] == [sorted([2, label]) for label in labels]


def test_a_box_may_change_its_ground_truth_between_stages():
    head = small_head(thresholds=(0.3, 0.31), box_weights=BOX_WEIGHTS[:2], append_gt="first")
    other = GT + torch.tensor([10.0, 0, 10, 0])
    with torch.no_grad():
        for stage in head.stages:
            stage.regressor.weight.zero_()
            stage.regressor.bias.copy_(torch.tensor([4.0, 0, 0, 0]))  # 0.4 widths to the right
    wanted = []
    encode = BoxCoder.encode
    targets = [{"boxes": torch.cat([GT, other]), "labels": torch.tensor([1, 2])}]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BoxCoder, "encode", lambda s, p, t: (wanted.append((p, t)), encode(s, p, t))[1])
        head.losses({k: m[:1] for k, m in features().items()}, [GT + 1.0], targets, SIZES[:1])
    (first, to_first), (second, to_second) = wanted
    row = ((first - GT - 1).abs().sum(1) == 0).nonzero().item()
    assert torch.equal(to_first[row], GT[0])
    moved = ((second - first[row] - torch.tensor([8.0, 0, 8, 0])).abs().sum(1) < 1e-3).nonzero().item()
    assert torch.equal(to_second[moved], other[0])


def test_one_stage_is_fast_rcnn():
    head = small_head(thresholds=(0.5,), batch_size=1000, pos_fraction=1.0)
    maps = features()
    proposals, targets = scene()
    got = head.losses(maps, proposals, targets, SIZES)
    cls = box = count = 0
    coder = BoxCoder()
    for image, (given, target) in enumerate(zip(proposals, targets)):
        boxes = torch.cat([given, target["boxes"]])
        best, index = box_iou(boxes, target["boxes"]).max(1)
        labels = torch.where(best >= 0.5, target["labels"][index], 0)
        pooled = head.pool({k: m[image : image + 1] for k, m in maps.items()}, [boxes])
        logits, codes = head.stages[0](pooled)
        cls += F.cross_entropy(logits, labels, reduction="sum")
        inside = labels > 0
        code = coder.encode(boxes[inside], target["boxes"][index[inside]])
        distance = (codes[inside, 0] - code).abs()
        box += torch.where(distance < 1, distance**2 / 2, distance - 0.5).sum()
        count += len(boxes)
    assert torch.allclose(got["stage1/cls"], cls / count, atol=1e-5)
    assert torch.allclose(got["stage1/box"], box / count, atol=1e-5)
    assert set(got) == {"stage1/cls", "stage1/box"}


def test_stage_losses_are_weighted():
    proposals, targets = scene()
    plain = small_head(loss_weights=(1, 1, 1), batch_size=1000, pos_fraction=1.0)
    weighted = small_head(batch_size=1000, pos_fraction=1.0)
    assert weighted.loss_weights == (1, 0.5, 0.25)
    one, two = (h.losses(features(), proposals, targets, SIZES) for h in (plain, weighted))
    for name, value in one.items():
        assert torch.allclose(value * 0.5 ** (int(name[5]) - 1), two[name])


def test_a_stage_does_not_train_the_regressor_before_it_but_the_backbone():
    head, maps = small_head(), features(grad=True)
    proposals, targets = scene()
    losses = head.losses(maps, proposals, targets, SIZES)
    second = losses["stage2/cls"] + losses["stage2/box"]
    before = torch.autograd.grad(second, head.stages[0].parameters(), retain_graph=True, allow_unused=True)
    assert all(grad is None or not grad.any() for grad in before)
    assert torch.autograd.grad(second, maps["p2"])[0].abs().sum() > 0


def test_stages_that_do_not_move_boxes_end_where_the_first_does():
    head = small_head()
    with torch.no_grad():
        head.stages[0].regressor.weight.normal_(std=0.1)
        for stage in head.stages[1:]:
            stage.regressor.weight.zero_()
    proposals, _ = scene()
    states = head.trajectory(features(), proposals, SIZES)
    assert torch.allclose(states[-1]["moved"][:, 0], states[0]["moved"][:, 0], atol=1e-4)
    assert not torch.allclose(states[0]["moved"][:, 0], torch.cat(proposals), atol=1e-2)


def test_scores_are_averaged_as_asked():
    head, maps = small_head(), features()
    with torch.no_grad():
        for stage in head.stages:
            stage.classifier.weight.normal_(std=0.5)
            stage.regressor.weight.normal_(std=0.3)
    proposals, _ = scene()
    states = head.trajectory(maps, proposals, SIZES)
    pooled = head.pool.flat(maps, states[2]["boxes"], states[2]["images"])
    at_last = [stage(pooled)[0].softmax(-1) for stage in head.stages]
    _, scores, _ = head.score(maps, proposals, SIZES)
    assert torch.allclose(scores, torch.stack(at_last).mean(0), atol=1e-6)
    head.score_ensemble = "none"
    assert torch.allclose(head.score(maps, proposals, SIZES)[1], at_last[2], atol=1e-6)
    head.score_ensemble = "per_stage"
    own = [head.stages[t](head.pool.flat(maps, states[t]["boxes"], states[t]["images"]))[0] for t in range(3)]
    assert torch.allclose(
        head.score(maps, proposals, SIZES)[1], torch.stack([x.softmax(-1) for x in own]).mean(0), atol=1e-6
    )
    head.depth = 1
    assert torch.allclose(head.score(maps, proposals, SIZES)[0], states[0]["moved"])


def test_iterative_boxes_apply_the_one_head_three_times():
    once, thrice = small_head(thresholds=(0.5,)), small_head(thresholds=(0.5,), iterations=3)
    for head in (once, thrice):
        with torch.no_grad():
            head.stages[0].regressor.weight.fill_(0.01)
    proposals, _ = scene()
    boxes = proposals
    for _ in range(3):
        moved = once.trajectory(features(), boxes, SIZES)[0]["moved"][:, 0]
        boxes = list(moved.split([len(p) for p in proposals]))
    assert torch.allclose(thrice.trajectory(features(), proposals, SIZES)[-1]["moved"][:, 0], moved, atol=1e-4)


def test_integral_loss_labels_the_same_boxes_by_three_thresholds():
    head = small_head(integral=True, batch_size=1000, pos_fraction=1.0)
    assert [stage.regressor is None for stage in head.stages] == [False, True, True]
    proposals, targets = scene()
    losses = head.losses(features(), proposals, targets, SIZES)
    assert set(losses) == {"stage1/cls", "stage2/cls", "stage3/cls", "stage1/box"}
    found = head.stage_statistics
    assert found["stage1/boxes"] == found["stage2/boxes"] == found["stage3/boxes"]
    assert found["stage1/positives"] > found["stage2/positives"] > found["stage3/positives"]
    boxes = [torch.cat([p, t["boxes"]]) for p, t in zip(proposals, targets)]
    best = torch.cat([box_iou(b, t["boxes"]).max(1).values for b, t in zip(boxes, targets)])
    assert found["stage3/positives"] == (best >= 0.7).sum().item() / 2
    logits = head.trajectory(features(), proposals, SIZES)[0]["logits"]
    assert torch.allclose(head.score(features(), proposals, SIZES)[1], logits.softmax(-1).mean(0))


def test_ground_truths_join_each_stage_once():
    proposals, targets = scene()
    each, first = (
        small_head(batch_size=1000, pos_fraction=1.0),
        small_head(batch_size=1000, pos_fraction=1.0, append_gt="first"),
    )
    for head in (each, first):
        head.losses(features(), proposals, targets, SIZES)
    counts = [each.stage_statistics[f"stage{t}/boxes"] for t in (1, 2, 3)]
    assert counts == [21.5, 21.5, 21.5]  # 20 proposals and 3 ground truths in two images, every time
    assert first.stage_statistics["stage3/boxes"] == 21.5


def test_boxes_are_drawn_once_with_a_quarter_of_positives():
    head = small_head(batch_size=16)
    proposals, targets = scene(60)
    head.losses(features(), proposals, targets, SIZES)
    assert head.stage_statistics["stage1/positives"] <= 4
    assert head.stage_statistics["stage1/boxes"] <= 16


def test_images_without_objects_have_a_finite_loss_and_no_box_loss():
    head, maps = small_head(), features(grad=True)
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    losses = head.losses(maps, scene()[0], [nothing, nothing], SIZES)
    assert all(value.isfinite() for value in losses.values())
    assert all(losses[f"stage{t}/box"] == 0 for t in (1, 2, 3))
    torch.stack(list(losses.values())).sum().backward()
    none = [torch.zeros(0, 4), torch.zeros(0, 4)]
    assert [len(found["boxes"]) for found in head.detect(features(), none, SIZES)] == [0, 0]
    assert all(v == 0 for v in head.losses(features(), none, [nothing, nothing], SIZES).values())


def test_ignored_objects_are_no_ground_truths():
    head = small_head(batch_size=1000)
    proposals, targets = scene()
    marked = [{**t, "ignore": torch.ones(len(t["labels"]), dtype=torch.bool)} for t in targets]
    head.losses(features(), proposals, marked, SIZES)
    assert head.stage_statistics["stage1/positives"] == 0


def test_the_gradient_into_the_backbone_is_divided_on_demand():
    proposals, targets = scene()
    grads = []
    for scaled in (False, True):
        head = small_head(batch_size=1000, loss_weights=(1, 1, 1), scale_backbone_grad=scaled)
        maps = features(grad=True)
        torch.stack(list(head.losses(maps, proposals, targets, SIZES).values())).sum().backward()
        grads.append(maps["p2"].grad)
    assert torch.allclose(grads[0] / 3, grads[1], atol=1e-6)


def test_parameters_of_a_head_at_coco_size():
    with torch.device("meta"):
        head = CascadeBoxHead(80)
    counts = [sum(p.numel() for p in stage.parameters()) for stage in head.stages]
    assert counts == [13_982_805] * 3
    assert all(stage.regressor.out_features == 4 for stage in head.stages)
    with torch.device("meta"):
        assert CascadeBoxHead(80, class_agnostic=False).stages[0].regressor.out_features == 320


def test_class_specific_boxes_move_by_their_class():
    head = small_head(thresholds=(0.5,), class_agnostic=False)
    with torch.no_grad():
        head.stages[0].regressor.weight.zero_()
        head.stages[0].regressor.bias.copy_(torch.tensor([1.0, 0, 0, 0, -1.0, 0, 0, 0]))
    proposals, targets = scene()
    moved = head.trajectory(features(), proposals, SIZES)[0]["moved"]
    assert moved.shape == (40, 2, 4)
    assert bool((moved[:, 0, 0] > moved[:, 1, 0]).any())
    assert all(value.isfinite() for value in head.losses(features(), proposals, targets, SIZES).values())


def test_statistics_of_deltas_come_stage_by_stage():
    head = small_head()
    proposals, targets = scene()
    found = head.delta_statistics(features(), proposals, targets, SIZES)
    assert len(found) == 3
    head.coders = [BoxCoder.from_statistics(mean, std) for mean, std in found]
    assert all(value.isfinite() for value in head.losses(features(), proposals, targets, SIZES).values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thresholds": (0.5, 0.6), "box_weights": BOX_WEIGHTS}, "2 thresholds need 2 box_weights"),
        ({"loss_weights": (1, 1)}, "3 loss_weights, got 3 and 2"),
        ({"thresholds": (0.5, 1.2, 0.7)}, r"thresholds must lie in \(0, 1\]"),
        ({"score_ensemble": "logits"}, "score_ensemble must be"),
        ({"append_gt": "never"}, "append_gt must be"),
        ({"iterations": 3}, "iterations are of a single stage"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CascadeBoxHead(2, 4, hidden=4, **options)


def test_thresholds_that_do_not_rise_are_allowed_with_a_warning():
    with pytest.warns(UserWarning, match="do not rise"):
        CascadeBoxHead(2, 4, thresholds=(0.5, 0.5, 0.5), hidden=4)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"boxes": GT, "labels": torch.tensor([3])}, r"targets\[0\] labels must lie in 1..2 \(0 is the background\)"),
        ({"boxes": GT, "labels": torch.tensor([0])}, "label 0 is 0"),
        ({"boxes": GT[:, [2, 1, 0, 3]], "labels": torch.tensor([1])}, r"targets\[0\] boxes must be .* box 0 is"),
        ({"boxes": GT + 50, "labels": torch.tensor([1])}, "must lie in the image of 64 x 64 pixels, box 0"),
        ({"boxes": GT, "labels": torch.tensor([1, 2])}, "label a box"),
        ({"boxes": GT}, "must hold boxes and labels"),
    ],
)
def test_bad_targets_are_refused_with_their_index(target, message):
    proposals, targets = scene()
    with pytest.raises(ValueError, match=message):
        small_head().losses(features(), proposals, [target, targets[1]], SIZES)


def test_unequal_counts_are_refused():
    proposals, targets = scene()
    with pytest.raises(ValueError, match="2 sets of proposals, 1 targets"):
        small_head().losses(features(), proposals, targets[:1], SIZES)
