import numpy as np
import pytest
import torch
from PIL import Image

from etude.data.images import image_folder
from etude.data.images.decoding import to_tensor


def write(path, pixels, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels)).save(path)


def grey(value, size=(6, 6)):
    return np.full(size, value, dtype=np.uint8)


@pytest.fixture
def pets(tmp_path):
    for number in range(10):
        write(tmp_path / "pets" / "cat" / f"{number}.png", grey(number))
        write(tmp_path / "pets" / "dog" / f"{number}.png", grey(200 + number))
    return tmp_path / "pets"


def test_sub_folders_are_the_classes(pets):
    data = image_folder(pets)
    assert data.classes == ("cat", "dog")
    assert data.name == "pets"
    for part in (data.train, data.val, data.test):
        assert torch.equal(part.inputs[:, 0, 0, 0] > 0.5, part.targets == 1)


def test_a_folder_without_parts_is_split_70_10_20_by_class(pets):
    data = image_folder(pets)
    assert [len(part) for part in (data.train, data.val, data.test)] == [14, 2, 4]
    assert data.test.targets.bincount().tolist() == [2, 2]


def test_the_seed_decides_the_split(pets):
    assert torch.equal(image_folder(pets, seed=1).test.inputs, image_folder(pets, seed=1).test.inputs)
    assert not torch.equal(image_folder(pets, seed=1).test.inputs, image_folder(pets, seed=2).test.inputs)


def test_part_folders_are_kept(pets, tmp_path):
    for part in ("train", "valid", "test"):
        for name in ("cat", "dog"):
            for number in range(3):
                write(tmp_path / "parts" / part / name / f"{number}.png", grey(number))
    data = image_folder(tmp_path / "parts")
    assert [len(part) for part in (data.train, data.val, data.test)] == [6, 6, 6]


def test_without_a_val_folder_an_eighth_of_train_is_val(tmp_path):
    for part, count in (("train", 8), ("test", 1)):
        for name in ("cat", "dog"):
            for number in range(count):
                write(tmp_path / part / name / f"{number}.png", grey(number))
    data = image_folder(tmp_path)
    assert [len(part) for part in (data.train, data.val, data.test)] == [14, 2, 2]


def test_grey_images_have_one_channel_unless_three_are_wanted(pets):
    assert image_folder(pets).channels == 1
    data = image_folder(pets, channels=3)
    assert data.channels == 3
    assert torch.equal(data.train.inputs[:, 0], data.train.inputs[:, 2])


def test_one_colour_image_makes_all_three_channels(pets):
    write(pets / "cat" / "colour.png", np.zeros((6, 6, 3), dtype=np.uint8))
    assert image_folder(pets).channels == 3


def test_a_size_scales_to_cover_and_cuts_the_middle(tmp_path):
    wide = np.zeros((10, 30), dtype=np.uint8)
    wide[:, 10:20] = 255
    for name in ("a", "b"):
        for number in range(3):
            write(tmp_path / name / f"{number}.png", wide)
    data = image_folder(tmp_path, size=10)
    assert data.size == (10, 10)
    assert torch.equal(data.train.inputs, torch.ones_like(data.train.inputs))


def test_differing_sizes_are_refused_by_name(pets):
    write(pets / "dog" / "large.png", grey(1, size=(7, 5)))
    with pytest.raises(ValueError, match=r"one size unless `size` is given.*large.png is \(7, 5\)"):
        image_folder(pets)


def test_transparency_is_laid_over_black():
    pixels = np.zeros((2, 2, 4), dtype=np.uint8)
    pixels[..., 0], pixels[0, :, 3] = 255, 255
    tensor = to_tensor(Image.fromarray(pixels), 3, None)
    assert tensor[0].tolist() == [[1, 1], [0, 0]]


def test_16_bit_grey_is_divided_by_65535():
    tensor = to_tensor(Image.fromarray(np.array([[0, 65535], [32768, 1]], dtype=np.uint16)), 1, None)
    torch.testing.assert_close(tensor[0], torch.tensor([[0.0, 65535], [32768, 1]]) / 65535)


def test_16_bit_grey_can_be_scaled_and_made_colour():
    tensor = to_tensor(Image.fromarray(np.full((8, 8), 65535, dtype=np.uint16)), 3, (4, 4))
    assert torch.equal(tensor, torch.ones(3, 4, 4))


def test_a_palette_image_is_read_in_colour():
    image = Image.fromarray(np.full((2, 2, 3), (255, 0, 0), dtype=np.uint8)).convert("P")
    assert to_tensor(image, 3, None)[:, 0, 0].tolist() == [1, 0, 0]


def test_other_files_and_hidden_ones_are_passed_over(pets):
    (pets / "cat" / "notes.txt").write_text("no image")
    (pets / "cat" / ".hidden.png").write_text("no image")
    (pets / ".git").mkdir()
    assert len(image_folder(pets).classes) == 2


def test_an_unreadable_image_is_refused_by_name(pets):
    (pets / "cat" / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken.png cannot be read as an image"):
        image_folder(pets)


def test_a_truncated_image_is_refused_by_name(pets):
    noise = np.random.RandomState(0).randint(0, 255, (6, 6), dtype=np.uint8)
    write(pets / "cat" / "torn.png", noise)
    content = (pets / "cat" / "torn.png").read_bytes()
    (pets / "cat" / "torn.png").write_bytes(content[:50])
    with pytest.raises(ValueError, match=r"torn.png cannot be read as an image"):
        image_folder(pets)


def test_an_absent_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder of images at .*nowhere"):
        image_folder(tmp_path / "nowhere")


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"at least two, got \[\]"):
        image_folder(tmp_path)


def test_one_class_is_refused(tmp_path):
    write(tmp_path / "only" / "0.png", grey(0))
    with pytest.raises(ValueError, match=r"at least two, got \['only'\]"):
        image_folder(tmp_path)


def test_an_empty_class_is_refused(pets):
    (pets / "emu").mkdir()
    with pytest.raises(ValueError, match="emu holds no images"):
        image_folder(pets)


def test_a_class_that_train_has_not_is_refused(tmp_path):
    for part, names in (("train", "ab"), ("test", "abc")):
        for name in names:
            write(tmp_path / part / name / "0.png", grey(0))
    with pytest.raises(ValueError, match=r"\['c'\], which train has not"):
        image_folder(tmp_path)
