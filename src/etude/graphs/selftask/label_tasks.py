"""SelfTask: pretext tasks that know the few labels there are.

Jin et al., "Self-supervised Learning on Graphs: Deep Insights and New Direction", arXiv:2006.10141, section 4.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from etude.graphs.selftask.node_tasks import inverse_distance
from etude.graphs.selftask.prototypes import class_prototypes, nearest_prototype
from etude.graphs.selftask.pseudo_labels import (
    LabelSource,
    ensemble,
    harmonic_labels,
    iterative_labels,
    training_labels,
)
from etude.graphs.selftask.structure import adjacency, hop_distances, neighbourhood
from etude.graphs.selftask.task import PretextTask, unlabelled

__all__ = ["ContextLabel", "CorrectedLabel", "Distance2Labeled", "EnsembleLabel", "label_context"]

_SOURCES: dict[str, LabelSource] = {"lp": harmonic_labels, "ica": iterative_labels}


class Distance2Labeled(PretextTask):
    """Regresses, for each unlabelled node, 1 / distance to the labelled nodes of each class.

    Args:
        stats: of the inverse distances to the nodes of a class (0 without a path): the mean, as the authors' code has
            it, or ("mean", "max", "min") of the paper.
        hidden_dim: width of the embeddings.

    Raises:
        ValueError: if `stats` is empty or holds another name; when prepared, if a class has no labelled node.
    """

    nodes: Tensor
    target_values: Tensor

    def __init__(self, stats: Sequence[str] = ("mean",), *, hidden_dim: int = 128):
        super().__init__(hidden_dim)
        unknown = [name for name in stats if name not in ("mean", "max", "min")]
        if unknown or not stats:
            raise ValueError(f'stats must be some of "mean", "max" and "min", got {tuple(stats)}')
        self.stats = tuple(stats)

    def build(self, data: Any, train_idx: Tensor, generator: torch.Generator) -> int:
        idx, labels, classes = training_labels(data, train_idx)
        near = inverse_distance(hop_distances(adjacency(data), idx))
        columns = [getattr(near[:, labels == label], stat)(axis=1) for label in range(classes) for stat in self.stats]
        nodes = unlabelled(data.x.shape[0], train_idx)
        self.keep(nodes=nodes, target_values=torch.from_numpy(np.stack(columns, axis=1))[nodes])
        return classes * len(self.stats)

    def pretext_loss(self, embeddings: Tensor, epoch: int, generator: torch.Generator) -> Tensor:
        return F.mse_loss(self.output(embeddings[self.nodes]), self.target_values)


def label_context(
    row: Int64[Tensor, "pairs"], column: Int64[Tensor, "pairs"], labels: Int64[Tensor, "nodes"], num_classes: int
) -> Float[Tensor, "nodes classes"]:
    """The shares of the labels among the neighbours `column` of each node `row`; zeros for a node without any."""
    nodes = len(labels)
    # Counting the (node, label) pairs takes the place of a product of the neighbourhoods with one-hot labels.
    counts = torch.bincount(row * num_classes + labels[column], minlength=nodes * num_classes)
    counts = counts.view(nodes, num_classes).to(torch.float32)
    return counts / counts.sum(dim=1, keepdim=True).clamp(min=1)


class ContextLabel(PretextTask):
    """Tells the distribution of labels in the neighbourhood of each unlabelled node, pseudo labels included.

    The loss is the squared error of the softmax, on the embeddings before the encoder's dropout, with its own dropout.

    Args:
        source: of the labels of the unlabelled nodes: "lp" (label propagation), "ica" (iterative classification), or
            a function of the graph and the training nodes that gives scores (n, c) or labels (n,).
        hops: the neighbourhood holds the nodes within so many edges, the node itself left out.
        dropout: before the head.
        hidden_dim: width of the embeddings.

    Attributes:
        labels: (n,) the labels in use; those of the training nodes are the given ones.

    Raises:
        ValueError: if an argument is out of range; when prepared, if a class has no labelled node, or the source gives
            another shape or an unknown label.
    """

    reads: ClassVar[Literal["dropped", "hidden"]] = "hidden"
    nodes: Tensor
    target_values: Tensor
    labels: Tensor
    row: Tensor
    column: Tensor

    def __init__(
        self,
        source: str | LabelSource = "lp",
        *,
        hops: int = 2,
        dropout: float | int = 0.5,
        hidden_dim: int = 128,
    ):
        super().__init__(hidden_dim)
        if not callable(source) and source not in _SOURCES:
            raise ValueError(f'source must be "lp", "ica" or a function, got {source!r}')
        if hops < 1 or not 0 <= dropout < 1:
            raise ValueError(f"hops must be at least 1 and dropout in [0, 1), got {hops} and {dropout}")
        self.source: LabelSource = source if callable(source) else _SOURCES[source]
        self.hops, self.dropout = hops, dropout

    def build(self, data: Any, train_idx: Tensor, generator: torch.Generator) -> int:
        idx, known, classes = training_labels(data, train_idx)
        labels = self._asked(data, torch.from_numpy(idx), classes)
        labels[torch.from_numpy(idx)] = torch.from_numpy(known)
        near = neighbourhood(adjacency(data), self.hops).tocoo()
        row, column = (torch.from_numpy(part.astype(np.int64)) for part in (near.row, near.col))
        self.keep(
            nodes=unlabelled(data.x.shape[0], train_idx), labels=labels, row=row, column=column,
            target_values=label_context(row, column, labels, classes),
        )  # fmt: skip
        return classes

    def _asked(self, data: Any, train_idx: Tensor, classes: int) -> Tensor:
        answer = self.source(data, train_idx).detach().cpu()
        nodes = data.x.shape[0]
        if answer.ndim == 2 and answer.shape == (nodes, classes):
            return answer.argmax(dim=1)
        if answer.dtype != torch.int64 or answer.shape != (nodes,):
            raise ValueError(
                f"a source of labels gives scores ({nodes}, {classes}) or int64 labels ({nodes},), "
                f"got {answer.dtype} of shape {tuple(answer.shape)}"
            )
        if not 0 <= int(answer.min()) <= int(answer.max()) < classes:
            raise ValueError(f"labels must lie in 0..{classes - 1}, got {int(answer.min())}..{int(answer.max())}")
        return answer.clone()

    def pretext_loss(self, embeddings: Tensor, epoch: int, generator: torch.Generator) -> Tensor:
        predicted = self._predicted(embeddings, generator)
        return F.mse_loss(predicted[self.nodes], self.target_values[self.nodes])

    def _predicted(self, embeddings: Tensor, generator: torch.Generator) -> Tensor:
        if self.training and self.dropout:
            drawn = torch.rand(embeddings.shape, generator=generator).to(embeddings.device)
            kept = (drawn >= self.dropout).to(embeddings.dtype)
            embeddings = embeddings * kept.mul_(1 / (1 - self.dropout))
        return self.output(embeddings).softmax(dim=1)


class EnsembleLabel(ContextLabel):
    """`ContextLabel` with the labels that label propagation and iterative classification agree on: argmax of the sum.

    Args:
        sources: whose scores are summed.
        hops, dropout, hidden_dim: see `ContextLabel`.
    """

    def __init__(
        self,
        sources: Sequence[str | LabelSource] = ("lp", "ica"),
        *,
        hops: int = 2,
        dropout: float | int = 0.5,
        hidden_dim: int = 128,
    ):
        unknown = [source for source in sources if not callable(source) and source not in _SOURCES]
        if unknown or not sources:
            raise ValueError(f'sources must be some of "lp", "ica" and functions, got {tuple(sources)}')
        found = [source if callable(source) else _SOURCES[source] for source in sources]
        super().__init__(ensemble(*found), hops=hops, dropout=dropout, hidden_dim=hidden_dim)


class CorrectedLabel(ContextLabel):
    """`ContextLabel`, and beside it contexts whose labels the embeddings have corrected:

        L_self = L_context(labels) + alpha L_context(corrected labels)

    Again and again some unlabelled nodes are given the class whose prototypes they resemble most; the second term is
    over these nodes. Embeddings only choose labels: no gradient passes. Labelled nodes keep theirs.

    Args:
        source, hops, dropout, hidden_dim: see `ContextLabel`.
        alpha: weight of the second term, >= 0; the authors' notes have 1.5 for Cora, 0.8 for CiteSeer, 1 for PubMed.
        every: labels are corrected anew after so many losses.
        warm_up: the first epoch with corrected labels; the second term is left out before.
        num_samples: nodes relabelled at a time, or all the unlabelled; 1000 for Cora, 3000 for CiteSeer.
        num_prototypes, max_per_class, percentile, max_similarity: see `class_prototypes`.
    """

    corrected_values: Tensor
    sampled: Tensor

    def __init__(
        self,
        source: str | LabelSource = "lp",
        *,
        alpha: float | int = 1.0,
        every: int = 1,
        warm_up: int = 0,
        num_samples: int = 1000,
        num_prototypes: int = 8,
        max_per_class: int = 320,
        percentile: float | int = 40,
        max_similarity: float | None = 0.95,
        hops: int = 2,
        dropout: float | int = 0.5,
        hidden_dim: int = 128,
    ):
        super().__init__(source, hops=hops, dropout=dropout, hidden_dim=hidden_dim)
        if alpha < 0 or every < 1 or warm_up < 0 or num_samples < 1:
            raise ValueError(
                f"alpha and warm_up must be >= 0, every and num_samples >= 1, "
                f"got {alpha}, {warm_up}, {every} and {num_samples}"
            )
        self.alpha, self.every, self.warm_up, self.num_samples = alpha, every, warm_up, num_samples
        self.prototypes: dict[str, Any] = {
            "num_prototypes": num_prototypes, "max_per_class": max_per_class, "percentile": percentile,
            "max_similarity": max_similarity,
        }  # fmt: skip

    def build(self, data: Any, train_idx: Tensor, generator: torch.Generator) -> int:
        classes = super().build(data, train_idx, generator)
        self.keep(corrected_values=torch.zeros_like(self.target_values), sampled=self.nodes[:0])
        return classes

    def corrected_labels(
        self, embeddings: Float[Tensor, "nodes dim"], generator: torch.Generator | None = None
    ) -> tuple[Int64[Tensor, "nodes"], Int64[Tensor, "sampled"]]:
        """All labels, those of a new sample of the unlabelled nodes corrected, and that sample."""
        embeddings = embeddings.detach()
        prototypes = class_prototypes(
            embeddings, self.labels, num_classes=self.target_values.shape[1], generator=generator, **self.prototypes
        )
        order = torch.randperm(len(self.nodes), generator=generator)[: self.num_samples]
        sampled = self.nodes[order.to(self.nodes.device)]
        labels = self.labels.clone()
        labels[sampled] = nearest_prototype(embeddings, prototypes, sampled)
        return labels, sampled

    def pretext_loss(self, embeddings: Tensor, epoch: int, generator: torch.Generator) -> Tensor:
        predicted = self._predicted(embeddings, generator)
        loss = F.mse_loss(predicted[self.nodes], self.target_values[self.nodes])
        if epoch < self.warm_up:
            return loss
        if len(self.sampled) == 0 or (epoch - self.warm_up) % self.every == 0:
            labels, self.sampled = self.corrected_labels(embeddings, generator)
            self.corrected_values = label_context(self.row, self.column, labels, self.target_values.shape[1])
        return loss + self.alpha * F.mse_loss(predicted[self.sampled], self.corrected_values[self.sampled])
