"""Pairs of nodes drawn by their distance, by their likeness, or as non-edges, without an n x n array.

Jin et al., "Self-supervised Learning on Graphs: Deep Insights and New Direction", arXiv:2006.10141, section 3.
"""

import warnings

import numpy as np
import scipy.sparse

from etude.graphs.selftask.structure import cosine_rows, rings

__all__ = ["DistancePairs", "non_edges", "similarity_pairs"]


class DistancePairs:
    """Pairs of nodes by distance class: 1, 2, ..., depth, and farther than that or without a path.

    Near pairs are kept class by class, read off sparse rings. Pairs of the last class are far too many to keep: they
    are drawn at random and rejected if near; where they are rarer than one in twenty they are listed after all.

    Args:
        adj: see `adjacency`.
        depth: the classes are 0..depth.
        sources: first nodes of the pairs, all if None; then every pair is held once, as (smaller, larger).
    """

    def __init__(self, adj: scipy.sparse.csr_array, depth: int = 3, sources: np.ndarray | None = None):
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        self.num_nodes, self.depth = adj.shape[0], depth
        self.sources = None if sources is None else np.asarray(sources, dtype=np.int64)
        self.near = [self._listed(ring) for ring in rings(adj, depth, self.sources)]
        self._keys = np.sort(np.concatenate([first * self.num_nodes + second for first, second in self.near]))
        starts = self.num_nodes if self.sources is None else len(self.sources)
        total = self.num_nodes * (self.num_nodes - 1) // 2 if self.sources is None else starts * (self.num_nodes - 1)
        self.far_count = total - len(self._keys)
        self.far = self._enumerated() if self.far_count < total / 20 else None

    def counts(self) -> list[int]:
        """Pairs in each class."""
        return [pairs.shape[1] for pairs in self.near] + [self.far_count]

    def draw(self, per_class: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Pairs (2, m) int64 and their classes (m,): `per_class` different ones of every class that has any.

        Warns:
            UserWarning: where a class has fewer pairs than asked, which are then drawn with replacement, or none.
        """
        drawn, classes = [], []
        for number, count in enumerate(self.counts()):
            if count < per_class:
                how = "drawn with replacement" if count else "which is left out"
                warnings.warn(f"{count} pairs in distance class {number}, fewer than {per_class}: {how}", stacklevel=2)
            if count == 0:
                continue
            if number == self.depth and self.far is None:
                pairs = self._draw_far(per_class, rng, distinct=count >= per_class)
            else:
                listed = self.near[number] if number < self.depth else self.far
                assert listed is not None
                pairs = listed[:, rng.choice(count, size=per_class, replace=count < per_class, shuffle=False)]
            drawn.append(pairs)
            classes.append(np.full(pairs.shape[1], number))
        if not drawn:
            raise ValueError(f"a graph of {self.num_nodes} nodes has no pairs to draw")
        return np.concatenate(drawn, axis=1).astype(np.int64), np.concatenate(classes)

    def _listed(self, ring: scipy.sparse.csr_array) -> np.ndarray:
        """(2, pairs) of the ring's entries; each once if all nodes are sources."""
        coo = ring.tocoo()
        first, second = coo.row.astype(np.int64), coo.col.astype(np.int64)
        if self.sources is not None:
            return np.stack([self.sources[first], second])
        once = first < second
        return np.stack([first[once], second[once]])

    def _is_near(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        keys = first * self.num_nodes + second
        place = np.searchsorted(self._keys, keys)
        place[place == len(self._keys)] = 0
        return self._keys[place] == keys if len(self._keys) else np.zeros(len(keys), dtype=bool)

    def _draw_far(self, count: int, rng: np.random.Generator, distinct: bool) -> np.ndarray:
        kept = np.zeros(0, dtype=np.int64)
        while len(kept) < count:
            first = rng.integers(self.num_nodes, size=2 * count)
            if self.sources is not None:
                first = self.sources[rng.integers(len(self.sources), size=2 * count)]
            second = rng.integers(self.num_nodes, size=2 * count)
            if self.sources is None:
                first, second = np.minimum(first, second), np.maximum(first, second)
            fits = (first != second) & ~self._is_near(first, second)
            kept = np.concatenate([kept, first[fits] * self.num_nodes + second[fits]])
            if distinct:
                # In order of drawing: sorted keys would prefer small nodes once the surplus is cut off.
                kept = kept[np.sort(np.unique(kept, return_index=True)[1])]
        return np.stack([kept[:count] // self.num_nodes, kept[:count] % self.num_nodes])

    def _enumerated(self, chunk: int = 256) -> np.ndarray:
        starts = np.arange(self.num_nodes) if self.sources is None else self.sources
        found = [np.zeros((2, 0), dtype=np.int64)]
        other = np.arange(self.num_nodes)
        for begin in range(0, len(starts), chunk):
            first = np.repeat(starts[begin : begin + chunk], self.num_nodes)
            second = np.tile(other, len(starts[begin : begin + chunk]))
            fits = (first < second if self.sources is None else first != second) & ~self._is_near(first, second)
            found.append(np.stack([first[fits], second[fits]]))
        return np.concatenate(found, axis=1)


def non_edges(adj: scipy.sparse.csr_array, count: int, rng: np.random.Generator) -> np.ndarray:
    """(2, count) int64: different pairs (smaller, larger) of nodes that no edge joins.

    Raises:
        ValueError: if the graph has fewer such pairs.
    """
    pairs = DistancePairs(adj, depth=1)
    if pairs.far_count < count:
        raise ValueError(f"{count} pairs without an edge are needed, the graph has {pairs.far_count}")
    if pairs.far is not None:
        return pairs.far[:, rng.choice(pairs.far_count, size=count, replace=False)]
    return pairs._draw_far(count, rng, distinct=True) if count else np.zeros((2, 0), dtype=np.int64)


def similarity_pairs(
    features: scipy.sparse.csr_array | np.ndarray,
    num_extreme: int,
    num_random: int,
    rng: np.random.Generator,
    *,
    max_nodes: int = 10_000,
    chunk: int = 256,
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (2, m), each once, and their cosine similarities (m,): of each node the most and least similar, and others.

    Bags of words have many pairs of similarity 0; ties are broken at random, so that no node is preferred.

    Args:
        features: (n, f).
        num_extreme: so many of the most and so many of the least similar nodes.
        num_random: so many nodes at random.
        rng: draws the random nodes and breaks the ties.
        max_nodes: in larger graphs so many nodes, drawn at random, look for partners among all.
        chunk: nodes compared with all others at once; memory grows with chunk x n.

    Raises:
        ValueError: if a number is out of range for so many nodes.
    """
    nodes = features.shape[0]
    if num_extreme < 0 or num_random < 0 or num_extreme + num_random < 1:
        raise ValueError(f"similar and random partners must be >= 0, one at least, got {num_extreme} and {num_random}")
    if nodes < 2 * num_extreme + 2:
        raise ValueError(f"{nodes} nodes are too few for {num_extreme} most and {num_extreme} least similar ones")
    unit = cosine_rows(features)
    lookers = np.arange(nodes) if nodes <= max_nodes else np.sort(rng.choice(nodes, size=max_nodes, replace=False))
    keys, values = [], []
    for start in range(0, len(lookers), chunk):
        rows = lookers[start : start + chunk]
        similarity = unit[rows] @ unit.T
        similarity = np.asarray(similarity if isinstance(similarity, np.ndarray) else similarity.toarray())
        partners = [rng.integers(nodes, size=(len(rows), num_random))]
        if num_extreme:
            ranked = similarity + 1e-6 * rng.random(similarity.shape, dtype=np.float32)
            ranked[np.arange(len(rows)), rows] = np.nan  # sorted last: a node is no partner of itself
            last = nodes - 1 - num_extreme
            order = np.argpartition(ranked, (num_extreme - 1, last, nodes - 1), axis=1)
            partners += [order[:, :num_extreme], order[:, last : nodes - 1]]
        chosen = np.concatenate(partners, axis=1)
        first = np.repeat(rows, chosen.shape[1])
        second = chosen.ravel()
        apart = first != second
        value = np.take_along_axis(similarity, chosen, axis=1).ravel()[apart]
        first, second = np.minimum(first, second)[apart], np.maximum(first, second)[apart]
        keys.append(first * nodes + second)
        values.append(value)
    pooled, place = np.unique(np.concatenate(keys), return_index=True)
    return np.stack([pooled // nodes, pooled % nodes]), np.concatenate(values)[place]
