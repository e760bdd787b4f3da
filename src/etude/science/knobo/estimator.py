"""The whole of KnoBo on images, reports and labels: concepts, encoder, grounding, prior and classifier in one."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from etude.science.knobo.annotation import Annotator, annotate_reports
from etude.science.knobo.classifier import Explanation, KnoBoClassifier
from etude.science.knobo.concepts import Bottleneck
from etude.science.knobo.encoders import ContrastivePretrainer, ConvEncoder, TextEncoder, encode_images
from etude.science.knobo.gates import standard_gates
from etude.science.knobo.generation import generate_bottleneck
from etude.science.knobo.grounding import GroundingFunctions
from etude.science.knobo.language import LanguageModel
from etude.science.knobo.prior import KnowledgePrior
from etude.science.knobo.retrieval import BM25Retriever, Corpus, Retriever
from etude.science.knobo.rules import RuleBasedModel

__all__ = ["KnoBo"]


class KnoBo:
    """A classifier that sees images only through concepts read in a knowledge source.

        data = image_reports("clinic", "clinic/reports.csv", size=64)       # etude.data.knobo
        told, train, test = (data.parts()[part] for part in ("annotated", "train", "test"))
        knowledge = Corpus.from_jsonl("textbook.jsonl")
        model = KnoBo(knowledge, modality="skin lesion photograph", model=ask)   # ask: prompt -> text
        model.fit(train.images, train.labels, annotated=(told.images, told.reports))
        print(model.score(test.images, test.labels), model.explain(test.images[:1])[0])

    `annotated` are images with reports of another source than the task's: concepts that are learned on the task's own
    images take over what goes with the label there.

    Args:
        knowledge: documents for concepts and prior; not needed if `bottleneck` and `prior` are given.
        modality: what the pictures are. subject: what is looked at in them.
        model: any callable from prompt to text; rules over `knowledge` if None. They know few words: on real
            documents use a language model.
        annotator: reads the reports; negation-aware phrases if None.
        retriever: finds documents; BM25 over `knowledge` if None.
        encoder: images -> (n, dim), frozen; if None a small one is trained on the annotated pairs.
        bottleneck, prior: to use instead of generated ones. The prior's class names are the labels as texts.
        class_names: label -> its name in documents and prior, where they differ.
        use_prior: whether the prior of `knowledge` is asked for and used.
        num_concepts: to look for. number_of_features: kept after grounding.
        prior_weight, lr, epochs: of the classifier.
        pretrain_epochs: of the small encoder.
        min_val: images of the rarer answer a concept needs for validation; lower it for fewer than 100 a side.
        seed: of everything drawn.

    Attributes:
        bottleneck_, grounding_, prior_, encoder_, classifier_: the parts; `bottleneck_.report` tells what the gates
            turned away, `grounding_.skipped_` which concepts had too few reports.
    """

    def __init__(
        self,
        knowledge: Corpus | None = None,
        *,
        modality: str,
        subject: str = "lesion",
        model: LanguageModel | None = None,
        annotator: Annotator | None = None,
        retriever: Retriever | None = None,
        encoder: nn.Module | None = None,
        bottleneck: Bottleneck | None = None,
        prior: KnowledgePrior | None = None,
        class_names: Mapping[Any, str] | None = None,
        use_prior: bool = True,
        num_concepts: int = 200,
        number_of_features: int = 150,
        prior_weight: float | int = 1.0,
        lr: float | int = 1e-3,
        epochs: int = 200,
        pretrain_epochs: int = 8,
        min_val: int = 10,
        seed: int = 0,
    ):
        if knowledge is None and bottleneck is None and retriever is None:
            raise ValueError("give a corpus as knowledge, or a bottleneck, or a retriever")
        self.knowledge, self.modality, self.subject = knowledge, modality, subject
        self.model, self.annotator, self.retriever, self.encoder = model, annotator, retriever, encoder
        self.bottleneck, self.prior, self.class_names, self.use_prior = bottleneck, prior, class_names, use_prior
        self.num_concepts, self.number_of_features, self.min_val = num_concepts, number_of_features, min_val
        self.prior_weight, self.lr, self.epochs, self.pretrain_epochs = prior_weight, lr, epochs, pretrain_epochs
        self.seed = seed

    def fit(
        self,
        images: Float[Tensor, "n channels height width"],
        labels: Sequence[Any] | np.ndarray | Tensor,
        *,
        annotated: tuple[Any, Sequence[str]],
        validation: tuple[Any, Any] | None = None,
    ) -> "KnoBo":
        """Reads concepts, grounds them on the annotated images and trains the linear layer on the task's.

        Args:
            images, labels: of the task.
            annotated: other images, and the report of each.
            validation: images and labels of the task's domain; a fifth is held out if None.
        """
        pictures, reports = annotated
        if len(pictures) != len(reports):
            raise ValueError(
                f"annotated images and reports must be equally many, got {len(pictures)} and {len(reports)}"
            )
        told = [row for row, report in enumerate(reports) if str(report).strip()]
        if not told:
            raise ValueError("no annotated image has a report")
        pictures, texts = pictures[torch.tensor(told)], [reports[row] for row in told]
        names = {label: str(label) for label in np.unique(np.asarray(labels)).tolist()} | dict(self.class_names or {})
        model = RuleBasedModel(self.knowledge) if self.model is None else self.model
        self.bottleneck_ = self.bottleneck or self._generated(model, list(names.values()), texts)
        self.encoder_ = self._encoder(pictures, texts)
        answers = annotate_reports(texts, self.bottleneck_, self.annotator)
        self.grounding_ = GroundingFunctions(
            number_of_features=self.number_of_features, min_val=self.min_val, seed=self.seed
        )
        self.grounding_.fit(encode_images(self.encoder_, pictures), answers, self.bottleneck_)
        self.prior_ = self.prior
        if self.prior_ is None and self.use_prior:
            questions = self.grounding_.questions_
            self.prior_ = KnowledgePrior.from_model(model, list(names.values()), questions, modality=self.modality)
        self.classifier_ = KnoBoClassifier(
            self.bottleneck_, self.grounding_, self.prior_, prior_weight=self.prior_weight, lr=self.lr,
            epochs=self.epochs, seed=self.seed, class_names=names,
        )  # fmt: skip
        held = None if validation is None else (encode_images(self.encoder_, validation[0]), validation[1])
        self.classifier_.fit(encode_images(self.encoder_, images), labels, validation=held)
        self.classes_ = self.classifier_.classes_
        return self

    def _generated(self, model: LanguageModel, classes: list[str], reports: Sequence[str]) -> Bottleneck:
        retriever = self.retriever
        if retriever is None:
            assert self.knowledge is not None
            retriever = BM25Retriever(self.knowledge)
        # The gate asks a hundred reports, evenly spread.
        sample = [reports[i] for i in np.linspace(0, len(reports) - 1, min(100, len(reports))).astype(int)]
        gates = standard_gates(model, classes, sample, modality=self.modality, annotator=self.annotator)
        return generate_bottleneck(
            classes, retriever, model, gates, modality=self.modality, subject=self.subject,
            num_concepts=self.num_concepts,
        )  # fmt: skip

    def _encoder(self, images: Tensor, reports: Sequence[str]) -> nn.Module:
        if self.encoder is not None:
            return copy.deepcopy(self.encoder).eval()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            clip = ContrastivePretrainer(ConvEncoder(channels=images.shape[1]), TextEncoder(reports))
        clip.fit(images, reports, epochs=self.pretrain_epochs, generator=torch.Generator().manual_seed(self.seed))
        return clip.image_encoder.eval()

    def _scored(self, images: Tensor) -> tuple[KnoBoClassifier, Tensor]:
        if not hasattr(self, "classifier_"):
            raise RuntimeError("call fit before using this KnoBo")
        return self.classifier_, encode_images(self.encoder_, images)

    def predict_proba(self, images: Float[Tensor, "n channels height width"]) -> np.ndarray:
        classifier, features = self._scored(images)
        return classifier.predict_proba(features)

    def predict(self, images: Float[Tensor, "n channels height width"]) -> np.ndarray:
        classifier, features = self._scored(images)
        return classifier.predict(features)

    def score(self, images: Float[Tensor, "n channels height width"], labels: Any) -> float:
        """Accuracy."""
        return float((self.predict(images) == np.asarray(labels)).mean())

    def explain(self, images: Float[Tensor, "n channels height width"], top: int = 10) -> list[Explanation]:
        """Why each image got its class; see `KnoBoClassifier.explain`."""
        classifier, features = self._scored(images)
        return classifier.explain(features, top)
