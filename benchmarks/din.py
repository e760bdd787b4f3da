"""A training step of DIN against that of DeepCTR-Torch, from the same ids: forward, cross-entropy, backward, update."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.compare import Comparison
from etude.ranking.din import DIN, Field
from etude.ranking.din.activation import Activation

_DIM, _UNIT, _MLP, _CATEGORIES = 16, (64, 16), (256, 128), 100


def _batch(batch: int, time: int, items: int) -> tuple[dict, dict, Tensor, Tensor]:
    """Ids of candidates and histories, the histories' lengths, labels."""
    generator = torch.Generator().manual_seed(0)
    length = torch.randint(1, time + 1, (batch,), generator=generator)
    length[0] = time
    mask = torch.arange(time) < length[:, None]
    candidate, history = {}, {}
    for name, size in (("item", items), ("category", _CATEGORIES)):
        candidate[name] = torch.randint(2, size, (batch,), generator=generator)
        history[name] = torch.randint(2, size, (batch, time), generator=generator) * mask
    return candidate, history, length, torch.randint(2, (batch,), generator=generator).float()


def _peer(items: int, time: int, activation: Activation) -> nn.Module:
    from deepctr_torch.inputs import SparseFeat, VarLenSparseFeat
    from deepctr_torch.models import DIN as PeerDIN

    columns = []
    for name, size in (("item", items), ("category", _CATEGORIES)):
        columns.append(SparseFeat(name, size, _DIM))
    for name, size in (("item", items), ("category", _CATEGORIES)):
        column = SparseFeat(f"hist_{name}", size, _DIM, embedding_name=name)
        columns.append(VarLenSparseFeat(column, time, length_name="length"))
    return PeerDIN(
        columns, ["item", "category"], dnn_hidden_units=_MLP, dnn_activation="prelu", att_hidden_size=_UNIT,
        att_activation="Dice" if activation == "dice" else "sigmoid", l2_reg_embedding=0.0, init_std=0.05,
    )  # fmt: skip


def _peer_inputs(peer: nn.Module, candidate: dict, history: dict, length: Tensor) -> Tensor:
    """The peer takes all ids as one matrix of floats."""
    named = {**candidate, "length": length, **{f"hist_{name}": ids for name, ids in history.items()}}
    columns = [named[name].reshape(len(length), -1) for name in peer.feature_index]
    return torch.cat(columns, dim=1).float()


@torch.no_grad()
def _copy(peer: nn.Module, ours: DIN) -> None:
    for name, table in ours.tables.items():
        table.weight.copy_(peer.embedding_dict[name].weight)
        table.weight[0] = 0
    layers = [*peer.attention.local_att.dnn.linears, *peer.dnn.linears]
    for layer, theirs in zip([*ours.pooling.unit.hidden, *ours.mlp[::2]], layers):
        layer.weight.copy_(theirs.weight)
        layer.bias.copy_(theirs.bias)
    # The peer's input is [candidate, history], ours [history, candidate].
    half = 2 * _DIM
    first = ours.mlp[0].weight
    first.copy_(torch.cat([first[:, half:], first[:, :half]], dim=1))
    ours.pooling.unit.out.weight.copy_(peer.attention.local_att.dense.weight)
    ours.pooling.unit.out.bias.copy_(peer.attention.local_att.dense.bias)
    ours.out.weight.copy_(peer.dnn_linear.weight)
    ours.out.bias.zero_()


def _step(loss: Callable[[], Tensor], *optimizers: torch.optim.Optimizer) -> Callable[[], None]:
    def step() -> None:
        loss().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return step


def _comparison(items: int, batch: int, time: int, activation: Activation, sparse: bool) -> Comparison:
    torch.manual_seed(0)
    candidate, history, length, labels = _batch(batch, time, items)
    ours = DIN(
        [Field("item", items, _DIM), Field("category", _CATEGORIES, _DIM)], ["item", "category"], _MLP,
        activation="prelu", unit_dims=_UNIT, unit_activation=activation, sparse=sparse,
    )  # fmt: skip
    peer = _peer(items, time, activation)
    x = _peer_inputs(peer, candidate, history, length)
    if activation == "sigmoid":
        _copy(peer, ours)
        with torch.no_grad():
            torch.testing.assert_close(ours.eval()(candidate, history).sigmoid(), peer.eval()(x)[:, 0])
    ours.train()
    peer.train()

    tables = [table.weight for table in ours.tables.values()] if sparse else []
    rest = [p for p in ours.parameters() if not any(p is table for table in tables)]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.Adam(rest)]
    if sparse:
        optimizers.append(torch.optim.SparseAdam(tables))
    same = "the same numbers from both" if activation == "sigmoid" else "ours leaves padding out of the statistics"
    rows = "rows of the batch" if sparse else "whole tables, as the peer's"
    return Comparison(
        name=f"training step, {items:,} items, batch {batch}, T={time}, {activation} unit, updates of {rows}",
        ours=_step(lambda: F.binary_cross_entropy_with_logits(ours(candidate, history), labels), *optimizers),
        peer=_step(lambda: F.binary_cross_entropy(peer(x)[:, 0], labels), torch.optim.Adam(peer.parameters())),
        peer_name="DeepCTR-Torch DIN",
        note=same,
    )


def comparisons() -> list[Comparison]:
    import deepctr_torch  # noqa: F401  asked for first, so that its absence is what is reported

    return [
        _comparison(10_000, 256, 50, "sigmoid", sparse=False),
        _comparison(10_000, 256, 50, "sigmoid", sparse=True),
        _comparison(10_000, 256, 50, "dice", sparse=True),
        _comparison(200_000, 256, 50, "dice", sparse=True),
    ]
