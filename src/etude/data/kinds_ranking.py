"""The kind of data of ad-hoc search: documents, queries, and which document answers which query how well.

Annotations are plain: a kind checks itself where it is made, in every use and not only under a type checker.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["RankingData"]


def _check_texts(what: str, texts: Any) -> None:
    if not isinstance(texts, Mapping):
        raise TypeError(f"RankingData.{what} must map ids to texts, got {type(texts).__name__}")
    for key, text in texts.items():
        if not isinstance(key, str) or not isinstance(text, str):
            raise TypeError(f"RankingData.{what} must map str to str, got {key!r}: {type(text).__name__}")


@dataclass(frozen=True, eq=False)
class RankingData:
    """A test collection.

    Args:
        documents: text of each document, by id.
        queries: text of each query, by id.
        judgements: query id -> document id -> grade, an integer >= 0; 0 is judged and not relevant, what is absent was
            not judged.
        name: what the collection is called in tables.
        titles: of documents that have one, by id.

    Raises:
        TypeError: if a text or id is no string, or a grade no integer.
        ValueError: if there is no document or query, a grade is negative, or a judgement names what is not there; the
            message names the id.
    """

    documents: Mapping[str, Any]
    queries: Mapping[str, Any]
    judgements: Mapping[str, Any]
    name: str
    titles: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        for what in ("documents", "queries", "titles"):
            _check_texts(what, getattr(self, what))
        if not self.documents or not self.queries:
            raise ValueError(f"RankingData needs documents and queries, got {len(self.documents)}, {len(self.queries)}")
        for title in self.titles:
            if title not in self.documents:
                raise ValueError(f"RankingData.titles names the document {title!r}, which is not there")
        for query, grades in self.judgements.items():
            if query not in self.queries:
                raise ValueError(f"RankingData.judgements names the query {query!r}, which is not there")
            for document, grade in grades.items():
                if document not in self.documents:
                    raise ValueError(
                        f"the judgement of query {query!r} names the document {document!r}, which is not there"
                    )
                if not isinstance(grade, int) or isinstance(grade, bool):
                    raise TypeError(f"the grade of query {query!r}, document {document!r} must be int, got {grade!r}")
                if grade < 0:
                    raise ValueError(f"the grade of query {query!r}, document {document!r} must be >= 0, got {grade}")

    @classmethod
    def from_frames(
        cls,
        documents: Iterable[Any],
        queries: Iterable[Any],
        judgements: Iterable[Any],
        *,
        name: str = "collection",
    ) -> "RankingData":
        """From rows (id, text), (id, text) and (query id, document id, grade), such as `frame.itertuples(index=False)`.

        Negative grades, with which some collections mark spam, become 0.

        Raises:
            ValueError: if an id or a judgement occurs twice, which the message names, and as for the class.
        """
        grades: dict[str, dict[str, int]] = {}
        for query, document, grade in judgements:
            row = grades.setdefault(str(query), {})
            if str(document) in row:
                raise ValueError(f"query {str(query)!r} judges the document {str(document)!r} twice")
            row[str(document)] = max(int(grade), 0)
        return cls(_distinct("document", documents), _distinct("query", queries), grades, name)

    def judged(self) -> tuple[str, ...]:
        """Queries with a relevant document, in the order of `queries`: those on which measures are defined."""
        return tuple(query for query in self.queries if any(self.judgements.get(query, {}).values()))

    def unjudged(self) -> tuple[str, ...]:
        """Queries without a relevant document: excluded from training and measures, and to be counted."""
        known = set(self.judged())
        return tuple(query for query in self.queries if query not in known)


def _distinct(what: str, rows: Iterable[Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, text in rows:
        if str(key) in found:
            raise ValueError(f"the {what} id {str(key)!r} occurs twice")
        found[str(key)] = str(text)
    return found
