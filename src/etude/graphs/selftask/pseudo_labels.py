"""Labels for the unlabelled nodes, from the labelled ones: label propagation, iterative classification, any other.

Zhu, Ghahramani & Lafferty, "Semi-Supervised Learning Using Gaussian Fields and Harmonic Functions", ICML 2003; Neville
& Jensen, "Iterative Classification in Relational Data", 2000, as in Sen et al., "Collective Classification in Network
Data", 2008. Both look at the labels of the training nodes and at no others.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from etude.graphs.selftask.structure import adjacency, cosine_rows, features_of

__all__ = [
    "LabelSource",
    "ensemble",
    "harmonic_labels",
    "iterative_classification",
    "iterative_labels",
    "label_propagation",
    "training_labels",
]

LabelSource = Callable[[Any, Tensor], Tensor]
"""(data, training nodes) -> scores (n, classes) or labels (n,) of all nodes."""


def training_labels(data: Any, train_idx: Tensor) -> tuple[np.ndarray, np.ndarray, int]:
    """The training nodes, their labels and the number of classes; each class must have a node.

    The labels of other nodes are not read: without `data.num_classes` the largest training label tells the classes.

    Raises:
        ValueError: if the nodes are not int64 (or a bool mask), repeat, or lack a class.
    """
    if train_idx.dtype == torch.bool:
        train_idx = torch.nonzero(train_idx).squeeze(1)
    nodes = data.x.shape[0]
    if train_idx.dtype != torch.int64 or train_idx.ndim != 1 or len(train_idx) == 0:
        raise ValueError(
            f"train_idx must be int64 of shape (nodes,), not empty, or a bool mask, "
            f"got {train_idx.dtype} of shape {tuple(train_idx.shape)}"
        )
    idx = train_idx.cpu().numpy()
    if idx.min() < 0 or idx.max() >= nodes or len(np.unique(idx)) < len(idx):
        raise ValueError(f"train_idx must hold different nodes of 0..{nodes - 1}, got {idx[:5].tolist()}...")
    labels = data.y[train_idx].cpu().numpy()
    # PyG's `Data` counts classes over all labels, those of test nodes too: only a declared list of classes is taken.
    classes = len(data.classes) if hasattr(data, "classes") else int(labels.max()) + 1
    absent = np.setdiff1d(np.arange(classes), labels)
    if len(absent):
        raise ValueError(f"every class needs a training node, classes {absent.tolist()} of {classes} have none")
    return idx, labels, classes


def label_propagation(
    adj: scipy.sparse.csr_array,
    y: Int64[Tensor, "nodes"],
    train_idx: Int64[Tensor, "labelled"],
    *,
    num_classes: int | None = None,
    tol: float = 1e-6,
    max_sweeps: int = 1000,
) -> Float[Tensor, "nodes classes"]:
    """The harmonic function: an unlabelled node has the mean of its neighbours, a labelled one its label.

    A node that no path joins to a label has the classes in the shares of the training labels.

    Args:
        adj: see `adjacency`.
        y: labels; only those at `train_idx` are read.
        train_idx: the labelled nodes.
        num_classes: c; the largest training label + 1 if None.
        tol: the sweeps end when no value changes by more.
        max_sweeps: or after so many.

    Returns:
        float64, rows sum to 1.
    """
    idx, labels = train_idx.cpu().numpy(), y[train_idx].cpu().numpy()
    classes = int(labels.max()) + 1 if num_classes is None else num_classes
    known = np.zeros((adj.shape[0], classes))
    known[idx, labels] = 1
    value = np.broadcast_to(known[idx].mean(axis=0), known.shape).copy()
    value[idx] = known[idx]
    _, component = scipy.sparse.csgraph.connected_components(adj, directed=False)
    reached = np.isin(component, component[idx])
    free = np.setdiff1d(np.flatnonzero(reached), idx)
    if len(free) == 0:
        return torch.from_numpy(value)
    degree = np.maximum(np.diff(adj.indptr), 1)
    step = (scipy.sparse.diags_array(1 / degree) @ adj.astype(np.float64)).tocsr()[free]
    between, given = step[:, free].tocsr(), step[:, idx] @ known[idx]
    current = value[free]
    for _ in range(max_sweeps):
        swept = between @ current + given
        change = np.abs(swept - current).max()
        current = swept
        if change <= tol:
            break
    value[free] = current / current.sum(axis=1, keepdims=True)
    return torch.from_numpy(value)


def iterative_classification(
    features: scipy.sparse.csr_array | np.ndarray,
    adj: scipy.sparse.csr_array,
    y: Int64[Tensor, "nodes"],
    train_idx: Int64[Tensor, "labelled"],
    *,
    num_classes: int | None = None,
    max_sweeps: int = 10,
) -> Float[Tensor, "nodes classes"]:
    """Logistic regression on [attributes, numbers of neighbours of each label], applied over and over.

    A regression on the attributes alone makes the first labels. With them the neighbours are counted, and a second
    regression is fitted to the training nodes; it then relabels all unlabelled nodes at once, until none changes.
    Rows of attributes are brought to unit length, so that they weigh against counts whatever their unit.

    Args:
        features: (n, f).
        adj, y, train_idx, num_classes: see `label_propagation`.
        max_sweeps: relabellings at most.

    Returns:
        Probabilities, float64; a labelled node has its label.

    Raises:
        ImportError: without scikit-learn.
    """
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise ImportError('iterative classification needs scikit-learn: pip install "etude[run]"') from error
    idx, labels = train_idx.cpu().numpy(), y[train_idx].cpu().numpy()
    classes = int(labels.max()) + 1 if num_classes is None else num_classes
    attributes = scipy.sparse.csr_array(cosine_rows(features))
    free = np.setdiff1d(np.arange(adj.shape[0]), idx)
    one_hot = np.zeros((adj.shape[0], classes))
    one_hot[idx, labels] = 1
    probability = one_hot.copy()
    if len(free) == 0:
        return torch.from_numpy(probability)

    def predict(model: Any, rows: Any) -> None:
        probability[np.ix_(free, model.classes_)] = model.predict_proba(rows)

    local = LogisticRegression(max_iter=1000).fit(attributes[idx], labels)
    predict(local, attributes[free])
    current = probability[free].argmax(axis=1)
    relational = None
    for _ in range(max_sweeps):
        one_hot[free] = np.eye(classes)[current]
        described = scipy.sparse.hstack([attributes, scipy.sparse.csr_array(adj @ one_hot)], format="csr")
        if relational is None:
            relational = LogisticRegression(max_iter=1000).fit(described[idx], labels)
        predict(relational, described[free])
        swept = probability[free].argmax(axis=1)
        settled, current = np.array_equal(swept, current), swept
        if settled:
            break
    return torch.from_numpy(probability)


def harmonic_labels(data: Any, train_idx: Tensor) -> Tensor:
    """`label_propagation` as a source of labels."""
    idx, _, classes = training_labels(data, train_idx)
    return label_propagation(adjacency(data), data.y, torch.from_numpy(idx), num_classes=classes)


def iterative_labels(data: Any, train_idx: Tensor) -> Tensor:
    """`iterative_classification` as a source of labels."""
    idx, _, classes = training_labels(data, train_idx)
    return iterative_classification(
        features_of(data), adjacency(data), data.y, torch.from_numpy(idx), num_classes=classes
    )


def ensemble(*sources: LabelSource) -> LabelSource:
    """The sum of the scores of several sources, section 4: argmax(s_LP + s_ICA)."""

    def summed(data: Any, train_idx: Tensor) -> Tensor:
        return torch.stack([source(data, train_idx) for source in sources]).sum(dim=0)

    return summed
