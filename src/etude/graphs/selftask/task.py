"""What every pretext task is: targets made once from the graph, a corruption of the encoder's input, a loss.

Jin et al., "Self-supervised Learning on Graphs: Deep Insights and New Direction", arXiv:2006.10141, sections 3 and 4.
"""

import copy
import dataclasses
import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["PretextTask", "replaced"]


def replaced(data: Any, **changes: Any) -> Any:
    """A graph with other tensors, of the same kind: a dataclass such as `GraphData`, or PyG's `Data`."""
    if dataclasses.is_dataclass(data) and not isinstance(data, type):
        return dataclasses.replace(data, **changes)
    changed = copy.copy(data)
    for name, value in changes.items():
        setattr(changed, name, value)
    return changed


def linear(in_dim: int, out_dim: int, generator: torch.Generator | None) -> nn.Linear:
    """A linear layer with torch's usual initialisation, drawn from `generator`."""
    layer = nn.utils.skip_init(nn.Linear, in_dim, out_dim)
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
    nn.init.uniform_(layer.bias, -1 / math.sqrt(in_dim), 1 / math.sqrt(in_dim), generator=generator)
    return layer


class PretextTask(nn.Module, ABC):
    """A task on the hidden layer of an encoder whose targets come from the graph.

        task = PairwiseDistance(hidden_dim=128)
        task.prepare(data, train_idx, generator)
        inputs = task.corrupt(data)                                        # what the encoder sees
        logits, hidden = encoder(inputs.x, inputs.edge_index)
        loss = cross_entropy(...) + weight * task.loss(hidden, epoch=0, generator=generator)

    `prepare` makes the targets, kept as buffers, and the head, a linear layer. `state_dict` holds both, and a task that
    was never prepared takes them over from it: targets are made once and serve every later run on the same graph and
    training nodes. A subclass defines `build` and `pretext_loss`, and `corrupt` if it changes the input.

    Args:
        hidden_dim: width of the embeddings.

    Attributes:
        reads: the embeddings that belong into `loss`: "dropped", after the encoder's dropout, or "hidden", before it.
        head: the linear layer; None before `prepare`.
    """

    reads: ClassVar[Literal["dropped", "hidden"]] = "dropped"
    graph_size: Tensor

    def __init__(self, hidden_dim: int = 128):
        super().__init__()
        if hidden_dim < 1:
            raise ValueError(f"hidden_dim must be at least 1, got {hidden_dim}")
        self.hidden_dim = hidden_dim
        self.head: nn.Linear | None = None

    def prepare(self, data: Any, train_idx: Tensor, generator: torch.Generator | None = None) -> "PretextTask":
        """Makes targets and head anew and returns the task.

        Args:
            data: a graph with `x` (dense or sparse CSR), `edge_index`, both directions of every edge, and `y`.
            train_idx: int64 numbers of the labelled nodes, or a bool mask; labels of other nodes are never read.
            generator: on the CPU, of all draws; torch's default if None.

        Raises:
            ValueError: if the graph is directed or malformed, or a task on labels finds a class without one.
        """
        if train_idx.dtype == torch.bool:
            train_idx = torch.nonzero(train_idx).squeeze(1)
        for name in list(self._buffers):
            delattr(self, name)
        self.forget()
        self.keep(graph_size=torch.tensor(data.x.shape[0]))
        out_dim = self.build(data, train_idx.cpu(), generator or torch.default_generator)
        self.head = linear(self.hidden_dim, out_dim, generator)
        self.to(data.x.device)
        return self

    def corrupt(self, data: Any, *, generator: torch.Generator | None = None) -> Any:
        """The graph that the encoder sees in training; the graph itself for most tasks. Evaluation never uses it."""
        return data

    def loss(
        self, embeddings: Float[Tensor, "nodes dim"], *, epoch: int = 0, generator: torch.Generator | None = None
    ) -> Float[Tensor, ""]:
        """L_self of the embeddings of all nodes.

        Args:
            embeddings: see `reads`.
            epoch: counts the updates from 0.
            generator: on the CPU, of the task's draws; torch's default if None.

        Raises:
            RuntimeError: before `prepare`.
            ValueError: if the embeddings have another shape than (nodes of the graph, `hidden_dim`).
        """
        if self.head is None:
            raise RuntimeError(f"{type(self).__name__}: prepare the task before its loss")
        if embeddings.shape != (int(self.graph_size), self.hidden_dim):
            raise ValueError(
                f"{type(self).__name__} expects embeddings of shape ({int(self.graph_size)}, {self.hidden_dim}), "
                f"got {tuple(embeddings.shape)}"
            )
        return self.pretext_loss(embeddings, epoch, generator or torch.default_generator)

    @abstractmethod
    def build(self, data: Any, train_idx: Tensor, generator: torch.Generator) -> int:
        """Makes the targets, keeps them with `keep`, and returns the width of the head."""

    @abstractmethod
    def pretext_loss(self, embeddings: Tensor, epoch: int, generator: torch.Generator) -> Tensor:
        """The loss; shapes have been checked."""

    def output(self, embeddings: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows out"]:
        """The head's output."""
        assert self.head is not None
        return self.head(embeddings)

    def forget(self) -> None:
        """Drops what was derived from the buffers; called whenever they change."""

    def keep(self, **tensors: Tensor) -> None:
        """Keeps tensors as buffers: they move with the task and are in its `state_dict`."""
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self.forget()
        for key, value in state_dict.items():
            name = key.removeprefix(prefix)
            if not key.startswith(prefix) or not isinstance(value, Tensor):
                continue
            if name == "head.weight":
                self.head = nn.Linear(value.shape[1], value.shape[0], device=value.device)
            elif "." not in name and name not in self._parameters:
                self.register_buffer(name, torch.empty_like(value))
        super()._load_from_state_dict(state_dict, prefix, *args)


def unlabelled(num_nodes: int, train_idx: Tensor) -> Tensor:
    """The nodes that are not among `train_idx`, in order."""
    free = torch.ones(num_nodes, dtype=torch.bool)
    free[train_idx] = False
    if not bool(free.any()):
        raise ValueError(f"all {num_nodes} nodes are labelled, a pretext task learns from the others")
    return torch.nonzero(free).squeeze(1)
