"""Classifier and regressor over a database, in scikit-learn's manner.

db = relational.from_url("sqlite:///f1db.sqlite", time_columns={...})
task = EntityTask(db, "driver", sql="...", timedelta="30d", val_timestamp=..., test_timestamp=...)
model = RelationalClassifier().fit(db, task)
model.predict(["lewis-hamilton"], at="2024-05-01")
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from etude.data.kinds_relational import RelationalDatabase
from etude.data.relational_columns import to_seconds
from etude.graphs.relational.graph import RelationalGraph, build_graph
from etude.graphs.relational.models import RelationalModel
from etude.graphs.relational.sampler import TemporalNeighborSampler
from etude.graphs.relational.tasks import EntityTask
from etude.graphs.relational.training import fit_entities, predict_entities
from etude.loop import seeded

try:
    from sklearn.base import BaseEstimator
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise ImportError('the estimators need scikit-learn: pip install "etude[run]"') from error

__all__ = ["RelationalClassifier", "RelationalRegressor", "seeds_at"]


class _RelationalEstimator(BaseEstimator):
    """What the classifier and the regressor share.

    Args:
        channels: C. num_layers: hops. aggr, num_blocks, dropout: see `RelationalModel`.
        num_neighbors: fan-out of each hop; None takes [128, 64, ...], halved hop by hop.
        temporal_strategy: "uniform" or "last".
        lr, batch_size, epochs, max_steps: see `fit_entities`. The defaults are the benchmark's.
        stypes: table -> {column: semantic type}, in place of the proposal.
        num_workers: processes that sample ahead.
        random_state: seed of weights, order, neighbours and dropout; 0 if None.
        device: where to train, such as "cpu" or "cuda".

    Attributes:
        model_: the trained `RelationalModel`.
        graph_: the graph of the database that was fitted.
        fit_: the `EntityFit` of the training.
        task_: the task.
    """

    def __init__(
        self,
        *,
        channels: int = 128,
        num_layers: int = 2,
        aggr: str = "sum",
        num_blocks: int = 4,
        dropout: float | int = 0.2,
        num_neighbors: Sequence[int] | None = None,
        temporal_strategy: str = "uniform",
        lr: float | int = 5e-3,
        batch_size: int = 512,
        epochs: int = 10,
        max_steps: int | None = 2000,
        stypes: Mapping[str, Mapping[str, str]] | None = None,
        num_workers: int = 0,
        random_state: int | None = None,
        device: str = "cpu",
    ):
        self.channels = channels
        self.num_layers = num_layers
        self.aggr = aggr
        self.num_blocks = num_blocks
        self.dropout = dropout
        self.num_neighbors = num_neighbors
        self.temporal_strategy = temporal_strategy
        self.lr = lr
        self.batch_size = batch_size
        self.epochs = epochs
        self.max_steps = max_steps
        self.stypes = stypes
        self.num_workers = num_workers
        self.random_state = random_state
        self.device = device

    _kinds: tuple[str, ...] = ()

    def fit(self, db: RelationalDatabase, task: EntityTask) -> Any:
        """Trains on the task's training split and keeps the best epoch of its validation split.

        Args:
            db: the database that messages come from; usually the task's own.
            task: with the right kind.

        Raises:
            ValueError: if the kind of the task is another estimator's.
            KeyError: if an entity of the task is not in `db`.
        """
        if task.kind not in self._kinds:
            raise ValueError(f"{type(self).__name__} takes {' and '.join(self._kinds)} tasks, got {task.kind}")
        seed = 0 if self.random_state is None else self.random_state
        self.task_ = task
        self.graph_ = build_graph(db, self.stypes, stats_upto=task.val_timestamp)
        self.db_ = db
        with seeded(seed):
            self.model_ = RelationalModel(
                self.graph_, self.channels, self.num_layers, self._out_dim(task), self.aggr,
                num_blocks=self.num_blocks, dropout=self.dropout,
            ).to(self.device)  # fmt: skip
            self.fit_ = fit_entities(
                self.model_, self._sampler(self.graph_), self._rows("train"), self._rows("val"), task.kind, lr=self.lr,
                batch_size=self.batch_size, epochs=self.epochs, max_steps=self.max_steps, seed=seed,
                num_workers=self.num_workers,
            )  # fmt: skip
        return self

    def _out_dim(self, task: EntityTask) -> int:
        return 1

    def _sampler(self, graph: RelationalGraph) -> TemporalNeighborSampler:
        fanout = self.num_neighbors
        if fanout is None:
            fanout = [max(128 >> hop, 1) for hop in range(self.num_layers)]
        if len(fanout) < self.num_layers:
            raise ValueError(f"num_neighbors must have a count for each of {self.num_layers} layers, got {fanout}")
        seed = 0 if self.random_state is None else self.random_state
        return TemporalNeighborSampler(
            graph, list(fanout), self.temporal_strategy, seed, entity_table=self.task_.entity_table
        )

    def _rows(self, split: str) -> tuple[np.ndarray, np.ndarray, Any]:
        frame = self.task_.table(split)
        _, time, target = self.task_.rows(split)
        return self.db_.index_of(self.task_.entity_table, frame["entity"]), time, target

    def _predict(self, entities: Any, at: Any, db: RelationalDatabase | None) -> np.ndarray:
        check_is_fitted(self)
        source = self.db_ if db is None else db
        graph = self.graph_ if db is None else build_graph(db, self._stypes_of_fit(), stats_upto=self.graph_.stats_upto)
        rows = seeds_at(source, self.task_.entity_table, entities, at)
        return self._of_rows(graph, (*rows, None))

    def _stypes_of_fit(self) -> dict[str, dict[str, str]]:
        return {table: {c.name: c.stype for c in columns} for table, columns in self.graph_.columns.items()}

    def _of_rows(self, graph: RelationalGraph, rows: tuple[Any, Any, Any]) -> np.ndarray:
        return predict_entities(
            self.model_, self._sampler(graph), rows, self.task_.kind, clamp=self.fit_.clamp,
            batch_size=self.batch_size, num_workers=self.num_workers,
        )  # fmt: skip

    def score_all(self, split: str = "test") -> dict[str, float]:
        """All metrics of the task on one of its splits."""
        check_is_fitted(self)
        return self.task_.evaluate(self._of_rows(self.graph_, self._rows(split)), split)


def seeds_at(db: RelationalDatabase, table: str, entities: Any, at: Any) -> tuple[np.ndarray, np.ndarray]:
    """Rows and times of seeds: identifiers, and one time for all of them or one for each.

    Raises:
        KeyError: for an unknown identifier.
        ValueError: if the times are neither one nor as many.
    """
    if isinstance(entities, str | bytes) or not hasattr(entities, "__len__"):
        raise ValueError(f"entities must be a list of identifiers, got {entities!r}; for one, give [{entities!r}]")
    rows = db.index_of(table, entities)
    if isinstance(at, str) or not hasattr(at, "__len__"):
        return rows, np.full(len(rows), to_seconds(at), dtype=np.int64)
    times = np.array([to_seconds(one) for one in at], dtype=np.int64)
    if len(times) != len(rows):
        raise ValueError(f"at must be one time, or one for each of {len(rows)} entities, got {len(times)}")
    return rows, times


class RelationalClassifier(_RelationalEstimator):
    """Predicts a class, or several labels, of entities at a time.

        classifier = RelationalClassifier(channels=32, epochs=5).fit(db, task)
        classifier.predict_proba(["lewis-hamilton", "max-verstappen"], at="2024-05-01")

    See the shared arguments in `RelationalModel` and `fit_entities`.

    Attributes:
        classes_: of a binary task [0, 1]; of a multiclass task, sorted; of a multilabel task the labels' positions.
    """

    _kinds = ("binary", "multiclass", "multilabel")

    def fit(self, db: RelationalDatabase, task: EntityTask) -> "RelationalClassifier":
        """See `RelationalRegressor.fit`."""
        if task.kind == "multiclass":
            self.classes_ = np.array(task.classes(), dtype=object)
        elif task.kind in self._kinds:
            self.classes_ = np.arange(2 if task.kind == "binary" else len(task.table("train")["target"].iloc[0]))
        super().fit(db, task)
        return self

    def _out_dim(self, task: EntityTask) -> int:
        return 1 if task.kind == "binary" else len(self.classes_)

    def _rows(self, split: str) -> tuple[np.ndarray, np.ndarray, Any]:
        entity, time, target = super()._rows(split)
        if self.task_.kind != "multiclass":
            return entity, time, target
        codes = {value: place for place, value in enumerate(self.classes_)}
        # A class that training never saw is always wrong.
        return entity, time, np.array([codes.get(value, -1) for value in target], dtype=np.int64)

    def predict_proba(self, entities: Any, at: Any, db: RelationalDatabase | None = None) -> np.ndarray:
        """(n, classes) probabilities; (n, labels) for multilabel.

        Args:
            entities: identifiers: values of the entity table's primary key.
            at: a time, or one for each entity; nothing later is seen.
            db: a newer state of the database, if not the one fitted; values unseen in training count as unknown.

        Raises:
            KeyError: for an identifier that is not there.
            ValueError: if an entity is not known yet at its time.
        """
        found = self._predict(entities, at, db)
        return np.stack([1 - found, found], axis=1) if self.task_.kind == "binary" else found

    def predict(self, entities: Any, at: Any, db: RelationalDatabase | None = None) -> np.ndarray:
        """(n,) classes, or (n, labels) of 0 and 1; arguments as for `predict_proba`."""
        found = self.predict_proba(entities, at, db)
        if self.task_.kind == "multilabel":
            return (found >= 0.5).astype(np.int64)
        return self.classes_[found.argmax(1)]

    def score(self, split: str = "test") -> float:
        """AUROC of a binary task, accuracy of a multiclass task, average precision of a multilabel task."""
        return self.score_all(split)[self.fit_.metric]


class RelationalRegressor(_RelationalEstimator):
    """Predicts a number of entities at a time; see `RelationalClassifier` for the arguments."""

    _kinds = ("regression",)

    def predict(self, entities: Any, at: Any, db: RelationalDatabase | None = None) -> np.ndarray:
        """(n,) values, inside the 2nd to 98th percentile of the training targets; arguments as for the classifier."""
        return self._predict(entities, at, db)

    def score(self, split: str = "test") -> float:
        """R^2."""
        return self.score_all(split)["r2"]
