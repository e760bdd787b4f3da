"""Measuring a model on held-out examples.

Every function puts the model into evaluation mode for the while and restores the mode of each of its modules.
In several processes each computes its share of the examples and all get the result: every process must call.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from etude.data.kinds import Examples
from etude.loop.batches import to_device
from etude.loop.processes import processes

__all__ = ["accuracy", "evaluate", "mean_loss", "mode", "outputs_of"]

Metric = Callable[[Tensor, Tensor], Any]


@contextmanager
def mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Training or evaluation mode inside the block; after it each module has the mode it had before."""
    before = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, was in before:
            module.training = was


def device_of(model: nn.Module) -> torch.device:
    """Where the model's weights (or buffers) lie; the CPU for a model that has none."""
    tensor = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


def _batches(examples: Any, rows: range, batch_size: int) -> Iterator[tuple[Any, Any]]:
    if isinstance(examples, Examples):
        for start in range(rows.start, rows.stop, batch_size):
            yield examples[start : min(start + batch_size, rows.stop)]
    else:
        # A generator of its own: a loader without one draws from the global generator even in fixed order.
        yield from DataLoader(Subset(examples, rows), batch_size=batch_size, generator=torch.Generator())


def outputs_of(model: nn.Module, examples: Any, batch_size: int = 512) -> tuple[Tensor, Tensor]:
    """The model's outputs for all examples, in order and without gradient, and the targets, on the model's device.

    Args:
        model: maps a batch of inputs to one tensor with a row per example.
        examples: `Examples`, a map-style dataset of pairs, or a `DataLoader` (read whole by every process).
        batch_size: rows per pass; the result does not depend on it.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be positive, got {batch_size}")
    peers = processes()
    loader = isinstance(examples, DataLoader)
    if not loader and len(examples) == 0:
        raise ValueError("there are no examples to evaluate on")
    rows = range(0) if loader else range(len(examples))[peers.share(len(examples))]
    if not loader and len(examples) < peers.count:
        raise ValueError(f"{len(examples)} examples cannot be shared by {peers.count} processes")
    device = device_of(model)
    outputs, targets = [], []
    with mode(model, training=False), torch.no_grad():
        for inputs, target in examples if loader else _batches(examples, rows, batch_size):
            output = model(to_device(inputs, device))
            if not isinstance(output, Tensor):
                raise TypeError(f"the model must return one tensor to be evaluated, got {type(output).__name__}")
            outputs.append(output)
            targets.append(to_device(target, device))
    if not outputs:
        raise ValueError("the data loader yields no batch")
    joined, answers = torch.cat(outputs), torch.cat(targets)
    if loader:
        return joined, answers
    return peers.rows(joined, len(examples)), peers.rows(answers, len(examples))


def _pair(model: nn.Module | Tensor, examples: Any, batch_size: int) -> tuple[Tensor, Tensor]:
    return (model, examples) if isinstance(model, Tensor) else outputs_of(model, examples, batch_size)


def accuracy(model: nn.Module | Tensor, examples: Any, *, batch_size: int = 512) -> float:
    """Fraction of examples whose largest output is at the target's index.

    Args:
        model: gives class scores along the last axis; or a tensor of such scores.
        examples: as for `outputs_of`; or, with scores, a tensor of targets. Targets have the scores' shape less
            the last axis, and each counts (so for sequences the accuracy is per token).
    """
    scores, targets = _pair(model, examples, batch_size)
    if scores.shape[:-1] != targets.shape:
        raise ValueError(
            f"targets must have the scores' shape less its last axis, {tuple(scores.shape[:-1])}, "
            f"got {tuple(targets.shape)}"
        )
    return (scores.argmax(dim=-1) == targets).double().mean().item()


def mean_loss(
    model: nn.Module | Tensor, examples: Any, *, loss: Metric = F.cross_entropy, batch_size: int = 512
) -> float:
    """`loss` over all examples at once; arguments as for `accuracy`."""
    outputs, targets = _pair(model, examples, batch_size)
    return float(loss(outputs, targets))


def evaluate(
    model: nn.Module,
    examples: Any,
    *,
    metrics: Mapping[str, Metric] | None = None,
    batch_size: int = 512,
) -> dict[str, float]:
    """Several metrics from one pass over the examples.

        evaluate(model, data.test, metrics={"accuracy": accuracy, "loss": mean_loss})

    Args:
        model, examples, batch_size: as for `outputs_of`.
        metrics: name -> function of (all outputs, all targets) that gives a number; the accuracy if None.
    """
    outputs, targets = outputs_of(model, examples, batch_size)
    chosen = {"accuracy": accuracy} if metrics is None else metrics
    return {name: float(metric(outputs, targets)) for name, metric in chosen.items()}
