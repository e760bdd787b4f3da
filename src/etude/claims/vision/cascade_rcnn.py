"""Claims of "Cascade R-CNN: Delving into High Quality Object Detection"."""

import warnings
from statistics import fmean
from typing import Any

import torch

from etude.data import detection, home
from etude.data.kinds_detection import DetectionData
from etude.lab import Paper, Setup, Source, Trial, higher, shown, threshold
from etude.vision.cascade_rcnn import (
    TINY,
    CascadeDetector,
    ResNetBackbone,
    Truth,
    detect_all,
    draw_boxes,
    plot_stage_overlaps,
    train_detector,
)
from etude.vision.cascade_rcnn.evaluation import IOU_THRESHOLDS, coco_ap

__all__ = ["PAPER"]

PAPER = Paper(
    slug="cascade_rcnn",
    domain="vision",
    title="Cascade R-CNN: Delving into High Quality Object Detection",
    authors="Cai & Vasconcelos",
    year=2018,
    venue="CVPR",
    arxiv="1712.00726",
    code="https://github.com/zhaoweicai/Detectron-Cascade-RCNN",
    summary="Box heads in a row, each trained at a higher IoU on the boxes that the one before it has tightened.",
    methods=("etude.vision.cascade_rcnn",),
    usage="""\
import torch
from etude.vision.cascade_rcnn import CascadeRCNN
model = CascadeRCNN.tiny(num_classes=3, in_channels=1)
target = {"boxes": torch.tensor([[10.0, 12.0, 40.0, 44.0]]), "labels": torch.tensor([2])}
sum(model([torch.rand(1, 64, 64)], [target]).values()).backward()
found = model.detect(torch.rand(1, 64, 64))  # found.boxes, found.scores, found.labels, found.draw()
""",
    notes=(
        "A cascade tightens boxes: look at AP75 and AP90. Each stage repeats RoIAlign and two layers, about a third "
        "more time with a ResNet-50. `small` decides the claims on generated 64 x 64 scenes with a network from "
        "scratch; the figures of COCO take the setup `full`, a ResNet-50 from ImageNet and 90,000 updates of 16 "
        "images. AP after one and after two stages, and by the last head's scores alone, stand beside the averaged "
        "scores of all three in every table. "
        "detectron2 and mmdetection average scores over the stages' own boxes, the paper's code over the last "
        "stage's: `score_ensemble`. Average precision is pycocotools'."
    ),
    extra="run",
)

_HEADS: dict[str, dict[str, Any]] = {
    "single": {"thresholds": (0.5,)},
    "single_07": {"thresholds": (0.7,)},
    "iterative": {"thresholds": (0.5,), "iterations": 3},
    "integral": {"integral": True},
    "cascade": {},
    "equal_thresholds": {"thresholds": (0.5, 0.5, 0.5)},
    "equal_weights": {"box_weights": ((10, 10, 5, 5),) * 3},
}
"""Each arm as settings of the one head; all else is the same."""

_SMALL = Setup(
    detector=TINY, imagenet=False, train=400, val=100, test=200, steps=250, rpn_steps=50, batch=8, optimizer="adamw",
    lr_scale=1.0, weight_decay=1e-4, precision="no",
)  # fmt: skip
_SMOKE = _SMALL.replace(train=8, val=4, test=4, steps=2, rpn_steps=1, batch=2)
_MEDIUM = _SMALL.replace(train=1000, val=200, test=400, steps=3_000, rpn_steps=300)
_FULL = _SMALL.replace(
    detector={}, imagenet=True, train=None, val=None, test=None, steps=90_000, rpn_steps=0, batch=16, optimizer="sgd",
    lr_scale=10 / 3, precision="bf16",
)  # fmt: skip
_SETUPS = {"smoke": _SMOKE, "small": _SMALL, "medium": _MEDIUM, "full": _FULL}


def _coco() -> DetectionData:
    """COCO 2017; 5,000 pictures of train are held out for the choice of the rate."""
    root = home() / "coco2017"
    if not (root / "annotations" / "instances_train2017.json").is_file():
        raise FileNotFoundError(
            f"place annotations/instances_train2017.json, instances_val2017.json, train2017/ and val2017/ "
            f"(from https://cocodataset.org) into {root}"
        )
    whole, test = (
        detection.CocoDetection(
            root / "annotations" / f"instances_{part}2017.json", root / f"{part}2017", channels=3, bad_boxes="drop"
        )
        for part in ("train", "val")
    )
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
    return DetectionData(whole.subset(order[5000:]), whole.subset(order[:5000]), test, whole.classes, "coco2017")


def _few_shapes() -> DetectionData:
    return detection.shapes(8, 4, 4)


_DATA = {
    "few_shapes": Source(_few_shapes, scales=("smoke",)),
    "shapes": Source(detection.shapes, scales=("small", "medium")),
    "coco2017": Source(_coco, scales=("full",)),
}
_TUNE = {"lr": [3e-3, 6e-3, 1.2e-2]}


def _part(split: Any, n: int | None, generator: torch.Generator) -> Any:
    """`n` drawn examples of a split, or all of them."""
    return split if n is None or n >= len(split) else split.subset(torch.randperm(len(split), generator=generator)[:n])


def _trained(trial: Trial, data: DetectionData, arm: str) -> CascadeDetector:
    s = trial.setup
    train = _part(data.train, s.train, trial.generator("data"))
    options: dict[str, Any] = dict(s.detector)
    head = options.pop("head", {}) | _HEADS[arm]
    with trial.stream("init"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="thresholds do not rise")  # the arm with equal thresholds
        model = CascadeDetector(
            data.num_classes, classes=data.classes, in_channels=data.channels, head=head, **options
        ).to(trial.device)
    if s.imagenet:
        assert isinstance(model.backbone, ResNetBackbone)
        model.backbone.load_imagenet(torch.hub.load_state_dict_from_url(_RESNET50, progress=False))
    model.use_generators(trial.generator("anchors"), trial.generator("boxes"))
    losses = train_detector(
        model, train, steps=s.steps, rpn_steps=s.rpn_steps, batch_size=s.batch,
        lr=s.lr_scale * (getattr(trial.tuned, "lr", None) or 6e-3), optimizer=s.optimizer,
        weight_decay=s.weight_decay, clip=10.0 if s.optimizer == "adamw" else None,
        generator=trial.generator("order"), augment=trial.generator("augment"),
        mixed_precision=s.precision, callbacks=[trial.progress], every=10,
    )  # fmt: skip
    for start in range(0, len(losses), 10):
        trial.log(start, loss=fmean(losses[start : start + 10]))
    return model


_RESNET50 = "https://download.pytorch.org/models/resnet50-0676ba61.pth"


def _ap(model: CascadeDetector, data: Any, **changes: Any) -> dict[str, float]:
    """Average precision, with attributes of the head changed at test."""
    kept = {name: getattr(model.head, name) for name in changes}
    try:
        for name, value in changes.items():
            setattr(model.head, name, value)
        return coco_ap(*detect_all(model, data))
    finally:
        for name, value in kept.items():
            setattr(model.head, name, value)


def _detector(trial: Trial, data: DetectionData) -> dict[str, float]:
    """Trains the arm and measures it; validation alone in tuning."""
    model = _trained(trial, data, trial.arm)
    draw = trial.generator("data")
    val, test = (_part(split, n, draw) for split, n in ((data.val, trial.setup.val), (data.test, trial.setup.test)))
    found = {"val_ap": _ap(model, val)["ap"]}
    if trial.tuning:
        return found
    scores = _ap(model, test)
    for iou in IOU_THRESHOLDS:
        trial.log(100 * iou, ap_at_iou=scores[f"ap{round(100 * iou)}"])
    found |= {name: scores[name] for name in ("ap", "ap50", "ap70", "ap75", "ap90")}
    found["ap75_over_ap50"] = scores["ap75"] - scores["ap50"]
    found["ap_last_head"] = scores["ap"]
    if len(model.head.coders) > 1:
        found["ap_last_head"] = _ap(model, test, score_ensemble="none")["ap"]
        found["ap_per_stage_scores"] = _ap(model, test, score_ensemble="per_stage")["ap"]
        found |= {f"ap_{depth}_stages": _ap(model, test, depth=depth)["ap"] for depth in (1, 2)}
    if trial.arm == "cascade":
        image, target = test[0]
        seen = model.detect(image)
        words = [f"{name} {score:.2f}" for name, score in zip(seen.names, seen.scores.tolist())]
        trial.figure("detections", draw_boxes(image, seen.boxes, words, seen.labels.tolist(), target["boxes"]))
    return found


@PAPER.claim(
    "A cascade of three heads at IoU 0.5, 0.6 and 0.7 beats a single head in AP, and its gain grows with IoU",
    arms=("single", "cascade", "equal_thresholds", "equal_weights"),
    expect=[
        higher("cascade", than="single", metric="ap"),
        higher("cascade", than="single", metric="ap75_over_ap50"),
        shown(
            "equal_thresholds",
            "equal_weights",
            higher("cascade", than="single", metric="ap50"),
            higher("cascade", than="single", metric="ap75"),
            higher("cascade", than="single", metric="ap90"),
            higher("cascade", than="single", metric="ap_last_head"),
            higher("cascade", than="equal_thresholds", metric="ap"),
            higher("cascade", than="equal_weights", metric="ap"),
        ),
    ],
    setup=_SETUPS,
    data=_DATA,
    tune=_TUNE,
    tune_by="val_ap",
    tune_seeds=1,
    tuned_like={"equal_thresholds": "cascade", "equal_weights": "cascade"},
    seeds={"smoke": 1, "small": 5, "medium": 5, "full": 3},
    timeout=86_400,
    reported="COCO minival, R50-FPN 1x: AP / AP50 / AP75 36.7 / 58.4 / 39.6 for one head, 40.9 / 59.0 / 44.6 cascaded",
    notes=(
        "`ap75_over_ap50` is AP75 - AP50, so that its contrast is the interaction: the gain at 0.75 less the gain at "
        "0.5. All arms share scenes, order, backbone, pyramid and RPN weights of a seed; the first 50 updates train "
        "these alone. Rates below the grid were worse for both arms in exploratory runs. `equal_thresholds` has three"
        " stages at 0.5; `equal_weights` normalises every stage's box code as the first (paper, ablations); both take"
        " the cascade's rate. `ap_1_stages` and `ap_2_stages` stop the trained cascade early."
    ),
)
def cascade_beats_single(trial: Trial, data: DetectionData) -> dict[str, float]:
    return _detector(trial, data)


@PAPER.claim(
    "Raising the threshold of a single head to 0.7 lowers its AP",
    arms=("single", "single_07"),
    expect=[
        higher("single", than="single_07", metric="ap"),
        shown(higher("single", than="single_07", metric="ap75"), higher("single", than="single_07", metric="ap90")),
    ],
    setup=_SETUPS,
    data=_DATA,
    tune=_TUNE,
    tune_by="val_ap",
    tune_seeds=1,
    seeds={"smoke": 1, "small": 3, "medium": 5, "full": 3},
    timeout=86_400,
    reported="COCO: a head trained at 0.7 stays below the head at 0.5 in AP (figure 1 d of the paper)",
    notes="At 0.7 few proposals are positives, and at test proposals are worse than those that the head learnt from.",
)
def threshold_up_alone_fails(trial: Trial, data: DetectionData) -> dict[str, float]:
    return _detector(trial, data)


@PAPER.claim(
    "The cascade beats applying one head three times and averaging three classifiers on the same boxes",
    arms=("iterative", "integral", "cascade"),
    expect=[
        higher("cascade", than="iterative", metric="ap"),
        higher("cascade", than="integral", metric="ap"),
        shown(
            higher("cascade", than="iterative", metric="ap75"),
            higher("cascade", than="integral", metric="ap75"),
            higher("cascade", than="iterative", metric="ap_last_head"),
        ),
    ],
    setup=_SETUPS,
    data=_DATA,
    tune=_TUNE,
    tune_by="val_ap",
    tune_seeds=1,
    seeds={"smoke": 1, "small": 4, "medium": 5, "full": 3},
    timeout=86_400,
    reported="COCO, R50-FPN: AP 34.9 for one head, 35.4 with iterative boxes, 35.4 with integral loss, 38.9 cascaded",
    notes=(
        "`iterative` trains one head at 0.5 and applies it three times at test; `integral` has three heads of full "
        "size, labelled at 0.5, 0.6 and 0.7 on the same boxes, of which the first moves them. The figures reported "
        "here are remembered, not checked against the text."
    ),
)
def cascade_beats_iterative(trial: Trial, data: DetectionData) -> dict[str, float]:
    return _detector(trial, data)


@PAPER.claim(
    "Each stage hands on tighter boxes, so that positives stay numerous while thresholds rise",
    arms=("cascade",),
    expect=[
        threshold("cascade", metric="rise_to_stage2", above=0),
        threshold("cascade", metric="rise_to_stage3", above=0),
        threshold("cascade", metric="fewest_positives", above=0.5),
        threshold("cascade", metric="most_positives", below=2),
        shown(threshold("cascade", metric="kept_without_resampling", below=0.5)),
    ],
    setup=_SETUPS,
    data=_DATA,
    seeds={"smoke": 1, "small": 3, "medium": 5, "full": 3},
    timeout=86_400,
    reported="COCO: IoU histograms of the boxes that enter stages 1, 2, 3 move to the right (figure 4 of the paper)",
    notes=(
        "On test scenes. `share_t` is the share of all boxes entering stage t with an IoU of 0.7 or more, and "
        "`rise_to_stage2` and 3 its differences. `fewest_positives` and `most_positives` are the positives of a stage "
        "at its own threshold over those of the first; `kept_without_resampling` is the same for the first stage's "
        "boxes at 0.7. The rate is 6e-3, untuned."
    ),
)
def resampling_keeps_positives(trial: Trial, data: DetectionData) -> dict[str, float]:
    model = _trained(trial, data, "cascade")
    test = _part(data.test, trial.setup.test, trial.generator("data"))
    overlaps = _overlaps(model, test, trial.device)
    share = [float((values >= 0.7).double().mean()) for values in overlaps]
    counts = [float((values >= u).sum()) for values, u in zip(overlaps, model.head.thresholds)]
    first = max(counts[0], 1.0)
    for stage, count in enumerate(counts, 1):
        trial.log(stage, share_070=share[stage - 1], positives=count / first)
    trial.figure("overlaps", plot_stage_overlaps([values[values >= 0.3] for values in overlaps]))
    return {
        **{f"share_{t}": value for t, value in enumerate(share[:-1], 1)},
        "share_out": share[-1],
        "rise_to_stage2": share[1] - share[0],
        "rise_to_stage3": share[2] - share[1],
        "fewest_positives": min(counts[1:]) / first,
        "most_positives": max(counts[1:]) / first,
        "kept_without_resampling": float((overlaps[0] >= 0.7).sum()) / first,
    }


@torch.no_grad()
def _overlaps(model: CascadeDetector, data: Any, device: str) -> list[torch.Tensor]:
    """Largest IoU with a ground truth of the boxes that enter stages 1, 2, 3, and of those that leave the last."""
    model.eval()
    parts: list[list[torch.Tensor]] = [[] for _ in range(len(model.head.coders) + 1)]
    for start in range(0, len(data), 16):
        items = [data[index] for index in range(start, min(start + 16, len(data)))]
        batch = model.transform(
            [x.to(device) for x, _ in items], [{k: v.to(device) for k, v in t.items()} for _, t in items]
        )
        features = model.features(batch)
        proposals, _ = model.rpn(features, batch.sizes)
        states = model.head.trajectory(features, proposals, batch.sizes)
        truth = Truth.of(batch.targets, model.head.num_classes)
        for part, boxes in zip(parts, [*(state["boxes"] for state in states), states[-1]["moved"][:, 0]]):
            part.append(truth.overlaps(boxes, states[0]["images"])[0].cpu())
    return [torch.cat(part) for part in parts]


_CELLS = TINY | {
    "blocks": [1, 1, 1], "levels": 3, "anchor_sizes": [12, 24, 48], "divisor": 16, "min_size": 120, "max_size": 160,
    "rpn": {"batch_size": 128, "pre_nms": [150, 150], "post_nms": [100, 100]}, "head": {"batch_size": 96},
}  # fmt: skip
_CELLS_SMALL = _SMALL.replace(detector=_CELLS, train=None, val=None, test=None, batch=4, steps=1_500, rpn_steps=100)


def _bccd_half() -> DetectionData:
    return detection.bccd((240, 320))


def _bccd_whole() -> DetectionData:
    return detection.bccd((480, 640))


@PAPER.claim(
    "On real blood smears a cascade beats a single head in AP, and its gain grows with IoU",
    arms=("single", "cascade"),
    expect=[
        higher("cascade", than="single", metric="ap"),
        higher("cascade", than="single", metric="ap75_over_ap50"),
        shown(
            higher("cascade", than="single", metric="ap50"),
            higher("cascade", than="single", metric="ap75"),
            higher("cascade", than="single", metric="ap_last_head"),
        ),
    ],
    setup={
        "smoke": _CELLS_SMALL.replace(train=4, val=2, test=2, steps=2, rpn_steps=1, batch=2),
        "small": _CELLS_SMALL,
        "medium": _CELLS_SMALL.replace(
            detector=_CELLS | {"width": 32, "min_size": 240, "max_size": 320, "anchor_sizes": [24, 48, 96]},
        ),
        "full": _CELLS_SMALL.replace(
            detector={"min_size": 480, "max_size": 640},
            imagenet=True,
            steps=5_000,
            rpn_steps=0,
            batch=8,
            optimizer="sgd",
            lr_scale=5 / 3,
        ),
    },
    data={
        "few_shapes": Source(_few_shapes, scales=("smoke",)),
        "bccd": Source(_bccd_half, scales=("medium",)),
        "bccd_whole": Source(_bccd_whole, scales=("full",)),
    },
    tune=_TUNE,
    tune_by="val_ap",
    tune_seeds=1,
    seeds={"smoke": 1, "small": 5, "medium": 5, "full": 3},
    timeout=86_400,
    reported="not in the paper",
    notes=(
        "BCCD: 364 smears with red cells, white cells and platelets in the set's own split; seeds differ in initial "
        "weights and order, so that conclusions are about this split. It is judged at `medium`: in an exploratory run"
        " AP was 0.02 after 120 updates at a quarter of the size and a rate of 2e-3, too little to compare, and eight"
        " minutes of two cores hold few more beside the other claims. `medium` takes half size, double width and "
        "1,500 updates of 4, 29 passes, an estimated quarter of an hour of a core a training, of which there are 16. "
        "`small` is the setup for a user's own COCO or VOC folder, whose pictures are scaled to 160 x 120."
    ),
    helps=higher("cascade", than="single", metric="ap"),
)
def blood_cells(trial: Trial, data: DetectionData) -> dict[str, float]:
    return _detector(trial, data)
