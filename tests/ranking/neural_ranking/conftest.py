"""Small collections and pairs of texts, shared by the tests of the neural rankers."""

import pytest
import torch

from etude.ranking.neural_ranking import Candidates, EncodedTexts, topic_collection
from etude.ranking.neural_ranking.retrieval import BM25Retriever


@pytest.fixture(scope="session")
def topics():
    return topic_collection(documents=60, queries=14, topics=5, words=8, length=24)


@pytest.fixture(scope="session")
def candidates(topics):
    texts = EncodedTexts(topics.documents, query_length=8, doc_length=24)
    run = BM25Retriever().fit(topics.documents).search(topics.queries, k=20)
    return Candidates.from_run(run, topics.queries, texts, topics.judgements)


@pytest.fixture
def make_pairs():
    def pairs(batch=4, query=6, doc=12, words=30, seed=0):
        """Ids, masks and idf of texts of all lengths from 2 words up."""
        generator = torch.Generator().manual_seed(seed)
        made = []
        for length in (query, doc):
            ids = torch.randint(2, words, (batch, length), generator=generator)
            sizes = torch.randint(2, length + 1, (batch, 1), generator=generator)
            mask = torch.arange(length) < sizes
            made += [ids * mask, mask]
        idf = torch.rand(batch, query, generator=generator) * 5 * made[1]
        return made[0], made[2], made[1], made[3], idf

    return pairs
