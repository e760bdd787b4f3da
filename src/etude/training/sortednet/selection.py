"""What each sub-model costs and reaches, and the choice of one for a budget.

Valipour et al., "SortedNet", arXiv:2309.00255, 2023: as sub-models are sorted, the best for a budget is taken to be the
largest that fits. Nothing is searched, trained or validated for it.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from etude.loop.evaluation import accuracy, mode, outputs_of
from etude.training.sortednet.batchnorm import SortedBatchNorm, recalibrate_batchnorm
from etude.training.sortednet.submodels import SubModel
from etude.training.sortednet.switching import count_parameters, set_submodel, space_of

__all__ = ["Cost", "count_flops", "evaluate_all", "measure_costs", "measure_latency", "pareto", "select"]


@dataclass(frozen=True)
class Cost:
    """What a sub-model costs to hold and to run once.

    Args:
        macs: multiply-accumulate operations of one forward pass.
        parameters: number of weights.
        seconds: median time of one forward pass; None if it was not measured.
    """

    macs: int
    parameters: int
    seconds: float | None = None


@torch.no_grad()
def count_flops(model: nn.Module, b: SubModel, inputs: Tensor) -> int:
    """Floating-point operations of one forward pass of sub-model `b`, two for each multiplication with addition.

    Matrix products, convolutions and attention, counted by torch while the first input of the batch passes through.

    Args:
        model: made by `sorted_`.
        b: a sub-model of its space.
        inputs: a batch, along the first axis, on the model's device.
    """
    counter = FlopCounterMode(display=False)
    with set_submodel(model, b), mode(model, training=False), _any_statistics(model), counter:
        model(inputs[:1])
    return counter.get_total_flops() * len(inputs)


@contextmanager
def _any_statistics(model: nn.Module) -> Iterator[None]:
    """Inside, batch norm takes some statistics where it knows none of the sub-model in use: they cost the same."""
    lent = []
    for layer in model.modules():
        if isinstance(layer, SortedBatchNorm) and layer.lend_statistics():
            lent.append(layer)
    try:
        yield
    finally:
        for layer in lent:
            layer.forget_statistics()


@torch.no_grad()
def measure_latency(model: nn.Module, b: SubModel, inputs: Tensor, *, repeats: int = 15) -> float:
    """Median seconds of one forward pass of sub-model `b` in evaluation mode, on the inputs' device.

    Args:
        model: made by `sorted_`, on the device of `inputs`.
        b: a sub-model of its space.
        inputs: a batch of the size that will be served.
        repeats: timed passes, >= 1, after three that are not.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    wait: Callable[[], Any] = torch.cuda.synchronize if inputs.is_cuda else lambda: None
    times = []
    with set_submodel(model, b), mode(model, training=False), _any_statistics(model):
        for _ in range(3 + repeats):
            wait()
            begun = time.perf_counter()
            model(inputs)
            wait()
            times.append(time.perf_counter() - begun)
    return statistics.median(times[3:])


def measure_costs(
    model: nn.Module, inputs: Tensor, *, latency: bool = False, repeats: int = 15
) -> dict[SubModel, Cost]:
    """The cost of every sub-model.

    Args:
        model: made by `sorted_`.
        inputs: a batch; MACs and seconds are those of one forward pass on it.
        latency: also time the passes, `repeats` of each sub-model.
    """
    return {
        b: Cost(
            macs=count_flops(model, b, inputs) // 2,
            parameters=count_parameters(model, b),
            seconds=measure_latency(model, b, inputs, repeats=repeats) if latency else None,
        )
        for b in space_of(model)
    }


def select(
    costs: Mapping[SubModel, Cost],
    *,
    macs: float | int | None = None,
    parameters: float | int | None = None,
    seconds: float | int | None = None,
) -> SubModel:
    """The largest sub-model, by MACs, within every budget given. No search, no validation data.

        b = select(measure_costs(model, x, latency=True), parameters=1e6, seconds=0.005)

    Equal MACs go to more parameters, then to the later sub-model in the order of the space.

    Args:
        costs: of the sub-models to choose among, from `measure_costs`.
        macs, parameters, seconds: largest cost allowed; None for no limit.

    Raises:
        ValueError: if no sub-model fits, no budget is given, or latencies were not measured.
    """
    budgets = {"macs": macs, "parameters": parameters, "seconds": seconds}
    limits = {name: limit for name, limit in budgets.items() if limit is not None}
    if not limits:
        raise ValueError("select needs a budget: macs, parameters or seconds")
    if "seconds" in limits and any(cost.seconds is None for cost in costs.values()):
        raise ValueError("latencies were not measured: measure_costs(model, inputs, latency=True)")
    fitting = [b for b, cost in costs.items() if all(getattr(cost, name) <= limit for name, limit in limits.items())]
    if not fitting:
        least = {name: min(getattr(cost, name) for cost in costs.values()) for name in limits}
        raise ValueError(f"no sub-model fits {limits}; the least of each is {least}")
    order = {b: place for place, b in enumerate(costs)}
    return max(fitting, key=lambda b: (costs[b].macs, costs[b].parameters, order[b]))


def evaluate_all(
    model: nn.Module,
    examples: Any,
    *,
    calibration: Any = None,
    limit: int | None = 10,
    metric: Callable[[Tensor, Tensor], Any] | None = None,
    batch_size: int = 512,
) -> dict[SubModel, float]:
    """A metric of every sub-model; accuracy if none is given.

    Args:
        model: made by `sorted_`.
        examples: held-out data, as for `etude.loop.evaluate`.
        calibration: training data to estimate batch-norm statistics of each sub-model from, `limit` batches of it;
            needed if the model has batch norm whose statistics are not known yet.
        metric: function of (all outputs, all targets).
        batch_size: rows per pass.

    Raises:
        ValueError: if, for the accuracy, a target is no class of the outputs.
    """
    scores = {}
    for b in space_of(model):
        if calibration is not None:
            recalibrate_batchnorm(model, b, calibration, limit)
        with set_submodel(model, b):
            scores[b] = float((metric or _accuracy)(*outputs_of(model, examples, batch_size)))
    return scores


def _accuracy(outputs: Tensor, targets: Tensor) -> float:
    classes = outputs.shape[-1]
    if not bool(((targets >= 0) & (targets < classes)).all()):
        raise ValueError(f"targets must lie in 0..{classes - 1}, got {int(targets.min())}..{int(targets.max())}")
    return accuracy(outputs, targets)


def pareto(costs: Mapping[SubModel, Cost], scores: Mapping[SubModel, float], cost: str = "macs") -> list[SubModel]:
    """The sub-models that none other beats: no cheaper or equally cheap one scores higher. Cheapest first.

    For a choice by validation, where one is wanted: `select` makes do without.

    Args:
        costs: from `measure_costs`.
        scores: higher is better, from `evaluate_all`.
        cost: "macs", "parameters" or "seconds".
    """
    if cost not in ("macs", "parameters", "seconds"):
        raise ValueError(f"cost must be macs, parameters or seconds, got {cost!r}")
    front: list[SubModel] = []
    for b in sorted(costs, key=lambda b: (getattr(costs[b], cost), -scores[b])):
        if not front or scores[b] > scores[front[-1]]:
            front.append(b)
    return front
