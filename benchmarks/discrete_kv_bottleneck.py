"""The bottleneck against that of discrete-key-value-bottleneck-pytorch: looking up, training, placing keys."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.compare import Comparison
from etude.transfer.discrete_kv_bottleneck import KeyValueBottleneck, VotingDecoder, value_step

_DIM, _BATCH, _CLASSES = 576, 256, 10
_PEER = "discrete-key-value-bottleneck-pytorch"


def _pair(codebooks: int, pairs: int, dim_key: int) -> tuple[KeyValueBottleneck, nn.Module, Tensor]:
    """Both with the same projections, keys and values, and a batch of embeddings."""
    from discrete_key_value_bottleneck_pytorch import DiscreteKeyValueBottleneck

    generator = torch.Generator().manual_seed(0)
    ours = KeyValueBottleneck(
        _DIM, codebooks, pairs, dim_key, _CLASSES, value_init="normal", dead_threshold=0, generator=generator
    )
    ours.place_keys(torch.randn(1024, _DIM, generator=generator), epochs=2)
    peer = DiscreteKeyValueBottleneck(
        dim_key, dim_embed=_DIM, num_memories=pairs, num_memory_codebooks=codebooks, dim_memory=_CLASSES,
        codebook_dim=dim_key, decay=0.95,
    )  # fmt: skip
    with torch.no_grad():
        peer.rand_proj.copy_(ours.splitter.projection)
        peer.vq._codebook.embed.copy_(ours.codebook.keys)
        peer.vq._codebook.embed_avg.copy_(ours.codebook.ema_sums)
        peer.vq._codebook.cluster_size.copy_(ours.codebook.ema_counts)
        peer.values.copy_(ours.values)
    return ours, peer, torch.randn(_BATCH, _DIM, generator=generator)


def _looking_up(codebooks: int, pairs: int, dim_key: int) -> Comparison:
    ours, peer, z = _pair(codebooks, pairs, dim_key)
    ours.mask_unused = False
    vote = VotingDecoder()
    ours.eval()
    peer.eval()

    @torch.no_grad()
    def mine() -> Tensor:
        return vote(ours(z))

    @torch.no_grad()
    def theirs() -> Tensor:
        return peer(z[:, None])[:, 0]

    torch.testing.assert_close(mine(), theirs(), atol=1e-4, rtol=1e-4)
    return Comparison(
        name=f"mean votes of {_BATCH} embeddings, {codebooks} codebooks of {pairs} pairs",
        ours=mine, peer=theirs, peer_name=_PEER, note="the same numbers from both",
    )  # fmt: skip


def _training(codebooks: int, pairs: int, dim_key: int, cached: bool) -> Comparison:
    ours, peer, z = _pair(codebooks, pairs, dim_key)
    labels = torch.arange(_BATCH) % _CLASSES
    ours.train()
    peer.eval()  # keys are frozen
    optimizer = torch.optim.SGD([peer.values], lr=0.3)
    rows = ours.rows(ours.indices(z)).flatten(1)

    def mine() -> Any:
        found = rows if cached else ours.rows(ours.indices(z)).flatten(1)
        return value_step(ours, found, labels, 0.3)

    def theirs() -> None:
        optimizer.zero_grad()
        F.cross_entropy(peer(z[:, None])[:, 0], labels, label_smoothing=0.1).backward()
        torch.nn.utils.clip_grad_norm_([peer.values], 1.0)
        optimizer.step()

    mine()
    theirs()
    torch.testing.assert_close(ours.values, peer.values, atol=1e-4, rtol=1e-4)
    how = "pairs looked up once for all epochs" if cached else "from embeddings"
    note = "frozen keys never change: ours keeps what was looked up" if cached else "the same values from both"
    return Comparison(
        name=f"training step, {codebooks} codebooks of {pairs} pairs, {how}",
        ours=mine, peer=theirs, peer_name=_PEER, note=note,
    )  # fmt: skip


def _placing(codebooks: int, pairs: int, dim_key: int) -> Comparison:
    ours, peer, z = _pair(codebooks, pairs, dim_key)
    peer.train()

    @torch.no_grad()
    def mine() -> Any:
        return ours.codebook.update(ours.heads(z))

    @torch.no_grad()
    def theirs() -> Any:
        return peer(z[:, None])

    return Comparison(
        name=f"placement step of {codebooks} codebooks of {pairs} keys", ours=mine, peer=theirs, peer_name=_PEER,
        note="the peer also fetches values",
    )  # fmt: skip


def comparisons() -> list[Comparison]:
    import discrete_key_value_bottleneck_pytorch  # noqa: F401  asked for first, so that its absence is what is reported

    small, large = (32, 256, 8), (64, 1024, 14)
    made: list[Callable[[], Comparison]] = [
        lambda: _looking_up(*small), lambda: _looking_up(*large),
        lambda: _training(*small, cached=False), lambda: _training(*large, cached=False),
        lambda: _training(*large, cached=True), lambda: _placing(*small), lambda: _placing(*large),
    ]  # fmt: skip
    return [make() for make in made]
