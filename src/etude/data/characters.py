"""Handwritten characters for learning from few examples: Omniglot's alphabets, and alphabets that are drawn by rule.

    from etude.data import characters
    data = characters.strokes()

Omniglot: Lake, Salakhutdinov & Tenenbaum, Science 350, 1332-1338, 2015.
"""

import io
import os
import re
import zipfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from etude.data.catalogue import locate
from etude.data.kinds_characters import Characters

__all__ = ["omniglot", "omniglot_runs", "stroke_characters", "strokes"]

_ARCHIVES = ("images_background_small1.zip", "images_background_small2.zip")
_DRAWING = re.compile(r"[^/]+/(?P<alphabet>[^/]+)/character(?P<character>\d+)/\d+_(?P<drawer>\d+)\.png")
_INK = 0.03
"""Standard deviation of a stroke's profile, in sides of the image."""


def stroke_characters(
    num_alphabets: int = 8,
    characters: int = 30,
    drawings: int = 20,
    size: int = 28,
    *,
    generator: torch.Generator,
    strokes: tuple[int, int] = (2, 4),
    anchors: int = 8,
    jitter: float | int = 0.03,
    points: int = 32,
) -> Float32[Tensor, "alphabets characters drawings size size"]:
    """Alphabets of characters made of quadratic Bezier strokes, each drawn several times by an unsteady hand.

    An alphabet has `anchors` points in [.15, .85]^2. A character has a number of strokes, all equally likely, whose
    three control points are anchors of its alphabet shifted by N(0, .05^2). A drawing shifts the control points by
    N(0, jitter^2), turns the character by up to 10 degrees, scales it by .85 to 1.15 (both about the centre) and moves
    it by up to .05. Ink at distance d from the nearest point of a stroke is exp(-d^2 / (2 * .03^2)).

    Args:
        num_alphabets, characters, drawings: how many, each at least 1; characters are counted in each alphabet.
        size: height and width in pixels, at least 8.
        generator: of every draw.
        strokes: fewest and most strokes of a character.
        anchors: points of an alphabet; fewer make its characters more alike.
        jitter: unsteadiness, in sides of the image.
        points: places on each stroke at which the distance is taken, at least 2.

    Returns:
        Ink in [0, 1].

    Raises:
        ValueError: if a number lies outside its range.
    """
    least, most = strokes
    for name, value, bound in (
        ("num_alphabets", num_alphabets, 1), ("characters", characters, 1), ("drawings", drawings, 1),
        ("size", size, 8), ("strokes", least, 1), ("anchors", anchors, 1), ("points", points, 2),
    ):  # fmt: skip
        if value < bound:
            raise ValueError(f"{name} must be at least {bound}, got {value}")
    if most < least:
        raise ValueError(f"strokes must be (fewest, most), got {strokes}")
    if not 0 <= jitter < float("inf"):
        raise ValueError(f"jitter must not be negative, got {jitter}")

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    places = uniform(0.15, 0.85, num_alphabets, anchors, 2)
    count = torch.randint(least, most + 1, (num_alphabets, characters), generator=generator)
    chosen = torch.randint(anchors, (num_alphabets, characters * most * 3), generator=generator)
    control = places.gather(1, chosen[..., None].expand(-1, -1, 2)).view(num_alphabets, characters, most, 3, 2)
    control = control + 0.05 * normal(*control.shape)

    drawn = control[:, :, None] + jitter * normal(num_alphabets, characters, drawings, most, 3, 2)
    shape = (num_alphabets, characters, drawings, 1, 1)
    turn, scale = uniform(-np.pi / 18, np.pi / 18, *shape), uniform(0.85, 1.15, *shape)
    shift = uniform(-0.05, 0.05, *shape, 2)
    x, y = (drawn - 0.5).unbind(-1)
    turned = torch.stack([turn.cos() * x - turn.sin() * y, turn.sin() * x + turn.cos() * y], dim=-1)
    drawn = 0.5 + scale[..., None] * turned + shift

    along = torch.linspace(0, 1, points)
    weights = torch.stack([(1 - along) ** 2, 2 * along * (1 - along), along**2])  # (3, points)
    curve = torch.einsum("...kc,kp->...pc", drawn, weights)  # (alphabets, characters, drawings, strokes, points, 2)
    absent = torch.arange(most) >= count[:, :, None, None]  # (alphabets, characters, 1, strokes)
    curve = curve.masked_fill(absent[..., None, None], float("inf"))
    return torch.stack([_inked(alphabet, size) for alphabet in curve])


def _inked(curve: Tensor, size: int) -> Tensor:
    """Images (..., size, size) of points (..., strokes, points, 2), those at infinity leaving no ink."""
    centres = (torch.arange(size) + 0.5) / size
    flat = curve.flatten(-3, -2)
    # The nearest point has the largest product of the two one-dimensional profiles.
    across, down = (torch.exp(-((flat[..., axis, None] - centres) ** 2) / (2 * _INK**2)) for axis in (0, 1))
    images = []
    for profile_x, profile_y in zip(across.flatten(0, -3), down.flatten(0, -3)):
        images.append((profile_y[:, :, None] * profile_x[:, None, :]).amax(dim=0))
    return torch.stack(images).view(*flat.shape[:-2], size, size)


@lru_cache(maxsize=4)
def strokes(
    num_alphabets: int = 8,
    characters: int = 30,
    drawings: int = 20,
    size: int = 28,
    *,
    seed: int = 0,
    strokes: tuple[int, int] = (2, 4),
    anchors: int = 8,
    jitter: float | int = 0.03,
) -> Characters:
    """`stroke_characters` as `Characters`: by default 8 alphabets of 30 characters, 20 drawings each; no network.

    The n-th drawing of each character counts as the n-th drawer's. Arguments are those of `stroke_characters`; `seed`
    is of every draw.
    """
    images = stroke_characters(
        num_alphabets, characters, drawings, size, generator=torch.Generator().manual_seed(seed),
        strokes=strokes, anchors=anchors, jitter=jitter,
    )  # fmt: skip
    total = num_alphabets * characters
    return Characters(
        images=images.reshape(total * drawings, 1, size, size),
        characters=torch.arange(total).repeat_interleave(drawings),
        drawers=torch.arange(drawings).repeat(total),
        alphabets=torch.arange(num_alphabets).repeat_interleave(characters),
        alphabet_names=tuple(f"strokes {index}" for index in range(num_alphabets)),
        name="strokes",
    )


@lru_cache(maxsize=4)
def omniglot(size: int = 28) -> Characters:
    """Eight alphabets of Omniglot, 242 characters drawn by 20 people each (`etude data path omniglot`).

    The two small background sets, from their zip archives; the alphabets that stand in both count once. Drawings are
    105 x 105 and are averaged over areas to `size`; ink is 1. Alphabets stand in alphabetic order, drawings by
    character and drawer.

    Args:
        size: height and width in pixels, 1 to 105.

    Raises:
        ValueError: if `size` lies outside 1..105, or an archive holds no drawings.
        FileNotFoundError: if an archive is not here; the message says where it belongs.
    """
    _check_size(size)
    folder = locate("omniglot")
    found: dict[tuple[str, int, int], bytes] = {}
    for name in _ARCHIVES:
        with _archive(folder, name) as archive:
            drawings = 0
            for entry in archive.namelist():
                if match := _DRAWING.fullmatch(entry):
                    key = (match["alphabet"], int(match["character"]), int(match["drawer"]))
                    found.setdefault(key, archive.read(entry))
                    drawings += 1
            if not drawings:
                raise ValueError(f"{folder / name} holds no drawings ALPHABET/characterNN/IIII_DD.png")
    keys = sorted(found)
    alphabet_names = tuple(dict.fromkeys(alphabet for alphabet, _, _ in keys))
    names = list(dict.fromkeys((alphabet, character) for alphabet, character, _ in keys))
    number = {name: index for index, name in enumerate(names)}
    return Characters(
        images=_pooled([found[key] for key in keys], size),
        characters=torch.tensor([number[alphabet, character] for alphabet, character, _ in keys]),
        drawers=torch.tensor([drawer - 1 for _, _, drawer in keys]),
        alphabets=torch.tensor([alphabet_names.index(alphabet) for alphabet, _ in names]),
        alphabet_names=alphabet_names,
        name="omniglot",
    )


def omniglot_runs(size: int = 28) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The 20 official runs of one-shot classification among 20 characters (`all_runs.zip`).

    Args:
        size: height and width in pixels, 1 to 105.

    Returns:
        For each run: training drawings (20, 1, size, size), one a class; test drawings, as many; and the class of each
        of these, int64 (20,), the row of its training drawing.

    Raises:
        ValueError: if `size` lies outside 1..105.
        FileNotFoundError: if the archive is not here; the message says where it belongs.
    """
    _check_size(size)
    runs = []
    with _archive(locate("omniglot"), "all_runs.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith("/class_labels.txt"))
        for name in names:
            pairs = [line.split() for line in archive.read(name).decode().splitlines() if line.strip()]
            training = sorted({known for _, known in pairs})
            test, train = (
                _pooled([archive.read(entry) for entry in entries], size)
                for entries in ([unknown for unknown, _ in pairs], training)
            )
            runs.append((train, test, torch.tensor([training.index(known) for _, known in pairs])))
    return runs


def _check_size(size: int) -> None:
    if not 1 <= size <= 105:
        raise ValueError(f"size must lie in 1..105, the drawings' own, got {size}")


def _archive(folder: str | os.PathLike, name: str) -> zipfile.ZipFile:
    file = Path(folder) / name
    if not file.is_file():
        raise FileNotFoundError(f"place {name} into {file.parent}")
    return zipfile.ZipFile(file)


def _pooled(files: list[bytes], size: int) -> Tensor:
    from PIL import Image

    images = []
    for content in files:
        with Image.open(io.BytesIO(content)) as image:
            images.append(1 - np.asarray(image.convert("L"), dtype=np.float32) / 255)
    return torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(np.stack(images))[:, None], size)
