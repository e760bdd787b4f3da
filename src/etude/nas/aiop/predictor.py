"""The graph network that predicts a number from a computation graph, trained on cheap labels.

Mills et al., arXiv:2211.17228, and the authors' code. With h_0 the embedding of the nodes and N(v) the sources of the
edges that enter v,

    h_i(v) = tanh(W_i h_{i-1}(v) + V_i sum_{u in N(v)} h_{i-1}(u) + b_i),   i = 1..L                            (1)
    g = mean_v h_L(v),   prediction = head(g)                                                                   (2)
"""

from collections.abc import Callable
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float
from torch import Tensor, nn

from etude.nas.aiop.graph import VOCABULARY, GraphBatch

__all__ = ["GraphPredictor", "NodeEmbedding", "make_conv", "pool_nodes", "regression_head"]

SHAPE_DIVISORS = (256.0, 256.0, 256.0, 256.0, 512.0, 512.0)
"""What the six numbers of a node's shape are divided by. Fixed, so that a new family cannot shift the old ones, where
the authors take maxima over the data."""
KERNEL_SIZES = 8
_SHAPE_DIM, _KERNEL_DIM, _BIAS_DIM = 8, 8, 2
_POOLS = ("mean", "sum", "max")


class NodeEmbedding(nn.Module):
    """A vector for each node from its operation, its shape, and, if it has weights, its kernel and bias.

    Args:
        dim: of the vectors, > 18. A regular node has `dim - 8` numbers for its operation and 8 for its shape; a
            weighted one `dim - 18`, 8, twice 4 for the kernel's height and width (those above 7 count as 7), and 2 for
            the bias. The two kinds have tables of their own and share the layer of shapes.

    Raises:
        ValueError: if `dim` leaves no room for the operation.
    """

    divisors: Tensor

    def __init__(self, dim: int = 32):
        super().__init__()
        extra = _SHAPE_DIM + _KERNEL_DIM + _BIAS_DIM
        if dim <= extra:
            raise ValueError(f"dim must exceed {extra}, which shape, kernel and bias take, got {dim}")
        self.dim = dim
        self.regular = nn.Embedding(len(VOCABULARY), dim - _SHAPE_DIM)
        self.weighted = nn.Embedding(len(VOCABULARY), dim - extra)
        self.kernel = nn.Embedding(KERNEL_SIZES, _KERNEL_DIM // 2)
        self.shape = nn.Linear(len(SHAPE_DIVISORS), _SHAPE_DIM)
        self.bias = nn.Linear(2, _BIAS_DIM)
        self.register_buffer("divisors", torch.tensor(SHAPE_DIVISORS))

    def forward(self, batch: GraphBatch) -> Float[Tensor, "n dim"]:
        shape = self.shape(batch.shape / self.divisors)
        heavy = torch.nonzero(batch.weighted).flatten()
        light = torch.nonzero(~batch.weighted).flatten()
        kernel = self.kernel(batch.kernel[heavy].clamp(max=KERNEL_SIZES - 1)).flatten(1)
        with_weights = torch.cat(
            [self.weighted(batch.op[heavy]), shape[heavy], kernel, self.bias(batch.bias[heavy])], dim=1
        )
        without = torch.cat([self.regular(batch.op[light]), shape[light]], dim=1)
        return torch.cat([with_weights, without])[torch.argsort(torch.cat([heavy, light]))]


def make_conv(conv: str | Callable[[int, int], nn.Module], dim_in: int, dim_out: int) -> nn.Module:
    """A layer that takes node features and edges: a class of `torch_geometric.nn` by name, or what a callable makes.

    Raises:
        ImportError: if PyTorch Geometric is missing.
        ValueError: if it has no such layer.
    """
    if not isinstance(conv, str):
        return conv(dim_in, dim_out)
    try:
        from torch_geometric import nn as pyg
    except ImportError as error:
        raise ImportError('graph predictors need torch_geometric: pip install "etude[graphs]"') from error
    if not hasattr(pyg, conv):
        raise ValueError(f"conv must name a layer of torch_geometric.nn, such as GraphConv, got {conv!r}")
    return getattr(pyg, conv)(dim_in, dim_out)


def pool_nodes(x: Float[Tensor, "n dim"], batch: GraphBatch, pool: str = "mean") -> Float[Tensor, "graphs dim"]:
    """One vector per graph."""
    return torch.segment_reduce(x, pool, lengths=batch.nodes)


def regression_head(dim_in: int, dim: int) -> nn.Sequential:
    """Two linear layers, a ReLU, two more, and the one that gives the number: without activations between pairs."""
    return nn.Sequential(
        nn.Linear(dim_in, dim), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.Linear(dim, dim),
        nn.Linear(dim, 1),
    )  # fmt: skip


class GraphPredictor(
    nn.Module, PyTorchModelHubMixin, library_name="etude", paper_url="https://arxiv.org/abs/2211.17228"
):
    """Predicts a number for each graph, Eq. (1) and (2).

        model = GraphPredictor()
        model(GraphBatch.of([graph_from_module(network, image)]))

    Args:
        dim: of node features, > 18; the authors take 32.
        layers: rounds of message passing; the authors take 6.
        conv: a class of `torch_geometric.nn` that takes (dim_in, dim_out), by name, or a callable that makes a layer.
        pool: "mean", "sum" or "max" over the nodes.

    Raises:
        ValueError: if a number is out of range or a name unknown.
    """

    def __init__(
        self,
        dim: int = 32,
        layers: int = 6,
        conv: str | Callable[[int, int], nn.Module] = "GraphConv",
        pool: str = "mean",
    ):
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers must be positive, got {layers}")
        if pool not in _POOLS:
            raise ValueError(f"pool must be one of {', '.join(_POOLS)}, got {pool!r}")
        self.dim, self.pool, self.conv = dim, pool, conv
        self.embedding = NodeEmbedding(dim)
        self.layers = nn.ModuleList(make_conv(conv, dim, dim) for _ in range(layers))
        self.head = regression_head(dim, dim)

    def node_states(self, batch: GraphBatch) -> list[Float[Tensor, "n dim"]]:
        """h_0, ..., h_L of Eq. (1)."""
        states = [self.embedding(batch)]
        for layer in self.layers:
            states.append(torch.tanh(layer(states[-1], batch.edge_index)))
        return states

    def embed(self, batch: GraphBatch) -> Float[Tensor, "graphs dim"]:
        """g of Eq. (2)."""
        return pool_nodes(self.node_states(batch)[-1], batch, self.pool)

    def forward(self, batch: GraphBatch) -> Float[Tensor, "graphs"]:
        return self.head(self.embed(batch)).squeeze(-1)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As in torch.

        Raises:
            ValueError: if the weights are those of another architecture.
        """
        check_states(self, state_dict, strict)
        return super().load_state_dict(state_dict, strict=strict, assign=assign)


def check_states(model: nn.Module, state_dict: Any, strict: bool = True) -> None:
    """Refuses weights of another architecture.

    Raises:
        ValueError: with the first weight that is missing, not known, or of another shape.
    """
    own, given = model.state_dict(), dict(state_dict)
    kind = type(model).__name__
    for name in own.keys() & given.keys():
        if own[name].shape != given[name].shape:
            raise ValueError(
                f"the checkpoint is of another architecture than this {kind}: {name} is {tuple(given[name].shape)}, "
                f"expected {tuple(own[name].shape)}"
            )
    for what, names in (("lacks", own.keys() - given.keys()), ("also has", given.keys() - own.keys())):
        if strict and names:
            raise ValueError(
                f"the checkpoint is of another architecture than this {kind}: it {what} {min(names)}"
                + (f" and {len(names) - 1} more" if len(names) > 1 else "")
            )
