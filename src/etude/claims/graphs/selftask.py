"""Claims of "Self-supervised Learning on Graphs: Deep Insights and New Direction"."""

from collections.abc import Callable
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch

from etude.data import graphs, home
from etude.data.kinds import GraphData
from etude.graphs.selftask import (
    AttributeMask,
    ContextLabel,
    CorrectedLabel,
    Distance2Cluster,
    Distance2Labeled,
    EdgeMask,
    EnsembleLabel,
    GCNEncoder,
    NodeProperty,
    PairwiseAttributeSimilarity,
    PairwiseDistance,
    PretextTask,
    SelfTaskFit,
    citation_like,
    fit_joint,
    fit_two_stage,
    normalize_features,
)
from etude.graphs.selftask import accuracy as accuracy_on
from etude.lab import Paper, Setup, Source, Trial, higher, interaction, shown
from etude.loop import seeded

__all__ = ["PAPER"]

PAPER = Paper(
    slug="selftask",
    domain="graphs",
    title="Self-supervised Learning on Graphs: Deep Insights and New Direction",
    authors="Jin, Derr, Liu, Wang, Wang, Liu & Tang",
    year=2020,
    arxiv="2006.10141",
    summary=(
        "Pretext tasks read off the graph, and off its few labels, as an extra loss that helps a graph network with "
        "few labels."
    ),
    methods=(
        "etude.graphs.selftask.task",
        "etude.graphs.selftask.node_tasks",
        "etude.graphs.selftask.pair_tasks",
        "etude.graphs.selftask.label_tasks",
        "etude.graphs.selftask.pseudo_labels",
        "etude.graphs.selftask.prototypes",
        "etude.graphs.selftask.structure",
        "etude.graphs.selftask.pairs",
        "etude.graphs.selftask.partition",
        "etude.graphs.selftask.encoders",
        "etude.graphs.selftask.training",
        "etude.graphs.selftask.estimator",
        "etude.graphs.selftask.citation_like",
    ),
    usage="""\
from torch_geometric.nn import GAT
from etude.graphs.selftask import Distance2Labeled, GCNEncoder, TappedEncoder, citation_like, fit_joint
data = citation_like()
fit_joint(GCNEncoder(data.num_features, data.num_classes), {Distance2Labeled(): 100.0}, data, epochs=5)
encoder = TappedEncoder(GAT(data.num_features, 128, 2, data.num_classes, dropout=0.5), "dropout")
""",
    notes=(
        "The choice of a split moves the accuracy by several points, at 5 labels a class by up to nine, and every gain "
        "here is of a point or two: arms are paired by split. Losses of squared error are tiny (rows of a bag of words "
        "scaled to sum 1 give 1e-4), which is why published weights reach 100. As in the paper, 500 validation labels "
        "choose epoch and weight where 35 to 140 train. Parts are found by METIS where `pymetis` is installed, else "
        "grown (the metric `metis` says which). The paper's figures quoted here are from memory, to 0.3."
    ),
    code="https://github.com/ChandlerBang/SelfTask-GNN",
    extra="graphs",
)

MAKE: dict[str, Callable[[Setup, dict[str, Any]], PretextTask]] = {
    "node_property": lambda setup, graph: NodeProperty(hidden_dim=setup.hidden),
    "edge_mask": lambda setup, graph: EdgeMask(hidden_dim=setup.hidden),
    "attribute_mask": lambda setup, graph: AttributeMask(hidden_dim=setup.hidden),
    "pairwise_distance": lambda setup, graph: PairwiseDistance(setup.pairs, hidden_dim=setup.hidden),
    "distance2cluster": lambda setup, graph: Distance2Cluster(graph["clusters"], hidden_dim=setup.hidden),
    "attribute_similarity": lambda setup, graph: PairwiseAttributeSimilarity(hidden_dim=setup.hidden),
    "distance2labeled": lambda setup, graph: Distance2Labeled(hidden_dim=setup.hidden),
    "distance2labeled_3": lambda setup, graph: Distance2Labeled(("mean", "max", "min"), hidden_dim=setup.hidden),
    "context_label": lambda setup, graph: ContextLabel("lp", hidden_dim=setup.hidden),
    "context_label_ica": lambda setup, graph: ContextLabel("ica", hidden_dim=setup.hidden),
    "ensemble_label": lambda setup, graph: EnsembleLabel(hidden_dim=setup.hidden),
    "corrected_label": lambda setup, graph: CorrectedLabel(
        "lp", alpha=graph["alpha"], num_samples=graph["samples"], hidden_dim=setup.hidden
    ),
}

PUBLISHED: dict[str, dict[str, Any]] = {
    "cora": {
        "node_property": 5, "edge_mask": 10, "attribute_mask": 100, "pairwise_distance": 20, "distance2cluster": 100,
        "attribute_similarity": 100, "clusters": 10, "alpha": 1.5, "samples": 1000,
    },
    "citeseer": {
        "node_property": 0.1, "edge_mask": 5, "attribute_mask": 5, "pairwise_distance": 5, "distance2cluster": 10,
        "attribute_similarity": 5, "clusters": 10, "alpha": 0.8, "samples": 3000,
    },
    "pubmed": {
        "node_property": 0.1, "edge_mask": 5, "attribute_mask": 50, "pairwise_distance": 5, "distance2cluster": 2000,
        "attribute_similarity": 0.01, "clusters": 30, "alpha": 1.0, "samples": 10_000,
    },
}  # fmt: skip
"""The weights and sizes of the authors' configuration; other graphs take those of Cora."""

GLOBAL = ("pairwise_distance", "distance2cluster")
LOCAL = ("node_property", "edge_mask", "attribute_mask")


def cora() -> GraphData:
    return graphs.planetoid("cora")


def citeseer() -> GraphData:
    return graphs.planetoid("citeseer")


def generated() -> GraphData:
    return citation_like(1700, num_words=500, words_per_node=15, topicality=0.17)


def tiny() -> GraphData:
    return citation_like(400, num_words=100, topics_per_class=2, num_val=100, num_test=100)


def _pyg_datasets() -> Any:
    try:
        from torch_geometric import datasets
    except ImportError as error:
        raise ImportError('this graph is loaded by PyG: pip install "etude[graphs]"') from error
    return datasets


def pubmed() -> GraphData:
    return GraphData.from_pyg(_pyg_datasets().Planetoid(str(home() / "pyg"), "PubMed")[0], name="pubmed")


def reddit() -> GraphData:
    """The subgraph of 20,000 nodes of Reddit, always the same, drawn at random."""
    from torch_geometric.utils import to_undirected

    whole = _pyg_datasets().Reddit(str(home() / "pyg" / "Reddit"))[0]
    chosen = torch.randperm(whole.num_nodes, generator=torch.Generator().manual_seed(0))[:20_000].sort().values
    part = whole.subgraph(chosen)
    part.edge_index = to_undirected(part.edge_index, num_nodes=len(chosen))
    return GraphData.from_pyg(part, name="reddit")


GRAPHS = {
    "cora": Source(cora, scales=("small", "medium", "full")),
    "tiny": Source(tiny, scales=("smoke",)),
    "generated": Source(generated, scales=("small", "medium")),
    "citeseer": Source(citeseer, scales=("medium", "full")),
    "pubmed": Source(pubmed, scales=("full",)),
    "reddit": Source(reddit, scales=("full",)),
}
PAPER_SETUP = Setup(labels=20, num_val=500, num_test=1000, hidden=128, epochs=200, pairs=4000)
SETUPS = {
    "smoke": PAPER_SETUP.replace(labels=5, num_val=100, num_test=100, hidden=16, epochs=2, pairs=100),
    "small": PAPER_SETUP.replace(pairs=1000),
    "medium": PAPER_SETUP,
    "full": PAPER_SETUP,
}
FEW_LABELS = {scale: setup.replace(labels=5) for scale, setup in SETUPS.items()}


def _split(data: GraphData, per_class: int, num_val: int, num_test: int, generator: torch.Generator) -> GraphData:
    """Training nodes of each class, then validation and test nodes of any; nodes without edge and attribute stay out.

    Larger draws contain smaller ones of the same seed.
    """
    words = data.x.crow_indices().diff() if data.x.layout == torch.sparse_csr else (data.x != 0).sum(dim=1)
    known = words > 0
    known[data.edge_index[0]] = True
    order = torch.randperm(data.num_nodes, generator=generator)
    order = order[known[order]]
    masks = torch.zeros(3, data.num_nodes, dtype=torch.bool)
    for label in range(data.num_classes):
        masks[0][order[data.y[order] == label][:per_class]] = True
    rest = order[~masks[0][order]]
    if len(rest) < num_val + num_test:  # a user's own graph may be smaller
        num_val, num_test = len(rest) // 3, len(rest) - len(rest) // 3
    masks[1][rest[:num_val]] = True
    masks[2][rest[num_val : num_val + num_test]] = True
    return replace(data, train_mask=masks[0], val_mask=masks[1], test_mask=masks[2])


class Workbench:
    """One graph made ready for a trial: its split drawn, features scaled, everything on the device."""

    def __init__(self, trial: Trial, data: GraphData, *, labels: int | None = None):
        setup = trial.setup
        data = _split(data, labels or setup.labels, setup.num_val, setup.num_test, trial.generator("data"))
        values = data.x.values() if data.x.layout == torch.sparse_csr else data.x
        x = normalize_features(data.x) if bool((values >= 0).all()) else data.x
        parts = ("edge_index", "y", "train_mask", "val_mask", "test_mask")
        moved = {part: getattr(data, part).to(trial.device) for part in parts}
        self.trial, self.data = trial, replace(data, x=x.to(trial.device), **moved)
        self.published = PUBLISHED.get(data.name, PUBLISHED["cora"])

    def run(
        self, name: str | None, weight: float = 0.0, *, two_stage: bool = False, epochs: int | None = None
    ) -> dict[str, float]:
        """Trains with the named task, or without; every call from the same initial weights and dropout."""
        trial, setup = self.trial, self.trial.setup
        with seeded(trial.stream_seed("init")):
            encoder = GCNEncoder(self.data.num_features, self.data.num_classes, hidden_dim=setup.hidden)
        encoder.to(trial.device)
        tasks = {} if name is None else {MAKE[name](setup, self.published): weight}
        epochs = epochs or setup.epochs
        suffix = "" if name is None else f"_{name}"

        def watch(epoch: int, total: int, **metrics: float) -> None:
            if epoch % max(total // 20, 1) == 0 and not trial.tuning:
                trial.log(epoch, **{f"{key}{suffix}": value for key, value in metrics.items()})
                trial.progress(epoch, total, **metrics)

        generator = torch.Generator().manual_seed(trial.stream_seed("method"))
        with seeded(trial.stream_seed("dropout")):
            train: Any = fit_two_stage if two_stage else fit_joint
            extra = {"pretrain_epochs": setup.epochs} if two_stage else {}
            result = train(
                encoder, tasks, self.data, epochs=epochs, generator=generator, callback=watch, **extra
            )  # fmt: skip
        return self.metrics(encoder, result) | self._of_task(next(iter(tasks), None))

    @torch.no_grad()
    def metrics(self, encoder: GCNEncoder, result: SelfTaskFit) -> dict[str, float]:
        values = {
            "val_accuracy": result.val_accuracy,
            "val_loss": result.val_loss,
            "train_loss": result.train_loss,
            "best_epoch": float(result.best_epoch),
        }
        if result.self_losses:
            values["self_loss"] = result.self_losses[0]
        if not self.trial.tuning:
            logits = encoder(self.data.x, self.data.edge_index).logits
            values["accuracy"] = accuracy_on(logits, self.data.y, self.data.test_mask)
        return values

    def _of_task(self, task: PretextTask | None) -> dict[str, float]:
        if isinstance(task, Distance2Cluster):
            return {"metis": float(task.partition_method == "metis")}
        if isinstance(task, ContextLabel) and not self.trial.tuning:
            right = task.labels == self.data.y
            return {"pseudo_label_accuracy": right[self.data.test_mask].double().mean().item()}
        return {}


SPLIT_NOTES = (
    "Each seed draws its own training, validation and test nodes, and all arms of a seed share them, the initial "
    "weights and the dropout. Training sets of 1 to 5 % of the nodes hardly overlap, so no correction for resampling "
    "applies; conclusions are about these graphs. Test accuracy is that of the epoch with the best validation "
    "accuracy, for the plain GCN as well."
)


@PAPER.claim(
    "Pretext tasks that use the labels (Distance2Labeled, ContextLabel, CorrectedLabel) beat plain GCN at 5 labels a "
    "class",
    arms=(
        "gcn", "distance2labeled", "context_label", "corrected_label", "attribute_mask", "pairwise_distance",
    ),
    expect=[
        higher("distance2labeled", than="gcn", metric="accuracy"),
        higher("context_label", than="gcn", metric="accuracy"),
        higher("corrected_label", than="gcn", metric="accuracy"),
        shown(
            higher("attribute_mask", than="gcn", metric="accuracy"),
            higher("pairwise_distance", than="gcn", metric="accuracy"),
            higher("corrected_label", than="context_label", metric="accuracy"),
            higher("distance2labeled", than="attribute_mask", metric="accuracy"),
        ),
    ],
    setup=FEW_LABELS,
    data=GRAPHS,
    tune={
        "lam": {
            arm: [1.0, 10.0, 100.0]
            for arm in ("distance2labeled", "context_label", "corrected_label", "attribute_mask", "pairwise_distance")
        }
    },
    tune_by="val_accuracy",
    tune_seeds=2,
    seeds={"smoke": 1, "small": range(10, 18), "medium": 40, "full": 40},
    version=2,
    worst={"accuracy": 0.0},
    timeout=3600.0,
    reported=(
        "test accuracy in %, 20 labels a class, GCN / Distance2Labeled / ContextLabel / CorrectedLabel: Cora 81.3 / "
        "83.4 / 82.8 / 83 to 84; CiteSeer 71.5, SelfTask up to 73.0; PubMed 79.3, up to 80.6; with 5 or 10 labels a "
        "class the gain on Cora is of several points"
    ),
    notes=SPLIT_NOTES + (
        " The weight of every task is searched on one grid by the mean validation accuracy over two tuning seeds "
        "(three in version 1, which took more than its eight minutes). "
        "`attribute_mask` and `pairwise_distance` are controls: tasks without labels, local and global. "
        "`pseudo_label_accuracy` is that of label propagation itself on the test nodes: with 5 labels a class it is "
        "well below the GCN's, so that contexts teach wrong labels too. `small` draws a quarter of the published "
        "pairs of nodes a step. It sees effects of about 1.2 standard deviations of the paired differences, which at 5 "
        "labels a class are a point and a half and more; `medium` has 40 seeds for effects of half a point."
    ),
)  # fmt: skip
def labels(trial: Trial, data: GraphData) -> dict[str, float]:
    bench = Workbench(trial, data)
    return bench.run(None if trial.arm == "gcn" else trial.arm, trial.tuned.lam or 0.0)


@PAPER.claim(
    "The gain of the tasks that use the labels is larger at 5 labels a class than at 20",
    arms=tuple(
        f"{name}@{count}"
        for name in ("gcn", "distance2labeled", "distance2labeled_3", "context_label", "context_label_ica",
                     "ensemble_label", "corrected_label")
        for count in (5, 10, 20)
    ),
    expect=[
        *(
            interaction((f"{name}@5", "gcn@5"), minus=(f"{name}@20", "gcn@20"), metric="accuracy")
            for name in ("distance2labeled", "context_label", "corrected_label")
        ),
        shown(
            *(
                higher(f"{name}@{count}", than=f"gcn@{count}", metric="accuracy")
                for name in ("distance2labeled", "distance2labeled_3", "context_label", "context_label_ica",
                             "ensemble_label", "corrected_label")
                for count in (5, 10, 20)
            )
        ),
    ],
    setup={scale: SETUPS[scale] for scale in ("smoke", "medium", "full")},
    data=GRAPHS,
    tune={
        "lam": {
            f"{name}@5": [1.0, 10.0, 100.0]
            for name in ("distance2labeled", "distance2labeled_3", "context_label", "context_label_ica",
                         "ensemble_label", "corrected_label")
        }
    },
    tune_by="val_accuracy",
    tune_seeds=3,
    tuned_like={
        f"{name}@{count}": f"{name}@5"
        for name in ("distance2labeled", "distance2labeled_3", "context_label", "context_label_ica", "ensemble_label",
                     "corrected_label")
        for count in (10, 20)
    },
    seeds={"smoke": 1, "medium": range(40, 60), "full": range(40, 80)},
    worst={"accuracy": 0.0},
    timeout=3600.0,
    reported="as for `labels`: Cora, 5 and 10 labels a class, gains of several points against one or two at 20",
    notes=SPLIT_NOTES + (
        " The larger training sets of a seed contain the smaller ones. The weight chosen at 5 labels serves at 10 and "
        "20. `distance2labeled_3` has mean, maximum and minimum of the inverse distances, as the paper describes. "
        "A difference of two gains scatters as much as both: a point is seen with 20 seeds and more, "
        "which is why there is no `small`."
    ),
)  # fmt: skip
def few_labels(trial: Trial, data: GraphData) -> dict[str, float]:
    name, count = trial.arm.split("@")
    bench = Workbench(trial, data, labels=int(count))
    return bench.run(None if name == "gcn" else name, trial.tuned.lam or 0.0)


@PAPER.claim(
    "Global structure (PairwiseDistance, Distance2Cluster) helps more than local (NodeProperty, EdgeMask, "
    "AttributeMask)",
    arms=("gcn", "global", "local", "attribute_similarity"),
    expect=[
        higher("global", than="local", metric="accuracy"),
        shown(
            higher("global", than="gcn", metric="accuracy"),
            higher("local", than="gcn", metric="accuracy"),
            higher("attribute_similarity", than="gcn", metric="accuracy"),
        ),
    ],
    setup=SETUPS,
    data=GRAPHS,
    seeds={"smoke": 1, "small": 8, "medium": 30, "full": 30},
    worst={"accuracy": 0.0},
    timeout=3600.0,
    reported=(
        "test accuracy in %, Cora, joint training: GCN 81.3; Distance2Cluster 83.5, PairwiseDistance and "
        "PairwiseAttrSim 83.1; AttributeMask, NodeProperty and EdgeMask 81.5 to 82; CiteSeer and PubMed show little "
        "of either"
    ),
    notes=SPLIT_NOTES + (
        " The contrast of group means: a trial of `global` or `local` trains once with each task of the group and "
        "returns the mean, and the accuracy of each as `accuracy_TASK`. 20 labels a class. Each task has the weight of "
        "the authors' configuration for the graph (Cora's on the generated one), which they searched for each; none is "
        "tuned here. `small` draws 1,000 pairs a class and step instead of 4,000. The published difference is a point "
        "and a half on Cora, about as much as 8 seeds can see; `medium` has 30, for differences of half a point, and "
        "CiteSeer, where the paper sees little."
    ),
)  # fmt: skip
def global_local(trial: Trial, data: GraphData) -> dict[str, float]:
    bench = Workbench(trial, data)
    if trial.arm == "gcn":
        return bench.run(None)
    group = {"global": GLOBAL, "local": LOCAL}.get(trial.arm, (trial.arm,))
    found = {name: bench.run(name, float(bench.published[name])) for name in group}
    values = {key: fmean(run[key] for run in found.values()) for key in ("accuracy", "val_accuracy", "val_loss")}
    values |= {f"accuracy_{name}": run["accuracy"] for name, run in found.items()}
    values |= {f"self_loss_{name}": run["self_loss"] for name, run in found.items()}
    return values | ({"metis": found["distance2cluster"]["metis"]} if trial.arm == "global" else {})


@PAPER.claim(
    "Joint training beats two-stage training, for PairwiseDistance and for AttributeMask",
    arms=(
        "gcn", "gcn_400", "pairwise_distance_joint", "pairwise_distance_two_stage", "attribute_mask_joint",
        "attribute_mask_two_stage",
    ),
    expect=[
        higher("pairwise_distance_joint", than="pairwise_distance_two_stage", metric="accuracy"),
        higher("attribute_mask_joint", than="attribute_mask_two_stage", metric="accuracy"),
        shown(
            "gcn_400",
            higher("pairwise_distance_joint", than="gcn", metric="accuracy"),
            higher("attribute_mask_joint", than="gcn", metric="accuracy"),
            higher("pairwise_distance_two_stage", than="gcn", metric="accuracy"),
            higher("attribute_mask_two_stage", than="gcn", metric="accuracy"),
        ),
    ],
    setup=SETUPS,
    data=GRAPHS,
    seeds={"smoke": 1, "small": 6, "medium": 30, "full": 30},
    worst={"accuracy": 0.0},
    timeout=3600.0,
    reported="joint training beats two-stage in most cases; two-stage is near or below the plain GCN (section 3)",
    notes=SPLIT_NOTES + (
        " 20 labels a class. The joint weights are those of the authors' configuration for the graph; in two stages "
        "the pretext loss stands alone, and its weight matters next to weight decay only. A two-stage arm has twice "
        "the updates, 200 and 200; `gcn_400` shows what those alone do for the plain GCN. 6 seeds see a difference of "
        "a point and a half; `medium` has 30, for one of half a point."
    ),
)  # fmt: skip
def joint(trial: Trial, data: GraphData) -> dict[str, float]:
    bench = Workbench(trial, data)
    if trial.arm.startswith("gcn"):
        return bench.run(None, epochs=2 * trial.setup.epochs if trial.arm == "gcn_400" else None)
    name = trial.arm.removesuffix("_joint").removesuffix("_two_stage")
    return bench.run(name, float(bench.published[name]), two_stage=trial.arm.endswith("_two_stage"))
