"""The whole detector: pictures in, boxes out; training, average precision, and what is refused."""

import numpy as np
import pytest
import torch

from etude.vision.cascade_rcnn import (
    CascadeDetector,
    CascadeRCNN,
    ImageTransform,
    coco_ap,
    detect_all,
    evaluate_coco,
    plot_ap_by_iou,
    plot_stage_overlaps,
    random_flip,
    step_schedule,
    to_image,
    train_detector,
)

TARGET = {"boxes": torch.tensor([[10.0, 10.0, 30.0, 34.0]]), "labels": torch.tensor([2])}


def tiny(**options):
    torch.manual_seed(0)
    return CascadeRCNN.tiny(3, in_channels=1, **options)


def scenes(n=6):
    generator = torch.Generator().manual_seed(0)
    return [(torch.rand(1, 48, 64, generator=generator), TARGET) for _ in range(n)]


def test_losses_come_by_name_and_reach_every_weight():
    model = tiny()
    images, targets = zip(*scenes())
    losses = model(torch.stack(images), targets)
    assert set(losses) == {"rpn/cls", "rpn/box", *(f"stage{t}/{part}" for t in (1, 2, 3) for part in ("cls", "box"))}
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert {"stage1/iou_in", "stage3/iou_out", "stage2/positives"} <= set(model.head.stage_statistics)


def test_a_batch_without_objects_trains():
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    losses = tiny()(torch.rand(2, 1, 48, 48), [nothing, nothing])
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values())
    assert losses["rpn/box"] == losses["stage1/box"] == 0


def test_images_of_several_sizes_are_detected_each_in_its_own_pixels():
    model = tiny(head={"score_threshold": 0.0}).eval()
    images = [torch.rand(1, 50, 70), torch.rand(1, 33, 41)]
    together = model(images)
    for image, found in zip(images, together):
        height, width = image.shape[1:]
        assert bool((found["boxes"] >= 0).all())
        assert bool((found["boxes"][:, [0, 2]] <= width).all())
        assert bool((found["boxes"][:, [1, 3]] <= height).all())
        assert bool((found["scores"].diff() <= 0).all())
        assert found["labels"].min() >= 1
        assert found["labels"].max() <= 3
        assert len(found["boxes"]) <= 100


def test_scaling_is_undone_in_the_boxes():
    transform = ImageTransform((0.5,), (0.5,), min_size=100, max_size=150, divisor=32)
    batch = transform([torch.rand(1, 40, 80), torch.rand(1, 50, 50)], [TARGET, TARGET])
    assert batch.sizes == [(75, 150), (100, 100)]
    assert batch.images.shape == (2, 1, 128, 160)
    assert torch.allclose(batch.targets[0]["boxes"], TARGET["boxes"] * 150 / 80)
    assert torch.allclose(transform.restore(batch.targets, batch)[0]["boxes"], TARGET["boxes"], atol=1e-4)
    assert not batch.images[0, :, 75:].any()
    assert not batch.images[0, :, :, 150:].any()


@pytest.mark.parametrize(
    ("images", "targets", "message"),
    [
        ([torch.rand(3, 32, 32)], [TARGET], r"\(1, height, width\), image 0 is torch.float32 of \(3, 32, 32\)"),
        ([torch.zeros(1, 32, 32, dtype=torch.uint8)], [TARGET], "image 0 is torch.uint8"),
        ([], [], "there are no images"),
        ([torch.rand(1, 64, 64)], [TARGET, TARGET], "1 images and 2 targets"),
        ([torch.full((1, 64, 64), float("nan"))], [TARGET], "NaN or infinite"),
        ([torch.rand(1, 20, 20)], [TARGET], r"targets\[0\] boxes must lie in the image of 20 x 20 pixels, box 0"),
        ([torch.rand(1, 64, 64)], [{**TARGET, "labels": torch.tensor([4])}], r"labels must lie in 1..3"),
    ],
)
def test_bad_pictures_and_targets_are_refused(images, targets, message):
    with pytest.raises(ValueError, match=message):
        tiny()(images, targets)


def test_training_needs_targets():
    with pytest.raises(ValueError, match="needs targets; call eval"):
        tiny()([torch.rand(1, 64, 64)])


def test_detect_takes_one_picture_and_draws_it(tmp_path):
    from PIL import Image

    model = tiny(classes=("a", "b", "c"), head={"score_threshold": 0.0})
    pixels = (torch.rand(40, 56, generator=torch.Generator().manual_seed(0)) * 255).byte().numpy()
    Image.fromarray(pixels).save(tmp_path / "x.png")
    by_path, by_array = model.detect(tmp_path / "x.png", 0.0), model.detect(pixels, 0.0)
    assert torch.equal(by_path.boxes, by_array.boxes)
    assert len(by_path) > 0
    assert set(by_path.names) <= {"a", "b", "c"}
    assert len(by_path.draw().axes[0].texts) == len(by_path)
    assert len(model.detect(pixels, 1.0)) == 0
    assert model.training


def test_pictures_of_every_kind_become_what_the_detector_takes():
    grey = np.full((4, 5), 51, dtype=np.uint8)
    assert torch.allclose(to_image(grey, 3), torch.full((3, 4, 5), 0.2))
    assert torch.allclose(to_image((grey.astype(np.uint16) * 257), 1), torch.full((1, 4, 5), 0.2), atol=1e-6)
    colour = np.stack([grey, 0 * grey, 0 * grey], axis=-1)
    assert torch.allclose(to_image(colour, 1), torch.full((1, 4, 5), 0.2 * 0.299), atol=1e-6)
    half = np.concatenate([colour, np.full((4, 5, 1), 127, dtype=np.uint8)], axis=-1)
    assert torch.allclose(to_image(half, 3)[0], torch.full((4, 5), 0.2 * 127 / 255))
    from PIL import Image

    assert to_image(Image.fromarray(grey.astype(np.uint16) * 257), 1).mean().item() == pytest.approx(0.2, abs=1e-5)
    assert torch.equal(to_image(Image.fromarray(half), 3), to_image(half, 3))


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.full((4, 4), 2.0), r"must lie in \[0, 1\], got 2..2"),
        (np.zeros((4, 4), dtype=np.int32), "uint8, uint16 or floats"),
        (np.zeros((4, 4, 7), dtype=np.uint8), "takes 3 channels, the picture has 7"),
        (np.zeros(4), "height, width"),
    ],
)
def test_what_is_no_picture_is_refused(picture, message):
    with pytest.raises(ValueError, match=message):
        to_image(picture, 3)
    with pytest.raises(TypeError, match="a picture is a tensor"):
        to_image({"a": 1}, 3)


def test_training_is_reproducible_and_starts_with_the_proposals():
    runs = []
    for _ in range(2):
        model = tiny().use_generators(*(torch.Generator().manual_seed(s) for s in (1, 2)))
        before = model.head.stages[0].fc1.weight.clone()
        losses = train_detector(
            model, scenes(), steps=3, rpn_steps=2, batch_size=3, augment=torch.Generator().manual_seed(3)
        )
        runs.append((losses, model.head.stages[0].fc1.weight.detach()))
        assert not torch.equal(before, model.head.stages[0].fc1.weight)
    assert runs[0][0] == runs[1][0]
    assert torch.equal(runs[0][1], runs[1][1])
    model = tiny()
    before = model.head.stages[0].fc1.weight.clone()
    train_detector(model, scenes(), steps=1, rpn_steps=1, batch_size=3, optimizer="sgd")
    assert torch.equal(before, model.head.stages[0].fc1.weight)


def test_training_arguments_are_checked():
    for options, message in (({"steps": 2, "rpn_steps": 3}, "rpn_steps"), ({"steps": 1, "optimizer": "lion"}, "lion")):
        with pytest.raises(ValueError, match=message):
            train_detector(tiny(), scenes(), **options)


def test_the_schedule_is_the_papers():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    factor = step_schedule(optimizer, 90_000).lr_lambdas[0]
    assert factor(0) == pytest.approx(1 / 3)
    assert [round(factor(step), 4) for step in (500, 59_999, 60_000, 79_999, 80_000)] == [1, 1, 0.1, 0.1, 0.01]


def test_a_flip_mirrors_boxes_with_their_pictures():
    generator = torch.Generator().manual_seed(0)
    image = torch.zeros(1, 20, 30)
    image[:, 5:9, 3:10] = 1
    target = {"boxes": torch.tensor([[3.0, 5.0, 10.0, 9.0]]), "labels": torch.tensor([1])}
    (images, targets), count = random_flip(generator)((([image] * 8, [target] * 8), 8))
    assert count == 8
    places = {tuple(t["boxes"][0].tolist()) for t in targets}
    assert places == {(3, 5, 10, 9), (20, 5, 27, 9)}
    for picture, one in zip(images, targets):
        x1, y1, x2, y2 = one["boxes"][0].int().tolist()
        assert picture[0, y1:y2, x1:x2].all()
        assert picture.sum() == 28


def square(x, side=20.0):
    return torch.tensor([[x, 10.0, x + side, 10 + side]])


def test_ground_truths_fed_back_have_precision_1():
    truths = [{"boxes": torch.cat([square(5), square(60)]), "labels": torch.tensor([1, 2])}] * 3
    found = [{**t, "scores": torch.ones(2)} for t in truths]
    assert coco_ap(found, truths)["ap"] == pytest.approx(1.0)


def test_boxes_of_overlap_072_count_at_five_of_ten_thresholds():
    truths = [{"boxes": square(30.0), "labels": torch.tensor([1])}]
    wide = square(30.0) + torch.tensor([[0.0, 0.0, 20 / 0.72 - 20, 0.0]])
    scores = coco_ap([{"boxes": wide, "labels": torch.tensor([1]), "scores": torch.ones(1)}], truths)
    assert scores["ap"] == pytest.approx(0.5)
    assert [scores[name] for name in ("ap50", "ap70", "ap75")] == pytest.approx([1, 1, 0])


def test_precision_without_detections_or_ground_truths():
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "scores": torch.zeros(0)}
    truth = {"boxes": square(5), "labels": torch.tensor([1])}
    assert coco_ap([nothing], [truth])["ap"] == 0
    with pytest.raises(ValueError, match="no image has a ground truth"):
        coco_ap([nothing], [nothing])
    with pytest.raises(ValueError, match="2 images and targets of 1"):
        coco_ap([nothing, nothing], [truth])
    ignored = {**truth, "ignore": torch.tensor([True])}
    seen = {**truth, "scores": torch.ones(1)}
    assert coco_ap([seen, seen], [truth, ignored])["ap"] == pytest.approx(1.0)


def test_evaluation_leaves_the_mode_alone():
    model = tiny()
    found, truths = detect_all(model, scenes(5), batch_size=2)
    assert len(found) == len(truths) == 5
    assert model.training
    assert 0 <= evaluate_coco(model, scenes(2))["ap"] <= 1


def test_a_detector_is_saved_and_read_back(tmp_path):
    model = tiny(classes=("a", "b", "c"), head={"thresholds": (0.5, 0.7), "score_threshold": 0.0}).eval()
    model.save_pretrained(tmp_path)
    again = CascadeDetector.from_pretrained(tmp_path).eval()
    assert again.classes == ("a", "b", "c")
    x = [torch.rand(1, 48, 48)]
    assert all(torch.equal(model(x)[0][name], again(x)[0][name]) for name in ("boxes", "scores", "labels"))


def test_the_papers_detector_has_its_parameters():
    with torch.device("meta"):
        cascade = CascadeRCNN.resnet50_fpn(80)
        single = CascadeRCNN.resnet50_fpn(80, head={"thresholds": (0.5,)})
    counts = [sum(p.numel() for p in model.parameters()) for model in (cascade, single)]
    assert counts[0] - counts[1] == 2 * 13_982_805
    assert counts[1] == pytest.approx(41.5e6, rel=0.01)
    with pytest.raises(ValueError, match="3 classes, 2 names"):
        tiny(classes=("a", "b"))


def test_plots_draw():
    assert len(plot_ap_by_iou({"one": {0.5: 0.7, 0.75: 0.4}, "two": {0.5: 0.6}}).axes[0].lines) == 2
    assert len(plot_stage_overlaps([torch.rand(9), torch.rand(9), torch.zeros(0)]).axes) == 3
