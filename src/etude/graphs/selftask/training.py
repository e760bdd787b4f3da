"""Training with pretext tasks, jointly or in two stages.

Jin et al., "Self-supervised Learning on Graphs: Deep Insights and New Direction", arXiv:2006.10141, section 3:

    joint:      min over theta  CE(logits of the labelled, labels) + sum over tasks of weight x L_self
    two-stage:  min L_self first; then the GCN, with these weights and a new classifier, min CE

Adam with weight decay on all weights, the heads' too. The weights of the epoch with the best validation accuracy are
the result, of several equal ones the last, as in the authors' code. Evaluation sees the graph uncorrupted.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from etude.graphs.selftask.encoders import GCNEncoder
from etude.graphs.selftask.task import PretextTask

__all__ = ["SelfTaskFit", "accuracy", "fit_joint", "fit_two_stage", "pretrain"]

Tasks = Mapping[PretextTask, float | int] | Sequence[tuple[PretextTask, float | int]]
Call = Callable[[nn.Module, Any], Any]


class SelfTaskFit(NamedTuple):
    """How a training went.

    Attributes:
        epochs: that were run.
        best_epoch: whose weights were kept, from 1.
        train_loss, val_loss, val_accuracy: of that epoch, without dropout; the first is the cross-entropy.
        self_losses: the last value of L_self of each task, unweighted, in the order given.
    """

    epochs: int
    best_epoch: int
    train_loss: float
    val_loss: float
    val_accuracy: float
    self_losses: tuple[float, ...]


def accuracy(logits: Float[Tensor, "nodes classes"], y: Int64[Tensor, "nodes"], mask: Bool[Tensor, "nodes"]) -> float:
    """Share of the nodes of `mask` whose largest logit is that of their class."""
    return (logits[mask].argmax(dim=1) == y[mask]).double().mean().item()


def encode(encoder: nn.Module, data: Any) -> Any:
    """`encoder(data.x, data.edge_index)`, the usual call."""
    return encoder(data.x, data.edge_index)


def _weighted(tasks: Tasks | None) -> list[tuple[PretextTask, float]]:
    items = [] if tasks is None else list(tasks.items() if isinstance(tasks, Mapping) else tasks)
    for task, weight in items:
        if not isinstance(task, PretextTask):
            raise TypeError(f"tasks are PretextTask, got {type(task).__name__}")
        if not 0 <= weight < float("inf"):
            raise ValueError(f"the weight of {type(task).__name__} must be finite and not negative, got {weight}")
    return [(task, float(weight)) for task, weight in items]


def _encoded(encoder: nn.Module, data: Any, call: Call) -> Any:
    output = call(encoder, data)
    if not isinstance(output, tuple) or len(output) < 2:
        raise TypeError(
            f"an encoder gives (logits, hidden) or (logits, hidden, dropped), got {type(output).__name__}; "
            "TappedEncoder makes one of any model"
        )
    return output


def _embeddings(output: Any, task: PretextTask) -> Tensor:
    return output[2] if task.reads == "dropped" and len(output) > 2 else output[1]


def _corrupted(data: Any, tasks: list[tuple[PretextTask, float]], generator: torch.Generator) -> Any:
    for task, _ in tasks:
        data = task.corrupt(data, generator=generator)
    return data


def _optimizer(
    encoder: nn.Module, tasks: list[tuple[PretextTask, float]], lr: float, weight_decay: float
) -> torch.optim.Adam:
    parameters = list(encoder.parameters()) + [weight for task, _ in tasks for weight in task.parameters()]
    return torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay)


def fit_joint(
    encoder: nn.Module,
    tasks: Tasks | None,
    data: Any,
    *,
    train_mask: Bool[Tensor, "nodes"] | None = None,
    val_mask: Bool[Tensor, "nodes"] | None = None,
    lr: float = 0.01,
    weight_decay: float = 5e-4,
    epochs: int = 200,
    prepare: bool = True,
    generator: torch.Generator | None = None,
    call: Call = encode,
    callback: Callable[..., None] | None = None,
) -> SelfTaskFit:
    """Minimises CE + sum of weight x L_self and leaves the encoder at its best validation epoch, in eval mode.

        fit_joint(GCNEncoder(f, c), {Distance2Labeled(): 100.0}, data)

    Encoder dropout draws from torch's global generator, everything of the tasks from `generator`: with weights of 0 a
    task that leaves the input as it is changes no bit of the training.

    Args:
        encoder: gives (logits, hidden) or (logits, hidden, dropped); see `GCNEncoder` and `TappedEncoder`.
        tasks: each with its weight, in a dict or in pairs; none or an empty dict trains the plain classifier.
        data: `GraphData`, PyG's `Data`, or the like.
        train_mask, val_mask: those of the data if None. Labels outside of them are not looked at.
        lr, weight_decay: of Adam.
        epochs: updates, each on the whole graph.
        prepare: make the targets here; False takes tasks that are prepared.
        generator: on the CPU; a new one of seed 0 if None.
        call: how the encoder takes the graph; `call(encoder, data)`.
        callback: called as `callback(epoch, epochs, loss=, self_loss=, val_loss=, val_accuracy=)`: the cross-entropy
            and the weighted sum of the L_self apart.

    Raises:
        ValueError: if a mask is malformed or empty, masks overlap, a weight is negative, or `epochs` is not positive.
        FloatingPointError: if the loss is not finite.
    """
    train, val = _masks(data, train_mask, val_mask)
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    weighted = _weighted(tasks)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    if prepare:
        for task, _ in weighted:
            task.prepare(data, train, generator)
    optimizer = _optimizer(encoder, weighted, lr, weight_decay)
    best: dict[str, Tensor] = {}
    best_epoch, best_logits, best_accuracy = 0, torch.empty(0), -1.0

    def judge(epoch: int, loss: Tensor, self_loss: Tensor, hidden: Tensor | None) -> None:
        """Evaluates the present weights, which are those after `epoch`."""
        nonlocal best, best_epoch, best_logits, best_accuracy
        encoder.eval()
        with torch.no_grad():
            if isinstance(encoder, GCNEncoder) and hidden is not None:
                logits = encoder.classify(hidden, data.edge_index)
            else:
                logits = call(encoder, data)[0]
        reached = accuracy(logits, data.y, val)
        if reached >= best_accuracy:
            best = {name: value.clone() for name, value in encoder.state_dict().items()}
            best_epoch, best_logits, best_accuracy = epoch + 1, logits, reached
        if callback is not None:
            callback(
                epoch + 1, epochs, loss=loss.item(), self_loss=self_loss.item(),
                val_loss=F.cross_entropy(logits[val], data.y[val]).item(), val_accuracy=reached,
            )  # fmt: skip

    # Where no task changes the graph, the embeddings of an epoch's forward pass are those that evaluation of the epoch
    # before would compute again: evaluation waits for them.
    shared = type(encoder) is GCNEncoder and call is encode
    waiting: tuple[int, Tensor, Tensor] | None = None
    for epoch in range(epochs):
        encoder.train()
        seen = _corrupted(data, weighted, generator)
        output = _encoded(encoder, seen, call)
        if waiting is not None:
            judge(*waiting, output[1].detach() if seen is data else None)
            encoder.train()
        loss = F.cross_entropy(output[0][train], data.y[train])
        self_losses = _self_losses(weighted, output, epoch, generator)
        total = loss
        for (_, weight), value in zip(weighted, self_losses):
            total = total + weight * value
        if not bool(torch.isfinite(total)):
            raise FloatingPointError(f"the loss is {total.item()} in epoch {epoch + 1}")
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        waiting = (epoch, loss.detach(), (total - loss).detach())
        if not (shared and seen is data and epoch + 1 < epochs):
            judge(*waiting, None)
            waiting = None
    encoder.load_state_dict(best)
    return SelfTaskFit(
        epochs=epochs,
        best_epoch=best_epoch,
        train_loss=F.cross_entropy(best_logits[train], data.y[train]).item(),
        val_loss=F.cross_entropy(best_logits[val], data.y[val]).item(),
        val_accuracy=best_accuracy,
        self_losses=tuple(value.item() for value in self_losses),
    )


def pretrain(
    encoder: nn.Module,
    tasks: Tasks,
    data: Any,
    *,
    train_mask: Bool[Tensor, "nodes"] | None = None,
    lr: float = 0.01,
    weight_decay: float = 5e-4,
    epochs: int = 200,
    prepare: bool = True,
    generator: torch.Generator | None = None,
    call: Call = encode,
    callback: Callable[..., None] | None = None,
) -> tuple[float, ...]:
    """Minimises the weighted sum of the L_self alone, the first stage; gives the last L_self of each task.

    What no task reaches, the classifier, keeps its weights: it has no gradient. Arguments as of `fit_joint`; the
    callback gets `self_loss`.

    Raises:
        ValueError: without a task of positive weight, or as `fit_joint`.
        FloatingPointError: if the loss is not finite.
    """
    weighted = _weighted(tasks)
    if not any(weight > 0 for _, weight in weighted):
        raise ValueError("pretraining needs a task of positive weight")
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    train = _mask(data, "train_mask", train_mask)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    if prepare:
        for task, _ in weighted:
            task.prepare(data, train, generator)
    optimizer = _optimizer(encoder, weighted, lr, weight_decay)
    encoder.train()
    for epoch in range(epochs):
        output = _encoded(encoder, _corrupted(data, weighted, generator), call)
        self_losses = _self_losses(weighted, output, epoch, generator)
        total = torch.stack([weight * value for (_, weight), value in zip(weighted, self_losses)]).sum()
        if not bool(torch.isfinite(total)):
            raise FloatingPointError(f"the loss is {total.item()} in epoch {epoch + 1}")
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        if callback is not None:
            callback(epoch + 1, epochs, self_loss=total.item())
    return tuple(value.item() for value in self_losses)


def fit_two_stage(
    encoder: nn.Module,
    tasks: Tasks,
    data: Any,
    *,
    train_mask: Bool[Tensor, "nodes"] | None = None,
    val_mask: Bool[Tensor, "nodes"] | None = None,
    lr: float = 0.01,
    weight_decay: float = 5e-4,
    pretrain_epochs: int = 200,
    epochs: int = 200,
    prepare: bool = True,
    generator: torch.Generator | None = None,
    call: Call = encode,
    callback: Callable[..., None] | None = None,
) -> SelfTaskFit:
    """`pretrain`, then all weights fine-tuned on the labels alone, by a new optimizer, on the uncorrupted graph.

    The classifier starts from its initial weights, which the first stage leaves alone; the pretext heads are left
    behind. Arguments, errors and the result as of `fit_joint`; the callback is called in the second stage.
    """
    _masks(data, train_mask, val_mask)
    losses = pretrain(
        encoder, tasks, data, train_mask=train_mask, lr=lr, weight_decay=weight_decay, epochs=pretrain_epochs,
        prepare=prepare, generator=generator, call=call,
    )  # fmt: skip
    fitted = fit_joint(
        encoder, None, data, train_mask=train_mask, val_mask=val_mask, lr=lr, weight_decay=weight_decay, epochs=epochs,
        call=call, callback=callback,
    )  # fmt: skip
    return fitted._replace(self_losses=losses)


def _self_losses(
    weighted: list[tuple[PretextTask, float]], output: Any, epoch: int, generator: torch.Generator
) -> list[Tensor]:
    return [task.loss(_embeddings(output, task), epoch=epoch, generator=generator) for task, _ in weighted]


def _mask(data: Any, name: str, mask: Tensor | None) -> Tensor:
    mask = getattr(data, name) if mask is None else mask
    nodes = data.x.shape[0]
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != (nodes,):
        got = f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"{name} must be bool of shape ({nodes},), got {got}")
    if not bool(mask.any()):
        raise ValueError(f"{name} selects no node")
    return mask


def _masks(data: Any, train_mask: Tensor | None, val_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    train, val = _mask(data, "train_mask", train_mask), _mask(data, "val_mask", val_mask)
    shared = int((train & val).sum())
    if shared:
        raise ValueError(f"train_mask and val_mask must not overlap, {shared} nodes stand in both")
    return train, val
