"""Average precision as COCO defines it, by pycocotools."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["IOU_THRESHOLDS", "coco_ap", "detect_all", "evaluate_coco"]

IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))


@torch.no_grad()
def detect_all(model: nn.Module, data: Any, *, batch_size: int = 16) -> tuple[list[dict], list[dict]]:
    """Detections and targets of every image of a data set of pairs (image, target), in order."""
    device = next(model.parameters()).device
    was = model.training
    model.eval()
    found, truths = [], []
    try:
        for start in range(0, len(data), batch_size):
            items = [data[index] for index in range(start, min(start + batch_size, len(data)))]
            found += [{k: v.cpu() for k, v in one.items()} for one in model([x.to(device) for x, _ in items])]
            truths += [target for _, target in items]
    finally:
        model.train(was)
    return found, truths


def coco_ap(
    found: Sequence[Mapping[str, Tensor]], truths: Sequence[Mapping[str, Tensor]], max_detections: int = 100
) -> dict[str, float]:
    """`ap` (the mean over IoU 0.50, 0.55, ..., 0.95), and `ap50`, `ap55`, ..., `ap95`; all areas.

    Args:
        found: `boxes`, `scores` and `labels` of each image.
        truths: `boxes` and `labels` of each image; those marked by `ignore` count as COCO's crowds.
        max_detections: best detections of an image and class that count.

    Raises:
        ImportError: if pycocotools is not installed.
        ValueError: for images of unequal number, or no ground truth at all.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise ImportError("average precision needs pycocotools: pip install pycocotools") from error
    if len(found) != len(truths):
        raise ValueError(f"there are detections of {len(found)} images and targets of {len(truths)}")
    rows = [_annotations(image, target) for image, target in enumerate(truths, 1)]
    wanted = [row for listed in rows for row in listed]
    if not any(not row["iscrowd"] for row in wanted):
        raise ValueError("no image has a ground truth: there is no average precision")
    given = [row for image, one in enumerate(found, 1) for row in _annotations(image, one)]
    categories = [{"id": label} for label in sorted({row["category_id"] for row in wanted})]
    images = [{"id": image} for image in range(1, len(truths) + 1)]
    with contextlib.redirect_stdout(io.StringIO()):
        sets = []
        for annotations in (wanted, given):
            for number, row in enumerate(annotations, 1):
                row["id"] = number
            one = COCO()
            one.dataset = {"images": images, "categories": categories, "annotations": annotations}
            one.createIndex()
            sets.append(one)
        judge = COCOeval(*sets, iouType="bbox")
        judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
        judge.params.maxDets = [max_detections]
        judge.evaluate()
        judge.accumulate()
    precision = judge.eval["precision"][:, :, :, 0, 0]
    by_iou = [float(one[one > -1].mean()) if (one > -1).any() else 0.0 for one in precision]
    scores = {f"ap{round(100 * iou)}": value for iou, value in zip(IOU_THRESHOLDS, by_iou)}
    return {"ap": float(np.mean(by_iou)), **scores}


def _annotations(image: int, boxes: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    corners = boxes["boxes"].double()
    sizes = (corners[:, 2:] - corners[:, :2]).tolist()
    crowd = boxes["ignore"].tolist() if "ignore" in boxes else [False] * len(corners)
    scores = boxes["scores"].tolist() if "scores" in boxes else [1.0] * len(corners)
    return [
        {
            "image_id": image, "category_id": label, "bbox": [x, y, w, h], "area": w * h, "iscrowd": int(ignored),
            "score": score,
        }
        for (x, y, _, _), (w, h), label, ignored, score in zip(
            corners.tolist(), sizes, boxes["labels"].tolist(), crowd, scores
        )
    ]  # fmt: skip


def evaluate_coco(model: nn.Module, data: Any, *, batch_size: int = 16) -> dict[str, float]:
    """Average precision of a detector on a data set of pairs (image, target); see `coco_ap`."""
    return coco_ap(*detect_all(model, data, batch_size=batch_size))
