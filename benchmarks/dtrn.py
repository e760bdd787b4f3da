"""A training step of the heads against those of DeepCTR-Torch, from the same ids: forward, loss, backward, update."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.compare import Comparison
from etude.ranking.dtrn import DTRN, PLE, MMoE, multitask_loss

_FIELDS, _SIZE, _DIM, _TASKS, _EXPERT, _TOWER = 20, 1000, 16, 2, 128, 64
_TYPES, _TIME = 2, 50


class _Model(nn.Module):
    """A table for each field, side by side, and a head."""

    def __init__(self, head: nn.Module):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(_SIZE, _DIM) for _ in range(_FIELDS))
        self.head = head

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.cat([table(column) for table, column in zip(self.tables, ids.unbind(1))], dim=1))


def _peer(name: str) -> nn.Module:
    from deepctr_torch.inputs import SparseFeat
    from deepctr_torch.models import MMOE as PeerMMoE
    from deepctr_torch.models import PLE as PeerPLE

    columns = [SparseFeat(f"f{index}", _SIZE, _DIM) for index in range(_FIELDS)]
    options = {
        "expert_dnn_hidden_units": (_EXPERT,), "gate_dnn_hidden_units": (), "tower_dnn_hidden_units": (_TOWER,),
        "l2_reg_linear": 0.0, "l2_reg_embedding": 0.0, "init_std": 0.05, "task_names": ("a", "b"),
    }  # fmt: skip
    if name == "mmoe":
        return PeerMMoE(columns, num_experts=4, **options)
    return PeerPLE(columns, shared_expert_num=2, specific_expert_num=2, num_levels=2, **options)


def _put(bank: nn.Module, index: int, peer: nn.Linear) -> None:
    bank.weight[index].copy_(peer.weight.T)
    if bank.bias is not None:
        bank.bias[index].copy_(0.0 if peer.bias is None else peer.bias)


@torch.no_grad()
def copy_weights(peer: nn.Module, ours: _Model) -> None:
    """Gives our model the peer's weights."""
    for index, table in enumerate(ours.tables):
        table.weight.copy_(peer.embedding_dict[f"f{index}"].weight)
    for task in range(_TASKS):
        _put(ours.head.towers.layers[0], task, peer.tower_dnn[task].linears[0])
        _put(ours.head.towers.out, task, peer.tower_dnn_final_layer[task])
    if isinstance(ours.head, MMoE):
        for expert, network in enumerate(peer.expert_dnn):
            _put(ours.head.experts.layers[0], expert, network.linears[0])
        for task, gate in enumerate(peer.gate_dnn_final_layer):
            _put(ours.head.gates, task, gate)
        return
    for index, level in enumerate(ours.head.levels):
        for task in range(_TASKS):
            for expert, network in enumerate(peer.specific_experts[index][task]):
                _put(level.own.layers[0], 2 * task + expert, network.linears[0])
            _put(level.gates, task, peer.specific_gate_dnn_final_layer[index][task])
        for expert, network in enumerate(peer.shared_experts[index][0]):
            _put(level.shared.layers[0], expert, network.linears[0])
        if level.shared_gate is not None:
            level.shared_gate.weight.copy_(peer.shared_gate_dnn_final_layer[index].weight)


def _step(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _heads(name: str, batch: int) -> Comparison:
    torch.manual_seed(0)
    ids = torch.randint(_SIZE, (batch, _FIELDS))
    labels = torch.randint(2, (batch, _TASKS)).float()
    wide = _FIELDS * _DIM
    if name == "mmoe":
        head: nn.Module = MMoE(wide, _TASKS, 4, (_EXPERT,), (_TOWER,))
    else:
        head = PLE(wide, _TASKS, 2, 2, 2, (_EXPERT,), (_TOWER,))
    ours, peer = _Model(head), _peer(name)
    copy_weights(peer, ours)
    columns = ids.float()
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).sigmoid(), peer(columns), atol=1e-6, rtol=0)

    def peers_loss() -> Tensor:
        p = peer(columns)
        return F.binary_cross_entropy(p[:, 0], labels[:, 0]) + F.binary_cross_entropy(p[:, 1], labels[:, 1])

    return Comparison(
        name=f"training step of {name}, {_FIELDS} fields of {_DIM}, batch {batch}",
        ours=_step(ours, lambda: multitask_loss(ours(ids), labels)),
        peer=_step(peer, peers_loss),
        peer_name="DeepCTR-Torch",
        note="the same numbers from both",
    )


def _conditions(tasks: int, batch: int) -> Comparison:
    """Interests of all tasks at once against one task's after the other."""
    torch.manual_seed(0)
    model = DTRN([("item", 10_000)], _TYPES, tasks, "shared_bottom", refinement=False, max_len=_TIME)
    tim = model.interest
    x, target = torch.randn(batch, _TYPES, _TIME, 16), torch.randn(batch, 16)
    mask = torch.arange(_TIME) < torch.randint(1, _TIME + 1, (batch, _TYPES))[..., None]

    def alone() -> None:
        affine = tim.hyper()
        parts = [tim._interests(x + tim.position, affine[task : task + 1], mask, target)[0] for task in range(tasks)]
        torch.cat(parts, dim=1).sum().backward()

    return Comparison(
        name=f"interests of {tasks} tasks in {_TYPES} sequences of {_TIME}, batch {batch}, forward and backward",
        ours=lambda: tim(x, mask, target).sum().backward(),
        peer=alone,
        peer_name="the same, task after task",
        note="the first attention is computed once for all tasks",
    )


def comparisons() -> list[Comparison]:
    import deepctr_torch  # noqa: F401  asked for first, so that its absence is what is reported

    return [_heads("mmoe", 512), _heads("ple", 512), _conditions(4, 256)]
