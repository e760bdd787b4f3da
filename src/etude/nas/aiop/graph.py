"""The computation graph of a network: one node an operation, one edge a tensor that flows from one to the next.

Mills et al., "AIO-P: Expanding Neural Performance Predictors Beyond Image Classification", AAAI 2023, arXiv:2211.17228.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["VOCABULARY", "ComputeGraph", "GraphBatch", "count_multiply_adds", "count_parameters", "op_index"]

VOCABULARY = (
    "oov", "input", "output", "conv", "depthwise", "batchnorm", "relu", "relu6", "matmul", "add", "mul", "concat",
    "maxpool", "avgpool", "sigmoid", "tanh", "swish", "gelu", "paddings", "mean", "spacetobatchnd", "batchtospacend",
    "spacetodepthnd", "depthtospacend", "global", "identity", "zero",
    "reserved1", "reserved2", "reserved3", "reserved4", "reserved5",
)  # fmt: skip
"""The words of the authors' vocabulary; whatever is none of them is "oov", number 0."""
_INDEX = {word: index for index, word in enumerate(VOCABULARY)}
WEIGHTED = frozenset(_INDEX[word] for word in ("conv", "depthwise", "matmul"))


def op_index(name: str) -> int:
    """The number of an operation: of the longest word of the vocabulary that stands in `name`, or 0 if none does."""
    name = name.lower()
    found = [word for word in VOCABULARY[1:] if word in name]
    return _INDEX[max(found, key=len)] if found else 0


@dataclass(frozen=True, eq=False)
class ComputeGraph:
    """A network as its operations and the tensors that flow between them.

    Args:
        op: (n,) numbers into `VOCABULARY`.
        shape: (n, 6) H_in, H_out, W_in, W_out, C_in, C_out of each node, in pixels and channels.
        kernel: (n, 2) height and width of the kernel of a weighted node, 0 elsewhere.
        bias: (n, 2) (1, 0) for a weighted node without bias, (0, 1) for one with, (0, 0) elsewhere.
        weighted: (n,) which nodes have a weight matrix or kernel: conv, depthwise and matmul.
        edge_index: (2, m) edges from source (row 0) to destination (row 1).
        name: what the network is called.
        flops: multiply-adds of one forward pass; None if nobody knows. The FLOPs scaling of labels needs them.

    Raises:
        ValueError: if the tensors do not fit together, an operation or an edge is out of range, or there is a cycle.
    """

    op: Int[Tensor, "n"]
    shape: Float[Tensor, "n 6"]
    kernel: Int[Tensor, "n 2"]
    bias: Float[Tensor, "n 2"]
    weighted: Bool[Tensor, "n"]
    edge_index: Int[Tensor, "2 m"]
    name: str = "network"
    flops: float | int | None = None

    def __post_init__(self):
        n = len(self.op)
        if n == 0:
            raise ValueError(f"the graph of {self.name} has no node")
        expected = {"op": (n,), "shape": (n, 6), "kernel": (n, 2), "bias": (n, 2), "weighted": (n,)}
        for field, wanted in expected.items():
            found = tuple(getattr(self, field).shape)
            if found != wanted:
                raise ValueError(f"{field} of {self.name} must have shape {wanted}, got {found}")
        if self.edge_index.ndim != 2 or self.edge_index.shape[0] != 2:
            raise ValueError(f"edge_index of {self.name} must be (2, m), got {tuple(self.edge_index.shape)}")
        for field, limit, values in (("op", len(VOCABULARY), self.op), ("edge_index", n, self.edge_index)):
            if values.numel() and (int(values.min()) < 0 or int(values.max()) >= limit):
                raise ValueError(
                    f"{field} of {self.name} must lie in 0..{limit - 1}, got {int(values.min())}..{int(values.max())}"
                )
        if not bool(torch.isfinite(self.shape).all()):
            raise ValueError(f"shape of {self.name} must be finite, got {self.shape[~torch.isfinite(self.shape)][0]}")
        if self.flops is not None and not 0 <= self.flops < float("inf"):
            raise ValueError(f"flops of {self.name} must be a number >= 0, got {self.flops}")
        source, target = self.edge_index
        # Nodes usually stand in the order of computation, which shows at once that there is no cycle.
        if not bool((source < target).all()) and self._has_cycle():
            raise ValueError(f"the graph of {self.name} has a cycle: a computation graph has none")

    def _has_cycle(self) -> bool:
        alive = torch.ones(len(self.op), dtype=torch.bool)
        source, target = self.edge_index
        while bool(alive.any()):
            pending = torch.zeros_like(alive)
            pending[target[alive[source]]] = True
            ready = alive & ~pending
            if not bool(ready.any()):
                return True
            alive = alive & ~ready
        return False

    def __len__(self) -> int:
        """How many nodes."""
        return len(self.op)

    @property
    def words(self) -> list[str]:
        """The operation of each node in words."""
        return [VOCABULARY[index] for index in self.op.tolist()]

    def connected(self) -> bool:
        """Whether something that enters at an input reaches an output."""
        reached = self.op == _INDEX["input"]
        source, target = self.edge_index
        for _ in range(len(self)):
            more = reached.clone()
            more[target[reached[source]]] = True
            if torch.equal(more, reached):
                break
            reached = more
        return bool((reached & (self.op == _INDEX["output"])).any())


def count_parameters(graph: ComputeGraph) -> int:
    """Weights, biases, and two numbers per channel of a batch normalisation.

    A convolution in groups that is not depthwise looks like one without groups and is counted as such.
    """
    return int(_weights(graph).sum() + _biases(graph).sum()) + 2 * int(
        graph.shape[graph.op == _INDEX["batchnorm"], 5].sum()
    )


def count_multiply_adds(graph: ComputeGraph) -> int:
    """Multiply-adds of the weighted nodes in one forward pass of one example; the note on groups holds here too."""
    pixels = (graph.shape[:, 1] * graph.shape[:, 3]).double()
    return int((_weights(graph) * pixels).sum())


def _weights(graph: ComputeGraph) -> Float[Tensor, "n"]:
    shape, area = graph.shape.double(), graph.kernel.prod(dim=1).double()
    full = shape[:, 4] * shape[:, 5] * torch.where(graph.op == _INDEX["matmul"], 1.0, area)
    return torch.where(graph.op == _INDEX["depthwise"], area * shape[:, 5], full) * graph.weighted


def _biases(graph: ComputeGraph) -> Float[Tensor, "n"]:
    return graph.bias[:, 1].double() * graph.shape[:, 5].double()


@dataclass(frozen=True, eq=False)
class GraphBatch:
    """Graphs laid one after the other, so that graphs of any sizes go through the network together.

        graphs = GraphBatch.of(list_of_graphs)
        graphs[torch.tensor([3, 0])]                  # two of them, as a batch

    Args:
        op, shape, kernel, bias, weighted: as in `ComputeGraph`, of all nodes.
        edge_index: (2, m) edges between nodes of the batch, graph by graph.
        nodes, edges: (graphs,) how many each graph has.
    """

    op: Int[Tensor, "n"]
    shape: Float[Tensor, "n 6"]
    kernel: Int[Tensor, "n 2"]
    bias: Float[Tensor, "n 2"]
    weighted: Bool[Tensor, "n"]
    edge_index: Int[Tensor, "2 m"]
    nodes: Int[Tensor, "graphs"]
    edges: Int[Tensor, "graphs"]

    @classmethod
    def of(cls, graphs: "Sequence[ComputeGraph] | GraphBatch") -> "GraphBatch":
        """Concatenates graphs.

        Raises:
            ValueError: if there is none.
            TypeError: if one is no `ComputeGraph`.
        """
        if isinstance(graphs, GraphBatch):
            return graphs
        if len(graphs) == 0:
            raise ValueError("a batch needs at least one graph, got none")
        for graph in graphs:
            if not isinstance(graph, ComputeGraph):
                raise TypeError(f"expected ComputeGraph, got {type(graph).__name__}: see graph_from_module")
        nodes = torch.tensor([len(graph) for graph in graphs])
        edges = torch.tensor([graph.edge_index.shape[1] for graph in graphs])
        shift = torch.repeat_interleave(nodes.cumsum(0) - nodes, edges)
        fields = {
            name: torch.cat([getattr(graph, name) for graph in graphs])
            for name in ("op", "shape", "kernel", "bias", "weighted")
        }
        edge_index = torch.cat([graph.edge_index for graph in graphs], dim=1) + shift
        return cls(edge_index=edge_index, nodes=nodes, edges=edges, **fields)

    def __len__(self) -> int:
        """How many graphs."""
        return len(self.nodes)

    @cached_property
    def batch(self) -> Int[Tensor, "n"]:
        """Which graph each node belongs to."""
        return torch.repeat_interleave(torch.arange(len(self), device=self.nodes.device), self.nodes)

    def __getitem__(self, rows: Int[Tensor, "chosen"]) -> "GraphBatch":
        """The graphs of these numbers, in their order."""
        nodes, edges = self.nodes[rows], self.edges[rows]
        first = self.nodes.cumsum(0) - self.nodes
        node_ids, edge_ids = _ranges(first[rows], nodes), _ranges((self.edges.cumsum(0) - self.edges)[rows], edges)
        shift = torch.repeat_interleave(nodes.cumsum(0) - nodes - first[rows], edges)
        return GraphBatch(
            self.op[node_ids], self.shape[node_ids], self.kernel[node_ids], self.bias[node_ids],
            self.weighted[node_ids], self.edge_index[:, edge_ids] + shift, nodes, edges,
        )  # fmt: skip

    def to(self, device: torch.device | str) -> "GraphBatch":
        """The same graphs on a device."""
        return GraphBatch(*(getattr(self, name).to(device) for name in GraphBatch.__dataclass_fields__))


def _ranges(starts: Int[Tensor, "k"], lengths: Int[Tensor, "k"]) -> Int[Tensor, "total"]:
    """starts[0], starts[0] + 1, ..., then those of the next, and so on."""
    ends = lengths.cumsum(0)
    steps = torch.arange(int(ends[-1]) if len(ends) else 0, device=starts.device)
    return torch.repeat_interleave(starts - (ends - lengths), lengths) + steps
