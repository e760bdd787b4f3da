"""The graph network: against dense matrices, whatever the order of nodes and the company in the batch."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("torch_geometric")

from etude.nas.aiop import GraphBatch, GraphPredictor, NodeEmbedding, nasbench201, transnas_micro


@pytest.fixture(scope="module")
def graphs():
    return [
        nasbench201((0, 2, 3, 2, 3, 1), units=1),
        transnas_micro((1, 3, 0, 2, 1, 3), units=1),
        transnas_micro((3, 3, 3, 0, 0, 0), modules="1", units=1),
    ]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GraphPredictor().double()


def dense(model, graph):
    """The equations with an adjacency matrix, node by node in the embedding."""
    e, rows = model.embedding, []
    divisors = torch.tensor([256.0, 256, 256, 256, 512, 512], dtype=torch.float64)
    for node in range(len(graph)):
        shape = e.shape(graph.shape[node].double() / divisors)
        if graph.weighted[node]:
            sizes = [e.kernel.weight[int(size)] for size in graph.kernel[node]]
            rows.append(
                torch.cat([e.weighted.weight[graph.op[node]], shape, *sizes, e.bias(graph.bias[node].double())])
            )
        else:
            rows.append(torch.cat([e.regular.weight[graph.op[node]], shape]))
    h = torch.stack(rows)
    a = torch.zeros(len(graph), len(graph), dtype=torch.float64)
    a[graph.edge_index[1], graph.edge_index[0]] = 1
    for layer in model.layers:
        h = torch.tanh(h @ layer.lin_root.weight.T + (a @ h) @ layer.lin_rel.weight.T + layer.lin_rel.bias)
    return model.head(h.mean(0)).squeeze()


def as_double(batch):
    return replace(batch, shape=batch.shape.double(), bias=batch.bias.double())


def test_predictions_equal_those_of_dense_matrices(model, graphs):
    found = model(as_double(GraphBatch.of(graphs)))
    expected = torch.stack([dense(model, graph) for graph in graphs])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_mixed_batch_equals_one_by_one(model, graphs):
    together = model(as_double(GraphBatch.of(graphs)))
    apart = torch.cat([model(as_double(GraphBatch.of([graph]))) for graph in graphs])
    torch.testing.assert_close(together, apart, rtol=1e-12, atol=1e-12)


def test_the_order_of_nodes_does_not_matter(model, graphs):
    for graph in graphs:
        order = torch.randperm(len(graph), generator=torch.Generator().manual_seed(1))
        place = torch.argsort(order)
        fields = {name: getattr(graph, name)[order] for name in ("op", "shape", "kernel", "bias", "weighted")}
        shuffled = replace(graph, edge_index=place[graph.edge_index], **fields)
        one, two = (model(as_double(GraphBatch.of([g]))) for g in (graph, shuffled))
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6)


def test_edges_are_directed(model, graphs):
    graph = graphs[0]
    turned = replace(graph, edge_index=graph.edge_index.flip(0))
    one, two = (model(as_double(GraphBatch.of([g]))) for g in (graph, turned))
    assert not torch.allclose(one, two)


def test_a_graph_without_edges_is_survived(model, graphs):
    bare = replace(graphs[0], edge_index=torch.empty(2, 0, dtype=torch.int64))
    assert torch.isfinite(model(as_double(GraphBatch.of([bare])))).all()


def test_the_base_has_the_parameters_of_the_paper():
    model = GraphPredictor()
    embedding = 32 * 24 + 32 * 14 + 8 * 4 + (6 * 8 + 8) + (2 * 2 + 2)
    assert sum(p.numel() for p in model.embedding.parameters()) == embedding
    expected = embedding + 6 * (2 * 32 * 32 + 32) + 4 * (32 * 32 + 32) + 33
    assert sum(p.numel() for p in model.parameters()) == expected


def test_kernels_above_seven_share_an_embedding(model, graphs):
    wide = [replace(graphs[0], kernel=torch.where(graphs[0].kernel == 3, size, graphs[0].kernel)) for size in (7, 16)]
    one, two = (model(as_double(GraphBatch.of([g]))) for g in wide)
    assert torch.equal(one, two)


def test_another_layer_and_pooling_fit_in(graphs):
    model = GraphPredictor(24, 2, conv="SAGEConv", pool="max")
    assert model(GraphBatch.of(graphs)).shape == (3,)


def test_weights_survive_saving_and_those_of_another_architecture_are_refused(tmp_path, graphs):
    model = GraphPredictor(24, 2)
    model.save_pretrained(tmp_path)
    read = GraphPredictor.from_pretrained(tmp_path)
    batch = GraphBatch.of(graphs)
    assert torch.equal(read(batch), model(batch))
    with pytest.raises(ValueError, match=r"another architecture than this GraphPredictor: .* is .*, expected"):
        GraphPredictor(32, 2).load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match=r"another architecture than this GraphPredictor: it lacks layers.2"):
        GraphPredictor(24, 3).load_state_dict(model.state_dict())


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: NodeEmbedding(18), "dim must exceed 18, .* got 18"),
        (lambda: GraphPredictor(layers=0), "layers must be positive, got 0"),
        (lambda: GraphPredictor(pool="median"), "pool must be one of mean, sum, max, got 'median'"),
        (lambda: GraphPredictor(conv="NoConv"), "conv must name a layer of torch_geometric.nn"),
    ],
)
def test_bad_settings_are_refused(call, text):
    with pytest.raises(ValueError, match=text):
        call()
