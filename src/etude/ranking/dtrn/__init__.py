"""Deep task-specific bottoms: every task of a recommender draws its own interests and weighs all features itself.

Liu et al., "Deep Task-specific Bottom Representation Network for Multi-Task Recommendation", CIKM 2023,
arXiv:2308.05996.

    from etude.ranking.dtrn import DTRN, fit_multitask, two_facet_behaviours

    log = two_facet_behaviours(16_000)
    model = DTRN([("a", log.item_fields["a"]), ("b", log.item_fields["b"])], 2, 2, event_fields=[("liked", 4)])
    fit_multitask(model, log.rows, epochs=3)

Each part stands alone: the interests (`TaskInterestModule`), the gates (`TaskRefinement`), the heads (`SharedBottom`,
`MMoE`, `PLE`, `CrossStitch`) and the diagnosis (`conflict_score`). `MultiTaskRecommender` fits a log; it needs
scikit-learn and pandas and is imported when first asked for.
"""

from typing import TYPE_CHECKING, Any

from etude.ranking.dtrn.conditional import ConditionalTransformer, HyperLayerNorm
from etude.ranking.dtrn.facets import TwoFacets, two_facet_behaviours
from etude.ranking.dtrn.heads import PLE, CrossStitch, Head, MMoE, SharedBottom, SingleTask
from etude.ranking.dtrn.interest import ActivationReadout, TargetReadout, TaskInterestModule, keep_latest
from etude.ranking.dtrn.metrics import conflict_score, mtl_gain, task_aucs, task_log_losses
from etude.ranking.dtrn.models import DTRN, Bottom, Field
from etude.ranking.dtrn.refinement import TaskRefinement
from etude.ranking.dtrn.training import MultiTaskFit, fit_multitask, multitask_loss, predict_multitask

if TYPE_CHECKING:
    from etude.ranking.dtrn.estimator import MultiTaskRecommender

__all__ = [
    "DTRN",
    "PLE",
    "ActivationReadout",
    "Bottom",
    "ConditionalTransformer",
    "CrossStitch",
    "Field",
    "Head",
    "HyperLayerNorm",
    "MMoE",
    "MultiTaskFit",
    "MultiTaskRecommender",
    "SharedBottom",
    "SingleTask",
    "TargetReadout",
    "TaskInterestModule",
    "TaskRefinement",
    "TwoFacets",
    "conflict_score",
    "fit_multitask",
    "keep_latest",
    "mtl_gain",
    "multitask_loss",
    "predict_multitask",
    "task_aucs",
    "task_log_losses",
    "two_facet_behaviours",
]


def __getattr__(name: str) -> Any:
    if name == "MultiTaskRecommender":
        from etude.ranking.dtrn.estimator import MultiTaskRecommender

        return MultiTaskRecommender
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
