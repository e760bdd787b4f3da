"""A stand-in for the language model that needs no network: rules over the sentences of a knowledge source.

It answers the prompts of `language` and nothing else. Concepts come from sentences of the form "X shows Y", where
each part of Y becomes a question; whether a diagnosis goes with a finding is read off the sentences about it.
"""

import re
from collections.abc import Iterable

from etude.science.knobo.annotation import PhraseAnnotator
from etude.science.knobo.retrieval import Corpus
from etude.science.knobo.text import asked, content, jaccard, lemma, sentences

__all__ = ["VISUAL_WORDS", "RuleBasedModel"]

_SEEN = """
asymmetry symmetry symmetric border edge margin outline shape round oval irregular jagged color pigment pigmented dark
pale black brown blue white red pink gray yellow streak dot globule veil scale scaly crust ulceration ulcer vessel
network patch plaque nodule blotch hair halo smooth rough shiny opacity opacification consolidation effusion infiltrate
lucency cardiomegaly atelectasis line shadow shift width thickening fissure
"""
VISUAL_WORDS = frozenset(_SEEN.split())
"""Words of findings that a picture can show."""

_SIGN = re.compile(
    r"\b(?:shows?|showed|has|have|displays?|exhibits?|contains?|lacks?|(?:presents?|is marked|are marked) (?:with|by)|"
    r"(?:is|are) (?:characteri[sz]ed|recogni[sz]ed|known) by|features?)\b(.+)$",
    re.IGNORECASE,
)
_TAIL = re.compile(
    r"\b(?:which|that|because|when|where|while|under|in (?:the )?(?:most|many|some|old|young)|on|at|as|than|"
    r"after|before|since|if|over)\b.*$",
    re.IGNORECASE,
)
_LEAD = re.compile(
    r"^(?:(?:often|usually|typically|commonly|almost|never|always|rarely|neither|nor|either|no|not|without|a|an|the|"
    r"any|some|clear|marked|visible|typical|signs? of|areas? of|with|by)\s+)+",
    re.IGNORECASE,
)


class RuleBasedModel:
    """Answers the five kinds of prompt by rules: a callable from prompt to text, as any language model.

    Args:
        knowledge: sentences about diagnoses, from which `prior_prompt` and proposals without documents are answered;
            without it the first are unknown and the second empty.
        visual_words: what a picture can show; a question is visual if it asks about one of them.
        overlap: questions whose words overlap at least as much (Jaccard, lemmas without stop words) are the same.

    Raises:
        ValueError: for `overlap` outside (0, 1], or, when called, a prompt of another layout.
    """

    def __init__(
        self,
        knowledge: Corpus | None = None,
        *,
        visual_words: Iterable[str] = VISUAL_WORDS,
        overlap: float | int = 0.6,
    ):
        if not 0 < overlap <= 1:
            raise ValueError(f"overlap must lie in (0, 1], got {overlap}")
        self.overlap = overlap
        self.visual_words = frozenset(lemma(word.lower()) for word in visual_words)
        self._read = PhraseAnnotator()
        self._sentences = [s for document in knowledge or () for s in sentences(document.text)]

    def __call__(self, prompt: str) -> str:
        task = re.match(r"Task: (.+)", prompt)
        answer = None if task is None else {
            "propose concepts": self._propose, "visual check": self._visual, "uniqueness check": self._unique,
            "read report": self._report, "relate diagnosis": self._relate,
        }.get(task.group(1))  # fmt: skip
        if answer is None:
            raise ValueError(f"the rules answer the prompts of etude.science.knobo.language alone, got {prompt[:60]!r}")
        return answer(prompt)

    def _propose(self, prompt: str) -> str:
        subject, query = _field(prompt, "Subject"), _field(prompt, "Query")
        listed = re.findall(r"^\[(.+?)\] (.+)$", prompt, re.MULTILINE)
        if not listed:
            listed = [("-", sentence) for sentence in self._about(query)]
        lines = []
        for document, text in listed:
            for sentence in sentences(text):
                lines += [f"Does the {subject} show {f}? | {document} | {sentence}" for f in _findings(sentence)]
        return "\n".join(lines)

    def _visual(self, prompt: str) -> str:
        return _yes(bool(self.visual_words & set(asked(_field(prompt, "Question")))))

    def _unique(self, prompt: str) -> str:
        question, accepted = _field(prompt, "Question"), re.findall(r"^- (.+)$", prompt, re.MULTILINE)
        return _yes(all(jaccard(question, other) < self.overlap for other in accepted))

    def _report(self, prompt: str) -> str:
        return _WORDS[self._read(_field(prompt, "Report"), _field(prompt, "Question"))]

    def _relate(self, prompt: str) -> str:
        told = " ".join(self._about(_field(prompt, "Diagnosis")))
        return _WORDS[self._read(told, _field(prompt, "Question"))] if told else "unknown"

    def _about(self, diagnosis: str) -> list[str]:
        """Sentences whose subject (what stands before the verb) names the diagnosis."""
        words, found = set(content(diagnosis)), []
        for sentence in self._sentences:
            verb = _SIGN.search(sentence)
            if verb and words and words <= set(content(sentence[: verb.start()])):
                found.append(sentence)
        return found


_WORDS = {1: "yes", -1: "no", 0: "unknown"}


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _field(prompt: str, name: str) -> str:
    found = re.search(rf"^{name}: (.*)$", prompt, re.MULTILINE)
    if found is None:
        raise ValueError(f"the prompt has no line {name!r}: {prompt[:60]!r}")
    return found.group(1)


def _findings(sentence: str) -> list[str]:
    """The parts of what a sentence says something shows (or lacks)."""
    sign = _SIGN.search(sentence.rstrip(".!?; "))
    if sign is None:
        return []
    parts = re.split(r",\s*(?:and|or|but)?\s*|\s+(?:and|or|but|nor)\s+", sign.group(1))
    cleaned = [_LEAD.sub("", _TAIL.sub("", part).strip()).strip(" .") for part in parts]
    return [part for part in cleaned if part and asked(part)]
