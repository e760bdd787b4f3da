"""What the relational model is measured against: one table, automatic aggregates, and constants.

The two table models are LightGBM with early stopping on the validation split. `entity_features` are the entity's own
columns and the seed time; `aggregate_features` add, for every table that points at the entity, counts, means, last
values and shares of missing values over the rows known at the seed time: what an analyst would write first, without
knowing the domain (deep feature synthesis at depth one).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from etude.graphs.relational.columns import NO_TIME
from etude.graphs.relational.graph import RelationalGraph, TemporalAdjacency

__all__ = ["BoostedTrees", "aggregate_features", "constant_predictions", "entity_features", "fit_trees"]

Matrix = Float64[np.ndarray, "rows features"]
_YEAR = 365.2425 * 86_400
_RECENT = (3, 10)


def entity_features(
    graph: RelationalGraph, table: str, entity: Int64[np.ndarray, "rows"], time: Int64[np.ndarray, "rows"]
) -> tuple[Matrix, list[str], list[int]]:
    """The entity's own columns, the rows that its foreign keys name, and the seed time in years.

    Text is left out: a name as a category of its own only invites the trees to learn rows by heart.

    Returns:
        features with NaN where there is no value, their names, and the positions of those that are categories.
    """
    parts: list[np.ndarray] = [time / _YEAR]
    names, categories = ["seed time"], []
    for column in graph.columns[table]:
        if column.stype not in ("numerical", "timestamp", "categorical"):
            continue
        values = column.values[entity]
        if column.stype == "numerical":
            parts.append(values)
        elif column.stype == "timestamp":
            parts.append(np.where(values == NO_TIME, np.nan, values / _YEAR))
        else:
            categories.append(len(parts))
            parts.append(np.where(values < 0, np.nan, values))
        names.append(column.name)
    for kind, adjacency in graph.adjacency.items():
        if kind[2] == table and kind[1].startswith("rev_f2p_"):
            has = adjacency.starts[entity + 1] > adjacency.starts[entity]
            parent = np.full(len(entity), np.nan)
            parent[has] = adjacency.neighbours[adjacency.starts[entity[has]]]
            categories.append(len(parts))
            parts.append(parent)
            names.append(kind[1].removeprefix("rev_f2p_"))
    return np.stack(parts, axis=1), names, categories


def aggregate_features(
    graph: RelationalGraph, table: str, entity: Int64[np.ndarray, "rows"], time: Int64[np.ndarray, "rows"]
) -> tuple[Matrix, list[str], list[int]]:
    """`entity_features`, and aggregates over the rows that point at the entity and are known at the seed time.

    For each such key: how many rows, and days since the last; for each number in them: mean over all, over the last 10
    and the last 3, the last value, and the share of missing values over all and over the last 10; for each category:
    the last one.
    """
    own, names, categories = entity_features(graph, table, entity, time)
    parts = [own]
    width = own.shape[1]
    for kind, adjacency in graph.adjacency.items():
        if kind[2] != table or not kind[1].startswith("f2p_"):
            continue
        start, end = adjacency.starts[entity], _visible(adjacency, entity, time)
        found: list[tuple[str, np.ndarray, bool]] = [("count", (end - start).astype(np.float64), False)]
        child_times = graph.times[kind[0]]
        last = np.where(end > start, end - 1, 0)
        if child_times is not None and adjacency.num_edges:
            days = (time - child_times[adjacency.neighbours[last]]) / 86_400
            found.append(("days since last", np.where(end > start, days, np.nan), False))
        for column in graph.columns[kind[0]]:
            if not adjacency.num_edges or column.stype not in ("numerical", "categorical"):
                continue
            values = column.values[adjacency.neighbours]
            if column.stype == "categorical":
                found.append(
                    (f"last {column.name}", _at(np.where(values < 0, np.nan, values), last, end > start), True)
                )
                continue
            found += [(f"{what} {column.name}", numbers, False) for what, numbers in _aggregates(values, start, end)]
        for what, numbers, category in found:
            if category:
                categories.append(width)
            parts.append(numbers[:, None])
            names.append(f"{kind[0]}.{kind[1].removeprefix('f2p_')}: {what}")
            width += 1
    return np.concatenate(parts, axis=1), names, categories


def _visible(adjacency: TemporalAdjacency, entity: np.ndarray, time: np.ndarray) -> np.ndarray:
    return adjacency.ends(entity, np.searchsorted(adjacency.times, time, side="right"))


def _at(values: np.ndarray, position: np.ndarray, has: np.ndarray) -> np.ndarray:
    return np.where(has, values[position], np.nan)


def _aggregates(values: np.ndarray, start: np.ndarray, end: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Range means by differences of running sums."""
    absent = np.isnan(values)
    # Centred first, so that differences of long running sums keep their digits.
    centre = float(values[~absent].mean()) if (~absent).any() else 0.0
    sums = np.concatenate([[0.0], np.cumsum(np.where(absent, 0.0, values - centre))])
    counts = np.concatenate([[0], np.cumsum(~absent)])

    def mean(begin: np.ndarray) -> np.ndarray:
        known = counts[end] - counts[begin]
        return np.where(known > 0, centre + (sums[end] - sums[begin]) / np.maximum(known, 1), np.nan)

    def missing(begin: np.ndarray) -> np.ndarray:
        rows = end - begin
        return np.where(rows > 0, 1 - (counts[end] - counts[begin]) / np.maximum(rows, 1), np.nan)

    found = [("mean", mean(start))]
    found += [(f"mean of last {k}", mean(np.maximum(start, end - k))) for k in _RECENT]
    found.append(("last", _at(values, np.where(end > start, end - 1, 0), end > start)))
    if absent.any():
        found += [("missing", missing(start)), (f"missing of last {_RECENT[1]}", missing(np.maximum(start, end - 10)))]
    return found


@dataclass
class BoostedTrees:
    """A fitted LightGBM model.

    Attributes:
        booster: of LightGBM.
        kind: of the task.
        val_loss: the validation loss of its best iteration.
    """

    booster: Any
    kind: str
    val_loss: float

    def predict(self, features: Matrix) -> np.ndarray:
        """Probabilities or values, as `task_metrics` takes them."""
        return np.asarray(self.booster.predict(features))


def fit_trees(
    train: tuple[Matrix, np.ndarray],
    val: tuple[Matrix, np.ndarray],
    kind: str = "binary",
    *,
    categories: list[int] | None = None,
    learning_rate: float | int = 0.1,
    num_leaves: int = 31,
    rounds: int = 1000,
    patience: int = 50,
    num_classes: int = 1,
    seed: int = 0,
) -> BoostedTrees:
    """Trains LightGBM with early stopping on the validation split.

    Args:
        train, val: features and targets.
        kind: "binary", "multiclass" or "regression" (L1).
        categories: positions of categorical features.
        learning_rate, num_leaves: of the trees.
        rounds: the most trees. patience: rounds without a better validation loss before it stops.
        num_classes: for multiclass.
        seed: of its sampling: nine in ten features a tree, and eight in ten rows.

    Raises:
        ValueError: for other kinds.
        ImportError: if LightGBM is missing.
    """
    try:
        import lightgbm
    except ImportError as error:
        raise ImportError('the baselines are LightGBM\'s: pip install "etude[graphs]"') from error
    objectives = {"binary": ("binary", "binary_logloss"), "multiclass": ("multiclass", "multi_logloss"),
                  "regression": ("regression_l1", "l1")}  # fmt: skip
    if kind not in objectives:
        raise ValueError(f"trees are fitted to {', '.join(objectives)} targets, got {kind!r}")
    objective, metric = objectives[kind]
    params = {
        "objective": objective, "metric": metric, "learning_rate": learning_rate, "num_leaves": num_leaves,
        "feature_fraction": 0.9, "bagging_fraction": 0.8, "bagging_freq": 1, "seed": seed % 2**31, "verbosity": -1,
        "num_threads": 1, "deterministic": True, "force_row_wise": True, "min_data_in_leaf": 20,
    }  # fmt: skip
    if kind == "multiclass":
        params["num_class"] = num_classes
    # Codes of categories that the training split never saw stay as codes: LightGBM sends them with the missing ones.
    given: dict[str, Any] = {"categorical_feature": categories or "auto", "free_raw_data": True}
    first = lightgbm.Dataset(train[0], train[1], **given)
    second = lightgbm.Dataset(val[0], val[1], reference=first, **given)
    booster = lightgbm.train(
        params, first, rounds, valid_sets=[second], callbacks=[lightgbm.early_stopping(patience, verbose=False)]
    )
    return BoostedTrees(booster, kind, float(booster.best_score["valid_0"][metric]))


def constant_predictions(
    train: tuple[np.ndarray, np.ndarray],
    entity: np.ndarray,
    how: str = "entity mean",
) -> np.ndarray:
    """The mean or median of an entity's training targets, or of all of them where it has none.

    Args:
        train: entities and targets.
        entity: (n,) for whom.
        how: see above.
    """
    import pandas as pd

    scope, _, statistic = how.partition(" ")
    if scope not in ("entity", "global") or statistic not in ("mean", "median"):
        raise ValueError(f"how must be entity or global, mean or median, got {how!r}")
    targets = pd.Series(np.asarray(train[1], dtype=np.float64))
    whole = float(targets.agg(statistic))
    if scope == "global":
        return np.full(len(entity), whole)
    return targets.groupby(np.asarray(train[0])).agg(statistic).reindex(entity).fillna(whole).to_numpy()
