"""Hypernetworks: networks that generate the weights of others, by five design criteria.

Chauhan, Zhou, Lu, Molaei & Clifton, "A Brief Review of Hypernetworks in Deep Learning", Artificial Intelligence
Review, 2024, arXiv:2306.06955.

    from etude.transfer.hypernetworks import HypernetDesign, Hypernetwork, learn_stream, tasks_by_class

    tasks = tasks_by_class(data, 2)
    hypernet = Hypernetwork(net, HypernetDesign("task", "chunk"), num_conditions=len(tasks), chunk_size=500)
    R = learn_stream(hypernet, tasks, beta=0.1)             # accuracy on each task after each
    deployed = hypernet.materialize(0)                      # a plain copy of net

What is read, how weights are given, whether conditions and target are fixed, and the hypernetwork's own architecture
are the five fields of `HypernetDesign`; `design_space` lists all legal ones. Applications: `continual`, `uncertainty`
and `search` (pruning and ranking of widths), `learn_condition` (transfer by an embedding alone). `HypernetClassifier`
needs scikit-learn and is imported when first asked for.
"""

from typing import TYPE_CHECKING, Any

from etude.transfer.hypernetworks.conditions import Conditions, SupportSetEncoder
from etude.transfer.hypernetworks.continual import (
    learn_condition,
    learn_jointly,
    learn_stream,
    learn_task,
    task_accuracy,
)
from etude.transfer.hypernetworks.costs import DesignRow, count_parameters, design_table, generation_seconds, table_text
from etude.transfer.hypernetworks.design import HypernetDesign, design_space
from etude.transfer.hypernetworks.hypernetwork import Hypernetwork
from etude.transfer.hypernetworks.plots import plot_parity, plot_predictive, plot_stream
from etude.transfer.hypernetworks.regularisation import HypernetSnapshot, lookahead_step, output_regularizer, row_mask
from etude.transfer.hypernetworks.search import WidthSupernet, evolve_widths
from etude.transfer.hypernetworks.spec import TargetSpec, TensorSpec, slice_parameters
from etude.transfer.hypernetworks.tasks import Task, halved, permuted_tasks, tasks_by_class, tasks_by_column
from etude.transfer.hypernetworks.uncertainty import (
    Predictive,
    cubic_with_gap,
    fit_regression,
    moment_kl,
    predict_draws,
)

if TYPE_CHECKING:
    from etude.transfer.hypernetworks.estimator import HypernetClassifier

__all__ = [
    "Conditions",
    "DesignRow",
    "HypernetClassifier",
    "HypernetDesign",
    "HypernetSnapshot",
    "Hypernetwork",
    "Predictive",
    "SupportSetEncoder",
    "TargetSpec",
    "Task",
    "TensorSpec",
    "WidthSupernet",
    "count_parameters",
    "cubic_with_gap",
    "design_space",
    "design_table",
    "evolve_widths",
    "fit_regression",
    "generation_seconds",
    "halved",
    "learn_condition",
    "learn_jointly",
    "learn_stream",
    "learn_task",
    "lookahead_step",
    "moment_kl",
    "output_regularizer",
    "permuted_tasks",
    "plot_parity",
    "plot_predictive",
    "plot_stream",
    "predict_draws",
    "row_mask",
    "slice_parameters",
    "table_text",
    "task_accuracy",
    "tasks_by_class",
    "tasks_by_column",
]


def __getattr__(name: str) -> Any:
    if name == "HypernetClassifier":
        from etude.transfer.hypernetworks.estimator import HypernetClassifier

        return HypernetClassifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
