import io
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from etude.data import characters
from etude.data.kinds import Characters


def drawn(**changes):
    arguments = {"num_alphabets": 2, "characters": 3, "drawings": 4, "size": 16}
    arguments |= {"generator": torch.Generator().manual_seed(0)}
    return characters.stroke_characters(**(arguments | changes))


def test_strokes_are_ink_on_paper():
    images = drawn()
    assert images.shape == (2, 3, 4, 16, 16)
    assert images.dtype == torch.float32
    assert 0 <= images.min() < 0.01
    assert 0.8 < images.max() <= 1


def test_drawings_of_a_character_are_closer_to_each_other_than_to_other_characters():
    images = drawn(drawings=10, size=28).flatten(-2).flatten(0, 1)
    centres = images.mean(dim=1)
    distances = torch.cdist(images.flatten(0, 1), centres).view(6, 10, 6)
    own = distances[torch.arange(6), :, torch.arange(6)].mean()
    assert own < 0.75 * distances.mean()


def test_a_steady_hand_draws_the_same_up_to_place_and_size():
    one, other = drawn(num_alphabets=1, characters=1, drawings=2, jitter=0, size=28)[0, 0]
    assert not torch.equal(one, other)
    assert abs(one.sum() / other.sum() - 1) < 0.4


def test_ink_is_the_profile_of_the_nearest_point():
    curve = torch.tensor([[[0.25, 0.75], [0.5, 0.5]], [[float("inf")] * 2] * 2])  # two strokes, one of them absent
    image = characters._inked(curve[None], 8)[0]
    centres = (torch.arange(8) + 0.5) / 8
    pixels = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), dim=-1).view(-1, 2)
    nearest = torch.cdist(pixels, curve[0]).amin(dim=1)
    torch.testing.assert_close(image.view(-1), torch.exp(-(nearest**2) / (2 * 0.03**2)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_alphabets": 0}, "num_alphabets must be at least 1, got 0"),
        ({"size": 4}, "size must be at least 8, got 4"),
        ({"strokes": (3, 2)}, r"\(fewest, most\), got \(3, 2\)"),
        ({"jitter": -0.1}, "jitter must not be negative, got -0.1"),
        ({"points": 1}, "points must be at least 2, got 1"),
    ],
)
def test_strokes_refuse_what_cannot_be_drawn(change, message):
    with pytest.raises(ValueError, match=message):
        drawn(**change)


def test_strokes_as_a_data_set():
    data = characters.strokes(3, 4, 5, 12)
    assert len(data) == 3 * 4 * 5
    assert data.num_characters == 12
    assert data.size == (12, 12)
    assert data.characters.bincount().tolist() == [5] * 12
    assert data.drawers[data.characters == 7].tolist() == [0, 1, 2, 3, 4]
    assert characters.strokes(3, 4, 5, 12) is data
    assert not torch.equal(characters.strokes(3, 4, 5, 12, seed=1).images, data.images)


def test_alphabets_can_be_taken_apart():
    data = characters.strokes(3, 4, 5, 12)
    part = data.of_alphabets([2, 0])
    assert part.alphabet_names == ("strokes 2", "strokes 0")
    assert part.alphabets.tolist() == [0] * 4 + [1] * 4
    assert torch.equal(part.images[part.characters == 0], data.images[data.characters == 8])
    assert torch.equal(part.images[part.characters == 4], data.images[data.characters == 0])
    for wanted in ([], [0, 0], [3]):
        with pytest.raises(ValueError, match=r"different numbers in 0\.\.2"):
            data.of_alphabets(wanted)


def kind(**changes):
    arguments = {
        "images": torch.zeros(4, 1, 5, 5),
        "characters": torch.tensor([0, 0, 1, 1]),
        "drawers": torch.tensor([0, 1, 0, 1]),
        "alphabets": torch.tensor([0, 0]),
        "alphabet_names": ("a",),
        "name": "toy",
    }
    return Characters(**(arguments | changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(4, 3, 5, 5)}, r"float32 \(n, 1, height, width\), got float32 of shape \(4, 3, 5, 5\)"),
        ({"images": torch.full((4, 1, 5, 5), 2.0)}, r"lie in \[0, 1\]"),
        ({"drawers": torch.zeros(3, dtype=torch.int64)}, r"int64 of shape \(4,\)"),
        ({"characters": torch.tensor([0, 0, 2, 2])}, "without a gap"),
        ({"alphabets": torch.tensor([0, 0, 0])}, r"int64 of shape \(2,\)"),
        ({"alphabet_names": ("a", "b")}, "each of the 2 names"),
    ],
)
def test_the_kind_refuses_what_does_not_fit(change, message):
    assert kind().num_characters == 2
    with pytest.raises(ValueError, match=message):
        kind(**change)


def png(value: int) -> bytes:
    image = np.full((105, 105), 255, dtype=np.uint8)
    image[: value + 1] = 0
    stream = io.BytesIO()
    Image.fromarray(image).convert("1").save(stream, format="PNG")
    return stream.getvalue()


@pytest.fixture
def omniglot_home(tmp_path, monkeypatch):
    folder = tmp_path / "omniglot"
    folder.mkdir()
    monkeypatch.setenv("ETUDE_DATA", str(tmp_path))
    characters.omniglot.cache_clear()
    yield folder
    characters.omniglot.cache_clear()


def test_omniglot_counts_alphabets_of_both_archives_once(omniglot_home):
    for archive, alphabets in (("small1", ("Latin", "Balinese")), ("small2", ("Tagalog", "Latin"))):
        with zipfile.ZipFile(omniglot_home / f"images_background_{archive}.zip", "w") as content:
            for offset, alphabet in enumerate(alphabets):
                for character in (1, 2):
                    for drawer in (1, 2, 3):
                        name = f"images_background_{archive}/{alphabet}/character{character:02}/0001_{drawer:02}.png"
                        content.writestr(name, png(10 * offset + 2 * character))
    data = characters.omniglot(35)
    assert data.alphabet_names == ("Balinese", "Latin", "Tagalog")
    assert len(data) == 3 * 2 * 3
    assert data.size == (35, 35)
    assert data.alphabets.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.drawers.tolist() == [0, 1, 2] * 6
    assert data.images[0, 0, 0, 0] == 1  # ink
    assert data.images[0, 0, -1, -1] == 0  # paper
    # Rows 0..12 are inked: four areas of three rows and a third of the next.
    assert data.images[0, 0, :6, 0].tolist() == pytest.approx([1, 1, 1, 1, 1 / 3, 0])


def test_the_official_runs(omniglot_home):
    with zipfile.ZipFile(omniglot_home / "all_runs.zip", "w") as content:
        for run in ("run01", "run02"):
            content.writestr(
                f"{run}/class_labels.txt",
                f"{run}/test/item01.png {run}/training/class02.png\n{run}/test/item02.png {run}/training/class01.png\n",
            )
            for part, word in (("test", "item"), ("training", "class")):
                for index in (1, 2):
                    content.writestr(f"{run}/{part}/{word}{index:02}.png", png(10 * index))
    runs = characters.omniglot_runs(21)
    assert len(runs) == 2
    train, test, labels = runs[0]
    assert train.shape == test.shape == (2, 1, 21, 21)
    assert labels.tolist() == [1, 0]


def test_missing_and_empty_archives_are_named(omniglot_home):
    with pytest.raises(FileNotFoundError, match="etude data fetch omniglot"):
        characters.omniglot()
    with zipfile.ZipFile(omniglot_home / "images_background_small2.zip", "w"):
        pass
    with pytest.raises(FileNotFoundError, match=r"place images_background_small1\.zip into"):
        characters.omniglot()
    with zipfile.ZipFile(omniglot_home / "images_background_small1.zip", "w") as content:
        content.writestr("readme.txt", "no drawings")
    with pytest.raises(ValueError, match="holds no drawings"):
        characters.omniglot()
    for size in (0, 106):
        with pytest.raises(ValueError, match=f"1..105, the drawings' own, got {size}"):
            characters.omniglot_runs(size)
