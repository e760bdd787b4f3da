"""Propagation against PyG's APPNP: equal numbers of hops on a graph of Cora's size, forward and in training."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.compare import Comparison
from etude.graphs.dagnn import AdaptivePropagation, Propagator, contextual_sbm

NUM_HOPS = 10
TELEPORT = 0.1


def comparisons() -> list[Comparison]:
    from torch_geometric.nn import APPNP

    data = contextual_sbm()
    adj = Propagator.from_edges(data.edge_index, data.num_nodes)
    # `cached` spares the peer its normalisation, as `adj` spares us ours; given P as CSR it also multiplies sparsely.
    by_messages = partial(APPNP(NUM_HOPS, TELEPORT, cached=True), edge_index=data.edge_index)
    by_products = partial(APPNP(NUM_HOPS, TELEPORT, normalize=False), edge_index=adj.matrix)

    found = []
    for channels in (data.num_classes, 64):
        z = torch.randn(data.num_nodes, channels, generator=torch.Generator().manual_seed(0))
        personalised = partial(adj.power, num_hops=NUM_HOPS, teleport=TELEPORT)
        for peer in (by_messages, by_products):
            torch.testing.assert_close(personalised(z), peer(z))
        for what, ours, peer, peer_name, note in (
            ("personalised", personalised, by_messages, "PyG APPNP", "the same numbers from both"),
            ("personalised", personalised, by_products, "PyG APPNP on CSR", "the same numbers from both"),
            ("gated", partial(AdaptivePropagation(channels, NUM_HOPS), adj=adj), by_messages, "PyG APPNP",
             "ours also computes and applies the gates"),
        ):  # fmt: skip
            for mode in (_forward, _training_step):
                name = f"{what} propagation, K={NUM_HOPS}, {channels} columns, {mode.__name__[1:].replace('_', ' ')}"
                found.append(Comparison(name, partial(mode, ours, z), partial(mode, peer, z), peer_name, note))
    return found


@torch.no_grad()
def _forward(propagate: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    return propagate(z)


def _training_step(propagate: Callable[[Tensor], Tensor], z: Tensor) -> Tensor | None:
    leaf = z.detach().requires_grad_()
    propagate(leaf).square().sum().backward()
    return leaf.grad
