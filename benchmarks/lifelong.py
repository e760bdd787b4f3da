"""A training step of a network under consolidation: against avalanche's EWC, and against plain training.

avalanche's EWCPlugin in the mode "separate" adds ewc_lambda * sum F (theta - saved)^2 for every past task to the loss;
here all past tasks are one quadratic.
"""

import importlib.util
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.compare import Comparison
from etude.transfer.lifelong import Consolidation

_WIDTHS, _BATCH, _PAST = (784, 512, 512, 10), 64, 5


def _mlp() -> nn.Module:
    torch.manual_seed(0)
    layers = [part for i, o in pairwise(_WIDTHS) for part in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def _step(net: nn.Module, extra: Callable[[], Tensor] | None = None) -> Callable[[], None]:
    x, y = torch.randn(_BATCH, _WIDTHS[0]), torch.randint(10, (_BATCH,))
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.01)

    def step() -> None:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        (loss if extra is None else loss + extra()).backward()
        optimizer.step()

    step.optimizer = optimizer  # type: ignore[attr-defined]
    return step


def _held(mode: str, rules: dict[str, float]) -> Callable[[], None]:
    net = _mlp()
    consolidation = Consolidation(net, mode=mode)
    consolidation.apply(rules)
    if any(0 < b < float("inf") for b in rules.values()):
        for _ in range(_PAST):
            consolidation.consolidate({name: torch.rand_like(p) for name, p in net.named_parameters()})
    moving = {id(p) for p in consolidation.trainable()}
    for p in net.parameters():
        # As `LifelongLearner` does: what is wholly frozen needs no gradient.
        p.requires_grad_(id(p) in moving)
    step = _step(net)
    consolidation.attach(step.optimizer)  # type: ignore[attr-defined]
    return step


def _avalanche() -> Callable[[], None]:
    """The peer's penalty, computed by its own plugin."""
    from types import SimpleNamespace

    from avalanche.training.plugins import EWCPlugin
    from avalanche.training.plugins.ewc import ParamData

    net = _mlp()
    plugin = EWCPlugin(ewc_lambda=0.5, mode="separate")
    for task in range(_PAST):
        for kept, values in ((plugin.importances, torch.rand_like), (plugin.saved_params, torch.clone)):
            kept[task] = {
                name: ParamData(name, device=p.device, init_tensor=values(p.detach()))
                for name, p in net.named_parameters()
            }

    def penalty() -> Tensor:
        strategy = SimpleNamespace(
            clock=SimpleNamespace(train_exp_counter=_PAST), model=net, device="cpu", loss=torch.zeros(())
        )
        plugin.before_backward(strategy)
        return strategy.loss

    return _step(net, penalty)


def comparisons() -> list[Comparison]:
    found = [
        Comparison(
            name=f"training step, MLP {'-'.join(map(str, _WIDTHS))}, batch {_BATCH}, {what}",
            ours=_held(mode, rules),
            peer=_step(_mlp()),
            peer_name="plain torch",
            note="what holding weights costs",
        )
        for what, mode, rules in (
            ("elastic, proximal", "proximal", {"*[*->*]": 0.5}),
            ("elastic, penalty", "penalty", {"*[*->*]": 0.5}),
            ("first layer frozen", "proximal", {"0.*:*[*->*]": float("inf")}),
        )
    ]
    if importlib.util.find_spec("avalanche") is None:
        return found
    return [
        *found,
        Comparison(
            name=f"training step, same MLP, EWC over {_PAST} past tasks",
            ours=_held("penalty", {"*[*->*]": 0.5}),
            peer=_avalanche(),
            peer_name="avalanche EWCPlugin",
        ),
    ]
