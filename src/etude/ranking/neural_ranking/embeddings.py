"""Word vectors: from a file, or from the collection itself by a factorised matrix of co-occurrence.

Levy & Goldberg, "Neural Word Embedding as Implicit Matrix Factorization", NeurIPS 2014: with #(w, c) the times that c
occurs within `window` words of w, |D| their sum,

    PPMI(w, c) = max(0, ln(#(w, c) |D| / (#(w) #(c)))),    PPMI ~ U S V^T,    vectors U sqrt(S).
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float
from scipy.sparse.linalg import svds
from torch import Tensor

from etude.ranking.neural_ranking.text import Vocabulary

__all__ = ["read_embeddings", "train_embeddings"]


def train_embeddings(
    documents: Sequence[Sequence[str]], vocabulary: Vocabulary, *, dim: int = 100, window: int = 5, seed: int = 0
) -> Float[Tensor, "words dim"]:
    """PPMI-SVD vectors of unit length; those of padding, unknown and isolated words are zero.

    Train them on documents only: queries that are later tested must not shape them.

    Args:
        documents: the tokens of each document.
        vocabulary: whose ids number the rows.
        dim: of the vectors; where the vocabulary is smaller the other columns are zero.
        window: words to either side that count.
        seed: of the start vector of the decomposition.
    """
    if dim < 1 or window < 1:
        raise ValueError(f"dim and window must be at least 1, got {dim} and {window}")
    words = len(vocabulary)
    ids = [np.array(vocabulary.ids(tokens), dtype=np.int64) for tokens in documents]
    pairs = [(row[:-step], row[step:]) for row in ids for step in range(1, min(window, len(row) - 1) + 1)]
    left = np.concatenate([first for first, _ in pairs]) if pairs else np.zeros(0, dtype=np.int64)
    right = np.concatenate([second for _, second in pairs]) if pairs else np.zeros(0, dtype=np.int64)
    known = (left > 1) & (right > 1)
    counts = scipy.sparse.coo_matrix((np.ones(int(known.sum())), (left[known], right[known])), (words, words)).tocsr()
    counts = (counts + counts.T).tocoo()
    vectors = torch.zeros(words, dim)
    if counts.nnz == 0:
        return vectors
    occurrences = np.asarray(counts.sum(axis=1)).ravel()
    values = np.log(counts.data * occurrences.sum() / (occurrences[counts.row] * occurrences[counts.col]))
    kept = values > 0
    matrix = scipy.sparse.csr_matrix((values[kept], (counts.row[kept], counts.col[kept])), (words, words))
    rank = min(dim, words - 1)
    left_vectors, strengths, _ = svds(matrix, k=rank, v0=np.random.default_rng(seed).standard_normal(words))
    order = np.argsort(-strengths)
    scaled = left_vectors[:, order] * np.sqrt(strengths[order])
    # A singular vector is known up to its sign: the largest entry decides.
    scaled *= np.sign(scaled[np.abs(scaled).argmax(axis=0), np.arange(rank)] + 1e-300)
    lengths = np.linalg.norm(scaled, axis=1, keepdims=True)
    scaled = np.where(lengths > 1e-9, scaled / np.maximum(lengths, 1e-9), 0.0)
    vectors[:, :rank] = torch.from_numpy(scaled).float()
    return vectors


def read_embeddings(path: str | os.PathLike, vocabulary: Vocabulary) -> tuple[Float[Tensor, "words dim"], float]:
    """Vectors from a text file of word2vec (first line: count, size) or GloVe (none); and the share of words found.

    Words without a vector get zeros, which match nothing but themselves.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a line has another number of values than the first, or one is no number.
    """
    place = Path(path)
    if not place.is_file():
        raise FileNotFoundError(f"there is no file {place}")
    found: dict[int, np.ndarray] = {}
    dim = 0
    with open(place, encoding="utf-8", errors="replace") as stream:
        for number, line in enumerate(stream, start=1):
            word, *values = line.rstrip().split(" ")
            if number == 1 and len(values) == 1:
                continue
            dim = dim or len(values)
            if len(values) != dim:
                raise ValueError(f"{place}, line {number}: expected {dim} values, got {len(values)}")
            if word in vocabulary:
                try:
                    found[vocabulary.ids([word])[0]] = np.array(values, dtype=np.float32)
                except ValueError:
                    raise ValueError(f"{place}, line {number}: the values must be numbers, got {line[:60]!r}") from None
    if dim == 0:
        raise ValueError(f"{place} holds no vectors")
    vectors = torch.zeros(len(vocabulary), dim)
    for row, vector in found.items():
        vectors[row] = torch.from_numpy(vector)
    return vectors, len(found) / max(len(vocabulary) - 2, 1)
