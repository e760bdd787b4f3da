"""Limits of propagation and the rate at which they are approached (section 5 of the paper)."""

import inspect
import math

import pytest
import torch

from etude.graphs.dagnn import (
    gcn_norm,
    propagate_to_limit,
    propagation_limit,
    second_eigenvalue,
    spectral_gap,
    to_undirected,
)


def path(num_nodes):
    return to_undirected(torch.stack([torch.arange(num_nodes - 1), torch.arange(1, num_nodes)]))


def star(num_leaves):
    return to_undirected(torch.stack([torch.zeros(num_leaves, dtype=torch.int64), torch.arange(1, num_leaves + 1)]))


def matrix_of(edge_index, num_nodes, kind="sym"):
    return gcn_norm(edge_index, num_nodes, kind=kind, dtype=torch.float64).to_dense()


def test_rows_of_p_row_sum_to_one(edges):
    torch.testing.assert_close(matrix_of(edges(30, 40), 30, "row").sum(1), torch.ones(30, dtype=torch.float64))


def test_p_sym_is_symmetric_with_radius_one_at_the_roots_of_the_degrees(edges):
    edge_index = edges(30, 40)
    matrix = matrix_of(edge_index, 30)
    assert torch.equal(matrix, matrix.t())
    assert abs(float(torch.linalg.eigvalsh(matrix).abs().max()) - 1) < 1e-12
    root = (torch.bincount(edge_index[1], minlength=30) + 1).double().sqrt()
    torch.testing.assert_close(matrix @ root, root)


@pytest.mark.parametrize("kind", ["sym", "row"])
@pytest.mark.parametrize("graph", ["random", "star", "path"])
def test_powers_reach_the_limit_after_as_many_hops_as_the_eigenvalue_says(edges, kind, graph):
    edge_index, nodes = {"random": (edges(40, 60), 40), "star": (star(9), 10), "path": (path(12), 12)}[graph]
    hops = math.ceil(math.log(1e-8) / math.log(second_eigenvalue(edge_index, nodes)))
    power = torch.linalg.matrix_power(matrix_of(edge_index, nodes, kind), hops)
    torch.testing.assert_close(power, propagation_limit(edge_index, nodes, kind), rtol=0, atol=1e-6)


def test_the_error_decays_at_the_rate_of_the_second_eigenvalue(edges):
    edge_index = edges(40, 60)
    matrix, limit = matrix_of(edge_index, 40), propagation_limit(edge_index, 40)
    points, power = [], torch.eye(40, dtype=torch.float64)
    for hop in range(1, 2000):
        power = power @ matrix
        error = float((power - limit).norm())
        if 1e-9 < error < 1e-3:
            points.append((hop, math.log(error)))
    hops, logs = torch.tensor(points, dtype=torch.float64).t()
    slope = ((hops - hops.mean()) * (logs - logs.mean())).sum() / ((hops - hops.mean()) ** 2).sum()
    assert abs(float(slope) / math.log(second_eigenvalue(edge_index, 40)) - 1) < 0.05


def test_at_the_limit_a_node_keeps_its_degree_and_no_feature(edges):
    edge_index = edges(25, 30)
    z = torch.randn(25, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    far = propagation_limit(edge_index, 25) @ z
    root = (torch.bincount(edge_index[1], minlength=25) + 1).double().sqrt()
    per_root = far / root[:, None]
    torch.testing.assert_close(per_root, per_root[:1].expand(25, -1))
    same = propagation_limit(edge_index, 25, "row") @ z
    torch.testing.assert_close(same, same[:1].expand(25, -1))


@pytest.mark.parametrize("kind", ["sym", "row"])
def test_components_and_isolated_nodes_have_their_own_limits(edges, kind):
    first, second = edges(6, 5, 1), edges(8, 9, 2)
    union = propagation_limit(torch.cat([first, second + 6], dim=1), 15, kind)
    expected = torch.block_diag(
        propagation_limit(first, 6, kind), propagation_limit(second, 8, kind), torch.ones(1, 1, dtype=torch.float64)
    )
    torch.testing.assert_close(union, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", ["sym", "row"])
def test_the_limit_of_vectors_needs_no_matrix(edges, kind):
    edge_index = torch.cat([edges(6, 5, 1), edges(8, 9, 2) + 6], dim=1)
    z = torch.randn(15, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(
        propagate_to_limit(z, edge_index, kind), propagation_limit(edge_index, 15, kind) @ z, rtol=0, atol=1e-14
    )


def test_the_second_eigenvalue_leaves_out_the_one_of_each_component(edges):
    first, second = edges(6, 5, 1), edges(8, 9, 2)
    apart = max(second_eigenvalue(first, 6), second_eigenvalue(second, 8))
    assert abs(second_eigenvalue(torch.cat([first, second + 6], dim=1), 14) - apart) < 1e-12
    assert spectral_gap(first, 6) == 1 - second_eigenvalue(first, 6)


def test_a_long_path_mixes_slowly():
    assert abs(second_eigenvalue(path(50), 50) - 0.9987) < 1e-4


@pytest.mark.parametrize("copies", [1, 2])
def test_lanczos_agrees_with_all_eigenvalues(edges, copies):
    one = edges(300, 500)
    edge_index = torch.cat([one + 300 * copy for copy in range(copies)], dim=1)
    values = torch.linalg.eigvalsh(matrix_of(one, 300)).abs().sort().values
    assert abs(second_eigenvalue(edge_index, 300 * copies) - float(values[-2])) < 1e-9


@pytest.mark.parametrize("num_nodes", [1, 4, 400])
def test_complete_graphs_and_isolated_nodes_mix_at_once(num_nodes):
    nodes = torch.arange(4)
    complete = torch.cartesian_prod(nodes, nodes).t()
    assert second_eigenvalue(complete[:, complete[0] != complete[1]], max(num_nodes, 4)) < 1e-12
    assert second_eigenvalue(torch.empty(2, 0, dtype=torch.int64), num_nodes) < 1e-12


def test_a_directed_graph_and_an_unknown_kind_are_refused():
    one_way = torch.tensor([[0, 1], [1, 2]])
    for function in (propagation_limit, second_eigenvalue, spectral_gap):
        with pytest.raises(ValueError, match="undirected"):
            function(one_way, 3)
    with pytest.raises(ValueError, match="got 'left'"):
        inspect.unwrap(propagation_limit)(path(3), 3, "left")
    with pytest.raises(ValueError, match="names node 2"):
        propagation_limit(path(3), 2)
