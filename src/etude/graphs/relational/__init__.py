"""Relational deep learning: a database as a graph in time, and a graph network that learns the joins.

Fey, Hu, Huang, Lenssen, Ranjan, Robinson, Ying, You & Leskovec, "Relational Deep Learning: Graph Representation
Learning on Relational Databases", ICML 2024, arXiv:2312.04615; benchmark: Robinson et al., arXiv:2407.20060.

    from etude.data import relational
    from etude.graphs.relational import EntityTask, RelationalClassifier

    db = relational.from_url("sqlite:///f1db.sqlite", time_columns={"race": "date", "race_result": "date"})
    task = EntityTask(
        db, "driver",
        sql="SELECT driver_id, max(points) > 0 FROM race_result "
            "WHERE date > :cutoff AND date <= :horizon GROUP BY driver_id",
        timedelta="30d", val_timestamp="2005-01-01", test_timestamp="2010-01-01",
    )
    model = RelationalClassifier(channels=32, num_neighbors=[16, 8]).fit(db, task)
    model.predict_proba(["lewis-hamilton"], at="2024-05-01")

Rows are nodes, foreign keys are edges both ways, and a model asked at time t sees the rows known at t and nothing else.
Estimators, tasks and metrics need scikit-learn and DuckDB, and are imported when first asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

from etude.graphs.relational.columns import hashed_ngrams, propose_stypes
from etude.graphs.relational.encoders import HeteroEncoder, RelativeTimeEncoder, RowEncoder, graph_schema
from etude.graphs.relational.graph import RelationalGraph, TemporalAdjacency, build_graph
from etude.graphs.relational.loader import TemporalLoader
from etude.graphs.relational.models import HeteroGraphSAGE, HeteroSAGEConv, RelationalModel
from etude.graphs.relational.sampler import HeteroBatch, TemporalNeighborSampler
from etude.graphs.relational.shops import SHOP_TASKS, SHOP_TIMES, shop_database

if TYPE_CHECKING:
    from etude.graphs.relational.baselines import aggregate_features, constant_predictions, entity_features, fit_trees
    from etude.graphs.relational.estimators import RelationalClassifier, RelationalRegressor
    from etude.graphs.relational.metrics import rank_metrics, task_metrics
    from etude.graphs.relational.recommendation import RelationalRecommender, past_visits, popularity
    from etude.graphs.relational.tasks import EntityTask
    from etude.graphs.relational.training import EntityFit, fit_entities, predict_entities

_LATER = {
    "aggregate_features": "baselines", "constant_predictions": "baselines", "entity_features": "baselines",
    "fit_trees": "baselines", "RelationalClassifier": "estimators", "RelationalRegressor": "estimators",
    "rank_metrics": "metrics", "task_metrics": "metrics", "RelationalRecommender": "recommendation",
    "past_visits": "recommendation", "popularity": "recommendation", "EntityTask": "tasks", "EntityFit": "training",
    "fit_entities": "training", "predict_entities": "training",
}  # fmt: skip

__all__ = [
    "SHOP_TASKS",
    "SHOP_TIMES",
    "EntityFit",
    "EntityTask",
    "HeteroBatch",
    "HeteroEncoder",
    "HeteroGraphSAGE",
    "HeteroSAGEConv",
    "RelationalClassifier",
    "RelationalGraph",
    "RelationalModel",
    "RelationalRecommender",
    "RelationalRegressor",
    "RelativeTimeEncoder",
    "RowEncoder",
    "TemporalAdjacency",
    "TemporalLoader",
    "TemporalNeighborSampler",
    "aggregate_features",
    "build_graph",
    "constant_predictions",
    "entity_features",
    "fit_entities",
    "fit_trees",
    "graph_schema",
    "hashed_ngrams",
    "past_visits",
    "popularity",
    "predict_entities",
    "propose_stypes",
    "rank_metrics",
    "shop_database",
    "task_metrics",
]


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
