"""The cascade of box heads, and the detectors that the paper compares it with, as settings of one class.

Stage t classifies its boxes B_t with labels of its own threshold u_t and moves them; the moved boxes, detached and cut
off at the image, are those of stage t + 1 (Eqs. 6 to 8 of the paper):

    B_(t+1) = decode_t(B_t, f_t(B_t)),    label_t(b) = that of its ground truth if IoU >= u_t, else background    (1)
    L = sum_t w_t (CE_t + smooth-L1_t)                                                                            (2)

                                    thresholds      stages      integral    iterations
    one head                        (u,)            1           -           1
    iterative boxes, at test        (u,)            1           -           3
    integral loss                   (.5, .6, .7)    1           True        1
    cascade                         (.5, .6, .7)    3           -           1
"""

import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from etude.vision.cascade_rcnn.backbone import scale_gradient, sizes_tensor
from etude.vision.cascade_rcnn.boxes import BoxCoder, clip_boxes, collect_delta_statistics
from etude.vision.cascade_rcnn.matching import BalancedSampler, Truth
from etude.vision.cascade_rcnn.roi_align import MultiScaleRoIAlign
from etude.vision.cascade_rcnn.stage import BoxStage
from etude.vision.cascade_rcnn.suppression import suppress

__all__ = ["BOX_WEIGHTS", "CascadeBoxHead"]

BOX_WEIGHTS = ((10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15))
"""Weights of the box codes of the three stages: deltas shrink from stage to stage."""

Found = dict[str, Tensor]


class CascadeBoxHead(nn.Module):
    """Three box heads in a row, each trained on the boxes that the one before it moved.

        head = CascadeBoxHead(num_classes=80)
        losses = head.losses(features, proposals, targets, image_sizes)       # "stage1/cls", "stage1/box", ...
        found = head.detect(features, proposals, image_sizes)

    Args:
        num_classes: K, the background not counted.
        in_channels: of the feature maps.
        thresholds: IoU from which a box is foreground, for each stage; falling ones are allowed with a warning.
        box_weights: weights of each stage's `BoxCoder`; the paper's for as many stages if None.
        loss_weights: w_t of Eq. (2), one a stage; (1, 1/2, 1/4, ...) if None.
        class_agnostic: one box code for all classes, as in the paper, or one for each.
        score_ensemble: "last_rois": all classifiers score the boxes that enter the last stage, and their
            probabilities are averaged (the paper's code); "per_stage": each scores the boxes that enter its own stage
            (as other implementations do); "none": the last classifier alone.
        pool: RoIAlign on the pyramid.
        hidden: width of the heads.
        batch_size: boxes a step learns from in each image; they are drawn once, before the first stage.
        pos_fraction: largest share of positives among them.
        append_gt: ground truths join the boxes before "each" stage, or only before the "first".
        integral: the thresholds belong to as many classifiers on the same boxes, of which the first moves them; the
            loss of each classifier has weight 1 unless `loss_weights` says otherwise.
        iterations: at test, how often a single stage is applied.
        scale_backbone_grad: divide the gradient that reaches the feature maps by the number of stages, with unit
            loss weights, as detectron2 does.
        score_threshold, nms_threshold, max_detections: what is kept at test, class by class and then of an image.
        generator: CPU generator of the sampling; torch's global one if None.

    Attributes:
        depth: how many stages are used at test; all of them if None.

    Raises:
        ValueError: if thresholds and weights differ in number, lie out of range, or `integral` or `iterations` meet
            more stages than one.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 256,
        thresholds: Sequence[float | int] = (0.5, 0.6, 0.7),
        box_weights: Sequence[Sequence[float | int]] | None = None,
        loss_weights: Sequence[float | int] | None = None,
        class_agnostic: bool = True,
        score_ensemble: str = "last_rois",
        *,
        pool: MultiScaleRoIAlign | None = None,
        hidden: int = 1024,
        batch_size: int = 512,
        pos_fraction: float | int = 0.25,
        append_gt: str = "each",
        integral: bool = False,
        iterations: int = 1,
        scale_backbone_grad: bool = False,
        score_threshold: float | int = 0.05,
        nms_threshold: float | int = 0.5,
        max_detections: int = 100,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        count = len(thresholds)
        stages = 1 if integral else count
        if box_weights is None:
            box_weights = BOX_WEIGHTS[:stages]
        if loss_weights is None:
            loss_weights = (1.0,) * count if integral or scale_backbone_grad else [0.5**t for t in range(count)]
        _check(num_classes, thresholds, box_weights, loss_weights, stages, integral, iterations)
        if score_ensemble not in ("last_rois", "per_stage", "none"):
            raise ValueError(f"score_ensemble must be 'last_rois', 'per_stage' or 'none', got {score_ensemble!r}")
        if append_gt not in ("each", "first"):
            raise ValueError(f"append_gt must be 'each' or 'first', got {append_gt!r}")
        self.num_classes, self.integral, self.iterations = num_classes, integral, iterations
        self.thresholds, self.loss_weights = tuple(map(float, thresholds)), tuple(map(float, loss_weights))
        self.score_ensemble, self.append_gt, self.class_agnostic = score_ensemble, append_gt, class_agnostic
        self.scale_backbone_grad = scale_backbone_grad
        self.score_threshold, self.nms_threshold = score_threshold, nms_threshold
        self.max_detections = max_detections
        self.depth: int | None = None
        self.pool = MultiScaleRoIAlign() if pool is None else pool
        self.coders = [BoxCoder(weights) for weights in box_weights]
        self.sampler = BalancedSampler(batch_size, pos_fraction, generator)
        codes = 1 if class_agnostic else num_classes
        features = in_channels * self.pool.output_size**2
        self.stages = nn.ModuleList(
            BoxStage(features, hidden, num_classes, codes if not integral or t == 0 else 0) for t in range(count)
        )
        self._statistics: list[dict[str, Tensor]] = []

    @property
    def stage_statistics(self) -> dict[str, float]:
        """Of the last call of `losses`: for stage t, `stage{t}/boxes` and `/positives` (an image), the mean IoU of the
        positives as they came in (`/iou_in`) and as they went out (`/iou_out`), and the share of all boxes with an IoU
        of 0.7 or more (`/share_070`). Of several classifiers on the same boxes, those of each threshold."""
        values: dict[str, float] = {}
        for t, stage in enumerate(self._statistics, 1):
            values |= {f"stage{t}/{name}": float(value) for name, value in stage.items()}
        return values

    def losses(
        self,
        features: Mapping[str, Tensor],
        proposals: Sequence[Float[Tensor, "_ 4"]],
        targets: Sequence[Mapping[str, Tensor]] | Truth,
        image_sizes: Sequence[tuple[int, int]],
    ) -> dict[str, Tensor]:
        """`stage{t}/cls` and `stage{t}/box`, weighted, so that their sum is Eq. (2).

        Args:
            features: maps by name.
            proposals: of each image.
            targets: `{"boxes": (n, 4), "labels": (n,)}` of each image, labels 1..K.
            image_sizes: height and width of each image; moved boxes are cut off there.

        Raises:
            ValueError: for bad targets, or proposals and targets of unequal count.
        """
        truth = targets if isinstance(targets, Truth) else Truth.of(targets, self.num_classes, image_sizes)
        if not len(proposals) == len(truth.boxes) == len(image_sizes):
            raise ValueError(
                f"there are {len(proposals)} sets of proposals, {len(truth.boxes)} targets, {len(image_sizes)} sizes"
            )
        if self.scale_backbone_grad:
            features = {name: scale_gradient(m, 1 / len(self.stages)) for name, m in features.items()}
        boxes, images = self._sample(proposals, truth)
        limits = sizes_tensor(image_sizes, boxes)
        losses: dict[str, Tensor] = {}
        self._statistics = []
        for t, (threshold, weight) in enumerate(zip(self.thresholds, self.loss_weights)):
            fresh = t and not self.integral
            if fresh and self.append_gt == "each":
                boxes, images = _append(boxes, images, truth)
            if fresh or t == 0:
                overlap, which = truth.overlaps(boxes, images)
                pooled = self.pool.flat(features, boxes, images)
            positive = overlap >= threshold
            labels = torch.where(positive, _labels(truth, images, which), 0)
            logits, codes = self.stages[t](pooled)
            losses[f"stage{t + 1}/cls"] = weight * _mean_cross_entropy(logits, labels)
            with torch.no_grad():
                self._statistics.append(_positives(overlap, positive, len(proposals)))
            if codes is None:
                continue
            coder = self.coders[t]
            rows = positive.nonzero()[:, 0]
            wanted = truth.boxes[images[rows], which[rows]]
            code = coder.encode(boxes[rows], wanted) if truth.boxes.shape[1] else boxes[rows]
            chosen = self._codes(codes[rows], labels[rows])
            summed = F.smooth_l1_loss(chosen, code, beta=1.0, reduction="sum")
            losses[f"stage{t + 1}/box"] = weight * summed / max(len(boxes), 1)
            with torch.no_grad():
                moved = self._move(t, boxes, codes.detach(), logits.detach(), limits[images], labels)
                after, _ = truth.overlaps(moved, images)
                self._statistics[-1]["iou_out"] = _mean(after[positive])
                # Ground truths that joined this stage go no further: they join the next one afresh.
                stays = (moved[:, 2:] > moved[:, :2]).all(1)
                if self.append_gt == "each":
                    stays &= overlap < 1
                if not self.integral:
                    boxes, images = moved[stays], images[stays]
        return losses

    @torch.no_grad()
    def detect(
        self,
        features: Mapping[str, Tensor],
        proposals: Sequence[Float[Tensor, "_ 4"]],
        image_sizes: Sequence[tuple[int, int]],
    ) -> list[Found]:
        """What is found in each image: `boxes` (n, 4), `scores` and `labels` (n,), best first."""
        boxes, probabilities, images = self.score(features, proposals, image_sizes)
        return self._select(boxes, probabilities, images, len(proposals))

    @torch.no_grad()
    def score(
        self,
        features: Mapping[str, Tensor],
        proposals: Sequence[Float[Tensor, "_ 4"]],
        image_sizes: Sequence[tuple[int, int]],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Final boxes (n, codes, 4), probabilities (n, K + 1) and each box's image number, before suppression."""
        states = self.trajectory(features, proposals, image_sizes)
        return states[-1]["moved"], self._ensemble(states), states[-1]["images"]

    @torch.no_grad()
    def trajectory(
        self,
        features: Mapping[str, Tensor],
        proposals: Sequence[Float[Tensor, "_ 4"]],
        image_sizes: Sequence[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """The boxes at test stage by stage: `boxes` that came in (n, 4), what they `moved` to (n, codes, 4), the
        `logits` (classifiers, n, K + 1) of the stage's classifiers, and `images`, the number of each box's image."""
        images = _image_numbers(proposals)
        boxes = torch.cat(list(proposals)).float()
        limits = sizes_tensor(image_sizes, boxes)[images]
        rounds = self.iterations if len(self.coders) == 1 else (self.depth or len(self.coders))
        states: list[dict[str, Tensor]] = []
        for index in range(rounds):
            t = min(index, len(self.coders) - 1)
            last = index == rounds - 1
            pooled = self.pool.flat(features, boxes, images)
            logits, codes = self.stages[t](pooled)
            every = [logits]
            if self.integral:
                every = [logits, *(stage(pooled)[0] for stage in self.stages[1:])]
            elif last and self.score_ensemble == "last_rois":
                every = [*(stage(pooled)[0] for stage in self.stages[:t]), logits]
            before = boxes[:, None].expand(-1, codes.shape[1], -1)
            moved = clip_boxes(self.coders[t].decode(before, codes), limits[:, None])
            states.append({"boxes": boxes, "moved": moved, "logits": torch.stack(every), "images": images})
            boxes = self._codes(moved, logits[:, 1:].argmax(1) + 1)
        return states

    def _ensemble(self, states: list[dict[str, Tensor]]) -> Tensor:
        last = states[-1]["logits"].softmax(-1)
        if self.integral or self.score_ensemble == "last_rois":
            return last.mean(0)
        if self.score_ensemble == "per_stage" and len(self.coders) > 1:
            return torch.stack([state["logits"][-1].softmax(-1) for state in states]).mean(0)
        return last[-1]

    def delta_statistics(
        self,
        features: Mapping[str, Tensor],
        proposals: Sequence[Float[Tensor, "_ 4"]],
        targets: Sequence[Mapping[str, Tensor]],
        image_sizes: Sequence[tuple[int, int]],
    ) -> list[tuple[Float[Tensor, "4"], Float[Tensor, "4"]]]:
        """Mean and standard deviation of the deltas from each stage's positives to their ground truths.

        What `BoxCoder.from_statistics` takes: the paper normalises each stage by its own, which sharpen.

        Raises:
            ValueError: if a stage has fewer than two positives.
        """
        truth = Truth.of(targets, self.num_classes, image_sizes)
        found = []
        for threshold, state in zip(self.thresholds, self.trajectory(features, proposals, image_sizes)):
            overlap, which = truth.overlaps(state["boxes"], state["images"])
            rows = (overlap >= threshold).nonzero()[:, 0]
            wanted = truth.boxes[state["images"][rows], which[rows]]
            found.append(collect_delta_statistics(state["boxes"][rows], wanted))
        return found

    def _sample(self, proposals: Sequence[Tensor], truth: Truth) -> tuple[Tensor, Tensor]:
        """Boxes of the first stage: ground truths and proposals, of which at most `pos_fraction` are positives."""
        images = _image_numbers(proposals)
        boxes = torch.cat(list(proposals)).detach().float()
        boxes, images = _append(boxes, images, truth)
        overlap, _ = truth.overlaps(boxes, images)
        order = images.sort(stable=True).indices
        counts = torch.bincount(images, minlength=len(proposals))
        most = int(counts.max()) if len(counts) else 0
        place = torch.arange(most, device=boxes.device)
        filled = place < counts[:, None]
        row = torch.zeros_like(filled, dtype=torch.int64)
        row[filled] = order
        positive = filled & (overlap[row] >= self.thresholds[0])
        drawn_positive, drawn_negative = self.sampler(positive, filled & ~positive)
        rows = row[drawn_positive | drawn_negative]
        return boxes[rows], images[rows]

    def _codes(self, codes: Tensor, labels: Tensor) -> Tensor:
        """The code of each row's class."""
        if self.class_agnostic:
            return codes[:, 0]
        index = (labels - 1).clamp(min=0)
        return codes.gather(1, index[:, None, None].expand(-1, 1, codes.shape[-1]))[:, 0]

    def _move(self, t: int, boxes: Tensor, codes: Tensor, logits: Tensor, limits: Tensor, labels: Tensor) -> Tensor:
        classes = torch.where(labels > 0, labels, logits[:, 1:].argmax(1) + 1)
        return self.coders[t].decode(boxes, self._codes(codes, classes), limits)

    def _select(self, boxes: Tensor, probabilities: Tensor, images: Tensor, count: int) -> list[Found]:
        """Scores above the threshold, suppressed class by class, the best of each image; all images at once."""
        scores = probabilities[:, 1:]
        whole = boxes.expand(-1, self.num_classes, -1)
        sides = (whole[..., 2:] > whole[..., :2]).all(-1)
        row, column = ((scores > self.score_threshold) & sides).nonzero(as_tuple=True)
        score, image, label, corner = scores[row, column], images[row], column + 1, whole[row, column]
        order = score.sort(descending=True, stable=True).indices
        order = order[image[order].sort(stable=True).indices]
        score, image, label, corner = score[order], image[order], label[order], corner[order]
        counts = torch.bincount(image, minlength=count)
        filled = torch.arange(int(counts.max()) if count else 0, device=score.device) < counts[:, None]
        padded = corner.new_zeros(*filled.shape, 4)
        classes = label.new_zeros(filled.shape)
        padded[filled], classes[filled] = corner, label
        kept = suppress(padded, filled, self.nms_threshold, classes)
        kept &= kept.cumsum(1) <= self.max_detections
        chosen = kept[filled]
        found = []
        for parts in zip(*(x[chosen].split(kept.sum(1).tolist()) for x in (corner, score, label))):
            found.append(dict(zip(("boxes", "scores", "labels"), parts)))
        return found


def _check(
    num_classes: int,
    thresholds: Sequence[float | int],
    box_weights: Sequence[Sequence[float | int]],
    loss_weights: Sequence[float | int],
    stages: int,
    integral: bool,
    iterations: int,
) -> None:
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    if not thresholds or not all(0 < u <= 1 for u in thresholds):
        raise ValueError(f"thresholds must lie in (0, 1], got {tuple(thresholds)}")
    if len(box_weights) != stages or len(loss_weights) != len(thresholds):
        raise ValueError(
            f"{len(thresholds)} thresholds need {stages} box_weights and {len(thresholds)} loss_weights, "
            f"got {len(box_weights)} and {len(loss_weights)}"
        )
    if iterations < 1 or (iterations > 1 and (len(thresholds) > 1 or integral)):
        raise ValueError(f"iterations are of a single stage and at least 1, got {iterations} at {tuple(thresholds)}")
    if any(b <= a for a, b in pairwise(thresholds)):
        warnings.warn(f"thresholds do not rise from stage to stage: {tuple(thresholds)}", stacklevel=3)


def _image_numbers(boxes: Sequence[Tensor]) -> Tensor:
    device = boxes[0].device
    counts = torch.tensor([len(b) for b in boxes], device=device)
    return torch.repeat_interleave(torch.arange(len(boxes), device=device), counts)


def _append(boxes: Tensor, images: Tensor, truth: Truth) -> tuple[Tensor, Tensor]:
    return torch.cat([boxes, truth.boxes[truth.present]]), torch.cat([images, truth.present.nonzero()[:, 0]])


def _labels(truth: Truth, images: Tensor, which: Tensor) -> Tensor:
    return truth.labels[images, which] if truth.boxes.shape[1] else torch.zeros_like(images)


def _mean_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="sum") / max(len(labels), 1)


def _mean(values: Tensor) -> Tensor:
    return values.mean() if len(values) else values.new_zeros(())


def _positives(overlap: Tensor, positive: Tensor, images: int) -> dict[str, Tensor]:
    return {
        "boxes": overlap.new_tensor(len(overlap) / images),
        "positives": positive.sum() / images,
        "iou_in": _mean(overlap[positive]),
        "share_070": _mean((overlap >= 0.7).to(overlap)),
    }
