"""Which rows of another table will an entity link to next?

Fey et al., arXiv:2312.04615, section 3.4, with the two heads of the benchmark's code:

    two-tower   the score of a pair is the product of the two rows' vectors at the time, from one graph network, where
                rows of the target table have a learned vector besides; Bayesian personalised ranking against one
                random negative
    ID-GNN      the entity is flagged with a learned vector, and every target row in its sampled neighbourhood is scored
                from its own vector: binary cross-entropy over those rows. Messages run both ways along sampled links,
                so that the flag reaches the rows. It can only recommend what lies within its hops; shorter lists are
                filled up by popularity.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from etude.data.kinds_relational import RelationalDatabase
from etude.graphs.relational.estimators import seeds_at
from etude.graphs.relational.graph import build_graph
from etude.graphs.relational.loader import TemporalLoader
from etude.graphs.relational.metrics import rank_metrics
from etude.graphs.relational.models import RelationalModel
from etude.graphs.relational.sampler import HeteroBatch, TemporalNeighborSampler
from etude.graphs.relational.tasks import EntityTask
from etude.loop import seeded

try:
    from sklearn.base import BaseEstimator
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise ImportError('the estimators need scikit-learn: pip install "etude[run]"') from error

__all__ = ["RelationalRecommender", "past_visits", "popularity"]

METHODS = ("two_tower", "id_gnn")
_MOST_SCORES = 20_000_000


class RelationalRecommender(BaseEstimator):
    """Ranks rows of the task's target table for entities at a time.

        recommender = RelationalRecommender(method="id_gnn", channels=32).fit(db, task)
        recommender.recommend(["ada", "bob"], at="2024-05-01", k=5)

    Args:
        method: "two_tower" or "id_gnn", see above.
        channels, num_layers, aggr, num_blocks, dropout: see `RelationalModel`.
        num_neighbors: fan-out of each hop; None takes [128, 64, ...].
        temporal_strategy: "uniform" or "last".
        lr, batch_size, epochs, max_steps: as for `fit_entities`.
        k: the best epoch has the highest MAP at k on the validation split.
        random_state: seed of everything random; 0 if None.
        device: where to train.

    Attributes:
        model_: the trained `RelationalModel`.
        val_scores_: MAP at k of each epoch; `best_epoch_` chose the weights.
    """

    def __init__(
        self,
        method: str = "two_tower",
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
        k: int = 10,
        random_state: int | None = None,
        device: str = "cpu",
    ):
        self.method = method
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
        self.k = k
        self.random_state = random_state
        self.device = device

    def fit(self, db: RelationalDatabase, task: EntityTask) -> "RelationalRecommender":
        """Trains on the task's training split and keeps the best epoch of its validation split.

        Raises:
            ValueError: if the task is no recommendation or the method unknown.
        """
        if task.kind != "recommendation" or task.target_table is None:
            raise ValueError(f"RelationalRecommender takes recommendation tasks, got {task.kind}")
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        seed = 0 if self.random_state is None else self.random_state
        self.task_, self.db_ = task, db
        self.graph_ = build_graph(db, stats_upto=task.val_timestamp)
        self._source, self._target = task.entity_table, task.target_table
        self._rows = self.graph_.num_nodes[self._target]
        fanout = self.num_neighbors or [max(128 >> hop, 1) for hop in range(self.num_layers)]
        self.sampler_ = TemporalNeighborSampler(
            self.graph_, list(fanout), self.temporal_strategy, seed, entity_table=self._source
        )
        two_tower = self.method == "two_tower"
        train, val = task.rows("train"), task.rows("val")
        self._popular = popular_rows(train[2], self._rows)
        rng = np.random.default_rng(seed)
        with seeded(seed):
            self.model_ = RelationalModel(
                self.graph_, self.channels, self.num_layers, self.channels if two_tower else 1, self.aggr,
                self.num_blocks, self.dropout, identity=not two_tower,
                shallow={self._target: self._rows} if two_tower else None,
            ).to(self.device)  # fmt: skip
            self._train(train, val, rng, seed)
        return self

    def _train(self, train: Any, val: Any, rng: np.random.Generator, seed: int) -> None:
        entity, time, targets = train
        optimizer = torch.optim.Adam(self.model_.parameters(), lr=self.lr)
        loader = TemporalLoader(
            self.sampler_, (entity, time, np.arange(len(entity))), self.batch_size, shuffle=True, seed=seed,
            max_batches=self.max_steps,
        )  # fmt: skip
        self.val_scores_: list[float] = []
        self.best_epoch_, best = 0, {}
        for epoch in range(1, self.epochs + 1):
            self.model_.train()
            for batch, place in loader:
                assert place is not None
                optimizer.zero_grad()
                wanted = [targets[row] for row in place.tolist()]
                loss = self._loss(batch, wanted, rng)
                if loss is None:
                    continue
                loss.backward()
                optimizer.step()
            ranked = self._ranked(val[0], val[1], self.k)
            hits = np.stack([np.isin(line, right) for line, right in zip(ranked, val[2])])
            self.val_scores_.append(rank_metrics(hits, np.array([len(right) for right in val[2]]))["map"])
            if self.val_scores_[-1] > max([-1.0, *self.val_scores_[:-1]]):
                self.best_epoch_, best = epoch, deepcopy(self.model_.state_dict())
        self.model_.load_state_dict(best)
        self.model_.eval()

    def _loss(self, batch: HeteroBatch, wanted: list[np.ndarray], rng: np.random.Generator) -> Tensor | None:
        if self.method == "id_gnn":
            logits, seeds, rows = self._scored_rows(batch)
            keys = np.concatenate([place * self._rows + right for place, right in enumerate(wanted)])
            labels = np.isin((seeds * self._rows + rows).numpy(), keys)
            if not len(labels):
                return None
            return F.binary_cross_entropy_with_logits(logits, torch.from_numpy(labels).to(logits))
        times = batch.seed_time.numpy()
        positive = np.array([rng.choice(right) for right in wanted])
        negative = rng.integers(0, self._rows, len(wanted))
        known = self._known(times)
        if known is not None:
            negative %= np.maximum(known, 1)
        source = self.model_(batch.to(self.device))
        pair = [self._vectors(rows, times, draw=int(rng.integers(2**31))) for rows in (positive, negative)]
        return -F.logsigmoid((source * pair[0]).sum(1) - (source * pair[1]).sum(1)).mean()

    def _known(self, times: np.ndarray) -> np.ndarray | None:
        """How many target rows exist at each time; None if all always do."""
        own = self.graph_.times[self._target]
        return None if own is None else np.searchsorted(own, times, side="right")

    def _vectors(self, rows: np.ndarray, times: np.ndarray, draw: int = 0) -> Tensor:
        batch = self.sampler_.sample(rows, times, draw=draw, table=self._target)
        return self.model_(batch.to(self.device))

    def _scored_rows(self, batch: HeteroBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of all target rows in the batch, with their seeds and rows; an entity never recommends itself."""
        vectors = self.model_.embed(batch.bidirectional().to(self.device), trim=False)[self._target]
        first = len(batch) if self._target == self._source else 0
        return (
            self.model_.head(vectors)[first:, 0],
            batch.batch[self._target][first:],
            batch.node_index[self._target][first:],
        )

    @torch.no_grad()
    def _ranked(self, entity: np.ndarray, time: np.ndarray, k: int) -> np.ndarray:
        """(n, k) rows of the target table, best first."""
        if not 1 <= k <= self._rows:
            raise ValueError(f"k must lie in 1..{self._rows}, the rows of {self._target}, got {k}")
        self.model_.eval()
        out = np.empty((len(entity), k), dtype=np.int64)
        size = max(min(self.batch_size, _MOST_SCORES // self._rows), 1)
        # One time after another, as the vectors of the target rows hold for one time.
        for moment in np.unique(time):
            places = np.flatnonzero(time == moment)
            towers = None
            known = self._known(np.array([moment]))
            count = self._rows if known is None else int(known[0])
            if self.method == "two_tower":
                parts = [
                    self._vectors(rows, np.full(len(rows), moment))
                    for rows in np.array_split(np.arange(count), max(-(-count // self.batch_size), 1))
                ]
                towers = torch.cat(parts)
            for chunk in np.array_split(places, -(-len(places) // size)):
                scores = self._scores(entity[chunk], time[chunk], towers)
                out[chunk] = scores.topk(k, dim=1).indices.cpu().numpy()
        return out

    def _scores(self, entity: np.ndarray, time: np.ndarray, towers: Tensor | None) -> Tensor:
        batch = self.sampler_.sample(entity, time)
        # Below every score: by popularity, so that lists are full.
        place = np.empty(self._rows, dtype=np.float32)
        place[np.argsort(-self._popular, kind="stable")] = np.arange(self._rows) / self._rows
        scores = (-1e30 * (1 + torch.from_numpy(place))).repeat(len(entity), 1)
        if towers is not None:
            scores[:, : len(towers)] = (self.model_(batch.to(self.device)) @ towers.T).cpu()
            return scores
        logits, seeds, rows = self._scored_rows(batch)
        scores[seeds, rows] = logits.cpu()
        return scores

    def recommend(self, ids: Any, at: Any, k: int = 10) -> list[list[Any]]:
        """For each entity k identifiers of target rows, best first.

        Args:
            ids: identifiers of entities.
            at: a time, or one for each entity; nothing later is seen.
            k: how many.

        Raises:
            KeyError: for an identifier that is not there.
        """
        check_is_fitted(self)
        entity, time = seeds_at(self.db_, self._source, ids, at)
        names = self.db_.ids_of(self._target, np.arange(self._rows))
        return [[names[row] for row in line] for line in self._ranked(entity, time, k)]

    def score_all(self, split: str = "test", k: int | None = None) -> dict[str, float]:
        """MAP, precision and recall at k on a split of the task."""
        check_is_fitted(self)
        entity, time, right = self.task_.rows(split)
        ranked = self._ranked(entity, time, self.k if k is None else k)
        hits = np.stack([np.isin(line, wanted) for line, wanted in zip(ranked, right)])
        return rank_metrics(hits, np.array([len(wanted) for wanted in right]))

    def score(self, split: str = "test") -> float:
        """MAP at `k`."""
        return self.score_all(split)["map"]


def popular_rows(targets: Sequence[np.ndarray], rows: int) -> np.ndarray:
    """How often each target row is a right answer, int64 (rows,)."""
    return np.bincount(np.concatenate([*targets, np.empty(0, dtype=np.int64)]), minlength=rows)


def popularity(task: EntityTask, split: str, k: int = 10) -> dict[str, float]:
    """Metrics of recommending the k most frequent right answers of the splits before to everyone."""
    return _baseline(task, split, k, own=False)


def past_visits(task: EntityTask, split: str, k: int = 10) -> dict[str, float]:
    """Metrics of recommending an entity's own most frequent right answers of the splits before, then popular ones."""
    return _baseline(task, split, k, own=True)


def _baseline(task: EntityTask, split: str, k: int, own: bool) -> dict[str, float]:
    if split not in ("val", "test"):
        raise ValueError(f"split must be val or test, got {split!r}")
    if task.target_table is None:
        raise ValueError(f"{task.name} is no recommendation task")
    rows = len(task.db[task.target_table])
    before: list[str] = ["train"] if split == "val" else ["train", "val"]
    parts = [task.rows(name) for name in before]
    entity = np.concatenate([np.repeat(e, [len(right) for right in t]) for e, _, t in parts])
    target = np.concatenate([right for _, _, t in parts for right in t])
    everyone = np.bincount(target, minlength=rows) / (len(target) + 1)  # below one own visit
    who, _, right = task.rows(split)
    hits = np.zeros((len(who), k), dtype=bool)
    order = np.argsort(entity, kind="stable")
    starts, ends = (np.searchsorted(entity[order], who, side=side) for side in ("left", "right"))
    for place, (start, end, wanted) in enumerate(zip(starts, ends, right)):
        score = everyone + (np.bincount(target[order[start:end]], minlength=rows) if own else 0)
        hits[place] = np.isin(np.argsort(-score, kind="stable")[:k], wanted)
    return rank_metrics(hits, np.array([len(wanted) for wanted in right]))
