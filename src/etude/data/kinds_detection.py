"""Detection: pictures, and the boxes and classes of what is in them.

A split is a map-style data set of pairs (image, target): the image float32 (channels, height, width) in [0, 1], the
target a dict of

    boxes    float32 (n, 4), corners (x1, y1, x2, y2) in pixels: a box spans x2 - x1 by y2 - y1 pixels
    labels   int64 (n,), 1..K; 0 is the background and never a label
    ignore   bool (n,), True for crowds and difficult objects, which neither training nor evaluation counts

A picture without boxes is an example without objects.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["DetectionData", "DetectionExamples", "check_target"]

Target = dict[str, Tensor]


def check_target(target: Mapping[str, Tensor], num_classes: int, size: tuple[int, int], where: str) -> None:
    """Refuses a target that is not as the module says.

    Args:
        target: `boxes`, `labels`, `ignore`.
        num_classes: K.
        size: height and width of the picture.
        where: begins the message.

    Raises:
        ValueError: for a missing entry, a wrong shape or dtype, a box without an area or outside the picture, or a
            label outside 1..K; with the index of the box.
    """
    missing = [name for name in ("boxes", "labels", "ignore") if name not in target]
    if missing:
        raise ValueError(f"{where}: the target lacks {', '.join(missing)}")
    boxes, labels, ignore = target["boxes"], target["labels"], target["ignore"]
    n = len(boxes)
    if boxes.dtype != torch.float32 or boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{where}: boxes must be float32 of shape (n, 4), got {boxes.dtype} of {tuple(boxes.shape)}")
    if labels.dtype != torch.int64 or labels.shape != (n,):
        raise ValueError(f"{where}: labels must be int64 of shape ({n},), got {labels.dtype} of {tuple(labels.shape)}")
    if ignore.dtype != torch.bool or ignore.shape != (n,):
        raise ValueError(f"{where}: ignore must be bool of shape ({n},), got {ignore.dtype} of {tuple(ignore.shape)}")
    height, width = size
    x1, y1, x2, y2 = boxes.unbind(1)
    # Corners that were scaled may lie off by rounding.
    slack = 1e-3
    good = (x1 < x2) & (y1 < y2) & (x1 >= -slack) & (y1 >= -slack) & (x2 <= width + slack) & (y2 <= height + slack)
    if not bool(good.all()):
        index = int((~good).nonzero()[0])
        raise ValueError(
            f"{where}: boxes must be (x1, y1, x2, y2) with x1 < x2 and y1 < y2 inside {width} x {height} pixels, "
            f"box {index} is {boxes[index].tolist()}"
        )
    wrong = (labels < 1) | (labels > num_classes)
    if bool(wrong.any()):
        index = int(wrong.nonzero()[0])
        raise ValueError(f"{where}: labels must lie in 1..{num_classes}, label {index} is {int(labels[index])}")


class DetectionExamples(Dataset):
    """Pictures and targets in memory.

    Args:
        images: float32 (channels, height, width) each, or one tensor of them; sizes may differ.
        targets: one a picture; `ignore` may be left out.

    Raises:
        ValueError: if they are not as many.
    """

    def __init__(self, images: Sequence[Tensor] | Tensor, targets: Iterable[Mapping[str, Tensor]]):
        self.images = images
        self.targets: list[Target] = [
            {"ignore": torch.zeros(len(t["labels"]), dtype=torch.bool), **t} if "ignore" not in t else dict(t)
            for t in targets
        ]
        if len(self.images) != len(self.targets):
            raise ValueError(f"there must be a target a picture, got {len(self.images)} and {len(self.targets)}")

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        return self.images[index], self.targets[index]

    def subset(self, indices: Tensor | Iterable[int]) -> "DetectionExamples":
        """The examples at `indices`, in that order."""
        rows = [int(index) for index in indices]
        images = self.images[rows] if isinstance(self.images, Tensor) else [self.images[row] for row in rows]
        return DetectionExamples(images, [self.targets[row] for row in rows])


@dataclass(frozen=True, eq=False)
class DetectionData:
    """Pictures with boxes in a fixed split.

    Args:
        train, val, test: map-style data sets as the module says; `DetectionExamples` are checked here, of others the
            first example is.
        classes: names of the labels 1..K.
        name: what the data are called in tables.

    Raises:
        ValueError: for an empty part, no classes, a bad target, or pictures of unequal channels.
    """

    train: Any
    val: Any
    test: Any
    classes: tuple[str, ...]
    name: str = "detection"

    def __post_init__(self):
        if not self.classes:
            raise ValueError("DetectionData needs at least one class")
        channels = None
        for part in ("train", "val", "test"):
            split = getattr(self, part)
            if not hasattr(split, "__len__") or not hasattr(split, "__getitem__"):
                raise TypeError(f"DetectionData.{part} must be a map-style data set, got {type(split).__name__}")
            if len(split) == 0:
                raise ValueError(f"DetectionData.{part} is empty")
            for index in range(len(split) if isinstance(split, DetectionExamples) else 1):
                image, target = split[index]
                where = f"DetectionData.{part}[{index}]"
                if image.dtype != torch.float32 or image.ndim != 3 or len(image) != (channels or len(image)):
                    raise ValueError(
                        f"{where}: a picture must be float32 of shape ({channels or 'channels'}, height, width), "
                        f"got {image.dtype} of {tuple(image.shape)}"
                    )
                channels = len(image)
                check_target(target, len(self.classes), (image.shape[1], image.shape[2]), where)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def channels(self) -> int:
        return len(self.train[0][0])
