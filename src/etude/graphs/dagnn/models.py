"""DAGNN and the networks it is measured against: the decoupled model, the stacked GCN and APPNP.

Liu, Gao & Ji, "Towards Deeper Graph Neural Networks", KDD 2020, arXiv:2007.09296, section 4.

All take node features x (dense, `torch.sparse_csr` or a `SparseMatrix`) and a graph, as `edge_index` with optional
`edge_weight` or, normalised once, as `adj`; all give logits (n, classes), for `cross_entropy`. Bags of words are
sparse: dropout and the first product on the stored entries alone are more than ten times quicker on a CPU.
"""

from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float, Int64
from torch import Tensor, nn

from etude.graphs.dagnn.propagation import AdaptivePropagation, Gate, Propagator, as_propagator
from etude.graphs.dagnn.sparse import SparseMatrix, csr_tensor, dropout

__all__ = ["APPNP", "DAGNN", "GCN", "DecoupledGNN", "normalize_features"]

Features = Float[Tensor, "nodes features"] | SparseMatrix
Edges = Int64[Tensor, "2 edges"]
Weights = Float[Tensor, "edges"]
Matrix = Float[Tensor, "nodes nodes"]


def normalize_features(x: Float[Tensor, "nodes features"]) -> Float[Tensor, "nodes features"]:
    """Rows scaled to sum 1, as the paper does with bags of words; zero rows stay zero. Dense or `torch.sparse_csr`.

    Raises:
        ValueError: if a feature is negative: rows then have no meaningful sum.
    """
    sparse = x.layout == torch.sparse_csr
    values = x.values() if sparse else x
    if values.numel() and float(values.min()) < 0:
        raise ValueError(f"features must not be negative to be scaled to sum 1, got {float(values.min())}")
    if not sparse:
        total = x.sum(1, keepdim=True)
        return x / torch.where(total > 0, total, 1)
    row = torch.repeat_interleave(torch.arange(len(x), device=x.device), x.crow_indices().diff().to(torch.int64))
    total = values.new_zeros(len(x)).index_add_(0, row, values)
    scaled = values / torch.where(total > 0, total, 1)[row]
    return csr_tensor(x.crow_indices(), x.col_indices(), scaled, (x.shape[0], x.shape[1]))


def _as_features(x: Tensor | SparseMatrix, in_dim: int) -> Tensor | SparseMatrix:
    if len(x.shape) != 2 or x.shape[1] != in_dim:
        raise ValueError(f"x must have shape (nodes, {in_dim}), got {tuple(x.shape)}")
    return SparseMatrix(x) if isinstance(x, Tensor) and x.layout == torch.sparse_csr else x


def _dropout(x: Tensor | SparseMatrix, p: float, training: bool) -> Tensor | SparseMatrix:
    return x.dropout(p, training) if isinstance(x, SparseMatrix) else dropout(x, p, training)


def _linear(x: Tensor | SparseMatrix, layer: Any) -> Tensor:
    if not isinstance(x, SparseMatrix):
        return layer(x)
    product = x @ layer.weight.t()
    return product if layer.bias is None else product + layer.bias


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def _check_dropout(dropout: float) -> None:
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {dropout}")


class _MLP(nn.Module):
    """Linear layers with ReLU between, dropout before each: the transformation of Eq. (4) and (8)."""

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        hidden_dim: int,
        num_layers: int,
        dropout: float,
        norm: str | None,
        input_dropout: bool,
    ):
        super().__init__()
        _check_sizes(in_dim=in_dim, out_dim=out_dim, hidden_dim=hidden_dim, num_layers=num_layers)
        _check_dropout(dropout)
        if norm not in (None, "batch"):
            raise ValueError(f'norm must be None or "batch", got {norm!r}')
        widths = [in_dim, *[hidden_dim] * (num_layers - 1), out_dim]
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for width in widths[1:-1]) if norm else None
        self.in_dim, self.dropout, self.input_dropout = in_dim, dropout, input_dropout

    def forward(self, x: Tensor | SparseMatrix) -> Tensor:
        hidden: Any = _as_features(x, self.in_dim)
        for depth, layer in enumerate(self.layers):
            if depth:
                hidden = F.relu(self.norms[depth - 1](hidden) if self.norms is not None else hidden)
            if depth or self.input_dropout:
                hidden = _dropout(hidden, self.dropout, self.training)
            hidden = _linear(hidden, layer)
        return hidden

    def reset_parameters(self) -> None:
        for module in [*self.layers, *(self.norms or ())]:
            module.reset_parameters()


class DAGNN(nn.Module, PyTorchModelHubMixin):
    """Deep adaptive graph network: an MLP makes class scores once, gated propagation spreads them, Eq. (8).

        model = DAGNN(data.num_features, data.num_classes, num_hops=10, dropout=0.8)
        logits = model(data.x, data.edge_index)

    Trained in the paper with Adam at learning rate 0.01 and weight decay 0.005 (Cora) on all parameters; see
    `fit_nodes`. The ogbn-arxiv variant has hidden_dim=256, num_hops=16, dropout=0.2, norm="batch", input_dropout=False.

    Args:
        in_dim: f, the number of features.
        out_dim: c, the number of classes.
        hidden_dim: width of the MLP between.
        num_hops: K; the paper takes 10 or 20 on citation graphs and 5 on denser ones.
        dropout: before each linear layer.
        num_layers: of the MLP.
        norm: "batch" for batch normalisation before each ReLU.
        input_dropout: False leaves the features without dropout.
        gate, bias, checkpoint: see `AdaptivePropagation`.

    Raises:
        ValueError: if a size is below 1, `num_hops` negative, `dropout` outside [0, 1), or `norm` or `gate` unknown.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        hidden_dim: int = 64,
        num_hops: int = 10,
        dropout: float = 0.8,
        num_layers: int = 2,
        norm: Literal["batch"] | None = None,
        input_dropout: bool = True,
        gate: Gate = "sigmoid",
        bias: bool = True,
        checkpoint: bool = False,
    ):
        super().__init__()
        self.mlp = _MLP(
            in_dim, out_dim, hidden_dim=hidden_dim, num_layers=num_layers, dropout=dropout, norm=norm,
            input_dropout=input_dropout,
        )  # fmt: skip
        self.propagation = AdaptivePropagation(out_dim, num_hops, gate=gate, bias=bias, checkpoint=checkpoint)

    def reset_parameters(self) -> None:
        self.mlp.reset_parameters()
        self.propagation.reset_parameters()

    def forward(
        self,
        x: Features,
        edge_index: Edges | None = None,
        edge_weight: Weights | None = None,
        *,
        adj: Propagator | Matrix | None = None,
        return_gates: bool = False,
    ) -> Float[Tensor, "nodes classes"] | tuple[Float[Tensor, "nodes classes"], Float[Tensor, "nodes hops"]]:
        """Logits, and with `return_gates` the weights of hops 0..K at each node; see `AdaptivePropagation.forward`."""
        return self.propagation(self.mlp(x), edge_index, edge_weight, adj=adj, return_gates=return_gates)


class DecoupledGNN(DAGNN):
    """P^K MLP(X), Eq. (4): transformation and propagation apart, but no gate; DAGNN with the hop gate "last".

    Arguments and errors as for `DAGNN`, which has the gate besides.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        hidden_dim: int = 64,
        num_hops: int = 10,
        dropout: float = 0.8,
        num_layers: int = 2,
        norm: Literal["batch"] | None = None,
        input_dropout: bool = True,
    ):
        super().__init__(
            in_dim, out_dim, hidden_dim=hidden_dim, num_hops=num_hops, dropout=dropout, num_layers=num_layers,
            norm=norm, input_dropout=input_dropout, gate="last",
        )  # fmt: skip


class APPNP(nn.Module, PyTorchModelHubMixin):
    """Predict, then propagate by personalised PageRank (Klicpera, Bojchevski & Guennemann, ICLR 2019): a baseline.

    Its weights of the hops are fixed, alpha (1 - alpha)^l, and the same for all nodes.

    Args:
        in_dim, out_dim, hidden_dim, num_hops, dropout: as for `DAGNN`.
        teleport: alpha, the share of the node's own prediction at each hop.

    Raises:
        ValueError: as for `DAGNN`, or if `teleport` lies outside [0, 1].
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        hidden_dim: int = 64,
        num_hops: int = 10,
        teleport: float = 0.1,
        dropout: float = 0.5,
    ):
        super().__init__()
        if num_hops < 0:
            raise ValueError(f"num_hops must not be negative, got {num_hops}")
        if not 0 <= teleport <= 1:
            raise ValueError(f"teleport must lie in [0, 1], got {teleport}")
        self.mlp = _MLP(
            in_dim, out_dim, hidden_dim=hidden_dim, num_layers=2, dropout=dropout, norm=None, input_dropout=True
        )
        self.num_hops, self.teleport = num_hops, teleport

    def reset_parameters(self) -> None:
        self.mlp.reset_parameters()

    def forward(
        self,
        x: Features,
        edge_index: Edges | None = None,
        edge_weight: Weights | None = None,
        *,
        adj: Propagator | Matrix | None = None,
    ) -> Float[Tensor, "nodes classes"]:
        z = self.mlp(x)
        return as_propagator(edge_index, edge_weight, adj, like=z).power(z, self.num_hops, self.teleport)


class GCN(nn.Module, PyTorchModelHubMixin):
    """A stack of graph convolutions, each a transformation and one hop (Kipf & Welling, ICLR 2017): the baseline.

        H_l = relu(P dropout(H_(l-1)) W_l + b_l),   logits without the relu

    With Glorot initialisation and zero biases, as its authors have it.

    Args:
        in_dim, out_dim, hidden_dim: as for `DAGNN`.
        depth: number of layers, and so of hops.
        dropout: before each layer.
        residual: add its input to each layer between the first and the last: a control that eases optimisation.

    Raises:
        ValueError: if a size is below 1 or `dropout` lies outside [0, 1).
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        hidden_dim: int = 64,
        depth: int = 2,
        dropout: float = 0.5,
        residual: bool = False,
    ):
        super().__init__()
        _check_sizes(in_dim=in_dim, out_dim=out_dim, hidden_dim=hidden_dim, depth=depth)
        _check_dropout(dropout)
        widths = [in_dim, *[hidden_dim] * (depth - 1), out_dim]
        # The bias comes after the hop, so it cannot stand in the linear layer.
        self.layers = nn.ModuleList(nn.Linear(*pair, bias=False) for pair in pairwise(widths))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(width)) for width in widths[1:])
        self.in_dim, self.dropout, self.residual = in_dim, dropout, residual
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            (nn.init.xavier_uniform_ if parameter.ndim == 2 else nn.init.zeros_)(parameter)

    def forward(
        self,
        x: Features,
        edge_index: Edges | None = None,
        edge_weight: Weights | None = None,
        *,
        adj: Propagator | Matrix | None = None,
        return_hidden: bool = False,
    ) -> Float[Tensor, "nodes classes"] | tuple[Float[Tensor, "nodes classes"], Float[Tensor, "nodes hidden"]]:
        """Logits, and with `return_hidden` what enters the last layer (before its dropout): x itself at depth 1."""
        hidden: Any = _as_features(x, self.in_dim)
        graph = as_propagator(edge_index, edge_weight, adj, like=hidden)
        for depth, (layer, bias) in enumerate(zip(self.layers, self.biases, strict=True)):
            entering = hidden
            # Transform first: the hop then moves hidden_dim or out_dim columns, never in_dim.
            hidden = graph @ _linear(_dropout(hidden, self.dropout, self.training), layer) + bias
            if depth < len(self.layers) - 1:
                hidden = F.relu(hidden) + entering if self.residual and depth else F.relu(hidden)
        if not return_hidden:
            return hidden
        return hidden, entering.matrix.to_dense() if isinstance(entering, SparseMatrix) else entering
