"""The contextual stochastic block model: graphs whose communities show in the edges and, faintly, in the features.

Deshpande, Montanari, Mossel & Sen, "Contextual Stochastic Block Models", NeurIPS 2018, arXiv:1807.09596, here with any
number of classes. With n nodes in c classes, an edge joins two nodes with probability

    p_in = h d c / n within a class,    p_out = (1 - h) d c / (n (c - 1)) between classes,

so that a node has about d neighbours, a share h of them of its own class; for c = 2, h = 1/2 + lambda / (2 sqrt(d)) in
the paper's parameters. The features of node i of class k, of p dimensions, are

    x_i = sqrt(mu / n) u_k + w_i / sqrt(p),    w_i ~ N(0, I_p),

with class directions u_k ~ N(0, I_p / p), in the paper u and -u. Neither source need suffice alone.
"""

import numpy as np
import torch

from etude.data.kinds import GraphData

__all__ = ["contextual_sbm"]


def contextual_sbm(
    num_nodes: int = 2700,
    num_classes: int = 7,
    *,
    average_degree: float = 3.9,
    homophily: float = 0.81,
    num_features: int = 100,
    feature_signal: float = 60.0,
    train_per_class: int = 20,
    num_val: int = 500,
    num_test: int = 1000,
    seed: int | np.random.Generator = 0,
) -> GraphData:
    """Draws a graph, its features and a split like that of the citation graphs.

    The defaults take size, classes, degree and homophily from Cora, and features so faint that a two-layer GCN is right
    on about 82 % of the test nodes, as it is there.

    Args:
        num_nodes: n; the classes have equal sizes up to one node, in random order.
        num_classes: c >= 2.
        average_degree: d > 0.
        homophily: h in [0, 1]; 1/c carries nothing about the classes.
        num_features: p.
        feature_signal: mu >= 0; 0 carries nothing about the classes.
        train_per_class: labelled nodes of each class.
        num_val, num_test: nodes of the other two parts, of any class.
        seed: of the draws, or their generator.

    Raises:
        ValueError: if a number lies outside its range, a probability exceeds 1, or the split needs more nodes than
            there are.
    """
    for name, value, least in (
        ("num_classes", num_classes, 2), ("num_features", num_features, 1), ("train_per_class", train_per_class, 1),
        ("num_val", num_val, 1), ("num_test", num_test, 1), ("feature_signal", feature_signal, 0),
    ):  # fmt: skip
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if average_degree <= 0 or not 0 <= homophily <= 1:
        raise ValueError(
            f"average_degree must be positive and homophily in [0, 1], got {average_degree} and {homophily}"
        )
    if num_nodes // num_classes < train_per_class or num_nodes < num_classes * train_per_class + num_val + num_test:
        raise ValueError(
            f"{num_nodes} nodes do not hold {num_classes} x {train_per_class} for training, {num_val} for validation "
            f"and {num_test} for test"
        )
    inside = homophily * average_degree * num_classes / num_nodes
    between = (1 - homophily) * average_degree * num_classes / (num_nodes * (num_classes - 1))
    if max(inside, between) > 1:
        raise ValueError(f"average_degree {average_degree} makes an edge probability of {max(inside, between):.3g} > 1")

    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(num_nodes) % num_classes)
    edges = _draw_edges(labels, num_classes, inside, between, rng)
    directions = rng.standard_normal((num_classes, num_features)) / np.sqrt(num_features)
    noise = rng.standard_normal((num_nodes, num_features)) / np.sqrt(num_features)
    features = np.sqrt(feature_signal / num_nodes) * directions[labels] + noise

    order = rng.permutation(num_nodes)
    train = np.concatenate([order[labels[order] == label][:train_per_class] for label in range(num_classes)])
    rest = order[~np.isin(order, train)]
    masks = torch.zeros(3, num_nodes, dtype=torch.bool)
    for mask, nodes in zip(masks, (train, rest[:num_val], rest[num_val : num_val + num_test]), strict=True):
        mask[torch.from_numpy(nodes)] = True
    return GraphData(
        x=torch.from_numpy(features).to(torch.float32),
        edge_index=torch.from_numpy(np.concatenate([edges, edges[::-1]], axis=1)),
        y=torch.from_numpy(labels.astype(np.int64)),
        train_mask=masks[0], val_mask=masks[1], test_mask=masks[2],
        classes=tuple(f"community {label}" for label in range(num_classes)),
        name="contextual SBM",
    )  # fmt: skip


def _draw_edges(
    labels: np.ndarray, num_classes: int, inside: float, between: float, rng: np.random.Generator
) -> np.ndarray:
    """(2, edges), each pair once: for every pair of classes a binomial number of distinct pairs, so work is linear."""
    members = [np.flatnonzero(labels == label) for label in range(num_classes)]
    drawn = []
    for first in range(num_classes):
        for second in range(first, num_classes):
            rows, columns = members[first], members[second]
            if first == second:
                # The pairs i < j of m nodes, numbered row by row of the lower triangle: j (j - 1) / 2 + i.
                pairs = len(rows) * (len(rows) - 1) // 2
                chosen = _distinct(pairs, rng.binomial(pairs, inside), rng)
                high = ((1 + np.sqrt(1 + 8 * chosen.astype(np.float64))) / 2).astype(np.int64)
                high -= high * (high - 1) // 2 > chosen  # the root may round up to the next row
                drawn.append(np.stack([rows[chosen - high * (high - 1) // 2], rows[high]]))
            else:
                pairs = len(rows) * len(columns)
                chosen = _distinct(pairs, rng.binomial(pairs, between), rng)
                drawn.append(np.stack([rows[chosen // len(columns)], columns[chosen % len(columns)]]))
    return np.concatenate(drawn, axis=1).astype(np.int64)


def _distinct(pairs: int, count: int, rng: np.random.Generator) -> np.ndarray:
    return rng.choice(pairs, size=count, replace=False, shuffle=False)
