"""Graphs with node classes: the Planetoid citation networks from their raw files, and a user's own from two tables.

Yang, Cohen & Salakhutdinov, "Revisiting Semi-Supervised Learning with Graph Embeddings", arXiv:1603.08861, 2016,
whose files and split are the public benchmark. The files are Python 2 pickles. They are read by an unpickler that
knows the five names which such files need and builds nothing else, so a file from a stranger can be wrong but not
run code.
"""

import os
import pickle
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch

from etude.data.catalogue import locate
from etude.data.kinds import GraphData
from etude.data.splitting import cut, stratified_order

__all__ = ["edge_list", "planetoid"]

_NUM_VAL = 500


class _Csr:
    """Stands for a pickled csr_matrix: holds its fields until they have been checked."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.fields = state


_ADMITTED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("scipy.sparse.csr", "csr_matrix"): _Csr,
    ("scipy.sparse._csr", "csr_matrix"): _Csr,
    ("collections", "defaultdict"): defaultdict,
    ("__builtin__", "list"): list,
    ("builtins", "list"): list,
}


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"the name {module}.{name} is not admitted") from None


def _unpickled(file: Path) -> Any:
    if not file.is_file():
        raise FileNotFoundError(f"place {file.name} into {file.parent}")
    with open(file, "rb") as stream:
        try:
            return _Restricted(stream, encoding="latin1").load()
        except (pickle.UnpicklingError, EOFError, TypeError, ValueError, AttributeError, IndexError, KeyError) as error:
            raise ValueError(f"{file} is not a Planetoid file: {error}") from error


def _matrix(file: Path) -> scipy.sparse.csr_matrix:
    loaded = _unpickled(file)
    try:
        fields = loaded.fields
        parts = tuple(np.asarray(fields[name]) for name in ("data", "indices", "indptr"))
        matrix = scipy.sparse.csr_matrix(parts, shape=fields.get("_shape", fields.get("shape")), dtype=np.float32)
        matrix.check_format(full_check=True)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} must hold a sparse matrix: {error}") from error
    return matrix


def _one_hot(file: Path) -> np.ndarray:
    array = _unpickled(file)
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.hasobject:
        raise ValueError(f"{file} must hold an array of one-hot labels (nodes, classes)")
    return array


def _edges(file: Path, nodes: int) -> np.ndarray:
    """Both directions of every edge once, sorted, without self-loops."""
    graph = _unpickled(file)
    if not isinstance(graph, dict):
        raise ValueError(f"{file} must hold a dictionary of neighbours, got {type(graph).__name__}")
    try:
        pairs = [(int(node), int(neighbour)) for node, neighbours in graph.items() for neighbour in neighbours]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file} must map each node to its neighbours' numbers: {error}") from error
    source, target = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    if len(source) and not 0 <= min(source.min(), target.min()) <= max(source.max(), target.max()) < nodes:
        raise ValueError(f"{file} names nodes outside 0..{nodes - 1}")
    source, target = np.concatenate([source, target]), np.concatenate([target, source])
    keys = np.unique((source * nodes + target)[source != target])
    return np.stack([keys // nodes, keys % nodes])


def planetoid(name: str, root: str | os.PathLike | None = None, *, sparse: bool = True) -> GraphData:
    """Cora, CiteSeer or PubMed with the public split: 20 nodes a class to train, 500 to validate, 1,000 to test.

    Features are as in the files (not normalised). CiteSeer has 15 nodes without a paper: they are in the graph with
    zero features, label 0 and no edge, and in no part of the split.

    Args:
        name: "cora", "citeseer" or "pubmed", in any case.
        root: folder of the raw files `ind.NAME.*`; the data set `planetoid` if None.
        sparse: features as a sparse CSR tensor, which makes the first layer many times faster; else dense.

    Raises:
        FileNotFoundError: if a file is missing, with its name.
        ValueError: if a file does not hold what it should, or asks for any name but the admitted ones.
    """
    key = name.lower()
    if key not in ("cora", "citeseer", "pubmed"):
        raise ValueError(f"name must be cora, citeseer or pubmed, got {name!r}")
    folder = locate("planetoid") if root is None else Path(root)

    def file(part: str) -> Path:
        return folder / f"ind.{key}.{part}"

    num_train = len(_one_hot(file("y")))
    labels_known, labels_test = _one_hot(file("ally")), _one_hot(file("ty"))
    known, tested = _matrix(file("allx")), _matrix(file("tx"))
    if not file("test.index").is_file():
        raise FileNotFoundError(f"place {file('test.index').name} into {folder}")
    try:
        test_nodes = np.array(file("test.index").read_text().split(), dtype=np.int64)
    except ValueError as error:
        raise ValueError(f"{file('test.index')} must hold one node number a line: {error}") from error
    first = known.shape[0]
    if len(test_nodes) != tested.shape[0] or len(test_nodes) != len(labels_test) or len(labels_known) != first:
        raise ValueError(
            f"the files of {key} disagree: {len(test_nodes)} test nodes, features of {tested.shape[0]}, labels of "
            f"{len(labels_test)}; {first} other nodes, labels of {len(labels_known)}"
        )
    if test_nodes.min() < first or len(np.unique(test_nodes)) != len(test_nodes):
        raise ValueError(f"{file('test.index')} must hold distinct numbers from {first} up")
    if num_train + _NUM_VAL > first:
        raise ValueError(f"{key} has {first} nodes before the test nodes, the split needs {num_train + _NUM_VAL}")

    nodes = int(test_nodes.max()) + 1
    # Row i of tx belongs to node test_nodes[i]; numbers that no row claims are the nodes without a paper.
    place = scipy.sparse.csr_matrix(
        (np.ones(len(test_nodes), np.float32), (test_nodes - first, np.arange(len(test_nodes)))),
        shape=(nodes - first, len(test_nodes)),
    )
    features = scipy.sparse.vstack([known, place @ tested], format="csr")
    features.sort_indices()
    y = np.zeros(nodes, dtype=np.int64)
    y[:first] = labels_known.argmax(axis=1)
    y[test_nodes] = labels_test.argmax(axis=1)

    def mask(members: np.ndarray | slice) -> torch.Tensor:
        chosen = torch.zeros(nodes, dtype=torch.bool)
        chosen[members] = True
        return chosen

    return GraphData(
        x=_sparse_tensor(features) if sparse else torch.from_numpy(features.toarray()),
        edge_index=torch.from_numpy(_edges(file("graph"), nodes)),
        y=torch.from_numpy(y),
        train_mask=mask(slice(0, num_train)),
        val_mask=mask(slice(num_train, num_train + _NUM_VAL)),
        test_mask=mask(test_nodes),
        classes=tuple(str(label) for label in range(labels_known.shape[1])),
        name=key,
    )


def _sparse_tensor(matrix: scipy.sparse.csr_matrix) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse", category=UserWarning)  # torch calls CSR a beta feature
        return torch.sparse_csr_tensor(
            torch.from_numpy(matrix.indptr.astype(np.int64)),
            torch.from_numpy(matrix.indices.astype(np.int64)),
            torch.from_numpy(matrix.data),
            size=matrix.shape,
            check_invariants=True,
        )


def edge_list(folder: str | os.PathLike, target: str | None = None, *, directed: bool = False) -> GraphData:
    """A user's graph: `nodes.csv`, one row a node, and `edges.csv`, one row an edge.

    The first column of `nodes.csv` names the node, the column `target` its class (empty where nobody knows it), the
    others are features: numbers, or text of few values. Without features a node has its degree and a one. The first
    two columns of `edges.csv` name the ends of an edge; loops and repetitions are dropped. Nodes of known class are
    split 20 / 20 / 60 %, stratified, always the same; the other nodes are in the graph and in no part of the split.

    Args:
        folder: holds the two files.
        target: name of the column of classes; "label" if None.
        directed: keep the edges one way; otherwise each is there in both.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: for a column that is missing, a node named twice, an edge to an unknown node (shown), or fewer
            than two classes.
    """
    import pandas as pd

    from etude.data.tables import encode_features

    root, column = Path(folder), target or "label"
    for name in ("nodes.csv", "edges.csv"):
        if not (root / name).is_file():
            raise FileNotFoundError(f"no {name} in {root}")
    nodes, edges = pd.read_csv(root / "nodes.csv"), pd.read_csv(root / "edges.csv")
    if column not in nodes.columns[1:] or edges.shape[1] < 2:
        raise ValueError(
            f"nodes.csv must hold a name and a column {column!r}, edges.csv two columns; they have "
            f"{list(nodes.columns)} and {list(edges.columns)}"
        )
    names = pd.Index(nodes.iloc[:, 0])
    if not names.is_unique:
        raise ValueError(f"nodes.csv names the node {names[names.duplicated()][0]!r} twice")
    ends = np.stack([names.get_indexer(edges.iloc[:, side]) for side in (0, 1)])
    unknown = np.argwhere(ends < 0)
    if len(unknown):
        side, row = unknown[0]
        raise ValueError(f"row {row + 1} of edges.csv names {edges.iloc[row, side]!r}, which nodes.csv has not")
    codes, classes = pd.factorize(nodes[column], sort=True)
    if len(classes) < 2:
        raise ValueError(f"the column {column} must hold at least two classes, got {classes.tolist()}")
    known = np.flatnonzero(codes >= 0)
    held = max(len(known) // 5, 1)
    order = known[stratified_order(codes[known])]
    train, val, test = cut(order, held, held, len(order) - 2 * held)

    both = ends if directed else np.concatenate([ends, ends[::-1]], axis=1)
    both = np.unique(both[:, both[0] != both[1]], axis=1)
    frame = nodes.drop(columns=[nodes.columns[0], column])
    if frame.shape[1]:
        features = encode_features(frame, train, "nodes.csv")[1]
    else:
        degree = np.bincount(both[1], minlength=len(nodes))
        features = np.stack([degree, np.ones(len(nodes))], axis=1).astype(np.float32)

    def mask(members: np.ndarray) -> torch.Tensor:
        chosen = torch.zeros(len(nodes), dtype=torch.bool)
        chosen[torch.from_numpy(members)] = True
        return chosen

    return GraphData(
        x=torch.from_numpy(features),
        edge_index=torch.from_numpy(both.astype(np.int64)),
        y=torch.from_numpy(np.maximum(codes, 0).astype(np.int64)),
        train_mask=mask(train),
        val_mask=mask(val),
        test_mask=mask(test),
        classes=tuple(str(name) for name in classes),
        name=root.name,
    )
