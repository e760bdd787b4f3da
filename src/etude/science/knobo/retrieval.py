"""A corpus of documents and what finds them: BM25 (bm25s), or vectors of a user's encoder.

BM25 (Robertson & Walker, 1994, with Lucene's non-negative idf), tf of w in d, avg the mean length:

    s(q, d) = sum_{w in q} ln(1 + (N - df + 1/2) / (df + 1/2)) tf / (tf + k1 (1 - b + b len / avg))            (1)

The paper's pipeline searches with Pyserini, whose k1 = 0.9 and b = 0.4 are `BM25Retriever(corpus, k1=0.9, b=0.4)`.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64

from etude.science.knobo.text import content, sentences

__all__ = ["BM25Retriever", "Corpus", "DenseRetriever", "Document", "Hit", "Retriever"]


@dataclass(frozen=True)
class Document:
    """A passage of a knowledge source, found again by its `id`."""

    id: str
    text: str


@dataclass(frozen=True)
class Hit:
    """A document and its score for a query."""

    document: Document
    score: float


class Corpus:
    """Documents with distinct ids.

    Raises:
        ValueError: for no documents, an empty one, or an id that occurs twice.
    """

    def __init__(self, documents: Iterable[Document]):
        self.documents = tuple(documents)
        if not self.documents:
            raise ValueError("a corpus needs at least one document")
        self._places: dict[str, int] = {}
        for place, document in enumerate(self.documents):
            if not document.text.strip():
                raise ValueError(f"document {document.id!r} is empty")
            if document.id in self._places:
                raise ValueError(f"the id {document.id!r} occurs twice in the corpus")
            self._places[document.id] = place

    def __len__(self) -> int:
        return len(self.documents)

    def __iter__(self) -> Iterator[Document]:
        return iter(self.documents)

    def __getitem__(self, id: str) -> Document:
        return self.documents[self._places[id]]

    @classmethod
    def from_jsonl(cls, path: str | os.PathLike, *, id: str = "id", text: str = "contents") -> "Corpus":
        """One JSON object a line with the fields `id` and `text` (the layout of Pyserini and MedRAG by default)."""
        documents = []
        for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                documents.append(Document(str(row[id]), str(row[text])))
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ValueError(f"{path}, line {number}: expected an object with {id!r} and {text!r}") from error
        return cls(documents)

    @classmethod
    def from_text(cls, text: str, *, by: str = "paragraph", prefix: str = "d") -> "Corpus":
        """A text cut at blank lines (`by="paragraph"`) or into sentences; ids count from `prefix`0."""
        if by not in ("paragraph", "sentence"):
            raise ValueError(f"by must be paragraph or sentence, got {by!r}")
        paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
        parts = [s for p in paragraphs for s in sentences(p)] if by == "sentence" else [p for p in paragraphs if p]
        return cls(Document(f"{prefix}{number}", part) for number, part in enumerate(parts))


@runtime_checkable
class Retriever(Protocol):
    """Finds documents for a query: best first, at most `k`."""

    def retrieve(self, query: str, k: int) -> list[Hit]: ...


def _best(corpus: Corpus, scores: np.ndarray, k: int, above: float) -> list[Hit]:
    if k < 1:
        raise ValueError(f"k must be positive, got {k}")
    order = np.argsort(-scores, kind="stable")[:k]
    return [Hit(corpus.documents[i], float(scores[i])) for i in order if scores[i] > above]


class BM25Retriever:
    """Eq. (1) over an inverted index.

    Args:
        corpus: what is searched.
        k1: how soon repetitions stop to count, >= 0.
        b: how far long documents are held back, in [0, 1].
        tokenizer: text -> tokens; lemmas without stop words by default.

    Raises:
        ValueError: if k1 or b is out of range.
        ImportError: without bm25s.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        k1: float | int = 1.2,
        b: float | int = 0.75,
        tokenizer: Callable[[str], list[str]] = content,
    ):
        if k1 < 0 or not 0 <= b <= 1:
            raise ValueError(f"k1 must be at least 0 and b in [0, 1], got {k1} and {b}")
        try:
            import bm25s
        except ImportError as error:
            raise ImportError("searching a corpus needs bm25s: pip install bm25s") from error
        self.corpus, self.tokenizer = corpus, tokenizer
        self._vocabulary: dict[str, int] = {}
        ids = [[self._vocabulary.setdefault(t, len(self._vocabulary)) for t in tokenizer(d.text)] for d in corpus]
        if not self._vocabulary:
            raise ValueError("no document of the corpus has a token")
        self._engine = bm25s.BM25(k1=float(k1), b=float(b), method="lucene", dtype="float64")
        names = {str(number): number for number in range(len(self._vocabulary))}
        self._engine.index((ids, names), show_progress=False, create_empty_token=False)

    def scores(self, query: str) -> Float64[np.ndarray, "documents"]:
        """Eq. (1) for every document; words that the corpus lacks add nothing."""
        known = [self._vocabulary[token] for token in self.tokenizer(query) if token in self._vocabulary]
        if not known:
            return np.zeros(len(self.corpus))
        return self._engine.get_scores_from_ids(known).astype(np.float64)

    def retrieve(self, query: str, k: int = 50) -> list[Hit]:
        """At most `k` documents that share a word with the query."""
        return _best(self.corpus, self.scores(query), k, 0.0)


class DenseRetriever:
    """Cosine similarity of vectors: `encode` maps a list of texts to an array (texts, dim)."""

    def __init__(self, corpus: Corpus, encode: Callable[[Sequence[str]], Any]):
        self.corpus, self._encode = corpus, encode
        self._vectors = self._unit([document.text for document in corpus])

    def _unit(self, texts: Sequence[str]) -> np.ndarray:
        vectors = np.asarray(self._encode(texts), dtype=np.float64)
        if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
            raise ValueError(f"encode must give a finite array ({len(texts)}, dim), got shape {vectors.shape}")
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    def retrieve(self, query: str, k: int = 50) -> list[Hit]:
        return _best(self.corpus, self._vectors @ self._unit([query])[0], k, -np.inf)
