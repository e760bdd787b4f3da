"""A small collection that is drawn, not read: topics with words of their own, synonyms, and graded judgements.

Documents mix words of one or two topics with common words. A query asks for words of one topic; half of them it says by
synonyms, which documents of the topic use as well, so that exact matching finds part of the answers and matching by
meaning more.
"""

import numpy as np

from etude.data.kinds_ranking import RankingData

__all__ = ["topic_collection"]


def topic_collection(
    *,
    documents: int = 200,
    queries: int = 40,
    topics: int = 12,
    words: int = 12,
    length: int = 40,
    seed: int | np.random.Generator = 0,
) -> RankingData:
    """Draws a collection.

    Args:
        documents, queries, topics: how many of each; queries and topics at most as many as documents.
        words: of each topic, half of them synonyms of the other half.
        length: words of a document.
        seed: of the draws, or their generator.

    Raises:
        ValueError: if a number is too small.
    """
    if min(documents, queries, topics) < 2 or words < 4 or length < 4 or max(queries, topics) > documents:
        raise ValueError(
            f"a collection needs 2 documents, queries and topics, 4 words and lengths of 4; got {documents}, "
            f"{queries}, {topics}, {words}, {length}"
        )
    rng = np.random.default_rng(seed)
    named = [[f"{_name(topic)}{_name(word)}" for word in range(words)] for topic in range(topics)]
    common = [f"common{_name(word)}" for word in range(60)]
    main, side = np.arange(documents) % topics, rng.integers(topics, size=documents)
    texts = {}
    for number in range(documents):
        size = int(rng.integers(length // 2, length + 1))
        source = rng.choice(3, size=size, p=[0.25, 0.1, 0.65])
        pools = (named[main[number]], named[side[number]], common)
        texts[f"d{number}"] = " ".join(pools[pool][rng.integers(len(pools[pool]))] for pool in source)
    asked, judgements = {}, {}
    for number in range(queries):
        topic = int(rng.integers(topics))
        chosen = rng.choice(words // 2, size=2, replace=False)
        said = [named[topic][word + (words // 2) * int(rng.integers(2))] for word in chosen]
        asked[f"q{number}"] = " ".join([*said, common[rng.integers(len(common))]])
        judgements[f"q{number}"] = {
            f"d{document}": 2 if main[document] == topic else 1
            for document in range(documents)
            if topic in (main[document], side[document])
        }
    return RankingData(texts, asked, judgements, "topics")


def _name(number: int) -> str:
    """Letters instead of digits: 0 is ba, 1 be, ..., as syllables that make different trigrams."""
    syllables = [consonant + vowel for consonant in "bdfgklmnprst" for vowel in "aeiou"]
    return syllables[number % 60] + (_name(number // 60 - 1) if number >= 60 else "")
