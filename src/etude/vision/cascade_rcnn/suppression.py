"""Non-maximum suppression without a loop over boxes.

In the order of falling scores, box j is kept if and only if no kept box i < j overlaps it by more than the threshold.
With M[i, j] = 1 for i < j that overlap so, the kept set is the fixed point of

    keep[j] <- no i with keep[i] and M[i, j]                                                                  (1)

Starting from all boxes, each pass settles every box whose chain of overlapping better boxes is one link longer, so
that a few passes of one matrix product do what a greedy sweep does box by box. Boxes go through in blocks, each first
compared with what the blocks before it kept: memory stays linear in their number.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from etude.vision.cascade_rcnn.boxes import box_iou
from etude.vision.cascade_rcnn.operators import torchvision_operators, uses_torchvision

__all__ = ["batched_nms", "nms", "suppress"]

_BLOCK = 512
_KEPT = 4096
"""Kept boxes that a block is compared with at a time."""


@torch.no_grad()
def suppress(
    boxes: Float[Tensor, "groups n 4"],
    valid: Bool[Tensor, "groups n"],
    iou_threshold: float | int,
    classes: Int64[Tensor, "groups n"] | None = None,
) -> Bool[Tensor, "groups n"]:
    """Which boxes of several groups survive, each group by itself and sorted by falling score.

    Args:
        boxes: groups filled up to one length.
        valid: False for filling and for boxes that take no part.
        iou_threshold: overlap above which a box suppresses a worse one.
        classes: boxes of different classes do not suppress each other.
    """
    n = boxes.shape[1]
    kept = torch.zeros_like(valid)
    for start in range(0, n, _BLOCK):
        part = slice(start, min(start + _BLOCK, n))
        mine, own = boxes[:, part], None if classes is None else classes[:, part]
        alive = valid[:, part]
        if start and bool(kept.any()):
            # Kept boxes to the front, as many columns as the fullest group has.
            order = kept[:, :start].sort(dim=1, descending=True, stable=True).indices[:, : int(kept.sum(1).max())]
            for column in order.split(_KEPT, dim=1):
                before = boxes.gather(1, column[..., None].expand(-1, -1, 4))
                hit = (box_iou(before, mine) > iou_threshold) & kept.gather(1, column)[..., None]
                if classes is not None and own is not None:
                    hit &= classes.gather(1, column)[..., None] == own[:, None]
                alive = alive & ~hit.any(1)
        kept[:, part] = _settle(mine, alive, iou_threshold, own)
    return kept


def _settle(boxes: Tensor, alive: Tensor, iou_threshold: float, classes: Tensor | None) -> Tensor:
    """The fixed point of Eq. (1) within one block."""
    overlap = box_iou(boxes, boxes) > iou_threshold
    if classes is not None:
        overlap &= classes[:, :, None] == classes[:, None, :]
    matrix = (overlap & alive[:, :, None]).triu_(1).to(torch.float32)
    keep = alive
    while True:
        hit = torch.bmm(keep.to(torch.float32)[:, None], matrix)[:, 0] > 0
        settled = alive & ~hit
        if torch.equal(settled, keep):
            return keep
        keep = settled


def nms(
    boxes: Float[Tensor, "n 4"], scores: Float[Tensor, "n"], iou_threshold: float | int, backend: str = "auto"
) -> Int64[Tensor, "kept"]:
    """Indices of the boxes kept, by falling score; of equal scores the lower index goes first.

    Args:
        boxes: corners in pixels.
        scores: of the boxes.
        iou_threshold: in [0, 1].
        backend: "auto" takes torchvision's operator if it loads.

    Raises:
        ValueError: if the threshold lies outside [0, 1].
    """
    _check_threshold(iou_threshold)
    if uses_torchvision(backend):
        return torchvision_operators().nms(boxes, scores, float(iou_threshold))
    order = scores.sort(descending=True, stable=True).indices
    keep = suppress(boxes[order][None], torch.ones_like(order, dtype=torch.bool)[None], iou_threshold)[0]
    return order[keep]


def batched_nms(
    boxes: Float[Tensor, "n 4"],
    scores: Float[Tensor, "n"],
    classes: Int64[Tensor, "n"],
    iou_threshold: float | int,
) -> Int64[Tensor, "kept"]:
    """`nms` of each class by itself; indices by falling score over all classes.

    Classes are compared instead of moved apart by an offset of their coordinates, which costs digits.
    """
    _check_threshold(iou_threshold)
    order = scores.sort(descending=True, stable=True).indices
    valid = torch.ones_like(order, dtype=torch.bool)[None]
    return order[suppress(boxes[order][None], valid, iou_threshold, classes[order][None])[0]]


def _check_threshold(iou_threshold: float | int) -> None:
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold must lie in [0, 1], got {iou_threshold}")
