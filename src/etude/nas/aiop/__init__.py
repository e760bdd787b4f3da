"""AIO-P: how well a network will do, read off its computation graph, for tasks beyond image classification.

Mills et al., "AIO-P: Expanding Neural Performance Predictors Beyond Image Classification", AAAI 2023, arXiv:2211.17228.

    from etude.nas.aiop import ArchitecturePredictor, graph_from_module

    predictor = ArchitecturePredictor(epochs=12).fit(graphs, accuracies)      # a base on cheap labels
    predictor.add_task(graphs, depth_errors).add_task(graphs, layout_scores)  # adapters beside it
    predictor.finetune(twenty_graphs, twenty_labels)                          # the task at hand
    predictor.predict(my_network, example_input=images, return_std=True)

`graph_from_module` reads any `torch.nn.Module`, `graph_from_cell` the keys of public tables. The parts stand alone:
`GraphPredictor`, `KAdapter` and `AdaptedPredictor`, `Rescale`, `TargetScaler`, `SharedHeadTrainer` for cheap labels.
`ArchitecturePredictor` needs scikit-learn and is imported when first asked for; predictors need torch_geometric.
"""

from typing import TYPE_CHECKING, Any

from etude.nas.aiop.adapters import AdaptedPredictor, KAdapter, Rescale
from etude.nas.aiop.graph import (
    VOCABULARY,
    ComputeGraph,
    GraphBatch,
    count_multiply_adds,
    count_parameters,
    op_index,
)
from etude.nas.aiop.latent import BodyPopulation, SharedHeadTrainer
from etude.nas.aiop.predictor import GraphPredictor, NodeEmbedding
from etude.nas.aiop.scaling import TargetScaler
from etude.nas.aiop.spaces import (
    graph_from_cell,
    is_connected,
    nasbench101,
    nasbench201,
    prune,
    transnas_macro,
    transnas_micro,
)
from etude.nas.aiop.tracing import graph_from_module
from etude.nas.aiop.training import finetune, fit_graphs, predict_graphs, rank_correlation, train_adapter

if TYPE_CHECKING:
    from etude.nas.aiop.estimator import ArchitecturePredictor, Prediction

__all__ = [
    "VOCABULARY",
    "AdaptedPredictor",
    "ArchitecturePredictor",
    "BodyPopulation",
    "ComputeGraph",
    "GraphBatch",
    "GraphPredictor",
    "KAdapter",
    "NodeEmbedding",
    "Prediction",
    "Rescale",
    "SharedHeadTrainer",
    "TargetScaler",
    "count_multiply_adds",
    "count_parameters",
    "finetune",
    "fit_graphs",
    "graph_from_cell",
    "graph_from_module",
    "is_connected",
    "nasbench101",
    "nasbench201",
    "op_index",
    "predict_graphs",
    "prune",
    "rank_correlation",
    "train_adapter",
    "transnas_macro",
    "transnas_micro",
]


def __getattr__(name: str) -> Any:
    if name in ("ArchitecturePredictor", "Prediction"):
        from etude.nas.aiop import estimator

        return getattr(estimator, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
