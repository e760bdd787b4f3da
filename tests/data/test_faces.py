import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from etude.data import faces as faces_module
from etude.data.faces import ATTRIBUTES, LFWA, CelebA, Faces, FaceScenes, lfw_faces, lfw_mosaics, orl_faces
from etude.data.faces_worlds import FaceWorld, celeba_world, drawn_world, images_of, tags_of, with_tags


def scenes(n=40, pictures=3, seed=0, **options):
    world, generator = FaceScenes(**options), torch.Generator().manual_seed(seed)
    return world.scenes(world.people(n, generator), pictures, generator)


def test_scenes_are_faces_with_everything_known():
    faces = scenes()
    assert faces.images.shape == (120, 1, 64, 64)
    assert faces.tags.shape == (120, len(ATTRIBUTES))
    assert 0 <= faces.images.min() < faces.images.max() <= 1
    height = faces.boxes[:, 3] - faces.boxes[:, 1]
    assert 22 <= height.min() < height.max() <= 32
    frequency = faces.tags.float().mean(0)
    assert (frequency > 0.15).all()
    assert (frequency < 0.85).all()
    assert faces.identities.bincount().tolist() == [3] * 40


def test_some_attributes_are_the_persons_and_others_vary():
    tags = scenes(60, 10, size=32, side=(12, 20), clutter=0).tags.view(60, 10, -1).float()
    within = tags.std(1).mean(0)
    assert (within[:4] > 0.4).all()
    assert (within[4:] == 0).all()


def test_habits_show_as_often_as_asked():
    world = FaceScenes(size=32, side=(12, 20), clutter=0, consistency=0.9)
    generator = torch.Generator().manual_seed(0)
    people = world.people(100, generator)
    faces = world.scenes(people, 10, generator)
    shown = (faces.tags[:, :4] == people[faces.identities, -4:]).float().mean().item()
    assert shown == pytest.approx(0.9, abs=0.02)


def test_the_face_lies_in_its_box():
    """The same draws with and without clutter differ outside the box, not in its middle."""
    plain = scenes(10, 1, clutter=0, noise=0.0)
    for image, box in zip(plain.images[:, 0], plain.boxes.round().long()):
        left, top, right, bottom = box.tolist()
        inside = image[top:bottom, left:right].std()
        outside = image.clone()
        outside[max(top - 6, 0) : bottom + 2, max(left - 4, 0) : right + 4] = float("nan")
        assert inside > 2 * outside[torch.isfinite(outside)].std()


@pytest.mark.parametrize("attribute", range(len(ATTRIBUTES)))
def test_every_attribute_changes_its_face_and_nothing_else(attribute):
    plain = scenes(20, 1, clutter=0, noise=0.0)
    geometry, tone = torch.rand(20, 12, generator=torch.Generator().manual_seed(1)), torch.full((20,), 0.5)
    drawn = []
    for value in (0, 1):
        tags = torch.zeros(20, len(ATTRIBUTES), dtype=torch.bool)
        tags[:, attribute] = bool(value)
        drawn.append(faces_module._draw_faces(torch.full((20, 64, 64), 0.4), plain.boxes, geometry, tags, tone))
    changed = (drawn[1] - drawn[0]).abs()
    assert (changed.amax((1, 2)) > 0.1).all()
    assert (changed.flatten(1) > 0.05).sum(1).min() >= 4
    for image, box in zip(changed, plain.boxes.round().long()):
        left, top, right, bottom = box.tolist()
        image[max(top - 8, 0) : bottom + 3, max(left - 5, 0) : right + 5] = 0
    assert changed.max() < 0.05


def test_one_seed_one_world():
    assert torch.equal(scenes(5).images, scenes(5).images)
    assert not torch.equal(scenes(5).images, scenes(5, seed=1).images)
    assert not torch.equal(scenes(5).images, scenes(5, nuisance=1.0).images)


def test_boxes_can_be_taken_away_and_rows_chosen():
    faces = scenes(4)
    assert faces.without_boxes().boxes is None
    part = faces.subset(torch.tensor([2, 0]))
    assert torch.equal(part.boxes, faces.boxes[[2, 0]])
    assert len(part.without_boxes().subset(slice(1))) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(2, 8, 8)}, "images must be float32"),
        ({"tags": torch.zeros(2, 2)}, "tags must be int64"),
        ({"tags": torch.full((2, 1), -1)}, "tags must be 0 or 1"),
        ({"boxes": torch.tensor([[0.0, 0, 4, 4], [2, 2, 2, 4]])}, "in row 1"),
        ({"boxes": torch.tensor([[0.0, 0, 4, 4], [2, 2, 9, 4]])}, "inside the 8 x 8 image, got"),
        ({"boxes": torch.tensor([[0.0, 0, 4, 4], [2, 2, float("nan"), 4]])}, "in row 1"),
        ({"boxes": torch.zeros(1, 4)}, r"boxes must have shape \(2, 4\)"),
        ({"identities": torch.zeros(3)}, "identities must have shape"),
    ],
)
def test_faces_that_contradict_themselves_are_refused(change, message):
    fields = {"images": torch.zeros(2, 1, 8, 8), "tags": torch.zeros(2, 1, dtype=torch.int64), "attributes": ("a",)}
    with pytest.raises(ValueError, match=message):
        Faces(**(fields | change))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"side": (32, 22)}, r"got \(32, 22\)"),
        ({"size": 32}, "0.8 of the size 32"),
        ({"clutter": -1}, "must not be negative"),
        ({"consistency": 0.2}, r"consistency must lie in \[0.5, 1\], got 0.2"),
        ({"nuisance": 2.0}, r"nuisance must lie in \[0, 1\], got 2.0"),
    ],
)
def test_worlds_that_cannot_be_drawn_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FaceScenes(**options)
    world, generator = FaceScenes(), torch.Generator()
    with pytest.raises(ValueError, match="at least one person"):
        world.people(0, generator)
    with pytest.raises(ValueError, match="pictures must be positive"):
        world.scenes(world.people(1, generator), 0, generator)


def test_real_faces_are_bundled():
    data = lfw_faces()
    assert [len(part) for part in (data.train, data.val, data.test)] == [140, 20, 40]
    assert data.size == (25, 25)
    assert all(part.targets.float().mean() == 0.5 for part in (data.train, data.val, data.test))


def test_mosaics_hold_the_face_where_the_box_says():
    faces = lfw_mosaics(3, 70, generator=torch.Generator().manual_seed(0))
    assert faces.images.shape == (3, 1, 70, 70)
    known = lfw_faces().train
    face = known.inputs[known.targets == 1][1, 0]
    left, top, right, bottom = faces.boxes[1].long().tolist()
    assert torch.equal(faces.images[1, 0, top:bottom, left:right], face)
    with pytest.raises(ValueError, match="at least 25, got 3 and 20"):
        lfw_mosaics(3, 20, generator=torch.Generator())


def orl(folder, size=(92, 112), people=40):
    for person in range(1, people + 1):
        (folder / "orl_faces" / f"s{person}").mkdir(parents=True)
        for number in range(1, 11):
            image = Image.new("L", size, 6 * person)
            image.save(folder / "orl_faces" / f"s{person}" / f"{number}.pgm")


def test_portraits_are_split_within_each_person(tmp_path, monkeypatch):
    orl(tmp_path)
    monkeypatch.setenv("ETUDE_DATA", str(tmp_path))
    orl_faces.cache_clear()
    try:
        data = orl_faces(24)
    finally:
        orl_faces.cache_clear()
    assert [len(part) for part in (data.train, data.val, data.test)] == [240, 80, 80]
    assert data.size == (24, 24)
    assert data.classes[-1] == "s40"
    torch.testing.assert_close(data.test.inputs[-1], torch.full((1, 24, 24), 240 / 255))


@pytest.mark.parametrize(("made", "message"), [({"people": 39}, "s40/1.pgm is missing"), ({"size": (9, 9)}, "9 x 9")])
def test_other_portraits_are_refused(tmp_path, monkeypatch, made, message):
    orl(tmp_path, **made)
    monkeypatch.setenv("ETUDE_DATA", str(tmp_path))
    orl_faces.cache_clear()
    with pytest.raises(ValueError, match=message):
        orl_faces()


ATTRIBUTE_FILE = "4\nBald Smiling\na.jpg -1  1\nb.jpg  1 -1\nc.jpg -1 -1\nd.jpg  1  1\n"
BOX_FILE = "4\nimage_id x_1 y_1 width height\na.jpg 2 4 10 8\nb.jpg 0 0 0 0\nc.jpg 1 1 5 5\nd.jpg 3 2 4 4\n"


def celeba_folder(root, **texts):
    files = {
        "list_attr_celeba.txt": ATTRIBUTE_FILE,
        "list_bbox_celeba.txt": BOX_FILE,
        "identity_CelebA.txt": "a.jpg 7\nb.jpg 7\nc.jpg 9\nd.jpg 12\n",
        "list_eval_partition.txt": "a.jpg 0\nb.jpg 0\nc.jpg 1\nd.jpg 2\n",
    }
    (root / "Anno").mkdir(parents=True)
    for name, text in files.items():
        where = root if "partition" in name else root / "Anno"
        (where / name).write_text(texts.get(name.split(".")[0], text))
    for folder in ("img_celeba", "img_align_celeba"):
        (root / folder).mkdir()
        for name, size in (("a", (40, 20)), ("b", (20, 20)), ("c", (20, 20)), ("d", (10, 20))):
            Image.new("RGB", size, (255, 0, 0)).save(root / folder / f"{name}.jpg")
    return root


def test_celeba_is_read_as_its_home_hands_it_out(tmp_path):
    train = CelebA(celeba_folder(tmp_path), size=20)
    assert train.attributes == ("Bald", "Smiling")
    assert train.tags.tolist() == [[0, 1], [1, 0]]
    assert train.identities.tolist() == [7, 7]
    assert train.boxes[0].tolist() == [2, 4, 12, 12]
    assert torch.isnan(train.boxes[1]).all()
    image, tags = train[0]
    assert image.shape == (3, 20, 20)
    assert tags.tolist() == [0, 1]
    # 40 x 20 is scaled by a half, laid to the top, and filled up below
    assert train.image(0)[1] == 0.5
    assert image[0, :10].min() > 0.9
    assert image[:, 10:].max() == 0
    test = CelebA(tmp_path, "test", channels=1)
    assert test[0][0].shape == (1, 20, 10)
    assert CelebA(tmp_path, "all", aligned=True).boxes is None


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"list_attr_celeba": ""}, "must begin with the number of photographs"),
        ({"list_attr_celeba": "0\nBald Smiling\n"}, "names no photograph"),
        ({"list_attr_celeba": ATTRIBUTE_FILE.replace("4", "5", 1)}, "announces 5 photographs and has 4"),
        ({"list_attr_celeba": ATTRIBUTE_FILE.replace("-1  1", "-1  2")}, "0 and 1, or -1 and 1, got"),
        ({"list_attr_celeba": ATTRIBUTE_FILE.replace("-1  1", "-1")}, "equally many numbers"),
        ({"list_attr_celeba": ATTRIBUTE_FILE.replace("-1  1", "-1  x")}, "must hold whole numbers"),
        ({"list_eval_partition": ""}, "names no photograph"),
        ({"list_eval_partition": "b.jpg 0\na.jpg 0\nc.jpg 1\nd.jpg 2\n"}, "same photographs in one order, got a.jpg"),
        ({"list_eval_partition": "a.jpg 0\nb.jpg 0\nc.jpg 1\nd.jpg 3\n"}, "must hold 0, 1 and 2"),
        ({"list_bbox_celeba": "4\nimage_id x y w\na.jpg 1 1 1\nb.jpg 1 1 1\nc.jpg 1 1 1\nd.jpg 1 1 1\n"}, "got 3 numb"),
        ({"list_bbox_celeba": ""}, "must begin with the number"),
    ],
)
def test_malformed_annotations_of_celeba_are_refused(tmp_path, texts, message):
    with pytest.raises(ValueError, match=message):
        CelebA(celeba_folder(tmp_path, **texts))


def test_what_is_missing_of_celeba_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder at"):
        CelebA(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"place list_attr_celeba\.txt into"):
        CelebA(tmp_path)
    root = celeba_folder(tmp_path / "celeba")
    (root / "img_celeba" / "a.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"a.jpg, which is not in .*img_celeba"):
        CelebA(root)[0]
    with pytest.raises(ValueError, match="split must be train, val, test or all, got 'valid'"):
        CelebA(root, "valid")
    with pytest.raises(ValueError, match="size must be positive, got 0"):
        CelebA(root, size=0)


def cells(*strings):
    found = np.empty((len(strings), 1), dtype=object)
    found[:, 0] = strings
    return found


def lfwa_folder(root, label=((0, 1), (1, 1), (0, 0)), train=(1, 3)):
    names = ("Ann\\Ann_0001.jpg", "Ann\\Ann_0002.jpg", "Bob\\Bob_0001.jpg")
    savemat(
        root / "lfw_att_40.mat",
        {"label": np.array(label, dtype=np.float64), "name": cells(*names), "AttrName": cells("Bald", "No Beard")},
    )
    savemat(
        root / "indices_train_test.mat",
        {"indices_img_train": np.array(train)[:, None], "indices_img_test": np.array([[2]])},
    )
    for name in names:
        file = root / "lfw" / name.replace("\\", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (25, 25)).save(file)
    return root


def test_lfwa_is_read_as_its_home_hands_it_out(tmp_path):
    train = LFWA(lfwa_folder(tmp_path))
    assert train.attributes == ("Bald", "No_Beard")
    assert train.tags.tolist() == [[0, 1], [0, 0]]
    assert train.names == ["Ann/Ann_0001.jpg", "Bob/Bob_0001.jpg"]
    assert train.identities.tolist() == [0, 1]
    assert train[1][0].shape == (3, 25, 25)
    test = LFWA(tmp_path, "test", size=10, channels=1)
    assert test.tags.tolist() == [[1, 1]]
    assert test[0][0].shape == (1, 10, 10)
    assert len(LFWA(tmp_path, "all")) == 3


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"label": ((0, 3), (1, 1), (0, 0))}, "0 and 1, or -1 and 1"),
        ({"label": ((0, 1), (1, 1))}, r"label must have shape \(3, 2\), got \(2, 2\)"),
        ({"train": (1, 4)}, r"indices_img_train must lie in 1..3"),
    ],
)
def test_malformed_annotations_of_lfwa_are_refused(tmp_path, made, message):
    with pytest.raises(ValueError, match=message):
        LFWA(lfwa_folder(tmp_path, **made))


def test_what_is_missing_of_lfwa_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"place lfw_att_40\.mat into"):
        LFWA(tmp_path)
    savemat(tmp_path / "lfw_att_40.mat", {"label": np.zeros((1, 1))})
    with pytest.raises(ValueError, match="must hold name, AttrName"):
        LFWA(tmp_path)
    with pytest.raises(ValueError, match="split must be train, test or all, got 'val'"):
        LFWA(tmp_path, "val")


SIZES = {"train": [4, 2], "test": [3, 1]}


def test_parts_of_a_drawn_world_share_no_person():
    parts = drawn_world().draw(SIZES, {"size": 64}, 3)
    people = [set(part.identities.tolist()) for part in parts.values()]
    assert not people[0] & people[1]
    assert [len(part.examples) for part in parts.values()] == [8, 3]
    assert tags_of(with_tags(parts["train"].examples, 2)).shape == (8, 2)


def test_celeba_is_read_as_a_world(tmp_path, monkeypatch):
    celeba_folder(tmp_path / "celeba")
    (tmp_path / "lfwa").mkdir()
    lfwa_folder(tmp_path / "lfwa")
    monkeypatch.setenv("ETUDE_DATA", str(tmp_path))
    world = celeba_world()
    assert isinstance(world, FaceWorld)
    parts = world.draw({"train": [9, 1], "test": [9, 1], "lfwa": [9, 1]}, {"size": 10}, 0)
    assert [len(part.examples) for part in parts.values()] == [2, 1, 1]
    assert parts["train"].boxes is None  # for scoring only
    assert parts["test"].boxes.tolist() == [[1.5, 1, 3.5, 3]]
    (images,) = images_of(parts["train"].examples)
    assert images.shape == (2, 3, 10, 10)
    few = with_tags(parts["train"].examples, 1)
    assert few[0][1].shape == (1,)
    assert tags_of(few).shape == (2, 1)


def test_a_world_without_its_photographs_says_what_to_place(tmp_path, monkeypatch):
    monkeypatch.setenv("ETUDE_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="celeba"):
        celeba_world()
