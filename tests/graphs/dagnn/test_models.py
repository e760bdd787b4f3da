"""The networks: parameter counts of the paper, limits, symmetries, sparse and dense features alike."""

import inspect

import pytest
import torch

from etude.graphs.dagnn import APPNP, DAGNN, GCN, DecoupledGNN, Propagator, SparseMatrix, normalize_features

N, F, C = 19, 11, 4
MODELS = {
    "dagnn": lambda: DAGNN(F, C, hidden_dim=6, num_hops=3),
    "softmax": lambda: DAGNN(F, C, hidden_dim=6, num_hops=3, gate="softmax"),
    "batch": lambda: DAGNN(F, C, hidden_dim=6, num_hops=3, num_layers=3, norm="batch", input_dropout=False),
    "decoupled": lambda: DecoupledGNN(F, C, hidden_dim=6, num_hops=3),
    "appnp": lambda: APPNP(F, C, hidden_dim=6, num_hops=3),
    "gcn": lambda: GCN(F, C, hidden_dim=6, depth=3),
    "residual": lambda: GCN(F, C, hidden_dim=6, depth=4, residual=True),
}


def made(name, *, training=False):
    torch.manual_seed(4)
    return MODELS[name]().double().train(training)


def features(num_nodes=N, seed=5):
    x = torch.rand(num_nodes, F, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x * (x > 0.6)


def size(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_parameter_counts_are_those_of_the_paper():
    assert size(DAGNN(1433, 7)) == 92_239
    assert size(DAGNN(1433, 7, num_hops=100)) == 92_239
    arxiv = DAGNN(128, 40, hidden_dim=256, num_hops=16, dropout=0.2, norm="batch", input_dropout=False)
    assert size(arxiv) == 43_857


def test_dagnn_gates_the_hops_of_what_its_mlp_makes(edges, dense):
    model, x, edge_index = made("dagnn"), features(), edges(N, 20)
    first, second = model.mlp.layers
    hop = torch.relu(x @ first.weight.t() + first.bias) @ second.weight.t() + second.bias
    out = torch.zeros_like(hop)
    for _ in range(4):
        out = out + hop * torch.sigmoid(model.propagation.proj(hop))
        hop = dense(edge_index, N) @ hop
    torch.testing.assert_close(model(x, edge_index), out, rtol=0, atol=1e-12)


def test_the_hop_gate_last_makes_dagnn_the_decoupled_model(edges, dense):
    x, edge_index, decoupled = features(), edges(N, 20), made("decoupled")
    torch.manual_seed(4)
    last = DAGNN(F, C, hidden_dim=6, num_hops=3, gate="last").double().eval()
    assert torch.equal(last(x, edge_index), decoupled(x, edge_index))
    expected = torch.linalg.matrix_power(dense(edge_index, N), 3) @ decoupled.mlp(x)
    torch.testing.assert_close(decoupled(x, edge_index), expected, rtol=0, atol=1e-12)
    assert size(decoupled) == size(made("dagnn")) - C - 1


def test_a_gcn_equals_its_layers_written_out(edges, dense):
    model, x, edge_index = made("gcn"), features(), edges(N, 20)
    for bias in model.biases:
        torch.nn.init.normal_(bias)
    hidden, matrix = x, dense(edge_index, N)
    for layer, bias in zip(model.layers, model.biases):
        entering = hidden
        hidden = matrix @ entering @ layer.weight.t() + bias
        hidden = hidden.relu() if layer is not model.layers[-1] else hidden
    logits, last_hidden = model(x, edge_index, return_hidden=True)
    torch.testing.assert_close(logits, hidden, rtol=0, atol=1e-12)
    torch.testing.assert_close(last_hidden, entering, rtol=0, atol=1e-12)


def test_a_residual_gcn_adds_the_input_of_inner_layers_only(edges, dense):
    model, x, edge_index = made("residual"), features(), edges(N, 20)
    matrix, hidden = dense(edge_index, N), features()
    for place, layer in enumerate(model.layers):
        passed = matrix @ hidden @ layer.weight.t()
        hidden = passed if place == 3 else passed.relu() + (hidden if place else 0)
    torch.testing.assert_close(model(x, edge_index), hidden, rtol=0, atol=1e-12)


def test_a_shallow_gcn_has_pygs_layer(edges):
    pyg = pytest.importorskip("torch_geometric.nn")
    model, x, edge_index = GCN(F, C, depth=1).double().eval(), features(), edges(N, 20)
    layer = pyg.GCNConv(F, C).double()
    layer.load_state_dict({"lin.weight": model.layers[0].weight, "bias": model.biases[0]})
    torch.testing.assert_close(model(x, edge_index), layer(x, edge_index), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_sparse_features_give_what_dense_ones_give(edges, name):
    model, x, edge_index = made(name), features(), edges(N, 20)
    expected = model(x, edge_index)
    sparse = x.to_sparse_csr()
    for given in (sparse, SparseMatrix(sparse)):
        torch.testing.assert_close(model(given, edge_index), expected, rtol=0, atol=1e-12)
    gradients = []
    for given in (x, SparseMatrix(sparse)):
        model.zero_grad()
        model(given, edge_index).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for dense_gradient, sparse_gradient in zip(*gradients):
        torch.testing.assert_close(sparse_gradient, dense_gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_permuting_the_nodes_permutes_the_logits(edges, name):
    model, x, edge_index = made(name), features(), edges(N, 20)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    permuted = model(x[order], torch.argsort(order)[edge_index])
    torch.testing.assert_close(permuted, model(x, edge_index)[order], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_two_graphs_side_by_side_do_not_touch_each_other(edges, name):
    model, first, second = made(name), edges(8, 6, 1), edges(N - 8, 9, 2)
    x = features()
    union = model(x, torch.cat([first, second + 8], dim=1))
    apart = torch.cat([model(x[:8], first), model(x[8:], second)])
    torch.testing.assert_close(union, apart, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_edges_and_a_propagator_give_the_same_logits(edges, name):
    model, x, edge_index = made(name), features(), edges(N, 20)
    adj = Propagator.from_edges(edge_index, N, dtype=torch.float64)
    assert torch.equal(model(x, adj=adj), model(x, edge_index))


def test_dropout_stands_before_the_layers_and_not_between_the_hops(edges):
    model, x, edge_index = made("dagnn", training=True), features(), edges(N, 20)
    assert not torch.equal(model(x, edge_index), model(x, edge_index))
    z = torch.rand(N, C, dtype=torch.float64)
    assert torch.equal(model.propagation(z, edge_index), model.propagation(z, edge_index))
    model.mlp.input_dropout = False
    states = []
    model.mlp.layers[0].register_forward_pre_hook(lambda _, given: states.append(given[0]))
    model(x, edge_index)
    assert torch.equal(states[0], x)


def test_one_node_and_one_class_keep_their_shapes():
    model = DAGNN(F, 1, hidden_dim=3, num_hops=2).eval()
    out, gates = model(torch.rand(1, F), torch.empty(2, 0, dtype=torch.int64), return_gates=True)
    assert out.shape == (1, 1)
    assert gates.shape == (1, 3)


@pytest.mark.parametrize("name", MODELS)
def test_models_are_saved_and_loaded_through_the_hub_format(edges, tmp_path, name):
    model, x, edge_index = made(name).float(), features().float(), edges(N, 20)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(x, edge_index), model(x, edge_index))


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_models_run_and_train_under_autocast(edges, name, sparse):
    model, x, edge_index = made(name, training=True).float(), features().float(), edges(N, 20)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(x.to_sparse_csr() if sparse else x, edge_index).float().square().sum()
    loss.backward()
    assert all(bool(torch.isfinite(parameter.grad).all()) for parameter in model.parameters())
    model.eval()
    exact = model(x, edge_index)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(model(x, edge_index).float(), exact, rtol=0.05, atol=0.05)


def test_resetting_parameters_draws_new_ones():
    for name in MODELS:
        model = made(name)
        before = [parameter.clone() for parameter in model.parameters()]
        model.reset_parameters()
        assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters()))


@pytest.mark.parametrize("sparse", [False, True])
def test_normalized_rows_sum_to_one_and_zero_rows_stay_zero(sparse):
    x = features()
    x[3] = 0
    normalized = normalize_features(x.to_sparse_csr() if sparse else x)
    assert (normalized.layout == torch.sparse_csr) == sparse
    rows = normalized.to_dense()
    sums = torch.ones(N, dtype=torch.float64)
    sums[3] = 0
    torch.testing.assert_close(rows.sum(1), sums)
    torch.testing.assert_close(rows * x.sum(1, keepdim=True), x)


def test_misuse_is_refused_with_the_value(edges):
    with pytest.raises(ValueError, match=r"shape \(nodes, 11\), got \(19, 5\)"):
        made("dagnn")(torch.rand(N, 5, dtype=torch.float64), edges(N, 20))
    with pytest.raises(ValueError, match=r"must not be negative .*, got -1\.0"):
        normalize_features(torch.tensor([[1.0, -1.0]]))
    for build, message in (
        (lambda: DAGNN(F, 0), "out_dim must be at least 1, got 0"),
        (lambda: DAGNN(F, C, num_layers=0), "num_layers must be at least 1, got 0"),
        (lambda: DAGNN(F, C, dropout=1.0), r"dropout must lie in \[0, 1\), got 1.0"),
        (lambda: DAGNN(F, C, num_hops=-1), "num_hops must not be negative, got -1"),
        (lambda: inspect.unwrap(DAGNN.__init__)(DAGNN(F, C), F, C, norm="layer"), "norm must be"),
        (lambda: GCN(F, C, depth=0), "depth must be at least 1, got 0"),
        (lambda: APPNP(F, C, teleport=1.5), r"teleport must lie in \[0, 1\], got 1.5"),
        (lambda: APPNP(F, C, num_hops=-2), "num_hops must not be negative, got -2"),
    ):
        with pytest.raises(ValueError, match=message):
            build()
