"""Self-supervised pretext tasks for graph networks with few labels, and the tasks that use those labels.

Jin, Derr, Liu, Wang, Wang, Liu & Tang, "Self-supervised Learning on Graphs: Deep Insights and New Direction",
arXiv:2006.10141, 2020.

    from etude.graphs.selftask import Distance2Labeled, GCNEncoder, fit_joint

    encoder = GCNEncoder(data.num_features, data.num_classes)
    fit_joint(encoder, {Distance2Labeled(): 100.0}, data)

A pretext task adds a loss on the hidden layer of an encoder. The basic ones read their targets off the graph:
`NodeProperty`, `EdgeMask`, `PairwiseDistance`, `Distance2Cluster`, `AttributeMask`, `PairwiseAttributeSimilarity`. The
SelfTask family also knows the few labels: `Distance2Labeled`, `ContextLabel`, `EnsembleLabel`, `CorrectedLabel`. They
train jointly with the classifier or before it, several at a time if wished, on any model: `TappedEncoder` makes an
encoder of one. The structures behind them (rings, contexts, partitions, pseudo labels, prototypes) are public as well.
`SelfTaskClassifier` needs scikit-learn and is imported when first asked for.
"""

from typing import TYPE_CHECKING, Any

from etude.graphs.selftask.citation_like import citation_like
from etude.graphs.selftask.encoders import Encoding, GCNEncoder, TappedEncoder
from etude.graphs.selftask.label_tasks import (
    ContextLabel,
    CorrectedLabel,
    Distance2Labeled,
    EnsembleLabel,
    label_context,
)
from etude.graphs.selftask.node_tasks import AttributeMask, Distance2Cluster, NodeProperty
from etude.graphs.selftask.pair_tasks import EdgeMask, PairwiseAttributeSimilarity, PairwiseDistance
from etude.graphs.selftask.pairs import DistancePairs, non_edges, similarity_pairs
from etude.graphs.selftask.partition import centres, partition
from etude.graphs.selftask.prototypes import class_prototypes, nearest_prototype
from etude.graphs.selftask.pseudo_labels import ensemble, iterative_classification, label_propagation
from etude.graphs.selftask.structure import (
    adjacency,
    hop_distances,
    neighbourhood,
    node_property,
    normalize_features,
    rings,
)
from etude.graphs.selftask.task import PretextTask
from etude.graphs.selftask.training import SelfTaskFit, accuracy, fit_joint, fit_two_stage, pretrain

if TYPE_CHECKING:
    from etude.graphs.selftask.estimator import TASKS, SelfTaskClassifier

__all__ = [
    "TASKS",
    "AttributeMask",
    "ContextLabel",
    "CorrectedLabel",
    "Distance2Cluster",
    "Distance2Labeled",
    "DistancePairs",
    "EdgeMask",
    "Encoding",
    "EnsembleLabel",
    "GCNEncoder",
    "NodeProperty",
    "PairwiseAttributeSimilarity",
    "PairwiseDistance",
    "PretextTask",
    "SelfTaskClassifier",
    "SelfTaskFit",
    "TappedEncoder",
    "accuracy",
    "adjacency",
    "centres",
    "citation_like",
    "class_prototypes",
    "ensemble",
    "fit_joint",
    "fit_two_stage",
    "hop_distances",
    "iterative_classification",
    "label_context",
    "label_propagation",
    "nearest_prototype",
    "neighbourhood",
    "node_property",
    "non_edges",
    "normalize_features",
    "partition",
    "pretrain",
    "rings",
    "similarity_pairs",
]


def __getattr__(name: str) -> Any:
    if name in ("TASKS", "SelfTaskClassifier"):
        from etude.graphs.selftask import estimator

        return getattr(estimator, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
