"""DAGNN as a scikit-learn estimator for the nodes of one graph."""

from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from etude.graphs.dagnn.models import DAGNN
from etude.graphs.dagnn.normalization import check_edges
from etude.graphs.dagnn.propagation import Gate, Propagator
from etude.graphs.dagnn.sparse import SparseMatrix, csr_tensor
from etude.graphs.dagnn.training import fit_nodes

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise ImportError('DAGNNClassifier needs scikit-learn: pip install "etude[run]"') from error

__all__ = ["DAGNNClassifier"]


class DAGNNClassifier(ClassifierMixin, BaseEstimator):
    """Classifies the nodes of a graph of which some are labelled.

        classifier = DAGNNClassifier(random_state=0).fit(X, edge_index, y, train_mask, val_mask)
        labels = classifier.predict()                 # of all nodes of that graph
        labels = classifier.predict(X_new, edges_new)  # of another graph with the same features

    Args:
        num_hops, hidden_dim, dropout, gate: see `DAGNN`.
        lr, weight_decay, epochs, patience: see `fit_nodes`. The defaults are the paper's for Cora.
        random_state: seed of the initial weights and of dropout; torch's global generator if None.
        device: where to train, such as "cpu" or "cuda".

    Attributes:
        classes_: the labels, sorted.
        gates_: (n, K + 1), how much each node of the fitted graph keeps of hops 0..K.
        model_: the trained `DAGNN`.
        fit_: the `NodeFit` of the training.
        n_features_in_: f.
    """

    def __init__(
        self,
        *,
        num_hops: int = 10,
        hidden_dim: int = 64,
        dropout: float = 0.8,
        gate: Gate = "sigmoid",
        lr: float = 0.01,
        weight_decay: float = 0.005,
        epochs: int = 1000,
        patience: int = 100,
        random_state: int | None = None,
        device: str = "cpu",
    ):
        self.num_hops = num_hops
        self.hidden_dim = hidden_dim
        self.dropout = dropout
        self.gate = gate
        self.lr = lr
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.patience = patience
        self.random_state = random_state
        self.device = device

    def fit(
        self,
        X: Any,
        edge_index: Any = None,
        y: Any = None,
        train_mask: Any = None,
        val_mask: Any = None,
        edge_weight: Any = None,
    ) -> "DAGNNClassifier":
        """Trains on the labelled nodes.

        Args:
            X: features (n, f), an array, a tensor or a scipy sparse matrix; or, alone, a graph that holds everything:
                `GraphData` or PyG `Data` with x, edge_index, y, train_mask and val_mask.
            edge_index: (2, edges); an undirected graph holds both directions.
            y: (n,) labels of any type; only those of the two masks are looked at.
            train_mask, val_mask: bool (n,), disjoint; the second chooses the epoch.
            edge_weight: (edges,), 1 if None.

        Raises:
            ValueError: if features are NaN or infinite, a shape does not fit, a mask is empty, the masks overlap, an
                edge names no node, or a label of `val_mask` is not among those of `train_mask`.
        """
        if edge_index is None and hasattr(X, "edge_index"):
            graph = X
            X, edge_index, y = graph.x, graph.edge_index, graph.y
            train_mask, val_mask = graph.train_mask, graph.val_mask
            edge_weight = getattr(graph, "edge_weight", None)
        given = {"edge_index": edge_index, "y": y, "train_mask": train_mask, "val_mask": val_mask}
        absent = [name for name, value in given.items() if value is None]
        if absent:
            raise ValueError(f"fit needs {', '.join(absent)}, or a graph that holds them")
        x, adj = self._graph(X, edge_index, edge_weight)
        labels = np.asarray(y)
        if labels.shape != (x.shape[0],):
            raise ValueError(f"y must have shape ({x.shape[0]},), one label per node, got {labels.shape}")
        train, val = (torch.as_tensor(np.asarray(mask)) for mask in (train_mask, val_mask))
        for name, mask in (("train_mask", train), ("val_mask", val)):
            if mask.dtype != torch.bool or mask.shape != (x.shape[0],):
                raise ValueError(
                    f"{name} must be bool of shape ({x.shape[0]},), got {mask.dtype} of shape {tuple(mask.shape)}"
                )
        self.classes_ = np.unique(labels[train.numpy()])
        unknown = np.setdiff1d(labels[val.numpy()], self.classes_)
        if len(unknown):
            raise ValueError(f"val_mask holds labels that train_mask does not: {unknown[:5].tolist()}")
        codes = np.zeros(len(labels), dtype=np.int64)
        for known in (train.numpy(), val.numpy()):
            codes[known] = np.searchsorted(self.classes_, labels[known])

        with torch.random.fork_rng(enabled=self.random_state is not None):
            if self.random_state is not None:
                torch.manual_seed(self.random_state)
            model = DAGNN(
                x.shape[1], max(len(self.classes_), 1), hidden_dim=self.hidden_dim, num_hops=self.num_hops,
                dropout=self.dropout, gate=self.gate,
            ).to(self.device)  # fmt: skip
            self.fit_ = fit_nodes(
                model, x, adj, *(part.to(self.device) for part in (torch.from_numpy(codes), train, val)),
                lr=self.lr, weight_decay=self.weight_decay, epochs=self.epochs, patience=self.patience,
            )  # fmt: skip
        self.model_, self.n_features_in_ = model, x.shape[1]
        self._fitted_graph = x, adj
        with torch.no_grad():
            _, gates = model(x, adj=adj, return_gates=True)
        self.gates_ = gates.cpu().numpy()
        return self

    def predict_proba(self, X: Any = None, edge_index: Any = None, edge_weight: Any = None) -> np.ndarray:
        """(n, classes) probabilities of the nodes of the given graph, or of the fitted one if none is given.

        Raises:
            ValueError: as for `fit`, or if only one of X and `edge_index` is given.
        """
        check_is_fitted(self)
        if hasattr(X, "edge_index") and edge_index is None:
            X, edge_index, edge_weight = X.x, X.edge_index, getattr(X, "edge_weight", None)
        if (X is None) != (edge_index is None):
            raise ValueError("give both X and edge_index, or neither for the fitted graph")
        x, adj = self._fitted_graph if X is None else self._graph(X, edge_index, edge_weight)
        with torch.no_grad():
            return self.model_(x, adj=adj).softmax(1).cpu().numpy()

    def predict(self, X: Any = None, edge_index: Any = None, edge_weight: Any = None) -> np.ndarray:
        """(n,) labels; arguments and errors as for `predict_proba`."""
        check_is_fitted(self)
        return self.classes_[self.predict_proba(X, edge_index, edge_weight).argmax(1)]

    def score(self, X: Any, edge_index: Any = None, y: Any = None, mask: Any = None) -> float:  # type: ignore[override]
        """Accuracy on a graph, over the nodes of `mask` (all of them if None).

        `score(graph, mask=graph.test_mask)` takes features, edges and labels from the graph.
        """
        if edge_index is None and hasattr(X, "edge_index"):
            X, edge_index, y = X.x, X.edge_index, X.y if y is None else y
        hits = self.predict(X, edge_index) == np.asarray(y)
        return float(hits.mean() if mask is None else hits[np.asarray(mask)].mean())

    def _graph(self, X: Any, edge_index: Any, edge_weight: Any) -> tuple[Tensor | SparseMatrix, Propagator]:
        x = self._features(X)
        edges = torch.as_tensor(edge_index if isinstance(edge_index, Tensor) else np.asarray(edge_index))
        check_edges(edges, x.shape[0])
        weights = None if edge_weight is None else torch.as_tensor(edge_weight, dtype=torch.float32)
        return x, Propagator.from_edges(edges, x.shape[0], weights, dtype=torch.float32).to(device=self.device)

    def _features(self, X: Any) -> Tensor | SparseMatrix:
        if scipy.sparse.issparse(X):
            csr = scipy.sparse.csr_matrix(X, dtype=np.float32)
            starts, columns, values = (torch.from_numpy(part) for part in (csr.indptr, csr.indices, csr.data))
            X = csr_tensor(starts, columns, values, csr.shape)
        x = (X if isinstance(X, Tensor) else torch.from_numpy(np.asarray(X))).to(self.device, torch.float32)
        if x.ndim != 2:
            raise ValueError(f"X must have shape (nodes, features), got {tuple(x.shape)}")
        values = x.values() if x.layout == torch.sparse_csr else x
        bad = int((~torch.isfinite(values)).sum())
        if bad:
            raise ValueError(f"X holds NaN or infinite values, {bad} of them")
        return SparseMatrix(x) if x.layout == torch.sparse_csr else x
