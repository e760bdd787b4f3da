"""Re-ranking latency per query of every model beside BM25's own search, and the parts against other code.

The collection is generated, of Cranfield's size; a query has 100 candidates, texts are cut at 25 and 150 words.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.compare import Comparison
from etude.ranking.neural_ranking import (
    MODELS,
    BM25Retriever,
    Candidates,
    EncodedTexts,
    build_model,
    cached_features,
    dynamic_pool,
    gaussian_kernels,
    kernel_levels,
    score_candidates,
    topic_collection,
    train_embeddings,
)

OPTIONS = {"duet": {"window": 50}, "knrm": {"trainable": False}}


def comparisons() -> list[Comparison]:
    import bm25s

    data = topic_collection(documents=1400, queries=225, topics=60, length=200)
    retriever = BM25Retriever().fit(data.documents)
    run = retriever.search(data.queries, k=100)
    texts = EncodedTexts(data.documents, query_length=25, doc_length=150)
    candidates = Candidates.from_run(run, data.queries, texts)
    vectors = train_embeddings(texts.tokens, texts.vocabulary)
    engine = bm25s.BM25(k1=1.2, b=0.75, method="lucene")
    engine.index([retriever.tokenizer(text) for text in data.documents.values()], show_progress=False)
    query = {"q0": data.queries["q0"]}
    first_stage = partial(retriever.search, query, k=100)
    row = torch.tensor([0])

    def peer_search() -> object:
        return engine.retrieve([retriever.tokenizer(query["q0"])], k=100, show_progress=False)

    found = [Comparison("BM25, one query, best 100 of 1,400", first_stage, peer_search, "bm25s retrieve", _SEARCH)]
    for name in MODELS:
        torch.manual_seed(0)
        model = build_model(name, texts, vectors=vectors, **OPTIONS.get(name, {})).eval()
        rerank = partial(score_candidates, model, candidates, row)
        found.append(
            Comparison(f"re-rank 100 documents of a query, {name}", rerank, first_stage, "BM25 search", _RERANK)
        )
        if model.cacheable:
            features = cached_features(model, candidates)
            kept = partial(score_candidates, model, candidates, row, features=features)
            found.append(
                Comparison(f"re-rank 100, {name}, features kept", kept, rerank, "the same, not kept", "equal scores")
            )
    return found + _kernels() + _pooling()


_SEARCH = "the same order; ours also breaks ties by id and drops what has no word of the query"
_RERANK = "not equal work: the cost of the second stage in units of the first"


def _kernels() -> list[Comparison]:
    generator = torch.Generator().manual_seed(0)
    mu, sigma = (torch.tensor(values) for values in kernel_levels())
    matches = torch.rand(100, 25, 150, generator=generator) * 2 - 1
    q_mask, d_mask = torch.ones(100, 25, dtype=torch.bool), torch.ones(100, 150, dtype=torch.bool)

    def at_once(matches: Tensor) -> Tensor:
        soft = torch.exp(-((matches[..., None] - mu) ** 2) / (2 * sigma**2)) * d_mask[:, None, :, None]
        return (soft.sum(dim=2).clamp_min(1e-10).log() * 0.01 * q_mask[..., None]).sum(dim=1)

    one_by_one = partial(gaussian_kernels, mu=mu, sigma=sigma, q_mask=q_mask, d_mask=d_mask)
    torch.testing.assert_close(one_by_one(matches), at_once(matches))
    return [
        Comparison(
            f"11 kernels on 100 x 25 x 150, {mode.__name__[1:].replace('_', ' ')}", partial(mode, one_by_one, matches),
            partial(mode, at_once, matches), "all kernels at once", "ours holds an eleventh at a time",
        )
        for mode in (_forward, _training_step)
    ]  # fmt: skip


def _pooling() -> list[Comparison]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(32, 16, 25, 150, generator=generator)
    rows = torch.randint(5, 26, (32,), generator=generator)
    columns = torch.randint(50, 151, (32,), generator=generator)
    sizes = list(zip(rows.tolist(), columns.tolist()))

    def loop(x: Tensor) -> Tensor:
        return torch.cat([F.adaptive_max_pool2d(x[b : b + 1, :, :n, :m], (3, 10)) for b, (n, m) in enumerate(sizes)])

    def ours(x: Tensor) -> Tensor:
        return dynamic_pool(x, rows, columns, (3, 10))

    torch.testing.assert_close(ours(x), loop(x))
    return [
        Comparison(
            f"dynamic pooling of 32 x 16 x 25 x 150, {mode.__name__[1:].replace('_', ' ')}", partial(mode, ours, x),
            partial(mode, loop, x), "adaptive_max_pool2d by sample", "the same numbers",
        )
        for mode in (_forward, _training_step)
    ]  # fmt: skip


@torch.no_grad()
def _forward(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return function(x)


def _training_step(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor | None:
    leaf = x.detach().requires_grad_()
    function(leaf).sum().backward()
    return leaf.grad
