"""The whole detector: backbone, pyramid, proposals, cascade.

Cai & Vasconcelos, "Cascade R-CNN: Delving into High Quality Object Detection", CVPR 2018, arXiv:1712.00726; the journal
version is arXiv:1906.09756.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from etude.vision.cascade_rcnn.backbone import FPN, ResNetBackbone, TinyResNet
from etude.vision.cascade_rcnn.head import CascadeBoxHead
from etude.vision.cascade_rcnn.matching import Truth
from etude.vision.cascade_rcnn.plots import draw_boxes
from etude.vision.cascade_rcnn.roi_align import MultiScaleRoIAlign
from etude.vision.cascade_rcnn.rpn import RPN, AnchorGenerator
from etude.vision.cascade_rcnn.transform import Batch, ImageTransform, to_image

__all__ = ["TINY", "CascadeDetector", "CascadeRCNN", "Detections"]

TINY: dict[str, Any] = {
    "depth": None, "norm": "gn", "frozen_stages": 0, "width": 16, "blocks": [1, 1], "channels": 32, "levels": 2,
    "extra": "none", "anchor_sizes": [12, 24], "pooled_size": 5, "canonical_size": 56, "canonical_level": 4,
    "hidden": 96, "min_size": None, "divisor": 8,
    "rpn": {"batch_size": 64, "pre_nms": [100, 100], "post_nms": [64, 50]}, "head": {"batch_size": 64},
}  # fmt: skip
"""Options of `CascadeDetector` for `CascadeRCNN.tiny`."""


@dataclass(frozen=True, eq=False)
class Detections:
    """What was found in one picture, best first.

    Attributes:
        boxes: (n, 4), corners in pixels of the picture.
        scores: (n,) in [0, 1].
        labels: (n,), 1..K.
        image: the picture, (channels, height, width) in [0, 1].
        classes: names of the labels 1..K; empty if they have none.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    image: Tensor = field(repr=False)
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def names(self) -> list[str]:
        """The class of each box."""
        return [self.classes[label - 1] if self.classes else str(label) for label in self.labels.tolist()]

    def draw(self) -> Any:
        """The picture with its boxes; a `matplotlib.figure.Figure`."""
        words = [f"{name} {score:.2f}" for name, score in zip(self.names, self.scores.tolist())]
        return draw_boxes(self.image, self.boxes, words, self.labels.tolist())


class CascadeRCNN(nn.Module):
    """A detector out of its four parts.

        model = CascadeRCNN.resnet50_fpn(num_classes=80)
        losses = model(images, targets)                    # in training: a dict; their sum is to be minimised
        found = model.eval()(images)                       # a dict of boxes, scores and labels an image
        model.detect("cells.png").draw()

    Images are float tensors (channels, height, width) in [0, 1], of any sizes; targets are `{"boxes": (n, 4), "labels":
    (n,)}` in pixels, labels 1..K. An image without boxes is a negative example.

    Args:
        backbone: images -> maps C2, C3, ...
        fpn: these maps -> levels by name.
        rpn: levels -> proposals.
        head: levels and proposals -> detections; the cascade.
        transform: scales, normalises and fills up; the paper's if None.
        classes: names of the labels 1..K.

    Raises:
        ValueError: if names do not fit the number of classes.
    """

    def __init__(
        self,
        backbone: nn.Module,
        fpn: nn.Module,
        rpn: RPN,
        head: CascadeBoxHead,
        transform: ImageTransform | None = None,
        classes: Sequence[str] = (),
    ):
        super().__init__()
        if classes and len(classes) != head.num_classes:
            raise ValueError(f"the head has {head.num_classes} classes, {len(classes)} names were given")
        self.transform = ImageTransform() if transform is None else transform
        self.backbone, self.fpn, self.rpn, self.head = backbone, fpn, rpn, head
        self.classes = tuple(classes)

    @staticmethod
    def resnet50_fpn(num_classes: int, **options: Any) -> "CascadeDetector":
        """The paper's ResNet-50 detector; options are those of `CascadeDetector`."""
        return CascadeDetector(num_classes, **options)

    @staticmethod
    def tiny(num_classes: int, **options: Any) -> "CascadeDetector":
        """A detector that trains from scratch on a CPU, for images of some 64 to 320 pixels."""
        merged: dict[str, Any] = TINY | options
        for name in ("rpn", "head"):
            merged[name] = TINY[name] | options.get(name, {})
        return CascadeDetector(num_classes, **merged)

    def use_generators(self, anchors: torch.Generator | None, boxes: torch.Generator | None) -> "CascadeRCNN":
        """Draws the samples of training from these CPU generators: the anchors of the RPN and the boxes of the head."""
        self.rpn.sampler.generator, self.head.sampler.generator = anchors, boxes
        return self

    def features(self, batch: Batch) -> dict[str, Tensor]:
        """The levels of a batch that `transform` made."""
        return self.fpn(self.backbone(batch.images))

    def forward(
        self, images: Any, targets: Sequence[Mapping[str, Tensor]] | None = None, *, rpn_only: bool = False
    ) -> Any:
        """Losses by name in training, detections of each image in evaluation.

        Args:
            images: a tensor (n, channels, height, width) or a list of (channels, height, width).
            targets: of the images; needed in training.
            rpn_only: in training, the losses of the proposals alone.

        Raises:
            ValueError: for bad images or targets; the message names the image and the box.
        """
        if self.training and targets is None:
            raise ValueError("in training mode the detector needs targets; call eval() to detect")
        batch = self.transform(images, targets if self.training else None)
        features = self.features(batch)
        if not self.training:
            proposals, _ = self.rpn(features, batch.sizes)
            return self.transform.restore(self.head.detect(features, proposals, batch.sizes), batch)
        truth = Truth.of(batch.targets, self.head.num_classes, batch.sizes)
        proposals, losses = self.rpn(features, batch.sizes, truth, propose=not rpn_only)
        return losses if rpn_only else losses | self.head.losses(features, proposals, truth, batch.sizes)

    @torch.no_grad()
    def detect(self, image: Any, score_threshold: float | int = 0.5) -> Detections:
        """What is in one picture: a path, Pillow image, array or tensor; see `to_image` for what becomes of grey,
        transparent and 16-bit ones.

        Args:
            image: the picture.
            score_threshold: smallest score shown; those below the head's own are never found.
        """
        picture = to_image(image, self.transform.channels)
        was = self.training
        self.eval()
        try:
            found = self([picture.to(next(self.parameters()).device)])[0]
        finally:
            self.train(was)
        kept = found["scores"] >= score_threshold
        parts = {name: value[kept].cpu() for name, value in found.items()}
        return Detections(**parts, image=picture, classes=self.classes)


class CascadeDetector(
    CascadeRCNN, PyTorchModelHubMixin, library_name="etude", paper_url="https://arxiv.org/abs/1712.00726"
):
    """A `CascadeRCNN` described by numbers alone, so that `save_pretrained` and `from_pretrained` work.

    Args:
        num_classes: K, the background not counted.
        classes: names of the labels 1..K.
        in_channels: of the images; 1 for grey ones.
        depth: of the ResNet, 18, 34, 50 or 101; None for a `TinyResNet`.
        width, blocks: of the `TinyResNet`.
        norm, frozen_stages: see `ResNetBackbone`.
        channels: of the pyramid.
        levels: how many maps the boxes are pooled from.
        extra: a coarser level for the proposals; see `FPN`.
        anchor_sizes: one a level, the extra one counted.
        anchor_ratios: of all levels.
        pooled_size, canonical_size, canonical_level: see `MultiScaleRoIAlign`.
        hidden: width of the heads.
        min_size, max_size, divisor, mean, std: see `ImageTransform`; grey images have mean 0.45 and deviation 0.225.
        rpn: further options of `RPN`.
        head: further options of `CascadeBoxHead`, such as `{"thresholds": (0.5,)}`.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        classes: Sequence[str] = (),
        in_channels: int = 3,
        depth: int | None = 50,
        width: int = 16,
        blocks: Sequence[int] = (1, 1),
        norm: str = "frozen_bn",
        frozen_stages: int = 2,
        channels: int = 256,
        levels: int = 4,
        extra: str = "pool",
        anchor_sizes: Sequence[float | int] = (32, 64, 128, 256, 512),
        anchor_ratios: Sequence[float | int] = (0.5, 1.0, 2.0),
        pooled_size: int = 7,
        canonical_size: float | int = 224,
        canonical_level: int = 4,
        hidden: int = 1024,
        min_size: int | None = 800,
        max_size: int = 1333,
        divisor: int = 32,
        mean: Sequence[float | int] | None = None,
        std: Sequence[float | int] | None = None,
        rpn: Mapping[str, Any] | None = None,
        head: Mapping[str, Any] | None = None,
    ):
        if depth is None:
            backbone: ResNetBackbone = TinyResNet(width, blocks, norm, in_channels)
        else:
            backbone = ResNetBackbone(depth, norm, frozen_stages, in_channels=in_channels)
        fpn = FPN(backbone.out_channels, channels, extra)
        names = [f"p{index + 2}" for index in range(levels)]
        if mean is None or std is None:
            colour = in_channels == 3
            mean = (0.485, 0.456, 0.406) if colour else (0.45,) * in_channels
            std = (0.229, 0.224, 0.225) if colour else (0.225,) * in_channels
        super().__init__(
            backbone,
            fpn,
            RPN(channels, fpn.levels, AnchorGenerator(anchor_sizes, anchor_ratios), **_tuples(rpn)),
            CascadeBoxHead(
                num_classes, channels, hidden=hidden,
                pool=MultiScaleRoIAlign(
                    names, pooled_size, canonical_size=canonical_size, canonical_level=canonical_level
                ),
                **_tuples(head),
            ),
            ImageTransform(mean, std, min_size, max_size, divisor),
            classes,
        )  # fmt: skip


def _tuples(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Options as they come out of JSON, whose lists were tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in (options or {}).items()}
