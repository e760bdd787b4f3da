"""Anchors, matching, sampling, proposals, backbone and pyramid."""

import pytest
import torch
import torch.nn.functional as F

from etude.nn.resnet import ResNet
from etude.vision.cascade_rcnn import (
    FPN,
    RPN,
    AnchorGenerator,
    BalancedSampler,
    Matcher,
    ResNetBackbone,
    TinyResNet,
    Truth,
    box_iou,
    nms,
)

BOX = torch.tensor([[8.0, 8.0, 24.0, 20.0]])


def test_anchors_stand_around_the_cells():
    (anchors,) = AnchorGenerator((16,), (0.5, 1.0, 2.0))([(2, 3)], [8])
    assert anchors.shape == (18, 4)
    assert torch.allclose((anchors[:, :2] + anchors[:, 2:])[3:6] / 2, torch.tensor([12.0, 4.0]).expand(3, 2))
    sides = anchors[:, 2:] - anchors[:, :2]
    assert torch.allclose(sides.prod(1), torch.full((18,), 256.0), rtol=1e-4)
    assert torch.allclose(sides[:3, 1] / sides[:3, 0], torch.tensor([0.5, 1.0, 2.0]))


def test_the_matcher_follows_its_thresholds_and_rescues_the_best():
    iou = torch.tensor([[0.8, 0.1], [0.5, 0.2], [0.2, 0.25], [0.0, 0.0], [0.1, 0.2]])
    present = torch.tensor([True, True])
    assert Matcher(0.7, 0.3)(iou, present).tolist() == [0, -2, -1, -1, -1]
    assert Matcher(0.7, 0.3, allow_low_quality=True)(iou, present).tolist() == [0, -2, 1, -1, -1]
    assert Matcher(0.7, 0.3, True)(iou, torch.tensor([True, False])).tolist() == [0, -2, -1, -1, -1]
    assert Matcher(0.7, 0.3)(iou[:, :0], present[:0]).tolist() == [-1] * 5


def test_the_sampler_draws_what_it_may():
    positive = torch.zeros(2, 50, dtype=torch.bool)
    positive[0, :30] = True
    positive[1, :2] = True
    negative = ~positive
    negative[:, -5:] = False
    first = BalancedSampler(16, 0.5, torch.Generator().manual_seed(0))(positive, negative)
    assert [x.sum(1).tolist() for x in first] == [[8, 2], [8, 14]]
    assert not (first[0] & ~positive).any()
    assert not (first[1] & ~negative).any()
    again = BalancedSampler(16, 0.5, torch.Generator().manual_seed(0))(positive, negative)
    other = BalancedSampler(16, 0.5, torch.Generator().manual_seed(1))(positive, negative)
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])


def levels(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {"p2": torch.randn(2, 4, 8, 10, generator=generator), "p3": torch.randn(2, 4, 4, 5, generator=generator)}


def make(**options):
    torch.manual_seed(0)
    rpn = RPN(4, ("p2", "p3"), AnchorGenerator((8, 16)), **options)
    with torch.no_grad():
        for layer in (rpn.objectness, rpn.deltas):
            layer.weight.normal_(std=0.5)
    return rpn


def test_proposals_are_those_of_the_steps_one_by_one():
    rpn = make(pre_nms=(40, 40), post_nms=(25, 25), min_size=2).eval()
    sizes = [(32, 40), (30, 33)]
    got, losses = rpn(levels(), sizes)
    assert losses == {}
    for image, (height, width) in enumerate(sizes):
        boxes, scores = [], []
        for name, anchors in zip(("p2", "p3"), rpn.anchors([(8, 10), (4, 5)], [4, 8])):
            hidden = rpn.conv(levels()[name][image : image + 1]).relu()
            score = rpn.objectness(hidden)[0].permute(1, 2, 0).flatten()
            codes = rpn.deltas(hidden)[0].unflatten(0, (3, 4)).permute(2, 3, 0, 1).reshape(-1, 4)
            top = score.argsort(descending=True)[:40]
            decoded = rpn.coder.decode(anchors[top], codes[top], torch.tensor([height, width]))
            large = ((decoded[:, 2:] - decoded[:, :2]) >= 2).all(1)
            decoded, score = decoded[large], score[top][large]
            kept = nms(decoded, score, 0.7)
            boxes.append(decoded[kept])
            scores.append(score[kept])
        order = torch.cat(scores).argsort(descending=True)[:25]
        assert torch.allclose(got[image], torch.cat(boxes)[order], atol=1e-4)


def test_losses_of_the_proposals_equal_the_loop():
    rpn = make(batch_size=10_000, pos_fraction=1.0)
    targets = [{"boxes": BOX, "labels": torch.tensor([1])}, {"boxes": BOX[:0], "labels": torch.zeros(0).long()}]
    _, losses = rpn(levels(), [(32, 40)] * 2, Truth.of(targets, 1), propose=False)
    anchors = torch.cat(rpn.anchors([(8, 10), (4, 5)], [4, 8]))
    overlap = box_iou(anchors, BOX)[:, 0]
    cls = box = count = 0
    for image in range(2):
        hidden = [rpn.conv(m[image : image + 1]).relu() for m in levels().values()]
        score = torch.cat([rpn.objectness(h)[0].permute(1, 2, 0).flatten() for h in hidden])
        codes = torch.cat([rpn.deltas(h)[0].unflatten(0, (3, 4)).permute(2, 3, 0, 1).reshape(-1, 4) for h in hidden])
        positive = (overlap >= 0.7) | (overlap == overlap.max()) if image == 0 else torch.zeros(len(anchors)).bool()
        used = positive | (overlap < 0.3) if image == 0 else torch.ones(len(anchors)).bool()
        cls += F.binary_cross_entropy_with_logits(score[used], positive[used].float(), reduction="sum")
        wanted = rpn.coder.encode(anchors[positive], BOX.expand(int(positive.sum()), 4))
        box += F.smooth_l1_loss(codes[positive], wanted, beta=1 / 9, reduction="sum")
        count += int(used.sum())
    assert torch.allclose(losses["rpn/cls"], cls / count, atol=1e-5)
    assert torch.allclose(losses["rpn/box"], box / count, atol=1e-5)


def test_the_pyramid_adds_what_comes_from_above():
    fpn = FPN([8, 16, 32], 4)
    maps = [torch.randn(1, c, s, s) for c, s in ((8, 16), (16, 8), (32, 4))]
    out = fpn(maps)
    assert {name: tuple(m.shape[1:]) for name, m in out.items()} == {
        "p2": (4, 16, 16), "p3": (4, 8, 8), "p4": (4, 4, 4), "p5": (4, 2, 2)
    }  # fmt: skip
    top = fpn.laterals[2](maps[2])
    middle = fpn.laterals[1](maps[1]) + top.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.allclose(out["p3"], fpn.outputs[1](middle), atol=1e-5)
    assert torch.equal(out["p5"], out["p4"][:, :, ::2, ::2])
    with pytest.raises(ValueError, match="made for 3 maps, got 2"):
        fpn(maps[:2])


def test_backbones_give_maps_at_strides_4_to_32():
    maps = TinyResNet(8, in_channels=1)(torch.rand(1, 1, 64, 96))
    assert [tuple(m.shape[1:]) for m in maps] == [(8, 16, 24), (16, 8, 12), (32, 4, 6), (64, 2, 3)]
    with torch.device("meta"):
        backbone = ResNetBackbone(50)
    assert backbone.out_channels == [256, 512, 1024, 2048]
    frozen = {name.split(".")[0] + name.split(".")[1][:1] for name, p in backbone.named_parameters() if p.requires_grad}
    assert "stages0" not in frozen
    assert not any(name.startswith("stem") for name in frozen)
    assert not any(m.training for m in backbone.train().modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_weights_of_a_classifier_are_taken_over():
    torch.manual_seed(0)
    network, backbone = ResNet(18), ResNetBackbone(18, frozen_stages=0)
    backbone.load_imagenet(network.state_dict())
    x = torch.randn(1, 3, 32, 32)
    network.eval()
    wanted = network.layer1(network.maxpool(network.relu(network.bn1(network.conv1(x)))))
    assert torch.allclose(backbone.eval()(x)[0], wanted)
    with pytest.raises(ValueError, match="not the weights of this ResNet"):
        backbone.load_imagenet(ResNet(18, norm="group").state_dict())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AnchorGenerator((0,)), "must be positive"),
        (lambda: AnchorGenerator((8,))([(2, 2), (1, 1)], [4, 8]), "1 sizes were given for 2 levels"),
        (lambda: Matcher(0.3, 0.7), "need 0 <= low <= high <= 1"),
        (lambda: BalancedSampler(0, 0.5), "need num >= 1"),
        (lambda: RPN(4, ("p2",), AnchorGenerator((8, 16))), "1 levels need as many anchor sizes"),
        (lambda: FPN([8], extra="conv"), "extra 'pool' or 'none'"),
        (lambda: ResNetBackbone(18, norm="ln"), "norm must be one of"),
        (lambda: ResNetBackbone(18, frozen_stages=7), r"frozen_stages must lie in 0..5, got 7"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
