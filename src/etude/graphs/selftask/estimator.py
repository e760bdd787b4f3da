"""The GCN with a pretext task as a scikit-learn estimator for the nodes of one graph."""

import copy
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from etude.graphs.selftask.encoders import GCNEncoder
from etude.graphs.selftask.label_tasks import ContextLabel, CorrectedLabel, Distance2Labeled, EnsembleLabel
from etude.graphs.selftask.node_tasks import AttributeMask, Distance2Cluster, NodeProperty
from etude.graphs.selftask.pair_tasks import EdgeMask, PairwiseAttributeSimilarity, PairwiseDistance
from etude.graphs.selftask.task import PretextTask
from etude.graphs.selftask.training import fit_joint, fit_two_stage

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise ImportError('SelfTaskClassifier needs scikit-learn: pip install "etude[run]"') from error

__all__ = ["TASKS", "SelfTaskClassifier"]

TASKS: dict[str, type[PretextTask]] = {
    "node_property": NodeProperty,
    "edge_mask": EdgeMask,
    "pairwise_distance": PairwiseDistance,
    "distance2cluster": Distance2Cluster,
    "attribute_mask": AttributeMask,
    "pairwise_attribute_similarity": PairwiseAttributeSimilarity,
    "distance2labeled": Distance2Labeled,
    "context_label": ContextLabel,
    "ensemble_label": EnsembleLabel,
    "corrected_label": CorrectedLabel,
}
"""Every task by name."""


class SelfTaskClassifier(ClassifierMixin, BaseEstimator):
    """Classifies the nodes of a graph of which some are labelled, helped by a pretext task.

        classifier = SelfTaskClassifier("corrected_label", lam=10.0, random_state=0)
        classifier.fit(X, edge_index, y, train_mask, val_mask)
        labels = classifier.predict()                  # of all nodes of that graph
        labels = classifier.predict(X_new, edges_new)  # of another graph with the same features

    Args:
        task: a name of `TASKS`, or a `PretextTask`; None trains the plain GCN.
        lam: weight of the task's loss, >= 0.
        strategy: "joint" or "two_stage".
        hidden_dim, dropout: of the `GCNEncoder`.
        lr, weight_decay, epochs: see `fit_joint`; the epochs are those of each stage. The defaults are the paper's.
        random_state: seed of initial weights, dropout and the task's draws; torch's global generator and 0 if None.
        device: where to train, such as "cpu" or "cuda".

    Attributes:
        classes_: the labels, sorted.
        model_: the trained `GCNEncoder`.
        task_: the prepared task, or None.
        fit_: the `SelfTaskFit` of the training.
        n_features_in_: f.
    """

    def __init__(
        self,
        task: str | PretextTask | None = "corrected_label",
        lam: float | int = 10.0,
        *,
        strategy: str = "joint",
        hidden_dim: int = 128,
        dropout: float | int = 0.5,
        lr: float = 0.01,
        weight_decay: float = 5e-4,
        epochs: int = 200,
        random_state: int | None = None,
        device: str = "cpu",
    ):
        self.task = task
        self.lam = lam
        self.strategy = strategy
        self.hidden_dim = hidden_dim
        self.dropout = dropout
        self.lr = lr
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.random_state = random_state
        self.device = device

    def fit(
        self, X: Any, edge_index: Any = None, y: Any = None, train_mask: Any = None, val_mask: Any = None
    ) -> "SelfTaskClassifier":
        """Trains on the labelled nodes.

        Args:
            X: features (n, f), an array, a tensor or a scipy sparse matrix; or, alone, a graph that holds everything:
                `GraphData` or PyG `Data` with x, edge_index, y, train_mask and val_mask.
            edge_index: (2, edges), both directions of every edge.
            y: (n,) labels of any type; only those of the two masks are looked at.
            train_mask, val_mask: bool (n,), disjoint; the second chooses the epoch.

        Raises:
            ValueError: if features are NaN or infinite, a shape does not fit, a mask is empty, the masks overlap, the
                graph is directed, a label of `val_mask` is not among those of `train_mask`, or the task or strategy
                is unknown.
        """
        if edge_index is None and hasattr(X, "edge_index"):
            graph = X
            X, edge_index, y = graph.x, graph.edge_index, graph.y
            train_mask, val_mask = graph.train_mask, graph.val_mask
        given = {"edge_index": edge_index, "y": y, "train_mask": train_mask, "val_mask": val_mask}
        absent = [name for name, value in given.items() if value is None]
        if absent:
            raise ValueError(f"fit needs {', '.join(absent)}, or a graph that holds them")
        if self.strategy not in ("joint", "two_stage"):
            raise ValueError(f'strategy must be "joint" or "two_stage", got {self.strategy!r}')
        x, edges = self._features(X), self._edges(edge_index)
        codes, train, val = self._labels(x.shape[0], y, train_mask, val_mask)
        # The tasks take the classes from `classes`, not from the labels of nodes that they may not look at.
        data = SimpleNamespace(
            x=x, edge_index=edges, y=codes.to(self.device), train_mask=train.to(self.device),
            val_mask=val.to(self.device), classes=tuple(self.classes_.tolist()),
        )  # fmt: skip
        task = self._task()
        with torch.random.fork_rng(enabled=self.random_state is not None):
            if self.random_state is not None:
                torch.manual_seed(self.random_state)
            model = GCNEncoder(
                x.shape[1], len(self.classes_), hidden_dim=self.hidden_dim, dropout=self.dropout
            ).to(self.device)  # fmt: skip
            train_model: Any = fit_joint
            if self.strategy == "two_stage":
                train_model = partial(fit_two_stage, pretrain_epochs=self.epochs)
            self.fit_ = train_model(
                model, {} if task is None else {task: self.lam}, data, lr=self.lr, weight_decay=self.weight_decay,
                epochs=self.epochs, generator=torch.Generator().manual_seed(self.random_state or 0),
            )  # fmt: skip
        self.model_, self.task_, self.n_features_in_ = model, task, x.shape[1]
        self._fitted_graph = x, edges
        return self

    def predict_proba(self, X: Any = None, edge_index: Any = None) -> np.ndarray:
        """(n, classes) probabilities of the nodes of the given graph, or of the fitted one if none is given.

        Raises:
            ValueError: as for `fit`, or if only one of X and `edge_index` is given.
        """
        check_is_fitted(self)
        if hasattr(X, "edge_index") and edge_index is None:
            X, edge_index = X.x, X.edge_index
        if (X is None) != (edge_index is None):
            raise ValueError("give both X and edge_index, or neither for the fitted graph")
        x, edges = self._fitted_graph if X is None else (self._features(X), self._edges(edge_index))
        if x.shape[1] != self.n_features_in_:
            raise ValueError(f"X must have {self.n_features_in_} features, got {x.shape[1]}")
        if edges.numel() and not 0 <= int(edges.min()) <= int(edges.max()) < x.shape[0]:
            raise ValueError(
                f"edge_index must name nodes 0..{x.shape[0] - 1}, got {int(edges.min())}..{int(edges.max())}"
            )
        self.model_.eval()
        with torch.no_grad():
            return self.model_(x, edges).logits.softmax(dim=1).cpu().numpy()

    def predict(self, X: Any = None, edge_index: Any = None) -> np.ndarray:
        """(n,) the most probable label of each node; arguments as of `predict_proba`."""
        probabilities = self.predict_proba(X, edge_index)
        return self.classes_[probabilities.argmax(axis=1)]

    def score(self, X: Any, y: Any = None, *, edge_index: Any = None, mask: Any = None) -> float:
        """Accuracy on the nodes of `mask`, or on all; X may be a graph that holds `y`."""
        labels = np.asarray(X.y if y is None else y)
        right = self.predict(X, edge_index) == labels
        return float(right.mean() if mask is None else right[np.asarray(mask)].mean())

    def _task(self) -> PretextTask | None:
        if self.task is None or isinstance(self.task, PretextTask):
            return copy.deepcopy(self.task)
        if self.task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, got {self.task!r}")
        return TASKS[self.task](hidden_dim=self.hidden_dim)

    def _features(self, X: Any) -> Tensor:
        if scipy.sparse.issparse(X):
            matrix = scipy.sparse.csr_array(X).astype(np.float32)
            x = torch.sparse_csr_tensor(
                torch.from_numpy(matrix.indptr.astype(np.int64)), torch.from_numpy(matrix.indices.astype(np.int64)),
                torch.from_numpy(matrix.data), size=matrix.shape, check_invariants=False,
            )  # fmt: skip
        else:
            x = X if isinstance(X, Tensor) else torch.as_tensor(np.asarray(X))
            x = x.to(torch.float32)
        if x.ndim != 2:
            raise ValueError(f"X must have shape (nodes, features), got {tuple(x.shape)}")
        values = x.values() if x.layout == torch.sparse_csr else x
        bad = int((~torch.isfinite(values)).sum())
        if bad:
            raise ValueError(f"X holds NaN or infinite values, {bad} of them")
        return x.to(self.device)

    def _edges(self, edge_index: Any) -> Tensor:
        edges = edge_index if isinstance(edge_index, Tensor) else torch.as_tensor(np.asarray(edge_index))
        if edges.dtype != torch.int64 or edges.ndim != 2 or edges.shape[0] != 2:
            raise ValueError(
                f"edge_index must be int64 of shape (2, edges), got {edges.dtype} of shape {tuple(edges.shape)}"
            )
        return edges.to(self.device)

    def _labels(self, nodes: int, y: Any, train_mask: Any, val_mask: Any) -> tuple[Tensor, Tensor, Tensor]:
        labels = np.asarray(y)
        if labels.shape != (nodes,):
            raise ValueError(f"y must have shape ({nodes},), one label per node, got {labels.shape}")
        train, val = (torch.as_tensor(np.asarray(mask)) for mask in (train_mask, val_mask))
        for name, mask in (("train_mask", train), ("val_mask", val)):
            if mask.dtype != torch.bool or mask.shape != (nodes,):
                raise ValueError(
                    f"{name} must be bool of shape ({nodes},), got {mask.dtype} of shape {tuple(mask.shape)}"
                )
            if not bool(mask.any()):
                raise ValueError(f"{name} selects no node")
        self.classes_ = np.unique(labels[train.numpy()])
        unknown = np.setdiff1d(labels[val.numpy()], self.classes_)
        if len(unknown):
            raise ValueError(f"val_mask holds labels that train_mask does not: {unknown[:5].tolist()}")
        codes = np.zeros(nodes, dtype=np.int64)
        for known in (train.numpy(), val.numpy()):
            codes[known] = np.searchsorted(self.classes_, labels[known])
        return torch.from_numpy(codes), train, val
