"""Computation graphs: vocabulary, refusals, batches."""

from dataclasses import replace

import pytest
import torch

from etude.nas.aiop import VOCABULARY, ComputeGraph, GraphBatch, count_multiply_adds, nasbench201, op_index


@pytest.fixture(scope="module")
def graphs():
    cells = [(0, 2, 3, 2, 3, 1), (4, 0, 4, 1, 2, 0), (1, 1, 1, 1, 1, 1), (2, 2, 2, 2, 2, 2)]
    return [nasbench201(cell, units=1) for cell in cells]


def tiny(edges, n=3, **changes):
    values = {
        "op": torch.tensor([1] + [6] * (n - 2) + [2]),
        "shape": torch.ones(n, 6),
        "kernel": torch.zeros(n, 2, dtype=torch.int64),
        "bias": torch.zeros(n, 2),
        "weighted": torch.zeros(n, dtype=torch.bool),
        "edge_index": torch.tensor(edges).T,
    }
    return ComputeGraph(**(values | changes))


def test_an_operation_is_the_longest_word_in_its_name():
    found = {name: VOCABULARY[op_index(name)] for name in ("ReLU6", "PReLU", "MaxPool2d", "Hardswish", "LayerNorm")}
    assert found == {
        "ReLU6": "relu6",
        "PReLU": "relu",
        "MaxPool2d": "maxpool",
        "Hardswish": "swish",
        "LayerNorm": "oov",
    }


def test_a_cycle_is_refused_and_any_order_of_nodes_is_not():
    assert len(tiny([[0, 1], [1, 2]])) == 3
    assert tiny([[2, 1], [1, 0]]).edge_index.shape == (2, 2)
    with pytest.raises(ValueError, match="cycle"):
        tiny([[0, 1], [1, 2], [2, 0]])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"shape": torch.ones(3, 5)}, r"shape of network must have shape \(3, 6\), got \(3, 5\)"),
        ({"op": torch.tensor([1, 99, 2])}, r"op of network must lie in 0..31, got 1..99"),
        ({"edge_index": torch.tensor([[0], [3]])}, r"edge_index of network must lie in 0..2, got 0..3"),
        ({"shape": torch.full((3, 6), float("nan"))}, "shape of network must be finite"),
        ({"flops": float("nan")}, "flops of network must be a number >= 0, got nan"),
    ],
)
def test_a_graph_that_does_not_fit_together_is_refused(changes, text):
    # The message is ours where jaxtyping does not check first.
    with pytest.raises(Exception, match=f"{text}|jaxtyping|type-check|typecheck|Type"):
        tiny([[0, 1], [1, 2]], **changes)


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="at least one graph"):
        GraphBatch.of([])


def test_rows_of_a_batch_are_the_graphs_laid_out_anew(graphs):
    batch, order = GraphBatch.of(graphs), [3, 0, 0, 2]
    chosen, expected = batch[torch.tensor(order)], GraphBatch.of([graphs[row] for row in order])
    for name in ("op", "shape", "kernel", "bias", "weighted", "edge_index", "nodes", "edges"):
        assert torch.equal(getattr(chosen, name), getattr(expected, name)), name
    assert torch.equal(chosen.batch, torch.repeat_interleave(torch.arange(4), expected.nodes))


def test_multiply_adds_of_a_hand_made_layer():
    weighted = torch.tensor([False, True, False])
    shape = torch.tensor([[8.0, 8, 8, 8, 3, 3], [8, 4, 8, 4, 3, 16], [4, 4, 4, 4, 16, 16]])
    kernel = torch.tensor([[0, 0], [3, 3], [0, 0]])
    graph = tiny([[0, 1], [1, 2]], op=torch.tensor([1, 3, 2]), weighted=weighted, shape=shape, kernel=kernel)
    assert count_multiply_adds(graph) == 4 * 4 * 3 * 3 * 3 * 16
    depthwise = replace(graph, op=torch.tensor([1, 4, 2]))
    assert count_multiply_adds(depthwise) == 4 * 4 * 3 * 3 * 16
