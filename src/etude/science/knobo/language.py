"""What a language model is asked, as text, and how its answers are read.

A language model is any callable from a prompt to an answer; `rules.RuleBasedModel` is the offline one. Prompts have
a fixed layout: a task, named fields a line each, then the instruction.
"""

import re
from collections.abc import Callable, Sequence

from etude.science.knobo.concepts import Concept
from etude.science.knobo.retrieval import Document

__all__ = [
    "ANSWERS",
    "LanguageModel",
    "answer_of",
    "parse_concepts",
    "prior_prompt",
    "propose_prompt",
    "report_prompt",
    "unique_prompt",
    "visual_prompt",
]

LanguageModel = Callable[[str], str]
ANSWERS = {"yes": 1, "no": -1, "unknown": 0}


def propose_prompt(modality: str, subject: str, query: str, documents: Sequence[Document]) -> str:
    """Asks for concepts that the documents bear; without documents, for what the model knows of the query."""
    listed = "\n".join(f"[{document.id}] {' '.join(document.text.split())}" for document in documents)
    return (
        f"Task: propose concepts\nModality: {modality}\nSubject: {subject}\nQuery: {query}\n"
        f"Documents:\n{listed or '(none: use what you know)'}\n\n"
        f"Which visual findings help to tell whether a {modality} shows {query}? Write one line for each, as\n"
        "question | document id | reference sentence\n"
        f"A question is about one finding of the {subject}, is answered yes or no by looking at the picture, and names "
        "no diagnosis. Quote the sentence word for word. Without documents write - for the id and the sentence."
    )


def visual_prompt(modality: str, question: str) -> str:
    return (
        f"Task: visual check\nModality: {modality}\nQuestion: {question}\n\n"
        f"Can this be answered by looking at a {modality} alone? Answer yes or no."
    )


def unique_prompt(question: str, accepted: Sequence[str]) -> str:
    listed = "\n".join(f"- {other}" for other in accepted)
    return (
        f"Task: uniqueness check\nQuestion: {question}\nAccepted:\n{listed}\n\n"
        "Does the question ask about a finding that none of the accepted questions asks about? Answer yes or no."
    )


def report_prompt(report: str, question: str) -> str:
    return (
        f"Task: read report\nReport: {' '.join(report.split())}\nQuestion: {question}\n\n"
        "Answer the question from the report alone: yes, no, or unknown if it is not mentioned."
    )


def prior_prompt(modality: str, diagnosis: str, question: str) -> str:
    return (
        f"Task: relate diagnosis\nModality: {modality}\nDiagnosis: {diagnosis}\nQuestion: {question}\n\n"
        f"For a typical {modality} of this diagnosis, is the answer yes, no or unknown?"
    )


def answer_of(text: str) -> str | None:
    """The first of yes, no, unknown that an answer begins with; None if it begins with something else."""
    found = re.match(r"\W*(yes|no|unknown)\b", text.lower())
    return found.group(1) if found else None


def parse_concepts(text: str, documents: Sequence[Document], query: str = "") -> tuple[list[Concept], int]:
    """Concepts of an answer to `propose_prompt`, and how many lines were dropped.

    A line counts if it is `question | document id | reference sentence`, the question ends with a question mark and
    the document is one of those given (without documents: if the id is -). Bullets and numbering before the question
    are taken off; blank lines do not count.
    """
    known = {document.id for document in documents}
    concepts, dropped = [], 0
    for line in text.splitlines():
        if not line.strip():
            continue
        parts = [part.strip() for part in line.split("|", 2)]
        question = re.sub(r"^(?:[-*•]|\d+[.)])\s*", "", parts[0])
        document = parts[1].strip("[]") if len(parts) == 3 else ""
        fits = len(parts) == 3 and len(question) > 1 and question.endswith("?") and bool(parts[2])
        if not fits or (document not in known if known else document != "-"):
            dropped += 1
            continue
        origin = (document, parts[2]) if known else ("", "")
        concepts.append(Concept(question, *origin, query))
    return concepts, dropped
