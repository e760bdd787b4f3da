"""From text to tokens, to ids, to letter trigrams."""

import functools
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

__all__ = ["OOV", "PAD", "STOPWORDS", "Tokenizer", "Vocabulary", "letter_trigrams", "pad", "trigram_table"]

PAD, OOV = 0, 1
STOPWORDS = frozenset(
    (
        "a", "about", "above", "after", "again", "against", "all", "also", "am", "an", "and", "any", "are", "as",
        "at", "be", "because", "been", "before", "being", "below", "between", "both", "but", "by", "can", "could",
        "did", "do", "does", "doing", "down", "during", "each", "few", "for", "from", "further", "had", "has", "have",
        "having", "he", "her", "here", "hers", "him", "his", "how", "however", "i", "if", "in", "into", "is", "it",
        "its", "just", "may", "me", "might", "more", "most", "must", "my", "no", "nor", "not", "of", "off", "on",
        "once", "only", "or", "other", "our", "out", "over", "own", "same", "shall", "she", "should", "so", "some",
        "such", "than", "that", "the", "their", "them", "then", "there", "these", "they", "this", "those", "through",
        "to", "too", "under", "until", "up", "very", "was", "we", "were", "what", "when", "where", "which", "while",
        "who", "whom", "whose", "why", "will", "with", "would", "you", "your",
    )
)  # fmt: skip
"""Words of English grammar. Those of questions must be among them: "what" and "how" are rare in documents, so that
models which weigh the words of a query by idf would listen to them most."""

_WORD = re.compile(r"\w+")


class Tokenizer:
    """Lower-case words without stop words, if asked for stemmed by Porter's rules (PyStemmer).

    Args:
        stem: "porter" or "none".
        stopwords: words left out, before stemming.

    Raises:
        ImportError: if stemming is asked for and PyStemmer is missing.
        ValueError: for another stemmer.
    """

    def __init__(self, *, stem: str = "porter", stopwords: Iterable[str] = STOPWORDS):
        if stem not in ("porter", "none"):
            raise ValueError(f"stem must be 'porter' or 'none', got {stem!r}")
        self.stem, self.stopwords = stem, frozenset(stopwords)
        if stem == "porter":
            _porter()

    def __call__(self, text: str) -> list[str]:
        words = [word for word in _WORD.findall(text.lower()) if word not in self.stopwords]
        return _porter()(words) if self.stem == "porter" else words


@functools.cache
def _porter() -> Callable[[list[str]], list[str]]:
    """Kept apart from tokenizers, which can then be copied and pickled."""
    try:
        import Stemmer
    except ImportError as error:
        raise ImportError('stemming needs PyStemmer: pip install "etude[ranking]"') from error
    return Stemmer.Stemmer("porter").stemWords


class Vocabulary:
    """Ids of the tokens of a collection: 0 pads, 1 stands for every token that is not known.

    Args:
        documents: the tokens of each document.
        min_df: documents in which a token must occur to be known, >= 1.

    Attributes:
        tokens: token of each id; the first two are no tokens.
        df: (V,) documents in which each id occurs.
        cf: (V,) occurrences of each id.
        num_documents: N.
    """

    def __init__(self, documents: Sequence[Sequence[str]], *, min_df: int = 1):
        if min_df < 1:
            raise ValueError(f"min_df must be at least 1, got {min_df}")
        df: Counter[str] = Counter()
        cf: Counter[str] = Counter()
        for tokens in documents:
            cf.update(tokens)
            df.update(set(tokens))
        known = sorted(token for token, count in df.items() if count >= min_df)
        self.tokens = ("", "", *known)
        self.num_documents = len(documents)
        self.df = np.array([0, 0, *(df[token] for token in known)], dtype=np.int64)
        self.cf = np.array([0, 0, *(cf[token] for token in known)], dtype=np.int64)
        self._ids = {token: number for number, token in enumerate(known, start=2)}

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, token: str) -> bool:
        return token in self._ids

    def ids(self, tokens: Iterable[str]) -> list[int]:
        return [self._ids.get(token, OOV) for token in tokens]

    @property
    def idf(self) -> np.ndarray:
        """(V,) ln(1 + (N - df + 1/2) / (df + 1/2)), never negative; that of padding is 0."""
        values = np.log1p((self.num_documents - self.df + 0.5) / (self.df + 0.5))
        values[PAD] = 0.0
        return values


def pad(ids: Sequence[Sequence[int]], length: int) -> tuple[Int[Tensor, "n length"], Bool[Tensor, "n length"], float]:
    """Rows cut or padded with 0 to `length`, where they are real, and the share of the rows that were cut."""
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}")
    rows = np.zeros((len(ids), length), dtype=np.int64)
    mask = np.zeros((len(ids), length), dtype=bool)
    for number, row in enumerate(ids):
        kept = list(row[:length])
        rows[number, : len(kept)] = kept
        mask[number, : len(kept)] = True
    cut = sum(len(row) > length for row in ids) / max(len(ids), 1)
    return torch.from_numpy(rows), torch.from_numpy(mask), cut


def letter_trigrams(word: str) -> list[str]:
    """Letter trigrams of #word#: of "good" #go, goo, ood, od#."""
    marked = f"#{word}#"
    return [marked[start : start + 3] for start in range(len(marked) - 2)]


def trigram_table(tokens: Sequence[str], *, size: int = 30_000) -> Int[Tensor, "words most"]:
    """Trigram ids of each token of a vocabulary, as rows padded with `size`; words without letters have none.

    A trigram's id is its CRC-32 modulo `size`, so that no table of trigrams is kept and unseen ones have an id.
    """
    if size < 1:
        raise ValueError(f"size must be positive, got {size}")
    rows = [[zlib.crc32(part.encode()) % size for part in letter_trigrams(token)] if token else [] for token in tokens]
    table = torch.full((len(rows), max(1, max(map(len, rows), default=1))), size)
    for number, row in enumerate(rows):
        table[number, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return table
