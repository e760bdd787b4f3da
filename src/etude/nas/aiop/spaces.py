"""Computation graphs of the cells and skeletons of public benchmark spaces, from the keys of their tables.

NAS-Bench-201 (Dong & Yang, 2020), TransNAS-Bench-101 (Duan et al., 2021), NAS-Bench-101 (Ying et al., 2019). Layouts
were checked by counting: parameters of a graph with its true repeats agree with the published ones to the last digit,
up to one constant a task, that of the task's head.

    graph = nasbench201((0, 2, 3, 2, 3, 1))             # an operation for each edge of the cell
    graph = transnas_micro((1, 0, 0, 2, 2, 3))

Edges that lie on no path from a cell's input to its output do nothing and are left out, unless `keep_dangling` asks for
them (published parameter counts include them). A cell without any path gives the graph that is cut there: a node "zero"
stands for its output.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from etude.nas.aiop.graph import VOCABULARY, WEIGHTED, ComputeGraph, count_multiply_adds

__all__ = ["graph_from_cell", "is_connected", "nasbench101", "nasbench201", "prune", "transnas_macro", "transnas_micro"]

_EDGES = {
    "nasbench201": ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)),
    "transnas_micro": ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)),
}
_OPS = {
    "nasbench201": ("skip", "none", "conv3x3", "conv1x1", "avgpool"),
    "transnas_micro": ("none", "skip", "conv1x1", "conv3x3"),
}


@dataclass(frozen=True)
class _Feature:
    """A tensor of the network: the node that makes it, its height, width and channels."""

    node: int
    h: int
    w: int
    c: int


class _Builder:
    """Collects nodes and edges in the order of computation."""

    def __init__(self, size: int):
        self.rows: list[tuple[int, tuple[int, ...], tuple[int, int], int]] = []
        self.edges: list[tuple[int, int]] = []
        self.image = self.add("input", [], (size, size, 3))

    def add(
        self, word: str, inputs: Sequence[_Feature], out: tuple[int, int, int], kernel: int = 0, bias: bool = False
    ) -> _Feature:
        h, w, c = out
        h_in, w_in, c_in = (inputs[0].h, inputs[0].w, inputs[0].c) if inputs else out
        if word == "concat":
            c_in = sum(feature.c for feature in inputs)
        node = len(self.rows)
        self.rows.append((VOCABULARY.index(word), (h_in, h, w_in, w, c_in, c), (kernel, kernel), int(bias)))
        self.edges += [(feature.node, node) for feature in inputs]
        return _Feature(node, h, w, c)

    def same(self, word: str, x: _Feature) -> _Feature:
        return self.add(word, [x], (x.h, x.w, x.c))

    def conv(self, x: _Feature, c: int, kernel: int, stride: int = 1, order: str = "relu conv bn") -> _Feature:
        """A convolution with "same" padding among the operations that `order` names."""
        for part in order.split():
            if part == "conv":
                x = self.add("conv", [x], (-(-x.h // stride), -(-x.w // stride), c), kernel)
            else:
                x = self.same({"bn": "batchnorm"}.get(part, part), x)
        return x

    def total(self, parts: Sequence[_Feature]) -> _Feature:
        return parts[0] if len(parts) == 1 else self.add("add", parts, (parts[0].h, parts[0].w, parts[0].c))

    def graph(self, x: _Feature, num_classes: int, name: str) -> ComputeGraph:
        """Global pooling, a linear layer, the output, and everything as tensors."""
        x = self.add("mean", [x], (1, 1, x.c))
        x = self.add("matmul", [x], (1, 1, num_classes), bias=True)
        self.same("output", x)
        op = torch.tensor([row[0] for row in self.rows])
        weighted = torch.tensor([row[0] in WEIGHTED for row in self.rows])
        biased = torch.tensor([row[3] for row in self.rows])
        graph = ComputeGraph(
            op=op,
            shape=torch.tensor([row[1] for row in self.rows], dtype=torch.float32),
            kernel=torch.tensor([row[2] for row in self.rows]),
            bias=torch.stack([1 - biased, biased], dim=1).float() * weighted[:, None],
            weighted=weighted,
            edge_index=torch.tensor(self.edges).T.contiguous(),
            name=name,
        )
        object.__setattr__(graph, "flops", float(count_multiply_adds(graph)))
        return graph


def _live(ops: Sequence[int], space: str) -> list[bool]:
    """Which edges of a cell of four nodes carry something from node 0 to node 3."""
    none, edges = _OPS[space].index("none"), _EDGES[space]
    there = [(a, b) for (a, b), op in zip(edges, ops) if op != none]
    forward, backward = {0}, {3}
    for a, b in sorted(there):
        if a in forward:
            forward.add(b)
    for a, b in sorted(there, reverse=True):
        if b in backward:
            backward.add(a)
    return [(a, b) in there and a in forward and b in backward for a, b in edges]


def _check_ops(ops: Sequence[int], space: str) -> None:
    if space not in _EDGES:
        raise ValueError(f"space must be one of {', '.join(_EDGES)}, got {space!r}")
    if len(ops) != 6 or any(op not in range(len(_OPS[space])) for op in ops):
        raise ValueError(f"a cell of {space} is 6 codes in 0..{len(_OPS[space]) - 1}, got {tuple(ops)}")


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be positive, got {value}")


def prune(ops: Sequence[int], space: str = "transnas_micro") -> tuple[int, ...]:
    """The canonical key of a cell: equal for cells that compute the same function of the same weights.

    Edges on no path from input to output become "none", and nodes 1 and 2 take the order of the smaller key where
    nothing runs between them. Of the 711 keys in the TransNAS micro table 385 differ so. A split into
    training and test cells must respect these groups, else the same network stands on both sides.

    Args:
        ops: six codes, as in the table.
        space: "transnas_micro" or "nasbench201".
    """
    _check_ops(ops, space)
    edges, none = _EDGES[space], _OPS[space].index("none")
    kept = tuple(op if live else none for op, live in zip(ops, _live(ops, space)))
    if kept[edges.index((1, 2))] != none:
        return kept
    swap = {1: 2, 2: 1}
    by_edge = dict(zip(edges, kept))
    swapped = tuple(none if edge == (1, 2) else by_edge[swap.get(edge[0], edge[0]), swap.get(edge[1], edge[1])]
                    for edge in edges)  # fmt: skip
    return min(kept, swapped)


def is_connected(ops: Sequence[int], space: str = "transnas_micro") -> bool:
    """Whether any path leads through the cell."""
    _check_ops(ops, space)
    return any(_live(ops, space))


def _cell(
    builder: _Builder, x: _Feature, ops: Sequence[int], space: str, *, c: int, stride: int, keep_dangling: bool
) -> _Feature:
    """A cell of four nodes, each the sum of the edges that enter it; edges that leave node 0 change size and width."""
    words, edges = _OPS[space], _EDGES[space]
    live = [words[op] != "none" for op in ops] if keep_dangling else _live(ops, space)
    inner = (-(-x.h // stride), -(-x.w // stride), c)
    nodes = {0: x}

    def edge(source: _Feature, word: str, first: bool) -> _Feature:
        if word == "skip":
            changes = first and (stride > 1 or c != x.c)
            return builder.conv(source, c, 1, stride) if changes else builder.same("identity", source)
        if word == "avgpool":
            return builder.same("avgpool", source)
        return builder.conv(source, c, int(word[-1]), stride if first else 1)

    for node in (1, 2, 3):
        incoming = [(a, words[op]) for (a, b), op, alive in zip(edges, ops, live) if b == node and alive]
        parts = [edge(nodes[a], word, a == 0) for a, word in incoming]
        needed = node == 3 or any(a == node and alive for (a, _), alive in zip(edges, live))
        if parts:
            nodes[node] = builder.total(parts)
        elif needed:
            nodes[node] = builder.add("zero", [], inner)
    return nodes[3]


def nasbench201(
    ops: Sequence[int], *, units: int = 5, size: int = 32, num_classes: int = 10, keep_dangling: bool = False
) -> ComputeGraph:
    """The network of a NAS-Bench-201 cell: three stages of 16, 32 and 64 channels with residual blocks between.

    Args:
        ops: codes of the edges 0>1, 0>2, 0>3, 1>2, 1>3, 2>3: 0 skip, 1 none, 2 conv3x3, 3 conv1x1, 4 avgpool3x3.
        units: cells a stage; the benchmark has 5.
        size: height and width of the image. num_classes: outputs.
        keep_dangling: keeps edges that lead nowhere.

    Raises:
        ValueError: if `ops` is no such cell or a count is not positive.
    """
    _check_ops(ops, "nasbench201")
    _check_counts(units=units, size=size, num_classes=num_classes)
    b = _Builder(size)
    x = b.conv(b.image, 16, 3, order="conv bn")
    for c in (16, 32, 64):
        if c > 16:
            main = b.conv(b.conv(x, c, 3, 2), c, 3)
            pooled = b.add("avgpool", [x], (main.h, main.w, x.c))
            x = b.total([b.conv(pooled, c, 1, order="conv"), main])
        for _ in range(units):
            x = _cell(b, x, ops, "nasbench201", c=c, stride=1, keep_dangling=keep_dangling)
    return b.graph(b.same("relu", b.same("batchnorm", x)), num_classes, f"nasbench201 {tuple(ops)}")


def _stem(size: int) -> tuple[_Builder, _Feature]:
    b = _Builder(size)
    return b, b.conv(b.conv(b.image, 32, 3, 2, order="conv bn relu"), 64, 3, 2, order="conv bn")


def transnas_micro(
    ops: Sequence[int],
    *,
    modules: str = "41414",
    units: int = 2,
    size: int = 256,
    num_classes: int = 75,
    keep_dangling: bool = False,
) -> ComputeGraph:
    """The network of a TransNAS-Bench-101 micro cell.

    Args:
        ops: codes of the edges 0>1, 0>2, 1>2, 0>3, 1>3, 2>3: 0 none, 1 skip, 2 conv1x1, 3 conv3x3.
        modules: a digit a module: 1 keeps the size, 2 doubles the channels, 3 halves height and width, 4 both, in its
            first cell.
        units: cells a module; the benchmark has 2.
        size: height and width of the image. num_classes: outputs of the classifier that stands for any task's head.
        keep_dangling: keeps edges that lead nowhere.

    Raises:
        ValueError: if `ops` is no such cell, a digit is none of 1 to 4, or a count is not positive.
    """
    _check_ops(ops, "transnas_micro")
    _check_counts(units=units, size=size, num_classes=num_classes)
    b, x = _stem(size)
    for digit in _digits(modules):
        for unit in range(units):
            change = digit if unit == 0 else 1
            x = _cell(
                b, x, ops, "transnas_micro", c=x.c * (2 if change in (2, 4) else 1), stride=2 if change > 2 else 1,
                keep_dangling=keep_dangling,
            )  # fmt: skip
    return b.graph(x, num_classes, f"transnas_micro {tuple(ops)}")


def transnas_macro(digits: Sequence[int], *, units: int = 2, size: int = 256, num_classes: int = 75) -> ComputeGraph:
    """The network of a TransNAS-Bench-101 macro skeleton of ResNet's basic blocks.

    Published parameter counts do not tell where the ReLUs of a block stand: they are put where ResNet has them.

    Args:
        digits: one a module, as in `transnas_micro`; zeros at the end fill up the key.
        units: blocks a module; the benchmark has 2.
        size: height and width of the image. num_classes: outputs of the classifier that stands for any task's head.

    Raises:
        ValueError: if there is no digit, one is none of 1 to 4, or a count is not positive.
    """
    _check_counts(units=units, size=size, num_classes=num_classes)
    b, x = _stem(size)
    for digit in _digits(digits):
        for unit in range(units):
            change = digit if unit == 0 else 1
            c, stride = x.c * (2 if change in (2, 4) else 1), 2 if change > 2 else 1
            main = b.conv(b.conv(x, c, 3, stride, order="conv bn relu"), c, 3, order="conv bn")
            shortcut = b.same("identity", x) if change == 1 else b.conv(x, c, 1, stride, order="conv bn")
            x = b.same("relu", b.total([main, shortcut]))
    return b.graph(x, num_classes, f"transnas_macro {tuple(digits)}")


def _digits(modules: str | Sequence[int]) -> list[int]:
    codes = [int(digit) for digit in modules]
    while codes and codes[-1] == 0:
        codes.pop()
    if not codes or any(digit not in (1, 2, 3, 4) for digit in codes):
        raise ValueError(f"modules are digits 1 to 4, with zeros at the end only, got {modules!r}")
    return codes


def nasbench101(
    matrix: Sequence[Sequence[int]], ops: Sequence[int], *, units: int = 3, size: int = 32, num_classes: int = 10
) -> ComputeGraph:
    """The network of a NAS-Bench-101 cell: three stacks of 128, 256 and 512 channels with max pooling between.

    Args:
        matrix: upper triangular adjacency between vertices: the first is the input, the last the output. Vertices on
            no path between them are left out, as the benchmark does.
        ops: a code for each vertex: 0 input, 1 output, 2 maxpool3x3, 3 conv1x1, 4 conv3x3 (the order in which the
            table's parameter counts come out right).
        units: cells a stack; the benchmark has 3.
        size: height and width of the image. num_classes: outputs.

    Raises:
        ValueError: if the matrix is not square and upper triangular, the operations do not fit it, no path leads
            through, or a count is not positive.
    """
    _check_counts(units=units, size=size, num_classes=num_classes)
    adjacency = torch.as_tensor(matrix)
    n = len(ops)
    if adjacency.shape != (n, n) or bool(adjacency.tril().any()) or bool(((adjacency != 0) & (adjacency != 1)).any()):
        raise ValueError(f"the matrix must be 0/1, upper triangular and {n} x {n}, got {adjacency.tolist()}")
    if ops[0] != 0 or ops[-1] != 1 or any(op not in (2, 3, 4) for op in ops[1:-1]):
        raise ValueError(f"the codes must be 0, then 2 to 4, then 1, got {tuple(ops)}")
    reach = torch.linalg.matrix_power(adjacency.double() + torch.eye(n, dtype=torch.float64), n) > 0
    kept = torch.nonzero(reach[0] & reach[:, -1]).flatten().tolist()
    if not kept:
        raise ValueError(f"no path leads from input to output of {adjacency.tolist()}")
    adjacency, codes = adjacency[kept][:, kept], [ops[vertex] for vertex in kept]
    b = _Builder(size)
    x = b.conv(b.image, 128, 3, order="conv bn relu")
    for stack in range(3):
        if stack:
            x = b.add("maxpool", [x], (x.h // 2, x.w // 2, x.c))
        for unit in range(units):
            x = _cell101(b, x, adjacency, codes, x.c * 2 if stack and not unit else x.c)
    return b.graph(x, num_classes, f"nasbench101 {tuple(codes)}")


def _vertex_channels(adjacency: torch.Tensor, c_in: int, c_out: int) -> list[int]:
    """Channels of each vertex: those that enter the output share its channels, others are as wide as they must be."""
    n = len(adjacency)
    channels = [0] * n
    channels[0], channels[-1] = c_in, c_out
    if n == 2:
        return channels
    final = [vertex for vertex in range(1, n - 1) if adjacency[vertex, -1]]
    share, rest = divmod(c_out, len(final))
    for place, vertex in enumerate(final):
        channels[vertex] = share + (place < rest)
    for vertex in range(n - 3, 0, -1):
        if not adjacency[vertex, -1]:
            channels[vertex] = max(channels[later] for later in range(vertex + 1, n - 1) if adjacency[vertex, later])
    return channels


def _cell101(b: _Builder, x: _Feature, adjacency: torch.Tensor, codes: Sequence[int], c: int) -> _Feature:
    n = len(codes)
    channels = _vertex_channels(adjacency, x.c, c)
    project = partial(b.conv, kernel=1, order="conv bn relu")
    made = {0: x}
    for vertex in range(1, n - 1):
        wide = channels[vertex]
        # An inner vertex wider than this one gives it its first channels: a slice, which is no operation.
        parts = [_Feature(made[a].node, x.h, x.w, wide) for a in range(1, vertex) if adjacency[a, vertex]]
        if adjacency[0, vertex]:
            parts.append(project(x, wide))
        entered = b.total(parts)
        if codes[vertex] == 2:
            made[vertex] = b.same("maxpool", entered)
        else:
            made[vertex] = b.conv(entered, wide, 3 if codes[vertex] == 4 else 1, order="conv bn relu")
    final = [made[a] for a in range(1, n - 1) if adjacency[a, -1]]
    shortcut = [project(x, c)] if adjacency[0, -1] else []
    if not final:
        return shortcut[0]
    joined = final[0] if len(final) == 1 else b.add("concat", final, (x.h, x.w, c))
    return b.total([joined, *shortcut])


def graph_from_cell(space: str, key: Sequence[int], **options: int) -> ComputeGraph:
    """The graph of an architecture of a benchmark, from its key in the published table.

    Args:
        space: "nasbench101" (49 entries of the matrix, then 7 codes), "nasbench201", "transnas_micro" or
            "transnas_macro".
        key: the codes.
        options: those of the space's own function, such as `units`.

    Raises:
        ValueError: if there is no such space or the key is none of it.
    """
    if space == "nasbench101":
        if len(key) != 56:
            raise ValueError(f"a key of nasbench101 is 49 entries of the matrix and 7 codes, got {len(key)} numbers")
        return nasbench101([key[row : row + 7] for row in range(0, 49, 7)], key[49:], **options)
    builders: dict[str, Any] = {
        "nasbench201": nasbench201, "transnas_micro": transnas_micro, "transnas_macro": transnas_macro,
    }  # fmt: skip
    if space not in builders:
        raise ValueError(f"space must be one of nasbench101, {', '.join(builders)}, got {space!r}")
    return builders[space](key, **options)
