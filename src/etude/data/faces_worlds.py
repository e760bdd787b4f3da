"""Worlds of faces: parts that share no person, drawn from a seed or out of CelebA, with one way to read them all."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from etude.data.catalogue import home
from etude.data.faces import FaceScenes
from etude.data.faces_public import LFWA, CelebA
from etude.data.kinds import Examples

__all__ = ["FaceWorld", "Part", "celeba_world", "drawn_world", "images_of", "tags_of", "with_tags"]


@dataclass(frozen=True)
class Part:
    """Images with tags, as (image, tags), and what is known about them beside."""

    examples: Examples | Dataset
    boxes: Tensor | None
    identities: Tensor | None


@dataclass(frozen=True)
class FaceWorld:
    """Faces to learn from and to be tested on.

    Attributes:
        draw: (numbers of people and pictures by part, settings, seed) -> the parts, which share no person.
        channels: of the images. tags: attributes.
    """

    draw: Callable[[dict[str, list[int]], dict[str, float | int], int], dict[str, Part]]
    channels: int
    tags: int


def _drawn(sizes: dict[str, list[int]], settings: dict[str, float | int], seed: int) -> dict[str, Part]:
    world, generator = FaceScenes(**cast(Any, settings)), torch.Generator().manual_seed(seed)
    parts, first = {}, 0
    for name, (people, pictures) in sizes.items():
        faces = world.scenes(world.people(people, generator), pictures, generator, first_identity=first)
        parts[name] = Part(Examples(faces.images, faces.tags.float()), faces.boxes, faces.identities)
        first += people
    return parts


class _Rows(Dataset):
    """Some rows of a data set, and the first few of its tags."""

    def __init__(self, examples: Any, rows: list[int], tags: int | None = None):
        self.examples, self.rows, self.tags = examples, rows, tags

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, tags = self.examples[self.rows[index]]
        return image, tags[: self.tags]


def _celeba(sizes: dict[str, list[int]], settings: dict[str, float | int], seed: int) -> dict[str, Part]:
    """Official splits: people and tagged photographs from train, tests from test (or LFWA's), in a drawn order."""
    generator, size = torch.Generator().manual_seed(seed), int(settings["size"])
    parts = {}
    for name, (most, _) in sizes.items():
        photographs: Any
        if name == "lfwa":
            photographs, boxes = LFWA(_placed("lfwa"), "test", size=size), None
        else:
            photographs = CelebA(_placed("celeba"), "test" if name == "test" else "train", size=size)
            boxes = photographs.boxes
        rows = torch.randperm(len(photographs), generator=generator)[:most]
        if name == "test" and boxes is not None:
            rows = rows[torch.isfinite(boxes[rows]).all(1)]
            scale = torch.tensor([photographs.image(row)[1] for row in rows.tolist()])
            boxes = boxes[rows] * scale[:, None]
        ids = None if photographs.identities is None else photographs.identities[rows].unique(return_inverse=True)[1]
        parts[name] = Part(_Rows(photographs, rows.tolist()), boxes if name == "test" else None, ids)
    return parts


def drawn_world() -> FaceWorld:
    """`FaceScenes`, drawn afresh for every seed."""
    return FaceWorld(_drawn, channels=1, tags=10)


def celeba_world() -> FaceWorld:
    """CelebA in the wild, tests on LFWA beside its own; `celeba` and `lfwa` are folders of `etude.data.home()`.

    Raises:
        FileNotFoundError: if CelebA is not here; the message says what to place where.
    """
    _placed("celeba")
    return FaceWorld(_celeba, channels=3, tags=40)


def _placed(name: str) -> Path:
    folder = home() / name
    if not folder.is_dir():
        raise FileNotFoundError(f"place the annotations and photographs of {name} into {folder}: they are not public")
    return folder


def images_of(examples: Any, batch: int = 500) -> Iterator[Tensor]:
    """The images of a part, in order, batch by batch."""
    for start in range(0, len(examples), batch):
        stop = min(start + batch, len(examples))
        if isinstance(examples, Examples):
            yield examples[start:stop][0]
        else:
            yield torch.stack([examples[row][0] for row in range(start, stop)])


def tags_of(examples: Any) -> Tensor:
    """Tags of a part, int64 (n, attributes)."""
    if isinstance(examples, Examples):
        return examples.targets.long()
    return examples.examples.tags[examples.rows, : examples.tags]  # known without reading a photograph


def with_tags(examples: Any, count: int) -> Any:
    """A part with the first `count` of its tags."""
    if isinstance(examples, Examples):
        return Examples(examples.inputs, examples.targets[:, :count])
    return _Rows(examples.examples, examples.rows, count)
