"""A generated graph in the manner of the citation networks: communities of topics, hubs, and sparse bags of words.

For claims and tests without any data at hand; not of the paper.
"""

import numpy as np
import scipy.sparse
import torch

from etude.data.kinds import GraphData

__all__ = ["citation_like"]


def citation_like(
    num_nodes: int = 2700,
    num_classes: int = 7,
    *,
    average_degree: float | int = 3.9,
    homophily: float | int = 0.81,
    num_words: int = 1000,
    words_per_node: int = 18,
    topicality: float | int = 0.25,
    topics_per_class: int = 6,
    locality: float | int = 0.7,
    train_per_class: int = 20,
    num_val: int = 500,
    num_test: int = 1000,
    seed: int | np.random.Generator = 0,
) -> GraphData:
    """Draws papers with classes, citations and words, and a split like that of Cora.

    Every class has several topics. A citation starts at a random paper and ends, with probability `homophily`, in its
    class (of these a share `locality` in its topic), else in another; ends are drawn by attractiveness, 1 / rank, so
    that there are hubs. A word is with probability `topicality` one of its class's tenth of the vocabulary, else any.
    Distances along citations thus say something of the class that words two steps away do not.

    Args:
        num_nodes: n; classes and topics have equal sizes, up to one node.
        num_classes: c >= 2.
        average_degree: of the undirected graph, about; repeated citations count once.
        homophily, topicality, locality: probabilities.
        num_words: f.
        words_per_node: drawn with repetition; x says whether a word occurs.
        topics_per_class: >= 1.
        train_per_class, num_val, num_test: sizes of the split; training nodes are drawn by class.
        seed: of the draws, or their generator.

    Returns:
        x is sparse CSR of ones.

    Raises:
        ValueError: if a number is out of range or the split needs more nodes than there are.
    """
    for name, value, least in (
        ("num_classes", num_classes, 2), ("num_words", num_words, 10), ("words_per_node", words_per_node, 1),
        ("topics_per_class", topics_per_class, 1), ("train_per_class", train_per_class, 1), ("num_val", num_val, 1),
        ("num_test", num_test, 1),
    ):  # fmt: skip
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    for name, share in (("homophily", homophily), ("topicality", topicality), ("locality", locality)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {share}")
    topics = num_classes * topics_per_class
    if num_nodes < 2 * topics or not 0 < average_degree < num_nodes / 10:
        raise ValueError(
            f"need at least {2 * topics} nodes and an average degree in (0, {num_nodes / 10:g}), "
            f"got {num_nodes} and {average_degree}"
        )
    if num_nodes // num_classes < train_per_class or num_nodes < num_classes * train_per_class + num_val + num_test:
        raise ValueError(
            f"{num_nodes} nodes do not hold {num_classes} x {train_per_class} for training, {num_val} for validation "
            f"and {num_test} for test"
        )
    rng = np.random.default_rng(seed)
    topic = rng.permutation(np.arange(num_nodes) % topics)
    labels = topic % num_classes
    edges = _citations(topic, num_classes, int(num_nodes * average_degree / 2), homophily, locality, rng)
    order = rng.permutation(num_nodes)
    train = np.concatenate([order[labels[order] == label][:train_per_class] for label in range(num_classes)])
    rest = order[~np.isin(order, train)]
    masks = torch.zeros(3, num_nodes, dtype=torch.bool)
    for mask, nodes in zip(masks, (train, rest[:num_val], rest[num_val : num_val + num_test]), strict=True):
        mask[torch.from_numpy(nodes)] = True
    return GraphData(
        x=_words(labels, num_classes, num_words, words_per_node, topicality, rng),
        edge_index=torch.from_numpy(edges),
        y=torch.from_numpy(labels.astype(np.int64)),
        train_mask=masks[0], val_mask=masks[1], test_mask=masks[2],
        classes=tuple(f"field {label}" for label in range(num_classes)),
        name="citation-like",
    )  # fmt: skip


def _citations(
    topic: np.ndarray, classes: int, count: int, homophily: float | int, locality: float | int, rng: np.random.Generator
) -> np.ndarray:
    """(2, edges), both directions, sorted, no loops."""
    nodes, topics = len(topic), int(topic.max()) + 1
    source = rng.integers(nodes, size=count)
    kind = rng.random(count)
    # Other topics of the class lie `classes` apart; other classes lie anything else apart.
    within = topics // classes
    aim = topic[source].copy()
    sibling = (kind >= homophily * locality) & (kind < homophily)
    aim[sibling] = (aim[sibling] + classes * rng.integers(within, size=int(sibling.sum()))) % topics
    foreign = kind >= homophily
    shift = rng.integers(1, classes, size=int(foreign.sum())) + classes * rng.integers(within, size=int(foreign.sum()))
    aim[foreign] = (aim[foreign] + shift) % topics
    # Members of a topic in random order of rank r; inverting the sum of 1 / r draws them by attractiveness.
    members = np.argsort(topic, kind="stable")
    starts = np.searchsorted(topic[members], np.arange(topics))
    sizes = np.bincount(topic, minlength=topics)
    share = np.cumsum(1 / np.arange(1, sizes.max() + 1))
    rank = np.searchsorted(share, rng.random(count) * share[sizes[aim] - 1])
    target = members[starts[aim] + rank]
    there = source != target
    low, high = np.minimum(source, target)[there], np.maximum(source, target)[there]
    both = np.unique(np.concatenate([low * nodes + high, high * nodes + low]))
    return np.stack([both // nodes, both % nodes]).astype(np.int64)


def _words(
    labels: np.ndarray, classes: int, words: int, per_node: int, topicality: float | int, rng: np.random.Generator
) -> torch.Tensor:
    nodes = len(labels)
    tenth = words // 10
    own = np.stack([rng.choice(words, size=tenth, replace=False) for _ in range(classes)])
    drawn = rng.integers(words, size=(nodes, per_node))
    topical = rng.random((nodes, per_node)) < topicality
    chosen = np.take_along_axis(own[labels], rng.integers(tenth, size=(nodes, per_node)), axis=1)
    drawn = np.where(topical, chosen, drawn)
    ones = np.ones(nodes * per_node, np.float32)
    matrix = scipy.sparse.csr_array(
        (ones, (np.repeat(np.arange(nodes), per_node), drawn.ravel())), shape=(nodes, words)
    )
    matrix.sum_duplicates()
    return torch.sparse_csr_tensor(
        torch.from_numpy(matrix.indptr.astype(np.int64)), torch.from_numpy(matrix.indices.astype(np.int64)),
        torch.ones(matrix.nnz), size=matrix.shape, check_invariants=False,
    )  # fmt: skip
