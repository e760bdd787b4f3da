"""Cascade R-CNN: box heads in a row, each trained on the tighter boxes of the one before at a higher IoU.

Cai & Vasconcelos, "Cascade R-CNN: Delving into High Quality Object Detection", CVPR 2018, arXiv:1712.00726.

    model = CascadeRCNN.tiny(num_classes=3, in_channels=1)      # or resnet50_fpn, or of your own parts
    train_detector(model, data.train, steps=1_500)              # pairs (image, {"boxes": ..., "labels": ...})
    evaluate_coco(model, data.test)["ap75"]
    found = model.detect("cells.png")                           # found.boxes, found.labels, found.scores, found.draw()

`etude.data.detection` reads COCO and Pascal VOC folders.
"""

from etude.vision.cascade_rcnn.backbone import FPN, ResNetBackbone, TinyResNet
from etude.vision.cascade_rcnn.boxes import BoxCoder, box_iou, check_boxes, clip_boxes, collect_delta_statistics
from etude.vision.cascade_rcnn.detector import TINY, CascadeDetector, CascadeRCNN, Detections
from etude.vision.cascade_rcnn.evaluation import coco_ap, detect_all, evaluate_coco
from etude.vision.cascade_rcnn.head import BOX_WEIGHTS, CascadeBoxHead
from etude.vision.cascade_rcnn.matching import BalancedSampler, Matcher, Truth
from etude.vision.cascade_rcnn.plots import draw_boxes, plot_ap_by_iou, plot_stage_overlaps
from etude.vision.cascade_rcnn.roi_align import MultiScaleRoIAlign, roi_align
from etude.vision.cascade_rcnn.rpn import RPN, AnchorGenerator
from etude.vision.cascade_rcnn.stage import BoxStage
from etude.vision.cascade_rcnn.suppression import batched_nms, nms, suppress
from etude.vision.cascade_rcnn.training import random_flip, step_schedule, train_detector
from etude.vision.cascade_rcnn.transform import ImageTransform, to_image

__all__ = [
    "BOX_WEIGHTS",
    "FPN",
    "RPN",
    "TINY",
    "AnchorGenerator",
    "BalancedSampler",
    "BoxCoder",
    "BoxStage",
    "CascadeBoxHead",
    "CascadeDetector",
    "CascadeRCNN",
    "Detections",
    "ImageTransform",
    "Matcher",
    "MultiScaleRoIAlign",
    "ResNetBackbone",
    "TinyResNet",
    "Truth",
    "batched_nms",
    "box_iou",
    "check_boxes",
    "clip_boxes",
    "coco_ap",
    "collect_delta_statistics",
    "detect_all",
    "draw_boxes",
    "evaluate_coco",
    "nms",
    "plot_ap_by_iou",
    "plot_stage_overlaps",
    "random_flip",
    "roi_align",
    "step_schedule",
    "suppress",
    "to_image",
    "train_detector",
]
