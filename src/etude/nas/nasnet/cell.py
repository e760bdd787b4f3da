"""A cell: two maps in, blocks of operations on all that is there so far, one map out."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from etude.nas.nasnet.genotype import NASNET_A, Genotype
from etude.nas.nasnet.operations import FactorizedReduction, conv_bn, make_op
from etude.nn.transformer import DropPath

__all__ = ["NASNetCell"]


class _Block(nn.Module):
    """Both arms and their combination; a path is dropped behind each arm, but not behind identity."""

    def __init__(self, ops: list[nn.Module], dropped: list[bool], combine: str, filters: int):
        super().__init__()
        self.ops = nn.ModuleList(ops)
        self.dropped = dropped
        self.join = conv_bn(2 * filters, filters, 1) if combine == "concat" else None

    def forward(self, first: Tensor, second: Tensor, drop_path: nn.Module) -> Tensor:
        a, b = self.ops[0](first), self.ops[1](second)
        if self.dropped[0]:
            a = drop_path(a)
        if self.dropped[1]:
            b = drop_path(b)
        return a + b if self.join is None else self.join(torch.cat([a, b], dim=1))


class NASNetCell(nn.Module):
    """One cell of a genotype, section 3 and figure 4.

    State 0 is h through ReLU, a 1 x 1 convolution and batch norm; state 1 is h_prev, brought to the size of h by a
    factorized reduction or to its width by a 1 x 1 convolution where they differ. In a reduction cell the operations
    on these two have stride 2.

        cell = NASNetCell(NASNET_A, reduction=False, dim=96, filters=32)
        y = cell(torch.randn(1, 96, 32, 32))          # (1, cell.out_dim, 32, 32)

    Args:
        genotype: of which the normal or the reduction cell is built.
        reduction: whether the map is halved.
        dim: channels of h.
        filters: F, the width of every state.
        prev_dim: channels of h_prev; None in the first cell of a network, whose state 1 is h itself, as it is.
        prev_larger: whether h_prev has twice the size of h.

    Attributes:
        out_dim: channels of the output.
        drop_path: the one that drops the arms' results; its `rate` may be changed.

    Raises:
        ValueError: for widths that are not positive, or an odd `filters` where a map is halved.
    """

    def __init__(
        self,
        genotype: Genotype = NASNET_A,
        *,
        reduction: bool,
        dim: int,
        filters: int,
        prev_dim: int | None = None,
        prev_larger: bool = False,
    ):
        super().__init__()
        if min(dim, filters, dim if prev_dim is None else prev_dim) < 1:
            raise ValueError(f"widths must be positive, got dim={dim}, filters={filters}, prev_dim={prev_dim}")
        if prev_dim is None and prev_larger:
            raise ValueError("prev_larger needs prev_dim: without h_prev state 1 is h itself")
        blocks, self.concat = genotype.cell(reduction)
        read = {state for block in blocks for state, _ in block.arms}
        self.reads = [(block.first, block.second) for block in blocks]
        self.entry = conv_bn(dim, filters, 1) if 0 in read.union(self.concat) else nn.Identity()
        self.entry_prev: nn.Module = nn.Identity()
        widths = [filters, dim if prev_dim is None else filters] + [filters] * len(blocks)
        if prev_dim is not None and 1 in read.union(self.concat):
            if prev_larger:
                self.entry_prev = FactorizedReduction(prev_dim, filters)
            elif prev_dim != filters:
                self.entry_prev = conv_bn(prev_dim, filters, 1)
        self.blocks = nn.ModuleList()
        for block in blocks:
            ops = [make_op(op, widths[n], filters, 2 if reduction and n < 2 else 1) for n, op in block.arms]
            self.blocks.append(_Block(ops, [op != "identity" for _, op in block.arms], block.combine, filters))
        self.exits = nn.ModuleDict()
        for state in self.concat:
            if reduction and state < 2:
                self.exits[str(state)] = FactorizedReduction(widths[state], filters, activate=False)
            elif widths[state] != filters:
                self.exits[str(state)] = conv_bn(widths[state], filters, 1, activate=False)
        self.drop_path = DropPath()
        self.out_dim = len(self.concat) * filters

    def forward(
        self,
        h: Float[Tensor, "batch dim height width"],
        h_prev: Float[Tensor, "batch prev_dim height3 width3"] | None = None,
    ) -> Float[Tensor, "batch out_dim height2 width2"]:
        """(batch, dim, H, W) -> (batch, out_dim, H, W), or (batch, out_dim, ceil(H / 2), ceil(W / 2)) if it reduces.

        Args:
            h: output of the cell before.
            h_prev: output of the one before that; None in the first cell.
        """
        states = [self.entry(h), h if h_prev is None else self.entry_prev(h_prev)]
        for block, (first, second) in zip(self.blocks, self.reads):
            states.append(block(states[first], states[second], self.drop_path))
        joined = [self.exits[str(n)](states[n]) if str(n) in self.exits else states[n] for n in self.concat]
        return torch.cat(joined, dim=1)
