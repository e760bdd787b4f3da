"""Readers of boxes, and the generated scenes."""

import json

import numpy as np
import pytest
import torch

from etude.data import detection
from etude.data.kinds_detection import DetectionData, DetectionExamples

Image = pytest.importorskip("PIL.Image")


def picture(path, size=(40, 30), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size).save(path)


def voc(root, stem, objects, size=(40, 30)):
    picture(root / "JPEGImages" / f"{stem}.jpg", size)
    rows = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for name, difficult, x1, y1, x2, y2 in objects
    )
    file = root / "Annotations" / f"{stem}.xml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        f"<annotation><filename>{stem}.jpg</filename><size><width>{size[0]}</width><height>{size[1]}</height>"
        f"<depth>3</depth></size>{rows}</annotation>"
    )


def coco(root, boxes, name="annotations.json", n=None, **changes):
    """A COCO file of one box a picture, `boxes` as x, y, width, height."""
    n = len(boxes) if n is None else n
    for index in range(n):
        picture(root / f"{index}.png")
    content = {
        "images": [{"id": 10 + i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in range(n)],
        "annotations": [
            {"id": i + 1, "image_id": 10 + i, "category_id": 7 - 4 * (i % 2), "bbox": box, "iscrowd": int(i == 2)}
            for i, box in enumerate(boxes)
        ],
        "categories": [{"id": 7, "name": "late"}, {"id": 3, "name": "early"}],
    } | changes
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(json.dumps(content))
    return root / name


def test_voc_boxes_lose_one_at_their_upper_left(tmp_path):
    voc(tmp_path, "a", [("cat", 0, 1, 1, 10, 20), ("dog", 1, 5, 5, 5, 5)])
    voc(tmp_path, "b", [])
    data = detection.VocDetection(tmp_path)
    assert data.classes == ("cat", "dog")
    image, target = data[0]
    assert image.shape == (3, 30, 40)
    assert target["boxes"].tolist() == [[0, 0, 10, 20], [4, 4, 5, 5]]
    assert target["labels"].tolist() == [1, 2]
    assert target["ignore"].tolist() == [False, True]
    assert data[1][1]["boxes"].shape == (0, 4)


def test_coco_labels_follow_the_ids_of_the_categories(tmp_path):
    data = detection.CocoDetection(coco(tmp_path, [[1, 2, 10, 5], [0, 0, 40, 30], [3.5, 4, 2, 2]]))
    assert data.classes == ("early", "late")
    targets = [data[index][1] for index in range(3)]
    assert [t["labels"].tolist() for t in targets] == [[2], [1], [2]]
    assert targets[0]["boxes"].tolist() == [[1, 2, 11, 7]]
    assert [t["ignore"].item() for t in targets] == [False, False, True]


def test_pictures_and_boxes_are_scaled_together(tmp_path):
    file = coco(tmp_path, [[4, 6, 10, 12]])
    image, target = detection.CocoDetection(file, size=20, channels=1)[0]
    assert image.shape == (1, 15, 20)
    assert target["boxes"].tolist() == [[2, 3, 7, 9]]
    image, target = detection.CocoDetection(file, size=(60, 40))[0]
    assert image.shape[1:] == (60, 40)
    assert target["boxes"].tolist() == [[4, 12, 14, 36]]


def test_boxes_that_stick_out_are_cut_off(tmp_path):
    data = detection.CocoDetection(coco(tmp_path, [[-3, 25, 10, 10]]))
    assert data[0][1]["boxes"].tolist() == [[0, 25, 7, 30]]


@pytest.mark.parametrize("box", [[5, 5, 0, 3], [50, 5, 4, 4], [5, 5, -2, 3]])
def test_boxes_without_an_area_in_the_picture_are_refused_or_dropped(tmp_path, box):
    file = coco(tmp_path, [[1, 1, 5, 5], box])
    with pytest.raises(ValueError, match=r"1.png: box 0 \(early\) has no area in the picture of 40 x 30 pixels"):
        detection.CocoDetection(file)
    data = detection.CocoDetection(file, bad_boxes="drop")
    assert [len(data[index][1]["boxes"]) for index in range(2)] == [1, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "annotations.json is not JSON"),
        ("[]", "is not COCO's"),
        ('{"images": [], "annotations": [], "categories": []}', "holds no images"),
        ('{"images": [{"id": 1, "file_name": "a.png"}], "annotations": [], "categories": []}', "holds no annotations"),
        (
            '{"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 2, "category_id": 1}], '
            '"categories": []}',
            "has image 2",
        ),
        ('{"images": [{"id": 1}], "annotations": [1], "categories": []}', "is not COCO's"),
    ],
)
def test_files_that_are_empty_or_no_cocos_are_named(tmp_path, content, message):
    (tmp_path / "annotations.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        detection.CocoDetection(tmp_path / "annotations.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "a.xml is not VOC's XML"),
        ("<annotation><object><name>x</name></object></annotation>", "an object has no bndbox/xmin"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><annotation/>', "declares entities"),
    ],
)
def test_xml_that_is_empty_or_no_vocs_is_named(tmp_path, content, message):
    voc(tmp_path, "a", [])
    (tmp_path / "Annotations" / "a.xml").write_text(content)
    with pytest.raises(ValueError, match=message):
        detection.VocDetection(tmp_path)


def test_pictures_without_any_box_and_missing_or_wrong_pictures(tmp_path):
    voc(tmp_path, "a", [])
    with pytest.raises(ValueError, match="none of the 1 pictures has a box"):
        detection.VocDetection(tmp_path)
    file = coco(tmp_path, [[1, 1, 5, 5]])
    (tmp_path / "0.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no picture .*0.png"):
        detection.CocoDetection(file)
    picture(tmp_path / "0.png", (20, 20))
    with pytest.raises(ValueError, match="has 20 x 20 pixels, its annotation says 40 x 30"):
        detection.CocoDetection(file)[0]
    (tmp_path / "0.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="cannot be read as an image"):
        detection.CocoDetection(file)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 3), ("I;16", 1)])
def test_grey_colour_transparent_and_16_bit_pictures(tmp_path, mode, channels):
    file = coco(tmp_path, [[1, 1, 5, 5]])
    picture(tmp_path / "0.png", mode=mode)
    assert detection.CocoDetection(file)[0][0].shape == (channels, 30, 40)
    assert detection.CocoDetection(file, channels=3)[0][0].shape == (3, 30, 40)


def test_a_folder_is_read_by_its_path(tmp_path):
    for index in range(10):
        voc(tmp_path / "voc", f"{index}", [("cat", 0, 1, 1, 10, 20)])
    data = detection.load(tmp_path / "voc", size=20)
    assert isinstance(data, DetectionData)
    assert (len(data.train), len(data.val), len(data.test)) == (7, 1, 2)
    lists = tmp_path / "voc" / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("0\n1\n2\n3\n4\n5\n6\n7\n")
    (lists / "test.txt").write_text("8\n9\n")
    data = detection.load(tmp_path / "voc", in_memory=True)
    assert (len(data.train), len(data.val), len(data.test)) == (7, 1, 2)
    coco(tmp_path / "one", [[1, 1, 5, 5]] * 5)
    assert len(detection.load(tmp_path / "one").train) == 3
    assert detection.load(tmp_path / "one" / "annotations.json").classes == ("early", "late")
    for part, n in (("train", 4), ("valid", 2), ("test", 3)):
        coco(tmp_path / "three" / part, [[1, 1, 5, 5]] * n, "_annotations.coco.json")
    data = detection.load(tmp_path / "three")
    assert (len(data.train), len(data.val), len(data.test)) == (4, 2, 3)
    for part, n in (("train", 9), ("val", 2)):
        where = tmp_path / "usual"
        file = coco(where / f"{part}2017", [[1, 1, 5, 5]] * n)
        (where / "annotations").mkdir(exist_ok=True)
        file.rename(where / "annotations" / f"instances_{part}2017.json")
    (tmp_path / "usual" / "annotations" / "captions_train2017.json").write_text("{}")
    data = detection.load(tmp_path / "usual")
    assert (len(data.train), len(data.val), len(data.test)) == (8, 1, 2)


def test_annotated_folders_are_recognised(tmp_path):
    voc(tmp_path / "voc", "a", [])
    coco(tmp_path / "coco", [[1, 1, 5, 5]])
    picture(tmp_path / "plain" / "cat" / "0.png")
    (tmp_path / "plain" / "notes.json").write_text("{}")
    assert [detection.is_annotated(tmp_path / name) for name in ("voc", "coco", "plain")] == [True, True, False]


def test_a_folder_of_neither_layout_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"neither Annotations/\*.xml"):
        detection.load(tmp_path)
    (tmp_path / "annotations.json").write_text("")
    with pytest.raises(ValueError, match=r"annotations.json is not JSON"):
        detection.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing at"):
        detection.load(tmp_path / "absent")


def test_scenes_are_as_they_say():
    scenes = detection.shapes_scene(60, 64, seed=3)
    assert scenes.images.shape == (60, 1, 64, 64)
    assert 0 <= scenes.images.min() <= scenes.images.max() <= 1
    for image, target in scenes:
        boxes = target["boxes"]
        assert 1 <= len(boxes) <= 3
        sides = boxes[:, 2:] - boxes[:, :2]
        assert bool(((sides >= 10) & (sides <= 30)).all())
        for a in range(len(boxes)):
            x1, y1, x2, y2 = boxes[a].int().tolist()
            around = image[0, max(y1 - 2, 0) : y2 + 2, max(x1 - 2, 0) : x2 + 2].std()
            assert around > 0.05
            for b in range(a):
                corner = torch.minimum(boxes[a, 2:], boxes[b, 2:]) - torch.maximum(boxes[a, :2], boxes[b, :2])
                shared = corner.clamp(min=0).prod()
                assert shared / (sides[a].prod() + sides[b].prod() - shared) < 0.05
    again = detection.shapes_scene(60, 64, seed=3)
    assert torch.equal(scenes.images, again.images)
    assert not torch.equal(scenes.images, detection.shapes_scene(60, 64, seed=4).images)


@pytest.mark.parametrize("kind", [1, 2, 3])
def test_shapes_fill_their_boxes(kind):
    scenes = detection.shapes_scene(200, seed=1, most=1)
    share = {1: 1.0, 2: np.pi / 4, 3: 0.5}[kind]
    seen = []
    for image, target in scenes:
        if target["labels"].item() == kind:
            x1, y1, x2, y2 = target["boxes"][0].int().tolist()
            ground = image[0].median()
            inside = (image[0, y1:y2, x1:x2] - ground).abs() > 0.12
            seen.append(inside.float().mean().item())
    assert np.mean(seen) == pytest.approx(share, abs=0.06)


def test_examples_are_checked():
    image, target = torch.rand(1, 20, 20), {"boxes": torch.tensor([[1.0, 1, 5, 5]]), "labels": torch.tensor([1])}
    good = DetectionExamples([image], [target])
    assert DetectionData(good, good, good, ("a",)).channels == 1
    for change, message in (
        ({"boxes": torch.tensor([[1.0, 1, 25, 5]])}, r"train\[0\]: boxes must be .* inside 20 x 20 pixels, box 0"),
        ({"boxes": torch.tensor([[5.0, 1, 5, 5]])}, "x1 < x2"),
        ({"labels": torch.tensor([2])}, "labels must lie in 1..1, label 0 is 2"),
        ({"labels": torch.tensor([1.0])}, "labels must be int64"),
        ({"ignore": torch.tensor([0])}, "ignore must be bool"),
    ):
        bad = DetectionExamples([image], [{**target, **change}])
        with pytest.raises(ValueError, match=message):
            DetectionData(bad, good, good, ("a",))
    colour = DetectionExamples([torch.rand(3, 20, 20)], [target])
    with pytest.raises(ValueError, match=r"val\[0\]: a picture must be float32 of shape \(1, height, width\)"):
        DetectionData(good, colour, good, ("a",))
    with pytest.raises(ValueError, match="2 and 1"):
        DetectionExamples([image, image], [target])
    with pytest.raises(ValueError, match="test is empty"):
        DetectionData(good, good, DetectionExamples([], []), ("a",))


def test_blood_cells():
    try:
        root = detection.locate("bccd") / "BCCD"
    except FileNotFoundError:
        pytest.skip("the set is not here")
    parts = [detection.VocDetection(root, part, channels=3, size=(120, 160)) for part in ("train", "val", "test")]
    assert [len(part) for part in parts] == [205, 87, 72]
    assert parts[0].classes == ("Platelets", "RBC", "WBC")
    assert sum(len(record.boxes) for part in parts for record in part.records) == 4_888
    image, target = parts[0][0]
    assert image.shape == (3, 120, 160)
    whole = detection.VocDetection(root, "train", channels=3)
    assert torch.allclose(target["boxes"] * 4, whole[0][1]["boxes"])
    small = torch.nn.functional.interpolate(whole[0][0][None], (120, 160), mode="bilinear", antialias=True)[0]
    assert (image - small).abs().mean() < 0.01
