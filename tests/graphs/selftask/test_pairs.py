"""Pairs by distance and likeness, non-edges, partitions: right classes, distinct draws, no n x n array."""

import tracemalloc
import warnings

import numpy as np
import pytest
import scipy.sparse

from etude.graphs.selftask import DistancePairs, centres, hop_distances, non_edges, partition, similarity_pairs

nx = pytest.importorskip("networkx")


def adj_of(graph):
    return scipy.sparse.csr_array(nx.to_scipy_sparse_array(graph, dtype=np.float32, format="csr"))


def classes_of(adj, depth=3):
    """Distance class of all pairs: 0..depth-1 for 1..depth, depth for farther or unreachable."""
    distance = hop_distances(adj, np.arange(adj.shape[0]))
    return np.where((distance > depth) | (distance < 0), depth, distance - 1)


@pytest.fixture
def graph():
    found = nx.gnp_random_graph(60, 0.05, seed=2)
    found.add_edge(60, 61)
    return found


@pytest.mark.parametrize("sources", [None, np.array([3, 17, 40, 60])])
def test_drawn_pairs_have_the_class_of_their_distance_and_differ(graph, sources):
    adj = adj_of(graph)
    pairs = DistancePairs(adj, 3, sources)
    expected = classes_of(adj)
    if sources is None:
        upper = np.triu(np.ones_like(expected), 1).astype(bool)
        assert pairs.counts() == [(expected[upper] == number).sum() for number in range(4)]
    count = min(pairs.counts())
    drawn, classes = pairs.draw(count, np.random.default_rng(0))
    assert np.array_equal(np.bincount(classes), [count] * 4)
    assert np.array_equal(expected[drawn[0], drawn[1]], classes)
    assert len({tuple(pair) for pair in drawn.T}) == 4 * count
    if sources is None:
        assert (drawn[0] < drawn[1]).all()
    else:
        assert np.isin(drawn[0], sources).all()
        assert (drawn[0] != drawn[1]).all()


def test_far_pairs_are_drawn_evenly():
    adj = adj_of(nx.path_graph(12))
    pairs = DistancePairs(adj, 3)
    assert pairs.far is None
    rng = np.random.default_rng(0)
    counts = np.zeros((12, 12))
    for _ in range(3000):
        drawn, classes = pairs.draw(6, rng)
        np.add.at(counts, tuple(drawn[:, classes == 3]), 1)
    expected = np.triu(classes_of(adj) == 3, 1)
    assert np.array_equal(counts > 0, expected)
    assert abs(counts[expected] / (3000 * 6 / expected.sum()) - 1).max() < 0.15


def test_too_few_pairs_are_drawn_with_replacement_and_an_empty_class_is_left_out():
    pairs = DistancePairs(adj_of(nx.path_graph(4)), 3)
    with pytest.warns(UserWarning, match="pairs in distance class") as caught:
        drawn, classes = pairs.draw(5, np.random.default_rng(0))
    said = " / ".join(str(warning.message) for warning in caught)
    assert "3 pairs in distance class 0, fewer than 5: drawn with replacement" in said
    assert "0 pairs in distance class 3, fewer than 5: which is left out" in said
    assert np.bincount(classes).tolist() == [5, 5, 5]
    assert ((drawn[1] - drawn[0]) == classes + 1).all()


def test_rare_far_pairs_are_listed():
    graph = nx.compose(nx.complete_graph(100), nx.path_graph(range(99, 104)))
    pairs = DistancePairs(adj_of(graph), 3)
    assert pairs.far is not None
    expected = np.triu(classes_of(adj_of(graph)) == 3, 1)
    assert {tuple(pair) for pair in pairs.far.T} == set(zip(*np.nonzero(expected)))


def test_pairs_of_a_large_graph_never_need_an_n_by_n_array():
    nodes = 20_000
    graph = adj_of(nx.random_regular_graph(3, nodes, seed=0))
    tracemalloc.start()
    try:
        pairs = DistancePairs(graph, 3, np.arange(0, nodes, 10))
        pairs.draw(4000, np.random.default_rng(0))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 50e6 < nodes**2


def test_non_edges_are_no_edges_no_loops_and_different():
    for graph in (nx.gnp_random_graph(50, 0.1, seed=1), nx.gnp_random_graph(20, 0.97, seed=1)):
        adj = adj_of(graph)
        available = int((adj.toarray() == 0).sum() - len(graph)) // 2
        drawn = non_edges(adj, min(available, 100), np.random.default_rng(0))
        assert (drawn[0] < drawn[1]).all()
        assert (adj.toarray()[drawn[0], drawn[1]] == 0).all()
        assert len({tuple(pair) for pair in drawn.T}) == drawn.shape[1] == min(available, 100)
    with pytest.raises(ValueError, match="1 pairs without an edge are needed, the graph has 0"):
        non_edges(adj_of(nx.complete_graph(5)), 1, np.random.default_rng(0))


@pytest.mark.parametrize("sparse", [False, True])
def test_similar_pairs_hold_the_extremes_of_every_node_and_their_cosine(sparse):
    rng = np.random.default_rng(0)
    features = rng.random((40, 6)).astype(np.float32)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosine = unit @ unit.T
    given = scipy.sparse.csr_array(features) if sparse else features
    pairs, values = similarity_pairs(given, 2, 0, np.random.default_rng(1), chunk=7)
    np.testing.assert_allclose(values, cosine[pairs[0], pairs[1]], rtol=1e-5)
    found = {tuple(pair) for pair in pairs.T}
    expected = set()
    for node in range(40):
        others = sorted((other for other in range(40) if other != node), key=lambda other: cosine[node, other])
        expected |= {tuple(sorted((node, other))) for other in others[:2] + others[-2:]}
    assert found == expected
    more, _ = similarity_pairs(given, 2, 3, np.random.default_rng(1), chunk=7)
    assert found < {tuple(pair) for pair in more.T}
    few, _ = similarity_pairs(given, 2, 0, np.random.default_rng(1), max_nodes=4)
    assert few.shape[1] <= 16


def test_ties_of_similarity_prefer_no_node():
    pairs, values = similarity_pairs(np.eye(60, dtype=np.float32), 1, 0, np.random.default_rng(0))
    assert (values == 0).all()
    assert np.bincount(pairs.ravel(), minlength=60).max() < 15


def test_similarity_of_too_few_nodes_is_refused():
    with pytest.raises(ValueError, match="5 nodes are too few for 2 most"):
        similarity_pairs(np.ones((5, 2)), 2, 0, np.random.default_rng(0))
    with pytest.raises(ValueError, match="got 0 and 0"):
        similarity_pairs(np.ones((5, 2)), 0, 0, np.random.default_rng(0))


def test_grown_parts_cover_the_graph_evenly_and_follow_its_edges(graph):
    grid = adj_of(nx.convert_node_labels_to_integers(nx.grid_2d_graph(12, 12)))
    parts, method = partition(grid, 6, method="grow", rng=np.random.default_rng(0))
    assert method == "grow"
    assert np.bincount(parts).min() >= 18
    assert np.bincount(parts).max() <= 30
    rows, columns = grid.nonzero()
    shuffled = np.random.default_rng(1).permutation(parts)
    assert (parts[rows] == parts[columns]).mean() > 3 * (shuffled[rows] == shuffled[columns]).mean()
    scattered, _ = partition(adj_of(graph), 7, method="grow", rng=np.random.default_rng(0))
    assert set(scattered) == set(range(7))
    alone, _ = partition(adj_of(graph), 62, method="grow", rng=np.random.default_rng(0))
    assert sorted(alone) == list(range(62))


def test_the_centre_of_a_part_has_most_neighbours_inside_it():
    graph = nx.disjoint_union(nx.star_graph(4), nx.star_graph(5))
    graph.add_edges_from([(1, 9), (1, 8), (1, 10), (1, 7), (1, 6), (1, 5)])  # many neighbours, few of them inside
    parts = np.array([0] * 5 + [1] * 6)
    assert centres(adj_of(graph), parts).tolist() == [0, 5]


def test_metis_is_asked_for_by_name_and_its_absence_said():
    adj = adj_of(nx.path_graph(8))
    try:
        import pymetis  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match="pip install pymetis"):
            partition(adj, 2, method="metis", rng=np.random.default_rng(0))
        assert partition(adj, 2, rng=np.random.default_rng(0))[1] == "grow"
    else:
        assert partition(adj, 2, rng=np.random.default_rng(0))[1] == "metis"
    for arguments, message in (((0, "auto"), r"1\.\.8, the number of nodes, got 0"), ((2, "best"), "got 'best'")):
        with pytest.raises(ValueError, match=message):
            partition(adj, arguments[0], method=arguments[1], rng=np.random.default_rng(0))


def test_nothing_warns_where_there_are_pairs_enough():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DistancePairs(adj_of(nx.path_graph(30)), 3).draw(20, np.random.default_rng(0))
