"""Which boxes are positive, which negative, and which of them a step learns from; all images of a batch at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from etude.vision.cascade_rcnn.boxes import box_iou, check_boxes

__all__ = ["BalancedSampler", "Matcher", "Truth"]


class Matcher:
    """Assigns boxes to ground truths by their overlap.

    Args:
        high: IoU from which on a box is positive.
        low: IoU below which it is negative; those between take no part.
        allow_low_quality: the best boxes of each ground truth are positive whatever their overlap.

    Raises:
        ValueError: unless 0 <= low <= high <= 1.
    """

    NEGATIVE, IGNORED = -1, -2

    def __init__(self, high: float | int, low: float | int, allow_low_quality: bool = False):
        if not 0 <= low <= high <= 1:
            raise ValueError(f"need 0 <= low <= high <= 1, got low {low} and high {high}")
        self.high, self.low, self.allow_low_quality = float(high), float(low), allow_low_quality

    def __call__(
        self, iou: Float[Tensor, "*batch boxes truths"], present: Bool[Tensor, "*batch truths"]
    ) -> Int64[Tensor, "*batch boxes"]:
        """For each box the index of its ground truth, -1 for background, -2 for none of both.

        Args:
            iou: of boxes with ground truths.
            present: False where a ground truth is filling.
        """
        if not iou.shape[-1]:
            return torch.full(iou.shape[:-1], self.NEGATIVE, dtype=torch.int64, device=iou.device)
        overlap = iou.masked_fill(~present[..., None, :], -1.0)
        best, index = overlap.max(-1)
        match = torch.where(best >= self.high, index, self.IGNORED)
        match = torch.where(best < self.low, self.NEGATIVE, match)
        if self.allow_low_quality:
            top = overlap.max(-2, keepdim=True).values
            rescued = ((overlap == top) & (overlap > 0)).any(-1)
            match = torch.where(rescued, index, match)
        return match


class BalancedSampler:
    """Draws boxes of each image at random, positives up to a share and negatives for the rest.

    Args:
        num: boxes drawn in an image.
        pos_fraction: largest share of positives.
        generator: CPU generator of the draws; torch's global one if None.

    Raises:
        ValueError: for `num` < 1 or a share outside [0, 1].
    """

    def __init__(self, num: int, pos_fraction: float | int, generator: torch.Generator | None = None):
        if num < 1 or not 0 <= pos_fraction <= 1:
            raise ValueError(f"need num >= 1 and 0 <= pos_fraction <= 1, got {num} and {pos_fraction}")
        self.num, self.pos_fraction, self.generator = num, float(pos_fraction), generator

    def __call__(
        self, positive: Bool[Tensor, "images boxes"], negative: Bool[Tensor, "images boxes"]
    ) -> tuple[Bool[Tensor, "images boxes"], Bool[Tensor, "images boxes"]]:
        """The drawn positives and the drawn negatives."""
        key = torch.rand(positive.shape, generator=self.generator).to(positive.device)
        few = torch.full_like(positive[:, :1], int(self.num * self.pos_fraction), dtype=torch.int64)
        drawn = _lowest(key, positive, few)
        return drawn, _lowest(key, negative, self.num - drawn.sum(1, keepdim=True))


def _lowest(key: Tensor, among: Tensor, count: Tensor) -> Tensor:
    """The `count` of a row with the lowest keys."""
    rank = key.masked_fill(~among, 2.0).argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    return among & (rank < count)


@dataclass(frozen=True, eq=False)
class Truth:
    """The ground truths of a batch, filled up to one length.

    Attributes:
        boxes: float32 (images, most, 4).
        labels: int64 (images, most), 1..K.
        present: bool (images, most); False for filling.
    """

    boxes: Tensor
    labels: Tensor
    present: Tensor

    @classmethod
    def of(
        cls, targets: Sequence[Mapping[str, Tensor]], num_classes: int, sizes: Sequence[tuple[int, int]] | None = None
    ) -> "Truth":
        """Out of `{"boxes": (n, 4), "labels": (n,)}` for each image; boxes marked by `"ignore"` are left out.

        Args:
            targets: of the images.
            num_classes: K; 0 is the background.
            sizes: height and width of the images; boxes must lie inside, up to one pixel.

        Raises:
            ValueError: for boxes without an area or outside the image, labels outside 1..K, or unequal counts; with
                the image and the index.
        """
        kept = []
        for image, target in enumerate(targets):
            if "boxes" not in target or "labels" not in target:
                raise ValueError(f"targets[{image}] must hold boxes and labels, got {', '.join(target) or 'nothing'}")
            boxes, labels = target["boxes"], target["labels"]
            where = f"targets[{image}]"
            check_boxes(boxes, f"{where} boxes")
            if labels.shape != boxes.shape[:1] or labels.is_floating_point():
                raise ValueError(f"{where} must have a whole-number label a box, got {tuple(labels.shape)}")
            wrong = (labels < 1) | (labels > num_classes)
            if bool(wrong.any()):
                index = int(wrong.nonzero()[0])
                raise ValueError(
                    f"{where} labels must lie in 1..{num_classes} (0 is the background), "
                    f"label {index} is {int(labels[index])}"
                )
            if sizes is not None and len(boxes):
                height, width = sizes[image]
                outside = (boxes < -1).any(1) | (boxes[:, 2] > width + 1) | (boxes[:, 3] > height + 1)
                if bool(outside.any()):
                    index = int(outside.nonzero()[0])
                    raise ValueError(
                        f"{where} boxes must lie in the image of {width} x {height} pixels, "
                        f"box {index} is {boxes[index].tolist()}"
                    )
            counts = ~target["ignore"].bool() if "ignore" in target else torch.ones_like(labels, dtype=torch.bool)
            kept.append((boxes[counts].float(), labels[counts].long()))
        most = max((len(boxes) for boxes, _ in kept), default=0)
        device = kept[0][0].device if kept else torch.device("cpu")
        whole = torch.zeros(len(kept), most, 4, device=device)
        labels = torch.zeros(len(kept), most, dtype=torch.int64, device=device)
        present = torch.zeros(len(kept), most, dtype=torch.bool, device=device)
        for image, (boxes, found) in enumerate(kept):
            whole[image, : len(boxes)], labels[image, : len(boxes)] = boxes, found
            present[image, : len(boxes)] = True
        return cls(whole, labels, present)

    def overlaps(self, boxes: Float[Tensor, "n 4"], images: Int64[Tensor, "n"]) -> tuple[Tensor, Tensor]:
        """Each box's largest IoU with the ground truths of its image (0 without any), and which one it is with."""
        if not self.boxes.shape[1]:
            return boxes.new_zeros(len(boxes)), images.new_zeros(len(boxes))
        iou = box_iou(boxes[:, None], self.boxes[images])[:, 0]
        return iou.masked_fill(~self.present[images], 0.0).max(1)
