"""Claims of "Relational Deep Learning"."""

from functools import lru_cache
from typing import Any

import numpy as np
import torch

from etude.data import relational
from etude.data.kinds_relational import RelationalDatabase
from etude.graphs.relational import (
    SHOP_TASKS,
    SHOP_TIMES,
    EntityTask,
    RelationalGraph,
    RelationalModel,
    TemporalNeighborSampler,
    aggregate_features,
    build_graph,
    entity_features,
    fit_entities,
    fit_trees,
    predict_entities,
    shop_database,
    task_metrics,
)
from etude.lab import Paper, Setup, Source, Trial, equivalent, higher, identity, lower, shown

__all__ = ["PAPER"]

PAPER = Paper(
    slug="relational",
    domain="graphs",
    title="Relational Deep Learning: Graph Representation Learning on Relational Databases",
    authors="Fey, Hu, Huang, Lenssen, Ranjan, Robinson, Ying, You & Leskovec",
    year=2024,
    arxiv="2312.04615",
    venue="ICML 2024",
    summary="A database is read as a graph in time, and a graph network learns the joins that analysts write by hand.",
    methods=(
        "etude.data.kinds_relational",
        "etude.data.relational",
        "etude.graphs.relational.columns",
        "etude.graphs.relational.graph",
        "etude.graphs.relational.sampler",
        "etude.graphs.relational.loader",
        "etude.graphs.relational.encoders",
        "etude.graphs.relational.models",
        "etude.graphs.relational.tasks",
        "etude.graphs.relational.metrics",
        "etude.graphs.relational.training",
        "etude.graphs.relational.estimators",
        "etude.graphs.relational.recommendation",
        "etude.graphs.relational.baselines",
        "etude.graphs.relational.shops",
    ),
    usage="""\
from etude.graphs.relational import SHOP_TASKS, EntityTask, RelationalClassifier, shop_database
db = shop_database(60, 400)  # or etude.data.relational.from_url("postgresql+psycopg://user:password@host/shop", ...)
task = EntityTask(db, "customer", **SHOP_TASKS["churn"], val_timestamp="2022-09-01", test_timestamp="2022-11-01")
model = RelationalClassifier(channels=16, num_neighbors=[8, 4], epochs=1).fit(db, task)
print(model.predict_proba([3, 7], at="2022-12-01"), model.score("test"))
""",
    notes=(
        "The claim is accuracy without feature engineering, not beyond it: in the benchmark's own user study a data "
        "scientist's features with LightGBM beat the graph network on several regression tasks (driver-position 3.963 "
        "against 4.022, user-ltv 13.93 against 14.31), and automatic aggregates are the strong arm here. The test "
        "lies after the training in time and is fixed; seeds vary weights, batches and sampled neighbours, so that the "
        "verdicts are conditional on that split. Columns that are updated in place (an all-time total in the entity's "
        "row) carry the future into the past and must be left out: no sampler can see that. A label speaks of rows in "
        "(t, t + window]; the sampler sees rows at or before t. Retired cars are counted by the absence of a position "
        "in the results, lapped cars are not. `small` trains 32 or 64 channels with one residual block per row encoder "
        "on the last 8 and 4 rows of each link; the published schedule (128 channels, fan-out 128 and 64, ten epochs) "
        "is at `full`, where rel-stack and rel-amazon come through the package `relbench`."
    ),
    code="https://github.com/snap-stanford/relbench",
    extra="graphs",
)

_ALIVE = """driver_id IN (
    SELECT driver_id FROM race_result
    WHERE date > CAST(:cutoff AS TIMESTAMP) - INTERVAL 365 DAY AND date <= :cutoff)"""
F1_TASKS: dict[str, dict[str, Any]] = {
    "classification": {"kind": "binary", "timedelta": "30d", "name": "driver-top3", "sql": f"""
        SELECT driver_id, CAST(min(position_number) <= 3 AS INTEGER) FROM qualifying_result
        WHERE date > :cutoff AND date <= :horizon AND position_number IS NOT NULL AND {_ALIVE} GROUP BY driver_id"""},
    "regression": {"kind": "regression", "timedelta": "60d", "name": "driver-position", "sql": f"""
        SELECT driver_id, avg(position_order) FROM race_result
        WHERE date > :cutoff AND date <= :horizon AND {_ALIVE} GROUP BY driver_id"""},
    "second": {"kind": "binary", "timedelta": "30d", "name": "driver-dnf", "sql": f"""
        SELECT driver_id, CAST(count(*) > count(position_number) AS INTEGER) FROM race_result
        WHERE date > :cutoff AND date <= :horizon AND {_ALIVE} GROUP BY driver_id"""},
}  # fmt: skip
"""Drivers who race within the window and raced within a year before; the tasks of rel-f1."""

_STACK_USERS = """SELECT who, CAST(count(*) FILTER (moment > :cutoff) > 0 AS INTEGER)
    FROM (SELECT "OwnerUserId" AS who, "CreationDate" AS moment FROM posts
        UNION ALL SELECT "UserId", "CreationDate" FROM votes
        UNION ALL SELECT "UserId", "CreationDate" FROM comments)
    WHERE who <> -1 AND moment <= :horizon GROUP BY who HAVING count(*) FILTER (moment <= :cutoff) > 0"""
_STACK_POSTS = """SELECT p."Id", count(v."Id") FILTER (v."VoteTypeId" = 2 AND v."CreationDate" > :cutoff)
    FROM posts p LEFT JOIN votes v ON p."Id" = v."PostId" AND v."CreationDate" <= :horizon
    WHERE p."PostTypeId" = 1 AND p."OwnerUserId" <> -1 AND p."CreationDate" <= :cutoff GROUP BY 1"""
_AMAZON = """SELECT customer_id, {target} FROM review
    WHERE review_time > CAST(:cutoff AS TIMESTAMP) - INTERVAL 91 DAY AND review_time <= :horizon
    GROUP BY customer_id HAVING count(*) FILTER (review_time <= :cutoff) > 0"""
TASKS: dict[str, dict[str, Any]] = {
    "f1db": {
        "entity": "driver", "times": {"val_timestamp": "2005-01-01", "test_timestamp": "2010-01-01"}, **F1_TASKS,
    },
    "shops": {
        "entity": "customer", "times": SHOP_TIMES,
        "classification": {**SHOP_TASKS["churn"], "name": "churn"},
        "regression": {**SHOP_TASKS["spending"], "name": "spending"},
        "second": None,
    },
    "rel-stack": {
        "entity": "users", "times": {"val_timestamp": "2020-10-01", "test_timestamp": "2021-01-01"},
        "classification": {"kind": "binary", "timedelta": "91d", "name": "user-engagement", "sql": _STACK_USERS},
        "regression": {
            "entity": "posts", "kind": "regression", "timedelta": "91d", "name": "post-votes", "sql": _STACK_POSTS,
        },
        "second": None,
    },
    "rel-amazon": {
        "entity": "customer", "times": {"val_timestamp": "2015-10-01", "test_timestamp": "2016-01-01"},
        "classification": {"kind": "binary", "timedelta": "91d", "name": "user-churn", "sql": _AMAZON.format(
            target="CAST(count(*) FILTER (review_time > :cutoff) = 0 AS INTEGER)")},
        "regression": {"kind": "regression", "timedelta": "91d", "name": "user-ltv", "sql": """
            SELECT r.customer_id, coalesce(sum(p.price) FILTER (r.review_time > :cutoff), 0)
            FROM review r JOIN product p ON p.product_id = r.product_id
            WHERE r.review_time > CAST(:cutoff AS TIMESTAMP) - INTERVAL 91 DAY AND r.review_time <= :horizon
            GROUP BY r.customer_id HAVING count(*) FILTER (r.review_time <= :cutoff) > 0"""},
        "second": None,
    },
}  # fmt: skip


def shops() -> RelationalDatabase:
    return shop_database()


def _relbench(name: str) -> RelationalDatabase:
    try:
        from relbench.datasets import get_dataset
    except ImportError as error:
        raise ImportError(f'{name} is loaded by its own package: pip install relbench "etude[graphs]"') from error
    tables = get_dataset(name, download=True).get_db(upto_test_timestamp=False).table_dict
    return relational.from_frames(
        {name: table.df for name, table in tables.items()},
        primary_keys={name: table.pkey_col for name, table in tables.items()},
        foreign_keys={name: dict(table.fkey_col_to_pkey_table) for name, table in tables.items()},
        time_columns={name: table.time_col for name, table in tables.items()},
        name=name,
    )


def rel_stack() -> RelationalDatabase:
    return _relbench("rel-stack")


def rel_amazon() -> RelationalDatabase:
    return _relbench("rel-amazon")


DATABASES = {
    "f1db": Source(relational.f1db, scales=("small", "medium", "full")),
    "shops": Source(shops, scales=("smoke", "small")),
    "rel-stack": Source(rel_stack, scales=("full",)),
    "rel-amazon": Source(rel_amazon, scales=("full",)),
}


@lru_cache(maxsize=8)
def _task(data: RelationalDatabase, which: str) -> EntityTask:
    """The labels of a task; they hold nothing random, so that the trials of a process share them."""
    about = TASKS[data.name]
    task = {"entity": about["entity"], **about[which]}
    return EntityTask(data, task.pop("entity"), **task, **about["times"])


@lru_cache(maxsize=4)
def _graph(data: RelationalDatabase) -> RelationalGraph:
    return build_graph(data, stats_upto=TASKS[data.name]["times"]["val_timestamp"])


class Bench:
    """One task of one database, ready for a trial."""

    def __init__(self, trial: Trial, data: RelationalDatabase, which: str):
        self.trial, self.task, self.graph = trial, _task(data, which), _graph(data)
        setup = trial.setup
        self.train, self.val, self.test = (
            self._cut(self.task.rows(split), setup.rows) for split in ("train", "val", "test")
        )
        self.metric = "auroc" if self.task.kind == "binary" else "mae"

    def _cut(self, rows: Any, most: int | None) -> Any:
        if most is None or len(rows[0]) <= most:
            return rows
        every = np.linspace(0, len(rows[0]) - 1, most).astype(int)
        return tuple(part[every] for part in rows)

    def sampler(self, hops: int, graph: RelationalGraph | None = None) -> TemporalNeighborSampler:
        setup = self.trial.setup
        return TemporalNeighborSampler(
            self.graph if graph is None else graph, setup.fanout[:hops], setup.strategy,
            self.trial.stream_seed("neighbours"), entity_table=self.task.entity_table,
        )  # fmt: skip

    def network(self, hops: int, *, channels: int, lr: float, ahead: int = 0) -> tuple[RelationalModel, Any]:
        """A trained model; `ahead` seconds are added to every seed's time, which is a mistake."""
        trial, setup = self.trial, self.trial.setup
        with trial.stream("init"):
            model = RelationalModel(self.graph, channels, hops, 1, setup.aggr, num_blocks=setup.blocks).to(trial.device)

        def watch(epoch: int, epochs: int, **metrics: float) -> None:
            if not trial.tuning:
                trial.log(epoch, **{f"{self.task.name}_{name}": value for name, value in metrics.items()})
            trial.progress(epoch, epochs, **metrics)

        with trial.stream("dropout"):
            fit = fit_entities(
                model, self.sampler(hops), _later(self.train, ahead), _later(self.val, ahead), self.task.kind, lr=lr,
                batch_size=setup.batch_size, epochs=setup.epochs, max_steps=setup.steps,
                seed=trial.stream_seed("order") % 2**31, callback=watch,
            )  # fmt: skip
        return model, fit

    def predict(
        self, model: RelationalModel, fit: Any, rows: Any, hops: int, graph: RelationalGraph | None = None
    ) -> Any:
        return predict_entities(
            model,
            self.sampler(hops, graph),
            rows,
            self.task.kind,
            clamp=fit.clamp,
            batch_size=self.trial.setup.batch_size,
        )

    def trees(self, features: Any, *, lr: float, leaves: int) -> dict[str, Any]:
        """Predictions of LightGBM for validation and test rows."""
        made = [
            features(self.graph, self.task.entity_table, rows[0], rows[1]) for rows in (self.train, self.val, self.test)
        ]
        model = fit_trees(
            (made[0][0], self.train[2]), (made[1][0], self.val[2]), self.task.kind, categories=made[0][2],
            learning_rate=lr, num_leaves=leaves, rounds=self.trial.setup.trees, seed=self.trial.stream_seed("init"),
        )  # fmt: skip
        return {"val": model.predict(made[1][0]), "test": model.predict(made[2][0])}

    def scored(self, predictions: dict[str, Any]) -> dict[str, float]:
        """The metrics; test rows are looked at only where nothing is chosen."""
        found = {f"val_{self.metric}": task_metrics(self.task.kind, self.val[2], predictions["val"])[self.metric]}
        if not self.trial.tuning:
            found |= task_metrics(self.task.kind, self.test[2], predictions["test"])
            self.log_years(predictions["test"], f"{self.task.name}_{self.metric}_by_year")
        return found

    def log_years(self, prediction: Any, curve: str) -> None:
        """The test score of every calendar year; a year of one class alone has no AUROC."""
        years = self.test[1].astype("datetime64[s]").astype("datetime64[Y]").astype(int) + 1970
        for year in np.unique(years):
            rows = years == year
            if self.metric != "auroc" or len(np.unique(self.test[2][rows])) == 2:
                score = task_metrics(self.task.kind, self.test[2][rows], prediction[rows])[self.metric]
                self.trial.log(int(year), **{curve: score})


def _later(rows: Any, seconds: int) -> Any:
    return (rows[0], rows[1] + seconds, rows[2])


HOPS = {"rdl_0hop": 0, "rdl_2hop": 2}
TREES = {"single_table": entity_features, "auto_aggregates": aggregate_features}


def compare(trial: Trial, data: RelationalDatabase, which: str) -> dict[str, float]:
    """One arm on one task."""
    bench = Bench(trial, data, which)
    if trial.arm in TREES:
        made = bench.trees(TREES[trial.arm], lr=trial.tuned.tree_lr or 0.1, leaves=trial.tuned.leaves or 31)
        return bench.scored(made)
    hops = HOPS[trial.arm]
    model, fit = bench.network(hops, channels=trial.tuned.channels or 32, lr=trial.tuned.lr or 5e-3)
    predictions = {"val": bench.predict(model, fit, bench.val, hops)}
    if not trial.tuning:
        predictions["test"] = bench.predict(model, fit, bench.test, hops)
    return bench.scored(predictions) | {"best_epoch": float(fit.best_epoch)}


_SMALL = {
    "rows": None, "fanout": [8, 4], "strategy": "last", "aggr": "mean", "blocks": 1, "batch_size": 512, "epochs": 6,
    "steps": 8, "trees": 1000, "cutoffs": 40,
}  # fmt: skip
SETUPS = {
    "smoke": Setup(**{**_SMALL, "rows": 120, "fanout": [3, 2], "epochs": 1, "steps": 1, "trees": 5, "cutoffs": 3}),
    "small": Setup(**_SMALL),
    "medium": Setup(**{**_SMALL, "fanout": [32, 16], "blocks": 4, "epochs": 10, "steps": 100}),
    "full": Setup(
        rows=None, fanout=[128, 64], strategy="uniform", aggr="sum", blocks=4, batch_size=512, epochs=10, steps=2000,
        trees=2000, cutoffs=None,
    ),
}  # fmt: skip
SEEDS = {"smoke": 1, "small": 5, "medium": 5, "full": 5}
_NETWORKS, _TREES = ("rdl_0hop", "rdl_2hop"), ("single_table", "auto_aggregates")
GRID = {
    "lr": {arm: [1e-3, 5e-3] for arm in _NETWORKS},
    "channels": {arm: [32, 64] for arm in _NETWORKS},
    "tree_lr": {arm: [0.03, 0.1] for arm in _TREES},
    "leaves": {arm: [15, 31] for arm in _TREES},
}
ARMS_NOTES = (
    "`single_table` is LightGBM on the entity's own columns, the rows that its keys name and the seed time; "
    "`auto_aggregates` adds counts, means, last values and shares of missing values over every table that points at "
    "the entity, up to the seed time. `rdl_0hop` sees the entity's row alone and, as the row is static, no time at "
    "all: it shows what the network does without links. Each arm chooses among four settings by validation, LightGBM "
    "with early stopping, the network at its best epoch."
)


@PAPER.claim(
    "Learning over linked tables tells classes that a learner on the entity's table alone cannot tell",
    arms=("single_table", "rdl_2hop", "rdl_0hop", "auto_aggregates"),
    expect=[
        higher("rdl_2hop", than="single_table", metric="auroc"),
        shown(
            "rdl_0hop",
            "auto_aggregates",
            higher("rdl_2hop", than="auto_aggregates", metric="auroc"),
            higher("rdl_2hop", than="rdl_0hop", metric="auroc"),
        ),
    ],
    setup=SETUPS,
    data=DATABASES,
    tune=GRID,
    tune_by="val_auroc",
    seeds=SEEDS,
    worst={"auroc": 0.5},
    reported=(
        "RelBench, test AUROC, LightGBM on the entity table against RDL: driver-top3 73.92, 75.54; driver-dnf 68.56, "
        "72.62; user-engagement of rel-stack 63.39, 90.59; user-churn of rel-amazon 52.22, 70.42"
    ),
    notes=(
        f"Tasks: driver-top3 of Formula 1, churn of the shops, user-engagement of rel-stack, user-churn "
        f"of rel-amazon. {ARMS_NOTES} On Formula 1 "
        "`dnf_auroc` is the same arm, with the same settings, on driver-dnf, shown without a verdict: the share of "
        "retirements fell from two thirds to a third over the decades, so that training and test differ."
    ),
)
def multi_table(trial: Trial, data: RelationalDatabase) -> dict[str, float]:
    found = compare(trial, data, "classification")
    if TASKS[data.name]["second"] is not None and not trial.tuning:
        found |= {f"dnf_{name}": value for name, value in compare(trial, data, "second").items() if name == "auroc"}
    return found


@PAPER.claim(
    "Learning over linked tables predicts values better than a learner on the entity's table alone",
    arms=("single_table", "rdl_2hop", "rdl_0hop", "auto_aggregates"),
    expect=[
        lower("rdl_2hop", than="single_table", metric="mae"),
        shown(
            "rdl_0hop",
            "auto_aggregates",
            lower("rdl_2hop", than="auto_aggregates", metric="mae"),
            lower("rdl_2hop", than="rdl_0hop", metric="mae"),
        ),
    ],
    setup=SETUPS,
    data=DATABASES,
    tune=GRID,
    tune_by="val_mae",
    tune_goal="min",
    seeds=SEEDS,
    reported=(
        "RelBench, test MAE, LightGBM on the entity table against RDL: driver-position 4.170, 4.022; user-ltv of "
        "rel-amazon 16.783, 14.313; with a data scientist's features LightGBM has 3.963 and 13.93"
    ),
    notes=(
        "Tasks: driver-position of Formula 1, spending in the shops, post-votes of rel-stack, user-ltv of "
        "rel-amazon; the loss is L1, and "
        f"predictions are clamped to the 2nd and 98th percentiles of the training targets. {ARMS_NOTES}"
    ),
)
def multi_table_regression(trial: Trial, data: RelationalDatabase) -> dict[str, float]:
    return compare(trial, data, "regression")


@PAPER.claim(
    "Temporal sampling is what makes offline scores true",
    arms=("temporal", "leaky"),
    expect=[
        identity("temporal", metric="optimism", tolerance=0.0),
        higher("leaky", than="temporal", metric="optimism", margin=0.02),
        shown(higher("temporal", than="leaky", metric="true_auroc")),
    ],
    setup=SETUPS,
    data={name: source for name, source in DATABASES.items() if not name.startswith("rel-")},
    seeds=SEEDS,
    worst={"optimism": 0.0},
    notes=(
        "Optimism is the test AUROC that an arm reports of itself, less that of the same weights, asked in the same "
        "way, over databases from which the rows after each cut-off are physically absent, at 40 cut-offs spread over "
        "the test, as many as the benchmark scores. `leaky` takes the end of the label's window for the time of the "
        "seed, in training and in use: the mistake that people make. Whether training with the leak harms the true "
        "score as well is shown and not promised."
    ),
)
def no_leak(trial: Trial, data: RelationalDatabase) -> dict[str, float]:
    bench = Bench(trial, data, "classification")
    ahead = bench.task.delta if trial.arm == "leaky" else 0
    model, fit = bench.network(2, channels=32, lr=5e-3, ahead=ahead)
    moments = np.unique(bench.test[1])
    most = trial.setup.cutoffs
    if most is not None and len(moments) > most:
        moments = moments[np.linspace(0, len(moments) - 1, most).astype(int)]
        bench.test = tuple(part[np.isin(bench.test[1], moments)] for part in bench.test)
    reported, true = np.empty(len(bench.test[0])), np.empty(len(bench.test[0]))
    # Cut-off by cut-off for both, so that even the sums of floating-point numbers are the same.
    for cutoff in moments:
        rows = np.flatnonzero(bench.test[1] == cutoff)
        seeds = _later(tuple(part[rows] for part in bench.test), ahead)
        reported[rows] = bench.predict(model, fit, seeds, 2)
        true[rows] = bench.predict(model, fit, seeds, 2, bench.graph.upto(int(cutoff)))
    scores = [task_metrics("binary", bench.test[2], one)["auroc"] for one in (reported, true)]
    for name, prediction in (("reported", reported), ("true", true)):
        bench.log_years(prediction, f"{name}_auroc_by_year")
    return {
        "reported_auroc": scores[0], "true_auroc": scores[1], "optimism": scores[0] - scores[1],
        "moved": float(np.abs(reported - true).max()), "val_auroc": fit.val_score,
    }  # fmt: skip


@PAPER.claim(
    "What helps stands one link away from the entity: a network of one hop beats one that sees the entity alone",
    arms=("hops@0", "hops@1", "hops@2"),
    expect=[
        higher("hops@1", than="hops@0", metric="auroc"),
        shown(
            "hops@2",
            equivalent("hops@2", to="hops@1", metric="auroc", margin=0.01, control="hops@0"),
            higher("hops@2", than="hops@1", metric="auroc"),
        ),
    ],
    setup=SETUPS,
    data=DATABASES,
    seeds=SEEDS,
    worst={"auroc": 0.5},
    notes=(
        "The same settings at every depth: 32 channels, learning rate 0.005. What the second hop adds depends on the "
        "question: in Formula 1 a driver's own results say nearly all; in the shops the quality of what was bought "
        "stands in the products, two links away."
    ),
)
def hops(trial: Trial, data: RelationalDatabase) -> dict[str, float]:
    bench = Bench(trial, data, "classification")
    depth = int(trial.arm.removeprefix("hops@"))
    model, fit = bench.network(depth, channels=32, lr=5e-3)
    predictions = {part: bench.predict(model, fit, getattr(bench, part), depth) for part in ("val", "test")}
    with torch.no_grad():
        batch = bench.sampler(depth).sample(bench.test[0][:512], bench.test[1][:512])
    return bench.scored(predictions) | {"nodes_per_seed": batch.num_nodes / len(batch)}
