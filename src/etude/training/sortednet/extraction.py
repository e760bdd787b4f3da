"""Cutting one sub-model out of the network.

Valipour et al., "SortedNet", arXiv:2309.00255, 2023: a sub-model needs no training of its own; here it also needs no
code of its own.
"""

import copy
from typing import Any

from torch import nn

from etude.training.sortednet.batchnorm import recalibrate_batchnorm
from etude.training.sortednet.depth import SortedModuleList, SortedSequential
from etude.training.sortednet.sampling import detach_samplers
from etude.training.sortednet.slicing import SortedLayer
from etude.training.sortednet.submodels import SubModel
from etude.training.sortednet.switching import set_submodel, sorted_root

__all__ = ["extract"]


def extract(model: nn.Module, b: SubModel, *, calibration: Any = None, limit: int | None = 10) -> nn.Module:
    """Sub-model `b` as a network of its own, made of plain torch layers with copies of its weights.

        small = extract(model, select(costs, parameters=200_000), calibration=data.train)

    It gives the outputs that `model` gives with `b` in use, in evaluation mode. It is an instance of the class that
    `model` is, with smaller layers in it; attributes of that class which name sizes keep the large network's values.
    Attention whose features and heads were cut independently becomes an `Attention`.

    Args:
        model: made by `sorted_`.
        b: a sub-model of its space.
        calibration: training data from which the statistics of batch norm are estimated first, as
            `recalibrate_batchnorm` does; needed once for every sub-model that has batch norm, but the full one.
        limit: batches of `calibration` to use.

    Raises:
        RuntimeError: if batch norm has no statistics of `b` and there is no `calibration`.
    """
    root = sorted_root(model)
    if calibration is not None:
        recalibrate_batchnorm(model, b, calibration, limit)
    with set_submodel(root, b):
        replaced: dict[int, Any] = {}
        _replace(root, replaced)
        # deepcopy takes what the memo holds in place of a copy: whole weights are never copied.
        return _plain(copy.deepcopy(root, replaced))


def _replace(module: nn.Module, replaced: dict[int, Any]) -> None:
    """Collects what stands for each layer, and for each block that is not in use, in the copy."""
    if isinstance(module, SortedLayer):
        replaced[id(module)] = module.extracted()
        return
    kept = module.kept() if isinstance(module, SortedSequential | SortedModuleList) else None
    for index, child in enumerate(module._modules.values()):
        if kept is not None and index not in kept:
            replaced[id(child)] = nn.Identity()
        elif child is not None:
            _replace(child, replaced)


def _plain(module: nn.Module) -> nn.Module:
    for name, child in list(module._modules.items()):
        if child is not None:
            module._modules[name] = _plain(child)
    for name in ("sorted_space", "sorted_parts", "sorted_active"):
        module.__dict__.pop(name, None)
    detach_samplers(module)
    if isinstance(module, SortedSequential | SortedModuleList):
        return module.extracted().train(module.training)
    return module
