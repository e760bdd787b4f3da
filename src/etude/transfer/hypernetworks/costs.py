"""What the designs cost: numbers that train, and operations for one generation.

With E the size of C, E_c that of a piece's embedding, h the last hidden width, MLP the hidden layers and T pieces,
besides num_conditions E of the embeddings,

    once         MLP(E) + (h + 1) P
    multiple     MLP(E) without its last layer + sum_k of (h' + 1) (h // K) + (h // K + 1) P_k
    component    MLP(E + E_c) + (h + 1) max_l P_l + T E_c
    chunk        MLP(E + E_c) + (h + 1) s + T E_c                                                                (4)
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from etude.transfer.hypernetworks.design import HypernetDesign, design_space
from etude.transfer.hypernetworks.generators import head_sizes
from etude.transfer.hypernetworks.hypernetwork import Hypernetwork
from etude.transfer.hypernetworks.layout import DESCRIPTOR_SIZE, piece_layout
from etude.transfer.hypernetworks.spec import TargetSpec

__all__ = ["DesignRow", "count_parameters", "design_table", "generation_seconds", "table_text"]


def count_parameters(
    design: HypernetDesign,
    spec: TargetSpec,
    *,
    num_conditions: int = 0,
    cond_dim: int = 8,
    hidden: Sequence[int] = (100, 100),
    chunk_size: int | None = None,
    chunk_emb_dim: int = 8,
    num_heads: int = 2,
    split: str = "even",
    per_condition: bool = False,
    granularity: str = "module",
) -> int:
    """Numbers that train in a hypernetwork of a design, by Eq. (4) and its like, without building it.

    Args:
        design: must be legal.
        spec: of the target.
        num_conditions: learned embeddings; 0 where conditions come with each call or are given.
        per_condition: whether pieces have embeddings for each condition.
        cond_dim, hidden, chunk_size, chunk_emb_dim, num_heads, split, granularity: of `Hypernetwork`.

    Raises:
        ValueError: if the design is illegal.
    """
    design.check()
    layout = piece_layout(spec, design, chunk_size, granularity)
    inputs = cond_dim * len(design.parts) + (chunk_emb_dim if design.piecewise else 0)
    total = num_conditions * cond_dim
    if design.piecewise:
        looked_up = layout.pieces * chunk_emb_dim * (num_conditions if per_condition else 1)
        total += looked_up if design.static_output else (DESCRIPTOR_SIZE + 1) * chunk_emb_dim
    if design.generation == "multiple":
        sizes = head_sizes(spec, num_heads, split)
        inner = hidden[-1] // len(sizes)
        before = [inputs, *hidden[:-1]]
        heads = sum((before[-1] + 1) * inner + (inner + 1) * size for size in sizes)
        return total + _dense(before) + heads
    width = hidden[-1] if hidden else inputs
    trunk = _TRUNKS[design.architecture](inputs, hidden, width)
    return total + trunk + (width + 1) * layout.size


def _dense(widths: Sequence[int]) -> int:
    return sum((a + 1) * b for a, b in pairwise(widths))


def _attention(inputs: int, hidden: Sequence[int], h: int) -> int:
    layer = 4 * h * (h + 1) + _dense([h, 2 * h, h]) + 4 * h
    return _dense([inputs, h]) + len(hidden) * layer


_TRUNKS = {
    "mlp": lambda inputs, hidden, h: _dense([inputs, *hidden]),
    "cnn": lambda inputs, hidden, h: _dense([inputs, h]) + 2 * (4 * h * h + h),
    "rnn": lambda inputs, hidden, h: sum(3 * h * (each + h + 2) for each in [inputs] + [h] * (len(hidden) - 1)),
    "attention": _attention,
    "graph": lambda inputs, hidden, h: _dense([inputs, h]) + 2 * (len(hidden) * h * h + 6 * h * (h + 1)),
}


@dataclass(frozen=True)
class DesignRow:
    """A line of the table.

    Attributes:
        design: of the hypernetwork.
        parameters: numbers that train. ratio: their number over P.
        flops: of one generation for one condition, multiplications and additions.
    """

    design: HypernetDesign
    parameters: int
    ratio: float
    flops: int


def design_table(
    target: nn.Module, designs: Sequence[HypernetDesign] | None = None, *, num_conditions: int = 5, **sizes: Any
) -> list[DesignRow]:
    """Parameters and operations of designs, all of the legal ones by default, for one target.

    Args:
        target: the network whose weights are generated.
        designs: which ones; those that need torch_geometric are left out where it is not installed.
        num_conditions: stored, where a design stores some.
        sizes: options of `Hypernetwork`; `chunk_size` (512 if not given) goes to the designs that have chunks.
    """
    chunk_size = sizes.pop("chunk_size", 512)
    rows = []
    for design in design_space() if designs is None else designs:
        stored = num_conditions if design.static_input or len(design.parts) == 2 else None
        chunked = {"chunk_size": chunk_size} if design.generation in ("chunk", "component_chunk") else {}
        try:
            hypernet = Hypernetwork(target, design, num_conditions=stored, init="default", **chunked, **sizes).eval()
        except ImportError:
            continue
        parts = [0 if design.static_input or part == "task" else torch.zeros(hypernet.conditions.cond_dim)
                 for part in design.parts]  # fmt: skip
        if stored is None and design.conditioning == "task":
            parts = [torch.zeros(hypernet.conditions.cond_dim)]
        with FlopCounterMode(display=False) as counter:
            hypernet.flat(parts[0] if len(parts) == 1 else tuple(parts))
        trained = sum(p.numel() for p in hypernet.parameters() if p.requires_grad)
        rows.append(DesignRow(design, trained, trained / hypernet.spec.numel, counter.get_total_flops()))
    return rows


@torch.no_grad()
def generation_seconds(hypernet: Hypernetwork, cond: Any = 0, *, rounds: int = 20) -> float:
    """Mean seconds of one generation without gradients."""
    hypernet.flat(cond)
    started = time.perf_counter()
    for _ in range(rounds):
        hypernet.flat(cond)
    return (time.perf_counter() - started) / rounds


def table_text(rows: Sequence[DesignRow]) -> str:
    """The table as Markdown."""
    lines = ["| conditioning | generation | input | output | architecture | parameters | over P | FLOPs |"]
    lines.append("| --- | --- | --- | --- | --- | ---: | ---: | ---: |")
    for row in rows:
        each = row.design
        stored, fixed = ("static" if flag else "dynamic" for flag in (each.static_input, each.static_output))
        lines.append(
            f"| {each.conditioning} | {each.generation} | {stored} | {fixed} | {each.architecture} "
            f"| {row.parameters:,} | {row.ratio:.2f} | {row.flops:,} |"
        )
    return "\n".join(lines)
