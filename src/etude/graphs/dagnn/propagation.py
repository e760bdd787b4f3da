"""Propagation without parameters, and the gate that weighs its hops.

Liu, Gao & Ji, "Towards Deeper Graph Neural Networks", KDD 2020, arXiv:2007.09296, sections 4 and 5.

P^l Z is always computed by l sparse products with (n, c) matrices; P^l is never formed.
"""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from etude.graphs.dagnn.normalization import gcn_norm
from etude.graphs.dagnn.sparse import SparseMatrix

__all__ = ["AdaptivePropagation", "Gate", "Propagator", "as_propagator"]

Gate = Literal["sigmoid", "softmax", "last"]


class Propagator(SparseMatrix):
    """A propagation matrix made ready for training: P z and its powers, with gradients to z.

        adj = Propagator.from_edges(edge_index, num_nodes)     # once per graph
        far = adj.power(z, 10)

    Args:
        matrix: square CSR tensor, as `gcn_norm` gives it.

    Raises:
        ValueError: if the matrix is not square CSR, or requires a gradient.
    """

    def __init__(self, matrix: Float[Tensor, "nodes nodes_too"]):
        super().__init__(matrix)
        if self.shape[0] != self.shape[1]:
            raise ValueError(f"a propagation matrix is square, got shape {self.shape}")

    @classmethod
    def from_edges(
        cls,
        edge_index: Int64[Tensor, "2 edges"],
        num_nodes: int,
        edge_weight: Float[Tensor, "edges"] | None = None,
        kind: Literal["sym", "row"] = "sym",
        add_self_loops: bool = True,
        *,
        dtype: torch.dtype | None = None,
    ) -> "Propagator":
        """`Propagator(gcn_norm(...))`; see there."""
        return cls(gcn_norm(edge_index, num_nodes, edge_weight, kind, add_self_loops, dtype=dtype))

    def hops(self, z: Float[Tensor, "nodes channels"], num_hops: int) -> Float[Tensor, "hops nodes channels"]:
        """z, P z, ..., P^num_hops z, stacked along the first axis."""
        self._check(z, num_hops)
        hops = [z]
        for _ in range(num_hops):
            hops.append(self @ hops[-1])
        return torch.stack(hops)

    def power(
        self, z: Float[Tensor, "nodes channels"], num_hops: int, teleport: float = 0.0
    ) -> Float[Tensor, "nodes channels"]:
        """P^num_hops z; with `teleport` > 0, the personalised propagation of APPNP (Klicpera et al., 2019).

        h_0 = z and h_l = (1 - teleport) P h_(l-1) + teleport z. Nothing is kept for the backward pass.
        """
        self._check(z, num_hops)
        if not 0 <= teleport <= 1:
            raise ValueError(f"teleport must lie in [0, 1], got {teleport}")
        with torch.autocast(self.device.type, enabled=False):
            return _Power.apply(z.to(self.dtype), self, num_hops, teleport).to(z.dtype)

    def _check(self, z: Tensor, num_hops: int) -> None:
        if num_hops < 0:
            raise ValueError(f"num_hops must not be negative, got {num_hops}")
        if z.ndim != 2 or z.shape[0] != self.shape[0]:
            raise ValueError(f"z must have shape ({self.shape[0]}, channels), one row per node, got {tuple(z.shape)}")


def as_propagator(
    edge_index: Int64[Tensor, "2 edges"] | None,
    edge_weight: Float[Tensor, "edges"] | None,
    adj: Propagator | Float[Tensor, "nodes nodes"] | None,
    *,
    like: Tensor | SparseMatrix,
) -> Propagator:
    """The graph a module was given, as edges or as `adj`, made ready for node vectors `like` these.

    Half-precision vectors are propagated by a float32 matrix.

    Raises:
        ValueError: if it was given in neither or both ways, or differs from `like` in device or number of nodes.
    """
    if (edge_index is None) == (adj is None):
        raise ValueError("give the graph as edge_index or as adj, and only one of them")
    precision = torch.float32 if like.dtype in (torch.float16, torch.bfloat16) else like.dtype
    if adj is None:
        assert edge_index is not None
        return Propagator.from_edges(edge_index, like.shape[0], edge_weight, dtype=precision)
    if edge_weight is not None:
        raise ValueError("edge_weight belongs to edge_index; adj holds its weights already")
    graph = adj if isinstance(adj, Propagator) else Propagator(adj)
    if graph.shape[0] != like.shape[0]:
        raise ValueError(f"adj has {graph.shape[0]} nodes, the node vectors have {like.shape[0]} rows")
    if graph.device != like.device:
        raise ValueError(f"adj is on {graph.device}, the node vectors are on {like.device}")
    return graph.to(dtype=precision)


class _Power(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, adj: Propagator, num_hops: int, teleport: float) -> Tensor:
        ctx.adj, ctx.num_hops, ctx.teleport = adj, num_hops, teleport
        return _personalised(adj.matrix, z, num_hops, teleport)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # h_K = sum_l teleport (1 - teleport)^l P^l z + ((1 - teleport) P)^K z: the same series with P^T.
        return _personalised(ctx.adj.transposed, grads[0], ctx.num_hops, ctx.teleport), None, None, None


def _personalised(matrix: Tensor, z: Tensor, num_hops: int, teleport: float) -> Tensor:
    h = z.clone() if num_hops == 0 else z
    for _ in range(num_hops):
        h = torch.addmm(z, matrix, h, beta=teleport, alpha=1 - teleport) if teleport else torch.mm(matrix, h)
    return h


class _GatedSum(torch.autograd.Function):
    """sum_l g_l * P^l z of Eq. (8), one hop at a time, with the gates (K + 1, n) beside it.

    The gradient of hop l is g_l * grad + delta_l s^T with delta_l = dloss/dscore_l, one number a node. Backward
    therefore needs the hops only to find these numbers, and can compute them again where they were not kept. Pulled
    back through the hops, D = sum_l (P^T)^l delta_l gives both what the scores add to z's gradient, D s^T, and the
    gradient of s itself, z^T D.
    """

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, weight: Tensor, bias: Tensor, adj: Propagator | None, num_hops: int, gate: str, keep: bool
    ) -> tuple[Tensor, Tensor]:
        gates = z.new_empty(num_hops + 1, len(z))
        if gate == "softmax":  # every score must be known before the first hop can be weighed
            for row, hop in zip(gates, _hops(adj, z, num_hops), strict=True):
                torch.mv(hop, weight, out=row)
            gates = torch.softmax(gates + bias, dim=0)
        out, kept = torch.zeros_like(z), []
        for row, hop in zip(gates, _hops(adj, z, num_hops), strict=True):
            if gate == "sigmoid":
                torch.sigmoid(torch.mv(hop, weight) + bias, out=row)
            out.addcmul_(row[:, None], hop)
            if keep:
                kept.append(hop)
        ctx.adj, ctx.num_hops, ctx.gate = adj, num_hops, gate
        ctx.save_for_backward(z, weight, gates, *kept)
        return out, gates

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z, weight, gates, *kept = ctx.saved_tensors
        grad, grad_of_gates = grads
        pull = grad_of_gates.clone()
        ones = torch.ones_like(weight)
        for row, hop in zip(pull, kept or _hops(ctx.adj, z, ctx.num_hops), strict=True):
            row += torch.mv(grad * hop, ones)  # a row sum; over few columns the product is far quicker than sum(1)
        if ctx.gate == "sigmoid":
            delta = pull * gates * (1 - gates)
        else:
            delta = gates * (pull - (gates * pull).sum(0))
        into_z, into_scores = gates[-1, :, None] * grad, delta[-1, :, None]
        for hop in range(ctx.num_hops - 1, -1, -1):
            into_z = torch.addmm(gates[hop, :, None] * grad, ctx.adj.transposed, into_z)
            into_scores = torch.addmm(delta[hop, :, None], ctx.adj.transposed, into_scores)
        into_weight = torch.mv(z.t(), into_scores[:, 0])
        return into_z + into_scores * weight, into_weight, delta.sum().reshape(1), None, None, None, None


def _hops(adj: Propagator | None, z: Tensor, num_hops: int) -> Iterator[Tensor]:
    yield z
    for _ in range(num_hops):
        assert adj is not None
        z = torch.mm(adj.matrix, z)
        yield z


class AdaptivePropagation(nn.Module):
    """Propagates z over 0..K hops and adds the hops up, each weighed per node by a gate, Eq. (8).

        H_l = P^l Z,   S_l = sigmoid(H_l s + b),   out = sum_l S_l * H_l,   l = 0..K

    One projection (s, b) is shared by all nodes and hops, so the module has c + 1 parameters whatever K is. The gates
    are independent sigmoids: they need not sum to one. Nothing nonlinear and no dropout stands between the hops.
    Half-precision input is propagated and summed in float32 and given back in its own type.

        propagation = AdaptivePropagation(num_channels=7, num_hops=10)
        logits = propagation(z, edge_index)

    Args:
        num_channels: c, the width of z: the number of classes in the paper.
        num_hops: K >= 0.
        gate: "sigmoid" as in the paper; "softmax" over the hops, an ablation; "last", which takes hop K alone and
            has no parameters: the decoupled model of Eq. (4).
        bias: whether the projection has its bias b. The equation has none, the authors' code has it.
        checkpoint: keep no hops for the backward pass, but compute them again: memory n (c + K) for n c K, and one
            product a hop more in a training step. Without gradients hops are never kept.

    Raises:
        ValueError: if `num_channels` < 1, `num_hops` < 0 or `gate` is unknown.
    """

    def __init__(
        self, num_channels: int, num_hops: int, *, gate: Gate = "sigmoid", bias: bool = True, checkpoint: bool = False
    ):
        super().__init__()
        if num_channels < 1:
            raise ValueError(f"num_channels must be at least 1, got {num_channels}")
        if num_hops < 0:
            raise ValueError(f"num_hops must not be negative, got {num_hops}")
        if gate not in ("sigmoid", "softmax", "last"):
            raise ValueError(f'gate must be "sigmoid", "softmax" or "last", got {gate!r}')
        self.num_channels, self.num_hops, self.gate, self.checkpoint = num_channels, num_hops, gate, checkpoint
        self.proj = None if gate == "last" else nn.Linear(num_channels, 1, bias=bias)

    def reset_parameters(self) -> None:
        if self.proj is not None:
            self.proj.reset_parameters()

    def forward(
        self,
        z: Float[Tensor, "nodes channels"],
        edge_index: Int64[Tensor, "2 edges"] | None = None,
        edge_weight: Float[Tensor, "edges"] | None = None,
        *,
        adj: Propagator | Float[Tensor, "nodes nodes"] | None = None,
        return_gates: bool = False,
    ) -> Float[Tensor, "nodes channels"] | tuple[Float[Tensor, "nodes channels"], Float[Tensor, "nodes hops"]]:
        """The gated sum of the hops of z.

        Args:
            z: what is propagated.
            edge_index, edge_weight: the graph, normalised to P_sym at each call.
            adj: instead of the edges, P as `gcn_norm` or `Propagator` gives it: normalise once, train long.
            return_gates: also give the weights of hops 0..K at each node.

        Raises:
            ValueError: if z has another width than `num_channels`, or the graph is missing, given twice or of another
                size.
        """
        if z.ndim != 2 or z.shape[1] != self.num_channels:
            raise ValueError(f"z must have shape (nodes, {self.num_channels}), got {tuple(z.shape)}")
        graph = None
        if self.num_hops or edge_index is not None or adj is not None:
            graph = as_propagator(edge_index, edge_weight, adj, like=z)
        precise = z.float() if z.dtype in (torch.float16, torch.bfloat16) else z
        with torch.autocast(z.device.type, enabled=False):
            out, gates = self._propagate(precise, graph)
        out = out.to(z.dtype)
        return (out, gates.t().to(z.dtype)) if return_gates else out

    def _propagate(self, z: Tensor, adj: Propagator | None) -> tuple[Tensor, Tensor]:
        if self.proj is None:
            gates = z.new_zeros(self.num_hops + 1, len(z))
            gates[-1] = 1
            return z if adj is None else adj.power(z, self.num_hops), gates
        weight = self.proj.weight[0].to(z.dtype)
        bias = z.new_zeros(1) if self.proj.bias is None else self.proj.bias.to(z.dtype)
        keep = torch.is_grad_enabled() and not self.checkpoint
        return _GatedSum.apply(z, weight, bias, adj, self.num_hops, self.gate, keep)

    def extra_repr(self) -> str:
        return f"num_channels={self.num_channels}, num_hops={self.num_hops}, gate={self.gate!r}"
