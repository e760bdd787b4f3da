"""Pictures with boxes: COCO and Pascal VOC folders, blood cells, and generated scenes, all as `DetectionData`.

    from etude.data import detection
    data = detection.load("my_pictures/", size=320)      # a COCO or VOC folder, whichever it is
    data = detection.bccd()                              # 364 real blood smears
    data = detection.shapes()                            # offline, at once

What becomes of boxes and pictures is written in `etude.data.detection_files`.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from etude.data.catalogue import locate
from etude.data.detection_files import CocoDetection, DetectionFiles, Record, Size, VocDetection, read_coco
from etude.data.kinds_detection import DetectionData, DetectionExamples
from etude.data.splitting import cut, stratified_order

__all__ = [
    "CocoDetection",
    "DetectionFiles",
    "Record",
    "VocDetection",
    "bccd",
    "is_annotated",
    "load",
    "shapes",
    "shapes_scene",
]

_PARTS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_NO_BOXES = ("captions", "person_keypoints", "panoptic", "stuff", "image_info")
"""Beginnings of the names of COCO's other annotation files."""


def load(
    path: str | os.PathLike,
    size: Size = None,
    *,
    channels: int | None = None,
    seed: int = 0,
    bad_boxes: str = "error",
    in_memory: bool = False,
) -> DetectionData:
    """A folder of pictures with boxes, in COCO's or VOC's layout, or one COCO JSON file.

    VOC: `Annotations/*.xml`, `JPEGImages/`, and perhaps lists `train`, `val`, `test` in `ImageSets/Main/`.
    COCO: JSON files in `annotations/`, in the folder, or beside the pictures in `train/`, `valid/`, `test/`; pictures
    lie beside the file, in `images/`, or in a folder that the file's name names (`instances_val2017.json`, `val2017/`).
    Without parts all pictures of the first file are split 70 / 10 / 20 %, fixed by `seed`; without "val" alone an
    eighth of train becomes it, and without "test" alone val takes its place and an eighth of train that of val.

    Args:
        path: the folder or file.
        size: see `DetectionFiles`.
        channels: 1 or 3; decided by the pictures if None.
        seed: of the split.
        bad_boxes: "error" or "drop".
        in_memory: decode all pictures now.

    Raises:
        FileNotFoundError: if there is nothing at the path.
        ValueError: if it is neither layout; and what `CocoDetection` and `VocDetection` raise.
    """
    place = Path(path)
    if not place.exists():
        raise FileNotFoundError(f"there is nothing at {place}")
    options: dict[str, Any] = {"size": size, "bad_boxes": bad_boxes}
    if (place / "Annotations").is_dir():
        lists = {stem: _PARTS[stem] for stem in ("train", "val", "test") if _voc_list(place, stem)}
        whole: DetectionFiles = VocDetection(place, **options, channels=channels)
        options |= {"classes": whole.classes, "channels": whole.channels}
        parts: dict[str, DetectionFiles] = {p: VocDetection(place, stem, **options) for stem, p in lists.items()}
        if not {"train"} < set(parts):
            parts = {"all": whole}
    else:
        files = _coco_files(place)
        if not files:
            raise ValueError(f"{place} holds neither Annotations/*.xml (VOC) nor a JSON file of annotations (COCO)")
        read = {part: read_coco(file, _coco_images(file)) for part, file in files.items()}
        classes = next((names for part, (_, names) in read.items() if part in ("train", "all")), None)
        every = [record for records, _ in read.values() for record in records]
        whole = DetectionFiles(every, classes, **options, channels=channels)
        options |= {"channels": whole.channels}
        parts = {part: DetectionFiles(records, classes, **options) for part, (records, _) in read.items()}
        if not {"train"} < set(parts):
            parts = {"all": whole}
    train, val, test = _in_three(parts, seed)
    split: list[Any] = [part.in_memory() if in_memory else part for part in (train, val, test)]
    return DetectionData(
        split[0], split[1], split[2], classes=train.classes, name=place.stem if place.is_file() else place.name
    )


def is_annotated(path: str | os.PathLike) -> bool:
    """Whether `load` takes what lies there: VOC's `Annotations/*.xml`, or a JSON file with COCO's lists."""
    place = Path(path)
    if next((place / "Annotations").glob("*.xml"), None) is not None:
        return True
    return any(_mentions(file, b'"annotations"') for file in _coco_files(place).values() if file.suffix == ".json")


def _mentions(file: Path, word: bytes) -> bool:
    tail = b""
    with open(file, "rb") as stream:
        while chunk := stream.read(1 << 20):
            if word in tail + chunk:
                return True
            tail = chunk[-len(word) :]
    return False


def _voc_list(root: Path, stem: str) -> bool:
    file = root / "ImageSets" / "Main" / f"{stem}.txt"
    return file.is_file() and bool(file.read_text(encoding="utf-8").strip())


def _coco_files(place: Path) -> dict[str, Path]:
    """The annotation file of each part, or of "all"."""
    if place.is_file():
        return {"all": place}
    found: dict[str, Path] = {}
    candidates: Iterator[Path] = (
        file for where in ("annotations/*.json", "*.json", "*/*.json") for file in sorted(place.glob(where))
    )
    for file in candidates:
        if file.stem.startswith(_NO_BOXES):
            continue
        folder = "" if file.parent == place else file.parent.name
        words = f"{folder}_{file.stem}".lower().replace(".", "_").replace("-", "_").split("_")
        part = next((_PARTS[w.rstrip("0123456789")] for w in words if w.rstrip("0123456789") in _PARTS), "all")
        found.setdefault(part, file)
    if "train" in found:
        found.pop("all", None)
        return found
    return {"all": next(iter(found.values()))} if found else {}


def _coco_images(file: Path) -> Path:
    """The folder of a file's pictures: the first of the usual ones that has its first picture."""
    try:
        first = json.loads(file.read_text(encoding="utf-8"))["images"][0]["file_name"]
    except (ValueError, KeyError, TypeError, IndexError):  # `read_coco` says what is wrong with it
        return file.parent
    base = file.parent.parent if file.parent.name == "annotations" else file.parent
    part = file.stem.split("_")[-1]
    places = [file.parent, base, base / "images", base / part, base / "images" / part]
    return next((place for place in places if (place / first).is_file()), places[0])


def _in_three(parts: dict[str, DetectionFiles], seed: int) -> list[DetectionFiles]:
    if "all" in parts:
        whole = parts["all"]
        n = len(whole)
        if n < 3:
            raise ValueError(f"three parts need at least three pictures, there are {n}")
        val, test = max(n // 10, 1), max(n // 5, 1)
        return [whole.subset(rows.tolist()) for rows in cut(_order(n, seed), n - val - test, val, test)]
    train, val_part, test_part = parts["train"], parts.get("val"), parts.get("test")
    if test_part is None:
        test_part, val_part = val_part, None
    if val_part is None:
        n = max(len(train) // 8, 1)
        rows = _order(len(train), seed).tolist()
        train, val_part = train.subset(rows[n:]), train.subset(rows[:n])
    assert test_part is not None
    return [train, val_part, test_part]


def _order(n: int, seed: int) -> np.ndarray:
    return stratified_order(np.zeros(n), seed)


def bccd(size: tuple[int, int] = (240, 320)) -> DetectionData:
    """Blood smears: 364 micrographs of 480 x 640 pixels with 4,888 red cells, white cells and platelets, in the set's
    own split (205 / 87 / 72). Scaled to `size`, in memory.

    Two annotations of one pixel are kept as they are.

    Raises:
        FileNotFoundError: if the set is not here; the message says what to place where.
    """
    root = locate("bccd") / "BCCD"
    classes = ("Platelets", "RBC", "WBC")
    parts = [VocDetection(root, part, classes, size=size, channels=3).in_memory() for part in ("train", "val", "test")]
    return DetectionData(parts[0], parts[1], parts[2], classes=classes, name="bccd")


def shapes(train: int = 1000, val: int = 200, test: int = 400, size: int = 64, seed: int = 0) -> DetectionData:
    """Generated scenes (`shapes_scene`) in three parts."""
    whole = shapes_scene(train + val + test, size, seed)
    first, second, third = (whole.subset(r) for r in torch.arange(len(whole)).split([train, val, test]))
    return DetectionData(first, second, third, classes=("rectangle", "ellipse", "triangle"), name="shapes")


def shapes_scene(n: int, size: int = 64, seed: int = 0, *, most: int = 3) -> DetectionExamples:
    """Grey scenes of 1 to `most` rectangles, ellipses and triangles that hardly overlap (IoU < 0.05), with noise.

    Sides are 10 to 30 pixels of whole numbers, fills differ from the background by 0.2 or more, and the noise has a
    standard deviation of 0.05.

    Raises:
        ValueError: for no scenes, no objects, or scenes of less than 40 pixels.
    """
    if n < 1 or most < 1 or size < 40:
        raise ValueError(f"need n >= 1, most >= 1 and size >= 40, got {n}, {most} and {size}")
    rng = np.random.RandomState(seed)
    wanted = rng.randint(1, most + 1, n)
    boxes = np.zeros((n, most, 4))
    present = np.zeros((n, most), dtype=bool)
    for slot in range(most):
        sides = rng.randint(10, 31, (n, 40, 2))
        corner = np.floor(rng.random_sample((n, 40, 2)) * (size - sides + 1))
        tries = np.concatenate([corner, corner + sides], axis=2)
        free = np.ones((n, 40), dtype=bool)
        for other in range(slot):
            free &= ~present[:, other, None] | (_iou(tries, boxes[:, other, None]) < 0.05)
        pick = free.argmax(1)
        boxes[:, slot] = tries[np.arange(n), pick]
        present[:, slot] = free.any(1) & (slot < wanted)
    kinds = rng.randint(0, 3, (n, most))
    ground = rng.uniform(0.2, 0.8, n)
    step = rng.uniform(0.2, 0.5, (n, most)) * rng.choice([-1, 1], (n, most))
    fill = ground[:, None] + step
    fill = np.where((fill < 0) | (fill > 1), ground[:, None] - step, fill)
    images = np.empty((n, 1, size, size), dtype=np.float32)
    images[:] = ground[:, None, None, None]
    centre = np.arange(size) + 0.5
    for slot in range(most):
        x1, y1, x2, y2 = (boxes[:, slot, k, None] for k in range(4))
        u = ((2 * centre - x1 - x2) / (x2 - x1))[:, None, :]
        v = ((2 * centre - y1 - y2) / (y2 - y1))[:, :, None]
        square = (np.abs(u) <= 1) & (np.abs(v) <= 1)
        inside = np.stack([square, u**2 + v**2 <= 1, square & (2 * np.abs(u) <= v + 1)])
        mask = inside[kinds[:, slot], np.arange(n)] & present[:, slot, None, None]
        images[:, 0] = np.where(mask, fill[:, slot, None, None], images[:, 0])
    images += (0.05 * rng.standard_normal(images.shape)).astype(np.float32)
    np.clip(images, 0, 1, out=images)
    targets = [
        {
            "boxes": torch.from_numpy(boxes[i, present[i]].astype(np.float32)),
            "labels": torch.from_numpy(kinds[i, present[i]] + 1).long(),
        }
        for i in range(n)
    ]
    return DetectionExamples(torch.from_numpy(images), targets)


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = np.clip(sides, 0, None).prod(-1)
    return shared / ((a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - shared)
