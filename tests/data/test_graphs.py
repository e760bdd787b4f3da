import os
import pickle

import numpy as np
import pytest
import scipy.sparse
import torch

from etude.data.catalogue import locate
from etude.data.graphs import planetoid

# A toy in the format: 20 train nodes, 520 known ones, test nodes 522, 520, 523; node 521 has no paper.
KNOWN, TEST, FEATURES = 520, [522, 520, 523], 4


def features(rows, first=0):
    dense = np.zeros((rows, FEATURES), dtype=np.float32)
    dense[np.arange(rows), (np.arange(rows) + first) % FEATURES] = 1 + np.arange(rows)
    return scipy.sparse.csr_matrix(dense)


def one_hot(labels):
    return np.eye(2, dtype=np.int32)[labels]


@pytest.fixture
def toy(tmp_path):
    graph = {0: [1, 1, 0], 1: [2], 522: [0], 521: []}
    parts = {
        "x": features(20),
        "y": one_hot(np.arange(20) % 2),
        "allx": features(KNOWN),
        "ally": one_hot(np.arange(KNOWN) % 2),
        "tx": features(3, first=1),
        "ty": one_hot(np.array([1, 0, 1])),
        "graph": graph,
    }
    for part, content in parts.items():
        (tmp_path / f"ind.cora.{part}").write_bytes(pickle.dumps(content, protocol=3))
    (tmp_path / "ind.cora.test.index").write_text("\n".join(map(str, TEST)) + "\n")
    return tmp_path


def test_the_split_is_the_public_one(toy):
    data = planetoid("cora", toy)
    assert data.train_mask.nonzero().flatten().tolist() == list(range(20))
    assert data.val_mask.nonzero().flatten().tolist() == list(range(20, 520))
    assert data.test_mask.nonzero().flatten().tolist() == sorted(TEST)


def test_test_rows_go_to_the_nodes_of_the_index(toy):
    data = planetoid("cora", toy, sparse=False)
    assert data.x[522].tolist() == [0, 1, 0, 0]
    assert data.x[520].tolist() == [0, 0, 2, 0]
    assert data.y[[522, 520, 523]].tolist() == [1, 0, 1]


def test_a_node_without_a_paper_has_zero_features_and_is_never_scored(toy):
    data = planetoid("cora", toy, sparse=False)
    assert not data.x[521].any()
    assert not (data.train_mask | data.val_mask | data.test_mask)[521]


def test_edges_stand_in_both_directions_once_and_without_loops(toy):
    edges = planetoid("cora", toy).edge_index.T.tolist()
    assert edges == [[0, 1], [0, 522], [1, 0], [1, 2], [2, 1], [522, 0]]


def test_sparse_and_dense_features_agree(toy):
    sparse, dense = planetoid("cora", toy), planetoid("cora", toy, sparse=False)
    assert sparse.x.layout == torch.sparse_csr
    assert torch.equal(sparse.x.to_dense(), dense.x)


class Malicious:
    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


@pytest.mark.parametrize("part", ["graph", "allx", "ally"])
def test_a_pickle_that_runs_a_command_is_refused_and_does_not_run(toy, part):
    proof = toy / "proof"
    (toy / f"ind.cora.{part}").write_bytes(pickle.dumps(Malicious(os.system, f"touch {proof}"), protocol=2))
    with pytest.raises(ValueError, match=r"not a Planetoid file: the name \w+.system is not admitted"):
        planetoid("cora", toy)
    assert not proof.exists()


@pytest.mark.parametrize("call", [eval, __import__, getattr, np.load, scipy.sparse.load_npz])
def test_names_beyond_the_five_are_refused(toy, call):
    (toy / "ind.cora.graph").write_bytes(pickle.dumps(Malicious(call, "x"), protocol=2))
    with pytest.raises(ValueError, match="is not admitted"):
        planetoid("cora", toy)


def test_a_sparse_matrix_with_indices_out_of_range_is_refused(toy):
    matrix = features(KNOWN)
    matrix.indices[7] = 99
    (toy / "ind.cora.allx").write_bytes(pickle.dumps(matrix, protocol=3))
    with pytest.raises(ValueError, match="must hold a sparse matrix"):
        planetoid("cora", toy)


def test_a_truncated_file_is_refused_by_name(toy):
    content = (toy / "ind.cora.tx").read_bytes()
    (toy / "ind.cora.tx").write_bytes(content[:60])
    with pytest.raises(ValueError, match=r"ind.cora.tx is not a Planetoid file"):
        planetoid("cora", toy)


def test_files_that_disagree_are_refused(toy):
    (toy / "ind.cora.test.index").write_text("522\n520\n")
    with pytest.raises(ValueError, match="2 test nodes, features of 3"):
        planetoid("cora", toy)


def test_an_edge_out_of_range_is_refused(toy):
    (toy / "ind.cora.graph").write_bytes(pickle.dumps({0: [524]}, protocol=2))
    with pytest.raises(ValueError, match=r"nodes outside 0\.\.523"):
        planetoid("cora", toy)


def test_a_missing_file_is_named(toy):
    (toy / "ind.cora.ally").unlink()
    with pytest.raises(FileNotFoundError, match=r"place ind.cora.ally into"):
        planetoid("cora", toy)


def test_an_unknown_graph_is_refused(toy):
    with pytest.raises(ValueError, match="must be cora, citeseer or pubmed, got 'karate'"):
        planetoid("karate", toy)


@pytest.mark.parametrize(
    ("name", "nodes", "num_features", "classes", "edges"),
    [("cora", 2708, 1433, 7, 10556), ("citeseer", 3327, 3703, 6, 9104)],
)
def test_the_public_graphs_have_their_known_sizes(name, nodes, num_features, classes, edges):
    try:
        locate("planetoid")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    data = planetoid(name)
    assert (data.num_nodes, data.num_features, data.num_classes, data.num_edges) == (
        nodes,
        num_features,
        classes,
        edges,
    )
    assert data.y[data.train_mask].bincount().tolist() == [20] * classes
    assert int(data.test_mask.sum()) == 1000


def test_citeseer_has_15_nodes_without_features():
    try:
        locate("planetoid")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    empty = planetoid("citeseer", sparse=False).x.sum(dim=1) == 0
    assert int(empty.sum()) == 15
