"""Claims of "Deep Learning Face Attributes in the Wild"."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from etude.data import images
from etude.data.faces import Faces, FaceScenes, lfw_faces, lfw_mosaics, orl_faces
from etude.data.faces_worlds import FaceWorld, Part, celeba_world, drawn_world, images_of, tags_of, with_tags
from etude.data.kinds import Examples, ImageData
from etude.lab import Paper, Setup, Source, Trial, higher, identity, lower, shown
from etude.loop import accuracy, cosine_schedule, fit, seeded
from etude.vision.face_attributes import (
    ANet,
    AttributeSVM,
    CascadedLocalizer,
    InterweavedExtractor,
    LNet,
    balanced_accuracy_per_attribute,
    binarized_accuracy,
    boxes_from_responses,
    choose_threshold,
    crop_and_resize,
    localization_recall,
    multi_patch,
    plot_localization,
    plot_sparse_combinations,
    pretrain_classes,
    pretrain_identities,
    sobel_magnitude,
    sparse_combinations,
    train_tags,
)

__all__ = ["PAPER"]

PAPER = Paper(
    slug="face_attributes",
    domain="vision",
    title="Deep Learning Face Attributes in the Wild",
    authors="Liu, Luo, Wang & Tang",
    year=2015,
    venue="ICCV",
    arxiv="1411.7766",
    summary="A network that learns image-level tags finds the face by itself; a second one, taught who people are, "
    "describes it for linear classifiers.",
    methods=("etude.vision.face_attributes",),
    usage="""\
import torch
from etude.vision.face_attributes import ANet, CascadedLocalizer, LNet, crop_and_resize
photographs = torch.rand(2, 3, 96, 96)
boxes, scores = CascadedLocalizer(LNet(40, backbone="small"))(photographs)      # after train_tags
features = ANet(40, grid=(3, 3)).extract(crop_and_resize(photographs, boxes, 48))
assert boxes.shape == (2, 4) and features.shape == (2, 160)
""",
    notes=(
        "There is no official code; CelebA and LFWA are for non-commercial research and are placed by hand. Proposals "
        "of an object detector are replaced by a rule on the response map, the same for every arm, whose threshold is "
        "chosen on training images without a box; local response normalisation by batch norm in the small networks. "
        "Localisation is what `small` can decide, on drawn scenes. Whether identities help attributes it cannot: "
        "drawn faces are so clean that a few hundred tags suffice, and training on identities removes what varies "
        "within a person. `medium` has lighting, blur, bars and 300 people with habits; the published figure takes "
        "CelebA's 160,000 photographs of 8,000 people, at `full`, on a GPU with 64 GB of memory beside it."
    ),
    extra="run",
)


WORLDS = {
    "drawn": Source(drawn_world, scales=("smoke", "small", "medium")),
    "celeba": Source(celeba_world, scales=("full",)),
}


def _lnet(setup: Setup, tags: int, channels: int, device: str) -> LNet:
    """A localiser, pre-trained on the classes of ImageNet where the setup says so."""
    s = setup.lnet
    if not s["pretrain_epochs"]:
        lnet = LNet(tags, s["width"], s["backbone"], in_channels=channels)
        return lnet.to(memory_format=torch.channels_last).to(device)  # type: ignore[call-overload]
    classes = _imagenet(s["pretrain_size"])
    lnet = LNet(classes.num_classes, s["width"], s["backbone"], in_channels=channels).to(device)
    return pretrain_classes(
        lnet, classes.train, tags, epochs=s["pretrain_epochs"], device=device, num_workers=s["workers"]
    )


def _imagenet(size: int) -> ImageData:
    return images.hub("ILSVRC/imagenet-1k", size=size, channels=3)


def _fine_tune(lnet: LNet, examples: Any, setup: Setup, order: torch.Generator, **options: Any) -> None:
    s = setup.lnet
    train_tags(
        lnet, examples, epochs=s["epochs"], lr=s["lr"], batch_size=s["batch"], top_factor=s["top_factor"],
        generator=order, flips=order, num_workers=s["workers"], **options,
    )  # fmt: skip


_SMALL_LNET = {
    "backbone": "small", "width": 1.0, "epochs": 5, "lr": 4e-3, "batch": 12, "top_factor": 1.0, "pretrain_epochs": 0,
    "pretrain_size": 0, "workers": 0, "scales": [1.0],
}  # fmt: skip
_FULL_LNET = {
    "backbone": "alexnet", "width": 1.0, "epochs": 10, "lr": 1e-4, "batch": 128, "top_factor": 10.0,
    "pretrain_epochs": 60, "pretrain_size": 227, "workers": 8, "scales": [1.0, 1.25, 1.5],
}  # fmt: skip
_CLEAN = {"size": 64, "consistency": 0.5, "nuisance": 0.0}
_LOCALIZATION = {
    "smoke": Setup(
        lnet=_SMALL_LNET | {"width": 0.25, "epochs": 1}, world=_CLEAN, sizes={"train": [20, 3], "test": [10, 2]},
        centre=[0.36, 0.42], crop=48, counts={"all_tags": 10, "half_tags": 5, "two_tags": 2}, real=20,
    ),
    "small": Setup(
        lnet=_SMALL_LNET, world=_CLEAN, sizes={"train": [300, 5], "test": [100, 3]}, centre=[0.36, 0.42], crop=48,
        counts={"all_tags": 10, "half_tags": 5, "two_tags": 2}, real=100,
    ),
    "medium": Setup(
        lnet=_SMALL_LNET | {"width": 1.0, "epochs": 10}, world=_CLEAN, sizes={"train": [2000, 5], "test": [500, 3]},
        centre=[0.36, 0.42], crop=48, counts={"all_tags": 10, "half_tags": 5, "two_tags": 2}, real=100,
    ),
    "full": Setup(
        lnet=_FULL_LNET, world={"size": 256}, sizes={"train": [162_770, 1], "test": [4_000, 1]}, centre=[0.3, 0.42],
        crop=227, counts={"all_tags": 40, "half_tags": 20, "two_tags": 5}, real=100,
    ),
}  # fmt: skip


def _localizer(trial: Trial, data: FaceWorld, parts: dict[str, Part], tags: int) -> LNet:
    with trial.stream("init"):
        lnet = _lnet(trial.setup, tags, data.channels, trial.device)
        _fine_tune(
            lnet, with_tags(parts["train"].examples, tags), trial.setup, trial.generator("order"),
            callbacks=[trial.progress],
        )  # fmt: skip
    return lnet


def _threshold(responses: Callable[[Tensor], Tensor], part: Part, *, boxes: bool = False) -> float:
    """Chosen on training images, without a box, or by the boxes where a baseline gets that advantage."""
    first = next(images_of(part.examples, 200))
    true = part.boxes[: len(first)] if boxes and part.boxes is not None else None
    return choose_threshold(responses(first), boxes=true)


def _real_faces(trial: Trial, size: int, channels: int) -> Faces:
    """LFW's faces on mosaics of its patches without faces, drawn at 64 pixels and scaled."""
    faces = lfw_mosaics(trial.setup.real, 64, generator=trial.generator("lfw"))
    if size == 64 and channels == 1:
        return faces
    assert faces.boxes is not None
    scaled = F.interpolate(faces.images, size=(size, size), mode="bilinear").expand(-1, channels, -1, -1).contiguous()
    return Faces(scaled, faces.tags, (), faces.boxes * (size / 64))


def _judged(trial: Trial, data: FaceWorld, part: Part, find: Callable[[Tensor], Tensor]) -> dict[str, float]:
    assert part.boxes is not None
    recall, overlap = localization_recall(torch.cat([find(batch) for batch in images_of(part.examples)]), part.boxes)
    real = _real_faces(trial, int(trial.setup.world["size"]), data.channels)
    assert real.boxes is not None
    recall_lfw, overlap_lfw = localization_recall(find(real.images), real.boxes)
    return {"recall": recall, "iou": overlap, "recall_lfw": recall_lfw, "iou_lfw": overlap_lfw}


@PAPER.claim(
    "A network that was only told which tags a scene has finds the face in it, better than edges, chance or itself "
    "before it learnt them",
    arms=("tags", "saliency", "before_tags", "centre", "cascade"),
    expect=[
        higher("tags", than="saliency", metric="recall"),
        higher("tags", than="before_tags", metric="recall"),
        higher("tags", than="centre", metric="recall"),
        shown(
            "cascade",
            higher("tags", than="saliency", metric="iou"),
            higher("cascade", than="tags", metric="recall"),
            higher("tags", than="saliency", metric="recall_lfw"),
        ),
    ],
    setup=_LOCALIZATION,
    data=WORLDS,
    seeds={"smoke": 1, "small": 5, "medium": 10, "full": 3},
    timeout=86_400,
    reported="recall about 93 % at IoU 0.5 from tags alone, above detectors trained on boxes (CelebA, figure)",
    notes=(
        "Every scene has a face, as in CelebA, so that only tags that vary can tell where it is. All maps pass "
        "through one rule; its threshold is chosen on 200 training images, by the responses alone for `tags` and "
        "`cascade`, by the true boxes for `saliency`, the strength of edges, and `before_tags`, the same network "
        "before fine-tuning (pre-trained on ImageNet at `full`): an advantage that the baselines have. `centre` is a "
        "box of the mean face's size in the middle. `cascade` trains a second network on the regions of the first, "
        "which a drawn face fills, so that little beside it is left to respond less. `recall_lfw` is on real faces "
        "(LFW, bundled with scikit-image) pasted on mosaics of patches without faces, which no network was trained on."
    ),
)
def tags_localise_faces(trial: Trial, data: FaceWorld) -> dict[str, float]:
    s = trial.setup
    parts = data.draw(s.sizes, s.world, trial.stream_seed("data"))
    if trial.arm == "centre":
        width, height = s.centre

        def middle(batch: Tensor) -> Tensor:
            rows, columns = batch.shape[2:]
            box = [
                columns * (1 - width) / 2,
                rows * (1 - height) / 2,
                columns * (1 + width) / 2,
                rows * (1 + height) / 2,
            ]
            return torch.tensor(box).expand(len(batch), 4)

        return _judged(trial, data, parts["test"], middle)
    if trial.arm == "saliency":
        respond: Callable[[Tensor], Tensor] = sobel_magnitude
    else:
        if trial.arm == "before_tags":
            with trial.stream("init"):
                lnet = _lnet(s, data.tags, data.channels, trial.device)
        else:
            lnet = _localizer(trial, data, parts, data.tags)

        def respond(batch: Tensor) -> Tensor:
            return lnet.responses(batch, s.lnet["scales"])

    tau = _threshold(respond, parts["train"], boxes=trial.arm in ("saliency", "before_tags"))
    if trial.arm == "cascade":
        return {"tau": tau} | _cascaded(trial, data, parts, lnet, tau)

    def find(batch: Tensor) -> Tensor:
        return boxes_from_responses(respond(batch), tau)[0]

    first, factor = next(images_of(parts["test"].examples, 5)), 64 / s.world["size"]
    pictures = F.interpolate(first, scale_factor=factor)
    responses = F.interpolate(respond(first)[:, None], scale_factor=factor)[:, 0]
    assert parts["test"].boxes is not None
    true = factor * parts["test"].boxes[:5]
    trial.figure("responses", plot_localization(pictures, responses, factor * find(first), true))
    return {"tau": tau} | _judged(trial, data, parts["test"], find)


def _cascaded(trial: Trial, data: FaceWorld, parts: dict[str, Part], lnet: LNet, tau: float) -> dict[str, float]:
    s = trial.setup
    first = CascadedLocalizer(lnet, crop_size=s.crop, scales=s.lnet["scales"], tau=(tau, tau))
    crops = torch.cat([first.crops(batch)[0] for batch in images_of(parts["train"].examples)])
    with trial.stream("method"):
        second = LNet(data.tags, s.lnet["width"], s.lnet["backbone"], in_channels=data.channels).to(trial.device)
        if s.lnet["pretrain_epochs"]:
            second.load_state_dict(lnet.state_dict())
        _fine_tune(
            second, Examples(crops, tags_of(parts["train"].examples).float()), s, trial.generator("method"),
            callbacks=[trial.progress],
        )  # fmt: skip
    inner = choose_threshold(second.responses(crops[:200]))
    both = CascadedLocalizer(lnet, second, crop_size=s.crop, scales=s.lnet["scales"], tau=(tau, inner))
    return {"tau_inner": inner} | _judged(trial, data, parts["test"], lambda batch: both(batch)[0])


@PAPER.claim(
    "More tags localise better: with all tags more faces are found than with two",
    arms=("all_tags", "half_tags", "two_tags"),
    expect=[
        higher("all_tags", than="two_tags", metric="recall"),
        shown(
            "half_tags",
            higher("all_tags", than="two_tags", metric="iou"),
            higher("all_tags", than="half_tags", metric="recall"),
            higher("all_tags", than="two_tags", metric="recall_lfw"),
        ),
    ],
    setup=_LOCALIZATION,
    data=WORLDS,
    seeds={"smoke": 1, "small": 5, "medium": 10, "full": 3},
    timeout=86_400,
    reported="recall grows with the attributes used in fine-tuning, from 5 to 40 (CelebA, figure)",
    notes=(
        "Ten tags against the first two, glasses and hat, on drawn scenes; forty against five at `full`. The networks, "
        "scenes and box rule are those of `tags_localise_faces`."
    ),
)
def more_attributes_localise_better(trial: Trial, data: FaceWorld) -> dict[str, float]:
    s = trial.setup
    parts = data.draw(s.sizes, s.world, trial.stream_seed("data"))
    lnet = _localizer(trial, data, parts, s.counts[trial.arm])

    def respond(batch: Tensor) -> Tensor:
        return lnet.responses(batch, s.lnet["scales"])

    tau = _threshold(respond, parts["train"])
    found = _judged(trial, data, parts["test"], lambda batch: boxes_from_responses(respond(batch), tau)[0])
    return {"tau": tau, "tags": float(s.counts[trial.arm])} | found


@dataclass(frozen=True)
class _Crops:
    """Faces as ANet sees them: (n, patches, channels, size, size), the first patch the face itself."""

    people: Tensor
    ids: Tensor
    tagged: Tensor
    tags: Tensor
    tests: dict[str, tuple[Tensor, Tensor]]


@lru_cache(maxsize=1)
def _crops(data: FaceWorld, setup: Setup, seeds: tuple[int, int], device: str) -> _Crops:
    """Cut by a localiser that learnt from tags; the arms of one seed share it, whichever of them runs first."""
    parts = data.draw(setup.sizes, setup.world, seeds[0])
    owners = [set(part.identities.tolist()) for part in parts.values() if part.identities is not None]
    if setup.world.get("consistency") and sum(map(len, owners)) != len(set().union(*owners)):
        raise ValueError("a person stands in two parts")
    with seeded(seeds[1]):
        lnet = _lnet(setup, data.tags, data.channels, device)
        _fine_tune(lnet, parts["scenes"].examples, setup, torch.Generator().manual_seed(seeds[1]))
    tau = choose_threshold(lnet.responses(next(images_of(parts["scenes"].examples, 200)), setup.lnet["scales"]))
    localize = CascadedLocalizer(lnet, scales=setup.lnet["scales"], tau=(tau, tau))

    def cut(part: Part, crops: int, scales: list[float]) -> Tensor:
        patches = [
            multi_patch(batch, localize(batch)[0], setup.anet["size"], crops=crops, scales=scales)
            for batch in images_of(part.examples)
        ]
        return torch.cat(patches)

    people, tagged = parts["people"], parts["tagged"]
    assert people.identities is not None
    several = (setup.crops, setup.patch_scales)
    tests: dict[str, tuple[Tensor, Tensor]] = {
        name: (cut(parts[name], *several), tags_of(parts[name].examples)) for name in ("test", "lfwa") if name in parts
    }
    ids = people.identities.unique(return_inverse=True)[1]
    return _Crops(cut(people, 1, [1.0]), ids, cut(tagged, *several), tags_of(tagged.examples), tests)


def _anet(setup: Setup, data: FaceWorld, outputs: int, *, local: bool = True, wide: bool = False) -> ANet:
    options = dict(setup.anet)
    if wide:  # a third layer with as many parameters as the banks have together
        options["widths"] = [*options["widths"][:2], options["widths"][2] * 9, *options["widths"][3:]]
    return ANet(outputs, grid=(3, 3), local=local, in_channels=data.channels, **options)


def _judge_attributes(trial: Trial, crops: _Crops, features: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """An SVM for each attribute on the features of all patches; drawn habits and looks apart."""
    x = features(crops.tagged)
    svm = AttributeSVM(C=trial.setup.svm_c).fit(x, crops.tags)
    found: dict[str, float] = {}
    for name, (patches, tags) in crops.tests.items():
        z = features(patches)
        each = balanced_accuracy_per_attribute(svm.predict(z), tags)
        suffix = "" if name == "test" else f"_{name}"
        found[f"balanced_accuracy{suffix}"] = float(np.nanmean(each))
        found[f"accuracy{suffix}"] = float((svm.predict(z) == tags.numpy()).mean())
        if name == "test":
            found["varying"], found["lasting"] = float(np.nanmean(each[:4])), float(np.nanmean(each[4:]))
            for attribute, value in enumerate(each):
                trial.log(attribute, attribute_accuracy=value)
    return found


_SMALL_ANET = {"size": 24, "widths": [20, 32, 40], "shared_pools": 1, "feature_dim": 96, "stem_stride": 1}
_PARTS_SMALL = {"scenes": [150, 5], "people": [60, 25], "tagged": [300, 1], "test": [300, 1]}
_ATTRIBUTES = {
    "smoke": Setup(
        lnet=_SMALL_LNET | {"width": 0.25, "epochs": 1}, world=_CLEAN,
        anet=_SMALL_ANET | {"widths": [4, 4, 4], "feature_dim": 16},
        sizes={"scenes": [20, 3], "people": [4, 8], "tagged": [40, 1], "test": [40, 1]}, crops=1, patch_scales=[1.0],
        svm_c=1e-2, id_epochs=[1, 1], epochs=1, batch=20,
    ),
    "small": Setup(
        lnet=_SMALL_LNET, world=_CLEAN, anet=_SMALL_ANET, sizes=_PARTS_SMALL, crops=1, patch_scales=[1.0],
        svm_c="cv", id_epochs=[6, 3], epochs=20, batch=50,
    ),
    "medium": Setup(
        lnet=_SMALL_LNET | {"epochs": 10}, world={"size": 64, "consistency": 0.9, "nuisance": 1.0}, anet=_SMALL_ANET,
        sizes={"scenes": [600, 5], "people": [400, 20], "tagged": [60, 1], "test": [1500, 1]}, crops=5,
        patch_scales=[1.0, 1.15], svm_c="cv", id_epochs=[20, 10], epochs=60, batch=20,
    ),
    "full": Setup(
        lnet=_FULL_LNET, world={"size": 256}, anet={
            "size": 96, "widths": [20, 40, 60, 80], "shared_pools": 2, "feature_dim": 160, "stem_stride": 1,
        },
        sizes={"scenes": [162_770, 1], "people": [162_770, 1], "tagged": [20_000, 1], "test": [19_962, 1],
               "lfwa": [7_000, 1]},
        crops=5, patch_scales=[1.0], svm_c=1e-2, id_epochs=[20, 10], epochs=10, batch=128,
    ),
}  # fmt: skip


def _seeds_of(trial: Trial) -> tuple[int, int]:
    return trial.stream_seed("data"), trial.stream_seed("localizer")


@PAPER.claim(
    "Features pre-trained on identities, then fine-tuned, predict attributes better from few tags than tags alone",
    arms=("scratch", "identity_tags", "identity", "random", "pixels"),
    expect=[
        higher("identity_tags", than="scratch", metric="balanced_accuracy"),
        shown(
            "identity",
            "random",
            "pixels",
            higher("identity_tags", than="scratch", metric="lasting"),
            higher("identity_tags", than="scratch", metric="varying"),
            higher("identity", than="random", metric="balanced_accuracy"),
        ),
    ],
    setup=_ATTRIBUTES,
    data=WORLDS,
    tune={"lr": [1e-3, 4e-3]},
    tune_by="val_balanced_accuracy",
    tune_seeds=1,
    untuned=("identity", "random", "pixels"),
    seeds={"smoke": 1, "small": 3, "medium": 8, "full": 3},
    timeout=86_400,
    reported="mean accuracy over 40 attributes: CelebA 83 % without and 87 % with identities, LFWA 79 % and 84 %",
    notes=(
        "Crops come from a localiser that learnt from tags. No person of the tests is in any other part; on drawings, "
        "where the pre-trained people are not the tagged ones either, the parts share nobody. "
        "Balanced accuracy, mean over the attributes, of linear SVMs on the features; `lasting` over the six that are "
        "the person's, `varying` over the four that change between pictures of one person, which training on "
        "identities teaches to ignore. `identity` is not fine-tuned, `random` not trained at all, `pixels` are the "
        "crops. lr of the fine-tuning is chosen by a fifth of the tagged crops. `small` is the paper's comparison on "
        "clean drawings and cannot stand for photographs; `medium` adds lighting, blur, contrast and bars, 400 people "
        "whose habits show in nine of ten pictures, and 60 tagged crops."
    ),
)
def identity_pretraining_helps(trial: Trial, data: FaceWorld) -> dict[str, float]:
    s = trial.setup
    crops = _crops(data, s, _seeds_of(trial), trial.device)
    if trial.arm == "pixels":
        return _judge_attributes(trial, crops, lambda patches: patches.flatten(1))
    pretrained = trial.arm.startswith("identity")
    with trial.stream("init"):
        anet = _anet(s, data, int(crops.ids.max()) + 1).to(trial.device)
    if pretrained:
        pretrain_identities(
            anet, crops.people[:, 0], crops.ids, epochs=s.id_epochs[0], similarity_epochs=s.id_epochs[1],
            generator=trial.generator("method"), callbacks=[trial.progress],
        )  # fmt: skip
    found = {}
    if trial.arm in ("scratch", "identity_tags"):
        with trial.stream("head"):
            anet.replace_head(data.tags)
        found = _tuned_on_tags(trial, anet, crops)
        if trial.tuning:
            return found
    features = _features(anet)
    if trial.arm == "identity_tags":
        _explain(trial, crops, features)
    test, tags = crops.tests["test"]
    both = binarized_accuracy(features(crops.tagged), crops.tags, features(test), tags, AttributeSVM(C=1e-2))
    return found | {"binary": both["binary"]} | _judge_attributes(trial, crops, features)


def _features(anet: ANet) -> Callable[[Tensor], Tensor]:
    return lambda patches: anet.extract(patches.flatten(0, 1)).unflatten(0, patches.shape[:2]).flatten(1)


def _tuned_on_tags(trial: Trial, anet: ANet, crops: _Crops) -> dict[str, float]:
    """Fine-tunes on the tagged crops; in a tuning run on four fifths of them, judged on the last fifth."""
    s, cut = trial.setup, len(crops.tagged) * 4 // 5 if trial.tuning else len(crops.tagged)
    train_tags(
        anet, (crops.tagged[:cut, 0], crops.tags[:cut]), epochs=s.epochs, lr=trial.tuned.lr or 1e-3,
        batch_size=s.batch, generator=trial.generator("order"), flips=trial.generator("flips"),
        callbacks=[trial.progress],
    )  # fmt: skip
    if not trial.tuning:
        return {}
    svm = AttributeSVM(C=1e-2).fit(_features(anet)(crops.tagged[:cut]), crops.tags[:cut])
    each = balanced_accuracy_per_attribute(svm.predict(_features(anet)(crops.tagged[cut:])), crops.tags[cut:])
    return {"val_balanced_accuracy": float(np.nanmean(each))}


def _explain(trial: Trial, crops: _Crops, features: Callable[[Tensor], Tensor]) -> None:
    """Attributes as sparse combinations of neurons: the figure."""
    x, (test, tags) = features(crops.tagged), crops.tests["test"]
    lines = {
        str(k): sparse_combinations(x, crops.tags[:, k], features(test), tags[:, k])
        for k in range(4)
        if 0 < crops.tags[:, k].sum() < len(crops.tags)
    }
    trial.figure("sparse_combinations", plot_sparse_combinations(lines))


@PAPER.claim(
    "Filters shared within the parts of a face beat filters shared over all of it, at equal size of the third layer",
    arms=("local", "global_wide", "global"),
    expect=[
        higher("local", than="global_wide", metric="balanced_accuracy"),
        shown("global", higher("local", than="global", metric="balanced_accuracy")),
    ],
    setup=_ATTRIBUTES,
    data=WORLDS,
    tune={"lr": [1e-3, 4e-3]},
    tune_by="val_balanced_accuracy",
    tune_seeds=1,
    seeds={"smoke": 1, "small": 4, "medium": 8, "full": 3},
    timeout=86_400,
    reported="locally shared filters are a design choice of the paper, which prints no comparison without them",
    notes=(
        "`global_wide` widens C3 until it has the parameters of the nine banks; its larger output makes its fully "
        "connected layer larger, too. `global` has C3's width and a ninth of its parameters. Crops and SVMs are those "
        "of `identity_pretraining_helps`, without pre-training."
    ),
)
def local_sharing_helps(trial: Trial, data: FaceWorld) -> dict[str, float]:
    s = trial.setup
    crops = _crops(data, s, _seeds_of(trial), trial.device)
    with trial.stream("init"):
        anet = _anet(s, data, data.tags, local=trial.arm == "local", wide=trial.arm == "global_wide").to(trial.device)
    found = _tuned_on_tags(trial, anet, crops)
    if trial.tuning:
        return found
    sizes = {
        "c3_parameters": float(sum(p.numel() for p in anet.conv3.parameters())),
        "parameters": float(sum(p.numel() for p in anet.parameters())),
    }
    return sizes | _judge_attributes(trial, crops, _features(anet))


@lru_cache(maxsize=1)
def drawn_people() -> ImageData:
    """40 drawn people as classes, ten aligned portraits each with lighting, blur and bars: 6 train, 2 val, 2 test."""
    world, generator = FaceScenes(nuisance=1.0), torch.Generator().manual_seed(0)
    faces = world.scenes(world.people(40, generator), 10, generator)
    assert faces.boxes is not None
    assert faces.identities is not None
    crops, number = crop_and_resize(faces.images, faces.boxes, 24), torch.arange(10).repeat(40)

    def part(start: int, stop: int) -> Examples:
        rows = (number >= start) & (number < stop)
        return Examples(crops[rows], faces.identities[rows])  # type: ignore[index]

    return ImageData(part(0, 6), part(6, 8), part(8, 10), tuple(f"person {k}" for k in range(40)), "drawn_people")


@PAPER.claim(
    "On aligned images filters of the parts recognise classes better than filters shared over the whole image",
    arms=("local", "global_wide", "global"),
    expect=[
        higher("local", than="global_wide", metric="accuracy"),
        shown("global", higher("local", than="global", metric="accuracy")),
    ],
    setup={
        "smoke": Setup(size=24, widths=[4, 4, 4], feature_dim=16, epochs=1, batch=40, train=80),
        "small": Setup(size=24, widths=[20, 32, 40], feature_dim=96, epochs=12, batch=40, train=None),
        "full": Setup(size=48, widths=[20, 32, 40], feature_dim=160, epochs=60, batch=40, train=None),
    },
    data={"drawn_people": drawn_people, "lfw_faces": lfw_faces, "orl_faces": Source(orl_faces, ("small", "full"))},
    tune={"lr": [1e-3, 4e-3]},
    tune_by="val_accuracy",
    tune_seeds=1,
    seeds={"smoke": 1, "small": 5, "full": 8},
    notes=(
        "The comparison of `local_sharing_helps` where boxes are given: who is it (40 drawn people; 40 real ones, "
        "ORL), is it a face (LFW's, bundled with scikit-image). It is also what a user's own aligned images are asked."
    ),
    helps=higher("local", than="global_wide", metric="accuracy"),
)
def parts_of_aligned_images(trial: Trial, data: ImageData) -> dict[str, float]:
    s = trial.setup

    def scaled(split: Any) -> Examples:
        if not isinstance(split, Examples):
            split = Examples(*map(torch.stack, zip(*(split[row] for row in range(len(split))))))  # type: ignore
        return Examples(F.interpolate(split.inputs, size=(s.size, s.size), mode="area"), split.targets)

    with trial.stream("init"):
        width = s.widths[2] * (9 if trial.arm == "global_wide" else 1)
        anet = ANet(
            data.num_classes, local=trial.arm == "local", in_channels=data.channels, size=s.size,
            widths=[*s.widths[:2], width], feature_dim=s.feature_dim, shared_pools=1,
        ).to(trial.device)  # fmt: skip
    train = scaled(data.train)
    train = train if s.train is None else train.take(min(s.train, len(train)))
    batch = min(s.batch, len(train))
    optimizer = torch.optim.AdamW(anet.parameters(), lr=trial.tuned.lr, weight_decay=1e-4)
    steps = s.epochs * (len(train) // batch)
    fit(
        anet, train, optimizer, steps=steps, batch_size=batch, schedule=cosine_schedule(optimizer, steps, steps // 5),
        generator=trial.generator("order"), callbacks=[trial.progress],
    )  # fmt: skip
    found = {"val_accuracy": accuracy(anet, scaled(data.val))}
    return found if trial.tuning else found | {"accuracy": accuracy(anet, scaled(data.test))}


@PAPER.claim(
    "Interweaving gives the features of every window exactly, with less work where windows overlap",
    arms=("one_by_one_1", "interwoven_1", "one_by_one_4", "interwoven_4"),
    expect=[
        identity("interwoven_1", metric="deviation", value=0.0, tolerance=1e-9),
        lower("interwoven_1", than="one_by_one_1", metric="positions"),
        shown("one_by_one_4", lower("one_by_one_4", than="interwoven_4", metric="positions")),
    ],
    setup={
        "smoke": Setup(image=48, windows=12),
        "small": Setup(image=48, windows=400),
        "full": Setup(image=192, windows=2000),
    },
    seeds=3,
    reported="dense evaluation with locally shared filters by interweaving the maps of its filters (section on ANet)",
    notes=(
        "Windows of 12 x 12 pixels of C2's map, cells of 4 x 4. `deviation` is the largest difference, in float64, "
        "from windows computed by themselves. `positions` counts outputs of C3, each of equally many multiply-adds. At "
        "a stride of a whole cell nothing is gained, and `InterweavedExtractor` takes the windows one by one."
    ),
)
def interweaving_is_exact(trial: Trial) -> dict[str, float]:
    s, (method, stride) = trial.setup, trial.arm.rsplit("_", 1)
    with trial.stream("init"):
        anet = ANet(4, in_channels=1, size=24, widths=(4, 6, 8), feature_dim=16, shared_pools=1).double().eval()
    image = torch.rand(1, 1, s.image, s.image, generator=trial.generator("data"), dtype=torch.float64)
    found = InterweavedExtractor(anet, int(stride), method=method)(image)[0].flatten(0, 1)  # type: ignore[arg-type]
    alone = InterweavedExtractor(anet, int(stride), method="one_by_one")(image)[0].flatten(0, 1)
    counted = InterweavedExtractor(anet, int(stride)).positions(s.image, s.image)
    rows = slice(0, s.windows)
    return {
        "deviation": (found[rows] - alone[rows]).abs().max().item(),
        "positions": float(counted["interwoven" if method == "interwoven" else "one_by_one"]),
    }
