"""Small graphs and their dense matrices, written for clarity."""

import pytest
import torch

from etude.graphs.dagnn import to_undirected


def random_edges(num_nodes: int, num_edges: int, seed: int = 0) -> torch.Tensor:
    """An undirected graph: a path through all nodes, so that it is connected, and random edges besides."""
    generator = torch.Generator().manual_seed(seed)
    path = torch.stack([torch.arange(num_nodes - 1), torch.arange(1, num_nodes)])
    extra = torch.randint(num_nodes, (2, num_edges), generator=generator)
    return to_undirected(torch.cat([path, extra[:, extra[0] != extra[1]]], dim=1))


def dense_propagation(edge_index: torch.Tensor, num_nodes: int, kind: str = "sym") -> torch.Tensor:
    """P of a simple graph, entry by entry from its definition."""
    adjacency = torch.eye(num_nodes, dtype=torch.float64)
    for source, target in edge_index.t().tolist():
        adjacency[target, source] = 1
    degree = [sum(row) for row in adjacency.tolist()]
    matrix = torch.zeros_like(adjacency)
    for i in range(num_nodes):
        for j in range(num_nodes):
            matrix[i, j] = adjacency[i, j] / (degree[i] if kind == "row" else (degree[i] * degree[j]) ** 0.5)
    return matrix


@pytest.fixture
def edges():
    return random_edges


@pytest.fixture
def dense():
    return dense_propagation
