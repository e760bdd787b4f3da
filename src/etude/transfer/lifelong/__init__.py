"""Lifelong learning by one mechanism: how stiffly each group of weights is held, set by a policy.

Ling & Bohn, "A Deep Learning Framework for Lifelong Machine Learning", arXiv:2105.00157, 2021.

    from etude.transfer.lifelong import ConfusionReduction, NonForgetting, learn_stream, tasks_by_class

    learner = learn_stream(tasks_by_class(data), NonForgetting() + ConfusionReduction())
    print(learner.accuracies, learner.metrics())

`Consolidation` holds the weights of any module; `ConsolidatedNet` has units that belong to tasks; the policies set the
table before and after each task; `property_table` shows which policy gives which property.
"""

from etude.transfer.lifelong.consolidation import Consolidation
from etude.transfer.lifelong.groups import FREE, MASKED, Owners, layer_owners
from etude.transfer.lifelong.learner import Context, LifelongLearner, State, learn_stream
from etude.transfer.lifelong.network import ConsolidatedNet, OwnerNorm, TaskView
from etude.transfer.lifelong.phases import BackwardTransfer, ConfusionReduction, Prune, Refinement
from etude.transfer.lifelong.policies import (
    EWC,
    FineTune,
    GracefulForgetting,
    Joint,
    NonForgetting,
    RainMan,
    SleepDeprivation,
    Uniform,
)
from etude.transfer.lifelong.policy import Compose, Policy, Scripted, policy_from_dict
from etude.transfer.lifelong.properties import PropertyRow, plot_accuracies, property_table, table_text
from etude.transfer.lifelong.tasks import (
    ExemplarMemory,
    Task,
    permuted_tasks,
    shared_latent_tasks,
    tasks_by_alphabet,
    tasks_by_class,
    tasks_by_column,
)
from etude.transfer.lifelong.transfer_policies import FewShot, ForwardTransfer, Similarity, task_similarity

__all__ = [
    "EWC",
    "FREE",
    "MASKED",
    "BackwardTransfer",
    "Compose",
    "ConfusionReduction",
    "ConsolidatedNet",
    "Consolidation",
    "Context",
    "ExemplarMemory",
    "FewShot",
    "FineTune",
    "ForwardTransfer",
    "GracefulForgetting",
    "Joint",
    "LifelongLearner",
    "NonForgetting",
    "OwnerNorm",
    "Owners",
    "Policy",
    "PropertyRow",
    "Prune",
    "RainMan",
    "Refinement",
    "Scripted",
    "Similarity",
    "SleepDeprivation",
    "State",
    "Task",
    "TaskView",
    "Uniform",
    "layer_owners",
    "learn_stream",
    "permuted_tasks",
    "plot_accuracies",
    "policy_from_dict",
    "property_table",
    "shared_latent_tasks",
    "table_text",
    "task_similarity",
    "tasks_by_alphabet",
    "tasks_by_class",
    "tasks_by_column",
]
