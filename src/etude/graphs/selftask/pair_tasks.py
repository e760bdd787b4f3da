"""Basic tasks on pairs of nodes, told from |e_i - e_j|: masked edges, distances, likeness of attributes.

Jin et al., "Self-supervised Learning on Graphs: Deep Insights and New Direction", arXiv:2006.10141, section 3.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from etude.graphs.selftask.pairs import DistancePairs, non_edges, similarity_pairs
from etude.graphs.selftask.structure import adjacency, features_of, numpy_rng
from etude.graphs.selftask.task import PretextTask, replaced

__all__ = ["EdgeMask", "PairwiseAttributeSimilarity", "PairwiseDistance"]


def _contrasts(embeddings: Tensor, pairs: Tensor) -> Tensor:
    """|e_i - e_j| of pairs (2, m)."""
    return (embeddings.index_select(0, pairs[0]) - embeddings.index_select(0, pairs[1])).abs()


class EdgeMask(PretextTask):
    """Tells masked edges, which the encoder does not see, from as many pairs without an edge.

    Args:
        ratio: share of the edges that is masked.
        resample: mask other edges at each call of `corrupt`, which must then come before `loss`; once if False, as in
            the authors' code.
        directed_mask: mask directed entries of the adjacency, as the authors' code does: the opposite direction of a
            masked edge mostly stays visible. By default both go.
        hidden_dim: width of the embeddings.

    Raises:
        ValueError: if `ratio` lies outside (0, 1); when prepared, if the graph has too few edges or non-edges.
    """

    pairs: Tensor
    kept: Tensor

    def __init__(
        self,
        ratio: float | int = 0.1,
        *,
        resample: bool = False,
        directed_mask: bool = False,
        hidden_dim: int = 128,
    ):
        super().__init__(hidden_dim)
        if not 0 < ratio < 1:
            raise ValueError(f"ratio must lie in (0, 1), got {ratio}")
        self.ratio, self.resample, self.directed_mask = ratio, resample, directed_mask
        self._last: tuple[Any, Any] | None = None
        self._drawn_for_next = False

    @property
    def masked(self) -> Tensor:
        """(2, m): the masked edges, as (smaller, larger) unless the mask is directed."""
        return self.pairs[:, : self.pairs.shape[1] // 2]

    @property
    def negatives(self) -> Tensor:
        """(2, m): the pairs without an edge, as (smaller, larger)."""
        return self.pairs[:, self.pairs.shape[1] // 2 :]

    def build(self, data: Any, train_idx: Tensor, generator: torch.Generator) -> int:
        self._draw(data, numpy_rng(generator))
        return 2

    def _draw(self, data: Any, rng: np.random.Generator) -> None:
        adj = adjacency(data)
        nodes = adj.shape[0]
        coo = adj.tocoo()
        row, column = coo.row.astype(np.int64), coo.col.astype(np.int64)
        if not self.directed_mask:
            row, column = row[row < column], column[row < column]
        count = int(self.ratio * len(row))
        if count < 1:
            raise ValueError(f"a share of {self.ratio} of {len(row)} edges is less than one edge")
        chosen = rng.choice(len(row), size=count, replace=False)
        masked = np.stack([row[chosen], column[chosen]])
        source, target = data.edge_index.cpu().numpy()
        hidden = masked[0] * nodes + masked[1]
        if self.directed_mask:
            seen = ~np.isin(source * nodes + target, hidden)
        else:
            seen = ~np.isin(np.minimum(source, target) * nodes + np.maximum(source, target), hidden)
        pairs = np.concatenate([masked, non_edges(adj, count, rng)], axis=1)
        device = data.x.device
        self.keep(pairs=torch.from_numpy(pairs).to(device), kept=torch.from_numpy(seen).to(device))
        self.forget()
        self._drawn_for_next = True

    def forget(self) -> None:
        self._last = None

    def corrupt(self, data: Any, *, generator: torch.Generator | None = None) -> Any:
        if self.resample and not self._drawn_for_next:
            self._draw(data, numpy_rng(generator or torch.default_generator))
        self._drawn_for_next = False
        if self._last is None or self._last[0] is not data:
            if data.edge_index.shape[1] != len(self.kept):
                raise ValueError(
                    f"the mask was drawn for a graph of {len(self.kept)} edges, got {data.edge_index.shape[1]}"
                )
            changes = {"edge_index": data.edge_index[:, self.kept]}
            for name in ("edge_weight", "edge_attr"):
                if isinstance(getattr(data, name, None), Tensor):
                    changes[name] = getattr(data, name)[self.kept]
            self._last = data, replaced(data, **changes)
        return self._last[1]

    def pretext_loss(self, embeddings: Tensor, epoch: int, generator: torch.Generator) -> Tensor:
        labels = torch.zeros(self.pairs.shape[1], dtype=torch.int64, device=embeddings.device)
        labels[: len(labels) // 2] = 1
        return F.cross_entropy(self.output(_contrasts(embeddings, self.pairs)), labels)


class PairwiseDistance(PretextTask):
    """Tells the distance of two nodes, 1, 2, 3 or more: global structure.

    Args:
        pairs_per_class: pairs of each class drawn anew at each loss.
        max_distance: the last class holds all pairs at this distance or farther, or without a path.
        max_sources: in a graph of more than 5,000 nodes pairs start at so many nodes, drawn once.
        hidden_dim: width of the embeddings.

    Warns:
        UserWarning: at the first loss, where the graph has fewer pairs of a class than asked: they are drawn with
            replacement, and a class without any is left out.
    """

    edges: Tensor
    sources: Tensor

    _ALL_SOURCES = 5_000

    def __init__(
        self,
        pairs_per_class: int = 4000,
        *,
        max_distance: int = 4,
        max_sources: int = 2000,
        hidden_dim: int = 128,
    ):
        super().__init__(hidden_dim)
        if pairs_per_class < 1 or max_sources < 1 or max_distance < 2:
            raise ValueError(
                f"pairs and sources must be at least 1 and max_distance at least 2, "
                f"got {pairs_per_class}, {max_sources} and {max_distance}"
            )
        self.pairs_per_class, self.max_distance, self.max_sources = pairs_per_class, max_distance, max_sources
        self._pairs: DistancePairs | None = None

    def build(self, data: Any, train_idx: Tensor, generator: torch.Generator) -> int:
        nodes = data.x.shape[0]
        adjacency(data)  # refuses a directed graph now
        few = nodes > self._ALL_SOURCES
        sources = torch.randperm(nodes, generator=generator)[: self.max_sources] if few else torch.arange(nodes)
        self.keep(edges=data.edge_index, sources=sources)
        return self.max_distance

    def forget(self) -> None:
        self._pairs = None

    @property
    def distance_pairs(self) -> DistancePairs:
        """The pairs by class, read off the graph when first asked for."""
        if self._pairs is None:
            nodes = int(self.graph_size)
            sources = None if len(self.sources) == nodes else self.sources.cpu().numpy()
            self._pairs = DistancePairs(_simple_graph(self.edges, nodes), self.max_distance - 1, sources)
        return self._pairs

    def pretext_loss(self, embeddings: Tensor, epoch: int, generator: torch.Generator) -> Tensor:
        pairs, classes = self.distance_pairs.draw(self.pairs_per_class, numpy_rng(generator))
        output = self.output(_contrasts(embeddings, torch.from_numpy(pairs).to(embeddings.device)))
        return F.cross_entropy(output, torch.from_numpy(classes).to(embeddings.device))


class _Edges:
    def __init__(self, edge_index: Tensor, num_nodes: int):
        self.edge_index, self.x = edge_index, torch.empty(num_nodes, 0)


def _simple_graph(edge_index: Tensor, num_nodes: int) -> Any:
    return adjacency(_Edges(edge_index, num_nodes))


class PairwiseAttributeSimilarity(PretextTask):
    """Regresses the cosine similarity of the attributes of two nodes.

    Args:
        num_extreme: of each node, so many of the most and so many of the least similar nodes are partners.
        num_random: and so many others.
        pairs_per_step: pairs drawn from the pool at each loss.
        hidden_dim: width of the embeddings.
    """

    pairs: Tensor
    target_values: Tensor

    def __init__(self, num_extreme: int = 3, num_random: int = 3, *, pairs_per_step: int = 5000, hidden_dim: int = 128):
        super().__init__(hidden_dim)
        if pairs_per_step < 1:
            raise ValueError(f"pairs_per_step must be at least 1, got {pairs_per_step}")
        self.num_extreme, self.num_random, self.pairs_per_step = num_extreme, num_random, pairs_per_step

    def build(self, data: Any, train_idx: Tensor, generator: torch.Generator) -> int:
        pairs, values = similarity_pairs(
            features_of(data), self.num_extreme, self.num_random, numpy_rng(generator)
        )  # fmt: skip
        self.keep(pairs=torch.from_numpy(pairs), target_values=torch.from_numpy(values.astype(np.float32)))
        return 1

    def pretext_loss(self, embeddings: Tensor, epoch: int, generator: torch.Generator) -> Tensor:
        pool = self.pairs.shape[1]
        size = min(self.pairs_per_step, pool)
        drawn = torch.from_numpy(numpy_rng(generator).choice(pool, size=size, replace=False, shuffle=False))
        drawn = drawn.to(embeddings.device)
        output = self.output(_contrasts(embeddings, self.pairs[:, drawn]))
        return F.mse_loss(output.squeeze(1), self.target_values[drawn])
