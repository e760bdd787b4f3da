"""Propagation and its gates: against dense powers and naive sums, in the limits, and at the door."""

import inspect
import warnings

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from etude.graphs.dagnn import AdaptivePropagation, Propagator, SparseMatrix, gcn_norm, to_undirected

N, C, K = 17, 3, 4


def directed(num_nodes=N, num_edges=40, seed=3):
    return torch.randint(num_nodes, (2, num_edges), generator=torch.Generator().manual_seed(seed)).unique(dim=1)


def propagation(gate="sigmoid", *, num_hops=K, channels=C, dtype=torch.float64, **arguments):
    torch.manual_seed(1)
    return AdaptivePropagation(channels, num_hops, gate=gate, **arguments).to(dtype)


def vectors(num_nodes=N, channels=C, dtype=torch.float64):
    return torch.randn(num_nodes, channels, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)


def naive(module, z, matrix):
    """Eq. (8) node by node and hop by hop, with dense powers of P."""
    hops = [torch.linalg.matrix_power(matrix, hop) @ z for hop in range(module.num_hops + 1)]
    out, gates = torch.zeros_like(z), torch.zeros(len(z), len(hops), dtype=z.dtype)
    for node in range(len(z)):
        scores = torch.stack([hop[node] @ module.proj.weight[0] + module.proj.bias[0] for hop in hops])
        gates[node] = scores.sigmoid() if module.gate == "sigmoid" else scores.softmax(0)
        for hop, gate in zip(hops, gates[node]):
            out[node] += gate * hop[node]
    return out, gates


@pytest.mark.parametrize("kind", ["sym", "row"])
def test_gcn_norm_equals_its_definition_entry_by_entry(edges, dense, kind):
    edge_index = edges(N, 20)
    matrix = gcn_norm(edge_index, N, kind=kind, dtype=torch.float64)
    assert matrix.layout == torch.sparse_csr
    torch.testing.assert_close(matrix.to_dense(), dense(edge_index, N, kind), rtol=0, atol=1e-15)


def test_rows_are_targets_so_a_node_averages_over_its_incoming_edges():
    matrix = gcn_norm(torch.tensor([[0, 1], [2, 2]]), 3, kind="row").to_dense()
    torch.testing.assert_close(matrix, torch.tensor([[1, 0, 0], [0, 1, 0], [1 / 3, 1 / 3, 1 / 3]]))


def test_edge_weights_enter_the_matrix_and_the_degrees():
    edge_index, weight = torch.tensor([[0, 1], [1, 0]]), torch.tensor([3.0, 3.0])
    torch.testing.assert_close(gcn_norm(edge_index, 2, weight).to_dense(), torch.tensor([[0.25, 0.75], [0.75, 0.25]]))


def test_an_existing_self_loop_is_not_doubled_and_keeps_its_weight():
    loops = torch.tensor([[0, 0, 1], [0, 1, 0]])
    assert torch.equal(gcn_norm(loops, 2).to_dense(), gcn_norm(loops[:, 1:], 2).to_dense())
    heavy = gcn_norm(loops, 2, torch.tensor([3.0, 1.0, 1.0]), kind="row").to_dense()
    torch.testing.assert_close(heavy, torch.tensor([[0.75, 0.25], [0.5, 0.5]]))


def test_repeated_edges_add_up():
    repeated = gcn_norm(torch.tensor([[0, 0, 1, 1], [1, 1, 0, 0]]), 2, kind="row").to_dense()
    torch.testing.assert_close(repeated, torch.tensor([[1 / 3, 2 / 3], [2 / 3, 1 / 3]]))


def test_an_isolated_node_sees_only_itself_and_without_self_loops_nothing():
    edge_index = torch.tensor([[0, 1], [1, 0]])
    assert torch.equal(gcn_norm(edge_index, 3).to_dense()[2], torch.tensor([0.0, 0.0, 1.0]))
    assert torch.equal(gcn_norm(edge_index, 3, add_self_loops=False).to_dense()[2], torch.zeros(3))


@pytest.mark.parametrize("kind", ["sym", "row"])
def test_the_matrix_is_that_of_pyg(kind, edges):
    pyg = pytest.importorskip("torch_geometric.nn.conv.gcn_conv")
    pyg_utils = pytest.importorskip("torch_geometric.utils")
    edge_index, weight = edges(N, 20), None
    if kind == "row":
        edge_index, weight = pyg_utils.add_remaining_self_loops(edge_index, num_nodes=N)
        degree = torch.zeros(N).index_add_(0, edge_index[1], torch.ones(edge_index.shape[1]))
        weight = 1 / degree[edge_index[1]]
    else:
        edge_index, weight = pyg.gcn_norm(edge_index, num_nodes=N)
    expected = torch.zeros(N, N).index_put_((edge_index[1], edge_index[0]), weight)
    torch.testing.assert_close(gcn_norm(edges(N, 20), N, kind=kind).to_dense(), expected)


def test_to_undirected_holds_every_edge_once_in_both_directions():
    both = to_undirected(torch.tensor([[0, 2, 1], [1, 1, 2]]))
    assert both.t().tolist() == [[0, 1], [1, 0], [1, 2], [2, 1]]


@pytest.mark.parametrize("kind", ["sym", "row"])
def test_powers_equal_dense_powers_to_rounding(edges, dense, kind):
    edge_index, z = edges(50, 60), vectors(50)
    adj = Propagator.from_edges(edge_index, 50, kind=kind, dtype=torch.float64)
    matrix = dense(edge_index, 50, kind)
    for num_hops in (0, 1, 7):
        expected = torch.linalg.matrix_power(matrix, num_hops) @ z
        torch.testing.assert_close(adj.power(z, num_hops), expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(adj.hops(z, 7)[num_hops], expected, rtol=0, atol=1e-12)


def test_personalised_powers_equal_the_recursion_and_pyg(edges, dense):
    pyg = pytest.importorskip("torch_geometric.nn")
    edge_index, z = edges(N, 20), vectors()
    h, matrix = z, dense(edge_index, N)
    for _ in range(K):
        h = 0.9 * matrix @ h + 0.1 * z
    ours = Propagator.from_edges(edge_index, N, dtype=torch.float64).power(z, K, 0.1)
    torch.testing.assert_close(ours, h, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours, pyg.APPNP(K, 0.1)(z, edge_index), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["sym", "row"])
def test_gradients_of_products_and_powers_match_finite_differences(kind, edges):
    # A weighted directed graph, whose P_row differs from its transpose.
    adj = Propagator.from_edges(edges(6, 5) if kind == "sym" else directed(6, 9), 6, kind=kind, dtype=torch.float64)
    assert (adj.transposed is adj.matrix) == (kind == "sym")
    z = vectors(6, 2).requires_grad_()
    assert gradcheck(lambda z: adj @ z, z)
    assert gradgradcheck(lambda z: adj @ z, z)
    assert gradcheck(lambda z: adj.hops(z, 3), z)
    for teleport in (0.0, 0.3):
        assert gradcheck(lambda z, teleport=teleport: adj.power(z, 3, teleport), z)


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("gate", ["sigmoid", "softmax"])
def test_gated_sum_equals_a_loop_over_nodes_and_dense_powers(edges, dense, gate, checkpoint):
    edge_index, z, module = edges(N, 20), vectors(), propagation(gate, checkpoint=checkpoint)
    out, gates = module(z, edge_index, return_gates=True)
    expected, expected_gates = naive(module, z, dense(edge_index, N))
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(gates, expected_gates, rtol=0, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(module(z, edge_index), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("gate", ["sigmoid", "softmax"])
def test_gradients_to_z_and_the_gate_match_finite_differences(gate, checkpoint):
    adj = Propagator.from_edges(directed(6, 9), 6, kind="row", dtype=torch.float64)
    module, z = propagation(gate, channels=2, num_hops=3, checkpoint=checkpoint), vectors(6, 2).requires_grad_()

    def outputs(z, weight, bias):
        parameters = {"proj.weight": weight, "proj.bias": bias}
        return torch.func.functional_call(module, parameters, (z,), {"adj": adj, "return_gates": True})

    weight = module.proj.weight.detach().clone().requires_grad_()
    assert gradcheck(outputs, (z, weight, module.proj.bias.detach().clone().requires_grad_()))


def test_a_zeroed_gate_takes_half_of_every_hop(edges, dense):
    edge_index, z, module = edges(N, 20), vectors(), propagation()
    torch.nn.init.zeros_(module.proj.weight)
    torch.nn.init.zeros_(module.proj.bias)
    matrix = dense(edge_index, N)
    half = sum(torch.linalg.matrix_power(matrix, hop) @ z for hop in range(K + 1)) / 2
    torch.testing.assert_close(module(z, edge_index), half, rtol=0, atol=1e-12)


def test_the_gate_last_takes_the_last_hop_alone_and_has_no_parameters(edges, dense):
    edge_index, z, module = edges(N, 20), vectors(), propagation("last")
    out, gates = module(z, edge_index, return_gates=True)
    torch.testing.assert_close(out, torch.linalg.matrix_power(dense(edge_index, N), K) @ z, rtol=0, atol=1e-12)
    assert gates.sum() == N
    assert bool((gates[:, -1] == 1).all())
    assert list(module.parameters()) == []


def test_without_hops_the_edges_do_not_matter(edges):
    module, z = propagation(num_hops=0), vectors()
    expected = z * torch.sigmoid(z @ module.proj.weight[0] + module.proj.bias)[:, None]
    for arguments in ({}, {"edge_index": edges(N, 5)}, {"edge_index": edges(N, 30)}):
        torch.testing.assert_close(module(z, **arguments), expected)


def test_one_projection_serves_all_hops_so_parameters_do_not_depend_on_them():
    for num_hops in (0, 3, 50):
        assert sum(p.numel() for p in AdaptivePropagation(C, num_hops).parameters()) == C + 1
    assert sum(p.numel() for p in AdaptivePropagation(C, 3, bias=False).parameters()) == C


def test_sigmoid_gates_are_independent_and_softmax_gates_sum_to_one(edges):
    z = vectors()
    gates = {gate: propagation(gate)(z, edges(N, 20), return_gates=True)[1] for gate in ("sigmoid", "softmax")}
    torch.testing.assert_close(gates["softmax"].sum(1), torch.ones(N, dtype=torch.float64))
    assert bool(((gates["sigmoid"].sum(1) - 1).abs() > 0.5).any())


def test_permuting_the_nodes_permutes_the_output(edges):
    edge_index, z, module = edges(N, 20), vectors(), propagation()
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    place = torch.argsort(order)
    torch.testing.assert_close(module(z[order], place[edge_index]), module(z, edge_index)[order], rtol=0, atol=1e-12)


def test_a_disconnected_union_gives_the_outputs_of_its_parts(edges):
    first, second, module = edges(7, 6, 1), edges(9, 8, 2), propagation()
    z = vectors(16)
    union = module(z, torch.cat([first, second + 7], dim=1))
    apart = torch.cat([module(z[:7], first), module(z[7:], second)])
    torch.testing.assert_close(union, apart, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("num_nodes", "channels"), [(1, C), (N, 1), (1, 1)])
def test_one_node_and_one_channel_keep_their_shapes(edges, num_nodes, channels):
    module, z = propagation(channels=channels), vectors(num_nodes, channels)
    edge_index = edges(num_nodes, 5) if num_nodes > 1 else torch.empty(2, 0, dtype=torch.int64)
    out, gates = module(z, edge_index, return_gates=True)
    assert out.shape == (num_nodes, channels)
    assert gates.shape == (num_nodes, K + 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_accumulated_in_float32(edges, dtype):
    edge_index, module = edges(N, 20), propagation(dtype=torch.float32, num_hops=40)
    z = vectors(dtype=dtype)
    out, gates = module(z, edge_index, return_gates=True)
    assert out.dtype == gates.dtype == dtype
    assert torch.equal(out, module(z.float(), edge_index).to(dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = module(z.float(), edge_index)
    assert torch.equal(inside, module(z.float(), edge_index))


def test_cost_is_linear_in_hops_and_entries_times_channels(edges):
    """Products are counted, not timed: K of (n, n) by (n, c) forward, K more backward."""
    shapes = []

    class Counting(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            sparse = [a for a in args if isinstance(a, torch.Tensor) and a.layout == torch.sparse_csr]
            if sparse and func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
                shapes.append(tuple(args[-1].shape))
            return func(*args, **(kwargs or {}))

    adj = Propagator.from_edges(edges(N, 20), N, dtype=torch.float64)
    for num_hops in (3, 6):
        shapes.clear()
        with Counting():
            propagation(num_hops=num_hops)(vectors().requires_grad_(), adj=adj).sum().backward()
        assert shapes.count((N, C)) == 2 * num_hops
        assert set(shapes) <= {(N, C), (N, 1)}


def test_checkpointing_keeps_no_hops_for_backward(edges):
    adj = Propagator.from_edges(edges(N, 20), N, dtype=torch.float64)
    kept = {}
    for checkpoint in (False, True):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t.numel()) or t, lambda t: t):
            propagation(num_hops=9, checkpoint=checkpoint)(vectors().requires_grad_(), adj=adj)
        kept[checkpoint] = sum(saved)
    assert kept[True] < N * C + N * 10 + 10 * C
    assert kept[False] > 9 * N * C


def test_a_matrix_a_propagator_and_edges_give_the_same(edges):
    edge_index, z, module = edges(N, 20), vectors(), propagation()
    expected = module(z, edge_index)
    matrix = gcn_norm(edge_index, N, dtype=torch.float64)
    wide = torch.sparse_csr_tensor(
        matrix.crow_indices().long(), matrix.col_indices().long(), matrix.values(), (N, N), check_invariants=True
    )
    for adj in (matrix, wide, Propagator(matrix)):
        assert torch.equal(module(z, adj=adj), expected)


def test_sparse_dropout_drops_the_same_entries_forward_and_backward():
    dense = vectors(20, 9) * (vectors(20, 9) > 0.3)
    sparse = SparseMatrix(dense.to_sparse_csr())
    torch.manual_seed(0)
    dropped = sparse.dropout(0.4)
    kept = dropped.matrix.to_dense()
    survives = kept != 0
    torch.testing.assert_close(kept[survives], dense[survives] / 0.6)
    assert 0 < survives.sum() < (dense != 0).sum()
    weight = vectors(9, 4).requires_grad_()
    (dropped @ weight).square().sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, 2 * kept.t() @ kept @ weight.detach())
    assert sparse.dropout(0.4, training=False) is sparse


@pytest.mark.parametrize(
    ("edge_index", "message"),
    [
        (torch.tensor([[0, 1], [1, 5]]), "names node 5, but num_nodes=3 allows 0..2"),
        (torch.tensor([[0, -2], [1, 1]]), "names node -2"),
        (torch.tensor([[0, 1], [1, 0]], dtype=torch.int32), "int64 of shape .2, edges., got torch.int32"),
        (torch.tensor([[0.0, 1.0], [1.0, 0.0]]), "got torch.float32"),
        (torch.zeros(3, 2, dtype=torch.int64), "got torch.int64 of shape .3, 2."),
        (torch.zeros(4, dtype=torch.int64), r"shape .4,."),
    ],
)
def test_malformed_edges_are_refused_with_the_value(edge_index, message):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(gcn_norm)(edge_index, 3)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.tensor([1.0, -0.5]), "not negative .*, got -0.5"),
        (torch.tensor([1.0, float("nan")]), "got nan"),
        (torch.tensor([1.0]), r"shape \(2,\), one per edge, got torch.float32 of shape \(1,\)"),
        (torch.tensor([1.0, 1.0], requires_grad=True), "must not require a gradient"),
    ],
)
def test_impossible_weights_are_refused(weight, message):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(gcn_norm)(torch.tensor([[0, 1], [1, 0]]), 2, weight)


def test_a_directed_graph_is_warned_of_once_and_only_for_p_sym():
    one_way = torch.tensor([[0, 1], [1, 2]])
    with pytest.warns(UserWarning, match="to_undirected"):
        gcn_norm(one_way, 3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            gcn_norm(one_way, 3)
    assert len(caught) == 1
    gcn_norm(one_way, 3, kind="row")
    gcn_norm(to_undirected(one_way), 3)


def test_a_module_that_is_misused_says_how(edges):
    module, z, edge_index = propagation(), vectors(), edges(N, 20)
    adj = Propagator.from_edges(edge_index, N, dtype=torch.float64)
    for arguments, message in (
        ({}, "edge_index or as adj"),
        ({"edge_index": edge_index, "adj": adj}, "only one of them"),
        ({"adj": adj, "edge_weight": torch.ones(edge_index.shape[1])}, "edge_weight belongs to edge_index"),
        ({"adj": Propagator.from_edges(edges(9, 5), 9, dtype=torch.float64)}, "adj has 9 nodes.*17 rows"),
    ):
        with pytest.raises(ValueError, match=message):
            module(z, **arguments)
    with pytest.raises(ValueError, match=r"shape \(nodes, 3\), got \(17, 5\)"):
        module(vectors(N, 5), edge_index)
    with pytest.raises(ValueError, match="num_hops must not be negative, got -1"):
        AdaptivePropagation(3, -1)
    with pytest.raises(ValueError, match="num_channels must be at least 1, got 0"):
        AdaptivePropagation(0, 3)
    with pytest.raises(ValueError, match="got 'mean'"):
        inspect.unwrap(AdaptivePropagation.__init__)(AdaptivePropagation(3, 1), 3, 1, gate="mean")
    with pytest.raises(ValueError, match="got 'left'"):
        inspect.unwrap(gcn_norm)(edge_index, N, kind="left")
    with pytest.raises(ValueError, match="square, got shape"):
        Propagator(torch.ones(2, 3).to_sparse_csr())
    with pytest.raises(ValueError, match="sparse_csr"):
        SparseMatrix(torch.ones(2, 3))
