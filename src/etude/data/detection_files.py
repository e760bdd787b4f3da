"""Readers of annotation files of boxes: COCO's JSON and Pascal VOC's XML.

Corners are 0-based and half-open. COCO's boxes are x, y, width, height; VOC's are 1-based and inclusive, so that 1 is
subtracted from xmin and ymin only. Boxes that stick out of their picture are cut off at its border; boxes that have
no area, or none inside the picture, are refused with their file, or dropped if so told.
"""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from etude.data.images.decoding import is_grey, to_tensor
from etude.data.kinds_detection import DetectionExamples, Target

__all__ = ["CocoDetection", "DetectionFiles", "Record", "Size", "VocDetection", "read_coco"]

_log = logging.getLogger(__name__)
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")

Size = int | tuple[int, int] | None


@dataclass(frozen=True)
class Record:
    """One picture and its boxes as the annotation file has them.

    Attributes:
        file: of the picture.
        width, height: of the picture in pixels; 0 where the annotation does not say.
        boxes: (n, 4) corners, 0-based and half-open.
        names: the class of each box.
        ignore: which boxes are crowds or difficult.
    """

    file: Path
    width: int
    height: int
    boxes: np.ndarray
    names: tuple[str, ...]
    ignore: tuple[bool, ...]


class DetectionFiles(Dataset):
    """Pictures read from their files one by one, with targets as `etude.data.kinds_detection` has them.

    Args:
        records: of the pictures.
        classes: names of the labels 1..K; the sorted names in the records if None.
        size: a number scales the longer side to it, (height, width) stretches to it, None leaves pictures alone.
        channels: 1 or 3; if None, 1 if all pictures are grey and else 3. Transparency is laid over black, 16-bit grey
            is divided by 65,535 (see `images.decoding.to_tensor`).
        bad_boxes: "error" refuses boxes without an area in the picture, "drop" leaves them out and logs how many.

    Raises:
        ValueError: for no pictures, no boxes, a name outside `classes`, or a bad box.
    """

    def __init__(
        self,
        records: Sequence[Record],
        classes: Sequence[str] | None = None,
        *,
        size: Size = None,
        channels: int | None = None,
        bad_boxes: str = "error",
    ):
        if bad_boxes not in ("error", "drop"):
            raise ValueError(f"bad_boxes must be 'error' or 'drop', got {bad_boxes!r}")
        if channels not in (None, 1, 3):
            raise ValueError(f"channels must be 1 or 3, got {channels}")
        if size is not None and min(size if isinstance(size, tuple) else (size,)) < 1:
            raise ValueError(f"size must be positive, got {size}")
        if not records:
            raise ValueError("there are no pictures")
        names = {name for record in records for name in record.names}
        self.classes = tuple(sorted(names)) if classes is None else tuple(classes)
        unknown = sorted(names - set(self.classes))
        if unknown:
            raise ValueError(f"boxes have the classes {', '.join(unknown[:3])}, known are {', '.join(self.classes)}")
        if not names and classes is None:
            raise ValueError(f"none of the {len(records)} pictures has a box")
        self.size = size
        cleaned = [_cleaned(record, bad_boxes) for record in records]
        dropped = sum(len(old.names) - len(new.names) for old, new in zip(records, cleaned))
        if dropped:
            _log.warning("%d boxes without an area in their picture were left out", dropped)
        self.records = cleaned
        self.channels = channels or (1 if all(_picture(r.file, is_grey) for r in cleaned) else 3)
        label = {name: index for index, name in enumerate(self.classes, 1)}
        self._targets: list[Target] = [
            {
                "boxes": torch.from_numpy(record.boxes.astype(np.float32)),
                "labels": torch.tensor([label[name] for name in record.names], dtype=torch.int64),
                "ignore": torch.tensor(record.ignore, dtype=torch.bool),
            }
            for record in cleaned
        ]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        record, target = self.records[index], self._targets[index]
        image, (height, width) = _picture(record.file, lambda picture: _decoded(picture, self.channels, self._scaled))
        if record.width and (width, height) != (record.width, record.height):
            raise ValueError(
                f"{record.file} has {width} x {height} pixels, its annotation says {record.width} x {record.height}"
            )
        if self.size is None:
            return image, target
        new = self._scaled(height, width)
        image = F.interpolate(image[None], new, mode="bilinear", antialias=True, align_corners=False)[0].clamp_(0, 1)
        scale = torch.tensor([new[1] / width, new[0] / height] * 2)
        return image, {**target, "boxes": target["boxes"] * scale}

    def _scaled(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what comes out."""
        if self.size is None or isinstance(self.size, tuple):
            return self.size or (height, width)
        factor = self.size / max(height, width)
        return max(1, round(height * factor)), max(1, round(width * factor))

    def subset(self, indices: Tensor | Sequence[int]) -> "DetectionFiles":
        """The pictures at `indices`, in that order."""
        rows = [self.records[int(index)] for index in indices]
        return DetectionFiles(rows, self.classes, size=self.size, channels=self.channels)

    def in_memory(self) -> DetectionExamples:
        """All pictures decoded once."""
        return DetectionExamples(*zip(*(self[index] for index in range(len(self)))))


def _picture(file: Path, read: Any) -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("reading image files needs Pillow: pip install 'etude[run]'") from error
    try:
        with Image.open(file) as image:
            return read(image)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no picture {file}, which the annotations name") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"{file} cannot be read as an image: {error}") from error


def _decoded(picture: Any, channels: int, scaled: Any) -> tuple[Tensor, tuple[int, int]]:
    """Pixels, and the height and width that the whole picture has upright. A JPEG of which little is wanted is decoded
    at the nearest larger of a half, a quarter or an eighth."""
    width, height = picture.size
    if picture.getexif().get(0x0112, 1) in (5, 6, 7, 8):  # lies on its side
        return to_tensor(picture, channels, None), (width, height)
    new_height, new_width = scaled(height, width)
    if new_height < height and new_width < width:
        picture.draft(None, (new_width, new_height))
    return to_tensor(picture, channels, None), (height, width)


def _cleaned(record: Record, bad_boxes: str) -> Record:
    """Boxes cut off at the border; those that have no area left are refused or left out."""
    if not len(record.boxes):
        return record
    width, height = (record.width, record.height) if record.width else _picture(record.file, lambda image: image.size)
    cut_off = np.clip(record.boxes, 0, [width, height, width, height])
    good = np.isfinite(record.boxes).all(1) & (cut_off[:, 2:] > cut_off[:, :2]).all(1)
    if not good.all() and bad_boxes == "error":
        index = int((~good).argmax())
        raise ValueError(
            f"{record.file.name}: box {index} ({record.names[index]}) has no area in the picture of {width} x {height} "
            f"pixels: corners {record.boxes[index].tolist()}; bad_boxes='drop' leaves such boxes out"
        )
    keep = np.flatnonzero(good).tolist()
    names, ignore = tuple(record.names[i] for i in keep), tuple(record.ignore[i] for i in keep)
    return Record(record.file, record.width, record.height, cut_off[good], names, ignore)


class CocoDetection(DetectionFiles):
    """Pictures annotated in one COCO JSON file.

    Labels 1..K are the file's categories in the order of their ids; crowds (`iscrowd`) are marked as ignored.

    Args:
        annotations: the JSON file.
        images: the folder of the pictures; that of the file if None.
        classes, options: see `DetectionFiles`; the file's categories if None.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not COCO's JSON, or empty; and see `DetectionFiles`.
    """

    def __init__(
        self,
        annotations: str | os.PathLike,
        images: str | os.PathLike | None = None,
        classes: Sequence[str] | None = None,
        **options: Any,
    ):
        file = Path(annotations)
        records, names = read_coco(file, file.parent if images is None else Path(images))
        super().__init__(records, names if classes is None else classes, **options)


def read_coco(file: Path, folder: Path) -> tuple[list[Record], list[str]]:
    """The pictures of a COCO file, which lie in `folder`, and the names of its categories in the order of their ids."""
    if not file.is_file():
        raise FileNotFoundError(f"no annotations at {file}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file.name} is not JSON: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in ("images", "categories")):
        raise ValueError(f"{file.name} is not COCO's: it must hold lists images, annotations and categories")
    if not content["images"] or not content.get("annotations"):
        what = "images" if not content["images"] else "annotations"
        raise ValueError(f"{file.name} holds no {what}: there is nothing to learn from")
    try:
        categories = {row["id"]: str(row["name"]) for row in sorted(content["categories"], key=lambda row: row["id"])}
        pictures = {row["id"]: row for row in content["images"]}
        found: dict[Any, list[dict]] = {key: [] for key in pictures}
        for row in content["annotations"]:
            if row["image_id"] not in found or row["category_id"] not in categories:
                raise ValueError(
                    f"{file.name}: annotation {row.get('id')} has image {row['image_id']} and category "
                    f"{row['category_id']}, of which one is not in the file"
                )
            found[row["image_id"]].append(row)
        records = []
        for key, picture in pictures.items():
            rows = found[key]
            corners = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)
            corners[:, 2:] += corners[:, :2]
            records.append(
                Record(
                    folder / picture["file_name"], int(picture.get("width", 0)), int(picture.get("height", 0)), corners,
                    tuple(categories[row["category_id"]] for row in rows),
                    tuple(bool(row.get("iscrowd", 0)) for row in rows),
                )
            )  # fmt: skip
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file.name} is not COCO's: {type(error).__name__} {error}") from error
    if len(pictures) < len(content["images"]):
        raise ValueError(f"{file.name}: two images have one id")
    return records, list(categories.values())


class VocDetection(DetectionFiles):
    """Pictures annotated in Pascal VOC's XML files, one a picture; difficult objects are marked as ignored.

    Args:
        root: a folder with `Annotations/*.xml` and `JPEGImages/`.
        part: name of a list in `ImageSets/Main/`, such as "train"; all annotated pictures if None.
        classes, options: see `DetectionFiles`.

    Raises:
        FileNotFoundError: if there is no such folder or list.
        ValueError: for an XML file that is empty or not VOC's; and see `DetectionFiles`.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        part: str | None = None,
        classes: Sequence[str] | None = None,
        **options: Any,
    ):
        folder = Path(root)
        if not (folder / "Annotations").is_dir():
            raise FileNotFoundError(f"{folder} has no folder Annotations")
        if part is None:
            files = sorted((folder / "Annotations").glob("*.xml"))
        else:
            listing = folder / "ImageSets" / "Main" / f"{part}.txt"
            if not listing.is_file():
                raise FileNotFoundError(f"there is no list {listing}")
            stems = [line.split()[0] for line in listing.read_text(encoding="utf-8").splitlines() if line.strip()]
            files = [folder / "Annotations" / f"{stem}.xml" for stem in stems]
        super().__init__([_read_voc(file, folder / "JPEGImages") for file in files], classes, **options)


def _read_voc(file: Path, folder: Path) -> Record:
    if not file.is_file():
        raise FileNotFoundError(f"no annotation at {file}")
    text = file.read_text(encoding="utf-8")
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError(f"{file.name} declares entities, which annotations have no use for")
    try:
        root = ElementTree.fromstring(text)
        rows = list(root.iter("object"))
        corners = np.array(
            [[float(_text(row, f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax")] for row in rows],
            dtype=np.float64,
        ).reshape(-1, 4)
        corners[:, :2] -= 1
        names = tuple(_text(row, "name").strip() for row in rows)
        ignore = tuple((row.findtext("difficult") or "0").strip() == "1" for row in rows)
        width, height = (int(float(root.findtext(f"size/{key}") or 0)) for key in ("width", "height"))
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"{file.name} is not VOC's XML: {error or 'it is empty'}") from error
    named = folder / (root.findtext("filename") or "")
    if named.suffix and named.is_file():
        picture = named
    else:
        near = [folder / f"{file.stem}{suffix}" for suffix in _SUFFIXES]
        picture = next((path for path in near if path.is_file()), near[0])
    return Record(picture, width, height, corners, names, ignore)


def _text(element: ElementTree.Element, path: str) -> str:
    found = element.findtext(path)
    if found is None:
        raise ValueError(f"an object has no {path}")
    return found
