"""Graphs of benchmark cells: parameters as published, and sound as graphs."""

import itertools

import networkx as nx
import numpy as np
import pytest
import torch
from torch import nn

from etude.data import nas_tables
from etude.nas.aiop import (
    VOCABULARY,
    count_parameters,
    graph_from_cell,
    graph_from_module,
    is_connected,
    nasbench101,
    nasbench201,
    prune,
    transnas_macro,
    transnas_micro,
)


def table(space, task, every=1):
    try:
        full = nas_tables.load(space, task)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    return full.rows(range(0, len(full), every))


def counted(space, keys, **options):
    return np.array([count_parameters(graph_from_cell(space, key, **options)) for key in keys])


def test_nasbench201_parameters_are_those_of_the_formula():
    cells = list(itertools.islice(itertools.product(range(5), repeat=6), 0, None, 2111))
    expected = [73_306 + 243_040 * cell.count(2) + 28_000 * cell.count(3) for cell in cells]
    assert counted("nasbench201", cells, keep_dangling=True).tolist() == expected


@pytest.mark.parametrize(("space", "every"), [("nasbench201", 90), ("nasbench101", 40)])
def test_parameters_equal_the_published_ones(space, every):
    found = table(space, "cifar10", every)
    options = {"keep_dangling": True} if space == "nasbench201" else {}
    assert np.array_equal(counted(space, found.keys, **options), found.params)


@pytest.mark.parametrize("task", ["class_object", "segmentsemantic", "jigsaw"])
def test_micro_parameters_differ_from_the_published_ones_by_one_constant_a_task(task):
    found = table("transnas_micro", task, 90)
    difference = found.params - counted("transnas_micro", found.keys, keep_dangling=True)
    assert np.ptp(difference) == 0
    if task == "class_object":  # 100 classes instead of 75
        assert difference[0] == 25 * 513


@pytest.mark.parametrize("task", ["class_object", "jigsaw"])
def test_macro_parameters_differ_by_what_is_linear_in_the_final_width(task):
    found = table("transnas_macro", task, 60)
    graphs = [transnas_macro(key) for key in found.keys]
    difference = found.params - [count_parameters(graph) for graph in graphs]
    width = np.array([graph.shape[-2, 4].item() for graph in graphs])
    line = np.polynomial.Polynomial.fit(width, difference, 1)
    assert np.abs(line(width) - difference).max() < 1e-4
    if task == "class_object":
        assert line.convert().coef == pytest.approx([25.0, 25.0])


def test_an_edge_of_a_micro_cell_adds_the_weights_that_the_layout_says():
    none = count_parameters(transnas_micro((0,) * 6, keep_dangling=True))

    def added(edge, op):
        cell = [0] * 6
        cell[edge] = op
        return count_parameters(transnas_micro(cell, keep_dangling=True)) - none

    # Widths of the five modules, the first of which doubles 64.
    widths = [128, 128, 256, 256, 512]
    bn = sum(2 * 2 * c for c in widths)
    inner = 2 * sum(c * c for c in widths)
    assert inner == 851_968
    for op, area in ((2, 1), (3, 9)):
        assert added(2, op) == area * inner + bn
        assert added(4, op) == area * inner + bn
    assert added(4, 1) == 0
    # The second unit of a module leaves width and size alone: its skip has no weights.
    assert [added(0, op) / 1e6 for op in (1, 2, 3)] == pytest.approx([0.174, 0.685, 6.124], abs=1e-3)


def sound(graph):
    g = nx.DiGraph(graph.edge_index.T.tolist())
    g.add_nodes_from(range(len(graph)))
    assert nx.is_directed_acyclic_graph(g)
    assert graph.words.count("input") == graph.words.count("output") == 1
    for source, target in graph.edge_index.T.tolist():
        assert graph.shape[source, [1, 3]].tolist() == graph.shape[target, [0, 2]].tolist()
        if graph.words[target] not in ("concat", "add"):
            # NAS-Bench-101 cuts channels off between vertices.
            assert graph.shape[source, 5] >= graph.shape[target, 4]
    return g


CELLS = [
    ("nasbench201", (2, 4, 3, 0, 2, 1)),
    ("nasbench201", (2, 1, 1, 1, 2, 3)),
    ("transnas_micro", (1, 3, 0, 2, 1, 3)),
    ("transnas_micro", (3, 1, 0, 0, 0, 2)),
    ("transnas_macro", (1, 4, 2, 3, 0, 0)),
]


@pytest.mark.parametrize(("space", "key"), CELLS)
def test_graphs_are_acyclic_connected_and_fit_along_their_edges(space, key):
    graph = graph_from_cell(space, key, units=1)
    g = sound(graph)
    start, end = graph.words.index("input"), graph.words.index("output")
    assert nx.descendants(g, start) | {start} == set(g) == nx.ancestors(g, end) | {end}
    assert graph.connected()
    assert "zero" not in graph.words


def test_nasbench101_graphs_are_sound():
    matrix = [[0, 1, 1, 0, 1], [0, 0, 1, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 0, 1], [0] * 5]
    graph = nasbench101(matrix, [0, 4, 2, 3, 1])
    sound(graph)
    assert graph.connected()


def test_a_cut_cell_gives_the_cut_graph():
    graph = transnas_micro((3, 3, 3, 0, 0, 0), units=1)
    sound(graph)
    assert not graph.connected()
    assert "zero" in graph.words
    assert not is_connected((3, 3, 3, 0, 0, 0))


def test_pruned_keys_drop_dead_edges_and_swap_alike_nodes():
    assert prune((3, 0, 0, 2, 0, 0)) == (0, 0, 0, 2, 0, 0)
    assert prune((2, 3, 0, 1, 0, 2)) == prune((3, 0, 0, 1, 2, 0)) == (0, 3, 0, 1, 0, 2)
    assert prune((2, 3, 1, 0, 0, 2)) == (2, 3, 1, 0, 0, 2)
    assert prune((1, 3, 0, 0, 2, 2)) == prune((3, 1, 0, 0, 2, 2))
    assert prune((1, 3, 0, 0, 2, 3)) != prune((3, 1, 0, 0, 2, 3))


def test_pruning_keeps_the_graph():
    generator = np.random.default_rng(0)
    for cell in generator.integers(0, 4, (6, 6)).tolist():
        if is_connected(cell):
            assert isomorphic(transnas_micro(cell, units=1), transnas_micro(prune(cell), units=1))


def test_the_table_has_385_pruned_cells_and_20_cut_ones():
    keys = table("transnas_micro", "class_object").keys
    assert len({prune(key) for key in keys}) == 385
    assert sum(not is_connected(key) for key in keys) == 20


def isomorphic(first, second):
    def labelled(graph):
        g = nx.DiGraph()
        for node in range(len(graph)):
            bias = graph.bias[node].tolist()
            g.add_node(node, what=(graph.words[node], *graph.shape[node].tolist(), *graph.kernel[node].tolist(), *bias))
        g.add_edges_from(graph.edge_index.T.tolist())
        return g

    return nx.is_isomorphic(labelled(first), labelled(second), node_match=lambda a, b: a["what"] == b["what"])


class Cell(nn.Module):
    """A TransNAS micro cell, written down anew."""

    def __init__(self, ops, c_in, c, stride):
        super().__init__()
        self.edges = nn.ModuleDict()
        for (a, b), op in zip(((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)), ops):
            width, step = (c_in, stride) if a == 0 else (c, 1)
            if op == 1 and step == 1 and width == c:
                self.edges[f"{a}{b}"] = nn.Identity()
            elif op:
                k = 3 if op == 3 else 1
                conv = nn.Conv2d(width, c, k, step, k // 2, bias=False)
                self.edges[f"{a}{b}"] = nn.Sequential(nn.ReLU(), conv, nn.BatchNorm2d(c))

    def forward(self, x):
        nodes = {0: x}
        for b in (1, 2, 3):
            for a in range(b):
                if f"{a}{b}" in self.edges and a in nodes:
                    value = self.edges[f"{a}{b}"](nodes[a])
                    nodes[b] = value if b not in nodes else nodes[b] + value
        return nodes[3]


def micro(ops):
    layers = [nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    layers += [nn.Conv2d(32, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64)]
    c = 64
    for digit in (4, 1, 4, 1, 4):
        wide = 2 * c if digit == 4 else c
        layers.append(Cell(ops, c, wide, 2 if digit == 4 else 1))
        c = wide
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 75))


@pytest.mark.parametrize("ops", [(1, 3, 0, 2, 1, 2), (3, 0, 1, 1, 0, 2)])
def test_a_traced_network_is_isomorphic_to_the_graph_of_its_cell(ops):
    network = micro(ops)
    traced = graph_from_module(network, torch.zeros(1, 3, 64, 64))
    built = transnas_micro(ops, units=1, size=64)
    assert isomorphic(traced, built)
    assert count_parameters(built) == sum(p.numel() for p in network.parameters())
    assert traced.flops == pytest.approx(built.flops)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: nasbench201((0, 1, 2)), "6 codes in 0..4, got"),
        (lambda: transnas_micro((0, 1, 2, 3, 4, 0)), "6 codes in 0..3"),
        (lambda: transnas_macro((0, 0)), "digits 1 to 4"),
        (lambda: transnas_macro((1, 0, 2)), "digits 1 to 4"),
        (lambda: nasbench201((0,) * 6, units=0), "units must be positive, got 0"),
        (lambda: graph_from_cell("darts", (0,)), "space must be one of"),
        (lambda: graph_from_cell("nasbench101", (0,)), "49 entries of the matrix and 7 codes, got 1"),
        (lambda: prune((0,) * 6, "transnas_macro"), "space must be one of"),
    ],
)
def test_a_key_of_no_such_space_is_refused(call, text):
    with pytest.raises(ValueError, match=text):
        call()


def test_words_of_built_graphs_are_in_the_vocabulary_and_known():
    for space, key in CELLS:
        assert set(graph_from_cell(space, key, units=1).words) <= set(VOCABULARY) - {"oov"}
