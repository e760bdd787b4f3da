"""Finding the project's own papers: its cards as documents, ranked by BM25 and a DRMM that learnt from their claims.

Nobody has judged queries on the cards. They come with weak ones: each claim is a sentence about its own paper, so a
`Reranker` learns from claims as queries and cards without claims as documents, and then ranks cards with claims. Where
the extra `ranking` is missing or the query has no known word, plain word search answers.
"""

import logging
import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

__all__ = ["rank_papers", "word_search"]

_log = logging.getLogger(__name__)
_NEEDED = ("bm25s", "ir_measures", "Stemmer", "sklearn", "torch")


def word_search(query: str, cards: Sequence[Mapping[str, Any]]) -> list[str]:
    """Slugs of the cards in which every word of the query occurs, also inside of words, best first.

    Words count by where they stand: 8 in the slug, 5 in the title, 3 in authors, 2 in the summary, 1 elsewhere.
    """
    words = query.lower().split()
    scored = []
    for card in cards:
        fields = [
            (8, card["slug"].replace("_", " ")), (5, card["title"]), (3, card["authors"]), (2, card["summary"]),
            (1, " ".join(claim["says"] for claim in card["claims"])), (1, card["domain"]), (1, card["arxiv"]),
        ]  # fmt: skip
        scores = [sum(weight for weight, field in fields if word in field.lower()) for word in words]
        if scores and all(scores):
            scored.append((-sum(scores), card["slug"]))
    return [slug for _, slug in sorted(scored)]


def _text(card: Mapping[str, Any], *, claims: bool) -> str:
    parts = [card["slug"].replace("_", " "), card["title"], card["title"], card["summary"], card["domain"]]
    parts += [card["authors"], card["arxiv"], card["venue"], card["notes"]]
    return "\n".join([*parts, *(claim["says"] for claim in card["claims"] if claims)])


def rank_papers(query: str, cards: Sequence[Mapping[str, Any]], *, k: int = 10, steps: int = 100) -> list[str]:
    """Slugs of at most k cards, best first.

    Cards in which every word of the query occurs, as a whole or as part of a word, come first; the ranker puts both
    parts in order. A name, a slug or an identifier is thus found as surely as by word search.

    Args:
        query: any words.
        cards: as in `registry.json`: slug, title, authors, summary, notes, claims and so on.
        k: papers at most; all that word search finds if it answers alone.
        steps: of the training on claims.
    """
    exact = word_search(query, cards)
    words = query.lower().split()
    if not any(word in _text(card, claims=True).lower() for card in cards for word in words):
        return []  # a ranker would still put the cards into some order
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing or len(cards) < 4 or not query.strip():
        _log.info("word search alone: %s", f"{', '.join(missing)} not installed" if missing else "too few cards")
        return exact
    ranked = _ranked(query, cards, steps)
    place = {slug: number for number, slug in enumerate(ranked)}
    exact = sorted(exact, key=lambda slug: place.get(slug, len(ranked)))
    return (exact + [slug for slug in ranked if slug not in set(exact)])[: max(k, len(exact))]


def _ranked(query: str, cards: Sequence[Mapping[str, Any]], steps: int) -> list[str]:
    from etude.data.kinds_ranking import RankingData
    from etude.ranking.neural_ranking.reranker import Reranker

    weak: dict[str, str] = {}
    judgements: dict[str, dict[str, int]] = {}
    for card in cards:
        for claim in card["claims"]:
            key = f"{card['slug']}/{claim['name']}"  # once for all data sets of a claim
            weak[key], judgements[key] = claim["says"], {card["slug"]: 1}
    if len(weak) < 4:
        return []
    data = RankingData({card["slug"]: _text(card, claims=False) for card in cards}, weak, judgements, "cards")
    depth = min(50, len(cards))
    reranker = Reranker("drmm", depth=depth, doc_length=300, steps=steps, negatives=2, dim=50, batch=16)
    reranker.fit(data)
    searched = {card["slug"]: _text(card, claims=True) for card in cards}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an unknown word is no news here: nothing is found
        return list(reranker.rank({"query": query}, k=depth, documents=searched)["query"])
