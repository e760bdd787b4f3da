"""Drawn lesions as a study: the parts of the confounded protocol, and what every classifier on them shares."""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from etude.science.knobo.annotation import annotate_reports
from etude.science.knobo.baselines import random_grounding
from etude.science.knobo.concepts import Bottleneck
from etude.science.knobo.encoders import ContrastivePretrainer, ConvEncoder, TextEncoder, encode_images
from etude.science.knobo.gates import Gate, standard_gates
from etude.science.knobo.generation import generate_bottleneck, prompted_bottleneck
from etude.science.knobo.grounding import GroundingFunctions
from etude.science.knobo.lesions import CLASSES, FINDINGS, LesionScenes, Scenes
from etude.science.knobo.prior import KnowledgePrior
from etude.science.knobo.retrieval import BM25Retriever
from etude.science.knobo.rules import RuleBasedModel
from etude.science.knobo.text import asked
from etude.science.knobo.textbook import textbook

__all__ = ["LEAKS", "MODALITY", "STREAMS", "LesionStudy", "write_drawn_study"]

MODALITY = "skin lesion photograph"
LEAKS = ("Is the frame of the picture dark?", "Does the picture have a warm tint?")
PARTS = ("annotated", "train", "val", "id", "ood")
STREAMS = (*(f"data-{part}" for part in PARTS), "init", "order", "grounding", "irrelevant", "control")
"""What a study draws, each from a seed of its own."""


class LesionStudy:
    """Images of five parts (annotated with reports and unconfounded; train, val and id; ood, where the agreement of
    hospital and label is reversed), and what is made of them when it is first asked for.

    Args:
        seeds: a number for each of `STREAMS`.
        size: side of the images. annotated, train, val, test: images of the parts; id and ood have `test` each.
        agreement: share of hospitals that equal the label in train, val and id; 1 - agreement in ood.
        width: of the encoder. pretrain: its epochs. min_val: of the grounding functions.
    """

    def __init__(
        self,
        seeds: Mapping[str, int],
        *,
        size: int = 32,
        annotated: int = 3_000,
        train: int = 800,
        val: int = 200,
        test: int = 500,
        agreement: float | int = 1.0,
        width: int = 16,
        pretrain: int = 8,
        min_val: int = 10,
    ):
        self.seeds, self.width, self.pretrain, self.min_val = dict(seeds), width, pretrain, min_val
        absent = [name for name in STREAMS if name not in self.seeds]
        if absent:
            raise ValueError(f"seeds must have a number for each of {', '.join(STREAMS)}; {absent[0]!r} is missing")
        scenes = LesionScenes(size)
        sizes = dict(zip(PARTS, (annotated, train, val, test, test)))
        rates = {"annotated": 0.5, "ood": 1 - agreement}
        # In parts, so that no part's draws depend on another's size.
        self.parts: dict[str, Scenes] = {
            part: scenes.draw(
                n, rates.get(part, agreement), self.generator(f"data-{part}"), reports=part == "annotated"
            )
            for part, n in sizes.items()
        }
        self.knowledge = textbook()
        self.model = RuleBasedModel(self.knowledge)

    def generator(self, name: str) -> torch.Generator:
        return torch.Generator().manual_seed(self.seeds[name])

    @cached_property
    def clip(self) -> ContrastivePretrainer:
        part = self.parts["annotated"]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seeds["init"])
            clip = ContrastivePretrainer(ConvEncoder(width=self.width), TextEncoder(part.reports))
        clip.fit(part.images, part.reports, epochs=self.pretrain, generator=self.generator("order"))
        return clip

    @cached_property
    def features(self) -> dict[str, Tensor]:
        return {part: encode_images(self.clip.image_encoder, scene.images) for part, scene in self.parts.items()}

    def _gates(self) -> tuple[Gate, ...]:
        return standard_gates(self.model, CLASSES, self.parts["annotated"].reports[:100], modality=MODALITY)

    @cached_property
    def bottleneck(self) -> Bottleneck:
        retriever = BM25Retriever(self.knowledge)
        return generate_bottleneck(CLASSES, retriever, self.model, self._gates(), modality=MODALITY)

    @cached_property
    def prompted(self) -> Bottleneck:
        return prompted_bottleneck(CLASSES, self.model, self._gates(), modality=MODALITY)

    def ground(self, bottleneck: Bottleneck) -> GroundingFunctions:
        answers = annotate_reports(self.parts["annotated"].reports, bottleneck)
        functions = GroundingFunctions(min_val=self.min_val, seed=self.seeds["grounding"] % 2**31)
        return functions.fit(self.features["annotated"], answers, bottleneck)

    @cached_property
    def grounding(self) -> GroundingFunctions:
        return self.ground(self.bottleneck)

    @cached_property
    def leaking(self) -> GroundingFunctions:
        """Beside the textbook's concepts two that read off the hospital and ten learned on random labels."""
        flag = self.parts["annotated"].hospital.numpy() * 2 - 1
        table = np.stack([flag] * len(LEAKS), axis=1)
        functions = GroundingFunctions(min_val=self.min_val, seed=self.seeds["grounding"] % 2**31)
        leaks = functions.fit(self.features["annotated"], table, LEAKS)
        return self.grounding.joined(leaks).joined(self.random(10, "irrelevant"))

    def random(self, count: int, name: str) -> GroundingFunctions:
        draws = self.generator(name)
        return random_grounding(self.features["annotated"], count, draws, min_val=self.min_val)

    @cached_property
    def prior(self) -> KnowledgePrior:
        return KnowledgePrior.from_model(self.model, CLASSES, self.bottleneck.questions, modality=MODALITY)

    def concept_accuracy(self, grounding: GroundingFunctions) -> dict[str, float]:
        """Of each concept that is one of the findings, on unseen images."""
        told = {frozenset(asked(finding)): k for k, finding in enumerate(FINDINGS)}
        scores = grounding.transform(self.features["id"]) > 0.5
        truth = self.parts["id"].concepts
        return {
            question: (scores[:, column] == truth[:, told[key]]).double().mean().item()
            for column, question in enumerate(grounding.questions_)
            if (key := frozenset(asked(question))) in told
        }


def write_drawn_study(root: Path, *, annotated: int = 300, task: int = 60, seed: int = 0) -> dict[str, dict[str, str]]:
    """Writes drawn lesions in the layout of the authors' `data` folder and gives the answers of their prior.

    `root/features/whylesionclip/drawn` and `root/datasets/ISIC` then hold what the readers of `etude.data.knobo`
    expect of a real set; the features are pixels averaged over blocks of four.

    Args:
        root: an existing folder. annotated, task: images with reports, and of each of train, val and test.
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    scenes = LesionScenes(16)
    told = scenes.draw(annotated, 0.5, generator, reports=True)
    questions = [f"Does the lesion show {finding}?" for finding in FINDINGS]
    answers = annotate_reports(told.reports, questions)
    model = root / "features" / "whylesionclip"
    model.mkdir(parents=True)
    torch.save({name: k for k, name in enumerate(CLASSES)}, model / "drawn_label.pt")
    for part, rho in (("train", 1.0), ("val", 1.0), ("test", 0.0)):
        scene = scenes.draw(task, rho, generator)
        for k, name in enumerate(CLASSES):
            place = model / "drawn" / part / name
            place.mkdir(parents=True)
            torch.save(_pooled(scene)[scene.labels == k].numpy(), place / "1.pt")
    base = root / "datasets" / "ISIC"
    base.mkdir(parents=True)
    torch.save({f"{n}.jpg": row.clone() for n, row in enumerate(_pooled(told))}, base / "ISIC_whylesionclip.pt")
    sides = {"positive": 1, "negative": -1}
    table = {
        question: {side: np.flatnonzero(answers[:, k] == value).astype(str).tolist() for side, value in sides.items()}
        for k, question in enumerate(questions)
    }
    reports = {str(n): {"images": [f"{n}.jpg"]} for n in range(annotated)}
    (base / "ISIC_metadata.json").write_text(json.dumps(reports), encoding="utf-8")
    (base / "ISIC_concept_annotations.json").write_text(json.dumps(table), encoding="utf-8")
    prior = KnowledgePrior.from_model(RuleBasedModel(textbook()), CLASSES, questions, modality=MODALITY)
    words = {1.0: "yes", -1.0: "no", 0.0: "unknown"}
    return {name: dict(zip(questions, map(words.get, row))) for name, row in zip(CLASSES, prior.values.tolist())}  # type: ignore[misc, arg-type]


def _pooled(part: Scenes) -> Tensor:
    return F.avg_pool2d(part.images, 4).flatten(1)
