"""Targets of the tasks against dense versions written here, on Cora or a generated graph of its size; a GCN step.

The dense versions make what the definitions say with n x n arrays: all distances, all pairs of a class, the matrix of
nodes within two hops. They give the same numbers, which is checked before anything is timed.
"""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from scipy.sparse import csgraph
from torch import Tensor

from benchmarks.compare import Comparison
from etude.data import graphs
from etude.graphs.selftask import (
    ContextLabel,
    Distance2Cluster,
    Distance2Labeled,
    DistancePairs,
    EdgeMask,
    GCNEncoder,
    adjacency,
    citation_like,
    label_context,
    neighbourhood,
)


def comparisons() -> list[Comparison]:
    try:
        data: Any = graphs.planetoid("cora")
    except FileNotFoundError:
        data = citation_like(2708)
    name, adj = data.name, adjacency(data)
    train = torch.nonzero(data.train_mask).squeeze(1)
    dense = torch.zeros(data.num_nodes, data.num_nodes)
    dense[data.edge_index[0], data.edge_index[1]] = 1
    known = SimpleNamespace(adj=adj, dense=dense, data=data, train=train, y=data.y.numpy())

    cluster = Distance2Cluster(10, method="grow").prepare(data, train, _generator())
    known.centres = cluster.centres.numpy()
    near = neighbourhood(adj).tocoo()
    known.row, known.column = torch.from_numpy(near.row.astype(np.int64)), torch.from_numpy(near.col.astype(np.int64))
    _check(known, cluster.target_values)
    found = [
        Comparison(f"{what}, {name}", partial(ours, known), partial(peer, known), peer_name, note)
        for what, ours, peer, peer_name, note in (
            ("Distance2Labeled targets", _labelled, _dense_labelled, "all distances, dense", "the same numbers"),
            ("ContextLabel targets, labels given", _context, _dense_context, "A + A^2 > 0, dense", "the same numbers"),
            ("contexts of corrected labels, each epoch", _recount, _dense_recount, "n x n times one-hot",
             "the neighbourhood is made before"),
            ("PairwiseDistance classes", _classes, _dense_classes, "all distances, dense", "the same pairs"),
            ("PairwiseDistance draw, each epoch", _drawing(known), _dense_drawing(known), "np.where on n x n",
             "4,000 pairs of each class"),
            ("EdgeMask pairs", _edges, _dense_edges, "nonzero of n x n", "10 % of the edges, as many non-edges"),
        )
    ]  # fmt: skip
    return [*found, *_training(data)]


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _labelled(known: Any) -> Tensor:
    return Distance2Labeled().prepare(known.data, known.train, _generator()).target_values


def _all_distances(known: Any) -> np.ndarray:
    return csgraph.shortest_path(known.adj, unweighted=True, directed=False)


def _dense_labelled(known: Any) -> Tensor:
    distance = _all_distances(known)
    inverse = np.where(distance > 0, 1 / np.maximum(distance, 1), 0)
    inverse[~np.isfinite(distance)] = 0
    train, labels = known.train.numpy(), known.y[known.train.numpy()]
    columns = [inverse[:, train[labels == label]].mean(axis=1) for label in range(known.data.num_classes)]
    free = np.setdiff1d(np.arange(len(distance)), train)
    return torch.from_numpy(np.stack(columns, axis=1)[free]).float()


def _context(known: Any) -> Tensor:
    return ContextLabel(lambda data, train: data.y).prepare(known.data, known.train, _generator()).target_values


def _dense_near(known: Any) -> Tensor:
    near = ((known.dense + known.dense @ known.dense) > 0).float()
    return near.fill_diagonal_(0)


def _dense_shares(near: Tensor, known: Any) -> Tensor:
    counts = near @ torch.eye(known.data.num_classes)[known.data.y]
    return counts / counts.sum(dim=1, keepdim=True).clamp(min=1)


def _dense_context(known: Any) -> Tensor:
    return _dense_shares(_dense_near(known), known)


def _recount(known: Any) -> Tensor:
    return label_context(known.row, known.column, known.data.y, known.data.num_classes)


def _dense_recount(known: Any) -> Tensor:
    if not hasattr(known, "near"):
        known.near = _dense_near(known)
    return _dense_shares(known.near, known)


def _classes(known: Any) -> DistancePairs:
    return DistancePairs(known.adj, 3)


def _dense_classes(known: Any) -> np.ndarray:
    distance = np.minimum(_all_distances(known), 4)
    return np.triu(distance, 1).astype(np.int8)


def _drawing(known: Any) -> Callable[[Any], Any]:
    pairs, rng = DistancePairs(known.adj, 3), np.random.default_rng(0)
    return lambda known: pairs.draw(4000, rng)


def _dense_drawing(known: Any) -> Callable[[Any], Any]:
    classes, rng = _dense_classes(known), np.random.default_rng(0)

    def draw(known: Any) -> np.ndarray:
        drawn = []
        for number in range(1, 5):
            pairs = np.stack(np.where(classes == number))
            drawn.append(pairs[:, rng.choice(pairs.shape[1], size=4000, replace=False)])
        return np.concatenate(drawn, axis=1)

    return draw


def _edges(known: Any) -> Tensor:
    return EdgeMask().prepare(known.data, known.train, _generator()).pairs


def _dense_edges(known: Any) -> np.ndarray:
    rng, dense = np.random.default_rng(0), known.dense.numpy()
    upper = np.triu(np.ones_like(dense, dtype=bool), 1)
    there, absent = np.stack(np.nonzero(upper & (dense > 0))), np.stack(np.nonzero(upper & (dense == 0)))
    count = there.shape[1] // 10
    parts = [part[:, rng.choice(part.shape[1], size=count, replace=False)] for part in (there, absent)]
    return np.concatenate(parts, axis=1)


def _check(known: Any, to_centres: Tensor) -> None:
    torch.testing.assert_close(_labelled(known), _dense_labelled(known))
    torch.testing.assert_close(_context(known), _dense_context(known))
    torch.testing.assert_close(_recount(known), _dense_recount(known))
    distance = _all_distances(known)[:, known.centres]
    expected = np.where(np.isfinite(distance) & (distance > 0), 1 / np.maximum(distance, 1), 0)
    torch.testing.assert_close(to_centres, torch.from_numpy(expected).float())
    classes, counts = _dense_classes(known), _classes(known).counts()
    assert [int((classes == number).sum()) for number in range(1, 5)] == counts


def _training(data: Any) -> list[Comparison]:
    """A step of the backbone against PyG's own two layers, which take dense features and pass messages by edge."""
    from torch_geometric.nn import GCN

    ours = GCNEncoder(data.num_features, data.num_classes)
    peer = GCN(data.num_features, 128, 2, data.num_classes, dropout=0.5, cached=True)
    x = data.x.to_dense()

    def step(model: torch.nn.Module, features: Tensor) -> None:
        model.zero_grad()
        output = model(features, data.edge_index)
        logits = output[0] if isinstance(output, tuple) else output
        torch.nn.functional.cross_entropy(logits[data.train_mask], data.y[data.train_mask]).backward()

    return [
        Comparison(
            f"GCN training step, {data.name}", lambda: step(ours, data.x), lambda: step(peer, x), "PyG GCN",
            "ours takes the features sparse",
        )
    ]  # fmt: skip
