"""Words of short clinical English: tokens, a light lemma, sentences, and what a yes/no question asks about."""

import re
from functools import lru_cache

__all__ = ["GENERIC", "STOP_WORDS", "asked", "content", "jaccard", "lemma", "sentences", "tokens"]

_STOP = """
a an and any are as at be been being but by can could did do does for from had has have if in into is it its may might
more most of on or over some such that the their there these this those to under was were which with within would
you your
"""
_AROUND = """
lesion skin image picture photograph xray ray radiograph chest patient show display exhibit contain reveal appear look
seem seen see visible present evidence sign feature finding have observe note
"""
STOP_WORDS = frozenset(_STOP.split())
GENERIC = frozenset(_AROUND.split())
"""Words that a question has around what it asks about."""

_SPELLING = {"colour": "color", "colored": "color", "coloured": "color", "grey": "gray", "tumour": "tumor"}
_KEPT = frozenset(("is", "was", "has", "this", "us", "gas", "lens", "always", "less", "previous", "various"))


def tokens(text: str) -> list[str]:
    """Lower-case words and numbers; hyphens and apostrophes separate."""
    return re.findall(r"[a-z0-9]+", text.lower())


@lru_cache(maxsize=65536)
def lemma(word: str) -> str:
    """Singular form in American spelling; no other inflection is undone."""
    if word not in _KEPT and len(word) > 3:
        if word.endswith("ies"):
            word = word[:-3] + "y"
        elif word.endswith(("sses", "xes", "ches", "shes")):
            word = word[:-2]
        elif word.endswith("s") and not word.endswith(("ss", "us", "is")):
            word = word[:-1]
    return _SPELLING.get(word, word)


def sentences(text: str) -> list[str]:
    """Split after . ! ? ; and at line ends; a point inside a number does not end a sentence."""
    return [part.strip() for part in re.split(r"(?<=[.!?;])\s+|\n+", text) if part.strip()]


def content(text: str) -> list[str]:
    """Lemmas without stop words."""
    return [lemma(word) for word in tokens(text) if word not in STOP_WORDS]


def asked(question: str) -> list[str]:
    """The lemmas that a question asks about: its content without the generic words around it."""
    return [word for word in content(question) if word not in GENERIC]


def jaccard(one: str, other: str) -> float:
    """Shared over all distinct lemmas asked about; 1 for two questions that ask about nothing."""
    first, second = set(asked(one)), set(asked(other))
    return len(first & second) / len(first | second) if first | second else 1.0
