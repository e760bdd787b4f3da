"""Concepts, each a yes/no question with where it comes from, and the bottleneck that they form."""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

__all__ = ["Bottleneck", "Concept", "GenerationReport"]


@dataclass(frozen=True)
class Concept:
    """A yes/no question about an image.

    Args:
        question: ends with a question mark; it is the concept's name wherever concepts are matched.
        document: id of the document it was read in; empty if nobody knows.
        sentence: the sentence there that bears it.
        query: what was searched for when it was found.
    """

    question: str
    document: str = ""
    sentence: str = ""
    query: str = ""

    def __post_init__(self):
        if not self.question.strip():
            raise ValueError("a concept needs a question, got an empty one")


@dataclass(frozen=True)
class GenerationReport:
    """What went on while a bottleneck was generated.

    Args:
        rounds: queries asked.
        proposed: well-formed lines of the language model.
        dropped_lines: lines that were not `question | document id | reference sentence` of a document at hand.
        rejected: gate -> questions that it turned away.
    """

    rounds: int = 0
    proposed: int = 0
    dropped_lines: int = 0
    rejected: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Bottleneck:
    """Concepts in their order.

    Args:
        concepts: with distinct questions, at least one.
        name: what the bottleneck is called.
        report: how it was generated, if it was.
        duplicates: questions left out when a list was read because they had occurred before.

    Raises:
        ValueError: for no concepts or a question that occurs twice.
    """

    concepts: tuple[Concept, ...]
    name: str = "bottleneck"
    report: GenerationReport | None = None
    duplicates: tuple[str, ...] = ()

    def __post_init__(self):
        if not self.concepts:
            raise ValueError("a bottleneck needs at least one concept")
        seen: set[str] = set()
        for concept in self.concepts:
            if concept.question in seen:
                raise ValueError(f"the question {concept.question!r} occurs twice")
            seen.add(concept.question)

    def __len__(self) -> int:
        return len(self.concepts)

    def __iter__(self) -> Iterator[Concept]:
        return iter(self.concepts)

    @property
    def questions(self) -> tuple[str, ...]:
        return tuple(concept.question for concept in self.concepts)

    def __getitem__(self, question: str) -> Concept:
        for concept in self.concepts:
            if concept.question == question:
                return concept
        raise KeyError(f"no concept {question!r}")

    @classmethod
    def from_questions(cls, questions: str | os.PathLike | Iterable[str], name: str = "") -> "Bottleneck":
        """Questions, or the path of a text file with one a line (the official layout).

        A question that occurs again is kept once; `duplicates` lists the others. (Two of the official lists repeat
        questions: skin_prompt.txt has 154 distinct ones in 200 lines.)
        """
        if isinstance(questions, str | os.PathLike):
            path = Path(questions)
            if not path.is_file():
                raise FileNotFoundError(f"no list of questions at {path}: expected a text file, one question a line")
            name, questions = name or path.stem, path.read_text(encoding="utf-8").splitlines()
        cleaned = [line.strip() for line in questions if line.strip()]
        distinct = tuple(dict.fromkeys(cleaned))
        repeated, seen = [], set()
        for question in cleaned:
            if question in seen:
                repeated.append(question)
            seen.add(question)
        return cls(tuple(Concept(question) for question in distinct), name or "bottleneck", duplicates=tuple(repeated))

    def save(self, path: str | os.PathLike) -> None:
        """As JSON, with provenance and the report."""
        Path(path).write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Bottleneck":
        """What `save` wrote."""
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            concepts = tuple(Concept(**row) for row in values["concepts"])
            report = None if values["report"] is None else GenerationReport(**values["report"])
            return cls(concepts, values["name"], report, tuple(values["duplicates"]))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no bottleneck that was saved: {error}") from error
