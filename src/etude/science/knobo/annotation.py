"""Answers to yes/no questions read off free-text reports.

The default reader matches phrases and minds negation (after Chapman et al., "A Simple Algorithm for Identifying
Negated Findings", 2001): a mention is denied if a cue such as "no" or "without" stands in the five tokens before it,
or "absent", "not seen" in the five after it, in the same clause. A language model reads by `ModelAnnotator`.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Int8

from etude.science.knobo.concepts import Bottleneck
from etude.science.knobo.language import ANSWERS, LanguageModel, answer_of, report_prompt
from etude.science.knobo.text import asked, lemma, sentences, tokens

__all__ = ["Annotator", "ModelAnnotator", "PhraseAnnotator", "annotate_reports"]

NO, UNKNOWN, YES = -1, 0, 1
BEFORE = ("no", "not", "without", "absence of", "denies", "lack", "lacking", "negative for", "free of", "neither",
          "nor", "never", "rule out")  # fmt: skip
AFTER = ("absent", "not seen", "not present", "not visible", "not found", "not identified", "ruled out")
_CLAUSES = re.compile(r"[,:]?\s*\b(?:but|however|although|whereas|except)\b|[:]")
_SLACK = 2
"""Words that may stand between those of one phrase ("border that is irregular")."""


Annotator = Callable[[str, str], int]
"""Reads one report for one question: +1 yes, -1 no, 0 unknown."""


@lru_cache(maxsize=65536)
def _clauses(report: str) -> tuple[tuple[str, ...], ...]:
    """Lemmas of every clause."""
    parts = [part for sentence in sentences(report.lower()) for part in _CLAUSES.split(sentence)]
    return tuple(tuple(lemma(word) for word in tokens(part)) for part in parts if part.strip())


@lru_cache(maxsize=65536)
def _asked(question: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(asked(question)))


class PhraseAnnotator:
    """Finds what the question asks about in a report, and whether it is affirmed or denied.

    All words asked about must stand in one clause, close together, in any order. A finding that is both affirmed and
    denied is unknown, like one that is not mentioned; so is a question of generic words alone ("Is there a lesion?").

    Args:
        window: tokens before (after) a mention in which a cue denies it, >= 0.
        synonyms: word -> the word of the questions, as {"edge": "border"}.
    """

    def __init__(self, window: int = 5, synonyms: dict[str, str] | None = None):
        if window < 0:
            raise ValueError(f"window must not be negative, got {window}")
        self.window = window
        self.synonyms = {lemma(key.lower()): lemma(value.lower()) for key, value in (synonyms or {}).items()}
        self._before = [tuple(lemma(w) for w in cue.split()) for cue in BEFORE]
        self._after = [tuple(lemma(w) for w in cue.split()) for cue in AFTER]

    def __call__(self, report: str, question: str) -> int:
        words = _asked(question)
        if not words:
            return UNKNOWN
        found = {
            self._denied(clause, *mention)
            for clause in (self._same(clause) for clause in _clauses(report))
            for mention in _mentions(clause, words)
        }
        return UNKNOWN if len(found) != 1 else (NO if found.pop() else YES)

    def _same(self, clause: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(self.synonyms.get(word, word) for word in clause) if self.synonyms else clause

    def _denied(self, clause: tuple[str, ...], start: int, stop: int) -> bool:
        before, after = clause[max(start - self.window, 0) : start], clause[stop : stop + self.window]
        if any(word == "not" and before[i + 1 : i + 2] == ("only",) for i, word in enumerate(before)):
            return False
        return _has(before, self._before) or _has(after, self._after)


def _has(words: tuple[str, ...], cues: Sequence[tuple[str, ...]]) -> bool:
    return any(words[i : i + len(cue)] == cue for cue in cues for i in range(len(words) - len(cue) + 1))


def _mentions(clause: tuple[str, ...], words: tuple[str, ...]) -> list[tuple[int, int]]:
    """Where all of the words stand within a span of their number and a little slack: (start, stop)."""
    present = set(clause)
    if not all(word in present for word in words):
        return []
    span, wanted, places = len(words) + (_SLACK if len(words) > 1 else 0), set(words), []
    start = 0
    while start < len(clause):
        if clause[start] in wanted:
            for stop in range(start + len(words), min(start + span, len(clause)) + 1):
                if wanted <= set(clause[start:stop]):
                    places.append((start, stop))
                    start = stop - 1
                    break
        start += 1
    return places


class ModelAnnotator:
    """Puts the report and the question to a language model; an answer that is none of the three counts as unknown.

    Attributes:
        unclear: how many answers were none of yes, no, unknown.
    """

    def __init__(self, model: LanguageModel):
        self.model, self.unclear = model, 0

    def __call__(self, report: str, question: str) -> int:
        answer = answer_of(self.model(report_prompt(report, question)))
        if answer is None:
            self.unclear += 1
            return UNKNOWN
        return ANSWERS[answer]


def annotate_reports(
    reports: Iterable[str],
    concepts: Bottleneck | Sequence[str],
    annotator: Annotator | None = None,
) -> Int8[np.ndarray, "reports concepts"]:
    """Every question answered on every report: +1 yes, -1 no, 0 unknown.

    Args:
        reports: the texts; an empty one leaves everything unknown.
        concepts: a bottleneck or questions, in the order of the columns.
        annotator: `PhraseAnnotator()` if None.

    Raises:
        TypeError: if a report is no text. ValueError: if the annotator answers something else.
    """
    read = PhraseAnnotator() if annotator is None else annotator
    questions = concepts.questions if isinstance(concepts, Bottleneck) else tuple(concepts)
    rows = []
    for number, report in enumerate(reports):
        if not isinstance(report, str):
            raise TypeError(f"report {number} must be a text, got {type(report).__name__}")
        rows.append([read(report, question) if report.strip() else UNKNOWN for question in questions])
    answers = np.array(rows, dtype=np.int64).reshape(len(rows), len(questions))
    strange = sorted(set(np.unique(answers).tolist()) - {NO, UNKNOWN, YES})
    if strange:
        raise ValueError(f"an annotator answers -1, 0 or 1, got {strange}")
    return answers.astype(np.int8)
