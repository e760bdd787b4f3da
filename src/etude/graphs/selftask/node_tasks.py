"""Basic tasks on single nodes: a property of the node, its masked attributes, its distances to clusters.

Jin et al., "Self-supervised Learning on Graphs: Deep Insights and New Direction", arXiv:2006.10141, section 3.
"""

from typing import Any

import numpy as np
import scipy.sparse
import torch
import torch.nn.functional as F
from torch import Tensor

from etude.graphs.selftask.partition import centres, partition
from etude.graphs.selftask.structure import (
    adjacency,
    features_of,
    hop_distances,
    node_property,
    numpy_rng,
)
from etude.graphs.selftask.task import PretextTask, replaced, unlabelled

__all__ = ["AttributeMask", "Distance2Cluster", "NodeProperty", "inverse_distance"]


def inverse_distance(distance: np.ndarray) -> np.ndarray:
    """1 / distance in float32; 0 without a path (-1) and, as in the authors' code, of a node to itself."""
    return np.where(distance > 0, 1 / np.maximum(distance, 1), 0).astype(np.float32)


class NodeProperty(PretextTask):
    """Predicts a property of each unlabelled node: local structure.

    Args:
        target: "degree" as in the paper, or "pagerank", "closeness", "clustering" (see `node_property`).
        mode: "regression" with squared error, as the paper has it, on the target standardised over the nodes asked; or
            "bins", as the authors' code has it: cross-entropy over three ranges, of the degree <= 2, 3..7 and > 7, of
            other targets their terciles.
        hidden_dim: width of the embeddings.

    Raises:
        ValueError: if target or mode is unknown.
    """

    nodes: Tensor
    target_values: Tensor

    def __init__(self, target: str = "degree", mode: str = "regression", *, hidden_dim: int = 128):
        super().__init__(hidden_dim)
        if target not in ("degree", "pagerank", "closeness", "clustering"):
            raise ValueError(f'target must be "degree", "pagerank", "closeness" or "clustering", got {target!r}')
        if mode not in ("regression", "bins"):
            raise ValueError(f'mode must be "regression" or "bins", got {mode!r}')
        self.target, self.mode = target, mode

    def build(self, data: Any, train_idx: Tensor, generator: torch.Generator) -> int:
        nodes = unlabelled(data.x.shape[0], train_idx)
        values = node_property(adjacency(data), self.target)[nodes.numpy()]
        if self.mode == "bins":
            edges = [2, 7] if self.target == "degree" else np.quantile(values, [1 / 3, 2 / 3])
            self.keep(nodes=nodes, target_values=torch.from_numpy(np.searchsorted(edges, values)))
            return 3
        spread = values.std()
        standard = (values - values.mean()) / (spread if spread > 0 else 1)
        self.keep(nodes=nodes, target_values=torch.from_numpy(standard.astype(np.float32)))
        return 1

    def pretext_loss(self, embeddings: Tensor, epoch: int, generator: torch.Generator) -> Tensor:
        output = self.output(embeddings[self.nodes])
        if self.mode == "bins":
            return F.cross_entropy(output, self.target_values)
        return F.mse_loss(output.squeeze(1), self.target_values)


class AttributeMask(PretextTask):
    """Recovers the attributes of some unlabelled nodes, whose rows of x the encoder sees as zeros.

    Rows of a bag of words scaled to sum 1 make squared errors of 1e-4 and less: the published weights are around 100.

    Args:
        ratio: share of the unlabelled nodes that is masked, once and for all.
        target_dim: recover the leading principal directions (truncated SVD of x) instead of all f attributes.
        hidden_dim: width of the embeddings.

    Raises:
        ValueError: if `ratio` lies outside (0, 1] or `target_dim` is not positive.
    """

    nodes: Tensor
    target_values: Tensor

    def __init__(self, ratio: float | int = 0.1, *, target_dim: int | None = None, hidden_dim: int = 128):
        super().__init__(hidden_dim)
        if not 0 < ratio <= 1:
            raise ValueError(f"ratio must lie in (0, 1], got {ratio}")
        if target_dim is not None and target_dim < 1:
            raise ValueError(f"target_dim must be at least 1, got {target_dim}")
        self.ratio, self.target_dim = ratio, target_dim
        self._last: tuple[Any, Any] | None = None

    def build(self, data: Any, train_idx: Tensor, generator: torch.Generator) -> int:
        free = unlabelled(data.x.shape[0], train_idx)
        count = max(int(self.ratio * len(free)), 1)
        nodes = free[torch.randperm(len(free), generator=generator)[:count]].sort().values
        features = features_of(data)
        if self.target_dim is None:
            rows = features[nodes.numpy()]
        else:
            rows = self._reduced(features, numpy_rng(generator))[nodes.numpy()]
        dense = rows if isinstance(rows, np.ndarray) else rows.toarray()
        self.keep(nodes=nodes, target_values=torch.from_numpy(np.ascontiguousarray(dense, dtype=np.float32)))
        return dense.shape[1]

    def _reduced(self, features: scipy.sparse.csr_array | np.ndarray, rng: np.random.Generator) -> np.ndarray:
        assert self.target_dim is not None
        if self.target_dim >= min(features.shape):
            raise ValueError(f"target_dim must be less than {min(features.shape)}, got {self.target_dim}")
        start = rng.standard_normal(min(features.shape))
        left, values, _ = scipy.sparse.linalg.svds(features.astype(np.float64), self.target_dim, v0=start)
        return (left * values)[:, ::-1]

    def forget(self) -> None:
        self._last = None

    def corrupt(self, data: Any, *, generator: torch.Generator | None = None) -> Any:
        if self._last is None or self._last[0] is not data:
            self._last = data, replaced(data, x=self._masked(data.x))
        return self._last[1]

    def _masked(self, x: Tensor) -> Tensor:
        kept = torch.ones(x.shape[0], dtype=x.dtype, device=x.device)
        kept[self.nodes] = 0
        if x.layout == torch.strided:
            return x * kept[:, None]
        values = x.values() * torch.repeat_interleave(kept, x.crow_indices().diff().to(torch.int64))
        return torch.sparse_csr_tensor(
            x.crow_indices(), x.col_indices(), values, size=x.shape, check_invariants=False
        )  # fmt: skip

    def pretext_loss(self, embeddings: Tensor, epoch: int, generator: torch.Generator) -> Tensor:
        return F.mse_loss(self.output(embeddings[self.nodes]), self.target_values)


class Distance2Cluster(PretextTask):
    """Regresses 1 / distance to the centre of each of k clusters of the graph, for all nodes: global structure.

    The centre of a cluster is its node with the most neighbours inside. (The authors' code takes the centre's number
    within the cluster for a number in the graph; here it is the node itself.)

    Args:
        num_clusters: k; the authors take 10 for Cora and CiteSeer, 30 for PubMed.
        method: "metis", "grow", or "auto": METIS where `pymetis` is installed.
        hidden_dim: width of the embeddings.

    Attributes:
        centres: node number of each centre (k,).
        partition_method: how the clusters were found.
    """

    centres: Tensor
    target_values: Tensor
    by_metis: Tensor

    def __init__(self, num_clusters: int = 10, *, method: str = "auto", hidden_dim: int = 128):
        super().__init__(hidden_dim)
        if num_clusters < 1:
            raise ValueError(f"num_clusters must be at least 1, got {num_clusters}")
        self.num_clusters, self.method = num_clusters, method

    @property
    def partition_method(self) -> str:
        return "metis" if bool(self.by_metis) else "grow"

    def build(self, data: Any, train_idx: Tensor, generator: torch.Generator) -> int:
        adj = adjacency(data)
        parts, method = partition(adj, self.num_clusters, method=self.method, rng=numpy_rng(generator))
        nodes = centres(adj, parts)
        values = torch.from_numpy(inverse_distance(hop_distances(adj, nodes)))
        self.keep(centres=torch.from_numpy(nodes), target_values=values, by_metis=torch.tensor(method == "metis"))
        return self.num_clusters

    def pretext_loss(self, embeddings: Tensor, epoch: int, generator: torch.Generator) -> Tensor:
        return F.mse_loss(self.output(embeddings), self.target_values)
