"""Distances, rings, neighbourhoods and node properties against networkx and plain loops."""

import numpy as np
import pytest
import torch

from etude.graphs.selftask import adjacency, hop_distances, neighbourhood, node_property, normalize_features, rings

nx = pytest.importorskip("networkx")


class Graph:
    def __init__(self, graph, features=4):
        pairs = np.array([(u, v) for u, v in graph.edges] + [(v, u) for u, v in graph.edges]).reshape(-1, 2)
        self.edge_index = torch.from_numpy(pairs.T.astype(np.int64).copy())
        self.x = torch.ones(len(graph), features)
        self.y = torch.zeros(len(graph), dtype=torch.int64)


@pytest.fixture
def graph():
    """30 nodes: a sparse random part of 22, a ring of 7, and a node alone."""
    found = nx.gnp_random_graph(22, 0.12, seed=4)
    found.add_edges_from((22 + i, 22 + (i + 1) % 7) for i in range(7))
    found.add_node(29)
    return found


def all_distances(graph):
    matrix = np.full((len(graph), len(graph)), -1)
    for source, lengths in nx.all_pairs_shortest_path_length(graph):
        for target, length in lengths.items():
            matrix[target, source] = length
    return matrix


def test_distances_equal_those_of_networkx_and_unreachable_nodes_have_minus_one(graph):
    expected = all_distances(graph)
    assert (expected == -1).any()
    assert expected.max() > 4
    adj = adjacency(Graph(graph))
    assert np.array_equal(hop_distances(adj, np.arange(30)), expected)
    assert np.array_equal(hop_distances(adj, np.array([25, 3])), expected[:, [25, 3]])
    assert np.array_equal(hop_distances(adj, np.arange(30), limit=2), np.where(expected > 2, -1, expected))


def test_distances_along_a_path_longer_than_the_matrix_search_are_exact():
    adj = adjacency(Graph(nx.path_graph(150)))
    assert np.array_equal(hop_distances(adj, np.array([0, 149]))[:, 0], np.arange(150))
    limited = hop_distances(adj, np.array([0]), limit=80)[:, 0]
    assert np.array_equal(limited, np.where(np.arange(150) <= 80, np.arange(150), -1))


def test_rings_hold_the_pairs_at_each_distance(graph):
    expected = all_distances(graph)
    adj = adjacency(Graph(graph))
    for distance, ring in enumerate(rings(adj, 3), start=1):
        assert np.array_equal(ring.toarray() > 0, expected == distance)
    sources = np.array([7, 24])
    for distance, ring in enumerate(rings(adj, 3, sources), start=1):
        assert np.array_equal(ring.toarray() > 0, expected[sources] == distance)


@pytest.mark.parametrize("hops", [1, 2, 3])
def test_a_neighbourhood_holds_each_node_within_some_hops_once_and_not_the_node_itself(graph, hops):
    expected = all_distances(graph)
    near = neighbourhood(adjacency(Graph(graph)), hops)
    assert np.array_equal(near.toarray(), ((expected >= 1) & (expected <= hops)).astype(np.float32))


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("degree", lambda graph: dict(graph.degree())),
        ("pagerank", lambda graph: nx.pagerank(graph, alpha=0.85, tol=1e-14, max_iter=1000)),
        ("closeness", nx.closeness_centrality),
        ("clustering", nx.clustering),
    ],
)
def test_properties_of_nodes_equal_those_of_networkx(graph, name, reference):
    graph.add_edges_from([(0, 1), (1, 2), (0, 2)])
    expected = reference(graph)
    found = node_property(adjacency(Graph(graph)), name)
    np.testing.assert_allclose(found, [expected[node] for node in range(30)], rtol=1e-6, atol=1e-9)
    assert found.std() > 0


def test_rows_are_scaled_to_sum_one_dense_and_sparse():
    x = torch.tensor([[1.0, 3.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.5, 0.0]])
    expected = torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert torch.equal(normalize_features(x), expected)
    sparse = torch.sparse_csr_tensor([0, 2, 2, 3], [0, 1, 1], [1.0, 3.0, 0.5], size=(3, 3), check_invariants=True)
    assert torch.equal(normalize_features(sparse).to_dense(), expected)
    with pytest.raises(ValueError, match=r"must not be negative to be scaled to sum 1, got -1"):
        normalize_features(-x / 3)


def test_loops_and_repeated_edges_do_not_count():
    data = Graph(nx.path_graph(3))
    data.edge_index = torch.tensor([[0, 1, 1, 2, 0, 0, 1], [1, 0, 2, 1, 0, 1, 0]])
    assert np.array_equal(adjacency(data).toarray(), [[0, 1, 0], [1, 0, 1], [0, 1, 0]])


def test_malformed_and_directed_graphs_are_refused_with_the_value():
    data = Graph(nx.path_graph(3))
    for edges, message in (
        (torch.tensor([[0, 1, 1], [1, 0, 2]]), r"1 of 3 lack their opposite.*to_undirected"),
        (torch.tensor([[0, 3], [3, 0]]), r"must name nodes 0\.\.2, got 0\.\.3"),
        (torch.zeros(2, 2), r"int64 of shape \(2, edges\), got torch.float32"),
    ):
        data.edge_index = edges
        with pytest.raises(ValueError, match=message):
            adjacency(data)
    with pytest.raises(ValueError, match="got 'beauty'"):
        node_property(adjacency(Graph(nx.path_graph(3))), "beauty")
    with pytest.raises(ValueError, match="hops must be at least 1, got 0"):
        neighbourhood(adjacency(Graph(nx.path_graph(3))), 0)
