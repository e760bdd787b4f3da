"""Concepts scored all at once beside one after the other, BM25 beside a loop, the layer's training beside the authors'.

The grounding functions are those of a full bottleneck: 150 concepts on 768 features.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.compare import Comparison
from etude.data.kinds import Examples
from etude.loop import fit
from etude.science.knobo import BM25Retriever, Corpus, Document, GroundingFunctions, prior_loss, unit_features
from etude.science.knobo.text import content

IMAGES, DIM, CONCEPTS = 1_000, 768, 150
WORDS = [f"word{k}" for k in range(2_000)]


def grounded(rng: np.random.Generator) -> GroundingFunctions:
    """Functions with drawn coefficients: their speed does not depend on what they learned."""
    functions = GroundingFunctions()
    functions.accuracy_ = {f"Concept {k}?": 1.0 for k in range(CONCEPTS)}
    functions._keep(tuple(functions.accuracy_), [(rng.normal(size=DIM), 0.0) for _ in range(CONCEPTS)])
    return functions


def one_by_one(functions: GroundingFunctions) -> list:
    from sklearn.linear_model import LogisticRegression

    models = []
    for coef, intercept in zip(functions.coef_, functions.intercept_):
        model = LogisticRegression()
        model.classes_, model.coef_ = np.array([-1, 1]), coef[None]
        model.intercept_, model.n_features_in_ = np.array([intercept]), DIM
        models.append(model)
    return models


class Loop:
    """Equation (1) of `retrieval` with a loop over the postings of the query's words."""

    def __init__(self, corpus: Corpus, k1: float = 1.2, b: float = 0.75):
        texts = [content(document.text) for document in corpus]
        self.size, mean = len(texts), sum(map(len, texts)) / len(texts)
        self.postings: dict[str, list[tuple[int, float]]] = {}
        for place, text in enumerate(texts):
            for word in set(text):
                tf = text.count(word)
                share = tf / (tf + k1 * (1 - b + b * len(text) / mean))
                self.postings.setdefault(word, []).append((place, share))

    def scores(self, query: str) -> list[float]:
        scores = [0.0] * self.size
        for word in content(query):
            rows = self.postings.get(word, [])
            idf = math.log(1 + (self.size - len(rows) + 0.5) / (len(rows) + 0.5))
            for place, share in rows:
                scores[place] += idf * share
        return scores


def comparisons() -> list[Comparison]:
    rng = np.random.default_rng(0)
    functions = grounded(rng)
    models = one_by_one(functions)
    features = unit_features(rng.normal(size=(IMAGES, DIM)).astype(np.float32))
    rows = features.numpy()

    corpus = Corpus(Document(str(k), " ".join(rng.choice(WORDS, 60))) for k in range(20_000))
    queries = [" ".join(rng.choice(WORDS, 6)) for _ in range(20)]
    ours, loop = BM25Retriever(corpus), Loop(corpus)

    scores, labels = torch.rand(800, CONCEPTS), torch.arange(800) % 2
    prior = torch.randint(-1, 2, (2, CONCEPTS)).float()
    layer, theirs = nn.Linear(CONCEPTS, 2), nn.Linear(CONCEPTS, 2)
    steps, peers = (torch.optim.Adam(one.parameters(), lr=1e-3) for one in (layer, theirs))
    loader = DataLoader(TensorDataset(scores, labels), batch_size=64, shuffle=True, drop_last=True)

    def train() -> None:
        def loss(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(logits, y) + prior_loss(layer.weight, prior)

        fit(layer, Examples(scores, labels), steps, loss=loss, epochs=5, batch_size=64, every=60)

    def train_from_loader() -> None:
        for _ in range(5):
            for x, y in loader:
                peers.zero_grad()
                loss = F.cross_entropy(theirs(x), y)
                loss = loss + torch.sum(torch.abs(torch.tanh(theirs.weight) - prior)) / (2 * CONCEPTS)
                loss.backward()
                peers.step()

    return [
        Comparison(
            f"{CONCEPTS} concepts on {IMAGES} images",
            lambda: functions.transform(features),
            lambda: np.stack([model.predict_proba(rows)[:, 1] for model in models], axis=1),
            "scikit-learn, one by one",
            "ours in float64",
        ),
        Comparison(
            "20 queries on 20,000 documents, BM25",
            lambda: [ours.scores(query) for query in queries],
            lambda: [loop.scores(query) for query in queries],
            "a loop over postings",
        ),
        Comparison(
            "5 epochs of the layer with the prior, 800 images",
            train,
            train_from_loader,
            "a DataLoader and the authors' loop",
        ),
    ]
