"""The region proposal network on a feature pyramid.

Ren, He, Girshick & Sun, "Faster R-CNN", NeurIPS 2015, arXiv:1506.01497, with one anchor size a level.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from etude.vision.cascade_rcnn.backbone import sizes_tensor, strides
from etude.vision.cascade_rcnn.boxes import BoxCoder, box_iou
from etude.vision.cascade_rcnn.matching import BalancedSampler, Matcher, Truth
from etude.vision.cascade_rcnn.suppression import suppress

__all__ = ["RPN", "AnchorGenerator"]


class AnchorGenerator:
    """Boxes of one area and several shapes around every cell of every level.

    Args:
        sizes: side of the square of that area in pixels, one a level.
        ratios: height over width.

    Raises:
        ValueError: for no or negative sizes or ratios.
    """

    def __init__(
        self,
        sizes: Sequence[float | int] = (32, 64, 128, 256, 512),
        ratios: Sequence[float | int] = (0.5, 1.0, 2.0),
    ):
        if not sizes or not ratios or min(*sizes, *ratios, 1) <= 0:
            raise ValueError(f"sizes and ratios must be positive, got {tuple(sizes)} and {tuple(ratios)}")
        self.sizes, self.ratios = tuple(sizes), tuple(ratios)

    def __call__(
        self, shapes: Sequence[tuple[int, int]], strides: Sequence[int], device: Any = "cpu"
    ) -> list[Float[Tensor, "anchors 4"]]:
        """The anchors of each level, cell after cell, row after row, shape within cell.

        Args:
            shapes: height and width of the maps.
            strides: pixels a cell of the maps.
            device: where to.
        """
        if not len(shapes) == len(strides) == len(self.sizes):
            raise ValueError(f"{len(self.sizes)} sizes were given for {len(shapes)} levels")
        root = torch.tensor(self.ratios, device=device).sqrt()
        levels = []
        for (height, width), stride, size in zip(shapes, strides, self.sizes):
            half = torch.stack([-size / root, -size * root, size / root, size * root], dim=1) / 2
            y = (torch.arange(height, device=device) + 0.5) * stride
            x = (torch.arange(width, device=device) + 0.5) * stride
            rows, columns = torch.meshgrid(y, x, indexing="ij")
            centre = torch.stack([columns, rows, columns, rows], dim=-1).reshape(-1, 1, 4)
            levels.append((centre + half).reshape(-1, 4))
        return levels


class RPN(nn.Module):
    """Scores anchors as object or not, moves them, and proposes the best.

    Args:
        in_channels: of every level.
        levels: names of the maps; one anchor size each.
        anchors: the generator of anchors.
        batch_size: anchors a step learns from in each image.
        pos_fraction: largest share of positives among them.
        pre_nms: best proposals of a level before suppression, in training and at test.
        post_nms: best proposals of an image over all levels after it, in training and at test.
        nms_threshold: of the suppression, level by level.
        min_size: smallest side of a proposal in pixels.
        generator: CPU generator of the sampling; torch's global one if None.
    """

    def __init__(
        self,
        in_channels: int = 256,
        levels: Sequence[str] = ("p2", "p3", "p4", "p5", "p6"),
        anchors: AnchorGenerator | None = None,
        *,
        batch_size: int = 256,
        pos_fraction: float | int = 0.5,
        pre_nms: tuple[int, int] = (2000, 1000),
        post_nms: tuple[int, int] = (2000, 1000),
        nms_threshold: float | int = 0.7,
        min_size: float | int = 1e-3,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.anchors = AnchorGenerator() if anchors is None else anchors
        if len(levels) != len(self.anchors.sizes):
            raise ValueError(f"{len(levels)} levels need as many anchor sizes, got {self.anchors.sizes}")
        self.levels = tuple(levels)
        shapes = len(self.anchors.ratios)
        self.conv = nn.Conv2d(in_channels, in_channels, 3, padding=1)
        self.objectness = nn.Conv2d(in_channels, shapes, 1)
        self.deltas = nn.Conv2d(in_channels, 4 * shapes, 1)
        for layer in (self.conv, self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.coder = BoxCoder((1, 1, 1, 1))
        self.matcher = Matcher(0.7, 0.3, allow_low_quality=True)
        self.sampler = BalancedSampler(batch_size, pos_fraction, generator)
        self.pre_nms, self.post_nms = pre_nms, post_nms
        self.nms_threshold, self.min_size = nms_threshold, min_size

    def forward(
        self,
        features: Mapping[str, Tensor],
        image_sizes: Sequence[tuple[int, int]],
        truth: Truth | None = None,
        propose: bool = True,
    ) -> tuple[list[Float[Tensor, "_ 4"]], dict[str, Tensor]]:
        """Proposals of each image, best first, and in training the losses `rpn/cls` and `rpn/box`.

        Args:
            features: maps by name.
            image_sizes: height and width of the images without their filling.
            truth: ground truths; None at test.
            propose: False for the losses alone.
        """
        maps = [features[name] for name in self.levels]
        scores, deltas = [], []
        for feature in maps:
            hidden = self.conv(feature).relu()
            scores.append(self.objectness(hidden).permute(0, 2, 3, 1).flatten(1).float())
            codes = self.deltas(hidden)
            deltas.append(codes.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).reshape(len(codes), -1, 4).float())
        anchors = self.anchors([(m.shape[2], m.shape[3]) for m in maps], strides(self.levels), device=maps[0].device)
        losses = {} if truth is None else self._losses(torch.cat(anchors), torch.cat(scores, 1), deltas, truth)
        return self._propose(anchors, scores, deltas, image_sizes) if propose else [], losses

    def _losses(self, anchors: Tensor, scores: Tensor, deltas: list[Tensor], truth: Truth) -> dict[str, Tensor]:
        iou = box_iou(anchors, truth.boxes)
        match = self.matcher(iou, truth.present)
        positive, negative = self.sampler(match >= 0, match == Matcher.NEGATIVE)
        drawn = positive | negative
        count = drawn.sum().clamp(min=1)
        image, anchor = positive.nonzero(as_tuple=True)
        codes = self.coder.encode(anchors[anchor], truth.boxes[image, match[image, anchor]])
        box = F.smooth_l1_loss(torch.cat(deltas, 1)[image, anchor], codes, beta=1 / 9, reduction="sum")
        cls = F.binary_cross_entropy_with_logits(scores[drawn], positive[drawn].to(scores.dtype), reduction="sum")
        return {"rpn/cls": cls / count, "rpn/box": box / count}

    @torch.no_grad()
    def _propose(
        self, anchors: list[Tensor], scores: list[Tensor], deltas: list[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[Tensor]:
        keep = self.pre_nms[0 if self.training else 1]
        images = len(scores[0])
        limit = sizes_tensor(sizes, scores[0])[:, None]
        most = min(keep, max(level.shape[1] for level in scores))
        boxes = scores[0].new_zeros(images, len(scores), most, 4)
        value = scores[0].new_full((images, len(scores), most), float("-inf"))
        for index, (level, codes, placed) in enumerate(zip(scores, deltas, anchors)):
            count = min(keep, level.shape[1])
            best, which = level.sort(dim=1, descending=True, stable=True)
            which = which[:, :count]
            chosen = codes.gather(1, which[..., None].expand(-1, -1, 4))
            boxes[:, index, :count] = self.coder.decode(placed[which], chosen, limit)
            value[:, index, :count] = best[:, :count]
        sides = boxes[..., 2:] - boxes[..., :2]
        # Sides of zero are left out whatever `min_size` is: nothing can be pooled from them.
        valid = torch.isfinite(value) & ((sides >= self.min_size) & (sides > 0)).all(-1)
        kept = suppress(boxes.flatten(0, 1), valid.flatten(0, 1), self.nms_threshold).view_as(valid)
        value = value.masked_fill(~kept, float("-inf")).flatten(1)
        boxes = boxes.flatten(1, 2)
        last = min(self.post_nms[0 if self.training else 1], value.shape[1])
        top, order = value.sort(dim=1, descending=True, stable=True)
        counts = torch.isfinite(top[:, :last]).sum(1).tolist()
        return [boxes[image, order[image, :count]] for image, count in enumerate(counts)]
