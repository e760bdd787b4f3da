"""The parameter prior: what a knowledge source says of each class and concept, and the pull towards it (section 3.3).

With P in {-1, 0, +1}^{K x M} (no, unknown, yes for class k and concept m) and the weights W of the linear layer,

    L_prior(W) = 1/(K M) sum_km | tanh(W_km) - P_km |                                                            (1)

is added to the cross-entropy, times lambda. Zeros of P count: they pull their weight to zero. The bias is free.
"""

import difflib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from etude.science.knobo.language import ANSWERS, LanguageModel, answer_of, prior_prompt

__all__ = ["KnowledgePrior", "prior_loss"]


def prior_loss(weight: Float[Tensor, "classes concepts"], prior: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """Eq. (1).

    Raises:
        ValueError: if the shapes differ; a transposed prior is named as such.
    """
    if weight.shape != prior.shape:
        hint = "; it is transposed" if weight.shape == prior.shape[::-1] else ""
        raise ValueError(
            f"the prior must have the weights' shape {tuple(weight.shape)}, got {tuple(prior.shape)}{hint}"
        )
    return (torch.tanh(weight) - prior).abs().mean()


@dataclass(frozen=True, eq=False)
class KnowledgePrior:
    """P with the names of its rows and columns, by which it is matched to a classifier.

    Args:
        values: float32 (classes, concepts), entries -1, 0 or 1.
        classes: names of the rows. questions: names of the columns.

    Raises:
        ValueError: for other entries, another shape, or a name that occurs twice.
    """

    values: Tensor
    classes: tuple[str, ...]
    questions: tuple[str, ...]

    def __post_init__(self):
        shape = (len(self.classes), len(self.questions))
        if self.values.dtype != torch.float32 or self.values.shape != shape:
            hint = "; it is transposed" if self.values.shape == shape[::-1] else ""
            raise ValueError(
                f"values must be float32 of shape (classes, concepts) = {shape}, "
                f"got {self.values.dtype} of shape {tuple(self.values.shape)}{hint}"
            )
        strange = sorted(set(self.values.unique().tolist()) - {-1.0, 0.0, 1.0})
        if strange:
            raise ValueError(f"entries of a prior are -1, 0 or 1, got {strange[:3]}")
        for what, names in (("class", self.classes), ("question", self.questions)):
            if len(set(names)) < len(names):
                raise ValueError(
                    f"a {what} occurs twice in the prior: {next(n for n in names if names.count(n) > 1)!r}"
                )

    @classmethod
    def from_answers(
        cls,
        answers: str | os.PathLike | Mapping[str, Mapping[str, str]],
        classes: Sequence[str],
        questions: Sequence[str],
    ) -> "KnowledgePrior":
        """From class -> question -> "yes", "no" or "unknown": a mapping or the path of a JSON file (official layout).

        Class names are matched as they are spelled there ("maliganant" is one of the official file's).

        Raises:
            ValueError: naming the class or the question that is missing, or an answer that is none of the three.
        """
        if isinstance(answers, str | os.PathLike):
            path = Path(answers)
            if not path.is_file():
                raise FileNotFoundError(f"no prior at {path}: expected JSON of class -> question -> yes, no or unknown")
            table = json.loads(path.read_text(encoding="utf-8"))
        else:
            table = answers
        rows = []
        for name in classes:
            if name not in table:
                near = difflib.get_close_matches(name, table, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(map(repr, table))}"
                raise ValueError(f"the prior has no class {name!r}: {hint}")
            absent = [question for question in questions if question not in table[name]]
            if absent:
                raise ValueError(f"the prior of {name!r} lacks {len(absent)} of the concepts, first {absent[0]!r}")
            given = [table[name][question] for question in questions]
            strange = [answer for answer in given if answer not in ANSWERS]
            if strange:
                raise ValueError(f"the prior of {name!r} must answer yes, no or unknown, got {strange[0]!r}")
            rows.append([ANSWERS[answer] for answer in given])
        values = torch.tensor(rows, dtype=torch.float32).reshape(len(classes), len(questions))
        return cls(values, tuple(classes), tuple(questions))

    @classmethod
    def from_model(
        cls, model: LanguageModel, classes: Sequence[str], questions: Sequence[str], *, modality: str
    ) -> "KnowledgePrior":
        """Asks a language model for every class and concept; an answer that is none of the three is unknown."""
        table = {
            name: {q: answer_of(model(prior_prompt(modality, name, q))) or "unknown" for q in questions}
            for name in classes
        }
        return cls.from_answers(table, classes, questions)

    def aligned(self, classes: Sequence[str], questions: Sequence[str]) -> Float[Tensor, "classes concepts"]:
        """P with rows and columns in the order of these names.

        Raises:
            ValueError: if the prior lacks a class or a concept.
        """
        for what, wanted, had in (("class", classes, self.classes), ("concept", questions, self.questions)):
            absent = [name for name in wanted if name not in had]
            if absent:
                near = difflib.get_close_matches(str(absent[0]), had, n=1)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                raise ValueError(f"the prior lacks {len(absent)} of the {what} names, first {absent[0]!r}{hint}")
        rows = [self.classes.index(name) for name in classes]
        columns = [self.questions.index(question) for question in questions]
        return self.values[rows][:, columns]

    def extended(self, questions: Sequence[str]) -> "KnowledgePrior":
        """With further concepts of which nothing is known (zeros)."""
        zeros = torch.zeros(len(self.classes), len(questions))
        return KnowledgePrior(
            torch.cat([self.values, zeros], dim=1), self.classes, (*self.questions, *questions)
        )  # fmt: skip

    def random_signs(self, generator: torch.Generator) -> "KnowledgePrior":
        """A control: each concept's column times a random sign, so that zeros and contrasts between classes stay."""
        signs = torch.randint(0, 2, (len(self.questions),), generator=generator) * 2.0 - 1
        return KnowledgePrior(self.values * signs, self.classes, self.questions)

    def shuffled(self, generator: torch.Generator) -> "KnowledgePrior":
        """A control: the columns dealt to other concepts."""
        order = torch.randperm(len(self.questions), generator=generator)
        return KnowledgePrior(self.values[:, order], self.classes, self.questions)
