"""Deep adaptive graph neural networks: transformation and propagation apart, and a gate for every hop of every node.

Liu, Gao & Ji, "Towards Deeper Graph Neural Networks", KDD 2020, arXiv:2007.09296.

    from etude.graphs.dagnn import DAGNN, Propagator, SparseMatrix, fit_nodes

    model = DAGNN(data.num_features, data.num_classes)
    adj = Propagator.from_edges(data.edge_index, data.num_nodes)
    fit_nodes(model, data.x, adj, data.y, data.train_mask, data.val_mask)

A graph convolution transforms features and averages them over neighbours at once; many of them in a row make the nodes
alike. Here an MLP transforms once, K parameter-free hops follow, and every node keeps of each hop what its gate says.
With it come the smoothness metric, the limits of propagation, the baselines of the depth study and a generator of
contextual block-model graphs. `DAGNNClassifier` needs scikit-learn and is imported when first asked for.
"""

from typing import TYPE_CHECKING, Any

from etude.graphs.dagnn.csbm import contextual_sbm
from etude.graphs.dagnn.models import APPNP, DAGNN, GCN, DecoupledGNN, normalize_features
from etude.graphs.dagnn.normalization import gcn_norm, to_undirected
from etude.graphs.dagnn.propagation import AdaptivePropagation, Propagator
from etude.graphs.dagnn.smoothness import SampledSmoothness, sampled_smoothness, smoothness
from etude.graphs.dagnn.sparse import SparseMatrix
from etude.graphs.dagnn.theory import propagate_to_limit, propagation_limit, second_eigenvalue, spectral_gap
from etude.graphs.dagnn.training import NodeFit, accuracy, fit_nodes

if TYPE_CHECKING:
    from etude.graphs.dagnn.estimator import DAGNNClassifier

__all__ = [
    "APPNP",
    "DAGNN",
    "GCN",
    "AdaptivePropagation",
    "DAGNNClassifier",
    "DecoupledGNN",
    "NodeFit",
    "Propagator",
    "SampledSmoothness",
    "SparseMatrix",
    "accuracy",
    "contextual_sbm",
    "fit_nodes",
    "gcn_norm",
    "normalize_features",
    "propagate_to_limit",
    "propagation_limit",
    "sampled_smoothness",
    "second_eigenvalue",
    "smoothness",
    "spectral_gap",
    "to_undirected",
]


def __getattr__(name: str) -> Any:
    if name == "DAGNNClassifier":
        from etude.graphs.dagnn.estimator import DAGNNClassifier

        return DAGNNClassifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
