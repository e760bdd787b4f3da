"""Encoders: the paper's two-layer GCN, and any PyG model with one of its layers tapped.

Jin et al., "Self-supervised Learning on Graphs: Deep Insights and New Direction", arXiv:2006.10141, section 2:

    E = ReLU(P X W_1 + b_1),    logits = P drop(E) W_2 + b_2,    P = D~^-1/2 (A + I) D~^-1/2

Pretext heads read drop(E), the task's and the classifier's losses share one mask; the tasks on label contexts read E.
An encoder is any module that gives (logits, hidden) or (logits, hidden, dropped); without `dropped`, all tasks read
`hidden`.
"""

import warnings
from typing import Any, NamedTuple

import torch
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float, Int64
from torch import Tensor, nn

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyG compiles with `torch.jit.script` on import, which torch deprecates
        from torch_geometric.nn import GCNConv
        from torch_geometric.nn.conv.gcn_conv import gcn_norm
        from torch_geometric.utils import to_torch_csr_tensor
except ImportError as error:
    raise ImportError('the encoders of selftask are built of PyG\'s layers: pip install "etude[graphs]"') from error

__all__ = ["Encoding", "GCNEncoder", "TappedEncoder"]


class Encoding(NamedTuple):
    """What an encoder gives.

    Attributes:
        logits: (n, classes).
        hidden: (n, H), the embeddings.
        dropped: (n, H), the embeddings after dropout, as the classifier reads them.
    """

    logits: Tensor
    hidden: Tensor
    dropped: Tensor


class _Product(torch.autograd.Function):
    """Constant sparse times dense; the transpose for the backward pass is given, not made anew at each step."""

    @staticmethod
    def forward(ctx: Any, dense: Tensor, matrix: Tensor, transposed: Tensor) -> Tensor:
        ctx.transposed = transposed
        return _times(matrix, dense)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _times(ctx.transposed, grads[0]), None, None


def _times(matrix: Tensor, dense: Tensor) -> Tensor:
    """`torch.sparse.mm` without its copy of an empty result."""
    out = dense.new_zeros(matrix.shape[0], dense.shape[1])
    return torch.addmm(out, matrix, dense, beta=0, out=out)


class _SparseLinear(nn.Linear):
    """A linear layer without bias that takes sparse CSR rows too."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__(in_dim, out_dim, bias=False)
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        if x.layout != torch.sparse_csr:
            return super().forward(x)
        return _Product.apply(self.weight.t().contiguous(), *self._prepared(x))

    def _prepared(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x and its transpose, kept for the last two: the features in training, perhaps masked, and all of them."""
        for seen, matrix, transposed in self._seen:
            if seen is x:
                return matrix, transposed
        row = torch.repeat_interleave(torch.arange(x.shape[0], device=x.device), x.crow_indices().diff().long())
        entries = torch.stack([x.col_indices().long(), row])
        matrix = _csr(entries, x.values(), (x.shape[0], x.shape[1]))
        transposed = _csr(entries.flip(0), x.values(), (x.shape[1], x.shape[0]))
        self._seen = [*self._seen[-1:], (x, matrix, transposed)]
        return matrix, transposed

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_seen": []}


class _Convolution(GCNConv):
    """PyG's layer on a CSR matrix whose transpose is given."""

    transposed: Tensor | None = None

    def message_and_aggregate(self, adj_t: Tensor, x: Tensor) -> Tensor:
        return _Product.apply(x, adj_t, self.transposed)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"transposed": None}


def _csr(edge_index: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    """Row = target, column = source; PyG's layers multiply by it instead of passing messages edge by edge.

    Indices are of 32 bits where they suffice: wider ones are converted at each product.
    """
    matrix = to_torch_csr_tensor(edge_index.flip(0), values, size=size)
    if max(values.numel(), *size) >= 2**31:
        return matrix
    parts = (matrix.crow_indices().int(), matrix.col_indices().int(), matrix.values())
    return torch.sparse_csr_tensor(*parts, size=size, check_invariants=False)


def _hush() -> None:
    """Torch says once a process that CSR is a beta feature: let it say so here, unheard."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _csr(torch.zeros(2, 1, dtype=torch.int64), torch.zeros(1), (1, 1))


_hush()


class GCNEncoder(nn.Module, PyTorchModelHubMixin):
    """The paper's GCN, of two PyG `GCNConv` layers.

        encoder = GCNEncoder(data.num_features, data.num_classes)
        logits, hidden, dropped = encoder(data.x, data.edge_index)

    Args:
        in_dim: f; features may be dense or sparse CSR.
        num_classes: c.
        hidden_dim: H.
        dropout: of E, in [0, 1); draws from torch's global generator.

    Raises:
        ValueError: if a size or the dropout is out of range.
    """

    def __init__(self, in_dim: int, num_classes: int, *, hidden_dim: int = 128, dropout: float | int = 0.5):
        super().__init__()
        for name, size in (("in_dim", in_dim), ("num_classes", num_classes), ("hidden_dim", hidden_dim)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
        self.conv1 = _Convolution(in_dim, hidden_dim, normalize=False)
        self.conv1.lin = _SparseLinear(in_dim, hidden_dim)
        self.conv2 = _Convolution(hidden_dim, num_classes, normalize=False)
        self.hidden_dim, self.dropout = hidden_dim, dropout
        self.reset_parameters()
        self._seen: list[tuple[Tensor, int, Tensor, Tensor]] = []

    def reset_parameters(self) -> None:
        """Glorot's uniform weights, biases of zero."""
        for layer in (self.conv1, self.conv2):
            nn.init.xavier_uniform_(layer.lin.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, x: Float[Tensor, "nodes features"], edge_index: Int64[Tensor, "2 edges"]
    ) -> Encoding:  # fmt: skip
        propagation, transposed = self._propagation(edge_index, x.shape[0])
        self.conv1.transposed = self.conv2.transposed = transposed
        hidden = self.conv1(x, propagation).relu()
        dropped = self._drop(hidden)
        return Encoding(self.conv2(dropped, propagation), hidden, dropped)

    def classify(
        self, hidden: Float[Tensor, "nodes hidden"], edge_index: Int64[Tensor, "2 edges"]
    ) -> Float[Tensor, "nodes classes"]:
        """The logits of embeddings, without dropout: in evaluation `forward(x, edge_index).logits` of its `hidden`."""
        propagation, self.conv2.transposed = self._propagation(edge_index, hidden.shape[0])
        return self.conv2(hidden, propagation)

    def _drop(self, hidden: Tensor) -> Tensor:
        if not self.training or self.dropout == 0:
            return hidden
        # Uniform draws are thrice as quick on a CPU as the Bernoulli draws of `dropout`.
        kept = (torch.rand_like(hidden) >= self.dropout).to(hidden.dtype)
        return hidden * kept.mul_(1 / (1 - self.dropout))

    def _propagation(self, edge_index: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
        """P and its transpose, kept for the last two graphs: that of training, perhaps corrupted, and the whole one."""
        for seen, version, matrix, transposed in self._seen:
            if seen is edge_index and version == edge_index._version and matrix.shape[0] == num_nodes:
                return matrix, transposed
        edges, weights = gcn_norm(edge_index, None, num_nodes, dtype=self.conv1.bias.dtype)
        matrix = _csr(edges, weights, (num_nodes, num_nodes))
        transposed = _csr(edges.flip(0), weights, (num_nodes, num_nodes))
        self._seen = [*self._seen[-1:], (edge_index, edge_index._version, matrix, transposed)]
        return matrix, transposed

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_seen": []}


class TappedEncoder(nn.Module):
    """Any model `model(x, edge_index) -> logits` as an encoder: what passes one of its layers are the embeddings.

        model = torch_geometric.nn.GAT(data.num_features, 128, 2, data.num_classes, dropout=0.5)
        encoder = TappedEncoder(model, "dropout")

    Tapped at a `torch.nn.Dropout`, the embeddings are its input and, dropped, its output; at any other layer both are
    its output. A layer that is called several times counts with its last call.

    Args:
        model: of PyG or any other.
        layer: the name of the layer, as in `model.named_modules()`.

    Raises:
        ValueError: if the model has no such layer; when called, if the model does not pass through it, or what passes
            is not one vector a node.
    """

    def __init__(self, model: nn.Module, layer: str):
        super().__init__()
        layers = dict(model.named_modules())
        if not layer or layer not in layers:
            names = ", ".join(name for name in layers if name)
            raise ValueError(f"the model has no layer {layer!r}; its layers are {names}")
        self.model, self.layer = model, layer

    def forward(self, *args: Any, **kwargs: Any) -> Encoding:
        """The model's own arguments; its output as `logits`."""
        passed: list[tuple[Any, Any]] = []
        tapped = self.model.get_submodule(self.layer)
        hook = tapped.register_forward_hook(lambda module, inputs, output: passed.append((inputs[:1], output)))
        try:
            logits = self.model(*args, **kwargs)
        finally:
            hook.remove()
        if not passed:
            raise ValueError(f"the model did not call its layer {self.layer!r}")
        inputs, dropped = passed[-1]
        hidden = inputs[0] if isinstance(tapped, nn.Dropout) else dropped
        if not isinstance(hidden, Tensor) or hidden.ndim != 2 or len(hidden) != len(logits):
            shape = tuple(hidden.shape) if isinstance(hidden, Tensor) else type(hidden).__name__
            raise ValueError(f"the layer {self.layer!r} must pass ({len(logits)}, width), one row a node, got {shape}")
        return Encoding(logits, hidden, dropped)
